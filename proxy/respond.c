/* What is written to clients but blobs: status line, fields, OCI error envelope, manifests. Every answer goes out through
 * respond_send(), which ends the exchange first (its access line and event) and hands the bytes to the edge last.
 * A refusal carries its message twice: in the body and in the reason phrase, for clients that show nothing else (FACTS 6.1). */
#include "exchange.h"

#include <stdio.h>
#include <string.h>

#include "pullgate/clock.h"

static const char *status_text(int status)
{
    switch (status) {
    case 200:
        return "OK";
    case 304:
        return "Not Modified";
    case 307:
        return "Temporary Redirect";
    case 400:
        return "Bad Request";
    case 401:
        return "Unauthorized";
    case 403:
        return "Forbidden";
    case 404:
        return "Not Found";
    case 405:
        return "Method Not Allowed";
    case 408:
        return "Request Timeout";
    case 411:
        return "Length Required";
    case 413:
        return "Content Too Large";
    case 414:
        return "URI Too Long";
    case 416:
        return "Range Not Satisfiable";
    case 417:
        return "Expectation Failed";
    case 429:
        return "Too Many Requests";
    case 431:
        return "Request Header Fields Too Large";
    case 500:
        return "Internal Server Error";
    case 501:
        return "Not Implemented";
    case 502:
        return "Bad Gateway";
    case 503:
        return "Service Unavailable";
    case 504:
        return "Gateway Timeout";
    case 505:
        return "HTTP Version Not Supported";
    default:
        return "Status";
    }
}

void respond_common_fields(struct exchange *ex, struct strbuf *ret)
{
    sb_add(ret, S("Docker-Distribution-Api-Version: registry/2.0\r\nCache-Control: private, no-store\r\nX-Content-Type-Options: nosniff\r\nX-Request-Id: "));
    sb_addc(ret, ex->id);
    sb_add(ret, S("\r\n"));
}

static enum next respond_send(struct exchange *ex, int status, struct str reason, struct str fields, struct str body, int64_t length, enum end cause)
{
    struct edge_req *req = ex->req;

    ex->status = status;
    ex->bytes = ex->is_head ? 0 : body.n;
    ex->req = NULL;
    exchange_end(ex, cause); /* reads the head, which the edge may reuse as soon as it has the answer */
    edge_reply(req, status, reason, fields, body, length);
    return NEXT_DONE;
}

enum next respond_json(struct exchange *ex, int status, const char *content_type, struct str body, const char *extra_fields, enum end cause)
{
    struct strbuf fields = {0};

    respond_common_fields(ex, &fields);
    sb_addf(&fields, "Content-Type: %s\r\n%s", content_type, extra_fields != NULL ? extra_fields : "");
    enum next n = respond_send(ex, status, str_c(status_text(status)), sb_str(&fields), body, -1, cause);
    sb_free(&fields);
    return n;
}

static void error_body(const char *code, struct str message, const char *reason, const char *ref, struct strbuf *ret)
{
    sb_addf(ret, "{\"errors\":[{\"code\":\"%s\",\"message\":", code);
    sb_add_json(ret, message);
    if (reason[0] != '\0')
        sb_addf(ret, ",\"detail\":{\"reason\":\"%s\"%s%s%s}", reason, ref[0] != '\0' ? ",\"ref\":\"" : "", ref, ref[0] != '\0' ? "\"" : "");
    sb_add(ret, S("}]}\n"));
}

enum next respond_oci_error(struct exchange *ex, int status, const char *code, struct str message, enum end cause, const char *extra_fields)
{
    struct strbuf fields = {0}, body = {0}, reason = {0};

    respond_common_fields(ex, &fields);
    sb_addf(&fields, "Content-Type: application/json\r\n%s", extra_fields != NULL ? extra_fields : "");
    sb_addf(&reason, "%s: %.*s", status_text(status), STR(message));
    error_body(code, message, ex->reason != REASON_UNKNOWN ? reason_text(ex->reason) : "", "", &body);
    enum next n = respond_send(ex, status, sb_str(&reason), sb_str(&fields), sb_str(&body), -1, cause);
    sb_free(&fields);
    sb_free(&body);
    sb_free(&reason);
    return n;
}

enum next respond_decision(struct exchange *ex)
{
    struct content_answer *a = &ex->answer;

    /* Outside the granted closure: one answer, whether it exists or not, to the letter (SECURITY I11). */
    if (a->decision.reason == REASON_NOT_IN_CLOSURE) {
        bool is_blob = ex->oci.kind == OCI_BLOB;
        return respond_oci_error(ex, 404, is_blob ? "BLOB_UNKNOWN" : "MANIFEST_UNKNOWN",
                                 is_blob ? S("blob unknown to this repository or not part of a granted version")
                                         : S("manifest unknown to this repository or not part of a granted version"),
                                 END_DENIED, NULL);
    }
    struct strbuf message = {0}, fields = {0}, body = {0}, reason = {0};
    sb_addf(&message, "%.*s  [ref %s]", STR(sb_str(&a->message)), ex->id);
    respond_common_fields(ex, &fields);
    sb_add(&fields, S("Content-Type: application/json\r\n"));
    sb_addf(&reason, "Forbidden: %.*s", STR(sb_str(&message)));
    error_body("DENIED", sb_str(&message), reason_text(a->decision.reason), ex->id, &body);
    enum next n = respond_send(ex, 403, sb_str(&reason), sb_str(&fields), sb_str(&body), -1, END_DENIED);
    sb_free(&message);
    sb_free(&fields);
    sb_free(&body);
    sb_free(&reason);
    return n;
}

