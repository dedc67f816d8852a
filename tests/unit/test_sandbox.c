/* The seccomp filter, each refusal in a child of its own: what a daemon has no use for ends it (kill) or fails and is counted (errno);
 * what it does goes on. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>
#include <netdb.h>

#include "pullgate/privileges.h"
#include "pullgate/sandbox.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || defined(PULLGATE_COVERAGE)
#define IS_INSTRUMENTED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#define IS_INSTRUMENTED 1
#endif
#endif
#ifndef IS_INSTRUMENTED
#define IS_INSTRUMENTED 0
#endif

static long try_execve(void)
{
    char *const argv[] = {(char[]){"/bin/true"}, NULL};
    return execve("/bin/true", argv, argv + 1);
}
static long try_fork(void)
{
    long pid = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
    if (pid == 0)
        _exit(0);
    return pid;
}
static long try_ptrace(void) { return ptrace(PTRACE_TRACEME, 0, NULL, NULL); }
static long try_packet(void) { return socket(AF_PACKET, SOCK_RAW, 0); }
static long try_raw(void) { return socket(AF_INET, SOCK_RAW, IPPROTO_ICMP); }
static long try_alg(void) { return socket(38, SOCK_SEQPACKET, 0); }
static long try_bind(void)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    return bind(socket(AF_UNIX, SOCK_STREAM, 0), (const struct sockaddr *)&a, sizeof a.sun_family);
}
static long try_listen(void) { return listen(socket(AF_INET, SOCK_STREAM, 0), 1); }
static long try_setuid(void) { return setuid(getuid()); }
static long try_process_vm(void) { return syscall(SYS_process_vm_readv, getppid(), NULL, 0, NULL, 0, 0); }
static long try_bpf(void) { return syscall(SYS_bpf, 0, NULL, 0); }
static long try_io_uring(void) { return syscall(SYS_io_uring_setup, 1, NULL); }
static long try_keyctl(void) { return syscall(SYS_keyctl, 0, 0, 0, 0, 0); }
static long try_mount(void) { return syscall(SYS_mount, NULL, NULL, NULL, 0, NULL); }
static long try_kill(void) { return kill(getppid(), 0); }
static long try_tgkill(void) { return syscall(SYS_tgkill, getppid(), getppid(), 0); }
static long try_wx(void) { return mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED ? -1 : 0; }
static long try_anon_exec(void) { return mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED ? -1 : 0; }
static long try_mprotect_exec(void)
{
    void *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return mprotect(p, 4096, PROT_READ | PROT_EXEC);
}
static long try_setrlimit(void) { return setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0}); }
static long try_dumpable(void) { return prctl(PR_SET_DUMPABLE, 1, 0, 0, 0); }
static long try_tiocsti(void) { return ioctl(0, TIOCSTI, "x"); }
static long try_memfd(void) { return syscall(SYS_memfd_create, "x", 0); }
static long try_symlink(void) { return symlink("/etc/passwd", "/nonexistent/x"); }
static long try_chmod(void) { return syscall(SYS_fchmodat, AT_FDCWD, "/nonexistent", 0777); }

static const struct {
    const char *name;
    long (*run)(void);
} refused[] = {
    {"execve", try_execve},   {"fork", try_fork},           {"ptrace", try_ptrace},     {"AF_PACKET", try_packet},
    {"SOCK_RAW", try_raw},    {"AF_ALG", try_alg},          {"bind", try_bind},         {"listen", try_listen},
    {"setuid", try_setuid},   {"process_vm", try_process_vm}, {"bpf", try_bpf},         {"io_uring", try_io_uring},
    {"keyctl", try_keyctl},   {"mount", try_mount},         {"kill", try_kill},         {"tgkill", try_tgkill},
    {"write+exec", try_wx},   {"anonymous exec", try_anon_exec}, {"mprotect exec", try_mprotect_exec}, {"setrlimit", try_setrlimit},
    {"dumpable", try_dumpable}, {"TIOCSTI", try_tiocsti},   {"memfd", try_memfd},       {"symlink", try_symlink},
    {"fchmodat", try_chmod},
};

/* The child's end: its status as wait() gives it. */
static int in_child(void (*body)(void *), void *arg)
{
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        body(arg);
        _exit(9);
    }
    int status = 0;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return status;
}

static void enter(const char *mode)
{
    struct error error = {0};
    privileges_harden();
    if (sandbox_enter(mode, &error)) {
        fprintf(stderr, "%s\n", error.text);
        _exit(8);
    }
}

static void body_kill(void *arg)
{
    long (*run)(void) = *(long (**)(void))arg;
    enter("kill");
    run();
    _exit(0);
}

