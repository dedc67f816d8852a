/* The head check, rule by rule. Each refusal is checked twice: as a whole head, and that no split of it makes it good. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "pullgate/head.h"
#include "pullgate/mem.h"

static const struct head_limits limits = {.target_bytes = 4096, .head_bytes = 16384, .fields = 64};

#define REQ  "GET /v2/acme/app/manifests/1.0 HTTP/1.1\r\n"
#define HOST "Host: registry.example:5080\r\n"
#define AUTH "Authorization: Basic dXNlcjpwYXNz\r\n"
#define POST "POST /v2/ HTTP/1.1\r\n" HOST AUTH
#define END  "\r\n"

struct row {
    const char *name;
    struct str bytes;
    int status;
};
#define ROW(name, text, status)                                                                                                            \
    {                                                                                                                                      \
        name, {text, sizeof(text) - 1}, status                                                                                             \
    }

/* clang-format off: one row a line */
static const struct row rows[] = {
    ROW("SMG-001 well-formed GET", REQ HOST AUTH "Accept: */*\r\n" END, 0),
    ROW("HTTP/1.0 without Host", "GET / HTTP/1.0\r\n" END, 0),
    ROW("HEAD", "HEAD /v2/a/blobs/sha256:00 HTTP/1.1\r\n" HOST END, 0),
    ROW("PUT, PATCH, DELETE, OPTIONS pass to be answered 405", "PUT /v2/x HTTP/1.1\r\n" HOST "Content-Length: 3\r\n" END, 0),
    ROW("unknown method passes to be answered 405", "PROPFIND /v2/ HTTP/1.1\r\n" HOST END, 0),
    ROW("a method of as many letters as GET", "PRI /v2/ HTTP/1.1\r\n" HOST END, 0),
    ROW("hyphen in a method", "VERSION-CONTROL /v2/ HTTP/1.1\r\n" HOST END, 0),
    ROW("nearly TRACE", "TRACK /v2/ HTTP/1.1\r\n" HOST END, 0),
    ROW("nearly CONNECT", "CONSULT /v2/ HTTP/1.1\r\n" HOST END, 0),
    ROW("names as long as those that count", REQ HOST "Hort: a\r\nExpekt: x\r\nKonnection: close\r\nAuthorisation: x\r\nContent-Lenght: x\r\nTransfer-Enkoding: x\r\n" END, 0),
    ROW("IPv6 Host", "GET / HTTP/1.1\r\nHost: [::1]:5080\r\n" END, 0),
    ROW("Host with an empty port", "GET / HTTP/1.1\r\nHost: a.example:\r\n" END, 0),
    ROW("%-escapes are the route's business", "GET /v2/acme%2Fapp/tags/list HTTP/1.1\r\n" HOST END, 0),
    ROW("blanks and tabs around a value", REQ HOST "Accept: \t \ta\t \t\r\n" END, 0),
    ROW("inner tab and obs-text in a value", REQ HOST "User-Agent: a\tb \xc3\xa9\r\n" END, 0),
    ROW("empty value", REQ HOST "Accept:\r\n" END, 0),
    ROW("SMG-075 Connection names Content-Length", POST "Connection: Content-Length\r\nContent-Length: 5\r\n" END, 0),
    ROW("SMG-077 Upgrade: h2c is ignored", REQ HOST "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMA\r\n" END,
        0),
    ROW("Expect: 100-continue", POST "Expect: 100-Continue\r\nContent-Length: 5\r\n" END, 0),

    ROW("SMG-005 TE and CL", POST "Transfer-Encoding: chunked\r\nContent-Length: 6\r\n" END, 400),
    ROW("CL and TE", POST "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n" END, 400),
    ROW("SMG-007 duplicate Content-Length, same value", POST "Content-Length: 0\r\nContent-Length: 0\r\n" END, 400),
    ROW("duplicate Content-Length, other value", POST "Content-Length: 5\r\nContent-Length: 6\r\n" END, 400),
    ROW("SMG-009 empty Content-Length", POST "Content-Length:\r\n" END, 400),
    ROW("Content-Length of blanks", POST "Content-Length:  \t \r\n" END, 400),
    ROW("SMG-011 negative Content-Length", POST "Content-Length: -1\r\n" END, 400),
    ROW("Content-Length with a plus", POST "Content-Length: +5\r\n" END, 400),
    ROW("Content-Length in hex", POST "Content-Length: 0x5\r\n" END, 400),
    ROW("Content-Length with a letter", POST "Content-Length: 5x\r\n" END, 400),
    ROW("Content-Length list", POST "Content-Length: 5, 5\r\n" END, 400),
    ROW("Content-Length with leading zeros", POST "Content-Length: 005\r\n" END, 400),
    ROW("Content-Length with a fraction", POST "Content-Length: 5.0\r\n" END, 400),
    ROW("SMG-013 Content-Length with trailing garbage", POST "Content-Length: 5 5\r\n" END, 400),
    ROW("SMG-015 Content-Length of 20 digits", POST "Content-Length: 99999999999999999999\r\n" END, 400),
    ROW("Content-Length 2^64", POST "Content-Length: 18446744073709551616\r\n" END, 400),
    ROW("Content-Length with a vertical tab", POST "Content-Length: 5\v\r\n" END, 400),
    ROW("blank before the colon of Content-Length", POST "Content-Length : 5\r\n" END, 400),
    ROW("SMG-017 TE: CHUNKED", POST "Transfer-Encoding: CHUNKED\r\n" END, 400),
    ROW("SMG-019 TE: TAB chunked", POST "Transfer-Encoding:\tchunked\r\n" END, 400),
    ROW("SMG-021 TE: chunked, identity", POST "Transfer-Encoding: chunked, identity\r\n" END, 400),
    ROW("TE: identity", POST "Transfer-Encoding: identity\r\n" END, 400),
    ROW("TE: gzip, chunked", POST "Transfer-Encoding: gzip, chunked\r\n" END, 400),
    ROW("TE: xchunked", POST "Transfer-Encoding: xchunked\r\n" END, 400),
    ROW("TE: \"chunked\"", POST "Transfer-Encoding: \"chunked\"\r\n" END, 400),
    ROW("empty TE", POST "Transfer-Encoding:\r\n" END, 400),
    ROW("tRANSFER-eNCODING", POST "tRANSFER-eNCODING: chunked\r\n" END, 400),
    ROW("SMG-023 TE twice", POST "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n" END, 400),
    ROW("TE from HTTP/1.0", "POST /v2/ HTTP/1.0\r\nTransfer-Encoding: chunked\r\n" END, 400),
    ROW("SMG-025 blank before the colon of TE", POST "Transfer-Encoding : chunked\r\n" END, 400),
    ROW("tab before the colon", POST "Transfer-Encoding\t: chunked\r\n" END, 400),
    ROW("vertical tab before a name", POST "\vTransfer-Encoding: chunked\r\n" END, 400),
    ROW("NUL in TE's name", POST "Transfer\0-Encoding: chunked\r\n" END, 400),
    ROW("TE hidden by a bare CR", POST "X: y\rTransfer-Encoding: chunked\r\n" END, 400),
    ROW("TE hidden by a bare LF", POST "X: y\nTransfer-Encoding: chunked\r\n" END, 400),
    ROW("SMG-035 bare LF", "GET / HTTP/1.1\nHost: a\n\n\r\n\r\n", 400),
    ROW("SMG-037 bare LF after the version", "GET / HTTP/1.1 \nHost: a\r\n" END, 400),
    ROW("bare CR in the request line", "GET /\rx HTTP/1.1\r\n" HOST END, 400),
    ROW("bare CR in a value", REQ HOST "X: a\rb\r\n" END, 400),
    ROW("CR CR LF", REQ HOST "X: a\r\r\n" END, 400),
    ROW("SMG-039 obs-fold with a tab", REQ HOST "Authorization: Bearer\r\n\tx\r\n" END, 400),
    ROW("obs-fold with a blank", REQ HOST "X: a\r\n b\r\n" END, 400),
    ROW("blank before the first field", REQ " " HOST END, 400),
    ROW("SMG-041 NUL in a value", REQ HOST "X: a\0b\r\n" END, 400),
    ROW("SMG-043 NUL at the start of Authorization", REQ HOST "Authorization: \0Basic x\r\n" END, 400),
    ROW("DEL in a value", REQ HOST "X: a\x7f\r\n" END, 400),
    ROW("SMG-045 line without a colon", REQ HOST "NoColon\r\n" END, 400),
    ROW("empty name", REQ HOST ": x\r\n" END, 400),
    ROW("SMG-047 name with a blank", REQ HOST "Foo Bar: x\r\n" END, 400),
    ROW("name with a slash", REQ HOST "Foo/Bar: x\r\n" END, 400),
    ROW("8-bit name", REQ HOST "F\xc3\xb6: x\r\n" END, 400),
    ROW("SMG-049 two Hosts", REQ HOST "Host: evil.example\r\n" END, 400),
    ROW("two equal Hosts", REQ HOST HOST END, 400),
    ROW("no Host on 1.1", REQ AUTH END, 400),
    ROW("empty Host", REQ "Host:\r\n" END, 400),
    ROW("SMG-051 Host with userinfo", REQ "Host: a@registry.example\r\n" END, 400),
    ROW("Host with a path", REQ "Host: a/b\r\n" END, 400),
    ROW("Host with a blank", REQ "Host: a b\r\n" END, 400),
    ROW("Host list", REQ "Host: a, b\r\n" END, 400),
    ROW("Host with a port out of digits", REQ "Host: a:80x\r\n" END, 400),
    ROW("Host with a port of six digits", REQ "Host: a:808080\r\n" END, 400),
    ROW("Host without a name", REQ "Host: :80\r\n" END, 400),
    ROW("Host with an open bracket", REQ "Host: [::1\r\n" END, 400),
    ROW("Host with empty brackets", REQ "Host: []\r\n" END, 400),
    ROW("Host with a name in brackets", REQ "Host: [g]\r\n" END, 400),
    ROW("Host with a port of a slash", REQ "Host: a:80/\r\n" END, 400),
    ROW("Host with brackets and a port of none", REQ "Host: [::1]x\r\n" END, 400),
    ROW("two Authorizations", REQ HOST AUTH AUTH END, 400),
    ROW("SMG-053 absolute-form", "GET http://evil.example HTTP/1.1\r\n" HOST END, 400),
    ROW("absolute-form with a path", "GET http://registry.example:5080/v2/ HTTP/1.1\r\n" HOST END, 400),
    ROW("SMG-055 HTTP/0.9", "GET /v2/\r\n\r\n", 400),
    ROW("SMG-057 HTTP/257.1", "GET /v2/ HTTP/257.1\r\n" HOST END, 400),
    ROW("HTTP/2.0", "GET /v2/ HTTP/2.0\r\n" HOST END, 400),
    ROW("HTTP/1.2", "GET /v2/ HTTP/1.2\r\n" HOST END, 400),
    ROW("HTTP/1.1x", "GET /v2/ HTTP/1.1x\r\n" HOST END, 400),
    ROW("HTTP/01.1", "GET /v2/ HTTP/01.1\r\n" HOST END, 400),
    ROW("http/1.1", "GET /v2/ http/1.1\r\n" HOST END, 400),
    ROW("h2 preface", "PRI * HTTP/2.0\r\n\r\n", 400),
    ROW("SMG-059 double blanks", "GET  /v2/  HTTP/1.1\r\n" HOST END, 400),
    ROW("two blanks before the version", "GET /v2/  HTTP/1.1\r\n" HOST END, 400),
    ROW("blank after the version", "GET /v2/ HTTP/1.1 \r\n" HOST END, 400),
    ROW("tab as a separator", "GET\t/v2/\tHTTP/1.1\r\n" HOST END, 400),
    ROW("blank before the method", " GET /v2/ HTTP/1.1\r\n" HOST END, 400),
    ROW("empty line first", "\r\nGET /v2/ HTTP/1.1\r\n" HOST END, 400),
    ROW("nothing but the end", "\r\n\r\n", 400),
    ROW("SMG-061 lower-case method", "get /v2/ HTTP/1.1\r\n" HOST END, 400),
    ROW("method of 33 letters", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA / HTTP/1.1\r\n" HOST END, 400),
    ROW("SMG-063 NUL in the target", "GET /v2/\0x HTTP/1.1\r\n" HOST END, 400),
    ROW("SMG-065 8-bit bytes in the target", "GET /v2/\xff\xfe HTTP/1.1\r\n" HOST END, 400),
    ROW("fragment in the target", "GET /v2/#x HTTP/1.1\r\n" HOST END, 400),
    ROW("DEL in the target", "GET /v2/\x7f HTTP/1.1\r\n" HOST END, 400),
    ROW("blank in the target", "GET /v2/a b HTTP/1.1\r\n" HOST END, 400),
    ROW("SMG-067 TLS-looking bytes", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    ROW("SMG-069 SSH banner", "SSH-2.0-OpenSSH_9.2\r\n\r\n", 400),
    ROW("SMG-079 Expect: foo", POST "Expect: foo\r\nContent-Length: 3\r\n" END, 417),
    ROW("Expect twice", POST "Expect: 100-continue\r\nExpect: 100-continue\r\n" END, 400),
    ROW("SMG-081 TRACE", "TRACE /v2/ HTTP/1.1\r\n" HOST END, 405),
    ROW("CONNECT", "CONNECT evil.example:443 HTTP/1.1\r\n" HOST END, 405),
    ROW("SMG-083 OPTIONS *", "OPTIONS * HTTP/1.1\r\n" HOST END, 400),
    ROW("an empty target", "GET  HTTP/1.1\r\n" HOST END, 400),
    ROW("no target", "GET HTTP/1.1\r\n" HOST END, 400),
    ROW("relative target", "GET v2/ HTTP/1.1\r\n" HOST END, 400),
};
/* clang-format on */

static int parse(struct str bytes, struct head *ret)
{
    const char *why = NULL;
    struct head dummy;
    int status = head_parse(bytes, &limits, ret ? ret : &dummy, &why);
    assert_true((status == 0) == (why == NULL));
    return status;
}

static void rules(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        /* An exact heap copy, so that a read past the end is seen by the address sanitizer. */
        char *copy = mem_alloc(rows[i].bytes.n);
        memcpy(copy, rows[i].bytes.p, rows[i].bytes.n);
        int status = parse((struct str){copy, rows[i].bytes.n}, NULL);
        mem_free(copy);
        if (status != rows[i].status)
            fail_msg("%s: %d, expected %d", rows[i].name, status, rows[i].status);
    }
}

/* No prefix of a good head is refused early or taken for whole; of a bad one, no prefix is good, and early refusals agree. */
static void prefixes(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        size_t whole = head_find_end(rows[i].bytes.p, rows[i].bytes.n, 0);
        size_t from = 0;
        for (size_t n = 1; n < whole; n++) {
            char *copy = mem_alloc(n);
            memcpy(copy, rows[i].bytes.p, n);
            const char *why = NULL;
            assert_int_equal(head_find_end(copy, n, from), 0);
            int early = head_check_partial((struct str){copy, n}, from, &limits, &why);
            mem_free(copy);
            from = n;
            if (early && early != rows[i].status)
                fail_msg("%s: early %d at %zu, whole %d", rows[i].name, early, n, rows[i].status);
            if (early)
                break;
        }
    }
}

