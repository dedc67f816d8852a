/* Customers and the credentials they pull with. A secret is shown once, when it is made; the store holds its hash. */
#include <stdio.h>
#include <string.h>

#include "api_routes.h"
#include "finder.h"
#include "outbox.h"
#include "pullgate/clock.h"
#include "pullgate/credential.h"
#include "pullgate/license.h"
#include "pullgate/mem.h"

#define OVERLAP_DEFAULT_MS (24ull * 3600 * 1000) /* how long a rotated credential goes on, where the request does not say */
#define OVERLAP_MAX_MS     (90ull * 24 * 3600 * 1000)
#define CREDENTIALS_MAX    1000 /* live ones of a customer */
#define SLUG_TRIES         20   /* numbers tried after a slug that is made of a name and taken */

/* ---- schemas ----------------------------------------------------------------------------------------------------------- */

static const struct field CUSTOMER_FIELDS[] = {
    {.name = "id", .type = FIELD_STRING},
    {.name = "slug", .type = FIELD_STRING, .about = "the user name to pull with"},
    {.name = "name", .type = FIELD_STRING},
    {.name = "email", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "external_id", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "metadata", .type = FIELD_MAP},
    {.name = "disabled", .type = FIELD_BOOL, .about = "nothing can be pulled while it is"},
    {.name = "requests_per_second", .type = FIELD_INT, .about = "its own bound at a proxy; 0: limits.requests_per_customer"},
    {.name = "created_at", .type = FIELD_TIME},
    {.name = "updated_at", .type = FIELD_TIME},
    {.name = "etag", .type = FIELD_STRING},
    {.name = NULL},
};
static const struct schema CUSTOMER = {"Customer", CUSTOMER_FIELDS};

static const struct field CUSTOMER_CREATE_FIELDS[] = {
    {.name = "slug", .type = FIELD_STRING, .max = 64, .about = "made of the name, when absent; it stays"},
    {.name = "name", .type = FIELD_STRING, .about = "the slug, when absent"},
    {.name = "email", .type = FIELD_STRING, .flags = FIELD_EMPTY | FIELD_NULL, .max = 254},
    {.name = "external_id", .type = FIELD_STRING, .flags = FIELD_EMPTY | FIELD_NULL},
    {.name = "metadata", .type = FIELD_MAP},
    {.name = "disabled", .type = FIELD_BOOL},
    {.name = "requests_per_second", .type = FIELD_INT, .max = 1000000},
    {.name = NULL},
};
static const struct schema CUSTOMER_CREATE = {"CustomerCreate", CUSTOMER_CREATE_FIELDS};
static const struct schema CUSTOMER_UPDATE = {"CustomerUpdate", CUSTOMER_CREATE_FIELDS + 1};

static const struct field CREDENTIAL_FIELDS[] = {
    {.name = "id", .type = FIELD_STRING},
    {.name = "customer_id", .type = FIELD_STRING},
    {.name = "license_id", .type = FIELD_STRING, .flags = FIELD_NULL, .about = "only this license counts"},
    {.name = "name", .type = FIELD_STRING},
    {.name = "prefix", .type = FIELD_STRING},
    {.name = "status", .type = FIELD_STRING, .one_of = "active|expired|revoked"},
    {.name = "allowed_cidrs", .type = FIELD_STRINGS},
    {.name = "created_at", .type = FIELD_TIME},
    {.name = "expires_at", .type = FIELD_TIME},
    {.name = "revoked_at", .type = FIELD_TIME},
    {.name = "rotated_to", .type = FIELD_STRING, .flags = FIELD_NULL},
    {.name = "last_used_at", .type = FIELD_TIME},
    {.name = "last_used_from", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "username", .type = FIELD_STRING, .flags = FIELD_OPTIONAL},
    {.name = "secret", .type = FIELD_SECRET, .flags = FIELD_OPTIONAL, .about = "the password; shown once, at creation"},
    {.name = NULL},
};
static const struct schema CREDENTIAL = {"Credential", CREDENTIAL_FIELDS};

static const struct field CREDENTIAL_CREATE_FIELDS[] = {
    {.name = "name", .type = FIELD_STRING, .flags = FIELD_REQUIRED},
    {.name = "expires_at", .type = FIELD_TIME},
    {.name = "license_id", .type = FIELD_STRING, .flags = FIELD_NULL, .max = 64},
    {.name = "allowed_cidrs", .type = FIELD_STRINGS, .max = 64},
    {.name = NULL},
};
static const struct schema CREDENTIAL_CREATE = {"CredentialCreate", CREDENTIAL_CREATE_FIELDS};

static const struct field CREDENTIAL_ROTATE_FIELDS[] = {
    {.name = "overlap", .type = FIELD_STRING, .max = 20, .about = "how long the old secret goes on: 7d, 12h, 0s; 24h when absent"},
    {.name = "name", .type = FIELD_STRING},
    {.name = "expires_at", .type = FIELD_TIME, .about = "of the new one"},
    {.name = NULL},
};
static const struct schema CREDENTIAL_ROTATE = {"CredentialRotate", CREDENTIAL_ROTATE_FIELDS};

