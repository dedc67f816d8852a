/* What a payment system tells of an order, signed with the vendor's hook secret, and what becomes of the license:
 *
 *   payment_succeeded   license inactive        active, by what was ordered; a plan with manual_validation waits for the approval
 *                       active, first payment   it pays the period that runs, and renews where that is over
 *                       active, later           renewed by the order's period; of a license without an end its updates_until, by the
 *                                               plan's period; without either there is nothing to renew
 *                       suspended for payment   reinstated and renewed by one period; not by the first payment, while its period runs
 *                       suspended otherwise     nothing but the record: who suspended it lifts it
 *                       revoked, deleted,       nothing but the record and an event
 *                       another vendor's,
 *                       the order cancelled
 *                       always                  failed payments are forgotten; the order is paid
 *   payment_failed      active                  the first since the last payment is stamped, each is counted. The license stays active for
 *                                               grace_days from the stamp; then the clock suspends it with the reason "payment"
 *                       else                    nothing but the record; nor of a cancelled order, of a perpetual license that was paid once
 *                                               (its maintenance ends when it ends), or of a failure that is older, by the timestamps, than
 *                                               the last success
 *
 * A change of plan that is due comes before what a payment does, as it would if the clock had looked before.
 *
 * An amount or currency that is told and is not the order's is refused, with an event; an order without a price has none to compare, and nor
 * has one whose license is of another plan since. Later payments may also be the sum without the coupon.
 *
 * The same event of the same transaction is taken once: another time it is answered 200 and changes nothing. So is a failure of a
 * transaction that has succeeded, which comes late. Whoever cannot sign learns nothing of orders: an unknown number, a vendor without a
 * secret and a wrong signature are one answer. */
#include <stdio.h>
#include <string.h>

#include "api_routes.h"
#include "eventlog.h"
#include "licenses.h"
#include "money.h"
#include "orders.h"
#include "plans.h"
#include "pullgate/credential.h"
#include "pullgate/mem.h"
#include "pullgate/seal.h"

#define CANDIDATES_MAX 64 /* vendors that have an order of one number; beyond, ?vendor= has to name one */
#define SECRET_MIN     32

/* ---- schemas ----------------------------------------------------------------------------------------------------------- */

static const struct field PAYMENT_FIELDS[] = {
    {.name = "order_number", .type = FIELD_STRING, .flags = FIELD_REQUIRED, .max = 64},
    {.name = "event", .type = FIELD_STRING, .flags = FIELD_REQUIRED, .one_of = "payment_succeeded|payment_failed"},
    {.name = "transaction_id", .type = FIELD_STRING, .flags = FIELD_REQUIRED},
    {.name = "amount", .type = FIELD_STRING, .flags = FIELD_EMPTY, .max = 40, .about = "decimal; where it is given, it is the order's total"},
    {.name = "currency", .type = FIELD_STRING, .flags = FIELD_EMPTY, .max = 40, .about = "where it is given, it is the order's"},
    {.name = "reason", .type = FIELD_STRING, .flags = FIELD_EMPTY, .max = 500, .about = "of a failure"},
    {.name = "timestamp", .type = FIELD_TIME, .about = "when it happened: a failure from before the last success starts no grace"},
    {.name = NULL},
};
static const struct schema PAYMENT = {"Payment", PAYMENT_FIELDS};

static const struct field RESULT_FIELDS[] = {
    {.name = "order_number", .type = FIELD_STRING},
    {.name = "order_status", .type = FIELD_STRING},
    {.name = "license_status", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "result", .type = FIELD_STRING, .one_of = "activated|awaiting_approval|recorded|renewed|reinstated|grace|ignored"},
    {.name = "replayed", .type = FIELD_BOOL, .about = "it was told before: nothing changed"},
    {.name = NULL},
};
static const struct schema RESULT = {"PaymentResult", RESULT_FIELDS};

static const struct field SECRET_IN_FIELDS[] = {
    {.name = "secret", .type = FIELD_SECRET, .min = SECRET_MIN, .max = 200, .about = "one of the payment system's; made here when absent"},
    {.name = NULL},
};
static const struct schema SECRET_IN = {"HookSecretSet", SECRET_IN_FIELDS};
static const struct field SECRET_FIELDS[] = {
    {.name = "secret", .type = FIELD_SECRET, .about = "shown once"},
    {.name = "created_at", .type = FIELD_TIME},
    {.name = NULL},
};
static const struct schema SECRET = {"HookSecret", SECRET_FIELDS};

