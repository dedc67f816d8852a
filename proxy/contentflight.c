/* The work that fills a repository: one flight for one piece of it, in a table, with a list of who waits. */
#include "contentflight.h"

#include <stdio.h>
#include <string.h>

#include "pullgate/clock.h"
#include "pullgate/jv.h"
#include "pullgate/log.h"
#include "pullgate/mem.h"
#include "pullgate/projection.h"

#include "upstreams.h"
#include "worker.h"

#define FLIGHT_MAGIC 0x0f11687du

static const size_t REFERRERS_BYTES_MAX = 4u << 20; /* merged referrers documents a repository */
static const uint64_t NO_REFERRERS_MS = 60000;      /* an upstream without the API is asked again after this */
static const char CLOSURE_LIFE_S[] = "604800";      /* a closure in Redis, 7 days */
enum { ROOTS_SETTLED_AT_ONCE = 16 };                /* looked at when one manifest comes in */
enum { PARTS = 8 };                                 /* manifests fetched at once for one closure */

enum flight_kind { FLIGHT_TAG, FLIGHT_MANIFEST, FLIGHT_CLOSURE, FLIGHT_LIST, FLIGHT_REFERRERS };

struct part { /* of a closure: one manifest being fetched */
    struct waiter w;
    struct flight *of, *on;
    struct digest digest;
};

struct flight {
    unsigned magic;
    struct flight *chain;
    struct repo *repo; /* referenced */
    enum flight_kind kind;
    uint64_t hash;
    char *tag;
    struct digest digest; /* MANIFEST, CLOSURE: the root's; REFERRERS: the subject */
    struct waiters waiters;

    struct upstreams_op *getting;
    struct upstream *up; /* referenced */
    struct upstream_op *op;
    struct cache_op *cached;
    uint64_t owner;  /* the customer who was first */
    bool want_bytes; /* TAG: GET, not HEAD */
    bool asked_upstream;
    bool ended;
    struct flight *next_kicked;

    struct part parts[PARTS]; /* CLOSURE */
    uint32_t cursor;
    enum err err;
    char detail[200];
    unsigned retry_after_s;

    struct jv *merged; /* REFERRERS: descriptors so far */
    struct waiter sub;
    struct flight *on;
};

enum { FLIGHT_BUCKETS = 512 };

struct flights {
    struct repos *rs;
    struct flight *table[FLIGHT_BUCKETS]; /* by repository and key, chained */
    struct timer *kick;                   /* runs what must not run inside the call that started it */
    struct flight *kicked;
    unsigned closures; /* ended, counts for the looks at the bounds */
};

struct flights *flights_new(struct repos *rs)
{
    struct flights *fl = NEW(struct flights);
    fl->rs = rs;
    return fl;
}

/* ---- waiters ---------------------------------------------------------------------------------- */

void waiter_add(struct waiters *l, struct waiter *w, waiter_fn *fn, void *ctx)
{
    *w = (struct waiter){.prev = l->last, .fn = fn, .ctx = ctx};
    if (l->last)
        l->last->next = w;
    else
        l->first = w;
    l->last = w;
}

void waiter_leave(struct waiters *l, struct waiter *w)
{
    if (w->prev)
        w->prev->next = w->next;
    else
        l->first = w->next;
    if (w->next)
        w->next->prev = w->prev;
    else
        l->last = w->prev;
    w->prev = w->next = NULL;
}

struct waiter *waiter_pop(struct waiters *l)
{
    struct waiter *w = l->first;
    if (w)
        waiter_leave(l, w);
    return w;
}

void repo_leave(struct flight *f, struct waiter *w)
{
    waiter_leave(&f->waiters, w);
}

/* ---- flights ---------------------------------------------------------------------------------- */

static struct flight *flight_of(void *ctx)
{
    struct flight *f = ctx;
    AN(f->magic == FLIGHT_MAGIC);
    return f;
}

static uint64_t flight_hash(const struct repo *r, enum flight_kind kind, struct str tag, const struct digest *d)
{
    uint64_t h = (uint64_t)(uintptr_t)r * UINT64_C(0x9e3779b97f4a7c15) + (uint64_t)kind;
    return h ^ (d ? digest_hash(d) : str_hash(tag));
}

static struct flight *flight_find(struct repo *r, enum flight_kind kind, struct str tag, const struct digest *d, uint64_t hash)
{
    for (struct flight *f = repos_flights(r->repos)->table[hash % FLIGHT_BUCKETS]; f; f = f->chain)
        if (f->hash == hash && f->repo == r && f->kind == kind && (d ? digest_eq(&f->digest, d) : str_eq_c(tag, f->tag)))
            return f;
    return NULL;
}

