/* What the clock does: reminders, starts, ends, renewals, suspensions. A thread looks for licenses and credentials whose wake_at has come
 * and works on them in the writer, a bounded number in one transaction; each is done exactly once, however late. */
#ifndef ADMIN_JOBS_H
#define ADMIN_JOBS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pullgate/err.h"
#include "pullgate/lifecycle.h"
#include "pullgate/store.h"
#include "retention.h"

struct admin;
struct jobs;

struct jobs *jobs_start(struct admin *a, bool clock_is_bad);
/* Ends the thread; before the writer ends. */
void jobs_end(struct jobs *j);
void jobs_stop(struct jobs **j);
/* While the clock cannot be believed nothing is done. Any thread. */
void jobs_set_clock_bad(struct jobs *j, bool is_bad);

struct jobs_state {
    uint64_t done, failed;           /* licenses and credentials worked on */
    uint64_t due;                    /* that wait, counted up to JOBS_DUE_MAX */
    uint64_t lag_s;                  /* since the oldest of them was due */
    uint64_t oldest_inactive_s;      /* age of the license that has waited longest for its activation; 0 none */
    uint64_t deliveries_pending, deliveries_failed, mails_pending, mails_failed; /* failed: in the time that the log is kept */
    uint64_t pruned[RETENTION_KINDS];
};
#define JOBS_DUE_MAX 10000
void jobs_state(struct jobs *j, struct jobs_state *ret);

/* ---- for the thread, and for tests that own the clock ---------------------------------------------------------------------- */

struct jobs_batch {
    size_t n;      /* licenses and credentials looked at */
    size_t failed; /* of these: put off, with an error to be read */
};
/* One batch of what is due at now_s, inside a transaction of the writer. n is 0 when nothing was. */
enum err jobs_run(struct admin *a, struct store *s, int64_t now_s, struct jobs_batch *ret, struct error *reterr) MUST_USE;
/* What has an end without an event of a license: installations that are silent, offers of transfers. Inside a transaction of the writer; a
 * bounded number of each. */
enum err jobs_end_silent(struct store *s, int64_t now_s, struct error *reterr) MUST_USE;

/* When the clock next has something to do with a license, after what is due at now_s was done: 0 is never. Pure. */
struct jobs_terms {
    struct lifecycle_clock clock;
    bool renews; /* by itself, at its end */
};
#define JOBS_DAYS_MAX 16
size_t jobs_days(const char *text, int64_t ret[JOBS_DAYS_MAX]); /* of admin.expiring_days: largest first */
int64_t jobs_wake(const struct jobs_terms *t, const int64_t *days, size_t n_days, int64_t now_s);

#endif
