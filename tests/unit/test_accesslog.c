/* accesslog.c: whole lines of JSON, bounded, and never a wait. */
#include "accesslog.c"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "cpu_time.h"

#include "pullgate/jv.h"

static struct config cfg;
static struct proxy proxy;
static struct worker worker;
static char dir[] = "/tmp/pullgate-log-XXXXXX";
static char path[64], moved[64];

static void tick(void *ctx)
{
    (void)ctx;
}

static void run_for(struct loop *l, uint64_t ms)
{
    uint64_t end = clock_mono_ms() + ms;
    struct timer *t = timer_new(l, tick, NULL);
    while (clock_mono_ms() < end) {
        timer_set(t, 5);
        loop_run_once(l);
    }
    timer_free(&t);
}

static char *slurp(const char *file)
{
    struct strbuf b = {0};
    char buf[4096];
    size_t n;
    FILE *f = fopen(file, "r");
    assert_non_null(f);
    sb_add(&b, S(""));
    while ((n = fread(buf, 1, sizeof buf, f)))
        sb_add(&b, (struct str){buf, n});
    fclose(f);
    return sb_take(&b);
}

static struct access_line sample(void)
{
    return (struct access_line){.worker = &worker,
                                .id = "01J0000000000000000000000",
                                .peer = "10.1.2.3",
                                .method = S("GET"),
                                .action = "manifest",
                                .repository = S("shop/api"),
                                .reference = S("1.2.0"),
                                .status = 200,
                                .cause = "ok",
                                .reason = "granted",
                                .customer = S("acme"),
                                .customer_id = S("cus_1"),
                                .credential_id = S("crd_1"),
                                .license_id = S("lic_1"),
                                .bytes = 517,
                                .total_us = 42,
                                .first_byte_us = 40,
                                .agent = S("containerd/1.6.20"),
                                .source = "cache"};
}

static void open_log(struct loop **l, struct accesslog **a, struct accesslog_writer **w, char *where)
{
    struct error error = {0};
    cfg.log.access_path = where;
    *l = loop_new();
    if (accesslog_new(&cfg, a, &error))
        fail_msg("%s", error.text);
    *w = accesslog_writer_new(*a, *l);
}

static void close_log(struct loop *l, struct accesslog **a, struct accesslog_writer **w)
{
    accesslog_writer_free(w);
    accesslog_free(a);
    loop_free(l);
}

static void test_lines(void **state)
{
    static const char hostile[] = "x\"}\n{\"status\":200\\ \x01\x7f\xff\xc3\x28 \xf0\x9f\x98\x80";
    struct loop *l;
    struct accesslog *a;
    struct accesslog_writer *w;
    struct access_line line = sample();
    char quotes[4000];
    (void)state;
    memset(quotes, '\x01', sizeof quotes);
    open_log(&l, &a, &w, path);
    accesslog_write(w, &line);
    line.agent = (struct str){hostile, sizeof hostile - 1};
    accesslog_write(w, &line);
    line.agent = (struct str){quotes, sizeof quotes};
    char detail[400];
    memset(detail, 2, sizeof detail);
    detail[399] = '\0';
    line.detail = detail;
    accesslog_write(w, &line);
    accesslog_write(w, &(struct access_line){.worker = &worker, .peer = "10.0.0.1", .status = 400, .cause = "refused", .reason = "bad_head"});
    run_for(l, 150); /* by its timer */
    char *text = slurp(path);
    struct str rest = str_c(text), row;
    int n = 0;
    while (str_next(&rest, '\n', &row)) {
        struct jv *v;
        struct error error = {0};
        if (row.n == 0)
            break;
        assert_true(row.n < LINE_MAX_BYTES);
        if (jv_parse(row, &JV_LIMITS_API, &v, &error))
            fail_msg("%s: %.*s", error.text, STR(row));
        if (n == 0) {
            assert_string_equal(jv_get_c(v, "customer", ""), "acme");
            assert_string_equal(jv_get_c(v, "proxy", ""), "host:1");
            assert_int_equal(jv_get_int(v, "t_total_us", 0), 42);
            assert_int_equal(jv_get_str(v, "time").n, 24);
            assert_string_equal(jv_get_c(v, "agent", ""), "containerd/1.6.20");
            int64_t t;
            assert_int_equal(clock_parse_instant(jv_get_str(v, "time"), &t, NULL), ERR_OK);
            assert_in_range(t, clock_now_s() - 5, clock_now_s() + 1);
        }
        assert_int_equal(jv_get_int(v, "status", 0), n == 3 ? 400 : 200);
        assert_string_equal(jv_get_c(v, "cause", ""), n == 3 ? "refused" : "ok");
        if (n == 2)
            assert_null(jv_get(v, "agent")); /* did not fit */
        if (n == 3)
            assert_null(jv_get(v, "repository"));
        jv_free(v);
        n++;
    }
    assert_int_equal(n, 4);
    mem_free(text);
    /* rotated: the old name keeps the old lines, the new file gets the rest */
    assert_int_equal(rename(path, moved), 0);
    accesslog_reopen(a);
    accesslog_write(w, &line);
    close_log(l, &a, &w);
    text = slurp(path);
    assert_int_equal(lines_in(str_c(text)), 1);
    mem_free(text);
}

