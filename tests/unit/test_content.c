/* The content module over a world of fakes: a registry, facts, Redis and a clock that the test owns. The order in which answers
 * arrive is the test's too. Linked with the module's files; everything it calls outside the pure domain stands here. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "content.h"
#include "cpu_time.h"
#include "pullevent.h"
#include "upstreams.h"
#include "worker.h"

#include "pullgate/clock.h"
#include "pullgate/jv.h"
#include "pullgate/mem.h"
#include "pullgate/seal.h"

#include "directory.h"

/* ---- clock, loop ------------------------------------------------------------------------------ */

static int64_t wall_s;
static uint64_t mono_ms;

int64_t __wrap_clock_now_s(void);
int64_t __wrap_clock_now_s(void)
{
    return wall_s;
}

static void pass_ms(uint64_t ms)
{
    mono_ms += ms;
    wall_s += (int64_t)(ms / 1000);
}

typedef void event_fn(void *arg);
struct event {
    event_fn *fn;
    void *arg;
    bool dead;
};
static struct event events[200000];
static size_t n_events;
static unsigned shuffle; /* 0: in order; else a seed */

static void *event_add(event_fn *fn, void *arg)
{
    assert_true(n_events < sizeof events / sizeof *events);
    events[n_events++] = (struct event){fn, arg, false};
    return arg;
}

static void event_drop(void *arg)
{
    for (size_t i = 0; i < n_events; i++)
        if (events[i].arg == arg)
            events[i].dead = true;
}

static bool pump_one(void)
{
    size_t at = 0;
    if (!n_events)
        return false;
    if (shuffle) {
        shuffle = shuffle * 1103515245u + 12345u;
        at = (shuffle >> 16) % n_events;
    }
    struct event e = events[at];
    memmove(events + at, events + at + 1, (--n_events - at) * sizeof *events);
    if (!e.dead)
        e.fn(e.arg);
    return true;
}

static void pump(void)
{
    for (unsigned n = 0; pump_one(); n++)
        assert_true(n < 1000000);
}

struct loop {
    int unused;
};
struct timer {
    timer_fn *fn;
    void *ctx;
    bool armed;
};
static struct loop the_loop;

void loop_post(struct loop *l, loop_fn *fn, void *arg)
{
    (void)l;
    event_add(fn, arg);
}

uint64_t loop_now_ms(struct loop *l)
{
    (void)l;
    return mono_ms;
}
struct timer *timer_new(struct loop *l, timer_fn *fn, void *ctx)
{
    struct timer *t = NEW(struct timer);
    (void)l;
    t->fn = fn;
    t->ctx = ctx;
    return t;
}
static void timer_fire(void *arg)
{
    struct timer *t = arg;
    t->armed = false;
    t->fn(t->ctx);
}
void timer_set(struct timer *t, uint64_t ms)
{
    (void)ms;
    if (!t->armed)
        event_add(timer_fire, t);
    t->armed = true;
}
void timer_free(struct timer **t)
{
    if (*t)
        event_drop(*t);
    MEM_FREE(*t);
}

/* ---- the registry ----------------------------------------------------------------------------- */

struct doc {
    char name[32];
    struct digest digest;
    enum media_type mt;
    char *bytes;
    bool hidden; /* the registry has lost it */
    bool lies;   /* sends another document's bytes */
};
struct rtag {
    char name[160];
    char doc[32];
};
struct ref {
    char subject[32], doc[32];
};
static struct doc docs[20000];
static size_t n_docs;
static struct rtag rtags[12000];
static size_t n_rtags;
static struct ref refs[100];
static size_t n_refs;
static bool referrers_api;
static enum err upstream_down; /* what every request ends with */
static enum err list_down;
static unsigned hits, hits_tag, hits_digest, hits_list, hits_referrers, told_tags;
static void (*before_tag)(void); /* something happens before a tag is answered */

static struct doc *doc_of(const char *name)
{
    for (size_t i = 0; i < n_docs; i++)
        if (strcmp(docs[i].name, name) == 0)
            return &docs[i];
    fail_msg("no document %s", name);
    return NULL;
}

static struct doc *doc_by_digest(const struct digest *d)
{
    for (size_t i = 0; i < n_docs; i++)
        if (docs[i].mt != MEDIA_UNKNOWN && digest_eq(&docs[i].digest, d))
            return &docs[i];
    return NULL;
}

static void doc_add(const char *name, enum media_type mt, char *take_bytes)
{
    struct doc *d = &docs[n_docs++];
    *d = (struct doc){.mt = mt, .bytes = take_bytes};
    snprintf(d->name, sizeof d->name, "%s", name);
    d->digest.alg = DIGEST_SHA256;
    seal_sha256(str_c(take_bytes), d->digest.bytes);
}

static const char *dtext(const char *name)
{
    static char buf[8][DIGEST_TEXT_MAX];
    static unsigned at;
    return digest_text(&doc_of(name)->digest, buf[at++ % 8]);
}

static void blob(const char *name)
{
    doc_add(name, MEDIA_UNKNOWN, mem_strdup(name));
}

/* "config layer layer …", made when they are not there */
static void manifest(const char *name, const char *blobs, const char *subject)
{
    struct strbuf b = {0};
    struct str rest = str_c(blobs), one;
    unsigned n = 0;
    sb_addf(&b, "{\"schemaVersion\":2,\"mediaType\":\"%s\",\"annotations\":{\"n\":\"%s\"}", media_type_text(MEDIA_OCI_MANIFEST), name);
    while (str_next(&rest, ' ', &one)) {
        char text[64];
        bool there = false;
        snprintf(text, sizeof text, "%.*s", STR(one));
        for (size_t i = 0; i < n_docs; i++)
            there |= strcmp(docs[i].name, text) == 0;
        if (!there)
            blob(text);
        sb_addf(&b, "%s{\"mediaType\":\"application/octet-stream\",\"digest\":\"%s\",\"size\":%zu}",
                n == 0   ? ",\"config\":"
                : n == 1 ? ",\"layers\":["
                         : ",",
                dtext(text), strlen(text));
        n++;
    }
    sb_addc(&b, n > 1 ? "]" : ",\"layers\":[]");
    if (subject)
        sb_addf(&b, ",\"subject\":{\"mediaType\":\"%s\",\"digest\":\"%s\",\"size\":1}", media_type_text(MEDIA_OCI_MANIFEST),
                dtext(subject));
    sb_addc(&b, "}");
    doc_add(name, MEDIA_OCI_MANIFEST, sb_take(&b));
}

static void index_of(const char *name, const char *children)
{
    struct strbuf b = {0};
    struct str rest = str_c(children), one;
    unsigned n = 0;
    sb_addf(&b, "{\"schemaVersion\":2,\"mediaType\":\"%s\",\"annotations\":{\"n\":\"%s\"},\"manifests\":[",
            media_type_text(MEDIA_OCI_INDEX), name);
    while (str_next(&rest, ' ', &one)) {
        char text[64];
        snprintf(text, sizeof text, "%.*s", STR(one));
        struct doc *d = doc_of(text);
        sb_addf(&b, "%s{\"mediaType\":\"%s\",\"digest\":\"%s\",\"size\":%zu}", n++ ? "," : "", media_type_text(d->mt), dtext(text),
                strlen(d->bytes));
    }
    sb_addc(&b, "]}");
    doc_add(name, MEDIA_OCI_INDEX, sb_take(&b));
}

static void tag(const char *name, const char *doc)
{
    for (size_t i = 0; i < n_rtags; i++) {
        if (strcmp(rtags[i].name, name) != 0)
            continue;
        if (doc)
            snprintf(rtags[i].doc, sizeof rtags[i].doc, "%s", doc);
        else
            rtags[i] = rtags[--n_rtags];
        return;
    }
    snprintf(rtags[n_rtags].name, sizeof rtags->name, "%s", name);
    snprintf(rtags[n_rtags++].doc, sizeof rtags->doc, "%s", doc);
}

static const char *sigtag(const char *subject, const char *suffix)
{
    static char buf[4][200];
    static unsigned at;
    char *s = buf[at++ % 4];
    snprintf(s, 200, "%s%s", dtext(subject), suffix);
    *strchr(s, ':') = '-';
    return s;
}

struct upstream {
    int refs;
};
static struct upstream the_upstream;
struct upstream *upstream_ref(struct upstream *u)
{
    u->refs++;
    return u;
}
void upstream_unref(struct upstream **u)
{
    if (*u)
        (*u)->refs--;
    *u = NULL;
}

struct upstreams_op {
    upstreams_cb *cb;
    void *ctx;
};
static void upstreams_answer(void *arg)
{
    struct upstreams_op op = *(struct upstreams_op *)arg;
    mem_free(arg);
    op.cb(op.ctx, ERR_OK, &the_upstream);
}
struct upstreams_op *upstreams_get(struct upstreams *u, struct str id, upstreams_cb *cb, void *ctx)
{
    struct upstreams_op *op = NEW(struct upstreams_op);
    (void)u;
    assert_true(str_eq_c(id, "ups_1"));
    *op = (struct upstreams_op){cb, ctx};
    return event_add(upstreams_answer, op);
}
void upstreams_cancel(struct upstreams_op **op)
{
    event_drop(*op);
    MEM_FREE(*op);
}

struct upstream_op {
    char kind; /* m t r */
    char *reference;
    bool head;
    struct digest digest;
    upstream_manifest_cb *m;
    upstream_tags_cb *t;
    upstream_referrers_cb *r;
    void *ctx;
};
void upstream_op_for(struct upstream_op *op, uint64_t owner)
{
    (void)op, (void)owner;
}

void upstream_cancel(struct upstream_op **op)
{
    event_drop(*op);
    mem_free((*op)->reference);
    MEM_FREE(*op);
}

