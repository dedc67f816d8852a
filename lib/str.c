/* Strings with a length, and buffers. */
#include "pullgate/str.h"

#include <endian.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "pullgate/mem.h"

bool str_eq_c(struct str a, const char *b)
{
    return str_eq(a, str_c(b));
}

static unsigned char ascii_lower(unsigned char c)
{
    return c >= 'A' && c <= 'Z' ? (unsigned char)(c + 32) : c;
}

bool str_eq_nocase(struct str a, struct str b)
{
    if (a.n != b.n)
        return false;
    for (size_t i = 0; i < a.n; i++)
        if (ascii_lower((unsigned char)a.p[i]) != ascii_lower((unsigned char)b.p[i]))
            return false;
    return true;
}

int str_cmp(struct str a, struct str b)
{
    size_t n = a.n < b.n ? a.n : b.n;
    int c = n > 0 ? memcmp(a.p, b.p, n) : 0;

    if (c != 0)
        return c;
    return a.n < b.n ? -1 : a.n > b.n;
}

bool str_ends(struct str s, struct str suffix)
{
    return s.n >= suffix.n && (suffix.n == 0 || memcmp(s.p + (s.n - suffix.n), suffix.p, suffix.n) == 0);
}

ptrdiff_t str_index(struct str s, char c)
{
    const char *hit = s.n > 0 ? memchr(s.p, c, s.n) : NULL;

    return hit != NULL ? hit - s.p : -1;
}

ptrdiff_t str_rindex(struct str s, char c)
{
    const char *hit = s.n > 0 ? memrchr(s.p, c, s.n) : NULL;

    return hit != NULL ? hit - s.p : -1;
}

struct str str_sub(struct str s, size_t from, size_t n)
{
    if (from > s.n)
        from = s.n;
    if (n > s.n - from)
        n = s.n - from;
    return (struct str){s.p != NULL ? s.p + from : NULL, n};
}

struct str str_skip(struct str s, size_t n)
{
    return str_sub(s, n, s.n);
}

struct str str_trim(struct str s)
{
    while (s.n > 0 && (s.p[0] == ' ' || s.p[0] == '\t'))
        s.p++, s.n--;
    while (s.n > 0 && (s.p[s.n - 1] == ' ' || s.p[s.n - 1] == '\t'))
        s.n--;
    return s;
}

bool str_cut(struct str s, char c, struct str *ret_before, struct str *ret_after)
{
    ptrdiff_t at = str_index(s, c);

    if (at < 0)
        return false;
    *ret_before = str_sub(s, 0, (size_t)at);
    *ret_after = str_skip(s, (size_t)at + 1);
    return true;
}

bool str_next(struct str *rest, char c, struct str *ret_token)
{
    if (rest->p == NULL)
        return false;
    struct str before, after;
    if (str_cut(*rest, c, &before, &after)) {
        *ret_token = before;
        *rest = after;
    } else {
        *ret_token = *rest;
        *rest = (struct str){NULL, 0};
    }
    return true;
}

bool str_to_u64(struct str s, uint64_t *ret)
{
    uint64_t v = 0;

    if (s.n == 0)
        return false;
    for (size_t i = 0; i < s.n; i++) {
        if (s.p[i] < '0' || s.p[i] > '9' || __builtin_mul_overflow(v, 10u, &v) ||
            __builtin_add_overflow(v, (uint64_t)(s.p[i] - '0'), &v))
            return false;
    }
    *ret = v;
    return true;
}

char *str_dup(struct str s)
{
    return mem_strndup(s.p, s.n);
}

bool str_eq_secret(const void *a, const void *b, size_t n)
{
    const volatile unsigned char *x = a, *y = b;
    unsigned char diff = 0;

    for (size_t i = 0; i < n; i++)
        diff |= (unsigned char)(x[i] ^ y[i]);
    return diff == 0;
}

/* SipHash-1-3 under a key drawn at start, so that nobody outside can choose colliding keys. */
static uint64_t sip_key[4]; /* two for str_hash, two for str_mark */

static pthread_once_t sip_once = PTHREAD_ONCE_INIT;

static void sip_init(void)
{
    if (getrandom(sip_key, sizeof sip_key, 0) != (ssize_t)sizeof sip_key)
        WRONG("no randomness");
}

#define ROTL(x, b) (((x) << (b)) | ((x) >> (64 - (b))))
#define SIP_ROUND                                                                                                      \
    do {                                                                                                               \
        v0 += v1, v1 = ROTL(v1, 13), v1 ^= v0, v0 = ROTL(v0, 32);                                                      \
        v2 += v3, v3 = ROTL(v3, 16), v3 ^= v2;                                                                         \
        v0 += v3, v3 = ROTL(v3, 21), v3 ^= v0;                                                                         \
        v2 += v1, v1 = ROTL(v1, 17), v1 ^= v2, v2 = ROTL(v2, 32);                                                      \
    } while (0)

