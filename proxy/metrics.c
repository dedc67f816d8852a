/* The proxy's families and how they are filled. Hot path: a few additions to memory of the worker's own. What lives inside a
 * worker (edge, facts, events) the worker publishes itself, four times a second; what belongs to the process is read at the scrape. */
#include "metrics.h"

#include <string.h>

#include "pullgate/cache.h"
#include "pullgate/clock.h"
#include "pullgate/clockwatch.h"
#include "pullgate/mem.h"
#include "pullgate/metrics.h"

#include "accesslog.h"
#include "admission.h"
#include "blobs.h"
#include "exchange.h"
#include "guard.h"
#include "pullevent.h"

#define BEAT_MS 250u
#define UPSTREAMS_MAX 64u /* counted apart; the last takes the rest */
#define UPSTREAM_ID_MAX 64u
#define STUCK_MS 10000u   /* without a beat a worker serves nobody */

static const char *const classes[] = {"none", "1xx", "2xx", "3xx", "4xx", "5xx"};
static const char *const causes[] = {
#define X(name, text) text,
    END_LIST(X)
#undef X
};
static const char *const reasons[] = {
#define X(name, text) text,
    REASON_LIST(X)
#undef X
};
static const char *const actions[] = {
    [OCI_NONE] = "other",     [OCI_PING] = "ping",           [OCI_MANIFEST] = "manifest", [OCI_BLOB] = "blob",
    [OCI_TAGS] = "tags",      [OCI_REFERRERS] = "referrers", [OCI_CATALOG] = "catalog",   [OCI_UPLOAD] = "upload",
    [PROXY_METRICS_TOKEN] = "token",
};
enum { STEP_FACTS, STEP_FIRST_BYTE, STEP_TOTAL };
static const char *const steps[] = {"facts", "first_byte", "total"};
static const char *const sources[] = {"cache", "upstream"};
static const char *const joins[] = {"hit", "miss", "joined"};
static const char *const auth_refusals[] = {"address", "user", "all"};
static const char *const refusals[ADMISSION_REFUSED] = {
    [REFUSED_MEMORY] = "memory", [REFUSED_MEMORY_BLOB] = "memory_blob", [REFUSED_CUSTOMER] = "customer_share", [REFUSED_UPSTREAM] = "upstream_share"};
static const char *const versions[] = {PULLGATE_VERSION};

#define N(a) (sizeof(a) / sizeof *(a))
#define LABEL(name, values) {name, values, N(values)}

static const uint64_t duration_us[] = {100,    250,    500,     1000,    2500,    5000,     10000,    25000,    50000,    100000,
                                       250000, 500000, 1000000, 2500000, 5000000, 10000000, 30000000, 60000000, 300000000};
static const uint64_t lag_ms[] = {1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000};

enum family {
    F_BUILD,
    F_REQUESTS,
    F_DECISIONS,
    F_DURATION,
    F_BLOB_BYTES,
    F_CONNECTIONS,
    F_ACCEPTED,
    F_CONNECTIONS_REFUSED,
    F_SLOW_CLIENTS,
    F_BYTES_OUT,
    F_LOOP_LAG,
    F_REDIS_UP,
    F_ROOT_AGE,
    F_EVENTS_LOST,
    F_EVENTS_QUEUED,
    F_ACCESS_LOST,
    F_AUTH_FAILURES,
    F_AUTH_LIMITED,
    F_CUSTOMER_LIMITED,
    F_BLOB_JOINS,
    F_BLOBS_IN_FLIGHT,
    F_BLOB_CACHE_FILES,
    F_BLOB_CACHE_BYTES,
    F_BLOB_EVICTED,
    F_BLOB_DROPPED,
    F_BLOB_MISMATCHES,
    F_BLOB_RESUMED,
    F_MANIFESTS,
    F_MANIFEST_BYTES,
    F_WORKERS,
    F_BUFFERED,
    F_WAITING,
    F_MEMORY_LIMIT,
    F_MEMORY_LEVEL,
    F_REFUSED,
    FAMILIES
};

