/* One request and its answer: the step table, the waits, and the one end.
 * Reads the route, leaves who asks to authn.c, what he has to entitle.c, what there is to content.c, bytes to relay.c. */
#include "exchange.h"

#include <stdio.h>
#include <string.h>

#include "pullgate/clock.h"
#include "pullgate/log.h"
#include "pullgate/mem.h"

#include "accesslog.h"
#include "admission.h"
#include "guard.h"
#include "metrics.h"
#include "pullevent.h"

#define HOLD_RETRY_MS 200 /* between tries of a step whose dependency could not tell */
#define RANGE_BYTES (256 * 1024) /* of a transfer of its own, beside what waits for the client: libcurl's buffer, twice while it is paused */
#define CUSTOMER_PART 1   /* of the transfers that may be: as many as are free, so a half alone */
#define UPSTREAM_PART 3   /* three quarters alone: one that is slow leaves room for the others */

static const char *const end_texts[] = {
#define X(name, text) [END_##name] = text,
    END_LIST(X)
#undef X
};

static enum next step_route(struct exchange *ex);
static enum next step_answer(struct exchange *ex);

static const struct step {
    const char *name;
    enum next (*run)(struct exchange *ex);
} steps[EX_STEPS] = {
    [EX_ROUTE] = {"route", step_route},       /* method + path -> struct oci_request */
    [EX_AUTHN] = {"authn", authn_step},       /* waits: the credential's fact */
    [EX_ENTITLE] = {"entitle", entitle_step}, /* waits: the customer's and the repository's facts */
    [EX_ANSWER] = {"answer", step_answer},    /* waits: content, the client */
};

struct exchange *exchange_check(void *ctx)
{
    struct exchange *ex = ctx;
    AN(ex != NULL && ex->magic == EXCHANGE_MAGIC);
    return ex;
}

void exchange_run(struct exchange *ex)
{
    while (steps[ex->step].run(ex) == NEXT_STEP)
        ;
}

/* ---- route ---------------------------------------------------------------------------------- */

static enum next overloaded(struct exchange *ex, enum admission_refused why, struct str message, const char *fields)
{
    admission_count(ex->w->proxy->admission, why);
    return respond_oci_error(ex, 503, "UNAVAILABLE", message, END_OVERLOADED, fields);
}

static enum next step_route(struct exchange *ex)
{
    const struct head *h = ex->head;
    struct error error = {0};

    ex->is_head = h->method == HEAD_HEAD;
    ex->step = EX_AUTHN;
    bool is_token = str_eq(h->path, S("/token"));
    enum admission_level admits = admission_level(ex->w->proxy->admission);
    if (admits == ADMIT_NONE && (is_token || str_starts(h->path, S("/v2/")))) /* before anything is looked up or kept for it */
        return overloaded(ex, REFUSED_MEMORY, S("too busy, try again"), "Retry-After: 5\r\n");
    if (is_token) {
        if (h->method != HEAD_GET && h->method != HEAD_POST)
            return respond_oci_error(ex, 405, "UNSUPPORTED", S("the token endpoint takes GET and POST"), END_REFUSED, "Allow: GET, POST\r\n");
        ex->route = ROUTE_TOKEN;
        return tokens_answer(ex); /* signs in by itself: its password may stand in a form */
    }
    bool reads = h->method == HEAD_GET || h->method == HEAD_HEAD;
    if (str_eq(h->path, S("/healthz")) && reads)
        return respond_json(ex, 200, "application/json", S("{\"status\":\"ok\"}\n"), NULL, END_OK);
    if (str_eq(h->path, S("/readyz")) && reads) {
        bool ready = facts_staleness_ms(ex->w->facts) <= ex->w->cfg->cache.max_staleness_ms;
        return respond_json(ex, ready ? 200 : 503, "application/json",
                            ready ? S("{\"status\":\"ready\"}\n") : S("{\"status\":\"not ready\",\"reason\":\"the cache is not confirmed\"}\n"), NULL,
                            ready ? END_OK : END_FACTS_UNAVAILABLE);
    }
    enum err e = oci_route_parse(h->target, &ex->oci, &error);
    if (e == ERR_NOT_FOUND)
        return respond_oci_error(ex, 404, "NOT_FOUND", S("no such endpoint"), END_REFUSED, NULL);
    if (!reads) {
        /* Pull only. Said before anyone is asked who he is: a write is never forwarded for anybody. */
        ex->oci.kind = OCI_NONE;
        return respond_oci_error(ex, 405, "UNSUPPORTED", S("this registry serves pulls only"), END_REFUSED, "Allow: GET, HEAD\r\n");
    }
    if (e != ERR_OK) {
        ex->oci.kind = OCI_NONE;
        return respond_oci_error(ex, 400, error.field[0] != '\0' ? error.field : "NAME_INVALID", S("the name, tag or digest is not well formed"),
                                 END_REFUSED, NULL);
    }
    if (ex->oci.kind == OCI_UPLOAD)
        return respond_oci_error(ex, 405, "UNSUPPORTED", S("this registry serves pulls only"), END_REFUSED, "Allow: GET, HEAD\r\n");
    if (admits == ADMIT_SMALL && ex->oci.kind == OCI_BLOB && !ex->is_head)
        return overloaded(ex, REFUSED_MEMORY_BLOB, S("too busy for blobs, try again"), "Retry-After: 5\r\n");
    ex->route = ROUTE_REGISTRY;
    return NEXT_STEP;
}

