/* A license passes from its plan to another: at once, or at the end of its period. What it has afterwards:
 *
 *   the other plan is   its end (expires_at)                               updates_until         auto_renew
 *   subscription        kept, when it had one and was no trial;            none                  its own, when it was no trial;
 *                       else a period from now (inactive: from activation)                       else the plan's
 *   development         as a subscription; none where the plan has no      none                  the same
 *                       period and it had none
 *   perpetual           none                                               now + updates_period  no
 *   trial               refused: a license does not become a trial
 *
 * Type, period, grace_days and requires_activation are the plan's. Of the grants those are exchanged that came of a plan; what was granted by
 * hand, by a coupon or an import stays, and where grants are locked all of them do. Limits and features are the plan's, but for members that
 * were changed since the license was made of its plan, and counts that were ordered. From one perpetual plan to another updates_until moves
 * forward only. What the customer pays for the difference is nothing that is known here. A change at the next period applies at the end that
 * the license has when it is asked for, and moves with that when it is extended; before it renews: the renewal is by the other plan's period.
 * A further change takes the place of one that waits. */
#include <stdio.h>
#include <string.h>

#include "api_routes.h"
#include "licensemodel.h"
#include "licenses.h"
#include "plans.h"
#include "pullgate/clock.h"
#include "pullgate/mem.h"

/* ---- schemas ----------------------------------------------------------------------------------------------------------- */

const struct field SCHEDULED_CHANGE_FIELDS[] = {
    {.name = "id", .type = FIELD_STRING},
    {.name = "kind", .type = FIELD_STRING, .one_of = "change-plan"},
    {.name = "plan_id", .type = FIELD_STRING},
    {.name = "at", .type = FIELD_TIME},
    {.name = "status", .type = FIELD_STRING, .one_of = "pending|applied|cancelled|failed"},
    {.name = "keep_grants", .type = FIELD_BOOL},
    {.name = "keep_limits", .type = FIELD_BOOL},
    {.name = "reason", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "detail", .type = FIELD_STRING, .flags = FIELD_EMPTY, .about = "why it failed"},
    {.name = "actor", .type = FIELD_STRING},
    {.name = "created_at", .type = FIELD_TIME},
    {.name = "done_at", .type = FIELD_TIME},
    {.name = NULL},
};
static const struct schema SCHEDULED_CHANGE = {"ScheduledChange", SCHEDULED_CHANGE_FIELDS};

static const struct field CHANGE_PLAN_FIELDS[] = {
    {.name = "plan_id", .type = FIELD_STRING, .flags = FIELD_REQUIRED, .max = 64},
    {.name = "effective", .type = FIELD_STRING, .one_of = "now|next_period", .about = "now when absent"},
    {.name = "keep_grants", .type = FIELD_BOOL, .about = "false: grants that are not the plan's go too, for a reason; true when absent"},
    {.name = "keep_limits",
     .type = FIELD_BOOL,
     .about = "false: limits and features that were changed by hand, or ordered, become the plan's too; true when absent"},
    {.name = "reason", .type = FIELD_STRING, .flags = FIELD_EMPTY, .max = 500},
    {.name = NULL},
};
static const struct schema CHANGE_PLAN = {"ChangePlan", CHANGE_PLAN_FIELDS};

/* ---- now --------------------------------------------------------------------------------------------------------------- */

/* A member of the plan, or null, which takes away what the license has. */
static struct jv *or_null(const struct jv *v)
{
    return jv_type(v) == JV_NONE ? jv_null() : jv_copy(v);
}

static bool is_same(const struct jv *a, const struct jv *b)
{
    return jv_equal(a, b) || (jv_type(a) <= JV_NULL && jv_type(b) <= JV_NULL);
}

