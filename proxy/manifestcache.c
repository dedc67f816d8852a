/* The manifest cache: a chained hash table over an LRU list. What a client may see is decided elsewhere. */
#include "manifestcache.h"

#include <pthread.h>
#include <string.h>

#include "pullgate/mem.h"

/* What one entry costs besides its bytes, so that many tiny manifests are bounded too. */
static const size_t ENTRY_COST = 256;
static const size_t BUCKETS_MIN = 256;

struct entry {
    struct entry *chain;
    struct entry *newer, *older;
    uint64_t hash;
    struct blob_bytes *blob;
};

struct manifestcache {
    bool shares; /* counts among the users of the shared one */
    size_t max_bytes, bytes, count;
    struct entry **buckets;
    size_t n_buckets; /* power of two */
    struct entry *newest, *oldest;
};

/* The process's: everything about it under the lock, and its bytes are copied out, so that references stay a worker's own. */
static struct {
    pthread_mutex_t lock;
    struct manifestcache *cache;
    unsigned users;
} shared = {.lock = PTHREAD_MUTEX_INITIALIZER};

struct blob_bytes *blob_bytes_ref(struct blob_bytes *b)
{
    b->refs++;
    return b;
}

void blob_bytes_unref(struct blob_bytes **b)
{
    struct blob_bytes *x = *b;
    *b = NULL;
    if (!x || --x->refs)
        return;
    mem_free(x->bytes);
    mem_free(x);
}

static struct manifestcache *cache_new(size_t max_bytes)
{
    struct manifestcache *mc = NEW(struct manifestcache);
    mc->max_bytes = max_bytes;
    mc->n_buckets = BUCKETS_MIN;
    mc->buckets = mem_calloc(mc->n_buckets, sizeof(*mc->buckets));
    return mc;
}

struct manifestcache *manifestcache_new(size_t max_bytes, size_t shared_bytes)
{
    struct manifestcache *mc = cache_new(max_bytes);
    if (!shared_bytes)
        return mc;
    mc->shares = true;
    pthread_mutex_lock(&shared.lock);
    if (shared.users++ == 0)
        shared.cache = cache_new(shared_bytes);
    pthread_mutex_unlock(&shared.lock);
    return mc;
}

static void lru_unlink(struct manifestcache *mc, struct entry *e)
{
    if (e->newer)
        e->newer->older = e->older;
    else
        mc->newest = e->older;
    if (e->older)
        e->older->newer = e->newer;
    else
        mc->oldest = e->newer;
    e->newer = e->older = NULL;
}

static void lru_push(struct manifestcache *mc, struct entry *e)
{
    e->newer = NULL;
    e->older = mc->newest;
    if (mc->newest)
        mc->newest->newer = e;
    else
        mc->oldest = e;
    mc->newest = e;
}

static size_t cost(const struct blob_bytes *b)
{
    return b->n + ENTRY_COST;
}

static void entry_drop(struct manifestcache *mc, struct entry *e)
{
    struct entry **at = &mc->buckets[e->hash & (mc->n_buckets - 1)];
    while (*at != e)
        at = &(*at)->chain;
    *at = e->chain;
    lru_unlink(mc, e);
    mc->bytes -= cost(e->blob);
    mc->count--;
    blob_bytes_unref(&e->blob);
    mem_free(e);
}

static void cache_free(struct manifestcache *mc)
{
    while (mc->oldest)
        entry_drop(mc, mc->oldest);
    mem_free(mc->buckets);
    mem_free(mc);
}

void manifestcache_free(struct manifestcache **pmc)
{
    struct manifestcache *mc = *pmc;
    *pmc = NULL;
    if (!mc)
        return;
    if (mc->shares) {
        pthread_mutex_lock(&shared.lock);
        if (--shared.users == 0) {
            cache_free(shared.cache);
            shared.cache = NULL;
        }
        pthread_mutex_unlock(&shared.lock);
    }
    cache_free(mc);
}

static struct entry *entry_find(struct manifestcache *mc, const struct digest *d, uint64_t hash)
{
    for (struct entry *e = mc->buckets[hash & (mc->n_buckets - 1)]; e; e = e->chain)
        if (e->hash == hash && digest_eq(&e->blob->digest, d))
            return e;
    return NULL;
}

