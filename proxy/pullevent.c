/* Pull events on their way to Redis: a batch that is being filled, a queue of full ones, a few of them in flight.
 * A batch that Redis did not acknowledge is sent again, so the admin may see it twice: events carry the request's id. */
#include "pullevent.h"

#include <stdatomic.h>
#include <string.h>

#include "pullgate/cache.h"
#include "pullgate/clock.h"
#include "pullgate/credential.h"
#include "pullgate/log.h"
#include "pullgate/mem.h"
#include "pullgate/projection.h"
#include "pullgate/seal.h"

#include "textline.h"
#include "worker.h"

static const uint64_t GATHER_MS = 20;    /* longest an event waits for company */
static const unsigned BATCH_LINES = 500; /* a batch is sent when it has this many lines ... */
static const size_t BATCH_BYTES = 64 * 1024; /* ... or bytes: its MAC holds the loop for as long */
static const unsigned IN_FLIGHT = 4;     /* batches */
static const uint64_t RETRY_MS = 200;    /* after a batch was not taken */
static const uint64_t USED_EVERY_MS = 60000;
static const size_t AGENT_MAX = 200;     /* bytes of a User-Agent */
#define LINE_MAX_BYTES 4096              /* every field is bounded by its grammar; this is above their sum, escapes counted */
static const uint64_t BYTES_EVERY_MS = 2000;
#define LICENSE_ID_MAX ID_MAX
#define BYTES_SLOTS 256u                 /* licenses summed at once; two that share a slot are told more often */
#define USED_SLOTS 8192u                 /* credentials remembered; two that share a slot are told more often */
#define STREAM_MAXLEN "1000000"

struct batch {
    struct batch *next;
    struct pullevents *events;
    struct strbuf lines;
    unsigned n;
    struct cache_op *op; /* in flight */
};

struct used_slot {
    uint64_t hash;
    uint64_t told_ms;
};

struct bytes_slot { /* of one license */
    char license_id[LICENSE_ID_MAX];
    uint64_t bytes; /* 0: free */
};

struct pullevents {
    struct worker *worker;
    struct batch *first, **last; /* full ones, oldest first; the first few in flight */
    struct batch *filling;
    struct timer *gather;
    struct timer *retry;
    unsigned in_flight;
    bool away; /* the last answer was a failure: nothing is sent before `retry` */
    uint64_t max_lines;
    atomic_uint_fast64_t n_lines; /* queued, filling ones too */
    atomic_uint_fast64_t lost;
    struct used_slot used[USED_SLOTS];
    struct bytes_slot sums[BYTES_SLOTS];
    unsigned n_sums; /* not free */
    struct timer *sums_timer;
    struct timer *flush_deadline;
    void (*flush_done)(void *ctx);
    void *flush_ctx;
};

static void batches_send(struct pullevents *e);

static void batch_free(struct batch *b)
{
    cache_cancel(&b->op);
    sb_free(&b->lines);
    mem_free(b);
}

static void batch_remove(struct pullevents *e, struct batch *b)
{
    struct batch **at = &e->first;

    while (*at != b)
        at = &(*at)->next;
    *at = b->next;
    if (!b->next)
        e->last = at;
    atomic_fetch_sub_explicit(&e->n_lines, b->n, memory_order_relaxed);
    batch_free(b);
}

static void flush_check(struct pullevents *e)
{
    void (*done)(void *) = e->flush_done;

    if (!done || e->first || e->filling)
        return;
    e->flush_done = NULL;
    timer_cancel(e->flush_deadline);
    done(e->flush_ctx); /* last: it may free us */
}

static void on_sent(void *ctx, enum err err, const struct cache_reply *r)
{
    struct batch *b = ctx;
    struct pullevents *e = b->events;

    (void)r;
    b->op = NULL;
    e->in_flight--;
    if (err) {
        e->away = true;
        if (!timer_pending(e->retry))
            timer_set(e->retry, RETRY_MS);
        return;
    }
    e->away = false;
    batch_remove(e, b);
    batches_send(e);
    flush_check(e);
}

static void batch_send(struct pullevents *e, struct batch *b)
{
    static const char hex[] = "0123456789abcdef";
    uint8_t mac[SEAL_MAC_LEN];
    char mac_text[2 * SEAL_MAC_LEN];

    keyring_hmac(e->worker->proxy->keys, KEYRING_MAC, sb_str(&b->lines), mac);
    for (size_t i = 0; i < SEAL_MAC_LEN; i++) {
        mac_text[2 * i] = hex[mac[i] >> 4];
        mac_text[2 * i + 1] = hex[mac[i] & 15];
    }
    e->in_flight++;
    b->op = cache_command(e->worker->cache,
                          (struct str[]){S("XADD"), S(PROJECTION_EVENTS), S("MAXLEN"), S("~"), S(STREAM_MAXLEN), S("*"), S("b"), sb_str(&b->lines),
                                         S("m"), {mac_text, sizeof mac_text}},
                          10, on_sent, b);
}

