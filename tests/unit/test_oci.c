/* The registry's grammar: names, tags, digests, routes, queries, ranges, media types. One row per rule. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "pullgate/oci.h"

#define COUNT(a) (sizeof(a) / sizeof *(a))
#define HEX16 "0123456789abcdef"
#define HEX32 HEX16 HEX16
#define HEX64 HEX32 HEX32
#define HEX128 HEX64 HEX64
#define D256 "sha256:" HEX64
#define D512 "sha512:" HEX128
#define A50 "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
#define TAG128 A50 A50 "aaaaaaaaaaaaaaaaaaaaaaaaaaaa"
#define NAME255 A50 A50 A50 A50 A50 "aaaaa"

static void digests(void **state)
{
    static const struct {
        const char *in;
        enum digest_alg alg;
    } rows[] = {
        {D256, DIGEST_SHA256},
        {D512, DIGEST_SHA512},
        {"", DIGEST_NONE},
        {"sha256", DIGEST_NONE},
        {"sha256:", DIGEST_NONE},
        {"sha256:" HEX32, DIGEST_NONE},
        {D256 "0", DIGEST_NONE},
        {"sha256:" HEX128, DIGEST_NONE},
        {"sha512:" HEX64, DIGEST_NONE},
        {"sha384:" HEX64 HEX32, DIGEST_NONE},
        {"SHA256:" HEX64, DIGEST_NONE},
        {"sha256:0123456789ABCDEF" HEX32 HEX16, DIGEST_NONE},
        {"sha256:g123456789abcdef" HEX32 HEX16, DIGEST_NONE},
        {"sha256:0g23456789abcdef" HEX32 HEX16, DIGEST_NONE},
        {"sha256-" HEX64, DIGEST_NONE},
        {" " D256, DIGEST_NONE},
        {"md5:" HEX32, DIGEST_NONE},
    };
    char buf[DIGEST_TEXT_MAX];
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct digest d = {0};
        struct error error = {0};
        enum err e = digest_parse(str_c(rows[i].in), &d, &error);
        if ((e == ERR_OK) != (rows[i].alg != DIGEST_NONE) || d.alg != rows[i].alg)
            fail_msg("%s", rows[i].in);
        if (e == ERR_OK)
            assert_string_equal(digest_text(&d, buf), rows[i].in);
        else
            assert_string_equal(error.field, "DIGEST_INVALID");
    }
    struct digest a = {0}, b = {0}, none = {0};
    assert_int_equal(digest_parse(S(D256), &a, NULL), ERR_OK);
    assert_int_equal(digest_parse(S(D512), &b, NULL), ERR_OK);
    assert_false(digest_eq(&a, &b));
    assert_true(digest_eq(&a, &a));
    assert_true(digest_is_set(&a));
    assert_false(digest_is_set(&none));
    assert_false(digest_eq(&a, &none));
    assert_int_equal(digest_len(&none), 0);
    assert_int_equal(digest_len(&b), 64);
    assert_string_equal(digest_text(&none, buf), "");
    assert_true(digest_hash(&a) == digest_hash(&a));
    assert_true(digest_hash(&a) != digest_hash(&b));
    b = a;
    b.bytes[31] ^= 1;
    assert_false(digest_eq(&a, &b));
}

static void names(void **state)
{
    static const char *const good[] = {"a",       "a/b",     "shop/api", "a.b",  "a_b", "a__b", "a-b", "a--b", "a---b", "0/1/2",
                                       "a/b/c/d", "a.b/c_d", "manifests", "tags", NAME255};
    static const char *const bad[] = {"",     "/",    "a/",   "/a",    "a//b",  "A",     "aB",    "a..b", "a___b", "a_.b",   ".a",    "a.",     "-a",  "a-",
                                      "_a",   "a_",   "a._b", "a/.b",  "a/..",  "..",    ".",     "a b",  "a%2fb", "a:b",    "a@b",   "a\\b",   "a;b", "a#b",
                                      "a\tb", "\xc3\xa4", "a/_b", "a__", "a/b-", NAME255 "a", "evil.example:443/a", "a\x7f"};
    (void)state;
    for (size_t i = 0; i < COUNT(good); i++)
        if (!oci_name_valid(str_c(good[i])))
            fail_msg("%s", good[i]);
    for (size_t i = 0; i < COUNT(bad); i++)
        if (oci_name_valid(str_c(bad[i])))
            fail_msg("%s", bad[i]);
    assert_false(oci_name_valid((struct str){"a\0b", 3}));
}

static void tags(void **state)
{
    static const char *const good[] = {"a", "A", "_", "1.2.3", "v1", "latest", "_x", "a..b", "a-", "1.2.3_b", TAG128};
    static const char *const bad[] = {"", ".", "..", "-x", ".x", "a b", "a:b", "a/b", "a+b", "a%", "a@b", "\xc3\xa4", TAG128 "a"};
    (void)state;
    for (size_t i = 0; i < COUNT(good); i++)
        if (!oci_tag_valid(str_c(good[i])))
            fail_msg("%s", good[i]);
    for (size_t i = 0; i < COUNT(bad); i++)
        if (oci_tag_valid(str_c(bad[i])))
            fail_msg("%s", bad[i]);
}

static void templates(void **state)
{
    static const struct {
        const char *t;
        bool valid;
    } rows[] = {
        {"{version}", true},
        {"v{version}", true},
        {"{version}-alpine", true},
        {"_{version}.x", true},
        {"", false},
        {"version", false},
        {"{version", false},
        {"{version}{version}", false},
        {"{Version}", false},
        {"-{version}", false},
        {".{version}", false},
        {"a b{version}", false},
        {"{version} ", false},
        {"{version}+", false},
        {"{version}" TAG128, false},
    };
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++)
        if (oci_tag_template_valid(str_c(rows[i].t)) != rows[i].valid)
            fail_msg("%s", rows[i].t);
}

static void versions_and_tags(void **state)
{
    static const struct {
        const char *t, *version, *tag; /* tag "": none can be made */
    } make[] = {
        {"{version}", "1.2.3", "1.2.3"},
        {"{version}", "1.2.3+b.1", "1.2.3_b.1"},
        {"v{version}-x", "1.2.3", "v1.2.3-x"},
        {"{version}", "", ""},
        {"{version}", "a b", ""},
        {"{version}", "-1", ""},
        {"nothing", "1", ""},
        {"{version}", TAG128 "a", ""},
    };
    static const struct {
        const char *t, *tag, *version; /* version "": the tag does not fit */
    } read[] = {
        {"{version}", "1.2.3", "1.2.3"},
        {"{version}", "1.2.3_b.1", "1.2.3+b.1"},
        {"{version}", "v1.2.3_b.1", "v1.2.3+b.1"},
        {"{version}", "1.2.3-rc_b", "1.2.3-rc+b"},
        {"{version}", "1.2_b", "1.2_b"},
        {"{version}", "1.2.3_b_c", "1.2.3_b_c"},
        {"{version}", "a_b", "a_b"},
        {"{version}", "_", "_"},
        {"{version}", "latest", "latest"},
        {"v{version}", "v1.2.3", "1.2.3"},
        {"v{version}", "1.2.3", ""},
        {"v{version}", "v", ""},
        {"{version}-alpine", "1.2.3-alpine", "1.2.3"},
        {"{version}-alpine", "1.2.3", ""},
        {"{version}-alpine", "-alpine", ""},
        {"{version}-alpine", "1.2.3-debian", ""},
        {"a{version}a", "a", ""},
        {"a{version}a", "aa", ""},
        {"a{version}a", "aaa", "a"},
        {"nothing", "1", ""},
    };
    struct strbuf b = {0};
    (void)state;
    for (size_t i = 0; i < COUNT(make); i++) {
        bool ok = oci_tag_of_version(str_c(make[i].t), str_c(make[i].version), &b);
        if (ok != (make[i].tag[0] != '\0') || (ok && !str_eq_c(sb_str(&b), make[i].tag)))
            fail_msg("%s of %s", make[i].t, make[i].version);
    }
    for (size_t i = 0; i < COUNT(read); i++) {
        bool ok = oci_version_of_tag(str_c(read[i].t), str_c(read[i].tag), &b);
        if (ok != (read[i].version[0] != '\0') || (ok && !str_eq_c(sb_str(&b), read[i].version)))
            fail_msg("%s from %s", read[i].t, read[i].tag);
    }
    sb_free(&b);
}

