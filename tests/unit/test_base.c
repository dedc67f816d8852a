/* Strings, JSON, clock texts and the loop: the ground everything stands on. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <pthread.h>
#include <cmocka.h>

#include "pullgate/clock.h"
#include "pullgate/jv.h"
#include "pullgate/loop.h"
#include "pullgate/mem.h"
#include "pullgate/seal.h"
#include "pullgate/str.h"

static void test_str_to_u64(void **state)
{
    static const struct {
        const char *in;
        bool ok;
        uint64_t want;
    } cases[] = {{"0", true, 0},
                 {"18446744073709551615", true, UINT64_MAX},
                 {"18446744073709551616", false, 0},
                 {"", false, 0},
                 {"-1", false, 0},
                 {"+1", false, 0},
                 {"1 ", false, 0}};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint64_t v = 0;
        assert_int_equal(str_to_u64(str_c(cases[i].in), &v), cases[i].ok);
        assert_true(v == cases[i].want);
    }
}

static void test_json_escaping(void **state)
{
    struct strbuf b = {0};
    (void)state;
    sb_add_json(&b, (struct str){"a\"\\\n\x01\0\xff\xc3\xa4", 9});
    assert_string_equal(b.p, "\"a\\\"\\\\\\n\\u0001\\u0000\\u00ff\xc3\xa4\"");
    sb_free(&b);
}

static void test_a_buffer_always_ends(void **state)
{
    struct strbuf b = {0};
    (void)state;
    for (size_t i = 0; i < 64; i++) /* heap bytes that are not zero */
        sb_add_char(&b, 'x');
    sb_free(&b);
    sb_reserve(&b, 8);
    assert_string_equal(b.p, "");
    sb_free(&b);
    base64_encode(S(""), &b);
    assert_string_equal(sb_str(&b).p, "");
    sb_free(&b);
}

static void test_json_limits(void **state)
{
    static const struct {
        const char *in;
        enum err want;
    } cases[] = {{"{\"a\":[1,2,{\"b\":null}]}", ERR_OK}, {"{\"a\":1,\"a\":2}", ERR_INVALID}, {"[[[[[1]]]]]", ERR_INVALID},
                 {"[1,2,3,4,5,6,7,8,9,10]", ERR_TOO_LARGE},  {"{} x", ERR_INVALID},              {"", ERR_INVALID}};
    static const struct jv_limits lim = {1000, 10, 4};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct jv *v = NULL;
        assert_int_equal(jv_parse(str_c(cases[i].in), &lim, &v, NULL), cases[i].want);
        jv_free(v);
    }
}

static void test_instants(void **state)
{
    static const struct {
        const char *in;
        bool ok;
        int64_t want;
    } cases[] = {{"1970-01-01T00:00:00Z", true, 0},
                 {"2026-03-01T23:59:59Z", true, 1772409599},
                 {"2026-03-01T23:59:59.999999999Z", true, 1772409599},
                 {"2026-03-02T00:59:59+01:00", true, 1772409599},
                 {"2024-02-29T00:00:00Z", true, 1709164800},
                 {"2023-02-29T00:00:00Z", false, 0},
                 {"2026-03-01T24:00:00Z", false, 0},
                 {"2026-03-01 23:59:59Z", false, 0},
                 {"2026-03-01T23:59:59", false, 0},
                 {"2026-13-01T00:00:00Z", false, 0},
                 {"2026-03-01T23:59:59Zx", false, 0}};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int64_t t = 0;
        assert_int_equal(clock_parse_instant(str_c(cases[i].in), &t, NULL) == ERR_OK, cases[i].ok);
        assert_true(t == cases[i].want);
    }
}

