/* Licenses in and out in great numbers: import from CSV and NDJSON with a dry run and a report line by line; export of licenses in the form
 * that the import reads, and of every other list. What a line means is done by the handlers that a single request would reach. */
#include <stdio.h>
#include <string.h>

#include "api_routes.h"
#include "batch.h"
#include "http.h"
#include "licensemodel.h"
#include "licensequery.h"
#include "licenses.h"
#include "outbox.h"
#include "plans.h"
#include "pullgate/clock.h"
#include "pullgate/credential.h"
#include "pullgate/mem.h"
#include "pullgate/oci.h"
#include "roles.h"
#include "rows.h"

#define IMPORT_LINES_MAX   10000 /* of one request: what one transaction may hold the writer for */
#define IMPORT_PART_LINES  500   /* a transaction, where good lines are kept by themselves */
#define EXPORT_LIMIT       1000  /* rows of a part, where the request does not say */

/* ---- what a line may name ------------------------------------------------------------------------------------------------ */

enum column_kind {
    COLUMN_TEXT,
    COLUMN_TIME,
    COLUMN_INT,
    COLUMN_BOOL,
    COLUMN_LIST,
    COLUMN_GRANTS,
    COLUMN_MAP,
    COLUMN_OTHER, /* read by name */
    COLUMN_SHOWN, /* of an export, without a meaning for an import */
};
static const struct column {
    const char *name;
    enum column_kind kind;
} COLUMNS[] = {
    {"id", COLUMN_OTHER},
    {"external_id", COLUMN_TEXT},
    {"customer", COLUMN_OTHER},
    {"application", COLUMN_OTHER},
    {"name", COLUMN_TEXT},
    {"key", COLUMN_OTHER},
    {"status", COLUMN_OTHER},
    {"status_reason", COLUMN_OTHER},
    {"type", COLUMN_TEXT},
    {"starts_at", COLUMN_TIME},
    {"expires_at", COLUMN_TIME},
    {"grace_days", COLUMN_INT},
    {"updates_until", COLUMN_TIME},
    {"on_expiry", COLUMN_TEXT},
    {"period", COLUMN_TEXT},
    {"grants", COLUMN_GRANTS},
    {"allowed_cidrs", COLUMN_LIST},
    {"environment", COLUMN_TEXT},
    {"order_number", COLUMN_TEXT},
    {"transaction_id", COLUMN_TEXT},
    {"issuer", COLUMN_OTHER},
    {"plan", COLUMN_OTHER},
    {"auto_renew", COLUMN_BOOL},
    {"cancel_at_period_end", COLUMN_BOOL},
    {"trial_days", COLUMN_INT},
    {"starts_on", COLUMN_TEXT},
    {"requires_activation", COLUMN_BOOL},
    {"grants_locked", COLUMN_BOOL},
    {"limits", COLUMN_MAP},
    {"features", COLUMN_MAP},
    {"metadata", COLUMN_MAP},
    {"customer_name", COLUMN_OTHER},
    {"customer_email", COLUMN_OTHER},
    {"effective_status", COLUMN_SHOWN},
    {"key_prefix", COLUMN_SHOWN},
    {"source", COLUMN_SHOWN},
    {"created_at", COLUMN_SHOWN},
    {"updated_at", COLUMN_SHOWN},
};
#define COLUMNS_N      (sizeof COLUMNS / sizeof *COLUMNS)
#define SHOWN_IN_CSV(c) (strcmp((c)->name, "key") != 0 && strncmp((c)->name, "customer_", 9) != 0)

static const struct column *column_of(const char *name)
{
    for (size_t i = 0; i < COLUMNS_N; i++)
        if (strcmp(COLUMNS[i].name, name) == 0)
            return &COLUMNS[i];
    return NULL;
}

static enum err bad_cell(struct api *rq, const char *name, const char *what)
{
    return api_fail(rq, ERR_INVALID, "invalid_field", name, "%s: expected %s", name, what);
}

/* "range:^1.4;exact:2.0.0;all": as the API's list. */
static enum err grants_read(struct api *rq, struct str text, struct jv **ret)
{
    struct jv *list = jv_array();
    struct str rest = text, one, selector, value;
    while (str_next(&rest, ';', &one)) {
        one = str_trim(one);
        if (!one.n)
            continue;
        if (!str_cut(one, ':', &selector, &value)) {
            selector = one;
            value = S("");
        }
        struct jv *g = jv_object();
        jv_set_str(g, "selector", str_trim(selector));
        value = str_trim(value);
        if (!(str_eq(str_trim(selector), S("all")) && str_eq(value, S("*"))))
            jv_set_str(g, "value", value);
        jv_push(list, g);
    }
    *ret = list;
    (void)rq;
    return ERR_OK;
}

/* A cell or member into the API's body. */
static enum err column_set(struct api *rq, const struct column *c, const struct jv *v, struct jv *in)
{
    struct str text = jv_str(v);
    struct jv *parsed = NULL;
    uint64_t n = 0;
    if (jv_type(v) != JV_STRING) { /* NDJSON: in its own type; the schema looks at it */
        jv_set(in, c->name, jv_copy(v));
        return ERR_OK;
    }
    bool is_json = text.n && (text.p[0] == '[' || text.p[0] == '{');
    switch (c->kind) {
    case COLUMN_TEXT:
    case COLUMN_TIME:
        jv_set_str(in, c->name, text);
        return ERR_OK;
    case COLUMN_INT:
        if (!str_to_u64(text, &n) || n > INT32_MAX)
            return bad_cell(rq, c->name, "a whole number");
        jv_set_int(in, c->name, (int64_t)n);
        return ERR_OK;
    case COLUMN_LIST:
    case COLUMN_GRANTS:
    case COLUMN_MAP:
        if (is_json || c->kind == COLUMN_MAP) {
            if (jv_parse(text, &JV_LIMITS_API, &parsed, NULL))
                return bad_cell(rq, c->name, "JSON");
        } else if (c->kind == COLUMN_GRANTS) {
            (void)grants_read(rq, text, &parsed);
        } else {
            parsed = jv_array();
            for (size_t i = 0; i < text.n;) {
                size_t from = i;
                while (i < text.n && text.p[i] != ' ' && text.p[i] != ';' && text.p[i] != ',')
                    i++;
                if (i > from)
                    jv_push(parsed, jv_string(str_sub(text, from, i - from)));
                i += i < text.n;
            }
        }
        jv_set(in, c->name, parsed);
        return ERR_OK;
    case COLUMN_BOOL:
        if (!str_eq(text, S("true")) && !str_eq(text, S("false")))
            return bad_cell(rq, c->name, "true or false");
        jv_set_bool(in, c->name, str_eq(text, S("true")));
        return ERR_OK;
    case COLUMN_OTHER:
    case COLUMN_SHOWN:
        break;
    }
    return ERR_OK;
}

