/* Orders: their sums, their number, and the way of their license from inactive to active. Payments come in by api_hooks.c. */
#include "orders.h"

#include <stdio.h>
#include <string.h>

#include "api_routes.h"
#include "coupons.h"
#include "eventlog.h"
#include "licensemodel.h"
#include "licenses.h"
#include "money.h"
#include "plans.h"
#include "pullgate/clock.h"
#include "pullgate/credential.h"
#include "pullgate/mem.h"
#include "pullgate/period.h"

#define COUNT_MAX   1000000 /* instances or users of one order */
#define PERIODS_MAX 1200    /* of the plan's, that one order pays */
#define DAY_S       INT64_C(86400)

/* ---- schemas ----------------------------------------------------------------------------------------------------------- */

static const struct field PAYMENT_FIELDS[] = {
    {.name = "event", .type = FIELD_STRING, .one_of = "payment_succeeded|payment_failed"},
    {.name = "transaction_id", .type = FIELD_STRING},
    {.name = "amount", .type = FIELD_STRING, .flags = FIELD_EMPTY, .about = "as the payment system told it"},
    {.name = "reason", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "result", .type = FIELD_STRING, .about = "what it did to the license"},
    {.name = "at", .type = FIELD_TIME},
    {.name = NULL},
};
static const struct field ORDER_FIELDS[] = {
    {.name = "id", .type = FIELD_STRING},
    {.name = "number", .type = FIELD_STRING, .about = "per vendor, without gaps: 2026-000123"},
    {.name = "status", .type = FIELD_STRING, .one_of = "pending|paid|approved|cancelled"},
    {.name = "customer_id", .type = FIELD_STRING},
    {.name = "plan_id", .type = FIELD_STRING},
    {.name = "license_id", .type = FIELD_STRING},
    {.name = "name", .type = FIELD_STRING, .about = "of the license"},
    {.name = "instances", .type = FIELD_INT},
    {.name = "users", .type = FIELD_INT},
    {.name = "period", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "periods", .type = FIELD_INT, .about = "how many of the plan's"},
    {.name = "currency", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "subtotal", .type = FIELD_STRING},
    {.name = "discount", .type = FIELD_STRING},
    {.name = "total", .type = FIELD_STRING},
    {.name = "coupon", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "free_period", .type = FIELD_STRING, .flags = FIELD_EMPTY, .about = "that a coupon adds when the license begins"},
    {.name = "snapshot", .type = FIELD_MAP, .about = "plan and coupon as they were"},
    {.name = "transaction_id", .type = FIELD_STRING, .flags = FIELD_EMPTY, .about = "of the last payment"},
    {.name = "payment_ref", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "payments", .type = FIELD_LIST, .sub = PAYMENT_FIELDS},
    {.name = "billing", .type = FIELD_MAP},
    {.name = "terms_version", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "terms_accepted_at", .type = FIELD_TIME},
    {.name = "metadata", .type = FIELD_MAP},
    {.name = "source", .type = FIELD_STRING, .one_of = "vendor|portal"},
    {.name = "actor", .type = FIELD_STRING},
    {.name = "reason", .type = FIELD_STRING, .flags = FIELD_EMPTY, .about = "of the approval or cancellation"},
    {.name = "created_at", .type = FIELD_TIME},
    {.name = "updated_at", .type = FIELD_TIME},
    {.name = "paid_at", .type = FIELD_TIME},
    {.name = "approved_at", .type = FIELD_TIME},
    {.name = "cancelled_at", .type = FIELD_TIME},
    {.name = "etag", .type = FIELD_STRING},
    {.name = "key", .type = FIELD_SECRET, .flags = FIELD_OPTIONAL, .about = "of the license; shown once, when the order is made"},
    {.name = NULL},
};
const struct schema ORDER = {"Order", ORDER_FIELDS};

static const struct field ORDER_CREATE_FIELDS[] = {
    {.name = "customer_id", .type = FIELD_STRING, .flags = FIELD_REQUIRED, .max = 64},
    {.name = "plan_id", .type = FIELD_STRING, .flags = FIELD_REQUIRED, .max = 64},
    {.name = "name", .type = FIELD_STRING, .about = "of the license; the plan's name and the order's number when absent"},
    {.name = "instances", .type = FIELD_INT, .min = 1, .max = COUNT_MAX, .about = "becomes max_instances; 1 is paid when absent"},
    {.name = "users", .type = FIELD_INT, .max = COUNT_MAX, .about = "becomes the custom limit max_users"},
    {.name = "period", .type = FIELD_STRING, .flags = FIELD_EMPTY | FIELD_NULL, .max = 20, .about = "the plan's, or a multiple of it"},
    {.name = "coupon", .type = FIELD_STRING, .flags = FIELD_EMPTY | FIELD_NULL, .max = 64},
    {.name = "payment_ref", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "transaction_id", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "billing", .type = FIELD_MAP, .about = "address and the like; kept, not read"},
    {.name = "terms_version", .type = FIELD_STRING, .flags = FIELD_EMPTY, .about = "of the terms that the customer accepted; the time is kept with it"},
    {.name = "environment", .type = FIELD_STRING, .flags = FIELD_EMPTY | FIELD_NULL},
    {.name = "metadata", .type = FIELD_MAP},
    {.name = NULL},
};
static const struct schema ORDER_CREATE = {"OrderCreate", ORDER_CREATE_FIELDS};

