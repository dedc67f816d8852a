/* Transfers: a license is offered to another customer or to another vendor, with a secret that is shown once; who has it accepts. What
 * moves, moves in one transaction: the license with its grants; its key, its credentials and its installations end. */
#include <stdio.h>
#include <string.h>

#include "api_routes.h"
#include "db.h"
#include "eventlog.h"
#include "licensequery.h"
#include "licenses.h"
#include "outbox.h"
#include "pullgate/clock.h"
#include "pullgate/credential.h"
#include "pullgate/mem.h"
#include "tags.h"
#include "transfers.h"

#define LIFETIME_DEFAULT_S (7 * 86400)
#define LIFETIME_MAX_S     (90 * 86400)
#define LIFETIME_MIN_S     60
#define FAILURES_MAX       5 /* wrong secrets; the offer dies with the last */

/* ---- reading ------------------------------------------------------------------------------------------------------------- */

struct transfer {
    char *id, *license_id, *license_name, *vendor_id, *customer_id, *to_vendor_id, *to_customer_id, *secret_hash, *status;
    int64_t expires_at;
};

static void transfer_free(struct transfer *t)
{
    char *const all[] = {t->id,           t->license_id,     t->license_name, t->vendor_id, t->customer_id,
                         t->to_vendor_id, t->to_customer_id, t->secret_hash,  t->status};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        mem_free(all[i]);
    *t = (struct transfer){0};
}

#define TRANSFER_COLUMNS                                                                                                                   \
    "t.id, t.license_id, t.license_name, t.vendor_id, t.customer_id, t.to_vendor_id, t.to_customer_id, t.secret_hash, t.status,"           \
    " t.expires_at, t.created_at, t.ended_at, t.created_by, t.ended_by, t.reason, v.slug, w.slug, l.status, l.type, l.period,"             \
    " l.expires_at, l.allowed_cidrs, a.slug, a.name, COALESCE(c.slug,''), COALESCE(c.name,''), t.failures"
#define TRANSFER_FROM                                                                                                                      \
    " FROM transfers t JOIN vendors v ON v.id=t.vendor_id JOIN vendors w ON w.id=t.to_vendor_id JOIN licenses l ON l.id=t.license_id"      \
    " JOIN applications a ON a.id=l.application_id LEFT JOIN customers c ON c.id=t.to_customer_id"

/* For the caller: his own, and, where he is another vendor than the giver, without the giver's customer. */
static struct jv *transfer_print(const struct api *rq, const struct store_stmt *st)
{
    struct jv *v = jv_object(), *license = jv_object();
    bool is_giver = rq->customer_id ? false : str_eq_c(store_col_str(st, 3), rq->vendor_id);
    bool is_receiver = rq->customer_id ? str_eq_c(store_col_str(st, 6), rq->customer_id) : str_eq_c(store_col_str(st, 5), rq->vendor_id);
    struct str status = store_col_str(st, 8);
    bool is_over = str_eq(status, S("pending")) && store_col_int(st, 9) <= rq->now_s;
    jv_set_str(v, "id", store_col_str(st, 0));
    jv_set_str(v, "status", is_over ? S("expired") : status);
    jv_set_c(v, "direction", is_giver && is_receiver ? "internal" : is_giver ? "outgoing" : "incoming");
    jv_set_str(v, "license_id", store_col_str(st, 1));
    jv_set_str(v, "from_vendor", store_col_str(st, 15));
    jv_set_str(v, "to_vendor", store_col_str(st, 16));
    if (is_giver)
        jv_set_str(v, "from_customer_id", store_col_str(st, 4));
    else
        jv_set_c(v, "from_customer_id", NULL);
    if (store_col_str(st, 6).n && is_receiver)
        jv_set_str(v, "to_customer_id", store_col_str(st, 6));
    else
        jv_set_c(v, "to_customer_id", NULL);
    jv_set_str(license, "name", store_col_str(st, 2));
    jv_set_str(license, "application", store_col_str(st, 22));
    jv_set_str(license, "application_name", store_col_str(st, 23));
    jv_set_str(license, "status", store_col_str(st, 17));
    jv_set_str(license, "type", store_col_str(st, 18));
    jv_set_str(license, "period", store_col_str(st, 19));
    jv_set_time(license, "expires_at", store_col_int(st, 20));
    api_set_json(license, "allowed_cidrs", store_col_str(st, 21));
    jv_set(v, "license", license);
    jv_set_time(v, "created_at", store_col_int(st, 10));
    jv_set_time(v, "expires_at", store_col_int(st, 9));
    jv_set_time(v, "ended_at", store_col_int(st, 11));
    jv_set_str(v, "reason", store_col_str(st, 14));
    return v;
}