static void manifest_answer(struct upstream_op *op)
{
    struct doc *d = NULL;
    struct digest digest;
    if (digest_parse(str_c(op->reference), &digest, NULL) == ERR_OK) {
        hits_digest++;
        d = doc_by_digest(&digest);
    } else {
        hits_tag++;
        if (before_tag)
            before_tag();
        for (size_t i = 0; i < n_rtags; i++)
            if (strcmp(rtags[i].name, op->reference) == 0)
                d = doc_of(rtags[i].doc);
    }
    if (upstream_down) {
        op->m(op->ctx, upstream_down, NULL, "down", 0);
        return;
    }
    if (!d || d->hidden) {
        op->m(op->ctx, ERR_NOT_FOUND, NULL, "404", 0);
        return;
    }
    struct upstream_manifest m = {
        .status = 200, .media_type = d->mt, .content_type = str_c(media_type_text(d->mt)), .digest = d->digest, .size = strlen(d->bytes)};
    if (!op->head && d->mt != MEDIA_SCHEMA1)
        m.bytes = str_c(d->bytes);
    op->m(op->ctx, d->mt == MEDIA_SCHEMA1 ? ERR_UPSTREAM : ERR_OK, &m, "", 0);
}

static int by_bytes(const void *a, const void *b)
{
    return str_cmp(*(const struct str *)a, *(const struct str *)b);
}

static void list_answer(struct upstream_op *op)
{
    hits_list++;
    if (upstream_down || list_down) {
        op->t(op->ctx, upstream_down ? upstream_down : list_down, NULL, 0, "down");
        return;
    }
    struct str *names = mem_calloc(n_rtags + 1, sizeof *names);
    for (size_t i = 0; i < n_rtags; i++)
        names[i] = str_c(rtags[i].name);
    qsort(names, n_rtags, sizeof *names, by_bytes);
    op->t(op->ctx, ERR_OK, names, n_rtags, "");
    mem_free(names);
}

static void referrers_answer(struct upstream_op *op)
{
    struct strbuf b = {0};
    unsigned n = 0;
    hits_referrers++;
    if (upstream_down || !referrers_api) {
        op->r(op->ctx, upstream_down ? upstream_down : ERR_NOT_FOUND, S(""), "no");
        return;
    }
    sb_addc(&b, "{\"schemaVersion\":2,\"manifests\":[");
    for (size_t i = 0; i < n_refs; i++) {
        if (!digest_eq(&doc_of(refs[i].subject)->digest, &op->digest))
            continue;
        struct doc *d = doc_of(refs[i].doc);
        sb_addf(&b, "%s{\"mediaType\":\"%s\",\"digest\":\"%s\",\"size\":%zu,\"artifactType\":\"x/y\",\"foreign\":1}", n++ ? "," : "",
                media_type_text(d->mt), dtext(refs[i].doc), strlen(d->bytes));
    }
    sb_addc(&b, "]}");
    op->r(op->ctx, ERR_OK, sb_str(&b), "");
    sb_free(&b);
}

static void upstream_answer(void *arg)
{
    struct upstream_op op = *(struct upstream_op *)arg;
    mem_free(arg);
    hits++;
    if (op.kind == 'm')
        manifest_answer(&op);
    else if (op.kind == 't')
        list_answer(&op);
    else
        referrers_answer(&op);
    mem_free(op.reference);
}

static struct upstream_op *upstream_ask(struct str repository, struct upstream_op proto)
{
    struct upstream_op *op = NEW(struct upstream_op);
    assert_true(str_eq_c(repository, "acme/api"));
    *op = proto;
    return event_add(upstream_answer, op);
}
struct upstream_op *upstream_manifest(struct upstream *u, struct str repository, struct str reference, bool head, upstream_manifest_cb *cb,
                                      void *ctx)
{
    (void)u;
    return upstream_ask(repository, (struct upstream_op){.kind = 'm', .reference = str_dup(reference), .head = head, .m = cb, .ctx = ctx});
}
struct upstream_op *upstream_tags(struct upstream *u, struct str repository, upstream_tags_cb *cb, void *ctx)
{
    (void)u;
    return upstream_ask(repository, (struct upstream_op){.kind = 't', .t = cb, .ctx = ctx});
}
struct upstream_op *upstream_referrers(struct upstream *u, struct str repository, const struct digest *d, upstream_referrers_cb *cb,
                                       void *ctx)
{
    (void)u;
    return upstream_ask(repository, (struct upstream_op){.kind = 'r', .digest = *d, .r = cb, .ctx = ctx});
}

void pullevent_tag(struct pullevents *e, struct str repository_id, struct str name, const struct digest *d, enum media_type mt,
                   uint64_t size)
{
    (void)e, (void)name, (void)mt, (void)size;
    assert_true(str_eq_c(repository_id, "rep_1"));
    assert_true(digest_is_set(d));
    told_tags++;
}

/* ---- Redis ------------------------------------------------------------------------------------ */

struct kv {
    char *key, *value;
    size_t n;
};
static struct kv kvs[20000];
static size_t n_kvs;
static bool redis_down;
static unsigned redis_commands;
struct cache_op {
    char *key;
    cache_cb *cb;
    void *ctx;
};
bool cache_is_up(const struct cache *c)
{
    (void)c;
    return !redis_down;
}
static void cache_answer(void *arg)
{
    struct cache_op op = *(struct cache_op *)arg;
    struct cache_reply r = {.type = CACHE_NIL};
    mem_free(arg);
    for (size_t i = 0; i < n_kvs; i++)
        if (strcmp(kvs[i].key, op.key) == 0)
            r = (struct cache_reply){.type = CACHE_STRING, .str = {kvs[i].value, kvs[i].n}};
    op.cb(op.ctx, redis_down ? ERR_UNAVAILABLE : ERR_OK, redis_down ? NULL : &r);
    mem_free(op.key);
}
struct cache_op *cache_command(struct cache *c, const struct str *argv, size_t argc, cache_cb *cb, void *ctx)
{
    (void)c;
    redis_commands++;
    if (str_eq_c(argv[0], "SET")) {
        size_t i = 0;
        assert_int_equal(argc, 5);
        while (i < n_kvs && !str_eq_c(argv[1], kvs[i].key))
            i++;
        if (i == n_kvs)
            kvs[n_kvs++] = (struct kv){.key = str_dup(argv[1])};
        mem_free(kvs[i].value);
        kvs[i].value = str_dup(argv[2]);
        kvs[i].n = argv[2].n;
        return NULL;
    }
    assert_true(str_eq_c(argv[0], "GET"));
    struct cache_op *op = NEW(struct cache_op);
    *op = (struct cache_op){str_dup(argv[1]), cb, ctx};
    return event_add(cache_answer, op);
}
void cache_cancel(struct cache_op **op)
{
    event_drop(*op);
    mem_free((*op)->key);
    MEM_FREE(*op);
}

/* ---- facts ------------------------------------------------------------------------------------ */

static struct fact *tags_fact;
static bool tags_unknown; /* the t: fact must be asked for */
static enum err tags_err;
static bool tags_degraded;
static uint64_t generation, epochs;

struct fact *fact_ref(struct fact *f)
{
    f->refs++;
    return f;
}
void fact_unref(struct fact **pf)
{
    struct fact *f = *pf;
    *pf = NULL;
    if (!f || --f->refs)
        return;
    entitlement_unref(&f->entitlement);
    if (f->repository)
        mem_free(f->repository);
    if (f->tags) {
        for (size_t i = 0; i < f->tags->n; i++) {
            mem_free(f->tags->tags[i].tag);
            mem_free(f->tags->tags[i].version);
            mem_free(f->tags->tags[i].channel);
            mem_free(f->tags->tags[i].digests);
        }
        mem_free(f->tags->tags);
        mem_free(f->tags);
    }
    mem_free(f->name);
    mem_free(f);
}
uint64_t facts_generation(const struct facts *f)
{
    (void)f;
    return generation;
}
enum err facts_peek(struct facts *f, enum fact_kind kind, struct str id, struct fact **ret, bool *ret_degraded)
{
    (void)f;
    assert_int_equal(kind, FACT_TAGS);
    assert_true(str_eq_c(id, "rep_1"));
    if (tags_unknown)
        return ERR_UNAVAILABLE;
    *ret = tags_fact;
    if (ret_degraded)
        *ret_degraded = tags_degraded;
    return ERR_OK;
}
struct facts_op {
    facts_cb *cb;
    void *ctx;
};
static void facts_answer(void *arg)
{
    struct facts_op op = *(struct facts_op *)arg;
    mem_free(arg);
    op.cb(op.ctx, tags_err, tags_err ? NULL : tags_fact, tags_degraded);
}
struct facts_op *facts_get(struct facts *f, enum fact_kind kind, struct str id, facts_cb *cb, void *ctx)
{
    struct facts_op *op = NEW(struct facts_op);
    (void)f, (void)kind, (void)id;
    *op = (struct facts_op){cb, ctx};
    return event_add(facts_answer, op);
}
void facts_cancel(struct facts_op **op)
{
    if (!*op)
        return;
    event_drop(*op);
    MEM_FREE(*op);
}

static struct fact *fact_new(enum fact_kind kind, const char *name)
{
    struct fact *f = NEW(struct fact);
    f->refs = 1;
    f->kind = kind;
    f->name = mem_strdup(name);
    f->epoch = ++epochs;
    generation++;
    return f;
}

/* What the admin says: "tag=doc" (current), "tag=old>doc" (moved an hour ago), with "@released" seconds. */
static void tags_know(const char *text)
{
    struct str rest = str_c(text), one, name, value;
    fact_unref(&tags_fact);
    tags_fact = fact_new(FACT_TAGS, "t:rep_1");
    tags_fact->tags = NEW(struct fact_tags);
    tags_fact->tags->tags = mem_calloc(strlen(text) / 2 + 1, sizeof(struct fact_tag));
    while (*text && str_next(&rest, ' ', &one)) {
        struct fact_tag *t = &tags_fact->tags->tags[tags_fact->tags->n++];
        struct str old, cur, at;
        char buf[64];
        assert_true(str_cut(one, '=', &name, &value));
        t->tag = str_dup(name);
        t->version = mem_strdup("");
        t->channel = mem_strdup("");
        if (str_cut(value, '@', &cur, &at)) {
            uint64_t r = 0;
            assert_true(str_to_u64(at, &r));
            t->released_at_s = (int64_t)r;
            value = cur;
        }
        t->digests = mem_calloc(2, sizeof *t->digests);
        if (str_cut(value, '>', &old, &cur)) {
            snprintf(buf, sizeof buf, "%.*s", STR(old));
            t->digests[t->n_digests++] = (struct fact_tag_digest){doc_of(buf)->digest, wall_s - 90000, wall_s - 3600};
            value = cur;
        }
        snprintf(buf, sizeof buf, "%.*s", STR(value));
        t->digests[t->n_digests++] = (struct fact_tag_digest){doc_of(buf)->digest, wall_s - 3600, 0};
    }
}

