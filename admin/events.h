/* Reads what the proxies report (stream pg:events): pulls and denials into the pull log, resolved tags into the tag history,
 * last uses. One thread with its own Redis connection; it writes through admin->writer. */
#ifndef ADMIN_EVENTS_H
#define ADMIN_EVENTS_H

#include <stdint.h>

struct admin;
struct events;

struct events_state {
    uint64_t batches, pulls, tags, used; /* taken into the store */
    uint64_t bad;                        /* entries or lines that were refused: wrong MAC, no JSON, missing members */
    uint64_t pending;                    /* entries read and not yet committed */
};

/* Starts the thread. admin: cfg, keys and writer are set, and outlive it. */
struct events *events_start(struct admin *a);
void events_stop(struct events **e);                           /* joins; before the writer stops; NULL is fine */
void events_state(struct events *e, struct events_state *ret); /* any thread */

#endif