/* Who may see it: both vendors, and in the portal the customer that it is offered to. */
#define SEEN "((?2='' AND (t.vendor_id=?1 OR t.to_vendor_id=?1)) OR (?2<>'' AND t.to_vendor_id=?1 AND t.to_customer_id=?2))"

static struct str seer(const struct api *rq)
{
    return rq->customer_id ? str_c(rq->customer_id) : S("");
}

static enum err transfer_load(struct api *rq, struct str id, struct jv **ret, struct transfer *ret_row)
{
    struct store_stmt *st = NULL;
    bool row = false;
    enum err err = store_query(rq->store, &st, &rq->error, "SELECT " TRANSFER_COLUMNS TRANSFER_FROM " WHERE t.id=?3 AND " SEEN, "zss",
                               rq->vendor_id, seer(rq), id);
    if (!err)
        err = store_step(st, &row, &rq->error);
    if (!err && !row)
        err = api_not_found(rq, "transfer");
    if (!err && ret)
        *ret = transfer_print(rq, st);
    if (!err && ret_row) {
        char **const fields[] = {&ret_row->id,           &ret_row->license_id,     &ret_row->license_name, &ret_row->vendor_id, &ret_row->customer_id,
                                 &ret_row->to_vendor_id, &ret_row->to_customer_id, &ret_row->secret_hash,  &ret_row->status};
        for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
            *fields[i] = str_dup(store_col_str(st, (int)i));
        ret_row->expires_at = store_col_int(st, 9);
    }
    store_done(&st);
    return err;
}

static enum err transfer_get(struct api *rq)
{
    return transfer_load(rq, rq->params[0], &rq->out, NULL);
}

static enum err transfer_list(struct api *rq)
{
    struct page page;
    struct store_stmt *st = NULL;
    struct strbuf status = {0}, direction = {0}, license = {0};
    bool row;
    enum err err = api_page(rq, &page);
    if (err)
        return err;
    api_query(rq, "status", &status);
    api_query(rq, "direction", &direction);
    api_query(rq, "license_id", &license);
    struct jv *items = api_list(rq);
    /* by id, which ascends with the time; each side has its index */
    err = store_query(rq->store, &st, &rq->error,
                      "SELECT " TRANSFER_COLUMNS TRANSFER_FROM
                      " WHERE t.id IN (SELECT id FROM transfers WHERE vendor_id=?1 UNION SELECT id FROM transfers WHERE to_vendor_id=?1)"
                      " AND " SEEN " AND (?3='' OR CASE WHEN t.status='pending' AND t.expires_at<=?8 THEN 'expired' ELSE t.status END=?3)"
                      " AND (?4='' OR CASE WHEN t.vendor_id=t.to_vendor_id THEN 'internal' WHEN t.vendor_id=?1 THEN 'outgoing' ELSE 'incoming' END=?4)"
                      " AND (?9='' OR t.license_id=?9)"
                      " AND (t.created_at, t.id) > (?5,?6) ORDER BY t.created_at, t.id LIMIT ?7",
                      "zsssiziis", rq->vendor_id, seer(rq), sb_str(&status), sb_str(&direction), page.after_key, page.after_id,
                      (int64_t)page.limit + 1, rq->now_s, sb_str(&license));
    while (!err) {
        err = store_step(st, &row, &rq->error);
        if (err || !row || !api_page_take(&page, rq->out, store_col_int(st, 10), store_col_str(st, 0).p))
            break;
        jv_push(items, transfer_print(rq, st));
    }
    store_done(&st);
    sb_free(&status);
    sb_free(&direction);
    sb_free(&license);
    return err;
}

/* ---- events -------------------------------------------------------------------------------------------------------------- */