static void subject_tags(void **state)
{
    static const struct {
        const char *tag, *suffix; /* suffix NULL: none */
    } rows[] = {
        {"sha256-" HEX64, ""},
        {"sha256-" HEX64 ".sig", "sig"},
        {"sha256-" HEX64 ".att", "att"},
        {"sha256-" HEX64 ".sbom", "sbom"},
        {"sha256-" HEX64 ".", NULL},
        {"sha256-" HEX64 ".foo", NULL},
        {"sha256-" HEX64 ".sig.sig", NULL},
        {"sha256-" HEX64 "sig", NULL},
        {"sha256-" HEX32, NULL},
        {"sha256-/" HEX32 HEX16 "0123456789abcde", NULL},
        {"sha256:" HEX64, NULL},
        {"sha512-" HEX64, NULL},
        {"sha256-0123456789ABCDEF" HEX32 HEX16, NULL},
        {"1.2.3", NULL},
        {"", NULL},
    };
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct oci_subject_tag t;
        bool ok = oci_subject_tag_parse(str_c(rows[i].tag), &t);
        if (ok != (rows[i].suffix != NULL))
            fail_msg("%s", rows[i].tag);
        if (ok) {
            char buf[DIGEST_TEXT_MAX];
            assert_true(str_eq_c(t.suffix, rows[i].suffix));
            assert_string_equal(digest_text(&t.subject, buf), D256);
        }
    }
}

