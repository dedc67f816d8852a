/* Blobs in flight and on disk. One lock guards everything that workers share; it is held for pointer work only, never over a system
 * call on a file. Reading order: the shared structures; sides and ports (how a change reaches readers in other workers); the filler
 * (the one upstream transfer behind a blob); the index of the disk cache; the helper threads (all file names and scans).
 * Knows nothing of HTTP and of rights. */
#include "blobs.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/queue.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "pullgate/clock.h"
#include "pullgate/file.h"
#include "pullgate/log.h"
#include "pullgate/loop.h"
#include "pullgate/mem.h"
#include "pullgate/sandbox.h"
#include "pullgate/seal.h"

#include "upstreams.h"
#include "worker.h"

/* A body whose length neither the manifest nor the upstream tells may not fill the disk. */
static const uint64_t UNKNOWN_SIZE_MAX = (uint64_t)16 << 30;
/* Open files of the cache that nobody reads just now: kept to spare the open, bounded for the sake of descriptors. */
static const unsigned IDLE_OPEN_MAX = 256;
/* Complete spool files that wait for a further reader (proxy.spool_keep): together no more than this. */
static const uint64_t LINGER_BYTES_MAX = (uint64_t)1 << 30;
static const unsigned LINGER_FILES_MAX = 256;
/* After a file was not to be had, blobs of that size or more do without for so long: a request upstream each is saved. */
static const uint64_t NO_ROOM_MS = 1000;
/* One turn of re-hashing a file of an earlier run; other jobs come in between. */
static const size_t VERIFY_SLICE = (size_t)4 << 20;
static const size_t READ_CHUNK = (size_t)256 << 10;
/* What arrives in one round of the loop (curl reads 128 KiB and hands it on by 16) goes to the file in one write. */
static const size_t GATHER = (size_t)128 << 10;
/* How often an unusable cache directory is tried again. */
static const uint64_t CACHE_RETRY_MS = 5000;
/* Wait before a broken transfer is asked for again; doubled each time. */
static const uint64_t RESUME_WAIT_MS = 100;
static const size_t FLIGHT_BUCKETS = 1024;
static const size_t INDEX_BUCKETS_MIN = 1024;

/* What the owner's loop is to do about a transfer. */
#define ORDER_START 1u  /* begin, or go on where another worker stopped */
#define ORDER_CANCEL 2u /* nobody reads any more */
#define ORDER_FLOW 4u   /* the file is there, or readers have caught up: resume a paused transfer */

enum storage {
    STORAGE_NONE,    /* size not known yet */
    STORAGE_OPENING, /* a helper makes the file */
    STORAGE_MEMORY,
    STORAGE_FILE,
    STORAGE_BROKEN, /* no room */
};

/* One per worker; lives as long as struct blobs. */
struct side {
    struct blobs *blobs; /* NULL: struct blobs is gone, the last letter under way frees the side */
    struct worker *worker;
    struct loop *loop; /* NULL: the worker has left */
    bool posted;
    TAILQ_HEAD(dirty, port) dirty;
    TAILQ_HEAD(kicked, blob) kicked;
    LIST_HEAD(fills, blob) fills; /* those whose filler runs here */
    TAILQ_HEAD(gathering, blob) gathering; /* own thread: files with bytes to be written at the end of this round */
    bool deferred;                /* own thread: that end is asked for */
    unsigned streams;             /* own thread */
};

/* The readers of one blob in one worker. The list of readers belongs to the worker's thread, the rest to the lock. */
struct port {
    struct blob *blob; /* counted in blob->refs */
    struct side *side;
    bool is_dirty;
    bool is_walked; /* own thread */
    LIST_HEAD(readers, blob_reader) readers;
    struct blob_reader *next; /* own thread: who comes next in the walk */
    TAILQ_ENTRY(port) dirty_link;
    LIST_ENTRY(port) blob_link;
};

struct blob_reader {
    struct port *port;
    blob_changed *cb;
    void *ctx;
    bool from_cache;
    LIST_ENTRY(blob_reader) link;
};

/* Bytes of a digest, on their way or complete. Freed when refs falls to 0: one each for every port, the table or the index, the
 * filler, a kick under way and a job of a helper. */
struct blob {
    struct blobs *blobs;
    unsigned refs;
    struct digest digest;
    char *upstream_id, *upstream_repository; /* NULL: read from the cache */
    uint64_t on_behalf; /* of this customer */
    uint64_t size_hint;

    enum blob_state state;
    bool has_size;
    uint64_t size;
    uint64_t written;  /* bytes in the file, hashed */
    uint64_t furthest; /* where the fastest reader stands */
    unsigned n_readers;
    LIST_HEAD(ports, port) ports;

    enum storage storage;
    int fd;
    char *bytes;         /* STORAGE_MEMORY */
    char *temporary;     /* name below the cache directory while it is not the final one */
    uint64_t reserved;   /* of the cache's bound */
    bool in_flights;     /* in the table, holds a ref */
    struct cached *cached;
    LIST_ENTRY(blob) flight_link;
    TAILQ_ENTRY(blob) idle_link;
    bool is_idle;
    TAILQ_ENTRY(blob) linger_link;
    bool is_lingering;  /* complete, in the table, nobody reads it */
    uint64_t linger_until_ms;
    bool is_committing; /* a helper makes it a file of the cache */

    enum err err;
    unsigned retry_after_s;
    char detail[200];
    char *location;

    /* the filler: owner and orders under the lock, the rest of the owner's thread alone */
    struct side *owner;
    LIST_ENTRY(blob) fill_link; /* in owner->fills */
    unsigned orders;
    bool is_kicked;
    TAILQ_ENTRY(blob) kick_link;
    bool is_paused; /* under the lock */
    bool is_filling;
    bool head_seen;
    unsigned tries;
    uint64_t skip; /* bytes that come again, because the upstream ignored the range */
    struct upstreams_op *get;
    struct upstream *upstream;
    struct upstream_op *op;
    struct timer *timer;
    char *gathered; /* hashed, not written yet */
    size_t n_gathered;
    bool is_gathering; /* in owner->gathering */
    TAILQ_ENTRY(blob) gather_link;
    struct hasher *hasher; /* handed on with the ownership; of the quick helper while it verifies */
};

/* A file of the cache. */
struct cached {
    struct digest digest;
    uint64_t size;
    bool is_verified;  /* by this process; else the first reader's wait for it */
    struct blob *blob; /* open, or being opened; counted */
    TAILQ_ENTRY(cached) lru_link; /* first: used last */
    struct cached *hash_next;
};

enum job_kind { JOB_SPOOL, JOB_OPEN, JOB_VERIFY, JOB_COMMIT, JOB_DISPOSE };
struct job {
    enum job_kind kind;
    struct blob *blob; /* counted */
    int fd;            /* DISPOSE */
    char *name;
    TAILQ_ENTRY(job) link;
};
struct helper {
    struct blobs *blobs;
    pthread_t thread;
    pthread_cond_t wake;
    TAILQ_HEAD(jobs, job) jobs;
    bool keeps_cache; /* the slow one: opens, scans and commits to the cache directory */
};

struct blobs {
    struct config *cfg;
    uint64_t high, low, max_bytes;
    unsigned retries;
    pthread_mutex_t lock;
    bool stop;
    struct side **sides;
    size_t n_sides;
    LIST_HEAD(flight_list, blob) *flights;

    struct cached **index;
    size_t n_index_buckets;
    TAILQ_HEAD(lru_list, cached) lru;
    TAILQ_HEAD(idle_list, blob) idle; /* first: read last */
    unsigned n_idle;
    TAILQ_HEAD(lingering, blob) lingering; /* first: goes first */
    unsigned n_lingering;
    uint64_t lingering_bytes, linger_ms;
    uint64_t reserved;
    uint64_t no_room_until_ms, no_room_size;
    uint64_t next_name;
    int cache_fd; /* the directory, locked; -1 not usable now. Set once, by the slow helper */

    /* quick: makes, opens, re-hashes and closes files that somebody waits for. slow: commits, the scan, the cache's lock */
    struct helper quick, slow;
    struct blobs_stats stats;
};

