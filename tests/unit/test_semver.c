/* Versions, ranges and patterns: one row per rule of semver.org, of npm's and of Helm's range syntax. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "pullgate/semver.h"

static void parse_accepts_complete_versions_only(void **state)
{
    static const struct {
        const char *in;
        bool ok;
    } rows[] = {
        {"1.2.3", true},
        {"v1.2.3", true},
        {"0.0.0", true},
        {"1.2.3-rc.1", true},
        {"1.2.3-0a.b-c.0", true},
        {"1.2.3+build.007", true},
        {"1.2.3-rc.1+b", true},
        {"18446744073709551615.0.0", true},
        {"18446744073709551616.0.0", false},
        {"", false},
        {"v", false},
        {"vv1.2.3", false},
        {"V1.2.3", false},
        {"1", false},
        {"1.2", false},
        {"1.2.", false},
        {"1.2.x", false},
        {"1.2.3.4", false},
        {"1-2.3", false},
        {"1.2-3", false},
        {"99999999999999999999.0.0", false},
        {"1.2.3-A.Z.a.z.0.9.-", true},
        {"1.2.3-[", false},
        {"1.2.3-{", false},
        {"1.2.3-@", false},
        {"1.2.3-`", false},
        {"1.2.3-:", false},
        {"01.2.3", false},
        {"1.02.3", false},
        {"1.2.03", false},
        {"1.2.3-", false},
        {"1.2.3-01", false},
        {"1.2.3-a..b", false},
        {"1.2.3-a.", false},
        {"1.2.3+", false},
        {"1.2.3+a..b", false},
        {"1.2.3_b", false},
        {" 1.2.3", false},
        {"1.2.3 ", false},
        {"-1.2.3", false},
        {"1.-2.3", false},
        {"latest", false},
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct semver v;
        if (semver_parse(str_c(rows[i].in), &v) != rows[i].ok)
            fail_msg("%s", rows[i].in);
    }
    struct semver v;
    assert_true(semver_parse(S("v10.20.30-a.1+x.y"), &v));
    assert_int_equal(v.major, 10);
    assert_int_equal(v.minor, 20);
    assert_int_equal(v.patch, 30);
    assert_true(str_eq_c(v.pre, "a.1"));
    assert_true(str_eq_c(v.build, "x.y"));
}

static void cmp_follows_precedence(void **state)
{
    static const char *const ascending[] = {
        "0.0.1-0", "0.0.1", "0.1.0", "1.0.0-0", "1.0.0-2", "1.0.0-10", "1.0.0-99999999999999999999999", "1.0.0-alpha", "1.0.0-alpha.1",
        "1.0.0-alpha.1.0", "1.0.0-alpha.beta", "1.0.0-beta", "1.0.0-beta.2", "1.0.0-beta.11", "1.0.0-rc.1", "1.0.0", "1.0.1", "1.2.0", "1.10.0",
        "2.0.0", "10.0.0",
    };
    enum { N = sizeof ascending / sizeof *ascending };
    (void)state;
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) {
            struct semver a, b;
            assert_true(semver_parse(str_c(ascending[i]), &a));
            assert_true(semver_parse(str_c(ascending[j]), &b));
            int c = semver_cmp(&a, &b);
            if (((c > 0) - (c < 0)) != ((i > j) - (i < j)))
                fail_msg("%s against %s: %d", ascending[i], ascending[j], c);
        }
    struct semver a, b;
    assert_true(semver_parse(S("1.0.0+a"), &a));
    assert_true(semver_parse(S("1.0.0+b"), &b));
    assert_int_equal(semver_cmp(&a, &b), 0);
}

static void ranges_match(void **state)
{
    /* in: separated by spaces, '!' before one that must not match, '+' (or '!+') before one asked with include_prerelease */
    static const struct {
        const char *range, *versions;
    } rows[] = {
        {"1.2.3", "1.2.3 v1.2.3 1.2.3+b !1.2.4 !1.2.2 !1.2.3-rc.1 !+1.2.3-rc.1"},
        {"=1.2.3", "1.2.3 !1.2.4"},
        {"= 1.2.3", "1.2.3 !1.2.4"},
        {"v1.2.3", "1.2.3 !1.2.4"},
        {"=v1.2.3", "1.2.3 !1.2.4"},
        {"1.2.3+b", "1.2.3 1.2.3+c"},
        {"!=1.2.3", "1.2.4 0.0.1 !1.2.3 !1.2.4-rc.1 +1.2.4-rc.1"},
        {"!=1.2", "1.3.0 1.1.9 !1.2.0 !1.2.9 !+1.2.0-rc.1"},
        {">=1.2.3-alpha, !=1.2.3-beta", "1.2.3-alpha 1.2.3-rc !1.2.3-beta 1.2.3"},
        {"!=1.2.3-beta", "1.2.3 !1.2.3-beta !1.2.3-alpha"},
        {"1", "1.0.0 1.9.9 !2.0.0 !0.9.9 !1.0.0-rc.1 +1.0.0-rc.1 !+2.0.0-rc.1"},
        {"1.2", "1.2.0 1.2.9 !1.3.0 !1.1.9 +1.2.0-rc.1 !+1.3.0-rc.1"},
        {"=1.2", "1.2.0 1.2.9 !1.3.0"},
        {"1.x", "1.0.0 1.9.9 !2.0.0"},
        {"1.X", "1.0.0 !2.0.0"},
        {"1.*", "1.0.0 !2.0.0"},
        {"1.x.x", "1.0.0 1.9.9 !2.0.0"},
        {"1.2.x", "1.2.0 1.2.9 !1.3.0"},
        {"1.2.*", "1.2.0 !1.3.0"},
        {"*", "0.0.0 99.0.0 !1.0.0-rc.1 +1.0.0-rc.1"},
        {"x", "0.0.0 !1.0.0-rc.1"},
        {">=*", "0.0.0 1.0.0"},
        {"<=*", "0.0.0 1.0.0"},
        {"^*", "0.0.0 1.0.0"},
        {"~*", "0.0.0 1.0.0"},
        {"=*", "0.0.0 1.0.0"},
        /* caret: the leftmost number that is not zero stays */
        {"^1.4", "1.4.0 1.99.0 !1.3.9 !2.0.0 !1.4.0-rc.1 +1.4.0-rc.1 +1.5.0-rc.1 !+2.0.0-rc.1 !+2.0.0-0"},
        {"^1.4.2", "1.4.2 1.9.0 !1.4.1 !2.0.0 !1.5.0-rc.1 +1.5.0-rc.1 !+1.4.2-rc.1 !+2.0.0-rc.1"},
        {"^1", "1.0.0 1.9.9 !2.0.0 !0.9.9"},
        {"^1.x", "1.0.0 1.9.9 !2.0.0"},
        {"^0.2.3", "0.2.3 0.2.9 !0.3.0 !0.2.2"},
        {"^0.0.3", "0.0.3 !0.0.4 !0.0.2"},
        {"^0.0", "0.0.0 0.0.9 !0.1.0"},
        {"^0.0.x", "0.0.0 0.0.9 !0.1.0"},
        {"^0.1", "0.1.0 0.1.9 !0.2.0 !0.0.9"},
        {"^0", "0.0.0 0.9.9 !1.0.0"},
        {"^0.x", "0.0.0 0.9.9 !1.0.0"},
        {"^0.0.0", "0.0.0 !0.0.1"},
        {"^1.2.3-beta.2", "1.2.3-beta.2 1.2.3-beta.4 1.2.3 1.9.0 !1.2.3-beta.1 !1.2.4-beta.3 !1.9.0-beta.3"},
        {"^0.0.3-beta", "0.0.3-beta 0.0.3-pr.2 0.0.3 !0.0.4"},
        {"^v1.4", "1.4.0 !2.0.0"},
        {"^ 1.4", "1.4.0 !2.0.0"},
        /* tilde */
        {"~1.4.2", "1.4.2 1.4.9 !1.5.0 !1.4.1 !+1.5.0-rc.1"},
        {"~1.4", "1.4.0 1.4.9 !1.5.0 !1.3.9"},
        {"~1", "1.0.0 1.9.9 !2.0.0"},
        {"~0", "0.0.0 0.9.9 !1.0.0"},
        {"~0.2.3", "0.2.3 0.2.9 !0.3.0"},
        {"~1.x", "1.0.0 1.9.9 !2.0.0"},
        {"~>1.4", "1.4.0 1.4.9 !1.5.0"},
        {"~1.2.3-beta.2", "1.2.3-beta.4 !1.2.4-beta.4 1.2.9"},
        /* inequalities */
        {">1.2.3", "1.2.4 2.0.0 !1.2.3 !2.0.0-rc.1 +2.0.0-rc.1"},
        {">1.2", "1.3.0 !1.2.0 !1.2.9 +1.3.0-rc.1"},
        {">1", "2.0.0 !1.9.9"},
        {">=1.2.3", "1.2.3 9.0.0 !1.2.2"},
        {">=1.2", "1.2.0 !1.1.9 +1.2.0-rc.1"},
        {">= 1.2", "1.2.0 !1.1.9"},
        {"=>1.2", "1.2.0 !1.1.9"},
        {"<2", "1.9.9 0.0.0 !2.0.0 !+2.0.0-rc.1 !1.9.9-rc.1 +1.9.9-rc.1"},
        {"<2.0.0", "1.9.9 !2.0.0 !2.0.0-rc.1 +2.0.0-rc.1"},
        {"<1.2", "1.1.9 !1.2.0"},
        {"<=1.2", "1.2.0 1.2.9 !1.3.0 !+1.3.0-rc.1"},
        {"=<1.2", "1.2.9 !1.3.0"},
        {"<=1.2.3", "1.2.3 !1.2.4"},
        {"<=1", "1.9.9 !2.0.0"},
        {">=1.2.3-rc.1", "1.2.3-rc.1 1.2.3-rc.2 1.2.3 9.0.0 !1.2.3-beta !1.3.0-rc.1 +1.3.0-rc.1"},
        {"<1.2.3-rc.2", "1.2.3-rc.1 1.2.2 !1.2.3 !1.2.3-rc.2 !1.2.2-rc.1"},
        {">1.2.3-rc.1", "1.2.3-rc.2 !1.2.3-rc.1"},
        {"1.2.3-rc.1", "1.2.3-rc.1 !1.2.3-rc.2 !1.2.3"},
        /* and */
        {">=1.2 <2", "1.2.0 1.9.9 !2.0.0 !1.1.9"},
        {">=1.2,<2", "1.2.0 !2.0.0"},
        {">=1.2, <2", "1.2.0 !2.0.0"},
        {">=1.2 , <2", "1.2.0 !2.0.0"},
        {">=1.2\t<2", "1.2.0 !2.0.0"},
        {"  >=1.2  <2  ", "1.2.0 !2.0.0"},
        {">=1.0 <3 !=2.1.0", "1.0.0 2.0.0 2.1.1 !2.1.0 !3.0.0"},
        {">2 <1", "!1.0.0 !2.0.0 !1.5.0 !3.0.0"},
        /* or */
        {"1 || 3", "1.5.0 3.0.0 !2.0.0 !4.0.0"},
        {"1||3", "1.5.0 3.0.0 !2.0.0"},
        {"<1 || >=2.0 <2.5 || ^4", "0.9.0 2.4.9 4.5.0 !1.0.0 !2.5.0 !3.0.0 !5.0.0"},
        {"1.2.3-rc.1 || >=1.2.2", "1.2.3-rc.1 !1.2.3-rc.2"}, /* a pre-release is let in by its own alternative only */
        /* hyphen */
        {"1.2 - 2.3", "1.2.0 2.3.0 2.3.9 !2.4.0 !1.1.9"},
        {"1.2.3 - 2.3.4", "1.2.3 2.3.4 !2.3.5 !1.2.2"},
        {"1.2.3 - 2", "1.2.3 2.9.9 !3.0.0"},
        {"1.2.3-rc.1 - 2", "1.2.3-rc.1 1.2.3-rc.2 !2.0.0-rc.1"},
        {"1 - 2.0.0-rc.2", "2.0.0-rc.1 !2.0.0-rc.3 !1.0.0-rc.1"},
        {"* - 2", "0.0.0 2.9.9 !3.0.0"},
        {"1 - *", "1.0.0 99.0.0 !0.9.0"},
        {"1\t-\t2", "1.0.0 2.9.9 !3.0.0"},
        {"1 - 2 || 5", "1.0.0 5.1.0 !4.0.0"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct semver_range *range;
        struct error error;
        if (semver_range_parse(str_c(rows[i].range), &range, &error))
            fail_msg("%s: %s", rows[i].range, error.text);
        struct str rest = str_c(rows[i].versions), one;
        while (str_next(&rest, ' ', &one)) {
            bool want = true, pre = false;
            struct semver v;
            if (one.p[0] == '!') {
                want = false;
                one = str_skip(one, 1);
            }
            if (one.p[0] == '+') {
                pre = true;
                one = str_skip(one, 1);
            }
            assert_true(semver_parse(one, &v));
            if (semver_range_matches(range, &v, pre) != want)
                fail_msg("%s %s %.*s%s", rows[i].range, want ? "must match" : "must not match", STR(one), pre ? " (with pre-releases)" : "");
        }
        semver_range_free(range);
    }
}

