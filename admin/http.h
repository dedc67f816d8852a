/* The admin daemon's HTTP side: edge requests become jobs of the database threads and their outcome an answer. Here stand routing,
 * sign-in, roles, the check of bodies, idempotency, the transaction around a handler, its audit row, and problem documents. */
#ifndef ADMIN_HTTP_H
#define ADMIN_HTTP_H

#include <stdint.h>

#include "api.h"
#include "pullgate/edge.h"
#include "pullgate/err.h"
#include "pullgate/listeners.h"

struct http;

struct http *http_new(struct admin *a);
/* Everything that may need root: the sockets and the certificate. */
struct http_sockets {
    struct listeners api, metrics;
    struct edge_tls *tls; /* NULL: plain */
};
enum err http_bind(const struct config *cfg, struct http_sockets *ret, struct error *reterr) MUST_USE;
void http_sockets_free(struct http_sockets *s);
/* Listens on all of them and writes the port file. */
enum err http_listen(struct http *h, struct http_sockets *sockets, struct error *reterr) MUST_USE;
/* After a reload: this certificate for further connections, where not NULL; the access log is opened anew. From the loop's thread. */
void http_configure(struct http *h, struct edge_tls *tls);
/* Stop accepting, answer what runs, then on_drained(ctx) from the loop. */
void http_drain(struct http *h, void (*on_drained)(void *ctx), void *ctx);
/* After the database threads stopped. */
void http_free(struct http **h);

/* Marks the wall clock as not to be trusted (or again so): /readyz says so. From the loop's thread. */
void http_set_clock_bad(struct http *h, bool is_bad);

/* ---- the table of routes: routes.c --------------------------------------------------------------------------------- */

/* All tables of routes, NULL-terminated. */
extern const struct route *const ROUTE_TABLES[];
/* Finds the route; on a match of the path alone *ret_allowed has a bit (1 << enum head_method) for each method there. Parameter values
 * are decoded into values (mem_free each). */
const struct route *route_find(enum head_method method, struct str path, char *values[API_MAX_PARAMS], unsigned *ret_allowed);
const char *route_method_text(enum head_method m);
bool route_can_run_dry(const struct route *r); /* takes ?dry_run=1: it writes, in one transaction */

/* ---- the OpenAPI document: openapi.c ------------------------------------------------------------------------------- */

void openapi_print(struct strbuf *ret);

#endif
