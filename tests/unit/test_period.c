/* period.c: what a period is, and the calendar. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "pullgate/clock.h"
#include "pullgate/period.h"

static void test_parse(void **state)
{
    static const struct {
        const char *in;
        int64_t months, days, seconds; /* all 0: refused */
    } rows[] = {
        {"P1M", 1, 0, 0},      {"P1Y", 12, 0, 0},         {"P14D", 0, 14, 0},   {"P2W", 0, 14, 0},     {"P1Y2M3W4D", 14, 25, 0},
        {"P100Y", 1200, 0, 0}, {"7d", 0, 0, 604800},      {"12h", 0, 0, 43200}, {"1s", 0, 0, 1},       {"", 0, 0, 0},
        {"P", 0, 0, 0},        {"P1", 0, 0, 0},           {"PM", 0, 0, 0},      {"P0M", 0, 0, 0},      {"P0D", 0, 0, 0},
        {"P1H", 0, 0, 0},      {"PT1H", 0, 0, 0},         {"P-1M", 0, 0, 0},    {"P+1M", 0, 0, 0},     {"P1D1M", 0, 0, 0},
        {"P1M1M", 0, 0, 0},    {"P1.5M", 0, 0, 0},        {"p1m", 0, 0, 0},     {"1M", 0, 0, 0},       {"P1M ", 0, 0, 0},
        {" P1M", 0, 0, 0},     {"P101Y", 0, 0, 0},        {"P99999D", 0, 0, 0}, {"P999999D", 0, 0, 0}, {"0s", 0, 0, 0},
        {"10ms", 0, 0, 0},     {"99999999999d", 0, 0, 0}, {"7", 0, 0, 0},
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct period p = {0};
        struct error error = {0};
        enum err err = period_parse(str_c(rows[i].in), &p, &error);
        bool want = rows[i].months || rows[i].days || rows[i].seconds;
        if ((err == ERR_OK) != want || p.months != rows[i].months || p.days != rows[i].days || p.seconds != rows[i].seconds)
            fail_msg("\"%s\": err %d, %lld months %lld days %lld s", rows[i].in, err, (long long)p.months, (long long)p.days,
                     (long long)p.seconds);
    }
}

static void test_add(void **state)
{
    static const struct {
        const char *from, *period, *zone, *to; /* to NULL: refused */
    } rows[] = {
        {"2026-01-31T12:00:00Z", "P1M", "UTC", "2026-02-28T12:00:00Z"},
        {"2024-01-31T12:00:00Z", "P1M", "UTC", "2024-02-29T12:00:00Z"},
        {"2026-01-31T12:00:00Z", "P2M", "UTC", "2026-03-31T12:00:00Z"},
        {"2024-02-29T00:00:00Z", "P1Y", "UTC", "2025-02-28T00:00:00Z"},
        {"2024-02-29T00:00:00Z", "P4Y", "UTC", "2028-02-29T00:00:00Z"},
        {"2026-12-31T23:59:59Z", "P1D", "UTC", "2027-01-01T23:59:59Z"},
        {"2026-12-15T08:00:00Z", "P1M", "UTC", "2027-01-15T08:00:00Z"},
        {"2026-01-30T00:00:00Z", "P1M1D", "UTC", "2026-03-01T00:00:00Z"}, /* months first, then days */
        {"2026-03-01T00:00:00Z", "36h", "UTC", "2026-03-02T12:00:00Z"},
        /* the end of a day stays the end of a day, whatever the clocks do in between */
        {"2026-02-28T22:59:59Z", "P1M", "Europe/Berlin", "2026-03-28T22:59:59Z"},
        {"2026-02-28T22:59:59Z", "P2M", "Europe/Berlin", "2026-04-28T21:59:59Z"},
        {"2026-03-28T22:59:59Z", "P1D", "Europe/Berlin", "2026-03-29T21:59:59Z"},
        {"2026-10-24T21:59:59Z", "P1D", "Europe/Berlin", "2026-10-25T22:59:59Z"},
        {"2026-01-31T14:59:59Z", "P1M", "Asia/Tokyo", "2026-02-28T14:59:59Z"},
        {"2026-07-05T03:59:59Z", "P6M", "America/New_York", "2027-01-05T04:59:59Z"},
        /* near midnight the day is the zone's, not UTC's */
        {"2026-01-31T20:00:00Z", "P1M", "Asia/Tokyo", "2026-02-28T20:00:00Z"},       /* 1 February there */
        {"2026-02-01T03:00:00Z", "P1M", "America/New_York", "2026-03-01T03:00:00Z"}, /* 31 January there: the last of February */
        {"9999-12-01T00:00:00Z", "P1Y", "UTC", NULL},
        {"9990-12-01T00:00:00Z", "P100Y", "UTC", NULL},
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct period p;
        struct error error = {0};
        int64_t from, to = 0;
        char text[CLOCK_RFC3339_MAX] = "refused";
        assert_int_equal(clock_parse_instant(str_c(rows[i].from), &from, NULL), ERR_OK);
        assert_int_equal(period_parse(str_c(rows[i].period), &p, NULL), ERR_OK);
        if (period_add(from, &p, rows[i].zone, &to, &error) == ERR_OK)
            clock_rfc3339(to, text);
        if (!str_eq(str_c(text), str_c(rows[i].to ? rows[i].to : "refused")))
            fail_msg("%s + %s in %s: %s", rows[i].from, rows[i].period, rows[i].zone, text);
    }
}

