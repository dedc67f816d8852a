/* The registry's words: names, tags, digests, media types, routes and ranges.
 * Everything here is grammar over bytes: nothing is decoded, folded or normalised before it is judged, so that what was
 * checked is what is used. Leaves rights, sockets and time alone. */
#include "pullgate/oci.h"

#include <endian.h>
#include <string.h>

#include "pullgate/semver.h"

static bool is_lower_digit(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
}

static bool is_word(char c)
{
    return is_lower_digit(c) || (c >= 'A' && c <= 'Z') || c == '_';
}

static bool is_tag_char(char c)
{
    return is_word(c) || c == '.' || c == '-';
}

/* ---- digests -------------------------------------------------------------------------------- */

/* The digit's value and one, 0 for what is none. Lower case only: an upper-case digest is another text, and two texts for one
 * digest would be two cache keys. */
static const uint8_t hex_digit[256] = {
    ['0'] = 1, ['1'] = 2, ['2'] = 3,  ['3'] = 4,  ['4'] = 5,  ['5'] = 6,  ['6'] = 7,  ['7'] = 8,
    ['8'] = 9, ['9'] = 10, ['a'] = 11, ['b'] = 12, ['c'] = 13, ['d'] = 14, ['e'] = 15, ['f'] = 16,
};

static bool hex_lower_decode(struct str in, uint8_t *out, size_t n)
{
    bool ok = true;

    if (in.n != 2 * n)
        return false;
    for (size_t i = 0; i < n; i++) {
        unsigned hi = hex_digit[(uint8_t)in.p[2 * i]], lo = hex_digit[(uint8_t)in.p[2 * i + 1]];
        ok = ok & (hi != 0) & (lo != 0);
        out[i] = (uint8_t)((hi - 1) << 4 | (lo - 1));
    }
    return ok;
}

enum err digest_parse(struct str in, struct digest *ret, struct error *reterr)
{
    struct digest d = {0};
    struct str hex;

    if (str_starts(in, S("sha256:"))) {
        d.alg = DIGEST_SHA256;
        hex = str_skip(in, 7);
    } else if (str_starts(in, S("sha512:"))) {
        d.alg = DIGEST_SHA512;
        hex = str_skip(in, 7);
    } else {
        return error_set_field(reterr, ERR_INVALID, "DIGEST_INVALID", "a digest is sha256: or sha512: and lower-case hex digits");
    }
    if (!hex_lower_decode(hex, d.bytes, digest_len(&d)))
        return error_set_field(reterr, ERR_INVALID, "DIGEST_INVALID", "a digest has exactly %zu lower-case hex digits",
                               2 * digest_len(&d));
    *ret = d;
    return ERR_OK;
}

const char *digest_text(const struct digest *d, char buf[DIGEST_TEXT_MAX])
{
    size_t n = digest_len(d), at = 0;

    if (n) {
        memcpy(buf, d->alg == DIGEST_SHA256 ? "sha256:" : "sha512:", 7);
        at = 7;
    }
    /* Four bytes to eight digits at a time, lengths are multiples of four: each request writes several digests. */
    for (size_t i = 0; i < n; i += 4, at += 8) {
        uint32_t four;
        memcpy(&four, d->bytes + i, sizeof four);
        uint64_t x = le32toh(four);
        x = (x | x << 16) & 0x0000ffff0000ffffu;
        x = (x | x << 8) & 0x00ff00ff00ff00ffu; /* a byte in every 16 bits ... */
        x = (x >> 4 & 0x000f000f000f000fu) | (x & 0x000f000f000f000fu) << 8; /* ... is two digits, the high one first */
        uint64_t letters = (x + 0x7676767676767676u) >> 7 & 0x0101010101010101u; /* those above 9 */
        x = htole64(x + 0x3030303030303030u + letters * ('a' - '0' - 10));
        memcpy(buf + at, &x, sizeof x);
    }
    buf[at] = '\0';
    return buf;
}

bool digest_eq(const struct digest *a, const struct digest *b)
{
    return a->alg == b->alg && memcmp(a->bytes, b->bytes, digest_len(a)) == 0;
}

