/* Blob bytes to one client. Three ways, chosen in relay_run():
 *   file    a reader of blobs.c: a cached file, or the one transfer that all askers share; sendfile windows up to what may be sent
 *   direct  a transfer of its own, from the upstream's socket to the client's: ranges of blobs that are not here, and blobs for
 *           which no file is to be had; a whole blob's last 64 KiB wait in memory for the digest
 *   HEAD    the size alone
 * All of them hand bytes on only while the client's output is below limits.buffer_high. A response that was begun and cannot be
 * finished truly is cut, never ended (SECURITY I7). */
#include "relay.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "pullgate/clock.h"
#include "pullgate/log.h"
#include "pullgate/loop.h"
#include "pullgate/mem.h"
#include "pullgate/seal.h"

#include "blobs.h"
#include "upstreams.h"
#include "worker.h"

#define RELAY_MAGIC 0x52454c59u
/* One sendfile window: more would hold the loop (FACTS 4). */
static const uint64_t WINDOW = (uint64_t)1 << 20;
/* Bad cached files met in one request before it goes straight to the upstream. */
static const unsigned JOINS_MAX = 3;
static const uint64_t RESUME_WAIT_MS = 100;
static const unsigned RETRY_AFTER_OVERLOADED_S = 2;

enum purpose {
    FOR_ANSWER, /* the client's own HEAD */
    FOR_SIZE,   /* a range cannot be understood without the size */
};

struct relay {
    unsigned magic;
    struct worker *worker;
    struct blobs *blobs;
    struct edge_req *req;
    relay_done_cb *done;
    void *ctx;
    unsigned *streams;

    char *upstream_id, *upstream_repository, *range_field, *fields;
    struct digest digest;
    uint64_t owner;
    uint64_t size_hint;
    bool head_only;

    bool is_deferred;  /* relay_run() or the report is still to come */
    bool is_dead;      /* canceled meanwhile */
    bool is_reporting;
    bool in_drain;

    bool has_size, is_part;
    uint64_t size;
    uint64_t position, end; /* next byte of the blob to hand over or, direct, to receive; one past the last */
    bool head_sent;
    struct timer *deadline;

    struct blob_reader *reader;
    unsigned joins;

    enum purpose purpose;
    struct upstreams_op *get;
    struct upstream *upstream;
    struct upstream_op *op;
    struct timer *retry;
    unsigned tries;
    bool is_paused, size_asked;
    uint64_t skip;      /* bytes before the range, from an upstream that ignores ranges */
    bool surplus;       /* and bytes behind it */
    struct hasher *hasher; /* of a whole blob */
    char *tail;            /* its withheld end */
    size_t tail_n;
    bool failed; /* set inside of an upstream callback, reported by on_done */

    struct relay_result result;
    char detail[200];
    char *location;
};

static struct relay *RELAY(void *ctx)
{
    struct relay *r = ctx;
    AN(r != NULL && r->magic == RELAY_MAGIC);
    return r;
}

static void direct_begin(struct relay *r);
static void relay_pump(struct relay *r);

/* ---- the end ------------------------------------------------------------------------------------------------------------ */

static int answer_status(const struct relay *r)
{
    return r->is_part ? 206 : 200;
}

/* Everything that runs for it stops. */
static void relay_release(struct relay *r)
{
    blob_leave(&r->reader);
    if (r->op != NULL)
        upstream_cancel(&r->op);
    if (r->get != NULL)
        upstreams_cancel(&r->get);
    timer_free(&r->retry);
    timer_free(&r->deadline);
    if (r->upstream != NULL)
        upstream_unref(&r->upstream);
    hasher_free(&r->hasher);
    MEM_FREE(r->tail);
}

static void relay_free(struct relay *r)
{
    relay_release(r);
    --*r->streams;
    r->magic = 0;
    mem_free(r->upstream_id);
    mem_free(r->upstream_repository);
    mem_free(r->range_field);
    mem_free(r->fields);
    mem_free(r->location);
    mem_free(r);
}

