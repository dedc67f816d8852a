/* Verified manifests in memory by digest, bounded in bytes, least recently used goes first. One a worker, without a lock; behind
 * all of them one that the process shares, asked when a worker's own has nothing, so that what one worker fetched every
 * worker has, also when the upstream is away. Bytes only: having a manifest here says nothing about who may read it. */
#ifndef PROXY_MANIFESTCACHE_H
#define PROXY_MANIFESTCACHE_H

#include <stddef.h>

#include "pullgate/oci.h"
#include "pullgate/str.h"

#include "content.h"

struct manifestcache;

/* shared_bytes: bound of the shared one, 0: this cache is on its own. The first to say it decides. */
struct manifestcache *manifestcache_new(size_t max_bytes, size_t shared_bytes);
void manifestcache_free(struct manifestcache **mc); /* whoever holds a reference keeps his bytes */

/* Borrowed until the next put; blob_bytes_ref() to keep. NULL: not held, by no worker. Counts as a use. */
struct blob_bytes *manifestcache_get(struct manifestcache *mc, const struct digest *d);

/* Copy bytes whose digest was verified. The result carries one reference of the caller's, whether or not it also stays in the
 * cache (a document larger than the cache does not). NULL: no memory. */
struct blob_bytes *manifestcache_put(struct manifestcache *mc, const struct digest *d, enum media_type mt, struct str bytes);

/* Down to so many bytes; the process's shared one too. */
void manifestcache_shrink(struct manifestcache *mc, size_t max_bytes);
size_t manifestcache_bytes(const struct manifestcache *mc);
size_t manifestcache_count(const struct manifestcache *mc);

#endif