static struct flight *flight_new(struct repo *r, enum flight_kind kind, struct str tag, const struct digest *d, uint64_t hash)
{
    struct flight *f = NEW(struct flight);
    f->magic = FLIGHT_MAGIC;
    f->repo = repo_ref(r);
    f->kind = kind;
    f->hash = hash;
    f->owner = repos_worker(r->repos)->on_behalf;
    f->tag = str_dup(tag);
    if (d)
        f->digest = *d;
    f->chain = repos_flights(r->repos)->table[hash % FLIGHT_BUCKETS];
    repos_flights(r->repos)->table[hash % FLIGHT_BUCKETS] = f;
    return f;
}

/* The one that is under way already, or a new one, which the caller has to start. */
static struct flight *flight_join(struct repo *r, enum flight_kind kind, struct str tag, const struct digest *d, bool *ret_new)
{
    uint64_t h = flight_hash(r, kind, tag, d);
    struct flight *f = flight_find(r, kind, tag, d, h);
    *ret_new = !f;
    return f ? f : flight_new(r, kind, tag, d, h);
}

static void flight_unlink(struct flight *f)
{
    struct flight **at = &repos_flights(f->repo->repos)->table[f->hash % FLIGHT_BUCKETS];
    while (*at != f)
        at = &(*at)->chain;
    *at = f->chain;
    f->chain = NULL;
}

static void flight_destroy(struct flight *f)
{
    struct repos *rs = f->repo->repos;
    bool look = f->kind == FLIGHT_CLOSURE && ++repos_flights(rs)->closures % 64 == 0;
    upstream_unref(&f->up);
    repo_unref(&f->repo);
    jv_free(f->merged);
    mem_free(f->tag);
    f->magic = 0;
    mem_free(f);
    if (look)
        repos_shrink(rs);
}

/* The only end of a flight: everybody who waits is told, then it is gone. */
static void flight_end(struct flight *f, enum err err, const char *detail, unsigned retry_after_s, struct blob_bytes *manifest)
{
    struct flight_end e = {err, detail ? detail : "", retry_after_s, manifest, f->asked_upstream};
    struct waiter *w;
    AN(!f->ended);
    f->ended = true;
    flight_unlink(f); /* whoever asks from inside a callback starts anew */
    while ((w = waiter_pop(&f->waiters)))
        w->fn(w->ctx, &e);
    flight_destroy(f);
}

static void flight_go(struct flight *f);

static void on_upstream(void *ctx, enum err err, struct upstream *u)
{
    struct flight *f = flight_of(ctx);
    f->getting = NULL;
    if (err) {
        flight_end(f, err, "the upstream's configuration is not to be had", 0, NULL);
        return;
    }
    f->up = upstream_ref(u);
    flight_go(f);
}

static void flight_get_upstream(struct flight *f)
{
    f->asked_upstream = true;
    f->getting = upstreams_get(repos_worker(f->repo->repos)->upstreams, str_c(f->repo->upstream_id), on_upstream, f);
}

/* ---- manifests -------------------------------------------------------------------------------- */

static bool needs_proof(struct repo *r, uint32_t node)
{
    uint32_t root = closureindex_root_at(r->index, node);
    if (root == CI_NONE)
        return false;
    const struct ci_root *cr = closureindex_root(r->index, root);
    for (uint32_t i = 0; i < cr->n_subjects; i++)
        if (!cr->subjects[i].proven)
            return true;
    return false;
}

static void closure_store(struct repo *r, uint32_t root)
{
    struct worker *w = repos_worker(r->repos);
    struct ci_root *cr = closureindex_root(r->index, root);
    if (cr->stored || !w->cache || !cache_is_up(w->cache) || !w->proxy)
        return;
    struct closure c = {0};
    struct node own;
    struct strbuf key = {0}, payload = {0}, value = {0};
    closureindex_node(r->index, cr->node, &own);
    closureindex_flat(r->index, root, &c);
    projection_closure_key(str_c(r->repository_id), &own.digest, &key);
    projection_closure_print(&c, clock_now_s(), &payload);
    projection_wrap(w->proxy->keys, sb_str(&key), 0, sb_str(&payload), &value);
    struct str argv[] = {S("SET"), sb_str(&key), sb_str(&value), S("EX"), str_c(CLOSURE_LIFE_S)};
    cache_command(w->cache, argv, 5, NULL, NULL);
    cr->stored = true;
    sb_free(&key);
    sb_free(&payload);
    sb_free(&value);
    closure_free(&c);
}