/* ---- one line ------------------------------------------------------------------------------------------------------------ */

struct line_result {
    char *id, *key, *detail;
    struct jv *from_plan; /* names of what the plan gave; NULL: nothing */
    const char *result;
    bool told; /* counted as good */
    char code[40], field[API_FIELD_MAX];
};
struct import {
    struct rows_in rows;
    struct line_result *results;
    bool is_upsert, makes_customers;
    size_t created, updated, unchanged;
};

static struct str cell(const struct jv *row, const char *name)
{
    struct str s = jv_get_str(row, name);
    return s.p ? str_trim(s) : S("");
}

static enum err lookup2(struct api *rq, const char *sql, struct str a, struct strbuf *ret, bool *ret_found)
{
    struct store_stmt *st = NULL;
    bool row = false;
    enum err err = store_query(rq->store, &st, &rq->error, sql, "zs", rq->vendor_id, a);
    if (!err)
        err = store_step(st, &row, &rq->error);
    sb_reset(ret);
    if (!err && row)
        sb_add(ret, store_col_str(st, 0));
    *ret_found = row;
    store_done(&st);
    return err;
}

static enum err line_customer(struct api *rq, const struct import *im, const struct jv *row, struct strbuf *ret)
{
    struct str named = cell(row, "customer"), name = cell(row, "customer_name");
    bool found = false;
    if (!named.n)
        return api_fail(rq, ERR_INVALID, "missing_field", "customer", "customer: missing");
    enum err err = lookup2(rq, "SELECT id FROM customers WHERE vendor_id=? AND archived_at=0 AND slug=?", named, ret, &found);
    if (!err && !found)
        err = lookup2(rq, "SELECT id FROM customers WHERE vendor_id=? AND archived_at=0 AND id=?", named, ret, &found);
    if (err || found)
        return err;
    if (!im->makes_customers)
        return api_fail(rq, ERR_INVALID, "unknown_reference", "customer", "customer: there is none with this slug or id");
    struct jv *in = jv_object();
    jv_set_str(in, "slug", named);
    jv_set_str(in, "name", name.n ? name : named);
    if (cell(row, "customer_email").n)
        jv_set_str(in, "email", cell(row, "customer_email"));
    err = api_call(rq, HEAD_POST, "/api/v1/customers", in);
    if (!err)
        sb_add(ret, jv_get_str(rq->out, "id"));
    else if (err != ERR_UNAVAILABLE)
        snprintf(rq->error.field, sizeof rq->error.field, "customer");
    jv_free(in);
    return err;
}

/* The body of POST or PATCH: what the line's cells say; the grants as they stand there into *ret_told, which the caller frees. */
static enum err line_body(struct api *rq, const struct jv *row, struct jv *in, struct jv **ret_told)
{
    enum err err = ERR_OK;
    struct jv *metadata = NULL;
    for (void *it = jv_iter(row); !err && it; it = jv_iter_next(row, it)) {
        const char *name = jv_iter_key(it);
        const struct column *c = column_of(name);
        if ((c && (c->kind == COLUMN_OTHER || c->kind == COLUMN_SHOWN)) || jv_type(jv_iter_value(it)) == JV_NULL)
            continue;
        if (c) {
            err = column_set(rq, c, jv_iter_value(it), in);
        } else if (strncmp(name, "metadata.", 9) == 0 && name[9]) {
            if (!metadata)
                metadata = jv_object();
            jv_set(metadata, name + 9, jv_copy(jv_iter_value(it)));
        } else {
            err = api_fail(rq, ERR_INVALID, "unknown_field", name, "%s: no such column", name);
        }
    }
    struct jv *grants = jv_get(in, "grants");
    *ret_told = grants ? jv_copy(grants) : NULL;
    for (size_t i = 0; i < jv_len(grants); i++) { /* as an export has them */
        for (const struct field *shown = GRANT_FIELDS; shown->name; shown++) {
            const struct field *in_too = GRANT_IN_FIELDS;
            while (in_too->name && strcmp(in_too->name, shown->name) != 0)
                in_too++;
            if (!in_too->name)
                jv_del(jv_at(grants, i), shown->name);
        }
        if (!jv_len(jv_get(jv_at(grants, i), "repositories")))
            jv_del(jv_at(grants, i), "repositories");
    }
    if (metadata && !err) { /* single keys go over those of the whole */
        struct jv *whole = jv_type(jv_get(in, "metadata")) == JV_OBJECT ? jv_copy(jv_get(in, "metadata")) : jv_object();
        for (void *it = jv_iter(metadata); it; it = jv_iter_next(metadata, it))
            jv_set(whole, jv_iter_key(it), jv_copy(jv_iter_value(it)));
        jv_set(in, "metadata", whole);
    }
    jv_free(metadata);
    return err;
}

