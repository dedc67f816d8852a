/* pullgate-admin: the control plane. Arguments, configuration, start and stop of the parts; what they do stands in their files. */
#include <getopt.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "admin.h"
#include "audit.h"
#include "db.h"
#include "delivery.h"
#include "events.h"
#include "finder.h"
#include "http.h"
#include "jobs.h"
#include "mail.h"
#include "projector.h"
#include "pullgate/clockwatch.h"
#include "pullgate/config.h"
#include "pullgate/edge.h"
#include "pullgate/log.h"
#include "pullgate/loop.h"
#include "pullgate/mem.h"
#include "pullgate/notify.h"
#include "pullgate/privileges.h"
#include "pullgate/reload.h"
#include "pullgate/sandbox.h"
#include "pullgate/seal.h"
#include "pullgate/str.h"
#include "signer.h"
#include "start.h"
#include "sync.h"

#define QUEUE_MAX      256 /* requests that may wait for a database thread */
#define QUEUE_SLOW_MAX 16  /* that may wait for a network */
#define QUEUE_HASH_MAX 32 /* sign-ins that may wait: less than a second */
#define CLOCK_CHECK_MS 60000

static const char USAGE[] = "usage: pullgate-admin [--config FILE] [--check | --show-config | --version]\n";

struct retired { /* a configuration that was in force; other threads may still read it */
    struct config *cfg;
    struct retired *next;
};

struct process {
    struct admin admin;
    struct retired *retired;
    struct http_sockets sockets;
    struct watch *sigterm, *sigint, *sigusr1;
    struct timer *clock_timer, *drain_timer, *watchdog;
    struct clockwatch *clock;
    uint64_t watchdog_ms; /* 0: nobody waits for it */
    bool is_stopping;
};

/* ---- signals ------------------------------------------------------------------------------------------------------------ */

static void on_drained(void *ctx)
{
    struct process *p = ctx;
    loop_stop(p->admin.loop);
}

static void on_terminate(void *ctx, int fd, unsigned ready)
{
    struct process *p = ctx;
    (void)fd, (void)ready;
    if (p->is_stopping) {
        log_warn("told to end twice: what runs is cut");
        loop_stop(p->admin.loop);
        return;
    }
    p->is_stopping = true;
    notify_stopping();
    log_info("draining");
    timer_set(p->drain_timer, p->admin.cfg->limits.drain_ms);
    http_drain(p->admin.http, on_drained, p);
}

static void on_drain_over(void *ctx)
{
    struct process *p = ctx;
    log_warn("clients did not leave in time");
    loop_stop(p->admin.loop);
}

static const struct config_tls *tls_of(const struct config *cfg)
{
    return &cfg->admin.tls;
}

static void on_configuration(void *ctx, struct config *cfg, struct edge_tls *tls)
{
    struct process *p = ctx;
    if (p->is_stopping)
        return;
    if (cfg != p->admin.cfg) {
        struct retired *r = NEW(struct retired);
        *r = (struct retired){.cfg = p->admin.cfg, .next = p->retired};
        p->retired = r;
        __atomic_store_n(&p->admin.cfg, config_ref(cfg), __ATOMIC_RELEASE);
    }
    http_configure(p->admin.http, tls);
    start_reload_token(&p->admin);
}

static void on_reopen(void *ctx, int fd, unsigned ready)
{
    struct process *p = ctx;
    (void)fd, (void)ready;
    http_configure(p->admin.http, NULL);
}

static void on_watchdog(void *ctx)
{
    struct process *p = ctx;
    notify_watchdog();
    timer_set(p->watchdog, p->watchdog_ms / 3);
}

static void clock_is_bad(void *ctx)
{
    struct process *p = ctx;
    log_error("the clock is more than five minutes behind what it was: validity windows cannot be trusted");
    http_set_clock_bad(p->admin.http, true);
    jobs_set_clock_bad(p->admin.jobs, true);
}

static void clock_is_good(void *ctx)
{
    struct process *p = ctx;
    http_set_clock_bad(p->admin.http, false);
    jobs_set_clock_bad(p->admin.jobs, false);
}

/* In the writer's thread. */
static void on_clock_checked(void *ctx, enum err err, bool is_bad)
{
    struct process *p = ctx;
    if (!err)
        loop_post(p->admin.loop, is_bad ? clock_is_bad : clock_is_good, p);
}

static void on_clock(void *ctx)
{
    struct process *p = ctx;
    start_watch_clock(&p->admin, on_clock_checked, p);
    timer_set(p->clock_timer, CLOCK_CHECK_MS);
}

