#include "finder.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pullgate/clock.h"
#include "pullgate/mem.h"
#include "pullgate/oci.h"
#include "pullgate/seal.h"

#define VALUES_MAX   400   /* of one statement */
#define TERMS_MAX    64    /* conditions of one search */
/* A row that is read costs some tens of microseconds where its page has to come from the file, an entry of an index one. */
#define FEW          1000  /* rows that may be read and sorted for one page */
#define WALK_ROWS    500   /* of an index, looked at before it is asked whether the page is full */
#define WALK_MAX     3000  /* of an index, looked at for one page; a page is short after that */
#define WALK_COVERED 10000 /* the same, where the index itself says whether a row fits */
#define WORDS_ROWS   1000  /* documents with common words, looked at for one page */
#define COUNT_MAX    10000 /* entries of an index that are counted */
#define COUNT_READ   3000  /* rows that are read to be counted */
#define WORDS_MAX    10
#define WORD_MAX     64
#define PAIRS_MAX    64
#define HASH_DIGITS  16 /* of a filter, in its cursors */

struct term {
    char *index;      /* or NULL */
    char *ids, *sql;  /* ids: of a set */
    size_t first, n;  /* its values */
    bool is_range, is_beginning; /* is_beginning: its two values are the bounds of a text */
    const char *column; /* of either */
    int64_t lo, hi;
};

struct finder {
    struct api *rq;
    const struct finder_table *t;
    struct term terms[TERMS_MAX];
    size_t n_terms;
    struct store_value values[VALUES_MAX];
    size_t n_values, n_taken; /* taken: of the conditions that stand already */
    const struct finder_sort *sort;
    bool is_down, is_nothing;
    const char *live, *live_index;
    struct strbuf match; /* the FTS expression; empty: no words */
    char bound[HASH_DIGITS + 1]; /* what a cursor of this search carries */
};

/* A statement while it is written. */
struct sql {
    struct strbuf text;
    struct store_value values[VALUES_MAX];
    size_t n;
};

static void sql_value(struct sql *q, struct store_value v)
{
    AN(q->n < VALUES_MAX);
    q->values[q->n++] = v;
}

static void sql_int(struct sql *q, int64_t i)
{
    sql_value(q, (struct store_value){.i = i});
}

static void sql_text(struct sql *q, struct str s)
{
    sql_value(q, (struct store_value){.s = s.p ? s : S("")});
}

static enum err sql_query(struct finder *f, struct sql *q, struct store_stmt **ret)
{
    return store_query_values(f->rq->store, ret, &f->rq->error, q->text.p, q->values, q->n);
}

static void sql_reset(struct sql *q)
{
    sb_reset(&q->text);
    q->n = 0;
}

struct finder *finder_new(struct api *rq, const struct finder_table *t)
{
    struct finder *f = NEW(struct finder);
    f->rq = rq;
    f->t = t;
    f->sort = &t->sorts[0];
    f->live = t->live;
    return f;
}

void finder_free(struct finder **pf)
{
    struct finder *f = *pf;
    if (!f)
        return;
    *pf = NULL;
    for (size_t i = 0; i < f->n_terms; i++) {
        mem_free(f->terms[i].index);
        mem_free(f->terms[i].ids);
        mem_free(f->terms[i].sql);
    }
    for (size_t i = 0; i < f->n_values; i++)
        mem_free((char *)(uintptr_t)f->values[i].s.p);
    sb_free(&f->match);
    mem_free(f);
}

/* ---- conditions -------------------------------------------------------------------------------------------------------- */

void finder_text(struct finder *f, struct str v)
{
    AN(f->n_values < VALUES_MAX - 100);
    char *copy = str_dup(v.p ? v : S(""));
    f->values[f->n_values++] = (struct store_value){.s = {copy, v.n}};
}

void finder_int(struct finder *f, int64_t v)
{
    AN(f->n_values < VALUES_MAX - 100);
    f->values[f->n_values++] = (struct store_value){.i = v};
}

static struct term *term_new(struct finder *f)
{
    AN(f->n_terms < TERMS_MAX);
    struct term *t = &f->terms[f->n_terms++];
    *t = (struct term){.first = f->n_taken, .n = f->n_values - f->n_taken};
    f->n_taken = f->n_values;
    return t;
}

void finder_where(struct finder *f, const char *index, const char *condition)
{
    struct term *t = term_new(f);
    t->index = index ? mem_strdup(index) : NULL;
    t->sql = mem_strdup(condition);
}

void finder_range(struct finder *f, const char *index, const char *column, int64_t lo, int64_t hi)
{
    struct strbuf b = {0};
    sb_addf(&b, "l.%s>=? AND l.%s<?", column, column);
    finder_int(f, lo);
    finder_int(f, hi);
    struct term *t = term_new(f);
    t->index = mem_strdup(index);
    t->sql = sb_take(&b);
    t->is_range = true;
    t->column = column;
    t->lo = lo;
    t->hi = hi;
}

void finder_set(struct finder *f, const char *ids, const char *has)
{
    struct term *t = term_new(f);
    t->ids = mem_strdup(ids);
    t->sql = mem_strdup(has);
}

