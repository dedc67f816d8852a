/* Blobs in flight and on disk, process-wide: one upstream transfer for a cold blob however many ask (in whichever worker), every reader
 * reads from the file behind it; the last 64 KiB are withheld until the digest matched. With proxy.blob_cache.path a complete,
 * verified file stays (bounded, least recently used goes first); without, the spool file is unlinked from its birth.
 * Knows nothing of rights: who may read was decided before. */
#ifndef PROXY_BLOBS_H
#define PROXY_BLOBS_H

#include "pullgate/config.h"
#include "pullgate/err.h"
#include "pullgate/oci.h"
#include "pullgate/upstream.h"

struct worker;
struct blobs;

struct blobs *blobs_new(const struct config *cfg, struct error *reterr);
void blobs_free(struct blobs **b);

#endif
