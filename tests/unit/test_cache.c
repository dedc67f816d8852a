/* cache.c against a real Redis, a stopped one, a hung one and one that talks garbage. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>

#include "pullgate/cache.h"
#include "pullgate/clock.h"
#include "pullgate/mem.h"

#include "redis_server.h"

static struct redis_server server;
static struct loop *loop;
static struct config cfg;

static void use(char *url)
{
    memset(&cfg, 0, sizeof cfg);
    cfg.redis.url = url;
    cfg.limits.redis_deadline_ms = 200;
}

struct answer {
    int calls;
    enum err err;
    enum cache_type type;
    char text[64];
    int64_t integer;
    size_t n;
    bool inside; /* set by the caller while it is inside cache_command() */
};

static void on_answer(void *ctx, enum err e, const struct cache_reply *r)
{
    struct answer *a = ctx;
    assert_false(a->inside);
    a->calls++;
    a->err = e;
    assert_true((r == NULL) == (e != ERR_OK));
    if (!r)
        return;
    a->type = r->type;
    a->integer = r->integer;
    a->n = r->n;
    if (r->type == CACHE_ARRAY && r->n)
        r = &r->items[r->n - 1];
    snprintf(a->text, sizeof a->text, "%.*s", STR(r->str));
}

static void tick(void *ctx)
{
    (void)ctx;
}

/* Runs the loop until *flag is at least n, at most ms. */
static bool run_until(const int *flag, int n, uint64_t ms)
{
    uint64_t end = clock_mono_ms() + ms;
    struct timer *t = timer_new(loop, tick, NULL);
    while (*flag < n && clock_mono_ms() < end) {
        timer_set(t, 5);
        loop_run_once(loop);
    }
    timer_free(&t);
    return *flag >= n;
}

static void run_for(uint64_t ms)
{
    int never = 0;
    (void)run_until(&never, 1, ms);
}

static struct cache_op *ask(struct cache *c, struct answer *a, const struct str *argv, size_t n)
{
    struct cache_op *op;
    a->inside = true;
    op = cache_command(c, argv, n, on_answer, a);
    a->inside = false;
    return op;
}
#define ASK(c, a, ...) ask(c, a, (const struct str[]){__VA_ARGS__}, sizeof((const struct str[]){__VA_ARGS__}) / sizeof(struct str))

static void wait_up(struct cache *c)
{
    uint64_t end = clock_mono_ms() + 5000;
    while (!cache_is_up(c) && clock_mono_ms() < end)
        run_for(5);
    assert_true(cache_is_up(c));
}

static void test_commands(void **state)
{
    (void)state;
    char *urls[] = {server.url, server.unix_url};
    for (size_t i = 0; i < 2; i++) {
        struct cache *c;
        struct answer a[8] = {0};
        use(urls[i]);
        assert_int_equal(cache_new(loop, &cfg, &c, NULL), ERR_OK);
        /* the first commands may come before the connection is there */
        ASK(c, &a[0], S("SET"), S("k"), S("v\0w\r\n"));
        ASK(c, &a[1], S("GET"), S("k"));
        ASK(c, &a[2], S("GET"), S("none"));
        ASK(c, &a[3], S("MGET"), S("none"), S("k"));
        ASK(c, &a[4], S("INCR"), S("k"));       /* an error reply */
        ASK(c, &a[5], S("INCR"), S("counter"));
        ASK(c, &a[6], S("NOSUCHCOMMAND"));
        assert_true(run_until(&a[6].calls, 1, 3000));
        for (size_t j = 0; j < 7; j++)
            assert_int_equal(a[j].calls, 1);
        assert_int_equal(a[0].type, CACHE_STATUS);
        assert_int_equal(a[1].type, CACHE_STRING);
        assert_int_equal(a[2].type, CACHE_NIL);
        assert_int_equal(a[3].type, CACHE_ARRAY);
        assert_int_equal(a[3].n, 2);
        assert_string_equal(a[3].text, "v");
        assert_int_equal(a[4].err, ERR_UNAVAILABLE);
        assert_int_equal(a[5].type, CACHE_INTEGER);
        assert_int_equal(a[5].integer, 1);
        assert_int_equal(a[6].err, ERR_UNAVAILABLE);
        cache_free(&c);
    }
}

