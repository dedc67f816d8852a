/* Token buckets and counts in bounded tables, split into shards with a lock each. Sign-in tables are set-associative and never
 * allocate after the start; where a set is full the entry that was silent longest goes, so an attacker with many addresses can
 * make us forget, never make us grow or refuse somebody else. */
#include "guard.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "pullgate/clock.h"
#include "pullgate/mem.h"
#include "pullgate/seal.h"

#define SHARDS 64u
#define WAYS 8u
#define BUCKET_SETS 64u   /* a shard: 512 buckets, 32,768 addresses and user names in all */
#define SEEN_SETS 256u    /* a shard: 2,048, 131,072 wrong secrets in all */
#define CHAINS 256u       /* a shard */
#define CUSTOMERS_MAX 1024u /* a shard: 65,536 customers at once; beyond that idle ones go first */
static const uint64_t WINDOW_MS = 60000;
/* Times the limit of an address: repeats of one wrong secret from there in a window, before they count as abuse by themselves. */
static const uint64_t REPEATS_FACTOR = 20;
static const size_t USER_MAX = 256;      /* bytes of a presented user name that are told apart */

struct bucket {
    struct str_mark mark; /* zero: free */
    uint64_t at_ms;
    uint64_t milli; /* tokens, in thousandths, at at_ms */
};

struct seen { /* a wrong secret, from an address or for a user name */
    struct str_mark mark;
    uint64_t first_ms;
    unsigned n;
};

struct customer { /* or an upstream: their ids differ */
    struct customer *next;
    uint64_t hash;
    uint64_t inflight;
    uint64_t shares[GUARD_SHARES];
    uint64_t at_ms;
    uint64_t milli;
    size_t id_n;
    char id[];
};

struct shard {
    pthread_mutex_t lock;
    struct bucket buckets[BUCKET_SETS][WAYS];
    struct seen seen[SEEN_SETS][WAYS];
    struct customer *customers[CHAINS];
    size_t n_customers;
} __attribute__((aligned(64)));

struct guard {
    atomic_uint_fast64_t per_address, per_user;   /* a minute; 0: off */
    atomic_uint_fast64_t per_all;                 /* a second, of everybody; 0: off */
    atomic_uint_fast64_t inflight, per_second;    /* 0: off */
    atomic_uint_fast64_t auth_failures, refused_address, refused_user, refused_all, customer_refused;
    atomic_uint_fast64_t shared[GUARD_SHARES]; /* by all parties together */
    pthread_mutex_t all_lock;
    uint64_t all_at_ms, all_milli; /* the bucket of all failures; under all_lock */
    struct shard shards[SHARDS];
};

void guard_configure(struct guard *g, const struct config *cfg)
{
    atomic_store(&g->per_address, cfg->limits.auth_failures_per_minute);
    /* Never below what one address may: the limit by user name is for guesses that come from many addresses. 0: no such limit. */
    uint64_t per_user = cfg->limits.auth_failures_per_credential, per_address = cfg->limits.auth_failures_per_minute;
    uint64_t per_all = cfg->limits.auth_failures_per_second;
    atomic_store(&g->per_all, per_all == 0 || per_all > per_address / 60 ? per_all : per_address / 60);
    atomic_store(&g->per_user, per_user == 0 || per_user > per_address ? per_user : per_address);
    atomic_store(&g->inflight, cfg->limits.inflight_per_customer);
    atomic_store(&g->per_second, cfg->limits.requests_per_customer);
}

struct guard *guard_new(const struct config *cfg)
{
    struct guard *g = NEW(struct guard);

    for (unsigned i = 0; i < SHARDS; i++)
        pthread_mutex_init(&g->shards[i].lock, NULL);
    pthread_mutex_init(&g->all_lock, NULL);
    guard_configure(g, cfg);
    g->all_at_ms = clock_mono_ms();
    g->all_milli = g->per_all * 1000;
    return g;
}

void guard_free(struct guard **pg)
{
    struct guard *g = *pg;

    if (!g)
        return;
    *pg = NULL;
    for (unsigned i = 0; i < SHARDS; i++) {
        for (unsigned j = 0; j < CHAINS; j++)
            while (g->shards[i].customers[j]) {
                struct customer *c = g->shards[i].customers[j];
                g->shards[i].customers[j] = c->next;
                mem_free(c);
            }
        pthread_mutex_destroy(&g->shards[i].lock);
    }
    pthread_mutex_destroy(&g->all_lock);
    mem_free(g);
}

