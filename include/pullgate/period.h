/* Periods: "P1M", "P1Y", "P14D" (ISO 8601), or a duration such as "7d"; and calendar arithmetic in a vendor's time zone. Pure. */
#ifndef PULLGATE_PERIOD_H
#define PULLGATE_PERIOD_H

#include <stdint.h>

#include "pullgate/err.h"
#include "pullgate/str.h"

struct period {
    int64_t months, days, seconds;
};
enum err period_parse(struct str s, struct period *ret, struct error *reterr) MUST_USE;

/* t plus the period as the calendar of zone has it: months keep the day where the month has it and else take its last, the time of
 * day stays as the wall shows it; then days; then seconds. ERR_INVALID beyond the year 9999. */
enum err period_add(int64_t t_s, const struct period *p, const char *zone, int64_t *ret_s, struct error *reterr) MUST_USE;

/* The same for what renews again and again: *anchor is the day of the month that is meant, 0: that of t. From 31 January a month leads to
 * the end of February and the next one to 31 March. *ret_anchor is kept with the result: 0 where its own day is the one that is meant. A
 * period of days or seconds ends an anchor. */
enum err period_add_anchored(int64_t t_s, const struct period *p, const char *zone, int anchor, int64_t *ret_s, int *ret_anchor,
                             struct error *reterr) MUST_USE;

#endif