/* The plan that the line names, by slug or id: one that is sold before one that was. Empty where it names none. */
static enum err line_plan(struct api *rq, const struct jv *row, struct strbuf *ret_id)
{
    struct str plan = cell(row, "plan");
    bool found = false;
    sb_reset(ret_id);
    if (!plan.n)
        return ERR_OK;
    enum err err = lookup2(rq, "SELECT id FROM plans WHERE vendor_id=?1 AND (slug=?2 OR id=?2) ORDER BY archived_at<>0, archived_at DESC LIMIT 1", plan,
                           ret_id, &found);
    if (!err && !found)
        err = api_fail(rq, ERR_INVALID, "unknown_reference", "plan", "plan: there is none with this slug or id");
    return err;
}

/* Columns that only an import sets. */
static enum err line_own_columns(struct api *rq, const struct jv *row, struct str id, bool *ret_changed)
{
    struct str issuer = cell(row, "issuer");
    struct strbuf plan_id = {0};
    int64_t changes = 0;
    if (issuer.n > 200)
        return bad_cell(rq, "issuer", "at most 200 bytes");
    enum err err = line_plan(rq, row, &plan_id);
    if (!err && (issuer.n || plan_id.n))
        err = store_exec(rq->store, &changes, &rq->error,
                         "UPDATE licenses SET issuer=COALESCE(?1,issuer), plan_id=COALESCE(?2,plan_id) WHERE id=?3 AND"
                         " (issuer<>COALESCE(?1,issuer) OR plan_id<>COALESCE(?2,plan_id))",
                         "sss", issuer.n ? issuer : (struct str){NULL, 0}, plan_id.n ? sb_str(&plan_id) : (struct str){NULL, 0}, id);
    *ret_changed = changes > 0;
    sb_free(&plan_id);
    return err;
}

static enum err excluded_check(struct api *rq, const struct jv *list, size_t i)
{
    char field[API_FIELD_MAX];
    struct error error = {0};
    bool good = jv_type(list) == JV_ARRAY && jv_len(list) <= GRANT_EXCLUDED_MAX;
    for (size_t k = 0; good && k < jv_len(list); k++)
        good = jv_type(jv_at(list, k)) == JV_STRING && selector_check(SELECTOR_EXACT, jv_str(jv_at(list, k)), &error) == ERR_OK;
    api_field(field, "grants[%zu].excluded", i);
    return good ? ERR_OK : bad_cell(rq, field, "at most 100 versions");
}

/* What an export tells of a grant and no client may: whose it is, and the versions that were taken out of it. */
static enum err line_grants_told(struct api *rq, const struct jv *told, struct jv *in)
{
    static const char *const ORIGINS[] = {"plan", "hand", "coupon", "import"};
    struct jv *grants = jv_get(in, "grants");
    enum err err = ERR_OK;
    for (size_t i = 0; !err && i < jv_len(told) && i < jv_len(grants) && jv_type(told) == JV_ARRAY; i++) {
        const struct jv *excluded = jv_get(jv_at(told, i), "excluded");
        for (size_t k = 0; k < sizeof ORIGINS / sizeof *ORIGINS; k++)
            if (str_eq_c(jv_get_str(jv_at(told, i), "origin"), ORIGINS[k]))
                jv_set_c(jv_at(grants, i), "origin", ORIGINS[k]);
        if (jv_type(excluded) > JV_NULL)
            err = excluded_check(rq, excluded, i);
        if (!err && jv_len(excluded))
            jv_set(jv_at(grants, i), "excluded", jv_copy(excluded));
    }
    return err;
}

static bool is_nothing(const struct jv *v)
{
    return jv_type(v) <= JV_NULL || ((jv_type(v) == JV_OBJECT || jv_type(v) == JV_ARRAY) && !jv_len(v)) || (jv_type(v) == JV_STRING && !jv_str(v).n);
}

/* What the line does not give is the plan's, as where a single license is made of it. An end that the line says there is none of stays away. */
static enum err line_apply_plan(struct api *rq, const struct jv *row, struct jv *in, const char *plan_id, struct line_result *res)
{
    static const char *const ENDS[] = {"expires_at", "updates_until"}, *const SILENT[] = {"plan_id", "application_id", "customer_id", "anchor_day"};
    for (size_t i = 0; i < 2; i++)
        if (jv_type(jv_get(row, ENDS[i])) == JV_NULL)
            jv_set(in, ENDS[i], jv_null());
    struct jv *given = jv_copy(in), *list = jv_array();
    jv_set_c(in, "plan_id", plan_id);
    enum err err = plan_apply_any(rq, in);
    for (void *it = jv_iter(in); !err && it; it = jv_iter_next(in, it)) {
        const char *name = jv_iter_key(it);
        const struct jv *had = jv_get(given, name);
        bool is_silent = is_nothing(jv_iter_value(it)) || jv_equal(had, jv_iter_value(it)) || (had && strcmp(name, "grants") == 0);
        for (size_t i = 0; i < sizeof SILENT / sizeof *SILENT; i++)
            is_silent = is_silent || strcmp(name, SILENT[i]) == 0;
        if (!is_silent)
            jv_push(list, jv_string(str_c(name)));
    }
    jv_free(given);
    res->from_plan = list;
    return err;
}

/* The actions that lead from a stored status to the one that the line names. */
static enum err line_status(struct api *rq, const struct jv *row, struct str id, struct str now, bool *ret_changed)
{
    struct str want = cell(row, "status"), reason = cell(row, "status_reason");
    const char *action = NULL;
    if (!want.n || str_eq(want, now))
        return ERR_OK;
    if (str_eq(want, S("active")))
        action = str_eq(now, S("inactive")) ? "activate" : "reinstate";
    else if (str_eq(want, S("suspended")))
        action = "suspend";
    else if (str_eq(want, S("revoked")))
        action = "revoke";
    else
        return bad_cell(rq, "status", "inactive, active, suspended or revoked, and inactive for a new one only");
    struct jv *in = jv_object();
    if (reason.n && !str_eq(want, S("active")))
        jv_set_str(in, "reason", reason);
    enum err err = licenses_act(rq, id, action, in);
    jv_free(in);
    *ret_changed = true;
    return err;
}