static void relay_report(struct relay *r)
{
    r->is_reporting = true;
    r->done(r->ctx, &r->result);
    relay_free(r);
}

static void on_report(void *arg)
{
    struct relay *r = RELAY(arg);

    r->is_deferred = false;
    if (r->is_dead)
        relay_free(r);
    else
        relay_report(r);
}

/* The last statement of whoever calls it: r is gone, or waits for its report. */
static void relay_end(struct relay *r, enum relay_end end, enum err err, const char *detail)
{
    relay_release(r);
    r->result.end = end;
    r->result.err = err;
    if (detail != r->detail) {
        size_t n = detail != NULL ? strnlen(detail, sizeof r->detail - 1) : 0;
        if (n > 0)
            memmove(r->detail, detail, n);
        r->detail[n] = '\0';
    }
    r->result.detail = r->detail;
    r->result.size = r->has_size ? r->size : r->size_hint;
    r->result.head_sent = r->head_sent;
    r->result.status = r->head_sent ? answer_status(r) : 0;
    r->result.location = r->location;
    if (r->in_drain) {
        r->is_deferred = true;
        loop_defer(r->worker->loop, on_report, r);
    } else {
        relay_report(r);
    }
}

/* It went wrong: an error that the exchange answers, or a connection cut. */
static void relay_fail(struct relay *r, enum relay_end end, enum err err, const char *detail, unsigned retry_after_s)
{
    char copy[sizeof r->detail] = ""; /* detail may live in what release frees */

    snprintf(copy, sizeof copy, "%s", detail != NULL ? detail : "");
    r->result.retry_after_s = retry_after_s;
    if (r->head_sent)
        edge_abort(r->req);
    else
        end = RELAY_UPSTREAM_FAILED;
    relay_end(r, end, err == ERR_OK ? ERR_UPSTREAM : err, copy);
}

static void on_deadline(void *ctx)
{
    relay_fail(RELAY(ctx), RELAY_TOO_LONG, ERR_TIMEOUT, "limits.blob_max_duration is over", 0);
}

/* ---- the answer's head ---------------------------------------------------------------------------------------------------- */

static void answer_fields(const struct relay *r, struct strbuf *ret)
{
    char text[DIGEST_TEXT_MAX];

    digest_text(&r->digest, text);
    sb_addf(ret, "Content-Type: application/octet-stream\r\nDocker-Content-Digest: %s\r\nETag: \"%s\"\r\nAccept-Ranges: bytes\r\n", text, text);
    /* Who may read is decided on every request, so nothing between us and the client may keep it (SECURITY T10). */
    sb_addc(ret, "Cache-Control: private, no-store\r\n");
    if (r->is_part)
        sb_addf(ret, "Content-Range: bytes %llu-%llu/%llu\r\n", (unsigned long long)r->position, (unsigned long long)(r->end - 1),
                (unsigned long long)r->size);
    sb_addc(ret, r->fields);
}

static struct str answer_reason(const struct relay *r)
{
    return r->is_part ? S("Partial Content") : S("OK");
}

/* Begin the body of [position, end). */
static void answer_start(struct relay *r)
{
    struct strbuf fields = {0};

    answer_fields(r, &fields);
    edge_start(r->req, answer_status(r), answer_reason(r), sb_str(&fields), r->end - r->position);
    sb_free(&fields);
    r->head_sent = true;
    r->result.head_us = clock_mono_us();
}

static void answer_whole(struct relay *r, struct str body, int64_t length)
{
    struct strbuf fields = {0};

    answer_fields(r, &fields);
    edge_reply(r->req, answer_status(r), answer_reason(r), sb_str(&fields), body, length);
    sb_free(&fields);
    r->head_sent = true;
    r->result.head_us = clock_mono_us();
    r->result.bytes_sent = body.n;
}

