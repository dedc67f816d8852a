/* Secrets, license keys and ids: their forms, their checksums, every spelling that counts and those that do not. */
#include "pullgate/credential.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "pullgate/mem.h"

#include "directory.h"

static char dir[64];
static struct keyring *keys;

static int setup(void **state)
{
    (void)state;
    struct error e;
    snprintf(dir, sizeof dir, "/tmp/pullgate-cred-XXXXXX");
    return mkdtemp(dir) && keyring_open(dir, true, &keys, &e) == ERR_OK ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    keyring_free(keys);
    return directory_remove(dir);
}

static void test_secret_form(void **state)
{
    (void)state;
    char a[CREDENTIAL_TEXT_MAX], b[CREDENTIAL_TEXT_MAX];
    for (int round = 0; round < 200; round++) {
        credential_new("pgc_", a);
        credential_new("pgc_", b);
        assert_int_equal(strlen(a), 4 + 43 + 6);
        assert_string_not_equal(a, b);
        assert_true(credential_well_formed("pgc_", str_c(a)));
        assert_false(credential_well_formed("pga_", str_c(a)));
    }
    /* Any one character changed, any length but the right one. */
    for (size_t i = 0; a[i]; i++) {
        char was = a[i];
        a[i] = was == '0' ? '1' : '0';
        assert_false(credential_well_formed("pgc_", str_c(a)));
        a[i] = '-';
        assert_false(credential_well_formed("pgc_", str_c(a)));
        for (const char *c = ":@[`{/"; *c; c++) { /* what stands beside the letters and digits */
            a[i] = *c;
            assert_false(credential_well_formed("pgc_", str_c(a)));
        }
        a[i] = '\0';
        assert_false(credential_well_formed("pgc_", (struct str){a, 53}));
        a[i] = was;
        assert_false(credential_well_formed("pgc_", (struct str){a, i}));
    }
    a[53] = '0';
    assert_false(credential_well_formed("pgc_", (struct str){a, 54}));
    assert_false(credential_well_formed("pgc_", (struct str){NULL, 0}));
}

static void test_secret_alphabet_even(void **state)
{
    (void)state;
    unsigned count[128] = {0};
    for (int round = 0; round < 2000; round++) {
        char a[CREDENTIAL_TEXT_MAX];
        credential_new("pgc_", a);
        for (size_t i = 4; i < 4 + 43; i++)
            count[(unsigned char)a[i]]++;
    }
    unsigned letters = 0;
    for (size_t c = 0; c < 128; c++)
        if (count[c]) {
            letters++;
            assert_in_range(count[c], 1000, 1800); /* 86000 / 62 = 1387 */
        }
    assert_int_equal(letters, 62);
}

