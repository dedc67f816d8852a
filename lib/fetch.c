/* HTTP/1.1 client, and mail by SMTP at its end: a libcurl multi handle on our loop, with the options that keep it from doing anything of its own accord:
 * no redirects, cookies, netrc, proxies, decompression; addresses checked where the socket is made (SECURITY 4.6, FACTS 3).
 * It knows nothing of registries, credentials' meaning or retries.
 *
 * Two rules of libcurl shape this file. A handle must not leave its multi inside one of curl's callbacks, so everything that
 * ends, starts or continues a transfer is noted on the pool's list and done by pool_settle() once curl has returned. And bytes
 * that a paused write callback refused come again, so nothing is consumed before the caller has said so. */
#include "pullgate/fetch.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <curl/curl.h>

#include "pullgate/clock.h"
#include "pullgate/log.h"
#include "pullgate/mem.h"

#define FETCH_MAGIC 0x46455443u
#define BUFFER_BYTES (128L * 1024)        /* of a transfer whose body may be long: fewer, larger reads */
#define BUFFER_BYTES_SMALL (16L * 1024)   /* of one with a bounded body */
#define HEAD_BYTES_DEFAULT (32u * 1024)   /* SECURITY 4.6 */
#define HEAD_FIELDS_DEFAULT 64u
#define STALL_MIN_BYTES_PER_S 1024u       /* slower than this over stall_ms is no transfer */
#define URL_MAX (8u * 1024)               /* signed object-storage URLs are up to 2 KiB */
#define CONNECTION_MAX_IDLE_S 60L         /* registries close idle connections after a minute or more */

struct field_at { /* offsets, because the buffer moves while it grows */
    size_t name, name_n, value, value_n;
};

struct fetch {
    unsigned magic;
    struct fetch_pool *pool;
    struct fetch *prev, *next; /* of the pool's list */
    struct fetch *todo_next;
    bool on_todo;

    CURL *easy;
    CURLU *url;
    struct curl_slist *fields_out;
    struct fetch_handlers h;
    void *ctx;
    struct fetch_policy policy;
    size_t max_body;
    bool is_head;

    /* what pool_settle() is to do */
    bool want_add, want_resume, finished, dead;
    bool in_multi, delivering;

    bool paused;      /* the caller wants no more bytes */
    bool curl_paused; /* and curl has been told */
    bool stopped, too_large, denied, got_bytes, head_done;
    const char *bad; /* why the response is refused; a literal */

    struct strbuf head;
    struct field_at *at;
    size_t n_at;
    size_t head_total; /* bytes of all heads, 1xx too */
    uint64_t body_bytes;

    struct timer *watchdog;
    uint64_t window_bytes;
    bool window_paused;

    enum err err;
    char text[256];
    char curl_text[CURL_ERROR_SIZE];
};

struct fetch_pool {
    struct loop *loop;
    struct fetch_limits lim;
    CURLM *multi;
    struct timer *timer; /* curl's */
    struct timer *kick;  /* runs pool_settle() soon */
    struct fetch *first;
    struct fetch *todo_first, **todo_last;
    unsigned in_curl;
    bool settling, closing;
};

#define FETCH(p) fetch_check(p)
static struct fetch *fetch_check(void *p)
{
    struct fetch *f = p;
    AN(f->magic == FETCH_MAGIC);
    return f;
}

static void curl_start(void)
{
    AN(curl_global_init_mem(CURL_GLOBAL_DEFAULT, mem_alloc, mem_free, mem_realloc, mem_strdup, mem_calloc) == CURLE_OK);
    /* Without a resolver of its own a name look-up would block the loop. */
    AN(curl_version_info(CURLVERSION_NOW)->features & CURL_VERSION_ASYNCHDNS);
}

static void curl_start_once(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    AN(pthread_once(&once, curl_start) == 0);
}

/* ---- addresses --------------------------------------------------------------------------------------------------- */

static bool ipv4_public(const uint8_t a[4])
{
    static const struct {
        uint8_t net[4];
        unsigned bits;
    } denied[] = {
        {{0, 0, 0, 0}, 8},     {{10, 0, 0, 0}, 8},    {{100, 64, 0, 0}, 10}, {{127, 0, 0, 0}, 8},    {{169, 254, 0, 0}, 16},
        {{172, 16, 0, 0}, 12}, {{192, 0, 0, 0}, 24},  {{192, 0, 2, 0}, 24},  {{192, 88, 99, 0}, 24}, {{192, 168, 0, 0}, 16},
        {{198, 18, 0, 0}, 15}, {{198, 51, 100, 0}, 24}, {{203, 0, 113, 0}, 24}, {{224, 0, 0, 0}, 3},
    };
    uint32_t v = (uint32_t)a[0] << 24 | (uint32_t)a[1] << 16 | (uint32_t)a[2] << 8 | a[3];
    for (size_t i = 0; i < sizeof denied / sizeof *denied; i++) {
        const uint8_t *n = denied[i].net;
        uint32_t net = (uint32_t)n[0] << 24 | (uint32_t)n[1] << 16 | (uint32_t)n[2] << 8 | n[3];
        if (v >> (32 - denied[i].bits) == net >> (32 - denied[i].bits))
            return false;
    }
    return true;
}

