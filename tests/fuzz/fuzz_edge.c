/* Bytes on a connection, through the edge as it is: what the handler sees and what the client gets must not depend on how the bytes were
 * cut into segments. The input's first two bytes say where it is cut; it is sent whole, in two pieces, and byte by byte where it is
 * short, and the three records of events are compared. The answer to every request is its own description, so a request that was read
 * differently, or one too many or too few, shows. */
#include "fuzz.h"

#include <errno.h>
#include <event2/event.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "pullgate/clock.h"
#include "pullgate/edge.h"

static struct config *cfg;
static struct loop *loop;
static struct edge *edge;
static char listen_at[112];
static struct strbuf *events; /* of the run in progress */
static unsigned requests;

static size_t body_limit(void *ctx, const struct head *h)
{
    (void)ctx;
    return h->method == HEAD_POST ? 64 : 0;
}

static void on_request(void *ctx, struct edge_req *r)
{
    const struct head *h = edge_req_head(r);
    struct str body = edge_req_body(r);
    struct strbuf b = {0};

    (void)ctx;
    requests++;
    sb_addf(&b, "<%.*s %.*s %zu:%.*s %u", STR(h->method_text), STR(h->target), body.n, STR(body), h->n_fields);
    for (unsigned i = 0; i < h->n_fields; i++)
        sb_addf(&b, "|%.*s=%.*s", STR(h->fields[i].name), STR(h->fields[i].value));
    sb_addc(&b, ">\n");
    sb_add(events, sb_str(&b));
    FUZZ_CHECK(body.n <= 64 && (body.n == 0 || h->method == HEAD_POST), "a body where none may be");
    FUZZ_CHECK(h->has_length || body.n == 0, "a body without a length");
    edge_reply(r, 200, (struct str){0}, S("Content-Type: text/plain\r\n"), sb_str(&b), -1);
    sb_free(&b);
}

static void on_gone(void *ctx, struct edge_req *r, void *handle, bool too_slow)
{
    (void)ctx, (void)r, (void)handle, (void)too_slow;
}

static void on_drain(void *ctx, struct edge_req *r, void *handle)
{
    (void)ctx, (void)r, (void)handle;
}

static void leave_nothing(void)
{
    unlink(listen_at + 5);
}

static void setup(void)
{
    struct edge_handlers h = {.body_limit = body_limit, .on_request = on_request, .on_gone = on_gone, .on_drain = on_drain};
    struct error e = {0};
    char path[64], bound[128];
    int fd;

    fuzz_quiet();
    snprintf(path, sizeof path, "/dev/shm/fuzz_edge.%d.yaml", (int)getpid());
    FILE *f = fopen(path, "we");
    FUZZ_CHECK(f && fputs("limits:\n  keepalive_requests: 0\n", f) >= 0 && fclose(f) == 0 && config_load(path, &cfg, &e) == ERR_OK, e.text);
    unlink(path);
    snprintf(listen_at, sizeof listen_at, "unix:%s/pullgate-fuzz-edge-%d.sock", fuzz_tmp(), (int)getpid());
    loop = loop_new();
    edge = edge_new(loop, cfg, edge_shared_new(1000, 1000), &h);
    FUZZ_CHECK(edge_listen(listen_at, &fd, bound, &e) == ERR_OK && edge_accept(edge, fd, NULL, &e) == ERR_OK, e.text);
    atexit(leave_nothing);
}

static void tick(void *ctx)
{
    (void)ctx;
}

static void turn(void)
{
    event_base_loop(loop_base(loop), EVLOOP_NONBLOCK);
}

/* Everything there is to read now. False: the end. */
static bool take(int fd, struct strbuf *out)
{
    char buf[16384];
    for (;;) {
        ssize_t n = recv(fd, buf, sizeof buf, MSG_DONTWAIT);
        if (n > 0)
            sb_add(out, (struct str){buf, (size_t)n});
        else
            return !(n == 0 || (errno != EAGAIN && errno != EINTR));
    }
}

static bool settle(int fd, struct strbuf *out)
{
    bool open = true;
    for (unsigned still = 0; still < 3 && open;) {
        size_t was = out->n;
        unsigned had = requests;
        turn();
        open = take(fd, out);
        still = out->n != was || requests != had ? 0 : still + 1;
    }
    return open;
}

static bool push(int fd, struct str s, struct strbuf *out)
{
    while (s.n) {
        ssize_t n = send(fd, s.p, s.n, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN)
            n = 0;
        if (n < 0)
            return false; /* closed: what was said is said */
        s = str_skip(s, (size_t)n);
        if (!settle(fd, out))
            return false;
    }
    return true;
}

/* Dates and what else differs between two runs of the same. */
static void without_dates(struct strbuf *b)
{
    char *p = b->p, *end = b->p + b->n;
    while (p && (p = memmem(p, (size_t)(end - p), "\r\nDate: ", 8)) != NULL) {
        p += 8;
        if (end - p < 31 || memcmp(p + 25, " GMT\r\n", 6) != 0)
            continue; /* an echoed body may say Date: too */
        memset(p, 'x', 29);
        p += 29;
    }
}

