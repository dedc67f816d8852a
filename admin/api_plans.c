/* Plans, and what a license takes of one. The change from one plan to another is api_plan_changes.c's. */
#include "plans.h"

#include <stdio.h>
#include <string.h>

#include "api_routes.h"
#include "eventlog.h"
#include "licensemodel.h"
#include "money.h"
#include "pullgate/clock.h"
#include "pullgate/credential.h"
#include "pullgate/license.h"
#include "pullgate/mem.h"
#include "pullgate/period.h"

#define GRANTS_MAX         200  /* of one plan, as of one license */
#define GRACE_DAYS_DEFAULT 7
#define GRACE_DAYS_MAX     3650
#define TRIAL_DAYS_MAX     3650
#define TRIAL_CAP_DEFAULT  1    /* trials of one customer and application */
#define TRIAL_CAP_MAX      1000
#define UPDATES_DEFAULT    "P1Y" /* of a perpetual license, where neither plan nor period says otherwise */
#define DOMAINS_MAX        100
#define LIMITS_MAX         50   /* custom ones */

/* ---- schemas ----------------------------------------------------------------------------------------------------------- */

const struct field PLAN_GRANT_FIELDS[] = {
    {.name = "selector", .type = FIELD_STRING, .flags = FIELD_REQUIRED, .one_of = "exact|range|glob|channel|digest|all"},
    {.name = "value", .type = FIELD_STRING, .flags = FIELD_EMPTY | FIELD_OPTIONAL, .max = 256, .about = "1.4.2, ^1.4, 2024.*-lts, stable, sha256:…; none for all"},
    {.name = "on_move", .type = FIELD_STRING, .flags = FIELD_OPTIONAL, .one_of = "follow|pin"},
    {.name = "include_prerelease", .type = FIELD_BOOL, .flags = FIELD_OPTIONAL, .about = "a range also matches pre-releases"},
    {.name = "not_before", .type = FIELD_TIME, .flags = FIELD_OPTIONAL},
    {.name = "not_after", .type = FIELD_TIME, .flags = FIELD_OPTIONAL},
    {.name = "repositories", .type = FIELD_STRINGS, .flags = FIELD_OPTIONAL, .about = "public names; left out: all of the application's"},
    {.name = "note", .type = FIELD_STRING, .flags = FIELD_EMPTY | FIELD_OPTIONAL},
    {.name = NULL},
};
static const struct schema PLAN_GRANT = {"PlanGrant", PLAN_GRANT_FIELDS};

static const struct field PRICE_FIELDS[] = {
    {.name = "amount", .type = FIELD_STRING, .flags = FIELD_REQUIRED, .max = 24, .about = "a decimal string, of one instance and period"},
    {.name = "currency", .type = FIELD_STRING, .flags = FIELD_REQUIRED, .min = 3, .max = 3, .about = "ISO 4217"},
    {.name = "user_amount", .type = FIELD_STRING, .flags = FIELD_OPTIONAL, .max = 24, .about = "of each user and period besides"},
    {.name = NULL},
};

static const struct field PLAN_FIELDS[] = {
    {.name = "id", .type = FIELD_STRING},
    {.name = "slug", .type = FIELD_STRING},
    {.name = "name", .type = FIELD_STRING},
    {.name = "description", .type = FIELD_TEXT, .flags = FIELD_EMPTY},
    {.name = "application_id", .type = FIELD_STRING},
    {.name = "type", .type = FIELD_STRING, .one_of = "trial|subscription|perpetual|development"},
    {.name = "period", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "grants", .type = FIELD_LIST, .sub = PLAN_GRANT_FIELDS},
    {.name = "limits", .type = FIELD_MAP},
    {.name = "features", .type = FIELD_MAP},
    {.name = "grace_days", .type = FIELD_INT},
    {.name = "trial_days", .type = FIELD_INT},
    {.name = "trial_cap", .type = FIELD_INT},
    {.name = "trial_cap_per_domain", .type = FIELD_INT},
    {.name = "starts_on", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "requires_activation", .type = FIELD_BOOL},
    {.name = "updates_period", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "price", .type = FIELD_OBJECT, .flags = FIELD_OPTIONAL, .sub = PRICE_FIELDS, .about = "absent: none"},
    {.name = "visible", .type = FIELD_BOOL},
    {.name = "self_service", .type = FIELD_BOOL},
    {.name = "allowed_email_domains", .type = FIELD_STRINGS},
    {.name = "denied_email_domains", .type = FIELD_STRINGS},
    {.name = "auto_renew", .type = FIELD_BOOL},
    {.name = "manual_validation", .type = FIELD_BOOL},
    {.name = "metadata", .type = FIELD_MAP},
    {.name = "created_at", .type = FIELD_TIME},
    {.name = "updated_at", .type = FIELD_TIME},
    {.name = "archived_at", .type = FIELD_TIME},
    {.name = "etag", .type = FIELD_STRING},
    {.name = NULL},
};
static const struct schema PLAN = {"Plan", PLAN_FIELDS};

