/* Loads proxies with scripts of requests and checks every answer: status, SHA-256 of the body, length. One thread, one epoll, plain and TLS.
 * tests/endurance/ makes the plans and judges what comes out.
 *
 *   drive_load --plan FILE --target 127.0.0.1:5080[,tls] … [--connections N] [--requests N] [--seconds N] [--rate N] [--once]
 *              [--retry] [--trace FILE] [--report N] [--seed N]
 *
 * Plan, fields divided by tabs:
 *   script  WEIGHT  keep|fresh                  fresh: over a connection of its own
 *   req  METHOD PATH AUTHORIZATION|-|$token FIELDS|- STATUS,… SHA256|- LEAVE|-1      FIELDS: header lines divided by '|'; LEAVE: close after
 *                                                                                  that many bytes of body. $token: of the last /token answer
 *   raw  HEX STATUS,…                           these bytes; the connection is closed after the answer
 *
 * --once runs every script once, in order. --retry asks again, as a client does that finds its connection closed or refused, until
 * there is an answer; an answer that breaks off is a failure always. Each --report answers and at the end a line of JSON. The trace has a
 * record of 24 bytes for every attempt: sent and ended (CLOCK_MONOTONIC ns, u64), index of the request in the plan (u32), status (u16),
 * outcome (u8), target (u8). SIGTERM ends the run after what is under way. Exits 1 when there was a failure. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <openssl/evp.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "pullgate/mem.h"
#include "pullgate/str.h"

#define HEAD_MAX 32768
#define STATUSES_MAX 8
#define TARGETS_MAX 8
#define TOKEN_BODY_MAX 8192
#define RETRY_PAUSE_NS 2000000ull
#define DEADLINE_NS 60000000000ull /* for one answer */
#define SHOWN_MAX 40               /* failures that are told in words */

enum outcome { GOOD, REFUSED, UNANSWERED, CUT, WRONG_STATUS, WRONG_BODY, WRONG_FORM, TIMED_OUT, LEFT, OUTCOMES };

static const char *const outcome_names[OUTCOMES] = {"good",         "refused",    "unanswered", "cut", "wrong_status",
                                                    "wrong_body", "wrong_form", "timed_out",  "left"};

struct request {
    char *method, *path, *auth, *fields;
    char *raw; /* instead of all of these */
    size_t raw_n;
    int statuses[STATUSES_MAX];
    int n_statuses;
    uint8_t sha256[32];
    bool checked;
    long leave;
};

struct script {
    uint32_t first, n;
    uint64_t upto; /* sum of weights so far */
    bool fresh;
};

struct target {
    struct sockaddr_in addr;
    bool tls;
};

enum state { IDLE, CONNECTING, HANDSHAKE, SENDING, HEAD, BODY, RESTING };

struct conn {
    enum state state;
    int fd;
    int target;
    SSL *ssl;
    uint32_t events;
    const struct script *script;
    uint32_t step;
    uint64_t wake; /* 0: waits for the socket */
    uint64_t sent_at;
    struct strbuf out;
    size_t out_at;
    char head[HEAD_MAX];
    size_t head_n;
    int status;
    uint64_t length, got;
    bool close_after, over, used;
    struct strbuf body; /* of a token answer */
    char token[4096];
    EVP_MD_CTX *md;
};

struct record {
    uint64_t sent, ended;
    uint32_t request;
    uint16_t status;
    uint8_t outcome, target;
};

static struct {
    struct request *requests;
    struct script *scripts;
    uint32_t n_requests, n_scripts, next_script;
    struct target targets[TARGETS_MAX];
    int n_targets, n_conns, epoll;
    struct conn *conns;
    uint64_t limit, end_at, rate_ns, next_due, report, seed;
    bool once, retry;
    FILE *trace;
    SSL_CTX *tls;
    uint64_t begun, done, started, dropped_idle, bytes;
    uint64_t outcomes[OUTCOMES], statuses[600];
    uint32_t *window;
    uint64_t window_n;
    int shown, active;
} run;