/* name NULL: none expected; code: reterr->field of ERR_INVALID */
static const struct {
    const char *target;
    enum err err;
    enum oci_kind kind;
    const char *name, *reference, *query, *code;
} routes[] = {
    {"/v2/", ERR_OK, OCI_PING, "", "", "", NULL},
    {"/v2", ERR_OK, OCI_PING, "", "", "", NULL},
    {"/v2/?x=1", ERR_OK, OCI_PING, "", "", "x=1", NULL},
    {"/v2/_catalog", ERR_OK, OCI_CATALOG, "", "", "", NULL},
    {"/v2/_catalog?n=10&last=a/b", ERR_OK, OCI_CATALOG, "", "", "n=10&last=a/b", NULL},
    {"/v2/shop/api/manifests/1.2.3", ERR_OK, OCI_MANIFEST, "shop/api", "1.2.3", "", NULL},
    {"/v2/shop/api/manifests/" D256, ERR_OK, OCI_MANIFEST, "shop/api", D256, "", NULL},
    {"/v2/shop/api/manifests/" D512, ERR_OK, OCI_MANIFEST, "shop/api", D512, "", NULL},
    {"/v2/shop/api/manifests/1?reference=2&digest=%2e", ERR_OK, OCI_MANIFEST, "shop/api", "1", "reference=2&digest=%2e", NULL},
    {"/v2/a/blobs/" D256, ERR_OK, OCI_BLOB, "a", D256, "", NULL},
    {"/v2/a/blobs/" D256 "?x?y", ERR_OK, OCI_BLOB, "a", D256, "x?y", NULL},
    {"/v2/a/tags/list", ERR_OK, OCI_TAGS, "a", "", "", NULL},
    {"/v2/a/tags/list?n=1", ERR_OK, OCI_TAGS, "a", "", "n=1", NULL},
    {"/v2/a/referrers/" D256 "?artifactType=x", ERR_OK, OCI_REFERRERS, "a", D256, "artifactType=x", NULL},
    {"/v2/a/blobs/uploads", ERR_OK, OCI_UPLOAD, "a", "", "", NULL},
    {"/v2/a/blobs/uploads/", ERR_OK, OCI_UPLOAD, "a", "", "", NULL},
    {"/v2/a/blobs/uploads/?mount=" D256 "&from=b", ERR_OK, OCI_UPLOAD, "a", "", "mount=" D256 "&from=b", NULL},
    {"/v2/a/blobs/uploads/6b29c6a8-1_2=", ERR_OK, OCI_UPLOAD, "a", "6b29c6a8-1_2=", "", NULL},
    /* from the right: the words may stand in names */
    {"/v2/manifests/manifests/manifests", ERR_OK, OCI_MANIFEST, "manifests", "manifests", "", NULL},
    {"/v2/a/manifests/tags/list", ERR_OK, OCI_TAGS, "a/manifests", "", "", NULL},
    {"/v2/a/tags/list/manifests/1", ERR_OK, OCI_MANIFEST, "a/tags/list", "1", "", NULL},
    {"/v2/a/blobs/uploads/manifests/1", ERR_OK, OCI_MANIFEST, "a/blobs/uploads", "1", "", NULL},
    {"/v2/a/blobs/blobs/" D256, ERR_OK, OCI_BLOB, "a/blobs", D256, "", NULL},
    {"/v2/tags/tags/list", ERR_OK, OCI_TAGS, "tags", "", "", NULL},
    {"/v2/v2/manifests/1", ERR_OK, OCI_MANIFEST, "v2", "1", "", NULL},
    {"/v2/a/manifests/list", ERR_OK, OCI_MANIFEST, "a", "list", "", NULL},
    /* no route at all */
    {"/", ERR_NOT_FOUND, OCI_NONE, NULL, NULL, NULL, NULL},
    {"", ERR_NOT_FOUND, OCI_NONE, NULL, NULL, NULL, NULL},
    {"*", ERR_NOT_FOUND, OCI_NONE, NULL, NULL, NULL, NULL},
    {"/V2/a/manifests/1", ERR_NOT_FOUND, OCI_NONE, NULL, NULL, NULL, NULL},
    {"/v1/repositories/a/tags", ERR_NOT_FOUND, OCI_NONE, NULL, NULL, NULL, NULL},
    {"/v2x", ERR_NOT_FOUND, OCI_NONE, NULL, NULL, NULL, NULL},
    {"/v22/a/manifests/1", ERR_NOT_FOUND, OCI_NONE, NULL, NULL, NULL, NULL},
    {"//v2/a/manifests/1", ERR_NOT_FOUND, OCI_NONE, NULL, NULL, NULL, NULL},
    {"/./v2/a/manifests/1", ERR_NOT_FOUND, OCI_NONE, NULL, NULL, NULL, NULL},
    {"http://h/v2/a/manifests/1", ERR_NOT_FOUND, OCI_NONE, NULL, NULL, NULL, NULL},
    {"/debug/pprof/", ERR_NOT_FOUND, OCI_NONE, NULL, NULL, NULL, NULL},
    {"/.git/config", ERR_NOT_FOUND, OCI_NONE, NULL, NULL, NULL, NULL},
    {"/v2/a", ERR_NOT_FOUND, OCI_NONE, NULL, NULL, NULL, NULL},
    {"/v2/a/_oci/ext/discover", ERR_NOT_FOUND, OCI_NONE, NULL, NULL, NULL, NULL},
    {"/v2/_oci/ext/discover", ERR_NOT_FOUND, OCI_NONE, NULL, NULL, NULL, NULL},
    {"/v2/a/tags/lists", ERR_NOT_FOUND, OCI_NONE, NULL, NULL, NULL, NULL},
    {"/v2/a/manifest/1", ERR_NOT_FOUND, OCI_NONE, NULL, NULL, NULL, NULL},
    {"/v2/a/xmanifests/1", ERR_NOT_FOUND, OCI_NONE, NULL, NULL, NULL, NULL},
    {"/v2/_catalogs", ERR_NOT_FOUND, OCI_NONE, NULL, NULL, NULL, NULL},
    /* the name */
    {"/v2/manifests/1", ERR_INVALID, OCI_NONE, NULL, NULL, NULL, "NAME_INVALID"},
    {"/v2//manifests/1", ERR_INVALID, OCI_NONE, NULL, NULL, NULL, "NAME_INVALID"},
    {"/v2/tags/list", ERR_INVALID, OCI_NONE, NULL, NULL, NULL, "NAME_INVALID"},
    {"/v2//tags/list", ERR_INVALID, OCI_NONE, NULL, NULL, NULL, "NAME_INVALID"},
    {"/v2//a/manifests/1", ERR_INVALID, OCI_NONE, NULL, NULL, NULL, "NAME_INVALID"},
    {"/v2/a//b/manifests/1", ERR_INVALID, OCI_NONE, NULL, NULL, NULL, "NAME_INVALID"},
    {"/v2/a//manifests/1", ERR_INVALID, OCI_NONE, NULL, NULL, NULL, "NAME_INVALID"},
    {"/v2/./a", ERR_INVALID, OCI_NONE, NULL, NULL, NULL, "NAME_INVALID"},
    {"/v2/../a", ERR_INVALID, OCI_NONE, NULL, NULL, NULL, "NAME_INVALID"},
    {"/v2/a/../b/manifests/1", ERR_INVALID, OCI_NONE, NULL, NULL, NULL, "NAME_INVALID"},
    {"/v2/a/./manifests/1", ERR_INVALID, OCI_NONE, NULL, NULL, NULL, "NAME_INVALID"},
    {"/v2/../v2/a/manifests/1", ERR_INVALID, OCI_NONE, NULL, NULL, NULL, "NAME_INVALID"},
    {"/v2/a..b/manifests/1", ERR_INVALID, OCI_NONE, NULL, NULL, NULL, "NAME_INVALID"},
    {"/v2/A/manifests/1", ERR_INVALID, OCI_NONE, NULL, NULL, NULL, "NAME_INVALID"},
    {"/v2/a\\..\\b/manifests/1", ERR_INVALID, OCI_NONE, NULL, NULL, NULL, "NAME_INVALID"},
    {"/v2/a;x=y/manifests/1", ERR_INVALID, OCI_NONE, NULL, NULL, NULL, "NAME_INVALID"},
    {"/v2/a#b/manifests/1", ERR_INVALID, OCI_NONE, NULL, NULL, NULL, "NAME_INVALID"},
    {"/v2/h.example:443/a/manifests/1", ERR_INVALID, OCI_NONE, NULL, NULL, NULL, "NAME_INVALID"},
    {"/v2/a/blobs/" D256 "/manifests/1", ERR_INVALID, OCI_NONE, NULL, NULL, NULL, "NAME_INVALID"},
    {"/v2/\xef\xbc\x8f/manifests/1", ERR_INVALID, OCI_NONE, NULL, NULL, NULL, "NAME_INVALID"},
    {"/v2/" NAME255 "a/manifests/1", ERR_INVALID, OCI_NONE, NULL, NULL, NULL, "NAME_INVALID"},
    {"/v2//blobs/uploads/", ERR_INVALID, OCI_NONE, NULL, NULL, NULL, "NAME_INVALID"},
    {"/v2/a/blobs/uploads/..", ERR_INVALID, OCI_NONE, NULL, NULL, NULL, "NAME_INVALID"},
    {"/v2/a/blobs/uploads/.", ERR_INVALID, OCI_NONE, NULL, NULL, NULL, "NAME_INVALID"},
    {"/v2/a/blobs/uploads/a b", ERR_INVALID, OCI_NONE, NULL, NULL, NULL, "NAME_INVALID"},
    {"/v2/_catalog/", ERR_INVALID, OCI_NONE, NULL, NULL, NULL, "NAME_INVALID"},
    {"/v2//", ERR_INVALID, OCI_NONE, NULL, NULL, NULL, "NAME_INVALID"},
    {"/v2/a/manifests/1/", ERR_INVALID, OCI_NONE, NULL, NULL, NULL, "NAME_INVALID"},
    {"/v2/a/tags/list/", ERR_INVALID, OCI_NONE, NULL, NULL, NULL, "NAME_INVALID"},
    {"/v2/..", ERR_INVALID, OCI_NONE, NULL, NULL, NULL, "NAME_INVALID"},
    /* percent signs, anywhere in the path */
    {"/v2/a%2fb/manifests/1", ERR_INVALID, OCI_NONE, NULL, NULL, NULL, "NAME_INVALID"},
    {"/v2/a/manifests/%31", ERR_INVALID, OCI_NONE, NULL, NULL, NULL, "NAME_INVALID"},
    {"/v2/a/blobs/sha256%3a" HEX64, ERR_INVALID, OCI_NONE, NULL, NULL, NULL, "NAME_INVALID"},
    {"/v2/%00", ERR_INVALID, OCI_NONE, NULL, NULL, NULL, "NAME_INVALID"},
    {"/%76%32/", ERR_INVALID, OCI_NONE, NULL, NULL, NULL, "NAME_INVALID"},
    {"/v2/%", ERR_INVALID, OCI_NONE, NULL, NULL, NULL, "NAME_INVALID"},
    /* the reference */
    {"/v2/a/manifests/", ERR_INVALID, OCI_NONE, NULL, NULL, NULL, "TAG_INVALID"},
    {"/v2/a/manifests/..", ERR_INVALID, OCI_NONE, NULL, NULL, NULL, "TAG_INVALID"},
    {"/v2/a/manifests/-x", ERR_INVALID, OCI_NONE, NULL, NULL, NULL, "TAG_INVALID"},
    {"/v2/a/manifests/" TAG128 "a", ERR_INVALID, OCI_NONE, NULL, NULL, NULL, "TAG_INVALID"},
    {"/v2/a/manifests/1@2", ERR_INVALID, OCI_NONE, NULL, NULL, NULL, "TAG_INVALID"},
    {"/v2/a/manifests/1@" D256, ERR_INVALID, OCI_NONE, NULL, NULL, NULL, "DIGEST_INVALID"},
    {"/v2/a/manifests/sha256:zzz", ERR_INVALID, OCI_NONE, NULL, NULL, NULL, "DIGEST_INVALID"},
    {"/v2/a/manifests/SHA256:" HEX64, ERR_INVALID, OCI_NONE, NULL, NULL, NULL, "DIGEST_INVALID"},
    {"/v2/a/manifests/" D256 "a", ERR_INVALID, OCI_NONE, NULL, NULL, NULL, "DIGEST_INVALID"},
    {"/v2/a/manifests/sha512:" HEX64, ERR_INVALID, OCI_NONE, NULL, NULL, NULL, "DIGEST_INVALID"},
    {"/v2/a/blobs/1.2.3", ERR_INVALID, OCI_NONE, NULL, NULL, NULL, "DIGEST_INVALID"},
    {"/v2/a/blobs/", ERR_INVALID, OCI_NONE, NULL, NULL, NULL, "DIGEST_INVALID"},
    {"/v2/a/referrers/1.2.3", ERR_INVALID, OCI_NONE, NULL, NULL, NULL, "DIGEST_INVALID"},
};