static struct blob_bytes *cache_get(struct manifestcache *mc, const struct digest *d)
{
    struct entry *e = entry_find(mc, d, digest_hash(d));
    if (!e)
        return NULL;
    if (e != mc->newest) {
        lru_unlink(mc, e);
        lru_push(mc, e);
    }
    return e->blob;
}

static void grow(struct manifestcache *mc)
{
    size_t n = mc->n_buckets * 2;
    struct entry **nb = mem_calloc(n, sizeof(*nb));
    for (size_t i = 0; i < mc->n_buckets; i++) {
        struct entry *e = mc->buckets[i];
        while (e) {
            struct entry *next = e->chain;
            e->chain = nb[e->hash & (n - 1)];
            nb[e->hash & (n - 1)] = e;
            e = next;
        }
    }
    mem_free(mc->buckets);
    mc->buckets = nb;
    mc->n_buckets = n;
}

static struct blob_bytes *cache_put(struct manifestcache *mc, const struct digest *d, enum media_type mt, struct str bytes)
{
    uint64_t hash = digest_hash(d);
    struct entry *e = entry_find(mc, d, hash);
    if (e) {
        if (e->blob->media_type == mt)
            return blob_bytes_ref(e->blob);
        entry_drop(mc, e); /* the same bytes under another type: what was verified last counts */
    }
    char *copy = mem_try_alloc(bytes.n + 1);
    if (!copy)
        return NULL;
    if (bytes.n)
        memcpy(copy, bytes.p, bytes.n);
    copy[bytes.n] = 0;
    struct blob_bytes *b = NEW(struct blob_bytes);
    b->refs = 1;
    b->digest = *d;
    b->media_type = mt;
    b->bytes = copy;
    b->n = bytes.n;
    if (cost(b) > mc->max_bytes)
        return b;
    while (mc->oldest && mc->bytes + cost(b) > mc->max_bytes)
        entry_drop(mc, mc->oldest);
    if (mc->count >= mc->n_buckets)
        grow(mc);
    e = NEW(struct entry);
    e->hash = hash;
    e->blob = blob_bytes_ref(b);
    e->chain = mc->buckets[hash & (mc->n_buckets - 1)];
    mc->buckets[hash & (mc->n_buckets - 1)] = e;
    lru_push(mc, e);
    mc->bytes += cost(b);
    mc->count++;
    return b;
}

struct blob_bytes *manifestcache_get(struct manifestcache *mc, const struct digest *d)
{
    struct blob_bytes *b = cache_get(mc, d), *copy = NULL;
    if (b || !mc->shares)
        return b;
    pthread_mutex_lock(&shared.lock);
    b = cache_get(shared.cache, d);
    if (b)
        copy = cache_put(mc, d, b->media_type, (struct str){b->bytes, b->n});
    pthread_mutex_unlock(&shared.lock);
    blob_bytes_unref(&copy);
    return cache_get(mc, d); /* not there if it is larger than this cache */
}

struct blob_bytes *manifestcache_put(struct manifestcache *mc, const struct digest *d, enum media_type mt, struct str bytes)
{
    if (mc->shares) {
        pthread_mutex_lock(&shared.lock);
        struct blob_bytes *b = cache_put(shared.cache, d, mt, bytes);
        blob_bytes_unref(&b);
        pthread_mutex_unlock(&shared.lock);
    }
    return cache_put(mc, d, mt, bytes);
}

static void cache_shrink(struct manifestcache *mc, size_t max_bytes)
{
    while (mc->oldest && mc->bytes > max_bytes)
        entry_drop(mc, mc->oldest);
}

void manifestcache_shrink(struct manifestcache *mc, size_t max_bytes)
{
    cache_shrink(mc, max_bytes);
    if (!mc->shares)
        return;
    pthread_mutex_lock(&shared.lock);
    cache_shrink(shared.cache, max_bytes);
    pthread_mutex_unlock(&shared.lock);
}

size_t manifestcache_bytes(const struct manifestcache *mc)
{
    return mc->bytes;
}

size_t manifestcache_count(const struct manifestcache *mc)
{
    return mc->count;
}
