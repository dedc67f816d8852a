/* PROXY headers and forwarding fields: what they name, what is refused, and that no cut of a header is taken for anything but a part. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <arpa/inet.h>

#include <cmocka.h>

#include "pullgate/front.h"
#include "pullgate/mem.h"

#define SIG "\r\n\r\n\0\r\nQUIT\n"
#define V4  "\xcb\x00\x71\x09\x7f\x00\x00\x01\x30\x39\x01\xbb" /* 203.0.113.9:12345 -> 127.0.0.1:443 */
#define V6  "\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x07" "\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x01" "\x30\x39\x01\xbb"
#define X9  "\0\0\0\0\0\0\0\0\0"
#define X54 X9 X9 X9 X9 X9 X9

struct row {
    const char *name;
    struct str bytes;
    enum front_header result;
    const char *client; /* NULL: none named */
    size_t follows;     /* of the bytes, after the header */
};
#define ROW(name, text, ...)                                                                                                               \
    {                                                                                                                                      \
        name, {text, sizeof(text) - 1}, __VA_ARGS__                                                                                        \
    }

/* clang-format off: one row a line */
static const struct row rows[] = {
    ROW("v2 IPv4", SIG "\x21\x11\x00\x0c" V4, FRONT_WHOLE, "203.0.113.9", 0),
    ROW("v2 IPv4, a request behind it", SIG "\x21\x11\x00\x0c" V4 "GET /", FRONT_WHOLE, "203.0.113.9", 5),
    ROW("v2 IPv6", SIG "\x21\x21\x00\x24" V6, FRONT_WHOLE, "2001:db8::7", 0),
    ROW("v2 IPv4 mapped into IPv6 is that IPv4", SIG "\x21\x21\x00\x24" "\0\0\0\0\0\0\0\0\0\0\xff\xff\xcb\0\x71\x09" X9 "\0\0\0\0\0\0\x01\x30\x39\x01\xbb", FRONT_WHOLE, "203.0.113.9", 0),
    ROW("v2 unix", SIG "\x21\x31\x00\xd8" X54 X54 X54 X54, FRONT_WHOLE, NULL, 0),
    ROW("v2 unspecified", SIG "\x21\x00\x00\x00", FRONT_WHOLE, NULL, 0),
    ROW("v2 unspecified: the rest is skipped, whatever it is", SIG "\x21\x00\x00\x05hello", FRONT_WHOLE, NULL, 0),
    ROW("v2 LOCAL", SIG "\x20\x00\x00\x00GET", FRONT_WHOLE, NULL, 3),
    ROW("v2 LOCAL with addresses: they are not the client's", SIG "\x20\x11\x00\x0c" V4, FRONT_WHOLE, NULL, 0),
    ROW("v2 from 0.0.0.0", SIG "\x21\x11\x00\x0c\0\0\0\0\x7f\0\0\x01\0\0\x01\xbb", FRONT_WHOLE, NULL, 0),
    ROW("v2 with TLVs", SIG "\x21\x11\x00\x15" V4 "\x04\x00\x00" "\xee\x00\x03xyz", FRONT_WHOLE, "203.0.113.9", 0),
    ROW("v2 TLV cut in its length", SIG "\x21\x11\x00\x0e" V4 "\x04\x00", FRONT_MALFORMED, NULL, 0),
    ROW("v2 TLV longer than the header", SIG "\x21\x11\x00\x10" V4 "\x04\x00\x02x", FRONT_MALFORMED, NULL, 0),
    ROW("v2 TLV of 65535", SIG "\x21\x11\x00\x10" V4 "\x04\xff\xffx", FRONT_MALFORMED, NULL, 0),
    ROW("v2 too short for IPv4", SIG "\x21\x11\x00\x0b" V4, FRONT_MALFORMED, NULL, 0),
    ROW("v2 too short for IPv6", SIG "\x21\x21\x00\x0c" V4, FRONT_MALFORMED, NULL, 0),
    ROW("v2 too short for unix", SIG "\x21\x31\x00\x24" V6, FRONT_MALFORMED, NULL, 0),
    ROW("v2 empty IPv4", SIG "\x21\x11\x00\x00", FRONT_MALFORMED, NULL, 0),
    ROW("v2 length 65535", SIG "\x21\x11\xff\xff" V4, FRONT_MALFORMED, NULL, 0),
    ROW("v2 length one above the most", SIG "\x21\x11\x0f\xf1" V4, FRONT_MALFORMED, NULL, 0),
    ROW("v2 longest", SIG "\x21\x11\x0f\xf0" V4, FRONT_MORE, NULL, 0),
    ROW("version 1 in binary", SIG "\x11\x11\x00\x0c" V4, FRONT_MALFORMED, NULL, 0),
    ROW("version 3", SIG "\x31\x11\x00\x0c" V4, FRONT_MALFORMED, NULL, 0),
    ROW("v2 unknown command", SIG "\x22\x11\x00\x0c" V4, FRONT_MALFORMED, NULL, 0),
    ROW("v2 unknown family", SIG "\x21\x41\x00\x0c" V4, FRONT_MALFORMED, NULL, 0),
    ROW("v2 datagram", SIG "\x21\x12\x00\x0c" V4, FRONT_MALFORMED, NULL, 0),
    ROW("v2 family without transport", SIG "\x21\x10\x00\x0c" V4, FRONT_MALFORMED, NULL, 0),

    ROW("v1 TCP4", "PROXY TCP4 203.0.113.9 127.0.0.1 12345 443\r\nGET", FRONT_WHOLE, "203.0.113.9", 3),
    ROW("v1 TCP6", "PROXY TCP6 2001:db8::7 ::1 0 65535\r\n", FRONT_WHOLE, "2001:db8::7", 0),
    ROW("v1 UNKNOWN", "PROXY UNKNOWN\r\n", FRONT_WHOLE, NULL, 0),
    ROW("v1 UNKNOWN with more", "PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n", FRONT_WHOLE, NULL, 0),
    ROW("v1 from 0.0.0.0", "PROXY TCP4 0.0.0.0 127.0.0.1 1 443\r\n", FRONT_WHOLE, NULL, 0),
    ROW("v1 UNKNOWNS", "PROXY UNKNOWNS\r\n", FRONT_MALFORMED, NULL, 0),
    ROW("v1 UDP4", "PROXY UDP4 203.0.113.9 127.0.0.1 12345 443\r\n", FRONT_MALFORMED, NULL, 0),
    ROW("v1 IPv6 in TCP4", "PROXY TCP4 ::1 ::1 12345 443\r\n", FRONT_MALFORMED, NULL, 0),
    ROW("v1 IPv4 in TCP6", "PROXY TCP6 203.0.113.9 ::1 12345 443\r\n", FRONT_MALFORMED, NULL, 0),
    ROW("v1 leading zeros in an address", "PROXY TCP4 203.0.113.009 127.0.0.1 12345 443\r\n", FRONT_MALFORMED, NULL, 0),
    ROW("v1 leading zeros in a port", "PROXY TCP4 203.0.113.9 127.0.0.1 012345 443\r\n", FRONT_MALFORMED, NULL, 0),
    ROW("v1 port 65536", "PROXY TCP4 203.0.113.9 127.0.0.1 65536 443\r\n", FRONT_MALFORMED, NULL, 0),
    ROW("v1 two blanks", "PROXY TCP4  203.0.113.9 127.0.0.1 12345 443\r\n", FRONT_MALFORMED, NULL, 0),
    ROW("v1 blank at the end", "PROXY TCP4 203.0.113.9 127.0.0.1 12345 443 \r\n", FRONT_MALFORMED, NULL, 0),
    ROW("v1 one port", "PROXY TCP4 203.0.113.9 127.0.0.1 12345\r\n", FRONT_MALFORMED, NULL, 0),
    ROW("v1 bare LF", "PROXY TCP4 203.0.113.9 127.0.0.1 12345 443\n", FRONT_MALFORMED, NULL, 0),
    ROW("v1 bare CR", "PROXY UNKNOWN\r ", FRONT_MALFORMED, NULL, 0),
    ROW("v1 NUL in it", "PROXY TCP4 203.0.113.9\0 127.0.0.1 12345 443\r\n", FRONT_MALFORMED, NULL, 0),
    ROW("v1 nothing", "PROXY \r\n", FRONT_MALFORMED, NULL, 0),
    ROW("v1 longest", "PROXY UNKNOWN 0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890\r\n", FRONT_WHOLE, NULL, 0),
    ROW("v1 one byte more", "PROXY UNKNOWN 01234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901\r\n", FRONT_MALFORMED, NULL, 0),

    ROW("a request", "GET / HTTP/1.1\r\n", FRONT_NONE, NULL, 0),
    ROW("a method that begins alike", "PROPFIND / HTTP/1.1\r\n", FRONT_NONE, NULL, 0),
    ROW("lower case", "proxy TCP4", FRONT_NONE, NULL, 0),
    ROW("TLS", "\x16\x03\x01\x02", FRONT_NONE, NULL, 0),
    ROW("an empty line", "\r\nGET", FRONT_NONE, NULL, 0),
    ROW("a signature with one byte wrong", "\r\n\r\n\0\r\nQUIt\n", FRONT_NONE, NULL, 0),
};
/* clang-format on */

