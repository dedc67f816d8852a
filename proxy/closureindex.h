/* What the manifests of one repository reach: (kind, digest) -> roots, and root -> tags that lead or led to it. Pure: fed with
 * verified documents, asked by the decision; knows no customer, no upstream and no time.
 *
 * A root is a manifest that a tag resolves to, or one that hangs on another manifest (signature, SBOM, other referrer). Every node
 * carries the set of roots that reach it, so that "may this digest be had" is one look-up and a test against the roots
 * that may be had, however many versions share a layer. A child manifest is known from its parent before its own document
 * is; its children follow when it is loaded. Nodes are never taken out, but for closureindex_clear(). */
#ifndef PROXY_CLOSUREINDEX_H
#define PROXY_CLOSUREINDEX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pullgate/closure.h"
#include "pullgate/oci.h"

#define CI_NONE UINT32_MAX

enum ci_state { /* of a manifest's own document */
                CI_UNLOADED,
                CI_LOADED,
                CI_REFUSED, /* what the upstream sent is no acceptable manifest: it reaches nothing */
                CI_GONE,    /* the upstream does not have it: it reaches nothing for now */
};

struct ci_subject { /* this root hangs on that manifest */
    uint32_t node;
    bool proven; /* by a tag that names the subject, or by the document's own `subject`; else it grants nothing */
};
struct ci_manifest { /* a manifest that a root reaches */
    uint32_t node;
    unsigned depth;
};
struct ci_root {
    uint32_t node;
    uint32_t n_nodes;
    bool complete;       /* everything it reaches is in the index */
    bool over;           /* more nodes or deeper than the limits: what lies beyond is not in the index */
    bool stored;         /* for the caller: the shared cache has it */
    uint64_t recheck_ms; /* for the caller: a complete root with something gone or refused in it, looked at again then; 0 never */
    uint32_t *tags;      /* the caller's ids, unique */
    uint32_t n_tags, cap_tags;
    struct ci_subject *subjects;
    uint32_t n_subjects;
    struct ci_manifest *manifests; /* the root's own first */
    uint32_t n_manifests, cap_manifests;
};

struct closureindex;
struct closureindex *closureindex_new(uint32_t max_nodes_a_root, unsigned max_depth);
void closureindex_free(struct closureindex **ci);
void closureindex_clear(struct closureindex *ci);

/* Changes when what hangs on what may have changed the rights of a root already looked at. */
uint64_t closureindex_generation(const struct closureindex *ci);
uint32_t closureindex_nodes(const struct closureindex *ci);
uint32_t closureindex_roots(const struct closureindex *ci);

/* CI_NONE when unknown. */
uint32_t closureindex_find(const struct closureindex *ci, enum node_kind kind, const struct digest *d);
void closureindex_node(const struct closureindex *ci, uint32_t node, struct node *ret);
enum ci_state closureindex_state(const struct closureindex *ci, uint32_t node);
bool closureindex_has_subject(const struct closureindex *ci, uint32_t node); /* something hangs on it */
uint32_t closureindex_root_at(const struct closureindex *ci, uint32_t node); /* the root that this manifest is, or CI_NONE */
/* Valid until the next call that adds. */
struct ci_root *closureindex_root(struct closureindex *ci, uint32_t root);

/* The first root >= from that reaches the node and whose bit in bits (n words; beyond them: clear) is as asked; bits NULL: any. */
uint32_t closureindex_first(const struct closureindex *ci, uint32_t node, uint32_t from, const uint64_t *bits, size_t words, bool set);

/* The root of this manifest digest, made when it is not there. media_type and size may be unknown (0). */
uint32_t closureindex_add_root(struct closureindex *ci, const struct digest *d, enum media_type mt, uint64_t size);
/* A manifest that is only named so far, by what hangs on it: no root reaches it. */
uint32_t closureindex_add_manifest(struct closureindex *ci, const struct digest *d);
void closureindex_add_tag(struct closureindex *ci, uint32_t root, uint32_t tag);
/* The root hangs on the manifest `subject`. True when that was not known before. */
bool closureindex_attach(struct closureindex *ci, uint32_t subject, uint32_t root, bool proven);
/* The node's own document, of that many bytes. Proves or cuts what the node was attached to unproven. */
void closureindex_load(struct closureindex *ci, uint32_t node, const struct manifest *m, uint64_t size);
void closureindex_set_state(struct closureindex *ci, uint32_t node, enum ci_state s);
/* A finished closure from the shared cache: all of it, at once. False: it is not one of this root. */
bool closureindex_add_flat(struct closureindex *ci, uint32_t root, const struct closure *c);

/* The next manifest of the root, from *at on, whose document is not loaded; CI_NONE when there is none. */
uint32_t closureindex_unloaded(const struct closureindex *ci, uint32_t root, uint32_t *at);
/* All its manifests are settled: then marks it complete and says whether all are there (false: some are gone or refused). */
bool closureindex_settle(struct closureindex *ci, uint32_t root, bool *ret_whole);
/* Forget that something of it was gone or refused: it is to be looked for again. */
void closureindex_recheck(struct closureindex *ci, uint32_t root);
/* Everything that a root reaches through loaded documents, root first. */
void closureindex_flat(const struct closureindex *ci, uint32_t root, struct closure *ret);

#endif
