/* Periods: "P1M", "P1Y", "P14D" (ISO 8601), or a duration such as "7d"; and calendar arithmetic in a vendor's time zone. Pure. */
#ifndef ADMIN_PERIOD_H
#define ADMIN_PERIOD_H

#include <stdint.h>

#include "pullgate/err.h"
#include "pullgate/str.h"

struct period {
    int64_t months, days, seconds;
};
enum err period_parse(struct str s, struct period *ret, struct error *reterr) MUST_USE;

/* t plus the period as the calendar of zone has it: months keep the day where the month has it and else take its last, the time of
 * day stays, the end of a day stays the end of a day; then days; then seconds. ERR_INVALID beyond the year 9999. */
enum err period_add(int64_t t_s, const struct period *p, const char *zone, int64_t *ret_s, struct error *reterr) MUST_USE;

#endif
