/* Rows to facts. Each function here makes the payload of one kind, in exactly the form of docs/REDIS.md; none decides anything.
 * The text is built directly: a million of these are made when Redis comes back empty. */
#include "compile.h"

#include <stdlib.h>
#include <string.h>

#include "pullgate/jv.h"
#include "pullgate/mem.h"
#include "pullgate/oci.h"
#include "pullgate/store.h"

/* ---- printing ---------------------------------------------------------------------------------- */

/* ,"key": or {"key": */
static void key_add(struct strbuf *b, const char *key)
{
    if (b->n && b->p[b->n - 1] != '{')
        sb_add_char(b, ',');
    sb_add_char(b, '"');
    sb_addc(b, key);
    sb_addc(b, "\":");
}

static void str_add(struct strbuf *b, const char *key, struct str v)
{
    key_add(b, key);
    if (v.p)
        sb_add_json(b, v);
    else
        sb_addc(b, "\"\"");
}

static void int_add(struct strbuf *b, const char *key, int64_t v)
{
    key_add(b, key);
    sb_addf(b, "%lld", (long long)v);
}

static void bool_add(struct strbuf *b, const char *key, bool v)
{
    key_add(b, key);
    sb_addc(b, v ? "true" : "false");
}

/* A JSON column, which holds checked JSON. */
static void raw_add(struct strbuf *b, const char *key, struct str json, const char *dflt)
{
    key_add(b, key);
    if (json.n)
        sb_add(b, json);
    else
        sb_addc(b, dflt);
}

/* ---- k: a credential or a license key ---------------------------------------------------------- */

/* Nothing in it may change without a change of the credential itself: who edits a customer or a license tells the outbox about c:
 * alone. So a disabled customer keeps his credentials, and the entitlement says `disabled`; a license key is named by its prefix. */

static enum err compile_credential(struct store *s, struct str hash, struct strbuf *b, bool *ret_exists, struct error *reterr)
{
    struct store_stmt *st;
    bool row;
    enum err e =
        store_query(s, &st, reterr,
                    "SELECT c.id, c.customer_id, u.slug, u.vendor_id, coalesce(c.license_id,''), c.name, c.expires_at, c.allowed_cidrs"
                    " FROM credentials c JOIN customers u ON u.id=c.customer_id"
                    " WHERE c.hash=? AND c.revoked_at=0 AND u.archived_at=0",
                    "s", hash);
    if (e)
        return e;
    e = store_step(st, &row, reterr);
    if (!e && row) {
        sb_add_char(b, '{');
        str_add(b, "id", store_col_str(st, 0));
        str_add(b, "kind", S("credential"));
        str_add(b, "customer_id", store_col_str(st, 1));
        str_add(b, "customer_slug", store_col_str(st, 2));
        str_add(b, "vendor_id", store_col_str(st, 3));
        str_add(b, "license_id", store_col_str(st, 4));
        str_add(b, "name", store_col_str(st, 5));
        int_add(b, "expires_at", store_col_int(st, 6));
        raw_add(b, "allowed_cidrs", store_col_str(st, 7), "[]");
        sb_add_char(b, '}');
        *ret_exists = true;
    }
    store_done(&st);
    if (e || *ret_exists)
        return e;

    e = store_query(s, &st, reterr,
                    "SELECT l.id, l.customer_id, u.slug, u.vendor_id, l.key_prefix"
                    " FROM licenses l JOIN customers u ON u.id=l.customer_id"
                    " WHERE l.key_hash=? AND l.key_hash<>'' AND l.archived_at=0 AND u.archived_at=0",
                    "s", hash);
    if (e)
        return e;
    e = store_step(st, &row, reterr);
    if (!e && row) {
        sb_add_char(b, '{');
        str_add(b, "id", store_col_str(st, 0));
        str_add(b, "kind", S("license_key"));
        str_add(b, "customer_id", store_col_str(st, 1));
        str_add(b, "customer_slug", store_col_str(st, 2));
        str_add(b, "vendor_id", store_col_str(st, 3));
        str_add(b, "license_id", store_col_str(st, 0));
        str_add(b, "name", store_col_str(st, 4));
        int_add(b, "expires_at", 0);
        raw_add(b, "allowed_cidrs", (struct str){0}, "[]");
        sb_add_char(b, '}');
        *ret_exists = true;
    }
    store_done(&st);
    return e;
}

