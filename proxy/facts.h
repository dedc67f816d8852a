/* Facts from Redis as this worker holds them: verified, parsed, current (docs/REDIS.md). The only reader of the projection.
 * It decides "known", "known to be absent" and "cannot know"; it knows nothing of what the facts mean for a request. */
#ifndef PROXY_FACTS_H
#define PROXY_FACTS_H

#include "pullgate/err.h"
#include "pullgate/jv.h"
#include "pullgate/license.h"
#include "pullgate/str.h"
#include "pullgate/upstream.h"

struct worker;
struct facts;

enum fact_kind { FACT_CREDENTIAL, FACT_CUSTOMER, FACT_REPOSITORY, FACT_TAGS, FACT_UPSTREAM };

/* Refcounted, immutable. Exactly one of the parsed members is set, by kind. */
struct fact {
    unsigned refs;
    enum fact_kind kind;
    char *name;     /* "c:cus_…" */
    uint64_t epoch; /* changes whenever the content does */
    struct fact_credential {
        char *id, *customer_id, *customer_slug, *vendor_id, *license_id, *name;
        bool is_license_key;
        int64_t expires_at_s;
        struct cidr *allowed_cidrs;
        size_t n_allowed_cidrs;
    } *credential;
    struct entitlement *entitlement;
    struct fact_repository {
        char *id, *name, *application_id, *application_slug, *vendor_id, *upstream_id, *upstream_repository, *kind, *tag_template;
    } *repository;
    struct fact_tags {
        struct fact_tag {
            char *tag, *version, *channel;
            int64_t released_at_s;
            struct fact_tag_digest {
                struct digest digest;
                int64_t first_seen_s, last_seen_s;
            } *digests;
            size_t n_digests;
        } *tags; /* sorted by tag */
        size_t n;
    } *tags;
    struct upstream_spec *upstream;
};
struct fact *fact_ref(struct fact *f);
/* A customer as a number, for who deals out turns: never 0. */
static inline uint64_t customer_mark(const struct fact *customer)
{
    return str_hash(str_c(customer->name)) | 1;
}
void fact_unref(struct fact **f);

struct config;
struct facts *facts_new(struct worker *w);
void facts_configure(struct facts *f, const struct config *cfg); /* takes over the durations of another configuration */
void facts_free(struct facts **f); /* before the worker's cache; waiters are dropped without a callback */

/* Look up in memory. ERR_OK: *ret is set (borrowed until the next loop round; fact_ref() to keep), or NULL: known to be
 * absent. ERR_UNAVAILABLE: not known now; call facts_get(). *ret_degraded (may be NULL): the answer is older than max_staleness and
 * only stands by grace_when_cache_is_down; then only what it allows may be used (an absence allows nothing: it is unavailable then). */
enum err facts_peek(struct facts *f, enum fact_kind kind, struct str id, struct fact **ret, bool *ret_degraded);

/* The same, asking Redis when needed. cb exactly once, never inside the call; err OK or UNAVAILABLE (after hold_on_unknown it stops
 * trying). Identical look-ups in flight join. */
typedef void facts_cb(void *ctx, enum err err, struct fact *fact, bool degraded);
struct facts_op;
struct facts_op *facts_get(struct facts *f, enum fact_kind kind, struct str id, facts_cb *cb, void *ctx);
void facts_cancel(struct facts_op **op);

/* Age of the newest root in ms, UINT64_MAX when there is none: readiness and metrics. */
uint64_t facts_staleness_ms(const struct facts *f);
/* Changes whenever any fact of this customer or repository may have: for caches above. */
uint64_t facts_generation(const struct facts *f);

#endif