/* The plan's members, and the license's own where they are not what `base` says: of {"sso":true} what was taken away is gone as well. */
static struct jv *members_merged(const struct jv *of_plan, const struct jv *own, const struct jv *base)
{
    struct jv *all = jv_type(of_plan) == JV_OBJECT ? jv_copy(of_plan) : jv_object();
    for (void *it = jv_iter(base); it; it = jv_iter_next(base, it))
        if (jv_type(jv_get(own, jv_iter_key(it))) == JV_NONE)
            jv_del(all, jv_iter_key(it));
    for (void *it = jv_iter(own); it; it = jv_iter_next(own, it))
        if (!is_same(jv_iter_value(it), jv_get(base, jv_iter_key(it))))
            jv_set(all, jv_iter_key(it), jv_copy(jv_iter_value(it)));
    return all;
}

/* As the API shows limits: what is not there by its name. */
static struct jv *limits_plain(const struct jv *limits)
{
    struct jv *l = jv_type(limits) == JV_OBJECT ? jv_copy(limits) : jv_object();
    if (jv_type(jv_get(l, "limit_action")) != JV_STRING)
        jv_set_c(l, "limit_action", "warn");
    if (!jv_get_str(l, "reset_period").n)
        jv_set_c(l, "reset_period", "");
    if (jv_type(jv_get(l, "custom")) != JV_OBJECT)
        jv_set(l, "custom", jv_object());
    return l;
}

/* base NULL: the plan's alone. */
static struct jv *limits_of(const struct jv *plan, const struct jv *license, const struct jv *base)
{
    static const char *const MEMBERS[] = {"max_instances", "pulls", "bytes", "reset_period", "limit_action"};
    struct jv *of_plan = limits_plain(jv_get(plan, "limits")), *own = limits_plain(jv_get(license, "limits")), *was = limits_plain(base);
    struct jv *all = jv_object();
    for (size_t i = 0; i < sizeof MEMBERS / sizeof *MEMBERS; i++) {
        bool is_own = base && !is_same(jv_get(own, MEMBERS[i]), jv_get(was, MEMBERS[i]));
        jv_set(all, MEMBERS[i], or_null(jv_get(is_own ? own : of_plan, MEMBERS[i])));
    }
    struct jv *custom = base ? members_merged(jv_get(of_plan, "custom"), jv_get(own, "custom"), jv_get(was, "custom")) : jv_copy(jv_get(of_plan, "custom"));
    jv_set(all, "custom", jv_len(custom) ? jv_copy(custom) : jv_null());
    jv_free(custom);
    jv_free(of_plan);
    jv_free(own);
    jv_free(was);
    return all;
}

/* What the license had of its plan when it was made of it; NULL: it was not made of one. */
struct base {
    struct jv *limits, *features;
};

static enum err base_load(struct api *rq, const struct jv *license, struct base *ret)
{
    struct store_stmt *st = NULL;
    bool row = false;
    enum err err = store_query(rq->store, &st, &rq->error, "SELECT plan_limits, plan_features FROM licenses WHERE id=? AND vendor_id=?", "sz",
                               jv_get_str(license, "id"), rq->vendor_id);
    if (!err)
        err = store_step(st, &row, &rq->error);
    if (!err && row && store_col_str(st, 0).n)
        err = jv_parse(store_col_str(st, 0), &JV_LIMITS_TRUSTED, &ret->limits, &rq->error);
    if (!err && row && store_col_str(st, 1).n)
        err = jv_parse(store_col_str(st, 1), &JV_LIMITS_TRUSTED, &ret->features, &rq->error);
    store_done(&st);
    return err == ERR_INVALID ? ERR_INTERNAL : err;
}

static void base_free(struct base *b)
{
    jv_free(b->limits);
    jv_free(b->features);
}

enum err plans_keep_own(struct api *rq, struct str license_id, const struct jv *plan)
{
    struct strbuf limits = {0}, features = {0};
    struct jv *plain = limits_plain(jv_get(plan, "limits"));
    jv_dump(plain, &limits);
    jv_free(plain);
    jv_dump(jv_get(plan, "features"), &features);
    enum err err = store_exec(rq->store, NULL, &rq->error, "UPDATE licenses SET plan_limits=?, plan_features=? WHERE id=? AND vendor_id=?", "sssz",
                              sb_str(&limits), sb_str(&features), license_id, rq->vendor_id);
    sb_free(&limits);
    sb_free(&features);
    return err;
}

