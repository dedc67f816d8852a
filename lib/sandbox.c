/* The seccomp filter of both daemons: a list of what they do after their start, with arguments where a call is wider than the need.
 *
 * Left out on purpose, and tested: starting programs (execve, fork), looking into processes (ptrace, process_vm_*), new listening sockets
 * (bind, listen), sockets of other families, rights (set*id, capset, mount, …), kernel interfaces (bpf, io_uring, perf, keyctl, …),
 * memory that is writable and executable. Libraries may still be loaded late (a resolver module): file mappings that are executable
 * and not writable pass. AF_NETLINK is no crime but a habit of getaddrinfo(): it is told EAFNOSUPPORT in every mode, as the units do,
 * and goes on without. clone3 hides its flags from a filter: ENOSYS makes glibc use clone, which may make threads only. */
#include "pullgate/sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/prctl.h>
#include <linux/sockios.h>
#include <sched.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include <seccomp.h>

#include "pullgate/log.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || defined(PULLGATE_COVERAGE)
#define IS_INSTRUMENTED true
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#define IS_INSTRUMENTED true
#endif
#endif
#ifndef IS_INSTRUMENTED
#define IS_INSTRUMENTED false
#endif

/* ---- what is allowed ----------------------------------------------------------------------------------------------------- */

/* clang-format off */
static const char *const allowed[] = { /* whatever the arguments */
    /* loops and threads */
    "epoll_create1", "epoll_ctl", "epoll_wait", "epoll_pwait", "epoll_pwait2", "eventfd2", "poll", "ppoll", "select", "pselect6",
    "futex", "futex_waitv", "set_robust_list", "rseq", "sched_yield", "sched_getaffinity", "restart_syscall",
    "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "rt_sigpending", "rt_sigtimedwait", "sigaltstack", "exit", "exit_group",
    /* clocks, randomness, who one is */
    "clock_gettime", "clock_getres", "clock_nanosleep", "nanosleep", "gettimeofday", "time", "times", "getrandom", "getcpu",
    "getpid", "gettid", "getppid", "getuid", "geteuid", "getgid", "getegid", "getresuid", "getresgid", "getgroups", "uname", "sysinfo", "getrusage",
    "getrlimit",
    /* memory */
    "brk", "munmap", "mremap", "madvise", "msync", "membarrier",
    /* connections */
    "accept", "accept4", "connect", "getsockname", "getpeername", "getsockopt", "setsockopt", "shutdown", "sendto", "recvfrom", "sendmsg",
    "recvmsg", "sendmmsg", "recvmmsg", "sendfile",
    /* descriptors and files */
    "read", "write", "readv", "writev", "pread64", "pwrite64", "preadv", "pwritev", "preadv2", "pwritev2", "lseek", "close", "dup", "dup2", "dup3",
    "pipe", "pipe2", "open", "openat", "stat", "fstat", "lstat", "newfstatat", "statx", "statfs", "fstatfs", "access", "faccessat", "faccessat2",
    "readlink", "readlinkat", "getdents64", "getcwd", "umask",
    "ftruncate", "fallocate", "fadvise64", "fsync", "fdatasync", "sync_file_range", "flock", "fchmod", "fchown",
    "unlink", "unlinkat", "rename", "renameat", "renameat2", "mkdir", "mkdirat", "link", "linkat", "utimensat",
};
/* clang-format on */

static const char *const by_argument[] = {"mmap", "mprotect", "clone", "socket", "socketpair", "fcntl", "ioctl", "prctl", "prlimit64", "tgkill"};

#define N_ALLOWED (sizeof allowed / sizeof *allowed)
#define N_BY_ARGUMENT (sizeof by_argument / sizeof *by_argument)

const char *sandbox_allowed(unsigned n)
{
    return n < N_ALLOWED ? allowed[n] : n - N_ALLOWED < N_BY_ARGUMENT ? by_argument[n - N_ALLOWED] : NULL;
}

static int rules_of_sockets(scmp_filter_ctx f)
{
    static const int families[] = {AF_INET, AF_INET6, AF_UNIX};
    static const unsigned types[] = {SOCK_STREAM, SOCK_DGRAM}; /* datagrams: the resolver, the service manager */
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < 3; i++)
        for (size_t k = 0; rc == 0 && k < 2; k++)
            rc = seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(socket), 2, SCMP_A0(SCMP_CMP_EQ, (scmp_datum_t)families[i]),
                                  SCMP_A1(SCMP_CMP_MASKED_EQ, (scmp_datum_t) ~(scmp_datum_t)(SOCK_NONBLOCK | SOCK_CLOEXEC), types[k]));
    if (rc == 0)
        rc = seccomp_rule_add(f, SCMP_ACT_ERRNO(EAFNOSUPPORT), SCMP_SYS(socket), 1, SCMP_A0(SCMP_CMP_EQ, AF_NETLINK));
    if (rc == 0)
        rc = seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(socketpair), 1, SCMP_A0(SCMP_CMP_EQ, AF_UNIX));
    return rc;
}

static int rules_of_memory(scmp_filter_ctx f)
{
    int rc = seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(mmap), 1, SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));
    if (rc == 0)
        rc = seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(mmap), 2, SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_WRITE, 0),
                              SCMP_A3(SCMP_CMP_MASKED_EQ, MAP_ANONYMOUS, 0));
    if (rc == 0)
        rc = seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(mprotect), 1, SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));
    return rc;
}

