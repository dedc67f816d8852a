#include "signer.h"

#include <string.h>

#include "api_routes.h"
#include "db.h"
#include "pullgate/clock.h"
#include "pullgate/jws.h"
#include "pullgate/log.h"
#include "pullgate/mem.h"

#define JWKS_CACHE_S 300 /* a set may be kept this long; who meets an unknown kid asks anew (docs/LICENSE_FILE.md) */

/* ---- start ------------------------------------------------------------------------------------------------------------- */

/* Rows of keys whose file is here and that have none: after the first start, after a rotation that was cut short, after a restore. */
static enum err signer_rows(struct store *s, void *arg, struct error *reterr)
{
    struct admin *a = arg;
    struct keyring_license_key keys[KEYRING_LICENSE_KEYS_MAX];
    size_t n = keyring_license_keys(a->keys, keys);
    enum err err = ERR_OK;
    for (size_t i = 0; !err && i < n; i++) {
        struct strbuf x = {0};
        base64url_encode((struct str){(const char *)keys[i].public_key, 32}, &x);
        err = store_exec(s, NULL, reterr, "INSERT OR IGNORE INTO signing_keys (kid, public_key, created_at) VALUES (?,?,?)", "zsi", keys[i].kid,
                         sb_str(&x), keys[i].made_s);
        sb_free(&x);
    }
    return err;
}

static enum err signer_find(struct store *s, void *arg, struct error *reterr)
{
    char kid[SEAL_KID_MAX];
    struct admin *a = arg;
    return signer_kid(s, a->keys, kid, reterr);
}

enum err signer_start(struct admin *a, struct error *reterr)
{
    struct error none = {0};
    char kid[SEAL_KID_MAX];
    enum err err = keyring_license_open(a->keys, a->cfg->keys.path, false, NULL, reterr);
    if (!err)
        err = db_run(a->writer, DB_TRANSACTION, signer_rows, a, reterr);
    if (err || db_run(a->writer, DB_PLAIN, signer_find, a, &none) == ERR_OK)
        return err;
    err = keyring_license_open(a->keys, a->cfg->keys.path, true, kid, reterr);
    if (!err)
        err = db_run(a->writer, DB_TRANSACTION, signer_rows, a, reterr);
    if (!err)
        log_info("license files are signed by a key that was just made: %s", kid);
    return err;
}

enum err signer_kid(struct store *s, const struct keyring *k, char ret[SEAL_KID_MAX], struct error *reterr)
{
    struct store_stmt *st = NULL;
    bool row = false, found = false;
    enum err err = store_query(s, &st, reterr, "SELECT kid FROM signing_keys WHERE retired_at=0 ORDER BY created_at DESC, kid DESC", "");
    while (!err && !found) {
        err = store_step(st, &row, reterr);
        if (err || !row)
            break;
        struct str kid = store_col_str(st, 0);
        found = kid.n < SEAL_KID_MAX && keyring_license_has(k, kid);
        if (found) {
            memcpy(ret, kid.p, kid.n);
            ret[kid.n] = '\0';
        }
    }
    store_done(&st);
    if (!err && !found)
        err = error_set(reterr, ERR_UNAVAILABLE, "there is no key that signs license files");
    return err;
}

static bool has_public_url(const struct admin *a)
{
    const char *url = admin_config(a)->admin.public_url;
    return url && *url;
}

void signer_url(const struct admin *a, const char *path, struct strbuf *ret)
{
    struct str base = has_public_url(a) ? str_c(admin_config(a)->admin.public_url) : S("");
    while (base.n && base.p[base.n - 1] == '/')
        base.n--;
    sb_add(ret, base);
    sb_addc(ret, path);
}

const char *signer_issuer(const struct admin *a)
{
    return has_public_url(a) ? admin_config(a)->admin.public_url : "pullgate";
}

/* ---- resources --------------------------------------------------------------------------------------------------------- */

static const struct field KEY_FIELDS[] = {
    {.name = "kid", .type = FIELD_STRING},
    {.name = "status", .type = FIELD_STRING, .one_of = "signs|standby|retired|compromised"},
    {.name = "public_key", .type = FIELD_STRING, .about = "base64url, 32 bytes of Ed25519"},
    {.name = "created_at", .type = FIELD_TIME},
    {.name = "retired_at", .type = FIELD_TIME},
    {.name = NULL},
};
static const struct schema KEY = {"SigningKey", KEY_FIELDS};
static const struct field NO_FIELDS[] = {{.name = NULL}};
static const struct schema KEY_CREATE = {"SigningKeyCreate", NO_FIELDS};
static const struct field RETIRE_FIELDS[] = {
    {.name = "compromised", .type = FIELD_BOOL, .about = "somebody else may have it: nothing that it signed is to be believed any more"},
    {.name = NULL},
};
static const struct schema KEY_RETIRE = {"SigningKeyRetire", RETIRE_FIELDS};

