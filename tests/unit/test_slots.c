/* Fair slots: nobody is starved, nobody takes everything, the queue is bounded, and every place comes back. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "pullgate/slots.h"

struct user {
    struct slot slot;
    unsigned granted;
    unsigned *order, *at;
    unsigned id;
};

static void on_turn(void *ctx)
{
    struct user *u = ctx;
    u->granted++;
    if (u->order)
        u->order[(*u->at)++] = u->id;
}

static int take(struct slots *s, struct user *u, uint64_t owner)
{
    return slot_take(s, &u->slot, owner, on_turn, u);
}

static void one_owner_leaves_some(void **state)
{
    static struct user u[96], other;
    unsigned n = 0;
    (void)state;
    struct slots *s = slots_new(96, 0);
    while (n < 96 && take(s, &u[n], 7) == SLOT_HELD)
        n++;
    assert_int_equal(n, 90);
    assert_int_equal(u[n].slot.state, SLOT_WAITING);
    assert_int_equal(take(s, &other, 8), SLOT_HELD); /* who comes later finds a place at once */
    slot_leave(&other.slot);
    for (unsigned i = 0; i <= n; i++)
        slot_leave(&u[i].slot);
    assert_int_equal(slots_held(s), 0);
    assert_int_equal(slots_waiting(s), 0);
    slots_free(&s);
}

static void nobody_in_particular_takes_all(void **state)
{
    static struct user u[5];
    (void)state;
    struct slots *s = slots_new(4, 1);
    for (int i = 0; i < 4; i++)
        assert_int_equal(take(s, &u[i], 0), SLOT_HELD);
    assert_int_equal(take(s, &u[4], 0), SLOT_WAITING);
    for (int i = 0; i < 5; i++)
        slot_leave(&u[i].slot);
    slots_free(&s);
}

/* Ten of one owner wait before the first of another comes: it is served second, not eleventh. */
static void round_robin(void **state)
{
    static struct user held, a[10], b[2];
    unsigned order[12], at = 0;
    (void)state;
    struct slots *s = slots_new(1, 0);
    assert_int_equal(take(s, &held, 1), SLOT_HELD);
    for (unsigned i = 0; i < 10; i++) {
        a[i] = (struct user){.order = order, .at = &at, .id = i};
        assert_int_equal(take(s, &a[i], 1), SLOT_WAITING);
    }
    for (unsigned i = 0; i < 2; i++) {
        b[i] = (struct user){.order = order, .at = &at, .id = 100 + i};
        assert_int_equal(take(s, &b[i], 2), SLOT_WAITING);
    }
    slot_leave(&held.slot);
    while (at < 12) {
        unsigned last = order[at - 1];
        slot_leave(last < 100 ? &a[last].slot : &b[last - 100].slot);
    }
    unsigned b_at[2] = {0}, n = 0;
    for (unsigned i = 0; i < 12; i++)
        if (order[i] >= 100)
            b_at[n++] = i;
    assert_int_equal(n, 2);
    assert_true(b_at[0] <= 1 && b_at[1] <= 3);
    slot_leave(order[11] < 100 ? &a[order[11]].slot : &b[order[11] - 100].slot);
    slots_free(&s);
}

static void waiting_is_bounded(void **state)
{
    static struct user held, a[20], b[20];
    unsigned n_a = 0, n_b = 0;
    (void)state;
    struct slots *s = slots_new(1, 8);
    assert_int_equal(take(s, &held, 1), SLOT_HELD);
    while (n_a < 20 && take(s, &a[n_a], 1) == SLOT_WAITING)
        n_a++;
    assert_true(n_a >= 4 && n_a <= 5);
    while (n_b < 20 && take(s, &b[n_b], 2) == SLOT_WAITING)
        n_b++;
    assert_true(n_b >= 1 && n_a + n_b <= 8);
    for (unsigned i = 0; i < n_a; i++) /* who waits no longer is not served */
        slot_leave(&a[i].slot);
    slot_leave(&held.slot);
    assert_int_equal(a[0].granted, 0);
    assert_int_equal(b[0].granted, 1);
    for (unsigned i = 0; i < n_b; i++)
        slot_leave(&b[i].slot);
    slots_free(&s);
}

/* Anything in any order: never more than n are held, nobody is forgotten. */
static void at_random(void **state)
{
    static struct user u[200];
    (void)state;
    struct slots *s = slots_new(10, 100);
    srandom(1);
    for (int i = 0; i < 200000; i++) {
        struct user *x = &u[random() % 200];
        if (x->slot.state == SLOT_NONE)
            take(s, x, (uint64_t)random() % 7);
        else
            slot_leave(&x->slot);
        assert_true(slots_held(s) <= 10 && slots_waiting(s) <= 100);
        assert_true(slots_waiting(s) == 0 || slots_held(s) >= 7);
    }
    for (int i = 0; i < 200; i++)
        slot_leave(&u[i].slot);
    slots_free(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(one_owner_leaves_some), cmocka_unit_test(nobody_in_particular_takes_all),
                                       cmocka_unit_test(round_robin), cmocka_unit_test(waiting_is_bounded), cmocka_unit_test(at_random)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
