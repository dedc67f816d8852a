/* pullgate-proxy: arguments, configuration, listening sockets, workers, signals. */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "pullgate/clock.h"
#include "pullgate/clockwatch.h"
#include "pullgate/fetch.h"
#include "pullgate/file.h"
#include "pullgate/listeners.h"
#include "pullgate/log.h"
#include "pullgate/mem.h"
#include "pullgate/metrics.h"
#include "pullgate/monitor.h"
#include "pullgate/notify.h"
#include "pullgate/privileges.h"
#include "pullgate/reload.h"
#include "pullgate/sandbox.h"
#include "pullgate/tokenshare.h"

#include "accesslog.h"
#include "admission.h"
#include "blobs.h"
#include "guard.h"
#include "metrics.h"
#include "worker.h"

#define MAX_WORKERS 256

static const char usage_text[] =
    "usage: pullgate-proxy [--config FILE] [--check] [--show-config] [--version]\n"
    "  --config FILE   configuration (default /etc/pullgate/pullgate.yaml)\n"
    "  --check         validate the configuration, TLS pair and keys, then exit\n"
    "  --show-config   print the effective configuration, secrets hidden\n";

struct program {
    struct proxy proxy;
    struct loop *loop; /* main thread: signals, drain deadline */
    struct timer *drain_deadline, *join_poll, *watchdog;
    struct reload *reload;
    struct clockwatch *clock;
    struct monitor *monitor;
    struct listeners *sockets, metrics_sockets; /* one set a worker; and the monitor's */
    uint64_t watchdog_ms; /* 0: nobody waits for it */
    bool is_draining;
};

static void finish(struct program *g, const char *why)
{
    log_info("%s", why);
    loop_stop(g->loop);
}

static void on_drain_deadline(void *ctx)
{
    struct program *g = ctx;

    log_warn("drain took longer than limits.drain: what is left is cut");
    for (unsigned i = 0; i < g->proxy.n_workers; i++)
        worker_stop(g->proxy.workers[i]);
    finish(g, "stopped");
}

static void on_join_poll(void *ctx)
{
    struct program *g = ctx;

    for (unsigned i = 0; i < g->proxy.n_workers; i++)
        if (!__atomic_load_n(&g->proxy.workers[i]->is_drained, __ATOMIC_ACQUIRE)) {
            timer_set(g->join_poll, 20);
            return;
        }
    finish(g, "drained");
}

static void on_stop_signal(void *ctx, int signo, unsigned ready)
{
    struct program *g = ctx;

    (void)signo, (void)ready;
    if (g->is_draining) {
        on_drain_deadline(g);
        return;
    }
    g->is_draining = true;
    notify_stopping();
    log_info("draining: no further connections, answers in flight finish");
    for (unsigned i = 0; i < g->proxy.n_workers; i++)
        worker_drain(g->proxy.workers[i]);
    timer_set(g->drain_deadline, g->proxy.cfg->limits.drain_ms);
    timer_set(g->join_poll, 10);
}

static void on_reopen(void *ctx, int signo, unsigned ready)
{
    struct program *g = ctx;

    (void)signo, (void)ready;
    accesslog_reopen(g->proxy.accesslog);
}

/* ---- while it runs ------------------------------------------------------------------------------------------------------- */

/* The manager hears of us as long as every loop goes round. */
static void on_watchdog(void *ctx)
{
    struct program *g = ctx;

    if (g->is_draining || proxy_metrics_alive(&g->proxy, g->watchdog_ms))
        notify_watchdog();
    else
        log_error("a worker's loop has not gone round for %llu ms", (unsigned long long)g->watchdog_ms);
    timer_set(g->watchdog, g->watchdog_ms / 3);
}

static void on_metrics(void *ctx, struct strbuf *ret)
{
    struct program *g = ctx;
    struct reload_counts reloads;

    reload_counts(g->reload, &reloads);
    proxy_metrics_text(&g->proxy, &reloads, ret);
}

static const char *on_ready(void *ctx)
{
    struct program *g = ctx;

    return g->is_draining ? "draining" : proxy_metrics_not_ready(&g->proxy);
}

static const struct config_tls *tls_of(const struct config *cfg)
{
    return &cfg->proxy.tls;
}