void finder_metadata(struct finder *f, const char *table, const char *id, struct str key, struct str value)
{
    struct strbuf ids = {0}, has = {0};
    sb_addf(&ids, "SELECT %s AS id FROM %s WHERE vendor_id=? AND key=? AND value=?", id, table);
    sb_addf(&has, "EXISTS (SELECT 1 FROM %s m WHERE m.vendor_id=? AND m.key=? AND m.value=? AND m.%s=l.id)", table, id);
    finder_text(f, str_c(f->rq->vendor_id));
    finder_text(f, key);
    finder_text(f, value);
    finder_set(f, ids.p, has.p);
    sb_free(&ids);
    sb_free(&has);
}

int64_t finder_now(const struct finder *f)
{
    return f->rq->now_s;
}

void finder_nothing(struct finder *f)
{
    f->is_nothing = true;
}

void finder_live(struct finder *f, const char *condition, const char *index)
{
    f->live = condition;
    f->live_index = index;
}

enum err finder_sort(struct finder *f, struct str name)
{
    f->is_down = name.n && name.p[0] == '-';
    struct str plain = f->is_down ? str_skip(name, 1) : name;
    for (const struct finder_sort *s = f->t->sorts; s->name; s++)
        if (str_eq_c(plain, s->name)) {
            f->sort = s;
            return ERR_OK;
        }
    struct strbuf all = {0};
    for (const struct finder_sort *s = f->t->sorts; s->name; s++)
        sb_addf(&all, "%s%s", all.n ? ", " : "", s->name);
    enum err err = api_fail(f->rq, ERR_INVALID, "invalid_parameter", "sort", "sort: %s, each also with - before it", all.p);
    sb_free(&all);
    return err;
}

void finder_bind(struct finder *f, struct str filter)
{
    struct strbuf text = {0}, hex = {0};
    uint8_t sum[32];
    sb_addf(&text, "%s\n%s\n%s%s\n", f->rq->vendor_id, f->t->name, f->is_down ? "-" : "", f->sort->name);
    sb_add(&text, filter);
    seal_sha256(sb_str(&text), sum);
    sb_add_hex(&hex, sum, HASH_DIGITS / 2);
    memcpy(f->bound, hex.p, sizeof f->bound);
    sb_free(&text);
    sb_free(&hex);
}

