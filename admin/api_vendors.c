/* Vendors and the tokens of the admin API. A vendor sees itself; an operator, who belongs to the first vendor, sees, makes and suspends
 * them all. */
#include <string.h>

#include "api_routes.h"
#include "outbox.h"
#include "pullgate/clock.h"
#include "pullgate/credential.h"
#include "pullgate/mem.h"
#include "http.h"
#include "roles.h"

#define TOKEN_SCOPES_MAX 50

/* ---- schemas ----------------------------------------------------------------------------------------------------------- */

static const struct field BRANDING_FIELDS[] = {
    {.name = "display_name", .type = FIELD_STRING, .flags = FIELD_OPTIONAL | FIELD_EMPTY},
    {.name = "logo_url", .type = FIELD_STRING, .flags = FIELD_OPTIONAL | FIELD_EMPTY, .max = 500},
    {.name = "color", .type = FIELD_STRING, .flags = FIELD_OPTIONAL | FIELD_EMPTY, .max = 7, .about = "#rrggbb"},
    {.name = "support_url", .type = FIELD_STRING, .flags = FIELD_OPTIONAL | FIELD_EMPTY, .max = 500, .about = "where questions, issues and wishes go"},
    {.name = "terms_url", .type = FIELD_STRING, .flags = FIELD_OPTIONAL | FIELD_EMPTY, .max = 500},
    {.name = NULL},
};

static const struct field VENDOR_FIELDS[] = {
    {.name = "id", .type = FIELD_STRING},
    {.name = "slug", .type = FIELD_STRING},
    {.name = "name", .type = FIELD_STRING},
    {.name = "time_zone", .type = FIELD_STRING, .about = "IANA name; a date of an expiry ends in this zone"},
    {.name = "renew_url", .type = FIELD_STRING, .flags = FIELD_EMPTY, .about = "shown in denials"},
    {.name = "support_contact", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "branding", .type = FIELD_OBJECT, .sub = BRANDING_FIELDS, .about = "how the portal looks to its customers"},
    {.name = "grants_irrevocable", .type = FIELD_BOOL, .about = "a version that was granted is never taken back"},
    {.name = "suspended_at", .type = FIELD_TIME, .about = "its customers pull nothing, and it changes nothing, from then on"},
    {.name = "suspended_reason", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "created_at", .type = FIELD_TIME},
    {.name = "updated_at", .type = FIELD_TIME},
    {.name = "etag", .type = FIELD_STRING},
    {.name = "token", .type = FIELD_SECRET, .flags = FIELD_OPTIONAL, .about = "of its first owner; shown once, at creation"},
    {.name = NULL},
};
static const struct schema VENDOR = {"Vendor", VENDOR_FIELDS};

static const struct field VENDOR_CREATE_FIELDS[] = {
    {.name = "slug", .type = FIELD_STRING, .flags = FIELD_REQUIRED, .max = 64, .about = "owns the repository names under it and a slash"},
    {.name = "name", .type = FIELD_STRING, .flags = FIELD_REQUIRED},
    {.name = "time_zone", .type = FIELD_STRING, .max = 64},
    {.name = "renew_url", .type = FIELD_STRING, .flags = FIELD_EMPTY, .max = 500},
    {.name = "support_contact", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "branding", .type = FIELD_OBJECT, .sub = BRANDING_FIELDS, .about = "replaces all of it"},
    {.name = "grants_irrevocable", .type = FIELD_BOOL},
    {.name = NULL},
};
static const struct schema VENDOR_CREATE = {"VendorCreate", VENDOR_CREATE_FIELDS};
static const struct field VENDOR_SUSPEND_FIELDS[] = {
    {.name = "reason", .type = FIELD_STRING, .flags = FIELD_REQUIRED, .max = 500},
    {.name = NULL},
};
static const struct schema VENDOR_SUSPEND = {"VendorSuspend", VENDOR_SUSPEND_FIELDS};
static const struct schema VENDOR_UPDATE = {"VendorUpdate", VENDOR_CREATE_FIELDS + 1 /* without slug */};