/* For the giver, and for the receiver where that is another vendor. */
static enum err transfer_tell(struct api *rq, const struct transfer *t, const char *type)
{
    struct jv *data = jv_object();
    jv_set_c(data, "transfer_id", t->id);
    jv_set_c(data, "license_name", t->license_name);
    struct event_record e = {.vendor_id = t->vendor_id,
                             .type = type,
                             .actor = rq->actor,
                             .customer_id = t->customer_id,
                             .license_id = t->license_id,
                             .object_id = t->id,
                             .data = data};
    enum err err = eventlog_put(rq->store, &e, &rq->error);
    if (!err && strcmp(t->vendor_id, t->to_vendor_id) != 0) {
        e.vendor_id = t->to_vendor_id;
        e.customer_id = t->to_customer_id[0] ? t->to_customer_id : NULL;
        err = eventlog_put(rq->store, &e, &rq->error);
    }
    jv_free(data);
    return err;
}

static enum err transfer_end(struct api *rq, struct transfer *t, const char *status, struct str reason)
{
    char type[40];
    snprintf(type, sizeof type, "transfer.%s", status);
    enum err err = store_exec(rq->store, NULL, &rq->error,
                              "UPDATE transfers SET status=?, ended_at=?, ended_by=?, reason=COALESCE(?,reason), to_customer_id=? WHERE id=?",
                              "zizszz", status, rq->now_s, rq->actor, reason, t->to_customer_id, t->id);
    return err ? err : transfer_tell(rq, t, type);
}

/* ---- the offer ------------------------------------------------------------------------------------------------------------ */

static bool action_allowed(const struct jv *license, const char *action)
{
    const struct jv *list = jv_get(license, "allowed_actions");
    for (size_t i = 0; i < jv_len(list); i++)
        if (str_eq_c(jv_str(jv_at(list, i)), action))
            return true;
    return false;
}

static enum err not_allowed(struct api *rq, const struct jv *license)
{
    enum err err = api_fail(rq, ERR_CONFLICT, "action_not_allowed", NULL, "transfer is not allowed: the license is %s",
                            jv_get_c(license, "status", "gone"));
    rq->problem = jv_object();
    jv_set(rq->problem, "allowed_actions", jv_get(license, "allowed_actions") ? jv_copy(jv_get(license, "allowed_actions")) : jv_array());
    return err;
}

static enum err offer_receiver(struct api *rq, const struct jv *license, struct transfer *t)
{
    struct str customer = jv_get_str(rq->in, "to_customer_id"), vendor = jv_get_str(rq->in, "to_vendor");
    struct strbuf found_id = {0};
    bool found = false;
    enum err err = ERR_OK;
    if (!customer.p == !vendor.p)
        return api_fail(rq, ERR_INVALID, customer.p ? "invalid_field" : "missing_field", "to_customer_id",
                        "to_customer_id: either a customer of your own, or to_vendor");
    if (customer.p) {
        err = api_lookup(rq, "SELECT vendor_id FROM customers WHERE id=? AND archived_at=0", customer, &found_id, &found);
        if (!err && (!found || !str_eq_c(sb_str(&found_id), rq->vendor_id)))
            err = api_fail(rq, ERR_INVALID, "unknown_reference", "to_customer_id", "to_customer_id: there is no such customer");
        if (!err && str_eq(customer, jv_get_str(license, "customer_id")))
            err = api_fail(rq, ERR_INVALID, "invalid_field", "to_customer_id", "to_customer_id: has it already");
        t->to_vendor_id = mem_strdup(rq->vendor_id);
        t->to_customer_id = str_dup(customer);
    } else {
        err = api_lookup(rq, "SELECT id FROM vendors WHERE slug=?", vendor, &found_id, &found);
        if (!err && (!found || str_eq_c(sb_str(&found_id), rq->vendor_id)))
            err = api_fail(rq, ERR_INVALID, "unknown_reference", "to_vendor", "to_vendor: there is no other vendor of this slug");
        t->to_vendor_id = str_dup(sb_str(&found_id));
        t->to_customer_id = mem_strdup("");
    }
    sb_free(&found_id);
    return err;
}

