/* pullevent.c: what reaches the stream, what waits while Redis is away, what is dropped and counted. */
#include "pullevent.c"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

#include <cmocka.h>

#include "cpu_time.h"

#include "pullgate/jv.h"

#include "redis_server.h"

#define QUEUED_MAX 2000

static struct redis_server server;
static char keys_dir[] = "/tmp/pullgate-keys-XXXXXX";
static struct config cfg;
static struct proxy proxy;
static struct worker worker;

static void tick(void *ctx)
{
    (void)ctx;
}

static void run_for(uint64_t ms)
{
    uint64_t end = clock_mono_ms() + ms;
    struct timer *t = timer_new(worker.loop, tick, NULL);
    while (clock_mono_ms() < end) {
        timer_set(t, 2);
        loop_run_once(worker.loop);
    }
    timer_free(&t);
}

static void wait_empty(uint64_t ms)
{
    uint64_t end = clock_mono_ms() + ms;
    while (pullevents_queued(worker.events) && clock_mono_ms() < end)
        run_for(5);
    assert_int_equal(pullevents_queued(worker.events), 0);
}

static int begin(void **state)
{
    struct cache_sync *c;
    const struct cache_reply *r;
    (void)state;
    if (!server.pid)
        redis_start(&server);
    c = cache_sync_new(&cfg, 1000);
    assert_int_equal(cache_sync_command(c, (struct str[]){S("FLUSHALL")}, 1, &r, NULL), ERR_OK);
    cache_sync_free(&c);
    worker = (struct worker){.proxy = &proxy, .cfg = &cfg, .loop = loop_new()};
    assert_int_equal(cache_new(worker.loop, &cfg, &worker.cache, NULL), ERR_OK);
    worker.events = pullevents_new(&worker);
    return 0;
}

static int end(void **state)
{
    (void)state;
    pullevents_free(&worker.events);
    cache_free(&worker.cache);
    loop_free(worker.loop);
    return 0;
}

/* Every line of the stream, MACs checked. */
static struct jv *stream(void)
{
    struct cache_sync *c = cache_sync_new(&cfg, 1000);
    const struct cache_reply *r;
    struct jv *all = jv_array();

    assert_int_equal(cache_sync_command(c, (struct str[]){S("XRANGE"), S(PROJECTION_EVENTS), S("-"), S("+")}, 4, &r, NULL), ERR_OK);
    for (size_t i = 0; i < r->n; i++) {
        const struct cache_reply *fields = &r->items[i].items[1];
        uint8_t mac[SEAL_MAC_LEN], right[SEAL_MAC_LEN];
        struct str rest, line;
        assert_int_equal(fields->n, 4);
        assert_true(str_eq(fields->items[0].str, S("b")) && str_eq(fields->items[2].str, S("m")));
        assert_true(hex_decode(fields->items[3].str, mac, sizeof mac));
        keyring_hmac(proxy.keys, KEYRING_MAC, fields->items[1].str, right);
        assert_memory_equal(mac, right, sizeof mac);
        rest = fields->items[1].str;
        assert_int_equal(rest.p[rest.n - 1], '\n');
        rest.n--;
        while (str_next(&rest, '\n', &line)) {
            struct jv *v;
            struct error error = {0};
            if (jv_parse(line, &JV_LIMITS_API, &v, &error))
                fail_msg("%s: %.*s", error.text, STR(line));
            jv_push(all, v);
        }
    }
    cache_sync_free(&c);
    return all;
}

static void add(unsigned i, struct str agent)
{
    char id[32];
    snprintf(id, sizeof id, "req%u", i);
    pullevent_add(worker.events, &(struct pull_event){.id = id,
                                                      .t_ms = 1700000000000 + i,
                                                      .vendor_id = S("ven_1"),
                                                      .customer_id = S("cus_1"),
                                                      .credential_id = S("crd_1"),
                                                      .license_id = S("lic_1"),
                                                      .application_id = S("app_1"),
                                                      .repository = S("shop/api"),
                                                      .reference = S("1.2.0"),
                                                      .tag = S("1.2.0"),
                                                      .digest = S("sha256:00"),
                                                      .allow = i % 2 == 0,
                                                      .reason = "granted",
                                                      .client = S("10.1.2.3"),
                                                      .agent = agent,
                                                      .method = "GET",
                                                      .bytes = i});
}

