/* Licenses, what can be done with them, and their grants. A license's stored status changes only by actions; what the clock makes of
 * it (scheduled, expiring, grace, expired) is derived at every look. `revoked` is final. */
#include <stdio.h>
#include <string.h>

#include "api_routes.h"
#include "eventlog.h"
#include "licenses.h"
#include "outbox.h"
#include "pullgate/period.h"
#include "pullgate/clock.h"
#include "pullgate/credential.h"
#include "pullgate/license.h"
#include "pullgate/mem.h"
#include "tags.h"

#define GRANTS_MAX      200 /* of one license */
#define KEY_SHOWN_CHARS 6   /* of a license key: its first group */
#define GRACE_DAYS_MAX  3650

/* ---- schemas ----------------------------------------------------------------------------------------------------------- */

static const struct field GRANT_FIELDS[] = {
    {.name = "id", .type = FIELD_STRING},
    {.name = "selector", .type = FIELD_STRING, .one_of = "exact|range|glob|channel|digest|all"},
    {.name = "value", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "include_prerelease", .type = FIELD_BOOL},
    {.name = "not_before", .type = FIELD_TIME},
    {.name = "not_after", .type = FIELD_TIME},
    {.name = "on_move", .type = FIELD_STRING, .one_of = "follow|pin"},
    {.name = "repositories", .type = FIELD_STRINGS, .about = "none: all of the application's"},
    {.name = "note", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "created_at", .type = FIELD_TIME},
    {.name = NULL},
};
static const struct field GRANT_IN_FIELDS[] = {
    {.name = "selector", .type = FIELD_STRING, .flags = FIELD_REQUIRED, .one_of = "exact|range|glob|channel|digest|all"},
    {.name = "value",
     .type = FIELD_STRING,
     .flags = FIELD_EMPTY,
     .max = 256,
     .about = "1.4.2, ^1.4, 2024.*-lts, stable, sha256:…; none for all"},
    {.name = "on_move", .type = FIELD_STRING, .one_of = "follow|pin", .about = "pin binds each tag to the digest it first resolves to"},
    {.name = "include_prerelease", .type = FIELD_BOOL, .about = "a range also matches pre-releases"},
    {.name = "not_before", .type = FIELD_TIME},
    {.name = "not_after", .type = FIELD_TIME},
    {.name = "repositories", .type = FIELD_STRINGS, .about = "public names; left out: all of the application's"},
    {.name = "note", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = NULL},
};
static const struct schema GRANT_ADD = {"GrantAdd", GRANT_IN_FIELDS};
static const struct schema GRANT_UPDATE = {"GrantUpdate", GRANT_IN_FIELDS + 3 /* what it selects stays: add another and remove this one */};
static const struct field GRANT_REMOVE_FIELDS[] = {
    {.name = "reason", .type = FIELD_STRING, .flags = FIELD_EMPTY, .max = 500},
    {.name = NULL},
};
static const struct schema GRANT_REMOVE = {"GrantRemove", GRANT_REMOVE_FIELDS};

static const struct field LICENSE_FIELDS[] = {
    {.name = "id", .type = FIELD_STRING},
    {.name = "name", .type = FIELD_STRING},
    {.name = "customer_id", .type = FIELD_STRING},
    {.name = "application_id", .type = FIELD_STRING},
    {.name = "type", .type = FIELD_STRING},
    {.name = "status", .type = FIELD_STRING, .one_of = "inactive|active|suspended|revoked"},
    {.name = "effective_status", .type = FIELD_STRING, .one_of = "revoked|suspended|inactive|scheduled|expired|grace|expiring|active"},
    {.name = "status_reason", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "allowed_actions", .type = FIELD_STRINGS},
    {.name = "starts_at", .type = FIELD_TIME},
    {.name = "expires_at", .type = FIELD_TIME, .about = "null: never"},
    {.name = "grace_days", .type = FIELD_INT},
    {.name = "updates_until", .type = FIELD_TIME, .about = "versions released later are not granted"},
    {.name = "on_expiry", .type = FIELD_STRING, .one_of = "block|keep_released"},
    {.name = "period", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "allowed_cidrs", .type = FIELD_STRINGS},
    {.name = "upstream_credential_id", .type = FIELD_STRING, .flags = FIELD_NULL},
    {.name = "metadata", .type = FIELD_MAP},
    {.name = "environment", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "order_number", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "external_id", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "key_prefix", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "first_used_at", .type = FIELD_TIME},
    {.name = "last_used_at", .type = FIELD_TIME},
    {.name = "last_used_from", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "created_at", .type = FIELD_TIME},
    {.name = "updated_at", .type = FIELD_TIME},
    {.name = "archived_at", .type = FIELD_TIME},
    {.name = "grants", .type = FIELD_LIST, .sub = GRANT_FIELDS},
    {.name = "etag", .type = FIELD_STRING},
    {.name = "key",
     .type = FIELD_SECRET,
     .flags = FIELD_OPTIONAL,
     .about = "the license key; shown once, at creation and after rotate-key"},
    {.name = NULL},
};
static const struct schema LICENSE = {"License", LICENSE_FIELDS};

static const struct field LICENSE_CREATE_FIELDS[] = {
    {.name = "customer_id", .type = FIELD_STRING, .flags = FIELD_REQUIRED, .max = 64},
    {.name = "application_id", .type = FIELD_STRING, .flags = FIELD_REQUIRED, .max = 64},
    {.name = "status", .type = FIELD_STRING, .one_of = "inactive|active", .about = "inactive when absent"},
    {.name = "grants", .type = FIELD_LIST, .max = GRANTS_MAX, .sub = GRANT_IN_FIELDS, .about = "none: nothing is granted"},
    {.name = "name", .type = FIELD_STRING, .flags = FIELD_REQUIRED, .about = "unique for the customer"},
    {.name = "type", .type = FIELD_STRING, .one_of = "paid|trial|development|community"},
    {.name = "starts_at", .type = FIELD_TIME},
    {.name = "expires_at", .type = FIELD_TIME, .about = "a date means the end of that day in the vendor's zone; null or absent: never"},
    {.name = "grace_days", .type = FIELD_INT, .max = GRACE_DAYS_MAX},
    {.name = "updates_until", .type = FIELD_TIME},
    {.name = "on_expiry", .type = FIELD_STRING, .one_of = "block|keep_released"},
    {.name = "period",
     .type = FIELD_STRING,
     .flags = FIELD_EMPTY | FIELD_NULL,
     .max = 20,
     .about = "P1M, P1Y; what renew takes when it names none"},
    {.name = "allowed_cidrs", .type = FIELD_STRINGS, .max = 64, .about = "where it may be pulled from; none: anywhere"},
    {.name = "upstream_credential_id",
     .type = FIELD_STRING,
     .flags = FIELD_EMPTY | FIELD_NULL,
     .max = 64,
     .about = "an upstream whose credentials replace the repository's own for this license's pulls"},
    {.name = "metadata", .type = FIELD_MAP},
    {.name = "environment", .type = FIELD_STRING, .flags = FIELD_EMPTY | FIELD_NULL},
    {.name = "order_number", .type = FIELD_STRING, .flags = FIELD_EMPTY | FIELD_NULL},
    {.name = "external_id", .type = FIELD_STRING, .flags = FIELD_EMPTY | FIELD_NULL},
    {.name = NULL},
};
static const struct schema LICENSE_CREATE = {"LicenseCreate", LICENSE_CREATE_FIELDS};
static const struct schema LICENSE_UPDATE = {"LicenseUpdate", LICENSE_CREATE_FIELDS + 4 /* from name on */};