static const struct metrics_family families[FAMILIES] = {
    [F_BUILD] = {.name = "pullgate_build_info", .help = "1, with the version.", .type = METRICS_GAUGE, .labels = {LABEL("version", versions)}},
    [F_REQUESTS] = {.name = "pullgate_requests_total", .help = "Requests answered or ended, by class of the status and cause of the end.",
                    .type = METRICS_COUNTER, .labels = {LABEL("class", classes), LABEL("cause", causes)}, .only_seen = true},
    [F_DECISIONS] = {.name = "pullgate_decisions_total", .help = "Decisions by reason; unknown: it could not be known, answered 503.",
                     .type = METRICS_COUNTER, .labels = {LABEL("reason", reasons)}},
    [F_DURATION] = {.name = "pullgate_request_duration_seconds",
                    .help = "From the whole request head to: the facts being at hand, the first byte of the answer, its end.",
                    .type = METRICS_HISTOGRAM, .labels = {LABEL("action", actions), LABEL("step", steps)}, .bounds = duration_us,
                    .n_bounds = N(duration_us), .scale = 1000000, .only_seen = true},
    [F_BLOB_BYTES] = {.name = "pullgate_blob_sent_bytes_total", .help = "Bytes of blobs handed to clients, by where they came from.",
                      .type = METRICS_COUNTER, .labels = {LABEL("source", sources)}},
    [F_CONNECTIONS] = {.name = "pullgate_connections", .help = "Open client connections.", .type = METRICS_GAUGE},
    [F_ACCEPTED] = {.name = "pullgate_connections_accepted_total", .help = "Client connections accepted.", .type = METRICS_COUNTER},
    [F_CONNECTIONS_REFUSED] = {.name = "pullgate_connections_refused_total", .help = "Connections closed at once for limits.connections or connections_per_ip.",
                               .type = METRICS_COUNTER},
    [F_SLOW_CLIENTS] = {.name = "pullgate_slow_clients_total", .help = "Connections cut for limits.client_min_rate.", .type = METRICS_COUNTER},
    [F_BYTES_OUT] = {.name = "pullgate_sent_bytes_total", .help = "Bytes sent to clients, heads included.", .type = METRICS_COUNTER},
    [F_LOOP_LAG] = {.name = "pullgate_loop_lag_seconds", .help = "How late a timer of a worker's loop came.", .type = METRICS_HISTOGRAM,
                    .bounds = lag_ms, .n_bounds = N(lag_ms), .scale = 1000},
    [F_REDIS_UP] = {.name = "pullgate_redis_up", .help = "1 when every worker is connected to Redis.", .type = METRICS_GAUGE, .merge = METRICS_MIN},
    [F_ROOT_AGE] = {.name = "pullgate_root_age_seconds", .help = "Age of the confirmation of entitlements, of the worker where it is oldest; 1e9: none yet.",
                    .type = METRICS_GAUGE, .merge = METRICS_MAX, .scale = 1000},
    [F_EVENTS_LOST] = {.name = "pullgate_pull_events_lost_total", .help = "Pull events dropped because Redis was away too long.", .type = METRICS_COUNTER},
    [F_EVENTS_QUEUED] = {.name = "pullgate_pull_events_queued", .help = "Pull events that Redis has not acknowledged yet.", .type = METRICS_GAUGE},
    [F_ACCESS_LOST] = {.name = "pullgate_access_lines_lost_total", .help = "Access lines dropped because nobody took them.", .type = METRICS_COUNTER},
    [F_AUTH_FAILURES] = {.name = "pullgate_auth_failures_total", .help = "Failed sign-ins.", .type = METRICS_COUNTER},
    [F_AUTH_LIMITED] = {.name = "pullgate_auth_limited_total", .help = "Failed sign-ins answered 429, by the limit that was reached.",
                        .type = METRICS_COUNTER, .labels = {LABEL("by", auth_refusals)}},
    [F_CUSTOMER_LIMITED] = {.name = "pullgate_customer_limited_total", .help = "Requests answered 429 for a customer's rate or requests in flight.",
                            .type = METRICS_COUNTER},
    [F_BLOB_JOINS] = {.name = "pullgate_blob_requests_total", .help = "Blobs asked for: on disk (hit), fetched (miss), part of a transfer under way (joined).",
                      .type = METRICS_COUNTER, .labels = {LABEL("result", joins)}},
    [F_BLOBS_IN_FLIGHT] = {.name = "pullgate_blobs_in_flight", .help = "Blob transfers from upstreams under way.", .type = METRICS_GAUGE},
    [F_BLOB_CACHE_FILES] = {.name = "pullgate_blob_cache_files", .help = "Blobs kept on disk.", .type = METRICS_GAUGE},
    [F_BLOB_CACHE_BYTES] = {.name = "pullgate_blob_cache_bytes", .help = "Disk that kept blobs fill.", .type = METRICS_GAUGE},
    [F_BLOB_EVICTED] = {.name = "pullgate_blob_cache_evicted_total", .help = "Kept blobs removed to make room.", .type = METRICS_COUNTER},
    [F_BLOB_DROPPED] = {.name = "pullgate_blob_cache_bad_total", .help = "Kept blobs removed because their file had gone bad.", .type = METRICS_COUNTER},
    [F_BLOB_MISMATCHES] = {.name = "pullgate_blob_mismatches_total", .help = "Blobs whose bytes from the upstream did not hash to their digest.",
                           .type = METRICS_COUNTER},
    [F_BLOB_RESUMED] = {.name = "pullgate_blob_resumed_total", .help = "Broken transfers from upstreams that were continued.", .type = METRICS_COUNTER},
    [F_MANIFESTS] = {.name = "pullgate_manifests", .help = "Manifests held in memory, all workers together.", .type = METRICS_GAUGE},
    [F_MANIFEST_BYTES] = {.name = "pullgate_manifest_bytes", .help = "Memory that held manifests take.", .type = METRICS_GAUGE},
    [F_BUFFERED] = {.name = "pullgate_buffered_bytes", .help = "Memory with bytes that wait for clients.", .type = METRICS_GAUGE},
    [F_WAITING] = {.name = "pullgate_requests_waiting", .help = "Requests that wait for others of their customer.", .type = METRICS_GAUGE},
    [F_MEMORY_LIMIT] = {.name = "pullgate_memory_limit_bytes", .help = "Resident memory that admission keeps below; 0: no bound.", .type = METRICS_GAUGE},
    [F_MEMORY_LEVEL] = {.name = "pullgate_memory_level", .help = "0: all is admitted, 1: no further blobs, 2: no requests.", .type = METRICS_GAUGE},
    [F_REFUSED] = {.name = "pullgate_admission_refused_total", .help = "Requests refused for want of memory, or of a share of the transfers.",
                   .type = METRICS_COUNTER, .labels = {LABEL("why", refusals)}},
    [F_WORKERS] = {.name = "pullgate_workers", .help = "Worker threads.", .type = METRICS_GAUGE},
};

