/* One sweep: stages, each a queue of tasks with a bounded number in flight. */
#include "sweep.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pullgate/clock.h"
#include "pullgate/log.h"
#include "pullgate/mem.h"
#include "pullgate/semver.h"

#include "worker.h"

#define SWEEP_MAGIC 0x53ee9edu

enum { TASKS = 16, TAG_TASKS = 8 };                   /* in flight at once for one sweep: closures; questions to the upstream */
static const unsigned FAILURES_MAX = 8;               /* then the rest is not tried: the upstream is away */
static const unsigned ROUNDS_MAX = CLOSURE_MAX_DEPTH; /* what hangs on what hangs on … */
static const unsigned LOOK_AGAIN_SLOWLY = 20;         /* times tag_freshness, for referrers of more manifests than one sweep may ask for */

enum stage {
    STAGE_START,
    STAGE_ROOTS,    /* closures of what may be had and is not complete */
    STAGE_LIST,     /* the upstream's tags */
    STAGE_TAGS,     /* those that may be had, resolved */
    STAGE_SUBJECTS, /* tags that name a manifest that may be had */
    STAGE_HANGING,  /* closures of what hangs there */
    STAGE_REFERRERS,
    STAGE_REFERRING, /* closures of those */
    STAGE_AGAIN,
    STAGE_END,
};

struct item {
    uint32_t id; /* root or node */
    char *tag;
    bool known; /* some digest of it is */
    bool is_semver;
    struct semver v; /* borrows from the tag's text while sorting */
};

struct task {
    struct waiter w;
    struct sweep *s;
    struct flight *on;
    char *tag; /* being resolved; its closure comes next */
    bool closure;
};

struct sweep {
    unsigned magic;
    struct sweep *next;
    struct sweeps *ss;
    struct repo *repo; /* referenced */
    struct asker a;    /* of the copies below */
    struct fact *customer;
    char *license_id, *repository;
    uint8_t addr[16];
    bool has_addr; /* it matters */
    struct waiters waiters, told;

    enum stage stage;
    struct item *items;
    size_t n_items, cap_items, at;
    struct task tasks[TASKS];
    unsigned in_flight, rounds, failures;
    uint64_t built, generation;
    bool failed, running;
    bool abandoned; /* nobody waited: what was left in the queue was dropped, nobody may join */
    char detail[240];
};

struct sweeps {
    struct repos *rs;
    struct sweep *first;
    struct timer *kick;
};

struct sweeps *sweeps_new(struct repos *rs)
{
    struct sweeps *ss = NEW(struct sweeps);
    ss->rs = rs;
    return ss;
}

static void items_drop(struct sweep *s)
{
    for (size_t i = 0; i < s->n_items; i++)
        mem_free(s->items[i].tag);
    s->n_items = s->at = 0;
}

static void sweep_destroy(struct sweep *s)
{
    items_drop(s);
    for (int i = 0; i < TASKS; i++)
        mem_free(s->tasks[i].tag);
    mem_free(s->items);
    fact_unref(&s->customer);
    mem_free(s->license_id);
    mem_free(s->repository);
    repo_unref(&s->repo);
    s->magic = 0;
    mem_free(s);
}

static void sweep_unlink(struct sweep *s)
{
    struct sweep **at = &s->ss->first;
    while (*at && *at != s)
        at = &(*at)->next;
    if (*at)
        *at = s->next;
    s->next = NULL;
}

static void tasks_leave(struct sweep *s)
{
    for (int i = 0; i < TASKS; i++)
        if (s->tasks[i].on)
            repo_leave(s->tasks[i].on, &s->tasks[i].w);
}

void sweeps_free(struct sweeps **pss)
{
    struct sweeps *ss = *pss;
    *pss = NULL;
    if (!ss)
        return;
    while (ss->first) {
        struct sweep *s = ss->first;
        ss->first = s->next;
        tasks_leave(s);
        sweep_destroy(s);
    }
    timer_free(&ss->kick);
    mem_free(ss);
}

