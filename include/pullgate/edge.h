/* The HTTP/1.1 server of both daemons: evhtp accepts, does TLS and owns the connection, our strict head gate does the
 * rest (FACTS 1, 2). One edge per loop. The only file that includes evhtp. All functions belong to the loop's thread.
 *
 * Life of a request: on_request(ctx, req) is called once with the whole, checked head and, for methods with a body, the
 * whole body. The handler answers at once or keeps req and answers later. Exactly one of these ends it:
 *   edge_reply()                               head and body in one go (the fast path: one write(2), no event)
 *   edge_start() + edge_write()* + edge_end()  streaming
 *   edge_abort()                               cut: the connection is reset or closed so that no client takes it for complete
 * If the client leaves first, on_gone is called once; the handler drops its pointers and must not touch req again.
 *
 * Pipelined requests are answered one after the other, the next is handed out when the one before is answered. A client that
 * closes only its sending side while its request waits for an answer has a second to get one; in the middle of a streamed answer
 * it counts as gone. */
#ifndef PULLGATE_EDGE_H
#define PULLGATE_EDGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pullgate/config.h"
#include "pullgate/err.h"
#include "pullgate/head.h"
#include "pullgate/loop.h"
#include "pullgate/str.h"

struct edge;
struct edge_req;

/* Listening sockets are made once per process and worker (SO_REUSEPORT, CLOEXEC, NONBLOCK). Port 0: the first call picks, later
 * workers pass ret_bound of the first. address: as in struct config_listen. ret_bound: the address with the real port. */
enum err edge_listen(const char *address, int *ret_fd, char ret_bound[128], struct error *reterr) MUST_USE;

/* TLS for clients: 1.2+, ECDHE AEAD, ALPN http/1.1, no renegotiation, pair checked. Immutable, refcounted, shared by workers. */
struct edge_tls;
enum err edge_tls_load(const struct config_tls *c, struct edge_tls **ret, struct error *reterr) MUST_USE;
int64_t edge_tls_not_after(const struct edge_tls *t); /* Unix seconds; logged by the load when less than 30 days are left */
int64_t edge_tls_not_before(const struct edge_tls *t);
/* Would a client that connects to this host name or address take it, as far as names go? */
bool edge_tls_covers(const struct edge_tls *t, const char *host);
struct edge_tls *edge_tls_ref(struct edge_tls *t);
void edge_tls_unref(struct edge_tls **t);

struct edge_handlers {
    void *ctx;
    /* How many body bytes this head may bring; 0: none. More is 413 before anything is read. Not called without a body. With 0 a
     * GET or HEAD is refused with 413, and any request above 1 GiB; other methods reach on_request with an empty body, so that they can
     * be answered 405 or 404, and the connection closes after the answer: what follows the head is never looked at.
     * EDGE_BODY_ASK: the handler decides when it knows more, who asks for example: on_request comes without the body, of which nothing is
     * read meanwhile. An answer then ends the connection; edge_req_take_body() has the body read. */
    size_t (*body_limit)(void *ctx, const struct head *h);
    /* The request of a ticket is over, or its connection, and nobody took the ticket: see edge_req_take_body(). May be NULL. */
    void (*on_ticket)(void *ctx, int ticket);
    void (*on_request)(void *ctx, struct edge_req *req);
    /* The client left (or was too slow) before the answer was complete. handle is edge_req_handle(). */
    void (*on_gone)(void *ctx, struct edge_req *req, void *handle, bool too_slow);
    /* Output is at or below the low watermark: comes from the loop, once after one or several edge_start/edge_write*() calls. */
    void (*on_drain)(void *ctx, struct edge_req *req, void *handle);
    /* A request refused by the gate, or before a handler saw it: fill the fields (each "Name: value\r\n") and the body.
     * reason: fixed text. May be NULL: text/plain. */
    void (*refusal)(void *ctx, int status, const char *reason, struct strbuf *fields, struct strbuf *body);
    /* One per refused request, for the access log; may be NULL. */
    void (*on_refused)(void *ctx, const char *peer, int status, const char *reason);
    /* The handler had given the whole answer and the client did not take it: cut for limits.client_min_rate. May be NULL. */
    void (*on_too_slow)(void *ctx, const char *peer);
};

/* shared counts connections over all edges of the process: */
struct edge_shared; /* total and per-address connection counts; thread-safe. IPv6 counts by /64; unix sockets and trusted proxies only
                     * in total. At a limit the longest idle connection (of that address) makes room; else the new one is closed.
                     * Above four fifths of max_connections each new one ends the longest idle one that has been so for half of
                     * limits.keepalive_idle, so that the limit is not met with connections that nobody uses.
                     * max_connections is cut to what RLIMIT_NOFILE leaves after a reserve for files, Redis and upstreams. */