struct worker_metrics {
    struct metrics_shard *shard;
    struct worker *w;
    struct timer *beat;
    uint64_t due_ms;
    uint64_t beat_ms;      /* atomic: last went round, monotonic */
    uint64_t confirmed_ms; /* atomic: what the facts stand on, monotonic; 0 nothing */
    unsigned n_upstreams;  /* atomic: those before it are readable */
    char upstream_ids[UPSTREAMS_MAX][UPSTREAM_ID_MAX];
    struct upstream_counters upstreams[UPSTREAMS_MAX];
};

struct proxy_metrics {
    struct metrics *registry;
    unsigned n_workers;
    struct worker_metrics *workers;
};

struct proxy_metrics *proxy_metrics_new(struct proxy *p)
{
    struct proxy_metrics *m = NEW(struct proxy_metrics);

    m->registry = metrics_new(families, FAMILIES, p->n_workers);
    m->n_workers = p->n_workers;
    m->workers = mem_calloc(p->n_workers, sizeof *m->workers);
    for (unsigned i = 0; i < p->n_workers; i++)
        m->workers[i].shard = metrics_shard(m->registry, i);
    struct metrics_shard *s = metrics_shard(m->registry, p->n_workers);
    metrics_set(s, F_BUILD, 0, 1);
    metrics_set(s, F_WORKERS, 0, p->n_workers);
    return m;
}

void proxy_metrics_free(struct proxy_metrics **pm)
{
    struct proxy_metrics *m = *pm;

    if (m == NULL)
        return;
    *pm = NULL;
    metrics_free(&m->registry);
    mem_free(m->workers);
    mem_free(m);
}

/* ---- a worker's own ------------------------------------------------------------------------------------------------------- */