#define KEY_COLUMNS "kid, public_key, created_at, retired_at, compromised"

static struct jv *key_print(const struct store_stmt *st, const char *current)
{
    struct jv *v = jv_object();
    struct str kid = store_col_str(st, 0);
    bool is_current = str_eq_c(kid, current);
    const char *status = is_current ? "signs" : "standby";
    if (store_col_int(st, 3))
        status = store_col_int(st, 4) ? "compromised" : "retired";
    jv_set_str(v, "kid", kid);
    jv_set_c(v, "status", status);
    jv_set_str(v, "public_key", store_col_str(st, 1));
    jv_set_time(v, "created_at", store_col_int(st, 2));
    jv_set_time(v, "retired_at", store_col_int(st, 3));
    return v;
}

static enum err key_load(struct api *rq, struct str kid, struct jv **ret)
{
    struct store_stmt *st = NULL;
    char current[SEAL_KID_MAX];
    bool row = false;
    enum err err = signer_kid(rq->store, rq->admin->keys, current, &rq->error);
    if (!err)
        err = store_query(rq->store, &st, &rq->error, "SELECT " KEY_COLUMNS " FROM signing_keys WHERE kid=?", "s", kid);
    if (!err)
        err = store_step(st, &row, &rq->error);
    if (!err && !row)
        err = api_not_found(rq, "signing key");
    if (!err)
        *ret = key_print(st, current);
    store_done(&st);
    return err;
}

static enum err key_list(struct api *rq)
{
    struct page page;
    struct store_stmt *st = NULL;
    char current[SEAL_KID_MAX];
    bool row;
    enum err err = api_page(rq, &page);
    if (!err)
        err = signer_kid(rq->store, rq->admin->keys, current, &rq->error);
    if (err)
        return err;
    struct jv *items = api_list(rq);
    err = store_query(rq->store, &st, &rq->error,
                      "SELECT " KEY_COLUMNS " FROM signing_keys WHERE (created_at, kid) > (?,?) ORDER BY created_at, kid LIMIT ?", "izi",
                      page.after_key, page.after_id, (int64_t)page.limit + 1);
    while (!err) {
        err = store_step(st, &row, &rq->error);
        if (err || !row || !api_page_take(&page, rq->out, store_col_int(st, 2), store_col_str(st, 0).p))
            break;
        jv_push(items, key_print(st, current));
    }
    store_done(&st);
    return err;
}

static enum err key_get(struct api *rq)
{
    return key_load(rq, rq->params[0], &rq->out);
}

/* They sign for every vendor of the deployment. */
static enum err key_check_right(struct api *rq)
{
    bool found = false;
    if (rq->role == ROLE_OPERATOR)
        return ERR_OK;
    enum err err = api_lookup(rq, "SELECT 1 FROM vendors WHERE id=? AND is_first=1", str_c(rq->vendor_id), NULL, &found);
    if (!err && !found)
        err = api_fail(rq, ERR_DENIED, "role_not_allowed", NULL, "the keys are the deployment's: an operator or an owner of the first vendor changes them");
    return err;
}