/* The size is known: what of the blob is asked for? False: r has ended. */
static bool range_decide(struct relay *r)
{
    struct byte_range range;

    r->position = 0;
    r->end = r->size;
    r->is_part = false;
    if (r->range_field[0] == 0)
        return true;
    switch (http_range_parse(str_c(r->range_field), r->size, &range)) {
    case ERR_OK:
        r->is_part = true;
        r->position = range.first;
        r->end = range.last + 1;
        return true;
    case ERR_RANGE:
        relay_end(r, RELAY_NOT_SATISFIABLE, ERR_RANGE, "range outside the blob");
        return false;
    default: /* several ranges, another unit: as if it were not there (RFC 9110 14.2) */
        return true;
    }
}

/* ---- from a file ---------------------------------------------------------------------------------------------------------- */

static struct blob_key relay_key(const struct relay *r)
{
    return (struct blob_key){
        .upstream_id = str_c(r->upstream_id),
        .upstream_repository = str_c(r->upstream_repository),
        .digest = r->digest,
        .owner = r->owner,
        .size_hint = r->size_hint,
    };
}

static void on_blob_changed(void *ctx)
{
    relay_pump(RELAY(ctx));
}

/* A whole blob, or a part of one that is complete; else a transfer of its own. */
static void file_begin(struct relay *r)
{
    struct blob_key key = relay_key(r);
    bool some = r->is_part && !(r->position == 0 && r->end == r->size);

    if (++r->joins > JOINS_MAX) {
        direct_begin(r);
        return;
    }
    r->reader = some ? blob_join_complete(r->blobs, r->worker, &key, on_blob_changed, r)
                     : blob_join(r->blobs, r->worker, &key, on_blob_changed, r);
    if (r->reader == NULL)
        direct_begin(r);
    else
        relay_pump(r);
}

/* Complete and small: one write. */
static void file_reply(struct relay *r, const struct blob_view *v)
{
    size_t n = (size_t)(r->end - r->position), got = 0;

    if (v->bytes != NULL || n == 0) {
        answer_whole(r, (struct str){n == 0 ? "" : v->bytes + r->position, n}, -1);
        relay_end(r, RELAY_OK, ERR_OK, "");
        return;
    }
    char *buffer = mem_alloc(n);
    while (got < n) {
        ssize_t k = pread(v->fd, buffer + got, n - got, (off_t)(r->position + got));
        if (k < 0 && errno == EINTR)
            continue;
        if (k <= 0)
            break;
        got += (size_t)k;
    }
    if (got == n)
        answer_whole(r, (struct str){buffer, n}, -1);
    mem_free(buffer);
    if (got == n)
        relay_end(r, RELAY_OK, ERR_OK, "");
    else
        relay_fail(r, RELAY_UPSTREAM_CUT, ERR_INTERNAL, "cannot read the blob's file", 0);
}