static void address_text(const uint8_t a[16], char ret[INET6_ADDRSTRLEN])
{
    static const uint8_t mapped[12] = {[10] = 0xff, [11] = 0xff};
    bool v4 = !memcmp(a, mapped, 12);

    inet_ntop(v4 ? AF_INET : AF_INET6, v4 ? a + 12 : a, ret, INET6_ADDRSTRLEN);
}

/* In memory of its own: reading beyond is a sanitizer's find. */
static enum front_header parse(struct str b, size_t *n, bool *has_client, uint8_t client[16])
{
    char *own = malloc(b.n ? b.n : 1);
    memcpy(own, b.p, b.n);
    enum front_header r = front_header_parse((struct str){own, b.n}, n, has_client, client);
    free(own);
    return r;
}

static void test_header(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const struct row *w = &rows[i];
        uint8_t client[16] = {0};
        bool has_client = false;
        size_t n = 0;
        char text[INET6_ADDRSTRLEN] = "";
        enum front_header r = parse(w->bytes, &n, &has_client, client);

        if (has_client)
            address_text(client, text);
        if (r != w->result || has_client != (w->client != NULL) || (w->client && strcmp(text, w->client)) ||
            (r == FRONT_WHOLE && n != w->bytes.n - w->follows))
            fail_msg("%s: result %d n %zu client %s", w->name, (int)r, n, has_client ? text : "none");
    }
}