/* ---- sign-ins ------------------------------------------------------------------------------------ */

static bool mark_eq(struct str_mark x, struct str_mark y)
{
    return x.a == y.a && x.b == y.b;
}

/* A mark of kind and two marks, so that an address, a user name and a pair can never be mistaken for each other. */
static struct str_mark mark_of(uint64_t kind, struct str_mark x, struct str_mark y)
{
    const uint64_t all[5] = {kind, x.a, x.b, y.a, y.b};
    return str_mark((struct str){(const char *)all, sizeof all});
}

/* Takes a token of a bucket that holds `rate` and refills in a minute. False: *ret_wait_ms until there is one. */
static bool bucket_take(uint64_t *milli, uint64_t *at_ms, uint64_t now, uint64_t rate, uint64_t period_ms, uint64_t *ret_wait_ms)
{
    const uint64_t full = rate * 1000;
    uint64_t age = now > *at_ms ? now - *at_ms : 0;

    if (age > period_ms)
        age = period_ms;
    *milli += age * full / period_ms;
    if (*milli > full)
        *milli = full;
    *at_ms = now;
    if (*milli >= 1000) {
        *milli -= 1000;
        return true;
    }
    *ret_wait_ms = (1000 - *milli) * period_ms / full + 1;
    return false;
}

static bool failure_allowed(struct guard *g, struct str_mark mark, uint64_t rate, uint64_t now, uint64_t *ret_wait_ms)
{
    struct shard *s = &g->shards[mark.a % SHARDS];
    struct bucket *set = s->buckets[mark.a / SHARDS % BUCKET_SETS], *b = &set[0];
    bool ok;

    pthread_mutex_lock(&s->lock);
    for (unsigned i = 0; i < WAYS; i++) {
        if (mark_eq(set[i].mark, mark)) {
            b = &set[i];
            break;
        }
        if (set[i].at_ms < b->at_ms)
            b = &set[i];
    }
    if (!mark_eq(b->mark, mark))
        *b = (struct bucket){.mark = mark, .at_ms = now, .milli = rate * 1000};
    ok = bucket_take(&b->milli, &b->at_ms, now, rate, WINDOW_MS, ret_wait_ms);
    pthread_mutex_unlock(&s->lock);
    return ok;
}

/* How often this was counted in its window, this time included; 0: not remembered. */
static unsigned seen_again(struct guard *g, struct str_mark mark, uint64_t now, uint64_t *ret_left_ms)
{
    struct shard *s = &g->shards[mark.a % SHARDS];
    struct seen *set = s->seen[mark.a / SHARDS % SEEN_SETS];
    unsigned n = 0;

    pthread_mutex_lock(&s->lock);
    for (unsigned i = 0; i < WAYS; i++)
        if (mark_eq(set[i].mark, mark) && set[i].n && now - set[i].first_ms < WINDOW_MS) {
            n = ++set[i].n;
            *ret_left_ms = WINDOW_MS - (now - set[i].first_ms);
            break;
        }
    pthread_mutex_unlock(&s->lock);
    return n;
}

static void seen_first(struct guard *g, struct str_mark mark, uint64_t now)
{
    struct shard *s = &g->shards[mark.a % SHARDS];
    struct seen *set = s->seen[mark.a / SHARDS % SEEN_SETS], *oldest = &set[0];

    pthread_mutex_lock(&s->lock);
    for (unsigned i = 0; i < WAYS; i++) {
        if (mark_eq(set[i].mark, mark)) {
            oldest = &set[i];
            break;
        }
        if (set[i].first_ms < oldest->first_ms)
            oldest = &set[i];
    }
    *oldest = (struct seen){.mark = mark, .first_ms = now, .n = 1};
    pthread_mutex_unlock(&s->lock);
}

