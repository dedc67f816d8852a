#include "jobs.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "admin.h"
#include "api.h"
#include "api_routes.h"
#include "audit.h"
#include "db.h"
#include "eventlog.h"
#include "licenses.h"
#include "plans.h"
#include "transfers.h"
#include "usage.h"
#include "pullgate/clock.h"
#include "pullgate/credential.h"
#include "pullgate/log.h"
#include "pullgate/mem.h"
#include "pullgate/period.h"

#define ACTOR           "system:clock"
#define DAY_S           INT64_C(86400)
#define BATCH           100 /* of each kind in one transaction: requests wait meanwhile */
#define RENEWALS_AT_ONCE 60 /* periods of one license in one transaction; the rest in the next */
#define RETRY_MIN_S     10
#define RETRY_MAX_S     3600
#define SILENT_EVERY_S  60
#define PRUNE_EVERY_S   600
#define PRUNE_AT_ONCE   25 /* batches, then the clock's other work has its turn */
#define PRUNE_REST_MS   10 /* between two batches */
#define INSTANCES_AT_ONCE 200 /* installations that leave: each may change what its customer may pull */
#define ERROR_MAX       300 /* characters of an error that are kept */

static const int64_t CREDENTIAL_DAYS[] = {14, 7, 1};
#define CREDENTIAL_DAYS_N (sizeof CREDENTIAL_DAYS / sizeof *CREDENTIAL_DAYS)

/* ---- when ---------------------------------------------------------------------------------------------------------------- */

size_t jobs_days(const char *text, int64_t ret[JOBS_DAYS_MAX])
{
    struct str rest = str_c(text), one;
    size_t n = 0;
    uint64_t v;
    while (rest.n && n < JOBS_DAYS_MAX && str_next(&rest, ',', &one)) {
        if (!str_to_u64(str_trim(one), &v) || v > 3650)
            continue;
        size_t i = n++;
        for (; i > 0 && ret[i - 1] < (int64_t)v; i--)
            ret[i] = ret[i - 1];
        ret[i] = (int64_t)v;
    }
    return n;
}

static int64_t plus(int64_t t, int64_t more)
{
    int64_t sum;
    return __builtin_add_overflow(t, more, &sum) ? INT64_MAX : sum;
}

static int64_t days_s(int64_t days)
{
    int64_t s;
    return days <= 0 ? 0 : __builtin_mul_overflow(days, DAY_S, &s) ? INT64_MAX : s;
}

static void sooner(int64_t *at, int64_t t, int64_t now_s)
{
    if (t > now_s && (!*at || t < *at))
        *at = t;
}

int64_t jobs_wake(const struct jobs_terms *t, const int64_t *days, size_t n_days, int64_t now_s)
{
    int64_t at = lifecycle_wake(&t->clock, now_s), end = t->clock.expires_at_s;
    if (t->clock.is_archived || t->clock.status != LICENSE_ACTIVE || !end)
        return at;
    if (t->renews && end <= now_s) /* more periods than one transaction takes */
        return now_s;
    for (size_t i = 0; i < n_days; i++)
        sooner(&at, end - days_s(days[i]), now_s);
    return at;
}

/* ---- one license --------------------------------------------------------------------------------------------------------- */

struct subject {
    struct api rq;
    char id[ID_MAX + 32];
    char *customer_id, *period, *name;
    struct jobs_terms t;
    bool auto_renew, renew_needs_payment, cancels;
    int64_t created_at;
    int anchor_day;
    int64_t days[JOBS_DAYS_MAX];
    size_t n_days;
};

static void subject_free(struct subject *u)
{
    mem_free(u->customer_id);
    mem_free(u->period);
    mem_free(u->name);
    api_system_done(&u->rq);
}

static enum err subject_load(struct subject *u, struct admin *a, struct store *s, const char *id, int64_t now_s, bool *ret_found, struct error *reterr)
{
    struct store_stmt *st = NULL;
    bool row = false;
    enum err err = store_query(s, &st, reterr,
                               "SELECT vendor_id, customer_id, name, status, starts_at, expires_at, grace_days, period, created_at, archived_at,"
                               " auto_renew, renew_needs_payment, cancel_at_period_end, anchor_day, payment_failed_at, change_at FROM licenses WHERE id=?",
                               "z", id);
    if (!err)
        err = store_step(st, &row, reterr);
    *ret_found = !err && row;
    if (*ret_found) {
        api_system(&u->rq, a, s, store_col_str(st, 0), ACTOR, now_s);
        snprintf(u->id, sizeof u->id, "%s", id);
        u->customer_id = str_dup(store_col_str(st, 1));
        u->name = str_dup(store_col_str(st, 2));
        if (!license_status_parse(store_col_str(st, 3), &u->t.clock.status))
            u->t.clock.status = LICENSE_STATUS_NONE;
        u->t.clock.starts_at_s = store_col_int(st, 4);
        u->t.clock.expires_at_s = store_col_int(st, 5);
        u->t.clock.grace_days = store_col_int(st, 6);
        u->period = str_dup(store_col_str(st, 7));
        u->created_at = store_col_int(st, 8);
        u->t.clock.is_archived = store_col_int(st, 9) != 0;
        u->auto_renew = store_col_int(st, 10) != 0;
        u->renew_needs_payment = store_col_int(st, 11) != 0;
        u->cancels = store_col_int(st, 12) != 0;
        u->anchor_day = (int)store_col_int(st, 13);
        u->t.clock.payment_failed_at_s = store_col_int(st, 14);
        u->t.clock.change_at_s = store_col_int(st, 15);
        u->n_days = jobs_days(admin_config(a)->admin.expiring_days, u->days);
    }
    store_done(&st);
    return err;
}