bool digest_is_set(const struct digest *d)
{
    return d->alg != DIGEST_NONE;
}

size_t digest_len(const struct digest *d)
{
    switch (d->alg) {
    case DIGEST_SHA256:
        return 32;
    case DIGEST_SHA512:
        return 64;
    default:
        return 0;
    }
}

/* Clients choose the digests they ask for, so the table hash is the seeded one. */
uint64_t digest_hash(const struct digest *d)
{
    return str_hash((struct str){(const char *)d->bytes, digest_len(d)});
}

/* ---- names and tags ------------------------------------------------------------------------- */

/* path-component = [a-z0-9]+ ((\.|_|__|-+) [a-z0-9]+)* ; the name is components joined by '/'. */
bool oci_name_valid(struct str name)
{
    size_t i = 0;

    if (name.n == 0 || name.n > OCI_NAME_MAX)
        return false;
    for (;;) {
        size_t run = i;
        while (i < name.n && is_lower_digit(name.p[i]))
            i++;
        if (i == run)
            return false; /* a component or the part after a separator is empty */
        if (i == name.n)
            return true;
        switch (name.p[i]) {
        case '/':
        case '.':
            i++;
            break;
        case '_':
            i++;
            if (i < name.n && name.p[i] == '_')
                i++;
            break;
        case '-':
            while (i < name.n && name.p[i] == '-')
                i++;
            break;
        default:
            return false;
        }
    }
}

bool oci_tag_valid(struct str tag)
{
    if (tag.n == 0 || tag.n > OCI_TAG_MAX || !is_word(tag.p[0]))
        return false;
    for (size_t i = 1; i < tag.n; i++)
        if (!is_tag_char(tag.p[i]))
            return false;
    return true;
}

static const char VERSION_MARK[] = "{version}";
enum { VERSION_MARK_LEN = sizeof VERSION_MARK - 1 };

/* What stands before and after the first mark. */
static bool template_split(struct str t, struct str *ret_before, struct str *ret_after)
{
    for (size_t i = 0; i + VERSION_MARK_LEN <= t.n; i++) {
        if (memcmp(t.p + i, VERSION_MARK, VERSION_MARK_LEN) == 0) {
            *ret_before = str_sub(t, 0, i);
            *ret_after = str_skip(t, i + VERSION_MARK_LEN);
            return true;
        }
    }
    return false;
}

bool oci_tag_template_valid(struct str t)
{
    struct str before, after;

    if (!template_split(t, &before, &after) || before.n + after.n >= OCI_TAG_MAX)
        return false;
    if (before.n && !is_word(before.p[0]))
        return false;
    for (size_t i = 0; i < before.n; i++)
        if (!is_tag_char(before.p[i]))
            return false;
    for (size_t i = 0; i < after.n; i++)
        if (!is_tag_char(after.p[i]))
            return false; /* a second mark has braces, which are no tag characters */
    return true;
}

bool oci_tag_of_version(struct str tag_template, struct str version, struct strbuf *ret)
{
    struct str before, after;

    sb_reset(ret);
    if (version.n == 0 || !template_split(tag_template, &before, &after))
        return false;
    sb_add(ret, before);
    for (size_t i = 0; i < version.n; i++)
        sb_add_char(ret, version.p[i] == '+' ? '_' : version.p[i]);
    sb_add(ret, after);
    return oci_tag_valid(sb_str(ret));
}

bool oci_version_of_tag(struct str tag_template, struct str tag, struct strbuf *ret)
{
    struct str before, after, version;
    struct semver parsed;

    sb_reset(ret);
    if (!template_split(tag_template, &before, &after))
        return false;
    if (tag.n <= before.n + after.n || !str_starts(tag, before) || !str_ends(tag, after))
        return false;
    version = str_sub(tag, before.n, tag.n - before.n - after.n);
    sb_add(ret, version);
    /* A complete version has no '_', so only the first can stand for the '+'. */
    ptrdiff_t at = str_index(version, '_');
    if (at >= 0) {
        ret->p[at] = '+';
        if (!semver_parse(sb_str(ret), &parsed))
            ret->p[at] = '_';
    }
    return true;
}

