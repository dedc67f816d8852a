/* Registry paths, names, tags, digests, ranges and queries. What is accepted is what the distribution specification's own regular
 * expressions accept (here by the C library's matcher), prints back to the bytes it came from, and lies inside them. */
#include "fuzz.h"

#include <regex.h>

#include "pullgate/oci.h"

#define NAME_RE "[a-z0-9]+((\\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\\.|_|__|-+)[a-z0-9]+)*)*"
#define TAG_RE "[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}"
#define DIGEST_RE "(sha256:[a-f0-9]{64}|sha512:[a-f0-9]{128})"

static bool matches(const char *pattern, regex_t *re, bool *made, struct str s)
{
    char text[1024];

    if (s.n >= sizeof text)
        return false; /* longer than anything in these grammars */
    snprintf(text, sizeof text, "%.*s", STR(s));
    if (!*made) {
        char whole[512];
        snprintf(whole, sizeof whole, "^(%s)$", pattern);
        FUZZ_CHECK(regcomp(re, whole, REG_EXTENDED | REG_NOSUB) == 0, "regcomp");
        *made = true;
    }
    return !memchr(s.p, '\n', s.n) && !memchr(s.p, 0, s.n) && regexec(re, text, 0, NULL, 0) == 0;
}
#define MATCHES(pattern, s)                                                                                            \
    __extension__({                                                                                                    \
        static regex_t re;                                                                                             \
        static bool made;                                                                                              \
        matches(pattern, &re, &made, s);                                                                               \
    })

static void check_words(struct str s)
{
    struct digest d;
    char text[DIGEST_TEXT_MAX];
    struct oci_subject_tag t;

    if (s.n > 300)
        return; /* the matcher's time */
    FUZZ_CHECK(oci_name_valid(s) == (s.n <= OCI_NAME_MAX && MATCHES(NAME_RE, s)), "name: not the specification's grammar");
    FUZZ_CHECK(oci_tag_valid(s) == MATCHES(TAG_RE, s), "tag: not the specification's grammar");
    bool is_digest = digest_parse(s, &d, NULL) == ERR_OK;
    FUZZ_CHECK(is_digest == MATCHES(DIGEST_RE, s), "digest: not the specification's grammar");
    if (is_digest)
        FUZZ_CHECK(str_eq_c(s, digest_text(&d, text)), "digest: prints differently");
    if (oci_subject_tag_parse(s, &t))
        FUZZ_CHECK(oci_tag_valid(s) && MATCHES("sha256-[a-f0-9]{64}(\\.(sig|att|sbom))?", s), "subject tag: not the grammar");
}

static void check_template(struct str s)
{
    struct str template, version;
    struct strbuf tag = {0}, back = {0}, again = {0};

    if (str_cut(s, ' ', &template, &version) && oci_tag_template_valid(template)) {
        if (oci_tag_of_version(template, version, &tag)) {
            FUZZ_CHECK(oci_tag_valid(sb_str(&tag)), "a version's tag is none");
            FUZZ_CHECK(oci_version_of_tag(template, sb_str(&tag), &back), "a version's tag does not fit its template");
            FUZZ_CHECK(oci_tag_of_version(template, sb_str(&back), &again) && str_eq(sb_str(&tag), sb_str(&again)),
                       "tag -> version -> tag is another tag");
        }
    }
    sb_free(&tag);
    sb_free(&back);
    sb_free(&again);
}

