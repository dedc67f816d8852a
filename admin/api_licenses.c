/* Licenses and what can be done with them. A license's stored status changes only by actions (lib/lifecycle.c says which); what the clock
 * makes of it (scheduled, expiring, grace, expired) is derived at every look. */
#include <stdio.h>
#include <string.h>

#include "api_routes.h"
#include "licensemodel.h"
#include "licenses.h"
#include "outbox.h"
#include "plans.h"
#include "pullgate/clock.h"
#include "pullgate/credential.h"
#include "pullgate/mem.h"
#include "pullgate/period.h"
#include "tags.h"
#include "usage.h"

#define KEY_SHOWN_CHARS 6 /* of a license key: its first group */
#define GRACE_DAYS_MAX  3650
#define TRIAL_DAYS_MAX  3650
#define DAY_S           INT64_C(86400)

/* ---- schemas ----------------------------------------------------------------------------------------------------------- */

#define TYPES "paid|trial|development|community|subscription|perpetual"

#define LIMIT_NUMBERS                                                                                                                      \
    {.name = "max_instances", .type = FIELD_INT, .flags = FIELD_OPTIONAL | FIELD_NULL, .min = 1, .about = "distinct installations that pull"}, \
        {.name = "pulls", .type = FIELD_INT, .flags = FIELD_OPTIONAL | FIELD_NULL, .min = 1},                                              \
        {.name = "bytes", .type = FIELD_INT, .flags = FIELD_OPTIONAL | FIELD_NULL, .min = 1},                                              \
        {.name = "reset_period", .type = FIELD_STRING, .flags = FIELD_EMPTY | FIELD_NULL, .max = 20, .about = "P1M: what is counted begins anew; empty: never"}
static const struct field LIMIT_FIELDS[] = {
    LIMIT_NUMBERS,
    {.name = "limit_action", .type = FIELD_STRING, .one_of = "warn|deny", .about = "what a spent limit does"},
    {.name = "custom", .type = FIELD_MAP, .about = "limits that are the application's own to keep; they go into the license file"},
    {.name = NULL},
};
const struct field LIMIT_IN_FIELDS[] = {
    LIMIT_NUMBERS,
    {.name = "limit_action", .type = FIELD_STRING, .flags = FIELD_NULL, .one_of = "warn|deny", .about = "warn when absent"},
    {.name = "custom", .type = FIELD_MAP, .flags = FIELD_NULL},
    {.name = NULL},
};

static const struct field LICENSE_FIELDS[] = {
    {.name = "id", .type = FIELD_STRING},
    {.name = "name", .type = FIELD_STRING},
    {.name = "customer_id", .type = FIELD_STRING},
    {.name = "application_id", .type = FIELD_STRING},
    {.name = "plan_id", .type = FIELD_STRING, .flags = FIELD_NULL, .about = "the plan it was made of; it keeps its own copy"},
    {.name = "type", .type = FIELD_STRING, .one_of = TYPES},
    {.name = "status", .type = FIELD_STRING, .one_of = "inactive|active|suspended|revoked"},
    {.name = "effective_status", .type = FIELD_STRING, .one_of = "revoked|suspended|inactive|scheduled|expired|grace|expiring|active"},
    {.name = "status_reason", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "allowed_actions", .type = FIELD_STRINGS},
    {.name = "starts_at", .type = FIELD_TIME},
    {.name = "expires_at", .type = FIELD_TIME, .about = "null: never"},
    {.name = "grace_days", .type = FIELD_INT},
    {.name = "grace_ends_at", .type = FIELD_TIME},
    {.name = "updates_until", .type = FIELD_TIME, .about = "versions released later are not granted"},
    {.name = "on_expiry", .type = FIELD_STRING, .one_of = "block|keep_released"},
    {.name = "period", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "auto_renew", .type = FIELD_BOOL},
    {.name = "cancel_at_period_end", .type = FIELD_BOOL},
    {.name = "renews_at", .type = FIELD_TIME, .about = "when it renews by itself"},
    {.name = "trial_days", .type = FIELD_INT},
    {.name = "starts_on", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "trial_started_at", .type = FIELD_TIME},
    {.name = "requires_activation", .type = FIELD_BOOL},
    {.name = "grants_locked", .type = FIELD_BOOL, .about = "by itself or by its vendor"},
    {.name = "allowed_cidrs", .type = FIELD_STRINGS},
    {.name = "limits", .type = FIELD_OBJECT, .sub = LIMIT_FIELDS},
    {.name = "features", .type = FIELD_MAP},
    {.name = "upstream_credential_id", .type = FIELD_STRING, .flags = FIELD_NULL},
    {.name = "metadata", .type = FIELD_MAP},
    {.name = "environment", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "order_number", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "transaction_id", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "external_id", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "marketplace", .type = FIELD_STRING, .flags = FIELD_EMPTY, .about = "that sold it: aws, azure, gcp, oracle, byol, other"},
    {.name = "external_subscription_id", .type = FIELD_STRING, .flags = FIELD_EMPTY, .about = "of that marketplace"},
    {.name = "source", .type = FIELD_STRING, .about = "created, order, request, trial, import or transfer"},
    {.name = "issuer", .type = FIELD_STRING, .flags = FIELD_EMPTY, .about = "who issued an imported one"},
    {.name = "key_prefix", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "activated_at", .type = FIELD_TIME},
    {.name = "revoked_at", .type = FIELD_TIME},
    {.name = "payment_failed_at", .type = FIELD_TIME, .about = "first failure since the last payment: in grace until it is paid, or suspended"},
    {.name = "payment_retries", .type = FIELD_INT, .about = "further failures since then"},
    {.name = "first_used_at", .type = FIELD_TIME},
    {.name = "last_used_at", .type = FIELD_TIME},
    {.name = "last_used_from", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "last_validated_at", .type = FIELD_TIME, .about = "an application validated its key"},
    {.name = "file_downloaded_at", .type = FIELD_TIME, .about = "its signed file was downloaded last"},
    {.name = "created_at", .type = FIELD_TIME},
    {.name = "updated_at", .type = FIELD_TIME},
    {.name = "archived_at", .type = FIELD_TIME},
    {.name = "grants", .type = FIELD_LIST, .sub = GRANT_FIELDS},
    {.name = "scheduled_changes", .type = FIELD_LIST, .sub = SCHEDULED_CHANGE_FIELDS, .about = "that are to come"},
    {.name = "etag", .type = FIELD_STRING},
    {.name = "key",
     .type = FIELD_SECRET,
     .flags = FIELD_OPTIONAL,
     .about = "the license key; shown once, at creation and after rotate-key and reset"},
    {.name = "changes", .type = FIELD_MAP, .flags = FIELD_OPTIONAL, .about = "after a change: {\"field\":{\"from\",\"to\"}}"},
    {.name = "effect", .type = FIELD_OBJECT, .flags = FIELD_OPTIONAL, .sub = EFFECT_FIELDS, .about = "of a dry run"},
    {.name = "last_pulls",
     .type = FIELD_LIST,
     .flags = FIELD_OPTIONAL,
     .sub = LAST_PULL_FIELDS,
     .about = "of a dry run: who pulled last what would be lost"},
    {.name = NULL},
};
const struct schema LICENSE_ANSWER = {"License", LICENSE_FIELDS};