static const struct field PLAN_CREATE_FIELDS[] = {
    {.name = "application_id", .type = FIELD_STRING, .flags = FIELD_REQUIRED, .max = 64},
    {.name = "slug", .type = FIELD_STRING, .flags = FIELD_REQUIRED, .max = 64, .about = "unique for the vendor"},
    {.name = "name", .type = FIELD_STRING, .flags = FIELD_REQUIRED},
    {.name = "type", .type = FIELD_STRING, .flags = FIELD_REQUIRED, .one_of = "trial|subscription|perpetual|development"},
    {.name = "description", .type = FIELD_TEXT, .flags = FIELD_EMPTY, .max = 2000},
    {.name = "period", .type = FIELD_STRING, .flags = FIELD_EMPTY | FIELD_NULL, .max = 20, .about = "P1M, P1Y; a subscription has one"},
    {.name = "grants", .type = FIELD_LIST, .max = GRANTS_MAX, .sub = PLAN_GRANT_FIELDS},
    {.name = "limits", .type = FIELD_MAP, .about = "max_instances, pulls, bytes, reset_period, limit_action, and custom: limits that the application enforces, such as max_users"},
    {.name = "features", .type = FIELD_MAP, .about = "goes into the license file"},
    {.name = "grace_days", .type = FIELD_INT, .max = GRACE_DAYS_MAX, .about = "7 when absent"},
    {.name = "trial_days", .type = FIELD_INT, .max = TRIAL_DAYS_MAX, .about = "length of a trial, from its start"},
    {.name = "trial_cap", .type = FIELD_INT, .max = TRIAL_CAP_MAX, .about = "trials of one customer and application; 1 when absent, 0: no cap"},
    {.name = "trial_cap_per_domain",
     .type = FIELD_INT,
     .max = TRIAL_CAP_MAX,
     .about = "trials of the application that customers of one email domain start themselves; 0: no cap"},
    {.name = "starts_on", .type = FIELD_STRING, .one_of = "first_pull|activation", .about = "when trial_days begin; first_pull when absent"},
    {.name = "requires_activation", .type = FIELD_BOOL, .about = "no license file before the license is active"},
    {.name = "updates_period",
     .type = FIELD_STRING,
     .flags = FIELD_EMPTY | FIELD_NULL,
     .max = 20,
     .about = "of a perpetual license: how long versions released after its start are granted; the period, or P1Y, when absent"},
    {.name = "price", .type = FIELD_OBJECT, .flags = FIELD_NULL, .sub = PRICE_FIELDS, .about = "information, and what orders add up"},
    {.name = "visible", .type = FIELD_BOOL, .about = "customers see and order it in the portal"},
    {.name = "self_service", .type = FIELD_BOOL, .about = "customers start this trial themselves"},
    {.name = "allowed_email_domains", .type = FIELD_STRINGS, .max = DOMAINS_MAX, .about = "of customers that may; none: all"},
    {.name = "denied_email_domains", .type = FIELD_STRINGS, .max = DOMAINS_MAX},
    {.name = "auto_renew", .type = FIELD_BOOL},
    {.name = "manual_validation", .type = FIELD_BOOL, .about = "a payment alone does not activate what was ordered"},
    {.name = "metadata", .type = FIELD_MAP},
    {.name = NULL},
};
static const struct schema PLAN_CREATE = {"PlanCreate", PLAN_CREATE_FIELDS};
static const struct schema PLAN_UPDATE = {"PlanUpdate", PLAN_CREATE_FIELDS + 1 /* its application stays */};

/* ---- reading ----------------------------------------------------------------------------------------------------------- */

#define PLAN_COLUMNS                                                                                                                       \
    "id, slug, name, description, application_id, type, period, grants, limits, features, grace_days, trial_days, trial_cap,"              \
    " trial_cap_per_domain, starts_on, requires_activation, updates_period, amount, user_amount, currency, visible, self_service,"         \
    " allowed_email_domains, denied_email_domains, auto_renew, manual_validation, metadata, created_at, updated_at, archived_at, rev"
#define COL_CREATED 27
#define COL_REV     30

