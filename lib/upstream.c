/* The registry client: one table of "what an answer means", the Bearer dance with its realm pinned, redirects on fresh handles
 * without credentials, retries before the first byte, a breaker, and the quirks of FACTS 6.3, over fetch.
 *
 * Where credentials go: user name and password to the upstream's own scheme, host and port, or to a realm that is there or that
 * the operator named; a token to the upstream only. Everything else gets neither. Whatever an upstream sends is parsed or dropped;
 * nothing of it is shown to a customer, and `detail` is for the log.
 *
 * An operation is a loop of: op_send() -> on_head() classifies into an enum act -> on_done() acts. It ends in op_end(), once. */
#include "pullgate/upstream.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pullgate/clock.h"
#include "pullgate/field.h"
#include "pullgate/jv.h"
#include "pullgate/log.h"
#include "pullgate/mem.h"
#include "pullgate/seal.h"
#include "pullgate/slots.h"
#include "pullgate/tokenshare.h"

#define UPSTREAM_MAGIC 0x55505354u
#define OP_MAGIC 0x55504f50u
#define HOPS_MAX 3u                       /* redirects of one request: SECURITY 4.6 */
#define DISCARD_MAX (64u * 1024)          /* of an answer nobody reads: so much is cheaper than a connection */
#define META_TOTAL_MS 60000u              /* a manifest, a page of tags, a token: whole within this */
#define REFERRERS_BYTES (4u * 1024 * 1024)
#define TOKEN_BYTES (64u * 1024)          /* of a token answer */
#define TOKEN_TEXT_MAX (16u * 1024)       /* of a token: it has to fit in a request head */
#define TOKENS_MAX 1024u                  /* scopes held per upstream */
#define TOKEN_LIFE_DEFAULT_S 60           /* distribution token spec: when expires_in is absent */
#define TOKEN_LIFE_MAX_S 3600
#define TOKEN_MARGIN_MS 30000u            /* renewed so long before its end, or a quarter of its life before */
#define REFUSALS_MAX 3u                   /* 401s of one operation */
#define TOKEN_REFUSED_MS 2000u            /* a refusal of the realm is remembered so long: many tries lock an account */
#define META_FEW 4u                       /* connections for manifests at least, where that is no more than a quarter of all */
#define TURN_MS 15000u                    /* for a connection to come free, where first_byte_ms says nothing */
#define RETRY_AFTER_CROWDED_S 2u
#define BACKOFF_FIRST_MS 50u              /* then four times as long each */
#define TAG_PAGES_MAX 1000u
#define TAG_TOKENS_MAX 2000000u           /* JSON values of one page of tags */

enum auth { AUTH_UNKNOWN, AUTH_BASIC, AUTH_BEARER }; /* what the upstream wants, as far as it has said */

struct token {
    struct token *next;
    char *scope; /* "" : none */
    char *alias; /* the scope that the upstream asks for instead, once it has said so */
    char *value; /* NULL: not had yet */
    uint64_t refused_until_ms;
    uint64_t use_until_ms, used_ms;
    uint64_t serial;
    struct upstream *u;
    struct fetch *f;
    struct timer *retry;
    unsigned tries;
    uint64_t asked_ms;
    int status;
    unsigned retry_after_s;
    struct strbuf body;
    struct upstream_op *waiters;
};

struct upstream {
    unsigned magic, refs;
    struct loop *loop;
    struct upstream_spec *spec;
    struct upstream_limits lim;
    char scheme[8], host[256], *prefix; /* prefix: "" or "/path", no slash at the end */
    unsigned port;
    struct fetch_pool *meta, *blobs; /* to the upstream's own host: together no more than lim.fetch.connections */
    struct fetch_pool *hops, *auth;  /* to other hosts, by redirects and of realms: never carry a password further */
    struct slots *meta_slots, *blob_slots;  /* curl would queue without bound and by age alone */
    enum auth auth_mode;
    char *realm, *service; /* of the last challenge that was believed */
    struct token *tokens;
    size_t n_tokens;
    uint64_t token_serial;
    unsigned failures; /* consecutive */
    uint64_t failed_path; /* hash; of the last one that was answered */
    uint64_t open_until_ms;
    struct upstream_op *probe; /* the one that may try while the breaker is half open */
};

enum kind { OP_MANIFEST, OP_TAGS, OP_REFERRERS, OP_BLOB, OP_PING };

/* What the answer whose head has come means; carried out when it is over. */
enum act { ACT_NONE, ACT_DELIVER, ACT_CHALLENGED, ACT_BASIC_TRY, ACT_REDIRECT, ACT_AS_GET, ACT_RETRY, ACT_FAIL };

struct upstream_op {
    unsigned magic;
    struct upstream *u;
    enum kind kind;
    union {
        upstream_manifest_cb *manifest;
        upstream_tags_cb *tags;
        upstream_referrers_cb *referrers;
        struct upstream_blob_handlers blob;
        upstream_ping_cb *ping;
    } cb;
    void *ctx;

    char *path;  /* from '/' on, with the prefix and any query */
    char *scope; /* what a token must be good for; "" none */
    struct str repository; /* inside scope */
    bool head;
    bool has_range;
    struct byte_range range;
    bool by_digest;
    struct digest digest;

    struct slot slot;
    uint64_t owner;
    struct fetch *f;
    struct timer *timer;
    struct token *token; /* waited for */
    struct upstream_op *wait_next, **wait_at;

    unsigned tries;
    enum auth sent;
    bool basic_tried, renewed;
    unsigned refusals;
    uint64_t sent_serial;

    unsigned hops;
    char *hop_url; /* NULL: the upstream itself */
    bool hop_own, hop_auth, hop_private;

    /* of the answer at hand */
    enum act act;
    int status;
    int64_t length;
    struct strbuf body;
    size_t body_max;
    bool discard;
    size_t discarded;
    char *location, *next_page, *content_type;
    struct challenge *challenges;
    size_t n_challenges;
    bool has_header_digest, bad_header_digest;
    struct digest header_digest;
    struct byte_range got_range;
    uint64_t got_total;
    bool head_given;

    /* of all pages of tags */
    struct strbuf tags; /* each NUL-terminated */
    size_t n_tags, tag_bytes;
    unsigned pages;

    enum err err;
    char detail[320];
    unsigned retry_after_s;

    unsigned busy; /* a handler of the caller is on the stack */
    bool dead, ended;
};

static struct upstream_op *op_of(void *p)
{
    struct upstream_op *op = p;
    AN(op->magic == OP_MAGIC);
    return op;
}

