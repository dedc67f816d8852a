/* Signed documents: what is built opens, and nothing else does. The bad ones are signed with the true key wherever the rule could be met
 * with a right signature, so that a row fails for its own reason and no other. */
#include "pullgate/jws.h"

#include <ftw.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "pullgate/jv.h"
#include "pullgate/mem.h"

static char dir[64], kid[SEAL_KID_MAX];
static struct keyring *keys;
static struct jws_keys trusted;

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *at)
{
    (void)st, (void)type, (void)at;
    return remove(path);
}

static int teardown(void **state)
{
    (void)state;
    keyring_free(keys);
    return nftw(dir, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
}

static int setup(void **state)
{
    (void)state;
    struct error e;
    struct keyring_license_key list[KEYRING_LICENSE_KEYS_MAX];
    snprintf(dir, sizeof dir, "/tmp/pullgate-jws-XXXXXX");
    if (!mkdtemp(dir) || keyring_open(dir, true, &keys, &e) || keyring_license_open(keys, dir, true, kid, &e) || keyring_license_keys(keys, list) != 1)
        return -1;
    struct jv *set = jv_object(), *a = jv_array();
    struct strbuf b = {0};
    jv_push(a, jws_key_print(list[0].kid, list[0].public_key));
    jv_set(set, "keys", a);
    jv_dump(set, &b);
    enum err err = jws_keys_parse(sb_str(&b), &trusted, &e);
    sb_free(&b);
    jv_free(set);
    return err ? -1 : 0;
}

static void claims_sample(struct strbuf *ret)
{
    struct jv *c = jv_object();
    jv_set_c(c, "zebra", "last");
    jv_set_int(c, "answer", 42);
    assert_true(jws_build(keys, JWS_TYP_LICENSE, str_c(kid), c, ret));
    jv_free(c);
}

static bool opens(struct str text, const char *typ, size_t max)
{
    struct jv *c = NULL;
    struct error e = {0};
    char got[JWS_KID_MAX] = "";
    enum err err = jws_open(text, typ, max, &trusted, &c, got, &e);
    assert_true(err == ERR_OK || err == ERR_INVALID || err == ERR_TOO_LARGE);
    assert_true((err == ERR_OK) == (c != NULL));
    assert_true(err == ERR_OK || e.text[0] != '\0');
    if (!err)
        assert_string_equal(got, kid);
    jv_free(c);
    return err == ERR_OK;
}

/* These very texts, with a right signature. */
static void mint(struct str header, struct str payload, struct strbuf *ret)
{
    uint8_t sig[64];
    sb_reset(ret);
    base64url_encode(header, ret);
    sb_add_char(ret, '.');
    base64url_encode(payload, ret);
    assert_true(keyring_license_sign(keys, str_c(kid), sb_str(ret), sig));
    sb_add_char(ret, '.');
    base64url_encode((struct str){(const char *)sig, sizeof sig}, ret);
}

static void header_of(const char *fmt, struct strbuf *ret)
{
    sb_reset(ret);
    for (const char *p = fmt; *p; p++) {
        if (strncmp(p, "$KID", 4) == 0) {
            sb_addc(ret, kid);
            p += 3;
        } else {
            sb_add_char(ret, *p);
        }
    }
}

#define GOOD_HEADER "{\"alg\":\"EdDSA\",\"typ\":\"" JWS_TYP_LICENSE "\",\"kid\":\"$KID\"}"

static void test_round_trip(void **state)
{
    (void)state;
    struct strbuf a = {0}, b = {0}, raw = {0};
    struct str head, rest, payload, sig;
    sb_addc(&a, "before|"); /* appended to */
    claims_sample(&a);
    claims_sample(&b);
    assert_true(str_eq(str_skip(sb_str(&a), 7), sb_str(&b))); /* the same claims, the same bytes */
    assert_true(opens(sb_str(&b), JWS_TYP_LICENSE, JWS_LICENSE_MAX));
    assert_false(opens(sb_str(&b), JWS_TYP_LEASE, JWS_LICENSE_MAX));
    assert_false(opens(sb_str(&b), JWS_TYP_CRL, JWS_LICENSE_MAX));
    assert_true(opens(sb_str(&b), JWS_TYP_LICENSE, b.n));
    assert_false(opens(sb_str(&b), JWS_TYP_LICENSE, b.n - 1));
    assert_true(str_cut(sb_str(&b), '.', &head, &rest) && str_cut(rest, '.', &payload, &sig));
    assert_true(base64url_decode(payload, &raw));
    assert_string_equal(raw.p, "{\"answer\":42,\"zebra\":\"last\"}");
    size_t n = b.n;
    struct jv *c = jv_object();
    assert_false(jws_build(keys, JWS_TYP_LICENSE, S("0000000000000000"), c, &b));
    assert_int_equal(b.n, n);
    jv_free(c);
    sb_free(&a);
    sb_free(&b);
    sb_free(&raw);
}

static void test_every_byte_counts(void **state)
{
    (void)state;
    struct strbuf b = {0};
    claims_sample(&b);
    for (size_t i = 0; i < b.n; i++) {
        char was = b.p[i];
        for (const char *c = "A.-_=9 "; *c; c++) {
            if (*c == was)
                continue;
            b.p[i] = *c;
            assert_false(opens(sb_str(&b), JWS_TYP_LICENSE, JWS_LICENSE_MAX));
        }
        b.p[i] = was;
        assert_false(opens(str_sub(sb_str(&b), 0, i), JWS_TYP_LICENSE, JWS_LICENSE_MAX));
        assert_false(opens(str_skip(sb_str(&b), i + 1), JWS_TYP_LICENSE, JWS_LICENSE_MAX));
    }
    sb_add_char(&b, 'A');
    assert_false(opens(sb_str(&b), JWS_TYP_LICENSE, JWS_LICENSE_MAX));
    sb_free(&b);
}

static void test_headers(void **state)
{
    (void)state;
    static const struct {
        const char *header;
        bool good;
    } rows[] = {
        {GOOD_HEADER, true},
        {" {\"kid\":\"$KID\", \"typ\":\"" JWS_TYP_LICENSE "\", \"alg\":\"EdDSA\"}", true},
        {"{\"alg\":\"none\",\"typ\":\"" JWS_TYP_LICENSE "\",\"kid\":\"$KID\"}", false},
        {"{\"alg\":\"HS256\",\"typ\":\"" JWS_TYP_LICENSE "\",\"kid\":\"$KID\"}", false},
        {"{\"alg\":\"Ed25519\",\"typ\":\"" JWS_TYP_LICENSE "\",\"kid\":\"$KID\"}", false},
        {"{\"alg\":\"eddsa\",\"typ\":\"" JWS_TYP_LICENSE "\",\"kid\":\"$KID\"}", false},
        {"{\"alg\":[\"EdDSA\"],\"typ\":\"" JWS_TYP_LICENSE "\",\"kid\":\"$KID\"}", false},
        {"{\"typ\":\"" JWS_TYP_LICENSE "\",\"kid\":\"$KID\"}", false},
        {"{\"alg\":\"EdDSA\",\"kid\":\"$KID\"}", false},
        {"{\"alg\":\"EdDSA\",\"typ\":\"JWT\",\"kid\":\"$KID\"}", false},
        {"{\"alg\":\"EdDSA\",\"typ\":\"" JWS_TYP_LICENSE "\"}", false},
        {"{\"alg\":\"EdDSA\",\"typ\":\"" JWS_TYP_LICENSE "\",\"kid\":\"\"}", false},
        {"{\"alg\":\"EdDSA\",\"typ\":\"" JWS_TYP_LICENSE "\",\"kid\":\"0000000000000000\"}", false},
        {"{\"alg\":\"EdDSA\",\"typ\":\"" JWS_TYP_LICENSE "\",\"kid\":\"$KID\\u0000\"}", false},
        {"{\"alg\":\"EdDSA\",\"typ\":\"" JWS_TYP_LICENSE "\",\"kid\":\"$KID$KID$KID$KID\"}", false},
        {"{\"alg\":\"EdDSA\",\"typ\":\"" JWS_TYP_LICENSE "\",\"kid\":1}", false},
        {"{\"alg\":\"EdDSA\",\"typ\":\"" JWS_TYP_LICENSE "\",\"kid\":\"x\",\"kid\":\"$KID\"}", false},
        {"{\"alg\":\"EdDSA\",\"typ\":\"" JWS_TYP_LICENSE "\",\"kid\":\"$KID\",\"crit\":[]}", false},
        {"{\"alg\":\"EdDSA\",\"typ\":\"" JWS_TYP_LICENSE "\",\"kid\":\"$KID\",\"b64\":false}", false},
        {"{\"alg\":\"EdDSA\",\"typ\":\"" JWS_TYP_LICENSE "\",\"kid\":\"$KID\",\"jwk\":{}}", false},
        {"{\"alg\":\"EdDSA\",\"typ\":\"" JWS_TYP_LICENSE "\",\"kid\":\"$KID\",\"jku\":\"https://x\"}", false},
        {"{\"alg\":\"EdDSA\",\"typ\":\"" JWS_TYP_LICENSE "\",\"kid\":\"$KID\"} ", true},
        {"{\"alg\":\"EdDSA\",\"typ\":\"" JWS_TYP_LICENSE "\",\"kid\":\"$KID\"}x", false},
        {"[]", false}, {"", false}, {"{", false}, {"null", false},
    };
    struct strbuf h = {0}, text = {0};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        header_of(rows[i].header, &h);
        mint(sb_str(&h), S("{}"), &text);
        if (opens(sb_str(&text), JWS_TYP_LICENSE, JWS_LICENSE_MAX) != rows[i].good)
            fail_msg("row %zu: %s", i, rows[i].header);
    }
    sb_free(&h);
    sb_free(&text);
}