static void test_header_cut_anywhere(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const struct row *w = &rows[i];
        size_t whole = w->result == FRONT_WHOLE ? w->bytes.n - w->follows : w->bytes.n;
        bool is_bad = false;
        for (size_t n = 0; n < whole; n++) {
            uint8_t client[16];
            bool has_client;
            size_t length;
            enum front_header r = parse(str_sub(w->bytes, 0, n), &length, &has_client, client);
            if (w->result == FRONT_WHOLE || w->result == FRONT_MORE ? r != FRONT_MORE
                                                                    : r != FRONT_MORE && r != w->result)
                fail_msg("%s: the first %zu bytes are %d", w->name, n, (int)r);
            if (is_bad && r == FRONT_MORE)
                fail_msg("%s: bad, and at %zu bytes good again", w->name, n);
            is_bad = r != FRONT_MORE;
        }
    }
}

static void test_header_of_4096_bytes(void **state)
{
    (void)state;
    char b[FRONT_HEADER_MAX + 1] = SIG "\x21\x11\x0f\xf0" V4 "\x04\x0f\xe1";
    uint8_t client[16];
    bool has_client;
    size_t n;

    assert_int_equal(front_header_parse((struct str){b, FRONT_HEADER_MAX}, &n, &has_client, client), FRONT_WHOLE);
    assert_true(has_client);
    assert_int_equal(n, FRONT_HEADER_MAX);
    assert_int_equal(front_header_parse((struct str){b, FRONT_HEADER_MAX - 1}, &n, &has_client, client), FRONT_MORE);
}

static void trust(struct front_trust *t)
{
    memset(t, 0, sizeof *t);
    assert_true(front_trust_add(t, S("127.0.0.0/8")));
    assert_true(front_trust_add(t, S("10.0.0.0/8")));
    assert_true(front_trust_add(t, S("2001:db8:f::/48")));
}

static void test_trust(void **state)
{
    (void)state;
    struct front_trust t;
    uint8_t a[16], zero[16] = {0};

    trust(&t);
    assert_true(addr_parse(S("10.255.0.1"), a) && front_trusts(&t, a));
    assert_true(addr_parse(S("::ffff:10.0.0.1"), a) && front_trusts(&t, a));
    assert_true(addr_parse(S("11.0.0.1"), a) && !front_trusts(&t, a));
    assert_true(addr_parse(S("2001:db8:f::9"), a) && front_trusts(&t, a));
    assert_true(addr_parse(S("2001:db8:e::9"), a) && !front_trusts(&t, a));
    assert_false(front_trusts(&t, zero));
    assert_true(front_trust_add(&t, S("::/0")));
    assert_false(front_trusts(&t, zero)); /* every address is not every unix socket */
    assert_true(front_trust_add(&t, S("unix")));
    assert_true(front_trusts(&t, zero));
    assert_false(front_trust_add(&t, S("10.0.0.0/33")));
    assert_false(front_trust_add(&t, S("somewhere")));
    while (t.n < FRONT_TRUST_MAX)
        assert_true(front_trust_add(&t, S("192.0.2.0/24")));
    assert_false(front_trust_add(&t, S("192.0.2.0/24")));
}

