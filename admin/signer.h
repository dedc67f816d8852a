/* The keys that sign what customers keep (license files, leases, revocation lists): which one signs, which are still to be believed.
 * The private halves are files of keys.path, the rest is rows of signing_keys. */
#ifndef ADMIN_SIGNER_H
#define ADMIN_SIGNER_H

#include "api.h"
#include "pullgate/seal.h"

/* At the start, when the store is open: reads the key files, makes one where none can sign, and lets the rows follow the files. */
enum err signer_start(struct admin *a, struct error *reterr) MUST_USE;
/* The key that signs: the newest that is not retired and whose file is here. ERR_UNAVAILABLE when there is none. */
enum err signer_kid(struct store *s, const struct keyring *k, char ret[SEAL_KID_MAX], struct error *reterr) MUST_USE;
/* Where a path of this daemon is reached from outside: admin.public_url before it, if there is one. */
void signer_url(const struct admin *a, const char *path, struct strbuf *ret);
/* Claim "iss": admin.public_url, else "pullgate". */
const char *signer_issuer(const struct admin *a);

#endif
