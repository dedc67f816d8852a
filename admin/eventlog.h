/* The event log, and the history of each license: what happened, for those who follow it (GET /events, webhooks, mail). Written in the transaction of the change, so that
 * an event exists if and only if its change does. The history is kept as long as the license, the log is not (retention.h); the proof of who
 * did it is the audit's. */
#ifndef ADMIN_EVENTLOG_H
#define ADMIN_EVENTLOG_H

#include <stdbool.h>
#include <stdint.h>

#include "pullgate/err.h"
#include "pullgate/store.h"
#include "pullgate/str.h"

struct jv;

struct event_record {
    const char *vendor_id, *type, *actor;      /* type: "license.suspended" */
    const char *customer_id, *license_id;      /* NULL: none */
    const char *object_id;                     /* what else it is about: a credential, an order; NULL: none */
    const struct jv *data;                     /* NULL: {}. Never with secrets */
};
/* The columns of an event, and the object that GET /events and webhooks show of them. */
#define EVENTLOG_COLUMNS "id, at_ms, type, customer_id, license_id, object_id, actor, data"
#define EVENTLOG_COLUMNS_N 8
struct jv *eventlog_print(const struct store_stmt *st);
/* Does a type match "license.suspended", "license.*" or "*"? */
bool eventlog_matches(struct str pattern, struct str type);
bool eventlog_pattern_valid(struct str pattern);
enum err eventlog_put(struct store *s, const struct event_record *e, struct error *reterr) MUST_USE;

struct history_record {
    const char *vendor_id, *license_id, *event, *actor;
    struct str customer_id;
    const char *from_status, *to_status, *request_id; /* NULL: "" */
    struct str reason;                                /* {NULL,0}: "" */
    const struct jv *data;                            /* NULL: {} */
};
enum err history_put(struct store *s, const struct history_record *h, struct error *reterr) MUST_USE;

#endif