static unsigned long long log_mismatch, log_unusable, log_commit, log_cache;

static void lock(struct blobs *b)
{
    pthread_mutex_lock(&b->lock);
}

static void unlock(struct blobs *b)
{
    pthread_mutex_unlock(&b->lock);
}

static const char *alg_name(uint8_t alg)
{
    return alg == DIGEST_SHA512 ? "sha512" : "sha256";
}

#define NAME_MAX_LEN 160
/* "sha256/ab/abcdef…" below the cache directory. */
static void cache_name(const struct digest *d, char ret[NAME_MAX_LEN])
{
    char text[DIGEST_TEXT_MAX];
    const char *hex = strchr(digest_text(d, text), ':') + 1;
    snprintf(ret, NAME_MAX_LEN, "%s/%.2s/%s", alg_name(d->alg), hex, hex);
}

/* ---- jobs, references ----------------------------------------------------------------------------------------------- */

static void job_put(struct helper *h, enum job_kind kind, struct blob *o, int fd, char *take_name)
{
    struct job *j = NEW(struct job);

    j->kind = kind;
    j->blob = o;
    j->fd = fd;
    j->name = take_name;
    if (o != NULL)
        o->refs++;
    TAILQ_INSERT_TAIL(&h->jobs, j, link);
    pthread_cond_signal(&h->wake);
}

static void blob_unref(struct blob *o)
{
    struct blobs *b = o->blobs;

    AN(o->refs > 0);
    if (--o->refs > 0)
        return;
    AN(o->op == NULL && o->get == NULL && o->timer == NULL && o->upstream == NULL && o->n_readers == 0 && o->cached == NULL);
    b->reserved -= o->reserved;
    if (o->fd >= 0 || o->temporary != NULL)
        job_put(&b->quick, JOB_DISPOSE, NULL, o->fd, o->temporary);
    hasher_free(&o->hasher);
    mem_free(o->gathered);
    mem_free(o->bytes);
    mem_free(o->location);
    mem_free(o->upstream_id);
    mem_free(o->upstream_repository);
    mem_free(o);
}

static struct blob *blob_new(struct blobs *b, const struct digest *d)
{
    struct blob *o = NEW(struct blob);

    o->blobs = b;
    o->digest = *d;
    o->fd = -1;
    LIST_INIT(&o->ports);
    return o;
}

/* ---- sides and ports: telling readers and fillers ------------------------------------------------------------------- */

static void side_run(void *arg);

/* The side whose thread is about to run it anyway: needs no letter. */
static _Thread_local struct side *side_at_hand;

static void side_wake(struct side *s)
{
    if (s->posted || s->loop == NULL || s == side_at_hand)
        return;
    s->posted = true;
    loop_post(s->loop, side_run, s);
}

static struct side *side_of(struct blobs *b, struct worker *w)
{
    if (w->id >= b->n_sides) {
        size_t n = (size_t)w->id + 1;
        b->sides = mem_realloc(b->sides, n * sizeof b->sides[0]);
        memset(b->sides + b->n_sides, 0, (n - b->n_sides) * sizeof b->sides[0]);
        b->n_sides = n;
    }
    struct side *s = b->sides[w->id];
    if (s == NULL) {
        s = NEW(struct side);
        s->blobs = b;
        s->worker = w;
        s->loop = w->loop;
        TAILQ_INIT(&s->dirty);
        TAILQ_INIT(&s->kicked);
        LIST_INIT(&s->fills);
        TAILQ_INIT(&s->gathering);
        b->sides[w->id] = s;
    }
    return s;
}

/* Every reader is to look again. */
static void blob_tell(struct blob *o)
{
    struct port *p;

    LIST_FOREACH(p, &o->ports, blob_link)
    {
        if (p->is_dirty)
            continue;
        p->is_dirty = true;
        TAILQ_INSERT_TAIL(&p->side->dirty, p, dirty_link);
        side_wake(p->side);
    }
}

static void blob_kick(struct blob *o, unsigned order)
{
    if (o->owner == NULL)
        return;
    o->orders |= order;
    if (!o->is_kicked) {
        o->is_kicked = true;
        o->refs++;
        TAILQ_INSERT_TAIL(&o->owner->kicked, o, kick_link);
    }
    side_wake(o->owner);
}

static void port_free(struct port *p)
{
    if (p->is_dirty)
        TAILQ_REMOVE(&p->side->dirty, p, dirty_link);
    LIST_REMOVE(p, blob_link);
    blob_unref(p->blob);
    mem_free(p);
}

static void fill_obey(struct blob *o, unsigned orders);

/* In the worker's loop: everything that was left for it. */
static void side_do(struct side *s)
{
    struct blobs *b = s->blobs;
    struct blob *o;
    struct port *p;

    lock(b);
    while ((o = TAILQ_FIRST(&s->kicked)) != NULL) {
        TAILQ_REMOVE(&s->kicked, o, kick_link);
        o->is_kicked = false;
        unsigned orders = o->orders;
        o->orders = 0;
        unlock(b);
        fill_obey(o, orders);
        lock(b);
        blob_unref(o);
    }
    while ((p = TAILQ_FIRST(&s->dirty)) != NULL) {
        TAILQ_REMOVE(&s->dirty, p, dirty_link);
        p->is_dirty = false;
        unlock(b);
        p->is_walked = true;
        for (struct blob_reader *r = LIST_FIRST(&p->readers); r != NULL; r = p->next) {
            p->next = LIST_NEXT(r, link); /* blob_leave() moves it on */
            r->cb(r->ctx);
        }
        p->is_walked = false;
        lock(b);
        if (LIST_EMPTY(&p->readers))
            port_free(p);
    }
    unlock(b);
}

static void side_run(void *arg)
{
    struct side *s = arg;

    if (s->blobs == NULL) { /* a letter of a process that ends */
        s->posted = false;
        if (!s->deferred)
            mem_free(s);
        return;
    }
    lock(s->blobs);
    s->posted = false;
    unlock(s->blobs);
    side_do(s);
}

/* ---- the table of transfers in flight ------------------------------------------------------------------------------- */

static struct flight_list *flight_bucket(struct blobs *b, const struct digest *d)
{
    return &b->flights[digest_hash(d) % FLIGHT_BUCKETS];
}

static struct blob *flight_find(struct blobs *b, const struct blob_key *k)
{
    struct blob *o;

    LIST_FOREACH(o, flight_bucket(b, &k->digest), flight_link)
    {
        if (digest_eq(&o->digest, &k->digest) && str_eq_c(k->upstream_id, o->upstream_id) &&
            str_eq_c(k->upstream_repository, o->upstream_repository))
            return o;
    }
    return NULL;
}

static void linger_remove(struct blob *o)
{
    struct blobs *b = o->blobs;

    if (!o->is_lingering)
        return;
    o->is_lingering = false;
    TAILQ_REMOVE(&b->lingering, o, linger_link);
    b->n_lingering--;
    b->lingering_bytes -= o->size;
    b->stats.in_flight++;
}

static void flight_remove(struct blob *o)
{
    if (!o->in_flights)
        return;
    linger_remove(o);
    o->in_flights = false;
    o->blobs->stats.in_flight--;
    LIST_REMOVE(o, flight_link);
    blob_unref(o);
}

/* Complete, not to be cached, and its last reader has left: the next one may be a moment away. The caller holds a ref. */
static void flight_linger(struct blob *o)
{
    struct blobs *b = o->blobs;

    if (b->linger_ms == 0 || o->size > LINGER_BYTES_MAX || !o->in_flights) {
        flight_remove(o);
        return;
    }
    while (b->n_lingering == LINGER_FILES_MAX || b->lingering_bytes > LINGER_BYTES_MAX - o->size)
        flight_remove(TAILQ_FIRST(&b->lingering));
    o->is_lingering = true;
    o->linger_until_ms = clock_mono_ms() + b->linger_ms;
    TAILQ_INSERT_TAIL(&b->lingering, o, linger_link);
    b->lingering_bytes += o->size;
    b->stats.in_flight--;
    if (b->n_lingering++ == 0)
        pthread_cond_signal(&b->quick.wake);
}

