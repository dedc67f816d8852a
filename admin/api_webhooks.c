/* Webhooks: where a vendor wants to be told of events, and the log of what was told. The secret is sealed in the store and shown once. */
#include <stdio.h>
#include <string.h>

#include "api_routes.h"
#include "delivery.h"
#include "eventlog.h"
#include "pullgate/clock.h"
#include "pullgate/credential.h"
#include "pullgate/fetch.h"
#include "pullgate/mem.h"

#define WEBHOOKS_MAX   50 /* of a vendor: each event is matched with each */
#define PATTERNS_MAX   50
#define SECRET_MIN     16
#define SECRET_MAX     200
#define SECRET_BYTES   32 /* of a secret that is made here */
#define URL_CHARS_MAX  2000

/* ---- schemas ------------------------------------------------------------------------------------------------------------ */

static const struct field WEBHOOK_FIELDS[] = {
    {.name = "id", .type = FIELD_STRING},
    {.name = "url", .type = FIELD_STRING},
    {.name = "events", .type = FIELD_STRINGS},
    {.name = "description", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "enabled", .type = FIELD_BOOL},
    {.name = "disabled_reason", .type = FIELD_STRING, .flags = FIELD_EMPTY, .one_of = "|gone|failing", .about = "why it was disabled by itself"},
    {.name = "failures", .type = FIELD_INT, .about = "one after another, since the last success"},
    {.name = "failing_since", .type = FIELD_TIME},
    {.name = "last_success_at", .type = FIELD_TIME},
    {.name = "created_at", .type = FIELD_TIME},
    {.name = "updated_at", .type = FIELD_TIME},
    {.name = "etag", .type = FIELD_STRING},
    {.name = "secret", .type = FIELD_SECRET, .flags = FIELD_OPTIONAL, .about = "the key of X-Pullgate-Signature; shown once, where it was made here"},
    {.name = NULL},
};
static const struct schema WEBHOOK = {"Webhook", WEBHOOK_FIELDS};
static const struct field WEBHOOK_CREATE_FIELDS[] = {
    {.name = "url", .type = FIELD_STRING, .flags = FIELD_REQUIRED, .max = URL_CHARS_MAX, .about = "https; redirects are not followed"},
    {.name = "events", .type = FIELD_STRINGS, .flags = FIELD_REQUIRED, .max = PATTERNS_MAX, .about = "license.suspended, license.*, or * for all"},
    {.name = "secret", .type = FIELD_SECRET, .min = SECRET_MIN, .max = SECRET_MAX, .about = "made and shown once when absent"},
    {.name = "description", .type = FIELD_STRING, .flags = FIELD_EMPTY, .max = 500},
    {.name = "enabled", .type = FIELD_BOOL},
    {.name = NULL},
};
static const struct schema WEBHOOK_CREATE = {"WebhookCreate", WEBHOOK_CREATE_FIELDS};
static const struct schema WEBHOOK_UPDATE = {"WebhookUpdate", WEBHOOK_CREATE_FIELDS};

static const struct field DELIVERY_FIELDS[] = {
    {.name = "id", .type = FIELD_STRING, .about = "the same in every attempt: X-Pullgate-Delivery"},
    {.name = "event_id", .type = FIELD_INT},
    {.name = "event", .type = FIELD_STRING},
    {.name = "status", .type = FIELD_STRING, .one_of = "pending|delivered|failed"},
    {.name = "attempts", .type = FIELD_INT},
    {.name = "next_attempt_at", .type = FIELD_TIME, .about = "null: no more"},
    {.name = "response_status", .type = FIELD_INT, .about = "0: no answer"},
    {.name = "error", .type = FIELD_STRING, .flags = FIELD_EMPTY, .about = "of the last attempt"},
    {.name = "duration_ms", .type = FIELD_INT},
    {.name = "created_at", .type = FIELD_TIME},
    {.name = "finished_at", .type = FIELD_TIME},
    {.name = NULL},
};
static const struct schema DELIVERY = {"Delivery", DELIVERY_FIELDS};

/* ---- reading ------------------------------------------------------------------------------------------------------------- */

#define WEBHOOK_COLUMNS                                                                                                                    \
    "id, url, events, description, enabled, disabled_reason, failures, failing_since, last_success_at, created_at, updated_at, rev"