static void batches_send(struct pullevents *e)
{
    for (struct batch *b = e->first; b && !e->away && e->in_flight < IN_FLIGHT; b = b->next)
        if (!b->op)
            batch_send(e, b);
}

/* The oldest batch that is not in flight makes room. */
static void oldest_drop(struct pullevents *e)
{
    static unsigned long long last;
    struct batch *b = e->first;

    while (b && b->op)
        b = b->next;
    if (!b)
        return;
    atomic_fetch_add_explicit(&e->lost, b->n, memory_order_relaxed);
    log_limited(&last, 10000, LOG_LEVEL_WARN, "pull events are lost: redis takes none and limits.events_queued is reached");
    batch_remove(e, b);
}

static void batch_close(struct pullevents *e)
{
    struct batch *b = e->filling;

    if (!b)
        return;
    e->filling = NULL;
    timer_cancel(e->gather);
    *e->last = b;
    e->last = &b->next;
    while (atomic_load_explicit(&e->n_lines, memory_order_relaxed) > e->max_lines && e->first != b)
        oldest_drop(e);
    batches_send(e);
}

static void on_gather(void *ctx)
{
    batch_close(ctx);
}

static void on_retry(void *ctx)
{
    struct pullevents *e = ctx;
    e->away = false;
    batches_send(e);
}

/* Room for one line at the end of the batch; line_end() takes what was written. */
static struct textline line_begin(struct pullevents *e)
{
    struct strbuf *b;

    if (!e->filling) {
        e->filling = NEW(struct batch);
        e->filling->events = e;
        timer_set(e->gather, GATHER_MS);
    }
    b = &e->filling->lines;
    sb_reserve(b, LINE_MAX_BYTES);
    return (struct textline){.p = b->p + b->n, .end = b->p + b->n + LINE_MAX_BYTES};
}

static void line_end(struct pullevents *e, const struct textline *t)
{
    struct batch *b = e->filling;

    if (t->cut) { /* cannot be, by the grammar of what it holds; a half line must not be sent */
        atomic_fetch_add_explicit(&e->lost, 1, memory_order_relaxed);
        b->lines.p[b->lines.n] = '\0';
        return;
    }
    b->lines.n = (size_t)(t->p - b->lines.p);
    b->lines.p[b->lines.n] = '\0';
    b->n++;
    atomic_fetch_add_explicit(&e->n_lines, 1, memory_order_relaxed);
    if (b->n >= BATCH_LINES || b->lines.n >= BATCH_BYTES)
        batch_close(e);
}

void pullevent_add(struct pullevents *e, const struct pull_event *p)
{
    struct textline t = line_begin(e);

    TEXTLINE_LIT(&t, "{\"e\":\"pull\",\"id\":");
    textline_json(&t, str_c(p->id), 64);
    TEXTLINE_LIT(&t, ",\"t\":");
    textline_u64(&t, p->t_ms > 0 ? (uint64_t)p->t_ms : 0);
#define FIELD(name, value, max) (TEXTLINE_LIT(&t, ",\"" name "\":"), textline_json(&t, (value), (max)))
    FIELD("vendor_id", p->vendor_id, 64);
    FIELD("customer_id", p->customer_id, 64);
    FIELD("credential_id", p->credential_id, 64);
    FIELD("license_id", p->license_id, 64);
    FIELD("application_id", p->application_id, 64);
    FIELD("repository", p->repository, OCI_NAME_MAX);
    FIELD("reference", p->reference, DIGEST_TEXT_MAX);
    FIELD("tag", p->tag, OCI_TAG_MAX);
    FIELD("digest", p->digest, DIGEST_TEXT_MAX);
    FIELD("decision", p->allow ? S("allow") : S("deny"), 8);
    FIELD("reason", str_c(p->reason), 64);
    FIELD("client", p->client, 64);
    FIELD("agent", p->agent, AGENT_MAX);
    FIELD("proxy", str_c(e->worker->proxy->instance), 64);
    FIELD("method", str_c(p->method), 16);
    TEXTLINE_LIT(&t, ",\"bytes\":");
    textline_u64(&t, p->bytes);
    TEXTLINE_LIT(&t, "}\n");
    line_end(e, &t);
}

void pullevent_tag(struct pullevents *e, struct str repository_id, struct str tag, const struct digest *d, enum media_type media_type, uint64_t size)
{
    struct textline t = line_begin(e);
    char text[DIGEST_TEXT_MAX];

    TEXTLINE_LIT(&t, "{\"e\":\"tag\",\"t\":");
    textline_u64(&t, (uint64_t)clock_now_ms());
    FIELD("repository_id", repository_id, 64);
    FIELD("tag", tag, OCI_TAG_MAX);
    FIELD("digest", str_c(digest_text(d, text)), DIGEST_TEXT_MAX);
    FIELD("media_type", str_c(media_type_text(media_type)), 128);
    TEXTLINE_LIT(&t, ",\"size\":");
    textline_u64(&t, size);
    TEXTLINE_LIT(&t, "}\n");
    line_end(e, &t);
}

