/* Any bytes as a request head. What is accepted is unambiguous: no NUL, no bare CR or LF, one framing; none of its prefixes is taken
 * for a whole head or refused early; and a second reader, written from RFC 9112 line by line and sharing nothing with the first,
 * accepts it as well and sees the same method, target, length and number of fields. */
#include "fuzz.h"

#include "pullgate/head.h"

/* ---- the second reader: splits at CRLF, then each line at its separators --------------------------------------------- */

struct second {
    struct str method, target;
    unsigned n_fields, n_lengths, n_hosts;
    bool has_coding;
    unsigned long long length;
    bool is_http10;
};

static bool second_token(struct str s)
{
    for (size_t i = 0; i < s.n; i++) {
        unsigned char c = (unsigned char)s.p[i];
        bool alpha = (c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z');
        if (!alpha && (c == 0 || !strchr("!#$%&'*+-.^_`|~", c)))
            return false;
    }
    return s.n > 0;
}

static bool second_field(struct str line, struct second *r)
{
    const char *colon = memchr(line.p, ':', line.n);
    if (!colon)
        return false;
    struct str name = {line.p, (size_t)(colon - line.p)}, value = {colon + 1, line.n - name.n - 1};
    if (!second_token(name))
        return false;
    while (value.n && (value.p[0] == ' ' || value.p[0] == '\t'))
        value.p++, value.n--;
    while (value.n && (value.p[value.n - 1] == ' ' || value.p[value.n - 1] == '\t'))
        value.n--;
    for (size_t i = 0; i < value.n; i++) {
        unsigned char c = (unsigned char)value.p[i];
        if ((c < 32 && c != '\t') || c == 127)
            return false;
    }
    r->n_fields++;
    if (name.n == 17 && !strncasecmp(name.p, "Transfer-Encoding", 17))
        r->has_coding = true;
    if (name.n == 4 && !strncasecmp(name.p, "Host", 4))
        r->n_hosts++;
    if (name.n == 14 && !strncasecmp(name.p, "Content-Length", 14)) {
        char text[32], *end;
        if (value.n == 0 || value.n > 20 || value.p[0] < '0' || value.p[0] > '9')
            return false;
        snprintf(text, sizeof text, "%.*s", STR(value));
        r->length = strtoull(text, &end, 10);
        if (*end)
            return false;
        r->n_lengths++;
    }
    return true;
}

static bool second_read(struct str bytes, struct second *r)
{
    size_t line = 0;

    *r = (struct second){0};
    while (bytes.n) {
        const char *eol = memmem(bytes.p, bytes.n, "\r\n", 2);
        if (!eol)
            return false;
        struct str l = {bytes.p, (size_t)(eol - bytes.p)};
        bytes.p += l.n + 2;
        bytes.n -= l.n + 2;
        if (line++ == 0) {
            const char *a = memchr(l.p, ' ', l.n), *b = a ? memchr(a + 1, ' ', (size_t)(l.p + l.n - a - 1)) : NULL;
            if (!b || l.p + l.n - b != 9 || (memcmp(b, " HTTP/1.1", 9) && memcmp(b, " HTTP/1.0", 9)))
                return false;
            r->is_http10 = b[8] == '0';
            r->method = (struct str){l.p, (size_t)(a - l.p)};
            r->target = (struct str){a + 1, (size_t)(b - a - 1)};
            if (!second_token(r->method) || r->target.n == 0 || r->target.p[0] != '/')
                return false;
            for (size_t i = 0; i < r->target.n; i++)
                if ((unsigned char)r->target.p[i] <= 32 || (unsigned char)r->target.p[i] >= 127)
                    return false;
        } else if (l.n == 0) {
            return bytes.n == 0;
        } else if (!second_field(l, r)) {
            return false;
        }
    }
    return false;
}

/* ---- what must hold ---------------------------------------------------------------------------------------------------- */

static void check_accepted(const char *p, size_t n, const struct head_limits *limits, const struct head *h)
{
    const char *why = NULL;
    unsigned count;
    struct second s;

    for (size_t i = 0; i < n; i++)
        FUZZ_CHECK(p[i] != '\0' && (p[i] != '\n' || (i > 0 && p[i - 1] == '\r')) && (p[i] != '\r' || (i + 1 < n && p[i + 1] == '\n')),
                   "accepted with a NUL, a bare CR or a bare LF");
    for (size_t k = 1, step = 1 + n / 512; k < n; k += step)
        FUZZ_CHECK(head_find_end(p, k, 0) == 0 && head_check_partial((struct str){p, k}, 0, limits, &why) == 0,
                   "a prefix of an accepted head is whole, or refused");
    (void)head_get(h, "transfer-encoding", &count);
    FUZZ_CHECK(count == 0, "accepted with Transfer-Encoding");
    (void)head_get(h, "content-length", &count);
    FUZZ_CHECK(count == h->has_length, "accepted with several lengths");
    (void)head_get(h, "host", &count);
    FUZZ_CHECK(count <= 1 && (count == 1 || h->is_http10), "accepted with a wrong number of Hosts");
    FUZZ_CHECK(h->target.n > 0 && h->target.p[0] == '/' && h->n_fields <= limits->fields && n <= limits->head_bytes &&
                   h->target.n <= limits->target_bytes,
               "accepted beyond the limits");
    FUZZ_CHECK(second_read((struct str){p, n}, &s), "accepted, and the second reader refuses");
    FUZZ_CHECK(!s.has_coding && s.n_lengths == h->has_length && s.length == h->length && s.n_hosts == count && s.n_fields == h->n_fields &&
                   s.is_http10 == h->is_http10 && str_eq(s.method, h->method_text) && str_eq(s.target, h->target),
               "the two readers differ");
    FUZZ_CHECK(h->path.p == h->target.p && (h->path.n == h->target.n ? h->query.n == 0 : h->path.n + 1 + h->query.n == h->target.n),
               "path and query are not the target");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct head_limits limits = {.target_bytes = 4096, .head_bytes = 16384, .fields = 64};
    static struct head h;
    const char *why = NULL;
    size_t end = head_find_end((const char *)data, size, 0), n = end ? end : size;
    char *copy = fuzz_exact((struct str){(const char *)data, n});

    if (end == 0) {
        int whole = head_check_partial((struct str){copy, n}, 0, &limits, &why), status = 0;
        for (size_t k = 1, step = 1 + n / 64; k <= n && !whole; k += step)
            status |= head_check_partial((struct str){copy, k}, 0, &limits, &why);
        FUZZ_CHECK(whole || !status, "a prefix is refused of what may still become good");
    } else if (head_parse((struct str){copy, n}, &limits, &h, &why) == 0) {
        check_accepted(copy, n, &limits, &h);
    } else {
        FUZZ_CHECK(why != NULL, "refused without a reason");
    }
    mem_free(copy);
    return 0;
}
