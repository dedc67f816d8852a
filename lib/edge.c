/* The HTTP/1.1 server: sockets, TLS, deadlines, limits, framing. The only file that includes evhtp. It knows no route, no credential
 * and no registry; the head check is head.c's.
 *
 * What evhtp does here: it owns the listening sockets, accepts, and makes and frees the connection with its descriptor and a
 * bufferevent. What it does not: its parser is never fed. Every measured trap of it (splits that corrupt the
 * URI, Transfer-Encoding spellings, lost pipelined requests, a pause that cannot see the client leave) lies behind
 * its read callback, and head.c parses each head completely anyway. So from the accept on the
 * bufferevent is put to rest and the descriptor is read and written here, with recv/send/sendfile or SSL_read/SSL_write: one read and
 * one write per request, no buffer in between, no change of the epoll set unless the client is slower than we are. The TLS handshake
 * is ours too: a trusted proxy's PROXY header comes before it, in the clear.
 *
 * A connection is in one state at a time:
 *
 *   (FRONT) -> (HANDSHAKE) -> IDLE -> HEAD -> (BODY) -> BUSY -> (STREAM) -> FLUSH -> IDLE …      answered, next request
 *                                      any refusal, Connection: close  -> FLUSH -> LINGER -> DEAD
 *
 * Nothing is freed where it is used: conn_close() makes a connection DEAD, cuts what points to it and leaves the memory to the next
 * round of the loop (on_later). So every function here may go on after a callback as long as it looks at the state again. */
#include "pullgate/edge.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/queue.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#include <event2/event_struct.h>
#include <evhtp.h>
#include <openssl/x509v3.h>

#include "pullgate/clock.h"
#include "pullgate/front.h"
#include "pullgate/log.h"
#include "pullgate/mem.h"

#define CONN_MAGIC       0x434f4e4eu
#define REQ_MAGIC        0x52455145u

#define BACKLOG          4096          /* the kernel cuts it to net.core.somaxconn */
#define READ_BYTES       (64 * 1024)   /* one recv; more than a head, a good part of a body */
#define TLS_RECORD_BYTES 16384         /* largest plaintext of a record; also the unit of SSL_write, see tls_send() */
#define REQS_KEPT        256           /* request blocks (some 6 KiB) kept for reuse, per edge */
#define REQ_BYTES_KEPT   4096          /* a block with a larger buffer gives it back: each would get one in time, of the rare large heads */
#define PIPELINED_ROUND  16            /* requests answered from one read before other connections get their turn */
#define DISCARD_MAX      (1024 * 1024) /* bytes sent beyond what we hold while a request waits: then the client is cut */
#define LINGER_BYTES     (64 * 1024)   /* read and dropped after a final answer, so that a RST does not destroy it (RFC 9112 9.6) */
#define LINGER_MS        1000
#define FRESH_MS         1000          /* drain: how long an accepted connection may take to begin its first request */
#define HALF_CLOSED_MS   1000 /* what a client that stopped sending gets to see the beginning of its answer */
#define ACCEPT_PAUSE_MS  100  /* after EMFILE and its like */
#define ACCEPT_LOG_MS    10000
#define REASON_BYTES_MAX 800           /* a status line that every client and load balancer takes */
#define FILE_BYTES_MAX   (1024 * 1024) /* one edge_write_file() */
#define STREAM_ROUND     (1024 * 1024) /* streamed to one client before others get their turn: the rest waits for the next round */
#define ANSWER_SLACK_MS  2000          /* beyond edge_answer_within(): the handler, which knows more of it, comes first */
#define LEFT_BODY_MAX    (1ull << 30)  /* a body where none is taken is answered as if it were not there, up to this length */
#define EVICT_LOOK       512           /* idle connections looked at to find one of an address that is over its limit */
#define ADDRESS_BUCKETS  4096

enum state { IDLE, FRONT, HANDSHAKE, HEAD, BODY, BUSY, STREAM, FLUSH, LINGER, DEAD };

struct edge_req {
    unsigned magic;
    struct conn *conn;
    void *handle;
    struct strbuf in; /* head, then body; what head points into. Not moved once the handler has it */
    size_t searched;  /* bytes of in in which no end of head was found */
    size_t head_n, body_n;
    bool answered_100;
    bool is_asking; /* handed out without its body, see EDGE_BODY_ASK */
    int ticket;     /* of the body; 0 none */
    const char *peer;
    const uint8_t *addr;
    char peer_buf[INET6_ADDRSTRLEN]; /* when a trusted proxy named another */
    uint8_t addr_buf[16];
    struct edge_req *next_free;
    struct head head;
};

struct conn {
    unsigned magic;
    enum state state;
    struct edge *edge;
    evhtp_connection_t *htp; /* owns fd, ssl and the bufferevent */
    int fd;
    SSL *ssl;
    struct event rd, wr;
    bool rd_on, wr_on;
    bool close_after; /* no further request */
    bool linger;      /* bytes may be unread: close so that the answer survives */
    bool half_closed; /* the client will send no more */
    bool dispatching; /* on_request() is on the stack */
    bool drain_due;   /* on_drain() is owed */
    bool broken;      /* a write failed inside a handler's call; on_gone follows from the loop */
    bool counted;     /* in shared */
    bool per_address; /* there by address too */
    bool is_trusted; /* whose word about the client's address counts */
    bool is_tls, is_idle, is_later;
    bool owns_file;
    bool is_corked;
    struct edge_req *req;
    uint64_t deadline_ms; /* of this state; 0 none */
    uint64_t since_ms;    /* FRONT, HANDSHAKE, first IDLE and HEAD: accepted; IDLE: answered */
    uint64_t requests;
    struct strbuf out; /* what the socket did not take, from out_at */
    size_t out_at;
    int file_fd; /* then this part of a file */
    off_t file_at;
    size_t file_n;
    size_t round_n;     /* bytes streamed in this round of the loop */
    uint64_t left;      /* of a streamed answer, still to be given to us */
    bool no_body;       /* HEAD, 304 …: what is streamed is dropped */
    struct strbuf next; /* bytes after the request in progress */
    uint64_t discarded;
    uint64_t sent;       /* bytes the kernel took, ever */
    bool is_waiting;     /* bytes wait for the client … */
    uint64_t slow_since; /* … seen by the sweep since; 0: not yet */
    uint64_t slow_mark;  /* bytes the client had acknowledged then */
    uint8_t addr[16];
    char peer[INET6_ADDRSTRLEN];
    TAILQ_ENTRY(conn) all, idle, later;
};
TAILQ_HEAD(conns, conn);

struct listener {
    struct edge *edge;
    evhtp_t *htp;
    struct edge_tls *tls;
    struct timer *again; /* after EMFILE */
    struct listener *next;
};

enum edge_header { HEADER_NONE, HEADER_ACCEPTED, HEADER_REQUIRED };
enum edge_field { FIELD_NONE, FIELD_X_FORWARDED_FOR, FIELD_FORWARDED };

struct edge {
    struct loop *loop;
    struct event_base *base;
    struct config *cfg; /* ref: the one it was made with; no key that it reads changes by a reload */
    struct edge_shared *shared;
    struct edge_handlers h;
    struct head_limits head_limits;
    struct listener *listeners;
    struct conns all, idle /* longest first */, later;
    size_t n_conns;
    struct event *later_event;
    struct timer *sweep;
    uint64_t sweep_ms;
    uint64_t answer_ms; /* edge_answer_within() */
    bool draining, drained;
    void (*on_drained)(void *ctx);
    void *drained_ctx;
    struct edge_req *free_reqs;
    size_t n_free_reqs;
    struct front_trust trust;
    enum edge_header header;
    enum edge_field field;
    char front[FRONT_HEADER_MAX]; /* a PROXY header while it is read */
    int64_t date_s;
    char date[48]; /* "Date: …\r\n" */
    size_t date_n;
    struct strbuf head;         /* of the answer being written */
    struct strbuf fields, body; /* of refusals */
    unsigned long long accept_logged_ms;
    struct edge_stats stats;
    char read[READ_BYTES];
};

static struct conn *conn_of(void *ctx)
{
    struct conn *c = ctx;
    AN(c->magic == CONN_MAGIC);
    return c;
}

static struct conn *conn_of_req(const struct edge_req *r)
{
    AN(r->magic == REQ_MAGIC && r->conn != NULL);
    return r->conn;
}

/* ---- addresses ------------------------------------------------------------------------------------------------------------- */

static const uint8_t v4_mapped[12] = {[10] = 0xff, [11] = 0xff};

static bool is_v4(const uint8_t addr[16])
{
    return !memcmp(addr, v4_mapped, 12);
}

static void address_of(const struct sockaddr *sa, uint8_t ret[16])
{
    memset(ret, 0, 16);
    if (sa && sa->sa_family == AF_INET) {
        memcpy(ret, v4_mapped, 12);
        memcpy(ret + 12, &((const struct sockaddr_in *)(const void *)sa)->sin_addr, 4);
    } else if (sa && sa->sa_family == AF_INET6) {
        memcpy(ret, &((const struct sockaddr_in6 *)(const void *)sa)->sin6_addr, 16);
    }
}

static bool is_unspecified(const uint8_t addr[16])
{
    static const uint8_t zero[16];
    return !memcmp(addr, zero, 16);
}

static void address_text(const uint8_t addr[16], char ret[INET6_ADDRSTRLEN])
{
    if (is_unspecified(addr))
        memcpy(ret, "unix", 5);
    else if (is_v4(addr))
        inet_ntop(AF_INET, addr + 12, ret, INET6_ADDRSTRLEN);
    else
        inet_ntop(AF_INET6, addr, ret, INET6_ADDRSTRLEN);
}

void edge_front(struct edge *e, const struct config_listen *trusted, const char *header, const char *field)
{
    e->trust = (struct front_trust){0};
    for (size_t i = 0; i < trusted->n; i++)
        (void)front_trust_add(&e->trust, str_c(trusted->list[i])); /* config.c has checked them */
    e->header = !strcmp(header, "required") ? HEADER_REQUIRED : !strcmp(header, "accepted") ? HEADER_ACCEPTED : HEADER_NONE;
    e->field = !strcmp(field, "forwarded") ? FIELD_FORWARDED : !strcmp(field, "x-forwarded-for") ? FIELD_X_FORWARDED_FOR : FIELD_NONE;
}

