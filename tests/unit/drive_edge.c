/* A small server over the edge, for tests with raw sockets and for measuring the edge alone:
 *
 *   drive_edge config.yaml     prints one line per listener ("plain 127.0.0.1:1234", "tls …"), serves until standard input closes,
 *                              then drains, prints the counters and ends; "q" there ends it without a drain.
 *                              proxy.listen is served plain, admin.listen with admin.tls.
 *
 *   /            method, target, body, peer as text          /hot          a 500-byte body
 *   /bytes/N     N patterned bytes, streamed in pieces       /file/N       the same from a file
 *   /slow/MS     answered after MS                           /never        never answered: what is left of it is told by /gone
 *   /gone        how many on_gone came                       /cut          headers for 1000 bytes, 10 bytes, then the cut
 *   /reason      a reason phrase with control bytes          /short        ends 5 bytes early
 *   /head/N      for HEAD: announces N bytes                 /stats        counters                       /close        closes after  */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "pullgate/config.h"
#include "pullgate/edge.h"
#include "pullgate/log.h"
#include "pullgate/loop.h"
#include "pullgate/mem.h"

#define CHUNK      65536u
#define FILE_CHUNK (1024u * 1024u)

static struct loop *loop;
static struct edge *edge;
static const struct config *config;
static uint64_t n_gone, n_slow, n_drained, peak_pending;
static bool has_drained;
static int file_fd = -1;
static char pattern[FILE_CHUNK];
static char hot[500];

struct stream {
    struct edge_req *req;
    uint64_t at, size;
    bool from_file;
    struct timer *timer; /* of /slow */
};

static void stream_free(struct stream *s)
{
    timer_free(&s->timer);
    mem_free(s);
}

static void stream_pump(struct stream *s)
{
    while (s->at < s->size && edge_pending(s->req) < config->limits.buffer_high) {
        size_t n = s->from_file ? FILE_CHUNK : CHUNK;
        if (n > s->size - s->at)
            n = (size_t)(s->size - s->at);
        if (s->from_file) {
            if (edge_write_file(s->req, file_fd, s->at, n))
                abort();
        } else {
            edge_write(s->req, pattern + s->at % CHUNK, n); /* CHUNK divides the pattern's period of pieces */
        }
        s->at += n;
        if (edge_pending(s->req) > peak_pending)
            peak_pending = edge_pending(s->req);
        if (s->from_file)
            break; /* one window a round */
    }
    if (s->at == s->size) {
        struct edge_req *r = s->req;
        stream_free(s);
        edge_end(r);
    }
}

static void on_slow_timer(void *ctx)
{
    struct stream *s = ctx;
    struct edge_req *r = s->req;
    stream_free(s);
    edge_reply(r, 200, (struct str){0}, S("Content-Type: text/plain\r\n"), S("slow\n"), -1);
}

static uint64_t number_after(struct str path, const char *prefix)
{
    uint64_t n = 0;
    (void)str_to_u64(str_skip(path, strlen(prefix)), &n);
    return n;
}

static void on_request(void *ctx, struct edge_req *r)
{
    static const struct str type = {"Content-Type: text/plain\r\n", 26};
    const struct head *h = edge_req_head(r);
    struct str p = h->path;
    struct strbuf b = {0};
    (void)ctx;

    if (str_eq_c(p, "/hot")) {
        edge_reply(r, 200, (struct str){0}, type, (struct str){hot, sizeof hot}, -1);
        return;
    }
    if (str_starts(p, S("/bytes/")) || str_starts(p, S("/file/"))) {
        struct stream *s = NEW(struct stream);
        s->req = r;
        s->from_file = p.p[1] == 'f';
        s->size = number_after(p, s->from_file ? "/file/" : "/bytes/");
        edge_req_set_handle(r, s);
        edge_start(r, 200, (struct str){0}, type, s->size);
        stream_pump(s);
        return;
    }
    if (str_starts(p, S("/slow/"))) {
        struct stream *s = NEW(struct stream);
        s->req = r;
        s->timer = timer_new(loop, on_slow_timer, s);
        edge_req_set_handle(r, s);
        timer_set(s->timer, number_after(p, "/slow/"));
        return;
    }
    if (str_eq_c(p, "/never")) {
        struct stream *s = NEW(struct stream);
        s->req = r;
        edge_req_set_handle(r, s);
        return;
    }
    if (str_eq_c(p, "/cut") || str_eq_c(p, "/short")) {
        edge_start(r, 200, (struct str){0}, type, 1000);
        edge_write(r, pattern, str_eq_c(p, "/cut") ? 10 : 995);
        if (str_eq_c(p, "/cut"))
            edge_abort(r);
        else
            edge_end(r);
        return;
    }
    if (str_eq_c(p, "/reason")) {
        sb_addc(&b, "Forbidden: license \"Ac\r\nX-Injected: 1\tme\x7f\" \xc3\xa9");
        for (int i = 0; i < 1000; i++)
            sb_addc(&b, "\xc3\xa9");
        edge_reply(r, 403, sb_str(&b), type, S("no\n"), -1);
        sb_free(&b);
        return;
    }
    if (str_starts(p, S("/head/"))) {
        edge_reply(r, 200, (struct str){0}, type, (struct str){0}, (int64_t)number_after(p, "/head/"));
        return;
    }
    if (str_eq_c(p, "/204") || str_eq_c(p, "/304")) {
        edge_reply(r, p.p[1] == '2' ? 204 : 304, (struct str){0}, (struct str){0}, S("never sent"), -1);
        return;
    }
    if (str_eq_c(p, "/close"))
        edge_req_close_after(r);
    if (str_eq_c(p, "/gone"))
        sb_addf(&b, "%llu %llu\n", (unsigned long long)n_gone, (unsigned long long)n_slow);
    else if (str_eq_c(p, "/stats")) {
        struct edge_stats st;
        edge_stats(edge, &st);
        sb_addf(&b,
                "accepted %llu open %llu refused_limit %llu requests %llu bad_heads %llu slow_clients %llu bytes_out %llu peak_pending "
                "%llu drains %llu\n",
                (unsigned long long)st.accepted, (unsigned long long)st.open, (unsigned long long)st.refused_limit,
                (unsigned long long)st.requests, (unsigned long long)st.bad_heads, (unsigned long long)st.slow_clients,
                (unsigned long long)st.bytes_out, (unsigned long long)peak_pending, (unsigned long long)n_drained);
    } else
        sb_addf(&b, "%.*s %.*s body=%.*s peer=%s tls=%d\n", STR(h->method_text), STR(h->target), STR(edge_req_body(r)), edge_req_peer(r),
                edge_req_is_tls(r));
    bool allowed = h->method == HEAD_GET || h->method == HEAD_HEAD || (h->method == HEAD_POST && str_starts(p, S("/body")));
    edge_reply(r, allowed ? 200 : 405, (struct str){0}, type, sb_str(&b), -1);
    sb_free(&b);
}

