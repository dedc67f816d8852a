/* Licenses as rows: reading, printing, and the end that every change has in common. Decides nothing of what is allowed: lifecycle.c does. */
#include "licensemodel.h"

#include <stdio.h>
#include <string.h>

#include "eventlog.h"
#include "licensequery.h"
#include "licenses.h"
#include "outbox.h"
#include "plans.h"
#include "pullgate/clock.h"
#include "pullgate/mem.h"

/* ---- reading ----------------------------------------------------------------------------------------------------------- */

#define COLUMNS(X)                                                                                                                         \
    X(ID, "id")                                                                                                                            \
    X(NAME, "name")                                                                                                                        \
    X(CUSTOMER, "customer_id")                                                                                                             \
    X(APPLICATION, "application_id")                                                                                                       \
    X(PLAN, "plan_id")                                                                                                                     \
    X(TYPE, "type")                                                                                                                        \
    X(STATUS, "status")                                                                                                                    \
    X(REASON, "status_reason")                                                                                                             \
    X(STARTS, "starts_at")                                                                                                                 \
    X(EXPIRES, "expires_at")                                                                                                               \
    X(ANCHOR, "anchor_day")                                                                                                                \
    X(GRACE, "grace_days")                                                                                                                 \
    X(UPDATES, "updates_until")                                                                                                            \
    X(ON_EXPIRY, "on_expiry")                                                                                                              \
    X(PERIOD, "period")                                                                                                                    \
    X(AUTO_RENEW, "auto_renew")                                                                                                            \
    X(CANCEL, "cancel_at_period_end")                                                                                                      \
    X(TRIAL_DAYS, "trial_days")                                                                                                            \
    X(STARTS_ON, "starts_on")                                                                                                              \
    X(TRIAL_STARTED, "trial_started_at")                                                                                                   \
    X(REQUIRES_ACTIVATION, "requires_activation")                                                                                          \
    X(LOCKED, "(grants_locked OR (SELECT v.grants_irrevocable FROM vendors v WHERE v.id=licenses.vendor_id))")                             \
    X(CIDRS, "allowed_cidrs")                                                                                                              \
    X(LIMITS, "limits")                                                                                                                    \
    X(LIMIT_ACTION, "limit_action")                                                                                                        \
    X(FEATURES, "features")                                                                                                                \
    X(UPSTREAM, "upstream_credential_id")                                                                                                  \
    X(METADATA, "metadata")                                                                                                                \
    X(ENVIRONMENT, "environment")                                                                                                          \
    X(ORDER, "order_number")                                                                                                               \
    X(TRANSACTION, "transaction_id")                                                                                                       \
    X(ORDER_ID, "order_id")                                                                                                                \
    X(EXTERNAL, "external_id")                                                                                                             \
    X(MARKETPLACE, "marketplace")                                                                                                          \
    X(SUBSCRIPTION, "external_subscription_id")                                                                                            \
    X(SOURCE, "source")                                                                                                                    \
    X(ISSUER, "issuer")                                                                                                                    \
    X(KEY_PREFIX, "key_prefix")                                                                                                            \
    X(ACTIVATED, "activated_at")                                                                                                           \
    X(REVOKED, "revoked_at")                                                                                                               \
    X(PAYMENT_FAILED, "payment_failed_at")                                                                                                 \
    X(PAYMENT_RETRIES, "payment_retries")                                                                                                  \
    X(FIRST_USED, "first_used_at")                                                                                                         \
    X(LAST_USED, "last_used_at")                                                                                                           \
    X(LAST_FROM, "last_used_from")                                                                                                         \
    X(LAST_VALIDATED, "last_validated_at")                                                                                                 \
    X(FILE_DOWNLOADED, "file_downloaded_at")                                                                                               \
    X(CREATED, "created_at")                                                                                                               \
    X(UPDATED, "updated_at")                                                                                                               \
    X(ARCHIVED, "archived_at")                                                                                                             \
    X(REV, "rev")                                                                                                                          \
    X(KEY_HASH, "key_hash")
