/* What customers ask for and start themselves: plans they see, orders, trials, requests; and the vendor's answers to requests. In the portal
 * the customer comes from the sign-in alone, never from the request. */
#include <stdio.h>
#include <string.h>

#include "api_routes.h"
#include "licenses.h"
#include "orders.h"
#include "plans.h"
#include "pullgate/clock.h"
#include "pullgate/credential.h"
#include "pullgate/mem.h"

#define ORDERS_OPEN_MAX   20 /* of one customer, made in the portal, not yet paid or decided */
#define REQUESTS_OPEN_MAX 5  /* of one license */

/* ---- schemas ----------------------------------------------------------------------------------------------------------- */

static const struct field APPLICATION_FIELDS[] = {{.name = "slug", .type = FIELD_STRING}, {.name = "name", .type = FIELD_STRING}, {.name = NULL}};
static const struct field PRICE_FIELDS[] = {
    {.name = "amount", .type = FIELD_STRING, .about = "of one instance and period"},
    {.name = "currency", .type = FIELD_STRING},
    {.name = "user_amount", .type = FIELD_STRING, .about = "of each user and period besides"},
    {.name = NULL},
};
static const struct field PLAN_FIELDS[] = {
    {.name = "id", .type = FIELD_STRING},
    {.name = "slug", .type = FIELD_STRING},
    {.name = "name", .type = FIELD_STRING},
    {.name = "description", .type = FIELD_TEXT, .flags = FIELD_EMPTY},
    {.name = "application", .type = FIELD_OBJECT, .sub = APPLICATION_FIELDS},
    {.name = "type", .type = FIELD_STRING},
    {.name = "period", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "price", .type = FIELD_OBJECT, .flags = FIELD_OPTIONAL, .sub = PRICE_FIELDS},
    {.name = "limits", .type = FIELD_MAP},
    {.name = "features", .type = FIELD_MAP},
    {.name = "grace_days", .type = FIELD_INT},
    {.name = "trial_days", .type = FIELD_INT},
    {.name = "self_service", .type = FIELD_BOOL, .about = "a trial that starts at once"},
    {.name = NULL},
};
static const struct schema PLAN = {"PortalPlan", PLAN_FIELDS};

static const struct field PORTAL_PAYMENT_FIELDS[] = {
    {.name = "event", .type = FIELD_STRING},
    {.name = "transaction_id", .type = FIELD_STRING},
    {.name = "at", .type = FIELD_TIME},
    {.name = NULL},
};
static const struct field PORTAL_ORDER_FIELDS[] = {
    {.name = "id", .type = FIELD_STRING},
    {.name = "number", .type = FIELD_STRING},
    {.name = "status", .type = FIELD_STRING},
    {.name = "plan_id", .type = FIELD_STRING},
    {.name = "license_id", .type = FIELD_STRING},
    {.name = "name", .type = FIELD_STRING},
    {.name = "instances", .type = FIELD_INT},
    {.name = "users", .type = FIELD_INT},
    {.name = "period", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "currency", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "subtotal", .type = FIELD_STRING},
    {.name = "discount", .type = FIELD_STRING},
    {.name = "total", .type = FIELD_STRING},
    {.name = "coupon", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "free_period", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "terms_version", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "terms_accepted_at", .type = FIELD_TIME},
    {.name = "payments", .type = FIELD_LIST, .sub = PORTAL_PAYMENT_FIELDS},
    {.name = "created_at", .type = FIELD_TIME},
    {.name = "paid_at", .type = FIELD_TIME},
    {.name = "approved_at", .type = FIELD_TIME},
    {.name = "cancelled_at", .type = FIELD_TIME},
    {.name = "key", .type = FIELD_SECRET, .flags = FIELD_OPTIONAL, .about = "of the license; shown once, works when the license is active"},
    {.name = NULL},
};
static const struct schema PORTAL_ORDER = {"PortalOrder", PORTAL_ORDER_FIELDS};
static const struct field PORTAL_ORDER_IN_FIELDS[] = {
    {.name = "plan_id", .type = FIELD_STRING, .flags = FIELD_REQUIRED, .max = 64},
    {.name = "name", .type = FIELD_STRING, .about = "of the license"},
    {.name = "instances", .type = FIELD_INT, .min = 1, .max = 1000000},
    {.name = "users", .type = FIELD_INT, .max = 1000000},
    {.name = "period", .type = FIELD_STRING, .flags = FIELD_EMPTY | FIELD_NULL, .max = 20},
    {.name = "coupon", .type = FIELD_STRING, .flags = FIELD_EMPTY | FIELD_NULL, .max = 64},
    {.name = "billing", .type = FIELD_MAP},
    {.name = "terms_version", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "environment", .type = FIELD_STRING, .flags = FIELD_EMPTY | FIELD_NULL},
    {.name = NULL},
};
static const struct schema PORTAL_ORDER_IN = {"PortalOrderCreate", PORTAL_ORDER_IN_FIELDS};