/* What the caller never hands over, or only when it cut in the wrong place. */
static void wrongly_cut(void **state)
{
    static const struct row cut[] = {
        ROW("nothing", "", 400),
        ROW("three bytes", "\r\n\r", 400),
        ROW("no end", REQ HOST, 400),
        ROW("an end in the middle", REQ HOST END HOST END, 400),
        ROW("a lone LF where the line ends", "GET / HTTP/1.1\rx" HOST END, 400),
    };
    (void)state;
    for (size_t i = 0; i < sizeof cut / sizeof *cut; i++)
        if (parse(cut[i].bytes, NULL) != cut[i].status)
            fail_msg("%s", cut[i].name);
    assert_int_equal(head_find_end("\r\n\r\n", 4, 9), 0);
    assert_int_equal(head_find_end("\r\n\r\n", 4, 3), 4);
    assert_int_equal(head_find_end("a\r\n\r\n", 5, 4), 5);
    assert_int_equal(head_find_end("\r\n\r", 3, 0), 0);
}

static void early(void **state)
{
    static const struct row partial[] = {
        ROW("SMG-069 SSH banner", "SSH-2.0-OpenSSH_9.2\r\n", 400),
        ROW("SMG-035 bare LF", "GET / HTTP/1.1\nHost: a\n\n", 400),
        ROW("HTTP/0.9", "GET /v2/\r\n", 400),
        ROW("garbage", "\x01\x02\x03", 400),
        ROW("no blank in sight", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", 400),
        ROW("absolute-form", "GET h", 400),
        ROW("other version", "GET / HTTP/2", 400),
        ROW("good so far", "GET /v2/ HTTP/1.", 0),
        ROW("good so far, line whole", "GET /v2/ HTTP/1.1\r", 0),
        ROW("good so far, in a field", "GET /v2/ HTTP/1.0\r\nHos", 0),
        ROW("TRACE", "TRACE /", 405),
        ROW("LF first", "\n", 400),
        ROW("CR first", "\rG", 400),
        ROW("NUL first", "\0", 400),
        ROW("method only", "GET", 0),
        ROW("target begun", "GET /", 0),
        ROW("no target yet", "GET ", 0),
        ROW("target over", "GET / ", 0),
        ROW("a blank for a target", "GET  ", 400),
        ROW("version of nine bytes", "GET / HTTP/1.11", 400),
        ROW("version of eight", "GET / HTTP/1.1", 0),
    };
    (void)state;
    for (size_t i = 0; i < sizeof partial / sizeof *partial; i++) {
        const char *why = NULL;
        int status = head_check_partial(partial[i].bytes, 0, &limits, &why);
        if (status != partial[i].status)
            fail_msg("%s: %d, expected %d", partial[i].name, status, partial[i].status);
    }
}

static void bounds(void **state)
{
    struct strbuf b = {0};
    struct head h;
    const char *why;
    (void)state;

    for (size_t extra = 0; extra < 2; extra++) { /* a target of exactly the limit, and one byte more */
        sb_reset(&b);
        sb_addc(&b, "GET /");
        for (size_t i = 0; i < limits.target_bytes - 1 + extra; i++)
            sb_add_char(&b, 'a');
        sb_addc(&b, " HTTP/1.1\r\n" HOST END);
        assert_int_equal(head_parse(sb_str(&b), &limits, &h, &why), extra ? 414 : 0);
        assert_int_equal(head_check_partial((struct str){b.p, b.n - 4}, 0, &limits, &why), extra ? 414 : 0);
    }
    for (unsigned extra = 0; extra < 2; extra++) { /* fields */
        sb_reset(&b);
        sb_addc(&b, REQ HOST);
        for (unsigned i = 0; i < limits.fields - 1 + extra; i++)
            sb_addf(&b, "X%u: y\r\n", i);
        sb_addc(&b, END);
        assert_int_equal(head_parse(sb_str(&b), &limits, &h, &why), extra ? 431 : 0);
        if (!extra)
            assert_int_equal(h.n_fields, limits.fields);
    }
    for (size_t extra = 0; extra < 2; extra++) { /* bytes */
        sb_reset(&b);
        sb_addc(&b, REQ HOST "X: ");
        while (b.n < limits.head_bytes - 4 + extra)
            sb_add_char(&b, 'a');
        sb_addc(&b, "\r\n" END);
        assert_int_equal(head_parse(sb_str(&b), &limits, &h, &why), extra ? 431 : 0);
        assert_int_equal(head_check_partial(sb_str(&b), 0, &limits, &why), extra ? 431 : 0);
    }
    static const struct head_limits many = {.target_bytes = 4096, .head_bytes = 65536, .fields = HEAD_MAX_FIELDS + 1};
    sb_reset(&b); /* fields: never more than there is room for, whatever is configured */
    sb_addc(&b, REQ HOST);
    for (unsigned i = 0; i < HEAD_MAX_FIELDS; i++)
        sb_addf(&b, "X%u: y\r\n", i);
    sb_addc(&b, END);
    assert_int_equal(head_parse(sb_str(&b), &many, &h, &why), 431);
    sb_free(&b);
}

static void parts(void **state)
{
    static const char text[] = "POST /token?scope=a&b=?c HTTP/1.1\r\nHost:  r.example \r\nauthorization:\tBasic eA== \r\n"
                               "Content-Length: 18446744073709551\r\nX-A: 1\r\nx-a: 2\r\nExpect: 100-continue\r\n\r\n";
    struct head h;
    unsigned n;
    (void)state;
    assert_int_equal(parse((struct str){text, sizeof text - 1}, &h), 0);
    assert_int_equal(h.method, HEAD_POST);
    assert_true(str_eq_c(h.method_text, "POST"));
    assert_true(str_eq_c(h.target, "/token?scope=a&b=?c"));
    assert_true(str_eq_c(h.path, "/token"));
    assert_true(str_eq_c(h.query, "scope=a&b=?c"));
    assert_true(str_eq_c(h.host, "r.example"));
    assert_true(str_eq_c(h.authorization, "Basic eA=="));
    assert_true(h.has_length && h.length == 18446744073709551ull);
    assert_true(h.expect_continue && h.keep_alive && !h.is_http10);
    assert_true(str_eq_c(head_get(&h, "X-A", &n), "1"));
    assert_int_equal(n, 2);
    assert_true(str_eq_c(head_get(&h, "x-a", NULL), "1"));
    assert_null(head_get(&h, "absent", NULL).p);
    assert_null(head_get(&h, "absent", &n).p);
    assert_int_equal(n, 0);
}

static void methods(void **state)
{
    static const struct {
        const char *text;
        enum head_method method;
    } cases[] = {{"GET", HEAD_GET},       {"PUT", HEAD_PUT},         {"PRI", HEAD_OTHER},     {"HEAD", HEAD_HEAD},   {"POST", HEAD_POST},   {"LOCK", HEAD_OTHER},
                 {"PATCH", HEAD_PATCH},   {"MERGE", HEAD_OTHER},     {"DELETE", HEAD_DELETE}, {"SEARCH", HEAD_OTHER}, {"OPTIONS", HEAD_OPTIONS}, {"UNLABEL", HEAD_OTHER},
                 {"PROPFIND", HEAD_OTHER}, {"A", HEAD_OTHER}};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct strbuf b = {0};
        struct head h;
        sb_addf(&b, "%s / HTTP/1.1\r\n" HOST END, cases[i].text);
        assert_int_equal(parse(sb_str(&b), &h), 0);
        if (h.method != cases[i].method || !str_eq_c(h.method_text, cases[i].text))
            fail_msg("%s", cases[i].text);
        sb_free(&b);
    }
}

