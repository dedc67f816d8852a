/* Facts from Redis: asked for, verified, parsed, kept. docs/REDIS.md is the law that this file carries out.
 * An entry is usable while its bucket's epoch in the newest root is not beyond the one it was loaded under, and while that root was
 * confirmed lately; both are compared on each use, so a change costs nothing for what it does not touch. It decides nothing about a request.
 * Time: the age of the root is counted on our monotonic clock from the moment the question was sent; the root's own time only matters
 * to a proxy that has just started (cache.control_plane_silence). */
#include "facts.h"

#include <stdlib.h>
#include <string.h>

#include "pullgate/cache.h"
#include "pullgate/clock.h"
#include "pullgate/log.h"
#include "pullgate/mem.h"
#include "pullgate/projection.h"

#include "worker.h"

static const uint64_t POLL_MS = 1000;      /* root, when nothing is announced */
static const uint64_t POLL_RETRY_MS = 100; /* root, after a failure */
static const uint64_t POLL_GAP_MS = 2;     /* announcements are anybody's: no more polls than this makes */
static const uint64_t RETRY_MS = 100;      /* a fact that somebody waits for */
static const int64_t CLOCK_BEHIND_MS = 300000; /* our wall clock behind the newest root's: a jump back must not revive what expired */
static const size_t ENTRIES_MAX = 100000;  /* known facts and absences, a worker */
static const size_t BYTES_MAX = 256u << 20;       /* JSON of the facts held, a worker */
static const size_t BUCKET_BYTES_MAX = 64u << 20; /* buckets held, a worker: a cold fact then costs its own bytes only */
static const size_t NAME_MAX_BYTES = 300;  /* longest: a repository's name, 255 */
#define TABLE_SIZE 65536u                  /* chains; power of two */

#define FACT_KINDS 5
static const char KIND_LETTER[FACT_KINDS] = {
    [FACT_CREDENTIAL] = 'k', [FACT_CUSTOMER] = 'c', [FACT_REPOSITORY] = 'r', [FACT_TAGS] = 't', [FACT_UPSTREAM] = 'u',
};

struct facts_op { /* a waiter; owned here until its callback or its cancellation */
    struct facts *facts;
    struct entry *entry;
    facts_cb *cb;
    void *ctx;
    uint64_t deadline_ms;
    uint64_t serial;
    struct facts_op *next, *prev;         /* of the entry */
    struct facts_op *all_next, *all_prev; /* of the worker; in order of deadline */
};

struct entry {
    struct entry *chain;
    struct entry *ring_next, *ring_prev; /* second-chance order */
    struct facts *facts;
    uint64_t hash;
    char *name; /* "c:cus_…" */
    size_t name_n;
    enum fact_kind kind;
    unsigned bucket;
    bool used;             /* again, since it was made or the hand came by: names tried once go first */
    bool known;
    uint64_t bucket_epoch; /* it was known under */
    unsigned reset;        /* facts.resets[bucket] then */
    struct fact *fact;     /* NULL and known: absent. Kept when unconfirmed: the same epoch needs no parsing */
    size_t bytes;
    struct cache_op *op;   /* the question in flight */
    bool op_whole;         /* it asks for the bucket too */
    bool retried;          /* at once, since the last sweep */
    unsigned pins;
    struct facts_op *waiters, *waiters_last;
};

struct bucket_slot {
    struct projection_bucket *bucket;
    size_t bytes;
    unsigned reset;
};

struct facts {
    unsigned magic;
    struct worker *worker;
    struct loop *loop;
    uint64_t max_staleness_ms, grace_ms, hold_ms, silence_ms, poll_ms;

    bool have_root;
    int64_t root_time_ms; /* newest authenticated time */
    uint64_t confirmed_ms; /* when the question was sent that last confirmed the root */
    struct projection_root root;
    struct strbuf root_text;             /* its wrapped form: an unchanged one is not parsed again */
    unsigned resets[PROJECTION_BUCKETS]; /* counts roots that took a bucket's epoch back */
    uint64_t generation;

    struct cache_op *poll;
    uint64_t poll_sent_ms;
    bool poll_again;
    struct timer *poll_timer;

    struct entry *table[TABLE_SIZE];
    struct entry *hand;
    size_t n_entries, n_bytes;
    struct bucket_slot buckets[PROJECTION_BUCKETS];
    size_t bucket_bytes;
    unsigned bucket_hand;

    struct facts_op *ops, *ops_last;
    uint64_t serial;
    struct timer *sweep;  /* retries and deadlines */
    struct timer *soon;   /* answers that are known already, and the graveyard */
    bool answer_soon;

    struct fact **grave; /* dropped in this round; somebody may still borrow them */
    size_t n_grave, cap_grave;
};
#define FACTS_MAGIC 0x66616374u

static void root_poll(struct facts *f);