/* ---- customers ----------------------------------------------------------------------------------------------------------- */

#define CUSTOMER_COLUMNS "id, slug, name, email, external_id, metadata, disabled, created_at, updated_at, rev, requests_per_second"

static struct jv *customer_print(const struct store_stmt *st)
{
    struct jv *v = jv_object();
    jv_set_str(v, "id", store_col_str(st, 0));
    jv_set_str(v, "slug", store_col_str(st, 1));
    jv_set_str(v, "name", store_col_str(st, 2));
    jv_set_str(v, "email", store_col_str(st, 3));
    jv_set_str(v, "external_id", store_col_str(st, 4));
    api_set_json(v, "metadata", store_col_str(st, 5));
    jv_set_bool(v, "disabled", store_col_int(st, 6) != 0);
    jv_set_int(v, "requests_per_second", store_col_int(st, 10));
    jv_set_time(v, "created_at", store_col_int(st, 7));
    jv_set_time(v, "updated_at", store_col_int(st, 8));
    api_print_etag(v, store_col_int(st, 9));
    return v;
}

static enum err customer_load(struct api *rq, struct str id, struct jv **ret, int64_t *ret_rev)
{
    struct store_stmt *st = NULL;
    bool row = false;
    enum err err =
        store_query(rq->store, &st, &rq->error, "SELECT " CUSTOMER_COLUMNS " FROM customers WHERE id=? AND vendor_id=? AND archived_at=0",
                    "sz", id, rq->vendor_id);
    if (!err)
        err = store_step(st, &row, &rq->error);
    if (!err && !row)
        err = api_not_found(rq, "customer");
    if (!err) {
        *ret = customer_print(st);
        *ret_rev = store_col_int(st, 9);
    }
    store_done(&st);
    return err;
}

static enum err customer_answer(struct api *rq, struct str id)
{
    int64_t rev;
    enum err err = customer_load(rq, id, &rq->out, &rev);
    if (!err)
        api_set_etag(rq, rev);
    return err;
}

static enum err customer_get(struct api *rq)
{
    return customer_answer(rq, rq->params[0]);
}

static const struct finder_sort CUSTOMER_SORTS[] = {
    {"created_at", "created_at", "customers_by_created", false},
    {"updated_at", "updated_at", "customers_by_updated", false},
    {"name", "name_key", "customers_by_name", true},
    {NULL, NULL, NULL, false},
};
static const struct finder_table CUSTOMER_TABLE = {.name = "customers",
                                                   .live = "archived_at=0",
                                                   .sorts = CUSTOMER_SORTS,
                                                   .text = "customer_text",
                                                   .docs = "customer_docs",
                                                   .doc_id = "customer_id",
                                                   .text_columns = "name slug email external_id"};

static enum err customer_filter(struct api *rq, struct finder *f, const struct filter_pair *p)
{
    struct str name = str_c(p->name), value = str_c(p->value);
    bool yes = false;
    if (str_eq(name, S("q")))
        return finder_words(f, value);
    if (str_eq(name, S("sort")))
        return finder_sort(f, value);
    if (str_eq(name, S("disabled"))) {
        enum err err = filter_bool(rq, p, &yes);
        if (!err)
            finder_where(f, NULL, yes ? "l.disabled=1" : "l.disabled=0");
        return err;
    }
    if (str_starts(name, S("metadata."))) {
        finder_metadata(f, "customer_metadata", "customer_id", str_skip(name, 9), value);
        return ERR_OK;
    }
    if (str_eq(name, S("name"))) {
        filter_name(f, "customers_by_name", "name_key", value);
        return ERR_OK;
    }
    static const char *const SIMPLE[][3] = {
        {"id", "", "l.id=?"},
        {"slug", "customers_slug", "l.slug=?"},
        {"email", "customers_by_email", "lower(l.email)=lower(?) AND l.email<>''"},
        {"external_id", "customers_by_external", "l.external_id=? AND l.external_id<>''"},
    };
    for (size_t i = 0; i < sizeof SIMPLE / sizeof *SIMPLE; i++)
        if (str_eq_c(name, SIMPLE[i][0])) {
            finder_text(f, value);
            finder_where(f, SIMPLE[i][1], SIMPLE[i][2]);
            return ERR_OK;
        }
    return api_fail(rq, ERR_INVALID, "unknown_parameter", p->name, "%s: no such parameter", p->name);
}

static const struct finder_sort CREDENTIAL_SORTS[] = {
    {"created_at", "created_at", "credentials_by_created", false},
    {"expires_at", "expires_at", "credentials_by_expiry", false},
    {NULL, NULL, NULL, false},
};
static const struct finder_table CREDENTIAL_TABLE = {.name = "credentials", .live = "created_at<>0", .sorts = CREDENTIAL_SORTS};

