/* Licenses of marketplaces: what another system sells is told here by that system's own subscription id, as often as it likes. Asked for the
 * same again, nothing changes. */
#include <string.h>

#include "api_routes.h"
#include "licensemodel.h"
#include "licenses.h"
#include "plans.h"
#include "pullgate/mem.h"

#define SOURCES "aws|azure|gcp|oracle|byol|other"

static const struct field SUBSCRIPTION_FIELDS[] = {
    {.name = "customer_id", .type = FIELD_STRING, .flags = FIELD_REQUIRED, .max = 64},
    {.name = "plan_id", .type = FIELD_STRING, .flags = FIELD_REQUIRED, .max = 64, .about = "another one than before: the license changes to it at once"},
    {.name = "name", .type = FIELD_STRING, .flags = FIELD_REQUIRED, .about = "of the license"},
    {.name = "status", .type = FIELD_STRING, .one_of = "inactive|active|suspended|revoked", .about = "active when absent and the license is made"},
    {.name = "reason", .type = FIELD_STRING, .flags = FIELD_EMPTY, .max = 500, .about = "of a status that changes"},
    {.name = "expires_at", .type = FIELD_TIME, .about = "by the plan when absent"},
    {.name = "limits", .type = FIELD_OBJECT, .sub = LIMIT_IN_FIELDS},
    {.name = "environment", .type = FIELD_STRING, .flags = FIELD_EMPTY | FIELD_NULL},
    {.name = "transaction_id", .type = FIELD_STRING, .flags = FIELD_EMPTY | FIELD_NULL},
    {.name = "metadata", .type = FIELD_MAP},
    {.name = NULL},
};
static const struct schema SUBSCRIPTION = {"MarketplaceSubscription", SUBSCRIPTION_FIELDS};

static enum err subscription_find(struct api *rq, struct strbuf *ret_id, bool *ret_found)
{
    static const struct field FIELDS[] = {{.name = "source", .type = FIELD_STRING, .one_of = SOURCES}, {.name = NULL}};
    static const struct schema PATH = {"MarketplacePath", FIELDS};
    struct store_stmt *st = NULL;
    struct jv *path = jv_object();
    jv_set_str(path, "source", rq->params[0]);
    enum err err = api_check_body(rq, path, &PATH);
    jv_free(path);
    if (!err)
        err = store_query(rq->store, &st, &rq->error,
                          "SELECT id FROM licenses WHERE vendor_id=? AND marketplace=? AND external_subscription_id=? AND archived_at=0", "zss", rq->vendor_id,
                          rq->params[0], rq->params[1]);
    if (!err)
        err = store_step(st, ret_found, &rq->error);
    if (!err && *ret_found)
        sb_add(ret_id, store_col_str(st, 0));
    store_done(&st);
    return err;
}

static enum err subscription_get(struct api *rq)
{
    struct strbuf id = {0};
    bool found = false;
    enum err err = subscription_find(rq, &id, &found);
    if (!err)
        err = found ? licenses_get(rq, sb_str(&id), &rq->out) : api_not_found(rq, "subscription");
    sb_free(&id);
    return err;
}

/* What stands in the license under the same name. */
static struct jv *terms_of(const struct jv *in)
{
    static const char *const MEMBERS[] = {"name", "expires_at", "limits", "environment", "transaction_id", "metadata"};
    struct jv *v = jv_object();
    for (size_t i = 0; i < sizeof MEMBERS / sizeof *MEMBERS; i++)
        if (jv_type(jv_get(in, MEMBERS[i])) != JV_NONE)
            jv_set(v, MEMBERS[i], jv_copy(jv_get(in, MEMBERS[i])));
    return v;
}

static enum err subscription_make(struct api *rq)
{
    struct jv *in = terms_of(rq->in);
    struct str status = jv_get_str(rq->in, "status");
    struct strbuf id = {0};
    enum err err = ERR_OK;
    if (status.p && !str_eq(status, S("active")) && !str_eq(status, S("inactive")))
        err = api_fail(rq, ERR_CONFLICT, "unknown_subscription", "status", "status: there is no such subscription that could be %.*s", STR(status));
    jv_set(in, "customer_id", jv_copy(jv_get(rq->in, "customer_id")));
    jv_set(in, "plan_id", jv_copy(jv_get(rq->in, "plan_id")));
    jv_set_str(in, "status", status.p ? status : S("active"));
    if (!err)
        err = plan_apply(rq, in);
    if (!err)
        err = licenses_make(rq, in, "marketplace");
    if (!err) {
        struct jv *key = jv_copy(jv_get(rq->out, "key"));
        sb_add(&id, jv_get_str(rq->out, "id"));
        err = store_exec(rq->store, NULL, &rq->error, "UPDATE licenses SET marketplace=?, external_subscription_id=? WHERE id=? AND vendor_id=?", "sssz",
                         rq->params[0], rq->params[1], sb_str(&id), rq->vendor_id);
        jv_free(rq->out);
        rq->out = NULL;
        if (!err)
            err = licenses_get(rq, sb_str(&id), &rq->out);
        if (!err && key)
            jv_set(rq->out, "key", key);
        else
            jv_free(key);
    }
    if (!err)
        api_audit_object(rq, id.p);
    sb_free(&id);
    jv_free(in);
    return err;
}