/* ---- answer --------------------------------------------------------------------------------- */

static enum next answer_given(struct exchange *ex);
static void wait_give(struct exchange *ex);

static void on_content(void *ctx, struct content_answer *a)
{
    struct exchange *ex = EXCHANGE(ctx);

    ex->content_op = NULL;
    wait_give(ex);
    ex->answer = *a;
    /* The message's buffer moves to us; content frees what it finds there. */
    a->message = (struct strbuf){0};
    if (answer_given(ex) == NEXT_STEP)
        exchange_run(ex);
}

static void on_relay_done(void *ctx, const struct relay_result *r)
{
    struct exchange *ex = EXCHANGE(ctx);

    ex->relay = NULL;
    ex->bytes = r->bytes_sent;
    ex->detail = r->detail;
    ex->from_cache = r->from_cache;
    ex->first_byte_us = r->head_us;
    if (r->head_sent) { /* the edge has finished with it, or cut it */
        ex->req = NULL;
        ex->status = r->status;
    }
    switch (r->end) {
    case RELAY_OK:
        ex->status = r->status;
        exchange_end(ex, END_OK);
        return;
    case RELAY_UPSTREAM_CUT:
        exchange_end(ex, END_UPSTREAM_CUT);
        return;
    case RELAY_TOO_LONG:
        exchange_end(ex, END_TOO_LONG);
        return;
    case RELAY_DIGEST_MISMATCH:
        log_error("blob of repository %.*s: the upstream's bytes do not match their digest", STR(ex->oci.repository));
        exchange_end(ex, END_DIGEST_MISMATCH);
        return;
    case RELAY_NOT_SATISFIABLE: {
        struct strbuf fields = {0};
        sb_addf(&fields, "Content-Range: bytes */%llu\r\n", (unsigned long long)r->size);
        respond_oci_error(ex, 416, "RANGE_INVALID", S("the range is outside the blob"), END_RANGE, fields.p);
        sb_free(&fields);
        return;
    }
    case RELAY_REDIRECT: {
        struct strbuf fields = {0};
        sb_addf(&fields, "Location: %s\r\n", r->location);
        respond_json(ex, 307, "text/plain", S(""), fields.p, END_REDIRECTED);
        sb_free(&fields);
        return;
    }
    case RELAY_OVERLOADED:
        respond_oci_error(ex, 503, "UNAVAILABLE", S("too many transfers at once, try again"), END_OVERLOADED, "Retry-After: 2\r\n");
        return;
    case RELAY_UPSTREAM_FAILED:
        if (r->head_sent) {
            exchange_end(ex, END_UPSTREAM_CUT);
            return;
        }
        if (r->err == ERR_NOT_FOUND) {
            respond_oci_error(ex, 404, "BLOB_UNKNOWN", S("blob unknown to registry"), END_NOT_FOUND, NULL);
            return;
        }
        ex->head = edge_req_head(ex->req); /* still open: nothing was answered */
        exchange_hold_or_fail(ex, r->err, r->retry_after_s, r->detail);
        return;
    }
}

