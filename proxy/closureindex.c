/* The closure index: an open-addressing table of nodes; each node carries its roots as two numbers, a sorted list, or a bitmap,
 * whichever is smallest for their number. */
#include "closureindex.h"

#include <string.h>

#include "pullgate/mem.h"

enum { ROOTS_INLINE = 2, ROOTS_LIST = 64 }; /* more roots than this in a node: a bitmap */

struct cnode {
    uint8_t head[32]; /* of the digest */
    uint32_t tail;    /* sha512: 1 + index of its second half; sha256: 0 */
    uint8_t kind;     /* enum node_kind */
    uint8_t media_type;
    uint8_t state;    /* enum ci_state */
    bool has_subject; /* a root hangs on it */
    uint64_t size;
    uint32_t as_root; /* the root that it is, CI_NONE */
    uint32_t edges;   /* 1 + index of its children, 0: none known */
    uint32_t n_roots;
    union {
        uint32_t few[ROOTS_INLINE];
        uint32_t *list; /* sorted; capacity: next power of two */
        uint64_t *bits; /* bits[0]: number of words that follow */
    } roots;
};

struct edges {
    uint32_t *nodes;
    uint32_t n;
};

struct slot {
    uint32_t hash;
    uint32_t node; /* 1 + index; 0: free */
};

struct step {
    uint32_t node;
    unsigned depth;
};

struct closureindex {
    uint32_t max_nodes;
    unsigned max_depth;
    uint64_t generation;
    struct cnode *nodes;
    uint32_t n_nodes, cap_nodes;
    struct slot *table;
    size_t table_n; /* power of two */
    uint8_t (*tails)[32];
    uint32_t n_tails, cap_tails;
    struct edges *edges;
    uint32_t n_edges, cap_edges;
    struct ci_root *roots;
    uint32_t n_roots, cap_roots;
    struct step *stack;
    size_t n_stack, cap_stack;
};

static const size_t TABLE_MIN = 1024;

struct closureindex *closureindex_new(uint32_t max_nodes_a_root, unsigned max_depth)
{
    struct closureindex *ci = NEW(struct closureindex);
    ci->max_nodes = max_nodes_a_root;
    ci->max_depth = max_depth;
    ci->generation = 1;
    return ci;
}

void closureindex_clear(struct closureindex *ci)
{
    for (uint32_t i = 0; i < ci->n_nodes; i++)
        if (ci->nodes[i].n_roots > ROOTS_LIST)
            mem_free(ci->nodes[i].roots.bits);
        else if (ci->nodes[i].n_roots > ROOTS_INLINE)
            mem_free(ci->nodes[i].roots.list);
    for (uint32_t i = 0; i < ci->n_edges; i++)
        mem_free(ci->edges[i].nodes);
    for (uint32_t i = 0; i < ci->n_roots; i++) {
        mem_free(ci->roots[i].tags);
        mem_free(ci->roots[i].subjects);
        mem_free(ci->roots[i].manifests);
    }
    mem_free(ci->nodes);
    mem_free(ci->table);
    mem_free(ci->tails);
    mem_free(ci->edges);
    mem_free(ci->roots);
    mem_free(ci->stack);
    *ci = (struct closureindex){.max_nodes = ci->max_nodes, .max_depth = ci->max_depth, .generation = ci->generation + 1};
}

void closureindex_free(struct closureindex **pci)
{
    struct closureindex *ci = *pci;
    *pci = NULL;
    if (!ci)
        return;
    closureindex_clear(ci);
    mem_free(ci);
}

uint64_t closureindex_generation(const struct closureindex *ci)
{
    return ci->generation;
}

uint32_t closureindex_nodes(const struct closureindex *ci)
{
    return ci->n_nodes;
}

uint32_t closureindex_roots(const struct closureindex *ci)
{
    return ci->n_roots;
}

/* Room for one more of an array that doubles. */
#define GROW(array, n, cap)                                                                                                                \
    do {                                                                                                                                   \
        if ((n) == (cap)) {                                                                                                                \
            AN((cap) < UINT32_MAX / 2);                                                                                                    \
            (cap) = (cap) ? (cap)*2 : 8;                                                                                                   \
            (array) = mem_realloc((array), (size_t)(cap) * sizeof(*(array)));                                                              \
        }                                                                                                                                  \
    } while (0)

/* ---- nodes ----------------------------------------------------------------------------------- */