/* ---- facts --------------------------------------------------------------------------------------- */

static void credential_free(struct fact_credential *c)
{
    if (!c)
        return;
    mem_free(c->id);
    mem_free(c->customer_id);
    mem_free(c->customer_slug);
    mem_free(c->vendor_id);
    mem_free(c->license_id);
    mem_free(c->name);
    mem_free(c->allowed_cidrs);
    mem_free(c);
}

static void repository_free(struct fact_repository *r)
{
    if (!r)
        return;
    mem_free(r->id);
    mem_free(r->name);
    mem_free(r->application_id);
    mem_free(r->application_slug);
    mem_free(r->vendor_id);
    mem_free(r->upstream_id);
    mem_free(r->upstream_repository);
    mem_free(r->kind);
    mem_free(r->tag_template);
    mem_free(r);
}

static void tags_free(struct fact_tags *t)
{
    if (!t)
        return;
    for (size_t i = 0; i < t->n; i++) {
        mem_free(t->tags[i].tag);
        mem_free(t->tags[i].version);
        mem_free(t->tags[i].channel);
        mem_free(t->tags[i].digests);
    }
    mem_free(t->tags);
    mem_free(t);
}

struct fact *fact_ref(struct fact *f)
{
    if (f)
        f->refs++;
    return f;
}

void fact_unref(struct fact **pf)
{
    struct fact *f = *pf;

    *pf = NULL;
    if (!f)
        return;
    AN(f->refs > 0);
    if (--f->refs)
        return;
    mem_free(f->name);
    credential_free(f->credential);
    entitlement_unref(&f->entitlement);
    repository_free(f->repository);
    tags_free(f->tags);
    upstream_spec_free(&f->upstream);
    mem_free(f);
}

/* A member that must be a string and, where `required`, not an empty one. */
static bool take_text(const struct jv *doc, const char *key, bool required, char **ret)
{
    struct jv *v = jv_get(doc, key);
    struct str s = jv_str(v);

    if (jv_type(v) != JV_STRING ? required || (v && jv_type(v) != JV_NULL) : required && s.n == 0)
        return false;
    *ret = str_dup(s.p ? s : S(""));
    return true;
}

static bool take_time(const struct jv *doc, const char *key, int64_t *ret)
{
    struct jv *v = jv_get(doc, key);

    *ret = 0;
    if (!v || jv_type(v) == JV_NULL)
        return true;
    if (jv_type(v) != JV_INT)
        return false;
    *ret = jv_int(v, 0);
    return *ret >= 0;
}

static bool credential_parse(const struct jv *doc, struct fact_credential **ret)
{
    struct fact_credential *c = NEW(struct fact_credential);
    struct str kind = jv_get_str(doc, "kind");
    struct jv *cidrs = jv_get(doc, "allowed_cidrs");
    size_t n = jv_len(cidrs);

    if (!take_text(doc, "id", true, &c->id) || !take_text(doc, "customer_id", true, &c->customer_id) ||
        !take_text(doc, "customer_slug", false, &c->customer_slug) || !take_text(doc, "vendor_id", true, &c->vendor_id) ||
        !take_text(doc, "license_id", false, &c->license_id) || !take_text(doc, "name", false, &c->name) ||
        !take_time(doc, "expires_at", &c->expires_at_s))
        goto fail;
    c->is_license_key = str_eq(kind, S("license_key"));
    if (!c->is_license_key && !str_eq(kind, S("credential")))
        goto fail;
    if (c->is_license_key && c->license_id[0] == '\0')
        goto fail;
    if (cidrs && jv_type(cidrs) != JV_ARRAY && jv_type(cidrs) != JV_NULL)
        goto fail;
    if (n) {
        c->allowed_cidrs = mem_calloc(n, sizeof *c->allowed_cidrs);
        for (size_t i = 0; i < n; i++)
            if (cidr_parse(jv_str(jv_at(cidrs, i)), &c->allowed_cidrs[i], NULL))
                goto fail;
        c->n_allowed_cidrs = n;
    }
    *ret = c;
    return true;
fail:
    credential_free(c);
    return false;
}

static bool repository_parse(const struct jv *doc, struct fact_repository **ret)
{
    struct fact_repository *r = NEW(struct fact_repository);

    if (take_text(doc, "id", true, &r->id) && take_text(doc, "name", true, &r->name) &&
        take_text(doc, "application_id", true, &r->application_id) && take_text(doc, "application_slug", false, &r->application_slug) &&
        take_text(doc, "vendor_id", true, &r->vendor_id) && take_text(doc, "upstream_id", true, &r->upstream_id) &&
        take_text(doc, "upstream_repository", true, &r->upstream_repository) && take_text(doc, "kind", true, &r->kind) &&
        take_text(doc, "tag_template", true, &r->tag_template)) {
        *ret = r;
        return true;
    }
    repository_free(r);
    return false;
}

