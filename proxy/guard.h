/* What slows an abuser down without locking anybody out: failed sign-ins per address, per user name and of all, and what one customer may
 * have under way. One for the process, thread-safe, bounded. It is asked about failures only after they failed, so right credentials
 * always pass; it keeps nothing that would help whoever reads its memory to a secret. */
#ifndef PROXY_GUARD_H
#define PROXY_GUARD_H

#include <stdbool.h>
#include <stdint.h>

#include "pullgate/config.h"
#include "pullgate/str.h"

struct guard;
struct guard *guard_new(const struct config *cfg);
void guard_free(struct guard **g);
/* Takes over the limits of another configuration; any thread. */
void guard_configure(struct guard *g, const struct config *cfg);

/* A sign-in failed: is this one too many? False: answer 401. True: answer 429 with Retry-After.
 * addr           16 bytes, IPv4 mapped; of IPv6 the first 64 bits count
 * authorization  the whole field value that was presented; kept as a mark only. The same one from the same address counts once a
 *                minute: a containerd pull with a wrong key is five refusals, and a cluster repeats it
 * ret_retry_after_s  at least 1 */
bool guard_auth_failed(struct guard *g, const uint8_t addr[16], struct str authorization, unsigned *ret_retry_after_s);

/* One more exchange of this customer: false when its requests of this second (own_per_second, or with 0 limits.requests_per_customer) are spent (try again after
 * *ret_retry_after_s, at least 1), or when limits.inflight_per_customer are being decided (*ret_retry_after_s is 0: a moment's wait is
 * likely enough). Each true is given back with guard_customer_done(). */
bool guard_customer_begin(struct guard *g, struct str customer_id, uint64_t own_per_second, unsigned *ret_retry_after_s);
void guard_customer_done(struct guard *g, struct str customer_id);

/* Shares of what is scarce for the whole process. A party may hold `part` times as much as is left of max: with 1 a customer alone gets at
 * most a half, two get a third each, and something is left for who comes next. Each true is given back. */
enum guard_share { SHARE_CUSTOMER_STREAMS, SHARE_UPSTREAM_STREAMS, SHARE_UPSTREAM_WAITS, GUARD_SHARES };
bool guard_share_take(struct guard *g, enum guard_share what, struct str id, unsigned part, uint64_t max);
void guard_share_give(struct guard *g, enum guard_share what, struct str id);

struct guard_counters { /* since the start */
    uint64_t auth_failures;         /* refused sign-ins */
    uint64_t auth_refused_address;  /* of them 429 by address */
    uint64_t auth_refused_user;     /* of them 429 by user name */
    uint64_t auth_refused_all;      /* of them 429 by the rate of everybody together */
    uint64_t customer_refused;      /* 429 of a customer */
};
void guard_counters(const struct guard *g, struct guard_counters *ret);

#endif
