#include "delivery.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "admin.h"
#include "db.h"
#include "eventlog.h"
#include "mail.h"
#include "pullgate/clock.h"
#include "pullgate/config.h"
#include "pullgate/credential.h"
#include "pullgate/fetch.h"
#include "pullgate/jv.h"
#include "pullgate/log.h"
#include "pullgate/loop.h"
#include "pullgate/mem.h"

static const unsigned TICK_MS = 1000;        /* what is due is looked for this often, and at a commit */
static const unsigned POKE_MS = 20;          /* after a commit, so that a run of them costs one look */
static const unsigned BUSY_MS = 200;         /* the writer had no room */
static const size_t CALLS_AT_ONCE = 32;      /* of all webhooks; one a webhook */
#define HAND_OUT_AT_ONCE 100                 /* events in one transaction */
#define BACKOFF_MAX_MS   (6 * INT64_C(3600000))
static const size_t ANSWER_BYTES = 64 * 1024; /* of an answer; nothing of it is kept */
static const struct fetch_limits LIMITS = {.connections = 32, .connect_ms = 10000, .first_byte_ms = 15000, .stall_ms = 10000, .total_ms = 30000};
#define ERROR_MAX 400 /* characters of an error that are kept, as of struct error */

/* ---- what others ask too ---------------------------------------------------------------------------------------------------- */

bool delivery_host_private(const struct config *cfg, struct str host)
{
    struct str rest = str_c(cfg->admin.webhook_allow_private), one;
    while (rest.n && str_next(&rest, ',', &one)) {
        one = str_trim(one);
        if (str_eq_c(one, "all") || (one.n && str_eq_nocase(one, host)))
            return true;
    }
    return false;
}

int64_t delivery_backoff_ms(uint64_t first_ms, int64_t failures)
{
    int64_t ms = first_ms ? (int64_t)first_ms : 1;
    uint32_t random;
    for (; failures > 1 && ms < BACKOFF_MAX_MS; failures--)
        ms *= 2;
    if (ms > BACKOFF_MAX_MS)
        ms = BACKOFF_MAX_MS;
    seal_random(&random, sizeof random);
    return ms - ms / 5 + (int64_t)(random % (uint32_t)(ms / 5 * 2 + 1));
}

void delivery_sign(struct str secret, int64_t timestamp_s, struct str body, char ret[DELIVERY_SIGNATURE_MAX])
{
    struct strbuf text = {0}, hex = {0};
    uint8_t mac[SEAL_MAC_LEN];
    sb_addf(&text, "%lld.", (long long)timestamp_s);
    sb_add(&text, body);
    seal_hmac(secret, sb_str(&text), mac);
    sb_add_hex(&hex, mac, sizeof mac);
    snprintf(ret, DELIVERY_SIGNATURE_MAX, "sha256=%s", hex.p);
    sb_free(&text);
    sb_free(&hex);
}

/* ---- handing out ------------------------------------------------------------------------------------------------------------ */

static enum err cursor_read(struct store *s, int64_t *ret, struct error *reterr)
{
    struct store_stmt *st = NULL;
    bool row = false;
    enum err err = store_query(s, &st, reterr, "SELECT CAST(value AS INTEGER) FROM meta WHERE key='events_handed_out'", "");
    if (!err)
        err = store_step(st, &row, reterr);
    if (!err)
        *ret = row ? store_col_int(st, 0) : 0;
    store_done(&st);
    return err;
}

static bool wants(const struct jv *patterns, struct str type)
{
    for (size_t i = 0; i < jv_len(patterns); i++)
        if (eventlog_matches(jv_str(jv_at(patterns, i)), type))
            return true;
    return false;
}

struct event_row {
    int64_t id;
    char *vendor_id, *type, *customer_id, *license_id;
};

static void event_row_free(struct event_row *e)
{
    mem_free(e->vendor_id);
    mem_free(e->type);
    mem_free(e->customer_id);
    mem_free(e->license_id);
}