static void publish(struct worker_metrics *wm)
{
    struct worker *w = wm->w;
    struct edge_stats st;
    uint64_t now = clock_mono_ms(), age = facts_staleness_ms(w->facts);

    size_t manifests, manifest_bytes;

    edge_stats(w->edge, &st);
    content_held(w->content, &manifests, &manifest_bytes);
    const struct {
        enum family family;
        uint64_t value;
    } values[] = {
        {F_CONNECTIONS, st.open},
        {F_ACCEPTED, st.accepted},
        {F_CONNECTIONS_REFUSED, st.refused_limit},
        {F_SLOW_CLIENTS, st.slow_clients},
        {F_BYTES_OUT, st.bytes_out},
        {F_REDIS_UP, cache_is_up(w->cache)},
        {F_EVENTS_LOST, pullevents_lost(w->events)},
        {F_EVENTS_QUEUED, pullevents_queued(w->events)},
        {F_MANIFESTS, manifests},
        {F_MANIFEST_BYTES, manifest_bytes},
        {F_BUFFERED, st.buffered},
        {F_WAITING, turns_waiting(w->turns)},
    };
    for (size_t i = 0; i < N(values); i++)
        metrics_set(wm->shard, values[i].family, 0, values[i].value);
    __atomic_store_n(&wm->confirmed_ms, age < now ? now - age : 0, __ATOMIC_RELAXED);
    __atomic_store_n(&wm->beat_ms, now, __ATOMIC_RELAXED);
}

static void on_beat(void *ctx)
{
    struct worker_metrics *wm = ctx;
    uint64_t now = clock_mono_ms();

    metrics_observe(wm->shard, F_LOOP_LAG, 0, now > wm->due_ms ? now - wm->due_ms : 0);
    publish(wm);
    wm->due_ms = now + BEAT_MS;
    timer_set(wm->beat, BEAT_MS);
}

void proxy_metrics_join(struct worker *w)
{
    struct worker_metrics *wm = &w->proxy->metrics->workers[w->id];

    wm->w = w;
    wm->beat = timer_new(w->loop, on_beat, wm);
    wm->due_ms = clock_mono_ms();
    __atomic_store_n(&wm->beat_ms, wm->due_ms, __ATOMIC_RELAXED);
    timer_set(wm->beat, 0);
}

void proxy_metrics_leave(struct worker *w)
{
    struct worker_metrics *wm = &w->proxy->metrics->workers[w->id];

    publish(wm);
    timer_free(&wm->beat);
}

void proxy_metrics_exchange(struct worker *w, const struct exchange_counts *c)
{
    struct metrics_shard *s = w->proxy->metrics->workers[w->id].shard;
    unsigned class = c->status >= 100 && c->status < 600 ? (unsigned)c->status / 100 : 0;
    unsigned at = c->action * (unsigned)N(steps);

    metrics_add(s, F_REQUESTS, class * (unsigned)N(causes) + c->cause, 1);
    if (c->reason != REASON_UNKNOWN || c->is_undecided)
        metrics_add(s, F_DECISIONS, c->is_undecided ? REASON_UNKNOWN : c->reason, 1);
    metrics_observe(s, F_DURATION, at + STEP_FACTS, c->facts_us);
    if (class > 0)
        metrics_observe(s, F_DURATION, at + STEP_FIRST_BYTE, c->first_byte_us);
    metrics_observe(s, F_DURATION, at + STEP_TOTAL, c->total_us);
    if (c->action == OCI_BLOB && class == 2)
        metrics_add(s, F_BLOB_BYTES, c->from_cache ? 0 : 1, c->bytes);
}

void proxy_metrics_refused(struct worker *w, int status)
{
    struct metrics_shard *s = w->proxy->metrics->workers[w->id].shard;

    metrics_add(s, F_REQUESTS, (status >= 100 && status < 600 ? (unsigned)status / 100 : 0) * (unsigned)N(causes) + END_REFUSED, 1);
}

struct upstream_counters *proxy_metrics_upstream(struct worker *w, const char *upstream_id)
{
    struct worker_metrics *wm = &w->proxy->metrics->workers[w->id];
    unsigned n = wm->n_upstreams;