static struct jv *plan_print(const struct store_stmt *st)
{
    struct jv *v = jv_object();
    jv_set_str(v, "id", store_col_str(st, 0));
    jv_set_str(v, "slug", store_col_str(st, 1));
    jv_set_str(v, "name", store_col_str(st, 2));
    jv_set_str(v, "description", store_col_str(st, 3));
    jv_set_str(v, "application_id", store_col_str(st, 4));
    jv_set_str(v, "type", store_col_str(st, 5));
    jv_set_str(v, "period", store_col_str(st, 6));
    api_set_json(v, "grants", store_col_str(st, 7));
    api_set_json(v, "limits", store_col_str(st, 8));
    api_set_json(v, "features", store_col_str(st, 9));
    jv_set_int(v, "grace_days", store_col_int(st, 10));
    jv_set_int(v, "trial_days", store_col_int(st, 11));
    jv_set_int(v, "trial_cap", store_col_int(st, 12));
    jv_set_int(v, "trial_cap_per_domain", store_col_int(st, 13));
    jv_set_str(v, "starts_on", store_col_str(st, 14));
    jv_set_bool(v, "requires_activation", store_col_int(st, 15) != 0);
    jv_set_str(v, "updates_period", store_col_str(st, 16));
    struct str currency = store_col_str(st, 19);
    if (currency.n) {
        struct jv *price = jv_object();
        char text[MONEY_TEXT_MAX];
        jv_set_c(price, "amount", money_text(store_col_int(st, 17), money_digits(currency), text));
        jv_set_str(price, "currency", currency);
        jv_set_c(price, "user_amount", money_text(store_col_int(st, 18), money_digits(currency), text));
        jv_set(v, "price", price);
    }
    jv_set_bool(v, "visible", store_col_int(st, 20) != 0);
    jv_set_bool(v, "self_service", store_col_int(st, 21) != 0);
    api_set_json(v, "allowed_email_domains", store_col_str(st, 22));
    api_set_json(v, "denied_email_domains", store_col_str(st, 23));
    jv_set_bool(v, "auto_renew", store_col_int(st, 24) != 0);
    jv_set_bool(v, "manual_validation", store_col_int(st, 25) != 0);
    api_set_json(v, "metadata", store_col_str(st, 26));
    jv_set_time(v, "created_at", store_col_int(st, COL_CREATED));
    jv_set_time(v, "updated_at", store_col_int(st, 28));
    jv_set_time(v, "archived_at", store_col_int(st, 29));
    api_print_etag(v, store_col_int(st, COL_REV));
    return v;
}

static enum err plan_load(struct api *rq, struct str id, bool with_archived, struct jv **ret, int64_t *ret_rev)
{
    struct store_stmt *st = NULL;
    bool row = false;
    enum err err = store_query(rq->store, &st, &rq->error,
                               "SELECT " PLAN_COLUMNS " FROM plans WHERE id=? AND vendor_id=? AND (archived_at=0 OR ?)", "szb", id,
                               rq->vendor_id, with_archived);
    if (!err)
        err = store_step(st, &row, &rq->error);
    if (!err && !row)
        err = api_not_found(rq, "plan");
    if (!err) {
        *ret = plan_print(st);
        *ret_rev = store_col_int(st, COL_REV);
    }
    store_done(&st);
    return err;
}

enum err plans_get(struct api *rq, struct str id, bool with_archived, struct jv **ret)
{
    int64_t rev;
    return plan_load(rq, id, with_archived, ret, &rev);
}

static enum err plan_answer(struct api *rq, struct str id, bool with_archived)
{
    int64_t rev;
    enum err err = plan_load(rq, id, with_archived, &rq->out, &rev);
    if (!err)
        api_set_etag(rq, rev);
    return err;
}

static enum err plan_get(struct api *rq)
{
    return plan_answer(rq, rq->params[0], true);
}

static enum err plan_list(struct api *rq)
{
    struct page page;
    struct store_stmt *st = NULL;
    struct strbuf application = {0}, type = {0}, archived = {0};
    bool row;
    enum err err = api_page(rq, &page);
    if (err)
        return err;
    struct jv *items = api_list(rq);
    api_query(rq, "application_id", &application);
    api_query(rq, "type", &type);
    bool is_archived = api_query(rq, "archived", &archived) && str_eq(sb_str(&archived), S("true"));
    err = store_query(rq->store, &st, &rq->error,
                      "SELECT " PLAN_COLUMNS " FROM plans WHERE vendor_id=? AND (archived_at<>0)=? AND (?3='' OR application_id=?3)"
                      " AND (?4='' OR type=?4) AND (created_at, id) > (?5,?6) ORDER BY created_at, id LIMIT ?7",
                      "zbzzizi", rq->vendor_id, is_archived, application.n ? application.p : "", type.n ? type.p : "", page.after_key,
                      page.after_id, (int64_t)page.limit + 1);
    while (!err) {
        err = store_step(st, &row, &rq->error);
        if (err || !row || !api_page_take(&page, rq->out, store_col_int(st, COL_CREATED), store_col_str(st, 0).p))
            break;
        jv_push(items, plan_print(st));
    }
    store_done(&st);
    sb_free(&application);
    sb_free(&type);
    sb_free(&archived);
    return err;
}

/* ---- checks ------------------------------------------------------------------------------------------------------------ */

static enum err check_repositories(struct api *rq, const struct jv *list, const char *application_id, const char *field)
{
    char at[API_FIELD_MAX];
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
            api_field(at, "%s.repositories[%zu]", field, i);
            return api_fail(rq, ERR_INVALID, "unknown_reference", at, "%s: the application has no such repository", at);
        }
    }
    return ERR_OK;
}