enum next respond_unavailable(struct exchange *ex, enum err err, unsigned retry_after_s)
{
    char retry[64];
    int status = err == ERR_UPSTREAM ? 502 : err == ERR_TIMEOUT ? 504 : 503;
    struct str text = err == ERR_UPSTREAM   ? S("the vendor's registry failed, try again")
                      : err == ERR_TIMEOUT  ? S("the vendor's registry did not answer in time, try again")
                                            : S("it cannot be decided right now, try again");

    snprintf(retry, sizeof retry, "Retry-After: %u\r\n", retry_after_s > 0 && retry_after_s <= 3600 ? retry_after_s : 5);
    return respond_oci_error(ex, status, "UNAVAILABLE", text,
                             ex->customer == NULL || ex->credential == NULL ? END_FACTS_UNAVAILABLE
                             : err == ERR_UPSTREAM                          ? END_UPSTREAM_FAILED
                                                                            : END_CONTENT_UNAVAILABLE,
                             retry);
}

/* RFC 9110 13.1.2: does If-None-Match name this digest, or anything? */
static bool none_match_hits(struct str value, const char *digest)
{
    struct str rest = value, tag;

    if (value.n == 0)
        return false;
    while (str_next(&rest, ',', &tag)) {
        tag = str_trim(tag);
        if (str_starts(tag, S("W/")))
            tag = str_skip(tag, 2);
        if (tag.n >= 2 && tag.p[0] == '"' && tag.p[tag.n - 1] == '"')
            tag = str_sub(tag, 1, tag.n - 2);
        if (str_eq_c(tag, "*") || str_eq_c(tag, digest))
            return true;
    }
    return false;
}

/* A license in its grace period still pulls; the answer says so, for those who look. */
static void warning_fields(struct exchange *ex, struct strbuf *fields)
{
    const struct license *l = ex->answer.decision.license;
    char date[CLOCK_RFC3339_MAX];

    if (l == NULL || l->terms.expires_at_s == 0)
        return;
    int64_t now = clock_now_s();
    if (now >= l->terms.expires_at_s - LICENSE_EXPIRING_DAYS * 86400)
        sb_addf(fields, "X-License-Expires: %s\r\n", clock_rfc3339(l->terms.expires_at_s, date));
    if (now >= l->terms.expires_at_s)
        sb_addf(fields, "Warning: 299 - \"the license expired on %s, its grace period ends on %s\"\r\n", clock_date(l->terms.expires_at_s, date),
                clock_date(l->terms.expires_at_s + l->terms.grace_days * 86400, (char[CLOCK_RFC3339_MAX]){0}));
}

static _Thread_local struct strbuf manifest_fields; /* of manifests, kept between answers: this is the hot path */

void respond_free_scratch(void)
{
    sb_free(&manifest_fields);
}

enum next respond_manifest(struct exchange *ex)
{
    struct content_answer *a = &ex->answer;
    char digest[DIGEST_TEXT_MAX];
    struct str body = {NULL, 0};
    int64_t length = (int64_t)a->size;

    digest_text(&a->digest, digest);
    sb_reset(&manifest_fields);
    respond_common_fields(ex, &manifest_fields);
    sb_add(&manifest_fields, S("Docker-Content-Digest: "));
    sb_addc(&manifest_fields, digest);
    sb_add(&manifest_fields, S("\r\nETag: \""));
    sb_addc(&manifest_fields, digest);
    sb_add(&manifest_fields, S("\"\r\nContent-Type: "));
    sb_addc(&manifest_fields, media_type_text(a->media_type));
    sb_add(&manifest_fields, S("\r\n"));
    warning_fields(ex, &manifest_fields);
    if (none_match_hits(head_get(ex->head, "if-none-match", NULL), digest))
        return respond_send(ex, 304, S("Not Modified"), sb_str(&manifest_fields), S(""), -1, END_NOT_MODIFIED);
    if (a->manifest != NULL) {
        body = (struct str){a->manifest->bytes, a->manifest->n};
        length = (int64_t)a->manifest->n;
    }
    return respond_send(ex, 200, S("OK"), sb_str(&manifest_fields), body, length, END_OK);
}

void respond_refusal(void *ctx, int status, const char *reason, struct strbuf *fields, struct strbuf *body)
{
    (void)ctx;
    sb_add(fields, S("Content-Type: application/json\r\nDocker-Distribution-Api-Version: registry/2.0\r\nCache-Control: private, no-store\r\n"
                     "X-Content-Type-Options: nosniff\r\n"));
    error_body(status == 405 ? "UNSUPPORTED" : status == 413 ? "SIZE_INVALID" : "NAME_INVALID", str_c(reason), "", "", body);
}
