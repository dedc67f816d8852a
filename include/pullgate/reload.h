/* What a daemon takes up without a restart: the configuration at SIGHUP, the certificate also when its files change. All or nothing:
 * what is not good leaves what is in force, and says so in one log line. Both daemons, main thread. */
#ifndef PULLGATE_RELOAD_H
#define PULLGATE_RELOAD_H

#include <stdint.h>

#include "pullgate/config.h"
#include "pullgate/edge.h"
#include "pullgate/err.h"
#include "pullgate/loop.h"

struct reload_handlers {
    void *ctx;
    /* Which TLS section is this daemon's. */
    const struct config_tls *(*tls)(const struct config *cfg);
    /* Take up cfg (config_ref() to keep it) and, where not NULL, tls (edge_tls_ref()). Keys that need a restart have their old
     * values in cfg. cfg is the one in force when only the certificate has changed. */
    void (*apply)(void *ctx, struct config *cfg, struct edge_tls *tls);
};

struct reload_counts { /* since the start */
    uint64_t done, failed;
    int64_t last_done_s; /* Unix time; the start counts */
    bool last_failed;
};

struct reload;
/* path: as given to config_load(). cfg: in force, a reference is taken. The pair that cfg names must have been loaded by the caller. */
struct reload *reload_new(struct loop *l, const char *path, struct config *cfg, const struct reload_handlers *h);
void reload_free(struct reload **r);
void reload_now(struct reload *r); /* SIGHUP does it */
void reload_counts(const struct reload *r, struct reload_counts *ret);
/* The counts as metrics, appended. */
void reload_metrics(const struct reload_counts *c, struct strbuf *ret);
/* When the certificate in force ends; nothing without TLS. */
void reload_certificate_metrics(const struct edge_tls *tls, struct strbuf *ret);

#endif