static enum err hand_to_webhooks(struct store *s, const struct event_row *e, int64_t now_ms, struct error *reterr)
{
    struct store_stmt *st = NULL;
    struct jv *ids = jv_array();
    bool row = true;
    enum err err = store_query(s, &st, reterr, "SELECT id, events FROM webhooks WHERE vendor_id=? AND enabled=1 AND after_event<? ORDER BY created_at, id",
                               "zi", e->vendor_id, e->id);
    while (!err) {
        err = store_step(st, &row, reterr);
        if (err || !row)
            break;
        struct jv *patterns = NULL;
        if (jv_parse(store_col_str(st, 1), &JV_LIMITS_TRUSTED, &patterns, NULL) == ERR_OK && wants(patterns, str_c(e->type)))
            jv_push(ids, jv_string(store_col_str(st, 0)));
        jv_free(patterns);
    }
    store_done(&st);
    for (size_t i = 0; !err && i < jv_len(ids); i++) {
        char id[ID_MAX];
        id_new("dlv_", id);
        err = store_exec(s, NULL, reterr,
                         "INSERT OR IGNORE INTO webhook_deliveries (id, webhook_id, event_id, event_type, next_attempt_ms, created_at) VALUES (?,?,?,?,?,?)",
                         "zsizii", id, jv_str(jv_at(ids, i)), e->id, e->type, now_ms, now_ms / 1000);
    }
    jv_free(ids);
    return err;
}

enum err delivery_hand_out(struct admin *a, struct store *s, int64_t now_ms, unsigned *ret_n, struct error *reterr)
{
    struct event_row events[HAND_OUT_AT_ONCE];
    struct store_stmt *st = NULL;
    size_t n = 0;
    int64_t cursor = 0;
    bool row = true;
    enum err err = cursor_read(s, &cursor, reterr);
    if (!err)
        err = store_query(s, &st, reterr, "SELECT id, vendor_id, type, customer_id, license_id FROM events WHERE id>? ORDER BY id LIMIT ?", "ii", cursor,
                          (int64_t)HAND_OUT_AT_ONCE);
    while (!err && n < HAND_OUT_AT_ONCE) {
        err = store_step(st, &row, reterr);
        if (err || !row)
            break;
        events[n++] = (struct event_row){.id = store_col_int(st, 0), .vendor_id = str_dup(store_col_str(st, 1)), .type = str_dup(store_col_str(st, 2)),
                                         .customer_id = str_dup(store_col_str(st, 3)), .license_id = str_dup(store_col_str(st, 4))};
    }
    store_done(&st);
    for (size_t i = 0; i < n; i++) {
        if (!err && strcmp(events[i].type, "webhook.test") != 0) /* has its delivery */
            err = hand_to_webhooks(s, &events[i], now_ms, reterr);
        if (!err)
            err = mail_hand_out(a, s, events[i].id, now_ms, reterr);
        cursor = events[i].id;
        event_row_free(&events[i]);
    }
    if (!err && n)
        err = store_exec(s, NULL, reterr,
                         "INSERT INTO meta (key, value) VALUES ('events_handed_out', ?1) ON CONFLICT (key) DO UPDATE SET value=?1", "i", cursor);
    if (!err)
        *ret_n = (unsigned)n;
    return err;
}

/* ---- the thread -------------------------------------------------------------------------------------------------------------- */

struct call;

struct delivery {
    struct admin *admin;
    struct loop *loop;
    pthread_t thread;
    struct store *store; /* read-only, the thread's */
    struct fetch_pool *pool;
    struct timer *tick;
    struct call *calls;
    size_t n_calls, writes; /* writes: jobs that the writer holds */
    bool handing_out, stopping;
    bool is_ended;
    atomic_bool is_poked;
    unsigned long long logged;
};

/* One attempt of one delivery, from its request to the outcome in the store. */
struct call {
    struct call *next;
    struct delivery *d;
    struct fetch *fetch;
    struct timer *again; /* the writer had no room for the outcome */
    char *id, *webhook_id, *vendor_id;
    int64_t created_at, attempts, failures, failing_since;
    uint64_t started_ms;
    bool too_much;
    size_t got;
    /* the outcome */
    enum err err;
    int status;
    int64_t now_ms, duration_ms;
    char text[ERROR_MAX];
};