enum err plans_check_grant(struct api *rq, const struct jv *grant, const char *application_id, const char *field)
{
    char at[API_FIELD_MAX];
    enum selector_kind kind;
    struct error error = {0};
    int64_t not_before = 0, not_after = 0;
    struct str value = jv_get_str(grant, "value");
    enum err err = api_check_body(rq, grant, &PLAN_GRANT);
    if (err)
        return err;
    api_field(at, "%s.selector", field);
    if (!selector_kind_parse(jv_get_str(grant, "selector"), &kind))
        return api_fail(rq, ERR_INVALID, "invalid_field", at, "%s: no such selector", at);
    api_field(at, "%s.value", field);
    if (selector_check(kind, value.p ? value : S(""), &error))
        return api_fail(rq, ERR_INVALID, "invalid_field", at, "%s: %s", at, error.text);
    api_field(at, "%s.not_before", field);
    err = api_time_start(rq, grant, "not_before", at, &not_before);
    api_field(at, "%s.not_after", field);
    if (!err)
        err = api_time_end(rq, grant, "not_after", at, &not_after);
    if (err)
        return err;
    if (not_before && not_after && not_after <= not_before)
        return api_fail(rq, ERR_INVALID, "invalid_window", at, "%s: not after not_before", at);
    api_field(at, "%s.repositories", field);
    if (jv_type(jv_get(grant, "repositories")) != JV_NONE && !jv_len(jv_get(grant, "repositories"))) /* "none" would read as "all" */
        return api_fail(rq, ERR_INVALID, "invalid_field", at, "%s: name one, or leave it out to grant all of the application's", at);
    return application_id ? check_repositories(rq, jv_get(grant, "repositories"), application_id, field) : ERR_OK;
}

static enum err check_period(struct api *rq, const struct jv *plan, const char *field)
{
    struct period p;
    struct error error = {0};
    struct str text = jv_get_str(plan, field);
    if (text.n && period_parse(text, &p, &error))
        return api_fail(rq, ERR_INVALID, "invalid_field", field, "%s: %s", field, error.text);
    return ERR_OK;
}

/* As a license has them: those that Pullgate knows, and "custom" with the application's own: numbers, texts, true and false. */
static enum err check_limits(struct api *rq, const struct jv *limits)
{
    static const struct field FIELDS[] = {
        {.name = "max_instances", .type = FIELD_INT, .flags = FIELD_NULL, .min = 1},
        {.name = "pulls", .type = FIELD_INT, .flags = FIELD_NULL, .min = 1},
        {.name = "bytes", .type = FIELD_INT, .flags = FIELD_NULL, .min = 1},
        {.name = "reset_period", .type = FIELD_STRING, .flags = FIELD_NULL | FIELD_EMPTY, .max = 20},
        {.name = "limit_action", .type = FIELD_STRING, .one_of = "warn|deny"},
        {.name = "custom", .type = FIELD_MAP},
        {.name = NULL},
    };
    static const struct schema LIMITS = {"PlanLimits", FIELDS};
    char at[API_FIELD_MAX];
    struct period p;
    struct error error = {0};
    if (jv_type(limits) != JV_OBJECT)
        return ERR_OK;
    enum err err = api_check_body(rq, limits, &LIMITS);
    if (err)
        return err;
    struct str reset = jv_get_str(limits, "reset_period");
    if (reset.n && period_parse(reset, &p, &error))
        return api_fail(rq, ERR_INVALID, "invalid_field", "limits.reset_period", "limits.reset_period: %s", error.text);
    const struct jv *custom = jv_get(limits, "custom");
    if (jv_len(custom) > LIMITS_MAX)
        return api_fail(rq, ERR_INVALID, "invalid_field", "limits.custom", "limits.custom: more than %d members", LIMITS_MAX);
    for (void *it = jv_iter(custom); it; it = jv_iter_next(custom, it)) {
        enum jv_type type = jv_type(jv_iter_value(it));
        api_field(at, "limits.custom.%s", jv_iter_key(it));
        if (type != JV_INT && type != JV_STRING && type != JV_BOOL)
            return api_fail(rq, ERR_INVALID, "invalid_field", at, "%s: expected a whole number, a string, true or false", at);
    }
    return ERR_OK;
}

static enum err check_domains(struct api *rq, const struct jv *plan, const char *field)
{
    char at[API_FIELD_MAX];
    const struct jv *list = jv_get(plan, field);
    for (size_t i = 0; i < jv_len(list); i++) {
        struct str d = jv_str(jv_at(list, i));
        api_field(at, "%s[%zu]", field, i);
        if (!d.n || str_index(d, '@') >= 0 || str_index(d, ' ') >= 0)
            return api_fail(rq, ERR_INVALID, "invalid_field", at, "%s: expected a domain such as example.com", at);
    }
    return ERR_OK;
}

struct price {
    int64_t amount, user_amount;
    struct str currency; /* empty: no price */
};