static void check_route(struct str target)
{
    static const char *const words[] = {[OCI_MANIFEST] = "manifests", [OCI_BLOB] = "blobs", [OCI_TAGS] = "tags/list", [OCI_REFERRERS] = "referrers",
                                        [OCI_UPLOAD] = "blobs/uploads"};
    struct oci_request r;
    struct error e = {0};
    struct strbuf b = {0};
    struct str path = target, query = {0};
    char text[DIGEST_TEXT_MAX];
    enum err err = oci_route_parse(target, &r, &e);

    (void)str_cut(target, '?', &path, &query);
    if (err) {
        FUZZ_CHECK(err == ERR_NOT_FOUND || (err == ERR_INVALID && e.field[0]), "a route is refused without a code");
        sb_free(&b);
        return;
    }
    FUZZ_CHECK(str_eq(r.query, query), "query");
    FUZZ_CHECK(r.kind != OCI_NONE, "an accepted route of no kind");
    if (r.kind == OCI_PING) {
        FUZZ_CHECK(str_eq(path, S("/v2/")) || str_eq(path, S("/v2")), "ping");
    } else if (r.kind == OCI_CATALOG) {
        FUZZ_CHECK(str_eq(path, S("/v2/_catalog")), "catalog");
    } else {
        FUZZ_CHECK(MATCHES(NAME_RE, r.repository) && r.repository.n <= OCI_NAME_MAX, "a route with a name outside the grammar");
        sb_addf(&b, "/v2/%.*s/%s", STR(r.repository), words[r.kind]);
        if (r.kind != OCI_TAGS && !(r.kind == OCI_UPLOAD && r.reference.n == 0 && path.n == b.n))
            sb_add_char(&b, '/');
        sb_add(&b, r.kind == OCI_TAGS ? S("") : r.reference);
        FUZZ_CHECK(str_eq(sb_str(&b), path), "a route prints differently");
        if (r.is_digest)
            FUZZ_CHECK(str_eq_c(r.reference, digest_text(&r.digest, text)), "a route's digest is another one");
        else if (r.kind == OCI_MANIFEST)
            FUZZ_CHECK(MATCHES(TAG_RE, r.reference), "a route with a tag outside the grammar");
        FUZZ_CHECK(r.is_digest || (r.kind != OCI_BLOB && r.kind != OCI_REFERRERS), "a blob without a digest");
    }
    sb_free(&b);
}

static void check_range(struct str s, uint64_t size)
{
    struct byte_range r = {1, 0};
    unsigned long long a, b;
    char text[64], again[64];
    enum err e = http_range_parse(s, size, &r);

    if (e == ERR_OK)
        FUZZ_CHECK(r.first <= r.last && r.last < size, "a range outside the blob");
    /* The plain form, read by scanf and printed back. */
    if (s.n >= sizeof text || memchr(s.p, 0, s.n))
        return;
    snprintf(text, sizeof text, "%.*s", STR(s));
    if (sscanf(text, "bytes=%llu-%llu", &a, &b) == 2) {
        snprintf(again, sizeof again, "bytes=%llu-%llu", a, b);
        if (!strcmp(again, text) && a <= b && b < (1ull << 62))
            FUZZ_CHECK(a < size ? e == ERR_OK && r.first == a && r.last == (b < size ? b : size - 1) : e == ERR_RANGE, "a plain range");
    }
}

static void on_pair(void *ctx, struct str key, struct str value)
{
    (*(unsigned *)ctx)++;
    FUZZ_CHECK(key.n > 0 && !memchr(key.p, 0, key.n) && (!value.n || !memchr(value.p, 0, value.n)), "a pair with a NUL or no key");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_in in = {data, size};
    uint8_t mode = fuzz_byte(&in) % 5;
    struct str s = fuzz_rest(&in);
    char *copy = fuzz_exact(s);
    struct strbuf b = {0};
    unsigned pairs = 0;

    s.p = copy;
    switch (mode) {
    case 0:
        check_route(s);
        break;
    case 1:
        check_words(s);
        break;
    case 2:
        check_template(s);
        break;
    case 3:
        check_range(s, 1000);
        check_range(s, 0);
        check_range(s, 1ull << 40);
        break;
    default:
        query_each(s, on_pair, &pairs);
        FUZZ_CHECK(pairs <= 256, "more pairs than are allowed");
        (void)query_get(s, "n", &b);
        (void)query_get(s, "scope", &b);
        break;
    }
    sb_free(&b);
    mem_free(copy);
    return 0;
}