static void test_delivered(void **state)
{
    static const char hostile[] = "a\"}\n{\"e\":\"pull\\\x01\xff\xc3\x28 \xf0\x9f\x98\x80 <script>";
    struct digest d = {.alg = DIGEST_SHA256};
    char long_agent[5000];
    struct jv *all, *v;
    (void)state;
    memset(long_agent, '"', sizeof long_agent);
    add(0, S("containerd/1.6.20"));
    add(1, (struct str){hostile, sizeof hostile - 1});
    add(2, (struct str){long_agent, sizeof long_agent});
    add(3, (struct str){NULL, 0});
    pullevent_tag(worker.events, S("rep_1"), S("1.2.0"), &d, MEDIA_OCI_INDEX, 517);
    for (int i = 0; i < 100; i++) {
        pullevent_used(worker.events, S("crd_1"), S("10.1.2.3"));
        pullevent_used(worker.events, S("crd_2"), S("10.1.2.3"));
    }
    assert_int_equal(pullevents_queued(worker.events), 7);
    wait_empty(3000);
    all = stream();
    assert_int_equal(jv_len(all), 7);
    v = jv_at(all, 0);
    assert_string_equal(jv_get_c(v, "e", ""), "pull");
    assert_string_equal(jv_get_c(v, "id", ""), "req0");
    assert_string_equal(jv_get_c(v, "decision", ""), "allow");
    assert_string_equal(jv_get_c(v, "repository", ""), "shop/api");
    assert_string_equal(jv_get_c(v, "proxy", ""), "host:1");
    assert_int_equal(jv_get_int(v, "t", 0), 1700000000000);
    assert_string_equal(jv_get_c(jv_at(all, 1), "decision", ""), "deny");
    assert_string_equal(jv_get_c(jv_at(all, 2), "id", ""), "req2");
    v = jv_at(all, 4);
    assert_string_equal(jv_get_c(v, "e", ""), "tag");
    assert_string_equal(jv_get_c(v, "media_type", ""), "application/vnd.oci.image.index.v1+json");
    assert_int_equal(jv_get_int(v, "size", 0), 517);
    assert_string_equal(jv_get_c(jv_at(all, 5), "credential_id", ""), "crd_1");
    assert_string_equal(jv_get_c(jv_at(all, 6), "e", ""), "used");
    jv_free(all);
    assert_int_equal(pullevents_lost(worker.events), 0);
}

static void test_many_in_order(void **state)
{
    struct jv *all;
    (void)state;
    run_for(50);
    for (unsigned i = 0; i < 1900; i++)
        add(i, S("x"));
    wait_empty(5000);
    all = stream();
    assert_int_equal(jv_len(all), 1900);
    for (unsigned i = 0; i < 1900; i++)
        assert_int_equal(jv_get_int(jv_at(all, i), "bytes", -1), i);
    jv_free(all);
}

/* Redis away: bounded, the oldest go, the rest is delivered when it is back. */
static void test_redis_away(void **state)
{
    struct jv *all;
    uint64_t lost;
    (void)state;
    run_for(50);
    redis_stop(&server);
    run_for(50);
    for (unsigned i = 0; i < 5000; i++) {
        add(i, S("x"));
        if (i % 500 == 0)
            run_for(30);
    }
    run_for(300);
    lost = pullevents_lost(worker.events);
    assert_in_range(lost, 3000 - 200, 3000 + 200); /* in whole batches */
    assert_int_equal(pullevents_queued(worker.events) + lost, 5000);
    assert_true(pullevents_queued(worker.events) <= QUEUED_MAX + 200);
    redis_start(&server);
    wait_empty(5000);
    all = stream();
    assert_int_equal(jv_len(all), 5000 - lost);
    assert_int_equal(jv_get_int(jv_at(all, jv_len(all) - 1), "bytes", -1), 4999);
    jv_free(all);
}

static void on_done(void *ctx)
{
    ++*(int *)ctx;
}

static void test_flush(void **state)
{
    int done = 0;
    uint64_t t0;
    struct jv *all;
    (void)state;
    pullevents_flush(worker.events, 1000, on_done, &done); /* nothing to send */
    assert_int_equal(done, 0);
    run_for(20);
    assert_int_equal(done, 1);
    add(1, S("x"));
    pullevents_flush(worker.events, 1000, on_done, &done);
    t0 = clock_mono_ms();
    while (done < 2 && clock_mono_ms() - t0 < 2000)
        run_for(1);
    assert_int_equal(done, 2);
    all = stream();
    assert_int_equal(jv_len(all), 1);
    jv_free(all);
    redis_stop(&server); /* nobody takes it: the deadline ends it */
    add(2, S("x"));
    pullevents_flush(worker.events, 300, on_done, &done);
    t0 = clock_mono_ms();
    while (done < 3 && clock_mono_ms() - t0 < 2000)
        run_for(1);
    assert_int_equal(done, 3);
    assert_in_range(clock_mono_ms() - t0, 280, 500);
    run_for(300);
    assert_int_equal(done, 3);
    redis_start(&server);
}

static void test_cost(void **state)
{
    enum { ROUNDS = 100000 };
    double t0 = cpu_time_ns();
    (void)state;
    worker.events->max_lines = 2 * ROUNDS;
    for (unsigned i = 0; i < ROUNDS; i++)
        add(i, S("containerd/1.6.20"));
    print_message("pullevent_add, batches and MACs included: %.0f ns\n", (cpu_time_ns() - t0) / ROUNDS);
    wait_empty(20000);
}

static int setup(void **state)
{
    (void)state;
    signal(SIGPIPE, SIG_IGN);
    log_set_level(LOG_LEVEL_ERROR);
    if (!mkdtemp(keys_dir) || keyring_open(keys_dir, true, &proxy.keys, NULL))
        return 1;
    snprintf(proxy.instance, sizeof proxy.instance, "host:1");
    redis_start(&server);
    cfg.redis.url = server.url;
    cfg.limits.redis_deadline_ms = 500;
    cfg.limits.events_queued = QUEUED_MAX;
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    keyring_free(proxy.keys);
    redis_end(&server);
    directory_remove(keys_dir);
    return 0;
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, begin, end)
    const struct CMUnitTest tests[] = {T(test_delivered), T(test_many_in_order), T(test_redis_away), T(test_flush), T(test_cost)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
