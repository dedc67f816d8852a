/* Failed sign-ins, counted by address or by account: whoever goes on failing waits a minute, two, four … up to an hour. A direct-mapped
 * table of fixed size. What somebody has to wait, and how often he had to, is kept in the store when it begins, so that a restart forgives
 * nobody; what was counted below the limit is not. Thread-safe. */
#ifndef ADMIN_FAILURES_H
#define ADMIN_FAILURES_H

#include <stdbool.h>
#include <stdint.h>

#include "pullgate/str.h"

#define FAILURES_ALERT 20 /* failures of one key that are worth somebody's look */
#define FAILURES_KEY 16 /* an address as in rq->peer_addr, or failures_key() */

struct admin;
struct failures;
/* kind: of its rows in the store, from which it is filled. The writer and the reader run. */
struct failures *failures_new(struct admin *a, const char *kind);
void failures_free(struct failures **f);

/* Counts one; true when that is beyond `limit` a minute, for *ret_wait_s. *ret_alert (may be NULL): it was the 20th. IPv6 addresses count by
 * /64. */
bool failures_count(struct failures *f, const uint8_t key[FAILURES_KEY], const char *peer, int64_t now_s, uint64_t limit, unsigned *ret_wait_s,
                    bool *ret_alert);
/* How long the key has to wait; 0: not at all. */
unsigned failures_wait(struct failures *f, const uint8_t key[FAILURES_KEY], int64_t now_s);
/* The key of anything else than an address. */
void failures_key(struct str text, uint8_t ret[FAILURES_KEY]);
/* Keys that reached 20 failures. */
uint64_t failures_alerts(const struct failures *f);

#endif