static void test_cancel(void **state)
{
    (void)state;
    struct cache *c;
    struct answer a = {0}, b = {0}, d = {0};
    use(server.url);
    assert_int_equal(cache_new(loop, &cfg, &c, NULL), ERR_OK);
    struct cache_op *op = ASK(c, &a, S("GET"), S("k"));
    ASK(c, &b, S("PING"));
    cache_cancel(&op);
    assert_null(op);
    assert_true(run_until(&b.calls, 1, 3000));
    assert_int_equal(a.calls, 0);
    assert_string_equal(b.text, "PONG");
    assert_null(cache_command(c, (struct str[]){S("SET"), S("quiet"), S("1")}, 3, NULL, NULL) == NULL ? (void *)1 : NULL);
    ASK(c, &d, S("GET"), S("quiet"));
    assert_true(run_until(&d.calls, 1, 3000));
    assert_string_equal(d.text, "1");
    cache_free(&c);
}

static void test_hung_then_back(void **state)
{
    (void)state;
    struct cache *c;
    struct answer a = {0}, b = {0}, d = {0}, late = {0};
    uint64_t t0;
    use(server.url);
    assert_int_equal(cache_new(loop, &cfg, &c, NULL), ERR_OK);
    wait_up(c);
    kill(server.pid, SIGSTOP);
    t0 = clock_mono_ms();
    ASK(c, &late, S("ECHO"), S("late"));
    assert_true(run_until(&late.calls, 1, 2000));
    assert_int_equal(late.err, ERR_UNAVAILABLE);
    assert_in_range(clock_mono_ms() - t0, 190, 500);
    kill(server.pid, SIGCONT);
    /* its late reply must not answer the next command */
    ASK(c, &a, S("ECHO"), S("mine"));
    assert_true(run_until(&a.calls, 1, 3000));
    if (a.err == ERR_OK)
        assert_string_equal(a.text, "mine");
    wait_up(c);
    ASK(c, &d, S("ECHO"), S("again"));
    assert_true(run_until(&d.calls, 1, 3000));
    assert_string_equal(d.text, "again");
    assert_int_equal(late.calls, 1);
    /* hung for long: given up, then refused at once */
    kill(server.pid, SIGSTOP);
    ASK(c, &b, S("PING"));
    run_for(1500);
    assert_int_equal(b.calls, 1);
    memset(&b, 0, sizeof b);
    t0 = clock_mono_ms();
    ASK(c, &b, S("PING"));
    assert_true(run_until(&b.calls, 1, 1000));
    assert_int_equal(b.err, ERR_UNAVAILABLE);
    assert_in_range(clock_mono_ms() - t0, 0, 100);
    kill(server.pid, SIGCONT);
    wait_up(c);
    cache_free(&c);
}

struct heard {
    int messages, ups, downs;
    char text[64];
};
static void on_message(void *ctx, struct str m)
{
    struct heard *h = ctx;
    h->messages++;
    snprintf(h->text, sizeof h->text, "%.*s", STR(m));
}
static void on_up(void *ctx, bool up)
{
    struct heard *h = ctx;
    if (up)
        h->ups++;
    else
        h->downs++;
}

static void test_subscription_and_restart(void **state)
{
    (void)state;
    struct cache *c;
    struct heard h = {0};
    struct answer a = {0};
    use(server.url);
    assert_int_equal(cache_new(loop, &cfg, &c, NULL), ERR_OK);
    cache_subscribe(c, "pg:test", on_message, on_up, &h);
    assert_true(run_until(&h.ups, 1, 3000));
    ASK(c, &a, S("PUBLISH"), S("pg:test"), S("hello"));
    assert_true(run_until(&h.messages, 1, 3000));
    assert_string_equal(h.text, "hello");
    redis_stop(&server);
    memset(&a, 0, sizeof a);
    ASK(c, &a, S("PING"));
    assert_true(run_until(&a.calls, 1, 1000));
    assert_int_equal(a.err, ERR_UNAVAILABLE);
    assert_true(run_until(&h.downs, 1, 3000));
    redis_start(&server);
    assert_true(run_until(&h.ups, 2, 5000));
    wait_up(c);
    ASK(c, &a, S("PUBLISH"), S("pg:test"), S("after"));
    assert_true(run_until(&h.messages, 2, 3000));
    assert_string_equal(h.text, "after");
    cache_free(&c);
}