static enum err price_of(struct api *rq, const struct jv *plan, struct price *ret)
{
    const struct jv *price = jv_get(plan, "price");
    struct error error = {0};
    *ret = (struct price){.currency = S("")};
    if (jv_type(price) != JV_OBJECT)
        return ERR_OK;
    ret->currency = jv_get_str(price, "currency");
    int digits = money_digits(ret->currency);
    if (digits < 0)
        return api_fail(rq, ERR_INVALID, "invalid_field", "price.currency", "price.currency: expected an ISO 4217 code such as EUR");
    if (money_parse(jv_get_str(price, "amount"), digits, &ret->amount, &error))
        return api_fail(rq, ERR_INVALID, "invalid_field", "price.amount", "price.amount: %s", error.text);
    struct str user = jv_get_str(price, "user_amount");
    if (user.p && money_parse(user, digits, &ret->user_amount, &error))
        return api_fail(rq, ERR_INVALID, "invalid_field", "price.user_amount", "price.user_amount: %s", error.text);
    return ERR_OK;
}

/* The whole plan as it is to be; the schema held. */
static enum err plan_check(struct api *rq, const struct jv *plan)
{
    struct str type = jv_get_str(plan, "type");
    enum err err = ERR_OK;
    if (!api_slug_valid(jv_get_str(plan, "slug")))
        return api_fail(rq, ERR_INVALID, "invalid_field", "slug", "slug: lower-case letters and digits, single . _ - between them");
    err = check_period(rq, plan, "period");
    if (!err)
        err = check_period(rq, plan, "updates_period");
    if (err)
        return err;
    if (str_eq(type, S("subscription")) && !jv_get_str(plan, "period").n)
        return api_fail(rq, ERR_INVALID, "missing_field", "period", "period: a subscription needs one");
    bool is_trial = str_eq(type, S("trial"));
    if (is_trial && !jv_get_int(plan, "trial_days", 0) && !jv_get_str(plan, "period").n)
        return api_fail(rq, ERR_INVALID, "missing_field", "trial_days", "trial_days: a trial needs them, or a period");
    if (jv_get_bool(plan, "auto_renew", false) && (str_eq(type, S("perpetual")) || !jv_get_str(plan, "period").n))
        return api_fail(rq, ERR_INVALID, "invalid_field", "auto_renew", "auto_renew: there is nothing to renew without a period");
    if (!is_trial && jv_get_bool(plan, "self_service", false))
        return api_fail(rq, ERR_INVALID, "invalid_field", "self_service", "self_service: only a trial is started by the customer himself");
    const struct jv *grants = jv_get(plan, "grants");
    for (size_t i = 0; !err && i < jv_len(grants); i++) {
        char at[API_FIELD_MAX];
        api_field(at, "grants[%zu]", i);
        err = plans_check_grant(rq, jv_at(grants, i), jv_get_c(plan, "application_id", ""), at);
    }
    if (!err)
        err = check_limits(rq, jv_get(plan, "limits"));
    if (!err)
        err = check_domains(rq, plan, "allowed_email_domains");
    if (!err)
        err = check_domains(rq, plan, "denied_email_domains");
    return err;
}

/* ---- create, update, archive ------------------------------------------------------------------------------------------- */

static struct str text_of(const struct jv *plan, const char *name)
{
    struct str s = jv_get_str(plan, name);
    return s.p ? s : S("");
}

/* A member as JSON text, `dflt` where it is absent or null. */
static struct str json_of(const struct jv *plan, const char *name, struct str dflt, struct strbuf *b)
{
    const struct jv *v = jv_get(plan, name);
    if (jv_type(v) == JV_NONE || jv_type(v) == JV_NULL)
        return dflt;
    jv_dump(v, b);
    return sb_str(b);
}

/* INSERT, or UPDATE of the plan with the id. */
static enum err plan_write(struct api *rq, const char *id, const struct jv *plan, bool is_new)
{
    struct strbuf grants = {0}, limits = {0}, features = {0}, allowed = {0}, denied = {0}, metadata = {0};
    struct price price;
    enum err err = plan_check(rq, plan);
    if (!err)
        err = price_of(rq, plan, &price);
    if (err)
        return err;
    bool is_trial = str_eq(jv_get_str(plan, "type"), S("trial"));
    struct str starts_on = text_of(plan, "starts_on");
    if (is_new)
        err = store_exec(rq->store, NULL, &rq->error,
                         "INSERT INTO plans (id, vendor_id, slug, name, application_id, type, grace_days, trial_days, trial_cap,"
                         " trial_cap_per_domain, requires_activation, visible, self_service, auto_renew, manual_validation, created_at, updated_at)"
                         " VALUES (?,?,?,?,?,?,0,0,0,0,0,0,0,0,0,?,?)",
                         "zzssssii", id, rq->vendor_id, jv_get_str(plan, "slug"), jv_get_str(plan, "name"), jv_get_str(plan, "application_id"),
                         jv_get_str(plan, "type"), rq->now_s, rq->now_s);
    if (!err)
        err = store_exec(
            rq->store, NULL, &rq->error,
            "UPDATE plans SET slug=?, name=?, description=?, type=?, period=?, grants=?, limits=?, features=?, grace_days=?, trial_days=?,"
            " trial_cap=?, trial_cap_per_domain=?, starts_on=?, requires_activation=?, updates_period=?, amount=?, user_amount=?, currency=?,"
            " visible=?, self_service=?, allowed_email_domains=?, denied_email_domains=?, auto_renew=?, manual_validation=?, metadata=?,"
            " updated_at=?, rev=rev+? WHERE id=? AND vendor_id=?",
            "ssssssssiiiisbsiisbbssbbsibzz", jv_get_str(plan, "slug"), jv_get_str(plan, "name"), text_of(plan, "description"),
            jv_get_str(plan, "type"), text_of(plan, "period"), json_of(plan, "grants", S("[]"), &grants),
            json_of(plan, "limits", S("{}"), &limits), json_of(plan, "features", S("{}"), &features),
            jv_get_int(plan, "grace_days", GRACE_DAYS_DEFAULT), jv_get_int(plan, "trial_days", 0),
            jv_get_int(plan, "trial_cap", TRIAL_CAP_DEFAULT), jv_get_int(plan, "trial_cap_per_domain", 0),
            !is_trial     ? S("")
            : starts_on.n ? starts_on
                          : S("first_pull"),
            jv_get_bool(plan, "requires_activation", false), text_of(plan, "updates_period"), price.amount, price.user_amount,
            price.currency, jv_get_bool(plan, "visible", false), jv_get_bool(plan, "self_service", false),
            json_of(plan, "allowed_email_domains", S("[]"), &allowed), json_of(plan, "denied_email_domains", S("[]"), &denied),
            jv_get_bool(plan, "auto_renew", false), jv_get_bool(plan, "manual_validation", false),
            json_of(plan, "metadata", S("{}"), &metadata), rq->now_s, !is_new, id, rq->vendor_id);
    sb_free(&grants);
    sb_free(&limits);
    sb_free(&features);
    sb_free(&allowed);
    sb_free(&denied);
    sb_free(&metadata);
    return err;
}