/* The body of a PATCH that makes the license one of the plan. */
static enum err change_body(struct api *rq, const struct jv *license, const struct jv *plan, const struct plan_change *c, struct jv **ret)
{
    static const char *const COPIED[] = {"type", "period", "grants", "grace_days", "requires_activation"};
    struct base base = {0};
    struct str type = jv_get_str(plan, "type"), had = jv_get_str(license, "type");
    bool is_perpetual = str_eq(type, S("perpetual")), was_trial = str_eq(had, S("trial"));
    bool is_inactive = str_eq(jv_get_str(license, "status"), S("inactive"));
    bool keeps_end = !is_perpetual && !was_trial && jv_get_str(license, "expires_at").n;
    bool begins_later = is_inactive && str_eq(type, S("subscription"));
    struct plan_terms terms = {0};
    int64_t had_until = 0;
    if (str_eq(type, S("trial")))
        return api_fail(rq, ERR_CONFLICT, "plan_not_applicable", "plan_id", "plan_id: a license does not become a trial");
    if (!str_eq(jv_get_str(plan, "application_id"), jv_get_str(license, "application_id")))
        return api_fail(rq, ERR_CONFLICT, "plan_not_applicable", "plan_id", "plan_id: the plan is one of another application");
    enum err err = plans_terms_from(rq, plan, S(""), rq->now_s, &terms);
    if (!err)
        err = api_time_end(rq, license, "updates_until", "updates_until", &had_until);
    if (!err)
        err = base_load(rq, license, &base);
    if (err) {
        base_free(&base);
        return err;
    }
    bool keeps_updates = is_perpetual && str_eq(had, S("perpetual")) && (!had_until || had_until > terms.updates_until);
    struct jv *in = jv_object();
    jv_set_str(in, "plan_id", jv_get_str(plan, "id"));
    for (size_t i = 0; i < sizeof COPIED / sizeof *COPIED; i++)
        jv_set(in, COPIED[i], jv_copy(jv_get(plan, COPIED[i])));
    jv_set(in, "limits", limits_of(plan, license, c->drops_limits ? NULL : base.limits));
    jv_set(in, "features",
           c->drops_limits || !base.features ? jv_copy(jv_get(plan, "features"))
                                             : members_merged(jv_get(plan, "features"), jv_get(license, "features"), base.features));
    jv_set_bool(in, "keep_grants", !c->drops_grants);
    if (c->asked_at)
        jv_set_int(in, "keep_grants_after", c->asked_at);
    base_free(&base);
    jv_set_int(in, "trial_days", 0);
    jv_set_c(in, "starts_on", "");
    if (!keeps_end)
        jv_set_time(in, "expires_at", begins_later ? 0 : terms.expires_at);
    if (!keeps_updates)
        jv_set_time(in, "updates_until", terms.updates_until);
    if (!keeps_end && !keeps_updates && !begins_later)
        jv_set_int(in, "anchor_day", terms.anchor_day);
    bool renews = !is_perpetual && jv_get_str(plan, "period").n && jv_get_bool(was_trial ? plan : license, "auto_renew", false);
    jv_set_bool(in, "auto_renew", renews);
    *ret = in;
    return ERR_OK;
}

static enum err change_now(struct api *rq, struct str license_id, const struct jv *plan, const struct plan_change *c)
{
    struct jv *license = NULL, *in = NULL;
    enum err err = licenses_get(rq, license_id, &license);
    if (!err)
        err = change_body(rq, license, plan, c, &in);
    if (!err)
        err = licenses_change(rq, license_id, "change-plan", in, NULL, c->reason);
    if (!err)
        err = plans_keep_own(rq, license_id, plan);
    jv_free(license);
    jv_free(in);
    return err;
}

/* ---- later ------------------------------------------------------------------------------------------------------------- */