static int tag_cmp(const void *a, const void *b)
{
    const struct fact_tag *x = a, *y = b;
    return strcmp(x->tag, y->tag);
}

static bool tag_parse(const char *name, const struct jv *v, struct fact_tag *t)
{
    struct jv *list = jv_get(v, "digests");
    size_t n = jv_len(list);

    t->tag = mem_strdup(name);
    if (jv_type(v) != JV_OBJECT || !take_text(v, "version", false, &t->version) || !take_text(v, "channel", false, &t->channel) ||
        !take_time(v, "released_at", &t->released_at_s))
        return false;
    if (n == 0)
        return true;
    t->digests = mem_calloc(n, sizeof *t->digests);
    for (size_t i = 0; i < n; i++) {
        const struct jv *d = jv_at(list, i);
        if (digest_parse(jv_str(jv_at(d, 0)), &t->digests[i].digest, NULL))
            return false;
        t->digests[i].first_seen_s = jv_int(jv_at(d, 1), 0);
        t->digests[i].last_seen_s = jv_int(jv_at(d, 2), 0);
    }
    t->n_digests = n;
    return true;
}

static bool tags_parse(const struct jv *doc, struct fact_tags **ret)
{
    struct jv *all = jv_get(doc, "tags");
    struct fact_tags *t;

    if (jv_type(all) != JV_OBJECT)
        return false;
    t = NEW(struct fact_tags);
    if (jv_len(all))
        t->tags = mem_calloc(jv_len(all), sizeof *t->tags);
    for (void *it = jv_iter(all); it; it = jv_iter_next(all, it)) {
        t->n++; /* before the check: tags_free() must see what a failed one holds */
        if (!tag_parse(jv_iter_key(it), jv_iter_value(it), &t->tags[t->n - 1])) {
            tags_free(t);
            return false;
        }
    }
    if (t->n)
        qsort(t->tags, t->n, sizeof *t->tags, tag_cmp);
    *ret = t;
    return true;
}

static struct fact *fact_parse(const struct facts *f, const struct entry *e, uint64_t epoch, struct str payload)
{
    static unsigned long long last;
    struct error error = {0};
    struct jv *doc = NULL;
    struct fact *fact;
    bool ok = false;

    if (jv_parse(payload, &JV_LIMITS_TRUSTED, &doc, &error)) {
        log_limited(&last, 10000, LOG_LEVEL_ERROR, "fact %c: is no JSON: %s", KIND_LETTER[e->kind], error.text);
        return NULL;
    }
    fact = NEW(struct fact);
    fact->refs = 1;
    fact->kind = e->kind;
    fact->name = mem_strndup(e->name, e->name_n);
    fact->epoch = epoch;
    switch (e->kind) {
    case FACT_CREDENTIAL:
        ok = credential_parse(doc, &fact->credential);
        break;
    case FACT_CUSTOMER:
        ok = entitlement_parse(doc, &fact->entitlement, &error) == ERR_OK;
        break;
    case FACT_REPOSITORY:
        ok = repository_parse(doc, &fact->repository);
        break;
    case FACT_TAGS:
        ok = tags_parse(doc, &fact->tags);
        break;
    case FACT_UPSTREAM:
        ok = upstream_spec_parse(doc, f->worker->proxy->keys, &fact->upstream, &error) == ERR_OK;
        break;
    }
    jv_free(doc);
    if (!ok) {
        /* The name of a credential's fact is the hash of a secret: not for the log. */
        log_limited(&last, 10000, LOG_LEVEL_ERROR, "fact %.64s is not understood, and not used: %s",
                    e->kind == FACT_CREDENTIAL ? "k:…" : e->name, error.text);
        fact_unref(&fact);
    }
    return fact;
}

/* ---- entries --------------------------------------------------------------------------------------- */

static void bury(struct facts *f, struct fact *fact)
{
    if (!fact)
        return;
    if (f->n_grave == f->cap_grave) {
        f->cap_grave = f->cap_grave ? f->cap_grave * 2 : 64;
        f->grave = mem_realloc(f->grave, f->cap_grave * sizeof *f->grave);
    }
    f->grave[f->n_grave++] = fact;
    if (!timer_pending(f->soon))
        timer_set(f->soon, 0);
}

static uint64_t entry_hash(enum fact_kind kind, struct str id)
{
    return str_hash(id) ^ ((uint64_t)kind + 1) * 0x9e3779b97f4a7c15u;
}

static struct entry *entry_find(const struct facts *f, enum fact_kind kind, struct str id, uint64_t h)
{
    for (struct entry *e = f->table[h & (TABLE_SIZE - 1)]; e; e = e->chain)
        if (e->hash == h && e->kind == kind && e->name_n == id.n + 2 && memcmp(e->name + 2, id.p, id.n) == 0)
            return e;
    return NULL;
}