static const struct field REASON_FIELDS[] = {
    {.name = "reason",
     .type = FIELD_STRING,
     .flags = FIELD_EMPTY,
     .max = 500,
     .about = "shown to the customer with a suspension or revocation"},
    {.name = NULL},
};
static const struct schema REASON = {"Reason", REASON_FIELDS};
static const struct field RENEW_FIELDS[] = {
    {.name = "period", .type = FIELD_STRING, .max = 20, .about = "P1M, P1Y, P14D, 7d; the license's own when absent"},
    {.name = "expires_at", .type = FIELD_TIME, .about = "instead of a period"},
    {.name = "reason", .type = FIELD_STRING, .flags = FIELD_EMPTY, .max = 500},
    {.name = NULL},
};
static const struct schema RENEW = {"Renew", RENEW_FIELDS};
static const struct field EXTEND_FIELDS[] = {
    {.name = "period", .type = FIELD_STRING, .flags = FIELD_REQUIRED, .max = 20},
    {.name = "reason", .type = FIELD_STRING, .flags = FIELD_EMPTY, .max = 500},
    {.name = NULL},
};
static const struct schema EXTEND = {"Extend", EXTEND_FIELDS};

/* ---- the states -------------------------------------------------------------------------------------------------------- */

#define IN(status)  (1u << (status))
#define NOT_REVOKED (IN(LICENSE_INACTIVE) | IN(LICENSE_ACTIVE) | IN(LICENSE_SUSPENDED))

static const struct action {
    const char *name;  /* as in the path and in allowed_actions */
    unsigned from;     /* stored statuses it is allowed in */
    const char *event; /* of the history */
} ACTIONS[] = {
    {"activate", IN(LICENSE_INACTIVE), "license.activated"},
    {"suspend", IN(LICENSE_ACTIVE), "license.suspended"},
    {"reinstate", IN(LICENSE_SUSPENDED), "license.reinstated"},
    {"revoke", NOT_REVOKED, "license.revoked"},
    {"renew", NOT_REVOKED, "license.renewed"},
    {"extend", NOT_REVOKED, "license.extended"},
    {"rotate-key", NOT_REVOKED, "license.key_rotated"},
    {"grants", NOT_REVOKED, "license.grants_changed"},
    {"update", NOT_REVOKED, "license.updated"},
    {"delete", NOT_REVOKED | IN(LICENSE_REVOKED), "license.deleted"},
};
#define ACTIONS_N (sizeof ACTIONS / sizeof ACTIONS[0])

static const struct action *action_of(const char *name)
{
    for (size_t i = 0; i < ACTIONS_N; i++)
        if (strcmp(ACTIONS[i].name, name) == 0)
            return &ACTIONS[i];
    WRONG("no such action");
}

static struct jv *actions_allowed(enum license_status status)
{
    struct jv *list = jv_array();
    for (size_t i = 0; i < ACTIONS_N; i++)
        if (status != LICENSE_STATUS_NONE && ACTIONS[i].from & IN(status))
            jv_push(list, jv_string(str_c(ACTIONS[i].name)));
    return list;
}

/* ---- reading ----------------------------------------------------------------------------------------------------------- */

/* What handlers compute with; the rest of a license is read and written by column. */
struct row {
    char id[ID_MAX + 32];
    enum license_status status;
    int64_t starts_at, expires_at, grace_days, updates_until, rev;
    char period[24];
    char *customer_id, *application_id, *key_hash;
};

static void row_free(struct row *r)
{
    mem_free(r->customer_id);
    mem_free(r->application_id);
    mem_free(r->key_hash);
    *r = (struct row){0};
}

#define LICENSE_COLUMNS                                                                                                                    \
    "id, name, customer_id, application_id, type, status, status_reason, starts_at, expires_at, grace_days, updates_until, on_expiry, "    \
    "period,"                                                                                                                              \
    " allowed_cidrs, upstream_credential_id, metadata, environment, order_number, external_id, key_prefix, first_used_at, last_used_at,"   \
    " last_used_from, created_at, updated_at, archived_at, rev, key_hash"
enum {
    COL_ID,
    COL_NAME,
    COL_CUSTOMER,
    COL_APPLICATION,
    COL_TYPE,
    COL_STATUS,
    COL_REASON,
    COL_STARTS,
    COL_EXPIRES,
    COL_GRACE,
    COL_UPDATES,
    COL_ON_EXPIRY,
    COL_PERIOD,
    COL_CIDRS,
    COL_UPSTREAM,
    COL_METADATA,
    COL_ENVIRONMENT,
    COL_ORDER,
    COL_EXTERNAL,
    COL_KEY_PREFIX,
    COL_FIRST_USED,
    COL_LAST_USED,
    COL_LAST_FROM,
    COL_CREATED,
    COL_UPDATED,
    COL_ARCHIVED,
    COL_REV,
    COL_KEY_HASH,
};