static struct fact *customer_of(const char *id, const char *licenses)
{
    struct strbuf b = {0};
    struct jv *doc;
    struct error e;
    struct fact *f = fact_new(FACT_CUSTOMER, id);
    sb_addf(&b,
            "{\"customer_id\":\"%s\",\"customer_slug\":\"acme\",\"vendor_id\":\"ven_1\",\"disabled\":false,\"renew_url\":\"\",\"support_"
            "contact\":\"\","
            "\"licenses\":[%s]}",
            id, licenses);
    assert_int_equal(jv_parse(sb_str(&b), &JV_LIMITS_TRUSTED, &doc, &e), ERR_OK);
    if (entitlement_parse(doc, &f->entitlement, &e))
        fail_msg("%s: %s", e.field, e.text);
    jv_free(doc);
    sb_free(&b);
    return f;
}

/* A license on shop/api; terms and grants as JSON. */
static const char *license(const char *id, const char *more, const char *grants)
{
    static char buf[4][8000];
    static unsigned at;
    char *s = buf[at++ % 4];
    snprintf(s, 8000,
             "{\"id\":\"%s\",\"name\":\"%s\",\"application_id\":\"app_1\",\"application_slug\":\"shop\",\"status\":\"active\",\"status_"
             "reason\":\"\",\"starts_at\":0,"
             "\"grace_days\":0,\"updates_until\":0,\"on_expiry\":\"block\",\"repositories\":[\"shop/api\"],"
             "\"upstream_credential_id\":\"\",%s\"grants\":[%s]}",
             id, id, more, grants);
    return s;
}
#define PLAIN "\"expires_at\":0,\"allowed_cidrs\":[],\"quota_exceeded\":false,"

static const char *grant(const char *selector, const char *value, const char *more)
{
    static char buf[8][2000];
    static unsigned at;
    char *s = buf[at++ % 8];
    snprintf(s, 2000,
             "{\"id\":\"grt_1\",\"selector\":\"%s\",\"value\":\"%s\",\"include_prerelease\":false,\"not_before\":0,\"not_after\":0,"
             "\"repositories\":[],%s}",
             selector, value, more);
    return s;
}
#define FOLLOW "\"granted_at\":1000,\"on_move\":\"follow\",\"pins\":[]"

/* ---- the worker under test -------------------------------------------------------------------- */

static char keys_dir[] = "/tmp/pullgate-content-XXXXXX";
static struct keyring *keys;
static struct config cfg;
static struct proxy proxy;
static struct worker worker;
static struct content *content;
static struct fact *repository;
static struct fact *customer, *other;
static int event_sink;

static void worker_begin(void)
{
    worker = (struct worker){.proxy = &proxy,
                             .cfg = &cfg,
                             .loop = &the_loop,
                             .cache = (struct cache *)(void *)&the_loop,
                             .facts = (struct facts *)(void *)&the_loop,
                             .upstreams = (struct upstreams *)(void *)&the_loop,
                             .events = (struct pullevents *)(void *)&event_sink};
    content = content_new(&worker);
}

static void restart(void)
{
    pump();
    content_free(&content);
    worker_begin();
}

struct result {
    bool done;
    enum err err;
    enum verdict verdict;
    enum reason reason;
    bool is_top, was_sync;
    struct digest digest;
    uint64_t size;
    char tag[200], message[700], license[40];
    char *body;
};

static void result_fill(struct result *r, struct content_answer *a)
{
    assert_false(r->done); /* exactly once */
    r->done = true;
    r->err = a->err;
    r->verdict = a->err ? VERDICT_UNKNOWN : a->decision.verdict;
    r->reason = a->decision.reason;
    r->is_top = a->is_top;
    r->digest = a->digest;
    r->size = a->size;
    snprintf(r->tag, sizeof r->tag, "%s", a->tag);
    snprintf(r->message, sizeof r->message, "%s", a->message.p ? a->message.p : "");
    if (!a->err && a->decision.license)
        snprintf(r->license, sizeof r->license, "%.*s", STR(a->decision.license->id));
    mem_free(r->body);
    r->body = a->manifest ? mem_strdup(a->manifest->bytes) : NULL;
    if (a->manifest) {
        uint8_t sum[32];
        seal_sha256(str_c(a->manifest->bytes), sum); /* I7: what is served is what it is called */
        assert_memory_equal(sum, a->digest.bytes, 32);
        assert_int_equal(a->decision.verdict, VERDICT_ALLOW);
    }
}

static void on_answer(void *ctx, struct content_answer *a)
{
    result_fill(ctx, a);
}

struct question {
    struct oci_request q;
    struct fact_credential cred;
    struct content_ask ask;
    struct content_op *op;
    struct result r;
    char reference[300];
    uint8_t addr[16];
    char none[1];
};

static void question_make(struct question *x, struct fact *who, enum oci_kind kind, const char *reference)
{
    memset(x, 0, sizeof *x);
    snprintf(x->reference, sizeof x->reference, "%s", reference);
    x->q = (struct oci_request){.kind = kind, .repository = S("shop/api"), .reference = str_c(x->reference)};
    x->q.is_digest = digest_parse(x->q.reference, &x->q.digest, NULL) == ERR_OK;
    x->cred = (struct fact_credential){.license_id = x->none};
    x->addr[10] = x->addr[11] = 0xff;
    x->addr[12] = 10;
    x->ask = (struct content_ask){
        .customer = who, .repository = repository, .credential = &x->cred, .request = &x->q, .client_addr = x->addr, .want_bytes = true};
}

static void question_start(struct question *x)
{
    struct content_answer now = {0};
    x->op = content_ask(content, &x->ask, &now, on_answer, &x->r);
    if (!x->op) {
        result_fill(&x->r, &now);
        x->r.was_sync = true;
        sb_free(&now.message);
    } else {
        assert_false(x->r.done);
    }
}

static struct result last;

static struct result *ask_as(struct fact *who, enum oci_kind kind, const char *reference)
{
    static struct question x;
    mem_free(last.body);
    last.body = NULL;
    question_make(&x, who, kind, reference);
    question_start(&x);
    pump();
    assert_true(x.r.done);
    last = x.r;
    return &last;
}

static struct result *get(const char *reference)
{
    return ask_as(customer, OCI_MANIFEST, reference);
}
static struct result *get_doc(const char *doc)
{
    return ask_as(customer, OCI_MANIFEST, dtext(doc));
}
static struct result *get_blob(const char *doc)
{
    return ask_as(customer, OCI_BLOB, dtext(doc));
}

#define assert_allowed(x)                                                                                                                  \
    do {                                                                                                                                   \
        struct result *r_ = (x);                                                                                                           \
        assert_int_equal(r_->err, ERR_OK);                                                                                                 \
        assert_int_equal(r_->verdict, VERDICT_ALLOW);                                                                                      \
    } while (0)
#define assert_denied(x, why)                                                                                                              \
    do {                                                                                                                                   \
        struct result *r_ = (x);                                                                                                           \
        assert_int_equal(r_->err, ERR_OK);                                                                                                 \
        assert_int_equal(r_->verdict, VERDICT_DENY);                                                                                       \
        assert_string_equal(reason_text(r_->reason), reason_text(why));                                                                    \
        assert_null(r_->body);                                                                                                             \
        assert_true(strlen(r_->message) > 10);                                                                                             \
    } while (0)
#define assert_error(x, e) assert_int_equal((x)->err, e)

static void allow_only(struct fact **who, const char *id, const char *licenses)
{
    fact_unref(who);
    *who = customer_of(id, licenses);
}

/* Versions 1.0.0 (one manifest), 1.1.0 (two platforms), 2.0.0 (two platforms), sharing a layer; signatures of both indexes. */
static int setup(void **state)
{
    (void)state;
    wall_s = 1700000000;
    mono_ms = 5000000;
    n_events = 0;
    shuffle = 0;
    referrers_api = false;
    upstream_down = list_down = ERR_OK;
    redis_down = tags_unknown = tags_degraded = false;
    tags_err = ERR_OK;
    before_tag = NULL;
    memset(&cfg, 0, sizeof cfg);
    cfg.cache.tag_freshness_ms = 15000;
    cfg.cache.negative_ms = 2000;
    cfg.cache.manifest_bytes = 8u << 20;
    cfg.limits.closure_nodes = 10000;
    cfg.limits.closure_depth = 4;
    cfg.limits.resolve_tags = 1000;
    proxy = (struct proxy){.cfg = &cfg, .keys = keys};
    manifest("m10", "c10 base l10", NULL);
    manifest("a11", "c11a base l11", NULL);
    manifest("b11", "c11b base l11", NULL);
    index_of("i11", "a11 b11");
    manifest("a20", "c20a base l20", NULL);
    manifest("b20", "c20b base l20", NULL);
    index_of("i20", "a20 b20");
    manifest("s11", "sc11 sl11", NULL);
    manifest("s20", "sc20 sl20", NULL);
    tag("1.0.0", "m10");
    tag("1.1.0", "i11");
    tag("2.0.0", "i20");
    tag(sigtag("i11", ".sig"), "s11");
    tag(sigtag("i20", ".sig"), "s20");
    blob("nowhere");
    repository = fact_new(FACT_REPOSITORY, "r:shop/api");
    static char id[] = "rep_1", name[] = "shop/api", app[] = "app_1", slug[] = "shop", ven[] = "ven_1", ups[] = "ups_1", ur[] = "acme/api",
                kind[] = "image", tmpl[] = "{version}";
    repository->repository = NEW(struct fact_repository);
    *repository->repository = (struct fact_repository){id, name, app, slug, ven, ups, ur, kind, tmpl};
    customer = customer_of("cus_1", license("lic_1", PLAIN, grant("range", "^1", FOLLOW)));
    other = customer_of("cus_2", license("lic_2", PLAIN, grant("range", "^2", FOLLOW)));
    hits = hits_tag = hits_digest = hits_list = hits_referrers = told_tags = redis_commands = 0;
    worker_begin();
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    pump();
    content_free(&content);
    fact_unref(&repository);
    fact_unref(&customer);
    fact_unref(&other);
    fact_unref(&tags_fact);
    for (size_t i = 0; i < n_docs; i++)
        mem_free(docs[i].bytes);
    for (size_t i = 0; i < n_kvs; i++) {
        mem_free(kvs[i].key);
        mem_free(kvs[i].value);
    }
    n_docs = n_rtags = n_refs = n_kvs = 0;
    mem_free(last.body);
    last.body = NULL;
    assert_int_equal(the_upstream.refs, 0);
    return 0;
}