/* An entry of the license's history, and the event. take_data may be NULL. */
static enum err subject_tell(struct subject *u, const char *type, const char *reason, struct jv *take_data)
{
    struct api *rq = &u->rq;
    const char *status = license_status_text(u->t.clock.status);
    struct jv *data = take_data ? take_data : jv_object(), *told = jv_object(), *shown = jv_object();
    const struct license_terms terms = {.status = u->t.clock.status, .starts_at_s = u->t.clock.starts_at_s, .expires_at_s = u->t.clock.expires_at_s,
                                        .grace_days = u->t.clock.grace_days, .payment_failed_at_s = u->t.clock.payment_failed_at_s};
    const struct history_record h = {.vendor_id = rq->vendor_id,
                                     .customer_id = str_c(u->customer_id),
                                     .license_id = u->id,
                                     .event = type,
                                     .actor = rq->actor,
                                     .from_status = status,
                                     .to_status = status,
                                     .request_id = rq->request_id,
                                     .reason = str_c(reason),
                                     .data = data};
    enum err err = history_put(rq->store, &h, &rq->error);
    jv_set_c(told, "from_status", status);
    jv_set_c(told, "to_status", status);
    jv_set_c(told, "reason", reason);
    jv_set(told, "change", data);
    jv_set_c(shown, "id", u->id);
    jv_set_c(shown, "name", u->name);
    jv_set_c(shown, "status", status);
    jv_set_c(shown, "effective_status", license_effective_text(license_effective(&terms, rq->now_s)));
    jv_set_time(shown, "expires_at", u->t.clock.expires_at_s);
    jv_set(told, "license", shown);
    const struct event_record event = {.vendor_id = rq->vendor_id, .type = type, .actor = rq->actor, .customer_id = u->customer_id,
                                       .license_id = u->id, .data = told};
    if (!err)
        err = eventlog_put(rq->store, &event, &rq->error);
    jv_free(told);
    return err;
}

/* Remembers that something was told, or passed by; *ret_is_first: it had not been. */
static enum err notice_put(struct api *rq, const char *subject_id, const char *kind, int64_t at, int64_t days, bool is_skipped, bool *ret_is_first)
{
    int64_t changes = 0;
    enum err err = store_exec(rq->store, &changes, &rq->error,
                              "INSERT OR IGNORE INTO notices (subject_id, kind, at, days, is_skipped, noted_at) VALUES (?,?,?,?,?,?)", "zziibi",
                              subject_id, kind, at, days, is_skipped, rq->now_s);
    *ret_is_first = !err && changes > 0;
    return err;
}

/* Tells of a moment of the license once. What lay before the license was made is not told. */
static enum err subject_once(struct subject *u, const char *kind, int64_t at, const char *type, struct jv *take_data)
{
    bool is_first = false, is_before = at <= u->created_at;
    enum err err = notice_put(&u->rq, u->id, kind, at, 0, is_before, &is_first);
    if (err || !is_first || is_before) {
        jv_free(take_data);
        return err;
    }
    return subject_tell(u, type, "", take_data);
}

static struct jv *expiry_data(const struct subject *u)
{
    struct jv *v = jv_object();
    jv_set_time(v, "expires_at", u->t.clock.expires_at_s);
    if (u->t.clock.grace_days)
        jv_set_time(v, "grace_ends_at", lifecycle_grace_end(u->t.clock.expires_at_s, u->t.clock.grace_days));
    return v;
}

/* Of the reminders whose time has come and that were not given, the nearest to the end is given where it still holds: up to the end, and
 * the one of the end itself for a day. The others are passed by. */
static enum err subject_remind(struct subject *u)
{
    struct api *rq = &u->rq;
    int64_t end = u->t.clock.expires_at_s, now = rq->now_s;
    bool is_told = false;
    enum err err = ERR_OK;
    for (size_t i = u->n_days; !err && end && i-- > 0;) { /* nearest first */
        int64_t days = u->days[i];
        bool is_first = false;
        if (now < end - days_s(days))
            continue;
        bool holds = !is_told && (days == 0 ? now < plus(end, DAY_S) : now < end);
        err = notice_put(rq, u->id, "expiring", end, days, !holds, &is_first);
        if (!err && !is_first)
            is_told = true; /* a nearer one was given before: farther ones have had their time */
        if (err || !is_first || !holds)
            continue;
        is_told = true;
        struct jv *data = expiry_data(u);
        jv_set_int(data, "days", days);
        jv_set_int(data, "days_left", end > now ? (end - now + DAY_S - 1) / DAY_S : 0);
        jv_set_bool(data, "auto_renew", u->auto_renew && !u->cancels);
        err = subject_tell(u, "license.expiring", "", data);
    }
    return err;
}