static void test_password(void **state)
{
    (void)state;
    struct redis_server locked = {.password = "s3cret/pw"};
    struct cache *c;
    struct answer a = {0};
    char url[128];
    redis_start(&locked);
    snprintf(url, sizeof url, "redis://:s3cret%%2Fpw@127.0.0.1:%d/2", locked.port);
    use(url);
    assert_int_equal(cache_new(loop, &cfg, &c, NULL), ERR_OK);
    wait_up(c);
    ASK(c, &a, S("PING"));
    assert_true(run_until(&a.calls, 1, 3000));
    assert_int_equal(a.err, ERR_OK);
    cache_free(&c);
    use(locked.url); /* no password: never up, every command refused, nothing crashes */
    assert_int_equal(cache_new(loop, &cfg, &c, NULL), ERR_OK);
    memset(&a, 0, sizeof a);
    ASK(c, &a, S("GET"), S("k"));
    assert_true(run_until(&a.calls, 1, 3000));
    assert_int_equal(a.err, ERR_UNAVAILABLE);
    assert_false(cache_is_up(c));
    cache_free(&c);
    redis_end(&locked);
}

static void *garbage_thread(void *arg)
{
    int lfd = *(int *)arg;
    static const char *const talk[] = {
        "hello\r\n", "+OK\r\n+OK\r\n:1\r\n", "*1\r\n:1\r\n", "$-5\r\n", "*1000000000\r\n", "$999999999999\r\nx", "-ERR max number of clients reached\r\n",
        "+PONG\r\n*2\r\n:1\r\n:2\r\n", "+PONG\r\n*3\r\n$7\r\nmessage\r\n$1\r\na\r\n*0\r\n", "*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n:1\r\n",
        "", "\r\n\r\n", "+PONG\r\n%1\r\n+a\r\n+b\r\n", "+PONG\r\n+PONG\r\n+PONG\r\n",
    };
    for (size_t i = 0;; i++) {
        char buf[256];
        const char *say = talk[i % (sizeof talk / sizeof *talk)];
        int fd = accept(lfd, NULL, NULL);
        if (fd < 0)
            return NULL;
        (void)!read(fd, buf, sizeof buf);
        (void)!write(fd, say, strlen(say));
        redis_pause_ms(10);
        close(fd);
    }
}

static void test_garbage_server(void **state)
{
    (void)state;
    struct sockaddr_in sa = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof sa;
    struct cache *c;
    struct heard h = {0};
    pthread_t th;
    char url[64];
    int lfd = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(bind(lfd, (struct sockaddr *)&sa, sizeof sa), 0);
    listen(lfd, 16);
    getsockname(lfd, (struct sockaddr *)&sa, &n);
    snprintf(url, sizeof url, "redis://127.0.0.1:%d", ntohs(sa.sin_port));
    pthread_create(&th, NULL, garbage_thread, &lfd);
    use(url);
    for (int i = 0; i < 20; i++) {
        struct answer a = {0};
        assert_int_equal(cache_new(loop, &cfg, &c, NULL), ERR_OK);
        cache_subscribe(c, "a", on_message, on_up, &h);
        ASK(c, &a, S("GET"), S("k"));
        assert_true(run_until(&a.calls, 1, 1000));
        run_for(60);
        assert_int_equal(a.calls, 1);
        cache_free(&c);
    }
    shutdown(lfd, SHUT_RDWR);
    close(lfd);
    pthread_join(th, NULL);
}