/* A guess may come from anywhere and be of any name: all of them together have a rate, too. */
static bool failure_of_all_allowed(struct guard *g, uint64_t now, uint64_t *ret_wait_ms)
{
    uint64_t rate = atomic_load_explicit(&g->per_all, memory_order_relaxed);
    bool ok = true;

    if (rate == 0)
        return true;
    pthread_mutex_lock(&g->all_lock);
    ok = bucket_take(&g->all_milli, &g->all_at_ms, now, rate, 1000, ret_wait_ms);
    pthread_mutex_unlock(&g->all_lock);
    return ok;
}

/* The user name of a Basic value; false for anything else, or none. */
static bool user_mark(struct str authorization, struct str_mark *ret)
{
    struct str scheme, rest, user, password;
    struct strbuf plain = {0};
    bool ok = false;

    if (!str_cut(authorization, ' ', &scheme, &rest) || !str_eq_nocase(scheme, S("Basic")))
        return false;
    if (base64_decode(rest, &plain) && str_cut(sb_str(&plain), ':', &user, &password) && user.n) {
        *ret = str_mark(str_sub(user, 0, USER_MAX));
        ok = true;
    }
    mem_cleanse(plain.p, plain.n);
    sb_free(&plain);
    return ok;
}

static unsigned whole_seconds(uint64_t ms)
{
    return ms > 1000 ? (unsigned)((ms + 999) / 1000) : 1;
}

