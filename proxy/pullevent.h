/* Pull events: lines for the admin's stream, gathered and sent in batches, never on a pull's own time. Bounded and counted: while
 * Redis is away they wait, and the oldest go first when limits.events_queued is reached. One a worker, own thread only. */
#ifndef PROXY_PULLEVENT_H
#define PROXY_PULLEVENT_H

#include <stdbool.h>
#include <stdint.h>

#include "pullgate/oci.h"
#include "pullgate/str.h"

struct worker;
struct pullevents;

struct pull_event { /* all borrowed during the call; docs/REDIS.md "Events" */
    const char *id; /* of the request; the admin takes an event with the same id once */
    int64_t t_ms;
    struct str vendor_id, customer_id, credential_id, license_id, application_id;
    struct str repository, reference, tag, digest;
    bool allow;
    const char *reason;
    struct str client, agent;
    const char *method;
    uint64_t bytes;
};

struct pullevents *pullevents_new(struct worker *w);
void pullevents_free(struct pullevents **e); /* before the worker's cache; what is still queued is lost */

/* Under a microsecond: the line is formatted into the batch that is being gathered. */
void pullevent_add(struct pullevents *e, const struct pull_event *p);
/* A tag was seen to resolve to a digest it had not before. */
void pullevent_tag(struct pullevents *e, struct str repository_id, struct str tag, const struct digest *d, enum media_type media_type, uint64_t size);
/* A credential was used; told at most once a minute and credential. */
void pullevent_used(struct pullevents *e, struct str credential_id, struct str client);

/* Bytes went out under a license. Summed and told every few seconds. */
void pullevent_bytes(struct pullevents *e, struct str license_id, uint64_t bytes);

/* At a drain: sends what is queued; done(ctx) once, from the loop, when the queue is empty or deadline_ms have passed. */
void pullevents_flush(struct pullevents *e, uint64_t deadline_ms, void (*done)(void *ctx), void *ctx);

/* Counters, from any thread. */
uint64_t pullevents_lost(const struct pullevents *e);   /* events dropped since the start */
uint64_t pullevents_queued(const struct pullevents *e); /* not yet acknowledged by Redis */

#endif
