/* The upstream clients of one worker, made from facts and replaced when a fact changes. It knows nothing of what they are asked. */
#include "upstreams.h"

#include <string.h>

#include "pullgate/log.h"
#include "pullgate/mem.h"

#include "facts.h"
#include "metrics.h"
#include "worker.h"

#define HELD_MAX 1024u               /* upstreams held; the one used longest ago goes first, once its operations have ended */
#define CONNECTIONS_FEW 4u           /* to an upstream, that a worker has at least */
#define TAGS_BYTES (16u * 1024 * 1024) /* of the tag list of one repository, all pages */
#define BREAKER_FAILURES 5u
#define BREAKER_MS 1000u

struct held {
    struct held *next;
    char *id;
    uint64_t epoch; /* of the fact it was made of */
    uint64_t used;
    struct upstream_limits lim; /* it was made with */
    struct upstream *upstream;
};

struct upstreams_op {
    struct upstreams *u;
    struct upstreams_op *next, **at;
    struct facts_op *facts_op;
    char *id;
    upstreams_cb *cb;
    void *ctx;
};

struct upstreams {
    struct worker *w;
    struct held *held;
    size_t n_held;
    uint64_t uses;
    struct upstreams_op *ops;
};

struct upstreams *upstreams_new(struct worker *w)
{
    struct upstreams *u = NEW(struct upstreams);
    u->w = w;
    return u;
}

static void op_free(struct upstreams_op *op)
{
    *op->at = op->next;
    if (op->next)
        op->next->at = op->at;
    mem_free(op->id);
    mem_free(op);
}

static void held_drop(struct upstreams *u, struct held **at)
{
    struct held *h = *at;
    *at = h->next;
    u->n_held--;
    upstream_unref(&h->upstream); /* lives on while it has operations */
    mem_free(h->id);
    mem_free(h);
}

void upstreams_free(struct upstreams **pu)
{
    struct upstreams *u = *pu;
    if (!u)
        return;
    *pu = NULL;
    while (u->ops) {
        facts_cancel(&u->ops->facts_op);
        op_free(u->ops);
    }
    while (u->held)
        held_drop(u, &u->held);
    mem_free(u);
}

static struct held **held_find(struct upstreams *u, const char *id)
{
    struct held **at = &u->held;
    while (*at && strcmp((*at)->id, id) != 0)
        at = &(*at)->next;
    return at;
}

static void held_bound(struct upstreams *u)
{
    if (u->n_held < HELD_MAX)
        return;
    struct held **oldest = &u->held;
    for (struct held **at = &u->held; *at; at = &(*at)->next)
        if ((*at)->used < (*oldest)->used)
            oldest = at;
    held_drop(u, oldest);
}

/* A reload has changed what this upstream was made with. */
static bool limits_moved(const struct held *h, const struct upstream_limits *lim)
{
    return h->lim.retries != lim->retries || h->lim.manifest_bytes != lim->manifest_bytes || h->lim.fetch.total_ms != lim->fetch.total_ms;
}

/* limits.upstream_connections is the process's. A fixed part for each worker bounds those that idle as well, which no count of requests
 * in progress does, and no worker waits for another. */
static uint64_t connections_of(const struct worker *w)
{
    uint64_t part = w->cfg->limits.upstream_connections / w->proxy->n_workers;
    return part > CONNECTIONS_FEW ? part : CONNECTIONS_FEW;
}

static struct upstream *upstream_of(struct upstreams *u, const struct fact *fact, const char *id)
{
    const struct config *cfg = u->w->cfg;
    const struct upstream_limits lim = {
        .fetch = {.connections = connections_of(u->w), .connect_ms = cfg->limits.upstream_connect_ms,
                  .first_byte_ms = cfg->limits.upstream_first_byte_ms, .stall_ms = cfg->limits.upstream_stall_ms,
                  .total_ms = cfg->limits.blob_max_duration_ms},
        .retries = (unsigned)cfg->limits.upstream_retries,
        .manifest_bytes = cfg->limits.manifest_bytes,
        .tags_bytes = TAGS_BYTES,
        .breaker_failures = BREAKER_FAILURES,
        .breaker_ms = BREAKER_MS,
        .tokens = u->w->proxy->upstream_tokens,
        .epoch = fact->epoch,
        .queue = cfg->limits.upstream_queue,
        .counters = proxy_metrics_upstream(u->w, id),
    };
    struct held **at = held_find(u, id);
    if (*at && ((*at)->epoch != fact->epoch || limits_moved(*at, &lim)))
        held_drop(u, at);
    at = held_find(u, id);
    if (!*at) {
        held_bound(u);
        struct held *h = NEW(struct held);
        h->id = mem_strdup(id);
        h->epoch = fact->epoch;
        h->lim = lim;
        h->upstream = upstream_new(u->w->loop, upstream_spec_copy(fact->upstream), &lim);
        h->next = u->held;
        u->held = h;
        u->n_held++;
        at = &u->held;
    }
    (*at)->used = ++u->uses;
    return (*at)->upstream;
}

static void on_fact(void *ctx, enum err err, struct fact *fact, bool degraded)
{
    struct upstreams_op *op = ctx;
    struct upstreams *u = op->u;
    upstreams_cb *cb = op->cb;
    void *cb_ctx = op->ctx;
    struct upstream *found = NULL;
    (void)degraded; /* where to fetch from grants nothing: an old address is as good as none */
    op->facts_op = NULL;
    if (err) {
        err = ERR_UNAVAILABLE;
    } else if (!fact) {
        static unsigned long long last;
        log_limited(&last, 10000, LOG_LEVEL_ERROR, "a repository names the upstream %s, which does not exist", op->id);
        err = ERR_UNAVAILABLE;
    } else if (!fact->upstream) {
        err = ERR_INTERNAL;
    } else {
        found = upstream_of(u, fact, op->id);
    }
    op_free(op);
    cb(cb_ctx, err, found);
}

struct upstreams_op *upstreams_get(struct upstreams *u, struct str upstream_id, upstreams_cb *cb, void *ctx)
{
    struct upstreams_op *op = NEW(struct upstreams_op);
    op->u = u;
    op->id = str_dup(upstream_id);
    op->cb = cb;
    op->ctx = ctx;
    op->next = u->ops;
    op->at = &u->ops;
    if (u->ops)
        u->ops->at = &op->next;
    u->ops = op;
    op->facts_op = facts_get(u->w->facts, FACT_UPSTREAM, upstream_id, on_fact, op);
    return op;
}

void upstreams_cancel(struct upstreams_op **pop)
{
    struct upstreams_op *op = *pop;
    *pop = NULL;
    if (!op)
        return;
    facts_cancel(&op->facts_op);
    op_free(op);
}
