/* One thread: a loop and everything that lives on it. Makes, drains and frees; decides nothing. */
#include "worker.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>

#include "pullgate/log.h"
#include "pullgate/mem.h"
#include "pullgate/sandbox.h"

#include "accesslog.h"
#include "blobs.h"
#include "content.h"
#include "exchange.h"
#include "facts.h"
#include "metrics.h"
#include "pullevent.h"
#include "turns.h"
#include "upstreams.h"

#define WORKER_MAGIC 0x574f524bu

enum err worker_new(struct proxy *p, unsigned id, const int *take_fds, size_t n_fds, struct worker **ret, struct error *reterr)
{
    struct worker *w = NEW(struct worker);

    w->magic = WORKER_MAGIC;
    w->id = id;
    w->proxy = p;
    w->cfg = config_ref(p->cfg);
    w->loop = loop_new();
    if (w->loop == NULL) {
        int failed = errno;
        config_unref(&w->cfg);
        mem_free(w);
        return error_set(reterr, ERR_UNAVAILABLE, "no event loop for worker %u: %s", id, strerror(failed));
    }
    enum err e = cache_new(w->loop, w->cfg, &w->cache, reterr);
    if (e) {
        loop_free(w->loop);
        config_unref(&w->cfg);
        mem_free(w);
        return e;
    }
    w->facts = facts_new(w);
    w->upstreams = upstreams_new(w);
    w->content = content_new(w);
    w->events = pullevents_new(w);
    w->auth = authcache_new();
    w->turns = turns_new(w->loop, exchange_on_turn);
    w->access = accesslog_writer_new(p->accesslog, w->loop);
    struct edge_handlers handlers = exchange_handlers(w);
    w->edge = edge_new(w->loop, w->cfg, p->edge_shared, &handlers);
    edge_answer_within(w->edge, w->cfg->limits.blob_max_duration_ms);
    edge_front(w->edge, &w->cfg->proxy.trusted_proxies, w->cfg->proxy.proxy_protocol, w->cfg->proxy.forwarded_field);
    for (size_t i = 0; i < n_fds; i++) {
        e = edge_accept(w->edge, take_fds[i], p->tls, reterr);
        if (e)
            return e; /* the process ends: nothing to undo */
    }
    proxy_metrics_join(w);
    *ret = w;
    return ERR_OK;
}

static void worker_free_parts(struct worker *w)
{
    proxy_metrics_leave(w);
    edge_free(&w->edge);
    loop_run_deferred(w->loop); /* answers that were whole when the loop stopped: their exchanges end here, with everything still at hand */
    blobs_worker_leave(w->proxy->blobs, w); /* transfers that other workers read go on there */
    turns_free(&w->turns);
    content_free(&w->content);
    upstreams_free(&w->upstreams);
    facts_free(&w->facts);
    pullevents_free(&w->events);
    authcache_free(&w->auth);
    accesslog_writer_free(&w->access);
    exchange_free_spares();
    cache_free(&w->cache);
}

static void *worker_main(void *arg)
{
    struct worker *w = arg;
    sigset_t all;
    char name[16];

    snprintf(name, sizeof name, "worker-%u", w->id);
    prctl(PR_SET_NAME, name); /* for top -H */
    sigfillset(&all);
    sandbox_unblock(&all);
    pthread_sigmask(SIG_BLOCK, &all, NULL); /* signals belong to the main thread */
    loop_run(w->loop);
    worker_free_parts(w);
    return NULL;
}

enum err worker_start(struct worker *w, struct error *reterr)
{
    if (pthread_create(&w->thread, NULL, worker_main, w) != 0)
        return error_set(reterr, ERR_INTERNAL, "cannot start worker %u", w->id);
    return ERR_OK;
}

struct configuration { /* on its way to a worker */
    struct worker *w;
    struct config *cfg;
    struct edge_tls *tls;
};

static void configure_in_loop(void *arg)
{
    struct configuration *c = arg;
    struct worker *w = c->w;

    if (c->tls != NULL && w->edge != NULL)
        edge_replace_tls(w->edge, c->tls);
    edge_tls_unref(&c->tls);
    if (w->facts != NULL) { /* the loop may end with this still to be run */
        struct config *old = w->cfg;
        w->cfg = c->cfg;
        c->cfg = old;
        facts_configure(w->facts, w->cfg);
        edge_answer_within(w->edge, w->cfg->limits.blob_max_duration_ms);
    }
    config_unref(&c->cfg);
    mem_free(c);
}

void worker_configure(struct worker *w, struct config *cfg, struct edge_tls *tls)
{
    struct configuration *c = NEW(struct configuration);

    c->w = w;
    c->cfg = config_ref(cfg);
    c->tls = tls != NULL ? edge_tls_ref(tls) : NULL;
    loop_post(w->loop, configure_in_loop, c);
}

static void on_flushed(void *ctx)
{
    struct worker *w = ctx;

    __atomic_store_n(&w->is_drained, true, __ATOMIC_RELEASE);
    loop_stop(w->loop);
}

static void on_drained(void *ctx)
{
    struct worker *w = ctx;

    pullevents_flush(w->events, 1000, on_flushed, w);
}

static void drain_in_loop(void *arg)
{
    struct worker *w = arg;

    edge_drain(w->edge, on_drained, w);
}

void worker_drain(struct worker *w)
{
    loop_post(w->loop, drain_in_loop, w);
}

static void stop_in_loop(void *arg)
{
    struct worker *w = arg;

    loop_stop(w->loop);
}

void worker_stop(struct worker *w)
{
    if (!__atomic_load_n(&w->is_drained, __ATOMIC_ACQUIRE))
        loop_post(w->loop, stop_in_loop, w);
}

void worker_join(struct worker *w)
{
    pthread_join(w->thread, NULL);
}

void worker_free(struct worker **w)
{
    loop_free((*w)->loop); /* letters that came late are opened here: their readers see that the parts are gone */
    config_unref(&(*w)->cfg);
    MEM_FREE(*w);
}
