/* What a manifest reaches: one document's edges, and the set that a walk over such documents collects.
 * Reads bytes that were verified against their digest and still believes nothing but their structure. Fetches nothing; who
 * walks and who is entitled is decided elsewhere. */
#include "pullgate/closure.h"

#include <string.h>

#include "pullgate/jv.h"
#include "pullgate/mem.h"

#define SIZE_FIELD_MAX (INT64_C(1) << 53) /* what every JSON reader holds exactly (SECURITY 1.6.8) */
#define PLATFORMS_MAX 64                  /* shown to people; Go's ports are about 50 */
#define PLATFORM_PART_MAX 32

/* ---- one document --------------------------------------------------------------------------- */

/* Go writes an empty list or a missing object as null: that is absence. */
static const struct jv *member(const struct jv *doc, const char *key)
{
    const struct jv *v = jv_get(doc, key);

    return jv_type(v) == JV_NULL ? NULL : v;
}

static enum err descriptor_parse(const struct jv *v, const char *what, struct node *ret, struct str *ret_media_type, struct error *reterr)
{
    struct node n = {0};
    const struct jv *type;
    int64_t size;

    if (jv_type(v) != JV_OBJECT)
        return error_set_field(reterr, ERR_INVALID, what, "a descriptor is no object");
    if (digest_parse(jv_get_str(v, "digest"), &n.digest, NULL))
        return error_set_field(reterr, ERR_INVALID, what, "a descriptor without a digest of sha256 or sha512");
    if (jv_type(jv_get(v, "size")) != JV_INT)
        return error_set_field(reterr, ERR_INVALID, what, "a descriptor without a size");
    size = jv_get_int(v, "size", -1);
    if (size < 0 || size > SIZE_FIELD_MAX)
        return error_set_field(reterr, ERR_INVALID, what, "a descriptor's size is negative or beyond 2^53");
    type = member(v, "mediaType");
    if (type && jv_type(type) != JV_STRING)
        return error_set_field(reterr, ERR_INVALID, what, "a descriptor's mediaType is no string");
    n.size = (uint64_t)size;
    *ret = n;
    *ret_media_type = jv_str(type);
    return ERR_OK;
}

/* edges_read() made room for every descriptor there is. */
static void add_child(struct manifest *m, const struct node *n)
{
    m->children[m->n_children++] = *n;
}

/* Config, layers and an artifact's blobs are blobs, whatever their media type says: the place decides the kind. */
static enum err add_blobs(struct manifest *m, const struct jv *list, const char *what, struct error *reterr)
{
    struct str media_type;
    struct node n;
    enum err e;

    for (size_t i = 0; i < jv_len(list); i++) {
        e = descriptor_parse(jv_at(list, i), what, &n, &media_type, reterr);
        if (e)
            return e;
        n.kind = NODE_BLOB;
        add_child(m, &n);
    }
    return ERR_OK;
}

static bool platform_part_valid(struct str s)
{
    if (s.n == 0 || s.n > PLATFORM_PART_MAX)
        return false;
    for (size_t i = 0; i < s.n; i++) {
        char c = s.p[i];
        if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '_' || c == '-'))
            return false;
    }
    return true;
}

static bool platforms_contain(struct str list, struct str platform)
{
    struct str one, rest = list;

    while (list.n && str_next(&rest, ',', &one))
        if (str_eq(one, platform))
            return true;
    return false;
}

/* For people only, so what is malformed is left out; attestations stand under unknown/unknown. */
static void add_platform(struct strbuf *list, unsigned *n, const struct jv *platform)
{
    struct str os = jv_get_str(platform, "os"), arch = jv_get_str(platform, "architecture"), variant = jv_get_str(platform, "variant");
    char text[3 * PLATFORM_PART_MAX + 3];
    size_t at;

    if (*n >= PLATFORMS_MAX || !platform_part_valid(os) || !platform_part_valid(arch) || str_eq_c(os, "unknown"))
        return;
    memcpy(text, os.p, os.n);
    at = os.n;
    text[at++] = '/';
    memcpy(text + at, arch.p, arch.n);
    at += arch.n;
    if (platform_part_valid(variant)) {
        text[at++] = '/';
        memcpy(text + at, variant.p, variant.n);
        at += variant.n;
    }
    if (platforms_contain(sb_str(list), (struct str){text, at}))
        return;
    if (list->n)
        sb_add_char(list, ',');
    sb_add(list, (struct str){text, at});
    (*n)++;
}

