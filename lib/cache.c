/* Redis for both daemons: a connection for commands and one for a subscription on a loop, and a blocking one for the admin's threads.
 * Of hiredis it uses connecting, formatting, buffering and the reply parser, not the async layer: that one asserts on what the server
 * sends (0.14.1: an unasked reply, or a malformed message under SUBSCRIBE, ends the process), and foreign input is never asserted here.
 * The order of replies is the order of commands, so an operation that is over before its reply stays in the queue without a callback
 * until the reply has been read. It knows nothing of what the values mean. */
#include "pullgate/cache.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <hiredis/hiredis.h>
#include <hiredis/sds.h>

#include "pullgate/clock.h"
#include "pullgate/log.h"
#include "pullgate/mem.h"

static const uint64_t BACKOFF_MIN_MS = 50;
static const uint64_t BACKOFF_MAX_MS = 1000;
static const uint64_t CONNECT_MS = 1000;         /* connect and handshake; Redis is near */
static const unsigned TIMEOUTS_TO_RECONNECT = 5; /* commands in a row without a reply */
static const uint64_t HUNG_MS = 1000;            /* the oldest unanswered command is older: reconnect */
static const uint64_t SUB_PING_MS = 5000;        /* a subscription is silent by nature: asked whether it lives */
static const size_t REPLY_BYTES_MAX = 256u << 20; /* one reply: a garbage server must not fill memory */
static const int ARRAY_MAX = 1000000;            /* elements of one reply */
static const size_t UNSENT_MAX = 1u << 20;       /* bytes of a transaction gathered before they are sent */
static const size_t QUEUE_MAX = 100000;          /* commands in flight on one connection */
static const size_t READ_ROUND_MAX = 16;         /* reads a readiness event, so that one connection cannot hold the loop */
static const size_t HIREDIS_READ = 16 * 1024;    /* bytes hiredis 0.14 takes from the socket at once */
static const int REPLY_DEPTH_MAX = 7;            /* as the hiredis parser's own */

#define MAX_ADDRS 8
#define MAX_SUBS 4
#define ARGV_STACK 16

/* ---- the URL --------------------------------------------------------------------------------- */

struct target {
    bool is_unix;
    char *host; /* or the socket's path */
    char *port;
    char *username, *password;
    uint64_t db;
};

static void target_clear(struct target *t)
{
    MEM_FREE(t->host);
    MEM_FREE(t->port);
    MEM_FREE(t->username);
    if (t->password)
        mem_free_secret(t->password, strlen(t->password));
    t->password = NULL;
}

/* %XX of a userinfo; a NUL or a broken escape is refused. */
static bool percent_decode(struct str in, struct strbuf *ret)
{
    for (size_t i = 0; i < in.n; i++) {
        char c = in.p[i];
        if (c == '%') {
            uint8_t byte;
            if (in.n - i < 3 || !hex_decode((struct str){in.p + i + 1, 2}, &byte, 1) || byte == 0)
                return false;
            c = (char)byte;
            i += 2;
        }
        sb_add_char(ret, c);
    }
    return true;
}

static enum err parse_db(struct str s, uint64_t *ret, struct error *reterr)
{
    *ret = 0;
    if (s.n && (!str_to_u64(s, ret) || *ret > 65535))
        return error_set_field(reterr, ERR_INVALID, "redis.url", "redis.url: database \"%.*s\" is no number", STR(s));
    return ERR_OK;
}

static enum err target_userinfo(struct str info, struct target *t, struct error *reterr)
{
    struct str user = info, pass = {NULL, 0};
    struct strbuf b = {0};
    bool ok;

    str_cut(info, ':', &user, &pass);
    ok = percent_decode(user, &b);
    t->username = b.p ? sb_take(&b) : mem_strdup("");
    if (ok && pass.n) {
        ok = percent_decode(pass, &b);
        t->password = b.p ? sb_take(&b) : NULL;
    }
    if (!ok)
        return error_set_field(reterr, ERR_INVALID, "redis.url", "redis.url: a broken %%XX in user or password");
    return ERR_OK;
}

static enum err target_parse(const struct config *cfg, struct target *t, struct error *reterr)
{
    struct str url = str_c(cfg->redis.url);
    struct str rest, before, after;
    enum err e;