/* The client of a request, where a trusted proxy's field names it. */
static void forwarded(struct edge_req *r)
{
    const struct edge *e = r->conn->edge;

    if (e->field == FIELD_X_FORWARDED_FOR   ? !front_forwarded_for(&r->head, &e->trust, r->addr_buf)
        : e->field == FIELD_FORWARDED ? !front_forwarded(&r->head, &e->trust, r->addr_buf)
                                      : true)
        return;
    address_text(r->addr_buf, r->peer_buf);
    r->peer = r->peer_buf;
    r->addr = r->addr_buf;
}

/* ---- counts over all edges of the process ---------------------------------------------------------------------------------- */

struct address_count {
    uint64_t key[2];
    uint64_t n;
    struct address_count *next;
};

struct edge_shared {
    pthread_mutex_t lock;
    uint64_t max, soft_max, max_per_address, n;
    struct address_count *buckets[ADDRESS_BUCKETS];
};

struct edge_shared *edge_shared_new(uint64_t max_connections, uint64_t max_per_address)
{
    struct edge_shared *s = NEW(struct edge_shared);
    struct rlimit rl;

    pthread_mutex_init(&s->lock, NULL);
    s->max = max_connections;
    s->max_per_address = max_per_address;
    if (getrlimit(RLIMIT_NOFILE, &rl) == 0 && rl.rlim_cur != RLIM_INFINITY) {
        uint64_t reserve = rl.rlim_cur / 8 > 64 ? rl.rlim_cur / 8 : 64;
        uint64_t room = rl.rlim_cur > 2 * reserve ? rl.rlim_cur - reserve : rl.rlim_cur / 2;
        if (room < s->max) {
            log_warn("limits.connections is %llu, but %llu descriptors leave room for %llu", (unsigned long long)s->max,
                     (unsigned long long)rl.rlim_cur, (unsigned long long)room);
            s->max = room;
        }
    }
    s->soft_max = s->max / 5 * 4 + s->max % 5 * 4 / 5;
    return s;
}

void edge_shared_free(struct edge_shared **s)
{
    if (*s == NULL)
        return;
    for (size_t i = 0; i < ADDRESS_BUCKETS; i++)
        while ((*s)->buckets[i]) {
            struct address_count *a = (*s)->buckets[i];
            (*s)->buckets[i] = a->next;
            mem_free(a);
        }
    pthread_mutex_destroy(&(*s)->lock);
    MEM_FREE(*s);
}

uint64_t edge_shared_connections(const struct edge_shared *s)
{
    return __atomic_load_n(&s->n, __ATOMIC_RELAXED);
}

/* Who has an IPv6 address has 2^64 of them. */
static void address_key(const uint8_t addr[16], uint64_t ret[2])
{
    memcpy(ret, addr, 16);
    if (!is_v4(addr))
        ret[1] = 0;
}

static struct address_count **address_find(struct edge_shared *s, const uint64_t key[2])
{
    uint64_t hash = str_hash((struct str){(const char *)key, 16});
    struct address_count **p = &s->buckets[hash % ADDRESS_BUCKETS];

    while (*p && ((*p)->key[0] != key[0] || (*p)->key[1] != key[1]))
        p = &(*p)->next;
    return p;
}

enum take { TAKEN, TOO_MANY, TOO_MANY_OF_ADDRESS };

static bool address_take(struct edge_shared *s, const uint8_t addr[16])
{
    uint64_t key[2];

    address_key(addr, key);
    struct address_count **p = address_find(s, key);
    if (*p && (*p)->n >= s->max_per_address)
        return false;
    if (!*p) {
        *p = NEW(struct address_count);
        memcpy((*p)->key, key, sizeof key);
    }
    (*p)->n++;
    return true;
}

/* For a connection that is counted in total already, and whose client has become known. */
static bool shared_take_address(struct edge_shared *s, const uint8_t addr[16])
{
    pthread_mutex_lock(&s->lock);
    bool taken = address_take(s, addr);
    pthread_mutex_unlock(&s->lock);
    return taken;
}

static enum take shared_take(struct edge_shared *s, const uint8_t addr[16], bool per_address)
{
    enum take result = TAKEN;

    pthread_mutex_lock(&s->lock);
    if (s->n >= s->max) {
        result = TOO_MANY;
    } else if (per_address && !address_take(s, addr)) {
        result = TOO_MANY_OF_ADDRESS;
    }
    if (result == TAKEN)
        __atomic_add_fetch(&s->n, 1, __ATOMIC_RELAXED);
    pthread_mutex_unlock(&s->lock);
    return result;
}

static void shared_give(struct edge_shared *s, const uint8_t addr[16], bool per_address)
{
    uint64_t key[2];

    pthread_mutex_lock(&s->lock);
    __atomic_sub_fetch(&s->n, 1, __ATOMIC_RELAXED);
    if (per_address) {
        address_key(addr, key);
        struct address_count **p = address_find(s, key), *a = *p;
        if (a && --a->n == 0) {
            *p = a->next;
            mem_free(a);
        }
    }
    pthread_mutex_unlock(&s->lock);
}

/* Unix sockets have no address, and a load balancer's address is that of all its clients. */
static bool counts_per_address(const struct edge *e, const uint8_t addr[16])
{
    return !is_unspecified(addr) && !front_trusts(&e->trust, addr);
}

/* ---- TLS ------------------------------------------------------------------------------------------------------------------- */

#define EXPIRY_WARN_S (30 * 86400) /* an operator hears of it so long before */

struct edge_tls {
    unsigned refs;
    SSL_CTX *ctx;
    int64_t not_after_s; /* of the certificate, or of one of its chain that ends sooner */
};

static enum err tls_error(struct error *reterr, const char *file, const char *what)
{
    unsigned long code = ERR_peek_last_error();
    const char *reason = code ? ERR_reason_error_string(code) : NULL;

    ERR_clear_error();
    return error_set(reterr, ERR_INVALID, "%s: %s%s%s", file, what, reason ? ": " : "", reason ? reason : "");
}

/* http/1.1 or nothing: a client that offers only h2 gets no ALPN answer and, by RFC 7301, speaks HTTP/1.1. */
static int tls_alpn(SSL *ssl, const unsigned char **out, unsigned char *out_n, const unsigned char *in, unsigned in_n, void *arg)
{
    (void)ssl, (void)arg;
    for (unsigned i = 0; i < in_n && in[i] < in_n - i; i += 1u + in[i])
        if (in[i] == 8 && !memcmp(in + i + 1, "http/1.1", 8)) {
            *out = in + i + 1;
            *out_n = 8;
            return SSL_TLSEXT_ERR_OK;
        }
    return SSL_TLSEXT_ERR_NOACK;
}

/* OpenSSL's words for a file that cannot be opened name no cause; after root was given up it is the likely one. */
static enum err tls_readable(const char *path, struct error *reterr)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return error_set(reterr, ERR_INVALID, "%s: cannot be read by uid %u: %s", path, (unsigned)geteuid(), strerror(errno));
    close(fd);
    return ERR_OK;
}

static int64_t asn1_seconds(const ASN1_TIME *t)
{
    struct tm tm;

    return t && ASN1_TIME_to_tm(t, &tm) ? (int64_t)timegm(&tm) : 0;
}

/* The end of what is served. Says so when it is near, or over, or has not begun. */
static int64_t tls_dates(SSL_CTX *ctx, const char *file)
{
    X509 *cert = SSL_CTX_get0_certificate(ctx);
    STACK_OF(X509) *chain = NULL;
    char date[CLOCK_RFC3339_MAX];
    int64_t now = clock_now_s();

    if (!cert)
        return 0;
    int64_t from = asn1_seconds(X509_get0_notBefore(cert)), to = asn1_seconds(X509_get0_notAfter(cert));
    SSL_CTX_get0_chain_certs(ctx, &chain);
    for (int i = 0; chain && i < sk_X509_num(chain); i++) {
        int64_t t = asn1_seconds(X509_get0_notAfter(sk_X509_value(chain, i)));
        to = t < to ? t : to;
    }
    if (to <= now)
        log_error("%s: the certificate expired on %s; clients refuse it", file, clock_rfc3339(to, date));
    else if (from > now)
        log_error("%s: the certificate is not valid before %s; clients refuse it", file, clock_rfc3339(from, date));
    else if (to - now < EXPIRY_WARN_S)
        log_warn("%s: the certificate expires on %s", file, clock_rfc3339(to, date));
    return to;
}

enum err edge_tls_load(const struct config_tls *c, struct edge_tls **ret, struct error *reterr)
{
    if (tls_readable(c->cert, reterr) || tls_readable(c->key, reterr))
        return ERR_INVALID;
    ERR_clear_error();
    SSL_CTX *ctx = SSL_CTX_new(TLS_server_method());
    if (!ctx)
        return tls_error(reterr, "TLS", "cannot make a context");
    bool v13 = c->min_version && !strcmp(c->min_version, "1.3");
    SSL_CTX_set_security_level(ctx, 2);
    SSL_CTX_set_options(ctx, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION | SSL_OP_CIPHER_SERVER_PREFERENCE | SSL_OP_PRIORITIZE_CHACHA);
    SSL_CTX_set_mode(ctx, SSL_MODE_RELEASE_BUFFERS | SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF); /* tickets carry the session; their keys live as long as the context */
    SSL_CTX_set_max_early_data(ctx, 0);
    SSL_CTX_set_alpn_select_cb(ctx, tls_alpn, NULL);

    char groups[] = "X25519:P-256"; /* the macro casts const away */
    enum err e = ERR_OK;
    if (!SSL_CTX_set_min_proto_version(ctx, v13 ? TLS1_3_VERSION : TLS1_2_VERSION) ||
        !SSL_CTX_set_cipher_list(ctx, "ECDHE+AESGCM:ECDHE+CHACHA20") || !SSL_CTX_set1_groups_list(ctx, groups))
        e = tls_error(reterr, "TLS", "cannot set versions and ciphers");
    else if (SSL_CTX_use_certificate_chain_file(ctx, c->cert) != 1)
        e = tls_error(reterr, c->cert, "no usable certificate chain");
    else if (SSL_CTX_use_PrivateKey_file(ctx, c->key, SSL_FILETYPE_PEM) != 1)
        e = tls_error(reterr, c->key, "no usable private key for the certificate");
    else if (SSL_CTX_check_private_key(ctx) != 1)
        e = tls_error(reterr, c->key, "is not the key of the certificate");
    if (e) {
        SSL_CTX_free(ctx);
        return e;
    }
    struct edge_tls *t = NEW(struct edge_tls);
    t->refs = 1;
    t->ctx = ctx;
    t->not_after_s = tls_dates(ctx, c->cert);
    *ret = t;
    return ERR_OK;
}

