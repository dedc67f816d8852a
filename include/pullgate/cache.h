/* Redis over hiredis: async on a loop for the proxy, blocking for the admin's threads. The only file that includes hiredis.
 * Every failure, deadline, error reply or unexpected type is ERR_UNAVAILABLE: "cannot know". */
#ifndef PULLGATE_CACHE_H
#define PULLGATE_CACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pullgate/config.h"
#include "pullgate/err.h"
#include "pullgate/loop.h"
#include "pullgate/str.h"

enum cache_type { CACHE_NIL, CACHE_STRING, CACHE_INTEGER, CACHE_ARRAY, CACHE_STATUS };
struct cache_reply { /* borrowed during the callback */
    enum cache_type type;
    struct str str; /* STRING, STATUS */
    int64_t integer;
    const struct cache_reply *items; /* ARRAY */
    size_t n;
};

/* Two connections: commands, and a subscription. Connects by itself, reconnects with backoff (50 ms to 1 s); the name in the URL
 * is resolved in cache_new (blocking, at start) or is an address or a socket. TCP keepalive and user timeout set. */
struct cache;
enum err cache_new(struct loop *l, const struct config *cfg, struct cache **ret, struct error *reterr) MUST_USE;
void cache_free(struct cache **c); /* not from one of its callbacks; before its loop; operations in flight are dropped silently */
bool cache_is_up(const struct cache *c);

/* cb exactly once, from the loop, never inside cache_command(); within redis_deadline_ms. reply is NULL unless err is OK. */
typedef void cache_cb(void *ctx, enum err err, const struct cache_reply *reply);
struct cache_op;
struct cache_op *cache_command(struct cache *c, const struct str *argv, size_t argc, cache_cb *cb, void *ctx); /* cb may be NULL */
void cache_cancel(struct cache_op **op); /* cb is never called after */
/* on_message for every message; on_up(ctx, up) when the subscription is (re)established or lost. */
void cache_subscribe(struct cache *c, const char *channel, void (*on_message)(void *ctx, struct str message), void (*on_up)(void *ctx, bool up), void *ctx);
void cache_unsubscribe(struct cache *c, const void *ctx); /* no callback with this ctx after; the channel stays subscribed */

/* Blocking, for one thread: connects on demand, every call bounded by deadline_ms. */
struct cache_sync;
struct cache_sync *cache_sync_new(const struct config *cfg, uint64_t deadline_ms);
void cache_sync_free(struct cache_sync **c);
/* reply valid until the next call on c. */
enum err cache_sync_command(struct cache_sync *c, const struct str *argv, size_t argc, const struct cache_reply **ret, struct error *reterr) MUST_USE;
/* Pipelined inside MULTI/EXEC: all or none. cmds: n commands. */
struct cache_cmd {
    const struct str *argv;
    size_t argc;
};
enum err cache_sync_transaction(struct cache_sync *c, const struct cache_cmd *cmds, size_t n, struct error *reterr) MUST_USE;

#endif
