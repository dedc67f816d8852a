/* The projector. A round reads what changed since the newest projected change, compiles those facts and writes values, buckets
 * and the root in one transaction; once a second it renews the root's time. Redis is never trusted to hold what was written:
 * before each write and at each renewal the root must be, byte for byte, the one written last. Anything else (flushed,
 * restarted, replaced, written by another) means a rebuild from the store. The proxies judge the result; nothing here decides. */
#include "projector.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <time.h>

#include "compile.h"
#include "db.h"
#include "outbox.h"
#include "pullgate/cache.h"
#include "pullgate/clock.h"
#include "pullgate/config.h"
#include "pullgate/log.h"
#include "pullgate/mem.h"
#include "pullgate/projection.h"
#include "pullgate/store.h"
#include "pullgate/str.h"

static const unsigned ROOT_EVERY_MS = 1000;               /* the root's time is renewed this often; docs/REDIS.md */
static const unsigned BACKOFF_MIN_MS = 50;                /* after a failure, doubled up to ... */
static const unsigned BACKOFF_MAX_MS = 1000;              /* ... so that a Redis that comes back is full again within seconds */
static const unsigned LOG_EVERY_MS = 10000;               /* one line in this time while a failure lasts */
static const unsigned REDIS_DEADLINE_MS = 2000;           /* of one blocking command; a batch of a rebuild takes tens of ms */
static const size_t BATCH_FACTS = 500;                    /* of a rebuild: facts in one MSET ... */
static const size_t BATCH_BYTES = 1024 * 1024;            /* ... or bytes, so that Redis is never busy for long with one */
static const uint64_t CHANGES_MAX = 20000;                /* more than so many wait: writing everything is quicker */
static const int64_t CHANGES_AT_ONCE = 500;               /* facts in one transaction; more follow in the next */
#define BUCKETS_AT_ONCE 64                                /* bucket values in one MSET or MGET; divides PROJECTION_BUCKETS */
static const unsigned SCRUB_EVERY_MS = 5000;              /* a page of values is compared with the store this often */
static const int64_t SCRUB_FACTS = 100;                   /* facts of that page */
static const unsigned VERIFY_EVERY_MS = 20;               /* ... and while adopted values are checked, so often ... */
static const int64_t VERIFY_FACTS = 200;                  /* ... and so many */
static const uint64_t EPOCH_JUMP_MAX = UINT64_C(1) << 62; /* what a signed 64-bit id can still count on from */
static const unsigned PRUNE_EVERY_MS = 600000;            /* projected outbox rows are of no more use ... */
static const int64_t PRUNE_KEEP = 10000;                  /* ... but to people who look what happened: the newest stay */
static const int64_t PRUNE_AT_ONCE = 5000;
static const size_t STALE_MAX = 1000;    /* facts that get another epoch in one transaction */
static const unsigned SCRUB_BUCKETS = 8; /* buckets compared at the same time */

struct entry {
    char *fact;
    uint64_t epoch;
};

/* The facts of one bucket, sorted by name. */
struct bucket {
    struct entry *v;
    size_t n, cap;
    uint64_t epoch; /* of its newest change, deletions included */
};

struct map {
    struct bucket buckets[PROJECTION_BUCKETS];
    uint64_t n;
};

enum sweep { SWEEP_NONE, SWEEP_VALUES, SWEEP_BUCKETS };

struct projector {
    const struct config *cfg;
    const struct keyring *keys;
    struct db *writer; /* for epoch_jump() alone */
    pthread_t thread;

    /* the thread's own */
    struct store *store;
    struct cache_sync *redis;
    struct map *map;
    struct projection_root root;
    int64_t newest_ms;         /* the newest time that was ever seen here; 0: not looked up yet */
    struct strbuf root_text;   /* pg:root as written last; empty: nothing of ours is there */
    struct strbuf root_unsure; /* written by a transaction whose outcome is not known; else empty */
    bool in_sync, was_adopted;
    uint64_t next_tick_ms, next_scrub_ms, next_prune_ms;
    char *scrub_cursor;
    unsigned scrub_bucket;
    bool verifying; /* what an earlier life wrote was adopted, and is compared once at full speed */
    enum sweep sweep;
    struct strbuf sweep_cursor;
    struct strbuf stale; /* facts that changed without a change of their epoch, each ended by a line feed */
    size_t n_stale;

    pthread_mutex_t lock;
    pthread_cond_t wake;    /* to the thread */
    pthread_cond_t changed; /* from the thread: st.projected moved */
    bool poked, suspected, stopping;
    struct projector_state st;
};

/* ---- the map of what exists -------------------------------------------------------------------- */

static void map_free(struct map **m)
{
    if (!*m)
        return;
    for (unsigned i = 0; i < PROJECTION_BUCKETS; i++) {
        struct bucket *b = &(*m)->buckets[i];
        for (size_t j = 0; j < b->n; j++)
            mem_free(b->v[j].fact);
        mem_free(b->v);
    }
    MEM_FREE(*m);
}

