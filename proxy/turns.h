/* Who waits because others of its customer, or of its upstream, are at work: one queue a key, the keys served in turns, so that a customer
 * with five hundred waiting requests costs the others one look a round and nothing more. One a worker. Keeps the order, knows nothing
 * of what is waited for: who is called tries again, and waits again (at the head of its queue) when it was too early. */
#ifndef PROXY_TURNS_H
#define PROXY_TURNS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pullgate/loop.h"

#define TURNS_LOOK_MS 20 /* how late a turn may come that another worker has made free */

struct turns;
struct turns_queue;

struct turn { /* zero before its first use; lies in what waits */
    struct turns_queue *queue; /* waits there; else NULL */
    struct turn *next, **at;
    bool was_first; /* called last: waits at the head */
};

typedef void turns_fn(struct turn *t);
struct turns *turns_new(struct loop *l, turns_fn *fn);
void turns_free(struct turns **t); /* nobody waits any more */
/* fn(t) comes once, from the loop: soon after turns_wake(), or in TURNS_LOOK_MS (another worker may have made room). */
void turns_wait(struct turns *ts, uint64_t key, struct turn *t);
void turns_leave(struct turns *ts, struct turn *t); /* nothing where it does not wait */
/* Something has come free. Cheap where nobody waits. */
void turns_wake(struct turns *ts);
size_t turns_waiting(const struct turns *ts);

#endif
