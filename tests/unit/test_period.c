/* period.c: what a period is, and the calendar. Its source is no part of the library. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "../../admin/period.c"

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

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_parse), cmocka_unit_test(test_add)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