static bool word_char(unsigned char c)
{
    return c >= 0x80 || (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

/* Every word is put between quotes, in which FTS knows no operator, and holds no ASCII character but letters and digits. */
enum err finder_words(struct finder *f, struct str words)
{
    struct strbuf b = {0};
    size_t n = 0;
    for (size_t i = 0; i < words.n;) {
        size_t from = i;
        while (i < words.n && word_char((unsigned char)words.p[i]))
            i++;
        if (i > from) {
            if (++n > WORDS_MAX || i - from > WORD_MAX) {
                sb_free(&b);
                return api_fail(f->rq, ERR_INVALID, "invalid_parameter", "q", "q: at most %d words of %d bytes", WORDS_MAX, WORD_MAX);
            }
            sb_addf(&b, "%s\"%.*s\" *", n > 1 ? " AND " : "", (int)(i - from), words.p + from);
        } else {
            i++;
        }
    }
    if (!n)
        f->is_nothing = true;
    else
        sb_addf(&f->match, "vendor : \"%s\" AND {%s} : (%s)", strlen(f->rq->vendor_id) > 4 ? f->rq->vendor_id + 4 : "-", f->t->text_columns,
                b.p);
    sb_free(&b);
    return ERR_OK;
}

/* ---- statements -------------------------------------------------------------------------------------------------------- */

static void sql_terms(struct finder *f, struct sql *q, const struct term *but)
{
    for (size_t i = 0; i < f->n_terms; i++) {
        const struct term *t = &f->terms[i];
        if (t == but)
            continue;
        sb_addf(&q->text, " AND %s", t->sql);
        for (size_t v = 0; v < t->n; v++)
            sql_value(q, f->values[t->first + v]);
    }
}

static void sql_scope(struct finder *f, struct sql *q)
{
    sb_addf(&q->text, " WHERE l.vendor_id=? AND l.%s", f->live);
    sql_text(q, str_c(f->rq->vendor_id));
}

/* "FROM …" that yields the rows which `driver` finds, without the other conditions. At most `max` of a set. */
static void sql_driver(struct finder *f, struct sql *q, const struct term *driver, int64_t max)
{
    if (driver && driver->ids) {
        sb_addf(&q->text, " FROM (SELECT * FROM (%s) LIMIT ?) d CROSS JOIN %s l ON l.id=d.id", driver->ids, f->t->name);
        for (size_t v = 0; v < driver->n; v++)
            sql_value(q, f->values[driver->first + v]);
        sql_int(q, max);
        sql_scope(f, q);
        return;
    }
    const char *index = driver ? driver->index : f->live_index ? f->live_index : f->sort->index;
    if (*index)
        sb_addf(&q->text, " FROM %s l INDEXED BY %s", f->t->name, index);
    else
        sb_addf(&q->text, " FROM %s l", f->t->name);
    sql_scope(f, q);
    if (driver) {
        sb_addf(&q->text, " AND %s", driver->sql);
        for (size_t v = 0; v < driver->n; v++)
            sql_value(q, f->values[driver->first + v]);
    }
}

/* Where a page goes on: behind (or, going down, before) this row. */
struct place {
    bool is_set, is_document;
    int64_t key;
    struct strbuf text, id;
};

static void place_free(struct place *p)
{
    sb_free(&p->text);
    sb_free(&p->id);
}

static void sql_place(struct finder *f, struct sql *q, const struct place *p, const char *op)
{
    sb_addf(&q->text, " AND (l.%s, l.id) %s (?,?)", f->sort->column, op);
    if (f->sort->is_text)
        sql_text(q, sb_str(&p->text));
    else
        sql_int(q, p->key);
    sql_text(q, sb_str(&p->id));
}

static void sql_order(struct finder *f, struct sql *q, int64_t limit)
{
    const char *down = f->is_down ? " DESC" : "";
    sb_addf(&q->text, " ORDER BY l.%s%s, l.id%s LIMIT ?", f->sort->column, down, down);
    sql_int(q, limit);
}

static void place_take(struct finder *f, struct place *p, const struct store_stmt *st)
{
    sb_reset(&p->id);
    sb_add(&p->id, store_col_str(st, 0));
    sb_reset(&p->text);
    if (f->sort->is_text)
        sb_add(&p->text, store_col_str(st, 1));
    else
        p->key = store_col_int(st, 1);
    p->is_set = true;
}

/* One number. */
static enum err sql_number(struct finder *f, struct sql *q, int64_t *ret)
{
    struct store_stmt *st = NULL;
    bool row = false;
    enum err err = sql_query(f, q, &st);
    if (!err)
        err = store_step(st, &row, &f->rq->error);
    if (!err)
        *ret = row ? store_col_int(st, 0) : 0;
    store_done(&st);
    return err;
}

/* ---- which way --------------------------------------------------------------------------------------------------------- */

/* The condition that finds the fewest rows, by counting each one's index entries up to FEW. *ret NULL: none finds so few. */
static enum err finder_choose(struct finder *f, const struct term **ret, const struct term **ret_best)
{
    int64_t best = INT64_MAX;
    struct sql *q = NEW(struct sql);
    enum err err = ERR_OK;
    *ret = *ret_best = NULL;
    for (size_t i = 0; !err && i < f->n_terms && !f->live_index; i++) {
        const struct term *t = &f->terms[i];
        if (!t->index && !t->ids)
            continue;
        int64_t n = 0;
        sql_reset(q);
        if (t->index && !*t->index) { /* the primary key: one row */
            n = 1;
        } else if (t->ids) {
            sb_addf(&q->text, "SELECT COUNT(*) FROM (SELECT * FROM (%s) LIMIT ?)", t->ids);
            for (size_t v = 0; v < t->n; v++)
                sql_value(q, f->values[t->first + v]);
            sql_int(q, FEW + 1);
            err = sql_number(f, q, &n);
        } else {
            sb_addc(&q->text, "SELECT COUNT(*) FROM (SELECT 1");
            sql_driver(f, q, t, 0);
            sb_addc(&q->text, " LIMIT ?)");
            sql_int(q, FEW + 1);
            err = sql_number(f, q, &n);
        }
        if (!err && n < best) {
            best = n;
            *ret_best = t;
        }
    }
    if (best <= FEW)
        *ret = *ret_best;
    sb_free(&q->text);
    mem_free(q);
    return err;
}

/* The words as a condition, when they find few documents; *ret_many when not. */
static enum err finder_look_at_words(struct finder *f, bool *ret_many)
{
    struct strbuf ids = {0}, has = {0};
    struct sql *q = NEW(struct sql);
    int64_t n = 0;
    sb_addf(&q->text, "SELECT COUNT(*) FROM (SELECT rowid FROM %s WHERE %s MATCH ? LIMIT ?)", f->t->text, f->t->text);
    sql_text(q, sb_str(&f->match));
    sql_int(q, FEW + 1);
    enum err err = sql_number(f, q, &n);
    *ret_many = n > FEW;
    if (!err && !*ret_many) {
        sb_addf(&ids, "SELECT w.%s AS id FROM %s t CROSS JOIN %s w ON w.n=t.rowid WHERE t.%s MATCH ?", f->t->doc_id, f->t->text, f->t->docs,
                f->t->text);
        sb_addf(&has, "l.id IN (%s)", ids.p);
        finder_text(f, sb_str(&f->match));
        finder_set(f, ids.p, has.p);
        sb_reset(&f->match);
    }
    sb_free(&ids);
    sb_free(&has);
    sb_free(&q->text);
    mem_free(q);
    return err;
}

/* ---- rows -------------------------------------------------------------------------------------------------------------- */

struct found {
    size_t want, n;      /* want: of the page */
    struct strbuf *ids;
    struct place place;  /* of the last one shown */
    bool more;           /* something may come after it */
};

static enum err found_take(struct finder *f, struct found *ret, struct sql *q)
{
    struct store_stmt *st = NULL;
    bool row = false;
    enum err err = sql_query(f, q, &st);
    while (!err) {
        err = store_step(st, &row, &f->rq->error);
        if (err || !row)
            break;
        if (ret->n == ret->want) {
            ret->more = true;
            break;
        }
        sb_add(ret->ids, store_col_str(st, 0));
        sb_add_char(ret->ids, '\n');
        place_take(f, &ret->place, st);
        ret->n++;
    }
    store_done(&st);
    return err;
}

/* Few rows fit one condition: all of them are read, sorted, and the page is taken. */
static enum err find_few(struct finder *f, const struct term *driver, struct found *ret)
{
    struct sql *q = NEW(struct sql);
    sb_addf(&q->text, "SELECT l.id, l.%s", f->sort->column);
    sql_driver(f, q, driver, FEW + 1);
    sql_terms(f, q, driver);
    if (ret->place.is_set)
        sql_place(f, q, &ret->place, f->is_down ? "<" : ">");
    sql_order(f, q, (int64_t)(ret->want - ret->n) + 1);
    enum err err = found_take(f, ret, q);
    sb_free(&q->text);
    mem_free(q);
    return err;
}

/* The bounds that ranges of the sort's own column set, so that a walk begins and ends where they do. */
static void walk_bounds(const struct finder *f, int64_t *lo, int64_t *hi)
{
    *lo = INT64_MIN;
    *hi = INT64_MAX;
    for (size_t i = 0; i < f->n_terms; i++)
        if (f->terms[i].is_range && strcmp(f->terms[i].column, f->sort->column) == 0) {
            *lo = f->terms[i].lo > *lo ? f->terms[i].lo : *lo;
            *hi = f->terms[i].hi < *hi ? f->terms[i].hi : *hi;
        }
}

static bool is_among(struct str name, const char *list);

/* Whether the sort's index has every column that is asked for. */
static bool is_covered(const struct finder *f)
{
    for (size_t i = 0; i < f->n_terms; i++) {
        if (f->terms[i].ids || !f->t->covered)
            return false;
        for (const char *at = strstr(f->terms[i].sql, "l."); at; at = strstr(at + 1, "l.")) {
            size_t n = 2;
            while ((at[n] >= 'a' && at[n] <= 'z') || at[n] == '_')
                n++;
            struct str column = {at + 2, n - 2};
            if (!is_among(column, f->t->covered) && !str_eq_c(column, f->sort->column))
                return false;
        }
    }
    return !f->live_index;
}

/* The same of a text: the beginning that names have to have. */
static const struct term *walk_beginning(const struct finder *f)
{
    for (size_t i = 0; i < f->n_terms; i++)
        if (f->terms[i].is_beginning && strcmp(f->terms[i].column, f->sort->column) == 0)
            return &f->terms[i];
    return NULL;
}

/* Along the sort's index, some rows at a time, until the page is full or WALK_MAX rows were looked at. */
static enum err find_along(struct finder *f, struct found *ret, int64_t walk_max)
{
    struct sql *q = NEW(struct sql);
    struct store_stmt *st = NULL;
    struct place end = {0};
    int64_t lo, hi, walked = 0;
    enum err err = ERR_OK;
    walk_bounds(f, &lo, &hi);
    if (!ret->place.is_set && !f->sort->is_text && (f->is_down ? hi != INT64_MAX : lo != INT64_MIN)) {
        ret->place.is_set = true;
        ret->place.key = f->is_down ? hi : lo;
        sb_addc(&ret->place.id, ""); /* before every id */
    }
    const struct term *begins = f->sort->is_text ? walk_beginning(f) : NULL;
    if (!ret->place.is_set && begins) {
        ret->place.is_set = true;
        sb_add(&ret->place.text, f->values[begins->first + f->is_down].s);
        sb_addc(&ret->place.id, "");
    }
    while (!err && !ret->more) {
        /* where these rows end */
        bool row = false;
        sql_reset(q);
        sb_addf(&q->text, "SELECT l.id, l.%s", f->sort->column);
        sql_driver(f, q, NULL, 0);
        if (ret->place.is_set)
            sql_place(f, q, &ret->place, f->is_down ? "<" : ">");
        if (f->is_down ? lo != INT64_MIN : hi != INT64_MAX) {
            sb_addf(&q->text, f->is_down ? " AND l.%s>=?" : " AND l.%s<?", f->sort->column);
            sql_int(q, f->is_down ? lo : hi);
        }
        if (begins) {
            sb_addf(&q->text, f->is_down ? " AND l.%s>=?" : " AND l.%s<?", f->sort->column);
            sql_text(q, f->values[begins->first + !f->is_down].s);
        }
        sql_order(f, q, 1);
        sb_addc(&q->text, " OFFSET ?");
        sql_int(q, WALK_ROWS - 1);
        err = sql_query(f, q, &st);
        if (!err)
            err = store_step(st, &row, &f->rq->error);
        end.is_set = false;
        if (!err && row)
            place_take(f, &end, st);
        store_done(&st);
        if (err)
            break;

        sql_reset(q);
        sb_addf(&q->text, "SELECT l.id, l.%s", f->sort->column);
        sql_driver(f, q, NULL, 0);
        sql_terms(f, q, NULL);
        if (ret->place.is_set)
            sql_place(f, q, &ret->place, f->is_down ? "<" : ">");
        if (end.is_set)
            sql_place(f, q, &end, f->is_down ? ">=" : "<=");
        sql_order(f, q, (int64_t)(ret->want - ret->n) + 1);
        err = found_take(f, ret, q);
        if (err || ret->more || !end.is_set)
            break;
        struct place swap = ret->place; /* all up to there was looked at */
        ret->place = end;
        end = swap;
        walked += WALK_ROWS;
        if (ret->n == ret->want || walked >= walk_max)
            ret->more = true;
    }
    place_free(&end);
    sb_free(&q->text);
    mem_free(q);
    return err;
}

/* Words that very many have: the documents as FTS yields them, by number, which is the order in which the objects were made. */
static enum err find_by_words(struct finder *f, struct found *ret)
{
    struct sql *q = NEW(struct sql);
    struct store_stmt *st = NULL;
    enum err err = ERR_OK;
    bool row = false;
    /* With nothing else asked almost all of them fit, and a word in common is searched for in many documents of each. */
    int64_t last = 0, looked = 0, window = f->n_terms || ret->want >= WORDS_ROWS / 2 ? WORDS_ROWS : 2 * (int64_t)ret->want;
    const char *op = f->is_down ? "<" : ">", *down = f->is_down ? " DESC" : "";
    if (ret->place.is_set && !ret->place.is_document) { /* the page before was come by in another way */
        sb_addf(&q->text, "SELECT n FROM %s WHERE %s=?", f->t->docs, f->t->doc_id);
        sql_text(q, sb_str(&ret->place.id));
        err = sql_number(f, q, &ret->place.key);
    }
    for (int pass = 0; !err && pass < 2; pass++) { /* where this page's documents end; then those of them that fit */
        sql_reset(q);
        sb_addc(&q->text, pass ? "SELECT l.id, t.n" : "SELECT COUNT(*), COALESCE(");
        if (!pass)
            sb_addf(&q->text, "%s(n),0)", f->is_down ? "MIN" : "MAX");
        sb_addf(&q->text, " FROM (SELECT rowid AS n FROM %s WHERE %s MATCH ?", f->t->text, f->t->text);
        sql_text(q, sb_str(&f->match));
        if (ret->place.is_set) {
            sb_addf(&q->text, " AND rowid %s ?", op);
            sql_int(q, ret->place.key);
        }
        sb_addf(&q->text, " ORDER BY rowid%s LIMIT ?) t", down);
        sql_int(q, window);
        if (!pass) {
            err = sql_query(f, q, &st);
            if (!err)
                err = store_step(st, &row, &f->rq->error);
            if (!err && row) {
                looked = store_col_int(st, 0);
                last = store_col_int(st, 1);
            }
            store_done(&st);
            continue;
        }
        sb_addf(&q->text, " CROSS JOIN %s w ON w.n=t.n CROSS JOIN %s l ON l.id=w.%s", f->t->docs, f->t->name, f->t->doc_id);
        sql_scope(f, q);
        sql_terms(f, q, NULL);
        sb_addf(&q->text, " ORDER BY t.n%s LIMIT ?", down);
        sql_int(q, (int64_t)ret->want + 1);
        err = sql_query(f, q, &st);
        while (!err) {
            err = store_step(st, &row, &f->rq->error);
            if (err || !row)
                break;
            if (ret->n == ret->want) {
                ret->more = true;
                break;
            }
            sb_add(ret->ids, store_col_str(st, 0));
            sb_add_char(ret->ids, '\n');
            ret->place.key = store_col_int(st, 1);
            ret->n++;
        }
        store_done(&st);
    }
    if (!err && !ret->more && looked == window) {
        ret->place.key = last;
        ret->more = true;
    }
    ret->place.is_set = ret->place.is_document = true;
    sb_free(&q->text);
    mem_free(q);
    return err;
}

/* ---- counting ---------------------------------------------------------------------------------------------------------- */

static enum err find_count(struct finder *f, const struct term *best, bool by_words, int64_t *ret, bool *ret_exact)
{
    struct sql *q = NEW(struct sql);
    struct store_stmt *st = NULL;
    bool row = false;
    bool is_plain = !by_words && f->n_terms == (best ? 1 : 0) && !(best && best->ids); /* its index says it all */
    bool by_index = is_plain || (!by_words && !best && is_covered(f));
    int64_t looked = 0, max = by_index ? COUNT_MAX : COUNT_READ;
    sb_addc(&q->text, "SELECT COUNT(*), COALESCE(SUM(fits),0) FROM (SELECT (1");
    if (!by_words) {
        sql_terms(f, q, best);
        sb_addc(&q->text, ") AS fits");
        sql_driver(f, q, best, max + 1);
        sb_addc(&q->text, " LIMIT ?)");
        sql_int(q, max + 1);
    } else {
        sb_addf(&q->text, " AND l.vendor_id=? AND l.%s", f->live);
        sql_text(q, str_c(f->rq->vendor_id));
        sql_terms(f, q, NULL);
        sb_addf(&q->text, ") AS fits FROM (SELECT rowid AS n FROM %s WHERE %s MATCH ? LIMIT ?) t", f->t->text, f->t->text);
        sql_text(q, sb_str(&f->match));
        sql_int(q, max + 1);
        sb_addf(&q->text, " CROSS JOIN %s w ON w.n=t.n CROSS JOIN %s l ON l.id=w.%s)", f->t->docs, f->t->name, f->t->doc_id);
    }
    enum err err = sql_query(f, q, &st);
    if (!err)
        err = store_step(st, &row, &f->rq->error);
    if (!err && row) {
        looked = store_col_int(st, 0);
        *ret = store_col_int(st, 1);
    }
    *ret_exact = looked <= max;
    if (*ret > max)
        *ret = max;
    store_done(&st);
    sb_free(&q->text);
    mem_free(q);
    return err;
}

/* ---- pages ------------------------------------------------------------------------------------------------------------- */

/* ["<hash of filter and sort>", key, "id"], or the document's number without an id, in base64url. */
static void cursor_print(const struct finder *f, const struct place *p, struct strbuf *ret)
{
    struct jv *doc = jv_array();
    struct strbuf text = {0};
    jv_push(doc, jv_string(str_c(f->bound)));
    jv_push(doc, f->sort->is_text && !p->is_document ? jv_string(sb_str(&p->text)) : jv_integer(p->key));
    if (!p->is_document)
        jv_push(doc, jv_string(sb_str(&p->id)));
    jv_dump(doc, &text);
    base64url_encode(sb_str(&text), ret);
    jv_free(doc);
    sb_free(&text);
}

static enum err cursor_scan(struct finder *f, struct str cursor, struct place *ret)
{
    struct strbuf text = {0};
    struct jv *doc = NULL;
    struct error error = {0};
    bool good = base64url_decode(cursor, &text) && !jv_parse(sb_str(&text), &JV_LIMITS_API, &doc, &error) && jv_type(doc) == JV_ARRAY;
    const struct jv *key = jv_at(doc, 1), *id = jv_at(doc, 2);
    bool is_document = jv_len(doc) == 2;
    good = good && (is_document || (jv_len(doc) == 3 && jv_type(id) == JV_STRING)) && jv_type(jv_at(doc, 0)) == JV_STRING &&
           jv_type(key) == (f->sort->is_text && !is_document ? JV_STRING : JV_INT);
    enum err err = ERR_OK;
    if (!good) {
        err = api_fail(f->rq, ERR_INVALID, "invalid_cursor", "cursor", "cursor: not one that this API gave out");
    } else if (!str_eq_c(jv_str(jv_at(doc, 0)), f->bound)) {
        err = api_fail(f->rq, ERR_INVALID, "invalid_cursor", "cursor", "cursor: of another query; filter and sort stay the same from page to page");
    } else {
        ret->is_set = true;
        ret->is_document = is_document;
        ret->key = jv_int(key, 0);
        if (f->sort->is_text && !is_document)
            sb_add(&ret->text, jv_str(key));
        if (!is_document)
            sb_add(&ret->id, jv_str(id));
    }
    jv_free(doc);
    sb_free(&text);
    return err;
}

static enum err finder_find(struct finder *f, struct found *found, int64_t walk_max, bool want_count)
{
    const struct term *few = NULL, *best = NULL;
    struct api *rq = f->rq;
    bool many_words = false;
    enum err err = ERR_OK;
    if (f->live_index && f->sort != &f->t->sorts[0])
        return api_fail(rq, ERR_INVALID, "invalid_parameter", "sort", "sort: archived ones are sorted by %s only", f->t->sorts[0].name);
    if (f->is_nothing) {
        if (want_count)
            jv_set_int(rq->out, "count", 0);
        return ERR_OK;
    }
    if (f->match.n)
        err = finder_look_at_words(f, &many_words);
    if (!err)
        err = finder_choose(f, &few, &best);
    if (err)
        return err;
    if (found->place.is_document && !many_words) { /* fewer than at the page before: the same place by its key */
        struct sql *q = NEW(struct sql);
        struct store_stmt *st = NULL;
        bool row = false;
        sb_addf(&q->text, "SELECT l.id, l.%s FROM %s w CROSS JOIN %s l ON l.id=w.%s WHERE w.n=?", f->sort->column, f->t->docs, f->t->name,
                f->t->doc_id);
        sql_int(q, found->place.key);
        err = sql_query(f, q, &st);
        if (!err)
            err = store_step(st, &row, &rq->error);
        if (!err && row)
            place_take(f, &found->place, st);
        found->place.is_document = false;
        store_done(&st);
        sb_free(&q->text);
        mem_free(q);
    }
    if (!err && many_words && f->sort != &f->t->sorts[0])
        err = api_fail(rq, ERR_INVALID, "query_too_broad", "q", "q: finds more than %d; say more, or sort by %s", FEW, f->t->sorts[0].name);
    if (!err)
        err = many_words ? find_by_words(f, found)
              : few      ? find_few(f, few, found)
                         : find_along(f, found, walk_max == WALK_MAX && is_covered(f) ? WALK_COVERED : walk_max);
    if (!err && want_count) {
        int64_t n = 0;
        bool exact = false;
        err = find_count(f, best, many_words, &n, &exact);
        jv_set_int(rq->out, exact ? "count" : "count_at_least", n);
    }
    return err;
}

enum err finder_page(struct finder *f, struct strbuf *ids, struct jv **ret_items)
{
    struct api *rq = f->rq;
    struct strbuf v = {0}, cursor = {0};
    struct found found = {.ids = ids, .want = 100};
    bool want_count = false;
    enum err err = ERR_OK;
    if (query_get(str_c(rq->query), "limit", &v)) {
        uint64_t n = 0;
        if (!str_to_u64(sb_str(&v), &n) || n < 1 || n > 1000)
            err = api_fail(rq, ERR_INVALID, "invalid_parameter", "limit", "limit: a number from 1 to 1000");
        found.want = (size_t)n;
    }
    if (!err && query_get(str_c(rq->query), "count", &v)) {
        want_count = str_eq(sb_str(&v), S("1")) || str_eq(sb_str(&v), S("true"));
        if (!want_count)
            err = api_fail(rq, ERR_INVALID, "invalid_parameter", "count", "count: 1");
    }
    if (!err && query_get(str_c(rq->query), "cursor", &v))
        err = cursor_scan(f, sb_str(&v), &found.place);
    if (err)
        goto out;
    *ret_items = api_list(rq);
    err = finder_find(f, &found, WALK_MAX, want_count);
    if (!err && found.more) {
        cursor_print(f, &found.place, &cursor);
        jv_set_str(rq->out, "next_cursor", sb_str(&cursor));
    }
out:
    place_free(&found.place);
    sb_free(&v);
    sb_free(&cursor);
    return err;
}

enum err finder_all(struct finder *f, size_t max, struct strbuf *ids, size_t *ret_n, bool *ret_more)
{
    struct found found = {.ids = ids, .want = max};
    enum err err = ERR_OK;
    do {
        found.more = false;
        err = finder_find(f, &found, INT64_MAX, false);
    } while (!err && found.more && found.n < max);
    *ret_n = found.n;
    *ret_more = found.more;
    place_free(&found.place);
    return err;
}

enum err finder_flush(struct store *s, struct error *reterr)
{
    static const char *const SQL[2][2] = {
        {"INSERT INTO license_text (rowid, vendor, name, customer, environment) SELECT n, a, b, c, d FROM text_queue WHERE id=?",
         "INSERT INTO license_text (license_text, rowid, vendor, name, customer, environment)"
         " SELECT 'delete', n, a, b, c, d FROM text_queue WHERE id=?"},
        {"INSERT INTO customer_text (rowid, vendor, name, slug, email, external_id) SELECT n, a, b, c, d, e FROM text_queue WHERE id=?",
         "INSERT INTO customer_text (customer_text, rowid, vendor, name, slug, email, external_id)"
         " SELECT 'delete', n, a, b, c, d, e FROM text_queue WHERE id=?"},
    };
    struct store_stmt *st = NULL;
    bool row = false, any = false;
    enum err err = store_query(s, &st, reterr, "SELECT id, kind, is_gone FROM text_queue ORDER BY id", "");
    while (!err) {
        err = store_step(st, &row, reterr);
        if (err || !row)
            break;
        any = true;
        err = store_exec(s, NULL, reterr, SQL[str_eq(store_col_str(st, 1), S("c"))][store_col_int(st, 2) != 0], "i", store_col_int(st, 0));
    }
    store_done(&st);
    if (!err && any)
        err = store_exec(s, NULL, reterr, "DELETE FROM text_queue", "");
    return err;
}

/* ---- a filter as a client wrote it ------------------------------------------------------------------------------------- */

static int pair_compare(const void *x, const void *y)
{
    const struct filter_pair *a = x, *b = y;
    int by_name = strcmp(a->name, b->name);
    return by_name ? by_name : strcmp(a->value, b->value);
}

static void filter_add(struct filter *f, struct str name, struct str value)
{
    if (!f->pairs)
        f->pairs = mem_zalloc(PAIRS_MAX * sizeof *f->pairs);
    f->pairs[f->n++] = (struct filter_pair){str_dup(name), str_dup(value)};
}

struct pairs {
    struct api *rq;
    const char *except;
    struct filter *filter;
    enum err err;
};

static bool is_among(struct str name, const char *list)
{
    struct str rest = str_c(list), one;
    while (str_next(&rest, '|', &one))
        if (str_eq(one, name))
            return true;
    return false;
}

static void pair_add(void *ctx, struct str key, struct str value)
{
    struct pairs *p = ctx;
    if (p->err || is_among(key, "limit|cursor|count") || (p->except && is_among(key, p->except)))
        return;
    for (size_t i = 0; i < p->filter->n; i++)
        if (str_eq_c(key, p->filter->pairs[i].name)) {
            p->err = api_fail(p->rq, ERR_INVALID, "invalid_parameter", p->filter->pairs[i].name, "%s: named twice", p->filter->pairs[i].name);
            return;
        }
    if (p->filter->n == PAIRS_MAX - 1)
        p->err = api_fail(p->rq, ERR_INVALID, "invalid_parameter", NULL, "more than %d parameters", PAIRS_MAX - 1);
    else
        filter_add(p->filter, key, value);
}

enum err filter_of_query(struct api *rq, const char *except, struct filter *ret)
{
    struct pairs p = {.rq = rq, .except = except, .filter = ret};
    query_each(str_c(rq->query), pair_add, &p);
    if (ret->n)
        qsort(ret->pairs, ret->n, sizeof *ret->pairs, pair_compare);
    return p.err;
}

enum err filter_of_object(struct api *rq, const struct jv *obj, const struct query_param *params, struct filter *ret)
{
    char field[API_FIELD_MAX], number[24];
    for (void *it = jv_iter(obj); it; it = jv_iter_next(obj, it)) {
        struct str key = str_c(jv_iter_key(it)), value = jv_str(jv_iter_value(it));
        const struct jv *v = jv_iter_value(it);
        api_field(field, "filter.%.*s", STR(str_sub(key, 0, 60)));
        bool is_known = false;
        for (const struct query_param *p = params; p->name && !is_known; p++) {
            struct str name = str_c(p->name);
            bool is_prefix = name.p[name.n - 1] == '*';
            is_known = is_prefix ? key.n >= name.n && str_starts(key, str_sub(name, 0, name.n - 1)) : str_eq(name, key);
        }
        if (!is_known || ret->n == PAIRS_MAX - 1)
            return api_fail(rq, ERR_INVALID, "unknown_field", field, "%s: no such filter", field);
        if (jv_type(v) == JV_BOOL) {
            value = jv_bool(v, false) ? S("true") : S("false");
        } else if (jv_type(v) == JV_INT) {
            snprintf(number, sizeof number, "%lld", (long long)jv_int(v, 0));
            value = str_c(number);
        } else if (jv_type(v) != JV_STRING || !value.n || value.n > 1000) {
            return api_fail(rq, ERR_INVALID, "invalid_field", field, "%s: expected a text, a whole number or true or false", field);
        }
        filter_add(ret, key, value);
    }
    if (ret->n)
        qsort(ret->pairs, ret->n, sizeof *ret->pairs, pair_compare);
    return ERR_OK;
}

void filter_free(struct filter *f)
{
    for (size_t i = 0; i < f->n; i++) {
        mem_free(f->pairs[i].name);
        mem_free(f->pairs[i].value);
    }
    mem_free(f->pairs);
    *f = (struct filter){0};
}

enum err filter_bool(struct api *rq, const struct filter_pair *p, bool *ret)
{
    *ret = strcmp(p->value, "true") == 0 || strcmp(p->value, "1") == 0;
    if (!*ret && strcmp(p->value, "false") != 0 && strcmp(p->value, "0") != 0)
        return api_fail(rq, ERR_INVALID, "invalid_parameter", p->name, "%s: true or false", p->name);
    return ERR_OK;
}

enum err filter_time(struct api *rq, const struct filter_pair *p, int64_t *ret)
{
    struct error error = {0};
    if (clock_parse_start(str_c(p->value), api_zone(rq), ret, &error))
        return api_fail(rq, ERR_INVALID, "invalid_parameter", p->name, "%s: %s", p->name, error.text);
    return ERR_OK;
}

void filter_name(struct finder *f, const char *index, const char *column, struct str value)
{
    struct strbuf sql = {0}, low = {0};
    bool is_prefix = value.n > 1 && value.p[value.n - 1] == '*';
    struct str text = is_prefix ? str_sub(value, 0, value.n - 1) : value;
    for (size_t i = 0; i < text.n; i++) /* as lower() of SQLite */
        sb_add_char(&low, text.p[i] >= 'A' && text.p[i] <= 'Z' ? (char)(text.p[i] - 'A' + 'a') : text.p[i]);
    finder_text(f, sb_str(&low));
    if (is_prefix) {
        sb_addc(&low, "\xf4\x8f\xbf\xbf"); /* the last character there is */
        finder_text(f, sb_str(&low));
    }
    sb_addf(&sql, is_prefix ? "l.%s>=? AND l.%s<?" : "l.%s=?", column, column);
    finder_where(f, index, sql.p);
    f->terms[f->n_terms - 1].is_beginning = is_prefix;
    f->terms[f->n_terms - 1].column = column;
    sb_free(&sql);
    sb_free(&low);
}