#define CHANGE_COLUMNS "id, plan_id, at, status, detail, actor, created_at, done_at, keep_grants, keep_limits, reason"

static struct jv *change_print(const struct store_stmt *st)
{
    struct jv *v = jv_object();
    jv_set_str(v, "id", store_col_str(st, 0));
    jv_set_c(v, "kind", "change-plan");
    jv_set_str(v, "plan_id", store_col_str(st, 1));
    jv_set_time(v, "at", store_col_int(st, 2));
    jv_set_str(v, "status", store_col_str(st, 3));
    jv_set_str(v, "detail", store_col_str(st, 4));
    jv_set_str(v, "actor", store_col_str(st, 5));
    jv_set_time(v, "created_at", store_col_int(st, 6));
    jv_set_time(v, "done_at", store_col_int(st, 7));
    jv_set_bool(v, "keep_grants", store_col_int(st, 8) != 0);
    jv_set_bool(v, "keep_limits", store_col_int(st, 9) != 0);
    jv_set_str(v, "reason", store_col_str(st, 10));
    return v;
}

enum err plans_add_scheduled(struct api *rq, struct jv *license)
{
    struct store_stmt *st = NULL;
    struct jv *list = jv_array();
    bool row;
    enum err err = store_query(rq->store, &st, &rq->error,
                               "SELECT " CHANGE_COLUMNS " FROM scheduled_changes WHERE license_id=? AND status='pending' AND vendor_id=?", "sz",
                               jv_get_str(license, "id"), rq->vendor_id);
    while (!err) {
        err = store_step(st, &row, &rq->error);
        if (err || !row)
            break;
        jv_push(list, change_print(st));
    }
    store_done(&st);
    jv_set(license, "scheduled_changes", list);
    return err;
}

static bool is_allowed(const struct jv *license, const char *action)
{
    const struct jv *list = jv_get(license, "allowed_actions");
    for (size_t i = 0; i < jv_len(list); i++)
        if (str_eq_c(jv_str(jv_at(list, i)), action))
            return true;
    return false;
}

/* The license is the caller's; what a vendor had planned that it was before is over as well. */
static enum err pending_end(struct api *rq, struct str license_id, const char *status, const char *detail)
{
    enum err err = store_exec(rq->store, NULL, &rq->error,
                              "UPDATE scheduled_changes SET status=?, detail=?, done_at=? WHERE license_id=? AND status='pending'", "zzis", status, detail,
                              rq->now_s, license_id);
    if (!err)
        err = store_exec(rq->store, NULL, &rq->error, "UPDATE licenses SET change_at=0 WHERE id=? AND vendor_id=?", "sz", license_id,
                         rq->vendor_id);
    return err;
}

/* The member "changes" of an answer whose scheduled changes became others. */
static void tell_scheduled(struct api *rq, const struct jv *before)
{
    struct jv *changes = jv_object(), *one = jv_object();
    jv_set(one, "from", jv_copy(jv_get(before, "scheduled_changes")));
    jv_set(one, "to", jv_copy(jv_get(rq->out, "scheduled_changes")));
    jv_set(changes, "scheduled_changes", one);
    jv_set(rq->out, "changes", changes);
}

/* Of a dry run: what the change would do if its time were now, done and taken back. */
static enum err change_look(struct api *rq, struct str license_id, const struct jv *plan, const struct plan_change *c, struct jv **ret)
{
    if (!rq->is_dry_run)
        return ERR_OK;
    enum err err = store_exec(rq->store, NULL, &rq->error, "SAVEPOINT change_look", "");
    if (!err)
        err = change_now(rq, license_id, plan, c);
    if (!err)
        err = store_exec(rq->store, NULL, &rq->error, "ROLLBACK TO change_look", "");
    if (!err)
        err = store_exec(rq->store, NULL, &rq->error, "RELEASE change_look", "");
    if (!err)
        *ret = jv_copy(rq->out);
    return err;
}