static enum err credential_filter(struct api *rq, struct finder *f, const struct filter_pair *p)
{
    struct str name = str_c(p->name), value = str_c(p->value);
    struct strbuf end = {0};
    int64_t t = 0;
    if (str_eq(name, S("sort")))
        return finder_sort(f, value);
    if (str_eq(name, S("prefix"))) {
        value = str_sub(value, 0, CREDENTIAL_SHOWN_PREFIX);
        sb_add(&end, value);
        sb_addc(&end, "~"); /* after every character of a secret */
        finder_text(f, value);
        finder_text(f, sb_str(&end));
        finder_where(f, "credentials_by_prefix", "l.prefix>=? AND l.prefix<?");
        sb_free(&end);
    } else if (str_eq(name, S("customer_id"))) {
        finder_text(f, value);
        finder_where(f, "credentials_customer", "l.customer_id=?");
    } else if (str_eq(name, S("license_id"))) {
        finder_text(f, value);
        finder_where(f, "credentials_license", "l.license_id=? AND l.license_id IS NOT NULL");
    } else if (str_eq(name, S("name"))) {
        finder_text(f, value);
        finder_where(f, NULL, "l.name=?");
    } else if (str_eq(name, S("expires_before")) || str_eq(name, S("expires_after"))) {
        enum err err = filter_time(rq, p, &t);
        bool is_before = str_eq(name, S("expires_before"));
        if (!err)
            finder_range(f, "credentials_by_expiry", "expires_at", is_before ? 1 : t, is_before ? t : INT64_MAX);
        return err;
    } else if (str_eq(name, S("status"))) {
        finder_int(f, rq->now_s);
        if (str_eq(value, S("active")))
            finder_where(f, NULL, "l.revoked_at=0 AND (l.expires_at=0 OR l.expires_at>?)");
        else if (str_eq(value, S("expired")))
            finder_where(f, NULL, "l.revoked_at=0 AND l.expires_at<>0 AND l.expires_at<=?");
        else if (str_eq(value, S("revoked")))
            finder_where(f, NULL, "l.revoked_at<>0 AND ?<>0");
        else
            return api_fail(rq, ERR_INVALID, "invalid_parameter", p->name, "status: active, expired or revoked");
    } else {
        return api_fail(rq, ERR_INVALID, "unknown_parameter", p->name, "%s: no such parameter", p->name);
    }
    return ERR_OK;
}

typedef enum err filter_fn(struct api *rq, struct finder *f, const struct filter_pair *p);
typedef enum err row_fn(struct api *rq, struct str id, struct jv **ret);

/* A list that is searched; each row is read by its id. */
static enum err list_found(struct api *rq, const struct finder_table *table, filter_fn *one, row_fn *row)
{
    struct filter filter = {0};
    struct finder *f = finder_new(rq, table);
    struct strbuf ids = {0}, text = {0};
    struct jv *items = NULL;
    enum err err = filter_of_query(rq, "format", &filter);
    for (size_t i = 0; !err && i < filter.n; i++) {
        err = one(rq, f, &filter.pairs[i]);
        sb_addf(&text, "%s=%s\n", filter.pairs[i].name, filter.pairs[i].value);
    }
    finder_bind(f, sb_str(&text));
    if (!err)
        err = finder_page(f, &ids, &items);
    struct str rest = sb_str(&ids), id;
    while (!err && str_next(&rest, '\n', &id) && id.n) {
        struct jv *v = NULL;
        err = row(rq, id, &v);
        if (!err)
            jv_push(items, v);
    }
    finder_free(&f);
    filter_free(&filter);
    sb_free(&ids);
    sb_free(&text);
    return err;
}

static enum err customer_row(struct api *rq, struct str id, struct jv **ret)
{
    int64_t rev;
    return customer_load(rq, id, ret, &rev);
}

static enum err customer_list(struct api *rq)
{
    return list_found(rq, &CUSTOMER_TABLE, customer_filter, customer_row);
}

static enum err customer_check(struct api *rq)
{
    struct str email = jv_get_str(rq->in, "email");
    bool good = !email.n || (str_index(email, '@') > 0 && str_index(email, '@') == str_rindex(email, '@') &&
                             str_index(email, '@') < (ptrdiff_t)email.n - 1 && str_index(email, ' ') < 0);
    if (!good)
        return api_fail(rq, ERR_INVALID, "invalid_field", "email", "email: expected one address");
    return ERR_OK;
}

