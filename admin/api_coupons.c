/* Coupons: what they are worth, for whom and how often. They change orders (api_orders.c), never a license by themselves. */
#include "coupons.h"

#include <stdio.h>
#include <string.h>

#include "api_routes.h"
#include "money.h"
#include "plans.h"
#include "pullgate/credential.h"
#include "pullgate/mem.h"
#include "pullgate/period.h"

#define CODE_MAX      64
#define PLANS_MAX     100 /* that one coupon is restricted to */
#define FEATURES_MAX  50

/* ---- schemas ----------------------------------------------------------------------------------------------------------- */

static const struct field COUPON_FIELDS[] = {
    {.name = "id", .type = FIELD_STRING},
    {.name = "code", .type = FIELD_STRING},
    {.name = "kind", .type = FIELD_STRING, .one_of = "percent|fixed|free_period|grant"},
    {.name = "value", .type = FIELD_VALUE},
    {.name = "currency", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "valid_from", .type = FIELD_TIME},
    {.name = "valid_until", .type = FIELD_TIME},
    {.name = "max_uses", .type = FIELD_INT, .about = "0: any number"},
    {.name = "used", .type = FIELD_INT},
    {.name = "once_per_customer", .type = FIELD_BOOL},
    {.name = "plan_ids", .type = FIELD_STRINGS},
    {.name = "metadata", .type = FIELD_MAP},
    {.name = "created_at", .type = FIELD_TIME},
    {.name = "updated_at", .type = FIELD_TIME},
    {.name = "archived_at", .type = FIELD_TIME},
    {.name = "etag", .type = FIELD_STRING},
    {.name = NULL},
};
static const struct schema COUPON = {"Coupon", COUPON_FIELDS};

static const struct field COUPON_CREATE_FIELDS[] = {
    {.name = "code", .type = FIELD_STRING, .flags = FIELD_REQUIRED, .max = CODE_MAX, .about = "letters, digits, - and _; capitals or not is the same"},
    {.name = "kind", .type = FIELD_STRING, .flags = FIELD_REQUIRED, .one_of = "percent|fixed|free_period|grant"},
    {.name = "value",
     .type = FIELD_VALUE,
     .flags = FIELD_REQUIRED,
     .about = "percent: \"15\" or \"12.5\"; fixed: an amount, with currency; free_period: P1M, P14D; grant: a grant, {\"features\":{…}}, or a "
              "feature's name"},
    {.name = "currency", .type = FIELD_STRING, .flags = FIELD_EMPTY | FIELD_NULL, .max = 3, .about = "of a fixed amount"},
    {.name = "valid_from", .type = FIELD_TIME},
    {.name = "valid_until", .type = FIELD_TIME, .about = "a date means the end of that day in the vendor's zone"},
    {.name = "max_uses", .type = FIELD_INT, .about = "0, or absent: any number"},
    {.name = "once_per_customer", .type = FIELD_BOOL},
    {.name = "plan_ids", .type = FIELD_STRINGS, .max = PLANS_MAX, .about = "plans it is for; none: all"},
    {.name = "metadata", .type = FIELD_MAP},
    {.name = NULL},
};
static const struct schema COUPON_CREATE = {"CouponCreate", COUPON_CREATE_FIELDS};
static const struct schema COUPON_UPDATE = {"CouponUpdate", COUPON_CREATE_FIELDS + 4 /* what it is worth stays: make another */};

/* ---- reading ----------------------------------------------------------------------------------------------------------- */

#define COUPON_COLUMNS                                                                                                                     \
    "id, code, kind, value, currency, valid_from, valid_until, max_uses, used, once_per_customer, plan_ids, metadata, created_at,"         \
    " updated_at, archived_at, rev"

