/* The bound, the look at it, and what is given up while it is near: manifests held, free blocks, idle connections.
 *
 * Resident memory is held against limits.memory or, where that is 0, seven eighths of the cgroup's limit (the rest is the kernel's:
 * sockets and page cache are charged to it too); and against what RLIMIT_AS leaves beside the address space that is only reserved, of
 * which the allocator takes much for each thread. A level is left only well below where it was entered. */
#include "admission.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>

#include "pullgate/clock.h"
#include "pullgate/config.h"
#include "pullgate/edge.h"
#include "pullgate/file.h"
#include "pullgate/log.h"
#include "pullgate/mem.h"
#include "pullgate/metrics.h"

#include "content.h"
#include "worker.h"

#define LOOK_MS        50u
#define PROMISE_MS     500u  /* what was promised is seen by a look once and twice this time later */
#define GIVE_UP_MS     1000u /* between two rounds of giving memory back */
#define SHED_IDLE      256u  /* idle connections of a worker ended in one round */
#define LIMIT_NONE_MIN (UINT64_C(1) << 50) /* a cgroup's "no limit" is a number of this size or larger */

/* Percent of the bound. */
enum { SMALL_FROM = 80, SMALL_UNTIL = 72, NONE_FROM = 95, NONE_UNTIL = 85 };

struct admission {
    struct proxy *proxy;
    struct timer *timer;
    uint64_t cgroup_limit, space_limit; /* 0: none */
    uint64_t limit;  /* atomic: configured, or the cgroup's */
    uint64_t bound;  /* atomic: that, or less by RLIMIT_AS; as of the last look */
    uint64_t given_up_ms;
    uint64_t resident;    /* atomic: at the last look */
    uint64_t promised[2]; /* atomic: in the running and in the last PROMISE_MS */
    uint64_t promised_ms; /* when the running one began */
    unsigned level; /* atomic */
    uint64_t refused[ADMISSION_REFUSED]; /* atomic */
};

/* ---- the bounds ---------------------------------------------------------------------------------------------------------- */

static uint64_t number_in(const char *directory, const char *path, const char *file)
{
    char name[512], text[64];
    uint64_t v;

    if (snprintf(name, sizeof name, "%s%s/%s", directory, path, file) >= (int)sizeof name || !file_read_small(name, text, sizeof text))
        return 0;
    return sscanf(text, "%" SCNu64, &v) == 1 && v < LIMIT_NONE_MIN ? v : 0; /* "max" is no number */
}

static uint64_t smaller(uint64_t a, uint64_t b)
{
    return a == 0 || (b != 0 && b < a) ? b : a;
}

/* The least of a group and those around it. Inside of a container the path may not be there; its root is. */
static uint64_t limit_upwards(const char *directory, char *path, const char *file)
{
    uint64_t least = 0;

    for (;;) {
        least = smaller(least, number_in(directory, path, file));
        char *slash = strrchr(path, '/');
        if (slash == NULL)
            return smaller(least, number_in(directory, "", file));
        *slash = '\0';
    }
}

static uint64_t cgroup_limit(void)
{
    char text[4096], path[256];
    uint64_t least = 0;

    if (!file_read_small("/proc/self/cgroup", text, sizeof text))
        return 0;
    struct str rest = str_c(text), line;
    while (str_next(&rest, '\n', &line)) {
        struct str id, list, where;
        if (!str_cut(line, ':', &id, &list) || !str_cut(list, ':', &list, &where) || where.n >= sizeof path)
            continue;
        if (list.n == 0) { /* version 2 */
            static const char *const files[] = {"memory.max", "memory.high"};
            for (size_t i = 0; i < 2; i++) {
                snprintf(path, sizeof path, "%.*s", STR(where));
                least = smaller(least, limit_upwards("/sys/fs/cgroup", path, files[i]));
            }
        } else if (str_eq(list, S("memory"))) {
            snprintf(path, sizeof path, "%.*s", STR(where));
            least = smaller(least, limit_upwards("/sys/fs/cgroup/memory", path, "memory.limit_in_bytes"));
        }
    }
    return least;
}

void admission_configure(struct admission *a, const struct config *cfg)
{
    __atomic_store_n(&a->limit, cfg->limits.memory_bytes != 0 ? cfg->limits.memory_bytes : a->cgroup_limit / 8 * 7, __ATOMIC_RELAXED);
}

/* ---- the look ------------------------------------------------------------------------------------------------------------ */

static unsigned percent(uint64_t used, uint64_t of)
{
    return of == 0 ? 0 : used >= of * 10 ? 1000 : (unsigned)(used * 100 / of);
}

static enum admission_level level_of(enum admission_level was, unsigned used)
{
    if (used >= NONE_FROM || (was == ADMIT_NONE && used >= NONE_UNTIL))
        return ADMIT_NONE;
    if (used >= SMALL_FROM || (was != ADMIT_ALL && used >= SMALL_UNTIL))
        return ADMIT_SMALL;
    return ADMIT_ALL;
}

struct give_up {
    struct worker *w;
    bool all;
};