/* quick: those whose time is up go; how long until the next, UINT64_MAX without one. */
static uint64_t linger_expire(struct blobs *b)
{
    struct blob *o;
    uint64_t now = clock_mono_ms();

    while ((o = TAILQ_FIRST(&b->lingering)) != NULL) {
        if (o->linger_until_ms > now)
            return o->linger_until_ms - now;
        flight_remove(o);
    }
    return UINT64_MAX;
}

/* The blob comes to an end that is no success. The caller holds a ref. */
static void blob_fail(struct blob *o, enum blob_state state, enum err err, const char *detail, unsigned retry_after_s)
{
    if (o->state >= BLOB_DONE)
        return;
    o->state = state;
    o->err = err;
    o->retry_after_s = retry_after_s;
    snprintf(o->detail, sizeof o->detail, "%s", detail != NULL ? detail : "");
    if (state == BLOB_MISMATCH)
        o->blobs->stats.mismatches++;
    if (state == BLOB_UNUSABLE)
        o->blobs->stats.unusable++;
    flight_remove(o);
    blob_tell(o);
}

/* ---- the filler: one upstream transfer, in its owner's loop --------------------------------------------------------- */

static void fill_request(struct blob *o);

/* Under the lock: who runs the filler from here on; NULL nobody. */
static void fill_give(struct blob *o, struct side *to)
{
    if (o->owner != NULL)
        LIST_REMOVE(o, fill_link);
    o->owner = to;
    if (to != NULL)
        LIST_INSERT_HEAD(&to->fills, o, fill_link);
}

/* Owner's thread, outside of upstream callbacks or in on_done: nothing of the filler is left but the ref, which goes last. */
static void fill_release(struct blob *o)
{
    struct blobs *b = o->blobs;

    if (!o->is_filling)
        return;
    upstream_cancel(&o->op);
    upstreams_cancel(&o->get);
    timer_free(&o->timer);
    upstream_unref(&o->upstream);
    if (o->is_gathering)
        TAILQ_REMOVE(&o->owner->gathering, o, gather_link);
    o->is_gathering = false;
    lock(b);
    o->is_filling = false;
    fill_give(o, NULL);
    blob_unref(o);
    unlock(b);
}

static void fill_fail(struct blob *o, enum blob_state state, enum err err, const char *detail, unsigned retry_after_s)
{
    lock(o->blobs);
    blob_fail(o, state, err, detail, retry_after_s);
    unlock(o->blobs);
}

static void on_fill_upstream(void *ctx, enum err err, struct upstream *u)
{
    struct blob *o = ctx;

    o->get = NULL;
    if (err != ERR_OK) {
        fill_fail(o, BLOB_FAILED, err, "the upstream's settings are not to be had", 0);
        fill_release(o);
        return;
    }
    o->upstream = upstream_ref(u);
    fill_request(o);
}

static void fill_begin(struct blob *o)
{
    o->get = upstreams_get(o->owner->worker->upstreams, str_c(o->upstream_id), on_fill_upstream, o);
}

static void on_fill_timer(void *ctx)
{
    fill_request(ctx);
}

/* The body will be this long: choose where it goes. Under the lock. */
static void fill_place(struct blob *o)
{
    if (o->has_size && o->size <= BLOBS_WITHHELD) {
        o->bytes = mem_alloc((size_t)o->size + 1);
        o->storage = STORAGE_MEMORY;
    } else {
        o->storage = STORAGE_OPENING;
        job_put(&o->blobs->quick, JOB_SPOOL, o, -1, NULL);
    }
}

static enum fetch_next on_fill_head(void *ctx, const struct upstream_blob_head *h)
{
    struct blob *o = ctx;
    struct blobs *b = o->blobs;
    enum fetch_next next = FETCH_STOP;
    char why[160];

    lock(b);
    if (o->state >= BLOB_DONE) {
        /* on_done is to follow */
    } else if (h->location.n > 0) {
        if (o->written == 0) {
            o->location = str_dup(h->location);
            blob_fail(o, BLOB_REDIRECTED, ERR_OK, "", 0);
        } else {
            blob_fail(o, BLOB_FAILED, ERR_UPSTREAM, "redirected in the middle of a blob", 0);
        }
    } else if (!o->head_seen) {
        if (h->status != 200) {
            snprintf(why, sizeof why, "status %d for a whole blob", h->status);
            blob_fail(o, BLOB_FAILED, ERR_UPSTREAM, why, 0);
        } else if (o->size_hint != 0 && h->length >= 0 && (uint64_t)h->length != o->size_hint) {
            snprintf(why, sizeof why, "length %lld, the manifest says %llu", (long long)h->length, (unsigned long long)o->size_hint);
            blob_fail(o, BLOB_FAILED, ERR_UPSTREAM, why, 0);
        } else if (o->has_size && h->length >= 0 && (uint64_t)h->length != o->size) {
            blob_fail(o, BLOB_FAILED, ERR_UPSTREAM, "another length at the second try", 0);
        } else if (o->storage != STORAGE_NONE) { /* a second try of which the first had a head, but no byte */
            o->head_seen = true;
            next = FETCH_MORE;
        } else {
            o->head_seen = true;
            o->has_size = o->size_hint != 0 || h->length >= 0;
            o->size = h->length >= 0 ? (uint64_t)h->length : o->size_hint;
            o->state = BLOB_FILLING;
            fill_place(o);
            blob_tell(o);
            next = FETCH_MORE;
        }
    } else if (h->status == 206 && h->range.first == o->written && (h->total == 0 || h->total == o->size) &&
               h->range.last == o->size - 1) {
        o->skip = 0;
        next = FETCH_MORE;
    } else if (h->status == 200 && (h->length < 0 || !o->has_size || (uint64_t)h->length == o->size)) {
        o->skip = o->written; /* no ranges there: what we have comes again, and the digest is of the whole anyway */
        next = FETCH_MORE;
    } else {
        snprintf(why, sizeof why, "status %d, another range or length after a broken transfer", h->status);
        blob_fail(o, BLOB_FAILED, ERR_UPSTREAM, why, 0);
    }
    unlock(b);
    return next;
}

/* What was gathered goes to the file, and readers hear of it. Owner's thread. False: the transfer has failed. */
static bool fill_flush(struct blob *o)
{
    struct blobs *b = o->blobs;
    size_t n = o->n_gathered;
    char why[120];

    o->n_gathered = 0;
    if (n == 0)
        return true;
    /* written is only changed by this thread */
    if (!file_write_at(o->fd, (struct str){o->gathered, n}, o->written)) {
        snprintf(why, sizeof why, "cannot write the blob's file: %s", strerror(errno));
        log_limited(&log_unusable, 10000, LOG_LEVEL_ERROR, "blobs: %s", why);
        fill_fail(o, BLOB_UNUSABLE, ERR_UNAVAILABLE, why, 0);
        return false;
    }
    lock(b);
    o->written += n;
    blob_tell(o);
    unlock(b);
    return true;
}

/* The round is over: write, and tell the readers of this worker right here. */
static void side_flush(void *arg)
{
    struct side *s = arg;
    struct blob *o;

    s->deferred = false;
    if (s->blobs == NULL) {
        if (!s->posted)
            mem_free(s);
        return;
    }
    side_at_hand = s;
    while ((o = TAILQ_FIRST(&s->gathering)) != NULL) {
        TAILQ_REMOVE(&s->gathering, o, gather_link);
        o->is_gathering = false;
        if (!fill_flush(o))
            fill_release(o);
    }
    side_at_hand = NULL;
    side_do(s);
}

static void fill_gather(struct blob *o)
{
    struct side *s = o->owner;

    if (!o->is_gathering) {
        o->is_gathering = true;
        TAILQ_INSERT_TAIL(&s->gathering, o, gather_link);
    }
    if (!s->deferred) {
        s->deferred = true;
        loop_defer(s->loop, side_flush, s);
    }
}

static enum fetch_next on_fill_body(void *ctx, const void *data, size_t n)
{
    struct blob *o = ctx;
    struct blobs *b = o->blobs;
    const char *p = data;

