/* One action for every license that a filter finds. First it is said how many these are, then it is done to them, some hundreds a
 * transaction, with a result for each. */
#include <stdio.h>
#include <string.h>

#include "api_routes.h"
#include "batch.h"
#include "licensequery.h"
#include "licenses.h"
#include "pullgate/mem.h"

#define BULK_MAX  10000 /* licenses of one request */
#define BULK_PART 200   /* a transaction */
#define ACTIONS   "activate|suspend|reinstate|revoke|renew|extend"

struct bulk {
    const char *action;
    const struct jv *body;
    char **ids;
    struct jv **results; /* of each */
};

static enum err bulk_one(struct api *rq, void *ctx, size_t i)
{
    struct bulk *b = ctx;
    return licenses_act(rq, str_c(b->ids[i]), b->action, b->body);
}

static void bulk_untold(void *ctx, size_t i)
{
    struct bulk *b = ctx;
    jv_free(b->results[i]);
    b->results[i] = NULL;
}

static void bulk_told(struct api *rq, void *ctx, size_t i, enum err err)
{
    struct bulk *b = ctx;
    struct jv *v = jv_object();
    jv_set_c(v, "id", b->ids[i]);
    jv_set_c(v, "result", err ? "failed" : "done");
    if (err) {
        jv_set_c(v, "code", rq->code ? rq->code : err == ERR_NOT_FOUND ? "not_found" : "conflict");
        jv_set_c(v, "detail", rq->error.text);
    } else {
        jv_set_str(v, "name", jv_get_str(rq->out, "name"));
        jv_set_str(v, "effective_status", jv_get_str(rq->out, "effective_status"));
        jv_set(v, "expires_at", jv_get(rq->out, "expires_at") ? jv_copy(jv_get(rq->out, "expires_at")) : jv_null());
    }
    b->results[i] = v;
}

static enum err bulk_find(struct api *rq, struct strbuf *ids, size_t *ret_n)
{
    struct filter filter = {0};
    struct finder *f = NULL;
    bool more = false;
    enum err err = filter_of_object(rq, jv_get(rq->in, "filter"), LICENSE_FILTER_PARAMS, &filter);
    if (!err)
        err = licensequery_new(rq, &filter, &f);
    if (!err)
        err = finder_all(f, BULK_MAX, ids, ret_n, &more);
    if (!err && more)
        err = api_fail(rq, ERR_CONFLICT, "too_many_found", "filter", "filter: finds more than %d; narrow it", BULK_MAX);
    finder_free(&f);
    filter_free(&filter);
    return err;
}

static enum err licenses_bulk(struct api *rq)
{
    struct bulk bulk = {.action = jv_get_c(rq->in, "action", ""), .body = jv_get(rq->in, "body")};
    struct batch b = {.rq = rq,
                      .action = "license.bulk",
                      .per_transaction = BULK_PART,
                      .is_partial = true,
                      .one = bulk_one,
                      .told = bulk_told,
                      .untold = bulk_untold,
                      .ctx = &bulk};
    struct strbuf ids = {0}, path = {0}, dry = {0};
    struct jv *nothing = jv_object();
    int64_t expect = jv_get_int(rq->in, "expect_count", -1);
    if (!bulk.body)
        bulk.body = nothing;
    if (api_query(rq, "dry_run", &dry))
        b.is_dry = !str_eq(sb_str(&dry), S("0")) && !str_eq(sb_str(&dry), S("false"));
    sb_addf(&path, "/api/v1/licenses/all/%s", bulk.action);
    enum err err = api_call_check(rq, HEAD_POST, path.p, bulk.body);
    if (err == ERR_INVALID) { /* as it stands in this body */
        char field[API_FIELD_MAX];
        api_field(field, "body.%s", rq->error.field);
        snprintf(rq->error.field, sizeof rq->error.field, "%s", field);
    }
    if (!err)
        err = bulk_find(rq, &ids, &b.n);
    if (!err && expect < 0 && !b.is_dry)
        err = api_fail(rq, ERR_INVALID, "missing_field", "expect_count", "expect_count: say how many are meant; dry_run=1 counts them");
    if (!err && expect >= 0 && expect != (int64_t)b.n) {
        err = api_fail(rq, ERR_CONFLICT, "count_differs", "expect_count", "the filter finds %zu, not %lld", b.n, (long long)expect);
        rq->problem = jv_object();
        jv_set_int(rq->problem, "count", (int64_t)b.n);
    }
    if (!err) {
        bulk.results = mem_calloc(b.n ? b.n : 1, sizeof *bulk.results);
        bulk.ids = mem_calloc(b.n ? b.n : 1, sizeof *bulk.ids);
        struct str rest = sb_str(&ids), id;
        for (size_t i = 0; i < b.n && str_next(&rest, '\n', &id); i++)
            bulk.ids[i] = str_dup(id);
        err = batch_run(&b);
        for (size_t i = 0; i < b.n; i++)
            mem_free(bulk.ids[i]);
        mem_free(bulk.ids);
    }
    if (!err) {
        rq->out = jv_object();
        jv_set_c(rq->out, "action", bulk.action);
        jv_set_bool(rq->out, "dry_run", b.is_dry);
        jv_set_int(rq->out, "count", (int64_t)b.n);
        jv_set_int(rq->out, "done", (int64_t)b.done);
        jv_set_int(rq->out, "failed", (int64_t)b.failed);
        jv_set(rq->out, "licenses", jv_array());
        for (size_t i = 0; i < b.n; i++) {
            jv_push(jv_get(rq->out, "licenses"), bulk.results[i]);
            bulk.results[i] = NULL;
        }
    }
    for (size_t i = 0; bulk.results && i < b.n; i++)
        jv_free(bulk.results[i]);
    mem_free(bulk.results);
    jv_free(nothing);
    sb_free(&ids);
    sb_free(&path);
    sb_free(&dry);
    return err;
}

