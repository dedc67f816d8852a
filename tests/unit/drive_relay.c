/* Driver of the relay's integration tests: workers with a loop, an edge and an upstream each, one struct blobs, no rights and no Redis.
 * Every worker listens on its own port, so that a test chooses the worker. Prints "listen <worker> <address>" lines, then one JSON line
 * for every relay that ended.
 *
 *   GET|HEAD /v2/<name>/blobs/<digest>[?size=<hint>]   through relay_start()
 *   GET /stats                                         counters of blobs.c and the process
 *
 * SIGTERM ends it; SIGUSR1 makes worker 0 leave as at a shutdown while the others go on. */
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "pullgate/config.h"
#include "pullgate/edge.h"
#include "pullgate/head.h"
#include "pullgate/log.h"
#include "pullgate/loop.h"
#include "pullgate/mem.h"
#include "pullgate/oci.h"

#include "blobs.h"
#include "relay.h"
#include "upstreams.h"
#include "worker.h"

/* ---- upstreams.h over one fixed upstream a worker --------------------------------------------------------------------- */

struct upstreams {
    struct loop *loop;
    struct upstream *upstream;
};
struct upstreams_op {
    struct upstreams *u;
    upstreams_cb *cb;
    void *ctx;
};

static void on_get(void *arg)
{
    struct upstreams_op *op = arg;
    upstreams_cb *cb = op->cb;
    void *ctx = op->ctx;
    struct upstream *u = op->u->upstream;

    mem_free(op);
    if (cb != NULL)
        cb(ctx, ERR_OK, u);
}

struct upstreams_op *upstreams_get(struct upstreams *u, struct str upstream_id, upstreams_cb *cb, void *ctx)
{
    struct upstreams_op *op = NEW(struct upstreams_op);

    (void)upstream_id;
    *op = (struct upstreams_op){.u = u, .cb = cb, .ctx = ctx};
    loop_defer(u->loop, on_get, op);
    return op;
}

void upstreams_cancel(struct upstreams_op **op)
{
    if (*op != NULL)
        (*op)->cb = NULL;
    *op = NULL;
}

/* ---- requests ------------------------------------------------------------------------------------------------------------- */

struct exchange {
    struct worker *worker;
    struct edge_req *req;
    struct relay *relay;
};

static pthread_mutex_t out_lock = PTHREAD_MUTEX_INITIALIZER;
static atomic_uint n_open;
static struct proxy proxy;

static const char *const end_names[] = {
    [RELAY_OK] = "ok",
    [RELAY_UPSTREAM_FAILED] = "upstream_failed",
    [RELAY_UPSTREAM_CUT] = "upstream_cut",
    [RELAY_TOO_LONG] = "too_long",
    [RELAY_DIGEST_MISMATCH] = "digest_mismatch",
    [RELAY_NOT_SATISFIABLE] = "not_satisfiable",
    [RELAY_REDIRECT] = "redirect",
    [RELAY_OVERLOADED] = "overloaded",
};

static void say(const char *end, const struct relay_result *r)
{
    pthread_mutex_lock(&out_lock);
    printf("{\"end\":\"%s\",\"err\":\"%s\",\"detail\":\"%s\",\"bytes_sent\":%llu,\"size\":%llu,\"head_sent\":%s,\"from_cache\":%s}\n", end,
           r != NULL ? err_text(r->err) : "", r != NULL && r->detail != NULL ? r->detail : "", r != NULL ? (unsigned long long)r->bytes_sent : 0ULL,
           r != NULL ? (unsigned long long)r->size : 0ULL, r != NULL && r->head_sent ? "true" : "false", r != NULL && r->from_cache ? "true" : "false");
    fflush(stdout);
    pthread_mutex_unlock(&out_lock);
}

static void on_relay_done(void *ctx, const struct relay_result *r)
{
    struct exchange *x = ctx;
    char fields[512] = "";

    x->relay = NULL;
    if (!r->head_sent) {
        int status = r->end == RELAY_NOT_SATISFIABLE ? 416 : r->end == RELAY_REDIRECT ? 307 : err_http_status(r->err);
        if (r->end == RELAY_NOT_SATISFIABLE)
            snprintf(fields, sizeof fields, "Content-Range: bytes */%llu\r\n", (unsigned long long)r->size);
        if (r->end == RELAY_REDIRECT)
            snprintf(fields, sizeof fields, "Location: %s\r\n", r->location);
        if (r->retry_after_s > 0)
            snprintf(fields, sizeof fields, "Retry-After: %u\r\n", r->retry_after_s);
        edge_reply(x->req, status, S("Failed"), str_c(fields), str_c(r->detail), -1);
    }
    say(end_names[r->end], r);
    atomic_fetch_sub(&n_open, 1);
    mem_free(x);
}

