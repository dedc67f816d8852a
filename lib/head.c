/* One pass over a whole request head: request line, then field by field, every byte looked at once through a table of classes.
 * Allocates nothing and keeps nothing; strs in the result point into the caller's bytes. Framing (how long the body is, may the
 * connection go on) is decided here and nowhere else. Routing, percent-decoding and credentials are not its business. */
#include "pullgate/head.h"

#include <string.h>

#define METHOD_BYTES_MAX 32 /* longest registered method has 17 letters; bounds what is read before the first blank */
#define PORT_DIGITS_MAX  5

enum {               /* classes of a byte */
       C_TOKEN = 1,  /* field names: RFC 9110 5.6.2 tchar */
       C_TARGET = 2, /* [!-~] but '#' */
       C_VALUE = 4,  /* field values: HTAB, SP, VCHAR, obs-text */
       C_METHOD = 8, /* A-Z - _ : every registered method; lower case is a sign of a broken or hostile peer */
       C_HOST = 16,  /* reg-name without percent-encoding and sub-delims; underscores occur in the wild */
       C_HEX6 = 32,  /* inside [] of an IP literal */
};

#define T       C_TOKEN
#define V       (C_TARGET | C_VALUE)
#define PUNCT_T (T | V)                     /* token punctuation */
#define UPPER   (T | V | C_METHOD | C_HOST) /* G-Z */
#define UPHEX   (UPPER | C_HEX6)
#define LOWER   (T | V | C_HOST)
#define LOHEX   (LOWER | C_HEX6)
#define DIGIT   (T | V | C_HOST | C_HEX6)
/* clang-format off */
static const uint8_t classes[256] = {
    ['\t'] = C_VALUE, [' '] = C_VALUE,
    ['!'] = PUNCT_T, ['"'] = V, ['#'] = T | C_VALUE, ['$'] = PUNCT_T, ['%'] = PUNCT_T, ['&'] = PUNCT_T, ['\''] = PUNCT_T,
    ['('] = V, [')'] = V, ['*'] = PUNCT_T, ['+'] = PUNCT_T, [','] = V, ['-'] = PUNCT_T | C_METHOD | C_HOST,
    ['.'] = PUNCT_T | C_HOST | C_HEX6, ['/'] = V,
    ['0' ... '9'] = DIGIT, [':'] = V | C_HEX6, [';'] = V, ['<'] = V, ['='] = V, ['>'] = V, ['?'] = V, ['@'] = V,
    ['A' ... 'F'] = UPHEX, ['G' ... 'Z'] = UPPER, ['['] = V, ['\\'] = V, [']'] = V, ['^'] = PUNCT_T,
    ['_'] = PUNCT_T | C_METHOD | C_HOST, ['`'] = PUNCT_T,
    ['a' ... 'f'] = LOHEX, ['g' ... 'z'] = LOWER, ['{'] = V, ['|'] = PUNCT_T, ['}'] = V, ['~'] = PUNCT_T,
    [0x80 ... 0xff] = C_VALUE,
};
/* clang-format on */
#undef T
#undef V

static inline bool is(char c, unsigned class)
{
    return classes[(unsigned char)c] & class;
}

static int refuse(const char **ret_why, int status, const char *why)
{
    *ret_why = why;
    return status;
}

/* name is lower case. */
static bool name_is(struct str s, const char *name, size_t n)
{
    if (s.n != n)
        return false;
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)s.p[i];
        if (c >= 'A' && c <= 'Z')
            c |= 0x20;
        if (c != (unsigned char)name[i])
            return false;
    }
    return true;
}
#define NAME_IS(s, lit) name_is(s, "" lit, sizeof(lit) - 1)