static const struct field LICENSE_CREATE_FIELDS[] = {
    {.name = "customer_id", .type = FIELD_STRING, .flags = FIELD_REQUIRED, .max = 64},
    {.name = "application_id", .type = FIELD_STRING, .max = 64, .about = "the plan's when there is one; never changes"},
    {.name = "plan_id", .type = FIELD_STRING, .max = 64, .about = "what the body does not name is the plan's; the license keeps its own copy"},
    {.name = "status", .type = FIELD_STRING, .one_of = "inactive|active", .about = "inactive when absent"},
    {.name = "grants", .type = FIELD_LIST, .max = GRANTS_MAX, .sub = GRANT_IN_FIELDS, .about = "none: nothing is granted"},
    {.name = "name", .type = FIELD_STRING, .flags = FIELD_REQUIRED, .about = "unique for the customer"},
    {.name = "type", .type = FIELD_STRING, .one_of = TYPES, .about = "paid when absent, trial with trial_days; perpetual has no expires_at"},
    {.name = "starts_at", .type = FIELD_TIME},
    {.name = "expires_at", .type = FIELD_TIME, .about = "a date means the end of that day in the vendor's zone; null or absent: never"},
    {.name = "grace_days", .type = FIELD_INT, .max = GRACE_DAYS_MAX},
    {.name = "updates_until", .type = FIELD_TIME},
    {.name = "on_expiry", .type = FIELD_STRING, .one_of = "block|keep_released"},
    {.name = "period",
     .type = FIELD_STRING,
     .flags = FIELD_EMPTY | FIELD_NULL,
     .max = 20,
     .about = "P1M, P1Y; what renew takes when it names none. A subscription without expires_at runs a period from its activation"},
    {.name = "auto_renew", .type = FIELD_BOOL, .about = "renews by itself at its end; needs a period"},
    {.name = "cancel_at_period_end", .type = FIELD_BOOL, .about = "does not, this time"},
    {.name = "trial_days", .type = FIELD_INT, .flags = FIELD_NULL, .max = TRIAL_DAYS_MAX, .about = "ends so many days after it began"},
    {.name = "starts_on",
     .type = FIELD_STRING,
     .flags = FIELD_EMPTY | FIELD_NULL,
     .one_of = "|activation|first_pull",
     .about = "when trial_days begin; with the activation when absent"},
    {.name = "requires_activation", .type = FIELD_BOOL},
    {.name = "grants_locked", .type = FIELD_BOOL, .about = "grants are added, never taken; only an owner unlocks"},
    {.name = "allowed_cidrs", .type = FIELD_STRINGS, .max = 64, .about = "where it may be pulled from; none: anywhere"},
    {.name = "limits", .type = FIELD_OBJECT, .sub = LIMIT_IN_FIELDS, .about = "members named replace the present ones, null takes one away"},
    {.name = "features", .type = FIELD_MAP, .about = "free; goes into the license file"},
    {.name = "upstream_credential_id",
     .type = FIELD_STRING,
     .flags = FIELD_EMPTY | FIELD_NULL,
     .max = 64,
     .about = "an upstream whose credentials replace the repository's own for this license's pulls"},
    {.name = "metadata", .type = FIELD_MAP},
    {.name = "environment", .type = FIELD_STRING, .flags = FIELD_EMPTY | FIELD_NULL},
    {.name = "order_number", .type = FIELD_STRING, .flags = FIELD_EMPTY | FIELD_NULL},
    {.name = "transaction_id", .type = FIELD_STRING, .flags = FIELD_EMPTY | FIELD_NULL},
    {.name = "external_id", .type = FIELD_STRING, .flags = FIELD_EMPTY | FIELD_NULL},
    {.name = NULL},
};
static const struct schema LICENSE_CREATE = {"LicenseCreate", LICENSE_CREATE_FIELDS};
static const struct schema LICENSE_UPDATE = {"LicenseUpdate", LICENSE_CREATE_FIELDS + 5 /* from name on */};

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

static const struct field HISTORY_FIELDS[] = {
    {.name = "id", .type = FIELD_INT},
    {.name = "at", .type = FIELD_TIME},
    {.name = "event", .type = FIELD_STRING},
    {.name = "actor", .type = FIELD_STRING},
    {.name = "from_status", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "to_status", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "reason", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "data", .type = FIELD_MAP, .about = "what changed"},
    {.name = "request_id", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = NULL},
};
static const struct schema HISTORY = {"LicenseHistoryEntry", HISTORY_FIELDS};

/* ---- terms ------------------------------------------------------------------------------------------------------------- */

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

static enum err check_plain(struct api *rq)
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