static void reply_stats(struct edge_req *req)
{
    struct blobs_stats s;
    struct rusage u;
    struct strbuf b = {0};
    char status[4096] = "", *at;
    unsigned long rss = 0, anon = 0;

    blobs_stats(proxy.blobs, &s);
    getrusage(RUSAGE_SELF, &u);
    int fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        (void)!read(fd, status, sizeof status - 1);
        close(fd);
    }
    if ((at = strstr(status, "VmRSS:")) != NULL)
        rss = strtoul(at + 6, NULL, 10);
    if ((at = strstr(status, "RssAnon:")) != NULL)
        anon = strtoul(at + 8, NULL, 10);
    sb_addf(&b,
            "{\"hits\":%llu,\"misses\":%llu,\"joined\":%llu,\"resumed\":%llu,\"mismatches\":%llu,\"unusable\":%llu,\"evicted\":%llu,"
            "\"dropped_bad\":%llu,\"files\":%llu,\"bytes\":%llu,\"in_flight\":%llu,\"open\":%u,\"rss_kib\":%lu,\"anon_kib\":%lu,"
            "\"cpu_s\":%.3f}",
            (unsigned long long)s.hits, (unsigned long long)s.misses, (unsigned long long)s.joined, (unsigned long long)s.resumed,
            (unsigned long long)s.mismatches, (unsigned long long)s.unusable, (unsigned long long)s.evicted, (unsigned long long)s.dropped_bad,
            (unsigned long long)s.files, (unsigned long long)s.bytes, (unsigned long long)s.in_flight, atomic_load(&n_open), rss, anon,
            (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) + (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6);
    edge_reply(req, 200, S("OK"), S("Content-Type: application/json\r\n"), sb_str(&b), -1);
    sb_free(&b);
}

static void on_request(void *ctx, struct edge_req *req)
{
    struct worker *w = ctx;
    const struct head *h = edge_req_head(req);
    struct oci_request oci;
    struct strbuf size = {0};
    uint64_t hint = 0;

    if (str_eq_c(h->path, "/stats")) {
        reply_stats(req);
        return;
    }
    if (oci_route_parse(h->target, &oci, NULL) != ERR_OK || oci.kind != OCI_BLOB) {
        edge_reply(req, 404, S("Not Found"), S(""), S("no such route\n"), -1);
        return;
    }
    if (query_get(oci.query, "size", &size))
        (void)str_to_u64(sb_str(&size), &hint);
    sb_free(&size);
    struct exchange *x = NEW(struct exchange);
    x->worker = w;
    x->req = req;
    edge_req_set_handle(req, x);
    atomic_fetch_add(&n_open, 1);
    struct relay_ask ask = {
        .req = req,
        .upstream_id = S("up_1"),
        .upstream_repository = oci.repository,
        .repository_id = S("rep_1"),
        .digest = oci.digest,
        .size_hint = hint,
        .head_only = h->method == HEAD_HEAD,
        .range = head_get(h, "Range", NULL),
        .fields = S("X-Driver: yes\r\n"),
    };
    x->relay = relay_start(w, &ask, on_relay_done, x);
}

static void on_gone(void *ctx, struct edge_req *req, void *handle, bool too_slow)
{
    struct exchange *x = handle;

    (void)ctx, (void)req;
    relay_cancel(&x->relay);
    say(too_slow ? "too_slow" : "gone", NULL);
    atomic_fetch_sub(&n_open, 1);
    mem_free(x);
}

static void on_drain(void *ctx, struct edge_req *req, void *handle)
{
    struct exchange *x = handle;

    (void)ctx, (void)req;
    relay_drained(x->relay);
}

/* ---- workers ---------------------------------------------------------------------------------------------------------------- */

static void driver_stop(void *arg)
{
    struct worker *w = arg;

    edge_free(&w->edge);
    blobs_worker_leave(proxy.blobs, w);
    upstream_unref(&w->upstreams->upstream);
    loop_stop(w->loop);
}