static enum err key_create(struct api *rq)
{
    char kid[SEAL_KID_MAX];
    struct keyring_license_key keys[KEYRING_LICENSE_KEYS_MAX];
    enum err err = key_check_right(rq);
    if (err)
        return err;
    if (rq->is_dry_run) { /* a file could not be taken back with the transaction */
        rq->out = jv_object();
        jv_set_c(rq->out, "kid", "new");
        jv_set_c(rq->out, "status", "signs");
        jv_set_c(rq->out, "public_key", "");
        jv_set_time(rq->out, "created_at", rq->now_s);
        jv_set_time(rq->out, "retired_at", 0);
        return ERR_OK;
    }
    err = keyring_license_open(rq->admin->keys, rq->admin->cfg->keys.path, true, kid, &rq->error);
    if (err == ERR_CONFLICT)
        return api_fail(rq, ERR_CONFLICT, "too_many_keys", NULL, "there are %d keys already; remove files of compromised ones and start again",
                        KEYRING_LICENSE_KEYS_MAX);
    if (err)
        return err;
    size_t n = keyring_license_keys(rq->admin->keys, keys);
    for (size_t i = 0; !err && i < n; i++) {
        struct strbuf x = {0};
        if (strcmp(keys[i].kid, kid) != 0)
            continue;
        base64url_encode((struct str){(const char *)keys[i].public_key, 32}, &x);
        /* Later than every other, also within a second: it signs from now on. */
        err = store_exec(rq->store, NULL, &rq->error,
                         "INSERT INTO signing_keys (kid, public_key, created_at) SELECT ?1, ?2, max(?3, COALESCE(max(created_at),0)+1) FROM signing_keys",
                         "zsi", kid, sb_str(&x), rq->now_s);
        sb_free(&x);
    }
    if (!err)
        err = key_load(rq, str_c(kid), &rq->out);
    if (!err) {
        rq->after = jv_copy(rq->out);
        api_created(rq, "/api/v1/signing-keys/", kid);
    }
    return err;
}

static enum err key_retire(struct api *rq)
{
    char current[SEAL_KID_MAX];
    struct error error = {0};
    bool compromised = jv_get_bool(rq->in, "compromised", false);
    enum err err = key_check_right(rq);
    if (!err)
        err = key_load(rq, rq->params[0], &rq->before);
    if (err)
        return err;
    err = store_exec(rq->store, NULL, &rq->error,
                     "UPDATE signing_keys SET retired_at=CASE retired_at WHEN 0 THEN ? ELSE retired_at END, compromised=max(compromised,?) WHERE kid=?",
                     "ibs", rq->now_s, compromised, rq->params[0]);
    if (!err && signer_kid(rq->store, rq->admin->keys, current, &error))
        err = api_fail(rq, ERR_CONFLICT, "last_signing_key", NULL, "no other key signs: make one first");
    if (!err)
        err = key_load(rq, rq->params[0], &rq->out);
    if (!err)
        rq->after = jv_copy(rq->out);
    return err;
}

static enum err jwks_get(struct api *rq)
{
    struct store_stmt *st = NULL;
    struct jv *doc = jv_object(), *list = jv_array();
    bool row;
    enum err err = store_query(rq->store, &st, &rq->error,
                               "SELECT kid, public_key FROM signing_keys WHERE compromised=0 ORDER BY created_at DESC, kid DESC", "");
    jv_set(doc, "keys", list);
    while (!err) {
        struct strbuf x = {0};
        err = store_step(st, &row, &rq->error);
        if (err || !row)
            break;
        if (base64url_decode(store_col_str(st, 1), &x) && x.n == 32)
            jv_push(list, jws_key_print(store_col_str(st, 0).p, (const uint8_t *)x.p));
        sb_free(&x);
    }
    store_done(&st);
    if (!err) {
        jv_dump(doc, &rq->raw);
        rq->raw_type = "application/jwk-set+json";
        rq->cache_s = JWKS_CACHE_S;
    }
    jv_free(doc);
    return err;
}

#define KEYS "/api/v1/signing-keys"
const struct route SIGNER_ROUTES[] = {
    {HEAD_GET, KEYS, key_list, ROLE_VIEWER, ROUTE_LIST, NULL, &KEY, NULL, "signing_key.list", "Keys that sign license files, leases and revocation lists"},
    {HEAD_POST, KEYS, key_create, ROLE_OWNER, 0, &KEY_CREATE, &KEY, NULL, "signing_key.create",
     "Make a key that signs from now on; those before it go on to be believed"},
    {HEAD_GET, KEYS "/{kid}", key_get, ROLE_VIEWER, 0, NULL, &KEY, NULL, "signing_key.get", "One key"},
    {HEAD_POST, KEYS "/{kid}/retire", key_retire, ROLE_OWNER, ROUTE_ACTION, &KEY_RETIRE, &KEY, NULL, "signing_key.retire",
     "It signs no more; what it signed is still believed, unless it is compromised"},
    {HEAD_GET, "/.well-known/jwks.json", jwks_get, ROLE_NONE, ROUTE_PLAIN, NULL, NULL, NULL, "jwks.get",
     "The public keys, as a JWK set"},
    {.path = NULL},
};