static enum err add_manifests(struct manifest *m, const struct jv *list, struct error *reterr)
{
    struct strbuf platforms = {0};
    struct str media_type;
    unsigned n_platforms = 0;
    struct node n;
    enum err e = ERR_OK;

    for (size_t i = 0; i < jv_len(list); i++) {
        e = descriptor_parse(jv_at(list, i), "manifests", &n, &media_type, reterr);
        if (e)
            break;
        n.media_type = media_type_parse(media_type);
        if (n.media_type == MEDIA_SCHEMA1)
            continue; /* never served, so no edge leads to it */
        /* an index may name what is no manifest (build caches do): then it is a blob, served as nothing else */
        n.kind = media_type_is_manifest(n.media_type) ? NODE_MANIFEST : NODE_BLOB;
        add_platform(&platforms, &n_platforms, jv_get(jv_at(list, i), "platform"));
        add_child(m, &n);
    }
    if (!e && platforms.n) {
        mem_free(m->platforms);
        m->platforms = sb_take(&platforms);
    }
    sb_free(&platforms);
    return e;
}

/* By what the document says, else by what the registry said, else by its structure. */
static enum err document_type(const struct jv *doc, struct str content_type, enum media_type *ret, struct error *reterr)
{
    const struct jv *own = member(doc, "mediaType");
    enum media_type said = media_type_parse(content_type), type;

    if (said == MEDIA_SCHEMA1)
        return error_set(reterr, ERR_INVALID, "schema 1 manifests are not served");
    if (own) {
        type = media_type_parse(jv_str(own));
        if (!media_type_is_manifest(type))
            return error_set_field(reterr, ERR_INVALID, "mediaType", "not the media type of a manifest that is served");
        /* a registry that says text/plain or application/json says nothing about which manifest it is */
        if (said != MEDIA_UNKNOWN && said != type)
            return error_set_field(reterr, ERR_INVALID, "mediaType", "the document and the registry disagree on the media type");
    } else if (said != MEDIA_UNKNOWN) {
        type = said;
    } else if (member(doc, "manifests")) {
        type = MEDIA_OCI_INDEX;
    } else if (member(doc, "config")) {
        type = MEDIA_OCI_MANIFEST;
    } else {
        return error_set(reterr, ERR_INVALID, "a document that is no manifest and no index");
    }
    *ret = type;
    return ERR_OK;
}

static enum err list_check(const struct jv *doc, const char *key, const struct jv **ret, struct error *reterr)
{
    const struct jv *v = member(doc, key);

    if (v && jv_type(v) != JV_ARRAY)
        return error_set_field(reterr, ERR_INVALID, key, "not a list");
    *ret = v;
    return ERR_OK;
}

static enum err edges_read(const struct jv *doc, struct manifest *m, struct error *reterr)
{
    const struct jv *manifests, *layers, *blobs, *config = member(doc, "config");
    struct str media_type;
    struct node n;
    enum err e;

    if ((e = list_check(doc, "manifests", &manifests, reterr)) || (e = list_check(doc, "layers", &layers, reterr)) ||
        (e = list_check(doc, "blobs", &blobs, reterr)))
        return e;
    size_t most = 1 + jv_len(manifests) + jv_len(layers) + jv_len(blobs);
    if (most > CLOSURE_MAX_NODES)
        return error_set(reterr, ERR_INVALID, "a manifest with more than %d descriptors", CLOSURE_MAX_NODES);
    m->children = mem_calloc(most, sizeof *m->children);

