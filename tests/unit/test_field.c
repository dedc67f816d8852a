/* Challenges, links and content ranges as upstreams really send them, and as one that means harm would. */
#include "pullgate/field.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static void test_challenges(void **state)
{
    (void)state;
    static const struct {
        const char *in, *out; /* scheme(realm|service|scope) …; NULL: refused */
    } rows[] = {
        {"Basic realm=\"r\"", "Basic(r||)"},
        {"basic", "Basic(||)"},
        {"Bearer realm=\"https://a/token\",service=\"s\",scope=\"repository:a/b:pull\"", "Bearer(https://a/token|s|repository:a/b:pull)"},
        {"Bearer realm=\"https://a/token\" , service=s", "Bearer(https://a/token|s|)"},
        {"bearer REALM = \"x\"", "Bearer(x||)"},
        {"Bearer realm=\"x\",error=\"invalid_token\"", "Bearer(x||)"},
        {"Basic realm=\"a\", Bearer realm=\"b\",service=\"c\"", "Basic(a||) Bearer(b|c|)"},
        {"Negotiate, Basic realm=\"a\"", "Other(||) Basic(a||)"},
        {"Negotiate YII==, Basic realm=\"a\"", "Other(||) Basic(a||)"},
        {"Bearer realm=\"a\\\"b, Basic realm=c\"", "Bearer(a\"b, Basic realm=c||)"},
        {"Bearer realm=\"\"", "Bearer(||)"},
        {", , Basic realm=x ,", "Basic(x||)"},
        {"", NULL},
        {",", NULL},
        {"=", NULL},
        {"realm=\"x\"", NULL},
        {"Bearer realm=\"x", NULL},
        {"Bearer realm=\"x\\", NULL},
        {"Bearer realm=\"x\" service=\"y\"", NULL},
        {"Bearer realm=\"x\"service=\"y\"", NULL},
        {"Bearer realm=\"x\",realm=\"y\"", NULL},
        {"Bearer realm=\"x\",Realm=\"y\"", NULL},
        {"Bearer realm=", "Bearer(||)"}, /* token68 by the grammar: no realm */
        {"Bearer realm=,service=x", "Bearer(|x|)"},
        {"Bearer(realm=x)", NULL},
        {"Bearer realm=\"x\", \"y\"", NULL},
        {"a,b,c,d,e,f,g,h", "Other(||) Other(||) Other(||) Other(||) Other(||) Other(||) Other(||) Other(||)"},
        {"a,b,c,d,e,f,g,h,i", NULL},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct challenge c[FIELD_CHALLENGES_MAX];
        size_t n = 0;
        struct strbuf b = {0};
        if (field_challenges_parse(str_c(rows[i].in), c, &n) == ERR_OK)
            for (size_t j = 0; j < n; j++) {
                static const char *const names[] = {"Other", "Basic", "Bearer"};
                sb_addf(&b, "%s%s(%s|%s|%s)", j ? " " : "", names[c[j].scheme], c[j].realm, c[j].service, c[j].scope);
            }
        if (!str_eq_c(sb_str(&b), rows[i].out ? rows[i].out : ""))
            fail_msg("%s gives \"%.*s\"", rows[i].in, STR(sb_str(&b)));
        sb_free(&b);
    }
    char huge[4096] = "Bearer realm=\"";
    memset(huge + strlen(huge), 'x', 3000);
    huge[3014] = '"';
    struct challenge c[FIELD_CHALLENGES_MAX];
    size_t n = 0;
    assert_int_equal(field_challenges_parse(str_c(huge), c, &n), ERR_INVALID);
    /* One value cut anywhere is refused or read, never run past. */
    const char *whole = "Basic realm=\"a\\\"\", Bearer realm=\"b\",service=c, Negotiate YII==";
    for (size_t cut = 0; cut <= strlen(whole); cut++) {
        char exact[128];
        memcpy(exact, whole, cut);
        n = 0;
        enum err e = field_challenges_parse((struct str){exact, cut}, c, &n);
        assert_true(e == ERR_OK || e == ERR_INVALID);
    }
}

static void test_link(void **state)
{
    (void)state;
    static const struct {
        const char *in;
        enum err err;
        const char *out;
    } rows[] = {
        {"</v2/a/tags/list?last=x&n=2>; rel=\"next\"", ERR_OK, "/v2/a/tags/list?last=x&n=2"},
        {"</x>;rel=next", ERR_OK, "/x"},
        {"<https://h/x>; rel=\"NEXT\"; title=\"a, <b>; rel=prev\"", ERR_OK, "https://h/x"},
        {"</p>; rel=\"prev\", </n>; rel=\"next\"", ERR_OK, "/n"},
        {"</p>; rel=\"prev\"; rel=\"next\"", ERR_NOT_FOUND, NULL}, /* only the first rel counts: RFC 8288 3.3 */
        {"</a>; rel=next, </b>; rel=next", ERR_OK, "/a"},
        {"</x>", ERR_NOT_FOUND, NULL},
        {"", ERR_NOT_FOUND, NULL},
        {"<>; rel=next", ERR_OK, ""},
        {"</x; rel=next", ERR_INVALID, NULL},
        {"/x; rel=next", ERR_INVALID, NULL},
        {"</x> rel=next", ERR_INVALID, NULL},
        {"</x>; =next", ERR_INVALID, NULL},
        {"</x>; rel=\"next", ERR_INVALID, NULL},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct str got = {NULL, 0};
        enum err e = field_link_next(str_c(rows[i].in), &got);
        if (e != rows[i].err || (rows[i].out && !str_eq_c(got, rows[i].out)))
            fail_msg("%s gives %d \"%.*s\"", rows[i].in, e, STR(got));
    }
}

static void test_content_range(void **state)
{
    (void)state;
    static const struct {
        const char *in;
        bool ok;
        uint64_t first, last, total;
    } rows[] = {{"bytes 0-9/100", true, 0, 9, 100}, {"bytes 5-5/6", true, 5, 5, 6},     {"Bytes 0-0/*", true, 0, 0, 0},
                {"bytes 0-9/9", false, 0, 0, 0},     {"bytes 9-0/100", false, 0, 0, 0},  {"bytes */100", false, 0, 0, 0},
                {"bytes 0-9", false, 0, 0, 0},       {"chars 0-9/100", false, 0, 0, 0},  {"bytes=0-9/100", false, 0, 0, 0},
                {"bytes 0-9/-1", false, 0, 0, 0},    {"bytes -9/100", false, 0, 0, 0},   {"bytes 0-18446744073709551616/*", false, 0, 0, 0},
                {"bytes 0-9/0", false, 0, 0, 0},     {"", false, 0, 0, 0},               {"bytes  0-9/100", false, 0, 0, 0}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct byte_range r = {0, 0};
        uint64_t total = 0;
        bool ok = field_content_range_parse(str_c(rows[i].in), &r, &total) == ERR_OK;
        if (ok != rows[i].ok || r.first != rows[i].first || r.last != rows[i].last || total != rows[i].total)
            fail_msg("%s", rows[i].in);
    }
    assert_int_equal(field_retry_after_s(S("7")), 7);
    assert_int_equal(field_retry_after_s(S("999999999999")), 3600);
    assert_int_equal(field_retry_after_s(S("Wed, 21 Oct 2015 07:28:00 GMT")), 0);
    assert_int_equal(field_retry_after_s(S("-1")), 0);
    assert_int_equal(field_retry_after_s((struct str){NULL, 0}), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_challenges),
        cmocka_unit_test(test_link),
        cmocka_unit_test(test_content_range),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
