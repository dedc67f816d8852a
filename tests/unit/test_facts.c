/* facts.c against a real Redis, with the admin's part played by the test. */
#include "facts.c"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "cpu_time.h"
#include "fake_admin.h"
#include "redis_server.h"

/* The upstream's own parser has its own test. */
enum err upstream_spec_parse(const struct jv *doc, const struct keyring *k, struct upstream_spec **ret, struct error *reterr)
{
    (void)k;
    if (jv_get_str(doc, "id").n == 0)
        return error_set(reterr, ERR_INVALID, "no id");
    *ret = NEW(struct upstream_spec);
    (*ret)->id = str_dup(jv_get_str(doc, "id"));
    return ERR_OK;
}
void upstream_spec_free(struct upstream_spec **s)
{
    if (!*s)
        return;
    mem_free((*s)->id);
    MEM_FREE(*s);
}

#define STALE_MS 400
#define GRACE_MS 500
#define HOLD_MS 700

static struct redis_server server;
static char keys_dir[] = "/tmp/pullgate-keys-XXXXXX";
static struct config cfg;
static struct proxy proxy;
static struct worker worker;
static struct fake_admin admin;

#define CRED "k:aa"
#define CRED_JSON(name)                                                                                                \
    "{\"id\":\"crd_1\",\"kind\":\"credential\",\"customer_id\":\"cus_1\",\"customer_slug\":\"acme\",\"vendor_id\":\"ven_1\",\"license_id\":\"\","   \
    "\"name\":\"" name "\",\"expires_at\":0,\"allowed_cidrs\":[\"10.0.0.0/8\"]}"

static void worker_begin(void)
{
    worker = (struct worker){.proxy = &proxy, .cfg = &cfg, .loop = loop_new()};
    assert_int_equal(cache_new(worker.loop, &cfg, &worker.cache, NULL), ERR_OK);
    worker.facts = facts_new(&worker);
}

static void worker_end(void)
{
    facts_free(&worker.facts);
    cache_free(&worker.cache);
    loop_free(worker.loop);
}

static void tick(void *ctx)
{
    (void)ctx;
}

static bool run_until(const int *flag, int n, uint64_t ms)
{
    uint64_t end = clock_mono_ms() + ms;
    struct timer *t = timer_new(worker.loop, tick, NULL);
    while (*flag < n && clock_mono_ms() < end) {
        timer_set(t, 2);
        loop_run_once(worker.loop);
    }
    timer_free(&t);
    return *flag >= n;
}

static void run_for(uint64_t ms)
{
    int never = 0;
    (void)run_until(&never, 1, ms);
}

struct got {
    int calls;
    enum err err;
    struct fact *fact;
    bool degraded;
    bool inside;
    uint64_t ms;
};

static void on_got(void *ctx, enum err err, struct fact *fact, bool degraded)
{
    struct got *g = ctx;
    assert_false(g->inside);
    g->calls++;
    g->err = err;
    g->degraded = degraded;
    fact_unref(&g->fact);
    g->fact = fact_ref(fact);
    assert_true(!err || !fact);
}

static enum fact_kind kind_of(const char *name)
{
    for (int i = 0; i < FACT_KINDS; i++)
        if (KIND_LETTER[i] == name[0])
            return (enum fact_kind)i;
    fail();
    return FACT_CREDENTIAL;
}

/* facts_get and wait. */
static void get(struct got *g, const char *name)
{
    uint64_t t0 = clock_mono_ms();
    g->calls = 0;
    g->inside = true;
    facts_get(worker.facts, kind_of(name), str_c(name + 2), on_got, g);
    g->inside = false;
    assert_true(run_until(&g->calls, 1, HOLD_MS + 1000));
    g->ms = clock_mono_ms() - t0;
}

static enum err peek(const char *name, struct fact **ret, bool *degraded)
{
    return facts_peek(worker.facts, kind_of(name), str_c(name + 2), ret, degraded);
}

static void expect_unknown(const char *name)
{
    struct got g = {0};
    get(&g, name);
    assert_int_equal(g.err, ERR_UNAVAILABLE);
    assert_in_range(g.ms, HOLD_MS - 20, HOLD_MS + 300);
}

static void expect_known(const char *name, bool exists)
{
    struct got g = {0};
    get(&g, name);
    assert_int_equal(g.err, ERR_OK);
    assert_int_equal(g.fact != NULL, exists);
    fact_unref(&g.fact);
}