static enum err plan_create(struct api *rq)
{
    char id[ID_MAX];
    struct strbuf vendor = {0};
    bool found = false;
    enum err err = api_lookup(rq, "SELECT vendor_id FROM applications WHERE id=? AND archived_at=0", jv_get_str(rq->in, "application_id"),
                              &vendor, &found);
    if (!err && (!found || !str_eq_c(sb_str(&vendor), rq->vendor_id)))
        err = api_fail(rq, ERR_INVALID, "unknown_reference", "application_id", "application_id: no such object");
    sb_free(&vendor);
    if (err)
        return err;
    id_new("pln_", id);
    err = plan_write(rq, id, rq->in, true);
    if (!err)
        err = plan_answer(rq, str_c(id), false);
    if (!err) {
        rq->after = jv_copy(rq->out);
        api_created(rq, "/api/v1/plans/", id);
    }
    return err;
}

static enum err plan_update(struct api *rq)
{
    int64_t rev;
    enum err err = plan_load(rq, rq->params[0], false, &rq->before, &rev);
    if (!err)
        err = api_check_etag(rq, rev);
    if (err)
        return err;
    struct jv *plan = jv_copy(rq->before);
    for (void *it = jv_iter(rq->in); it; it = jv_iter_next(rq->in, it))
        jv_set(plan, jv_iter_key(it), jv_copy(jv_iter_value(it)));
    char *id = str_dup(rq->params[0]);
    err = plan_write(rq, id, plan, false);
    jv_free(plan);
    if (!err)
        err = plan_answer(rq, str_c(id), false);
    if (!err)
        rq->after = jv_copy(rq->out);
    mem_free(id);
    return err;
}

/* Licenses that were made of it stay as they are, and so do changes to it that are scheduled. */
static enum err plan_delete(struct api *rq)
{
    int64_t rev;
    enum err err = plan_load(rq, rq->params[0], false, &rq->before, &rev);
    if (!err)
        err = api_check_etag(rq, rev);
    if (!err)
        err = store_exec(rq->store, NULL, &rq->error, "UPDATE plans SET archived_at=?, updated_at=?, rev=rev+1 WHERE id=? AND vendor_id=?",
                         "iisz", rq->now_s, rq->now_s, rq->params[0], rq->vendor_id);
    return err;
}

/* ---- a license of a plan ----------------------------------------------------------------------------------------------- */

static bool is_type(const struct jv *plan, const char *type)
{
    return str_eq_c(jv_get_str(plan, "type"), type);
}

/* A deleted trial counts too, one that became another plan's, and one that the customer gave away: else each would give a further one. One
 * that ended before it ever was active was none. */
#define WAS_TRIAL "(l.type='trial' OR l.trial_started_at<>0) AND NOT (l.activated_at=0 AND (l.status='revoked' OR l.archived_at<>0))"

