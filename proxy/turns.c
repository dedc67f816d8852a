/* A ring of queues. A round calls the first of each; a queue whose first waits again is done for this round. */
#include "turns.h"

#include "pullgate/mem.h"

struct turns_queue {
    uint64_t key;
    struct turn *first, **last;
    unsigned long long round; /* looked at in */
    struct turns_queue *next, *prev;
};

struct turns {
    struct timer *timer;
    turns_fn *fn;
    struct turns_queue *ring; /* who comes next */
    size_t waiting;
    unsigned long long round;
    bool is_dealing;
};

static void on_timer(void *ctx);

struct turns *turns_new(struct loop *l, turns_fn *fn)
{
    struct turns *ts = NEW(struct turns);

    ts->fn = fn;
    ts->timer = timer_new(l, on_timer, ts);
    return ts;
}

void turns_free(struct turns **pts)
{
    struct turns *ts = *pts;

    if (ts == NULL)
        return;
    *pts = NULL;
    AN(ts->ring == NULL);
    timer_free(&ts->timer);
    mem_free(ts);
}

static struct turns_queue *queue_get(struct turns *ts, uint64_t key)
{
    struct turns_queue *q = ts->ring;

    if (q != NULL)
        do {
            if (q->key == key)
                return q;
            q = q->next;
        } while (q != ts->ring);
    q = NEW(struct turns_queue);
    q->key = key;
    q->last = &q->first;
    if (ts->ring == NULL) {
        ts->ring = q->next = q->prev = q;
    } else {
        q->next = ts->ring;
        q->prev = ts->ring->prev;
        q->prev->next = q->next->prev = q;
    }
    return q;
}

static void queue_drop(struct turns *ts, struct turns_queue *q)
{
    if (q->first != NULL)
        return;
    if (ts->ring == q)
        ts->ring = q->next == q ? NULL : q->next;
    q->next->prev = q->prev;
    q->prev->next = q->next;
    mem_free(q);
}

static void unlink_turn(struct turns *ts, struct turn *t)
{
    struct turns_queue *q = t->queue;

    *t->at = t->next;
    if (t->next != NULL)
        t->next->at = t->at;
    else
        q->last = t->at;
    t->queue = NULL;
    t->next = NULL;
    t->at = NULL;
    ts->waiting--;
}

void turns_wait(struct turns *ts, uint64_t key, struct turn *t)
{
    struct turns_queue *q = queue_get(ts, key);

    AN(t->queue == NULL);
    t->queue = q;
    if (t->was_first) { /* it was too early: it is still the next one */
        t->next = q->first;
        t->at = &q->first;
        if (q->first != NULL)
            q->first->at = &t->next;
        else
            q->last = &t->next;
        q->first = t;
        q->round = ts->round; /* the others of this queue need not try */
    } else {
        t->next = NULL;
        t->at = q->last;
        *q->last = t;
        q->last = &t->next;
    }
    ts->waiting++;
    if (!ts->is_dealing && !timer_pending(ts->timer))
        timer_set(ts->timer, TURNS_LOOK_MS);
}

void turns_leave(struct turns *ts, struct turn *t)
{
    struct turns_queue *q = t->queue;

    if (q == NULL)
        return;
    unlink_turn(ts, t);
    queue_drop(ts, q);
}

void turns_wake(struct turns *ts)
{
    if (ts->waiting > 0 && !ts->is_dealing)
        timer_set(ts->timer, 0);
}

size_t turns_waiting(const struct turns *ts)
{
    return ts->waiting;
}

static void on_timer(void *ctx)
{
    struct turns *ts = ctx;

    ts->is_dealing = true;
    ts->round++;
    for (bool moved = true; moved;) {
        moved = false;
        struct turns_queue *q = ts->ring;
        for (size_t looked = 0, most = ts->waiting; q != NULL && looked < most; looked++) {
            if (q->round == ts->round) {
                q = q->next;
                if (q == ts->ring)
                    break;
                continue;
            }
            struct turn *t = q->first;
            ts->ring = q->next; /* the one behind it is next, whatever becomes of this one */
            turns_leave(ts, t);
            t->was_first = true;
            ts->fn(t); /* t may be gone, or wait again */
            moved = true;
            q = ts->ring;
        }
    }
    ts->is_dealing = false;
    if (ts->waiting > 0)
        timer_set(ts->timer, TURNS_LOOK_MS);
}
