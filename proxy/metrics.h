/* What the proxy counts: one table of families, a shard a worker, and the sentence behind /readyz. docs/OPERATIONS.md lists them. */
#ifndef PROXY_METRICS_H
#define PROXY_METRICS_H

#include <stdbool.h>
#include <stdint.h>

#include "pullgate/reload.h"
#include "pullgate/str.h"
#include "pullgate/upstream.h"

struct exchange;
struct proxy;
struct worker;
struct proxy_metrics;

/* p->n_workers is known. Lives longer than the workers. */
struct proxy_metrics *proxy_metrics_new(struct proxy *p);
void proxy_metrics_free(struct proxy_metrics **m);

/* Worker's thread, or before it runs: begins and ends the beat that publishes what only the worker may look at. */
void proxy_metrics_join(struct worker *w);
void proxy_metrics_leave(struct worker *w);

struct exchange_counts {
    int status;         /* 0: none was sent */
    unsigned cause;     /* enum end */
    unsigned reason;    /* enum reason */
    bool is_undecided;  /* 503: it could not be known */
    unsigned action;    /* enum oci_kind, or PROXY_METRICS_TOKEN */
    bool from_cache;
    uint64_t bytes;
    uint64_t facts_us, first_byte_us, total_us; /* since the request; facts_us 0: they were in memory */
};
#define PROXY_METRICS_TOKEN 8u
void proxy_metrics_exchange(struct worker *w, const struct exchange_counts *c);
/* A request that the edge refused before it became an exchange. */
void proxy_metrics_refused(struct worker *w, int status);
/* Where the upstream of that id counts in this worker; ids beyond some 60 share one. */
struct upstream_counters *proxy_metrics_upstream(struct worker *w, const char *upstream_id);

/* Main thread. */
void proxy_metrics_text(struct proxy *p, const struct reload_counts *reloads, struct strbuf *ret);
/* NULL, or why this proxy cannot decide. */
const char *proxy_metrics_not_ready(const struct proxy *p);
/* Every worker's loop has gone round within that time. */
bool proxy_metrics_alive(const struct proxy *p, uint64_t within_ms);

#endif