static uint32_t node_hash(enum node_kind kind, const struct digest *d)
{
    uint64_t h = digest_hash(d) + (uint64_t)kind * UINT64_C(0x9e3779b97f4a7c15);
    return (uint32_t)(h ^ (h >> 32));
}

static bool node_is(const struct closureindex *ci, const struct cnode *n, enum node_kind kind, const struct digest *d)
{
    if (n->kind != kind || (d->alg == DIGEST_SHA512) != (n->tail != 0) || memcmp(n->head, d->bytes, sizeof n->head) != 0)
        return false;
    return n->tail == 0 || memcmp(ci->tails[n->tail - 1], d->bytes + sizeof n->head, 32) == 0;
}

uint32_t closureindex_find(const struct closureindex *ci, enum node_kind kind, const struct digest *d)
{
    if (!ci->table_n || (d->alg != DIGEST_SHA256 && d->alg != DIGEST_SHA512))
        return CI_NONE;
    uint32_t h = node_hash(kind, d);
    for (size_t i = h & (ci->table_n - 1);; i = (i + 1) & (ci->table_n - 1)) {
        const struct slot *s = &ci->table[i];
        if (!s->node)
            return CI_NONE;
        if (s->hash == h && node_is(ci, &ci->nodes[s->node - 1], kind, d))
            return s->node - 1;
    }
}

static void table_put(struct slot *table, size_t n, uint32_t hash, uint32_t node)
{
    size_t i = hash & (n - 1);
    while (table[i].node)
        i = (i + 1) & (n - 1);
    table[i] = (struct slot){hash, node + 1};
}

static void table_grow(struct closureindex *ci)
{
    size_t n = ci->table_n ? ci->table_n * 2 : TABLE_MIN;
    struct slot *t = mem_calloc(n, sizeof(*t));
    for (size_t i = 0; i < ci->table_n; i++)
        if (ci->table[i].node)
            table_put(t, n, ci->table[i].hash, ci->table[i].node - 1);
    mem_free(ci->table);
    ci->table = t;
    ci->table_n = n;
}

static uint32_t node_get(struct closureindex *ci, enum node_kind kind, const struct digest *d, enum media_type mt, uint64_t size)
{
    uint32_t id = closureindex_find(ci, kind, d);
    if (id != CI_NONE) {
        struct cnode *known = &ci->nodes[id];
        if (known->media_type == MEDIA_UNKNOWN)
            known->media_type = (uint8_t)mt;
        if (known->size == 0)
            known->size = size;
        return id;
    }
    if ((size_t)ci->n_nodes + ci->n_nodes / 2 >= ci->table_n)
        table_grow(ci);
    GROW(ci->nodes, ci->n_nodes, ci->cap_nodes);
    id = ci->n_nodes++;
    struct cnode *n = &ci->nodes[id];
    *n = (struct cnode){.kind = (uint8_t)kind, .media_type = (uint8_t)mt, .size = size, .as_root = CI_NONE};
    memcpy(n->head, d->bytes, sizeof n->head);
    if (d->alg == DIGEST_SHA512) {
        GROW(ci->tails, ci->n_tails, ci->cap_tails);
        memcpy(ci->tails[ci->n_tails], d->bytes + sizeof n->head, 32);
        n->tail = ++ci->n_tails;
    }
    table_put(ci->table, ci->table_n, node_hash(kind, d), id);
    return id;
}

void closureindex_node(const struct closureindex *ci, uint32_t node, struct node *ret)
{
    const struct cnode *n = &ci->nodes[node];
    *ret = (struct node){.kind = (enum node_kind)n->kind, .media_type = (enum media_type)n->media_type, .size = n->size};
    ret->digest.alg = n->tail ? DIGEST_SHA512 : DIGEST_SHA256;
    memcpy(ret->digest.bytes, n->head, sizeof n->head);
    if (n->tail)
        memcpy(ret->digest.bytes + sizeof n->head, ci->tails[n->tail - 1], 32);
}

enum ci_state closureindex_state(const struct closureindex *ci, uint32_t node)
{
    return (enum ci_state)ci->nodes[node].state;
}

bool closureindex_has_subject(const struct closureindex *ci, uint32_t node)
{
    return ci->nodes[node].has_subject;
}

uint32_t closureindex_root_at(const struct closureindex *ci, uint32_t node)
{
    return ci->nodes[node].as_root;
}

struct ci_root *closureindex_root(struct closureindex *ci, uint32_t root)
{
    AN(root < ci->n_roots);
    return &ci->roots[root];
}

/* ---- the roots of a node --------------------------------------------------------------------- */

