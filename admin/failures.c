#include "failures.h"

#include <pthread.h>
#include <string.h>

#include "admin.h"
#include "db.h"
#include "pullgate/clock.h"
#include "pullgate/log.h"
#include "pullgate/mem.h"
#include "pullgate/seal.h"

#define SLOTS      4096 /* keys that are counted at once */
#define WINDOW_S   60
#define REST_MAX_S 3600

/* A key that meets another one's slot takes it, so memory is bounded and a flood of keys only forgets counts. */
struct failures {
    struct admin *admin;
    const char *kind;
    pthread_mutex_t mutex;
    uint64_t alerts; /* keys that reached FAILURES_ALERT */
    struct failure {
        uint8_t key[FAILURES_KEY];
        int64_t window_s; /* when the window began */
        int64_t until_s;  /* refused until then */
        uint64_t count;   /* in the window */
        uint64_t total;   /* since it was last quiet for an hour */
        unsigned strikes; /* windows that went beyond the limit */
    } slots[SLOTS];
};

/* ---- in the store ---------------------------------------------------------------------------------------------------------- */

struct rest { /* a row */
    const char *kind;
    uint8_t key[FAILURES_KEY];
    int64_t until_s;
    uint64_t total;
    unsigned strikes;
};

static enum err rest_write(struct store *s, void *arg, struct error *reterr)
{
    const struct rest *r = arg;
    struct strbuf key = {0};
    sb_add_hex(&key, r->key, sizeof r->key);
    enum err err = store_exec(s, NULL, reterr, "INSERT OR REPLACE INTO sign_in_rests (kind, key, until_at, total, strikes) VALUES (?,?,?,?,?)", "zsiii",
                              r->kind, sb_str(&key), r->until_s, (int64_t)r->total, (int64_t)r->strikes);
    sb_free(&key);
    return err;
}

static void rest_written(void *arg, enum err err)
{
    (void)err; /* then a restart would forgive it */
    mem_free(arg);
}

/* At most once in the time that the key rests: whoever makes many of them wrong pays for it with the waiting. */
static void rest_keep(struct failures *f, const struct failure *slot)
{
    struct rest *r = NEW(struct rest);
    *r = (struct rest){.kind = f->kind, .until_s = slot->until_s, .total = slot->total, .strikes = slot->strikes};
    memcpy(r->key, slot->key, sizeof r->key);
    if (db_post(f->admin->writer, DB_TRANSACTION, rest_write, r, rest_written))
        rest_written(r, ERR_OK);
}

static enum err rests_read(struct store *s, void *arg, struct error *reterr)
{
    struct failures *f = arg;
    struct store_stmt *st = NULL;
    bool row = true;
    int64_t now_s = clock_now_s();
    enum err err = store_query(s, &st, reterr, "SELECT key, until_at, total, strikes FROM sign_in_rests WHERE kind=? AND until_at>? AND until_at<=?", "zii", f->kind,
                               now_s - REST_MAX_S, now_s + REST_MAX_S);
    while (!err) {
        err = store_step(st, &row, reterr);
        if (err || !row)
            break;
        uint8_t key[FAILURES_KEY];
        if (!hex_decode(store_col_str(st, 0), key, sizeof key))
            continue;
        struct failure *slot = &f->slots[str_hash((struct str){(const char *)key, FAILURES_KEY}) % SLOTS];
        *slot = (struct failure){.window_s = now_s, .until_s = store_col_int(st, 1), .total = (uint64_t)store_col_int(st, 2),
                                 .strikes = (unsigned)store_col_int(st, 3)};
        memcpy(slot->key, key, sizeof key);
    }
    store_done(&st);
    return err;
}

/* ---- counting -------------------------------------------------------------------------------------------------------------- */

struct failures *failures_new(struct admin *a, const char *kind)
{
    struct failures *f = NEW(struct failures);
    struct error error = {0};
    f->admin = a;
    f->kind = kind;
    pthread_mutex_init(&f->mutex, NULL);
    if (db_run(a->reader, DB_TRANSACTION, rests_read, f, &error))
        log_warn("failed sign-ins of before cannot be read: %s", error.text);
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

bool failures_count(struct failures *f, const uint8_t addr[FAILURES_KEY], const char *peer, int64_t now_s, uint64_t limit, unsigned *ret_wait_s,
                    bool *ret_alert)
{
    uint8_t key[FAILURES_KEY];
    bool has_begun = false;
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
            has_begun = true;
        }
    }
    if (beyond)
        *ret_wait_s = (unsigned)(slot->until_s - now_s);
    bool alert = ++slot->total == FAILURES_ALERT;
    if (alert)
        __atomic_add_fetch(&f->alerts, 1, __ATOMIC_RELAXED);
    struct failure now = *slot;
    pthread_mutex_unlock(&f->mutex);
    if (has_begun)
        rest_keep(f, &now);
    if (ret_alert)
        *ret_alert = alert;
    if (alert)
        log_error("%d failed sign-ins from %s", FAILURES_ALERT, peer);
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
