#include "usage.h"

#include <stdio.h>
#include <string.h>

#include "eventlog.h"
#include "outbox.h"
#include "pullgate/period.h"
#include "pullgate/clock.h"
#include "pullgate/credential.h"
#include "pullgate/jv.h"
#include "pullgate/license.h"
#include "pullgate/mem.h"

#define INSTANCE_SEEN_EVERY_S 60        /* a place's last use is written at most this often */
#define WINDOWS_MAX           100000    /* looked through from an estimate on: it is off by a few */

enum { PASSED_PULLS = 1, PASSED_BYTES = 2, PASSED_INSTANCES = 4 }; /* licenses.usage_passed: told in this window */

struct limits {
    int64_t pulls, bytes, instances; /* 0: none */
    bool is_denying;
    struct period period; /* all zero: one window, for ever */
    bool has_period;
};

struct use { /* of a license, as its row has it */
    char id[ID_MAX + 32], vendor_id[ID_MAX + 32], customer_id[ID_MAX + 32];
    char *zone;
    struct limits limits;
    int64_t anchor_s;         /* windows are counted from here */
    int64_t from_s, until_s;  /* the present one; until 0: no end */
    int64_t passed, exceeded; /* bits; whether the fact says so */
    int64_t quota_until_s;
    int64_t pulls, n_bytes; /* counted in the window */
};

static void copy_id(char to[ID_MAX + 32], struct str s)
{
    snprintf(to, ID_MAX + 32, "%.*s", STR(s));
}

static void limits_read(struct str text, struct str action, struct limits *ret)
{
    struct jv *v = NULL;
    *ret = (struct limits){0};
    if (text.n <= 2 || jv_parse(text, &JV_LIMITS_API, &v, NULL))
        return;
    ret->pulls = jv_get_int(v, "pulls", 0);
    ret->bytes = jv_get_int(v, "bytes", 0);
    ret->instances = jv_get_int(v, "max_instances", 0);
    struct str period = jv_get_str(v, "reset_period");
    ret->is_denying = str_eq(action, S("deny"));
    ret->has_period = period.n && period_parse(period, &ret->period, NULL) == ERR_OK;
    jv_free(v);
}

static void use_free(struct use *u)
{
    mem_free(u->zone);
}

static enum err use_load(struct store *s, struct str license_id, struct use *u, bool *ret_found, struct error *reterr)
{
    struct store_stmt *st;
    enum err err = store_query(s, &st, reterr,
                               "SELECT l.id, l.vendor_id, l.customer_id, v.time_zone, l.limits, l.limit_action,"
                               " CASE WHEN l.starts_at<>0 THEN l.starts_at ELSE l.created_at END, l.usage_from, l.usage_until, l.usage_passed,"
                               " l.quota_exceeded, l.quota_until FROM licenses l JOIN vendors v ON v.id=l.vendor_id"
                               " WHERE l.id=? AND l.archived_at=0",
                               "s", license_id);
    *u = (struct use){0};
    *ret_found = false;
    if (err)
        return err;
    err = store_step(st, ret_found, reterr);
    if (!err && *ret_found) {
        copy_id(u->id, store_col_str(st, 0));
        copy_id(u->vendor_id, store_col_str(st, 1));
        copy_id(u->customer_id, store_col_str(st, 2));
        u->zone = str_dup(store_col_str(st, 3));
        limits_read(store_col_str(st, 4), store_col_str(st, 5), &u->limits);
        u->anchor_s = store_col_int(st, 6);
        u->from_s = store_col_int(st, 7);
        u->until_s = store_col_int(st, 8);
        u->passed = store_col_int(st, 9);
        u->exceeded = store_col_int(st, 10);
        u->quota_until_s = store_col_int(st, 11);
    }
    store_done(&st);
    return err;
}

/* ---- windows ------------------------------------------------------------------------------------------------------------ */

static int64_t approximately(const struct period *p)
{
    return p->months * 2629746 + p->days * 86400 + p->seconds; /* a mean month */
}

static bool window_begin(const struct use *u, int64_t n, int64_t *ret)
{
    struct period p = {.months = u->limits.period.months * n, .days = u->limits.period.days * n, .seconds = u->limits.period.seconds * n};
    return period_add(u->anchor_s, &p, u->zone, ret, NULL) == ERR_OK;
}

