/* The event log: what happened, for those who follow it (GET /events, webhooks, mail). Written in the transaction of the change, so that
 * an event exists if and only if its change does. The history of one license is license_history's, the proof of who did it the audit's. */
#ifndef ADMIN_EVENTLOG_H
#define ADMIN_EVENTLOG_H

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
enum err eventlog_put(struct store *s, const struct event_record *e, struct error *reterr) MUST_USE;

#endif