int64_t edge_tls_not_after(const struct edge_tls *t)
{
    return t->not_after_s;
}

int64_t edge_tls_not_before(const struct edge_tls *t)
{
    const X509 *cert = SSL_CTX_get0_certificate(t->ctx);
    return cert ? asn1_seconds(X509_get0_notBefore(cert)) : 0;
}

bool edge_tls_covers(const struct edge_tls *t, const char *host)
{
    X509 *cert = SSL_CTX_get0_certificate(t->ctx);
    return cert && (X509_check_ip_asc(cert, host, 0) == 1 || X509_check_host(cert, host, 0, 0, NULL) == 1);
}

struct edge_tls *edge_tls_ref(struct edge_tls *t)
{
    __atomic_add_fetch(&t->refs, 1, __ATOMIC_RELAXED);
    return t;
}

void edge_tls_unref(struct edge_tls **t)
{
    struct edge_tls *tls = *t;

    *t = NULL;
    if (!tls || __atomic_sub_fetch(&tls->refs, 1, __ATOMIC_ACQ_REL))
        return;
    SSL_CTX_free(tls->ctx);
    mem_free(tls);
}

/* ---- listening sockets ------------------------------------------------------------------------------------------------------ */

/* SO_REUSEPORT does not exist for unix sockets: the workers of one process share the first one's. */
static pthread_mutex_t unix_lock = PTHREAD_MUTEX_INITIALIZER;
static struct {
    char path[108];
    int fd;
} unix_sockets[CONFIG_MAX_LISTEN];

static int unix_socket_shared(const char *path)
{
    int fd = -1;
    pthread_mutex_lock(&unix_lock);
    for (size_t i = 0; i < CONFIG_MAX_LISTEN && fd < 0; i++)
        if (unix_sockets[i].path[0] && !strcmp(unix_sockets[i].path, path))
            fd = fcntl(unix_sockets[i].fd, F_DUPFD_CLOEXEC, 0);
    pthread_mutex_unlock(&unix_lock);
    return fd;
}

static void unix_socket_remember(const char *path, int fd)
{
    pthread_mutex_lock(&unix_lock);
    for (size_t i = 0; i < CONFIG_MAX_LISTEN; i++)
        if (!unix_sockets[i].path[0]) {
            unix_sockets[i].fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
            if (unix_sockets[i].fd >= 0)
                snprintf(unix_sockets[i].path, sizeof unix_sockets[i].path, "%s", path);
            break;
        }
    pthread_mutex_unlock(&unix_lock);
}

/* A socket file that nobody listens on was left by a process that died. */
static bool unix_socket_is_stale(const struct sockaddr_un *sun)
{
    struct stat st;
    if (lstat(sun->sun_path, &st) || !S_ISSOCK(st.st_mode))
        return false;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return false;
    bool stale = connect(fd, (const struct sockaddr *)(const void *)sun, sizeof *sun) && errno == ECONNREFUSED;
    close(fd);
    return stale;
}

static enum err listen_unix(const char *address, int *ret_fd, char ret_bound[128], struct error *reterr)
{
    struct sockaddr_un sun = {.sun_family = AF_UNIX};
    const char *path = address + 5;

    if (path[0] != '/' || strlen(path) >= sizeof sun.sun_path)
        return error_set(reterr, ERR_INVALID, "%s: expected unix:/path, of at most 107 bytes", address);
    memcpy(sun.sun_path, path, strlen(path) + 1);
    int fd = unix_socket_shared(path);
    if (fd < 0) {
        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        if (fd < 0)
            return error_set(reterr, ERR_INTERNAL, "%s: %s", address, strerror(errno));
        int rc = bind(fd, (const struct sockaddr *)(const void *)&sun, sizeof sun);
        if (rc && errno == EADDRINUSE && unix_socket_is_stale(&sun) && unlink(path) == 0)
            rc = bind(fd, (const struct sockaddr *)(const void *)&sun, sizeof sun);
        if (rc) {
            int code = errno;
            close(fd);
            return error_set(reterr, ERR_INVALID, "cannot listen on %s: %s", address, strerror(code));
        }
        unix_socket_remember(path, fd);
    }
    snprintf(ret_bound, 128, "%s", address);
    *ret_fd = fd;
    return ERR_OK;
}

enum err edge_listen(const char *address, int *ret_fd, char ret_bound[128], struct error *reterr)
{
    struct str a = str_c(address);
    uint8_t addr[16] = {0};
    uint64_t port;

    if (str_starts(a, S("unix:")))
        return listen_unix(address, ret_fd, ret_bound, reterr);
    ptrdiff_t colon = str_rindex(a, ':');
    if (colon < 0 || !str_to_u64(str_skip(a, (size_t)colon + 1), &port) || port > 65535)
        return error_set(reterr, ERR_INVALID, "%s: expected host:port, [ipv6]:port, *:port, :port or unix:/path", address);
    struct str host = str_sub(a, 0, (size_t)colon);
    bool any = host.n == 0 || str_eq_c(host, "*"), v6 = host.n > 2 && host.p[0] == '[' && host.p[host.n - 1] == ']';
    if (!any && !addr_parse(v6 ? str_sub(host, 1, host.n - 2) : host, addr))
        return error_set(reterr, ERR_INVALID, "%s: is no address", address);
    if (!any && v6 == is_v4(addr))
        return error_set(reterr, ERR_INVALID, "%s: is no address", address);

    struct sockaddr_in6 sin6 = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port)};
    struct sockaddr_in sin = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    memcpy(&sin6.sin6_addr, addr, 16);
    memcpy(&sin.sin_addr, addr + 12, 4);
    bool use_v6 = any || v6;
    int fd = socket(use_v6 ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0 && any) { /* a machine without IPv6 */
        use_v6 = false;
        fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    }
    if (fd < 0)
        return error_set(reterr, ERR_INTERNAL, "cannot listen on %s: %s", address, strerror(errno));
    int on = 1, off = !any; /* accepted sockets inherit TCP_NODELAY and SO_KEEPALIVE: no call per connection */
    bool ok = !setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) && !setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on) &&
              !setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) && !setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on) &&
              (!use_v6 || !setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off)) &&
              !bind(fd, use_v6 ? (const struct sockaddr *)(const void *)&sin6 : (const struct sockaddr *)(const void *)&sin,
                    use_v6 ? sizeof sin6 : sizeof sin);
    struct sockaddr_storage bound;
    socklen_t bound_n = sizeof bound;
    if (!ok || getsockname(fd, (struct sockaddr *)(void *)&bound, &bound_n)) {
        int code = errno;
        close(fd);
        return error_set(reterr, ERR_INVALID, "cannot listen on %s: %s", address, strerror(code));
    }
    /* sin_port and sin6_port stand at the same place */
    snprintf(ret_bound, 128, "%.*s:%u", host.n ? (int)host.n : 1, host.n ? host.p : "*",
             ntohs(((const struct sockaddr_in *)(const void *)&bound)->sin_port));
    *ret_fd = fd;
    return ERR_OK;
}

/* ---- request blocks --------------------------------------------------------------------------------------------------------- */

static struct edge_req *req_take(struct conn *c)
{
    struct edge *e = c->edge;
    struct edge_req *r = e->free_reqs;

    if (r) {
        e->free_reqs = r->next_free;
        e->n_free_reqs--;
    } else {
        r = NEW(struct edge_req);
    }
    r->magic = REQ_MAGIC;
    r->conn = c;
    r->handle = NULL;
    r->searched = r->head_n = r->body_n = 0;
    r->answered_100 = r->is_asking = false;
    r->ticket = 0;
    r->peer = c->peer;
    r->addr = c->addr;
    return r;
}

static void req_give(struct edge *e, struct edge_req *r)
{
    if (r->ticket && e->h.on_ticket)
        e->h.on_ticket(e->h.ctx, r->ticket);
    r->ticket = 0;
    r->magic = 0;
    r->conn = NULL;
    if (r->in.cap > REQ_BYTES_KEPT)
        sb_free(&r->in);
    else
        r->in.n = 0;
    if (e->n_free_reqs >= REQS_KEPT) {
        sb_free(&r->in);
        mem_free(r);
        return;
    }
    r->next_free = e->free_reqs;
    e->free_reqs = r;
    e->n_free_reqs++;
}

/* ---- the end of a connection ------------------------------------------------------------------------------------------------ */

static void later(struct conn *c)
{
    static const struct timeval now = {0, 0};

    if (c->is_later)
        return;
    c->is_later = true;
    if (TAILQ_EMPTY(&c->edge->later))
        event_add(c->edge->later_event, &now);
    TAILQ_INSERT_TAIL(&c->edge->later, c, later);
}

static void set_idle(struct conn *c, bool idle)
{
    if (c->is_idle == idle)
        return;
    c->is_idle = idle;
    if (idle)
        TAILQ_INSERT_TAIL(&c->edge->idle, c, idle);
    else
        TAILQ_REMOVE(&c->edge->idle, c, idle);
}

static void read_off(struct conn *c)
{
    if (c->rd_on)
        event_del(&c->rd);
    c->rd_on = false;
}

static void read_on(struct conn *c)
{
    if (!c->rd_on)
        event_add(&c->rd, NULL);
    c->rd_on = true;
}

static void write_arm(struct conn *c, bool on)
{
    if (c->wr_on == on)
        return;
    c->wr_on = on;
    if (on)
        event_add(&c->wr, NULL);
    else
        event_del(&c->wr);
}

static void file_drop(struct conn *c)
{
    if (c->owns_file)
        close(c->file_fd);
    c->owns_file = false;
    c->file_fd = -1;
    c->file_n = 0;
}

/* No callback of the handlers from here; the memory goes in on_later. */
static void conn_close(struct conn *c)
{
    struct edge *e = c->edge;

    if (c->state == DEAD)
        return;
    c->state = DEAD;
    c->deadline_ms = 0;
    set_idle(c, false);
    read_off(c);
    write_arm(c, false);
    file_drop(c);
    sb_free(&c->out);
    sb_free(&c->next);
    if (c->htp->bev)
        bufferevent_setcb(c->htp->bev, NULL, NULL, NULL, NULL);
    if (c->counted)
        shared_give(e->shared, c->addr, c->per_address);
    c->counted = false;
    if (c->req) {
        req_give(e, c->req);
        c->req = NULL;
    }
    later(c);
}

