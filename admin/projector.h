/* Carries the store's changes to Redis, in order (docs/REDIS.md): one thread, one reading store connection, one blocking Redis
 * connection. It writes nothing into the store and decides nothing; what a fact says is compile.c's. */
#ifndef ADMIN_PROJECTOR_H
#define ADMIN_PROJECTOR_H

#include <stdbool.h>
#include <stdint.h>

struct config;
struct db;
struct keyring;
struct projector;

struct projector_state {
    bool redis_up;       /* the newest round reached Redis */
    bool in_sync;        /* Redis holds a root that this process wrote, as far as the newest look says */
    uint64_t outbox_max; /* newest change known */
    uint64_t projected;  /* newest change that stands in Redis; 0 before the first projection */
    uint64_t lag;        /* outbox_max - projected */
    uint64_t facts;      /* facts that exist */
    uint64_t rebuilds;   /* since start, the first one included */
    uint64_t repaired;   /* values found missing or altered and written again */
};

/* Starts the thread. All must outlive it; projector_stop() before the writer stops. writer is used for one thing: a store that was
 * restored from an older copy gets epochs beyond what the proxies have already seen. */
struct projector *projector_start(const struct config *cfg, const struct keyring *keys, struct db *writer);
void projector_stop(struct projector **p); /* joins; NULL is fine */
/* Called after each commit that wrote an outbox row; any thread, never blocks. */
void projector_poke(struct projector *p);
/* Redis seems to have lost its keys: look at the root now instead of within a second. Any thread, never blocks. */
void projector_suspect(struct projector *p);
void projector_state(struct projector *p, struct projector_state *ret); /* any thread */
/* Waits until every change up to epoch stands in Redis; false after timeout_ms. Any thread but a loop's. */
bool projector_wait(struct projector *p, uint64_t epoch, unsigned timeout_ms);

#endif