#define XFF "X-Forwarded-For: "
#define FWD "Forwarded: "
#define T8  "10.0.0.1, 10.0.0.2, 10.0.0.3, 10.0.0.4, 10.0.0.5, 10.0.0.6, 10.0.0.7, 10.0.0.8, "
#define F8  "for=10.0.0.1, for=10.0.0.2, for=10.0.0.3, for=10.0.0.4, for=10.0.0.5, for=10.0.0.6, for=10.0.0.7, for=10.0.0.8, "

static const struct {
    const char *fields, *client; /* NULL: the peer's own stands */
} fields[] = {
    {"", NULL},
    {XFF "203.0.113.9\r\n", "203.0.113.9"},
    {XFF "1.1.1.1, 203.0.113.9\r\n", "203.0.113.9"},
    {XFF "1.1.1.1,203.0.113.9\t, 10.0.0.7\r\n", "203.0.113.9"},
    {XFF "1.1.1.1\r\n" XFF "203.0.113.9:4711\r\n", "203.0.113.9"},
    {XFF "203.0.113.9\r\n" XFF "10.0.0.1\r\n", "203.0.113.9"},
    {"x-forwarded-FOR: 203.0.113.9\r\n", "203.0.113.9"},
    {XFF "[2001:db8::1]:99\r\n", "2001:db8::1"},
    {XFF "[2001:db8::1]\r\n", "2001:db8::1"},
    {XFF "2001:db8::2\r\n", "2001:db8::2"},
    {XFF "2001:db8::2, 2001:db8:f::1\r\n", "2001:db8::2"},
    {XFF "::ffff:203.0.113.9\r\n", "203.0.113.9"},
    {XFF "10.0.0.7\r\n", NULL}, /* nobody but trusted proxies */
    {XFF "\r\n", NULL},
    {XFF "1.1.1.1\r\n" XFF "\r\n", NULL},
    {XFF "1.1.1.1,\r\n", NULL},
    {XFF "1.1.1.1, unknown\r\n", NULL},
    {XFF "1.1.1.1, unknown, 10.1.1.1\r\n", NULL},
    {XFF "1.1.1.1, 203.0.113.9 x\r\n", NULL},
    {XFF "1.1.1.1, 203.0.113\r\n", NULL},
    {XFF "1.1.1.1, 203.0.113.009\r\n", NULL},
    {XFF "1.1.1.1, 203.0.113.9:\r\n", NULL},
    {XFF "1.1.1.1, 203.0.113.9:99999\r\n", NULL},
    {XFF "1.1.1.1, [2001:db8::1\r\n", NULL},
    {XFF "1.1.1.1, [2001:db8::1]x\r\n", NULL},
    {XFF "1.1.1.1, [203.0.113.9]\r\n", NULL},
    {XFF "1.1.1.1, []\r\n", NULL},
    {XFF "1.1.1.1, fe80::1%eth0\r\n", NULL},
    {XFF "1.1.1.1, 0.0.0.0\r\n", NULL},
    {XFF "1.1.1.1, ::\r\n", NULL},
    {XFF "1.1.1.1, 203.0.113.9/24\r\n", NULL},
    {XFF "1.1.1.1, 0x7f.1\r\n", NULL},
    {XFF "203.0.113.9, " T8 T8 T8 "10.0.0.1, 10.0.0.1, 10.0.0.1, 10.0.0.1, 10.0.0.1, 10.0.0.1, 10.0.0.1\r\n", "203.0.113.9"},
    {XFF "203.0.113.9, " T8 T8 T8 "10.0.0.1, 10.0.0.1, 10.0.0.1, 10.0.0.1, 10.0.0.1, 10.0.0.1, 10.0.0.1, 10.0.0.1\r\n", NULL},
    {FWD "for=203.0.113.9\r\n", NULL}, /* not the field that is looked at */
    {"X-Forwarded-Fo: 203.0.113.9\r\nX-Real-IP: 203.0.113.9\r\n", NULL},
}, forwarded[] = {
    {"", NULL},
    {FWD "for=203.0.113.9\r\n", "203.0.113.9"},
    {FWD "For=203.0.113.9;proto=https;by=10.0.0.1\r\n", "203.0.113.9"},
    {FWD "proto=https;for=203.0.113.9\r\n", "203.0.113.9"},
    {FWD "for=1.1.1.1, for=203.0.113.9\r\n", "203.0.113.9"},
    {FWD "for=1.1.1.1\r\n" FWD "for=203.0.113.9, for=10.0.0.1\r\n", "203.0.113.9"},
    {FWD "for=\"203.0.113.9:4711\"\r\n", "203.0.113.9"},
    {FWD "for=\"[2001:db8::1]:99\"\r\n", "2001:db8::1"},
    {FWD "for=\"[2001:db8::1]\" ; host=\"a,b;c\"\r\n", "2001:db8::1"},
    {FWD "for=203.0.113.9;host=\"a\\\"b\"\r\n", "203.0.113.9"},
    {FWD "for=1.1.1.1, for=_hidden\r\n", NULL},
    {FWD "for=1.1.1.1, for=unknown\r\n", NULL},
    {FWD "for=1.1.1.1, proto=https\r\n", NULL},
    {FWD "for=1.1.1.1, for=203.0.113.9;for=1.1.1.1\r\n", NULL},
    {FWD "for=1.1.1.1, for=\"203.0.113.9\r\n", NULL},
    {FWD "for=1.1.1.1, for=\"203.0.113.9\\\r\n", NULL},
    {FWD "for=1.1.1.1;x=\", for=203.0.113.9\r\n", NULL},                 /* the quote swallows what the proxy added */
    {FWD "for=1.1.1.1;x=\", for=\"[2001:db8::1]\"\r\n", NULL},
    {FWD "for=1.1.1.1, for=2001:db8::1\r\n", NULL},
    {FWD "for=1.1.1.1, for=\"2001:db8::1\"\r\n", NULL}, /* an IPv6 address has brackets there */
    {FWD "for=1.1.1.1, \"for\"=203.0.113.9\r\n", NULL},
    {FWD "for=1.1.1.1, for = 203.0.113.9\r\n", NULL},
    {FWD "for=1.1.1.1,\r\n", NULL},
    {FWD "for=1.1.1.1;\r\n", NULL},
    {FWD "for=1.1.1.1, for\r\n", NULL},
    {FWD "for=1.1.1.1, for=\r\n", NULL},
    {FWD "\r\n", NULL},
    {FWD "for=1.1.1.1\r\n" FWD "\r\n", NULL},
    {FWD "for=203.0.113.9, " F8 F8 F8 "for=10.0.0.1, for=10.0.0.1, for=10.0.0.1, for=10.0.0.1, for=10.0.0.1, for=10.0.0.1, for=10.0.0.1\r\n", "203.0.113.9"},
    {FWD "for=203.0.113.9, for=203.0.113.8, " F8 F8 F8 F8 "for=10.0.0.1\r\n", NULL},
    {FWD F8 F8 F8 F8 F8 "for=203.0.113.9\r\n", "203.0.113.9"},
    {XFF "203.0.113.9\r\n", NULL},
};

