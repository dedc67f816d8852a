/* What happened: the pull log, the audit log and the event log. Newest first; events can be followed too. */
#include <stdio.h>
#include <string.h>

#include "api_routes.h"
#include "audit.h"
#include "eventlog.h"
#include "pullgate/clock.h"
#include "pullgate/mem.h"

#define EXPORT_DEFAULT 1000 /* lines of a page of the audit */
#define EXPORT_MAX     10000

static const struct field PULL_FIELDS[] = {
    {.name = "id", .type = FIELD_STRING, .about = "request id, as the client was shown it"},
    {.name = "at", .type = FIELD_TIME},
    {.name = "customer_id", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "credential_id", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "license_id", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "application_id", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "repository", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "reference", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "tag", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "digest", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "decision", .type = FIELD_STRING},
    {.name = "reason", .type = FIELD_STRING},
    {.name = "client", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "agent", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "proxy", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "method", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "bytes", .type = FIELD_INT},
    {.name = NULL},
};
static const struct schema PULL = {"Pull", PULL_FIELDS};

static const struct field AUDIT_FIELDS[] = {
    {.name = "seq", .type = FIELD_INT},
    {.name = "at", .type = FIELD_TIME},
    {.name = "actor", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "actor_name", .type = FIELD_STRING, .flags = FIELD_EMPTY, .about = "as he was known then"},
    {.name = "address", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "request_id", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "action", .type = FIELD_STRING},
    {.name = "object", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "outcome", .type = FIELD_STRING, .about = "ok, or the code it was refused with"},
    {.name = "before", .type = FIELD_MAP, .flags = FIELD_NULL},
    {.name = "after", .type = FIELD_MAP, .flags = FIELD_NULL},
    {.name = "hash", .type = FIELD_STRING, .about = "HMAC over the record and the hash before it"},
    {.name = NULL},
};
static const struct schema AUDIT = {"AuditRecord", AUDIT_FIELDS};

static const struct field AUDIT_VERIFY_FIELDS[] = {
    {.name = "ok", .type = FIELD_BOOL},
    {.name = "records", .type = FIELD_INT},
    {.name = "detail", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = NULL},
};
static const struct schema AUDIT_VERIFY = {"AuditVerification", AUDIT_VERIFY_FIELDS};

static const struct field EVENT_FIELDS[] = {
    {.name = "id", .type = FIELD_INT},
    {.name = "at", .type = FIELD_TIME},
    {.name = "type", .type = FIELD_STRING},
    {.name = "event", .type = FIELD_STRING, .about = "the same as type"},
    {.name = "customer_id", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "license_id", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "object_id", .type = FIELD_STRING, .flags = FIELD_EMPTY, .about = "what else it is about: a credential, an order, a webhook"},
    {.name = "actor", .type = FIELD_STRING},
    {.name = "from_status", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "to_status", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "reason", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "license", .type = FIELD_MAP, .flags = FIELD_NULL, .about = "as it was then: id, name, status, expires_at, …"},
    {.name = "data", .type = FIELD_MAP},
    {.name = NULL},
};
static const struct schema EVENT = {"Event", EVENT_FIELDS};

static void set_time_ms(struct jv *v, const char *key, int64_t at_ms)
{
    char text[CLOCK_RFC3339_MAX];
    jv_set_c(v, key, clock_rfc3339_ms(at_ms, text));
}

/* Lists go backwards: from the cursor's place, or from the end. The id of a log's row is a number. */
static void page_backwards(const struct page *p, int64_t *ret_key, int64_t *ret_id)
{
    uint64_t id = 0;
    *ret_key = p->has_cursor ? p->after_key : INT64_MAX;
    *ret_id = p->has_cursor && str_to_u64(str_c(p->after_id), &id) && id < INT64_MAX ? (int64_t)id : INT64_MAX;
}

static bool take_row(struct page *p, struct jv *out, int64_t key, int64_t id)
{
    char text[32];
    snprintf(text, sizeof text, "%lld", (long long)id);
    return api_page_take(p, out, key, text);
}

/* ---- pulls ------------------------------------------------------------------------------------------------------------- */

/* The index that narrows most: of the license, of the customer, else of the vendor. */
#define PULL_QUERY(by)                                                                                                                     \
    "SELECT id, event_id, at_ms, customer_id, credential_id, license_id, application_id, repository, reference, tag, digest, decision, "   \
    "reason,"                                                                                                                              \
    " client, agent, proxy, method, bytes FROM pulls WHERE " by                                                                            \
    " AND vendor_id=?1 AND (?2='' OR customer_id=?2) AND (?3='' OR license_id=?3)"                                                         \
    " AND (?4='' OR repository=?4) AND (?5='' OR decision=?5) AND (?6='' OR reason=?6) AND at_ms>=?7 AND at_ms<?8 AND (at_ms, id) < "      \
    "(?9,?10)"                                                                                                                             \
    " ORDER BY at_ms DESC, id DESC LIMIT ?11"