/* ---- start and stop ------------------------------------------------------------------------------------------------------ */

static void on_commit(void *ctx, struct store *s)
{
    struct admin *a = ctx;
    audit_head_write(a->audit_head, s, a->keys);
    /* Set once, before requests are served, and cleared after this thread has ended. */
    struct projector *projector = __atomic_load_n(&a->projector, __ATOMIC_ACQUIRE);
    if (projector)
        projector_poke(projector);
    struct delivery *delivery = __atomic_load_n(&a->delivery, __ATOMIC_ACQUIRE);
    if (delivery)
        delivery_poke(delivery);
}

static enum err start_databases(struct admin *a, struct error *reterr)
{
    struct db_options o = {.url = a->cfg->store.url, .name = "db-write", .queue_max = QUEUE_MAX, .before_commit = finder_flush, .on_commit = on_commit, .ctx = a};
    enum err err = db_start(&o, &a->writer, reterr);
    o = (struct db_options){.url = a->cfg->store.url, .name = "db-read", .read_only = true, .queue_max = QUEUE_MAX};
    if (!err)
        err = db_start(&o, &a->reader, reterr);
    o.name = "db-slow";
    o.queue_max = QUEUE_SLOW_MAX;
    if (!err)
        err = db_start(&o, &a->slow, reterr);
    o.name = "db-hash";
    o.queue_max = QUEUE_HASH_MAX;
    if (!err)
        err = db_start(&o, &a->hasher, reterr);
    return err;
}

/* What root may be needed for, then root is given up: what is made from here on, the keys of a first start and the store, is the user's. */
static enum err start_privileged(struct process *p, struct error *reterr)
{
    struct admin *a = &p->admin;
    const struct config *cfg = a->cfg;
    enum err err = http_bind(cfg, &p->sockets, reterr);
    if (!err)
        err = keyring_open(cfg->keys.path, false, &a->keys, reterr);
    if (err == ERR_UNAVAILABLE)
        err = ERR_OK; /* none yet, or a fault that the next attempt will name */
    if (!err)
        err = privileges_drop(cfg, reterr);
    if (!err)
        privileges_warn_unreadable((const char *const[]){cfg->path, cfg->admin.tls.cert, cfg->admin.tls.key, cfg->admin.bootstrap_token_file}, 4);
    return err;
}

static enum err start_all(struct process *p, struct error *reterr)
{
    struct admin *a = &p->admin;
    bool is_bad = false;
    enum err err = start_privileged(p, reterr);
    if (!err && !a->keys)
        err = keyring_open(a->cfg->keys.path, true, &a->keys, reterr);
    if (!err)
        err = start_databases(a, reterr);
    if (!err)
        err = signer_start(a, reterr);
    if (!err)
        err = start_audit(a, reterr);
    if (!err)
        err = start_vendor(a, reterr);
    if (!err)
        err = start_bootstrap_token(a, reterr);
    if (!err)
        err = start_check_clock(a, &is_bad, reterr);
    if (err)
        return err;
    __atomic_store_n(&a->projector, projector_start(a->cfg, a->keys, a->writer), __ATOMIC_RELEASE);
    a->events = events_start(a);
    a->sync = sync_start(a);
    a->jobs = jobs_start(a, is_bad);
    a->mail = mail_start(a);
    __atomic_store_n(&a->delivery, delivery_start(a), __ATOMIC_RELEASE);
    a->http = http_new(a);
    http_set_clock_bad(a->http, is_bad);
    err = http_listen(a->http, &p->sockets, reterr);
    return err ? err : sandbox_enter(a->cfg->process.sandbox, reterr); /* nobody is served before the loop runs */
}

static void stop_all(struct process *p)
{
    struct admin *a = &p->admin;
    /* Threads end first: those that write through the writer, then the lanes, whose jobs still use all the rest, then the writer, which
     * still tells the projector. Only then is anything freed. */
    sync_end(a->sync);
    jobs_end(a->jobs);
    delivery_end(a->delivery);
    mail_end(a->mail);
    events_stop(&a->events);
    db_end(a->hasher);
    db_end(a->slow);
    db_end(a->reader);
    db_end(a->writer);
    loop_run_posted(a->loop); /* answers that were made meanwhile still go out */
    projector_stop(&a->projector);
    http_free(&a->http);
    http_sockets_free(&p->sockets);
    sync_stop(&a->sync);
    jobs_stop(&a->jobs);
    delivery_stop(&a->delivery);
    mail_stop(&a->mail);
    db_stop(&a->hasher);
    db_stop(&a->slow);
    db_stop(&a->reader);
    db_stop(&a->writer);
    audit_head_free(&a->audit_head);
    timer_free(&p->clock_timer);
    timer_free(&p->drain_timer);
    watch_free(&p->sigterm);
    watch_free(&p->sigint);
    watch_free(&p->sigusr1);
    timer_free(&p->watchdog);
    clockwatch_free(&p->clock);
    reload_free(&a->reload);
    loop_free(a->loop);
    if (a->keys)
        keyring_free(a->keys);
    while (p->retired) {
        struct retired *r = p->retired;
        p->retired = r->next;
        config_unref(&r->cfg);
        mem_free(r);
    }
    config_unref(&a->cfg);
}