/* The relay ends the request in the edge before it tells us: what the access line needs of the head is copied first. */
static void exchange_keep(struct exchange *ex)
{
    struct str agent = head_get(ex->head, "user-agent", NULL);
    size_t n = ex->oci.repository.n + ex->oci.reference.n + agent.n;
    char *at = ex->kept = mem_alloc(n + 1);
    struct str *const parts[] = {&ex->oci.repository, &ex->oci.reference, &agent};

    for (size_t i = 0; i < 3; i++) {
        memcpy(at, parts[i]->p != NULL ? parts[i]->p : "", parts[i]->n);
        parts[i]->p = at;
        at += parts[i]->n;
    }
    ex->agent = agent;
    ex->head = NULL;
}

/* What the customer and its upstream hold while this transfer lasts. False: it waits for its turn, or has been answered (*ret_next). */
static bool stream_take(struct exchange *ex, enum next *ret_next)
{
    struct guard *g = ex->w->proxy->guard;
    struct str customer = str_c(ex->credential->credential->customer_id), upstream = str_c(ex->repository->repository->upstream_id);
    uint64_t max = ex->w->cfg->limits.streams_per_worker * ex->w->proxy->n_workers;
    bool by_customer = !guard_share_take(g, SHARE_CUSTOMER_STREAMS, customer, CUSTOMER_PART, max);

    if (!by_customer && guard_share_take(g, SHARE_UPSTREAM_STREAMS, upstream, UPSTREAM_PART, max)) {
        ex->has_stream = true;
        ex->stream_customer = str_dup(customer); /* facts may be looked up anew while it lasts */
        ex->stream_upstream = str_dup(upstream);
        return true;
    }
    if (!by_customer)
        guard_share_give(g, SHARE_CUSTOMER_STREAMS, customer);
    if (exchange_wait_turn(ex)) {
        *ret_next = NEXT_WAIT;
    } else if (by_customer) { /* 429: most clients come again, where a 503 ends their pull */
        admission_count(ex->w->proxy->admission, REFUSED_CUSTOMER);
        ex->reason = REASON_RATE_LIMITED;
        *ret_next = respond_oci_error(ex, 429, "TOOMANYREQUESTS", S("too many transfers of this customer at once, try again"), END_RATE_LIMITED,
                                      "Retry-After: 2\r\n");
    } else {
        *ret_next = overloaded(ex, REFUSED_UPSTREAM, S("too many transfers at once, try again"), "Retry-After: 2\r\n");
    }
    return false;
}

static void stream_give(struct exchange *ex)
{
    if (!ex->has_stream)
        return;
    ex->has_stream = false;
    guard_share_give(ex->w->proxy->guard, SHARE_CUSTOMER_STREAMS, str_c(ex->stream_customer));
    guard_share_give(ex->w->proxy->guard, SHARE_UPSTREAM_STREAMS, str_c(ex->stream_upstream));
    MEM_FREE(ex->stream_customer);
    MEM_FREE(ex->stream_upstream);
    turns_wake(ex->w->turns);
}

/* Requests that wait for one upstream: a slow one must not have every connection of ours. */
static bool wait_take(struct exchange *ex)
{
    struct str upstream = str_c(ex->repository != NULL ? ex->repository->repository->upstream_id : NULL);

    if (ex->has_wait || upstream.n == 0)
        return true;
    if (!guard_share_take(ex->w->proxy->guard, SHARE_UPSTREAM_WAITS, upstream, UPSTREAM_PART, ex->w->cfg->limits.connections / 2 + 1))
        return false;
    ex->has_wait = true;
    return true;
}

