/* What is used of a license: counts by window, the installations that hold its places, and giving a place up. Counting: usage.c. */
#include "api_routes.h"
#include "pullgate/jv.h"
#include "usage.h"

#define WINDOWS_SHOWN 24

static const struct field WINDOW_FIELDS[] = {
    {.name = "from", .type = FIELD_TIME},
    {.name = "until", .type = FIELD_TIME, .about = "null: no end"},
    {.name = "pulls", .type = FIELD_INT},
    {.name = "bytes", .type = FIELD_INT},
    {.name = "denied", .type = FIELD_INT},
    {.name = NULL},
};
const struct field USAGE_FIELDS[] = {
    {.name = "license_id", .type = FIELD_STRING},
    {.name = "limits", .type = FIELD_MAP},
    {.name = "window_from", .type = FIELD_TIME, .about = "null: nothing was counted yet"},
    {.name = "window_until", .type = FIELD_TIME, .about = "null: the window has no end"},
    {.name = "pulls", .type = FIELD_INT},
    {.name = "bytes", .type = FIELD_INT},
    {.name = "denied", .type = FIELD_INT},
    {.name = "instances", .type = FIELD_INT, .about = "installations that hold a place"},
    {.name = "quota_exceeded", .type = FIELD_BOOL, .about = "pulls are denied until window_until"},
    {.name = "instances_full", .type = FIELD_BOOL, .about = "further installations are denied"},
    {.name = "windows", .type = FIELD_LIST, .sub = WINDOW_FIELDS, .about = "newest first"},
    {.name = NULL},
};
static const struct schema USAGE = {"LicenseUsage", USAGE_FIELDS};
static const struct field INSTANCE_FIELDS[] = {
    {.name = "fingerprint", .type = FIELD_STRING},
    {.name = "kind", .type = FIELD_STRING, .one_of = "pull|validate"},
    {.name = "address", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "agent", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "first_seen_at", .type = FIELD_TIME},
    {.name = "last_seen_at", .type = FIELD_TIME},
    {.name = NULL},
};
static const struct schema INSTANCE = {"LicenseInstance", INSTANCE_FIELDS};

/* The usage of one license, if it is the vendor's (or, with a customer, the customer's). */
enum err usage_print(struct api *rq, struct str license_id, struct jv **ret)
{
    struct store_stmt *st = NULL;
    struct jv *v = jv_object(), *windows = jv_array();
    bool row = false;
    int64_t from = 0, until = 0, instances = 0;
    enum err err = store_query(rq->store, &st, &rq->error,
                               "SELECT id, limits, usage_from, usage_until, quota_exceeded, quota_until FROM licenses"
                               " WHERE id=? AND vendor_id=? AND archived_at=0 AND (?='' OR customer_id=?)",
                               "szzz", license_id, rq->vendor_id, rq->customer_id ? rq->customer_id : "", rq->customer_id ? rq->customer_id : "");
    if (!err)
        err = store_step(st, &row, &rq->error);
    if (!err && !row)
        err = api_not_found(rq, "license");
    if (!err) {
        from = store_col_int(st, 2);
        until = store_col_int(st, 3);
        bool is_over = until != 0 && rq->now_s >= until; /* a further one begins with its first pull */
        jv_set_str(v, "license_id", store_col_str(st, 0));
        api_set_json(v, "limits", store_col_str(st, 1));
        jv_set_time(v, "window_from", is_over ? until : from);
        jv_set_time(v, "window_until", is_over ? 0 : until);
        bool exceeded = store_col_int(st, 4) != 0 && (store_col_int(st, 5) == 0 || rq->now_s < store_col_int(st, 5));
        jv_set_bool(v, "quota_exceeded", exceeded);
        from = is_over ? until : from;
    }
    store_done(&st);
    if (!err)
        err = usage_instances(rq->store, license_id, from, until, &instances, &rq->error);
    if (!err)
        err = store_query(rq->store, &st, &rq->error,
                          "SELECT from_at, until_at, pulls, bytes, denied FROM license_usage WHERE license_id=? ORDER BY from_at DESC LIMIT ?", "si",
                          license_id, (int64_t)WINDOWS_SHOWN);
    int64_t pulls = 0, bytes = 0, denied = 0;
    while (!err && !(err = store_step(st, &row, &rq->error)) && row) {
        struct jv *w = jv_object();
        jv_set_time(w, "from", store_col_int(st, 0));
        jv_set_time(w, "until", store_col_int(st, 1));
        jv_set_int(w, "pulls", store_col_int(st, 2));
        jv_set_int(w, "bytes", store_col_int(st, 3));
        jv_set_int(w, "denied", store_col_int(st, 4));
        if (store_col_int(st, 0) == from) {
            pulls = store_col_int(st, 2);
            bytes = store_col_int(st, 3);
            denied = store_col_int(st, 4);
        }
        jv_push(windows, w);
    }
    store_done(&st);
    jv_set_int(v, "pulls", pulls);
    jv_set_int(v, "bytes", bytes);
    jv_set_int(v, "denied", denied);
    jv_set_int(v, "instances", instances);
    int64_t max = jv_get_int(jv_get(v, "limits"), "max_instances", 0);
    jv_set_bool(v, "instances_full", max > 0 && instances >= max);
    jv_set(v, "windows", windows);
    if (err) {
        jv_free(v);
        return err;
    }
    *ret = v;
    return ERR_OK;
}