static const struct field TRIAL_IN_FIELDS[] = {
    {.name = "plan_id", .type = FIELD_STRING, .flags = FIELD_REQUIRED, .max = 64},
    {.name = "name", .type = FIELD_STRING, .flags = FIELD_REQUIRED, .about = "of the license"},
    {.name = "company", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = NULL},
};
static const struct schema TRIAL_IN = {"PortalTrialCreate", TRIAL_IN_FIELDS};
static const struct field TRIAL_FIELDS[] = {
    {.name = "id", .type = FIELD_STRING},
    {.name = "name", .type = FIELD_STRING},
    {.name = "type", .type = FIELD_STRING},
    {.name = "status", .type = FIELD_STRING},
    {.name = "effective_status", .type = FIELD_STRING},
    {.name = "trial_days", .type = FIELD_INT},
    {.name = "starts_on", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "expires_at", .type = FIELD_TIME, .about = "null: trial_days after the first pull"},
    {.name = "key_prefix", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "key", .type = FIELD_SECRET, .flags = FIELD_OPTIONAL, .about = "shown once"},
    {.name = NULL},
};
static const struct schema TRIAL = {"PortalTrial", TRIAL_FIELDS};

static const struct field REQUEST_IN_FIELDS[] = {
    {.name = "kind", .type = FIELD_STRING, .flags = FIELD_REQUIRED, .one_of = "renew|change"},
    {.name = "message", .type = FIELD_TEXT, .flags = FIELD_EMPTY, .max = 2000},
    {.name = "plan_id", .type = FIELD_STRING, .flags = FIELD_EMPTY | FIELD_NULL, .max = 64, .about = "of a change: the wanted one"},
    {.name = NULL},
};
static const struct schema REQUEST_IN = {"PortalRequestCreate", REQUEST_IN_FIELDS};
static const struct field REQUEST_FIELDS[] = {
    {.name = "id", .type = FIELD_STRING},
    {.name = "kind", .type = FIELD_STRING, .one_of = "renew|change"},
    {.name = "status", .type = FIELD_STRING, .one_of = "open|approved|rejected"},
    {.name = "customer_id", .type = FIELD_STRING},
    {.name = "license_id", .type = FIELD_STRING},
    {.name = "plan_id", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "message", .type = FIELD_TEXT, .flags = FIELD_EMPTY},
    {.name = "reason", .type = FIELD_STRING, .flags = FIELD_EMPTY, .about = "of the answer"},
    {.name = "decided_by", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "decided_at", .type = FIELD_TIME},
    {.name = "created_at", .type = FIELD_TIME},
    {.name = NULL},
};
static const struct schema REQUEST = {"Request", REQUEST_FIELDS};

static const struct field APPROVE_FIELDS[] = {
    {.name = "reason", .type = FIELD_STRING, .flags = FIELD_EMPTY, .max = 500},
    {.name = "period", .type = FIELD_STRING, .max = 20, .about = "of a renewal; the license's own when absent"},
    {.name = "plan_id", .type = FIELD_STRING, .max = 64, .about = "of a change; the wanted one when absent"},
    {.name = "effective", .type = FIELD_STRING, .one_of = "now|next_period", .about = "of a change; now when absent"},
    {.name = NULL},
};
static const struct schema REQUEST_APPROVE = {"RequestApprove", APPROVE_FIELDS};
static const struct field REJECT_FIELDS[] = {{.name = "reason", .type = FIELD_STRING, .flags = FIELD_EMPTY, .max = 500}, {.name = NULL}};
static const struct schema REQUEST_REJECT = {"RequestReject", REJECT_FIELDS};