static volatile sig_atomic_t stop;

static void on_signal(int sig)
{
    (void)sig;
    stop = 1;
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

static _Noreturn void die(const char *what)
{
    fprintf(stderr, "drive_load: %s: %s\n", what, strerror(errno));
    exit(2);
}

static uint64_t dice(void)
{
    run.seed ^= run.seed << 13;
    run.seed ^= run.seed >> 7;
    run.seed ^= run.seed << 17;
    return run.seed;
}

/* ---- the plan ---- */

static char *cut(char **line)
{
    char *field = strsep(line, "\t");
    if (!field) {
        fprintf(stderr, "drive_load: a line of the plan has too few fields\n");
        exit(2);
    }
    return field;
}

static void statuses_read(struct request *r, char *text)
{
    if (!*text)
        return; /* any will do */
    for (char *one; (one = strsep(&text, ",")) != NULL && r->n_statuses < STATUSES_MAX;)
        r->statuses[r->n_statuses++] = (int)strtol(one, NULL, 10);
}

static void plan_read(const char *path)
{
    FILE *f = fopen(path, "r");
    char *line = NULL;
    size_t cap = 0, cap_requests = 0, cap_scripts = 0;
    ssize_t n;
    uint64_t weight = 0;

    if (!f)
        die(path);
    while ((n = getline(&line, &cap, f)) > 0) {
        char *at = line;
        line[strcspn(line, "\n")] = 0;
        if (!*line)
            continue;
        char *kind = cut(&at);
        if (strcmp(kind, "script") == 0) {
            if (run.n_scripts == cap_scripts)
                run.scripts = mem_realloc(run.scripts, (cap_scripts = cap_scripts * 2 + 64) * sizeof *run.scripts);
            weight += (uint64_t)strtoul(cut(&at), NULL, 10);
            run.scripts[run.n_scripts++] = (struct script){.first = run.n_requests, .upto = weight, .fresh = strcmp(cut(&at), "fresh") == 0};
            continue;
        }
        if (run.n_requests == cap_requests)
            run.requests = mem_realloc(run.requests, (cap_requests = cap_requests * 2 + 64) * sizeof *run.requests);
        struct request *r = &run.requests[run.n_requests++];
        memset(r, 0, sizeof *r);
        run.scripts[run.n_scripts - 1].n++;
        r->leave = -1;
        if (strcmp(kind, "raw") == 0) {
            char *hex = cut(&at);
            r->raw_n = strlen(hex) / 2;
            r->raw = mem_alloc(r->raw_n + 1);
            if (!hex_decode(str_c(hex), r->raw, r->raw_n))
                die("hex");
            statuses_read(r, cut(&at));
            r->path = mem_strdup("(raw)");
            r->method = mem_strdup("RAW");
            continue;
        }
        r->method = mem_strdup(cut(&at));
        r->path = mem_strdup(cut(&at));
        r->auth = mem_strdup(cut(&at));
        r->fields = mem_strdup(cut(&at));
        statuses_read(r, cut(&at));
        char *sha = cut(&at);
        r->checked = strlen(sha) == 64 && hex_decode(str_c(sha), r->sha256, 32);
        r->leave = strtol(cut(&at), NULL, 10);
    }
    mem_free(line);
    fclose(f);
    if (!run.n_scripts)
        die("an empty plan");
}

static const struct script *script_draw(void)
{
    if (run.once)
        return run.next_script < run.n_scripts ? &run.scripts[run.next_script++] : NULL;
    uint64_t x = dice() % run.scripts[run.n_scripts - 1].upto;
    uint32_t low = 0, high = run.n_scripts - 1;
    while (low < high) {
        uint32_t mid = (low + high) / 2;
        if (run.scripts[mid].upto > x)
            high = mid;
        else
            low = mid + 1;
    }
    return &run.scripts[low];
}

/* ---- counting ---- */

static int u32_cmp(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static void report(bool final)
{
    uint64_t n = run.window_n;
    double t = (double)(now_ns() - run.begun) / 1e9;

    qsort(run.window, n, sizeof *run.window, u32_cmp);
    printf("{\"final\":%s,\"t\":%.3f,\"done\":%llu,\"bytes\":%llu,\"dropped_idle\":%llu", final ? "true" : "false", t, (unsigned long long)run.done,
           (unsigned long long)run.bytes, (unsigned long long)run.dropped_idle);
    if (n)
        printf(",\"p50_us\":%u,\"p99_us\":%u,\"max_us\":%u", run.window[n / 2], run.window[n * 99 / 100], run.window[n - 1]);
    for (int i = 0; i < OUTCOMES; i++)
        printf(",\"%s\":%llu", outcome_names[i], (unsigned long long)run.outcomes[i]);
    printf(",\"statuses\":{");
    const char *comma = "";
    for (int i = 0; i < 600; i++)
        if (run.statuses[i]) {
            printf("%s\"%d\":%llu", comma, i, (unsigned long long)run.statuses[i]);
            comma = ",";
        }
    printf("}}\n");
    fflush(stdout);
    if (run.trace)
        fflush(run.trace);
    run.window_n = 0;
}

static struct request *conn_request(const struct conn *c)
{
    return &run.requests[c->script->first + c->step];
}

static void conn_next(struct conn *c);

static void conn_close(struct conn *c)
{
    if (c->ssl) {
        SSL_set_shutdown(c->ssl, SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN);
        SSL_free(c->ssl);
        c->ssl = NULL;
    }
    if (c->fd >= 0)
        close(c->fd);
    c->fd = -1;
    c->used = false;
}

static void conn_rest(struct conn *c, uint64_t until)
{
    c->state = RESTING;
    c->wake = until ? until : 1;
}

static void count(struct conn *c, enum outcome outcome)
{
    uint64_t now = now_ns();
    const struct request *r = conn_request(c);

    run.outcomes[outcome]++;
    if (run.trace) {
        struct record rec = {c->sent_at, now, (uint32_t)(r - run.requests), (uint16_t)c->status, (uint8_t)outcome, (uint8_t)c->target};
        fwrite(&rec, sizeof rec, 1, run.trace);
    }
    if (outcome != GOOD && outcome != LEFT && !(run.retry && (outcome == REFUSED || outcome == UNANSWERED)) && run.shown < SHOWN_MAX) {
        run.shown++;
        fprintf(stderr, "drive_load: %s: %s %s: status %d, %llu of %llu bytes, target %d\n", outcome_names[outcome], r->method, r->path, c->status,
                (unsigned long long)c->got, (unsigned long long)c->length, c->target);
    }
    if (outcome == REFUSED || outcome == UNANSWERED)
        return;
    run.done++;
    if (c->status > 0 && c->status < 600)
        run.statuses[c->status]++;
    uint64_t us = (now - c->sent_at) / 1000;
    run.window[run.window_n++] = us > UINT32_MAX ? UINT32_MAX : (uint32_t)us;
    if (run.window_n == run.report)
        report(false);
}

/* The attempt has ended. */
static void conn_end(struct conn *c, enum outcome outcome)
{
    bool keep = outcome == GOOD && !c->close_after && !conn_request(c)->raw;
    bool last = c->step + 1 >= c->script->n;

    count(c, outcome);
    if (!keep || (last && c->script->fresh))
        conn_close(c);
    if (outcome == REFUSED || outcome == UNANSWERED) {
        c->target = (c->target + 1) % run.n_targets;
        if (run.retry && !stop) {
            conn_rest(c, now_ns() + RETRY_PAUSE_NS);
            return;
        }
    }
    if (last || outcome != GOOD) {
        c->script = NULL;
    } else {
        c->step++;
    }
    conn_next(c);
}

/* ---- a connection ---- */

static void conn_watch(struct conn *c, uint32_t events)
{
    if (c->events == events)
        return;
    struct epoll_event e = {.events = events, .data.ptr = c};
    if (epoll_ctl(run.epoll, EPOLL_CTL_MOD, c->fd, &e))
        die("epoll_ctl");
    c->events = events;
}

static void conn_send(struct conn *c);

static void conn_connect(struct conn *c)
{
    const struct target *t = &run.targets[c->target];
    int one = 1;

    c->sent_at = now_ns();
    c->status = 0;
    c->got = c->length = 0;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0)
        die("socket");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct epoll_event e = {.events = EPOLLIN | EPOLLOUT, .data.ptr = c};
    if (epoll_ctl(run.epoll, EPOLL_CTL_ADD, c->fd, &e))
        die("epoll_ctl");
    c->events = EPOLLIN | EPOLLOUT;
    c->state = CONNECTING;
    if (connect(c->fd, (const struct sockaddr *)&t->addr, sizeof t->addr) && errno != EINPROGRESS) {
        if (errno == EADDRNOTAVAIL)
            die("connect");
        conn_end(c, REFUSED);
    }
}

static void conn_begin(struct conn *c)
{
    const struct request *r = conn_request(c);
    struct strbuf *b = &c->out;

    c->wake = 0;
    c->status = 0;
    c->got = c->length = c->head_n = 0;
    c->close_after = false;
    if (c->fd < 0) {
        conn_connect(c);
        return;
    }
    sb_reset(b);
    c->out_at = 0;
    if (r->raw) {
        sb_add(b, (struct str){r->raw, r->raw_n});
    } else {
        const char *auth = strcmp(r->auth, "$token") == 0 ? c->token : r->auth;
        sb_addf(b, "%s %s HTTP/1.1\r\nHost: registry.example\r\nUser-Agent: drive_load\r\n", r->method, r->path);
        if (strcmp(auth, "-") != 0)
            sb_addf(b, "Authorization: %s\r\n", auth);
        if (strcmp(r->fields, "-") != 0)
            for (struct str rest = str_c(r->fields), one; str_next(&rest, '|', &one);)
                sb_addf(b, "%.*s\r\n", STR(one));
        sb_addc(b, "\r\n");
    }
    c->sent_at = now_ns();
    c->state = SENDING;
    conn_send(c);
}

static void conn_next(struct conn *c)
{
    uint64_t now = now_ns();

    if (!c->script) {
        if (stop || (run.limit && run.started >= run.limit) || (run.end_at && now >= run.end_at) || !(c->script = script_draw())) {
            c->script = NULL;
            conn_close(c);
            c->state = IDLE;
            c->wake = 0;
            run.active--;
            return;
        }
        c->step = 0;
        run.started += c->script->n;
        if (c->script->fresh)
            conn_close(c);
    }
    if (run.rate_ns) {
        if (run.next_due < now)
            run.next_due = now;
        conn_rest(c, run.next_due);
        run.next_due += run.rate_ns;
    } else {
        conn_rest(c, 1); /* from the loop, so that a fast answer does not nest */
    }
}

/* 0: would wait; negative: closed or broken. */
static ssize_t conn_read(struct conn *c, void *p, size_t n)
{
    if (!c->ssl) {
        ssize_t got = recv(c->fd, p, n, 0);
        return got > 0 ? got : got < 0 && (errno == EAGAIN || errno == EINTR) ? 0 : -1;
    }
    int got = SSL_read(c->ssl, p, (int)n);
    if (got > 0)
        return got;
    int why = SSL_get_error(c->ssl, got);
    return why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE ? 0 : -1;
}

static void conn_lost(struct conn *c)
{
    conn_end(c, c->state == BODY || c->head_n ? CUT : c->state == CONNECTING ? REFUSED : UNANSWERED);
}

static void conn_send(struct conn *c)
{
    while (c->out_at < c->out.n) {
        ssize_t n;
        if (c->ssl) {
            int put = SSL_write(c->ssl, c->out.p + c->out_at, (int)(c->out.n - c->out_at));
            int why = put > 0 ? 0 : SSL_get_error(c->ssl, put);
            n = put > 0 ? put : why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE ? 0 : -1;
        } else {
            n = send(c->fd, c->out.p + c->out_at, c->out.n - c->out_at, MSG_NOSIGNAL);
            if (n < 0 && errno == EAGAIN)
                n = 0;
        }
        if (n < 0) {
            c->state = HEAD; /* an answer may have been sent before the connection was closed */
            conn_watch(c, EPOLLIN);
            return;
        }
        if (n == 0) {
            conn_watch(c, EPOLLIN | EPOLLOUT);
            return;
        }
        c->out_at += (size_t)n;
    }
    c->state = HEAD;
    conn_watch(c, EPOLLIN);
}

static void token_keep(struct conn *c)
{
    static const char key[] = "\"token\":\"";
    const char *at = c->body.p ? strstr(c->body.p, key) : NULL;
    if (!at)
        return;
    at += sizeof key - 1;
    snprintf(c->token, sizeof c->token, "Bearer %.*s", (int)strcspn(at, "\""), at);
}

static void answer_end(struct conn *c)
{
    const struct request *r = conn_request(c);
    bool expected = r->n_statuses == 0;

    for (int i = 0; i < r->n_statuses; i++)
        expected = expected || r->statuses[i] == c->status;
    c->used = true;
    if (!expected) {
        conn_end(c, WRONG_STATUS);
        return;
    }
    if (r->checked && (c->status == 200 || c->status == 206)) {
        uint8_t sum[32];
        if (EVP_DigestFinal_ex(c->md, sum, NULL) != 1)
            die("sha256");
        if (memcmp(sum, r->sha256, 32) != 0) {
            conn_end(c, WRONG_BODY);
            return;
        }
    }
    if (str_starts(str_c(r->path), S("/token")))
        token_keep(c);
    conn_end(c, GOOD);
}

static void body_take(struct conn *c, const char *p, size_t n)
{
    const struct request *r = conn_request(c);

    if (r->checked && EVP_DigestUpdate(c->md, p, n) != 1)
        die("sha256");
    if (str_starts(str_c(r->path), S("/token")) && c->body.n + n <= TOKEN_BODY_MAX)
        sb_add(&c->body, (struct str){p, n});
    c->got += n;
    run.bytes += n;
}

/* False: the head is not what HTTP/1.1 says, or has no length. */
static bool head_read(struct conn *c, size_t head_n)
{
    const struct request *r = conn_request(c);
    struct str rest = {c->head, head_n}, line;
    bool has_length = false;

    if (head_n < 15 || memcmp(c->head, "HTTP/1.1 ", 9) != 0)
        return false;
    c->status = (int)strtol(c->head + 9, NULL, 10);
    while (str_next(&rest, '\n', &line)) {
        struct str name, value;
        if (!str_cut(str_trim(line), ':', &name, &value))
            continue;
        value = str_trim((struct str){value.p, value.n && value.p[value.n - 1] == '\r' ? value.n - 1 : value.n});
        if (str_eq_nocase(name, S("content-length")))
            has_length = str_to_u64(value, &c->length);
        if (str_eq_nocase(name, S("connection")) && str_eq_nocase(value, S("close")))
            c->close_after = true;
    }
    if (strcmp(r->method, "HEAD") == 0 || c->status == 304 || c->status == 204) {
        c->length = 0;
        return true;
    }
    return has_length;
}

static void conn_readable(struct conn *c)
{
    static char buf[131072];

    for (;;) {
        if (c->state == HEAD || c->state == SENDING) {
            ssize_t n = conn_read(c, c->head + c->head_n, HEAD_MAX - 1 - c->head_n);
            if (n == 0)
                return;
            if (n < 0) {
                conn_lost(c);
                return;
            }
            c->head_n += (size_t)n;
            c->head[c->head_n] = 0;
            const char *end = memmem(c->head, c->head_n, "\r\n\r\n", 4);
            if (!end) {
                if (c->head_n == HEAD_MAX - 1) {
                    conn_end(c, WRONG_FORM);
                    return;
                }
                continue;
            }
            size_t head_n = (size_t)(end - c->head) + 4;
            if (!head_read(c, head_n)) {
                conn_end(c, WRONG_FORM);
                return;
            }
            sb_reset(&c->body);
            if (EVP_DigestInit_ex(c->md, EVP_sha256(), NULL) != 1)
                die("sha256");
            c->state = BODY;
            if (c->head_n - head_n > c->length) {
                conn_end(c, WRONG_FORM);
                return;
            }
            body_take(c, c->head + head_n, c->head_n - head_n);
        } else if (c->state == BODY) {
            uint64_t left = c->length - c->got;
            ssize_t n = conn_read(c, buf, left < sizeof buf ? (size_t)left : sizeof buf);
            if (n == 0)
                return;
            if (n < 0) {
                conn_lost(c);
                return;
            }
            body_take(c, buf, (size_t)n);
        } else {
            return;
        }
        long leave = conn_request(c)->leave;
        if (leave >= 0 && c->length > (uint64_t)leave && c->got >= (uint64_t)leave) {
            conn_end(c, LEFT);
            return;
        }
        if (c->got == c->length) {
            answer_end(c);
            return;
        }
    }
}

static void conn_event(struct conn *c, uint32_t events)
{
    if (c->fd < 0)
        return;
    switch (c->state) {
    case IDLE:
        return;
    case RESTING: { /* between two requests: nothing may come but the end */
        char byte;
        ssize_t n = conn_read(c, &byte, 1);
        if (n == 0)
            return;
        if (n > 0)
            fprintf(stderr, "drive_load: a byte that nobody asked for\n"), run.outcomes[WRONG_FORM]++;
        run.dropped_idle++;
        conn_close(c);
        return;
    }
    case CONNECTING: {
        int error = 0;
        socklen_t n = sizeof error;
        getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &n);
        if (error) {
            conn_end(c, REFUSED);
            return;
        }
        if (!(events & EPOLLOUT))
            return;
        if (!run.targets[c->target].tls) {
            conn_begin(c);
            return;
        }
        c->ssl = SSL_new(run.tls);
        if (!c->ssl || SSL_set_fd(c->ssl, c->fd) != 1)
            die("SSL_new");
        SSL_set_connect_state(c->ssl);
        c->state = HANDSHAKE;
    }
        __attribute__((fallthrough));
    case HANDSHAKE: {
        int got = SSL_do_handshake(c->ssl);
        if (got == 1) {
            conn_begin(c);
            return;
        }
        int why = SSL_get_error(c->ssl, got);
        if (why == SSL_ERROR_WANT_READ)
            conn_watch(c, EPOLLIN);
        else if (why == SSL_ERROR_WANT_WRITE)
            conn_watch(c, EPOLLIN | EPOLLOUT);
        else
            conn_end(c, UNANSWERED);
        return;
    }
    case SENDING:
        if (events & EPOLLOUT)
            conn_send(c);
        if (c->state == HEAD && (events & EPOLLIN))
            conn_readable(c);
        return;
    case HEAD:
    case BODY:
        conn_readable(c);
    }
}