static struct jv *coupon_print(const struct store_stmt *st)
{
    struct jv *v = jv_object(), *box = NULL;
    jv_set_str(v, "id", store_col_str(st, 0));
    jv_set_str(v, "code", store_col_str(st, 1));
    jv_set_str(v, "kind", store_col_str(st, 2));
    if (jv_parse(store_col_str(st, 3), &JV_LIMITS_TRUSTED, &box, NULL) == ERR_OK) /* in an array: a value alone is no document */
        jv_set(v, "value", jv_copy(jv_at(box, 0)));
    jv_free(box);
    jv_set_str(v, "currency", store_col_str(st, 4));
    jv_set_time(v, "valid_from", store_col_int(st, 5));
    jv_set_time(v, "valid_until", store_col_int(st, 6));
    jv_set_int(v, "max_uses", store_col_int(st, 7));
    jv_set_int(v, "used", store_col_int(st, 8));
    jv_set_bool(v, "once_per_customer", store_col_int(st, 9) != 0);
    api_set_json(v, "plan_ids", store_col_str(st, 10));
    api_set_json(v, "metadata", store_col_str(st, 11));
    jv_set_time(v, "created_at", store_col_int(st, 12));
    jv_set_time(v, "updated_at", store_col_int(st, 13));
    jv_set_time(v, "archived_at", store_col_int(st, 14));
    api_print_etag(v, store_col_int(st, 15));
    return v;
}

struct coupon_times {
    int64_t from, until, rev;
};

/* `by` is "id" or "code". *ret NULL: there is none. */
static enum err coupon_find(struct api *rq, const char *by, struct str value, bool with_archived, struct jv **ret, struct coupon_times *ret_times)
{
    struct store_stmt *st = NULL;
    bool row = false;
    *ret = NULL;
    enum err err = store_query(rq->store, &st, &rq->error,
                               strcmp(by, "id") == 0
                                   ? "SELECT " COUPON_COLUMNS " FROM coupons WHERE id=? AND vendor_id=? AND (archived_at=0 OR ?)"
                                   : "SELECT " COUPON_COLUMNS " FROM coupons WHERE code=? AND vendor_id=? AND (archived_at=0 OR ?)",
                               "szb", value, rq->vendor_id, with_archived);
    if (!err)
        err = store_step(st, &row, &rq->error);
    if (!err && row) {
        *ret = coupon_print(st);
        *ret_times = (struct coupon_times){store_col_int(st, 5), store_col_int(st, 6), store_col_int(st, 15)};
    }
    store_done(&st);
    return err;
}

static enum err coupon_load(struct api *rq, struct str id, bool with_archived, struct jv **ret, struct coupon_times *ret_times)
{
    enum err err = coupon_find(rq, "id", id, with_archived, ret, ret_times);
    return !err && !*ret ? api_not_found(rq, "coupon") : err;
}

static enum err coupon_answer(struct api *rq, struct str id, bool with_archived)
{
    struct coupon_times t;
    enum err err = coupon_load(rq, id, with_archived, &rq->out, &t);
    if (!err)
        api_set_etag(rq, t.rev);
    return err;
}

static enum err coupon_get(struct api *rq)
{
    return coupon_answer(rq, rq->params[0], true);
}

