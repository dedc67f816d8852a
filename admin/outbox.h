/* The outbox: which facts (docs/REDIS.md) a transaction changed, and the epoch of each. Written in the same transaction as the
 * rows; the projector carries it to Redis. The id of the newest row is the epoch of the deployment. */
#ifndef ADMIN_OUTBOX_H
#define ADMIN_OUTBOX_H

#include <stdbool.h>
#include <stdint.h>

#include "pullgate/err.h"
#include "pullgate/store.h"
#include "pullgate/str.h"

/* Inside a transaction: the fact changed, or (exists false) is gone. Several times in one transaction is harmless. */
enum err outbox_put(struct store *s, struct str fact, bool exists, struct error *reterr) MUST_USE;
/* "c:" + id and its kin. kind is 'k', 'c', 'r', 't' or 'u'. An empty rest is ignored. */
enum err outbox_put_kind(struct store *s, char kind, struct str rest, bool exists, struct error *reterr) MUST_USE;
/* c: of every customer with a license (not archived) for this application. */
enum err outbox_put_customers_of_application(struct store *s, struct str application_id, struct error *reterr) MUST_USE;
/* c: of every customer of the vendor. */
enum err outbox_put_customers_of_vendor(struct store *s, struct str vendor_id, struct error *reterr) MUST_USE;
/* t: of every repository of the application. */
enum err outbox_put_tags_of_application(struct store *s, struct str application_id, struct error *reterr) MUST_USE;
/* The newest epoch; 0 when nothing ever changed. */
enum err outbox_epoch(struct store *s, uint64_t *ret, struct error *reterr) MUST_USE;

#endif
