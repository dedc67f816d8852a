/* The registry: sums over shards, histograms, scales, labels, and what a scrape looks like to the letter. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "pullgate/clock.h"
#include "pullgate/mem.h"
#include "pullgate/metrics.h"

static const char *const colours[] = {"red", "green"};
static const char *const sizes[] = {"s", "m", "l"};
static const uint64_t bounds_us[] = {100, 1500, 1000000};

enum { F_PLAIN, F_TWO, F_TIME, F_LOWEST, F_HIGHEST, F_TIME_OF, FAMILIES };
static const struct metrics_family families[FAMILIES] = {
    [F_PLAIN] = {.name = "plain_total", .help = "Plain.", .type = METRICS_COUNTER},
    [F_TWO] = {.name = "two_total", .help = "Two labels.", .type = METRICS_COUNTER, .labels = {{"colour", colours, 2}, {"size", sizes, 3}}, .only_seen = true},
    [F_TIME] = {.name = "time_seconds", .help = "Time.", .type = METRICS_HISTOGRAM, .bounds = bounds_us, .n_bounds = 3, .scale = 1000000},
    [F_LOWEST] = {.name = "lowest", .help = "Lowest.", .type = METRICS_GAUGE, .merge = METRICS_MIN},
    [F_HIGHEST] = {.name = "highest_seconds", .help = "Highest.", .type = METRICS_GAUGE, .merge = METRICS_MAX, .scale = 1000},
    [F_TIME_OF] = {.name = "of_seconds", .help = "Of.", .type = METRICS_HISTOGRAM, .labels = {{"colour", colours, 2}}, .bounds = bounds_us, .n_bounds = 3,
                   .scale = 1000000, .only_seen = true},
};

static void test_text(void **state)
{
    struct metrics *m = metrics_new(families, FAMILIES, 2);
    struct metrics_shard *a = metrics_shard(m, 0), *b = metrics_shard(m, 1), *process = metrics_shard(m, 2);
    struct strbuf text = {0};
    (void)state;

    metrics_add(a, F_PLAIN, 0, 2);
    metrics_add(b, F_PLAIN, 0, 3);
    metrics_add(process, F_PLAIN, 0, 10);
    metrics_add(b, F_TWO, 1 * 3 + 2, 7); /* green, l */
    metrics_observe(a, F_TIME, 0, 100);  /* a bound counts as below it */
    metrics_observe(a, F_TIME, 0, 101);
    metrics_observe(b, F_TIME, 0, 2000000);
    metrics_set(a, F_LOWEST, 0, 1);
    metrics_set(b, F_LOWEST, 0, 0);
    metrics_set(a, F_HIGHEST, 0, 2500);
    metrics_set(b, F_HIGHEST, 0, 40);
    metrics_observe(b, F_TIME_OF, 1, 0);
    metrics_write(m, &text);
    assert_string_equal(text.p, "# HELP plain_total Plain.\n# TYPE plain_total counter\nplain_total 15\n"
                                "# HELP two_total Two labels.\n# TYPE two_total counter\ntwo_total{colour=\"green\",size=\"l\"} 7\n"
                                "# HELP time_seconds Time.\n# TYPE time_seconds histogram\n"
                                "time_seconds_bucket{le=\"0.0001\"} 1\ntime_seconds_bucket{le=\"0.0015\"} 2\ntime_seconds_bucket{le=\"1\"} 2\n"
                                "time_seconds_bucket{le=\"+Inf\"} 3\ntime_seconds_sum 2.000201\ntime_seconds_count 3\n"
                                "# HELP lowest Lowest.\n# TYPE lowest gauge\nlowest 0\n"
                                "# HELP highest_seconds Highest.\n# TYPE highest_seconds gauge\nhighest_seconds 2.5\n"
                                "# HELP of_seconds Of.\n# TYPE of_seconds histogram\n"
                                "of_seconds_bucket{colour=\"green\",le=\"0.0001\"} 1\nof_seconds_bucket{colour=\"green\",le=\"0.0015\"} 1\n"
                                "of_seconds_bucket{colour=\"green\",le=\"1\"} 1\nof_seconds_bucket{colour=\"green\",le=\"+Inf\"} 1\n"
                                "of_seconds_sum{colour=\"green\"} 0\nof_seconds_count{colour=\"green\"} 1\n");
    sb_free(&text);
    metrics_free(&m);
    assert_null(m);
}

/* A gauge that is the least of the workers' is not pulled down by the process's own shard, which never sets it. */
static void test_process_shard_is_no_worker(void **state)
{
    struct metrics *m = metrics_new(families, FAMILIES, 1);
    struct strbuf text = {0};
    (void)state;
    metrics_set(metrics_shard(m, 0), F_LOWEST, 0, 1);
    metrics_write(m, &text);
    assert_non_null(strstr(text.p, "\nlowest 1\n"));
    sb_free(&text);
    metrics_free(&m);
}

static void test_label_values_are_escaped(void **state)
{
    struct strbuf text = {0};
    (void)state;
    metrics_write_line(&text, "x", "id", S("a\"b\\c\nd"), "class", S("2xx"), 3);
    metrics_write_line(&text, "y", NULL, (struct str){0}, NULL, (struct str){0}, 0);
    assert_string_equal(text.p, "x{id=\"a\\\"b\\\\c\\nd\",class=\"2xx\"} 3\ny 0\n");
    sb_free(&text);
}

static void test_process(void **state)
{
    struct metrics *m = metrics_new(families, FAMILIES, 1); /* notes the start */
    struct strbuf text = {0};
    (void)state;
    uint64_t space = 0, resident = 0;
    assert_true(metrics_memory(&space, &resident));
    assert_true(resident > 100000 && space > resident);
    metrics_write_process(&text);
    for (const char *const *name = (const char *const[]){"process_cpu_seconds_total ", "process_open_fds ", "process_max_fds ",
                                                         "process_resident_memory_bytes ", "process_start_time_seconds ", NULL};
         *name; name++)
        assert_non_null(strstr(text.p, *name));
    assert_null(strstr(text.p, "process_open_fds 0\n"));
    assert_null(strstr(text.p, "process_start_time_seconds 0\n"));
    sb_free(&text);
    metrics_free(&m);
}

/* Not asserted, only shown: what a request pays. */
static void test_cost(void **state)
{
    enum { ROUNDS = 10000000 };
    struct metrics *m = metrics_new(families, FAMILIES, 1);
    struct metrics_shard *s = metrics_shard(m, 0);
    (void)state;
    uint64_t start = clock_mono_us();
    for (unsigned i = 0; i < ROUNDS; i++) {
        metrics_add(s, F_TWO, i % 6, 1);
        __asm__ volatile("" ::: "memory");
    }
    uint64_t added = clock_mono_us();
    for (unsigned i = 0; i < ROUNDS; i++)
        metrics_observe(s, F_TIME, 0, i % 2000);
    uint64_t observed = clock_mono_us();
    printf("metrics_add: %.1f ns, metrics_observe: %.1f ns\n", (double)(added - start) * 1000 / ROUNDS, (double)(observed - added) * 1000 / ROUNDS);
    metrics_free(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_text),
        cmocka_unit_test(test_process_shard_is_no_worker),
        cmocka_unit_test(test_label_values_are_escaped),
        cmocka_unit_test(test_process),
        cmocka_unit_test(test_cost),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