/* Index of fact, or of where it belongs. */
static size_t bucket_search(const struct bucket *b, struct str fact, bool *ret_found)
{
    size_t lo = 0, hi = b->n;
    if (hi && str_cmp(str_c(b->v[hi - 1].fact), fact) < 0)
        lo = hi; /* a rebuild adds in order */
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        int c = str_cmp(str_c(b->v[mid].fact), fact);
        if (c == 0) {
            *ret_found = true;
            return mid;
        }
        if (c < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    *ret_found = false;
    return lo;
}

/* Record that fact exists (or not) as of epoch. */
static void map_put(struct map *m, struct str fact, bool exists, uint64_t epoch)
{
    struct bucket *b = &m->buckets[projection_bucket_of(fact)];
    bool found;
    size_t i = bucket_search(b, fact, &found);
    if (b->epoch < epoch)
        b->epoch = epoch;
    if (exists && found) {
        b->v[i].epoch = epoch;
    } else if (exists) {
        if (b->n == b->cap) {
            b->cap = b->cap ? b->cap * 2 : 8;
            b->v = mem_realloc(b->v, b->cap * sizeof(*b->v));
        }
        memmove(b->v + i + 1, b->v + i, (b->n - i) * sizeof(*b->v));
        b->v[i] = (struct entry){.fact = str_dup(fact), .epoch = epoch};
        b->n++;
        m->n++;
    } else if (found) {
        mem_free(b->v[i].fact);
        memmove(b->v + i, b->v + i + 1, (b->n - i - 1) * sizeof(*b->v));
        b->n--;
        m->n--;
    }
}

static uint64_t map_epoch(const struct map *m, struct str fact)
{
    const struct bucket *b = &m->buckets[projection_bucket_of(fact)];
    bool found;
    size_t i = bucket_search(b, fact, &found);
    return found ? b->v[i].epoch : 0;
}

/* ---- a list of commands that own their bytes --------------------------------------------------- */

struct commands {
    struct strbuf *args; /* cap_args of them, n_args in use: memory is kept between batches */
    size_t n_args, cap_args;
    struct {
        size_t first, n;
    } * cmds;
    size_t n_cmds, cap_cmds;
    size_t bytes;
};

static void commands_begin(struct commands *c)
{
    if (c->n_cmds == c->cap_cmds) {
        c->cap_cmds = c->cap_cmds ? c->cap_cmds * 2 : 16;
        c->cmds = mem_realloc(c->cmds, c->cap_cmds * sizeof(*c->cmds));
    }
    c->cmds[c->n_cmds].first = c->n_args;
    c->cmds[c->n_cmds++].n = 0;
}

/* The next argument of the newest command, empty; valid until the next call. */
static struct strbuf *commands_arg(struct commands *c)
{
    if (c->n_args == c->cap_args) {
        size_t cap = c->cap_args ? c->cap_args * 2 : 64;
        c->args = mem_realloc(c->args, cap * sizeof(*c->args));
        memset(c->args + c->cap_args, 0, (cap - c->cap_args) * sizeof(*c->args));
        c->cap_args = cap;
    }
    c->cmds[c->n_cmds - 1].n++;
    sb_reset(&c->args[c->n_args]);
    return &c->args[c->n_args++];
}

static void commands_add(struct commands *c, const char *word)
{
    sb_addc(commands_arg(c), word);
}

/* A key and its wrapped value as the next two arguments. */
static void commands_add_wrapped(struct commands *c, const struct keyring *k, struct str key, uint64_t epoch, struct str payload)
{
    sb_add(commands_arg(c), key);
    struct strbuf *v = commands_arg(c);
    projection_wrap(k, key, epoch, payload, v);
    c->bytes += key.n + v->n;
}

static void commands_reset(struct commands *c)
{
    c->n_args = c->n_cmds = c->bytes = 0;
}

static void commands_free(struct commands *c)
{
    for (size_t i = 0; i < c->cap_args; i++)
        sb_free(&c->args[i]);
    mem_free(c->args);
    mem_free(c->cmds);
    *c = (struct commands){0};
}

static struct str *commands_strs(const struct commands *c)
{
    struct str *s = mem_calloc(c->n_args ? c->n_args : 1, sizeof(*s));
    for (size_t i = 0; i < c->n_args; i++)
        s[i] = sb_str(&c->args[i]);
    return s;
}

/* Run the one command of c and empty c. */
static enum err commands_run(struct projector *p, struct commands *c, const struct cache_reply **ret, struct error *reterr)
{
    const struct cache_reply *ignored;
    struct str *s = commands_strs(c);
    enum err e = cache_sync_command(p->redis, s, c->n_args, ret ? ret : &ignored, reterr);
    mem_free(s);
    commands_reset(c);
    return e;
}

static enum err commands_run_all(struct projector *p, struct commands *c, struct error *reterr)
{
    struct str *s = commands_strs(c);
    struct cache_cmd *cmds = mem_calloc(c->n_cmds ? c->n_cmds : 1, sizeof(*cmds));
    for (size_t i = 0; i < c->n_cmds; i++)
        cmds[i] = (struct cache_cmd){.argv = s + c->cmds[i].first, .argc = c->cmds[i].n};
    enum err e = cache_sync_transaction(p->redis, cmds, c->n_cmds, reterr);
    mem_free(cmds);
    mem_free(s);
    commands_reset(c);
    return e;
}

/* ---- pieces ------------------------------------------------------------------------------------ */

static void bucket_print(const struct bucket *b, struct strbuf *ret)
{
    for (size_t i = 0; i < b->n; i++) {
        sb_add_u64(ret, b->v[i].epoch);
        sb_add_char(ret, ' ');
        sb_addc(ret, b->v[i].fact);
        sb_add_char(ret, '\n');
    }
}

static void bucket_add(struct projector *p, struct commands *c, unsigned n)
{
    struct strbuf key = {0}, payload = {0};
    projection_bucket_key(n, &key);
    bucket_print(&p->map->buckets[n], &payload);
    commands_add_wrapped(c, p->keys, sb_str(&key), p->map->buckets[n].epoch, sb_str(&payload));
    sb_free(&payload);
    sb_free(&key);
}

/* The time for a root. Never before the newest that the store or this process has seen: a proxy judges its own clock by it, and a machine
 * whose clock went back a year must not bring back what expired since (SECURITY 2.3). */
static int64_t root_time(struct projector *p)
{
    int64_t now = clock_now_ms();
    if (now > p->newest_ms)
        p->newest_ms = now;
    return p->newest_ms;
}

static enum err newest_read(struct projector *p, struct error *reterr)
{
    struct store_stmt *st = NULL;
    bool row = false;
    enum err e = store_query(p->store, &st, reterr, "SELECT CAST(value AS INTEGER) FROM meta WHERE key='clock_high_water'", "");
    if (!e)
        e = store_step(st, &row, reterr);
    if (!e)
        p->newest_ms = row ? store_col_int(st, 0) * 1000 : 1;
    store_done(&st);
    return e;
}

/* The root's value at epoch and time into ret. */
static void root_print(struct projector *p, uint64_t epoch, int64_t time_ms, struct strbuf *ret)
{
    struct strbuf payload = {0};
    p->root.epoch = epoch;
    p->root.time_ms = time_ms;
    for (unsigned i = 0; i < PROJECTION_BUCKETS; i++)
        p->root.buckets[i] = p->map->buckets[i].epoch;
    projection_root_print(&p->root, &payload);
    sb_reset(ret);
    projection_wrap(p->keys, S(PROJECTION_ROOT_KEY), epoch, sb_str(&payload), ret);
    sb_free(&payload);
}

static void root_adopt(struct projector *p, struct strbuf *text)
{
    sb_reset(&p->root_text);
    sb_add(&p->root_text, sb_str(text));
    sb_reset(&p->root_unsure);
}

/* Is the value seen in pg:root ours? A transaction whose outcome was not known is settled by it. */
static bool root_is_ours(struct projector *p, const struct cache_reply *r)
{
    if (r->type != CACHE_STRING || p->root_text.n == 0)
        return false;
    if (str_eq(r->str, sb_str(&p->root_text)))
        return true;
    if (p->root_unsure.n && str_eq(r->str, sb_str(&p->root_unsure))) {
        root_adopt(p, &p->root_unsure);
        return true;
    }
    return false;
}

/* What stands in pg:root. MGET: a key of another type is none, where GET would be an error for ever. */
static enum err root_look(struct projector *p, const struct cache_reply **ret, struct error *reterr)
{
    const struct cache_reply *r;
    struct str get[] = {S("MGET"), S(PROJECTION_ROOT_KEY)};
    enum err e = cache_sync_command(p->redis, get, 2, &r, reterr);

    if (!e && (r->type != CACHE_ARRAY || r->n != 1))
        e = error_set(reterr, ERR_UNAVAILABLE, "Redis does not say what the root is");
    if (!e)
        *ret = &r->items[0];
    return e;
}

static void out_of_sync(struct projector *p, const char *why)
{
    if (p->in_sync)
        log_warn("projector: %s; writing everything again", why);
    p->in_sync = false;
    sb_reset(&p->root_text);
    sb_reset(&p->root_unsure);
}

/* What the fact says is not what was written under its epoch: somebody changed rows without telling the outbox, or a newer program
 * says it in other words. The proxies look at epochs alone, so it gets another one. */
static void stale_add(struct projector *p, struct str fact)
{
    if (p->n_stale >= STALE_MAX)
        return; /* the next pass finds the rest */
    sb_add(&p->stale, fact);
    sb_add_char(&p->stale, '\n');
    p->n_stale++;
}

static enum err stale_store(struct store *s, void *arg, struct error *reterr)
{
    struct str rest = sb_str(arg), fact;
    enum err e = ERR_OK;
    while (!e && rest.n && str_next(&rest, '\n', &fact)) {
        struct strbuf payload = {0};
        bool exists = true;
        if (fact.n == 0)
            break;
        e = compile_fact(s, fact, &payload, &exists, reterr);
        sb_free(&payload);
        if (!e || e == ERR_INVALID)
            e = outbox_put(s, fact, exists, reterr);
    }
    return e;
}

static enum err stale_flush(struct projector *p, struct error *reterr)
{
    static unsigned long long logged;
    if (!p->n_stale)
        return ERR_OK;
    log_limited(&logged, LOG_EVERY_MS, LOG_LEVEL_WARN, "projector: %zu facts said something else than was written; they count as changed",
                p->n_stale);
    enum err e = db_run(p->writer, DB_TRANSACTION, stale_store, &p->stale, reterr);
    sb_reset(&p->stale);
    p->n_stale = 0;
    return e;
}

static enum err prune_store(struct store *s, void *arg, struct error *reterr)
{
    const int64_t *projected = arg;
    return store_exec(s, NULL, reterr, "DELETE FROM outbox WHERE id IN (SELECT id FROM outbox WHERE id <= ? ORDER BY id LIMIT ?)", "ii",
                      *projected - PRUNE_KEEP, PRUNE_AT_ONCE);
}

/* The epochs stay in fact_epochs and, for the next id, in the table's own sequence. */
static void prune(struct projector *p)
{
    struct store_stmt *st;
    bool row = false, some = false;
    int64_t projected = (int64_t)p->root.epoch;
    if (store_query(p->store, &st, NULL, "SELECT 1 FROM outbox WHERE id <= ? LIMIT 1", "i", projected - PRUNE_KEEP))
        return;
    some = store_step(st, &row, NULL) == ERR_OK && row;
    store_done(&st);
    if (some && db_run(p->writer, DB_TRANSACTION, prune_store, &projected, NULL) == ERR_OK)
        p->next_prune_ms = clock_mono_ms() + 1000; /* perhaps more */
}

static bool is_stopping(struct projector *p)
{
    pthread_mutex_lock(&p->lock);
    bool s = p->stopping;
    pthread_mutex_unlock(&p->lock);
    return s;
}

static void publish_state(struct projector *p, uint64_t max)
{
    pthread_mutex_lock(&p->lock);
    p->st.in_sync = p->in_sync;
    if (max > p->st.outbox_max)
        p->st.outbox_max = max;
    if (p->in_sync)
        p->st.projected = p->root.epoch;
    p->st.facts = p->map ? p->map->n : 0;
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->lock);
}