enum {
    COL_NOTHING,
#define X(name, sql) COL_##name,
    COLUMNS(X)
#undef X
};
#define X(name, sql) ", " sql
static const char SELECT_ANY[] = "SELECT 1" COLUMNS(X) " FROM licenses WHERE id=? AND vendor_id=?";
static const char SELECT_LIVE[] = "SELECT 1" COLUMNS(X) " FROM licenses WHERE id=? AND vendor_id=? AND archived_at=0";
#undef X

void license_row_free(struct license_row *r)
{
    mem_free(r->name);
    mem_free(r->customer_id);
    mem_free(r->application_id);
    mem_free(r->key_hash);
    mem_free(r->limits);
    *r = (struct license_row){0};
}

static void text_of(char *ret, size_t n, struct str s)
{
    snprintf(ret, n, "%.*s", STR(s));
}

static void row_read(const struct store_stmt *st, struct license_row *r)
{
    text_of(r->id, sizeof r->id, store_col_str(st, COL_ID));
    if (!license_status_parse(store_col_str(st, COL_STATUS), &r->status))
        r->status = LICENSE_STATUS_NONE;
    r->is_archived = store_col_int(st, COL_ARCHIVED) != 0;
    r->starts_at = store_col_int(st, COL_STARTS);
    r->expires_at = store_col_int(st, COL_EXPIRES);
    r->anchor_day = store_col_int(st, COL_ANCHOR);
    r->grace_days = store_col_int(st, COL_GRACE);
    r->updates_until = store_col_int(st, COL_UPDATES);
    r->activated_at = store_col_int(st, COL_ACTIVATED);
    r->rev = store_col_int(st, COL_REV);
    r->trial_days = store_col_int(st, COL_TRIAL_DAYS);
    r->trial_started_at = store_col_int(st, COL_TRIAL_STARTED);
    r->auto_renew = store_col_int(st, COL_AUTO_RENEW) != 0;
    r->cancel_at_period_end = store_col_int(st, COL_CANCEL) != 0;
    r->requires_activation = store_col_int(st, COL_REQUIRES_ACTIVATION) != 0;
    r->is_ordered = store_col_str(st, COL_ORDER_ID).n > 0;
    r->grants_locked = store_col_int(st, COL_LOCKED) != 0;
    text_of(r->period, sizeof r->period, store_col_str(st, COL_PERIOD));
    text_of(r->type, sizeof r->type, store_col_str(st, COL_TYPE));
    text_of(r->starts_on, sizeof r->starts_on, store_col_str(st, COL_STARTS_ON));
    r->name = str_dup(store_col_str(st, COL_NAME));
    r->customer_id = str_dup(store_col_str(st, COL_CUSTOMER));
    r->application_id = str_dup(store_col_str(st, COL_APPLICATION));
    r->key_hash = str_dup(store_col_str(st, COL_KEY_HASH));
    r->limits = str_dup(store_col_str(st, COL_LIMITS));
}

static struct lifecycle row_lifecycle(const struct license_row *r)
{
    return (struct lifecycle){.status = r->status,
                              .is_archived = r->is_archived,
                              .is_perpetual = strcmp(r->type, "perpetual") == 0,
                              .is_trial_waiting = r->trial_days && r->starts_on[0] && !r->trial_started_at && !r->expires_at,
                              .has_expiry = r->expires_at != 0,
                              .has_updates_end = r->updates_until != 0,
                              .auto_renew = r->auto_renew,
                              .cancel_at_period_end = r->cancel_at_period_end};
}

static struct jv *actions_allowed(const struct license_row *r)
{
    struct jv *list = jv_array();
    struct lifecycle l = row_lifecycle(r);
    for (int a = LIFECYCLE_NONE + 1; a < LIFECYCLE_ACTIONS_N; a++) {
        struct lifecycle_verdict v;
        lifecycle_judge(&l, (enum lifecycle_action)a, &v);
        if (v.is_allowed)
            jv_push(list, jv_string(str_c(lifecycle_action_text((enum lifecycle_action)a))));
    }
    return list;
}

