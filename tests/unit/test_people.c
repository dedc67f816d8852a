/* What people sign in with and what they may: passwords and which are let through, one-time passwords against RFC 6238's vectors, roles
 * and scopes over a table of routes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "pullgate/password.h"
#include "pullgate/seal.h"
#include "pullgate/totp.h"
#include "roles.h"

/* ---- passwords ----------------------------------------------------------------------------------------------------------- */

static void test_password_fits_its_hash_and_no_other(void **state)
{
    char a[PASSWORD_HASH_MAX], b[PASSWORD_HASH_MAX];
    struct error e = {0};
    bool fits = false;
    (void)state;
    assert_int_equal(password_hash(S("correct battery horse"), a, &e), ERR_OK);
    assert_int_equal(password_hash(S("correct battery horse"), b, &e), ERR_OK);
    assert_string_not_equal(a, b); /* each has its salt */
    assert_non_null(strstr(a, "$argon2id$v=19$m=19456,t=2,p=1$"));
    assert_int_equal(password_check(a, S("correct battery horse"), &fits, &e), ERR_OK);
    assert_true(fits);
    assert_int_equal(password_check(b, S("correct battery horse"), &fits, &e), ERR_OK);
    assert_true(fits);
    assert_int_equal(password_check(a, S("correct battery horsf"), &fits, &e), ERR_OK);
    assert_false(fits);
    assert_int_equal(password_check(a, S(""), &fits, &e), ERR_OK);
    assert_false(fits);
}

static void test_password_of_nobody_fits_nothing(void **state)
{
    struct error e = {0};
    bool fits = true;
    (void)state;
    assert_int_equal(password_check(NULL, S("correct battery horse"), &fits, &e), ERR_OK);
    assert_false(fits);
    fits = true;
    assert_int_equal(password_check("", S(""), &fits, &e), ERR_OK);
    assert_false(fits);
    assert_int_equal(password_check("$argon2id$nonsense", S("x"), &fits, &e), ERR_UNAVAILABLE);
}

static void test_password_policy(void **state)
{
    static const struct {
        const char *password, *email;
        bool good;
    } rows[] = {
        {"elevenchars", "", false},
        {"twelve chars", "", true},
        {"\xc3\xa4\xc3\xa4\xc3\xb6\xc3\xbc\xc3\x9f\xc3\xa4\xc3\xb6\xc3\xbc\xc3\x9f\xc3\xa4\xc3\xb6", "", false}, /* eleven, of 22 bytes */
        {"aaaaaaaaaaaa", "", false},
        {"121212121212", "", false},
        {"Password1234", "", false},
        {"password2024!", "", false},
        {"passwordpassword", "", false},
        {"password of mine is long", "", true},
        {"1q2w3e4r5t6y", "", false},
        {"correcthorsebatterystaple", "", false},
        {"somebody@globex.example", "somebody@globex.example", false},
        {"SOMEBODY@globex.example1", "somebody@globex.example", false},
        {"verylongname", "verylongname@x.example", false},
        {"not the address", "somebody@globex.example", true},
        {"no rules of composition", "", true},
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct error e = {0};
        enum err err = password_policy(str_c(rows[i].password), str_c(rows[i].email), &e);
        if ((err == ERR_OK) != rows[i].good)
            fail_msg("%s: %s", rows[i].password, e.text);
    }
    char text[PASSWORD_MAX + 2];
    for (size_t i = 0; i <= PASSWORD_MAX; i++)
        text[i] = (char)('a' + i % 23);
    assert_int_equal(password_policy((struct str){text, PASSWORD_MAX}, S(""), NULL), ERR_OK);
    assert_int_equal(password_policy((struct str){text, PASSWORD_MAX + 1}, S(""), NULL), ERR_INVALID);
}

/* ---- one-time passwords ------------------------------------------------------------------------------------------------------ */

static void test_totp_vectors(void **state)
{
    static const struct {
        int64_t at;
        const char *code; /* the last six of RFC 6238 appendix B's eight */
    } rows[] = {{59, "287082"}, {1111111109, "081804"}, {1111111111, "050471"}, {1234567890, "005924"}, {2000000000, "279037"}, {20000000000, "353130"}};
    char code[TOTP_DIGITS + 1];
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        totp_code(S("12345678901234567890"), rows[i].at / TOTP_PERIOD_S, code);
        assert_string_equal(code, rows[i].code);
    }
}

static void test_totp_window_and_replay(void **state)
{
    struct str key = S("12345678901234567890");
    int64_t now = 1234567890, step = now / TOTP_PERIOD_S, got = 0;
    char code[TOTP_DIGITS + 1];
    (void)state;
    for (int64_t off = -3; off <= 3; off++) {
        totp_code(key, step + off, code);
        bool good = totp_check(key, str_c(code), now, 0, &got);
        assert_int_equal(good, off >= -1 && off <= 1);
        if (good)
            assert_int_equal(got, step + off);
        assert_false(totp_check(key, str_c(code), now, step + 1, &got)); /* used, or older than one that was */
    }
    totp_code(key, step, code);
    assert_false(totp_check(key, str_c(code), now, step, &got));
    assert_true(totp_check(key, str_c(code), now, step - 1, &got));
    assert_false(totp_check(key, str_sub(str_c(code), 0, 5), now, 0, &got));
    assert_false(totp_check(key, S(""), now, 0, &got));
}