/* Compile one fact and add its SET or DEL arguments. A fact that cannot be made of its rows loses its value but stays named:
 * the proxies then know that they cannot know. ERR_UNAVAILABLE ends the round. */
static enum err fact_compile(struct projector *p, struct str fact, struct strbuf *ret_payload, bool *ret_exists, bool *ret_has_value,
                             struct error *reterr)
{
    static unsigned long long logged;
    struct error err = {0};
    sb_reset(ret_payload);
    enum err e = compile_fact(p->store, fact, ret_payload, ret_exists, &err);
    if (e == ERR_OK) {
        *ret_has_value = *ret_exists;
        return ERR_OK;
    }
    if (e != ERR_INVALID) {
        if (reterr)
            *reterr = err;
        return e;
    }
    log_limited(&logged, LOG_EVERY_MS, LOG_LEVEL_ERROR, "projector: %.*s cannot be compiled, its requests get 503: %s", STR(fact),
                err.text);
    *ret_exists = true;
    *ret_has_value = false;
    return ERR_OK;
}

/* ---- what changed ------------------------------------------------------------------------------ */

struct change {
    char *fact;
    uint64_t epoch;
};

/* The facts that changed after the root's epoch, oldest change first; *ret_last: the newest of them (0: none). */
static enum err changes_read(struct projector *p, struct change **ret, size_t *ret_n, uint64_t *ret_last, struct error *reterr)
{
    struct store_stmt *st;
    struct change *v = NULL;
    size_t n = 0, cap = 0;
    uint64_t last = 0;
    bool row;
    enum err e = store_query(p->store, &st, reterr, "SELECT fact, epoch FROM fact_epochs WHERE epoch > ? ORDER BY epoch LIMIT ?", "ii",
                             (int64_t)p->root.epoch, CHANGES_AT_ONCE);
    if (e)
        return e;
    while (!(e = store_step(st, &row, reterr)) && row) {
        if (n == cap) {
            cap = cap ? cap * 2 : 16;
            v = mem_realloc(v, cap * sizeof(*v));
        }
        uint64_t id = (uint64_t)store_col_int(st, 1);
        v[n++] = (struct change){.fact = str_dup(store_col_str(st, 0)), .epoch = id};
        if (last < id)
            last = id;
    }
    store_done(&st);
    if (e) {
        for (size_t i = 0; i < n; i++)
            mem_free(v[i].fact);
        mem_free(v);
        return e;
    }
    *ret = v;
    *ret_n = n;
    *ret_last = last;
    return ERR_OK;
}