static void print_limits(struct jv *v, struct str limits, struct str action)
{
    struct jv *l = NULL;
    if (!limits.n || jv_parse(limits, &JV_LIMITS_TRUSTED, &l, NULL) || jv_type(l) != JV_OBJECT) {
        jv_free(l);
        l = jv_object();
    }
    if (!jv_get_str(l, "reset_period").p)
        jv_set_c(l, "reset_period", "");
    if (jv_type(jv_get(l, "custom")) != JV_OBJECT)
        jv_set(l, "custom", jv_object());
    jv_set_str(l, "limit_action", action);
    jv_set(v, "limits", l);
}

static struct jv *license_print(const struct store_stmt *st, const struct license_row *r, int64_t now_s)
{
    static const struct {
        const char *name;
        int col;
        enum { TEXT, TIME, BOOL, INT, JSON } kind;
    } PLAIN[] = {
        {"period", COL_PERIOD, TEXT},
        {"auto_renew", COL_AUTO_RENEW, BOOL},
        {"cancel_at_period_end", COL_CANCEL, BOOL},
        {"trial_days", COL_TRIAL_DAYS, INT},
        {"starts_on", COL_STARTS_ON, TEXT},
        {"trial_started_at", COL_TRIAL_STARTED, TIME},
        {"requires_activation", COL_REQUIRES_ACTIVATION, BOOL},
        {"grants_locked", COL_LOCKED, BOOL},
        {"allowed_cidrs", COL_CIDRS, JSON},
        {"features", COL_FEATURES, JSON},
        {"metadata", COL_METADATA, JSON},
        {"environment", COL_ENVIRONMENT, TEXT},
        {"order_number", COL_ORDER, TEXT},
        {"transaction_id", COL_TRANSACTION, TEXT},
        {"external_id", COL_EXTERNAL, TEXT},
        {"marketplace", COL_MARKETPLACE, TEXT},
        {"external_subscription_id", COL_SUBSCRIPTION, TEXT},
        {"source", COL_SOURCE, TEXT},
        {"issuer", COL_ISSUER, TEXT},
        {"key_prefix", COL_KEY_PREFIX, TEXT},
        {"activated_at", COL_ACTIVATED, TIME},
        {"revoked_at", COL_REVOKED, TIME},
        {"payment_failed_at", COL_PAYMENT_FAILED, TIME},
        {"payment_retries", COL_PAYMENT_RETRIES, INT},
        {"first_used_at", COL_FIRST_USED, TIME},
        {"last_used_at", COL_LAST_USED, TIME},
        {"last_used_from", COL_LAST_FROM, TEXT},
        {"last_validated_at", COL_LAST_VALIDATED, TIME},
        {"file_downloaded_at", COL_FILE_DOWNLOADED, TIME},
        {"created_at", COL_CREATED, TIME},
        {"updated_at", COL_UPDATED, TIME},
        {"archived_at", COL_ARCHIVED, TIME},
    };
    struct jv *v = jv_object();
    struct license_terms terms = {
        .status = r->status, .starts_at_s = r->starts_at, .expires_at_s = r->expires_at, .grace_days = r->grace_days,
        .payment_failed_at_s = store_col_int(st, COL_PAYMENT_FAILED)};
    bool renews = r->auto_renew && !r->cancel_at_period_end && r->period[0] && r->status != LICENSE_REVOKED && !r->is_archived;
    jv_set_str(v, "id", store_col_str(st, COL_ID));
    jv_set_str(v, "name", store_col_str(st, COL_NAME));
    jv_set_str(v, "customer_id", store_col_str(st, COL_CUSTOMER));
    jv_set_str(v, "application_id", store_col_str(st, COL_APPLICATION));
    jv_set_c(v, "plan_id", store_col_str(st, COL_PLAN).n ? store_col_str(st, COL_PLAN).p : NULL);
    jv_set_str(v, "type", store_col_str(st, COL_TYPE));
    jv_set_str(v, "status", store_col_str(st, COL_STATUS));
    jv_set_c(v, "effective_status", license_effective_text(license_effective(&terms, now_s)));
    jv_set_str(v, "status_reason", store_col_str(st, COL_REASON));
    jv_set(v, "allowed_actions", actions_allowed(r));
    jv_set_time(v, "starts_at", r->starts_at);
    jv_set_time(v, "expires_at", r->expires_at);
    jv_set_int(v, "grace_days", r->grace_days);
    jv_set_time(v, "grace_ends_at", r->grace_days ? lifecycle_grace_end(r->expires_at, r->grace_days) : 0);
    jv_set_time(v, "updates_until", r->updates_until);
    jv_set_str(v, "on_expiry", store_col_str(st, COL_ON_EXPIRY));
    jv_set_time(v, "renews_at", renews ? r->expires_at : 0);
    print_limits(v, store_col_str(st, COL_LIMITS), store_col_str(st, COL_LIMIT_ACTION));
    jv_set_c(v, "upstream_credential_id", store_col_str(st, COL_UPSTREAM).n ? store_col_str(st, COL_UPSTREAM).p : NULL);
    for (size_t i = 0; i < sizeof PLAIN / sizeof *PLAIN; i++) {
        int col = PLAIN[i].col;
        switch (PLAIN[i].kind) {
        case TEXT:
            jv_set_str(v, PLAIN[i].name, store_col_str(st, col));
            break;
        case TIME:
            jv_set_time(v, PLAIN[i].name, store_col_int(st, col));
            break;
        case BOOL:
            jv_set_bool(v, PLAIN[i].name, store_col_int(st, col) != 0);
            break;
        case INT:
            jv_set_int(v, PLAIN[i].name, store_col_int(st, col));
            break;
        case JSON:
            api_set_json(v, PLAIN[i].name, store_col_str(st, col));
            break;
        }
    }
    api_print_etag(v, r->rev);
    return v;
}