bool oci_subject_tag_parse(struct str tag, struct oci_subject_tag *ret)
{
    static const char *const suffixes[] = {"sig", "att", "sbom"};
    struct oci_subject_tag t = {.subject = {.alg = DIGEST_SHA256}, .suffix = S("")};

    /* A sha512 fallback tag holds only the first 64 of its 128 digits (distribution-spec "Referrers Tag Schema"): the
     * subject cannot be told from it, so it is none. */
    if (!str_starts(tag, S("sha256-")) || !hex_lower_decode(str_sub(tag, 7, 64), t.subject.bytes, 32))
        return false;
    struct str rest = str_skip(tag, 7 + 64);
    if (rest.n) {
        bool known = false;
        if (rest.p[0] != '.')
            return false;
        t.suffix = str_skip(rest, 1);
        for (size_t i = 0; i < sizeof suffixes / sizeof *suffixes; i++)
            known = known || str_eq_c(t.suffix, suffixes[i]);
        if (!known)
            return false;
    }
    *ret = t;
    return true;
}

/* ---- routes --------------------------------------------------------------------------------- */

/* The last "/<word>/" of what a manifest, blob or referrers route looks like. Right to left, because repository names may
 * hold any of these words themselves. */
static bool route_split(struct str rest, const char *word, struct str *ret_name, struct str *ret_reference)
{
    ptrdiff_t slash = str_rindex(rest, '/');
    if (slash < 0)
        return false;
    struct str head = str_sub(rest, 0, (size_t)slash), w = str_c(word);
    if (str_eq(head, w)) { /* "/v2/manifests/x": the name is empty */
        *ret_name = str_sub(rest, 0, 0);
    } else if (head.n > w.n && str_ends(head, w) && head.p[head.n - w.n - 1] == '/') {
        *ret_name = str_sub(head, 0, head.n - w.n - 1);
    } else {
        return false;
    }
    *ret_reference = str_skip(rest, (size_t)slash + 1);
    return true;
}

/* "<name>/blobs/uploads", "<name>/blobs/uploads/" and "<name>/blobs/uploads/<session>". */
static bool route_upload(struct str rest, struct str *ret_name, struct str *ret_reference)
{
    struct str name, last;

    if (route_split(rest, "blobs", &name, &last) && str_eq_c(last, "uploads")) {
        *ret_name = name;
        *ret_reference = str_sub(last, last.n, 0);
        return true;
    }
    return route_split(rest, "blobs/uploads", ret_name, ret_reference);
}

static bool upload_session_valid(struct str s)
{
    for (size_t i = 0; i < s.n; i++)
        if (!is_tag_char(s.p[i]) && s.p[i] != '=')
            return false;
    return !str_eq_c(s, ".") && !str_eq_c(s, "..");
}

static bool has_bad_segment(struct str path)
{
    struct str seg, rest = path;

    while (str_next(&rest, '/', &seg))
        if (seg.n == 0 || str_eq_c(seg, ".") || str_eq_c(seg, ".."))
            return true;
    return false;
}

enum err oci_route_parse(struct str target, struct oci_request *ret, struct error *reterr)
{
    struct oci_request r = {0};
    struct str path = target, rest;

    r.query = str_sub(target, target.n, 0);
    (void)str_cut(target, '?', &path, &r.query);
    if (str_index(path, '%') >= 0)
        return error_set_field(reterr, ERR_INVALID, "NAME_INVALID", "no percent-encoding in a registry path");
    if (str_eq_c(path, "/v2") || str_eq_c(path, "/v2/")) { /* without its slash some clients probe, too */
        r.kind = OCI_PING;
        *ret = r;
        return ERR_OK;
    }
    if (!str_starts(path, S("/v2/")))
        return error_set(reterr, ERR_NOT_FOUND, "no such route");
    rest = str_skip(path, 4);
    if (str_eq_c(rest, "_catalog")) {
        r.kind = OCI_CATALOG;
        *ret = r;
        return ERR_OK;
    }