static const struct field TOKEN_FIELDS[] = {
    {.name = "id", .type = FIELD_STRING},
    {.name = "name", .type = FIELD_STRING},
    {.name = "role", .type = FIELD_STRING, .one_of = ROLES_VENDOR},
    {.name = "scopes", .type = FIELD_STRINGS, .about = "empty: all that the role may"},
    {.name = "prefix", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "is_bootstrap", .type = FIELD_BOOL, .about = "the one in admin.bootstrap_token_file"},
    {.name = "created_at", .type = FIELD_TIME},
    {.name = "expires_at", .type = FIELD_TIME},
    {.name = "revoked_at", .type = FIELD_TIME},
    {.name = "last_used_at", .type = FIELD_TIME},
    {.name = "last_used_from", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "token", .type = FIELD_SECRET, .flags = FIELD_OPTIONAL, .about = "shown once, at creation"},
    {.name = NULL},
};
static const struct schema TOKEN = {"Token", TOKEN_FIELDS};

static const struct field TOKEN_CREATE_FIELDS[] = {
    {.name = "name", .type = FIELD_STRING, .flags = FIELD_REQUIRED},
    {.name = "role", .type = FIELD_STRING, .flags = FIELD_REQUIRED, .one_of = ROLES_VENDOR, .about = "at most the role of who makes it"},
    {.name = "scopes", .type = FIELD_STRINGS, .max = TOKEN_SCOPES_MAX, .about = "such as licenses:read, licenses:write, explain: narrow the role"},
    {.name = "expires_at", .type = FIELD_TIME},
    {.name = NULL},
};
static const struct schema TOKEN_CREATE = {"TokenCreate", TOKEN_CREATE_FIELDS};

/* ---- vendors ----------------------------------------------------------------------------------------------------------- */

#define VENDOR_COLUMNS                                                                                                                     \
    "id, slug, name, time_zone, renew_url, support_contact, created_at, updated_at, rev, is_first, branding, grants_irrevocable,"          \
    " suspended_at, suspended_reason"

static struct jv *vendor_print(const struct store_stmt *st)
{
    struct jv *v = jv_object();
    jv_set_str(v, "id", store_col_str(st, 0));
    jv_set_str(v, "slug", store_col_str(st, 1));
    jv_set_str(v, "name", store_col_str(st, 2));
    jv_set_str(v, "time_zone", store_col_str(st, 3));
    jv_set_str(v, "renew_url", store_col_str(st, 4));
    jv_set_str(v, "support_contact", store_col_str(st, 5));
    api_set_json(v, "branding", store_col_str(st, 10));
    jv_set_bool(v, "grants_irrevocable", store_col_int(st, 11) != 0);
    jv_set_time(v, "suspended_at", store_col_int(st, 12));
    jv_set_str(v, "suspended_reason", store_col_str(st, 13));
    jv_set_time(v, "created_at", store_col_int(st, 6));
    jv_set_time(v, "updated_at", store_col_int(st, 7));
    api_print_etag(v, store_col_int(st, 8));
    return v;
}

static enum err vendor_load(struct api *rq, struct str id, struct jv **ret, int64_t *ret_rev, bool *ret_is_first)
{
    struct store_stmt *st = NULL;
    bool row = false;
    enum err err = store_query(rq->store, &st, &rq->error, "SELECT " VENDOR_COLUMNS " FROM vendors WHERE id=?", "s", id);
    if (!err)
        err = store_step(st, &row, &rq->error);
    if (!err && !row)
        err = api_not_found(rq, "vendor");
    if (!err) {
        *ret = vendor_print(st);
        *ret_rev = store_col_int(st, 8);
        *ret_is_first = store_col_int(st, 9) != 0;
    }
    store_done(&st);
    return err;
}

/* Answers the vendor of id, with its ETag. */
static enum err vendor_answer(struct api *rq, struct str id)
{
    int64_t rev;
    bool is_first;
    enum err err = vendor_load(rq, id, &rq->out, &rev, &is_first);
    if (!err)
        api_set_etag(rq, rev);
    return err;
}