static void routes_parse(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(routes); i++) {
        struct oci_request r;
        struct error error = {0};
        memset(&r, 0x5a, sizeof r);
        enum err e = oci_route_parse(str_c(routes[i].target), &r, &error);
        if (e != routes[i].err)
            fail_msg("%s: %s", routes[i].target, err_text(e));
        if (e == ERR_INVALID && strcmp(error.field, routes[i].code) != 0)
            fail_msg("%s: %s", routes[i].target, error.field);
        if (e)
            continue;
        if (r.kind != routes[i].kind || !str_eq_c(r.repository, routes[i].name) || !str_eq_c(r.reference, routes[i].reference) ||
            !str_eq_c(r.query, routes[i].query))
            fail_msg("%s: kind %d, \"%.*s\" \"%.*s\" \"%.*s\"", routes[i].target, r.kind, STR(r.repository), STR(r.reference), STR(r.query));
        assert_int_equal(r.is_digest, strncmp(routes[i].reference, "sha", 3) == 0);
        assert_int_equal(digest_is_set(&r.digest), r.is_digest);
    }
    struct oci_request r;
    assert_int_equal(oci_route_parse((struct str){"/v2/a\0b/manifests/1", 19}, &r, NULL), ERR_INVALID);
    assert_int_equal(oci_route_parse((struct str){NULL, 0}, &r, NULL), ERR_NOT_FOUND);
}

