/* guard.c: what slows an abuser down, and that nobody else is slowed. The clock is the test's. */
#include <stdint.h>

#include "pullgate/clock.h"

static uint64_t test_now_ms = 1000000;
#define clock_mono_ms() test_now_ms
#include "guard.c"
#undef clock_mono_ms

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

#include <cmocka.h>

static struct config cfg;

static struct guard *make(uint64_t per_address, uint64_t per_user, uint64_t inflight, uint64_t per_second)
{
    cfg.limits.auth_failures_per_minute = per_address;
    cfg.limits.auth_failures_per_credential = per_user;
    cfg.limits.inflight_per_customer = inflight;
    cfg.limits.requests_per_customer = per_second;
    return guard_new(&cfg);
}

static void v4(uint8_t ret[16], unsigned host)
{
    memset(ret, 0, 16);
    ret[10] = ret[11] = 0xff;
    ret[12] = 10;
    ret[13] = (uint8_t)(host >> 16);
    ret[14] = (uint8_t)(host >> 8);
    ret[15] = (uint8_t)host;
}

/* A Basic value of user and a secret of its own number. */
static char *basic(const char *user, unsigned secret, char buf[256])
{
    struct strbuf plain = {0}, text = {0};
    sb_addf(&plain, "%s:pgc_wrong%u", user, secret);
    sb_addc(&text, "Basic ");
    base64_encode(sb_str(&plain), &text);
    snprintf(buf, 256, "%s", text.p);
    sb_free(&plain);
    sb_free(&text);
    return buf;
}

static bool failed(struct guard *g, unsigned host, const char *user, unsigned secret)
{
    uint8_t addr[16];
    char buf[256];
    unsigned wait = 0;
    bool many;
    v4(addr, host);
    many = guard_auth_failed(g, addr, str_c(basic(user, secret, buf)), &wait);
    if (many)
        assert_in_range(wait, 1, 60);
    return many;
}

static void test_address(void **state)
{
    struct guard *g = make(30, 0, 0, 0);
    (void)state;
    for (unsigned i = 0; i < 30; i++)
        assert_false(failed(g, 1, "acme", i));
    assert_true(failed(g, 1, "acme", 30));
    assert_true(failed(g, 1, "other", 31)); /* per address, whoever it claims to be */
    assert_false(failed(g, 2, "acme", 32)); /* another address */
    assert_false(failed(g, 1, "acme", 5));  /* one that was counted is not counted, nor refused, again */
    test_now_ms += 2001;                    /* 30 a minute: one each two seconds */
    assert_false(failed(g, 1, "acme", 40));
    assert_true(failed(g, 1, "acme", 41));
    test_now_ms += 600000;
    for (unsigned i = 0; i < 30; i++)
        assert_false(failed(g, 1, "acme", 100 + i));
    assert_true(failed(g, 1, "acme", 200));
    guard_free(&g);
    assert_null(g);
}

/* A cluster behind one address with one wrong key: counted once a minute, told 401 each time, until that is abuse by itself. */
static void test_same_secret_counts_once(void **state)
{
    struct guard *g = make(2, 0, 0, 0);
    struct guard_counters c;
    (void)state;
    for (unsigned i = 0; i < 2 * REPEATS_FACTOR; i++)
        assert_false(failed(g, 7, "acme", 1));
    assert_true(failed(g, 7, "acme", 1));
    assert_false(failed(g, 7, "acme", 2)); /* only one token was spent */
    assert_true(failed(g, 7, "acme", 3));
    guard_counters(g, &c);
    assert_int_equal(c.auth_failures, 2 * REPEATS_FACTOR + 3);
    assert_int_equal(c.auth_refused_address, 2);
    test_now_ms += WINDOW_MS;
    assert_false(failed(g, 7, "acme", 1));
    guard_free(&g);
}

static void test_user_name(void **state)
{
    struct guard *g = make(25, 5, 0, 0); /* what one address may, a name may */
    struct guard_counters c;
    (void)state;
    for (unsigned i = 0; i < 25; i++)
        assert_false(failed(g, i, "acme", i));
    assert_true(failed(g, 99, "acme", 99));    /* guessed from many addresses */
    assert_false(failed(g, 99, "globex", 99)); /* another user name */
    assert_false(failed(g, 40, "acme", 3));    /* a secret that was counted for this name, from another node */
    guard_counters(g, &c);
    assert_int_equal(c.auth_refused_user, 1);
    assert_int_equal(c.auth_refused_address, 0);
    /* no user name in it: only the address counts */
    uint8_t addr[16];
    unsigned wait;
    v4(addr, 30);
    for (unsigned i = 0; i < 20; i++) {
        char text[64];
        snprintf(text, sizeof text, i % 2 ? "Bearer x.y.%u" : "Basic %u!", i);
        assert_false(guard_auth_failed(g, addr, str_c(text), &wait));
    }
    assert_false(guard_auth_failed(g, addr, (struct str){NULL, 0}, &wait));
    guard_free(&g);
}

static void test_off(void **state)
{
    struct guard *g = make(0, 0, 0, 0);
    unsigned wait;
    (void)state;
    for (unsigned i = 0; i < 1000; i++) {
        assert_false(failed(g, 1, "acme", i));
        assert_true(guard_customer_begin(g, S("cus_1"), 0, &wait));
    }
    guard_free(&g);
}

