/* Lists that are searched: conditions, a sort, a page. It chooses how the rows are come by, so that the work of a page is bounded however
 * the conditions are combined and however many rows there are (docs/OPERATIONS.md, "Finding"). Knows tables by what it is told of them. */
#ifndef ADMIN_FINDER_H
#define ADMIN_FINDER_H

#include "api.h"

struct finder_sort {
    const char *name;   /* as in sort=; "-name" goes backwards */
    const char *column; /* NOT NULL */
    const char *index;  /* on (vendor_id, column, id), with the condition of `live` */
    bool is_text;
};
struct finder_table {
    const char *name, *live;          /* "licenses", "archived_at=0": a condition that every index here has */
    const struct finder_sort *sorts;  /* the first is the default; ended by one without name */
    const char *text, *docs, *doc_id; /* FTS table, the table of its documents (n, doc_id), column of the object's id there */
    const char *covered;              /* "a|b": columns that each sort's index has; NULL: none */
    const char *text_columns;         /* that a person's words are looked for in */
};

struct finder;
struct finder *finder_new(struct api *rq, const struct finder_table *t);
void finder_free(struct finder **f);

/* A value for the next condition's '?', in order. Copied. */
void finder_text(struct finder *f, struct str v);
void finder_int(struct finder *f, int64_t v);
/* What holds for a row: a condition on columns of the table. index: one that finds such rows by vendor_id and this condition, or NULL. */
void finder_where(struct finder *f, const char *index, const char *condition);
/* column >= lo, column < hi; INT64_MIN and INT64_MAX: open. */
void finder_range(struct finder *f, const char *index, const char *column, int64_t lo, int64_t hi);
/* A condition that another table answers: `ids` selects the ids of all rows of the vendor that fit (DISTINCT, one column), `has` says
 * whether the row fits. Both have the values' '?'. */
void finder_set(struct finder *f, const char *ids, const char *has);
/* Words of a person: each is the beginning of a word of the object's text. Anything may stand in it. */
enum err finder_words(struct finder *f, struct str words) MUST_USE;
/* metadata.key=value, by a table (vendor_id, key, value, id) that triggers keep. */
void finder_metadata(struct finder *f, const char *table, const char *id, struct str key, struct str value);
int64_t finder_now(const struct finder *f);
/* Nothing fits. */
void finder_nothing(struct finder *f);
/* Which rows are live: another condition than the table's, with the one index that is for it. The default sort only. */
void finder_live(struct finder *f, const char *condition, const char *index);
enum err finder_sort(struct finder *f, struct str name) MUST_USE;
/* What the cursor is bound to: everything that the request filters by. */
void finder_bind(struct finder *f, struct str filter);

/* limit, cursor and count of the request's query; fills rq->out: {"items":[],"next_cursor",…} without the items. The ids, each with
 * a line feed, go into ids; *ret_items is the array to fill. */
enum err finder_page(struct finder *f, struct strbuf *ids, struct jv **ret_items) MUST_USE;
/* All ids, at most `max`: *ret_more when there are further ones. */
enum err finder_all(struct finder *f, size_t max, struct strbuf *ids, size_t *ret_n, bool *ret_more) MUST_USE;

/* Before a commit that may have changed names: the full text follows (text_queue of schema.c). */
enum err finder_flush(struct store *s, struct error *reterr) MUST_USE;

/* ---- a filter as a client wrote it ------------------------------------------------------------------------------------- */

/* Pairs of the query, or of a JSON object of strings, whole numbers and booleans, in an order of their own. */
struct filter {
    struct filter_pair {
        char *name, *value;
    } *pairs;
    size_t n;
};
/* The request's query but for limit, cursor, count and the names of `except` ("dry_run|format"). */
enum err filter_of_query(struct api *rq, const char *except, struct filter *ret) MUST_USE;
/* Names that are not among params are refused. */
enum err filter_of_object(struct api *rq, const struct jv *obj, const struct query_param *params, struct filter *ret) MUST_USE;
void filter_free(struct filter *f);
/* Values for handlers: refused with 400 invalid_parameter. */
enum err filter_bool(struct api *rq, const struct filter_pair *p, bool *ret) MUST_USE;
enum err filter_time(struct api *rq, const struct filter_pair *p, int64_t *ret) MUST_USE;
/* "name" -> column=?, "name*" -> what begins so; on a column that holds lower(name). */
void filter_name(struct finder *f, const char *index, const char *column, struct str value);

#endif
