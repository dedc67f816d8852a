/* The consumer of pg:events (docs/REDIS.md). An entry counts when its MAC is right; entries read together are written in one
 * transaction of the writer and acknowledged after its commit, so that a crash in between means reading them again: every write here
 * is idempotent. It decides nothing and answers nobody. */
#include "events.h"

#include <pthread.h>
#include <stdatomic.h>
#include <errno.h>
#include <string.h>
#include <time.h>

#include "admin.h"
#include "db.h"
#include "eventlog.h"
#include "licenses.h"
#include "projector.h"
#include "pullgate/cache.h"
#include "pullgate/clock.h"
#include "pullgate/config.h"
#include "pullgate/err.h"
#include "pullgate/jv.h"
#include "pullgate/log.h"
#include "pullgate/mem.h"
#include "pullgate/oci.h"
#include "pullgate/projection.h"
#include "pullgate/seal.h"
#include "pullgate/store.h"
#include "room.h"
#include "tags.h"
#include "usage.h"

#define GROUP           "admin"
#define CONSUMER        "admin"
#define ENTRIES_AT_ONCE "64" /* of the stream; a proxy puts many events into one */

static const unsigned REDIS_DEADLINE_MS = 5000; /* above the BLOCK of XREADGROUP */
#define BLOCK_MS "500"                          /* also how long a stop may take */
static const unsigned BACKOFF_MIN_MS = 50, BACKOFF_MAX_MS = 1000;
static const unsigned LOG_EVERY_MS = 10000;
static const size_t TEXT_MAX = 512;          /* bytes of one text of an event that are kept */
static const int64_t CLOCK_AHEAD_MS = 60000; /* a proxy's clock may be this much ahead; later times count as now */

struct events {
    struct admin *admin;
    struct cache_sync *redis;
    pthread_t thread;
    atomic_bool stopping;
    pthread_mutex_t lock;
    struct events_state st;
};

/* What one read brought; documents own the strings. */
struct batch {
    struct admin *admin;
    struct jv **docs;
    size_t n, cap;
    char **ids; /* stream ids to acknowledge */
    size_t n_ids, cap_ids;
    uint64_t pulls, tags, used, bad;
    int64_t now_ms;
};

static void batch_reset(struct batch *b)
{
    for (size_t i = 0; i < b->n; i++)
        jv_free(b->docs[i]);
    for (size_t i = 0; i < b->n_ids; i++)
        mem_free(b->ids[i]);
    b->n = b->n_ids = 0;
    b->pulls = b->tags = b->used = b->bad = 0;
}

static void batch_add_id(struct batch *b, struct str id)
{
    if (b->n_ids == b->cap_ids) {
        b->cap_ids = b->cap_ids ? b->cap_ids * 2 : 64;
        b->ids = mem_realloc(b->ids, b->cap_ids * sizeof(*b->ids));
    }
    b->ids[b->n_ids++] = str_dup(id);
}

static void batch_add_doc(struct batch *b, struct jv *take_doc)
{
    if (b->n == b->cap) {
        b->cap = b->cap ? b->cap * 2 : 256;
        b->docs = mem_realloc(b->docs, b->cap * sizeof(struct jv *));
    }
    b->docs[b->n++] = take_doc;
}

/* ---- reading ----------------------------------------------------------------------------------- */

/* The NDJSON text of an entry, when its MAC is right. */
static bool entry_verify(const struct events *ev, const struct cache_reply *fields, struct str *ret_lines)
{
    struct str lines = {0}, mac = {0};
    uint8_t want[SEAL_MAC_LEN], got[SEAL_MAC_LEN];
    if (fields->type != CACHE_ARRAY)
        return false;
    for (size_t i = 0; i + 1 < fields->n; i += 2) {
        if (fields->items[i].type != CACHE_STRING || fields->items[i + 1].type != CACHE_STRING)
            return false;
        if (str_eq_c(fields->items[i].str, "b"))
            lines = fields->items[i + 1].str;
        else if (str_eq_c(fields->items[i].str, "m"))
            mac = fields->items[i + 1].str;
    }
    if (!lines.p || !hex_decode(mac, got, sizeof(got)))
        return false;
    keyring_hmac(ev->admin->keys, KEYRING_MAC, lines, want);
    if (!str_eq_secret(want, got, sizeof(want)))
        return false;
    *ret_lines = lines;
    return true;
}