static void on_configuration(void *ctx, struct config *cfg, struct edge_tls *tls)
{
    struct program *g = ctx;
    struct proxy *p = &g->proxy;

    if (g->is_draining)
        return; /* workers come to their end: nothing is handed to them any more */
    config_ref(cfg);
    config_unref(&p->cfg);
    p->cfg = cfg;
    if (tls != NULL) {
        edge_tls_unref(&p->tls);
        p->tls = edge_tls_ref(tls);
    }
    guard_configure(p->guard, cfg);
    admission_configure(p->admission, cfg);
    blobs_configure(p->blobs, cfg);
    accesslog_reopen(p->accesslog);
    for (unsigned i = 0; i < p->n_workers; i++)
        worker_configure(p->workers[i], cfg, tls);
}

/* ---- the start ----------------------------------------------------------------------------------------------------------- */

static int fail(const struct error *error)
{
    log_error("%s", error->text);
    return EXIT_FAILURE;
}

static unsigned worker_count(const struct config *cfg)
{
    long n = cfg->proxy.workers > 0 ? (long)cfg->proxy.workers : sysconf(_SC_NPROCESSORS_ONLN);

    return n < 1 ? 1 : n > MAX_WORKERS ? MAX_WORKERS : (unsigned)n;
}

/* What clients are told: the public URL, else the first address that was bound. */
static void name_service(struct proxy *p, const char *bound)
{
    const struct config *cfg = p->cfg;
    struct fetch_url url;

    if (cfg->proxy.public_url[0] != '\0') {
        size_t n = strlen(cfg->proxy.public_url);
        while (n > 0 && cfg->proxy.public_url[n - 1] == '/')
            n--;
        snprintf(p->base_url, sizeof p->base_url, "%.*s", (int)n, cfg->proxy.public_url);
    } else {
        snprintf(p->base_url, sizeof p->base_url, "%s://%s", p->tls != NULL ? "https" : "http", bound);
    }
    if (cfg->proxy.realm_service[0] != '\0') {
        snprintf(p->service, sizeof p->service, "%s", cfg->proxy.realm_service);
    } else if (cfg->proxy.public_url[0] != '\0' && fetch_url_parse(cfg->proxy.public_url, &url, NULL) == ERR_OK) {
        snprintf(p->service, sizeof p->service, "%s", url.host);
        fetch_url_free(&url);
    } else {
        snprintf(p->service, sizeof p->service, "pullgate");
    }
}

/* What root may be needed for, then root is given up. */
static enum err bind_all(struct program *g, struct error *error)
{
    static const char *const names[] = {"proxy", "metrics", NULL};
    struct proxy *p = &g->proxy;
    const struct config *cfg = p->cfg;
    enum err e = listeners_check_names(names, error);

    p->n_workers = worker_count(cfg);
    g->sockets = mem_calloc(p->n_workers, sizeof *g->sockets);
    if (e == ERR_OK)
        e = listeners_open(&cfg->proxy.listen, "proxy", true, &g->sockets[0], error);
    if (e == ERR_OK && g->sockets[0].n == 0)
        e = error_set(error, ERR_INVALID, "proxy.listen names no address");
    for (unsigned i = 1; e == ERR_OK && i < p->n_workers; i++)
        e = listeners_again(&g->sockets[0], &g->sockets[i], error);
    if (e == ERR_OK)
        e = listeners_open(&cfg->proxy.metrics_listen, "metrics", false, &g->metrics_sockets, error);
    if (e == ERR_OK)
        e = privileges_drop(cfg, error);
    if (e == ERR_OK)
        privileges_warn_unreadable((const char *const[]){cfg->path, cfg->proxy.tls.cert, cfg->proxy.tls.key}, 3);
    return e;
}

/* Whoever asked for the file waits for it: without it the start has failed. */
static enum err write_port_file(const struct program *g, struct error *reterr)
{
    const char *file = g->proxy.cfg->proxy.port_file;
    struct strbuf text = {0};

    if (file[0] == '\0')
        return ERR_OK;
    for (size_t k = 0; k < g->sockets[0].n; k++)
        sb_addf(&text, "%s\n", g->sockets[0].bound[k]);
    for (size_t k = 0; k < g->metrics_sockets.n; k++)
        sb_addf(&text, "%s\n", g->metrics_sockets.bound[k]);
    enum err e = file_write_whole(file, sb_str(&text)) ? ERR_OK : error_set(reterr, ERR_UNAVAILABLE, "cannot write %s: %s", file, strerror(errno));
    sb_free(&text);
    return e;
}