/* ---- the cases -------------------------------------------------------------------------------- */

static void test_tag(void **state)
{
    (void)state;
    struct result *r = get("1.1.0");
    assert_allowed(r);
    assert_true(r->is_top && !r->was_sync);
    assert_string_equal(r->tag, "1.1.0");
    assert_string_equal(r->body, doc_of("i11")->bytes);
    assert_int_equal(hits, 1); /* one GET: resolved and fetched at once */
    assert_int_equal(told_tags, 1);
    r = get("1.1.0");
    assert_allowed(r);
    assert_true(r->was_sync); /* hot: no waiting, no request */
    assert_int_equal(hits, 1);
    pass_ms(15001);
    assert_allowed(get("1.1.0"));
    assert_int_equal(hits, 2); /* revalidated by HEAD */
    assert_int_equal(told_tags, 1);
    assert_allowed(get_doc("i11"));
    assert_true(last.is_top && last.was_sync);
}

static void test_ungranted_tag_never_reaches_the_upstream(void **state)
{
    (void)state;
    assert_denied(get("2.0.0"), REASON_VERSION_NOT_GRANTED);
    assert_true(last.was_sync);
    assert_denied(get("2.9.9"), REASON_VERSION_NOT_GRANTED); /* does not exist */
    assert_denied(get("latest"), REASON_VERSION_NOT_GRANTED);
    assert_int_equal(hits, 0);
    assert_int_equal(redis_commands, 0);
}

static void test_no_license_is_one_answer(void **state)
{
    (void)state;
    struct fact *held = repository;
    allow_only(&customer, "cus_1", "");
    assert_denied(get("1.0.0"), REASON_NO_LICENSE);
    char message[700];
    strcpy(message, last.message); /* a repository that exists */
    repository = NULL;
    assert_denied(get("1.0.0"), REASON_NO_LICENSE);
    assert_string_equal(message, last.message);
    allow_only(&customer, "cus_1", license("lic_1", PLAIN, grant("all", "", FOLLOW)));
    assert_denied(get("1.0.0"), REASON_NO_LICENSE); /* licensed by name, but there is no such repository */
    repository = held;
    assert_int_equal(hits, 0);
}

static void test_expired_is_403_for_everything(void **state)
{
    (void)state;
    assert_allowed(get("1.1.0"));
    assert_allowed(get_doc("a11"));
    allow_only(&customer, "cus_1",
               license("lic_1", "\"expires_at\":1600000000,\"allowed_cidrs\":[],\"quota_exceeded\":false,", grant("range", "^1", FOLLOW)));
    unsigned before = hits;
    assert_denied(get("1.1.0"), REASON_EXPIRED);
    assert_denied(get("9.9.9"), REASON_EXPIRED);
    assert_denied(get_doc("a11"), REASON_EXPIRED);
    assert_denied(get_blob("l11"), REASON_EXPIRED);
    assert_denied(get_blob("nowhere"), REASON_EXPIRED);
    assert_int_equal(hits, before);
}

static void test_not_found_upstream(void **state)
{
    (void)state;
    assert_error(get("1.7.0"), ERR_NOT_FOUND);
    assert_int_equal(hits, 1);
    assert_error(get("1.7.0"), ERR_NOT_FOUND); /* remembered for cache.negative */
    assert_int_equal(hits, 1);
    tag("1.7.0", "m10");
    pass_ms(2001);
    assert_allowed(get("1.7.0"));
}

static void test_pull_by_digest_after_tag(void **state)
{
    (void)state;
    assert_allowed(get("1.1.0"));
    assert_allowed(get_doc("a11"));
    assert_false(last.is_top);
    assert_string_equal(last.tag, "1.1.0");
    unsigned before = hits;
    assert_allowed(get_blob("c11a"));
    assert_true(last.was_sync);
    assert_int_equal(last.size, 4);
    assert_allowed(get_blob("base"));
    assert_allowed(get_blob("l11"));
    assert_int_equal(hits, before);   /* the manifests told it all */
    assert_allowed(get_blob("c11b")); /* of the platform not asked for: its manifest is loaded for that */
    assert_int_equal(hits, before + 1);
}

static void test_cold_blob_first(void **state)
{
    (void)state;
    assert_allowed(get_blob("l11")); /* nothing known at all: tags listed, resolved, closures built */
    assert_allowed(get_blob("l10"));
    assert_allowed(get_doc("b11"));
    assert_denied(get_blob("l20"), REASON_NOT_IN_CLOSURE);
    assert_denied(get_doc("a20"), REASON_NOT_IN_CLOSURE);
    assert_denied(get_doc("i20"), REASON_NOT_IN_CLOSURE);
}

static void test_shared_layer(void **state)
{
    (void)state;
    assert_allowed(get_blob("base"));
    assert_allowed(ask_as(other, OCI_BLOB, dtext("base")));
    assert_allowed(ask_as(other, OCI_BLOB, dtext("l20")));
    assert_denied(get_blob("l20"), REASON_NOT_IN_CLOSURE);
    assert_denied(get_doc("i20"), REASON_NOT_IN_CLOSURE);
    assert_denied(get_doc("b20"), REASON_NOT_IN_CLOSURE);
    assert_denied(get_blob("c20a"), REASON_NOT_IN_CLOSURE);
    assert_denied(ask_as(other, OCI_BLOB, dtext("l11")), REASON_NOT_IN_CLOSURE);
    /* 1.0 and 1.1 lose their license, 1.0 stays: base stays with it */
    allow_only(&customer, "cus_1", license("lic_1", PLAIN, grant("exact", "1.0.0", FOLLOW)));
    assert_allowed(get_blob("base"));
    assert_denied(get_blob("l11"), REASON_NOT_IN_CLOSURE);
    assert_allowed(get_blob("l10"));
}

static void test_kinds(void **state)
{
    (void)state;
    assert_allowed(get("1.1.0"));
    assert_allowed(get_doc("a11"));
    assert_denied(ask_as(customer, OCI_BLOB, dtext("i11")), REASON_NOT_IN_CLOSURE);
    assert_denied(ask_as(customer, OCI_BLOB, dtext("a11")), REASON_NOT_IN_CLOSURE);
    assert_denied(ask_as(customer, OCI_MANIFEST, dtext("l11")), REASON_NOT_IN_CLOSURE);
    assert_denied(ask_as(customer, OCI_MANIFEST, dtext("c11a")), REASON_NOT_IN_CLOSURE);
}

static void test_unknown_digests_are_remembered(void **state)
{
    (void)state;
    assert_denied(get_blob("nowhere"), REASON_NOT_IN_CLOSURE);
    assert_true(hits > 0);
    unsigned before = hits, redis = redis_commands;
    assert_denied(get_blob("nowhere"), REASON_NOT_IN_CLOSURE);
    assert_true(last.was_sync);
    assert_denied(get_blob("l20"), REASON_NOT_IN_CLOSURE); /* exists, ungranted: the same work, which is none */
    assert_true(last.was_sync);
    assert_denied(get_doc("a20"), REASON_NOT_IN_CLOSURE);
    assert_int_equal(hits, before);
    assert_int_equal(redis_commands, redis);
    pass_ms(15001);
    assert_denied(get_blob("nowhere"), REASON_NOT_IN_CLOSURE);
    assert_true(hits > before); /* seconds, not longer */
    /* what another customer's search found is nothing to this one, and the other way round */
    assert_allowed(ask_as(other, OCI_BLOB, dtext("l20")));
    assert_denied(get_blob("l20"), REASON_NOT_IN_CLOSURE);
}

static void test_new_version_is_found_when_the_admin_tells(void **state)
{
    (void)state;
    assert_denied(get_blob("nowhere"), REASON_NOT_IN_CLOSURE);
    manifest("m12", "c12 l12", NULL);
    tag("1.2.0", "m12");
    assert_denied(get_blob("l12"), REASON_NOT_IN_CLOSURE); /* within the seconds that it is remembered */
    tags_know("1.2.0=m12");
    assert_allowed(get_blob("l12"));
}

static void test_incomplete_search_is_no_answer(void **state)
{
    (void)state;
    list_down = ERR_TIMEOUT;
    assert_error(get_blob("nowhere"), ERR_UNAVAILABLE);
    assert_error(get_blob("l20"), ERR_UNAVAILABLE);
    list_down = ERR_OK;
    assert_denied(get_blob("nowhere"), REASON_NOT_IN_CLOSURE);
    pass_ms(20000);
    upstream_down = ERR_UNAVAILABLE;
    assert_error(get_blob("nowhere"), ERR_UNAVAILABLE);
    assert_allowed(get_blob("l11")); /* known: nobody needs to be asked */
    assert_denied(get("2.0.0"), REASON_VERSION_NOT_GRANTED);
    upstream_down = ERR_OK;
    restart();
    doc_of("b11")->hidden = true; /* a platform that the registry lost is no reason to know nothing */
    assert_denied(get_blob("nowhere"), REASON_NOT_IN_CLOSURE);
    assert_allowed(get_blob("c11a"));
    doc_of("b11")->hidden = false;
    pass_ms(20000);
    assert_allowed(get_blob("c11b"));
}

