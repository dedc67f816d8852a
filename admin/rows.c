#include "rows.h"

#include <stdio.h>
#include <string.h>

#include "pullgate/mem.h"

#define COLUMNS_MAX 200
#define CELL_MAX    65536 /* bytes */

static bool is_guarded(struct str cell)
{
    if (!cell.n)
        return false;
    unsigned char c = (unsigned char)cell.p[0];
    return c == '=' || c == '+' || c == '-' || c == '@' || c == '\'' || c < 0x20;
}

void csv_cell(struct strbuf *b, struct str cell, bool is_first)
{
    bool has_quotes = false;
    if (!is_first)
        sb_add_char(b, ',');
    for (size_t i = 0; i < cell.n && !has_quotes; i++)
        has_quotes = cell.p[i] == '"' || cell.p[i] == ',' || cell.p[i] == ';' || cell.p[i] == '\n' || cell.p[i] == '\r' || cell.p[i] == '\t';
    has_quotes = has_quotes || (cell.n && (cell.p[0] == ' ' || cell.p[cell.n - 1] == ' '));
    if (has_quotes)
        sb_add_char(b, '"');
    if (is_guarded(cell))
        sb_add_char(b, '\'');
    for (size_t i = 0; i < cell.n; i++) {
        if (cell.p[i] == '"')
            sb_add_char(b, '"');
        sb_add_char(b, cell.p[i]);
    }
    if (has_quotes)
        sb_add_char(b, '"');
}

void csv_value(struct strbuf *b, const struct jv *v, bool is_first)
{
    struct strbuf text = {0};
    switch (jv_type(v)) {
    case JV_NONE:
    case JV_NULL:
        csv_cell(b, (struct str){NULL, 0}, is_first);
        return;
    case JV_STRING:
        csv_cell(b, jv_str(v), is_first);
        return;
    case JV_INT: /* a number is no formula */
        sb_addf(b, "%s%lld", is_first ? "" : ",", (long long)jv_int(v, 0));
        return;
    case JV_BOOL:
        sb_addf(b, "%s%s", is_first ? "" : ",", jv_bool(v, false) ? "true" : "false");
        return;
    case JV_REAL:
    case JV_ARRAY:
    case JV_OBJECT:
        break;
    }
    if (jv_len(v))
        jv_dump(v, &text);
    csv_cell(b, sb_str(&text), is_first);
    sb_free(&text);
}

/* ---- reading ------------------------------------------------------------------------------------------------------------ */

static bool utf8_good(struct str s)
{
    const unsigned char *p = (const unsigned char *)s.p;
    for (size_t i = 0; i < s.n;) {
        unsigned char c = p[i];
        size_t n = c < 0x80 ? 1 : c >= 0xc2 && c < 0xe0 ? 2 : c >= 0xe0 && c < 0xf0 ? 3 : c >= 0xf0 && c < 0xf5 ? 4 : 0;
        if (!n || n > s.n - i || c == 0)
            return false;
        for (size_t k = 1; k < n; k++)
            if ((p[i + k] & 0xc0) != 0x80)
                return false;
        if ((c == 0xe0 && p[i + 1] < 0xa0) || (c == 0xed && p[i + 1] > 0x9f) || (c == 0xf0 && p[i + 1] < 0x90) || (c == 0xf4 && p[i + 1] > 0x8f))
            return false;
        i += n;
    }
    return true;
}

struct reader {
    struct str rest;
    size_t line;
    char between;
};

static char peek(const struct reader *r)
{
    return r->rest.n ? r->rest.p[0] : '\0';
}

static void skip(struct reader *r)
{
    if (r->rest.p[0] == '\n')
        r->line++;
    r->rest = str_skip(r->rest, 1);
}

/* One cell; what is between cells or ends the line is left. False: quotes that do not close, or text after them. */
static bool cell_read(struct reader *r, struct strbuf *ret)
{
    sb_reset(ret);
    sb_addc(ret, "");
    if (peek(r) == '"') {
        skip(r);
        for (;;) {
            if (!r->rest.n)
                return false;
            char c = peek(r);
            skip(r);
            if (c == '"') {
                if (peek(r) != '"' || !r->rest.n)
                    break;
                skip(r);
            }
            sb_add_char(ret, c);
        }
        char c = peek(r);
        return !r->rest.n || c == r->between || c == '\n' || c == '\r';
    }
    while (r->rest.n && peek(r) != r->between && peek(r) != '\n' && peek(r) != '\r') {
        sb_add_char(ret, peek(r));
        skip(r);
    }
    return true;
}

/* Over the end of the line; false when the line goes on. */
static bool line_end(struct reader *r)
{
    if (!r->rest.n)
        return true;
    if (peek(r) == '\r') {
        skip(r);
        if (r->rest.n && peek(r) == '\n')
            skip(r);
        else
            r->line++;
        return true;
    }
    if (peek(r) == '\n') {
        skip(r);
        return true;
    }
    return false;
}