    for (unsigned i = 0; i < n; i++)
        if (strncmp(wm->upstream_ids[i], upstream_id, UPSTREAM_ID_MAX - 1) == 0)
            return &wm->upstreams[i];
    if (n == UPSTREAMS_MAX)
        return &wm->upstreams[n - 1];
    const char *id = n == UPSTREAMS_MAX - 1 ? "other" : upstream_id;
    memcpy(wm->upstream_ids[n], id, strnlen(id, UPSTREAM_ID_MAX - 1)); /* zeroed: the end stands */
    __atomic_store_n(&wm->n_upstreams, n + 1, __ATOMIC_RELEASE);
    return &wm->upstreams[n];
}

/* ---- the scrape ----------------------------------------------------------------------------------------------------------- */

static uint64_t age_ms(const struct worker_metrics *wm, uint64_t now)
{
    uint64_t confirmed = __atomic_load_n(&wm->confirmed_ms, __ATOMIC_RELAXED);

    return confirmed == 0 ? UINT64_MAX : now > confirmed ? now - confirmed : 0;
}

static void gather_process(struct proxy *p)
{
    struct metrics_shard *s = metrics_shard(p->metrics->registry, p->n_workers);
    struct guard_counters guard;
    struct blobs_stats blobs;
    struct admission_stats admission;
    uint64_t now = clock_mono_ms();

    guard_counters(p->guard, &guard);
    blobs_stats(p->blobs, &blobs);
    admission_stats(p->admission, &admission);
    const struct {
        enum family family;
        unsigned series;
        uint64_t value;
    } values[] = {
        {F_ACCESS_LOST, 0, accesslog_lost(p->accesslog)},
        {F_AUTH_FAILURES, 0, guard.auth_failures},
        {F_AUTH_LIMITED, 0, guard.auth_refused_address},
        {F_AUTH_LIMITED, 1, guard.auth_refused_user},
        {F_AUTH_LIMITED, 2, guard.auth_refused_all},
        {F_CUSTOMER_LIMITED, 0, guard.customer_refused},
        {F_BLOB_JOINS, 0, blobs.hits},
        {F_BLOB_JOINS, 1, blobs.misses},
        {F_BLOB_JOINS, 2, blobs.joined},
        {F_BLOBS_IN_FLIGHT, 0, blobs.in_flight},
        {F_BLOB_CACHE_FILES, 0, blobs.files},
        {F_BLOB_CACHE_BYTES, 0, blobs.bytes},
        {F_BLOB_EVICTED, 0, blobs.evicted},
        {F_BLOB_DROPPED, 0, blobs.dropped_bad},
        {F_BLOB_MISMATCHES, 0, blobs.mismatches},
        {F_BLOB_RESUMED, 0, blobs.resumed},
        {F_MEMORY_LIMIT, 0, admission.limit_bytes},
        {F_MEMORY_LEVEL, 0, admission.level},
        {F_REFUSED, REFUSED_MEMORY, admission.refused[REFUSED_MEMORY]},
        {F_REFUSED, REFUSED_MEMORY_BLOB, admission.refused[REFUSED_MEMORY_BLOB]},
        {F_REFUSED, REFUSED_CUSTOMER, admission.refused[REFUSED_CUSTOMER]},
        {F_REFUSED, REFUSED_UPSTREAM, admission.refused[REFUSED_UPSTREAM]},
    };
    for (size_t i = 0; i < N(values); i++)
        metrics_set(s, values[i].family, values[i].series, values[i].value);
    for (unsigned i = 0; i < p->n_workers; i++) { /* ages go on between two beats: this slot is the scrape's alone */
        uint64_t age = age_ms(&p->metrics->workers[i], now);
        metrics_set(p->metrics->workers[i].shard, F_ROOT_AGE, 0, age < 1000000000000u ? age : 1000000000000u);
    }
}

struct upstream_sum {
    const char *id;
    struct upstream_counters n;
};