    if (media_type_is_index(m->media_type)) {
        if (config || layers || blobs)
            return error_set(reterr, ERR_INVALID, "an index that is a manifest, too");
        return add_manifests(m, manifests, reterr);
    }
    if (manifests)
        return error_set(reterr, ERR_INVALID, "a manifest that is an index, too");
    if (m->media_type == MEDIA_OCI_ARTIFACT) {
        if (config || layers)
            return error_set(reterr, ERR_INVALID, "an artifact manifest with config or layers");
        return add_blobs(m, blobs, "blobs", reterr);
    }
    if (blobs)
        return error_set(reterr, ERR_INVALID, "a manifest with blobs beside its layers");
    if (!config)
        return error_set_field(reterr, ERR_INVALID, "config", "a manifest without config");
    e = descriptor_parse(config, "config", &n, &media_type, reterr);
    if (e)
        return e;
    n.kind = NODE_BLOB;
    add_child(m, &n);
    if (m->media_type == MEDIA_OCI_MANIFEST && m->artifact_type[0] == '\0') {
        mem_free(m->artifact_type);
        m->artifact_type = str_dup(media_type);
    }
    return add_blobs(m, layers, "layers", reterr);
}

/* What referrers answers are made of. */
static enum err referrer_read(const struct jv *doc, struct manifest *m, struct error *reterr)
{
    const struct jv *type = member(doc, "artifactType"), *annotations = member(doc, "annotations"), *subject = member(doc, "subject");
    struct strbuf text = {0};
    struct str media_type;
    struct node n;
    enum err e;

    if (type && jv_type(type) != JV_STRING)
        return error_set_field(reterr, ERR_INVALID, "artifactType", "not a string");
    if (annotations && jv_type(annotations) != JV_OBJECT)
        return error_set_field(reterr, ERR_INVALID, "annotations", "not an object");
    if (subject) {
        e = descriptor_parse(subject, "subject", &n, &media_type, reterr);
        if (e)
            return e;
        m->has_subject = true;
        m->subject = n.digest;
    }
    m->artifact_type = str_dup(type ? jv_str(type) : S(""));
    if (annotations)
        jv_dump(annotations, &text);
    m->annotations = text.p ? sb_take(&text) : mem_strdup("");
    m->platforms = mem_strdup("");
    return ERR_OK;
}

enum err manifest_parse(struct str bytes, struct str content_type, struct manifest **ret, struct error *reterr)
{
    struct manifest *m = NULL;
    struct jv *doc = NULL;
    const struct jv *version;
    enum media_type type = MEDIA_UNKNOWN;
    enum err e;

    if (bytes.n > CLOSURE_MAX_MANIFEST)
        return error_set(reterr, ERR_INVALID, "a manifest of more than %u bytes", CLOSURE_MAX_MANIFEST);
    if (jv_parse(bytes, &JV_LIMITS_MANIFEST, &doc, reterr))
        return ERR_INVALID;
    if (jv_type(doc) != JV_OBJECT) {
        e = error_set(reterr, ERR_INVALID, "a manifest is a JSON object");
        goto end;
    }
    e = document_type(doc, content_type, &type, reterr);
    if (e)
        goto end;
    /* artifact manifests came without one */
    version = jv_get(doc, "schemaVersion");
    if (!(type == MEDIA_OCI_ARTIFACT && !version) && jv_int(version, 0) != 2) {
        e = error_set_field(reterr, ERR_INVALID, "schemaVersion", "not 2: schema 1 manifests are not served");
        goto end;
    }
    m = NEW(struct manifest);
    m->media_type = type;
    e = referrer_read(doc, m, reterr);
    if (!e)
        e = edges_read(doc, m, reterr);
    if (!e) {
        *ret = m;
        m = NULL;
    }
end:
    manifest_free(m);
    jv_free(doc);
    return e;
}

void manifest_free(struct manifest *m)
{
    if (!m)
        return;
    mem_free(m->artifact_type);
    mem_free(m->annotations);
    mem_free(m->children);
    mem_free(m->platforms);
    mem_free(m);
}

/* ---- the closure ---------------------------------------------------------------------------- */

/* Slots hold an index into nodes plus one; open addressing, at most half full. */
static uint32_t *slot_of(const struct closure *c, const struct node *n)
{
    size_t at = (size_t)(digest_hash(&n->digest) + n->kind) & (c->n_slots - 1);

    while (c->slots[at]) {
        const struct node *have = &c->nodes[c->slots[at] - 1];
        if (have->kind == n->kind && digest_eq(&have->digest, &n->digest))
            break;
        at = (at + 1) & (c->n_slots - 1);
    }
    return &c->slots[at];
}

