/* money.c: decimal strings, minor units, shares. Its source is no part of the library. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "../../admin/money.c"

static void test_digits(void **state)
{
    static const struct {
        const char *currency;
        int digits;
    } rows[] = {{"EUR", 2}, {"USD", 2}, {"JPY", 0}, {"KRW", 0}, {"KWD", 3}, {"TND", 3}, {"CLF", 4}, {"XAF", 0},
                {"eur", -1}, {"EU", -1}, {"EURO", -1}, {"", -1},  {"E R", -1}, {"E1R", -1}, {"   ", -1}};
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (money_digits(str_c(rows[i].currency)) != rows[i].digits)
            fail_msg("%s: %d", rows[i].currency, money_digits(str_c(rows[i].currency)));
}

static void test_parse_and_print(void **state)
{
    static const struct {
        const char *in;
        int digits;
        int64_t minor;     /* -1: refused */
        const char *shown; /* NULL: as it came */
    } rows[] = {
        {"19.99", 2, 1999, NULL},
        {"20", 2, 2000, "20.00"},
        {"0.5", 2, 50, "0.50"},
        {"0.05", 2, 5, NULL},
        {"0", 2, 0, "0.00"},
        {"0.00", 2, 0, NULL},
        {"007", 2, 700, "7.00"},
        {"1990", 0, 1990, NULL},
        {"1.5", 3, 1500, "1.500"},
        {"1.234", 3, 1234, NULL},
        {"0.0001", 4, 1, NULL},
        {"10000000000000.00", 2, MONEY_MAX, NULL},
        {"10000000000000.01", 2, -1, NULL},
        {"1000000000000000", 0, MONEY_MAX, NULL},
        {"1000000000000001", 0, -1, NULL},
        {"99999999999999999999", 2, -1, NULL},
        {"18446744073709551615", 4, -1, NULL},
        {"1.999", 2, -1, NULL},
        {"1.0", 0, -1, NULL},
        {"1.", 2, -1, NULL},
        {".5", 2, -1, NULL},
        {"", 2, -1, NULL},
        {"-1", 2, -1, NULL},
        {"+1", 2, -1, NULL},
        {"1e3", 2, -1, NULL},
        {" 1", 2, -1, NULL},
        {"1,5", 2, -1, NULL},
        {"1.2.3", 2, -1, NULL},
        {"NaN", 2, -1, NULL},
        {"1", -1, -1, NULL},
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        int64_t minor = -1;
        char text[MONEY_TEXT_MAX];
        struct error error = {0};
        enum err err = money_parse(str_c(rows[i].in), rows[i].digits, &minor, &error);
        if (err != (rows[i].minor < 0 ? ERR_INVALID : ERR_OK) || minor != rows[i].minor)
            fail_msg("\"%s\" with %d digits: err %d, %lld", rows[i].in, rows[i].digits, err, (long long)minor);
        if (!err)
            assert_string_equal(money_text(minor, rows[i].digits, text), rows[i].shown ? rows[i].shown : rows[i].in);
    }
}

/* What is printed is read as the same amount, at the edges and in between. */
static void test_there_and_back(void **state)
{
    (void)state;
    for (int digits = 0; digits <= 4; digits++)
        for (int64_t minor = 0; minor <= MONEY_MAX; minor = minor * 3 + 1) {
            char text[MONEY_TEXT_MAX];
            int64_t back = -1;
            assert_int_equal(money_parse(str_c(money_text(minor, digits, text)), digits, &back, NULL), ERR_OK);
            assert_int_equal(back, minor);
        }
}

static void test_share(void **state)
{
    static const struct {
        int64_t minor, hundredths, share;
    } rows[] = {
        {1999, 1000, 200}, /* 199.9 */
        {1, 5000, 1},      /* half a cent: up */
        {3, 5000, 2},      {1, 4999, 0},          {0, 10000, 0},         {12345, 10000, 12345},   {10, 333, 0},
        {15, 333, 0},      {16, 333, 1},          {999999, 1250, 125000}, {MONEY_MAX, 10000, MONEY_MAX},
        {MONEY_MAX, 1, MONEY_MAX / 10000},
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (money_share(rows[i].minor, rows[i].hundredths) != rows[i].share)
            fail_msg("%lld of %lld: %lld", (long long)rows[i].hundredths, (long long)rows[i].minor,
                     (long long)money_share(rows[i].minor, rows[i].hundredths));
    for (int64_t minor = 0; minor < 30000; minor += 7) /* by another way: twice the amount, plus one, halved */
        for (int64_t p = 1; p <= 10000; p += 499)
            assert_int_equal(money_share(minor, p), (2 * minor * p + 10000) / 20000);
}

static void test_percent(void **state)
{
    static const struct {
        const char *in;
        int64_t hundredths; /* 0: refused */
    } rows[] = {{"15", 1500}, {"12.5", 1250}, {"0.01", 1}, {"100", 10000}, {"100.00", 10000}, {"100.01", 0}, {"0", 0},
                {"0.00", 0},  {"0.001", 0},   {"-5", 0},   {"5%", 0},      {"", 0},           {"1000", 0}};
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        int64_t v = 0;
        enum err err = money_percent_parse(str_c(rows[i].in), &v, NULL);
        if ((err == ERR_OK) != (rows[i].hundredths != 0) || v != rows[i].hundredths)
            fail_msg("\"%s\": err %d, %lld", rows[i].in, err, (long long)v);
    }
}

static void test_times(void **state)
{
    int64_t v = -7;
    (void)state;
    assert_int_equal(money_times(1999, 12, &v, NULL), ERR_OK);
    assert_int_equal(v, 23988);
    assert_int_equal(money_times(1999, 0, &v, NULL), ERR_OK);
    assert_int_equal(v, 0);
    assert_int_equal(money_times(MONEY_MAX, 2, &v, NULL), ERR_INVALID);
    assert_int_equal(money_times(MONEY_MAX, INT64_MAX, &v, NULL), ERR_INVALID);
    assert_int_equal(v, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_digits),  cmocka_unit_test(test_parse_and_print),
                                       cmocka_unit_test(test_there_and_back), cmocka_unit_test(test_share),
                                       cmocka_unit_test(test_percent), cmocka_unit_test(test_times)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