static struct jv *license_print(const struct store_stmt *st, int64_t now_s)
{
    struct jv *v = jv_object();
    struct license_terms terms = {.starts_at_s = store_col_int(st, COL_STARTS),
                                  .expires_at_s = store_col_int(st, COL_EXPIRES),
                                  .grace_days = store_col_int(st, COL_GRACE)};
    if (!license_status_parse(store_col_str(st, COL_STATUS), &terms.status))
        terms.status = LICENSE_STATUS_NONE;
    bool is_archived = store_col_int(st, COL_ARCHIVED) != 0;
    jv_set_str(v, "id", store_col_str(st, COL_ID));
    jv_set_str(v, "name", store_col_str(st, COL_NAME));
    jv_set_str(v, "customer_id", store_col_str(st, COL_CUSTOMER));
    jv_set_str(v, "application_id", store_col_str(st, COL_APPLICATION));
    jv_set_str(v, "type", store_col_str(st, COL_TYPE));
    jv_set_str(v, "status", store_col_str(st, COL_STATUS));
    jv_set_c(v, "effective_status", license_effective_text(license_effective(&terms, now_s)));
    jv_set_str(v, "status_reason", store_col_str(st, COL_REASON));
    jv_set(v, "allowed_actions", actions_allowed(is_archived ? LICENSE_STATUS_NONE : terms.status));
    jv_set_time(v, "starts_at", terms.starts_at_s);
    jv_set_time(v, "expires_at", terms.expires_at_s);
    jv_set_int(v, "grace_days", terms.grace_days);
    jv_set_time(v, "updates_until", store_col_int(st, COL_UPDATES));
    jv_set_str(v, "on_expiry", store_col_str(st, COL_ON_EXPIRY));
    jv_set_str(v, "period", store_col_str(st, COL_PERIOD));
    api_set_json(v, "allowed_cidrs", store_col_str(st, COL_CIDRS));
    if (store_col_str(st, COL_UPSTREAM).n)
        jv_set_str(v, "upstream_credential_id", store_col_str(st, COL_UPSTREAM));
    else
        jv_set_c(v, "upstream_credential_id", NULL);
    api_set_json(v, "metadata", store_col_str(st, COL_METADATA));
    jv_set_str(v, "environment", store_col_str(st, COL_ENVIRONMENT));
    jv_set_str(v, "order_number", store_col_str(st, COL_ORDER));
    jv_set_str(v, "external_id", store_col_str(st, COL_EXTERNAL));
    jv_set_str(v, "key_prefix", store_col_str(st, COL_KEY_PREFIX));
    jv_set_time(v, "first_used_at", store_col_int(st, COL_FIRST_USED));
    jv_set_time(v, "last_used_at", store_col_int(st, COL_LAST_USED));
    jv_set_str(v, "last_used_from", store_col_str(st, COL_LAST_FROM));
    jv_set_time(v, "created_at", store_col_int(st, COL_CREATED));
    jv_set_time(v, "updated_at", store_col_int(st, COL_UPDATED));
    jv_set_time(v, "archived_at", store_col_int(st, COL_ARCHIVED));
    api_print_etag(v, store_col_int(st, COL_REV));
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
    return v;
}