/* Nothing of the root is missing any more: it is complete, and of use to the other workers. */
static bool root_settle(struct repo *r, uint32_t root)
{
    bool whole;
    if (!closureindex_settle(r->index, root, &whole))
        return false;
    if (whole)
        closure_store(r, root);
    else
        closureindex_root(r->index, root)->recheck_ms = repos_now_ms(r->repos) + repos_worker(r->repos)->cfg->cache.tag_freshness_ms + 1;
    return true;
}

static void roots_settle(struct repo *r, uint32_t node)
{
    unsigned looked = 0;
    for (uint32_t root = closureindex_first(r->index, node, 0, NULL, 0, true); root != CI_NONE && looked < ROOTS_SETTLED_AT_ONCE;
         root = closureindex_first(r->index, node, root + 1, NULL, 0, true)) {
        if (closureindex_root(r->index, root)->complete)
            continue;
        looked++;
        root_settle(r, root);
    }
}

/* Verified bytes into the index: every edge of theirs, or the mark that they have none that count. */
static enum err document_take(struct repo *r, const struct digest *d, struct str bytes, struct str content_type, enum media_type *ret_mt,
                              struct error *reterr)
{
    struct manifest *m = NULL;
    struct node own = {0};
    uint32_t node = closureindex_find(r->index, NODE_MANIFEST, d);
    enum err e = manifest_parse(bytes, content_type, &m, reterr);

    if (node != CI_NONE)
        closureindex_node(r->index, node, &own);
    if (!e && own.media_type != MEDIA_UNKNOWN && own.media_type != m->media_type) {
        /* 1.6.8: a document is what the descriptor that led to it says, or nothing */
        e = error_set(reterr, ERR_INVALID, "the manifest is a %s, its descriptor says %s", media_type_text(m->media_type),
                      media_type_text(own.media_type));
        manifest_free(m);
    }
    if (e) {
        if (node != CI_NONE && closureindex_state(r->index, node) != CI_LOADED)
            closureindex_set_state(r->index, node, CI_REFUSED);
        return e;
    }
    if (node != CI_NONE) {
        closureindex_load(r->index, node, m, bytes.n);
        roots_settle(r, node);
    }
    *ret_mt = m->media_type;
    manifest_free(m);
    return ERR_OK;
}

static struct blob_bytes *manifest_accept(struct repo *r, const struct digest *d, struct str bytes, struct str content_type,
                                          enum err *ret_err, struct error *reterr)
{
    enum media_type mt = MEDIA_UNKNOWN;
    *ret_err = document_take(r, d, bytes, content_type, &mt, reterr);
    if (*ret_err)
        return NULL;
    struct blob_bytes *b = manifestcache_put(repos_manifests(r->repos), d, mt, bytes);
    if (!b)
        *ret_err = error_set(reterr, ERR_UNAVAILABLE, "no memory for a manifest of %zu bytes", bytes.n);
    return b;
}

/* Nothing but a grant by digest leads there: whether this repository has it, only its upstream can say. The bytes in memory may be
 * of another repository. */
static bool only_granted(struct repo *r, uint32_t node)
{
    uint32_t root = closureindex_root_at(r->index, node);
    if (root == CI_NONE || closureindex_state(r->index, node) == CI_LOADED)
        return false;
    const struct ci_root *cr = closureindex_root(r->index, root);
    return cr->n_subjects == 0 && cr->n_tags == 1 && r->tags[cr->tags[0]]->name.n == 0;
}

struct blob_bytes *repo_manifest_held(struct repo *r, const struct digest *d, enum err *ret_err)
{
    struct blob_bytes *b = manifestcache_get(repos_manifests(r->repos), d);
    uint32_t node;
    *ret_err = ERR_OK;
    if (!b)
        return NULL;
    node = closureindex_find(r->index, NODE_MANIFEST, d);
    if (node != CI_NONE && only_granted(r, node))
        return NULL;
    if (node != CI_NONE && (closureindex_state(r->index, node) != CI_LOADED || needs_proof(r, node))) {
        enum media_type mt;
        struct error why;
        if (document_take(r, d, (struct str){b->bytes, b->n}, str_c(media_type_text(b->media_type)), &mt, &why)) {
            log_debug("manifest of %s: %s", r->name, why.text);
            *ret_err = ERR_UPSTREAM;
            return NULL;
        }
    }
    return b;
}

/* What the registry called it, or, where it said nothing of use, what the upstream's adapter took it for. */
static struct str type_of(const struct upstream_manifest *m)
{
    return media_type_parse(m->content_type) != MEDIA_UNKNOWN ? m->content_type : str_c(media_type_text(m->media_type));
}

