#include "failures.h"

#include <pthread.h>
#include <string.h>

#include "pullgate/log.h"
#include "pullgate/mem.h"
#include "pullgate/seal.h"

#define SLOTS      4096 /* keys that are counted at once */
#define WINDOW_S   60
#define REST_MAX_S 3600
#define ALERT      20 /* failures of one key that are worth an operator's look */

/* A key that meets another one's slot takes it, so memory is bounded and a flood of keys only forgets counts. */
struct failures {
    pthread_mutex_t mutex;
    uint64_t alerts; /* keys that reached ALERT */
    struct failure {
        uint8_t key[FAILURES_KEY];
        int64_t window_s; /* when the window began */
        int64_t until_s;  /* refused until then */
        uint64_t count;   /* in the window */
        uint64_t total;   /* since it was last quiet for an hour */
        unsigned strikes; /* windows that went beyond the limit */
    } slots[SLOTS];
};

struct failures *failures_new(void)
{
    struct failures *f = NEW(struct failures);
    pthread_mutex_init(&f->mutex, NULL);
    return f;
}

void failures_free(struct failures **pf)
{
    if (!*pf)
        return;
    pthread_mutex_destroy(&(*pf)->mutex);
    MEM_FREE(*pf);
}

static struct failure *slot_of(struct failures *f, const uint8_t in[FAILURES_KEY], uint8_t ret_key[FAILURES_KEY])
{
    static const uint8_t v4_mapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
    memcpy(ret_key, in, FAILURES_KEY);
    if (memcmp(ret_key, v4_mapped, sizeof v4_mapped) != 0)
        memset(ret_key + 8, 0, 8);
    return &f->slots[str_hash((struct str){(const char *)ret_key, FAILURES_KEY}) % SLOTS];
}

void failures_key(struct str text, uint8_t ret[FAILURES_KEY])
{
    uint8_t sum[32];
    seal_sha256(text, sum);
    memcpy(ret, sum, FAILURES_KEY);
}

bool failures_count(struct failures *f, const uint8_t addr[FAILURES_KEY], const char *peer, int64_t now_s, uint64_t limit, unsigned *ret_wait_s)
{
    uint8_t key[FAILURES_KEY];
    pthread_mutex_lock(&f->mutex);
    struct failure *slot = slot_of(f, addr, key);
    bool is_other = memcmp(slot->key, key, sizeof key) != 0 || now_s < slot->window_s; /* or the clock went back */
    if (is_other || now_s - (slot->until_s > slot->window_s ? slot->until_s : slot->window_s) > REST_MAX_S) {
        *slot = (struct failure){.window_s = now_s};
        memcpy(slot->key, key, sizeof key);
    }
    bool beyond = now_s < slot->until_s;
    if (!beyond) {
        if (now_s - slot->window_s >= WINDOW_S) {
            slot->window_s = now_s;
            slot->count = 0;
        }
        if ((beyond = ++slot->count > limit)) {
            int64_t rest = (int64_t)WINDOW_S << (slot->strikes < 6 ? slot->strikes : 6);
            slot->strikes++;
            slot->until_s = now_s + (rest < REST_MAX_S ? rest : REST_MAX_S);
        }
    }
    if (beyond)
        *ret_wait_s = (unsigned)(slot->until_s - now_s);
    bool alert = ++slot->total == ALERT;
    if (alert)
        __atomic_add_fetch(&f->alerts, 1, __ATOMIC_RELAXED);
    pthread_mutex_unlock(&f->mutex);
    if (alert)
        log_error("%d failed sign-ins from %s", ALERT, peer);
    return beyond;
}

unsigned failures_wait(struct failures *f, const uint8_t in[FAILURES_KEY], int64_t now_s)
{
    uint8_t key[FAILURES_KEY];
    pthread_mutex_lock(&f->mutex);
    const struct failure *slot = slot_of(f, in, key);
    bool is_it = memcmp(slot->key, key, sizeof key) == 0 && now_s >= slot->window_s;
    unsigned wait = is_it && now_s < slot->until_s ? (unsigned)(slot->until_s - now_s) : 0;
    pthread_mutex_unlock(&f->mutex);
    return wait;
}

uint64_t failures_alerts(const struct failures *f)
{
    return __atomic_load_n(&f->alerts, __ATOMIC_RELAXED);
}
