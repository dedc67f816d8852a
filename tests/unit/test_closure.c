/* What a manifest's document reaches, and the closure as a set and as text. One row per rule (SECURITY 1.6.8). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "pullgate/closure.h"

#define COUNT(a) (sizeof(a) / sizeof *(a))
#define H62 "00000000000000000000000000000000000000000000000000000000000000"
#define DA "sha256:" H62 "0a"
#define DB "sha256:" H62 "0b"
#define DC "sha256:" H62 "0c"
#define DD "sha256:" H62 "0d"
#define D512 "sha512:" H62 H62 "000e"
#define OCI_M "application/vnd.oci.image.manifest.v1+json"
#define OCI_I "application/vnd.oci.image.index.v1+json"
#define DOCKER_M "application/vnd.docker.distribution.manifest.v2+json"
#define DOCKER_L "application/vnd.docker.distribution.manifest.list.v2+json"
#define ARTIFACT "application/vnd.oci.artifact.manifest.v1+json"
#define SCHEMA1 "application/vnd.docker.distribution.manifest.v1+prettyjws"
#define LAYER "application/vnd.oci.image.layer.v1.tar+gzip"
#define CONFIG "application/vnd.oci.image.config.v1+json"

#define DESC(type, digest, size) "{\"mediaType\":\"" type "\",\"digest\":\"" digest "\",\"size\":" size "}"
#define TYPE(t) "\"mediaType\":\"" t "\","
#define V2 "\"schemaVersion\":2,"
#define CFG "\"config\":" DESC(CONFIG, DA, "10")
#define LAY "\"layers\":[" DESC(LAYER, DB, "20") "," DESC(LAYER, DC, "30") "]"
#define MANS "\"manifests\":[" DESC(OCI_M, DA, "10") "," DESC(OCI_M, DB, "20") "]"

/* children: "<m|b> <last two digits of the digest> <size>", separated by commas */
static const struct {
    const char *name, *doc, *content_type;
    enum media_type want; /* MEDIA_UNKNOWN: refused */
    const char *children;
} rows[] = {
    {"OCI manifest", "{" V2 TYPE(OCI_M) CFG "," LAY "}", OCI_M, MEDIA_OCI_MANIFEST, "b0a10,b0b20,b0c30"},
    {"Docker manifest", "{" V2 TYPE(DOCKER_M) CFG "," LAY "}", DOCKER_M, MEDIA_DOCKER_MANIFEST, "b0a10,b0b20,b0c30"},
    {"OCI index", "{" V2 TYPE(OCI_I) MANS "}", OCI_I, MEDIA_OCI_INDEX, "m0a10,m0b20"},
    {"Docker list", "{" V2 TYPE(DOCKER_L) MANS "}", DOCKER_L, MEDIA_DOCKER_LIST, "m0a10,m0b20"},
    {"artifact manifest", "{" TYPE(ARTIFACT) "\"artifactType\":\"x/y\",\"blobs\":[" DESC("x/z", DA, "1") "]}", ARTIFACT, MEDIA_OCI_ARTIFACT, "b0a1"},
    {"artifact manifest without blobs", "{" TYPE(ARTIFACT) "\"artifactType\":\"x/y\"}", "", MEDIA_OCI_ARTIFACT, ""},
    {"artifact manifest with a version", "{" V2 TYPE(ARTIFACT) "\"artifactType\":\"x/y\"}", "", MEDIA_OCI_ARTIFACT, ""},
    {"nested index", "{" V2 TYPE(OCI_I) "\"manifests\":[" DESC(OCI_I, DA, "1") "," DESC(DOCKER_L, DB, "2") "]}", "", MEDIA_OCI_INDEX, "m0a1,m0b2"},
    {"empty index", "{" V2 TYPE(OCI_I) "\"manifests\":[]}", "", MEDIA_OCI_INDEX, ""},
    {"empty index as Go wrote it", "{" V2 TYPE(OCI_I) "\"manifests\":null}", "", MEDIA_OCI_INDEX, ""},
    {"manifest without layers", "{" V2 TYPE(OCI_M) CFG ",\"layers\":[]}", "", MEDIA_OCI_MANIFEST, "b0a10"},
    {"layers null", "{" V2 TYPE(OCI_M) CFG ",\"layers\":null}", "", MEDIA_OCI_MANIFEST, "b0a10"},
    {"the same layer twice", "{" V2 TYPE(OCI_M) CFG ",\"layers\":[" DESC(LAYER, DB, "2") "," DESC(LAYER, DB, "2") "]}", "", MEDIA_OCI_MANIFEST, "b0a10,b0b2,b0b2"},
    {"sha512", "{" V2 TYPE(OCI_M) CFG ",\"layers\":[" DESC(LAYER, D512, "2") "]}", "", MEDIA_OCI_MANIFEST, "b0a10,b0e2"},
    {"a layer that calls itself a manifest is a blob", "{" V2 TYPE(OCI_M) CFG ",\"layers\":[" DESC(OCI_M, DB, "2") "]}", "", MEDIA_OCI_MANIFEST, "b0a10,b0b2"},
    {"a config that calls itself an index is a blob", "{" V2 TYPE(OCI_M) "\"config\":" DESC(OCI_I, DB, "2") "}", "", MEDIA_OCI_MANIFEST, "b0b2"},
    {"an index of blobs, as build caches are", "{" V2 TYPE(OCI_I) "\"manifests\":[" DESC(LAYER, DA, "1") "," DESC(OCI_M, DB, "2") "]}", "", MEDIA_OCI_INDEX, "b0a1,m0b2"},
    {"schema 1 children are no edges", "{" V2 TYPE(DOCKER_L) "\"manifests\":[" DESC(SCHEMA1, DA, "1") "," DESC(DOCKER_M, DB, "2") "]}", "", MEDIA_DOCKER_LIST, "m0b2"},
    {"foreign layers are edges, their urls are not",
     "{" V2 TYPE(OCI_M) CFG ",\"layers\":[{\"mediaType\":\"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip\",\"digest\":\"" DB
     "\",\"size\":2,\"urls\":[\"http://h/" DC "\"],\"data\":\"" DD "\"}]}",
     "", MEDIA_OCI_MANIFEST, "b0a10,b0b2"},
    {"a descriptor without a media type", "{" V2 TYPE(OCI_M) CFG ",\"layers\":[{\"digest\":\"" DB "\",\"size\":2}]}", "", MEDIA_OCI_MANIFEST, "b0a10,b0b2"},
    {"size 0 and 2^53", "{" V2 TYPE(OCI_M) "\"config\":" DESC(CONFIG, DA, "0") ",\"layers\":[" DESC(LAYER, DB, "9007199254740992") "]}", "", MEDIA_OCI_MANIFEST,
     "b0a0,b0b9007199254740992"},
    {"a subject is no edge", "{" V2 TYPE(OCI_M) CFG ",\"subject\":" DESC(OCI_M, DD, "3") "}", "", MEDIA_OCI_MANIFEST, "b0a10"},

    /* whose word the type is */
    {"type by content type", "{" V2 CFG "," LAY "}", DOCKER_M, MEDIA_DOCKER_MANIFEST, "b0a10,b0b20,b0c30"},
    {"type by structure: manifest", "{" V2 CFG "," LAY "}", "", MEDIA_OCI_MANIFEST, "b0a10,b0b20,b0c30"},
    {"type by structure: index", "{" V2 MANS "}", "", MEDIA_OCI_INDEX, "m0a10,m0b20"},
    {"type by structure, for the registry says nothing of use", "{" V2 MANS "}", "application/json", MEDIA_OCI_INDEX, "m0a10,m0b20"},
    {"mediaType null is none", "{" V2 "\"mediaType\":null," MANS "}", "", MEDIA_OCI_INDEX, "m0a10,m0b20"},
    {"parameters in the content type", "{" V2 TYPE(OCI_I) MANS "}", OCI_I "; charset=utf-8", MEDIA_OCI_INDEX, "m0a10,m0b20"},
    {"the document's type stands against text/plain", "{" V2 TYPE(OCI_I) MANS "}", "text/plain", MEDIA_OCI_INDEX, "m0a10,m0b20"},
    {"they disagree", "{" V2 TYPE(OCI_I) MANS "}", OCI_M, MEDIA_UNKNOWN, NULL},
    {"they disagree, in kin", "{" V2 TYPE(OCI_I) MANS "}", DOCKER_L, MEDIA_UNKNOWN, NULL},
    {"structure against content type", "{" V2 MANS "}", OCI_M, MEDIA_UNKNOWN, NULL},
    {"structure against content type, the other way", "{" V2 CFG "," LAY "}", OCI_I, MEDIA_UNKNOWN, NULL},
    {"structure against its own type", "{" V2 TYPE(OCI_M) MANS "}", "", MEDIA_UNKNOWN, NULL},
    {"structure against its own type, the other way", "{" V2 TYPE(OCI_I) CFG "," LAY "}", "", MEDIA_UNKNOWN, NULL},
    {"unknown type", "{" V2 TYPE("application/vnd.example+json") MANS "}", "", MEDIA_UNKNOWN, NULL},
    {"empty type", "{" V2 TYPE("") MANS "}", "", MEDIA_UNKNOWN, NULL},
    {"type of no type", "{" V2 "\"mediaType\":7," MANS "}", "", MEDIA_UNKNOWN, NULL},
    {"no structure at all", "{" V2 "\"x\":1}", "", MEDIA_UNKNOWN, NULL},

    /* schema 1 */
    {"schema 1 by its type", "{" V2 TYPE(SCHEMA1) CFG "," LAY "}", "", MEDIA_UNKNOWN, NULL},
    {"schema 1 by content type", "{" V2 CFG "," LAY "}", SCHEMA1, MEDIA_UNKNOWN, NULL},
    {"schema 1 by its version", "{\"schemaVersion\":1," TYPE(OCI_M) CFG "," LAY "}", "", MEDIA_UNKNOWN, NULL},
    {"schema 1 as it is", "{\"schemaVersion\":1,\"name\":\"a\",\"tag\":\"b\",\"fsLayers\":[],\"history\":[],\"signatures\":[]}", "", MEDIA_UNKNOWN, NULL},
    {"no version", "{" TYPE(OCI_M) CFG "," LAY "}", "", MEDIA_UNKNOWN, NULL},
    {"version 3", "{\"schemaVersion\":3," TYPE(OCI_M) CFG "," LAY "}", "", MEDIA_UNKNOWN, NULL},
    {"version 2.0", "{\"schemaVersion\":2.0," TYPE(OCI_M) CFG "," LAY "}", "", MEDIA_UNKNOWN, NULL},
    {"version \"2\"", "{\"schemaVersion\":\"2\"," TYPE(OCI_M) CFG "," LAY "}", "", MEDIA_UNKNOWN, NULL},
    {"an artifact manifest of version 1", "{\"schemaVersion\":1," TYPE(ARTIFACT) "\"artifactType\":\"x/y\"}", "", MEDIA_UNKNOWN, NULL},

    /* one structure, not two */
    {"index and layers", "{" V2 TYPE(OCI_I) MANS "," LAY "}", "", MEDIA_UNKNOWN, NULL},
    {"index and config", "{" V2 TYPE(OCI_I) MANS "," CFG "}", "", MEDIA_UNKNOWN, NULL},
    {"index and blobs", "{" V2 TYPE(OCI_I) MANS ",\"blobs\":[]}", "", MEDIA_UNKNOWN, NULL},
    {"manifest and manifests", "{" V2 TYPE(OCI_M) CFG "," LAY "," MANS "}", "", MEDIA_UNKNOWN, NULL},
    {"manifest and blobs", "{" V2 TYPE(OCI_M) CFG "," LAY ",\"blobs\":[]}", "", MEDIA_UNKNOWN, NULL},
    {"artifact and layers", "{" V2 TYPE(ARTIFACT) LAY "}", "", MEDIA_UNKNOWN, NULL},
    {"artifact and config", "{" V2 TYPE(ARTIFACT) CFG "}", "", MEDIA_UNKNOWN, NULL},
    {"artifact and manifests", "{" V2 TYPE(ARTIFACT) MANS "}", "", MEDIA_UNKNOWN, NULL},
    {"manifest without config", "{" V2 TYPE(OCI_M) LAY "}", "", MEDIA_UNKNOWN, NULL},
    {"layers without config or type", "{" V2 LAY "}", "", MEDIA_UNKNOWN, NULL},

    /* descriptors */
    {"manifests no list", "{" V2 TYPE(OCI_I) "\"manifests\":{}}", "", MEDIA_UNKNOWN, NULL},
    {"layers no list", "{" V2 TYPE(OCI_M) CFG ",\"layers\":\"x\"}", "", MEDIA_UNKNOWN, NULL},
    {"blobs no list", "{" V2 TYPE(ARTIFACT) "\"blobs\":1}", "", MEDIA_UNKNOWN, NULL},
    {"config no object", "{" V2 TYPE(OCI_M) "\"config\":\"" DA "\"," LAY "}", "", MEDIA_UNKNOWN, NULL},
    {"a child no object", "{" V2 TYPE(OCI_I) "\"manifests\":[\"" DA "\"]}", "", MEDIA_UNKNOWN, NULL},
    {"a layer null", "{" V2 TYPE(OCI_M) CFG ",\"layers\":[null]}", "", MEDIA_UNKNOWN, NULL},
    {"no digest", "{" V2 TYPE(OCI_M) CFG ",\"layers\":[{\"mediaType\":\"x\",\"size\":1}]}", "", MEDIA_UNKNOWN, NULL},
    {"upper-case digest", "{" V2 TYPE(OCI_M) CFG ",\"layers\":[" DESC(LAYER, "sha256:" H62 "0B", "1") "]}", "", MEDIA_UNKNOWN, NULL},
    {"short digest", "{" V2 TYPE(OCI_M) CFG ",\"layers\":[" DESC(LAYER, "sha256:" H62, "1") "]}", "", MEDIA_UNKNOWN, NULL},
    {"md5", "{" V2 TYPE(OCI_M) CFG ",\"layers\":[" DESC(LAYER, "md5:" H62 "0b", "1") "]}", "", MEDIA_UNKNOWN, NULL},
    {"no size", "{" V2 TYPE(OCI_M) CFG ",\"layers\":[{\"mediaType\":\"x\",\"digest\":\"" DB "\"}]}", "", MEDIA_UNKNOWN, NULL},
    {"negative size", "{" V2 TYPE(OCI_M) CFG ",\"layers\":[" DESC(LAYER, DB, "-1") "]}", "", MEDIA_UNKNOWN, NULL},
    {"size beyond 2^53", "{" V2 TYPE(OCI_M) CFG ",\"layers\":[" DESC(LAYER, DB, "9007199254740993") "]}", "", MEDIA_UNKNOWN, NULL},
    {"size 1.0", "{" V2 TYPE(OCI_M) CFG ",\"layers\":[" DESC(LAYER, DB, "1.0") "]}", "", MEDIA_UNKNOWN, NULL},
    {"size \"1\"", "{" V2 TYPE(OCI_M) CFG ",\"layers\":[" DESC(LAYER, DB, "\"1\"") "]}", "", MEDIA_UNKNOWN, NULL},
    {"media type of no type", "{" V2 TYPE(OCI_M) CFG ",\"layers\":[{\"mediaType\":1,\"digest\":\"" DB "\",\"size\":1}]}", "", MEDIA_UNKNOWN, NULL},
    {"a bad blob of an artifact", "{" TYPE(ARTIFACT) "\"blobs\":[{}]}", "", MEDIA_UNKNOWN, NULL},
    {"a bad subject", "{" V2 TYPE(OCI_M) CFG ",\"subject\":{}}", "", MEDIA_UNKNOWN, NULL},
    {"a bad artifactType", "{" V2 TYPE(OCI_M) "\"artifactType\":1," CFG "}", "", MEDIA_UNKNOWN, NULL},
    {"bad annotations", "{" V2 TYPE(OCI_M) "\"annotations\":[]," CFG "}", "", MEDIA_UNKNOWN, NULL},

    /* JSON */
    {"duplicate keys", "{" V2 TYPE(OCI_M) CFG "," LAY "," LAY "}", "", MEDIA_UNKNOWN, NULL},
    {"duplicate keys in a descriptor", "{" V2 TYPE(OCI_M) CFG ",\"layers\":[{\"digest\":\"" DB "\",\"digest\":\"" DC "\",\"size\":1}]}", "", MEDIA_UNKNOWN, NULL},
    {"trailing bytes", "{" V2 TYPE(OCI_M) CFG "," LAY "}x", "", MEDIA_UNKNOWN, NULL},
    {"a list", "[]", "", MEDIA_UNKNOWN, NULL},
    {"nothing", "", "", MEDIA_UNKNOWN, NULL},
    {"cut", "{" V2 TYPE(OCI_M) CFG, "", MEDIA_UNKNOWN, NULL},
};