/* ---- what all of them need --------------------------------------------------------------------------------------------- */

/* The members of `fields` that v has. */
static struct jv *cut_to(const struct jv *v, const struct field *fields)
{
    struct jv *cut = jv_object();
    for (const struct field *f = fields; f->name; f++) {
        const struct jv *member = jv_get(v, f->name);
        if (jv_type(member) == JV_NONE)
            continue;
        if (f->type == FIELD_LIST) {
            struct jv *list = jv_array();
            for (size_t i = 0; i < jv_len(member); i++)
                jv_push(list, cut_to(jv_at(member, i), f->sub));
            jv_set(cut, f->name, list);
        } else {
            jv_set(cut, f->name, jv_copy(member));
        }
    }
    return cut;
}

/* Makes and orders: not by what was given to one license alone, nor by a person who may only look. */
static enum err check_may_order(struct api *rq)
{
    if (rq->license_id && *rq->license_id)
        return api_fail(rq, ERR_DENIED, "credential_is_bound", NULL, "this credential is for one license only; sign in with one of the customer's");
    if (rq->user_id && rq->role < ROLE_CUSTOMER_ADMIN)
        return api_fail(rq, ERR_DENIED, "role_not_allowed", NULL, "this needs the role customer_admin");
    return ERR_OK;
}

/* ---- plans ------------------------------------------------------------------------------------------------------------- */

static enum err portal_plans(struct api *rq)
{
    struct page page;
    struct store_stmt *st = NULL;
    bool row;
    enum err err = api_page(rq, &page);
    if (err)
        return err;
    struct jv *items = api_list(rq);
    err = store_query(rq->store, &st, &rq->error,
                      "SELECT p.id, p.created_at, a.slug, a.name FROM plans p JOIN applications a ON a.id=p.application_id"
                      " WHERE p.vendor_id=? AND p.visible=1 AND p.archived_at=0 AND a.archived_at=0 AND (p.created_at, p.id) > (?,?)"
                      " ORDER BY p.created_at, p.id LIMIT ?",
                      "zizi", rq->vendor_id, page.after_key, page.after_id, (int64_t)page.limit + 1);
    while (!err) {
        struct jv *plan = NULL;
        err = store_step(st, &row, &rq->error);
        if (err || !row || !api_page_take(&page, rq->out, store_col_int(st, 1), store_col_str(st, 0).p))
            break;
        struct jv *application = jv_object();
        jv_set_str(application, "slug", store_col_str(st, 2));
        jv_set_str(application, "name", store_col_str(st, 3));
        err = plans_get(rq, store_col_str(st, 0), false, &plan);
        if (!err) {
            jv_set(plan, "application", application);
            jv_push(items, cut_to(plan, PLAN_FIELDS));
        } else {
            jv_free(application);
        }
        jv_free(plan);
    }
    store_done(&st);
    return err;
}

/* ---- orders ------------------------------------------------------------------------------------------------------------ */

static void cut_order(struct api *rq)
{
    struct jv *cut = cut_to(rq->out, PORTAL_ORDER_FIELDS);
    jv_free(rq->out);
    rq->out = cut;
}

static enum err portal_order_create(struct api *rq)
{
    struct jv *license = NULL, *data = NULL;
    int64_t open = 0;
    enum err err = check_may_order(rq);
    if (!err)
        err = api_number(rq, "SELECT COUNT(*) FROM orders WHERE customer_id=? AND source='portal' AND status='pending'", str_c(rq->customer_id), &open);
    if (!err && open >= ORDERS_OPEN_MAX)
        err = api_fail(rq, ERR_CONFLICT, "too_many_open", NULL, "%d orders wait already", ORDERS_OPEN_MAX);
    if (!err)
        err = order_make(rq, rq->in, str_c(rq->customer_id), "portal", true);
    if (!err)
        err = licenses_shown(rq, jv_get_str(rq->out, "license_id"), &license);
    if (!err) {
        data = jv_object();
        jv_set(data, "order_number", jv_copy(jv_get(rq->out, "number")));
        err = plans_note(rq, license, "license.requested", S("order"), data);
    }
    if (!err) {
        char *id = str_dup(jv_get_str(rq->out, "id"));
        cut_order(rq);
        api_created(rq, "/portal/v1/orders/", id);
        mem_free(id);
    }
    jv_free(license);
    jv_free(data);
    return err;
}

