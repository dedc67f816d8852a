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

/* At most max bytes of s, as a JSON string with its quotes. */
static inline void textline_json(struct textline *t, struct str s, size_t max)
{
    size_t i = 0;

    if (s.n > max)
        s.n = max;
    if ((size_t)(t->end - t->p) < s.n + 2) {
        t->cut = true;
        return;
    }
    *t->p++ = '"';
    for (; i < s.n; i++) {
        unsigned char c = (unsigned char)s.p[i];
        if (c < 0x20 || c > 0x7e || c == '"' || c == '\\')
            break;
        t->p[i] = (char)c;
    }
    if (i < s.n) { /* something to escape: rare */
        struct strbuf b = {0};
        sb_add_json(&b, s);
        t->p--;
        textline_raw(t, b.p, b.n);
        sb_free(&b);
        return;
    }
    t->p += i;
    *t->p++ = '"';
}

#endif