static enum err subject_audit(struct subject *u, const char *action, struct jv *take_before, struct jv *take_after)
{
    struct api *rq = &u->rq;
    const struct audit_record r = {.vendor_id = rq->vendor_id, .actor = rq->actor, .address = rq->peer, .request_id = rq->request_id,
                                   .action = action, .object = u->id, .outcome = "ok", .before = take_before, .after = take_after};
    enum err err = audit_put(rq->store, rq->admin->keys, &r, &rq->error);
    jv_free(take_before);
    jv_free(take_after);
    return err;
}

/* ---- renewal -------------------------------------------------------------------------------------------------------------- */

static enum err subject_renew_once(struct subject *u)
{
    struct api *rq = &u->rq;
    int64_t next = 0, end = u->t.clock.expires_at_s;
    struct period p;
    enum err err = period_parse(str_c(u->period), &p, &rq->error);
    if (!err)
        err = period_add_anchored(end, &p, api_zone(rq), u->anchor_day, &next, &u->anchor_day, &rq->error);
    if (err)
        return err;
    if (next <= end)
        return error_set(&rq->error, ERR_INVALID, "its period does not lead anywhere");
    struct jv *data = jv_object(), *before = jv_object(), *after = jv_object();
    jv_set_time(data, "expires_at_before", end);
    jv_set_time(data, "expires_at", next);
    jv_set_c(data, "period", u->period);
    jv_set_bool(data, "automatic", true);
    jv_set_time(before, "expires_at", end);
    jv_set_time(after, "expires_at", next);
    err = store_exec(rq->store, NULL, &rq->error,
                     "UPDATE licenses SET expires_at=?1, anchor_day=?2,"
                     " updates_until=CASE WHEN updates_until<>0 AND updates_until=expires_at THEN ?1 ELSE updates_until END WHERE id=?3",
                     "iiz", next, (int64_t)u->anchor_day, u->id);
    if (!err)
        err = licenses_changed(rq, str_c(u->id), "license.renewed", (struct str){NULL, 0}, data);
    u->t.clock.expires_at_s = next;
    jv_free(data);
    enum err audited = subject_audit(u, "license.renew", before, after);
    return err ? err : audited;
}

/* Cancelled: it ends with this period, and the flag that renewed it is gone, so that a later renewal by hand is just that. */
static enum err subject_cancel(struct subject *u)
{
    struct api *rq = &u->rq;
    bool is_first = false;
    enum err err = notice_put(rq, u->id, "cancelled", u->t.clock.expires_at_s, 0, false, &is_first);
    if (err || !is_first)
        return err;
    struct jv *data = expiry_data(u);
    err = store_exec(rq->store, NULL, &rq->error, "UPDATE licenses SET auto_renew=0 WHERE id=?", "z", u->id);
    if (!err)
        err = licenses_changed(rq, str_c(u->id), "license.cancelled", (struct str){NULL, 0}, data);
    jv_free(data);
    struct jv *before = jv_object(), *after = jv_object();
    jv_set_bool(before, "auto_renew", u->auto_renew);
    jv_set_bool(after, "auto_renew", false);
    u->auto_renew = false;
    enum err audited = subject_audit(u, "license.cancel", before, after);
    return err ? err : audited;
}

/* What its end brings besides the end: a scheduled change, the cancellation, further periods. */
static enum err subject_period_end(struct subject *u)
{
    struct api *rq = &u->rq;
    enum err err = ERR_OK;
    for (int n = 0; !err && u->t.clock.expires_at_s && u->t.clock.expires_at_s <= rq->now_s && n < RENEWALS_AT_ONCE; n++) {
        if (u->cancels)
            return subject_cancel(u);
        if (!u->auto_renew || !u->period[0])
            return ERR_OK;
        if (u->renew_needs_payment)
            return subject_once(u, "renewal_due", u->t.clock.expires_at_s, "license.renewal_due", expiry_data(u));
        err = subject_renew_once(u);
    }
    return err;
}

/* A scheduled change of its plan whose time has come; the license is another afterwards. */
static enum err subject_change(struct subject *u)
{
    struct api *rq = &u->rq;
    enum err err = plans_apply_scheduled(rq, str_c(u->id));
    if (!err && rq->after) {
        struct jv *before = rq->before, *after = rq->after;
        rq->before = rq->after = NULL;
        err = subject_audit(u, "license.change_plan", before, after);
    }
    return err;
}

/* ---- payment ---------------------------------------------------------------------------------------------------------------- */

static enum err subject_suspend(struct subject *u)
{
    struct api *rq = &u->rq;
    struct jv *in = jv_object();
    jv_set_c(in, "reason", "payment");
    enum err err = licenses_act(rq, str_c(u->id), "suspend", in);
    jv_free(in);
    if (!err) {
        u->t.clock.status = LICENSE_SUSPENDED;
        err = subject_audit(u, "license.suspend", rq->before, rq->after);
        rq->before = rq->after = NULL;
    }
    return err;
}

