#include "batch.h"

#include <stdio.h>
#include <string.h>

#include "audit.h"
#include "db.h"
#include "http.h"
#include "pullgate/mem.h"
#include "roles.h"
#include "room.h"

/* What a line left behind in the request is not the next one's. */
static void line_forget(struct api *rq)
{
    jv_free(rq->out);
    jv_free(rq->before);
    jv_free(rq->after);
    jv_free(rq->problem);
    mem_free(rq->location);
    mem_free(rq->etag);
    rq->out = rq->before = rq->after = rq->problem = NULL;
    rq->location = rq->etag = NULL;
    rq->code = NULL;
    rq->status = 0;
}

struct part {
    struct batch *b;
    size_t from, to;
    bool is_undone;
    bool is_hopeful, is_dashed; /* without a way back for each line; a line failed */
};

/* A fact that changed several times in this transaction is told once: its newest row. */
static enum err outbox_thin(struct store *s, int64_t after, struct error *reterr)
{
    return store_exec(s, NULL, reterr,
                      "DELETE FROM outbox WHERE id>? AND id<(SELECT epoch FROM fact_epochs e WHERE e.fact=outbox.fact)", "i", after);
}

static enum err outbox_newest(struct store *s, int64_t *ret, struct error *reterr)
{
    struct store_stmt *st = NULL;
    bool row = false;
    enum err err = store_query(s, &st, reterr, "SELECT COALESCE(MAX(epoch),0) FROM fact_epochs", "");
    if (!err)
        err = store_step(st, &row, reterr);
    if (!err && row)
        *ret = store_col_int(st, 0);
    store_done(&st);
    return err;
}

static enum err part_audit(struct part *p, size_t done, size_t failed)
{
    struct api *rq = p->b->rq;
    struct jv *after = jv_object();
    jv_set_int(after, "from", (int64_t)p->from + 1);
    jv_set_int(after, "to", (int64_t)p->to);
    jv_set_int(after, "done", (int64_t)done);
    jv_set_int(after, "failed", (int64_t)failed);
    struct audit_record r = {.vendor_id = rq->vendor_id,
                             .actor = rq->actor,
                             .address = rq->peer,
                             .request_id = rq->request_id,
                             .action = p->b->action,
                             .object = "",
                             .outcome = "ok",
                             .after = after};
    enum err err = audit_put(rq->store, rq->admin->keys, &r, &rq->error);
    jv_free(after);
    return err;
}

static enum err part_run(struct store *s, void *arg, struct error *reterr)
{
    struct part *p = arg;
    struct batch *b = p->b;
    struct api *rq = b->rq;
    struct store *own = rq->store;
    size_t done = 0, failed = 0;
    int64_t epoch = 0;
    rq->store = s;
    enum err err = outbox_newest(s, &epoch, &rq->error);
    for (size_t i = p->from; !err && i < p->to; i++) {
        if (!p->is_hopeful)
            err = store_exec(s, NULL, &rq->error, "SAVEPOINT line", "");
        if (err)
            break;
        enum err line = b->one(rq, b->ctx, i);
        if (line == ERR_UNAVAILABLE || line == ERR_INTERNAL || line == ERR_NOMEM) {
            err = line;
            break;
        }
        if (line && p->is_hopeful) {
            line_forget(rq);
            p->is_dashed = p->is_undone = true;
            rq->store = own;
            return ERR_CANCELED;
        }
        b->told(rq, b->ctx, i, line);
        if (line)
            failed++;
        else
            done++;
        line_forget(rq);
        if (line)
            err = store_exec(s, NULL, &rq->error, "ROLLBACK TO line", "");
        if (!err && !p->is_hopeful)
            err = store_exec(s, NULL, &rq->error, "RELEASE line", "");
    }
    if (!err)
        err = outbox_thin(s, epoch, &rq->error);
    p->is_undone = b->is_dry || (failed && !b->is_partial);
    if (!err && !p->is_undone)
        err = part_audit(p, done, failed);
    if (!err) {
        b->done += done;
        b->failed += failed;
    } else if (reterr) {
        *reterr = rq->error;
    }
    rq->store = own;
    return !err && p->is_undone ? ERR_CANCELED : err; /* the transaction goes */
}