/* ---- the secret -------------------------------------------------------------------------------------------------------- */

static void secret_aad(const char *vendor_id, struct strbuf *ret)
{
    sb_addf(ret, "hook|%s", vendor_id);
}

/* Another one ends the one before at once. */
static enum err hook_secret_set(struct api *rq)
{
    struct strbuf aad = {0}, sealed = {0};
    char made[CREDENTIAL_TEXT_MAX];
    if (!str_eq_c(rq->params[0], rq->vendor_id))
        return api_not_found(rq, "vendor");
    credential_new("pgh_", made);
    struct str secret = jv_get_str(rq->in, "secret");
    if (!secret.n)
        secret = str_c(made);
    secret_aad(rq->vendor_id, &aad);
    enum err err = keyring_seal(rq->admin->keys, sb_str(&aad), secret, &sealed, &rq->error);
    if (!err)
        err = store_exec(rq->store, NULL, &rq->error,
                         "INSERT INTO hook_secrets (vendor_id, secret_sealed, created_at) VALUES (?1,?2,?3)"
                         " ON CONFLICT (vendor_id) DO UPDATE SET secret_sealed=?2, created_at=?3",
                         "zsi", rq->vendor_id, sb_str(&sealed), rq->now_s);
    if (!err) {
        rq->after = jv_object();
        jv_set_time(rq->after, "created_at", rq->now_s);
        rq->out = jv_copy(rq->after);
        jv_set_str(rq->out, "secret", secret);
        api_audit_object(rq, rq->vendor_id);
    }
    mem_cleanse(made, sizeof made);
    sb_free(&aad);
    sb_free(&sealed);
    return err;
}

/* ---- the signature ----------------------------------------------------------------------------------------------------- */

static bool signature_scan(const char *field, uint8_t ret[SEAL_MAC_LEN])
{
    struct str s = str_trim(str_c(field));
    return str_starts(s, S("sha256=")) && hex_decode(str_skip(s, 7), ret, SEAL_MAC_LEN);
}

static bool signature_holds(struct api *rq, const char *vendor_id, struct str sealed, const uint8_t given[SEAL_MAC_LEN])
{
    struct strbuf aad = {0};
    char *secret = NULL;
    size_t n = 0;
    uint8_t mac[SEAL_MAC_LEN];
    secret_aad(vendor_id, &aad);
    bool good = keyring_unseal(rq->admin->keys, sb_str(&aad), sealed, &secret, &n) == ERR_OK;
    sb_free(&aad);
    if (!good)
        return false;
    seal_hmac((struct str){secret, n}, rq->body, mac);
    mem_free_secret(secret, n);
    return str_eq_secret(mac, given, SEAL_MAC_LEN);
}

static enum err refuse(struct api *rq)
{
    return api_fail(rq, ERR_UNAUTHN, "bad_signature", NULL,
                    "no order of this number whose vendor's hook secret made X-Pullgate-Signature of this body");
}

/* The order whose vendor signed; sets rq's vendor and actor. Numbers are a vendor's own, so that several may have one of it. */
static enum err hook_authenticate(struct api *rq, struct strbuf *ret_order_id)
{
    struct store_stmt *st = NULL;
    struct strbuf vendor = {0};
    uint8_t given[SEAL_MAC_LEN], mac[SEAL_MAC_LEN];
    bool row = false, found = false;
    int n = 0;
    if (!rq->signature || !signature_scan(rq->signature, given))
        return refuse(rq);
    api_query(rq, "vendor", &vendor);
    enum err err = store_query(rq->store, &st, &rq->error,
                               "SELECT o.id, o.vendor_id, h.secret_sealed FROM orders o JOIN hook_secrets h ON h.vendor_id=o.vendor_id"
                               " JOIN vendors v ON v.id=o.vendor_id WHERE o.number=?1 AND (?2='' OR v.slug=?2) LIMIT ?3",
                               "szi", jv_get_str(rq->in, "order_number"), vendor.n ? vendor.p : "", (int64_t)CANDIDATES_MAX);
    while (!err && !found) {
        err = store_step(st, &row, &rq->error);
        if (err || !row)
            break;
        n++;
        if (signature_holds(rq, store_col_str(st, 1).p, store_col_str(st, 2), given)) {
            rq->vendor_id = str_dup(store_col_str(st, 1));
            rq->actor = mem_strdup("hook:payment");
            rq->role = ROLE_LICENSES;
            sb_add(ret_order_id, store_col_str(st, 0));
            found = true;
        }
    }
    store_done(&st);
    sb_free(&vendor);
    if (!err && n == 0) /* about the same work as where there is an order */
        seal_hmac(S("no order"), rq->body, mac);
    return !err && !found ? refuse(rq) : err;
}