/* More facts changed than are written in pieces? (One fact may have very many outbox rows.) */
static bool changes_are_many(struct projector *p)
{
    struct store_stmt *st;
    bool row = false;
    if (store_query(p->store, &st, NULL, "SELECT count(*) FROM (SELECT 1 FROM fact_epochs WHERE epoch > ? LIMIT ?)", "ii",
                    (int64_t)p->root.epoch, (int64_t)CHANGES_MAX + 1))
        return false;
    bool many = store_step(st, &row, NULL) == ERR_OK && row && store_col_int(st, 0) > (int64_t)CHANGES_MAX;
    store_done(&st);
    return many;
}

/* One transaction of changes. *ret_more: further ones wait. */
static enum err project_changes(struct projector *p, bool *ret_more, struct error *reterr)
{
    struct change *changes = NULL;
    size_t n = 0;
    uint64_t last = 0, max = 0;
    struct commands c = {0};
    struct strbuf payload = {0}, key = {0}, root = {0};
    bool touched[PROJECTION_BUCKETS] = {0};

    *ret_more = false;
    int64_t time_ms = root_time(p); /* before the look: what was committed by then is in */
    enum err e = store_begin(p->store, reterr);
    if (e)
        return e;
    e = outbox_epoch(p->store, &max, reterr);
    if (!e && max > p->root.epoch + CHANGES_MAX && changes_are_many(p)) {
        store_rollback(p->store); /* it only read */
        out_of_sync(p, "very many changes wait");
        *ret_more = true;
        return ERR_OK;
    }
    if (!e && max > p->root.epoch)
        e = changes_read(p, &changes, &n, &last, reterr);
    if (!e && max < p->root.epoch) {
        store_rollback(p->store); /* it only read */
        out_of_sync(p, "the store went backwards");
        return ERR_UNAVAILABLE;
    }
    for (size_t i = 0; !e && i < n; i++) {
        bool exists, has_value;
        struct str fact = str_c(changes[i].fact);
        e = fact_compile(p, fact, &payload, &exists, &has_value, reterr);
        if (e)
            break;
        sb_reset(&key);
        projection_fact_key(fact, &key);
        commands_begin(&c);
        if (has_value) {
            commands_add(&c, "SET");
            commands_add_wrapped(&c, p->keys, sb_str(&key), changes[i].epoch, sb_str(&payload));
        } else {
            commands_add(&c, "DEL");
            sb_add(commands_arg(&c), sb_str(&key));
        }
        map_put(p->map, fact, exists, changes[i].epoch);
        touched[projection_bucket_of(fact)] = true;
    }
    store_rollback(p->store); /* it only read */
    if (e || n == 0)
        goto out;

    for (unsigned i = 0; i < PROJECTION_BUCKETS; i++) {
        if (!touched[i])
            continue;
        commands_begin(&c);
        commands_add(&c, "SET");
        bucket_add(p, &c, i);
    }
    uint64_t before = p->root.epoch;
    root_print(p, last, time_ms, &root);
    /* XX: after a FLUSHALL that came in between there is no root and none may appear, for the other values are gone */
    commands_begin(&c);
    commands_add(&c, "SET");
    commands_add(&c, PROJECTION_ROOT_KEY);
    sb_add(commands_arg(&c), sb_str(&root));
    commands_add(&c, "XX");
    commands_begin(&c);
    commands_add(&c, "PUBLISH");
    commands_add(&c, PROJECTION_CHANNEL);
    sb_add_u64(commands_arg(&c), last);

    const struct cache_reply *seen;
    e = root_look(p, &seen, reterr);
    if (!e && !root_is_ours(p, seen)) {
        p->root.epoch = before;
        out_of_sync(p, "Redis does not hold the root that was written last");
        *ret_more = true;
        goto out;
    }
    if (!e)
        e = commands_run_all(p, &c, reterr);
    if (e) { /* done or not done: the next look at the root says which; the same changes are then written again, or are known */
        sb_reset(&p->root_unsure);
        sb_add(&p->root_unsure, sb_str(&root));
        p->root.epoch = before;
        goto out;
    }
    root_adopt(p, &root);
    *ret_more = max > last;
    publish_state(p, max);
out:
    for (size_t i = 0; i < n; i++)
        mem_free(changes[i].fact);
    mem_free(changes);
    commands_free(&c);
    sb_free(&root);
    sb_free(&key);
    sb_free(&payload);
    return e;
}

/* ---- the root's time --------------------------------------------------------------------------- */

static enum err renew_root(struct projector *p, struct error *reterr)
{
    struct strbuf root = {0};
    uint64_t max;
    int64_t time_ms = root_time(p);
    /* A store that cannot be read must not look fresh: no renewal then. */
    enum err e = outbox_epoch(p->store, &max, reterr);
    if (e)
        return e;
    publish_state(p, max);
    if (max != p->root.epoch)
        return ERR_OK; /* just committed: the changes bring the time along */
    root_print(p, max, time_ms, &root);
    const struct cache_reply *old;
    struct str set[] = {S("SET"), S(PROJECTION_ROOT_KEY), sb_str(&root), S("XX"), S("GET")};
    e = cache_sync_command(p->redis, set, 5, &old, reterr);
    if (e) {
        sb_reset(&p->root_unsure);
        sb_add(&p->root_unsure, sb_str(&root));
        if (root_look(p, &old, NULL) == ERR_OK && !root_is_ours(p, old)) { /* of another type, which SET GET refuses */
            out_of_sync(p, "Redis holds a root that is not ours");
            e = ERR_OK;
        }
    } else if (!root_is_ours(p, old)) {
        out_of_sync(p, old->type == CACHE_NIL ? "Redis holds no root" : "Redis holds a root that is not ours");
    } else {
        root_adopt(p, &root);
    }
    sb_free(&root);
    return e;
}