static enum err line_create(struct api *rq, const struct jv *row, struct jv *in, const struct jv *told, struct str customer_id,
                            struct str application_id, struct line_result *res)
{
    struct str status = cell(row, "status"), key = cell(row, "key");
    struct strbuf id = {0}, plan_id = {0};
    bool changed = false;
    bool is_late = str_eq(status, S("suspended")) || str_eq(status, S("revoked"));
    jv_set_str(in, "customer_id", customer_id);
    if (application_id.n)
        jv_set_str(in, "application_id", application_id);
    if (status.n)
        jv_set_str(in, "status", is_late ? S("active") : status);
    enum err err = api_call_check(rq, HEAD_POST, "/api/v1/licenses", in);
    if (!err)
        err = line_grants_told(rq, told, in);
    if (!err)
        err = line_plan(rq, row, &plan_id);
    if (!err && plan_id.n)
        err = line_apply_plan(rq, row, in, plan_id.p, res);
    if (!err && key.n)
        jv_set_str(in, "key", key);
    if (!err)
        err = licenses_make(rq, in, "import");
    sb_free(&plan_id);
    if (err == ERR_CONFLICT && !rq->code && strstr(rq->error.field, "key_hash"))
        err = api_fail(rq, ERR_CONFLICT, "key_in_use", "key", "key: another license has it");
    if (err)
        return err;
    sb_add(&id, jv_get_str(rq->out, "id"));
    res->id = str_dup(sb_str(&id));
    if (jv_get_str(rq->out, "key").n)
        res->key = str_dup(jv_get_str(rq->out, "key"));
    err = line_own_columns(rq, row, sb_str(&id), &changed);
    if (!err && is_late)
        err = line_status(rq, row, sb_str(&id), S("active"), &changed);
    sb_free(&id);
    res->result = "created";
    return err;
}

static bool time_is(struct api *rq, const struct column *c, const struct jv *in, const struct jv *license, enum err *ret)
{
    int64_t want = 0, have = 0;
    bool is_start = strcmp(c->name, "starts_at") == 0;
    *ret = (is_start ? api_time_start : api_time_end)(rq, in, c->name, c->name, &want);
    if (!*ret)
        *ret = (is_start ? api_time_start : api_time_end)(rq, license, c->name, c->name, &have);
    return want == have;
}

static bool grants_have(const struct jv *have, const struct jv *grant)
{
    struct str value = jv_get_str(grant, "value");
    for (size_t i = 0; i < jv_len(have); i++) {
        struct str v = jv_get_str(jv_at(have, i), "value");
        bool is_all = str_eq(jv_get_str(grant, "selector"), S("all"));
        if (str_eq(jv_get_str(jv_at(have, i), "selector"), jv_get_str(grant, "selector")) && (is_all || str_eq(v, value)))
            return true;
    }
    return false;
}

/* All but those that it had. */
static enum err grants_are_imported(struct api *rq, struct str license_id, const struct jv *had)
{
    struct strbuf text = {0};
    jv_dump(had, &text);
    enum err err = store_exec(rq->store, NULL, &rq->error,
                              "UPDATE grants SET origin='import' WHERE license_id=? AND id NOT IN (SELECT json_extract(value, '$.id') FROM json_each(?))",
                              "ss", license_id, sb_str(&text));
    sb_free(&text);
    return err;
}

/* What the line says otherwise than the license has it. Grants are added, never taken: that is an act of its own. */
static enum err line_update(struct api *rq, const struct jv *row, struct jv *in, struct str id, struct line_result *res)
{
    struct jv *license = NULL, *patch = jv_object();
    struct strbuf path = {0}, status = {0};
    bool changed = false, own = false;
    enum err err = licenses_get(rq, id, &license);
    for (void *it = jv_iter(in); !err && it; it = jv_iter_next(in, it)) {
        const struct column *c = column_of(jv_iter_key(it));
        const struct jv *want = jv_iter_value(it), *have = jv_get(license, jv_iter_key(it));
        bool same = c && c->kind == COLUMN_TIME ? time_is(rq, c, in, license, &err) : jv_equal(want, have);
        if (!same && strcmp(jv_iter_key(it), "grants") != 0)
            jv_set(patch, jv_iter_key(it), jv_copy(want));
    }
    if (!err)
        sb_add(&status, jv_get_str(license, "status"));
    sb_addf(&path, "/api/v1/licenses/%.*s", STR(id));
    if (!err && jv_len(patch)) {
        changed = true;
        err = api_call(rq, HEAD_PATCH, path.p, patch);
    }
    sb_addc(&path, "/grants");
    const struct jv *grants = jv_get(in, "grants");
    bool is_added = false;
    for (size_t i = 0; !err && i < jv_len(grants); i++)
        if (!grants_have(jv_get(license, "grants"), jv_at(grants, i))) {
            changed = is_added = true;
            err = api_call(rq, HEAD_POST, path.p, jv_at(grants, i));
        }
    if (!err && is_added)
        err = grants_are_imported(rq, id, jv_get(license, "grants"));
    if (!err)
        err = line_own_columns(rq, row, id, &own);
    if (!err)
        err = line_status(rq, row, id, sb_str(&status), &changed);
    if (!err && own && !changed) { /* columns that no handler wrote: the ETag follows */
        err = store_exec(rq->store, NULL, &rq->error, "UPDATE licenses SET updated_at=?, rev=rev+1 WHERE id=?", "is", rq->now_s, id);
        changed = true;
    }
    res->result = changed ? "updated" : "unchanged";
    jv_free(license);
    jv_free(patch);
    sb_free(&path);
    sb_free(&status);
    return err;
}

