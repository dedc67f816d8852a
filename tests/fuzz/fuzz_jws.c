/* Signed documents: with a fixed key, what is opened is what this harness signed, or says what a plain reading of its parts says. The
 * input is a text, an edit of a good one, header and payload that are then signed with the right key, a key set, or one key. */
#include "fuzz.h"

#include <stdlib.h>

#include "pullgate/jv.h"
#include "pullgate/jws.h"

#define MAX 20000
static struct keyring *keys;
static struct jws_keys trusted;
static char kid[SEAL_KID_MAX];
static struct strbuf good;

static void setup(void)
{
    char dir[] = "/tmp/pullgate-fuzz-XXXXXX", path[128];
    struct keyring_license_key list[KEYRING_LICENSE_KEYS_MAX];
    struct error e = {0};
    keys = fuzz_keys();
    fuzz_quiet();
    FUZZ_CHECK(mkdtemp(dir) != NULL, "temporary directory");
    fuzz_key_file(dir, "license-65b60673d6ed884b.key", "0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20");
    FUZZ_CHECK(keyring_license_open(keys, dir, false, NULL, &e) == ERR_OK && keyring_license_keys(keys, list) == 1, e.text);
    snprintf(path, sizeof path, "%s/license-65b60673d6ed884b.key", dir);
    remove(path);
    remove(dir);
    memcpy(kid, list[0].kid, sizeof kid);
    trusted.n = 1;
    memcpy(trusted.list[0].kid, kid, sizeof kid);
    memcpy(trusted.list[0].public_key, list[0].public_key, 32);
    struct jv *c = jv_object();
    jv_set_c(c, "sub", "lic_1");
    FUZZ_CHECK(jws_build(keys, JWS_TYP_LICENSE, str_c(kid), c, &good), "cannot sign");
    jv_free(c);
}

static enum err open_copy(struct str text, struct jv **ret)
{
    char got[JWS_KID_MAX], *copy = fuzz_exact(text);
    struct error e = {0};
    enum err err = jws_open((struct str){copy, text.n}, JWS_TYP_LICENSE, MAX, &trusted, ret, got, &e);
    FUZZ_CHECK(err == ERR_OK || e.text[0] != '\0', "refused without a word");
    FUZZ_CHECK(err != ERR_OK || strcmp(got, kid) == 0, "opened with another key");
    mem_free(copy);
    return err;
}

/* Header and payload of the input, signed by us: opened only where both are what the rules say. */
static void check_signed(struct fuzz_in in)
{
    struct str header = fuzz_until(&in, '\n'), payload = fuzz_rest(&in);
    struct strbuf t = {0};
    struct jv *c = NULL, *h = NULL, *p = NULL;
    uint8_t sig[64];
    static const struct jv_limits limits = {MAX, MAX, 16};

    base64url_encode(header, &t);
    sb_add_char(&t, '.');
    base64url_encode(payload, &t);
    FUZZ_CHECK(keyring_license_sign(keys, str_c(kid), sb_str(&t), sig), "cannot sign");
    sb_add_char(&t, '.');
    base64url_encode((struct str){(const char *)sig, sizeof sig}, &t);
    if (open_copy(sb_str(&t), &c) == ERR_OK) {
        FUZZ_CHECK(t.n <= MAX, "opened beyond its bound");
        FUZZ_CHECK(jv_parse(header, &limits, &h, NULL) == ERR_OK && jv_len(h) == 3 && str_eq_c(jv_get_str(h, "alg"), "EdDSA") &&
                       str_eq_c(jv_get_str(h, "typ"), JWS_TYP_LICENSE) && str_eq_c(jv_get_str(h, "kid"), kid),
                   "opened with a header that is none");
        FUZZ_CHECK(jv_parse(payload, &limits, &p, NULL) == ERR_OK && jv_type(p) == JV_OBJECT && jv_equal(p, c), "says something else than was signed");
    }
    jv_free(c);
    jv_free(h);
    jv_free(p);
    sb_free(&t);
}

static void check_edit(struct fuzz_in in)
{
    size_t at = (size_t)(fuzz_byte(&in) | fuzz_byte(&in) << 8) % good.n;
    uint8_t how = fuzz_byte(&in);
    struct strbuf t = {0};
    struct jv *c = NULL;

    if (how % 3 == 0) {
        sb_add(&t, fuzz_rest(&in));
    } else if (how % 3 == 1) {
        sb_add(&t, sb_str(&good));
        for (size_t i = 0; i < in.n && at + i < t.n; i++)
            t.p[at + i] = (char)in.p[i];
    } else {
        sb_add(&t, str_sub(sb_str(&good), 0, at));
        sb_add(&t, fuzz_rest(&in));
        sb_add(&t, str_skip(sb_str(&good), at));
    }
    if (open_copy(sb_str(&t), &c) == ERR_OK)
        FUZZ_CHECK(str_eq(sb_str(&t), sb_str(&good)), "a text was opened that was never signed");
    jv_free(c);
    sb_free(&t);
}

static void check_set(struct str text)
{
    struct jws_keys set = {0};
    struct error e = {0};
    struct jv *doc = jv_object(), *list = jv_array();
    struct strbuf b = {0};

    if (jws_keys_parse(text, &set, &e) == ERR_OK) { /* prints back */
        FUZZ_CHECK(set.n > 0 && set.n <= JWS_KEYS_MAX, "a set of none, or of too many");
        for (size_t i = 0; i < set.n; i++)
            jv_push(list, jws_key_print(set.list[i].kid, set.list[i].public_key));
        jv_set(doc, "keys", list);
        jv_dump(doc, &b);
        struct jws_keys again = {0};
        FUZZ_CHECK(jws_keys_parse(sb_str(&b), &again, &e) == ERR_OK && again.n == set.n, "a set does not print back");
        for (size_t i = 0; i < set.n; i++)
            FUZZ_CHECK(strcmp(set.list[i].kid, again.list[i].kid) == 0 && memcmp(set.list[i].public_key, again.list[i].public_key, 32) == 0, "another key");
    } else {
        jv_free(list);
    }
    jv_free(doc);
    sb_free(&b);
    if (jws_key_parse(text, &set, &e) == ERR_OK)
        FUZZ_CHECK(set.n == 1 && strlen(set.list[0].kid) == SEAL_KID_MAX - 1, "one key without its kid");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_in in = {data, size};

    if (!keys)
        setup();
    switch (fuzz_byte(&in) % 3) {
    case 0:
        check_signed(in);
        break;
    case 1:
        check_edit(in);
        break;
    default:
        check_set(fuzz_rest(&in));
        break;
    }
    return 0;
}
