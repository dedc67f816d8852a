/* One thread's event loop over libevent's core: timers, descriptors, a mailbox for other threads. */
#include "pullgate/loop.h"

#include <errno.h>
#include <event2/event.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "pullgate/clock.h"
#include "pullgate/mem.h"

struct letter {
    loop_fn *fn;
    void *arg;
    struct letter *next;
};

struct letters {
    struct letter *first, **last;
};

struct loop {
    struct event_base *base;
    int wake_fd;
    struct event *wake;
    pthread_mutex_t lock;
    struct letters mail;     /* under lock */
    struct letters deferred; /* own thread */
    struct event *deferred_event;
};

struct timer {
    struct event *ev;
    timer_fn *fn;
    void *ctx;
};

struct watch {
    struct loop *loop;
    struct event *ev;
    int fd;
    unsigned interest;
    bool is_signal;
    watch_fn *fn;
    void *ctx;
};

static void letters_init(struct letters *l)
{
    l->first = NULL;
    l->last = &l->first;
}

static void letters_put(struct letters *l, loop_fn *fn, void *arg)
{
    struct letter *x = NEW(struct letter);
    x->fn = fn;
    x->arg = arg;
    *l->last = x;
    l->last = &x->next;
}

static void letters_run(struct letters *l)
{
    struct letter *x = l->first;
    letters_init(l);
    while (x != NULL) {
        struct letter *next = x->next;
        x->fn(x->arg);
        mem_free(x);
        x = next;
    }
}

void loop_run_posted(struct loop *l)
{
    struct letters taken;

    pthread_mutex_lock(&l->lock);
    taken.first = l->mail.first;
    letters_init(&l->mail);
    pthread_mutex_unlock(&l->lock);
    letters_run(&taken);
}

static void on_wake(evutil_socket_t fd, short what, void *ctx)
{
    uint64_t count;

    (void)what;
    (void)!read(fd, &count, sizeof count);
    loop_run_posted(ctx);
}

static void on_deferred(evutil_socket_t fd, short what, void *ctx)
{
    (void)fd, (void)what;
    loop_run_deferred(ctx);
}

static void libevent_start(void)
{
    event_set_mem_functions(mem_alloc, mem_realloc, mem_free);
}

struct loop *loop_new(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    AN(pthread_once(&once, libevent_start) == 0);

    struct loop *l = NEW(struct loop);
    struct event_config *cfg = event_config_new();
    AN(cfg != NULL);
    event_config_set_flag(cfg, EVENT_BASE_FLAG_NOLOCK);
    l->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    l->base = l->wake_fd >= 0 ? event_base_new_with_config(cfg) : NULL;
    event_config_free(cfg);
    if (l->base == NULL)
        goto fail;
    letters_init(&l->mail);
    letters_init(&l->deferred);
    pthread_mutex_init(&l->lock, NULL);
    l->wake = event_new(l->base, l->wake_fd, EV_READ | EV_PERSIST, on_wake, l);
    l->deferred_event = event_new(l->base, -1, 0, on_deferred, l);
    AN(l->wake != NULL && l->deferred_event != NULL);
    if (event_add(l->wake, NULL) != 0)
        goto fail;
    return l;

fail:;
    int e = errno;
    if (l->base != NULL) {
        event_free(l->wake);
        event_free(l->deferred_event);
        event_base_free(l->base);
    }
    if (l->wake_fd >= 0)
        close(l->wake_fd);
    mem_free(l);
    errno = e;
    return NULL;
}

void loop_free(struct loop *l)
{
    if (l == NULL)
        return;
    letters_run(&l->mail); /* what was posted is owed its run, and frees what it owns */
    letters_run(&l->deferred);
    event_free(l->wake);
    event_free(l->deferred_event);
    close(l->wake_fd);
    event_base_free(l->base);
    pthread_mutex_destroy(&l->lock);
    mem_free(l);
}

void loop_run(struct loop *l)
{
    event_base_loop(l->base, EVLOOP_NO_EXIT_ON_EMPTY);
}

void loop_run_once(struct loop *l)
{
    event_base_loop(l->base, EVLOOP_ONCE);
}

void loop_stop(struct loop *l)
{
    event_base_loopbreak(l->base);
}

