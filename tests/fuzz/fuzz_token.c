/* Tokens: with a fixed key, whatever is accepted must be a token that this harness signed, and says what it said. The input is a token,
 * or edits one of the good ones: bytes over it, into it, or its parts put together with those of another. A token signed with the right
 * key over claims from the input is accepted only where a plain reading of the claims allows it. */
#include "fuzz.h"

#include "pullgate/jv.h"
#include "pullgate/token.h"

static struct keyring *keys;
#define GOOD 3
static struct strbuf good[GOOD];
#define NOW 1100

static void setup(void)
{
    keys = fuzz_keys();
    fuzz_quiet();
    struct token_claims c = {.issuer = S("i"), .audience = S("a"), .subject = S("s"), .issued_at_s = 1000, .expires_at_s = 1300, .n_repositories = 1,
                             .credential_hash = S("00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"), .repositories = {S("shop/api")}};
    token_issue(keys, &c, &good[0]);
    c.n_repositories = 0;
    c.subject = S("another");
    token_issue(keys, &c, &good[1]);
    c.issued_at_s = 700;
    c.expires_at_s = 1000; /* over */
    token_issue(keys, &c, &good[2]);
}

static void edit(struct fuzz_in in, struct strbuf *ret)
{
    uint8_t how = fuzz_byte(&in);
    const struct strbuf *g = &good[how / 4 % GOOD];
    size_t at = (size_t)(fuzz_byte(&in) | fuzz_byte(&in) << 8) % g->n;

    if (how % 4 == 0) {
        sb_add(ret, fuzz_rest(&in));
    } else if (how % 4 == 1) {
        sb_add(ret, sb_str(g));
        for (size_t i = 0; i < in.n && at + i < ret->n; i++)
            ret->p[at + i] = (char)in.p[i];
    } else if (how % 4 == 2) {
        sb_add(ret, str_sub(sb_str(g), 0, at));
        sb_add(ret, fuzz_rest(&in));
        sb_add(ret, str_skip(sb_str(g), at));
    } else { /* head, claims and signature, each from one of them or from the input */
        struct str part, rest;
        for (int k = 0; k < 3; k++) {
            rest = sb_str(&good[at % GOOD]);
            for (int i = 0; i <= k; i++)
                (void)str_next(&rest, '.', &part);
            at /= GOOD;
            if (k)
                sb_add_char(ret, '.');
            sb_add(ret, at % 7 == 6 ? fuzz_until(&in, '.') : part);
        }
    }
}

static bool in_claim(const struct jv *v, const char *name, int64_t *ret)
{
    *ret = jv_get_int(v, name, INT64_MIN);
    return jv_type(jv_get(v, name)) == JV_INT;
}

/* Signed by us: then the claims decide. */
static void check_claims(struct str claims)
{
    struct strbuf t = {0}, scratch = {0};
    uint8_t sig[64];
    struct token_claims c;
    struct jv *v = NULL;
    static const struct jv_limits limits = {1 << 16, 4096, 16};
    struct str head = sb_str(&good[0]), rest;
    int64_t iat = 0, exp = 0, nbf = 0;

    (void)str_cut(head, '.', &head, &rest);
    sb_add(&t, head);
    sb_add_char(&t, '.');
    base64url_encode(claims, &t);
    keyring_token_sign(keys, sb_str(&t), sig);
    sb_add_char(&t, '.');
    base64url_encode((struct str){(const char *)sig, sizeof sig}, &t);
    if (token_verify(keys, sb_str(&t), S("i"), S("a"), NOW, &c, &scratch) == ERR_OK) {
        FUZZ_CHECK(t.n <= TOKEN_MAX && jv_parse(claims, &limits, &v, NULL) == ERR_OK, "accepted claims that are no JSON");
        FUZZ_CHECK(str_eq_c(jv_get_str(v, "iss"), "i") && str_eq_c(jv_get_str(v, "aud"), "a"), "accepted for somebody else");
        FUZZ_CHECK(in_claim(v, "iat", &iat) && in_claim(v, "exp", &exp) && in_claim(v, "nbf", &nbf), "accepted without its times");
        FUZZ_CHECK(exp > NOW && exp - iat <= 300 && exp > iat && nbf <= NOW + 30 && iat <= NOW + 30, "accepted out of its time");
        FUZZ_CHECK(jv_get_str(v, "cred").n == 64 && str_eq(jv_get_str(v, "cred"), c.credential_hash), "accepted for another credential");
        const struct jv *access = jv_get(v, "access");
        FUZZ_CHECK(jv_len(access) == c.n_repositories && c.n_repositories <= TOKEN_MAX_SCOPES, "accepted with other repositories");
        for (size_t i = 0; i < c.n_repositories; i++)
            FUZZ_CHECK(oci_name_valid(c.repositories[i]) && str_eq(c.repositories[i], jv_get_str(jv_at(access, i), "name")) &&
                           str_eq_c(jv_get_str(jv_at(access, i), "type"), "repository"),
                       "accepted with a repository outside the grammar");
        jv_free(v);
    }
    sb_free(&t);
    sb_free(&scratch);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_in in = {data, size};
    struct token_claims c;
    struct strbuf scratch = {0}, t = {0};

    if (!keys)
        setup();
    if (fuzz_byte(&in) & 1) {
        check_claims(fuzz_rest(&in));
        return 0;
    }
    edit(in, &t);
    char *copy = fuzz_exact(sb_str(&t));
    if (token_verify(keys, (struct str){copy, t.n}, S("i"), S("a"), NOW, &c, &scratch) == ERR_OK) {
        FUZZ_CHECK(str_eq(sb_str(&t), sb_str(&good[0])) || str_eq(sb_str(&t), sb_str(&good[1])), "a token was accepted that was never signed");
        FUZZ_CHECK(c.n_repositories <= 1 && c.expires_at_s == 1300, "a token says something else");
    }
    mem_free(copy);
    sb_free(&scratch);
    sb_free(&t);
    return 0;
}
