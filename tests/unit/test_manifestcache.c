/* The manifest cache: bounded, least recently used first, and nobody's bytes vanish under him. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "manifestcache.c"

static struct digest dg(unsigned n)
{
    struct digest d = {.alg = DIGEST_SHA256};
    memcpy(d.bytes, &n, sizeof n);
    return d;
}

static void put(struct manifestcache *mc, unsigned n, size_t size)
{
    static char bytes[5000];
    struct digest d = dg(n);
    struct blob_bytes *b = manifestcache_put(mc, &d, MEDIA_OCI_MANIFEST, (struct str){bytes, size});
    assert_non_null(b);
    blob_bytes_unref(&b);
    assert_null(b);
}

static bool has(struct manifestcache *mc, unsigned n)
{
    struct digest d = dg(n);
    return manifestcache_get(mc, &d) != NULL;
}

static void test_bound_and_order(void **state)
{
    struct manifestcache *mc = manifestcache_new(4 * (1000 + ENTRY_COST), 0);
    (void)state;
    for (unsigned i = 0; i < 4; i++)
        put(mc, i, 1000);
    assert_true(has(mc, 0)); /* used: 1 is the oldest from here */
    put(mc, 4, 1000);
    assert_false(has(mc, 1));
    assert_true(has(mc, 0) && has(mc, 2) && has(mc, 3) && has(mc, 4));
    assert_int_equal(manifestcache_count(mc), 4);
    put(mc, 5, 3000); /* costs more than three of them */
    assert_true(has(mc, 5));
    assert_true(manifestcache_bytes(mc) <= 4 * (1000 + ENTRY_COST));
    manifestcache_free(&mc);
    assert_null(mc);
}

static void test_larger_than_the_cache(void **state)
{
    struct manifestcache *mc = manifestcache_new(1000, 0);
    struct digest d = dg(1);
    (void)state;
    struct blob_bytes *b = manifestcache_put(mc, &d, MEDIA_OCI_INDEX, S("0123456789"));
    assert_int_equal(b->n, 10);
    blob_bytes_unref(&b);
    assert_true(has(mc, 1));
    static char big[2000];
    struct digest d2 = dg(2);
    b = manifestcache_put(mc, &d2, MEDIA_OCI_INDEX, (struct str){big, sizeof big});
    assert_non_null(b);
    assert_int_equal(b->n, sizeof big);
    assert_false(has(mc, 2));
    assert_true(has(mc, 1)); /* nothing was thrown out for it */
    blob_bytes_unref(&b);
    manifestcache_free(&mc);
}

static void test_references_outlive_the_cache(void **state)
{
    struct manifestcache *mc = manifestcache_new(3000, 0);
    struct digest d = dg(1);
    (void)state;
    struct blob_bytes *b = manifestcache_put(mc, &d, MEDIA_OCI_INDEX, S("abc"));
    for (unsigned i = 2; i < 100; i++)
        put(mc, i, 500);
    assert_false(has(mc, 1));
    assert_memory_equal(b->bytes, "abc", 4);
    manifestcache_free(&mc);
    assert_memory_equal(b->bytes, "abc", 4);
    blob_bytes_unref(&b);
}

static void test_workers_share(void **state)
{
    struct manifestcache *a = manifestcache_new(4000, 100000), *b = manifestcache_new(4000, 100000);
    (void)state;
    for (unsigned i = 0; i < 10; i++)
        put(a, i, 1000);
    for (unsigned i = 0; i < 10; i++)
        assert_true(has(b, i)); /* also what has left the cache of the worker that fetched it */
    assert_true(manifestcache_bytes(b) <= 4000);
    manifestcache_free(&a);
    assert_true(has(b, 3));
    manifestcache_free(&b);
    b = manifestcache_new(4000, 100000);
    assert_false(has(b, 3)); /* gone with its last user */
    manifestcache_free(&b);
}

static void test_many(void **state)
{
    struct manifestcache *mc = manifestcache_new(64u << 20, 0);
    (void)state;
    for (unsigned i = 0; i < 5000; i++)
        put(mc, i, i % 50);
    assert_int_equal(manifestcache_count(mc), 5000);
    for (unsigned i = 0; i < 5000; i++)
        assert_true(has(mc, i));
    put(mc, 17, 17);
    assert_int_equal(manifestcache_count(mc), 5000);
    manifestcache_free(&mc);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bound_and_order),
        cmocka_unit_test(test_larger_than_the_cache),
        cmocka_unit_test(test_references_outlive_the_cache),
        cmocka_unit_test(test_workers_share),
        cmocka_unit_test(test_many),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