/* So that no client takes what it has for the whole: a reset, and no close_notify. */
static void conn_cut(struct conn *c)
{
    static const struct linger hard = {.l_onoff = 1, .l_linger = 0};

    if (c->state == DEAD)
        return;
    (void)setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
    if (c->ssl)
        SSL_set_quiet_shutdown(c->ssl, 1);
    conn_close(c);
}

/* The client left, or is cut for being slow. The handler hears it if it has the request. Not from inside a handler's call. */
static void conn_gone(struct conn *c, bool too_slow)
{
    struct edge *e = c->edge;
    struct edge_req *r = c->state == BUSY || c->state == STREAM ? c->req : NULL;

    if (c->state == DEAD)
        return;
    if (too_slow)
        e->stats.slow_clients++;
    if (too_slow && !r && e->h.on_too_slow)
        e->h.on_too_slow(e->h.ctx, c->peer);
    if (r)
        c->req = NULL;
    conn_cut(c);
    if (r) {
        e->h.on_gone(e->h.ctx, r, r->handle, too_slow);
        req_give(e, r);
    }
}

static void conn_free(struct conn *c)
{
    struct edge *e = c->edge;

    TAILQ_REMOVE(&e->all, c, all);
    e->n_conns--;
    e->stats.open--;
    ERR_clear_error();
    if (c->ssl) {
        if (SSL_is_init_finished(c->ssl)) { /* close_notify, unless the connection was cut; the client's is not waited for */
            SSL_set_shutdown(c->ssl, SSL_get_shutdown(c->ssl) | SSL_RECEIVED_SHUTDOWN);
            (void)SSL_shutdown(c->ssl);
        }
        SSL_free(c->ssl);
        ERR_clear_error();
    }
    evhtp_connection_free(c->htp); /* closes the descriptor */
    c->magic = 0;
    mem_free(c);
}

/* ---- bytes out -------------------------------------------------------------------------------------------------------------- */

static size_t pending(const struct conn *c)
{
    return c->out.n - c->out_at + c->file_n;
}

/* The socket takes no more: wake us when it does. The sweep looks how fast that goes. */
static void wait_writable(struct conn *c)
{
    c->is_waiting = true;
    write_arm(c, true);
}

static void count_sent(struct conn *c, size_t n)
{
    c->sent += n;
    c->edge->stats.bytes_out += n;
}

#define SENT_NONE   0 /* would block */
#define SENT_BROKEN (-1)

/* At most one record a call. A write that would block must be tried again with at least the bytes it was tried with, wherever they
 * lie; as all of them go to the front of c->out and tries are cut to a record, the next try has them. */
static ssize_t tls_send(struct conn *c, const char *p, size_t n)
{
    ERR_clear_error();
    int rc = SSL_write(c->ssl, p, (int)(n < TLS_RECORD_BYTES ? n : TLS_RECORD_BYTES));
    if (rc > 0)
        return rc;
    int code = SSL_get_error(c->ssl, rc);
    if (code == SSL_ERROR_WANT_WRITE || code == SSL_ERROR_WANT_READ)
        return SENT_NONE;
    ERR_clear_error();
    return SENT_BROKEN;
}

static ssize_t plain_send(struct conn *c, struct iovec *iov, int n_iov, int flags)
{
    struct msghdr msg = {.msg_iov = iov, .msg_iovlen = (size_t)n_iov};
    ssize_t n;

    do
        n = sendmsg(c->fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT | flags);
    while (n < 0 && errno == EINTR);
    if (n >= 0)
        return n;
    return errno == EAGAIN || errno == EWOULDBLOCK ? SENT_NONE : SENT_BROKEN;
}

/* As much of p as the transport takes now; false when it is broken. */
static bool send_some(struct conn *c, const char *p, size_t n, size_t *ret_sent)
{
    size_t done = 0;

    while (done < n) {
        struct iovec iov = {.iov_base = (void *)(uintptr_t)(p + done), .iov_len = n - done};
        ssize_t got = c->ssl ? tls_send(c, p + done, n - done) : plain_send(c, &iov, 1, 0);
        if (got == SENT_BROKEN)
            return false;
        if (got == SENT_NONE)
            break;
        done += (size_t)got;
        if (!c->ssl && done < n)
            break; /* short: the next would block */
    }
    count_sent(c, done);
    *ret_sent = done;
    return true;
}

/* Records of 16 KiB go out one write each; without this each would be a segment of its own, far below what the path takes at once. */
static void cork(struct conn *c, int on)
{
    if (c->is_corked == on)
        return;
    c->is_corked = on;
    (void)setsockopt(c->fd, IPPROTO_TCP, TCP_CORK, &on, sizeof on); /* not on a unix socket */
}

static bool flush_file(struct conn *c)
{
    while (c->file_n) {
        if (!c->ssl) {
            ssize_t n = sendfile(c->fd, c->file_fd, &c->file_at, c->file_n);
            if (n < 0 && errno == EINTR)
                continue;
            if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
                return true;
            if (n <= 0)
                return false; /* an error, or a file shorter than it was */
            c->file_n -= (size_t)n;
            count_sent(c, (size_t)n);
            continue;
        }
        /* TLS: the bytes pass through us, a read of 64 KiB at a time and only when the one before is gone. */
        size_t want = c->file_n < READ_BYTES ? c->file_n : READ_BYTES, sent;
        if (want > TLS_RECORD_BYTES)
            cork(c, true);
        ssize_t n = pread(c->file_fd, c->edge->read, want, c->file_at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0 || !send_some(c, c->edge->read, (size_t)n, &sent))
            return false;
        c->file_at += n;
        c->file_n -= (size_t)n;
        if (sent < (size_t)n) {
            sb_add(&c->out, (struct str){c->edge->read + sent, (size_t)n - sent});
            return true;
        }
    }
    file_drop(c);
    return true;
}

/* Everything that waits, as far as the socket takes it; false when it is broken. */
static bool conn_flush(struct conn *c)
{
    for (;;) {
        if (c->out.n > c->out_at) {
            size_t sent;
            if (!send_some(c, c->out.p + c->out_at, c->out.n - c->out_at, &sent))
                return false;
            c->out_at += sent;
            if (c->out.n > c->out_at)
                break;
        }
        if (c->out.cap)
            sb_free(&c->out); /* kept only while a client is slow: idle connections cost nothing */
        c->out_at = 0;
        if (!c->file_n)
            break;
        if (!flush_file(c))
            return false;
        if (c->file_n && c->out.n == 0)
            break; /* sendfile would block */
        if (c->out.n)
            break; /* TLS would block */
    }
    if (pending(c)) {
        wait_writable(c);
    } else {
        cork(c, false);
        c->is_waiting = false;
        c->slow_since = 0;
        write_arm(c, false);
    }
    return true;
}

static void conn_queue(struct conn *c, struct str s)
{
    if (s.n == 0)
        return;
    if (c->out_at > c->out.n / 2 && c->out_at > 4096) { /* the front half is gone: move the rest down */
        memmove(c->out.p, c->out.p + c->out_at, c->out.n - c->out_at);
        c->out.n -= c->out_at;
        c->out_at = 0;
    }
    sb_add(&c->out, s);
    wait_writable(c);
}

/* Part of a file waits and bytes are to follow it: read it, so that the order holds. Rare. */
static bool file_to_out(struct conn *c)
{
    while (c->file_n) {
        size_t want = c->file_n < READ_BYTES ? c->file_n : READ_BYTES;
        ssize_t n = pread(c->file_fd, c->edge->read, want, c->file_at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        conn_queue(c, (struct str){c->edge->read, (size_t)n});
        c->file_at += n;
        c->file_n -= (size_t)n;
    }
    file_drop(c);
    return true;
}

/* a then b. more: further bytes follow at once. A broken transport marks the connection; the loop reports it. */
static void conn_send(struct conn *c, struct str a, struct str b, bool more)
{
    if (c->broken || c->state == DEAD)
        return;
    if (c->file_n && !file_to_out(c)) {
        c->broken = true;
        return;
    }
    if (pending(c) || c->round_n >= STREAM_ROUND) {
        conn_queue(c, a);
        conn_queue(c, b);
        return;
    }
    size_t sent = 0;
    if (c->ssl) {
        bool ok = send_some(c, a.p, a.n, &sent);
        if (ok && sent == a.n && b.n) {
            size_t sent_b = 0;
            ok = send_some(c, b.p, b.n, &sent_b);
            sent += sent_b;
        }
        if (!ok) {
            c->broken = true;
            return;
        }
    } else {
        struct iovec iov[2] = {{(void *)(uintptr_t)a.p, a.n}, {(void *)(uintptr_t)b.p, b.n}};
        ssize_t n = plain_send(c, iov, b.n ? 2 : 1, more ? MSG_MORE : 0);
        if (n == SENT_BROKEN) {
            c->broken = true;
            return;
        }
        sent = (size_t)n;
        count_sent(c, sent);
    }
    if (sent < a.n + b.n) {
        conn_queue(c, str_skip(a, sent));
        conn_queue(c, sent > a.n ? str_skip(b, sent - a.n) : b);
    }
    c->round_n += sent;
}

/* ---- answers ---------------------------------------------------------------------------------------------------------------- */

static const char *reason_of(int status)
{
    switch (status) {
#define R(code, text)                                                                                                                      \
    case code:                                                                                                                             \
        return text;
        R(200, "OK")
        R(201, "Created")
        R(202, "Accepted")
        R(204, "No Content")
        R(206, "Partial Content")
        R(301, "Moved Permanently")
        R(302, "Found")
        R(303, "See Other")
        R(304, "Not Modified")
        R(307, "Temporary Redirect")
        R(308, "Permanent Redirect")
        R(400, "Bad Request")
        R(401, "Unauthorized")
        R(403, "Forbidden")
        R(404, "Not Found")
        R(405, "Method Not Allowed")
        R(406, "Not Acceptable")
        R(408, "Request Timeout")
        R(409, "Conflict")
        R(410, "Gone")
        R(411, "Length Required")
        R(412, "Precondition Failed")
        R(413, "Content Too Large")
        R(414, "URI Too Long")
        R(415, "Unsupported Media Type")
        R(416, "Range Not Satisfiable")
        R(417, "Expectation Failed")
        R(421, "Misdirected Request")
        R(422, "Unprocessable Content")
        R(426, "Upgrade Required")
        R(428, "Precondition Required")
        R(429, "Too Many Requests")
        R(431, "Request Header Fields Too Large")
        R(500, "Internal Server Error")
        R(501, "Not Implemented")
        R(502, "Bad Gateway")
        R(503, "Service Unavailable")
        R(504, "Gateway Timeout")
        R(507, "Insufficient Storage")
#undef R
    default:
        return "Unknown";
    }
}

static void date_refresh(struct edge *e)
{
    int64_t now = clock_now_s();
    char text[CLOCK_RFC3339_MAX];

    if (now == e->date_s && e->date_n)
        return;
    e->date_s = now;
    e->date_n = (size_t)snprintf(e->date, sizeof e->date, "Date: %s\r\n", clock_http_date(now, text));
}

static void add_status(struct strbuf *b, int status)
{
    char text[16] = "HTTP/1.1 ";

    text[9] = (char)('0' + status / 100 % 10);
    text[10] = (char)('0' + status / 10 % 10);
    text[11] = (char)('0' + status % 10);
    text[12] = ' ';
    sb_add(b, (struct str){text, 13});
}

/* Control bytes would end the line or worse; the cut does not fall into a UTF-8 sequence. */
static void add_reason(struct strbuf *b, struct str reason)
{
    size_t n = reason.n;

    if (n > REASON_BYTES_MAX) {
        n = REASON_BYTES_MAX;
        while (n && ((unsigned char)reason.p[n] & 0xc0) == 0x80)
            n--;
    }
    sb_reserve(b, n);
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)reason.p[i];
        b->p[b->n++] = c < ' ' || c == 0x7f ? ' ' : (char)c;
    }
}

