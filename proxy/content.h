/* What a repository holds and who may have it: tag -> digest with its freshness, manifests verified and held in memory, the
 * closure index, and the decision over both. Knows facts and upstreams; knows nothing of HTTP. */
#ifndef PROXY_CONTENT_H
#define PROXY_CONTENT_H

#include "pullgate/decision.h"
#include "pullgate/err.h"
#include "pullgate/oci.h"
#include "pullgate/str.h"

#include "facts.h"

struct worker;
struct content;

struct content *content_new(struct worker *w);
void content_free(struct content **c);
/* Memory is short: half of the manifests that are held go, those used longest ago first. */
void content_shed(struct content *c);
/* Manifests held in this worker's memory, for the metrics. */
void content_held(const struct content *c, size_t *ret_manifests, size_t *ret_bytes);
struct repos *content_repos(struct content *c); /* contentrepo.h: for word from another worker */

/* A verified manifest held in memory; refcounted, immutable. */
struct blob_bytes {
    unsigned refs;
    struct digest digest;
    enum media_type media_type;
    char *bytes;
    size_t n;
};
struct blob_bytes *blob_bytes_ref(struct blob_bytes *b);
void blob_bytes_unref(struct blob_bytes **b);

/* Who asks for what. All borrowed; must live until cb or cancel. */
struct content_ask {
    struct fact *customer;   /* FACT_CUSTOMER, entitlement */
    struct fact *repository; /* FACT_REPOSITORY, or NULL when the repository is known not to exist */
    const struct fact_credential *credential;
    const struct oci_request *request; /* MANIFEST, BLOB or REFERRERS */
    const uint8_t *client_addr;
    bool degraded;   /* facts stand by grace: allow only what they allow, everything else is unknown */
    bool want_bytes; /* manifest GET; a HEAD needs digest, type and size only */
};

struct content_answer {
    enum err
        err; /* OK: decision says ALLOW or DENY. UNAVAILABLE, UPSTREAM, TIMEOUT, NOT_FOUND (granted, but the upstream has no such tag) */
    struct decision decision; /* its pointers live as long as ask->customer */
    char reason_version[64];
    struct strbuf message; /* of a denial, for the person; freed by content after cb */
    struct digest digest;  /* ALLOW of a manifest: what is served; of a blob: as asked */
    enum media_type media_type;
    uint64_t size;               /* of the manifest, or of the blob as its manifest says (0 unknown) */
    struct blob_bytes *manifest; /* ALLOW of a manifest (GET and HEAD, when known); borrowed */
    bool is_top;                 /* the manifest is one that a tag resolves to: a logical pull */
    char tag[OCI_TAG_MAX + 1];   /* the tag it was granted through, for the event */
    const char *detail;          /* for the log when err */
    unsigned retry_after_s;
};

/* Decide, and for manifests also fetch. Answers at once from memory where it can: then it returns NULL having filled *now and the
 * caller frees nothing but now->message. Otherwise cb exactly once, later. */
typedef void content_cb(void *ctx, struct content_answer *a);
struct content_op;
struct content_op *content_ask(struct content *c, const struct content_ask *ask, struct content_answer *now, content_cb *cb, void *ctx);
void content_cancel(struct content_op **op);
/* It waits for the upstream, not for Redis alone. */
bool content_asks_upstream(const struct content_op *op);

/* Tags of the repository that the customer may pull now, sorted bytewise, unique. borrowed during cb. */
typedef void content_tags_cb(void *ctx, enum err err, const struct str *tags, size_t n, const char *detail);
struct content_op *content_tags(struct content *c, const struct content_ask *ask, content_tags_cb *cb, void *ctx);

/* Referrers of an allowed subject: the merged index document, unfiltered by artifactType, and whether there is more. For a subject
 * that is not allowed: an empty index, err OK. */
typedef void content_referrers_cb(void *ctx, enum err err, struct str index_json, const char *detail);
struct content_op *content_referrers(struct content *c, const struct content_ask *ask, content_referrers_cb *cb, void *ctx);

#endif
