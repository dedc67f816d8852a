/* What other resources and the jobs do with licenses: the one way to read, make and change one. Every change writes license, history,
 * event and outbox together (api_licenses.c); the caller's transaction holds them. */
#ifndef ADMIN_LICENSES_H
#define ADMIN_LICENSES_H

#include "api.h"

/* The license as the API prints it, with its grants, if it is the caller's vendor's and not archived. The caller frees *ret. */
enum err licenses_get(struct api *rq, struct str id, struct jv **ret) MUST_USE;
/* The same without a look at the ETag, archived ones too: a row of a list. */
enum err licenses_shown(struct api *rq, struct str id, struct jv **ret) MUST_USE;
/* GET /licenses (api_license_list.c) and the parameters it takes. */
enum err licenses_list(struct api *rq) MUST_USE;
extern const struct query_param LICENSE_LIST_PARAMS[];
/* POST /licenses with `in` (checked against the schema) as its body. rq->out: the license, with "key". source: see the column. */
enum err licenses_make(struct api *rq, const struct jv *in, const char *source) MUST_USE;
/* One action as its route does it: "activate", "suspend", "reinstate", "revoke", "renew", "extend", "rotate-key". `in` is its body, or
 * NULL. rq->out: the license. An action that the state forbids is ERR_CONFLICT with rq->code "action_not_allowed". */
enum err licenses_act(struct api *rq, struct str id, const char *action, const struct jv *in) MUST_USE;

#endif