    lock(b);
    if (o->state != BLOB_FILLING) {
        unlock(b);
        return FETCH_STOP;
    }
    if (o->storage == STORAGE_BROKEN) {
        blob_fail(o, BLOB_UNUSABLE, ERR_UNAVAILABLE, "no file for the blob", 0);
        unlock(b);
        return FETCH_STOP;
    }
    /* Near the end nothing is paused: the last bytes are withheld, readers cannot catch up with them. */
    if (o->storage == STORAGE_OPENING ||
        (o->has_size && o->skip == 0 && o->size - o->written > BLOBS_WITHHELD && o->written > o->furthest &&
         o->written - o->furthest > b->high)) {
        o->is_paused = true;
        unlock(b);
        return FETCH_PAUSE;
    }
    size_t skip = o->skip < n ? (size_t)o->skip : n;
    uint64_t at = o->written + o->n_gathered, bound = o->has_size ? o->size : UNKNOWN_SIZE_MAX;
    o->skip -= skip;
    p += skip;
    n -= skip;
    if (n > bound - at) {
        blob_fail(o, BLOB_FAILED, ERR_UPSTREAM, "more bytes than announced", 0);
        unlock(b);
        return FETCH_STOP;
    }
    if (n == 0) {
        unlock(b);
        return FETCH_MORE;
    }
    unlock(b);

    hasher_update(o->hasher, p, n);
    if (o->storage == STORAGE_MEMORY) { /* it does not change any more, and only this thread writes */
        memcpy(o->bytes + at, p, n);
        lock(b);
        o->written += n;
        unlock(b);
        return FETCH_MORE;
    }
    if (o->gathered == NULL)
        o->gathered = mem_alloc(GATHER);
    while (n > 0) {
        size_t part = n < GATHER - o->n_gathered ? n : GATHER - o->n_gathered;
        memcpy(o->gathered + o->n_gathered, p, part);
        o->n_gathered += part;
        p += part;
        n -= part;
        if (o->n_gathered == GATHER && !fill_flush(o))
            return FETCH_STOP;
    }
    fill_gather(o);
    return FETCH_MORE;
}

static bool cache_wants(struct blobs *b, const struct blob *o);

/* All bytes are there. */
static void fill_complete(struct blob *o)
{
    struct blobs *b = o->blobs;
    struct digest got;
    char text[DIGEST_TEXT_MAX];

    hasher_final(o->hasher, &got);
    bool matches = digest_eq(&got, &o->digest);
    lock(b);
    if (!matches) {
        blob_fail(o, BLOB_MISMATCH, ERR_UPSTREAM, "the upstream's bytes do not match their digest", 0);
    } else if (o->state < BLOB_DONE) {
        o->size = o->written;
        o->has_size = true;
        o->state = BLOB_DONE;
        blob_tell(o);
        if (cache_wants(b, o)) {
            o->is_committing = true;
            job_put(&b->slow, JOB_COMMIT, o, -1, NULL);
        } else if (o->n_readers == 0) {
            flight_linger(o);
        }
    }
    unlock(b);
    if (!matches)
        log_limited(&log_mismatch, 1000, LOG_LEVEL_ERROR, "upstream %s, repository %s: the bytes of blob %s do not match their digest",
                    o->upstream_id, o->upstream_repository, digest_text(&o->digest, text));
}

static void on_fill_done(void *ctx, enum err err, const char *detail, unsigned retry_after_s)
{
    struct blob *o = ctx;
    struct blobs *b = o->blobs;

    o->op = NULL;
    (void)fill_flush(o); /* a failure makes the state say so */
    lock(b);
    bool over = o->state >= BLOB_DONE;
    bool whole = o->head_seen && (o->has_size ? o->written == o->size : err == ERR_OK);
    bool may_resume = o->head_seen && o->has_size && err != ERR_NOT_FOUND && err != ERR_CANCELED && o->tries < b->retries;
    o->is_paused = false;
    unlock(b);
    if (!over && whole) {
        fill_complete(o); /* the digest decides, not how the connection ended */
    } else if (!over && may_resume) {
        /* Many clients do not resume a broken blob (FACTS 6.2.6); we do it for them, where we stand, and the hash goes on. */
        lock(b);
        b->stats.resumed++;
        unlock(b);
        if (o->timer == NULL)
            o->timer = timer_new(o->owner->worker->loop, on_fill_timer, o);
        timer_set(o->timer, RESUME_WAIT_MS << o->tries);
        o->tries++;
        return;
    } else if (!over) {
        fill_fail(o, BLOB_FAILED, err == ERR_OK ? ERR_UPSTREAM : err, err == ERR_OK ? "the body ended early" : detail, retry_after_s);
    }
    fill_release(o);
}

static void fill_request(struct blob *o)
{
    static const struct upstream_blob_handlers handlers = {.on_head = on_fill_head, .on_body = on_fill_body, .on_done = on_fill_done};
    struct byte_range range = {0, 0};
    bool part = false;

    lock(o->blobs);
    if (o->head_seen && o->written > 0 && o->written < o->size) {
        range = (struct byte_range){.first = o->written, .last = o->size - 1};
        part = true;
    } else if (o->head_seen && o->written == 0) {
        o->head_seen = false; /* nothing came: from the start, as if for the first time. size and file stay */
    }
    o->skip = 0;
    unlock(o->blobs);
    o->op = upstream_blob(o->upstream, str_c(o->upstream_repository), &o->digest, part ? &range : NULL, false, &handlers, o);
    upstream_op_for(o->op, o->on_behalf);
}

static void fill_obey(struct blob *o, unsigned orders)
{
    struct blobs *b = o->blobs;

    if (!o->is_filling)
        return;
    if (orders & ORDER_CANCEL) {
        fill_release(o);
        return;
    }
    if (orders & ORDER_START)
        fill_begin(o);
    if (orders & ORDER_FLOW) {
        lock(b);
        bool resume = o->is_paused && o->storage != STORAGE_OPENING &&
                      (o->storage == STORAGE_BROKEN || !o->has_size || o->written - o->furthest <= b->low);
        if (resume)
            o->is_paused = false;
        unlock(b);
        if (resume && o->op != NULL)
            upstream_resume(o->op);
    }
}

/* ---- the index of the disk cache ------------------------------------------------------------------------------------ */

static struct cached **index_slot(struct blobs *b, const struct digest *d)
{
    struct cached **at = &b->index[digest_hash(d) & (b->n_index_buckets - 1)];

    while (*at != NULL && !digest_eq(&(*at)->digest, d))
        at = &(*at)->hash_next;
    return at;
}

static void index_grow(struct blobs *b)
{
    size_t n = b->n_index_buckets * 2;
    struct cached **bigger = mem_calloc(n, sizeof bigger[0]), *c;

    TAILQ_FOREACH(c, &b->lru, lru_link)
    {
        struct cached **slot = &bigger[digest_hash(&c->digest) & (n - 1)];
        c->hash_next = *slot;
        *slot = c;
    }
    mem_free(b->index);
    b->index = bigger;
    b->n_index_buckets = n;
}

static struct cached *index_add(struct blobs *b, const struct digest *d, uint64_t size, bool is_verified, bool first)
{
    struct cached *c = NEW(struct cached);

    if (b->stats.files >= b->n_index_buckets)
        index_grow(b);
    c->digest = *d;
    c->size = size;
    c->is_verified = is_verified;
    *index_slot(b, d) = c;
    if (first)
        TAILQ_INSERT_HEAD(&b->lru, c, lru_link);
    else
        TAILQ_INSERT_TAIL(&b->lru, c, lru_link);
    b->stats.files++;
    b->stats.bytes += size;
    return c;
}

static void idle_remove(struct blob *o)
{
    if (!o->is_idle)
        return;
    o->is_idle = false;
    o->blobs->n_idle--;
    TAILQ_REMOVE(&o->blobs->idle, o, idle_link);
}

static void cached_close(struct cached *c);

/* Nobody reads it just now. */
static void idle_put(struct blob *o)
{
    struct blobs *b = o->blobs;

    if (o->cached == NULL || o->is_idle || o->n_readers > 0)
        return;
    o->is_idle = true;
    TAILQ_INSERT_HEAD(&b->idle, o, idle_link);
    if (++b->n_idle > IDLE_OPEN_MAX)
        cached_close(TAILQ_LAST(&b->idle, idle_list)->cached);
}

