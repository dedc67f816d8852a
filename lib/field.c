/* Field values of upstream responses: challenges, links, content ranges. */
#include "pullgate/field.h"

#include <string.h>

#define RETRY_AFTER_MAX_S 3600u

static bool token_char(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || (c != '\0' && strchr("!#$%&'*+-.^_`|~", c));
}

static bool is_blank(char c)
{
    return c == ' ' || c == '\t';
}

static void skip_blanks(struct str *s)
{
    while (s->n && is_blank(*s->p))
        *s = str_skip(*s, 1);
}

/* Leading token characters, taken off s; may be empty. */
static struct str take_token(struct str *s)
{
    size_t n = 0;
    while (n < s->n && token_char(s->p[n]))
        n++;
    struct str t = str_sub(*s, 0, n);
    *s = str_skip(*s, n);
    return t;
}

/* A token or a quoted string off s into out, NUL-terminated. */
static bool take_value(struct str *s, char *out, size_t size)
{
    size_t n = 0;
    if (s->n && *s->p == '"') {
        size_t i = 1;
        for (; i < s->n && s->p[i] != '"'; i++) {
            char c = s->p[i];
            if (c == '\\' && ++i < s->n)
                c = s->p[i];
            if (i >= s->n || (unsigned char)c < 0x20 || c == 0x7f || n + 1 >= size)
                return false;
            out[n++] = c;
        }
        if (i >= s->n)
            return false;
        *s = str_skip(*s, i + 1);
    } else {
        struct str t = take_token(s);
        if (!t.n || t.n >= size)
            return false;
        memcpy(out, t.p, t.n);
        n = t.n;
    }
    out[n] = 0;
    return true;
}

/* Credentials of the token68 form ("Negotiate abc=="), which have no parameters: skipped when they fill the challenge. */
static void skip_token68(struct str *s)
{
    size_t n = 0;
    while (n < s->n && (token_char(s->p[n]) || s->p[n] == '/'))
        n++;
    size_t end = n;
    while (end < s->n && s->p[end] == '=')
        end++;
    struct str rest = str_skip(*s, end);
    skip_blanks(&rest);
    if (n && (!rest.n || *rest.p == ','))
        *s = rest;
}

static bool param_set(struct challenge *c, struct str name, const char *value)
{
    static char unused[1];
    char *to = unused;
    size_t size = 0;
    if (str_eq_nocase(name, S("realm")))
        to = c->realm, size = sizeof c->realm;
    else if (str_eq_nocase(name, S("service")))
        to = c->service, size = sizeof c->service;
    else if (str_eq_nocase(name, S("scope")))
        to = c->scope, size = sizeof c->scope;
    if (!size)
        return true; /* others are nothing to us */
    size_t n = strlen(value);
    if (*to || n >= size)
        return false;
    memcpy(to, value, n + 1);
    return true;
}

enum err field_challenges_parse(struct str value, struct challenge ret[FIELD_CHALLENGES_MAX], size_t *n)
{
    struct challenge *c = NULL;
    struct str s = value;
    while (true) {
        while (s.n && (is_blank(*s.p) || *s.p == ','))
            s = str_skip(s, 1);
        if (!s.n)
            return c ? ERR_OK : ERR_INVALID;
        struct str word = take_token(&s), after = s;
        if (!word.n)
            return ERR_INVALID;
        skip_blanks(&after);
        if (c && after.n && *after.p == '=') {
            char text[1024];
            s = str_skip(after, 1);
            skip_blanks(&s);
            if (!take_value(&s, text, sizeof text) || !param_set(c, word, text))
                return ERR_INVALID;
            skip_blanks(&s);
            if (s.n && *s.p != ',')
                return ERR_INVALID;
            continue;
        }
        if (*n == FIELD_CHALLENGES_MAX || (s.n && !is_blank(*s.p) && *s.p != ','))
            return ERR_INVALID;
        c = &ret[(*n)++];
        memset(c, 0, sizeof *c);
        c->scheme = str_eq_nocase(word, S("basic")) ? CHALLENGE_BASIC : str_eq_nocase(word, S("bearer")) ? CHALLENGE_BEARER : CHALLENGE_OTHER;
        skip_blanks(&s);
        skip_token68(&s);
    }
}

enum err field_link_next(struct str value, struct str *ret)
{
    struct str s = value, found = {NULL, 0};
    while (true) {
        while (s.n && (is_blank(*s.p) || *s.p == ','))
            s = str_skip(s, 1);
        if (!s.n)
            break;
        ptrdiff_t end = str_index(s, '>');
        if (*s.p != '<' || end < 0)
            return ERR_INVALID;
        struct str target = str_sub(s, 1, (size_t)end - 1);
        s = str_skip(s, (size_t)end + 1);
        bool is_next = false, seen_rel = false;
        while (true) {
            skip_blanks(&s);
            if (!s.n || *s.p != ';')
                break;
            s = str_skip(s, 1);
            skip_blanks(&s);
            struct str name = take_token(&s);
            char text[512] = "";
            skip_blanks(&s);
            if (!name.n)
                return ERR_INVALID;
            if (s.n && *s.p == '=') {
                s = str_skip(s, 1);
                skip_blanks(&s);
                if (!take_value(&s, text, sizeof text))
                    return ERR_INVALID;
            }
            if (!seen_rel && str_eq_nocase(name, S("rel"))) {
                seen_rel = true;
                is_next = str_eq_nocase(str_c(text), S("next"));
            }
        }
        if (s.n && *s.p != ',')
            return ERR_INVALID;
        if (is_next && !found.p)
            found = target;
    }
    if (!found.p)
        return ERR_NOT_FOUND;
    *ret = found;
    return ERR_OK;
}

enum err field_content_range_parse(struct str value, struct byte_range *ret, uint64_t *ret_total)
{
    struct str unit, rest, range, total, first, last;
    struct byte_range r;
    uint64_t n = 0;
    if (!str_cut(value, ' ', &unit, &rest) || !str_eq_nocase(unit, S("bytes")) || !str_cut(rest, '/', &range, &total) ||
        !str_cut(range, '-', &first, &last) || !str_to_u64(first, &r.first) || !str_to_u64(last, &r.last) || r.last < r.first)
        return ERR_INVALID;
    if (!str_eq(total, S("*")) && (!str_to_u64(total, &n) || n <= r.last))
        return ERR_INVALID;
    *ret = r;
    *ret_total = n;
    return ERR_OK;
}

unsigned field_retry_after_s(struct str value)
{
    uint64_t s;
    if (!str_to_u64(value, &s))
        return 0;
    return s > RETRY_AFTER_MAX_S ? RETRY_AFTER_MAX_S : (unsigned)s;
}
