/* The small texts that people write: instants, dates, durations, sizes, versions, ranges, patterns, networks, license keys, periods.
 * The first byte says which. Each is held against a second reading that shares no code with the first; Python's reads the corpus as well
 * (tests/integration/test_fuzz_values.py). A text of a given length costs a bounded time: run.sh sets the limit. */
#include "fuzz.h"

#include <arpa/inet.h>
#include <regex.h>
#include <time.h>

#include "pullgate/clock.h"
#include "pullgate/credential.h"
#include "pullgate/license.h"
#include "pullgate/period.h"
#include "pullgate/semver.h"

static void check_instant(struct str s)
{
    static const int64_t LAST = 253402300799; /* 9999-12-31T23:59:59Z */
    int64_t t, again;
    char text[64], print[CLOCK_RFC3339_MAX], sign[2] = "";
    int y, mo, d, h, mi, sec, zh = 0, zm = 0, n = 0;
    struct tm tm = {0};

    if (clock_parse_instant(s, &t, NULL))
        return;
    FUZZ_CHECK(s.n < sizeof text && !memchr(s.p, 0, s.n), "an instant that is too long");
    snprintf(text, sizeof text, "%.*s", STR(s));
    FUZZ_CHECK(sscanf(text, "%4d-%2d-%2d%*1[Tt]%2d:%2d:%2d%n", &y, &mo, &d, &h, &mi, &sec, &n) == 6, "an instant scanf does not read");
    const char *rest = text + n;
    if (*rest == '.')
        rest += 1 + strspn(rest + 1, "0123456789");
    if (*rest != 'Z' && *rest != 'z')
        FUZZ_CHECK(sscanf(rest, "%1[+-]%2d:%2d", sign, &zh, &zm) == 3, "an offset scanf does not read");
    tm.tm_year = y - 1900, tm.tm_mon = mo - 1, tm.tm_mday = d, tm.tm_hour = h, tm.tm_min = mi, tm.tm_sec = sec;
    int64_t want = timegm(&tm);
    FUZZ_CHECK(tm.tm_mday == d && tm.tm_mon == mo - 1, "a day that does not exist");
    want -= (sign[0] == '-' ? -1 : 1) * (zh * 3600 + zm * 60);
    FUZZ_CHECK(t == want, "another instant than timegm's");
    if (t >= 0 && t <= LAST) {
        clock_rfc3339(t, print);
        FUZZ_CHECK(clock_parse_instant(str_c(print), &again, NULL) == ERR_OK && again == t, "prints as another instant");
    }
}

static void check_date(struct str s)
{
    static const char *const zones[] = {"", "UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Pacific/Apia", "Australia/Lord_Howe"};
    int64_t from, to;
    uint8_t zone = s.n ? (uint8_t)s.p[0] : 0;

    s = str_skip(s, 1);
    const char *name = zones[zone % 7];
    enum err e = clock_parse_start(s, name, &from, NULL), f = clock_parse_expiry(s, name, &to, NULL);
    FUZZ_CHECK(e == f, "a start that is no expiry");
    if (!e)
        FUZZ_CHECK(s.n == 10 ? to >= from - 1 && to - from < 26 * 3600 : to == from, "a day of more than a day"); /* Apia had no 2011-12-30 */
    if (!e && zone % 7 < 2 && s.n == 10)
        FUZZ_CHECK(from % 86400 == 0 && to == from + 86399, "a UTC day");
}

/* digits, then one of the units: with 128 bits, so that nothing overflows. */
static bool plain_amount(struct str s, const char *const *names, const uint64_t *factors, unsigned __int128 *ret)
{
    unsigned __int128 v = 0;
    size_t i = 0;

    for (; i < s.n && s.p[i] >= '0' && s.p[i] <= '9'; i++)
        if (v < (unsigned __int128)1 << 100)
            v = v * 10 + (unsigned)(s.p[i] - '0');
    if (i == 0)
        return false;
    for (size_t u = 0; names[u]; u++)
        if (str_eq_c(str_skip(s, i), names[u])) {
            *ret = v * factors[u];
            return v < (unsigned __int128)1 << 64 && *ret <= INT64_MAX;
        }
    return false;
}

