/* Preloaded into the daemons by test_sweep.py: the n-th allocation, or the n-th call into the kernel, fails once, and which one it was
 * is left in the control file (struct control, mapped; the test writes it). Everything it does the kernel may do as well, except that
 * calls which cannot fail for good arguments (clock_gettime, futexes, epoll_wait) are left alone. It knows nothing of the daemons. */
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <fcntl.h>
#include <netdb.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <unistd.h>

struct control { /* int32 each, in the order of test_sweep.py */
    atomic_int alloc_at, call_at; /* the n-th from now fails; 0: none */
    atomic_int allocs, calls;     /* how many there were */
    atomic_int hit;               /* 1: it happened */
    atomic_int errno_;            /* what the call says; 0: what fits it */
    char name[64];                /* of the call that failed */
};

static struct control none, *ctl = &none;

__attribute__((constructor)) static void start(void)
{
    const char *path = getenv("SWEEPSYS_CONTROL");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    void *p = fd >= 0 ? mmap(NULL, sizeof *ctl, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : MAP_FAILED;

    if (fd >= 0)
        close(fd);
    if (p != MAP_FAILED)
        ctl = p;
}

/* Where it failed, into the daemon's log, when somebody looks for it. */
static void trace(void)
{
    void *at[24];

    if (getenv("SWEEPSYS_TRACE") != NULL)
        backtrace_symbols_fd(at, backtrace(at, 24), 2);
}

static int due(atomic_int *at, const char *name)
{
    int left = atomic_load_explicit(at, memory_order_relaxed);

    while (left > 0)
        if (atomic_compare_exchange_weak(at, &left, left - 1)) {
            if (left > 1)
                return 0;
            strncpy(ctl->name, name, sizeof ctl->name - 1);
            atomic_store(&ctl->hit, 1);
            trace();
            return 1;
        }
    return 0;
}

/* libseccomp 2.5.4 loads what it made of a filter although it had no memory for parts of it, and what then happens to the process, which
 * has served nobody yet, is anything between a kill and a wait. It has no allocator to set: its allocations do not fail here. */
static int is_spared(void *caller)
{
    Dl_info at;

    return atomic_load_explicit(&ctl->alloc_at, memory_order_relaxed) == 1 && dladdr(caller, &at) != 0 && at.dli_fname != NULL &&
           strstr(at.dli_fname, "libseccomp") != NULL;
}

/* The size says nothing: it is the machine that has no memory. */
static int alloc_fails(const char *name, void *caller)
{
    atomic_fetch_add_explicit(&ctl->allocs, 1, memory_order_relaxed);
    if (is_spared(caller) || !due(&ctl->alloc_at, name))
        return 0;
    errno = ENOMEM;
    return 1;
}

extern void *__libc_malloc(size_t n), *__libc_calloc(size_t k, size_t n), *__libc_realloc(void *p, size_t n);
void *malloc(size_t n)
{
    return alloc_fails("malloc", __builtin_return_address(0)) ? NULL : __libc_malloc(n);
}
void *calloc(size_t k, size_t n)
{
    return alloc_fails("calloc", __builtin_return_address(0)) ? NULL : __libc_calloc(k, n);
}
void *realloc(void *p, size_t n)
{
    return alloc_fails("realloc", __builtin_return_address(0)) ? NULL : __libc_realloc(p, n);
}

static int fails(const char *name, int e)
{
    int keep = errno, want = atomic_load_explicit(&ctl->errno_, memory_order_relaxed);

    atomic_fetch_add_explicit(&ctl->calls, 1, memory_order_relaxed);
    errno = keep;
    if (!due(&ctl->call_at, name))
        return 0;
    errno = want ? want : e;
    return 1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define CALL(ret, name, params, args, e)                                                                                                   \
    ret name params                                                                                                                        \
    {                                                                                                                                      \
        static ret(*go) params;                                                                                                            \
        if (go == NULL)                                                                                                                    \
            go = REAL(name);                                                                                                               \
        return fails(#name, e) ? (ret)-1 : go args;                                                                                        \
    }

CALL(int, socket, (int d, int t, int p), (d, t, p), EMFILE)
CALL(int, connect, (int f, const struct sockaddr *a, socklen_t n), (f, a, n), ENETUNREACH)
CALL(int, bind, (int f, const struct sockaddr *a, socklen_t n), (f, a, n), EADDRINUSE)
CALL(int, listen, (int f, int n), (f, n), EADDRINUSE)
CALL(int, accept4, (int f, struct sockaddr *a, socklen_t *n, int k), (f, a, n, k), EMFILE)
CALL(int, getsockname, (int f, struct sockaddr *a, socklen_t *n), (f, a, n), ENOBUFS)
CALL(int, getsockopt, (int f, int l, int o, void *v, socklen_t *n), (f, l, o, v, n), ENOBUFS)
CALL(int, setsockopt, (int f, int l, int o, const void *v, socklen_t n), (f, l, o, v, n), ENOBUFS)
CALL(int, socketpair, (int d, int t, int p, int v[2]), (d, t, p, v), EMFILE)
CALL(ssize_t, recv, (int f, void *p, size_t n, int k), (f, p, n, k), ECONNRESET)
CALL(ssize_t, send, (int f, const void *p, size_t n, int k), (f, p, n, k), EPIPE)
CALL(ssize_t, sendmsg, (int f, const struct msghdr *m, int k), (f, m, k), EPIPE)
CALL(ssize_t, readv, (int f, const struct iovec *v, int n), (f, v, n), EIO)
CALL(ssize_t, writev, (int f, const struct iovec *v, int n), (f, v, n), EIO)
CALL(ssize_t, pread, (int f, void *p, size_t n, off_t at), (f, p, n, at), EIO)
CALL(ssize_t, pread64, (int f, void *p, size_t n, off64_t at), (f, p, n, at), EIO)
CALL(ssize_t, pwrite, (int f, const void *p, size_t n, off_t at), (f, p, n, at), ENOSPC)
CALL(ssize_t, pwrite64, (int f, const void *p, size_t n, off64_t at), (f, p, n, at), ENOSPC)
CALL(ssize_t, sendfile, (int o, int i, off_t *at, size_t n), (o, i, at, n), EIO)
CALL(int, fsync, (int f), (f), EIO)
CALL(int, fdatasync, (int f), (f), EIO)
CALL(int, ftruncate, (int f, off_t n), (f, n), ENOSPC)
CALL(int, ftruncate64, (int f, off64_t n), (f, n), ENOSPC)
CALL(int, fallocate, (int f, int m, off_t at, off_t n), (f, m, at, n), ENOSPC)
CALL(int, flock, (int f, int op), (f, op), ENOLCK)
CALL(int, fchmod, (int f, mode_t m), (f, m), EPERM)
CALL(int, fstat, (int f, struct stat *st), (f, st), EIO)
CALL(int, stat, (const char *p, struct stat *st), (p, st), EIO)
CALL(int, lstat, (const char *p, struct stat *st), (p, st), EIO)
CALL(int, fstatat, (int d, const char *p, struct stat *st, int k), (d, p, st, k), EIO)
CALL(int, fstat64, (int f, struct stat64 *st), (f, st), EIO)
CALL(int, stat64, (const char *p, struct stat64 *st), (p, st), EIO)
CALL(int, access, (const char *p, int m), (p, m), EACCES)
CALL(int, faccessat, (int d, const char *p, int m, int k), (d, p, m, k), EACCES)
CALL(int, mkdir, (const char *p, mode_t m), (p, m), ENOSPC)
CALL(int, mkdirat, (int d, const char *p, mode_t m), (d, p, m), ENOSPC)
CALL(int, rename, (const char *a, const char *b), (a, b), ENOSPC)
CALL(int, renameat, (int d, const char *a, int e, const char *b), (d, a, e, b), ENOSPC)
CALL(int, linkat, (int d, const char *a, int e, const char *b, int k), (d, a, e, b, k), ENOSPC)
CALL(int, unlink, (const char *p), (p), EIO)
CALL(int, unlinkat, (int d, const char *p, int k), (d, p, k), EIO)
CALL(int, mkostemp, (char *p, int k), (p, k), ENOSPC)
CALL(int, dup3, (int a, int b, int k), (a, b, k), EMFILE)
CALL(int, pipe2, (int v[2], int k), (v, k), EMFILE)
CALL(int, eventfd, (unsigned n, int k), (n, k), EMFILE)
CALL(int, epoll_create1, (int k), (k), EMFILE)
CALL(int, epoll_ctl, (int e, int op, int f, struct epoll_event *ev), (e, op, f, ev), ENOSPC)
CALL(int, timerfd_create, (clockid_t c, int k), (c, k), EMFILE)
CALL(int, timerfd_settime, (int f, int k, const struct itimerspec *a, struct itimerspec *b), (f, k, a, b), EINVAL)
CALL(int, getrlimit, (__rlimit_resource_t r, struct rlimit *l), (r, l), EPERM)
CALL(int, setrlimit, (__rlimit_resource_t r, const struct rlimit *l), (r, l), EPERM)


/* Of an eventfd neither ever fails. */
static int is_event(int fd)
{
    struct stat64 st;
    int e = errno, r;
    static int (*go)(int, struct stat64 *);

    if (go == NULL)
        go = REAL(fstat64);
    r = go(fd, &st);
    errno = e;
    return r == 0 && (st.st_mode & S_IFMT) == 0;
}

ssize_t read(int fd, void *p, size_t n)
{
    static ssize_t (*go)(int, void *, size_t);
    if (go == NULL)
        go = REAL(read);
    return !is_event(fd) && fails("read", EIO) ? -1 : go(fd, p, n);
}

ssize_t write(int fd, const void *p, size_t n)
{
    static ssize_t (*go)(int, const void *, size_t);
    if (go == NULL)
        go = REAL(write);
    return !is_event(fd) && fails("write", EIO) ? -1 : go(fd, p, n);
}

/* The descriptor is gone all the same, as Linux has it. */
int close(int fd)
{
    static int (*go)(int);
    int r;

    if (go == NULL)
        go = REAL(close);
    r = go(fd);
    return r == 0 && fails("close", EIO) ? -1 : r;
}

#define OPEN(name)                                                                                                                         \
    int name(const char *path, int flags, ...)                                                                                             \
    {                                                                                                                                      \
        static int (*go)(const char *, int, ...);                                                                                          \
        va_list ap;                                                                                                                        \
        va_start(ap, flags);                                                                                                               \
        mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(ap, mode_t) : 0;                                                            \
        va_end(ap);                                                                                                                        \
        if (go == NULL)                                                                                                                    \
            go = REAL(name);                                                                                                               \
        return fails(#name, EMFILE) ? -1 : go(path, flags, mode);                                                                          \
    }
OPEN(open)
OPEN(open64)

int openat(int dir, const char *path, int flags, ...)
{
    static int (*go)(int, const char *, int, ...);
    va_list ap;

    va_start(ap, flags);
    mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(ap, mode_t) : 0;
    va_end(ap);
    if (go == NULL)
        go = REAL(openat);
    return fails("openat", EMFILE) ? -1 : go(dir, path, flags, mode);
}

#define FCNTL(name)                                                                                                                        \
    int name(int fd, int op, ...)                                                                                                          \
    {                                                                                                                                      \
        static int (*go)(int, int, ...);                                                                                                   \
        va_list ap;                                                                                                                        \
        va_start(ap, op);                                                                                                                  \
        void *arg = va_arg(ap, void *);                                                                                                    \
        va_end(ap);                                                                                                                        \
        if (go == NULL)                                                                                                                    \
            go = REAL(name);                                                                                                               \
        if (op == F_SETLK && ((struct flock *)arg)->l_type == F_UNLCK) /* giving up a lock does not fail */                                \
            return go(fd, op, arg);                                                                                                        \
        return fails(#name, ENOLCK) ? -1 : go(fd, op, arg);                                                                                \
    }
FCNTL(fcntl)
FCNTL(fcntl64)

FILE *fopen(const char *path, const char *mode)
{
    static FILE *(*go)(const char *, const char *);
    if (go == NULL)
        go = REAL(fopen);
    return fails("fopen", EMFILE) ? NULL : go(path, mode);
}

DIR *opendir(const char *path)
{
    static DIR *(*go)(const char *);
    if (go == NULL)
        go = REAL(opendir);
    return fails("opendir", EMFILE) ? NULL : go(path);
}

DIR *fdopendir(int fd)
{
    static DIR *(*go)(int);
    if (go == NULL)
        go = REAL(fdopendir);
    return fails("fdopendir", ENOMEM) ? NULL : go(fd);
}

void *mmap(void *at, size_t n, int prot, int flags, int fd, off_t off)
{
    static void *(*go)(void *, size_t, int, int, int, off_t);
    if (go == NULL)
        go = REAL(mmap);
    return fails("mmap", ENOMEM) ? MAP_FAILED : go(at, n, prot, flags, fd, off);
}

void *mmap64(void *at, size_t n, int prot, int flags, int fd, off64_t off)
{
    static void *(*go)(void *, size_t, int, int, int, off64_t);
    if (go == NULL)
        go = REAL(mmap64);
    return fails("mmap64", ENOMEM) ? MAP_FAILED : go(at, n, prot, flags, fd, off);
}

/* These say it by their result. */
int pthread_create(pthread_t *t, const pthread_attr_t *a, void *(*run)(void *), void *arg)
{
    static int (*go)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    if (go == NULL)
        go = REAL(pthread_create);
    return fails("pthread_create", EAGAIN) ? EAGAIN : go(t, a, run, arg);
}

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **ret)
{
    static int (*go)(const char *, const char *, const struct addrinfo *, struct addrinfo **);
    if (go == NULL)
        go = REAL(getaddrinfo);
    return fails("getaddrinfo", ENOMEM) ? EAI_MEMORY : go(node, service, hints, ret);
}