static void test_kill(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        long (*run)(void) = refused[i].run;
        int status = in_child(body_kill, &run);
        if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGSYS)
            fail_msg("%s: status %x, not killed by SIGSYS", refused[i].name, (unsigned)status);
    }
}

static void body_errno(void *arg)
{
    long (*run)(void) = *(long (**)(void))arg;
    int null = open("/dev/null", O_WRONLY);
    enter("errno");
    dup2(null, 2);
    errno = 0;
    long rc = run();
    _exit(rc == -1 && errno == EPERM && sandbox_refused() == 1 ? 0 : 7);
}

static void test_errno(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        long (*run)(void) = refused[i].run;
        int status = in_child(body_errno, &run);
        if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
            fail_msg("%s: status %x, not EPERM once", refused[i].name, (unsigned)status);
    }
}

static void body_foreign_signal(void *arg)
{
    (void)arg;
    enter("errno");
    int rc = raise(SIGSYS);
    _exit(rc == 0 && sandbox_refused() == 0 ? 0 : 7);
}

/* A SIGSYS that somebody sends is no system call: nothing is counted, and no register changed. */
static void test_foreign_signal(void **state)
{
    (void)state;
    int status = in_child(body_foreign_signal, NULL);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

static void *nothing(void *arg)
{
    return arg;
}

/* A resolver's thread, a log opened anew, a name looked up, a child's memory: all after the filter. */
static void body_life(void *arg)
{
    (void)arg;
    enter("kill");
    pthread_t t;
    if (pthread_create(&t, NULL, nothing, NULL) || pthread_join(t, NULL))
        _exit(1);
    if (socket(AF_NETLINK, SOCK_RAW, 0) != -1 || errno != EAFNOSUPPORT)
        _exit(2);
    struct addrinfo *found = NULL, hints = {.ai_flags = AI_ADDRCONFIG, .ai_socktype = SOCK_STREAM};
    if (getaddrinfo("localhost", "80", &hints, &found) || !found)
        _exit(3);
    freeaddrinfo(found);
    char name[] = "/tmp/pullgate-sandbox-XXXXXX";
    int fd = mkstemp(name);
    if (fd < 0 || write(fd, "x", 1) != 1 || fsync(fd) || ftruncate(fd, 0) || unlink(name))
        _exit(4);
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) || socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0) < 0)
        _exit(5);
    void *big = malloc(64u << 20);
    memset(big, 1, 64u << 20);
    big = realloc(big, 128u << 20);
    free(big);
    if (sysconf(_SC_NPROCESSORS_ONLN) < 1)
        _exit(6);
    _exit(0);
}

static void test_life_goes_on(void **state)
{
    (void)state;
    int status = in_child(body_life, NULL);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

static void body_abort(void *arg)
{
    (void)arg;
    enter("kill");
    abort();
}

static void test_abort_is_an_abort(void **state)
{
    (void)state;
    int status = in_child(body_abort, NULL);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), SIGABRT);
}

/* A thread that was there before is under the filter too. */
static int go[2];

static void *late_execve(void *arg)
{
    char c;
    (void)!read(go[0], &c, 1);
    try_execve();
    return arg;
}

static void body_other_thread(void *arg)
{
    (void)arg;
    pthread_t t;
    if (pipe(go) || pthread_create(&t, NULL, late_execve, NULL))
        _exit(1);
    enter("kill");
    (void)!write(go[1], "", 1);
    pthread_join(t, NULL);
    _exit(0);
}

static void test_earlier_threads(void **state)
{
    (void)state;
    int status = in_child(body_other_thread, NULL);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), SIGSYS);
}

static void test_off(void **state)
{
    (void)state;
    assert_int_equal(sandbox_enter("off", NULL), ERR_OK);
    assert_int_equal(try_symlink(), -1);
    assert_int_equal(errno, ENOENT);
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "--allowed") == 0) { /* for the test that compares the units with the filter */
        for (unsigned n = 0; sandbox_allowed(n); n++)
            puts(sandbox_allowed(n));
        return 0;
    }
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kill), cmocka_unit_test(test_errno), cmocka_unit_test(test_foreign_signal), cmocka_unit_test(test_life_goes_on),
        cmocka_unit_test(test_abort_is_an_abort), cmocka_unit_test(test_earlier_threads), cmocka_unit_test(test_off),
    };
    static const struct CMUnitTest instrumented[] = {cmocka_unit_test(test_off)};
    return IS_INSTRUMENTED ? cmocka_run_group_tests(instrumented, NULL, NULL) : cmocka_run_group_tests(tests, NULL, NULL);
}