/* The window of at_s: counted from the anchor, so that one that begins on a 31st does so in every month that has one. */
static void window_find(struct use *u, int64_t at_s)
{
    int64_t each = approximately(&u->limits.period), begin, end;
    if (!u->limits.has_period || each <= 0) {
        u->from_s = u->anchor_s < at_s ? u->anchor_s : at_s;
        u->until_s = 0;
        return;
    }
    int64_t n = at_s > u->anchor_s ? (at_s - u->anchor_s) / each : 0;
    n = n > 2 ? n - 2 : 0;
    if (!window_begin(u, n, &begin))
        return;
    for (int i = 0; i < WINDOWS_MAX && window_begin(u, n + 1, &end); i++, n++, begin = end)
        if (at_s < end) {
            u->from_s = begin;
            u->until_s = end;
            return;
        }
}

/* A report of at_s opens the window it falls into, when the one that is open is over or the period was changed. */
static bool window_turn(struct use *u, int64_t at_s)
{
    int64_t from = u->from_s, until = u->until_s;
    bool is_over = from == 0 || (until != 0 && at_s >= until) || (until == 0) == u->limits.has_period;
    if (!is_over)
        return false;
    window_find(u, at_s);
    if (u->from_s == from && u->until_s == until)
        return false;
    u->passed = 0;
    return true;
}

static enum err window_counts(struct store *s, struct use *u, struct error *reterr)
{
    struct store_stmt *st;
    bool row = false;
    enum err err = store_query(s, &st, reterr, "SELECT pulls, bytes FROM license_usage WHERE license_id=? AND from_at=?", "zi", u->id, u->from_s);
    u->pulls = u->n_bytes = 0;
    if (err)
        return err;
    err = store_step(st, &row, reterr);
    if (!err && row) {
        u->pulls = store_col_int(st, 0);
        u->n_bytes = store_col_int(st, 1);
    }
    store_done(&st);
    return err;
}

enum err usage_instances(struct store *s, struct str license_id, int64_t from_s, int64_t until_s, int64_t *ret, struct error *reterr)
{
    struct store_stmt *st;
    bool row = false;
    enum err err = store_query(
        s, &st, reterr,
        "SELECT count(*) FROM license_instances WHERE license_id=? AND kind='pull' AND revoked_at=0 AND (?=0 OR last_seen_at>=?)", "sii",
        license_id, until_s, from_s);
    *ret = 0;
    if (err)
        return err;
    err = store_step(st, &row, reterr);
    if (!err && row)
        *ret = store_col_int(st, 0);
    store_done(&st);
    return err;
}

/* ---- what follows ------------------------------------------------------------------------------------------------------- */

static enum err tell(struct store *s, const struct use *u, const char *limit, int64_t allowed, int64_t used, struct error *reterr)
{
    struct jv *data = jv_object();
    jv_set_c(data, "limit", limit);
    jv_set_int(data, "allowed", allowed);
    jv_set_int(data, "used", used);
    jv_set_c(data, "limit_action", u->limits.is_denying ? "deny" : "warn");
    jv_set_time(data, "window_from", u->from_s);
    jv_set_time(data, "window_until", u->until_s);
    struct event_record e = {.vendor_id = u->vendor_id,
                             .type = "license.limit_exceeded",
                             .actor = "system:usage",
                             .customer_id = u->customer_id,
                             .license_id = u->id,
                             .data = data};
    enum err err = eventlog_put(s, &e, reterr);
    const struct history_record h = {.vendor_id = u->vendor_id,
                                     .customer_id = str_c(u->customer_id),
                                     .license_id = u->id,
                                     .event = e.type,
                                     .actor = e.actor,
                                     .reason = str_c(limit),
                                     .data = data};
    if (!err)
        err = history_put(s, &h, reterr);
    jv_free(data);
    return err;
}