/* ---- payments ---------------------------------------------------------------------------------------------------------- */

/* What was told before: the same event of the transaction, or, for a failure, that it succeeded. */
static enum err payment_seen(struct api *rq, const struct order *o, struct str transaction_id, struct str event, bool *ret)
{
    struct store_stmt *st = NULL;
    enum err err = store_query(rq->store, &st, &rq->error,
                               "SELECT 1 FROM payments WHERE order_id=? AND transaction_id=? AND (event=? OR event='payment_succeeded')", "zss", o->id,
                               transaction_id, event);
    if (!err)
        err = store_step(st, ret, &rq->error);
    store_done(&st);
    return err;
}

static enum err payment_record(struct api *rq, const struct order *o, const char *result)
{
    struct str amount = jv_get_str(rq->in, "amount"), reason = jv_get_str(rq->in, "reason");
    int64_t happened_at = 0;
    enum err err = api_time_start(rq, rq->in, "timestamp", "timestamp", &happened_at);
    if (err)
        return err;
    return store_exec(rq->store, NULL, &rq->error,
                      "INSERT INTO payments (vendor_id, order_id, event, transaction_id, amount, reason, result, at, happened_at)"
                      " VALUES (?,?,?,?,?,?,?,?,?)",
                      "zzsssszii", rq->vendor_id, o->id, jv_get_str(rq->in, "event"), jv_get_str(rq->in, "transaction_id"),
                      amount.p ? amount : S(""), reason.p ? reason : S(""), result, rq->now_s, happened_at);
}

static struct jv *payment_data(struct api *rq, const struct order *o)
{
    struct jv *data = jv_object();
    jv_set_c(data, "order_number", o->number);
    jv_set_str(data, "transaction_id", jv_get_str(rq->in, "transaction_id"));
    if (jv_get_str(rq->in, "amount").n)
        jv_set_str(data, "amount", jv_get_str(rq->in, "amount"));
    if (jv_get_str(rq->in, "reason").n)
        jv_set_str(data, "reason", jv_get_str(rq->in, "reason"));
    return data;
}

/* A further period of what was ordered, where the license or its right to updates has an end. Of a perpetual license that is as long as its
 * plan says, or the order did, where that is its plan. */
static enum err license_renew_by(struct api *rq, const struct order *o, const struct jv *license)
{
    struct jv *in = jv_object();
    enum err err = ERR_OK;
    struct str own = jv_get_str(license, "period"), plan_id = jv_get_str(license, "plan_id");
    bool has_end = jv_get_str(license, "expires_at").n > 0, has_updates_end = jv_get_str(license, "updates_until").n > 0;
    jv_set_c(in, "reason", "payment");
    if (!has_end && (!plan_id.n || str_eq_c(plan_id, o->plan_id)))
        jv_set_str(in, "period", plans_updates_period(o->plan, str_c(o->period)));
    else if (has_end && !own.n && o->period[0])
        jv_set_c(in, "period", o->period);
    if (has_end ? o->period[0] || own.n : has_updates_end)
        err = licenses_act(rq, str_c(o->license_id), "renew", in);
    jv_free(in);
    return err;
}

/* A change of plan that is due, before what is paid. *ret_is_paid: it took the end away, and gave what else a payment would. */
static enum err license_catch_up(struct api *rq, const struct order *o, struct jv **license, bool *ret_is_paid)
{
    bool had_end = jv_get_str(*license, "expires_at").n > 0;
    enum err err = plans_catch_up(rq, str_c(o->license_id));
    jv_free(*license);
    *license = NULL;
    if (!err)
        err = order_license(rq, o, license);
    *ret_is_paid = had_end && !jv_get_str(*license, "expires_at").n;
    return err;
}

/* Does the period, or the right to updates, that the license has run still? */
static enum err license_runs(struct api *rq, const struct jv *license, bool *ret)
{
    const char *name = jv_get_str(license, "expires_at").n ? "expires_at" : "updates_until";
    int64_t end = 0;
    enum err err = api_time_end(rq, license, name, name, &end);
    *ret = end > rq->now_s;
    return err;
}