static void children_print(const struct manifest *m, struct strbuf *b)
{
    char text[DIGEST_TEXT_MAX];

    sb_reset(b);
    for (size_t i = 0; i < m->n_children; i++) {
        const struct node *n = &m->children[i];
        const char *digest = digest_text(&n->digest, text);
        sb_addf(b, "%s%c%s", i ? "," : "", n->kind == NODE_MANIFEST ? 'm' : n->kind == NODE_BLOB ? 'b' : '?', digest + strlen(digest) - 2);
        sb_add_u64(b, n->size);
        assert_int_equal(n->kind == NODE_MANIFEST, media_type_is_manifest(n->media_type));
    }
}

static void documents(void **state)
{
    struct strbuf b = {0};
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct manifest *m = NULL;
        struct error error = {0};
        enum err e = manifest_parse(str_c(rows[i].doc), str_c(rows[i].content_type), &m, &error);
        if ((e == ERR_OK) != (rows[i].want != MEDIA_UNKNOWN))
            fail_msg("%s: %s %s", rows[i].name, err_text(e), error.text);
        if (e) {
            if (e != ERR_INVALID || m || error.code != ERR_INVALID || !error.text[0])
                fail_msg("%s: %s", rows[i].name, err_text(e));
            continue;
        }
        children_print(m, &b);
        if (m->media_type != rows[i].want || !str_eq_c(sb_str(&b), rows[i].children))
            fail_msg("%s: type %d, %s", rows[i].name, m->media_type, b.p);
        assert_non_null(m->artifact_type);
        assert_non_null(m->annotations);
        assert_non_null(m->platforms);
        manifest_free(m);
    }
    sb_free(&b);
    manifest_free(NULL);
}

