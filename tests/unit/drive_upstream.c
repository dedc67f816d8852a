/* Runs upstream operations on a loop for the Python tests: drive_upstream SPEC LIMITS OP…
 * SPEC and LIMITS are JSON; each OP is one argument, "[N*]verb word…"; N run at once. One JSON line an operation on stdout.
 *   ping | manifest REPO REF | head REPO REF | tags REPO | referrers REPO DIGEST | blob REPO DIGEST [FIRST LAST] | blobhead REPO DIGEST
 *   pause REPO DIGEST MS (no bytes for so long after the first) | cut REPO DIGEST (cancelled at the first byte) | stop REPO DIGEST | sleep MS */
#include "pullgate/upstream.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "pullgate/clock.h"
#include "pullgate/jv.h"
#include "pullgate/log.h"
#include "pullgate/mem.h"
#include "pullgate/seal.h"

struct run {
    const char *text;
    struct upstream_op *op;
    struct jv *out;
    struct hasher *hash;
    uint64_t n;
    unsigned pause_ms;
    bool paused_once, cut, stop;
    struct timer *timer;
};

static struct loop *loop;
static struct upstream *upstream;
static unsigned left;

static long rss_kb(void)
{
    long pages = 0, rss = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (f && fscanf(f, "%ld %ld", &pages, &rss) != 2)
        rss = 0;
    if (f)
        fclose(f);
    return rss * 4;
}

static void run_end(struct run *r, enum err err, const char *detail)
{
    static const char *const names[] = {
#define X(name, status, oci, text) #name,
        ERR_LIST(X)
#undef X
    };
    struct strbuf b = {0};
    r->op = NULL;
    jv_set_c(r->out, "op", r->text);
    jv_set_c(r->out, "err", names[err]);
    jv_set_c(r->out, "detail", detail);
    jv_set_int(r->out, "n", (int64_t)r->n);
    jv_set_int(r->out, "rss_kb", rss_kb());
    jv_set_bool(r->out, "healthy", upstream_healthy(upstream));
    if (r->hash) {
        struct digest d;
        char text[DIGEST_TEXT_MAX];
        hasher_final(r->hash, &d);
        hasher_free(&r->hash);
        jv_set_c(r->out, "digest", digest_text(&d, text));
    }
    jv_dump(r->out, &b);
    puts(b.p);
    fflush(stdout);
    sb_free(&b);
    jv_free(r->out);
    timer_free(&r->timer);
    mem_free(r);
    if (--left == 0)
        loop_stop(loop);
}

static void on_manifest(void *ctx, enum err err, const struct upstream_manifest *m, const char *detail, unsigned retry_after_s)
{
    struct run *r = ctx;
    char text[DIGEST_TEXT_MAX];
    jv_set_int(r->out, "retry_after", retry_after_s);
    if (!err) {
        jv_set_c(r->out, "digest", digest_text(&m->digest, text));
        jv_set_int(r->out, "size", (int64_t)m->size);
        jv_set_c(r->out, "media_type", media_type_text(m->media_type));
        jv_set_str(r->out, "bytes", m->bytes);
    }
    run_end(r, err, detail);
}

static void on_tags(void *ctx, enum err err, const struct str *tags, size_t n, const char *detail)
{
    struct run *r = ctx;
    struct jv *a = jv_array();
    for (size_t i = 0; i < n; i++)
        jv_push(a, jv_string(tags[i]));
    jv_set(r->out, "tags", a);
    run_end(r, err, detail);
}

static void on_referrers(void *ctx, enum err err, struct str bytes, const char *detail)
{
    struct run *r = ctx;
    jv_set_str(r->out, "bytes", bytes);
    run_end(r, err, detail);
}

static void on_ping(void *ctx, enum err err, const char *detail)
{
    run_end(ctx, err, detail);
}

static enum fetch_next on_blob_head(void *ctx, const struct upstream_blob_head *h)
{
    struct run *r = ctx;
    jv_set_int(r->out, "status", h->status);
    jv_set_int(r->out, "length", h->length);
    jv_set_int(r->out, "total", (int64_t)h->total);
    jv_set_str(r->out, "location", h->location);
    return FETCH_MORE;
}

static void on_pause_over(void *ctx)
{
    struct run *r = ctx;
    jv_set_int(r->out, "rss_paused_kb", rss_kb());
    upstream_resume(r->op);
}

static void on_cut(void *ctx)
{
    run_end(ctx, ERR_OK, "cut");
}

static enum fetch_next on_blob_body(void *ctx, const void *data, size_t n)
{
    struct run *r = ctx;
    if (r->pause_ms && !r->paused_once) {
        r->paused_once = true;
        timer_set(r->timer, r->pause_ms);
        return FETCH_PAUSE;
    }
    if (r->cut) {
        upstream_cancel(&r->op);
        timer_free(&r->timer);
        r->timer = timer_new(loop, on_cut, r);
        timer_set(r->timer, 100); /* long enough that a wrong callback would come first */
        return FETCH_MORE;
    }
    if (r->stop)
        return FETCH_STOP;
    hasher_update(r->hash, data, n);
    r->n += n;
    return FETCH_MORE;
}

