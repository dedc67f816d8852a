#include "http.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "db.h"
#include "events.h"
#include "jobs.h"
#include "failures.h"
#include "people.h"
#include "finder.h"
#include "portal.h"
#include "projector.h"
#include "pullgate/clock.h"
#include "pullgate/clockwatch.h"
#include "pullgate/credential.h"
#include "pullgate/file.h"
#include "pullgate/log.h"
#include "pullgate/mem.h"
#include "pullgate/metrics.h"
#include "pullgate/reload.h"
#include "roles.h"
#include "room.h"
#include "sync.h"

#define EXCHANGE_MAGIC      0x9e3b11adu
#define TOKEN_TEXT_MAX      512 /* longest Bearer token looked at */
#define IDEMPOTENCY_KEY_MAX 255
#define LAST_USED_EVERY_S   60    /* a token's last use is written at most this often */
#define METRICS_CONNECTIONS 256  /* scrapers and health checks: of their own, so that a flood of the API cannot hide it from them */
#define RETRY_AFTER_BUSY_S  1
#define RETRY_AFTER_FULL_S  30

/* ---- the parts ------------------------------------------------------------------------------------------------------- */

/* Bodies above limits.admin_body_size that are read or worked on: four in all, one of a vendor. A place's number, from 1 on, is the edge's
 * ticket, and then the exchange's. */
#define LARGE_MAX 4
struct large {
    bool is_taken;
    char vendor_id[ID_MAX + 32];
};

struct http {
    struct admin *admin;
    struct large large[LARGE_MAX];
    struct exchange *waiting; /* for another look, see exchange_wait() */
    unsigned n_waiting;
    struct edge_shared *shared, *metrics_shared;
    struct edge *api, *metrics;
    struct edge_tls *tls;
    int access_fd; /* -1: off */
    bool clock_is_bad, draining;
    unsigned draining_edges;
    void (*on_drained)(void *ctx);
    void *on_drained_ctx;
    uint64_t answers[6]; /* by first digit of the status */
    uint64_t unavailable;
};

/* One request of the API: what handlers see, and what the transport needs around it. Made in the loop's thread, worked on by one
 * database thread, ended in the loop's thread. */
struct exchange {
    struct api rq;
    struct http *http;
    struct edge_req *req; /* NULL: the client left. The loop's thread only */
    enum err err;
    char *values[API_MAX_PARAMS];
    unsigned allowed; /* methods of the path, where the method was wrong */
    struct timer *again;      /* a GET that waits for something to be found */
    uint64_t again_until_ms;  /* 0: it did not begin to wait */
    struct exchange *waiting; /* of http's list */
    bool has_encoding, is_portal, is_replay, is_beyond_limit;
    bool is_checked; /* by the thread that hashes */
    int ticket;      /* of http's large; 0 none */
    char *body;
    struct strbuf answer;
    const char *answer_type;
    uint64_t started_us;
};

static struct exchange *exchange_of(void *arg)
{
    struct exchange *ex = arg;
    AN(ex->rq.magic == EXCHANGE_MAGIC);
    return ex;
}

static void large_give(struct http *h, int ticket)
{
    if (ticket)
        h->large[ticket - 1].is_taken = false;
}

/* 0: there is no place now. */
static int large_take(struct http *h, const char *vendor_id)
{
    int free = 0;
    for (int i = 0; i < LARGE_MAX; i++) {
        if (!h->large[i].is_taken)
            free = i + 1;
        else if (strcmp(h->large[i].vendor_id, vendor_id) == 0)
            return 0;
    }
    if (free) {
        h->large[free - 1].is_taken = true;
        snprintf(h->large[free - 1].vendor_id, sizeof h->large[free - 1].vendor_id, "%s", vendor_id);
    }
    return free;
}

static void exchange_free(struct exchange *ex)
{
    large_give(ex->http, ex->ticket);
    if (ex->body)
        mem_free_secret(ex->body, ex->rq.body.n);
    api_release(&ex->rq); /* the magic goes with it */
    for (size_t i = 0; i < API_MAX_PARAMS; i++)
        mem_free(ex->values[i]);
    if (ex->answer.p)
        mem_cleanse(ex->answer.p, ex->answer.n);
    sb_free(&ex->answer);
    timer_free(&ex->again);
    mem_free(ex);
}

/* ---- problem documents (RFC 9457) ------------------------------------------------------------------------------------- */

static const char *problem_code(enum err e)
{
    switch (e) {
    case ERR_OK:
        return "ok";
    case ERR_UNAUTHN:
        return "unauthorized";
    case ERR_DENIED:
        return "forbidden";
    case ERR_NOT_FOUND:
        return "not_found";
    case ERR_METHOD:
        return "method_not_allowed";
    case ERR_INVALID:
    case ERR_RANGE:
        return "invalid_request";
    case ERR_CONFLICT:
        return "conflict";
    case ERR_PRECONDITION:
        return "etag_mismatch";
    case ERR_TOO_LARGE:
        return "too_large";
    case ERR_TOO_MANY:
        return "too_many_requests";
    case ERR_UPSTREAM:
        return "upstream_failed";
    case ERR_UNAVAILABLE:
    case ERR_TIMEOUT:
        return "unavailable";
    case ERR_NOMEM:
    case ERR_INTERNAL:
    case ERR_CANCELED:
        break;
    }
    return "internal_error";
}

static void problem_print(struct strbuf *ret, int status, const char *code, const char *title, const char *detail, const char *field,
                          const char *request_id, struct jv *take_more)
{
    struct jv *p = take_more ? take_more : jv_object();
    struct strbuf type = {0};
    sb_addf(&type, "urn:pullgate:problem:%s", code);
    jv_set_str(p, "type", sb_str(&type));
    jv_set_c(p, "title", title);
    jv_set_int(p, "status", status);
    jv_set_c(p, "detail", detail);
    jv_set_c(p, "code", code);
    if (field && *field)
        jv_set_c(p, "field", field);
    if (request_id)
        jv_set_c(p, "request_id", request_id);
    jv_dump(p, ret);
    jv_free(p);
    sb_free(&type);
}

/* What a refusal or failure is told as. Details of our own failures stay in the log. */
static void exchange_problem(struct exchange *ex)
{
    struct api *rq = &ex->rq;
    enum err e = ex->err;
    const char *detail = rq->error.text, *field = rq->error.field;
    if (e == ERR_CANCELED || e == ERR_NOMEM)
        e = ERR_INTERNAL;
    int status = rq->status >= 400 ? rq->status : err_http_status(e);
    char text[160];
    if (!rq->code && e == ERR_UNAVAILABLE && strcmp(field, ROOM_FIELD) == 0) {
        rq->code = "store_full";
        detail = "the disk of the store is nearly full: nothing was changed, and no change is taken until it has room again; reading goes on";
        field = "";
        rq->retry_after_s = RETRY_AFTER_FULL_S;
    } else if (!rq->code) {
        rq->code = problem_code(e);
        if (status >= 500) {
            log_error("%s %s: %s: %s", route_method_text(rq->method), rq->path, err_text(e), rq->error.text);
            detail = e == ERR_UNAVAILABLE ? "the store cannot be used right now; nothing was changed" : err_text(e);
            field = "";
        } else if (e == ERR_CONFLICT) {
            snprintf(text, sizeof text, *field ? "another object has this %s already" : "it is in use", field);
            detail = text;
        }
    }
    if (status == 503 && !rq->retry_after_s)
        rq->retry_after_s = RETRY_AFTER_BUSY_S;
    rq->status = status;
    sb_reset(&ex->answer);
    problem_print(&ex->answer, status, rq->code, err_text(e), detail && *detail ? detail : err_text(e), field, rq->request_id, rq->problem);
    rq->problem = NULL;
    ex->answer_type = "application/problem+json";
}

/* ---- sign-in --------------------------------------------------------------------------------------------------------- */

struct last_use {
    char *id, *peer;
    int64_t at_s;
};

static enum err last_use_write(struct store *s, void *arg, struct error *reterr)
{
    struct last_use *u = arg;
    return store_exec(s, NULL, reterr, "UPDATE api_tokens SET last_used_at=?, last_used_from=? WHERE id=?", "izz", u->at_s, u->peer, u->id);
}

static void last_use_done(void *arg, enum err err)
{
    (void)err; /* a last use that is not written is no reason to fail anything */
    struct last_use *u = arg;
    mem_free(u->id);
    mem_free(u->peer);
    mem_free(u);
}