static enum err payment_reinstates(struct api *rq, const struct order *o, struct jv **license, bool is_first)
{
    struct jv *in = jv_object();
    bool is_paid = false, runs = false;
    jv_set_c(in, "reason", "payment");
    enum err err = licenses_act(rq, str_c(o->license_id), "reinstate", in);
    if (!err)
        err = license_catch_up(rq, o, license, &is_paid);
    if (!err)
        err = license_runs(rq, *license, &runs);
    if (!err && !is_paid && !(is_first && runs))
        err = license_renew_by(rq, o, *license);
    jv_free(in);
    return err;
}

static enum err payment_renews(struct api *rq, const struct order *o, struct jv **license, const char **ret_result)
{
    bool is_paid = false, runs = false;
    enum err err = license_catch_up(rq, o, license, &is_paid);
    if (!err)
        err = license_runs(rq, *license, &runs);
    if (err || is_paid || (!jv_get_str(*license, "expires_at").n && !jv_get_str(*license, "updates_until").n))
        return err;
    if (o->paid_at == 0 && runs) /* it pays what runs */
        return ERR_OK;
    *ret_result = "renewed";
    return license_renew_by(rq, o, *license);
}

static enum err payment_succeeded(struct api *rq, const struct order *o, struct jv **license, const char **ret_result)
{
    struct str status = jv_get_str(*license, "status");
    bool is_first = o->paid_at == 0;
    enum err err = ERR_OK;
    *ret_result = "recorded";
    if (!*license || strcmp(o->status, "cancelled") == 0 || str_eq(status, S("revoked")) || jv_get_str(*license, "archived_at").n) {
        *ret_result = "ignored";
    } else if (str_eq(status, S("inactive"))) {
        *ret_result = o->manual_validation ? "awaiting_approval" : "activated";
        err = o->manual_validation ? ERR_OK : order_begin(rq, o, S("payment"));
    } else if (str_eq(status, S("suspended")) && str_eq(jv_get_str(*license, "status_reason"), S("payment"))) {
        *ret_result = "reinstated";
        err = payment_reinstates(rq, o, license, is_first);
    } else if (str_eq(status, S("active"))) {
        err = is_first ? order_begin(rq, o, S("payment")) : ERR_OK;
        if (!err)
            err = payment_renews(rq, o, license, ret_result);
    }
    if (err || strcmp(*ret_result, "ignored") == 0)
        return err;
    return store_exec(rq->store, NULL, &rq->error,
                      "UPDATE licenses SET payment_failed_at=0, payment_retries=0, transaction_id=? WHERE id=? AND vendor_id=?", "szz",
                      jv_get_str(rq->in, "transaction_id"), o->license_id, rq->vendor_id);
}

/* Did it happen before the last success? Known only where its time is told. */
static enum err failure_is_late(struct api *rq, const struct order *o, bool *ret)
{
    int64_t happened_at = 0, paid_at = 0;
    *ret = false;
    enum err err = api_time_start(rq, rq->in, "timestamp", "timestamp", &happened_at);
    if (!err && happened_at)
        err = api_number(rq,
                         "SELECT MAX(CASE happened_at WHEN 0 THEN at ELSE happened_at END) FROM payments WHERE order_id=? AND"
                         " event='payment_succeeded'",
                         str_c(o->id), &paid_at);
    *ret = !err && happened_at && happened_at < paid_at;
    return err;
}

static enum err payment_failed(struct api *rq, const struct order *o, const struct jv *license, const char **ret_result)
{
    bool is_late = false;
    enum err err = failure_is_late(rq, o, &is_late);
    bool is_bought = str_eq(jv_get_str(license, "type"), S("perpetual")) && o->paid_at != 0;
    bool counts = !is_late && !is_bought && strcmp(o->status, "cancelled") != 0 && str_eq(jv_get_str(license, "status"), S("active")) &&
                  !jv_get_str(license, "archived_at").n;
    *ret_result = counts ? "grace" : "recorded";
    if (err || !counts)
        return err;
    return store_exec(rq->store, NULL, &rq->error,
                      "UPDATE licenses SET payment_failed_at=CASE WHEN payment_failed_at=0 THEN ? ELSE payment_failed_at END,"
                      " payment_retries=payment_retries+1 WHERE id=? AND vendor_id=?",
                      "izz", rq->now_s, o->license_id, rq->vendor_id);
}

