/* The list of licenses: what is asked for by the query, in pages. A row is read and printed by api_licenses.c. */
#include "licenses.h"

enum err licenses_list(struct api *rq)
{
    struct page page;
    struct store_stmt *st = NULL;
    static const char *const names[] = {"customer_id", "application_id", "status", "order_number", "external_id", "archived"};
    struct strbuf f[6] = {{0}}, ids = {0};
    bool row;
    enum err err = api_page(rq, &page);
    if (err)
        return err;
    for (size_t i = 0; i < 6; i++)
        api_query(rq, names[i], &f[i]);
    bool want_archived = str_eq(sb_str(&f[5]), S("true"));
    struct jv *items = api_list(rq);
    err = store_query(
        rq->store, &st, &rq->error,
        "SELECT id, created_at FROM licenses WHERE vendor_id=?1 AND (archived_at<>0)=?2 AND (?3='' OR customer_id=?3)"
        " AND (?4='' OR application_id=?4) AND (?5='' OR status=?5) AND (?6='' OR order_number=?6) AND (?7='' OR external_id=?7)"
        " AND (created_at, id) > (?8,?9) ORDER BY created_at, id LIMIT ?10",
        "zbsssssizi", rq->vendor_id, want_archived, sb_str(&f[0]), sb_str(&f[1]), sb_str(&f[2]), sb_str(&f[3]), sb_str(&f[4]),
        page.after_key, page.after_id, (int64_t)page.limit + 1);
    while (!err) {
        err = store_step(st, &row, &rq->error);
        if (err || !row || !api_page_take(&page, rq->out, store_col_int(st, 1), store_col_str(st, 0).p))
            break;
        sb_add(&ids, store_col_str(st, 0));
        sb_add_char(&ids, '\n');
    }
    store_done(&st);
    struct str rest = sb_str(&ids), id;
    while (!err && str_next(&rest, '\n', &id) && id.n) {
        struct jv *v = NULL;
        err = licenses_shown(rq, id, &v);
        if (!err)
            jv_push(items, v);
    }
    for (size_t i = 0; i < 6; i++)
        sb_free(&f[i]);
    sb_free(&ids);
    return err;
}

const struct query_param LICENSE_LIST_PARAMS[] = {
    {"customer_id", "only of this customer"},
    {"application_id", "only for this application"},
    {"status", "only with this stored status"},
    {"order_number", "only of this order"},
    {"external_id", "only these"},
    {"archived", "true: deleted licenses instead"},
    {NULL, NULL},
};