/* In capitals; false: no code. */
static bool code_normalise(struct str in, char ret[CODE_MAX + 1])
{
    in = str_trim(in);
    if (in.n < 1 || in.n > CODE_MAX)
        return false;
    for (size_t i = 0; i < in.n; i++) {
        char c = in.p[i];
        if (c >= 'a' && c <= 'z')
            c = (char)(c - 'a' + 'A');
        if (!((c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_'))
            return false;
        ret[i] = c;
    }
    ret[in.n] = '\0';
    return true;
}

static enum err coupon_list(struct api *rq)
{
    struct page page;
    struct store_stmt *st = NULL;
    struct strbuf code = {0}, archived = {0};
    char wanted[CODE_MAX + 1] = "";
    bool row;
    enum err err = api_page(rq, &page);
    if (err)
        return err;
    struct jv *items = api_list(rq);
    if (api_query(rq, "code", &code) && !code_normalise(sb_str(&code), wanted))
        snprintf(wanted, sizeof wanted, "?"); /* no code has it */
    bool is_archived = api_query(rq, "archived", &archived) && str_eq(sb_str(&archived), S("true"));
    err = store_query(rq->store, &st, &rq->error,
                      "SELECT " COUPON_COLUMNS " FROM coupons WHERE vendor_id=?1 AND (archived_at<>0)=?2 AND (?3='' OR code=?3)"
                      " AND (created_at, id) > (?4,?5) ORDER BY created_at, id LIMIT ?6",
                      "zbzizi", rq->vendor_id, is_archived, wanted, page.after_key, page.after_id, (int64_t)page.limit + 1);
    while (!err) {
        err = store_step(st, &row, &rq->error);
        if (err || !row || !api_page_take(&page, rq->out, store_col_int(st, 12), store_col_str(st, 0).p))
            break;
        jv_push(items, coupon_print(st));
    }
    store_done(&st);
    sb_free(&code);
    sb_free(&archived);
    return err;
}

/* ---- checks ------------------------------------------------------------------------------------------------------------ */

/* A number that came as one or as text. */
static struct str number_text(const struct jv *v, char buf[32])
{
    if (jv_type(v) != JV_INT)
        return jv_str(v);
    snprintf(buf, 32, "%lld", (long long)jv_int(v, 0));
    return str_c(buf);
}

static enum err check_grant_value(struct api *rq, const struct jv *value)
{
    if (jv_type(value) == JV_STRING)
        return ERR_OK; /* a feature */
    const struct jv *features = jv_get(value, "features");
    if (jv_type(features) == JV_NONE)
        return plans_check_grant(rq, value, NULL, "value");
    if (jv_type(features) != JV_OBJECT || jv_len(value) != 1 || jv_len(features) < 1 || jv_len(features) > FEATURES_MAX)
        return api_fail(rq, ERR_INVALID, "invalid_field", "value", "value: expected a grant, or {\"features\":{…}} with at most %d", FEATURES_MAX);
    return ERR_OK;
}

static enum err check_value(struct api *rq, struct str kind, const struct jv *value, struct str currency)
{
    struct error error = {0};
    struct period p;
    char buf[32];
    int64_t n;
    enum err err = ERR_OK;
    if (str_eq(kind, S("grant")) ? jv_type(value) == JV_INT : jv_type(value) == JV_OBJECT)
        return api_fail(rq, ERR_INVALID, "invalid_field", "value", "value: not what this kind takes");
    if (currency.n && !str_eq(kind, S("fixed")))
        return api_fail(rq, ERR_INVALID, "invalid_field", "currency", "currency: only a fixed amount has one");
    if (str_eq(kind, S("percent")))
        err = money_percent_parse(number_text(value, buf), &n, &error);
    else if (str_eq(kind, S("fixed"))) {
        if (money_digits(currency) < 0)
            return api_fail(rq, ERR_INVALID, currency.n ? "invalid_field" : "missing_field", "currency",
                            "currency: a fixed amount has one, an ISO 4217 code such as EUR");
        err = money_parse(number_text(value, buf), money_digits(currency), &n, &error);
    } else if (str_eq(kind, S("free_period")))
        err = jv_type(value) == JV_STRING ? period_parse(jv_str(value), &p, &error) : error_set(&error, ERR_INVALID, "expected a period such as P1M");
    else
        return check_grant_value(rq, value);
    if (err)
        return api_fail(rq, ERR_INVALID, "invalid_field", "value", "value: %s", error.text);
    return ERR_OK;
}

static enum err check_plans(struct api *rq)
{
    const struct jv *list = jv_get(rq->in, "plan_ids");
    for (size_t i = 0; i < jv_len(list); i++) {
        char at[API_FIELD_MAX];
        struct jv *plan = NULL;
        enum err err = plans_get(rq, jv_str(jv_at(list, i)), true, &plan);
        jv_free(plan);
        api_field(at, "plan_ids[%zu]", i);
        if (err == ERR_NOT_FOUND)
            return api_fail(rq, ERR_INVALID, "unknown_reference", at, "%s: no such object", at);
        if (err)
            return err;
    }
    return ERR_OK;
}

static enum err check_times(struct api *rq, struct coupon_times *t)
{
    enum err err = api_time_start(rq, rq->in, "valid_from", "valid_from", &t->from);
    if (!err)
        err = api_time_end(rq, rq->in, "valid_until", "valid_until", &t->until);
    if (!err && t->from && t->until && t->until <= t->from)
        err = api_fail(rq, ERR_INVALID, "invalid_window", "valid_until", "valid_until: not after valid_from");
    return err;
}

/* ---- create, update, archive ------------------------------------------------------------------------------------------- */

static enum err coupon_create(struct api *rq)
{
    char id[ID_MAX], code[CODE_MAX + 1];
    struct coupon_times t = {0};
    struct strbuf value = {0}, plans = {0}, metadata = {0};
    struct str kind = jv_get_str(rq->in, "kind"), currency = jv_get_str(rq->in, "currency");
    if (!code_normalise(jv_get_str(rq->in, "code"), code))
        return api_fail(rq, ERR_INVALID, "invalid_field", "code", "code: letters, digits, - and _");
    enum err err = check_value(rq, kind, jv_get(rq->in, "value"), currency);
    if (!err)
        err = check_plans(rq);
    if (!err)
        err = check_times(rq, &t);
    if (err)
        return err;
    id_new("cpn_", id);
    struct jv *box = jv_array();
    jv_push(box, jv_copy(jv_get(rq->in, "value")));
    jv_dump(box, &value);
    jv_free(box);
    struct str plans_text = api_in_json(rq, "plan_ids", &plans), metadata_text = api_in_json(rq, "metadata", &metadata);
    err = store_exec(rq->store, NULL, &rq->error,
                     "INSERT INTO coupons (id, vendor_id, code, kind, value, currency, valid_from, valid_until, max_uses, once_per_customer,"
                     " plan_ids, metadata, created_at, updated_at) VALUES (?,?,?,?,?,COALESCE(?,''),?,?,?,?,COALESCE(?,'[]'),COALESCE(?,'{}'),?,?)",
                     "zzzsssiiibssii", id, rq->vendor_id, code, kind, sb_str(&value), currency, t.from, t.until,
                     jv_get_int(rq->in, "max_uses", 0), jv_get_bool(rq->in, "once_per_customer", false), plans_text, metadata_text,
                     rq->now_s, rq->now_s);
    if (!err)
        err = coupon_answer(rq, str_c(id), false);
    if (!err) {
        rq->after = jv_copy(rq->out);
        api_created(rq, "/api/v1/coupons/", id);
    }
    sb_free(&value);
    sb_free(&plans);
    sb_free(&metadata);
    return err;
}

static enum err coupon_update(struct api *rq)
{
    struct coupon_times t;
    struct strbuf plans = {0}, metadata = {0};
    enum err err = coupon_load(rq, rq->params[0], false, &rq->before, &t);
    if (!err)
        err = api_check_etag(rq, t.rev);
    if (!err)
        err = check_plans(rq);
    if (!err)
        err = check_times(rq, &t);
    if (!err) {
        struct str plans_text = api_in_json(rq, "plan_ids", &plans), metadata_text = api_in_json(rq, "metadata", &metadata);
        err = store_exec(rq->store, NULL, &rq->error,
                         "UPDATE coupons SET valid_from=?, valid_until=?, max_uses=?, once_per_customer=?, plan_ids=COALESCE(?,plan_ids),"
                         " metadata=COALESCE(?,metadata), updated_at=?, rev=rev+1 WHERE id=? AND vendor_id=?",
                         "iiibssisz", t.from, t.until, jv_get_int(rq->in, "max_uses", jv_get_int(rq->before, "max_uses", 0)),
                         jv_get_bool(rq->in, "once_per_customer", jv_get_bool(rq->before, "once_per_customer", false)), plans_text,
                         metadata_text, rq->now_s, rq->params[0], rq->vendor_id);
    }
    if (!err)
        err = coupon_answer(rq, rq->params[0], false);
    if (!err)
        rq->after = jv_copy(rq->out);
    sb_free(&plans);
    sb_free(&metadata);
    return err;
}

static enum err coupon_delete(struct api *rq)
{
    struct coupon_times t;
    enum err err = coupon_load(rq, rq->params[0], false, &rq->before, &t);
    if (!err)
        err = api_check_etag(rq, t.rev);
    if (!err)
        err = store_exec(rq->store, NULL, &rq->error, "UPDATE coupons SET archived_at=?, updated_at=?, rev=rev+1 WHERE id=? AND vendor_id=?",
                         "iisz", rq->now_s, rq->now_s, rq->params[0], rq->vendor_id);
    return err;
}

/* ---- use --------------------------------------------------------------------------------------------------------------- */

static enum err refuse(struct api *rq, const char *code, const char *why)
{
    return api_fail(rq, ERR_CONFLICT, code, "coupon", "coupon: %s", why);
}

static enum err check_customer(struct api *rq, struct str id, struct str customer_id)
{
    struct store_stmt *st = NULL;
    bool row = false;
    enum err err =
        store_query(rq->store, &st, &rq->error, "SELECT 1 FROM coupon_uses WHERE coupon_id=? AND customer_id=?", "ss", id, customer_id);
    if (!err)
        err = store_step(st, &row, &rq->error);
    store_done(&st);
    return !err && row ? refuse(rq, "coupon_already_used", "the customer used it before") : err;
}

static enum err check_plan_restriction(struct api *rq, const struct jv *coupon, const struct jv *plan)
{
    const struct jv *list = jv_get(coupon, "plan_ids");
    for (size_t i = 0; i < jv_len(list); i++)
        if (str_eq(jv_str(jv_at(list, i)), jv_get_str(plan, "id")))
            return ERR_OK;
    return jv_len(list) ? refuse(rq, "coupon_not_applicable", "not for this plan") : ERR_OK;
}

/* What it is worth; fills the rest of u, whose `shown` is the coupon. */
static enum err coupon_value(struct api *rq, const struct jv *plan, int64_t subtotal, struct coupon_use *u)
{
    struct jv *value = jv_get(u->shown, "value");
    struct str kind = jv_get_str(u->shown, "kind"), currency = jv_get_str(u->shown, "currency");
    char buf[32];
    int64_t n;
    if (str_eq(kind, S("percent"))) {
        if (money_percent_parse(number_text(value, buf), &n, &rq->error))
            return ERR_INTERNAL;
        u->discount = money_share(subtotal, n);
    } else if (str_eq(kind, S("fixed"))) {
        if (!str_eq(currency, jv_get_str(jv_get(plan, "price"), "currency")))
            return refuse(rq, "coupon_not_applicable", "its amount is in another currency than the plan's price");
        if (money_parse(number_text(value, buf), money_digits(currency), &n, &rq->error))
            return ERR_INTERNAL;
        u->discount = n < subtotal ? n : subtotal;
    } else if (str_eq(kind, S("free_period"))) {
        struct period p;
        if (period_parse(jv_str(value), &p, &rq->error))
            return ERR_INTERNAL;
        bool has_trial_days = jv_get_int(plan, "trial_days", 0) > 0;
        if (str_eq(jv_get_str(plan, "type"), S("perpetual")) || (!has_trial_days && !jv_get_str(plan, "period").n))
            return refuse(rq, "coupon_not_applicable", "the plan has no period that could be longer");
        if (has_trial_days && p.months)
            return refuse(rq, "coupon_not_applicable", "a trial is made longer by days only");
        snprintf(u->free_period, sizeof u->free_period, "%.*s", STR(jv_str(value)));
    } else if (jv_type(value) == JV_STRING) {
        u->features = jv_object();
        jv_set_bool(u->features, jv_get_c(u->shown, "value", ""), true);
    } else if (jv_type(jv_get(value, "features")) == JV_OBJECT) {
        u->features = jv_copy(jv_get(value, "features"));
    } else {
        u->grant = jv_copy(value);
    }
    return ERR_OK;
}

enum err coupon_look(struct api *rq, struct str code, struct str customer_id, const struct jv *plan, int64_t subtotal, struct coupon_use *ret)
{
    char wanted[CODE_MAX + 1];
    struct coupon_times t = {0};
    struct coupon_use u = {.discount = 0};
    if (!code_normalise(code, wanted))
        return refuse(rq, "coupon_unknown", "no such code");
    enum err err = coupon_find(rq, "code", str_c(wanted), false, &u.shown, &t);
    if (!err && !u.shown)
        err = refuse(rq, "coupon_unknown", "no such code");
    if (err)
        return err;
    struct str id = jv_get_str(u.shown, "id");
    snprintf(u.id, sizeof u.id, "%.*s", STR(id));
    if (t.until && rq->now_s >= t.until)
        err = refuse(rq, "coupon_expired", "it is no longer valid");
    else if (t.from && rq->now_s < t.from)
        err = refuse(rq, "coupon_not_yet_valid", "it is not valid yet");
    else if (jv_get_int(u.shown, "max_uses", 0) && jv_get_int(u.shown, "used", 0) >= jv_get_int(u.shown, "max_uses", 0))
        err = refuse(rq, "coupon_used_up", "it was used as often as it may be");
    else
        err = check_plan_restriction(rq, u.shown, plan);
    if (!err && jv_get_bool(u.shown, "once_per_customer", false))
        err = check_customer(rq, id, customer_id);
    if (!err)
        err = coupon_value(rq, plan, subtotal, &u);
    if (err)
        coupon_use_free(&u);
    else
        *ret = u;
    return err;
}

enum err coupon_take(struct api *rq, const struct coupon_use *u, const char *order_id, struct str customer_id)
{
    int64_t changes = 0;
    enum err err = store_exec(rq->store, &changes, &rq->error,
                              "UPDATE coupons SET used=used+1 WHERE id=? AND vendor_id=? AND (max_uses=0 OR used<max_uses)", "zz", u->id,
                              rq->vendor_id);
    if (!err && changes != 1)
        return refuse(rq, "coupon_used_up", "it was used as often as it may be");
    if (!err)
        err = store_exec(rq->store, NULL, &rq->error, "INSERT INTO coupon_uses (coupon_id, order_id, customer_id, at) VALUES (?,?,?,?)", "zzsi",
                         u->id, order_id, customer_id, rq->now_s);
    return err;
}

enum err coupon_give_back(struct api *rq, struct str order_id)
{
    enum err err = store_exec(rq->store, NULL, &rq->error,
                              "UPDATE coupons SET used=used-1 WHERE vendor_id=? AND used>0 AND id IN (SELECT coupon_id FROM coupon_uses WHERE order_id=?)",
                              "zs", rq->vendor_id, order_id);
    if (!err)
        err = store_exec(rq->store, NULL, &rq->error, "DELETE FROM coupon_uses WHERE order_id=?", "s", order_id);
    return err;
}

void coupon_use_free(struct coupon_use *u)
{
    jv_free(u->shown);
    jv_free(u->grant);
    jv_free(u->features);
    *u = (struct coupon_use){.discount = 0};
}

static const struct query_param COUPON_PARAMS[] = {{"code", "of one code"}, {"archived", "true: those that were deleted"}, {NULL, NULL}};

#define COUPONS "/api/v1/coupons"
const struct route COUPON_ROUTES[] = {
    {HEAD_GET, COUPONS, coupon_list, ROLE_LICENSES, ROUTE_LIST, NULL, &COUPON, COUPON_PARAMS, "coupon.list", "Coupons"},
    {HEAD_POST, COUPONS, coupon_create, ROLE_ADMIN, 0, &COUPON_CREATE, &COUPON, NULL, "coupon.create", "Make a coupon"},
    {HEAD_GET, COUPONS "/{id}", coupon_get, ROLE_LICENSES, 0, NULL, &COUPON, NULL, "coupon.get", "One coupon"},
    {HEAD_PATCH, COUPONS "/{id}", coupon_update, ROLE_ADMIN, 0, &COUPON_UPDATE, &COUPON, NULL, "coupon.update",
     "Change for whom and how long a coupon is good"},
    {HEAD_DELETE, COUPONS "/{id}", coupon_delete, ROLE_ADMIN, 0, NULL, NULL, NULL, "coupon.delete", "End a coupon"},
    {.path = NULL},
};