static void op_send(struct upstream_op *op);
static void op_fail(struct upstream_op *op, enum err err, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* ---- the specification -------------------------------------------------------------------------------------------- */

static void free_secret_text(char *s)
{
    if (s)
        mem_free_secret(s, strlen(s));
}

void upstream_spec_free(struct upstream_spec **ps)
{
    struct upstream_spec *s = *ps;
    if (!s)
        return;
    *ps = NULL;
    mem_free(s->id);
    mem_free(s->url);
    free_secret_text(s->username);
    free_secret_text(s->password);
    mem_free(s->ca_pem);
    for (char **h = s->redirect_hosts; h && *h; h++)
        mem_free(*h);
    mem_free(s->redirect_hosts);
    mem_free(s->realm);
    mem_free(s);
}

struct upstream_spec *upstream_spec_copy(const struct upstream_spec *s)
{
    struct upstream_spec *c = NEW(struct upstream_spec);
    size_t n = 0;
    c->id = mem_strdup(s->id);
    c->url = mem_strdup(s->url);
    c->username = mem_strdup(s->username);
    c->password = mem_strdup(s->password);
    c->ca_pem = mem_strdup(s->ca_pem);
    c->realm = mem_strdup(s->realm);
    c->redirects_pass = s->redirects_pass;
    while (s->redirect_hosts && s->redirect_hosts[n])
        n++;
    c->redirect_hosts = mem_calloc(n + 1, sizeof *c->redirect_hosts);
    for (size_t i = 0; i < n; i++)
        c->redirect_hosts[i] = mem_strdup(s->redirect_hosts[i]);
    return c;
}

static enum err base_url_parse(const char *url, struct fetch_url *ret, struct error *reterr)
{
    struct fetch_url u;
    struct error e = {0};
    if (fetch_url_parse(url, &u, &e) != ERR_OK)
        return error_set_field(reterr, ERR_INVALID, "url", "%s", e.text);
    if (strchr(url, '?') || strchr(url, '#') || strstr(u.path_query, "/../") || strstr(u.path_query, "//")) {
        fetch_url_free(&u);
        return error_set_field(reterr, ERR_INVALID, "url", "the URL of an upstream is scheme, host, port and at most a plain path");
    }
    *ret = u;
    return ERR_OK;
}

enum err upstream_spec_parse(const struct jv *doc, const struct keyring *k, struct upstream_spec **ret, struct error *reterr)
{
    if (jv_type(doc) != JV_OBJECT)
        return error_set(reterr, ERR_INVALID, "an upstream is a JSON object");
    const char *id = jv_get_c(doc, "id", ""), *url = jv_get_c(doc, "url", "");
    const char *redirects = jv_get_c(doc, "redirects", "follow");
    struct str sealed = jv_get_str(doc, "password_sealed");
    struct jv *hosts = jv_get(doc, "redirect_hosts");
    struct fetch_url u;
    if (!*id)
        return error_set_field(reterr, ERR_INVALID, "id", "the upstream has no id");
    enum err err = base_url_parse(url, &u, reterr);
    if (err)
        return err;
    fetch_url_free(&u);
    bool pass = strcmp(redirects, "pass") == 0;
    if (!pass && strcmp(redirects, "follow") != 0)
        return error_set_field(reterr, ERR_INVALID, "redirects", "redirects is \"follow\" or \"pass\"");

    struct upstream_spec *s = NEW(struct upstream_spec);
    s->id = mem_strdup(id);
    s->url = mem_strdup(url);
    s->username = mem_strdup(jv_get_c(doc, "username", ""));
    s->ca_pem = mem_strdup(jv_get_c(doc, "ca", ""));
    s->realm = mem_strdup(jv_get_c(doc, "realm", ""));
    s->redirects_pass = pass;
    s->redirect_hosts = mem_calloc(jv_len(hosts) + 1, sizeof *s->redirect_hosts);
    for (size_t i = 0, n = 0; i < jv_len(hosts); i++) {
        struct str h = jv_str(jv_at(hosts, i));
        if (h.n)
            s->redirect_hosts[n++] = str_dup(h);
    }
    if (sealed.n) {
        struct strbuf aad = {0};
        char *plain = NULL;
        size_t n = 0;
        sb_addf(&aad, "%s|password", id);
        err = keyring_unseal(k, sb_str(&aad), sealed, &plain, &n);
        sb_free(&aad);
        if (err || strlen(plain) != n) {
            if (!err)
                mem_free_secret(plain, n);
            upstream_spec_free(&s);
            return error_set_field(reterr, ERR_INTERNAL, "password_sealed", "the password of upstream %s cannot be unsealed with this seal.key", id);
        }
        s->password = mem_strndup(plain, n);
        mem_free_secret(plain, n);
    } else {
        s->password = mem_strdup("");
    }
    *ret = s;
    return ERR_OK;
}

/* ---- which hosts may be talked to ---------------------------------------------------------------------------------- */

static bool is_own(const struct upstream *u, const struct fetch_url *url)
{
    return strcmp(u->scheme, url->scheme) == 0 && strcmp(u->host, url->host) == 0 && u->port == url->port;
}

/* One entry that an operator wrote against a URL: "host", "host:port", "https://host[:port][/path]", "*.domain".
 * *ret_named: the host itself was named, so that its address may be a private one. */
static bool entry_matches(const char *entry, const struct fetch_url *url, bool *ret_named)
{
    struct str e = str_trim(str_c(entry)), host = str_c(url->host);
    *ret_named = true;
    if (!e.n)
        return false;
    if (strstr(entry, "://")) {
        struct fetch_url want;
        if (fetch_url_parse(entry, &want, NULL) != ERR_OK)
            return false;
        struct str path = str_c(want.path_query), has = str_c(url->path_query);
        bool ok = strcmp(want.scheme, url->scheme) == 0 && strcmp(want.host, url->host) == 0 && want.port == url->port && str_starts(has, path);
        if (ok && path.p[path.n - 1] != '/' && has.n > path.n)
            ok = has.p[path.n] == '/' || has.p[path.n] == '?';
        fetch_url_free(&want);
        return ok;
    }
    if (str_starts(e, S("*."))) {
        struct str suffix = str_skip(e, 1);
        *ret_named = false;
        return suffix.n > 1 && host.n > suffix.n && str_eq_nocase(str_skip(host, host.n - suffix.n), suffix);
    }
    if (str_eq_nocase(e, host))
        return true;
    ptrdiff_t colon = str_rindex(e, ':');
    uint64_t port;
    return colon > 0 && str_eq_nocase(str_sub(e, 0, (size_t)colon), host) && str_to_u64(str_skip(e, (size_t)colon + 1), &port) &&
           port == url->port;
}

/* May this URL be fetched as a redirect's target? Never from https down to http. */
static bool redirect_allowed(const struct upstream *u, const struct fetch_url *url, bool *ret_own, bool *ret_named)
{
    *ret_own = is_own(u, url);
    *ret_named = *ret_own;
    if (*ret_own)
        return true;
    if (strcmp(u->scheme, "https") == 0 && strcmp(url->scheme, "https") != 0)
        return false;
    for (char **h = u->spec->redirect_hosts; h && *h; h++)
        if (entry_matches(*h, url, ret_named))
            return true;
    return false;
}

static bool realm_allowed(const struct upstream *u, const struct fetch_url *url, bool *ret_named)
{
    *ret_named = true;
    if (strcmp(u->scheme, "https") == 0 && strcmp(url->scheme, "https") != 0)
        return false;
    return is_own(u, url) || (*u->spec->realm && entry_matches(u->spec->realm, url, ret_named));
}

static void base_url_add(const struct upstream *u, struct strbuf *b)
{
    sb_addf(b, "%s://%s:%u", u->scheme, u->host, u->port);
}

/* ---- the upstream --------------------------------------------------------------------------------------------------- */

/* One writer, whoever reads sees each whole. */
static void count_up(uint64_t *n)
{
    __atomic_store_n(n, __atomic_load_n(n, __ATOMIC_RELAXED) + 1, __ATOMIC_RELAXED);
}

static void breaker_tell(const struct upstream *u, bool open)
{
    if (u->lim.counters)
        __atomic_store_n(&u->lim.counters->is_open, (uint64_t)open, __ATOMIC_RELAXED);
}

static uint64_t meta_part(uint64_t n)
{
    uint64_t few = n / 4 < META_FEW ? n / 4 : META_FEW, part = n / 8 > few ? n / 8 : few;
    return part ? part : 1;
}

static struct fetch_pool *pool_new(const struct upstream *u, uint64_t connections, bool meta)
{
    struct fetch_limits lim = u->lim.fetch;
    lim.connections = connections ? connections : 1;
    if (meta && (!lim.total_ms || lim.total_ms > META_TOTAL_MS))
        lim.total_ms = META_TOTAL_MS;
    return fetch_pool_new(u->loop, &lim);
}

struct upstream *upstream_new(struct loop *l, struct upstream_spec *take_spec, const struct upstream_limits *lim)
{
    struct upstream *u = NEW(struct upstream);
    struct fetch_url url = {0};
    u->magic = UPSTREAM_MAGIC;
    u->refs = 1;
    u->loop = l;
    u->spec = take_spec;
    u->lim = *lim;
    breaker_tell(u, false);
    if (!u->lim.manifest_bytes)
        u->lim.manifest_bytes = 4u * 1024 * 1024;
    if (!u->lim.tags_bytes)
        u->lim.tags_bytes = 16u * 1024 * 1024;
    if (!u->lim.breaker_failures)
        u->lim.breaker_failures = 5;
    if (!u->lim.breaker_ms)
        u->lim.breaker_ms = 1000;
    if (!u->lim.fetch.connections)
        u->lim.fetch.connections = 128;
    if (base_url_parse(take_spec->url, &url, NULL) == ERR_OK) {
        memcpy(u->scheme, url.scheme, sizeof u->scheme);
        memcpy(u->host, url.host, sizeof u->host);
        u->port = url.port;
        struct str prefix = str_c(url.path_query);
        while (prefix.n && prefix.p[prefix.n - 1] == '/')
            prefix.n--;
        u->prefix = str_dup(prefix);
        fetch_url_free(&url);
    } else {
        u->prefix = mem_strdup(""); /* no host: every operation fails with a sentence */
    }
    /* Blobs to slow clients hold their connections for hours: manifests and tokens must not queue behind them. */
    uint64_t n = u->lim.fetch.connections, meta = meta_part(n);
    u->meta_slots = slots_new(meta, u->lim.queue);
    u->blob_slots = slots_new(n > meta ? n - meta : 1, u->lim.queue);
    u->meta = pool_new(u, meta, true);
    u->blobs = pool_new(u, n - meta, false);
    u->hops = pool_new(u, n, false);
    u->auth = pool_new(u, meta, true);
    return u;
}

struct upstream *upstream_ref(struct upstream *u)
{
    AN(u->magic == UPSTREAM_MAGIC && u->refs);
    u->refs++;
    return u;
}

static void token_free(struct token *t)
{
    AN(!t->waiters);
    fetch_cancel(&t->f);
    timer_free(&t->retry);
    free_secret_text(t->value);
    mem_free(t->scope);
    mem_free(t->alias);
    if (t->body.p)
        mem_cleanse(t->body.p, t->body.n);
    sb_free(&t->body);
    mem_free(t);
}

static void token_value_drop(struct token *t)
{
    free_secret_text(t->value);
    t->value = NULL;
}

static void tokens_drop(struct upstream *u)
{
    for (struct token *t = u->tokens; t; t = t->next)
        token_value_drop(t);
}

void upstream_unref(struct upstream **pu)
{
    struct upstream *u = *pu;
    *pu = NULL;
    if (!u)
        return;
    AN(u->magic == UPSTREAM_MAGIC && u->refs);
    if (--u->refs)
        return;
    while (u->tokens) {
        struct token *t = u->tokens;
        u->tokens = t->next;
        token_free(t);
    }
    fetch_pool_free(&u->meta);
    fetch_pool_free(&u->blobs);
    fetch_pool_free(&u->hops);
    fetch_pool_free(&u->auth);
    slots_free(&u->meta_slots);
    slots_free(&u->blob_slots);
    upstream_spec_free(&u->spec);
    mem_free(u->prefix);
    mem_free(u->realm);
    mem_free(u->service);
    u->magic = 0;
    mem_free(u);
}

bool upstream_healthy(const struct upstream *u)
{
    return u->failures < u->lim.breaker_failures;
}

static void breaker_ok(struct upstream *u)
{
    if (u->failures >= u->lim.breaker_failures)
        breaker_tell(u, false);
    if (u->failures >= u->lim.breaker_failures)
        log_info("upstream %s answers again", u->spec->id);
    u->failures = 0;
}

/* answered: the upstream is there and said something useless. One thing that it cannot give, asked for over and over, says nothing of the
 * rest of it: that counts once, or one customer's broken tag would stop the pulls of all. */
static void breaker_fail(struct upstream *u, const char *path, bool answered, const char *detail)
{
    uint64_t what = answered ? str_hash(str_c(path)) : 0;
    if (answered && what == u->failed_path && u->failures && u->failures < u->lim.breaker_failures)
        return;
    u->failed_path = what;
    if (++u->failures < u->lim.breaker_failures)
        return;
    u->open_until_ms = loop_now_ms(u->loop) + u->lim.breaker_ms;
    breaker_tell(u, true);
    if (u->failures == u->lim.breaker_failures)
        log_warn("upstream %s: %u failures in a row, tried again every %llu ms: %s", u->spec->id, u->failures,
                 (unsigned long long)u->lim.breaker_ms, detail);
}

/* ---- ending an operation -------------------------------------------------------------------------------------------- */

static void op_wait_leave(struct upstream_op *op)
{
    if (!op->token)
        return;
    *op->wait_at = op->wait_next;
    if (op->wait_next)
        op->wait_next->wait_at = op->wait_at;
    op->token = NULL;
}

static void op_answer_clear(struct upstream_op *op)
{
    op->act = ACT_NONE;
    op->status = 0;
    op->length = -1;
    sb_reset(&op->body);
    op->discard = false;
    op->discarded = 0;
    MEM_FREE(op->location);
    MEM_FREE(op->next_page);
    MEM_FREE(op->content_type);
    MEM_FREE(op->challenges);
    op->n_challenges = 0;
    op->has_header_digest = op->bad_header_digest = false;
}

static void op_free(struct upstream_op *op)
{
    struct upstream *u = op->u;
    op_wait_leave(op);
    fetch_cancel(&op->f);
    slot_leave(&op->slot);
    timer_free(&op->timer);
    op_answer_clear(op);
    if (u->probe == op)
        u->probe = NULL;
    sb_free(&op->body);
    sb_free(&op->tags);
    mem_free(op->path);
    mem_free(op->scope);
    mem_free(op->hop_url);
    op->magic = 0;
    mem_free(op);
    upstream_unref(&u);
}

void upstream_cancel(struct upstream_op **pop)
{
    struct upstream_op *op = *pop;
    *pop = NULL;
    if (!op || op->ended)
        return;
    AN(op->magic == OP_MAGIC);
    fetch_cancel(&op->f);
    if (op->busy) {
        op->dead = true; /* freed when the handler has returned */
        return;
    }
    op_free(op);
}

/* The one end that is no success. */
static void op_end_failed(struct upstream_op *op)
{
    op->ended = true;
    if (op->u->probe == op)
        op->u->probe = NULL;
    switch (op->kind) {
    case OP_MANIFEST:
        op->cb.manifest(op->ctx, op->err, NULL, op->detail, op->retry_after_s);
        break;
    case OP_TAGS:
        op->cb.tags(op->ctx, op->err, NULL, 0, op->detail);
        break;
    case OP_REFERRERS:
        op->cb.referrers(op->ctx, op->err, (struct str){NULL, 0}, op->detail);
        break;
    case OP_BLOB:
        op->cb.blob.on_done(op->ctx, op->err, op->detail, op->retry_after_s);
        break;
    case OP_PING:
        op->cb.ping(op->ctx, op->err, op->detail);
        break;
    }
    op_free(op);
}

static void op_fail(struct upstream_op *op, enum err err, const char *fmt, ...)
{
    char text[sizeof op->detail]; /* what is said may quote the detail so far */
    va_list ap;
    op->err = err;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    memcpy(op->detail, text, sizeof text);
    op_end_failed(op);
}

static void on_turn(void *ctx)
{
    timer_set(op_of(ctx)->timer, 0);
}

static void op_crowded(struct upstream_op *op, const char *why)
{
    if (op->u->lim.counters)
        count_up(&op->u->lim.counters->crowded);
    op->retry_after_s = RETRY_AFTER_CROWDED_S;
    op_fail(op, ERR_UNAVAILABLE, "%s", why);
}

/* One connection an operation; who finds none free waits for its turn. */
static void op_take_turn(struct upstream_op *op)
{
    struct upstream *u = op->u;
    switch (slot_take(op->kind == OP_BLOB && !op->head ? u->blob_slots : u->meta_slots, &op->slot, op->owner, on_turn, op)) {
    case SLOT_HELD:
        op_send(op);
        return;
    case SLOT_WAITING:
        timer_set(op->timer, u->lim.fetch.first_byte_ms ? u->lim.fetch.first_byte_ms : TURN_MS);
        return;
    default:
        op_crowded(op, "too many wait for a connection to the upstream (limits.upstream_queue)");
    }
}

static void on_op_timer(void *ctx)
{
    struct upstream_op *op = op_of(ctx);
    if (op->err)
        op_end_failed(op);
    else if (op->slot.state == SLOT_HELD)
        op_send(op);
    else if (op->slot.state == SLOT_WAITING)
        op_crowded(op, "no connection to the upstream came free in time (limits.upstream_connections)");
    else
        op_take_turn(op);
}

void upstream_op_for(struct upstream_op *op, uint64_t owner)
{
    op->owner = owner;
}

/* Fails from a later round of the loop: for what is found wrong inside the starting call. */
static void op_fail_later(struct upstream_op *op, enum err err, const char *why)
{
    op->err = err;
    snprintf(op->detail, sizeof op->detail, "%s", why);
    timer_set(op->timer, 0);
}

/* Again after a pause, from the beginning: a redirect's signature may have aged. */
static void op_retry(struct upstream_op *op, enum err err, const char *why)
{
    if (op->tries >= op->u->lim.retries || op->head_given) {
        op_fail(op, err, "%s", why);
        return;
    }
    if (op->u->lim.counters)
        count_up(&op->u->lim.counters->retries);
    uint64_t ms = BACKOFF_FIRST_MS;
    for (unsigned i = 0; i < op->tries && i < 4; i++)
        ms *= 4;
    op->tries++;
    MEM_FREE(op->hop_url);
    op->hops = 0;
    snprintf(op->detail, sizeof op->detail, "%s", why);
    timer_set(op->timer, ms);
}

/* ---- tokens --------------------------------------------------------------------------------------------------------- */

static void query_add(struct strbuf *b, char before, const char *key, const char *value)
{
    static const char digits[] = "0123456789ABCDEF";
    sb_add_char(b, before);
    sb_addc(b, key);
    sb_add_char(b, '=');
    for (; *value; value++) {
        unsigned char c = (unsigned char)*value;
        if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || (c != '\0' && strchr("-._~:/", c))) {
            sb_add_char(b, (char)c);
        } else {
            sb_add_char(b, '%');
            sb_add_char(b, digits[c >> 4]);
            sb_add_char(b, digits[c & 15]);
        }
    }
}