static enum err transfer_offer(struct api *rq)
{
    struct jv *license = NULL;
    struct transfer t = {0};
    uint64_t lifetime_ms = LIFETIME_DEFAULT_S * 1000ull;
    struct error error = {0};
    char id[ID_MAX], secret[CREDENTIAL_TEXT_MAX] = "", hash[CREDENTIAL_HASH_MAX];
    enum err err = licenses_get(rq, rq->params[0], &license);
    if (err)
        return err;
    mem_free(rq->etag);
    rq->etag = NULL;
    if (!action_allowed(license, "transfer"))
        err = not_allowed(rq, license);
    if (!err)
        err = offer_receiver(rq, license, &t);
    if (!err && api_has(rq, "lifetime") && clock_parse_duration(jv_get_str(rq->in, "lifetime"), &lifetime_ms, &error))
        err = api_fail(rq, ERR_INVALID, "invalid_field", "lifetime", "lifetime: %s", error.text);
    if (!err && (lifetime_ms < LIFETIME_MIN_S * 1000ull || lifetime_ms > LIFETIME_MAX_S * 1000ull))
        err = api_fail(rq, ERR_INVALID, "invalid_field", "lifetime", "lifetime: 1m to 90d");
    if (err)
        goto out;
    id_new("trf_", id);
    credential_new("pgt_", secret);
    credential_hash(rq->admin->keys, str_c(secret), hash);
    t.id = mem_strdup(id);
    t.license_id = str_dup(jv_get_str(license, "id"));
    t.license_name = str_dup(jv_get_str(license, "name"));
    t.vendor_id = mem_strdup(rq->vendor_id);
    t.customer_id = str_dup(jv_get_str(license, "customer_id"));
    /* One that is over only because nobody looked yet makes room. */
    err = store_exec(rq->store, NULL, &rq->error,
                     "UPDATE transfers SET status='expired', ended_at=?1, ended_by='system:clock' WHERE license_id=?2 AND status='pending' AND"
                     " expires_at<=?1",
                     "iz", rq->now_s, t.license_id);
    if (!err)
        err = store_exec(rq->store, NULL, &rq->error,
                         "INSERT INTO transfers (id, license_id, license_name, vendor_id, customer_id, to_vendor_id, to_customer_id, secret_hash,"
                         " status, created_at, expires_at, created_by, reason) VALUES (?,?,?,?,?,?,?,?,'pending',?,?,?,COALESCE(?,''))",
                         "zzzzzzzziizs", t.id, t.license_id, t.license_name, t.vendor_id, t.customer_id, t.to_vendor_id, t.to_customer_id, hash,
                         rq->now_s, rq->now_s + (int64_t)(lifetime_ms / 1000), rq->actor, jv_get_str(rq->in, "reason"));
    if (err == ERR_CONFLICT)
        err = api_fail(rq, ERR_CONFLICT, "offered_already", NULL, "the license is offered already; cancel that transfer first");
    if (!err)
        err = transfer_tell(rq, &t, "transfer.offered");
    if (!err)
        err = transfer_load(rq, str_c(id), &rq->out, NULL);
    if (!err) {
        rq->after = jv_copy(rq->out);
        jv_set_c(rq->out, "secret", secret);
        api_created(rq, "/api/v1/transfers/", id);
    }
out:
    mem_cleanse(secret, sizeof secret);
    jv_free(license);
    transfer_free(&t);
    return err;
}

/* ---- the answer to it ------------------------------------------------------------------------------------------------------ */

struct failure {
    int64_t at_s;
    char id[ID_MAX];
};

static enum err failure_write(struct store *s, void *arg, struct error *reterr)
{
    const struct failure *f = arg;
    return store_exec(s, NULL, reterr,
                      "UPDATE transfers SET failures=failures+1, status=CASE WHEN failures+1>=?1 THEN 'dead' ELSE status END,"
                      " ended_at=CASE WHEN failures+1>=?1 THEN ?2 ELSE 0 END WHERE id=?3 AND status='pending'",
                      "iiz", (int64_t)FAILURES_MAX, f->at_s, f->id);
}

static void failure_done(void *arg, enum err err)
{
    (void)err; /* a count that is lost is no right that is won: the secret has 256 bits */
    mem_free(arg);
}

/* The request is refused and leaves nothing behind; the count is a transaction of its own after it. */
static void failure_note(struct api *rq, const char *id)
{
    struct failure *f = NEW(struct failure);
    f->at_s = rq->now_s;
    snprintf(f->id, sizeof f->id, "%s", id);
    if (!rq->admin->writer || db_post(rq->admin->writer, DB_TRANSACTION, failure_write, f, failure_done)) /* none: a handler run by itself */
        failure_done(f, ERR_OK);
}