static enum err vendor_list(struct api *rq)
{
    struct page page;
    struct store_stmt *st = NULL;
    struct strbuf slug = {0};
    enum err err = api_page(rq, &page);
    if (err)
        return err;
    api_query(rq, "slug", &slug);
    (void)api_list(rq);
    err = store_query(rq->store, &st, &rq->error,
                      "SELECT " VENDOR_COLUMNS " FROM vendors WHERE (?1 OR id=?2) AND (?3='' OR slug=?3) AND (created_at, id) > (?4,?5)"
                      " ORDER BY created_at, id LIMIT ?6",
                      "bzsizi", rq->role == ROLE_OPERATOR && !rq->for_vendor, rq->vendor_id, slug.n ? sb_str(&slug) : S(""), page.after_key,
                      page.after_id, (int64_t)page.limit + 1);
    if (!err)
        err = api_page_rows(rq, &page, st, 6, vendor_print);
    store_done(&st);
    sb_free(&slug);
    return err;
}

/* The vendor of the path: the caller's own, or any for an operator, who then acts for it: the change stands in that vendor's audit. */
static enum err vendor_target(struct api *rq)
{
    bool found = false;
    if (str_eq_c(rq->params[0], rq->vendor_id))
        return ERR_OK;
    if (rq->role != ROLE_OPERATOR)
        return api_not_found(rq, "vendor");
    enum err err = api_lookup(rq, "SELECT 1 FROM vendors WHERE id=?", rq->params[0], NULL, &found);
    if (!err && !found)
        err = api_not_found(rq, "vendor");
    if (!err) {
        mem_free(rq->vendor_id);
        MEM_FREE(rq->zone);
        rq->vendor_id = str_dup(rq->params[0]);
    }
    return err;
}

static enum err vendor_get(struct api *rq)
{
    enum err err = vendor_target(rq);
    return err ? err : vendor_answer(rq, rq->params[0]);
}

static bool is_http(struct str url)
{
    return !url.n || str_starts(url, S("https://")) || str_starts(url, S("http://"));
}

static enum err branding_check(struct api *rq)
{
    static const char *const urls[] = {"logo_url", "support_url", "terms_url"};
    const struct jv *b = jv_get(rq->in, "branding");
    char field[API_FIELD_MAX];
    for (size_t i = 0; i < sizeof urls / sizeof *urls; i++) {
        api_field(field, "branding.%s", urls[i]);
        if (!is_http(jv_get_str(b, urls[i])))
            return api_fail(rq, ERR_INVALID, "invalid_field", field, "%s: expected an http or https address", field);
    }
    struct str color = jv_get_str(b, "color");
    uint8_t rgb[3];
    if (color.n && (color.n != 7 || color.p[0] != '#' || !hex_decode(str_skip(color, 1), rgb, sizeof rgb)))
        return api_fail(rq, ERR_INVALID, "invalid_field", "branding.color", "branding.color: expected #rrggbb");
    return ERR_OK;
}

static enum err vendor_check(struct api *rq)
{
    const char *zone = jv_get_c(rq->in, "time_zone", NULL);
    if (zone && !clock_zone_exists(zone))
        return api_fail(rq, ERR_INVALID, "invalid_field", "time_zone", "time_zone: no such zone; expected a name such as Europe/Berlin");
    struct str url = jv_get_str(rq->in, "renew_url");
    if (!is_http(url))
        return api_fail(rq, ERR_INVALID, "invalid_field", "renew_url", "renew_url: expected an http or https address");
    return branding_check(rq);
}

static enum err vendor_update(struct api *rq)
{
    int64_t rev;
    bool is_first;
    struct strbuf branding = {0};
    enum err err = vendor_target(rq);
    if (!err)
        err = vendor_check(rq);
    if (!err)
        err = vendor_load(rq, rq->params[0], &rq->before, &rev, &is_first);
    if (!err)
        err = api_check_etag(rq, rev);
    if (!err)
        err = store_exec(rq->store, NULL, &rq->error,
                         "UPDATE vendors SET name=COALESCE(?,name), time_zone=COALESCE(?,time_zone), renew_url=COALESCE(?,renew_url),"
                         " support_contact=COALESCE(?,support_contact), branding=COALESCE(?,branding), grants_irrevocable=?, updated_at=?,"
                         " rev=rev+1 WHERE id=?",
                         "sssssbis", jv_get_str(rq->in, "name"), jv_get_str(rq->in, "time_zone"), jv_get_str(rq->in, "renew_url"),
                         jv_get_str(rq->in, "support_contact"), api_in_json(rq, "branding", &branding),
                         jv_get_bool(rq->in, "grants_irrevocable", jv_get_bool(rq->before, "grants_irrevocable", false)), rq->now_s,
                         rq->params[0]);
    sb_free(&branding);
    if (!err && (api_has(rq, "renew_url") || api_has(rq, "support_contact"))) /* they stand in every entitlement */
        err = outbox_put_customers_of_vendor(rq->store, rq->params[0], &rq->error);
    if (!err)
        err = vendor_answer(rq, rq->params[0]);
    if (!err)
        rq->after = jv_copy(rq->out);
    return err;
}