static enum err check_window(struct api *rq, const struct license_row *r)
{
    if (r->starts_at && r->expires_at && r->expires_at <= r->starts_at)
        return api_fail(rq, ERR_INVALID, "invalid_window", "expires_at", "expires_at: not after starts_at");
    return ERR_OK;
}

/* Terms that cannot stand together. */
static enum err check_terms(struct api *rq, const struct license_row *r)
{
    bool is_perpetual = strcmp(r->type, "perpetual") == 0;
    if (is_perpetual && r->expires_at)
        return api_fail(rq, ERR_INVALID, "invalid_field", "expires_at", "expires_at: a perpetual license has none; updates_until is its term");
    if (is_perpetual && r->trial_days)
        return api_fail(rq, ERR_INVALID, "invalid_field", "trial_days", "trial_days: a perpetual license is no trial");
    if (is_perpetual && r->auto_renew)
        return api_fail(rq, ERR_INVALID, "invalid_field", "auto_renew", "auto_renew: a perpetual license has nothing to renew");
    if (r->auto_renew && !r->period[0])
        return api_fail(rq, ERR_INVALID, "invalid_field", "auto_renew", "auto_renew: needs a period");
    if (r->starts_on[0] && !r->trial_days)
        return api_fail(rq, ERR_INVALID, "invalid_field", "starts_on", "starts_on: needs trial_days");
    if (r->trial_days && r->starts_on[0] && !r->trial_started_at && r->expires_at)
        return api_fail(rq, ERR_INVALID, "invalid_field", "expires_at", "expires_at: comes of trial_days when the trial begins");
    return check_window(rq, r);
}

static void take_text(struct api *rq, const char *name, char *ret, size_t n)
{
    struct str text = api_in_text(rq, name);
    if (text.p)
        snprintf(ret, n, "%.*s", STR(text));
}

static bool take_bool(struct api *rq, const char *name, bool dflt)
{
    return jv_get_bool(rq->in, name, dflt);
}

/* The members of the body over the present terms, or over those of a license to be made. */
static enum err terms_read(struct api *rq, struct license_row *r)
{
    int64_t had_end = r->expires_at ? r->expires_at : r->updates_until;
    enum err err = check_plain(rq);
    if (!err)
        err = api_time_start(rq, rq->in, "starts_at", "starts_at", &r->starts_at);
    if (!err)
        err = api_time_end(rq, rq->in, "expires_at", "expires_at", &r->expires_at);
    if (!err)
        err = api_time_end(rq, rq->in, "updates_until", "updates_until", &r->updates_until);
    if (err)
        return err;
    if ((r->expires_at ? r->expires_at : r->updates_until) != had_end) /* another day is meant */
        r->anchor_day = jv_get_int(rq->in, "anchor_day", 0); /* of what was computed; no client sends it */
    bool locked = take_bool(rq, "grants_locked", r->grants_locked);
    if (r->grants_locked && !locked && rq->role < ROLE_OWNER)
        return api_fail(rq, ERR_DENIED, "role_not_allowed", "grants_locked", "grants_locked: only an owner unlocks grants");
    r->grants_locked = locked;
    r->grace_days = jv_get_int(rq->in, "grace_days", r->grace_days);
    if (api_has(rq, "trial_days"))
        r->trial_days = jv_get_int(rq->in, "trial_days", 0);
    take_text(rq, "type", r->type, sizeof r->type);
    take_text(rq, "period", r->period, sizeof r->period);
    take_text(rq, "starts_on", r->starts_on, sizeof r->starts_on);
    bool renewed = r->auto_renew;
    r->auto_renew = take_bool(rq, "auto_renew", r->auto_renew);
    if (r->auto_renew && !renewed) /* a cancellation is for one time */
        r->cancel_at_period_end = false;
    r->cancel_at_period_end = take_bool(rq, "cancel_at_period_end", r->cancel_at_period_end);
    r->requires_activation = take_bool(rq, "requires_activation", r->requires_activation);
    return check_terms(rq, r);
}

/* The stored limits with the body's over them, and what a spent one does; texts {NULL,0} when the body says nothing. */
static enum err limits_read(struct api *rq, const struct license_row *r, struct strbuf *ret_limits, struct str *ret_action)
{
    const struct jv *in = jv_get(rq->in, "limits");
    struct jv *l = NULL;
    struct period p;
    struct error error = {0};
    *ret_action = (struct str){NULL, 0};
    if (jv_type(in) != JV_OBJECT)
        return ERR_OK;
    struct str reset = jv_get_str(in, "reset_period");
    if (reset.n && period_parse(reset, &p, &error))
        return api_fail(rq, ERR_INVALID, "invalid_field", "limits.reset_period", "limits.reset_period: %s", error.text);
    if (!r->limits || jv_parse(str_c(r->limits), &JV_LIMITS_TRUSTED, &l, NULL))
        l = jv_object();
    for (void *it = jv_iter(in); it; it = jv_iter_next(in, it)) {
        const char *key = jv_iter_key(it);
        const struct jv *v = jv_iter_value(it);
        if (strcmp(key, "limit_action") == 0)
            *ret_action = jv_type(v) == JV_NULL ? S("warn") : jv_str(v);
        else if (jv_type(v) == JV_NULL)
            jv_del(l, key);
        else
            jv_set(l, key, jv_copy(v));
    }
    jv_dump(l, ret_limits);
    jv_free(l);
    return ERR_OK;
}

static struct str text_or_null(const struct strbuf *b)
{
    return b->n ? sb_str(b) : (struct str){NULL, 0};
}