static enum err trial_check_cap(struct api *rq, const struct jv *plan, struct str customer_id)
{
    struct store_stmt *st = NULL;
    int64_t cap = jv_get_int(plan, "trial_cap", 0), have = 0;
    bool row;
    if (!is_type(plan, "trial") || cap <= 0)
        return ERR_OK;
    enum err err = store_query(rq->store, &st, &rq->error,
                               "SELECT COUNT(*) FROM (SELECT l.id FROM licenses l WHERE l.vendor_id=?1 AND l.customer_id=?2 AND l.application_id=?3"
                               " AND " WAS_TRIAL " UNION SELECT l.id FROM transfers t JOIN licenses l ON l.id=t.license_id WHERE t.vendor_id=?1 AND"
                               " t.customer_id=?2 AND t.status='accepted' AND (l.application_id=?3 OR l.vendor_id<>?1) AND " WAS_TRIAL ")",
                               "zss", rq->vendor_id, customer_id, jv_get_str(plan, "application_id"));
    if (!err)
        err = store_step(st, &row, &rq->error);
    if (!err)
        have = store_col_int(st, 0);
    store_done(&st);
    if (!err && have >= cap)
        err = api_fail(rq, ERR_CONFLICT, "trial_cap_reached", "plan_id",
                       "the customer had %lld trial%s of this application; the plan allows %lld", (long long)have, have == 1 ? "" : "s",
                       (long long)cap);
    return err;
}

static enum err add_period(struct api *rq, struct str text, int64_t from, int64_t *ret, int *ret_anchor)
{
    struct period p;
    struct error error = {0};
    if (period_parse(text, &p, &error) || period_add_anchored(from, &p, api_zone(rq), 0, ret, ret_anchor, &error))
        return api_fail(rq, ERR_INVALID, "invalid_field", "period", "period: %s", error.text);
    return ERR_OK;
}

struct str plans_updates_period(const struct jv *plan, struct str period)
{
    struct str updates = jv_get_str(plan, "updates_period");
    period = period.n ? period : jv_get_str(plan, "period");
    return updates.n ? updates : period.n ? period : S(UPDATES_DEFAULT);
}

enum err plans_terms_from(struct api *rq, const struct jv *plan, struct str period, int64_t start, struct plan_terms *ret)
{
    struct plan_terms t = {0};
    enum err err = ERR_OK;
    if (is_type(plan, "perpetual"))
        err = add_period(rq, plans_updates_period(plan, period), start, &t.updates_until, &t.anchor_day);
    else if (is_type(plan, "trial") && jv_get_int(plan, "trial_days", 0) > 0)
        t.expires_at = 0; /* from its start on, which is another's to find */
    else if (period.n || jv_get_str(plan, "period").n)
        err = add_period(rq, period.n ? period : jv_get_str(plan, "period"), start, &t.expires_at, &t.anchor_day);
    if (!err)
        *ret = t;
    return err;
}

static void set_if_absent(struct jv *in, const char *name, struct jv *take_value)
{
    if (jv_type(jv_get(in, name)) == JV_NONE)
        jv_set(in, name, take_value);
    else
        jv_free(take_value);
}

/* The plan's members, where the body does not name them; an object within an object is merged as well. */
static void merge_into(struct jv *whole, const struct jv *own)
{
    for (void *it = jv_iter(own); it; it = jv_iter_next(own, it)) {
        struct jv *inner = jv_get(whole, jv_iter_key(it));
        if (jv_type(inner) == JV_OBJECT && jv_type(jv_iter_value(it)) == JV_OBJECT)
            for (void *in = jv_iter(jv_iter_value(it)); in; in = jv_iter_next(jv_iter_value(it), in))
                jv_set(inner, jv_iter_key(in), jv_copy(jv_iter_value(in)));
        else
            jv_set(whole, jv_iter_key(it), jv_copy(jv_iter_value(it)));
    }
}

static void merge_members(struct jv *in, const char *name, const struct jv *plan)
{
    struct jv *whole = jv_copy(jv_get(plan, name));
    merge_into(whole, jv_get(in, name));
    jv_set(in, name, whole);
}

/* Grants that the body names take the place of the plan's; one that selects what one of the plan's does is the plan's, unless it is known
 * whose it is. */
static void merge_grants(struct api *rq, struct jv *in, const struct jv *plan)
{
    const struct jv *of_plan = jv_get(plan, "grants");
    bool is_named = jv_type(jv_get(in, "grants")) == JV_ARRAY;
    if (!is_named)
        jv_set(in, "grants", jv_copy(of_plan));
    struct jv *grants = jv_get(in, "grants");
    for (size_t i = 0; i < jv_len(grants); i++) {
        bool is_plans = !is_named;
        if (jv_get_str(jv_at(grants, i), "origin").n)
            continue;
        for (size_t k = 0; k < jv_len(of_plan) && !is_plans; k++)
            is_plans = grants_same(rq, jv_at(of_plan, k), jv_at(grants, i));
        if (is_plans)
            jv_set_c(jv_at(grants, i), "origin", "plan");
    }
}