/* The license that the line is about, by id or external_id. */
static enum err line_find(struct api *rq, const struct jv *row, struct strbuf *id, bool *ret_found)
{
    struct str named = cell(row, "id"), external = cell(row, "external_id");
    *ret_found = false;
    enum err err = ERR_OK;
    if (named.n)
        err = lookup2(rq, "SELECT id FROM licenses WHERE vendor_id=? AND archived_at=0 AND id=?", named, id, ret_found);
    if (!err && !*ret_found && external.n)
        err = lookup2(rq, "SELECT id FROM licenses WHERE vendor_id=? AND archived_at=0 AND external_id=? AND external_id<>''", external, id,
                      ret_found);
    return err;
}

static enum err import_line(struct api *rq, void *ctx, size_t i)
{
    struct import *im = ctx;
    const struct row_in *line = &im->rows.rows[i];
    struct line_result *res = &im->results[i];
    struct strbuf customer = {0}, application = {0}, id = {0};
    struct jv *in = jv_object(), *told = NULL;
    bool found = false, known = false;
    if (!line->values) {
        jv_free(in);
        return api_fail(rq, ERR_INVALID, "invalid_line", NULL, "%s", line->error.text);
    }
    enum err err = line_body(rq, line->values, in, &told);
    if (!err)
        err = line_find(rq, line->values, &id, &found);
    if (!err && found && !im->is_upsert)
        err = api_fail(rq, ERR_CONFLICT, "exists_already", cell(line->values, "id").n ? "id" : "external_id",
                       "there is a license with this id or external_id; mode=upsert changes it");
    if (!err && cell(line->values, "customer").n)
        err = line_customer(rq, im, line->values, &customer);
    if (!err && cell(line->values, "application").n) {
        err = lookup2(rq, "SELECT id FROM applications WHERE vendor_id=?1 AND archived_at=0 AND (slug=?2 OR id=?2)",
                      cell(line->values, "application"), &application, &known);
        if (!err && !known)
            err = api_fail(rq, ERR_INVALID, "unknown_reference", "application", "application: there is none with this slug or id");
    }
    if (!err && found) {
        bool moved = false;
        struct strbuf owner = {0};
        res->id = str_dup(sb_str(&id));
        err = lookup2(rq, "SELECT customer_id FROM licenses WHERE vendor_id=? AND id=?", sb_str(&id), &owner, &moved);
        if (!err && customer.n && !str_eq(sb_str(&customer), sb_str(&owner)))
            err = api_fail(rq, ERR_CONFLICT, "customer_differs", "customer", "customer: a license changes its customer by a transfer only");
        if (!err)
            err = lookup2(rq, "SELECT application_id FROM licenses WHERE vendor_id=? AND id=?", sb_str(&id), &owner, &moved);
        if (!err && application.n && !str_eq(sb_str(&application), sb_str(&owner)))
            err = api_fail(rq, ERR_CONFLICT, "application_differs", "application", "application: that of a license stays");
        sb_free(&owner);
        if (!err && cell(line->values, "key").n)
            err = api_fail(rq, ERR_CONFLICT, "key_differs", "key", "key: an import gives a license its key once; rotate it");
        if (!err)
            err = line_update(rq, line->values, in, sb_str(&id), res);
    } else if (!err && (!customer.n || (!application.n && !cell(line->values, "plan").n))) {
        err = api_fail(rq, ERR_INVALID, "missing_field", customer.n ? "application" : "customer", "%s: missing",
                       customer.n ? "application" : "customer");
    } else if (!err) {
        err = line_create(rq, line->values, in, told, sb_str(&customer), sb_str(&application), res);
    }
    jv_free(in);
    jv_free(told);
    sb_free(&customer);
    sb_free(&application);
    sb_free(&id);
    return err;
}

static void import_told(struct api *rq, void *ctx, size_t i, enum err err)
{
    struct import *im = ctx;
    struct line_result *res = &im->results[i];
    if (!err) {
        res->told = true;
        im->created += strcmp(res->result, "created") == 0;
        im->updated += strcmp(res->result, "updated") == 0;
        im->unchanged += strcmp(res->result, "unchanged") == 0;
        return;
    }
    res->result = "failed";
    mem_free(res->key);
    res->key = NULL;
    jv_free(res->from_plan);
    res->from_plan = NULL;
    const char *dflt = err == ERR_CONFLICT ? "conflict" : err == ERR_NOT_FOUND ? "not_found" : "invalid_field";
    snprintf(res->code, sizeof res->code, "%s", rq->code ? rq->code : dflt);
    snprintf(res->field, sizeof res->field, "%s", rq->error.field);
    if (!rq->code && err == ERR_CONFLICT)
        snprintf(rq->error.text, sizeof rq->error.text, rq->error.field[0] ? "another object has this %s already" : "it is in use",
                 rq->error.field);
    res->detail = mem_strdup(rq->error.text);
}

static void import_untold(void *ctx, size_t i)
{
    struct import *im = ctx;
    struct line_result *res = &im->results[i];
    if (res->told) {
        im->created -= strcmp(res->result, "created") == 0;
        im->updated -= strcmp(res->result, "updated") == 0;
        im->unchanged -= strcmp(res->result, "unchanged") == 0;
    }
    mem_free(res->id);
    mem_free(res->key);
    mem_free(res->detail);
    jv_free(res->from_plan);
    *res = (struct line_result){0};
}

/* ---- the import ---------------------------------------------------------------------------------------------------------- */