static void keep_alive(void **state)
{
    static const struct {
        struct str bytes;
        bool keep;
    } cases[] = {
#define K(version, field, keep)                                                                                                            \
    {{"GET / HTTP/" version "\r\nHost: a\r\n" field "\r\n", sizeof("GET / HTTP/" version "\r\nHost: a\r\n" field "\r\n") - 1}, keep}
        K("1.1", "", true),
        K("1.1", "Connection: close\r\n", false),
        K("1.1", "Connection: CLOSE\r\n", false),
        K("1.1", "Connection: close, TE\r\n", false),
        K("1.1", "Connection: TE , close\r\n", false),
        K("1.1", "Connection: keep-alive\r\nConnection: close\r\n", false),
        K("1.1", "Connection: TE\t,\tclose\t \r\n", false),
        K("1.1", "Connection: TE,close\t\r\n", false),
        K("1.1", "Connection: closed\r\n", true),
        K("1.1", "Connection: ,,\r\n", true),
        K("1.0", "", false),
        K("1.0", "Connection: Keep-Alive\r\n", true),
        K("1.0", "Connection: keep-alive, close\r\n", false),
#undef K
    };
    struct head h;
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(parse(cases[i].bytes, &h), 0);
        if (h.keep_alive != cases[i].keep)
            fail_msg("keep_alive of %.*s", STR(cases[i].bytes));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rules),  cmocka_unit_test(prefixes), cmocka_unit_test(early),
        cmocka_unit_test(bounds), cmocka_unit_test(parts),    cmocka_unit_test(keep_alive),
        cmocka_unit_test(methods), cmocka_unit_test(wrongly_cut),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
