/* The form of what stands in Redis: what was written comes back, and nothing else is believed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "pullgate/projection.h"

#include "directory.h"

static struct keyring *keys, *other_keys;
static char dirs[2][64];

static int open_keys(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        snprintf(dirs[i], sizeof dirs[i], "/tmp/test_projection.XXXXXX");
        if (!mkdtemp(dirs[i]))
            return -1;
    }
    return keyring_open(dirs[0], true, &keys, NULL) || keyring_open(dirs[1], true, &other_keys, NULL) ? -1 : 0;
}

static int close_keys(void **state)
{
    (void)state;
    keyring_free(keys);
    keyring_free(other_keys);
    for (int i = 0; i < 2; i++)
        if (directory_remove(dirs[i]))
            return -1;
    return 0;
}

static void names(void **state)
{
    struct strbuf b = {0};
    struct digest d = {DIGEST_SHA256, {0xab}};
    (void)state;
    projection_fact_key(S("c:cus_1"), &b);
    assert_string_equal(b.p, "pg:v:c:cus_1");
    projection_bucket_key(1023, &b);
    assert_string_equal(b.p, "pg:b:1023");
    projection_closure_key(S("rep_1"), &d, &b);
    assert_string_equal(b.p, "pg:m:rep_1:sha256:ab00000000000000000000000000000000000000000000000000000000000000");
    /* printf 'c:cus_1' | sha256sum begins with these bits; a change here makes every deployment's Redis unreadable */
    uint8_t sum[32];
    seal_sha256(S("c:cus_1"), sum);
    assert_int_equal(projection_bucket_of(S("c:cus_1")), (sum[0] * 256u + sum[1]) >> 6);
    assert_int_equal(projection_bucket_of(S("abc")), 0xba78 >> 6); /* FIPS 180-2: SHA-256("abc") = ba7816bf… */
    sb_free(&b);
}

static void what_was_wrapped_unwraps(void **state)
{
    static const char *const payloads[] = {"{}", "", "a b\nc", "1 2 3"};
    struct strbuf b = {0};
    (void)state;
    for (size_t i = 0; i < sizeof payloads / sizeof *payloads; i++) {
        uint64_t epoch = 0;
        struct str payload = {NULL, 0};
        projection_wrap(keys, S("pg:v:x"), 42 + i, str_c(payloads[i]), &b);
        assert_true(str_starts(sb_str(&b), i == 0 ? S("1 42 ") : S("1 4")));
        assert_int_equal(b.n, 5 + 64 + 1 + strlen(payloads[i]));
        assert_int_equal(projection_unwrap(keys, S("pg:v:x"), sb_str(&b), &epoch, &payload), ERR_OK);
        assert_int_equal(epoch, 42 + i);
        assert_true(str_eq_c(payload, payloads[i]));
    }
    sb_free(&b);
}

static void nothing_else_unwraps(void **state)
{
    struct strbuf b = {0}, wild = {0};
    uint64_t epoch = 7;
    struct str payload = S("untouched");
    (void)state;

    projection_wrap(keys, S("pg:v:x"), 42, S("{\"a\":1}"), &b);
    /* every byte, and every length */
    for (size_t i = 0; i < b.n; i++) {
        for (int bit = 0; bit < 8; bit++) {
            b.p[i] = (char)(b.p[i] ^ (1 << bit));
            if (projection_unwrap(keys, S("pg:v:x"), sb_str(&b), &epoch, &payload) != ERR_UNAVAILABLE)
                fail_msg("byte %zu, bit %d", i, bit);
            b.p[i] = (char)(b.p[i] ^ (1 << bit));
        }
        assert_int_equal(projection_unwrap(keys, S("pg:v:x"), str_sub(sb_str(&b), 0, i), &epoch, &payload), ERR_UNAVAILABLE);
    }
    /* another key of Redis, another key of the deployment */
    assert_int_equal(projection_unwrap(keys, S("pg:v:y"), sb_str(&b), &epoch, &payload), ERR_UNAVAILABLE);
    assert_int_equal(projection_unwrap(other_keys, S("pg:v:x"), sb_str(&b), &epoch, &payload), ERR_UNAVAILABLE);
    /* epoch and payload cannot be shifted into the key or into each other */
    assert_int_equal(projection_unwrap(keys, S("pg:v:x\n42"), sb_str(&b), &epoch, &payload), ERR_UNAVAILABLE);
    /* one text a value */
    sb_addc(&wild, "1 042 ");
    sb_addc(&wild, b.p + 5);
    assert_int_equal(projection_unwrap(keys, S("pg:v:x"), sb_str(&wild), &epoch, &payload), ERR_UNAVAILABLE);
    for (size_t i = 5; i < 69; i++)
        if (b.p[i] >= 'a')
            b.p[i] = (char)(b.p[i] - 'a' + 'A');
    assert_int_equal(projection_unwrap(keys, S("pg:v:x"), sb_str(&b), &epoch, &payload), ERR_UNAVAILABLE);
    static const char *const junk[] = {"", "1", "1 ", "1 2", "1 2 ", "1 2 3 4", "OK", "null", "2 42 x y", "1 -1 x y", "1 99999999999999999999 x y"};
    for (size_t i = 0; i < sizeof junk / sizeof *junk; i++)
        assert_int_equal(projection_unwrap(keys, S("pg:v:x"), str_c(junk[i]), &epoch, &payload), ERR_UNAVAILABLE);
    assert_int_equal(epoch, 7);
    assert_true(str_eq_c(payload, "untouched"));
    sb_free(&b);
    sb_free(&wild);
}