static struct jv *grant_print(const struct store_stmt *st)
{
    struct jv *v = jv_object();
    jv_set_str(v, "id", store_col_str(st, 0));
    jv_set_str(v, "selector", store_col_str(st, 1));
    jv_set_str(v, "value", store_col_str(st, 2));
    jv_set_bool(v, "include_prerelease", store_col_int(st, 3) != 0);
    jv_set_time(v, "not_before", store_col_int(st, 4));
    jv_set_time(v, "not_after", store_col_int(st, 5));
    jv_set_str(v, "on_move", store_col_str(st, 6));
    api_set_json(v, "repositories", store_col_str(st, 7));
    jv_set_str(v, "note", store_col_str(st, 8));
    jv_set_time(v, "created_at", store_col_int(st, 9));
    api_set_json(v, "excluded", store_col_str(st, 10));
    jv_set_str(v, "origin", store_col_str(st, 11));
    return v;
}

static enum err license_add_grants(struct api *rq, struct jv *license)
{
    struct store_stmt *st = NULL;
    struct jv *list = jv_array();
    bool row;
    enum err err =
        store_query(rq->store, &st, &rq->error,
                    "SELECT id, selector, value, include_prerelease, not_before, not_after, on_move, repositories, note, created_at, excluded, origin"
                    " FROM grants WHERE license_id=? ORDER BY created_at, id",
                    "s", jv_get_str(license, "id"));
    while (!err) {
        err = store_step(st, &row, &rq->error);
        if (err || !row)
            break;
        jv_push(list, grant_print(st));
    }
    store_done(&st);
    jv_set(license, "grants", list);
    return err;
}

