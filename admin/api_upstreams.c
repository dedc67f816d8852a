/* Upstreams: the private registries and their credentials. Passwords go in and never come out: they are sealed in the store. */
#include <stdio.h>
#include <errno.h>
#include <string.h>

#include "api_routes.h"
#include "compile.h"
#include "outbox.h"
#include "pullgate/credential.h"
#include "pullgate/fetch.h"
#include "pullgate/loop.h"
#include "pullgate/mem.h"
#include "pullgate/upstream.h"
#include "sync.h"

#define TEST_MS 20000 /* longest wait for an upstream that is tested; below its own limits' sum */

/* ---- schemas ----------------------------------------------------------------------------------------------------------- */

static const struct field UPSTREAM_FIELDS[] = {
    {.name = "id", .type = FIELD_STRING},
    {.name = "name", .type = FIELD_STRING},
    {.name = "url", .type = FIELD_STRING},
    {.name = "username", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "password_set", .type = FIELD_BOOL, .about = "the password itself is never shown"},
    {.name = "ca", .type = FIELD_TEXT, .flags = FIELD_EMPTY},
    {.name = "redirects", .type = FIELD_STRING, .one_of = "follow|pass"},
    {.name = "redirect_hosts", .type = FIELD_STRINGS},
    {.name = "realm", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "created_at", .type = FIELD_TIME},
    {.name = "updated_at", .type = FIELD_TIME},
    {.name = "etag", .type = FIELD_STRING},
    {.name = NULL},
};
static const struct schema UPSTREAM = {"Upstream", UPSTREAM_FIELDS};

static const struct field UPSTREAM_IN_FIELDS[] = {
    {.name = "name", .type = FIELD_STRING, .flags = FIELD_REQUIRED},
    {.name = "url",
     .type = FIELD_STRING,
     .flags = FIELD_REQUIRED,
     .max = 500,
     .about = "http(s)://host[:port][/prefix], without credentials"},
    {.name = "username", .type = FIELD_STRING, .flags = FIELD_EMPTY | FIELD_NULL},
    {.name = "password",
     .type = FIELD_SECRET,
     .flags = FIELD_EMPTY | FIELD_NULL,
     .max = 4000,
     .about = "write-only; null or empty removes it"},
    {.name = "ca",
     .type = FIELD_TEXT,
     .flags = FIELD_EMPTY | FIELD_NULL,
     .max = 32768,
     .about = "PEM certificates that are trusted besides the system's"},
    {.name = "redirects",
     .type = FIELD_STRING,
     .one_of = "follow|pass",
     .about = "pass hands the upstream's redirects of blobs to the client"},
    {.name = "redirect_hosts",
     .type = FIELD_STRINGS,
     .max = 20,
     .about = "host or host:port to which redirects may go besides the upstream's own"},
    {.name = "realm",
     .type = FIELD_STRING,
     .flags = FIELD_EMPTY | FIELD_NULL,
     .max = 500,
     .about = "token endpoint, where it is on another host"},
    {.name = NULL},
};
static const struct schema UPSTREAM_CREATE = {"UpstreamCreate", UPSTREAM_IN_FIELDS};
static const struct schema UPSTREAM_UPDATE = {"UpstreamUpdate", UPSTREAM_IN_FIELDS};

static const struct field UPSTREAM_TEST_FIELDS[] = {
    {.name = "ok", .type = FIELD_BOOL},
    {.name = "detail", .type = FIELD_STRING, .flags = FIELD_EMPTY, .about = "what to look at, when it is not"},
    {.name = "tested_at", .type = FIELD_TIME},
    {.name = NULL},
};
static const struct schema UPSTREAM_TEST = {"UpstreamTest", UPSTREAM_TEST_FIELDS};

/* ---- reading ----------------------------------------------------------------------------------------------------------- */

#define UPSTREAM_COLUMNS "id, name, url, username, password_sealed<>'', ca, redirects, redirect_hosts, realm, created_at, updated_at, rev"