    if (route_split(rest, "manifests", &r.repository, &r.reference))
        r.kind = OCI_MANIFEST;
    else if (route_upload(rest, &r.repository, &r.reference))
        r.kind = OCI_UPLOAD;
    else if (route_split(rest, "blobs", &r.repository, &r.reference))
        r.kind = OCI_BLOB;
    else if (route_split(rest, "referrers", &r.repository, &r.reference))
        r.kind = OCI_REFERRERS;
    else if (route_split(rest, "tags", &r.repository, &r.reference) && str_eq_c(r.reference, "list"))
        r.kind = OCI_TAGS;
    else if (has_bad_segment(rest))
        return error_set_field(reterr, ERR_INVALID, "NAME_INVALID", "an empty or dot segment in the path");
    else
        return error_set(reterr, ERR_NOT_FOUND, "no such route");

    if (!oci_name_valid(r.repository))
        return error_set_field(reterr, ERR_INVALID, "NAME_INVALID", "not a repository name");
    switch (r.kind) {
    case OCI_MANIFEST:
        if (str_index(r.reference, ':') < 0) {
            if (!oci_tag_valid(r.reference))
                return error_set_field(reterr, ERR_INVALID, "TAG_INVALID", "not a tag");
            break;
        }
        /* fall through */
    case OCI_BLOB:
    case OCI_REFERRERS: {
        enum err e = digest_parse(r.reference, &r.digest, reterr);
        if (e)
            return e;
        r.is_digest = true;
        break;
    }
    case OCI_UPLOAD:
        if (!upload_session_valid(r.reference))
            return error_set_field(reterr, ERR_INVALID, "NAME_INVALID", "not an upload session");
        break;
    case OCI_TAGS:
    case OCI_NONE: /* these three were answered above */
    case OCI_PING:
    case OCI_CATALOG:
    default: /* tags/list: nothing more to check */
        r.reference = str_sub(r.reference, 0, 0);
        break;
    }
    *ret = r;
    return ERR_OK;
}

/* ---- queries -------------------------------------------------------------------------------- */

#define QUERY_MAX_PAIRS 256 /* a target is at most 4 KiB; more pairs than this is nobody's page of tags */

static int hex_any_value(char c)
{
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : hex_digit[(uint8_t)c] - 1;
}

/* False, with ret empty, for a bad escape or a NUL. */
static bool percent_decode(struct str in, struct strbuf *ret)
{
    sb_reset(ret);
    for (size_t i = 0; i < in.n; i++) {
        char c = in.p[i];
        if (c == '+') {
            c = ' ';
        } else if (c == '%') {
            int hi = i + 2 < in.n ? hex_any_value(in.p[i + 1]) : -1;
            int lo = i + 2 < in.n ? hex_any_value(in.p[i + 2]) : -1;
            if (hi < 0 || lo < 0) {
                sb_reset(ret);
                return false;
            }
            c = (char)(unsigned char)(hi << 4 | lo);
            i += 2;
        }
        if (c == '\0') {
            sb_reset(ret);
            return false;
        }
        sb_add_char(ret, c);
    }
    return true;
}

void query_each(struct str query, query_fn *fn, void *ctx)
{
    struct strbuf key = {0}, value = {0};
    struct str pair, rest = query;

    for (unsigned n = 0; n < QUERY_MAX_PAIRS && str_next(&rest, '&', &pair); n++) {
        struct str k = pair, v = str_sub(pair, pair.n, 0);
        (void)str_cut(pair, '=', &k, &v);
        if (!percent_decode(k, &key) || key.n == 0)
            continue; /* a key that cannot be read names nothing */
        (void)percent_decode(v, &value);
        fn(ctx, sb_str(&key), sb_str(&value));
    }
    sb_free(&key);
    sb_free(&value);
}

struct query_find {
    const char *key;
    struct strbuf *ret;
    bool found;
};

static void query_find_pair(void *ctx, struct str key, struct str value)
{
    struct query_find *f = ctx;

    if (f->found || !str_eq_c(key, f->key))
        return;
    f->found = true;
    sb_add(f->ret, value);
}

/* The first of several wins: which of two a cache or a proxy in front of us would have taken cannot matter then. */
bool query_get(struct str query, const char *key, struct strbuf *ret)
{
    struct query_find f = {key, ret, false};

    sb_reset(ret);
    query_each(query, query_find_pair, &f);
    return f.found;
}