static void call_free(struct call *c)
{
    struct delivery *d = c->d;
    struct call **at = &d->calls;
    while (*at != c)
        at = &(*at)->next;
    *at = c->next;
    d->n_calls--;
    fetch_cancel(&c->fetch);
    timer_free(&c->again);
    mem_free(c->id);
    mem_free(c->webhook_id);
    mem_free(c->vendor_id);
    mem_free(c);
}

static void tick_soon(struct delivery *d, unsigned ms)
{
    if (!d->stopping)
        timer_set(d->tick, ms);
}

/* ---- the outcome ------------------------------------------------------------------------------------------------------------- */

static enum err webhook_disable(struct store *s, const struct call *c, const char *why, struct error *reterr)
{
    struct jv *data = jv_object();
    jv_set_c(data, "reason", why);
    jv_set_int(data, "response_status", c->status);
    const struct event_record event = {.vendor_id = c->vendor_id, .type = "webhook.disabled", .actor = "system:delivery", .object_id = c->webhook_id, .data = data};
    enum err err = store_exec(s, NULL, reterr, "UPDATE webhooks SET enabled=0, disabled_reason=?, updated_at=?, rev=rev+1 WHERE id=?", "ziz", why,
                              c->now_ms / 1000, c->webhook_id);
    if (!err)
        err = eventlog_put(s, &event, reterr);
    jv_free(data);
    return err;
}

/* In the writer's transaction. */
static enum err outcome_write(struct store *s, void *arg, struct error *reterr)
{
    struct call *c = arg;
    const struct config *cfg = admin_config(c->d->admin);
    int64_t now_s = c->now_ms / 1000;
    bool good = !c->err && c->status >= 200 && c->status < 300, is_gone = !c->err && c->status == 410;
    if (good) {
        enum err err = store_exec(s, NULL, reterr,
                                  "UPDATE webhook_deliveries SET status='delivered', attempts=attempts+1, response_status=?, error='', duration_ms=?, finished_at=?"
                                  " WHERE id=?",
                                  "iiiz", (int64_t)c->status, c->duration_ms, now_s, c->id);
        return err ? err
                   : store_exec(s, NULL, reterr, "UPDATE webhooks SET failures=0, failing_since=0, rest_until_ms=0, last_success_at=? WHERE id=?", "iz", now_s,
                                c->webhook_id);
    }
    bool is_over = is_gone || now_s - c->created_at >= (int64_t)(cfg->admin.webhook_give_up_ms / 1000);
    int64_t next = c->now_ms + delivery_backoff_ms(cfg->admin.webhook_retry_ms, c->attempts + 1);
    int64_t rest = c->now_ms + delivery_backoff_ms(cfg->admin.webhook_retry_ms, c->failures + 1);
    int64_t since = c->failing_since ? c->failing_since : now_s;
    enum err err = store_exec(s, NULL, reterr,
                              "UPDATE webhook_deliveries SET status=?, attempts=attempts+1, next_attempt_ms=?, response_status=?, error=?, duration_ms=?,"
                              " finished_at=? WHERE id=?",
                              "ziiziiz", is_over ? "failed" : "pending", next, (int64_t)c->status, c->text, c->duration_ms, is_over ? now_s : (int64_t)0, c->id);
    if (!err)
        err = store_exec(s, NULL, reterr, "UPDATE webhooks SET failures=failures+1, failing_since=?, rest_until_ms=? WHERE id=?", "iiz", since, rest, c->webhook_id);
    if (!err && is_gone)
        err = webhook_disable(s, c, "gone", reterr);
    else if (!err && now_s - since >= (int64_t)(cfg->admin.webhook_disable_after_ms / 1000))
        err = webhook_disable(s, c, "failing", reterr);
    return err;
}

static void on_outcome_written(void *arg)
{
    struct call *c = arg;
    struct delivery *d = c->d;
    d->writes--;
    call_free(c); /* where it was not written it is still pending: made again */
    tick_soon(d, 0);
}

static void outcome_done(void *arg, enum err err)
{
    struct call *c = arg;
    (void)err;
    loop_post(c->d->loop, on_outcome_written, c);
}

