/* One thread of the proxy and everything it owns. Nothing is shared between workers but what `struct proxy` lists. */
#ifndef PROXY_WORKER_H
#define PROXY_WORKER_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "pullgate/cache.h"
#include "pullgate/config.h"
#include "pullgate/decision.h"
#include "pullgate/edge.h"
#include "pullgate/loop.h"
#include "pullgate/seal.h"

struct facts;
struct content;
struct upstreams;
struct pullevents;
struct accesslog;
struct accesslog_writer;
struct authcache;
struct guard;
struct blobs;
struct proxy_metrics;
struct turns;
struct admission;
struct tokenshare;

struct proxy { /* immutable after start, or thread-safe by itself, or the main thread's */
    struct config *cfg;      /* main thread: the one in force. Workers have their own reference */
    struct keyring *keys;
    struct edge_shared *edge_shared;
    struct blobs *blobs; /* process-wide: one transfer a cold blob */
    struct guard *guard; /* process-wide: failed sign-ins, per-customer rates */
    struct accesslog *accesslog;
    struct proxy_metrics *metrics;
    struct admission *admission; /* process-wide: what memory is left for */
    struct tokenshare *upstream_tokens; /* process-wide: what upstreams gave, for all workers */
    char instance[64];   /* host:pid */
    char service[256];   /* of the challenge, issuer and audience of tokens */
    char base_url[512];  /* "https://registry.vendor.example": where /token is */
    struct edge_tls *tls; /* main thread; NULL: plain */
    unsigned n_workers;
    struct worker **workers;
};

struct worker {
    unsigned magic;
    unsigned id;
    struct proxy *proxy;
    struct config *cfg; /* ref; replaced by a reload, between two callbacks: keep no pointer into it */
    struct loop *loop;
    struct cache *cache;
    struct edge *edge;
    struct facts *facts;         /* facts.h: verified facts, by name */
    struct upstreams *upstreams; /* upstreams.h: upstream id + credential -> struct upstream */
    struct content *content;     /* content.h: tags, manifests, closure index */
    struct pullevents *events;   /* pullevent.h */
    struct authcache *auth;      /* authn.c */
    struct accesslog_writer *access;
    struct turns *turns;         /* turns.h: who waits for others of its customer */
    uint64_t on_behalf;          /* the customer (a hash) whose request is worked on: what is begun now is for it */
    pthread_t thread;
    bool is_drained;
};

/* Makes worker `id` with its loop and everything on it; takes the listening sockets. Its thread runs with worker_start(). */
enum err worker_new(struct proxy *p, unsigned id, const int *take_fds, size_t n_fds, struct worker **ret, struct error *reterr) MUST_USE;
enum err worker_start(struct worker *w, struct error *reterr) MUST_USE;
/* Any thread: this configuration and, where not NULL, this certificate, from the next callback on. */
void worker_configure(struct worker *w, struct config *cfg, struct edge_tls *tls);
/* Any thread: stop accepting, let what runs finish; the thread ends by itself. worker_stop() does not wait for answers. */
void worker_drain(struct worker *w);
void worker_stop(struct worker *w);
void worker_join(struct worker *w);
void worker_free(struct worker **w); /* after all workers were joined: others may have posted to its loop */

#endif