static enum err pull_customer(struct api *rq, struct strbuf *id_or_slug)
{
    struct store_stmt *st = NULL;
    bool row = false;
    if (!id_or_slug->n)
        return ERR_OK;
    enum err err = store_query(rq->store, &st, &rq->error, "SELECT id FROM customers WHERE vendor_id=? AND (id=? OR slug=?)", "zss",
                               rq->vendor_id, sb_str(id_or_slug), sb_str(id_or_slug));
    if (!err)
        err = store_step(st, &row, &rq->error);
    if (!err && row) {
        sb_reset(id_or_slug);
        sb_add(id_or_slug, store_col_str(st, 0));
    }
    store_done(&st);
    return err;
}

static enum err pull_list(struct api *rq)
{
    static const char *const names[] = {"customer", "license", "repository", "decision", "reason"};
    struct strbuf f[5] = {{0}};
    struct page page;
    struct store_stmt *st = NULL;
    int64_t from = 0, to = 0, key, id;
    bool row;
    enum err err = api_page(rq, &page);
    if (!err)
        err = api_query_time(rq, "from", &from);
    if (!err)
        err = api_query_time(rq, "to", &to);
    for (size_t i = 0; i < 5; i++)
        api_query(rq, names[i], &f[i]);
    if (!err)
        err = pull_customer(rq, &f[0]);
    if (err)
        goto out;
    page_backwards(&page, &key, &id);
    struct jv *items = api_list(rq);
    const char *sql = f[1].n ? PULL_QUERY("license_id=?3") : f[0].n ? PULL_QUERY("customer_id=?2") : PULL_QUERY("vendor_id=?1");
    err = store_query(rq->store, &st, &rq->error, sql, "zsssssiiiii", rq->vendor_id, sb_str(&f[0]), sb_str(&f[1]), sb_str(&f[2]),
                      sb_str(&f[3]), sb_str(&f[4]), from * 1000, to ? to * 1000 : INT64_MAX, key, id, (int64_t)page.limit + 1);
    while (!err) {
        err = store_step(st, &row, &rq->error);
        if (err || !row || !take_row(&page, rq->out, store_col_int(st, 2), store_col_int(st, 0)))
            break;
        struct jv *v = jv_object();
        jv_set_str(v, "id", store_col_str(st, 1));
        set_time_ms(v, "at", store_col_int(st, 2));
        static const char *const texts[] = {"customer_id", "credential_id", "license_id", "application_id", "repository",
                                            "reference",   "tag",           "digest",     "decision",       "reason",
                                            "client",      "agent",         "proxy",      "method"};
        for (int i = 0; i < (int)(sizeof texts / sizeof texts[0]); i++)
            jv_set_str(v, texts[i], store_col_str(st, 3 + i));
        jv_set_int(v, "bytes", store_col_int(st, 17));
        jv_push(items, v);
    }
    store_done(&st);
out:
    for (size_t i = 0; i < 5; i++)
        sb_free(&f[i]);
    return err;
}

/* ---- audit ------------------------------------------------------------------------------------------------------------- */

