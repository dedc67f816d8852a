/* The monitoring addresses of a daemon. Knows three paths; what stands behind them the daemon says. */
#include "pullgate/monitor.h"

#include "pullgate/edge.h"
#include "pullgate/mem.h"

#define CONNECTIONS_MAX 256         /* scrapers and health checks, all together and each */
#define TYPE_METRICS "text/plain; version=0.0.4; charset=utf-8"

struct monitor {
    struct edge *edge;
    struct edge_shared *shared;
    struct monitor_handlers h;
};

static void answer(struct edge_req *r, int status, const char *type, struct str body)
{
    struct strbuf fields = {0};

    sb_addf(&fields, "Content-Type: %s\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n%s", type, status == 405 ? "Allow: GET, HEAD\r\n" : "");
    edge_reply(r, status, (struct str){0}, sb_str(&fields), body, -1);
    sb_free(&fields);
}

static void on_request(void *ctx, struct edge_req *r)
{
    struct monitor *m = ctx;
    const struct head *h = edge_req_head(r);
    struct strbuf text = {0};

    if (h->method != HEAD_GET && h->method != HEAD_HEAD) {
        answer(r, 405, "text/plain", S("only GET and HEAD\n"));
    } else if (str_eq(h->path, S("/metrics"))) {
        m->h.metrics(m->h.ctx, &text);
        answer(r, 200, TYPE_METRICS, sb_str(&text));
    } else if (str_eq(h->path, S("/healthz"))) {
        answer(r, 200, "application/json", S("{\"status\":\"ok\"}\n"));
    } else if (str_eq(h->path, S("/readyz"))) {
        const char *why = m->h.not_ready(m->h.ctx);
        if (why != NULL)
            sb_addf(&text, "{\"status\":\"not ready\",\"reason\":\"%s\"}\n", why);
        else
            sb_addc(&text, "{\"status\":\"ready\"}\n");
        answer(r, why != NULL ? 503 : 200, "application/json", sb_str(&text));
    } else {
        answer(r, 404, "text/plain", S("/metrics, /healthz and /readyz are here\n"));
    }
    sb_free(&text);
}

/* Every answer is given at once: nothing is ever under way. */
static void on_gone(void *ctx, struct edge_req *r, void *handle, bool too_slow)
{
    (void)ctx, (void)r, (void)handle, (void)too_slow;
}

static void on_drain(void *ctx, struct edge_req *r, void *handle)
{
    (void)ctx, (void)r, (void)handle;
}

static size_t body_limit(void *ctx, const struct head *h)
{
    (void)ctx, (void)h;
    return 0;
}

enum err monitor_new(struct loop *l, const struct config *cfg, struct listeners *sockets, const struct monitor_handlers *h, struct monitor **ret,
                     struct error *reterr)
{
    *ret = NULL;
    if (sockets->n == 0)
        return ERR_OK;
    struct monitor *m = NEW(struct monitor);
    m->h = *h;
    m->shared = edge_shared_new(CONNECTIONS_MAX, CONNECTIONS_MAX);
    m->edge = edge_new(l, cfg, m->shared,
                       &(struct edge_handlers){.ctx = m, .body_limit = body_limit, .on_request = on_request, .on_gone = on_gone, .on_drain = on_drain});
    for (size_t i = 0; i < sockets->n; i++) {
        enum err e = edge_accept(m->edge, listeners_take(sockets, i), NULL, reterr);
        if (e != ERR_OK) {
            monitor_free(&m);
            return e;
        }
    }
    *ret = m;
    return ERR_OK;
}

void monitor_free(struct monitor **pm)
{
    struct monitor *m = *pm;

    if (m == NULL)
        return;
    *pm = NULL;
    edge_free(&m->edge);
    edge_shared_free(&m->shared);
    mem_free(m);
}
