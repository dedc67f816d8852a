/* Manifests that a registry sends -> edges -> the index of what reaches what. The input is a line with a media type and then
 * documents, NUL between them; "@1" in a document is the digest of document 1 (a later one), "*4[…]" is what stands in [] 16 times.
 * A walk of our own over the same documents, following only those whose bytes hash to the digest that named them, must find exactly
 * what the index says; every digest in it stands in the bytes; a document is never both kinds; time is bounded by size. */
#include "fuzz.h"

#include <time.h>

#include "closureindex.h"
#include "pullgate/closure.h"
#include "pullgate/jv.h"

#define DOCS_MAX 8
#define NODES_MAX 4000

struct doc {
    struct strbuf text;
    struct digest digest;
    struct manifest *m;
};

/* ---- documents ------------------------------------------------------------------------------------------------------------ */

static void digest_of(struct str s, struct digest *ret)
{
    *ret = (struct digest){.alg = DIGEST_SHA256};
    seal_sha256(s, ret->bytes);
}

static void expand(struct str s, struct doc *docs, size_t n, struct strbuf *ret)
{
    char text[DIGEST_TEXT_MAX];

    for (size_t i = 0; i < s.n && ret->n < 5u << 20; i++) {
        if (s.p[i] == '@' && i + 1 < s.n && s.p[i + 1] >= '0' && s.p[i + 1] <= '9' && (size_t)(s.p[i + 1] - '0') < n &&
            digest_is_set(&docs[s.p[i + 1] - '0'].digest)) {
            sb_addc(ret, digest_text(&docs[s.p[i + 1] - '0'].digest, text));
            i++;
        } else if (s.p[i] == '*' && i + 2 < s.n && s.p[i + 2] == '[') { /* "*k[…]": 2^(k-'0') times */
            const char *end = memchr(s.p + i + 3, ']', s.n - i - 3);
            unsigned times = 1u << ((unsigned)(s.p[i + 1] - '0') % 16);
            size_t len = end ? (size_t)(end - (s.p + i + 3)) : 0;
            if (!end || len == 0) {
                sb_add_char(ret, s.p[i]);
                continue;
            }
            for (unsigned k = 0; k < times && ret->n + len < 5u << 20; k++)
                sb_add(ret, (struct str){s.p + i + 3, len});
            i += 3 + len;
        } else {
            sb_add_char(ret, s.p[i]);
        }
    }
}