/* Who waits for a moment goes on; how long until the next one has to, in ms. */
static int wake_all(void)
{
    uint64_t now = now_ns(), next = now + 500000000ull;

    for (int i = 0; i < run.n_conns; i++) {
        struct conn *c = &run.conns[i];
        if (c->state == RESTING) {
            if (c->wake <= now)
                conn_begin(c);
            else if (c->wake < next)
                next = c->wake;
        } else if (c->state != IDLE && now > c->sent_at + DEADLINE_NS) {
            conn_end(c, TIMED_OUT);
        }
        if (c->state == RESTING && c->wake < next)
            next = c->wake;
    }
    now = now_ns();
    return next <= now ? 0 : (int)((next - now) / 1000000) + (run.rate_ns || run.retry ? 1 : 0);
}

static void target_add(char *text)
{
    struct target *t = &run.targets[run.n_targets++];
    char *comma = strchr(text, ','), *colon = strrchr(text, ':');

    if (run.n_targets >= TARGETS_MAX || !colon)
        die(text);
    t->tls = comma != NULL;
    *colon = 0;
    t->addr.sin_family = AF_INET;
    t->addr.sin_port = htons((uint16_t)strtoul(colon + 1, NULL, 10));
    if (inet_pton(AF_INET, text, &t->addr.sin_addr) != 1)
        die(text);
}