/* ---- c: the entitlement ------------------------------------------------------------------------ */

static enum err pins_add(struct store *s, struct str grant_id, struct strbuf *b, struct error *reterr)
{
    struct store_stmt *st;
    bool row;
    enum err e = store_query(s, &st, reterr,
                             "SELECT r.name, p.tag, p.digest FROM grant_pins p JOIN repositories r ON r.id=p.repository_id"
                             " WHERE p.grant_id=? ORDER BY r.name, p.tag",
                             "s", grant_id);
    if (e)
        return e;
    key_add(b, "pins");
    sb_add_char(b, '[');
    for (size_t n = 0; !(e = store_step(st, &row, reterr)) && row; n++) {
        if (n)
            sb_add_char(b, ',');
        sb_add_char(b, '{');
        str_add(b, "repository", store_col_str(st, 0));
        str_add(b, "tag", store_col_str(st, 1));
        str_add(b, "digest", store_col_str(st, 2));
        sb_add_char(b, '}');
    }
    store_done(&st);
    sb_add_char(b, ']');
    return e;
}

static enum err grants_add(struct store *s, struct str license_id, struct strbuf *b, struct error *reterr)
{
    struct store_stmt *st;
    bool row;
    enum err e = store_query(s, &st, reterr,
                             "SELECT id, selector, value, include_prerelease, not_before, not_after, created_at, on_move, repositories, excluded"
                             " FROM grants WHERE license_id=? ORDER BY created_at, id",
                             "s", license_id);
    if (e)
        return e;
    key_add(b, "grants");
    sb_add_char(b, '[');
    for (size_t n = 0; !(e = store_step(st, &row, reterr)) && row; n++) {
        if (n)
            sb_add_char(b, ',');
        sb_add_char(b, '{');
        str_add(b, "id", store_col_str(st, 0));
        str_add(b, "selector", store_col_str(st, 1));
        str_add(b, "value", store_col_str(st, 2));
        bool_add(b, "include_prerelease", store_col_int(st, 3) != 0);
        int_add(b, "not_before", store_col_int(st, 4));
        int_add(b, "not_after", store_col_int(st, 5));
        int_add(b, "granted_at", store_col_int(st, 6));
        str_add(b, "on_move", store_col_str(st, 7));
        raw_add(b, "repositories", store_col_str(st, 8), "[]");
        e = pins_add(s, store_col_str(st, 0), b, reterr);
        if (!str_eq(store_col_str(st, 9), S("[]")))
            raw_add(b, "excluded", store_col_str(st, 9), "[]");
        sb_add_char(b, '}');
        if (e)
            break;
    }
    store_done(&st);
    sb_add_char(b, ']');
    return e;
}

static enum err repositories_add(struct store *s, struct str application_id, struct strbuf *b, struct error *reterr)
{
    struct store_stmt *st;
    bool row;
    enum err e = store_query(s, &st, reterr,
                             "SELECT r.name FROM repositories r JOIN applications a ON a.id=r.application_id"
                             " WHERE r.application_id=? AND a.archived_at=0 ORDER BY r.name",
                             "s", application_id);
    if (e)
        return e;
    key_add(b, "repositories");
    sb_add_char(b, '[');
    for (size_t n = 0; !(e = store_step(st, &row, reterr)) && row; n++) {
        if (n)
            sb_add_char(b, ',');
        sb_add_json(b, store_col_str(st, 0));
    }
    store_done(&st);
    sb_add_char(b, ']');
    return e;
}

/* The installations that hold the places, oldest first, when all places are taken and further ones are to be denied. license: a row of
 * licenses_add(). */