static void malformed_ranges_are_refused(void **state)
{
    static const char *const rows[] = {
        "",      " ",       "latest",  "||",        "1 ||",     "|| 1",   "1 | 2",   ",",       "1,",     "1,,2",   ">",       ">=",
        "1.2.3.4", "01.2",  "1.02",    "1.x.3",     "x.1",      "1.",     ".1",      "1..2",    "1.2-rc", "1-rc",   "1.2.3-",  "1.2.3-01",
        "1.2.3-a..b", "1.2.3+", ">=1.2<2", ">*",    "<*",       "!=*",    "!1",      "^^1",     ">>1",    "==1",    "1 -2",    "1 - ",
        "1- 2",  "^1 - 2 - 3", "1.2.3\n", "18446744073709551616", "18446744073709551615", "vv1", "1 - ^2", "~>", "a.b.c", "1.2.3 foo", "\x01", "1;2",
        "1 - x1", "1.2.3-rc_1", "1 \x01\x02", "a\xc3\xa9z", "\x7f",
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct semver_range *range = NULL;
        struct error error;
        if (semver_range_parse(str_c(rows[i]), &range, &error) != ERR_INVALID)
            fail_msg("\"%s\" was taken", rows[i]);
        assert_null(range);
        assert_string_equal(error.field, "value");
        assert_true(error.text[0] != '\0');
        for (const char *c = error.text; *c; c++)
            assert_true(*c >= ' ' && *c <= '~');
    }
}