static void test_too_many_tags(void **state)
{
    (void)state;
    cfg.limits.resolve_tags = 20;
    for (unsigned i = 0; i < 50; i++) {
        char name[32], m[32];
        snprintf(name, sizeof name, "1.5.%u", i);
        snprintf(m, sizeof m, "m15_%u", i);
        char blobs[64];
        snprintf(blobs, sizeof blobs, "c15_%u base l15_%u", i, i);
        manifest(m, blobs, NULL);
        tag(name, m);
    }
    assert_error(get_blob("nowhere"), ERR_UNAVAILABLE);
    assert_error(get_blob("nowhere"), ERR_UNAVAILABLE); /* each goes on where the last ended */
    for (unsigned i = 0; i < 3; i++)
        get_blob("nowhere");
    assert_denied(get_blob("nowhere"), REASON_NOT_IN_CLOSURE);
    assert_allowed(get_blob("l15_3"));
}

static void test_moved_tag_follow(void **state)
{
    (void)state;
    manifest("m10b", "c10b base l10b", NULL);
    assert_allowed(get("1.0.0"));
    tag("1.0.0", "m10b");
    assert_allowed(get("1.0.0"));
    assert_string_equal(last.body, doc_of("m10")->bytes); /* fresh */
    pass_ms(16000);
    assert_allowed(get("1.0.0"));
    assert_string_equal(last.body, doc_of("m10b")->bytes);
    assert_int_equal(told_tags, 2);
    assert_allowed(get_doc("m10")); /* the old digest stays pullable */
    assert_allowed(get_blob("l10"));
    assert_allowed(get_blob("l10b"));
    /* a grant made after the move never saw the old one */
    char later[80];
    pass_ms(100000);
    snprintf(later, sizeof later, "\"granted_at\":%lld,\"on_move\":\"follow\",\"pins\":[]", (long long)wall_s);
    allow_only(&customer, "cus_1", license("lic_1", PLAIN, grant("range", "^1", later)));
    assert_allowed(get_blob("l10b"));
    assert_denied(get_doc("m10"), REASON_NOT_IN_CLOSURE);
    assert_denied(get_blob("l10"), REASON_NOT_IN_CLOSURE);
    assert_allowed(get_blob("base"));
}

static void test_moved_tag_as_the_admin_saw_it(void **state)
{
    (void)state;
    manifest("m10b", "c10b base l10b", NULL);
    tag("1.0.0", "m10b");
    tags_know("1.0.0=m10>m10b");
    assert_allowed(get_doc("m10"));
    assert_allowed(get_blob("l10"));
    char later[80];
    snprintf(later, sizeof later, "\"granted_at\":%lld,\"on_move\":\"follow\",\"pins\":[]", (long long)wall_s - 60);
    allow_only(&customer, "cus_1", license("lic_1", PLAIN, grant("range", "^1", later)));
    assert_denied(get_doc("m10"), REASON_NOT_IN_CLOSURE);
    assert_denied(get_blob("l10"), REASON_NOT_IN_CLOSURE);
    assert_allowed(get_blob("l10b"));
}

static void test_moved_tag_pin(void **state)
{
    (void)state;
    manifest("m10b", "c10b base l10b", NULL);
    char pins[400];
    snprintf(pins, sizeof pins,
             "\"granted_at\":1000,\"on_move\":\"pin\",\"pins\":[{\"repository\":\"shop/api\",\"tag\":\"1.0.0\",\"digest\":\"%s\"}]",
             dtext("m10"));
    allow_only(&customer, "cus_1", license("lic_1", PLAIN, grant("range", "^1", pins)));
    tag("1.0.0", "m10b");
    for (int cold = 0; cold < 2; cold++) {
        if (cold)
            restart();
        if (!cold) {
            assert_allowed(get("1.0.0")); /* bound to what it first was */
            assert_string_equal(last.body, doc_of("m10")->bytes);
        }
        assert_allowed(get_blob("l10"));
        assert_allowed(get_doc("m10"));
        assert_denied(get_doc("m10b"), REASON_NOT_IN_CLOSURE);
        assert_denied(get_blob("l10b"), REASON_NOT_IN_CLOSURE);
    }
    assert_allowed(get("1.1.0")); /* not bound yet */
}

static unsigned flips;
static void flip(void)
{
    tag("1.0.0", flips++ % 2 ? "m10" : "i20");
}

static void test_tag_flips_between_requests(void **state) /* ENT-073 */
{
    (void)state;
    char pins[400];
    snprintf(pins, sizeof pins,
             "\"granted_at\":1000,\"on_move\":\"pin\",\"pins\":[{\"repository\":\"shop/api\",\"tag\":\"1.0.0\",\"digest\":\"%s\"}]",
             dtext("m10"));
    allow_only(&customer, "cus_1", license("lic_1", PLAIN, grant("exact", "1.0.0", pins)));
    before_tag = flip;
    for (unsigned i = 0; i < 60; i++) {
        assert_allowed(get("1.0.0"));
        assert_string_equal(last.body, doc_of("m10")->bytes);
        pass_ms(i % 3 ? 16000 : 1000);
    }
    assert_denied(get_doc("i20"), REASON_NOT_IN_CLOSURE);
    assert_denied(get_blob("l20"), REASON_NOT_IN_CLOSURE);
}

static void test_vanished_tag(void **state)
{
    (void)state;
    assert_allowed(get("1.0.0"));
    tag("1.0.0", NULL);
    pass_ms(16000);
    assert_error(get("1.0.0"), ERR_NOT_FOUND);
    assert_allowed(get_doc("m10"));
    assert_allowed(get_blob("l10"));
}

static void test_manifest_lost_upstream(void **state)
{
    (void)state;
    cfg.cache.manifest_bytes = 0; /* nothing is kept */
    restart();
    assert_allowed(get("1.0.0"));
    manifest("m10b", "c10b base", NULL);
    tag("1.0.0", "m10b");
    doc_of("m10")->hidden = true; /* collected, within the freshness of the tag */
    assert_allowed(get("1.0.0"));
    assert_string_equal(last.body, doc_of("m10b")->bytes);
    doc_of("m10b")->hidden = true;
    assert_error(get_doc("m10b"), ERR_NOT_FOUND);
    before_tag = NULL;
    assert_error(get("1.0.0"), ERR_NOT_FOUND);
}

static void test_stale_while_the_upstream_is_away(void **state)
{
    (void)state;
    assert_allowed(get("1.1.0"));
    pass_ms(60000);
    for (int e = 0; e < 3; e++) {
        upstream_down = (enum err[]){ERR_UNAVAILABLE, ERR_TIMEOUT, ERR_UPSTREAM}[e];
        assert_allowed(get("1.1.0"));
        assert_string_equal(last.body, doc_of("i11")->bytes);
        unsigned before = hits;
        assert_allowed(get("1.1.0"));
        assert_true(last.was_sync); /* not each request waits for it */
        assert_int_equal(hits, before);
        pass_ms(3000);
    }
    assert_error(get("1.0.0"), ERR_UPSTREAM); /* never seen */
    assert_denied(get("2.0.0"), REASON_VERSION_NOT_GRANTED);
    allow_only(&customer, "cus_1", license("lic_1", PLAIN, grant("exact", "1.0.0", FOLLOW)));
    assert_denied(get("1.1.0"), REASON_VERSION_NOT_GRANTED); /* entitlement is asked as always */
    upstream_down = ERR_OK;
    pass_ms(3000);
    assert_allowed(get("1.0.0"));
}

/* Another worker, which has nothing of its own: the t: fact says what the tag is, and the process has the bytes. */
static void test_stale_of_another_worker(void **state)
{
    struct content *first = content;
    (void)state;
    assert_allowed(get("1.1.0"));
    tags_know("1.1.0=i11");
    worker_begin();
    upstream_down = ERR_TIMEOUT;
    assert_allowed(get("1.1.0"));
    assert_string_equal(last.body, doc_of("i11")->bytes);
    assert_allowed(get_doc("i11"));
    assert_error(get("1.0.0"), ERR_TIMEOUT);
    assert_denied(get("2.0.0"), REASON_VERSION_NOT_GRANTED);
    content_free(&first);
}

static void test_signatures(void **state)
{
    (void)state;
    assert_allowed(get(sigtag("i11", ".sig")));
    assert_false(last.is_top);
    assert_string_equal(last.body, doc_of("s11")->bytes);
    assert_allowed(get_blob("sl11"));
    assert_allowed(get_doc("s11"));
    assert_false(last.is_top);
    assert_denied(get(sigtag("i20", ".sig")), REASON_NOT_IN_CLOSURE);
    assert_denied(get(sigtag("i20", ".sbom")), REASON_NOT_IN_CLOSURE); /* does not exist */
    assert_denied(get(sigtag("nowhere", ".sig")), REASON_NOT_IN_CLOSURE);
    assert_denied(get_blob("sl20"), REASON_NOT_IN_CLOSURE);
    assert_denied(get_doc("s20"), REASON_NOT_IN_CLOSURE);
    assert_error(get(sigtag("i11", ".att")), ERR_NOT_FOUND);
    assert_denied(get(sigtag("l11", ".sig")), REASON_NOT_IN_CLOSURE); /* a blob is no subject */
    restart();                                                        /* the blob of a signature asked first, of a cold worker */
    assert_denied(get_blob("sl20"), REASON_NOT_IN_CLOSURE);
    assert_allowed(get_blob("sl11"));
    restart();
    allow_only(&customer, "cus_1", license("lic_1", PLAIN, grant("all", "", FOLLOW)));
    assert_allowed(get_blob("sl20"));
    allow_only(&customer, "cus_1", license("lic_1", PLAIN, grant("exact", "1.0.0", FOLLOW)));
    assert_denied(get_blob("sl20"), REASON_NOT_IN_CLOSURE);
    assert_denied(get(sigtag("i11", ".sig")), REASON_NOT_IN_CLOSURE);
}

