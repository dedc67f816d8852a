/* Signed documents that leave the deployment: license files, leases, revocation lists. JWS compact serialisation (RFC 7515) with Ed25519
 * (RFC 8037), and the sets of public keys (RFC 7517) that they are verified with. docs/LICENSE_FILE.md is the contract. Pure, over
 * seal.h: whose keys are to be believed is the caller's matter. */
#ifndef PULLGATE_JWS_H
#define PULLGATE_JWS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pullgate/err.h"
#include "pullgate/seal.h"
#include "pullgate/str.h"

struct jv;

/* The typ of each kind: a document of one kind is never taken for one of another. */
#define JWS_TYP_LICENSE "pullgate-license+jws"
#define JWS_TYP_LEASE   "pullgate-lease+jws"
#define JWS_TYP_CRL     "pullgate-crl+jws"

#define JWS_LICENSE_MAX (1024u * 1024)     /* bytes of a text: 200 grants that name many repositories stay below it */
#define JWS_LEASE_MAX   (256u * 1024)      /* a lease carries limits and features, no grants */
#define JWS_CRL_MAX     (64u * 1024 * 1024) /* some 300,000 revocations */
#define JWS_KEYS_MAX    64
#define JWS_KID_MAX     64

/* header.payload.signature of the claims, their keys sorted so that equal claims are equal bytes. False: the keyring has no key of that
 * kid, ret is as before. */
bool jws_build(const struct keyring *k, const char *typ, struct str kid, const struct jv *claims, struct strbuf *ret) MUST_USE;

struct jws_keys { /* public keys; a value */
    size_t n;
    struct jws_key {
        char kid[JWS_KID_MAX];
        uint8_t public_key[32];
    } list[JWS_KEYS_MAX];
};
/* {"keys":[{"kty":"OKP","crv":"Ed25519","x":…,"kid":…}]}. Keys of other types are passed over; one that is malformed, a kid twice, or no
 * key at all is ERR_INVALID. */
enum err jws_keys_parse(struct str jwks, struct jws_keys *ret, struct error *reterr) MUST_USE;
/* One public key alone: PEM (SubjectPublicKeyInfo), 64 hex digits, or base64url. Its kid is seal_ed25519_kid()'s. */
enum err jws_key_parse(struct str text, struct jws_keys *ret, struct error *reterr) MUST_USE;
/* One key of a set, as an object to be pushed into "keys". */
struct jv *jws_key_print(const char *kid, const uint8_t public_key[32]);

/* The claims of a text, if it is of that typ and a key of the set signed it; else ERR_INVALID (ERR_TOO_LARGE beyond max bytes), with
 * nothing of the payload looked at before its signature held. Strict: exactly three parts of canonical base64url; a header of exactly
 * alg (EdDSA), typ and kid, so no crit, no embedded key, no other algorithm; a payload that is one JSON object without a member twice. */
enum err jws_open(struct str text, const char *typ, size_t max, const struct jws_keys *keys, struct jv **ret_claims, char ret_kid[JWS_KID_MAX],
                  struct error *reterr) MUST_USE;

#endif
