/* What is sealed under seal.key, and what is wrapped for Redis under mac.key: only what this harness sealed or wrapped, for just that
 * place, opens. The input is taken as it stands, or written over a good value from an offset on. */
#include "fuzz.h"

#include "pullgate/credential.h"
#include "pullgate/projection.h"

static struct keyring *keys;
static struct strbuf sealed, wrapped, chunk;
static const uint8_t CHUNK_KEY[32] = {7};
static const char *const PLAIN = "s3cr3t of the upstream";

static void setup(void)
{
    struct error e = {0};
    keys = fuzz_keys();
    fuzz_quiet();
    FUZZ_CHECK(keyring_seal(keys, S("ups_1|password"), str_c(PLAIN), &sealed, &e) == ERR_OK, e.text);
    seal_chunk(CHUNK_KEY, 3, false, S("head"), S("a piece of a backup"), &chunk);
    projection_wrap(keys, S("pg:v:c:cus_1"), 7, S("{\"customer_id\":\"cus_1\"}"), &wrapped);
}

static void edit(const struct strbuf *good, struct fuzz_in in, struct strbuf *ret)
{
    uint8_t how = fuzz_byte(&in);
    size_t at = (size_t)(fuzz_byte(&in) | fuzz_byte(&in) << 8) % (good->n + 1);

    sb_reset(ret);
    if (how % 4 == 0) { /* as it stands */
        sb_add(ret, fuzz_rest(&in));
    } else if (how % 4 == 1) { /* over it */
        sb_add(ret, sb_str(good));
        for (size_t i = 0; i < in.n && at + i < ret->n; i++)
            ret->p[at + i] = (char)in.p[i];
    } else if (how % 4 == 2) { /* into it */
        sb_add(ret, str_sub(sb_str(good), 0, at));
        sb_add(ret, fuzz_rest(&in));
        sb_add(ret, str_skip(sb_str(good), at));
    } else { /* cut, and something else after */
        sb_add(ret, str_sub(sb_str(good), 0, at));
        sb_add(ret, fuzz_rest(&in));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_in in = {data, size};
    struct strbuf t = {0};
    char *plain = NULL;
    size_t n = 0;
    uint64_t epoch;
    struct str payload;

    if (!keys)
        setup();
    uint8_t mode = fuzz_byte(&in) % 6;
    if (mode == 0) {
        edit(&sealed, in, &t);
        char *copy = fuzz_exact(sb_str(&t));
        if (keyring_unseal(keys, S("ups_1|password"), (struct str){copy, t.n}, &plain, &n) == ERR_OK) {
            FUZZ_CHECK(str_eq(sb_str(&t), sb_str(&sealed)), "something opened that was never sealed");
            FUZZ_CHECK(str_eq_c((struct str){plain, n}, PLAIN), "opened to something else");
            mem_free_secret(plain, n);
        }
        mem_free(copy);
    } else if (mode == 1) { /* the right value in another place */
        struct str aad = fuzz_rest(&in);
        if (keyring_unseal(keys, aad, sb_str(&sealed), &plain, &n) == ERR_OK) {
            FUZZ_CHECK(str_eq_c(aad, "ups_1|password"), "opened in another place");
            mem_free_secret(plain, n);
        }
    } else if (mode == 2) {
        edit(&wrapped, in, &t);
        if (projection_unwrap(keys, S("pg:v:c:cus_1"), sb_str(&t), &epoch, &payload) == ERR_OK)
            FUZZ_CHECK(str_eq(sb_str(&t), sb_str(&wrapped)) && epoch == 7, "a value was believed that was never written");
    } else if (mode == 4) {
        edit(&chunk, in, &t);
        struct strbuf out = {0};
        if (unseal_chunk(CHUNK_KEY, 3, false, S("head"), sb_str(&t), &out))
            FUZZ_CHECK(str_eq(sb_str(&t), sb_str(&chunk)), "a chunk opened that was never sealed");
        else
            FUZZ_CHECK(out.n == 0, "a refused chunk leaves bytes");
        sb_free(&out);
    } else if (mode == 5) { /* the right chunk in another place */
        struct strbuf out = {0};
        uint64_t number = fuzz_byte(&in);
        bool is_last = fuzz_byte(&in) & 1;
        struct str head = fuzz_rest(&in);
        if (unseal_chunk(CHUNK_KEY, number, is_last, head, sb_str(&chunk), &out))
            FUZZ_CHECK(number == 3 && !is_last && str_eq_c(head, "head"), "a chunk opened in another place");
        sb_free(&out);
    } else { /* what is sealed opens, whatever it is */
        struct str aad = fuzz_until(&in, 0), secret = fuzz_rest(&in);
        if (keyring_seal(keys, aad, secret, &t, NULL) == ERR_OK) {
            FUZZ_CHECK(keyring_unseal(keys, aad, sb_str(&t), &plain, &n) == ERR_OK && n == secret.n && memcmp(plain, secret.p, n) == 0,
                       "sealed, and does not open");
            mem_free_secret(plain, n);
        } else {
            FUZZ_CHECK(secret.n == 0, "not sealed");
        }
    }
    sb_free(&t);
    return 0;
}