static enum err plan_merge(struct api *rq, struct jv *in, bool with_archived)
{
    struct jv *plan = NULL;
    struct plan_terms terms = {0};
    int64_t start = rq->now_s;
    struct str id = jv_get_str(in, "plan_id");
    if (!id.n)
        return ERR_OK;
    enum err err = plans_get(rq, id, with_archived, &plan);
    if (err == ERR_NOT_FOUND)
        return api_fail(rq, ERR_INVALID, "unknown_reference", "plan_id", "plan_id: no such object");
    if (err)
        return err;
    if (!jv_get_str(in, "application_id").n)
        jv_set(in, "application_id", jv_copy(jv_get(plan, "application_id")));
    if (!str_eq(jv_get_str(in, "application_id"), jv_get_str(plan, "application_id")))
        err = api_fail(rq, ERR_INVALID, "invalid_field", "application_id", "application_id: the plan is one of another application");
    if (!err)
        err = trial_check_cap(rq, plan, jv_get_str(in, "customer_id"));
    if (!err)
        err = api_time_start(rq, in, "starts_at", "starts_at", &start);
    if (!err && start == 0) /* null: from ever */
        start = rq->now_s;
    if (!err && jv_get_str(in, "period").n)
        err = check_period(rq, in, "period");
    if (!err)
        err = plans_terms_from(rq, plan, jv_get_str(in, "period"), start, &terms);
    if (err)
        goto out;
    if (is_type(plan, "subscription") && start >= rq->now_s)
        terms.expires_at = 0; /* runs its first period from when it comes into force: licenses_act() */
    static const char *const COPIED[] = {"type", "period", "grace_days", "requires_activation", "auto_renew"};
    for (size_t i = 0; i < sizeof COPIED / sizeof *COPIED; i++)
        set_if_absent(in, COPIED[i], jv_copy(jv_get(plan, COPIED[i])));
    merge_grants(rq, in, plan);
    merge_members(in, "limits", plan);
    merge_members(in, "features", plan);
    if (is_type(plan, "trial") && jv_get_int(plan, "trial_days", 0) > 0 && jv_type(jv_get(in, "expires_at")) == JV_NONE) {
        set_if_absent(in, "trial_days", jv_integer(jv_get_int(plan, "trial_days", 0)));
        set_if_absent(in, "starts_on", jv_copy(jv_get(plan, "starts_on")));
    }
    const char *end = terms.expires_at ? "expires_at" : "updates_until";
    if ((terms.expires_at || terms.updates_until) && jv_type(jv_get(in, end)) == JV_NONE) {
        jv_set_time(in, end, terms.expires_at ? terms.expires_at : terms.updates_until);
        jv_set_int(in, "anchor_day", terms.anchor_day);
    }
out:
    jv_free(plan);
    return err;
}

enum err plan_apply(struct api *rq, struct jv *in)
{
    return plan_merge(rq, in, false);
}

enum err plan_apply_any(struct api *rq, struct jv *in)
{
    return plan_merge(rq, in, true);
}

/* ---- what a change leaves behind --------------------------------------------------------------------------------------- */

enum err plans_note(struct api *rq, const struct jv *license, const char *event, struct str reason, const struct jv *data)
{
    const char *status = jv_get_c(license, "status", "");
    const struct history_record h = {.vendor_id = rq->vendor_id,
                                     .customer_id = jv_get_str(license, "customer_id"),
                                     .license_id = jv_get_c(license, "id", ""),
                                     .event = event,
                                     .actor = rq->actor,
                                     .from_status = status,
                                     .to_status = status,
                                     .request_id = rq->request_id,
                                     .reason = reason,
                                     .data = data};
    enum err err = history_put(rq->store, &h, &rq->error);
    if (err)
        return err;
    struct jv *told = jv_object();
    jv_set_c(told, "from_status", status);
    jv_set_c(told, "to_status", status);
    jv_set_str(told, "reason", reason.p ? reason : S(""));
    jv_set(told, "change", data ? jv_copy(data) : jv_object());
    struct event_record e = {.vendor_id = rq->vendor_id,
                             .type = event,
                             .actor = rq->actor,
                             .customer_id = jv_get_c(license, "customer_id", ""),
                             .license_id = jv_get_c(license, "id", ""),
                             .data = told};
    err = eventlog_put(rq->store, &e, &rq->error);
    jv_free(told);
    return err;
}

static const struct query_param PLAN_PARAMS[] = {
    {"application_id", "of one application"},
    {"type", "trial, subscription, perpetual, development"},
    {"archived", "true: those that were deleted"},
    {NULL, NULL},
};

#define PLANS "/api/v1/plans"
const struct route PLAN_ROUTES[] = {
    {HEAD_GET, PLANS, plan_list, ROLE_VIEWER, ROUTE_LIST, NULL, &PLAN, PLAN_PARAMS, "plan.list", "Plans"},
    {HEAD_POST, PLANS, plan_create, ROLE_ADMIN, 0, &PLAN_CREATE, &PLAN, NULL, "plan.create", "Make a plan"},
    {HEAD_GET, PLANS "/{id}", plan_get, ROLE_VIEWER, 0, NULL, &PLAN, NULL, "plan.get", "One plan"},
    {HEAD_PATCH, PLANS "/{id}", plan_update, ROLE_ADMIN, 0, &PLAN_UPDATE, &PLAN, NULL, "plan.update",
     "Change a plan; licenses that were made of it stay as they are"},
    {HEAD_DELETE, PLANS "/{id}", plan_delete, ROLE_ADMIN, 0, NULL, NULL, NULL, "plan.delete", "Archive a plan"},
    {.path = NULL},
};