static void the_root(void **state)
{
    static struct projection_root r, back;
    struct strbuf payload = {0}, value = {0};
    (void)state;

    r.epoch = 99;
    r.time_ms = 1700000000123;
    for (unsigned i = 0; i < PROJECTION_BUCKETS; i++)
        r.buckets[i] = i % 3 ? i : 0;
    projection_root_print(&r, &payload);
    projection_wrap(keys, S(PROJECTION_ROOT_KEY), r.epoch, sb_str(&payload), &value);
    assert_int_equal(projection_root_scan(keys, sb_str(&value), &back), ERR_OK);
    assert_memory_equal(&r, &back, sizeof r);
    assert_int_equal(projection_root_scan(other_keys, sb_str(&value), &back), ERR_UNAVAILABLE);
    /* a bucket's wrapping is no root's */
    projection_wrap(keys, S("pg:b:1"), r.epoch, sb_str(&payload), &value);
    assert_int_equal(projection_root_scan(keys, sb_str(&value), &back), ERR_UNAVAILABLE);

    static const char *const bad[] = {"", "{}", "[]", "{\"time\":1,\"buckets\":[]}", "{\"time\":1,\"buckets\":[1]}", "{\"time\":1}"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        projection_wrap(keys, S(PROJECTION_ROOT_KEY), 1, str_c(bad[i]), &value);
        assert_int_equal(projection_root_scan(keys, sb_str(&value), &back), ERR_UNAVAILABLE);
    }
    static const char *const edits[][2] = {{"\"time\":1700000000123", "\"time\":\"now\""}, {"\"time\":1700000000123", "\"time\":-1"},
                                           {"[0,", "[-1,"}, {"[0,", "[\"0\","}, {"[0,", "[0,0,"}, {"[0,", "["}, {"\"time\"", "\"more\":1,\"time\""}};
    for (size_t i = 0; i < sizeof edits / sizeof *edits; i++) {
        struct strbuf b = {0};
        const char *at = strstr(payload.p, edits[i][0]);
        assert_non_null(at);
        sb_add(&b, (struct str){payload.p, (size_t)(at - payload.p)});
        sb_addc(&b, edits[i][1]);
        sb_addc(&b, at + strlen(edits[i][0]));
        projection_wrap(keys, S(PROJECTION_ROOT_KEY), 1, sb_str(&b), &value);
        if (projection_root_scan(keys, sb_str(&value), &back) != ERR_UNAVAILABLE)
            fail_msg("%s", edits[i][1]);
        sb_free(&b);
    }
    assert_memory_equal(&r, &back, sizeof r);
    sb_free(&payload);
    sb_free(&value);
}

/* Facts that all fall into bucket 5, sorted. */
static size_t facts_of_bucket(struct strbuf *names_out, size_t want)
{
    size_t n = 0;

    for (unsigned i = 100000; i < 1000000 && n < want; i++) {
        char fact[32];
        snprintf(fact, sizeof fact, "c:cus_%u", i);
        if (projection_bucket_of(str_c(fact)) == 5) {
            sb_addf(names_out, "%s\n", fact);
            n++;
        }
    }
    return n;
}

static enum err scan_bucket(struct str payload, struct projection_bucket **ret)
{
    struct strbuf value = {0};

    projection_wrap(keys, S("pg:b:5"), 77, payload, &value);
    enum err e = projection_bucket_scan(keys, 5, sb_str(&value), ret);
    memset(value.p, 'x', value.n); /* the bucket must not borrow */
    sb_free(&value);
    return e;
}