static enum head_method method_of(struct str m)
{
    switch (m.n) {
    case 3:
        return !memcmp(m.p, "GET", 3) ? HEAD_GET : !memcmp(m.p, "PUT", 3) ? HEAD_PUT : HEAD_OTHER;
    case 4:
        return !memcmp(m.p, "HEAD", 4) ? HEAD_HEAD : !memcmp(m.p, "POST", 4) ? HEAD_POST : HEAD_OTHER;
    case 5:
        return !memcmp(m.p, "PATCH", 5) ? HEAD_PATCH : HEAD_OTHER;
    case 6:
        return !memcmp(m.p, "DELETE", 6) ? HEAD_DELETE : HEAD_OTHER;
    case 7:
        return !memcmp(m.p, "OPTIONS", 7) ? HEAD_OPTIONS : HEAD_OTHER;
    default:
        return HEAD_OTHER;
    }
}

/* line: without its CRLF. whole: false for a line whose end has not come: then 0 means "good so far" and ret is not complete. */
static int parse_request_line(struct str line, bool whole, const struct head_limits *lim, struct head *ret, const char **ret_why)
{
    const char *p = line.p, *end = line.p + line.n;

    while (p < end && is(*p, C_METHOD) && p - line.p <= METHOD_BYTES_MAX)
        p++;
    if (p == end && !whole)
        return p - line.p > METHOD_BYTES_MAX ? refuse(ret_why, 400, "malformed request line") : 0;
    if (p == end || *p != ' ' || p == line.p || p - line.p > METHOD_BYTES_MAX)
        return refuse(ret_why, 400, "malformed request line");
    struct str method = {line.p, (size_t)(p - line.p)};
    if ((method.n == 5 && !memcmp(method.p, "TRACE", 5)) || (method.n == 7 && !memcmp(method.p, "CONNECT", 7)))
        return refuse(ret_why, 405, "method not allowed");

    const char *target = ++p, *question = NULL;
    if (p < end && *p != '/')
        return refuse(ret_why, 400, "the request target is not a path");
    for (; p < end && is(*p, C_TARGET); p++)
        if (*p == '?' && !question)
            question = p;
    size_t n = (size_t)(p - target);
    if (n > lim->target_bytes)
        return refuse(ret_why, 414, "request target too long");
    if (p == end && !whole)
        return 0;
    if (p == end || *p != ' ')
        return refuse(ret_why, 400, p == end ? "malformed request line" : "byte not allowed in the request target");

    struct str version = {p + 1, (size_t)(end - p - 1)};
    if (!whole) {
        if (version.n && version.n <= 8 && !memcmp(version.p, "HTTP/1.1", version.n < 7 ? version.n : 7))
            return 0;
        return version.n ? refuse(ret_why, 400, "malformed request line or HTTP version") : 0;
    }
    if (version.n != 8 || memcmp(version.p, "HTTP/1.", 7) || (version.p[7] != '0' && version.p[7] != '1'))
        return refuse(ret_why, 400, "malformed request line or HTTP version");

    ret->is_http10 = version.p[7] == '0';
    ret->method = method_of(method);
    ret->method_text = method;
    ret->target = (struct str){target, n};
    if (question) {
        ret->path = (struct str){target, (size_t)(question - target)};
        ret->query = (struct str){question + 1, (size_t)(target + n - question - 1)};
    } else {
        ret->path = ret->target;
        ret->query = (struct str){target + n, 0};
    }
    return 0;
}

/* host[:port]; no userinfo, no blanks, no lists. RFC 9110 4.2.3, 7.2. */
static bool host_is_good(struct str v)
{
    const char *p = v.p, *end = v.p + v.n;

    if (p == end)
        return false;
    if (*p == '[') {
        const char *start = ++p;
        while (p < end && is(*p, C_HEX6))
            p++;
        if (p == end || *p != ']' || p == start)
            return false;
        p++;
    } else {
        while (p < end && is(*p, C_HOST))
            p++;
        if (p == v.p)
            return false;
    }
    if (p == end)
        return true;
    if (*p++ != ':' || end - p > PORT_DIGITS_MAX)
        return false;
    for (; p < end; p++) /* "host:" without digits is legal */
        if (*p < '0' || *p > '9')
            return false;
    return true;
}