/* The slug of the body, or one made of the name that no customer of the vendor has. */
static enum err customer_slug(struct api *rq, struct strbuf *ret)
{
    struct str slug = jv_get_str(rq->in, "slug"), name = jv_get_str(rq->in, "name");
    if (slug.p) {
        if (!api_slug_valid(slug))
            return api_fail(rq, ERR_INVALID, "invalid_field", "slug", "slug: lower-case letters and digits, single . _ - between them");
        sb_add(ret, slug);
        return ERR_OK;
    }
    if (!name.p)
        return api_fail(rq, ERR_INVALID, "missing_field", "name", "name: missing");
    struct strbuf base = {0};
    api_slug_of(name, "customer", &base);
    enum err err = ERR_OK;
    bool taken = true;
    for (int i = 1; !err && taken && i <= SLUG_TRIES; i++) {
        struct store_stmt *st = NULL;
        sb_reset(ret);
        sb_add(ret, sb_str(&base));
        if (i > 1)
            sb_addf(ret, "-%d", i);
        err = store_query(rq->store, &st, &rq->error, "SELECT 1 FROM customers WHERE vendor_id=? AND slug=? AND archived_at=0", "zs",
                          rq->vendor_id, sb_str(ret));
        if (!err)
            err = store_step(st, &taken, &rq->error);
        store_done(&st);
    }
    sb_free(&base);
    if (!err && taken)
        err = api_fail(rq, ERR_CONFLICT, "conflict", "slug", "slug: give one; those made of the name are taken");
    return err;
}

static enum err customer_create(struct api *rq)
{
    char id[ID_MAX];
    struct strbuf slug = {0}, metadata = {0};
    struct str name = jv_get_str(rq->in, "name");
    enum err err = customer_check(rq);
    if (!err)
        err = customer_slug(rq, &slug);
    if (err)
        goto out;
    if (api_has(rq, "metadata"))
        jv_dump(jv_get(rq->in, "metadata"), &metadata);
    id_new("cus_", id);
    err = store_exec(rq->store, NULL, &rq->error,
                     "INSERT INTO customers (id, vendor_id, slug, name, email, external_id, metadata, disabled, requests_per_second, created_at,"
                     " updated_at) VALUES (?,?,?,?,COALESCE(?,''),COALESCE(?,''),?,?,?,?,?)",
                     "zzsssssbiii", id, rq->vendor_id, sb_str(&slug), name.p ? name : sb_str(&slug), jv_get_str(rq->in, "email"),
                     jv_get_str(rq->in, "external_id"), metadata.n ? sb_str(&metadata) : S("{}"), jv_get_bool(rq->in, "disabled", false),
                     jv_get_int(rq->in, "requests_per_second", 0), rq->now_s, rq->now_s);
    if (!err)
        err = outbox_put_kind(rq->store, 'c', str_c(id), true, &rq->error);
    if (!err)
        err = customer_answer(rq, str_c(id));
    if (!err) {
        rq->after = jv_copy(rq->out);
        api_created(rq, "/api/v1/customers/", id);
    }
out:
    sb_free(&slug);
    sb_free(&metadata);
    return err;
}

static enum err customer_update(struct api *rq)
{
    int64_t rev;
    struct strbuf metadata = {0};
    enum err err = customer_check(rq);
    if (!err)
        err = customer_load(rq, rq->params[0], &rq->before, &rev);
    if (!err)
        err = api_check_etag(rq, rev);
    if (err)
        return err;
    if (api_has(rq, "metadata"))
        jv_dump(jv_get(rq->in, "metadata"), &metadata);
    bool disabled = jv_get_bool(rq->in, "disabled", jv_get_bool(rq->before, "disabled", true));
    err = store_exec(rq->store, NULL, &rq->error,
                     "UPDATE customers SET name=COALESCE(?,name), email=COALESCE(?,email), external_id=COALESCE(?,external_id),"
                     " metadata=COALESCE(?,metadata), disabled=?, requests_per_second=?, updated_at=?, rev=rev+1 WHERE id=?",
                     "ssssbiis", jv_get_str(rq->in, "name"), api_in_text(rq, "email"), api_in_text(rq, "external_id"),
                     metadata.n ? sb_str(&metadata) : (struct str){NULL, 0}, disabled,
                     jv_get_int(rq->in, "requests_per_second", jv_get_int(rq->before, "requests_per_second", 0)), rq->now_s, rq->params[0]);
    if (!err)
        err = outbox_put_kind(rq->store, 'c', rq->params[0], true, &rq->error);
    if (!err)
        err = customer_answer(rq, rq->params[0]);
    if (!err)
        rq->after = jv_copy(rq->out);
    sb_free(&metadata);
    return err;
}

/* k: of every live credential of the customer is gone, and they are revoked. */
static enum err customer_revoke_credentials(struct api *rq, struct str customer_id)
{
    struct store_stmt *st = NULL;
    struct strbuf hashes = {0};
    bool row;
    enum err err =
        store_query(rq->store, &st, &rq->error, "SELECT hash FROM credentials WHERE customer_id=? AND revoked_at=0", "s", customer_id);
    while (!err) {
        err = store_step(st, &row, &rq->error);
        if (err || !row)
            break;
        sb_add(&hashes, store_col_str(st, 0));
        sb_add_char(&hashes, '\n');
    }
    store_done(&st);
    struct str rest = sb_str(&hashes), hash;
    while (!err && str_next(&rest, '\n', &hash))
        err = outbox_put_kind(rq->store, 'k', hash, false, &rq->error);
    if (!err)
        err = store_exec(rq->store, NULL, &rq->error, "UPDATE credentials SET revoked_at=? WHERE customer_id=? AND revoked_at=0", "is",
                         rq->now_s, customer_id);
    sb_free(&hashes);
    return err;
}