/* Global unicast only, and where an IPv4 address hides inside, that one too. Source: IANA IPv6 special-purpose registry. */
static bool ipv6_public(const uint8_t a[16])
{
    static const uint8_t nat64[12] = {0x00, 0x64, 0xff, 0x9b};
    if (memcmp(a, nat64, sizeof nat64) == 0)
        return ipv4_public(a + 12);
    if ((a[0] & 0xe0) != 0x20) /* also ::, ::1, v4-mapped and -compatible, fc00::/7, fe80::/10, ff00::/8, 64:ff9b:1::/48 */
        return false;
    if (a[0] == 0x20 && a[1] == 0x02) /* 6to4 */
        return ipv4_public(a + 2);
    if (a[0] == 0x20 && a[1] == 0x01 && (a[2] & 0xfe) == 0) /* 2001::/23: Teredo, ORCHID, benchmarks */
        return false;
    if (a[0] == 0x20 && a[1] == 0x01 && a[2] == 0x0d && a[3] == 0xb8) /* documentation */
        return false;
    return !(a[0] == 0x3f && a[1] == 0xff); /* documentation */
}

bool fetch_address_public(const char *numeric)
{
    uint8_t a[16];
    if (inet_pton(AF_INET, numeric, a) == 1)
        return ipv4_public(a);
    return inet_pton(AF_INET6, numeric, a) == 1 && ipv6_public(a);
}

static bool sockaddr_public(const struct sockaddr *sa)
{
    if (sa->sa_family == AF_INET) {
        struct sockaddr_in in;
        memcpy(&in, sa, sizeof in);
        return ipv4_public((const uint8_t *)&in.sin_addr);
    }
    if (sa->sa_family == AF_INET6) {
        struct sockaddr_in6 in6;
        memcpy(&in6, sa, sizeof in6);
        return ipv6_public(in6.sin6_addr.s6_addr);
    }
    return false;
}

static curl_socket_t on_open_socket(void *ctx, curlsocktype purpose, struct curl_sockaddr *a)
{
    struct fetch *f = FETCH(ctx);
    if (purpose != CURLSOCKTYPE_IPCXN || (!f->policy.allow_private && !sockaddr_public(&a->addr))) {
        f->denied = true;
        return CURL_SOCKET_BAD;
    }
    return socket(a->family, a->socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, a->protocol);
}

/* ---- one transfer ------------------------------------------------------------------------------------------------ */

static void todo_add(struct fetch *f)
{
    struct fetch_pool *p = f->pool;
    if (f->on_todo)
        return;
    f->on_todo = true;
    f->todo_next = NULL;
    *p->todo_last = f;
    p->todo_last = &f->todo_next;
}

static struct fetch *todo_take(struct fetch_pool *p)
{
    struct fetch *f = p->todo_first;
    if (f) {
        p->todo_first = f->todo_next;
        if (!p->todo_first)
            p->todo_last = &p->todo_first;
        f->on_todo = false;
    }
    return f;
}

static void todo_drop(struct fetch *f)
{
    struct fetch_pool *p = f->pool;
    if (!f->on_todo)
        return;
    struct fetch **at = &p->todo_first;
    while (*at != f)
        at = &(*at)->todo_next;
    *at = f->todo_next;
    p->todo_last = &p->todo_first;
    while (*p->todo_last)
        p->todo_last = &(*p->todo_last)->todo_next;
    f->on_todo = false;
}

static void fetch_detach(struct fetch *f)
{
    if (!f->in_multi)
        return;
    f->pool->in_curl++;
    AN(curl_multi_remove_handle(f->pool->multi, f->easy) == CURLM_OK);
    f->pool->in_curl--;
    f->in_multi = false;
}

static void fetch_destroy(struct fetch *f)
{
    fetch_detach(f);
    todo_drop(f);
    if (f->prev)
        f->prev->next = f->next;
    else
        f->pool->first = f->next;
    if (f->next)
        f->next->prev = f->prev;
    timer_free(&f->watchdog);
    curl_easy_cleanup(f->easy);
    curl_url_cleanup(f->url);
    curl_slist_free_all(f->fields_out);
    sb_free(&f->head);
    mem_free(f->at);
    f->magic = 0;
    mem_free(f);
}

/* Decides how f ends; the first decision stands. on_done comes from pool_settle(). */
static void fetch_finish(struct fetch *f, enum err err, const char *fmt, const char *arg)
{
    if (f->finished || f->dead)
        return;
    f->finished = true;
    f->err = err;
    snprintf(f->text, sizeof f->text, "%s%s%s", fmt, *fmt && *arg ? ": " : "", arg);
    todo_add(f);
}

static void fetch_finish_curl(struct fetch *f, CURLcode rc)
{
    const char *detail = f->curl_text[0] ? f->curl_text : curl_easy_strerror(rc);
    enum err err = ERR_UPSTREAM;
    if (rc == CURLE_OK) {
        fetch_finish(f, ERR_OK, "", "");
        return;
    }
    if (f->stopped) {
        fetch_finish(f, ERR_CANCELED, "stopped", "");
        return;
    }
    if (f->too_large) {
        fetch_finish(f, ERR_TOO_LARGE, "the answer is larger than allowed", "");
        return;
    }
    if (f->bad) {
        fetch_finish(f, ERR_UPSTREAM, f->bad, "");
        return;
    }
    switch ((int)rc) {
    case CURLE_COULDNT_CONNECT:
        if (f->denied) {
            fetch_finish(f, ERR_UPSTREAM, "the address is private or reserved and no operator named the host", "");
            return;
        }
        err = ERR_UNAVAILABLE;
        break;
    case CURLE_COULDNT_RESOLVE_HOST:
        err = ERR_UNAVAILABLE;
        break;
    case CURLE_OPERATION_TIMEDOUT:
        err = ERR_TIMEOUT;
        break;
    case CURLE_OUT_OF_MEMORY:
        err = ERR_NOMEM;
        break;
    default:
        break;
    }
    fetch_finish(f, err, detail, "");
}

