/* The event loop of one thread, its timers, descriptors and mailbox. The only user of libevent's core; edge.c alone takes
 * the base itself, through loop_base(). Everything here but loop_post() belongs to the loop's own thread. */
#ifndef PULLGATE_LOOP_H
#define PULLGATE_LOOP_H

#include <stdbool.h>
#include <stdint.h>

struct loop;
struct timer;
struct watch;

/* NULL when the machine has no descriptors for one; errno says why. */
struct loop *loop_new(void) __attribute__((warn_unused_result));
void loop_free(struct loop *l);
void loop_run(struct loop *l);      /* until loop_stop() */
void loop_run_once(struct loop *l); /* waits for one round of events */
void loop_stop(struct loop *l);     /* from its own thread; others post it */
uint64_t loop_now_ms(struct loop *l); /* monotonic, cached for this round */
void *loop_base(struct loop *l);      /* struct event_base *, for edge.c */

/* Runs fn(arg) in the loop's thread, soon, once. Any thread. Never lost before loop_free(). */
typedef void loop_fn(void *arg);
void loop_post(struct loop *l, loop_fn *fn, void *arg);
/* Runs fn(arg) in a later round of this loop; own thread only, no lock. */
void loop_defer(struct loop *l, loop_fn *fn, void *arg);
/* Run what is deferred or posted at this moment; for the end of a loop, which may stop with something left to be run. Own thread, or
 * the one that joined it. */
void loop_run_deferred(struct loop *l);
void loop_run_posted(struct loop *l);

typedef void timer_fn(void *ctx);
struct timer *timer_new(struct loop *l, timer_fn *fn, void *ctx);
void timer_set(struct timer *t, uint64_t ms); /* one shot; set again to move it */
void timer_cancel(struct timer *t);
bool timer_pending(const struct timer *t);
void timer_free(struct timer **t);

#define WATCH_READ 1u
#define WATCH_WRITE 2u
typedef void watch_fn(void *ctx, int fd, unsigned ready);
struct watch *watch_new(struct loop *l, int fd, unsigned interest, watch_fn *fn, void *ctx); /* level-triggered */
void watch_change(struct watch *w, unsigned interest); /* 0 pauses */
void watch_free(struct watch **w);

/* Signals, in one loop of the process. */
struct watch *watch_signal(struct loop *l, int signo, watch_fn *fn, void *ctx);

#endif