static struct jv *upstream_print(const struct store_stmt *st)
{
    struct jv *v = jv_object();
    jv_set_str(v, "id", store_col_str(st, 0));
    jv_set_str(v, "name", store_col_str(st, 1));
    jv_set_str(v, "url", store_col_str(st, 2));
    jv_set_str(v, "username", store_col_str(st, 3));
    jv_set_bool(v, "password_set", store_col_int(st, 4) != 0);
    jv_set_str(v, "ca", store_col_str(st, 5));
    jv_set_str(v, "redirects", store_col_str(st, 6));
    api_set_json(v, "redirect_hosts", store_col_str(st, 7));
    jv_set_str(v, "realm", store_col_str(st, 8));
    jv_set_time(v, "created_at", store_col_int(st, 9));
    jv_set_time(v, "updated_at", store_col_int(st, 10));
    api_print_etag(v, store_col_int(st, 11));
    return v;
}

static enum err upstream_load(struct api *rq, struct str id, struct jv **ret, int64_t *ret_rev)
{
    struct store_stmt *st = NULL;
    bool row = false;
    enum err err = store_query(rq->store, &st, &rq->error, "SELECT " UPSTREAM_COLUMNS " FROM upstreams WHERE id=? AND vendor_id=?", "sz",
                               id, rq->vendor_id);
    if (!err)
        err = store_step(st, &row, &rq->error);
    if (!err && !row)
        err = api_not_found(rq, "upstream");
    if (!err) {
        *ret = upstream_print(st);
        *ret_rev = store_col_int(st, 11);
    }
    store_done(&st);
    return err;
}

static enum err upstream_answer(struct api *rq, struct str id)
{
    int64_t rev;
    enum err err = upstream_load(rq, id, &rq->out, &rev);
    if (!err)
        api_set_etag(rq, rev);
    return err;
}

static enum err upstream_get(struct api *rq)
{
    return upstream_answer(rq, rq->params[0]);
}

static enum err upstream_list(struct api *rq)
{
    struct page page;
    struct store_stmt *st = NULL;
    enum err err = api_page(rq, &page);
    if (err)
        return err;
    (void)api_list(rq);
    err = store_query(rq->store, &st, &rq->error,
                      "SELECT " UPSTREAM_COLUMNS
                      " FROM upstreams WHERE vendor_id=? AND (created_at, id) > (?,?) ORDER BY created_at, id LIMIT ?",
                      "zizi", rq->vendor_id, page.after_key, page.after_id, (int64_t)page.limit + 1);
    if (!err)
        err = api_page_rows(rq, &page, st, 9, upstream_print);
    store_done(&st);
    return err;
}

/* ---- checks ------------------------------------------------------------------------------------------------------------ */

static bool has_dot_segment(const char *url)
{
    for (const char *p = url; (p = strstr(p, "/.")) != NULL; p += 2) {
        size_t n = p[2] == '.' ? 3 : 2;
        if (p[n] == '/' || p[n] == '?' || p[n] == '\0')
            return true;
    }
    return false;
}

/* An address that curl will read just as we do, with nothing hidden in it. */
static enum err check_url(struct api *rq, const char *field, const char *url, bool is_base)
{
    struct fetch_url u = {0};
    struct error error = {0};
    if (fetch_url_parse(url, &u, &error))
        return api_fail(rq, ERR_INVALID, "invalid_field", field, "%s: %s", field, error.text);
    bool good = !strpbrk(url, " \t#\\%@") && !has_dot_segment(url) && (!is_base || !strchr(url, '?'));
    fetch_url_free(&u);
    if (!good)
        return api_fail(rq, ERR_INVALID, "invalid_field", field, "%s: expected http(s)://host[:port][/path] and nothing else", field);
    return ERR_OK;
}

static enum err check_redirect_hosts(struct api *rq, const struct jv *hosts)
{
    for (size_t i = 0; i < jv_len(hosts); i++) {
        struct strbuf url = {0};
        struct fetch_url u = {0};
        struct str host = jv_str(jv_at(hosts, i));
        char field[API_FIELD_MAX];
        api_field(field, "redirect_hosts[%zu]", i);
        sb_addf(&url, "http://%.*s/", STR(host));
        bool good = !memchr(host.p, '/', host.n) && !memchr(host.p, '@', host.n) && !memchr(host.p, '?', host.n) &&
                    !memchr(host.p, '#', host.n) && !memchr(host.p, '%', host.n) && !memchr(host.p, '*', host.n) &&
                    fetch_url_parse(url.p, &u, NULL) == ERR_OK;
        fetch_url_free(&u);
        sb_free(&url);
        if (!good)
            return api_fail(rq, ERR_INVALID, "invalid_field", field, "%s: expected host or host:port", field);
    }
    return ERR_OK;
}