static void test_signature_of_a_child_and_of_a_signature(void **state)
{
    (void)state;
    manifest("sa11", "sca sla", NULL);
    manifest("ssa", "ssc ssl", NULL);
    manifest("sa20", "sca20 sla20", NULL);
    tag(sigtag("a11", ".sig"), "sa11");
    tag(sigtag("sa11", ".att"), "ssa");
    tag(sigtag("a20", ".sig"), "sa20");
    assert_allowed(get_blob("ssl"));
    assert_allowed(get(sigtag("sa11", ".att")));
    assert_allowed(get(sigtag("a11", ".sig")));
    assert_denied(get(sigtag("a20", ".sig")), REASON_NOT_IN_CLOSURE);
    assert_denied(get_blob("sla20"), REASON_NOT_IN_CLOSURE);
}

static char *referrers_json;
static enum err referrers_err;
static bool referrers_called;
static void on_referrers(void *ctx, enum err err, struct str json, const char *detail)
{
    (void)ctx, (void)detail;
    assert_false(referrers_called);
    referrers_called = true;
    referrers_err = err;
    mem_free(referrers_json);
    referrers_json = str_dup(json);
}

static const char *referrers_of(struct fact *who, const char *reference)
{
    static struct question x;
    question_make(&x, who, OCI_REFERRERS, reference);
    referrers_called = false;
    x.op = content_referrers(content, &x.ask, on_referrers, NULL);
    assert_non_null(x.op);
    assert_false(referrers_called);
    pump();
    assert_true(referrers_called);
    return referrers_json;
}

static void test_referrers(void **state)
{
    (void)state;
    for (int api = 0; api < 2; api++) {
        char name[32], name20[32];
        snprintf(name, sizeof name, "r11_%d", api);
        snprintf(name20, sizeof name20, "r20_%d", api);
        char blobs[40];
        snprintf(blobs, sizeof blobs, "rc rl11_%d", api);
        manifest(name, blobs, "a11");
        snprintf(blobs, sizeof blobs, "rc rl20_%d", api);
        manifest(name20, blobs, "a20");
        referrers_api = api;
        if (api) {
            snprintf(refs[n_refs].subject, sizeof refs->subject, "a11");
            snprintf(refs[n_refs++].doc, sizeof refs->doc, "%s", name);
            snprintf(refs[n_refs].subject, sizeof refs->subject, "a20");
            snprintf(refs[n_refs++].doc, sizeof refs->doc, "%s", name20);
        } else {
            index_of("fallback11", name);
            index_of("fallback20", name20);
            tag(sigtag("a11", ""), "fallback11");
            tag(sigtag("a20", ""), "fallback20");
        }
    }
    for (int api = 0; api < 2; api++) {
        referrers_api = api;
        restart();
        assert_non_null(strstr(referrers_of(customer, dtext("a11")), dtext("r11_0")));
        if (api) { /* merged */
            assert_non_null(strstr(referrers_json, dtext("r11_1")));
            assert_null(strstr(referrers_json, "foreign"));
        }
        char rl[32], empty[200];
        snprintf(empty, sizeof empty, "%s", referrers_of(customer, dtext("nowhere")));
        assert_string_equal(empty, "{\"schemaVersion\":2,\"mediaType\":\"application/vnd.oci.image.index.v1+json\",\"manifests\":[]}");
        assert_string_equal(referrers_of(customer, dtext("a20")), empty);
        assert_int_equal(referrers_err, ERR_OK);
        snprintf(rl, sizeof rl, "r11_%d", api);
        assert_allowed(get_doc(rl));
        snprintf(rl, sizeof rl, "rl11_%d", api);
        assert_allowed(get_blob(rl));
        snprintf(rl, sizeof rl, "r20_%d", api);
        assert_denied(get_doc(rl), REASON_NOT_IN_CLOSURE);
        restart(); /* without the list: the digest first, of a cold worker */
        snprintf(rl, sizeof rl, "rl11_%d", api);
        assert_allowed(get_blob(rl));
        snprintf(rl, sizeof rl, "rl20_%d", api);
        assert_denied(get_blob(rl), REASON_NOT_IN_CLOSURE);
    }
    mem_free(referrers_json);
    referrers_json = NULL;
}

/* An upstream that lists as referrer what does not name the subject: a manifest of an ungranted version. */
static void test_referrers_that_lie(void **state)
{
    (void)state;
    referrers_api = true;
    snprintf(refs[0].subject, sizeof refs->subject, "a11");
    snprintf(refs[0].doc, sizeof refs->doc, "a20");
    n_refs = 1;
    referrers_of(customer, dtext("a11"));
    assert_denied(get_doc("a20"), REASON_NOT_IN_CLOSURE);
    assert_denied(get_blob("l20"), REASON_NOT_IN_CLOSURE);
    assert_allowed(ask_as(other, OCI_MANIFEST, dtext("a20")));
    assert_denied(get_doc("a20"), REASON_NOT_IN_CLOSURE);
    assert_denied(get_blob("c20a"), REASON_NOT_IN_CLOSURE);
    mem_free(referrers_json);
    referrers_json = NULL;
}

static char tags_text[20000];
static enum err tags_result;
static unsigned tags_calls;
static void on_tags(void *ctx, enum err err, const struct str *tags, size_t n, const char *detail)
{
    (void)ctx, (void)detail;
    tags_calls++;
    tags_result = err;
    tags_text[0] = 0;
    for (size_t i = 0; i < n; i++)
        snprintf(tags_text + strlen(tags_text), sizeof tags_text - strlen(tags_text), "%.*s ", STR(tags[i]));
}

static const char *tags_of(struct fact *who)
{
    static struct question x;
    unsigned before = tags_calls;
    question_make(&x, who, OCI_TAGS, "");
    x.op = content_tags(content, &x.ask, on_tags, NULL);
    assert_non_null(x.op);
    assert_int_equal(tags_calls, before);
    pump();
    assert_int_equal(tags_calls, before + 1);
    return tags_text;
}

/* Two workers of one proxy: what a client learnt over a connection to the first holds over one to the second, also where the
 * second has just looked and found nothing (I10 over connections). */
static void test_workers_tell_each_other(void **state)
{
    static struct worker second;
    struct worker *both[2] = {&worker, &second};
    (void)state;
    referrers_api = true;
    worker.content = content;
    second = worker;
    struct content *a = content, *b = second.content = content_new(&second);
    proxy.workers = both;
    proxy.n_workers = 2;
    manifest("m17", "c17 l17", NULL);
    manifest("r17", "rc17 rl17", "m17");
    content = b;
    assert_denied(get_doc("m17"), REASON_NOT_IN_CLOSURE); /* looked, found nothing, remembers it */
    tag("1.7.0", "m17");
    content = a;
    assert_allowed(get("1.7.0"));
    content = b;
    assert_allowed(get_blob("l17"));
    assert_denied(get_doc("r17"), REASON_NOT_IN_CLOSURE);
    snprintf(refs[0].subject, sizeof refs->subject, "m17");
    snprintf(refs[0].doc, sizeof refs->doc, "r17");
    n_refs = 1;
    content = a;
    assert_non_null(strstr(referrers_of(customer, dtext("m17")), dtext("r17")));
    content = b;
    assert_allowed(get_doc("r17"));
    assert_allowed(get_blob("rl17"));
    assert_denied(get_blob("l20"), REASON_NOT_IN_CLOSURE);
    content_free(&second.content);
    content = a;
    proxy.n_workers = 0;
    mem_free(referrers_json);
    referrers_json = NULL;
}

static void test_tags_list(void **state)
{
    (void)state;
    assert_string_equal(tags_of(customer), "1.0.0 1.1.0 ");
    assert_int_equal(hits, 1);
    assert_string_equal(tags_of(other), "2.0.0 ");
    assert_int_equal(hits, 1);
    assert_allowed(get("1.1.0"));
    char want[300];
    snprintf(want, sizeof want, "1.0.0 1.1.0 %s ", sigtag("i11", ".sig"));
    assert_string_equal(tags_of(customer), want); /* its subject is known by now */
    allow_only(&customer, "cus_1", license("lic_1", PLAIN, grant("exact", "1.0.0", FOLLOW)));
    assert_string_equal(tags_of(customer), "1.0.0 ");
    pass_ms(16000);
    upstream_down = ERR_TIMEOUT;
    assert_string_equal(tags_of(customer), "1.0.0 "); /* the list that is held */
    assert_int_equal(tags_result, ERR_OK);
    restart();
    tags_of(customer);
    assert_int_equal(tags_result, ERR_TIMEOUT);
    upstream_down = ERR_OK;
    allow_only(&customer, "cus_1", "");
    assert_string_equal(tags_of(customer), "");
}

static void test_grant_by_digest(void **state)
{
    (void)state;
    allow_only(&customer, "cus_1", license("lic_1", PLAIN, grant("digest", dtext("i20"), FOLLOW)));
    char want[300];
    snprintf(want, sizeof want, "2.0.0 %s ", sigtag("i20", ".sig"));
    assert_string_equal(tags_of(customer), want);
    restart();
    assert_allowed(get("2.0.0"));
    assert_denied(get("1.0.0"), REASON_VERSION_NOT_GRANTED);
    assert_denied(get("0.0.1"), REASON_VERSION_NOT_GRANTED); /* does not exist: the same */
    assert_allowed(get_blob("l20"));
    assert_allowed(get_doc("b20"));
    assert_denied(get_blob("l11"), REASON_NOT_IN_CLOSURE);
    tag("2.0.0", "m10"); /* the tag goes, the digest stays granted */
    restart();
    assert_allowed(get_doc("i20"));
    assert_allowed(get_blob("l20"));
    assert_denied(get("2.0.0"), REASON_VERSION_NOT_GRANTED);
    allow_only(&customer, "cus_1", license("lic_1", PLAIN, grant("all", "", FOLLOW)));
    assert_denied(get_doc("i20"), REASON_NOT_IN_CLOSURE); /* nothing of that for a customer with all versions: no tag leads there */
}