/* The action that leads from one stored status to the other; NULL: none. */
static const char *status_action(struct str from, struct str to)
{
    if (str_eq(to, S("revoked")))
        return "revoke";
    if (str_eq(to, S("suspended")))
        return "suspend";
    if (str_eq(to, S("active")))
        return str_eq(from, S("suspended")) ? "reinstate" : "activate";
    return NULL;
}

static enum err subscription_status(struct api *rq, struct str id, const struct jv *license)
{
    struct str from = jv_get_str(license, "status"), to = jv_get_str(rq->in, "status");
    const char *action = to.p && !str_eq(from, to) ? status_action(from, to) : NULL;
    if (!to.p || str_eq(from, to))
        return ERR_OK;
    if (!action)
        return api_fail(rq, ERR_CONFLICT, "action_not_allowed", "status", "status: a license does not become inactive again");
    struct jv *in = jv_object();
    if (jv_get_str(rq->in, "reason").n)
        jv_set(in, "reason", jv_copy(jv_get(rq->in, "reason")));
    enum err err = licenses_act(rq, id, action, in);
    jv_free(in);
    return err;
}

/* Terms that are as they are told leave no trace. */
static enum err subscription_terms(struct api *rq, struct str id)
{
    struct jv *in = terms_of(rq->in);
    enum err err = store_exec(rq->store, NULL, &rq->error, "SAVEPOINT terms", "");
    if (!err)
        err = licenses_change(rq, id, "update", in, NULL, S("marketplace"));
    if (!err && jv_len(jv_get(rq->out, "changes")) == 0)
        err = store_exec(rq->store, NULL, &rq->error, "ROLLBACK TO terms", "");
    if (!err)
        err = store_exec(rq->store, NULL, &rq->error, "RELEASE terms", "");
    jv_free(in);
    return err;
}

static enum err subscription_change(struct api *rq, struct str id)
{
    struct jv *license = NULL;
    uint64_t rev = 0;
    enum err err = licenses_get(rq, id, &license);
    if (!err && str_to_u64(jv_get_str(license, "etag"), &rev))
        err = api_check_etag(rq, (int64_t)rev);
    if (!err && !str_eq(jv_get_str(license, "customer_id"), jv_get_str(rq->in, "customer_id")))
        err = api_fail(rq, ERR_CONFLICT, "other_customer", "customer_id", "customer_id: the subscription is another customer's");
    if (!err && str_eq(jv_get_str(license, "status"), S("revoked")) && str_eq(jv_get_str(rq->in, "status"), S("revoked")))
        goto out; /* as it was told before */
    struct str to = jv_get_str(rq->in, "status");
    bool is_end = str_eq(to, S("revoked")), is_back = str_eq(to, S("active")) && str_eq(jv_get_str(license, "status"), S("suspended"));
    if (!err && (is_end || is_back)) /* what is suspended does not change its plan; what ends needs no other */
        err = subscription_status(rq, id, license);
    if (!err && is_end)
        goto out;
    if (!err && !str_eq(jv_get_str(license, "plan_id"), jv_get_str(rq->in, "plan_id")))
        err = plans_change(rq, id, jv_get_str(rq->in, "plan_id"), &(struct plan_change){.reason = S("marketplace")});
    if (!err)
        err = subscription_terms(rq, id);
    if (!err && !is_back)
        err = subscription_status(rq, id, license);
out:
    jv_free(rq->out);
    jv_free(rq->before);
    jv_free(rq->after);
    rq->out = rq->before = rq->after = NULL;
    if (!err)
        err = licenses_get(rq, id, &rq->out);
    if (!err && !str_eq(jv_get_str(rq->out, "etag"), jv_get_str(license, "etag"))) {
        rq->before = license;
        rq->after = jv_copy(rq->out);
        license = NULL;
    }
    api_audit_object(rq, id.p);
    jv_free(license);
    return err;
}

static enum err subscription_put(struct api *rq)
{
    struct strbuf id = {0};
    bool found = false;
    enum err err = subscription_find(rq, &id, &found);
    if (!err)
        err = found ? subscription_change(rq, sb_str(&id)) : subscription_make(rq);
    sb_free(&id);
    return err;
}

#define EXTERNAL "/api/v1/licenses/by-external/{source}/{subscription_id}"
const struct route MARKETPLACE_ROUTES[] = {
    {HEAD_GET, EXTERNAL, subscription_get, ROLE_VIEWER, 0, NULL, &LICENSE_ANSWER, NULL, "license.get_external",
     "The license of a marketplace's subscription; source: aws, azure, gcp, oracle, byol, other"},
    {HEAD_PUT, EXTERNAL, subscription_put, ROLE_LICENSES, 0, &SUBSCRIPTION, &LICENSE_ANSWER, NULL, "license.put_external",
     "Make or change the license of a marketplace's subscription; the same again changes nothing"},
    {.path = NULL},
};