/* Takes the place of one that is pending. */
static enum err change_later(struct api *rq, struct str license_id, const struct jv *plan, const struct plan_change *c)
{
    struct jv *license = NULL, *in = NULL, *seen = NULL, *data = jv_object();
    char id[ID_MAX];
    int64_t at = 0;
    enum err err = licenses_get(rq, license_id, &license);
    if (!err)
        err = plans_add_scheduled(rq, license);
    if (!err && !is_allowed(license, "change-plan")) {
        err = api_fail(rq, ERR_CONFLICT, "action_not_allowed", NULL, "change-plan is not allowed: the license is %s",
                       jv_get_c(license, "status", ""));
        rq->problem = jv_object();
        jv_set(rq->problem, "allowed_actions", jv_copy(jv_get(license, "allowed_actions")));
    }
    if (!err)
        err = change_body(rq, license, plan, c, &in); /* that it can be at all */
    if (!err)
        err = api_time_end(rq, license, "expires_at", "expires_at", &at);
    if (!err && at <= rq->now_s)
        err = api_fail(rq, ERR_CONFLICT, "no_period", "effective", "effective: the license has no period that is to end; change it now");
    if (!err)
        err = change_look(rq, license_id, plan, c, &seen);
    if (err)
        goto out;
    id_new("chg_", id);
    err = pending_end(rq, license_id, "cancelled", "another change took its place");
    if (!err)
        err = store_exec(rq->store, NULL, &rq->error,
                         "INSERT INTO scheduled_changes (id, vendor_id, license_id, plan_id, at, status, actor, created_at, keep_grants, keep_limits,"
                         " reason) VALUES (?,?,?,?,?,'pending',?,?,?,?,COALESCE(?,''))",
                         "zzssizibbs", id, rq->vendor_id, license_id, jv_get_str(plan, "id"), at, rq->actor, rq->now_s, !c->drops_grants,
                         !c->drops_limits, c->reason);
    if (!err)
        err = store_exec(rq->store, NULL, &rq->error, "UPDATE licenses SET change_at=? WHERE id=? AND vendor_id=?", "isz", at, license_id,
                         rq->vendor_id);
    jv_set_c(data, "id", id);
    jv_set_str(data, "plan_id", jv_get_str(plan, "id"));
    jv_set_time(data, "at", at);
    if (!err)
        err = licenses_changed(rq, license_id, "license.change_scheduled", c->reason, data);
    if (!err)
        tell_scheduled(rq, license);
    if (!err && seen) {
        jv_set(rq->out, "effect", jv_copy(jv_get(seen, "effect")));
        jv_set(rq->out, "last_pulls", jv_copy(jv_get(seen, "last_pulls")));
    }
out:
    jv_free(seen);
    jv_free(license);
    jv_free(in);
    jv_free(data);
    return err;
}

enum err plans_change(struct api *rq, struct str license_id, struct str plan_id, const struct plan_change *c)
{
    struct jv *plan = NULL;
    if (c->drops_grants && !str_trim(c->reason).n)
        return api_fail(rq, ERR_INVALID, "missing_field", "reason", "reason: missing; what a customer loses is taken for a reason");
    enum err err = plans_get(rq, plan_id, false, &plan);
    if (err == ERR_NOT_FOUND)
        return api_fail(rq, ERR_INVALID, "unknown_reference", "plan_id", "plan_id: no such object");
    if (!err && !c->is_next_period) /* what waited was of a plan that it no longer has */
        err = pending_end(rq, license_id, "cancelled", "another change took its place");
    if (!err)
        err = c->is_next_period ? change_later(rq, license_id, plan, c) : change_now(rq, license_id, plan, c);
    jv_free(plan);
    return err;
}

/* An end of a change that could not be: what it wrote is taken back, the reason stays. */
static enum err change_failed(struct api *rq, struct str license_id, const char *detail)
{
    struct jv *data = jv_object();
    jv_set_c(data, "detail", detail);
    enum err err = pending_end(rq, license_id, "failed", detail);
    if (!err)
        err = licenses_changed(rq, license_id, "license.change_failed", str_c(detail), data);
    jv_free(rq->after); /* nothing that an audit would call done */
    rq->after = NULL;
    jv_free(data);
    return err;
}

