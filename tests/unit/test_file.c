/* Files in parts: short and interrupted calls, limits, and what is left behind by a failure. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "pullgate/file.h"
#include "pullgate/mem.h"

static char directory[] = "/tmp/pullgate-test-file-XXXXXX";

static int setup(void **state)
{
    (void)state;
    return mkdtemp(directory) == NULL;
}

static int teardown(void **state)
{
    (void)state;
    return rmdir(directory);
}

static const char *name(const char *file)
{
    static char path[128];
    snprintf(path, sizeof path, "%s/%s", directory, file);
    return path;
}

static void on_signal(int n)
{
    (void)n;
}

struct drain {
    int fd;
    pthread_t writer;
    struct strbuf got;
};

/* Reads a pipe slowly, and interrupts who fills it. */
static void *drain(void *arg)
{
    struct drain *d = arg;
    char buf[4096];
    ssize_t n;
    while ((n = read(d->fd, buf, sizeof buf)) > 0) {
        sb_add(&d->got, (struct str){buf, (size_t)n});
        pthread_kill(d->writer, SIGUSR1);
        nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
    }
    return NULL;
}

static void test_interrupted_and_short(void **state)
{
    int p[2];
    pthread_t t;
    const size_t n = 600000; /* far more than a pipe holds: each write is short */
    char *bytes = mem_alloc(n);
    (void)state;
    for (size_t i = 0; i < n; i++)
        bytes[i] = (char)(i * 31 >> 3);
    struct sigaction act = {.sa_handler = on_signal};
    assert_int_equal(sigaction(SIGUSR1, &act, NULL), 0); /* no SA_RESTART */
    assert_int_equal(pipe2(p, O_CLOEXEC), 0);
    struct drain d = {.fd = p[0], .writer = pthread_self()};
    assert_int_equal(pthread_create(&t, NULL, drain, &d), 0);
    assert_true(file_write_all(p[1], (struct str){bytes, n}));
    close(p[1]);
    pthread_join(t, NULL);
    assert_int_equal(d.got.n, n);
    assert_memory_equal(d.got.p, bytes, n);
    close(p[0]);
    sb_free(&d.got);
    mem_free(bytes);
}

static void test_read_in_parts(void **state)
{
    int p[2];
    char buf[16];
    struct strbuf all = {0};
    (void)state;
    assert_int_equal(pipe2(p, O_CLOEXEC), 0);
    assert_true(file_write_all(p[1], S("abcdefghij")));
    assert_int_equal(file_read_full(p[0], buf, 4), 4);
    assert_memory_equal(buf, "abcd", 4);
    close(p[1]);
    assert_int_equal(file_read_full(p[0], buf, sizeof buf), 6);
    assert_int_equal(file_read_full(p[0], buf, sizeof buf), 0);
    close(p[0]);
    assert_int_equal(file_read_full(p[0], buf, sizeof buf), -1);
    assert_false(file_read_rest(p[0], 100, &all));
    assert_int_equal(errno, EBADF);
    sb_free(&all);
}

static void test_rest_and_limit(void **state)
{
    static const size_t sizes[] = {0, 1, 4095, 4096, 4097, 20000};
    (void)state;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        struct strbuf out = {0}, in = {0};
        for (size_t k = 0; k < sizes[i]; k++)
            sb_add_char(&out, (char)('a' + k % 26));
        int fd = open(name("rest"), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        assert_true(file_write_at(fd, sb_str(&out), 0));
        assert_true(file_read_rest(fd, sizes[i], &in));
        assert_int_equal(in.n, sizes[i]);
        assert_true(str_eq(sb_str(&in), sb_str(&out)));
        assert_int_equal(in.p[in.n], '\0');
        if (sizes[i] > 0) {
            assert_int_equal(lseek(fd, 0, SEEK_SET), 0);
            sb_reset(&in);
            assert_false(file_read_rest(fd, sizes[i] - 1, &in));
            assert_int_equal(errno, EFBIG);
        }
        close(fd);
        unlink(name("rest"));
        sb_free(&out);
        sb_free(&in);
    }
}

static void test_write_at(void **state)
{
    char buf[16];
    (void)state;
    int fd = open(name("at"), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    assert_true(file_write_at(fd, S("world"), 6));
    assert_true(file_write_at(fd, S("hello "), 0));
    assert_true(file_read_small(name("at"), buf, sizeof buf));
    assert_string_equal(buf, "hello world");
    assert_true(file_read_small(name("at"), buf, 6));
    assert_string_equal(buf, "hello");
    close(fd);
    unlink(name("at"));
    assert_false(file_read_small(name("at"), buf, sizeof buf));
    assert_int_equal(errno, ENOENT);
    assert_false(file_read_small(directory, buf, sizeof buf));
    assert_int_equal(errno, EISDIR);
    assert_false(file_write_at(-1, S("x"), 0));
}

static void test_whole(void **state)
{
    char buf[16];
    struct stat st;
    (void)state;
    assert_true(file_write_whole(name("ports"), S("first")));
    assert_true(file_write_whole(name("ports"), S("2")));
    assert_true(file_read_small(name("ports"), buf, sizeof buf));
    assert_string_equal(buf, "2");
    unlink(name("ports"));
    /* A rename that fails leaves nothing of ours. */
    assert_int_equal(mkdir(name("ports"), 0700), 0);
    assert_false(file_write_whole(name("ports"), S("3")));
    assert_int_equal(errno, EISDIR);
    assert_int_equal(stat(name("ports.tmp"), &st), -1);
    rmdir(name("ports"));
    assert_false(file_write_whole("/nowhere/at/all", S("3")));
    assert_int_equal(errno, ENOENT);
}

static void test_sync_directory(void **state)
{
    (void)state;
    assert_true(file_sync_directory(name("x"))); /* the file itself is not asked for */
    assert_true(file_sync_directory("/x"));
    assert_true(file_sync_directory("x"));
    assert_false(file_sync_directory("/nowhere/at/all"));
    assert_int_equal(errno, ENOENT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_interrupted_and_short), cmocka_unit_test(test_read_in_parts), cmocka_unit_test(test_rest_and_limit),
        cmocka_unit_test(test_write_at),              cmocka_unit_test(test_whole),       cmocka_unit_test(test_sync_directory),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
