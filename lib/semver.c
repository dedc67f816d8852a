/* Semantic versions, ranges and glob patterns.
 * A range is read into intervals: `||` of groups, a group `&&` of terms, a term one interval or its complement. The
 * syntax is what npm (node-semver) and Helm (Masterminds/semver) have in common, each one's spellings included; where they
 * differ in meaning npm's stricter reading is taken. Knows nothing of tags or licenses. */
#include "pullgate/semver.h"

#include <string.h>

#include "pullgate/mem.h"

#define RANGE_MAX_BYTES 256 /* a person writes these; the longest seen in charts is under 100 */
#define RANGE_MAX_TERMS 64
#define GLOB_MAX_BYTES 256

/* ---- versions ------------------------------------------------------------------------------- */

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool is_ident_char(char c)
{
    return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '-';
}

static bool all_digits(struct str s)
{
    for (size_t i = 0; i < s.n; i++)
        if (!is_digit(s.p[i]))
            return false;
    return s.n > 0;
}

/* A number without leading zeros at *at; false on none, or beyond 64 bits. */
static bool number_read(struct str s, size_t *at, uint64_t *ret)
{
    size_t i = *at;
    uint64_t v = 0;

    if (i >= s.n || !is_digit(s.p[i]))
        return false;
    if (s.p[i] == '0' && i + 1 < s.n && is_digit(s.p[i + 1]))
        return false;
    for (; i < s.n && is_digit(s.p[i]); i++)
        if (__builtin_mul_overflow(v, (uint64_t)10, &v) || __builtin_add_overflow(v, (uint64_t)(s.p[i] - '0'), &v))
            return false;
    *at = i;
    *ret = v;
    return true;
}

/* Dot-separated identifiers at *at, as long as they go; numeric ones without leading zeros when `ordered`. */
static bool idents_read(struct str s, size_t *at, bool ordered, struct str *ret)
{
    size_t from = *at, i = from;

    for (;;) {
        size_t begin = i;
        while (i < s.n && is_ident_char(s.p[i]))
            i++;
        struct str ident = str_sub(s, begin, i - begin);
        if (ident.n == 0 || (ordered && ident.n > 1 && ident.p[0] == '0' && all_digits(ident)))
            return false;
        if (i >= s.n || s.p[i] != '.')
            break;
        i++;
    }
    *ret = str_sub(s, from, i - from);
    *at = i;
    return true;
}

bool semver_parse(struct str in, struct semver *ret)
{
    struct semver v = {.pre = S(""), .build = S("")};
    size_t i = in.n && in.p[0] == 'v' ? 1 : 0;

    if (!number_read(in, &i, &v.major) || i >= in.n || in.p[i++] != '.')
        return false;
    if (!number_read(in, &i, &v.minor) || i >= in.n || in.p[i++] != '.')
        return false;
    if (!number_read(in, &i, &v.patch))
        return false;
    if (i < in.n && in.p[i] == '-') {
        i++;
        if (!idents_read(in, &i, true, &v.pre))
            return false;
    }
    if (i < in.n && in.p[i] == '+') {
        i++;
        if (!idents_read(in, &i, false, &v.build))
            return false;
    }
    if (i != in.n)
        return false;
    *ret = v;
    return true;
}

static int u64_cmp(uint64_t a, uint64_t b)
{
    return (a > b) - (a < b);
}

/* semver 11.4.1 to 11.4.3; numbers of any length, so by length first. */
static int ident_cmp(struct str a, struct str b)
{
    bool na = all_digits(a), nb = all_digits(b);

    if (na && nb)
        return a.n != b.n ? (a.n > b.n) - (a.n < b.n) : str_cmp(a, b);
    if (na != nb)
        return na ? -1 : 1;
    return str_cmp(a, b);
}

static int pre_cmp(struct str a, struct str b)
{
    if (a.n == 0 || b.n == 0)
        return (a.n == 0) - (b.n == 0);
    for (;;) {
        struct str ia = a, ib = b, ra = {NULL, 0}, rb = {NULL, 0};
        bool more_a = str_cut(a, '.', &ia, &ra), more_b = str_cut(b, '.', &ib, &rb);
        int c = ident_cmp(ia, ib);
        if (c)
            return c;
        if (!more_a || !more_b)
            return more_a - more_b;
        a = ra;
        b = rb;
    }
}

int semver_cmp(const struct semver *a, const struct semver *b)
{
    int c = u64_cmp(a->major, b->major);

    if (c == 0)
        c = u64_cmp(a->minor, b->minor);
    if (c == 0)
        c = u64_cmp(a->patch, b->patch);
    if (c == 0)
        c = pre_cmp(a->pre, b->pre);
    return c;
}

/* ---- ranges --------------------------------------------------------------------------------- */