static void last_use_note(struct api *rq)
{
    struct last_use *u = NEW(struct last_use);
    *u = (struct last_use){.id = mem_strdup(rq->token_id), .peer = mem_strdup(rq->peer), .at_s = rq->now_s};
    if (db_post(rq->admin->writer, DB_TRANSACTION, last_use_write, u, last_use_done))
        last_use_done(u, ERR_OK);
}

static enum err token_refuse(struct api *rq)
{
    return api_fail(rq, ERR_UNAUTHN, "unauthorized", NULL, "the API wants \"Authorization: Bearer\" with a token that is valid");
}

/* The Bearer token -> vendor, role. The same work and answer whatever is wrong with it. */
static enum err token_authenticate(struct api *rq)
{
    struct str auth = str_c(rq->authorization);
    if (auth.n < 8 || !str_eq_nocase(str_sub(auth, 0, 7), S("Bearer ")))
        return token_refuse(rq);
    struct str token = str_trim(str_skip(auth, 7));
    if (!token.n || token.n > TOKEN_TEXT_MAX)
        return token_refuse(rq);
    if (str_starts(token, S(SESSION_PREFIX)))
        return session_authenticate(rq, token, false);

    char hash[CREDENTIAL_HASH_MAX];
    credential_hash(rq->admin->keys, token, hash);
    struct store_stmt *st = NULL;
    bool row = false;
    enum err err = store_query(rq->store, &st, &rq->error,
                               "SELECT t.id, t.vendor_id, t.role, t.hash, t.expires_at, t.revoked_at, t.last_used_at, v.time_zone, t.name, t.scopes, t.user_id,"
                               " u.role, v.suspended_at FROM api_tokens t JOIN vendors v ON v.id=t.vendor_id"
                               " LEFT JOIN users u ON u.id=t.user_id AND u.disabled=0 AND u.removed_at=0 WHERE t.hash=?",
                               "z", hash);
    if (!err)
        err = store_step(st, &row, &rq->error);
    if (err) {
        store_done(&st);
        return err;
    }
    int64_t expires_at = row ? store_col_int(st, 4) : 0;
    struct str stored = row ? store_col_str(st, 3) : (struct str){NULL, 0};
    bool good = row && stored.n == strlen(hash) && str_eq_secret(stored.p, hash, stored.n) && store_col_int(st, 5) == 0 &&
                (expires_at == 0 || rq->now_s < expires_at);
    int64_t last_used = 0;
    struct str owner = row ? store_col_str(st, 10) : (struct str){NULL, 0};
    if (good && owner.n) { /* a person's: never further than he reaches now, and not at all without him */
        enum role has = role_parse(store_col_str(st, 2)), may = role_parse(store_col_str(st, 11));
        rq->role = may < has ? may : has;
        rq->owner_id = str_dup(owner);
    } else if (good) {
        rq->role = role_parse(store_col_str(st, 2));
    }
    if (good) {
        rq->token_id = str_dup(store_col_str(st, 0));
        rq->vendor_id = str_dup(store_col_str(st, 1));
        rq->zone = str_dup(store_col_str(st, 7));
        rq->actor_name = str_dup(store_col_str(st, 8));
        rq->scopes = str_dup(store_col_str(st, 9));
        rq->token_expires_s = expires_at;
        rq->is_vendor_suspended = store_col_int(st, 12) != 0;
        struct strbuf actor = {0};
        sb_addf(&actor, "token:%s", rq->token_id);
        rq->actor = sb_take(&actor);
        last_used = store_col_int(st, 6);
    }
    store_done(&st);
    if (!good || rq->role == ROLE_NONE || rq->role >= ROLE_CUSTOMER)
        return token_refuse(rq);
    if (rq->now_s - last_used >= LAST_USED_EVERY_S)
        last_use_note(rq);
    return ERR_OK;
}

/* An operator's request for another vendor than his own. What he does stands in that vendor's audit, under his name. */
static enum err act_for_vendor(struct api *rq)
{
    struct strbuf id = {0};
    bool found = false;
    if (!rq->for_vendor)
        return ERR_OK;
    if (rq->role != ROLE_OPERATOR)
        return api_fail(rq, ERR_DENIED, "role_not_allowed", "X-Pullgate-Vendor", "X-Pullgate-Vendor: only an operator acts for another vendor");
    enum err err = api_lookup(rq, "SELECT id FROM vendors WHERE slug=?", str_c(rq->for_vendor), &id, &found);
    if (!err && !found)
        err = api_fail(rq, ERR_NOT_FOUND, "not_found", "X-Pullgate-Vendor", "X-Pullgate-Vendor: no such vendor");
    if (!err) {
        mem_free(rq->vendor_id);
        MEM_FREE(rq->zone); /* api_zone() asks for the other one's */
        rq->vendor_id = sb_take(&id);
    }
    sb_free(&id);
    return err;
}

static enum err exchange_authenticate(struct exchange *ex)
{
    struct api *rq = &ex->rq;
    if (rq->route && rq->route->role == ROLE_NONE)
        return ERR_OK;
    enum err err = ex->is_portal ? portal_authenticate(rq) : token_authenticate(rq);
    if (!err && ex->is_portal && rq->role == ROLE_NONE)
        rq->role = ROLE_CUSTOMER;
    if (!err && !ex->is_portal)
        err = act_for_vendor(rq);
    return err;
}

/* A sign-in that failed, with the request or by it (a route that signs in): an address that goes on is told to wait. */
static enum err exchange_count_failure(struct exchange *ex, enum err err)
{
    struct api *rq = &ex->rq;
    unsigned wait_s = 0;
    if (err != ERR_UNAUTHN)
        return err;
    if (failures_count(rq->admin->addresses, rq->peer_addr, rq->peer, rq->now_s, admin_config(rq->admin)->limits.auth_failures_per_minute, &wait_s, NULL)) {
        ex->is_beyond_limit = true;
        rq->retry_after_s = wait_s;
        return api_fail(rq, ERR_TOO_MANY, "too_many_failures", NULL, "too many failed sign-ins from this address");
    }
    return err;
}

static enum err exchange_authorise(struct exchange *ex)
{
    struct api *rq = &ex->rq;
    if (!rq->route) {
        if (ex->allowed)
            return api_fail(rq, ERR_METHOD, "method_not_allowed", NULL, "%s cannot be done with this path", route_method_text(rq->method));
        return api_fail(rq, ERR_NOT_FOUND, "not_found", NULL, "no such path");
    }
    char scope[SCOPE_MAX] = "";
    if (!role_allows(rq->role, rq->route->role))
        return api_fail(rq, ERR_DENIED, "role_not_allowed", NULL, "this needs the role %s", role_text(rq->route->role));
    if (rq->route->role != ROLE_NONE && rq->scopes && !scopes_allow(str_c(rq->scopes), rq->route)) {
        (void)scope_of_route(rq->route, scope);
        return api_fail(rq, ERR_DENIED, "scope_not_allowed", NULL, "this needs the scope %s", scope);
    }
    if (rq->is_vendor_suspended && rq->role != ROLE_OPERATOR && rq->method != HEAD_GET && !str_starts(str_c(rq->route->action), S("self.")))
        return api_fail(rq, ERR_DENIED, "vendor_suspended", NULL, "the vendor is suspended: nothing can be changed");
    return ERR_OK;
}

/* ---- parameters and body --------------------------------------------------------------------------------------------- */

struct query_check {
    struct api *rq;
    enum err err;
};

static bool param_names(const struct query_param *p, struct str key)
{
    struct str name = str_c(p->name);
    if (name.p[name.n - 1] != '*')
        return str_eq(key, name);
    return key.n >= name.n && str_starts(key, str_sub(name, 0, name.n - 1));
}

