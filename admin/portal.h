/* The portal API: what a customer sees of his own (DESIGN 5). Signed in by a customer credential or license key over Basic. */
#ifndef ADMIN_PORTAL_H
#define ADMIN_PORTAL_H

#include "api.h"

/* GET /portal/v1/versions, /licenses, /credentials, /pulls; ended by a row without path. */
extern const struct route PORTAL_ROUTES[];

/* Sign-in of a ROLE_CUSTOMER route, in a database thread: reads rq->authorization and rq->peer_addr with rq->store, fills
 * vendor_id, customer_id, credential_id, license_id, actor. ERR_UNAUTHN with rq->code set: 401 with a Basic challenge (http.c counts
 * and slows the failures of an address). ERR_DENIED: right secret, but disabled, expired or not from this address. */
enum err portal_authenticate(struct api *rq) MUST_USE;

#endif
