#include "pullgate/period.h"

#include <stdbool.h>

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

#define DAY_S    INT64_C(86400)
#define YEAR_MAX 9999

struct civil {
    int64_t y;
    int m, d;
};

static int days_in_month(int64_t y, int m)
{
    static const int days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    bool is_leap = (y % 4 == 0 && y % 100 != 0) || y % 400 == 0;
    return days[m - 1] + (m == 2 && is_leap);
}

/* Days since 1970-01-01. Years are counted from March on, so that the leap day is a year's last. */
static int64_t civil_days(const struct civil *c)
{
    int64_t y = c->m <= 2 ? c->y - 1 : c->y, month = (c->m + 9) % 12;
    return y * 365 + y / 4 - y / 100 + y / 400 + (month * 306 + 5) / 10 + c->d - 1 - 719468;
}

static struct civil civil_of_days(int64_t days)
{
    struct civil c = {.y = 1970 + days / 366, .m = 1, .d = 1}; /* the year, or one before it */
    while (civil_days(&(struct civil){c.y + 1, 1, 1}) <= days)
        c.y++;
    while (c.m < 12 && civil_days(&(struct civil){c.y, c.m + 1, 1}) <= days)
        c.m++;
    c.d += (int)(days - civil_days(&c));
    return c;
}

enum err period_add_anchored(int64_t t_s, const struct period *p, const char *zone, int anchor, int64_t *ret_s, int *ret_anchor,
                             struct error *reterr)
{
    int64_t wall, t;
    if (t_s < 0 || clock_wall(t_s, zone, &wall) || wall < 0)
        return error_set(reterr, ERR_INVALID, "the time is out of range");
    struct civil c = civil_of_days(wall / DAY_S);
    int meant = anchor && p->months ? anchor : c.d, left = 0;
    int64_t months = c.y * 12 + (c.m - 1) + p->months;
    c.y = months / 12;
    c.m = (int)(months % 12) + 1;
    c.d = meant;
    if (c.y <= YEAR_MAX && c.d > days_in_month(c.y, c.m))
        c.d = days_in_month(c.y, c.m);
    if (c.d != meant && !p->days && !p->seconds)
        left = meant;
    if (c.y > YEAR_MAX || civil_days(&c) + p->days >= civil_days(&(struct civil){YEAR_MAX + 1, 1, 1}))
        return error_set(reterr, ERR_INVALID, "beyond the year 9999");
    if (clock_of_wall((civil_days(&c) + p->days) * DAY_S + wall % DAY_S, zone, &t))
        return error_set(reterr, ERR_INVALID, "time zone %s is not known", zone);
    *ret_s = t + p->seconds;
    *ret_anchor = left;
    return ERR_OK;
}

enum err period_add(int64_t t_s, const struct period *p, const char *zone, int64_t *ret_s, struct error *reterr)
{
    int anchor;
    return period_add_anchored(t_s, p, zone, 0, ret_s, &anchor, reterr);
}