static double cpu_s(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static struct manifest *parse(struct str bytes, struct str type)
{
    struct manifest *m = NULL;
    struct error e = {0};
    char *copy = fuzz_exact(bytes), text[DIGEST_TEXT_MAX];
    double from = cpu_s();
    enum err err = manifest_parse((struct str){copy, bytes.n}, type, &m, &e);
    double took = cpu_s() - from;

    /* 50 ms for 4 MiB is the goal of the product's build; this one is some fifteen times slower. */
    FUZZ_CHECK(took < 0.05 + 1.5 * (double)bytes.n / (4 << 20), "a manifest takes longer than its size allows");
    if (err) {
        FUZZ_CHECK(m == NULL && err == ERR_INVALID, "a refused manifest leaves something");
        mem_free(copy);
        return NULL;
    }
    struct jv *doc = NULL;
    FUZZ_CHECK(jv_parse((struct str){copy, bytes.n}, &JV_LIMITS_MANIFEST, &doc, NULL) == ERR_OK, "a manifest that is no JSON");
    bool lists = jv_type(jv_get(doc, "manifests")) == JV_ARRAY, owns = jv_type(jv_get(doc, "config")) == JV_OBJECT || jv_type(jv_get(doc, "layers")) == JV_ARRAY;
    FUZZ_CHECK(!(lists && owns), "a manifest of both kinds is accepted");
    FUZZ_CHECK(media_type_is_manifest(m->media_type) && m->n_children <= CLOSURE_MAX_NODES, "a manifest of no kind, or of too many");
    jv_free(doc);
    bool escaped = memchr(copy, '\\', bytes.n) != NULL; /* then a digest may be spelt in another way */
    for (size_t i = 0; i < m->n_children && i < 300 && !escaped; i++)
        FUZZ_CHECK(memmem(copy, bytes.n, digest_text(&m->children[i].digest, text), strlen(text)), "a digest that stands nowhere in the bytes");
    for (size_t i = 0; i < m->n_children; i++) {
        const struct node *c = &m->children[i];
        FUZZ_CHECK(c->kind == NODE_BLOB || (c->kind == NODE_MANIFEST && media_type_is_index(m->media_type) && media_type_is_manifest(c->media_type)),
                   "a child of the wrong kind");
        FUZZ_CHECK(c->size <= 1ull << 53, "a child larger than anything");
    }
    mem_free(copy);
    return m;
}

/* ---- the walk of our own ------------------------------------------------------------------------------------------------- */

struct found {
    enum node_kind kind;
    struct digest digest;
    unsigned depth;
};

static const struct doc *doc_of(const struct doc *docs, size_t n, const struct digest *d)
{
    for (size_t i = 0; i < n; i++)
        if (digest_eq(&docs[i].digest, d))
            return &docs[i];
    return NULL;
}

/* Breadth first, so that each node's depth is its least. */
static size_t walk(const struct doc *docs, size_t n, const struct digest *root, struct found *ret)
{
    size_t n_found = 0;

    ret[n_found++] = (struct found){NODE_MANIFEST, *root, 0};
    for (size_t at = 0; at < n_found; at++) {
        const struct doc *d = ret[at].kind == NODE_MANIFEST ? doc_of(docs, n, &ret[at].digest) : NULL;
        for (size_t i = 0; d && d->m && i < d->m->n_children; i++) {
            const struct node *c = &d->m->children[i];
            size_t k = 0;
            while (k < n_found && !(ret[k].kind == c->kind && digest_eq(&ret[k].digest, &c->digest)))
                k++;
            if (k == n_found && n_found < NODES_MAX)
                ret[n_found++] = (struct found){c->kind, c->digest, ret[at].depth + 1};
        }
    }
    return n_found;
}

static bool walk_has(const struct found *f, size_t n, enum node_kind kind, const struct digest *d)
{
    for (size_t i = 0; i < n; i++)
        if (f[i].kind == kind && digest_eq(&f[i].digest, d))
            return true;
    return false;
}

/* ---- the index --------------------------------------------------------------------------------------------------------------- */

/* As the proxy does it: a document counts for a node when it hashes to the node's digest. */
static bool load_all(struct closureindex *ci, uint32_t root, const struct doc *docs, size_t n)
{
    bool whole = false;
    uint32_t at = 0, node;

    while ((node = closureindex_unloaded(ci, root, &at)) != CI_NONE) {
        struct node what;
        closureindex_node(ci, node, &what);
        const struct doc *d = doc_of(docs, n, &what.digest);
        if (!d)
            closureindex_set_state(ci, node, CI_GONE);
        else if (!d->m)
            closureindex_set_state(ci, node, CI_REFUSED);
        else
            closureindex_load(ci, node, d->m, d->text.n);
        at = 0; /* what was loaded may have brought more */
    }
    return closureindex_settle(ci, root, &whole);
}

static void check_flat(struct closureindex *ci, uint32_t root, const struct found *found, size_t n_found)
{
    struct closure flat = {0}, scanned = {0};
    struct strbuf text = {0}, again = {0};

    closureindex_flat(ci, root, &flat);
    for (size_t i = 0; i < flat.n; i++)
        FUZZ_CHECK(walk_has(found, n_found, flat.nodes[i].kind, &flat.nodes[i].digest), "the closure holds what nothing verified names");
    for (size_t i = 0; i < n_found; i++)
        FUZZ_CHECK(closure_find(&flat, found[i].kind, &found[i].digest), "the closure lacks something");
    closure_print(&flat, &text);
    /* A child manifest that is gone may stand there without its type only where the index did not say it. */
    if (closure_scan(sb_str(&text), &scanned, NULL) == ERR_OK) {
        closure_print(&scanned, &again);
        FUZZ_CHECK(str_eq(sb_str(&text), sb_str(&again)), "a closure prints differently");
        struct closureindex *other = closureindex_new(CLOSURE_MAX_NODES, CLOSURE_MAX_DEPTH);
        uint32_t same = closureindex_add_root(other, &flat.nodes[0].digest, flat.nodes[0].media_type, flat.nodes[0].size);
        FUZZ_CHECK(closureindex_add_flat(other, same, &scanned), "a closure is not taken as that of its root");
        for (size_t i = 0; i < n_found; i++) {
            uint32_t node = closureindex_find(other, found[i].kind, &found[i].digest);
            FUZZ_CHECK(node != CI_NONE && closureindex_first(other, node, 0, NULL, 0, true) == same, "a flat closure lacks something");
        }
        closureindex_free(&other);
        closure_free(&scanned);
    }
    sb_free(&text);
    sb_free(&again);
    closure_free(&flat);
}

static void check_index(const struct doc *docs, size_t n)
{
    static struct found found[NODES_MAX];
    struct closureindex *ci = closureindex_new(NODES_MAX - 1, CLOSURE_MAX_DEPTH);
    uint32_t roots[DOCS_MAX];

    /* Every document a root of its own, in the order in which it came; each says it hangs on the first, which none has proven. */
    for (size_t i = 0; i < n; i++)
        roots[i] = closureindex_add_root(ci, &docs[i].digest, docs[i].m ? docs[i].m->media_type : MEDIA_UNKNOWN, docs[i].text.n);
    for (size_t i = 1; i < n; i++)
        if (roots[i] != roots[0])
            closureindex_attach(ci, closureindex_find(ci, NODE_MANIFEST, &docs[0].digest), roots[i], false);
    for (size_t i = n; i-- > 0;) {
        size_t n_found = walk(docs, n, &docs[i].digest, found);
        if (n_found >= NODES_MAX - 1)
            continue;
        bool settled = load_all(ci, roots[i], docs, n), deep = false;
        for (size_t k = 0; k < n_found; k++) {
            uint32_t node = closureindex_find(ci, found[k].kind, &found[k].digest);
            uint32_t root = node != CI_NONE ? closureindex_first(ci, node, roots[i], NULL, 0, true) : CI_NONE;
            deep = deep || found[k].depth > CLOSURE_MAX_DEPTH;
            if (settled)
                FUZZ_CHECK(root == roots[i], "what is reachable is not in the root");
        }
        FUZZ_CHECK(!settled || !deep, "deeper than is allowed, and nothing says so");
        if (settled)
            check_flat(ci, roots[i], found, n_found);
        if (docs[i].m && i > 0 && roots[i] != roots[0]) {
            const struct ci_root *r = closureindex_root(ci, roots[i]);
            bool hangs = docs[i].m->has_subject && digest_eq(&docs[i].m->subject, &docs[0].digest);
            FUZZ_CHECK((r->n_subjects > 0) == hangs && (!hangs || r->subjects[0].proven), "hangs on what its document does not name");
        }
    }
    for (size_t i = 0; i < n; i++) { /* no root has got what only another one reaches */
        size_t n_found = walk(docs, n, &docs[i].digest, found);
        for (uint32_t node = 0; n_found < NODES_MAX - 1 && node < closureindex_nodes(ci); node++) {
            struct node what;
            closureindex_node(ci, node, &what);
            uint64_t bit[(DOCS_MAX + 63) / 64] = {0};
            bit[roots[i] / 64] = 1ull << roots[i] % 64;
            if (closureindex_first(ci, node, 0, bit, 1, true) == roots[i])
                FUZZ_CHECK(walk_has(found, n_found, what.kind, &what.digest), "a root has what it does not reach");
        }
    }
    closureindex_free(&ci);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_in in = {data, size};
    struct str type = fuzz_until(&in, '\n'), raw[DOCS_MAX];
    static struct doc docs[DOCS_MAX];
    size_t n = 0, nodes = 0;

    fuzz_quiet();
    memset(docs, 0, sizeof docs);
    while (in.n && n < DOCS_MAX)
        raw[n++] = fuzz_until(&in, 0);
    for (size_t i = n; i-- > 0;) { /* later ones first: earlier ones name them */
        expand(raw[i], docs, n, &docs[i].text);
        digest_of(sb_str(&docs[i].text), &docs[i].digest);
        docs[i].m = parse(sb_str(&docs[i].text), i == 0 ? type : S(""));
        nodes += docs[i].m ? docs[i].m->n_children : 0;
    }
    if (n && nodes < 1000)
        check_index(docs, n);
    for (size_t i = 0; i < n; i++) {
        manifest_free(docs[i].m);
        sb_free(&docs[i].text);
    }
    return 0;
}
