/* Blobs in flight and on disk, process-wide: one upstream transfer for a cold blob however many ask (in whichever worker), every reader
 * reads from the file behind it; the last 64 KiB are withheld until the digest matched. With proxy.blob_cache.path a complete,
 * verified file stays (bounded, least recently used goes first); without, the spool file is unlinked from its birth and outlives its
 * last reader by proxy.spool_keep.
 * Knows nothing of rights: who may read was decided before. */
#ifndef PROXY_BLOBS_H
#define PROXY_BLOBS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pullgate/config.h"
#include "pullgate/err.h"
#include "pullgate/oci.h"
#include "pullgate/str.h"
#include "pullgate/upstream.h"

struct worker;
struct blobs;

/* The end of a blob that no client gets before the whole was seen to hash to its digest (SECURITY 2.3). A blob of at most this size is
 * kept in memory and not begun before it is verified, so that its failure still has a status. */
#define BLOBS_WITHHELD ((uint64_t)64 * 1024)

/* Never fails because of a directory: an unusable cache or spool is logged, tried again, and goes around (the relay then streams
 * straight through). Ignores SIGXFSZ for the process: a file size limit is an error to handle like a full disk. */
struct blobs *blobs_new(const struct config *cfg, struct error *reterr);
/* Takes over limits.upstream_retries of another configuration; any thread. */
void blobs_configure(struct blobs *b, const struct config *cfg);
/* No worker runs any more. Their loops may be freed before or after. */
void blobs_free(struct blobs **b);
/* In the worker's thread, when it has no reader left and before its loop ends: transfers that it runs for readers of other
 * workers go on there, by a range request from where they stand. */
void blobs_worker_leave(struct blobs *b, struct worker *w);
/* Blob transfers to clients that this worker has open: counted by the relay, only in the worker's own thread. */
unsigned *blobs_streams(struct blobs *b, struct worker *w);

/* An in-flight transfer is shared by who asks for the same digest in the same repository of the same upstream; complete bytes by who
 * asks for the digest. */
struct blob_key {
    struct str upstream_id, upstream_repository; /* borrowed during the call */
    struct digest digest;
    uint64_t owner;     /* the customer (a hash) for whom it is fetched, if it has to be */
    uint64_t size_hint; /* from the manifest; 0 unknown. An upstream that says another length has failed */
};

/* Is the size known without asking the upstream: from a complete file, or from a transfer whose head has come? */
bool blobs_size(struct blobs *b, const struct blob_key *k, uint64_t *ret);

enum blob_state {
    BLOB_WAITING,    /* nothing known yet */
    BLOB_FILLING,    /* size known (where has_size), `available` bytes may be sent */
    BLOB_DONE,       /* complete and verified */
    BLOB_FAILED,     /* err, detail: for good */
    BLOB_MISMATCH,   /* complete, but not of its digest */
    BLOB_REDIRECTED, /* redirects: pass; location */
    BLOB_UNUSABLE,   /* no file is to be had: stream it straight through */
    BLOB_AGAIN,      /* the cached file turned out bad and is gone: join again */
};
struct blob_view {
    enum blob_state state;
    bool has_size;
    bool from_cache;
    uint64_t size;
    uint64_t available; /* verified or withheld-safe: [0, available) may go to a client */
    int fd;             /* the bytes, or -1 when they are in memory */
    const char *bytes;
    enum err err;
    const char *detail;
    unsigned retry_after_s;
    const char *location;
};
struct blob_reader;
/* Something that blob_look() tells has changed. From the worker's loop, any number of times, never inside a function of this file. */
typedef void blob_changed(void *ctx);
/* Become a reader; look at once, then wait for changes. The first reader's worker runs the transfer. NULL: files are not to be had
 * just now, stream it straight through. */
struct blob_reader *blob_join(struct blobs *b, struct worker *w, const struct blob_key *k, blob_changed *cb, void *ctx);
/* The same, but only where complete bytes exist (on disk, or a spool that others still read); NULL otherwise. */
struct blob_reader *blob_join_complete(struct blobs *b, struct worker *w, const struct blob_key *k, blob_changed *cb, void *ctx);
/* Everything in the view lives as long as the reader; fd too, so close of the last reader must come after its last use. */
void blob_look(struct blob_reader *r, struct blob_view *ret);
/* This reader has handed bytes up to `position` to its client: lets the transfer go on (the fastest reader sets the pace). */
void blob_advance(struct blob_reader *r, uint64_t position);
/* The last reader of a transfer in progress stops it at once. No callback after this. */
void blob_leave(struct blob_reader **r);

struct blobs_stats {
    uint64_t hits, misses, joined; /* joins: complete bytes; began a transfer; took part in one */
    uint64_t resumed;              /* broken transfers continued by a range request */
    uint64_t mismatches, unusable, evicted, dropped_bad;
    uint64_t files, bytes;         /* in the cache */
    uint64_t in_flight;
};
void blobs_stats(struct blobs *b, struct blobs_stats *ret);

#endif
