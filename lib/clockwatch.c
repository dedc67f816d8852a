/* A look at both clocks every ten seconds. */
#include "pullgate/clockwatch.h"

#include "pullgate/clock.h"
#include "pullgate/log.h"
#include "pullgate/mem.h"
#include "pullgate/metrics.h"

#define LOOK_MS 10000 /* how late a jump is told */
#define JUMP_MS 60000 /* less is a clock that is set right */

struct clockwatch {
    struct timer *look;
    int64_t ahead_ms; /* of the monotonic clock, by how much the wall clock was when it was last told */
};

static unsigned long long jumps; /* of the process, whichever loop looks */

static int64_t ahead_now(void)
{
    return clock_now_ms() - (int64_t)clock_mono_ms();
}

static void on_look(void *ctx)
{
    struct clockwatch *w = ctx;
    int64_t by = ahead_now() - w->ahead_ms;

    timer_set(w->look, LOOK_MS);
    if (by > -JUMP_MS && by < JUMP_MS)
        return;
    __atomic_add_fetch(&jumps, 1, __ATOMIC_RELAXED);
    w->ahead_ms += by;
    log_error("the clock jumped by %lld s: licenses begin and end by it", (long long)(by / 1000));
}

struct clockwatch *clockwatch_new(struct loop *l)
{
    struct clockwatch *w = NEW(struct clockwatch);

    w->ahead_ms = ahead_now();
    w->look = timer_new(l, on_look, w);
    timer_set(w->look, LOOK_MS);
    return w;
}

void clockwatch_free(struct clockwatch **w)
{
    if (!*w)
        return;
    timer_free(&(*w)->look);
    mem_free(*w);
    *w = NULL;
}

void clockwatch_metrics(struct strbuf *ret)
{
    static const char name[] = "pullgate_clock_jumps_total";
    static const struct str none;

    metrics_write_head(ret, name, "Times that the wall clock moved by a minute or more against the monotonic one.", METRICS_COUNTER);
    metrics_write_line(ret, name, NULL, none, NULL, none, __atomic_load_n(&jumps, __ATOMIC_RELAXED));
}