/* ---- the whole of one license ----------------------------------------------------------------------------------------------- */

static enum err subject_work(struct subject *u)
{
    struct api *rq = &u->rq;
    int64_t now = rq->now_s;
    enum err err = ERR_OK;
    if (u->t.clock.is_archived || u->t.clock.status != LICENSE_ACTIVE)
        return ERR_OK; /* nothing of it runs; when it is active again it is looked at anew */
    if (u->t.clock.payment_failed_at_s && now >= lifecycle_grace_end(u->t.clock.payment_failed_at_s, u->t.clock.grace_days))
        return subject_suspend(u);
    if (u->t.clock.starts_at_s && now >= u->t.clock.starts_at_s) {
        struct jv *data = jv_object();
        jv_set_time(data, "starts_at", u->t.clock.starts_at_s);
        err = subject_once(u, "started", u->t.clock.starts_at_s, "license.scheduled_started", data);
    }
    if (!err)
        err = subject_remind(u);
    if (!err && u->t.clock.expires_at_s && now >= u->t.clock.expires_at_s) {
        int64_t end = u->t.clock.expires_at_s;
        err = subject_period_end(u);
        if (!err && u->t.clock.expires_at_s != end)
            err = subject_remind(u); /* of the further end, where it is near */
    }
    int64_t end = u->t.clock.expires_at_s, grace_end = lifecycle_grace_end(end, u->t.clock.grace_days);
    u->t.renews = u->auto_renew && !u->cancels && !u->renew_needs_payment && u->period[0];
    if (err || !end || now < end || u->t.renews)
        return err;
    if (now < grace_end)
        return subject_once(u, "grace", end, "license.grace_started", expiry_data(u));
    return subject_once(u, "expired", grace_end, "license.expired", expiry_data(u));
}

static enum err license_work(struct admin *a, struct store *s, const char *id, int64_t now_s, struct error *reterr)
{
    struct subject u = {0};
    bool found = false;
    enum err err = subject_load(&u, a, s, id, now_s, &found, reterr);
    if (err || !found)
        return err;
    if (u.t.clock.change_at_s && u.t.clock.change_at_s <= now_s && !u.t.clock.is_archived) { /* before what the end of its period brings */
        err = subject_change(&u);
        if (!err) {
            subject_free(&u);
            u = (struct subject){0};
            err = subject_load(&u, a, s, id, now_s, &found, reterr);
            if (err || !found)
                return err;
        }
    }
    if (!err)
        err = subject_work(&u);
    if (!err) /* last: what was written above has set it to be looked at again */
        err = store_exec(s, NULL, &u.rq.error, "UPDATE licenses SET wake_at=? WHERE id=?", "iz", jobs_wake(&u.t, u.days, u.n_days, now_s), id);
    if (err)
        *reterr = u.rq.error;
    subject_free(&u);
    return err;
}

/* ---- one credential --------------------------------------------------------------------------------------------------------- */

static enum err credential_work(struct admin *a, struct store *s, const char *id, int64_t now_s, struct error *reterr)
{
    struct store_stmt *st = NULL;
    struct api rq;
    struct strbuf customer = {0}, name = {0}, license = {0};
    int64_t end = 0, created_at = 0, wake = 0;
    bool row = false, is_told = false, is_first = false;
    enum err err = store_query(s, &st, reterr,
                               "SELECT c.vendor_id, k.customer_id, k.name, COALESCE(k.license_id,''), k.expires_at, k.created_at, k.prefix FROM credentials k"
                               " JOIN customers c ON c.id=k.customer_id WHERE k.id=? AND k.revoked_at=0 AND k.expires_at<>0 AND c.archived_at=0",
                               "z", id);
    if (!err)
        err = store_step(st, &row, reterr);
    if (err || !row) {
        store_done(&st);
        return err ? err : store_exec(s, NULL, reterr, "UPDATE credentials SET wake_at=0 WHERE id=?", "z", id);
    }
    api_system(&rq, a, s, store_col_str(st, 0), ACTOR, now_s);
    sb_add(&customer, store_col_str(st, 1));
    sb_add(&name, store_col_str(st, 2));
    sb_add(&license, store_col_str(st, 3));
    end = store_col_int(st, 4);
    created_at = store_col_int(st, 5);
    struct jv *data = jv_object();
    jv_set_str(data, "name", sb_str(&name));
    jv_set_str(data, "prefix", store_col_str(st, 6));
    jv_set_time(data, "expires_at", end);
    store_done(&st);
    struct event_record event = {.vendor_id = rq.vendor_id, .type = "credential.expiring", .actor = ACTOR, .customer_id = customer.p,
                                 .license_id = license.n ? license.p : NULL, .object_id = id, .data = data};
    for (size_t left = CREDENTIAL_DAYS_N; !err && left > 0; left--) { /* nearest first */
        int64_t days = CREDENTIAL_DAYS[left - 1];
        int64_t at = end - days_s(days);
        if (now_s < at) {
            sooner(&wake, at, now_s);
            continue;
        }
        bool holds = !is_told && now_s < end;
        err = notice_put(&rq, id, "expiring", end, days, !holds, &is_first);
        is_told = is_told || !is_first || holds;
        if (err || !is_first || !holds)
            continue;
        jv_set_int(data, "days", days);
        jv_set_int(data, "days_left", (end - now_s + DAY_S - 1) / DAY_S);
        err = eventlog_put(s, &event, &rq.error);
    }
    if (!err && now_s >= end) {
        err = notice_put(&rq, id, "expired", end, 0, end <= created_at, &is_first);
        if (!err && is_first && end > created_at) {
            jv_del(data, "days");
            jv_del(data, "days_left");
            event.type = "credential.expired";
            err = eventlog_put(s, &event, &rq.error);
        }
    }
    sooner(&wake, end, now_s);
    if (!err)
        err = store_exec(s, NULL, &rq.error, "UPDATE credentials SET wake_at=? WHERE id=?", "iz", wake, id);
    if (err)
        *reterr = rq.error;
    jv_free(data);
    sb_free(&customer);
    sb_free(&name);
    sb_free(&license);
    api_system_done(&rq);
    return err;
}