static void outcome_post(void *ctx)
{
    struct call *c = ctx;
    struct delivery *d = c->d;
    if (db_post(d->admin->writer, DB_TRANSACTION, outcome_write, c, outcome_done) == ERR_OK) {
        d->writes++;
        return;
    }
    if (d->stopping) {
        call_free(c);
        return;
    }
    if (!c->again)
        c->again = timer_new(d->loop, outcome_post, c);
    timer_set(c->again, BUSY_MS);
}

/* ---- the request ------------------------------------------------------------------------------------------------------------- */

static enum fetch_next on_head(void *ctx, const struct fetch_head *h)
{
    struct call *c = ctx;
    c->status = h->status;
    return FETCH_MORE;
}

static enum fetch_next on_body(void *ctx, const void *data, size_t n)
{
    struct call *c = ctx;
    (void)data;
    c->got += n;
    c->too_much = c->got > ANSWER_BYTES; /* the status says it all */
    return c->too_much ? FETCH_STOP : FETCH_MORE;
}

static void call_over(struct call *c, enum err err, const char *text)
{
    c->now_ms = clock_now_ms();
    c->duration_ms = (int64_t)(clock_mono_ms() - c->started_ms);
    c->err = c->too_much ? ERR_OK : err;
    if (c->err)
        snprintf(c->text, sizeof c->text, "%s", text && *text ? text : err_text(err));
    else if (c->status < 200 || c->status > 299)
        snprintf(c->text, sizeof c->text, "answered %d%s", c->status, c->status >= 300 && c->status < 400 ? ": redirects are not followed" : "");
    outcome_post(c);
}

static void on_done(void *ctx, enum err err, const char *text, bool got_bytes)
{
    struct call *c = ctx;
    (void)got_bytes;
    c->fetch = NULL;
    call_over(c, err, text);
}

static void call_refused(void *arg)
{
    struct call *c = arg;
    char why[ERROR_MAX];
    memcpy(why, c->text, sizeof why);
    call_over(c, ERR_INVALID, why);
}

static void call_start(struct delivery *d, struct call *c, const char *url, const struct jv *event, struct str type, struct str secret)
{
    static const struct fetch_handlers handlers = {on_head, on_body, on_done};
    const struct config *cfg = admin_config(d->admin);
    struct fetch_url u = {0};
    struct error error = {0};
    struct strbuf body = {0};
    char signature[DELIVERY_SIGNATURE_MAX], f_event[128], f_id[96], f_time[64], f_sign[sizeof signature + 32];
    int64_t now_s = clock_now_s();
    c->started_ms = clock_mono_ms();
    c->next = d->calls;
    d->calls = c;
    d->n_calls++;
    if (!url || fetch_url_parse(url, &u, &error)) {
        snprintf(c->text, sizeof c->text, "%s", url ? error.text : "its secret cannot be read: give it another one");
        loop_defer(d->loop, call_refused, c);
        return;
    }
    jv_dump(event, &body);
    delivery_sign(secret, now_s, sb_str(&body), signature);
    snprintf(f_event, sizeof f_event, "X-Pullgate-Event: %.*s", STR(type));
    snprintf(f_id, sizeof f_id, "X-Pullgate-Delivery: %s", c->id);
    snprintf(f_time, sizeof f_time, "X-Pullgate-Timestamp: %lld", (long long)now_s);
    snprintf(f_sign, sizeof f_sign, "X-Pullgate-Signature: %s", signature);
    const char *const fields[] = {"Content-Type: application/json", f_event, f_id, f_time, f_sign, NULL};
    bool is_private = delivery_host_private(cfg, str_c(u.host));
    struct fetch_request r = {.method = "POST", .url = url, .fields = fields, .body = sb_str(&body),
                              .policy = {.https_only = !is_private, .allow_private = is_private}};
    c->fetch = fetch_start(d->pool, &r, &handlers, c);
    sb_free(&body);
    fetch_url_free(&u);
}

/* ---- what is due ------------------------------------------------------------------------------------------------------------- */

static bool is_called(const struct delivery *d, struct str webhook_id)
{
    for (const struct call *c = d->calls; c; c = c->next)
        if (str_eq_c(webhook_id, c->webhook_id))
            return true;
    return false;
}

