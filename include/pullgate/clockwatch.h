/* Tells of a wall clock that jumps, measured against the monotonic one: validity windows follow the wall clock, so an operator should hear
 * of it. Timers are not concerned, and what is decided under a clock that went back is not decided here. */
#ifndef PULLGATE_CLOCKWATCH_H
#define PULLGATE_CLOCKWATCH_H

#include "pullgate/loop.h"
#include "pullgate/str.h"

struct clockwatch;
struct clockwatch *clockwatch_new(struct loop *l);
void clockwatch_free(struct clockwatch **w);

/* The jumps of this process as a metric, appended. */
void clockwatch_metrics(struct strbuf *ret);

#endif