enum err rights_check(struct api *rq, enum role role)
{
    bool is_first = false;
    if (!role_allows(rq->role, role))
        return api_fail(rq, ERR_DENIED, "rights_exceeded", "role", "role: more than your own, which is %s", role_text(rq->role));
    if (role != ROLE_OPERATOR)
        return ERR_OK;
    enum err err = api_lookup(rq, "SELECT 1 FROM vendors WHERE id=? AND is_first=1", str_c(rq->vendor_id), NULL, &is_first);
    if (!err && !is_first)
        err = api_fail(rq, ERR_DENIED, "rights_exceeded", "role", "role: operators belong to the first vendor");
    return err;
}

static enum err token_insert(struct api *rq, const char *vendor_id, const char *owner_id, struct str name, struct str role, struct str scopes, int64_t expires_at, char id[ID_MAX],
                             char secret[CREDENTIAL_TEXT_MAX])
{
    char hash[CREDENTIAL_HASH_MAX];
    id_new("tok_", id);
    credential_new("pga_", secret);
    credential_hash(rq->admin->keys, str_c(secret), hash);
    return store_exec(rq->store, NULL, &rq->error,
                      "INSERT INTO api_tokens (id, vendor_id, name, role, scopes, user_id, hash, prefix, created_at, expires_at)"
                      " VALUES (?,?,?,?,?,?,?,?,?,?)",
                      "zzssszzsii", id, vendor_id, name, role, scopes, owner_id ? owner_id : "", hash,
                      str_sub(str_c(secret), 0, CREDENTIAL_SHOWN_PREFIX), rq->now_s, expires_at);
}

/* A further vendor owns the names under its slug: nothing of another vendor may stand there already. */
static enum err vendor_check_namespace(struct api *rq, struct str slug)
{
    bool found = false;
    struct strbuf prefix = {0};
    sb_add(&prefix, slug);
    sb_add_char(&prefix, '/');
    enum err err = api_lookup(rq, "SELECT 1 FROM repositories WHERE name || '/' = ?1 OR substr(name, 1, length(?1)) = ?1", sb_str(&prefix),
                              NULL, &found);
    sb_free(&prefix);
    if (!err && found)
        err = api_fail(rq, ERR_CONFLICT, "name_taken", "slug", "slug: repositories of another vendor have names under it");
    return err;
}

static enum err vendor_create(struct api *rq)
{
    struct str slug = jv_get_str(rq->in, "slug");
    if (!api_slug_valid(slug))
        return api_fail(rq, ERR_INVALID, "invalid_field", "slug", "slug: lower-case letters and digits, single . _ - between them");
    enum err err = vendor_check(rq);
    if (!err)
        err = vendor_check_namespace(rq, slug);
    if (err)
        return err;

    char id[ID_MAX], token_id[ID_MAX], secret[CREDENTIAL_TEXT_MAX];
    struct strbuf branding = {0};
    id_new("ven_", id);
    struct str zone = jv_get_str(rq->in, "time_zone"), renew = jv_get_str(rq->in, "renew_url"),
               support = jv_get_str(rq->in, "support_contact");
    err = store_exec(
        rq->store, NULL, &rq->error,
        "INSERT INTO vendors (id, slug, name, time_zone, renew_url, support_contact, branding, grants_irrevocable, created_at, updated_at)"
        " VALUES (?,?,?,?,?,?,COALESCE(?,'{}'),?,?,?)",
        "zssssssbii", id, slug, jv_get_str(rq->in, "name"), zone.p ? zone : S("UTC"), renew.p ? renew : S(""), support.p ? support : S(""),
        api_in_json(rq, "branding", &branding), jv_get_bool(rq->in, "grants_irrevocable", false), rq->now_s, rq->now_s);
    sb_free(&branding);
    if (!err)
        err = token_insert(rq, id, NULL, S("first owner"), S("owner"), S(""), 0, token_id, secret);
    if (!err)
        err = vendor_answer(rq, str_c(id));
    if (!err) {
        rq->after = jv_copy(rq->out);
        jv_set_c(rq->out, "token", secret);
        api_created(rq, "/api/v1/vendors/", id);
    }
    mem_cleanse(secret, sizeof secret);
    return err;
}