static const struct field ORDER_APPROVE_FIELDS[] = {
    {.name = "reason", .type = FIELD_STRING, .flags = FIELD_EMPTY, .max = 500},
    {.name = "transaction_id", .type = FIELD_STRING, .flags = FIELD_EMPTY, .about = "of the payment that it is approved for: the order's first"},
    {.name = NULL},
};
static const struct schema ORDER_APPROVE = {"OrderApprove", ORDER_APPROVE_FIELDS};
static const struct field ORDER_REASON_FIELDS[] = {
    {.name = "reason", .type = FIELD_STRING, .flags = FIELD_EMPTY, .max = 500},
    {.name = NULL},
};
static const struct schema ORDER_CANCEL = {"OrderCancel", ORDER_REASON_FIELDS};
static const struct schema LICENSE_ISSUE = {"LicenseIssue", ORDER_REASON_FIELDS};

/* ---- reading ----------------------------------------------------------------------------------------------------------- */

#define ORDER_COLUMNS                                                                                                                      \
    "id, number, status, customer_id, plan_id, license_id, name, instances, users, period, periods, currency, subtotal, discount,"         \
    " coupon_code, free_period, snapshot, transaction_id, payment_ref, billing, terms_version, terms_accepted_at, metadata, source, actor," \
    " reason, created_at, updated_at, paid_at, approved_at, cancelled_at, rev"
#define COL_CREATED 26
#define COL_REV     31

static void set_amount(struct jv *v, const char *name, int64_t minor, struct str currency)
{
    char text[MONEY_TEXT_MAX];
    int digits = currency.n ? money_digits(currency) : 2;
    jv_set_c(v, name, money_text(minor, digits < 0 ? 2 : digits, text));
}

static struct jv *order_print(const struct store_stmt *st)
{
    struct jv *v = jv_object();
    struct str currency = store_col_str(st, 11);
    jv_set_str(v, "id", store_col_str(st, 0));
    jv_set_str(v, "number", store_col_str(st, 1));
    jv_set_str(v, "status", store_col_str(st, 2));
    jv_set_str(v, "customer_id", store_col_str(st, 3));
    jv_set_str(v, "plan_id", store_col_str(st, 4));
    jv_set_str(v, "license_id", store_col_str(st, 5));
    jv_set_str(v, "name", store_col_str(st, 6));
    jv_set_int(v, "instances", store_col_int(st, 7));
    jv_set_int(v, "users", store_col_int(st, 8));
    jv_set_str(v, "period", store_col_str(st, 9));
    jv_set_int(v, "periods", store_col_int(st, 10));
    jv_set_str(v, "currency", currency);
    set_amount(v, "subtotal", store_col_int(st, 12), currency);
    set_amount(v, "discount", store_col_int(st, 13), currency);
    set_amount(v, "total", store_col_int(st, 12) - store_col_int(st, 13), currency);
    jv_set_str(v, "coupon", store_col_str(st, 14));
    jv_set_str(v, "free_period", store_col_str(st, 15));
    api_set_json(v, "snapshot", store_col_str(st, 16));
    jv_set_str(v, "transaction_id", store_col_str(st, 17));
    jv_set_str(v, "payment_ref", store_col_str(st, 18));
    api_set_json(v, "billing", store_col_str(st, 19));
    jv_set_str(v, "terms_version", store_col_str(st, 20));
    jv_set_time(v, "terms_accepted_at", store_col_int(st, 21));
    api_set_json(v, "metadata", store_col_str(st, 22));
    jv_set_str(v, "source", store_col_str(st, 23));
    jv_set_str(v, "actor", store_col_str(st, 24));
    jv_set_str(v, "reason", store_col_str(st, 25));
    jv_set_time(v, "created_at", store_col_int(st, COL_CREATED));
    jv_set_time(v, "updated_at", store_col_int(st, 27));
    jv_set_time(v, "paid_at", store_col_int(st, 28));
    jv_set_time(v, "approved_at", store_col_int(st, 29));
    jv_set_time(v, "cancelled_at", store_col_int(st, 30));
    api_print_etag(v, store_col_int(st, COL_REV));
    return v;
}

static enum err order_add_payments(struct api *rq, struct jv *order)
{
    struct store_stmt *st = NULL;
    struct jv *list = jv_array();
    bool row;
    enum err err = store_query(rq->store, &st, &rq->error,
                               "SELECT event, transaction_id, amount, reason, result, at FROM payments WHERE order_id=? ORDER BY id", "s",
                               jv_get_str(order, "id"));
    while (!err) {
        err = store_step(st, &row, &rq->error);
        if (err || !row)
            break;
        struct jv *v = jv_object();
        jv_set_str(v, "event", store_col_str(st, 0));
        jv_set_str(v, "transaction_id", store_col_str(st, 1));
        jv_set_str(v, "amount", store_col_str(st, 2));
        jv_set_str(v, "reason", store_col_str(st, 3));
        jv_set_str(v, "result", store_col_str(st, 4));
        jv_set_time(v, "at", store_col_int(st, 5));
        jv_push(list, v);
    }
    store_done(&st);
    jv_set(order, "payments", list);
    return err;
}

