/* Carries events out: hands each new one to the webhooks that want it and to the customer by mail, and calls the webhooks. One thread with
 * a loop; the store is written through the writer. At least once: what a crash leaves open is made again. */
#ifndef ADMIN_DELIVERY_H
#define ADMIN_DELIVERY_H

#include <stdbool.h>
#include <stdint.h>

#include "pullgate/err.h"
#include "pullgate/seal.h"
#include "pullgate/store.h"
#include "pullgate/str.h"

struct admin;
struct config;
struct delivery;
struct fetch_url;

struct delivery *delivery_start(struct admin *a);
/* Cuts what runs and ends the thread; before the writer ends. */
void delivery_end(struct delivery *d);
void delivery_stop(struct delivery **d);
/* Something was committed: there may be an event. Any thread; cheap. */
void delivery_poke(struct delivery *d);

/* Events that were not handed out yet, up to a bounded number, in a transaction of the writer. *ret_n: how many there were. */
enum err delivery_hand_out(struct admin *a, struct store *s, int64_t now_ms, unsigned *ret_n, struct error *reterr) MUST_USE;

/* May webhooks reach private addresses of this host, and it by http? */
bool delivery_host_private(const struct config *cfg, struct str host);
/* Milliseconds to rest after the failures-th failure in a row: doubling from `first`, at most six hours, a fifth more or less. */
int64_t delivery_backoff_ms(uint64_t first_ms, int64_t failures);
/* "sha256=<hex>" of the HMAC of "<timestamp>.<body>". */
#define DELIVERY_SIGNATURE_MAX (7 + 2 * SEAL_MAC_LEN + 1)
void delivery_sign(struct str secret, int64_t timestamp_s, struct str body, char ret[DELIVERY_SIGNATURE_MAX]);

#endif
