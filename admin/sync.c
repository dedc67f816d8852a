/* The version sync. Each repository is looked at in rounds: list its tags, resolve those that may have changed, walk the manifests
 * that are not known yet, write what differs in one transaction of the writer, and see to it that Redis holds the closures.
 * Everything runs on one loop; only the store's reads and Redis block it, both local. Nothing that an upstream says is shown to a
 * customer; a failure is kept with its repository for the vendor. */
#include "sync.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "admin.h"
#include "compile.h"
#include "db.h"
#include "outbox.h"
#include "pullgate/cache.h"
#include "pullgate/clock.h"
#include "pullgate/closure.h"
#include "pullgate/config.h"
#include "pullgate/jv.h"
#include "pullgate/log.h"
#include "pullgate/loop.h"
#include "pullgate/mem.h"
#include "pullgate/oci.h"
#include "pullgate/projection.h"
#include "pullgate/seal.h"
#include "pullgate/store.h"
#include "pullgate/upstream.h"
#include "room.h"
#include "tags.h"

static const unsigned TICK_MS = 500;              /* due repositories are looked for this often */
static const size_t ROUNDS_AT_ONCE = 8;           /* repositories */
static const size_t ROUNDS_PER_UPSTREAM = 4;      /* of these at one upstream */
#define TASKS_PER_ROUND 4                         /* requests at once for one repository */
static const size_t RESOLVE_ALL = 200;            /* known tags up to which every one is looked at in each round ... */
static const size_t RESOLVE_PART = 100;           /* ... above that, so many of them, in turn */
static const size_t CHANGES_PER_ROUND = 1000;     /* tags and manifests in one transaction; the next round follows at once */
static const unsigned BACKOFF_MAX_MS = 600000;    /* after failures the interval doubles up to this */
static const unsigned RETRY_MIN_MS = 1000;        /* of a repository whose round failed with interval 0 or a busy writer */
static const unsigned SYNCED_AT_FLUSH_MS = 60000; /* synced_at of rounds without any change is written together, this often */
static const unsigned REDIS_DEADLINE_MS = 500;
static const unsigned REDIS_PAUSE_MS = 5000; /* after a failure of Redis */
#define CLOSURE_TTL_S "2592000"              /* 30 days: a closure in use is written again long before */
static const size_t EXISTS_AT_ONCE = 500;
static const size_t TAGS_BYTES = 16u * 1024 * 1024;
static const unsigned BREAKER_FAILURES = 5, BREAKER_MS = 10000;
#define CONFIG_BYTES (1024u * 1024)             /* of an image's configuration, read for its platform */
static const size_t ERROR_TEXT_MAX = 300;       /* of repositories.sync_error */
static const int64_t CREATED_MIN_S = 946684800; /* 2000-01-01: earlier dates in annotations are placeholders of build tools */

struct up { /* one upstream as of its fact */
    struct up *next;
    char *id;
    char *payload; /* the fact it was made of */
    struct upstream *upstream;
    size_t running;
};

struct waiter { /* one sync_repositories() call; freed by the last of caller and loop */
    unsigned refs;
    size_t remaining;
    bool requested; /* the loop has counted */
    pthread_cond_t cond;
};

struct want { /* a waiter at a repository */
    struct want *next;
    struct waiter *waiter;
    uint64_t not_before_ms; /* only a round that began then or later counts */
};

struct round;

struct repo {
    char *id, *application_id, *upstream_id, *upstream_repository, *tag_template;
    char *sync_error;    /* as stored */
    int64_t synced_at;   /* as stored */
    int64_t looked_at_s; /* end of the newest round that reached the upstream, wall clock */
    uint64_t began_ms;   /* start of the newest finished round; 0: none */
    uint64_t due_ms;
    unsigned failures;
    size_t rotate; /* where the next part of the known tags begins */
    struct want *wants;
    struct round *round; /* running */
    bool seen;           /* while the list is loaded */
    bool synced_at_dirty;
};

struct sync {
    struct admin *admin;
    struct loop *loop;
    pthread_t thread;
    struct store *store;
    struct cache_sync *redis;
    uint64_t redis_off_until_ms;
    struct timer *tick;
    struct repo **repos;
    size_t n_repos, cap_repos;
    uint64_t loaded_epoch;
    bool reload;
    struct up *ups;
    struct round *rounds;
    size_t running, writes;
    bool schedule_waits;
    uint64_t next_flush_ms;
    bool stopping;
    unsigned long long logged_store, logged_redis;

    pthread_mutex_t lock; /* guards st, waiters, ended */
    struct sync_state st;
    bool ended; /* nothing is taken any more */
};

enum task_kind { TASK_NONE, TASK_RESOLVE, TASK_BUILD };

struct task {
    struct round *round;
    enum task_kind kind;
    size_t index; /* of tags, or of builds */
    struct upstream_op *op;
};

struct tag {
    char *name;
    char *known; /* digest in the store, NULL none */
    bool chosen; /* resolved in this round */
    bool resolved, gone;
    char digest[DIGEST_TEXT_MAX];
    enum media_type media_type;
    uint64_t size;
    int64_t at_s;
};

struct build { /* the closure of one top manifest */
    struct digest root;
    struct closure closure;
    unsigned char *depth;   /* of each node */
    size_t cap_depth, next; /* next: nodes before it are settled */
    bool whole, failed, done;
    enum media_type media_type;
    uint64_t size;
    char *artifact_type, *platforms, *annotations;
    bool has_config; /* of an image of one platform: its configuration names it */
    struct digest config;
    struct strbuf config_bytes;
};

struct round {
    struct round *next;
    struct sync *sync;
    struct repo *repo;
    char *repository_id, *application_id, *tag_template; /* copies: the writer's thread reads them */
    struct up *up;
    struct upstream *upstream; /* a reference */
    uint64_t began_ms;
    struct upstream_op *op; /* tags/list */
    struct tag *tags;       /* sorted by name; listed ones, then known ones that are gone */
    size_t n_tags, next_tag;
    struct build *builds;
    size_t n_builds, cap_builds, next_build;
    bool building;
    struct task tasks[TASKS_PER_ROUND];
    size_t busy;
    bool more; /* work was left for the next round */
    enum err err;
    char error[400];
    bool unreached; /* the upstream could not be asked at all */
    unsigned retry_after_s;
    /* of the write */
    bool write_synced_at;
    int64_t now_s;
    enum err write_err;
};

static void round_next(struct round *r);
static void on_schedule(void *arg);

/* ---- small things ------------------------------------------------------------------------------ */

static uint64_t jitter(uint64_t ms) /* +- 10 % */
{
    uint32_t x;
    seal_random(&x, sizeof(x));
    return ms - ms / 10 + (uint64_t)x % (ms / 5 + 1);
}

static void waiter_unref(struct sync *s, struct waiter *w)
{
    pthread_mutex_lock(&s->lock);
    bool last = --w->refs == 0;
    pthread_mutex_unlock(&s->lock);
    if (last) {
        pthread_cond_destroy(&w->cond);
        mem_free(w);
    }
}

/* One repository of the waiter is through. */
static void waiter_count(struct sync *s, struct waiter *w)
{
    pthread_mutex_lock(&s->lock);
    w->remaining--;
    pthread_cond_signal(&w->cond);
    pthread_mutex_unlock(&s->lock);
    waiter_unref(s, w);
}