/* A pipe that nobody reads: no wait, bounded memory, whole lines, the rest counted. */
static void test_full_pipe(void **state)
{
    int fds[2], saved = dup(STDOUT_FILENO);
    struct loop *l;
    struct accesslog *a;
    struct accesslog_writer *w;
    struct access_line line = sample();
    uint64_t t0, read_lines = 0;
    static char buf[1 << 20];
    size_t n = 0;
    (void)state;
    assert_int_equal(pipe(fds), 0);
    fflush(stdout);
    dup2(fds[1], STDOUT_FILENO);
    char empty[] = "";
    open_log(&l, &a, &w, empty);
    assert_int_equal(a->sink, SINK_PIPE);
    t0 = clock_mono_ms();
    for (int i = 0; i < 20000; i++)
        accesslog_write(w, &line);
    run_for(l, 250);
    t0 = clock_mono_ms() - t0;
    size_t held = w->buf.n;
    dup2(saved, STDOUT_FILENO);
    close(saved);
    close(fds[1]);
    assert_true(t0 < 2000);
    assert_true(held <= HELD_BYTES + LINE_MAX_BYTES);
    assert_true(accesslog_lost(a) > 0);
    uint64_t lost_before = accesslog_lost(a);
    uint64_t held_lines = lines_in(sb_str(&w->buf));
    assert_false(fcntl(fds[0], F_GETFL) & O_NONBLOCK); /* the shared description is as it was */
    fcntl(fds[0], F_SETFL, O_NONBLOCK);
    for (ssize_t got; (got = read(fds[0], buf + n, sizeof buf - n)) > 0;)
        n += (size_t)got;
    read_lines = lines_in((struct str){buf, n});
    assert_int_equal(buf[n - 1], '\n');
    assert_int_equal(read_lines + held_lines + lost_before, 20000);
    run_for(l, 150); /* there is room again */
    assert_true(w->buf.n < held);
    close(fds[0]);
    close_log(l, &a, &w); /* the reader has gone: SIGPIPE is ignored, the rest is counted */
}

static void test_off_and_bad_path(void **state)
{
    struct loop *l;
    struct accesslog *a;
    struct accesslog_writer *w;
    struct access_line line = sample();
    struct error error = {0};
    char off[] = "off", bad[] = "/nonexistent/dir/access.log";
    (void)state;
    open_log(&l, &a, &w, off);
    accesslog_write(w, &line);
    assert_int_equal(w->buf.n, 0);
    close_log(l, &a, &w);
    cfg.log.access_path = bad;
    assert_int_equal(accesslog_new(&cfg, &a, &error), ERR_INVALID);
    assert_string_equal(error.field, "log.access_path");
}

/* Every byte at every place of every short length gives what the buffer's own escaping gives. */
static void test_text_is_escaped_as_a_buffer_would(void **state)
{
    struct strbuf want = {0};
    char text[20], out[200];
    (void)state;
    for (size_t n = 0; n < sizeof text; n++)
        for (size_t at = 0; at == 0 || at < n; at++)
            for (int byte = 0; byte < 256; byte++) {
                struct textline t = {.p = out, .end = out + sizeof out};
                for (size_t i = 0; i < n; i++)
                    text[i] = (char)('!' + 3 * i); /* '!' and '$' on: no quote, no backslash among them */
                if (n)
                    text[at] = (char)byte;
                textline_json(&t, (struct str){text, n}, sizeof text);
                sb_reset(&want);
                sb_add_json(&want, (struct str){text, n});
                assert_false(t.cut);
                assert_int_equal(t.p - out, want.n);
                assert_memory_equal(out, want.p, want.n);
            }
    struct textline t = {.p = out, .end = out + 9};
    textline_json(&t, S("12345678"), 100);
    assert_true(t.cut);
    t = (struct textline){.p = out, .end = out + 10};
    textline_json(&t, S("12345678"), 100);
    assert_false(t.cut);
    sb_free(&want);
}

static void test_cost(void **state)
{
    enum { ROUNDS = 500000 };
    struct loop *l;
    struct accesslog *a;
    struct accesslog_writer *w;
    struct access_line line = sample();
    char null[] = "/dev/null";
    (void)state;
    open_log(&l, &a, &w, null);
    double t0 = cpu_time_ns();
    for (int i = 0; i < ROUNDS; i++)
        accesslog_write(w, &line);
    print_message("accesslog_write: %.0f ns\n", (cpu_time_ns() - t0) / ROUNDS);
    close_log(l, &a, &w);
}

static int setup(void **state)
{
    (void)state;
    signal(SIGPIPE, SIG_IGN);
    log_set_level(LOG_LEVEL_ERROR);
    snprintf(proxy.instance, sizeof proxy.instance, "host:1");
    worker.proxy = &proxy;
    if (!mkdtemp(dir))
        return 1;
    snprintf(path, sizeof path, "%s/access.log", dir);
    snprintf(moved, sizeof moved, "%s/access.log.1", dir);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    unlink(path);
    unlink(moved);
    rmdir(dir);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_lines), cmocka_unit_test(test_full_pipe), cmocka_unit_test(test_off_and_bad_path),
                                       cmocka_unit_test(test_text_is_escaped_as_a_buffer_would), cmocka_unit_test(test_cost)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