/* 1*DIGIT without leading zeros. Nineteen digits always fit; nothing longer is a length of anything. */
static bool length_parse(struct str v, uint64_t *ret)
{
    uint64_t n = 0;

    if (v.n == 0 || v.n > 19 || (v.n > 1 && v.p[0] == '0'))
        return false;
    for (size_t i = 0; i < v.n; i++) {
        if (v.p[i] < '0' || v.p[i] > '9')
            return false;
        n = n * 10 + (uint64_t)(v.p[i] - '0');
    }
    *ret = n;
    return true;
}

/* Only close and keep-alive are understood; a field that Connection names keeps its meaning (SMG-075). */
static void connection_parse(struct str v, bool *close, bool *keep)
{
    while (v.n) {
        const char *comma = memchr(v.p, ',', v.n);
        size_t n = comma ? (size_t)(comma - v.p) : v.n;
        struct str token = {v.p, n};
        while (token.n && (*token.p == ' ' || *token.p == '\t'))
            token.p++, token.n--;
        while (token.n && (token.p[token.n - 1] == ' ' || token.p[token.n - 1] == '\t'))
            token.n--;
        if (NAME_IS(token, "close"))
            *close = true;
        else if (NAME_IS(token, "keep-alive"))
            *keep = true;
        n += comma ? 1 : 0;
        v.p += n;
        v.n -= n;
    }
}

int head_parse(struct str bytes, const struct head_limits *lim, struct head *ret, const char **ret_why)
{
    const char *p = bytes.p, *end = bytes.p + bytes.n;
    bool has_host = false, has_expect = false, close = false, keep = false;

    if (bytes.n > lim->head_bytes)
        return refuse(ret_why, 431, "request head too large");
    if (bytes.n < 4 || memcmp(end - 4, "\r\n\r\n", 4))
        return refuse(ret_why, 400, "malformed request");

    const char *eol = memchr(p, '\r', bytes.n);
    if (eol[1] != '\n') /* eol exists and has a successor: the bytes end in CRLFCRLF */
        return refuse(ret_why, 400, "malformed request line");
    ret->expect_continue = ret->has_length = false;
    ret->length = 0;
    ret->host = ret->authorization = (struct str){0};
    ret->n_fields = 0;
    int status = parse_request_line((struct str){p, (size_t)(eol - p)}, true, lim, ret, ret_why);
    if (status)
        return status;

    unsigned max_fields = lim->fields < HEAD_MAX_FIELDS ? lim->fields : HEAD_MAX_FIELDS, n_fields = 0;
    for (p = eol + 2; *p != '\r'; p += 2) { /* ends at the empty line: no byte below runs past a CR without looking */
        const char *name = p;
        while (is(*p, C_TOKEN))
            p++;
        if (*p != ':' || p == name) /* blanks before the colon, folded lines, no colon, NUL */
            return refuse(ret_why, 400, "malformed header field");
        struct str n = {name, (size_t)(p - name)};
        p++;
        while (*p == ' ' || *p == '\t')
            p++;
        const char *value = p;
        while (is(*p, C_VALUE))
            p++;
        if (p[0] != '\r' || p[1] != '\n') /* control bytes, bare CR or LF; a CR here is never the last byte */
            return refuse(ret_why, 400, "byte not allowed in a header field");
        struct str v = {value, (size_t)(p - value)};
        while (v.n && (v.p[v.n - 1] == ' ' || v.p[v.n - 1] == '\t'))
            v.n--;

        if (n_fields == max_fields)
            return refuse(ret_why, 431, "too many header fields");
        ret->fields[n_fields].name = n;
        ret->fields[n_fields++].value = v;
        switch (n.n) {
        case 4:
            if (!NAME_IS(n, "host"))
                break;
            if (has_host || !host_is_good(v))
                return refuse(ret_why, 400, "malformed or repeated Host");
            has_host = true;
            ret->host = v;
            break;
        case 6:
            if (!NAME_IS(n, "expect"))
                break;
            if (has_expect)
                return refuse(ret_why, 400, "repeated Expect");
            if (!NAME_IS(v, "100-continue"))
                return refuse(ret_why, 417, "expectation not understood");
            has_expect = ret->expect_continue = true;
            break;
        case 10:
            if (NAME_IS(n, "connection"))
                connection_parse(v, &close, &keep);
            break;
        case 13:
            if (!NAME_IS(n, "authorization"))
                break;
            if (ret->authorization.p)
                return refuse(ret_why, 400, "repeated Authorization");
            ret->authorization = v;
            break;
        case 14:
            if (!NAME_IS(n, "content-length"))
                break;
            if (ret->has_length || !length_parse(v, &ret->length))
                return refuse(ret_why, 400, "malformed or repeated Content-Length");
            ret->has_length = true;
            break;
        case 17:
            if (NAME_IS(n, "transfer-encoding"))
                return refuse(ret_why, 400, "Transfer-Encoding is not accepted in requests");
            break;
        default:
            break;
        }
    }
    if (p + 2 != end) /* an empty line in the middle: the caller cut in the wrong place */
        return refuse(ret_why, 400, "malformed request");
    if (!has_host && !ret->is_http10)
        return refuse(ret_why, 400, "Host is missing");
    if (ret->is_http10)
        ret->expect_continue = false; /* RFC 9110 10.1.1: a 1.0 client cannot read a 100 */
    ret->n_fields = n_fields;
    ret->keep_alive = !close && (!ret->is_http10 || keep);
    return 0;
}