static void test_sync(void **state)
{
    (void)state;
    struct cache_sync *c;
    const struct cache_reply *r;
    struct error error = {0};
    use(server.unix_url);
    c = cache_sync_new(&cfg, 20000);
    assert_int_equal(cache_sync_command(c, (struct str[]){S("FLUSHDB")}, 1, &r, &error), ERR_OK);
    struct str set1[] = {S("SET"), S("a"), S("1")}, set2[] = {S("SET"), S("b"), S("2")}, bad[] = {S("NOSUCH")};
    struct cache_cmd good_tx[] = {{set1, 3}, {set2, 3}}, bad_tx[] = {{set1, 3}, {bad, 1}};
    assert_int_equal(cache_sync_transaction(c, good_tx, 2, &error), ERR_OK);
    assert_int_equal(cache_sync_command(c, (struct str[]){S("MGET"), S("a"), S("b")}, 3, &r, &error), ERR_OK);
    assert_int_equal(r->n, 2);
    assert_true(str_eq(r->items[1].str, S("2")));
    assert_int_equal(cache_sync_command(c, (struct str[]){S("FLUSHDB")}, 1, &r, &error), ERR_OK);
    assert_int_equal(cache_sync_transaction(c, bad_tx, 2, &error), ERR_UNAVAILABLE);
    assert_int_equal(error.code, ERR_UNAVAILABLE);
    assert_int_equal(cache_sync_command(c, (struct str[]){S("EXISTS"), S("a")}, 2, &r, &error), ERR_OK);
    assert_int_equal(r->integer, 0); /* all or none */
    /* a pipeline larger than both sides' buffers */
    enum { MANY = 20000 };
    struct cache_cmd *many = mem_calloc(MANY, sizeof *many);
    for (size_t i = 0; i < MANY; i++)
        many[i] = (struct cache_cmd){set1, 3};
    assert_int_equal(cache_sync_transaction(c, many, MANY, &error), ERR_OK);
    char *big = mem_alloc(1u << 20);
    memset(big, 'x', 1u << 20);
    struct str set_big[] = {S("SET"), S("big"), {big, 1u << 20}};
    for (size_t i = 0; i < 40; i++)
        many[i] = (struct cache_cmd){set_big, 3};
    assert_int_equal(cache_sync_transaction(c, many, 40, &error), ERR_OK);
    assert_int_equal(cache_sync_command(c, (struct str[]){S("STRLEN"), S("big")}, 2, &r, &error), ERR_OK);
    assert_int_equal(r->integer, 1u << 20);
    mem_free(big);
    mem_free(many);
    /* a wrong type inside EXEC is a failure, never a success */
    struct str wrong[] = {S("LPUSH"), S("a"), S("x")};
    assert_int_equal(cache_sync_transaction(c, (struct cache_cmd[]){{wrong, 3}}, 1, &error), ERR_UNAVAILABLE);
    cache_sync_free(&c);

    use(server.url);
    c = cache_sync_new(&cfg, 300);
    assert_int_equal(cache_sync_command(c, (struct str[]){S("PING")}, 1, &r, &error), ERR_OK);
    redis_stop(&server);
    assert_int_equal(cache_sync_command(c, (struct str[]){S("PING")}, 1, &r, &error), ERR_UNAVAILABLE);
    assert_int_equal(cache_sync_command(c, (struct str[]){S("PING")}, 1, &r, &error), ERR_UNAVAILABLE);
    redis_start(&server);
    assert_int_equal(cache_sync_command(c, (struct str[]){S("PING")}, 1, &r, &error), ERR_OK);
    redis_stop(&server);
    redis_start(&server); /* restarted while idle: not noticed by the caller */
    assert_int_equal(cache_sync_command(c, (struct str[]){S("PING")}, 1, &r, &error), ERR_OK);
    kill(server.pid, SIGSTOP);
    uint64_t t0 = clock_mono_ms();
    assert_int_equal(cache_sync_command(c, (struct str[]){S("PING")}, 1, &r, &error), ERR_UNAVAILABLE);
    assert_in_range(clock_mono_ms() - t0, 290, 600);
    kill(server.pid, SIGCONT);
    assert_int_equal(cache_sync_command(c, (struct str[]){S("PING")}, 1, &r, &error), ERR_OK);
    cache_sync_free(&c);
}

static void test_urls(void **state)
{
    (void)state;
    static const struct {
        const char *url;
        enum err err;
    } cases[] = {
        {"redis://127.0.0.1:1/0", ERR_OK},
        {"redis://127.0.0.1", ERR_OK},
        {"redis://[::1]:6379/5", ERR_OK},
        {"redis://u:p@127.0.0.1:6379/5", ERR_OK},
        {"redis://127.0.0.1:99999", ERR_INVALID},
        {"redis://127.0.0.1:x", ERR_INVALID},
        {"redis://127.0.0.1/db", ERR_INVALID},
        {"redis://[::1", ERR_INVALID},
        {"redis://u:%zz@127.0.0.1", ERR_INVALID},
        {"rediss://127.0.0.1", ERR_INVALID},
        {"http://127.0.0.1", ERR_INVALID},
        {"unix://relative", ERR_INVALID},
        {"unix:///x?other=1", ERR_INVALID},
        {"unix:///x?db=1", ERR_OK},
        {"", ERR_INVALID},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct cache *c = NULL;
        struct error error = {0};
        char *url = mem_strdup(cases[i].url);
        use(url);
        enum err e = cache_new(loop, &cfg, &c, &error);
        if (e != cases[i].err)
            fail_msg("%s: %s %s", cases[i].url, err_text(e), error.text);
        if (e)
            assert_string_equal(error.field, "redis.url");
        cache_free(&c);
        mem_free(url);
    }
}

static int setup(void **state)
{
    (void)state;
    signal(SIGPIPE, SIG_IGN);
    redis_start(&server);
    loop = loop_new();
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    loop_free(loop);
    redis_end(&server);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_urls),     cmocka_unit_test(test_commands),
        cmocka_unit_test(test_cancel),   cmocka_unit_test(test_hung_then_back),
        cmocka_unit_test(test_subscription_and_restart), cmocka_unit_test(test_password),
        cmocka_unit_test(test_garbage_server), cmocka_unit_test(test_sync),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