int main(int argc, char **argv)
{
    const char *plan = NULL;

    run.n_conns = 64;
    run.report = 20000;
    run.seed = 88172645463325252ull;
    run.begun = now_ns();
    for (int i = 1; i < argc; i++) {
        const char *name = argv[i];
        if (strcmp(name, "--once") == 0) {
            run.once = true;
            continue;
        }
        if (strcmp(name, "--retry") == 0) {
            run.retry = true;
            continue;
        }
        if (++i == argc)
            die(name);
        uint64_t number = strtoull(argv[i], NULL, 10);
        if (strcmp(name, "--plan") == 0)
            plan = argv[i];
        else if (strcmp(name, "--target") == 0)
            target_add(argv[i]);
        else if (strcmp(name, "--connections") == 0)
            run.n_conns = (int)number;
        else if (strcmp(name, "--requests") == 0)
            run.limit = number;
        else if (strcmp(name, "--seconds") == 0)
            run.end_at = run.begun + (uint64_t)(strtod(argv[i], NULL) * 1e9);
        else if (strcmp(name, "--rate") == 0)
            run.rate_ns = number ? 1000000000ull / number : 0;
        else if (strcmp(name, "--report") == 0)
            run.report = number;
        else if (strcmp(name, "--seed") == 0)
            run.seed ^= number * 0x9e3779b97f4a7c15ull;
        else if (strcmp(name, "--trace") == 0)
            run.trace = fopen(argv[i], "wb");
        else
            die(name);
    }
    if (!plan || !run.n_targets || !run.report)
        die("--plan and --target are needed");
    plan_read(plan);
    run.window = mem_calloc(run.report, sizeof *run.window);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGTERM, on_signal);
    signal(SIGINT, on_signal);
    run.tls = SSL_CTX_new(TLS_client_method());
    run.epoll = epoll_create1(EPOLL_CLOEXEC);
    if (!run.tls || run.epoll < 0)
        die("epoll");
    SSL_CTX_set_mode(run.tls, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    run.conns = mem_calloc((size_t)run.n_conns, sizeof *run.conns);
    run.active = run.n_conns;
    for (int i = 0; i < run.n_conns; i++) {
        struct conn *c = &run.conns[i];
        c->fd = -1;
        c->target = i % run.n_targets;
        c->md = EVP_MD_CTX_new();
        conn_next(c);
    }
    int timeout = wake_all();
    while (run.active > 0) {
        struct epoll_event events[256];
        int n = epoll_wait(run.epoll, events, 256, timeout);
        for (int i = 0; i < n; i++)
            conn_event(events[i].data.ptr, events[i].events);
        timeout = wake_all();
    }
    report(true);
    if (run.trace && fclose(run.trace))
        die("trace");
    uint64_t bad = 0;
    for (int i = REFUSED; i < LEFT; i++)
        if (!(run.retry && i <= UNANSWERED))
            bad += run.outcomes[i];
    return bad ? 1 : 0;
}