static void check_amounts(struct str s)
{
    static const char *const time_names[] = {"ms", "s", "m", "h", "d", NULL}, *const size_names[] = {"", "B", "KiB", "MiB", "GiB", "TiB", NULL};
    static const uint64_t times[] = {1, 1000, 60000, 3600000, 86400000}, sizes[] = {1, 1, 1024, 1 << 20, 1 << 30, 1ull << 40};
    unsigned __int128 want;
    uint64_t v;
    struct period p;

    bool is_time = clock_parse_duration(s, &v, NULL) == ERR_OK;
    if (str_eq_c(s, "0"))
        FUZZ_CHECK(is_time && v == 0, "0");
    else
        FUZZ_CHECK(is_time == plain_amount(s, time_names, times, &want) && (!is_time || v == want), "another duration");
    bool is_size = clock_parse_size(s, &v, NULL) == ERR_OK;
    FUZZ_CHECK(is_size == plain_amount(s, size_names, sizes, &want) && (!is_size || v == want), "another size");
    if (period_parse(s, &p, NULL) == ERR_OK)
        FUZZ_CHECK(p.months >= 0 && p.days >= 0 && p.seconds >= 0 && (p.months || p.days || p.seconds) && p.months <= 1200 && p.days <= 36600,
                   "a period of nothing, or of ages");
}

static void check_version(struct str s)
{
    static regex_t re;
    static bool made;
    struct semver v, w;
    struct strbuf b = {0};

    if (!made) {
        FUZZ_CHECK(regcomp(&re,
                           "^v?(0|[1-9][0-9]*)\\.(0|[1-9][0-9]*)\\.(0|[1-9][0-9]*)"
                           "(-(0|[1-9][0-9]*|[0-9]*[a-zA-Z-][0-9a-zA-Z-]*)(\\.(0|[1-9][0-9]*|[0-9]*[a-zA-Z-][0-9a-zA-Z-]*))*)?"
                           "(\\+[0-9a-zA-Z-]+(\\.[0-9a-zA-Z-]+)*)?$",
                           REG_EXTENDED | REG_NOSUB) == 0,
                   "regcomp");
        made = true;
    }
    if (s.n > 200)
        return;
    bool is_long = false; /* numbers beyond 64 bits, which the grammar has and we refuse */
    for (size_t i = 0, run = 0; i < s.n; i++) {
        run = s.p[i] >= '0' && s.p[i] <= '9' ? run + 1 : 0;
        is_long = is_long || run > 18;
    }
    char text[201];
    snprintf(text, sizeof text, "%.*s", STR(s));
    bool grammar = !memchr(s.p, '\n', s.n) && !memchr(s.p, 0, s.n) && regexec(&re, text, 0, NULL, 0) == 0;
    bool ok = semver_parse(s, &v);
    FUZZ_CHECK(ok == grammar || (is_long && !ok), "version: not semver.org's grammar");
    if (ok) {
        sb_add_u64(&b, v.major);
        sb_add_char(&b, '.');
        sb_add_u64(&b, v.minor);
        sb_add_char(&b, '.');
        sb_add_u64(&b, v.patch);
        if (v.pre.n)
            sb_addf(&b, "-%.*s", STR(v.pre));
        if (v.build.n)
            sb_addf(&b, "+%.*s", STR(v.build));
        FUZZ_CHECK(str_eq(sb_str(&b), s.p[0] == 'v' ? str_skip(s, 1) : s), "a version prints differently");
        FUZZ_CHECK(semver_parse(sb_str(&b), &w) && semver_cmp(&v, &w) == 0, "a version is not itself");
    }
    sb_free(&b);
}