static void wait_give(struct exchange *ex)
{
    if (ex->has_wait)
        guard_share_give(ex->w->proxy->guard, SHARE_UPSTREAM_WAITS, str_c(ex->repository->repository->upstream_id));
    ex->has_wait = false;
}

static void flight_give(struct exchange *ex)
{
    if (!ex->in_flight)
        return;
    ex->in_flight = false;
    guard_customer_done(ex->w->proxy->guard, str_c(ex->credential->credential->customer_id));
    turns_wake(ex->w->turns);
}

static enum next blob_relay(struct exchange *ex)
{
    enum next refused;

    /* A part of a blob may come past the file, through memory. */
    if (!ex->is_head && head_get(ex->head, "range", NULL).n > 0 &&
        !admission_reserve(ex->w->proxy->admission, ex->w->cfg->limits.buffer_high + RANGE_BYTES))
        return overloaded(ex, REFUSED_MEMORY_BLOB, S("too busy for blobs, try again"), "Retry-After: 5\r\n");
    if (!ex->has_stream && !stream_take(ex, &refused))
        return refused;
    struct strbuf fields = {0};
    const struct fact_repository *repo = ex->repository->repository;
    struct relay_ask ask = {
        .req = ex->req,
        .upstream_id = str_c(repo->upstream_id),
        .upstream_repository = str_c(repo->upstream_repository),
        .repository_id = str_c(repo->id),
        .digest = ex->oci.digest,
        .owner = customer_mark(ex->customer),
        .size_hint = ex->answer.size,
        .head_only = ex->is_head,
        .range = head_get(ex->head, "range", NULL),
    };

    respond_common_fields(ex, &fields);
    ask.fields = sb_str(&fields);
    exchange_keep(ex);
    flight_give(ex); /* decided: what follows is a transfer */
    ex->relay = relay_start(ex->w, &ask, on_relay_done, ex);
    sb_free(&fields);
    return NEXT_WAIT;
}

static enum next answer_given(struct exchange *ex)
{
    struct content_answer *a = &ex->answer;

    if (a->err != ERR_OK) {
        if (a->err == ERR_NOT_FOUND)
            return respond_oci_error(ex, 404, "MANIFEST_UNKNOWN", S("manifest unknown: it is granted, but the vendor's registry does not have it"),
                                     END_NOT_FOUND, NULL);
        return exchange_hold_or_fail(ex, a->err, a->retry_after_s, a->detail);
    }
    ex->reason = a->decision.reason;
    if (a->decision.license != NULL)
        ex->license_id = a->decision.license->id;
    if (a->decision.verdict != VERDICT_ALLOW)
        return respond_decision(ex);
    if (ex->is_bearer && !ex->token_covers)
        return authn_refuse(ex, S("the token does not cover this repository"), REASON_UNKNOWN, false);
    if (ex->oci.kind == OCI_BLOB)
        return blob_relay(ex);
    return respond_manifest(ex);
}

struct content_ask exchange_asks(const struct exchange *ex)
{
    return (struct content_ask){
        .customer = ex->customer,
        .repository = ex->repository,
        .credential = ex->credential->credential,
        .request = &ex->oci,
        .client_addr = edge_req_peer_addr(ex->req),
        .degraded = ex->degraded,
    };
}

static enum next step_answer(struct exchange *ex)
{
    if (ex->waited && ex->facts_us == 0)
        ex->facts_us = clock_mono_us();
    switch (ex->oci.kind) {
    case OCI_PING:
        return respond_json(ex, 200, "application/json", S("{}"), NULL, END_OK);
    case OCI_TAGS:
    case OCI_CATALOG:
    case OCI_REFERRERS:
        ex->w->on_behalf = customer_mark(ex->customer);
        return discovery_start(ex);
    case OCI_MANIFEST:
    case OCI_BLOB:
        break;
    case OCI_NONE:
    case OCI_UPLOAD:
        WRONG("routed already");
    }
    ex->ask = exchange_asks(ex);
    ex->ask.want_bytes = ex->oci.kind == OCI_MANIFEST && !ex->is_head;
    sb_free(&ex->answer.message);
    memset(&ex->answer, 0, sizeof ex->answer);
    ex->w->on_behalf = customer_mark(ex->customer);
    ex->content_op = content_ask(ex->w->content, &ex->ask, &ex->answer, on_content, ex);
    if (ex->content_op == NULL)
        return answer_given(ex);
    if (!content_asks_upstream(ex->content_op) || wait_take(ex))
        return NEXT_WAIT;
    content_cancel(&ex->content_op);
    return overloaded(ex, REFUSED_UPSTREAM, S("too many requests wait for the vendor's registry, try again"), "Retry-After: 5\r\n");
}

