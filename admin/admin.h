/* What the admin daemon is made of. One per process, made by main.c, handed to every part; immutable after the start but for
 * what the parts guard themselves. */
#ifndef ADMIN_ADMIN_H
#define ADMIN_ADMIN_H

#include "pullgate/config.h"
#include "pullgate/loop.h"
#include "pullgate/seal.h"

struct db;
struct projector;
struct events;
struct sync;
struct http;

struct admin {
    struct config *cfg;
    struct keyring *keys;
    struct loop *loop; /* the main thread's: edges and timers; other threads only loop_post() to it */
    struct db *writer; /* the one writing connection */
    struct db *reader; /* GET requests; a read-only connection */
    struct db *slow;   /* requests that wait for a network (upstream test, sync); a read-only connection */
    struct projector *projector;
    struct events *events;
    struct sync *sync;
    struct http *http;
};

#endif