/* What a token is good for, all of it: another upstream, password, fact, realm, service or scope is another key. */
static void token_key(const struct upstream *u, const char *scope, uint8_t ret[TOKENSHARE_KEY])
{
    const struct upstream_spec *s = u->spec;
    const char *const parts[] = {s->id, s->url, s->username, s->password, u->realm, u->service, scope};
    struct strbuf b = {0};
    sb_addf(&b, "%llu", (unsigned long long)u->lim.epoch);
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        sb_addf(&b, "|%zu:%s", strlen(parts[i]), parts[i]);
    seal_sha256(sb_str(&b), ret);
    mem_cleanse(b.p, b.n);
    sb_free(&b);
}

/* What the other workers know of t: it takes their token where that is newer, and loses its own where that was refused. */
static enum tokenshare_has token_look(struct token *t)
{
    struct upstream *u = t->u;
    struct tokenshare_token got = {0};
    uint8_t key[TOKENSHARE_KEY];
    if (!u->lim.tokens || !u->realm)
        return TOKENSHARE_NOTHING;
    token_key(u, t->scope, key);
    enum tokenshare_has has = tokenshare_look(u->lim.tokens, key, t->serial, loop_now_ms(u->loop), &got);
    if (has == TOKENSHARE_NEWER) {
        token_value_drop(t);
        t->value = got.value;
        t->use_until_ms = got.use_until_ms;
        t->serial = got.serial;
    } else if (has == TOKENSHARE_REFUSED) {
        token_value_drop(t);
    }
    return has;
}