/* Fresh world: an empty Redis, an admin with one credential, a worker that has the root. */
static int begin(void **state)
{
    struct config c = cfg;
    (void)state;
    if (!server.pid)
        redis_start(&server);
    admin = (struct fake_admin){.keys = proxy.keys, .redis = cache_sync_new(&c, 1000)};
    ADMIN_DO(&admin, S("FLUSHALL"));
    admin_put(&admin, CRED, CRED_JSON("ci"), true);
    worker_begin();
    return 0;
}

static int end(void **state)
{
    (void)state;
    worker_end();
    admin_close(&admin);
    return 0;
}

static void test_known_and_absent(void **state)
{
    struct got g = {0};
    struct fact *f = NULL;
    bool degraded = true;
    (void)state;
    assert_int_equal(peek(CRED, &f, &degraded), ERR_UNAVAILABLE); /* not asked yet */
    get(&g, CRED);
    assert_int_equal(g.err, ERR_OK);
    assert_non_null(g.fact);
    assert_false(g.degraded);
    assert_string_equal(g.fact->name, CRED);
    assert_string_equal(g.fact->credential->customer_id, "cus_1");
    assert_int_equal(g.fact->credential->n_allowed_cidrs, 1);
    assert_int_equal(peek(CRED, &f, &degraded), ERR_OK);
    assert_ptr_equal(f, g.fact);
    assert_false(degraded);
    fact_unref(&g.fact);
    expect_known("k:bb", false);
    f = (struct fact *)1;
    assert_int_equal(peek("k:bb", &f, NULL), ERR_OK);
    assert_null(f);
    expect_known("r:a b\n", false); /* what cannot be a name names nothing */
    expect_known("r:", false);
    assert_int_equal(facts_staleness_ms(worker.facts) < STALE_MS, true);
}

static void test_every_kind(void **state)
{
    struct got g = {0};
    char d[80];
    (void)state;
    memset(d, 'a', 64);
    d[64] = '\0';
    char tags[512];
    snprintf(tags, sizeof tags,
             "{\"repository_id\":\"rep_1\",\"tags\":{\"b\":{\"version\":\"2\",\"channel\":\"stable\",\"released_at\":7,\"digests\":[[\"sha256:%s\",5,0]]},"
             "\"a\":{\"version\":\"1\",\"channel\":\"\",\"released_at\":0,\"digests\":[]}}}",
             d);
    admin_put(&admin, "r:shop/api",
              "{\"id\":\"rep_1\",\"name\":\"shop/api\",\"application_id\":\"app_1\",\"application_slug\":\"shop\",\"vendor_id\":\"ven_1\","
              "\"upstream_id\":\"ups_1\",\"upstream_repository\":\"acme/api\",\"kind\":\"image\",\"tag_template\":\"{version}\"}",
              true);
    admin_put(&admin, "t:rep_1", tags, true);
    admin_put(&admin, "u:ups_1", "{\"id\":\"ups_1\"}", true);
    admin_put(&admin, "c:cus_1",
              "{\"customer_id\":\"cus_1\",\"customer_slug\":\"acme\",\"vendor_id\":\"ven_1\",\"disabled\":false,\"renew_url\":\"\",\"support_contact\":\"\","
              "\"licenses\":[]}",
              true);
    get(&g, "r:shop/api");
    assert_string_equal(g.fact->repository->upstream_repository, "acme/api");
    get(&g, "t:rep_1");
    assert_int_equal(g.fact->tags->n, 2);
    assert_string_equal(g.fact->tags->tags[0].tag, "a");
    assert_string_equal(g.fact->tags->tags[1].channel, "stable");
    assert_int_equal(g.fact->tags->tags[1].n_digests, 1);
    assert_int_equal(g.fact->tags->tags[1].digests[0].first_seen_s, 5);
    get(&g, "u:ups_1");
    assert_string_equal(g.fact->upstream->id, "ups_1");
    get(&g, "c:cus_1");
    assert_true(str_eq(g.fact->entitlement->customer_slug, S("acme")));
    fact_unref(&g.fact);
}