static void queries(void **state)
{
    static const struct {
        const char *query, *key, *value; /* NULL: absent */
    } rows[] = {
        {"n=10&last=b", "n", "10"},
        {"n=10&last=b", "last", "b"},
        {"n=10&last=b", "x", NULL},
        {"", "n", NULL},
        {"n", "n", ""},
        {"n=", "n", ""},
        {"=1", "n", NULL},
        {"&&n=1&", "n", "1"},
        {"n=1&n=2", "n", "1"},
        {"a=b+c", "a", "b c"},
        {"a=b%20c%2Bd", "a", "b c+d"},
        {"a=%2f%2F", "a", "//"},
        {"%6e=1", "n", "1"},
        {"a=%zz", "a", ""},
        {"a=%2z", "a", ""},
        {"a=x%2", "a", ""},
        {"a=%", "a", ""},
        {"a=x%00y", "a", ""},
        {"%zz=1&n=2", "n", "2"},
        {"a=b=c", "a", "b=c"},
        {"N=1", "n", NULL},
    };
    struct strbuf b = {0}, many = {0};
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        bool found = query_get(str_c(rows[i].query), rows[i].key, &b);
        if (found != (rows[i].value != NULL) || !str_eq_c(sb_str(&b), rows[i].value ? rows[i].value : ""))
            fail_msg("%s of %s: %.*s", rows[i].key, rows[i].query, STR(sb_str(&b)));
    }
    for (int i = 0; i < 255; i++)
        sb_addc(&many, "x&");
    sb_addc(&many, "n=1&m=2");
    assert_true(query_get(sb_str(&many), "n", &b));
    assert_false(query_get(sb_str(&many), "m", &b)); /* the 257th pair */
    assert_false(query_get((struct str){NULL, 0}, "n", &b));
    sb_free(&b);
    sb_free(&many);
}