static enum err audit_list(struct api *rq)
{
    static const char *const names[] = {"object", "actor", "action"};
    struct strbuf f[3] = {{0}};
    struct page page;
    struct store_stmt *st = NULL;
    int64_t from = 0, to = 0, key, id;
    bool row;
    enum err err = api_page(rq, &page);
    if (!err)
        err = api_query_time(rq, "from", &from);
    if (!err)
        err = api_query_time(rq, "to", &to);
    if (err)
        return err;
    for (size_t i = 0; i < 3; i++)
        api_query(rq, names[i], &f[i]);
    page_backwards(&page, &key, &id);
    struct jv *items = api_list(rq);
    err = store_query(rq->store, &st, &rq->error,
                      "SELECT seq, at_ms, actor, address, request_id, action, object, outcome, before, after, hash, actor_name FROM audit"
                      " WHERE vendor_id=?1 AND (?2='' OR object=?2) AND (?3='' OR actor=?3) AND (?4='' OR action=?4) AND at_ms>=?5 AND "
                      "at_ms<?6 AND seq<?7"
                      " ORDER BY seq DESC LIMIT ?8",
                      "zsssiiii", rq->vendor_id, sb_str(&f[0]), sb_str(&f[1]), sb_str(&f[2]), from * 1000, to ? to * 1000 : INT64_MAX, id,
                      (int64_t)page.limit + 1);
    while (!err) {
        err = store_step(st, &row, &rq->error);
        if (err || !row || !take_row(&page, rq->out, 0, store_col_int(st, 0)))
            break;
        struct jv *v = jv_object();
        jv_set_int(v, "seq", store_col_int(st, 0));
        set_time_ms(v, "at", store_col_int(st, 1));
        static const char *const texts[] = {"actor", "address", "request_id", "action", "object", "outcome"};
        for (int i = 0; i < 6; i++)
            jv_set_str(v, texts[i], store_col_str(st, 2 + i));
        jv_set_str(v, "actor_name", store_col_str(st, 11));
        api_set_json(v, "before", store_col_str(st, 8));
        api_set_json(v, "after", store_col_str(st, 9));
        jv_set_str(v, "hash", store_col_str(st, 10));
        jv_push(items, v);
    }
    store_done(&st);
    for (size_t i = 0; i < 3; i++)
        sb_free(&f[i]);
    return err;
}

static enum err audit_check(struct api *rq)
{
    int64_t records = 0;
    struct strbuf path = {0};
    audit_head_path(admin_config(rq->admin)->keys.path, &path);
    enum err err = audit_verify(rq->store, rq->admin->keys, path.p, &records, &rq->error);
    sb_free(&path);
    if (err && err != ERR_INVALID)
        return err;
    rq->out = jv_object();
    jv_set_bool(rq->out, "ok", err == ERR_OK);
    jv_set_int(rq->out, "records", records);
    jv_set_c(rq->out, "detail", err ? rq->error.text : "");
    return ERR_OK;
}

/* A page of lines, and one that says where to go on. Whoever follows next_cursor to its end has the range. */
static enum err audit_export_get(struct api *rq)
{
    struct strbuf v = {0};
    struct audit_range range = {.vendor_id = rq->vendor_id, .to_ms = INT64_MAX, .limit = EXPORT_DEFAULT};
    int64_t from = 0, to = 0, last = 0;
    uint64_t n = 0;
    enum err err = api_query_time(rq, "from", &from);
    if (!err)
        err = api_query_time(rq, "to", &to);
    if (!err && api_query(rq, "limit", &v)) {
        if (!str_to_u64(sb_str(&v), &n) || n < 1 || n > EXPORT_MAX)
            err = api_fail(rq, ERR_INVALID, "invalid_parameter", "limit", "limit: a number from 1 to %d", EXPORT_MAX);
        range.limit = (int)n;
    }
    if (!err && api_query(rq, "cursor", &v)) {
        if (!str_to_u64(sb_str(&v), &n) || n >= INT64_MAX)
            err = api_fail(rq, ERR_INVALID, "invalid_cursor", "cursor", "cursor: not one that this API gave out");
        range.after_seq = (int64_t)n;
    }
    if (!err && api_query(rq, "all", &v)) {
        if (!str_eq(sb_str(&v), S("1")))
            err = api_fail(rq, ERR_INVALID, "invalid_parameter", "all", "all: 1 or absent");
        else if (rq->role != ROLE_OPERATOR)
            err = api_fail(rq, ERR_DENIED, "role_not_allowed", "all", "all: only an operator exports all vendors' rows");
        range.vendor_id = NULL;
    }
    sb_free(&v);
    if (err)
        return err;
    range.from_ms = from * 1000;
    range.to_ms = to ? to * 1000 : INT64_MAX;
    err = audit_export(rq->store, &range, &rq->raw, &last, &rq->error);
    if (!err && last)
        sb_addf(&rq->raw, "{\"next_cursor\":\"%lld\"}\n", (long long)last);
    else if (!err)
        sb_addc(&rq->raw, "{\"next_cursor\":null}\n");
    rq->raw_type = "application/x-ndjson";
    return err;
}

/* ---- events ------------------------------------------------------------------------------------------------------------ */

#define FOLLOW_WAIT_MAX_S 30

/* ",license.*,order.paid," as patterns of GLOB, one after another: a type is wanted when one matches. */
static bool event_wanted(struct str types, struct str type)
{
    struct str one;
    if (!types.n)
        return true;
    while (str_next(&types, ',', &one)) {
        one = str_trim(one);
        if (eventlog_matches(one, type))
            return true;
    }
    return false;
}