enum err license_load(struct api *rq, struct str id, unsigned flags, struct jv **ret, struct license_row *ret_row)
{
    struct store_stmt *st = NULL;
    struct license_row r = {0};
    struct jv *v = NULL;
    bool row = false;
    enum err err =
        store_query(rq->store, &st, &rq->error, flags & LICENSE_WITH_ARCHIVED ? SELECT_ANY : SELECT_LIVE, "sz", id, rq->vendor_id);
    if (!err)
        err = store_step(st, &row, &rq->error);
    if (!err && !row)
        err = api_not_found(rq, "license");
    if (!err) {
        row_read(st, &r);
        v = license_print(st, &r, rq->now_s);
    }
    store_done(&st);
    if (!err)
        err = license_add_grants(rq, v);
    if (!err)
        err = plans_add_scheduled(rq, v);
    if (err) {
        jv_free(v);
        license_row_free(&r);
        return err;
    }
    *ret = v;
    if (ret_row)
        *ret_row = r;
    else
        license_row_free(&r);
    return ERR_OK;
}

enum err license_for_action(struct api *rq, enum lifecycle_action a, struct license_row *r)
{
    enum err err = license_load(rq, rq->params[0], 0, &rq->before, r);
    if (!err)
        err = api_check_etag(rq, r->rev);
    if (err)
        return err;
    struct lifecycle l = row_lifecycle(r);
    struct lifecycle_verdict v;
    lifecycle_judge(&l, a, &v);
    if (!v.is_allowed) {
        err = api_fail(rq, ERR_CONFLICT, v.code, NULL, "%s is not allowed: %s", lifecycle_action_text(a), v.why);
        jv_free(rq->problem);
        rq->problem = jv_object();
        jv_set(rq->problem, "allowed_actions", actions_allowed(r));
        return err;
    }
    return effect_begin(rq, str_c(r->customer_id), str_c(r->application_id));
}

/* ---- the clock --------------------------------------------------------------------------------------------------------- */

/* Is something over that a look has to find, whatever was looked at before? */
static bool clock_is_late(const struct lifecycle_clock *c, int64_t now_s)
{
    if (c->is_archived || c->status == LICENSE_REVOKED || c->status == LICENSE_STATUS_NONE)
        return false;
    if (c->change_at_s && c->change_at_s <= now_s)
        return true;
    return c->status == LICENSE_ACTIVE &&
           ((c->expires_at_s && c->expires_at_s <= now_s) ||
            (c->payment_failed_at_s && lifecycle_grace_end(c->payment_failed_at_s, c->grace_days) <= now_s));
}

static enum err wake_write(struct api *rq, struct str id, bool is_done)
{
    struct store_stmt *st = NULL;
    struct lifecycle_clock c = {0};
    bool row = false;
    int64_t had = 0;
    enum err err = store_query(rq->store, &st, &rq->error,
                               "SELECT status, archived_at, starts_at, expires_at, grace_days, payment_failed_at, change_at, wake_at"
                               " FROM licenses WHERE id=? AND vendor_id=?",
                               "sz", id, rq->vendor_id);
    if (!err)
        err = store_step(st, &row, &rq->error);
    if (!err && row) {
        if (!license_status_parse(store_col_str(st, 0), &c.status))
            c.status = LICENSE_STATUS_NONE;
        c.is_archived = store_col_int(st, 1) != 0;
        c.starts_at_s = store_col_int(st, 2);
        c.expires_at_s = store_col_int(st, 3);
        c.grace_days = store_col_int(st, 4);
        c.payment_failed_at_s = store_col_int(st, 5);
        c.change_at_s = store_col_int(st, 6);
        had = store_col_int(st, 7);
    }
    store_done(&st);
    if (err || !row)
        return err;
    int64_t at = lifecycle_wake(&c, rq->now_s);
    bool is_over = c.is_archived || c.status == LICENSE_REVOKED;
    if (!is_done && !is_over && had && had <= rq->now_s)
        at = had;
    else if (!is_done && clock_is_late(&c, rq->now_s))
        at = rq->now_s;
    return at == had ? ERR_OK : store_exec(rq->store, NULL, &rq->error, "UPDATE licenses SET wake_at=? WHERE id=?", "is", at, id);
}