struct term {
    bool has_lo, lo_open;
    bool has_hi, hi_open;
    bool negated;    /* != */
    bool ends_group; /* the next term belongs to another alternative */
    struct semver lo, hi;
    /* The versions written in the text, as opposed to bounds made of them: a pre-release is let in by those only. */
    struct semver named[2];
    unsigned n_named;
};

struct semver_range {
    size_t n;
    struct term *terms;
    char text[RANGE_MAX_BYTES + 1]; /* what the versions' strings borrow from */
};

/* A version with parts left out or written as x, X or *. */
struct partial {
    struct semver v;
    unsigned parts; /* how many numbers were given: 0 to 3 */
};

enum op { OP_NONE, OP_EQ, OP_NE, OP_LT, OP_LE, OP_GT, OP_GE, OP_CARET, OP_TILDE };

struct reader {
    struct str s;
    size_t at;
};

static void skip_space(struct reader *r)
{
    while (r->at < r->s.n && (r->s.p[r->at] == ' ' || r->s.p[r->at] == '\t'))
        r->at++;
}

static bool at_end(const struct reader *r)
{
    return r->at >= r->s.n;
}

static char peek(const struct reader *r)
{
    return at_end(r) ? '\0' : r->s.p[r->at];
}

static bool take(struct reader *r, const char *word)
{
    if (!str_starts(str_skip(r->s, r->at), str_c(word)))
        return false;
    r->at += strlen(word);
    return true;
}

static enum op read_op(struct reader *r)
{
    static const struct {
        const char *text;
        enum op op;
    } ops[] = {
        /* the longer of two that begin alike stands first */
        {">=", OP_GE}, {"=>", OP_GE}, {"<=", OP_LE}, {"=<", OP_LE}, {"!=", OP_NE}, {"~>", OP_TILDE},
        {">", OP_GT},  {"<", OP_LT},  {"=", OP_EQ},  {"~", OP_TILDE}, {"^", OP_CARET},
    };

    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++)
        if (take(r, ops[i].text))
            return ops[i].op;
    return OP_NONE;
}

static bool ends_version(const struct reader *r)
{
    char c = peek(r);
    return at_end(r) || c == ' ' || c == '\t' || c == ',' || c == '|';
}

static bool read_partial(struct reader *r, struct partial *ret)
{
    struct partial p = {.v = {.pre = S(""), .build = S("")}};
    uint64_t *numbers[] = {&p.v.major, &p.v.minor, &p.v.patch};
    bool wild = false;

    if (peek(r) == 'v')
        r->at++;
    for (unsigned i = 0;; i++) {
        char c = peek(r);
        if (c == 'x' || c == 'X' || c == '*') {
            r->at++;
            wild = true;
        } else {
            /* the largest number is left out, so that "the next one" always exists */
            if (wild || !number_read(r->s, &r->at, numbers[i]) || *numbers[i] == UINT64_MAX)
                return false;
            p.parts++;
        }
        if (peek(r) != '.' || i == 2)
            break;
        r->at++;
    }
    if (p.parts == 3) {
        if (peek(r) == '-') {
            r->at++;
            if (!idents_read(r->s, &r->at, true, &p.v.pre))
                return false;
        }
        if (peek(r) == '+') {
            r->at++;
            if (!idents_read(r->s, &r->at, false, &p.v.build))
                return false;
        }
    }
    if (!ends_version(r))
        return false;
    *ret = p;
    return true;
}

/* The version that every release and pre-release of (major, minor, patch) is at or above: x.y.z-0. */
static struct semver floor_of(uint64_t major, uint64_t minor, uint64_t patch)
{
    return (struct semver){major, minor, patch, S("0"), S("")};
}

/* The floor of what follows everything that p's first `parts` numbers cover. */
static struct semver next_of(const struct partial *p, unsigned parts)
{
    if (parts == 1)
        return floor_of(p->v.major + 1, 0, 0);
    if (parts == 2)
        return floor_of(p->v.major, p->v.minor + 1, 0);
    return floor_of(p->v.major, p->v.minor, p->v.patch + 1);
}

/* Where p begins: itself when complete, else the floor, so that with include_prerelease 1.4.0-rc.1 is one of 1.4.x. */
static struct semver begin_of(const struct partial *p)
{
    return p->parts == 3 ? p->v : floor_of(p->v.major, p->v.minor, p->v.patch);
}

static void term_lo(struct term *t, struct semver v, bool open)
{
    t->has_lo = true;
    t->lo_open = open;
    t->lo = v;
}

static void term_hi(struct term *t, struct semver v, bool open)
{
    t->has_hi = true;
    t->hi_open = open;
    t->hi = v;
}