static bool head_refuse(struct fetch *f, const char *why)
{
    f->bad = why;
    return false;
}

static bool is_token_char(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || (c != '\0' && strchr("!#$%&'*+-.^_`|~", c));
}

/* One field line without its CRLF. */
static bool head_line(struct fetch *f, struct str line)
{
    struct str name, value;
    size_t max = f->pool->lim.head_fields;
    if (!str_cut(line, ':', &name, &value) || !name.n)
        return head_refuse(f, "a field line of the response is malformed");
    for (size_t i = 0; i < name.n; i++)
        if (!is_token_char(name.p[i]))
            return head_refuse(f, "a field name of the response is malformed");
    value = str_trim(value);
    for (size_t i = 0; i < value.n; i++)
        if (((unsigned char)value.p[i] < 0x20 && value.p[i] != '\t') || value.p[i] == 0x7f)
            return head_refuse(f, "a field of the response holds control bytes");
    if (f->n_at == max)
        return head_refuse(f, "the response has too many fields");
    if (!f->at)
        f->at = mem_calloc(max, sizeof *f->at);
    struct field_at *at = &f->at[f->n_at++];
    at->name = f->head.n;
    at->name_n = name.n;
    sb_add(&f->head, name);
    at->value = f->head.n;
    at->value_n = value.n;
    sb_add(&f->head, value);
    return true;
}

/* Content-Length as far as it can be believed: several that differ are an attack or a broken gateway. */
static bool head_length(struct fetch *f, const struct fetch_field *fields, size_t n, int64_t *ret)
{
    *ret = -1;
    bool coded = false;
    for (size_t i = 0; i < n; i++) {
        if (str_eq_nocase(fields[i].name, S("transfer-encoding")))
            coded = true;
        if (!str_eq_nocase(fields[i].name, S("content-length")))
            continue;
        uint64_t v;
        if (!str_to_u64(fields[i].value, &v) || v > INT64_MAX || (*ret >= 0 && (uint64_t)*ret != v))
            return head_refuse(f, "the response's Content-Length is malformed");
        *ret = (int64_t)v;
    }
    if (coded)
        *ret = -1;
    return true;
}

static bool head_deliver(struct fetch *f, long status)
{
    struct fetch_field *fields = mem_calloc(f->n_at + 1, sizeof *fields);
    for (size_t i = 0; i < f->n_at; i++) {
        fields[i].name = (struct str){f->head.p + f->at[i].name, f->at[i].name_n};
        fields[i].value = (struct str){f->head.p + f->at[i].value, f->at[i].value_n};
    }
    struct fetch_head h = {.status = (int)status, .fields = fields, .n_fields = f->n_at};
    bool ok = head_length(f, fields, f->n_at, &h.content_length);
    f->head_done = true;
    enum fetch_next next = ok && f->h.on_head ? f->h.on_head(f->ctx, &h) : FETCH_MORE;
    mem_free(fields);
    if (!ok || f->dead)
        return false;
    if (next == FETCH_STOP) {
        f->stopped = true;
        return false;
    }
    if (f->max_body && !f->is_head && h.content_length > 0 && (uint64_t)h.content_length > f->max_body) {
        f->too_large = true;
        return false;
    }
    f->paused = next == FETCH_PAUSE;
    f->window_bytes = 0;
    f->window_paused = f->paused;
    if (f->pool->lim.stall_ms)
        timer_set(f->watchdog, f->pool->lim.stall_ms);
    else
        timer_cancel(f->watchdog);
    return true;
}

/* Called by curl with one line of a head at a time, CRLF included; also for 1xx and for trailers. */
static size_t on_header(char *data, size_t size, size_t n, void *ctx)
{
    struct fetch *f = FETCH(ctx);
    n *= size;
    f->got_bytes = true;
    if (f->dead || f->finished)
        return 0;
    if (f->head_done)
        return n; /* trailers: nobody reads them */
    f->head_total += n;
    if (f->head_total > f->pool->lim.head_bytes)
        return head_refuse(f, "the response head is too large") ? n : 0;
    struct str line = {data, n};
    while (line.n && (line.p[line.n - 1] == '\n' || line.p[line.n - 1] == '\r'))
        line.n--;
    if (str_starts(line, S("HTTP/"))) {
        sb_reset(&f->head);
        f->n_at = 0;
        return n;
    }
    if (line.n)
        return head_line(f, line) ? n : 0;
    long status = 0;
    curl_easy_getinfo(f->easy, CURLINFO_RESPONSE_CODE, &status);
    if (status == 101 || status < 100 || status > 599)
        return head_refuse(f, "the response has an unusable status") ? n : 0;
    if (status < 200)
        return n;
    return head_deliver(f, status) ? n : 0;
}

static size_t on_write(char *data, size_t size, size_t n, void *ctx)
{
    struct fetch *f = FETCH(ctx);
    n *= size;
    f->got_bytes = true;
    if (f->dead || f->finished)
        return 0;
    if (f->paused) {
        f->curl_paused = f->window_paused = true;
        return CURL_WRITEFUNC_PAUSE;
    }
    if (f->max_body && n > f->max_body - f->body_bytes) {
        f->too_large = true;
        return 0;
    }
    enum fetch_next next = f->h.on_body ? f->h.on_body(f->ctx, data, n) : FETCH_MORE;
    if (f->dead)
        return 0;
    if (next == FETCH_STOP) {
        f->stopped = true;
        return 0;
    }
    if (next == FETCH_PAUSE) {
        f->paused = f->curl_paused = f->window_paused = true;
        return CURL_WRITEFUNC_PAUSE;
    }
    f->body_bytes += n;
    f->window_bytes += n;
    return n;
}

