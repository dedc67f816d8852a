/* HTTP client over libcurl: async on a loop, or blocking for job threads. The only file that includes curl.
 * HTTP/1.1, no redirects followed, no decompression, no cookies, no proxy, no netrc (SECURITY 4.6). */
#ifndef PULLGATE_FETCH_H
#define PULLGATE_FETCH_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pullgate/err.h"
#include "pullgate/loop.h"
#include "pullgate/str.h"

/* One pool = one CURLM = its own connections; one pool per upstream and worker, never shared between upstreams. */
struct fetch_pool;
struct fetch_limits {
    uint64_t connections;
    uint64_t connect_ms, first_byte_ms, stall_ms, total_ms; /* 0: no bound */
    size_t head_bytes, head_fields;                         /* 32 KiB, 64; 0: these */
    /* first_byte_ms runs from the end of connect_ms until the head is whole. stall_ms: a body that brings less than 1 KiB a
     * second over it is given up, unless it was paused meanwhile. */
};
struct fetch_pool *fetch_pool_new(struct loop *l, const struct fetch_limits *lim);
void fetch_pool_free(struct fetch_pool **p); /* cancels what runs */

/* Which addresses may be connected to. Checked on the resolved address, in the socket callback. */
struct fetch_policy {
    bool https_only;
    bool allow_private; /* loopback, private, link-local, … : true only for hosts the operator named */
};

struct fetch_request {
    const char *method; /* GET HEAD POST */
    const char *url;    /* http(s)://… */
    const char *const *fields; /* "Name: value", NULL-terminated; may be NULL */
    const char *username, *password; /* Basic when not NULL; never logged */
    struct str body;                 /* POST */
    const char *ca_pem;              /* additional trust: PEM text; "" or NULL: system roots */
    bool ca_only;                    /* with ca_pem: trust nothing else */
    struct fetch_policy policy;
    size_t max_body; /* more is ERR_TOO_LARGE; 0: no bound */
};

struct fetch_head { /* borrowed during the call */
    int status;
    int64_t content_length; /* -1 unknown */
    const struct fetch_field {
        struct str name, value;
    } *fields;
    size_t n_fields;
};
struct str fetch_head_get(const struct fetch_head *h, const char *name); /* {NULL,0} absent */

struct fetch;
enum fetch_next { FETCH_MORE, FETCH_PAUSE, FETCH_STOP };
struct fetch_handlers {
    /* Final response head (not 1xx). FETCH_STOP ends with ERR_CANCELED. May be NULL. */
    enum fetch_next (*on_head)(void *ctx, const struct fetch_head *h);
    /* Body bytes, in order. FETCH_PAUSE: these same bytes come again after fetch_resume(), so do not consume them. May be NULL. */
    enum fetch_next (*on_body)(void *ctx, const void *data, size_t n);
    /* Once, last, from the loop and never inside fetch_start(). err OK: the body was complete. text: for the log, without secrets.
     * sent: whether any response byte had arrived (then no retry). */
    void (*on_done)(void *ctx, enum err err, const char *text, bool got_bytes);
};
struct fetch *fetch_start(struct fetch_pool *p, const struct fetch_request *r, const struct fetch_handlers *h, void *ctx);
void fetch_resume(struct fetch *f); /* the bytes come in a later round of the loop, never inside */
void fetch_cancel(struct fetch **f); /* no callback after this; safe inside callbacks */

struct fetch_reply { /* blocking form; fetch_reply_free() */
    int status;
    struct strbuf body;
    struct strbuf fields; /* "Name: value\n" lines */
};
enum err fetch_blocking(const struct fetch_request *r, const struct fetch_limits *lim, struct fetch_reply *ret, struct error *reterr) MUST_USE;
void fetch_reply_free(struct fetch_reply *r);

/* One mail to one recipient over SMTP; waits for the server's word, at most total_ms, or until *stop. The server is whom the operator named:
 * no address is refused. *ret_code: the server's last reply (550, …), 0 without one; also after a failure. ERR_UNAVAILABLE, ERR_TIMEOUT: it
 * cannot be reached. */
struct fetch_mail {
    const char *url; /* smtp://host:port, smtps://host:port */
    const char *username, *password; /* "" or NULL: nobody signs in */
    const char *ca_file;             /* "" or NULL: system roots */
    enum fetch_mail_tls { FETCH_MAIL_TLS_REQUIRED, FETCH_MAIL_TLS_TRIED, FETCH_MAIL_TLS_OFF } tls; /* of smtp:// */
    const char *from, *to; /* addresses alone, checked */
    struct str message;    /* with CRLF */
};
enum err fetch_mail(const struct fetch_mail *m, uint64_t total_ms, const atomic_bool *stop, int *ret_code, struct error *reterr) MUST_USE;

/* URL work that must agree with what curl connects to: parsed by curl's own URL parser. */
struct fetch_url {
    char scheme[8], host[256];
    unsigned port; /* always set */
    char *path_query; /* heap, from '/' on */
};
enum err fetch_url_parse(const char *url, struct fetch_url *ret, struct error *reterr) MUST_USE; /* http/https only, no userinfo */
enum err fetch_url_join(const char *base, const char *reference, char **ret) MUST_USE;
void fetch_url_free(struct fetch_url *u);

/* The address policy on one numeric address ("10.0.0.1", "::1"): true where it may be connected to without allow_private. */
bool fetch_address_public(const char *numeric);

#endif