void order_free(struct order *o)
{
    jv_free(o->plan);
    *o = (struct order){.total = 0};
}

static void text_of(char *ret, size_t n, struct str s)
{
    snprintf(ret, n, "%.*s", STR(s));
}

enum err order_load(struct api *rq, struct str id, struct order *ret, struct jv **shown)
{
    struct store_stmt *st = NULL;
    struct jv *v = NULL;
    bool row = false;
    enum err err = store_query(rq->store, &st, &rq->error, "SELECT " ORDER_COLUMNS " FROM orders WHERE id=? AND vendor_id=?", "sz", id,
                               rq->vendor_id);
    if (!err)
        err = store_step(st, &row, &rq->error);
    if (!err && !row)
        err = api_not_found(rq, "order");
    if (!err) {
        struct order o = {.subtotal = store_col_int(st, 12),
                          .total = store_col_int(st, 12) - store_col_int(st, 13),
                          .paid_at = store_col_int(st, 28),
                          .rev = store_col_int(st, COL_REV)};
        text_of(o.id, sizeof o.id, store_col_str(st, 0));
        text_of(o.number, sizeof o.number, store_col_str(st, 1));
        text_of(o.status, sizeof o.status, store_col_str(st, 2));
        text_of(o.customer_id, sizeof o.customer_id, store_col_str(st, 3));
        text_of(o.plan_id, sizeof o.plan_id, store_col_str(st, 4));
        text_of(o.license_id, sizeof o.license_id, store_col_str(st, 5));
        text_of(o.period, sizeof o.period, store_col_str(st, 9));
        text_of(o.currency, sizeof o.currency, store_col_str(st, 11));
        text_of(o.coupon_code, sizeof o.coupon_code, store_col_str(st, 14));
        text_of(o.free_period, sizeof o.free_period, store_col_str(st, 15));
        v = order_print(st);
        o.plan = jv_copy(jv_get(jv_get(v, "snapshot"), "plan"));
        o.manual_validation = jv_get_bool(o.plan, "manual_validation", true); /* no snapshot that can be read: a person looks */
        *ret = o;
    }
    store_done(&st);
    if (!err && shown)
        err = order_add_payments(rq, v);
    if (err && v)
        order_free(ret);
    if (!err && shown)
        *shown = v;
    else
        jv_free(v);
    return err;
}

enum err order_license(struct api *rq, const struct order *o, struct jv **ret)
{
    struct jv *license = NULL;
    enum err err = licenses_shown(rq, str_c(o->license_id), &license);
    if (err == ERR_NOT_FOUND) {
        rq->code = NULL;
        rq->error = (struct error){0};
        err = ERR_OK;
    }
    if (!err)
        *ret = license;
    return err;
}

enum err order_answer(struct api *rq, struct str id)
{
    struct order o = {.total = 0};
    struct jv *shown = NULL;
    enum err err = order_load(rq, id, &o, &shown);
    if (err)
        return err;
    api_set_etag(rq, o.rev);
    order_free(&o);
    jv_free(rq->out);
    rq->out = shown;
    return ERR_OK;
}

static enum err order_get(struct api *rq)
{
    return order_answer(rq, rq->params[0]);
}

static const char *text_or_empty(const struct strbuf *b)
{
    return b->n ? b->p : "";
}

static enum err order_list(struct api *rq)
{
    static const char *const NAMES[] = {"number", "customer_id", "status", "transaction_id", "plan_id", "license_id"};
    struct strbuf f[sizeof NAMES / sizeof *NAMES] = {{0}};
    struct page page;
    struct store_stmt *st = NULL;
    bool row;
    enum err err = api_page(rq, &page);
    if (err)
        return err;
    struct jv *items = api_list(rq);
    for (size_t i = 0; i < sizeof NAMES / sizeof *NAMES; i++)
        api_query(rq, NAMES[i], &f[i]);
    err = store_query(rq->store, &st, &rq->error,
                      "SELECT " ORDER_COLUMNS " FROM orders o WHERE vendor_id=?1 AND (?2='' OR number=?2) AND (?3='' OR customer_id=?3)"
                      " AND (?4='' OR status=?4) AND (?5='' OR transaction_id=?5 OR id IN (SELECT order_id FROM payments WHERE vendor_id=?1 AND"
                      " transaction_id=?5)) AND (?6='' OR plan_id=?6) AND (?7='' OR license_id=?7) AND (created_at, id) > (?8,?9)"
                      " ORDER BY created_at, id LIMIT ?10",
                      "zzzzzzzizi", rq->vendor_id, text_or_empty(&f[0]), text_or_empty(&f[1]), text_or_empty(&f[2]), text_or_empty(&f[3]),
                      text_or_empty(&f[4]), text_or_empty(&f[5]), page.after_key, page.after_id, (int64_t)page.limit + 1);
    while (!err) {
        err = store_step(st, &row, &rq->error);
        if (err || !row || !api_page_take(&page, rq->out, store_col_int(st, COL_CREATED), store_col_str(st, 0).p))
            break;
        jv_push(items, order_print(st));
    }
    store_done(&st);
    for (size_t i = 0; !err && i < jv_len(items); i++)
        err = order_add_payments(rq, jv_at(items, i));
    for (size_t i = 0; i < sizeof NAMES / sizeof *NAMES; i++)
        sb_free(&f[i]);
    return err;
}