static struct token *token_find(struct upstream *u, const char *scope)
{
    struct token *t = u->tokens;
    while (t && strcmp(t->scope, scope) != 0)
        t = t->next;
    return t;
}

/* Makes room by dropping the one that was used longest ago and that nobody waits for. */
static void tokens_bound(struct upstream *u)
{
    struct token **oldest = NULL;
    if (u->n_tokens < TOKENS_MAX)
        return;
    for (struct token **at = &u->tokens; *at; at = &(*at)->next)
        if (!(*at)->waiters && !(*at)->f && !timer_pending((*at)->retry) && (!oldest || (*at)->used_ms < (*oldest)->used_ms))
            oldest = at;
    if (!oldest)
        return;
    struct token *t = *oldest;
    *oldest = t->next;
    u->n_tokens--;
    token_free(t);
}

static void token_fetch(struct token *t);

static void on_token_retry(void *ctx)
{
    token_fetch(ctx);
}

static struct token *token_make(struct upstream *u, const char *scope)
{
    tokens_bound(u);
    struct token *t = NEW(struct token);
    t->u = u;
    t->scope = mem_strdup(scope);
    t->retry = timer_new(u->loop, on_token_retry, t);
    t->next = u->tokens;
    u->tokens = t;
    u->n_tokens++;
    return t;
}

static void op_send_with(struct upstream_op *op, struct token *t);

/* Serves or fails everybody who waits. The list is taken first: a failed one may ask again and join the next round. */
static void token_settle(struct token *t, enum err err, const char *detail)
{
    struct upstream *u = upstream_ref(t->u);
    struct upstream_op *batch = t->waiters;
    t->waiters = NULL;
    if (batch)
        batch->wait_at = &batch;
    while (batch) {
        struct upstream_op *op = batch;
        op_wait_leave(op); /* moves batch on */
        if (err) {
            op->retry_after_s = t->retry_after_s;
            op_fail(op, err, "%s", detail);
        } else {
            op_send_with(op, t);
        }
    }
    upstream_unref(&u);
}

static bool token_text_ok(struct str s)
{
    for (size_t i = 0; i < s.n; i++)
        if ((unsigned char)s.p[i] <= 0x20 || (unsigned char)s.p[i] >= 0x7f)
            return false;
    return s.n && s.n <= TOKEN_TEXT_MAX;
}

static enum fetch_next on_token_head(void *ctx, const struct fetch_head *h)
{
    struct token *t = ctx;
    t->status = h->status;
    t->retry_after_s = h->status == 429 || h->status == 503 ? field_retry_after_s(fetch_head_get(h, "retry-after")) : 0;
    return FETCH_MORE;
}

static enum fetch_next on_token_body(void *ctx, const void *data, size_t n)
{
    struct token *t = ctx;
    if (t->status == 200)
        sb_add(&t->body, (struct str){data, n});
    return FETCH_MORE;
}

/* {"token"|"access_token", "expires_in"} into t. */
static bool token_read(struct token *t)
{
    struct jv *v = NULL;
    if (jv_parse(sb_str(&t->body), &JV_LIMITS_API, &v, NULL) != ERR_OK)
        return false;
    struct str value = jv_get_str(v, "token");
    if (!value.n)
        value = jv_get_str(v, "access_token");
    int64_t life_s = jv_get_int(v, "expires_in", TOKEN_LIFE_DEFAULT_S);
    bool ok = jv_type(v) == JV_OBJECT && token_text_ok(value);
    if (ok) {
        if (life_s <= 0)
            life_s = TOKEN_LIFE_DEFAULT_S;
        if (life_s > TOKEN_LIFE_MAX_S)
            life_s = TOKEN_LIFE_MAX_S;
        uint64_t life_ms = (uint64_t)life_s * 1000, margin = life_ms / 4 < TOKEN_MARGIN_MS ? life_ms / 4 : TOKEN_MARGIN_MS;
        token_value_drop(t);
        t->value = str_dup(value);
        t->use_until_ms = t->asked_ms + life_ms - margin;
        if (t->u->lim.tokens) {
            uint8_t key[TOKENSHARE_KEY];
            token_key(t->u, t->scope, key);
            t->serial = tokenshare_put(t->u->lim.tokens, key, t->value, t->use_until_ms, loop_now_ms(t->u->loop));
        } else {
            t->serial = ++t->u->token_serial;
        }
    }
    jv_free(v);
    return ok;
}

/* An operator has to act: nothing that is tried again helps. */
static void refused_alarm(const struct upstream *u, const char *what)
{
    static unsigned long long last;
    log_limited(&last, 10000, LOG_LEVEL_ERROR, "upstream %.200s refuses %s", u->host, what);
}

static void on_token_done(void *ctx, enum err err, const char *text, bool got_bytes)
{
    struct token *t = ctx;
    struct upstream *u = t->u;
    char why[320];
    t->f = NULL;
    bool passing = (err && !got_bytes && (err == ERR_UNAVAILABLE || err == ERR_UPSTREAM)) || (!err && t->status >= 500);
    if (passing && t->tries < u->lim.retries && t->waiters) {
        timer_set(t->retry, t->tries++ ? BACKOFF_FIRST_MS * 4 : BACKOFF_FIRST_MS);
        return;
    }
    enum err e = ERR_UPSTREAM;
    if (err) {
        e = err == ERR_TOO_LARGE ? ERR_UPSTREAM : err;
        snprintf(why, sizeof why, "token endpoint %s: %s", u->realm, text);
    } else if (t->status == 429) {
        e = ERR_UNAVAILABLE;
        snprintf(why, sizeof why, "token endpoint %s answers 429", u->realm);
    } else if (t->status == 401 || t->status == 403) {
        snprintf(why, sizeof why, "token endpoint %s refuses the user name or password (%d)", u->realm, t->status);
        t->refused_until_ms = loop_now_ms(u->loop) + TOKEN_REFUSED_MS;
        refused_alarm(u, "the user name or password at its token endpoint");
    } else if (t->status != 200) {
        snprintf(why, sizeof why, "token endpoint %s answers %d", u->realm, t->status);
    } else if (!token_read(t)) {
        snprintf(why, sizeof why, "token endpoint %s answers without a usable token", u->realm);
    } else {
        e = ERR_OK;
        why[0] = 0;
    }
    /* What was learned may have gone with the endpoint: the next operation asks for the challenge anew. Tokens that are held stay good. */
    if (e && t->status != 401 && t->status != 403 && t->status != 429)
        u->auth_mode = AUTH_UNKNOWN;
    if (t->body.p)
        mem_cleanse(t->body.p, t->body.n);
    sb_reset(&t->body);
    if (e && t->status != 401 && t->status != 403 && token_look(t) == TOKENSHARE_NEWER)
        e = ERR_OK; /* another worker had more luck meanwhile */
    token_settle(t, e, why); /* last: t and u may be gone */
}

static void token_fetch(struct token *t)
{
    static const struct fetch_handlers handlers = {on_token_head, on_token_body, on_token_done};
    struct upstream *u = t->u;
    struct strbuf url = {0};
    struct fetch_url realm;
    bool named = false;
    /* Checked again here, where the password leaves: nothing else decides where it goes. */
    bool ok = u->realm && fetch_url_parse(u->realm, &realm, NULL) == ERR_OK, own = false;
    if (ok) {
        ok = realm_allowed(u, &realm, &named);
        own = is_own(u, &realm);
        fetch_url_free(&realm);
    }
    if (!ok || loop_now_ms(u->loop) < t->refused_until_ms) {
        token_settle(t, ERR_UPSTREAM, ok ? "the token endpoint has just refused the user name or password" : "the realm is not allowed");
        return;
    }
    sb_addc(&url, u->realm);
    char sep = strchr(u->realm, '?') ? '&' : '?';
    if (*u->service) {
        query_add(&url, sep, "service", u->service);
        sep = '&';
    }
    if (*t->scope)
        query_add(&url, sep, "scope", t->scope);
    t->status = 0;
    t->asked_ms = loop_now_ms(u->loop);
    bool has_user = *u->spec->username || *u->spec->password;
    struct fetch_request r = {.method = "GET",
                              .url = url.p,
                              .username = has_user ? u->spec->username : NULL,
                              .password = has_user ? u->spec->password : NULL,
                              .ca_pem = u->spec->ca_pem,
                              .ca_only = own,
                              .policy = {.https_only = strcmp(u->scheme, "https") == 0, .allow_private = named},
                              .max_body = TOKEN_BYTES};
    t->f = fetch_start(own ? u->meta : u->auth, &r, &handlers, t);
    sb_free(&url);
}

