/* The access log: one JSON line an exchange, at most 2 KiB, never waiting for whoever reads it. The descriptor is the process's;
 * each worker gathers its lines and hands them over in one write. Lines that nobody takes are dropped and counted. */
#ifndef PROXY_ACCESSLOG_H
#define PROXY_ACCESSLOG_H

#include <stdint.h>

#include "pullgate/config.h"
#include "pullgate/err.h"
#include "pullgate/loop.h"
#include "pullgate/str.h"

struct worker;
struct accesslog;
struct accesslog_writer;

struct access_line { /* all borrowed during the call; NULL and empty members are left out */
    const struct worker *worker;
    const char *id;   /* of the request */
    const char *peer; /* the client's address */
    struct str method;
    const char *action;                /* "manifest", "blob", … */
    struct str repository, reference;  /* only what the grammar has accepted */
    int status;
    const char *cause;  /* why the exchange ended */
    const char *reason; /* of the decision */
    struct str customer, customer_id, credential_id, license_id;
    uint64_t bytes;
    uint64_t total_us, first_byte_us;
    struct str agent;   /* User-Agent, as sent */
    const char *source; /* where the bytes came from: "cache", … */
    const char *detail; /* of a failure, for the operator */
};

/* log.access_path: "" standard output, "off", or a file that is made (0640) and appended to. */
enum err accesslog_new(const struct config *cfg, struct accesslog **ret, struct error *reterr) MUST_USE;
void accesslog_free(struct accesslog **a); /* after its writers */
/* Opens a file anew, after it was rotated; any thread. */
void accesslog_reopen(struct accesslog *a);
uint64_t accesslog_lost(const struct accesslog *a); /* lines dropped since the start; any thread */

/* One a worker, own thread. */
struct accesslog_writer *accesslog_writer_new(struct accesslog *a, struct loop *l);
void accesslog_writer_free(struct accesslog_writer **w); /* hands over what it holds */
void accesslog_write(struct accesslog_writer *w, const struct access_line *line);

#endif