static void slots_grow(struct closure *c)
{
    c->n_slots = c->n_slots ? 2 * c->n_slots : 64;
    mem_free(c->slots);
    c->slots = mem_calloc(c->n_slots, sizeof *c->slots);
    for (size_t i = 0; i < c->n; i++)
        *slot_of(c, &c->nodes[i]) = (uint32_t)i + 1;
}

void closure_free(struct closure *c)
{
    mem_free(c->nodes);
    mem_free(c->slots);
    *c = (struct closure){0};
}

bool closure_full(const struct closure *c)
{
    return c->n >= CLOSURE_MAX_NODES;
}

bool closure_add(struct closure *c, const struct node *n)
{
    uint32_t *slot;

    if (2 * (c->n + 1) > c->n_slots)
        slots_grow(c);
    slot = slot_of(c, n);
    if (*slot || closure_full(c))
        return false;
    if (c->n == c->cap) {
        c->cap = c->cap ? 2 * c->cap : 32;
        c->nodes = mem_realloc(c->nodes, c->cap * sizeof *c->nodes);
    }
    c->nodes[c->n++] = *n;
    *slot = (uint32_t)c->n;
    return true;
}

const struct node *closure_find(const struct closure *c, enum node_kind kind, const struct digest *d)
{
    struct node n = {.kind = kind, .digest = *d};
    uint32_t slot = c->n_slots ? *slot_of(c, &n) : 0;

    return slot ? &c->nodes[slot - 1] : NULL;
}

void closure_print(const struct closure *c, struct strbuf *ret)
{
    char text[DIGEST_TEXT_MAX];

    for (size_t i = 0; i < c->n; i++) {
        const struct node *n = &c->nodes[i];
        const char *type = media_type_text(n->media_type);
        sb_addc(ret, n->kind == NODE_MANIFEST ? "m " : "b ");
        sb_addc(ret, digest_text(&n->digest, text));
        sb_add_char(ret, ' ');
        sb_addc(ret, type[0] ? type : "-");
        sb_add_char(ret, ' ');
        sb_add_u64(ret, n->size);
        sb_add_char(ret, '\n');
    }
}

static bool node_scan(struct str line, struct node *ret)
{
    struct str kind, digest, type, rest = line;
    struct node n = {0};

    if (!str_cut(rest, ' ', &kind, &rest) || !str_cut(rest, ' ', &digest, &rest) || !str_cut(rest, ' ', &type, &rest))
        return false;
    if (str_eq_c(kind, "m"))
        n.kind = NODE_MANIFEST;
    else if (str_eq_c(kind, "b"))
        n.kind = NODE_BLOB;
    else
        return false;
    if (digest_parse(digest, &n.digest, NULL) || !str_to_u64(rest, &n.size) || n.size > (uint64_t)SIZE_FIELD_MAX)
        return false;
    if (rest.n > 1 && rest.p[0] == '0')
        return false;
    if (!str_eq_c(type, "-")) {
        n.media_type = media_type_parse(type);
        if (!str_eq_c(type, media_type_text(n.media_type)))
            return false;
    }
    /* a manifest without its type could not be served; a blob has none here */
    if ((n.kind == NODE_MANIFEST) != media_type_is_manifest(n.media_type))
        return false;
    *ret = n;
    return true;
}

enum err closure_scan(struct str text, struct closure *ret, struct error *reterr)
{
    struct closure c = {0};
    struct str line, rest = text;
    struct node n;

    while (rest.n) {
        if (!str_cut(rest, '\n', &line, &rest) || !node_scan(line, &n) || (c.n == 0 && n.kind != NODE_MANIFEST) ||
            !closure_add(&c, &n) || closure_full(&c)) {
            closure_free(&c);
            return error_set(reterr, ERR_INVALID, "not a closure");
        }
    }
    if (c.n == 0)
        return error_set(reterr, ERR_INVALID, "an empty closure");
    *ret = c;
    return ERR_OK;
}