/* ---- sums -------------------------------------------------------------------------------------------------------------- */

/* How many of the plan's periods the order's is; 1 where there is none. */
static enum err periods_of(struct api *rq, struct str plan_period, struct str period, int64_t *ret)
{
    struct period base, p;
    struct error error = {0};
    int64_t n = 0;
    if (!period.n) {
        *ret = 1;
        return ERR_OK;
    }
    if (period_parse(period, &p, &error))
        return api_fail(rq, ERR_INVALID, "invalid_field", "period", "period: %s", error.text);
    if (!plan_period.n || period_parse(plan_period, &base, NULL))
        return api_fail(rq, ERR_INVALID, "invalid_field", "period", "period: the plan has none");
    int64_t base_s = base.days * DAY_S + base.seconds, s = p.days * DAY_S + p.seconds;
    if (base.months && !base_s && !s && p.months % base.months == 0)
        n = p.months / base.months;
    else if (!base.months && base_s && !p.months && s % base_s == 0)
        n = s / base_s;
    else if (str_eq(period, plan_period))
        n = 1;
    if (n < 1 || n > PERIODS_MAX)
        return api_fail(rq, ERR_INVALID, "invalid_field", "period", "period: not a multiple of the plan's, %.*s", STR(plan_period));
    *ret = n;
    return ERR_OK;
}

struct sums {
    int64_t instances, users, periods, subtotal;
    char currency[4];
};

/* instances and users at their prices, for each period. */
static enum err sums_of(struct api *rq, const struct jv *plan, const struct jv *in, struct sums *ret)
{
    struct sums s = {.instances = jv_get_int(in, "instances", 1), .users = jv_get_int(in, "users", 0)};
    const struct jv *price = jv_get(plan, "price");
    struct str currency = jv_get_str(price, "currency");
    int64_t amount = 0, user_amount = 0, one = 0, other = 0;
    struct error error = {0};
    enum err err = periods_of(rq, jv_get_str(plan, "period"), jv_get_str(in, "period"), &s.periods);
    if (err)
        return err;
    if (currency.n) {
        text_of(s.currency, sizeof s.currency, currency);
        int digits = money_digits(currency);
        if (money_parse(jv_get_str(price, "amount"), digits, &amount, &rq->error) ||
            money_parse(jv_get_str(price, "user_amount"), digits, &user_amount, &rq->error))
            return ERR_INTERNAL;
    }
    if (money_times(amount, s.instances, &one, &error) || money_times(user_amount, s.users, &other, &error) ||
        money_times(one + other, s.periods, &s.subtotal, &error))
        return api_fail(rq, ERR_INVALID, "invalid_field", "instances", "instances: %s", error.text);
    *ret = s;
    return ERR_OK;
}

/* ---- numbers ----------------------------------------------------------------------------------------------------------- */

/* The year that it is for the vendor. */
static int year_of(struct api *rq)
{
    char date[CLOCK_RFC3339_MAX], text[24];
    int year = 1970;
    (void)sscanf(clock_date(rq->now_s, date), "%d", &year);
    for (int y = year + 1; y >= year; y--) {
        int64_t start;
        snprintf(text, sizeof text, "%04d-01-01", y);
        if (clock_parse_start(str_c(text), api_zone(rq), &start, NULL) == ERR_OK && start <= rq->now_s)
            return y;
    }
    return year - 1;
}

static enum err order_number(struct api *rq, char ret[32])
{
    struct store_stmt *st = NULL;
    bool row = false;
    int64_t n = 0;
    int year = year_of(rq);
    enum err err = store_exec(rq->store, NULL, &rq->error,
                              "INSERT INTO order_numbers (vendor_id, year, n) VALUES (?,?,1) ON CONFLICT (vendor_id, year) DO UPDATE SET n=n+1", "zi",
                              rq->vendor_id, (int64_t)year);
    if (!err)
        err = store_query(rq->store, &st, &rq->error, "SELECT n FROM order_numbers WHERE vendor_id=? AND year=?", "zi", rq->vendor_id,
                          (int64_t)year);
    if (!err)
        err = store_step(st, &row, &rq->error);
    if (!err && row)
        n = store_col_int(st, 0);
    store_done(&st);
    snprintf(ret, 32, "%04d-%06lld", year, (long long)n);
    return err;
}

/* ---- making ------------------------------------------------------------------------------------------------------------ */

static enum err order_event(struct api *rq, const char *type, const char *order_id, const char *customer_id, const char *license_id,
                            const struct jv *data)
{
    struct event_record e = {.vendor_id = rq->vendor_id,
                             .type = type,
                             .actor = rq->actor,
                             .customer_id = customer_id,
                             .license_id = license_id,
                             .object_id = order_id,
                             .data = data};
    return eventlog_put(rq->store, &e, &rq->error);
}

