/* The search for a digest that the index does not show to be granted (DESIGN 4.4): complete the closures of what the customer may
 * have, list and resolve its tags, look what hangs on its manifests. Shared by all who ask for the same customer; stops as
 * soon as nobody waits. What it finds is content; whether it may be had is asked of rights.h each time. */
#ifndef PROXY_SWEEP_H
#define PROXY_SWEEP_H

#include "contentflight.h"
#include "contentrepo.h"
#include "rights.h"

struct sweep;
struct sweeps; /* of a worker */

struct sweeps *sweeps_new(struct repos *rs);
void sweeps_free(struct sweeps **ss);

struct sweep_waiter {
    struct waiter w;     /* first */
    bool told;           /* on the list of those being called */
    enum node_kind kind; /* NODE_NONE: everything there is */
    struct digest digest;
};

/* fn once, from the loop, never inside: err OK when the digest can be had (by rights_digest()) or when everything was looked at
 * and it cannot; ERR_UNAVAILABLE when that could not be found out. */
struct sweep *sweep_join(struct sweeps *ss, struct repo *r, const struct asker *a, struct sweep_waiter *w, waiter_fn *fn, void *ctx);
void sweep_leave(struct sweep *s, struct sweep_waiter *w);

/* A complete sweep was made a moment ago and nothing moved since. */
bool sweep_remembered(struct repo *r, const struct rights *v);

#endif