static enum err customer_delete(struct api *rq)
{
    int64_t rev;
    bool used = false;
    enum err err = customer_load(rq, rq->params[0], &rq->before, &rev);
    if (!err)
        err = api_check_etag(rq, rev);
    if (!err)
        err = api_lookup(rq, "SELECT 1 FROM licenses WHERE customer_id=? AND archived_at=0 LIMIT 1", rq->params[0], NULL, &used);
    if (!err && used)
        err = api_fail(rq, ERR_CONFLICT, "customer_in_use", NULL, "the customer has licenses; delete them first");
    if (!err)
        err = customer_revoke_credentials(rq, rq->params[0]);
    if (!err)
        err = store_exec(rq->store, NULL, &rq->error,
                         "UPDATE sessions SET revoked_at=? WHERE revoked_at=0 AND user_id IN (SELECT id FROM users WHERE customer_id=?)", "is", rq->now_s,
                         rq->params[0]);
    if (!err)
        err = store_exec(rq->store, NULL, &rq->error,
                         "UPDATE users SET removed_at=?, password_hash='', totp_sealed='', totp_enabled_at=0, invite_hash='', invite_expires_at=0, rev=rev+1"
                         " WHERE customer_id=? AND removed_at=0",
                         "is", rq->now_s, rq->params[0]);
    if (!err)
        err = store_exec(rq->store, NULL, &rq->error, "UPDATE customers SET archived_at=?, rev=rev+1 WHERE id=?", "is", rq->now_s,
                         rq->params[0]);
    if (!err)
        err = outbox_put_kind(rq->store, 'c', rq->params[0], false, &rq->error);
    return err;
}

/* ---- credentials --------------------------------------------------------------------------------------------------------- */

#define CREDENTIAL_COLUMNS                                                                                                                 \
    "id, customer_id, license_id, name, prefix, allowed_cidrs, created_at, expires_at, revoked_at, rotated_to, last_used_at, "             \
    "last_used_from"

static struct jv *credential_print(const struct store_stmt *st, int64_t now_s)
{
    struct jv *v = jv_object();
    int64_t expires_at = store_col_int(st, 7), revoked_at = store_col_int(st, 8);
    struct str rotated_to = store_col_str(st, 9);
    jv_set_str(v, "id", store_col_str(st, 0));
    jv_set_str(v, "customer_id", store_col_str(st, 1));
    if (store_col_null(st, 2))
        jv_set_c(v, "license_id", NULL);
    else
        jv_set_str(v, "license_id", store_col_str(st, 2));
    jv_set_str(v, "name", store_col_str(st, 3));
    jv_set_str(v, "prefix", store_col_str(st, 4));
    jv_set_c(v, "status", revoked_at ? "revoked" : expires_at && now_s >= expires_at ? "expired" : "active");
    api_set_json(v, "allowed_cidrs", store_col_str(st, 5));
    jv_set_time(v, "created_at", store_col_int(st, 6));
    jv_set_time(v, "expires_at", expires_at);
    jv_set_time(v, "revoked_at", revoked_at);
    if (rotated_to.n)
        jv_set_str(v, "rotated_to", rotated_to);
    else
        jv_set_c(v, "rotated_to", NULL);
    jv_set_time(v, "last_used_at", store_col_int(st, 10));
    jv_set_str(v, "last_used_from", store_col_str(st, 11));
    return v;
}

/* The customer of the path belongs to the caller. */
static enum err credential_parent(struct api *rq, struct strbuf *ret_slug)
{
    struct jv *customer = NULL;
    int64_t rev;
    enum err err = customer_load(rq, rq->params[0], &customer, &rev);
    if (!err && ret_slug)
        sb_add(ret_slug, jv_get_str(customer, "slug"));
    jv_free(customer);
    return err;
}

static enum err credential_load(struct api *rq, struct str id, struct jv **ret, struct strbuf *ret_hash)
{
    struct store_stmt *st = NULL;
    bool row = false;
    enum err err =
        store_query(rq->store, &st, &rq->error, "SELECT " CREDENTIAL_COLUMNS ", hash FROM credentials WHERE id=? AND customer_id=?", "ss",
                    id, rq->params[0]);
    if (!err)
        err = store_step(st, &row, &rq->error);
    if (!err && !row)
        err = api_not_found(rq, "credential");
    if (!err) {
        *ret = credential_print(st, rq->now_s);
        if (ret_hash)
            sb_add(ret_hash, store_col_str(st, 12));
    }
    store_done(&st);
    return err;
}