/* ---- properties -------------------------------------------------------------------------------- */

static const char *const ZONES[] = {"UTC", "Europe/Berlin", "America/New_York", "Asia/Tokyo", "Australia/Lord_Howe", "Pacific/Apia", "America/Santiago", "America/Nuuk", "Africa/Cairo"};
#define N_ZONES (sizeof ZONES / sizeof *ZONES)

static uint64_t seed = 88172645463325252u; /* xorshift: the same cases in every run */

static int64_t below(int64_t n)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (int64_t)(seed % (uint64_t)n);
}

static void wall_of(int64_t t, const char *zone, int ret[3], int64_t *ret_second)
{
    int64_t wall;
    char text[CLOCK_RFC3339_MAX];
    assert_int_equal(clock_wall(t, zone, &wall), ERR_OK);
    assert_int_equal(sscanf(clock_date(wall, text), "%d-%d-%d", &ret[0], &ret[1], &ret[2]), 3);
    *ret_second = wall % 86400;
}

static int last_day(int y, int m)
{
    static const int days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    return m == 2 && ((y % 4 == 0 && y % 100 != 0) || y % 400 == 0) ? 29 : days[m - 1];
}

/* n renewals of one period lead where one of n periods leads: by no order of renewing is a day won or lost. */
static void test_renewals_are_associative(void **state)
{
    (void)state;
    for (int round = 0; round < 1500; round++) {
        const char *zone = ZONES[below((int64_t)N_ZONES)];
        int64_t months = 1 + below(14), start = 946684800 + below(INT64_C(60) * 365 * 86400), t = start;
        int n = 1 + (int)below(40), anchor = 0;
        if (below(2)) { /* the end of a day, as a date gives it */
            int64_t wall;
            assert_int_equal(clock_wall(t, zone, &wall), ERR_OK);
            assert_int_equal(clock_of_wall(wall - wall % 86400 + 86399, zone, &t), ERR_OK);
            start = t;
        }
        struct period once = {.months = months}, all = {.months = months * n};
        for (int i = 0; i < n; i++)
            assert_int_equal(period_add_anchored(t, &once, zone, anchor, &t, &anchor, NULL), ERR_OK);
        int64_t want;
        assert_int_equal(period_add(start, &all, zone, &want, NULL), ERR_OK);
        int a[3], b[3];
        int64_t sa, sb;
        wall_of(t, zone, a, &sa);
        wall_of(want, zone, b, &sb);
        /* Where the clocks skip the very time of day, the day holds and the time moves by the gap. */
        if (a[0] != b[0] || a[1] != b[1] || a[2] != b[2])
            fail_msg("%s: %lld + %d x P%lldM: %d-%d-%d, at once %d-%d-%d", zone, (long long)start, n, (long long)months, a[0], a[1], a[2], b[0], b[1], b[2]);
    }
}