static enum err serve(struct program *g, struct error *error)
{
    struct proxy *p = &g->proxy;
    const struct config *cfg = p->cfg;
    enum err e;

    p->workers = mem_calloc(p->n_workers, sizeof *p->workers);
    p->edge_shared = edge_shared_new(cfg->limits.connections, cfg->limits.connections_per_ip);
    p->guard = guard_new(cfg);
    p->admission = admission_new(g->loop, p);
    p->metrics = proxy_metrics_new(p);
    p->upstream_tokens = tokenshare_new();
    if ((e = accesslog_new(cfg, &p->accesslog, error)) != ERR_OK)
        return e;
    p->blobs = blobs_new(cfg, error);
    if (p->blobs == NULL)
        return ERR_UNAVAILABLE;
    name_service(p, g->sockets[0].bound[0]);
    for (unsigned i = 0; i < p->n_workers; i++) {
        int fds[CONFIG_MAX_LISTEN];
        size_t n = g->sockets[i].n;
        for (size_t k = 0; k < n; k++)
            fds[k] = listeners_take(&g->sockets[i], k);
        if ((e = worker_new(p, i, fds, n, &p->workers[i], error)) != ERR_OK)
            return e;
    }
    static const struct monitor_handlers monitoring = {.metrics = on_metrics, .not_ready = on_ready};
    struct monitor_handlers h = monitoring;
    h.ctx = g;
    if ((e = monitor_new(g->loop, cfg, &g->metrics_sockets, &h, &g->monitor, error)) != ERR_OK)
        return e;
    if ((e = sandbox_enter(cfg->process.sandbox, error)) != ERR_OK)
        return e;
    if ((e = write_port_file(g, error)) != ERR_OK)
        return e;
    for (unsigned i = 0; i < p->n_workers; i++) /* last: whoever fails to start has served nobody, and ends with one thread */
        if ((e = worker_start(p->workers[i], error)) != ERR_OK)
            return e;
    for (size_t k = 0; k < g->sockets[0].n; k++)
        log_info("listening on %s%s%s, %u workers", g->sockets[0].bound[k], g->sockets[0].is_given ? " (the service manager's)" : "",
                 p->tls != NULL ? " (TLS)" : "", p->n_workers);
    return ERR_OK;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {{"config", required_argument, NULL, 'c'}, {"check", no_argument, NULL, 't'},
                                            {"show-config", no_argument, NULL, 's'},  {"version", no_argument, NULL, 'V'},
                                            {"config-reference", no_argument, NULL, 'R'}, /* for the documentation */
                                            {"help", no_argument, NULL, 'h'},         {NULL, 0, NULL, 0}};
    struct program g = {0};
    struct error error = {0};
    const char *path = NULL;
    bool check = false, show = false;
    enum log_level level;

    log_init("pullgate-proxy", LOG_LEVEL_INFO);
    for (int c; (c = getopt_long(argc, argv, "c:h", options, NULL)) != -1;) {
        switch (c) {
        case 'c':
            path = optarg;
            break;
        case 't':
            check = true;
            break;
        case 's':
            show = true;
            break;
        case 'R': {
            struct strbuf text = {0};
            config_reference(&text);
            fputs(text.p, stdout);
            sb_free(&text);
            return EXIT_SUCCESS;
        }
        case 'V':
            puts("pullgate-proxy " PULLGATE_VERSION);
            return EXIT_SUCCESS;
        case 'h':
            fputs(usage_text, stdout);
            return EXIT_SUCCESS;
        default:
            fputs(usage_text, stderr);
            return 2;
        }
    }
    if (optind < argc) {
        fputs(usage_text, stderr);
        return 2;
    }
    if (config_load(path, &g.proxy.cfg, &error) != ERR_OK)
        return fail(&error);
    struct config *cfg = g.proxy.cfg;
    if (show) {
        struct strbuf text = {0};
        config_show(cfg, &text);
        fputs(text.p, stdout);
        sb_free(&text);
        return EXIT_SUCCESS;
    }
    if (log_level_parse(cfg->log.level, &level))
        log_set_level(level);
    if ((cfg->proxy.tls.cert[0] != '\0' || cfg->proxy.tls.key[0] != '\0') && edge_tls_load(&cfg->proxy.tls, &g.proxy.tls, &error) != ERR_OK)
        return fail(&error);
    if (!check)
        privileges_harden();
    /* The keys are the admin's to make: a proxy that starts first waits for them, so that the two may be started in any order. */
    enum err e = keyring_open(cfg->keys.path, false, &g.proxy.keys, &error);
    if (check) {
        /* Keys that are not there yet are no fault of the file: the admin makes them at its first start. */
        if (e != ERR_OK && e != ERR_UNAVAILABLE)
            return fail(&error);
        puts("the configuration is good");
        if (e == ERR_UNAVAILABLE)
            printf("but the keys are not there yet (%s): pullgate-admin makes them at its first start\n", error.text);
        return EXIT_SUCCESS;
    }
    for (unsigned tries = 0; e == ERR_UNAVAILABLE && tries < 600; tries++) {
        if (tries == 0)
            log_warn("%s: waiting for pullgate-admin to make it", error.text);
        usleep(100000);
        e = keyring_open(cfg->keys.path, false, &g.proxy.keys, &error);
    }
    if (e != ERR_OK)
        return fail(&error);