/* ---- batches ----------------------------------------------------------------------------------------------------------------- */

typedef enum err work_fn(struct admin *a, struct store *s, const char *id, int64_t now_s, struct error *reterr);

static const struct kind {
    const char *due, *put_off, *vendor;
    work_fn *work;
    int64_t at_once;
} KINDS[] = {
    {"SELECT id FROM licenses WHERE wake_at<>0 AND wake_at<=? ORDER BY wake_at LIMIT ?", "UPDATE licenses SET wake_at=? WHERE id=?",
     "SELECT vendor_id FROM licenses WHERE id=?", license_work, BATCH},
    {"SELECT id FROM credentials WHERE wake_at<>0 AND wake_at<=? ORDER BY wake_at LIMIT ?", "UPDATE credentials SET wake_at=? WHERE id=?",
     "SELECT c.vendor_id FROM credentials k JOIN customers c ON c.id=k.customer_id WHERE k.id=?", credential_work, BATCH},
};
#define KINDS_N (sizeof KINDS / sizeof *KINDS)

static enum err due_ids(struct store *s, const struct kind *k, int64_t now_s, char (*ids)[ID_MAX + 32], size_t *ret_n, struct error *reterr)
{
    struct store_stmt *st = NULL;
    bool row = true;
    *ret_n = 0;
    enum err err = store_query(s, &st, reterr, k->due, "ii", now_s, k->at_once);
    while (!err && row) {
        err = store_step(st, &row, reterr);
        if (!err && row)
            snprintf(ids[(*ret_n)++], sizeof ids[0], "%.*s", STR(store_col_str(st, 0)));
    }
    store_done(&st);
    return err;
}

/* What cannot be done is tried again later, ever less often, with its error to be read: it holds up nothing else. */
static enum err put_off(struct store *s, const struct kind *k, const char *id, int64_t now_s, const char *why, struct error *reterr)
{
    static unsigned long long logged;
    struct store_stmt *st = NULL;
    bool row = false;
    int64_t attempts = 0;
    log_limited(&logged, 10000, LOG_LEVEL_WARN, "clock: %s: %s; tried again later", id, why);
    enum err err = store_query(s, &st, reterr, "SELECT attempts FROM job_errors WHERE subject_id=?", "z", id);
    if (!err)
        err = store_step(st, &row, reterr);
    if (!err && row)
        attempts = store_col_int(st, 0);
    store_done(&st);
    if (err)
        return err;
    int64_t rest = attempts < 9 ? (int64_t)RETRY_MIN_S << attempts : RETRY_MAX_S;
    int64_t next = now_s + (rest < RETRY_MAX_S ? rest : RETRY_MAX_S);
    struct strbuf vendor = {0};
    err = store_query(s, &st, reterr, k->vendor, "z", id);
    if (!err)
        err = store_step(st, &row, reterr);
    if (!err && row)
        sb_add(&vendor, store_col_str(st, 0));
    store_done(&st);
    if (!err)
        err = store_exec(s, NULL, reterr,
                         "INSERT INTO job_errors (subject_id, vendor_id, error, attempts, first_at, next_at) VALUES (?1,?2,?3,1,?4,?5)"
                         " ON CONFLICT (subject_id) DO UPDATE SET error=?3, attempts=attempts+1, next_at=?5",
                         "zssii", id, vendor.n ? sb_str(&vendor) : S(""), str_sub(str_c(why), 0, ERROR_MAX), now_s, next);
    if (!err)
        err = store_exec(s, NULL, reterr, k->put_off, "iz", next, id);
    sb_free(&vendor);
    return err;
}