/* r's terms and the plain members of the body into the row. */
static enum err terms_write(struct api *rq, const struct license_row *r, bool is_new)
{
    struct strbuf cidrs = {0}, metadata = {0}, features = {0}, limits = {0};
    struct str limit_action;
    enum err err = limits_read(rq, r, &limits, &limit_action);
    if (!err)
        err = store_exec(
            rq->store, NULL, &rq->error,
            "UPDATE licenses SET name=COALESCE(?,name), type=?, starts_at=?, expires_at=?, anchor_day=?, grace_days=?, updates_until=?,"
            " on_expiry=COALESCE(?,on_expiry), period=?, auto_renew=?, cancel_at_period_end=?, trial_days=?, starts_on=?,"
            " trial_started_at=?, requires_activation=?, grants_locked=CASE WHEN ? THEN ? ELSE grants_locked END, allowed_cidrs=COALESCE(?,allowed_cidrs),"
            " limits=COALESCE(?,limits), limit_action=COALESCE(?,limit_action), features=COALESCE(?,features),"
            " upstream_credential_id=COALESCE(?,upstream_credential_id), metadata=COALESCE(?,metadata),"
            " environment=COALESCE(?,environment), order_number=COALESCE(?,order_number), transaction_id=COALESCE(?,transaction_id),"
            " external_id=COALESCE(?,external_id), plan_id=COALESCE(?,plan_id), updated_at=?, rev=rev+? WHERE id=?",
            "sziiiiiszbbizibbbsssssssssssibz", jv_get_str(rq->in, "name"), r->type, r->starts_at, r->expires_at, r->anchor_day, r->grace_days,
            r->updates_until, jv_get_str(rq->in, "on_expiry"), r->period, r->auto_renew, r->cancel_at_period_end, r->trial_days,
            r->starts_on, r->trial_started_at, r->requires_activation, api_has(rq, "grants_locked"), r->grants_locked, api_in_json(rq, "allowed_cidrs", &cidrs),
            text_or_null(&limits), limit_action, api_in_json(rq, "features", &features), api_in_text(rq, "upstream_credential_id"),
            api_in_json(rq, "metadata", &metadata), api_in_text(rq, "environment"), api_in_text(rq, "order_number"),
            api_in_text(rq, "transaction_id"), api_in_text(rq, "external_id"), api_in_text(rq, "plan_id"), rq->now_s, !is_new, r->id);
    if (!err && limits.n && !is_new) /* what was used is held against what may be used from here on */
        err = usage_refresh(rq->store, str_c(r->id), rq->now_s, &rq->error);
    sb_free(&cidrs);
    sb_free(&metadata);
    sb_free(&features);
    sb_free(&limits);
    return err;
}

/* It comes into force: what waited for that begins. */
static enum err terms_begin(struct api *rq, struct license_row *r)
{
    struct period p;
    int anchor = 0;
    int64_t base = r->starts_at > rq->now_s ? r->starts_at : rq->now_s;
    bool is_subscription = strcmp(r->type, "subscription") == 0 || r->auto_renew || (r->is_ordered && strcmp(r->type, "perpetual") != 0);
    if (r->expires_at)
        return ERR_OK;
    if (r->trial_days && !r->trial_started_at) {
        if (strcmp(r->starts_on, "first_pull") == 0)
            return ERR_OK;
        r->trial_started_at = base;
        r->expires_at = base + r->trial_days * DAY_S;
    } else if (is_subscription && r->period[0]) {
        if (period_parse(str_c(r->period), &p, &rq->error) ||
            period_add_anchored(base, &p, api_zone(rq), 0, &r->expires_at, &anchor, &rq->error))
            return api_fail(rq, ERR_INVALID, "invalid_field", "period", "period: cannot be added");
        r->anchor_day = anchor;
    }
    return ERR_OK;
}

/* ---- create, read, update, delete ------------------------------------------------------------------------------------------ */

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

/* Not of a dry run, which is no key. */
static void key_show(struct api *rq, const char *key)
{
    if (!rq->is_dry_run && key[0])
        jv_set_c(rq->out, "key", key);
}

static enum err license_insert(struct api *rq, struct license_row *r, const char *source, const char *hash, struct str shown)
{
    char prefix[API_FIELD_MAX], grant_id[ID_MAX];
    bool is_active = str_eq(jv_get_str(rq->in, "status"), S("active"));
    enum err err = is_active ? terms_begin(rq, r) : ERR_OK;
    if (!err)
        err = store_exec(rq->store, NULL, &rq->error,
                         "INSERT INTO licenses (id, vendor_id, customer_id, application_id, name, status, source, activated_at, key_hash,"
                         " key_prefix, created_at, updated_at) VALUES (?,?,?,?,?,?,?,?,?,?,?,?)",
                         "zzzzszzizsii", r->id, rq->vendor_id, r->customer_id, r->application_id, jv_get_str(rq->in, "name"),
                         is_active ? "active" : "inactive", source, is_active ? rq->now_s : 0, hash, shown,
                         rq->now_s, rq->now_s);
    if (!err)
        err = terms_write(rq, r, true);
    const struct jv *grants = jv_get(rq->in, "grants");
    for (size_t i = 0; !err && i < jv_len(grants); i++) {
        api_field(prefix, "grants[%zu].", i);
        err = grant_insert(rq, r, jv_at(grants, i), strcmp(source, "import") == 0 ? "import" : "hand", prefix, grant_id);
    }
    if (!err && jv_get_str(rq->in, "plan_id").n)
        err = store_exec(rq->store, NULL, &rq->error,
                         "UPDATE licenses SET plan_limits=json_set(limits, '$.limit_action', limit_action), plan_features=features WHERE id=?", "z",
                         r->id);
    if (!err)
        err = tags_pin_license(rq->store, str_c(r->id), rq->now_s, &rq->error);
    if (!err)
        err = outbox_put_kind(rq->store, 'k', str_c(hash), true, &rq->error);
    if (!err)
        err = license_finish(rq, r,
                             &(struct license_change){.event = "license.created", .to = is_active ? LICENSE_ACTIVE : LICENSE_INACTIVE});
    return err;
}