static size_t gather_upstreams(const struct proxy_metrics *m, struct upstream_sum *ret, size_t max)
{
    size_t n = 0;

    for (unsigned i = 0; i < m->n_workers; i++) {
        const struct worker_metrics *wm = &m->workers[i];
        unsigned count = __atomic_load_n(&wm->n_upstreams, __ATOMIC_ACQUIRE);
        for (unsigned k = 0; k < count; k++) {
            const struct upstream_counters *from = &wm->upstreams[k];
            size_t at = 0;
            while (at < n && strcmp(ret[at].id, wm->upstream_ids[k]) != 0)
                at++;
            if (at == max)
                continue;
            if (at == n) {
                ret[n] = (struct upstream_sum){.id = wm->upstream_ids[k]};
                n++;
            }
            for (size_t c = 0; c < N(from->answers); c++)
                ret[at].n.answers[c] += __atomic_load_n(&from->answers[c], __ATOMIC_RELAXED);
            ret[at].n.retries += __atomic_load_n(&from->retries, __ATOMIC_RELAXED);
            ret[at].n.crowded += __atomic_load_n(&from->crowded, __ATOMIC_RELAXED);
            ret[at].n.rested += __atomic_load_n(&from->rested, __ATOMIC_RELAXED);
            ret[at].n.is_open += __atomic_load_n(&from->is_open, __ATOMIC_RELAXED);
        }
    }
    return n;
}

static void write_upstreams(const struct proxy_metrics *m, struct strbuf *ret)
{
    static const char requests[] = "pullgate_upstream_requests_total", retries[] = "pullgate_upstream_retries_total",
                      rested[] = "pullgate_upstream_rested_total", open[] = "pullgate_upstream_breakers_open", crowded[] = "pullgate_upstream_crowded_total";
    struct upstream_sum sums[2 * UPSTREAMS_MAX]; /* workers may have met different ones first */
    size_t n = gather_upstreams(m, sums, N(sums));

    metrics_write_head(ret, requests, "Requests made for an upstream (its id), by class of the answer; none: no answer came.", METRICS_COUNTER);
    for (size_t i = 0; i < n; i++)
        for (size_t c = 0; c < N(classes); c++)
            if (c != 1)
                metrics_write_line(ret, requests, "upstream", str_c(sums[i].id), "class", str_c(classes[c]), sums[i].n.answers[c]);
    metrics_write_head(ret, retries, "Requests to an upstream that were tried again.", METRICS_COUNTER);
    for (size_t i = 0; i < n; i++)
        metrics_write_line(ret, retries, "upstream", str_c(sums[i].id), NULL, (struct str){0}, sums[i].n.retries);
    metrics_write_head(ret, rested, "Operations refused because the upstream's breaker was open.", METRICS_COUNTER);
    for (size_t i = 0; i < n; i++)
        metrics_write_line(ret, rested, "upstream", str_c(sums[i].id), NULL, (struct str){0}, sums[i].n.rested);
    metrics_write_head(ret, crowded, "Operations refused because too many waited for a connection to the upstream, or too long.", METRICS_COUNTER);
    for (size_t i = 0; i < n; i++)
        metrics_write_line(ret, crowded, "upstream", str_c(sums[i].id), NULL, (struct str){0}, sums[i].n.crowded);
    metrics_write_head(ret, open, "Workers whose breaker to the upstream is open.", METRICS_GAUGE);
    for (size_t i = 0; i < n; i++)
        metrics_write_line(ret, open, "upstream", str_c(sums[i].id), NULL, (struct str){0}, sums[i].n.is_open);
}

void proxy_metrics_text(struct proxy *p, const struct reload_counts *reloads, struct strbuf *ret)
{
    gather_process(p);
    metrics_write(p->metrics->registry, ret);
    write_upstreams(p->metrics, ret);
    reload_metrics(reloads, ret);
    reload_certificate_metrics(p->tls, ret);
    clockwatch_metrics(ret);
    metrics_write_process(ret);
}

bool proxy_metrics_alive(const struct proxy *p, uint64_t within_ms)
{
    uint64_t now = clock_mono_ms();

    for (unsigned i = 0; i < p->n_workers; i++) {
        uint64_t beat = __atomic_load_n(&p->metrics->workers[i].beat_ms, __ATOMIC_RELAXED);
        if (now > beat && now - beat > within_ms)
            return false;
    }
    return true;
}

const char *proxy_metrics_not_ready(const struct proxy *p)
{
    uint64_t now = clock_mono_ms();

    if (!proxy_metrics_alive(p, STUCK_MS))
        return "a worker does not answer";
    for (unsigned i = 0; i < p->n_workers; i++)
        if (age_ms(&p->metrics->workers[i], now) > p->cfg->cache.max_staleness_ms + BEAT_MS) /* it is published that often */
            return "the cache is not confirmed";
    return NULL;
}