/* Who asks for what came after an event that is gone would miss those between: he is told where the log begins. 0 is its beginning. */
static enum err follow_check(struct api *rq, int64_t after)
{
    int64_t pruned = 0;
    if (!after)
        return ERR_OK;
    enum err err = api_number(rq, "SELECT events_pruned FROM vendors WHERE id=?", str_c(rq->vendor_id), &pruned);
    if (err || after >= pruned)
        return err;
    err = api_fail(rq, ERR_NOT_FOUND, "events_pruned", "after", "after: events beyond it are gone; the oldest that is kept comes after %lld", (long long)pruned);
    rq->status = 410;
    rq->problem = jv_object();
    jv_set_int(rq->problem, "oldest_after", pruned);
    return err;
}

/* The end of the vendor's log as this transaction sees it. */
static enum err follow_end(struct api *rq, int64_t *last)
{
    int64_t newest = 0;
    enum err err = api_number(rq, "SELECT max(v.events_pruned, COALESCE((SELECT max(id) FROM events e WHERE e.vendor_id=v.id),0)) FROM vendors v WHERE v.id=?",
                              str_c(rq->vendor_id), &newest);
    if (!err && newest > *last)
        *last = newest;
    return err;
}

/* after=: from there on, oldest first, and next_cursor is what to ask with next; without: newest first. */
static enum err event_list(struct api *rq)
{
    static const char *const names[] = {"license", "customer", "event", "types", "after", "wait"};
    enum { LICENSE_ID, CUSTOMER, EVENT_TYPE, TYPES, AFTER, WAIT, N };
    struct strbuf f[N] = {{0}};
    struct page page;
    struct store_stmt *st = NULL;
    int64_t key, id = 0, last = 0;
    uint64_t after = 0, wait = 0;
    bool row = false;
    enum err err = api_page(rq, &page);
    if (err)
        return err;
    for (size_t i = 0; i < N; i++)
        api_query(rq, names[i], &f[i]);
    bool is_follow = f[AFTER].n != 0;
    if (is_follow && (!str_to_u64(sb_str(&f[AFTER]), &after) || after > INT64_MAX))
        err = api_fail(rq, ERR_INVALID, "invalid_parameter", "after", "after: the id of an event, or 0");
    else if (f[WAIT].n && (!str_to_u64(sb_str(&f[WAIT]), &wait) || wait > FOLLOW_WAIT_MAX_S || !is_follow))
        err = api_fail(rq, ERR_INVALID, "invalid_parameter", "wait", "wait: 0 to %d seconds, together with after", FOLLOW_WAIT_MAX_S);
    else if (is_follow)
        err = follow_check(rq, (int64_t)after);
    if (!err)
        err = pull_customer(rq, &f[CUSTOMER]);
    if (err)
        goto out;
    page_backwards(&page, &key, &id);
    if (is_follow)
        id = last = (int64_t)after;
    struct jv *items = api_list(rq);
#define EVENT_QUERY(by, order)                                                                                                             \
    "SELECT " EVENTLOG_COLUMNS " FROM events WHERE " by                                                                                    \
    " vendor_id=?1 AND (?2='' OR license_id=?2) AND (?3='' OR customer_id=?3) AND (?4='' OR type=?4)" order " LIMIT ?6"
    static const char *const sqls[2][4] = {
        {EVENT_QUERY("", " AND id<?5 ORDER BY id DESC"), EVENT_QUERY("license_id<>'' AND license_id=?2 AND", " AND id<?5 ORDER BY id DESC"),
         EVENT_QUERY("customer_id<>'' AND customer_id=?3 AND", " AND id<?5 ORDER BY id DESC"),
         EVENT_QUERY("type=?4 AND", " AND id<?5 ORDER BY id DESC")},
        {EVENT_QUERY("", " AND id>?5 ORDER BY id"), EVENT_QUERY("license_id<>'' AND license_id=?2 AND", " AND id>?5 ORDER BY id"),
         EVENT_QUERY("customer_id<>'' AND customer_id=?3 AND", " AND id>?5 ORDER BY id"), EVENT_QUERY("type=?4 AND", " AND id>?5 ORDER BY id")},
    };
    /* Where more than the query sorts out, rows are looked at one by one, over a bounded number of rows: the cursor goes on even where none of them matched. */
    const bool is_sieved = f[TYPES].n || rq->role < ROLE_SUPPORT;
    const int scan = is_sieved ? 5000 : page.limit + 1;
    err = store_query(rq->store, &st, &rq->error, sqls[is_follow][f[LICENSE_ID].n ? 1 : f[CUSTOMER].n ? 2 : f[EVENT_TYPE].n ? 3 : 0], "zsssii",
                      rq->vendor_id, sb_str(&f[LICENSE_ID]), sb_str(&f[CUSTOMER]), sb_str(&f[EVENT_TYPE]), id, (int64_t)scan);
    int seen = 0;
    while (!err) {
        err = store_step(st, &row, &rq->error);
        if (err || !row)
            break;
        struct str type = store_col_str(st, 2);
        bool is_hidden = rq->role < ROLE_SUPPORT && (str_starts(type, S("pull.")) || str_starts(type, S("user."))); /* as the pull log and the people are */
        if (!is_hidden && event_wanted(sb_str(&f[TYPES]), store_col_str(st, 2))) {
            if (!take_row(&page, rq->out, 0, store_col_int(st, 0)))
                break;
            jv_push(items, eventlog_print(st));
        }
        last = store_col_int(st, 0);
        if (++seen == scan && is_sieved && !is_follow) { /* the rest of the log: another page */
            page.limit = 0;
            page.after_key = 0;
            snprintf(page.after_id, sizeof page.after_id, "%lld", (long long)last);
            (void)api_page_take(&page, rq->out, 0, "");
        }
    }
    store_done(&st);
    if (!err && is_follow && !row && seen < scan) /* all of the log was looked at: the cursor is not left behind by what did not match */
        err = follow_end(rq, &last);
    if (!err && is_follow) {
        char text[24];
        snprintf(text, sizeof text, "%lld", (long long)last);
        jv_set_c(rq->out, "next_cursor", text);
        if (!jv_len(items) && seen < scan) /* that was all of the log */
            rq->again_ms = (uint64_t)wait * 1000;
    }
out:
    for (size_t i = 0; i < N; i++)
        sb_free(&f[i]);
    return err;
}