static struct manifest *must_parse(const char *doc)
{
    struct manifest *m;
    struct error error;

    if (manifest_parse(str_c(doc), S(""), &m, &error))
        fail_msg("%s", error.text);
    return m;
}

static void what_referrers_are_made_of(void **state)
{
    char text[DIGEST_TEXT_MAX];
    struct manifest *m;
    (void)state;

    m = must_parse("{" V2 TYPE(OCI_M) "\"artifactType\":\"application/sbom\"," CFG ",\"subject\":" DESC(OCI_M, DD, "3") ",\"annotations\":{\"a\":\"b\",\"c\":\"d\"}}");
    assert_string_equal(m->artifact_type, "application/sbom");
    assert_string_equal(m->annotations, "{\"a\":\"b\",\"c\":\"d\"}");
    assert_true(m->has_subject);
    assert_string_equal(digest_text(&m->subject, text), DD);
    manifest_free(m);

    m = must_parse("{" V2 TYPE(OCI_M) CFG "}");
    assert_string_equal(m->artifact_type, CONFIG); /* of the config where there is none */
    assert_string_equal(m->annotations, "");
    assert_string_equal(m->platforms, "");
    assert_false(m->has_subject);
    manifest_free(m);

    m = must_parse("{" V2 TYPE(DOCKER_M) CFG "}");
    assert_string_equal(m->artifact_type, "");
    manifest_free(m);

    m = must_parse("{" V2 TYPE(OCI_I) "\"artifactType\":\"x/y\",\"subject\":null,\"annotations\":null," MANS "}");
    assert_string_equal(m->artifact_type, "x/y");
    assert_false(m->has_subject);
    manifest_free(m);
}

