/* What a manifest reaches. Pure: bytes of one verified document in, its edges out (SECURITY 1.6.1, 1.6.8). */
#ifndef PULLGATE_CLOSURE_H
#define PULLGATE_CLOSURE_H

#include <stdbool.h>
#include <stdint.h>

#include "pullgate/err.h"
#include "pullgate/oci.h"
#include "pullgate/str.h"

enum node_kind { NODE_NONE, NODE_MANIFEST, NODE_BLOB };

#define CLOSURE_MAX_NODES 10000
#define CLOSURE_MAX_DEPTH 4
#define CLOSURE_MAX_MANIFEST (4u * 1024 * 1024)

struct node {
    enum node_kind kind;
    struct digest digest;
    enum media_type media_type; /* of a manifest */
    uint64_t size;
};

struct manifest { /* what one document says; owned, manifest_free() */
    enum media_type media_type;
    bool has_subject;
    struct digest subject;
    char *artifact_type; /* artifactType, or config.mediaType for an OCI manifest; "" none */
    char *annotations;   /* JSON text of its annotations object, or "" */
    struct node *children; /* manifests of an index; config (first) and layers of a manifest; blobs of an artifact */
    size_t n_children;
    char *platforms; /* of an index: "linux/amd64,linux/arm64/v8", unknown/unknown left out; "" otherwise */
};

/* Parse one manifest document. content_type is what the registry said ("" unknown); it must agree with the document's own
 * mediaType where both are there. Refused with ERR_INVALID: over CLOSURE_MAX_MANIFEST, schemaVersion != 2, schema 1, both
 * `manifests` and `layers`/`config`, bad digests or sizes, more than CLOSURE_MAX_NODES edges, duplicate keys.
 * urls[] and data are no edges. */
enum err manifest_parse(struct str bytes, struct str content_type, struct manifest **ret, struct error *reterr) MUST_USE;
void manifest_free(struct manifest *m);

/* A finished closure: the root, then every node reached, no node twice of the same kind. Text form for Redis:
 * "<m|b> <digest> <media type or -> <size>\n" a node, root first. */
struct closure {
    struct node *nodes;
    size_t n;
    size_t cap;
    uint32_t *slots; /* hash index over nodes, closure.c's own; zero-initialise the whole */
    size_t n_slots;
};
void closure_free(struct closure *c);
/* Add once; false when it was there already. ERR-free but bounded: nothing is added once n is CLOSURE_MAX_NODES, and the
 * caller must check closure_full(): a full closure is refused, it may be cut. */
bool closure_add(struct closure *c, const struct node *n);
bool closure_full(const struct closure *c);
/* The node of that kind and digest, or NULL; borrowed until the next closure_add(). */
const struct node *closure_find(const struct closure *c, enum node_kind kind, const struct digest *d);
void closure_print(const struct closure *c, struct strbuf *ret);
enum err closure_scan(struct str text, struct closure *ret, struct error *reterr) MUST_USE;

#endif