/* The transfer of the path is pending, and of the side that may do this. */
static enum err transfer_pending(struct api *rq, bool by_receiver, struct transfer *t)
{
    enum err err = transfer_load(rq, rq->params[0], &rq->before, t);
    if (err)
        return err;
    api_audit_object(rq, t->id);
    if (strcmp(by_receiver ? t->to_vendor_id : t->vendor_id, rq->vendor_id) != 0 || (rq->license_id && rq->license_id[0]))
        return api_fail(rq, ERR_DENIED, "not_yours", NULL, by_receiver ? "only who it is offered to may do this" : "only who offered it may do this");
    if (strcmp(t->status, "pending") == 0 && t->expires_at <= rq->now_s)
        return api_fail(rq, ERR_CONFLICT, "transfer_expired", NULL, "the offer is over");
    if (strcmp(t->status, "dead") == 0)
        return api_fail(rq, ERR_CONFLICT, "transfer_ended", NULL, "the offer is dead, after %d attempts with another text", FAILURES_MAX);
    if (strcmp(t->status, "pending") != 0)
        return api_fail(rq, ERR_CONFLICT, "transfer_ended", NULL, "the transfer is %s", t->status);
    return ERR_OK;
}

static enum err secret_check(struct api *rq, const struct transfer *t)
{
    char hash[CREDENTIAL_HASH_MAX];
    credential_hash(rq->admin->keys, str_trim(jv_get_str(rq->in, "secret")), hash);
    if (strlen(t->secret_hash) == strlen(hash) && str_eq_secret(hash, t->secret_hash, strlen(hash)))
        return ERR_OK;
    failure_note(rq, t->id);
    return api_fail(rq, ERR_DENIED, "wrong_secret", "secret", "secret: not the one of this offer; after %d wrong ones it dies", FAILURES_MAX);
}

static enum err accept_customer(struct api *rq, struct transfer *t)
{
    struct str customer = rq->customer_id ? str_c(rq->customer_id) : jv_get_str(rq->in, "customer_id");
    struct strbuf vendor = {0};
    bool found = false;
    if (t->to_customer_id[0]) {
        if (customer.p && !str_eq_c(customer, t->to_customer_id))
            return api_fail(rq, ERR_INVALID, "invalid_field", "customer_id", "customer_id: it is offered to another customer");
        customer = str_c(t->to_customer_id);
    }
    if (!customer.n)
        return api_fail(rq, ERR_INVALID, "missing_field", "customer_id", "customer_id: say whose it becomes");
    enum err err = api_lookup(rq, "SELECT vendor_id FROM customers WHERE id=? AND archived_at=0", customer, &vendor, &found);
    if (!err && (!found || !str_eq_c(sb_str(&vendor), rq->vendor_id)))
        err = api_fail(rq, ERR_INVALID, "unknown_reference", "customer_id", "customer_id: there is no such customer");
    if (!err) {
        char *copy = str_dup(customer);
        mem_free(t->to_customer_id);
        t->to_customer_id = copy;
    }
    sb_free(&vendor);
    return err;
}

/* Another vendor's: its own application of the same slug takes the place, and has every repository that a grant names. */
static enum err accept_application(struct api *rq, const struct transfer *t, struct strbuf *ret)
{
    struct store_stmt *st = NULL;
    bool row = false;
    enum err err = store_query(rq->store, &st, &rq->error,
                               "SELECT b.id FROM licenses l JOIN applications a ON a.id=l.application_id"
                               " JOIN applications b ON b.slug=a.slug AND b.vendor_id=?2 AND b.archived_at=0 WHERE l.id=?1",
                               "zz", t->license_id, t->to_vendor_id);
    if (!err)
        err = store_step(st, &row, &rq->error);
    if (!err && row)
        sb_add(ret, store_col_str(st, 0));
    store_done(&st);
    if (!err && !row)
        return api_fail(rq, ERR_CONFLICT, "application_not_there", NULL, "there is no application of the same slug here");
    if (!err)
        err = store_query(rq->store, &st, &rq->error,
                          "SELECT 1 FROM grants g, json_each(g.repositories) r WHERE g.license_id=? AND NOT EXISTS"
                          " (SELECT 1 FROM repositories p WHERE p.application_id=? AND p.name=r.value) LIMIT 1",
                          "zs", t->license_id, sb_str(ret));
    if (!err)
        err = store_step(st, &row, &rq->error);
    store_done(&st);
    if (!err && row)
        err = api_fail(rq, ERR_CONFLICT, "grants_do_not_fit", NULL, "a grant names a repository that the application here does not have");
    return err;
}

