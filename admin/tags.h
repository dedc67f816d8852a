/* What is known of tags: one place that records what a tag resolved to, for the proxies' reports and the sync alike, and binds
 * the grants that pin (DESIGN 4.3). All inside the caller's writing transaction; a row is only touched when something changed. */
#ifndef ADMIN_TAGS_H
#define ADMIN_TAGS_H

#include <stdbool.h>
#include <stdint.h>

#include "pullgate/err.h"
#include "pullgate/str.h"

struct store;

struct tag_sighting {
    struct str repository_id, tag, digest, media_type; /* checked by the caller */
    uint64_t size;
    int64_t at_s; /* when it was seen */
};
/* The tag resolved to the digest. History, the version's first sighting, pins and the outbox rows of all that. Older than what is
 * known of the tag: ignored. *ret_changed: something was written. ERR_OK also for a repository that is gone. */
enum err tags_seen(struct store *s, const struct tag_sighting *t, bool *ret_changed, struct error *reterr) MUST_USE;
/* The tag is gone upstream, as of at_s. */
enum err tags_gone(struct store *s, struct str repository_id, struct str tag, int64_t at_s, bool *ret_changed,
                   struct error *reterr) MUST_USE;
/* A license's grants were made or changed: those that pin bind to what the tags resolve to now. Writes c: into the outbox when
 * something was bound. */
enum err tags_pin_license(struct store *s, struct str license_id, int64_t now_s, struct error *reterr) MUST_USE;

#endif