/* The order of the id as the customer sees it, if it is his. *ret NULL: it is not. */
static enum err portal_order_load(struct api *rq, struct str id, struct jv **ret)
{
    struct order o = {.total = 0};
    struct jv *shown = NULL;
    enum err err = order_load(rq, id, &o, &shown);
    bool is_own = !err && strcmp(o.customer_id, rq->customer_id) == 0 &&
                  (!rq->license_id || !*rq->license_id || strcmp(o.license_id, rq->license_id) == 0);
    *ret = is_own ? cut_to(shown, PORTAL_ORDER_FIELDS) : NULL;
    jv_free(shown);
    order_free(&o);
    return err;
}

static enum err portal_order_get(struct api *rq)
{
    enum err err = portal_order_load(rq, rq->params[0], &rq->out);
    return !err && !rq->out ? api_not_found(rq, "order") : err;
}

static enum err portal_order_list(struct api *rq)
{
    struct page page;
    struct store_stmt *st = NULL;
    bool row;
    enum err err = api_page(rq, &page);
    if (err)
        return err;
    struct jv *items = api_list(rq);
    err = store_query(rq->store, &st, &rq->error,
                      "SELECT id, created_at FROM orders WHERE customer_id=?1 AND (?2='' OR license_id=?2) AND (created_at, id) > (?3,?4)"
                      " ORDER BY created_at, id LIMIT ?5",
                      "zzizi", rq->customer_id, rq->license_id ? rq->license_id : "", page.after_key, page.after_id, (int64_t)page.limit + 1);
    while (!err) {
        struct jv *order = NULL;
        err = store_step(st, &row, &rq->error);
        if (err || !row || !api_page_take(&page, rq->out, store_col_int(st, 1), store_col_str(st, 0).p))
            break;
        err = portal_order_load(rq, store_col_str(st, 0), &order);
        if (order)
            jv_push(items, order);
    }
    store_done(&st);
    return err;
}

/* ---- trials ------------------------------------------------------------------------------------------------------------ */

/* The domain is one of the list, or below one. */
static bool domain_listed(const struct jv *list, struct str domain)
{
    for (size_t i = 0; i < jv_len(list); i++) {
        struct str d = jv_str(jv_at(list, i));
        if (str_eq_nocase(domain, d))
            return true;
        if (domain.n > d.n && domain.p[domain.n - d.n - 1] == '.' && str_eq_nocase(str_skip(domain, domain.n - d.n), d))
            return true;
    }
    return false;
}

static enum err trial_check_domain(struct api *rq, const struct jv *plan)
{
    struct strbuf email = {0};
    struct store_stmt *st = NULL;
    bool found = false, row = false;
    int64_t cap = jv_get_int(plan, "trial_cap_per_domain", 0), have = 0;
    const struct jv *allowed = jv_get(plan, "allowed_email_domains");
    enum err err = api_lookup(rq, "SELECT lower(email) FROM customers WHERE id=?", str_c(rq->customer_id), &email, &found);
    ptrdiff_t at = str_rindex(sb_str(&email), '@');
    struct str domain = at >= 0 ? str_skip(sb_str(&email), (size_t)at + 1) : S("");
    if (!err && ((jv_len(allowed) && !domain_listed(allowed, domain)) || domain_listed(jv_get(plan, "denied_email_domains"), domain)))
        err = api_fail(rq, ERR_DENIED, "email_domain_not_allowed", "plan_id", "this trial is not for customers of the email domain \"%.*s\"", STR(domain));
    if (!err && cap > 0 && domain.n) {
        err = store_query(rq->store, &st, &rq->error,
                          "SELECT COUNT(*) FROM (SELECT l.id FROM licenses l JOIN customers c ON c.id=l.customer_id WHERE l.vendor_id=?1 AND"
                          " l.application_id=?2 AND l.source='trial' AND lower(substr(c.email, instr(c.email, '@') + 1))=?3"
                          /* given away since: it counts where it was */
                          " UNION SELECT l.id FROM transfers t JOIN licenses l ON l.id=t.license_id JOIN customers c ON c.id=t.customer_id WHERE"
                          " t.vendor_id=?1 AND t.status='accepted' AND (l.application_id=?2 OR l.vendor_id<>?1) AND"
                          " (l.type='trial' OR l.trial_started_at<>0) AND lower(substr(c.email, instr(c.email, '@') + 1))=?3)",
                          "zss", rq->vendor_id, jv_get_str(plan, "application_id"), domain);
        if (!err)
            err = store_step(st, &row, &rq->error);
        if (!err && row)
            have = store_col_int(st, 0);
        store_done(&st);
        if (!err && have >= cap)
            err = api_fail(rq, ERR_CONFLICT, "trial_cap_reached", "plan_id", "customers of the email domain \"%.*s\" had %lld trials; the plan allows %lld",
                           STR(domain), (long long)have, (long long)cap);
    }
    sb_free(&email);
    return err;
}