static const char *const VERSIONS[] = {"0.0.0",  "0.0.1", "0.1.0",      "0.2.3",     "1.0.0-alpha", "1.0.0-rc.1", "1.0.0",  "1.2.0",
                                       "1.2.3",  "1.2.4", "1.2.4-beta", "1.3.0",     "1.10.0",      "2.0.0-0",    "2.0.0",  "2.0.0+b",
                                       "10.0.0", "3.4.5", "3.4.5-a.b",  "3.4.5-a.1", "99.99.99",    "1.2.3+x.y",  "4.0.0-", "18446744073709551615.0.0"};
#define VERSIONS_N (sizeof VERSIONS / sizeof *VERSIONS)

static bool range_holds(const struct semver_range *r, struct str text, bool pre)
{
    struct semver v;
    return semver_parse(text, &v) && semver_range_matches(r, &v, pre);
}

static void check_range(struct str s)
{
    struct semver_range *r = NULL, *twice = NULL;
    struct error e = {0};
    struct strbuf b = {0};
    enum err err = semver_range_parse(s, &r, &e);

    if (err) {
        FUZZ_CHECK(r == NULL && e.text[0], "a range refused without a reason");
        return;
    }
    FUZZ_CHECK(s.n <= 256, "a long range");
    sb_addf(&b, "%.*s || %.*s", STR(s), STR(s));
    bool have_twice = semver_range_parse(sb_str(&b), &twice, NULL) == ERR_OK;
    for (size_t i = 0; i < VERSIONS_N; i++) {
        bool plain = range_holds(r, str_c(VERSIONS[i]), false), pre = range_holds(r, str_c(VERSIONS[i]), true);
        FUZZ_CHECK(!plain || pre, "include_prerelease takes something away");
        FUZZ_CHECK(plain == pre || strchr(VERSIONS[i], '-'), "include_prerelease changes a release");
        if (have_twice)
            FUZZ_CHECK(range_holds(twice, str_c(VERSIONS[i]), false) == plain, "a || a is not a");
        struct semver v, w;
        if (semver_parse(str_c(VERSIONS[i]), &v) && semver_parse(s, &w)) /* a plain version as a range is that version */
            FUZZ_CHECK(pre == (semver_cmp(&v, &w) == 0), "a version as a range is another one");
    }
    semver_range_free(r);
    semver_range_free(twice);
    sb_free(&b);
}

/* One element of a pattern against one byte; returns its length, 0 at the end. */
static size_t element(struct str p, size_t at, char c, bool *ret)
{
    if (at >= p.n)
        return 0;
    if (p.p[at] != '[') {
        *ret = p.p[at] == '?' || p.p[at] == c;
        return 1;
    }
    size_t i = at + 1;
    bool not = p.p[i] == '!' || p.p[i] == '^', in = false;
    for (i += not; p.p[i] != ']'; i++) {
        unsigned char lo = (unsigned char)p.p[i], hi = lo;
        if (p.p[i + 1] == '-' && p.p[i + 2] != ']') {
            hi = (unsigned char)p.p[i + 2];
            i += 2;
        }
        in |= (unsigned char)c >= lo && (unsigned char)c <= hi;
    }
    *ret = in != not;
    return i + 1 - at;
}

/* All ends that the pattern can have reached, byte by byte: no backtracking. */
static bool plain_glob(struct str p, struct str s)
{
    static bool now[260], next[260];
    bool m;

    memset(now, 0, sizeof now);
    now[0] = true;
    for (size_t i = 0;; i++) {
        for (size_t k = 0; k < p.n; k++)
            if (now[k] && p.p[k] == '*')
                now[k + 1] = true;
        if (i == s.n)
            return now[p.n];
        memset(next, 0, sizeof next);
        for (size_t k = 0; k < p.n; k++)
            if (now[k]) {
                if (p.p[k] == '*') {
                    next[k] = true;
                } else {
                    size_t n = element(p, k, s.p[i], &m);
                    if (m)
                        next[k + n] = true;
                }
            }
        memcpy(now, next, sizeof now);
    }
}