static void entry_take(const struct events *ev, const struct cache_reply *entry, struct batch *b)
{
    struct str lines, line;
    if (entry->type != CACHE_ARRAY || entry->n != 2 || entry->items[0].type != CACHE_STRING)
        return;
    batch_add_id(b, entry->items[0].str);
    if (entry->items[1].type == CACHE_NIL)
        return; /* trimmed while it was pending */
    if (!entry_verify(ev, &entry->items[1], &lines)) {
        b->bad++;
        return;
    }
    while (str_next(&lines, '\n', &line)) {
        struct jv *doc = NULL;
        if (line.n == 0)
            continue;
        if (jv_parse(line, &JV_LIMITS_API, &doc, NULL) || jv_type(doc) != JV_OBJECT) {
            b->bad++;
            jv_free(doc);
        } else {
            batch_add_doc(b, doc);
        }
    }
}

static enum err group_create(struct events *ev, struct error *reterr)
{
    struct str argv[] = {S("XGROUP"), S("CREATE"), S(PROJECTION_EVENTS), S(GROUP), S("0"), S("MKSTREAM")};
    const struct cache_reply *r;
    struct error err = {0};
    enum err e = cache_sync_command(ev->redis, argv, 6, &r, &err);
    if (e && strstr(err.text, "BUSYGROUP"))
        return ERR_OK; /* it is there */
    if (e && reterr)
        *reterr = err;
    return e;
}

/* from: "0" entries read before and not acknowledged, ">" further ones. */
static enum err batch_read(struct events *ev, const char *from, struct batch *b, struct error *reterr)
{
    struct str argv[] = {S("XREADGROUP"), S("GROUP"),  S(GROUP),     S(CONSUMER),          S("COUNT"), S(ENTRIES_AT_ONCE),
                         S("BLOCK"),      S(BLOCK_MS), S("STREAMS"), S(PROJECTION_EVENTS), str_c(from)};
    const struct cache_reply *r;
    struct error err = {0};
    enum err e = cache_sync_command(ev->redis, argv, sizeof(argv) / sizeof(argv[0]), &r, &err);
    if (e && (strstr(err.text, "NOGROUP") || strstr(err.text, "UNBLOCKED"))) { /* the first time, or flushed */
        if (ev->admin->projector)
            projector_suspect(ev->admin->projector);
        e = group_create(ev, &err);
        if (!e)
            return ERR_OK;
    }
    if (e) {
        if (reterr)
            *reterr = err;
        return e;
    }
    b->now_ms = clock_now_ms();
    if (r->type != CACHE_ARRAY)
        return ERR_OK; /* nothing came */
    for (size_t i = 0; i < r->n; i++) {
        const struct cache_reply *stream = &r->items[i];
        if (stream->type != CACHE_ARRAY || stream->n != 2 || stream->items[1].type != CACHE_ARRAY)
            continue;
        for (size_t j = 0; j < stream->items[1].n; j++)
            entry_take(ev, &stream->items[1].items[j], b);
    }
    return ERR_OK;
}

/* ---- writing, in the writer's transaction ------------------------------------------------------- */

static struct str text_of(const struct jv *doc, const char *key)
{
    struct str s = jv_get_str(doc, key);
    if (!s.p)
        return S("");
    if (s.n > TEXT_MAX) {
        s.n = TEXT_MAX;
        while (s.n && ((unsigned char)s.p[s.n] & 0xc0) == 0x80) /* no half character at the end */
            s.n--;
    }
    return s;
}

static int64_t time_of(const struct jv *doc, const struct batch *b)
{
    int64_t t = jv_get_int(doc, "t", 0);
    return t <= 0 || t > b->now_ms + CLOCK_AHEAD_MS ? b->now_ms : t;
}