/* What a coupon adds to the license. */
static void add_coupon(struct jv *license, const struct coupon_use *u)
{
    if (u->grant) {
        struct jv *grants = jv_get(license, "grants");
        if (jv_type(grants) != JV_ARRAY) {
            jv_set(license, "grants", jv_array());
            grants = jv_get(license, "grants");
        }
        struct jv *grant = jv_copy(u->grant);
        jv_set_c(grant, "origin", "coupon");
        jv_push(grants, grant);
    }
    if (u->features) {
        struct jv *features = jv_get(license, "features");
        for (void *it = jv_iter(u->features); it; it = jv_iter_next(u->features, it))
            jv_set(features, jv_iter_key(it), jv_copy(jv_iter_value(it)));
    }
    int64_t trial_days = jv_get_int(license, "trial_days", 0);
    struct period p;
    if (trial_days && u->free_period[0] && period_parse(str_c(u->free_period), &p, NULL) == ERR_OK)
        jv_set_int(license, "trial_days", trial_days + p.days + p.seconds / DAY_S);
}

/* The body of the license that the order makes. It runs from its activation, not from the order. */
static enum err license_body(struct api *rq, const struct jv *plan, const struct jv *in, struct str customer_id, const char *number,
                             const struct coupon_use *u, struct jv **ret)
{
    struct jv *v = jv_object(), *limits = jv_object();
    struct strbuf name = {0};
    if (jv_get_str(in, "name").n)
        sb_add(&name, jv_get_str(in, "name"));
    else
        sb_addf(&name, "%.*s %s", STR(str_sub(jv_get_str(plan, "name"), 0, 150)), number);
    jv_set_str(v, "customer_id", customer_id);
    jv_set_str(v, "application_id", jv_get_str(plan, "application_id"));
    jv_set_str(v, "plan_id", jv_get_str(plan, "id"));
    jv_set_str(v, "name", sb_str(&name));
    jv_set_c(v, "status", "inactive");
    jv_set_c(v, "order_number", number);
    if (jv_get_int(in, "instances", 0))
        jv_set_int(limits, "max_instances", jv_get_int(in, "instances", 0));
    if (jv_get_int(in, "users", 0)) {
        struct jv *custom = jv_object();
        jv_set_int(custom, "max_users", jv_get_int(in, "users", 0));
        jv_set(limits, "custom", custom);
    }
    jv_set(v, "limits", limits);
    static const char *const COPIED[] = {"period", "environment", "transaction_id", "metadata"};
    for (size_t i = 0; i < sizeof COPIED / sizeof *COPIED; i++)
        if (jv_type(jv_get(in, COPIED[i])) > JV_NULL && (jv_type(jv_get(in, COPIED[i])) != JV_STRING || jv_get_str(in, COPIED[i]).n))
            jv_set(v, COPIED[i], jv_copy(jv_get(in, COPIED[i])));
    enum err err = plan_apply(rq, v);
    if (!err) {
        jv_del(v, "expires_at"); /* order_begin() */
        jv_del(v, "anchor_day");
        add_coupon(v, u);
    }
    sb_free(&name);
    if (err)
        jv_free(v);
    else
        *ret = v;
    return err;
}

static enum err order_insert(struct api *rq, const char *id, const char *number, const struct jv *plan, const struct jv *in,
                             struct str customer_id, struct str license_id, const struct sums *s, const struct coupon_use *u, const char *source)
{
    struct strbuf snapshot = {0}, billing = {0}, metadata = {0};
    struct jv *doc = jv_object();
    struct str terms = jv_get_str(in, "terms_version"), period = jv_get_str(in, "period");
    bool has_trial_days = jv_get_int(plan, "trial_days", 0) > 0;
    jv_set(doc, "plan", jv_copy(plan));
    jv_set(doc, "coupon", u->shown ? jv_copy(u->shown) : jv_null());
    jv_dump(doc, &snapshot);
    jv_free(doc);
    if (jv_type(jv_get(in, "billing")) == JV_OBJECT)
        jv_dump(jv_get(in, "billing"), &billing);
    if (jv_type(jv_get(in, "metadata")) == JV_OBJECT)
        jv_dump(jv_get(in, "metadata"), &metadata);
    enum err err = store_exec(
        rq->store, NULL, &rq->error,
        "INSERT INTO orders (id, vendor_id, number, customer_id, plan_id, license_id, status, name, instances, users, period, periods,"
        " currency, subtotal, discount, coupon_id, coupon_code, free_period, snapshot, transaction_id, payment_ref, billing, terms_version,"
        " terms_accepted_at, metadata, source, actor, created_at, updated_at)"
        " VALUES (?,?,?,?,?,?,'pending',?,?,?,?,?,?,?,?,?,COALESCE(?,''),?,?,COALESCE(?,''),COALESCE(?,''),?,COALESCE(?,''),?,?,?,?,?,?)",
        "zzzssssiisiziizszsssssiszzii", id, rq->vendor_id, number, customer_id, jv_get_str(plan, "id"), license_id, jv_get_str(in, "name"),
        s->instances, s->users, period.n ? period : jv_get_str(plan, "period"), s->periods, s->currency, s->subtotal, u->discount, u->id,
        jv_get_str(u->shown, "code"), has_trial_days ? "" : u->free_period, sb_str(&snapshot), jv_get_str(in, "transaction_id"),
        jv_get_str(in, "payment_ref"), billing.n ? sb_str(&billing) : S("{}"), terms, terms.n ? rq->now_s : 0,
        metadata.n ? sb_str(&metadata) : S("{}"), source, rq->actor, rq->now_s, rq->now_s);
    sb_free(&snapshot);
    sb_free(&billing);
    sb_free(&metadata);
    return err;
}