static enum err order_set_paid(struct api *rq, const struct order *o)
{
    return store_exec(rq->store, NULL, &rq->error,
                      "UPDATE orders SET status=CASE WHEN status='pending' THEN 'paid' ELSE status END, paid_at=CASE WHEN paid_at=0 THEN ?1 ELSE"
                      " paid_at END, transaction_id=?2, updated_at=?1, rev=rev+1 WHERE id=?3 AND vendor_id=?4",
                      "iszz", rq->now_s, jv_get_str(rq->in, "transaction_id"), o->id, rq->vendor_id);
}

/* How often it failed and when the grace ends, into what is told. */
static enum err add_grace(struct api *rq, const struct order *o, struct jv *data)
{
    struct store_stmt *st = NULL;
    bool row = false;
    enum err err = store_query(rq->store, &st, &rq->error,
                               "SELECT payment_failed_at, payment_retries, grace_days FROM licenses WHERE id=? AND vendor_id=?", "zz", o->license_id,
                               rq->vendor_id);
    if (!err)
        err = store_step(st, &row, &rq->error);
    if (!err && row && store_col_int(st, 0)) {
        jv_set_int(data, "failures", store_col_int(st, 1));
        jv_set_time(data, "payment_failed_at", store_col_int(st, 0));
        jv_set_time(data, "grace_ends_at", store_col_int(st, 0) + store_col_int(st, 2) * 86400);
    }
    store_done(&st);
    return err;
}

/* Answer, and the audit's row of what was changed. */
static enum err payment_answer(struct api *rq, const struct order *o, const char *result, bool is_replayed)
{
    struct order now = {.total = 0};
    struct jv *license = NULL;
    enum err err = order_load(rq, str_c(o->id), &now, NULL);
    if (!err)
        err = order_license(rq, o, &license);
    jv_free(rq->out);
    jv_free(rq->before);
    jv_free(rq->after);
    rq->out = rq->before = rq->after = NULL;
    MEM_FREE(rq->etag);
    if (!err) {
        rq->out = jv_object();
        jv_set_c(rq->out, "order_number", o->number);
        jv_set_c(rq->out, "order_status", now.status);
        jv_set_c(rq->out, "license_status", jv_get_c(license, "status", ""));
        jv_set_c(rq->out, "result", result);
        jv_set_bool(rq->out, "replayed", is_replayed);
    }
    if (!err && !is_replayed) {
        rq->after = jv_copy(rq->out);
        jv_set_str(rq->after, "event", jv_get_str(rq->in, "event"));
        jv_set_str(rq->after, "transaction_id", jv_get_str(rq->in, "transaction_id"));
        api_audit_object(rq, o->id);
        err = api_audit(rq, rq->route->action, "ok");
    }
    jv_free(license);
    order_free(&now);
    return err;
}

/* Told once for each transaction, however often it is tried; with an audit row. */
static enum err mismatch_tell(struct api *rq, const struct order *o)
{
    struct store_stmt *st = NULL;
    bool row = false;
    char text[MONEY_TEXT_MAX];
    struct str amount = jv_get_str(rq->in, "amount"), currency = jv_get_str(rq->in, "currency");
    enum err err = store_query(rq->store, &st, &rq->error,
                               "SELECT 1 FROM events WHERE vendor_id=? AND type='order.payment_refused' AND object_id=? AND"
                               " json_extract(data,'$.transaction_id')=? AND json_extract(data,'$.event')=?",
                               "zzss", rq->vendor_id, o->id, jv_get_str(rq->in, "transaction_id"), jv_get_str(rq->in, "event"));
    if (!err)
        err = store_step(st, &row, &rq->error);
    store_done(&st);
    if (err || row)
        return err;
    struct jv *data = jv_object();
    jv_set_c(data, "order_number", o->number);
    jv_set_str(data, "transaction_id", jv_get_str(rq->in, "transaction_id"));
    jv_set_str(data, "event", jv_get_str(rq->in, "event"));
    jv_set_str(data, "amount", amount.p ? amount : S(""));
    jv_set_str(data, "currency", currency.p ? currency : S(""));
    jv_set_c(data, "total", money_text(o->total, money_digits(str_c(o->currency)), text));
    jv_set_c(data, "order_currency", o->currency);
    const struct event_record e = {.vendor_id = rq->vendor_id,
                                   .type = "order.payment_refused",
                                   .actor = rq->actor,
                                   .customer_id = o->customer_id,
                                   .license_id = o->license_id,
                                   .object_id = o->id,
                                   .data = data};
    err = eventlog_put(rq->store, &e, &rq->error);
    jv_free(data);
    api_audit_object(rq, o->id);
    return err ? err : api_audit(rq, rq->route->action, "payment_mismatch");
}