/* scope: "repository:<name>:<actions>", where name ends with op's repository. */
static void op_scope_set(struct upstream_op *op, const char *scope)
{
    char *copy = mem_strdup(scope);
    size_t end = (size_t)str_rindex(str_c(copy), ':');
    mem_free(op->scope);
    op->scope = copy;
    op->repository = str_sub(str_c(copy), end - op->repository.n, op->repository.n);
}

/* A good token, or NULL: then op waits and is sent when there is one. */
static struct token *token_need(struct upstream_op *op)
{
    struct upstream *u = op->u;
    struct token *t = token_find(u, op->scope);
    if (t && t->alias) {
        op_scope_set(op, t->alias);
        t = token_find(u, op->scope);
    }
    if (!t)
        t = token_make(u, op->scope);
    token_look(t);
    if (t->value && loop_now_ms(u->loop) < t->use_until_ms)
        return t;
    op->token = t;
    op->wait_next = t->waiters;
    op->wait_at = &t->waiters;
    if (t->waiters)
        t->waiters->wait_at = &op->wait_next;
    t->waiters = op;
    if (!t->f && !timer_pending(t->retry)) {
        t->tries = 0;
        timer_set(t->retry, 0); /* not from here: a realm that cannot be used fails its waiters at once */
    }
    return NULL;
}

/* The challenge's scope where it asks for no more than pulling this very repository; else our own. A registry cannot have a token
 * made for something else with its realm's help. */
static void scope_adopt(struct upstream_op *op, const char *asked)
{
    struct str type, rest, name, actions, a;
    struct str s = str_c(asked);
    if (!op->repository.n || !str_cut(s, ':', &type, &rest) || !str_eq_c(type, "repository"))
        return;
    ptrdiff_t colon = str_rindex(rest, ':');
    if (colon < 0)
        return;
    name = str_sub(rest, 0, (size_t)colon);
    actions = str_skip(rest, (size_t)colon + 1);
    bool same = str_eq(name, op->repository) ||
                (name.n > op->repository.n && str_ends(name, op->repository) && name.p[name.n - op->repository.n - 1] == '/');
    if (!same || !oci_name_valid(name))
        return;
    bool any = false;
    while (str_next(&actions, ',', &a)) {
        if (!str_eq_c(a, "pull") && !str_eq_c(a, "metadata_read"))
            return;
        any = true;
    }
    if (!any || strcmp(op->scope, asked) == 0)
        return;
    /* The next operation on this repository asks for the right one at once. An alias has none itself. */
    struct token *t = token_find(op->u, op->scope);
    if (!t)
        t = token_make(op->u, op->scope);
    mem_free(t->alias);
    t->alias = mem_strdup(asked);
    t = token_find(op->u, asked);
    if (t)
        MEM_FREE(t->alias);
    op_scope_set(op, asked);
}

/* ---- 401 ------------------------------------------------------------------------------------------------------------ */

static const struct challenge *challenge_of(const struct upstream_op *op, enum challenge_scheme scheme)
{
    for (size_t i = 0; i < op->n_challenges; i++)
        if (op->challenges[i].scheme == scheme)
            return &op->challenges[i];
    return NULL;
}

static bool bearer_adopt(struct upstream_op *op, const struct challenge *c, char why[200])
{
    struct upstream *u = op->u;
    struct fetch_url realm;
    struct error e = {0};
    bool named;
    if (fetch_url_parse(c->realm, &realm, &e) != ERR_OK) {
        snprintf(why, 200, "its Bearer realm is unusable: %.120s", e.text);
        return false;
    }
    bool ok = realm_allowed(u, &realm, &named);
    if (!ok)
        snprintf(why, 200, "its Bearer realm is on %s://%.100s:%u, which is neither its own host nor the configured realm", realm.scheme, realm.host,
                 realm.port);
    fetch_url_free(&realm);
    if (!ok)
        return false;
    if (!u->realm || strcmp(u->realm, c->realm) != 0 || strcmp(u->service, c->service) != 0) {
        mem_free(u->realm);
        mem_free(u->service);
        u->realm = mem_strdup(c->realm);
        u->service = mem_strdup(c->service);
        tokens_drop(u);
    }
    u->auth_mode = AUTH_BEARER;
    scope_adopt(op, c->scope);
    return true;
}

static void op_challenged(struct upstream_op *op)
{
    struct upstream *u = op->u;
    const struct challenge *bearer = challenge_of(op, CHALLENGE_BEARER), *basic = challenge_of(op, CHALLENGE_BASIC);
    char why[200];
    if (++op->refusals > REFUSALS_MAX || (op->sent == AUTH_BEARER && op->renewed)) {
        refused_alarm(u, "the token it asked for (401)");
        op_fail(op, ERR_UPSTREAM, "%s refuses the token it asked for (401)", u->host);
        return;
    }
    if (op->hop_url)
        op->hop_auth = true; /* on our own host: op_head() lets no other get here */
    if (op->sent == AUTH_BEARER) {
        struct token *t = token_find(u, op->scope);
        if (t && t->value && t->serial == op->sent_serial) {
            token_value_drop(t);
            if (u->lim.tokens) {
                uint8_t key[TOKENSHARE_KEY];
                token_key(u, t->scope, key);
                tokenshare_refuse(u->lim.tokens, key, t->serial);
            }
        }
        /* What another worker got may be as old as what was refused: no try of one's own yet. */
        op->renewed = !t || token_look(t) != TOKENSHARE_NEWER;
    }
    if (bearer) {
        if (!bearer_adopt(op, bearer, why)) {
            op_fail(op, ERR_UPSTREAM, "%s: %s; no credential was sent", u->host, why);
            return;
        }
        op_send(op);
        return;
    }
    if (!basic) {
        op_fail(op, ERR_UPSTREAM, "%s answers 401 without a Basic or Bearer challenge", u->host);
        return;
    }
    if (op->sent == AUTH_BASIC) {
        refused_alarm(u, "the user name or password (401)");
        op_fail(op, ERR_UPSTREAM, "%s refuses the user name or password (401)", u->host);
        return;
    }
    if (!*u->spec->username && !*u->spec->password) {
        op_fail(op, ERR_UPSTREAM, "%s wants a user name and password, and none is configured", u->host);
        return;
    }
    u->auth_mode = AUTH_BASIC;
    op_send(op);
}

/* ---- sending -------------------------------------------------------------------------------------------------------- */

static enum fetch_next on_head(void *ctx, const struct fetch_head *h);
static enum fetch_next on_body(void *ctx, const void *data, size_t n);
static void on_done(void *ctx, enum err err, const char *text, bool got_bytes);

/* Sends what op asks, with token t where the upstream wants one. */
static void op_send_with(struct upstream_op *op, struct token *t)
{
    static const struct fetch_handlers handlers = {on_head, on_body, on_done};
    struct upstream *u = op->u;
    bool own = !op->hop_url || op->hop_own, with_auth = !op->hop_url || (op->hop_own && op->hop_auth);
    const char *fields[4];
    size_t n = 0;
    char range[64];
    struct strbuf url = {0}, bearer = {0}, accept = {0};

    op_answer_clear(op);
    op->sent = AUTH_UNKNOWN;
    if (op->kind == OP_MANIFEST)
        sb_addf(&accept, "Accept: %s", MEDIA_ACCEPT_ALL);
    else if (op->kind == OP_REFERRERS)
        sb_addf(&accept, "Accept: %s", media_type_text(MEDIA_OCI_INDEX));
    else if (op->kind == OP_TAGS || op->kind == OP_PING)
        sb_addc(&accept, "Accept: application/json");
    if (accept.n)
        fields[n++] = accept.p;
    if (op->has_range) {
        snprintf(range, sizeof range, "Range: bytes=%llu-%llu", (unsigned long long)op->range.first, (unsigned long long)op->range.last);
        fields[n++] = range;
    }
    if (with_auth && t) {
        sb_addf(&bearer, "Authorization: Bearer %s", t->value);
        fields[n++] = bearer.p;
        op->sent = AUTH_BEARER;
        op->sent_serial = t->serial;
        t->used_ms = loop_now_ms(u->loop);
    }
    fields[n] = NULL;
    bool basic = with_auth && !t && (u->auth_mode == AUTH_BASIC || op->basic_tried) && (*u->spec->username || *u->spec->password);
    if (basic)
        op->sent = AUTH_BASIC;
    if (op->hop_url)
        sb_addc(&url, op->hop_url);
    else {
        base_url_add(u, &url);
        sb_addc(&url, op->path);
    }
    /* A body that is read whole has its bound here too; a blob's end is its length. */
    op->body_max = op->kind == OP_MANIFEST ? u->lim.manifest_bytes : op->kind == OP_TAGS ? u->lim.tags_bytes - op->tag_bytes :
                   op->kind == OP_REFERRERS ? REFERRERS_BYTES : DISCARD_MAX;
    struct fetch_request r = {.method = op->head ? "HEAD" : "GET",
                              .url = url.p,
                              .fields = fields,
                              .username = basic ? u->spec->username : NULL,
                              .password = basic ? u->spec->password : NULL,
                              .ca_pem = u->spec->ca_pem,
                              .ca_only = own,
                              .policy = {.https_only = strcmp(u->scheme, "https") == 0, .allow_private = own || op->hop_private},
                              .max_body = op->kind == OP_BLOB || op->kind == OP_PING ? 0 : op->body_max};
    struct fetch_pool *pool = !own ? u->hops : op->kind == OP_BLOB && !op->head ? u->blobs : u->meta;
    op->f = fetch_start(pool, &r, &handlers, op);
    if (bearer.p)
        mem_cleanse(bearer.p, bearer.n);
    sb_free(&bearer);
    sb_free(&accept);
    sb_free(&url);
}

