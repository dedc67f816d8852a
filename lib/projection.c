/* The form of what stands in Redis: names, the wrapping with epoch and MAC, the root, the buckets, the closures.
 * Whatever is not exactly in this form is ERR_UNAVAILABLE: somebody else's bytes mean "cannot know", never "no". The payloads
 * of facts are read elsewhere; connections are not known here. */
#include "pullgate/projection.h"

#include <inttypes.h>
#include <string.h>

#include "pullgate/jv.h"
#include "pullgate/mem.h"

/* ---- names ---------------------------------------------------------------------------------- */

unsigned projection_bucket_of(struct str fact)
{
    uint8_t sum[32];

    seal_sha256(fact, sum);
    return (unsigned)sum[0] << 2 | sum[1] >> 6;
}

void projection_fact_key(struct str fact, struct strbuf *ret)
{
    sb_reset(ret);
    sb_addc(ret, "pg:v:");
    sb_add(ret, fact);
}

void projection_bucket_key(unsigned bucket, struct strbuf *ret)
{
    sb_reset(ret);
    sb_addc(ret, "pg:b:");
    sb_add_u64(ret, bucket);
}

void projection_closure_key(struct str repository_id, const struct digest *root, struct strbuf *ret)
{
    char text[DIGEST_TEXT_MAX];

    sb_reset(ret);
    sb_addc(ret, "pg:m:");
    sb_add(ret, repository_id);
    sb_add_char(ret, ':');
    sb_addc(ret, digest_text(root, text));
}

/* ---- wrapping ------------------------------------------------------------------------------- */

enum { MAC_HEX = 2 * SEAL_MAC_LEN };
/* Above every value that we write (JV_LIMITS_TRUSTED), and a bound on what is copied before its MAC is known to be right. */
#define VALUE_MAX_BYTES (64u * 1024 * 1024 + 4096)

/* Only the payload may hold a line end: neither keys nor epochs do, so that no two triples make one text. */
static void mac_of(const struct keyring *k, struct str redis_key, uint64_t epoch, struct str payload, uint8_t ret[SEAL_MAC_LEN])
{
    struct strbuf text = {0};

    sb_reserve(&text, redis_key.n + payload.n + 32);
    sb_add(&text, redis_key);
    sb_add_char(&text, '\n');
    sb_add_u64(&text, epoch);
    sb_add_char(&text, '\n');
    sb_add(&text, payload);
    keyring_hmac(k, KEYRING_MAC, sb_str(&text), ret);
    sb_free(&text);
}

void projection_wrap(const struct keyring *k, struct str redis_key, uint64_t epoch, struct str payload, struct strbuf *ret)
{
    uint8_t mac[SEAL_MAC_LEN];

    AN(str_index(redis_key, '\n') < 0);
    mac_of(k, redis_key, epoch, payload, mac);
    sb_reset(ret);
    sb_reserve(ret, payload.n + MAC_HEX + 32);
    sb_addc(ret, "1 ");
    sb_add_u64(ret, epoch);
    sb_add_char(ret, ' ');
    sb_add_hex(ret, mac, sizeof mac);
    sb_add_char(ret, ' ');
    sb_add(ret, payload);
}

/* One text a number: "01" is none. */
static bool canonical_u64(struct str s, uint64_t *ret)
{
    return str_to_u64(s, ret) && !(s.n > 1 && s.p[0] == '0');
}

enum err projection_unwrap(const struct keyring *k, struct str redis_key, struct str value, uint64_t *ret_epoch, struct str *ret_payload)
{
    uint8_t mac[SEAL_MAC_LEN], right[SEAL_MAC_LEN];
    struct str form, epoch_text, mac_text, rest = value;
    uint64_t epoch;

    if (value.n > VALUE_MAX_BYTES || str_index(redis_key, '\n') >= 0)
        return ERR_UNAVAILABLE;
    if (!str_cut(rest, ' ', &form, &rest) || !str_eq_c(form, "1") || !str_cut(rest, ' ', &epoch_text, &rest) ||
        !str_cut(rest, ' ', &mac_text, &rest))
        return ERR_UNAVAILABLE;
    if (!canonical_u64(epoch_text, &epoch) || mac_text.n != MAC_HEX || !hex_decode(mac_text, mac, sizeof mac))
        return ERR_UNAVAILABLE;
    for (size_t i = 0; i < mac_text.n; i++)
        if (mac_text.p[i] >= 'A' && mac_text.p[i] <= 'F')
            return ERR_UNAVAILABLE; /* one text a value */
    mac_of(k, redis_key, epoch, rest, right);
    if (!str_eq_secret(mac, right, sizeof mac))
        return ERR_UNAVAILABLE;
    *ret_epoch = epoch;
    *ret_payload = rest;
    return ERR_OK;
}

/* ---- the root ------------------------------------------------------------------------------- */

void projection_root_print(const struct projection_root *r, struct strbuf *ret_payload)
{
    sb_reset(ret_payload);
    sb_addf(ret_payload, "{\"time\":%" PRId64 ",\"buckets\":[", r->time_ms);
    for (unsigned i = 0; i < PROJECTION_BUCKETS; i++) {
        if (i)
            sb_add_char(ret_payload, ',');
        sb_add_u64(ret_payload, r->buckets[i]);
    }
    sb_addc(ret_payload, "]}");
}