bool guard_auth_failed(struct guard *g, const uint8_t addr[16], struct str authorization, unsigned *ret_retry_after_s)
{
    static const uint8_t v4[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
    uint64_t per_address = atomic_load_explicit(&g->per_address, memory_order_relaxed);
    uint64_t per_user = atomic_load_explicit(&g->per_user, memory_order_relaxed);
    uint64_t now = clock_mono_ms(), wait_ms = 0;
    struct str_mark presented = str_mark(authorization), address, user, pair;
    uint8_t net[16];
    unsigned n;

    atomic_fetch_add_explicit(&g->auth_failures, 1, memory_order_relaxed);
    if (!failure_of_all_allowed(g, now, &wait_ms)) {
        atomic_fetch_add_explicit(&g->refused_all, 1, memory_order_relaxed);
        *ret_retry_after_s = whole_seconds(wait_ms);
        return true;
    }
    memcpy(net, addr, sizeof net);
    if (memcmp(net, v4, sizeof v4) != 0)
        memset(net + 8, 0, 8); /* a /64 is one subscriber's */
    address = str_mark((struct str){(const char *)net, sizeof net});
    pair = mark_of(1, address, presented);
    n = seen_again(g, pair, now, &wait_ms);
    if (n && (!per_address || n <= per_address * REPEATS_FACTOR))
        return false;
    if (n || (per_address && !failure_allowed(g, mark_of(2, address, (struct str_mark){0, 0}), per_address, now, &wait_ms))) {
        atomic_fetch_add_explicit(&g->refused_address, 1, memory_order_relaxed);
        *ret_retry_after_s = whole_seconds(wait_ms);
        return true;
    }
    if (per_user && user_mark(authorization, &user)) {
        struct str_mark guess = mark_of(3, user, presented);
        uint64_t left;
        if (!seen_again(g, guess, now, &left)) {
            if (!failure_allowed(g, mark_of(4, user, (struct str_mark){0, 0}), per_user, now, &wait_ms)) {
                atomic_fetch_add_explicit(&g->refused_user, 1, memory_order_relaxed);
                *ret_retry_after_s = whole_seconds(wait_ms);
                return true;
            }
            seen_first(g, guess, now);
        }
    }
    seen_first(g, pair, now);
    return false;
}

/* ---- customers ----------------------------------------------------------------------------------- */

static struct customer **customer_at(struct shard *s, uint64_t h, struct str id)
{
    struct customer **at = &s->customers[h / SHARDS % CHAINS];

    while (*at && ((*at)->hash != h || (*at)->id_n != id.n || memcmp((*at)->id, id.p, id.n) != 0))
        at = &(*at)->next;
    return at;
}

static void customers_trim(struct shard *s)
{
    for (unsigned i = 0; i < CHAINS; i++)
        for (struct customer **at = &s->customers[i]; *at;) {
            struct customer *c = *at;
            bool is_held = c->inflight > 0;
            for (unsigned k = 0; k < GUARD_SHARES; k++)
                is_held |= c->shares[k] > 0;
            if (is_held) {
                at = &c->next;
                continue;
            }
            *at = c->next;
            mem_free(c);
            s->n_customers--;
        }
}

static struct customer *customer_get(struct shard *s, uint64_t h, struct str id, uint64_t per_second)
{
    struct customer **at = customer_at(s, h, id), *c;

    if (*at)
        return *at;
    if (s->n_customers >= CUSTOMERS_MAX) {
        customers_trim(s);
        at = customer_at(s, h, id);
    }
    c = mem_zalloc(sizeof *c + id.n);
    c->hash = h;
    c->id_n = id.n;
    memcpy(c->id, id.p, id.n);
    c->milli = per_second * 1000;
    *at = c;
    s->n_customers++;
    return c;
}

bool guard_customer_begin(struct guard *g, struct str customer_id, uint64_t own_per_second, unsigned *ret_retry_after_s)
{
    uint64_t inflight = atomic_load_explicit(&g->inflight, memory_order_relaxed);
    uint64_t per_second = own_per_second ? own_per_second : atomic_load_explicit(&g->per_second, memory_order_relaxed);
    uint64_t h = str_hash(customer_id), wait_ms = 1000;
    struct shard *s = &g->shards[h % SHARDS];
    struct customer *c;
    bool ok = true, too_many = false;

    pthread_mutex_lock(&s->lock);
    c = customer_get(s, h, customer_id, per_second);
    if (inflight && c->inflight >= inflight)
        ok = !(too_many = true);
    else if (per_second)
        ok = bucket_take(&c->milli, &c->at_ms, clock_mono_ms(), per_second, 1000, &wait_ms);
    if (ok)
        c->inflight++;
    pthread_mutex_unlock(&s->lock);
    if (!ok) {
        atomic_fetch_add_explicit(&g->customer_refused, 1, memory_order_relaxed);
        *ret_retry_after_s = too_many ? 0 : whole_seconds(wait_ms);
    }
    return ok;
}

void guard_customer_done(struct guard *g, struct str customer_id)
{
    uint64_t h = str_hash(customer_id);
    struct shard *s = &g->shards[h % SHARDS];
    struct customer *c;

    pthread_mutex_lock(&s->lock);
    c = *customer_at(s, h, customer_id);
    AN(c && c->inflight);
    c->inflight--;
    pthread_mutex_unlock(&s->lock);
}

bool guard_share_take(struct guard *g, enum guard_share what, struct str id, unsigned part, uint64_t max)
{
    uint64_t h = str_hash(id), all = atomic_fetch_add_explicit(&g->shared[what], 1, memory_order_relaxed);
    struct shard *s = &g->shards[h % SHARDS];
    bool ok = false;

    if (all < max) {
        pthread_mutex_lock(&s->lock);
        struct customer *c = customer_get(s, h, id, atomic_load_explicit(&g->per_second, memory_order_relaxed));
        ok = c->shares[what] < (max - all) * part;
        c->shares[what] += ok;
        pthread_mutex_unlock(&s->lock);
    }
    if (!ok)
        atomic_fetch_sub_explicit(&g->shared[what], 1, memory_order_relaxed);
    return ok;
}

void guard_share_give(struct guard *g, enum guard_share what, struct str id)
{
    uint64_t h = str_hash(id);
    struct shard *s = &g->shards[h % SHARDS];

    pthread_mutex_lock(&s->lock);
    struct customer *c = *customer_at(s, h, id);
    AN(c && c->shares[what]);
    c->shares[what]--;
    pthread_mutex_unlock(&s->lock);
    atomic_fetch_sub_explicit(&g->shared[what], 1, memory_order_relaxed);
}

void guard_counters(const struct guard *g, struct guard_counters *ret)
{
    ret->auth_failures = atomic_load_explicit(&g->auth_failures, memory_order_relaxed);
    ret->auth_refused_address = atomic_load_explicit(&g->refused_address, memory_order_relaxed);
    ret->auth_refused_user = atomic_load_explicit(&g->refused_user, memory_order_relaxed);
    ret->auth_refused_all = atomic_load_explicit(&g->refused_all, memory_order_relaxed);
    ret->customer_refused = atomic_load_explicit(&g->customer_refused, memory_order_relaxed);
}
