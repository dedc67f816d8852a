/* Shared work that fills a repository: resolve a tag, fetch a manifest, complete a closure, list tags, ask for referrers. One
 * flight for one piece of work, whoever waits; a waiter that leaves does not stop it. */
#ifndef PROXY_CONTENTFLIGHT_H
#define PROXY_CONTENTFLIGHT_H

#include <stdbool.h>
#include <stdint.h>

#include "pullgate/err.h"

#include "contentrepo.h"

struct flight;
struct flights; /* of a worker */

struct flights *flights_new(struct repos *rs);
void flights_free(struct flights **fl); /* nobody is told */

struct flight_end { /* borrowed during the call */
    enum err err;
    const char *detail; /* for the log; never NULL */
    unsigned retry_after_s;
    struct blob_bytes *manifest; /* of repo_manifest(); borrowed */
    bool upstream;               /* the upstream was asked */
};
typedef void waiter_fn(void *ctx, const struct flight_end *e);
struct waiter { /* embedded in whoever waits; on at most one list */
    struct waiter *prev, *next;
    waiter_fn *fn;
    void *ctx;
};
struct waiters {
    struct waiter *first, *last;
};
void waiter_add(struct waiters *l, struct waiter *w, waiter_fn *fn, void *ctx);
void waiter_leave(struct waiters *l, struct waiter *w);
struct waiter *waiter_pop(struct waiters *l);

/* Shared work. Each calls w->fn exactly once, from the loop and never inside the call, unless repo_leave() comes before.
 * What was learnt stands in the repository then. */
struct flight *repo_resolve(struct repo *r, struct str tag, bool want_bytes, struct waiter *w, waiter_fn *fn, void *ctx);
struct flight *repo_manifest(struct repo *r, const struct digest *d, struct waiter *w, waiter_fn *fn, void *ctx);
struct flight *repo_closure(struct repo *r, uint32_t root, struct waiter *w, waiter_fn *fn, void *ctx);
struct flight *repo_list(struct repo *r, struct waiter *w, waiter_fn *fn, void *ctx);
struct flight *repo_referrers(struct repo *r, uint32_t node, struct waiter *w, waiter_fn *fn, void *ctx);
void repo_leave(struct flight *f, struct waiter *w);

/* The manifest when its bytes are in memory and its document is in the index (put there from the bytes where need be); else NULL.
 * *ret_err: ERR_UPSTREAM when the bytes are no acceptable manifest. Borrowed. */
struct blob_bytes *repo_manifest_held(struct repo *r, const struct digest *d, enum err *ret_err);
/* The root needs no repo_closure(). */
bool repo_closure_settled(struct repo *r, uint32_t root);
bool repo_list_fresh(struct repo *r);
struct referrers *repo_referrers_held(struct repo *r, uint32_t node);
bool repo_referrers_fresh(struct repo *r, uint32_t node);

#endif