static void test_misspelt_payload_is_unknown(void **state)
{
    static const char *const bad[] = {
        "", "[]", "{}", "{\"id\":\"crd_1\"}",
        "{\"id\":\"crd_1\",\"kind\":\"other\",\"customer_id\":\"c\",\"vendor_id\":\"v\"}",
        "{\"id\":\"crd_1\",\"kind\":\"license_key\",\"customer_id\":\"c\",\"vendor_id\":\"v\",\"license_id\":\"\"}",
        "{\"id\":\"crd_1\",\"kind\":\"credential\",\"customer_id\":\"c\",\"vendor_id\":\"v\",\"expires_at\":\"never\"}",
        "{\"id\":\"crd_1\",\"kind\":\"credential\",\"customer_id\":\"c\",\"vendor_id\":\"v\",\"allowed_cidrs\":[\"nonsense\"]}",
        "{\"id\":\"crd_1\",\"kind\":\"credential\",\"customer_id\":\"c\",\"vendor_id\":\"v\",\"allowed_cidrs\":\"10.0.0.0/8\"}",
    };
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct entry e = {.kind = FACT_CREDENTIAL};
        char name[] = "k:x";
        e.name = name;
        e.name_n = 3;
        assert_null(fact_parse(worker.facts, &e, 1, str_c(bad[i])));
    }
    admin_put(&admin, "k:cc", "{}", true);
    expect_unknown("k:cc");
}

/* A change is used at once when announced, and within a poll when the announcement is lost. */
static void test_change(void **state)
{
    struct got g = {0};
    struct fact *f;
    bool announced[] = {true, false};
    (void)state;
    get(&g, CRED);
    run_for(50); /* subscribed */
    for (size_t i = 0; i < 2; i++) {
        uint64_t generation = facts_generation(worker.facts), t0;
        admin_put(&admin, CRED, i ? CRED_JSON("third") : CRED_JSON("second"), announced[i]);
        t0 = clock_mono_ms();
        while (peek(CRED, &f, NULL) == ERR_OK && clock_mono_ms() - t0 < 2000)
            run_for(1);
        if (announced[i])
            assert_in_range(clock_mono_ms() - t0, 0, 50);
        else
            assert_in_range(clock_mono_ms() - t0, 0, STALE_MS);
        assert_true(facts_generation(worker.facts) > generation);
        get(&g, CRED);
        assert_string_equal(g.fact->credential->name, i ? "third" : "second");
    }
    admin_put(&admin, CRED, NULL, true);
    run_for(20);
    get(&g, CRED);
    assert_int_equal(g.err, ERR_OK);
    assert_null(g.fact);
}

/* A neighbour in the bucket changes: the fact is asked about again and found the same, not parsed again. */
static void test_neighbour_changes(void **state)
{
    struct got g = {0};
    struct fact *before, *f;
    char name[32];
    (void)state;
    get(&g, CRED);
    before = g.fact;
    for (int i = 0;; i++) {
        snprintf(name, sizeof name, "k:n%d", i);
        if (projection_bucket_of(str_c(name)) == projection_bucket_of(S(CRED)))
            break;
    }
    admin_put(&admin, name, CRED_JSON("other"), true);
    int zero = 0;
    for (int i = 0; i < 100 && peek(CRED, &f, NULL) == ERR_OK; i++)
        (void)run_until(&zero, 1, 5);
    assert_int_equal(peek(CRED, &f, NULL), ERR_UNAVAILABLE);
    get(&g, CRED);
    assert_int_equal(g.err, ERR_OK);
    assert_ptr_equal(g.fact, before);
    assert_int_equal(peek(CRED, &f, NULL), ERR_OK);
    fact_unref(&g.fact);
}