static const struct config *config_of(const struct sweep *s)
{
    return repos_worker(s->ss->rs)->cfg;
}

bool sweep_remembered(struct repo *r, const struct rights *v)
{
    const struct config *cfg = repos_worker(r->repos)->cfg;
    uint64_t life = cfg->cache.negative_ms > cfg->cache.tag_freshness_ms ? cfg->cache.negative_ms : cfg->cache.tag_freshness_ms;
    return v->swept_ms && v->swept_generation == r->generation && repos_now_ms(r->repos) - v->swept_ms < life;
}

/* ---- what is to be done ----------------------------------------------------------------------- */

static struct item *item_add(struct sweep *s)
{
    if (s->n_items == s->cap_items) {
        s->cap_items = s->cap_items ? s->cap_items * 2 : 32;
        s->items = mem_realloc(s->items, s->cap_items * sizeof(*s->items));
    }
    s->items[s->n_items] = (struct item){0};
    return &s->items[s->n_items++];
}

static int newest_first(const void *x, const void *y)
{
    const struct item *a = x, *b = y;
    if (a->known != b->known)
        return a->known ? 1 : -1;
    if (a->is_semver != b->is_semver)
        return a->is_semver ? -1 : 1;
    int c = a->is_semver ? semver_cmp(&b->v, &a->v) : 0;
    return c ? c : a->id < b->id ? -1 : a->id > b->id;
}

static void items_sort(struct sweep *s)
{
    if (s->n_items)
        qsort(s->items, s->n_items, sizeof(*s->items), newest_first);
    for (size_t i = 0; i < s->n_items; i++)
        s->items[i].is_semver = false; /* the texts it points into may go while we wait */
}

static bool is_near(const struct decision *d)
{
    return d->verdict == VERDICT_DENY && (d->reason == REASON_IP_NOT_ALLOWED || d->reason == REASON_QUOTA_EXCEEDED);
}

static void fill_roots(struct sweep *s, struct rights *v)
{
    struct repo *r = s->repo;
    for (uint32_t root = 0; root < closureindex_roots(r->index); root++) {
        if (repo_closure_settled(r, root))
            continue;
        if (rights_root(r, v, &s->a, root) == RIGHT_NO && !rights_pending(r, v, &s->a, root))
            continue;
        struct item *i = item_add(s);
        const struct ci_root *cr = closureindex_root(r->index, root);
        i->id = root;
        i->is_semver = cr->n_tags && semver_parse(r->tags[cr->tags[0]]->version, &i->v);
    }
    items_sort(s);
}

static void fail(struct sweep *s, const char *why)
{
    if (!s->failed)
        snprintf(s->detail, sizeof s->detail, "%s", why);
    s->failed = true;
}

static void fill_tags(struct sweep *s)
{
    struct repo *r = s->repo;
    struct digest serve;
    size_t unknown = 0;
    for (size_t i = 0; i < r->list.n; i++) {
        struct oci_subject_tag subject;
        struct decision d;
        const struct tag *t = repo_tag(r, r->list.names[i]);
        if ((t && tag_fresh(t)) || oci_subject_tag_parse(r->list.names[i], &subject))
            continue;
        if (rights_tag(r, &s->a, r->list.names[i], t, NULL, &d, &serve) == TAG_DENIED && !is_near(&d))
            continue;
        struct item *it = item_add(s);
        it->tag = str_dup(r->list.names[i]);
        it->id = (uint32_t)i;
        it->known = t && t->n_digests;
        it->is_semver = t && semver_parse(t->version, &it->v);
        if (!t) { /* by its text: good enough to begin with the newest */
            struct str name = str_c(it->tag);
            it->is_semver = semver_parse(name, &it->v);
        }
        unknown += !it->known;
    }
    items_sort(s);
    size_t max = (size_t)config_of(s)->limits.resolve_tags;
    if (unknown > max)
        fail(s, "more unresolved tags than limits.resolve_tags");
    while (s->n_items > max) /* what is known already is looked at again as far as the limit goes */
        mem_free(s->items[--s->n_items].tag);
}