static void test_license_key(void **state)
{
    (void)state;
    char key[CREDENTIAL_TEXT_MAX], out[CREDENTIAL_TEXT_MAX], in[128];
    for (int round = 0; round < 200; round++) {
        license_key_new(key);
        assert_int_equal(strlen(key), 27);
        assert_true(key[6] == '-' && key[13] == '-' && key[20] == '-');
        assert_null(strpbrk(key, "ILOUilou"));
        assert_true(license_key_normalise(str_c(key), out));
        assert_string_equal(out, key);
        /* lower case, blanks, no dashes, O and L for 0 and 1 */
        size_t n = 0;
        in[n++] = ' ';
        for (size_t i = 0; key[i]; i++) {
            if (key[i] == '-')
                continue;
            char c = key[i];
            in[n++] = c == '0' ? 'o' : c == '1' ? (i % 2 ? 'l' : 'I') : c >= 'A' ? (char)(c + 32) : c;
            if (i % 4 == 0)
                in[n++] = i % 8 ? ' ' : '\t';
        }
        assert_true(license_key_normalise((struct str){in, n}, out));
        assert_string_equal(out, key);
    }
    /* One character changed: nearly all are caught by 20 bits; none of these 24 x 31 may be more than a stray hit. */
    unsigned passed = 0;
    for (size_t i = 0; key[i]; i++) {
        if (key[i] == '-')
            continue;
        char was = key[i];
        for (const char *c = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"; *c; c++)
            if (*c != was) {
                key[i] = *c;
                passed += license_key_normalise(str_c(key), out);
            }
        key[i] = was;
    }
    assert_int_equal(passed, 0); /* a CRC catches every change within 5 bits */
    static const char *const bad[] = {"", "-", "000000-000000-000000-00000", "UUUUUU-UUUUUU-UUUUUU-UUUUUU", "pgc_", "------------------------", "000000000000000000000001",
                                      "0000000000000000000000000", "{{{{{{{{{{{{{{{{{{{{{{{{", "````````````````````````", "@@@@@@@@@@@@@@@@@@@@@@@@"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_false(license_key_normalise(str_c(bad[i]), out));
    memcpy(in, "0", 1); /* one character too many, one too few, a NUL among them */
    memcpy(in + 1, key, 27);
    assert_false(license_key_normalise((struct str){in, 28}, out));
    memcpy(in, key, 27);
    in[26] = ' ';
    assert_false(license_key_normalise((struct str){in, 27}, out));
    in[26] = '\0';
    assert_false(license_key_normalise((struct str){in, 27}, out));
    memset(in, ' ', sizeof in);
    memcpy(in + 90, key, 27);
    assert_false(license_key_normalise((struct str){in, sizeof in}, out));
}

static void test_presented(void **state)
{
    (void)state;
    char secret[CREDENTIAL_TEXT_MAX], key[CREDENTIAL_TEXT_MAX], want[CREDENTIAL_HASH_MAX], got[CREDENTIAL_HASH_MAX], lower[CREDENTIAL_TEXT_MAX];
    credential_new("pgc_", secret);
    credential_hash(keys, str_c(secret), want);
    assert_int_equal(strlen(want), 64);
    assert_true(credential_hash_presented(keys, str_c(secret), got));
    assert_string_equal(want, got);
    uint8_t mac[32];
    struct strbuf hex = {0};
    keyring_hmac(keys, KEYRING_PEPPER, str_c(secret), mac);
    sb_add_hex(&hex, mac, 32);
    assert_string_equal(hex.p, want);
    sb_free(&hex);

    license_key_new(key);
    credential_hash(keys, str_c(key), want);
    for (size_t i = 0; i < sizeof lower; i++)
        lower[i] = key[i] >= 'A' && key[i] <= 'Z' ? (char)(key[i] + 32) : key[i];
    assert_true(credential_hash_presented(keys, str_c(lower), got));
    assert_string_equal(want, got);

    credential_new("pga_", secret); /* an admin's token pulls nothing */
    assert_false(credential_hash_presented(keys, str_c(secret), got));
    assert_false(credential_hash_presented(keys, S("hunter2"), got));
    credential_new("pgc_", secret);
    secret[20] = secret[20] == 'x' ? 'y' : 'x'; /* a secret of ours with a slip of the pen is looked up nowhere */
    assert_false(credential_hash_presented(keys, str_c(secret), got));
    /* an imported key counts as it is: every character, and its case */
    credential_hash(keys, S("ACME/2024:4711=="), want);
    assert_true(credential_hash_presented(keys, S("ACME/2024:4711=="), got));
    assert_string_equal(want, got);
    assert_true(credential_hash_presented(keys, S("acme/2024:4711=="), got));
    assert_string_not_equal(want, got);
    char many[129];
    memset(many, 'k', sizeof many);
    assert_true(credential_hash_presented(keys, (struct str){many, 128}, got));
    assert_true(credential_hash_presented(keys, (struct str){many, 8}, got));
    assert_false(credential_hash_presented(keys, (struct str){many, 129}, got));
    assert_false(credential_hash_presented(keys, S("\xc3\xa4" "bcdefgh"), got));
    assert_false(credential_hash_presented(keys, S("tab\tinside"), got));
    assert_false(credential_hash_presented(keys, S(" blanks at an end "), got));
    assert_false(credential_hash_presented(keys, S("a blank at its end "), got));
    assert_true(credential_hash_presented(keys, S("password"), got)); /* only pg?_ is ours */
    assert_true(credential_hash_presented(keys, S("pgc-12345"), got));
    assert_false(credential_hash_presented(keys, S("pgc_12345"), got));
    assert_false(credential_hash_presented(keys, (struct str){NULL, 0}, got));
}

static void test_ids(void **state)
{
    (void)state;
    char last[ID_MAX] = "", id[ID_MAX];
    for (int i = 0; i < 5000; i++) {
        id_new("cus_", id);
        assert_int_equal(strlen(id), 30);
        assert_int_equal(strncmp(id, "cus_", 4), 0);
        assert_int_equal(strspn(id + 4, "0123456789abcdefghjkmnpqrstvwxyz"), 26);
        assert_true(strcmp(last, id) < 0);
        memcpy(last, id, sizeof id);
    }
    for (int i = 0; i < 500; i++) {
        request_id_new(id);
        assert_int_equal(strlen(id), 26);
        assert_int_equal(strspn(id, "0123456789ABCDEFGHJKMNPQRSTVWXYZ"), 26);
        assert_string_not_equal(last, id);
        memcpy(last, id, sizeof id);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_secret_form), cmocka_unit_test(test_secret_alphabet_even), cmocka_unit_test(test_license_key),
        cmocka_unit_test(test_presented),   cmocka_unit_test(test_ids),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