/* Hand over what may go. Called at every change, and when the client took what it had. */
static void relay_pump(struct relay *r)
{
    struct blob_view v;

    blob_look(r->reader, &v);
    switch (v.state) {
    case BLOB_WAITING:
        return;
    case BLOB_FAILED:
        relay_fail(r, RELAY_UPSTREAM_CUT, v.err, v.detail, v.retry_after_s);
        return;
    case BLOB_MISMATCH:
        relay_fail(r, RELAY_DIGEST_MISMATCH, ERR_UPSTREAM, v.detail, 0);
        return;
    case BLOB_REDIRECTED:
        r->location = mem_strdup(v.location);
        relay_end(r, RELAY_REDIRECT, ERR_OK, "");
        return;
    case BLOB_UNUSABLE:
    case BLOB_AGAIN:
        if (r->head_sent) {
            relay_fail(r, RELAY_UPSTREAM_CUT, v.err == ERR_OK ? ERR_INTERNAL : v.err, v.state == BLOB_AGAIN ? "bad file in the cache" : v.detail, 0);
            return;
        }
        blob_leave(&r->reader);
        if (v.state == BLOB_UNUSABLE)
            direct_begin(r);
        else
            file_begin(r);
        return;
    case BLOB_FILLING:
        if (!v.has_size || (r->is_part && !(r->position == 0 && r->end == v.size) && !r->head_sent))
            return; /* a part comes from verified bytes only */
        break;
    case BLOB_DONE:
        break;
    }
    if (!r->head_sent) {
        if (!r->is_part) {
            r->position = 0;
            r->end = v.size;
        } else if (r->end > v.size) { /* the manifest's size was not the blob's */
            relay_fail(r, RELAY_UPSTREAM_CUT, ERR_UPSTREAM, "the blob is shorter than its manifest says", 0);
            return;
        }
        r->size = v.size;
        r->has_size = true;
        r->result.from_cache = v.from_cache;
        if (v.state == BLOB_DONE && r->end - r->position <= BLOBS_WITHHELD) {
            file_reply(r, &v);
            return;
        }
        if (v.available <= r->position)
            return;
        answer_start(r);
    }
    /* One window a turn: the edge sends at once, and a client that takes all of it must not hold the loop. on_drain comes in any case. */
    uint64_t limit = v.available < r->end ? v.available : r->end;
    if (r->position < limit && edge_pending(r->req) < r->worker->cfg->limits.buffer_high) {
        uint64_t n = limit - r->position < WINDOW ? limit - r->position : WINDOW;
        if (edge_write_file(r->req, v.fd, r->position, (size_t)n) != ERR_OK) {
            relay_fail(r, RELAY_UPSTREAM_CUT, ERR_INTERNAL, "cannot read the blob's file", 0);
            return;
        }
        r->position += n;
        r->result.bytes_sent += n;
    }
    if (r->position == r->end) {
        edge_end(r->req);
        relay_end(r, RELAY_OK, ERR_OK, "");
    } else if (v.state == BLOB_FILLING) {
        blob_advance(r->reader, r->position);
    }
}

/* ---- straight from the upstream ------------------------------------------------------------------------------------------- */

static void direct_request(struct relay *r);

/* Inside of an upstream callback nothing ends; on_done, which follows FETCH_STOP, does it. */
static enum fetch_next direct_stop(struct relay *r, enum relay_end end, enum err err, const char *why)
{
    r->failed = true;
    r->result.end = end;
    r->result.err = err;
    if (why != r->detail) /* some have written it there already */
        snprintf(r->detail, sizeof r->detail, "%s", why);
    return FETCH_STOP;
}

static bool direct_is_whole(const struct relay *r)
{
    return r->hasher != NULL;
}

static enum fetch_next on_direct_head(void *ctx, const struct upstream_blob_head *h)
{
    struct relay *r = RELAY(ctx);
    bool some = r->position > 0 || (r->has_size && r->end < r->size); /* a part, or the rest after a cut */

    if (h->location.n > 0) {
        if (r->head_sent || r->position > 0)
            return direct_stop(r, RELAY_UPSTREAM_CUT, ERR_UPSTREAM, "redirected in the middle of a blob");
        mem_free(r->location);
        r->location = str_dup(h->location);
        return direct_stop(r, RELAY_REDIRECT, ERR_OK, "");
    }
    r->skip = 0;
    r->surplus = false;
    if (!r->has_size) {
        if (h->length < 0 && r->size_hint == 0)
            return direct_stop(r, RELAY_UPSTREAM_CUT, ERR_UPSTREAM, "the upstream tells no length");
        r->size = h->length >= 0 ? (uint64_t)h->length : r->size_hint;
        if (r->size_hint != 0 && r->size != r->size_hint)
            return direct_stop(r, RELAY_UPSTREAM_CUT, ERR_UPSTREAM, "length is not the manifest's");
        r->has_size = true;
        r->end = r->size;
    }
    if (h->status == 200 && (h->length < 0 || (uint64_t)h->length == r->size)) {
        r->skip = r->position; /* ranges are not known there */
        r->surplus = r->end < r->size;
        return FETCH_MORE;
    }
    if (h->status == 206 && some && h->range.first == r->position && h->range.last == r->end - 1 && (h->total == 0 || h->total == r->size))
        return FETCH_MORE;
    return direct_stop(r, RELAY_UPSTREAM_CUT, ERR_UPSTREAM, "another status, range or length than asked for");
}