enum err licenses_wake(struct api *rq, struct str id)
{
    return wake_write(rq, id, false);
}

enum err licenses_woken(struct api *rq, struct str id)
{
    return wake_write(rq, id, true);
}

/* ---- what every change ends with --------------------------------------------------------------------------------------- */

/* {"field":{"from","to"}} of what differs; NULL where there was nothing before. */
static struct jv *changes_of(const struct jv *before, const struct jv *after)
{
    static const char *const silent[] = {"etag", "updated_at", "allowed_actions", "key"};
    struct jv *changes = jv_object();
    for (void *it = jv_iter(after); it && before; it = jv_iter_next(after, it)) {
        const char *key = jv_iter_key(it);
        const struct jv *to = jv_iter_value(it), *from = jv_get(before, key);
        bool is_silent = jv_equal(from, to);
        for (size_t i = 0; i < sizeof silent / sizeof *silent; i++)
            is_silent = is_silent || strcmp(silent[i], key) == 0;
        if (is_silent)
            continue;
        struct jv *one = jv_object();
        jv_set(one, "from", from ? jv_copy(from) : jv_null());
        jv_set(one, "to", jv_copy(to));
        jv_set(changes, key, one);
    }
    return changes;
}

static const char *status_or_empty(enum license_status s)
{
    return s == LICENSE_STATUS_NONE ? "" : license_status_text(s);
}

/* Into the license's history and the event log. */
static enum err change_tell(struct api *rq, const struct license_row *r, const struct license_change *c, const struct jv *data,
                            const struct jv *license)
{
    struct str reason = c->reason.p ? c->reason : S("");
    const struct history_record h = {.vendor_id = rq->vendor_id,
                                     .customer_id = jv_get_str(license, "customer_id"),
                                     .license_id = r->id,
                                     .event = c->event,
                                     .actor = rq->actor,
                                     .from_status = status_or_empty(r->status),
                                     .to_status = status_or_empty(c->to),
                                     .request_id = rq->request_id,
                                     .reason = reason,
                                     .data = data};
    enum err err = history_put(rq->store, &h, &rq->error);
    if (err)
        return err;
    struct jv *told = jv_object(), *shown = jv_object();
    static const char *const members[] = {"id", "name", "application_id", "status", "effective_status", "expires_at"};
    for (size_t i = 0; i < sizeof members / sizeof *members; i++)
        if (jv_get(license, members[i]))
            jv_set(shown, members[i], jv_copy(jv_get(license, members[i])));
    jv_set_c(told, "from_status", status_or_empty(r->status));
    jv_set_c(told, "to_status", status_or_empty(c->to));
    jv_set_str(told, "reason", reason);
    jv_set(told, "change", jv_copy(data));
    jv_set(told, "license", shown);
    struct event_record event = {.vendor_id = rq->vendor_id,
                                 .type = c->event,
                                 .actor = rq->actor,
                                 .customer_id = jv_get_c(license, "customer_id", ""),
                                 .license_id = r->id,
                                 .data = told};
    err = eventlog_put(rq->store, &event, &rq->error);
    jv_free(told);
    return err;
}