static void op_send(struct upstream_op *op)
{
    struct upstream *u = op->u;
    if (u->failures >= u->lim.breaker_failures && u->probe != op) {
        uint64_t now = loop_now_ms(u->loop);
        if (now < u->open_until_ms || u->probe) {
            if (u->lim.counters)
                count_up(&u->lim.counters->rested);
            op->retry_after_s = 1 + (unsigned)((now < u->open_until_ms ? u->open_until_ms - now : 0) / 1000);
            op_fail(op, ERR_UNAVAILABLE, "%s has failed %u times in a row and is given a rest%s%.200s", u->host, u->failures, op->detail[0] ? ": " : "",
                    op->detail);
            return;
        }
        u->probe = op;
    }
    struct token *t = NULL;
    bool with_auth = !op->hop_url || (op->hop_own && op->hop_auth);
    if (with_auth && u->auth_mode == AUTH_BEARER && !(t = token_need(op)))
        return;
    op_send_with(op, t);
}

static struct upstream_op *op_new(struct upstream *u, enum kind kind, struct str repository, void *ctx)
{
    struct upstream_op *op = NEW(struct upstream_op);
    op->magic = OP_MAGIC;
    op->u = upstream_ref(u);
    op->kind = kind;
    op->ctx = ctx;
    op->length = -1;
    op->timer = timer_new(u->loop, on_op_timer, op);
    struct strbuf scope = {0};
    if (repository.n) {
        sb_addf(&scope, "repository:%.*s:pull", STR(repository));
        op->scope = sb_take(&scope);
        op->repository = str_sub(str_c(op->scope), sizeof "repository:" - 1, repository.n);
    } else {
        op->scope = mem_strdup("");
    }
    return op;
}

/* First send of an operation: from the loop, because it may fail at once. */
static struct upstream_op *op_start(struct upstream_op *op)
{
    if (!*op->u->host)
        op_fail_later(op, ERR_UPSTREAM, "the upstream's URL is malformed");
    else
        timer_set(op->timer, 0);
    return op;
}

/* ---- reading the head ----------------------------------------------------------------------------------------------- */

static enum fetch_next op_discard(struct upstream_op *op, enum act act)
{
    op->act = act;
    op->discard = true;
    return !op->head && op->length > (int64_t)DISCARD_MAX ? FETCH_STOP : FETCH_MORE;
}

static enum fetch_next op_refuse(struct upstream_op *op, enum err err, const char *what)
{
    op->err = err;
    snprintf(op->detail, sizeof op->detail, "%s %s %s (%d)", op->hop_url ? "redirect target of" : "upstream", op->u->host, what, op->status);
    return op_discard(op, ACT_FAIL);
}

/* What is larger than its limit stays so. Of a manifest that is an answer, and its reader is told. */
static enum fetch_next op_refuse_length(struct upstream_op *op)
{
    return op_refuse(op, op->kind == OP_MANIFEST ? ERR_TOO_LARGE : ERR_UPSTREAM, "sends more than is allowed");
}

/* Its reader was told, which may have cancelled it, and wants next. */
static enum fetch_next op_told(struct upstream_op *op, enum fetch_next next)
{
    op->busy--;
    if (op->dead) {
        op_free(op);
        return FETCH_STOP;
    }
    if (next == FETCH_STOP) {
        op->act = ACT_FAIL;
        op->err = ERR_CANCELED;
        snprintf(op->detail, sizeof op->detail, "stopped");
    }
    return next;
}

static void head_fields(struct upstream_op *op, const struct fetch_head *h)
{
    for (size_t i = 0; i < h->n_fields; i++) {
        struct str name = h->fields[i].name, value = h->fields[i].value;
        if (str_eq_nocase(name, S("www-authenticate")) && h->status == 401) {
            if (!op->challenges)
                op->challenges = mem_calloc(FIELD_CHALLENGES_MAX, sizeof *op->challenges);
            if (field_challenges_parse(value, op->challenges, &op->n_challenges) != ERR_OK) {
                op->n_challenges = 0; /* one malformed challenge discredits the rest */
                break;
            }
        } else if (str_eq_nocase(name, S("location")) && !op->location) {
            op->location = str_dup(value);
        } else if (str_eq_nocase(name, S("content-type")) && !op->content_type) {
            op->content_type = str_dup(value);
        } else if (str_eq_nocase(name, S("docker-content-digest"))) {
            struct digest d;
            if (digest_parse(value, &d, NULL) != ERR_OK || (op->has_header_digest && !digest_eq(&d, &op->header_digest)))
                op->bad_header_digest = true;
            else
                op->header_digest = d;
            op->has_header_digest = true;
        } else if (str_eq_nocase(name, S("link")) && op->kind == OP_TAGS && !op->next_page) {
            struct str next;
            if (field_link_next(value, &next) == ERR_OK && next.n)
                op->next_page = str_dup(next);
        }
    }
}

static enum fetch_next blob_head(struct upstream_op *op, const struct fetch_head *h)
{
    struct upstream_blob_head b = {.status = h->status, .length = h->content_length};
    if (h->status == 206) {
        if (!op->has_range)
            return op_refuse(op, ERR_UPSTREAM, "answers with a part of the blob, unasked");
        struct byte_range r;
        uint64_t total;
        if (field_content_range_parse(fetch_head_get(h, "content-range"), &r, &total) != ERR_OK || r.first != op->range.first || r.last > op->range.last ||
            (r.last < op->range.last && total != r.last + 1) || (b.length >= 0 && (uint64_t)b.length != r.last - r.first + 1))
            return op_refuse(op, ERR_UPSTREAM, "answers with another range than asked");
        b.range = r;
        b.total = total;
    } else if (h->content_length >= 0) {
        b.total = (uint64_t)h->content_length;
    }
    op->act = ACT_DELIVER;
    op->head_given = true;
    if (!op->cb.blob.on_head)
        return FETCH_MORE;
    op->busy++;
    return op_told(op, op->cb.blob.on_head(op->ctx, &b));
}

static bool is_redirect(int status)
{
    return status == 301 || status == 302 || status == 303 || status == 307 || status == 308;
}

/* The table: what a status means for this operation. */
static enum fetch_next on_head(void *ctx, const struct fetch_head *h)
{
    struct upstream_op *op = op_of(ctx);
    struct upstream *u = op->u;
    bool foreign = op->hop_url && !op->hop_own;
    op->status = h->status;
    if (u->lim.counters)
        count_up(&u->lim.counters->answers[h->status >= 100 && h->status < 600 ? h->status / 100 : 0]);
    op->length = h->content_length;
    op->retry_after_s = h->status == 429 || h->status == 503 ? field_retry_after_s(fetch_head_get(h, "retry-after")) : 0;
    head_fields(op, h);
    if (!foreign && h->status < 500) {
        breaker_ok(u);
        if (u->probe == op)
            u->probe = NULL;
    }