#define NO_LENGTH UINT64_MAX

/* The head of an answer into e->head. */
static void build_head(struct conn *c, int status, struct str reason, struct str fields, uint64_t length, bool closing, bool http10)
{
    struct edge *e = c->edge;
    struct strbuf *b = &e->head;

    b->n = 0;
    add_status(b, status);
    if (reason.n)
        add_reason(b, reason);
    else
        sb_addc(b, reason_of(status));
    sb_add(b, S("\r\n"));
    date_refresh(e);
    sb_add(b, (struct str){e->date, e->date_n});
    if (length != NO_LENGTH) {
        sb_add(b, S("Content-Length: "));
        sb_add_u64(b, length);
        sb_add(b, S("\r\n"));
    }
    if (closing)
        sb_add(b, S("Connection: close\r\n"));
    else if (http10)
        sb_add(b, S("Connection: keep-alive\r\n"));
    sb_add(b, fields);
    sb_add(b, S("\r\n"));
}

/* Is the answer that begins here the connection's last? Where that is our wish, the client may be sending the next request. */
static void close_decide(struct conn *c)
{
    uint64_t max = c->edge->cfg->limits.keepalive_requests;

    if (!c->close_after && (c->edge->draining || (max && c->requests >= max)))
        c->close_after = c->linger = true;
    if (c->half_closed && c->next.n == 0)
        c->close_after = true;
}

static void linger_begin(struct conn *c)
{
    c->state = LINGER;
    c->deadline_ms = loop_now_ms(c->edge->loop) + LINGER_MS;
    c->discarded = 0;
    sb_free(&c->next);
    if (c->ssl) {
        ERR_clear_error();
        (void)SSL_shutdown(c->ssl);
        ERR_clear_error();
    }
    if (shutdown(c->fd, SHUT_WR))
        conn_close(c);
}

/* The answer has left us. */
static void conn_answered(struct conn *c)
{
    if (c->close_after || (c->edge->draining && c->next.n == 0)) {
        if ((c->linger || c->next.n) && !c->half_closed)
            linger_begin(c);
        else
            conn_close(c);
        return;
    }
    c->state = IDLE;
    c->since_ms = loop_now_ms(c->edge->loop);
    c->deadline_ms = c->since_ms + c->edge->cfg->limits.keepalive_idle_ms;
    set_idle(c, true);
    if (c->next.n) {
        if (!c->dispatching)
            later(c);
    } else if (c->half_closed) {
        conn_close(c);
    }
}

/* All of the answer was given to us: the request is over for the handler. */
static void req_finished(struct conn *c)
{
    struct edge_req *r = c->req;

    c->req = NULL;
    if (c->state != STREAM)
        c->deadline_ms = 0; /* that of a streamed answer goes on until it has left us */
    c->state = FLUSH;
    c->drain_due = false;
    req_give(c->edge, r);
    if (c->broken)
        conn_cut(c);
    else if (pending(c) == 0)
        conn_answered(c);
}

void edge_reply(struct edge_req *r, int status, struct str reason, struct str fields, struct str body, int64_t length)
{
    struct conn *c = conn_of_req(r);
    bool head = r->head.method == HEAD_HEAD, none = status == 204 || status == 304;
    uint64_t n = none ? NO_LENGTH : head && length >= 0 ? (uint64_t)length : body.n;

    AN(c->state == BUSY);
    if (r->is_asking) /* the body was not wanted; its rest is dropped */
        read_on(c);
    close_decide(c);
    build_head(c, status, reason, fields, n, c->close_after, r->head.is_http10);
    if (head || none)
        body = (struct str){0};
    if (c->ssl && body.n && c->edge->head.n + body.n <= TLS_RECORD_BYTES) { /* one record */
        sb_add(&c->edge->head, body);
        body = (struct str){0};
    }
    conn_send(c, sb_str(&c->edge->head), body, false);
    req_finished(c); /* may close c */
}

void edge_start(struct edge_req *r, int status, struct str reason, struct str fields, uint64_t length)
{
    struct conn *c = conn_of_req(r);

    AN(c->state == BUSY);
    close_decide(c);
    c->no_body = r->head.method == HEAD_HEAD || status == 204 || status == 304;
    build_head(c, status, reason, fields, status == 204 || status == 304 ? NO_LENGTH : length, c->close_after, r->head.is_http10);
    c->state = STREAM;
    c->deadline_ms = c->edge->answer_ms ? loop_now_ms(c->edge->loop) + c->edge->answer_ms + ANSWER_SLACK_MS : 0;
    c->left = length;
    conn_send(c, sb_str(&c->edge->head), (struct str){0}, length > 0 && !c->no_body);
    c->drain_due = true;
    if (c->broken || pending(c) <= c->edge->cfg->limits.buffer_low)
        later(c);
}

/* What is owed after each write: on_drain, or on_gone when the write found the client gone. */
static void wrote(struct conn *c)
{
    c->drain_due = true;
    if (c->broken || pending(c) <= c->edge->cfg->limits.buffer_low)
        later(c);
}

void edge_write(struct edge_req *r, const void *data, size_t n)
{
    struct conn *c = conn_of_req(r);

    AN(c->state == STREAM);
    if (n > c->left)
        n = (size_t)c->left;
    c->left -= n;
    if (n && !c->no_body)
        conn_send(c, (struct str){data, n}, (struct str){0}, false);
    wrote(c);
}

static void file_add(struct conn *c, int fd, off_t at, size_t n)
{
    if (c->file_n && c->file_fd == fd && c->file_at + (off_t)c->file_n == at) { /* goes on where the last one ended */
        c->file_n += n;
    } else if (c->file_n && !file_to_out(c)) {
        c->broken = true;
        return;
    } else {
        c->file_fd = fd;
        c->file_at = at;
        c->file_n = n;
    }
    if (c->out.n > c->out_at || c->round_n >= STREAM_ROUND) {
        wait_writable(c);
        return;
    }
    size_t before = pending(c);
    if (!conn_flush(c))
        c->broken = true;
    else
        c->round_n += before - pending(c);
}

enum err edge_write_file(struct edge_req *r, int fd, uint64_t offset, size_t n)
{
    struct conn *c = conn_of_req(r);

    AN(c->state == STREAM);
    if (n > FILE_BYTES_MAX || offset > INT64_MAX - FILE_BYTES_MAX)
        return ERR_INVALID;
    if (n > c->left)
        n = (size_t)c->left;
    c->left -= n;
    if (n && !c->no_body && !c->broken)
        file_add(c, fd, (off_t)offset, n);
    wrote(c);
    return ERR_OK;
}

size_t edge_pending(const struct edge_req *r)
{
    return pending(conn_of_req(r));
}

void edge_end(struct edge_req *r)
{
    struct conn *c = conn_of_req(r);

    AN(c->state == STREAM);
    if (c->left && !c->no_body) {
        edge_abort(r);
        return;
    }
    if (c->file_n && !c->owns_file) { /* the caller may close its descriptor from here on */
        int own = fcntl(c->file_fd, F_DUPFD_CLOEXEC, 0);
        if (own < 0) {
            edge_abort(r);
            return;
        }
        c->file_fd = own;
        c->owns_file = true;
    }
    req_finished(c);
}

void edge_abort(struct edge_req *r)
{
    struct conn *c = conn_of_req(r);

    c->req = NULL;
    req_give(c->edge, r);
    conn_cut(c);
}

void edge_req_close_after(struct edge_req *r)
{
    struct conn *c = conn_of_req(r);
    c->close_after = c->linger = true;
}

/* ---- refusals --------------------------------------------------------------------------------------------------------------- */

/* The refusal was given to us: nothing more comes of this connection. */
static void conn_refused(struct conn *c)
{
    c->state = FLUSH;
    c->deadline_ms = 0;
    if (c->req) {
        req_give(c->edge, c->req);
        c->req = NULL;
    }
    if (c->broken)
        conn_cut(c);
    else if (pending(c) == 0)
        conn_answered(c);
}

/* The client gets an answer and the end of the connection; what it sent beyond is never looked at. */
static void conn_refuse(struct conn *c, int status, const char *why)
{
    struct edge *e = c->edge;
    struct edge_req *r = c->req;

    e->stats.bad_heads++;
    sb_reset(&e->fields);
    sb_reset(&e->body);
    if (e->h.refusal) {
        e->h.refusal(e->h.ctx, status, why, &e->fields, &e->body);
    } else {
        sb_addc(&e->fields, "Content-Type: text/plain\r\n");
        sb_addf(&e->body, "%s\n", why);
    }
    c->close_after = c->linger = true;
    build_head(c, status, (struct str){0}, sb_str(&e->fields), e->body.n, true, false);
    bool is_head = r && r->in.n > 5 && !memcmp(r->in.p, "HEAD ", 5);
    set_idle(c, false);
    conn_send(c, sb_str(&e->head), is_head ? S("") : sb_str(&e->body), false);
    if (e->h.on_refused)
        e->h.on_refused(e->h.ctx, c->peer, status, why);
    conn_refused(c);
}

