/* What is used of a license: pulls, bytes and installations of the present window, counted from the proxies' reports, and what follows
 * when a limit is passed: an event, and with limit_action deny a fact that ends the pulls (docs/REDIS.md quota_exceeded, instances).
 * Reports come some seconds late, so a limit may be passed by what was under way. All inside the caller's writing transaction. */
#ifndef ADMIN_USAGE_H
#define ADMIN_USAGE_H

#include <stdbool.h>
#include <stdint.h>

#include "api.h"
#include "pullgate/err.h"
#include "pullgate/store.h"
#include "pullgate/str.h"

#define USAGE_INSTANCE_DAYS 30 /* an installation that did not pull for so long gives its place up, where no reset_period says otherwise */

struct usage_pull {
    struct str license_id, credential_id, client, agent;
    bool allowed, is_quota; /* denied, and because of a limit */
    int64_t at_s;
};
enum err usage_pulled(struct store *s, const struct usage_pull *p, struct error *reterr) MUST_USE;
/* A proxy's sum, once for each report id. */
enum err usage_bytes(struct store *s, struct str report_id, struct str license_id, int64_t bytes, int64_t at_s, struct error *reterr) MUST_USE;
/* The license's limits or installations were changed: what follows from what was counted follows anew. Writes c: into the outbox where
 * the fact may change; emits no event. */
enum err usage_refresh(struct store *s, struct str license_id, int64_t now_s, struct error *reterr) MUST_USE;
/* What only the clock does: installations that were silent for long give their places up. At most `max`; the others the next time. */
enum err usage_tick(struct store *s, int64_t now_s, int max, struct error *reterr) MUST_USE;

extern const struct field USAGE_FIELDS[]; /* of the object that usage_print() makes */
/* Installations that hold a place in the window from from_s; until_s 0: it has no end, and whoever was not silent for long counts. */
enum err usage_instances(struct store *s, struct str license_id, int64_t from_s, int64_t until_s, int64_t *ret, struct error *reterr) MUST_USE;
/* GET /licenses/{id}/usage as an object (api_usage.c); a customer's request sees its own licenses only. */
enum err usage_print(struct api *rq, struct str license_id, struct jv **ret) MUST_USE;

#endif