static void test_payloads(void **state)
{
    (void)state;
    static const struct {
        struct str payload;
        bool good;
    } rows[] = {
        {S("{}"), true},          {S("{\"a\":1}"), true},
        {S("{\"a\":1,\"a\":1}"), false}, {S("{\"a\":{\"b\":1,\"b\":2}}"), false},
        {S("[]"), false},         {S("1"), false},
        {S("\"x\""), false},      {S("null"), false},
        {S(""), false},           {S("{}x"), false},
        {S("{}\0"), false},       {S("{\"a\":\"\xff\"}"), false},
        {S("{\"a\":[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]}"), false},
    };
    struct strbuf h = {0}, text = {0};
    header_of(GOOD_HEADER, &h);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        mint(sb_str(&h), rows[i].payload, &text);
        if (opens(sb_str(&text), JWS_TYP_LICENSE, JWS_LICENSE_MAX) != rows[i].good)
            fail_msg("row %zu", i);
    }
    sb_free(&h);
    sb_free(&text);
}

static void test_key_sets(void **state)
{
    (void)state;
#define KEY(kid_, x_) "{\"kty\":\"OKP\",\"crv\":\"Ed25519\",\"kid\":\"" kid_ "\",\"x\":\"" x_ "\"}"
#define X "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo" /* RFC 8037 A.2 */
    static const struct {
        const char *text;
        size_t n; /* 0: refused */
    } rows[] = {
        {"{\"keys\":[" KEY("a", X) "]}", 1},
        {"{\"keys\":[" KEY("a", X) "," KEY("b", X) "]}", 2},
        {"{\"keys\":[{\"kty\":\"RSA\",\"kid\":\"a\"}," KEY("b", X) "]}", 1},
        {"{\"keys\":[{\"kty\":\"OKP\",\"crv\":\"X25519\",\"kid\":\"a\",\"x\":\"" X "\"}]}", 0},
        {"{\"keys\":[" KEY("a", X) "," KEY("a", X) "]}", 0},
        {"{\"keys\":[" KEY("", X) "]}", 0},
        {"{\"keys\":[" KEY("a", "AAAA") "]}", 0},
        {"{\"keys\":[" KEY("a", X "=") "]}", 0},
        {"{\"keys\":[" KEY("a\\u0000", X) "]}", 0},
        {"{\"keys\":[]}", 0},
        {"{\"keys\":{}}", 0},
        {"{}", 0},
        {"[]", 0},
        {"", 0},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct jws_keys set = {0};
        struct error e = {0};
        enum err err = jws_keys_parse(str_c(rows[i].text), &set, &e);
        if ((err == ERR_OK) != (rows[i].n > 0) || (!err && set.n != rows[i].n))
            fail_msg("row %zu: %s", i, e.text);
    }
}