static const struct query_param PULL_PARAMS[] = {
    {"customer", "id or slug"},
    {"license", "id"},
    {"repository", "public name"},
    {"decision", "allow or deny"},
    {"reason", "reason code"},
    {"from", "instant or date, inclusive"},
    {"to", "instant or date, exclusive"},
    {NULL, NULL},
};
static const struct query_param AUDIT_PARAMS[] = {
    {"object", "id of what was changed"}, {"actor", "token:<id>"},
    {"action", "such as license.create"}, {"from", "instant or date, inclusive"},
    {"to", "instant or date, exclusive"}, {NULL, NULL},
};
static const struct query_param EXPORT_PARAMS[] = {
    {"from", "instant or date, inclusive"}, {"to", "instant or date, exclusive"},
    {"limit", "lines of a page, 1 to 10000; 1000 when absent"}, {"cursor", "next_cursor of the page before"},
    {"all", "1: the rows of all vendors, for an operator"}, {NULL, NULL},
};
static const struct query_param EVENT_PARAMS[] = {
    {"license", "id"},
    {"customer", "id or slug"},
    {"event", "such as license.suspended"},
    {"types", "patterns with commas between them: license.*,order.paid"},
    {"after", "id of an event, 0 for the oldest that is kept: follow from there, oldest first; next_cursor is the next after"},
    {"wait", "seconds up to 30 that an answer without events may take, with after"},
    {NULL, NULL},
};

const struct route LOG_ROUTES[] = {
    {HEAD_GET, "/api/v1/pulls", pull_list, ROLE_SUPPORT, ROUTE_LIST, NULL, &PULL, PULL_PARAMS, "pull.list",
     "Pulls and denials, newest first"},
    {HEAD_GET, "/api/v1/audit", audit_list, ROLE_SUPPORT, ROUTE_LIST, NULL, &AUDIT, AUDIT_PARAMS, "audit.list",
     "Who changed what, or tried to, newest first"},
    {HEAD_GET, "/api/v1/audit/export", audit_export_get, ROLE_SUPPORT, ROUTE_PLAIN, NULL, NULL, EXPORT_PARAMS, "audit.export",
     "Rows with their chain, oldest first, as lines of JSON; for pullgate audit verify --file"},
    {HEAD_GET, "/api/v1/audit/verification", audit_check, ROLE_OWNER, ROUTE_SLOW, NULL, &AUDIT_VERIFY, NULL, "audit.verify",
     "Check the chain of the whole audit log"},
    {HEAD_GET, "/api/v1/events", event_list, ROLE_VIEWER, ROUTE_LIST, NULL, &EVENT, EVENT_PARAMS, "event.list",
     "What happened: newest first, or followed with after"},
    {.path = NULL},
};