static enum err upstream_check(struct api *rq)
{
    const char *url = jv_get_c(rq->in, "url", NULL), *realm = jv_get_c(rq->in, "realm", NULL);
    struct str ca = jv_get_str(rq->in, "ca"), username = jv_get_str(rq->in, "username");
    enum err err = url ? check_url(rq, "url", url, true) : ERR_OK;
    if (!err && realm && *realm)
        err = check_url(rq, "realm", realm, false);
    if (!err)
        err = check_redirect_hosts(rq, jv_get(rq->in, "redirect_hosts"));
    if (err)
        return err;
    if (ca.n && !strstr(jv_get_c(rq->in, "ca", ""), "-----BEGIN CERTIFICATE-----"))
        return api_fail(rq, ERR_INVALID, "invalid_field", "ca", "ca: expected certificates in PEM");
    if (username.n && memchr(username.p, ':', username.n)) /* Basic could not carry it, RFC 7617 2 */
        return api_fail(rq, ERR_INVALID, "invalid_field", "username", "username: a colon cannot be sent");
    return ERR_OK;
}

/* The password of the body sealed for this upstream; "" when it is to be none. *ret untouched when the body does not name it. */
static enum err upstream_seal(struct api *rq, const char *id, struct strbuf *ret, bool *ret_given)
{
    struct str password = jv_get_str(rq->in, "password");
    *ret_given = api_has(rq, "password");
    if (!password.n)
        return ERR_OK;
    struct strbuf aad = {0};
    sb_addf(&aad, "%s|password", id);
    enum err err = keyring_seal(rq->admin->keys, sb_str(&aad), password, ret, &rq->error);
    sb_free(&aad);
    return err;
}

/* The url without slashes at its end. */
static struct str in_url(struct api *rq)
{
    struct str url = jv_get_str(rq->in, "url");
    while (url.n && url.p[url.n - 1] == '/')
        url.n--;
    return url;
}

/* ---- writing ----------------------------------------------------------------------------------------------------------- */

static enum err upstream_create(struct api *rq)
{
    char id[ID_MAX];
    struct strbuf sealed = {0}, hosts = {0};
    bool given;
    id_new("ups_", id);
    enum err err = upstream_check(rq);
    if (!err)
        err = upstream_seal(rq, id, &sealed, &given);
    if (err)
        goto out;
    if (api_has(rq, "redirect_hosts"))
        jv_dump(jv_get(rq->in, "redirect_hosts"), &hosts);
    struct str redirects = jv_get_str(rq->in, "redirects");
    err = store_exec(rq->store, NULL, &rq->error,
                     "INSERT INTO upstreams (id, vendor_id, name, url, username, password_sealed, ca, redirects, redirect_hosts, realm, "
                     "created_at, updated_at)"
                     " VALUES (?,?,?,?,COALESCE(?,''),?,COALESCE(?,''),?,?,COALESCE(?,''),?,?)",
                     "zzssssssssii", id, rq->vendor_id, jv_get_str(rq->in, "name"), in_url(rq), api_in_text(rq, "username"),
                     sb_str(&sealed), api_in_text(rq, "ca"), redirects.p ? redirects : S("follow"), hosts.n ? sb_str(&hosts) : S("[]"),
                     api_in_text(rq, "realm"), rq->now_s, rq->now_s);
    if (!err)
        err = outbox_put_kind(rq->store, 'u', str_c(id), true, &rq->error);
    if (!err)
        err = upstream_answer(rq, str_c(id));
    if (!err) {
        rq->after = jv_copy(rq->out);
        api_created(rq, "/api/v1/upstreams/", id);
    }
out:
    sb_free(&sealed);
    sb_free(&hosts);
    return err;
}