static bool entry_evictable(const struct entry *e)
{
    return !e->op && !e->waiters && e->pins == 0;
}

static void entry_remove(struct facts *f, struct entry *e)
{
    struct entry **at = &f->table[e->hash & (TABLE_SIZE - 1)];

    while (*at != e)
        at = &(*at)->chain;
    *at = e->chain;
    if (e->ring_next == e) {
        f->hand = NULL;
    } else {
        e->ring_next->ring_prev = e->ring_prev;
        e->ring_prev->ring_next = e->ring_next;
        if (f->hand == e)
            f->hand = e->ring_next;
    }
    f->n_entries--;
    f->n_bytes -= e->bytes;
    bury(f, e->fact);
    mem_free(e->name);
    mem_free(e);
}

/* Second chance: what was used since the hand's last visit stays. Gives up after two rounds of a step's worth, so that one
 * insertion never walks the whole table. */
static void entries_trim(struct facts *f)
{
    unsigned steps = 0;

    while (f->hand && (f->n_entries > ENTRIES_MAX || f->n_bytes > BYTES_MAX) && steps++ < 4096) {
        struct entry *e = f->hand;
        f->hand = e->ring_next;
        if (e->used || !entry_evictable(e))
            e->used = false;
        else
            entry_remove(f, e);
    }
}

static struct entry *entry_make(struct facts *f, enum fact_kind kind, struct str id, uint64_t h)
{
    struct entry *e;

    entries_trim(f);
    e = NEW(struct entry);
    e->facts = f;
    e->hash = h;
    e->kind = kind;
    e->name_n = id.n + 2;
    e->name = mem_alloc(e->name_n + 1);
    e->name[0] = KIND_LETTER[kind];
    e->name[1] = ':';
    memcpy(e->name + 2, id.p, id.n);
    e->name[e->name_n] = '\0';
    e->bucket = projection_bucket_of((struct str){e->name, e->name_n});
    e->chain = f->table[h & (TABLE_SIZE - 1)];
    f->table[h & (TABLE_SIZE - 1)] = e;
    if (!f->hand) {
        f->hand = e->ring_next = e->ring_prev = e;
    } else { /* behind the hand: the last to be visited */
        e->ring_next = f->hand;
        e->ring_prev = f->hand->ring_prev;
        e->ring_prev->ring_next = e;
        f->hand->ring_prev = e;
    }
    f->n_entries++;
    return e;
}

/* A name that could not stand in a bucket's line is the name of nothing. */
static bool id_possible(struct str id)
{
    if (id.n == 0 || id.n > NAME_MAX_BYTES)
        return false;
    for (size_t i = 0; i < id.n; i++)
        if (id.p[i] <= ' ' || id.p[i] > '~')
            return false;
    return true;
}

uint64_t facts_staleness_ms(const struct facts *f)
{
    uint64_t now;
    if (!f->have_root)
        return UINT64_MAX;
    now = loop_now_ms(f->loop);
    return now > f->confirmed_ms ? now - f->confirmed_ms : 0;
}

static bool entry_current(const struct facts *f, const struct entry *e)
{
    return e->known && e->bucket_epoch >= f->root.buckets[e->bucket] && e->reset == f->resets[e->bucket];
}

/* Our wall clock is absurd: windows and expiries cannot be judged, so nothing is known. Asked at every look: a second is long. */
static bool clock_behind(const struct facts *f)
{
    return f->have_root && clock_now_ms() + CLOCK_BEHIND_MS < f->root_time_ms;
}

static enum err entry_answer(const struct facts *f, const struct entry *e, bool *ret_degraded)
{
    uint64_t age = facts_staleness_ms(f);

    if (!f->have_root || clock_behind(f) || !entry_current(f, e))
        return ERR_UNAVAILABLE;
    *ret_degraded = age > f->max_staleness_ms;
    if (!*ret_degraded)
        return ERR_OK;
    /* An absence allows nothing, so beyond max_staleness it is no answer: it would only be a "no" that nobody can confirm. */
    return e->fact && age - f->max_staleness_ms <= f->grace_ms ? ERR_OK : ERR_UNAVAILABLE;
}

enum err facts_peek(struct facts *f, enum fact_kind kind, struct str id, struct fact **ret, bool *ret_degraded)
{
    struct entry *e = entry_find(f, kind, id, entry_hash(kind, id));
    bool degraded;

    if (!e || entry_answer(f, e, &degraded))
        return ERR_UNAVAILABLE;
    e->used = true;
    *ret = e->fact;
    if (ret_degraded)
        *ret_degraded = degraded;
    return ERR_OK;
}

/* ---- waiters --------------------------------------------------------------------------------------- */

