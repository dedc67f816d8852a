/* The closure index: who reaches what, in whatever order documents, tags and attachments come in. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "closureindex.c"

static struct digest dg(unsigned n)
{
    struct digest d = {.alg = DIGEST_SHA256};
    memcpy(d.bytes, &n, sizeof n);
    d.bytes[31] = 0xaa;
    return d;
}

static struct node blob(unsigned n)
{
    return (struct node){.kind = NODE_BLOB, .digest = dg(n), .size = n};
}

static struct node man(unsigned n)
{
    return (struct node){.kind = NODE_MANIFEST, .digest = dg(n), .media_type = MEDIA_OCI_MANIFEST, .size = n};
}

static void load(struct closureindex *ci, unsigned of, struct node *children, size_t n)
{
    struct manifest m = {.media_type = MEDIA_OCI_MANIFEST, .children = children, .n_children = n};
    struct digest d = dg(of);
    closureindex_load(ci, closureindex_find(ci, NODE_MANIFEST, &d), &m, 100);
}

static uint32_t root(struct closureindex *ci, unsigned n)
{
    struct digest d = dg(n);
    return closureindex_add_root(ci, &d, MEDIA_UNKNOWN, 0);
}

static bool reaches(const struct closureindex *ci, uint32_t r, enum node_kind kind, unsigned n)
{
    struct digest d = dg(n);
    uint32_t node = closureindex_find(ci, kind, &d);
    return node != CI_NONE && closureindex_first(ci, node, r, NULL, 0, true) == r;
}

static void test_shared_layer(void **state)
{
    struct closureindex *ci = closureindex_new(1000, 4);
    uint32_t a = root(ci, 1), b = root(ci, 2);
    (void)state;
    load(ci, 1, (struct node[]){blob(10), blob(11)}, 2);
    load(ci, 2, (struct node[]){blob(20), blob(11)}, 2);
    assert_true(reaches(ci, a, NODE_BLOB, 11));
    assert_true(reaches(ci, b, NODE_BLOB, 11));
    assert_true(reaches(ci, a, NODE_BLOB, 10));
    assert_false(reaches(ci, b, NODE_BLOB, 10));
    assert_true(reaches(ci, b, NODE_BLOB, 20));
    assert_false(reaches(ci, a, NODE_BLOB, 20));
    assert_int_equal(root(ci, 1), a);
    closureindex_free(&ci);
    assert_null(ci);
}

static void test_kind_is_part_of_the_key(void **state)
{
    struct closureindex *ci = closureindex_new(1000, 4);
    uint32_t a = root(ci, 1);
    (void)state;
    load(ci, 1, (struct node[]){blob(10)}, 1);
    assert_false(reaches(ci, a, NODE_MANIFEST, 10));
    assert_false(reaches(ci, a, NODE_BLOB, 1));
    closureindex_free(&ci);
}

static void test_sha512_differs_in_its_tail(void **state)
{
    struct closureindex *ci = closureindex_new(1000, 4);
    struct digest x = {.alg = DIGEST_SHA512}, y = x, z = x;
    (void)state;
    y.bytes[63] = 1;
    z.alg = DIGEST_SHA256;
    uint32_t rx = closureindex_add_root(ci, &x, MEDIA_UNKNOWN, 0), ry = closureindex_add_root(ci, &y, MEDIA_UNKNOWN, 0);
    uint32_t rz = closureindex_add_root(ci, &z, MEDIA_UNKNOWN, 0);
    assert_int_not_equal(rx, ry);
    assert_int_not_equal(rx, rz);
    struct node n;
    closureindex_node(ci, closureindex_root(ci, ry)->node, &n);
    assert_true(digest_eq(&n.digest, &y));
    closureindex_free(&ci);
}

/* A child known from one index before its document came, and then named by another index. */
static void test_children_follow_in_any_order(void **state)
{
    (void)state;
    for (int order = 0; order < 6; order++) {
        struct closureindex *ci = closureindex_new(1000, 4);
        uint32_t a = root(ci, 1), b = CI_NONE;
        if (order & 1) { /* a's document first, then the child, then b */
            load(ci, 1, (struct node[]){man(3)}, 1);
            load(ci, 3, (struct node[]){blob(30)}, 1);
            b = root(ci, 2);
            load(ci, 2, (struct node[]){man(3), man(4)}, 2);
        } else if (order & 2) { /* both indexes, then the child */
            b = root(ci, 2);
            load(ci, 1, (struct node[]){man(3)}, 1);
            load(ci, 2, (struct node[]){man(3), man(4)}, 2);
            load(ci, 3, (struct node[]){blob(30)}, 1);
        } else { /* the child is a root of its own first */
            uint32_t c = root(ci, 3);
            load(ci, 3, (struct node[]){blob(30)}, 1);
            load(ci, 1, (struct node[]){man(3)}, 1);
            b = root(ci, 2);
            load(ci, 2, (struct node[]){man(3), man(4)}, 2);
            assert_true(reaches(ci, c, NODE_BLOB, 30));
            assert_false(reaches(ci, c, NODE_MANIFEST, 4));
        }
        assert_true(reaches(ci, a, NODE_BLOB, 30));
        assert_true(reaches(ci, b, NODE_BLOB, 30));
        assert_true(reaches(ci, b, NODE_MANIFEST, 4));
        assert_false(reaches(ci, a, NODE_MANIFEST, 4));
        bool whole;
        uint32_t at = 0;
        assert_true(closureindex_settle(ci, a, &whole) && whole);
        assert_false(closureindex_settle(ci, b, &whole)); /* 4 is not loaded */
        assert_int_not_equal(closureindex_unloaded(ci, b, &at), CI_NONE);
        struct digest d4 = dg(4);
        closureindex_set_state(ci, closureindex_find(ci, NODE_MANIFEST, &d4), CI_GONE);
        assert_true(closureindex_settle(ci, b, &whole));
        assert_false(whole);
        closureindex_recheck(ci, b);
        assert_false(closureindex_settle(ci, b, &whole));
        closureindex_free(&ci);
    }
}