/* Calls fn as the giver: the license is his until it has moved. */
static enum err as_vendor(struct api *rq, const char *vendor_id, enum err (*fn)(struct api *rq, const struct transfer *t), const struct transfer *t)
{
    char *kept = rq->vendor_id;
    rq->vendor_id = mem_strdup(vendor_id);
    enum err err = fn(rq, t);
    mem_free(rq->vendor_id);
    rq->vendor_id = kept;
    return err;
}

static struct jv *moved_data(const struct transfer *t)
{
    struct jv *data = jv_object();
    jv_set_c(data, "transfer_id", t->id);
    jv_set_c(data, "from_customer_id", t->customer_id);
    if (strcmp(t->vendor_id, t->to_vendor_id) == 0)
        jv_set_c(data, "to_customer_id", t->to_customer_id);
    return data;
}

static enum err give(struct api *rq, const struct transfer *t)
{
    struct jv *license = NULL, *data = moved_data(t), *in = jv_object();
    enum err err = licenses_get(rq, str_c(t->license_id), &license);
    if (!err && !action_allowed(license, "transfer"))
        err = not_allowed(rq, license);
    if (!err) /* key, credentials and installations of the old owner end; files that were given out are revoked */
        err = licenses_act(rq, str_c(t->license_id), "reset", in);
    if (!err) {
        struct jv *kept = rq->out;
        rq->out = NULL;
        err = licenses_changed(rq, str_c(t->license_id), "license.transfer_given", (struct str){NULL, 0}, data);
        jv_free(rq->out);
        rq->out = kept; /* with the new key */
    }
    jv_free(license);
    jv_free(data);
    jv_free(in);
    return err;
}

static enum err move(struct api *rq, const struct transfer *t, struct str application_id)
{
    bool is_far = strcmp(t->vendor_id, t->to_vendor_id) != 0;
    struct str name = jv_get_str(rq->in, "name");
    enum err err = store_exec(rq->store, NULL, &rq->error, "UPDATE licenses SET customer_id=?, name=COALESCE(?,name), source='transfer' WHERE id=?",
                              "zsz", t->to_customer_id, name, t->license_id);
    if (err == ERR_CONFLICT)
        return api_fail(rq, ERR_CONFLICT, "name_taken", "name", "name: the customer has a license of this name; give another one");
    if (!err && is_far)
        err = store_exec(rq->store, NULL, &rq->error,
                         "UPDATE licenses SET vendor_id=?1, application_id=?2, plan_id='', order_id='', upstream_credential_id='', change_at=0,"
                         " renew_needs_payment=0, payment_failed_at=0, payment_retries=0," /* of the giver's order, which nobody there can pay */
                         " issuer=CASE issuer WHEN '' THEN (SELECT slug FROM vendors WHERE id=?3) ELSE issuer END WHERE id=?4",
                         "zszz", t->to_vendor_id, application_id, t->vendor_id, t->license_id);
    if (!err && is_far)
        err = store_exec(rq->store, NULL, &rq->error,
                         "UPDATE scheduled_changes SET status='cancelled', detail='transferred', done_at=? WHERE license_id=? AND status='pending'", "iz",
                         rq->now_s, t->license_id);
    if (!err && is_far) /* digests of the other application's repositories */
        err = store_exec(rq->store, NULL, &rq->error, "DELETE FROM grant_pins WHERE grant_id IN (SELECT id FROM grants WHERE license_id=?)", "z",
                         t->license_id);
    if (!err && is_far)
        err = tags_pin_license(rq->store, str_c(t->license_id), rq->now_s, &rq->error);
    return err;
}