static int rules_of_threads(scmp_filter_ctx f)
{
    int rc = seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(clone), 1, SCMP_A0(SCMP_CMP_MASKED_EQ, CLONE_THREAD, CLONE_THREAD));
    if (rc == 0)
        rc = seccomp_rule_add(f, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0);
    if (rc == 0) /* abort() */
        rc = seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(tgkill), 1, SCMP_A0(SCMP_CMP_EQ, (scmp_datum_t)getpid()));
    if (rc == 0)
        rc = seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(prctl), 1, SCMP_A0(SCMP_CMP_EQ, PR_SET_NAME));
    if (rc == 0)
        rc = seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(prlimit64), 2, SCMP_A0(SCMP_CMP_EQ, 0), SCMP_A2(SCMP_CMP_EQ, 0)); /* reads only */
    return rc;
}

static int rules_of_descriptors(scmp_filter_ctx f)
{
    static const int commands[] = {F_DUPFD, F_DUPFD_CLOEXEC, F_GETFD, F_SETFD, F_GETFL,     F_SETFL,
                                   F_GETLK, F_SETLK,         F_SETLKW, F_OFD_GETLK, F_OFD_SETLK, F_OFD_SETLKW};
    static const unsigned long requests[] = {FIONREAD, FIONBIO, TIOCOUTQ, TCGETS, TIOCGWINSZ};
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < sizeof commands / sizeof *commands; i++)
        rc = seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(fcntl), 1, SCMP_A1(SCMP_CMP_EQ, (scmp_datum_t)commands[i]));
    for (size_t i = 0; rc == 0 && i < sizeof requests / sizeof *requests; i++)
        rc = seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(ioctl), 1, SCMP_A1(SCMP_CMP_EQ, requests[i]));
    return rc;
}

static int rules_add(scmp_filter_ctx f)
{
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < N_ALLOWED; i++) {
        int nr = seccomp_syscall_resolve_name(allowed[i]);
        if (nr == __NR_SCMP_ERROR)
            continue; /* not of this library's kernel headers: then no program here uses it either */
        rc = seccomp_rule_add(f, SCMP_ACT_ALLOW, nr, 0);
    }
    if (rc == 0)
        rc = rules_of_sockets(f);
    if (rc == 0)
        rc = rules_of_memory(f);
    if (rc == 0)
        rc = rules_of_threads(f);
    if (rc == 0)
        rc = rules_of_descriptors(f);
    return rc;
}

/* ---- a refusal in the mode "errno" ------------------------------------------------------------------------------------------ */

static uint64_t refused;
static uint32_t told[512 / 32]; /* by number: one line each */

uint64_t sandbox_refused(void)
{
    return __atomic_load_n(&refused, __ATOMIC_RELAXED);
}

/* In the thread that made the call, in its place. Nothing here but what a signal handler may do. */
static void on_refused(int signo, siginfo_t *info, void *context)
{
    ucontext_t *uc = context;
    int nr = info->si_syscall;

    (void)signo;
    if (info->si_code <= 0) /* somebody's kill(2): no call of ours, and no register to change */
        return;
#if defined(__x86_64__)
    uc->uc_mcontext.gregs[REG_RAX] = -EPERM;
#elif defined(__aarch64__)
    uc->uc_mcontext.regs[0] = (unsigned long long)-EPERM;
#else
#error "where does this machine return a system call's value?"
#endif
    __atomic_add_fetch(&refused, 1, __ATOMIC_RELAXED);
    if (nr < 0 || nr >= 512 || (__atomic_fetch_or(&told[nr / 32], 1u << (nr % 32), __ATOMIC_RELAXED) & 1u << (nr % 32)))
        return;
    char line[] = "{\"level\":\"error\",\"msg\":\"sandbox: system call 000 was refused\"}\n";
    char *digits = strstr(line, "000");
    digits[0] = (char)('0' + nr / 100);
    digits[1] = (char)('0' + nr / 10 % 10);
    digits[2] = (char)('0' + nr % 10);
    (void)!write(STDERR_FILENO, line, sizeof line - 1);
}

void sandbox_unblock(sigset_t *set)
{
    sigdelset(set, SIGSYS);
}

/* ---- the whole ---------------------------------------------------------------------------------------------------------------- */

enum err sandbox_enter(const char *mode, struct error *reterr)
{
    bool is_kill = strcmp(mode, "kill") == 0;

    if (strcmp(mode, "off") == 0)
        return ERR_OK;
    if (IS_INSTRUMENTED) {
        log_info("sandbox: off in this build, which is instrumented");
        return ERR_OK;
    }
    if (!is_kill) {
        struct sigaction sa = {.sa_sigaction = on_refused, .sa_flags = SA_SIGINFO | SA_NODEFER};
        sigemptyset(&sa.sa_mask);
        if (sigaction(SIGSYS, &sa, NULL) != 0)
            return error_set(reterr, ERR_INTERNAL, "sandbox: %s", strerror(errno));
    }
    scmp_filter_ctx f = seccomp_init(is_kill ? SCMP_ACT_KILL_PROCESS : SCMP_ACT_TRAP);
    int rc = f == NULL ? -ENOMEM : seccomp_attr_set(f, SCMP_FLTATR_CTL_TSYNC, 1);
    if (rc == 0)
        rc = seccomp_attr_set(f, SCMP_FLTATR_CTL_OPTIMIZE, 2); /* a tree: pulls make many calls */
    if (rc == 0)
        rc = rules_add(f);
    if (rc == 0)
        rc = seccomp_load(f);
    if (f != NULL)
        seccomp_release(f);
    if (rc != 0)
        return error_set(reterr, ERR_UNAVAILABLE, "sandbox: the filter cannot be set: %s; process.sandbox: off goes without", strerror(-rc));
    return ERR_OK;
}