struct edge_shared *edge_shared_new(uint64_t max_connections, uint64_t max_per_address);
void edge_shared_free(struct edge_shared **s);
uint64_t edge_shared_connections(const struct edge_shared *s);

struct edge *edge_new(struct loop *l, const struct config *cfg, struct edge_shared *shared, const struct edge_handlers *h);
/* Whose word about the client's address counts, and in what form, as in the configuration: networks; header: of the PROXY protocol,
 * "off", "accepted", "required"; field: "x-forwarded-for", "forwarded", "off". Before edge_accept(). Without this call: nobody's. */
void edge_front(struct edge *e, const struct config_listen *trusted, const char *header, const char *field);
/* Start accepting on fd (taken, also on failure). Several per edge; tls may differ, NULL: plain. */
enum err edge_accept(struct edge *e, int take_fd, struct edge_tls *tls, struct error *reterr) MUST_USE;
/* Longest that the bytes of a streamed answer may take to leave us, from edge_start(); 0 no bound (the default). For what is begun
 * from here on. A handler with a bound of its own comes first; this is for the end that the handler has already given away. */
void edge_answer_within(struct edge *e, uint64_t ms);
/* New connections of every TLS listener take this certificate; those that are open keep theirs. */
void edge_replace_tls(struct edge *e, struct edge_tls *tls);
/* Memory is short: ends up to n idle connections, the longest idle first. */
void edge_shed_idle(struct edge *e, unsigned n);
/* Drain: stop accepting, close idle connections now, the rest after their answer, those that have not asked anything yet after a second;
 * on_drained(ctx) when none is left. */
void edge_drain(struct edge *e, void (*on_drained)(void *ctx), void *ctx);
void edge_free(struct edge **e); /* cuts what is left, on_gone for each request in progress: free it before what the handlers use */

const struct head *edge_req_head(const struct edge_req *r);
struct str edge_req_body(const struct edge_req *r);
const char *edge_req_peer(const struct edge_req *r);          /* "127.0.0.1" or "2001:db8::1"; after trusted proxies */
const uint8_t *edge_req_peer_addr(const struct edge_req *r);  /* 16 bytes, IPv4 mapped */
bool edge_req_is_tls(const struct edge_req *r);
void edge_req_set_handle(struct edge_req *r, void *handle); /* given back in on_gone and on_drain */
void *edge_req_handle(const struct edge_req *r);

/* status line + fields (CRLF-ended lines; not Date, Connection, Content-Length: the edge adds them) + body. reason may be
 * longer than a word and hold UTF-8; control bytes in it become blanks. HEAD: body is left out, its length announced.
 * length < 0: the body's length; else announced (HEAD of a blob). Ends the request. */
void edge_reply(struct edge_req *r, int status, struct str reason, struct str fields, struct str body, int64_t length);
/* Begin a streamed answer of exactly `length` bytes. */
void edge_start(struct edge_req *r, int status, struct str reason, struct str fields, uint64_t length);
void edge_write(struct edge_req *r, const void *data, size_t n); /* bytes beyond the announced length are dropped */
/* At most 1 MiB a call; sendfile where plain, else read. fd stays the caller's and open until edge_end() or edge_abort() was called
 * or on_gone came; offset, n in bytes. A file that turns out shorter cuts the connection. */
enum err edge_write_file(struct edge_req *r, int fd, uint64_t offset, size_t n) MUST_USE;
size_t edge_pending(const struct edge_req *r); /* bytes queued towards the client */
void edge_end(struct edge_req *r);   /* all bytes were written; fewer than announced cuts instead */
void edge_abort(struct edge_req *r); /* never looks complete */
/* The connection must close after this answer. (HTTP/1.0, draining, bytes that were not read and the like are seen to by the edge.) */
void edge_req_close_after(struct edge_req *r);

#define EDGE_BODY_ASK SIZE_MAX
bool edge_req_is_asking(const struct edge_req *r);
/* Read the body of a request that asks. The handler has nothing more to do with r: on_request comes anew with the whole of it, or never.
 * ticket: a number above 0 that stands for what the caller set aside for it. on_request takes it over with edge_req_ticket() (0: none, or
 * taken already), else on_ticket gives it back. */
void edge_req_take_body(struct edge_req *r, int ticket);
int edge_req_ticket(struct edge_req *r);

struct edge_stats {
    uint64_t accepted, open, refused_limit, requests, bad_heads, slow_clients, bytes_out;
    uint64_t buffered; /* bytes of memory that wait for clients, or that they sent ahead; as of the last second */
};
void edge_stats(const struct edge *e, struct edge_stats *ret);

#endif