static void ranges_are_bounded(void **state)
{
    struct strbuf b = {0};
    struct semver_range *range;
    (void)state;
    for (int i = 0; i < 64; i++)
        sb_addc(&b, i ? " 1" : "1");
    assert_int_equal(semver_range_parse(sb_str(&b), &range, NULL), ERR_OK);
    semver_range_free(range);
    sb_addc(&b, " 1");
    assert_int_equal(semver_range_parse(sb_str(&b), &range, NULL), ERR_INVALID);
    sb_reset(&b);
    while (b.n < 255)
        sb_add_char(&b, ' ');
    sb_add_char(&b, '1');
    assert_int_equal(semver_range_parse(sb_str(&b), &range, NULL), ERR_OK);
    semver_range_free(range);
    sb_add_char(&b, ' ');
    assert_int_equal(semver_range_parse(sb_str(&b), &range, NULL), ERR_INVALID);
    sb_free(&b);
    semver_range_free(NULL);
}

static void globs_match(void **state)
{
    static const struct {
        const char *pattern, *s;
        bool want;
    } rows[] = {
        {"2024.*-lts", "2024.1-lts", true},
        {"2024.*-lts", "2024.1.2-lts", true},
        {"2024.*-lts", "2024.-lts", true},
        {"2024.*-lts", "2024.1-lts2", false},
        {"2024.*-lts", "2025.1-lts", false},
        {"2024.*-lts", "x2024.1-lts", false},
        {"*", "", true},
        {"*", "anything", true},
        {"**", "x", true},
        {"", "", true},
        {"", "x", false},
        {"?", "x", true},
        {"?", "", false},
        {"?", "xy", false},
        {"a?c", "abc", true},
        {"1.[0-9]", "1.5", true},
        {"1.[0-9]", "1.a", false},
        {"1.[0-9]", "1.55", false},
        {"1.[!0-9]", "1.a", true},
        {"1.[^0-9]", "1.5", false},
        {"[abc]", "b", true},
        {"[abc]", "d", false},
        {"[a-]", "-", true},
        {"[-a]", "-", true},
        {"*[0-9]", "rc1", true},
        {"*[0-9]", "rc", false},
        {"*a*b*c", "xxaxxbxxc", true},
        {"*a*b*c", "xxaxxbxx", false},
        {"1.*", "1.", true},
        {"1.*", "1", false},
        {"a", "A", false},
        {"[a", "a", false},
        {"[]", "a", false},
        {"*[a", "xa", false},
        {"v1", "1", false},
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (glob_matches(str_c(rows[i].pattern), str_c(rows[i].s)) != rows[i].want)
            fail_msg("%s against %s", rows[i].pattern, rows[i].s);
}

static void globs_are_checked(void **state)
{
    static const char *const good[] = {"*", "1.*", "[a-z]", "[!a]", "?", "2024.*-lts", "a+b"};
    static const char *const bad[] = {"", "[", "[]", "[!]", "[a", "a[", "[z-a]", "a b", "a\nb", "\\", "a/b", "\xc3\xa4", "[ ]", "a\x7f"};
    char long_one[258];
    (void)state;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        if (glob_check(str_c(good[i]), NULL) != ERR_OK)
            fail_msg("%s", good[i]);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (glob_check(str_c(bad[i]), NULL) != ERR_INVALID)
            fail_msg("%s", bad[i]);
    memset(long_one, 'a', sizeof long_one);
    assert_int_equal(glob_check((struct str){long_one, 256}, NULL), ERR_OK);
    assert_int_equal(glob_check((struct str){long_one, 257}, NULL), ERR_INVALID);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(parse_accepts_complete_versions_only),
        cmocka_unit_test(cmp_follows_precedence),
        cmocka_unit_test(ranges_match),
        cmocka_unit_test(malformed_ranges_are_refused),
        cmocka_unit_test(ranges_are_bounded),
        cmocka_unit_test(globs_match),
        cmocka_unit_test(globs_are_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