/* A document that is not served, now or later, is an answer; a failing upstream is none. */
static enum err answer_of(enum err err, const struct upstream_manifest *m)
{
    if (err == ERR_TOO_LARGE)
        return ERR_INVALID;
    return err == ERR_UPSTREAM && m && m->media_type == MEDIA_SCHEMA1 ? ERR_INVALID : err;
}

static void on_manifest(void *ctx, enum err err, const struct upstream_manifest *m, const char *detail, unsigned retry_after_s)
{
    struct flight *f = flight_of(ctx);
    struct repo *r = f->repo;
    uint32_t node = closureindex_find(r->index, NODE_MANIFEST, &f->digest);
    struct blob_bytes *b = NULL;
    struct error why = {0};

    f->op = NULL;
    err = answer_of(err, m);
    if (!err && (m->status == 304 || !digest_eq(&m->digest, &f->digest)))
        err = error_set(&why, ERR_UPSTREAM, "the manifest is not what was asked for");
    if ((err == ERR_NOT_FOUND || err == ERR_INVALID) && node != CI_NONE && closureindex_state(r->index, node) != CI_LOADED)
        closureindex_set_state(r->index, node, err == ERR_NOT_FOUND ? CI_GONE : CI_REFUSED);
    if (!err) {
        b = manifest_accept(r, &f->digest, m->bytes, type_of(m), &err, &why);
    }
    if (err == ERR_INVALID) /* a document that we do not serve */
        err = ERR_UPSTREAM;
    flight_end(f, err, why.text[0] ? why.text : detail, retry_after_s, b);
    blob_bytes_unref(&b);
}

struct flight *repo_manifest(struct repo *r, const struct digest *d, struct waiter *w, waiter_fn *fn, void *ctx)
{
    bool is_new;
    struct flight *f = flight_join(r, FLIGHT_MANIFEST, S(""), d, &is_new);
    if (is_new)
        flight_get_upstream(f);
    waiter_add(&f->waiters, w, fn, ctx);
    return f;
}

/* ---- tags, upstream --------------------------------------------------------------------------- */

static void on_tag(void *ctx, enum err err, const struct upstream_manifest *m, const char *detail, unsigned retry_after_s)
{
    struct flight *f = flight_of(ctx);
    struct repo *r = f->repo;
    struct blob_bytes *b = NULL;
    struct error why = {0};

    f->op = NULL;
    err = answer_of(err, m);
    if (!err && (m->status == 304 || !digest_is_set(&m->digest)))
        err = error_set(&why, ERR_UPSTREAM, "the upstream names no digest for the tag");
    if (!err) {
        repo_tag_resolved(r, str_c(f->tag), &m->digest, m->media_type, m->size);
        if (f->want_bytes) { /* a document that is refused is told by whoever wants to serve it */
            enum err e;
            b = manifest_accept(r, &m->digest, m->bytes, type_of(m), &e, &why);
            if (e)
                log_debug("%s:%s: %s", r->name, f->tag, why.text);
        }
    } else if (err == ERR_NOT_FOUND) {
        repo_tag_vanished(r, str_c(f->tag));
    } else {
        struct tag *t = repo_tag(r, str_c(f->tag));
        if (t && err != ERR_INVALID) /* that is an answer */
            t->failed_ms = repos_now_ms(r->repos);
    }
    flight_end(f, err, why.text[0] ? why.text : detail, retry_after_s, b);
    blob_bytes_unref(&b);
}

struct flight *repo_resolve(struct repo *r, struct str tag, bool want_bytes, struct waiter *w, waiter_fn *fn, void *ctx)
{
    bool is_new;
    struct flight *f = flight_join(r, FLIGHT_TAG, tag, NULL, &is_new);
    if (is_new) {
        f->want_bytes = want_bytes;
        flight_get_upstream(f);
    }
    waiter_add(&f->waiters, w, fn, ctx);
    return f;
}

/* ---- tags/list -------------------------------------------------------------------------------- */