static void pool_settle(struct fetch_pool *p);

static void on_watchdog(void *ctx)
{
    struct fetch *f = FETCH(ctx);
    struct fetch_pool *p = f->pool;
    if (f->finished || f->dead)
        return;
    if (!f->head_done) {
        fetch_finish(f, ERR_TIMEOUT, "no answer in time", "");
    } else if (!f->paused && !f->window_paused && f->window_bytes < p->lim.stall_ms * STALL_MIN_BYTES_PER_S / 1000 + 1) {
        fetch_finish(f, ERR_TIMEOUT, "the answer stalled", "");
    } else {
        f->window_bytes = 0;
        f->window_paused = f->paused;
        timer_set(f->watchdog, p->lim.stall_ms);
        return;
    }
    pool_settle(p);
}

/* ---- the pool ---------------------------------------------------------------------------------------------------- */

static void pool_destroy(struct fetch_pool *p)
{
    while (p->first)
        fetch_destroy(p->first);
    p->in_curl++;
    curl_multi_cleanup(p->multi);
    p->in_curl--;
    timer_free(&p->timer);
    timer_free(&p->kick);
    mem_free(p);
}

static void fetch_deliver(struct fetch *f)
{
    fetch_detach(f); /* before on_done, so that its connection is free again for what on_done starts */
    timer_cancel(f->watchdog);
    f->delivering = true;
    f->h.on_done(f->ctx, f->err, f->text, f->got_bytes);
    fetch_destroy(f);
}

static void fetch_unpause(struct fetch *f)
{
    f->want_resume = false;
    if (!f->paused)
        return;
    f->paused = false;
    if (!f->curl_paused)
        return;
    f->curl_paused = false;
    f->pool->in_curl++;
    CURLcode rc = curl_easy_pause(f->easy, CURLPAUSE_CONT); /* may run on_write before it returns */
    f->pool->in_curl--;
    if (rc != CURLE_OK)
        fetch_finish_curl(f, rc);
}

/* Does what was put off while curl was on the stack. Callbacks may start, cancel and free anything, this pool too. */
static void pool_settle(struct fetch_pool *p)
{
    if (p->in_curl || p->settling)
        return;
    p->settling = true;
    for (struct fetch *f; (f = todo_take(p));) {
        if (f->dead) {
            fetch_destroy(f);
        } else if (f->finished) {
            fetch_deliver(f);
        } else if (f->want_add) {
            f->want_add = false;
            p->in_curl++;
            CURLMcode rc = curl_multi_add_handle(p->multi, f->easy);
            p->in_curl--;
            f->in_multi = rc == CURLM_OK;
            if (rc != CURLM_OK)
                fetch_finish(f, ERR_INTERNAL, "curl_multi_add_handle", curl_multi_strerror(rc));
            else if (f->want_resume)
                todo_add(f);
        } else if (f->want_resume) {
            fetch_unpause(f);
        }
    }
    p->settling = false;
    if (p->closing)
        pool_destroy(p);
}

static void on_kick(void *ctx)
{
    pool_settle(ctx);
}

static void pool_kick(struct fetch_pool *p)
{
    if (!p->in_curl && !timer_pending(p->kick))
        timer_set(p->kick, 0);
}

static void pool_action(struct fetch_pool *p, curl_socket_t fd, int what)
{
    int running = 0, left = 0;
    p->in_curl++;
    curl_multi_socket_action(p->multi, fd, what, &running);
    for (CURLMsg *m; (m = curl_multi_info_read(p->multi, &left));) {
        char *priv = NULL;
        if (m->msg != CURLMSG_DONE)
            continue;
        curl_easy_getinfo(m->easy_handle, CURLINFO_PRIVATE, &priv);
        fetch_finish_curl(FETCH(priv), m->data.result);
    }
    p->in_curl--;
    pool_settle(p); /* p may be gone after it */
}

static void on_curl_timer(void *ctx)
{
    pool_action(ctx, CURL_SOCKET_TIMEOUT, 0);
}

static void on_ready(void *ctx, int fd, unsigned ready)
{
    pool_action(ctx, fd, (ready & WATCH_READ ? CURL_CSELECT_IN : 0) | (ready & WATCH_WRITE ? CURL_CSELECT_OUT : 0));
}

static int on_curl_wants_timer(CURLM *multi, long ms, void *ctx)
{
    struct fetch_pool *p = ctx;
    (void)multi;
    if (ms < 0)
        timer_cancel(p->timer);
    else
        timer_set(p->timer, (uint64_t)ms);
    return 0;
}

static int on_curl_wants_socket(CURL *easy, curl_socket_t fd, int what, void *ctx, void *socketp)
{
    struct fetch_pool *p = ctx;
    struct watch *w = socketp;
    (void)easy;
    if (what == CURL_POLL_REMOVE) {
        watch_free(&w);
        curl_multi_assign(p->multi, fd, NULL);
        return 0;
    }
    unsigned interest = (what & CURL_POLL_IN ? WATCH_READ : 0u) | (what & CURL_POLL_OUT ? WATCH_WRITE : 0u);
    if (w)
        watch_change(w, interest);
    else
        curl_multi_assign(p->multi, fd, watch_new(p->loop, fd, interest, on_ready, p));
    return 0;
}

