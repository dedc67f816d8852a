#include "period.h"

#include <stdio.h>

#include "pullgate/clock.h"

#define PERIOD_MONTHS_MAX (100 * 12)
#define PERIOD_DAYS_MAX   (100 * 366)

static enum err period_refuse(struct error *reterr)
{
    return error_set(reterr, ERR_INVALID, "expected a period such as P1M, P1Y, P14D or 7d, at most 100 years");
}

enum err period_parse(struct str s, struct period *ret, struct error *reterr)
{
    struct period p = {0};
    if (!s.n || s.p[0] != 'P') {
        uint64_t ms;
        if (clock_parse_duration(s, &ms, NULL) || ms < 1000 || ms / 86400000 > PERIOD_DAYS_MAX)
            return period_refuse(reterr);
        p.seconds = (int64_t)(ms / 1000);
        *ret = p;
        return ERR_OK;
    }
    static const char units[] = "YMWD"; /* in this order, each once */
    size_t unit = 0;
    struct str rest = str_skip(s, 1);
    if (!rest.n)
        return period_refuse(reterr);
    while (rest.n) {
        size_t digits = 0;
        uint64_t n;
        while (digits < rest.n && rest.p[digits] >= '0' && rest.p[digits] <= '9')
            digits++;
        if (!digits || digits > 5 || digits == rest.n || !str_to_u64(str_sub(rest, 0, digits), &n))
            return period_refuse(reterr);
        while (units[unit] && units[unit] != rest.p[digits])
            unit++;
        switch (units[unit]) {
        case 'Y':
            p.months += (int64_t)n * 12;
            break;
        case 'M':
            p.months += (int64_t)n;
            break;
        case 'W':
            p.days += (int64_t)n * 7;
            break;
        case 'D':
            p.days += (int64_t)n;
            break;
        default:
            return period_refuse(reterr);
        }
        unit++;
        rest = str_skip(rest, digits + 1);
    }
    if (p.months > PERIOD_MONTHS_MAX || p.days > PERIOD_DAYS_MAX || (!p.months && !p.days))
        return period_refuse(reterr);
    *ret = p;
    return ERR_OK;
}

/* ---- the calendar ------------------------------------------------------------------------------------------------------ */

struct civil {
    int y, m, d;
};

static int days_in_month(int y, int m)
{
    static const int days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    bool is_leap = (y % 4 == 0 && y % 100 != 0) || y % 400 == 0;
    return days[m - 1] + (m == 2 && is_leap);
}

static void civil_add_days(struct civil *c, int64_t days)
{
    for (; days > 0; days--) /* at most PERIOD_DAYS_MAX */
        if (++c->d > days_in_month(c->y, c->m)) {
            c->d = 1;
            if (++c->m > 12) {
                c->m = 1;
                c->y++;
            }
        }
}

static enum err civil_start(const struct civil *c, const char *zone, int64_t *ret)
{
    char text[40];
    if (c->y > 9999)
        return ERR_INVALID;
    snprintf(text, sizeof text, "%04d-%02d-%02d", c->y, c->m, c->d);
    return clock_parse_start(str_c(text), zone, ret, NULL);
}

/* The day of zone in which t lies, and the second in it: the day of UTC, the one before or the one after. */
static enum err civil_of(int64_t t, const char *zone, struct civil *ret, int64_t *ret_second)
{
    for (int shift = 1; shift >= -1; shift--) {
        char text[CLOCK_RFC3339_MAX];
        struct civil c;
        int64_t start;
        clock_date(t + (int64_t)shift * 86400, text);
        if (sscanf(text, "%d-%d-%d", &c.y, &c.m, &c.d) != 3)
            return ERR_INVALID;
        if (civil_start(&c, zone, &start) == ERR_OK && start <= t) {
            *ret = c;
            *ret_second = t - start;
            return ERR_OK;
        }
    }
    return ERR_INVALID;
}

enum err period_add(int64_t t_s, const struct period *p, const char *zone, int64_t *ret_s, struct error *reterr)
{
    struct civil c, next;
    int64_t second, start, end, t;
    if (civil_of(t_s, zone, &c, &second))
        return error_set(reterr, ERR_INVALID, "the time is out of range");
    next = c;
    civil_add_days(&next, 1);
    /* The last second of a day: the next one belongs to another. */
    bool is_end_of_day = civil_start(&next, zone, &end) == ERR_OK && t_s == end - 1;

    int64_t months = (int64_t)c.y * 12 + (c.m - 1) + p->months;
    c.y = (int)(months / 12);
    c.m = (int)(months % 12) + 1;
    if (c.d > days_in_month(c.y, c.m))
        c.d = days_in_month(c.y, c.m);
    civil_add_days(&c, p->days);
    if (civil_start(&c, zone, &start))
        return error_set(reterr, ERR_INVALID, "beyond the year 9999");
    t = start + second;
    if (is_end_of_day) {
        civil_add_days(&c, 1);
        if (civil_start(&c, zone, &end))
            return error_set(reterr, ERR_INVALID, "beyond the year 9999");
        t = end - 1;
    }
    *ret_s = t + p->seconds;
    return ERR_OK;
}