static void query_check_one(void *ctx, struct str key, struct str value)
{
    struct query_check *c = ctx;
    if (c->err)
        return;
    /* An empty value, or one that cannot be decoded, must not read as "no filter". */
    if (!value.n) {
        char *empty = str_dup(str_sub(key, 0, 60));
        c->err = api_fail(c->rq, ERR_INVALID, "invalid_parameter", empty, "%s: has no value, or one that cannot be decoded", empty);
        mem_free(empty);
        return;
    }
    for (size_t i = 0; i < value.n; i++)
        if ((unsigned char)value.p[i] < 0x20 || value.p[i] == 0x7f) {
            c->err = api_fail(c->rq, ERR_INVALID, "invalid_parameter", NULL, "a parameter's value holds control characters");
            return;
        }
    if (c->rq->route->flags & ROUTE_LIST && (str_eq(key, S("limit")) || str_eq(key, S("cursor"))))
        return;
    if (c->rq->route->flags & ROUTE_COUNT && str_eq(key, S("count")))
        return;
    for (const struct query_param *p = c->rq->route->params; p && p->name; p++)
        if (param_names(p, key))
            return;
    if (str_eq(key, S("dry_run")) && route_can_run_dry(c->rq->route)) {
        if (!str_eq(value, S("1")) && !str_eq(value, S("true")))
            c->err = api_fail(c->rq, ERR_INVALID, "invalid_parameter", "dry_run", "dry_run: 1, or not at all");
        c->rq->is_dry_run = !c->err;
        return;
    }
    char *name = str_dup(str_sub(key, 0, 60));
    c->err = api_fail(c->rq, ERR_INVALID, "unknown_parameter", name, "%s: no such parameter", name);
    mem_free(name);
}

static enum err exchange_check_query(struct exchange *ex)
{
    struct query_check c = {.rq = &ex->rq};
    query_each(str_c(ex->rq.query), query_check_one, &c);
    return c.err;
}

/* As routes and their answers speak of it. */
static bool content_type_is_good(const struct api *rq)
{
    struct str type, rest;
    if (!rq->content_type)
        return false;
    if (!str_cut(str_c(rq->content_type), ';', &type, &rest))
        type = str_c(rq->content_type);
    type = str_trim(type);
    if (rq->route->flags & ROUTE_ROWS)
        return str_eq_nocase(type, S("text/csv")) || str_eq_nocase(type, S("application/x-ndjson"));
    return str_eq_nocase(type, S("application/json")) || str_eq_nocase(type, S("application/merge-patch+json"));
}

static enum err exchange_check_type(struct exchange *ex)
{
    struct api *rq = &ex->rq;
    if (!ex->has_encoding && content_type_is_good(rq))
        return ERR_OK;
    enum err err = api_fail(rq, ERR_INVALID, "unsupported_media_type", NULL, "the body must be %s without a Content-Encoding",
                            rq->route->flags & ROUTE_ROWS ? "text/csv or application/x-ndjson" : "application/json");
    rq->status = 415;
    return err;
}

static enum err exchange_check_body(struct exchange *ex)
{
    struct api *rq = &ex->rq;
    if (rq->method == HEAD_GET || rq->method == HEAD_HEAD)
        return ERR_OK;
    if (ex->has_encoding || rq->body.n) {
        enum err err = exchange_check_type(ex);
        if (err)
            return err;
    }
    if (rq->route->flags & ROUTE_ROWS)
        return ERR_OK;
    if (!rq->body.n) {
        rq->in = jv_object();
    } else {
        struct error error = {0};
        enum err err = jv_parse(rq->body, &JV_LIMITS_API, &rq->in, &error);
        if (err)
            return api_fail(rq, err == ERR_TOO_LARGE ? ERR_TOO_LARGE : ERR_INVALID, "invalid_json", NULL, "%s", error.text);
    }
    return api_check_body(rq, rq->in, rq->route->request);
}

/* ---- idempotency ----------------------------------------------------------------------------------------------------- */

/* A MAC, for the body may hold a password, and a bare hash of it could be guessed at from a copy of the store. An operator's same words
 * for another vendor are another request. */
static void idempotency_hash(struct api *rq, struct strbuf *ret)
{
    struct strbuf text = {0};
    char mac[CREDENTIAL_HASH_MAX];
    uint8_t sum[32];
    seal_sha256(rq->body, sum);
    sb_addf(&text, "idempotency\n%s\n%s\n%s\n%s\n", rq->vendor_id ? rq->vendor_id : "", route_method_text(rq->method), rq->path, rq->query ? rq->query : "");
    sb_add_hex(&text, sum, sizeof sum);
    credential_hash(rq->admin->keys, sb_str(&text), mac);
    sb_addc(ret, mac);
    mem_cleanse(sum, sizeof sum);
    mem_cleanse(text.p, text.n);
    sb_free(&text);
}

/* Whose keys they are: a token's, a signed-in person's, a customer's credential's. NULL: nobody's, and no key is kept. */
static const char *idempotency_owner(const struct api *rq)
{
    return rq->token_id ? rq->token_id : rq->user_id ? rq->user_id : rq->credential_id;
}

static void idempotency_aad(struct api *rq, struct strbuf *ret)
{
    sb_addf(ret, "idempotency|%s|%s", idempotency_owner(rq), rq->idempotency_key);
}

/* The stored answer of the same request, if there is one: *ret_replayed. Another request under the key is refused. */
static enum err idempotency_look(struct exchange *ex, const char *hash, bool *ret_replayed)
{
    struct api *rq = &ex->rq;
    struct store_stmt *st = NULL;
    struct strbuf aad = {0};
    bool row = false;
    enum err err = store_query(
        rq->store, &st, &rq->error,
        "SELECT request_hash, status, location, etag, body_sealed FROM idempotency_keys WHERE token_id=? AND key=? AND created_at>?", "zzi",
        idempotency_owner(rq), rq->idempotency_key, rq->now_s - (int64_t)(admin_config(rq->admin)->retention.idempotency_keys_ms / 1000));
    if (!err)
        err = store_step(st, &row, &rq->error);
    if (err || !row)
        goto out;
    if (!str_eq_c(store_col_str(st, 0), hash)) { /* no secret: what a token's own two requests are told apart by */
        err = api_fail(rq, ERR_CONFLICT, "idempotency_key_reused", NULL, "this Idempotency-Key was used for another request");
        rq->status = 422;
        goto out;
    }
    if (store_col_int(st, 1) == 0) { /* of a request that works in parts, see slow_reserve() */
        err = api_fail(rq, ERR_CONFLICT, "idempotency_unfinished", NULL,
                       "the request of this Idempotency-Key is being carried out, or was cut off: look at what it did before it is sent under another");
        goto out;
    }
    char *body = NULL;
    size_t n = 0;
    idempotency_aad(rq, &aad);
    err = keyring_unseal(rq->admin->keys, sb_str(&aad), store_col_str(st, 4), &body, &n);
    if (err)
        goto out;
    sb_reset(&ex->answer);
    sb_add(&ex->answer, (struct str){body, n});
    mem_free_secret(body, n);
    ex->answer_type = "application/json";
    rq->status = (int)store_col_int(st, 1);
    struct str location = store_col_str(st, 2), etag = store_col_str(st, 3);
    rq->location = location.n ? str_dup(location) : NULL;
    rq->etag = etag.n ? str_dup(etag) : NULL;
    ex->is_replay = true;
    *ret_replayed = true;
out:
    store_done(&st);
    sb_free(&aad);
    return err;
}

static enum err idempotency_keep(struct exchange *ex, const char *hash)
{
    struct api *rq = &ex->rq;
    struct strbuf aad = {0}, sealed = {0};
    idempotency_aad(rq, &aad);
    enum err err = keyring_seal(rq->admin->keys, sb_str(&aad), sb_str(&ex->answer), &sealed, &rq->error);
    if (!err) /* in the place of one that is over and not yet removed */
        err = store_exec(rq->store, NULL, &rq->error,
                         "INSERT OR REPLACE INTO idempotency_keys (token_id, key, request_hash, status, location, etag, body_sealed, created_at)"
                         " VALUES (?,?,?,?,?,?,?,?)",
                         "zzzizzsi", idempotency_owner(rq), rq->idempotency_key, hash, (int64_t)rq->status, rq->location ? rq->location : "",
                         rq->etag ? rq->etag : "", sb_str(&sealed), rq->now_s);
    sb_free(&aad);
    sb_free(&sealed);
    return err;
}

static enum err idempotency_check_key(struct api *rq)
{
    struct str key = str_c(rq->idempotency_key);
    bool good = key.n >= 1 && key.n <= IDEMPOTENCY_KEY_MAX;
    for (size_t i = 0; good && i < key.n; i++)
        good = key.p[i] > 0x20 && key.p[i] < 0x7f;
    if (!good)
        return api_fail(rq, ERR_INVALID, "invalid_header", "Idempotency-Key", "Idempotency-Key: 1 to %d printable characters",
                        IDEMPOTENCY_KEY_MAX);
    return ERR_OK;
}