static void line_skip(struct reader *r)
{
    while (r->rest.n && peek(r) != '\n')
        skip(r);
    if (r->rest.n)
        skip(r);
}

static struct str cell_plain(const struct strbuf *cell)
{
    struct str s = sb_str(cell);
    if (s.n > 1 && s.p[0] == '\'' && is_guarded(str_skip(s, 1)))
        return str_skip(s, 1);
    return s;
}

static struct row_in *row_new(struct rows_in *r, size_t line)
{
    if (r->n % 256 == 0)
        r->rows = mem_realloc(r->rows, (r->n + 256) * sizeof *r->rows);
    struct row_in *row = &r->rows[r->n++];
    *row = (struct row_in){.line = line};
    return row;
}

static enum err csv_read(struct str text, size_t max, struct rows_in *ret, struct error *reterr)
{
    struct reader r = {.rest = text, .line = 1, .between = ','};
    char *names[COLUMNS_MAX];
    size_t n = 0;
    struct strbuf cell = {0};
    enum err err = ERR_OK;
    size_t first = 0;
    while (first < text.n && text.p[first] != '\n' && text.p[first] != ',')
        first++;
    if (first == text.n || text.p[first] != ',')
        r.between = memchr(text.p, ';', first) ? ';' : memchr(text.p, '\t', first) ? '\t' : ',';

    do {
        if (!cell_read(&r, &cell) || n == COLUMNS_MAX) {
            err = error_set(reterr, ERR_INVALID, "line 1: the columns' names cannot be read");
            break;
        }
        struct str name = str_trim(sb_str(&cell));
        for (size_t i = 0; i < n && !err; i++)
            if (str_eq_c(name, names[i]))
                err = error_set(reterr, ERR_INVALID, "line 1: two columns are named %s", names[i]);
        if (!name.n && !err)
            err = error_set(reterr, ERR_INVALID, "line 1: a column has no name");
        names[n++] = str_dup(name);
        if (err || line_end(&r))
            break;
        skip(&r);
    } while (true);

    while (!err && r.rest.n) {
        size_t line = r.line;
        if (peek(&r) == '\n' || peek(&r) == '\r') { /* a line of nothing */
            (void)line_end(&r);
            continue;
        }
        if (ret->n == max) {
            err = error_set(reterr, ERR_TOO_LARGE, "more than %zu lines in one request; send the rest in a further one", max);
            break;
        }
        struct row_in *row = row_new(ret, line);
        row->values = jv_object();
        for (size_t i = 0;; i++) {
            const char *why = NULL;
            if (!cell_read(&r, &cell))
                why = "quotes that are not closed, or text after them";
            else if (i >= n)
                why = "more cells than there are columns";
            else if (cell.n > CELL_MAX)
                why = "a cell is too long";
            if (why) {
                jv_free(row->values);
                row->values = NULL;
                (void)error_set(&row->error, ERR_INVALID, "%s", why);
                line_skip(&r);
                break;
            }
            if (cell.n)
                jv_set_str(row->values, names[i], cell_plain(&cell));
            if (line_end(&r))
                break;
            skip(&r);
        }
    }
    for (size_t i = 0; i < n; i++)
        mem_free(names[i]);
    sb_free(&cell);
    return err;
}

static enum err ndjson_read(struct str text, size_t max, struct rows_in *ret, struct error *reterr)
{
    struct str rest = text, one;
    for (size_t line = 1; str_next(&rest, '\n', &one); line++) {
        one = str_trim(one);
        if (one.n && one.p[one.n - 1] == '\r')
            one = str_trim(str_sub(one, 0, one.n - 1));
        if (!one.n)
            continue;
        if (ret->n == max)
            return error_set(reterr, ERR_TOO_LARGE, "more than %zu lines in one request; send the rest in a further one", max);
        struct row_in *row = row_new(ret, line);
        if (!jv_parse(one, &JV_LIMITS_API, &row->values, &row->error) && jv_type(row->values) != JV_OBJECT) {
            jv_free(row->values);
            row->values = NULL;
            (void)error_set(&row->error, ERR_INVALID, "not a JSON object");
        }
    }
    return ERR_OK;
}

enum err rows_read(struct str text, bool is_csv, size_t max, struct rows_in *ret, struct error *reterr)
{
    if (str_starts(text, S("\xef\xbb\xbf")))
        text = str_skip(text, 3);
    if (!utf8_good(text))
        return error_set(reterr, ERR_INVALID, "not UTF-8");
    return is_csv ? csv_read(text, max, ret, reterr) : ndjson_read(text, max, ret, reterr);
}

void rows_free(struct rows_in *r)
{
    for (size_t i = 0; i < r->n; i++)
        jv_free(r->rows[i].values);
    mem_free(r->rows);
    *r = (struct rows_in){0};
}