static void on_blob_done(void *ctx, enum err err, const char *detail, unsigned retry_after_s)
{
    struct run *r = ctx;
    jv_set_int(r->out, "retry_after", retry_after_s);
    run_end(r, err, detail);
}

static void run_start(const char *text)
{
    static const struct upstream_blob_handlers handlers = {on_blob_head, on_blob_body, on_blob_done};
    struct run *r = NEW(struct run);
    struct str rest = str_c(text), w[6] = {{NULL, 0}};
    size_t n = 0;
    r->text = text;
    r->out = jv_object();
    while (n < 6 && str_next(&rest, ' ', &w[n]))
        n++;
    left++;
    struct digest d = {0};
    struct str verb = w[0];
    (void)!digest_parse(w[2], &d, NULL);
    if (str_eq_c(verb, "ping")) {
        r->op = upstream_ping(upstream, on_ping, r);
    } else if (str_eq_c(verb, "manifest") || str_eq_c(verb, "head")) {
        r->op = upstream_manifest(upstream, w[1], w[2], str_eq_c(verb, "head"), on_manifest, r);
    } else if (str_eq_c(verb, "tags")) {
        r->op = upstream_tags(upstream, w[1], on_tags, r);
    } else if (str_eq_c(verb, "referrers")) {
        r->op = upstream_referrers(upstream, w[1], &d, on_referrers, r);
    } else {
        struct byte_range range = {0, 0};
        bool has_range = n == 5 && str_to_u64(w[3], &range.first) && str_to_u64(w[4], &range.last);
        uint64_t ms = 0;
        if (str_eq_c(verb, "pause") && str_to_u64(w[3], &ms))
            r->pause_ms = (unsigned)ms;
        r->cut = str_eq_c(verb, "cut");
        r->stop = str_eq_c(verb, "stop");
        r->hash = hasher_new(DIGEST_SHA256);
        r->timer = timer_new(loop, on_pause_over, r);
        r->op = upstream_blob(upstream, w[1], &d, has_range ? &range : NULL, str_eq_c(verb, "blobhead"), &handlers, r);
    }
}

static void on_slept(void *ctx)
{
    (void)ctx;
    loop_stop(loop);
}

static struct upstream_spec *spec_of(const struct jv *doc)
{
    static struct keyring *none;
    struct upstream_spec *s = NULL;
    struct error e = {0};
    if (upstream_spec_parse(doc, none, &s, &e) != ERR_OK) {
        fprintf(stderr, "%s: %s\n", e.field, e.text);
        exit(2);
    }
    mem_free(s->password);
    s->password = mem_strdup(jv_get_c(doc, "password", "")); /* plain, here only */
    struct upstream_spec *copy = upstream_spec_copy(s);
    upstream_spec_free(&s);
    return copy;
}

int main(int argc, char **argv)
{
    struct jv *doc = NULL, *lim_doc = NULL;
    struct error e = {0};
    log_init("drive_upstream", LOG_LEVEL_WARN);
    if (argc < 3 || jv_parse(str_c(argv[1]), &JV_LIMITS_API, &doc, &e) != ERR_OK || jv_parse(str_c(argv[2]), &JV_LIMITS_API, &lim_doc, &e) != ERR_OK) {
        fprintf(stderr, "usage: drive_upstream SPEC LIMITS OP…: %s\n", e.text);
        return 2;
    }
#define LIM(name, dflt) (uint64_t)jv_get_int(lim_doc, name, dflt)
    struct upstream_limits lim = {.fetch = {.connections = LIM("connections", 128), .connect_ms = LIM("connect_ms", 5000),
                                            .first_byte_ms = LIM("first_byte_ms", 5000), .stall_ms = LIM("stall_ms", 5000),
                                            .total_ms = LIM("total_ms", 0)},
                                  .retries = (unsigned)LIM("retries", 2), .manifest_bytes = LIM("manifest_bytes", 0),
                                  .tags_bytes = LIM("tags_bytes", 0), .breaker_failures = (unsigned)LIM("breaker_failures", 100),
                                  .breaker_ms = LIM("breaker_ms", 0)};
    loop = loop_new();
    upstream = upstream_new(loop, spec_of(doc), &lim);
    for (int i = 3; i < argc; i++) {
        struct str s = str_c(argv[i]), count, rest;
        uint64_t n = 1;
        const char *text = argv[i];
        if (str_starts(s, S("sleep ")) && str_to_u64(str_skip(s, 6), &n)) {
            struct timer *t = timer_new(loop, on_slept, NULL);
            timer_set(t, n);
            loop_run(loop);
            timer_free(&t);
            continue;
        }
        if (str_cut(s, '*', &count, &rest) && str_to_u64(count, &n))
            text = rest.p;
        for (uint64_t j = 0; j < n; j++)
            run_start(text);
        while (left)
            loop_run(loop);
    }
    upstream_unref(&upstream);
    loop_free(loop);
    jv_free(doc);
    jv_free(lim_doc);
    return 0;
}