static enum err used_store(struct store *s, struct str id, int64_t at_s, struct str client, struct error *reterr)
{
    if (str_starts(id, S("lic_"))) /* a license key */
        return store_exec(s, NULL, reterr, "UPDATE licenses SET last_used_at=?, last_used_from=? WHERE id=? AND last_used_at<?", "issi",
                          at_s, client, id, at_s);
    return store_exec(s, NULL, reterr, "UPDATE credentials SET last_used_at=?, last_used_from=? WHERE id=? AND last_used_at<?", "issi",
                      at_s, client, id, at_s);
}

/* How often the customer was denied for this reason in the last hour in which it was; 0: never before. */
static enum err denials_before(struct store *s, struct str customer, struct str reason, int64_t hour, int64_t *ret, struct error *reterr)
{
    struct store_stmt *st = NULL;
    bool row = false;
    enum err e = store_query(s, &st, reterr, "SELECT count FROM pull_denials WHERE customer_id=? AND reason=? AND hour<? ORDER BY hour DESC LIMIT 1", "ssi",
                             customer, reason, hour);
    if (!e)
        e = store_step(st, &row, reterr);
    *ret = !e && row ? store_col_int(st, 0) : 0;
    store_done(&st);
    return e;
}

/* The event pull.denied: one an hour of a customer and reason, for a client may try all day; the others are counted. */
static enum err denial_store(struct store *s, const struct jv *doc, int64_t at_ms, struct error *reterr)
{
    static const char *const members[] = {"reason", "repository", "reference", "tag", "client", "agent"};
    struct str vendor = text_of(doc, "vendor_id"), customer = text_of(doc, "customer_id"), reason = text_of(doc, "reason");
    int64_t hour = at_ms / 3600000, first = 0, before = 0;
    if (!vendor.n || !customer.n)
        return ERR_OK;
    enum err e = store_exec(s, &first, reterr, "INSERT OR IGNORE INTO pull_denials (customer_id, reason, hour, count) VALUES (?,?,?,1)", "ssi", customer, reason, hour);
    if (!e && !first)
        return store_exec(s, NULL, reterr, "UPDATE pull_denials SET count=count+1 WHERE customer_id=? AND reason=? AND hour=?", "ssi", customer, reason, hour);
    if (!e)
        e = denials_before(s, customer, reason, hour, &before, reterr);
    if (e)
        return e;
    struct jv *data = jv_object();
    char *vendor_id = str_dup(vendor), *customer_id = str_dup(customer), *license_id = str_dup(text_of(doc, "license_id"));
    for (size_t i = 0; i < sizeof members / sizeof *members; i++)
        jv_set_str(data, members[i], text_of(doc, members[i]));
    jv_set_str(data, "pull_id", text_of(doc, "id"));
    jv_set_int(data, "denials_last_time", before);
    const struct event_record event = {.vendor_id = vendor_id, .type = "pull.denied", .actor = "proxy", .customer_id = customer_id, .license_id = license_id, .data = data};
    e = eventlog_put(s, &event, reterr);
    mem_free(vendor_id);
    mem_free(customer_id);
    mem_free(license_id);
    jv_free(data);
    return e;
}