static enum err credential_list(struct api *rq)
{
    struct page page;
    struct store_stmt *st = NULL;
    bool row;
    enum err err = api_page(rq, &page);
    if (!err)
        err = credential_parent(rq, NULL);
    if (err)
        return err;
    struct jv *items = api_list(rq);
    err = store_query(rq->store, &st, &rq->error,
                      "SELECT " CREDENTIAL_COLUMNS
                      " FROM credentials WHERE customer_id=? AND (created_at, id) > (?,?) ORDER BY created_at, id LIMIT ?",
                      "sizi", rq->params[0], page.after_key, page.after_id, (int64_t)page.limit + 1);
    while (!err) {
        err = store_step(st, &row, &rq->error);
        if (err || !row || !api_page_take(&page, rq->out, store_col_int(st, 6), store_col_str(st, 0).p))
            break;
        jv_push(items, credential_print(st, rq->now_s));
    }
    store_done(&st);
    return err;
}

static enum err credential_row(struct api *rq, struct str id, struct jv **ret)
{
    struct store_stmt *st = NULL;
    bool row = false;
    enum err err = store_query(rq->store, &st, &rq->error, "SELECT " CREDENTIAL_COLUMNS " FROM credentials WHERE id=? AND vendor_id=?", "sz",
                               id, rq->vendor_id);
    if (!err)
        err = store_step(st, &row, &rq->error);
    if (!err && row)
        *ret = credential_print(st, rq->now_s);
    store_done(&st);
    return !err && !row ? api_not_found(rq, "credential") : err;
}

static enum err credentials_of_all(struct api *rq)
{
    return list_found(rq, &CREDENTIAL_TABLE, credential_filter, credential_row);
}

static enum err credential_get(struct api *rq)
{
    enum err err = credential_parent(rq, NULL);
    return err ? err : credential_load(rq, rq->params[1], &rq->out, NULL);
}

struct credential_make {
    struct str name, license_id, cidrs; /* license_id {NULL,0}: none; cidrs: JSON */
    int64_t expires_at;
    bool is_successor; /* of one that was counted */
};

/* Those bound to a license are counted against its limit, where it has one: service accounts of an application. */
static enum err credential_check_limit(struct api *rq, struct str license_id)
{
    bool is_full = false;
    enum err err = api_lookup(rq,
                              "SELECT 1 FROM licenses l WHERE l.id=? AND json_type(l.limits,'$.custom.max_credentials')='integer' AND"
                              " (SELECT count(*) FROM credentials c WHERE c.license_id=l.id AND c.revoked_at=0) >="
                              " json_extract(l.limits,'$.custom.max_credentials')",
                              license_id, NULL, &is_full);
    if (!err && is_full)
        err = api_fail(rq, ERR_CONFLICT, "limit_reached", "license_id", "license_id: the license has as many credentials as its limit max_credentials allows");
    return err;
}

/* Inserts one, and answers it with its secret. */
static enum err credential_make(struct api *rq, const struct credential_make *m, struct str username, char id[ID_MAX])
{
    char secret[CREDENTIAL_TEXT_MAX], hash[CREDENTIAL_HASH_MAX];
    struct strbuf path = {0};
    bool full = false;
    enum err err =
        api_lookup(rq, "SELECT 1 FROM credentials WHERE customer_id=? AND revoked_at=0 LIMIT 1 OFFSET 999", rq->params[0], NULL, &full);
    if (!err && full)
        err = api_fail(rq, ERR_CONFLICT, "too_many_credentials", NULL, "a customer has at most %d live credentials", CREDENTIALS_MAX);
    if (!err && m->license_id.p && !m->is_successor)
        err = credential_check_limit(rq, m->license_id);
    if (err)
        return err;
    id_new("crd_", id);
    credential_new("pgc_", secret);
    credential_hash(rq->admin->keys, str_c(secret), hash);
    err = store_exec(rq->store, NULL, &rq->error,
                     "INSERT INTO credentials (id, customer_id, license_id, name, hash, prefix, allowed_cidrs, created_at, expires_at)"
                     " VALUES (?,?,?,?,?,?,?,?,?)",
                     "zssszssii", id, rq->params[0], m->license_id, m->name, hash, str_sub(str_c(secret), 0, CREDENTIAL_SHOWN_PREFIX),
                     m->cidrs, rq->now_s, m->expires_at);
    if (!err)
        err = outbox_put_kind(rq->store, 'k', str_c(hash), true, &rq->error);
    if (!err)
        err = credential_load(rq, str_c(id), &rq->out, NULL);
    if (!err) {
        rq->after = jv_copy(rq->out);
        jv_set_str(rq->out, "username", username);
        jv_set_c(rq->out, "secret", secret);
        sb_addf(&path, "/api/v1/customers/%.*s/credentials/", STR(rq->params[0]));
        api_created(rq, path.p, id);
        sb_free(&path);
    }
    mem_cleanse(secret, sizeof secret);
    return err;
}

static enum err credential_check_cidrs(struct api *rq)
{
    const struct jv *list = jv_get(rq->in, "allowed_cidrs");
    for (size_t i = 0; i < jv_len(list); i++) {
        struct cidr c;
        char field[API_FIELD_MAX];
        struct error error = {0};
        api_field(field, "allowed_cidrs[%zu]", i);
        if (cidr_parse(jv_str(jv_at(list, i)), &c, &error))
            return api_fail(rq, ERR_INVALID, "invalid_field", field, "%s: %s", field, error.text);
    }
    return ERR_OK;
}