/* Requests of the slow thread change the store in several transactions: the key is set aside before the first, so that a repetition finds it
 * whatever becomes of the request, and its answer takes that place after the last. */
struct slow_key {
    struct exchange *ex;
    const char *hash;
    bool is_replayed;
    enum err err;
};

static enum err slow_reserve(struct store *s, void *arg, struct error *reterr)
{
    struct slow_key *k = arg;
    struct api *rq = &k->ex->rq;
    struct store *own = rq->store;
    rq->store = s;
    k->err = idempotency_look(k->ex, k->hash, &k->is_replayed);
    rq->store = own;
    if (k->err || k->is_replayed)
        return ERR_OK;
    return store_exec(s, NULL, reterr,
                      "INSERT OR REPLACE INTO idempotency_keys (token_id, key, request_hash, status, location, etag, body_sealed, created_at) VALUES (?,?,?,0,'','','',?)",
                      "zzzi", idempotency_owner(rq), rq->idempotency_key, k->hash, rq->now_s);
}

static enum err slow_keep(struct store *s, void *arg, struct error *reterr)
{
    struct slow_key *k = arg;
    struct api *rq = &k->ex->rq;
    struct store *own = rq->store;
    rq->store = s;
    enum err err = idempotency_keep(k->ex, k->hash);
    rq->store = own;
    if (err && reterr)
        *reterr = rq->error;
    return err;
}

/* Nothing was changed: the key is as good as new. */
static enum err slow_release(struct store *s, void *arg, struct error *reterr)
{
    struct slow_key *k = arg;
    return store_exec(s, NULL, reterr, "DELETE FROM idempotency_keys WHERE token_id=? AND key=? AND status=0", "zz", idempotency_owner(&k->ex->rq),
                      k->ex->rq.idempotency_key);
}

/* ---- the run of a handler, in a database thread ------------------------------------------------------------------------ */

/* The handler's result as status and text. */
static void exchange_answer(struct exchange *ex)
{
    struct api *rq = &ex->rq;
    sb_reset(&ex->answer);
    if (rq->raw_type) {
        sb_add(&ex->answer, sb_str(&rq->raw));
        ex->answer_type = rq->raw_type;
        rq->status = rq->status ? rq->status : 200;
    } else if (rq->out) {
        jv_dump(rq->out, &ex->answer);
        ex->answer_type = "application/json";
        bool is_made = rq->method == HEAD_POST && rq->location && !(rq->route->flags & ROUTE_ACTION);
        rq->status = rq->status ? rq->status : is_made ? 201 : 200;
    } else {
        ex->answer_type = NULL;
        rq->status = 204;
    }
}

static enum err exchange_slow(struct exchange *ex)
{
    struct api *rq = &ex->rq;
    struct db *writer = rq->admin->writer;
    struct strbuf hash = {0}, dry = {0};
    struct slow_key k = {.ex = ex};
    struct error error = {0};
    bool is_keyed = rq->method == HEAD_POST && rq->idempotency_key && idempotency_owner(rq) && !api_query(rq, "dry_run", &dry);
    sb_free(&dry);
    enum err err = is_keyed ? idempotency_check_key(rq) : ERR_OK;
    if (err)
        return err;
    if (is_keyed) {
        idempotency_hash(rq, &hash);
        k.hash = hash.p;
        err = db_run(writer, DB_TRANSACTION, slow_reserve, &k, &rq->error);
        err = err ? err : k.err;
        if (err || k.is_replayed)
            goto out;
    }
    err = rq->route->run(rq);
    if (!err)
        exchange_answer(ex);
    if (is_keyed && !err && db_run(writer, DB_TRANSACTION, slow_keep, &k, &error))
        log_error("idempotency: an answer could not be kept: %s", error.text); /* a repetition is told that it is unfinished */
    else if (is_keyed && err && !rq->is_begun && db_run(writer, DB_TRANSACTION, slow_release, &k, &error))
        log_error("idempotency: a key could not be given back: %s", error.text);
out:
    sb_free(&hash);
    return err;
}

static enum err exchange_read(struct exchange *ex)
{
    struct api *rq = &ex->rq;
    enum err err = store_begin(rq->store, &rq->error); /* one snapshot for all statements of the handler */
    if (err)
        return err;
    err = rq->route->run(rq);
    store_rollback(rq->store);
    if (!err)
        exchange_answer(ex);
    return err;
}

/* What is done out of the room that store.min_free keeps: signing in, and what takes rights away. */
static bool route_in_reserve(const struct route *r)
{
    static const char *const actions[] = {"session.create", "portal.session.create", "license.suspend", "license.revoke"};
    bool is = r->method == HEAD_DELETE;
    for (size_t i = 0; i < sizeof actions / sizeof *actions && !is; i++)
        is = strcmp(r->action, actions[i]) == 0;
    return is;
}

static enum err exchange_write(struct exchange *ex)
{
    struct api *rq = &ex->rq;
    struct strbuf hash = {0};
    bool is_replayed = false, is_keyed = rq->method == HEAD_POST && rq->idempotency_key && idempotency_owner(rq) && !rq->is_dry_run;
    enum err err = is_keyed ? idempotency_check_key(rq) : ERR_OK;
    if (!err && !rq->is_dry_run && !route_in_reserve(rq->route))
        err = room_check(rq->admin, &rq->error);
    if (!err)
        err = store_begin(rq->store, &rq->error);
    if (err)
        return err;
    if (is_keyed) {
        idempotency_hash(rq, &hash);
        err = idempotency_look(ex, hash.p, &is_replayed);
        if (err || is_replayed)
            goto out;
    }
    err = rq->route->run(rq);
    if (err && rq->keeps_refusal && !rq->is_dry_run) {
        struct error error = {0};
        enum err kept = store_commit(rq->store, &error);
        if (kept) {
            rq->error = error;
            rq->code = NULL;
            err = kept;
        } else {
            db_committed(rq->admin->writer);
        }
    }
    if (err)
        goto out;
    exchange_answer(ex);
    if (rq->is_dry_run) { /* nothing was made, nothing is kept: no row, no audit, no key */
        if (rq->status == 201)
            rq->status = 200;
        MEM_FREE(rq->etag);
        goto out;
    }
    if (!(rq->route->flags & ROUTE_NO_AUDIT))
        err = api_audit(rq, rq->route->action, "ok");
    if (!err && is_keyed && ex->answer.n)
        err = idempotency_keep(ex, hash.p);
    if (!err)
        err = finder_flush(rq->store, &rq->error);
    if (!err)
        err = store_commit(rq->store, &rq->error);
    if (!err) {
        db_committed(rq->admin->writer);
        if (rq->poke_sync && rq->admin->sync)
            sync_poke(rq->admin->sync);
    }
out:
    store_rollback(rq->store);
    sb_free(&hash);
    return err;
}

/* Runs on the writing connection, inside a transaction. */
static bool route_writes(const struct api *rq)
{
    return rq->method == HEAD_GET ? rq->route->flags & ROUTE_WRITES : !(rq->route->flags & ROUTE_READS);
}

/* A change that was refused leaves a row too: who tried what. Nothing else of it is kept. */
static void exchange_audit_refusal(struct exchange *ex, enum err refused)
{
    struct api *rq = &ex->rq;
    if (rq->is_dry_run || !rq->actor || !rq->vendor_id || !rq->route || !route_writes(rq) ||
        rq->route->flags & ROUTE_NO_AUDIT ||
        rq->role == ROLE_CUSTOMER || refused == ERR_UNAVAILABLE || refused == ERR_TOO_MANY)
        return;
    struct error kept = rq->error;
    enum err err = store_begin(rq->store, &rq->error);
    if (!err)
        err = api_audit(rq, rq->route->action, rq->code ? rq->code : problem_code(refused));
    if (!err)
        err = store_commit(rq->store, &rq->error);
    if (!err)
        db_committed(rq->admin->writer);
    if (err)
        log_error("audit: a refused %s could not be recorded: %s", rq->route->action, rq->error.text);
    store_rollback(rq->store);
    rq->error = kept;
}

/* Who, whether he may, and whether the request is one. */
static enum err exchange_checks(struct exchange *ex)
{
    enum err err = exchange_authenticate(ex);
    if (!err)
        err = exchange_authorise(ex);
    if (!err)
        err = exchange_check_query(ex);
    if (!err)
        err = exchange_check_body(ex);
    return err;
}