static void test_addresses_and_quota(void **state)
{
    (void)state;
    struct question x;
    allow_only(
        &customer, "cus_1",
        license("lic_1", "\"expires_at\":0,\"allowed_cidrs\":[\"10.0.0.0/8\"],\"quota_exceeded\":false,", grant("range", "^1", FOLLOW)));
    for (int cold = 0; cold < 2; cold++) {
        for (int outside = 0; outside < 2; outside++) {
            if (cold)
                restart();
            question_make(&x, customer, OCI_BLOB, dtext("l11"));
            x.addr[12] = outside ? 11 : 10;
            question_start(&x);
            pump();
            if (outside)
                assert_denied(&x.r, REASON_IP_NOT_ALLOWED);
            else
                assert_allowed(&x.r);
            question_make(&x, customer, OCI_BLOB, dtext("l20"));
            x.addr[12] = outside ? 11 : 10;
            question_start(&x);
            pump();
            assert_denied(&x.r, REASON_NOT_IN_CLOSURE);
        }
    }
    allow_only(&customer, "cus_1",
               license("lic_1", "\"expires_at\":0,\"allowed_cidrs\":[],\"quota_exceeded\":true,", grant("range", "^1", FOLLOW)));
    restart();
    assert_denied(get_blob("l11"), REASON_QUOTA_EXCEEDED);
    assert_denied(get("1.1.0"), REASON_QUOTA_EXCEEDED);
    assert_denied(get_blob("l20"), REASON_NOT_IN_CLOSURE);
}

static void test_license_bound_credential(void **state)
{
    (void)state;
    char two[16000];
    static char lic[] = "lic_b";
    snprintf(two, sizeof two, "%s,%s", license("lic_a", PLAIN, grant("range", "^1", FOLLOW)),
             license("lic_b", PLAIN, grant("range", "^2", FOLLOW)));
    allow_only(&customer, "cus_1", two);
    assert_allowed(get_blob("l11"));
    assert_allowed(get_blob("l20"));
    struct question x;
    question_make(&x, customer, OCI_BLOB, dtext("l11"));
    x.cred.license_id = lic;
    question_start(&x);
    pump();
    assert_denied(&x.r, REASON_NOT_IN_CLOSURE);
    question_make(&x, customer, OCI_BLOB, dtext("l20"));
    x.cred.license_id = lic;
    question_start(&x);
    pump();
    assert_allowed(&x.r);
    assert_string_equal(x.r.license, "lic_b");
}

static void test_grant_ends_by_the_clock(void **state)
{
    (void)state;
    char window[200];
    snprintf(window, sizeof window, "\"expires_at\":%lld,\"allowed_cidrs\":[],\"quota_exceeded\":false,", (long long)wall_s + 5);
    allow_only(&customer, "cus_1", license("lic_1", window, grant("range", "^1", FOLLOW)));
    assert_allowed(get_blob("l11"));
    pass_ms(4000);
    assert_allowed(get_blob("l11"));
    pass_ms(1000);
    assert_denied(get_blob("l11"), REASON_EXPIRED);
    assert_denied(get("1.1.0"), REASON_EXPIRED);
}

static void test_updates_until(void **state)
{
    (void)state;
    char terms[200];
    snprintf(terms, sizeof terms, "\"expires_at\":0,\"allowed_cidrs\":[],\"quota_exceeded\":false,");
    char know[200];
    snprintf(know, sizeof know, "1.0.0=m10@1500000000 1.1.0=i11@1650000000");
    tags_know(know);
    const char *l = license("lic_1", terms, grant("range", "^1", FOLLOW));
    char edited[8000];
    const char *at = strstr(l, "\"updates_until\":0");
    snprintf(edited, sizeof edited, "%.*s\"updates_until\":1600000000%s", (int)(at - l), l, at + strlen("\"updates_until\":0"));
    allow_only(&customer, "cus_1", edited);
    assert_allowed(get("1.0.0"));
    assert_denied(get("1.1.0"), REASON_MAINTENANCE_ENDED);
    assert_allowed(get_blob("base"));
    assert_denied(get_blob("l11"), REASON_NOT_IN_CLOSURE);
    assert_string_equal(tags_of(customer), "1.0.0 ");
}

static void test_degraded(void **state)
{
    (void)state;
    struct question x;
    assert_allowed(get("1.1.0"));
    const struct {
        enum oci_kind kind;
        const char *ref;
        bool allowed;
    } rows[] = {{OCI_MANIFEST, "1.1.0", true},
                {OCI_MANIFEST, "2.0.0", false},
                {OCI_MANIFEST, dtext("a11"), true},
                {OCI_BLOB, dtext("l11"), true},
                {OCI_BLOB, dtext("l20"), false}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        question_make(&x, customer, rows[i].kind, rows[i].ref);
        x.ask.degraded = true;
        question_start(&x);
        pump();
        if (rows[i].allowed)
            assert_allowed(&x.r);
        else
            assert_error(&x.r, ERR_UNAVAILABLE);
        mem_free(x.r.body);
    }
}

static void test_facts_away(void **state)
{
    (void)state;
    tags_unknown = true;
    assert_allowed(get("1.1.0")); /* asked for, and there is none */
    generation++;
    tags_err = ERR_UNAVAILABLE;
    assert_error(get("1.1.0"), ERR_UNAVAILABLE);
    assert_error(get_blob("l11"), ERR_UNAVAILABLE);
    struct question x;
    question_make(&x, customer, OCI_MANIFEST, "1.1.0");
    x.ask.degraded = true; /* within the grace: what is held may allow */
    question_start(&x);
    pump();
    assert_allowed(&x.r);
    mem_free(x.r.body);
    tags_err = ERR_OK;
    assert_allowed(get("1.1.0"));
}

static void test_redis_shares_closures(void **state)
{
    (void)state;
    assert_allowed(get_blob("l11")); /* builds and stores */
    assert_true(n_kvs >= 1);
    restart();
    tags_know("1.0.0=m10 1.1.0=i11");
    hits = 0;
    assert_allowed(get_blob("c11b"));
    assert_allowed(get_blob("c11a"));
    assert_allowed(get_doc("i11")); /* the manifest itself has to come from the upstream */
    assert_int_equal(hits, 1);
    for (size_t i = 0; i < n_kvs; i++)
        kvs[i].value[kvs[i].n - 2] ^= 1; /* somebody who has no key writes to Redis */
    restart();
    hits = 0;
    assert_allowed(get_blob("c11b"));
    assert_true(hits > 0);
    redis_down = true;
    restart();
    assert_allowed(get_blob("c11b"));
    assert_denied(get_blob("l20"), REASON_NOT_IN_CLOSURE);
}

static void test_ungranted_makes_no_keys(void **state)
{
    (void)state;
    assert_denied(get_blob("l20"), REASON_NOT_IN_CLOSURE);
    assert_denied(get_doc("i20"), REASON_NOT_IN_CLOSURE);
    for (size_t i = 0; i < n_kvs; i++)
        assert_null(strstr(kvs[i].key, dtext("i20")));
    for (size_t i = 0; i < n_kvs; i++)
        assert_null(strstr(kvs[i].value, dtext("l20")));
}

static void test_bad_documents(void **state)
{
    (void)state;
    doc_add("old", MEDIA_SCHEMA1, mem_strdup("{\"schemaVersion\":1,\"fsLayers\":[]}"));
    tag("1.2.0", "old");
    assert_error(get("1.2.0"), ERR_UPSTREAM);
    assert_denied(get_blob("nowhere"), REASON_NOT_IN_CLOSURE);
    pass_ms(20000);
    char *both = mem_strdup("{\"schemaVersion\":2,\"manifests\":[],\"layers\":[],\"config\":{}}");
    doc_add("both", MEDIA_OCI_MANIFEST, both);
    tag("1.3.0", "both");
    assert_error(get("1.3.0"), ERR_UPSTREAM);
    assert_error(get("1.3.0"), ERR_UPSTREAM);
    assert_denied(get_blob("nowhere"), REASON_NOT_IN_CLOSURE); /* it reaches nothing: that is known */
    assert_allowed(get("1.0.0"));
    /* an index whose descriptor lies about the child's type */
    struct strbuf b = {0};
    sb_addf(&b, "{\"schemaVersion\":2,\"mediaType\":\"%s\",\"manifests\":[{\"mediaType\":\"%s\",\"digest\":\"%s\",\"size\":1}]}",
            media_type_text(MEDIA_OCI_INDEX), media_type_text(MEDIA_DOCKER_MANIFEST), dtext("a20"));
    doc_add("liar", MEDIA_OCI_INDEX, sb_take(&b));
    tag("1.4.0", "liar");
    assert_allowed(get("1.4.0"));
    assert_error(get_doc("a20"), ERR_UPSTREAM);
}

static void test_joined(void **state)
{
    static struct question x[200];
    (void)state;
    for (int round = 0; round < 2; round++) {
        hits = 0;
        for (unsigned i = 0; i < 200; i++) {
            question_make(&x[i], customer, round ? OCI_BLOB : OCI_MANIFEST, round ? dtext("c11b") : "1.1.0");
            question_start(&x[i]);
            assert_non_null(x[i].op);
        }
        for (unsigned i = 0; i < 200; i += 3) /* some leave: the work goes on for the rest */
            content_cancel(&x[i].op);
        pump();
        for (unsigned i = 0; i < 200; i++) {
            assert_int_equal(x[i].r.done, i % 3 != 0);
            if (i % 3)
                assert_allowed(&x[i].r);
            mem_free(x[i].r.body);
        }
        assert_int_equal(hits, round ? 2 : 1); /* both platforms of the index */
    }
    question_make(&x[0], customer, OCI_MANIFEST, "1.0.0");
    question_start(&x[0]);
    pump_one();
    content_cancel(&x[0].op); /* all leave: still fetched */
    pump();
    assert_allowed(get("1.0.0"));
    assert_true(last.was_sync);
}

static void test_canceled_before_it_began(void **state)
{
    static struct question x; /* the teardown still runs what was asked last */
    (void)state;
    question_make(&x, customer, OCI_TAGS, "");
    unsigned before = tags_calls;
    x.op = content_tags(content, &x.ask, on_tags, NULL);
    content_cancel(&x.op);
    assert_null(x.op);
    pump();
    assert_int_equal(tags_calls, before);
    x.op = content_tags(content, &x.ask, on_tags, NULL); /* and not run before the end */
}