enum err batch_run(struct batch *b)
{
    size_t per = b->is_partial && !b->is_dry ? b->per_transaction : b->n;
    b->is_kept = !b->is_dry;
    for (size_t at = 0; at < b->n; at += per) {
        /* A way back costs a copy of each page that a line changes. Lines are mostly good: first all without it, and only when one
         * fails all anew, each by itself. */
        struct part p = {.b = b, .from = at, .to = at + per < b->n ? at + per : b->n, .is_hopeful = true};
        struct error error = {0};
        enum err err = b->is_dry ? ERR_OK : room_check(b->rq->admin, &error);
        if (!err)
            err = db_run(b->rq->admin->writer, DB_TRANSACTION, part_run, &p, &error);
        if (err == ERR_CANCELED && p.is_dashed) {
            for (size_t i = p.from; i < p.to; i++)
                b->untold(b->ctx, i);
            p.is_hopeful = p.is_dashed = p.is_undone = false;
            err = db_run(b->rq->admin->writer, DB_TRANSACTION, part_run, &p, &error);
        }
        if (err == ERR_CANCELED && p.is_undone) {
            b->is_kept = false;
            continue;
        }
        b->rq->is_begun |= !err;
        if (err) {
            b->rq->error = error;
            return err;
        }
    }
    return ERR_OK;
}

/* ---- other handlers ------------------------------------------------------------------------------------------------------ */

struct call {
    const struct route *route;
    char *values[API_MAX_PARAMS];
    struct str kept_params[API_MAX_PARAMS];
    const struct route *kept_route;
    struct jv *kept_in;
    char *kept_match;
    enum head_method kept_method;
};

static enum err call_open(struct api *rq, struct call *c, enum head_method method, const char *path, const struct jv *in)
{
    unsigned allowed;
    c->route = route_find(method, str_c(path), c->values, &allowed);
    if (!c->route)
        return api_fail(rq, ERR_NOT_FOUND, "not_found", NULL, "no such object");
    if (!role_allows(rq->role, c->route->role) || (rq->scopes && !scopes_allow(str_c(rq->scopes), c->route)))
        return api_fail(rq, ERR_DENIED, "role_not_allowed", NULL, "this needs the right to do %s", c->route->action);
    c->kept_method = rq->method;
    rq->method = method;
    enum err err = ERR_OK;
    if (in)
        err = api_check_body(rq, in, c->route->request);
    rq->method = c->kept_method;
    return err;
}

static void call_close(struct call *c)
{
    for (size_t i = 0; i < API_MAX_PARAMS; i++)
        mem_free(c->values[i]);
}

enum err api_call_check(struct api *rq, enum head_method method, const char *path, const struct jv *in)
{
    struct call c = {0};
    enum err err = call_open(rq, &c, method, path, in);
    call_close(&c);
    return err;
}

enum err api_call(struct api *rq, enum head_method method, const char *path, const struct jv *in)
{
    struct call c = {0};
    enum err err = call_open(rq, &c, method, path, in);
    if (err) {
        call_close(&c);
        return err;
    }
    memcpy(c.kept_params, rq->params, sizeof c.kept_params);
    c.kept_route = rq->route;
    c.kept_in = rq->in;
    c.kept_match = rq->if_match;
    line_forget(rq);
    rq->method = method;
    rq->route = c.route;
    rq->in = in ? jv_copy(in) : jv_object();
    rq->if_match = NULL; /* speaks of the object of the client's path */
    for (size_t i = 0; i < API_MAX_PARAMS; i++)
        rq->params[i] = str_c(c.values[i]);
    err = c.route->run(rq);
    jv_free(rq->in);
    rq->in = c.kept_in;
    rq->if_match = c.kept_match;
    rq->method = c.kept_method;
    rq->route = c.kept_route;
    memcpy(rq->params, c.kept_params, sizeof c.kept_params);
    call_close(&c);
    return err;
}