static void test_ipv6_by_64(void **state)
{
    struct guard *g = make(1, 0, 0, 0);
    uint8_t a[16] = {0x20, 0x01, 0x0d, 0xb8, 0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1}, b[16], c[16];
    unsigned wait;
    (void)state;
    memcpy(b, a, 16);
    b[15] = 9;
    memcpy(c, a, 16);
    c[7] = 3;
    assert_false(guard_auth_failed(g, a, S("Basic eDp5"), &wait));
    assert_true(guard_auth_failed(g, b, S("Basic eDp6"), &wait));
    assert_false(guard_auth_failed(g, c, S("Basic eDp6"), &wait));
    guard_free(&g);
}

/* Many addresses never grow it, and never refuse an address that has not failed. */
static void test_bounded(void **state)
{
    struct guard *g = make(5, 0, 0, 0);
    (void)state;
    for (unsigned i = 0; i < 200000; i++)
        assert_false(failed(g, i, "x", i));
    guard_free(&g);
}

static void test_customer_inflight(void **state)
{
    struct guard *g = make(0, 0, 3, 0);
    unsigned wait = 0;
    (void)state;
    for (int i = 0; i < 3; i++)
        assert_true(guard_customer_begin(g, S("cus_1"), 0, &wait));
    assert_false(guard_customer_begin(g, S("cus_1"), 0, &wait));
    assert_int_equal(wait, 0);
    assert_true(guard_customer_begin(g, S("cus_2"), 0, &wait));
    guard_customer_done(g, S("cus_1"));
    assert_true(guard_customer_begin(g, S("cus_1"), 0, &wait));
    assert_false(guard_customer_begin(g, S("cus_1"), 0, &wait));
    guard_free(&g);
}

static void test_customer_rate(void **state)
{
    struct guard *g = make(0, 0, 0, 10);
    unsigned wait = 0;
    (void)state;
    test_now_ms += 5000;
    for (int i = 0; i < 10; i++) {
        assert_true(guard_customer_begin(g, S("cus_1"), 0, &wait));
        guard_customer_done(g, S("cus_1"));
    }
    assert_false(guard_customer_begin(g, S("cus_1"), 0, &wait));
    assert_int_equal(wait, 1);
    assert_true(guard_customer_begin(g, S("cus_2"), 0, &wait));
    test_now_ms += 101;
    assert_true(guard_customer_begin(g, S("cus_1"), 0, &wait));
    assert_false(guard_customer_begin(g, S("cus_1"), 0, &wait));
    guard_free(&g);
}

/* More customers than it holds: those under way stay counted. */
static void test_customers_bounded(void **state)
{
    struct guard *g = make(0, 0, 1, 0);
    unsigned wait;
    size_t held = 0;
    (void)state;
    assert_true(guard_customer_begin(g, S("cus_busy"), 0, &wait));
    for (unsigned i = 0; i < 3 * SHARDS * CUSTOMERS_MAX / 2; i++) {
        char id[32];
        snprintf(id, sizeof id, "cus_%u", i);
        assert_true(guard_customer_begin(g, str_c(id), 0, &wait));
        guard_customer_done(g, str_c(id));
    }
    for (unsigned i = 0; i < SHARDS; i++)
        held += g->shards[i].n_customers;
    assert_true(held <= SHARDS * CUSTOMERS_MAX);
    assert_false(guard_customer_begin(g, S("cus_busy"), 0, &wait));
    guard_customer_done(g, S("cus_busy"));
    assert_true(guard_customer_begin(g, S("cus_busy"), 0, &wait));
    guard_free(&g);
}

static void *hammer(void *arg)
{
    struct guard *g = arg;
    unsigned wait;
    for (unsigned i = 0; i < 50000; i++) {
        char id[16];
        snprintf(id, sizeof id, "cus_%u", i % 7);
        if (guard_customer_begin(g, str_c(id), 0, &wait))
            guard_customer_done(g, str_c(id));
        if (i % 50 == 0)
            (void)failed(g, i % 300, "acme", i);
    }
    return NULL;
}

static void test_threads(void **state)
{
    struct guard *g = make(10, 10, 2, 0);
    pthread_t th[4];
    unsigned wait;
    (void)state;
    for (size_t i = 0; i < 4; i++)
        pthread_create(&th[i], NULL, hammer, g);
    for (size_t i = 0; i < 4; i++)
        pthread_join(th[i], NULL);
    for (unsigned i = 0; i < 7; i++) { /* everything was given back */
        char id[16];
        snprintf(id, sizeof id, "cus_%u", i);
        assert_true(guard_customer_begin(g, str_c(id), 0, &wait));
        assert_true(guard_customer_begin(g, str_c(id), 0, &wait));
        assert_false(guard_customer_begin(g, str_c(id), 0, &wait));
    }
    guard_free(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_address),           cmocka_unit_test(test_same_secret_counts_once),
        cmocka_unit_test(test_user_name),         cmocka_unit_test(test_off),
        cmocka_unit_test(test_ipv6_by_64),        cmocka_unit_test(test_bounded),
        cmocka_unit_test(test_customer_inflight), cmocka_unit_test(test_customer_rate),
        cmocka_unit_test(test_customers_bounded), cmocka_unit_test(test_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