enum err license_finish(struct api *rq, const struct license_row *r, const struct license_change *c)
{
    struct jv *after = NULL;
    enum err err = licenses_wake(rq, str_c(r->id));
    if (!err)
        err = licensequery_index(rq, str_c(r->id));
    if (!err)
        err = license_load(rq, str_c(r->id), LICENSE_WITH_ARCHIVED, &after, NULL);
    if (err)
        return err;
    struct jv *changes = changes_of(rq->before, after);
    if (c->event)
        err = change_tell(rq, r, c, c->data ? c->data : changes, after);
    if (!err)
        err = outbox_put_kind(rq->store, 'c', jv_get_str(after, "customer_id"), true, &rq->error);
    if (err) {
        jv_free(changes);
        jv_free(after);
        return err;
    }
    jv_free(rq->out);
    jv_free(rq->after);
    rq->out = after;
    rq->after = jv_copy(after);
    mem_free(rq->etag);
    rq->etag = str_dup(jv_get_str(after, "etag"));
    if (rq->before)
        jv_set(rq->out, "changes", changes);
    else
        jv_free(changes);
    return effect_end(rq, jv_get_str(rq->after, "customer_id"), str_c(r->id), rq->out);
}

enum err license_touch(struct api *rq, const struct license_row *r)
{
    return store_exec(rq->store, NULL, &rq->error, "UPDATE licenses SET updated_at=?, rev=rev+1 WHERE id=?", "iz", rq->now_s, r->id);
}

/* ---- for others ---------------------------------------------------------------------------------------------------------- */

enum err licenses_get(struct api *rq, struct str id, struct jv **ret)
{
    enum err err = license_load(rq, id, 0, ret, NULL);
    if (!err) {
        mem_free(rq->etag);
        rq->etag = str_dup(jv_get_str(*ret, "etag"));
    }
    return err;
}

enum err licenses_shown(struct api *rq, struct str id, struct jv **ret)
{
    return license_load(rq, id, LICENSE_WITH_ARCHIVED, ret, NULL);
}

enum err licenses_changed(struct api *rq, struct str id, const char *event, struct str reason, const struct jv *data)
{
    struct license_row r = {0};
    struct jv *now = NULL, *nothing = jv_object(), *kept_before = rq->before;
    enum err err = license_load(rq, id, LICENSE_WITH_ARCHIVED, &now, &r);
    jv_free(now);
    rq->before = NULL; /* the caller's, of another object maybe; what changed is in data */
    if (!err)
        err = license_touch(rq, &r);
    if (!err)
        err = license_finish(rq, &r, &(struct license_change){.event = event, .to = r.status, .reason = reason, .data = data ? data : nothing});
    rq->before = kept_before;
    jv_free(nothing);
    license_row_free(&r);
    return err;
}

enum err licenses_pulled(struct admin *a, struct store *s, struct str id, int64_t at_s, struct error *reterr)
{
    int64_t changes = 0;
    enum err err = store_exec(s, &changes, reterr,
                              "UPDATE licenses SET trial_started_at=?1, expires_at=?1+trial_days*86400, anchor_day=0 WHERE id=?2"
                              " AND starts_on='first_pull' AND trial_started_at=0 AND trial_days>0 AND expires_at=0 AND status='active'"
                              " AND archived_at=0",
                              "is", at_s, id);
    if (err || !changes)
        return err;
    struct store_stmt *st = NULL;
    struct api rq = {0};
    bool row = false;
    err = store_query(s, &st, reterr, "SELECT vendor_id, expires_at FROM licenses WHERE id=?", "s", id);
    if (!err)
        err = store_step(st, &row, reterr);
    if (err || !row) {
        store_done(&st);
        return err;
    }
    struct jv *data = jv_object();
    api_system(&rq, a, s, store_col_str(st, 0), "system:first_pull", clock_now_s());
    jv_set_time(data, "trial_started_at", at_s);
    jv_set_time(data, "expires_at", store_col_int(st, 1));
    store_done(&st);
    err = licenses_changed(&rq, id, "license.trial_started", (struct str){NULL, 0}, data);
    if (!err) {
        char *object = str_dup(id);
        api_audit_object(&rq, object);
        mem_free(object);
        err = api_audit(&rq, "license.start_trial", "ok");
    }
    if (err && reterr)
        *reterr = rq.error;
    jv_free(data);
    api_system_done(&rq);
    return err;
}
