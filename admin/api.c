#include "api.h"

#include "licensemodel.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "audit.h"
#include "pullgate/clock.h"
#include "pullgate/credential.h"
#include "pullgate/mem.h"
#include "pullgate/oci.h"
#include "pullgate/seal.h"

#undef api_fail /* see api.h */
#undef api_not_found

#define API_STRING_MAX   200                /* characters, where a schema says nothing */
#define API_LIST_MAX     100                /* items, where a schema says nothing */
#define API_INT_MAX      ((int64_t)1 << 53) /* what every JSON reader keeps exact */
#define API_PAGE_DEFAULT 100
#define API_PAGE_MAX     1000

void api_release(struct api *rq)
{
    mem_free(rq->vendor_id);
    mem_free(rq->token_id);
    mem_free(rq->actor);
    mem_free(rq->zone);
    mem_free(rq->actor_name);
    mem_free(rq->user_id);
    mem_free(rq->session_id);
    mem_free(rq->owner_id);
    mem_free(rq->scopes);
    mem_free(rq->for_vendor);
    mem_free(rq->password_hash);
    mem_free(rq->password_seen);
    mem_free(rq->customer_id);
    mem_free(rq->credential_id);
    mem_free(rq->license_id);
    mem_free(rq->path);
    mem_free(rq->query);
    jv_free(rq->in);
    if (rq->authorization)
        mem_free_secret(rq->authorization, strlen(rq->authorization));
    mem_free(rq->if_match);
    mem_free(rq->signature);
    mem_free(rq->idempotency_key);
    mem_free(rq->content_type);
    jv_free(rq->out);
    sb_free(&rq->raw);
    mem_free(rq->location);
    mem_free(rq->next_link);
    mem_free(rq->etag);
    jv_free(rq->problem);
    effect_free(&rq->effect);
    mem_free(rq->audit_object);
    jv_free(rq->before);
    jv_free(rq->after);
    *rq = (struct api){0};
}

/* ---- refusals -------------------------------------------------------------------------------------------------------- */

enum err api_fail(struct api *rq, enum err e, const char *code, const char *field, const char *fmt, ...)
{
    va_list ap;
    rq->error = (struct error){.code = e};
    if (field)
        snprintf(rq->error.field, sizeof rq->error.field, "%s", field);
    va_start(ap, fmt);
    vsnprintf(rq->error.text, sizeof rq->error.text, fmt, ap);
    va_end(ap);
    rq->code = code;
    rq->status = 0;
    return e;
}

void api_field(char ret[API_FIELD_MAX], const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(ret, API_FIELD_MAX, fmt, ap);
    va_end(ap);
}

enum err api_not_found(struct api *rq, const char *what)
{
    return api_fail(rq, ERR_NOT_FOUND, "not_found", NULL, "no such %s", what);
}

/* ---- ETag ------------------------------------------------------------------------------------------------------------ */

void api_set_etag(struct api *rq, int64_t rev)
{
    struct strbuf b = {0};
    sb_addf(&b, "%lld", (long long)rev);
    mem_free(rq->etag);
    rq->etag = sb_take(&b);
}

void api_print_etag(struct jv *obj, int64_t rev)
{
    char text[24];
    snprintf(text, sizeof text, "%lld", (long long)rev);
    jv_set_c(obj, "etag", text);
}

enum err api_check_etag(struct api *rq, int64_t rev)
{
    if (!rq->if_match)
        return ERR_OK;
    char now[32];
    snprintf(now, sizeof now, "\"%lld\"", (long long)rev);
    struct str rest = str_c(rq->if_match), one;
    while (str_next(&rest, ',', &one)) {
        one = str_trim(one);
        if (str_eq(one, S("*")) || str_eq_c(one, now)) /* strong comparison: W/"…" never matches, RFC 9110 13.1.1 */
            return ERR_OK;
    }
    return api_fail(rq, ERR_PRECONDITION, "etag_mismatch", NULL, "the object was changed since: its ETag is %s", now);
}

/* ---- query ----------------------------------------------------------------------------------------------------------- */

bool api_query(struct api *rq, const char *name, struct strbuf *ret)
{
    return query_get(str_c(rq->query), name, ret) && ret->n > 0;
}