/* docker and the CRI fall back to HTTP on loopback only when they read "HTTP/" where they expect a TLS record; FACTS 6.1. */
static void refuse_tls_on_plain(struct conn *c)
{
    struct edge *e = c->edge;

    e->stats.bad_heads++;
    if (e->h.on_refused)
        e->h.on_refused(e->h.ctx, c->peer, 400, "TLS on a plain HTTP port");
    c->close_after = c->linger = true;
    set_idle(c, false);
    conn_send(c,
              S("HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\nClient sent an HTTPS request to an HTTP "
                "server.\n"),
              (struct str){0}, false);
    conn_refused(c);
}

static void body_wait(struct conn *c)
{
    struct edge_req *r = c->req;
    c->state = BODY;
    c->deadline_ms = loop_now_ms(c->edge->loop) + c->edge->cfg->limits.body_deadline_ms;
    if (r->head.expect_continue && !r->answered_100) {
        r->answered_100 = true;
        conn_send(c, S("HTTP/1.1 100 Continue\r\n\r\n"), (struct str){0}, false);
        if (c->broken)
            conn_cut(c);
    }
}

/* ---- bytes in --------------------------------------------------------------------------------------------------------------- */

/* The head is whole and good, c->req->head holds it. True when the request is complete and may be handed out. */
static bool body_begin(struct conn *c)
{
    struct edge *e = c->edge;
    struct edge_req *r = c->req;

    if (r->head.length == 0)
        return true;
    size_t limit = e->h.body_limit ? e->h.body_limit(e->h.ctx, &r->head) : 0;
    if (limit == EDGE_BODY_ASK) { /* what came of it already waits in c->next */
        r->is_asking = true;
        c->close_after = c->linger = true;
        read_off(c);
        return true;
    }
    if (limit == 0 && r->head.method != HEAD_GET && r->head.method != HEAD_HEAD && r->head.length <= LEFT_BODY_MAX) {
        c->close_after = c->linger = true; /* the handler answers 405 or 404; the body is left where it is */
        r->in.n = r->head_n;
        return true;
    }
    if (r->head.length > limit) {
        conn_refuse(c, 413, limit ? "request body too large" : "a request body is not accepted here");
        return false;
    }
    r->body_n = (size_t)r->head.length;
    if (r->in.n - r->head_n >= r->body_n)
        return true;
    body_wait(c);
    return false;
}

/* True when a request is complete; else more bytes are needed, or the connection is on its way out. */
static bool head_advance(struct conn *c)
{
    struct edge *e = c->edge;
    struct edge_req *r = c->req;
    const char *why = NULL;

    if (c->state == BODY) {
        if (r->in.n - r->head_n < r->body_n)
            return false;
        /* The buffer may have moved while the body came: parse again, the bytes of the head are the same. */
        if (head_parse((struct str){r->in.p, r->head_n}, &e->head_limits, &r->head, &why))
            WRONG("a good head became bad");
        return true;
    }
    if (c->state == IDLE) {
        set_idle(c, false);
        c->state = HEAD;
    }
    if (!c->is_tls && r->searched == 0 && r->in.p[0] == 0x16) {
        refuse_tls_on_plain(c);
        return false;
    }
    size_t n = r->in.n, end = head_find_end(r->in.p, n, r->searched);
    if (end == 0) {
        size_t window = n < e->head_limits.head_bytes + 1 ? n : e->head_limits.head_bytes + 1;
        int status = head_check_partial((struct str){r->in.p, window}, r->searched < window ? r->searched : 0, &e->head_limits, &why);
        if (r->searched == 0 && c->requests) /* the first head's time runs from the accept */
            c->deadline_ms = loop_now_ms(e->loop) + e->cfg->limits.head_deadline_ms;
        r->searched = n;
        if (status)
            conn_refuse(c, status, why);
        return false;
    }
    int status = head_parse((struct str){r->in.p, end}, &e->head_limits, &r->head, &why);
    if (status) {
        conn_refuse(c, status, why);
        return false;
    }
    r->head_n = end;
    return body_begin(c);
}

static void dispatch(struct conn *c)
{
    struct edge *e = c->edge;
    struct edge_req *r = c->req;
    size_t whole = r->head_n + r->body_n;

    if (r->in.n > whole) {
        sb_add(&c->next, (struct str){r->in.p + whole, r->in.n - whole});
        r->in.n = whole;
    }
    c->state = BUSY;
    c->deadline_ms = 0;
    c->round_n = 0;
    c->requests++;
    c->no_body = false;
    e->stats.requests++;
    if (!r->head.keep_alive)
        c->close_after = true;
    if (c->is_trusted)
        forwarded(r);
    c->dispatching = true;
    e->h.on_request(e->h.ctx, r); /* r may be over */
    c->dispatching = false;
}

/* As many requests as have come, one after the other. */
static void conn_advance(struct conn *c)
{
    for (int round = 0; c->state == IDLE || c->state == HEAD || c->state == BODY; round++) {
        if (!c->req) {
            if (c->next.n == 0)
                return;
            if (round >= PIPELINED_ROUND) {
                later(c);
                return;
            }
            c->req = req_take(c);
            struct strbuf unused = c->req->in;
            c->req->in = c->next;
            c->next = (struct strbuf){0};
            sb_free(&unused);
        }
        if (!head_advance(c)) {
            if (c->half_closed && (c->state == HEAD || c->state == BODY))
                conn_close(c); /* what is missing will not come */
            return;
        }
        dispatch(c);
    }
}

bool edge_req_is_asking(const struct edge_req *r)
{
    return r->is_asking;
}

int edge_req_ticket(struct edge_req *r)
{
    int ticket = r->ticket;
    r->ticket = 0;
    return ticket;
}

void edge_req_take_body(struct edge_req *r, int ticket)
{
    struct conn *c = conn_of_req(r);
    AN(c->state == BUSY && r->is_asking && !c->dispatching);
    r->is_asking = false;
    r->handle = NULL;
    r->ticket = ticket;
    r->body_n = (size_t)r->head.length; /* the handler has looked at it */
    sb_reserve(&r->in, r->body_n + READ_BYTES); /* once, for what it will be */
    sb_add(&r->in, sb_str(&c->next));
    sb_free(&c->next);
    c->close_after = c->linger = false;
    c->requests--; /* counted when it is whole */
    c->edge->stats.requests--;
    read_on(c);
    if (r->in.n - r->head_n < r->body_n)
        body_wait(c);
    else
        c->state = BODY;
    if (c->state == BODY)
        conn_advance(c);
}

static void conn_feed(struct conn *c, const char *p, size_t n)
{
    switch (c->state) {
    case IDLE:
    case HEAD:
    case BODY:
        if (c->next.n) { /* pipelined requests wait for their turn in on_later */
            sb_add(&c->next, (struct str){p, n});
            return;
        }
        if (!c->req)
            c->req = req_take(c);
        sb_add(&c->req->in, (struct str){p, n});
        conn_advance(c);
        return;
    case BUSY:
    case STREAM:
    case FLUSH:
        if (!c->close_after && c->next.n + n <= READ_BYTES) {
            sb_add(&c->next, (struct str){p, n});
            return;
        }
        /* More than we hold, or nothing further will be answered: read and forget, so that the client's leaving is still seen. */
        c->close_after = c->linger = true;
        c->discarded += n;
        if (c->discarded > DISCARD_MAX)
            conn_gone(c, false);
        return;
    case LINGER:
        c->discarded += n;
        if (c->discarded > LINGER_BYTES)
            conn_close(c);
        return;
    case FRONT:
    case HANDSHAKE:
    case DEAD:
        return;
    }
}

static void conn_eof(struct conn *c)
{
    c->half_closed = true;
    read_off(c);
    switch (c->state) {
    case IDLE:
        if (c->next.n) /* pipelined requests wait for their turn */
            return;
        conn_close(c);
        return;
    case HEAD:
    case BODY:
    case LINGER:
        conn_close(c);
        return;
    case BUSY:
        c->deadline_ms = loop_now_ms(c->edge->loop) + HALF_CLOSED_MS;
        return;
    case STREAM:
        conn_gone(c, false);
        return;
    case FLUSH: /* the rest of the answer goes out */
    case FRONT:
    case HANDSHAKE:
    case DEAD:
        return;
    }
}

#define READ_AGAIN (-1)
#define READ_ERROR (-2)

/* > 0 bytes, 0 the client sends no more. */
static ssize_t conn_read(struct conn *c)
{
    if (!c->ssl || c->state == LINGER) { /* after our close_notify the rest need not be decrypted to be dropped */
        ssize_t n;
        do
            n = recv(c->fd, c->edge->read, READ_BYTES, 0);
        while (n < 0 && errno == EINTR);
        if (n >= 0)
            return n;
        return errno == EAGAIN || errno == EWOULDBLOCK ? READ_AGAIN : READ_ERROR;
    }
    ERR_clear_error();
    int n = SSL_read(c->ssl, c->edge->read, READ_BYTES);
    if (n > 0)
        return n;
    int code = SSL_get_error(c->ssl, n);
    ERR_clear_error();
    switch (code) {
    case SSL_ERROR_WANT_READ:
        return READ_AGAIN;
    case SSL_ERROR_WANT_WRITE: /* an answer to a key update does not fit: goes with the next write */
        write_arm(c, true);
        return READ_AGAIN;
    case SSL_ERROR_ZERO_RETURN:
        return 0;
    default:
        return READ_ERROR;
    }
}

/* The longest idle connection makes room; of one address, if its limit is the one that is reached. */
static bool evict(struct edge *e, const uint8_t *addr)
{
    uint64_t wanted[2] = {0}, key[2];
    unsigned looked = 0;
    struct conn *c;

    if (addr)
        address_key(addr, wanted);
    TAILQ_FOREACH(c, &e->idle, idle)
    {
        if (addr) {
            address_key(c->addr, key);
            if (++looked > EVICT_LOOK)
                return false;
            if (memcmp(key, wanted, sizeof key))
                continue;
        }
        conn_close(c);
        return true;
    }
    return false;
}

/* ---- before the first request: a trusted proxy's header, the TLS handshake --------------------------------------------------- */

/* Drain: who was accepted and has not said anything yet is about to. It gets its one answer, if it asks soon. */
static void fresh_hurry(struct conn *c)
{
    uint64_t until = loop_now_ms(c->edge->loop) + FRESH_MS;
    if (c->deadline_ms == 0 || c->deadline_ms > until)
        c->deadline_ms = until;
}