struct fetch_pool *fetch_pool_new(struct loop *l, const struct fetch_limits *lim)
{
    curl_start_once();
    struct fetch_pool *p = NEW(struct fetch_pool);
    p->loop = l;
    p->lim = *lim;
    if (!p->lim.head_bytes)
        p->lim.head_bytes = HEAD_BYTES_DEFAULT;
    if (!p->lim.head_fields)
        p->lim.head_fields = HEAD_FIELDS_DEFAULT;
    p->todo_last = &p->todo_first;
    p->timer = timer_new(l, on_curl_timer, p);
    p->kick = timer_new(l, on_kick, p);
    p->multi = curl_multi_init();
    AN(p->multi);
    long most = (long)(lim->connections ? lim->connections : 1);
    AN(curl_multi_setopt(p->multi, CURLMOPT_SOCKETFUNCTION, on_curl_wants_socket) == CURLM_OK);
    AN(curl_multi_setopt(p->multi, CURLMOPT_SOCKETDATA, p) == CURLM_OK);
    AN(curl_multi_setopt(p->multi, CURLMOPT_TIMERFUNCTION, on_curl_wants_timer) == CURLM_OK);
    AN(curl_multi_setopt(p->multi, CURLMOPT_TIMERDATA, p) == CURLM_OK);
    AN(curl_multi_setopt(p->multi, CURLMOPT_MAX_TOTAL_CONNECTIONS, most) == CURLM_OK);
    AN(curl_multi_setopt(p->multi, CURLMOPT_MAX_HOST_CONNECTIONS, most) == CURLM_OK);
    AN(curl_multi_setopt(p->multi, CURLMOPT_MAXCONNECTS, most) == CURLM_OK);
    AN(curl_multi_setopt(p->multi, CURLMOPT_PIPELINING, (long)CURLPIPE_NOTHING) == CURLM_OK);
    return p;
}

void fetch_pool_free(struct fetch_pool **pp)
{
    struct fetch_pool *p = *pp;
    if (!p)
        return;
    *pp = NULL;
    for (struct fetch *f = p->first; f; f = f->next)
        f->dead = true;
    p->closing = true;
    if (!p->in_curl && !p->settling)
        pool_destroy(p);
}

/* ---- starting ---------------------------------------------------------------------------------------------------- */

static bool text_clean(const char *s)
{
    for (; *s; s++)
        if ((unsigned char)*s < 0x20 || *s == 0x7f)
            return false;
    return true;
}

/* The options of one transfer. Returns a sentence on failure. */
static const char *easy_options(struct fetch *f, const struct fetch_request *r)
{
    const struct fetch_limits *lim = &f->pool->lim;
    CURL *e = f->easy;
    bool ok = true;
#define OPT(option, value) (ok = ok && curl_easy_setopt(e, option, value) == CURLE_OK)

    if (strlen(r->url) > URL_MAX ||
        curl_url_set(f->url, CURLUPART_URL, r->url, CURLU_PATH_AS_IS | CURLU_DISALLOW_USER) != CURLUE_OK)
        return "the URL is malformed";
    OPT(CURLOPT_CURLU, f->url);
    OPT(CURLOPT_PATH_AS_IS, 1L);
    OPT(CURLOPT_PROTOCOLS_STR, r->policy.https_only ? "https" : "http,https");
    OPT(CURLOPT_REDIR_PROTOCOLS_STR, "https");
    OPT(CURLOPT_FOLLOWLOCATION, 0L);
    OPT(CURLOPT_UNRESTRICTED_AUTH, 0L);
    OPT(CURLOPT_NETRC, (long)CURL_NETRC_IGNORED);
    OPT(CURLOPT_PROXY, "");
    OPT(CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
    OPT(CURLOPT_HTTP_CONTENT_DECODING, 0L);
    OPT(CURLOPT_HTTP09_ALLOWED, 0L);
    OPT(CURLOPT_SSL_VERIFYPEER, 1L);
    OPT(CURLOPT_SSL_VERIFYHOST, 2L);
    OPT(CURLOPT_SSLVERSION, (long)CURL_SSLVERSION_TLSv1_2);
    if (r->ca_pem && *r->ca_pem) {
        struct curl_blob blob = {.data = mem_strdup(r->ca_pem), .len = strlen(r->ca_pem), .flags = CURL_BLOB_COPY};
        OPT(CURLOPT_CAINFO_BLOB, &blob);
        mem_free(blob.data);
        if (r->ca_only)
            OPT(CURLOPT_CAPATH, NULL);
    }
    OPT(CURLOPT_NOSIGNAL, 1L);
    OPT(CURLOPT_QUICK_EXIT, 1L); /* a cancelled look-up must not be waited for: its thread ends by itself */
    OPT(CURLOPT_NOPROGRESS, 1L);
    OPT(CURLOPT_TCP_KEEPALIVE, 1L);
    OPT(CURLOPT_MAXAGE_CONN, CONNECTION_MAX_IDLE_S);
    OPT(CURLOPT_BUFFERSIZE, r->max_body ? BUFFER_BYTES_SMALL : BUFFER_BYTES);
    if (lim->connect_ms)
        OPT(CURLOPT_CONNECTTIMEOUT_MS, (long)lim->connect_ms);
    if (lim->total_ms)
        OPT(CURLOPT_TIMEOUT_MS, (long)lim->total_ms);
    OPT(CURLOPT_ERRORBUFFER, f->curl_text);
    OPT(CURLOPT_PRIVATE, (char *)f);
    OPT(CURLOPT_OPENSOCKETFUNCTION, on_open_socket);
    OPT(CURLOPT_OPENSOCKETDATA, f);
    OPT(CURLOPT_HEADERFUNCTION, on_header);
    OPT(CURLOPT_HEADERDATA, f);
    OPT(CURLOPT_WRITEFUNCTION, on_write);
    OPT(CURLOPT_WRITEDATA, f);
    OPT(CURLOPT_USERAGENT, "pullgate/" PULLGATE_VERSION);

    if (strcmp(r->method, "HEAD") == 0) {
        OPT(CURLOPT_NOBODY, 1L);
    } else if (strcmp(r->method, "GET") == 0) {
        OPT(CURLOPT_HTTPGET, 1L);
    } else {
        OPT(CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)r->body.n);
        OPT(CURLOPT_COPYPOSTFIELDS, r->body.n ? r->body.p : "");
        if (strcmp(r->method, "POST") != 0)
            OPT(CURLOPT_CUSTOMREQUEST, r->method);
        f->fields_out = curl_slist_append(f->fields_out, "Expect:"); /* no 100-continue */
    }
    for (const char *const *line = r->fields; line && *line; line++) {
        if (!text_clean(*line))
            return "a request field holds control bytes";
        f->fields_out = curl_slist_append(f->fields_out, *line);
    }
    if (f->fields_out)
        OPT(CURLOPT_HTTPHEADER, f->fields_out);
    if (r->username || r->password) {
        OPT(CURLOPT_HTTPAUTH, (long)CURLAUTH_BASIC);
        OPT(CURLOPT_USERNAME, r->username ? r->username : "");
        OPT(CURLOPT_PASSWORD, r->password ? r->password : "");
    }
#undef OPT
    return ok ? NULL : "curl refuses an option";
}

