/* The registry's words: names, tags, digests, media types, routes and ranges. Pure; no allocation but where said. */
#ifndef PULLGATE_OCI_H
#define PULLGATE_OCI_H

#include <stdbool.h>
#include <stdint.h>

#include "pullgate/err.h"
#include "pullgate/str.h"

enum digest_alg { DIGEST_NONE, DIGEST_SHA256, DIGEST_SHA512 };

/* A value; compare with digest_eq, use as a hash key with digest_hash. Unused bytes are zero. */
struct digest {
    uint8_t alg;       /* enum digest_alg */
    uint8_t bytes[64]; /* 32 used by sha256 */
};
#define DIGEST_TEXT_MAX 136 /* "sha512:" + 128 + NUL */

/* Exactly "sha256:" + 64 or "sha512:" + 128 lower-case hex digits. Source: image-spec descriptor.md "Digests". */
enum err digest_parse(struct str in, struct digest *ret, struct error *reterr) MUST_USE;
const char *digest_text(const struct digest *d, char buf[DIGEST_TEXT_MAX]); /* returns buf */
bool digest_eq(const struct digest *a, const struct digest *b);
bool digest_is_set(const struct digest *d);
size_t digest_len(const struct digest *d); /* bytes: 32 or 64 */
uint64_t digest_hash(const struct digest *d);

#define OCI_NAME_MAX 255
#define OCI_TAG_MAX 128
/* distribution-spec 1.1 "Pulling manifests": <name> and <reference> as tag. */
bool oci_name_valid(struct str name);
bool oci_tag_valid(struct str tag);
/* Helm's rule: '+' of a version is '_' in its tag. ret is reset first; false when the result is no tag. */
bool oci_tag_of_version(struct str tag_template, struct str version, struct strbuf *ret);
/* The inverse: version of a tag under the template; false when the tag does not fit it. ret is reset first. "_" becomes "+" only when the
 * result is then a complete semantic version with build metadata. */
bool oci_version_of_tag(struct str tag_template, struct str tag, struct strbuf *ret);
bool oci_tag_template_valid(struct str t); /* contains "{version}" once, the rest tag characters */

/* "sha256-<hex>" with an optional suffix: cosign's .sig .att .sbom and the referrers fallback tag. */
struct oci_subject_tag {
    struct digest subject;
    struct str suffix; /* "", "sig", "att", "sbom"; others are refused, and so are sha512 tags, which hold half a digest */
};
bool oci_subject_tag_parse(struct str tag, struct oci_subject_tag *ret);

enum oci_kind {
    OCI_NONE,
    OCI_PING,      /* /v2/ */
    OCI_MANIFEST,  /* /v2/<name>/manifests/<reference> */
    OCI_BLOB,      /* /v2/<name>/blobs/<digest> */
    OCI_TAGS,      /* /v2/<name>/tags/list */
    OCI_REFERRERS, /* /v2/<name>/referrers/<digest> */
    OCI_CATALOG,   /* /v2/_catalog */
    OCI_UPLOAD,    /* /v2/<name>/blobs/uploads/…: never served, 405 */
};

/* All strs borrow from the target. */
struct oci_request {
    enum oci_kind kind;
    struct str repository;
    struct str reference; /* as sent: the tag or the digest's text */
    bool is_digest;
    struct digest digest;
    struct str query; /* after '?', raw */
};

/* Parse an origin-form target "/v2/…[?query]". Strict bytes: no '%', no empty or dot segment, nothing normalised
 * (SECURITY T2). Returns ERR_OK; ERR_INVALID (400) with the OCI code NAME_INVALID, TAG_INVALID or DIGEST_INVALID in
 * reterr->field; ERR_NOT_FOUND when it is no /v2/ route at all. */
enum err oci_route_parse(struct str target, struct oci_request *ret, struct error *reterr) MUST_USE;

/* One parameter of a raw query, percent-decoded into ret (reset first); '+' is a space. False when absent.
 * ERR-free: an undecodable or NUL-bearing value counts as present and empty. */
bool query_get(struct str query, const char *key, struct strbuf *ret);
/* Iterate: calls fn for each decoded pair, in order; at most 256 pairs. */
typedef void query_fn(void *ctx, struct str key, struct str value);
void query_each(struct str query, query_fn *fn, void *ctx);

struct byte_range {
    uint64_t first;
    uint64_t last; /* inclusive */
};
/* One byte range of a blob of `size` bytes. ERR_OK; ERR_INVALID: ignore the header, send 200 (also for several ranges and
 * other units); ERR_RANGE: send 416. Source: RFC 9110 14.1.2, 14.2. */
enum err http_range_parse(struct str in, uint64_t size, struct byte_range *ret) MUST_USE;

enum media_type {
    MEDIA_UNKNOWN,
    MEDIA_OCI_INDEX,
    MEDIA_OCI_MANIFEST,
    MEDIA_DOCKER_LIST,
    MEDIA_DOCKER_MANIFEST,
    MEDIA_OCI_ARTIFACT, /* application/vnd.oci.artifact.manifest.v1+json, withdrawn but in use */
    MEDIA_SCHEMA1,      /* refused */
};
enum media_type media_type_parse(struct str s); /* parameters after ';' ignored */
const char *media_type_text(enum media_type m); /* "" for unknown */
bool media_type_is_index(enum media_type m);
bool media_type_is_manifest(enum media_type m); /* any that we serve under /manifests/ */
/* The one Accept that is sent upstream (FACTS 6.3). */
extern const char MEDIA_ACCEPT_ALL[];

#endif