static struct jv *webhook_print(const struct store_stmt *st)
{
    struct jv *v = jv_object();
    jv_set_str(v, "id", store_col_str(st, 0));
    jv_set_str(v, "url", store_col_str(st, 1));
    api_set_json(v, "events", store_col_str(st, 2));
    jv_set_str(v, "description", store_col_str(st, 3));
    jv_set_bool(v, "enabled", store_col_int(st, 4) != 0);
    jv_set_str(v, "disabled_reason", store_col_str(st, 5));
    jv_set_int(v, "failures", store_col_int(st, 6));
    jv_set_time(v, "failing_since", store_col_int(st, 7));
    jv_set_time(v, "last_success_at", store_col_int(st, 8));
    jv_set_time(v, "created_at", store_col_int(st, 9));
    jv_set_time(v, "updated_at", store_col_int(st, 10));
    api_print_etag(v, store_col_int(st, 11));
    return v;
}

static enum err webhook_load(struct api *rq, struct str id, struct jv **ret, int64_t *ret_rev)
{
    struct store_stmt *st = NULL;
    bool row = false;
    enum err err = store_query(rq->store, &st, &rq->error, "SELECT " WEBHOOK_COLUMNS " FROM webhooks WHERE id=? AND vendor_id=?", "sz", id, rq->vendor_id);
    if (!err)
        err = store_step(st, &row, &rq->error);
    if (!err && !row)
        err = api_not_found(rq, "webhook");
    if (!err) {
        *ret = webhook_print(st);
        if (ret_rev)
            *ret_rev = store_col_int(st, 11);
        api_set_etag(rq, store_col_int(st, 11));
    }
    store_done(&st);
    return err;
}

static enum err webhook_get(struct api *rq)
{
    return webhook_load(rq, rq->params[0], &rq->out, NULL);
}

static enum err webhook_list(struct api *rq)
{
    struct page page;
    struct store_stmt *st = NULL;
    enum err err = api_page(rq, &page);
    if (err)
        return err;
    (void)api_list(rq);
    err = store_query(rq->store, &st, &rq->error,
                      "SELECT " WEBHOOK_COLUMNS " FROM webhooks WHERE vendor_id=? AND (created_at, id) > (?,?) ORDER BY created_at, id LIMIT ?", "zizi",
                      rq->vendor_id, page.after_key, page.after_id, (int64_t)page.limit + 1);
    if (!err)
        err = api_page_rows(rq, &page, st, 9, webhook_print);
    store_done(&st);
    return err;
}

/* ---- changes ------------------------------------------------------------------------------------------------------------- */

static enum err webhook_check(struct api *rq)
{
    const struct config *cfg = admin_config(rq->admin);
    const struct jv *events = jv_get(rq->in, "events");
    struct str url = jv_get_str(rq->in, "url");
    char field[API_FIELD_MAX];
    for (size_t i = 0; i < jv_len(events); i++) {
        api_field(field, "events[%zu]", i);
        if (!eventlog_pattern_valid(jv_str(jv_at(events, i))))
            return api_fail(rq, ERR_INVALID, "invalid_field", field, "%s: expected a type such as license.suspended, license.* or *", field);
    }
    if (api_has(rq, "events") && !jv_len(events))
        return api_fail(rq, ERR_INVALID, "invalid_field", "events", "events: name one; * is all");
    if (!url.p)
        return ERR_OK;
    struct fetch_url u = {0};
    struct error error = {0};
    if (fetch_url_parse(url.p, &u, &error))
        return api_fail(rq, ERR_INVALID, "invalid_field", "url", "url: %s", error.text);
    bool is_private = delivery_host_private(cfg, str_c(u.host));
    enum err err = ERR_OK;
    if (strcmp(u.scheme, "https") != 0 && !is_private)
        err = api_fail(rq, ERR_INVALID, "invalid_field", "url", "url: https only; admin.webhook_allow_private names the hosts that http will do for");
    struct str host = str_c(u.host);
    if (host.n > 2 && host.p[0] == '[')
        host = str_sub(host, 1, host.n - 2);
    bool is_numeric = str_index(host, ':') >= 0; /* what the connection is refused for later, said at once where it shows */
    for (size_t i = 0; !is_numeric && i < host.n; i++)
        if (!((host.p[i] >= '0' && host.p[i] <= '9') || host.p[i] == '.'))
            break;
        else if (i + 1 == host.n)
            is_numeric = true;
    char *numeric = str_dup(host);
    if (!err && !is_private && ((is_numeric && !fetch_address_public(numeric)) || str_eq_nocase(host, S("localhost"))))
        err = api_fail(rq, ERR_INVALID, "private_address", "url", "url: the address is private or reserved; admin.webhook_allow_private names those that may be");
    mem_free(numeric);
    fetch_url_free(&u);
    return err;
}