/* step 0: whole; else pieces: the first of `at` bytes, then `step` at a time. */
static void run(struct str s, size_t at, size_t step, struct strbuf *seen, struct strbuf *got)
{
    struct sockaddr_un sun = {.sun_family = AF_UNIX};
    struct timer *t = timer_new(loop, tick, NULL);

    events = seen;
    snprintf(sun.sun_path, sizeof sun.sun_path, "%s", listen_at + 5);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    FUZZ_CHECK(fd >= 0 && connect(fd, (const struct sockaddr *)(const void *)&sun, sizeof sun) == 0, "connect");
    bool open = true;
    if (step == 0) {
        open = push(fd, s, got);
    } else {
        open = push(fd, str_sub(s, 0, at), got);
        for (size_t i = at; i < s.n && open; i += step)
            open = push(fd, str_sub(s, i, step), got);
    }
    if (open)
        open = settle(fd, got);
    if (open) { /* the end of the input is the end of the client's side */
        shutdown(fd, SHUT_WR);
        open = settle(fd, got);
    }
    uint64_t end = clock_mono_ms() + 20000;
    while (open && clock_mono_ms() < end) { /* lingering, and half-closed clients: a moment */
        timer_set(t, 1);
        event_base_loop(loop_base(loop), EVLOOP_ONCE);
        open = take(fd, got);
    }
    FUZZ_CHECK(!open, "a connection that is never closed");
    close(fd);
    turn();
    turn();
    timer_free(&t);
    without_dates(got);
}

/* A client that did not wait for it need not get it. */
static void without_continue(struct strbuf *b)
{
    static const char text[] = "HTTP/1.1 100 Continue\r\n\r\n";
    for (char *p; b->n && (p = memmem(b->p, b->n, text, sizeof text - 1)) != NULL;) {
        memmove(p, p + sizeof text - 1, (size_t)(b->p + b->n - p) - (sizeof text - 1));
        b->n -= sizeof text - 1;
    }
}

/* Which of a bad head's faults is named depends on how much of it was there: only that it is refused counts. */
static void without_reason(struct strbuf *b)
{
    char *last = b->n ? memmem(b->p, b->n, "HTTP/1.1 4", 10) : NULL;
    for (char *p = last; p && (p = memmem(p + 1, (size_t)(b->p + b->n - p - 1), "HTTP/1.1 4", 10)) != NULL;)
        last = p;
    if (last) {
        b->n = (size_t)(last - b->p);
        b->p[b->n] = '\0';
        sb_addc(b, "refused");
    }
}

/* Every answer is whole, and there is one for each request that the handler saw, and at most one more: the refusal that ends it. */
static void check_answers(struct str got, unsigned seen)
{
    unsigned n = 0, refusals = 0;

    while (got.n) {
        if (str_starts(got, S("HTTP/1.0 400 ")) && str_ends(got, S("HTTP server.\n")))
            break; /* TLS on a plain port: the last word */
        const char *end = memmem(got.p, got.n, "\r\n\r\n", 4);
        FUZZ_CHECK(end && got.n > 12 && memcmp(got.p, "HTTP/1.1 ", 9) == 0, "an answer that is none");
        int status = atoi(got.p + 9);
        struct str fields = str_sub(got, 0, (size_t)(end - got.p) + 4);
        got = str_skip(got, fields.n);
        if (status == 100)
            continue;
        const char *len = memmem(fields.p, fields.n, "\r\nContent-Length: ", 18);
        FUZZ_CHECK(len != NULL, "an answer without its length");
        size_t size = strtoul(len + 18, NULL, 10);
        if (got.n >= size && (size == 0 || got.p[0] != 'H' || memcmp(got.p, "HTTP/1.1 ", size < 9 ? size : 9))) /* not of a HEAD */
            got = str_skip(got, size);
        if (status == 200)
            n++;
        else
            refusals++;
        FUZZ_CHECK(refusals <= 1 && (refusals == 0 || status >= 400), "two refusals on one connection, or an answer after one");
    }
    FUZZ_CHECK(n == seen, "as many answers as requests");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct strbuf seen[3] = {{0}}, got[3] = {{0}};
    unsigned count[3];

    if (!edge)
        setup();
    if (size < 3)
        return 0;
    struct str s = {(const char *)data + 2, size - 2};
    size_t at = (size_t)(data[0] | data[1] << 8) % s.n, n_runs = s.n <= 300 ? 3 : 2;
    for (size_t i = 0; i < n_runs; i++) {
        requests = 0;
        run(s, i == 1 ? at : i == 2 ? 1 : 0, i == 0 ? 0 : i == 1 ? s.n : 1, &seen[i], &got[i]);
        count[i] = requests;
        check_answers(sb_str(&got[i]), requests);
        without_continue(&got[i]);
        without_reason(&got[i]);
        if (i) {
            bool same = count[i] == count[0] && str_eq(sb_str(&seen[i]), sb_str(&seen[0])) && str_eq(sb_str(&got[i]), sb_str(&got[0]));
            if (!same)
                fprintf(stderr, "cut at %zu: %u requests, whole: %u\n--- whole\n%.*s%.*s\n--- cut\n%.*s%.*s\n", i == 1 ? at : 1, count[i], count[0],
                        STR(sb_str(&seen[0])), STR(sb_str(&got[0])), STR(sb_str(&seen[i])), STR(sb_str(&got[i])));
            FUZZ_CHECK(same, "cut differently, the same bytes are something else");
        }
    }
    for (size_t i = 0; i < 3; i++) {
        sb_free(&seen[i]);
        sb_free(&got[i]);
    }
    return 0;
}