/* Active at once: that is what the vendor allowed with self_service. */
static enum err portal_trial_create(struct api *rq)
{
    struct jv *plan = NULL, *in = jv_object(), *metadata = jv_object(), *data = NULL;
    enum err err = check_may_order(rq);
    if (!err)
        err = plans_get(rq, jv_get_str(rq->in, "plan_id"), false, &plan);
    if (err == ERR_NOT_FOUND || (!err && !jv_get_bool(plan, "self_service", false)))
        err = api_fail(rq, ERR_INVALID, "unknown_reference", "plan_id", "plan_id: no trial that a customer starts himself");
    if (!err)
        err = trial_check_domain(rq, plan);
    if (err)
        goto out;
    jv_set_str(in, "plan_id", jv_get_str(plan, "id"));
    jv_set_str(in, "application_id", jv_get_str(plan, "application_id"));
    jv_set_c(in, "customer_id", rq->customer_id);
    jv_set_str(in, "name", jv_get_str(rq->in, "name"));
    jv_set_c(in, "status", "active");
    if (jv_get_str(rq->in, "company").n)
        jv_set_str(metadata, "company", jv_get_str(rq->in, "company"));
    jv_set(in, "metadata", jv_copy(metadata));
    err = plan_apply(rq, in);
    if (!err)
        err = licenses_make(rq, in, "trial");
    if (!err) {
        data = jv_object();
        jv_set(data, "plan_id", jv_copy(jv_get(plan, "id")));
        err = plans_note(rq, rq->out, "license.requested", S("trial"), data);
    }
    if (!err) {
        struct jv *cut = cut_to(rq->out, TRIAL_FIELDS);
        jv_free(rq->out);
        rq->out = cut;
        api_audit_object(rq, jv_get_c(cut, "id", ""));
        MEM_FREE(rq->location); /* of the vendor's API */
        MEM_FREE(rq->etag);
        rq->status = 201;
    }
out:
    jv_free(plan);
    jv_free(in);
    jv_free(metadata);
    jv_free(data);
    return err;
}

/* ---- requests ---------------------------------------------------------------------------------------------------------- */

#define REQUEST_COLUMNS "id, kind, status, customer_id, license_id, plan_id, message, reason, decided_by, decided_at, created_at"

/* Who decided is the vendor's to know. */
static struct jv *request_print(const struct api *rq, const struct store_stmt *st)
{
    struct jv *v = jv_object();
    jv_set_str(v, "id", store_col_str(st, 0));
    jv_set_str(v, "kind", store_col_str(st, 1));
    jv_set_str(v, "status", store_col_str(st, 2));
    jv_set_str(v, "customer_id", store_col_str(st, 3));
    jv_set_str(v, "license_id", store_col_str(st, 4));
    jv_set_str(v, "plan_id", store_col_str(st, 5));
    jv_set_str(v, "message", store_col_str(st, 6));
    jv_set_str(v, "reason", store_col_str(st, 7));
    jv_set_str(v, "decided_by", rq->customer_id ? S("") : store_col_str(st, 8));
    jv_set_time(v, "decided_at", store_col_int(st, 9));
    jv_set_time(v, "created_at", store_col_int(st, 10));
    return v;
}

