/* SIGHUP and the watch over the certificate's files. What the daemon does with a configuration it says itself, in apply(). */
#include "pullgate/reload.h"

#include <signal.h>
#include <string.h>
#include <sys/stat.h>

#include "pullgate/clock.h"
#include "pullgate/log.h"
#include "pullgate/mem.h"
#include "pullgate/metrics.h"
#include "pullgate/notify.h"

#define FILES_LOOK_MS 10000   /* how late a renewed certificate is seen without a signal */
#define REMIND_MS (86400000u) /* how often an operator is told of a certificate that comes to its end */

struct file_mark { /* of one file, as it was read */
    dev_t dev;
    ino_t ino;
    off_t size;
    struct timespec mtime, ctime;
};
struct pair_mark {
    struct file_mark cert, key;
};

struct reload {
    struct loop *loop;
    char *path; /* NULL: the default */
    struct config *cfg;
    struct reload_handlers h;
    struct watch *hangup;
    struct timer *look;
    struct pair_mark loaded, refused; /* refused: complained about already */
    uint64_t remind_at_ms;
    struct reload_counts counts;
};

static struct file_mark file_mark(const char *path)
{
    struct file_mark m;
    struct stat st;

    memset(&m, 0, sizeof m); /* padding too: marks are compared as bytes */
    if (path[0] == '\0' || stat(path, &st) != 0)
        return m;
    m.dev = st.st_dev;
    m.ino = st.st_ino;
    m.size = st.st_size;
    m.mtime = st.st_mtim;
    m.ctime = st.st_ctim;
    return m;
}

static struct pair_mark pair_mark(const struct config_tls *t)
{
    struct pair_mark p;

    memset(&p, 0, sizeof p);
    p.cert = file_mark(t->cert);
    p.key = file_mark(t->key);
    return p;
}

static bool same(const struct pair_mark *a, const struct pair_mark *b)
{
    return memcmp(a, b, sizeof *a) == 0;
}

static void failed(struct reload *r, const char *text)
{
    r->counts.failed++;
    r->counts.last_failed = true;
    log_error("reload: %s; what was in force stays", text);
}

static void done(struct reload *r)
{
    r->counts.done++;
    r->counts.last_failed = false;
    r->counts.last_done_s = clock_now_s();
}

void reload_now(struct reload *r)
{
    struct config *fresh = NULL;
    struct edge_tls *tls = NULL;
    struct error error = {0};
    struct strbuf names = {0};
    enum log_level level;

    notify_reloading();
    if (config_load(r->path, &fresh, &error) != ERR_OK) {
        failed(r, error.text);
        notify_ready();
        return;
    }
    config_needs_restart(r->cfg, fresh, &names);
    config_keep_restart(fresh, r->cfg);
    const struct config_tls *t = r->h.tls(fresh);
    struct pair_mark mark = pair_mark(t); /* before the load: what changes meanwhile is seen by the next look */
    if (t->cert[0] != '\0' && edge_tls_load(t, &tls, &error) != ERR_OK) {
        failed(r, error.text);
        r->refused = mark;
        config_unref(&fresh);
    } else {
        if (names.n > 0)
            log_warn("reload: needs a restart: %s", names.p);
        if (config_same(fresh, r->cfg)) { /* a signal for the sake of the log or the certificate */
            config_unref(&fresh);
        } else {
            config_unref(&r->cfg);
            r->cfg = fresh;
        }
        r->loaded = mark;
        if (log_level_parse(r->cfg->log.level, &level))
            log_set_level(level);
        r->h.apply(r->h.ctx, r->cfg, tls);
        edge_tls_unref(&tls);
        done(r);
        log_info("reload: the configuration of %s is in force", r->cfg->path);
    }
    sb_free(&names);
    notify_ready();
}

static void on_hangup(void *ctx, int signo, unsigned ready)
{
    (void)signo, (void)ready;
    reload_now(ctx);
}

static void on_look(void *ctx)
{
    struct reload *r = ctx;
    const struct config_tls *t = r->h.tls(r->cfg);
    struct pair_mark mark = pair_mark(t);
    struct edge_tls *tls = NULL;
    struct error error = {0};

    timer_set(r->look, FILES_LOOK_MS);
    if (t->cert[0] == '\0')
        return;
    if (same(&mark, &r->loaded)) {
        if (clock_mono_ms() < r->remind_at_ms)
            return;
        r->remind_at_ms = clock_mono_ms() + REMIND_MS;
        if (edge_tls_load(t, &tls, NULL) == ERR_OK) /* it has its say about the dates */
            edge_tls_unref(&tls);
        return;
    }
    if (edge_tls_load(t, &tls, &error) != ERR_OK) {
        /* A pair half renewed looks like this too: it is tried again every time, and told once. */
        if (!same(&mark, &r->refused))
            failed(r, error.text);
        r->refused = mark;
        return;
    }
    r->loaded = mark;
    r->h.apply(r->h.ctx, r->cfg, tls);
    edge_tls_unref(&tls);
    done(r);
    log_info("reload: the certificate %s has changed and is in force", t->cert);
}

struct reload *reload_new(struct loop *l, const char *path, struct config *cfg, const struct reload_handlers *h)
{
    struct reload *r = NEW(struct reload);

    r->loop = l;
    r->path = path != NULL ? mem_strdup(path) : NULL;
    r->cfg = config_ref(cfg);
    r->h = *h;
    r->loaded = pair_mark(h->tls(cfg));
    r->remind_at_ms = clock_mono_ms() + REMIND_MS;
    r->counts.last_done_s = clock_now_s();
    r->hangup = watch_signal(l, SIGHUP, on_hangup, r);
    r->look = timer_new(l, on_look, r);
    timer_set(r->look, FILES_LOOK_MS);
    return r;
}

void reload_free(struct reload **pr)
{
    struct reload *r = *pr;

    if (r == NULL)
        return;
    *pr = NULL;
    watch_free(&r->hangup);
    timer_free(&r->look);
    config_unref(&r->cfg);
    mem_free(r->path);
    mem_free(r);
}

void reload_counts(const struct reload *r, struct reload_counts *ret)
{
    *ret = r->counts;
}

void reload_metrics(const struct reload_counts *c, struct strbuf *ret)
{
    static const char total[] = "pullgate_config_reloads_total", when[] = "pullgate_config_last_reload_timestamp_seconds",
                      good[] = "pullgate_config_last_reload_successful";
    static const struct str none;

    metrics_write_head(ret, total, "Reloads of the configuration or the certificate.", METRICS_COUNTER);
    metrics_write_line(ret, total, "result", S("ok"), NULL, none, c->done);
    metrics_write_line(ret, total, "result", S("failed"), NULL, none, c->failed);
    metrics_write_head(ret, when, "When the configuration in force was taken up, Unix time.", METRICS_GAUGE);
    metrics_write_line(ret, when, NULL, none, NULL, none, (uint64_t)c->last_done_s);
    metrics_write_head(ret, good, "0 when the last reload failed and the one before stays in force.", METRICS_GAUGE);
    metrics_write_line(ret, good, NULL, none, NULL, none, !c->last_failed);
}

void reload_certificate_metrics(const struct edge_tls *tls, struct strbuf *ret)
{
    static const char name[] = "pullgate_tls_cert_not_after_seconds";
    static const struct str none;

    if (tls == NULL)
        return;
    metrics_write_head(ret, name, "When the certificate that clients are shown expires, Unix time.", METRICS_GAUGE);
    metrics_write_line(ret, name, NULL, none, NULL, none, (uint64_t)edge_tls_not_after(tls));
}
