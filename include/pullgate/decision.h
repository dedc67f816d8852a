/* The decision: a pure function of the entitlement, the request and the time. The unit test's table of cases is the policy.
 * Zero-initialised is UNKNOWN, which is never served. */
#ifndef PULLGATE_DECISION_H
#define PULLGATE_DECISION_H

#include <stdbool.h>
#include <stdint.h>

#include "pullgate/license.h"
#include "pullgate/oci.h"
#include "pullgate/str.h"

enum verdict { VERDICT_UNKNOWN, VERDICT_ALLOW, VERDICT_DENY };

/* Closed list, the same in the OCI error's detail, the pull log, the metrics and explain. */
#define REASON_LIST(X)                                                                                                 \
    X(UNKNOWN, "unknown")                                                                                              \
    X(GRANTED, "granted")                                                                                              \
    X(NO_LICENSE, "no_license")                                                                                        \
    X(REVOKED, "revoked")                                                                                              \
    X(SUSPENDED, "suspended")                                                                                          \
    X(INACTIVE, "inactive")                                                                                            \
    X(SCHEDULED, "scheduled")                                                                                          \
    X(EXPIRED, "expired")                                                                                              \
    X(IP_NOT_ALLOWED, "ip_not_allowed")                                                                                \
    X(QUOTA_EXCEEDED, "quota_exceeded")                                                                                \
    X(MAINTENANCE_ENDED, "maintenance_ended")                                                                          \
    X(GRANT_WINDOW, "grant_window")               /* a grant names the version, its own window is closed */            \
    X(VERSION_NOT_GRANTED, "version_not_granted")                                                                      \
    X(NOT_IN_CLOSURE, "not_in_closure")           /* a digest outside the granted closure: answered 404 */             \
    X(CUSTOMER_DISABLED, "customer_disabled")                                                                          \
    X(CREDENTIAL_EXPIRED, "credential_expired")                                                                        \
    X(RATE_LIMITED, "rate_limited")
enum reason {
#define X(name, text) REASON_##name,
    REASON_LIST(X)
#undef X
};
const char *reason_text(enum reason r);

/* One tag by which the asked content is or was reachable. */
struct candidate {
    struct str tag;
    struct str version;     /* by the repository's template or a version record; "" when the tag fits neither */
    struct str channel;     /* of the version record, "" none */
    int64_t released_at_s;  /* of the version record or the first sighting; 0 unknown */
    struct digest digest;   /* top manifest; DIGEST_NONE when not yet resolved (only SELECTOR_DIGEST and pins need it) */
    int64_t until_s;        /* last moment the tag resolved to this digest; 0 = it does now */
};

struct decision_query {
    struct str repository; /* public name */
    bool is_digest;        /* asked by digest: outside every candidate means NOT_IN_CLOSURE, not VERSION_NOT_GRANTED */
    const struct candidate *candidates;
    size_t n_candidates;
    int64_t now_s;
    const uint8_t *client_addr; /* 16 bytes, IPv4 mapped; NULL when unknown (then allowed_cidrs deny) */
    uint64_t instance;          /* license_instance() of who asks; 0 unknown (then a license whose installations are all taken denies) */
    bool any_instance;          /* asked in general, not by an installation: what the installations take up does not count */
    struct str license_id;      /* credential bound to one license: only that one counts; "" = all */
};

struct decision {
    enum verdict verdict;
    enum reason reason;
    const struct license *license;     /* the one that caused it; NULL for no_license. Borrowed from the entitlement */
    const struct grant *grant;         /* for ALLOW */
    const struct candidate *candidate; /* for ALLOW */
    int64_t valid_until_s;             /* the decision cannot change by the clock before this; INT64_MAX = never */
};

/* Total: ent NULL gives UNKNOWN, and so does a now that is not positive. Union over licenses: one that allows is enough (the first in order is named); where none
 * does, the reason is of the license that came closest to allowing, in REASON_LIST's reading (see decision.c). */
void decision_make(const struct entitlement *ent, const struct decision_query *q, struct decision *ret);

/* Per license, for explain: verdict and reason of this license alone. */
void decision_of_license(const struct entitlement *ent, const struct license *l, const struct decision_query *q, struct decision *ret);

/* Is there a license for this repository under which anything may be pulled: in force, or expired with what was released before kept?
 * Where there is none, lists are refused with the license's reason; where there is one, they show what it allows. */
bool decision_any_usable(const struct entitlement *ent, struct str repository, int64_t now_s);

/* The sentence for a person: names the license, the cause, the date and what to do; without the "[ref …]".
 * `reference` is what the client sent (already grammar-checked). One line, no control bytes, at most 600 bytes. */
void decision_message(const struct entitlement *ent, const struct decision *d, const struct decision_query *q, struct str reference,
                      struct strbuf *ret);

#endif
