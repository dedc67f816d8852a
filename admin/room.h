/* Room for the store: below store.min_free bytes on its file system nothing further is taken in, so that what must not fail (what takes
 * rights away, what the clock does, the outcome of what was sent) still has room, and a full disk is announced, not met. Looked at anew each
 * time: it ends by itself. Any thread. */
#ifndef ADMIN_ROOM_H
#define ADMIN_ROOM_H

#include <stdbool.h>
#include <stdint.h>

#include "pullgate/err.h"

struct admin;

#define ROOM_FIELD "store.min_free" /* the field of room_check()'s error */

/* ERR_UNAVAILABLE: too little is left. What asked is counted as refused. */
enum err room_check(const struct admin *a, struct error *reterr) MUST_USE;

struct room_state {
    uint64_t free_bytes; /* 0 where it cannot be known, and is_low is false then */
    bool is_low;
    uint64_t refused;
};
void room_state(const struct admin *a, struct room_state *ret);

#endif