enum err api_query_time(struct api *rq, const char *name, int64_t *ret)
{
    struct strbuf v = {0};
    struct error error;
    enum err err = ERR_OK;
    if (api_query(rq, name, &v) && clock_parse_start(sb_str(&v), api_zone(rq), ret, &error))
        err = api_fail(rq, ERR_INVALID, "invalid_parameter", name, "%s", error.text);
    sb_free(&v);
    return err;
}

/* ---- paging ---------------------------------------------------------------------------------------------------------- */

/* A cursor is base64url of "<key>:<id>" of the last row shown. It only says where to go on: what may be seen is in the query. */
static bool page_cursor_scan(struct str in, struct page *ret)
{
    struct strbuf b = {0};
    struct str key, id;
    bool good = base64url_decode(in, &b) && str_cut(sb_str(&b), ':', &key, &id) && id.n > 0 && id.n < sizeof ret->after_id && key.n > 0 &&
                key.n < 20 && !memchr(b.p, 0, b.n);
    if (good) {
        struct str digits = key.p[0] == '-' ? str_skip(key, 1) : key;
        uint64_t v = 0;
        good = str_to_u64(digits, &v) && v <= INT64_MAX;
        if (good) {
            ret->after_key = key.p[0] == '-' ? -(int64_t)v : (int64_t)v;
            memcpy(ret->after_id, id.p, id.n);
            ret->after_id[id.n] = '\0';
            ret->has_cursor = true;
        }
    }
    sb_free(&b);
    return good;
}

enum err api_page(struct api *rq, struct page *ret)
{
    struct strbuf v = {0};
    struct page p = {.limit = API_PAGE_DEFAULT};
    enum err err = ERR_OK;
    if (query_get(str_c(rq->query), "limit", &v)) {
        uint64_t n = 0;
        if (!str_to_u64(sb_str(&v), &n) || n < 1 || n > API_PAGE_MAX)
            err = api_fail(rq, ERR_INVALID, "invalid_parameter", "limit", "limit: a number from 1 to %d", API_PAGE_MAX);
        p.limit = (int)n;
    }
    if (!err && query_get(str_c(rq->query), "cursor", &v) && !page_cursor_scan(sb_str(&v), &p))
        err = api_fail(rq, ERR_INVALID, "invalid_cursor", "cursor", "cursor: not one that this API gave out");
    sb_free(&v);
    if (!err)
        *ret = p;
    return err;
}

struct jv *api_list(struct api *rq)
{
    rq->out = jv_object();
    jv_set(rq->out, "items", jv_array());
    jv_set_c(rq->out, "next_cursor", NULL);
    return jv_get(rq->out, "items");
}

bool api_page_take(struct page *p, struct jv *out, int64_t key, const char *id)
{
    if (p->limit > 0) {
        p->limit--;
        p->after_key = key;
        snprintf(p->after_id, sizeof p->after_id, "%s", id);
        return true;
    }
    struct strbuf text = {0}, cursor = {0};
    sb_addf(&text, "%lld:%s", (long long)p->after_key, p->after_id);
    base64url_encode(sb_str(&text), &cursor);
    jv_set_str(out, "next_cursor", sb_str(&cursor));
    sb_free(&text);
    sb_free(&cursor);
    return false;
}

enum err api_page_rows(struct api *rq, struct page *p, struct store_stmt *st, int key, struct jv *(*print)(const struct store_stmt *st))
{
    struct jv *items = jv_get(rq->out, "items");
    for (;;) {
        bool row = false;
        enum err err = store_step(st, &row, &rq->error);
        if (err || !row || !api_page_take(p, rq->out, store_col_int(st, key), store_col_str(st, 0).p))
            return err;
        jv_push(items, print(st));
    }
}

/* ---- small things ---------------------------------------------------------------------------------------------------- */

enum err api_lookup(struct api *rq, const char *sql, struct str param, struct strbuf *ret, bool *ret_found)
{
    struct store_stmt *st = NULL;
    bool row = false;
    enum err err = store_query(rq->store, &st, &rq->error, sql, "s", param);
    if (!err)
        err = store_step(st, &row, &rq->error);
    if (!err) {
        *ret_found = row;
        if (row && ret) {
            sb_reset(ret);
            sb_add(ret, store_col_str(st, 0));
        }
    }
    store_done(&st);
    return err;
}