static enum err license_create_as(struct api *rq, const char *source)
{
    struct license_row r = {0};
    struct str shown = {0};
    char key[CREDENTIAL_TEXT_MAX], hash[CREDENTIAL_HASH_MAX];
    enum err err = check_reference(rq, "customer_id", "SELECT vendor_id FROM customers WHERE id=? AND archived_at=0");
    if (!err)
        err = check_reference(rq, "application_id", "SELECT vendor_id FROM applications WHERE id=? AND archived_at=0");
    snprintf(r.type, sizeof r.type, "%s", jv_get_int(rq->in, "trial_days", 0) ? "trial" : "paid");
    if (!err)
        err = terms_read(rq, &r);
    if (!err)
        err = effect_begin(rq, jv_get_str(rq->in, "customer_id"), jv_get_str(rq->in, "application_id"));
    if (err)
        return err;
    char id[ID_MAX];
    id_new("lic_", id);
    snprintf(r.id, sizeof r.id, "%s", id);
    r.customer_id = str_dup(jv_get_str(rq->in, "customer_id"));
    r.application_id = str_dup(jv_get_str(rq->in, "application_id"));
    err = key_choose(rq, key, hash, &shown);
    if (!err)
        err = license_insert(rq, &r, source, hash, shown);
    if (!err) {
        key_show(rq, key);
        api_created(rq, "/api/v1/licenses/", r.id);
    }
    mem_cleanse(key, sizeof key);
    license_row_free(&r);
    return err;
}

static enum err license_create(struct api *rq)
{
    enum err err = plan_apply(rq, rq->in);
    if (!err && !jv_get_str(rq->in, "application_id").n)
        err = api_fail(rq, ERR_INVALID, "missing_field", "application_id", "application_id: missing");
    return err ? err : license_create_as(rq, "created");
}

static enum err license_get(struct api *rq)
{
    return licenses_get(rq, rq->params[0], &rq->out);
}

/* PATCH, and what comes from a plan. grants NULL: they stay. */
static enum err license_update_as(struct api *rq, enum lifecycle_action action, const char *event, struct str reason, const struct jv *grants)
{
    struct license_row r = {0};
    enum err err = license_for_action(rq, action, &r);
    int64_t had_end = r.expires_at;
    if (!err)
        err = terms_read(rq, &r);
    if (!err)
        err = terms_write(rq, &r, false);
    if (!err && had_end && r.expires_at && r.expires_at != had_end)
        err = plans_move_scheduled(rq, str_c(r.id), had_end, r.expires_at);
    if (!err && jv_type(grants) == JV_ARRAY) {
        int64_t since = jv_get_bool(rq->in, "keep_grants", true) ? 0 : jv_get_int(rq->in, "keep_grants_after", INT64_MAX);
        err = grants_exchange(rq, &r, jv_get(rq->before, "grants"), grants, since);
        if (!err)
            err = tags_pin_license(rq->store, str_c(r.id), rq->now_s, &rq->error);
    }
    if (!err)
        err = license_finish(rq, &r, &(struct license_change){.event = event, .to = r.status, .reason = reason});
    license_row_free(&r);
    return err;
}

static enum err license_update(struct api *rq)
{
    return license_update_as(rq, LIFECYCLE_UPDATE, lifecycle_event(LIFECYCLE_UPDATE), (struct str){NULL, 0}, NULL);
}

/* Archives: what it granted ends, its key dies, its history stays. */
static enum err license_delete(struct api *rq)
{
    struct license_row r = {0};
    struct strbuf confirm = {0}, reason = {0};
    enum err err = license_for_action(rq, LIFECYCLE_DELETE, &r);
    if (!err && api_query(rq, "confirm", &confirm) && !str_eq_c(sb_str(&confirm), r.name))
        err = api_fail(rq, ERR_CONFLICT, "confirm_mismatch", "confirm", "confirm: is not the license's name; nothing was deleted");
    (void)api_query(rq, "reason", &reason);
    if (!err)
        err = store_exec(rq->store, NULL, &rq->error, "UPDATE licenses SET archived_at=?, updated_at=?, rev=rev+1 WHERE id=?", "iiz",
                         rq->now_s, rq->now_s, r.id);
    if (!err)
        err = plans_drop_scheduled(rq, str_c(r.id), "the license was deleted");
    if (!err)
        err = outbox_put_kind(rq->store, 'k', str_c(r.key_hash), false, &rq->error);
    if (!err)
        err = license_finish(rq, &r, &(struct license_change){.event = "license.deleted", .to = LICENSE_STATUS_NONE, .reason = sb_str(&reason)});
    if (!err && !rq->is_dry_run) {
        jv_free(rq->out);
        rq->out = NULL; /* 204 */
    }
    sb_free(&confirm);
    sb_free(&reason);
    license_row_free(&r);
    return err;
}

static enum err license_history(struct api *rq)
{
    struct page page;
    struct store_stmt *st = NULL;
    struct jv *license = NULL;
    bool row;
    enum err err = api_page(rq, &page);
    if (!err)
        err = licenses_shown(rq, rq->params[0], &license);
    jv_free(license);
    if (err)
        return err;
    struct jv *items = api_list(rq);
    err = store_query(rq->store, &st, &rq->error,
                      "SELECT id, at_ms, event, actor, from_status, to_status, reason, data, request_id FROM license_history"
                      " WHERE license_id=? AND vendor_id=? AND id<? ORDER BY id DESC LIMIT ?",
                      "szii", rq->params[0], rq->vendor_id, page.has_cursor ? page.after_key : INT64_MAX, (int64_t)page.limit + 1);
    while (!err) {
        char text[CLOCK_RFC3339_MAX];
        err = store_step(st, &row, &rq->error);
        if (err || !row || !api_page_take(&page, rq->out, store_col_int(st, 0), "h"))
            break;
        struct jv *v = jv_object();
        jv_set_int(v, "id", store_col_int(st, 0));
        jv_set_c(v, "at", clock_rfc3339_ms(store_col_int(st, 1), text));
        jv_set_str(v, "event", store_col_str(st, 2));
        jv_set_str(v, "actor", store_col_str(st, 3));
        jv_set_str(v, "from_status", store_col_str(st, 4));
        jv_set_str(v, "to_status", store_col_str(st, 5));
        jv_set_str(v, "reason", store_col_str(st, 6));
        api_set_json(v, "data", store_col_str(st, 7));
        jv_set_str(v, "request_id", store_col_str(st, 8));
        jv_push(items, v);
    }
    store_done(&st);
    return err;
}