static enum err secret_seal(struct api *rq, const char *id, struct str secret, struct strbuf *ret)
{
    struct strbuf aad = {0};
    sb_addf(&aad, "%s|secret", id);
    enum err err = keyring_seal(rq->admin->keys, sb_str(&aad), secret, ret, &rq->error);
    sb_free(&aad);
    return err;
}

static enum err webhook_room(struct api *rq)
{
    struct strbuf n = {0};
    bool found = false;
    uint64_t count = 0;
    enum err err = api_lookup(rq, "SELECT COUNT(*) FROM webhooks WHERE vendor_id=?", str_c(rq->vendor_id), &n, &found);
    if (!err && str_to_u64(sb_str(&n), &count) && count >= WEBHOOKS_MAX)
        err = api_fail(rq, ERR_CONFLICT, "too_many_webhooks", NULL, "a vendor has at most %d webhooks", WEBHOOKS_MAX);
    sb_free(&n);
    return err;
}

static enum err webhook_create(struct api *rq)
{
    struct strbuf events = {0}, sealed = {0}, made = {0};
    struct str given = jv_get_str(rq->in, "secret"), description = jv_get_str(rq->in, "description");
    char id[ID_MAX];
    enum err err = webhook_check(rq);
    if (!err)
        err = webhook_room(rq);
    if (err)
        return err;
    if (!given.p) {
        uint8_t bytes[SECRET_BYTES];
        seal_random(bytes, sizeof bytes);
        sb_addc(&made, "whsec_");
        base64url_encode((struct str){(const char *)bytes, sizeof bytes}, &made);
        mem_cleanse(bytes, sizeof bytes);
    }
    id_new("whk_", id);
    jv_dump(jv_get(rq->in, "events"), &events);
    err = secret_seal(rq, id, given.p ? given : sb_str(&made), &sealed);
    if (!err)
        err = store_exec(rq->store, NULL, &rq->error,
                         "INSERT INTO webhooks (id, vendor_id, url, events, secret_sealed, description, enabled, after_event, created_at, updated_at)"
                         " VALUES (?,?,?,?,?,?,?,(SELECT COALESCE(MAX(id),0) FROM events),?,?)",
                         "zzssssbii", id, rq->vendor_id, jv_get_str(rq->in, "url"), sb_str(&events), sb_str(&sealed), description.p ? description : S(""),
                         jv_get_bool(rq->in, "enabled", true), rq->now_s, rq->now_s);
    if (!err)
        err = webhook_load(rq, str_c(id), &rq->out, NULL);
    if (!err) {
        rq->after = jv_copy(rq->out);
        if (made.n)
            jv_set_str(rq->out, "secret", sb_str(&made));
        api_created(rq, "/api/v1/webhooks/", id);
    }
    if (made.p)
        mem_cleanse(made.p, made.n);
    sb_free(&made);
    sb_free(&sealed);
    sb_free(&events);
    return err;
}

static enum err webhook_update(struct api *rq)
{
    struct strbuf events = {0}, sealed = {0};
    int64_t rev = 0;
    struct str secret = jv_get_str(rq->in, "secret");
    enum err err = webhook_load(rq, rq->params[0], &rq->before, &rev);
    if (!err)
        err = api_check_etag(rq, rev);
    if (!err)
        err = webhook_check(rq);
    if (!err && secret.p)
        err = secret_seal(rq, jv_get_c(rq->before, "id", ""), secret, &sealed);
    bool was = jv_get_bool(rq->before, "enabled", false), is = jv_get_bool(rq->in, "enabled", was);
    /* What was disabled begins anew: with the events from now on, and what was pending then. */
    if (!err)
        err = store_exec(rq->store, NULL, &rq->error,
                         "UPDATE webhooks SET url=COALESCE(?,url), events=COALESCE(?,events), secret_sealed=COALESCE(?,secret_sealed),"
                         " description=COALESCE(?,description), enabled=?, disabled_reason=CASE WHEN ?5 THEN '' ELSE disabled_reason END, rest_until_ms=0,"
                         " failures=CASE WHEN ?6 THEN 0 ELSE failures END, failing_since=CASE WHEN ?6 THEN 0 ELSE failing_since END,"
                         " updated_at=?7, rev=rev+1 WHERE id=?8",
                         "ssssbbis", jv_get_str(rq->in, "url"), api_in_json(rq, "events", &events), sealed.n ? sb_str(&sealed) : (struct str){NULL, 0},
                         jv_get_str(rq->in, "description"), is, is && !was, rq->now_s, rq->params[0]);
    if (!err)
        err = webhook_load(rq, rq->params[0], &rq->out, NULL);
    if (!err)
        rq->after = jv_copy(rq->out);
    sb_free(&events);
    sb_free(&sealed);
    return err;
}