static void *driver_main(void *arg)
{
    struct worker *w = arg;
    loop_run(w->loop);
    return NULL;
}

static uint64_t number(const char *s)
{
    uint64_t v = 0;
    if (!str_to_u64(str_c(s), &v)) {
        fprintf(stderr, "not a number: %s\n", s);
        exit(2);
    }
    return v;
}

int main(int argc, char **argv)
{
    struct config *c = NEW(struct config);
    struct upstream_limits lim = {0};
    struct error err = {0};
    const char *url = NULL, *redirect_host = NULL;
    struct config_tls tls_files = {0};
    struct edge_tls *tls = NULL;
    unsigned n_workers = 2;
    bool pass = false;
    sigset_t set;

    c->refs = 1;
    c->path = mem_strdup("driver");
    c->proxy.blob_cache.path = mem_strdup("");
    c->proxy.blob_cache.max_bytes = (uint64_t)1 << 30;
    c->proxy.spool_path = mem_strdup("/var/tmp");
    c->limits.connections = 10000;
    c->limits.connections_per_ip = 10000;
    c->limits.target_bytes = 4096;
    c->limits.head_bytes = 16384;
    c->limits.head_fields = 64;
    c->limits.head_deadline_ms = 10000;
    c->limits.body_deadline_ms = 30000;
    c->limits.tls_handshake_ms = 10000;
    c->limits.keepalive_idle_ms = 60000;
    c->limits.keepalive_requests = 1000;
    c->limits.client_min_rate = 0;
    c->limits.client_min_rate_window_ms = 30000;
    c->limits.blob_max_duration_ms = 7200000;
    c->limits.upstream_connections = 128;
    c->limits.buffer_high = 262144;
    c->limits.buffer_low = 65536;
    c->limits.upstream_connect_ms = 5000;
    c->limits.upstream_first_byte_ms = 15000;
    c->limits.upstream_stall_ms = 30000;
    c->limits.upstream_retries = 2;
    c->limits.streams_per_worker = 1000;
    log_init("drive_relay", LOG_LEVEL_INFO);
    for (int i = 1; i + 1 < argc; i += 2) {
        const char *k = argv[i], *v = argv[i + 1];
        if (strcmp(k, "--upstream") == 0)
            url = v;
        else if (strcmp(k, "--workers") == 0)
            n_workers = (unsigned)number(v);
        else if (strcmp(k, "--redirects") == 0)
            pass = strcmp(v, "pass") == 0;
        else if (strcmp(k, "--tls-cert") == 0)
            tls_files.cert = mem_strdup(v);
        else if (strcmp(k, "--tls-key") == 0)
            tls_files.key = mem_strdup(v);
        else if (strcmp(k, "--redirect-host") == 0)
            redirect_host = v;
        else if (strcmp(k, "--cache") == 0) {
            mem_free(c->proxy.blob_cache.path);
            c->proxy.blob_cache.path = mem_strdup(v);
        } else if (strcmp(k, "--spool") == 0) {
            mem_free(c->proxy.spool_path);
            c->proxy.spool_path = mem_strdup(v);
        } else if (strcmp(k, "--max-bytes") == 0)
            c->proxy.blob_cache.max_bytes = number(v);
        else if (strcmp(k, "--streams") == 0)
            c->limits.streams_per_worker = number(v);
        else if (strcmp(k, "--retries") == 0)
            c->limits.upstream_retries = number(v);
        else if (strcmp(k, "--spool-keep-ms") == 0)
            c->proxy.spool_keep_ms = number(v);
        else if (strcmp(k, "--max-duration-ms") == 0)
            c->limits.blob_max_duration_ms = number(v);
        else if (strcmp(k, "--min-rate") == 0)
            c->limits.client_min_rate = number(v);
        else if (strcmp(k, "--min-rate-window-ms") == 0)
            c->limits.client_min_rate_window_ms = number(v);
        else if (strcmp(k, "--file-size-limit") == 0) {
            struct rlimit r = {number(v), number(v)};
            setrlimit(RLIMIT_FSIZE, &r);
        } else {
            fprintf(stderr, "unknown option %s\n", k);
            return 2;
        }
    }
    if (url == NULL) {
        fprintf(stderr, "--upstream is missing\n");
        return 2;
    }
    tls_files.min_version = mem_strdup("1.2");
    if (tls_files.cert != NULL && edge_tls_load(&tls_files, &tls, &err) != ERR_OK) {
        fprintf(stderr, "tls: %s\n", err.text);
        return 1;
    }
    signal(SIGPIPE, SIG_IGN);
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &set, NULL);

    lim.fetch = (struct fetch_limits){
        .connections = c->limits.upstream_connections,
        .connect_ms = c->limits.upstream_connect_ms,
        .first_byte_ms = c->limits.upstream_first_byte_ms,
        .stall_ms = c->limits.upstream_stall_ms,
        .head_bytes = 32768,
        .head_fields = 64,
    };
    lim.retries = (unsigned)c->limits.upstream_retries;
    lim.manifest_bytes = (size_t)4 << 20;
    lim.tags_bytes = (size_t)16 << 20;
    lim.breaker_failures = 1000000;
    lim.breaker_ms = 1000;

    proxy.cfg = c;
    proxy.n_workers = n_workers;
    proxy.workers = mem_calloc(n_workers, sizeof proxy.workers[0]);
    proxy.edge_shared = edge_shared_new(c->limits.connections, c->limits.connections_per_ip);
    proxy.blobs = blobs_new(c, &err);
    if (proxy.blobs == NULL) {
        fprintf(stderr, "blobs: %s\n", err.text);
        return 1;
    }
    for (unsigned i = 0; i < n_workers; i++) {
        struct worker *w = NEW(struct worker);
        struct upstream_spec *spec = NEW(struct upstream_spec);
        char bound[128];
        int fd;

        w->id = i;
        w->proxy = &proxy;
        w->cfg = c;
        w->loop = loop_new();
        spec->id = mem_strdup("up_1");
        spec->url = mem_strdup(url);
        spec->username = mem_strdup("");
        spec->password = mem_strdup("");
        spec->ca_pem = mem_strdup("");
        spec->realm = mem_strdup("");
        spec->redirects_pass = pass;
        spec->redirect_hosts = mem_calloc(2, sizeof spec->redirect_hosts[0]);
        if (redirect_host != NULL)
            spec->redirect_hosts[0] = mem_strdup(redirect_host);
        w->upstreams = NEW(struct upstreams);
        w->upstreams->loop = w->loop;
        w->upstreams->upstream = upstream_new(w->loop, spec, &lim);
        struct edge_handlers handlers = {.ctx = w, .on_request = on_request, .on_gone = on_gone, .on_drain = on_drain};
        w->edge = edge_new(w->loop, c, proxy.edge_shared, &handlers);
        if (edge_listen("127.0.0.1:0", &fd, bound, &err) != ERR_OK || edge_accept(w->edge, fd, tls, &err) != ERR_OK) {
            fprintf(stderr, "listen: %s\n", err.text);
            return 1;
        }
        printf("listen %u %s\n", i, bound);
        proxy.workers[i] = w;
    }
    printf("ready\n");
    fflush(stdout);
    for (unsigned i = 0; i < n_workers; i++)
        AN(pthread_create(&proxy.workers[i]->thread, NULL, driver_main, proxy.workers[i]) == 0);

    bool first_left = false;
    for (int sig = 0; sig != SIGTERM && sig != SIGINT;) {
        sigwait(&set, &sig);
        if (sig == SIGUSR1 && !first_left) {
            first_left = true;
            loop_post(proxy.workers[0]->loop, driver_stop, proxy.workers[0]);
        }
    }
    for (unsigned i = first_left ? 1 : 0; i < n_workers; i++)
        loop_post(proxy.workers[i]->loop, driver_stop, proxy.workers[i]);
    for (unsigned i = 0; i < n_workers; i++)
        pthread_join(proxy.workers[i]->thread, NULL);
    for (unsigned i = 0; i < n_workers; i++) {
        loop_free(proxy.workers[i]->loop);
        mem_free(proxy.workers[i]->upstreams);
        mem_free(proxy.workers[i]);
    }
    blobs_free(&proxy.blobs);
    edge_shared_free(&proxy.edge_shared);
    edge_tls_unref(&tls);
    mem_free(tls_files.cert);
    mem_free(tls_files.key);
    mem_free(tls_files.min_version);
    mem_free(proxy.workers);
    config_unref(&c);
    return 0;
}