struct fetch *fetch_start(struct fetch_pool *p, const struct fetch_request *r, const struct fetch_handlers *h, void *ctx)
{
    struct fetch *f = NEW(struct fetch);
    f->magic = FETCH_MAGIC;
    f->pool = p;
    f->h = *h;
    f->ctx = ctx;
    f->policy = r->policy;
    f->max_body = r->max_body;
    f->is_head = strcmp(r->method, "HEAD") == 0;
    f->next = p->first;
    if (p->first)
        p->first->prev = f;
    p->first = f;
    f->watchdog = timer_new(p->loop, on_watchdog, f);
    f->easy = curl_easy_init();
    f->url = curl_url();
    AN(f->easy && f->url);

    const char *why = easy_options(f, r);
    if (p->closing)
        why = "the pool is closing";
    if (why) {
        fetch_finish(f, ERR_INTERNAL, why, "");
        pool_kick(p);
        return f;
    }
    if (p->lim.first_byte_ms)
        timer_set(f->watchdog, p->lim.connect_ms + p->lim.first_byte_ms);
    f->want_add = true;
    todo_add(f);
    if (!p->settling)
        pool_kick(p);
    return f;
}

void fetch_resume(struct fetch *f)
{
    FETCH(f);
    if (f->dead || f->finished)
        return;
    f->want_resume = true;
    todo_add(f);
    if (!f->pool->settling)
        pool_kick(f->pool);
}

void fetch_cancel(struct fetch **pf)
{
    struct fetch *f = *pf;
    *pf = NULL;
    if (!f)
        return;
    FETCH(f);
    if (f->delivering)
        return;
    f->dead = true;
    if (!f->pool->in_curl) {
        fetch_destroy(f);
        return;
    }
    todo_add(f); /* inside a callback of curl: its handle leaves when curl has returned */
}

struct str fetch_head_get(const struct fetch_head *h, const char *name)
{
    for (size_t i = 0; i < h->n_fields; i++)
        if (str_eq_nocase(h->fields[i].name, str_c(name)))
            return h->fields[i].value;
    return (struct str){NULL, 0};
}

/* ---- the blocking form: a loop of its own ------------------------------------------------------------------------- */

struct blocking {
    struct loop *loop;
    struct fetch_reply reply;
    enum err err;
    char text[256];
    bool over;
};

static enum fetch_next blocking_head(void *ctx, const struct fetch_head *h)
{
    struct blocking *b = ctx;
    b->reply.status = h->status;
    for (size_t i = 0; i < h->n_fields; i++)
        sb_addf(&b->reply.fields, "%.*s: %.*s\n", STR(h->fields[i].name), STR(h->fields[i].value));
    return FETCH_MORE;
}

static enum fetch_next blocking_body(void *ctx, const void *data, size_t n)
{
    struct blocking *b = ctx;
    sb_add(&b->reply.body, (struct str){data, n});
    return FETCH_MORE;
}

static void blocking_done(void *ctx, enum err err, const char *text, bool got_bytes)
{
    struct blocking *b = ctx;
    (void)got_bytes;
    b->err = err;
    snprintf(b->text, sizeof b->text, "%s", text);
    b->over = true;
    loop_stop(b->loop);
}

