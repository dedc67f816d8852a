/* Access lines. A pipe or socket takes them without blocking, in pieces that end with a line and are small enough to stay whole beside
 * other workers' (PIPE_BUF); a file takes a worker's whole buffer in one write. It knows nothing of exchanges. */
#include "accesslog.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "pullgate/clock.h"
#include "pullgate/log.h"
#include "pullgate/mem.h"

#include "textline.h"
#include "worker.h"

static const size_t FLUSH_BYTES = 64 * 1024; /* a worker's lines are handed over at this many bytes ... */
static const uint64_t FLUSH_MS = 100;        /* ... or this old */
static const size_t HELD_BYTES = 256 * 1024; /* while nobody takes them; further lines are dropped */
static const size_t AGENT_MAX = 160;         /* bytes of a User-Agent */
static const size_t DETAIL_MAX = 300;
#define LINE_MAX_BYTES 2048                  /* SECURITY 4.11 */
#define TIME_SECOND_LEN 19                   /* "2026-03-01T23:59:59" */

enum sink { SINK_OFF, SINK_FILE, SINK_PIPE, SINK_SOCKET };

struct accesslog {
    enum sink sink;
    int fd;
    char *path; /* NULL: standard output */
    atomic_uint_fast64_t lost;
};

struct accesslog_writer {
    struct accesslog *log;
    struct loop *loop;
    struct strbuf buf;
    size_t flush_at; /* bytes held that are worth a try */
    struct timer *timer;
    int64_t second;
    char second_text[CLOCK_RFC3339_MAX];
};

static int file_open(const char *path)
{
    return open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOCTTY, 0640);
}

/* Our own open description of standard output, so that O_NONBLOCK is not set on what other processes share. */
static int stdout_open(enum sink *ret)
{
    struct stat st;
    int fd;

    if (fstat(STDOUT_FILENO, &st) != 0) {
        *ret = SINK_OFF;
        return -1;
    }
    if (S_ISSOCK(st.st_mode)) {
        *ret = SINK_SOCKET;
        return fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3);
    }
    if (S_ISREG(st.st_mode)) {
        *ret = SINK_FILE;
        return fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3);
    }
    *ret = SINK_PIPE;
    fd = open("/proc/self/fd/1", O_WRONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
    if (fd >= 0)
        return fd;
    fd = fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3);
    if (fd >= 0)
        (void)fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK); /* no /proc: the shared description it is */
    return fd;
}

enum err accesslog_new(const struct config *cfg, struct accesslog **ret, struct error *reterr)
{
    struct accesslog *a = NEW(struct accesslog);
    const char *path = cfg->log.access_path ? cfg->log.access_path : "";

    a->fd = -1;
    if (strcmp(path, "off") == 0) {
        a->sink = SINK_OFF;
    } else if (path[0] == '\0') {
        a->fd = stdout_open(&a->sink);
        if (a->fd < 0)
            a->sink = SINK_OFF; /* started without a standard output */
    } else {
        struct stat st;
        a->fd = file_open(path);
        if (a->fd < 0) {
            enum err e = error_set_field(reterr, ERR_INVALID, "log.access_path", "log.access_path: %s: %s", path, strerror(errno));
            mem_free(a);
            return e;
        }
        a->path = mem_strdup(path);
        a->sink = SINK_FILE;
        if (fstat(a->fd, &st) == 0 && !S_ISREG(st.st_mode)) {
            (void)fcntl(a->fd, F_SETFL, fcntl(a->fd, F_GETFL) | O_NONBLOCK);
            a->sink = SINK_PIPE;
        }
    }
    *ret = a;
    return ERR_OK;
}

void accesslog_free(struct accesslog **pa)
{
    struct accesslog *a = *pa;

    if (!a)
        return;
    *pa = NULL;
    if (a->fd >= 0)
        close(a->fd);
    mem_free(a->path);
    mem_free(a);
}

void accesslog_reopen(struct accesslog *a)
{
    int fd;

    if (!a->path || a->sink != SINK_FILE)
        return;
    fd = file_open(a->path);
    if (fd < 0) {
        log_error("access log %s cannot be opened anew: %s; the old file is used on", a->path, strerror(errno));
        return;
    }
    (void)dup3(fd, a->fd, O_CLOEXEC); /* the number stays: writers in other threads need no lock */
    close(fd);
}

uint64_t accesslog_lost(const struct accesslog *a)
{
    return atomic_load_explicit(&a->lost, memory_order_relaxed);
}

static uint64_t lines_in(struct str s)
{
    uint64_t n = 0;
    for (const char *p = s.p; s.n && (p = memchr(p, '\n', (size_t)(s.p + s.n - p))); p++)
        n++;
    return n;
}

static void drop(struct accesslog *a, struct str s)
{
    static unsigned long long last;
    uint64_t n = lines_in(s);

    if (!n)
        return;
    atomic_fetch_add_explicit(&a->lost, n, memory_order_relaxed);
    log_limited(&last, 10000, LOG_LEVEL_WARN, "access lines are lost: %s", "nobody reads them, or the disk is full");
}

/* The longest piece that ends with a line and that a pipe takes whole or not at all. */
static size_t piece(struct str s)
{
    size_t n = s.n;

    if (n <= PIPE_BUF)
        return n;
    n = PIPE_BUF;
    while (n && s.p[n - 1] != '\n')
        n--;
    return n ? n : PIPE_BUF;
}