static bool subject_counts(struct sweep *s, struct rights *v, const struct oci_subject_tag *st)
{
    struct right_ground g;
    return rights_digest(s->repo, v, &s->a, NODE_MANIFEST, &st->subject, &g) != RIGHT_NO;
}

static void fill_subjects(struct sweep *s, struct rights *v)
{
    struct repo *r = s->repo;
    size_t max = (size_t)config_of(s)->limits.resolve_tags;
    for (size_t i = 0; i < r->list.n; i++) {
        struct oci_subject_tag st;
        const struct tag *t;
        if (!oci_subject_tag_parse(r->list.names[i], &st) || !subject_counts(s, v, &st))
            continue;
        t = repo_tag(r, r->list.names[i]);
        if (t && tag_fresh(t))
            continue;
        if (s->n_items == max) {
            fail(s, "more signature tags than limits.resolve_tags");
            return;
        }
        struct item *it = item_add(s);
        it->tag = str_dup(r->list.names[i]);
        it->id = (uint32_t)i;
    }
}

static void fill_referrers(struct sweep *s, struct rights *v)
{
    struct repo *r = s->repo;
    size_t max = (size_t)config_of(s)->limits.resolve_tags, n = 0;
    if (repos_now_ms(s->ss->rs) < r->no_referrers_until_ms)
        return; /* the upstream has no such API, and the fallback tags were looked at */
    size_t words = ((size_t)closureindex_nodes(r->index) + 63) / 64;
    uint64_t *seen = mem_calloc(words + 1, sizeof(*seen));
    for (uint32_t root = closureindex_roots(r->index); root-- > 0;) {
        if (rights_root(r, v, &s->a, root) == RIGHT_NO)
            continue;
        const struct ci_root *cr = closureindex_root(r->index, root);
        for (uint32_t i = 0; i < cr->n_manifests; i++) {
            uint32_t node = cr->manifests[i].node;
            if (seen[node / 64] >> (node % 64) & 1)
                continue;
            seen[node / 64] |= UINT64_C(1) << (node % 64);
            n++;
            if (!repo_referrers_fresh(r, node))
                item_add(s)->id = node;
        }
    }
    mem_free(seen);
    if (n <= max)
        return;
    /* More than one sweep may ask for: those that were not looked at for long. */
    uint64_t slow = config_of(s)->cache.tag_freshness_ms * LOOK_AGAIN_SLOWLY, now = repos_now_ms(s->ss->rs);
    size_t kept = 0;
    for (size_t i = 0; i < s->n_items; i++) {
        const struct referrers *x = repo_referrers_held(r, s->items[i].id);
        if (!x || !x->looked_ms || now - x->looked_ms >= slow)
            s->items[kept++] = s->items[i];
    }
    s->n_items = kept;
    if (kept > max) {
        fail(s, "more manifests to ask referrers for than limits.resolve_tags");
        s->n_items = max;
    }
}

/* ---- tasks ------------------------------------------------------------------------------------ */

static struct sweep *sweep_of(struct sweep *s)
{
    AN(s->magic == SWEEP_MAGIC);
    return s;
}

static void sweep_run(struct sweep *s);

/* Also "there is none" and "it is none that we serve" are answers. */
static bool settles(enum err e)
{
    return e == ERR_OK || e == ERR_NOT_FOUND || e == ERR_INVALID;
}

static void on_task(void *ctx, const struct flight_end *e);

/* After a tag is resolved: the closure of what it resolved to. True: under way. */
static bool task_goes_on(struct task *t)
{
    struct sweep *s = t->s;
    const struct tag *tag = repo_tag(s->repo, str_c(t->tag));
    const struct tag_digest *d = tag ? tag_current(tag) : NULL;
    mem_free(t->tag);
    t->tag = NULL;
    if (!d || repo_closure_settled(s->repo, d->root))
        return false;
    t->closure = true;
    t->on = repo_closure(s->repo, d->root, &t->w, on_task, t);
    return true;
}

