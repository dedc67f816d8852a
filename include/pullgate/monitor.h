/* What operators' machines ask of a daemon: /metrics, /healthz and /readyz on addresses of their own, served from the main thread's
 * loop by an edge of its own, so that neither a full house nor a stuck worker shuts them out. Plain HTTP: listen on loopback or a
 * management network. */
#ifndef PULLGATE_MONITOR_H
#define PULLGATE_MONITOR_H

#include <stdbool.h>

#include "pullgate/config.h"
#include "pullgate/err.h"
#include "pullgate/listeners.h"
#include "pullgate/loop.h"
#include "pullgate/str.h"

struct monitor_handlers {
    void *ctx;
    void (*metrics)(void *ctx, struct strbuf *ret);  /* the text of /metrics */
    const char *(*not_ready)(void *ctx);             /* NULL: ready; else why not, fixed text */
};

struct monitor;
/* The sockets are taken; none: *ret is NULL and nothing is served. */
enum err monitor_new(struct loop *l, const struct config *cfg, struct listeners *sockets, const struct monitor_handlers *h, struct monitor **ret,
                     struct error *reterr) MUST_USE;
void monitor_free(struct monitor **m);

#endif
