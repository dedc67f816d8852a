/* Length-carrying strings and a growing buffer.
 * A struct str borrows bytes it does not own and need not be NUL-terminated; a struct strbuf owns its bytes. */
#ifndef PULLGATE_STR_H
#define PULLGATE_STR_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct str {
    const char *p;
    size_t n;
};

/* for "%.*s" */
#define STR(s) (int)(s).n, (s).p
/* a literal */
#define S(lit) ((struct str){"" lit, sizeof(lit) - 1})

/* of a C string; NULL gives an empty one */
static inline struct str str_c(const char *c)
{
    return c != NULL ? (struct str){c, strlen(c)} : (struct str){NULL, 0};
}
static inline bool str_eq(struct str a, struct str b)
{
    return a.n == b.n && (a.n == 0 || memcmp(a.p, b.p, a.n) == 0);
}
bool str_eq_c(struct str a, const char *b);
bool str_eq_nocase(struct str a, struct str b); /* ASCII only */
int str_cmp(struct str a, struct str b);        /* bytewise, as memcmp then length */
static inline bool str_starts(struct str s, struct str prefix)
{
    return s.n >= prefix.n && (prefix.n == 0 || memcmp(s.p, prefix.p, prefix.n) == 0);
}
bool str_ends(struct str s, struct str suffix);
/* Index of the first / last byte c, or -1. */
ptrdiff_t str_index(struct str s, char c);
ptrdiff_t str_rindex(struct str s, char c);
struct str str_sub(struct str s, size_t from, size_t n); /* clamped */
struct str str_skip(struct str s, size_t n);             /* clamped */
struct str str_trim(struct str s);                       /* SP and HTAB at both ends */
/* Split at the first c. False (and outputs untouched) when c is absent. */
bool str_cut(struct str s, char c, struct str *ret_before, struct str *ret_after);
/* Next token of *rest up to c (c consumed); false when *rest is exhausted (p == NULL). */
bool str_next(struct str *rest, char c, struct str *ret_token);
/* Digits only, no sign, no overflow. */
bool str_to_u64(struct str s, uint64_t *ret);
/* Heap copy, NUL-terminated, mem_free() it. */
char *str_dup(struct str s);
/* Constant time for equal lengths: for MACs and secrets' digests. */
bool str_eq_secret(const void *a, const void *b, size_t n);
/* 64-bit hash for tables of trusted or length-bounded keys, seeded once a process (SipHash-1-3 class). */
uint64_t str_hash(struct str s);
/* 128 bits, SipHash-2-4 under a key of this process: a stand-in for a secret that must not be kept, only recognised. */
struct str_mark {
    uint64_t a, b;
};
struct str_mark str_mark(struct str s);

struct strbuf {
    char *p; /* NUL-terminated whenever not NULL */
    size_t n;
    size_t cap;
};

void sb_free(struct strbuf *b);
void sb_reset(struct strbuf *b); /* keeps the memory */
void sb_reserve(struct strbuf *b, size_t more);
/* Inline: what is added is a literal mostly, and then costs a few moves. */
static inline void sb_add(struct strbuf *b, struct str s)
{
    if (b->cap - b->n <= s.n)
        sb_reserve(b, s.n);
    if (s.n > 0)
        memcpy(b->p + b->n, s.p, s.n);
    b->n += s.n;
    b->p[b->n] = '\0';
}
void sb_addc(struct strbuf *b, const char *c);
void sb_add_char(struct strbuf *b, char c);
void sb_add_u64(struct strbuf *b, uint64_t v);
void sb_addf(struct strbuf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void sb_vaddf(struct strbuf *b, const char *fmt, va_list ap) __attribute__((format(printf, 2, 0)));
/* A JSON string with its quotes; control bytes, quotes, backslash and invalid UTF-8 escaped. */
void sb_add_json(struct strbuf *b, struct str s);
void sb_add_hex(struct strbuf *b, const void *bytes, size_t n);
struct str sb_str(const struct strbuf *b);
char *sb_take(struct strbuf *b); /* the C string, caller owns; b is empty after */

bool hex_decode(struct str in, void *out, size_t out_n); /* exactly 2*out_n lower or upper case digits */

#endif
