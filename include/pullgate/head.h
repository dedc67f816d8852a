/* The strict HTTP/1.1 head check: one parser, one truth (FACTS 2, SECURITY T1). Pure; fuzzed; stricter than RFC 9112 where it
 * lets us choose. What passes here is what everything else reads. */
#ifndef PULLGATE_HEAD_H
#define PULLGATE_HEAD_H

#include <stdbool.h>
#include <stdint.h>

#include "pullgate/str.h"

#define HEAD_MAX_FIELDS 100

enum head_method { HEAD_METHOD_NONE, HEAD_GET, HEAD_HEAD, HEAD_POST, HEAD_PUT, HEAD_PATCH, HEAD_DELETE, HEAD_OPTIONS, HEAD_OTHER };

struct head_field {
    struct str name, value; /* value trimmed */
};

struct head { /* strs borrow from the bytes parsed */
    enum head_method method;
    struct str method_text;
    struct str target; /* origin-form, starts with '/' */
    struct str path;   /* up to '?' */
    struct str query;  /* after it */
    bool is_http10;
    bool keep_alive; /* what the client asks, by version and Connection */
    bool expect_continue;
    bool has_length;
    uint64_t length; /* Content-Length; 0 when absent */
    struct str host;
    struct str authorization; /* {NULL,0} absent */
    unsigned n_fields;
    struct head_field fields[HEAD_MAX_FIELDS]; /* only the first n_fields are written */
};

struct head_limits {
    size_t target_bytes, head_bytes;
    unsigned fields; /* at most HEAD_MAX_FIELDS counts */
};

/* bytes: up to and including the CRLFCRLF. Returns 0 when good, else the status to refuse with (400, 405 with CONNECT/TRACE,
 * 414, 417, 431) and a fixed text in *ret_why. Refused among others: any Transfer-Encoding (also from HTTP/1.0), a Content-Length
 * that is repeated, no plain decimal or has leading zeros, duplicate Host or Authorization, missing or empty Host on 1.1, Host with
 * anything but host[:port], control bytes, obs-fold, bare CR or LF, an empty line before the request line, names that are no token,
 * methods in lower case, targets that are not origin-form of [!-~] without '#', versions but HTTP/1.0 and HTTP/1.1 (400: who sends
 * another one here is no HTTP/1 client, and 505 tells him nothing), an Expect but 100-continue. Upgrade is ignored. */
int head_parse(struct str bytes, const struct head_limits *lim, struct head *ret, const char **ret_why);
/* A head that is not whole yet: 0 while it can still become good, else the status to refuse with at once, so that bare LFs,
 * HTTP/0.9, an SSH banner or garbage need not wait for a deadline. from: bytes already checked. */
int head_check_partial(struct str bytes, size_t from, const struct head_limits *lim, const char **ret_why);
/* First field of that name (ASCII case ignored), {NULL,0} absent; *ret_count how many, may be NULL. */
struct str head_get(const struct head *h, const char *name, unsigned *ret_count);
/* Length of the head in buf incl. CRLFCRLF, or 0 when not whole yet. from: bytes already searched. */
size_t head_find_end(const char *buf, size_t n, size_t from);

#endif