/* The last 0 to 7 bytes at p, and the length above them: two loads that overlap instead of a loop. */
static uint64_t sip_tail(const unsigned char *p, size_t rest, size_t n)
{
    uint64_t m = (uint64_t)n << 56;

    if (rest >= 4) {
        uint32_t low, high;
        memcpy(&low, p, 4);
        memcpy(&high, p + rest - 4, 4);
        return m | le32toh(low) | (uint64_t)le32toh(high) << (8 * (rest - 4));
    }
    if (rest > 0)
        m |= p[0] | (uint64_t)p[rest / 2] << (8 * (rest / 2)) | (uint64_t)p[rest - 1] << (8 * (rest - 1));
    return m;
}

static inline void sip_ready(void)
{
    static bool is_ready; /* spares the call: pthread_once() is not inline */

    if (__builtin_expect(!__atomic_load_n(&is_ready, __ATOMIC_ACQUIRE), 0)) {
        pthread_once(&sip_once, sip_init);
        __atomic_store_n(&is_ready, true, __ATOMIC_RELEASE);
    }
}

uint64_t str_hash(struct str s)
{
    sip_ready();

    uint64_t v0 = sip_key[0] ^ 0x736f6d6570736575ULL, v1 = sip_key[1] ^ 0x646f72616e646f6dULL;
    uint64_t v2 = sip_key[0] ^ 0x6c7967656e657261ULL, v3 = sip_key[1] ^ 0x7465646279746573ULL;
    const unsigned char *p = (const unsigned char *)s.p;
    size_t n = s.n;
    uint64_t m;

    for (; n >= 8; p += 8, n -= 8) {
        memcpy(&m, p, 8);
        v3 ^= m;
        SIP_ROUND;
        v0 ^= m;
    }
    m = sip_tail(p, n, s.n);
    v3 ^= m;
    SIP_ROUND;
    v0 ^= m;
    v2 ^= 0xff;
    SIP_ROUND;
    SIP_ROUND;
    SIP_ROUND;
    return v0 ^ v1 ^ v2 ^ v3;
}

struct str_mark str_mark(struct str s)
{
    sip_ready();

    uint64_t v0 = sip_key[2] ^ 0x736f6d6570736575ULL, v1 = sip_key[3] ^ 0x646f72616e646f6dULL ^ 0xee;
    uint64_t v2 = sip_key[2] ^ 0x6c7967656e657261ULL, v3 = sip_key[3] ^ 0x7465646279746573ULL;
    const unsigned char *p = (const unsigned char *)s.p;
    size_t n = s.n;
    uint64_t m;
    struct str_mark ret;

    for (;; p += 8, n -= 8) {
        bool last = n < 8;
        if (last)
            m = sip_tail(p, n, s.n);
        else
            memcpy(&m, p, 8);
        v3 ^= m;
        SIP_ROUND;
        SIP_ROUND;
        v0 ^= m;
        if (last)
            break;
    }
    v2 ^= 0xee;
    for (int i = 0; i < 4; i++)
        SIP_ROUND;
    ret.a = v0 ^ v1 ^ v2 ^ v3;
    v1 ^= 0xdd;
    for (int i = 0; i < 4; i++)
        SIP_ROUND;
    ret.b = v0 ^ v1 ^ v2 ^ v3;
    return ret;
}

void sb_free(struct strbuf *b)
{
    mem_free(b->p);
    *b = (struct strbuf){0};
}

void sb_reset(struct strbuf *b)
{
    b->n = 0;
    if (b->p != NULL)
        b->p[0] = '\0';
}

void sb_reserve(struct strbuf *b, size_t more)
{
    size_t need;

    if (__builtin_add_overflow(b->n, more, &need) || __builtin_add_overflow(need, (size_t)1, &need))
        WRONG("buffer too large");
    if (need <= b->cap)
        return;
    size_t cap = b->cap < 64 ? 64 : b->cap;
    while (cap < need)
        cap += cap / 2 + 16;
    b->p = mem_realloc(b->p, cap);
    b->cap = cap;
    b->p[b->n] = '\0';
}

void sb_addc(struct strbuf *b, const char *c)
{
    sb_add(b, str_c(c));
}

void sb_add_char(struct strbuf *b, char c)
{
    sb_reserve(b, 1);
    b->p[b->n++] = c;
    b->p[b->n] = '\0';
}