static struct jv *import_report(const struct import *im, const struct batch *b)
{
    struct jv *doc = jv_object(), *lines = jv_array();
    jv_set_bool(doc, "dry_run", b->is_dry);
    jv_set_bool(doc, "applied", b->is_kept);
    jv_set_int(doc, "created", (int64_t)im->created);
    jv_set_int(doc, "updated", (int64_t)im->updated);
    jv_set_int(doc, "unchanged", (int64_t)im->unchanged);
    jv_set_int(doc, "failed", (int64_t)b->failed);
    for (size_t i = 0; i < im->rows.n; i++) {
        const struct line_result *r = &im->results[i];
        struct jv *v = jv_object();
        jv_set_int(v, "line", (int64_t)im->rows.rows[i].line);
        bool was_there = r->result && strcmp(r->result, "created") != 0;
        jv_set_c(v, "id", r->id && (b->is_kept || was_there) ? r->id : NULL);
        jv_set_c(v, "result", r->result ? r->result : "failed");
        if (r->key && b->is_kept)
            jv_set_c(v, "key", r->key);
        if (jv_len(r->from_plan))
            jv_set(v, "from_plan", jv_copy(r->from_plan));
        if (r->detail) {
            jv_set_c(v, "code", r->code);
            jv_set_c(v, "field", r->field[0] ? r->field : NULL);
            jv_set_c(v, "detail", r->detail);
        }
        jv_push(lines, v);
    }
    jv_set(doc, "lines", lines);
    return doc;
}

/* A parameter that is 1 or true; anything else but 0 and false is refused. */
static enum err query_flag(struct api *rq, const char *name, bool *ret)
{
    struct strbuf v = {0};
    enum err err = ERR_OK;
    *ret = false;
    if (api_query(rq, name, &v)) {
        *ret = str_eq(sb_str(&v), S("1")) || str_eq(sb_str(&v), S("true"));
        if (!*ret && !str_eq(sb_str(&v), S("0")) && !str_eq(sb_str(&v), S("false")))
            err = api_fail(rq, ERR_INVALID, "invalid_parameter", name, "%s: 1 or 0", name);
    }
    sb_free(&v);
    return err;
}

static enum err licenses_import(struct api *rq)
{
    struct import im = {0};
    struct batch b = {.rq = rq,
                      .action = "license.import",
                      .per_transaction = IMPORT_PART_LINES,
                      .one = import_line,
                      .told = import_told,
                      .untold = import_untold,
                      .ctx = &im};
    struct strbuf mode = {0};
    struct error error = {0};
    bool is_csv = rq->content_type && strlen(rq->content_type) >= 8 && str_eq_nocase(str_sub(str_c(rq->content_type), 0, 8), S("text/csv"));
    enum err err = query_flag(rq, "dry_run", &b.is_dry);
    if (!err)
        err = query_flag(rq, "partial", &b.is_partial);
    if (!err)
        err = query_flag(rq, "create_customers", &im.makes_customers);
    if (!err && api_query(rq, "mode", &mode)) {
        im.is_upsert = str_eq(sb_str(&mode), S("upsert"));
        if (!im.is_upsert && !str_eq(sb_str(&mode), S("create")))
            err = api_fail(rq, ERR_INVALID, "invalid_parameter", "mode", "mode: create or upsert");
    }
    sb_free(&mode);
    if (!err && !rq->body.n)
        err = api_fail(rq, ERR_INVALID, "invalid_rows", NULL, "there are no lines");
    if (!err) {
        enum err read = rows_read(rq->body, is_csv, IMPORT_LINES_MAX, &im.rows, &error);
        if (read)
            err = api_fail(rq, read == ERR_TOO_LARGE ? ERR_TOO_LARGE : ERR_INVALID, read == ERR_TOO_LARGE ? "too_many_lines" : "invalid_rows",
                           NULL, "%s", error.text);
    }
    if (!err && !im.rows.n)
        err = api_fail(rq, ERR_INVALID, "invalid_rows", NULL, "there are no lines");
    if (!err) {
        b.n = im.rows.n;
        im.results = mem_calloc(b.n, sizeof *im.results);
        err = batch_run(&b);
    }
    if (!err) {
        rq->out = import_report(&im, &b);
        if (b.failed && !b.is_partial && !b.is_dry) {
            size_t failed = b.failed;
            err = api_fail(rq, ERR_INVALID, "import_failed", NULL, "%zu of %zu lines cannot be imported; none was", failed, b.n);
            rq->problem = jv_object();
            jv_set(rq->problem, "report", rq->out);
            rq->out = NULL;
            rq->status = 422;
        }
    }
    for (size_t i = 0; im.results && i < im.rows.n; i++) {
        mem_free(im.results[i].id);
        jv_free(im.results[i].from_plan);
        if (im.results[i].key)
            mem_free_secret(im.results[i].key, strlen(im.results[i].key));
        mem_free(im.results[i].detail);
    }
    mem_free(im.results);
    rows_free(&im.rows);
    return err;
}

/* ---- export -------------------------------------------------------------------------------------------------------------- */

static enum err export_format(struct api *rq, bool *ret_csv)
{
    struct strbuf v = {0};
    enum err err = ERR_OK;
    *ret_csv = true;
    if (api_query(rq, "format", &v)) {
        *ret_csv = str_eq(sb_str(&v), S("csv"));
        if (!*ret_csv && !str_eq(sb_str(&v), S("ndjson")))
            err = api_fail(rq, ERR_INVALID, "invalid_parameter", "format", "format: csv or ndjson");
    }
    sb_free(&v);
    return err;
}

/* The same request with the cursor of the part that follows. */
static void export_next(struct api *rq, struct str cursor)
{
    struct strbuf link = {0};
    struct str rest = str_c(rq->query), pair;
    if (!cursor.n)
        return;
    sb_addf(&link, "%s?", rq->path);
    while (rq->query && str_next(&rest, '&', &pair))
        if (pair.n && !str_starts(pair, S("cursor=")))
            sb_addf(&link, "%.*s&", STR(pair));
    sb_addf(&link, "cursor=%.*s", STR(cursor));
    mem_free(rq->next_link);
    rq->next_link = sb_take(&link);
}

static enum err slug_of(struct api *rq, const char *sql, struct str id, struct jv *row, const char *name)
{
    struct strbuf slug = {0};
    bool found = false;
    enum err err = api_lookup(rq, sql, id, &slug, &found);
    jv_set_str(row, name, found ? sb_str(&slug) : id);
    sb_free(&slug);
    return err;
}