/* The open file goes; who reads keeps it for as long as he reads. */
static void cached_close(struct cached *c)
{
    struct blob *o = c->blob;

    if (o == NULL)
        return;
    c->blob = NULL;
    o->cached = NULL;
    idle_remove(o);
    blob_unref(o);
}

static void index_remove(struct blobs *b, struct cached *c)
{
    struct cached **slot = index_slot(b, &c->digest);

    cached_close(c);
    AN(*slot == c);
    *slot = c->hash_next;
    TAILQ_REMOVE(&b->lru, c, lru_link);
    b->stats.files--;
    b->stats.bytes -= c->size;
    mem_free(c);
}

static void name_list_add(char ***list, size_t *n, const char *name)
{
    *list = mem_realloc(*list, (*n + 1) * sizeof **list);
    (*list)[(*n)++] = mem_strdup(name);
}

/* Make room for `more` bytes below the bound: the least recently used files leave the index; their names are for the caller to
 * unlink after unlock. False: it cannot be done, too much is on its way in. */
static bool cache_room(struct blobs *b, uint64_t more, char ***names, size_t *n)
{
    struct cached *c;

    if (more > b->max_bytes || b->reserved > b->max_bytes - more)
        return false;
    while (b->stats.bytes > b->max_bytes - more - b->reserved && (c = TAILQ_LAST(&b->lru, lru_list)) != NULL) {
        char name[NAME_MAX_LEN];
        cache_name(&c->digest, name);
        name_list_add(names, n, name);
        b->stats.evicted++;
        index_remove(b, c);
    }
    return true;
}

static void names_unlink(struct blobs *b, char **names, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        (void)!unlinkat(b->cache_fd, names[i], 0);
        mem_free(names[i]);
    }
    mem_free(names);
}

/* Is a verified blob to be kept? Its file lies in the cache's file system, or it is small and still in memory. */
static bool cache_wants(struct blobs *b, const struct blob *o)
{
    return b->cache_fd >= 0 && o->size <= b->max_bytes && (o->storage == STORAGE_MEMORY || o->temporary != NULL);
}

/* ---- helper threads -------------------------------------------------------------------------------------------------- */

static int spool_open(const char *dir)
{
    char name[4200];
    int fd = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);

    if (fd >= 0 || (errno != EOPNOTSUPP && errno != EISDIR && errno != EINVAL && errno != ENOENT))
        return fd;
    if (snprintf(name, sizeof name, "%s/pullgate-XXXXXX", dir) >= (int)sizeof name) {
        errno = ENAMETOOLONG;
        return -1;
    }
    fd = mkostemp(name, O_CLOEXEC);
    if (fd >= 0)
        unlink(name);
    return fd;
}

/* Claim the room: a disk that is full says so before a byte has gone to a client. */
static bool file_claim(int fd, uint64_t size)
{
    if (size == 0)
        return true;
    while (fallocate(fd, 0, 0, (off_t)size) != 0) {
        if (errno == EINTR)
            continue;
        return errno == EOPNOTSUPP || errno == ENOSYS;
    }
    return true;
}

static int temporary_open(struct blobs *b, uint64_t number, char **ret_name)
{
    char name[64];

    snprintf(name, sizeof name, "tmp/%llu", (unsigned long long)number);
    int fd = openat(b->cache_fd, name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd >= 0)
        *ret_name = mem_strdup(name);
    return fd;
}

/* quick: a file for a body that is about to come. */
static void job_spool(struct blobs *b, struct blob *o)
{
    char **names = NULL, *temporary = NULL;
    size_t n = 0;
    int fd = -1, error = 0;

    lock(b);
    uint64_t size = o->has_size ? o->size : 0, number = b->next_name++;
    bool cached = b->cache_fd >= 0 && cache_room(b, size, &names, &n);
    if (cached) {
        o->reserved = size;
        b->reserved += size;
    }
    bool wanted = o->state == BLOB_FILLING && o->n_readers > 0;
    unlock(b);
    names_unlink(b, names, n);
    if (wanted && cached) {
        fd = temporary_open(b, number, &temporary);
        if (fd >= 0 && !file_claim(fd, size)) {
            error = errno;
            close(fd);
            unlinkat(b->cache_fd, temporary, 0);
            MEM_FREE(temporary);
            fd = -1;
        } else if (fd < 0) {
            error = errno;
        }
        if (fd < 0)
            log_limited(&log_commit, 10000, LOG_LEVEL_WARN, "blob cache: no file of %llu bytes: %s", (unsigned long long)size, strerror(error));
    }
    if (wanted && fd < 0) {
        fd = spool_open(b->cfg->proxy.spool_path);
        if (fd >= 0 && !file_claim(fd, size)) {
            error = errno;
            close(fd);
            fd = -1;
        } else if (fd < 0) {
            error = errno;
        }
        if (fd < 0)
            log_limited(&log_unusable, 10000, LOG_LEVEL_ERROR, "proxy.spool_path %s: no file of %llu bytes (%s): blobs are streamed straight through, not shared",
                        b->cfg->proxy.spool_path, (unsigned long long)size, strerror(error));
    }
    lock(b);
    if (temporary == NULL) {
        b->reserved -= o->reserved;
        o->reserved = 0;
    }
    o->fd = fd;
    o->temporary = temporary;
    o->storage = fd >= 0 ? STORAGE_FILE : STORAGE_BROKEN;
    if (fd < 0 && wanted) {
        b->no_room_until_ms = clock_mono_ms() + NO_ROOM_MS;
        b->no_room_size = error == ENOSPC || error == EFBIG || error == EDQUOT ? size : 0;
        blob_fail(o, BLOB_UNUSABLE, ERR_UNAVAILABLE, "no file for the blob", 0);
    }
    blob_kick(o, fd >= 0 ? ORDER_FLOW : ORDER_CANCEL);
    unlock(b);
}

/* The file of c's blob is not what it should be. Under the lock; returns with the name to unlink. */
static void cached_drop(struct blobs *b, struct blob *o, char name[NAME_MAX_LEN])
{
    name[0] = 0;
    if (o->cached != NULL) {
        cache_name(&o->digest, name);
        b->stats.dropped_bad++;
        index_remove(b, o->cached);
    }
    blob_fail(o, BLOB_AGAIN, ERR_OK, "", 0);
}

/* quick: open a file of the cache for the first of its readers. */
static void job_open(struct blobs *b, struct blob *o)
{
    char name[NAME_MAX_LEN], text[DIGEST_TEXT_MAX];
    struct stat st;
    int error = 0;

    cache_name(&o->digest, name);
    int fd = openat(b->cache_fd, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        error = errno;
    else if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode))
        error = EIO;
    else
        (void)futimens(fd, NULL); /* the order of eviction outlives a restart; not ours to write is no reason to refuse */
    lock(b);
    o->fd = fd;
    if (error == EMFILE || error == ENFILE || error == ENOMEM) {
        struct cached *c = o->cached;
        if (c != NULL)
            cached_close(c);
        blob_fail(o, BLOB_UNUSABLE, ERR_UNAVAILABLE, "too many open files", 0);
        log_limited(&log_unusable, 10000, LOG_LEVEL_ERROR, "blob cache: %s", strerror(error));
        unlock(b);
        return;
    }
    if (error != 0 || (uint64_t)st.st_size != o->size) {
        cached_drop(b, o, name);
        unlock(b);
        log_warn("blob cache: %s dropped: %s", digest_text(&o->digest, text), error != 0 ? strerror(error) : "not of its size");
        if (name[0] != 0)
            (void)!unlinkat(b->cache_fd, name, 0);
        return;
    }
    o->storage = STORAGE_FILE;
    if (o->cached == NULL || o->cached->is_verified) {
        o->written = o->size;
        o->state = BLOB_DONE;
        idle_put(o);
    } else {
        o->state = BLOB_FILLING;
        o->hasher = hasher_new((enum digest_alg)o->digest.alg);
        job_put(&b->quick, JOB_VERIFY, o, -1, NULL);
    }
    blob_tell(o);
    unlock(b);
}

