/* Registry tokens: how they are spelled and the rules by which one counts (SECURITY 4.7). One algorithm, fixed here and never
 * taken from the token. A token proves who asks; rights are decided elsewhere, on every request. */
#include "pullgate/token.h"

#include <string.h>

#include "pullgate/jv.h"
#include "pullgate/mem.h"
#include "pullgate/oci.h"

#define TOKEN_TYP "ent-pull+jwt"
#define TOKEN_ALG "EdDSA"
#define TOKEN_SIG_LEN 64
#define TOKEN_LEEWAY_S 30 /* clocks of two of our own machines; never given to exp */
#define TOKEN_CRED_LEN 64 /* hex digits of the credential's hash */
/* Bytes of claims that still make a token of TOKEN_MAX, base64 and the header and signature taken off. */
#define CLAIMS_MAX ((TOKEN_MAX - 256) / 4 * 3)
static const struct jv_limits HEADER_LIMITS = {512, 16, 2};
static const struct jv_limits CLAIMS_LIMITS = {TOKEN_MAX, 256, 6};

static void sign_and_append(const struct keyring *k, struct strbuf *ret, size_t from)
{
    uint8_t sig[TOKEN_SIG_LEN];
    keyring_token_sign(k, (struct str){ret->p + from, ret->n - from}, sig);
    sb_add_char(ret, '.');
    base64url_encode((struct str){(const char *)sig, sizeof sig}, ret);
}

void token_issue(const struct keyring *k, const struct token_claims *c, struct strbuf *ret)
{
    struct strbuf t = {0};
    size_t from = ret->n;
    AN(c->n_repositories <= TOKEN_MAX_SCOPES); /* GCOVR_EXCL_BR_LINE: the other way aborts */

    sb_addf(&t, "{\"alg\":\"" TOKEN_ALG "\",\"typ\":\"" TOKEN_TYP "\",\"kid\":\"%s\"}", keyring_token_kid(k));
    base64url_encode(sb_str(&t), ret);
    sb_add_char(ret, '.');
    sb_reset(&t);

    uint8_t id[16];
    seal_random(id, sizeof id);
    sb_addc(&t, "{\"iss\":");
    sb_add_json(&t, c->issuer);
    sb_addc(&t, ",\"aud\":");
    sb_add_json(&t, c->audience);
    sb_addc(&t, ",\"sub\":");
    sb_add_json(&t, c->subject);
    sb_addc(&t, ",\"cred\":");
    sb_add_json(&t, c->credential_hash);
    sb_addf(&t, ",\"iat\":%lld,\"nbf\":%lld,\"exp\":%lld,\"jti\":\"", (long long)c->issued_at_s, (long long)c->issued_at_s,
            (long long)c->expires_at_s);
    sb_add_hex(&t, id, sizeof id);
    sb_addc(&t, "\",\"access\":[");
    for (size_t i = 0; i < c->n_repositories; i++) {
        if (t.n + c->repositories[i].n + 64 > CLAIMS_MAX)
            break; /* sixteen very long names: a scope less beats a token that nobody takes */
        sb_addc(&t, i ? ",{\"type\":\"repository\",\"name\":" : "{\"type\":\"repository\",\"name\":");
        sb_add_json(&t, c->repositories[i]);
        sb_addc(&t, ",\"actions\":[\"pull\"]}");
    }
    sb_addc(&t, "]}");
    base64url_encode(sb_str(&t), ret);
    sb_free(&t);
    sign_and_append(k, ret, from);
}

/* A string member of v as bytes appended to b; false when it is no string, empty, or longer than max. */
static bool member(const struct jv *v, const char *name, size_t max, struct strbuf *b, struct str *ret)
{
    struct jv *m = jv_get(v, name);
    struct str s = jv_str(m);
    if (jv_type(m) != JV_STRING || !s.n || s.n > max)
        return false;
    size_t at = b->n;
    sb_add(b, s);
    *ret = (struct str){b->p + at, s.n};
    return true;
}

static bool integer(const struct jv *v, const char *name, int64_t *ret)
{
    struct jv *m = jv_get(v, name);
    if (jv_type(m) != JV_INT)
        return false;
    *ret = jv_int(m, -1);
    return *ret >= 0;
}

/* Exactly {alg, typ, kid}: no jwk, jku, x5c, crit, b64, zip, enc, nor anything else. */
static bool header_ok(struct str segment, char ret_kid[64])
{
    struct strbuf raw = {0};
    struct jv *v = NULL;
    bool ok = base64url_decode(segment, &raw) && jv_parse(sb_str(&raw), &HEADER_LIMITS, &v, NULL) == ERR_OK && jv_type(v) == JV_OBJECT &&
              jv_len(v) == 3 && str_eq_c(jv_get_str(v, "alg"), TOKEN_ALG) && str_eq_c(jv_get_str(v, "typ"), TOKEN_TYP);
    struct str kid = jv_get_str(v, "kid");
    ok = ok && kid.n && kid.n < 64;
    if (ok) {
        memcpy(ret_kid, kid.p, kid.n);
        ret_kid[kid.n] = 0;
    }
    jv_free(v);
    sb_free(&raw);
    return ok;
}