#define PLATFORM(os, arch, more) "{\"mediaType\":\"" OCI_M "\",\"digest\":\"" DA "\",\"size\":1,\"platform\":{\"os\":\"" os "\",\"architecture\":\"" arch "\"" more "}}"

static void platforms(void **state)
{
    static const char long_name[] = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    struct strbuf b = {0};
    struct manifest *m;
    (void)state;

    m = must_parse("{" V2 TYPE(OCI_I) "\"manifests\":[" PLATFORM("linux", "amd64", "") "," PLATFORM("linux", "arm64", ",\"variant\":\"v8\"") ","
                   PLATFORM("unknown", "unknown", "") "," PLATFORM("linux", "amd64", "") "," PLATFORM("win,dows", "amd64", "") ","
                   PLATFORM("", "amd64", "") "," PLATFORM("linux", "", "") "," PLATFORM("linux", "arm", ",\"variant\":\"\\n\"") "," DESC(OCI_M, DB, "1") "]}");
    assert_string_equal(m->platforms, "linux/amd64,linux/arm64/v8,linux/arm");
    assert_int_equal(m->n_children, 9);
    manifest_free(m);

    /* every class of byte in a part, and its neighbours */
    m = must_parse("{" V2 TYPE(OCI_I) "\"manifests\":[" PLATFORM("azAZ09._-", "m", "") "," PLATFORM("a/", "m", "") "," PLATFORM("a:", "m", "") ","
                   PLATFORM("a@", "m", "") "," PLATFORM("a[", "m", "") "," PLATFORM("a`", "m", "") "," PLATFORM("a{", "m", "") "]}");
    assert_string_equal(m->platforms, "azAZ09._-/m");
    manifest_free(m);

    sb_addc(&b, "{" V2 TYPE(OCI_I) "\"manifests\":[");
    for (int i = 0; i < 70; i++)
        sb_addf(&b, "%s{\"mediaType\":\"" OCI_M "\",\"digest\":\"" DA "\",\"size\":1,\"platform\":{\"os\":\"o%d\",\"architecture\":\"%s\"}}", i ? "," : "", i, i ? "a" : long_name);
    sb_addc(&b, "]}");
    m = must_parse(b.p);
    assert_null(strstr(m->platforms, long_name));
    assert_true(strstr(m->platforms, "o1/a,") == m->platforms);
    assert_non_null(strstr(m->platforms, ",o64/a"));
    assert_null(strstr(m->platforms, "o65/a"));
    manifest_free(m);
    sb_free(&b);
}

