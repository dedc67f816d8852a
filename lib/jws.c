/* Compact JWS and JWK sets. The order of work in jws_open() is the point of it: size, form, header, key, signature, and only then the
 * payload. It knows no claim and no clock. */
#include "pullgate/jws.h"

#include <string.h>

#include "pullgate/jv.h"
#include "pullgate/mem.h"

#define ALG "EdDSA"
#define SIG_LEN 64
#define HEADER_TEXT_MAX 512 /* of the encoded header: three short members */
#define PAYLOAD_DEPTH 16
#define JWKS_MAX (256u * 1024)

static const struct jv_limits HEADER_LIMITS = {512, 16, 2};
static const struct jv_limits JWKS_LIMITS = {JWKS_MAX, 10000, 8};

/* DER of a SubjectPublicKeyInfo up to the key's 32 bytes (RFC 8410 10.1). */
static const uint8_t SPKI_HEAD[12] = {0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00};

bool jws_build(const struct keyring *k, const char *typ, struct str kid, const struct jv *claims, struct strbuf *ret)
{
    struct strbuf t = {0};
    uint8_t sig[SIG_LEN];
    size_t from = ret->n;

    sb_addc(&t, "{\"alg\":\"" ALG "\",\"kid\":");
    sb_add_json(&t, kid);
    sb_addf(&t, ",\"typ\":\"%s\"}", typ);
    base64url_encode(sb_str(&t), ret);
    sb_add_char(ret, '.');
    sb_reset(&t);
    jv_dump_sorted(claims, &t);
    base64url_encode(sb_str(&t), ret);
    sb_free(&t);
    if (!keyring_license_sign(k, kid, (struct str){ret->p + from, ret->n - from}, sig)) {
        ret->n = from;
        ret->p[from] = '\0';
        return false;
    }
    sb_add_char(ret, '.');
    base64url_encode((struct str){(const char *)sig, sizeof sig}, ret);
    return true;
}

/* ---- public keys ------------------------------------------------------------------------------------------------------- */

static bool key_add(struct jws_keys *set, struct str kid, const uint8_t public_key[32])
{
    if (set->n == JWS_KEYS_MAX || !kid.n || kid.n >= JWS_KID_MAX || memchr(kid.p, 0, kid.n))
        return false;
    for (size_t i = 0; i < set->n; i++)
        if (str_eq_c(kid, set->list[i].kid))
            return false;
    struct jws_key *k = &set->list[set->n++];
    memcpy(k->kid, kid.p, kid.n);
    k->kid[kid.n] = '\0';
    memcpy(k->public_key, public_key, 32);
    return true;
}

enum err jws_keys_parse(struct str jwks, struct jws_keys *ret, struct error *reterr)
{
    struct jv *doc = NULL;
    struct jws_keys set = {0};
    enum err err = jv_parse(jwks, &JWKS_LIMITS, &doc, reterr);

    if (err)
        return err;
    const struct jv *list = jv_get(doc, "keys");
    if (jv_type(list) != JV_ARRAY)
        err = error_set(reterr, ERR_INVALID, "no JWK set: it has no \"keys\"");
    for (size_t i = 0; !err && i < jv_len(list); i++) {
        const struct jv *key = jv_at(list, i);
        struct strbuf x = {0};
        if (!str_eq_c(jv_get_str(key, "kty"), "OKP") || !str_eq_c(jv_get_str(key, "crv"), "Ed25519"))
            continue; /* of a kind that signs nothing here */
        if (!base64url_decode(jv_get_str(key, "x"), &x) || x.n != 32 || !key_add(&set, jv_get_str(key, "kid"), (const uint8_t *)x.p))
            err = error_set(reterr, ERR_INVALID, "key %zu of the JWK set is malformed, there twice, or one too many", i + 1);
        sb_free(&x);
    }
    jv_free(doc);
    if (!err && !set.n)
        err = error_set(reterr, ERR_INVALID, "the JWK set holds no Ed25519 key");
    if (!err)
        *ret = set;
    return err;
}

static struct str trim_all(struct str s)
{
    while (s.n && (s.p[0] == ' ' || s.p[0] == '\t' || s.p[0] == '\r' || s.p[0] == '\n'))
        s = str_skip(s, 1);
    while (s.n && (s.p[s.n - 1] == ' ' || s.p[s.n - 1] == '\t' || s.p[s.n - 1] == '\r' || s.p[s.n - 1] == '\n'))
        s.n--;
    return s;
}

static bool pem_decode(struct str s, uint8_t ret[32])
{
    const struct str begin = S("-----BEGIN PUBLIC KEY-----"), end = S("-----END PUBLIC KEY-----");
    struct strbuf text = {0}, der = {0};

    if (s.n < begin.n + end.n || !str_starts(s, begin) || !str_ends(s, end))
        return false;
    s = str_sub(s, begin.n, s.n - begin.n - end.n);
    for (size_t i = 0; i < s.n; i++)
        if (s.p[i] != '\n' && s.p[i] != '\r')
            sb_add_char(&text, s.p[i]);
    bool good = base64_decode(sb_str(&text), &der) && der.n == sizeof SPKI_HEAD + 32 && memcmp(der.p, SPKI_HEAD, sizeof SPKI_HEAD) == 0;
    if (good)
        memcpy(ret, der.p + sizeof SPKI_HEAD, 32);
    sb_free(&text);
    sb_free(&der);
    return good;
}