/* ---- waiting for what could not tell --------------------------------------------------------- */

static void on_retry(void *ctx)
{
    exchange_run(EXCHANGE(ctx));
}

/* Facts may have moved meanwhile: it will begin again from the head. */
static void exchange_rewind(struct exchange *ex)
{
    fact_unref(&ex->customer);
    fact_unref(&ex->repository);
    fact_unref(&ex->credential);
    if (ex->kept != NULL && oci_route_parse(ex->head->target, &ex->oci, NULL) != ERR_OK) /* the client may leave before the step that reads it anew */
        memset(&ex->oci, 0, sizeof ex->oci);
    ex->agent = (struct str){NULL, 0};
    MEM_FREE(ex->kept);
    ex->detail = NULL; /* lived in what has just ended */
    ex->license_id = (struct str){NULL, 0};
    ex->reason = REASON_UNKNOWN;
    ex->status = 0;
    ex->step = EX_ROUTE;
}

bool exchange_wait_turn(struct exchange *ex)
{
    uint64_t now = loop_now_ms(ex->w->loop);

    if (ex->turn_until_ms == 0)
        ex->turn_until_ms = now + ex->w->cfg->cache.hold_on_unknown_ms;
    if (now + TURNS_LOOK_MS >= ex->turn_until_ms)
        return false;
    uint64_t key = customer_mark(ex->customer);
    flight_give(ex);
    exchange_rewind(ex);
    turns_wait(ex->w->turns, key, &ex->turn);
    return true;
}

void exchange_on_turn(struct turn *t)
{
    exchange_run(EXCHANGE((char *)t - offsetof(struct exchange, turn)));
}

enum next exchange_hold_or_fail(struct exchange *ex, enum err err, unsigned retry_after_s, const char *detail)
{
    static unsigned long long last_log;
    uint64_t now = loop_now_ms(ex->w->loop);

    if (ex->hold_until_ms == 0) /* from its arrival: what took longer than that to fail is not begun again */
        ex->hold_until_ms = ex->start_us / 1000 + ex->w->cfg->cache.hold_on_unknown_ms;
    log_limited(&last_log, 1000, LOG_LEVEL_WARN, "request %s cannot be decided yet: %s%s%s", ex->id, err_text(err), detail != NULL ? ": " : "",
                detail != NULL ? detail : "");
    if (now + HOLD_RETRY_MS < ex->hold_until_ms) {
        flight_give(ex); /* another may be decided meanwhile */
        exchange_rewind(ex);
        if (ex->retry == NULL)
            ex->retry = timer_new(ex->w->loop, on_retry, ex);
        timer_set(ex->retry, HOLD_RETRY_MS);
        return NEXT_WAIT;
    }
    return respond_unavailable(ex, err, retry_after_s);
}

/* ---- begin and end --------------------------------------------------------------------------- */

/* Exchanges are reused within a worker: a request costs no allocation. */
static _Thread_local struct exchange *free_exchanges;

static void on_request(void *ctx, struct edge_req *req)
{
    struct worker *w = ctx;
    struct exchange *ex = free_exchanges;

    clock_hold();
    if (ex != NULL) {
        free_exchanges = ex->next_free;
        memset(ex, 0, sizeof *ex);
    } else {
        ex = NEW(struct exchange);
    }
    ex->magic = EXCHANGE_MAGIC;
    ex->w = w;
    ex->req = req;
    ex->head = edge_req_head(req);
    memcpy(ex->peer, edge_req_peer(req), strnlen(edge_req_peer(req), sizeof ex->peer - 1));
    ex->start_us = clock_mono_us();
    request_id_new(ex->id);
    edge_req_set_handle(req, ex);
    exchange_run(ex); /* ex may be over */
    clock_release();
}