static enum err upstream_update(struct api *rq)
{
    struct strbuf sealed = {0}, hosts = {0}, id = {0};
    bool given = false;
    int64_t rev;
    sb_add(&id, rq->params[0]);
    enum err err = upstream_check(rq);
    if (!err)
        err = upstream_load(rq, rq->params[0], &rq->before, &rev);
    if (!err)
        err = api_check_etag(rq, rev);
    if (!err)
        err = upstream_seal(rq, id.p, &sealed, &given);
    if (err)
        goto out;
    if (api_has(rq, "redirect_hosts"))
        jv_dump(jv_get(rq->in, "redirect_hosts"), &hosts);
    err = store_exec(rq->store, NULL, &rq->error,
                     "UPDATE upstreams SET name=COALESCE(?,name), url=COALESCE(?,url), username=COALESCE(?,username),"
                     " password_sealed=COALESCE(?,password_sealed), ca=COALESCE(?,ca), redirects=COALESCE(?,redirects),"
                     " redirect_hosts=COALESCE(?,redirect_hosts), realm=COALESCE(?,realm), updated_at=?, rev=rev+1 WHERE id=?",
                     "ssssssssis", jv_get_str(rq->in, "name"), in_url(rq), api_in_text(rq, "username"),
                     given ? sb_str(&sealed) : (struct str){NULL, 0}, api_in_text(rq, "ca"), jv_get_str(rq->in, "redirects"),
                     hosts.n ? sb_str(&hosts) : (struct str){NULL, 0}, api_in_text(rq, "realm"), rq->now_s, rq->params[0]);
    if (!err)
        err = outbox_put_kind(rq->store, 'u', rq->params[0], true, &rq->error);
    if (!err)
        err = upstream_answer(rq, rq->params[0]);
    if (!err)
        rq->after = jv_copy(rq->out);
    rq->poke_sync = true;
out:
    sb_free(&sealed);
    sb_free(&hosts);
    sb_free(&id);
    return err;
}

static enum err upstream_delete(struct api *rq)
{
    int64_t rev;
    bool used = false;
    enum err err = upstream_load(rq, rq->params[0], &rq->before, &rev);
    if (!err)
        err = api_check_etag(rq, rev);
    if (!err)
        err = api_lookup(rq,
                         "SELECT 1 WHERE EXISTS (SELECT 1 FROM repositories WHERE upstream_id=?1)"
                         " OR EXISTS (SELECT 1 FROM licenses WHERE upstream_credential_id=?1 AND archived_at=0)",
                         rq->params[0], NULL, &used);
    if (!err && used)
        err = api_fail(rq, ERR_CONFLICT, "upstream_in_use", NULL, "repositories or licenses use this upstream");
    if (!err)
        err = store_exec(rq->store, NULL, &rq->error, "DELETE FROM upstreams WHERE id=?", "s", rq->params[0]);
    if (!err)
        err = outbox_put_kind(rq->store, 'u', rq->params[0], false, &rq->error);
    return err;
}

/* ---- test -------------------------------------------------------------------------------------------------------------- */

struct ping {
    struct loop *loop;
    enum err err;
    char detail[300];
    bool is_done;
};

static void ping_done(void *ctx, enum err err, const char *detail)
{
    struct ping *p = ctx;
    p->err = err;
    p->is_done = true;
    snprintf(p->detail, sizeof p->detail, "%s", detail ? detail : "");
    loop_stop(p->loop);
}

static void ping_timeout(void *ctx)
{
    struct ping *p = ctx;
    if (!p->is_done)
        loop_stop(p->loop);
}