static enum err pull_store(struct admin *a, struct store *s, const struct jv *doc, int64_t at_ms, struct error *reterr)
{
    int64_t changes = 0;
    struct str license = text_of(doc, "license_id"), client = text_of(doc, "client");
    bool allowed = str_eq_c(text_of(doc, "decision"), "allow");
    enum err e = store_exec(
        s, &changes, reterr,
        "INSERT OR IGNORE INTO pulls (event_id, at_ms, vendor_id, customer_id, credential_id, license_id, application_id,"
        " repository, reference, tag, digest, decision, reason, client, agent, proxy, method, bytes)"
        " VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
        "sissssssssszsssssi", text_of(doc, "id"), at_ms, text_of(doc, "vendor_id"), text_of(doc, "customer_id"),
        text_of(doc, "credential_id"), license, text_of(doc, "application_id"), text_of(doc, "repository"), text_of(doc, "reference"),
        text_of(doc, "tag"), text_of(doc, "digest"), allowed ? "allow" : "deny", text_of(doc, "reason"), client, text_of(doc, "agent"),
        text_of(doc, "proxy"), text_of(doc, "method"), jv_get_int(doc, "bytes", 0));
    if (!e && changes && allowed && license.n)
        e = store_exec(s, NULL, reterr,
                       "UPDATE licenses SET first_used_at=CASE WHEN first_used_at=0 THEN ? ELSE first_used_at END,"
                       " last_used_at=?, last_used_from=? WHERE id=? AND last_used_at<?",
                       "iissi", at_ms / 1000, at_ms / 1000, client, license, at_ms / 1000);
    if (!e && changes && license.n) {
        struct usage_pull used = {.license_id = license,
                                  .credential_id = text_of(doc, "credential_id"),
                                  .client = client,
                                  .agent = text_of(doc, "agent"),
                                  .allowed = allowed,
                                  .is_quota = str_eq(text_of(doc, "reason"), S("quota_exceeded")),
                                  .at_s = at_ms / 1000};
        e = usage_pulled(s, &used, reterr);
    }
    if (!e && changes && allowed && license.n)
        e = licenses_pulled(a, s, license, at_ms / 1000, reterr);
    if (!e && changes && !allowed)
        e = denial_store(s, doc, at_ms, reterr);
    return e;
}

static enum err batch_store(struct store *s, void *arg, struct error *reterr)
{
    struct batch *b = arg;
    b->pulls = b->tags = b->used = 0;
    for (size_t i = 0; i < b->n; i++) {
        const struct jv *doc = b->docs[i];
        struct str kind = jv_get_str(doc, "e");
        int64_t at_ms = time_of(doc, b);
        enum err e = ERR_OK;
        if (str_eq_c(kind, "pull") && jv_get_str(doc, "id").n) {
            e = pull_store(b->admin, s, doc, at_ms, reterr);
            b->pulls++;
        } else if (str_eq_c(kind, "tag")) {
            bool changed;
            int64_t size = jv_get_int(doc, "size", 0);
            struct tag_sighting t = {.repository_id = text_of(doc, "repository_id"),
                                     .tag = text_of(doc, "tag"),
                                     .digest = text_of(doc, "digest"),
                                     .media_type = text_of(doc, "media_type"),
                                     .size = size > 0 ? (uint64_t)size : 0,
                                     .at_s = at_ms / 1000};
            e = tags_seen(s, &t, &changed, reterr);
            b->tags++;
        } else if (str_eq_c(kind, "bytes")) {
            e = usage_bytes(s, text_of(doc, "id"), text_of(doc, "license_id"), jv_get_int(doc, "bytes", 0), at_ms / 1000, reterr);
        } else if (str_eq_c(kind, "used")) {
            e = used_store(s, text_of(doc, "credential_id"), at_ms / 1000, text_of(doc, "client"), reterr);
            b->used++;
        } /* a kind of a later version: skipped */
        if (e)
            return e;
    }
    return ERR_OK;
}

/* ---- the thread -------------------------------------------------------------------------------- */

static enum err batch_acknowledge(struct events *ev, const struct batch *b, struct error *reterr)
{
    struct str *argv = mem_calloc(2 * b->n_ids + 5, sizeof(*argv));
    struct str *del = argv + b->n_ids + 3;
    argv[0] = S("XACK");
    argv[1] = S(PROJECTION_EVENTS);
    argv[2] = S(GROUP);
    del[0] = S("XDEL");
    del[1] = S(PROJECTION_EVENTS);
    for (size_t i = 0; i < b->n_ids; i++)
        argv[3 + i] = del[2 + i] = str_c(b->ids[i]);
    struct cache_cmd cmds[] = {{argv, b->n_ids + 3}, {del, b->n_ids + 2}};
    enum err e = cache_sync_transaction(ev->redis, cmds, 2, reterr);
    mem_free(argv);
    return e;
}

static void pause_ms(struct events *ev, unsigned ms)
{
    while (ms && !atomic_load(&ev->stopping)) {
        unsigned step = ms < 100 ? ms : 100;
        struct timespec ts = {.tv_sec = 0, .tv_nsec = (long)step * 1000000};
        nanosleep(&ts, NULL);
        ms -= step;
    }
}