static void on_task(void *ctx, const struct flight_end *e)
{
    struct task *t = ctx;
    struct sweep *s = sweep_of(t->s);
    t->on = NULL;
    if (!settles(e->err)) {
        s->failures++;
        fail(s, e->detail);
    }
    if (t->closure && e->upstream)
        s->built++;
    if (t->tag && !e->err && task_goes_on(t))
        return;
    mem_free(t->tag);
    t->tag = NULL;
    s->in_flight--;
    sweep_run(s);
}

static struct task *task_free(struct sweep *s)
{
    for (int i = 0; i < TASKS; i++)
        if (!s->tasks[i].on)
            return &s->tasks[i];
    return NULL;
}

static void task_start(struct sweep *s, struct item *i)
{
    struct task *t = task_free(s);
    t->s = s;
    t->closure = false;
    s->in_flight++;
    switch (s->stage) {
    case STAGE_LIST:
        t->on = repo_list(s->repo, &t->w, on_task, t);
        return;
    case STAGE_TAGS:
    case STAGE_SUBJECTS:
        t->tag = i->tag;
        i->tag = NULL;
        t->on = repo_resolve(s->repo, str_c(t->tag), false, &t->w, on_task, t);
        return;
    case STAGE_REFERRERS:
        t->on = repo_referrers(s->repo, i->id, &t->w, on_task, t);
        return;
    case STAGE_ROOTS:
    case STAGE_HANGING:
    case STAGE_REFERRING:
        t->closure = true;
        t->on = repo_closure(s->repo, i->id, &t->w, on_task, t);
        return;
    case STAGE_START:
    case STAGE_AGAIN:
    case STAGE_END:
        break;
    }
    WRONG("a stage without tasks");
}

static void stage_fill(struct sweep *s)
{
    struct rights *v = rights_get(s->repo, &s->a);
    switch (s->stage) {
    case STAGE_START:
        break;
    case STAGE_ROOTS:
    case STAGE_HANGING:
    case STAGE_REFERRING:
        fill_roots(s, v);
        break;
    case STAGE_LIST:
        if (!repo_list_fresh(s->repo))
            item_add(s);
        break;
    case STAGE_TAGS:
        fill_tags(s);
        break;
    case STAGE_SUBJECTS:
        s->generation = closureindex_generation(s->repo->index);
        fill_subjects(s, v);
        break;
    case STAGE_REFERRERS:
        fill_referrers(s, v);
        break;
    case STAGE_AGAIN: /* something was found hanging: something may hang on it in turn */
        if (closureindex_generation(s->repo->index) != s->generation && ++s->rounds < ROUNDS_MAX)
            s->stage = STAGE_SUBJECTS - 1; /* the next stage is SUBJECTS */
        break;
    case STAGE_END:
        break;
    }
}

/* ---- who waits -------------------------------------------------------------------------------- */

static struct sweep_waiter *waiter_of(struct waiter *w)
{
    return (struct sweep_waiter *)(void *)w; /* its first member */
}

/* Those whose digest can be had by now. A waiter that is called may take others away: see sweep_leave(). */
static void found(struct sweep *s)
{
    struct rights *v = rights_get(s->repo, &s->a);
    struct waiter *w, *next;
    for (w = s->waiters.first; w; w = next) {
        struct right_ground g;
        struct sweep_waiter *sw = waiter_of(w);
        next = w->next;
        if (sw->kind == NODE_NONE || rights_digest(s->repo, v, &s->a, sw->kind, &sw->digest, &g) == RIGHT_NO)
            continue;
        waiter_leave(&s->waiters, w);
        waiter_add(&s->told, w, w->fn, w->ctx);
        sw->told = true;
    }
    const struct flight_end e = {.err = ERR_OK, .detail = ""};
    while ((w = waiter_pop(&s->told)))
        w->fn(w->ctx, &e);
}

