/* One enum of outcomes everywhere; 0 is success. A table maps each to its log text, HTTP status and OCI code. */
#ifndef PULLGATE_ERR_H
#define PULLGATE_ERR_H

#include <stdarg.h>

#define ERR_LIST(X)                                                                                                    \
    X(OK, 200, "", "ok")                                                                                               \
    X(UNAUTHN, 401, "UNAUTHORIZED", "authentication required")                                                         \
    X(DENIED, 403, "DENIED", "not entitled")                                                                           \
    X(NOT_FOUND, 404, "MANIFEST_UNKNOWN", "not found")                                                                 \
    X(METHOD, 405, "UNSUPPORTED", "the operation is unsupported")                                                      \
    X(INVALID, 400, "NAME_INVALID", "malformed request")                                                               \
    X(CONFLICT, 409, "", "conflict")                                                                                   \
    X(PRECONDITION, 412, "", "precondition failed")                                                                    \
    X(TOO_LARGE, 413, "SIZE_INVALID", "too large")                                                                     \
    X(RANGE, 416, "", "range outside the blob")                                                                        \
    X(TOO_MANY, 429, "TOOMANYREQUESTS", "too many requests")                                                           \
    X(NOMEM, 500, "", "out of memory")                                                                                 \
    X(INTERNAL, 500, "", "internal error")                                                                             \
    X(UPSTREAM, 502, "", "upstream failed")                                                                            \
    X(UNAVAILABLE, 503, "UNAVAILABLE", "dependency down")                                                              \
    X(TIMEOUT, 504, "", "dependency too slow")                                                                         \
    X(CANCELED, 499, "", "client gone")

enum err {
#define X(name, status, oci, text) ERR_##name,
    ERR_LIST(X)
#undef X
};

#define MUST_USE __attribute__((warn_unused_result))

/* Detail for a person, filled once where the failure is first known. `field` names the offending input, if one does. */
struct error {
    enum err code;
    char field[96];
    char text[400];
};

const char *err_text(enum err e);
const char *err_oci_code(enum err e); /* "" where the endpoint must choose */
int err_http_status(enum err e);

/* Fills *reterr (which may be NULL) and returns e, so that `return error_set(reterr, ERR_INVALID, "…")` reads in one line. */
enum err error_set(struct error *reterr, enum err e, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
enum err error_set_field(struct error *reterr, enum err e, const char *field, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

#ifdef PULLGATE_ANALYSE /* tests/analyse.sh: an analyser sees one file at a time and has to be told that what went in comes out */
static inline enum err err_same(enum err e)
{
    return e;
}
#define error_set(reterr, e, ...) (error_set((reterr), (e), __VA_ARGS__), err_same(e))
#define error_set_field(reterr, e, ...) (error_set_field((reterr), (e), __VA_ARGS__), err_same(e))
#endif

#endif