/* A day begins with its first second, also where midnight is skipped or comes twice; a time that is skipped is the one after the gap. */
static void test_start_of_day_and_gaps(void **state)
{
    static const struct {
        const char *in, *zone, *want;
    } cases[] = {{"2026-03-01", "Europe/Berlin", "2026-02-28T23:00:00Z"},
                 {"2025-04-25", "Africa/Cairo", "2025-04-24T22:00:00Z"},     /* 01:00 is its first */
                 {"2025-09-07", "America/Santiago", "2025-09-07T04:00:00Z"},
                 {"2025-10-26", "Atlantic/Azores", "2025-10-26T00:00:00Z"},  /* the first of two */
                 {"2025-11-02", "America/Havana", "2025-11-02T04:00:00Z"}};
    static const struct {
        int64_t wall;
        const char *zone, *want;
    } walls[] = {{1774751400, "Europe/Berlin", "2026-03-29T01:30:00Z"},      /* 02:30 on 29 March 2026 */
                 {1772937000, "America/New_York", "2026-03-08T07:30:00Z"},   /* 02:30 on 8 March 2026 */
                 {1745541000, "Africa/Cairo", "2025-04-24T22:30:00Z"},       /* 00:30 on 25 April 2025 */
                 {1743289200, "America/Nuuk", "2025-03-30T00:00:00Z"},       /* 23:00 on 29 March 2025: the day holds */
                 {1792895400, "Europe/Berlin", "2026-10-25T01:30:00Z"}};        /* 02:30 on 25 October 2026: the later */
    char buf[CLOCK_RFC3339_MAX];
    int64_t t;
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(clock_parse_start(str_c(cases[i].in), cases[i].zone, &t, NULL), ERR_OK);
        assert_string_equal(clock_rfc3339(t, buf), cases[i].want);
    }
    for (size_t i = 0; i < sizeof walls / sizeof *walls; i++) {
        assert_int_equal(clock_of_wall(walls[i].wall, walls[i].zone, &t), ERR_OK);
        assert_string_equal(clock_rfc3339(t, buf), walls[i].want);
    }
}

static void test_expiry_is_end_of_day_in_zone(void **state)
{
    static const struct {
        const char *in, *zone, *want;
    } cases[] = {{"2026-03-01", "", "2026-03-01T23:59:59Z"},
                 {"2026-03-01", "Europe/Berlin", "2026-03-01T22:59:59Z"},
                 {"2026-07-01", "Europe/Berlin", "2026-07-01T21:59:59Z"},
                 {"2026-03-29", "Europe/Berlin", "2026-03-29T21:59:59Z"},  /* the day summer time begins */
                 {"2026-10-25", "Europe/Berlin", "2026-10-25T22:59:59Z"},  /* and ends */
                 {"2060-07-01", "Europe/Berlin", "2060-07-01T21:59:59Z"},  /* beyond the file's table: its footer */
                 {"2026-03-01", "America/New_York", "2026-03-02T04:59:59Z"},
                 {"2026-07-01", "Asia/Kolkata", "2026-07-01T18:29:59Z"},
                 {"2025-03-29", "America/Nuuk", "2025-03-30T00:59:59Z"},  /* its last hour is skipped */
                 {"2025-10-25", "America/Nuuk", "2025-10-26T01:59:59Z"},  /* and comes twice */
                 {"2025-10-25", "Atlantic/Azores", "2025-10-25T23:59:59Z"},
                 {"2026-01-15", "Australia/Sydney", "2026-01-15T12:59:59Z"}};
    char buf[CLOCK_RFC3339_MAX];
    int64_t t;
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(clock_parse_expiry(str_c(cases[i].in), cases[i].zone, &t, NULL), ERR_OK);
        assert_string_equal(clock_rfc3339(t, buf), cases[i].want);
    }
    assert_int_equal(clock_parse_expiry(S("2026-03-01"), "Nowhere/Land", &t, NULL), ERR_INVALID);
    assert_int_equal(clock_parse_expiry(S("2026-03-01"), "../../etc/passwd", &t, NULL), ERR_INVALID);
}