/* A customer finds his own only. */
static bool request_is_shown(const struct api *rq, const struct jv *request)
{
    if (!rq->customer_id)
        return true;
    return str_eq_c(jv_get_str(request, "customer_id"), rq->customer_id) &&
           (!rq->license_id || !*rq->license_id || str_eq_c(jv_get_str(request, "license_id"), rq->license_id));
}

static enum err request_load(struct api *rq, struct str id, struct jv **ret)
{
    struct store_stmt *st = NULL;
    struct jv *v = NULL;
    bool row = false;
    enum err err = store_query(rq->store, &st, &rq->error, "SELECT " REQUEST_COLUMNS " FROM requests WHERE id=? AND vendor_id=?", "sz", id,
                               rq->vendor_id);
    if (!err)
        err = store_step(st, &row, &rq->error);
    if (!err && row)
        v = request_print(rq, st);
    store_done(&st);
    if (!err && (!v || !request_is_shown(rq, v)))
        err = api_not_found(rq, "request");
    if (err)
        jv_free(v);
    else
        *ret = v;
    return err;
}

static enum err request_get(struct api *rq)
{
    return request_load(rq, rq->params[0], &rq->out);
}

static enum err request_list(struct api *rq)
{
    static const char *const NAMES[] = {"status", "license_id", "kind", "customer_id"};
    struct strbuf f[4] = {{0}};
    struct page page;
    struct store_stmt *st = NULL;
    bool row;
    enum err err = api_page(rq, &page);
    if (err)
        return err;
    struct jv *items = api_list(rq);
    for (size_t i = 0; i < 4; i++)
        api_query(rq, NAMES[i], &f[i]);
    err = store_query(rq->store, &st, &rq->error,
                      "SELECT " REQUEST_COLUMNS " FROM requests WHERE vendor_id=?1 AND (?2='' OR status=?2) AND (?3='' OR license_id=?3)"
                      " AND (?4='' OR kind=?4) AND (?5='' OR customer_id=?5) AND (?6='' OR customer_id=?6) AND (?7='' OR license_id=?7)"
                      " AND (created_at, id) > (?8,?9) ORDER BY created_at, id LIMIT ?10",
                      "zzzzzzzizi", rq->vendor_id, f[0].n ? f[0].p : "", f[1].n ? f[1].p : "", f[2].n ? f[2].p : "", f[3].n ? f[3].p : "",
                      rq->customer_id ? rq->customer_id : "", rq->license_id ? rq->license_id : "", page.after_key, page.after_id,
                      (int64_t)page.limit + 1);
    while (!err) {
        err = store_step(st, &row, &rq->error);
        if (err || !row || !api_page_take(&page, rq->out, store_col_int(st, 10), store_col_str(st, 0).p))
            break;
        jv_push(items, request_print(rq, st));
    }
    store_done(&st);
    for (size_t i = 0; i < 4; i++)
        sb_free(&f[i]);
    return err;
}

static enum err request_check_plan(struct api *rq, struct str plan_id)
{
    struct jv *plan = NULL;
    if (!plan_id.n)
        return ERR_OK;
    enum err err = plans_get(rq, plan_id, false, &plan);
    if (err == ERR_NOT_FOUND || (!err && !jv_get_bool(plan, "visible", false)))
        err = api_fail(rq, ERR_INVALID, "unknown_reference", "plan_id", "plan_id: no such object");
    jv_free(plan);
    return err;
}

