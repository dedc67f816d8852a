/* The admin's side of the projection, for tests of the proxy's: writes facts, buckets and the root as docs/REDIS.md says. */
#ifndef TESTS_FAKE_ADMIN_H
#define TESTS_FAKE_ADMIN_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "pullgate/cache.h"
#include "pullgate/clock.h"
#include "pullgate/mem.h"
#include "pullgate/projection.h"

#define ADMIN_FACTS 64

struct fake_admin {
    struct keyring *keys;
    struct cache_sync *redis;
    uint64_t epoch;
    uint64_t buckets[PROJECTION_BUCKETS];
    int64_t time_shift_ms;
    struct admin_fact {
        char name[128];
        char *payload;
        uint64_t epoch;
    } facts[ADMIN_FACTS];
    size_t n;
};

static inline void admin_do(struct fake_admin *a, const struct str *argv, size_t argc)
{
    const struct cache_reply *r;
    struct error error = {0};
    if (cache_sync_command(a->redis, argv, argc, &r, &error))
        fail_msg("redis: %s", error.text);
}
#define ADMIN_DO(a, ...) admin_do(a, (const struct str[]){__VA_ARGS__}, sizeof((const struct str[]){__VA_ARGS__}) / sizeof(struct str))

static inline char *admin_get(struct fake_admin *a, struct str key)
{
    const struct cache_reply *r;
    assert_int_equal(cache_sync_command(a->redis, (struct str[]){S("GET"), key}, 2, &r, NULL), ERR_OK);
    return str_dup(r->str);
}

static inline void admin_write_root(struct fake_admin *a)
{
    struct projection_root root = {.epoch = a->epoch, .time_ms = clock_now_ms() + a->time_shift_ms};
    struct strbuf payload = {0}, value = {0};
    memcpy(root.buckets, a->buckets, sizeof root.buckets);
    projection_root_print(&root, &payload);
    projection_wrap(a->keys, S(PROJECTION_ROOT_KEY), root.epoch, sb_str(&payload), &value);
    ADMIN_DO(a, S("SET"), S(PROJECTION_ROOT_KEY), sb_str(&value));
    sb_free(&payload);
    sb_free(&value);
}

static inline int admin_fact_cmp(const void *x, const void *y)
{
    const struct admin_fact *a = x, *b = y;
    return strcmp(a->name, b->name);
}

static inline void admin_write_bucket(struct fake_admin *a, unsigned bucket)
{
    struct strbuf payload = {0}, key = {0}, value = {0};
    qsort(a->facts, a->n, sizeof *a->facts, admin_fact_cmp);
    for (size_t i = 0; i < a->n; i++)
        if (projection_bucket_of(str_c(a->facts[i].name)) == bucket)
            sb_addf(&payload, "%llu %s\n", (unsigned long long)a->facts[i].epoch, a->facts[i].name);
    projection_bucket_key(bucket, &key);
    projection_wrap(a->keys, sb_str(&key), a->buckets[bucket], payload.p ? sb_str(&payload) : S(""), &value);
    ADMIN_DO(a, S("SET"), sb_str(&key), sb_str(&value));
    sb_free(&payload);
    sb_free(&key);
    sb_free(&value);
}

static inline void admin_write_fact(struct fake_admin *a, const struct admin_fact *f)
{
    struct strbuf key = {0}, value = {0};
    projection_fact_key(str_c(f->name), &key);
    projection_wrap(a->keys, sb_str(&key), f->epoch, str_c(f->payload), &value);
    ADMIN_DO(a, S("SET"), sb_str(&key), sb_str(&value));
    sb_free(&key);
    sb_free(&value);
}

/* payload NULL: the fact goes. */
static inline void admin_put(struct fake_admin *a, const char *name, const char *payload, bool announce)
{
    unsigned bucket = projection_bucket_of(str_c(name));
    struct admin_fact *f = NULL;
    for (size_t i = 0; i < a->n; i++)
        if (strcmp(a->facts[i].name, name) == 0)
            f = &a->facts[i];
    a->epoch++;
    a->buckets[bucket] = a->epoch;
    ADMIN_DO(a, S("MULTI"));
    if (payload) {
        if (!f) {
            assert_true(a->n < ADMIN_FACTS);
            f = &a->facts[a->n++];
            memset(f, 0, sizeof *f);
            snprintf(f->name, sizeof f->name, "%s", name);
        }
        mem_free(f->payload);
        f->payload = mem_strdup(payload);
        f->epoch = a->epoch;
        admin_write_fact(a, f);
    } else if (f) {
        struct strbuf key = {0};
        projection_fact_key(str_c(name), &key);
        ADMIN_DO(a, S("DEL"), sb_str(&key));
        sb_free(&key);
        mem_free(f->payload);
        *f = a->facts[--a->n];
    }
    admin_write_bucket(a, bucket);
    admin_write_root(a);
    ADMIN_DO(a, S("EXEC"));
    if (announce)
        ADMIN_DO(a, S("PUBLISH"), S(PROJECTION_CHANNEL), S("x"));
}

/* As after a FLUSHALL: everything that is known, written again under the epochs it had. */
static inline void admin_rebuild(struct fake_admin *a)
{
    ADMIN_DO(a, S("MULTI"));
    for (size_t i = 0; i < a->n; i++)
        admin_write_fact(a, &a->facts[i]);
    for (unsigned b = 0; b < PROJECTION_BUCKETS; b++)
        if (a->buckets[b])
            admin_write_bucket(a, b);
    admin_write_root(a);
    ADMIN_DO(a, S("EXEC"));
    ADMIN_DO(a, S("PUBLISH"), S(PROJECTION_CHANNEL), S("x"));
}

static inline void admin_close(struct fake_admin *a)
{
    for (size_t i = 0; i < a->n; i++)
        mem_free(a->facts[i].payload);
    cache_sync_free(&a->redis);
}

#endif
