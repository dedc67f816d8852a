/* The version sync: looks at every repository's upstream from time to time and on demand, and keeps tags, versions, manifests and
 * closures in the store. One thread with its own loop and a reading store connection; it writes through admin->writer. */
#ifndef ADMIN_SYNC_H
#define ADMIN_SYNC_H

#include <stddef.h>
#include <stdint.h>

#include "pullgate/err.h"
#include "pullgate/str.h"

struct admin;
struct sync;

struct sync_state {
    uint64_t repositories; /* known */
    uint64_t running;      /* being looked at */
    uint64_t rounds;       /* repositories looked at since start */
    uint64_t failures;     /* of these, with an error */
};

/* Starts the thread. admin: cfg, keys and writer are set, and outlive it. With sync_interval 0 it only works when asked. */
struct sync *sync_start(struct admin *a);
/* Ends the thread, before the writer ends. Who waits for something hears now; who asks later hears ERR_UNAVAILABLE. NULL is fine. */
void sync_end(struct sync *s);
void sync_stop(struct sync **s);                         /* the same, where it has not ended, and frees it: nobody may ask any more */
void sync_state(struct sync *s, struct sync_state *ret); /* any thread */

/* Look at these repositories (ids) now, but for those looked at less than max_age_ms ago, and wait for it at most wait_ms
 * (0: do not wait). ERR_OK: every one was looked at, whatever came out of it (repositories.sync_error says); ERR_TIMEOUT: some
 * still run; ERR_UNAVAILABLE: it has ended. Any thread but a loop's. Identical requests join. */
enum err sync_repositories(struct sync *s, const struct str *repository_ids, size_t n, uint64_t max_age_ms, unsigned wait_ms) MUST_USE;
/* The same for all repositories of an application. */
enum err sync_application(struct sync *s, struct str application_id, uint64_t max_age_ms, unsigned wait_ms) MUST_USE;
/* A repository or its upstream was made or changed: have a look soon. Any thread, never blocks. */
void sync_poke(struct sync *s);

#endif