static enum err portal_request_create(struct api *rq)
{
    struct jv *license = NULL;
    char id[ID_MAX];
    int64_t open = 0;
    struct str plan_id = jv_get_str(rq->in, "plan_id"), message = jv_get_str(rq->in, "message"), kind = jv_get_str(rq->in, "kind");
    enum err err = ERR_OK;
    if (rq->user_id && rq->role < ROLE_CUSTOMER_ADMIN)
        return api_fail(rq, ERR_DENIED, "role_not_allowed", NULL, "this needs the role customer_admin");
    err = licenses_get(rq, rq->params[0], &license);
    MEM_FREE(rq->etag);
    bool is_own = !err && str_eq_c(jv_get_str(license, "customer_id"), rq->customer_id) &&
                  (!rq->license_id || !*rq->license_id || str_eq_c(jv_get_str(license, "id"), rq->license_id));
    if (!err && !is_own)
        err = api_not_found(rq, "license");
    if (!err && str_eq(jv_get_str(license, "status"), S("revoked")))
        err = api_fail(rq, ERR_CONFLICT, "action_not_allowed", NULL, "the license is revoked, which is final");
    if (!err)
        err = api_number(rq, "SELECT COUNT(*) FROM requests WHERE license_id=? AND status='open'", jv_get_str(license, "id"), &open);
    if (!err && open >= REQUESTS_OPEN_MAX)
        err = api_fail(rq, ERR_CONFLICT, "too_many_open", NULL, "%d requests of this license wait already", REQUESTS_OPEN_MAX);
    if (!err && plan_id.n && !str_eq(kind, S("change")))
        err = api_fail(rq, ERR_INVALID, "invalid_field", "plan_id", "plan_id: only a change names one");
    if (!err)
        err = request_check_plan(rq, plan_id);
    id_new("req_", id);
    if (!err)
        err = store_exec(rq->store, NULL, &rq->error,
                         "INSERT INTO requests (id, vendor_id, customer_id, license_id, kind, plan_id, message, status, created_at)"
                         " VALUES (?,?,?,?,?,COALESCE(?,''),COALESCE(?,''),'open',?)",
                         "zzzssssi", id, rq->vendor_id, rq->customer_id, jv_get_str(license, "id"), kind, plan_id, message, rq->now_s);
    if (!err)
        err = request_load(rq, str_c(id), &rq->out);
    if (!err)
        err = plans_note(rq, license, "license.requested", kind, rq->out);
    if (!err) {
        rq->after = jv_copy(rq->out);
        api_created(rq, "/portal/v1/requests/", id);
    }
    jv_free(license);
    return err;
}

/* The open request of the path, with what it concerns kept apart from rq. */
static enum err request_open(struct api *rq, struct jv **ret)
{
    struct jv *v = NULL;
    enum err err = request_load(rq, rq->params[0], &v);
    if (!err && !str_eq(jv_get_str(v, "status"), S("open")))
        err = api_fail(rq, ERR_CONFLICT, "not_open", NULL, "the request is %s", jv_get_c(v, "status", ""));
    if (err)
        jv_free(v);
    else
        *ret = v;
    return err;
}

static enum err request_decide(struct api *rq, struct jv *take_before, const char *status)
{
    struct jv *license = NULL;
    struct strbuf event = {0};
    char *id = str_dup(jv_get_str(take_before, "id"));
    struct str reason = jv_get_str(rq->in, "reason");
    enum err err = store_exec(rq->store, NULL, &rq->error,
                              "UPDATE requests SET status=?, reason=COALESCE(?,''), decided_by=?, decided_at=? WHERE id=? AND vendor_id=?", "zszizz", status,
                              reason, rq->actor, rq->now_s, id, rq->vendor_id);
    jv_free(rq->out);
    jv_free(rq->before);
    jv_free(rq->after);
    rq->out = rq->after = NULL;
    rq->before = take_before;
    MEM_FREE(rq->etag); /* the license's */
    if (!err)
        err = request_load(rq, str_c(id), &rq->out);
    if (!err)
        err = licenses_shown(rq, jv_get_str(rq->out, "license_id"), &license);
    sb_addf(&event, "license.request_%s", status);
    if (!err)
        err = plans_note(rq, license, event.p, reason, rq->out);
    if (!err)
        rq->after = jv_copy(rq->out);
    api_audit_object(rq, id);
    mem_free(id);
    sb_free(&event);
    jv_free(license);
    return err;
}