static void test_many_roots_share_a_layer(void **state)
{
    enum { N = 3000 };
    struct closureindex *ci = closureindex_new(1000, 4);
    uint64_t bits[N / 64 + 1];
    struct digest shared = dg(7);
    (void)state;
    for (unsigned i = 0; i < N; i++) { /* out of order, so that the sorted list has to move */
        unsigned k = 100000 + (i * 7919) % N;
        root(ci, k);
        load(ci, k, (struct node[]){blob(7), blob(k + N)}, 2);
        struct digest own = dg(k + N);
        uint32_t node = closureindex_find(ci, NODE_BLOB, &own);
        assert_int_equal(closureindex_first(ci, node, 0, NULL, 0, true), i);
        assert_int_equal(closureindex_first(ci, node, i + 1, NULL, 0, true), CI_NONE);
    }
    uint32_t node = closureindex_find(ci, NODE_BLOB, &shared), n = 0;
    for (uint32_t r = closureindex_first(ci, node, 0, NULL, 0, true); r != CI_NONE; r = closureindex_first(ci, node, r + 1, NULL, 0, true))
        assert_int_equal(r, n++);
    assert_int_equal(n, N);
    memset(bits, 0, sizeof bits);
    assert_int_equal(closureindex_first(ci, node, 0, bits, N / 64 + 1, true), CI_NONE);
    bits[2345 / 64] |= UINT64_C(1) << (2345 % 64);
    assert_int_equal(closureindex_first(ci, node, 0, bits, N / 64 + 1, true), 2345);
    assert_int_equal(closureindex_first(ci, node, 2346, bits, N / 64 + 1, true), CI_NONE);
    memset(bits, 0xff, sizeof bits);
    assert_int_equal(closureindex_first(ci, node, 0, bits, 2, false), 128); /* beyond the words: clear */
    closureindex_free(&ci);
}

static void test_random_against_a_plain_model(void **state)
{
    enum { ROOTS = 200, BLOBS = 40 };
    static bool model[ROOTS][BLOBS];
    struct closureindex *ci = closureindex_new(1000, 4);
    uint32_t ids[ROOTS];
    unsigned seed = 12345;
    (void)state;
    for (unsigned r = 0; r < ROOTS; r++) {
        struct node kids[BLOBS];
        size_t n = 0;
        for (unsigned b = 0; b < BLOBS; b++) {
            seed = seed * 1103515245u + 12345u;
            model[r][b] = (seed >> 16) % 100 < b * 100 / BLOBS + 1;
            if (model[r][b])
                kids[n++] = blob(b);
        }
        ids[r] = root(ci, 1000 + r);
        load(ci, 1000 + r, kids, n);
    }
    for (unsigned r = 0; r < ROOTS; r++)
        for (unsigned b = 0; b < BLOBS; b++)
            assert_int_equal(reaches(ci, ids[r], NODE_BLOB, b), model[r][b]);
    closureindex_free(&ci);
}