static size_t body_limit(void *ctx, const struct head *h)
{
    (void)ctx;
    return h->method == HEAD_POST && str_starts(h->path, S("/body")) ? 1000 : 0;
}

static void on_gone(void *ctx, struct edge_req *r, void *handle, bool too_slow)
{
    (void)ctx, (void)r;
    n_gone++;
    n_slow += too_slow;
    if (handle)
        stream_free(handle);
}

static void on_drain(void *ctx, struct edge_req *r, void *handle)
{
    (void)ctx, (void)r;
    n_drained++;
    if (handle)
        stream_pump(handle);
}

static void refusal(void *ctx, int status, const char *reason, struct strbuf *fields, struct strbuf *body)
{
    (void)ctx;
    sb_addc(fields, "Content-Type: application/json\r\n");
    sb_addf(body, "{\"errors\":[{\"code\":\"%d\",\"message\":", status);
    sb_add_json(body, str_c(reason));
    sb_addc(body, "}]}");
}

static void on_drained(void *ctx)
{
    (void)ctx;
    has_drained = true;
    loop_stop(loop);
}

static void on_stdin(void *ctx, int fd, unsigned ready)
{
    char buf[64];
    (void)ctx, (void)ready;
    ssize_t n = read(fd, buf, sizeof buf);
    if (n > 0 && buf[0] == 'q')
        loop_stop(loop);
    else if (n <= 0)
        edge_drain(edge, on_drained, NULL);
}

static void listen_on(const struct config_listen *l, struct edge_tls *tls)
{
    for (size_t i = 0; i < l->n; i++) {
        struct error err;
        char bound[128];
        int fd;
        if (edge_listen(l->list[i], &fd, bound, &err) || edge_accept(edge, fd, tls, &err)) {
            fprintf(stderr, "%s\n", err.text);
            exit(1);
        }
        printf("%s %s\n", tls ? "tls" : "plain", bound);
    }
}

int main(int argc, char **argv)
{
    static const struct edge_handlers handlers = {
        .body_limit = body_limit, .on_request = on_request, .on_gone = on_gone, .on_drain = on_drain, .refusal = refusal};
    struct config *cfg;
    struct error err;
    struct edge_tls *tls = NULL;

    log_init("drive_edge", LOG_LEVEL_INFO);
    if (argc != 2 || config_load(argv[1], &cfg, &err)) {
        fprintf(stderr, "%s\n", argc == 2 ? err.text : "usage: drive_edge config.yaml");
        return 1;
    }
    config = cfg;
    for (size_t i = 0; i < sizeof pattern; i++)
        pattern[i] = (char)('a' + i % CHUNK % 26);
    memset(hot, 'x', sizeof hot);
    char name[] = "/tmp/drive_edge.XXXXXX";
    file_fd = mkstemp(name);
    unlink(name);
    for (int i = 0; i < 64; i++)
        if (write(file_fd, pattern, sizeof pattern) != (ssize_t)sizeof pattern)
            return 1;

    loop = loop_new();
    struct edge_shared *shared = edge_shared_new(cfg->limits.connections, cfg->limits.connections_per_ip);
    edge = edge_new(loop, cfg, shared, &handlers);
    edge_front(edge, &cfg->proxy.trusted_proxies, cfg->proxy.proxy_protocol, cfg->proxy.forwarded_field);
    listen_on(&cfg->proxy.listen, NULL);
    if (cfg->admin.tls.cert[0]) { /* the admin section is the TLS listener here */
        if (edge_tls_load(&cfg->admin.tls, &tls, &err)) {
            fprintf(stderr, "%s\n", err.text);
            return 1;
        }
        listen_on(&cfg->admin.listen, tls);
    }
    fflush(stdout);
    struct watch *in = watch_new(loop, STDIN_FILENO, WATCH_READ, on_stdin, NULL);
    loop_run(loop);
    watch_free(&in);
    struct edge_stats st;
    edge_stats(edge, &st);
    printf("drained %d open %llu connections %llu gone %llu\n", has_drained, (unsigned long long)st.open,
           (unsigned long long)edge_shared_connections(shared), (unsigned long long)n_gone);
    edge_free(&edge);
    printf("freed connections %llu gone %llu\n", (unsigned long long)edge_shared_connections(shared), (unsigned long long)n_gone);
    edge_tls_unref(&tls);
    loop_free(loop);
    edge_shared_free(&shared);
    config_unref(&cfg);
    close(file_fd);
    return 0;
}