    if (h->status >= 500)
        return op_discard(op, ACT_RETRY);
    if (h->status == 429)
        return op_refuse(op, ERR_UNAVAILABLE, "asks for fewer requests");
    if (is_redirect(h->status) && op->location && op->kind != OP_PING)
        return op_discard(op, ACT_REDIRECT);
    if (h->status == 401 && !foreign)
        return op_discard(op, ACT_CHALLENGED);
    bool has_user = *u->spec->username || *u->spec->password;
    /* Some registries hide what needs a sign-in instead of asking for one; a ping that needs none has not tried the password. */
    if (!op->hop_url && op->sent == AUTH_UNKNOWN && u->auth_mode == AUTH_UNKNOWN && has_user && !op->basic_tried &&
        (h->status == 403 || h->status == 404 || (op->kind == OP_PING && h->status == 200)))
        return op_discard(op, ACT_BASIC_TRY);
    if (op->sent == AUTH_BASIC && h->status < 300 && u->auth_mode == AUTH_UNKNOWN)
        u->auth_mode = AUTH_BASIC;
    if (h->status == 401 || h->status == 403)
        return op_refuse(op, ERR_UPSTREAM, foreign ? "refuses us" : "refuses our credentials");
    if (h->status == 416 && op->kind == OP_BLOB && op->has_range) {
        /* docker-registry announces the whole blob's length here and then sends 33 bytes: leave before that body. */
        op->act = ACT_FAIL;
        op->err = ERR_RANGE;
        snprintf(op->detail, sizeof op->detail, "the range is outside the blob");
        return FETCH_STOP;
    }
    if (op->kind == OP_PING && h->status == 404)
        return op_refuse(op, ERR_UPSTREAM, "answers on /v2/, but there is no registry");
    if (h->status == 404 && !foreign)
        return op_refuse(op, ERR_NOT_FOUND, "does not have it");
    if (op->kind == OP_REFERRERS && (h->status == 400 || h->status == 405 || h->status == 406))
        return op_refuse(op, ERR_NOT_FOUND, "has no referrers API");
    if (op->kind == OP_MANIFEST && op->head && h->status == 405)
        return op_discard(op, ACT_AS_GET);
    if (op->kind == OP_BLOB && (h->status == 200 || h->status == 206))
        return blob_head(op, h);
    if (h->status != 200)
        return op_refuse(op, ERR_UPSTREAM, "answers with an unexpected status");
    op->act = ACT_DELIVER;
    if (!op->head && op->length > (int64_t)op->body_max && op->kind != OP_PING)
        return op_refuse_length(op);
    op->discard = op->kind == OP_PING;
    return FETCH_MORE;
}

static enum fetch_next on_body(void *ctx, const void *data, size_t n)
{
    struct upstream_op *op = op_of(ctx);
    if (op->discard) {
        op->discarded += n;
        return op->discarded > DISCARD_MAX ? FETCH_STOP : FETCH_MORE;
    }
    if (op->kind != OP_BLOB) {
        if (n > op->body_max - op->body.n)
            return op_refuse_length(op), FETCH_STOP;
        sb_add(&op->body, (struct str){data, n});
        return FETCH_MORE;
    }
    if (!op->cb.blob.on_body)
        return FETCH_MORE;
    op->busy++;
    return op_told(op, op->cb.blob.on_body(op->ctx, data, n));
}

/* ---- delivering ------------------------------------------------------------------------------------------------------ */

/* What a manifest is when its Content-Type does not say: as its own document says. */
static enum media_type manifest_sniff(struct str bytes)
{
    struct jv *v = NULL;
    if (jv_parse(bytes, &JV_LIMITS_MANIFEST, &v, NULL) != ERR_OK)
        return MEDIA_UNKNOWN;
    enum media_type m = media_type_parse(jv_get_str(v, "mediaType"));
    if (m == MEDIA_UNKNOWN && !jv_get(v, "mediaType") && jv_get_int(v, "schemaVersion", 0) == 2)
        m = jv_get(v, "manifests") ? MEDIA_OCI_INDEX : jv_get(v, "config") ? MEDIA_OCI_MANIFEST : MEDIA_UNKNOWN;
    if (jv_get_int(v, "schemaVersion", 0) == 1)
        m = MEDIA_SCHEMA1;
    jv_free(v);
    return m;
}

static void digest_of(struct str bytes, enum digest_alg alg, struct digest *ret)
{
    struct hasher *h = hasher_new(alg);
    hasher_update(h, bytes.p, bytes.n);
    hasher_final(h, ret);
    hasher_free(&h);
}

static void deliver_manifest(struct upstream_op *op)
{
    struct upstream_manifest m = {.status = op->status, .content_type = str_c(op->content_type)};
    m.media_type = media_type_parse(m.content_type);
    if (op->bad_header_digest) {
        op_fail(op, ERR_UPSTREAM, "%s sends a Docker-Content-Digest that is none", op->u->host);
        return;
    }
    if (op->head) {
        if (!op->has_header_digest || op->length <= 0 || m.media_type == MEDIA_UNKNOWN) {
            op->head = false; /* says too little: read it */
            op_send(op);
            return;
        }
        m.digest = op->header_digest;
        m.size = (uint64_t)op->length;
        if (op->by_digest && m.digest.alg == op->digest.alg && !digest_eq(&m.digest, &op->digest)) {
            op_fail(op, ERR_UPSTREAM, "%s names another digest than was asked for", op->u->host);
            return;
        }
        if (op->by_digest)
            m.digest = op->digest;
    } else {
        m.bytes = sb_str(&op->body);
        m.size = m.bytes.n;
        if (!m.size) {
            op_fail(op, ERR_UPSTREAM, "%s sends an empty manifest", op->u->host);
            return;
        }
        if (op->has_header_digest && !seal_digest_matches(m.bytes, &op->header_digest)) {
            op_fail(op, ERR_UPSTREAM, "%s sends bytes that its own Docker-Content-Digest contradicts", op->u->host);
            return;
        }
        if (op->by_digest && !seal_digest_matches(m.bytes, &op->digest)) {
            op_fail(op, ERR_UPSTREAM, "%s sends bytes of another digest than was asked for", op->u->host);
            return;
        }
        if (op->by_digest)
            m.digest = op->digest;
        else
            digest_of(m.bytes, DIGEST_SHA256, &m.digest);
        if (m.media_type == MEDIA_UNKNOWN)
            m.media_type = manifest_sniff(m.bytes);
    }
    if (m.media_type == MEDIA_SCHEMA1) { /* an answer, and for good: the type goes with it */
        m.bytes = (struct str){NULL, 0};
        op->ended = true;
        op->cb.manifest(op->ctx, ERR_UPSTREAM, &m, "the upstream sends schema 1, which is not served", 0);
        op_free(op);
        return;
    }
    if (!media_type_is_manifest(m.media_type)) {
        op_fail(op, ERR_UPSTREAM, "%s sends an unknown media type as a manifest", op->u->host);
        return;
    }
    op->ended = true;
    op->cb.manifest(op->ctx, ERR_OK, &m, "", 0);
    op_free(op);
}

static bool tags_page(struct upstream_op *op)
{
    const struct jv_limits lim = {op->u->lim.tags_bytes, TAG_TOKENS_MAX, 4};
    struct jv *v = NULL;
    if (jv_parse(sb_str(&op->body), &lim, &v, NULL) != ERR_OK)
        return false;
    struct jv *tags = jv_get(v, "tags");
    enum jv_type type = jv_type(tags);
    for (size_t i = 0; i < jv_len(tags); i++) {
        struct str t = jv_str(jv_at(tags, i));
        if (!oci_tag_valid(t))
            continue;
        sb_add(&op->tags, t);
        sb_add_char(&op->tags, '\0');
        op->n_tags++;
    }
    /* Some leave an empty list out. Any other document without one is no list: who took it for an empty one would deny by it. */
    bool ok = type == JV_ARRAY || type == JV_NULL || (type == JV_NONE && jv_type(jv_get(v, "name")) == JV_STRING);
    jv_free(v);
    return ok;
}

/* The next page is on the upstream itself or nowhere. NULL: the link leads elsewhere. */
static char *tags_next(const struct upstream_op *op)
{
    struct strbuf here = {0};
    char *joined = NULL, *path = NULL;
    struct fetch_url url;
    base_url_add(op->u, &here);
    sb_addc(&here, op->path);
    if (fetch_url_join(here.p, op->next_page, &joined) == ERR_OK && fetch_url_parse(joined, &url, NULL) == ERR_OK) {
        if (is_own(op->u, &url) && strcmp(url.path_query, op->path) != 0)
            path = mem_strdup(url.path_query);
        fetch_url_free(&url);
    }
    mem_free(joined);
    sb_free(&here);
    return path;
}

static int tag_order(const void *a, const void *b)
{
    struct str x, y;
    memcpy(&x, a, sizeof x);
    memcpy(&y, b, sizeof y);
    return str_cmp(x, y);
}

static void deliver_tags(struct upstream_op *op)
{
    op->tag_bytes += op->body.n;
    op->pages++;
    if (!tags_page(op)) {
        op_fail(op, ERR_UPSTREAM, "%s sends a list of tags that is none", op->u->host);
        return;
    }
    if (op->next_page) {
        char *path = tags_next(op);
        if (!path || op->pages >= TAG_PAGES_MAX || op->tag_bytes >= op->u->lim.tags_bytes) {
            op_fail(op, ERR_UPSTREAM, path ? "%s has more tags than are allowed" : "%s: the list of tags continues at another host or in a circle", op->u->host);
            mem_free(path);
            return;
        }
        mem_free(op->path);
        op->path = path;
        op->tries = op->refusals = 0;
        op->renewed = false;
        MEM_FREE(op->hop_url);
        op->hops = 0;
        op_send(op);
        return;
    }
    struct str *tags = mem_calloc(op->n_tags + 1, sizeof *tags);
    size_t n = 0, kept = 0;
    for (const char *p = op->tags.p; n < op->n_tags; n++) {
        tags[n] = str_c(p);
        p += tags[n].n + 1;
    }
    qsort(tags, n, sizeof *tags, tag_order);
    for (size_t i = 0; i < n; i++)
        if (!kept || !str_eq(tags[i], tags[kept - 1]))
            tags[kept++] = tags[i];
    op->ended = true;
    op->cb.tags(op->ctx, ERR_OK, tags, kept, "");
    mem_free(tags);
    op_free(op);
}