/* Which limits are passed, what the fact must say, and who is told. pulls, n_bytes are counted; instances: of them, or -1 (not now). */
static enum err use_judge(struct store *s, struct use *u, int64_t instances, bool is_told, bool must_project, struct error *reterr)
{
    const struct limits *l = &u->limits;
    int64_t passed = u->passed;
    enum err err = ERR_OK;
    bool no_pulls = l->pulls > 0 && u->pulls >= l->pulls, no_bytes = l->bytes > 0 && u->n_bytes >= l->bytes;
    /* With deny the last one allowed uses the limit up: the next is refused. Without, the one beyond it is what is told. */
    if (is_told && no_pulls && (l->is_denying || u->pulls > l->pulls) && !(passed & PASSED_PULLS)) {
        passed |= PASSED_PULLS;
        err = tell(s, u, "pulls", l->pulls, u->pulls, reterr);
    }
    if (!err && is_told && no_bytes && (l->is_denying || u->n_bytes > l->bytes) && !(passed & PASSED_BYTES)) {
        passed |= PASSED_BYTES;
        err = tell(s, u, "bytes", l->bytes, u->n_bytes, reterr);
    }
    if (!err && is_told && l->instances > 0 && instances > l->instances && !(passed & PASSED_INSTANCES)) {
        passed |= PASSED_INSTANCES;
        err = tell(s, u, "max_instances", l->instances, instances, reterr);
    }
    bool exceeded = l->is_denying && (no_pulls || no_bytes);
    bool is_other = exceeded != (u->exceeded != 0) || u->quota_until_s != u->until_s;
    if (!err)
        err = store_exec(s, NULL, reterr,
                         "UPDATE licenses SET usage_from=?, usage_until=?, usage_passed=?, quota_exceeded=?, quota_until=? WHERE id=?", "iiibiz",
                         u->from_s, u->until_s, passed, exceeded, u->until_s, u->id);
    u->passed = passed;
    bool is_full = l->is_denying && l->instances > 0 && instances >= l->instances;
    if (!err && (must_project || (is_other && (exceeded || u->exceeded)) || is_full))
        err = outbox_put_kind(s, 'c', str_c(u->customer_id), true, reterr);
    return err;
}

/* ---- reports ------------------------------------------------------------------------------------------------------------ */

/* *ret_new: it was not among those that count before. */
static enum err instance_seen(struct store *s, const struct use *u, const struct usage_pull *p, bool *ret_new, struct error *reterr)
{
    uint8_t addr[16];
    char instance[LICENSE_INSTANCE_TEXT_MAX];
    struct store_stmt *st;
    bool row = false;
    *ret_new = false;
    if (!addr_parse(p->client, addr))
        return ERR_OK;
    license_instance_text(license_instance(p->credential_id, addr), instance);
    enum err err = store_query(s, &st, reterr, "SELECT last_seen_at, revoked_at FROM license_instances WHERE license_id=? AND fingerprint=?", "zz",
                               u->id, instance);
    if (err)
        return err;
    err = store_step(st, &row, reterr);
    int64_t seen = !err && row ? store_col_int(st, 0) : 0, gone_s = !err && row ? store_col_int(st, 1) : 0;
    bool is_gone = !row || gone_s != 0;
    store_done(&st);
    if (!err && gone_s != 0 && p->at_s <= gone_s)
        return ERR_OK; /* told late: it pulled before it gave its place up */
    if (err || (!is_gone && p->at_s - seen < INSTANCE_SEEN_EVERY_S && seen >= u->from_s))
        return err;
    *ret_new = is_gone || (u->until_s != 0 && seen < u->from_s);
    return store_exec(s, NULL, reterr,
                      "INSERT INTO license_instances (license_id, fingerprint, kind, address, agent, first_seen_at, last_seen_at, revoked_at)"
                      " VALUES (?1,?2,'pull',?3,?4,?5,?5,0) ON CONFLICT (license_id, fingerprint) DO UPDATE SET"
                      " first_seen_at=CASE WHEN ?6 THEN ?5 ELSE first_seen_at END, last_seen_at=max(last_seen_at, ?5), agent=?4, revoked_at=0",
                      "zzssib", u->id, instance, p->client, p->agent, p->at_s, *ret_new);
}

static enum err count_add(struct store *s, const struct use *u, int64_t pulls, int64_t bytes, int64_t denied, struct error *reterr)
{
    return store_exec(s, NULL, reterr,
                      "INSERT INTO license_usage (license_id, from_at, until_at, pulls, bytes, denied) VALUES (?,?,?,?,?,?)"
                      " ON CONFLICT (license_id, from_at) DO UPDATE SET pulls=pulls+excluded.pulls, bytes=bytes+excluded.bytes,"
                      " denied=denied+excluded.denied, until_at=excluded.until_at",
                      "ziiiii", u->id, u->from_s, u->until_s, pulls, bytes, denied);
}