static enum err credential_create(struct api *rq)
{
    char id[ID_MAX];
    struct strbuf slug = {0}, cidrs = {0}, owner = {0};
    struct credential_make m = {.name = jv_get_str(rq->in, "name"), .license_id = jv_get_str(rq->in, "license_id")};
    enum err err = credential_parent(rq, &slug);
    if (!err)
        err = api_time_end(rq, rq->in, "expires_at", "expires_at", &m.expires_at);
    if (!err && m.expires_at && m.expires_at <= rq->now_s)
        err = api_fail(rq, ERR_INVALID, "invalid_window", "expires_at", "expires_at: in the past");
    if (!err)
        err = credential_check_cidrs(rq);
    if (!err && m.license_id.p) {
        bool found = false;
        err = api_lookup(rq, "SELECT customer_id FROM licenses WHERE id=? AND archived_at=0", m.license_id, &owner, &found);
        if (!err && (!found || !str_eq(sb_str(&owner), rq->params[0])))
            err = api_fail(rq, ERR_INVALID, "unknown_reference", "license_id", "license_id: the customer has no such license");
    }
    if (!err) {
        if (api_has(rq, "allowed_cidrs"))
            jv_dump(jv_get(rq->in, "allowed_cidrs"), &cidrs);
        m.cidrs = cidrs.n ? sb_str(&cidrs) : S("[]");
        err = credential_make(rq, &m, sb_str(&slug), id);
    }
    sb_free(&slug);
    sb_free(&cidrs);
    sb_free(&owner);
    return err;
}

static enum err credential_delete(struct api *rq)
{
    struct strbuf hash = {0};
    enum err err = credential_parent(rq, NULL);
    if (!err)
        err = credential_load(rq, rq->params[1], &rq->before, &hash);
    if (!err)
        err = store_exec(rq->store, NULL, &rq->error, "UPDATE credentials SET revoked_at=? WHERE id=? AND revoked_at=0", "is", rq->now_s,
                         rq->params[1]);
    if (!err)
        err = outbox_put_kind(rq->store, 'k', sb_str(&hash), false, &rq->error);
    api_audit_object(rq, rq->params[1].p);
    sb_free(&hash);
    return err;
}

static enum err credential_rotate(struct api *rq)
{
    char id[ID_MAX];
    struct strbuf slug = {0}, hash = {0}, cidrs = {0};
    uint64_t overlap_ms = OVERLAP_DEFAULT_MS;
    struct error error = {0};
    struct credential_make m = {0};
    enum err err = credential_parent(rq, &slug);
    if (!err)
        err = credential_load(rq, rq->params[1], &rq->before, &hash);
    if (!err && !str_eq(jv_get_str(rq->before, "status"), S("active")))
        err = api_fail(rq, ERR_CONFLICT, "action_not_allowed", NULL, "the credential is not active");
    if (!err && jv_get_str(rq->before, "rotated_to").n)
        err = api_fail(rq, ERR_CONFLICT, "action_not_allowed", NULL, "the credential was rotated already");
    if (!err && api_has(rq, "overlap") && clock_parse_duration(jv_get_str(rq->in, "overlap"), &overlap_ms, &error))
        err = api_fail(rq, ERR_INVALID, "invalid_field", "overlap", "overlap: %s", error.text);
    if (!err && overlap_ms > OVERLAP_MAX_MS)
        err = api_fail(rq, ERR_INVALID, "invalid_field", "overlap", "overlap: at most 90d");
    if (!err)
        err = api_time_end(rq, rq->in, "expires_at", "expires_at", &m.expires_at);
    if (!err && m.expires_at && m.expires_at <= rq->now_s)
        err = api_fail(rq, ERR_INVALID, "invalid_window", "expires_at", "expires_at: in the past");
    if (err)
        goto out;

    jv_dump(jv_get(rq->before, "allowed_cidrs"), &cidrs);
    m.name = jv_get_str(rq->in, "name").p ? jv_get_str(rq->in, "name") : jv_get_str(rq->before, "name");
    m.license_id = jv_get_str(rq->before, "license_id");
    m.cidrs = sb_str(&cidrs);
    m.is_successor = true;
    err = credential_make(rq, &m, sb_str(&slug), id);
    /* The old one ends when the overlap does, or when it would have ended anyway. */
    int64_t end = rq->now_s + (int64_t)(overlap_ms / 1000);
    if (!err)
        err = store_exec(rq->store, NULL, &rq->error,
                         "UPDATE credentials SET rotated_to=?1, expires_at=CASE WHEN expires_at=0 OR expires_at>?2 THEN ?2 ELSE expires_at "
                         "END WHERE id=?3",
                         "zis", id, end, rq->params[1]);
    if (!err)
        err = outbox_put_kind(rq->store, 'k', sb_str(&hash), true, &rq->error);
out:
    sb_free(&slug);
    sb_free(&hash);
    sb_free(&cidrs);
    return err;
}