static enum err usage_get(struct api *rq)
{
    return usage_print(rq, rq->params[0], &rq->out);
}

static enum err license_check(struct api *rq)
{
    struct strbuf vendor = {0};
    bool found = false;
    enum err err = api_lookup(rq, "SELECT vendor_id FROM licenses WHERE id=? AND archived_at=0", rq->params[0], &vendor, &found);
    if (!err && (!found || !str_eq_c(sb_str(&vendor), rq->vendor_id)))
        err = api_not_found(rq, "license");
    sb_free(&vendor);
    return err;
}

static enum err instance_list(struct api *rq)
{
    struct page page;
    struct store_stmt *st = NULL;
    bool row;
    enum err err = api_page(rq, &page);
    if (!err)
        err = license_check(rq);
    if (err)
        return err;
    struct jv *items = api_list(rq);
    err = store_query(rq->store, &st, &rq->error,
                      "SELECT fingerprint, kind, address, agent, first_seen_at, last_seen_at FROM license_instances"
                      " WHERE license_id=? AND revoked_at=0 AND (first_seen_at, fingerprint) > (?,?) ORDER BY first_seen_at, fingerprint LIMIT ?",
                      "sizi", rq->params[0], page.after_key, page.after_id, (int64_t)page.limit + 1);
    while (!err) {
        err = store_step(st, &row, &rq->error);
        if (err || !row || !api_page_take(&page, rq->out, store_col_int(st, 4), store_col_str(st, 0).p))
            break;
        struct jv *v = jv_object();
        static const char *const texts[] = {"fingerprint", "kind", "address", "agent"};
        for (int i = 0; i < 4; i++)
            jv_set_str(v, texts[i], store_col_str(st, i));
        jv_set_time(v, "first_seen_at", store_col_int(st, 4));
        jv_set_time(v, "last_seen_at", store_col_int(st, 5));
        jv_push(items, v);
    }
    store_done(&st);
    return err;
}

static enum err instance_delete(struct api *rq)
{
    int64_t changes = 0;
    enum err err = license_check(rq);
    if (!err)
        err = store_exec(rq->store, &changes, &rq->error,
                         "UPDATE license_instances SET revoked_at=? WHERE license_id=? AND fingerprint=? AND revoked_at=0", "iss", rq->now_s,
                         rq->params[0], rq->params[1]);
    if (!err && !changes)
        err = api_not_found(rq, "installation");
    return err ? err : usage_refresh(rq->store, rq->params[0], rq->now_s, &rq->error);
}

#define LIC "/api/v1/licenses/{id}"
const struct route USAGE_ROUTES[] = {
    {HEAD_GET, LIC "/usage", usage_get, ROLE_VIEWER, 0, NULL, &USAGE, NULL, "license.usage", "What is used of its limits, by window"},
    {HEAD_GET, LIC "/instances", instance_list, ROLE_VIEWER, ROUTE_LIST, NULL, &INSTANCE, NULL, "license.instances",
     "Installations that pull with it"},
    {HEAD_DELETE, LIC "/instances/{fingerprint}", instance_delete, ROLE_LICENSES, 0, NULL, NULL, NULL, "license.remove_instance",
     "Give an installation's place up; it takes one again when it pulls and one is free"},
    {.path = NULL},
};