static enum err one(struct admin *a, struct store *s, const struct kind *k, const char *id, int64_t now_s, struct jobs_batch *ret, struct error *reterr)
{
    struct error why = {0};
    enum err err = store_exec(s, NULL, reterr, "SAVEPOINT job", "");
    if (err)
        return err;
    enum err worked = k->work(a, s, id, now_s, &why);
    if (worked == ERR_UNAVAILABLE || worked == ERR_NOMEM) { /* the store's: nothing of the batch is kept */
        *reterr = why;
        return worked;
    }
    if (worked)
        err = store_exec(s, NULL, reterr, "ROLLBACK TO job", "");
    if (!err)
        err = store_exec(s, NULL, reterr, "RELEASE job", "");
    if (err)
        return err;
    ret->n++;
    ret->failed += worked != ERR_OK;
    return worked ? put_off(s, k, id, now_s, why.text[0] ? why.text : err_text(worked), reterr)
                  : store_exec(s, NULL, reterr, "DELETE FROM job_errors WHERE subject_id=?", "z", id);
}

enum err jobs_run(struct admin *a, struct store *s, int64_t now_s, struct jobs_batch *ret, struct error *reterr)
{
    char (*ids)[ID_MAX + 32] = mem_calloc(BATCH, sizeof *ids);
    struct jobs_batch b = {0};
    struct error error = {0};
    enum err err = ERR_OK;
    for (size_t i = 0; !err && i < KINDS_N; i++) {
        size_t n = 0;
        err = due_ids(s, &KINDS[i], now_s, ids, &n, &error);
        for (size_t k = 0; !err && k < n; k++)
            err = one(a, s, &KINDS[i], ids[k], now_s, &b, &error);
    }
    mem_free(ids);
    if (err) {
        if (reterr)
            *reterr = error;
        return err;
    }
    *ret = b;
    return ERR_OK;
}

enum err jobs_end_silent(struct store *s, int64_t now_s, struct error *reterr)
{
    enum err err = usage_tick(s, now_s, INSTANCES_AT_ONCE, reterr);
    return err ? err : transfers_expire(s, now_s, reterr);
}

/* ---- the thread --------------------------------------------------------------------------------------------------------------- */

struct jobs {
    struct admin *admin;
    pthread_t thread;
    struct store *store; /* the thread's, for looking */
    int64_t silent_at, pruned_at; /* when the last round of it ended */
    size_t prune_kind;            /* where the present one is; RETENTION_KINDS: there is none */
    uint64_t prune_sums[RETENTION_KINDS];
    bool is_ended;
    pthread_mutex_t lock; /* guards all below */
    pthread_cond_t wake;
    bool stopping, clock_is_bad;
    struct jobs_state st;
};

struct round {
    struct admin *admin;
    int64_t now_s;
    struct jobs_batch batch;
};

static enum err round_work(struct store *s, void *arg, struct error *reterr)
{
    struct round *r = arg;
    return jobs_run(r->admin, s, r->now_s, &r->batch, reterr);
}

static enum err round_silent(struct store *s, void *arg, struct error *reterr)
{
    const struct round *r = arg;
    return jobs_end_silent(s, r->now_s, reterr);
}

static enum err round_remove(struct store *s, void *arg, struct error *reterr)
{
    return retention_remove(s, arg, reterr);
}

static enum err number(struct store *s, const char *sql, int64_t param, int64_t *ret, struct error *reterr)
{
    struct store_stmt *st = NULL;
    bool row = false;
    enum err err = store_query(s, &st, reterr, sql, "i", param);
    if (!err)
        err = store_step(st, &row, reterr);
    if (!err)
        *ret = row ? store_col_int(st, 0) : 0;
    store_done(&st);
    return err;
}

#define UP_TO " LIMIT 10000)" /* JOBS_DUE_MAX */

static enum err look(struct jobs *j, int64_t now_s, struct error *reterr)
{
    struct store *s = j->store;
    int64_t licenses = 0, credentials = 0, oldest = 0, inactive = 0, counts[4] = {0};
    enum err err = number(s, "SELECT COUNT(*) FROM (SELECT 1 FROM licenses WHERE wake_at<>0 AND wake_at<=?" UP_TO, now_s, &licenses, reterr);
    if (!err)
        err = number(s, "SELECT COUNT(*) FROM (SELECT 1 FROM credentials WHERE wake_at<>0 AND wake_at<=?" UP_TO, now_s, &credentials, reterr);
    if (!err) /* 1: as soon as can be, no time */
        err = number(s, "SELECT COALESCE(MIN(wake_at),0) FROM licenses WHERE wake_at<>0 AND wake_at>1 AND wake_at<=?", now_s, &oldest, reterr);
    if (!err)
        err = number(s, "SELECT COALESCE(MIN(created_at),0) FROM licenses WHERE status='inactive' AND archived_at=0 AND created_at<=?", now_s, &inactive,
                     reterr);
    static const char *const sqls[] = {
        "SELECT COUNT(*) FROM (SELECT 1 FROM webhook_deliveries d JOIN webhooks w ON w.id=d.webhook_id AND w.enabled=1 WHERE d.status='pending' AND ?<>0" UP_TO,
        "SELECT COUNT(*) FROM (SELECT 1 FROM webhook_deliveries WHERE status='failed' AND ?<>0" UP_TO,
        "SELECT COUNT(*) FROM (SELECT 1 FROM mails WHERE status='pending' AND ?<>0" UP_TO,
        "SELECT COUNT(*) FROM (SELECT 1 FROM mails WHERE status='failed' AND ?<>0" UP_TO,
    };
    for (size_t i = 0; !err && i < 4; i++)
        err = number(s, sqls[i], 1, &counts[i], reterr);
    if (err)
        return err;
    pthread_mutex_lock(&j->lock);
    j->st.due = (uint64_t)(licenses + credentials);
    j->st.lag_s = oldest && oldest < now_s ? (uint64_t)(now_s - oldest) : 0;
    j->st.oldest_inactive_s = inactive ? (uint64_t)(now_s - inactive) : 0;
    j->st.deliveries_pending = (uint64_t)counts[0];
    j->st.deliveries_failed = (uint64_t)counts[1];
    j->st.mails_pending = (uint64_t)counts[2];
    j->st.mails_failed = (uint64_t)counts[3];
    pthread_mutex_unlock(&j->lock);
    return ERR_OK;
}