static bool access_ok(const struct jv *access, struct strbuf *b, struct token_claims *c)
{
    if (jv_type(access) != JV_ARRAY || jv_len(access) > TOKEN_MAX_SCOPES)
        return false;
    for (size_t i = 0; i < jv_len(access); i++) {
        struct jv *a = jv_at(access, i), *actions = jv_get(a, "actions");
        if (jv_type(a) != JV_OBJECT || jv_len(a) != 3 || !str_eq_c(jv_get_str(a, "type"), "repository") || jv_type(actions) != JV_ARRAY ||
            jv_len(actions) != 1 || !str_eq_c(jv_str(jv_at(actions, 0)), "pull"))
            return false;
        if (!member(a, "name", OCI_NAME_MAX, b, &c->repositories[i]) || !oci_name_valid(c->repositories[i]))
            return false;
        c->n_repositories = i + 1;
    }
    return true;
}

static bool hash_text_ok(struct str s)
{
    uint8_t bytes[TOKEN_CRED_LEN / 2];
    return s.n == TOKEN_CRED_LEN && hex_decode(s, bytes, sizeof bytes);
}

static bool claims_ok(const struct jv *v, struct str issuer, struct str audience, int64_t now_s, struct strbuf *b, struct token_claims *c)
{
    int64_t nbf;
    struct str jti;
    if (jv_type(v) != JV_OBJECT)
        return false;
    if (!member(v, "iss", 1024, b, &c->issuer) || !str_eq(c->issuer, issuer) || !member(v, "aud", 1024, b, &c->audience) ||
        !str_eq(c->audience, audience))
        return false;
    if (!member(v, "sub", 256, b, &c->subject) || !member(v, "jti", 128, b, &jti) || !member(v, "cred", 128, b, &c->credential_hash) ||
        !hash_text_ok(c->credential_hash))
        return false;
    if (!integer(v, "iat", &c->issued_at_s) || !integer(v, "nbf", &nbf) || !integer(v, "exp", &c->expires_at_s))
        return false;
    int64_t life = c->expires_at_s - c->issued_at_s; /* neither is negative, so this fits */
    if (life <= 0 || life > TOKEN_TTL_S)
        return false;
    if (c->expires_at_s <= now_s || nbf > now_s + TOKEN_LEEWAY_S || c->issued_at_s > now_s + TOKEN_LEEWAY_S)
        return false;
    return access_ok(jv_get(v, "access"), b, c);
}

enum err token_verify(const struct keyring *k, struct str token, struct str issuer, struct str audience, int64_t now_s, struct token_claims *ret,
                      struct strbuf *scratch)
{
    struct str header, rest, payload, sig_text;
    if (token.n > TOKEN_MAX || !str_cut(token, '.', &header, &rest) || !str_cut(rest, '.', &payload, &sig_text))
        return ERR_UNAUTHN; /* a third dot is no base64url */

    /* The signature first: nothing of the payload is looked at before it is known to be ours. */
    char kid[64];
    if (!header_ok(header, kid))
        return ERR_UNAUTHN;
    struct strbuf raw = {0};
    bool ok = base64url_decode(sig_text, &raw) && raw.n == TOKEN_SIG_LEN &&
              keyring_token_verify(k, str_c(kid), (struct str){token.p, header.n + 1 + payload.n}, (const uint8_t *)raw.p);
    struct jv *v = NULL;
    sb_reset(&raw);
    ok = ok && base64url_decode(payload, &raw) && jv_parse(sb_str(&raw), &CLAIMS_LIMITS, &v, NULL) == ERR_OK;

    struct token_claims c = {0};
    /* Everything borrowed fits in the payload's length, so that no later append moves what an earlier one gave out. */
    sb_reset(scratch);
    sb_reserve(scratch, raw.n + 1);
    ok = ok && claims_ok(v, issuer, audience, now_s, scratch, &c);
    jv_free(v);
    sb_free(&raw);
    if (!ok)
        return ERR_UNAUTHN;
    *ret = c;
    return ERR_OK;
}

static bool actions_include_pull(struct str actions)
{
    struct str a;
    while (str_next(&actions, ',', &a))
        if (str_eq_c(a, "pull"))
            return true;
    return false;
}

size_t token_scopes_parse(struct str scope, struct token_scope *ret, size_t max)
{
    size_t n = 0;
    struct str one;
    while (str_next(&scope, ' ', &one)) {
        struct str type, rest;
        if (!str_cut(one, ':', &type, &rest) || !str_eq_c(type, "repository"))
            continue;
        ptrdiff_t colon = str_rindex(rest, ':');
        if (colon < 0)
            continue;
        struct token_scope s = {str_sub(rest, 0, (size_t)colon), actions_include_pull(str_skip(rest, (size_t)colon + 1))};
        if (!oci_name_valid(s.repository))
            continue;
        size_t i = 0;
        while (i < n && !str_eq(ret[i].repository, s.repository))
            i++;
        if (i < n)
            ret[i].pull |= s.pull; /* asked for twice: one scope */
        else if (n < max)
            ret[n++] = s;
        else
            break;
    }
    return n;
}