/* ---- actions ------------------------------------------------------------------------------------------------------------- */

static enum err finish_action(struct api *rq, const struct license_row *r, enum lifecycle_action a, enum license_status to)
{
    return license_finish(rq, r,
                          &(struct license_change){.event = lifecycle_event(a), .to = to, .reason = jv_get_str(rq->in, "reason")});
}

/* One of the actions that set the stored status. */
static enum err license_set_status(struct api *rq, enum lifecycle_action a, enum license_status to)
{
    struct license_row r = {0};
    struct str reason = jv_get_str(rq->in, "reason");
    enum err err = license_for_action(rq, a, &r);
    if (!err && a == LIFECYCLE_ACTIVATE)
        err = terms_begin(rq, &r);
    if (!err && a == LIFECYCLE_ACTIVATE)
        err = store_exec(rq->store, NULL, &rq->error,
                         "UPDATE licenses SET activated_at=?, trial_started_at=?, expires_at=?, anchor_day=? WHERE id=?", "iiiiz", rq->now_s,
                         r.trial_started_at, r.expires_at, r.anchor_day, r.id);
    if (!err && a == LIFECYCLE_REINSTATE)
        err = store_exec(rq->store, NULL, &rq->error, "UPDATE licenses SET payment_failed_at=0, payment_retries=0 WHERE id=?", "z", r.id);
    if (!err && a == LIFECYCLE_REVOKE)
        err = store_exec(rq->store, NULL, &rq->error, "UPDATE licenses SET revoked_at=? WHERE id=?", "iz", rq->now_s, r.id);
    if (!err && a == LIFECYCLE_REVOKE)
        err = plans_drop_scheduled(rq, str_c(r.id), "the license was revoked");
    if (!err) /* the reason belongs to the state; a license that is in force has none */
        err = store_exec(rq->store, NULL, &rq->error, "UPDATE licenses SET status=?, status_reason=?, updated_at=?, rev=rev+1 WHERE id=?",
                         "zsiz", license_status_text(to), to != LICENSE_ACTIVE && reason.p ? reason : S(""), rq->now_s, r.id);
    if (!err)
        err = finish_action(rq, &r, a, to);
    license_row_free(&r);
    return err;
}

static enum err license_activate(struct api *rq)
{
    return license_set_status(rq, LIFECYCLE_ACTIVATE, LICENSE_ACTIVE);
}

static enum err license_suspend(struct api *rq)
{
    return license_set_status(rq, LIFECYCLE_SUSPEND, LICENSE_SUSPENDED);
}

static enum err license_reinstate(struct api *rq)
{
    return license_set_status(rq, LIFECYCLE_REINSTATE, LICENSE_ACTIVE);
}

static enum err license_revoke(struct api *rq)
{
    return license_set_status(rq, LIFECYCLE_REVOKE, LICENSE_REVOKED);
}

/* Writes the end that an action found. What the right to updates ended with, it ends with still; a renewal is for what is paid, so that a
 * failed payment is forgotten. A change that waits for the end of a period waits for the end of an extended one. */
static enum err license_set_expiry(struct api *rq, enum lifecycle_action a, struct license_row *r, int64_t expires_at, int anchor)
{
    if (r->updates_until && r->updates_until == r->expires_at)
        r->updates_until = expires_at;
    int64_t had_end = r->expires_at;
    r->expires_at = expires_at;
    enum err err = check_window(rq, r);
    if (!err)
        err = store_exec(rq->store, NULL, &rq->error,
                         "UPDATE licenses SET expires_at=?, anchor_day=?, updates_until=?, updated_at=?, rev=rev+1 WHERE id=?", "iiiiz",
                         expires_at, (int64_t)anchor, r->updates_until, rq->now_s, r->id);
    if (!err && a == LIFECYCLE_EXTEND)
        err = plans_move_scheduled(rq, str_c(r->id), had_end, expires_at);
    return err ? err : finish_action(rq, r, a, r->status);
}

static enum err add_period(struct api *rq, struct str text, int64_t from, int64_t anchor, int64_t *ret, int *ret_anchor)
{
    struct period p;
    struct error error = {0};
    if (period_parse(text, &p, &error) || period_add_anchored(from, &p, api_zone(rq), (int)anchor, ret, ret_anchor, &error))
        return api_fail(rq, ERR_INVALID, "invalid_field", "period", "period: %s", error.text);
    return ERR_OK;
}

/* The period of a renewal that names none: the license's own; of the right to updates the plan's. */
static enum err renewal_period(struct api *rq, const struct license_row *r, struct strbuf *ret)
{
    struct str named = jv_get_str(rq->in, "period"), plan_id = jv_get_str(rq->before, "plan_id");
    struct jv *plan = NULL;
    enum err err = ERR_OK;
    if (!named.p && !r->expires_at && plan_id.n)
        err = plans_get(rq, plan_id, true, &plan);
    if (!err)
        sb_add(ret, named.p ? named : plan ? plans_updates_period(plan, str_c(r->period)) : str_c(r->period));
    if (!err && !ret->n)
        err = api_fail(rq, ERR_INVALID, "missing_field", "period", "period: missing, and the license has none of its own");
    jv_free(plan);
    return err;
}

/* The right to updates, of what has no end itself. */
static enum err license_set_updates(struct api *rq, const struct license_row *r, int64_t updates_until, int anchor)
{
    enum err err = store_exec(rq->store, NULL, &rq->error, "UPDATE licenses SET updates_until=?, anchor_day=?, updated_at=?, rev=rev+1 WHERE id=?",
                              "iiiz", updates_until, (int64_t)anchor, rq->now_s, r->id);
    return err ? err : finish_action(rq, r, LIFECYCLE_RENEW, r->status);
}