static void op_unlink(struct facts_op *op)
{
    struct facts *f = op->facts;
    struct entry *e = op->entry;

    *(op->prev ? &op->prev->next : &e->waiters) = op->next;
    *(op->next ? &op->next->prev : &e->waiters_last) = op->prev;
    *(op->all_prev ? &op->all_prev->all_next : &f->ops) = op->all_next;
    *(op->all_next ? &op->all_next->all_prev : &f->ops_last) = op->all_prev;
}

static void op_finish(struct facts_op *op, enum err err, struct fact *fact, bool degraded)
{
    facts_cb *cb = op->cb;
    void *ctx = op->ctx;

    op_unlink(op);
    mem_free(op);
    cb(ctx, err, fact, degraded);
}

/* Answers whoever waits for an entry that is usable. Those who come while this runs are answered in a later round. */
static void entry_serve(struct facts *f, struct entry *e)
{
    uint64_t until = f->serial;
    struct fact *fact;
    bool degraded;

    if (!e->waiters || entry_answer(f, e, &degraded))
        return;
    fact = fact_ref(e->fact);
    e->pins++;
    while (e->waiters && e->waiters->serial <= until)
        op_finish(e->waiters, ERR_OK, fact, degraded);
    e->pins--;
    fact_unref(&fact);
}

static void sweep_arm(struct facts *f)
{
    uint64_t now = loop_now_ms(f->loop), wait = RETRY_MS;

    if (!f->ops || timer_pending(f->sweep))
        return;
    if (f->ops->deadline_ms <= now)
        wait = 1;
    else if (f->ops->deadline_ms - now < wait)
        wait = f->ops->deadline_ms - now;
    timer_set(f->sweep, wait);
}

static void answer_later(struct facts *f)
{
    f->answer_soon = true;
    if (!timer_pending(f->soon))
        timer_set(f->soon, 0);
}

/* ---- loading a fact --------------------------------------------------------------------------------- */

static struct projection_bucket *bucket_held(const struct facts *f, unsigned n)
{
    const struct bucket_slot *s = &f->buckets[n];
    if (s->bucket && s->reset == f->resets[n] && projection_bucket_epoch(s->bucket) >= f->root.buckets[n])
        return s->bucket;
    return NULL;
}

static void bucket_drop(struct facts *f, unsigned n)
{
    struct bucket_slot *s = &f->buckets[n];
    if (!s->bucket)
        return;
    projection_bucket_free(&s->bucket);
    f->bucket_bytes -= s->bytes;
    s->bytes = 0;
}

static void bucket_keep(struct facts *f, unsigned n, struct projection_bucket *take, size_t bytes)
{
    bucket_drop(f, n);
    f->buckets[n] = (struct bucket_slot){.bucket = take, .bytes = bytes, .reset = f->resets[n]};
    f->bucket_bytes += bytes;
    for (unsigned i = 0; f->bucket_bytes > BUCKET_BYTES_MAX && i < PROJECTION_BUCKETS; i++) {
        unsigned victim = f->bucket_hand++ % PROJECTION_BUCKETS;
        if (victim != n)
            bucket_drop(f, victim);
    }
}

static void entry_set(struct facts *f, struct entry *e, struct fact *take_fact, size_t bytes, uint64_t bucket_epoch)
{
    if (take_fact != e->fact) {
        bury(f, e->fact);
        e->fact = take_fact;
        f->n_bytes += bytes - e->bytes;
        e->bytes = bytes;
    }
    e->known = true;
    e->bucket_epoch = bucket_epoch;
    e->reset = f->resets[e->bucket];
}

/* What a bucket says of the entry, without the fact's value. False: the value is needed. */
static bool entry_by_bucket(struct facts *f, struct entry *e, uint64_t bucket_epoch, uint64_t fact_epoch)
{
    if (fact_epoch == 0) {
        entry_set(f, e, NULL, 0, bucket_epoch); /* the one authoritative "no" */
        return true;
    }
    if (e->fact && e->fact->epoch == fact_epoch) {
        entry_set(f, e, e->fact, e->bytes, bucket_epoch);
        return true;
    }
    return false;
}

static bool entry_by_value(struct facts *f, struct entry *e, uint64_t bucket_epoch, uint64_t fact_epoch, const struct cache_reply *value)
{
    static unsigned long long last;
    struct strbuf key = {0};
    struct str payload;
    struct fact *fact;
    uint64_t epoch;
    enum err err = ERR_UNAVAILABLE;

    if (value->type != CACHE_STRING)
        return false;
    projection_fact_key((struct str){e->name, e->name_n}, &key);
    err = projection_unwrap(f->worker->proxy->keys, sb_str(&key), value->str, &epoch, &payload);
    sb_free(&key);
    if (err) {
        log_limited(&last, 10000, LOG_LEVEL_ERROR, "a fact of kind %c in redis was not written by us: its MAC is wrong, it is not used",
                    KIND_LETTER[e->kind]);
        return false;
    }
    if (epoch != fact_epoch)
        return false;
    fact = fact_parse(f, e, epoch, payload);
    if (!fact)
        return false;
    entry_set(f, e, fact, payload.n, bucket_epoch);
    return true;
}