/* RFC 8037 A: the key and what it signs, from another implementation. */
static void test_rfc_8037(void **state)
{
    (void)state;
    const struct str text = S("eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc");
    const struct str signature = S("hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg");
    struct jws_keys set = {0};
    struct strbuf sig = {0};
    struct error e;
    assert_int_equal(jws_key_parse(S(X), &set, &e), ERR_OK);
    assert_int_equal(set.n, 1);
    assert_int_equal(strlen(set.list[0].kid), SEAL_KID_MAX - 1);
    assert_true(base64url_decode(signature, &sig));
    assert_true(seal_ed25519_verify(set.list[0].public_key, text, (const uint8_t *)sig.p));
    sig.p[0] ^= 1;
    assert_false(seal_ed25519_verify(set.list[0].public_key, text, (const uint8_t *)sig.p));
    sb_free(&sig);
}

static void test_one_key(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        bool good;
    } rows[] = {
        {X, true}, {" " X "\r\n", true}, {"d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a", true},
        {"-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n-----END PUBLIC KEY-----\n", true},
        {"-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHUQ==\n-----END PUBLIC KEY-----", false},
        {"-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VuAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n-----END PUBLIC KEY-----", false}, /* X25519 */
        {"-----BEGIN PUBLIC KEY-----", false}, {"-----BEGIN PUBLIC KEY----------END PUBLIC KEY-----", false}, {"", false}, {"d75a98", false}, {X "A", false},
    };
    char first[SEAL_KID_MAX] = "";
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct jws_keys set = {0};
        struct error e = {0};
        enum err err = jws_key_parse(str_c(rows[i].text), &set, &e);
        if ((err == ERR_OK) != rows[i].good)
            fail_msg("row %zu", i);
        if (!err && !first[0])
            memcpy(first, set.list[0].kid, sizeof first);
        if (!err)
            assert_string_equal(set.list[0].kid, first);
    }
}