/* All its customers' facts say so at once; what it has stays. */
static enum err vendor_set_suspended(struct api *rq, int64_t at_s, struct str reason)
{
    int64_t rev;
    bool is_first;
    enum err err = vendor_target(rq);
    if (!err)
        err = vendor_load(rq, rq->params[0], &rq->before, &rev, &is_first);
    if (!err && is_first)
        err = api_fail(rq, ERR_CONFLICT, "action_not_allowed", NULL, "the first vendor is the operator's own");
    bool is_suspended = !err && jv_type(jv_get(rq->before, "suspended_at")) == JV_STRING;
    if (!err && is_suspended == (at_s != 0))
        err = api_fail(rq, ERR_CONFLICT, "action_not_allowed", NULL, is_suspended ? "it is suspended" : "it is not suspended");
    if (!err)
        err = store_exec(rq->store, NULL, &rq->error, "UPDATE vendors SET suspended_at=?, suspended_reason=?, updated_at=?, rev=rev+1 WHERE id=?",
                         "isis", at_s, reason, rq->now_s, rq->params[0]);
    if (!err)
        err = outbox_put_customers_of_vendor(rq->store, rq->params[0], &rq->error);
    if (!err)
        err = vendor_answer(rq, rq->params[0]);
    if (!err)
        rq->after = jv_copy(rq->out);
    return err;
}

static enum err vendor_suspend(struct api *rq)
{
    return vendor_set_suspended(rq, rq->now_s, jv_get_str(rq->in, "reason"));
}

static enum err vendor_reinstate(struct api *rq)
{
    return vendor_set_suspended(rq, 0, S(""));
}

/* ---- what a customer sees of it ----------------------------------------------------------------------------------------- */

static const struct field PORTAL_VENDOR_FIELDS[] = {
    {.name = "slug", .type = FIELD_STRING},
    {.name = "name", .type = FIELD_STRING},
    {.name = "renew_url", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "support_contact", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "support_tier", .type = FIELD_STRING, .flags = FIELD_EMPTY, .about = "the member support_tier of the customer's metadata"},
    {.name = "branding", .type = FIELD_OBJECT, .sub = BRANDING_FIELDS},
    {.name = NULL},
};
static const struct schema PORTAL_VENDOR = {"PortalVendor", PORTAL_VENDOR_FIELDS};

static enum err portal_vendor(struct api *rq)
{
    struct strbuf tier = {0};
    struct jv *v = NULL;
    int64_t rev;
    bool is_first, found = false;
    enum err err = vendor_load(rq, str_c(rq->vendor_id), &v, &rev, &is_first);
    if (!err)
        err = api_lookup(rq, "SELECT CASE WHEN json_type(metadata,'$.support_tier')='text' THEN json_extract(metadata,'$.support_tier') ELSE '' END"
                             " FROM customers WHERE id=?",
                         str_c(rq->customer_id), &tier, &found);
    if (!err) {
        static const char *const texts[] = {"slug", "name", "renew_url", "support_contact"};
        rq->out = jv_object();
        for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
            jv_set_str(rq->out, texts[i], jv_get_str(v, texts[i]));
        jv_set_str(rq->out, "support_tier", tier.n ? sb_str(&tier) : S(""));
        jv_set(rq->out, "branding", jv_copy(jv_get(v, "branding")));
    }
    jv_free(v);
    sb_free(&tier);
    return err;
}

/* ---- tokens ------------------------------------------------------------------------------------------------------------ */

#define TOKEN_COLUMNS "id, name, role, prefix, is_bootstrap, created_at, expires_at, revoked_at, last_used_at, last_used_from, scopes"