static void serve_begin(struct conn *c)
{
    c->state = IDLE;
    c->deadline_ms = c->since_ms + c->edge->cfg->limits.head_deadline_ms; /* all before it takes of the same time */
    set_idle(c, true);
    if (c->edge->draining)
        fresh_hurry(c);
}

/* Plain HTTP to a TLS port: say so in the only way that client can read. */
static void refuse_plain_on_tls(struct conn *c)
{
    SSL_free(c->ssl);
    c->ssl = NULL;
    c->edge->stats.bad_heads++;
    c->close_after = c->linger = true;
    conn_send(c,
              S("HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\nClient sent an HTTP request to an HTTPS "
                "server.\n"),
              (struct str){0}, false);
    conn_refused(c);
}

static void handshake_failed(struct conn *c)
{
    unsigned long code;
    bool is_plain = false, is_first = BIO_number_read(SSL_get_rbio(c->ssl)) <= SSL3_RT_HEADER_LENGTH;

    while ((code = ERR_get_error())) {
        int reason = ERR_GET_REASON(code);
        if (reason == SSL_R_HTTP_REQUEST || reason == SSL_R_HTTPS_PROXY_REQUEST || reason == SSL_R_WRONG_VERSION_NUMBER)
            is_plain = true; /* the last one: no TLS record at all */
    }
    if (is_plain && is_first)
        refuse_plain_on_tls(c);
    else
        conn_close(c);
}

static void handshake(struct conn *c)
{
    ERR_clear_error();
    int rc = SSL_do_handshake(c->ssl);
    if (rc == 1) {
        write_arm(c, false);
        serve_begin(c);
        return;
    }
    int code = SSL_get_error(c->ssl, rc);
    if (code == SSL_ERROR_WANT_READ || code == SSL_ERROR_WANT_WRITE) {
        write_arm(c, code == SSL_ERROR_WANT_WRITE);
        return;
    }
    handshake_failed(c);
}

/* The client's own address takes the place of the proxy's, in every count and decision. False when it has connections enough. */
static bool readdress(struct conn *c, const uint8_t addr[16])
{
    struct edge *e = c->edge;

    memcpy(c->addr, addr, 16); /* a trusted peer's own is in no count */
    address_text(c->addr, c->peer);
    c->is_trusted = front_trusts(&e->trust, c->addr);
    if (!counts_per_address(e, c->addr))
        return true;
    if (!shared_take_address(e->shared, c->addr) && (!evict(e, c->addr) || !shared_take_address(e->shared, c->addr)))
        return false;
    c->per_address = true;
    return true;
}

static void front_refuse(struct conn *c, const char *why)
{
    SSL_free(c->ssl); /* before the handshake: the answer is in the clear */
    c->ssl = NULL;
    conn_refuse(c, 400, why);
}

/* The header is peeked at and then taken to its last byte and no further: what follows may be TLS. Bytes that are surely its own are
 * taken at once, or the socket would stay readable. */
static void front_read(struct conn *c)
{
    struct edge *e = c->edge;
    bool has_client = false;
    uint8_t client[16];
    size_t held = c->next.n, whole = 0;
    ssize_t n;

    memcpy(e->front, c->next.p ? c->next.p : "", held);
    do
        n = recv(c->fd, e->front + held, sizeof e->front - held, MSG_PEEK);
    while (n < 0 && errno == EINTR);
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
        return;
    if (n <= 0) {
        conn_close(c);
        return;
    }
    enum front_header h = front_header_parse((struct str){e->front, held + (size_t)n}, &whole, &has_client, client);
    if (h == FRONT_NONE && (held || e->header == HEADER_REQUIRED))
        h = e->header == HEADER_REQUIRED || c->ssl ? FRONT_MALFORMED : h;
    size_t take = h == FRONT_MORE ? (size_t)n : h == FRONT_WHOLE ? whole - held : 0;
    if (take && recv(c->fd, e->front + held, take, 0) != (ssize_t)take) {
        conn_close(c);
        return;
    }
    switch (h) {
    case FRONT_MORE:
        sb_add(&c->next, (struct str){e->front + held, take});
        return;
    case FRONT_MALFORMED:
        sb_free(&c->next);
        front_refuse(c, "a malformed PROXY protocol header, or none where one is required");
        return;
    case FRONT_WHOLE:
        sb_free(&c->next);
        if (has_client && !readdress(c, client)) {
            e->stats.refused_limit++;
            conn_close(c);
            return;
        }
        break;
    case FRONT_NONE: /* what looked like a header's beginning is a request's: it stays in c->next */
        break;
    }
    if (c->ssl) {
        c->state = HANDSHAKE;
        return;
    }
    serve_begin(c);
    if (c->next.n)
        later(c);
}

/* What has come remains readable, so that each part leaves the next one to the next round of the loop. */
static void conn_begin(struct conn *c)
{
    if (c->state == FRONT)
        front_read(c);
    else
        handshake(c);
}

static void on_readable(evutil_socket_t fd, short what, void *ctx)
{
    struct conn *c = conn_of(ctx);
    (void)fd, (void)what;

    if (c->state == FRONT || c->state == HANDSHAKE) {
        conn_begin(c);
        return;
    }
    ssize_t n = conn_read(c);
    if (n > 0)
        conn_feed(c, c->edge->read, (size_t)n);
    else if (n == 0)
        conn_eof(c);
    else if (n == READ_ERROR)
        conn_gone(c, false);
    /* One read a turn: what is left in the socket wakes us again, and a record fits into the buffer, so that nothing is left in SSL. */
}

static void on_writable(evutil_socket_t fd, short what, void *ctx)
{
    struct conn *c = conn_of(ctx);
    (void)fd, (void)what;

    if (c->state == HANDSHAKE) {
        conn_begin(c);
        return;
    }
    c->round_n = 0;
    if (!conn_flush(c)) {
        conn_gone(c, false);
        return;
    }
    if (c->state == FLUSH) {
        if (pending(c) == 0)
            conn_answered(c);
    } else if (c->state == STREAM && c->drain_due && pending(c) <= c->edge->cfg->limits.buffer_low) {
        struct edge *e = c->edge;
        c->drain_due = false;
        e->h.on_drain(e->h.ctx, c->req, c->req->handle);
    }
}

/* ---- what is put off to the next round -------------------------------------------------------------------------------------- */

static void drained_check(struct edge *e)
{
    if (!e->draining || e->drained || e->n_conns)
        return;
    e->drained = true;
    if (e->on_drained)
        e->on_drained(e->drained_ctx);
}

static void on_later(evutil_socket_t fd, short what, void *ctx)
{
    struct edge *e = ctx;
    struct conns round = TAILQ_HEAD_INITIALIZER(round);
    struct conn *c;
    (void)fd, (void)what;

    TAILQ_CONCAT(&round, &e->later, later); /* what is put off from here on comes in the next round */
    while ((c = TAILQ_FIRST(&round))) {
        TAILQ_REMOVE(&round, c, later);
        c->is_later = false;
        c->round_n = 0;
        if (c->state == DEAD) {
            conn_free(c);
        } else if (c->broken) {
            conn_gone(c, false);
        } else if (c->state == STREAM && c->drain_due && pending(c) <= e->cfg->limits.buffer_low) {
            c->drain_due = false;
            e->h.on_drain(e->h.ctx, c->req, c->req->handle);
        } else if (c->state == IDLE && !c->req && c->next.n) {
            conn_advance(c);
        }
    }
    drained_check(e);
}

/* ---- deadlines: one timer for all ------------------------------------------------------------------------------------------- */

static void on_deadline(struct conn *c)
{
    c->deadline_ms = 0;
    switch (c->state) {
    case HEAD:
        conn_refuse(c, 408, "the request head did not come in time");
        return;
    case BODY:
        conn_refuse(c, 408, "the request body did not come in time");
        return;
    case BUSY: /* half-closed, and no answer yet */
        conn_gone(c, false);
        return;
    case FRONT:
    case HANDSHAKE:
    case IDLE:
    case LINGER:
        conn_close(c);
        return;
    case STREAM:
    case FLUSH: /* edge_answer_within() */
        conn_gone(c, true);
        return;
    case DEAD:
        return;
    }
}

/* What the client has taken. The kernel's part of it must be asked for: of a send buffer of megabytes it tells us only in thirds. */
static uint64_t taken(const struct conn *c)
{
    int queued = 0;

    if (ioctl(c->fd, SIOCOUTQ, &queued) || queued < 0)
        queued = 0;
    return c->sent > (uint64_t)queued ? c->sent - (uint64_t)queued : 0;
}

/* Bytes wait for the client: it must take them at limits.client_min_rate, at the least some in a window. */
static bool is_too_slow(struct conn *c, uint64_t now)
{
    const struct config *cfg = c->edge->cfg;
    uint64_t window = cfg->limits.client_min_rate_window_ms, due;

    if (!c->is_waiting || (c->slow_since && now - c->slow_since < window))
        return false;
    uint64_t n = taken(c), before = c->slow_mark;
    bool is_first = !c->slow_since;
    c->slow_since = now;
    c->slow_mark = n;
    if (is_first)
        return false;
    if (__builtin_mul_overflow(cfg->limits.client_min_rate, window, &due))
        due = UINT64_MAX;
    due = due / 1000 ? due / 1000 : 1;
    return n < before || n - before < due;
}

static void on_sweep(void *ctx)
{
    struct edge *e = ctx;
    uint64_t now = loop_now_ms(e->loop), buffered = 0;
    struct conn *c;

    TAILQ_FOREACH(c, &e->all, all)
    { /* conn_close() leaves the list alone */
        if (c->state == DEAD)
            continue;
        buffered += c->out.cap + c->next.cap;
        if (c->deadline_ms && now >= c->deadline_ms)
            on_deadline(c);
        else if (is_too_slow(c, now))
            conn_gone(c, true);
    }
    e->stats.buffered = buffered;
    timer_set(e->sweep, e->sweep_ms);
}

/* A second, or a quarter of the shortest deadline: those are late by no more than that. */
static uint64_t sweep_interval(const struct config *cfg)
{
    const uint64_t deadlines[] = {cfg->limits.head_deadline_ms, cfg->limits.body_deadline_ms, cfg->limits.tls_handshake_ms,
                                  cfg->limits.keepalive_idle_ms, cfg->limits.client_min_rate_window_ms};
    uint64_t ms = 1000;

    for (size_t i = 0; i < sizeof deadlines / sizeof *deadlines; i++)
        if (deadlines[i] / 4 < ms)
            ms = deadlines[i] / 4;
    return ms < 25 ? 25 : ms;
}