/* Does what was asked for: a renewal, or the change to a plan. A change that names no plan is one that the vendor made himself. */
static enum err request_approve(struct api *rq)
{
    struct jv *request = NULL, *in = jv_object();
    enum err err = request_open(rq, &request);
    struct str own = jv_get_str(rq->in, "plan_id"), period = jv_get_str(rq->in, "period"), reason = jv_get_str(rq->in, "reason");
    bool is_renewal = str_eq(jv_get_str(request, "kind"), S("renew"));
    struct str plan_id = own.n ? own : jv_get_str(request, "plan_id"), license_id = jv_get_str(request, "license_id");
    if (!err && (is_renewal ? own.n || api_has(rq, "effective") : period.n > 0))
        err = api_fail(rq, ERR_INVALID, "invalid_field", is_renewal ? "plan_id" : "period", "%s",
                       is_renewal ? "a renewal takes a period only" : "period: a change takes a plan_id");
    jv_set_str(in, "reason", reason.n ? reason : S("requested"));
    if (period.n)
        jv_set_str(in, "period", period);
    if (!err && is_renewal)
        err = licenses_act(rq, license_id, "renew", in);
    else if (!err && plan_id.n)
        err = plans_change(rq, license_id, plan_id,
                           &(struct plan_change){.is_next_period = str_eq(jv_get_str(rq->in, "effective"), S("next_period")),
                                                 .reason = jv_get_str(in, "reason")});
    if (!err) {
        err = request_decide(rq, request, "approved");
        request = NULL;
    }
    jv_free(request);
    jv_free(in);
    return err;
}

static enum err request_reject(struct api *rq)
{
    struct jv *request = NULL;
    enum err err = request_open(rq, &request);
    return err ? err : request_decide(rq, request, "rejected");
}

static const struct query_param REQUEST_PARAMS[] = {
    {"status", "open, approved, rejected"}, {"license_id", "of one license"}, {"kind", "renew, change"}, {"customer_id", "of one customer"}, {NULL, NULL},
};
static const struct query_param PORTAL_REQUEST_PARAMS[] = {{"status", "open, approved, rejected"}, {NULL, NULL}};

#define PORTAL "/portal/v1"
const struct route PORTAL_REQUEST_ROUTES[] = {
    {HEAD_GET, PORTAL "/plans", portal_plans, ROLE_CUSTOMER, ROUTE_LIST, NULL, &PLAN, NULL, "portal.plan.list", "Plans that can be ordered."},
    {HEAD_GET, PORTAL "/orders", portal_order_list, ROLE_CUSTOMER, ROUTE_LIST, NULL, &PORTAL_ORDER, NULL, "portal.order.list",
     "The customer's orders."},
    {HEAD_POST, PORTAL "/orders", portal_order_create, ROLE_CUSTOMER, 0, &PORTAL_ORDER_IN, &PORTAL_ORDER, NULL, "portal.order.create",
     "Order a plan; its license is inactive until it is paid or approved."},
    {HEAD_GET, PORTAL "/orders/{id}", portal_order_get, ROLE_CUSTOMER, 0, NULL, &PORTAL_ORDER, NULL, "portal.order.get", "One order."},
    {HEAD_POST, PORTAL "/trials", portal_trial_create, ROLE_CUSTOMER, 0, &TRIAL_IN, &TRIAL, NULL, "portal.trial.create",
     "Start a trial, where the plan lets a customer do so."},
    {HEAD_GET, PORTAL "/requests", request_list, ROLE_CUSTOMER, ROUTE_LIST, NULL, &REQUEST, PORTAL_REQUEST_PARAMS, "portal.request.list",
     "What the customer asked for."},
    {HEAD_GET, PORTAL "/requests/{id}", request_get, ROLE_CUSTOMER, 0, NULL, &REQUEST, NULL, "portal.request.get", "One request."},
    {HEAD_POST, PORTAL "/licenses/{id}/requests", portal_request_create, ROLE_CUSTOMER, 0, &REQUEST_IN, &REQUEST, NULL, "portal.request.create",
     "Ask the vendor to renew or change a license."},
    {HEAD_GET, "/api/v1/requests", request_list, ROLE_VIEWER, ROUTE_LIST, NULL, &REQUEST, REQUEST_PARAMS, "request.list",
     "What customers asked for"},
    {HEAD_GET, "/api/v1/requests/{id}", request_get, ROLE_VIEWER, 0, NULL, &REQUEST, NULL, "request.get", "One request"},
    {HEAD_POST, "/api/v1/requests/{id}/approve", request_approve, ROLE_LICENSES, ROUTE_ACTION, &REQUEST_APPROVE, &REQUEST, NULL,
     "request.approve", "Do what was asked for"},
    {HEAD_POST, "/api/v1/requests/{id}/reject", request_reject, ROLE_LICENSES, ROUTE_ACTION, &REQUEST_REJECT, &REQUEST, NULL, "request.reject",
     "Do not"},
    {.path = NULL},
};