enum err api_number(struct api *rq, const char *sql, struct str param, int64_t *ret)
{
    struct store_stmt *st = NULL;
    bool row = false;
    enum err err = store_query(rq->store, &st, &rq->error, sql, "s", param);
    if (!err)
        err = store_step(st, &row, &rq->error);
    if (!err && row)
        *ret = store_col_int(st, 0);
    store_done(&st);
    return err;
}

const char *api_zone(struct api *rq)
{
    if (!rq->zone) {
        struct strbuf zone = {0};
        bool found = false;
        if (api_lookup(rq, "SELECT time_zone FROM vendors WHERE id=?", str_c(rq->vendor_id), &zone, &found) || !found)
            sb_reset(&zone);
        rq->zone = zone.n ? sb_take(&zone) : mem_strdup("UTC");
        sb_free(&zone);
    }
    return rq->zone;
}

void api_set_json(struct jv *obj, const char *key, struct str text)
{
    struct jv *v = NULL;
    if (!text.n || jv_parse(text, &JV_LIMITS_TRUSTED, &v, NULL))
        v = jv_null();
    jv_set(obj, key, v);
}

bool api_has(const struct api *rq, const char *name)
{
    return jv_type(jv_get(rq->in, name)) != JV_NONE;
}

struct str api_in_text(const struct api *rq, const char *name)
{
    struct str s = jv_get_str(rq->in, name);
    return api_has(rq, name) && !s.p ? S("") : s;
}

struct str api_in_json(const struct api *rq, const char *name, struct strbuf *b)
{
    if (!api_has(rq, name))
        return (struct str){NULL, 0};
    jv_dump(jv_get(rq->in, name), b);
    return sb_str(b);
}

typedef enum err time_parse(struct str s, const char *zone, int64_t *ret_s, struct error *reterr);

static enum err api_time(struct api *rq, const struct jv *obj, const char *name, const char *field, time_parse *parse, int64_t *ret)
{
    const struct jv *v = jv_get(obj, name);
    if (jv_type(v) == JV_NONE)
        return ERR_OK;
    if (jv_type(v) == JV_NULL) {
        *ret = 0;
        return ERR_OK;
    }
    struct error error = {0};
    int64_t t = 0;
    if (parse(jv_str(v), api_zone(rq), &t, &error) || t <= 0)
        return api_fail(rq, ERR_INVALID, "invalid_field", field, "%s: %s", field, error.text[0] ? error.text : "before 1970");
    *ret = t;
    return ERR_OK;
}

enum err api_time_start(struct api *rq, const struct jv *obj, const char *name, const char *field, int64_t *ret)
{
    return api_time(rq, obj, name, field, clock_parse_start, ret);
}

enum err api_time_end(struct api *rq, const struct jv *obj, const char *name, const char *field, int64_t *ret)
{
    return api_time(rq, obj, name, field, clock_parse_expiry, ret);
}

void api_audit_object(struct api *rq, const char *id)
{
    char *copy = mem_strdup(id); /* id may be the present one */
    mem_free(rq->audit_object);
    rq->audit_object = copy;
}

void api_created(struct api *rq, const char *path, const char *id)
{
    struct strbuf b = {0};
    sb_addf(&b, "%s%s", path, id);
    mem_free(rq->location);
    rq->location = sb_take(&b);
    api_audit_object(rq, id);
}

static bool slug_char(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
}

bool api_slug_valid(struct str s)
{
    if (s.n < 1 || s.n > 64 || !slug_char(s.p[0]) || !slug_char(s.p[s.n - 1]))
        return false;
    for (size_t i = 1; i < s.n; i++) {
        bool is_joint = s.p[i] == '-' || s.p[i] == '_' || s.p[i] == '.';
        if (!slug_char(s.p[i]) && !(is_joint && slug_char(s.p[i - 1])))
            return false;
    }
    return true;
}

void api_slug_of(struct str name, const char *dflt, struct strbuf *ret)
{
    sb_reset(ret);
    for (size_t i = 0; i < name.n && ret->n < 60; i++) {
        char c = name.p[i];
        if (c >= 'A' && c <= 'Z')
            c = (char)(c - 'A' + 'a');
        if (slug_char(c))
            sb_add_char(ret, c);
        else if (ret->n && ret->p[ret->n - 1] != '-')
            sb_add_char(ret, '-');
    }
    while (ret->n && ret->p[ret->n - 1] == '-')
        ret->p[--ret->n] = '\0';
    if (!ret->n)
        sb_addc(ret, dflt);
}