static void on_gone(void *ctx, struct edge_req *req, void *handle, bool too_slow)
{
    struct exchange *ex = EXCHANGE(handle);

    (void)ctx, (void)req;
    ex->req = NULL;
    if (ex->relay != NULL) {
        struct relay_result r = relay_so_far(ex->relay);
        ex->status = r.status;
        ex->bytes = r.bytes_sent;
        ex->from_cache = r.from_cache;
        ex->first_byte_us = r.head_us;
    }
    exchange_end(ex, too_slow ? END_CLIENT_SLOW : END_CLIENT_GONE);
}

static void on_drain(void *ctx, struct edge_req *req, void *handle)
{
    struct exchange *ex = EXCHANGE(handle);

    (void)ctx, (void)req;
    if (ex->relay != NULL)
        relay_drained(ex->relay);
}

static size_t body_limit(void *ctx, const struct head *h)
{
    struct worker *w = ctx;

    return h->method == HEAD_POST && str_eq(h->path, S("/token")) ? w->cfg->limits.token_body_bytes : 0;
}

static void on_refused(void *ctx, const char *peer, int status, const char *reason)
{
    struct worker *w = ctx;
    struct access_line line = {.worker = w, .peer = peer, .status = status, .cause = "refused", .reason = reason};

    accesslog_write(w->access, &line);
    proxy_metrics_refused(w, status);
}

static void on_too_slow(void *ctx, const char *peer)
{
    struct worker *w = ctx;
    struct access_line line = {.worker = w, .peer = peer, .cause = end_texts[END_CLIENT_SLOW], .detail = "an answer that was given was not taken"};

    accesslog_write(w->access, &line);
}

static const char *action_text(const struct exchange *ex)
{
    static const char *const kinds[] = {
        [OCI_NONE] = "",         [OCI_PING] = "ping",           [OCI_MANIFEST] = "manifest", [OCI_BLOB] = "blob",
        [OCI_TAGS] = "tags",     [OCI_REFERRERS] = "referrers", [OCI_CATALOG] = "catalog",   [OCI_UPLOAD] = "upload",
    };
    return ex->route == ROUTE_TOKEN ? "token" : kinds[ex->oci.kind];
}

/* One event for a logical pull (GET of a granted top manifest), one for each denial. */
static void emit_pull(struct exchange *ex, enum end cause, struct str agent)
{
    const struct content_answer *a = &ex->answer;
    bool pulled = (cause == END_OK || cause == END_NOT_MODIFIED) && ex->oci.kind == OCI_MANIFEST && !ex->is_head && a->is_top;
    bool denied = cause == END_DENIED && ex->credential != NULL;

    if (!pulled && !denied)
        return;
    char digest[DIGEST_TEXT_MAX] = "";
    const struct fact_credential *c = ex->credential->credential;
    const struct fact_repository *repo = ex->repository != NULL ? ex->repository->repository : NULL;
    if (pulled)
        digest_text(&a->digest, digest);
    pullevent_add(ex->w->events, &(struct pull_event){
                                     .id = ex->id,
                                     .t_ms = clock_now_ms(),
                                     .vendor_id = str_c(c->vendor_id),
                                     .customer_id = str_c(c->customer_id),
                                     .credential_id = str_c(c->id),
                                     .license_id = ex->license_id,
                                     .application_id = str_c(repo != NULL ? repo->application_id : NULL),
                                     .repository = ex->oci.repository,
                                     .reference = ex->oci.reference,
                                     .tag = str_c(pulled ? a->tag : ex->oci.is_digest ? "" : NULL),
                                     .digest = str_c(digest),
                                     .allow = pulled,
                                     .reason = reason_text(ex->reason),
                                     .client = str_c(ex->peer),
                                     .agent = agent,
                                     .method = ex->is_head ? "HEAD" : "GET",
                                     .bytes = ex->bytes,
                                 });
}

