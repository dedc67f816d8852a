/* Shared tokens: who gets which, what a refusal does to the others, bounds, wiped memory, and many threads at once. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "pullgate/mem.h"

static size_t wiped;

static void free_secret_seen(void *p, size_t n)
{
    __atomic_add_fetch(&wiped, n, __ATOMIC_RELAXED);
    mem_free_secret(p, n);
}
#define mem_free_secret free_secret_seen
#include "tokenshare.c"
#undef mem_free_secret

static const uint8_t *key(unsigned n)
{
    static _Thread_local uint8_t k[TOKENSHARE_KEY];
    memset(k, 0, sizeof k);
    memcpy(k + 8, &n, sizeof n); /* all of them in one chain */
    return k;
}

static uint64_t put(struct tokenshare *s, unsigned k, const char *value)
{
    return tokenshare_put(s, key(k), value, 1000, 0);
}

/* The value that a holder of `serial` is given, or "" and whether his own was refused. */
static const char *look(struct tokenshare *s, unsigned k, uint64_t serial, uint64_t now_ms, bool *ret_refused)
{
    static char text[64];
    struct tokenshare_token t = {0};
    enum tokenshare_has has = tokenshare_look(s, key(k), serial, now_ms, &t);
    text[0] = '\0';
    *ret_refused = has == TOKENSHARE_REFUSED;
    assert_int_equal(has == TOKENSHARE_NEWER, t.value != NULL);
    if (t.value) {
        assert_true(t.serial > serial && t.use_until_ms > now_ms);
        snprintf(text, sizeof text, "%s", t.value);
        mem_free_secret(t.value, strlen(t.value));
    }
    return text;
}

static void who_gets_which(void **state)
{
    struct tokenshare *s = tokenshare_new();
    bool refused;
    (void)state;
    assert_string_equal(look(s, 1, 0, 0, &refused), "");
    uint64_t a = put(s, 1, "first");
    assert_string_equal(look(s, 1, 0, 0, &refused), "first");
    assert_string_equal(look(s, 2, 0, 0, &refused), ""); /* another key: nothing of it */
    assert_string_equal(look(s, 1, a, 0, &refused), ""); /* who put it holds it */
    assert_false(refused);
    uint64_t b = put(s, 1, "second");
    assert_true(b > a);
    assert_string_equal(look(s, 1, a, 0, &refused), "second");
    assert_string_equal(look(s, 1, 0, 999, &refused), "second");
    assert_string_equal(look(s, 1, 0, 1000, &refused), ""); /* its time is over */
    assert_int_equal(tokenshare_count(s), 1);
    tokenshare_free(&s);
    assert_null(s);
}

static void a_refused_one_is_nobodys(void **state)
{
    struct tokenshare *s = tokenshare_new();
    bool refused;
    (void)state;
    uint64_t a = put(s, 1, "a");
    put(s, 2, "other");
    tokenshare_refuse(s, key(1), a);
    assert_string_equal(look(s, 1, a, 0, &refused), "");
    assert_true(refused); /* a sibling that holds it */
    assert_string_equal(look(s, 1, 0, 0, &refused), "");
    assert_false(refused); /* one that holds none asks */
    assert_string_equal(look(s, 2, 0, 0, &refused), "other");
    uint64_t b = put(s, 1, "b");
    tokenshare_refuse(s, key(1), a); /* late: b was got since */
    assert_string_equal(look(s, 1, a, 0, &refused), "b");
    tokenshare_refuse(s, key(1), b);
    assert_string_equal(look(s, 1, a, 0, &refused), "");
    assert_true(refused); /* and the older one with it */
    tokenshare_free(&s);
}

static void bounded(void **state)
{
    struct tokenshare *s = tokenshare_new();
    bool refused;
    char *big = mem_alloc(16 * 1024 + 1);
    (void)state;
    for (unsigned i = 0; i < TOKENS_MAX + 100; i++)
        put(s, i, "t");
    assert_int_equal(tokenshare_count(s), TOKENS_MAX);
    assert_string_equal(look(s, 99, 0, 0, &refused), ""); /* the oldest went */
    assert_string_equal(look(s, 100, 0, 0, &refused), "t");
    memset(big, 'x', 16 * 1024);
    big[16 * 1024] = '\0';
    for (unsigned i = 0; i < 2000; i++)
        put(s, i, big);
    assert_true(s->bytes <= BYTES_MAX && s->bytes > BYTES_MAX / 2);
    mem_free(big);
    tokenshare_put(s, key(7), "late", 3000, 2000); /* nothing of it all is good any more */
    assert_int_equal(tokenshare_count(s), 1);
    assert_int_equal(s->bytes, 4);
    tokenshare_free(&s);
}

static void wiped_whoever_frees_it(void **state)
{
    struct tokenshare *s = tokenshare_new();
    (void)state;
    wiped = 0;
    uint64_t a = put(s, 1, "12345");
    tokenshare_refuse(s, key(1), a);
    assert_int_equal(wiped, 5);
    put(s, 1, "123");
    put(s, 1, "1234567"); /* in the place of the one before */
    assert_int_equal(wiped, 8);
    tokenshare_free(&s);
    assert_int_equal(wiped, 15);
}

/* Each thread is a worker: it looks, asks where there is nothing, has some refused. A value says which key it is for. */
struct worker {
    struct tokenshare *s;
    unsigned seed;
    unsigned wrong, asked, used;
};

static void *work(void *arg)
{
    struct worker *w = arg;
    uint64_t held[64] = {0};
    for (int i = 0; i < 20000; i++) {
        unsigned k = (unsigned)rand_r(&w->seed) % 64;
        struct tokenshare_token t = {0};
        char text[16], *end;
        switch (tokenshare_look(w->s, key(k), held[k], 0, &t)) {
        case TOKENSHARE_NEWER:
            w->wrong += strtoul(t.value, &end, 10) != k || *end || t.serial <= held[k];
            held[k] = t.serial;
            mem_free_secret(t.value, strlen(t.value));
            break;
        case TOKENSHARE_REFUSED:
            held[k] = 0;
            break;
        default:
            break;
        }
        if (!held[k]) {
            snprintf(text, sizeof text, "%u", k);
            held[k] = tokenshare_put(w->s, key(k), text, 1000, 0);
            w->asked++;
        }
        w->used++;
        if (rand_r(&w->seed) % 50 == 0)
            tokenshare_refuse(w->s, key(k), held[k]);
    }
    return NULL;
}

static void many_threads(void **state)
{
    struct tokenshare *s = tokenshare_new();
    struct worker w[4];
    pthread_t t[4];
    unsigned asked = 0, used = 0;
    (void)state;
    for (unsigned i = 0; i < 4; i++) {
        w[i] = (struct worker){.s = s, .seed = i + 1};
        assert_int_equal(pthread_create(&t[i], NULL, work, &w[i]), 0);
    }
    for (unsigned i = 0; i < 4; i++) {
        pthread_join(t[i], NULL);
        assert_int_equal(w[i].wrong, 0);
        asked += w[i].asked;
        used += w[i].used;
    }
    assert_true(asked < used / 5); /* one's answer served the others too */
    assert_true(tokenshare_count(s) <= 64);
    tokenshare_free(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(who_gets_which), cmocka_unit_test(a_refused_one_is_nobodys), cmocka_unit_test(bounded),
                                       cmocka_unit_test(wiped_whoever_frees_it), cmocka_unit_test(many_threads)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