enum err fetch_blocking(const struct fetch_request *r, const struct fetch_limits *lim, struct fetch_reply *ret, struct error *reterr)
{
    static const struct fetch_handlers handlers = {blocking_head, blocking_body, blocking_done};
    struct blocking b = {.loop = loop_new()};
    if (b.loop == NULL)
        return error_set(reterr, ERR_UNAVAILABLE, "no event loop: %s", strerror(errno));
    struct fetch_pool *p = fetch_pool_new(b.loop, lim);
    fetch_start(p, r, &handlers, &b);
    while (!b.over)
        loop_run(b.loop);
    fetch_pool_free(&p);
    loop_free(b.loop);
    if (b.err) {
        fetch_reply_free(&b.reply);
        return error_set(reterr, b.err, "%s", b.text);
    }
    *ret = b.reply;
    return ERR_OK;
}

void fetch_reply_free(struct fetch_reply *r)
{
    sb_free(&r->body);
    sb_free(&r->fields);
    memset(r, 0, sizeof *r);
}

/* ---- mail ----------------------------------------------------------------------------------------------------------- */

struct mail_transfer {
    struct str rest;
    const atomic_bool *stop;
};

static size_t on_mail_read(char *to, size_t size, size_t n, void *ctx)
{
    struct mail_transfer *t = ctx;
    n *= size;
    if (n > t->rest.n)
        n = t->rest.n;
    if (n)
        memcpy(to, t->rest.p, n);
    t->rest = str_skip(t->rest, n);
    return n;
}

static int on_mail_progress(void *ctx, curl_off_t down_total, curl_off_t down, curl_off_t up_total, curl_off_t up)
{
    const struct mail_transfer *t = ctx;
    (void)down_total, (void)down, (void)up_total, (void)up;
    return atomic_load(t->stop); /* asked at least once a second */
}

static bool mail_options(CURL *e, const struct fetch_mail *m, const char *url, struct curl_slist *to, struct mail_transfer *t, uint64_t total_ms, char *text)
{
    bool ok = true;
#define OPT(option, value) (ok = ok && curl_easy_setopt(e, option, value) == CURLE_OK)
    OPT(CURLOPT_URL, url);
    OPT(CURLOPT_PROTOCOLS_STR, "smtp,smtps");
    OPT(CURLOPT_PROXY, "");
    OPT(CURLOPT_NETRC, (long)CURL_NETRC_IGNORED);
    OPT(CURLOPT_NOSIGNAL, 1L);
    OPT(CURLOPT_QUICK_EXIT, 1L);
    OPT(CURLOPT_ERRORBUFFER, text);
    OPT(CURLOPT_CONNECTTIMEOUT_MS, (long)(total_ms / 3));
    OPT(CURLOPT_TIMEOUT_MS, (long)total_ms);
    OPT(CURLOPT_SSL_VERIFYPEER, 1L);
    OPT(CURLOPT_SSL_VERIFYHOST, 2L);
    OPT(CURLOPT_SSLVERSION, (long)CURL_SSLVERSION_TLSv1_2);
    if (m->ca_file && *m->ca_file) {
        OPT(CURLOPT_CAINFO, m->ca_file);
        OPT(CURLOPT_CAPATH, NULL);
    }
    OPT(CURLOPT_USE_SSL, m->tls == FETCH_MAIL_TLS_OFF ? (long)CURLUSESSL_NONE : m->tls == FETCH_MAIL_TLS_TRIED ? (long)CURLUSESSL_TRY : (long)CURLUSESSL_ALL);
    if (m->username && *m->username) {
        OPT(CURLOPT_USERNAME, m->username);
        OPT(CURLOPT_PASSWORD, m->password ? m->password : "");
    }
    OPT(CURLOPT_MAIL_FROM, m->from);
    OPT(CURLOPT_MAIL_RCPT, to);
    OPT(CURLOPT_UPLOAD, 1L);
    OPT(CURLOPT_READFUNCTION, on_mail_read);
    OPT(CURLOPT_READDATA, t);
    OPT(CURLOPT_INFILESIZE_LARGE, (curl_off_t)m->message.n);
    OPT(CURLOPT_XFERINFOFUNCTION, on_mail_progress);
    OPT(CURLOPT_XFERINFODATA, t);
    OPT(CURLOPT_NOPROGRESS, 0L);
#undef OPT
    return ok;
}

enum err fetch_mail(const struct fetch_mail *m, uint64_t total_ms, const atomic_bool *stop, int *ret_code, struct error *reterr)
{
    struct mail_transfer t = {.rest = m->message, .stop = stop};
    char text[CURL_ERROR_SIZE] = "";
    struct strbuf url = {0};
    const char *at = strrchr(m->from, '@');
    *ret_code = 0;
    if (!text_clean(m->from) || !text_clean(m->to) || !at || !at[1])
        return error_set(reterr, ERR_INVALID, "an address holds control bytes, or none is a sender's");
    curl_start_once();
    CURL *e = curl_easy_init();
    AN(e);
    struct curl_slist *to = curl_slist_append(NULL, m->to);
    sb_addf(&url, "%s/%s", m->url, at + 1); /* the path is the name in EHLO */
    enum err err = ERR_OK;
    if (!mail_options(e, m, url.p, to, &t, total_ms, text)) {
        err = error_set(reterr, ERR_INTERNAL, "curl refuses an option");
    } else {
        CURLcode rc = curl_easy_perform(e);
        long code = 0;
        curl_easy_getinfo(e, CURLINFO_RESPONSE_CODE, &code);
        *ret_code = (int)code;
        if (rc != CURLE_OK) {
            err = rc == CURLE_ABORTED_BY_CALLBACK                                       ? ERR_CANCELED
                  : rc == CURLE_OPERATION_TIMEDOUT                                      ? ERR_TIMEOUT
                  : rc == CURLE_COULDNT_CONNECT || rc == CURLE_COULDNT_RESOLVE_HOST     ? ERR_UNAVAILABLE
                                                                                        : ERR_UPSTREAM;
            error_set(reterr, err, "%s", text[0] ? text : curl_easy_strerror(rc));
        }
    }
    curl_slist_free_all(to);
    curl_easy_cleanup(e);
    sb_free(&url);
    return err;
}

