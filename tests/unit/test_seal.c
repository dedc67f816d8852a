/* Hashes and MACs against published vectors, sealing, the key files and who may read them, signatures, strict base64. */
#include "pullgate/seal.h"

#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "pullgate/clock.h"
#include "pullgate/mem.h"

#include "directory.h"

static char dir[64];

static int setup(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "/tmp/pullgate-seal-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    return directory_remove(dir);
}

static char *keys_path(void)
{
    static char path[128];
    static unsigned n;
    snprintf(path, sizeof path, "%s/k%u", dir, n++);
    return path;
}

static void assert_hex(const uint8_t *bytes, size_t n, const char *hex)
{
    struct strbuf b = {0};
    sb_add_hex(&b, bytes, n);
    assert_string_equal(b.p, hex);
    sb_free(&b);
}

static void test_sha256(void **state)
{
    (void)state;
    static const struct {
        const char *in, *hex;
    } rows[] = {/* FIPS 180-4 examples */
                {"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
                {"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
                {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
                 "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        uint8_t h[32];
        seal_sha256(str_c(rows[i].in), h);
        assert_hex(h, 32, rows[i].hex);
    }
}

static void test_hmac_rfc4231(void **state)
{
    (void)state;
    uint8_t mac[32];
    char key[131], data[50];
    memset(key, 0x0b, 20);
    seal_hmac((struct str){key, 20}, S("Hi There"), mac);
    assert_hex(mac, 32, "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7");
    seal_hmac(S("Jefe"), S("what do ya want for nothing?"), mac);
    assert_hex(mac, 32, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    memset(key, 0xaa, sizeof key);
    memset(data, 0xdd, sizeof data);
    seal_hmac((struct str){key, 20}, (struct str){data, sizeof data}, mac);
    assert_hex(mac, 32, "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe");
    seal_hmac((struct str){key, 131}, S("Test Using Larger Than Block-Size Key - Hash Key First"), mac);
    assert_hex(mac, 32, "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54");
}

static void test_hasher(void **state)
{
    (void)state;
    struct digest d;
    struct hasher *h = hasher_new(DIGEST_SHA512);
    hasher_update(h, "a", 1);
    hasher_update(h, "", 0);
    hasher_update(h, "bc", 2);
    hasher_final(h, &d);
    hasher_free(&h);
    assert_null(h);
    assert_int_equal(d.alg, DIGEST_SHA512);
    assert_hex(d.bytes, 64,
               "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f");
    assert_true(seal_digest_matches(S("abc"), &d));
    assert_false(seal_digest_matches(S("abd"), &d));
    struct digest none = {0};
    assert_false(seal_digest_matches(S(""), &none));
    h = hasher_new(DIGEST_SHA256);
    hasher_final(h, &d);
    hasher_free(&h);
    assert_true(seal_digest_matches(S(""), &d));
    for (size_t i = 32; i < 64; i++)
        assert_int_equal(d.bytes[i], 0);
}

static void test_keyring_files(void **state)
{
    (void)state;
    struct keyring *k = NULL, *again = NULL;
    struct error e = {0};
    char *path = mem_strdup(keys_path()), file[200];

    assert_int_equal(keyring_open(path, false, &k, &e), ERR_UNAVAILABLE);
    assert_non_null(strstr(e.text, path));
    assert_null(k);
    assert_int_equal(keyring_open(path, true, &k, &e), ERR_OK);
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0700);
    static const char *const names[] = {"mac.key", "pepper.key", "seal.key", "audit.key"};
    char kid_file[64];
    snprintf(kid_file, sizeof kid_file, "token-%s.key", keyring_token_kid(k));
    for (size_t i = 0; i < 5; i++) {
        snprintf(file, sizeof file, "%s/%s", path, i < 4 ? names[i] : kid_file);
        assert_int_equal(stat(file, &st), 0);
        assert_int_equal(st.st_mode & 07777, 0600);
        assert_int_equal(st.st_size, 65);
    }

    /* What is there is kept: same MACs from a second opening, different ones under another key. */
    assert_int_equal(keyring_open(path, true, &again, &e), ERR_OK);
    uint8_t a[32], b[32];
    keyring_hmac(k, KEYRING_MAC, S("x"), a);
    keyring_hmac(again, KEYRING_MAC, S("x"), b);
    assert_memory_equal(a, b, 32);
    keyring_hmac(again, KEYRING_PEPPER, S("x"), b);
    assert_memory_not_equal(a, b, 32);
    assert_string_equal(keyring_token_kid(k), keyring_token_kid(again));
    keyring_free(again);
    keyring_free(k);

    /* Each kind of damage is refused, with and without create, and names the file. */
    snprintf(file, sizeof file, "%s/mac.key", path);
    static const mode_t bad_modes[] = {0640, 0604, 0660, 0622, 0601};
    for (size_t i = 0; i < sizeof bad_modes / sizeof *bad_modes; i++) {
        assert_int_equal(chmod(file, bad_modes[i]), 0);
        k = NULL;
        assert_int_equal(keyring_open(path, i % 2, &k, &e), ERR_UNAVAILABLE);
        assert_null(k);
        assert_non_null(strstr(e.text, "mac.key"));
        assert_non_null(strstr(e.text, "chmod 600"));
    }
    assert_int_equal(chmod(file, 0600), 0);
    static const char *const bad_text[] = {"", "00", "zz", "0011223344556677889900112233445566778899001122334455667788990011\n\n",
                                           "001122334455667788990011223344556677889900112233445566778899001g"};
    for (size_t i = 0; i < sizeof bad_text / sizeof *bad_text; i++) {
        FILE *f = fopen(file, "w");
        fputs(bad_text[i], f);
        fclose(f);
        assert_int_equal(keyring_open(path, true, &k, &e), ERR_UNAVAILABLE);
        assert_non_null(strstr(e.text, "hex digits"));
    }
    unlink(file);
    assert_int_equal(keyring_open(path, false, &k, &e), ERR_UNAVAILABLE);
    assert_int_equal(mkdir(file, 0700), 0);
    assert_int_equal(keyring_open(path, true, &k, &e), ERR_UNAVAILABLE);
    rmdir(file);
    assert_int_equal(chmod(path, 0770), 0);
    assert_int_equal(keyring_open(path, true, &k, &e), ERR_UNAVAILABLE);
    assert_int_equal(chmod(path, 0700), 0);
    assert_int_equal(keyring_open(path, true, &k, &e), ERR_OK);
    keyring_free(k);

    /* A token key under a name that is not its own. */
    char other[200];
    snprintf(file, sizeof file, "%s/%s", path, kid_file);
    snprintf(other, sizeof other, "%s/token-0123456789abcdef.key", path);
    assert_int_equal(rename(file, other), 0);
    assert_int_equal(keyring_open(path, true, &k, &e), ERR_UNAVAILABLE);
    unlink(other);
    mem_free(path);
}

static void test_token_keys_rotate(void **state)
{
    (void)state;
    struct keyring *k = NULL;
    struct error e;
    char *path = mem_strdup(keys_path()), file[200], kid[6][32], aside[200];
    uint8_t sig[64];

    /* Six keys made one after another, each older than the next. */
    for (int i = 0; i < 6; i++) {
        assert_int_equal(keyring_open(path, true, &k, &e), ERR_OK);
        snprintf(kid[i], sizeof kid[i], "%s", keyring_token_kid(k));
        if (i == 5)
            keyring_token_sign(k, S("data"), sig);
        keyring_free(k);
        snprintf(file, sizeof file, "%s/token-%s.key", path, kid[i]);
        snprintf(aside, sizeof aside, "%s/aside%d", path, i);
        struct timespec t[2] = {{.tv_sec = 1000 + i}, {.tv_sec = 1000 + i}};
        assert_int_equal(utimensat(AT_FDCWD, file, t, 0), 0);
        assert_int_equal(rename(file, aside), 0);
    }
    for (int i = 0; i < 6; i++) {
        snprintf(file, sizeof file, "%s/token-%s.key", path, kid[i]);
        snprintf(aside, sizeof aside, "%s/aside%d", path, i);
        assert_int_equal(rename(aside, file), 0);
    }
    assert_int_equal(keyring_open(path, false, &k, &e), ERR_OK);
    assert_string_equal(keyring_token_kid(k), kid[5]);
    assert_true(keyring_token_verify(k, str_c(kid[5]), S("data"), sig));
    assert_false(keyring_token_verify(k, str_c(kid[4]), S("data"), sig));
    assert_false(keyring_token_verify(k, str_c(kid[0]), S("data"), sig));
    assert_false(keyring_token_verify(k, S(""), S("data"), sig));
    assert_false(keyring_token_verify(k, str_c(kid[5]), S("datb"), sig));
    for (size_t i = 0; i < 64; i++) {
        sig[i] ^= 1;
        assert_false(keyring_token_verify(k, str_c(kid[5]), S("data"), sig));
        sig[i] ^= 1;
    }
    keyring_free(k);
    mem_free(path);
}

static void test_seal(void **state)
{
    (void)state;
    struct keyring *k = NULL, *other = NULL;
    struct error e;
    assert_int_equal(keyring_open(keys_path(), true, &k, &e), ERR_OK);
    assert_int_equal(keyring_open(keys_path(), true, &other, &e), ERR_OK);
    struct strbuf a = {0}, b = {0};
    assert_int_equal(keyring_seal(k, S("ups_1|password"), S(""), &a, &e), ERR_INVALID);
    assert_int_equal(a.n, 0);
    assert_int_equal(keyring_seal(k, S("ups_1|password"), S("hunter2"), &a, &e), ERR_OK);
    assert_int_equal(keyring_seal(k, S("ups_1|password"), S("hunter2"), &b, &e), ERR_OK);
    assert_string_not_equal(a.p, b.p); /* a fresh nonce each time */
    assert_null(strstr(a.p, "hunter2"));

    char *plain = NULL;
    size_t n = 0;
    assert_int_equal(keyring_unseal(k, S("ups_1|password"), sb_str(&a), &plain, &n), ERR_OK);
    assert_int_equal(n, 7);
    assert_string_equal(plain, "hunter2");
    mem_free_secret(plain, n);
    plain = NULL;
    assert_int_not_equal(keyring_unseal(k, S("ups_2|password"), sb_str(&a), &plain, &n), ERR_OK);
    assert_int_not_equal(keyring_unseal(k, S(""), sb_str(&a), &plain, &n), ERR_OK);
    assert_int_not_equal(keyring_unseal(other, S("ups_1|password"), sb_str(&a), &plain, &n), ERR_OK);
    /* No altered, shortened or lengthened text opens. */
    for (size_t i = 0; i < a.n; i++) {
        char was = a.p[i];
        a.p[i] = was == 'A' ? 'B' : 'A';
        assert_int_not_equal(keyring_unseal(k, S("ups_1|password"), sb_str(&a), &plain, &n), ERR_OK);
        a.p[i] = was;
        assert_int_not_equal(keyring_unseal(k, S("ups_1|password"), (struct str){a.p, i}, &plain, &n), ERR_OK);
    }
    sb_addc(&a, "AAAA");
    assert_int_not_equal(keyring_unseal(k, S("ups_1|password"), sb_str(&a), &plain, &n), ERR_OK);
    assert_null(plain);
    sb_free(&a);
    sb_free(&b);
    keyring_free(k);
    keyring_free(other);
}

static void test_base64(void **state)
{
    (void)state;
    static const struct {
        const char *in, *std, *url;
    } rows[] = {{"", "", ""},           {"f", "Zg==", "Zg"},         {"fo", "Zm8=", "Zm8"},         {"foo", "Zm9v", "Zm9v"},
                {"foob", "Zm9vYg==", "Zm9vYg"}, {"fooba", "Zm9vYmE=", "Zm9vYmE"}, {"foobar", "Zm9vYmFy", "Zm9vYmFy"}};
    struct strbuf b = {0};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        sb_reset(&b);
        base64_encode(str_c(rows[i].in), &b);
        assert_true(str_eq_c(sb_str(&b), rows[i].std));
        sb_reset(&b);
        base64url_encode(str_c(rows[i].in), &b);
        assert_true(str_eq_c(sb_str(&b), rows[i].url));
        sb_reset(&b);
        assert_true(base64_decode(str_c(rows[i].std), &b));
        assert_true(str_eq_c(sb_str(&b), rows[i].in));
        sb_reset(&b);
        assert_true(base64url_decode(str_c(rows[i].url), &b));
        assert_true(str_eq_c(sb_str(&b), rows[i].in));
    }
    sb_reset(&b);
    base64_encode(S("\xfb\xff\xbf"), &b);
    base64url_encode(S("\xfb\xff\xbf"), &b);
    assert_string_equal(b.p, "+/+/-_-_");

    static const char *const bad_std[] = {"Zg", "Zg=", "Zg===", "Zh==", "Zm9=", "Z", "=", "====", "Zg==Zg==", "Zm9v\n", " Zm9", "Zm-v", "Zm9v=", "Z===", "Zm=v"};
    static const char *const bad_url[] = {"Zg==", "Zh", "Zm9", "Z", "Zm9v\n", "Zm+v", "Zm/v", "Zg=", "Zm9vY", " "};
    sb_reset(&b);
    sb_addc(&b, "kept");
    for (size_t i = 0; i < sizeof bad_std / sizeof *bad_std; i++)
        if (base64_decode(str_c(bad_std[i]), &b))
            fail_msg("accepted %s", bad_std[i]);
    for (size_t i = 0; i < sizeof bad_url / sizeof *bad_url; i++)
        if (base64url_decode(str_c(bad_url[i]), &b))
            fail_msg("accepted %s", bad_url[i]);
    assert_false(base64_decode((struct str){"Zm\0v", 4}, &b));
    assert_string_equal(b.p, "kept");
    sb_free(&b);
}

static void *hmac_thread(void *arg)
{
    const struct keyring *k = arg;
    uint8_t first[32], mac[32];
    keyring_hmac(k, KEYRING_MAC, S("the same in every thread"), first);
    for (int i = 0; i < 20000; i++) {
        keyring_hmac(k, KEYRING_MAC, S("the same in every thread"), mac);
        if (memcmp(mac, first, 32) != 0)
            return NULL;
    }
    return arg;
}

static void test_hmac_threads_and_cost(void **state)
{
    (void)state;
    struct keyring *k = NULL;
    struct error e;
    assert_int_equal(keyring_open(keys_path(), true, &k, &e), ERR_OK);
    pthread_t t[3];
    for (int i = 0; i < 3; i++)
        assert_int_equal(pthread_create(&t[i], NULL, hmac_thread, k), 0);
    for (int i = 0; i < 3; i++) {
        void *ret = NULL;
        pthread_join(t[i], &ret);
        assert_ptr_equal(ret, k);
    }
    uint64_t t0 = clock_mono_us();
    assert_non_null(hmac_thread(k));
    print_message("keyring_hmac: %.3f us\n", (double)(clock_mono_us() - t0) / 20000.0);
    keyring_free(k);
}

static void test_random(void **state)
{
    (void)state;
    uint8_t a[1000], b[1000];
    seal_random(a, sizeof a);
    seal_random(b, sizeof b);
    assert_memory_not_equal(a, b, sizeof a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sha256),        cmocka_unit_test(test_hmac_rfc4231),      cmocka_unit_test(test_hasher),
        cmocka_unit_test(test_keyring_files), cmocka_unit_test(test_token_keys_rotate), cmocka_unit_test(test_seal),
        cmocka_unit_test(test_base64),        cmocka_unit_test(test_hmac_threads_and_cost), cmocka_unit_test(test_random),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