static void test_base32_and_uri(void **state)
{
    static const char *const rows[][2] = {{"", ""}, {"f", "MY"}, {"fo", "MZXQ"}, {"foo", "MZXW6"}, {"foob", "MZXW6YQ"}, {"fooba", "MZXW6YTB"}, {"foobar", "MZXW6YTBOI"}};
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct strbuf b = {0};
        base32_encode(str_c(rows[i][0]), &b);
        assert_true(str_eq_c(sb_str(&b), rows[i][1]));
        sb_free(&b);
    }
    struct strbuf b = {0};
    totp_uri(S("12345678901234567890"), S("Acme & Co"), S("a@b.example"), &b);
    assert_string_equal(b.p, "otpauth://totp/Acme%20%26%20Co:a%40b.example?secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ&issuer=Acme%20%26%20Co&algorithm=SHA1&digits=6&period=30");
    sb_free(&b);
}

/* ---- roles and scopes ------------------------------------------------------------------------------------------------------------ */

static const enum role ALL[] = {ROLE_NONE, ROLE_VIEWER, ROLE_SUPPORT, ROLE_LICENSES, ROLE_ADMIN, ROLE_OWNER, ROLE_OPERATOR, ROLE_CUSTOMER, ROLE_CUSTOMER_ADMIN};

static void test_roles(void **state)
{
    (void)state;
    for (size_t have = 0; have < 9; have++)
        for (size_t want = 0; want < 9; want++) {
            bool is_same_kind = (have >= 7) == (want >= 7);
            assert_int_equal(role_allows(ALL[have], ALL[want]), want == 0 || (have > 0 && is_same_kind && have >= want));
        }
    for (size_t i = 1; i < 9; i++)
        assert_int_equal(role_parse(str_c(role_text(ALL[i]))), ALL[i]);
    assert_string_equal(role_text(ROLE_NONE), "");
    assert_int_equal(role_parse(S("")), ROLE_NONE);
    assert_int_equal(role_parse(S("root")), ROLE_NONE);
    assert_int_equal(role_parse(S("owne")), ROLE_NONE);
}

static const struct route ROUTES[] = {
    {.method = HEAD_GET, .path = "/licenses", .role = ROLE_VIEWER, .action = "license.list"},
    {.method = HEAD_POST, .path = "/licenses", .role = ROLE_LICENSES, .action = "license.create"},
    {.method = HEAD_POST, .path = "/repositories", .role = ROLE_ADMIN, .action = "repository.create"},
    {.method = HEAD_GET, .path = "/audit", .role = ROLE_SUPPORT, .action = "audit.list"},
    {.method = HEAD_GET, .path = "/explain", .role = ROLE_SUPPORT, .action = "explain"},
    {.method = HEAD_GET, .path = "/me", .role = ROLE_VIEWER, .action = "self.get"},
    {.method = HEAD_GET, .path = "/portal", .role = ROLE_CUSTOMER, .action = "portal.license.list"},
    {.method = HEAD_GET, .path = "/keys", .role = ROLE_VIEWER, .action = "signing_key.list"},
    {.method = HEAD_GET, .path = "/openapi", .role = ROLE_NONE, .action = "openapi.get"},
    {.path = NULL},
};
static const struct route *const TABLES[] = {ROUTES, NULL};

static void test_scopes(void **state)
{
    static const char *const want[] = {"licenses:read", "licenses:write", "repositories:write", "audit:read", "explain", NULL, NULL, "signing_keys:read", NULL};
    char scope[SCOPE_MAX];
    (void)state;
    for (size_t i = 0; i < 9; i++) {
        assert_int_equal(scope_of_route(&ROUTES[i], scope), want[i] != NULL);
        if (want[i])
            assert_string_equal(scope, want[i]);
        assert_true(scopes_allow(S(""), &ROUTES[i]));
    }
    struct str have = S("licenses:write audit:read");
    static const bool allowed[] = {true, true, false, true, false, true, false, false, true};
    for (size_t i = 0; i < 9; i++)
        assert_int_equal(scopes_allow(have, &ROUTES[i]), allowed[i]);
    assert_true(scope_exists(S("licenses:read"), TABLES));
    assert_true(scope_exists(S("repositories:write"), TABLES));
    assert_true(scope_exists(S("explain"), TABLES));
    assert_false(scope_exists(S("repositories:read"), TABLES));
    assert_false(scope_exists(S("licenses"), TABLES));
    assert_false(scope_exists(S("licenses:"), TABLES));
    assert_false(scope_exists(S("licenses:delete"), TABLES));
    assert_false(scope_exists(S(""), TABLES));
    assert_true(scopes_within(S("licenses:read"), S("licenses:write")));
    assert_true(scopes_within(S("licenses:read explain"), S("")));
    assert_false(scopes_within(S("licenses:write"), S("licenses:read")));
    assert_false(scopes_within(S("licenses:read explain"), S("licenses:read")));
    assert_false(scopes_within(S(""), S("licenses:read")));
    assert_true(scopes_within(S(""), S("")));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_password_fits_its_hash_and_no_other),
        cmocka_unit_test(test_password_of_nobody_fits_nothing),
        cmocka_unit_test(test_password_policy),
        cmocka_unit_test(test_totp_vectors),
        cmocka_unit_test(test_totp_window_and_replay),
        cmocka_unit_test(test_base32_and_uri),
        cmocka_unit_test(test_roles),
        cmocka_unit_test(test_scopes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