    memset(t, 0, sizeof *t);
    if (str_starts(url, S("unix://"))) {
        struct str path = str_skip(url, 7), query = {NULL, 0};
        str_cut(path, '?', &path, &query);
        t->is_unix = true;
        if (path.n == 0 || path.p[0] != '/' || path.n >= sizeof(((struct sockaddr_un *)0)->sun_path)) {
            e = error_set_field(reterr, ERR_INVALID, "redis.url", "redis.url: \"%.*s\" is no path of a socket", STR(path));
            goto fail;
        }
        t->host = str_dup(path);
        if (str_starts(query, S("db="))) {
            if ((e = parse_db(str_skip(query, 3), &t->db, reterr)))
                goto fail;
        } else if (query.n) {
            e = error_set_field(reterr, ERR_INVALID, "redis.url", "redis.url: only ?db=N may follow the path");
            goto fail;
        }
    } else if (str_starts(url, S("redis://"))) {
        ptrdiff_t at;
        rest = str_skip(url, 8);
        at = str_rindex(rest, '@');
        if (at >= 0) {
            if ((e = target_userinfo(str_sub(rest, 0, (size_t)at), t, reterr)))
                goto fail;
            rest = str_skip(rest, (size_t)at + 1);
        }
        if (str_cut(rest, '/', &before, &after)) {
            if ((e = parse_db(after, &t->db, reterr)))
                goto fail;
            rest = before;
        }
        before = rest;
        after = (struct str){NULL, 0};
        if (rest.n && rest.p[0] == '[') {
            ptrdiff_t end = str_index(rest, ']');
            if (end < 0) {
                e = error_set_field(reterr, ERR_INVALID, "redis.url", "redis.url: no ']' after the address");
                goto fail;
            }
            before = str_sub(rest, 1, (size_t)end - 1);
            after = str_skip(rest, (size_t)end + 1);
            if (after.n && after.p[0] == ':')
                after = str_skip(after, 1);
        } else {
            str_cut(rest, ':', &before, &after);
        }
        if (before.n == 0)
            before = S("127.0.0.1");
        if (after.n == 0)
            after = S("6379");
        uint64_t port;
        if (!str_to_u64(after, &port) || port == 0 || port > 65535) {
            e = error_set_field(reterr, ERR_INVALID, "redis.url", "redis.url: \"%.*s\" is no port", STR(after));
            goto fail;
        }
        t->host = str_dup(before);
        t->port = str_dup(after);
    } else if (str_starts(url, S("rediss://"))) {
        e = error_set_field(reterr, ERR_INVALID, "redis.url", "redis.url: rediss:// needs a hiredis with TLS, which this build has not; "
                            "use a unix socket, or a TLS tunnel beside the daemon");
        goto fail;
    } else {
        e = error_set_field(reterr, ERR_INVALID, "redis.url", "redis.url: expected redis://host:port/db or unix:///path?db=N");
        goto fail;
    }
    if (cfg->redis.username && cfg->redis.username[0]) {
        MEM_FREE(t->username);
        t->username = mem_strdup(cfg->redis.username);
    }
    if (cfg->redis.password && cfg->redis.password[0]) {
        if (t->password)
            mem_free_secret(t->password, strlen(t->password));
        t->password = mem_strdup(cfg->redis.password);
    }
    return ERR_OK;

fail:
    target_clear(t);
    return e;
}

/* Numeric addresses of the name, so that connecting later never resolves (FACTS H1: hiredis resolves in the calling thread). */
static enum err target_resolve(const struct target *t, char addrs[MAX_ADDRS][INET6_ADDRSTRLEN + 16], size_t *ret_n, struct error *reterr)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_family = AF_UNSPEC};
    struct addrinfo *list = NULL;
    size_t n = 0;
    int rc;

    if (t->is_unix) {
        *ret_n = 1;
        addrs[0][0] = '\0';
        return ERR_OK;
    }
    rc = getaddrinfo(t->host, t->port, &hints, &list);
    if (rc != 0)
        return error_set_field(reterr, ERR_UNAVAILABLE, "redis.url", "redis.url: %s: %s", t->host, gai_strerror(rc));
    for (struct addrinfo *ai = list; ai && n < MAX_ADDRS; ai = ai->ai_next)
        if (getnameinfo(ai->ai_addr, ai->ai_addrlen, addrs[n], sizeof addrs[n], NULL, 0, NI_NUMERICHOST) == 0)
            n++;
    freeaddrinfo(list);
    if (n == 0)
        return error_set_field(reterr, ERR_UNAVAILABLE, "redis.url", "redis.url: %s has no address", t->host);
    *ret_n = n;
    return ERR_OK;
}

/* The parser allocates what an array's head announces before an element has come: "*1000000000" would take 8 GB. */
static redisReplyObjectFunctions parser_functions;
static void *(*parser_array)(const redisReadTask *task, int elements);
static pthread_once_t parser_once = PTHREAD_ONCE_INIT;

static void *parser_bounded_array(const redisReadTask *task, int elements)
{
    return elements > ARRAY_MAX ? NULL : parser_array(task, elements);
}

static void parser_init(void)
{
    redisReader *r = redisReaderCreate();
    AN(r != NULL);
    parser_functions = *r->fn;
    parser_array = r->fn->createArray;
    parser_functions.createArray = parser_bounded_array;
    redisReaderFree(r);
}