static void repo_answer(struct sync *s, struct repo *rp, uint64_t began_ms)
{
    struct want **at = &rp->wants;
    while (*at) {
        struct want *w = *at;
        if (w->not_before_ms > began_ms) {
            at = &w->next;
            continue;
        }
        *at = w->next;
        waiter_count(s, w->waiter);
        mem_free(w);
    }
}

static void repo_free(struct sync *s, struct repo *rp)
{
    repo_answer(s, rp, UINT64_MAX);
    mem_free(rp->id);
    mem_free(rp->application_id);
    mem_free(rp->upstream_id);
    mem_free(rp->upstream_repository);
    mem_free(rp->tag_template);
    mem_free(rp->sync_error);
    mem_free(rp);
}

static struct repo *repo_find(struct sync *s, struct str id)
{
    size_t lo = 0, hi = s->n_repos;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        int c = str_cmp(str_c(s->repos[mid]->id), id);
        if (c == 0)
            return s->repos[mid];
        if (c < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return NULL;
}

/* ---- the list of repositories ------------------------------------------------------------------ */

static bool replace(char **p, struct str v)
{
    if (*p && str_eq_c(v, *p))
        return false;
    mem_free(*p);
    *p = str_dup(v);
    return true;
}

static enum err repos_load(struct sync *s, struct error *reterr)
{
    struct store_stmt *st = NULL;
    struct repo **fresh = NULL;
    size_t n = 0, cap = 0;
    bool row;
    uint64_t epoch = 0, now = loop_now_ms(s->loop);
    enum err e = ERR_OK;

    if (!s->store)
        e = store_open(admin_config(s->admin)->store.url, true, &s->store, reterr);
    if (!e)
        e = outbox_epoch(s->store, &epoch, reterr);
    if (e)
        return e;
    if (epoch == s->loaded_epoch && !s->reload)
        return ERR_OK;
    for (size_t i = 0; i < s->n_repos; i++)
        s->repos[i]->seen = false;
    e = store_query(s->store, &st, reterr,
                    "SELECT r.id, r.application_id, r.upstream_id, r.upstream_repository, r.tag_template, r.sync_error, r.synced_at"
                    " FROM repositories r JOIN applications a ON a.id=r.application_id WHERE a.archived_at=0 ORDER BY r.id",
                    "");
    while (!e && !(e = store_step(st, &row, reterr)) && row) {
        struct repo *rp = repo_find(s, store_col_str(st, 0));
        if (!rp) {
            rp = NEW(struct repo);
            rp->id = str_dup(store_col_str(st, 0));
            rp->due_ms = now;
        }
        replace(&rp->application_id, store_col_str(st, 1));
        bool moved = replace(&rp->upstream_id, store_col_str(st, 2));
        moved = replace(&rp->upstream_repository, store_col_str(st, 3)) || moved;
        moved = replace(&rp->tag_template, store_col_str(st, 4)) || moved;
        if (moved) {
            rp->due_ms = now;
            rp->failures = 0;
            rp->began_ms = 0;
        }
        replace(&rp->sync_error, store_col_str(st, 5));
        rp->synced_at = store_col_int(st, 6);
        rp->seen = true;
        if (n == cap) {
            cap = cap ? cap * 2 : 64;
            fresh = mem_realloc(fresh, cap * sizeof(struct repo *));
        }
        fresh[n++] = rp;
    }
    store_done(&st);
    if (e) { /* what was found anew is dropped, the old list stays */
        for (size_t i = 0; i < n; i++)
            if (!repo_find(s, str_c(fresh[i]->id)))
                repo_free(s, fresh[i]);
        mem_free(fresh);
        return e;
    }
    for (size_t i = 0; i < s->n_repos; i++)
        if (!s->repos[i]->seen) {
            if (s->repos[i]->round) { /* its round ends by itself and frees it */
                repo_answer(s, s->repos[i], UINT64_MAX);
                continue;
            }
            repo_free(s, s->repos[i]);
        }
    mem_free(s->repos);
    s->repos = fresh;
    s->n_repos = n;
    s->cap_repos = cap;
    s->loaded_epoch = epoch;
    s->reload = false;
    pthread_mutex_lock(&s->lock);
    s->st.repositories = n;
    pthread_mutex_unlock(&s->lock);
    return ERR_OK;
}

/* ---- upstreams --------------------------------------------------------------------------------- */

static void up_drop(struct sync *s, struct up *u)
{
    struct up **at = &s->ups;
    while (*at && *at != u)
        at = &(*at)->next;
    if (*at)
        *at = u->next;
    upstream_unref(&u->upstream);
    mem_free(u->id);
    mem_free(u->payload);
    mem_free(u);
}

static enum err up_get(struct sync *s, const char *id, struct up **ret, struct error *reterr)
{
    struct strbuf fact = {0}, payload = {0};
    struct jv *doc = NULL;
    struct upstream_spec *spec = NULL;
    bool exists = false;
    struct up *u;