/* A month more is the next month, the meant day of it or its last, and the same time on the wall unless the clocks skip that. */
static void test_a_month_is_the_next_month(void **state)
{
    (void)state;
    for (int round = 0; round < 4000; round++) {
        const char *zone = ZONES[below((int64_t)N_ZONES)];
        int64_t t = 946684800 + below(INT64_C(80) * 365 * 86400), to, sa, sb;
        int a[3], b[3], anchor = below(3) ? 0 : 28 + (int)below(4), left;
        struct period p = {.months = 1};
        wall_of(t, zone, a, &sa);
        if (anchor && a[2] != (anchor < last_day(a[0], a[1]) ? anchor : last_day(a[0], a[1])))
            anchor = 0;
        assert_int_equal(period_add_anchored(t, &p, zone, anchor, &to, &left, NULL), ERR_OK);
        wall_of(to, zone, b, &sb);
        int y = a[1] == 12 ? a[0] + 1 : a[0], m = a[1] == 12 ? 1 : a[1] + 1, meant = anchor ? anchor : a[2];
        int day = meant < last_day(y, m) ? meant : last_day(y, m);
        int64_t shift = sb > sa ? sb - sa : sa - sb;
        if (b[0] != y || b[1] != m || b[2] != day || left != (day == meant ? 0 : meant) || shift > 3600)
            fail_msg("%s: %lld anchor %d: %d-%d-%d left %d, %lld s of the day from %lld", zone, (long long)t, anchor, b[0], b[1], b[2], left,
                     (long long)sb, (long long)sa);
        /* Bounds: 28 to 31 days, but for an hour or two of the clocks and the day that Apia skipped. */
        int64_t grown = to - t;
        if (grown < 27 * 86400 - 7200 || grown > 31 * 86400 + 7200 || to <= t)
            fail_msg("%s: a month of %lld s", zone, (long long)grown);
    }
}

/* More is later, and never earlier: t < u gives t + p <= u + p, and a longer period ends no earlier. */
static void test_order_is_kept(void **state)
{
    (void)state;
    for (int round = 0; round < 3000; round++) {
        const char *zone = ZONES[below((int64_t)N_ZONES)];
        int64_t t = 946684800 + below(INT64_C(60) * 365 * 86400), u = t + 7201 + below(400 * INT64_C(86400)), tp, up, tq;
        struct period p = {.months = below(30), .days = below(40)}, q = {.months = p.months + below(5), .days = p.days + below(5)};
        if (!p.months && !p.days)
            continue;
        assert_int_equal(period_add(t, &p, zone, &tp, NULL), ERR_OK);
        assert_int_equal(period_add(u, &p, zone, &up, NULL), ERR_OK);
        assert_int_equal(period_add(t, &q, zone, &tq, NULL), ERR_OK);
        /* Ends of months clip: two days of one month may lead to one day, where only the time of day tells them apart. */
        if (tp <= t || tp > up + 86400 || tq < tp)
            fail_msg("%s: %lld and %lld + %lldM%lldD: %lld, %lld, longer %lld", zone, (long long)t, (long long)u, (long long)p.months,
                     (long long)p.days, (long long)tp, (long long)up, (long long)tq);
    }
}

static void test_anchor(void **state)
{
    static const char *const ends[] = {"2027-02-28T23:59:59Z", "2027-03-31T23:59:59Z", "2027-04-30T23:59:59Z", "2027-05-31T23:59:59Z"};
    int64_t t;
    int anchor = 0;
    struct period p = {.months = 1};
    char text[CLOCK_RFC3339_MAX];
    (void)state;
    assert_int_equal(clock_parse_expiry(S("2027-01-31"), "UTC", &t, NULL), ERR_OK);
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        assert_int_equal(period_add_anchored(t, &p, "UTC", anchor, &t, &anchor, NULL), ERR_OK);
        assert_string_equal(clock_rfc3339(t, text), ends[i]);
    }
    /* 29 February, year after year. */
    struct period year = {.months = 12};
    assert_int_equal(clock_parse_expiry(S("2028-02-29"), "Europe/Berlin", &t, NULL), ERR_OK);
    anchor = 0;
    for (int i = 0; i < 4; i++)
        assert_int_equal(period_add_anchored(t, &year, "Europe/Berlin", anchor, &t, &anchor, NULL), ERR_OK);
    assert_string_equal(clock_rfc3339(t, text), "2032-02-29T22:59:59Z");
    /* Days end it. */
    struct period days = {.days = 3};
    assert_int_equal(period_add_anchored(t, &days, "Europe/Berlin", 31, &t, &anchor, NULL), ERR_OK);
    assert_int_equal(anchor, 0);
    assert_string_equal(clock_rfc3339(t, text), "2032-03-03T22:59:59Z");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_parse),           cmocka_unit_test(test_add),
        cmocka_unit_test(test_anchor),          cmocka_unit_test(test_renewals_are_associative),
        cmocka_unit_test(test_order_is_kept),   cmocka_unit_test(test_a_month_is_the_next_month),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