/* The same questions in any order, with answers arriving in any order: the same verdicts (I3, I10). */
static void test_permutations(void **state)
{
    static struct question x[64];
    (void)state;
    referrers_api = true;
    manifest("r11", "rc11 rl11", "b11");
    manifest("r20", "rc20 rl20", "b20");
    snprintf(refs[0].subject, sizeof refs->subject, "b11");
    snprintf(refs[0].doc, sizeof refs->doc, "r11");
    snprintf(refs[1].subject, sizeof refs->subject, "b20");
    snprintf(refs[1].doc, sizeof refs->doc, "r20");
    n_refs = 2;
    static const struct {
        const char *doc;
        enum oci_kind kind;
        bool one, two; /* granted to the customer with ^1, with ^2 */
    } rows[] = {
        {"m10", OCI_MANIFEST, true, false},      {"i11", OCI_MANIFEST, true, false}, {"a11", OCI_MANIFEST, true, false},
        {"b11", OCI_MANIFEST, true, false},      {"i20", OCI_MANIFEST, false, true}, {"a20", OCI_MANIFEST, false, true},
        {"b20", OCI_MANIFEST, false, true},      {"base", OCI_BLOB, true, true},     {"l10", OCI_BLOB, true, false},
        {"l11", OCI_BLOB, true, false},          {"l20", OCI_BLOB, false, true},     {"c11b", OCI_BLOB, true, false},
        {"c20b", OCI_BLOB, false, true},         {"s11", OCI_MANIFEST, true, false}, {"s20", OCI_MANIFEST, false, true},
        {"sl11", OCI_BLOB, true, false},         {"sl20", OCI_BLOB, false, true},    {"r11", OCI_MANIFEST, true, false},
        {"r20", OCI_MANIFEST, false, true},      {"rl11", OCI_BLOB, true, false},    {"rl20", OCI_BLOB, false, true},
        {"base", OCI_MANIFEST, false, false},    {"i11", OCI_BLOB, false, false},    {"nowhere", OCI_BLOB, false, false},
        {"nowhere", OCI_MANIFEST, false, false},
    };
    enum { N = sizeof rows / sizeof *rows };
    unsigned seed = 99;
    for (unsigned round = 0; round < 150; round++) {
        unsigned order[2 * N];
        restart();
        shuffle = round + 1;
        for (unsigned i = 0; i < 2 * N; i++)
            order[i] = i;
        for (unsigned i = 2 * N - 1; i > 0; i--) {
            seed = seed * 1103515245u + 12345u;
            unsigned k = (seed >> 16) % (i + 1), t = order[i];
            order[i] = order[k];
            order[k] = t;
        }
        if (round % 3 == 1)
            tags_know("1.0.0=m10 2.0.0=i20");
        for (unsigned i = 0; i < 2 * N; i++) {
            unsigned row = order[i] % N;
            question_make(&x[i], order[i] < N ? customer : other, rows[row].kind, dtext(rows[row].doc));
            question_start(&x[i]);
            for (unsigned p = 0; p < round % 7; p++)
                pump_one();
        }
        pump();
        for (unsigned i = 0; i < 2 * N; i++) {
            unsigned row = order[i] % N;
            bool want = order[i] < N ? rows[row].one : rows[row].two;
            assert_true(x[i].r.done);
            if (x[i].r.err != ERR_OK || (x[i].r.verdict == VERDICT_ALLOW) != want)
                fail_msg("round %u: %s %s as %s: err %d, verdict %d, wanted %d", round, rows[row].kind == OCI_BLOB ? "blob" : "manifest",
                         rows[row].doc, order[i] < N ? "^1" : "^2", x[i].r.err, x[i].r.verdict, want);
            mem_free(x[i].r.body);
        }
        shuffle = 0;
    }
}

/* Faults at random moments: never a wrong yes, never a wrong no (I1, I17). */
static void test_faults(void **state)
{
    (void)state;
    unsigned seed = 7;
    static const struct {
        const char *doc;
        enum oci_kind kind;
        bool granted;
    } rows[] = {{"l11", OCI_BLOB, true},  {"l20", OCI_BLOB, false}, {"a11", OCI_MANIFEST, true}, {"a20", OCI_MANIFEST, false},
                {"base", OCI_BLOB, true}, {"sl11", OCI_BLOB, true}, {"sl20", OCI_BLOB, false},   {"nowhere", OCI_BLOB, false}};
    unsigned yes = 0, no = 0, unknown = 0;
    for (unsigned i = 0; i < 3000; i++) {
        seed = seed * 1103515245u + 12345u;
        unsigned n = seed >> 16, row = n % (sizeof rows / sizeof *rows);
        if (n % 11 == 0)
            restart();
        struct question x;
        question_make(&x, customer, rows[row].kind, dtext(rows[row].doc));
        question_start(&x);
        for (unsigned k = 0; n_events; k++) {
            seed = seed * 1103515245u + 12345u;
            unsigned m = seed >> 16;
            upstream_down = m % 19 ? ERR_OK : (enum err[]){ERR_TIMEOUT, ERR_UPSTREAM, ERR_UNAVAILABLE}[m % 3];
            redis_down = m % 5 == 0;
            pump_one();
        }
        upstream_down = ERR_OK;
        redis_down = false;
        assert_true(x.r.done);
        if (x.r.err) {
            unknown++;
        } else {
            if ((x.r.verdict == VERDICT_ALLOW) != rows[row].granted)
                fail_msg("question %u: %s: verdict %d", i, rows[row].doc, x.r.verdict);
            yes += rows[row].granted;
            no += !rows[row].granted;
        }
        mem_free(x.r.body);
        pass_ms(n % 7000);
    }
    assert_true(yes > 100 && no > 100 && unknown > 100); /* the test did test */
}

/* Prints what hot questions cost; asserts nothing of it. */
static void test_cost(void **state)
{
    (void)state;
    struct question x;
    struct content_answer a = {0};
    enum { VERSIONS = 5000, ROUNDS = 200000 };
    allow_only(&customer, "cus_1", license("lic_1", PLAIN, grant("range", ">=3", FOLLOW)));
    cfg.limits.resolve_tags = 2 * VERSIONS;
    for (unsigned i = 0; i < VERSIONS; i++) {
        char name[32], m[32];
        snprintf(name, sizeof name, "3.0.%u", i);
        snprintf(m, sizeof m, "m3_%u", i);
        struct strbuf b = {0};
        sb_addf(&b,
                "{\"schemaVersion\":2,\"mediaType\":\"%s\",\"annotations\":{\"n\":\"%u\"},\"config\":{\"mediaType\":\"x\",\"digest\":\"%"
                "s\",\"size\":1},\"layers\":["
                "{\"mediaType\":\"x\",\"digest\":\"%s\",\"size\":1}]}",
                media_type_text(MEDIA_OCI_MANIFEST), i, dtext("c10"), dtext("base"));
        doc_add(m, MEDIA_OCI_MANIFEST, sb_take(&b));
        if (i < 3000) {
            snprintf(rtags[n_rtags].name, sizeof rtags->name, "%s", name);
            snprintf(rtags[n_rtags++].doc, sizeof rtags->doc, "%s", m);
        }
    }
    assert_allowed(get("3.0.7"));
    assert_denied(get_blob("nowhere"), REASON_NOT_IN_CLOSURE); /* everything is in the index */
    const struct {
        const char *what;
        enum oci_kind kind;
        const char *ref;
    } rows[] = {{"manifest by tag", OCI_MANIFEST, "3.0.7"},
                {"manifest by digest", OCI_MANIFEST, dtext("m3_7")},
                {"layer shared by 3000 versions", OCI_BLOB, dtext("base")},
                {"ungranted digest", OCI_BLOB, dtext("nowhere")},
                {"ungranted tag", OCI_MANIFEST, "9.x"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        question_make(&x, customer, rows[i].kind, rows[i].ref);
        double t0 = cpu_time_ns();
        for (unsigned k = 0; k < ROUNDS; k++) {
            clock_hold(); /* as a request does */
            assert_null(content_ask(content, &x.ask, &a, on_answer, &x.r));
            sb_free(&a.message);
            clock_release();
        }
        print_message("%s: %u ns\n", rows[i].what, (unsigned)((cpu_time_ns() - t0) / ROUNDS));
    }
    for (unsigned k = 0; k < 3; k++) {
        double t0 = cpu_time_ns();
        tags_of(customer);
        print_message("tags of %zu: %u us (with the test's own copying)\n", n_rtags, (unsigned)((cpu_time_ns() - t0) / 1000));
    }
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(test_tag),
        T(test_ungranted_tag_never_reaches_the_upstream),
        T(test_no_license_is_one_answer),
        T(test_expired_is_403_for_everything),
        T(test_not_found_upstream),
        T(test_pull_by_digest_after_tag),
        T(test_cold_blob_first),
        T(test_shared_layer),
        T(test_kinds),
        T(test_unknown_digests_are_remembered),
        T(test_new_version_is_found_when_the_admin_tells),
        T(test_incomplete_search_is_no_answer),
        T(test_too_many_tags),
        T(test_moved_tag_follow),
        T(test_moved_tag_as_the_admin_saw_it),
        T(test_moved_tag_pin),
        T(test_tag_flips_between_requests),
        T(test_vanished_tag),
        T(test_manifest_lost_upstream),
        T(test_stale_while_the_upstream_is_away),
        T(test_stale_of_another_worker),
        T(test_signatures),
        T(test_signature_of_a_child_and_of_a_signature),
        T(test_referrers),
        T(test_referrers_that_lie),
        T(test_workers_tell_each_other),
        T(test_tags_list),
        T(test_grant_by_digest),
        T(test_addresses_and_quota),
        T(test_license_bound_credential),
        T(test_grant_ends_by_the_clock),
        T(test_updates_until),
        T(test_degraded),
        T(test_facts_away),
        T(test_redis_shares_closures),
        T(test_ungranted_makes_no_keys),
        T(test_bad_documents),
        T(test_joined),
        T(test_canceled_before_it_began),
        T(test_permutations),
        T(test_faults),
        T(test_cost),
    };

    if (!mkdtemp(keys_dir) || keyring_open(keys_dir, true, &keys, NULL))
        return 1;
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    keyring_free(keys);
    directory_remove(keys_dir);
    return rc;
}