/* ---- URLs: read by the parser that will also connect --------------------------------------------------------------- */

static bool url_clean(const char *s)
{
    size_t n = 0;
    for (; s[n]; n++)
        if ((unsigned char)s[n] <= 0x20 || (unsigned char)s[n] >= 0x7f || s[n] == '\\' || n >= URL_MAX)
            return false;
    return n > 0;
}

static bool host_clean(const char *host)
{
    bool v6 = host[0] == '[';
    size_t n = strlen(host);
    if (!n || n >= sizeof((struct fetch_url *)0)->host || (v6 && host[n - 1] != ']'))
        return false;
    for (size_t i = v6; i < n - v6; i++) {
        char c = host[i];
        bool name = (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '.' || c == '_';
        bool hex = (c >= 'a' && c <= 'f') || (c >= '0' && c <= '9') || c == ':' || c == '.';
        if (v6 ? !hex : !name)
            return false;
    }
    return true;
}

enum err fetch_url_parse(const char *url, struct fetch_url *ret, struct error *reterr)
{
    curl_start_once();
    if (!url || !url_clean(url))
        return error_set(reterr, ERR_INVALID, "the URL is empty, too long or holds blanks, backslashes or non-ASCII bytes");
    /* curl forgives "http:///host" and "http:/host" as browsers do; a configured URL says what it means. */
    const char *authority = strstr(url, "://");
    if (!authority || authority[3] == '/' || !authority[3])
        return error_set(reterr, ERR_INVALID, "the URL has no scheme or no host");
    CURLU *u = curl_url();
    AN(u);
    char *scheme = NULL, *host = NULL, *port = NULL, *path = NULL, *query = NULL, *zone = NULL;
    struct fetch_url out = {0};
    uint64_t number = 0;
    enum err err = ERR_OK;
    CURLUcode rc = curl_url_set(u, CURLUPART_URL, url, CURLU_PATH_AS_IS | CURLU_DISALLOW_USER);
    if (rc == CURLUE_USER_NOT_ALLOWED)
        err = error_set(reterr, ERR_INVALID, "the URL holds a user name");
    else if (rc != CURLUE_OK || curl_url_get(u, CURLUPART_SCHEME, &scheme, 0) != CURLUE_OK ||
             curl_url_get(u, CURLUPART_HOST, &host, 0) != CURLUE_OK || curl_url_get(u, CURLUPART_PATH, &path, 0) != CURLUE_OK)
        err = error_set(reterr, ERR_INVALID, "the URL is malformed: %s", curl_url_strerror(rc));
    else if (strcmp(scheme, "http") != 0 && strcmp(scheme, "https") != 0)
        err = error_set(reterr, ERR_INVALID, "the URL's scheme is neither http nor https");
    else if (curl_url_get(u, CURLUPART_PORT, &port, CURLU_DEFAULT_PORT) != CURLUE_OK || !str_to_u64(str_c(port), &number) || !number ||
             number > 65535)
        err = error_set(reterr, ERR_INVALID, "the URL's port is malformed");
    else if (curl_url_get(u, CURLUPART_ZONEID, &zone, 0) == CURLUE_OK)
        err = error_set(reterr, ERR_INVALID, "the URL's host has a zone");
    if (!err) {
        for (char *c = host; *c; c++)
            if (*c >= 'A' && *c <= 'Z')
                *c = (char)(*c + 32);
        if (!host_clean(host))
            err = error_set(reterr, ERR_INVALID, "the URL's host is malformed");
    }
    if (!err) {
        struct strbuf pq = {0};
        snprintf(out.scheme, sizeof out.scheme, "%s", scheme);
        snprintf(out.host, sizeof out.host, "%s", host);
        out.port = (unsigned)number;
        sb_addc(&pq, path);
        if (curl_url_get(u, CURLUPART_QUERY, &query, 0) == CURLUE_OK)
            sb_addf(&pq, "?%s", query);
        out.path_query = sb_take(&pq);
        *ret = out;
    }
    curl_free(scheme);
    curl_free(host);
    curl_free(port);
    curl_free(path);
    curl_free(query);
    curl_free(zone);
    curl_url_cleanup(u);
    return err;
}

enum err fetch_url_join(const char *base, const char *reference, char **ret)
{
    curl_start_once();
    if (!url_clean(reference))
        return ERR_INVALID;
    CURLU *u = curl_url();
    AN(u);
    char *url = NULL;
    bool ok = curl_url_set(u, CURLUPART_URL, base, CURLU_PATH_AS_IS) == CURLUE_OK &&
              curl_url_set(u, CURLUPART_URL, reference, CURLU_PATH_AS_IS | CURLU_NON_SUPPORT_SCHEME) == CURLUE_OK &&
              curl_url_set(u, CURLUPART_FRAGMENT, NULL, 0) == CURLUE_OK && curl_url_get(u, CURLUPART_URL, &url, 0) == CURLUE_OK;
    if (ok)
        *ret = mem_strdup(url);
    curl_free(url);
    curl_url_cleanup(u);
    return ok ? ERR_OK : ERR_INVALID;
}

void fetch_url_free(struct fetch_url *u)
{
    MEM_FREE(u->path_query);
}