/* How much was taken. */
static size_t hand_over(struct accesslog *a, struct str s)
{
    size_t done = 0;

    while (done < s.n) {
        struct str rest = str_skip(s, done);
        ssize_t n = -1;
        switch (a->sink) {
        case SINK_OFF:
            return s.n;
        case SINK_FILE:
            n = write(a->fd, rest.p, rest.n);
            break;
        case SINK_PIPE:
            n = write(a->fd, rest.p, piece(rest));
            break;
        case SINK_SOCKET:
            n = send(a->fd, rest.p, piece(rest), MSG_DONTWAIT | MSG_NOSIGNAL);
            break;
        }
        if (n > 0) {
            done += (size_t)n;
        } else if (n < 0 && errno == EINTR) {
            continue;
        } else if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            return done;
        } else { /* a full disk, a reader that has gone: these lines have no place to go */
            drop(a, rest);
            return s.n;
        }
    }
    return done;
}

static void writer_flush(struct accesslog_writer *w)
{
    size_t done;

    if (w->buf.n == 0)
        return;
    done = hand_over(w->log, sb_str(&w->buf));
    if (done < w->buf.n) {
        memmove(w->buf.p, w->buf.p + done, w->buf.n - done);
        w->buf.n -= done;
        timer_set(w->timer, FLUSH_MS);
    } else {
        sb_reset(&w->buf);
    }
    w->flush_at = w->buf.n + FLUSH_BYTES;
}

static void on_timer(void *ctx)
{
    writer_flush(ctx);
}

struct accesslog_writer *accesslog_writer_new(struct accesslog *a, struct loop *l)
{
    struct accesslog_writer *w = NEW(struct accesslog_writer);

    w->log = a;
    w->loop = l;
    w->second = -1;
    w->flush_at = FLUSH_BYTES;
    w->timer = timer_new(l, on_timer, w);
    return w;
}

void accesslog_writer_free(struct accesslog_writer **pw)
{
    struct accesslog_writer *w = *pw;

    if (!w)
        return;
    *pw = NULL;
    writer_flush(w);
    drop(w->log, sb_str(&w->buf));
    timer_free(&w->timer);
    sb_free(&w->buf);
    mem_free(w);
}

static void put_time(struct accesslog_writer *w, struct textline *t)
{
    int64_t now = clock_now_ms();
    unsigned ms = (unsigned)(now % 1000);
    char tail[5] = {'.', (char)('0' + ms / 100), (char)('0' + ms / 10 % 10), (char)('0' + ms % 10), 'Z'};

    if (now / 1000 != w->second) {
        w->second = now / 1000;
        (void)clock_rfc3339(w->second, w->second_text);
    }
    textline_raw(t, w->second_text, TIME_SECOND_LEN);
    textline_raw(t, tail, sizeof tail);
}

static void put_line(struct accesslog_writer *w, struct textline *t, const struct access_line *l, bool whole)
{
#define FIELD(name, value, max)                                                                                        \
    do {                                                                                                               \
        struct str v_ = (value);                                                                                       \
        if (v_.n) {                                                                                                    \
            TEXTLINE_LIT(t, ",\"" name "\":");                                                                         \
            textline_json(t, v_, (max));                                                                               \
        }                                                                                                              \
    } while (0)
    TEXTLINE_LIT(t, "{\"time\":\"");
    put_time(w, t);
    TEXTLINE_LIT(t, "\",\"msg\":\"access\"");
    FIELD("id", str_c(l->id), 64);
    if (l->worker)
        FIELD("proxy", str_c(l->worker->proxy->instance), 64);
    FIELD("client", str_c(l->peer), 64);
    FIELD("method", l->method, 16);
    FIELD("action", str_c(l->action), 16);
    FIELD("repository", l->repository, 255);
    FIELD("reference", l->reference, 135);
    TEXTLINE_LIT(t, ",\"status\":");
    textline_u64(t, l->status > 0 ? (uint64_t)l->status : 0);
    FIELD("cause", str_c(l->cause), 64);
    FIELD("reason", str_c(l->reason), 64);
    FIELD("customer", l->customer, 64);
    FIELD("customer_id", l->customer_id, 64);
    FIELD("credential_id", l->credential_id, 64);
    FIELD("license_id", l->license_id, 64);
    TEXTLINE_LIT(t, ",\"bytes\":");
    textline_u64(t, l->bytes);
    TEXTLINE_LIT(t, ",\"t_total_us\":");
    textline_u64(t, l->total_us);
    if (l->first_byte_us) {
        TEXTLINE_LIT(t, ",\"t_first_byte_us\":");
        textline_u64(t, l->first_byte_us);
    }
    FIELD("source", str_c(l->source), 32);
    if (whole) {
        FIELD("agent", l->agent, AGENT_MAX);
        FIELD("detail", str_c(l->detail), DETAIL_MAX);
    }
    TEXTLINE_LIT(t, "}\n");
#undef FIELD
}

void accesslog_write(struct accesslog_writer *w, const struct access_line *l)
{
    struct textline t;

    if (w->log->sink == SINK_OFF)
        return;
    if (w->buf.n > HELD_BYTES) {
        drop(w->log, S("\n"));
        return;
    }
    sb_reserve(&w->buf, LINE_MAX_BYTES);
    for (int whole = 1; whole >= 0; whole--) { /* what clients can make long by escapes is left out when it does not fit */
        t = (struct textline){.p = w->buf.p + w->buf.n, .end = w->buf.p + w->buf.n + LINE_MAX_BYTES};
        put_line(w, &t, l, whole);
        if (!t.cut)
            break;
    }
    if (t.cut) {
        drop(w->log, S("\n"));
        return;
    }
    w->buf.n = (size_t)(t.p - w->buf.p);
    w->buf.p[w->buf.n] = '\0';
    if (w->buf.n >= w->flush_at)
        writer_flush(w);
    if (w->buf.n && !timer_pending(w->timer))
        timer_set(w->timer, FLUSH_MS);
}