static void finish(struct sweep *s)
{
    struct flight_end e = {.err = s->failed ? ERR_UNAVAILABLE : ERR_OK, .detail = s->detail};
    struct waiter *w;
    sweep_unlink(s);
    if (!s->failed && s->stage == STAGE_END) {
        struct rights *v = rights_get(s->repo, &s->a);
        v->swept_ms = repos_now_ms(s->ss->rs);
        v->swept_generation = s->repo->generation;
    }
    while ((w = waiter_pop(&s->waiters)))
        w->fn(w->ctx, &e);
    sweep_destroy(s);
}

static void sweep_run(struct sweep *s)
{
    if (s->running)
        return;
    s->running = true;
    repos_worker(s->ss->rs)->on_behalf = customer_mark(s->customer);
    s->a.now_s = clock_now_s();
    found(s);
    for (;;) {
        size_t max = s->stage == STAGE_ROOTS || s->stage == STAGE_HANGING || s->stage == STAGE_REFERRING ? TASKS : TAG_TASKS;
        s->abandoned |= !s->waiters.first;
        if (s->abandoned || s->failures >= FAILURES_MAX)
            items_drop(s);
        if (s->built >= config_of(s)->limits.resolve_tags && s->at < s->n_items) {
            fail(s, "more closures to build than limits.resolve_tags");
            items_drop(s);
        }
        while (s->at < s->n_items && s->in_flight < max)
            task_start(s, &s->items[s->at++]);
        if (s->in_flight)
            break;
        items_drop(s);
        if (s->stage == STAGE_END || s->abandoned || s->failures >= FAILURES_MAX) {
            finish(s);
            return;
        }
        s->stage++;
        stage_fill(s);
    }
    s->running = false;
}

/* ---- joining ---------------------------------------------------------------------------------- */

static void on_kick(void *ctx)
{
    struct sweeps *ss = ctx;
    struct sweep *s = ss->first;
    while (s) {
        if (s->stage == STAGE_START) {
            sweep_run(s);
            s = ss->first; /* the list may have changed */
        } else {
            s = s->next;
        }
    }
}

static bool same_asker(const struct sweep *s, const struct asker *a, bool has_addr)
{
    return s->customer->epoch == a->customer->epoch && strcmp(s->customer->name, a->customer->name) == 0 &&
           str_eq(s->a.license_id, a->license_id) && s->has_addr == has_addr &&
           (!has_addr || memcmp(s->addr, a->addr, sizeof s->addr) == 0) && s->a.instance == a->instance;
}

struct sweep *sweep_join(struct sweeps *ss, struct repo *r, const struct asker *a, struct sweep_waiter *w, waiter_fn *fn, void *ctx)
{
    bool has_addr = rights_get(r, a)->has_addr;
    struct sweep *s = ss->first;
    while (s && !(!s->abandoned && s->repo == r && same_asker(s, a, has_addr)))
        s = s->next;
    if (!s) {
        s = NEW(struct sweep);
        s->magic = SWEEP_MAGIC;
        s->ss = ss;
        s->repo = repo_ref(r);
        s->customer = fact_ref(a->customer);
        s->license_id = str_dup(a->license_id);
        s->repository = str_dup(a->repository);
        s->has_addr = has_addr;
        if (a->addr)
            memcpy(s->addr, a->addr, sizeof s->addr);
        s->a = (struct asker){.customer = s->customer,
                              .license_id = str_c(s->license_id),
                              .addr = a->addr ? s->addr : NULL,
                              .instance = a->instance,
                              .repository = str_c(s->repository),
                              .now_s = a->now_s};
        s->next = ss->first;
        ss->first = s;
        if (!ss->kick)
            ss->kick = timer_new(repos_worker(ss->rs)->loop, on_kick, ss);
        timer_set(ss->kick, 0);
    }
    w->told = false;
    waiter_add(&s->waiters, &w->w, fn, ctx);
    return s;
}

void sweep_leave(struct sweep *s, struct sweep_waiter *w)
{
    waiter_leave(w->told ? &s->told : &s->waiters, &w->w);
}