static void test_forged(void **state)
{
    struct strbuf key = {0};
    (void)state;
    char *value = admin_get(&admin, S("pg:v:" CRED));
    /* another payload under the old MAC */
    char *p = strstr(value, "cus_1");
    assert_non_null(p);
    p[4] = '2';
    ADMIN_DO(&admin, S("SET"), S("pg:v:" CRED), str_c(value));
    expect_unknown(CRED);
    p[4] = '1';
    /* the right value under another name */
    ADMIN_DO(&admin, S("SET"), S("pg:v:k:bb"), str_c(value));
    expect_known("k:bb", false); /* its bucket does not name it */
    /* a missing value that the bucket names is no absence */
    ADMIN_DO(&admin, S("DEL"), S("pg:v:" CRED));
    expect_unknown(CRED);
    /* a list, where a string should be */
    ADMIN_DO(&admin, S("LPUSH"), S("pg:v:" CRED), S("x"));
    expect_unknown(CRED);
    ADMIN_DO(&admin, S("SET"), S("pg:v:" CRED), str_c(value));
    expect_known(CRED, true);
    /* a bucket that is gone, or forged, is no absence either */
    run_for(10);
    worker_end();
    projection_bucket_key(projection_bucket_of(S(CRED)), &key);
    char *bucket = admin_get(&admin, sb_str(&key));
    ADMIN_DO(&admin, S("DEL"), sb_str(&key));
    worker_begin();
    expect_unknown(CRED);
    ADMIN_DO(&admin, S("SET"), sb_str(&key), S("1 1 0000000000000000000000000000000000000000000000000000000000000000 "));
    expect_unknown(CRED);
    ADMIN_DO(&admin, S("SET"), sb_str(&key), str_c(bucket));
    expect_known(CRED, true);
    mem_free(bucket);
    mem_free(value);
    sb_free(&key);
}

static void test_replayed(void **state)
{
    struct strbuf key = {0};
    struct got g = {0};
    struct fact *f;
    (void)state;
    projection_bucket_key(projection_bucket_of(S(CRED)), &key);
    get(&g, CRED);
    char *value = admin_get(&admin, S("pg:v:" CRED)), *bucket = admin_get(&admin, sb_str(&key)), *root = admin_get(&admin, S(PROJECTION_ROOT_KEY));
    /* revoked; then somebody puts the old value back, then the old bucket, then the old root */
    admin_put(&admin, CRED, NULL, true);
    run_for(30);
    ADMIN_DO(&admin, S("SET"), S("pg:v:" CRED), str_c(value));
    expect_known(CRED, false);
    admin_put(&admin, CRED, NULL, true); /* the bucket moves on, so that it must be asked again */
    ADMIN_DO(&admin, S("SET"), sb_str(&key), str_c(bucket));
    ADMIN_DO(&admin, S("SET"), S("pg:v:" CRED), str_c(value));
    run_for(30);
    expect_unknown(CRED);
    ADMIN_DO(&admin, S("SET"), S(PROJECTION_ROOT_KEY), str_c(root));
    ADMIN_DO(&admin, S("PUBLISH"), S(PROJECTION_CHANNEL), S("x"));
    run_for(30);
    expect_unknown(CRED);
    assert_true(facts_staleness_ms(worker.facts) > STALE_MS); /* a root that went back confirms nothing */
    assert_int_equal(peek(CRED, &f, NULL), ERR_UNAVAILABLE);
    admin_rebuild(&admin);
    expect_known(CRED, false);
    fact_unref(&g.fact);
    mem_free(value);
    mem_free(bucket);
    mem_free(root);
    sb_free(&key);
}

/* FLUSHALL and a stopped Redis look alike: usable, then degraded, then unavailable; back without help. */
static void outage(bool stop)
{
    struct fact *f = NULL;
    struct got late = {0};
    bool degraded = true;
    uint64_t t0, at = 0, before; /* at, before: since t0, this look and the one before; taken ahead of it, for a busy machine pauses anywhere */

    expect_known(CRED, true);
    expect_known("k:bb", false);
    if (stop)
        redis_stop(&server);
    else
        ADMIN_DO(&admin, S("FLUSHALL"));
    t0 = clock_mono_ms();
    run_for(STALE_MS / 2);
    assert_int_equal(peek(CRED, &f, &degraded), ERR_OK);
    assert_non_null(f);
    assert_false(degraded);
    do {
        before = at;
        run_for(5);
        at = clock_mono_ms() - t0;
        assert_int_equal(peek(CRED, &f, &degraded), ERR_OK);
    } while (!degraded && at < 2000);
    assert_true(at >= STALE_MS - 150);
    assert_true(before <= STALE_MS + 100);
    assert_int_equal(peek("k:bb", &f, &degraded), ERR_UNAVAILABLE); /* nobody can confirm a "no" */
    do {
        before = at;
        run_for(5);
        at = clock_mono_ms() - t0;
    } while (peek(CRED, &f, &degraded) == ERR_OK && at < 3000);
    assert_true(at >= STALE_MS + GRACE_MS - 150);
    assert_true(before <= STALE_MS + GRACE_MS + 100);
    expect_unknown(CRED);
    /* who asks shortly before it is back gets his answer */
    facts_get(worker.facts, FACT_CREDENTIAL, S("aa"), on_got, &late);
    run_for(50);
    assert_int_equal(late.calls, 0);
    if (stop)
        redis_start(&server);
    admin_rebuild(&admin);
    assert_true(run_until(&late.calls, 1, HOLD_MS));
    if (!stop)
        assert_int_equal(late.err, ERR_OK);
    expect_known(CRED, true);
    expect_known("k:bb", false);
    fact_unref(&late.fact);
}