static void test_license_keys(void **state)
{
    (void)state;
    struct error e = {0};
    struct keyring *again = NULL;
    struct keyring_license_key list[KEYRING_LICENSE_KEYS_MAX];
    char made[SEAL_KID_MAX], path[128];
    uint8_t sig[64];
    struct stat st;
    assert_int_equal(keyring_open(dir, false, &again, &e), ERR_OK);
    assert_int_equal(keyring_license_keys(again, list), 0); /* read by who asks only */
    assert_false(keyring_license_has(again, str_c(kid)));
    assert_false(keyring_license_sign(again, str_c(kid), S("x"), sig));
    assert_int_equal(keyring_license_open(again, dir, false, made, &e), ERR_OK);
    assert_string_equal(made, "");
    assert_int_equal(keyring_license_open(again, dir, false, NULL, &e), ERR_OK); /* none twice */
    assert_int_equal(keyring_license_keys(again, list), 1);
    assert_int_equal(keyring_license_open(again, dir, true, made, &e), ERR_OK);
    assert_int_equal(keyring_license_keys(again, list), 2);
    assert_true(keyring_license_has(again, str_c(kid)) && keyring_license_has(again, str_c(made)));
    assert_true(keyring_license_sign(again, str_c(made), S("x"), sig));
    for (size_t i = 0; i < 2; i++)
        assert_true(seal_ed25519_verify(list[i].public_key, S("x"), sig) == (strcmp(list[i].kid, made) == 0));
    snprintf(path, sizeof path, "%s/license-%s.key", dir, made);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0600);
    assert_int_equal(chmod(path, 0644), 0);
    struct keyring *third = NULL;
    assert_int_equal(keyring_open(dir, false, &third, &e), ERR_OK);
    assert_int_equal(keyring_license_open(third, dir, false, NULL, &e), ERR_UNAVAILABLE);
    assert_int_equal(unlink(path), 0);
    for (size_t n = keyring_license_keys(again, list); n < KEYRING_LICENSE_KEYS_MAX; n++) {
        assert_int_equal(keyring_license_open(again, dir, true, made, &e), ERR_OK);
    }
    assert_int_equal(keyring_license_open(again, dir, true, made, &e), ERR_CONFLICT);
    keyring_free(again);
    keyring_free(third);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip), cmocka_unit_test(test_every_byte_counts), cmocka_unit_test(test_headers),
        cmocka_unit_test(test_payloads),   cmocka_unit_test(test_key_sets),          cmocka_unit_test(test_rfc_8037),
        cmocka_unit_test(test_one_key),    cmocka_unit_test(test_license_keys),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
