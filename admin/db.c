#include "db.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>

#include "pullgate/clock.h"
#include "pullgate/log.h"
#include "pullgate/mem.h"
#include "schema.h"

#define PROBE_MS 500 /* between two looks whether a store that refused a write takes one again */

struct job {
    struct job *next;
    enum db_mode mode;
    db_fn *fn;
    void *arg;
    void (*done)(void *arg, enum err err);
    /* of a waiting caller, on its stack; NULL otherwise */
    struct waiter {
        bool is_done;
        enum err err;
        struct error error;
        pthread_cond_t cond;
    } * waiter;
};

struct db {
    struct db_options o;
    char *name;
    struct store *store; /* the thread's, but for the start */
    pthread_t thread;
    bool is_ended;         /* of who stops it */
    pthread_mutex_t mutex; /* guards all below */
    pthread_cond_t wake, room;
    struct job *first, **last;
    bool stopping;
    uint64_t probe_ms; /* of the monotonic clock: when a failing writer tries a write of its own */
    struct db_state state;
};

static enum err db_in_transaction(struct db *db, db_fn *fn, void *arg, struct error *error)
{
    enum err err = store_begin(db->store, error);
    if (err)
        return err;
    err = fn(db->store, arg, error);
    if (!err && db->o.before_commit)
        err = db->o.before_commit(db->store, error);
    if (!err)
        err = store_commit(db->store, error);
    if (err) {
        store_rollback(db->store);
        return err;
    }
    if (!db->o.read_only)
        db_committed(db);
    return ERR_OK;
}

void db_committed(struct db *db)
{
    if (db->o.on_commit)
        db->o.on_commit(db->o.ctx, db->store);
}

static void db_run_job(struct db *db, struct job *j)
{
    struct error error = {0};
    enum err err = j->mode == DB_TRANSACTION ? db_in_transaction(db, j->fn, j->arg, &error) : j->fn(db->store, j->arg, &error);
    /* A job that forgot to end its transaction must not hold the next one's writes hostage. */
    store_rollback(db->store);
    bool has_failed = store_has_failed(db->store);
    if (j->done)
        j->done(j->arg, err);

    pthread_mutex_lock(&db->mutex);
    db->state.jobs++;
    db->state.failed += err == ERR_UNAVAILABLE || err == ERR_INTERNAL;
    if (has_failed && !db->state.is_failing)
        db->probe_ms = clock_mono_ms() + PROBE_MS;
    /* A job that succeeds may have written nothing: of a writer only its own write says that it can. */
    db->state.is_failing = has_failed || (db->state.is_failing && !db->o.read_only);
    if (j->waiter) {
        j->waiter->is_done = true;
        j->waiter->err = err;
        j->waiter->error = error;
        pthread_cond_signal(&j->waiter->cond);
    }
    pthread_mutex_unlock(&db->mutex);
    mem_free(j);
}

/* A row written for nothing but to see that rows can be. */
static bool db_probe(struct db *db)
{
    struct error error = {0};
    enum err err = store_begin(db->store, &error);
    if (!err)
        err = store_exec(db->store, NULL, &error, "INSERT INTO meta (key, value) VALUES ('write_probe', ?1) ON CONFLICT (key) DO UPDATE SET value=?1", "i",
                         (int64_t)clock_mono_ms());
    if (!err)
        err = store_commit(db->store, &error);
    if (err)
        store_rollback(db->store);
    (void)store_has_failed(db->store);
    return !err;
}

static void *db_thread(void *arg)
{
    struct db *db = arg;
    prctl(PR_SET_NAME, db->name);
    pthread_mutex_lock(&db->mutex);
    for (;;) {
        bool must_probe = db->state.is_failing && !db->o.read_only;
        while (!db->first && !db->stopping) {
            if (!must_probe) {
                pthread_cond_wait(&db->wake, &db->mutex);
                continue;
            }
            struct timespec until = {.tv_sec = (time_t)(db->probe_ms / 1000), .tv_nsec = (long)(db->probe_ms % 1000 * 1000000)};
            if (pthread_cond_timedwait(&db->wake, &db->mutex, &until) == ETIMEDOUT)
                break;
        }
        if (must_probe && !db->stopping && clock_mono_ms() >= db->probe_ms) {
            pthread_mutex_unlock(&db->mutex);
            bool ok = db_probe(db);
            pthread_mutex_lock(&db->mutex);
            db->state.is_failing = !ok;
            db->probe_ms = clock_mono_ms() + PROBE_MS;
            continue;
        }
        struct job *j = db->first;
        if (!j && !db->stopping)
            continue;
        if (!j)
            break; /* nothing is left */
        db->first = j->next;
        if (!db->first)
            db->last = &db->first;
        db->state.queued--;
        pthread_cond_signal(&db->room);
        pthread_mutex_unlock(&db->mutex);
        db_run_job(db, j);
        pthread_mutex_lock(&db->mutex);
    }
    pthread_mutex_unlock(&db->mutex);
    return NULL;
}

