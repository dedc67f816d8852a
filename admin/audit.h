/* The audit log: one row for every change and every refused change, chained by an HMAC under audit.key, so that a row that was
 * altered, left out or moved is seen. Written in the transaction of the change. */
#ifndef ADMIN_AUDIT_H
#define ADMIN_AUDIT_H

#include <stdint.h>

#include "pullgate/err.h"
#include "pullgate/seal.h"
#include "pullgate/store.h"
#include "pullgate/str.h"

struct jv;

struct audit_record {
    const char *vendor_id, *actor, *address, *request_id, *action, *object;
    const char *outcome;             /* "ok" or the problem's code */
    const struct jv *before, *after; /* NULL: none. Never with secrets */
};
enum err audit_put(struct store *s, const struct keyring *k, const struct audit_record *r, struct error *reterr) MUST_USE;

/* Checks the chain. ERR_OK and how many records, or ERR_INVALID naming the first broken one. */
enum err audit_verify(struct store *s, const struct keyring *k, int64_t *ret_records, struct error *reterr) MUST_USE;

#endif