static enum err instances_add(struct store *s, const struct store_stmt *license, struct strbuf *b, struct error *reterr)
{
    struct jv *limits = NULL;
    struct store_stmt *st;
    struct strbuf list = {0};
    int64_t max = 0, n = 0;
    bool row;
    if (store_col_str(license, 15).n > 2 && jv_parse(store_col_str(license, 15), &JV_LIMITS_API, &limits, NULL) == ERR_OK) {
        if (str_eq(store_col_str(license, 16), S("deny")))
            max = jv_get_int(limits, "max_instances", 0);
        jv_free(limits);
    }
    if (max <= 0)
        return ERR_OK;
    enum err e = store_query(s, &st, reterr,
                             "SELECT fingerprint FROM license_instances WHERE license_id=? AND kind='pull' AND revoked_at=0"
                             " AND (?=0 OR last_seen_at>=?) ORDER BY first_seen_at, fingerprint LIMIT ?",
                             "siii", store_col_str(license, 0), store_col_int(license, 18), store_col_int(license, 17), max);
    if (e)
        return e;
    while (!(e = store_step(st, &row, reterr)) && row) {
        if (n++)
            sb_add_char(&list, ',');
        sb_add_json(&list, store_col_str(st, 0));
    }
    store_done(&st);
    if (!e && n == max) {
        key_add(b, "instances");
        sb_add_char(b, '[');
        sb_add(b, sb_str(&list));
        sb_add_char(b, ']');
    }
    sb_free(&list);
    return e;
}

static enum err licenses_add(struct store *s, struct str customer_id, struct strbuf *b, struct error *reterr)
{
    struct store_stmt *st;
    bool row;
    enum err e =
        store_query(s, &st, reterr,
                    "SELECT l.id, l.name, l.application_id, a.slug, l.status, l.status_reason, l.starts_at, l.expires_at, l.grace_days,"
                    " l.updates_until, l.on_expiry, l.allowed_cidrs, l.upstream_credential_id, l.quota_exceeded, l.quota_until,"
                    " l.limits, l.limit_action, l.usage_from, l.usage_until, l.payment_failed_at"
                    " FROM licenses l JOIN applications a ON a.id=l.application_id"
                    " WHERE l.customer_id=? AND l.archived_at=0 ORDER BY l.created_at, l.id",
                    "s", customer_id);
    if (e)
        return e;
    key_add(b, "licenses");
    sb_add_char(b, '[');
    for (size_t n = 0; !(e = store_step(st, &row, reterr)) && row; n++) {
        if (n)
            sb_add_char(b, ',');
        sb_add_char(b, '{');
        str_add(b, "id", store_col_str(st, 0));
        str_add(b, "name", store_col_str(st, 1));
        str_add(b, "application_id", store_col_str(st, 2));
        str_add(b, "application_slug", store_col_str(st, 3));
        str_add(b, "status", store_col_str(st, 4));
        str_add(b, "status_reason", store_col_str(st, 5));
        int_add(b, "starts_at", store_col_int(st, 6));
        int_add(b, "expires_at", store_col_int(st, 7));
        int_add(b, "grace_days", store_col_int(st, 8));
        int_add(b, "updates_until", store_col_int(st, 9));
        str_add(b, "on_expiry", store_col_str(st, 10));
        raw_add(b, "allowed_cidrs", store_col_str(st, 11), "[]");
        e = repositories_add(s, store_col_str(st, 2), b, reterr);
        if (e)
            break;
        str_add(b, "upstream_credential_id", store_col_str(st, 12));
        if (store_col_int(st, 19))
            int_add(b, "payment_failed_at", store_col_int(st, 19));
        bool_add(b, "quota_exceeded", store_col_int(st, 13) != 0);
        if (store_col_int(st, 14))
            int_add(b, "quota_until", store_col_int(st, 14));
        e = instances_add(s, st, b, reterr);
        if (e)
            break;
        e = grants_add(s, store_col_str(st, 0), b, reterr);
        if (e)
            break;
        sb_add_char(b, '}');
    }
    store_done(&st);
    sb_add_char(b, ']');
    return e;
}