static enum err exchange_steps(struct exchange *ex)
{
    struct api *rq = &ex->rq;
    enum err err = ex->is_checked ? ERR_OK : exchange_checks(ex);
    if (err)
        return err;
    if (rq->route->flags & ROUTE_SLOW)
        return exchange_slow(ex);
    err = route_writes(rq) ? exchange_write(ex) : exchange_read(ex);
    if (!err && rq->is_failed_sign_in && exchange_count_failure(ex, ERR_UNAUTHN) == ERR_TOO_MANY)
        err = ERR_TOO_MANY;
    return err;
}

static void exchange_finish(void *arg);
static void exchange_wait(void *arg);

static enum err exchange_run(struct store *s, void *arg, struct error *reterr)
{
    struct exchange *ex = exchange_of(arg);
    ex->rq.store = s;
    ex->err = exchange_count_failure(ex, exchange_steps(ex));
    if (ex->err && !(ex->rq.route && ex->rq.route->flags & ROUTE_SLOW)) /* that one's connection only reads: exchange_refused_done() */
        exchange_audit_refusal(ex, ex->err);
    if (ex->err == ERR_UNAVAILABLE && reterr)
        *reterr = ex->rq.error;
    return ex->err;
}

static void exchange_done(void *arg, enum err err)
{
    struct exchange *ex = exchange_of(arg);
    if (err && !ex->err)
        ex->err = err;
    if (ex->err)
        exchange_problem(ex);
    loop_post(ex->rq.admin->loop, ex->err || !ex->rq.again_ms ? exchange_finish : exchange_wait, ex);
}

/* A route that hashes a password: checked and hashed in the thread for that, then carried out in the writer's. What is refused in the
 * first run goes through the writer too, for its audit row. */
static enum err exchange_hash_run(struct store *s, void *arg, struct error *reterr)
{
    struct exchange *ex = exchange_of(arg);
    struct api *rq = &ex->rq;
    rq->store = s;
    ex->err = exchange_checks(ex);
    if (!ex->err) {
        ex->is_checked = true;
        rq->is_hashing = true;
        ex->err = rq->route->run(rq);
        rq->is_hashing = false;
    }
    ex->err = exchange_count_failure(ex, ex->err);
    if (ex->err == ERR_UNAVAILABLE && reterr)
        *reterr = rq->error;
    return ex->err;
}

static enum err exchange_refused_run(struct store *s, void *arg, struct error *reterr)
{
    struct exchange *ex = exchange_of(arg);
    (void)reterr;
    ex->rq.store = s;
    exchange_audit_refusal(ex, ex->err);
    return ERR_OK;
}

/* What was forbidden to do on another thread than the writer's goes through that one, for its audit row. */
static void exchange_refused_done(void *arg, enum err err)
{
    struct exchange *ex = exchange_of(arg);
    if (err && !ex->err)
        ex->err = err;
    if (ex->err == ERR_DENIED && db_post(ex->rq.admin->writer, DB_PLAIN, exchange_refused_run, ex, exchange_done) == ERR_OK)
        return;
    exchange_done(ex, ex->err);
}

static void exchange_hash_done(void *arg, enum err err)
{
    struct exchange *ex = exchange_of(arg);
    if (err && !ex->err)
        ex->err = err;
    if (!db_post(ex->rq.admin->writer, DB_PLAIN, ex->err ? exchange_refused_run : exchange_run, ex, exchange_done))
        return;
    if (!ex->err)
        ex->err = api_fail(&ex->rq, ERR_UNAVAILABLE, "busy", NULL, "too many requests are waiting");
    exchange_done(ex, ex->err);
}

/* ---- the loop's side --------------------------------------------------------------------------------------------------- */

static void fields_cached(struct strbuf *f, const char *type, unsigned cache_s)
{
    if (cache_s)
        sb_addf(f, "Cache-Control: public, max-age=%u\r\n", cache_s);
    else
        sb_addc(f, "Cache-Control: no-store\r\n");
    sb_addc(f, "X-Content-Type-Options: nosniff\r\nReferrer-Policy: no-referrer\r\n"
               "Content-Security-Policy: default-src 'none'; frame-ancestors 'none'\r\n");
    if (type)
        sb_addf(f, "Content-Type: %s\r\n", type);
}

static void fields_common(struct strbuf *f, const char *type)
{
    fields_cached(f, type, 0);
}

static void exchange_fields(struct exchange *ex, struct strbuf *f)
{
    struct api *rq = &ex->rq;
    fields_cached(f, ex->answer_type, rq->status == 200 ? rq->cache_s : 0);
    sb_addf(f, "X-Request-Id: %s\r\n", rq->request_id);
    if (rq->location && rq->status == 201)
        sb_addf(f, "Location: %s\r\n", rq->location);
    if (rq->next_link && rq->status < 300)
        sb_addf(f, "Link: <%s>; rel=\"next\"\r\n", rq->next_link);
    if (rq->etag && rq->status < 300)
        sb_addf(f, "ETag: \"%s\"\r\n", rq->etag);
    if (ex->is_replay)
        sb_addc(f, "Idempotent-Replayed: true\r\n");
    if (rq->is_dry_run)
        sb_addc(f, "Dry-Run: true\r\n");
    if (rq->retry_after_s)
        sb_addf(f, "Retry-After: %u\r\n", rq->retry_after_s);
    if (rq->status == 401)
        sb_addf(f, "WWW-Authenticate: %s\r\n",
                ex->is_portal ? "Basic realm=\"pullgate portal\", charset=\"UTF-8\"" : "Bearer realm=\"pullgate\"");
    if (rq->status == 405) {
        sb_addc(f, "Allow: ");
        const char *comma = "";
        for (enum head_method m = HEAD_GET; m < HEAD_OPTIONS; m++)
            if (ex->allowed & (1u << m)) {
                sb_addf(f, "%s%s", comma, route_method_text(m));
                comma = ", ";
            }
        sb_addc(f, "\r\n");
    }
}

static void access_line(struct http *h, const struct exchange *ex)
{
    if (h->access_fd < 0)
        return;
    const struct api *rq = &ex->rq;
    struct strbuf b = {0};
    char time[CLOCK_RFC3339_MAX];
    sb_addf(&b, "{\"time\":\"%s\",\"program\":\"pullgate-admin\",\"id\":\"%s\",\"peer\":\"%s\",\"actor\":",
            clock_rfc3339_ms(clock_now_ms(), time), rq->request_id, rq->peer);
    sb_add_json(&b, rq->actor ? str_c(rq->actor) : S(""));
    sb_addf(&b, ",\"method\":\"%s\",\"path\":", route_method_text(rq->method));
    sb_add_json(&b, str_c(rq->path));
    sb_addf(&b, ",\"action\":\"%s\",\"status\":%d,\"cause\":\"%s\",\"bytes\":%zu,\"total_ms\":%.3f,\"client_gone\":%s}\n",
            rq->route && rq->route->action ? rq->route->action : "", rq->status, rq->code ? rq->code : "ok", ex->answer.n,
            (double)(clock_mono_us() - ex->started_us) / 1000.0, ex->req ? "false" : "true");
    ssize_t n = write(h->access_fd, b.p, b.n);
    (void)n; /* a full disk costs the line, not the answer */
    sb_free(&b);
}

static void exchange_finish(void *arg)
{
    struct exchange *ex = exchange_of(arg);
    struct http *h = ex->http;
    h->answers[ex->rq.status / 100 % 6]++;
    access_line(h, ex);
    if (ex->req) {
        struct strbuf fields = {0};
        exchange_fields(ex, &fields);
        struct edge_req *req = ex->req;
        ex->req = NULL;
        edge_req_set_handle(req, NULL);
        edge_reply(req, ex->rq.status, (struct str){NULL, 0}, sb_str(&fields), sb_str(&ex->answer), -1);
        sb_free(&fields);
    }
    exchange_free(ex);
}

static void exchange_busy(struct exchange *ex)
{
    ex->http->unavailable++;
    ex->err = api_fail(&ex->rq, ERR_UNAVAILABLE, "busy", NULL, "too many requests are waiting");
    exchange_problem(ex);
    exchange_finish(ex);
}

/* ---- a body that asks ------------------------------------------------------------------------------------------------------ */