static void state_add(struct events *ev, const struct batch *b, uint64_t pending)
{
    pthread_mutex_lock(&ev->lock);
    if (pending == 0) {
        ev->st.batches += b->n_ids;
        ev->st.pulls += b->pulls;
        ev->st.tags += b->tags;
        ev->st.used += b->used;
        ev->st.bad += b->bad;
    }
    ev->st.pending = pending;
    pthread_mutex_unlock(&ev->lock);
}

/* One read, one transaction, one acknowledgement. *ret_n: entries handled. */
static enum err events_round(struct events *ev, bool old, struct batch *b, size_t *ret_n, struct error *reterr)
{
    static unsigned long long logged_bad, logged_poison;
    *ret_n = 0;
    batch_reset(b);
    enum err e = batch_read(ev, old ? "0" : ">", b, reterr);
    if (e || b->n_ids == 0)
        return e;
    if (b->bad)
        log_limited(&logged_bad, LOG_EVERY_MS, LOG_LEVEL_WARN, "events: %llu entries or lines refused: wrong MAC or no event",
                    (unsigned long long)b->bad);
    state_add(ev, b, b->n_ids);
    if (b->n) {
        struct error err = {0};
        e = room_check(ev->admin, &err);
        if (!e)
            e = db_run(ev->admin->writer, DB_TRANSACTION, batch_store, b, &err);
        if (e == ERR_UNAVAILABLE) {
            if (reterr)
                *reterr = err;
            return e; /* not acknowledged: read again */
        }
        if (e) { /* never in the way of what follows */
            log_limited(&logged_poison, LOG_EVERY_MS, LOG_LEVEL_ERROR, "events: %zu events cannot be stored and are dropped: %s", b->n,
                        err.text);
            b->bad += b->n;
            b->pulls = b->tags = b->used = 0;
        }
    }
    e = batch_acknowledge(ev, b, reterr);
    if (e)
        return e;
    *ret_n = b->n_ids;
    state_add(ev, b, 0);
    return ERR_OK;
}

static void *events_main(void *arg)
{
    struct events *ev = arg;
    struct batch b = {.admin = ev->admin};
    unsigned backoff = 0;
    unsigned long long logged = 0;
    bool old = true; /* first what an earlier life read and did not acknowledge */

    while (!atomic_load(&ev->stopping)) {
        struct error err = {0};
        size_t n;
        enum err e = events_round(ev, old, &b, &n, &err);
        if (e) {
            log_limited(&logged, LOG_EVERY_MS, LOG_LEVEL_WARN, "events: %s; trying again", err.text[0] ? err.text : err_text(e));
            backoff = backoff ? (backoff * 2 < BACKOFF_MAX_MS ? backoff * 2 : BACKOFF_MAX_MS) : BACKOFF_MIN_MS;
            old = true;
            pause_ms(ev, backoff);
            continue;
        }
        backoff = 0;
        if (n == 0)
            old = false;
    }
    batch_reset(&b);
    mem_free(b.docs);
    mem_free(b.ids);
    return NULL;
}

struct events *events_start(struct admin *a)
{
    struct events *ev = NEW(struct events);
    ev->admin = a;
    ev->redis = cache_sync_new(a->cfg, REDIS_DEADLINE_MS);
    atomic_init(&ev->stopping, false);
    AN(pthread_mutex_init(&ev->lock, NULL) == 0);
    NEED((errno = pthread_create(&ev->thread, NULL, events_main, ev)) == 0, "its events thread");
    return ev;
}

void events_stop(struct events **pev)
{
    struct events *ev = *pev;
    if (!ev)
        return;
    *pev = NULL;
    atomic_store(&ev->stopping, true);
    pthread_join(ev->thread, NULL);
    cache_sync_free(&ev->redis);
    pthread_mutex_destroy(&ev->lock);
    mem_free(ev);
}

void events_state(struct events *ev, struct events_state *ret)
{
    pthread_mutex_lock(&ev->lock);
    *ret = ev->st;
    pthread_mutex_unlock(&ev->lock);
}