/* ---- the body against its schema ------------------------------------------------------------------------------------- */

static const char *field_type_text(enum field_type t)
{
    switch (t) {
    case FIELD_STRING:
    case FIELD_TEXT:
    case FIELD_SECRET:
        return "a string";
    case FIELD_INT:
        return "a whole number";
    case FIELD_BOOL:
        return "true or false";
    case FIELD_TIME:
        return "an RFC 3339 time, a date or null";
    case FIELD_MAP:
    case FIELD_OBJECT:
        return "an object";
    case FIELD_STRINGS:
        return "an array of strings";
    case FIELD_LIST:
        return "an array of objects";
    case FIELD_VALUE:
        return "a string, a whole number or an object";
    }
    return "something else";
}

static enum err check_string(struct api *rq, struct str s, const struct field *f, const char *path, bool is_text)
{
    int64_t max = f->max ? f->max : API_STRING_MAX, n = 0;
    for (size_t i = 0; i < s.n; i++) {
        unsigned char c = (unsigned char)s.p[i];
        n += (c & 0xc0) != 0x80; /* characters, not bytes */
        if ((c < 0x20 || c == 0x7f) && !(is_text && (c == '\n' || c == '\t' || c == '\r')))
            return api_fail(rq, ERR_INVALID, "invalid_field", path, "%s: control characters are not allowed", path);
    }
    int64_t min = f->flags & FIELD_EMPTY ? 0 : f->min ? f->min : 1;
    if (n < min)
        return api_fail(rq, ERR_INVALID, "invalid_field", path, n ? "%s: too short" : "%s: may not be empty", path);
    if (n > 0 && !(f->flags & FIELD_EMPTY) && str_trim(s).n == 0)
        return api_fail(rq, ERR_INVALID, "invalid_field", path, "%s: nothing but blanks", path);
    if (n > max)
        return api_fail(rq, ERR_INVALID, "invalid_field", path, "%s: longer than %lld characters", path, (long long)max);
    if (f->one_of) {
        struct str rest = str_c(f->one_of), one;
        while (str_next(&rest, '|', &one))
            if (str_eq(one, s))
                return ERR_OK;
        return api_fail(rq, ERR_INVALID, "invalid_field", path, "%s: expected one of %s", path, f->one_of);
    }
    return ERR_OK;
}

static enum err check_object(struct api *rq, const struct jv *obj, const struct field *fields, const char *prefix);

static enum err check_array(struct api *rq, const struct jv *v, const struct field *f, const char *path)
{
    int64_t max = f->max ? f->max : API_LIST_MAX;
    if ((int64_t)jv_len(v) > max)
        return api_fail(rq, ERR_INVALID, "invalid_field", path, "%s: more than %lld items", path, (long long)max);
    static const struct field item = {.type = FIELD_STRING, .max = 300};
    for (size_t i = 0; i < jv_len(v); i++) {
        char at[API_FIELD_MAX];
        api_field(at, "%s[%zu]", path, i);
        const struct jv *e = jv_at(v, i);
        if (jv_type(e) != (f->type == FIELD_LIST ? JV_OBJECT : JV_STRING))
            return api_fail(rq, ERR_INVALID, "invalid_field", at, "%s: expected %s", path, field_type_text(f->type));
        enum err err = f->type == FIELD_LIST ? check_object(rq, e, f->sub, at) : check_string(rq, jv_str(e), &item, at, false);
        if (err)
            return err;
    }
    return ERR_OK;
}