/* ---- accepting -------------------------------------------------------------------------------------------------------------- */

/* Many connections are open: one that has been idle for long makes room before somebody has to be refused. */
static void evict_early(struct edge *e)
{
    struct conn *c = TAILQ_FIRST(&e->idle);

    if (c && edge_shared_connections(e->shared) > e->shared->soft_max &&
        loop_now_ms(e->loop) - c->since_ms >= e->cfg->limits.keepalive_idle_ms / 2)
        conn_close(c);
}

void edge_shed_idle(struct edge *e, unsigned n)
{
    struct conn *c, *next;

    for (c = TAILQ_FIRST(&e->idle); c && n; c = next) {
        next = TAILQ_NEXT(c, idle);
        if (c->next.n)
            continue; /* pipelined requests wait for their turn */
        conn_close(c);
        n--;
    }
}

/* Before evhtp makes anything of it: may the client come in? */
static evhtp_res on_pre_accept(evhtp_connection_t *htp, void *ctx)
{
    struct listener *l = ctx;
    struct edge *e = l->edge;
    uint8_t addr[16];

    address_of(htp->saddr, addr);
    bool per_address = counts_per_address(e, addr);
    evict_early(e);
    for (int tries = 0; tries < 2; tries++) {
        enum take t = shared_take(e->shared, addr, per_address);
        if (t == TAKEN)
            return EVHTP_RES_OK;
        if (!evict(e, t == TOO_MANY_OF_ADDRESS ? addr : NULL))
            break;
    }
    e->stats.refused_limit++;
    return EVHTP_RES_ERROR; /* evhtp closes it */
}

/* The descriptor is ours from here; the bufferevent sleeps until it is freed. */
static void take_over(struct conn *c)
{
    struct bufferevent *bev = c->htp->bev;

    event_assign(&c->rd, c->edge->base, c->fd, EV_READ | EV_PERSIST, on_readable, c);
    event_assign(&c->wr, c->edge->base, c->fd, EV_WRITE | EV_PERSIST, on_writable, c);
    c->rd_on = true;
    event_add(&c->rd, NULL); /* first, so that libevent's set for the descriptor does not change in between */
    bufferevent_disable(bev, EV_READ | EV_WRITE);
    bufferevent_setcb(bev, NULL, NULL, NULL, NULL);
}

static evhtp_res on_post_accept(evhtp_connection_t *htp, void *ctx)
{
    struct listener *l = ctx;
    struct edge *e = l->edge;
    struct conn *c = NEW(struct conn);

    c->magic = CONN_MAGIC;
    c->edge = e;
    c->htp = htp;
    c->fd = (int)htp->sock;
    c->file_fd = -1;
    c->counted = true;
    c->since_ms = loop_now_ms(e->loop);
    address_of(htp->saddr, c->addr);
    address_text(c->addr, c->peer);
    c->per_address = counts_per_address(e, c->addr); /* as on_pre_accept counted */
    (void)fcntl(c->fd, F_SETFD, FD_CLOEXEC);
    /* Never fed: 8 KiB a connection that nobody needs. evhtp's own free of it looks for NULL first. */
    MEM_FREE(htp->parser);
    TAILQ_INSERT_TAIL(&e->all, c, all);
    e->n_conns++;
    e->stats.accepted++;
    e->stats.open++;
    c->is_trusted = front_trusts(&e->trust, c->addr);
    c->deadline_ms = c->since_ms + e->cfg->limits.head_deadline_ms;
    if (l->tls && e->cfg->limits.tls_handshake_ms < e->cfg->limits.head_deadline_ms)
        c->deadline_ms = c->since_ms + e->cfg->limits.tls_handshake_ms;
    take_over(c);
    if (l->tls) {
        c->is_tls = true;
        ERR_clear_error();
        c->ssl = SSL_new(l->tls->ctx);
        if (!c->ssl || !SSL_set_fd(c->ssl, c->fd)) {
            ERR_clear_error();
            conn_close(c);
            return EVHTP_RES_OK; /* it is ours: freed in the next round */
        }
        SSL_set_accept_state(c->ssl);
    }
    if (e->header != HEADER_NONE && c->is_trusted)
        c->state = FRONT;
    else if (c->ssl)
        c->state = HANDSHAKE;
    else
        serve_begin(c);
    return EVHTP_RES_OK;
}

static void on_accept_again(void *ctx)
{
    struct listener *l = ctx;
    if (l->htp->server)
        evconnlistener_enable(l->htp->server);
}

/* EMFILE and its like: a listener that stays readable would spin. */
static void on_accept_error(struct evconnlistener *server, void *ctx)
{
    evhtp_t *htp = ctx;
    struct listener *l = htp->arg;
    int code = errno;

    log_limited(&l->edge->accept_logged_ms, ACCEPT_LOG_MS, LOG_LEVEL_ERROR, "cannot accept connections: %s", strerror(code));
    evconnlistener_disable(server);
    timer_set(l->again, ACCEPT_PAUSE_MS);
}

enum err edge_accept(struct edge *e, int take_fd, struct edge_tls *tls, struct error *reterr)
{
    struct listener *l = NEW(struct listener);

    l->edge = e;
    l->htp = evhtp_new(e->base, l);
    AN(l->htp != NULL);
    evhtp_set_bev_flags(l->htp, BEV_OPT_CLOSE_ON_FREE);
    evhtp_set_pre_accept_cb(l->htp, on_pre_accept, l);
    evhtp_set_post_accept_cb(l->htp, on_post_accept, l);
    if (tls)
        l->tls = edge_tls_ref(tls);
    if (evhtp_accept_socket(l->htp, take_fd, BACKLOG)) {
        int code = errno;
        close(take_fd);
        evhtp_free(l->htp);
        edge_tls_unref(&l->tls);
        mem_free(l);
        return error_set(reterr, ERR_INTERNAL, "cannot listen: %s", strerror(code));
    }
    evconnlistener_set_error_cb(l->htp->server, on_accept_error);
    l->again = timer_new(e->loop, on_accept_again, l);
    l->next = e->listeners;
    e->listeners = l;
    return ERR_OK;
}

void edge_answer_within(struct edge *e, uint64_t ms)
{
    e->answer_ms = ms;
}

void edge_replace_tls(struct edge *e, struct edge_tls *tls)
{
    for (struct listener *l = e->listeners; l; l = l->next) {
        if (!l->tls)
            continue;
        edge_tls_unref(&l->tls);
        l->tls = edge_tls_ref(tls);
    }
}

static void listeners_free(struct edge *e)
{
    while (e->listeners) {
        struct listener *l = e->listeners;
        e->listeners = l->next;
        timer_free(&l->again);
        evhtp_unbind_socket(l->htp);
        evhtp_free(l->htp);
        edge_tls_unref(&l->tls);
        mem_free(l);
    }
}

/* ---- the whole -------------------------------------------------------------------------------------------------------------- */

struct edge *edge_new(struct loop *l, const struct config *cfg, struct edge_shared *shared, const struct edge_handlers *h)
{
    struct edge *e = NEW(struct edge);

    (void)signal(SIGPIPE, SIG_IGN); /* sendfile and SSL_write know no MSG_NOSIGNAL */
    e->loop = l;
    e->base = loop_base(l);
    e->cfg = config_ref((struct config *)(uintptr_t)cfg); /* const to us: only the count changes */
    e->shared = shared;
    e->h = *h;
    e->head_limits = (struct head_limits){
        .target_bytes = cfg->limits.target_bytes, .head_bytes = cfg->limits.head_bytes, .fields = (unsigned)cfg->limits.head_fields};
    TAILQ_INIT(&e->all);
    TAILQ_INIT(&e->idle);
    TAILQ_INIT(&e->later);
    e->later_event = event_new(e->base, -1, 0, on_later, e);
    AN(e->later_event != NULL);
    e->sweep_ms = sweep_interval(cfg);
    e->sweep = timer_new(l, on_sweep, e);
    timer_set(e->sweep, e->sweep_ms);
    return e;
}

void edge_drain(struct edge *e, void (*on_drained)(void *ctx), void *ctx)
{
    static const struct timeval now = {0, 0};
    struct conn *c;

    if (e->draining)
        return;
    e->draining = true;
    e->on_drained = on_drained;
    e->drained_ctx = ctx;
    listeners_free(e);
    TAILQ_FOREACH(c, &e->all, all)
    {
        if (c->state == FRONT || c->state == HANDSHAKE || (c->state == IDLE && c->next.n == 0 && c->requests == 0))
            fresh_hurry(c);
        else if (c->state == IDLE && c->next.n == 0)
            conn_close(c);
    }
    if (TAILQ_EMPTY(&e->later))
        event_add(e->later_event, &now);
}

void edge_free(struct edge **edge)
{
    struct edge *e = *edge;
    struct conn *c;

    *edge = NULL;
    if (!e)
        return;
    listeners_free(e);
    TAILQ_FOREACH(c, &e->all, all)
    {
        conn_gone(c, false);
    }
    while ((c = TAILQ_FIRST(&e->all)))
        conn_free(c);
    event_free(e->later_event);
    timer_free(&e->sweep);
    while (e->free_reqs) {
        struct edge_req *r = e->free_reqs;
        e->free_reqs = r->next_free;
        sb_free(&r->in);
        mem_free(r);
    }
    sb_free(&e->head);
    sb_free(&e->fields);
    sb_free(&e->body);
    config_unref(&e->cfg);
    mem_free(e);
}

const struct head *edge_req_head(const struct edge_req *r)
{
    return &r->head;
}

struct str edge_req_body(const struct edge_req *r)
{
    return r->body_n ? (struct str){r->in.p + r->head_n, r->body_n} : (struct str){0};
}

const char *edge_req_peer(const struct edge_req *r)
{
    return r->peer;
}

const uint8_t *edge_req_peer_addr(const struct edge_req *r)
{
    return r->addr;
}

bool edge_req_is_tls(const struct edge_req *r)
{
    return conn_of_req(r)->is_tls;
}

void edge_req_set_handle(struct edge_req *r, void *handle)
{
    r->handle = handle;
}

void *edge_req_handle(const struct edge_req *r)
{
    return r->handle;
}

void edge_stats(const struct edge *e, struct edge_stats *ret)
{
    *ret = e->stats;
}