void pullevent_used(struct pullevents *e, struct str credential_id, struct str client)
{
    uint64_t h = str_hash(credential_id), now = loop_now_ms(e->worker->loop);
    struct used_slot *slot = &e->used[h % USED_SLOTS];

    if (slot->hash == h && slot->told_ms && now - slot->told_ms < USED_EVERY_MS)
        return;
    *slot = (struct used_slot){.hash = h, .told_ms = now};
    struct textline t = line_begin(e);
    TEXTLINE_LIT(&t, "{\"e\":\"used\",\"t\":");
    textline_u64(&t, (uint64_t)clock_now_ms());
    FIELD("credential_id", credential_id, 64);
    FIELD("client", client, 64);
    TEXTLINE_LIT(&t, "}\n");
    line_end(e, &t);
}
/* The id makes a report that comes twice count once. */
static void bytes_tell(struct pullevents *e, struct bytes_slot *slot)
{
    char id[ID_MAX];

    if (slot->bytes == 0)
        return;
    request_id_new(id);
    struct textline t = line_begin(e);
    TEXTLINE_LIT(&t, "{\"e\":\"bytes\",\"id\":");
    textline_json(&t, str_c(id), 64);
    TEXTLINE_LIT(&t, ",\"t\":");
    textline_u64(&t, (uint64_t)clock_now_ms());
    FIELD("license_id", str_c(slot->license_id), 64);
    TEXTLINE_LIT(&t, ",\"bytes\":");
    textline_u64(&t, slot->bytes);
    TEXTLINE_LIT(&t, "}\n");
    line_end(e, &t);
    slot->bytes = 0;
    e->n_sums--;
}

static void on_sums(void *ctx)
{
    struct pullevents *e = ctx;

    for (size_t i = 0; e->n_sums && i < BYTES_SLOTS; i++)
        bytes_tell(e, &e->sums[i]);
}

void pullevent_bytes(struct pullevents *e, struct str license_id, uint64_t bytes)
{
    struct bytes_slot *slot = &e->sums[str_hash(license_id) % BYTES_SLOTS];

    if (bytes == 0 || license_id.n == 0 || license_id.n >= LICENSE_ID_MAX)
        return;
    if (slot->bytes && !str_eq_c(license_id, slot->license_id))
        bytes_tell(e, slot);
    if (slot->bytes == 0) {
        memcpy(slot->license_id, license_id.p, license_id.n);
        slot->license_id[license_id.n] = '\0';
        if (e->n_sums++ == 0)
            timer_set(e->sums_timer, BYTES_EVERY_MS);
    }
    slot->bytes += bytes;
}
#undef FIELD

static void on_flush_deadline(void *ctx)
{
    struct pullevents *e = ctx;
    void (*done)(void *) = e->flush_done;

    e->flush_done = NULL;
    if (done)
        done(e->flush_ctx); /* last */
}

void pullevents_flush(struct pullevents *e, uint64_t deadline_ms, void (*done)(void *ctx), void *ctx)
{
    e->flush_done = done;
    e->flush_ctx = ctx;
    on_sums(e);
    batch_close(e);
    timer_set(e->flush_deadline, e->first ? deadline_ms : 0);
}

struct pullevents *pullevents_new(struct worker *w)
{
    struct pullevents *e = NEW(struct pullevents);

    e->worker = w;
    e->last = &e->first;
    e->max_lines = w->cfg->limits.events_queued ? w->cfg->limits.events_queued : 1;
    e->gather = timer_new(w->loop, on_gather, e);
    e->retry = timer_new(w->loop, on_retry, e);
    e->sums_timer = timer_new(w->loop, on_sums, e);
    e->flush_deadline = timer_new(w->loop, on_flush_deadline, e);
    return e;
}

void pullevents_free(struct pullevents **pe)
{
    struct pullevents *e = *pe;
    uint64_t left;

    if (!e)
        return;
    *pe = NULL;
    left = atomic_load(&e->n_lines);
    if (left)
        log_warn("%llu pull events could not be delivered before the end", (unsigned long long)left);
    if (e->filling)
        batch_free(e->filling);
    while (e->first) {
        struct batch *b = e->first;
        e->first = b->next;
        batch_free(b);
    }
    timer_free(&e->gather);
    timer_free(&e->sums_timer);
    timer_free(&e->retry);
    timer_free(&e->flush_deadline);
    mem_free(e);
}

uint64_t pullevents_lost(const struct pullevents *e)
{
    return atomic_load_explicit(&e->lost, memory_order_relaxed);
}

uint64_t pullevents_queued(const struct pullevents *e)
{
    return atomic_load_explicit(&e->n_lines, memory_order_relaxed);
}