/* ---- everything -------------------------------------------------------------------------------- */

static enum err batch_flush(struct projector *p, struct commands *c, struct error *reterr)
{
    return c->n_args > 1 ? commands_run(p, c, NULL, reterr) : ERR_OK;
}

static void batch_begin(struct commands *c)
{
    commands_reset(c);
    commands_begin(c);
    commands_add(c, "MSET");
}

/* All values, from one snapshot of the store. A long one with very many facts; edits meanwhile follow right after. */
static enum err rebuild_values(struct projector *p, struct map *map, uint64_t *ret_max, int64_t *ret_time_ms, struct error *reterr)
{
    struct store_stmt *st = NULL;
    struct commands c = {0};
    struct strbuf payload = {0}, key = {0};
    bool row;
    size_t n = 0;

    *ret_time_ms = root_time(p);
    enum err e = store_begin(p->store, reterr);
    if (e)
        return e;
    e = outbox_epoch(p->store, ret_max, reterr);
    if (!e)
        e = store_query(p->store, &st, reterr, "SELECT fact, epoch, is_gone FROM fact_epochs ORDER BY fact", "");
    batch_begin(&c);
    while (!e && !(e = store_step(st, &row, reterr)) && row) {
        bool exists, has_value;
        struct str fact = store_col_str(st, 0);
        uint64_t epoch = (uint64_t)store_col_int(st, 1);
        e = fact_compile(p, fact, &payload, &exists, &has_value, reterr);
        if (e)
            break;
        map_put(map, fact, exists, epoch);
        if (exists == (store_col_int(st, 2) != 0))
            stale_add(p, fact);
        if (!has_value)
            continue; /* an old value of it is swept away below, or is not named */
        sb_reset(&key);
        projection_fact_key(fact, &key);
        commands_add_wrapped(&c, p->keys, sb_str(&key), epoch, sb_str(&payload));
        if (++n % BATCH_FACTS == 0 || c.bytes >= BATCH_BYTES) {
            e = is_stopping(p) ? error_set(reterr, ERR_CANCELED, "stopping") : batch_flush(p, &c, reterr);
            batch_begin(&c);
        }
    }
    store_done(&st);
    store_rollback(p->store); /* it only read */
    if (!e)
        e = batch_flush(p, &c, reterr);
    commands_free(&c);
    sb_free(&key);
    sb_free(&payload);
    return e;
}

static enum err rebuild_buckets(struct projector *p, struct error *reterr)
{
    struct commands c = {0};
    enum err e = ERR_OK;
    for (unsigned i = 0; !e && i < PROJECTION_BUCKETS;) {
        batch_begin(&c);
        for (size_t j = 0; i < PROJECTION_BUCKETS && j < BUCKETS_AT_ONCE && c.bytes < BATCH_BYTES; j++, i++)
            bucket_add(p, &c, i);
        e = batch_flush(p, &c, reterr);
    }
    commands_free(&c);
    return e;
}

/* Keys of an older life: values and buckets that the store knows nothing of. No current bucket names them, so they mean nothing;
 * they are removed so that nothing lingers. */
static enum err sweep_step(struct projector *p, struct error *reterr)
{
    struct str pattern = p->sweep == SWEEP_VALUES ? S("pg:v:*") : S("pg:b:*");
    struct commands c = {0};
    const struct cache_reply *r;
    struct str scan[] = {S("SCAN"), p->sweep_cursor.n ? sb_str(&p->sweep_cursor) : S("0"), S("MATCH"), pattern, S("COUNT"), S("1000")};
    enum err e = cache_sync_command(p->redis, scan, 6, &r, reterr);
    if (e)
        return e;
    if (r->type != CACHE_ARRAY || r->n != 2 || r->items[0].type != CACHE_STRING || r->items[1].type != CACHE_ARRAY)
        return error_set(reterr, ERR_UNAVAILABLE, "SCAN answered something else");
    sb_reset(&p->sweep_cursor);
    if (!str_eq_c(r->items[0].str, "0"))
        sb_add(&p->sweep_cursor, r->items[0].str);
    commands_begin(&c);
    commands_add(&c, "DEL");
    for (size_t i = 0; i < r->items[1].n; i++) {
        struct str key = r->items[1].items[i].str;
        bool known;
        if (p->sweep == SWEEP_VALUES) {
            known = map_epoch(p->map, str_skip(key, 5)) != 0;
        } else {
            uint64_t n;
            struct strbuf want = {0};
            known = str_to_u64(str_skip(key, 5), &n) && n < PROJECTION_BUCKETS;
            if (known) {
                projection_bucket_key((unsigned)n, &want);
                known = str_eq(key, sb_str(&want));
            }
            sb_free(&want);
        }
        if (!known)
            sb_add(commands_arg(&c), key);
    }
    if (c.n_args > 1)
        e = commands_run(p, &c, NULL, reterr);
    commands_free(&c);
    if (!e && p->sweep_cursor.n == 0)
        p->sweep = p->sweep == SWEEP_VALUES ? SWEEP_BUCKETS : SWEEP_NONE;
    return e;
}

/* The store is an older copy than what the proxies have seen, and they follow no root backwards. Its epochs go on after the newest
 * one that was ever signed; a fact that never exists carries the jump. */
static enum err epoch_jump(struct store *s, void *arg, struct error *reterr)
{
    const uint64_t *seen = arg;
    uint64_t max;
    enum err e = outbox_epoch(s, &max, reterr);
    if (e || max > *seen)
        return e;
    e = store_exec(s, NULL, reterr, "INSERT INTO outbox (id, created_ms, fact) VALUES (?,?,'u:restored')", "ii", (int64_t)*seen,
                   clock_now_ms());
    return e ? e : outbox_put(s, S("u:restored"), false, reterr);
}