static const struct field BULK_FIELDS[] = {
    {.name = "filter", .type = FIELD_MAP, .flags = FIELD_REQUIRED, .about = "parameters of the list of licenses by name; {} means all"},
    {.name = "action", .type = FIELD_STRING, .flags = FIELD_REQUIRED, .one_of = ACTIONS},
    {.name = "body", .type = FIELD_MAP, .about = "that of the action: {\"period\":\"P1Y\"}, {\"reason\":\"…\"}"},
    {.name = "expect_count", .type = FIELD_INT, .about = "how many are meant; without dry_run nothing is done where the filter finds another number"},
    {.name = NULL},
};
static const struct schema BULK = {"LicenseBulk", BULK_FIELDS};
static const struct field BULK_RESULT_FIELDS[] = {
    {.name = "id", .type = FIELD_STRING},
    {.name = "result", .type = FIELD_STRING, .one_of = "done|failed"},
    {.name = "name", .type = FIELD_STRING, .flags = FIELD_OPTIONAL},
    {.name = "effective_status", .type = FIELD_STRING, .flags = FIELD_OPTIONAL, .about = "afterwards"},
    {.name = "expires_at", .type = FIELD_TIME, .flags = FIELD_OPTIONAL, .about = "afterwards"},
    {.name = "code", .type = FIELD_STRING, .flags = FIELD_OPTIONAL},
    {.name = "detail", .type = FIELD_STRING, .flags = FIELD_OPTIONAL},
    {.name = NULL},
};
static const struct field BULK_REPORT_FIELDS[] = {
    {.name = "action", .type = FIELD_STRING},
    {.name = "dry_run", .type = FIELD_BOOL},
    {.name = "count", .type = FIELD_INT, .about = "licenses that the filter finds"},
    {.name = "done", .type = FIELD_INT},
    {.name = "failed", .type = FIELD_INT},
    {.name = "licenses", .type = FIELD_LIST, .sub = BULK_RESULT_FIELDS},
    {.name = NULL},
};
static const struct schema BULK_REPORT = {"LicenseBulkReport", BULK_REPORT_FIELDS};
static const struct query_param BULK_PARAMS[] = {{"dry_run", "1: says how many and which, and what would become of each; changes nothing"},
                                                 {NULL, NULL}};

const struct route BULK_ROUTES[] = {
    {HEAD_POST, "/api/v1/licenses/bulk", licenses_bulk, ROLE_LICENSES, ROUTE_SLOW | ROUTE_ACTION, &BULK, &BULK_REPORT, BULK_PARAMS,
     "license.bulk", "One action for every license that a filter finds"},
    {.path = NULL},
};