/* From the present end, so that who renews early or in the grace time loses and gains nothing; from now when it is over. Without an end it is
 * the right to updates that goes on. */
static enum err license_renew(struct api *rq)
{
    struct license_row r = {0};
    int64_t expires_at = 0;
    int anchor = 0;
    struct strbuf period = {0};
    enum err err = plans_catch_up(rq, rq->params[0]);
    if (!err)
        err = license_for_action(rq, LIFECYCLE_RENEW, &r);
    if (!err)
        err = store_exec(rq->store, NULL, &rq->error, "UPDATE licenses SET payment_failed_at=0, payment_retries=0 WHERE id=?", "z", r.id);
    if (err)
        goto out;
    int64_t end = r.expires_at ? r.expires_at : r.updates_until;
    if (api_has(rq, "expires_at")) {
        if (!r.expires_at)
            err = api_fail(rq, ERR_INVALID, "invalid_field", "expires_at", "expires_at: the license has none; a period prolongs its updates_until");
        if (!err)
            err = api_time_end(rq, rq->in, "expires_at", "expires_at", &expires_at);
        if (!err && jv_get_str(rq->in, "period").p)
            err = api_fail(rq, ERR_INVALID, "invalid_field", "period", "period: not together with expires_at");
        if (!err && (!expires_at || expires_at <= rq->now_s || expires_at <= r.expires_at))
            err =
                api_fail(rq, ERR_INVALID, "invalid_window", "expires_at", "expires_at: must be later than now and than the present expiry");
    } else {
        bool is_over = rq->now_s >= lifecycle_grace_end(end, r.grace_days);
        err = renewal_period(rq, &r, &period);
        if (!err)
            err = add_period(rq, sb_str(&period), is_over ? rq->now_s : end, is_over ? 0 : r.anchor_day, &expires_at, &anchor);
    }
    if (!err && !r.expires_at)
        err = license_set_updates(rq, &r, expires_at, anchor);
    else if (!err)
        err = license_set_expiry(rq, LIFECYCLE_RENEW, &r, expires_at, anchor);
out:
    sb_free(&period);
    license_row_free(&r);
    return err;
}

static enum err license_extend(struct api *rq)
{
    struct license_row r = {0};
    int64_t expires_at = 0;
    int anchor = 0;
    enum err err = license_for_action(rq, LIFECYCLE_EXTEND, &r);
    if (!err)
        err = add_period(rq, jv_get_str(rq->in, "period"), r.expires_at, r.anchor_day, &expires_at, &anchor);
    if (!err)
        err = license_set_expiry(rq, LIFECYCLE_EXTEND, &r, expires_at, anchor);
    license_row_free(&r);
    return err;
}

static enum err license_cancel(struct api *rq)
{
    struct license_row r = {0};
    enum err err = license_for_action(rq, LIFECYCLE_CANCEL, &r);
    if (!err)
        err = store_exec(rq->store, NULL, &rq->error, "UPDATE licenses SET cancel_at_period_end=1, updated_at=?, rev=rev+1 WHERE id=?", "iz",
                         rq->now_s, r.id);
    if (!err)
        err = finish_action(rq, &r, LIFECYCLE_CANCEL, r.status);
    license_row_free(&r);
    return err;
}

/* A further key in the old one's place; the caller shows and cleanses it. */
static enum err key_replace(struct api *rq, const struct license_row *r, char key[CREDENTIAL_TEXT_MAX])
{
    char hash[CREDENTIAL_HASH_MAX];
    key_make(rq, key, hash);
    enum err err = store_exec(rq->store, NULL, &rq->error, "UPDATE licenses SET key_hash=?, key_prefix=?, updated_at=?, rev=rev+1 WHERE id=?",
                              "zsiz", hash, str_sub(str_c(key), 0, KEY_SHOWN_CHARS), rq->now_s, r->id);
    if (!err)
        err = outbox_put_kind(rq->store, 'k', str_c(r->key_hash), false, &rq->error);
    if (!err)
        err = outbox_put_kind(rq->store, 'k', str_c(hash), true, &rq->error);
    return err;
}

/* Every credential that is bound to the license dies. */
static enum err credentials_revoke(struct api *rq, const struct license_row *r)
{
    struct store_stmt *st = NULL;
    struct strbuf hashes = {0};
    bool row;
    enum err err =
        store_query(rq->store, &st, &rq->error, "SELECT hash FROM credentials WHERE license_id=? AND revoked_at=0", "z", r->id);
    while (!err) {
        err = store_step(st, &row, &rq->error);
        if (err || !row)
            break;
        sb_add(&hashes, store_col_str(st, 0));
        sb_add_char(&hashes, '\n');
    }
    store_done(&st);
    struct str rest = sb_str(&hashes), hash;
    while (!err && str_next(&rest, '\n', &hash))
        err = outbox_put_kind(rq->store, 'k', hash, false, &rq->error);
    if (!err)
        err = store_exec(rq->store, NULL, &rq->error, "UPDATE credentials SET revoked_at=? WHERE license_id=? AND revoked_at=0", "iz",
                         rq->now_s, r->id);
    sb_free(&hashes);
    return err;
}

/* Every installation gives its place up. */
static enum err registrations_revoke(struct api *rq, const struct license_row *r)
{
    enum err err = store_exec(rq->store, NULL, &rq->error, "UPDATE license_instances SET revoked_at=? WHERE license_id=? AND revoked_at=0",
                              "iz", rq->now_s, r->id);
    return err ? err : usage_refresh(rq->store, str_c(r->id), rq->now_s, &rq->error);
}

static enum err license_new_key(struct api *rq, enum lifecycle_action a)
{
    struct license_row r = {0};
    char key[CREDENTIAL_TEXT_MAX] = "";
    enum err err = license_for_action(rq, a, &r);
    if (!err)
        err = key_replace(rq, &r, key);
    if (!err && a == LIFECYCLE_RESET)
        err = credentials_revoke(rq, &r);
    if (!err && a == LIFECYCLE_RESET)
        err = registrations_revoke(rq, &r);
    if (!err)
        err = finish_action(rq, &r, a, r.status);
    if (!err)
        key_show(rq, key);
    mem_cleanse(key, sizeof key);
    license_row_free(&r);
    return err;
}