static void documents_are_bounded(void **state)
{
    struct strbuf b = {0};
    struct manifest *m = NULL;
    (void)state;

    sb_addc(&b, "{" V2 TYPE(OCI_M) CFG "}");
    while (b.n < CLOSURE_MAX_MANIFEST)
        sb_add_char(&b, ' ');
    assert_int_equal(manifest_parse(sb_str(&b), S(""), &m, NULL), ERR_OK);
    manifest_free(m);
    sb_add_char(&b, ' ');
    assert_int_equal(manifest_parse(sb_str(&b), S(""), &m, NULL), ERR_INVALID);

    /* more than CLOSURE_MAX_NODES edges: the list alone is enough, whatever its entries are */
    sb_reset(&b);
    sb_addc(&b, "{" V2 TYPE(OCI_I) "\"manifests\":[1");
    for (int i = 0; i < CLOSURE_MAX_NODES; i++)
        sb_addc(&b, ",1");
    sb_addc(&b, "]}");
    struct error error = {0};
    assert_int_equal(manifest_parse(sb_str(&b), S(""), &m, &error), ERR_INVALID);
    assert_non_null(strstr(error.text, "10000"));
    sb_free(&b);
}

/* ---- the set -------------------------------------------------------------------------------- */

static struct node node_of(enum node_kind kind, unsigned n)
{
    struct node node = {.kind = kind, .digest = {DIGEST_SHA256, {(uint8_t)n, (uint8_t)(n >> 8), (uint8_t)(n >> 16)}}, .size = n};