static void check_field(const char *text, const char *wanted, bool (*of)(const struct head *, const struct front_trust *, uint8_t *))
{
    static const struct head_limits limits = {.target_bytes = 4096, .head_bytes = 16384, .fields = 64};
    struct front_trust t;
    struct strbuf b = {0};
    struct head h;
    const char *why;
    uint8_t client[16];
    char got[INET6_ADDRSTRLEN] = "none";

    trust(&t);
    sb_addf(&b, "GET / HTTP/1.1\r\nHost: a\r\n%s\r\n", text);
    assert_int_equal(head_parse(sb_str(&b), &limits, &h, &why), 0);
    if (of(&h, &t, client))
        address_text(client, got);
    if (strcmp(got, wanted ? wanted : "none"))
        fail_msg("%s: %s", text, got);
    sb_free(&b);
}

static void test_fields(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        check_field(fields[i].fields, fields[i].client, front_forwarded_for);
    for (size_t i = 0; i < sizeof forwarded / sizeof *forwarded; i++)
        check_field(forwarded[i].fields, forwarded[i].client, front_forwarded);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_header), cmocka_unit_test(test_header_cut_anywhere), cmocka_unit_test(test_header_of_4096_bytes),
        cmocka_unit_test(test_trust),  cmocka_unit_test(test_fields),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
