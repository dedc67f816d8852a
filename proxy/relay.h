/* Blob bytes to one client, with backpressure: from a cached or spooled file, joined to the transfer that fills it, or straight from
 * the upstream (ranges of a blob that is not cached). Ends exactly once. */
#ifndef PROXY_RELAY_H
#define PROXY_RELAY_H

#include "pullgate/edge.h"
#include "pullgate/err.h"
#include "pullgate/oci.h"
#include "pullgate/upstream.h"

struct worker;
struct relay;

enum relay_end {
    RELAY_OK,
    RELAY_UPSTREAM_FAILED, /* before a byte was sent: the exchange answers with err */
    RELAY_UPSTREAM_CUT,    /* after: the client connection was cut */
    RELAY_TOO_LONG,        /* limits.blob_max_duration: the same, for the client's sake or the upstream's */
    RELAY_DIGEST_MISMATCH, /* the withheld end was not sent; cut */
    RELAY_NOT_SATISFIABLE, /* range outside the blob: the exchange answers 416; size in relay_result */
    RELAY_REDIRECT,        /* redirects: pass; the exchange answers 307 with location */
    RELAY_OVERLOADED,      /* streams_per_worker: 503 */
};
struct relay_result {
    enum relay_end end;
    enum err err;
    const char *detail;
    unsigned retry_after_s;
    uint64_t size;        /* of the blob where known */
    uint64_t bytes_sent;
    const char *location; /* REDIRECT */
    bool head_sent;       /* the answer was begun: nothing more may be answered */
    int status;           /* of that answer: 200 or 206; else 0 */
    bool from_cache;
    uint64_t head_us; /* monotonic: when the answer was begun; 0 not */
};
struct relay_ask {
    struct edge_req *req;
    struct str upstream_id;
    struct str upstream_repository;
    struct str repository_id;
    struct digest digest;
    uint64_t owner;      /* the customer (a hash) */
    uint64_t size_hint;  /* from the manifest that named the blob; 0 unknown */
    bool head_only;      /* HEAD: answer with the size, no transfer */
    struct str range;    /* Range field's value, empty: none */
    struct str fields;   /* further response fields (CRLF lines), e.g. request id */
};
/* done once, from the loop, never inside relay_start() or relay_drained(). It has sent the answer (head_sent) or leaves it to the
 * caller. The result, its strings too, is gone after done. */
typedef void relay_done_cb(void *ctx, const struct relay_result *r);
struct relay *relay_start(struct worker *w, const struct relay_ask *ask, relay_done_cb *done, void *ctx);
void relay_drained(struct relay *r);  /* the edge's on_drain */
/* How far it has come, for who is about to cancel it: all but the end, the error and the texts. */
struct relay_result relay_so_far(const struct relay *r);
void relay_cancel(struct relay **r);  /* the client left: the upstream stops at once unless others read */

#endif