static void on_list(void *ctx, enum err err, const struct str *tags, size_t n, const char *detail)
{
    struct flight *f = flight_of(ctx);
    struct repo *r = f->repo;
    size_t bytes = 0;

    f->op = NULL;
    if (err && err != ERR_NOT_FOUND) {
        r->list.failed_ms = repos_now_ms(r->repos);
        flight_end(f, err, detail, 0, NULL);
        return;
    }
    if (err)
        n = 0;
    for (size_t i = 0; i < n; i++)
        bytes += tags[i].n;
    char *mem = mem_alloc(bytes + 1), *at = mem;
    struct str *names = mem_calloc(n + 1, sizeof(*names));
    for (size_t i = 0; i < n; i++) {
        memcpy(at, tags[i].p, tags[i].n);
        names[i] = (struct str){at, tags[i].n};
        at += tags[i].n;
    }
    bool same = r->list.have && r->list.n == n;
    for (size_t i = 0; same && i < n; i++)
        same = str_eq(names[i], r->list.names[i]);
    mem_free(r->list.names);
    mem_free(r->list.mem);
    r->list.names = names;
    r->list.mem = mem;
    r->list.n = n;
    r->list.have = true;
    r->list.at_ms = repos_now_ms(r->repos);
    r->list.failed_ms = 0;
    if (!same)
        r->list.generation++;
    flight_end(f, err, detail, 0, NULL);
}

struct flight *repo_list(struct repo *r, struct waiter *w, waiter_fn *fn, void *ctx)
{
    bool is_new;
    struct flight *f = flight_join(r, FLIGHT_LIST, S(""), NULL, &is_new);
    if (is_new)
        flight_get_upstream(f);
    waiter_add(&f->waiters, w, fn, ctx);
    return f;
}

bool repo_list_fresh(struct repo *r)
{
    return r->list.have && repos_now_ms(r->repos) - r->list.at_ms < repos_worker(r->repos)->cfg->cache.tag_freshness_ms;
}

/* ---- closures --------------------------------------------------------------------------------- */

bool repo_closure_settled(struct repo *r, uint32_t root)
{
    struct ci_root *cr = closureindex_root(r->index, root);
    if (cr->complete && cr->recheck_ms && repos_now_ms(r->repos) >= cr->recheck_ms) {
        closureindex_recheck(r->index, root);
        return false;
    }
    return cr->complete && !needs_proof(r, cr->node);
}

static void closure_run(struct flight *f);

static void on_part(void *ctx, const struct flight_end *e)
{
    struct part *p = ctx;
    struct flight *f = flight_of(p->of);
    struct repo *r = f->repo;
    uint32_t node = closureindex_find(r->index, NODE_MANIFEST, &p->digest);
    enum ci_state s = node == CI_NONE ? CI_UNLOADED : closureindex_state(r->index, node);

    p->on = NULL;
    f->asked_upstream |= e->upstream;
    if (e->err && s != CI_GONE && s != CI_REFUSED && s != CI_LOADED) { /* not an answer: it cannot be known */
        f->err = e->err;
        f->retry_after_s = e->retry_after_s;
        snprintf(f->detail, sizeof f->detail, "%s", e->detail);
    } else if (e->err && s != CI_GONE) {
        log_debug("%s: a manifest is left out of the closure: %s", r->name, e->detail);
    }
    closure_run(f);
}

static struct part *part_free(struct flight *f)
{
    for (int i = 0; i < PARTS; i++)
        if (!f->parts[i].on)
            return &f->parts[i];
    return NULL;
}

static bool parts_idle(const struct flight *f)
{
    for (int i = 0; i < PARTS; i++)
        if (f->parts[i].on)
            return false;
    return true;
}

static void part_start(struct flight *f, uint32_t node)
{
    struct node n;
    enum err e;
    closureindex_node(f->repo->index, node, &n);
    if (repo_manifest_held(f->repo, &n.digest, &e) || e)
        return; /* in the index by that, or refused */
    struct part *p = part_free(f);
    p->of = f;
    p->digest = n.digest;
    repos_worker(f->repo->repos)->on_behalf = f->owner;
    p->on = repo_manifest(f->repo, &n.digest, &p->w, on_part, p);
}

/* Fetch what is not there yet, as many at once as PARTS, until nothing is missing. */
static void closure_run(struct flight *f)
{
    struct repo *r = f->repo;
    uint32_t node, at, root = CI_NONE;

    at = closureindex_find(r->index, NODE_MANIFEST, &f->digest);
    if (at != CI_NONE)
        root = closureindex_root_at(r->index, at);
    if (root == CI_NONE) {
        if (parts_idle(f))
            flight_end(f, ERR_UNAVAILABLE, "the closure index was emptied meanwhile", 0, NULL);
        return;
    }
    while (!f->err && part_free(f) && (node = closureindex_unloaded(r->index, root, &f->cursor)) != CI_NONE)
        part_start(f, node);
    if (!parts_idle(f))
        return;
    if (!f->err && !root_settle(r, root)) {
        f->err = ERR_UNAVAILABLE;
        snprintf(f->detail, sizeof f->detail, "the closure is larger or deeper than limits.closure_nodes and limits.closure_depth");
        static unsigned long long logged;
        log_limited(&logged, 10000, LOG_LEVEL_WARN, "%s: the closure of a manifest exceeds limits.closure_nodes or limits.closure_depth",
                    r->name);
    }
    if (f->err) {
        flight_end(f, f->err, f->detail, f->retry_after_s, NULL);
        return;
    }
    flight_end(f, ERR_OK, "", 0, NULL);
}