/* quick: a file of an earlier run is hashed before its end goes out, a slice at a time. */
static void job_verify(struct blobs *b, struct blob *o)
{
    char name[NAME_MAX_LEN], text[DIGEST_TEXT_MAX];
    uint64_t at = o->written, end = o->size; /* only this thread writes them */
    struct digest got;
    bool bad = false, whole = false;

    char *buffer = mem_alloc(READ_CHUNK);
    for (size_t done = 0; done < VERIFY_SLICE && at < end && !bad;) {
        ssize_t n = pread(o->fd, buffer, READ_CHUNK, (off_t)at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0 || (uint64_t)n > end - at) {
            bad = true;
            break;
        }
        hasher_update(o->hasher, buffer, (size_t)n);
        at += (uint64_t)n;
        done += (size_t)n;
    }
    mem_free(buffer);
    if (!bad && at == end) {
        hasher_final(o->hasher, &got);
        whole = digest_eq(&got, &o->digest);
        bad = !whole;
    }
    name[0] = 0;
    lock(b);
    o->written = at;
    if (bad) {
        cached_drop(b, o, name);
    } else if (whole) {
        o->state = BLOB_DONE;
        if (o->cached != NULL)
            o->cached->is_verified = true;
        idle_put(o);
        blob_tell(o);
    } else if (o->n_readers == 0) {
        if (o->cached != NULL)
            cached_close(o->cached);
        blob_fail(o, BLOB_AGAIN, ERR_OK, "", 0);
    } else {
        blob_tell(o);
        job_put(&b->quick, JOB_VERIFY, o, -1, NULL);
    }
    unlock(b);
    if (bad) {
        log_warn("blob cache: %s dropped: its bytes do not match", digest_text(&o->digest, text));
        if (name[0] != 0)
            (void)!unlinkat(b->cache_fd, name, 0);
    }
}

static bool cache_rename(struct blobs *b, const char *temporary, const char *name)
{
    char dir[NAME_MAX_LEN];

    if (renameat(b->cache_fd, temporary, b->cache_fd, name) == 0)
        return true;
    if (errno != ENOENT)
        return false;
    snprintf(dir, sizeof dir, "%.6s", name); /* "sha256" */
    (void)mkdirat(b->cache_fd, dir, 0700);
    snprintf(dir, sizeof dir, "%.9s", name); /* "sha256/ab" */
    (void)mkdirat(b->cache_fd, dir, 0700);
    return renameat(b->cache_fd, temporary, b->cache_fd, name) == 0;
}

/* slow: a verified blob becomes a file of the cache. No fsync: after a crash a name may stand for other bytes, and the next run hashes
 * every file before it believes it. */
static void job_commit(struct blobs *b, struct blob *o)
{
    char **names = NULL, *temporary = NULL, name[NAME_MAX_LEN];
    size_t n = 0;
    bool ok = false;

    lock(b);
    uint64_t number = b->next_name++;
    bool room = o->reserved == o->size;
    if (!room) { /* small ones, and those whose size came last */
        b->reserved -= o->reserved;
        o->reserved = 0;
        room = cache_room(b, o->size, &names, &n);
        if (room) {
            o->reserved = o->size;
            b->reserved += o->size;
        }
    }
    unlock(b);
    names_unlink(b, names, n);
    if (room && o->storage == STORAGE_MEMORY) {
        int fd = temporary_open(b, number, &temporary);
        ok = fd >= 0 && file_write_at(fd, (struct str){o->bytes, (size_t)o->size}, 0);
        if (fd >= 0)
            close(fd);
    } else if (room) {
        temporary = o->temporary; /* nobody else looks at it while the job holds the blob */
        ok = true;
    }
    cache_name(&o->digest, name);
    ok = ok && cache_rename(b, temporary, name);
    if (!ok && room)
        log_limited(&log_commit, 10000, LOG_LEVEL_WARN, "blob cache: a blob of %llu bytes could not be kept: %s", (unsigned long long)o->size,
                    strerror(errno));
    if (!ok && temporary != NULL)
        (void)!unlinkat(b->cache_fd, temporary, 0);
    if (temporary != NULL)
        mem_free(temporary);
    else if (o->temporary != NULL) {
        (void)!unlinkat(b->cache_fd, o->temporary, 0);
        mem_free(o->temporary);
    }

    lock(b);
    o->is_committing = false;
    o->temporary = NULL;
    b->reserved -= o->reserved;
    o->reserved = 0;
    if (ok) {
        struct cached *old = *index_slot(b, &o->digest);
        if (old != NULL)
            index_remove(b, old); /* its name is ours since the rename */
        struct cached *c = index_add(b, &o->digest, o->size, true, true);
        c->blob = o;
        o->cached = c;
        o->refs++;
        idle_put(o);
        flight_remove(o);
    } else if (o->n_readers == 0) {
        flight_linger(o);
    }
    unlock(b);
}

static void job_run(struct blobs *b, struct job *j)
{
    switch (j->kind) {
    case JOB_SPOOL:
        job_spool(b, j->blob);
        break;
    case JOB_OPEN:
        job_open(b, j->blob);
        break;
    case JOB_VERIFY:
        job_verify(b, j->blob);
        break;
    case JOB_COMMIT:
        job_commit(b, j->blob);
        break;
    case JOB_DISPOSE:
        if (j->fd >= 0)
            close(j->fd);
        if (j->name != NULL)
            (void)!unlinkat(b->cache_fd, j->name, 0);
        mem_free(j->name);
        break;
    }
}

/* ---- the cache directory: its lock, its scan -------------------------------------------------------------------------- */

struct found {
    struct digest digest;
    uint64_t size;
    int64_t mtime;
};

static int found_newest_first(const void *a, const void *b)
{
    const struct found *x = a, *y = b;
    return x->mtime < y->mtime ? 1 : x->mtime > y->mtime ? -1 : 0;
}

/* Regular files of fd whose names are no digests of this place go; directories and the rest are left alone. */
static void scan_dir(int dir, const char *alg, const char *prefix, struct found **list, size_t *n, size_t *cap)
{
    DIR *d = fdopendir(dir);
    struct dirent *e;
    char text[NAME_MAX_LEN];
    struct stat st;

    if (d == NULL) {
        close(dir);
        return;
    }
    while ((e = readdir(d)) != NULL) {
        struct digest digest;
        if (e->d_name[0] == '.' || fstatat(dirfd(d), e->d_name, &st, AT_SYMLINK_NOFOLLOW) != 0 || S_ISDIR(st.st_mode))
            continue;
        bool good = false;
        if (alg != NULL && S_ISREG(st.st_mode) && strncmp(e->d_name, prefix, 2) == 0 &&
            snprintf(text, sizeof text, "%s:%s", alg, e->d_name) < (int)sizeof text)
            good = digest_parse(str_c(text), &digest, NULL) == ERR_OK;
        if (!good) {
            (void)!unlinkat(dirfd(d), e->d_name, 0);
            continue;
        }
        if (*n == *cap) {
            *cap = *cap == 0 ? 256 : *cap * 2;
            *list = mem_realloc(*list, *cap * sizeof **list);
        }
        (*list)[(*n)++] = (struct found){.digest = digest, .size = (uint64_t)st.st_size, .mtime = (int64_t)st.st_mtime};
    }
    closedir(d);
}