static enum err check_value(struct api *rq, const struct jv *v, const struct field *f, const char *path)
{
    enum jv_type t = jv_type(v);
    if (t == JV_NULL && (f->flags & FIELD_NULL || f->type == FIELD_TIME))
        return ERR_OK;
    switch (f->type) {
    case FIELD_STRING:
    case FIELD_TEXT:
    case FIELD_SECRET:
        if (t == JV_STRING)
            return check_string(rq, jv_str(v), f, path, f->type == FIELD_TEXT);
        break;
    case FIELD_INT: {
        int64_t i = jv_int(v, INT64_MIN), max = f->max ? f->max : API_INT_MAX;
        if (t != JV_INT)
            break;
        if (i < f->min || i > max)
            return api_fail(rq, ERR_INVALID, "invalid_field", path, "%s: expected %lld to %lld", path, (long long)f->min, (long long)max);
        return ERR_OK;
    }
    case FIELD_BOOL:
        if (t == JV_BOOL)
            return ERR_OK;
        break;
    case FIELD_TIME: /* the handler parses it, in the vendor's zone */
        if (t == JV_STRING)
            return ERR_OK;
        break;
    case FIELD_MAP:
        if (t == JV_OBJECT)
            return ERR_OK;
        break;
    case FIELD_OBJECT:
        if (t == JV_OBJECT)
            return check_object(rq, v, f->sub, path);
        break;
    case FIELD_STRINGS:
    case FIELD_LIST:
        if (t == JV_ARRAY)
            return check_array(rq, v, f, path);
        break;
    case FIELD_VALUE:
        if (t == JV_STRING)
            return check_string(rq, jv_str(v), f, path, false);
        if (t == JV_INT || t == JV_OBJECT)
            return ERR_OK;
        break;
    }
    return api_fail(rq, ERR_INVALID, "invalid_field", path, "%s: expected %s%s", path, field_type_text(f->type),
                    f->flags & FIELD_NULL ? " or null" : "");
}

static enum err check_object(struct api *rq, const struct jv *obj, const struct field *fields, const char *prefix)
{
    char path[API_FIELD_MAX];
    static const struct field none[] = {{.name = NULL}};
    if (!fields)
        fields = none;
    for (void *it = jv_iter(obj); it; it = jv_iter_next(obj, it)) {
        const char *key = jv_iter_key(it);
        const struct field *f = fields;
        while (f->name && strcmp(f->name, key) != 0)
            f++;
        api_field(path, "%s%s%s", prefix, *prefix ? "." : "", key);
        if (!f->name)
            return api_fail(rq, ERR_INVALID, "unknown_field", path, "%s: no such field", path);
        enum err err = check_value(rq, jv_iter_value(it), f, path);
        if (err)
            return err;
    }
    /* A PATCH names what changes: nothing at its top is required. */
    for (const struct field *f = fields; f->name && !(rq->method == HEAD_PATCH && !*prefix); f++) {
        if (f->flags & FIELD_REQUIRED && jv_type(jv_get(obj, f->name)) == JV_NONE) {
            api_field(path, "%s%s%s", prefix, *prefix ? "." : "", f->name);
            return api_fail(rq, ERR_INVALID, "missing_field", path, "%s: missing", path);
        }
    }
    return ERR_OK;
}

enum err api_check_body(struct api *rq, const struct jv *doc, const struct schema *schema)
{
    if (jv_type(doc) != JV_OBJECT)
        return api_fail(rq, ERR_INVALID, "invalid_json", NULL, "the body must be a JSON object");
    return check_object(rq, doc, schema ? schema->fields : NULL, "");
}

enum err api_audit(struct api *rq, const char *action, const char *outcome)
{
    bool is_ok = strcmp(outcome, "ok") == 0;
    struct audit_record r = {
        .vendor_id = rq->vendor_id,
        .actor = rq->actor,
        .actor_name = rq->actor_name,
        .address = rq->peer,
        .request_id = rq->request_id,
        .action = action,
        .object = rq->audit_object  ? rq->audit_object
                  : rq->params[0].p ? rq->params[0].p
                                    : "",
        .outcome = outcome,
        .before = is_ok ? rq->before : NULL,
        .after = is_ok ? rq->after : NULL,
    };
    return audit_put(rq->store, rq->admin->keys, &r, &rq->error);
}

void api_system(struct api *rq, struct admin *a, struct store *s, struct str vendor_id, const char *actor, int64_t now_s)
{
    *rq = (struct api){.admin = a, .store = s, .now_s = now_s, .role = ROLE_OWNER, .method = HEAD_POST};
    rq->vendor_id = str_dup(vendor_id);
    rq->actor = mem_strdup(actor);
    rq->token_id = mem_strdup("");
    snprintf(rq->peer, sizeof rq->peer, "internal");
    request_id_new(rq->request_id);
}

void api_system_done(struct api *rq)
{
    api_release(rq);
}