#define PREFIXED_EVENT "e.id, e.at_ms, e.type, e.customer_id, e.license_id, e.object_id, e.actor, e.data"

/* The oldest delivery of the webhook that is due. Its columns: the event's, then the delivery's and the webhook's. */
static enum err webhook_look(struct delivery *d, const char *webhook_id, int64_t now_ms, struct error *reterr)
{
    struct store_stmt *st = NULL;
    bool row = false;
    enum err err = store_query(d->store, &st, reterr,
                               "SELECT " PREFIXED_EVENT ", d.id, d.created_at, d.attempts, w.url, w.secret_sealed, w.vendor_id, w.failures, w.failing_since"
                               " FROM webhook_deliveries d JOIN webhooks w ON w.id=d.webhook_id JOIN events e ON e.id=d.event_id"
                               " WHERE d.webhook_id=? AND d.status='pending' AND d.next_attempt_ms<=? ORDER BY d.event_id LIMIT 1",
                               "zi", webhook_id, now_ms);
    if (!err)
        err = store_step(st, &row, reterr);
    if (!err && row) {
        const int at = EVENTLOG_COLUMNS_N;
        struct call *c = NEW(struct call);
        struct jv *event = eventlog_print(st);
        struct strbuf aad = {0};
        char *secret = NULL, *url = str_dup(store_col_str(st, at + 3));
        size_t secret_n = 0;
        c->d = d;
        c->webhook_id = mem_strdup(webhook_id);
        c->id = str_dup(store_col_str(st, at));
        c->created_at = store_col_int(st, at + 1);
        c->attempts = store_col_int(st, at + 2);
        c->vendor_id = str_dup(store_col_str(st, at + 5));
        c->failures = store_col_int(st, at + 6);
        c->failing_since = store_col_int(st, at + 7);
        sb_addf(&aad, "%s|secret", webhook_id);
        if (keyring_unseal(d->admin->keys, sb_str(&aad), store_col_str(st, at + 4), &secret, &secret_n)) {
            mem_free(url);
            url = NULL;
        }
        call_start(d, c, url, event, jv_get_str(event, "type"), secret ? (struct str){secret, secret_n} : S(""));
        if (secret)
            mem_free_secret(secret, secret_n);
        mem_free(url);
        sb_free(&aad);
        jv_free(event);
    }
    store_done(&st);
    return err;
}

static enum err deliveries_look(struct delivery *d, struct error *reterr)
{
    struct store_stmt *st = NULL;
    struct jv *due = jv_array();
    int64_t now_ms = clock_now_ms();
    bool row = true;
    enum err err = store_query(d->store, &st, reterr,
                               "SELECT id FROM webhooks w WHERE enabled=1 AND rest_until_ms<=?1 AND EXISTS (SELECT 1 FROM webhook_deliveries d"
                               " WHERE d.webhook_id=w.id AND d.status='pending' AND d.next_attempt_ms<=?1) ORDER BY last_success_at, id",
                               "i", now_ms);
    while (!err) {
        err = store_step(st, &row, reterr);
        if (err || !row)
            break;
        if (!is_called(d, store_col_str(st, 0)))
            jv_push(due, jv_string(store_col_str(st, 0)));
    }
    store_done(&st);
    for (size_t i = 0; !err && i < jv_len(due) && d->n_calls < CALLS_AT_ONCE; i++)
        err = webhook_look(d, jv_str(jv_at(due, i)).p, now_ms, reterr);
    jv_free(due);
    return err;
}

struct hand_out {
    struct delivery *d;
    unsigned n;
};

static enum err hand_out_write(struct store *s, void *arg, struct error *reterr)
{
    static unsigned long long logged; /* the writer's */
    struct hand_out *h = arg;
    enum err err = delivery_hand_out(h->d->admin, s, clock_now_ms(), &h->n, reterr);
    if (err)
        log_limited(&logged, 10000, LOG_LEVEL_WARN, "delivery: events cannot be handed out: %s", reterr->text);
    return err;
}