static struct jv *token_print(const struct store_stmt *st)
{
    struct jv *v = jv_object();
    jv_set_str(v, "id", store_col_str(st, 0));
    jv_set_str(v, "name", store_col_str(st, 1));
    jv_set_str(v, "role", store_col_str(st, 2));
    struct jv *scopes = jv_array();
    struct str rest = store_col_str(st, 10), one;
    while (rest.n && str_next(&rest, ' ', &one))
        jv_push(scopes, jv_string(one));
    jv_set(v, "scopes", scopes);
    jv_set_str(v, "prefix", store_col_str(st, 3));
    jv_set_bool(v, "is_bootstrap", store_col_int(st, 4) != 0);
    jv_set_time(v, "created_at", store_col_int(st, 5));
    jv_set_time(v, "expires_at", store_col_int(st, 6));
    jv_set_time(v, "revoked_at", store_col_int(st, 7));
    jv_set_time(v, "last_used_at", store_col_int(st, 8));
    jv_set_str(v, "last_used_from", store_col_str(st, 9));
    return v;
}

static enum err token_load(struct api *rq, struct str id, struct jv **ret)
{
    struct store_stmt *st = NULL;
    bool row = false;
    enum err err = store_query(rq->store, &st, &rq->error, "SELECT " TOKEN_COLUMNS " FROM api_tokens WHERE id=? AND vendor_id=?", "sz", id,
                               rq->vendor_id);
    if (!err)
        err = store_step(st, &row, &rq->error);
    if (!err && !row)
        err = api_not_found(rq, "token");
    if (!err)
        *ret = token_print(st);
    store_done(&st);
    return err;
}

static enum err token_list(struct api *rq)
{
    struct page page;
    struct store_stmt *st = NULL;
    enum err err = api_page(rq, &page);
    if (err)
        return err;
    (void)api_list(rq);
    err = store_query(rq->store, &st, &rq->error,
                      "SELECT " TOKEN_COLUMNS
                      " FROM api_tokens WHERE vendor_id=? AND (created_at, id) > (?,?) ORDER BY created_at, id LIMIT ?",
                      "zizi", rq->vendor_id, page.after_key, page.after_id, (int64_t)page.limit + 1);
    if (!err)
        err = api_page_rows(rq, &page, st, 5, token_print);
    store_done(&st);
    return err;
}

/* The scopes of the body, each known, separated by blanks. */
static enum err token_scopes(struct api *rq, struct strbuf *ret)
{
    const struct jv *list = jv_get(rq->in, "scopes");
    for (size_t i = 0; i < jv_len(list); i++) {
        struct str one = jv_str(jv_at(list, i));
        char field[API_FIELD_MAX];
        api_field(field, "scopes[%zu]", i);
        if (str_index(one, ' ') >= 0 || !scope_exists(one, ROUTE_TABLES))
            return api_fail(rq, ERR_INVALID, "unknown_scope", field, "%s: no such scope; see x-scope in the OpenAPI document", field);
        if (ret->n)
            sb_add_char(ret, ' ');
        sb_add(ret, one);
    }
    return ERR_OK;
}

/* Nobody hands out more than he has: role, scopes, time. */
static enum err token_check_rights(struct api *rq, enum role role, struct str scopes, int64_t expires_at)
{
    enum err err = rights_check(rq, role);
    if (err)
        return err;
    if (!scopes_within(scopes, str_c(rq->scopes)))
        return api_fail(rq, ERR_DENIED, "rights_exceeded", "scopes", "scopes: more than your own, which are %s", rq->scopes);
    if (rq->token_expires_s && (!expires_at || expires_at > rq->token_expires_s))
        return api_fail(rq, ERR_DENIED, "rights_exceeded", "expires_at", "expires_at: later than that of your own token");
    return ERR_OK;
}