/* ---- byte ranges ---------------------------------------------------------------------------- */

/* Digits only; a number beyond 64 bits is a legal position past any blob. */
static bool range_number(struct str s, uint64_t *ret)
{
    uint64_t v = 0;

    if (s.n == 0)
        return false;
    for (size_t i = 0; i < s.n; i++) {
        if (s.p[i] < '0' || s.p[i] > '9')
            return false;
        if (__builtin_mul_overflow(v, (uint64_t)10, &v) || __builtin_add_overflow(v, (uint64_t)(s.p[i] - '0'), &v)) {
            v = UINT64_MAX;
            for (i++; i < s.n; i++)
                if (s.p[i] < '0' || s.p[i] > '9')
                    return false;
        }
    }
    *ret = v;
    return true;
}

enum err http_range_parse(struct str in, uint64_t size, struct byte_range *ret)
{
    struct str unit, spec, first, last;
    uint64_t a, b = UINT64_MAX;

    if (!str_cut(str_trim(in), '=', &unit, &spec) || !str_eq_nocase(unit, S("bytes")))
        return ERR_INVALID;
    spec = str_trim(spec);
    if (!str_cut(spec, '-', &first, &last))
        return ERR_INVALID;
    if (first.n == 0) { /* the last b bytes */
        if (!range_number(last, &b))
            return ERR_INVALID;
        if (b == 0)
            return ERR_RANGE;
        if (size == 0)
            return ERR_INVALID; /* satisfiable, but an empty range cannot be written: send the whole of nothing */
        *ret = (struct byte_range){b >= size ? 0 : size - b, size - 1};
        return ERR_OK;
    }
    if (!range_number(first, &a) || (last.n && !range_number(last, &b)) || b < a)
        return ERR_INVALID; /* a list of ranges has a comma, which is no digit */
    if (a >= size)
        return ERR_RANGE;
    *ret = (struct byte_range){a, b >= size ? size - 1 : b};
    return ERR_OK;
}

/* ---- media types ---------------------------------------------------------------------------- */

static const char *const media_texts[] = {
    [MEDIA_UNKNOWN] = "",
    [MEDIA_OCI_INDEX] = "application/vnd.oci.image.index.v1+json",
    [MEDIA_OCI_MANIFEST] = "application/vnd.oci.image.manifest.v1+json",
    [MEDIA_DOCKER_LIST] = "application/vnd.docker.distribution.manifest.list.v2+json",
    [MEDIA_DOCKER_MANIFEST] = "application/vnd.docker.distribution.manifest.v2+json",
    [MEDIA_OCI_ARTIFACT] = "application/vnd.oci.artifact.manifest.v1+json",
    [MEDIA_SCHEMA1] = "application/vnd.docker.distribution.manifest.v1+json",
};
enum { N_MEDIA = sizeof media_texts / sizeof *media_texts };

const char MEDIA_ACCEPT_ALL[] = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, "
                                "application/vnd.docker.distribution.manifest.list.v2+json, "
                                "application/vnd.docker.distribution.manifest.v2+json, "
                                "application/vnd.oci.artifact.manifest.v1+json";

enum media_type media_type_parse(struct str s)
{
    struct str type = s, params;

    (void)str_cut(s, ';', &type, &params);
    type = str_trim(type);
    for (int i = 1; i < N_MEDIA; i++)
        if (str_eq_nocase(type, str_c(media_texts[i])))
            return (enum media_type)i;
    if (str_eq_nocase(type, S("application/vnd.docker.distribution.manifest.v1+prettyjws")))
        return MEDIA_SCHEMA1;
    return MEDIA_UNKNOWN;
}

const char *media_type_text(enum media_type m)
{
    return (unsigned)m < N_MEDIA ? media_texts[m] : "";
}

bool media_type_is_index(enum media_type m)
{
    return m == MEDIA_OCI_INDEX || m == MEDIA_DOCKER_LIST;
}

bool media_type_is_manifest(enum media_type m)
{
    return media_type_is_index(m) || m == MEDIA_OCI_MANIFEST || m == MEDIA_DOCKER_MANIFEST || m == MEDIA_OCI_ARTIFACT;
}