static enum err transfer_accept(struct api *rq)
{
    struct transfer t = {0};
    struct strbuf application = {0}, key = {0};
    struct jv *in = jv_copy(rq->in), *data = NULL, *before = NULL;
    enum err err = transfer_pending(rq, true, &t);
    if (!err)
        err = secret_check(rq, &t);
    if (!err)
        err = accept_customer(rq, &t);
    if (!err && strcmp(t.vendor_id, t.to_vendor_id) != 0)
        err = accept_application(rq, &t, &application);
    before = rq->before;
    rq->before = NULL;
    if (!err)
        err = as_vendor(rq, t.vendor_id, give, &t);
    if (!err)
        sb_add(&key, jv_get_str(rq->out, "key"));
    jv_free(rq->before);
    rq->before = NULL;
    if (!err)
        err = move(rq, &t, sb_str(&application));
    if (!err) {
        data = moved_data(&t);
        err = licenses_changed(rq, str_c(t.license_id), "license.transferred", (struct str){NULL, 0}, data);
    }
    if (!err) /* who had it can pull it no more */
        err = outbox_put_kind(rq->store, 'c', str_c(t.customer_id), true, &rq->error);
    if (!err)
        err = transfer_end(rq, &t, "accepted", (struct str){NULL, 0});
    jv_free(rq->out);
    jv_free(rq->before);
    jv_free(rq->after);
    mem_free(rq->etag);
    rq->out = rq->after = NULL;
    rq->etag = NULL;
    rq->before = before;
    if (!err)
        err = transfer_load(rq, str_c(t.id), &rq->out, NULL);
    if (!err) {
        rq->after = jv_copy(rq->out);
        jv_set_str(rq->out, "key", sb_str(&key));
        api_audit_object(rq, t.id);
    }
    if (key.p)
        mem_cleanse(key.p, key.n);
    sb_free(&key);
    sb_free(&application);
    jv_free(in);
    jv_free(data);
    transfer_free(&t);
    return err;
}

static enum err transfer_close(struct api *rq, bool by_receiver, const char *status)
{
    struct transfer t = {0};
    enum err err = transfer_pending(rq, by_receiver, &t);
    if (!err)
        err = transfer_end(rq, &t, status, jv_get_str(rq->in, "reason"));
    if (!err)
        err = transfer_load(rq, str_c(t.id), &rq->out, NULL);
    if (!err)
        rq->after = jv_copy(rq->out);
    transfer_free(&t);
    return err;
}

static enum err transfer_reject(struct api *rq)
{
    return transfer_close(rq, true, "rejected");
}

static enum err transfer_cancel(struct api *rq)
{
    return transfer_close(rq, false, "cancelled");
}

/* ---- routes ---------------------------------------------------------------------------------------------------------------- */

static const struct field PREVIEW_FIELDS[] = {
    {.name = "name", .type = FIELD_STRING},
    {.name = "application", .type = FIELD_STRING},
    {.name = "application_name", .type = FIELD_STRING},
    {.name = "status", .type = FIELD_STRING},
    {.name = "type", .type = FIELD_STRING},
    {.name = "period", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "expires_at", .type = FIELD_TIME},
    {.name = "allowed_cidrs", .type = FIELD_STRINGS},
    {.name = NULL},
};
static const struct field TRANSFER_FIELDS[] = {
    {.name = "id", .type = FIELD_STRING},
    {.name = "status", .type = FIELD_STRING, .one_of = "pending|accepted|rejected|cancelled|expired|dead"},
    {.name = "direction", .type = FIELD_STRING, .one_of = "incoming|outgoing|internal"},
    {.name = "license_id", .type = FIELD_STRING},
    {.name = "from_vendor", .type = FIELD_STRING, .about = "slug"},
    {.name = "to_vendor", .type = FIELD_STRING, .about = "slug"},
    {.name = "from_customer_id", .type = FIELD_STRING, .flags = FIELD_NULL},
    {.name = "to_customer_id", .type = FIELD_STRING, .flags = FIELD_NULL},
    {.name = "license", .type = FIELD_OBJECT, .sub = PREVIEW_FIELDS, .about = "what is given"},
    {.name = "created_at", .type = FIELD_TIME},
    {.name = "expires_at", .type = FIELD_TIME, .about = "of the offer"},
    {.name = "ended_at", .type = FIELD_TIME},
    {.name = "reason", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "secret", .type = FIELD_SECRET, .flags = FIELD_OPTIONAL, .about = "what the receiver accepts with; shown once"},
    {.name = "key", .type = FIELD_SECRET, .flags = FIELD_OPTIONAL, .about = "the license's new key; shown once, to who accepts"},
    {.name = NULL},
};
static const struct schema TRANSFER = {"Transfer", TRANSFER_FIELDS};

