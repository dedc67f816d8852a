/* The URL work and the address policy; transfers themselves are tested against scripted servers (tests/integration). */
#include "pullgate/fetch.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "pullgate/mem.h"

static void test_url_parse(void **state)
{
    (void)state;
    static const struct {
        const char *in, *out; /* scheme|host|port|path_query; NULL: refused */
    } rows[] = {
        {"http://a.example", "http|a.example|80|/"},
        {"https://a.example", "https|a.example|443|/"},
        {"HTTPS://A.Example:5000/v2/?x=1&y=2", "https|a.example|5000|/v2/?x=1&y=2"},
        {"http://a/b/../c/./d//e", "http|a|80|/b/../c/./d//e"},
        {"http://[::1]:8080/x", "http|[::1]|8080|/x"},
        {"http://a/x#frag", "http|a|80|/x"},
        {"http://a?q", "http|a|80|/?q"},
        {"http://127.1/x", "http|127.0.0.1|80|/x"},
        {"http://0x7f000001/x", "http|127.0.0.1|80|/x"},
        {"http://2130706433/", "http|127.0.0.1|80|/"},
        {"ftp://a/x", NULL},
        {"file:///etc/passwd", NULL},
        {"gopher://a/", NULL},
        {"a.example/x", NULL},
        {"//a/x", NULL},
        {"/x", NULL},
        {"", NULL},
        {"http://", NULL},
        {"http:///x", NULL},
        {"http://user@a/", NULL},
        {"http://user:pw@a/", NULL},
        {"http://good.example@evil.example/", NULL},
        {"http://a:0/", NULL},
        {"http://a:65536/", NULL},
        {"http://a:99999999999999999999/", NULL},
        {"http://a:-1/", NULL},
        {"http://a:8x/", NULL},
        {"http://a b/", NULL},
        {"http://a/b c", NULL},
        {"http://a\\@b/", NULL},
        {"http://a/\r\nX: y", NULL},
        {"http://a/\x7f", NULL},
        {"http://\xc3\xa4.example/", NULL},
        {"http://[fe80::1%25eth0]/", NULL},
        {"http://a%00b/", NULL},
        {"http://a%2fb/", NULL},
        {"http://[::1/", NULL},
        {"javascript:alert(1)", NULL},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct fetch_url u = {0};
        struct error e = {0};
        char got[1024] = "";
        if (fetch_url_parse(rows[i].in, &u, &e) == ERR_OK)
            snprintf(got, sizeof got, "%s|%s|%u|%s", u.scheme, u.host, u.port, u.path_query);
        else
            assert_true(e.text[0]);
        if (strcmp(got, rows[i].out ? rows[i].out : "") != 0)
            fail_msg("%s gives \"%s\"", rows[i].in, got);
        fetch_url_free(&u);
    }
    char host[400] = "http://";
    memset(host + 7, 'a', 300);
    struct fetch_url u = {0};
    assert_int_equal(fetch_url_parse(host, &u, NULL), ERR_INVALID);
}

static void test_url_join(void **state)
{
    (void)state;
    static const struct {
        const char *base, *reference, *out;
    } rows[] = {
        {"https://a/v2/x/blobs/y?z=1", "/other?q=%2F", "https://a/other?q=%2F"},
        {"https://a/v2/x", "https://b:1/c", "https://b:1/c"},
        {"https://a/v2/x", "http://a/c", "http://a/c"},
        {"https://a/v2/x", "//b/c", "https://b/c"},
        {"https://a:5/v2/tags/list?n=2", "?n=2&last=b", "https://a:5/v2/tags/list?n=2&last=b"},
        {"https://a/v2/tags/list", "list?last=b", "https://a/v2/tags/list?last=b"},
        {"https://a/x", "/y#frag", "https://a/y"},
        {"https://a/x", "/y z", NULL},
        {"https://a/x", "", NULL},
        {"https://a/x", "/y\r\nHost: evil", NULL},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char *got = NULL;
        enum err err = fetch_url_join(rows[i].base, rows[i].reference, &got);
        if (err ? rows[i].out != NULL : !rows[i].out || strcmp(got, rows[i].out) != 0)
            fail_msg("%s + %s gives %s", rows[i].base, rows[i].reference, err ? "an error" : got);
        mem_free(got);
    }
    /* What joins to another scheme is still refused where it counts. */
    static const char *const refused[] = {"file:///etc/passwd", "ftp://a/x", "gopher://a:70/x", "dict://a/x"};
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        char *got = NULL;
        struct fetch_url u = {0};
        if (fetch_url_join("https://a/x", refused[i], &got) == ERR_OK)
            assert_int_not_equal(fetch_url_parse(got, &u, NULL), ERR_OK);
        mem_free(got);
        fetch_url_free(&u);
    }
}

static void test_addresses(void **state)
{
    (void)state;
    static const char *const public[] = {"1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255",
                                         "128.0.0.1", "169.253.0.1", "169.255.0.1", "172.15.255.255", "172.32.0.0", "192.167.1.1", "192.169.0.1",
                                         "198.17.0.1", "198.20.0.1", "223.255.255.255", "2606:4700::1111", "2a00:1450::1", "64:ff9b::101:101",
                                         "2002:101:101::1"};
    static const char *const denied[] = {"0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.127.255.255", "127.0.0.1",
                                         "127.255.255.255", "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.1", "192.0.2.1",
                                         "192.168.0.1", "198.18.0.1", "198.19.255.255", "198.51.100.7", "203.0.113.9", "224.0.0.1",
                                         "239.255.255.255", "240.0.0.1", "255.255.255.255", "::", "::1", "::ffff:127.0.0.1", "::ffff:8.8.8.8",
                                         "::127.0.0.1", "fe80::1", "fec0::1", "fc00::1", "fd12:3456::1", "ff02::1", "64:ff9b::7f00:1",
                                         "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2002:7f00:1::1", "2002:a00:1::", "2001::1", "2001:db8::1",
                                         "3fff::1", "100::1", "localhost", "", "1.2.3", "1.2.3.4.5"};
    for (size_t i = 0; i < sizeof public / sizeof *public; i++)
        if (!fetch_address_public(public[i]))
            fail_msg("%s denied", public[i]);
    for (size_t i = 0; i < sizeof denied / sizeof *denied; i++)
        if (fetch_address_public(denied[i]))
            fail_msg("%s allowed", denied[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_url_parse),
        cmocka_unit_test(test_url_join),
        cmocka_unit_test(test_addresses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
