/* Bytes of a Redis that may be anybody's, through the reply parser with our bounds and our conversion: no crash, no leak, and an error
 * reply anywhere in it is never taken for an answer. What comes out as text is then read as each kind of value that stands in Redis:
 * without our MAC none of it is believed. With it (the input as a payload that was signed) nothing breaks, and what is understood
 * prints back to the same. */
#include "../../lib/cache.c"

#include "fuzz.h"

#include "pullgate/license.h"
#include "pullgate/projection.h"
#include "pullgate/upstream.h"
#include "pullgate/jv.h"

static struct keyring *keys;

static bool has_error(const redisReply *r)
{
    if (r->type == REDIS_REPLY_ERROR)
        return true;
    for (size_t i = 0; r->type == REDIS_REPLY_ARRAY && i < r->elements; i++)
        if (has_error(r->element[i]))
            return true;
    return false;
}

/* Unsigned bytes: nothing is known by them. */
static void expect_unknown(struct str value)
{
    static struct projection_root root;
    struct projection_bucket *b = NULL;
    struct str payload = {0};
    uint64_t epoch = 0;

    FUZZ_CHECK(projection_unwrap(keys, S("pg:v:c:cus_1"), value, &epoch, &payload) == ERR_UNAVAILABLE, "a value was believed");
    FUZZ_CHECK(projection_root_scan(keys, value, &root) == ERR_UNAVAILABLE, "a root was believed");
    FUZZ_CHECK(projection_bucket_scan(keys, 7, value, &b) == ERR_UNAVAILABLE && b == NULL, "a bucket was believed");
}

static void each_text(const struct cache_reply *r, unsigned depth)
{
    if (r->type == CACHE_STRING || r->type == CACHE_STATUS)
        expect_unknown(r->str);
    for (size_t i = 0; r->type == CACHE_ARRAY && i < r->n && depth < 8; i++)
        each_text(&r->items[i], depth + 1);
}

static void feed(const uint8_t *data, size_t size, size_t piece)
{
    void *reply = NULL;
    redisReader *reader = redisReaderCreateWithFunctions(&parser_functions);

    for (size_t at = 0; at < size;) { /* in pieces, as a socket gives them */
        size_t n = size - at < piece ? size - at : piece;
        if (redisReaderFeed(reader, (const char *)data + at, n) != REDIS_OK)
            break;
        at += n;
        int rc;
        while ((rc = redisReaderGetReply(reader, &reply)) == REDIS_OK && reply) {
            struct cache_reply out;
            enum err e = reply_convert(reply, &out, 0);
            FUZZ_CHECK(e || !has_error(reply), "an error is taken for an answer");
            if (!e) {
                each_text(&out, 0);
                reply_clear(&out);
            }
            freeReplyObject(reply);
        }
        if (rc != REDIS_OK)
            break;
    }
    redisReaderFree(reader);
}

/* ---- payloads that one of us signed -------------------------------------------------------------------------------------- */

static void signed_payload(uint8_t kind, struct str payload)
{
    static struct projection_root root;
    struct strbuf value = {0}, text = {0};
    struct jv *doc = NULL;
    struct entitlement *ent = NULL;
    struct upstream_spec *spec = NULL;
    struct projection_bucket *b = NULL;
    struct closure c = {0};
    int64_t built;

    switch (kind % 5) {
    case 0:
        projection_wrap(keys, S(PROJECTION_ROOT_KEY), 9, payload, &value);
        if (projection_root_scan(keys, sb_str(&value), &root) == ERR_OK) {
            FUZZ_CHECK(root.epoch == 9, "another epoch");
            projection_root_print(&root, &text);
            struct projection_root again;
            projection_wrap(keys, S(PROJECTION_ROOT_KEY), 9, sb_str(&text), &value);
            FUZZ_CHECK(projection_root_scan(keys, sb_str(&value), &again) == ERR_OK && memcmp(&again, &root, sizeof root) == 0, "a root prints differently");
        }
        break;
    case 1:
        projection_wrap(keys, S("pg:b:7"), 9, payload, &value);
        if (projection_bucket_scan(keys, 7, sb_str(&value), &b) == ERR_OK) {
            FUZZ_CHECK(projection_bucket_epoch(b) == 9, "another epoch");
            struct str line, rest = payload, epoch, name;
            uint64_t e;
            while (payload.n && str_next(&rest, '\n', &line) && line.n) { /* what it names is found, and nothing else */
                FUZZ_CHECK(str_cut(line, ' ', &epoch, &name) && str_to_u64(epoch, &e) && projection_bucket_find(b, name) == e, "a fact is not found");
                FUZZ_CHECK(projection_bucket_find(b, str_sub(name, 0, name.n - 1)) != e || memmem(payload.p, payload.n, name.p, name.n - 1), "found");
            }
            FUZZ_CHECK(projection_bucket_find(b, S("c:nobody")) == 0 || memmem(payload.p, payload.n, "c:nobody", 8), "a fact is found that is not there");
            projection_bucket_free(&b);
        }
        break;
    case 2:
        if (projection_closure_scan(payload, &c, &built) == ERR_OK) {
            projection_closure_print(&c, built, &text);
            FUZZ_CHECK(str_eq(sb_str(&text), payload), "a closure prints differently");
            closure_free(&c);
        }
        break;
    case 3:
        if (jv_parse(payload, &JV_LIMITS_TRUSTED, &doc, NULL) == ERR_OK && entitlement_parse(doc, &ent, NULL) == ERR_OK) {
            FUZZ_CHECK(ent->refs == 1 && ent->customer_id.n, "an entitlement of nobody");
            for (size_t i = 0; i < ent->n_licenses; i++) {
                const struct license *l = &ent->licenses[i];
                FUZZ_CHECK(l->terms.status != LICENSE_STATUS_NONE && l->id.n && l->terms.grace_days >= 0, "a license without a status");
                for (size_t k = 0; k < l->n_grants; k++)
                    FUZZ_CHECK(l->grants[k].selector != SELECTOR_NONE && (l->grants[k].selector != SELECTOR_RANGE) == (l->grants[k].range == NULL) &&
                                   (l->grants[k].selector != SELECTOR_DIGEST || digest_is_set(&l->grants[k].digest)),
                               "a grant that is none");
            }
            entitlement_unref(&ent);
        }
        jv_free(doc);
        break;
    default:
        if (jv_parse(payload, &JV_LIMITS_TRUSTED, &doc, NULL) == ERR_OK && upstream_spec_parse(doc, keys, &spec, NULL) == ERR_OK) {
            FUZZ_CHECK(spec->id[0] && spec->url[0] && spec->password[0] == '\0', "an upstream without a URL, or with a password from nowhere");
            upstream_spec_free(&spec);
        }
        jv_free(doc);
        break;
    }
    sb_free(&value);
    sb_free(&text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_in in = {data, size};

    if (!keys) {
        keys = fuzz_keys();
        fuzz_quiet();
        pthread_once(&parser_once, parser_init);
    }
    uint8_t kind = fuzz_byte(&in);
    if (kind >= 'a' && kind <= 'e') {
        struct str s = fuzz_rest(&in);
        char *copy = fuzz_exact(s);
        signed_payload((uint8_t)(kind - 'a'), (struct str){copy, s.n});
        mem_free(copy);
    } else {
        feed(in.p, in.n, kind % 2 ? 7 : 4096);
    }
    return 0;
}