static enum err order_check_customer(struct api *rq, struct str customer_id)
{
    struct strbuf vendor = {0};
    bool found = false;
    enum err err = api_lookup(rq, "SELECT vendor_id FROM customers WHERE id=? AND archived_at=0", customer_id, &vendor, &found);
    if (!err && (!found || !str_eq_c(sb_str(&vendor), rq->vendor_id)))
        err = api_fail(rq, ERR_INVALID, "unknown_reference", "customer_id", "customer_id: no such object");
    sb_free(&vendor);
    return err;
}

enum err order_make(struct api *rq, const struct jv *in, struct str customer_id, const char *source, bool only_visible)
{
    struct jv *plan = NULL, *body = NULL, *key = NULL, *named = jv_copy(in);
    struct coupon_use use = {.discount = 0};
    struct sums s = {.instances = 0};
    struct strbuf license_id = {0};
    char id[ID_MAX], number[32];
    enum err err = order_check_customer(rq, customer_id);
    if (!err) {
        err = plans_get(rq, jv_get_str(in, "plan_id"), false, &plan);
        if (err == ERR_NOT_FOUND || (!err && only_visible && !jv_get_bool(plan, "visible", false)))
            err = api_fail(rq, ERR_INVALID, "unknown_reference", "plan_id", "plan_id: no such object");
    }
    if (!err)
        err = sums_of(rq, plan, in, &s);
    if (!err && jv_get_str(in, "coupon").n)
        err = coupon_look(rq, jv_get_str(in, "coupon"), customer_id, plan, s.subtotal, &use);
    if (!err)
        err = order_number(rq, number);
    if (!err)
        err = license_body(rq, plan, in, customer_id, number, &use, &body);
    if (!err)
        err = licenses_make(rq, body, "order");
    if (err)
        goto out;
    id_new("ord_", id);
    jv_set(named, "name", jv_copy(jv_get(body, "name")));
    sb_add(&license_id, jv_get_str(rq->out, "id"));
    if (jv_get_str(rq->out, "key").n)
        key = jv_copy(jv_get(rq->out, "key"));
    err = order_insert(rq, id, number, plan, named, customer_id, sb_str(&license_id), &s, &use, source);
    if (!err && use.shown)
        err = coupon_take(rq, &use, id, customer_id);
    /* What is to be paid renews by its payments, not by the clock alone. */
    if (!err)
        err = store_exec(rq->store, NULL, &rq->error, "UPDATE licenses SET order_id=?, renew_needs_payment=? WHERE id=? AND vendor_id=?", "zbsz", id,
                         s.subtotal > use.discount, sb_str(&license_id), rq->vendor_id);
    if (!err) /* counts that were ordered, and what a coupon gave, are not the plan's to take away */
        err = plans_keep_own(rq, sb_str(&license_id), plan);
    if (!err)
        err = order_answer(rq, str_c(id));
    if (!err) {
        char *customer = str_dup(customer_id);
        err = order_event(rq, "order.created", id, customer, license_id.p, rq->out);
        mem_free(customer);
    }
    if (!err) {
        jv_free(rq->before);
        jv_free(rq->after);
        rq->before = NULL;
        rq->after = jv_copy(rq->out);
        if (key)
            jv_set(rq->out, "key", jv_copy(key));
        api_created(rq, "/api/v1/orders/", id);
    }
out:
    jv_free(plan);
    jv_free(body);
    jv_free(key);
    jv_free(named);
    coupon_use_free(&use);
    sb_free(&license_id);
    return err;
}

static enum err order_create(struct api *rq)
{
    return order_make(rq, rq->in, jv_get_str(rq->in, "customer_id"), "vendor", false);
}

/* ---- what becomes of it -------------------------------------------------------------------------------------------------- */

/* Terms that an activation does not begin by itself. */
static enum err order_begin_terms(struct api *rq, const struct order *o)
{
    struct plan_terms t = {0};
    if (str_eq(jv_get_str(o->plan, "type"), S("subscription")))
        return ERR_OK;
    enum err err = plans_terms_from(rq, o->plan, str_c(o->period), rq->now_s, &t);
    if (!err && (t.expires_at || t.updates_until))
        err = store_exec(rq->store, NULL, &rq->error,
                         "UPDATE licenses SET expires_at=CASE WHEN expires_at=0 THEN ?1 ELSE expires_at END,"
                         " updates_until=CASE WHEN ?2<>0 THEN ?2 ELSE updates_until END,"
                         " anchor_day=CASE WHEN expires_at=0 THEN ?3 ELSE anchor_day END WHERE id=?4 AND vendor_id=?5",
                         "iiizz", t.expires_at, t.updates_until, (int64_t)t.anchor_day, o->license_id, rq->vendor_id);
    return err;
}

