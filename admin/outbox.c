#include "outbox.h"

#include "pullgate/clock.h"
#include "pullgate/mem.h"
#include "pullgate/projection.h"

enum err outbox_put(struct store *s, struct str fact, bool exists, struct error *reterr)
{
    enum err err = store_exec(s, NULL, reterr, "INSERT INTO outbox (created_ms, fact) VALUES (?,?)", "is", clock_now_ms(), fact);
    if (err)
        return err;
    int64_t epoch = store_last_rowid(s);
    return store_exec(s, NULL, reterr,
                      "INSERT INTO fact_epochs (fact, epoch, bucket, is_gone) VALUES (?,?,?,?)"
                      " ON CONFLICT (fact) DO UPDATE SET epoch=excluded.epoch, is_gone=excluded.is_gone",
                      "siib", fact, epoch, (int64_t)projection_bucket_of(fact), !exists);
}

enum err outbox_put_kind(struct store *s, char kind, struct str rest, bool exists, struct error *reterr)
{
    if (!rest.n)
        return ERR_OK;
    struct strbuf fact = {0};
    sb_add_char(&fact, kind);
    sb_add_char(&fact, ':');
    sb_add(&fact, rest);
    enum err err = outbox_put(s, sb_str(&fact), exists, reterr);
    sb_free(&fact);
    return err;
}

/* One fact of `kind` for each row of the query, which has one text parameter. Rows are gathered first: the statement is not
 * stepped over tables that the loop writes. */
static enum err outbox_put_rows(struct store *s, char kind, const char *sql, struct str param, struct error *reterr)
{
    struct store_stmt *st = NULL;
    struct strbuf names = {0};
    bool row;
    enum err err = store_query(s, &st, reterr, sql, "s", param);
    while (!err) {
        err = store_step(st, &row, reterr);
        if (err || !row)
            break;
        sb_add(&names, store_col_str(st, 0));
        sb_add_char(&names, '\n');
    }
    store_done(&st);
    struct str rest = sb_str(&names), name;
    while (!err && str_next(&rest, '\n', &name))
        err = outbox_put_kind(s, kind, name, true, reterr);
    sb_free(&names);
    return err;
}

enum err outbox_put_customers_of_application(struct store *s, struct str application_id, struct error *reterr)
{
    return outbox_put_rows(s, 'c', "SELECT DISTINCT customer_id FROM licenses WHERE application_id=? AND archived_at=0", application_id,
                           reterr);
}

enum err outbox_put_customers_of_vendor(struct store *s, struct str vendor_id, struct error *reterr)
{
    return outbox_put_rows(s, 'c', "SELECT id FROM customers WHERE vendor_id=? AND archived_at=0", vendor_id, reterr);
}

enum err outbox_put_tags_of_application(struct store *s, struct str application_id, struct error *reterr)
{
    return outbox_put_rows(s, 't', "SELECT id FROM repositories WHERE application_id=?", application_id, reterr);
}

enum err outbox_epoch(struct store *s, uint64_t *ret, struct error *reterr)
{
    struct store_stmt *st = NULL;
    bool row = false;
    /* fact_epochs keeps the newest epoch of every fact for ever, so it also holds when the outbox was pruned. */
    enum err err = store_query(s, &st, reterr, "SELECT COALESCE(MAX(epoch),0) FROM fact_epochs", "");
    if (!err)
        err = store_step(st, &row, reterr);
    if (!err)
        *ret = row ? (uint64_t)store_col_int(st, 0) : 0;
    store_done(&st);
    return err;
}