static void entry_load(struct facts *f, struct entry *e);

static void entry_loaded(struct facts *f, struct entry *e, const struct cache_reply *r, bool whole)
{
    static unsigned long long last;
    struct projection_bucket *b;
    bool ok = false;
    uint64_t fact_epoch;
    size_t n = whole ? 2 : 1;

    if (r->type != CACHE_ARRAY || r->n != n)
        return;
    if (whole) {
        const struct cache_reply *v = &r->items[0];
        if (v->type == CACHE_NIL && f->root.buckets[e->bucket] == 0) {
            entry_set(f, e, NULL, 0, 0); /* the root itself says that the bucket never held anything */
            return;
        }
        if (v->type != CACHE_STRING)
            return;
        if (projection_bucket_scan(f->worker->proxy->keys, e->bucket, v->str, &b)) {
            log_limited(&last, 10000, LOG_LEVEL_ERROR, "bucket %u in redis was not written by us: its MAC is wrong, it is not used", e->bucket);
            return;
        }
        if (projection_bucket_epoch(b) < f->root.buckets[e->bucket]) {
            projection_bucket_free(&b); /* replayed, or overtaken by a root that came meanwhile */
            return;
        }
        bucket_keep(f, e->bucket, b, v->str.n);
    } else {
        b = bucket_held(f, e->bucket);
        if (!b)
            return;
    }
    fact_epoch = projection_bucket_find(b, (struct str){e->name, e->name_n});
    ok = entry_by_bucket(f, e, projection_bucket_epoch(b), fact_epoch) ||
         entry_by_value(f, e, projection_bucket_epoch(b), fact_epoch, &r->items[n - 1]);
    if (!ok && !whole)
        bucket_drop(f, e->bucket); /* the value may be newer than the bucket we hold: ask for both */
}

static void on_loaded(void *ctx, enum err err, const struct cache_reply *r)
{
    struct entry *e = ctx;
    struct facts *f = e->facts;

    e->op = NULL;
    if (!err)
        entry_loaded(f, e, r, e->op_whole);
    if (f->have_root && entry_current(f, e)) {
        e->retried = false;
        entry_serve(f, e);
    } else if (!err && !e->retried && e->waiters) {
        e->retried = true; /* most likely a change that came in between; the sweep does the rest */
        entry_load(f, e);
    }
}

/* Asks for the fact, unless it is known, asked already, or cannot be believed now. Never calls back by itself. */
static void entry_load(struct facts *f, struct entry *e)
{
    struct projection_bucket *b;
    struct strbuf bucket_key = {0}, fact_key = {0};
    struct str argv[3];
    size_t n = 0;

    if (e->op)
        return;
    if (facts_staleness_ms(f) > f->max_staleness_ms) {
        root_poll(f);
        return;
    }
    if (entry_current(f, e)) {
        answer_later(f);
        return;
    }
    b = bucket_held(f, e->bucket);
    if (b && entry_by_bucket(f, e, projection_bucket_epoch(b), projection_bucket_find(b, (struct str){e->name, e->name_n}))) {
        answer_later(f);
        return;
    }
    e->op_whole = b == NULL;
    argv[n++] = S("MGET");
    if (e->op_whole) {
        projection_bucket_key(e->bucket, &bucket_key);
        argv[n++] = sb_str(&bucket_key);
    }
    projection_fact_key((struct str){e->name, e->name_n}, &fact_key);
    argv[n++] = sb_str(&fact_key);
    e->op = cache_command(f->worker->cache, argv, n, on_loaded, e);
    sb_free(&bucket_key);
    sb_free(&fact_key);
}

struct facts_op *facts_get(struct facts *f, enum fact_kind kind, struct str id, facts_cb *cb, void *ctx)
{
    struct facts_op *op = NEW(struct facts_op);
    struct entry *e;
    uint64_t h;
    bool degraded;

    if (!id_possible(id))
        id = S("\x7f"); /* one name, of nothing, for all that cannot be names */
    h = entry_hash(kind, id);
    e = entry_find(f, kind, id, h);
    if (!e)
        e = entry_make(f, kind, id, h);
    else
        e->used = true;
    op->facts = f;
    op->entry = e;
    op->cb = cb;
    op->ctx = ctx;
    op->deadline_ms = loop_now_ms(f->loop) + f->hold_ms;
    op->serial = ++f->serial;
    op->prev = e->waiters_last;
    *(op->prev ? &op->prev->next : &e->waiters) = op;
    e->waiters_last = op;
    op->all_prev = f->ops_last;
    *(op->all_prev ? &op->all_prev->all_next : &f->ops) = op;
    f->ops_last = op;
    if (!entry_answer(f, e, &degraded))
        answer_later(f);
    else
        entry_load(f, e);
    sweep_arm(f);
    return op;
}