static enum err rebuild(struct projector *p, struct error *reterr)
{
    const struct cache_reply *r;
    struct strbuf root = {0};
    struct map *map = NULL;
    uint64_t max = 0, started = clock_mono_ms(), foreign = 0;
    int64_t time_ms = 0;

    /* Before the work: is Redis there at all? And does it know a newer state, signed by us? */
    enum err e = root_look(p, &r, reterr);
    if (e)
        return e;
    if (r->type == CACHE_STRING) {
        struct str payload;
        if (projection_unwrap(p->keys, S(PROJECTION_ROOT_KEY), r->str, &foreign, &payload) != ERR_OK)
            foreign = 0;
    }
    e = outbox_epoch(p->store, &max, reterr);
    if (!e && foreign > max && foreign < EPOCH_JUMP_MAX) {
        log_error(
            "projector: Redis knew change %llu, the store only %llu: the store is an older copy; its changes are counted on from there",
            (unsigned long long)foreign, (unsigned long long)max);
        e = db_run(p->writer, DB_TRANSACTION, epoch_jump, &foreign, reterr);
    }
    if (e)
        return e;
    map = NEW(struct map);
    e = rebuild_values(p, map, &max, &time_ms, reterr);
    if (e) {
        map_free(&map);
        return e;
    }
    map_free(&p->map);
    p->map = map;
    e = rebuild_buckets(p, reterr);
    if (e)
        return e;
    root_print(p, max, time_ms, &root);
    struct str set[] = {S("SET"), S(PROJECTION_ROOT_KEY), sb_str(&root)};
    e = cache_sync_command(p->redis, set, 3, &r, reterr);
    if (!e) {
        struct strbuf text = {0};
        root_adopt(p, &root);
        p->in_sync = true;
        sb_add_u64(&text, max);
        struct str publish[] = {S("PUBLISH"), S(PROJECTION_CHANNEL), sb_str(&text)};
        e = cache_sync_command(p->redis, publish, 3, &r, reterr);
        sb_free(&text);
    }
    sb_free(&root);
    if (!p->in_sync)
        return e;
    pthread_mutex_lock(&p->lock);
    p->st.rebuilds++;
    pthread_mutex_unlock(&p->lock);
    publish_state(p, max);
    log_info("projector: wrote %llu facts in %llu ms, newest change %llu", (unsigned long long)p->map->n,
             (unsigned long long)(clock_mono_ms() - started), (unsigned long long)max);
    p->sweep = SWEEP_VALUES;
    sb_reset(&p->sweep_cursor);
    return e;
}

/* ---- the slow comparison ----------------------------------------------------------------------- */

/* Write what differs among the n values (key, wanted) in c, which holds MGET and then pairs. */
static enum err scrub_compare(struct projector *p, struct commands *pairs, struct error *reterr)
{
    size_t n = pairs->n_args / 2;
    if (!n)
        return ERR_OK;
    struct str *argv = mem_calloc(n + 1, sizeof(*argv));
    argv[0] = S("MGET");
    for (size_t i = 0; i < n; i++)
        argv[i + 1] = sb_str(&pairs->args[2 * i]);
    const struct cache_reply *r;
    enum err e = cache_sync_command(p->redis, argv, n + 1, &r, reterr);
    mem_free(argv);
    if (e)
        return e;
    if (r->type != CACHE_ARRAY || r->n != n)
        return error_set(reterr, ERR_UNAVAILABLE, "MGET answered something else");
    struct str *fix = mem_calloc(2 * n + 1, sizeof(*fix));
    size_t m = 1;
    fix[0] = S("MSET");
    for (size_t i = 0; i < n; i++) {
        struct str want = sb_str(&pairs->args[2 * i + 1]);
        if (r->items[i].type == CACHE_STRING && str_eq(r->items[i].str, want))
            continue;
        uint64_t epoch, want_epoch;
        struct str payload, key = sb_str(&pairs->args[2 * i]);
        if (r->items[i].type == CACHE_STRING && str_starts(key, S("pg:v:")) &&
            projection_unwrap(p->keys, key, r->items[i].str, &epoch, &payload) == ERR_OK &&
            projection_unwrap(p->keys, key, want, &want_epoch, &payload) == ERR_OK && epoch == want_epoch) {
            stale_add(p, str_skip(key, 5)); /* written by us, and no longer what the store says */
            continue;
        }
        fix[m++] = sb_str(&pairs->args[2 * i]);
        fix[m++] = want;
    }
    if (m > 1) {
        e = cache_sync_command(p->redis, fix, m, &r, reterr);
        log_warn("projector: %zu values in Redis were missing or altered; written again", (m - 1) / 2);
        pthread_mutex_lock(&p->lock);
        p->st.repaired += (m - 1) / 2;
        pthread_mutex_unlock(&p->lock);
    }
    mem_free(fix);
    return e;
}

/* One page: values that were evicted or altered are put back. It only ever writes what the root already promises. */
static enum err scrub(struct projector *p, struct error *reterr)
{
    struct commands pairs = {0};
    struct store_stmt *st = NULL;
    struct strbuf payload = {0}, key = {0};
    char *last = NULL;
    bool row, moved = false, more = false;
    int64_t rows = 0, page = p->verifying ? VERIFY_FACTS : SCRUB_FACTS;

    enum err e = store_begin(p->store, reterr);
    if (e)
        return e;
    commands_begin(&pairs);
    e = store_query(p->store, &st, reterr, "SELECT fact, epoch FROM fact_epochs WHERE fact > ? ORDER BY fact LIMIT ?", "zi",
                    p->scrub_cursor ? p->scrub_cursor : "", page);
    while (!e && !(e = store_step(st, &row, reterr)) && row) {
        bool exists, has_value;
        struct str fact = store_col_str(st, 0);
        uint64_t epoch = (uint64_t)store_col_int(st, 1);
        rows++;
        mem_free(last);
        last = str_dup(fact);
        if (epoch > p->root.epoch)
            continue; /* a change on its way */
        e = fact_compile(p, fact, &payload, &exists, &has_value, reterr);
        if (e)
            break;
        uint64_t written = map_epoch(p->map, fact);
        if (written != 0 && written != epoch) {
            moved = true;
            break;
        }
        if (exists != (written != 0)) {
            stale_add(p, fact);
            continue;
        }
        if (!has_value)
            continue;
        sb_reset(&key);
        projection_fact_key(fact, &key);
        commands_add_wrapped(&pairs, p->keys, sb_str(&key), epoch, sb_str(&payload));
        if (pairs.bytes > BATCH_BYTES) {
            more = true;
            break;
        }
    }
    store_done(&st);
    store_rollback(p->store); /* it only read */
    if (moved)
        out_of_sync(p, "what was projected differs from the store");
    for (unsigned i = 0; !e && !moved && i < SCRUB_BUCKETS; i++) {
        bucket_add(p, &pairs, p->scrub_bucket);
        p->scrub_bucket = (p->scrub_bucket + 1) % PROJECTION_BUCKETS;
    }
    if (!e && !moved)
        e = scrub_compare(p, &pairs, reterr);
    if (!e) {
        mem_free(p->scrub_cursor);
        p->scrub_cursor = more || rows == page ? last : NULL;
        if (!p->scrub_cursor) {
            mem_free(last);
            p->verifying = false;
        }
    } else {
        mem_free(last);
    }
    commands_free(&pairs);
    sb_free(&key);
    sb_free(&payload);
    return e;
}