/* Starts connecting, without blocking. NULL when that failed at once. */
static redisContext *dial(const struct target *t, const char *addr)
{
    redisContext *rc = t->is_unix ? redisConnectUnixNonBlock(t->host) : redisConnectNonBlock(addr, (int)strtol(t->port, NULL, 10));
    if (!rc)
        return NULL;
    if (rc->err) {
        redisFree(rc);
        return NULL;
    }
    pthread_once(&parser_once, parser_init);
    rc->reader->fn = &parser_functions;
    (void)fcntl(rc->fd, F_SETFD, FD_CLOEXEC);
    if (!t->is_unix) {
        int on = 1, idle = 5, interval = 2, count = 3;
        unsigned user_timeout = 2000; /* ms that sent bytes may stay unacknowledged: a partition is noticed (SECURITY 2.3) */
        (void)setsockopt(rc->fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
        (void)setsockopt(rc->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        (void)setsockopt(rc->fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
        (void)setsockopt(rc->fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof interval);
        (void)setsockopt(rc->fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof count);
        (void)setsockopt(rc->fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &user_timeout, sizeof user_timeout);
    }
    return rc;
}

static bool socket_connected(int fd)
{
    int so = 0;
    socklen_t n = sizeof so;
    return getsockopt(fd, SOL_SOCKET, SO_ERROR, &so, &n) == 0 && so == 0;
}

/* ---- replies --------------------------------------------------------------------------------- */

static void reply_clear(struct cache_reply *r)
{
    if (r->type != CACHE_ARRAY || !r->items)
        return;
    struct cache_reply *items;
    memcpy(&items, &r->items, sizeof items); /* ours to free; const only for the reader */
    for (size_t i = 0; i < r->n; i++)
        reply_clear(&items[i]);
    mem_free(items);
    r->items = NULL;
    r->n = 0;
}

/* Every error reply is "cannot know"; it is told rarely, and as an error where an operator has to act. */
static void report_error(const char *text)
{
    static unsigned long long last_auth, last_other;
    struct str s = str_c(text);

    if (str_starts(s, S("NOAUTH")) || str_starts(s, S("WRONGPASS")) || str_starts(s, S("NOPERM")))
        log_limited(&last_auth, 10000, LOG_LEVEL_ERROR, "redis refuses us: %.160s", text);
    else
        log_limited(&last_other, 10000, LOG_LEVEL_WARN, "redis answered an error: %.160s", text);
}

static enum err reply_convert(const redisReply *in, struct cache_reply *out, int depth)
{
    memset(out, 0, sizeof *out);
    if (!in || depth > REPLY_DEPTH_MAX)
        return ERR_UNAVAILABLE;
    switch (in->type) {
    case REDIS_REPLY_NIL:
        out->type = CACHE_NIL;
        return ERR_OK;
    case REDIS_REPLY_STRING:
        out->type = CACHE_STRING;
        out->str = (struct str){in->str, in->len};
        return ERR_OK;
    case REDIS_REPLY_STATUS:
        out->type = CACHE_STATUS;
        out->str = (struct str){in->str, in->len};
        return ERR_OK;
    case REDIS_REPLY_INTEGER:
        out->type = CACHE_INTEGER;
        out->integer = in->integer;
        return ERR_OK;
    case REDIS_REPLY_ARRAY: {
        struct cache_reply *items;
        size_t bytes;
        out->type = CACHE_ARRAY;
        if (in->elements == 0)
            return ERR_OK;
        if (__builtin_mul_overflow(in->elements, sizeof *items, &bytes) || !(items = mem_try_alloc(bytes)))
            return ERR_UNAVAILABLE;
        memset(items, 0, bytes);
        out->items = items;
        out->n = in->elements;
        for (size_t i = 0; i < in->elements; i++)
            if (reply_convert(in->element[i], &items[i], depth + 1)) {
                reply_clear(out);
                return ERR_UNAVAILABLE;
            }
        return ERR_OK;
    }
    case REDIS_REPLY_ERROR:
        report_error(in->str);
        return ERR_UNAVAILABLE;
    default:
        return ERR_UNAVAILABLE;
    }
}

/* hiredis wants two arrays; both are gone after the call. */
static bool append_command(redisContext *rc, const struct str *argv, size_t argc)
{
    const char *stack_p[ARGV_STACK];
    size_t stack_n[ARGV_STACK];
    const char **p = stack_p;
    size_t *n = stack_n;
    int r;

    AN(argc > 0 && argc < INT32_MAX);
    if (argc > ARGV_STACK) {
        p = mem_calloc(argc, sizeof *p);
        n = mem_calloc(argc, sizeof *n);
    }
    for (size_t i = 0; i < argc; i++) {
        p[i] = argv[i].p ? argv[i].p : "";
        n[i] = argv[i].n;
    }
    r = redisAppendCommandArgv(rc, (int)argc, p, n);
    if (p != stack_p) {
        mem_free(p);
        mem_free(n);
    }
    return r == REDIS_OK;
}

/* ---- one connection on the loop ---------------------------------------------------------------- */

enum op_kind { OP_COMMAND, OP_HANDSHAKE };

struct cache_op { /* owned by its connection's queue, or by the list of those that failed at once */
    struct cache_op *next;
    enum op_kind kind;
    cache_cb *cb; /* NULL: over, or nobody cares */
    void *ctx;
    uint64_t sent_ms;
};

struct op_list {
    struct cache_op *head, **tail;
    size_t n;
};

enum conn_state { CONN_DOWN, CONN_CONNECTING, CONN_HANDSHAKE, CONN_UP };

struct conn {
    struct cache *cache;
    const char *what;
    bool is_sub;
    enum conn_state state;
    redisContext *rc;
    struct watch *watch;
    bool wants_write;
    struct timer *timer; /* DOWN: reconnect; otherwise the deadline of what is unanswered */
    struct op_list queue; /* sent, in the order of their replies */
    size_t n_expired;     /* the first ones of the queue have been told already */
    unsigned timeouts;    /* in a row */
    unsigned failures;    /* connections in a row that did not come up */
    uint64_t backoff_ms;
    uint64_t began_ms;    /* CONNECTING, HANDSHAKE */
    uint64_t heard_ms;    /* subscription: last byte */
    bool pinged;
};

struct subscription {
    char *channel;
    void (*on_message)(void *ctx, struct str message);
    void (*on_up)(void *ctx, bool up);
    void *ctx;
    bool confirmed;
};

struct cache {
    unsigned magic;
    struct loop *loop;
    struct target target;
    char addrs[MAX_ADDRS][INET6_ADDRSTRLEN + 16];
    size_t n_addrs;
    uint64_t deadline_ms;
    struct conn cmd;
    struct conn sub;
    struct subscription subs[MAX_SUBS];
    size_t n_subs;
    struct timer *soon; /* what must not happen inside a caller's call: failing at once, writing, giving up */
    struct op_list failed;
    bool cmd_broken;    /* an append failed: the connection is dropped from `soon` */
    bool in_free;
};
#define CACHE_MAGIC 0x70636163u

static void conn_drop(struct conn *c, const char *why);
static void conn_open(struct conn *c);

static void list_init(struct op_list *l)
{
    l->head = NULL;
    l->tail = &l->head;
    l->n = 0;
}

static void list_push(struct op_list *l, struct cache_op *op)
{
    op->next = NULL;
    *l->tail = op;
    l->tail = &op->next;
    l->n++;
}

static struct cache_op *list_shift(struct op_list *l)
{
    struct cache_op *op = l->head;
    if (!op)
        return NULL;
    l->head = op->next;
    if (!l->head)
        l->tail = &l->head;
    l->n--;
    return op;
}

static void op_done(struct cache_op *op, enum err e, const struct cache_reply *r)
{
    cache_cb *cb = op->cb;
    op->cb = NULL;
    if (cb)
        cb(op->ctx, e, r);
}

/* The queue's oldest unanswered and untold operation; they all have the same deadline, so it is the first to be late. */
static struct cache_op *first_waiting(struct conn *c)
{
    struct cache_op *op = c->queue.head;
    for (size_t i = 0; op && i < c->n_expired; i++)
        op = op->next;
    return op;
}

static void conn_arm(struct conn *c)
{
    uint64_t now = loop_now_ms(c->cache->loop), at;
    struct cache_op *op;

    if (timer_pending(c->timer))
        return;
    if (c->state == CONN_CONNECTING || c->state == CONN_HANDSHAKE) {
        at = c->began_ms + CONNECT_MS;
        if ((op = first_waiting(c)) && op->sent_ms + c->cache->deadline_ms < at)
            at = op->sent_ms + c->cache->deadline_ms;
    } else if (c->is_sub) {
        at = c->heard_ms + SUB_PING_MS + (c->pinged ? HUNG_MS : 0);
    } else if ((op = first_waiting(c))) {
        at = op->sent_ms + c->cache->deadline_ms;
    } else if (c->queue.head) {
        at = c->queue.head->sent_ms + HUNG_MS;
    } else {
        return;
    }
    timer_set(c->timer, at > now ? at - now : 1);
}

static void conn_interest(struct conn *c)
{
    if (c->watch)
        watch_change(c->watch, WATCH_READ | (c->wants_write ? WATCH_WRITE : 0));
}

/* False: the connection is gone. */
static bool conn_flush(struct conn *c)
{
    int done = 0;

    if (c->state != CONN_HANDSHAKE && c->state != CONN_UP)
        return true;
    if (redisBufferWrite(c->rc, &done) != REDIS_OK) {
        conn_drop(c, c->rc->errstr);
        return false;
    }
    if (c->wants_write != !done) {
        c->wants_write = !done;
        conn_interest(c);
    }
    return true;
}

static void conn_came_up(struct conn *c)
{
    c->state = CONN_UP;
    timer_cancel(c->timer);
    if (c->failures)
        log_info("redis: %s connected again", c->what);
    c->failures = 0;
    c->backoff_ms = BACKOFF_MIN_MS;
    c->timeouts = 0;
    c->heard_ms = loop_now_ms(c->cache->loop);
    c->pinged = false;
    if (c->is_sub) {
        for (size_t i = 0; i < c->cache->n_subs; i++) {
            struct str argv[] = {S("SUBSCRIBE"), str_c(c->cache->subs[i].channel)};
            if (!append_command(c->rc, argv, 2)) {
                conn_drop(c, "out of memory");
                return;
            }
        }
        if (!conn_flush(c))
            return;
    }
    conn_arm(c);
}

static void push_handshake(struct conn *c, const struct str *argv, size_t argc)
{
    struct cache_op *op;
    if (!append_command(c->rc, argv, argc))
        return; /* the missing reply ends in the handshake's deadline */
    op = NEW(struct cache_op);
    op->kind = OP_HANDSHAKE;
    op->sent_ms = loop_now_ms(c->cache->loop);
    list_push(&c->queue, op);
}

static void conn_append_handshake(struct conn *c)
{
    const struct target *t = &c->cache->target;
    char db[24];

    if (t->password) {
        struct str argv[3] = {S("AUTH")};
        size_t n = 1;
        if (t->username && t->username[0])
            argv[n++] = str_c(t->username);
        argv[n++] = str_c(t->password);
        push_handshake(c, argv, n);
    }
    if (t->db && !c->is_sub) {
        struct strbuf b = {0};
        sb_add_u64(&b, t->db);
        AN(b.n < sizeof db);
        memcpy(db, b.p, b.n + 1);
        sb_free(&b);
        push_handshake(c, (struct str[]){S("SELECT"), str_c(db)}, 2);
    }
    push_handshake(c, (struct str[]){S("PING")}, 1); /* LOADING and NOAUTH show here, before anybody's command */
}

/* A reply of the handshake. False: the connection is gone. */
static bool conn_handshake_reply(struct conn *c, const redisReply *r)
{
    bool more = false;

    if (r->type != REDIS_REPLY_STATUS) {
        if (r->type == REDIS_REPLY_ERROR)
            report_error(r->str);
        conn_drop(c, "handshake refused");
        return false;
    }
    for (struct cache_op *op = c->queue.head; op; op = op->next)
        more |= op->kind == OP_HANDSHAKE;
    if (!more)
        conn_came_up(c);
    return c->state == CONN_UP || more;
}

/* A message on the subscription's connection; anything malformed drops it. */
static bool sub_message(struct conn *c, const redisReply *r)
{
    struct cache *cache = c->cache;
    struct str kind, channel;

    c->pinged = false;
    if (r->type == REDIS_REPLY_ERROR)
        report_error(r->str);
    if (r->type != REDIS_REPLY_ARRAY || r->elements < 2 || r->element[0]->type != REDIS_REPLY_STRING ||
        r->element[1]->type != REDIS_REPLY_STRING) {
        conn_drop(c, "malformed message");
        return false;
    }
    kind = (struct str){r->element[0]->str, r->element[0]->len};
    channel = (struct str){r->element[1]->str, r->element[1]->len};
    for (size_t i = 0; i < cache->n_subs; i++) {
        struct subscription *s = &cache->subs[i];
        if (!str_eq_c(channel, s->channel))
            continue;
        if (str_eq(kind, S("subscribe")) && !s->confirmed) {
            s->confirmed = true;
            if (s->on_up)
                s->on_up(s->ctx, true);
        } else if (str_eq(kind, S("message")) && r->elements == 3 && r->element[2]->type == REDIS_REPLY_STRING) {
            s->on_message(s->ctx, (struct str){r->element[2]->str, r->element[2]->len});
        }
    }
    return true;
}

/* False: the connection is gone. */
static bool conn_reply(struct conn *c, const redisReply *r)
{
    struct cache_op *op;
    struct cache_reply out;
    enum err e;

    if (c->is_sub && c->state == CONN_UP)
        return sub_message(c, r);
    op = list_shift(&c->queue);
    if (!op) {
        if (r->type == REDIS_REPLY_ERROR)
            report_error(r->str); /* "max number of clients reached" comes unasked */
        conn_drop(c, "a reply that nobody asked for");
        return false;
    }
    if (c->n_expired)
        c->n_expired--;
    else
        c->timeouts = 0;
    if (op->kind == OP_HANDSHAKE) {
        mem_free(op);
        return conn_handshake_reply(c, r);
    }
    if (op->cb) {
        e = reply_convert(r, &out, 0);
        op_done(op, e, e ? NULL : &out);
        if (!e)
            reply_clear(&out);
    }
    mem_free(op);
    return true;
}

static void conn_read(struct conn *c)
{
    void *reply = NULL;

    for (size_t round = 0; round < READ_ROUND_MAX; round++) {
        size_t before = c->rc->reader->len, grown;
        if (redisBufferRead(c->rc) != REDIS_OK) {
            conn_drop(c, c->rc->errstr);
            return;
        }
        grown = c->rc->reader->len - before;
        if (grown == 0)
            break;
        c->heard_ms = loop_now_ms(c->cache->loop);
        for (;;) {
            bool alive;
            reply = NULL;
            if (redisGetReplyFromReader(c->rc, &reply) != REDIS_OK) {
                conn_drop(c, c->rc->errstr);
                return;
            }
            if (!reply)
                break;
            alive = conn_reply(c, reply);
            freeReplyObject(reply);
            if (!alive)
                return;
        }
        if (c->rc->reader->len - c->rc->reader->pos > REPLY_BYTES_MAX) {
            conn_drop(c, "a reply that is too large");
            return;
        }
        if (grown < HIREDIS_READ)
            break; /* the socket had no more */
    }
}

static void conn_ready(void *ctx, int fd, unsigned ready)
{
    struct conn *c = ctx;

    if (c->state == CONN_CONNECTING) {
        if (!socket_connected(fd)) {
            conn_drop(c, "connection refused");
            return;
        }
        c->state = CONN_HANDSHAKE;
        ready |= WATCH_WRITE;
    }
    if ((ready & WATCH_WRITE) && !conn_flush(c))
        return;
    if (ready & WATCH_READ)
        conn_read(c); /* last: c->rc may be gone */
}

static void conn_timer(void *ctx)
{
    struct conn *c = ctx;
    uint64_t now = loop_now_ms(c->cache->loop);
    struct cache_op *op;

    switch (c->state) {
    case CONN_DOWN:
        conn_open(c);
        return;
    case CONN_CONNECTING:
    case CONN_HANDSHAKE:
        while ((op = first_waiting(c)) && now >= op->sent_ms + c->cache->deadline_ms) {
            c->n_expired++;
            op_done(op, ERR_UNAVAILABLE, NULL);
        }
        if (now >= c->began_ms + CONNECT_MS)
            conn_drop(c, "no answer");
        else
            conn_arm(c);
        return;
    case CONN_UP:
        break;
    }
    if (c->is_sub) {
        if (c->pinged && now >= c->heard_ms + SUB_PING_MS + HUNG_MS) {
            conn_drop(c, "silent");
            return;
        }
        if (!c->pinged && now >= c->heard_ms + SUB_PING_MS) {
            c->pinged = true;
            if (!append_command(c->rc, (struct str[]){S("PING")}, 1)) {
                conn_drop(c, "out of memory");
                return;
            }
            if (!conn_flush(c))
                return;
        }
        conn_arm(c);
        return;
    }
    while ((op = first_waiting(c)) && now >= op->sent_ms + c->cache->deadline_ms) {
        c->n_expired++;
        c->timeouts++;
        op_done(op, ERR_UNAVAILABLE, NULL);
    }
    if (c->timeouts >= TIMEOUTS_TO_RECONNECT || (c->queue.head && c->n_expired && now >= c->queue.head->sent_ms + HUNG_MS)) {
        conn_drop(c, "not answering");
        return;
    }
    conn_arm(c);
}

static void conn_open(struct conn *c)
{
    struct cache *cache = c->cache;

    AN(c->state == CONN_DOWN && !c->rc);
    c->began_ms = loop_now_ms(cache->loop);
    c->rc = dial(&cache->target, cache->addrs[c->failures % cache->n_addrs]);
    if (!c->rc) {
        conn_drop(c, "connection refused");
        return;
    }
    c->state = CONN_CONNECTING;
    c->wants_write = true;
    c->watch = watch_new(cache->loop, c->rc->fd, WATCH_READ | WATCH_WRITE, conn_ready, c);
    conn_append_handshake(c);
    timer_cancel(c->timer);
    conn_arm(c);
}

/* Everything unanswered fails; the next try is after the backoff. Never called inside a caller's call. */
static void conn_drop(struct conn *c, const char *why)
{
    static unsigned long long last;
    struct op_list failed = c->queue;
    struct cache_op *op;
    bool was_up = c->state == CONN_UP;

    if (!c->cache->in_free)
        log_limited(&last, 10000, LOG_LEVEL_WARN, "redis: %s lost: %.120s", c->what, why);
    if (failed.n == 0)
        list_init(&failed);
    list_init(&c->queue);
    c->n_expired = 0;
    c->timeouts = 0;
    watch_free(&c->watch);
    if (c->rc) {
        redisFree(c->rc);
        c->rc = NULL;
    }
    c->state = CONN_DOWN;
    c->failures++;
    timer_cancel(c->timer);
    if (!c->cache->in_free) {
        uint64_t wait = c->backoff_ms ? c->backoff_ms : BACKOFF_MIN_MS;
        timer_set(c->timer, wait + clock_mono_us() % (wait / 4 + 1)); /* spread, so that a fleet does not come back as one */
        c->backoff_ms = wait * 2 < BACKOFF_MAX_MS ? wait * 2 : BACKOFF_MAX_MS;
    }
    if (c->is_sub)
        for (size_t i = 0; i < c->cache->n_subs; i++) {
            struct subscription *s = &c->cache->subs[i];
            s->confirmed = false;
            if (was_up && s->on_up && !c->cache->in_free)
                s->on_up(s->ctx, false);
        }
    while ((op = list_shift(&failed))) {
        if (!c->cache->in_free)
            op_done(op, ERR_UNAVAILABLE, NULL);
        mem_free(op);
    }
}

/* ---- the loop's cache ---------------------------------------------------------------------------- */

static void cache_soon(void *ctx)
{
    struct cache *c = ctx;
    struct op_list failed = c->failed;
    struct cache_op *op;

    if (failed.n == 0)
        list_init(&failed);
    list_init(&c->failed);
    if (c->cmd_broken) {
        c->cmd_broken = false;
        if (c->cmd.state != CONN_DOWN)
            conn_drop(&c->cmd, "out of memory");
    } else {
        (void)conn_flush(&c->cmd);
    }
    while ((op = list_shift(&failed))) {
        op_done(op, ERR_UNAVAILABLE, NULL);
        mem_free(op);
    }
}

static void conn_init(struct conn *c, struct cache *cache, const char *what, bool is_sub)
{
    c->cache = cache;
    c->what = what;
    c->is_sub = is_sub;
    c->backoff_ms = BACKOFF_MIN_MS;
    list_init(&c->queue);
    c->timer = timer_new(cache->loop, conn_timer, c);
}

enum err cache_new(struct loop *l, const struct config *cfg, struct cache **ret, struct error *reterr)
{
    struct cache *c = NEW(struct cache);
    enum err e = target_parse(cfg, &c->target, reterr);

    if (!e)
        e = target_resolve(&c->target, c->addrs, &c->n_addrs, reterr);
    if (e) {
        target_clear(&c->target);
        mem_free(c);
        return e;
    }
    c->magic = CACHE_MAGIC;
    c->loop = l;
    c->deadline_ms = cfg->limits.redis_deadline_ms ? cfg->limits.redis_deadline_ms : 200;
    list_init(&c->failed);
    c->soon = timer_new(l, cache_soon, c);
    conn_init(&c->cmd, c, "command connection", false);
    conn_init(&c->sub, c, "subscription", true);
    conn_open(&c->cmd);
    *ret = c;
    return ERR_OK;
}

void cache_free(struct cache **pc)
{
    struct cache *c = *pc;
    struct cache_op *op;

    if (!c)
        return;
    AN(c->magic == CACHE_MAGIC);
    *pc = NULL;
    c->in_free = true;
    conn_drop(&c->cmd, "");
    conn_drop(&c->sub, "");
    timer_free(&c->cmd.timer);
    timer_free(&c->sub.timer);
    timer_free(&c->soon);
    while ((op = list_shift(&c->failed)))
        mem_free(op);
    for (size_t i = 0; i < c->n_subs; i++)
        mem_free(c->subs[i].channel);
    target_clear(&c->target);
    c->magic = 0;
    mem_free(c);
}

bool cache_is_up(const struct cache *c)
{
    return c->cmd.state == CONN_UP && c->cmd.n_expired == 0;
}

struct cache_op *cache_command(struct cache *c, const struct str *argv, size_t argc, cache_cb *cb, void *ctx)
{
    struct cache_op *op = NEW(struct cache_op);
    /* A first connection is worth waiting for, within the command's own deadline; one that has failed is not. */
    bool open = c->cmd.rc && (c->cmd.state == CONN_UP || c->cmd.failures == 0) && c->cmd.queue.n < QUEUE_MAX && !c->cmd_broken;

    op->kind = OP_COMMAND;
    op->cb = cb;
    op->ctx = ctx;
    op->sent_ms = loop_now_ms(c->loop);
    if (!timer_pending(c->soon))
        timer_set(c->soon, 0);
    if (open && append_command(c->cmd.rc, argv, argc)) {
        list_push(&c->cmd.queue, op);
        conn_arm(&c->cmd);
    } else {
        c->cmd_broken |= open; /* half a command may stand in the buffer */
        list_push(&c->failed, op);
    }
    return op;
}

void cache_cancel(struct cache_op **op)
{
    if (!*op)
        return;
    (*op)->cb = NULL;
    *op = NULL;
}

void cache_subscribe(struct cache *c, const char *channel, void (*on_message)(void *ctx, struct str message), void (*on_up)(void *ctx, bool up),
                     void *ctx)
{
    struct subscription *s;

    AN(c->n_subs < MAX_SUBS);
    s = &c->subs[c->n_subs++];
    *s = (struct subscription){.channel = mem_strdup(channel), .on_message = on_message, .on_up = on_up, .ctx = ctx};
    if (c->sub.state == CONN_UP) {
        struct str argv[] = {S("SUBSCRIBE"), str_c(channel)};
        if (append_command(c->sub.rc, argv, 2)) {
            c->sub.wants_write = true;
            conn_interest(&c->sub);
        }
    } else if (c->sub.state == CONN_DOWN && !timer_pending(c->sub.timer)) {
        timer_set(c->sub.timer, 0);
    }
}

static void message_ignored(void *ctx, struct str message)
{
    (void)ctx, (void)message;
}

void cache_unsubscribe(struct cache *c, const void *ctx)
{
    for (size_t i = 0; i < c->n_subs; i++)
        if (c->subs[i].ctx == ctx) {
            c->subs[i].on_message = message_ignored;
            c->subs[i].on_up = NULL;
            c->subs[i].ctx = NULL;
        }
}

/* ---- blocking ------------------------------------------------------------------------------------ */

struct cache_sync {
    struct target target;
    enum err target_err;
    struct error target_error;
    uint64_t deadline_ms;
    redisContext *rc;
    redisReply *raw; /* the last reply, which `reply` borrows from */
    struct cache_reply reply;
};

struct cache_sync *cache_sync_new(const struct config *cfg, uint64_t deadline_ms)
{
    struct cache_sync *c = NEW(struct cache_sync);
    c->deadline_ms = deadline_ms ? deadline_ms : 1000;
    c->target_err = target_parse(cfg, &c->target, &c->target_error);
    return c;
}

static void sync_forget_reply(struct cache_sync *c)
{
    reply_clear(&c->reply);
    memset(&c->reply, 0, sizeof c->reply);
    if (c->raw) {
        freeReplyObject(c->raw);
        c->raw = NULL;
    }
}

static void sync_close(struct cache_sync *c)
{
    sync_forget_reply(c);
    if (c->rc) {
        redisFree(c->rc);
        c->rc = NULL;
    }
}

void cache_sync_free(struct cache_sync **pc)
{
    if (!*pc)
        return;
    sync_close(*pc);
    target_clear(&(*pc)->target);
    mem_free(*pc);
    *pc = NULL;
}

static int poll_until(int fd, short events, uint64_t deadline)
{
    for (;;) {
        struct pollfd p = {.fd = fd, .events = events};
        uint64_t now = clock_mono_ms();
        int n;
        if (now >= deadline)
            return 0;
        n = poll(&p, 1, (int)(deadline - now < 60000 ? deadline - now : 60000));
        if (n < 0 && errno == EINTR)
            continue;
        if (n > 0)
            return p.revents;
        if (n < 0)
            return 0;
    }
}

/* Sends until little is left unsent, taking in replies meanwhile. hiredis moves the whole rest of its buffer down after each write, so a
 * buffer of many MiB would be moved over and over. */
static bool sync_pump(struct cache_sync *c, uint64_t deadline)
{
    int done = 0;

    while (sdslen(c->rc->obuf) > UNSENT_MAX / 4) {
        int ready = poll_until(c->rc->fd, POLLIN | POLLOUT, deadline);
        if (!ready || ((ready & (POLLIN | POLLHUP | POLLERR)) && redisBufferRead(c->rc) != REDIS_OK) || redisBufferWrite(c->rc, &done) != REDIS_OK)
            return false;
    }
    return true;
}

/* Writes what is buffered while reading, so that a long pipeline cannot block both sides; returns the next reply, or NULL: the
 * connection is closed then and *reterr says why. */
static redisReply *sync_reply(struct cache_sync *c, uint64_t deadline, struct error *reterr)
{
    void *reply = NULL;
    int done = 0;

    for (;;) {
        int ready;
        if (redisGetReplyFromReader(c->rc, &reply) != REDIS_OK)
            break;
        if (reply)
            return reply;
        if (!done && redisBufferWrite(c->rc, &done) != REDIS_OK)
            break;
        ready = poll_until(c->rc->fd, (short)(POLLIN | (done ? 0 : POLLOUT)), deadline);
        if (!ready) {
            (void)error_set(reterr, ERR_UNAVAILABLE, "redis did not answer in time");
            sync_close(c);
            return NULL;
        }
        if ((ready & (POLLIN | POLLHUP | POLLERR)) && redisBufferRead(c->rc) != REDIS_OK)
            break;
        if (c->rc->reader->len - c->rc->reader->pos > REPLY_BYTES_MAX)
            break;
    }
    (void)error_set(reterr, ERR_UNAVAILABLE, "redis: %.120s", c->rc->err ? c->rc->errstr : "a reply that is too large");
    sync_close(c);
    return NULL;
}

/* One command of the handshake; anything but a status is a refusal. */
static enum err sync_hello(struct cache_sync *c, const struct str *argv, size_t argc, uint64_t deadline, struct error *reterr)
{
    redisReply *r;
    enum err e = ERR_OK;

    if (!append_command(c->rc, argv, argc)) {
        sync_close(c);
        return error_set(reterr, ERR_UNAVAILABLE, "redis: out of memory");
    }
    r = sync_reply(c, deadline, reterr);
    if (!r)
        return ERR_UNAVAILABLE;
    if (r->type != REDIS_REPLY_STATUS) {
        const char *text = r->type == REDIS_REPLY_ERROR ? r->str : "an unexpected answer";
        report_error(text);
        e = error_set(reterr, ERR_UNAVAILABLE, "redis: %.160s", text);
    }
    freeReplyObject(r);
    if (e)
        sync_close(c);
    return e;
}

static enum err sync_connect(struct cache_sync *c, uint64_t deadline, struct error *reterr)
{
    char addrs[MAX_ADDRS][INET6_ADDRSTRLEN + 16];
    size_t n = 0;
    enum err e;

    if (c->rc && poll(&(struct pollfd){.fd = c->rc->fd, .events = POLLIN}, 1, 0) > 0)
        sync_close(c); /* nothing was asked: it was closed meanwhile. A command is never sent twice, so this is looked at before */
    if (c->rc)
        return ERR_OK;
    if (c->target_err) {
        if (reterr)
            *reterr = c->target_error;
        return ERR_UNAVAILABLE;
    }
    if ((e = target_resolve(&c->target, addrs, &n, reterr)))
        return e;
    for (size_t i = 0; i < n && !c->rc; i++) {
        c->rc = dial(&c->target, addrs[i]);
        if (c->rc && (!poll_until(c->rc->fd, POLLOUT, deadline) || !socket_connected(c->rc->fd)))
            sync_close(c);
    }
    if (!c->rc)
        return error_set(reterr, ERR_UNAVAILABLE, "redis: cannot connect to %s%s%s", c->target.host, c->target.port ? ":" : "",
                         c->target.port ? c->target.port : "");
    if (c->target.password) {
        struct str argv[3] = {S("AUTH")};
        size_t argc = 1;
        if (c->target.username && c->target.username[0])
            argv[argc++] = str_c(c->target.username);
        argv[argc++] = str_c(c->target.password);
        if ((e = sync_hello(c, argv, argc, deadline, reterr)))
            return e;
    }
    if (c->target.db) {
        struct strbuf b = {0};
        sb_add_u64(&b, c->target.db);
        e = sync_hello(c, (struct str[]){S("SELECT"), sb_str(&b)}, 2, deadline, reterr);
        sb_free(&b);
        if (e)
            return e;
    }
    return ERR_OK;
}

enum err cache_sync_command(struct cache_sync *c, const struct str *argv, size_t argc, const struct cache_reply **ret, struct error *reterr)
{
    uint64_t deadline = clock_mono_ms() + c->deadline_ms;
    enum err e;

    sync_forget_reply(c);
    if ((e = sync_connect(c, deadline, reterr)))
        return e;
    if (!append_command(c->rc, argv, argc)) {
        sync_close(c);
        return error_set(reterr, ERR_UNAVAILABLE, "redis: out of memory");
    }
    c->raw = sync_reply(c, deadline, reterr);
    if (!c->raw)
        return ERR_UNAVAILABLE;
    if (c->raw->type == REDIS_REPLY_ERROR)
        (void)error_set(reterr, ERR_UNAVAILABLE, "redis: %.160s", c->raw->str);
    else
        (void)error_set(reterr, ERR_UNAVAILABLE, "redis: an unexpected reply");
    if ((e = reply_convert(c->raw, &c->reply, 0))) {
        sync_forget_reply(c); /* the order of replies is intact: the connection stays */
        return e;
    }
    if (ret)
        *ret = &c->reply;
    return ERR_OK;
}

static bool reply_is_status(const redisReply *r, const char *text)
{
    return r->type == REDIS_REPLY_STATUS && strcmp(r->str, text) == 0;
}

enum err cache_sync_transaction(struct cache_sync *c, const struct cache_cmd *cmds, size_t n, struct error *reterr)
{
    const uint64_t began = clock_mono_ms();
    uint64_t deadline = began + c->deadline_ms;
    size_t bytes = 0;
    bool ok = true;
    enum err e;

    sync_forget_reply(c);
    if ((e = sync_connect(c, deadline, reterr)))
        return e;
    ok = append_command(c->rc, (struct str[]){S("MULTI")}, 1);
    for (size_t i = 0; i < n && ok; i++) {
        ok = append_command(c->rc, cmds[i].argv, cmds[i].argc);
        for (size_t j = 0; j < cmds[i].argc; j++)
            bytes += cmds[i].argv[j].n;
        deadline = began + c->deadline_ms * (1 + (bytes >> 20)); /* a rebuild is many MiB: as much again for each */
        if (ok && sdslen(c->rc->obuf) > UNSENT_MAX)
            ok = sync_pump(c, deadline);
    }
    ok = ok && append_command(c->rc, (struct str[]){S("EXEC")}, 1);
    if (!ok) { /* without its EXEC nothing has happened */
        sync_close(c);
        return error_set(reterr, ERR_UNAVAILABLE, "redis: the transaction could not be sent");
    }
    for (size_t i = 0; i < n + 2; i++) {
        redisReply *r = sync_reply(c, deadline, reterr);
        if (!r)
            return ERR_UNAVAILABLE;
        if (i == 0)
            ok = reply_is_status(r, "OK");
        else if (i <= n)
            ok = ok && reply_is_status(r, "QUEUED");
        else
            ok = ok && r->type == REDIS_REPLY_ARRAY && r->elements == n;
        if (r->type == REDIS_REPLY_ERROR) {
            report_error(r->str);
            (void)error_set(reterr, ERR_UNAVAILABLE, "redis: %.160s", r->str);
        }
        for (size_t j = 0; i == n + 1 && r->type == REDIS_REPLY_ARRAY && j < r->elements; j++)
            if (r->element[j]->type == REDIS_REPLY_ERROR) {
                report_error(r->element[j]->str);
                (void)error_set(reterr, ERR_UNAVAILABLE, "redis: %.160s", r->element[j]->str);
                ok = false;
            }
        freeReplyObject(r);
    }
    if (ok)
        return ERR_OK;
    if (reterr && reterr->code != ERR_UNAVAILABLE)
        (void)error_set(reterr, ERR_UNAVAILABLE, "redis: transaction refused");
    sync_close(c); /* whatever state it is in, the next call begins anew */
    return ERR_UNAVAILABLE;
}