static void give_up_in_loop(void *arg)
{
    struct give_up *g = arg;

    if (g->w->content != NULL) /* the loop may be at its end */
        content_shed(g->w->content);
    if (g->all && g->w->edge != NULL)
        edge_shed_idle(g->w->edge, SHED_IDLE);
    mem_free(g);
}

/* Freed memory stays with the allocator: without giving it back the level would never fall. */
static void give_up(struct admission *a, bool all)
{
    uint64_t now = clock_mono_ms();

    if (now - a->given_up_ms < GIVE_UP_MS)
        return;
    a->given_up_ms = now;
    for (unsigned i = 0; i < a->proxy->n_workers; i++) {
        struct give_up *g = NEW(struct give_up);
        g->w = a->proxy->workers[i];
        g->all = all;
        loop_post(g->w->loop, give_up_in_loop, g);
    }
    mem_trim();
}

static void on_look(void *ctx)
{
    struct admission *a = ctx;
    enum admission_level was = a->level, level = ADMIT_ALL;
    uint64_t space, resident, limit = __atomic_load_n(&a->limit, __ATOMIC_RELAXED);

    timer_set(a->timer, LOOK_MS);
    if (clock_mono_ms() - a->promised_ms >= PROMISE_MS) {
        a->promised_ms = clock_mono_ms();
        __atomic_store_n(&a->promised[1], __atomic_exchange_n(&a->promised[0], 0, __ATOMIC_RELAXED), __ATOMIC_RELAXED);
    }
    if ((limit == 0 && a->space_limit == 0) || !metrics_memory(&space, &resident)) {
        __atomic_store_n(&a->bound, 0, __ATOMIC_RELAXED);
        __atomic_store_n(&a->level, ADMIT_ALL, __ATOMIC_RELAXED);
        return;
    }
    __atomic_store_n(&a->resident, resident, __ATOMIC_RELAXED);
    if (a->space_limit != 0) {
        uint64_t reserved = space > resident ? space - resident : 0;
        limit = smaller(limit, a->space_limit > reserved ? a->space_limit - reserved : 1);
    }
    __atomic_store_n(&a->bound, limit, __ATOMIC_RELAXED);
    unsigned used = percent(resident, limit);
    level = level_of(was, used);
    if (level != was) {
        static const char *const texts[] = {"all requests are answered", "blobs are answered 503", "requests are answered 503"};
        static unsigned long long last[3];
        log_limited(&last[level], 10000, level == ADMIT_ALL ? LOG_LEVEL_INFO : LOG_LEVEL_WARN,
                    "%" PRIu64 " MiB resident, %u%% of what there is: %s", resident >> 20, used, texts[level]);
        __atomic_store_n(&a->level, level, __ATOMIC_RELAXED);
    }
    if (level != ADMIT_ALL)
        give_up(a, level == ADMIT_NONE);
}

struct admission *admission_new(struct loop *l, struct proxy *p)
{
    struct admission *a = NEW(struct admission);
    struct rlimit space = {0};

    a->proxy = p;
    a->cgroup_limit = cgroup_limit();
    if (getrlimit(RLIMIT_AS, &space) == 0 && space.rlim_cur != RLIM_INFINITY)
        a->space_limit = space.rlim_cur;
    admission_configure(a, p->cfg);
    a->timer = timer_new(l, on_look, a);
    timer_set(a->timer, 0);
    return a;
}

void admission_free(struct admission **pa)
{
    struct admission *a = *pa;

    if (a == NULL)
        return;
    *pa = NULL;
    timer_free(&a->timer);
    mem_free(a);
}

enum admission_level admission_level(const struct admission *a)
{
    return a == NULL ? ADMIT_ALL : (enum admission_level)__atomic_load_n(&a->level, __ATOMIC_RELAXED);
}

bool admission_reserve(struct admission *a, uint64_t bytes)
{
    if (a == NULL)
        return true;
    uint64_t limit = __atomic_load_n(&a->bound, __ATOMIC_RELAXED);
    uint64_t taken = __atomic_load_n(&a->resident, __ATOMIC_RELAXED) + __atomic_load_n(&a->promised[0], __ATOMIC_RELAXED) +
                     __atomic_load_n(&a->promised[1], __ATOMIC_RELAXED) + bytes;

    if (limit != 0 && percent(taken, limit) >= SMALL_FROM)
        return false;
    __atomic_add_fetch(&a->promised[0], bytes, __ATOMIC_RELAXED);
    return true;
}

void admission_count(struct admission *a, enum admission_refused what)
{
    if (a != NULL)
        __atomic_add_fetch(&a->refused[what], 1, __ATOMIC_RELAXED);
}

void admission_stats(const struct admission *a, struct admission_stats *ret)
{
    *ret = (struct admission_stats){0};
    if (a == NULL)
        return;
    ret->limit_bytes = __atomic_load_n(&a->bound, __ATOMIC_RELAXED);
    ret->level = admission_level(a);
    for (unsigned i = 0; i < ADMISSION_REFUSED; i++)
        ret->refused[i] = __atomic_load_n(&a->refused[i], __ATOMIC_RELAXED);
}