/* GET /v2/ with the stored credentials, on a loop of this thread. */
static void upstream_run_ping(struct api *rq, struct upstream_spec *take_spec, struct ping *p)
{
    const struct config *cfg = admin_config(rq->admin);
    const struct upstream_limits lim = {
        .fetch = {.connections = 2,
                  .connect_ms = cfg->limits.upstream_connect_ms,
                  .first_byte_ms = cfg->limits.upstream_first_byte_ms,
                  .stall_ms = cfg->limits.upstream_stall_ms,
                  .total_ms = TEST_MS,
                  .head_bytes = 32 * 1024,
                  .head_fields = 64},
        .retries = 0,
        .manifest_bytes = cfg->limits.manifest_bytes,
        .tags_bytes = 1024 * 1024,
        .breaker_failures = 100,
        .breaker_ms = 1000,
    };
    p->loop = loop_new();
    if (p->loop == NULL) {
        upstream_spec_free(&take_spec);
        p->err = ERR_UNAVAILABLE;
        snprintf(p->detail, sizeof p->detail, "no event loop: %s", strerror(errno));
        return;
    }
    struct upstream *u = upstream_new(p->loop, take_spec, &lim);
    struct timer *timer = timer_new(p->loop, ping_timeout, p);
    timer_set(timer, TEST_MS);
    struct upstream_op *op = upstream_ping(u, ping_done, p);
    loop_run(p->loop);
    if (!p->is_done) {
        upstream_cancel(&op);
        p->err = ERR_TIMEOUT;
        snprintf(p->detail, sizeof p->detail, "no answer within %d s", TEST_MS / 1000);
    }
    timer_free(&timer);
    upstream_unref(&u);
    loop_free(p->loop);
}

static enum err upstream_test(struct api *rq)
{
    struct jv *own = NULL, *doc = NULL;
    struct strbuf fact = {0}, text = {0};
    struct upstream_spec *spec = NULL;
    bool exists = false;
    int64_t rev;
    enum err err = upstream_load(rq, rq->params[0], &own, &rev); /* it is the caller's */
    if (!err) {
        sb_addf(&fact, "u:%.*s", STR(rq->params[0]));
        err = compile_fact(rq->store, sb_str(&fact), &text, &exists, &rq->error);
    }
    if (!err && !exists)
        err = api_not_found(rq, "upstream");
    if (!err)
        err = jv_parse(sb_str(&text), &JV_LIMITS_TRUSTED, &doc, &rq->error);
    if (!err)
        err = upstream_spec_parse(doc, rq->admin->keys, &spec, &rq->error);
    if (!err) {
        struct ping p = {.err = ERR_INTERNAL};
        upstream_run_ping(rq, spec, &p);
        rq->out = jv_object();
        jv_set_bool(rq->out, "ok", p.err == ERR_OK);
        jv_set_c(rq->out, "detail", p.detail[0] ? p.detail : p.err ? err_text(p.err) : "the registry answers and takes the credentials");
        jv_set_time(rq->out, "tested_at", rq->now_s);
    }
    jv_free(own);
    jv_free(doc);
    sb_free(&fact);
    sb_free(&text);
    return err;
}

const struct route UPSTREAM_ROUTES[] = {
    {HEAD_GET, "/api/v1/upstreams", upstream_list, ROLE_VIEWER, ROUTE_LIST, NULL, &UPSTREAM, NULL, "upstream.list", "Upstream registries"},
    {HEAD_POST, "/api/v1/upstreams", upstream_create, ROLE_ADMIN, 0, &UPSTREAM_CREATE, &UPSTREAM, NULL, "upstream.create",
     "Add an upstream registry"},
    {HEAD_GET, "/api/v1/upstreams/{id}", upstream_get, ROLE_VIEWER, 0, NULL, &UPSTREAM, NULL, "upstream.get", "One upstream"},
    {HEAD_PATCH, "/api/v1/upstreams/{id}", upstream_update, ROLE_ADMIN, 0, &UPSTREAM_UPDATE, &UPSTREAM, NULL, "upstream.update",
     "Change an upstream"},
    {HEAD_DELETE, "/api/v1/upstreams/{id}", upstream_delete, ROLE_ADMIN, 0, NULL, NULL, NULL, "upstream.delete",
     "Remove an upstream that nothing uses"},
    {HEAD_POST, "/api/v1/upstreams/{id}/test", upstream_test, ROLE_ADMIN, ROUTE_SLOW | ROUTE_ACTION, NULL, &UPSTREAM_TEST, NULL,
     "upstream.test", "Ask the registry whether it takes the stored credentials"},
    {.path = NULL},
};