    struct rlimit files = {0};
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    signal(SIGPIPE, SIG_IGN);
    signal(SIGHUP, SIG_IGN); /* until it can be followed */
    char host[48] = "host";
    gethostname(host, sizeof host - 1);
    snprintf(g.proxy.instance, sizeof g.proxy.instance, "%s:%d", host, (int)getpid());

    if (bind_all(&g, &error) != ERR_OK) {
        for (unsigned i = 0; i < g.proxy.n_workers; i++)
            listeners_close(&g.sockets[i]);
        listeners_close(&g.metrics_sockets);
        mem_free(g.sockets);
        edge_tls_unref(&g.proxy.tls);
        keyring_free(g.proxy.keys);
        config_unref(&g.proxy.cfg);
        return fail(&error);
    }

    g.loop = loop_new();
    NEED(g.loop != NULL, "an event loop");
    g.drain_deadline = timer_new(g.loop, on_drain_deadline, &g);
    g.join_poll = timer_new(g.loop, on_join_poll, &g);
    g.watchdog = timer_new(g.loop, on_watchdog, &g);
    static const struct reload_handlers reloading = {.tls = tls_of, .apply = on_configuration};
    struct reload_handlers h = reloading;
    h.ctx = &g;
    g.reload = reload_new(g.loop, path, cfg, &h);
    g.clock = clockwatch_new(g.loop);
    struct watch *signals[] = {watch_signal(g.loop, SIGTERM, on_stop_signal, &g), watch_signal(g.loop, SIGINT, on_stop_signal, &g),
                               watch_signal(g.loop, SIGUSR1, on_reopen, &g)};
    if (serve(&g, &error) != ERR_OK)
        return fail(&error);
    g.watchdog_ms = notify_watchdog_ms();
    if (g.watchdog_ms > 0)
        on_watchdog(&g);
    notify_ready();
    loop_run(g.loop);

    sigset_t late; /* the end is under way: a further signal must not make a failure of it */
    sigemptyset(&late);
    sigaddset(&late, SIGTERM);
    sigaddset(&late, SIGINT);
    pthread_sigmask(SIG_BLOCK, &late, NULL);
    for (unsigned i = 0; i < g.proxy.n_workers; i++)
        worker_join(g.proxy.workers[i]);
    for (unsigned i = 0; i < g.proxy.n_workers; i++)
        worker_free(&g.proxy.workers[i]);
    mem_free(g.proxy.workers);
    mem_free(g.sockets);
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++)
        watch_free(&signals[i]);
    timer_free(&g.drain_deadline);
    timer_free(&g.join_poll);
    timer_free(&g.watchdog);
    monitor_free(&g.monitor);
    reload_free(&g.reload);
    clockwatch_free(&g.clock);
    loop_free(g.loop);
    blobs_free(&g.proxy.blobs);
    guard_free(&g.proxy.guard);
    tokenshare_free(&g.proxy.upstream_tokens);
    admission_free(&g.proxy.admission);
    accesslog_free(&g.proxy.accesslog);
    proxy_metrics_free(&g.proxy.metrics);
    edge_shared_free(&g.proxy.edge_shared);
    edge_tls_unref(&g.proxy.tls);
    keyring_free(g.proxy.keys);
    config_unref(&g.proxy.cfg);
    return EXIT_SUCCESS;
}
