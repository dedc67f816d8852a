/* An upstream registry: the token dance, redirects, retries, the breaker, and its quirks, over fetch. Used by the proxy's workers
 * and by the admin's jobs (on a loop of their own). What an upstream says is never shown to a customer. */
#ifndef PULLGATE_UPSTREAM_H
#define PULLGATE_UPSTREAM_H

#include <stdbool.h>
#include <stdint.h>

#include "pullgate/err.h"
#include "pullgate/fetch.h"
#include "pullgate/loop.h"
#include "pullgate/oci.h"
#include "pullgate/str.h"

struct jv;
struct keyring;
struct tokenshare;

struct upstream_spec { /* owned copies */
    char *id;
    char *url; /* http(s)://host[:port][/prefix] */
    char *username, *password; /* "" none; cleansed on free */
    char *ca_pem;
    bool redirects_pass;       /* hand 307 to the client instead of following */
    char **redirect_hosts;     /* "host" (any port), "host:port", a URL prefix, or "*.domain" (public addresses only); NULL-terminated */
    char *realm;               /* "" : only a realm on the upstream's own host; else also this one, written like a redirect host */
};
/* From the projected JSON (docs/REDIS.md), secrets unsealed with the keyring. */
enum err upstream_spec_parse(const struct jv *doc, const struct keyring *k, struct upstream_spec **ret, struct error *reterr) MUST_USE;
struct upstream_spec *upstream_spec_copy(const struct upstream_spec *s);
void upstream_spec_free(struct upstream_spec **s);

/* Of all requests made for an upstream, redirect targets included. Written in the loop's thread, each member whole: any may read. */
struct upstream_counters {
    uint64_t answers[6]; /* by status / 100; 0: none came */
    uint64_t retries;
    uint64_t rested;  /* operations that the open breaker refused */
    uint64_t crowded; /* operations refused because limits.queue waited, or that had no turn in time */
    uint64_t is_open; /* the breaker is */
};
struct upstream; /* one per (loop, spec version): own pool, own token cache (credential, scope), own breaker */
struct upstream_limits {
    struct fetch_limits fetch;
    unsigned retries;        /* further tries where no byte arrived */
    size_t manifest_bytes;   /* 4 MiB */
    size_t tags_bytes;       /* 16 MiB over all pages */
    unsigned breaker_failures; /* consecutive; opens the breaker for breaker_ms */
    uint64_t breaker_ms;
    struct tokenshare *tokens; /* Bearer tokens are shared with other upstreams of the same spec and epoch; may be NULL; outlives the upstream */
    uint64_t epoch;            /* of what the spec was read from */
    uint64_t queue;            /* operations that wait for a connection, each of manifests and blobs; more is ERR_UNAVAILABLE. 0: any number */
    struct upstream_counters *counters; /* may be NULL; outlives the upstream and its operations */
}; /* a 0 takes the value named here; breaker_failures 0: 5, breaker_ms 0: 1000 */
struct upstream *upstream_new(struct loop *l, struct upstream_spec *take_spec, const struct upstream_limits *lim);
struct upstream *upstream_ref(struct upstream *u);
void upstream_unref(struct upstream **u); /* operations in flight keep it */
bool upstream_healthy(const struct upstream *u); /* breaker closed */

/* Operations. Each calls cb exactly once, from the loop, never before it returns; after upstream_cancel() never.
 * err: OK; INVALID (repository or reference outside the grammar); NOT_FOUND (the upstream says so: 404); RANGE (blob: its 416); CANCELED
 * (a handler returned FETCH_STOP); UPSTREAM (5xx, broken, forbidden redirect or realm, 401/403 with our
 * credentials, wrong digest); UNAVAILABLE (refused, DNS, breaker open, 429); TIMEOUT. detail is for the log only.
 * retry_after_s: of a 429/503, 0 unknown. */
struct upstream_op;
void upstream_cancel(struct upstream_op **op);
/* On whose behalf it is (any number but 0), told right after the call that began it: connections are dealt out in turns between
 * them. Not told: nobody in particular. */
void upstream_op_for(struct upstream_op *op, uint64_t owner);

struct upstream_manifest {
    int status;               /* 200, or 304 where etag was given */
    enum media_type media_type;
    struct str content_type;  /* as sent */
    struct digest digest;     /* GET: computed from the bytes and, where asked by digest, equal to it; HEAD: as the header says */
    uint64_t size;
    struct str bytes;         /* GET; borrowed during cb */
};
typedef void upstream_manifest_cb(void *ctx, enum err err, const struct upstream_manifest *m, const char *detail, unsigned retry_after_s);
/* reference: a tag or a digest's text. head: HEAD; an upstream whose HEAD has no digest is asked with GET instead, transparently.
 * Verified: by digest, bytes must hash to it, else ERR_UPSTREAM. More bytes than a manifest may have: ERR_TOO_LARGE. Schema 1 answers are ERR_UPSTREAM, and then m is set, with
 * media_type MEDIA_SCHEMA1 and without bytes; with every other error m is NULL. */
struct upstream_op *upstream_manifest(struct upstream *u, struct str repository, struct str reference, bool head, upstream_manifest_cb *cb, void *ctx);

typedef void upstream_tags_cb(void *ctx, enum err err, const struct str *tags, size_t n, const char *detail);
/* All pages, sorted bytewise, duplicates and names outside the grammar dropped. */
struct upstream_op *upstream_tags(struct upstream *u, struct str repository, upstream_tags_cb *cb, void *ctx);

typedef void upstream_referrers_cb(void *ctx, enum err err, struct str index_bytes, const char *detail);
/* GET referrers/<digest>; NOT_FOUND where the upstream has no such API or none. All pages merged is not needed: first page. */
struct upstream_op *upstream_referrers(struct upstream *u, struct str repository, const struct digest *d, upstream_referrers_cb *cb, void *ctx);

struct upstream_blob_head {
    int status;             /* 200 or 206 */
    int64_t length;         /* of this body, -1 unknown */
    uint64_t total;         /* of the blob, when known (206: from Content-Range), else 0 */
    struct byte_range range;/* of a 206 */
    struct str location;    /* redirects_pass: hand this to the client (status 307); borrowed */
};
struct upstream_blob_handlers {
    enum fetch_next (*on_head)(void *ctx, const struct upstream_blob_head *h);
    enum fetch_next (*on_body)(void *ctx, const void *data, size_t n);
    void (*on_done)(void *ctx, enum err err, const char *detail, unsigned retry_after_s);
};
/* range NULL: the whole blob. want_head: HEAD, no body. A retry happens only before on_head. */
struct upstream_op *upstream_blob(struct upstream *u, struct str repository, const struct digest *d, const struct byte_range *range,
                                  bool want_head, const struct upstream_blob_handlers *h, void *ctx);
void upstream_resume(struct upstream_op *op);

typedef void upstream_ping_cb(void *ctx, enum err err, const char *detail);
/* GET /v2/ with the credentials: the admin's `test`. detail is a sentence that an operator can act on. */
struct upstream_op *upstream_ping(struct upstream *u, upstream_ping_cb *cb, void *ctx);

#endif