/* ---- the customer's own, in the portal ------------------------------------------------------------------------------------ */

static enum err portal_credential_create(struct api *rq)
{
    rq->params[0] = str_c(rq->customer_id);
    enum err err = credential_create(rq);
    if (!err) {
        mem_free(rq->location);
        rq->location = mem_strdup("/portal/v1/credentials");
    }
    return err;
}

static enum err portal_credential_delete(struct api *rq)
{
    rq->params[1] = rq->params[0];
    rq->params[0] = str_c(rq->customer_id);
    return credential_delete(rq);
}

static const struct query_param CUSTOMER_PARAMS[] = {
    {"id", "only this one"},
    {"slug", "only this one"},
    {"name", "only with this name, whatever its case; \"Acme*\": names that begin so"},
    {"email", "only with this address, whatever its case"},
    {"external_id", "only these"},
    {"disabled", "true or false"},
    {"q", "words, or their beginnings: of name, slug, email, external_id"},
    {"metadata.*", "metadata.region=eu: only with this value under this key"},
    {"sort", "created_at (default), updated_at, name; -created_at goes backwards"},
    {NULL, NULL},
};
static const struct query_param CREDENTIAL_PARAMS[] = {
    {"prefix", "first characters of the secret"},
    {"customer_id", "only of this customer"},
    {"license_id", "only those bound to this license"},
    {"name", "only with this name"},
    {"status", "active, expired or revoked"},
    {"expires_before", "an instant, or a date of the vendor's zone"},
    {"expires_after", "an instant or a date"},
    {"sort", "created_at (default), expires_at; -created_at goes backwards"},
    {NULL, NULL},
};

#define CUS "/api/v1/customers"
const struct route CUSTOMER_ROUTES[] = {
    {HEAD_GET, CUS, customer_list, ROLE_VIEWER, ROUTE_LIST | ROUTE_COUNT, NULL, &CUSTOMER, CUSTOMER_PARAMS, "customer.list", "Customers"},
    {HEAD_POST, CUS, customer_create, ROLE_LICENSES, 0, &CUSTOMER_CREATE, &CUSTOMER, NULL, "customer.create", "Make a customer"},
    {HEAD_GET, CUS "/{id}", customer_get, ROLE_VIEWER, 0, NULL, &CUSTOMER, NULL, "customer.get", "One customer"},
    {HEAD_PATCH, CUS "/{id}", customer_update, ROLE_LICENSES, 0, &CUSTOMER_UPDATE, &CUSTOMER, NULL, "customer.update", "Change a customer"},
    {HEAD_DELETE, CUS "/{id}", customer_delete, ROLE_LICENSES, 0, NULL, NULL, NULL, "customer.delete",
     "Archive a customer without licenses; its credentials die, its people are removed"},
    {HEAD_GET, CUS "/{id}/credentials", credential_list, ROLE_VIEWER, ROUTE_LIST, NULL, &CREDENTIAL, NULL, "credential.list",
     "Credentials of a customer"},
    {HEAD_POST, CUS "/{id}/credentials", credential_create, ROLE_LICENSES, 0, &CREDENTIAL_CREATE, &CREDENTIAL, NULL, "credential.create",
     "Make a credential; its secret is shown once"},
    {HEAD_GET, CUS "/{id}/credentials/{credential_id}", credential_get, ROLE_VIEWER, 0, NULL, &CREDENTIAL, NULL, "credential.get",
     "One credential"},
    {HEAD_DELETE, CUS "/{id}/credentials/{credential_id}", credential_delete, ROLE_LICENSES, 0, NULL, NULL, NULL, "credential.delete",
     "Revoke a credential"},
    {HEAD_POST, CUS "/{id}/credentials/{credential_id}/rotate", credential_rotate, ROLE_LICENSES, 0, &CREDENTIAL_ROTATE, &CREDENTIAL, NULL,
     "credential.rotate", "Make its successor; the old secret goes on for the overlap"},
    {HEAD_POST, "/portal/v1/credentials", portal_credential_create, ROLE_CUSTOMER_ADMIN, 0, &CREDENTIAL_CREATE, &CREDENTIAL, NULL,
     "portal.credential.create", "Make a credential of one's own; its secret is shown once"},
    {HEAD_DELETE, "/portal/v1/credentials/{id}", portal_credential_delete, ROLE_CUSTOMER_ADMIN, 0, NULL, NULL, NULL,
     "portal.credential.delete", "Revoke one of one's own credentials"},
    {HEAD_GET, "/api/v1/credentials", credentials_of_all, ROLE_VIEWER, ROUTE_LIST | ROUTE_COUNT, NULL, &CREDENTIAL, CREDENTIAL_PARAMS,
     "credential.list_all", "Credentials of all customers"},
    {.path = NULL},
};
