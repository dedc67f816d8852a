/* The audit log: one row for every change and every refused change, chained by an HMAC under audit.key, so that a row that was altered,
 * left out or moved is seen: once through all rows, and once through each vendor's, whose export can be checked alone. The newest row's
 * number and hash stand outside the store as well (audit.head beside the keys), so that newest rows that were taken away are seen. */
#ifndef ADMIN_AUDIT_H
#define ADMIN_AUDIT_H

#include <stdbool.h>
#include <stdint.h>

#include "pullgate/err.h"
#include "pullgate/seal.h"
#include "pullgate/store.h"
#include "pullgate/str.h"

struct jv;

struct audit_record {
    const char *vendor_id, *actor, *address, *request_id, *action, *object;
    const char *actor_name;          /* as people know him: kept here, so that it outlives him; NULL: none */
    const char *outcome;             /* "ok" or the problem's code */
    const struct jv *before, *after; /* NULL: none. Never with secrets */
};
/* Written in the transaction of the change. */
enum err audit_put(struct store *s, const struct keyring *k, const struct audit_record *r, struct error *reterr) MUST_USE;

/* Checks the chain. ERR_OK and how many records, or ERR_INVALID naming the first broken one. path: of the head's file, read before the
 * store's snapshot is taken (NULL: not looked at); rows that are missing at the end are ERR_INVALID too. Outside a transaction. */
enum err audit_verify(struct store *s, const struct keyring *k, const char *head_path, int64_t *ret_records, struct error *reterr) MUST_USE;

/* ---- export: a vendor's rows, or all, as lines of JSON ------------------------------------------------------------------------ */

struct audit_range {
    const char *vendor_id; /* NULL: all vendors' */
    int64_t from_ms, to_ms, after_seq;
    int limit;
};
/* Appends the lines; *ret_last: the last one's number, or 0 when the range ends with them. */
enum err audit_export(struct store *s, const struct audit_range *r, struct strbuf *b, int64_t *ret_last, struct error *reterr) MUST_USE;

/* Lines of an export, one after another, of one vendor's or of all: each must be what was written and follow the one before. */
struct audit_reader {
    const struct keyring *keys;
    int64_t seq, records;
    bool has_gap, is_mixed; /* rows of others left out; of several vendors: not both */
    char hash[2 * SEAL_MAC_LEN + 1], vendor[64], vendor_hash[2 * SEAL_MAC_LEN + 1];
};
/* Lines without "seq" (the end of a page) are passed over. ERR_INVALID: says why. */
enum err audit_read(struct audit_reader *r, struct str line, struct error *reterr) MUST_USE;

/* ---- the head -------------------------------------------------------------------------------------------------------------------- */

/* The file's place: keys.path and "/audit.head". */
void audit_head_path(const char *keys_path, struct strbuf *ret);

struct audit_head;
/* Opens or makes the file. *ret NULL without an error: it cannot be kept (a directory that cannot be written). *ret_wrong: what it says
 * does not fit the store, with words in ret_why; the next audit_head_write() puts it right. */
enum err audit_head_open(struct store *s, const struct keyring *k, const char *path, struct audit_head **ret, bool *ret_wrong,
                         struct strbuf *ret_why, struct error *reterr) MUST_USE;
/* After a commit: the newest row's number and hash. */
void audit_head_write(struct audit_head *h, struct store *s, const struct keyring *k);
void audit_head_free(struct audit_head **h);

#endif