/* Money of another amount or kind pays nothing of this order. The coupon of an order may be for its first payment or for all; what is paid for
 * a license that is of another plan since, the order does not say. */
static enum err payment_check_amount(struct api *rq, const struct order *o, const struct jv *license)
{
    struct str amount = jv_get_str(rq->in, "amount"), currency = jv_get_str(rq->in, "currency");
    int digits = money_digits(str_c(o->currency));
    int64_t minor = 0;
    char text[MONEY_TEXT_MAX];
    bool is_later = o->paid_at != 0;
    if (digits < 0 || (is_later && license && !str_eq_c(jv_get_str(license, "plan_id"), o->plan_id)))
        return ERR_OK;
    bool is_kind = !currency.n || str_eq_c(currency, o->currency);
    bool is_sum = !amount.n || (money_parse(amount, digits, &minor, NULL) == ERR_OK && (minor == o->total || (is_later && minor == o->subtotal)));
    if (is_kind && is_sum)
        return ERR_OK;
    enum err err = mismatch_tell(rq, o);
    if (err)
        return err;
    rq->keeps_refusal = true;
    const char *field = is_kind ? "amount" : "currency";
    return api_fail(rq, ERR_CONFLICT, "payment_mismatch", field, "%s: the order's total is %s %s", field, money_text(o->total, digits, text), o->currency);
}

static enum err payment_take(struct api *rq, const struct order *o)
{
    struct str event = jv_get_str(rq->in, "event");
    bool is_success = str_eq(event, S("payment_succeeded")), is_seen = false;
    struct jv *license = NULL, *data = NULL;
    const char *result = "recorded";
    enum err err = payment_seen(rq, o, jv_get_str(rq->in, "transaction_id"), event, &is_seen);
    if (!err && is_seen)
        return payment_answer(rq, o, "ignored", true);
    if (!err)
        err = order_license(rq, o, &license);
    if (!err)
        err = payment_check_amount(rq, o, license);
    bool is_gone = !license;
    if (!err)
        err = is_success ? payment_succeeded(rq, o, &license, &result) : payment_failed(rq, o, license, &result);
    if (!err)
        err = payment_record(rq, o, result);
    if (!err && is_success)
        err = order_set_paid(rq, o);
    if (!err) {
        data = payment_data(rq, o);
        jv_set_c(data, "result", result);
        err = is_success ? ERR_OK : add_grace(rq, o, data);
    }
    const char *type = is_success ? "license.payment_succeeded" : "license.payment_failed";
    const struct event_record e = {
        .vendor_id = rq->vendor_id, .type = type, .actor = rq->actor, .customer_id = o->customer_id, .object_id = o->id, .data = data};
    if (!err) /* also when nothing of the license changed: its history shows every payment */
        err = is_gone ? eventlog_put(rq->store, &e, &rq->error)
                      : licenses_changed(rq, str_c(o->license_id), type, jv_get_str(rq->in, "reason"), data);
    if (!err)
        err = payment_answer(rq, o, result, false);
    jv_free(license);
    jv_free(data);
    return err;
}

static enum err hook_payment(struct api *rq)
{
    struct strbuf order_id = {0};
    struct order o = {.total = 0};
    enum err err = hook_authenticate(rq, &order_id);
    if (!err)
        err = order_load(rq, sb_str(&order_id), &o, NULL);
    if (!err)
        err = payment_take(rq, &o);
    order_free(&o);
    sb_free(&order_id);
    return err;
}

static const struct query_param HOOK_PARAMS[] = {{"vendor", "slug, where more than one vendor could have the number"}, {NULL, NULL}};

const struct route HOOK_ROUTES[] = {
    {HEAD_POST, "/api/v1/hooks/payment", hook_payment, ROLE_NONE, ROUTE_ACTION | ROUTE_NO_AUDIT, &PAYMENT, &RESULT, HOOK_PARAMS, "hook.payment",
     "A payment system's report of an order; X-Pullgate-Signature: sha256=<hex HMAC-SHA-256 of the body under the vendor's hook secret>"},
    {HEAD_POST, "/api/v1/vendors/{id}/hook-secret", hook_secret_set, ROLE_OWNER, ROUTE_ACTION, &SECRET_IN, &SECRET, NULL, "vendor.set_hook_secret",
     "Make or set the secret that payment hooks are signed with; it is shown once, the one before ends"},
    {.path = NULL},
};