static void check_glob(struct str in)
{
    struct str pattern = in, text = {0};

    (void)str_cut(in, ' ', &pattern, &text);
    bool hit = glob_matches(pattern, text); /* also a pattern that is none must be survived */
    if (glob_check(pattern, NULL) == ERR_OK && text.n < 2000)
        FUZZ_CHECK(hit == plain_glob(pattern, text), "a pattern matches differently");
}

static void check_network(struct str s)
{
    struct cidr c, again;
    uint8_t addr[16], want[16];
    char text[INET6_ADDRSTRLEN + 1];
    static const uint8_t mapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};

    if (addr_parse(s, addr)) {
        FUZZ_CHECK(s.n < sizeof text && !memchr(s.p, 0, s.n), "an address that is too long");
        snprintf(text, sizeof text, "%.*s", STR(s));
        if (strchr(text, ':')) {
            FUZZ_CHECK(inet_pton(AF_INET6, text, want) == 1, "an address that inet_pton refuses");
        } else {
            memcpy(want, mapped, 12);
            FUZZ_CHECK(inet_pton(AF_INET, text, want + 12) == 1, "an address that inet_pton refuses");
        }
        FUZZ_CHECK(memcmp(addr, want, 16) == 0, "another address than inet_pton's");
    }
    if (cidr_parse(s, &c, NULL) == ERR_OK) {
        FUZZ_CHECK(c.bits <= 128 && cidr_contains(&c, c.addr), "a network without its own address");
        for (unsigned bit = 0; bit < 128; bit++) {
            memcpy(addr, c.addr, 16);
            addr[bit / 8] ^= (uint8_t)(0x80 >> bit % 8);
            FUZZ_CHECK(cidr_contains(&c, addr) == (bit >= c.bits), "a network of another size");
        }
        char print[64];
        inet_ntop(AF_INET6, c.addr, text, sizeof text);
        if (memcmp(c.addr, mapped, 12) || c.bits < 96) {
            snprintf(print, sizeof print, "%s/%u", text, c.bits);
            FUZZ_CHECK(cidr_parse(str_c(print), &again, NULL) == ERR_OK && again.bits == c.bits && !memcmp(again.addr, c.addr, 16),
                       "a network prints differently");
        }
    }
}

static void check_key(struct str s)
{
    char key[CREDENTIAL_TEXT_MAX], again[CREDENTIAL_TEXT_MAX];

    if (license_key_normalise(s, key)) {
        FUZZ_CHECK(license_key_normalise(str_c(key), again) && !strcmp(key, again), "a license key's spelling is not stable");
        FUZZ_CHECK(strlen(key) == 27 && strspn(key, "0123456789ABCDEFGHJKMNPQRSTVWXYZ-") == 27, "a license key outside its alphabet");
    }
    if (credential_well_formed("pgc_", s))
        FUZZ_CHECK(s.n == 53 && str_starts(s, S("pgc_")), "a credential outside its form");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_in in = {data, size};
    uint8_t kind = fuzz_byte(&in);
    struct str s = fuzz_rest(&in);
    char *copy = fuzz_exact(s);

    s.p = copy;
    switch (kind) {
    case 'i':
        check_instant(s);
        break;
    case 'e':
        check_date(s);
        break;
    case 'd':
        check_amounts(s);
        break;
    case 'v':
        check_version(s);
        break;
    case 'r':
        check_range(s);
        break;
    case 'g':
        check_glob(s);
        break;
    case 'n':
        check_network(s);
        break;
    case 'k':
        check_key(s);
        break;
    default:
        break;
    }
    mem_free(copy);
    return 0;
}