    if (kind == NODE_MANIFEST)
        node.media_type = MEDIA_OCI_MANIFEST;
    return node;
}

static void a_closure_is_a_set(void **state)
{
    struct closure c = {0};
    struct node n;
    (void)state;

    n = node_of(NODE_MANIFEST, 1);
    assert_null(closure_find(&c, NODE_MANIFEST, &n.digest));
    assert_true(closure_add(&c, &n));
    assert_false(closure_add(&c, &n));
    n = node_of(NODE_BLOB, 1);
    assert_true(closure_add(&c, &n)); /* another kind is another node */
    assert_false(closure_add(&c, &n));
    assert_int_equal(c.n, 2);
    n.digest.alg = DIGEST_SHA512;
    assert_true(closure_add(&c, &n));
    for (unsigned i = 2; i < 5000; i++) {
        n = node_of(NODE_BLOB, i);
        assert_true(closure_add(&c, &n));
        assert_false(closure_full(&c));
    }
    for (unsigned i = 1; i < 5000; i++) {
        n = node_of(NODE_BLOB, i);
        const struct node *found = closure_find(&c, NODE_BLOB, &n.digest);
        assert_non_null(found);
        assert_int_equal(found->size, i);
        assert_int_equal(closure_find(&c, NODE_MANIFEST, &n.digest) != NULL, i == 1);
    }
    assert_int_equal(c.nodes[0].kind, NODE_MANIFEST); /* in the order in which they came */
    assert_int_equal(c.nodes[3].size, 2);
    for (unsigned i = 5000; c.n < CLOSURE_MAX_NODES; i++) {
        n = node_of(NODE_BLOB, i);
        assert_true(closure_add(&c, &n));
    }
    assert_true(closure_full(&c));
    n = node_of(NODE_BLOB, 1000000);
    assert_false(closure_add(&c, &n));
    assert_int_equal(c.n, CLOSURE_MAX_NODES);
    closure_free(&c);
    assert_int_equal(c.n, 0);
    closure_free(&c);
}