static bool may_go_on(struct jobs *j)
{
    pthread_mutex_lock(&j->lock);
    bool on = !j->stopping && !j->clock_is_bad;
    pthread_mutex_unlock(&j->lock);
    return on;
}

static void rest_ms(unsigned ms)
{
    const struct timespec ts = {.tv_nsec = (long)ms * 1000000};
    (void)nanosleep(&ts, NULL);
}

static bool is_due_again(int64_t now_s, int64_t last_s, int64_t every_s)
{
    return now_s - last_s >= every_s || now_s < last_s; /* or the clock went back */
}

static void prune_tell(const struct jobs *j)
{
    struct strbuf b = {0};
    for (size_t i = 0; i < RETENTION_KINDS; i++)
        if (j->prune_sums[i])
            sb_addf(&b, "%s%s %llu", b.n ? ", " : "", RETENTION_NAMES[i], (unsigned long long)j->prune_sums[i]);
    if (b.n)
        log_info("retention: rows that were over are gone: %s", b.p);
    sb_free(&b);
}

/* One kind after another, each until nothing of it is left to go: a few batches at a time, with a rest after each, so that neither those
 * who write nor the clock's other work waits for it. */
static enum err prune(struct jobs *j, int64_t now_s, struct error *reterr)
{
    enum err err = ERR_OK;
    if (j->prune_kind == RETENTION_KINDS) {
        if (!is_due_again(now_s, j->pruned_at, PRUNE_EVERY_S))
            return ERR_OK;
        j->prune_kind = 0;
        memset(j->prune_sums, 0, sizeof j->prune_sums);
    }
    for (int i = 0; i < PRUNE_AT_ONCE && j->prune_kind < RETENTION_KINDS && may_go_on(j); i++) {
        struct retention_batch b;
        err = retention_find(admin_config(j->admin), j->store, j->prune_kind, now_s, &b, reterr);
        if (!err && b.n)
            err = db_run(j->admin->writer, DB_TRANSACTION, round_remove, &b, reterr);
        if (err) {
            retention_batch_free(&b);
            return err;
        }
        j->prune_sums[j->prune_kind] += (uint64_t)b.removed;
        pthread_mutex_lock(&j->lock);
        j->st.pruned[j->prune_kind] += (uint64_t)b.removed;
        pthread_mutex_unlock(&j->lock);
        bool is_more = b.n == RETENTION_BATCH && b.removed > 0;
        retention_batch_free(&b);
        if (is_more)
            rest_ms(PRUNE_REST_MS);
        else
            j->prune_kind++;
    }
    if (j->prune_kind == RETENTION_KINDS) {
        prune_tell(j);
        j->pruned_at = now_s;
    }
    return err;
}

static enum err tick(struct jobs *j, struct error *reterr)
{
    struct round r = {.admin = j->admin, .now_s = clock_now_s()};
    if (!j->store) {
        enum err err = store_open(j->admin->cfg->store.url, true, &j->store, reterr);
        if (err)
            return err;
    }
    enum err err = look(j, r.now_s, reterr);
    pthread_mutex_lock(&j->lock);
    bool is_due = j->st.due > 0;
    pthread_mutex_unlock(&j->lock);
    while (!err && is_due && may_go_on(j)) {
        r.now_s = clock_now_s();
        err = db_run(j->admin->writer, DB_TRANSACTION, round_work, &r, reterr);
        if (err)
            break;
        pthread_mutex_lock(&j->lock);
        j->st.done += r.batch.n;
        j->st.failed += r.batch.failed;
        pthread_mutex_unlock(&j->lock);
        is_due = r.batch.n > 0;
        if (!is_due)
            err = look(j, r.now_s, reterr);
    }
    if (!err && may_go_on(j) && is_due_again(r.now_s, j->silent_at, SILENT_EVERY_S)) {
        err = db_run(j->admin->writer, DB_TRANSACTION, round_silent, &r, reterr);
        j->silent_at = r.now_s;
    }
    return err ? err : prune(j, r.now_s, reterr);
}