static enum err webhook_delete(struct api *rq)
{
    int64_t rev = 0;
    enum err err = webhook_load(rq, rq->params[0], &rq->before, &rev);
    if (!err)
        err = api_check_etag(rq, rev);
    return err ? err : store_exec(rq->store, NULL, &rq->error, "DELETE FROM webhooks WHERE id=?", "s", rq->params[0]);
}

/* ---- deliveries ---------------------------------------------------------------------------------------------------------- */

#define DELIVERY_COLUMNS "id, event_id, event_type, status, attempts, next_attempt_ms, response_status, error, duration_ms, created_at, finished_at"

static struct jv *delivery_print(const struct store_stmt *st)
{
    struct jv *v = jv_object();
    bool is_pending = str_eq(store_col_str(st, 3), S("pending"));
    jv_set_str(v, "id", store_col_str(st, 0));
    jv_set_int(v, "event_id", store_col_int(st, 1));
    jv_set_str(v, "event", store_col_str(st, 2));
    jv_set_str(v, "status", store_col_str(st, 3));
    jv_set_int(v, "attempts", store_col_int(st, 4));
    jv_set_time(v, "next_attempt_at", is_pending ? store_col_int(st, 5) / 1000 : 0);
    jv_set_int(v, "response_status", store_col_int(st, 6));
    jv_set_str(v, "error", store_col_str(st, 7));
    jv_set_int(v, "duration_ms", store_col_int(st, 8));
    jv_set_time(v, "created_at", store_col_int(st, 9));
    jv_set_time(v, "finished_at", store_col_int(st, 10));
    return v;
}

static enum err delivery_load(struct api *rq, struct str webhook_id, struct str id, struct jv **ret)
{
    struct store_stmt *st = NULL;
    bool row = false;
    enum err err =
        store_query(rq->store, &st, &rq->error, "SELECT " DELIVERY_COLUMNS " FROM webhook_deliveries WHERE id=? AND webhook_id=?", "ss", id, webhook_id);
    if (!err)
        err = store_step(st, &row, &rq->error);
    if (!err && !row)
        err = api_not_found(rq, "delivery");
    if (!err)
        *ret = delivery_print(st);
    store_done(&st);
    return err;
}

static enum err delivery_list(struct api *rq)
{
    struct page page;
    struct store_stmt *st = NULL;
    struct strbuf status = {0};
    struct jv *webhook = NULL;
    uint64_t before = 0;
    bool row;
    enum err err = api_page(rq, &page);
    if (!err)
        err = webhook_load(rq, rq->params[0], &webhook, NULL);
    jv_free(webhook);
    if (err)
        return err;
    MEM_FREE(rq->etag); /* the webhook's */
    api_query(rq, "status", &status);
    if (!page.has_cursor || !str_to_u64(str_c(page.after_id), &before) || before > INT64_MAX)
        before = INT64_MAX;
    struct jv *items = api_list(rq);
    err = store_query(rq->store, &st, &rq->error,
                      "SELECT " DELIVERY_COLUMNS
                      " FROM webhook_deliveries WHERE webhook_id=?1 AND event_id<?2 AND (?3='' OR status=?3) ORDER BY event_id DESC LIMIT ?4",
                      "sisi", rq->params[0], (int64_t)before, sb_str(&status), (int64_t)page.limit + 1);
    while (!err) {
        char text[24];
        err = store_step(st, &row, &rq->error);
        if (err || !row)
            break;
        snprintf(text, sizeof text, "%lld", (long long)store_col_int(st, 1));
        if (!api_page_take(&page, rq->out, 0, text))
            break;
        jv_push(items, delivery_print(st));
    }
    store_done(&st);
    sb_free(&status);
    return err;
}

static enum err delivery_again(struct api *rq)
{
    struct jv *webhook = NULL;
    enum err err = webhook_load(rq, rq->params[0], &webhook, NULL);
    jv_free(webhook);
    if (!err)
        err = delivery_load(rq, rq->params[0], rq->params[1], &rq->before);
    MEM_FREE(rq->etag);
    /* Under the same id, so that a receiver that has it can tell. It has the whole time again. */
    if (!err)
        err = store_exec(rq->store, NULL, &rq->error,
                         "UPDATE webhook_deliveries SET status='pending', attempts=0, next_attempt_ms=0, created_at=?, finished_at=0 WHERE id=?", "is", rq->now_s,
                         rq->params[1]);
    if (!err)
        err = store_exec(rq->store, NULL, &rq->error, "UPDATE webhooks SET rest_until_ms=0 WHERE id=?", "s", rq->params[0]);
    if (!err)
        err = delivery_load(rq, rq->params[0], rq->params[1], &rq->out);
    if (!err)
        rq->after = jv_copy(rq->out);
    return err;
}