void facts_cancel(struct facts_op **op)
{
    if (!*op)
        return;
    op_unlink(*op);
    mem_free(*op);
    *op = NULL;
}

/* Serves every entry that somebody waits for, and asks for those that are still unknown. Collected first: callbacks change the lists. */
static void facts_kick(struct facts *f)
{
    struct entry **list = NULL;
    size_t n = 0, cap = 0;

    for (struct facts_op *op = f->ops; op; op = op->all_next) {
        struct entry *e = op->entry;
        if (e->pins)
            continue; /* in the list already, or being served */
        if (n == cap) {
            cap = cap ? cap * 2 : 32;
            list = mem_realloc(list, cap * sizeof *list);
        }
        e->pins++;
        list[n++] = e;
    }
    for (size_t i = 0; i < n; i++) {
        struct entry *e = list[i];
        bool degraded;
        e->pins--;
        if (!e->waiters)
            continue;
        if (!entry_answer(f, e, &degraded))
            entry_serve(f, e);
        else
            entry_load(f, e);
    }
    mem_free(list);
}

static void on_soon(void *ctx)
{
    struct facts *f = ctx;
    struct fact **grave = f->grave;
    size_t n = f->n_grave;

    f->grave = NULL;
    f->n_grave = f->cap_grave = 0;
    for (size_t i = 0; i < n; i++)
        fact_unref(&grave[i]);
    mem_free(grave);
    if (f->answer_soon) {
        f->answer_soon = false;
        facts_kick(f);
    }
}

static void on_sweep(void *ctx)
{
    struct facts *f = ctx;
    uint64_t now = loop_now_ms(f->loop), until = f->serial;

    while (f->ops && f->ops->serial <= until && f->ops->deadline_ms <= now)
        op_finish(f->ops, ERR_UNAVAILABLE, NULL, false);
    for (struct facts_op *op = f->ops; op; op = op->all_next)
        op->entry->retried = false;
    facts_kick(f);
    sweep_arm(f);
}

/* ---- the root --------------------------------------------------------------------------------------- */

static void root_confirmed(struct facts *f)
{
    f->confirmed_ms = f->poll_sent_ms;
    f->have_root = true;
}

/* Takes over what a root says that is as new as ours or newer. */
static void root_accept(struct facts *f, const struct projection_root *r, struct str text)
{
    static unsigned long long last;
    bool changed = !f->have_root || r->epoch != f->root.epoch;
    unsigned back = 0;

    for (unsigned i = 0; f->have_root && i < PROJECTION_BUCKETS; i++) {
        changed |= r->buckets[i] != f->root.buckets[i];
        if (r->buckets[i] < f->root.buckets[i]) { /* a rebuilt projection: what was loaded under the higher epoch is in doubt */
            f->resets[i]++;
            back++;
        }
    }
    if (back)
        log_limited(&last, 10000, LOG_LEVEL_WARN, "the projection's root took %u buckets back; their facts are asked for again", back);
    f->root = *r;
    if (r->time_ms > f->root_time_ms)
        f->root_time_ms = r->time_ms;
    if (changed)
        f->generation++;
    sb_reset(&f->root_text);
    sb_add(&f->root_text, text);
    root_confirmed(f);
}

static bool root_believable(const struct facts *f, const struct projection_root *r)
{
    static unsigned long long last_back, last_old;
    int64_t age;

    if (f->have_root) {
        if (r->epoch >= f->root.epoch)
            return true;
        log_limited(&last_back, 10000, LOG_LEVEL_ERROR, "the projection's root went back from %llu to %llu; it is not believed",
                    (unsigned long long)f->root.epoch, (unsigned long long)r->epoch);
        return false;
    }
    age = clock_now_ms() - r->time_ms;
    if (age <= 0 || (uint64_t)age <= f->silence_ms)
        return true;
    log_limited(&last_old, 10000, LOG_LEVEL_ERROR,
                "the projection's root is %lld s old, more than cache.control_plane_silence: not believed by a proxy that has just started",
                (long long)(age / 1000));
    return false;
}

static bool root_take(struct facts *f, const struct cache_reply *r)
{
    static unsigned long long last_nil, last_mac;
    struct projection_root root;

    if (r->type != CACHE_STRING) {
        log_limited(&last_nil, 10000, LOG_LEVEL_WARN, "redis holds no root of the projection; waiting for the admin daemon to write it");
        return false;
    }
    if (f->have_root && f->root_text.n == r->str.n && memcmp(f->root_text.p, r->str.p, r->str.n) == 0) {
        root_confirmed(f);
        return true;
    }
    if (projection_root_scan(f->worker->proxy->keys, r->str, &root)) {
        log_limited(&last_mac, 10000, LOG_LEVEL_ERROR, "the projection's root was not written by us: its MAC is wrong, it is not believed");
        return false;
    }
    if (!root_believable(f, &root))
        return false;
    root_accept(f, &root, r->str);
    return true;
}