/* Whose it is, and whether he may: before anything of it is read. */
static enum err exchange_ask_run(struct store *s, void *arg, struct error *reterr)
{
    struct exchange *ex = exchange_of(arg);
    ex->rq.store = s;
    ex->err = exchange_authenticate(ex);
    if (!ex->err)
        ex->err = exchange_authorise(ex);
    if (!ex->err)
        ex->err = exchange_check_query(ex);
    if (!ex->err)
        ex->err = exchange_check_type(ex);
    ex->err = exchange_count_failure(ex, ex->err);
    if (ex->err == ERR_UNAVAILABLE && reterr)
        *reterr = ex->rq.error;
    return ex->err;
}

static void exchange_asked(void *arg)
{
    struct exchange *ex = exchange_of(arg);
    struct edge_req *req = ex->req;
    if (!req) {
        exchange_free(ex);
        return;
    }
    int ticket = large_take(ex->http, ex->rq.vendor_id);
    if (!ticket) {
        exchange_busy(ex);
        return;
    }
    exchange_free(ex);
    edge_req_take_body(req, ticket);
}

static void exchange_ask_done(void *arg, enum err err)
{
    struct exchange *ex = exchange_of(arg);
    if (err && !ex->err)
        ex->err = err;
    if (ex->err)
        exchange_refused_done(ex, ex->err);
    else
        loop_post(ex->rq.admin->loop, exchange_asked, ex);
}

/* ---- a GET that waits ---------------------------------------------------------------------------------------------------- */

#define AGAIN_MS    250 /* between two looks */
#define WAITING_MAX 256 /* more are answered at once, with what there is */

static void exchange_unlist(struct exchange *ex)
{
    struct exchange **at = &ex->http->waiting;
    while (*at != ex)
        at = &(*at)->waiting;
    *at = ex->waiting;
    ex->http->n_waiting--;
}

/* Looks again, as a request of its own would: who asks may have lost the right meanwhile. */
static void exchange_again(void *arg)
{
    struct exchange *ex = exchange_of(arg);
    struct http *h = ex->http;
    struct api *rq = &ex->rq;
    exchange_unlist(ex);
    if (!ex->req || h->draining || clock_mono_ms() >= ex->again_until_ms) {
        exchange_finish(ex);
        return;
    }
    struct api kept = *rq;
    *rq = (struct api){.magic = kept.magic, .admin = kept.admin, .route = kept.route, .now_s = clock_now_s(), .method = kept.method, .path = kept.path,
                       .query = kept.query, .authorization = kept.authorization, .for_vendor = kept.for_vendor};
    memcpy(rq->request_id, kept.request_id, sizeof rq->request_id);
    memcpy(rq->peer, kept.peer, sizeof rq->peer);
    memcpy(rq->peer_addr, kept.peer_addr, sizeof rq->peer_addr);
    memcpy(rq->params, kept.params, sizeof rq->params);
    kept.path = kept.query = kept.authorization = kept.for_vendor = NULL;
    api_release(&kept);
    if (db_post(h->admin->reader, DB_PLAIN, exchange_run, ex, exchange_done))
        exchange_busy(ex);
}

static void exchange_wait(void *arg)
{
    struct exchange *ex = exchange_of(arg);
    struct http *h = ex->http;
    if (!ex->again_until_ms)
        ex->again_until_ms = clock_mono_ms() + ex->rq.again_ms;
    if (!ex->req || h->draining || h->n_waiting >= WAITING_MAX) {
        exchange_finish(ex);
        return;
    }
    ex->waiting = h->waiting;
    h->waiting = ex;
    h->n_waiting++;
    if (!ex->again)
        ex->again = timer_new(h->admin->loop, exchange_again, ex);
    uint64_t now = clock_mono_ms(), left = ex->again_until_ms > now ? ex->again_until_ms - now : 0;
    timer_set(ex->again, left < AGAIN_MS ? left : AGAIN_MS);
}

static char *head_dup(const struct head *h, const char *name)
{
    struct str v = head_get(h, name, NULL);
    return v.p ? str_dup(v) : NULL;
}

static struct exchange *exchange_new(struct http *h, struct edge_req *req)
{
    const struct head *head = edge_req_head(req);
    struct exchange *ex = NEW(struct exchange);
    struct api *rq = &ex->rq;
    ex->http = h;
    ex->req = req;
    ex->started_us = clock_mono_us();
    rq->magic = EXCHANGE_MAGIC;
    rq->admin = h->admin;
    rq->now_s = clock_now_s();
    request_id_new(rq->request_id);
    snprintf(rq->peer, sizeof rq->peer, "%s", edge_req_peer(req));
    memcpy(rq->peer_addr, edge_req_peer_addr(req), sizeof rq->peer_addr);
    rq->method = head->method == HEAD_HEAD ? HEAD_GET : head->method;
    rq->path = str_dup(head->path);
    rq->query = str_dup(head->query);
    rq->authorization = head->authorization.p ? str_dup(head->authorization) : NULL;
    rq->if_match = head_dup(head, "if-match");
    rq->idempotency_key = head_dup(head, "idempotency-key");
    rq->content_type = head_dup(head, "content-type");
    rq->signature = head_dup(head, "x-pullgate-signature");
    rq->for_vendor = head_dup(head, "x-pullgate-vendor");
    ex->has_encoding = head_get(head, "content-encoding", NULL).p != NULL;
    ex->ticket = edge_req_ticket(req);
    struct str body = edge_req_body(req);
    if (body.n) {
        ex->body = str_dup(body);
        rq->body = (struct str){ex->body, body.n};
    }
    ex->is_portal = str_starts(head->path, S("/portal/"));
    rq->route = route_find(head->method, head->path, ex->values, &ex->allowed);
    for (size_t i = 0; i < API_MAX_PARAMS; i++)
        rq->params[i] = str_c(ex->values[i]);
    edge_req_set_handle(req, ex);
    return ex;
}

static void reply_plain(struct edge_req *req, int status, const char *type, struct str body)
{
    struct strbuf fields = {0};
    fields_common(&fields, type);
    edge_reply(req, status, (struct str){NULL, 0}, sb_str(&fields), body, -1);
    sb_free(&fields);
}

/* ---- health and metrics ------------------------------------------------------------------------------------------------ */

static void http_readyz(struct http *h, struct edge_req *req)
{
    struct db_state writer, reader;
    struct projector_state p = {0};
    struct room_state room;
    db_state(h->admin->writer, &writer);
    db_state(h->admin->reader, &reader);
    if (h->admin->projector)
        projector_state(h->admin->projector, &p);
    room_state(h->admin, &room);
    bool store_ok = !writer.is_failing && !reader.is_failing;
    bool ready = store_ok && !room.is_low && !h->clock_is_bad && !h->draining;
    struct jv *doc = jv_object();
    jv_set_c(doc, "status", ready ? "ready" : "not ready");
    jv_set_bool(doc, "store", store_ok);
    jv_set_bool(doc, "store_space", !room.is_low);
    jv_set_bool(doc, "clock", !h->clock_is_bad);
    jv_set_bool(doc, "draining", h->draining);
    /* Redis away stops no edit: the outbox keeps it. It is shown, and an alarm of its own. */
    jv_set_bool(doc, "redis", p.redis_up);
    jv_set_bool(doc, "in_sync", p.in_sync);
    jv_set_int(doc, "projection_lag", (int64_t)p.lag);
    struct strbuf b = {0};
    jv_dump(doc, &b);
    jv_free(doc);
    reply_plain(req, ready ? 200 : 503, "application/json", sb_str(&b));
    sb_free(&b);
}

static void metric(struct strbuf *b, const char *type, const char *name, const char *about, uint64_t value)
{
    sb_addf(b, "# HELP %s %s\n# TYPE %s %s\n%s %llu\n", name, about, name, type, name, (unsigned long long)value);
}