static int run(const char *path, struct config *cfg)
{
    struct process p = {.admin = {.cfg = config_ref(cfg)}};
    struct error error = {0};
    struct admin *a = &p.admin;
    signal(SIGPIPE, SIG_IGN);
    signal(SIGHUP, SIG_IGN); /* until it can be followed */
    signal(SIGXFSZ, SIG_IGN); /* a file at its limit is an error to report, as a full disk is */
    a->loop = loop_new();
    NEED(a->loop != NULL, "an event loop");
    p.clock_timer = timer_new(a->loop, on_clock, &p);
    p.drain_timer = timer_new(a->loop, on_drain_over, &p);
    enum err err = start_all(&p, &error);
    if (err) {
        log_error("cannot start: %s", error.text[0] ? error.text : err_text(err));
    } else {
        p.sigterm = watch_signal(a->loop, SIGTERM, on_terminate, &p);
        p.sigint = watch_signal(a->loop, SIGINT, on_terminate, &p);
        p.sigusr1 = watch_signal(a->loop, SIGUSR1, on_reopen, &p);
        a->reload = reload_new(a->loop, path, cfg, &(struct reload_handlers){.ctx = &p, .tls = tls_of, .apply = on_configuration});
        p.watchdog = timer_new(a->loop, on_watchdog, &p);
        p.clock = clockwatch_new(a->loop);
        p.watchdog_ms = notify_watchdog_ms();
        if (p.watchdog_ms > 0)
            on_watchdog(&p);
        timer_set(p.clock_timer, CLOCK_CHECK_MS);
        log_info("pullgate-admin " PULLGATE_VERSION " serves");
        notify_ready();
        loop_run(a->loop);
        log_info("ending");
    }
    sigset_t late; /* the end is under way: a further signal must not make a failure of it */
    sigemptyset(&late);
    sigaddset(&late, SIGTERM);
    sigaddset(&late, SIGINT);
    pthread_sigmask(SIG_BLOCK, &late, NULL);
    stop_all(&p);
    return err ? 1 : 0;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"config", required_argument, NULL, 'c'}, {"check", no_argument, NULL, 'k'}, {"show-config", no_argument, NULL, 's'},
        {"version", no_argument, NULL, 'v'},      {"help", no_argument, NULL, 'h'},  {NULL, 0, NULL, 0},
    };
    const char *path = NULL;
    bool check = false, show = false;
    for (int c; (c = getopt_long(argc, argv, "c:", options, NULL)) != -1;) {
        switch (c) {
        case 'c':
            path = optarg;
            break;
        case 'k':
            check = true;
            break;
        case 's':
            show = true;
            break;
        case 'v':
            puts("pullgate-admin " PULLGATE_VERSION);
            return 0;
        case 'h':
            fputs(USAGE, stdout);
            return 0;
        default:
            fputs(USAGE, stderr);
            return 2;
        }
    }
    if (optind != argc) {
        fputs(USAGE, stderr);
        return 2;
    }

    struct config *cfg;
    struct error error = {0};
    if (config_load(path, &cfg, &error)) {
        fprintf(stderr, "pullgate-admin: %s\n", error.text);
        return 1;
    }
    int rc = 0;
    if (check) {
        puts("the configuration is good");
    } else if (show) {
        struct strbuf text = {0};
        config_show(cfg, &text);
        fputs(text.p ? text.p : "", stdout);
        sb_free(&text);
    } else {
        enum log_level level = LOG_LEVEL_INFO;
        if (cfg->log.level && !log_level_parse(cfg->log.level, &level))
            level = LOG_LEVEL_INFO;
        log_init("pullgate-admin", level);
        umask(077);
        privileges_harden();
        rc = run(path, cfg);
    }
    config_unref(&cfg);
    return rc;
}