void exchange_end(struct exchange *ex, enum end cause)
{
    struct worker *w = ex->w;

    facts_cancel(&ex->facts_op);
    content_cancel(&ex->content_op);
    relay_cancel(&ex->relay);
    discovery_cancel(&ex->discovery);
    timer_free(&ex->retry);
    turns_leave(w->turns, &ex->turn);
    wait_give(ex);
    stream_give(ex);

    struct str agent = ex->head != NULL ? head_get(ex->head, "user-agent", NULL) : ex->agent;
    const struct fact_credential *c = ex->credential != NULL ? ex->credential->credential : NULL;
    uint64_t total_us = clock_mono_us() - ex->start_us, first_byte_us = ex->first_byte_us != 0 ? ex->first_byte_us - ex->start_us : total_us;
    struct access_line line = {
        .worker = w,
        .id = ex->id,
        .peer = ex->peer,
        .method = ex->is_head ? S("HEAD") : ex->head != NULL ? ex->head->method_text : S("GET"),
        .action = action_text(ex),
        .repository = ex->oci.repository,
        .reference = ex->oci.reference,
        .status = ex->status,
        .cause = end_texts[cause],
        .reason = ex->reason != REASON_UNKNOWN ? reason_text(ex->reason) : "",
        .customer = str_c(c != NULL ? c->customer_slug : NULL),
        .credential_id = str_c(c != NULL ? c->id : NULL),
        .license_id = ex->license_id,
        .bytes = ex->bytes,
        .total_us = total_us,
        .first_byte_us = ex->first_byte_us != 0 ? first_byte_us : 0,
        .agent = agent,
        .source = ex->from_cache ? "cache" : "",
        .detail = ex->detail,
    };
    emit_pull(ex, cause, agent);
    if (ex->status == 200 || ex->status == 206)
        pullevent_bytes(w->events, ex->license_id, ex->bytes);
    if (c != NULL)
        pullevent_used(w->events, str_c(c->id), str_c(ex->peer));
    accesslog_write(w->access, &line);
    proxy_metrics_exchange(w, &(struct exchange_counts){
                                  .status = ex->status,
                                  .cause = cause,
                                  .reason = ex->reason,
                                  .is_undecided = (ex->route == ROUTE_TOKEN || ex->oci.kind != OCI_NONE) &&
                                                  (cause == END_FACTS_UNAVAILABLE || cause == END_CONTENT_UNAVAILABLE),
                                  .action = ex->route == ROUTE_TOKEN ? PROXY_METRICS_TOKEN : ex->oci.kind,
                                  .from_cache = ex->from_cache,
                                  .bytes = ex->bytes,
                                  .facts_us = ex->facts_us != 0 ? ex->facts_us - ex->start_us : 0,
                                  .first_byte_us = first_byte_us,
                                  .total_us = total_us,
                              });
    flight_give(ex);
    fact_unref(&ex->customer);
    fact_unref(&ex->repository);
    fact_unref(&ex->credential);
    sb_free(&ex->answer.message);
    mem_free(ex->kept);
    ex->magic = 0;
    ex->next_free = free_exchanges;
    free_exchanges = ex;
}

void exchange_free_spares(void)
{
    respond_free_scratch();
    while (free_exchanges != NULL) {
        struct exchange *ex = free_exchanges;
        free_exchanges = ex->next_free;
        mem_free(ex);
    }
}

static const struct edge_handlers handlers = {
    .body_limit = body_limit,
    .on_request = on_request,
    .on_gone = on_gone,
    .on_drain = on_drain,
    .refusal = respond_refusal,
    .on_refused = on_refused,
    .on_too_slow = on_too_slow,
};

struct edge_handlers exchange_handlers(struct worker *w)
{
    struct edge_handlers h = handlers;
    h.ctx = w;
    return h;
}