static void a_closure_prints_and_scans(void **state)
{
    struct closure c = {0}, back = {0};
    struct strbuf b = {0}, again = {0};
    struct node n;
    (void)state;

    n = node_of(NODE_MANIFEST, 1);
    closure_add(&c, &n);
    n = node_of(NODE_BLOB, 2);
    closure_add(&c, &n);
    n = node_of(NODE_BLOB, 3);
    n.digest.alg = DIGEST_SHA512;
    n.size = 1;
    n.size <<= 53;
    closure_add(&c, &n);
    closure_print(&c, &b);
    assert_non_null(strstr(b.p, "m sha256:01"));
    assert_non_null(strstr(b.p, " " OCI_M " 1\nb sha256:02"));
    assert_non_null(strstr(b.p, " - 2\nb sha512:03"));
    assert_non_null(strstr(b.p, " - 9007199254740992\n"));
    assert_int_equal(closure_scan(sb_str(&b), &back, NULL), ERR_OK);
    assert_int_equal(back.n, 3);
    closure_print(&back, &again);
    assert_true(str_eq(sb_str(&b), sb_str(&again)));
    closure_free(&back);
    closure_free(&c);
    sb_free(&b);
    sb_free(&again);
}

static void only_a_closure_scans(void **state)
{
    static const char *const bad[] = {
        "",
        "\n",
        "m " DA " " OCI_M " 1",                                   /* no end of line */
        "b " DA " - 1\n",                                         /* the root is a manifest */
        "m " DA " - 1\n",                                         /* with a type */
        "m " DA " " OCI_M " 1\n\n",
        "m " DA " " OCI_M " 1\nb " DB " - 1\nb " DB " - 1\n",     /* twice */
        "m " DA " " OCI_M " 1\nx " DB " - 1\n",
        "m " DA " " OCI_M " 1\nb " DB " " OCI_M " 1\n",           /* a blob has no manifest's type */
        "m " DA " " SCHEMA1 " 1\n",
        "m " DA " application/json 1\n",
        "m " DA " APPLICATION/vnd.oci.image.manifest.v1+json 1\n",
        "m " DA " " OCI_M " 01\n",
        "m " DA " " OCI_M " -1\n",
        "m " DA " " OCI_M " \n",
        "m " DA " " OCI_M "\n",
        "m " DA "\n",
        "m\n",
        "m " DA " " OCI_M " 9007199254740993\n",
        "m  " DA " " OCI_M " 1\n",
        "m sha256:1 " OCI_M " 1\n",
        " m " DA " " OCI_M " 1\n",
        "m " DA " " OCI_M " 1 \n",
    };
    struct closure c = {0};
    struct strbuf b = {0};
    char text[DIGEST_TEXT_MAX];
    (void)state;
    for (size_t i = 0; i < COUNT(bad); i++) {
        if (closure_scan(str_c(bad[i]), &c, NULL) != ERR_INVALID || c.nodes)
            fail_msg("%s", bad[i]);
    }
    assert_int_equal(closure_scan(S("m " DA " " OCI_M " 0\nb " DA " - 0\n"), &c, NULL), ERR_OK);
    closure_free(&c);
    sb_addc(&b, "m " DA " " OCI_M " 0\n");
    for (unsigned i = 1; i < CLOSURE_MAX_NODES; i++) {
        struct node n = node_of(NODE_BLOB, i);
        sb_addf(&b, "b %s - 1\n", digest_text(&n.digest, text));
    }
    assert_int_equal(closure_scan(sb_str(&b), &c, NULL), ERR_INVALID); /* full: it may be cut */
    b.n -= strlen("b - 1\n") + 72;
    assert_int_equal(closure_scan(sb_str(&b), &c, NULL), ERR_OK);
    closure_free(&c);
    sb_free(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(documents),          cmocka_unit_test(what_referrers_are_made_of), cmocka_unit_test(platforms),
        cmocka_unit_test(documents_are_bounded), cmocka_unit_test(a_closure_is_a_set),      cmocka_unit_test(a_closure_prints_and_scans),
        cmocka_unit_test(only_a_closure_scans),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