int head_check_partial(struct str bytes, size_t from, const struct head_limits *lim, const char **ret_why)
{
    for (size_t i = from; i < bytes.n; i++) {
        char c = bytes.p[i];
        if (c == '\0')
            return refuse(ret_why, 400, "NUL in the request head");
        if (c == '\n' && (i == 0 || bytes.p[i - 1] != '\r'))
            return refuse(ret_why, 400, "bare LF in the request head");
        if (c != '\n' && i > 0 && bytes.p[i - 1] == '\r')
            return refuse(ret_why, 400, "bare CR in the request head");
    }
    const char *eol = memchr(bytes.p, '\r', bytes.n);
    bool whole = eol && eol + 1 < bytes.p + bytes.n;
    struct str line = {bytes.p, eol ? (size_t)(eol - bytes.p) : bytes.n};
    struct head scratch;
    int status = parse_request_line(line, whole, lim, &scratch, ret_why);
    if (status)
        return status;
    if (bytes.n > lim->head_bytes)
        return refuse(ret_why, 431, "request head too large");
    return 0;
}

struct str head_get(const struct head *h, const char *name, unsigned *ret_count)
{
    struct str wanted = {name, strlen(name)}, first = {0};
    unsigned n = 0;

    for (unsigned i = 0; i < h->n_fields; i++) {
        if (h->fields[i].name.n != wanted.n || !str_eq_nocase(h->fields[i].name, wanted))
            continue;
        if (n++ == 0)
            first = h->fields[i].value;
        if (!ret_count)
            break;
    }
    if (ret_count)
        *ret_count = n;
    return first;
}

size_t head_find_end(const char *buf, size_t n, size_t from)
{
    size_t at = from > 3 ? from : 3; /* where its last byte may stand */

    /* From one end of a line to the next: heads have few lines, and memchr looks at many bytes at a time. */
    while (at < n) {
        const char *lf = memchr(buf + at, '\n', n - at);
        if (!lf)
            return 0;
        if (!memcmp(lf - 3, "\r\n\r", 3))
            return (size_t)(lf - buf) + 1;
        at = (size_t)(lf - buf) + 1;
    }
    return 0;
}