static void clock_check(struct facts *f)
{
    static unsigned long long last;

    if (clock_behind(f))
        log_limited(&last, 10000, LOG_LEVEL_ERROR, "the clock is %lld s behind the admin daemon's: nothing can be decided until it is right",
                    (long long)((f->root_time_ms - clock_now_ms()) / 1000));
}

static void on_root(void *ctx, enum err err, const struct cache_reply *r)
{
    struct facts *f = ctx;
    bool ok;

    f->poll = NULL;
    ok = !err && root_take(f, r);
    clock_check(f);
    timer_set(f->poll_timer, ok ? f->poll_ms : f->poll_ms < POLL_RETRY_MS ? f->poll_ms : POLL_RETRY_MS);
    if (f->poll_again) {
        f->poll_again = false;
        root_poll(f);
    }
    if (ok)
        facts_kick(f);
}

static void root_ask(struct facts *f)
{
    f->poll_sent_ms = loop_now_ms(f->loop);
    timer_cancel(f->poll_timer);
    f->poll = cache_command(f->worker->cache, (struct str[]){S("GET"), S(PROJECTION_ROOT_KEY)}, 2, on_root, f);
}

/* Soon; several wishes make one question. */
static void root_poll(struct facts *f)
{
    uint64_t now = loop_now_ms(f->loop);

    if (f->poll)
        f->poll_again = true; /* it may have been answered before the change that was announced */
    else if (now - f->poll_sent_ms >= POLL_GAP_MS)
        root_ask(f);
    else
        timer_set(f->poll_timer, POLL_GAP_MS);
}

static void on_poll_timer(void *ctx)
{
    struct facts *f = ctx;
    if (!f->poll)
        root_ask(f);
}

static void on_announcement(void *ctx, struct str message)
{
    (void)message; /* anybody may have published it: it says "look", nothing more */
    root_poll(ctx);
}

static void on_subscription(void *ctx, bool up)
{
    if (up)
        root_poll(ctx);
}

/* ---- life ------------------------------------------------------------------------------------------- */

void facts_configure(struct facts *f, const struct config *cfg)
{
    f->max_staleness_ms = cfg->cache.max_staleness_ms;
    f->grace_ms = cfg->cache.grace_when_cache_is_down_ms;
    f->hold_ms = cfg->cache.hold_on_unknown_ms;
    if (f->hold_ms < 2 * cfg->limits.redis_deadline_ms)
        f->hold_ms = 2 * cfg->limits.redis_deadline_ms; /* with no hold at all a cold fact must still be asked for, once */
    f->silence_ms = cfg->cache.control_plane_silence_ms;
    f->poll_ms = POLL_MS;
    if (f->max_staleness_ms / 4 < f->poll_ms) /* room for a poll that is lost */
        f->poll_ms = f->max_staleness_ms / 4 > 20 ? f->max_staleness_ms / 4 : 20;
}

struct facts *facts_new(struct worker *w)
{
    struct facts *f = NEW(struct facts);

    f->magic = FACTS_MAGIC;
    f->worker = w;
    f->loop = w->loop;
    facts_configure(f, w->cfg);
    f->poll_timer = timer_new(f->loop, on_poll_timer, f);
    f->sweep = timer_new(f->loop, on_sweep, f);
    f->soon = timer_new(f->loop, on_soon, f);
    cache_subscribe(w->cache, PROJECTION_CHANNEL, on_announcement, on_subscription, f);
    root_ask(f);
    return f;
}

/* Waiters are dropped without a callback: whoever frees the worker has ended the exchanges. */
void facts_free(struct facts **pf)
{
    struct facts *f = *pf;

    if (!f)
        return;
    AN(f->magic == FACTS_MAGIC);
    *pf = NULL;
    cache_unsubscribe(f->worker->cache, f);
    cache_cancel(&f->poll);
    while (f->ops) {
        struct facts_op *op = f->ops;
        facts_cancel(&op);
    }
    timer_free(&f->poll_timer);
    timer_free(&f->sweep);
    while (f->hand) {
        cache_cancel(&f->hand->op);
        entry_remove(f, f->hand);
    }
    timer_free(&f->soon);
    for (size_t i = 0; i < f->n_grave; i++)
        fact_unref(&f->grave[i]);
    mem_free(f->grave);
    for (unsigned i = 0; i < PROJECTION_BUCKETS; i++)
        bucket_drop(f, i);
    sb_free(&f->root_text);
    f->magic = 0;
    mem_free(f);
}

uint64_t facts_generation(const struct facts *f)
{
    return f->generation;
}
