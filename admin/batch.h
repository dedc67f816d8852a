/* Many changes for one request: line by line, each kept or undone by itself, some hundreds a transaction of the writer, so that others
 * get their turn in between. For routes of the slow thread (ROUTE_SLOW). And: other resources' handlers, called by their path. */
#ifndef ADMIN_BATCH_H
#define ADMIN_BATCH_H

#include "api.h"

struct batch {
    struct api *rq;
    const char *action; /* of the audit rows */
    size_t n, per_transaction;
    bool is_dry;        /* nothing is kept */
    bool is_partial;    /* what is good is kept, whatever else is not; else all or nothing, in one transaction */
    /* One line; its failure is told by rq->error and rq->code as a handler's. */
    enum err (*one)(struct api *rq, void *ctx, size_t i);
    /* After each: err ERR_OK or the line's failure. */
    void (*told)(struct api *rq, void *ctx, size_t i, enum err err);
    void (*untold)(void *ctx, size_t i); /* it is tried anew: forget what was kept of it; also of lines not told yet */
    void *ctx;
    size_t done, failed; /* set by batch_run() */
    bool is_kept;
};
/* ERR_OK also when lines failed; an error is one of the store's, and then the transactions before it are kept. */
enum err batch_run(struct batch *b) MUST_USE;

/* Runs the handler of a path as the caller would, with `in` as its body (checked against its schema; NULL: {}). rq->out is its answer. The
 * caller's role has to suffice. In a transaction of the writer, or, for a GET, of any store. */
enum err api_call(struct api *rq, enum head_method method, const char *path, const struct jv *in) MUST_USE;
/* The same check of a body alone. */
enum err api_call_check(struct api *rq, enum head_method method, const char *path, const struct jv *in) MUST_USE;

#endif