static void closure_build(struct flight *f)
{
    uint32_t node = closureindex_find(f->repo->index, NODE_MANIFEST, &f->digest);
    if (node != CI_NONE && needs_proof(f->repo, node))
        part_start(f, node); /* its document says whether it hangs where it is said to hang */
    closure_run(f);
}

static void on_cached(void *ctx, enum err err, const struct cache_reply *reply)
{
    struct flight *f = flight_of(ctx);
    struct repo *r = f->repo;
    struct closure c = {0};
    struct strbuf key = {0};
    uint64_t epoch;
    struct str payload;
    int64_t built_at;
    bool taken = false;

    f->cached = NULL;
    if (!err && reply->type == CACHE_STRING) {
        projection_closure_key(str_c(r->repository_id), &f->digest, &key);
        if (!projection_unwrap(repos_worker(r->repos)->proxy->keys, sb_str(&key), reply->str, &epoch, &payload) &&
            !projection_closure_scan(payload, &c, &built_at)) {
            uint32_t node = closureindex_find(r->index, NODE_MANIFEST, &f->digest);
            uint32_t root = node == CI_NONE ? CI_NONE : closureindex_root_at(r->index, node);
            taken = root != CI_NONE && closureindex_add_flat(r->index, root, &c);
            if (taken) {
                closureindex_root(r->index, root)->stored = true;
                taken = closureindex_root(r->index, root)->complete;
            }
        }
        sb_free(&key);
        closure_free(&c);
    }
    if (taken)
        flight_end(f, ERR_OK, "", 0, NULL);
    else
        closure_build(f);
}

static void on_kick(void *ctx)
{
    struct flights *fl = ctx;
    struct flight *f = fl->kicked;
    fl->kicked = NULL;
    while (f) {
        struct flight *next = f->next_kicked;
        closure_build(flight_of(f));
        f = next;
    }
}

/* A flight may not end inside the call that starts it. */
static void closure_build_later(struct flight *f)
{
    struct flights *fl = repos_flights(f->repo->repos);
    if (!fl->kick)
        fl->kick = timer_new(repos_worker(fl->rs)->loop, on_kick, fl);
    if (!fl->kicked)
        timer_set(fl->kick, 0);
    f->next_kicked = fl->kicked;
    fl->kicked = f;
}

struct flight *repo_closure(struct repo *r, uint32_t root, struct waiter *w, waiter_fn *fn, void *ctx)
{
    struct node n;
    struct worker *wk = repos_worker(r->repos);
    const struct ci_root *cr = closureindex_root(r->index, root);
    closureindex_node(r->index, cr->node, &n);
    bool is_new;
    struct flight *f = flight_join(r, FLIGHT_CLOSURE, S(""), &n.digest, &is_new);
    if (is_new) {
        bool begun = closureindex_state(r->index, cr->node) == CI_LOADED && cr->n_manifests == 1;
        if (wk->cache && cache_is_up(wk->cache) && !begun && !needs_proof(r, cr->node)) {
            struct strbuf key = {0};
            projection_closure_key(str_c(r->repository_id), &n.digest, &key);
            struct str argv[] = {S("GET"), sb_str(&key)};
            f->cached = cache_command(wk->cache, argv, 2, on_cached, f);
            sb_free(&key);
        } else {
            closure_build_later(f);
        }
    }
    waiter_add(&f->waiters, w, fn, ctx);
    return f;
}

/* ---- referrers -------------------------------------------------------------------------------- */

struct referrers *repo_referrers_held(struct repo *r, uint32_t node)
{
    for (struct referrers *x = r->referrers[node % 64]; x; x = x->next)
        if (x->node == node)
            return x;
    return NULL;
}

bool repo_referrers_fresh(struct repo *r, uint32_t node)
{
    const struct referrers *x = repo_referrers_held(r, node);
    return x && x->looked_ms && repos_now_ms(r->repos) - x->looked_ms < repos_worker(r->repos)->cfg->cache.tag_freshness_ms;
}