static void direct_send(struct relay *r, const char *p, size_t n)
{
    edge_write(r->req, p, n);
    r->result.bytes_sent += n;
}

static enum fetch_next on_direct_body(void *ctx, const void *data, size_t n)
{
    struct relay *r = RELAY(ctx);
    const char *p = data;

    size_t pending = r->head_sent ? edge_pending(r->req) : 0; /* what comes would go above: but a small bound must not stop it for good */
    if (pending > r->worker->cfg->limits.buffer_low && pending + n >= r->worker->cfg->limits.buffer_high) {
        r->is_paused = true;
        return FETCH_PAUSE;
    }
    size_t skip = r->skip < n ? (size_t)r->skip : n;
    r->skip -= skip;
    p += skip;
    n -= skip;
    if (n > r->end - r->position) {
        if (!r->surplus)
            return direct_stop(r, RELAY_UPSTREAM_CUT, ERR_UPSTREAM, "more bytes than announced");
        n = (size_t)(r->end - r->position);
    }
    if (direct_is_whole(r)) {
        uint64_t safe = r->size > BLOBS_WITHHELD ? r->size - BLOBS_WITHHELD : 0;
        size_t now = safe <= r->position ? 0 : safe - r->position < n ? (size_t)(safe - r->position) : n;
        hasher_update(r->hasher, p, n);
        if (now > 0) {
            if (!r->head_sent) {
                uint64_t at = r->position;
                r->position = 0;
                answer_start(r);
                r->position = at;
            }
            direct_send(r, p, now);
        }
        if (n > now) {
            if (r->tail == NULL)
                r->tail = mem_alloc(BLOBS_WITHHELD);
            memcpy(r->tail + r->tail_n, p + now, n - now);
            r->tail_n += n - now;
        }
    } else if (n > 0) {
        if (!r->head_sent)
            answer_start(r);
        direct_send(r, p, n);
    }
    r->position += n;
    return r->surplus && r->position == r->end ? FETCH_STOP : FETCH_MORE;
}

/* All bytes have come. Last statement of the caller. */
static void direct_complete(struct relay *r)
{
    struct digest got;

    if (direct_is_whole(r)) {
        hasher_final(r->hasher, &got);
        if (!digest_eq(&got, &r->digest)) {
            relay_fail(r, RELAY_DIGEST_MISMATCH, ERR_UPSTREAM, "the upstream's bytes do not match their digest", 0);
            return;
        }
        if (!r->head_sent) { /* small, or empty */
            r->position = 0;
            answer_whole(r, (struct str){r->tail != NULL ? r->tail : "", r->tail_n}, -1);
            relay_end(r, RELAY_OK, ERR_OK, "");
            return;
        }
        direct_send(r, r->tail, r->tail_n);
    }
    edge_end(r->req);
    relay_end(r, RELAY_OK, ERR_OK, "");
}

static void on_direct_retry(void *ctx)
{
    direct_request(RELAY(ctx));
}

static void on_direct_done(void *ctx, enum err err, const char *detail, unsigned retry_after_s)
{
    struct relay *r = RELAY(ctx);

    r->op = NULL;
    r->is_paused = false;
    if (r->failed) {
        if (r->result.end == RELAY_REDIRECT)
            relay_end(r, RELAY_REDIRECT, ERR_OK, "");
        else
            relay_fail(r, r->result.end, r->result.err, r->detail, 0);
    } else if (r->has_size && r->position == r->end && (r->head_sent || direct_is_whole(r))) {
        direct_complete(r);
    } else if (r->has_size && r->tries < r->worker->cfg->limits.upstream_retries && err != ERR_NOT_FOUND && err != ERR_CANCELED) {
        if (r->retry == NULL)
            r->retry = timer_new(r->worker->loop, on_direct_retry, r);
        timer_set(r->retry, RESUME_WAIT_MS << (r->tries < 6 ? r->tries : 6));
        r->tries++;
    } else {
        relay_fail(r, RELAY_UPSTREAM_CUT, err == ERR_OK ? ERR_UPSTREAM : err, err == ERR_OK ? "the body ended early" : detail, retry_after_s);
    }
}