/* An event for this webhook alone, also a disabled one's pending. */
static enum err webhook_test(struct api *rq)
{
    char id[ID_MAX];
    struct jv *webhook = NULL, *data = jv_object();
    jv_set_c(data, "message", "a test");
    enum err err = webhook_load(rq, rq->params[0], &webhook, NULL);
    if (!err && !jv_get_bool(webhook, "enabled", false))
        err = api_fail(rq, ERR_CONFLICT, "webhook_disabled", NULL, "the webhook is disabled");
    MEM_FREE(rq->etag);
    if (!err) {
        const struct event_record event = {.vendor_id = rq->vendor_id, .type = "webhook.test", .actor = rq->actor,
                                           .object_id = jv_get_c(webhook, "id", ""), .data = data};
        err = eventlog_put(rq->store, &event, &rq->error);
    }
    id_new("dlv_", id);
    if (!err)
        err = store_exec(rq->store, NULL, &rq->error,
                         "INSERT INTO webhook_deliveries (id, webhook_id, event_id, event_type, next_attempt_ms, created_at) VALUES (?,?,?,'webhook.test',0,?)",
                         "zsii", id, rq->params[0], store_last_rowid(rq->store), rq->now_s);
    if (!err)
        err = store_exec(rq->store, NULL, &rq->error, "UPDATE webhooks SET rest_until_ms=0 WHERE id=?", "s", rq->params[0]);
    if (!err)
        err = delivery_load(rq, rq->params[0], str_c(id), &rq->out);
    jv_free(webhook);
    jv_free(data);
    return err;
}

static enum err delivery_get(struct api *rq)
{
    struct jv *webhook = NULL;
    enum err err = webhook_load(rq, rq->params[0], &webhook, NULL);
    jv_free(webhook);
    MEM_FREE(rq->etag);
    return err ? err : delivery_load(rq, rq->params[0], rq->params[1], &rq->out);
}

static const struct query_param DELIVERY_PARAMS[] = {{"status", "pending, delivered or failed"}, {NULL, NULL}};

#define WHK "/api/v1/webhooks"
const struct route WEBHOOK_ROUTES[] = {
    {HEAD_GET, WHK, webhook_list, ROLE_ADMIN, ROUTE_LIST, NULL, &WEBHOOK, NULL, "webhook.list", "Webhooks"},
    {HEAD_POST, WHK, webhook_create, ROLE_ADMIN, 0, &WEBHOOK_CREATE, &WEBHOOK, NULL, "webhook.create", "Make a webhook; its secret is shown once"},
    {HEAD_GET, WHK "/{id}", webhook_get, ROLE_ADMIN, 0, NULL, &WEBHOOK, NULL, "webhook.get", "One webhook"},
    {HEAD_PATCH, WHK "/{id}", webhook_update, ROLE_ADMIN, 0, &WEBHOOK_UPDATE, &WEBHOOK, NULL, "webhook.update", "Change a webhook"},
    {HEAD_DELETE, WHK "/{id}", webhook_delete, ROLE_ADMIN, 0, NULL, NULL, NULL, "webhook.delete", "Remove a webhook and its log"},
    {HEAD_POST, WHK "/{id}/test", webhook_test, ROLE_ADMIN, ROUTE_ACTION, NULL, &DELIVERY, NULL, "webhook.test", "Send an event webhook.test"},
    {HEAD_GET, WHK "/{id}/deliveries", delivery_list, ROLE_ADMIN, ROUTE_LIST, NULL, &DELIVERY, DELIVERY_PARAMS, "webhook.deliveries",
     "What it was told, newest first"},
    {HEAD_GET, WHK "/{id}/deliveries/{delivery_id}", delivery_get, ROLE_ADMIN, 0, NULL, &DELIVERY, NULL, "webhook.delivery", "One delivery"},
    {HEAD_POST, WHK "/{id}/deliveries/{delivery_id}/redeliver", delivery_again, ROLE_ADMIN, ROUTE_ACTION, NULL, &DELIVERY, NULL, "webhook.redeliver",
     "Tell it again"},
    {.path = NULL},
};