/* Does "selector:value" say all of the grant? */
static bool grant_is_plain(const struct jv *grant)
{
    struct str value = jv_get_str(grant, "value");
    return !(value.n && memchr(value.p, ';', value.n)) && !jv_get_str(grant, "not_before").n && !jv_get_str(grant, "not_after").n &&
           !jv_len(jv_get(grant, "repositories")) && !jv_len(jv_get(grant, "excluded")) && !jv_get_bool(grant, "include_prerelease", false) && !str_eq(jv_get_str(grant, "on_move"), S("pin"));
}

/* A license as an import reads it. */
static enum err export_row(struct api *rq, struct str id, bool is_csv, struct jv **ret)
{
    struct jv *license = NULL, *row = jv_object();
    struct store_stmt *st = NULL;
    struct strbuf plan = {0}, grants = {0};
    bool found = false;
    enum err err = licenses_shown(rq, id, &license);
    for (size_t i = 0; !err && i < COLUMNS_N; i++) {
        const char *name = COLUMNS[i].name;
        if (!SHOWN_IN_CSV(&COLUMNS[i]))
            continue;
        const struct jv *v = jv_get(license, name);
        if (strcmp(name, "customer") == 0) {
            err = slug_of(rq, "SELECT slug FROM customers WHERE id=?", jv_get_str(license, "customer_id"), row, name);
        } else if (strcmp(name, "application") == 0) {
            err = slug_of(rq, "SELECT slug FROM applications WHERE id=?", jv_get_str(license, "application_id"), row, name);
        } else if (strcmp(name, "grants") == 0) {
            bool is_simple = is_csv;
            for (size_t g = 0; g < jv_len(v); g++) {
                const struct jv *grant = jv_at(v, g);
                sb_addf(&grants, "%s%.*s:%.*s", g ? ";" : "", STR(jv_get_str(grant, "selector")), STR(jv_get_str(grant, "value")));
                is_simple = is_simple && grant_is_plain(grant);
            }
            if (is_simple)
                jv_set_str(row, name, sb_str(&grants));
            else
                jv_set(row, name, jv_copy(v));
        } else {
            jv_set(row, name, v ? jv_copy(v) : jv_null());
        }
    }
    if (!err)
        err = store_query(rq->store, &st, &rq->error, "SELECT issuer, plan_id FROM licenses WHERE id=?", "s", id);
    if (!err)
        err = store_step(st, &found, &rq->error);
    if (!err && found) {
        jv_set_str(row, "issuer", store_col_str(st, 0));
        sb_add(&plan, store_col_str(st, 1));
    }
    store_done(&st);
    if (!err && plan.n)
        err = slug_of(rq, "SELECT slug FROM plans WHERE id=?", sb_str(&plan), row, "plan");
    jv_free(license);
    sb_free(&plan);
    sb_free(&grants);
    if (err)
        jv_free(row);
    else
        *ret = row;
    return err;
}

static enum err licenses_export(struct api *rq)
{
    struct filter filter = {0};
    struct finder *f = NULL;
    struct strbuf ids = {0}, v = {0};
    struct jv *items = NULL;
    bool is_csv = true;
    char *kept_query = rq->query;
    struct strbuf longer = {0};
    enum err err = export_format(rq, &is_csv);
    if (!err)
        err = filter_of_query(rq, "format", &filter);
    if (!err)
        err = licensequery_new(rq, &filter, &f);
    bool is_first = !api_query(rq, "cursor", &v);
    if (!err && !api_query(rq, "limit", &v)) {
        sb_addf(&longer, "%s%slimit=%d", kept_query ? kept_query : "", kept_query && *kept_query ? "&" : "", EXPORT_LIMIT);
        rq->query = longer.p;
    }
    if (!err)
        err = finder_page(f, &ids, &items);
    rq->query = kept_query;
    if (!err && is_csv && is_first) {
        size_t n = 0;
        for (size_t i = 0; i < COLUMNS_N; i++)
            if (SHOWN_IN_CSV(&COLUMNS[i]))
                csv_cell(&rq->raw, str_c(COLUMNS[i].name), n++ == 0);
        sb_addc(&rq->raw, "\r\n");
    }
    struct str rest = sb_str(&ids), id;
    while (!err && str_next(&rest, '\n', &id) && id.n) {
        struct jv *row = NULL;
        err = export_row(rq, id, is_csv, &row);
        if (err)
            break;
        size_t n = 0;
        for (size_t i = 0; is_csv && i < COLUMNS_N; i++)
            if (SHOWN_IN_CSV(&COLUMNS[i]))
                csv_value(&rq->raw, jv_get(row, COLUMNS[i].name), n++ == 0);
        if (!is_csv)
            jv_dump(row, &rq->raw);
        sb_addc(&rq->raw, is_csv ? "\r\n" : "\n");
        jv_free(row);
    }
    if (!err) {
        export_next(rq, jv_get_str(rq->out, "next_cursor"));
        if (!rq->raw.p)
            sb_addc(&rq->raw, "");
        rq->raw_type = is_csv ? "text/csv; charset=utf-8" : "application/x-ndjson";
    }
    finder_free(&f);
    filter_free(&filter);
    sb_free(&ids);
    sb_free(&v);
    sb_free(&longer);
    return err;
}

/* ---- export of the other lists --------------------------------------------------------------------------------------------- */

static const char *const EXPORTS[] = {"customers", "credentials", "applications", "plans", "coupons", "orders", "pulls", "events", "audit", "transfers"};

struct names_check {
    struct api *rq;
    const struct route *target;
    enum err err;
};