enum err db_start(const struct db_options *o, struct db **ret, struct error *reterr)
{
    struct store *store;
    enum err err = store_open(o->url, o->read_only, &store, reterr);
    if (err)
        return err;
    if (!o->read_only) {
        err = store_check(store, reterr); /* with part of the licenses nothing is served */
        if (!err)
            err = store_migrate(store, SCHEMA_MIGRATIONS, SCHEMA_MIGRATIONS_N, reterr);
        if (err) {
            store_close(&store);
            return err;
        }
    }
    struct db *db = NEW(struct db);
    db->o = *o;
    db->name = mem_strdup(o->name);
    db->o.name = db->name;
    db->o.url = NULL; /* the caller's */
    db->store = store;
    db->last = &db->first;
    db->state.queue_max = o->queue_max;
    pthread_mutex_init(&db->mutex, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&db->wake, &attr);
    pthread_condattr_destroy(&attr);
    pthread_cond_init(&db->room, NULL);
    int e = pthread_create(&db->thread, NULL, db_thread, db);
    if (e) {
        store_close(&db->store);
        mem_free(db->name);
        mem_free(db);
        return error_set(reterr, ERR_UNAVAILABLE, "%s: cannot start a thread: %s", o->name, strerror(e));
    }
    *ret = db;
    return ERR_OK;
}

void db_end(struct db *db)
{
    if (!db || db->is_ended)
        return;
    db->is_ended = true;
    pthread_mutex_lock(&db->mutex);
    db->stopping = true;
    pthread_cond_broadcast(&db->wake);
    pthread_cond_broadcast(&db->room);
    pthread_mutex_unlock(&db->mutex);
    pthread_join(db->thread, NULL);
    store_close(&db->store);
}

void db_stop(struct db **pdb)
{
    struct db *db = *pdb;
    if (!db)
        return;
    *pdb = NULL;
    db_end(db);
    pthread_mutex_destroy(&db->mutex);
    pthread_cond_destroy(&db->wake);
    pthread_cond_destroy(&db->room);
    mem_free(db->name);
    mem_free(db);
}

/* With the mutex held and room in the queue. */
static void db_push(struct db *db, struct job *j)
{
    *db->last = j;
    db->last = &j->next;
    db->state.queued++;
    pthread_cond_signal(&db->wake);
}

enum err db_post(struct db *db, enum db_mode mode, db_fn *fn, void *arg, void (*done)(void *arg, enum err err))
{
    struct job *j = NEW(struct job);
    *j = (struct job){.mode = mode, .fn = fn, .arg = arg, .done = done};
    pthread_mutex_lock(&db->mutex);
    bool taken = !db->stopping && db->state.queued < db->o.queue_max;
    if (taken)
        db_push(db, j);
    else
        db->state.refused++;
    pthread_mutex_unlock(&db->mutex);
    if (!taken)
        mem_free(j);
    return taken ? ERR_OK : ERR_UNAVAILABLE;
}

enum err db_run(struct db *db, enum db_mode mode, db_fn *fn, void *arg, struct error *reterr)
{
    AN(!pthread_equal(pthread_self(), db->thread));
    struct waiter w = {.is_done = false};
    pthread_cond_init(&w.cond, NULL);
    struct job *j = NEW(struct job);
    *j = (struct job){.mode = mode, .fn = fn, .arg = arg, .waiter = &w};

    pthread_mutex_lock(&db->mutex);
    while (!db->stopping && db->state.queued >= db->o.queue_max)
        pthread_cond_wait(&db->room, &db->mutex);
    if (db->stopping) {
        pthread_mutex_unlock(&db->mutex);
        mem_free(j);
        pthread_cond_destroy(&w.cond);
        return error_set(reterr, ERR_UNAVAILABLE, "the store is closing");
    }
    db_push(db, j);
    while (!w.is_done)
        pthread_cond_wait(&w.cond, &db->mutex);
    pthread_mutex_unlock(&db->mutex);
    pthread_cond_destroy(&w.cond);
    if (w.err && reterr)
        *reterr = w.error;
    return w.err;
}

void db_state(struct db *db, struct db_state *ret)
{
    pthread_mutex_lock(&db->mutex);
    *ret = db->state;
    pthread_mutex_unlock(&db->mutex);
}