static void http_metrics(struct http *h, struct edge_req *req)
{
    struct strbuf b = {0};
    struct db_state w, r;
    struct projector_state p = {0};
    struct events_state e = {0};
    struct sync_state s = {0};
    struct edge_stats edge = {0};
    struct room_state room;
    room_state(h->admin, &room);
    db_state(h->admin->writer, &w);
    db_state(h->admin->reader, &r);
    if (h->admin->projector)
        projector_state(h->admin->projector, &p);
    if (h->admin->events)
        events_state(h->admin->events, &e);
    if (h->admin->sync)
        sync_state(h->admin->sync, &s);
    edge_stats(h->api, &edge);

    sb_addc(&b, "# HELP pullgate_admin_answers_total Answers of the API by class of status\n# TYPE pullgate_admin_answers_total counter\n");
    for (int i = 1; i < 6; i++)
        sb_addf(&b, "pullgate_admin_answers_total{class=\"%dxx\"} %llu\n", i, (unsigned long long)h->answers[i]);
    metric(&b, "counter", "pullgate_admin_busy_total", "Requests refused because a queue was full", h->unavailable);
    metric(&b, "gauge", "pullgate_admin_connections", "Open client connections", edge.open);
    metric(&b, "counter", "pullgate_admin_bad_heads_total", "Requests refused before they reached the API", edge.bad_heads);
    metric(&b, "gauge", "pullgate_admin_writer_queued", "Jobs waiting for the writing connection", w.queued);
    metric(&b, "counter", "pullgate_admin_writer_failed_total", "Jobs of the writing connection that failed", w.failed);
    metric(&b, "gauge", "pullgate_admin_reader_queued", "Jobs waiting for the reading connection", r.queued);
    metric(&b, "counter", "pullgate_admin_reader_failed_total", "Jobs of the reading connection that failed", r.failed);
    metric(&b, "gauge", "pullgate_admin_store_free_bytes", "Free on the store's file system; 0: not known", room.free_bytes);
    metric(&b, "gauge", "pullgate_admin_store_full", "1: less than store.min_free, changes are refused", room.is_low);
    metric(&b, "counter", "pullgate_admin_store_full_refused_total", "Changes and reports refused for that", room.refused);
    metric(&b, "gauge", "pullgate_admin_redis_up", "1: the projector reaches Redis", p.redis_up);
    metric(&b, "gauge", "pullgate_admin_projection_in_sync", "1: Redis holds what the store says", p.in_sync);
    metric(&b, "gauge", "pullgate_admin_projection_epoch", "Newest change that stands in Redis", p.projected);
    metric(&b, "gauge", "pullgate_admin_projection_lag", "Changes that Redis does not have yet", p.lag);
    metric(&b, "gauge", "pullgate_admin_facts", "Facts that exist", p.facts);
    metric(&b, "counter", "pullgate_admin_projection_rebuilds_total", "Times Redis was filled anew", p.rebuilds);
    metric(&b, "counter", "pullgate_admin_projection_repaired_total", "Values in Redis found missing or altered", p.repaired);
    metric(&b, "counter", "pullgate_admin_pulls_total", "Pulls and denials taken into the store", e.pulls);
    metric(&b, "counter", "pullgate_admin_events_bad_total", "Reports of proxies that were refused", e.bad);
    metric(&b, "gauge", "pullgate_admin_events_pending", "Reports of proxies not yet in the store", e.pending);
    metric(&b, "counter", "pullgate_admin_sync_rounds_total", "Repositories looked at", s.rounds);
    metric(&b, "counter", "pullgate_admin_sync_failures_total", "Repositories that could not be looked at", s.failures);
    if (h->admin->jobs) {
        struct jobs_state j;
        jobs_state(h->admin->jobs, &j);
        metric(&b, "counter", "pullgate_admin_jobs_total", "Licenses and credentials that the clock had something to do with", j.done);
        metric(&b, "counter", "pullgate_admin_jobs_failed_total", "Of these: put off, see GET /job-errors", j.failed);
        metric(&b, "gauge", "pullgate_admin_jobs_due", "Licenses and credentials that wait for the clock's work", j.due);
        metric(&b, "gauge", "pullgate_admin_jobs_lag_seconds", "How late the oldest of them is", j.lag_s);
        metric(&b, "gauge", "pullgate_admin_oldest_inactive_seconds", "Age of the license that has waited longest for its activation", j.oldest_inactive_s);
        metric(&b, "gauge", "pullgate_admin_deliveries_pending", "Deliveries to webhooks not yet made", j.deliveries_pending);
        metric(&b, "gauge", "pullgate_admin_deliveries_failed", "Deliveries given up, in the time that they are kept", j.deliveries_failed);
        metric(&b, "gauge", "pullgate_admin_mails_pending", "Mails not yet taken by the mail server", j.mails_pending);
        metric(&b, "gauge", "pullgate_admin_mails_failed", "Mails given up, in the time that they are kept", j.mails_failed);
        sb_addc(&b, "# HELP pullgate_admin_pruned_total Rows that were over and are gone (retention)\n# TYPE pullgate_admin_pruned_total counter\n");
        for (size_t i = 0; i < RETENTION_KINDS; i++)
            sb_addf(&b, "pullgate_admin_pruned_total{kind=\"%s\"} %llu\n", RETENTION_NAMES[i], (unsigned long long)j.pruned[i]);
    }
    metric(&b, "counter", "pullgate_admin_sign_in_alerts_total", "Addresses, accounts, and accounts from one address with 20 failed sign-ins",
           failures_alerts(h->admin->addresses) + failures_alerts(h->admin->accounts));
    metric(&b, "gauge", "pullgate_admin_clock_bad", "1: the clock is behind what it was", h->clock_is_bad);
    if (h->admin->reload) {
        struct reload_counts reloads;
        reload_counts(h->admin->reload, &reloads);
        reload_metrics(&reloads, &b);
    }
    reload_certificate_metrics(h->tls, &b);
    clockwatch_metrics(&b);
    metrics_write_process(&b);
    reply_plain(req, 200, "text/plain; version=0.0.4; charset=utf-8", sb_str(&b));
    sb_free(&b);
}

/* True when the request was one of these. */
static bool http_health(struct http *h, struct edge_req *req, bool has_metrics)
{
    const struct head *head = edge_req_head(req);
    bool is_get = head->method == HEAD_GET || head->method == HEAD_HEAD;
    if (is_get && str_eq(head->path, S("/healthz")))
        reply_plain(req, 200, "application/json", S("{\"status\":\"ok\"}"));
    else if (is_get && str_eq(head->path, S("/readyz")))
        http_readyz(h, req);
    else if (is_get && has_metrics && str_eq(head->path, S("/metrics")))
        http_metrics(h, req);
    else
        return false;
    return true;
}

/* ---- edge callbacks ---------------------------------------------------------------------------------------------------- */

static void reply_problem(struct edge_req *req, int status, const char *code, const char *title, unsigned retry_after_s)
{
    struct strbuf fields = {0}, body = {0};
    fields_common(&fields, "application/problem+json");
    if (retry_after_s)
        sb_addf(&fields, "Retry-After: %u\r\n", retry_after_s);
    problem_print(&body, status, code, title, title, NULL, NULL, NULL);
    edge_reply(req, status, (struct str){NULL, 0}, sb_str(&fields), sb_str(&body), -1);
    sb_free(&fields);
    sb_free(&body);
}

static void on_request(void *ctx, struct edge_req *req)
{
    struct http *h = ctx;
    if (http_health(h, req, false))
        return;
    const struct head *head = edge_req_head(req);
    if (!str_starts(head->path, S("/api/v1/")) && !str_starts(head->path, S("/portal/v1/")) && !str_starts(head->path, S("/.well-known/"))) {
        h->answers[4]++;
        reply_problem(req, 404, "not_found", err_text(ERR_NOT_FOUND), 0);
        return;
    }
    struct exchange *ex = exchange_new(h, req);
    const struct route *r = ex->rq.route;
    if (edge_req_is_asking(req)) {
        if (db_post(h->admin->reader, DB_PLAIN, exchange_ask_run, ex, exchange_ask_done))
            exchange_busy(ex);
        return;
    }
    bool hashes = r && r->flags & ROUTE_HASHES;
    struct db *lane = hashes                           ? h->admin->hasher
                      : r && r->flags & ROUTE_SLOW     ? h->admin->slow
                      : !r || !route_writes(&ex->rq)   ? h->admin->reader
                                                       : h->admin->writer;
    bool is_slow = lane == h->admin->slow;
    if (db_post(lane, DB_PLAIN, hashes ? exchange_hash_run : exchange_run, ex, hashes ? exchange_hash_done : is_slow ? exchange_refused_done : exchange_done))
        exchange_busy(ex);
}

static void on_metrics_request(void *ctx, struct edge_req *req)
{
    struct http *h = ctx;
    if (!http_health(h, req, true))
        reply_problem(req, 404, "not_found", err_text(ERR_NOT_FOUND), 0);
}

static void on_gone(void *ctx, struct edge_req *req, void *handle, bool too_slow)
{
    (void)ctx;
    (void)req;
    (void)too_slow;
    if (handle)
        exchange_of(handle)->req = NULL; /* what it changes is changed all the same; nobody is told */
}