static void test_bounds(void **state)
{
    struct closureindex *ci = closureindex_new(5, 2);
    struct node kids[10];
    bool whole;
    (void)state;
    uint32_t a = root(ci, 1);
    for (unsigned i = 0; i < 10; i++)
        kids[i] = blob(100 + i);
    load(ci, 1, kids, 10);
    assert_true(closureindex_root(ci, a)->over);
    assert_int_equal(closureindex_root(ci, a)->n_nodes, 5);
    assert_false(closureindex_settle(ci, a, &whole));
    uint32_t b = root(ci, 2);
    load(ci, 2, (struct node[]){man(3)}, 1);
    load(ci, 3, (struct node[]){man(4)}, 1);
    assert_false(closureindex_root(ci, b)->over);
    load(ci, 4, (struct node[]){man(5)}, 1); /* depth 3 of 2 */
    assert_true(closureindex_root(ci, b)->over);
    assert_false(reaches(ci, b, NODE_MANIFEST, 5));
    closureindex_free(&ci);
}

static void test_attached_needs_proof(void **state)
{
    struct closureindex *ci = closureindex_new(1000, 4);
    struct digest d1 = dg(1), d2 = dg(2);
    (void)state;
    root(ci, 1);
    uint32_t subject = closureindex_find(ci, NODE_MANIFEST, &d1), other = closureindex_add_manifest(ci, &d2);
    uint32_t s = root(ci, 9);
    uint64_t gen = closureindex_generation(ci);
    assert_true(closureindex_attach(ci, subject, s, false));
    assert_false(closureindex_attach(ci, subject, s, false));
    assert_true(closureindex_attach(ci, other, s, false));
    assert_true(closureindex_generation(ci) > gen);
    struct manifest m = {.media_type = MEDIA_OCI_MANIFEST, .has_subject = true, .subject = d1};
    closureindex_load(ci, closureindex_root(ci, s)->node, &m, 10);
    assert_int_equal(closureindex_root(ci, s)->n_subjects, 1); /* it says itself that it does not hang on 2 */
    assert_int_equal(closureindex_root(ci, s)->subjects[0].node, subject);
    assert_true(closureindex_root(ci, s)->subjects[0].proven);
    closureindex_free(&ci);
}

static void test_flat_round_trip(void **state)
{
    struct closureindex *ci = closureindex_new(1000, 4), *to = closureindex_new(1000, 4);
    struct closure c = {0};
    (void)state;
    uint32_t a = root(ci, 1), b = root(to, 1), other = root(to, 2);
    load(ci, 1, (struct node[]){man(3), man(4)}, 2);
    load(ci, 3, (struct node[]){blob(30), blob(99)}, 2);
    load(ci, 4, (struct node[]){blob(40), blob(99)}, 2);
    closureindex_flat(ci, a, &c);
    assert_int_equal(c.n, 6);
    assert_false(closureindex_add_flat(to, other, &c)); /* of another root */
    assert_true(closureindex_add_flat(to, b, &c));
    for (unsigned n = 0; n < 3; n++)
        assert_true(reaches(to, b, NODE_BLOB, (unsigned[]){30, 40, 99}[n]));
    assert_true(reaches(to, b, NODE_MANIFEST, 4));
    assert_false(reaches(to, other, NODE_BLOB, 30));
    uint32_t at = 0;
    assert_int_equal(closureindex_unloaded(to, b, &at), CI_NONE);
    closure_free(&c);
    closureindex_free(&ci);
    closureindex_free(&to);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shared_layer),
        cmocka_unit_test(test_kind_is_part_of_the_key),
        cmocka_unit_test(test_sha512_differs_in_its_tail),
        cmocka_unit_test(test_children_follow_in_any_order),
        cmocka_unit_test(test_many_roots_share_a_layer),
        cmocka_unit_test(test_random_against_a_plain_model),
        cmocka_unit_test(test_bounds),
        cmocka_unit_test(test_attached_needs_proof),
        cmocka_unit_test(test_flat_round_trip),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
