/* Clocks, and the texts of times, durations and sizes. */
#include "pullgate/clock.h"

#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <fcntl.h>
#include <sys/stat.h>

#include "pullgate/file.h"
#include "pullgate/mem.h"

static _Thread_local struct {
    bool is_held;
    int64_t now_ms;   /* 0: not asked since */
    uint64_t mono_ms; /* the same */
} held;

void clock_hold(void)
{
    held.is_held = true;
    held.now_ms = 0;
    held.mono_ms = 0;
}

void clock_release(void)
{
    held.is_held = false;
}

int64_t clock_now_s(void)
{
    return clock_now_ms() / 1000;
}

int64_t clock_now_ms(void)
{
    struct timespec ts;

    if (held.is_held && held.now_ms != 0)
        return held.now_ms;
    clock_gettime(CLOCK_REALTIME, &ts);
    return held.now_ms = (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

uint64_t clock_mono_ms(void)
{
    if (held.is_held && held.mono_ms != 0)
        return held.mono_ms;
    return held.mono_ms = clock_mono_us() / 1000;
}

uint64_t clock_mono_us(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000u + (uint64_t)ts.tv_nsec / 1000u;
}

/* Civil date <-> days since 1970-01-01, proleptic Gregorian. */
static int64_t days_of_civil(int64_t y, unsigned m, unsigned d)
{
    y -= m <= 2;
    int64_t era = (y >= 0 ? y : y - 399) / 400;
    unsigned yoe = (unsigned)(y - era * 400);
    unsigned doy = (153 * (m > 2 ? m - 3 : m + 9) + 2) / 5 + d - 1;
    unsigned doe = yoe * 365 + yoe / 4 - yoe / 100 + doy;
    return era * 146097 + (int64_t)doe - 719468;
}

static bool year_is_leap(int64_t y)
{
    return (y % 4 == 0 && y % 100 != 0) || y % 400 == 0;
}

static unsigned days_in_month(int64_t y, unsigned m)
{
    static const unsigned char days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    return m == 2 && year_is_leap(y) ? 29 : days[m - 1];
}

static void broken_down(int64_t t_s, struct tm *ret)
{
    time_t t = (time_t)t_s;
    if (gmtime_r(&t, ret) == NULL)
        memset(ret, 0, sizeof *ret);
}

const char *clock_rfc3339(int64_t t_s, char buf[CLOCK_RFC3339_MAX])
{
    struct tm tm;
    broken_down(t_s, &tm);
    if (strftime(buf, CLOCK_RFC3339_MAX, "%Y-%m-%dT%H:%M:%SZ", &tm) == 0)
        buf[0] = '\0';
    return buf;
}

const char *clock_rfc3339_ms(int64_t t_ms, char buf[CLOCK_RFC3339_MAX])
{
    struct tm tm;
    broken_down(t_ms / 1000, &tm);
    size_t n = strftime(buf, CLOCK_RFC3339_MAX, "%Y-%m-%dT%H:%M:%S", &tm);
    snprintf(buf + n, CLOCK_RFC3339_MAX - n, ".%03dZ", (int)(t_ms % 1000));
    return buf;
}

const char *clock_date(int64_t t_s, char buf[CLOCK_RFC3339_MAX])
{
    struct tm tm;
    broken_down(t_s, &tm);
    if (strftime(buf, CLOCK_RFC3339_MAX, "%Y-%m-%d", &tm) == 0)
        buf[0] = '\0';
    return buf;
}

const char *clock_http_date(int64_t t_s, char buf[CLOCK_RFC3339_MAX])
{
    /* The C locale's names: no program here calls setlocale(). */
    struct tm tm;
    broken_down(t_s, &tm);
    if (strftime(buf, CLOCK_RFC3339_MAX, "%a, %d %b %Y %H:%M:%S GMT", &tm) == 0)
        buf[0] = '\0';
    return buf;
}

/* n digits at s[*at], advancing. */
static bool digits(struct str s, size_t *at, unsigned n, unsigned *ret)
{
    uint64_t v;
    if (*at + n > s.n || !str_to_u64(str_sub(s, *at, n), &v))
        return false;
    *at += n;
    *ret = (unsigned)v;
    return true;
}

static bool literal(struct str s, size_t *at, const char *any)
{
    if (*at >= s.n || s.p[*at] == '\0' || strchr(any, s.p[*at]) == NULL)
        return false;
    (*at)++;
    return true;
}

static bool parse_date(struct str s, size_t *at, unsigned *y, unsigned *m, unsigned *d)
{
    return digits(s, at, 4, y) && literal(s, at, "-") && digits(s, at, 2, m) && literal(s, at, "-") && digits(s, at, 2, d) && *y >= 1970 &&
           *m >= 1 && *m <= 12 && *d >= 1 && *d <= days_in_month(*y, *m);
}

enum err clock_parse_instant(struct str s, int64_t *ret_s, struct error *reterr)
{
    unsigned y, mo, d, h, mi, sec, zh = 0, zm = 0;
    size_t at = 0;
    int64_t offset = 0;

    if (!parse_date(s, &at, &y, &mo, &d) || !literal(s, &at, "Tt") || !digits(s, &at, 2, &h) || !literal(s, &at, ":") ||
        !digits(s, &at, 2, &mi) || !literal(s, &at, ":") || !digits(s, &at, 2, &sec) || h > 23 || mi > 59 || sec > 59)
        goto bad;
    if (literal(s, &at, ".")) {
        size_t from = at;
        while (at < s.n && s.p[at] >= '0' && s.p[at] <= '9')
            at++;
        if (at == from || at - from > 9)
            goto bad;
    }
    if (!literal(s, &at, "Zz")) {
        int sign = at < s.n && s.p[at] == '-' ? -1 : 1;
        if (!literal(s, &at, "+-") || !digits(s, &at, 2, &zh) || !literal(s, &at, ":") || !digits(s, &at, 2, &zm) || zh > 23 || zm > 59)
            goto bad;
        offset = sign * (int64_t)(zh * 3600 + zm * 60);
    }
    if (at != s.n)
        goto bad;
    *ret_s = days_of_civil(y, mo, d) * 86400 + h * 3600 + mi * 60 + sec - offset;
    return ERR_OK;
bad:
    return error_set(reterr, ERR_INVALID, "not an RFC 3339 time such as 2026-03-01T23:59:59Z");
}

#define TZIF_MAX (64u * 1024) /* bytes of a zone file; the largest shipped are under 4 KiB */

static uint64_t be(const unsigned char *p, unsigned n)
{
    uint64_t v = 0;
    for (unsigned i = 0; i < n; i++)
        v = v << 8 | p[i];
    return v;
}

static bool zone_name_ok(const char *zone)
{
    for (const char *c = zone; *c != '\0'; c++)
        if (!((*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z') || (*c >= '0' && *c <= '9') || *c == '_' || *c == '-' || *c == '+' || *c == '/'))
            return false;
    return zone[0] != '\0' && zone[0] != '/' && strlen(zone) < 64;
}

/* The zone's file, read whole. The C library's own zones are process-wide (TZ), which threads cannot share. */
static unsigned char *zone_read(const char *zone, size_t *ret_n)
{
    char path[128];
    struct stat st;

    if (!zone_name_ok(zone))
        return NULL;
    snprintf(path, sizeof path, "/usr/share/zoneinfo/%s", zone);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return NULL;
    unsigned char *bytes = NULL;
    if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size >= 44 && st.st_size <= (off_t)TZIF_MAX) {
        bytes = mem_alloc((size_t)st.st_size);
        if (file_read_full(fd, (char *)bytes, (size_t)st.st_size) != st.st_size || memcmp(bytes, "TZif", 4) != 0)
            MEM_FREE(bytes);
        else
            *ret_n = (size_t)st.st_size;
    }
    close(fd);
    return bytes;
}

/* Offset of a POSIX TZ rule footer (RFC 8536 3.3) at a UTC instant, e.g. "CET-1CEST,M3.5.0,M10.5.0/3". */
static bool posix_name(const char **c)
{
    const char *from = *c;
    if (**c == '<') {
        while (**c != '\0' && **c != '>')
            (*c)++;
        if (**c != '>')
            return false;
        (*c)++;
        return true;
    }
    while ((**c >= 'a' && **c <= 'z') || (**c >= 'A' && **c <= 'Z'))
        (*c)++;
    return *c - from >= 3;
}

static bool posix_number(const char **c, int *ret)
{
    int v = 0;
    const char *from = *c;
    while (**c >= '0' && **c <= '9' && *c - from < 4)
        v = v * 10 + (*(*c)++ - '0');
    *ret = v;
    return *c != from;
}

static bool posix_hms(const char **c, int64_t *ret)
{
    int sign = 1, h, m = 0, s = 0;
    if (**c == '-' || **c == '+')
        sign = *(*c)++ == '-' ? -1 : 1;
    if (!posix_number(c, &h))
        return false;
    if (**c == ':' && (++*c, !posix_number(c, &m)))
        return false;
    if (**c == ':' && (++*c, !posix_number(c, &s)))
        return false;
    *ret = sign * ((int64_t)h * 3600 + m * 60 + s);
    return true;
}

/* A rule's moment in local wall time, seconds since 1970 as if UTC. */
static bool posix_rule(const char **c, int64_t year, int64_t *ret)
{
    int m, w, d;
    int64_t day, at = 7200;

    if (**c == 'M') {
        (*c)++;
        if (!posix_number(c, &m) || *(*c)++ != '.' || !posix_number(c, &w) || *(*c)++ != '.' || !posix_number(c, &d) || m < 1 || m > 12 ||
            w < 1 || w > 5 || d > 6)
            return false;
        int64_t first = days_of_civil(year, (unsigned)m, 1);
        int weekday = (int)((first % 7 + 4 + 7) % 7);
        int64_t mday = 1 + (d - weekday + 7) % 7 + (w - 1) * 7;
        while (mday > (int64_t)days_in_month(year, (unsigned)m))
            mday -= 7;
        day = first + mday - 1;
    } else if (**c == 'J') {
        (*c)++;
        if (!posix_number(c, &d) || d < 1 || d > 365)
            return false;
        day = days_of_civil(year, 1, 1) + d - 1 + (year_is_leap(year) && d >= 60);
    } else {
        if (!posix_number(c, &d) || d > 365)
            return false;
        day = days_of_civil(year, 1, 1) + d;
    }
    if (**c == '/' && (++*c, !posix_hms(c, &at)))
        return false;
    *ret = day * 86400 + at;
    return true;
}

static bool posix_offset(const char *rule, int64_t t_s, int64_t *ret)
{
    const char *c = rule;
    int64_t std, dst, start, end;
    struct tm tm;

    if (!posix_name(&c) || !posix_hms(&c, &std))
        return false;
    std = -std;
    *ret = std;
    if (*c == '\0')
        return true;
    if (!posix_name(&c))
        return false;
    dst = std + 3600;
    if (*c != ',' && *c != '\0') {
        if (!posix_hms(&c, &dst))
            return false;
        dst = -dst;
    }
    broken_down(t_s + std, &tm);
    if (*c++ != ',' || !posix_rule(&c, tm.tm_year + 1900, &start) || *c++ != ',' || !posix_rule(&c, tm.tm_year + 1900, &end))
        return false;
    start -= std;
    end -= dst;
    bool summer = start < end ? t_s >= start && t_s < end : t_s >= start || t_s < end;
    *ret = summer ? dst : std;
    return true;
}

/* Seconds east of UTC of the zone at a UTC instant. Source: RFC 8536. */
static bool zone_offset(const unsigned char *z, size_t n, int64_t t_s, int64_t *ret)
{
    if (n < 44 || z[4] < '2')
        return false;
    size_t v1 = 44 + be(z + 32, 4) * 5 + be(z + 36, 4) * 6 + be(z + 40, 4) + be(z + 28, 4) * 8 + be(z + 24, 4) + be(z + 20, 4);
    if (v1 + 44 > n || memcmp(z + v1, "TZif", 4) != 0)
        return false;
    const unsigned char *h = z + v1;
    size_t isut = be(h + 20, 4), isstd = be(h + 24, 4), leap = be(h + 28, 4), times = be(h + 32, 4), types = be(h + 36, 4), chars = be(h + 40, 4);
    size_t need = v1 + 44 + times * 9 + types * 6 + chars + leap * 12 + isstd + isut;
    if (need > n || types == 0)
        return false;
    const unsigned char *at = h + 44, *idx = at + times * 8, *type = idx + times;
    size_t i = times;
    while (i > 0 && (int64_t)be(at + (i - 1) * 8, 8) > t_s)
        i--;
    if (i == times && need + 2 < n) {
        char rule[128];
        size_t len = 0;
        for (size_t p = need + 1; p < n && z[p] != '\n' && len < sizeof rule - 1; p++)
            rule[len++] = (char)z[p];
        rule[len] = '\0';
        if (len > 0 && posix_offset(rule, t_s, ret))
            return true;
    }
    size_t k = i == 0 ? 0 : idx[i - 1];
    if (k >= types)
        return false;
    *ret = (int32_t)be(type + k * 6, 4);
    return true;
}

static int64_t day_of(int64_t wall_s)
{
    return wall_s / 86400 - (wall_s % 86400 < 0);
}

/* A local wall time as an instant: the offset that holds at the result. In an overlap the later, of a start the earlier; in a gap the time
 * after it where that is the same day, else the one before it. */
static bool zone_local_to_utc(const char *zone, int64_t local_s, bool is_start, int64_t *ret)
{
    size_t n = 0;
    int64_t off, back, first = INT64_MAX, last = INT64_MIN, before = INT64_MAX, after = INT64_MIN;

    if (zone == NULL || zone[0] == '\0' || strcmp(zone, "UTC") == 0) {
        *ret = local_s;
        return true;
    }
    unsigned char *z = zone_read(zone, &n);
    if (z == NULL)
        return false;
    for (int64_t probe = -86400; probe <= 86400; probe += 3600)
        if (zone_offset(z, n, local_s + probe, &off)) {
            int64_t t = local_s - off;
            before = t < before ? t : before;
            after = t > after ? t : after;
            if (zone_offset(z, n, t, &back) && back == off) {
                first = t < first ? t : first;
                last = t > last ? t : last;
            }
        }
    bool found = after != INT64_MIN;
    if (last != INT64_MIN)
        *ret = is_start ? first : last;
    else if (found)
        *ret = zone_offset(z, n, after, &off) && day_of(after + off) != day_of(local_s) && zone_offset(z, n, before, &back) &&
                       day_of(before + back) == day_of(local_s)
                   ? before
                   : after;
    mem_free(z);
    return found;
}

enum err clock_wall(int64_t t_s, const char *zone, int64_t *ret_wall_s)
{
    size_t n = 0;
    int64_t off = 0;

    if (zone != NULL && zone[0] != '\0' && strcmp(zone, "UTC") != 0) {
        unsigned char *z = zone_read(zone, &n);
        bool good = z != NULL && zone_offset(z, n, t_s, &off);
        mem_free(z);
        if (!good)
            return ERR_INVALID;
    }
    *ret_wall_s = t_s + off;
    return ERR_OK;
}

enum err clock_of_wall(int64_t wall_s, const char *zone, int64_t *ret_s)
{
    return zone_local_to_utc(zone, wall_s, false, ret_s) ? ERR_OK : ERR_INVALID;
}

bool clock_zone_exists(const char *zone)
{
    int64_t t;
    return zone_local_to_utc(zone, 0, false, &t);
}

static enum err parse_date_or_instant(struct str s, const char *zone, int64_t second_of_day, int64_t *ret_s, struct error *reterr)
{
    unsigned y, m, d;
    size_t at = 0;

    if (s.n != 10)
        return clock_parse_instant(s, ret_s, reterr);
    if (!parse_date(s, &at, &y, &m, &d))
        return error_set(reterr, ERR_INVALID, "not a date such as 2026-03-01, nor an RFC 3339 time");
    if (!zone_local_to_utc(zone, days_of_civil(y, m, d) * 86400 + second_of_day, second_of_day == 0, ret_s))
        return error_set(reterr, ERR_INVALID, "time zone %s is not known", zone);
    return ERR_OK;
}

enum err clock_parse_expiry(struct str s, const char *zone, int64_t *ret_s, struct error *reterr)
{
    return parse_date_or_instant(s, zone, 86399, ret_s, reterr);
}

enum err clock_parse_start(struct str s, const char *zone, int64_t *ret_s, struct error *reterr)
{
    return parse_date_or_instant(s, zone, 0, ret_s, reterr);
}

struct unit {
    const char *name;
    uint64_t factor;
};

static enum err parse_with_unit(struct str s, const struct unit *units, const char *what, uint64_t *ret, struct error *reterr)
{
    size_t n = 0;
    uint64_t v;

    while (n < s.n && s.p[n] >= '0' && s.p[n] <= '9')
        n++;
    if (!str_to_u64(str_sub(s, 0, n), &v))
        return error_set(reterr, ERR_INVALID, "not a %s", what);
    for (const struct unit *u = units; u->name != NULL; u++)
        if (str_eq_c(str_skip(s, n), u->name)) {
            if (__builtin_mul_overflow(v, u->factor, &v) || v > INT64_MAX)
                return error_set(reterr, ERR_INVALID, "too large for a %s", what);
            *ret = v;
            return ERR_OK;
        }
    return error_set(reterr, ERR_INVALID, "not a %s", what);
}

enum err clock_parse_duration(struct str s, uint64_t *ret_ms, struct error *reterr)
{
    static const struct unit units[] = {{"ms", 1}, {"s", 1000}, {"m", 60000}, {"h", 3600000}, {"d", 86400000}, {NULL, 0}};

    if (str_eq_c(s, "0")) {
        *ret_ms = 0;
        return ERR_OK;
    }
    return parse_with_unit(s, units, "duration such as 250ms, 5s, 3m, 2h or 7d", ret_ms, reterr);
}

enum err clock_parse_size(struct str s, uint64_t *ret_bytes, struct error *reterr)
{
    static const struct unit units[] = {{"", 1},           {"B", 1},           {"KiB", 1024}, {"MiB", 1024 * 1024},
                                        {"GiB", 1u << 30}, {"TiB", 1ULL << 40}, {NULL, 0}};

    return parse_with_unit(s, units, "size such as 512, 64KiB, 4MiB or 50GiB", ret_bytes, reterr);
}