static void on_handed_out(void *arg)
{
    struct hand_out *h = arg;
    struct delivery *d = h->d;
    d->writes--;
    d->handing_out = false;
    if (h->n && d->admin->mail)
        mail_poke(d->admin->mail);
    tick_soon(d, h->n ? 0 : TICK_MS);
    mem_free(h);
}

static void hand_out_done(void *arg, enum err err)
{
    struct hand_out *h = arg;
    if (err)
        h->n = 0;
    loop_post(h->d->loop, on_handed_out, h);
}

static enum err events_look(struct delivery *d, struct error *reterr)
{
    struct store_stmt *st = NULL;
    bool row = false;
    int64_t cursor = 0;
    enum err err = d->handing_out ? ERR_OK : cursor_read(d->store, &cursor, reterr);
    if (err || d->handing_out)
        return err;
    err = store_query(d->store, &st, reterr, "SELECT 1 FROM events WHERE id>? LIMIT 1", "i", cursor);
    if (!err)
        err = store_step(st, &row, reterr);
    store_done(&st);
    if (err || !row)
        return err;
    struct hand_out *h = NEW(struct hand_out);
    h->d = d;
    if (db_post(d->admin->writer, DB_TRANSACTION, hand_out_write, h, hand_out_done)) {
        mem_free(h);
        return ERR_OK; /* no room: the next tick */
    }
    d->handing_out = true;
    d->writes++;
    return ERR_OK;
}

static void on_tick(void *ctx)
{
    struct delivery *d = ctx;
    struct error error = {0};
    timer_set(d->tick, TICK_MS);
    enum err err = d->store ? ERR_OK : store_open(d->admin->cfg->store.url, true, &d->store, &error);
    if (!err)
        err = events_look(d, &error);
    if (!err)
        err = deliveries_look(d, &error);
    if (err)
        log_limited(&d->logged, 10000, LOG_LEVEL_WARN, "delivery: %s; trying again", error.text[0] ? error.text : err_text(err));
}

static void on_poke(void *arg)
{
    struct delivery *d = arg;
    atomic_store(&d->is_poked, false);
    if (!d->handing_out)
        tick_soon(d, POKE_MS);
}

void delivery_poke(struct delivery *d)
{
    if (!atomic_exchange(&d->is_poked, true))
        loop_post(d->loop, on_poke, d);
}

/* ---- life -------------------------------------------------------------------------------------------------------------------- */

static void *delivery_main(void *arg)
{
    struct delivery *d = arg;
    loop_run(d->loop);
    return NULL;
}

static void on_stop_check(void *ctx)
{
    struct delivery *d = ctx;
    if (d->writes == 0)
        loop_stop(d->loop);
    else
        timer_set(d->tick, 10); /* what the writer still holds */
}

static void on_stop(void *arg)
{
    struct delivery *d = arg;
    d->stopping = true;
    timer_free(&d->tick);
    d->tick = timer_new(d->loop, on_stop_check, d);
    for (struct call *c = d->calls; c; c = c->next)
        fetch_cancel(&c->fetch); /* pending as it was */
    on_stop_check(d);
}

struct delivery *delivery_start(struct admin *a)
{
    struct delivery *d = NEW(struct delivery);
    d->admin = a;
    d->loop = loop_new();
    NEED(d->loop != NULL, "an event loop");
    d->pool = fetch_pool_new(d->loop, &LIMITS);
    d->tick = timer_new(d->loop, on_tick, d);
    timer_set(d->tick, 0);
    atomic_init(&d->is_poked, false);
    NEED((errno = pthread_create(&d->thread, NULL, delivery_main, d)) == 0, "its delivery thread");
    return d;
}

void delivery_end(struct delivery *d)
{
    if (!d || d->is_ended)
        return;
    d->is_ended = true;
    loop_post(d->loop, on_stop, d);
    pthread_join(d->thread, NULL);
}

void delivery_stop(struct delivery **pd)
{
    struct delivery *d = *pd;
    if (!d)
        return;
    *pd = NULL;
    delivery_end(d);
    while (d->calls)
        call_free(d->calls);
    timer_free(&d->tick);
    fetch_pool_free(&d->pool);
    loop_free(d->loop);
    store_close(&d->store);
    mem_free(d);
}