static void collect(void *ctx, struct str key, struct str value)
{
    sb_addf(ctx, "%.*s=%.*s;", STR(key), STR(value));
}

static void queries_in_order(void **state)
{
    struct strbuf b = {0};
    (void)state;
    query_each(S("scope=a&scope=b%3Ac&x&=y"), collect, &b);
    assert_string_equal(b.p, "scope=a;scope=b:c;x=;");
    sb_free(&b);
}

static void ranges(void **state)
{
    static const struct {
        const char *in;
        uint64_t size;
        enum err err;
        uint64_t first, last;
    } rows[] = {
        {"bytes=0-9", 100, ERR_OK, 0, 9},
        {"bytes=0-0", 1, ERR_OK, 0, 0},
        {"bytes=0-100", 100, ERR_OK, 0, 99},
        {"bytes=99-100", 100, ERR_OK, 99, 99},
        {"bytes=90-", 100, ERR_OK, 90, 99},
        {"bytes=90-200", 100, ERR_OK, 90, 99},
        {"bytes=-10", 100, ERR_OK, 90, 99},
        {"bytes=-200", 100, ERR_OK, 0, 99},
        {"bytes=-100", 100, ERR_OK, 0, 99},
        {"BYTES=0-9", 100, ERR_OK, 0, 9},
        {" bytes=0-9 ", 100, ERR_OK, 0, 9},
        {"bytes= 0-9", 100, ERR_OK, 0, 9},
        {"bytes=0-99999999999999999999999", 100, ERR_OK, 0, 99},
        {"bytes=-99999999999999999999999", 100, ERR_OK, 0, 99},
        {"bytes=100-", 100, ERR_RANGE, 0, 0},
        {"bytes=99999999999999999999999-", 100, ERR_RANGE, 0, 0},
        {"bytes=100-200", 100, ERR_RANGE, 0, 0},
        {"bytes=-0", 100, ERR_RANGE, 0, 0},
        {"bytes=0-", 0, ERR_RANGE, 0, 0},
        {"bytes=-5", 0, ERR_INVALID, 0, 0},
        {"bytes=5-4", 100, ERR_INVALID, 0, 0},
        {"bytes=0-1,3-4", 100, ERR_INVALID, 0, 0},
        {"bytes=0-1,", 100, ERR_INVALID, 0, 0},
        {"chars=0-1", 100, ERR_INVALID, 0, 0},
        {"bytes", 100, ERR_INVALID, 0, 0},
        {"bytes=", 100, ERR_INVALID, 0, 0},
        {"bytes=-", 100, ERR_INVALID, 0, 0},
        {"bytes=a-", 100, ERR_INVALID, 0, 0},
        {"bytes=1-a", 100, ERR_INVALID, 0, 0},
        {"bytes=-a", 100, ERR_INVALID, 0, 0},
        {"bytes=--1", 100, ERR_INVALID, 0, 0},
        {"bytes=+1-2", 100, ERR_INVALID, 0, 0},
        {"bytes=1 - 2", 100, ERR_INVALID, 0, 0},
        {"bytes=99999999999999999999999x-", 100, ERR_INVALID, 0, 0},
        {"bytes=99999999999999999999999/-", 100, ERR_INVALID, 0, 0},
        {"bytes=18446744073709551615-", 100, ERR_RANGE, 0, 0},
        {"bytes=18446744073709551616-", 100, ERR_RANGE, 0, 0},
        {"bytes =0-1", 100, ERR_INVALID, 0, 0},
        {"", 100, ERR_INVALID, 0, 0},
    };
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct byte_range r = {0, 0};
        enum err e = http_range_parse(str_c(rows[i].in), rows[i].size, &r);
        if (e != rows[i].err || r.first != rows[i].first || r.last != rows[i].last)
            fail_msg("%s of %llu", rows[i].in, (unsigned long long)rows[i].size);
    }
}