static void term_name(struct term *t, const struct partial *p)
{
    if (p->parts == 3)
        t->named[t->n_named++] = p->v;
}

/* From p's beginning to the end of what p covers; for a complete version, just it. */
static void term_covers(struct term *t, const struct partial *p)
{
    if (p->parts == 0)
        return;
    term_lo(t, begin_of(p), false);
    if (p->parts == 3)
        term_hi(t, p->v, false);
    else
        term_hi(t, next_of(p, p->parts), true);
}

/* False for a term that no version can satisfy (`>*`). */
static bool term_make(enum op op, const struct partial *p, struct term *t)
{
    unsigned keep;

    if (op != OP_NE) /* what is left out lets nothing in */
        term_name(t, p);
    switch (op) { /* GCOVR_EXCL_BR_LINE: every operator has its case, each a line of its own */
    case OP_NONE:
    case OP_EQ:
        term_covers(t, p);
        return true;
    case OP_NE:
        t->negated = true;
        term_covers(t, p);
        return p->parts > 0;
    case OP_LT:
        /* `<2` leaves 2.0.0-rc.1 out, `<2.0.0` is meant literally */
        term_hi(t, begin_of(p), true);
        return p->parts > 0;
    case OP_LE:
        if (p->parts == 3)
            term_hi(t, p->v, false);
        else if (p->parts)
            term_hi(t, next_of(p, p->parts), true);
        return true;
    case OP_GT:
        if (p->parts == 3)
            term_lo(t, p->v, true);
        else
            term_lo(t, next_of(p, p->parts), false);
        return p->parts > 0;
    case OP_GE:
        if (p->parts)
            term_lo(t, begin_of(p), false);
        return true;
    case OP_TILDE:
        if (p->parts == 0)
            return true;
        term_lo(t, begin_of(p), false);
        term_hi(t, next_of(p, p->parts == 1 ? 1 : 2), true);
        return true;
    case OP_CARET:
        if (p->parts == 0)
            return true;
        /* changes that do not touch the leftmost number that is not zero */
        keep = 1;
        if (p->v.major == 0 && p->parts >= 2)
            keep = p->v.minor != 0 || p->parts == 2 ? 2 : 3;
        term_lo(t, begin_of(p), false);
        term_hi(t, next_of(p, keep), true);
        return true;
    }
    return false; /* GCOVR_EXCL_LINE: see the switch */
}

/* One comparator or hyphen range. */
static bool read_term(struct reader *r, struct term *t)
{
    struct partial p, to;
    enum op op = read_op(r);

    skip_space(r);
    if (!read_partial(r, &p))
        return false;
    if (op == OP_NONE) {
        struct reader ahead = *r;
        skip_space(&ahead);
        if (ahead.at > r->at && (take(&ahead, "- ") || take(&ahead, "-\t"))) {
            *r = ahead;
            skip_space(r);
            if (!read_partial(r, &to))
                return false;
            bool from = term_make(OP_GE, &p, t), until = term_make(OP_LE, &to, t);
            return from & until;
        }
    }
    return term_make(op, &p, t);
}

enum err semver_range_parse(struct str in, struct semver_range **ret, struct error *reterr)
{
    struct semver_range *range;
    struct reader r;
    enum err e;
    size_t part;

    if (in.n > RANGE_MAX_BYTES)
        return error_set_field(reterr, ERR_INVALID, "value", "a range has at most %d bytes", RANGE_MAX_BYTES);
    range = NEW(struct semver_range);
    if (in.n)
        memcpy(range->text, in.p, in.n);
    range->terms = mem_calloc(RANGE_MAX_TERMS, sizeof *range->terms);
    r = (struct reader){{range->text, in.n}, 0};

    skip_space(&r);
    for (;;) {
        part = r.at;
        if (range->n == RANGE_MAX_TERMS) {
            e = error_set_field(reterr, ERR_INVALID, "value", "a range has at most %d comparators", RANGE_MAX_TERMS);
            goto fail;
        }
        struct term *t = &range->terms[range->n];
        if (!read_term(&r, t))
            goto malformed;
        range->n++;
        skip_space(&r);
        if (at_end(&r))
            break;
        if (take(&r, "||"))
            t->ends_group = true;
        else
            (void)take(&r, ",");
        skip_space(&r);
    }
    range->terms[range->n - 1].ends_group = true;
    range->terms = mem_realloc(range->terms, range->n * sizeof *range->terms);
    *ret = range;
    return ERR_OK;

malformed:;
    /* only what was printable and short can stand in the sentence */
    struct str rest = str_sub(r.s, part, 40);
    bool printable = rest.n > 0;
    for (size_t i = 0; i < rest.n; i++)
        printable = printable && rest.p[i] >= ' ' && rest.p[i] <= '~';
    if (printable)
        e = error_set_field(reterr, ERR_INVALID, "value", "not a version range at \"%.*s\"", STR(rest));
    else
        e = error_set_field(reterr, ERR_INVALID, "value", "not a version range: byte %zu", part);
fail:
    semver_range_free(range);
    return e;
}