/* ---- taking over -------------------------------------------------------------------------------- */

/* One bucket into the map; false when it is not just what the root says. */
static bool bucket_adopt(struct projector *p, struct map *map, unsigned n, struct str key, struct str value, uint64_t epoch)
{
    struct str payload, line, digits, fact;
    uint64_t own;
    if (projection_unwrap(p->keys, key, value, &own, &payload) != ERR_OK || own != epoch)
        return false;
    while (payload.n && str_next(&payload, '\n', &line)) {
        uint64_t fact_epoch;
        if (!str_cut(line, ' ', &digits, &fact) || !str_to_u64(digits, &fact_epoch) || fact_epoch == 0 || projection_bucket_of(fact) != n)
            return false;
        map_put(map, fact, true, fact_epoch);
    }
    map->buckets[n].epoch = epoch; /* deletions included */
    return true;
}

/* Once, at the start: what an earlier life of this daemon left in Redis is taken over when it is whole, signed, and says of every fact
 * just what the store says. Edits then flow at once, and the values are compared in the background. Anything else: a rebuild. */
static enum err adopt(struct projector *p, struct error *reterr)
{
    const struct cache_reply *r;
    struct projection_root root;
    struct strbuf text = {0};
    struct map *map = NULL;
    struct store_stmt *st = NULL;
    bool row, same = false;
    uint64_t max = 0, n = 0;

    enum err e = root_look(p, &r, reterr);
    if (e)
        return e;
    if (r->type != CACHE_STRING || projection_root_scan(p->keys, r->str, &root) != ERR_OK)
        return ERR_OK;
    sb_add(&text, r->str);
    map = NEW(struct map);
    for (unsigned i = 0; i < PROJECTION_BUCKETS; i += BUCKETS_AT_ONCE) {
        struct commands c = {0};
        struct strbuf keys[BUCKETS_AT_ONCE] = {{0}};
        commands_begin(&c);
        commands_add(&c, "MGET");
        for (unsigned j = 0; j < BUCKETS_AT_ONCE; j++) {
            projection_bucket_key(i + j, &keys[j]);
            sb_add(commands_arg(&c), sb_str(&keys[j]));
        }
        e = commands_run(p, &c, &r, reterr);
        commands_free(&c);
        same = !e && r->type == CACHE_ARRAY && r->n == BUCKETS_AT_ONCE;
        for (unsigned j = 0; same && j < BUCKETS_AT_ONCE; j++)
            same = r->items[j].type == CACHE_STRING && bucket_adopt(p, map, i + j, sb_str(&keys[j]), r->items[j].str, root.buckets[i + j]);
        for (unsigned j = 0; j < BUCKETS_AT_ONCE; j++)
            sb_free(&keys[j]);
        if (!same)
            goto out;
    }
    e = store_begin(p->store, reterr);
    if (e)
        goto out;
    e = outbox_epoch(p->store, &max, reterr);
    same = !e && root.epoch <= max;
    if (same)
        e = store_query(p->store, &st, reterr, "SELECT fact, epoch FROM fact_epochs WHERE epoch <= ? AND is_gone=0 ORDER BY fact", "i",
                        (int64_t)root.epoch);
    while (same && !e && !(e = store_step(st, &row, reterr)) && row) {
        same = map_epoch(map, store_col_str(st, 0)) == (uint64_t)store_col_int(st, 1);
        n++;
    }
    store_done(&st);
    /* Facts that changed after the root stand in the map as they were; they must be there or must not, nobody can say here. */
    if (same && !e) {
        e = store_query(p->store, &st, reterr, "SELECT fact FROM fact_epochs WHERE epoch > ?", "i", (int64_t)root.epoch);
        while (!e && !(e = store_step(st, &row, reterr)) && row)
            n += map_epoch(map, store_col_str(st, 0)) != 0;
        store_done(&st);
    }
    store_rollback(p->store); /* it only read */
    same = same && !e && n == map->n;
    if (same) {
        map_free(&p->map);
        p->map = map;
        map = NULL;
        p->root = root;
        root_adopt(p, &text);
        p->in_sync = p->verifying = true;
        p->sweep = SWEEP_VALUES;
        publish_state(p, max);
        log_info("projector: Redis holds %llu facts of change %llu, as the store has them", (unsigned long long)p->map->n,
                 (unsigned long long)root.epoch);
    }
out:
    map_free(&map);
    sb_free(&text);
    return e;
}

/* ---- the thread -------------------------------------------------------------------------------- */