enum err jws_key_parse(struct str text, struct jws_keys *ret, struct error *reterr)
{
    uint8_t key[32];
    char kid[SEAL_KID_MAX];
    struct jws_keys set = {0};
    struct strbuf raw = {0};

    text = trim_all(text);
    bool good = text.n <= 1024 && (pem_decode(text, key) || (text.n == 64 && hex_decode(text, key, 32)));
    if (!good && text.n == 43 && base64url_decode(text, &raw) && raw.n == 32) {
        memcpy(key, raw.p, 32);
        good = true;
    }
    sb_free(&raw);
    if (!good)
        return error_set(reterr, ERR_INVALID, "no Ed25519 public key: expected PEM, 64 hex digits or base64url");
    seal_ed25519_kid(key, kid);
    AN(key_add(&set, str_c(kid), key));
    *ret = set;
    return ERR_OK;
}

struct jv *jws_key_print(const char *kid, const uint8_t public_key[32])
{
    struct jv *v = jv_object();
    struct strbuf x = {0};

    base64url_encode((struct str){(const char *)public_key, 32}, &x);
    jv_set_c(v, "kty", "OKP");
    jv_set_c(v, "crv", "Ed25519");
    jv_set_c(v, "use", "sig");
    jv_set_c(v, "alg", ALG);
    jv_set_c(v, "kid", kid);
    jv_set_str(v, "x", sb_str(&x));
    sb_free(&x);
    return v;
}

/* ---- verifying ------------------------------------------------------------------------------------------------------- */

static enum err header_check(struct str part, const char *typ, char ret_kid[JWS_KID_MAX], struct error *reterr)
{
    struct strbuf raw = {0};
    struct jv *h = NULL;
    enum err err = ERR_OK;

    if (part.n > HEADER_TEXT_MAX || !base64url_decode(part, &raw) || jv_parse(sb_str(&raw), &HEADER_LIMITS, &h, NULL) || jv_type(h) != JV_OBJECT)
        err = error_set(reterr, ERR_INVALID, "the header is no JSON object");
    struct str kid = jv_get_str(h, "kid");
    if (!err && !str_eq_c(jv_get_str(h, "alg"), ALG))
        err = error_set(reterr, ERR_INVALID, "the algorithm is not " ALG);
    else if (!err && !str_eq_c(jv_get_str(h, "typ"), typ))
        err = error_set(reterr, ERR_INVALID, "the type is not %s", typ);
    else if (!err && (!kid.n || kid.n >= JWS_KID_MAX || memchr(kid.p, 0, kid.n)))
        err = error_set(reterr, ERR_INVALID, "the header names no key");
    else if (!err && jv_len(h) != 3)
        err = error_set(reterr, ERR_INVALID, "the header has members beyond alg, typ and kid");
    if (!err) {
        memcpy(ret_kid, kid.p, kid.n);
        ret_kid[kid.n] = '\0';
    }
    jv_free(h);
    sb_free(&raw);
    return err;
}

static enum err signature_check(const struct jws_keys *keys, const char *kid, struct str data, struct str part, struct error *reterr)
{
    const struct jws_key *key = NULL;
    struct strbuf sig = {0};

    for (size_t i = 0; i < keys->n; i++)
        if (strcmp(keys->list[i].kid, kid) == 0)
            key = &keys->list[i];
    if (!key)
        return error_set(reterr, ERR_INVALID, "signed with the key \"%.*s\", which is not among the trusted ones", (int)strnlen(kid, 32), kid);
    bool good = base64url_decode(part, &sig) && sig.n == SIG_LEN && seal_ed25519_verify(key->public_key, data, (const uint8_t *)sig.p);
    sb_free(&sig);
    return good ? ERR_OK : error_set(reterr, ERR_INVALID, "the signature is wrong: the text was altered or is not complete");
}

enum err jws_open(struct str text, const char *typ, size_t max, const struct jws_keys *keys, struct jv **ret_claims, char ret_kid[JWS_KID_MAX],
                  struct error *reterr)
{
    struct str header, rest, payload, sig;
    char kid[JWS_KID_MAX];

    if (text.n > max)
        return error_set(reterr, ERR_TOO_LARGE, "longer than %zu bytes", max);
    if (!str_cut(text, '.', &header, &rest) || !str_cut(rest, '.', &payload, &sig)) /* a third dot is no base64url */
        return error_set(reterr, ERR_INVALID, "no signed document: it has not three parts");
    enum err err = header_check(header, typ, kid, reterr);
    if (!err)
        err = signature_check(keys, kid, (struct str){text.p, header.n + 1 + payload.n}, sig, reterr);
    if (err)
        return err;

    struct strbuf raw = {0};
    struct jv *claims = NULL;
    const struct jv_limits limits = {max, max, PAYLOAD_DEPTH};
    if (!base64url_decode(payload, &raw) || jv_parse(sb_str(&raw), &limits, &claims, NULL) || jv_type(claims) != JV_OBJECT)
        err = error_set(reterr, ERR_INVALID, "the payload is no JSON object");
    sb_free(&raw);
    if (err) {
        jv_free(claims);
        return err;
    }
    memcpy(ret_kid, kid, sizeof kid);
    *ret_claims = claims;
    return ERR_OK;
}