static enum err compile_customer(struct store *s, struct str id, struct strbuf *b, bool *ret_exists, struct error *reterr)
{
    struct store_stmt *st;
    bool row;
    enum err e = store_query(s, &st, reterr,
                             "SELECT u.id, u.slug, u.vendor_id, u.disabled OR v.suspended_at<>0, v.renew_url, v.support_contact, u.requests_per_second"
                             " FROM customers u JOIN vendors v ON v.id=u.vendor_id WHERE u.id=? AND u.archived_at=0",
                             "s", id);
    if (e)
        return e;
    e = store_step(st, &row, reterr);
    if (!e && row) {
        sb_add_char(b, '{');
        str_add(b, "customer_id", store_col_str(st, 0));
        str_add(b, "customer_slug", store_col_str(st, 1));
        str_add(b, "vendor_id", store_col_str(st, 2));
        bool_add(b, "disabled", store_col_int(st, 3) != 0);
        str_add(b, "renew_url", store_col_str(st, 4));
        str_add(b, "support_contact", store_col_str(st, 5));
        if (store_col_int(st, 6) > 0)
            int_add(b, "requests_per_second", store_col_int(st, 6));
        e = licenses_add(s, id, b, reterr);
        sb_add_char(b, '}');
        *ret_exists = true;
    }
    store_done(&st);
    return e;
}

/* ---- r: a repository --------------------------------------------------------------------------- */

static enum err compile_repository(struct store *s, struct str name, struct strbuf *b, bool *ret_exists, struct error *reterr)
{
    struct store_stmt *st;
    bool row;
    enum err e = store_query(s, &st, reterr,
                             "SELECT r.id, r.name, r.application_id, a.slug, a.vendor_id, r.upstream_id, r.upstream_repository, r.kind,"
                             " r.tag_template FROM repositories r JOIN applications a ON a.id=r.application_id"
                             " WHERE r.name=? AND a.archived_at=0",
                             "s", name);
    if (e)
        return e;
    e = store_step(st, &row, reterr);
    if (!e && row) {
        static const char *const KEYS[] = {
            "id", "name", "application_id", "application_slug", "vendor_id", "upstream_id", "upstream_repository", "kind", "tag_template"};
        sb_add_char(b, '{');
        for (int i = 0; i < (int)(sizeof(KEYS) / sizeof(KEYS[0])); i++)
            str_add(b, KEYS[i], store_col_str(st, i));
        sb_add_char(b, '}');
        *ret_exists = true;
    }
    store_done(&st);
    return e;
}

/* ---- t: what is known of a repository's tags ----------------------------------------------------- */

struct version_row {
    char *version, *channel;
    int64_t released_at;
    bool is_record; /* written by the vendor */
    bool is_named;  /* a record names its tag in this repository */
};
struct named_tag { /* of version_tags */
    char *tag;
    size_t version; /* index */
};
struct versions {
    struct version_row *v; /* sorted by version */
    size_t n, cap;
    struct named_tag *named; /* sorted by tag */
    size_t n_named, cap_named;
};

static void versions_free(struct versions *vs)
{
    for (size_t i = 0; i < vs->n; i++) {
        mem_free(vs->v[i].version);
        mem_free(vs->v[i].channel);
    }
    for (size_t i = 0; i < vs->n_named; i++)
        mem_free(vs->named[i].tag);
    mem_free(vs->v);
    mem_free(vs->named);
}

