/* The table behind enum err. */
#include "pullgate/err.h"

#include <stdio.h>

static const struct {
    int status;
    const char *oci;
    const char *text;
} errs[] = {
#define X(name, status, oci, text) [ERR_##name] = {status, oci, text},
    ERR_LIST(X)
#undef X
};
#define N_ERRS (sizeof errs / sizeof *errs)

const char *err_text(enum err e)
{
    return (size_t)e < N_ERRS ? errs[e].text : "unknown error";
}

const char *err_oci_code(enum err e)
{
    return (size_t)e < N_ERRS ? errs[e].oci : "";
}

int err_http_status(enum err e)
{
    return (size_t)e < N_ERRS ? errs[e].status : 500;
}

#undef error_set /* see the end of err.h */
#undef error_set_field

__attribute__((format(printf, 4, 0)))
static enum err error_fill(struct error *reterr, enum err e, const char *field, const char *fmt, va_list ap)
{
    if (reterr != NULL) {
        reterr->code = e;
        snprintf(reterr->field, sizeof reterr->field, "%s", field);
        vsnprintf(reterr->text, sizeof reterr->text, fmt, ap);
    }
    return e;
}

enum err error_set(struct error *reterr, enum err e, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    error_fill(reterr, e, "", fmt, ap);
    va_end(ap);
    return e;
}

enum err error_set_field(struct error *reterr, enum err e, const char *field, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    error_fill(reterr, e, field, fmt, ap);
    va_end(ap);
    return e;
}