static void direct_request(struct relay *r)
{
    static const struct upstream_blob_handlers handlers = {.on_head = on_direct_head, .on_body = on_direct_body, .on_done = on_direct_done};
    struct byte_range range = {.first = r->position, .last = r->end > 0 ? r->end - 1 : 0};
    bool some = r->has_size && r->position < r->end && (r->position > 0 || r->end < r->size);

    r->op = upstream_blob(r->upstream, str_c(r->upstream_repository), &r->digest, some ? &range : NULL, false, &handlers, r);
    upstream_op_for(r->op, r->owner);
}

static void head_request(struct relay *r);

static void on_upstream(void *ctx, enum err err, struct upstream *u)
{
    struct relay *r = RELAY(ctx);

    r->get = NULL;
    if (err != ERR_OK) {
        relay_fail(r, RELAY_UPSTREAM_FAILED, err, "the upstream's settings are not to be had", 0);
        return;
    }
    r->upstream = upstream_ref(u);
    if (r->head_only || (r->size_asked && !r->has_size))
        head_request(r);
    else
        direct_request(r);
}

static void direct_begin(struct relay *r)
{
    if (!(r->is_part && !(r->position == 0 && r->end == r->size))) {
        r->position = 0;
        r->hasher = hasher_new((enum digest_alg)r->digest.alg);
    }
    if (r->upstream != NULL)
        direct_request(r);
    else
        r->get = upstreams_get(r->worker->upstreams, str_c(r->upstream_id), on_upstream, r);
}

/* ---- HEAD ------------------------------------------------------------------------------------------------------------------- */

static enum fetch_next on_head_head(void *ctx, const struct upstream_blob_head *h)
{
    struct relay *r = RELAY(ctx);

    if (h->location.n > 0) {
        mem_free(r->location);
        r->location = str_dup(h->location);
        return FETCH_MORE;
    }
    uint64_t length = h->length >= 0 ? (uint64_t)h->length : r->size_hint;
    if (h->length < 0 && r->size_hint == 0)
        return direct_stop(r, RELAY_UPSTREAM_FAILED, ERR_UPSTREAM, "the upstream tells no length");
    if (r->size_hint != 0 && length != r->size_hint)
        return direct_stop(r, RELAY_UPSTREAM_FAILED, ERR_UPSTREAM, "length is not the manifest's");
    r->size = length;
    r->has_size = true;
    return FETCH_MORE;
}

static void on_head_done(void *ctx, enum err err, const char *detail, unsigned retry_after_s)
{
    struct relay *r = RELAY(ctx);

    r->op = NULL;
    if (r->failed) {
        relay_fail(r, r->result.end, r->result.err, r->detail, 0);
    } else if (err != ERR_OK && r->location == NULL) {
        relay_fail(r, RELAY_UPSTREAM_FAILED, err, detail, retry_after_s);
    } else if (r->location != NULL && r->purpose == FOR_ANSWER) {
        relay_end(r, RELAY_REDIRECT, ERR_OK, "");
    } else if (r->location != NULL) {
        /* The place that it is redirected to answers ranges itself; but the address may be good for HEAD only. */
        MEM_FREE(r->location);
        r->range_field[0] = 0;
        file_begin(r);
    } else if (!r->has_size) {
        relay_fail(r, RELAY_UPSTREAM_FAILED, ERR_UPSTREAM, "no answer's head", 0);
    } else if (r->purpose == FOR_ANSWER) {
        answer_whole(r, S(""), (int64_t)r->size);
        relay_end(r, RELAY_OK, ERR_OK, "");
    } else if (range_decide(r)) {
        file_begin(r);
    }
}

static void head_request(struct relay *r)
{
    static const struct upstream_blob_handlers handlers = {.on_head = on_head_head, .on_done = on_head_done};

    r->op = upstream_blob(r->upstream, str_c(r->upstream_repository), &r->digest, NULL, true, &handlers, r);
    upstream_op_for(r->op, r->owner);
}