/* slow: take the directory into use. Another proxy may hold it (a predecessor that drains); then later. */
static void cache_take(struct blobs *b)
{
    const char *path = b->cfg->proxy.blob_cache.path;
    struct found *list = NULL;
    size_t n = 0, cap = 0, n_names = 0;
    char **names = NULL;
    const char *what = "open";

    (void)mkdir(path, 0700);
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        what = "lock (another process uses it)";
        if (flock(fd, LOCK_EX | LOCK_NB) == 0) {
            what = "write to";
            if ((mkdirat(fd, "tmp", 0700) == 0 || errno == EEXIST) && faccessat(fd, "tmp", W_OK | X_OK, 0) == 0)
                what = NULL;
        }
    }
    if (what != NULL) {
        log_limited(&log_cache, 60000, LOG_LEVEL_ERROR, "proxy.blob_cache.path %s: cannot %s: %s; blobs are not kept until that changes", path, what,
                    strerror(errno));
        if (fd >= 0)
            close(fd);
        return;
    }
    int tmp = openat(fd, "tmp", O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (tmp >= 0)
        scan_dir(tmp, NULL, "", &list, &n, &cap); /* what an earlier run left unfinished */
    /* Usable from here on: temporary names are numbered by us alone. The files found come in when they are known all together. */
    lock(b);
    b->cache_fd = fd;
    unlock(b);

    static const char *const algs[] = {"sha256", "sha512"};
    for (size_t i = 0; i < sizeof algs / sizeof algs[0]; i++) {
        for (unsigned x = 0; x < 256; x++) {
            char sub[16], prefix[3];
            snprintf(prefix, sizeof prefix, "%02x", x);
            snprintf(sub, sizeof sub, "%s/%s", algs[i], prefix);
            int dir = openat(fd, sub, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
            if (dir >= 0)
                scan_dir(dir, algs[i], prefix, &list, &n, &cap);
            else if (errno == ENOENT && x == 0 && faccessat(fd, algs[i], F_OK, 0) != 0)
                break;
        }
    }
    if (n > 0)
        qsort(list, n, sizeof list[0], found_newest_first);
    lock(b);
    for (size_t i = 0; i < n; i++) {
        if (*index_slot(b, &list[i].digest) == NULL)
            index_add(b, &list[i].digest, list[i].size, false, false);
    }
    (void)cache_room(b, 0, &names, &n_names);
    uint64_t files = b->stats.files, bytes = b->stats.bytes;
    unlock(b);
    names_unlink(b, names, n_names);
    mem_free(list);
    log_info("blob cache %s: %llu files, %llu bytes", path, (unsigned long long)files, (unsigned long long)bytes);
}

static void *helper_main(void *arg)
{
    struct helper *h = arg;
    struct blobs *b = h->blobs;
    struct job *j;

    lock(b);
    for (;;) {
        if (h->keeps_cache && b->cache_fd < 0 && !b->stop) {
            unlock(b);
            cache_take(b);
            lock(b);
        }
        while ((j = TAILQ_FIRST(&h->jobs)) != NULL) {
            TAILQ_REMOVE(&h->jobs, j, link);
            unlock(b);
            job_run(b, j);
            lock(b);
            if (j->blob != NULL)
                blob_unref(j->blob);
            mem_free(j);
        }
        if (b->stop)
            break;
        uint64_t wait_ms = h == &b->quick ? linger_expire(b) : h->keeps_cache && b->cache_fd < 0 ? CACHE_RETRY_MS : UINT64_MAX;
        if (!TAILQ_EMPTY(&h->jobs))
            continue; /* files to close */
        if (wait_ms != UINT64_MAX) {
            struct timespec until;
            clock_gettime(CLOCK_MONOTONIC, &until);
            until.tv_sec += (time_t)(wait_ms / 1000);
            until.tv_nsec += (long)(wait_ms % 1000) * 1000000;
            if (until.tv_nsec >= 1000000000) {
                until.tv_sec++;
                until.tv_nsec -= 1000000000;
            }
            pthread_cond_timedwait(&h->wake, &b->lock, &until);
        } else {
            pthread_cond_wait(&h->wake, &b->lock);
        }
    }
    unlock(b);
    return NULL;
}

static void helper_start(struct blobs *b, struct helper *h, bool keeps_cache)
{
    pthread_condattr_t attr;
    sigset_t all, old;

    h->blobs = b;
    h->keeps_cache = keeps_cache;
    TAILQ_INIT(&h->jobs);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&h->wake, &attr);
    pthread_condattr_destroy(&attr);
    sigfillset(&all); /* signals are the main thread's */
    sandbox_unblock(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int rc = pthread_create(&h->thread, NULL, helper_main, h);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    errno = rc;
    NEED(rc == 0, "its blob cache's threads");
}

/* ---- readers ----------------------------------------------------------------------------------------------------------- */

bool blobs_size(struct blobs *b, const struct blob_key *k, uint64_t *ret)
{
    struct blob *o;
    bool known = false;

    lock(b);
    struct cached *c = *index_slot(b, &k->digest);
    if (c != NULL) {
        *ret = c->size;
        known = true;
    } else if ((o = flight_find(b, k)) != NULL && o->has_size) {
        *ret = o->size;
        known = true;
    }
    unlock(b);
    return known;
}

static struct blob_reader *reader_new(struct blob *o, struct side *s, blob_changed *cb, void *ctx)
{
    struct blob_reader *r = NEW(struct blob_reader);
    struct port *p;

    LIST_FOREACH(p, &o->ports, blob_link)
    {
        if (p->side == s)
            break;
    }
    if (p == NULL) {
        p = NEW(struct port);
        p->blob = o;
        p->side = s;
        o->refs++;
        LIST_INSERT_HEAD(&o->ports, p, blob_link);
    }
    r->port = p;
    r->cb = cb;
    r->ctx = ctx;
    r->from_cache = o->state == BLOB_DONE || o->upstream_id == NULL;
    LIST_INSERT_HEAD(&p->readers, r, link);
    o->n_readers++;
    idle_remove(o);
    linger_remove(o);
    return r;
}

/* The cached file of the digest, open or about to be. */
static struct blob *cached_blob(struct blobs *b, const struct digest *d)
{
    struct cached *c = *index_slot(b, d);

    if (c == NULL)
        return NULL;
    if (TAILQ_FIRST(&b->lru) != c) {
        TAILQ_REMOVE(&b->lru, c, lru_link);
        TAILQ_INSERT_HEAD(&b->lru, c, lru_link);
    }
    if (c->blob == NULL) {
        struct blob *o = blob_new(b, d);
        o->refs = 1;
        o->has_size = true;
        o->size = c->size;
        o->cached = c;
        c->blob = o;
        job_put(&b->quick, JOB_OPEN, o, -1, NULL);
    }
    return c->blob;
}

struct blob_reader *blob_join_complete(struct blobs *b, struct worker *w, const struct blob_key *k, blob_changed *cb, void *ctx)
{
    struct blob_reader *r = NULL;

    lock(b);
    struct blob *o = cached_blob(b, &k->digest);
    if (o == NULL && ((o = flight_find(b, k)) == NULL || o->state != BLOB_DONE))
        o = NULL;
    if (o != NULL) {
        r = reader_new(o, side_of(b, w), cb, ctx);
        b->stats.hits++;
    }
    unlock(b);
    return r;
}

struct blob_reader *blob_join(struct blobs *b, struct worker *w, const struct blob_key *k, blob_changed *cb, void *ctx)
{
    bool begin = false;

    lock(b);
    struct side *s = side_of(b, w);
    struct blob *o = cached_blob(b, &k->digest);
    if (o == NULL)
        o = flight_find(b, k);
    if (o == NULL && k->size_hint > BLOBS_WITHHELD && k->size_hint >= b->no_room_size && b->no_room_until_ms != 0 &&
        clock_mono_ms() < b->no_room_until_ms) {
        b->stats.unusable++;
        unlock(b);
        return NULL;
    }
    if (o == NULL) {
        o = blob_new(b, &k->digest);
        o->upstream_id = str_dup(k->upstream_id);
        o->upstream_repository = str_dup(k->upstream_repository);
        o->size_hint = k->size_hint;
        o->on_behalf = k->owner;
        o->hasher = hasher_new((enum digest_alg)k->digest.alg);
        o->refs = 2; /* the table, the filler */
        o->in_flights = true;
        LIST_INSERT_HEAD(flight_bucket(b, &k->digest), o, flight_link);
        o->is_filling = true;
        fill_give(o, s);
        b->stats.in_flight++;
        b->stats.misses++;
        begin = true;
    } else if (o->state == BLOB_DONE || o->upstream_id == NULL) {
        b->stats.hits++;
    } else {
        b->stats.joined++;
    }
    struct blob_reader *r = reader_new(o, s, cb, ctx);
    unlock(b);
    if (begin)
        fill_begin(o);
    return r;
}

void blob_look(struct blob_reader *r, struct blob_view *ret)
{
    struct blob *o = r->port->blob;

    lock(o->blobs);
    *ret = (struct blob_view){
        .state = o->state,
        .has_size = o->has_size,
        .from_cache = r->from_cache,
        .size = o->size,
        .fd = o->storage == STORAGE_FILE ? o->fd : -1,
        .bytes = o->bytes,
        .err = o->err,
        .detail = o->detail,
        .retry_after_s = o->retry_after_s,
        .location = o->location,
    };
    if (o->state == BLOB_DONE) {
        ret->available = o->size;
    } else if (o->state == BLOB_FILLING && o->has_size && o->size > BLOBS_WITHHELD && o->storage == STORAGE_FILE) {
        uint64_t bound = o->size - BLOBS_WITHHELD;
        ret->available = o->written < bound ? o->written : bound;
    }
    unlock(o->blobs);
}

void blob_advance(struct blob_reader *r, uint64_t position)
{
    struct blob *o = r->port->blob;

    lock(o->blobs);
    if (position > o->furthest) {
        o->furthest = position;
        if (o->is_paused && o->written - (position < o->written ? position : o->written) <= o->blobs->low)
            blob_kick(o, ORDER_FLOW);
    }
    unlock(o->blobs);
}

void blob_leave(struct blob_reader **pr)
{
    struct blob_reader *r = *pr;
    bool release = false;

    if (r == NULL)
        return;
    *pr = NULL;
    struct port *p = r->port;
    struct blob *o = p->blob;
    struct blobs *b = o->blobs;

    if (p->is_walked && p->next == r)
        p->next = LIST_NEXT(r, link);
    LIST_REMOVE(r, link);
    mem_free(r);
    lock(b);
    o->refs++;
    if (--o->n_readers == 0) {
        if (o->upstream_id != NULL && o->state < BLOB_DONE) {
            blob_fail(o, BLOB_FAILED, ERR_CANCELED, "nobody reads it any more", 0);
            o->orders = 0;
            if (o->owner == p->side)
                release = true;
            else
                blob_kick(o, ORDER_CANCEL);
        } else if (o->cached != NULL && o->state == BLOB_DONE) {
            idle_put(o);
        } else if (o->state == BLOB_DONE && !o->is_committing) {
            flight_linger(o);
        }
    }
    if (LIST_EMPTY(&p->readers) && !p->is_walked)
        port_free(p);
    unlock(b);
    if (release)
        fill_release(o);
    lock(b);
    blob_unref(o);
    unlock(b);
}

/* ---- life ---------------------------------------------------------------------------------------------------------------- */

void blobs_configure(struct blobs *b, const struct config *cfg)
{
    lock(b);
    b->retries = (unsigned)(cfg->limits.upstream_retries < 10 ? cfg->limits.upstream_retries : 10);
    unlock(b);
}

struct blobs *blobs_new(const struct config *cfg, struct error *reterr)
{
    struct blobs *b = NEW(struct blobs);

    (void)reterr;
    signal(SIGXFSZ, SIG_IGN);
    b->cfg = config_ref((struct config *)(uintptr_t)cfg);
    b->high = cfg->limits.buffer_high;
    b->low = cfg->limits.buffer_low < b->high ? cfg->limits.buffer_low : b->high / 2;
    b->max_bytes = cfg->proxy.blob_cache.max_bytes;
    b->retries = (unsigned)(cfg->limits.upstream_retries < 10 ? cfg->limits.upstream_retries : 10);
    b->cache_fd = -1;
    b->flights = mem_calloc(FLIGHT_BUCKETS, sizeof b->flights[0]);
    b->n_index_buckets = INDEX_BUCKETS_MIN;
    b->index = mem_calloc(b->n_index_buckets, sizeof b->index[0]);
    TAILQ_INIT(&b->lru);
    TAILQ_INIT(&b->idle);
    TAILQ_INIT(&b->lingering);
    b->linger_ms = cfg->proxy.spool_keep_ms;
    pthread_mutex_init(&b->lock, NULL);
    helper_start(b, &b->quick, false);
    helper_start(b, &b->slow, cfg->proxy.blob_cache.path != NULL && cfg->proxy.blob_cache.path[0] != 0);
    return b;
}

void blobs_worker_leave(struct blobs *b, struct worker *w)
{
    struct blob *o;
    struct port *p;

    lock(b);
    struct side *s = side_of(b, w);
    unlock(b);
    side_do(s); /* what was ordered before */

    lock(b);
    while ((o = LIST_FIRST(&s->fills)) != NULL) { /* also those that have come to their end and are not cleared away yet */
        o->refs++;
        unlock(b);
        upstream_cancel(&o->op);
        upstreams_cancel(&o->get);
        timer_free(&o->timer);
        upstream_unref(&o->upstream);
        (void)fill_flush(o);
        if (o->is_gathering)
            TAILQ_REMOVE(&s->gathering, o, gather_link);
        o->is_gathering = false;
        lock(b);
        if (o->is_kicked) { /* an order that came meanwhile is for a thread that is no longer in charge */
            TAILQ_REMOVE(&s->kicked, o, kick_link);
            o->is_kicked = false;
            blob_unref(o);
        }
        o->orders = 0;
        o->is_paused = false;
        LIST_FOREACH(p, &o->ports, blob_link)
        {
            if (p->side != s && p->side->loop != NULL)
                break;
        }
        if (p != NULL && o->state < BLOB_DONE) {
            fill_give(o, p->side);
            blob_kick(o, ORDER_START);
        } else {
            fill_give(o, NULL);
            o->is_filling = false;
            blob_fail(o, BLOB_FAILED, ERR_UNAVAILABLE, "the proxy is going down", 0);
            blob_unref(o); /* the filler's */
        }
        blob_unref(o);
    }
    s->loop = NULL; /* nothing is handed to this side from here on */
    unlock(b);
}

unsigned *blobs_streams(struct blobs *b, struct worker *w)
{
    lock(b);
    struct side *s = side_of(b, w);
    unlock(b);
    return &s->streams;
}

void blobs_stats(struct blobs *b, struct blobs_stats *ret)
{
    lock(b);
    *ret = b->stats;
    unlock(b);
}

void blobs_free(struct blobs **pb)
{
    struct blobs *b = *pb;
    struct cached *c;

    if (b == NULL)
        return;
    *pb = NULL;
    lock(b);
    for (size_t i = 0; i < FLIGHT_BUCKETS; i++) { /* none, when every worker has left */
        struct blob *o;
        while ((o = LIST_FIRST(&b->flights[i])) != NULL)
            flight_remove(o);
    }
    for (size_t i = 0; i < b->n_sides; i++) {
        struct side *s = b->sides[i];
        struct blob *o;
        while (s != NULL && (o = TAILQ_FIRST(&s->kicked)) != NULL) {
            TAILQ_REMOVE(&s->kicked, o, kick_link);
            blob_unref(o);
        }
    }
    b->stop = true;
    pthread_cond_signal(&b->quick.wake);
    pthread_cond_signal(&b->slow.wake);
    unlock(b);
    pthread_join(b->slow.thread, NULL);
    pthread_join(b->quick.thread, NULL);
    while ((c = TAILQ_FIRST(&b->lru)) != NULL)
        index_remove(b, c);
    /* what is left to dispose of */
    struct job *j;
    while ((j = TAILQ_FIRST(&b->quick.jobs)) != NULL) {
        TAILQ_REMOVE(&b->quick.jobs, j, link);
        job_run(b, j);
        mem_free(j);
    }
    for (size_t i = 0; i < b->n_sides; i++) {
        struct side *s = b->sides[i];
        if (s != NULL && (s->posted || s->deferred))
            s->blobs = NULL; /* its letters are still in the loop, the last frees it */
        else
            mem_free(s);
    }
    if (b->cache_fd >= 0)
        close(b->cache_fd);
    pthread_cond_destroy(&b->quick.wake);
    pthread_cond_destroy(&b->slow.wake);
    pthread_mutex_destroy(&b->lock);
    mem_free(b->sides);
    mem_free(b->flights);
    mem_free(b->index);
    config_unref(&b->cfg);
    mem_free(b);
}