void sb_add_u64(struct strbuf *b, uint64_t v)
{
    char digits[20];
    size_t i = sizeof digits;

    do
        digits[--i] = (char)('0' + v % 10);
    while ((v /= 10) != 0);
    sb_add(b, (struct str){digits + i, sizeof digits - i});
}

void sb_vaddf(struct strbuf *b, const char *fmt, va_list ap)
{
    va_list again;
    va_copy(again, ap);
    sb_reserve(b, 128);
    int n = vsnprintf(b->p + b->n, b->cap - b->n, fmt, ap);
    AN(n >= 0);
    if ((size_t)n >= b->cap - b->n) {
        sb_reserve(b, (size_t)n);
        vsnprintf(b->p + b->n, b->cap - b->n, fmt, again);
    }
    va_end(again);
    b->n += (size_t)n;
}

void sb_addf(struct strbuf *b, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    sb_vaddf(b, fmt, ap);
    va_end(ap);
}

/* Length of the well-formed UTF-8 sequence at p (RFC 3629), 0 when it is none. */
static size_t utf8_len(const unsigned char *p, size_t n)
{
    if (p[0] < 0x80)
        return 1;
    if (p[0] >= 0xc2 && p[0] <= 0xdf)
        return n >= 2 && (p[1] & 0xc0) == 0x80 ? 2 : 0;
    if (p[0] >= 0xe0 && p[0] <= 0xef) {
        if (n < 3 || (p[1] & 0xc0) != 0x80 || (p[2] & 0xc0) != 0x80)
            return 0;
        if ((p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xed && p[1] > 0x9f))
            return 0;
        return 3;
    }
    if (p[0] >= 0xf0 && p[0] <= 0xf4) {
        if (n < 4 || (p[1] & 0xc0) != 0x80 || (p[2] & 0xc0) != 0x80 || (p[3] & 0xc0) != 0x80)
            return 0;
        if ((p[0] == 0xf0 && p[1] < 0x90) || (p[0] == 0xf4 && p[1] > 0x8f))
            return 0;
        return 4;
    }
    return 0;
}

void sb_add_json(struct strbuf *b, struct str s)
{
    static const char hex[] = "0123456789abcdef";
    const unsigned char *p = (const unsigned char *)s.p;
    size_t i = 0, plain = 0;

    sb_reserve(b, s.n + 2);
    sb_add_char(b, '"');
    while (i < s.n) {
        unsigned char c = p[i];
        if (c >= 0x20 && c < 0x7f && c != '"' && c != '\\') {
            i++;
            continue;
        }
        size_t len = c >= 0x80 ? utf8_len(p + i, s.n - i) : 0;
        if (len > 0) {
            i += len;
            continue;
        }
        sb_add(b, str_sub(s, plain, i - plain));
        if (c == '"' || c == '\\') {
            sb_add_char(b, '\\');
            sb_add_char(b, (char)c);
        } else if (c == '\n') {
            sb_add(b, S("\\n"));
        } else {
            char esc[6] = {'\\', 'u', '0', '0', hex[c >> 4], hex[c & 15]};
            sb_add(b, (struct str){esc, sizeof esc});
        }
        plain = ++i;
    }
    sb_add(b, str_sub(s, plain, s.n - plain));
    sb_add_char(b, '"');
}

void sb_add_hex(struct strbuf *b, const void *bytes, size_t n)
{
    static const char hex[] = "0123456789abcdef";
    const unsigned char *p = bytes;

    sb_reserve(b, 2 * n);
    for (size_t i = 0; i < n; i++) {
        b->p[b->n++] = hex[p[i] >> 4];
        b->p[b->n++] = hex[p[i] & 15];
    }
    b->p[b->n] = '\0';
}

struct str sb_str(const struct strbuf *b)
{
    return (struct str){b->p != NULL ? b->p : "", b->n};
}

char *sb_take(struct strbuf *b)
{
    sb_reserve(b, 0);
    b->p[b->n] = '\0';
    char *p = b->p;
    *b = (struct strbuf){0};
    return p;
}

static int hex_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

bool hex_decode(struct str in, void *out, size_t out_n)
{
    unsigned char *o = out;

    if (in.n != 2 * out_n)
        return false;
    for (size_t i = 0; i < out_n; i++) {
        int hi = hex_value(in.p[2 * i]), lo = hex_value(in.p[2 * i + 1]);
        if (hi < 0 || lo < 0)
            return false;
        o[i] = (unsigned char)(hi << 4 | lo);
    }
    return true;
}