static void head_begin(struct relay *r, enum purpose purpose)
{
    r->purpose = purpose;
    r->size_asked = true;
    r->get = upstreams_get(r->worker->upstreams, str_c(r->upstream_id), on_upstream, r);
}

/* ---- start, drain, cancel ------------------------------------------------------------------------------------------------- */

static void relay_run(void *arg)
{
    struct relay *r = RELAY(arg);
    struct blob_key key = relay_key(r);

    r->is_deferred = false;
    if (r->is_dead) {
        relay_free(r);
        return;
    }
    if (*r->streams > r->worker->cfg->limits.streams_per_worker) {
        r->result.retry_after_s = RETRY_AFTER_OVERLOADED_S;
        relay_end(r, RELAY_OVERLOADED, ERR_UNAVAILABLE, "limits.streams_per_worker is reached");
        return;
    }
    if (r->worker->cfg->limits.blob_max_duration_ms > 0) {
        r->deadline = timer_new(r->worker->loop, on_deadline, r);
        timer_set(r->deadline, r->worker->cfg->limits.blob_max_duration_ms);
    }
    if (r->head_only) {
        if (blobs_size(r->blobs, &key, &r->size)) {
            r->has_size = true;
            r->result.from_cache = true;
            r->range_field[0] = 0;
            answer_whole(r, S(""), (int64_t)r->size);
            relay_end(r, RELAY_OK, ERR_OK, "");
        } else {
            head_begin(r, FOR_ANSWER);
        }
        return;
    }
    if (r->range_field[0] != 0) {
        if (!blobs_size(r->blobs, &key, &r->size)) {
            if (r->size_hint == 0) {
                head_begin(r, FOR_SIZE);
                return;
            }
            r->size = r->size_hint;
        }
        r->has_size = true;
        if (!range_decide(r))
            return;
        if (!r->is_part)
            r->has_size = false; /* the upstream's word counts */
    }
    file_begin(r);
}

struct relay *relay_start(struct worker *w, const struct relay_ask *ask, relay_done_cb *done, void *ctx)
{
    struct relay *r = NEW(struct relay);

    r->magic = RELAY_MAGIC;
    r->worker = w;
    r->blobs = w->proxy->blobs;
    r->req = ask->req;
    r->done = done;
    r->ctx = ctx;
    r->upstream_id = str_dup(ask->upstream_id);
    r->upstream_repository = str_dup(ask->upstream_repository);
    r->range_field = str_dup(ask->range);
    r->fields = str_dup(ask->fields);
    r->digest = ask->digest;
    r->owner = ask->owner;
    r->size_hint = ask->size_hint;
    r->head_only = ask->head_only;
    r->streams = blobs_streams(r->blobs, w);
    ++*r->streams;
    r->is_deferred = true;
    loop_defer(w->loop, relay_run, r);
    return r;
}

void relay_drained(struct relay *r)
{
    if (r->is_deferred || r->is_reporting)
        return;
    r->in_drain = true;
    if (r->reader != NULL) {
        relay_pump(r); /* may have ended; then r waits for its report */
        r->in_drain = false;
    } else if (r->is_paused && edge_pending(r->req) <= r->worker->cfg->limits.buffer_low) {
        r->is_paused = false;
        upstream_resume(r->op); /* may call on_direct_body at once */
        r->in_drain = false;
    } else {
        r->in_drain = false;
    }
}

struct relay_result relay_so_far(const struct relay *r)
{
    return (struct relay_result){.bytes_sent = r->result.bytes_sent,
                                 .head_sent = r->head_sent,
                                 .status = r->head_sent ? answer_status(r) : 0,
                                 .from_cache = r->result.from_cache,
                                 .head_us = r->result.head_us};
}

void relay_cancel(struct relay **pr)
{
    struct relay *r = *pr;

    *pr = NULL;
    if (r == NULL || r->is_reporting)
        return;
    relay_release(r);
    if (r->is_deferred)
        r->is_dead = true;
    else
        relay_free(r);
}