void semver_range_free(struct semver_range *r)
{
    if (!r)
        return;
    mem_free(r->terms);
    mem_free(r);
}

static bool term_holds(const struct term *t, const struct semver *v)
{
    bool inside = true;

    if (t->has_lo) {
        int c = semver_cmp(v, &t->lo);
        inside = t->lo_open ? c > 0 : c >= 0;
    }
    if (inside && t->has_hi) {
        int c = semver_cmp(v, &t->hi);
        inside = t->hi_open ? c < 0 : c <= 0;
    }
    return inside != t->negated;
}

static bool term_names_prerelease_of(const struct term *t, const struct semver *v)
{
    for (unsigned i = 0; i < t->n_named; i++) {
        const struct semver *n = &t->named[i];
        if (n->pre.n && n->major == v->major && n->minor == v->minor && n->patch == v->patch)
            return true;
    }
    return false;
}

bool semver_range_matches(const struct semver_range *r, const struct semver *v, bool include_prerelease)
{
    bool holds = true, named = include_prerelease || v->pre.n == 0;

    for (size_t i = 0; i < r->n; i++) {
        const struct term *t = &r->terms[i];
        holds = holds && term_holds(t, v);
        named = named || term_names_prerelease_of(t, v);
        if (t->ends_group) {
            if (holds && named)
                return true;
            holds = true;
            named = include_prerelease || v->pre.n == 0;
        }
    }
    return false;
}

/* ---- glob patterns -------------------------------------------------------------------------- */

/* A set begins at p[at] == '['. False when it is not closed or empty. *ret_end: past the ']'. */
static bool set_matches(struct str p, size_t at, char c, bool *ret_in, size_t *ret_end)
{
    size_t i = at + 1;
    bool negated = false, in = false, any = false;

    if (i < p.n && (p.p[i] == '!' || p.p[i] == '^')) {
        negated = true;
        i++;
    }
    for (; i < p.n && p.p[i] != ']'; i++) {
        unsigned char lo = (unsigned char)p.p[i], hi = lo;
        if (i + 2 < p.n && p.p[i + 1] == '-' && p.p[i + 2] != ']') {
            hi = (unsigned char)p.p[i + 2];
            i += 2;
        }
        if (hi < lo)
            return false;
        any = true;
        in = in || ((unsigned char)c >= lo && (unsigned char)c <= hi);
    }
    if (i >= p.n || !any)
        return false;
    *ret_in = in != negated;
    *ret_end = i + 1;
    return true;
}

/* Backtracks to the last star only, so at most pattern x string steps: both are bounded, and nothing is exponential. */
bool glob_matches(struct str pattern, struct str s)
{
    size_t p = 0, i = 0, star_p = 0, star_i = 0;
    bool have_star = false;

    while (i < s.n) {
        bool one = false;
        size_t next = p + 1;
        if (p < pattern.n && pattern.p[p] == '*') {
            have_star = true;
            star_p = ++p;
            star_i = i;
            continue;
        }
        if (p < pattern.n) {
            if (pattern.p[p] == '[') {
                if (!set_matches(pattern, p, s.p[i], &one, &next))
                    return false;
            } else {
                one = pattern.p[p] == '?' || pattern.p[p] == s.p[i];
            }
        }
        if (one) {
            p = next;
            i++;
        } else if (have_star) {
            p = star_p;
            i = ++star_i;
        } else {
            return false;
        }
    }
    while (p < pattern.n && pattern.p[p] == '*')
        p++;
    return p == pattern.n;
}

enum err glob_check(struct str pattern, struct error *reterr)
{
    bool in;

    if (pattern.n == 0 || pattern.n > GLOB_MAX_BYTES)
        return error_set_field(reterr, ERR_INVALID, "value", "a pattern has 1 to %d bytes", GLOB_MAX_BYTES);
    for (size_t i = 0; i < pattern.n; i++) {
        char c = pattern.p[i];
        if (c <= ' ' || c > '~' || c == '\\' || c == '/')
            return error_set_field(reterr, ERR_INVALID, "value", "byte %zu of the pattern stands in no version", i);
    }
    for (size_t i = 0; i < pattern.n;) {
        if (pattern.p[i] == '[') {
            if (!set_matches(pattern, i, 'a', &in, &i))
                return error_set_field(reterr, ERR_INVALID, "value", "the set at byte %zu of the pattern is empty, reversed or not closed", i);
        } else {
            i++;
        }
    }
    return ERR_OK;
}