/* What a coupon adds, of a license that has an end. */
static enum err order_free_period(struct api *rq, const struct order *o)
{
    struct jv *license = NULL, *in = jv_object();
    struct strbuf why = {0};
    enum err err = o->free_period[0] ? licenses_get(rq, str_c(o->license_id), &license) : ERR_OK;
    sb_addf(&why, "coupon %s", o->coupon_code);
    jv_set_c(in, "period", o->free_period);
    jv_set_str(in, "reason", sb_str(&why));
    if (!err && jv_get_str(license, "expires_at").n)
        err = licenses_act(rq, str_c(o->license_id), "extend", in);
    jv_free(license);
    jv_free(in);
    sb_free(&why);
    return err;
}

enum err order_begin(struct api *rq, const struct order *o, struct str reason)
{
    struct jv *license = NULL, *in = jv_object();
    enum err err = licenses_get(rq, str_c(o->license_id), &license);
    bool is_active = !err && str_eq(jv_get_str(license, "status"), S("active"));
    if (!err && !is_active)
        err = order_begin_terms(rq, o);
    if (reason.n)
        jv_set_str(in, "reason", reason);
    if (!err && !is_active)
        err = licenses_act(rq, str_c(o->license_id), "activate", in);
    if (!err && (!is_active || strcmp(o->status, "pending") == 0)) /* once: also where the license was activated by hand */
        err = order_free_period(rq, o);
    jv_free(license);
    jv_free(in);
    return err;
}

/* Loads the order of the path for a change; sets *shown, for the audit. */
static enum err order_for_change(struct api *rq, struct order *o, struct jv **shown)
{
    enum err err = order_load(rq, rq->params[0], o, shown);
    return err ? err : api_check_etag(rq, o->rev);
}

/* The end of a change: the order as the answer, and its event. */
static enum err order_finish(struct api *rq, const struct order *o, struct jv *take_before, const char *event)
{
    jv_free(rq->before);
    jv_free(rq->after);
    rq->before = take_before;
    rq->after = NULL;
    enum err err = order_answer(rq, str_c(o->id));
    if (!err)
        err = order_event(rq, event, o->id, o->customer_id, o->license_id, rq->out);
    if (!err)
        rq->after = jv_copy(rq->out);
    api_audit_object(rq, o->id);
    return err;
}

static enum err order_set_approved(struct api *rq, const struct order *o, struct str reason, struct str transaction_id)
{
    enum err err = ERR_OK;
    if (strcmp(o->status, "pending") != 0 && strcmp(o->status, "paid") != 0)
        return api_fail(rq, ERR_CONFLICT, "order_not_pending", NULL, "the order is %s", o->status);
    if (transaction_id.n)
        err = store_exec(rq->store, NULL, &rq->error, "UPDATE licenses SET transaction_id=? WHERE id=? AND vendor_id=?", "szz", transaction_id,
                         o->license_id, rq->vendor_id);
    if (!err && transaction_id.n) /* the order's first payment; a hook that tells of it as well tells nothing new */
        err = store_exec(rq->store, NULL, &rq->error,
                         "INSERT OR IGNORE INTO payments (vendor_id, order_id, event, transaction_id, result, at)"
                         " VALUES (?,?,'payment_succeeded',?,'approved',?)",
                         "zzsi", rq->vendor_id, o->id, transaction_id, rq->now_s);
    if (!err)
        err = order_begin(rq, o, reason);
    if (!err)
        err = store_exec(rq->store, NULL, &rq->error,
                         "UPDATE orders SET status='approved', reason=COALESCE(?,''), transaction_id=CASE WHEN ?2<>'' THEN ?2 ELSE transaction_id END,"
                         " paid_at=CASE WHEN ?2<>'' AND paid_at=0 THEN ?3 ELSE paid_at END, approved_at=?3, updated_at=?4, rev=rev+1"
                         " WHERE id=?5 AND vendor_id=?6",
                         "ssiizz", reason, transaction_id.n ? transaction_id : S(""), rq->now_s, rq->now_s, o->id, rq->vendor_id);
    return err;
}

static enum err order_approve(struct api *rq)
{
    struct order o = {.total = 0};
    struct jv *shown = NULL;
    enum err err = order_for_change(rq, &o, &shown);
    if (!err)
        err = order_set_approved(rq, &o, jv_get_str(rq->in, "reason"), jv_get_str(rq->in, "transaction_id"));
    if (!err) {
        err = order_finish(rq, &o, shown, "order.approved");
        shown = NULL;
    }
    jv_free(shown);
    order_free(&o);
    return err;
}