static const struct field OFFER_FIELDS[] = {
    {.name = "to_customer_id", .type = FIELD_STRING, .max = 64},
    {.name = "to_vendor", .type = FIELD_STRING, .max = 64, .about = "slug; its people say whose it becomes when they accept"},
    {.name = "lifetime", .type = FIELD_STRING, .max = 20, .about = "of the offer: 1m to 90d; 7d when absent"},
    {.name = "reason", .type = FIELD_STRING, .flags = FIELD_EMPTY, .max = 500},
    {.name = NULL},
};
static const struct schema OFFER = {"TransferOffer", OFFER_FIELDS};
static const struct field ACCEPT_FIELDS[] = {
    {.name = "secret", .type = FIELD_SECRET, .flags = FIELD_REQUIRED, .max = 100},
    {.name = "customer_id", .type = FIELD_STRING, .max = 64, .about = "whose it becomes, where the offer is to a vendor"},
    {.name = "name", .type = FIELD_STRING, .about = "another name for the license, where its own is taken"},
    {.name = NULL},
};
static const struct schema ACCEPT = {"TransferAccept", ACCEPT_FIELDS};
static const struct field PORTAL_ACCEPT_FIELDS[] = {
    {.name = "secret", .type = FIELD_SECRET, .flags = FIELD_REQUIRED, .max = 100},
    {.name = "name", .type = FIELD_STRING, .about = "another name for the license, where its own is taken"},
    {.name = NULL},
};
static const struct schema PORTAL_ACCEPT = {"PortalTransferAccept", PORTAL_ACCEPT_FIELDS};
static const struct field END_FIELDS[] = {
    {.name = "reason", .type = FIELD_STRING, .flags = FIELD_EMPTY, .max = 500},
    {.name = NULL},
};
static const struct schema END = {"TransferEnd", END_FIELDS};
static const struct query_param LIST_PARAMS[] = {{"status", "pending, accepted, rejected, cancelled, expired, dead"},
                                                 {"direction", "incoming, outgoing, internal"},
                                                 {"license_id", "only of this license"},
                                                 {NULL, NULL}};
static const struct query_param PORTAL_LIST_PARAMS[] = {{"status", "pending, accepted, rejected, cancelled, expired, dead"}, {NULL, NULL}};

#define TRF "/api/v1/transfers"
#define PTL "/portal/v1/transfers"
const struct route TRANSFER_ROUTES[] = {
    {HEAD_POST, "/api/v1/licenses/{id}/transfer", transfer_offer, ROLE_LICENSES, 0, &OFFER, &TRANSFER, NULL, "transfer.create",
     "Offer a license to another customer or vendor; the secret is shown once"},
    {HEAD_GET, TRF, transfer_list, ROLE_VIEWER, ROUTE_LIST, NULL, &TRANSFER, LIST_PARAMS, "transfer.list", "Offers made and received"},
    {HEAD_GET, TRF "/{id}", transfer_get, ROLE_VIEWER, 0, NULL, &TRANSFER, NULL, "transfer.get", "One offer, with what is given"},
    {HEAD_POST, TRF "/{id}/accept", transfer_accept, ROLE_LICENSES, ROUTE_ACTION, &ACCEPT, &TRANSFER, NULL, "transfer.accept",
     "Take the license over; its new key is shown once"},
    {HEAD_POST, TRF "/{id}/reject", transfer_reject, ROLE_LICENSES, ROUTE_ACTION, &END, &TRANSFER, NULL, "transfer.reject", "Decline an offer"},
    {HEAD_POST, TRF "/{id}/cancel", transfer_cancel, ROLE_LICENSES, ROUTE_ACTION, &END, &TRANSFER, NULL, "transfer.cancel", "Take an offer back"},
    {HEAD_GET, PTL, transfer_list, ROLE_CUSTOMER, ROUTE_LIST, NULL, &TRANSFER, PORTAL_LIST_PARAMS, "portal.transfer.list", "Licenses offered to you"},
    {HEAD_POST, PTL "/{id}/accept", transfer_accept, ROLE_CUSTOMER, ROUTE_ACTION, &PORTAL_ACCEPT, &TRANSFER, NULL, "portal.transfer.accept",
     "Take a license over; its new key is shown once"},
    {HEAD_POST, PTL "/{id}/reject", transfer_reject, ROLE_CUSTOMER, ROUTE_ACTION, &END, &TRANSFER, NULL, "portal.transfer.reject",
     "Decline an offer"},
    {.path = NULL},
};