static enum err token_create(struct api *rq)
{
    int64_t expires_at = 0;
    char id[ID_MAX], secret[CREDENTIAL_TEXT_MAX];
    struct strbuf scopes = {0};
    struct str role = jv_get_str(rq->in, "role");
    enum err err = api_time_end(rq, rq->in, "expires_at", "expires_at", &expires_at);
    if (err)
        return err;
    if (expires_at && expires_at <= rq->now_s)
        return api_fail(rq, ERR_INVALID, "invalid_window", "expires_at", "expires_at: in the past");
    err = token_scopes(rq, &scopes);
    if (!err)
        err = token_check_rights(rq, role_parse(role), sb_str(&scopes), expires_at);
    if (err) {
        sb_free(&scopes);
        return err;
    }
    err = token_insert(rq, rq->vendor_id, rq->owner_id, jv_get_str(rq->in, "name"), role, scopes.n ? sb_str(&scopes) : S(""), expires_at, id,
                       secret);
    sb_free(&scopes);
    if (!err)
        err = token_load(rq, str_c(id), &rq->out);
    if (!err) {
        rq->after = jv_copy(rq->out);
        jv_set_c(rq->out, "token", secret);
        api_created(rq, "/api/v1/tokens/", id);
    }
    mem_cleanse(secret, sizeof secret);
    return err;
}

static enum err token_get(struct api *rq)
{
    return token_load(rq, rq->params[0], &rq->out);
}

static enum err token_delete(struct api *rq)
{
    enum err err = token_load(rq, rq->params[0], &rq->before);
    if (err)
        return err;
    if (!role_allows(rq->role, role_parse(jv_get_str(rq->before, "role"))))
        return api_fail(rq, ERR_DENIED, "rights_exceeded", NULL, "the token's role is above your own");
    if (jv_get_bool(rq->before, "is_bootstrap", false))
        return api_fail(rq, ERR_CONFLICT, "bootstrap_token", NULL,
                        "the bootstrap token is changed in its file, admin.bootstrap_token_file");
    return store_exec(rq->store, NULL, &rq->error, "UPDATE api_tokens SET revoked_at=? WHERE id=? AND revoked_at=0", "is", rq->now_s,
                      rq->params[0]);
}

static const struct query_param VENDOR_PARAMS[] = {{"slug", "only this one"}, {NULL, NULL}};

const struct route VENDOR_ROUTES[] = {
    {HEAD_GET, "/api/v1/vendors", vendor_list, ROLE_VIEWER, ROUTE_LIST, NULL, &VENDOR, VENDOR_PARAMS, "vendor.list",
     "The caller's vendor as a list; all of them for an operator"},
    {HEAD_POST, "/api/v1/vendors", vendor_create, ROLE_OPERATOR, 0, &VENDOR_CREATE, &VENDOR, NULL, "vendor.create",
     "Make a further vendor and its first owner's token"},
    {HEAD_GET, "/api/v1/vendors/{id}", vendor_get, ROLE_VIEWER, 0, NULL, &VENDOR, NULL, "vendor.get", "One vendor: the caller's, or any for an operator"},
    {HEAD_PATCH, "/api/v1/vendors/{id}", vendor_update, ROLE_OWNER, 0, &VENDOR_UPDATE, &VENDOR, NULL, "vendor.update", "Change the vendor"},
    {HEAD_POST, "/api/v1/vendors/{id}/suspend", vendor_suspend, ROLE_OPERATOR, ROUTE_ACTION, &VENDOR_SUSPEND, &VENDOR, NULL, "vendor.suspend",
     "Its customers pull nothing, and it can read but change nothing"},
    {HEAD_POST, "/api/v1/vendors/{id}/reinstate", vendor_reinstate, ROLE_OPERATOR, ROUTE_ACTION, NULL, &VENDOR, NULL, "vendor.reinstate",
     "As it was before it was suspended"},
    {HEAD_GET, "/portal/v1/vendor", portal_vendor, ROLE_CUSTOMER, 0, NULL, &PORTAL_VENDOR, NULL, "portal.vendor.get",
     "Whom the software is from: support contact, links, how the portal looks"},
    {HEAD_GET, "/api/v1/tokens", token_list, ROLE_OWNER, ROUTE_LIST, NULL, &TOKEN, NULL, "token.list", "Tokens of the admin API"},
    {HEAD_POST, "/api/v1/tokens", token_create, ROLE_OWNER, 0, &TOKEN_CREATE, &TOKEN, NULL, "token.create",
     "Make a token; it is shown once"},
    {HEAD_GET, "/api/v1/tokens/{id}", token_get, ROLE_OWNER, 0, NULL, &TOKEN, NULL, "token.get", "One token"},
    {HEAD_DELETE, "/api/v1/tokens/{id}", token_delete, ROLE_OWNER, 0, NULL, NULL, NULL, "token.delete", "Revoke a token"},
    {.path = NULL},
};