static void test_flushall(void **state)
{
    (void)state;
    outage(false);
}

static void test_redis_stopped(void **state)
{
    (void)state;
    outage(true);
}

/* Within the grace, what is known to have changed is not used: its old state is not the last confirmation. */
static void test_changed_is_unknown_in_grace(void **state)
{
    struct fact *f;
    (void)state;
    expect_known(CRED, true);
    run_for(30);
    admin_put(&admin, CRED, CRED_JSON("changed"), true);
    while (peek(CRED, &f, NULL) == ERR_OK)
        run_for(1);
    redis_stop(&server);
    run_for(STALE_MS + 50);
    assert_int_equal(peek(CRED, &f, NULL), ERR_UNAVAILABLE);
    redis_start(&server);
    admin_rebuild(&admin);
}

static void test_cold_start(void **state)
{
    (void)state;
    worker_end();
    /* older than control_plane_silence: not believed by a proxy that has just started */
    admin.time_shift_ms = -(int64_t)cfg.cache.control_plane_silence_ms - 60000;
    admin_write_root(&admin);
    worker_begin();
    expect_unknown(CRED);
    /* ... but by one that runs */
    admin.time_shift_ms = 0;
    admin_write_root(&admin);
    expect_known(CRED, true);
    admin.time_shift_ms = -(int64_t)cfg.cache.control_plane_silence_ms - 60000;
    admin_write_root(&admin);
    run_for(STALE_MS + GRACE_MS + 200);
    expect_known(CRED, true);
    /* Redis away at the start: the answer comes when it does */
    worker_end();
    admin.time_shift_ms = 0;
    redis_stop(&server);
    worker_begin();
    assert_int_equal(facts_staleness_ms(worker.facts), UINT64_MAX);
    expect_unknown(CRED);
    redis_start(&server);
    admin_rebuild(&admin);
    run_for(1200);
    expect_known(CRED, true);
}

static void test_clock_behind(void **state)
{
    struct fact *f;
    (void)state;
    expect_known(CRED, true);
    admin.time_shift_ms = 600000;
    admin_put(&admin, "k:zz", CRED_JSON("z"), true);
    run_for(STALE_MS);
    assert_int_equal(peek(CRED, &f, NULL), ERR_UNAVAILABLE);
    expect_unknown(CRED);
}

static void test_joined_and_cancelled(void **state)
{
    struct got g[100] = {0};
    struct facts_op *ops[100];
    const struct cache_reply *r;
    (void)state;
    run_for(100);
    ADMIN_DO(&admin, S("CONFIG"), S("RESETSTAT"));
    for (size_t i = 0; i < 100; i++)
        ops[i] = facts_get(worker.facts, FACT_CREDENTIAL, S("aa"), on_got, &g[i]);
    for (size_t i = 0; i < 100; i += 2)
        facts_cancel(&ops[i]);
    assert_true(run_until(&g[99].calls, 1, 1000));
    run_for(20);
    for (size_t i = 0; i < 100; i++) {
        assert_int_equal(g[i].calls, i % 2);
        assert_int_equal(g[i].fact != NULL, i % 2);
        fact_unref(&g[i].fact);
    }
    assert_int_equal(cache_sync_command(admin.redis, (struct str[]){S("INFO"), S("commandstats")}, 2, &r, NULL), ERR_OK);
    char *info = str_dup(r->str);
    assert_non_null(strstr(info, "cmdstat_mget:calls=1,"));
    mem_free(info);
    /* all cancelled while in flight, and freed while in flight */
    ops[0] = facts_get(worker.facts, FACT_CREDENTIAL, S("none"), on_got, &g[0]);
    facts_cancel(&ops[0]);
    assert_null(ops[0]);
    facts_get(worker.facts, FACT_CREDENTIAL, S("none2"), on_got, &g[1]);
    int before = g[1].calls;
    worker_end();
    assert_int_equal(g[1].calls, before);
    worker_begin();
}