uint64_t loop_now_ms(struct loop *l)
{
    /* libevent caches the time per round, so this is cheap; it is CLOCK_MONOTONIC on Linux only through its own
     * private clock, therefore ours is asked: a vDSO call of some 20 ns. */
    (void)l;
    return clock_mono_ms();
}

void *loop_base(struct loop *l)
{
    return l->base;
}

void loop_post(struct loop *l, loop_fn *fn, void *arg)
{
    uint64_t one = 1;

    pthread_mutex_lock(&l->lock);
    bool was_empty = l->mail.first == NULL;
    letters_put(&l->mail, fn, arg);
    pthread_mutex_unlock(&l->lock);
    if (was_empty)
        (void)!write(l->wake_fd, &one, sizeof one);
}

void loop_defer(struct loop *l, loop_fn *fn, void *arg)
{
    bool was_empty = l->deferred.first == NULL;

    letters_put(&l->deferred, fn, arg);
    if (was_empty) {
        static const struct timeval zero = {0, 0};
        event_add(l->deferred_event, &zero);
    }
}

void loop_run_deferred(struct loop *l)
{
    struct letters taken = {.first = l->deferred.first};

    letters_init(&l->deferred);
    letters_run(&taken);
}

static void on_timer(evutil_socket_t fd, short what, void *ctx)
{
    struct timer *t = ctx;
    (void)fd, (void)what;
    t->fn(t->ctx);
}

struct timer *timer_new(struct loop *l, timer_fn *fn, void *ctx)
{
    struct timer *t = NEW(struct timer);
    t->fn = fn;
    t->ctx = ctx;
    t->ev = event_new(l->base, -1, 0, on_timer, t);
    AN(t->ev != NULL);
    return t;
}

void timer_set(struct timer *t, uint64_t ms)
{
    struct timeval tv = {.tv_sec = (time_t)(ms / 1000), .tv_usec = (suseconds_t)(ms % 1000 * 1000)};
    event_add(t->ev, &tv);
}

void timer_cancel(struct timer *t)
{
    event_del(t->ev);
}

bool timer_pending(const struct timer *t)
{
    return event_pending(t->ev, EV_TIMEOUT, NULL) != 0;
}

void timer_free(struct timer **t)
{
    if (*t == NULL)
        return;
    event_free((*t)->ev);
    MEM_FREE(*t);
}

static void on_watch(evutil_socket_t fd, short what, void *ctx)
{
    struct watch *w = ctx;
    w->fn(w->ctx, (int)fd, (what & EV_READ ? WATCH_READ : 0u) | (what & EV_WRITE ? WATCH_WRITE : 0u));
}

static void watch_arm(struct watch *w)
{
    short what = (short)((w->interest & WATCH_READ ? EV_READ : 0) | (w->interest & WATCH_WRITE ? EV_WRITE : 0));
    if (what != 0) {
        event_assign(w->ev, w->loop->base, w->fd, (short)(what | EV_PERSIST), on_watch, w);
        event_add(w->ev, NULL);
    }
}

struct watch *watch_new(struct loop *l, int fd, unsigned interest, watch_fn *fn, void *ctx)
{
    struct watch *w = NEW(struct watch);
    w->loop = l;
    w->fd = fd;
    w->interest = interest;
    w->fn = fn;
    w->ctx = ctx;
    w->ev = event_new(l->base, fd, EV_READ | EV_PERSIST, on_watch, w);
    AN(w->ev != NULL);
    watch_arm(w);
    return w;
}

void watch_change(struct watch *w, unsigned interest)
{
    if (w->interest == interest)
        return;
    event_del(w->ev);
    w->interest = interest;
    watch_arm(w);
}

void watch_free(struct watch **w)
{
    if (*w == NULL)
        return;
    event_free((*w)->ev);
    MEM_FREE(*w);
}

struct watch *watch_signal(struct loop *l, int signo, watch_fn *fn, void *ctx)
{
    struct watch *w = NEW(struct watch);
    w->loop = l;
    w->fd = signo;
    w->is_signal = true;
    w->fn = fn;
    w->ctx = ctx;
    w->ev = evsignal_new(l->base, signo, on_watch, w);
    AN(w->ev != NULL);
    NEED(event_add(w->ev, NULL) == 0, "its signals"); /* made at the start only */
    return w;
}
