/* Threads that own a connection to the store, each with a bounded queue of jobs. One of them writes (the writer), the others
 * read. A job is a plain synchronous function; whoever starts one either waits (any thread but a loop's) or goes on. */
#ifndef ADMIN_DB_H
#define ADMIN_DB_H

#include <stdbool.h>

#include "pullgate/err.h"
#include "pullgate/store.h"
#include "pullgate/str.h"

struct db;

struct db_options {
    const char *url;
    const char *name; /* of the thread */
    bool read_only;
    unsigned queue_max;           /* jobs that may wait; more is ERR_UNAVAILABLE at once */
    enum err (*before_commit)(struct store *s, struct error *reterr); /* last in each transaction of DB_TRANSACTION; may be NULL */
    void (*on_commit)(void *ctx, struct store *s); /* after each commit that wrote an outbox row; in this thread; may be NULL */
    void *ctx;
};
/* The writer migrates the schema. The store is open when this returns. */
enum err db_start(const struct db_options *o, struct db **ret, struct error *reterr) MUST_USE;
/* Runs what is queued, then ends the thread and closes the store; whoever comes later is refused. Readers end before the writer. */
void db_end(struct db *db);
/* The same, where it has not ended, and frees it: nobody may come any more. */
void db_stop(struct db **db);

typedef enum err db_fn(struct store *s, void *arg, struct error *reterr);
enum db_mode {
    DB_TRANSACTION, /* fn runs between begin and commit; anything but ERR_OK rolls back. On a reader: one snapshot */
    DB_PLAIN,       /* fn begins and commits itself */
};
/* Queue fn(store, arg). done(arg, err) runs in the db thread after the commit; may be NULL. Returns ERR_UNAVAILABLE, and neither is
 * ever called, when the queue is full or the thread is stopping. */
enum err db_post(struct db *db, enum db_mode mode, db_fn *fn, void *arg, void (*done)(void *arg, enum err err)) MUST_USE;
/* The same, and wait for the outcome. Waits for room in the queue. Never from a loop's thread or from a job of this db. */
enum err db_run(struct db *db, enum db_mode mode, db_fn *fn, void *arg, struct error *reterr) MUST_USE;
/* For DB_PLAIN jobs of the writer: tells on_commit that a committed transaction wrote the outbox. */
void db_committed(struct db *db);

struct db_state {
    unsigned queued, queue_max;
    unsigned long long jobs, failed, refused;
    bool is_failing; /* the store failed a job; since then it has failed none, or, of a writer, has taken no write of the thread's own */
};
void db_state(struct db *db, struct db_state *ret);

#endif