static void on_drain(void *ctx, struct edge_req *req, void *handle)
{
    (void)ctx;
    (void)req;
    (void)handle;
}

/* A path whose bodies may be larger than the others', and what this one may be. */
static size_t body_limit_of_rows(const struct http *h, const struct head *head)
{
    char *values[API_MAX_PARAMS] = {0};
    unsigned allowed;
    const struct route *r = route_find(head->method, head->path, values, &allowed);
    for (size_t i = 0; i < API_MAX_PARAMS; i++)
        mem_free(values[i]);
    if (!r || !(r->flags & ROUTE_ROWS))
        return admin_config(h->admin)->limits.admin_body_bytes;
    size_t max = admin_config(h->admin)->limits.import_body_bytes;
    return head->length <= max ? EDGE_BODY_ASK : max;
}

static void on_ticket(void *ctx, int ticket)
{
    large_give(ctx, ticket);
}

static size_t body_limit(void *ctx, const struct head *head)
{
    struct http *h = ctx;
    if (head->method == HEAD_POST && head->length > h->admin->cfg->limits.admin_body_bytes)
        return body_limit_of_rows(h, head);
    switch (head->method) {
    case HEAD_POST:
    case HEAD_PUT:
    case HEAD_PATCH:
    case HEAD_DELETE:
        return h->admin->cfg->limits.admin_body_bytes;
    case HEAD_METHOD_NONE:
    case HEAD_GET:
    case HEAD_HEAD:
    case HEAD_OPTIONS:
    case HEAD_OTHER:
        break;
    }
    return 0;
}

static size_t body_limit_none(void *ctx, const struct head *head)
{
    (void)ctx;
    (void)head;
    return 0;
}

static void refusal(void *ctx, int status, const char *reason, struct strbuf *fields, struct strbuf *body)
{
    (void)ctx;
    const char *code = status == 413   ? "too_large"
                       : status == 408 ? "timeout"
                       : status == 503 ? "unavailable"
                       : status >= 500 ? "not_supported"
                                       : "malformed_request";
    fields_common(fields, "application/problem+json");
    problem_print(body, status, code, reason, reason, NULL, NULL, NULL);
}

static void on_refused(void *ctx, const char *peer, int status, const char *reason)
{
    struct http *h = ctx;
    static unsigned long long last;
    h->answers[status / 100 % 6]++;
    log_limited(&last, 1000, LOG_LEVEL_INFO, "refused %s: %d %s", peer, status, reason);
}

/* ---- life ---------------------------------------------------------------------------------------------------------------- */

struct http *http_new(struct admin *a)
{
    struct http *h = NEW(struct http);
    h->admin = a;
    h->access_fd = -1;
    a->addresses = failures_new(a, "address");
    a->accounts = failures_new(a, "account");
    h->shared = edge_shared_new(a->cfg->limits.connections, a->cfg->limits.connections_per_ip);
    h->metrics_shared = edge_shared_new(METRICS_CONNECTIONS, METRICS_CONNECTIONS);
    const struct edge_handlers api = {.ctx = h,
                                      .body_limit = body_limit,
                                      .on_ticket = on_ticket,
                                      .on_request = on_request,
                                      .on_gone = on_gone,
                                      .on_drain = on_drain,
                                      .refusal = refusal,
                                      .on_refused = on_refused};
    struct edge_handlers metrics = api;
    metrics.body_limit = body_limit_none;
    metrics.on_request = on_metrics_request;
    h->api = edge_new(a->loop, a->cfg, h->shared, &api);
    edge_front(h->api, &a->cfg->admin.trusted_proxies, a->cfg->admin.proxy_protocol, a->cfg->admin.forwarded_field);
    h->metrics = edge_new(a->loop, a->cfg, h->metrics_shared, &metrics);
    return h;
}

static enum err http_open_access_log(struct http *h, struct error *reterr)
{
    const char *path = h->admin->cfg->log.access_path;
    if (path && strcmp(path, "off") == 0)
        return ERR_OK;
    h->access_fd = path && *path ? open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0640) : dup(STDOUT_FILENO);
    if (h->access_fd < 0)
        return error_set_field(reterr, ERR_UNAVAILABLE, "log.access_path", "log.access_path: %s: %s", path ? path : "", strerror(errno));
    return ERR_OK;
}

static enum err http_listen_on(struct edge *e, struct edge_tls *tls, struct listeners *l, const char *what, struct strbuf *ports, struct error *reterr)
{
    for (size_t i = 0; i < l->n; i++) {
        enum err err = edge_accept(e, listeners_take(l, i), tls, reterr);
        if (err)
            return err;
        sb_addf(ports, "%s\n", l->bound[i]);
        log_info("%s on %s%s%s", what, l->bound[i], tls ? " with TLS" : "", l->is_given ? " (the service manager's)" : "");
    }
    return ERR_OK;
}

void http_configure(struct http *h, struct edge_tls *tls)
{
    struct error error = {0};
    if (tls) {
        edge_replace_tls(h->api, tls);
        edge_tls_unref(&h->tls);
        h->tls = edge_tls_ref(tls);
    }
    int old = h->access_fd;
    if (http_open_access_log(h, &error)) {
        log_error("%s; the lines go where they went", error.text);
        h->access_fd = old;
    } else if (old >= 0) {
        close(old);
    }
}

enum err http_listen(struct http *h, struct http_sockets *sockets, struct error *reterr)
{
    struct config *cfg = h->admin->cfg;
    struct strbuf ports = {0};
    enum err err = http_open_access_log(h, reterr);
    h->tls = sockets->tls ? edge_tls_ref(sockets->tls) : NULL;
    if (!err)
        err = http_listen_on(h->api, h->tls, &sockets->api, "listen", &ports, reterr);
    if (!err)
        err = http_listen_on(h->metrics, NULL, &sockets->metrics, "metrics", &ports, reterr);
    const char *file = cfg->admin.port_file;
    if (!err && file && *file && !file_write_whole(file, sb_str(&ports)))
        err = error_set_field(reterr, ERR_UNAVAILABLE, "admin.port_file", "admin.port_file: %s: %s", file, strerror(errno));
    sb_free(&ports);
    return err;
}

enum err http_bind(const struct config *cfg, struct http_sockets *ret, struct error *reterr)
{
    static const char *const names[] = {"admin", "metrics", NULL};
    enum err err = listeners_check_names(names, reterr);
    if (!err && cfg->admin.tls.cert && *cfg->admin.tls.cert)
        err = edge_tls_load(&cfg->admin.tls, &ret->tls, reterr);
    if (!err)
        err = listeners_open(&cfg->admin.listen, "admin", true, &ret->api, reterr);
    if (!err)
        err = listeners_open(&cfg->admin.metrics_listen, "metrics", false, &ret->metrics, reterr);
    return err;
}

void http_sockets_free(struct http_sockets *s)
{
    listeners_close(&s->api);
    listeners_close(&s->metrics);
    edge_tls_unref(&s->tls);
}

static void http_edge_drained(void *ctx)
{
    struct http *h = ctx;
    if (--h->draining_edges == 0)
        h->on_drained(h->on_drained_ctx);
}

void http_drain(struct http *h, void (*on_drained)(void *ctx), void *ctx)
{
    if (h->draining)
        return;
    h->draining = true;
    h->draining_edges = 2;
    h->on_drained = on_drained;
    h->on_drained_ctx = ctx;
    edge_drain(h->api, http_edge_drained, h);
    edge_drain(h->metrics, http_edge_drained, h);
}

void http_set_clock_bad(struct http *h, bool is_bad)
{
    h->clock_is_bad = is_bad;
}

void http_free(struct http **ph)
{
    struct http *h = *ph;
    if (!h)
        return;
    *ph = NULL;
    while (h->waiting) {
        struct exchange *ex = h->waiting;
        exchange_unlist(ex);
        if (ex->req)
            edge_req_set_handle(ex->req, NULL);
        exchange_free(ex);
    }
    edge_free(&h->api);
    edge_free(&h->metrics);
    edge_tls_unref(&h->tls);
    edge_shared_free(&h->shared);
    edge_shared_free(&h->metrics_shared);
    if (h->access_fd >= 0)
        close(h->access_fd);
    failures_free(&h->admin->addresses);
    failures_free(&h->admin->accounts);
    mem_free(h);
}