enum err usage_pulled(struct store *s, const struct usage_pull *p, struct error *reterr)
{
    struct use u;
    bool found, is_new = false;
    int64_t instances = -1;
    enum err err = use_load(s, p->license_id, &u, &found, reterr);
    if (err || !found) {
        use_free(&u);
        return err;
    }
    bool is_turned = window_turn(&u, p->at_s);
    err = count_add(s, &u, p->allowed ? 1 : 0, 0, p->allowed ? 0 : 1, reterr);
    if (!err && p->allowed)
        err = instance_seen(s, &u, p, &is_new, reterr);
    bool has_limit = u.limits.pulls > 0 || u.limits.bytes > 0 || u.limits.instances > 0;
    if (!err && (is_turned || (has_limit && p->allowed))) {
        err = window_counts(s, &u, reterr);
        if (!err && is_new && u.limits.instances > 0)
            err = usage_instances(s, str_c(u.id), u.from_s, u.until_s, &instances, reterr);
        if (!err)
            err = use_judge(s, &u, instances, true, is_turned && u.limits.instances > 0 && u.limits.is_denying, reterr);
    } else if (!err && p->is_quota && u.limits.instances > 0 && !(u.passed & PASSED_INSTANCES) && !u.exceeded) {
        /* The installation beyond the last place: only its denial shows it. */
        err = tell(s, &u, "max_instances", u.limits.instances, u.limits.instances + 1, reterr);
        if (!err)
            err = store_exec(s, NULL, reterr, "UPDATE licenses SET usage_passed=usage_passed|? WHERE id=?", "iz", (int64_t)PASSED_INSTANCES, u.id);
    }
    use_free(&u);
    return err;
}

enum err usage_bytes(struct store *s, struct str report_id, struct str license_id, int64_t bytes, int64_t at_s, struct error *reterr)
{
    struct use u;
    bool found;
    int64_t changes = 0;
    if (bytes <= 0 || !report_id.n)
        return ERR_OK;
    enum err err = store_exec(s, &changes, reterr, "INSERT OR IGNORE INTO usage_reports (id, at) VALUES (?,?)", "si", report_id, at_s);
    if (err || !changes)
        return err;
    err = use_load(s, license_id, &u, &found, reterr);
    if (!err && found) {
        bool is_turned = window_turn(&u, at_s);
        err = count_add(s, &u, 0, bytes, 0, reterr);
        if (!err && (is_turned || u.limits.bytes > 0))
            err = window_counts(s, &u, reterr);
        if (!err && (is_turned || u.limits.bytes > 0))
            err = use_judge(s, &u, -1, true, is_turned && u.limits.instances > 0 && u.limits.is_denying, reterr);
    }
    use_free(&u);
    return err;
}

enum err usage_refresh(struct store *s, struct str license_id, int64_t now_s, struct error *reterr)
{
    struct use u;
    bool found;
    int64_t instances = 0;
    enum err err = use_load(s, license_id, &u, &found, reterr);
    if (!err && found) {
        window_turn(&u, now_s);
        err = window_counts(s, &u, reterr);
        if (!err)
            err = usage_instances(s, str_c(u.id), u.from_s, u.until_s, &instances, reterr);
        /* A limit that was raised above what is used may be passed, and told, once more. */
        if (u.limits.pulls == 0 || u.pulls < u.limits.pulls)
            u.passed &= ~(int64_t)PASSED_PULLS;
        if (u.limits.bytes == 0 || u.n_bytes < u.limits.bytes)
            u.passed &= ~(int64_t)PASSED_BYTES;
        if (u.limits.instances == 0 || instances < u.limits.instances)
            u.passed &= ~(int64_t)PASSED_INSTANCES;
        if (!err)
            err = use_judge(s, &u, instances, false, true, reterr);
    }
    use_free(&u);
    return err;
}

/* ---- the clock ---------------------------------------------------------------------------------------------------------- */

enum err usage_tick(struct store *s, int64_t now_s, int max, struct error *reterr)
{
    int64_t silent = now_s - (int64_t)USAGE_INSTANCE_DAYS * 86400;
    struct store_stmt *st;
    struct strbuf gone = {0};
    bool row;
    enum err err = store_query(s, &st, reterr,
                               "SELECT license_id, fingerprint FROM license_instances WHERE kind='pull' AND revoked_at=0 AND last_seen_at<? LIMIT ?",
                               "ii", silent, (int64_t)max);
    if (err)
        return err;
    while (!(err = store_step(st, &row, reterr)) && row) {
        sb_add(&gone, store_col_str(st, 0));
        sb_add_char(&gone, ' ');
        sb_add(&gone, store_col_str(st, 1));
        sb_add_char(&gone, '\n');
    }
    store_done(&st);
    struct str rest = sb_str(&gone), line, license, instance;
    while (!err && str_next(&rest, '\n', &line) && str_cut(line, ' ', &license, &instance)) {
        err = store_exec(s, NULL, reterr, "UPDATE license_instances SET revoked_at=? WHERE license_id=? AND fingerprint=?", "iss", now_s, license,
                         instance);
        if (!err)
            err = usage_refresh(s, license, now_s, reterr);
    }
    sb_free(&gone);
    return err;
}