enum err plans_apply_scheduled(struct api *rq, struct str license_id)
{
    struct strbuf plan_id = {0}, reason = {0};
    struct plan_change c = {0};
    struct store_stmt *st = NULL;
    struct jv *plan = NULL;
    bool row = false;
    char *id = str_dup(license_id); /* may be of an answer that the change replaces */
    enum err err = store_query(rq->store, &st, &rq->error,
                               "SELECT c.plan_id, c.keep_grants, c.keep_limits, c.reason, c.created_at FROM scheduled_changes c JOIN licenses l ON l.id=c.license_id WHERE c.license_id=? AND c.vendor_id=?"
                               " AND c.status='pending' AND c.at<=? AND l.status<>'suspended'",
                               "zzi", id, rq->vendor_id, rq->now_s);
    if (!err)
        err = store_step(st, &row, &rq->error);
    if (!err && row) {
        sb_add(&plan_id, store_col_str(st, 0));
        c.drops_grants = store_col_int(st, 1) == 0;
        c.drops_limits = store_col_int(st, 2) == 0;
        sb_add(&reason, store_col_str(st, 3).n ? store_col_str(st, 3) : S("scheduled"));
        c.reason = sb_str(&reason);
        c.asked_at = store_col_int(st, 4);
    }
    store_done(&st);
    if (err || !row)
        goto out;
    err = store_exec(rq->store, NULL, &rq->error, "SAVEPOINT scheduled_change", "");
    if (err)
        goto out;
    err = plans_get(rq, sb_str(&plan_id), true, &plan); /* it was agreed on, also when it is sold no more */
    if (!err)
        err = pending_end(rq, str_c(id), "applied", "");
    if (!err)
        err = change_now(rq, str_c(id), plan, &c);
    bool is_refused = err == ERR_CONFLICT || err == ERR_INVALID || err == ERR_NOT_FOUND || err == ERR_DENIED;
    if (is_refused) {
        struct error why = rq->error;
        rq->code = NULL;
        jv_free(rq->problem);
        rq->problem = NULL;
        err = store_exec(rq->store, NULL, &rq->error, "ROLLBACK TO scheduled_change", "");
        if (!err)
            err = change_failed(rq, str_c(id), why.text);
    }
    if (!err)
        err = store_exec(rq->store, NULL, &rq->error, "RELEASE scheduled_change", "");
out:
    jv_free(plan);
    sb_free(&plan_id);
    sb_free(&reason);
    mem_free(id);
    return err;
}

enum err plans_catch_up(struct api *rq, struct str license_id)
{
    char *id = str_dup(license_id), *kept = rq->audit_object;
    jv_free(rq->before);
    jv_free(rq->after);
    rq->before = rq->after = NULL;
    rq->audit_object = NULL;
    enum err err = plans_apply_scheduled(rq, str_c(id));
    if (!err && rq->after) {
        api_audit_object(rq, id);
        err = api_audit(rq, "license.change_plan", "ok");
    }
    jv_free(rq->out);
    jv_free(rq->before);
    jv_free(rq->after);
    rq->out = rq->before = rq->after = NULL;
    mem_free(rq->audit_object);
    rq->audit_object = kept;
    mem_free(id);
    return err;
}

enum err plans_drop_scheduled(struct api *rq, struct str license_id, const char *why)
{
    return pending_end(rq, license_id, "cancelled", why);
}

enum err plans_move_scheduled(struct api *rq, struct str license_id, int64_t from, int64_t to)
{
    enum err err = store_exec(rq->store, NULL, &rq->error, "UPDATE scheduled_changes SET at=? WHERE license_id=? AND status='pending' AND at=?", "isi", to,
                              license_id, from);
    if (!err)
        err = store_exec(rq->store, NULL, &rq->error, "UPDATE licenses SET change_at=? WHERE id=? AND vendor_id=? AND change_at=?", "iszi", to,
                         license_id, rq->vendor_id, from);
    return err;
}