static enum err license_add_grants(struct api *rq, struct jv *license)
{
    struct store_stmt *st = NULL;
    struct jv *list = jv_array();
    bool row;
    enum err err =
        store_query(rq->store, &st, &rq->error,
                    "SELECT id, selector, value, include_prerelease, not_before, not_after, on_move, repositories, note, created_at"
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

/* The license with its grants, if it is the caller's. *ret_row may be NULL. Archived ones are found only by the list. */
static enum err license_load(struct api *rq, struct str id, struct jv **ret, struct row *ret_row)
{
    struct store_stmt *st = NULL;
    struct jv *v = NULL;
    bool row = false;
    enum err err =
        store_query(rq->store, &st, &rq->error, "SELECT " LICENSE_COLUMNS " FROM licenses WHERE id=? AND vendor_id=? AND archived_at=0",
                    "sz", id, rq->vendor_id);
    if (!err)
        err = store_step(st, &row, &rq->error);
    if (!err && !row)
        err = api_not_found(rq, "license");
    if (!err) {
        v = license_print(st, rq->now_s);
        if (ret_row) {
            struct row *r = ret_row;
            snprintf(r->id, sizeof r->id, "%.*s", STR(store_col_str(st, COL_ID)));
            if (!license_status_parse(store_col_str(st, COL_STATUS), &r->status))
                r->status = LICENSE_STATUS_NONE;
            r->starts_at = store_col_int(st, COL_STARTS);
            r->expires_at = store_col_int(st, COL_EXPIRES);
            r->grace_days = store_col_int(st, COL_GRACE);
            r->updates_until = store_col_int(st, COL_UPDATES);
            r->rev = store_col_int(st, COL_REV);
            snprintf(r->period, sizeof r->period, "%.*s", STR(store_col_str(st, COL_PERIOD)));
            r->customer_id = str_dup(store_col_str(st, COL_CUSTOMER));
            r->application_id = str_dup(store_col_str(st, COL_APPLICATION));
            r->key_hash = str_dup(store_col_str(st, COL_KEY_HASH));
        }
        api_set_etag(rq, store_col_int(st, COL_REV));
    }
    store_done(&st);
    if (!err)
        err = license_add_grants(rq, v);
    if (err) {
        jv_free(v);
        return err;
    }
    *ret = v;
    return ERR_OK;
}

static enum err license_get(struct api *rq)
{
    return license_load(rq, rq->params[0], &rq->out, NULL);
}

/* ---- what every change ends with --------------------------------------------------------------------------------------- */

static enum err history_put(struct api *rq, const struct row *r, const char *event_type, enum license_status to, struct str reason,
                            const struct jv *data)
{
    struct strbuf text = {0};
    if (data)
        jv_dump(data, &text);
    enum err err = store_exec(
        rq->store, NULL, &rq->error,
        "INSERT INTO license_history (vendor_id, customer_id, license_id, at_ms, event, actor, from_status, to_status, reason, data)"
        " VALUES (?,?,?,?,?,?,?,?,COALESCE(?,''),?)",
        "zzzizzzzss", rq->vendor_id, r->customer_id, r->id, clock_now_ms(), event_type, rq->actor,
        r->status == LICENSE_STATUS_NONE ? "" : license_status_text(r->status), to == LICENSE_STATUS_NONE ? "" : license_status_text(to),
        reason, text.n ? sb_str(&text) : S("{}"));
    sb_free(&text);
    if (err)
        return err;
    struct jv *told = jv_object();
    jv_set_c(told, "from_status", r->status == LICENSE_STATUS_NONE ? "" : license_status_text(r->status));
    jv_set_c(told, "to_status", to == LICENSE_STATUS_NONE ? "" : license_status_text(to));
    jv_set_str(told, "reason", reason.p ? reason : S(""));
    jv_set(told, "change", data ? jv_copy(data) : jv_object());
    struct event_record event = {.vendor_id = rq->vendor_id,
                                 .type = event_type,
                                 .actor = rq->actor,
                                 .customer_id = r->customer_id,
                                 .license_id = r->id,
                                 .data = told};
    err = eventlog_put(rq->store, &event, &rq->error);
    jv_free(told);
    return err;
}

/* Entitlement and answer after a change of r, whose rows are written. */
static enum err license_finish(struct api *rq, const struct row *r)
{
    enum err err = outbox_put_kind(rq->store, 'c', str_c(r->customer_id), true, &rq->error);
    if (!err)
        err = license_load(rq, str_c(r->id), &rq->out, NULL);
    if (!err)
        rq->after = jv_copy(rq->out);
    return err;
}

/* Loads the license of the path for `action`: it is the caller's, If-Match holds, the state allows the action. */
static enum err license_for_action(struct api *rq, const char *action, struct row *r)
{
    enum err err = license_load(rq, rq->params[0], &rq->before, r);
    if (err)
        return err;
    err = api_check_etag(rq, r->rev);
    if (err)
        return err;
    if (r->status == LICENSE_STATUS_NONE || !(action_of(action)->from & IN(r->status))) {
        err = api_fail(rq, ERR_CONFLICT, "action_not_allowed", NULL, "%s is not allowed: the license is %s", action,
                       license_status_text(r->status));
        rq->problem = jv_object();
        jv_set(rq->problem, "allowed_actions", actions_allowed(r->status));
    }
    return err;
}

/* ---- grants ------------------------------------------------------------------------------------------------------------ */

static enum err grant_check_repositories(struct api *rq, const struct jv *list, const char *application_id, const char *prefix)
{
    char field[API_FIELD_MAX];
    api_field(field, "%s%s", prefix, "repositories");
    if (jv_type(list) == JV_NONE)
        return ERR_OK;
    if (!jv_len(list)) /* "none" would read as "all" */
        return api_fail(rq, ERR_INVALID, "invalid_field", field, "%s: name one, or leave it out to grant all of the application's", field);
    for (size_t i = 0; i < jv_len(list); i++) {
        struct store_stmt *st = NULL;
        bool row = false;
        enum err err = store_query(rq->store, &st, &rq->error, "SELECT 1 FROM repositories WHERE application_id=? AND name=?", "zs",
                                   application_id, jv_str(jv_at(list, i)));
        if (!err)
            err = store_step(st, &row, &rq->error);
        store_done(&st);
        if (err)
            return err;
        if (!row) {
            api_field(field, "%srepositories[%zu]", prefix, i);
            return api_fail(rq, ERR_INVALID, "unknown_reference", field, "%s: the application has no such repository", field);
        }
    }
    return ERR_OK;
}

static enum err grant_times(struct api *rq, const struct jv *in, const char *prefix, int64_t *not_before, int64_t *not_after)
{
    char field[API_FIELD_MAX];
    api_field(field, "%s%s", prefix, "not_before");
    enum err err = api_time_start(rq, in, "not_before", field, not_before);
    api_field(field, "%s%s", prefix, "not_after");
    if (!err)
        err = api_time_end(rq, in, "not_after", field, not_after);
    if (!err && *not_before && *not_after && *not_after <= *not_before)
        err = api_fail(rq, ERR_INVALID, "invalid_window", field, "%s: not after not_before", field);
    return err;
}

static enum err grant_insert(struct api *rq, const struct row *r, const struct jv *in, const char *prefix, char id[ID_MAX])
{
    char field[API_FIELD_MAX];
    enum selector_kind kind;
    struct error error = {0};
    int64_t not_before = 0, not_after = 0;
    struct str value = jv_get_str(in, "value"), on_move = jv_get_str(in, "on_move"), note = jv_get_str(in, "note");
    struct strbuf repositories = {0};
    if (!selector_kind_parse(jv_get_str(in, "selector"), &kind)) {
        api_field(field, "%s%s", prefix, "selector");
        return api_fail(rq, ERR_INVALID, "invalid_field", field, "%s: no such selector", field);
    }
    value = value.p ? value : S("");
    if (selector_check(kind, value, &error)) {
        api_field(field, "%s%s", prefix, error.field[0] ? error.field : "value");
        return api_fail(rq, ERR_INVALID, "invalid_field", field, "%s: %s", field, error.text);
    }
    enum err err = grant_times(rq, in, prefix, &not_before, &not_after);
    if (!err)
        err = grant_check_repositories(rq, jv_get(in, "repositories"), r->application_id, prefix);
    if (err)
        return err;
    if (jv_len(jv_get(in, "repositories")))
        jv_dump(jv_get(in, "repositories"), &repositories);
    id_new("grt_", id);
    err = store_exec(rq->store, NULL, &rq->error,
                     "INSERT INTO grants (id, license_id, selector, value, include_prerelease, not_before, not_after, on_move, "
                     "repositories, created_at, note)"
                     " VALUES (?,?,?,?,?,?,?,?,?,?,?)",
                     "zzzsbiissis", id, r->id, selector_kind_text(kind), value, jv_get_bool(in, "include_prerelease", false), not_before,
                     not_after, on_move.p ? on_move : S("follow"), repositories.n ? sb_str(&repositories) : S("[]"), rq->now_s,
                     note.p ? note : S(""));
    sb_free(&repositories);
    return err;
}

static enum err license_touch(struct api *rq, const struct row *r)
{
    return store_exec(rq->store, NULL, &rq->error, "UPDATE licenses SET updated_at=?, rev=rev+1 WHERE id=?", "iz", rq->now_s, r->id);
}

static enum err grant_add(struct api *rq)
{
    struct row r = {0};
    char id[ID_MAX];
    enum err err = license_for_action(rq, "grants", &r);
    if (!err && jv_len(jv_get(rq->before, "grants")) >= GRANTS_MAX)
        err = api_fail(rq, ERR_CONFLICT, "too_many_grants", NULL, "a license has at most %d grants", GRANTS_MAX);
    if (!err)
        err = grant_insert(rq, &r, rq->in, "", id);
    if (!err)
        err = tags_pin_license(rq->store, str_c(r.id), rq->now_s, &rq->error);
    if (!err)
        err = license_touch(rq, &r);
    if (!err)
        err = history_put(rq, &r, "license.grant_added", r.status, (struct str){NULL, 0}, rq->in);
    if (!err)
        err = license_finish(rq, &r);
    row_free(&r);
    return err;
}

static const struct jv *grant_find(const struct jv *license, struct str id)
{
    const struct jv *grants = jv_get(license, "grants");
    for (size_t i = 0; i < jv_len(grants); i++)
        if (str_eq(jv_get_str(jv_at(grants, i), "id"), id))
            return jv_at(grants, i);
    return NULL;
}

static enum err grant_update(struct api *rq)
{
    struct row r = {0};
    struct store_stmt *st = NULL;
    struct strbuf repositories = {0};
    int64_t not_before = 0, not_after = 0;
    bool row = false;
    enum err err = license_for_action(rq, "grants", &r);
    if (!err)
        err = store_query(rq->store, &st, &rq->error, "SELECT not_before, not_after FROM grants WHERE id=? AND license_id=?", "sz",
                          rq->params[1], r.id);
    if (!err)
        err = store_step(st, &row, &rq->error);
    if (!err && !row)
        err = api_not_found(rq, "grant");
    if (!err) {
        not_before = store_col_int(st, 0);
        not_after = store_col_int(st, 1);
    }
    store_done(&st);
    if (!err)
        err = grant_times(rq, rq->in, "", &not_before, &not_after);
    if (!err)
        err = grant_check_repositories(rq, jv_get(rq->in, "repositories"), r.application_id, "");
    if (!err && jv_len(jv_get(rq->in, "repositories")))
        jv_dump(jv_get(rq->in, "repositories"), &repositories);
    if (!err) {
        const struct jv *old = grant_find(rq->before, rq->params[1]);
        err = store_exec(rq->store, NULL, &rq->error,
                         "UPDATE grants SET not_before=?, not_after=?, include_prerelease=?, repositories=COALESCE(?,repositories), "
                         "note=COALESCE(?,note)"
                         " WHERE id=?",
                         "iibsss", not_before, not_after,
                         jv_get_bool(rq->in, "include_prerelease", jv_get_bool(old, "include_prerelease", false)),
                         repositories.n ? sb_str(&repositories) : (struct str){NULL, 0}, jv_get_str(rq->in, "note"), rq->params[1]);
    }
    if (!err)
        err = tags_pin_license(rq->store, str_c(r.id), rq->now_s, &rq->error);
    if (!err)
        err = license_touch(rq, &r);
    if (!err)
        err = history_put(rq, &r, "license.grant_changed", r.status, (struct str){NULL, 0}, rq->in);
    if (!err)
        err = license_finish(rq, &r);
    sb_free(&repositories);
    row_free(&r);
    return err;
}

static enum err grant_remove(struct api *rq)
{
    struct row r = {0};
    struct strbuf reason = {0};
    enum err err = license_for_action(rq, "grants", &r);
    const struct jv *grant = err ? NULL : grant_find(rq->before, rq->params[1]);
    if (!err && !grant)
        err = api_not_found(rq, "grant");
    if (!api_query(rq, "reason", &reason))
        sb_add(&reason, jv_get_str(rq->in, "reason"));
    if (!err)
        err = store_exec(rq->store, NULL, &rq->error, "DELETE FROM grants WHERE id=?", "s", rq->params[1]);
    if (!err)
        err = license_touch(rq, &r);
    if (!err)
        err = history_put(rq, &r, "license.grant_removed", r.status, sb_str(&reason), grant);
    if (!err)
        err = license_finish(rq, &r);
    jv_free(rq->out);
    rq->out = NULL; /* 204 */
    sb_free(&reason);
    row_free(&r);
    return err;
}

/* ---- create, update, delete ---------------------------------------------------------------------------------------------- */

static enum err check_reference(struct api *rq, const char *field, const char *sql)
{
    struct str id = jv_get_str(rq->in, field);
    struct strbuf vendor = {0};
    bool found = false;
    enum err err = api_lookup(rq, sql, id, &vendor, &found);
    if (!err && (!found || !str_eq_c(sb_str(&vendor), rq->vendor_id)))
        err = api_fail(rq, ERR_INVALID, "unknown_reference", field, "%s: no such object", field);
    sb_free(&vendor);
    return err;
}

static enum err license_check_common(struct api *rq)
{
    const struct jv *cidrs = jv_get(rq->in, "allowed_cidrs");
    struct error error = {0};
    for (size_t i = 0; i < jv_len(cidrs); i++) {
        struct cidr c;
        char field[API_FIELD_MAX];
        api_field(field, "allowed_cidrs[%zu]", i);
        if (cidr_parse(jv_str(jv_at(cidrs, i)), &c, &error))
            return api_fail(rq, ERR_INVALID, "invalid_field", field, "%s: %s", field, error.text);
    }
    struct str period = jv_get_str(rq->in, "period");
    struct period p;
    if (period.n && period_parse(period, &p, &error))
        return api_fail(rq, ERR_INVALID, "invalid_field", "period", "period: %s", error.text);
    if (jv_get_str(rq->in, "upstream_credential_id").n)
        return check_reference(rq, "upstream_credential_id", "SELECT vendor_id FROM upstreams WHERE id=?");
    return ERR_OK;
}

static enum err license_check_window(struct api *rq, const struct row *r)
{
    if (r->starts_at && r->expires_at && r->expires_at <= r->starts_at)
        return api_fail(rq, ERR_INVALID, "invalid_window", "expires_at", "expires_at: not after starts_at");
    return ERR_OK;
}

static enum err license_times(struct api *rq, struct row *r)
{
    enum err err = api_time_start(rq, rq->in, "starts_at", "starts_at", &r->starts_at);
    if (!err)
        err = api_time_end(rq, rq->in, "expires_at", "expires_at", &r->expires_at);
    if (!err)
        err = api_time_end(rq, rq->in, "updates_until", "updates_until", &r->updates_until);
    return err ? err : license_check_window(rq, r);
}

/* A key that nobody has, its hash, and what may be shown of it later. */
static void key_make(struct api *rq, char key[CREDENTIAL_TEXT_MAX], char hash[CREDENTIAL_HASH_MAX])
{
    license_key_new(key);
    AN(credential_hash_presented(rq->admin->keys, str_c(key), hash));
}

/* The key of a license that is made: one that nobody has, or the one that an import names ("key", which no client may send). */
static enum err key_choose(struct api *rq, char key[CREDENTIAL_TEXT_MAX], char hash[CREDENTIAL_HASH_MAX], struct str *ret_shown)
{
    struct str given = jv_get_str(rq->in, "key");
    char own[CREDENTIAL_TEXT_MAX];
    if (!given.p) {
        key_make(rq, key, hash);
        *ret_shown = str_sub(str_c(key), 0, KEY_SHOWN_CHARS);
        return ERR_OK;
    }
    key[0] = '\0';
    if (str_starts(given, S("pgc_")) || !credential_hash_presented(rq->admin->keys, given, hash))
        return api_fail(rq, ERR_INVALID, "invalid_field", "key", "key: a license key, or 8 to 128 printable characters without blanks at an end");
    bool is_own = license_key_normalise(given, own);
    *ret_shown = str_sub(given, 0, is_own || given.n > 4 * KEY_SHOWN_CHARS ? KEY_SHOWN_CHARS : given.n / 4);
    mem_cleanse(own, sizeof own);
    return ERR_OK;
}

static enum err license_create(struct api *rq)
{
    struct row r = {0};
    struct strbuf cidrs = {0}, metadata = {0};
    struct str shown = {0};
    char key[CREDENTIAL_TEXT_MAX], hash[CREDENTIAL_HASH_MAX], prefix[API_FIELD_MAX], grant_id[ID_MAX];
    enum err err = check_reference(rq, "customer_id", "SELECT vendor_id FROM customers WHERE id=? AND archived_at=0");
    if (!err)
        err = check_reference(rq, "application_id", "SELECT vendor_id FROM applications WHERE id=? AND archived_at=0");
    if (!err)
        err = license_check_common(rq);
    if (!err)
        err = license_times(rq, &r);
    if (err)
        return err;

    struct str status = jv_get_str(rq->in, "status"), type = jv_get_str(rq->in, "type"), on_expiry = jv_get_str(rq->in, "on_expiry");
    struct str cidrs_text = api_in_json(rq, "allowed_cidrs", &cidrs), metadata_text = api_in_json(rq, "metadata", &metadata);
    id_new("lic_", r.id);
    r.customer_id = str_dup(jv_get_str(rq->in, "customer_id"));
    r.application_id = str_dup(jv_get_str(rq->in, "application_id"));
    err = key_choose(rq, key, hash, &shown);
    if (!err)
        err = store_exec(
            rq->store, NULL, &rq->error,
            "INSERT INTO licenses (id, vendor_id, customer_id, application_id, name, type, status, starts_at, expires_at, grace_days,"
            " updates_until, on_expiry, period, allowed_cidrs, upstream_credential_id, metadata, environment, order_number, external_id,"
            " key_hash, key_prefix, created_at, updated_at)"
            " VALUES (?,?,?,?,?,?,?,?,?,?,?,?,COALESCE(?,''),COALESCE(?,'[]'),COALESCE(?,''),COALESCE(?,'{}'),COALESCE(?,''),COALESCE(?,''),"
            "COALESCE(?,''),?,?,?,?)",
            "zzzzsssiiiisssssssszsii", r.id, rq->vendor_id, r.customer_id, r.application_id, jv_get_str(rq->in, "name"),
            type.p ? type : S("paid"), status.p ? status : S("inactive"), r.starts_at, r.expires_at, jv_get_int(rq->in, "grace_days", 0),
            r.updates_until, on_expiry.p ? on_expiry : S("block"), jv_get_str(rq->in, "period"), cidrs_text,
            jv_get_str(rq->in, "upstream_credential_id"), metadata_text, jv_get_str(rq->in, "environment"), jv_get_str(rq->in, "order_number"),
            jv_get_str(rq->in, "external_id"), hash, shown, rq->now_s, rq->now_s);
    const struct jv *grants = jv_get(rq->in, "grants");
    for (size_t i = 0; !err && i < jv_len(grants); i++) {
        api_field(prefix, "grants[%zu].", i);
        err = grant_insert(rq, &r, jv_at(grants, i), prefix, grant_id);
    }
    if (!err)
        err = tags_pin_license(rq->store, str_c(r.id), rq->now_s, &rq->error);
    if (!err)
        err = outbox_put_kind(rq->store, 'k', str_c(hash), true, &rq->error);
    if (!err) {
        enum license_status to = str_eq(status, S("active")) ? LICENSE_ACTIVE : LICENSE_INACTIVE;
        err = history_put(rq, &r, "license.created", to, (struct str){NULL, 0}, NULL);
    }
    if (!err)
        err = license_finish(rq, &r);
    if (!err) {
        if (key[0])
            jv_set_c(rq->out, "key", key);
        api_created(rq, "/api/v1/licenses/", r.id);
    }
    mem_cleanse(key, sizeof key);
    sb_free(&cidrs);
    sb_free(&metadata);
    row_free(&r);
    return err;
}

static enum err license_update(struct api *rq)
{
    struct row r = {0};
    struct strbuf cidrs = {0}, metadata = {0};
    enum err err = license_for_action(rq, "update", &r);
    if (!err)
        err = license_check_common(rq);
    if (!err)
        err = license_times(rq, &r);
    if (err)
        goto out;
    err = store_exec(
        rq->store, NULL, &rq->error,
        "UPDATE licenses SET name=COALESCE(?,name), type=COALESCE(?,type), starts_at=?, expires_at=?, grace_days=?, updates_until=?,"
        " on_expiry=COALESCE(?,on_expiry), period=COALESCE(?,period), allowed_cidrs=COALESCE(?,allowed_cidrs),"
        " upstream_credential_id=COALESCE(?,upstream_credential_id), metadata=COALESCE(?,metadata), environment=COALESCE(?,environment),"
        " order_number=COALESCE(?,order_number), external_id=COALESCE(?,external_id), updated_at=?, rev=rev+1 WHERE id=?",
        "ssiiiissssssssiz", jv_get_str(rq->in, "name"), jv_get_str(rq->in, "type"), r.starts_at, r.expires_at,
        jv_get_int(rq->in, "grace_days", r.grace_days), r.updates_until, jv_get_str(rq->in, "on_expiry"), api_in_text(rq, "period"),
        api_in_json(rq, "allowed_cidrs", &cidrs), api_in_text(rq, "upstream_credential_id"), api_in_json(rq, "metadata", &metadata),
        api_in_text(rq, "environment"), api_in_text(rq, "order_number"), api_in_text(rq, "external_id"), rq->now_s, r.id);
    if (!err)
        err = history_put(rq, &r, "license.updated", r.status, (struct str){NULL, 0}, rq->in);
    if (!err)
        err = license_finish(rq, &r);
out:
    sb_free(&cidrs);
    sb_free(&metadata);
    row_free(&r);
    return err;
}

/* Archives: what it granted ends, its key dies, its history stays. */
static enum err license_delete(struct api *rq)
{
    struct row r = {0};
    enum err err = license_for_action(rq, "delete", &r);
    if (!err)
        err = store_exec(rq->store, NULL, &rq->error, "UPDATE licenses SET archived_at=?, updated_at=?, rev=rev+1 WHERE id=?", "iiz",
                         rq->now_s, rq->now_s, r.id);
    if (!err)
        err = outbox_put_kind(rq->store, 'k', str_c(r.key_hash), false, &rq->error);
    if (!err)
        err = outbox_put_kind(rq->store, 'c', str_c(r.customer_id), true, &rq->error);
    if (!err)
        err = history_put(rq, &r, "license.deleted", LICENSE_STATUS_NONE, (struct str){NULL, 0}, NULL);
    row_free(&r);
    return err;
}

/* ---- actions ------------------------------------------------------------------------------------------------------------- */

/* One of the actions that only set the stored status. */
static enum err license_set_status(struct api *rq, const char *action, enum license_status to)
{
    struct row r = {0};
    struct str reason = jv_get_str(rq->in, "reason");
    enum err err = license_for_action(rq, action, &r);
    if (!err) /* the reason belongs to the state; a license that is in force has none */
        err = store_exec(rq->store, NULL, &rq->error, "UPDATE licenses SET status=?, status_reason=?, updated_at=?, rev=rev+1 WHERE id=?",
                         "zsiz", license_status_text(to), to != LICENSE_ACTIVE && reason.p ? reason : S(""), rq->now_s, r.id);
    if (!err)
        err = history_put(rq, &r, action_of(action)->event, to, reason, NULL);
    if (!err)
        err = license_finish(rq, &r);
    row_free(&r);
    return err;
}

static enum err license_activate(struct api *rq)
{
    return license_set_status(rq, "activate", LICENSE_ACTIVE);
}

static enum err license_suspend(struct api *rq)
{
    return license_set_status(rq, "suspend", LICENSE_SUSPENDED);
}

static enum err license_reinstate(struct api *rq)
{
    return license_set_status(rq, "reinstate", LICENSE_ACTIVE);
}

static enum err license_revoke(struct api *rq)
{
    return license_set_status(rq, "revoke", LICENSE_REVOKED);
}

/* Writes the expiry that `action` found. */
static enum err license_set_expiry(struct api *rq, const char *action, struct row *r, int64_t expires_at)
{
    struct jv *data = jv_object();
    jv_set_time(data, "expires_at_before", r->expires_at);
    jv_set_time(data, "expires_at", expires_at);
    r->expires_at = expires_at;
    enum err err = license_check_window(rq, r);
    if (!err)
        err = store_exec(rq->store, NULL, &rq->error, "UPDATE licenses SET expires_at=?, updated_at=?, rev=rev+1 WHERE id=?", "iiz",
                         expires_at, rq->now_s, r->id);
    if (!err)
        err = history_put(rq, r, action_of(action)->event, r->status, jv_get_str(rq->in, "reason"), data);
    if (!err)
        err = license_finish(rq, r);
    jv_free(data);
    return err;
}

static enum err add_period(struct api *rq, struct str text, int64_t from, int64_t *ret)
{
    struct period p;
    struct error error = {0};
    if (period_parse(text, &p, &error) || period_add(from, &p, api_zone(rq), ret, &error))
        return api_fail(rq, ERR_INVALID, "invalid_field", "period", "period: %s", error.text);
    return ERR_OK;
}

static enum err license_no_expiry(struct api *rq)
{
    return api_fail(rq, ERR_CONFLICT, "no_expiry", NULL, "the license never expires; give it an expires_at with PATCH first");
}

/* From the present end, so that who renews early or in the grace time loses and gains nothing; from now when it is over. */
static enum err license_renew(struct api *rq)
{
    struct row r = {0};
    int64_t expires_at = 0;
    struct str period = jv_get_str(rq->in, "period");
    enum err err = license_for_action(rq, "renew", &r);
    if (err)
        goto out;
    if (api_has(rq, "expires_at")) {
        err = api_time_end(rq, rq->in, "expires_at", "expires_at", &expires_at);
        if (!err && period.p)
            err = api_fail(rq, ERR_INVALID, "invalid_field", "period", "period: not together with expires_at");
        if (!err && (!expires_at || expires_at <= rq->now_s || expires_at <= r.expires_at))
            err =
                api_fail(rq, ERR_INVALID, "invalid_window", "expires_at", "expires_at: must be later than now and than the present expiry");
    } else if (!r.expires_at) {
        err = license_no_expiry(rq);
    } else if (!period.p && !r.period[0]) {
        err = api_fail(rq, ERR_INVALID, "missing_field", "period", "period: missing, and the license has none of its own");
    } else {
        bool is_over = rq->now_s >= r.expires_at + r.grace_days * 86400;
        err = add_period(rq, period.p ? period : str_c(r.period), is_over ? rq->now_s : r.expires_at, &expires_at);
    }
    if (!err)
        err = license_set_expiry(rq, "renew", &r, expires_at);
out:
    row_free(&r);
    return err;
}

static enum err license_extend(struct api *rq)
{
    struct row r = {0};
    int64_t expires_at = 0;
    enum err err = license_for_action(rq, "extend", &r);
    if (!err && !r.expires_at)
        err = license_no_expiry(rq);
    if (!err)
        err = add_period(rq, jv_get_str(rq->in, "period"), r.expires_at, &expires_at);
    if (!err)
        err = license_set_expiry(rq, "extend", &r, expires_at);
    row_free(&r);
    return err;
}

static enum err license_rotate_key(struct api *rq)
{
    struct row r = {0};
    char key[CREDENTIAL_TEXT_MAX], hash[CREDENTIAL_HASH_MAX];
    enum err err = license_for_action(rq, "rotate-key", &r);
    if (err)
        goto out;
    key_make(rq, key, hash);
    err = store_exec(rq->store, NULL, &rq->error, "UPDATE licenses SET key_hash=?, key_prefix=?, updated_at=?, rev=rev+1 WHERE id=?",
                     "zsiz", hash, str_sub(str_c(key), 0, KEY_SHOWN_CHARS), rq->now_s, r.id);
    if (!err)
        err = outbox_put_kind(rq->store, 'k', str_c(r.key_hash), false, &rq->error);
    if (!err)
        err = outbox_put_kind(rq->store, 'k', str_c(hash), true, &rq->error);
    if (!err)
        err = history_put(rq, &r, "license.key_rotated", r.status, jv_get_str(rq->in, "reason"), NULL);
    if (!err)
        err = license_finish(rq, &r);
    if (!err)
        jv_set_c(rq->out, "key", key);
    mem_cleanse(key, sizeof key);
out:
    row_free(&r);
    return err;
}

/* ---- for other resources and the jobs ------------------------------------------------------------------------------------ */

enum err licenses_get(struct api *rq, struct str id, struct jv **ret)
{
    return license_load(rq, id, ret, NULL);
}

enum err licenses_shown(struct api *rq, struct str id, struct jv **ret)
{
    struct store_stmt *st = NULL;
    struct jv *v = NULL;
    bool row = false;
    enum err err = store_query(rq->store, &st, &rq->error, "SELECT " LICENSE_COLUMNS " FROM licenses WHERE id=? AND vendor_id=?", "sz", id,
                               rq->vendor_id);
    if (!err)
        err = store_step(st, &row, &rq->error);
    if (!err && row)
        v = license_print(st, rq->now_s);
    store_done(&st);
    if (v)
        err = license_add_grants(rq, v);
    if (!err && !v)
        err = api_not_found(rq, "license");
    if (err)
        jv_free(v);
    else
        *ret = v;
    return err;
}

/* Runs a handler of this file with other input; what stood in rq->in and the path stands there again afterwards. */
static enum err license_call(struct api *rq, api_fn *fn, struct str id, const struct jv *in)
{
    struct jv *kept_in = rq->in;
    struct str kept_id = rq->params[0];
    char *kept_match = rq->if_match;
    rq->in = in ? jv_copy(in) : jv_object();
    rq->params[0] = id;
    rq->if_match = NULL; /* speaks of the object of the path */
    jv_free(rq->out);
    jv_free(rq->before);
    jv_free(rq->after);
    rq->out = rq->before = rq->after = NULL;
    enum err err = fn(rq);
    jv_free(rq->in);
    rq->in = kept_in;
    rq->params[0] = kept_id;
    rq->if_match = kept_match;
    return err;
}

enum err licenses_make(struct api *rq, const struct jv *in, const char *source)
{
    enum err err = license_call(rq, license_create, S(""), in);
    if (!err)
        err = store_exec(rq->store, NULL, &rq->error, "UPDATE licenses SET source=? WHERE id=?", "zs", source, jv_get_str(rq->out, "id"));
    return err;
}

enum err licenses_act(struct api *rq, struct str id, const char *action, const struct jv *in)
{
    static const struct {
        const char *name;
        api_fn *run;
    } RUNS[] = {
        {"activate", license_activate}, {"suspend", license_suspend}, {"reinstate", license_reinstate},   {"revoke", license_revoke},
        {"renew", license_renew},       {"extend", license_extend},   {"rotate-key", license_rotate_key},
    };
    for (size_t i = 0; i < sizeof RUNS / sizeof *RUNS; i++)
        if (strcmp(RUNS[i].name, action) == 0)
            return license_call(rq, RUNS[i].run, id, in);
    WRONG("no such action");
}

static const struct query_param REASON_PARAMS[] = {{"reason", "kept in the history"}, {NULL, NULL}};

#define LIC "/api/v1/licenses"
const struct route LICENSE_ROUTES[] = {
    {HEAD_GET, LIC, licenses_list, ROLE_VIEWER, ROUTE_LIST, NULL, &LICENSE, LICENSE_LIST_PARAMS, "license.list", "Licenses"},
    {HEAD_POST, LIC, license_create, ROLE_ADMIN, 0, &LICENSE_CREATE, &LICENSE, NULL, "license.create",
     "Make a license; its key is shown once"},
    {HEAD_GET, LIC "/{id}", license_get, ROLE_VIEWER, 0, NULL, &LICENSE, NULL, "license.get", "One license"},
    {HEAD_PATCH, LIC "/{id}", license_update, ROLE_ADMIN, 0, &LICENSE_UPDATE, &LICENSE, NULL, "license.update", "Change a license's terms"},
    {HEAD_DELETE, LIC "/{id}", license_delete, ROLE_ADMIN, 0, NULL, NULL, NULL, "license.delete", "Archive a license"},
    {HEAD_POST, LIC "/{id}/activate", license_activate, ROLE_ADMIN, ROUTE_ACTION, &REASON, &LICENSE, NULL, "license.activate",
     "inactive -> active"},
    {HEAD_POST, LIC "/{id}/suspend", license_suspend, ROLE_ADMIN, ROUTE_ACTION, &REASON, &LICENSE, NULL, "license.suspend",
     "active -> suspended"},
    {HEAD_POST, LIC "/{id}/reinstate", license_reinstate, ROLE_ADMIN, ROUTE_ACTION, &REASON, &LICENSE, NULL, "license.reinstate",
     "suspended -> active"},
    {HEAD_POST, LIC "/{id}/revoke", license_revoke, ROLE_ADMIN, ROUTE_ACTION, &REASON, &LICENSE, NULL, "license.revoke", "End it for good"},
    {HEAD_POST, LIC "/{id}/renew", license_renew, ROLE_ADMIN, ROUTE_ACTION, &RENEW, &LICENSE, NULL, "license.renew",
     "A further period from its end (from now, when it is over), or until expires_at"},
    {HEAD_POST, LIC "/{id}/extend", license_extend, ROLE_ADMIN, ROUTE_ACTION, &EXTEND, &LICENSE, NULL, "license.extend",
     "Move its end by a period"},
    {HEAD_POST, LIC "/{id}/rotate-key", license_rotate_key, ROLE_ADMIN, ROUTE_ACTION, &REASON, &LICENSE, NULL, "license.rotate_key",
     "Replace the license key; the old one dies at once"},
    {HEAD_POST, LIC "/{id}/grants", grant_add, ROLE_ADMIN, ROUTE_ACTION, &GRANT_ADD, &LICENSE, NULL, "license.add_grant", "Add a grant"},
    {HEAD_PATCH, LIC "/{id}/grants/{grant_id}", grant_update, ROLE_ADMIN, 0, &GRANT_UPDATE, &LICENSE, NULL, "license.update_grant",
     "Change a grant's window, repositories or note"},
    {HEAD_DELETE, LIC "/{id}/grants/{grant_id}", grant_remove, ROLE_ADMIN, 0, &GRANT_REMOVE, NULL, REASON_PARAMS, "license.remove_grant",
     "Remove a grant"},
    {.path = NULL},
};
