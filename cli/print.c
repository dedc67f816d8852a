/* Answers for people: tables and lines; JSON for programs. */
#include <stdio.h>

#include "pullgate/jv.h"
#include "pullgate/mem.h"
#include "pullgate/str.h"

#include "cli.h"

void print_json(const struct jv *v)
{
    struct strbuf b = {0};
    jv_dump(v, &b);
    puts(b.p);
    sb_free(&b);
}

/* What a table cell shows: short texts for objects that people know. */
void print_cell(const struct jv *v, struct strbuf *b)
{
    switch (jv_type(v)) {
    case JV_STRING:
        sb_add(b, jv_str(v));
        break;
    case JV_ARRAY:
        for (size_t i = 0; i < jv_len(v); i++) {
            const struct jv *x = jv_at(v, i);
            if (i > 0)
                sb_add_char(b, ',');
            if (jv_type(x) == JV_OBJECT && jv_get(x, "selector") != NULL)
                sb_addf(b, "%s:%s", jv_get_c(x, "selector", ""), jv_get_c(x, "value", ""));
            else if (jv_type(x) == JV_OBJECT)
                sb_addc(b, jv_get_c(x, "name", "…"));
            else
                print_cell(x, b);
        }
        break;
    case JV_NONE:
    case JV_NULL:
        sb_add_char(b, '-');
        break;
    case JV_BOOL:
    case JV_INT:
    case JV_REAL:
    case JV_OBJECT:
        jv_dump(v, b);
        break;
    }
}

#define MAX_COLUMNS 16

/* "price.amount" */
static const struct jv *member(const struct jv *v, struct str path)
{
    struct str head, rest;
    bool more = str_cut(path, '.', &head, &rest);
    char *key = str_dup(more ? head : path);
    const struct jv *found = jv_get(v, key);
    mem_free(key);
    return more ? member(found, rest) : found;
}

void print_table(const char *columns, const struct jv *items)
{
    struct str names[MAX_COLUMNS], rest = str_c(columns), token;
    size_t n_columns = 0, width[MAX_COLUMNS] = {0}, n = jv_len(items);

    while (n_columns < MAX_COLUMNS && str_next(&rest, ' ', &token))
        names[n_columns++] = token;
    char **cells = mem_calloc((n + 1) * n_columns, sizeof *cells);
    for (size_t row = 0; row <= n; row++)
        for (size_t c = 0; c < n_columns; c++) {
            struct strbuf b = {0};
            char *key = str_dup(names[c]);
            if (row == 0) {
                for (char *k = key; *k != '\0'; k++)
                    sb_add_char(&b, *k == '_' || *k == '.' ? ' ' : *k >= 'a' && *k <= 'z' ? (char)(*k - 32) : *k);
            } else {
                print_cell(member(jv_at(items, row - 1), names[c]), &b);
            }
            mem_free(key);
            size_t len = b.n;
            if (len > width[c])
                width[c] = len;
            cells[row * n_columns + c] = b.p != NULL ? sb_take(&b) : mem_strdup("");
        }
    for (size_t row = 0; row <= n; row++) {
        for (size_t c = 0; c < n_columns; c++)
            printf(c + 1 < n_columns ? "%-*s  " : "%.0d%s", c + 1 < n_columns ? (int)width[c] : 0, cells[row * n_columns + c]);
        putchar('\n');
    }
    for (size_t i = 0; i < (n + 1) * n_columns; i++)
        mem_free(cells[i]);
    mem_free(cells);
}

void print_object(const struct jv *v)
{
    if (cli.json) {
        print_json(v);
        return;
    }
    for (void *it = jv_iter(v); it != NULL; it = jv_iter_next(v, it)) {
        struct strbuf b = {0};
        print_cell(jv_iter_value(it), &b);
        printf("%-18s %s\n", jv_iter_key(it), b.p != NULL ? b.p : "");
        sb_free(&b);
    }
}
