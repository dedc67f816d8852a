/* Registry tokens: JWS compact serialisation, Ed25519, five minutes (SECURITY 4.7, RFC 7515, RFC 8037). They prove who asks;
 * what may be pulled is decided anew on every request. */
#ifndef PULLGATE_TOKEN_H
#define PULLGATE_TOKEN_H

#include <stdbool.h>
#include <stdint.h>

#include "pullgate/err.h"
#include "pullgate/seal.h"
#include "pullgate/str.h"

#define TOKEN_TTL_S 300
#define TOKEN_MAX 4096
#define TOKEN_MAX_SCOPES 16

struct token_claims {
    struct str issuer, audience; /* both exact */
    struct str credential_hash;  /* claim "cred": the look-up key of the credential (not the secret) */
    struct str subject;          /* customer slug, sub */
    int64_t issued_at_s, expires_at_s;
    struct str repositories[TOKEN_MAX_SCOPES]; /* claim "access": [{"type":"repository","name":…,"actions":["pull"]}] */
    size_t n_repositories;
};
void token_issue(const struct keyring *k, const struct token_claims *c, struct strbuf *ret);
/* ERR_OK with *ret borrowing from *scratch (which the caller frees with sb_free after use); ERR_UNAUTHN for everything else.
 * Rules: two dots, canonical base64url, exactly the members alg (EdDSA), typ (ent-pull+jwt), kid in the header, known kid,
 * iss and aud exact, integer exp/iat/nbf, exp - iat <= 300, nbf <= now + 30, exp > now, duplicate keys refused. */
enum err token_verify(const struct keyring *k, struct str token, struct str issuer, struct str audience, int64_t now_s,
                      struct token_claims *ret, struct strbuf *scratch) MUST_USE;

struct token_scope {
    struct str repository;
    bool pull; /* pull was among the actions ("*" is not) */
};
/* "repository:acme/app:pull,push" (one or several, separated by blanks); names outside the grammar and other types are
 * dropped. Returns how many, at most max. */
size_t token_scopes_parse(struct str scope, struct token_scope *ret, size_t max);

#endif