static void media_types(void **state)
{
    static const struct {
        const char *in;
        enum media_type type;
        bool index, manifest;
    } rows[] = {
        {"application/vnd.oci.image.index.v1+json", MEDIA_OCI_INDEX, true, true},
        {"application/vnd.oci.image.manifest.v1+json", MEDIA_OCI_MANIFEST, false, true},
        {"application/vnd.docker.distribution.manifest.list.v2+json", MEDIA_DOCKER_LIST, true, true},
        {"application/vnd.docker.distribution.manifest.v2+json", MEDIA_DOCKER_MANIFEST, false, true},
        {"application/vnd.oci.artifact.manifest.v1+json", MEDIA_OCI_ARTIFACT, false, true},
        {"application/vnd.docker.distribution.manifest.v1+json", MEDIA_SCHEMA1, false, false},
        {"application/vnd.docker.distribution.manifest.v1+prettyjws", MEDIA_SCHEMA1, false, false},
        {"Application/vnd.OCI.image.index.v1+JSON; charset=utf-8", MEDIA_OCI_INDEX, true, true},
        {" application/vnd.oci.image.index.v1+json ;x", MEDIA_OCI_INDEX, true, true},
        {"application/json", MEDIA_UNKNOWN, false, false},
        {"", MEDIA_UNKNOWN, false, false},
        {"application/vnd.oci.image.index.v1+jsonx", MEDIA_UNKNOWN, false, false},
    };
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        enum media_type m = media_type_parse(str_c(rows[i].in));
        if (m != rows[i].type || media_type_is_index(m) != rows[i].index || media_type_is_manifest(m) != rows[i].manifest)
            fail_msg("%s", rows[i].in);
        assert_int_equal(media_type_parse(str_c(media_type_text(m))), m);
        if (rows[i].manifest)
            assert_non_null(strstr(MEDIA_ACCEPT_ALL, media_type_text(m)));
    }
    assert_string_equal(media_type_text((enum media_type)99), "");
    assert_null(strstr(MEDIA_ACCEPT_ALL, "distribution.manifest.v1")); /* schema 1 is never asked for */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(digests),           cmocka_unit_test(names),   cmocka_unit_test(tags),
        cmocka_unit_test(templates),         cmocka_unit_test(versions_and_tags), cmocka_unit_test(subject_tags),
        cmocka_unit_test(routes_parse),      cmocka_unit_test(queries), cmocka_unit_test(queries_in_order),
        cmocka_unit_test(ranges),            cmocka_unit_test(media_types),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