static void name_check(void *ctx, struct str key, struct str value)
{
    struct names_check *c = ctx;
    (void)value;
    if (c->err || str_eq(key, S("format")) || str_eq(key, S("limit")) || str_eq(key, S("cursor")))
        return;
    for (const struct query_param *p = c->target ? c->target->params : NULL; p && p->name; p++) {
        struct str name = str_c(p->name);
        if (name.p[name.n - 1] == '*' ? str_starts(key, str_sub(name, 0, name.n - 1)) : str_eq(key, name))
            return;
    }
    char *text = str_dup(str_sub(key, 0, 60));
    c->err = api_fail(c->rq, ERR_INVALID, "unknown_parameter", text, "%s: no such parameter", text);
    mem_free(text);
}

static enum err list_export(struct api *rq)
{
    struct strbuf path = {0}, v = {0};
    bool is_csv = true, is_known = false;
    struct names_check names = {.rq = rq};
    for (size_t i = 0; i < sizeof EXPORTS / sizeof *EXPORTS; i++)
        is_known = is_known || str_eq_c(rq->params[0], EXPORTS[i]);
    sb_addf(&path, "/api/v1/%.*s", STR(rq->params[0]));
    char *values[API_MAX_PARAMS] = {0};
    unsigned allowed;
    names.target = is_known ? route_find(HEAD_GET, sb_str(&path), values, &allowed) : NULL;
    query_each(str_c(rq->query), name_check, &names);
    enum err err = names.err;
    if (!err && !names.target)
        err = api_not_found(rq, "list");
    if (!err)
        err = export_format(rq, &is_csv);
    bool is_first = !api_query(rq, "cursor", &v);
    if (!err)
        err = api_call(rq, HEAD_GET, path.p, NULL);
    if (!err) {
        const struct jv *items = jv_get(rq->out, "items");
        const struct field *fields = names.target->answer->fields;
        for (const struct field *f = fields; is_csv && is_first && f->name; f++)
            csv_cell(&rq->raw, str_c(f->name), f == fields);
        if (is_csv && is_first)
            sb_addc(&rq->raw, "\r\n");
        for (size_t i = 0; i < jv_len(items); i++) {
            for (const struct field *f = fields; is_csv && f->name; f++)
                csv_value(&rq->raw, jv_get(jv_at(items, i), f->name), f == fields);
            if (!is_csv)
                jv_dump(jv_at(items, i), &rq->raw);
            sb_addc(&rq->raw, is_csv ? "\r\n" : "\n");
        }
        export_next(rq, jv_get_str(rq->out, "next_cursor"));
        if (!rq->raw.p)
            sb_addc(&rq->raw, "");
        rq->raw_type = is_csv ? "text/csv; charset=utf-8" : "application/x-ndjson";
    }
    sb_free(&path);
    sb_free(&v);
    return err;
}

/* ---- routes ---------------------------------------------------------------------------------------------------------------- */

static const struct field REPORT_LINE_FIELDS[] = {
    {.name = "line", .type = FIELD_INT},
    {.name = "id", .type = FIELD_STRING, .flags = FIELD_NULL},
    {.name = "result", .type = FIELD_STRING, .one_of = "created|updated|unchanged|failed"},
    {.name = "key", .type = FIELD_SECRET, .flags = FIELD_OPTIONAL, .about = "of a new license that the line named none for; shown once"},
    {.name = "from_plan", .type = FIELD_STRINGS, .flags = FIELD_OPTIONAL, .about = "what the line does not give and its plan does"},
    {.name = "code", .type = FIELD_STRING, .flags = FIELD_OPTIONAL},
    {.name = "field", .type = FIELD_STRING, .flags = FIELD_OPTIONAL | FIELD_NULL},
    {.name = "detail", .type = FIELD_STRING, .flags = FIELD_OPTIONAL},
    {.name = NULL},
};
static const struct field REPORT_FIELDS[] = {
    {.name = "dry_run", .type = FIELD_BOOL},
    {.name = "applied", .type = FIELD_BOOL, .about = "something is changed"},
    {.name = "created", .type = FIELD_INT},
    {.name = "updated", .type = FIELD_INT},
    {.name = "unchanged", .type = FIELD_INT},
    {.name = "failed", .type = FIELD_INT},
    {.name = "lines", .type = FIELD_LIST, .sub = REPORT_LINE_FIELDS},
    {.name = NULL},
};
static const struct schema REPORT = {"ImportReport", REPORT_FIELDS};

static const struct query_param IMPORT_PARAMS[] = {
    {"dry_run", "1: everything is checked and nothing is changed"},
    {"mode", "create (default), or upsert: a license with the line's id or external_id is changed"},
    {"partial", "1: good lines are kept where others fail; else all or nothing"},
    {"create_customers", "1: a customer that is not there is made"},
    {NULL, NULL},
};
static const struct query_param EXPORT_PARAMS[] = {
    {"format", "csv (default) or ndjson"},
    {"limit", "rows of this part; 1000 when absent. The field Link names the part that follows"},
    {"cursor", "as in Link"},
    {"*", "the parameters of the list itself"},
    {NULL, NULL},
};

const struct route IMPORT_ROUTES[] = {
    {HEAD_POST, "/api/v1/licenses/import", licenses_import, ROLE_LICENSES, ROUTE_SLOW | ROUTE_ROWS | ROUTE_ACTION, NULL, &REPORT, IMPORT_PARAMS,
     "license.import", "Make or change many licenses; keys of another system may come with them"},
    {HEAD_GET, "/api/v1/licenses/export", licenses_export, ROLE_VIEWER, ROUTE_PLAIN, NULL, NULL, EXPORT_PARAMS, "license.export",
     "Licenses in the form that the import reads"},
    {HEAD_GET, "/api/v1/export/{list}", list_export, ROLE_VIEWER, ROUTE_PLAIN, NULL, NULL, EXPORT_PARAMS, "list.export",
     "customers, credentials, applications, plans, coupons, orders, pulls, events, audit or transfers as a file"},
    {.path = NULL},
};
