/* A number of places that several owners share fairly: who finds none free waits, and the next free one goes to the owner whose turn
 * it is, not to who has asked most often. What one owner may hold depends on what is free (fifteen times that), so that some stay free for
 * who comes later; the places to wait are bounded, and no owner fills more than half of them. One loop's; it allocates nothing for a slot. */
#ifndef PULLGATE_SLOTS_H
#define PULLGATE_SLOTS_H

#include <stdint.h>

struct slots;
struct slots_owner;

typedef void slots_fn(void *ctx);
struct slot { /* zero before its first use; lies in what it is for */
    struct slots *of;
    struct slots_owner *owner;
    struct slot *next;
    slots_fn *fn;
    void *ctx;
    enum { SLOT_NONE, SLOT_WAITING, SLOT_HELD } state;
};

/* max_waiting 0: any number. */
struct slots *slots_new(uint64_t n, uint64_t max_waiting);
void slots_free(struct slots **s); /* nobody holds or waits any more */

/* owner 0 is bounded by n alone. SLOT_HELD: go on. SLOT_WAITING: fn(ctx) comes when it is held, from inside another's slot_leave():
 * it may only take note. SLOT_NONE: too many wait. */
int slot_take(struct slots *s, struct slot *slot, uint64_t owner, slots_fn *fn, void *ctx);
/* Gives a held one back, or waits no longer; nothing for SLOT_NONE. */
void slot_leave(struct slot *slot);

uint64_t slots_held(const struct slots *s);
uint64_t slots_waiting(const struct slots *s);

#endif
