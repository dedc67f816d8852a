/* One request and its answer: the state that the steps share, and the one function that ends it.
 * Private to exchange.c, authn.c, entitle.c, discovery.c, tokens.c and respond.c. */
#ifndef PROXY_EXCHANGE_H
#define PROXY_EXCHANGE_H

#include <stdbool.h>
#include <stdint.h>

#include "pullgate/credential.h"
#include "pullgate/edge.h"
#include "pullgate/oci.h"

#include "content.h"
#include "facts.h"
#include "relay.h"
#include "turns.h"
#include "worker.h"

/* Why an exchange ended. The access line prints it. */
#define END_LIST(X)                                                                                                    \
    X(OK, "ok")                                                                                                        \
    X(NOT_MODIFIED, "not_modified")                                                                                    \
    X(REFUSED, "refused")               /* malformed, unknown route, method */                                         \
    X(UNAUTHN, "unauthenticated")                                                                                      \
    X(DENIED, "denied")                                                                                                \
    X(NOT_FOUND, "not_found")                                                                                          \
    X(RATE_LIMITED, "rate_limited")                                                                                    \
    X(OVERLOADED, "overloaded")                                                                                        \
    X(FACTS_UNAVAILABLE, "facts_unavailable")     /* Redis cannot tell */                                              \
    X(CONTENT_UNAVAILABLE, "content_unavailable") /* the upstream cannot tell */                                       \
    X(UPSTREAM_FAILED, "upstream_failed")                                                                              \
    X(TOO_LONG, "too_long")             /* limits.blob_max_duration */                                                 \
    X(UPSTREAM_CUT, "upstream_cut")                                                                                    \
    X(DIGEST_MISMATCH, "digest_mismatch")                                                                              \
    X(RANGE, "range")                                                                                                  \
    X(REDIRECTED, "redirected")                                                                                        \
    X(CLIENT_GONE, "client_gone")                                                                                      \
    X(CLIENT_SLOW, "client_slow")
enum end {
#define X(name, text) END_##name,
    END_LIST(X)
#undef X
};

enum ex_step { EX_ROUTE, EX_AUTHN, EX_ENTITLE, EX_ANSWER, EX_STEPS };
enum next { NEXT_STEP, NEXT_WAIT, NEXT_DONE };

enum route {
    ROUTE_REGISTRY, /* /v2/… : ex->oci */
    ROUTE_TOKEN,
    ROUTE_HEALTHZ,
    ROUTE_READYZ,
    ROUTE_NONE,
};

#define EXCHANGE_MAGIC 0x45584348u
#define EXCHANGE_REQUEST_ID_MAX ID_MAX

struct exchange {
    unsigned magic;
    struct worker *w;
    struct edge_req *req; /* NULL once answered or gone */
    const struct head *head;
    enum ex_step step;
    enum route route;
    bool is_head;
    bool in_flight; /* counted by the guard */
    bool has_stream, has_wait; /* shares held by the guard */
    char *stream_customer, *stream_upstream; /* whose */
    struct turn turn;          /* waits for others of its customer */
    char id[EXCHANGE_REQUEST_ID_MAX];
    uint64_t start_us;
    uint64_t hold_until_ms; /* monotonic: a passing "cannot know" is tried again until then */
    uint64_t turn_until_ms; /* monotonic: waits for others of its customer until then */
    struct oci_request oci;

    /* authn */
    char credential_hash[CREDENTIAL_HASH_MAX];
    bool is_bearer;
    bool token_covers; /* Bearer: the token names ex->oci.repository */
    struct fact *credential; /* ref */

    /* entitle */
    struct fact *customer;   /* ref */
    struct fact *repository; /* ref, or NULL: known not to exist */
    bool degraded;

    /* the one operation in flight; at most one of these is set */
    struct facts_op *facts_op;
    struct content_op *content_op;
    struct relay *relay;
    struct discovery *discovery;
    struct timer *retry; /* lazily made */

    struct content_ask ask;
    struct content_answer answer;

    /* for the access line and the event */
    char peer[46];
    char *kept;       /* copies of repository, reference and agent once the head may go */
    struct str agent; /* in kept */
    int status;
    enum reason reason;
    struct str license_id;
    uint64_t bytes;
    const char *detail;
    bool from_cache;
    bool waited;             /* for a fact */
    uint64_t facts_us;       /* monotonic: when they had come */
    uint64_t first_byte_us;  /* monotonic: of a relayed answer; 0: the answer went out whole */
    struct exchange *next_free;
};

#define EXCHANGE(ctx) exchange_check(ctx)
struct exchange *exchange_check(void *ctx);

/* The edge's handlers for this worker's registry listener. */
struct edge_handlers exchange_handlers(struct worker *w);
void exchange_free_spares(void); /* at a worker's end, in its thread */

/* Runs steps until one waits or the exchange is over. Last statement of every callback: ex may be gone. */
void exchange_run(struct exchange *ex);
/* The only end. The answer was sent, or is on its way in the edge. Writes the access line, frees everything. */
void exchange_end(struct exchange *ex, enum end cause);
/* A dependency could not tell: try this step again in a moment while hold_until_ms allows (NEXT_WAIT), else 503 (NEXT_DONE). */
enum next exchange_hold_or_fail(struct exchange *ex, enum err err, unsigned retry_after_s, const char *detail);

/* What it asks of content.h. */
struct content_ask exchange_asks(const struct exchange *ex);

/* Too busy for this one right now: true when it begins again in its turn, false when it has waited long enough. */
bool exchange_wait_turn(struct exchange *ex);
void exchange_on_turn(struct turn *t); /* for turns_new() */

/* Steps. authn.c: */
enum next authn_step(struct exchange *ex);
struct authcache;
struct authcache *authcache_new(void);
void authcache_free(struct authcache **c);
/* A password or token was wrong: 401 with the challenge, or 429. Ends the exchange. */
enum next authn_refuse(struct exchange *ex, struct str message, enum reason reason, bool count_failure);
/* Does the presented Basic authorization name a credential? Used by the token endpoint too. False: *ret_hash untouched. */
bool authn_basic_hash(struct worker *w, struct str authorization, char ret_hash[CREDENTIAL_HASH_MAX]);

/* entitle.c: the customer's entitlement and the repository, from facts. */
enum next entitle_step(struct exchange *ex);

/* discovery.c: tags/list, _catalog, referrers. */
enum next discovery_start(struct exchange *ex);
void discovery_cancel(struct discovery **d);

/* tokens.c: the token endpoint. */
enum next tokens_answer(struct exchange *ex);

/* respond.c: everything that is written to a client but blobs. Each ends the exchange. */
enum next respond_oci_error(struct exchange *ex, int status, const char *code, struct str message, enum end cause, const char *extra_fields);
enum next respond_decision(struct exchange *ex); /* a DENY in ex->answer */
enum next respond_manifest(struct exchange *ex);
enum next respond_json(struct exchange *ex, int status, const char *content_type, struct str body, const char *extra_fields, enum end cause);
enum next respond_unavailable(struct exchange *ex, enum err err, unsigned retry_after_s);
/* Fields that every registry answer carries, for relay as well. */
void respond_common_fields(struct exchange *ex, struct strbuf *ret);
void respond_free_scratch(void); /* at a worker's end, in its thread */
void respond_refusal(void *ctx, int status, const char *reason, struct strbuf *fields, struct strbuf *body);

#endif