    sb_addf(&fact, "u:%s", id);
    enum err e = compile_fact(s->store, sb_str(&fact), &payload, &exists, reterr);
    if (!e && !exists)
        e = error_set(reterr, ERR_NOT_FOUND, "the upstream %s does not exist", id);
    if (e)
        goto out;
    for (u = s->ups; u; u = u->next)
        if (strcmp(u->id, id) == 0)
            break;
    if (u && str_eq_c(sb_str(&payload), u->payload)) {
        *ret = u;
        goto out;
    }
    e = jv_parse(sb_str(&payload), &JV_LIMITS_TRUSTED, &doc, reterr);
    if (!e)
        e = upstream_spec_parse(doc, s->admin->keys, &spec, reterr);
    if (e)
        goto out;
    const struct config *cfg = admin_config(s->admin);
    struct upstream_limits lim = {
        .fetch = {.connections = ROUNDS_PER_UPSTREAM * TASKS_PER_ROUND,
                  .connect_ms = cfg->limits.upstream_connect_ms,
                  .first_byte_ms = cfg->limits.upstream_first_byte_ms,
                  .stall_ms = cfg->limits.upstream_stall_ms,
                  .total_ms = cfg->limits.upstream_first_byte_ms + cfg->limits.upstream_stall_ms,
                  .head_bytes = 32 * 1024,
                  .head_fields = 64},
        .retries = (unsigned)cfg->limits.upstream_retries,
        .manifest_bytes = cfg->limits.manifest_bytes < CLOSURE_MAX_MANIFEST ? (size_t)cfg->limits.manifest_bytes : CLOSURE_MAX_MANIFEST,
        .tags_bytes = TAGS_BYTES,
        .breaker_failures = BREAKER_FAILURES,
        .breaker_ms = BREAKER_MS,
    };
    if (!u) {
        u = NEW(struct up);
        u->id = mem_strdup(id);
        u->next = s->ups;
        s->ups = u;
    }
    upstream_unref(&u->upstream);
    mem_free(u->payload);
    u->payload = sb_take(&payload);
    u->upstream = upstream_new(s->loop, spec, &lim);
    *ret = u;
out:
    jv_free(doc);
    sb_free(&payload);
    sb_free(&fact);
    return e;
}

/* ---- a round: memory --------------------------------------------------------------------------- */

static void build_free(struct build *b)
{
    closure_free(&b->closure);
    mem_free(b->depth);
    mem_free(b->artifact_type);
    mem_free(b->platforms);
    mem_free(b->annotations);
    sb_free(&b->config_bytes);
}

static struct round *round_new(struct sync *s, struct repo *rp, struct up *u)
{
    struct round *r = NEW(struct round);
    r->sync = s;
    r->repo = rp;
    r->up = u;
    r->repository_id = mem_strdup(rp->id);
    r->application_id = mem_strdup(rp->application_id);
    r->tag_template = mem_strdup(rp->tag_template);
    r->began_ms = loop_now_ms(s->loop);
    r->next = s->rounds;
    s->rounds = r;
    rp->round = r;
    s->running++;
    u->running++;
    return r;
}

static void round_free(struct round *r)
{
    struct round **at = &r->sync->rounds;
    while (*at != r)
        at = &(*at)->next;
    *at = r->next;
    mem_free(r->repository_id);
    mem_free(r->application_id);
    mem_free(r->tag_template);
    for (size_t i = 0; i < r->n_tags; i++) {
        mem_free(r->tags[i].name);
        mem_free(r->tags[i].known);
    }
    mem_free(r->tags);
    for (size_t i = 0; i < r->n_builds; i++)
        build_free(&r->builds[i]);
    mem_free(r->builds);
    upstream_unref(&r->upstream);
    mem_free(r);
}

static void round_fail(struct round *r, enum err e, const char *what, const char *detail)
{
    if (r->err)
        return; /* the first says it */
    r->err = e;
    struct strbuf b = {0};
    sb_addf(&b, "%s: %s", what, detail && *detail ? detail : err_text(e));
    size_t n = b.n < ERROR_TEXT_MAX ? b.n : ERROR_TEXT_MAX;
    while (n && n < b.n && ((unsigned char)b.p[n] & 0xc0) == 0x80)
        n--;
    for (size_t i = 0; i < n; i++)
        r->error[i] = (unsigned char)b.p[i] < 0x20 || b.p[i] == 0x7f ? ' ' : b.p[i];
    r->error[n] = '\0';
    sb_free(&b);
}

/* ---- a round: its end -------------------------------------------------------------------------- */

static void round_over(struct round *r)
{
    struct sync *s = r->sync;
    struct repo *rp = r->repo;
    uint64_t now = loop_now_ms(s->loop);
    uint64_t interval = admin_config(s->admin)->admin.sync_interval_ms;

    rp->round = NULL;
    rp->began_ms = r->began_ms;
    s->running--;
    r->up->running--;
    bool failed = r->unreached || r->write_err;
    rp->failures = failed ? rp->failures + 1 : 0;
    uint64_t wait = interval ? interval : RETRY_MIN_MS * 30u;
    for (unsigned i = 1; i < rp->failures && wait < BACKOFF_MAX_MS; i++)
        wait *= 2;
    if (wait > BACKOFF_MAX_MS && interval < BACKOFF_MAX_MS)
        wait = BACKOFF_MAX_MS;
    if (r->retry_after_s && wait < r->retry_after_s * 1000ull)
        wait = r->retry_after_s * 1000ull;
    rp->due_ms = r->more && !failed ? now : r->write_err ? now + RETRY_MIN_MS : now + jitter(wait);
    pthread_mutex_lock(&s->lock);
    s->st.rounds++;
    s->st.failures += failed;
    s->st.running = s->running;
    pthread_mutex_unlock(&s->lock);
    bool is_listed = repo_find(s, str_c(rp->id)) == rp;
    if (!r->more || failed || !is_listed)
        repo_answer(s, rp, is_listed ? r->began_ms : UINT64_MAX);
    round_free(r);
    if (!is_listed)
        repo_free(s, rp);
    if (!s->stopping && !s->schedule_waits) {
        s->schedule_waits = true;
        loop_defer(s->loop, on_schedule, s);
    }
}

/* ---- a round: closures in Redis ---------------------------------------------------------------- */

static enum err redis_set_closure(struct sync *s, struct str repository_id, const struct digest *root, const struct closure *c,
                                  int64_t built_at_s, struct error *reterr)
{
    struct strbuf key = {0}, payload = {0}, value = {0};
    const struct cache_reply *ignored;
    projection_closure_key(repository_id, root, &key);
    projection_closure_print(c, built_at_s, &payload);
    projection_wrap(s->admin->keys, sb_str(&key), 0, sb_str(&payload), &value);
    struct str argv[] = {S("SET"), sb_str(&key), sb_str(&value), S("EX"), S(CLOSURE_TTL_S)};
    enum err e = cache_sync_command(s->redis, argv, 5, &ignored, reterr);
    sb_free(&value);
    sb_free(&payload);
    sb_free(&key);
    return e;
}

/* The stored closure of a whole manifest; *ret_found false when there is none. */
static enum err closure_load(struct sync *s, const char *repository_id, const char *digest, struct closure *ret, int64_t *ret_built_at,
                             bool *ret_found, struct error *reterr)
{
    struct store_stmt *st;
    struct node n = {.kind = NODE_MANIFEST};
    bool row;
    *ret_found = false;
    enum err e = store_query(s->store, &st, reterr,
                             "SELECT media_type, size, built_at FROM manifests WHERE repository_id=? AND digest=? AND built_at>0", "zz",
                             repository_id, digest);
    if (e)
        return e;
    e = store_step(st, &row, reterr);
    if (!e && row) {
        n.media_type = media_type_parse(store_col_str(st, 0));
        n.size = (uint64_t)store_col_int(st, 1);
        *ret_built_at = store_col_int(st, 2);
        *ret_found = digest_parse(str_c(digest), &n.digest, NULL) == ERR_OK;
    }
    store_done(&st);
    if (e || !*ret_found)
        return e;
    closure_add(ret, &n); /* root first */
    e = store_query(s->store, &st, reterr,
                    "SELECT kind, digest, media_type, size FROM closure_nodes WHERE repository_id=? AND root_digest=?", "zz", repository_id,
                    digest);
    while (!e && !(e = store_step(st, &row, reterr)) && row) {
        struct node m = {.kind = str_eq_c(store_col_str(st, 0), "m") ? NODE_MANIFEST : NODE_BLOB, .size = (uint64_t)store_col_int(st, 3)};
        m.media_type = media_type_parse(store_col_str(st, 2));
        if (digest_parse(store_col_str(st, 1), &m.digest, NULL) == ERR_OK)
            closure_add(ret, &m);
    }
    store_done(&st);
    return e;
}

static int compare_strings(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* How many of the n keys exist. */
static enum err redis_exists(struct sync *s, const struct strbuf *keys, size_t n, int64_t *ret, struct error *reterr)
{
    const struct cache_reply *r;
    struct str *argv = mem_calloc(n + 1, sizeof(*argv));
    argv[0] = S("EXISTS");
    for (size_t i = 0; i < n; i++)
        argv[i + 1] = sb_str(&keys[i]);
    enum err e = cache_sync_command(s->redis, argv, n + 1, &r, reterr);
    if (!e && r->type != CACHE_INTEGER)
        e = error_set(reterr, ERR_UNAVAILABLE, "EXISTS answered something else");
    if (!e)
        *ret = r->integer;
    mem_free(argv);
    return e;
}

/* Every digest that a tag of the repository resolves to: is its closure in Redis? */
static enum err closures_check(struct round *r, struct error *reterr)
{
    struct sync *s = r->sync;
    char **digests = mem_calloc(r->n_tags + 1, sizeof(*digests));
    size_t n = 0, unique = 0;
    enum err e = ERR_OK;
    for (size_t i = 0; i < r->n_tags; i++) {
        struct tag *t = &r->tags[i];
        if (t->gone)
            continue;
        char *d = t->resolved ? t->digest : t->known;
        if (d)
            digests[n++] = d;
    }
    qsort(digests, n, sizeof(*digests), compare_strings);
    for (size_t i = 0; i < n; i++)
        if (unique == 0 || strcmp(digests[unique - 1], digests[i]) != 0)
            digests[unique++] = digests[i];
    for (size_t at = 0; !e && at < unique; at += EXISTS_AT_ONCE) {
        size_t m = unique - at < EXISTS_AT_ONCE ? unique - at : EXISTS_AT_ONCE;
        struct strbuf *keys = mem_calloc(m, sizeof(*keys));
        struct digest d;
        int64_t there = 0;
        for (size_t i = 0; i < m; i++)
            if (digest_parse(str_c(digests[at + i]), &d, NULL) == ERR_OK)
                projection_closure_key(str_c(r->repo->id), &d, &keys[i]);
        e = redis_exists(s, keys, m, &there, reterr);
        for (size_t i = 0; !e && (size_t)there < m && i < m; i++) {
            struct closure c = {0};
            int64_t one = 0, built_at = 0;
            bool found = false;
            e = redis_exists(s, &keys[i], 1, &one, reterr);
            if (!e && !one)
                e = closure_load(s, r->repo->id, digests[at + i], &c, &built_at, &found, reterr);
            if (!e && found && !closure_full(&c) && digest_parse(str_c(digests[at + i]), &d, NULL) == ERR_OK)
                e = redis_set_closure(s, str_c(r->repo->id), &d, &c, built_at, reterr);
            closure_free(&c);
        }
        for (size_t i = 0; i < m; i++)
            sb_free(&keys[i]);
        mem_free(keys);
    }
    mem_free(digests);
    return e;
}

static void round_publish(struct round *r)
{
    struct sync *s = r->sync;
    struct error err = {0};
    if (loop_now_ms(s->loop) < s->redis_off_until_ms)
        return;
    enum err e = ERR_OK;
    for (size_t i = 0; !e && i < r->n_builds; i++) {
        struct build *b = &r->builds[i];
        if (b->done && b->whole)
            e = redis_set_closure(s, str_c(r->repo->id), &b->root, &b->closure, r->now_s, &err);
    }
    if (!e)
        e = closures_check(r, &err);
    if (e) { /* the proxies build their own; the next round tries again */
        s->redis_off_until_ms = loop_now_ms(s->loop) + REDIS_PAUSE_MS;
        log_limited(&s->logged_redis, 30000, LOG_LEVEL_WARN, "sync: closures are not shared: %s", err.text);
    }
}

/* ---- a round: the write, in the writer's thread -------------------------------------------------- */

/* A discovered version may know its release date from the image itself. Only a date before the first sighting counts: the
 * annotation is a statement of the build, the sighting a fact. */
static enum err released_at_store(struct store *s, struct round *r, const struct tag *t, const struct build *b, struct error *reterr)
{
    struct jv *doc = NULL;
    struct strbuf version = {0};
    int64_t created = 0, changes = 0;
    enum err e = ERR_OK;
    if (!b->annotations || !*b->annotations || !oci_version_of_tag(str_c(r->tag_template), str_c(t->name), &version))
        goto out;
    if (jv_parse(str_c(b->annotations), &JV_LIMITS_MANIFEST, &doc, NULL) ||
        clock_parse_instant(jv_get_str(doc, "org.opencontainers.image.created"), &created, NULL) || created < CREATED_MIN_S)
        goto out;
    e = store_exec(s, &changes, reterr,
                   "UPDATE versions SET released_at=?, updated_at=?, rev=rev+1 WHERE application_id=? AND version=? AND source='discovered'"
                   " AND released_at=0 AND first_seen_at>=?",
                   "iizsi", created, r->now_s, r->application_id, sb_str(&version), created);
    if (!e && changes)
        e = outbox_put_tags_of_application(s, str_c(r->application_id), reterr);
out:
    jv_free(doc);
    sb_free(&version);
    return e;
}

static enum err build_store(struct store *s, struct round *r, const struct build *b, struct error *reterr)
{
    char root[DIGEST_TEXT_MAX], text[DIGEST_TEXT_MAX];
    uint64_t total = 0;
    digest_text(&b->root, root);
    for (size_t i = 0; i < b->closure.n; i++)
        if (__builtin_add_overflow(total, b->closure.nodes[i].size, &total) || total > INT64_MAX)
            total = INT64_MAX;
    enum err e = store_exec(s, NULL, reterr, "DELETE FROM manifests WHERE repository_id=? AND digest=?", "zz", r->repository_id, root);
    if (!e)
        e = store_exec(
            s, NULL, reterr,
            "INSERT INTO manifests (repository_id, digest, media_type, size, artifact_type, platforms, total_bytes, annotations, built_at)"
            " VALUES (?,?,?,?,?,?,?,?,?)",
            "zzzizzizi", r->repository_id, root, media_type_text(b->media_type), (int64_t)b->size, b->artifact_type ? b->artifact_type : "",
            b->platforms ? b->platforms : "", (int64_t)total, b->annotations ? b->annotations : "", b->whole ? r->now_s : (int64_t)0);
    for (size_t i = 0; !e && i < b->closure.n; i++) {
        const struct node *n = &b->closure.nodes[i];
        e = store_exec(
            s, NULL, reterr,
            "INSERT OR IGNORE INTO closure_nodes (repository_id, root_digest, kind, digest, media_type, size) VALUES (?,?,?,?,?,?)",
            "zzzzzi", r->repository_id, root, n->kind == NODE_MANIFEST ? "m" : "b", digest_text(&n->digest, text),
            n->kind == NODE_MANIFEST ? media_type_text(n->media_type) : "", (int64_t)n->size);
    }
    return e;
}

static enum err round_store(struct store *s, void *arg, struct error *reterr)
{
    struct round *r = arg;
    struct store_stmt *st;
    bool row, changed;
    enum err e = store_query(s, &st, reterr, "SELECT 1 FROM repositories WHERE id=?", "z", r->repository_id);
    if (e)
        return e;
    e = store_step(st, &row, reterr);
    store_done(&st);
    if (e || !row)
        return e; /* gone meanwhile */
    for (size_t i = 0; !e && i < r->n_tags; i++) {
        struct tag *t = &r->tags[i];
        if (t->gone && t->known) {
            e = tags_gone(s, str_c(r->repository_id), str_c(t->name), r->now_s, &changed, reterr);
        } else if (t->resolved && (!t->known || strcmp(t->known, t->digest) != 0)) {
            struct tag_sighting seen = {.repository_id = str_c(r->repository_id),
                                        .tag = str_c(t->name),
                                        .digest = str_c(t->digest),
                                        .media_type = str_c(media_type_text(t->media_type)),
                                        .size = t->size,
                                        .at_s = t->at_s};
            e = tags_seen(s, &seen, &changed, reterr);
        }
    }
    for (size_t i = 0; !e && i < r->n_builds; i++) {
        struct build *b = &r->builds[i];
        char root[DIGEST_TEXT_MAX];
        if (!b->done)
            continue;
        e = build_store(s, r, b, reterr);
        digest_text(&b->root, root);
        for (size_t j = 0; !e && j < r->n_tags; j++) {
            const struct tag *t = &r->tags[j];
            const char *d = t->resolved ? t->digest : t->known;
            if (!t->gone && d && strcmp(d, root) == 0)
                e = released_at_store(s, r, t, b, reterr);
        }
    }
    if (!e && r->write_synced_at)
        e = store_exec(s, NULL, reterr, "UPDATE repositories SET synced_at=CASE WHEN ? THEN ? ELSE synced_at END, sync_error=? WHERE id=?",
                       "bizz", !r->unreached, r->now_s, r->error, r->repository_id);
    return e;
}

static void on_written(void *arg)
{
    struct round *r = arg;
    struct sync *s = r->sync;
    s->writes--;
    if (!r->write_err) {
        if (r->write_synced_at) {
            replace(&r->repo->sync_error, str_c(r->error));
            if (!r->unreached)
                r->repo->synced_at = r->now_s;
            r->repo->synced_at_dirty = false;
        }
        if (!s->stopping)
            round_publish(r);
    } else {
        log_limited(&s->logged_store, 10000, LOG_LEVEL_WARN, "sync: the store did not take a round: %s", err_text(r->write_err));
    }
    round_over(r);
}

static void written(void *arg, enum err err) /* in the writer's thread */
{
    struct round *r = arg;
    r->write_err = err;
    loop_post(r->sync->loop, on_written, r);
}

static void round_finish(struct round *r)
{
    struct sync *s = r->sync;
    struct repo *rp = r->repo;
    bool changed = false;
    r->now_s = clock_now_s();
    if (!r->unreached)
        rp->looked_at_s = r->now_s;
    for (size_t i = 0; i < r->n_tags && !changed; i++) {
        struct tag *t = &r->tags[i];
        changed = (t->gone && t->known) || (t->resolved && (!t->known || strcmp(t->known, t->digest) != 0));
    }
    for (size_t i = 0; i < r->n_builds && !changed; i++)
        changed = r->builds[i].done;
    r->write_synced_at = changed || strcmp(r->error, rp->sync_error ? rp->sync_error : "") != 0 || rp->synced_at == 0 || rp->wants;
    if (!changed && !r->write_synced_at) { /* nothing happened: nothing is written */
        rp->synced_at_dirty = rp->synced_at_dirty || !r->unreached;
        round_publish(r);
        round_over(r);
        return;
    }
    if (s->stopping) {
        round_over(r);
        return;
    }
    enum err e = room_check(s->admin, NULL);
    if (!e)
        e = db_post(s->admin->writer, DB_TRANSACTION, round_store, r, written);
    if (e) {
        r->write_err = e;
        round_over(r);
        return;
    }
    s->writes++;
}

/* ---- a round: walking manifests ---------------------------------------------------------------- */

static bool build_add(struct build *b, const struct node *n, unsigned depth)
{
    if (closure_full(&b->closure))
        return false;
    if (!closure_add(&b->closure, n))
        return !closure_full(&b->closure); /* there already */
    if (b->closure.n > b->cap_depth) {
        b->cap_depth = b->cap_depth ? b->cap_depth * 2 : 32;
        b->depth = mem_realloc(b->depth, b->cap_depth);
    }
    b->depth[b->closure.n - 1] = (unsigned char)depth;
    return !closure_full(&b->closure);
}

/* The next manifest of the closure whose document is not read; false when there is none. */
static bool build_next(struct build *b)
{
    while (b->next < b->closure.n && b->closure.nodes[b->next].kind != NODE_MANIFEST)
        b->next++;
    return b->next < b->closure.n;
}

static void build_over(struct build *b, bool whole)
{
    b->whole = whole && b->whole;
    b->done = !b->failed;
}

static void task_step(struct task *t);

/* ---- the platform of an image that is no index --------------------------------------------------- */

static bool is_image_config(const char *type)
{
    return strcmp(type, "application/vnd.oci.image.config.v1+json") == 0 ||
           strcmp(type, "application/vnd.docker.container.image.v1+json") == 0;
}

static bool platform_part(struct str s)
{
    for (size_t i = 0; i < s.n; i++)
        if (!((s.p[i] >= 'a' && s.p[i] <= 'z') || (s.p[i] >= '0' && s.p[i] <= '9') || s.p[i] == '_' || s.p[i] == '.' || s.p[i] == '-'))
            return false;
    return s.n <= 32;
}

static void config_read(struct build *b)
{
    struct jv *doc = NULL;
    if (!seal_digest_matches(sb_str(&b->config_bytes), &b->config) || jv_parse(sb_str(&b->config_bytes), &JV_LIMITS_MANIFEST, &doc, NULL))
        return;
    struct str os = jv_get_str(doc, "os"), arch = jv_get_str(doc, "architecture"), variant = jv_get_str(doc, "variant");
    if (os.n && arch.n && platform_part(os) && platform_part(arch) && platform_part(variant)) {
        struct strbuf text = {0};
        sb_addf(&text, variant.n ? "%.*s/%.*s/%.*s" : "%.*s/%.*s", STR(os), STR(arch), STR(variant));
        mem_free(b->platforms);
        b->platforms = sb_take(&text);
    }
    jv_free(doc);
}

static enum fetch_next on_config_head(void *ctx, const struct upstream_blob_head *h)
{
    (void)ctx;
    return h->status == 200 ? FETCH_MORE : FETCH_STOP; /* handed a redirect: that is the clients' to follow */
}

static enum fetch_next on_config_body(void *ctx, const void *data, size_t n)
{
    struct task *t = ctx;
    struct build *b = &t->round->builds[t->index];
    if (b->config_bytes.n + n > CONFIG_BYTES)
        return FETCH_STOP;
    sb_add(&b->config_bytes, (struct str){data, n});
    return FETCH_MORE;
}

static void on_config_done(void *ctx, enum err err, const char *detail, unsigned retry_after_s)
{
    struct task *t = ctx;
    (void)detail;
    (void)retry_after_s;
    t->op = NULL;
    if (!err)
        config_read(&t->round->builds[t->index]); /* else the platform stays unknown: nothing depends on it */
    task_step(t);
}

static const struct upstream_blob_handlers CONFIG_HANDLERS = {on_config_head, on_config_body, on_config_done};

static void on_manifest(void *ctx, enum err err, const struct upstream_manifest *um, const char *detail, unsigned retry_after_s)
{
    struct task *t = ctx;
    struct round *r = t->round;
    struct build *b = &r->builds[t->index];
    size_t at = b->next++;
    struct manifest *m = NULL;
    struct error error = {0};
    bool is_root = at == 0;
    t->op = NULL;

    if (err == ERR_NOT_FOUND) {
        b->whole = false; /* a platform that was never pushed; a root that went away */
        b->failed = b->failed || is_root;
    } else if (err) {
        b->failed = true;
        r->retry_after_s = retry_after_s > r->retry_after_s ? retry_after_s : r->retry_after_s;
        round_fail(r, err, "manifest", detail);
        r->unreached = r->unreached || err == ERR_UNAVAILABLE || err == ERR_TIMEOUT;
    } else {
        enum err e = manifest_parse(um->bytes, um->content_type, &m, &error);
        if (e) {
            b->whole = false;
            if (is_root) { /* kept as what it is, with nothing in it: no proxy serves it either */
                b->media_type = um->media_type;
                b->size = um->size;
            }
        } else {
            b->closure.nodes[at].media_type = m->media_type;
            if (!b->closure.nodes[at].size)
                b->closure.nodes[at].size = um->bytes.n;
            if (is_root) {
                b->media_type = m->media_type;
                b->size = um->bytes.n;
                b->artifact_type = mem_strdup(m->artifact_type);
                b->platforms = mem_strdup(m->platforms);
                b->annotations = mem_strdup(m->annotations);
                b->has_config = !*m->platforms && m->n_children && m->children[0].size <= CONFIG_BYTES && is_image_config(m->artifact_type);
                if (b->has_config)
                    b->config = m->children[0].digest;
            }
            unsigned depth = b->depth[at];
            for (size_t i = 0; i < m->n_children; i++)
                if (depth + 1 > CLOSURE_MAX_DEPTH || !build_add(b, &m->children[i], depth + 1)) {
                    b->whole = false;
                    break;
                }
            manifest_free(m);
        }
    }
    task_step(t);
}

static void on_resolved(void *ctx, enum err err, const struct upstream_manifest *um, const char *detail, unsigned retry_after_s)
{
    struct task *t = ctx;
    struct round *r = t->round;
    struct tag *tag = &r->tags[t->index];
    t->op = NULL;
    t->kind = TASK_NONE;
    r->busy--;
    if (err == ERR_NOT_FOUND) {
        tag->gone = true; /* between the list and now */
    } else if (err) {
        r->retry_after_s = retry_after_s > r->retry_after_s ? retry_after_s : r->retry_after_s;
        struct strbuf what = {0};
        sb_addf(&what, "tag %s", tag->name);
        round_fail(r, err, what.p, detail);
        sb_free(&what);
        r->unreached = r->unreached || err == ERR_UNAVAILABLE || err == ERR_TIMEOUT;
    } else {
        digest_text(&um->digest, tag->digest);
        tag->media_type = um->media_type;
        tag->size = um->size;
        tag->at_s = clock_now_s();
        tag->resolved = true;
    }
    round_next(r);
}

static void task_step(struct task *t)
{
    struct round *r = t->round;
    struct build *b = &r->builds[t->index];
    if (!b->failed && build_next(b)) {
        char text[DIGEST_TEXT_MAX];
        digest_text(&b->closure.nodes[b->next].digest, text);
        t->op = upstream_manifest(r->upstream, str_c(r->repo->upstream_repository), str_c(text), false, on_manifest, t);
        return;
    }
    if (!b->failed && b->has_config) {
        b->has_config = false;
        t->op = upstream_blob(r->upstream, str_c(r->repo->upstream_repository), &b->config, NULL, false, &CONFIG_HANDLERS, t);
        return;
    }
    build_over(b, true);
    t->kind = TASK_NONE;
    r->busy--;
    round_next(r);
}

/* Which digests need a walk: those of this round's tags that have no whole manifest in the store. */
static enum err builds_choose(struct round *r, struct error *reterr)
{
    struct sync *s = r->sync;
    char **digests = mem_calloc(r->n_tags + 1, sizeof(*digests));
    size_t n = 0;
    enum err e = ERR_OK;
    for (size_t i = 0; i < r->n_tags; i++) {
        struct tag *t = &r->tags[i];
        char *d = t->gone ? NULL : t->resolved ? t->digest : t->known;
        if (d)
            digests[n++] = d;
    }
    qsort(digests, n, sizeof(*digests), compare_strings);
    for (size_t i = 0; !e && i < n; i++) {
        struct store_stmt *st;
        struct digest d;
        bool row;
        if ((i && strcmp(digests[i - 1], digests[i]) == 0) || digest_parse(str_c(digests[i]), &d, NULL))
            continue;
        e = store_query(s->store, &st, reterr, "SELECT 1 FROM manifests WHERE repository_id=? AND digest=? AND (built_at>0 OR ?)", "zzb",
                        r->repo->id, digests[i], !r->repo->wants && r->repo->rotate % 16 != 0);
        if (e)
            break;
        e = store_step(st, &row, reterr);
        store_done(&st);
        if (e || row)
            continue;
        if (r->n_builds >= CHANGES_PER_ROUND) {
            r->more = true;
            break;
        }
        if (r->n_builds == r->cap_builds) {
            r->cap_builds = r->cap_builds ? r->cap_builds * 2 : 16;
            r->builds = mem_realloc(r->builds, r->cap_builds * sizeof(*r->builds));
        }
        struct build *b = &r->builds[r->n_builds++];
        *b = (struct build){.root = d, .whole = true};
        build_add(b, &(struct node){.kind = NODE_MANIFEST, .digest = d}, 0);
    }
    mem_free(digests);
    return e;
}

/* Hand work to idle tasks; the end when none is left. An upstream that cannot be reached is asked nothing more in this round;
 * one bad tag or manifest stops nothing but itself. */
static void round_next(struct round *r)
{
    for (;;) {
        bool stop = r->sync->stopping || r->unreached;
        for (size_t i = 0; !stop && i < TASKS_PER_ROUND; i++) {
            struct task *t = &r->tasks[i];
            if (t->kind != TASK_NONE)
                continue;
            if (!r->building) {
                while (r->next_tag < r->n_tags && !r->tags[r->next_tag].chosen)
                    r->next_tag++;
                if (r->next_tag == r->n_tags)
                    break;
                *t = (struct task){.round = r, .kind = TASK_RESOLVE, .index = r->next_tag++};
                r->busy++;
                t->op = upstream_manifest(r->upstream, str_c(r->repo->upstream_repository), str_c(r->tags[t->index].name), true,
                                          on_resolved, t);
            } else if (r->next_build < r->n_builds) {
                *t = (struct task){.round = r, .kind = TASK_BUILD, .index = r->next_build++};
                r->busy++;
                task_step(t);
            }
        }
        if (r->busy)
            return;
        if (r->building || stop)
            break;
        struct error error = {0};
        r->building = true;
        if (builds_choose(r, &error)) {
            round_fail(r, ERR_UNAVAILABLE, "store", error.text);
            r->unreached = true;
            break;
        }
    }
    round_finish(r);
}

/* ---- a round: the list of tags ----------------------------------------------------------------- */

static int compare_tags(const void *a, const void *b)
{
    return strcmp(((const struct tag *)a)->name, ((const struct tag *)b)->name);
}

static struct tag *tag_find(struct round *r, size_t n, struct str name)
{
    size_t lo = 0, hi = n;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        int c = str_cmp(str_c(r->tags[mid].name), name);
        if (c == 0)
            return &r->tags[mid];
        if (c < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return NULL;
}

/* Known digests beside the listed tags; known tags that are listed no more follow at the end, gone. */
static enum err tags_known(struct round *r, struct error *reterr)
{
    struct store_stmt *st;
    bool row;
    size_t listed = r->n_tags, cap = r->n_tags;
    enum err e = store_query(r->sync->store, &st, reterr, "SELECT tag, digest FROM tag_history WHERE repository_id=? AND last_seen_at=0",
                             "z", r->repo->id);
    if (e)
        return e;
    while (!(e = store_step(st, &row, reterr)) && row) {
        struct tag *t = tag_find(r, listed, store_col_str(st, 0));
        if (!t) {
            if (r->n_tags == cap) {
                cap = cap ? cap * 2 : 16;
                r->tags = mem_realloc(r->tags, cap * sizeof(*r->tags));
            }
            t = &r->tags[r->n_tags++];
            *t = (struct tag){.name = str_dup(store_col_str(st, 0)), .gone = true};
        }
        t->known = str_dup(store_col_str(st, 1));
    }
    store_done(&st);
    return e;
}

static void tags_choose(struct round *r)
{
    size_t known = 0, part = 0, fresh = 0, at = 0;
    for (size_t i = 0; i < r->n_tags; i++)
        known += r->tags[i].known && !r->tags[i].gone;
    size_t from = known > RESOLVE_ALL ? (r->repo->rotate * RESOLVE_PART) % known : 0;
    for (size_t i = 0; i < r->n_tags; i++) {
        struct tag *t = &r->tags[i];
        if (t->gone)
            continue;
        if (!t->known) {
            if (fresh < CHANGES_PER_ROUND) {
                t->chosen = true;
                fresh++;
            } else {
                r->more = true;
            }
        } else {
            size_t distance = (at++ + known - from) % known;
            t->chosen = known <= RESOLVE_ALL || (distance < RESOLVE_PART && part++ < RESOLVE_PART);
        }
    }
    r->repo->rotate++;
}

static void on_tags(void *ctx, enum err err, const struct str *tags, size_t n, const char *detail)
{
    struct round *r = ctx;
    struct error error = {0};
    r->op = NULL;
    /* An upstream repository that does not exist has no tags; so says a registry of one whose last tag was deleted. The vendor
     * sees it as an error, what is known of its tags ends. */
    if (err && err != ERR_NOT_FOUND) {
        r->unreached = true;
        round_fail(r, err, "tags", detail);
        round_finish(r);
        return;
    }
    if (err == ERR_NOT_FOUND) {
        round_fail(r, err, "tags", "the upstream knows no such repository, or it has no tags");
        n = 0;
    }
    r->tags = mem_calloc(n ? n : 1, sizeof(*r->tags));
    for (size_t i = 0; i < n; i++) {
        struct oci_subject_tag subject;
        if (oci_subject_tag_parse(tags[i], &subject))
            continue; /* signatures and the like: the proxies look for them where they look for referrers */
        r->tags[r->n_tags++].name = str_dup(tags[i]);
    }
    qsort(r->tags, r->n_tags, sizeof(*r->tags), compare_tags);
    if (tags_known(r, &error)) {
        round_fail(r, ERR_UNAVAILABLE, "store", error.text);
        r->unreached = true;
        round_finish(r);
        return;
    }
    tags_choose(r);
    round_next(r);
}

static void round_start(struct sync *s, struct repo *rp, struct up *u)
{
    struct round *r = round_new(s, rp, u);
    r->upstream = upstream_ref(u->upstream);
    r->op = upstream_tags(r->upstream, str_c(rp->upstream_repository), on_tags, r);
}

/* ---- scheduling -------------------------------------------------------------------------------- */

/* A round that cannot even begin. Its waiters are answered: there is nothing to wait for. */
static void repo_refuse(struct sync *s, struct repo *rp, const char *why)
{
    static struct up nowhere;
    struct round *r = round_new(s, rp, &nowhere);
    r->unreached = true;
    round_fail(r, ERR_UNAVAILABLE, "upstream", why);
    round_finish(r);
}

static bool repo_is_due(const struct sync *s, const struct repo *rp, uint64_t now)
{
    if (rp->round)
        return false;
    if (rp->wants)
        return true;
    return now >= rp->due_ms && (admin_config(s->admin)->admin.sync_interval_ms || rp->failures);
}

static void schedule(struct sync *s)
{
    uint64_t now = loop_now_ms(s->loop);
    for (size_t i = 0; i < s->n_repos && s->running < ROUNDS_AT_ONCE; i++) {
        struct repo *rp = s->repos[i];
        struct error error = {0};
        struct up *u = NULL;
        if (!repo_is_due(s, rp, now))
            continue;
        if (up_get(s, rp->upstream_id, &u, &error)) {
            repo_refuse(s, rp, error.text);
            continue;
        }
        if (u->running >= ROUNDS_PER_UPSTREAM)
            continue;
        round_start(s, rp, u); /* with its breaker open the first request ends at once, and the round backs off */
    }
    pthread_mutex_lock(&s->lock);
    s->st.running = s->running;
    pthread_mutex_unlock(&s->lock);
}

static void on_schedule(void *arg)
{
    struct sync *s = arg;
    s->schedule_waits = false;
    if (!s->stopping)
        schedule(s);
}

struct flush {
    struct sync *sync;
    char **ids;
    int64_t *at_s;
    size_t n;
};

static enum err flush_store(struct store *s, void *arg, struct error *reterr)
{
    struct flush *f = arg;
    enum err e = ERR_OK;
    for (size_t i = 0; !e && i < f->n; i++)
        e = store_exec(s, NULL, reterr, "UPDATE repositories SET synced_at=? WHERE id=? AND synced_at<?", "izi", f->at_s[i], f->ids[i],
                       f->at_s[i]);
    return e;
}

static void on_flushed(void *arg)
{
    struct flush *f = arg;
    f->sync->writes--;
    for (size_t i = 0; i < f->n; i++)
        mem_free(f->ids[i]);
    mem_free(f->ids);
    mem_free(f->at_s);
    mem_free(f);
}

static void flushed(void *arg, enum err err)
{
    (void)err; /* a time of the last look: the next flush brings a newer one */
    loop_post(((struct flush *)arg)->sync->loop, on_flushed, arg);
}

static void flush_synced_at(struct sync *s)
{
    struct flush *f = NEW(struct flush);
    f->sync = s;
    f->ids = mem_calloc(s->n_repos + 1, sizeof(*f->ids));
    f->at_s = mem_calloc(s->n_repos + 1, sizeof(*f->at_s));
    for (size_t i = 0; i < s->n_repos; i++) {
        struct repo *rp = s->repos[i];
        if (!rp->synced_at_dirty)
            continue;
        rp->synced_at_dirty = false;
        f->ids[f->n] = mem_strdup(rp->id);
        f->at_s[f->n++] = rp->looked_at_s;
    }
    s->writes++;
    if (f->n == 0 || db_post(s->admin->writer, DB_TRANSACTION, flush_store, f, flushed))
        on_flushed(f);
}

static void on_tick(void *ctx)
{
    struct sync *s = ctx;
    struct error error = {0};
    uint64_t now = loop_now_ms(s->loop);
    if (s->stopping)
        return;
    timer_set(s->tick, TICK_MS);
    if (repos_load(s, &error))
        log_limited(&s->logged_store, 10000, LOG_LEVEL_WARN, "sync: the store cannot be read: %s", error.text);
    else
        schedule(s);
    if (now >= s->next_flush_ms) {
        s->next_flush_ms = now + SYNCED_AT_FLUSH_MS;
        flush_synced_at(s);
    }
}

/* ---- requests from other threads --------------------------------------------------------------- */

struct request {
    struct sync *sync;
    char **ids; /* NULL: all of the application */
    size_t n;
    char *application_id;
    uint64_t max_age_ms;
    uint64_t at_ms; /* monotonic */
    struct waiter *waiter;
};

static void request_add(struct request *q, struct repo *rp)
{
    struct sync *s = q->sync;
    uint64_t not_before = q->at_ms > q->max_age_ms ? q->at_ms - q->max_age_ms : 0;
    if (rp->began_ms && rp->began_ms >= not_before)
        return; /* young enough */
    struct want *w = NEW(struct want);
    w->waiter = q->waiter;
    w->not_before_ms = not_before;
    w->next = rp->wants;
    rp->wants = w;
    pthread_mutex_lock(&s->lock);
    q->waiter->refs++;
    q->waiter->remaining++;
    pthread_mutex_unlock(&s->lock);
}

static void request_free(struct request *q)
{
    for (size_t i = 0; i < q->n; i++)
        mem_free(q->ids[i]);
    mem_free(q->ids);
    mem_free(q->application_id);
    mem_free(q);
}

static void on_request(void *arg)
{
    struct request *q = arg;
    struct sync *s = q->sync;
    struct error error = {0};
    if (!s->stopping) {
        s->reload = true;
        if (repos_load(s, &error))
            log_limited(&s->logged_store, 10000, LOG_LEVEL_WARN, "sync: the store cannot be read: %s", error.text);
        for (size_t i = 0; i < q->n; i++) {
            struct repo *rp = repo_find(s, str_c(q->ids[i]));
            if (rp)
                request_add(q, rp);
        }
        for (size_t i = 0; q->application_id && i < s->n_repos; i++)
            if (strcmp(s->repos[i]->application_id, q->application_id) == 0)
                request_add(q, s->repos[i]);
    }
    pthread_mutex_lock(&s->lock);
    q->waiter->requested = true;
    pthread_cond_signal(&q->waiter->cond);
    pthread_mutex_unlock(&s->lock);
    waiter_unref(s, q->waiter);
    request_free(q);
    if (!s->stopping)
        schedule(s);
}

static enum err request_run(struct sync *s, struct request *q, unsigned wait_ms)
{
    struct waiter *w = NEW(struct waiter);
    struct timespec ts;
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    AN(pthread_cond_init(&w->cond, &attr) == 0);
    pthread_condattr_destroy(&attr);
    w->refs = 2; /* this caller, and the request */
    q->sync = s;
    q->waiter = w;
    q->at_ms = clock_mono_ms();
    pthread_mutex_lock(&s->lock);
    bool taken = !s->ended;
    if (taken)
        loop_post(s->loop, on_request, q); /* ahead of on_stop(), which answers whoever waits */
    pthread_mutex_unlock(&s->lock);
    if (!taken) {
        pthread_cond_destroy(&w->cond);
        mem_free(w);
        request_free(q);
        return ERR_UNAVAILABLE;
    }

    clock_gettime(CLOCK_MONOTONIC, &ts);
    ts.tv_sec += wait_ms / 1000;
    ts.tv_nsec += (long)(wait_ms % 1000) * 1000000;
    if (ts.tv_nsec >= 1000000000) {
        ts.tv_sec++;
        ts.tv_nsec -= 1000000000;
    }
    pthread_mutex_lock(&s->lock);
    while (wait_ms && (!w->requested || w->remaining))
        if (pthread_cond_timedwait(&w->cond, &s->lock, &ts) == ETIMEDOUT)
            break;
    bool done = w->requested && w->remaining == 0;
    pthread_mutex_unlock(&s->lock);
    waiter_unref(s, w);
    return done || !wait_ms ? ERR_OK : ERR_TIMEOUT;
}

enum err sync_repositories(struct sync *s, const struct str *repository_ids, size_t n, uint64_t max_age_ms, unsigned wait_ms)
{
    struct request *q = NEW(struct request);
    q->ids = mem_calloc(n ? n : 1, sizeof(*q->ids));
    for (size_t i = 0; i < n; i++)
        q->ids[i] = str_dup(repository_ids[i]);
    q->n = n;
    q->max_age_ms = max_age_ms;
    return request_run(s, q, wait_ms);
}

enum err sync_application(struct sync *s, struct str application_id, uint64_t max_age_ms, unsigned wait_ms)
{
    struct request *q = NEW(struct request);
    q->application_id = str_dup(application_id);
    q->max_age_ms = max_age_ms;
    return request_run(s, q, wait_ms);
}

static void on_poke(void *arg)
{
    struct sync *s = arg;
    s->reload = true;
    if (!s->stopping)
        timer_set(s->tick, 0);
}

void sync_poke(struct sync *s)
{
    loop_post(s->loop, on_poke, s);
}

void sync_state(struct sync *s, struct sync_state *ret)
{
    pthread_mutex_lock(&s->lock);
    *ret = s->st;
    pthread_mutex_unlock(&s->lock);
}

/* ---- the thread -------------------------------------------------------------------------------- */

static void *sync_main(void *arg)
{
    struct sync *s = arg;
    loop_run(s->loop);
    return NULL;
}

static void on_stop_check(void *arg)
{
    struct sync *s = arg;
    if (s->writes == 0)
        loop_stop(s->loop);
    else
        timer_set(s->tick, 10); /* rounds that the writer still holds */
}

static void on_stop(void *arg)
{
    struct sync *s = arg;
    s->stopping = true;
    timer_free(&s->tick);
    s->tick = timer_new(s->loop, on_stop_check, s);
    for (size_t i = 0; i < s->n_repos; i++)
        repo_answer(s, s->repos[i], UINT64_MAX);
    for (struct round *r = s->rounds, *next; r; r = next) {
        next = r->next;
        bool waits = r->op != NULL;
        upstream_cancel(&r->op);
        for (size_t j = 0; j < TASKS_PER_ROUND; j++) {
            waits = waits || r->tasks[j].op;
            upstream_cancel(&r->tasks[j].op);
        }
        if (waits)
            round_over(r); /* others are the writer's just now */
    }
    on_stop_check(s);
}

struct sync *sync_start(struct admin *a)
{
    struct sync *s = NEW(struct sync);
    s->admin = a;
    s->loop = loop_new();
    NEED(s->loop != NULL, "an event loop");
    s->redis = cache_sync_new(a->cfg, REDIS_DEADLINE_MS);
    s->reload = true;
    s->next_flush_ms = clock_mono_ms() + SYNCED_AT_FLUSH_MS;
    AN(pthread_mutex_init(&s->lock, NULL) == 0);
    s->tick = timer_new(s->loop, on_tick, s);
    timer_set(s->tick, 0);
    NEED((errno = pthread_create(&s->thread, NULL, sync_main, s)) == 0, "its sync thread");
    return s;
}

void sync_end(struct sync *s)
{
    if (!s)
        return;
    pthread_mutex_lock(&s->lock);
    bool is_first = !s->ended;
    s->ended = true;
    pthread_mutex_unlock(&s->lock);
    if (!is_first)
        return;
    loop_post(s->loop, on_stop, s);
    pthread_join(s->thread, NULL);
}

void sync_stop(struct sync **ps)
{
    struct sync *s = *ps;
    if (!s)
        return;
    *ps = NULL;
    sync_end(s);
    for (size_t i = 0; i < s->n_repos; i++)
        repo_free(s, s->repos[i]);
    mem_free(s->repos);
    while (s->ups)
        up_drop(s, s->ups);
    timer_free(&s->tick);
    loop_free(s->loop);
    store_close(&s->store);
    cache_sync_free(&s->redis);
    pthread_mutex_destroy(&s->lock);
    mem_free(s);
}