/* ---- routes ------------------------------------------------------------------------------------------------------------ */

/* The license of the path is the caller's, and If-Match holds. */
static enum err check_license(struct api *rq)
{
    struct jv *license = NULL;
    uint64_t rev = 0;
    enum err err = licenses_get(rq, rq->params[0], &license);
    if (!err && str_to_u64(jv_get_str(license, "etag"), &rev))
        err = api_check_etag(rq, (int64_t)rev);
    jv_free(license);
    return err;
}

static enum err license_change_plan(struct api *rq)
{
    enum err err = check_license(rq);
    if (err)
        return err;
    return plans_change(rq, rq->params[0], jv_get_str(rq->in, "plan_id"),
                        &(struct plan_change){.is_next_period = str_eq(jv_get_str(rq->in, "effective"), S("next_period")),
                                              .drops_grants = !jv_get_bool(rq->in, "keep_grants", true),
                                              .drops_limits = !jv_get_bool(rq->in, "keep_limits", true),
                                              .reason = jv_get_str(rq->in, "reason")});
}

static enum err change_list(struct api *rq)
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
                      "SELECT " CHANGE_COLUMNS " FROM scheduled_changes WHERE license_id=? AND vendor_id=? AND (created_at, id) > (?,?)"
                      " ORDER BY created_at, id LIMIT ?",
                      "szizi", rq->params[0], rq->vendor_id, page.after_key, page.after_id, (int64_t)page.limit + 1);
    while (!err) {
        err = store_step(st, &row, &rq->error);
        if (err || !row || !api_page_take(&page, rq->out, store_col_int(st, 6), store_col_str(st, 0).p))
            break;
        jv_push(items, change_print(st));
    }
    store_done(&st);
    return err;
}

static enum err change_cancel(struct api *rq)
{
    struct store_stmt *st = NULL;
    struct jv *was = NULL;
    bool row = false;
    enum err err = check_license(rq);
    if (!err)
        err = store_query(rq->store, &st, &rq->error,
                          "SELECT " CHANGE_COLUMNS " FROM scheduled_changes WHERE id=? AND license_id=? AND vendor_id=?", "ssz",
                          rq->params[1], rq->params[0], rq->vendor_id);
    if (!err)
        err = store_step(st, &row, &rq->error);
    if (!err && row)
        was = change_print(st);
    store_done(&st);
    if (!err && !was)
        err = api_not_found(rq, "scheduled change");
    if (!err && !str_eq(jv_get_str(was, "status"), S("pending")))
        err = api_fail(rq, ERR_CONFLICT, "not_pending", NULL, "the change is %s", jv_get_c(was, "status", ""));
    if (!err)
        err = pending_end(rq, rq->params[0], "cancelled", "");
    if (!err)
        err = licenses_changed(rq, rq->params[0], "license.change_cancelled", (struct str){NULL, 0}, was);
    if (!err) {
        jv_free(rq->out);
        rq->out = NULL; /* 204 */
        jv_free(rq->before);
        rq->before = was;
        was = NULL;
    }
    jv_free(was);
    return err;
}

#define LIC "/api/v1/licenses"
const struct route PLAN_CHANGE_ROUTES[] = {
    {HEAD_POST, LIC "/{id}/change-plan", license_change_plan, ROLE_LICENSES, ROUTE_ACTION, &CHANGE_PLAN, &LICENSE_ANSWER, NULL,
     "license.change_plan", "Make it one of another plan, now or at the end of its period"},
    {HEAD_GET, LIC "/{id}/scheduled-changes", change_list, ROLE_VIEWER, ROUTE_LIST, NULL, &SCHEDULED_CHANGE, NULL,
     "license.scheduled_changes", "Changes to come, and those that were applied or cancelled"},
    {HEAD_DELETE, LIC "/{id}/scheduled-changes/{change_id}", change_cancel, ROLE_LICENSES, 0, NULL, NULL, NULL,
     "license.cancel_scheduled_change", "Cancel a change to come"},
    {.path = NULL},
};