static void test_durations_and_sizes(void **state)
{
    uint64_t v;
    (void)state;
    assert_int_equal(clock_parse_duration(S("250ms"), &v, NULL), ERR_OK);
    assert_int_equal(v, 250);
    assert_int_equal(clock_parse_duration(S("7d"), &v, NULL), ERR_OK);
    assert_int_equal(v, 604800000);
    assert_int_equal(clock_parse_duration(S("5"), &v, NULL), ERR_INVALID);
    assert_int_equal(clock_parse_duration(S("99999999999999999d"), &v, NULL), ERR_INVALID);
    assert_int_equal(clock_parse_size(S("50GiB"), &v, NULL), ERR_OK);
    assert_true(v == 50ULL << 30);
    assert_int_equal(clock_parse_size(S("1GB"), &v, NULL), ERR_INVALID);
}

struct count {
    struct loop *loop;
    int n;
};

static void count_up(void *arg)
{
    struct count *c = arg;
    if (++c->n == 3)
        loop_stop(c->loop);
}

static void *post_from_thread(void *arg)
{
    struct count *c = arg;
    loop_post(c->loop, count_up, c);
    return NULL;
}

/* Every byte counts, none behind the end does, wherever the bytes lie. */
static void test_hashes_take_every_byte(void **state)
{
    char a[64], b[64];
    (void)state;
    for (size_t n = 0; n <= 40; n++) {
        memset(a, 'a', sizeof a);
        memset(b, 'b', sizeof b);
        memset(b + 3, 'a', n);
        struct str x = {a, n}, y = {b + 3, n};
        struct str_mark mark = str_mark(x), same = str_mark(y);
        assert_true(str_hash(x) == str_hash(y) && mark.a == same.a && mark.b == same.b);
        assert_true(str_hash(x) != str_hash((struct str){a, n + 1}));
        for (size_t i = 0; i < n; i++) {
            b[3 + i] ^= 1;
            struct str_mark other = str_mark(y);
            assert_true(str_hash(x) != str_hash(y) && mark.a != other.a && mark.b != other.b);
            b[3 + i] ^= 1;
        }
    }
}

static void test_held_clock_stands_still(void **state)
{
    (void)state;
    int64_t before = clock_now_ms();
    uint64_t mono_before = clock_mono_ms();
    clock_hold();
    int64_t now = clock_now_ms(), now_s = clock_now_s();
    uint64_t mono = clock_mono_ms(), us = clock_mono_us();
    assert_true(now >= before && mono >= mono_before && now_s == now / 1000);
    while (clock_mono_us() < us + 5000)
        ;
    assert_true(clock_now_ms() == now && clock_mono_ms() == mono && clock_now_s() == now_s);
    clock_release();
    assert_true(clock_mono_ms() >= mono + 4 && clock_now_ms() > now);
    clock_hold(); /* the next one does not begin with the last one's time */
    assert_true(clock_mono_ms() >= mono + 4);
    clock_release();
}

static void test_loop(void **state)
{
    struct count c = {loop_new(), 0};
    pthread_t thread;
    (void)state;
    struct timer *t = timer_new(c.loop, count_up, &c);
    timer_set(t, 5);
    loop_defer(c.loop, count_up, &c);
    assert_int_equal(pthread_create(&thread, NULL, post_from_thread, &c), 0);
    loop_run(c.loop);
    pthread_join(thread, NULL);
    assert_int_equal(c.n, 3);
    timer_free(&t);
    loop_free(c.loop);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_str_to_u64),      cmocka_unit_test(test_json_escaping),
        cmocka_unit_test(test_a_buffer_always_ends), cmocka_unit_test(test_json_limits),     cmocka_unit_test(test_instants),
        cmocka_unit_test(test_start_of_day_and_gaps), cmocka_unit_test(test_expiry_is_end_of_day_in_zone), cmocka_unit_test(test_durations_and_sizes),
        cmocka_unit_test(test_hashes_take_every_byte), cmocka_unit_test(test_held_clock_stands_still), cmocka_unit_test(test_loop),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