enum err projection_root_scan(const struct keyring *k, struct str value, struct projection_root *ret)
{
    struct projection_root r;
    struct str payload;
    struct jv *doc, *buckets;
    enum err e;

    e = projection_unwrap(k, S(PROJECTION_ROOT_KEY), value, &r.epoch, &payload);
    if (e)
        return e;
    if (jv_parse(payload, &JV_LIMITS_TRUSTED, &doc, NULL))
        return ERR_UNAVAILABLE;
    e = ERR_UNAVAILABLE;
    r.time_ms = jv_get_int(doc, "time", -1);
    buckets = jv_get(doc, "buckets");
    if (r.time_ms < 0 || jv_type(buckets) != JV_ARRAY || jv_len(buckets) != PROJECTION_BUCKETS || jv_len(doc) != 2)
        goto end;
    for (unsigned i = 0; i < PROJECTION_BUCKETS; i++) {
        int64_t epoch = jv_int(jv_at(buckets, i), -1);
        if (epoch < 0)
            goto end;
        r.buckets[i] = (uint64_t)epoch;
    }
    *ret = r;
    e = ERR_OK;
end:
    jv_free(doc);
    return e;
}

/* ---- buckets -------------------------------------------------------------------------------- */

struct projection_bucket {
    uint64_t epoch;
    size_t n;
    struct bucket_line {
        struct str fact; /* in text */
        uint64_t epoch;
    } *lines;
    char *text;
};

static bool bucket_line_scan(struct str line, struct bucket_line *ret)
{
    struct str epoch, fact;

    if (!str_cut(line, ' ', &epoch, &fact) || !canonical_u64(epoch, &ret->epoch) || ret->epoch == 0)
        return false;
    if (fact.n == 0 || fact.n > PROJECTION_FACT_KEY_MAX)
        return false;
    ret->fact = fact;
    return true;
}

/* Sorted and in the right bucket: a list that is neither was not written by projection_bucket's writer, and a search in it
 * could miss what it names. */
static bool bucket_lines_scan(struct projection_bucket *b, unsigned bucket, struct str text)
{
    struct str line, rest = text;
    size_t cap = 0;

    for (size_t i = 0; i < text.n; i++)
        cap += text.p[i] == '\n';
    b->lines = mem_calloc(cap ? cap : 1, sizeof *b->lines);
    while (rest.n) {
        if (!str_cut(rest, '\n', &line, &rest) || !bucket_line_scan(line, &b->lines[b->n]))
            return false;
        if (b->n && str_cmp(b->lines[b->n - 1].fact, b->lines[b->n].fact) >= 0)
            return false;
        if (projection_bucket_of(b->lines[b->n].fact) != bucket)
            return false;
        b->n++;
    }
    return true;
}

enum err projection_bucket_scan(const struct keyring *k, unsigned bucket, struct str value, struct projection_bucket **ret)
{
    struct strbuf key = {0};
    struct projection_bucket *b;
    struct str payload;
    uint64_t epoch;
    enum err e;

    if (bucket >= PROJECTION_BUCKETS)
        return ERR_UNAVAILABLE;
    projection_bucket_key(bucket, &key);
    e = projection_unwrap(k, sb_str(&key), value, &epoch, &payload);
    sb_free(&key);
    if (e)
        return e;
    b = NEW(struct projection_bucket);
    b->epoch = epoch;
    b->text = mem_strndup(payload.p, payload.n);
    if (!bucket_lines_scan(b, bucket, (struct str){b->text, payload.n})) {
        projection_bucket_free(&b);
        return ERR_UNAVAILABLE;
    }
    *ret = b;
    return ERR_OK;
}

uint64_t projection_bucket_epoch(const struct projection_bucket *b)
{
    return b->epoch;
}

uint64_t projection_bucket_find(const struct projection_bucket *b, struct str fact)
{
    size_t lo = 0, hi = b->n;

    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        int c = str_cmp(b->lines[mid].fact, fact);
        if (c == 0)
            return b->lines[mid].epoch;
        if (c < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return 0;
}

void projection_bucket_free(struct projection_bucket **b)
{
    if (!*b)
        return;
    mem_free((*b)->lines);
    mem_free((*b)->text);
    MEM_FREE(*b);
}

/* ---- closures ------------------------------------------------------------------------------- */

void projection_closure_print(const struct closure *c, int64_t built_at_s, struct strbuf *ret_payload)
{
    sb_reset(ret_payload);
    sb_add_u64(ret_payload, built_at_s > 0 ? (uint64_t)built_at_s : 0);
    sb_add_char(ret_payload, '\n');
    closure_print(c, ret_payload);
}

enum err projection_closure_scan(struct str payload, struct closure *ret, int64_t *ret_built_at_s)
{
    struct str first, rest;
    uint64_t built_at;

    if (!str_cut(payload, '\n', &first, &rest) || !canonical_u64(first, &built_at) || built_at > INT64_MAX)
        return ERR_UNAVAILABLE;
    if (closure_scan(rest, ret, NULL))
        return ERR_UNAVAILABLE;
    *ret_built_at_s = (int64_t)built_at;
    return ERR_OK;
}
