/* Owners stand in a ring while they hold or wait; the ring is walked from the one behind who got the last place. */
#include "pullgate/slots.h"

#include <stdbool.h>
#include <stddef.h>

#include "pullgate/mem.h"

#define OWNER_PART 15u /* an owner may hold this many times what is free: of 112 places 105 alone, 54 beside another */

struct slots_owner {
    uint64_t key, held, waiting;
    struct slot *first, **last;
    struct slots_owner *next, *prev; /* the ring */
};

struct slots {
    uint64_t n, max_waiting, held, waiting;
    struct slots_owner *turn; /* who comes next; NULL: nobody is here */
};

struct slots *slots_new(uint64_t n, uint64_t max_waiting)
{
    struct slots *s = NEW(struct slots);

    s->n = n ? n : 1;
    s->max_waiting = max_waiting;
    return s;
}

void slots_free(struct slots **s)
{
    if (*s == NULL)
        return;
    AN((*s)->turn == NULL);
    MEM_FREE(*s);
}

static struct slots_owner *owner_get(struct slots *s, uint64_t key)
{
    struct slots_owner *o = s->turn;

    if (o != NULL)
        do {
            if (o->key == key)
                return o;
            o = o->next;
        } while (o != s->turn);
    o = NEW(struct slots_owner);
    o->key = key;
    o->last = &o->first;
    if (s->turn == NULL) {
        s->turn = o->next = o->prev = o;
    } else { /* behind everybody */
        o->next = s->turn;
        o->prev = s->turn->prev;
        o->prev->next = o->next->prev = o;
    }
    return o;
}

static void owner_drop(struct slots *s, struct slots_owner *o)
{
    if (o->held || o->waiting)
        return;
    if (s->turn == o)
        s->turn = o->next == o ? NULL : o->next;
    o->next->prev = o->prev;
    o->prev->next = o->next;
    mem_free(o);
}

static bool owner_may_hold(const struct slots *s, const struct slots_owner *o)
{
    uint64_t left = s->n - s->held;

    return left > 0 && (o->key == 0 || o->held < left * OWNER_PART);
}

static bool owner_may_wait(const struct slots *s, const struct slots_owner *o)
{
    if (s->max_waiting == 0)
        return true;
    return s->waiting < s->max_waiting && (o->key == 0 || o->waiting <= s->max_waiting - s->waiting);
}

static void hold(struct slots *s, struct slot *slot)
{
    slot->state = SLOT_HELD;
    slot->owner->held++;
    s->held++;
}

int slot_take(struct slots *s, struct slot *slot, uint64_t owner, slots_fn *fn, void *ctx)
{
    struct slots_owner *o = owner_get(s, owner);

    AN(slot->state == SLOT_NONE);
    *slot = (struct slot){.of = s, .owner = o, .fn = fn, .ctx = ctx};
    if (o->waiting == 0 && owner_may_hold(s, o)) {
        hold(s, slot);
    } else if (owner_may_wait(s, o)) {
        slot->state = SLOT_WAITING;
        *o->last = slot;
        o->last = &slot->next;
        o->waiting++;
        s->waiting++;
    } else {
        slot->owner = NULL;
        owner_drop(s, o);
    }
    return (int)slot->state;
}

static void queue_remove(struct slots *s, struct slot *slot)
{
    struct slots_owner *o = slot->owner;
    struct slot **at = &o->first;

    while (*at != slot)
        at = &(*at)->next;
    *at = slot->next;
    if (*at == NULL)
        o->last = at;
    slot->next = NULL;
    o->waiting--;
    s->waiting--;
}

/* Free places to who waits, one an owner and round. */
static void deal(struct slots *s)
{
    while (s->waiting > 0 && s->held < s->n) {
        struct slots_owner *o = s->turn, *end = o;
        while (o->waiting == 0 || !owner_may_hold(s, o)) {
            o = o->next;
            if (o == end)
                return; /* those who wait hold their part */
        }
        struct slot *slot = o->first;
        queue_remove(s, slot);
        hold(s, slot);
        s->turn = o->next;
        slot->fn(slot->ctx);
    }
}

void slot_leave(struct slot *slot)
{
    struct slots *s = slot->of;
    struct slots_owner *o = slot->owner;

    if (slot->state == SLOT_NONE)
        return;
    if (slot->state == SLOT_HELD) {
        o->held--;
        s->held--;
    } else {
        queue_remove(s, slot);
    }
    *slot = (struct slot){0};
    owner_drop(s, o);
    deal(s);
}

uint64_t slots_held(const struct slots *s)
{
    return s->held;
}

uint64_t slots_waiting(const struct slots *s)
{
    return s->waiting;
}
