/* One line of JSON put together in place, for the two lines that every exchange writes (accesslog.c, pullevent.c). Bounded: what does
 * not fit sets `cut`, and the writer decides. Text from clients is escaped here and nowhere else in those files. */
#ifndef PROXY_TEXTLINE_H
#define PROXY_TEXTLINE_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "pullgate/str.h"

struct textline {
    char *p;
    char *end;
    bool cut;
};

static inline void textline_raw(struct textline *t, const char *s, size_t n)
{
    if ((size_t)(t->end - t->p) < n) {
        t->cut = true;
        return;
    }
    memcpy(t->p, s, n);
    t->p += n;
}
#define TEXTLINE_LIT(t, lit) textline_raw((t), "" lit, sizeof(lit) - 1)

static inline void textline_u64(struct textline *t, uint64_t v)
{
    char buf[20];
    size_t n = sizeof buf;
    do
        buf[--n] = (char)('0' + v % 10);
    while (v /= 10);
    textline_raw(t, buf + n, sizeof buf - n);
}

/* Eight bytes that need no escape: 0x20 to 0x7e without quote and backslash. Subtractions borrow from a neighbour only when that is no
 * such byte itself. */
static inline bool textline_is_plain(uint64_t w)
{
    const uint64_t each = 0x0101010101010101u;
    return ((w | (w - each * 0x20) | ((w ^ each * '"') - each) | ((w ^ each * '\\') - each) | ((w ^ each * 0x7f) - each)) & each * 0x80) == 0;
}

/* s to p; false when a byte of it wants an escape. Words that overlap instead of a rest byte by byte. */
static inline bool textline_copy_plain(char *p, struct str s)
{
    uint64_t w = 0x2020202020202020u;

    if (s.n >= 8) {
        for (size_t i = 0; i < s.n; i += 8) {
            if (i > s.n - 8)
                i = s.n - 8;
            memcpy(&w, s.p + i, 8);
            if (!textline_is_plain(w))
                return false;
            memcpy(p + i, &w, 8);
        }
        return true;
    }
    for (size_t i = 0; i < s.n; i++)
        ((char *)&w)[i] = p[i] = s.p[i];
    return textline_is_plain(w);
}

/* At most max bytes of s, as a JSON string with its quotes. */
static inline void textline_json(struct textline *t, struct str s, size_t max)
{
    if (s.n > max)
        s.n = max;
    if ((size_t)(t->end - t->p) < s.n + 2) {
        t->cut = true;
        return;
    }
    if (!textline_copy_plain(t->p + 1, s)) { /* something to escape: rare */
        struct strbuf b = {0};
        sb_add_json(&b, s);
        textline_raw(t, b.p, b.n);
        sb_free(&b);
        return;
    }
    t->p[0] = '"';
    t->p[s.n + 1] = '"';
    t->p += s.n + 2;
}

#endif