static uint32_t list_lower(const uint32_t *list, uint32_t n, uint32_t from)
{
    uint32_t lo = 0, hi = n;
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        if (list[mid] < from)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

static bool bit_get(const uint64_t *bits, size_t words, uint32_t i)
{
    return i / 64 < words && (bits[i / 64] >> (i % 64) & 1);
}

static bool roots_contain(const struct cnode *n, uint32_t root)
{
    if (n->n_roots > ROOTS_LIST)
        return bit_get(n->roots.bits + 1, n->roots.bits[0], root);
    const uint32_t *list = n->n_roots > ROOTS_INLINE ? n->roots.list : n->roots.few;
    uint32_t at = list_lower(list, n->n_roots, root);
    return at < n->n_roots && list[at] == root;
}

static void bits_reserve(struct cnode *n, uint32_t root)
{
    uint64_t have = n->roots.bits ? n->roots.bits[0] : 0, need = (uint64_t)root / 64 + 1;
    if (n->roots.bits && need <= have)
        return;
    if (need < have * 2)
        need = have * 2;
    n->roots.bits = mem_realloc(n->roots.bits, (size_t)(need + 1) * sizeof(uint64_t));
    memset(n->roots.bits + 1 + have, 0, (size_t)(need - have) * sizeof(uint64_t));
    n->roots.bits[0] = need;
}

static void roots_to_bits(struct cnode *n)
{
    uint32_t *list = n->roots.list;
    n->roots.bits = NULL;
    bits_reserve(n, list[n->n_roots - 1]);
    for (uint32_t i = 0; i < n->n_roots; i++)
        n->roots.bits[1 + list[i] / 64] |= UINT64_C(1) << (list[i] % 64);
    mem_free(list);
}

static bool roots_add(struct cnode *n, uint32_t root)
{
    if (roots_contain(n, root))
        return false;
    if (n->n_roots == ROOTS_LIST)
        roots_to_bits(n);
    if (n->n_roots >= ROOTS_LIST) {
        bits_reserve(n, root);
        n->roots.bits[1 + root / 64] |= UINT64_C(1) << (root % 64);
        n->n_roots++;
        return true;
    }
    if (n->n_roots == ROOTS_INLINE) {
        uint32_t *list = mem_alloc(4 * sizeof(*list));
        memcpy(list, n->roots.few, sizeof n->roots.few);
        n->roots.list = list;
    } else if (n->n_roots > ROOTS_INLINE && (n->n_roots & (n->n_roots - 1)) == 0) {
        n->roots.list = mem_realloc(n->roots.list, (size_t)n->n_roots * 2 * sizeof(uint32_t));
    }
    uint32_t *list = n->n_roots >= ROOTS_INLINE ? n->roots.list : n->roots.few;
    uint32_t at = list_lower(list, n->n_roots, root);
    memmove(list + at + 1, list + at, (n->n_roots - at) * sizeof(*list));
    list[at] = root;
    n->n_roots++;
    return true;
}

static uint32_t first_of_bits(const uint64_t *mine, uint32_t from, const uint64_t *bits, size_t words, bool set)
{
    uint64_t n = mine[0];
    for (uint64_t w = from / 64; w < n; w++) {
        uint64_t v = mine[1 + w];
        if (w == from / 64)
            v &= ~UINT64_C(0) << (from % 64);
        if (bits) {
            uint64_t other = w < words ? bits[w] : 0;
            v &= set ? other : ~other;
        }
        if (v)
            return (uint32_t)(w * 64 + (uint64_t)__builtin_ctzll(v));
    }
    return CI_NONE;
}

uint32_t closureindex_first(const struct closureindex *ci, uint32_t node, uint32_t from, const uint64_t *bits, size_t words, bool set)
{
    const struct cnode *n = &ci->nodes[node];
    if (n->n_roots > ROOTS_LIST)
        return first_of_bits(n->roots.bits, from, bits, words, set);
    const uint32_t *list = n->n_roots > ROOTS_INLINE ? n->roots.list : n->roots.few;
    for (uint32_t i = list_lower(list, n->n_roots, from); i < n->n_roots; i++)
        if (!bits || bit_get(bits, words, list[i]) == set)
            return list[i];
    return CI_NONE;
}

/* ---- reaching -------------------------------------------------------------------------------- */

static void push(struct closureindex *ci, uint32_t node, unsigned depth)
{
    if (ci->n_stack == ci->cap_stack) {
        ci->cap_stack = ci->cap_stack ? ci->cap_stack * 2 : 64;
        ci->stack = mem_realloc(ci->stack, ci->cap_stack * sizeof(*ci->stack));
    }
    ci->stack[ci->n_stack++] = (struct step){node, depth};
}

/* One node into one root. False: it was there, or there is no room. */
static bool reach_one(struct closureindex *ci, uint32_t root, uint32_t node, unsigned depth)
{
    struct ci_root *r = &ci->roots[root];
    struct cnode *n = &ci->nodes[node];
    if (roots_contain(n, root))
        return false;
    if (r->n_nodes >= ci->max_nodes || depth > ci->max_depth + 1 || (n->kind == NODE_MANIFEST && depth > ci->max_depth)) {
        r->over = true;
        return false;
    }
    roots_add(n, root);
    r->n_nodes++;
    if (n->has_subject)
        ci->generation++; /* what hangs on it hangs on this root too */
    if (n->kind == NODE_MANIFEST) {
        GROW(r->manifests, r->n_manifests, r->cap_manifests);
        r->manifests[r->n_manifests++] = (struct ci_manifest){node, depth};
    }
    return true;
}

/* A node and, through the documents that are loaded, all below it. */
static void reach(struct closureindex *ci, uint32_t root, uint32_t node, unsigned depth)
{
    ci->n_stack = 0;
    push(ci, node, depth);
    while (ci->n_stack) {
        struct step s = ci->stack[--ci->n_stack];
        if (!reach_one(ci, root, s.node, s.depth) || !ci->nodes[s.node].edges)
            continue;
        const struct edges *e = &ci->edges[ci->nodes[s.node].edges - 1];
        for (uint32_t i = e->n; i-- > 0;)
            push(ci, e->nodes[i], s.depth + 1);
    }
}

uint32_t closureindex_add_root(struct closureindex *ci, const struct digest *d, enum media_type mt, uint64_t size)
{
    uint32_t node = node_get(ci, NODE_MANIFEST, d, mt, size);
    if (ci->nodes[node].as_root != CI_NONE)
        return ci->nodes[node].as_root;
    GROW(ci->roots, ci->n_roots, ci->cap_roots);
    uint32_t root = ci->n_roots++;
    ci->roots[root] = (struct ci_root){.node = node};
    ci->nodes[node].as_root = root;
    reach(ci, root, node, 0);
    return root;
}

uint32_t closureindex_add_manifest(struct closureindex *ci, const struct digest *d)
{
    return node_get(ci, NODE_MANIFEST, d, MEDIA_UNKNOWN, 0);
}

void closureindex_add_tag(struct closureindex *ci, uint32_t root, uint32_t tag)
{
    struct ci_root *r = closureindex_root(ci, root);
    for (uint32_t i = 0; i < r->n_tags; i++)
        if (r->tags[i] == tag)
            return;
    GROW(r->tags, r->n_tags, r->cap_tags);
    r->tags[r->n_tags++] = tag;
}

bool closureindex_attach(struct closureindex *ci, uint32_t subject, uint32_t root, bool proven)
{
    struct ci_root *r = closureindex_root(ci, root);
    for (uint32_t i = 0; i < r->n_subjects; i++) {
        if (r->subjects[i].node != subject)
            continue;
        if (r->subjects[i].proven || !proven)
            return false;
        r->subjects[i].proven = true;
        ci->generation++;
        return true;
    }
    r->subjects = mem_realloc(r->subjects, ((size_t)r->n_subjects + 1) * sizeof(*r->subjects));
    r->subjects[r->n_subjects++] = (struct ci_subject){subject, proven};
    ci->nodes[subject].has_subject = true;
    ci->generation++;
    return true;
}

static void prove(struct closureindex *ci, uint32_t node, const struct manifest *m)
{
    if (ci->nodes[node].as_root == CI_NONE)
        return;
    struct ci_root *r = &ci->roots[ci->nodes[node].as_root];
    uint32_t kept = 0, names = m->has_subject ? closureindex_find(ci, NODE_MANIFEST, &m->subject) : CI_NONE;
    for (uint32_t i = 0; i < r->n_subjects; i++) {
        struct ci_subject s = r->subjects[i];
        if (!s.proven) {
            ci->generation++;
            if (s.node != names)
                continue;
            s.proven = true;
        }
        r->subjects[kept++] = s;
    }
    r->n_subjects = kept;
}

static unsigned depth_in(const struct ci_root *r, uint32_t node)
{
    for (uint32_t i = 0; i < r->n_manifests; i++)
        if (r->manifests[i].node == node)
            return r->manifests[i].depth;
    return 0;
}

void closureindex_load(struct closureindex *ci, uint32_t node, const struct manifest *m, uint64_t size)
{
    prove(ci, node, m);
    ci->nodes[node].state = CI_LOADED;
    ci->nodes[node].media_type = (uint8_t)m->media_type;
    ci->nodes[node].size = size;
    if (ci->nodes[node].edges || m->n_children == 0)
        return;
    uint32_t *ids = mem_calloc(m->n_children, sizeof(*ids));
    for (size_t i = 0; i < m->n_children; i++) {
        const struct node *c = &m->children[i];
        ids[i] = node_get(ci, c->kind, &c->digest, c->media_type, c->size);
    }
    GROW(ci->edges, ci->n_edges, ci->cap_edges);
    ci->edges[ci->n_edges++] = (struct edges){ids, (uint32_t)m->n_children};
    ci->nodes[node].edges = ci->n_edges;
    for (uint32_t r = closureindex_first(ci, node, 0, NULL, 0, true); r != CI_NONE;
         r = closureindex_first(ci, node, r + 1, NULL, 0, true)) {
        unsigned depth = depth_in(&ci->roots[r], node);
        for (size_t i = 0; i < m->n_children; i++)
            reach(ci, r, ids[i], depth + 1);
    }
}

void closureindex_set_state(struct closureindex *ci, uint32_t node, enum ci_state s)
{
    ci->nodes[node].state = (uint8_t)s;
}

bool closureindex_add_flat(struct closureindex *ci, uint32_t root, const struct closure *c)
{
    struct node own;
    closureindex_node(ci, closureindex_root(ci, root)->node, &own);
    if (c->n == 0 || c->nodes[0].kind != NODE_MANIFEST || !digest_eq(&c->nodes[0].digest, &own.digest))
        return false;
    for (size_t i = 0; i < c->n; i++) {
        const struct node *n = &c->nodes[i];
        if (n->kind != NODE_MANIFEST && n->kind != NODE_BLOB)
            return false;
    }
    for (size_t i = 0; i < c->n; i++) {
        const struct node *n = &c->nodes[i];
        uint32_t id = node_get(ci, n->kind, &n->digest, n->media_type, n->size);
        reach_one(ci, root, id, n->kind == NODE_MANIFEST && i ? 1 : 0);
    }
    ci->roots[root].complete = true;
    return true;
}

uint32_t closureindex_unloaded(const struct closureindex *ci, uint32_t root, uint32_t *at)
{
    const struct ci_root *r = &ci->roots[root];
    if (r->complete)
        return CI_NONE;
    while (*at < r->n_manifests) {
        uint32_t node = r->manifests[(*at)++].node;
        if (ci->nodes[node].state == CI_UNLOADED)
            return node;
    }
    return CI_NONE;
}

bool closureindex_settle(struct closureindex *ci, uint32_t root, bool *ret_whole)
{
    struct ci_root *r = closureindex_root(ci, root);
    bool whole = true;
    for (uint32_t i = 0; i < r->n_manifests; i++) {
        if (r->complete)
            break;
        enum ci_state s = (enum ci_state)ci->nodes[r->manifests[i].node].state;
        if (s == CI_UNLOADED)
            return false;
        if (s != CI_LOADED)
            whole = false;
    }
    if (r->over)
        return false;
    r->complete = true;
    *ret_whole = whole;
    return true;
}

void closureindex_recheck(struct closureindex *ci, uint32_t root)
{
    struct ci_root *r = closureindex_root(ci, root);
    for (uint32_t i = 0; i < r->n_manifests; i++)
        if (ci->nodes[r->manifests[i].node].state != CI_LOADED)
            ci->nodes[r->manifests[i].node].state = CI_UNLOADED;
    r->complete = false;
    r->recheck_ms = 0;
}

void closureindex_flat(const struct closureindex *ci, uint32_t root, struct closure *ret)
{
    const struct ci_root *r = &ci->roots[root];
    struct node n;
    for (uint32_t i = 0; i < r->n_manifests; i++) {
        closureindex_node(ci, r->manifests[i].node, &n);
        closure_add(ret, &n);
    }
    for (uint32_t i = 0; i < r->n_manifests; i++) {
        uint32_t edges = ci->nodes[r->manifests[i].node].edges;
        for (uint32_t k = 0; edges && k < ci->edges[edges - 1].n; k++) {
            closureindex_node(ci, ci->edges[edges - 1].nodes[k], &n);
            closure_add(ret, &n);
        }
    }
}