static bool merged_has(const struct jv *merged, struct str digest)
{
    for (size_t i = 0; i < jv_len(merged); i++)
        if (str_eq(jv_get_str(jv_at(merged, i), "digest"), digest))
            return true;
    return false;
}

/* Descriptors of an index document that says what hangs on the subject; only the fields of a descriptor are kept. */
static bool referrers_merge(struct flight *f, struct str bytes)
{
    static const char *const text_fields[] = {"mediaType", "digest", "artifactType"};
    struct jv *doc = NULL;
    if (jv_parse(bytes, &JV_LIMITS_MANIFEST, &doc, NULL))
        return false;
    const struct jv *list = jv_get(doc, "manifests");
    if (jv_type(list) != JV_ARRAY && jv_type(list) != JV_NULL && jv_type(list) != JV_NONE) {
        jv_free(doc);
        return false;
    }
    for (size_t i = 0; jv_type(list) == JV_ARRAY && i < jv_len(list) && jv_len(f->merged) < CLOSURE_MAX_NODES; i++) {
        const struct jv *d = jv_at(list, i);
        struct digest digest;
        enum media_type mt = media_type_parse(jv_get_str(d, "mediaType"));
        int64_t size = jv_get_int(d, "size", -1);
        if (size < 0 || !media_type_is_manifest(mt) || digest_parse(jv_get_str(d, "digest"), &digest, NULL) ||
            digest_eq(&digest, &f->digest) || merged_has(f->merged, jv_get_str(d, "digest")))
            continue;
        struct jv *copy = jv_object();
        for (size_t k = 0; k < sizeof text_fields / sizeof *text_fields; k++)
            if (jv_type(jv_get(d, text_fields[k])) == JV_STRING)
                jv_set_str(copy, text_fields[k], jv_get_str(d, text_fields[k]));
        jv_set_int(copy, "size", size);
        if (jv_type(jv_get(d, "annotations")) == JV_OBJECT)
            jv_set(copy, "annotations", jv_copy(jv_get(d, "annotations")));
        jv_push(f->merged, copy);
    }
    jv_free(doc);
    return true;
}

static struct referrers *referrers_slot(struct repo *r, uint32_t node)
{
    struct referrers *x = repo_referrers_held(r, node);
    if (x)
        return x;
    if (r->referrers_bytes > REFERRERS_BYTES_MAX)
        repo_referrers_drop(r);
    x = NEW(struct referrers);
    x->node = node;
    x->next = r->referrers[node % 64];
    r->referrers[node % 64] = x;
    r->referrers_bytes += sizeof(*x) + 64;
    return x;
}

static void referrers_fail(struct flight *f, enum err err, const char *detail)
{
    uint32_t node = closureindex_find(f->repo->index, NODE_MANIFEST, &f->digest);
    if (node != CI_NONE)
        referrers_slot(f->repo, node)->failed_ms = repos_now_ms(f->repo->repos);
    flight_end(f, err, detail, 0, NULL);
}

static void referrers_done(struct flight *f)
{
    struct repo *r = f->repo;
    uint32_t node = closureindex_add_manifest(r->index, &f->digest);
    struct strbuf b = {0};

    for (size_t i = 0; i < jv_len(f->merged); i++) {
        const struct jv *d = jv_at(f->merged, i);
        struct digest digest;
        if (digest_parse(jv_get_str(d, "digest"), &digest, NULL))
            continue;
        repo_hang(r, &f->digest, &digest, media_type_parse(jv_get_str(d, "mediaType")), (uint64_t)jv_get_int(d, "size", 0));
    }
    sb_addc(&b, "{\"schemaVersion\":2,\"mediaType\":\"application/vnd.oci.image.index.v1+json\",\"manifests\":");
    jv_dump(f->merged, &b);
    sb_add_char(&b, '}');
    struct referrers *x = referrers_slot(r, node);
    r->referrers_bytes -= x->n;
    mem_free(x->json);
    x->n = b.n;
    x->json = sb_take(&b);
    r->referrers_bytes += x->n;
    x->looked_ms = repos_now_ms(r->repos);
    x->failed_ms = 0;
    flight_end(f, ERR_OK, "", 0, NULL);
}

/* The fallback tag's current manifest, when it is one. */
static void referrers_take_tag(struct flight *f)
{
    const struct tag *t = repo_tag(f->repo, str_c(f->tag));
    const struct tag_digest *d = t ? tag_current(t) : NULL;
    enum err e;
    struct blob_bytes *b = d ? repo_manifest_held(f->repo, &d->digest, &e) : NULL;
    if (b && media_type_is_index(b->media_type))
        referrers_merge(f, (struct str){b->bytes, b->n});
}

