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
struct guard;
struct blobs;

struct proxy { /* immutable after start, or thread-safe by itself */
    struct config *cfg;
    struct keyring *keys;
    struct edge_shared *edge_shared;
    struct blobs *blobs; /* process-wide: one transfer a cold blob */
    struct guard *guard; /* process-wide: failed sign-ins, per-customer rates */
    struct accesslog *accesslog;
    char instance[64];   /* host:pid */
    char service[256];   /* of the challenge, audience of tokens */
    unsigned n_workers;
    struct worker **workers;
};

struct worker {
    unsigned magic;
    unsigned id;
    struct proxy *proxy;
    struct config *cfg; /* = proxy->cfg */
    struct loop *loop;
    struct cache *cache;
    struct edge *edge;
    struct facts *facts;         /* facts.h: verified facts, by name */
    struct upstreams *upstreams; /* upstreams.h: upstream id + credential -> struct upstream */
    struct content *content;     /* content.h: tags, manifests, closure index */
    struct pullevents *events;   /* pullevent.h */
    pthread_t thread;
};

#endif