static void *jobs_main(void *arg)
{
    struct jobs *j = arg;
    unsigned long long logged = 0;
    pthread_mutex_lock(&j->lock);
    while (!j->stopping) {
        struct error error = {0};
        struct timespec ts;
        bool is_bad = j->clock_is_bad;
        pthread_mutex_unlock(&j->lock);
        enum err err = is_bad ? ERR_OK : tick(j, &error);
        if (err)
            log_limited(&logged, 10000, LOG_LEVEL_WARN, "clock: %s; trying again", error.text[0] ? error.text : err_text(err));
        uint64_t ms = admin_config(j->admin)->admin.job_interval_ms;
        clock_gettime(CLOCK_MONOTONIC, &ts);
        ts.tv_sec += (time_t)(ms / 1000);
        ts.tv_nsec += (long)(ms % 1000) * 1000000;
        if (ts.tv_nsec >= 1000000000) {
            ts.tv_sec++;
            ts.tv_nsec -= 1000000000;
        }
        pthread_mutex_lock(&j->lock);
        while (!j->stopping && pthread_cond_timedwait(&j->wake, &j->lock, &ts) == 0)
            ;
    }
    pthread_mutex_unlock(&j->lock);
    store_close(&j->store);
    return NULL;
}

struct jobs *jobs_start(struct admin *a, bool clock_is_bad)
{
    struct jobs *j = NEW(struct jobs);
    pthread_condattr_t attr;
    j->admin = a;
    j->prune_kind = RETENTION_KINDS;
    j->clock_is_bad = clock_is_bad;
    AN(pthread_mutex_init(&j->lock, NULL) == 0);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    AN(pthread_cond_init(&j->wake, &attr) == 0);
    pthread_condattr_destroy(&attr);
    NEED((errno = pthread_create(&j->thread, NULL, jobs_main, j)) == 0, "its clock thread");
    return j;
}

void jobs_end(struct jobs *j)
{
    if (!j || j->is_ended)
        return;
    j->is_ended = true;
    pthread_mutex_lock(&j->lock);
    j->stopping = true;
    pthread_cond_broadcast(&j->wake);
    pthread_mutex_unlock(&j->lock);
    pthread_join(j->thread, NULL);
}

void jobs_stop(struct jobs **pj)
{
    struct jobs *j = *pj;
    if (!j)
        return;
    *pj = NULL;
    jobs_end(j);
    pthread_mutex_destroy(&j->lock);
    pthread_cond_destroy(&j->wake);
    mem_free(j);
}

void jobs_set_clock_bad(struct jobs *j, bool is_bad)
{
    pthread_mutex_lock(&j->lock);
    j->clock_is_bad = is_bad;
    pthread_mutex_unlock(&j->lock);
}

void jobs_state(struct jobs *j, struct jobs_state *ret)
{
    pthread_mutex_lock(&j->lock);
    *ret = j->st;
    pthread_mutex_unlock(&j->lock);
}

/* ---- what cannot be done, to be read -------------------------------------------------------------------------------------------- */

static const struct field JOB_ERROR_FIELDS[] = {
    {.name = "subject_id", .type = FIELD_STRING, .about = "the license or credential"},
    {.name = "error", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "attempts", .type = FIELD_INT},
    {.name = "first_at", .type = FIELD_TIME},
    {.name = "next_attempt_at", .type = FIELD_TIME},
    {.name = NULL},
};
static const struct schema JOB_ERROR = {"JobError", JOB_ERROR_FIELDS};

static enum err job_error_list(struct api *rq)
{
    struct page page;
    struct store_stmt *st = NULL;
    bool row;
    enum err err = api_page(rq, &page);
    if (err)
        return err;
    struct jv *items = api_list(rq);
    err = store_query(rq->store, &st, &rq->error,
                      "SELECT subject_id, error, attempts, first_at, next_at FROM job_errors WHERE vendor_id=? AND subject_id>? ORDER BY subject_id LIMIT ?",
                      "zzi", rq->vendor_id, page.after_id, (int64_t)page.limit + 1);
    while (!err) {
        err = store_step(st, &row, &rq->error);
        if (err || !row || !api_page_take(&page, rq->out, 0, store_col_str(st, 0).p))
            break;
        struct jv *v = jv_object();
        jv_set_str(v, "subject_id", store_col_str(st, 0));
        jv_set_str(v, "error", store_col_str(st, 1));
        jv_set_int(v, "attempts", store_col_int(st, 2));
        jv_set_time(v, "first_at", store_col_int(st, 3));
        jv_set_time(v, "next_attempt_at", store_col_int(st, 4));
        jv_push(items, v);
    }
    store_done(&st);
    return err;
}

const struct route JOB_ROUTES[] = {
    {HEAD_GET, "/api/v1/job-errors", job_error_list, ROLE_VIEWER, ROUTE_LIST, NULL, &JOB_ERROR, NULL, "job_error.list",
     "What the clock could not do with a license or credential, and when it tries again"},
    {.path = NULL},
};
