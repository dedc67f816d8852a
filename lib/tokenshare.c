/* A table of tokens under one lock: chains by key, one list by age. It knows nothing of upstreams, nor what a token is good for. */
#include "pullgate/tokenshare.h"

#include <pthread.h>
#include <stdbool.h>
#include <string.h>
#include <sys/queue.h>

#include "pullgate/mem.h"

#define CHAINS     1024u
#define TOKENS_MAX 4096u               /* refused ones, of which the serial is kept, included */
#define BYTES_MAX  (16u * 1024 * 1024) /* of all values together */

struct shared {
    LIST_ENTRY(shared) chain;
    TAILQ_ENTRY(shared) age;
    uint8_t key[TOKENSHARE_KEY];
    char *value; /* NULL: refused */
    size_t n;    /* of value */
    uint64_t use_until_ms, serial;
};

struct tokenshare {
    pthread_mutex_t mutex; /* guards all below */
    LIST_HEAD(shared_chain, shared) chains[CHAINS];
    TAILQ_HEAD(by_age, shared) ages; /* the oldest first */
    size_t count, bytes;
    uint64_t serial;
};

struct tokenshare *tokenshare_new(void)
{
    struct tokenshare *s = NEW(struct tokenshare);
    AN(pthread_mutex_init(&s->mutex, NULL) == 0);
    for (size_t i = 0; i < CHAINS; i++)
        LIST_INIT(&s->chains[i]);
    TAILQ_INIT(&s->ages);
    return s;
}

static void value_drop(struct tokenshare *s, struct shared *t)
{
    if (t->value == NULL)
        return;
    s->bytes -= t->n;
    mem_free_secret(t->value, t->n);
    t->value = NULL;
    t->n = 0;
}

static void shared_free(struct tokenshare *s, struct shared *t)
{
    value_drop(s, t);
    LIST_REMOVE(t, chain);
    TAILQ_REMOVE(&s->ages, t, age);
    s->count--;
    mem_free(t);
}

void tokenshare_free(struct tokenshare **ps)
{
    struct tokenshare *s = *ps;
    if (s == NULL)
        return;
    *ps = NULL;
    for (struct shared *t = TAILQ_FIRST(&s->ages), *next; t != NULL; t = next) {
        next = TAILQ_NEXT(t, age);
        shared_free(s, t);
    }
    pthread_mutex_destroy(&s->mutex);
    mem_free(s);
}

static size_t chain_of(const uint8_t key[TOKENSHARE_KEY])
{
    return (key[0] | (size_t)key[1] << 8) % CHAINS;
}

static struct shared *shared_find(struct tokenshare *s, const uint8_t key[TOKENSHARE_KEY])
{
    struct shared *t;
    LIST_FOREACH(t, &s->chains[chain_of(key)], chain)
        if (memcmp(t->key, key, TOKENSHARE_KEY) == 0)
            break;
    return t;
}

/* Room for n bytes more. The oldest go, and with them all that have expired before they would have gone. */
static void bound(struct tokenshare *s, size_t n, uint64_t now_ms)
{
    for (struct shared *t = TAILQ_FIRST(&s->ages), *next; t != NULL; t = next) {
        next = TAILQ_NEXT(t, age);
        bool full = s->count >= TOKENS_MAX || s->bytes > BYTES_MAX - n;
        if (!full && now_ms < t->use_until_ms)
            break;
        shared_free(s, t);
    }
}

uint64_t tokenshare_put(struct tokenshare *s, const uint8_t key[TOKENSHARE_KEY], const char *value, uint64_t use_until_ms, uint64_t now_ms)
{
    size_t n = strlen(value);
    pthread_mutex_lock(&s->mutex);
    uint64_t serial = ++s->serial;
    struct shared *t = shared_find(s, key);
    if (t != NULL)
        shared_free(s, t);
    bound(s, n < BYTES_MAX ? n : BYTES_MAX, now_ms);
    if (n <= BYTES_MAX) {
        t = NEW(struct shared);
        memcpy(t->key, key, TOKENSHARE_KEY);
        t->value = mem_strndup(value, n);
        t->n = n;
        t->use_until_ms = use_until_ms;
        t->serial = serial;
        LIST_INSERT_HEAD(&s->chains[chain_of(key)], t, chain);
        TAILQ_INSERT_TAIL(&s->ages, t, age);
        s->count++;
        s->bytes += n;
    }
    pthread_mutex_unlock(&s->mutex);
    return serial;
}

enum tokenshare_has tokenshare_look(struct tokenshare *s, const uint8_t key[TOKENSHARE_KEY], uint64_t serial, uint64_t now_ms,
                                    struct tokenshare_token *ret)
{
    enum tokenshare_has has = TOKENSHARE_NOTHING;
    pthread_mutex_lock(&s->mutex);
    struct shared *t = shared_find(s, key);
    if (t != NULL && t->value != NULL && t->serial > serial && now_ms < t->use_until_ms) {
        *ret = (struct tokenshare_token){.value = mem_strndup(t->value, t->n), .use_until_ms = t->use_until_ms, .serial = t->serial};
        has = TOKENSHARE_NEWER;
    } else if (t != NULL && t->value == NULL && t->serial >= serial && serial != 0) {
        has = TOKENSHARE_REFUSED;
    }
    pthread_mutex_unlock(&s->mutex);
    return has;
}

void tokenshare_refuse(struct tokenshare *s, const uint8_t key[TOKENSHARE_KEY], uint64_t serial)
{
    pthread_mutex_lock(&s->mutex);
    struct shared *t = shared_find(s, key);
    if (t != NULL && t->serial == serial)
        value_drop(s, t);
    pthread_mutex_unlock(&s->mutex);
}

size_t tokenshare_count(struct tokenshare *s)
{
    pthread_mutex_lock(&s->mutex);
    size_t n = s->count;
    pthread_mutex_unlock(&s->mutex);
    return n;
}