static void on_fallback(void *ctx, const struct flight_end *e)
{
    struct flight *f = flight_of(ctx);
    f->on = NULL;
    if (e->err && e->err != ERR_NOT_FOUND) {
        referrers_fail(f, e->err, e->detail);
        return;
    }
    if (!e->err)
        referrers_take_tag(f);
    referrers_done(f);
}

static void referrers_fallback(struct flight *f)
{
    const struct tag *t = repo_tag(f->repo, str_c(f->tag));
    const struct tag_digest *d = t ? tag_current(t) : NULL;
    enum err e;
    if (repo_tag_absent(f->repo, str_c(f->tag)) || (t && tag_fresh(t) && (!d || repo_manifest_held(f->repo, &d->digest, &e)))) {
        referrers_take_tag(f);
        referrers_done(f);
        return;
    }
    f->on = repo_resolve(f->repo, str_c(f->tag), true, &f->sub, on_fallback, f);
}

static void on_referrers(void *ctx, enum err err, struct str index_bytes, const char *detail)
{
    struct flight *f = flight_of(ctx);
    struct repo *r = f->repo;
    f->op = NULL;
    if (err == ERR_NOT_FOUND) { /* a registry that has the API answers an empty index (distribution-spec 1.1) */
        r->no_referrers_until_ms = repos_now_ms(r->repos) + NO_REFERRERS_MS;
    } else if (err) {
        referrers_fail(f, err, detail);
        return;
    } else if (!referrers_merge(f, index_bytes)) {
        referrers_fail(f, ERR_UPSTREAM, "the upstream's referrers document is not one");
        return;
    }
    referrers_fallback(f);
}

struct flight *repo_referrers(struct repo *r, uint32_t node, struct waiter *w, waiter_fn *fn, void *ctx)
{
    struct node n;
    char text[DIGEST_TEXT_MAX];
    bool is_new;
    closureindex_node(r->index, node, &n);
    digest_text(&n.digest, text);
    *strchr(text, ':') = '-'; /* the fallback tag: distribution-spec 1.1 "Referrers Tag Schema" */
    text[OCI_TAG_MAX] = 0;
    struct flight *f = flight_join(r, FLIGHT_REFERRERS, str_c(text), &n.digest, &is_new);
    if (is_new) {
        f->merged = jv_array();
        flight_get_upstream(f);
    }
    waiter_add(&f->waiters, w, fn, ctx);
    return f;
}

/* ---- with the upstream at hand ---------------------------------------------------------------- */

static void flight_go(struct flight *f)
{
    struct str repository = str_c(f->repo->upstream_repository);
    char text[DIGEST_TEXT_MAX];

    switch (f->kind) {
    case FLIGHT_TAG:
        f->op = upstream_manifest(f->up, repository, str_c(f->tag), !f->want_bytes, on_tag, f);
        break;
    case FLIGHT_MANIFEST:
        f->op = upstream_manifest(f->up, repository, str_c(digest_text(&f->digest, text)), false, on_manifest, f);
        break;
    case FLIGHT_LIST:
        f->op = upstream_tags(f->up, repository, on_list, f);
        break;
    case FLIGHT_REFERRERS:
        if (repos_now_ms(f->repo->repos) < f->repo->no_referrers_until_ms) {
            referrers_fallback(f); /* last statement: f may be gone */
            return;
        }
        f->op = upstream_referrers(f->up, repository, &f->digest, on_referrers, f);
        break;
    case FLIGHT_CLOSURE:
        WRONG("a closure has no upstream of its own");
    }
    upstream_op_for(f->op, f->owner);
}

static void flight_abort(struct flight *f)
{
    if (f->getting)
        upstreams_cancel(&f->getting);
    if (f->op)
        upstream_cancel(&f->op);
    if (f->cached)
        cache_cancel(&f->cached);
}

void flights_free(struct flights **pfl)
{
    struct flights *fl = *pfl; /* *pfl stays until the end: a flight finds its table by way of its repository */
    timer_free(&fl->kick);
    for (size_t i = 0; i < FLIGHT_BUCKETS; i++)
        for (struct flight *f = fl->table[i]; f; f = f->chain)
            flight_abort(f);
    for (size_t i = 0; i < FLIGHT_BUCKETS; i++) {
        while (fl->table[i]) {
            struct flight *f = fl->table[i];
            flight_unlink(f);
            f->kind = FLIGHT_LIST; /* no look at the bounds any more */
            flight_destroy(f);
        }
    }
    *pfl = NULL;
    mem_free(fl);
}