static struct version_row *versions_find(struct versions *vs, struct str version)
{
    size_t lo = 0, hi = vs->n;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        int c = str_cmp(str_c(vs->v[mid].version), version);
        if (c == 0)
            return &vs->v[mid];
        if (c < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return NULL;
}

static struct version_row *versions_named(struct versions *vs, struct str tag)
{
    size_t lo = 0, hi = vs->n_named;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        int c = str_cmp(str_c(vs->named[mid].tag), tag);
        if (c == 0)
            return &vs->v[vs->named[mid].version];
        if (c < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return NULL;
}

static enum err versions_load(struct store *s, struct str application_id, struct str repository_id, struct versions *vs,
                              struct error *reterr)
{
    struct store_stmt *st;
    bool row;
    enum err e = store_query(s, &st, reterr,
                             "SELECT version, channel, CASE WHEN released_at<>0 THEN released_at ELSE first_seen_at END, source='record'"
                             " FROM versions WHERE application_id=? ORDER BY version",
                             "s", application_id);
    if (e)
        return e;
    while (!(e = store_step(st, &row, reterr)) && row) {
        if (vs->n == vs->cap) {
            vs->cap = vs->cap ? vs->cap * 2 : 64;
            vs->v = mem_realloc(vs->v, vs->cap * sizeof(*vs->v));
        }
        vs->v[vs->n++] = (struct version_row){.version = str_dup(store_col_str(st, 0)),
                                              .channel = str_dup(store_col_str(st, 1)),
                                              .released_at = store_col_int(st, 2),
                                              .is_record = store_col_int(st, 3) != 0};
    }
    store_done(&st);
    if (e)
        return e;
    e = store_query(
        s, &st, reterr,
        "SELECT t.tag, v.version FROM version_tags t JOIN versions v ON v.id=t.version_id WHERE t.repository_id=? ORDER BY t.tag", "s",
        repository_id);
    if (e)
        return e;
    while (!(e = store_step(st, &row, reterr)) && row) {
        struct version_row *v = versions_find(vs, store_col_str(st, 1));
        if (!v)
            continue; /* a record of another application cannot be named here */
        v->is_named = true;
        if (vs->n_named == vs->cap_named) {
            vs->cap_named = vs->cap_named ? vs->cap_named * 2 : 16;
            vs->named = mem_realloc(vs->named, vs->cap_named * sizeof(*vs->named));
        }
        vs->named[vs->n_named++] = (struct named_tag){.tag = str_dup(store_col_str(st, 0)), .version = (size_t)(v - vs->v)};
    }
    store_done(&st);
    return e;
}

/* "tag":{"version":…,"channel":…,"released_at":…,"digests":[ */
static void tag_open(struct strbuf *b, struct versions *vs, struct str tag_template, struct str tag, struct strbuf *scratch)
{
    struct version_row *v = versions_named(vs, tag);
    struct str version = v ? str_c(v->version) : (struct str){0};
    if (!v) {
        sb_reset(scratch);
        if (oci_version_of_tag(tag_template, tag, scratch)) {
            version = sb_str(scratch);
            v = versions_find(vs, version);
        }
    }
    if (b->p[b->n - 1] != '{')
        sb_add_char(b, ',');
    sb_add_json(b, tag);
    sb_addc(b, ":{");
    str_add(b, "version", version);
    str_add(b, "channel", v ? str_c(v->channel) : (struct str){0});
    int_add(b, "released_at", v ? v->released_at : 0);
    key_add(b, "digests");
    sb_add_char(b, '[');
}

static int compare_strings(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static enum err tags_add(struct store *s, struct str repository_id, struct str tag_template, struct versions *vs, struct strbuf *b,
                         struct error *reterr)
{
    struct store_stmt *st;
    struct strbuf scratch = {0};
    char *tag = NULL;
    char **with_history = NULL; /* sorted: the order of the query is bytewise */
    size_t n = 0, cap = 0;
    bool row;
    enum err e = store_query(s, &st, reterr,
                             "SELECT tag, digest, first_seen_at, last_seen_at FROM tag_history WHERE repository_id=? ORDER BY tag, id", "s",
                             repository_id);
    if (e)
        return e;
    while (!(e = store_step(st, &row, reterr)) && row) {
        struct str t = store_col_str(st, 0);
        if (!tag || !str_eq_c(t, tag)) {
            if (tag)
                sb_addc(b, "]}");
            tag = str_dup(t);
            if (n == cap) {
                cap = cap ? cap * 2 : 64;
                with_history = mem_realloc(with_history, cap * sizeof(*with_history));
            }
            with_history[n++] = tag;
            tag_open(b, vs, tag_template, t, &scratch);
        } else {
            sb_add_char(b, ',');
        }
        sb_add_char(b, '[');
        sb_add_json(b, store_col_str(st, 1));
        sb_addf(b, ",%lld,%lld]", (long long)store_col_int(st, 2), (long long)store_col_int(st, 3));
    }
    store_done(&st);
    if (tag)
        sb_addc(b, "]}");

    /* Records of tags not seen yet: their channel and release date count from the first pull on. */
    for (size_t i = 0; !e && i < vs->n_named; i++) {
        char *named = vs->named[i].tag;
        if (n && bsearch(&named, with_history, n, sizeof(*with_history), compare_strings))
            continue;
        tag_open(b, vs, tag_template, str_c(named), &scratch);
        sb_addc(b, "]}");
    }
    struct strbuf made = {0};
    for (size_t i = 0; !e && i < vs->n; i++) {
        if (!vs->v[i].is_record || vs->v[i].is_named)
            continue;
        sb_reset(&made);
        if (!oci_tag_of_version(tag_template, str_c(vs->v[i].version), &made))
            continue;
        if ((n && bsearch(&made.p, with_history, n, sizeof(*with_history), compare_strings)) || versions_named(vs, sb_str(&made)))
            continue;
        tag_open(b, vs, tag_template, sb_str(&made), &scratch);
        sb_addc(b, "]}");
    }
    sb_free(&made);
    for (size_t i = 0; i < n; i++)
        mem_free(with_history[i]);
    mem_free(with_history);
    sb_free(&scratch);
    return e;
}

static enum err compile_tags(struct store *s, struct str id, struct strbuf *b, bool *ret_exists, struct error *reterr)
{
    struct store_stmt *st;
    struct versions vs = {0};
    bool row;
    enum err e = store_query(s, &st, reterr,
                             "SELECT r.application_id, r.tag_template FROM repositories r JOIN applications a ON a.id=r.application_id"
                             " WHERE r.id=? AND a.archived_at=0",
                             "s", id);
    if (e)
        return e;
    e = store_step(st, &row, reterr);
    if (!e && row) {
        e = versions_load(s, store_col_str(st, 0), id, &vs, reterr);
        sb_add_char(b, '{');
        str_add(b, "repository_id", id);
        key_add(b, "tags");
        sb_add_char(b, '{');
        if (!e)
            e = tags_add(s, id, store_col_str(st, 1), &vs, b, reterr);
        sb_addc(b, "}}");
        *ret_exists = true;
    }
    versions_free(&vs);
    store_done(&st);
    return e;
}

/* ---- u: an upstream ---------------------------------------------------------------------------- */

static enum err compile_upstream(struct store *s, struct str id, struct strbuf *b, bool *ret_exists, struct error *reterr)
{
    struct store_stmt *st;
    bool row;
    enum err e =
        store_query(s, &st, reterr,
                    "SELECT id, url, username, password_sealed, ca, redirects, redirect_hosts, realm FROM upstreams WHERE id=?", "s", id);
    if (e)
        return e;
    e = store_step(st, &row, reterr);
    if (!e && row) {
        static const char *const KEYS[] = {"id", "url", "username", "password_sealed", "ca", "redirects"};
        sb_add_char(b, '{');
        for (int i = 0; i < (int)(sizeof(KEYS) / sizeof(KEYS[0])); i++)
            str_add(b, KEYS[i], store_col_str(st, i));
        raw_add(b, "redirect_hosts", store_col_str(st, 6), "[]");
        str_add(b, "realm", store_col_str(st, 7));
        sb_add_char(b, '}');
        *ret_exists = true;
    }
    store_done(&st);
    return e;
}

enum err compile_fact(struct store *s, struct str fact, struct strbuf *ret_payload_json, bool *ret_exists, struct error *reterr)
{
    struct strbuf b = {0};
    bool exists = false;
    enum err e;

    if (fact.n < 3 || fact.p[1] != ':')
        return error_set(reterr, ERR_INVALID, "%.*s is no fact's name", (int)(fact.n < 80 ? fact.n : 80), fact.p);
    struct str rest = str_skip(fact, 2);
    switch (fact.p[0]) {
    case 'k':
        e = compile_credential(s, rest, &b, &exists, reterr);
        break;
    case 'c':
        e = compile_customer(s, rest, &b, &exists, reterr);
        break;
    case 'r':
        e = compile_repository(s, rest, &b, &exists, reterr);
        break;
    case 't':
        e = compile_tags(s, rest, &b, &exists, reterr);
        break;
    case 'u':
        e = compile_upstream(s, rest, &b, &exists, reterr);
        break;
    default:
        e = error_set(reterr, ERR_INVALID, "%.*s is no fact's name", (int)(fact.n < 80 ? fact.n : 80), fact.p);
    }
    if (!e) {
        sb_reset(ret_payload_json);
        if (exists)
            sb_add(ret_payload_json, sb_str(&b));
        *ret_exists = exists;
    }
    sb_free(&b);
    return e;
}