static enum err round_run(struct projector *p, bool *ret_more, struct error *reterr)
{
    *ret_more = false;
    if (!p->store) {
        enum err e = store_open(p->cfg->store.url, true, &p->store, reterr);
        if (e)
            return e;
    }
    if (p->newest_ms == 0) {
        enum err e = newest_read(p, reterr);
        if (e)
            return e;
    }
    if (!p->in_sync) {
        enum err e = p->was_adopted ? ERR_OK : adopt(p, reterr);
        p->was_adopted = p->was_adopted || !e;
        if (!e && !p->in_sync)
            e = rebuild(p, reterr);
        *ret_more = true;
        if (!e)
            p->next_tick_ms = clock_mono_ms() + ROOT_EVERY_MS;
        return e;
    }
    enum err e = project_changes(p, ret_more, reterr);
    if (e || !p->in_sync)
        return e;
    uint64_t now = clock_mono_ms();
    if (now >= p->next_tick_ms) {
        p->next_tick_ms = now + ROOT_EVERY_MS;
        e = renew_root(p, reterr);
        if (!p->in_sync)
            *ret_more = true;
    }
    if (!e && p->in_sync && now >= p->next_scrub_ms) {
        p->next_scrub_ms = now + (p->verifying ? VERIFY_EVERY_MS : SCRUB_EVERY_MS);
        e = scrub(p, reterr);
        if (!p->in_sync)
            *ret_more = true;
    }
    if (!e && p->in_sync && now >= p->next_prune_ms) {
        p->next_prune_ms = now + PRUNE_EVERY_MS;
        prune(p);
    }
    if (!e && p->n_stale) {
        e = stale_flush(p, reterr);
        *ret_more = true;
    }
    if (!e && p->in_sync && p->sweep != SWEEP_NONE) { /* a slice; what was committed meanwhile comes first */
        e = sweep_step(p, reterr);
        *ret_more = true;
    }
    return e;
}

static void deadline_in(struct timespec *ts, uint64_t ms)
{
    clock_gettime(CLOCK_MONOTONIC, ts);
    ts->tv_sec += (time_t)(ms / 1000);
    ts->tv_nsec += (long)(ms % 1000) * 1000000;
    if (ts->tv_nsec >= 1000000000) {
        ts->tv_sec++;
        ts->tv_nsec -= 1000000000;
    }
}

static void *projector_main(void *arg)
{
    struct projector *p = arg;
    unsigned backoff = 0;
    unsigned long long logged = 0;
    bool was_down = false;

    while (!is_stopping(p)) {
        struct error err = {0};
        bool more;
        enum err e = round_run(p, &more, &err);
        pthread_mutex_lock(&p->lock);
        p->st.redis_up = e == ERR_OK;
        p->st.in_sync = p->in_sync;
        pthread_mutex_unlock(&p->lock);
        if (e && e != ERR_CANCELED) {
            log_limited(&logged, LOG_EVERY_MS, LOG_LEVEL_WARN, "projector: %s; trying again", err.text[0] ? err.text : err_text(e));
            uint64_t max;
            if (p->store && outbox_epoch(p->store, &max, NULL) == ERR_OK)
                publish_state(p, max); /* how far Redis is behind */
            was_down = true;
            p->next_tick_ms = 0; /* the first thing to know afterwards is whether the root is still there */
            backoff = backoff ? (backoff * 2 < BACKOFF_MAX_MS ? backoff * 2 : BACKOFF_MAX_MS) : BACKOFF_MIN_MS;
        } else if (!e) {
            if (was_down)
                log_info("projector: going on");
            was_down = false;
            backoff = 0;
        }
        if (!e && more)
            continue;

        struct timespec ts;
        uint64_t now = clock_mono_ms();
        uint64_t next = p->in_sync && p->next_scrub_ms < p->next_tick_ms ? p->next_scrub_ms : p->next_tick_ms;
        deadline_in(&ts, e ? backoff : next > now ? next - now : 1);
        pthread_mutex_lock(&p->lock);
        /* in a backoff a poke changes nothing: what it announces is in the outbox */
        while (!p->stopping && (e || !p->poked))
            if (pthread_cond_timedwait(&p->wake, &p->lock, &ts) == ETIMEDOUT)
                break;
        if (p->suspected)
            p->next_tick_ms = 0;
        p->poked = p->suspected = false;
        pthread_mutex_unlock(&p->lock);
    }
    return NULL;
}

struct projector *projector_start(const struct config *cfg, const struct keyring *keys, struct db *writer)
{
    struct projector *p = NEW(struct projector);
    pthread_condattr_t attr;
    p->cfg = cfg;
    p->keys = keys;
    p->writer = writer;
    p->redis = cache_sync_new(cfg, REDIS_DEADLINE_MS);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    AN(pthread_mutex_init(&p->lock, NULL) == 0);
    AN(pthread_cond_init(&p->wake, &attr) == 0);
    AN(pthread_cond_init(&p->changed, &attr) == 0);
    pthread_condattr_destroy(&attr);
    NEED((errno = pthread_create(&p->thread, NULL, projector_main, p)) == 0, "its projector thread");
    return p;
}

void projector_stop(struct projector **pp)
{
    struct projector *p = *pp;
    if (!p)
        return;
    *pp = NULL;
    pthread_mutex_lock(&p->lock);
    p->stopping = true;
    pthread_cond_broadcast(&p->wake);
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->lock);
    pthread_join(p->thread, NULL);
    store_close(&p->store);
    cache_sync_free(&p->redis);
    map_free(&p->map);
    sb_free(&p->root_text);
    sb_free(&p->root_unsure);
    mem_free(p->scrub_cursor);
    sb_free(&p->sweep_cursor);
    sb_free(&p->stale);
    pthread_cond_destroy(&p->wake);
    pthread_cond_destroy(&p->changed);
    pthread_mutex_destroy(&p->lock);
    mem_free(p);
}

void projector_poke(struct projector *p)
{
    pthread_mutex_lock(&p->lock);
    p->poked = true;
    pthread_cond_signal(&p->wake);
    pthread_mutex_unlock(&p->lock);
}

void projector_suspect(struct projector *p)
{
    pthread_mutex_lock(&p->lock);
    p->poked = p->suspected = true;
    pthread_cond_signal(&p->wake);
    pthread_mutex_unlock(&p->lock);
}

void projector_state(struct projector *p, struct projector_state *ret)
{
    pthread_mutex_lock(&p->lock);
    *ret = p->st;
    pthread_mutex_unlock(&p->lock);
    ret->lag = ret->outbox_max > ret->projected ? ret->outbox_max - ret->projected : 0;
}

bool projector_wait(struct projector *p, uint64_t epoch, unsigned timeout_ms)
{
    struct timespec ts;
    deadline_in(&ts, timeout_ms);
    pthread_mutex_lock(&p->lock);
    while (!p->stopping && p->st.projected < epoch)
        if (pthread_cond_timedwait(&p->changed, &p->lock, &ts) == ETIMEDOUT)
            break;
    bool done = p->st.projected >= epoch;
    pthread_mutex_unlock(&p->lock);
    return done;
}
