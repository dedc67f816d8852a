/* What the admin daemon is made of. One per process, made by main.c, handed to every part; immutable after the start but for
 * what the parts guard themselves. */
#ifndef ADMIN_ADMIN_H
#define ADMIN_ADMIN_H

#include "pullgate/config.h"
#include "pullgate/loop.h"
#include "pullgate/seal.h"

struct audit_head;
struct db;
struct failures;
struct projector;
struct events;
struct sync;
struct jobs;
struct delivery;
struct mail;
struct http;
struct reload;

struct admin {
    struct config *cfg; /* replaced by a reload; other threads than the main one ask admin_config() */
    struct keyring *keys;
    struct loop *loop; /* the main thread's: edges and timers; other threads only loop_post() to it */
    struct db *writer; /* the one writing connection */
    struct audit_head *audit_head; /* the writer's thread's */
    struct db *reader; /* GET requests; a read-only connection */
    struct db *slow;   /* requests that wait for a network (upstream test, sync); a read-only connection */
    struct db *hasher; /* the thread that hashes passwords; a read-only connection */
    struct failures *addresses, *accounts; /* failed sign-ins; http.c's */
    struct projector *projector;
    struct events *events;
    struct sync *sync;
    struct jobs *jobs;
    struct delivery *delivery; /* as projector: told of commits */
    struct mail *mail;
    struct http *http;
    struct reload *reload; /* NULL until the daemon serves */
};

/* The configuration in force. What was in force before stays readable as long as the daemon runs, so that no thread has to hold it. */
static inline const struct config *admin_config(const struct admin *a)
{
    return __atomic_load_n(&a->cfg, __ATOMIC_ACQUIRE);
}

#endif
