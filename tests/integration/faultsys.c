/* Preloaded into the daemons by the fault tests: system calls that are interrupted, short, told to come again, or fail, as the control
 * file says (struct control, mapped; the test writes it). Everything it does the kernel may do as well. It knows nothing of the daemons. */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

struct control { /* int32 each, in the order of faultsys.py */
    atomic_int eintr_every, short_every, again_every; /* every n-th call; 0: never */
    atomic_int file_fails_at;                         /* the n-th write, sync or truncation of a file from now fails; 0: none */
    atomic_int file_fails_for;                        /* and so many after it; 0: that one alone */
    atomic_int file_errno;
    atomic_int resolver_ms;                           /* a name takes so long, and is not found; 0: as it is */
    atomic_int calls, hits, file_hits;
    atomic_int unsynced, synced; /* writes to files since the last sync; syncs */
};

static struct control none, *ctl = &none;

__attribute__((constructor)) static void start(void)
{
    const char *path = getenv("FAULTSYS_CONTROL");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    void *p = fd >= 0 ? mmap(NULL, sizeof *ctl, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : MAP_FAILED;

    if (p != MAP_FAILED)
        ctl = p;
    if (fd >= 0)
        close(fd);
}

#define REAL(name) ((__typeof__(&name))real(#name))
static void *real(const char *name)
{
    return dlsym(RTLD_NEXT, name);
}

static int due(atomic_int *every, int n)
{
    int e = atomic_load_explicit(every, memory_order_relaxed);
    return e > 0 && n % e == 0;
}

/* -1 with errno set: this call fails now. 1: it is to be short. Files are never interrupted, only short. */
enum kind { OTHER, SOCKET, FILE_ };
static int fault(int fd, enum kind k)
{
    int n = atomic_fetch_add(&ctl->calls, 1);

    if (k != FILE_ && due(&ctl->eintr_every, n)) {
        atomic_fetch_add(&ctl->hits, 1);
        errno = EINTR;
        return -1;
    }
    if (k == SOCKET && due(&ctl->again_every, n) && (fcntl(fd, F_GETFL) & O_NONBLOCK)) {
        atomic_fetch_add(&ctl->hits, 1);
        errno = EAGAIN;
        return -1;
    }
    if (due(&ctl->short_every, n)) {
        atomic_fetch_add(&ctl->hits, 1);
        return 1;
    }
    return 0;
}

static size_t some(size_t n)
{
    return n > 1 ? n / 2 + 1 : n;
}

/* Only of sockets and files: an eventfd that does not block, or a terminal, is never interrupted, nor taken in parts. */
static enum kind kind(int fd)
{
    struct stat st;
    int e = errno, r = fstat(fd, &st);
    errno = e;
    return r == 0 && S_ISSOCK(st.st_mode) ? SOCKET : r == 0 && S_ISREG(st.st_mode) ? FILE_ : OTHER;
}

/* Writes, syncs and truncations of files. */
static int file_fault(void)
{
    int left = atomic_load(&ctl->file_fails_at);

    if (left <= 0)
        return 0;
    if (left > 1) {
        atomic_store(&ctl->file_fails_at, left - 1);
        return 0;
    }
    int more = atomic_load(&ctl->file_fails_for);
    if (more > 0)
        atomic_store(&ctl->file_fails_for, more - 1);
    else
        atomic_store(&ctl->file_fails_at, 0);
    atomic_fetch_add(&ctl->file_hits, 1);
    errno = atomic_load(&ctl->file_errno);
    return -1;
}

ssize_t read(int fd, void *p, size_t n)
{
    enum kind k = kind(fd);
    int f = k == OTHER ? 0 : fault(fd, k);
    if (f < 0)
        return -1;
    return REAL(read)(fd, p, f ? some(n) : n);
}
ssize_t write(int fd, const void *p, size_t n)
{
    enum kind k = kind(fd);
    int f = k == OTHER ? 0 : fault(fd, k);
    if (f < 0)
        return -1;
    return REAL(write)(fd, p, f ? some(n) : n);
}
ssize_t readv(int fd, const struct iovec *v, int n)
{
    int f = fault(fd, kind(fd));
    if (f < 0)
        return -1;
    return f && n > 1 ? REAL(readv)(fd, v, 1) : REAL(readv)(fd, v, n);
}
ssize_t writev(int fd, const struct iovec *v, int n)
{
    int f = fault(fd, kind(fd));
    if (f < 0)
        return -1;
    return f && n > 1 ? REAL(writev)(fd, v, 1) : REAL(writev)(fd, v, n);
}
ssize_t recv(int fd, void *p, size_t n, int flags)
{
    int f = fault(fd, SOCKET);
    if (f < 0)
        return -1;
    return REAL(recv)(fd, p, f ? some(n) : n, flags);
}
ssize_t send(int fd, const void *p, size_t n, int flags)
{
    int f = fault(fd, SOCKET);
    if (f < 0)
        return -1;
    return REAL(send)(fd, p, f ? some(n) : n, flags);
}
ssize_t sendfile(int out, int in, off_t *at, size_t n)
{
    int f = fault(out, SOCKET);
    if (f < 0)
        return -1;
    return REAL(sendfile)(out, in, at, f ? some(n) : n);
}
ssize_t sendfile64(int out, int in, off64_t *at, size_t n)
{
    int f = fault(out, SOCKET);
    if (f < 0)
        return -1;
    return REAL(sendfile64)(out, in, at, f ? some(n) : n);
}
int accept4(int fd, struct sockaddr *a, socklen_t *n, int flags)
{
    return fault(fd, SOCKET) < 0 ? -1 : REAL(accept4)(fd, a, n, flags);
}
int epoll_wait(int fd, struct epoll_event *ev, int n, int ms)
{
    return fault(fd, OTHER) < 0 ? -1 : REAL(epoll_wait)(fd, ev, n, ms);
}
int poll(struct pollfd *v, nfds_t n, int ms)
{
    return fault(-1, OTHER) < 0 ? -1 : REAL(poll)(v, n, ms);
}
ssize_t pread(int fd, void *p, size_t n, off_t at)
{
    int f = fault(fd, FILE_);
    if (f < 0)
        return -1;
    return REAL(pread)(fd, p, f ? some(n) : n, at);
}
ssize_t pread64(int fd, void *p, size_t n, off64_t at)
{
    int f = fault(fd, FILE_);
    if (f < 0)
        return -1;
    return REAL(pread64)(fd, p, f ? some(n) : n, at);
}
/* The audit's head lags behind after a power loss, which is no loss: it is not what an answer stands on. */
static int is_hint(int fd)
{
    static const char name[] = "/audit.head";
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path);
    return n >= (ssize_t)sizeof name - 1 && memcmp(path + n - (sizeof name - 1), name, sizeof name - 1) == 0;
}
static ssize_t file_write(int fd, const void *p, size_t n, off64_t at, ssize_t (*go)(int, const void *, size_t, off64_t))
{
    int f;
    if (file_fault() < 0 || (f = fault(fd, FILE_)) < 0)
        return -1;
    if (!is_hint(fd))
        atomic_fetch_add(&ctl->unsynced, 1);
    return go(fd, p, f ? some(n) : n, at);
}
ssize_t pwrite(int fd, const void *p, size_t n, off_t at)
{
    return file_write(fd, p, n, at, REAL(pwrite64));
}
ssize_t pwrite64(int fd, const void *p, size_t n, off64_t at)
{
    return file_write(fd, p, n, at, REAL(pwrite64));
}
static int file_sync(int fd, int (*go)(int))
{
    if (file_fault() < 0)
        return -1;
    atomic_store(&ctl->unsynced, 0);
    atomic_fetch_add(&ctl->synced, 1);
    return go(fd);
}
int fsync(int fd)
{
    return file_sync(fd, REAL(fsync));
}
int fdatasync(int fd)
{
    return file_sync(fd, REAL(fdatasync));
}
int ftruncate(int fd, off_t n)
{
    return file_fault() < 0 ? -1 : REAL(ftruncate)(fd, n);
}
int ftruncate64(int fd, off64_t n)
{
    return file_fault() < 0 ? -1 : REAL(ftruncate64)(fd, n);
}
int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **ret)
{
    int ms = atomic_load(&ctl->resolver_ms);
    size_t len = node ? strlen(node) : 0;
    bool ours = len > 5 && strcmp(node + len - 5, ".test") == 0; /* is 127.0.0.1, while names are found */

    /* numbers need no resolver */
    if (ms == 0 && ours)
        return REAL(getaddrinfo)("127.0.0.1", service, hints, ret);
    if (ms == 0 || node == NULL || (hints != NULL && hints->ai_flags & AI_NUMERICHOST) || (*node >= '0' && *node <= '9'))
        return REAL(getaddrinfo)(node, service, hints, ret);
    for (; ms > 0 && atomic_load(&ctl->resolver_ms) != 0; ms -= 50) {
        struct timespec t = {0, 50 * 1000 * 1000};
        nanosleep(&t, NULL);
    }
    return EAI_AGAIN;
}