/* An announcement is anybody's: a flood of them makes few polls. */
static void test_announcement_flood(void **state)
{
    const struct cache_reply *r;
    uint64_t t0;
    (void)state;
    run_for(100);
    ADMIN_DO(&admin, S("CONFIG"), S("RESETSTAT"));
    t0 = clock_mono_ms();
    for (int i = 0; i < 2000; i++) {
        ADMIN_DO(&admin, S("PUBLISH"), S(PROJECTION_CHANNEL), S("{\"grant\":\"everything\"}"));
        if (i % 50 == 0)
            run_for(1);
    }
    run_for(20);
    t0 = clock_mono_ms() - t0;
    assert_int_equal(cache_sync_command(admin.redis, (struct str[]){S("INFO"), S("commandstats")}, 2, &r, NULL), ERR_OK);
    char *info = str_dup(r->str), *at = strstr(info, "cmdstat_get:calls=");
    assert_non_null(at);
    assert_true(strtoul(at + 18, NULL, 10) <= t0 / POLL_GAP_MS + 5);
    mem_free(info);
    expect_known(CRED, true);
}

/* Bounded: many names that exist nowhere do not push out what is used. */
static void test_bounded(void **state)
{
    struct fact *f;
    struct got g = {0};
    (void)state;
    expect_known(CRED, true);
    for (unsigned i = 0; i < ENTRIES_MAX + 5000; i++) {
        char id[32];
        snprintf(id, sizeof id, "none%u", i);
        facts_get(worker.facts, FACT_CREDENTIAL, str_c(id), on_got, &g);
        if (i % 500 == 499) {
            int want = (int)i + 1;
            assert_true(run_until(&g.calls, want, 2000));
            assert_int_equal(peek(CRED, &f, NULL), ERR_OK);
        }
    }
    assert_true(worker.facts->n_entries <= ENTRIES_MAX + 1000);
    expect_known(CRED, true);
}

static void test_peek_cost(void **state)
{
    enum { ROUNDS = 20000 }; /* well within what the bucket may be old, also under valgrind: nothing is polled meanwhile */
    struct fact *f = NULL;
    struct str id = S("aa");
    unsigned hits = 0;
    double t0;
    (void)state;
    expect_known(CRED, true);
    t0 = cpu_time_ns();
    for (int i = 0; i < ROUNDS; i++) {
        if (i % 3 == 0)
            clock_hold(); /* as a request does, which looks three of them up */
        hits += facts_peek(worker.facts, FACT_CREDENTIAL, id, &f, NULL) == ERR_OK;
    }
    clock_release();
    print_message("facts_peek: %.1f ns\n", (cpu_time_ns() - t0) / ROUNDS);
    assert_int_equal(hits, ROUNDS);
}

static int setup(void **state)
{
    struct error error = {0};
    (void)state;
    signal(SIGPIPE, SIG_IGN);
    log_set_level(LOG_LEVEL_ERROR);
    if (!mkdtemp(keys_dir))
        return 1;
    if (keyring_open(keys_dir, true, &proxy.keys, &error)) {
        print_error("%s\n", error.text);
        return 1;
    }
    redis_start(&server);
    cfg.redis.url = server.url;
    cfg.limits.redis_deadline_ms = 200;
    cfg.cache.max_staleness_ms = STALE_MS;
    cfg.cache.grace_when_cache_is_down_ms = GRACE_MS;
    cfg.cache.hold_on_unknown_ms = HOLD_MS;
    cfg.cache.control_plane_silence_ms = 3600000;
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
    const struct CMUnitTest tests[] = {
        T(test_known_and_absent), T(test_every_kind), T(test_misspelt_payload_is_unknown), T(test_change), T(test_neighbour_changes),
        T(test_forged), T(test_replayed), T(test_flushall), T(test_redis_stopped), T(test_changed_is_unknown_in_grace),
        T(test_cold_start), T(test_clock_behind), T(test_joined_and_cancelled), T(test_announcement_flood), T(test_bounded), T(test_peek_cost),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
