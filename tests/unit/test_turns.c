/* Waiting in turns: order within a key, turns between keys, nobody forgotten, nobody called who left. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "turns.c"

static struct turns *ts;
static unsigned room[4], calls; /* of a key */

struct guest {
    struct turn turn; /* first */
    unsigned key, id;
    int served; /* its place among all, or -1 */
};
static int place;

static void on_turn(struct turn *t)
{
    struct guest *g = (struct guest *)(void *)t;
    calls++;
    if (room[g->key] > 0) {
        room[g->key]--;
        g->served = place++;
        t->was_first = false;
        return;
    }
    turns_wait(ts, g->key, t);
}

static void rounds(struct loop *l, int n)
{
    for (int i = 0; i < n && turns_waiting(ts) > 0; i++)
        loop_run_once(l);
}

static void in_turns(void **state)
{
    static struct guest a[500], b[2];
    (void)state;
    struct loop *l = loop_new();
    ts = turns_new(l, on_turn);
    for (unsigned i = 0; i < 500; i++) {
        a[i] = (struct guest){.key = 1, .id = i, .served = -1};
        turns_wait(ts, 1, &a[i].turn);
    }
    for (unsigned i = 0; i < 2; i++) {
        b[i] = (struct guest){.key = 2, .id = i, .served = -1};
        turns_wait(ts, 2, &b[i].turn);
    }
    calls = 0;
    rounds(l, 3); /* no room: one look a key and round, not one a guest */
    assert_true(calls <= 2 * 3);
    assert_int_equal(turns_waiting(ts), 502);
    room[1] = 5;
    room[2] = 2;
    turns_wake(ts);
    rounds(l, 1);
    assert_int_equal(turns_waiting(ts), 495);
    for (int i = 0; i < 5; i++)
        assert_true(a[i].served >= 0); /* in their order */
    assert_true(b[0].served <= 1 && b[1].served <= 3);
    turns_leave(ts, &a[5].turn);
    turns_leave(ts, &a[499].turn);
    turns_leave(ts, &a[499].turn); /* twice is nothing */
    room[1] = 1000;
    turns_wake(ts);
    rounds(l, 5);
    assert_int_equal(turns_waiting(ts), 0);
    assert_int_equal(a[5].served, -1);
    assert_int_equal(a[499].served, -1);
    for (int i = 6; i < 499; i++)
        assert_true(a[i].served > a[i - 1].served);
    turns_free(&ts);
    loop_free(l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(in_turns)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