static void buckets(void **state)
{
    struct strbuf list = {0}, payload = {0}, value = {0};
    struct projection_bucket *bucket = NULL;
    struct str rest, fact, facts[50];
    size_t n = 0;
    (void)state;

    assert_int_equal(facts_of_bucket(&list, 50), 50);
    rest = sb_str(&list);
    while (rest.n && str_next(&rest, '\n', &fact) && n < 50) {
        facts[n] = fact;
        sb_addf(&payload, "%zu %.*s\n", 1000 + n, STR(fact));
        n++;
    }
    assert_int_equal(scan_bucket(sb_str(&payload), &bucket), ERR_OK);
    assert_int_equal(projection_bucket_epoch(bucket), 77);
    for (size_t i = 0; i < n; i++)
        assert_int_equal(projection_bucket_find(bucket, facts[i]), 1000 + i);
    assert_int_equal(projection_bucket_find(bucket, S("c:cus_0")), 0);
    assert_int_equal(projection_bucket_find(bucket, S("")), 0);
    assert_int_equal(projection_bucket_find(bucket, S("z")), 0);
    assert_int_equal(projection_bucket_find(bucket, str_sub(facts[3], 0, facts[3].n - 1)), 0);
    projection_bucket_free(&bucket);
    assert_null(bucket);
    projection_bucket_free(&bucket);

    /* an empty one names nothing, and is one */
    assert_int_equal(scan_bucket(S(""), &bucket), ERR_OK);
    assert_int_equal(projection_bucket_find(bucket, facts[0]), 0);
    projection_bucket_free(&bucket);

    /* another bucket's list is not this one's, whoever wrote it */
    projection_wrap(keys, S("pg:b:5"), 77, sb_str(&payload), &value);
    assert_int_equal(projection_bucket_scan(keys, 6, sb_str(&value), &bucket), ERR_UNAVAILABLE);
    assert_int_equal(projection_bucket_scan(other_keys, 5, sb_str(&value), &bucket), ERR_UNAVAILABLE);
    assert_int_equal(projection_bucket_scan(keys, PROJECTION_BUCKETS, sb_str(&value), &bucket), ERR_UNAVAILABLE);
    projection_wrap(keys, S("pg:b:6"), 77, sb_str(&payload), &value);
    assert_int_equal(projection_bucket_scan(keys, 6, sb_str(&value), &bucket), ERR_UNAVAILABLE);

    struct strbuf b = {0};
    static const char *const forms[] = {"1 %.*s",  "1 %.*s\n\n", "0 %.*s\n", "01 %.*s\n", "-1 %.*s\n", "x %.*s\n", "1%.*s\n", "\n1 %.*s\n", "1 %.*s \n", "1  %.*s\n", "1 \n1 %.*s\n"};
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        char line[128];
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
        snprintf(line, sizeof line, forms[i], STR(facts[0]));
#pragma GCC diagnostic pop
        if (scan_bucket(str_c(line), &bucket) != ERR_UNAVAILABLE)
            fail_msg("%s", line);
    }
    sb_addf(&b, "1 %.*s\n1 %.*s\n", STR(facts[1]), STR(facts[0]));
    assert_int_equal(scan_bucket(sb_str(&b), &bucket), ERR_UNAVAILABLE); /* not sorted */
    sb_reset(&b);
    sb_addf(&b, "1 %.*s\n2 %.*s\n", STR(facts[0]), STR(facts[0]));
    assert_int_equal(scan_bucket(sb_str(&b), &bucket), ERR_UNAVAILABLE); /* twice */
    assert_null(bucket);
    sb_free(&b);
    sb_free(&list);
    sb_free(&payload);
    sb_free(&value);
}

static void closures(void **state)
{
    struct closure c = {0}, back = {0};
    struct node n = {.kind = NODE_MANIFEST, .digest = {DIGEST_SHA256, {1}}, .media_type = MEDIA_OCI_INDEX, .size = 5};
    struct strbuf payload = {0};
    int64_t built_at = 0;
    (void)state;

    closure_add(&c, &n);
    n = (struct node){.kind = NODE_BLOB, .digest = {DIGEST_SHA512, {2}}, .size = 6};
    closure_add(&c, &n);
    projection_closure_print(&c, 1700000000, &payload);
    assert_int_equal(projection_closure_scan(sb_str(&payload), &back, &built_at), ERR_OK);
    assert_int_equal(built_at, 1700000000);
    assert_int_equal(back.n, 2);
    assert_true(digest_eq(&back.nodes[1].digest, &n.digest));
    closure_free(&back);
    projection_closure_print(&c, -5, &payload);
    assert_int_equal(projection_closure_scan(sb_str(&payload), &back, &built_at), ERR_OK);
    assert_int_equal(built_at, 0);
    closure_free(&back);

    static const char *const bad[] = {"", "5", "5\n", "x\nb", "-5\n", "05\n", "18446744073709551615\n", "5\njunk\n"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(projection_closure_scan(str_c(bad[i]), &back, &built_at), ERR_UNAVAILABLE);
    struct strbuf b = {0};
    sb_addc(&b, "9223372036854775808\n");
    sb_addc(&b, strchr(payload.p, '\n') + 1);
    assert_int_equal(projection_closure_scan(sb_str(&b), &back, &built_at), ERR_UNAVAILABLE);
    sb_free(&b);
    closure_free(&c);
    sb_free(&payload);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names),    cmocka_unit_test(what_was_wrapped_unwraps), cmocka_unit_test(nothing_else_unwraps),
        cmocka_unit_test(the_root), cmocka_unit_test(buckets),                  cmocka_unit_test(closures),
    };
    return cmocka_run_group_tests(tests, open_keys, close_keys);
}