static void deliver(struct upstream_op *op)
{
    switch (op->kind) {
    case OP_MANIFEST:
        deliver_manifest(op);
        return;
    case OP_TAGS:
        deliver_tags(op);
        return;
    case OP_REFERRERS:
        /* Something else than an index: a registry without the API that answers everything with a page. */
        if (media_type_parse(str_c(op->content_type)) != MEDIA_OCI_INDEX) {
            op_fail(op, ERR_NOT_FOUND, "%s answers referrers with something else than an index", op->u->host);
            return;
        }
        op->ended = true;
        op->cb.referrers(op->ctx, ERR_OK, sb_str(&op->body), "");
        break;
    case OP_BLOB:
        op->ended = true;
        op->cb.blob.on_done(op->ctx, ERR_OK, "", 0);
        break;
    case OP_PING:
        op->ended = true;
        op->cb.ping(op->ctx, ERR_OK, "");
        break;
    }
    op_free(op);
}

/* ---- redirects ------------------------------------------------------------------------------------------------------- */

static void op_redirect(struct upstream_op *op)
{
    struct upstream *u = op->u;
    struct strbuf here = {0};
    char *target = NULL;
    struct fetch_url url;
    bool own = false, named = false;
    if (op->hop_url)
        sb_addc(&here, op->hop_url);
    else {
        base_url_add(u, &here);
        sb_addc(&here, op->path);
    }
    bool ok = fetch_url_join(here.p, op->location, &target) == ERR_OK && fetch_url_parse(target, &url, NULL) == ERR_OK;
    sb_free(&here);
    if (!ok) {
        mem_free(target);
        op_fail(op, ERR_UPSTREAM, "%s redirects to something that is no http or https URL", u->host);
        return;
    }
    /* Manifests and lists come from the registry itself; object storage holds blobs. */
    ok = redirect_allowed(u, &url, &own, &named) && (own || op->kind == OP_BLOB);
    char where[300];
    snprintf(where, sizeof where, "%s://%.250s:%u", url.scheme, url.host, url.port);
    fetch_url_free(&url);
    if (!ok) {
        mem_free(target);
        op_fail(op, ERR_UPSTREAM, "%s redirects to %.200s, which is not allowed", u->host, where);
        return;
    }
    if (op->kind == OP_BLOB && u->spec->redirects_pass && !own && !op->head_given) {
        struct upstream_blob_head b = {.status = 307, .length = -1, .location = str_c(target)};
        op->head_given = true;
        op->busy++;
        if (op->cb.blob.on_head)
            op->cb.blob.on_head(op->ctx, &b);
        op->busy--;
        mem_free(target);
        if (op->dead) {
            op_free(op);
            return;
        }
        op->ended = true;
        op->cb.blob.on_done(op->ctx, ERR_OK, "", 0);
        op_free(op);
        return;
    }
    if (++op->hops > HOPS_MAX) {
        mem_free(target);
        op_fail(op, ERR_UPSTREAM, "%s redirects more than %u times", u->host, HOPS_MAX);
        return;
    }
    mem_free(op->hop_url);
    op->hop_url = target;
    op->hop_own = own;
    op->hop_auth = false;
    op->hop_private = named;
    op_send(op);
}

/* ---- the end of an answer --------------------------------------------------------------------------------------------- */

static void on_done(void *ctx, enum err err, const char *text, bool got_bytes)
{
    struct upstream_op *op = op_of(ctx);
    struct upstream *u = op->u;
    bool foreign = op->hop_url && !op->hop_own;
    char why[320];
    op->f = NULL;
    switch (op->act) {
    case ACT_NONE: /* no head came */
        if (u->lim.counters && err != ERR_CANCELED)
            count_up(&u->lim.counters->answers[0]);
        snprintf(why, sizeof why, "%s %.64s: %.200s", foreign ? "redirect target of" : "upstream", u->host, text);
        if (!foreign)
            breaker_fail(u, op->path, got_bytes, why);
        /* Nobody waits for one that is slow three times over, and a refused address stays refused. */
        if (!got_bytes && err != ERR_TIMEOUT && err != ERR_INTERNAL && !(foreign && err == ERR_UPSTREAM))
            op_retry(op, err, why);
        else
            op_fail(op, err, "%s", why);
        return;
    case ACT_DELIVER:
        if (err) {
            snprintf(why, sizeof why, "%s %.64s, in the body: %.200s", foreign ? "redirect target of" : "upstream", u->host, text);
            if (err == ERR_CANCELED || err == ERR_UNAVAILABLE || (err == ERR_TOO_LARGE && op->kind != OP_MANIFEST))
                err = ERR_UPSTREAM;
            op_fail(op, err, "%s", why);
        } else {
            deliver(op);
        }
        return;
    case ACT_RETRY:
        snprintf(why, sizeof why, "%s %.64s answers %d", foreign ? "redirect target of" : "upstream", u->host, op->status);
        if (!foreign)
            breaker_fail(u, op->path, true, why);
        op_retry(op, ERR_UPSTREAM, why);
        return;
    case ACT_CHALLENGED:
        op_challenged(op);
        return;
    case ACT_BASIC_TRY:
        op->basic_tried = true;
        op_send(op);
        return;
    case ACT_AS_GET:
        op->head = false;
        op_send(op);
        return;
    case ACT_REDIRECT:
        op_redirect(op);
        return;
    case ACT_FAIL:
        op_end_failed(op);
        return;
    }
    WRONG("act");
}

/* ---- operations ------------------------------------------------------------------------------------------------------- */

static char *path_of(const struct upstream *u, struct str repository, const char *what, struct str reference)
{
    struct strbuf b = {0};
    sb_addf(&b, "%s/v2/%.*s/%s%.*s", u->prefix, STR(repository), what, STR(reference));
    return sb_take(&b);
}

struct upstream_op *upstream_manifest(struct upstream *u, struct str repository, struct str reference, bool head, upstream_manifest_cb *cb, void *ctx)
{
    struct upstream_op *op = op_new(u, OP_MANIFEST, repository, ctx);
    op->cb.manifest = cb;
    op->head = head;
    op->by_digest = digest_parse(reference, &op->digest, NULL) == ERR_OK;
    if (!oci_name_valid(repository) || (!op->by_digest && !oci_tag_valid(reference))) {
        op_fail_later(op, ERR_INVALID, "the repository or reference is malformed");
        return op;
    }
    op->path = path_of(u, repository, "manifests/", reference);
    return op_start(op);
}

struct upstream_op *upstream_tags(struct upstream *u, struct str repository, upstream_tags_cb *cb, void *ctx)
{
    struct upstream_op *op = op_new(u, OP_TAGS, repository, ctx);
    op->cb.tags = cb;
    if (!oci_name_valid(repository)) {
        op_fail_later(op, ERR_INVALID, "the repository is malformed");
        return op;
    }
    op->path = path_of(u, repository, "tags/list?n=1000", S(""));
    return op_start(op);
}

struct upstream_op *upstream_referrers(struct upstream *u, struct str repository, const struct digest *d, upstream_referrers_cb *cb, void *ctx)
{
    struct upstream_op *op = op_new(u, OP_REFERRERS, repository, ctx);
    char text[DIGEST_TEXT_MAX];
    op->cb.referrers = cb;
    if (!oci_name_valid(repository) || !digest_is_set(d)) {
        op_fail_later(op, ERR_INVALID, "the repository or digest is malformed");
        return op;
    }
    op->path = path_of(u, repository, "referrers/", str_c(digest_text(d, text)));
    return op_start(op);
}

struct upstream_op *upstream_blob(struct upstream *u, struct str repository, const struct digest *d, const struct byte_range *range, bool want_head,
                                  const struct upstream_blob_handlers *h, void *ctx)
{
    struct upstream_op *op = op_new(u, OP_BLOB, repository, ctx);
    char text[DIGEST_TEXT_MAX];
    op->cb.blob = *h;
    op->head = want_head;
    if (!oci_name_valid(repository) || !digest_is_set(d) || (range && range->last < range->first)) {
        op_fail_later(op, ERR_INVALID, "the repository, digest or range is malformed");
        return op;
    }
    if (range) {
        op->has_range = true;
        op->range = *range;
    }
    op->path = path_of(u, repository, "blobs/", str_c(digest_text(d, text)));
    return op_start(op);
}

void upstream_resume(struct upstream_op *op)
{
    if (op_of(op)->f)
        fetch_resume(op->f);
}

struct upstream_op *upstream_ping(struct upstream *u, upstream_ping_cb *cb, void *ctx)
{
    struct upstream_op *op = op_new(u, OP_PING, (struct str){NULL, 0}, ctx);
    struct strbuf b = {0};
    op->cb.ping = cb;
    sb_addf(&b, "%s/v2/", u->prefix);
    op->path = sb_take(&b);
    return op_start(op);
}