/* A license that is in use is not taken away by it: that is revoke's. */
static enum err order_cancel(struct api *rq)
{
    struct order o = {.total = 0};
    struct jv *shown = NULL, *license = NULL, *in = jv_object();
    enum err err = order_for_change(rq, &o, &shown);
    if (!err && strcmp(o.status, "cancelled") == 0)
        err = api_fail(rq, ERR_CONFLICT, "order_not_pending", NULL, "the order is cancelled");
    if (!err)
        err = order_license(rq, &o, &license);
    jv_set_c(in, "reason", "order_cancelled");
    bool came_to_nothing = license && !jv_get_str(license, "activated_at").n;
    if (!err && came_to_nothing && str_eq(jv_get_str(license, "status"), S("inactive")) && !jv_get_str(license, "archived_at").n)
        err = licenses_act(rq, str_c(o.license_id), "revoke", in);
    if (!err && came_to_nothing)
        err = coupon_give_back(rq, str_c(o.id));
    if (!err)
        err = store_exec(rq->store, NULL, &rq->error,
                         "UPDATE orders SET status='cancelled', reason=COALESCE(?,''), cancelled_at=?, updated_at=?, rev=rev+1 WHERE id=? AND vendor_id=?",
                         "siizz", jv_get_str(rq->in, "reason"), rq->now_s, rq->now_s, o.id, rq->vendor_id);
    if (!err) {
        err = order_finish(rq, &o, shown, "order.cancelled");
        shown = NULL;
    }
    jv_free(shown);
    jv_free(license);
    jv_free(in);
    order_free(&o);
    return err;
}

static enum err order_that_waits(struct api *rq, struct str license_id, struct strbuf *ret_id, bool *ret_found)
{
    struct store_stmt *st = NULL;
    enum err err = store_query(rq->store, &st, &rq->error,
                               "SELECT id FROM orders WHERE license_id=? AND vendor_id=? AND status IN ('pending','paid')", "sz", license_id,
                               rq->vendor_id);
    if (!err)
        err = store_step(st, ret_found, &rq->error);
    if (!err && *ret_found)
        sb_add(ret_id, store_col_str(st, 0));
    store_done(&st);
    return err;
}

/* An inactive license gets into force and its key is made and shown: for what was only requested so far. Its order, if one waits, is
 * approved with it. */
static enum err license_issue(struct api *rq)
{
    struct strbuf order_id = {0};
    struct order o = {.total = 0};
    struct jv *license = NULL, *in = jv_object();
    uint64_t rev = 0;
    bool found = false;
    struct str reason = jv_get_str(rq->in, "reason");
    enum err err = licenses_get(rq, rq->params[0], &license);
    if (!err && str_to_u64(jv_get_str(license, "etag"), &rev))
        err = api_check_etag(rq, (int64_t)rev);
    if (!err)
        err = order_that_waits(rq, rq->params[0], &order_id, &found);
    if (reason.n)
        jv_set_str(in, "reason", reason);
    if (!err && found && str_eq(jv_get_str(license, "status"), S("inactive"))) {
        err = order_load(rq, sb_str(&order_id), &o, NULL);
        if (!err)
            err = order_set_approved(rq, &o, reason, S(""));
        if (!err)
            err = order_event(rq, "order.approved", o.id, o.customer_id, o.license_id, NULL);
    } else if (!err) {
        err = licenses_act(rq, rq->params[0], "activate", in);
    }
    if (!err)
        err = licenses_act(rq, rq->params[0], "rotate-key", in);
    if (!err) {
        jv_free(rq->before);
        rq->before = license;
        license = NULL;
    }
    jv_free(license);
    jv_free(in);
    order_free(&o);
    sb_free(&order_id);
    return err;
}

static const struct query_param ORDER_PARAMS[] = {
    {"number", "of one number"},
    {"customer_id", "of one customer"},
    {"status", "pending, paid, approved, cancelled"},
    {"transaction_id", "of any of its payments"},
    {"plan_id", "of one plan"},
    {"license_id", "that made this license"},
    {NULL, NULL},
};

#define ORDERS "/api/v1/orders"
const struct route ORDER_ROUTES[] = {
    {HEAD_GET, ORDERS, order_list, ROLE_VIEWER, ROUTE_LIST, NULL, &ORDER, ORDER_PARAMS, "order.list", "Orders"},
    {HEAD_POST, ORDERS, order_create, ROLE_LICENSES, 0, &ORDER_CREATE, &ORDER, NULL, "order.create",
     "Order a plan for a customer; its license is inactive until it is paid or approved"},
    {HEAD_GET, ORDERS "/{id}", order_get, ROLE_VIEWER, 0, NULL, &ORDER, NULL, "order.get", "One order with its payments"},
    {HEAD_POST, ORDERS "/{id}/approve", order_approve, ROLE_LICENSES, ROUTE_ACTION, &ORDER_APPROVE, &ORDER, NULL, "order.approve",
     "It is valid: its license becomes active"},
    {HEAD_POST, ORDERS "/{id}/cancel", order_cancel, ROLE_LICENSES, ROUTE_ACTION, &ORDER_CANCEL, &ORDER, NULL, "order.cancel",
     "It comes to nothing: a license that is still inactive is revoked"},
    {HEAD_POST, "/api/v1/licenses/{id}/issue", license_issue, ROLE_LICENSES, ROUTE_ACTION, &LICENSE_ISSUE, &LICENSE_ANSWER, NULL,
     "license.issue", "Activate what was requested and show its key"},
    {.path = NULL},
};
