#include "money.h"

#include <string.h>

#define DIGITS_MAX 4

int money_digits(struct str currency)
{
    static const char *const others[] = {
        [0] = "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF",
        [1] = "",
        [2] = "",
        [3] = "BHD IQD JOD KWD LYD OMR TND",
        [4] = "CLF UYW",
    };
    if (currency.n != 3)
        return -1;
    for (size_t i = 0; i < 3; i++)
        if (currency.p[i] < 'A' || currency.p[i] > 'Z')
            return -1;
    for (int digits = 0; digits <= DIGITS_MAX; digits++) {
        struct str rest = str_c(others[digits]), one;
        while (str_next(&rest, ' ', &one))
            if (str_eq(one, currency))
                return digits;
    }
    return 2;
}

/* Digits, and at most `digits` of them after a point, as one number of that many digits after the point. */
static bool decimal_scan(struct str text, int digits, int64_t max, int64_t *ret)
{
    struct str whole = text, part = S("");
    uint64_t v, fraction = 0;
    if (str_cut(text, '.', &whole, &part) && !part.n)
        return false;
    if (part.n > (size_t)digits || !str_to_u64(whole, &v) || (part.n && !str_to_u64(part, &fraction)))
        return false;
    for (int i = 0; i < digits; i++) {
        if (v > (uint64_t)max)
            return false;
        v *= 10;
    }
    for (size_t i = part.n; i < (size_t)digits; i++)
        fraction *= 10;
    if (v > (uint64_t)max || v + fraction > (uint64_t)max)
        return false;
    *ret = (int64_t)(v + fraction);
    return true;
}

enum err money_parse(struct str text, int digits, int64_t *ret_minor, struct error *reterr)
{
    if (digits < 0 || digits > DIGITS_MAX || !decimal_scan(text, digits, MONEY_MAX, ret_minor))
        return error_set(reterr, ERR_INVALID, "expected a decimal number such as %s, without a sign", digits > 0 ? "\"19.9\"" : "\"1990\"");
    return ERR_OK;
}

const char *money_text(int64_t minor, int digits, char buf[MONEY_TEXT_MAX])
{
    char *p = buf + MONEY_TEXT_MAX - 1;
    *p = '\0';
    for (int i = 0; i <= digits || minor > 0; i++) { /* from the last digit on; one before the point at least */
        if (i == digits && digits > 0)
            *--p = '.';
        *--p = (char)('0' + minor % 10);
        minor /= 10;
    }
    memmove(buf, p, (size_t)(buf + MONEY_TEXT_MAX - p));
    return buf;
}

enum err money_times(int64_t minor, int64_t n, int64_t *ret, struct error *reterr)
{
    int64_t v;
    if (__builtin_mul_overflow(minor, n, &v) || v < 0 || v > MONEY_MAX)
        return error_set(reterr, ERR_INVALID, "the amount is too large");
    *ret = v;
    return ERR_OK;
}

enum err money_percent_parse(struct str text, int64_t *ret_hundredths, struct error *reterr)
{
    int64_t v;
    if (!decimal_scan(text, 2, MONEY_WHOLE, &v) || v == 0)
        return error_set(reterr, ERR_INVALID, "expected a percentage such as \"15\" or \"12.5\", above 0 and at most 100");
    *ret_hundredths = v;
    return ERR_OK;
}

int64_t money_share(int64_t minor, int64_t hundredths)
{
    /* In parts, so that nothing overflows: whole MONEY_WHOLEs first. */
    int64_t whole = minor / MONEY_WHOLE * hundredths, rest = minor % MONEY_WHOLE * hundredths;
    return whole + (rest + MONEY_WHOLE / 2) / MONEY_WHOLE;
}
