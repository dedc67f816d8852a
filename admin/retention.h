/* What the store forgets, and when: rows that are over and that nobody asks for any more. Which they are stands in one table; the thread of
 * jobs.c looks for them on its reading connection and has the writer remove a batch at a time. The audit log, licenses and their history,
 * orders and payments are in no table of this: they stay. */
#ifndef ADMIN_RETENTION_H
#define ADMIN_RETENTION_H

#include <stddef.h>
#include <stdint.h>

#include "pullgate/config.h"
#include "pullgate/err.h"
#include "pullgate/store.h"

struct jv;

#define RETENTION_KINDS 13
extern const char *const RETENTION_NAMES[RETENTION_KINDS]; /* of the metric's label */

#define RETENTION_BATCH 200 /* rows in one transaction: writers wait meanwhile */
struct retention_batch {
    size_t kind;
    int64_t before_s;   /* what was over then goes */
    struct jv *keys;    /* flat: as many of one row after another as the kind has */
    size_t n;           /* rows */
    int64_t removed;    /* of these; the others were used again meanwhile */
};
/* The rows of a kind that may go at now_s, at most RETENTION_BATCH; n is 0 where there are none, or the kind is kept for ever. */
enum err retention_find(const struct config *cfg, struct store *s, size_t kind, int64_t now_s, struct retention_batch *ret, struct error *reterr) MUST_USE;
/* Removes them, in the caller's transaction of the writer. */
enum err retention_remove(struct store *s, struct retention_batch *b, struct error *reterr) MUST_USE;
void retention_batch_free(struct retention_batch *b);

#endif
