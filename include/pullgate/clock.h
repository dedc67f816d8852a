/* Time: the only place that asks the clock, and the texts of times, durations, sizes and periods.
 * Seconds and milliseconds are Unix time UTC; 0 means "none" where a field may be absent. */
#ifndef PULLGATE_CLOCK_H
#define PULLGATE_CLOCK_H

#include <stdbool.h>
#include <stdint.h>

#include "pullgate/err.h"
#include "pullgate/str.h"

int64_t clock_now_s(void);    /* wall clock */
int64_t clock_now_ms(void);   /* wall clock */
uint64_t clock_mono_ms(void); /* monotonic, for timers */
uint64_t clock_mono_us(void);
/* Between the two, the milliseconds and seconds that this thread is told stand still: one request, answered from memory, asks a dozen
 * times, and each costs what a good part of its decision does. Not around anything that waits. Not nested. */
void clock_hold(void);
void clock_release(void);

#define CLOCK_RFC3339_MAX 32
/* "2026-03-01T23:59:59Z" into buf; returns buf. */
const char *clock_rfc3339(int64_t t_s, char buf[CLOCK_RFC3339_MAX]);
const char *clock_rfc3339_ms(int64_t t_ms, char buf[CLOCK_RFC3339_MAX]); /* with .123 */
const char *clock_date(int64_t t_s, char buf[CLOCK_RFC3339_MAX]);        /* "2026-03-01", UTC */
const char *clock_http_date(int64_t t_s, char buf[CLOCK_RFC3339_MAX]);   /* "Sun, 06 Nov 1994 08:49:37 GMT" */
/* RFC 3339 instant with Z or an offset, fractions cut. Years 1970 to 9999. */
enum err clock_parse_instant(struct str s, int64_t *ret_s, struct error *reterr) MUST_USE;
/* An instant, or a date, which means the last second (23:59:59) of that day in the IANA zone `zone` ("" = UTC). DESIGN 4.1. */
enum err clock_parse_expiry(struct str s, const char *zone, int64_t *ret_s, struct error *reterr) MUST_USE;
/* An instant, or a date, which means its first second in `zone`. */
enum err clock_parse_start(struct str s, const char *zone, int64_t *ret_s, struct error *reterr) MUST_USE;
bool clock_zone_exists(const char *zone);
/* The wall clock of a zone at an instant, as seconds since 1970-01-01T00:00 on its own calendar, and the instant of such a time: where the
 * clocks go forward the one after the gap (before it, where only that is the same day), where they go back the later of two. ERR_INVALID: no such zone. */
enum err clock_wall(int64_t t_s, const char *zone, int64_t *ret_wall_s) MUST_USE;
enum err clock_of_wall(int64_t wall_s, const char *zone, int64_t *ret_s) MUST_USE;
/* "250ms" "5s" "3m" "2h" "7d"; a bare number is refused. */
enum err clock_parse_duration(struct str s, uint64_t *ret_ms, struct error *reterr) MUST_USE;
/* "64KiB" "50GiB" "512" (bytes). */
enum err clock_parse_size(struct str s, uint64_t *ret_bytes, struct error *reterr) MUST_USE;

#endif