static enum err license_rotate_key(struct api *rq)
{
    return license_new_key(rq, LIFECYCLE_ROTATE_KEY);
}

static enum err license_reset(struct api *rq)
{
    return license_new_key(rq, LIFECYCLE_RESET);
}

/* ---- for other resources and the jobs ------------------------------------------------------------------------------------ */

/* What stood in rq->in and the path stands there again afterwards. */
struct borrowed {
    struct jv *in;
    struct str id;
    char *if_match;
};

static struct borrowed call_begin(struct api *rq, struct str id, const struct jv *in)
{
    struct borrowed kept = {rq->in, rq->params[0], rq->if_match};
    rq->in = in ? jv_copy(in) : jv_object();
    rq->params[0] = id;
    rq->if_match = NULL; /* speaks of the object of the path */
    jv_free(rq->out);
    jv_free(rq->before);
    jv_free(rq->after);
    rq->out = rq->before = rq->after = NULL;
    return kept;
}

static void call_end(struct api *rq, const struct borrowed *kept)
{
    jv_free(rq->in);
    rq->in = kept->in;
    rq->params[0] = kept->id;
    rq->if_match = kept->if_match;
}

enum err licenses_make(struct api *rq, const struct jv *in, const char *source)
{
    struct borrowed kept = call_begin(rq, S(""), in);
    enum err err = license_create_as(rq, source);
    call_end(rq, &kept);
    return err;
}

static const struct {
    enum lifecycle_action action;
    api_fn *run;
} RUNS[] = {
    {LIFECYCLE_ACTIVATE, license_activate},     {LIFECYCLE_SUSPEND, license_suspend}, {LIFECYCLE_REINSTATE, license_reinstate},
    {LIFECYCLE_REVOKE, license_revoke},         {LIFECYCLE_RENEW, license_renew},     {LIFECYCLE_EXTEND, license_extend},
    {LIFECYCLE_ROTATE_KEY, license_rotate_key}, {LIFECYCLE_RESET, license_reset},     {LIFECYCLE_CANCEL, license_cancel},
};

enum err licenses_act(struct api *rq, struct str id, const char *action, const struct jv *in)
{
    for (size_t i = 0; i < sizeof RUNS / sizeof *RUNS; i++)
        if (strcmp(lifecycle_action_text(RUNS[i].action), action) == 0) {
            struct borrowed kept = call_begin(rq, id, in);
            enum err err = RUNS[i].run(rq);
            call_end(rq, &kept);
            return err;
        }
    WRONG("no such action");
}

enum err licenses_change(struct api *rq, struct str id, const char *action, const struct jv *in, const char *event, struct str reason)
{
    enum lifecycle_action a = LIFECYCLE_NONE;
    AN(lifecycle_action_parse(str_c(action), &a));
    struct borrowed kept = call_begin(rq, id, in);
    enum err err = license_update_as(rq, a, event ? event : lifecycle_event(a), reason, jv_get(rq->in, "grants"));
    call_end(rq, &kept);
    return err;
}

static const struct query_param DELETE_PARAMS[] = {{"confirm", "the license's name; with another one nothing is deleted"},
                                                   {"reason", "kept in the history"},
                                                   {NULL, NULL}};

#define LIC "/api/v1/licenses"
#define ACT(name, fn, in, action, about)                                                                                                   \
    {HEAD_POST, LIC "/{id}/" name, fn, ROLE_LICENSES, ROUTE_ACTION, &in, &LICENSE_ANSWER, NULL, "license." action, about}
const struct route LICENSE_ROUTES[] = {
    {HEAD_GET, LIC, licenses_list, ROLE_VIEWER, ROUTE_LIST | ROUTE_COUNT, NULL, &LICENSE_ANSWER, LICENSE_LIST_PARAMS, "license.list", "Licenses"},
    {HEAD_POST, LIC, license_create, ROLE_LICENSES, 0, &LICENSE_CREATE, &LICENSE_ANSWER, NULL, "license.create",
     "Make a license; its key is shown once"},
    {HEAD_GET, LIC "/{id}", license_get, ROLE_VIEWER, 0, NULL, &LICENSE_ANSWER, NULL, "license.get", "One license"},
    {HEAD_PATCH, LIC "/{id}", license_update, ROLE_LICENSES, 0, &LICENSE_UPDATE, &LICENSE_ANSWER, NULL, "license.update",
     "Change a license's terms"},
    {HEAD_DELETE, LIC "/{id}", license_delete, ROLE_LICENSES, 0, NULL, NULL, DELETE_PARAMS, "license.delete", "Archive a license"},
    {HEAD_GET, LIC "/{id}/history", license_history, ROLE_VIEWER, ROUTE_LIST, NULL, &HISTORY, NULL, "license.history",
     "What was done with a license, newest first; also with a deleted one"},
    ACT("activate", license_activate, REASON, "activate", "inactive -> active; begins what waits for it"),
    ACT("suspend", license_suspend, REASON, "suspend", "active -> suspended"),
    ACT("reinstate", license_reinstate, REASON, "reinstate", "suspended -> active"),
    ACT("revoke", license_revoke, REASON, "revoke", "End it for good"),
    ACT("renew", license_renew, RENEW, "renew", "A further period from its end (from now, when it is over), or until expires_at; without an end, of its updates_until"),
    ACT("extend", license_extend, EXTEND, "extend", "Move its end by a period"),
    ACT("cancel-at-period-end", license_cancel, REASON, "cancel", "It renews no more: its end is its end"),
    ACT("rotate-key", license_rotate_key, REASON, "rotate_key", "Replace the license key; the old one dies at once"),
    ACT("reset", license_reset, REASON, "reset", "All credentials and installations that are bound to it die, and the key is replaced"),
    {.path = NULL},
};
