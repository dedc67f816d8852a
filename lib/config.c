/* The configuration: one table that names every key once; the file, the environment, --check, --show-config, the sample and the
 * reference are all made of it. What a key means to the daemons is not known here.
 *
 * The file is read with libyaml's events and not with libcyaml's loader, because three of our promises are out of its reach: a value
 * that is wrong (a duration, a size, an address) is named with its line, but cyaml has no types of one's own and gives no marks once
 * a string is loaded; a list may be written as one scalar, which is two types for one field; and the schema stands in one table
 * together with defaults, bounds and sentences, where cyaml wants it a second time as C initialisers. The walk below is a page. */
#include "pullgate/config.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <yaml.h>

#include "pullgate/clock.h"
#include "pullgate/file.h"
#include "pullgate/jv.h"
#include "pullgate/log.h"
#include "pullgate/mem.h"

#define FILE_BYTES_MAX   (1024 * 1024) /* a configuration is a page or two; bounds what a wrong path can make us read */
#define SECRET_BYTES_MAX 4096
#define KEY_BYTES_MAX    96
#define DEPTH_MAX        4

enum type {
    T_STRING,
    T_PATH,     /* absolute or empty */
    T_CHOICE,   /* one of `choices`, "a|b" */
    T_URL,      /* http(s)://host[:port], no path; or empty */
    T_LINK,     /* any http(s) URL or mailto:, or empty */
    T_REDIS,    /* redis:// rediss:// unix:// */
    T_STORE,    /* sqlite:/// postgresql:// postgres:// */
    T_SLUG,     /* [a-z0-9] and inner '-' */
    T_ZONE,     /* IANA time zone */
    T_SMTP,     /* smtp(s)://host[:port], or empty */
    T_MAILBOX,  /* address, or Name <address>; or empty */
    T_DAYS,     /* numbers of days with commas between them; or empty */
    T_DURATION, /* milliseconds */
    T_SIZE,     /* bytes */
    T_COUNT,
    T_WORKERS, /* count, or auto = 0 */
    T_LISTEN,  /* list of addresses */
    T_CIDRS,   /* list of networks */
};

enum { RESTART, RELOAD };
enum { OPEN, SECRET, SECRET_URL }; /* SECRET: shown as ***, KEY_file too. SECRET_URL: its password is shown as ***, KEY_file too */

struct key {
    const char *name;
    enum type type;
    size_t offset;
    const char *fallback; /* the default, as one would write it */
    const char *choices;
    uint64_t min, max;
    int reload, secrecy;
    const char *sentence;
};

#define MS         1ull
#define SEC        1000ull
#define HOUR       (3600 * SEC)
#define KIB        1024ull
#define MIB        (1024 * KIB)
#define GIB        (1024 * MIB)
#define TIB        (1024 * GIB)

#define AT(member) offsetof(struct config, member)
#define TEXT(name, type, member, fallback, sentence)                                                                                       \
    {                                                                                                                                      \
        name, type, AT(member), fallback, NULL, 0, 0, RESTART, OPEN, sentence                                                              \
    }
#define TEXT_RELOAD(name, type, member, fallback, sentence)                                                                                \
    {                                                                                                                                      \
        name, type, AT(member), fallback, NULL, 0, 0, RELOAD, OPEN, sentence                                                               \
    }
#define CHOICE(name, member, fallback, choices, reload, sentence)                                                                          \
    {                                                                                                                                      \
        name, T_CHOICE, AT(member), fallback, choices, 0, 0, reload, OPEN, sentence                                                        \
    }
#define HIDDEN(name, type, member, fallback, how, sentence)                                                                                \
    {                                                                                                                                      \
        name, type, AT(member), fallback, NULL, 0, 0, RESTART, how, sentence                                                               \
    }
#define NUMBER(name, type, member, fallback, min, max, sentence)                                                                           \
    {                                                                                                                                      \
        name, type, AT(member), fallback, NULL, min, max, RELOAD, OPEN, sentence                                                           \
    }
#define NUMBER_RESTART(name, type, member, fallback, min, max, sentence)                                                                   \
    {                                                                                                                                      \
        name, type, AT(member), fallback, NULL, min, max, RESTART, OPEN, sentence                                                          \
    }

/* clang-format off: one row a line */
static const struct key keys[] = {
    TEXT("proxy.listen", T_LISTEN, proxy.listen, "127.0.0.1:5080",
         "Where clients pull: host:port, [ipv6]:port, *:port or unix:/path; a list or one address."),
    TEXT_RELOAD("proxy.tls.cert", T_PATH, proxy.tls.cert, "", "PEM file with the certificate chain for clients; empty serves plain HTTP."),
    TEXT_RELOAD("proxy.tls.key", T_PATH, proxy.tls.key, "", "PEM file with the private key of proxy.tls.cert."),
    CHOICE("proxy.tls.min_version", proxy.tls.min_version, "1.2", "1.2|1.3", RELOAD, "Oldest TLS version clients may speak."),
    TEXT("proxy.public_url", T_URL, proxy.public_url, "",
         "What customers type, for example https://registry.vendor.example; empty: the first address of proxy.listen."),
    NUMBER_RESTART("proxy.workers", T_WORKERS, proxy.workers, "auto", 1, 256, "Worker threads; auto is one a core."),
    CHOICE("proxy.challenge", proxy.challenge, "basic", "basic|bearer", RESTART,
           "The challenge of a 401: basic works with every client, bearer sends them to the token endpoint first. Either is accepted."),
    TEXT("proxy.realm_service", T_STRING, proxy.realm_service, "",
         "Service name in challenges and audience of tokens; empty takes the host of proxy.public_url, else pullgate."),
    TEXT("proxy.blob_cache.path", T_PATH, proxy.blob_cache.path, "", "Directory of verified blobs kept on disk; empty keeps none."),
    NUMBER_RESTART("proxy.blob_cache.max_bytes", T_SIZE, proxy.blob_cache.max_bytes, "50GiB", 16 * MIB, 1024 * TIB,
                   "Disk the kept blobs may fill; the least recently used go first."),
    TEXT("proxy.spool_path", T_PATH, proxy.spool_path, "/var/tmp",
         "Directory of unlinked files that hold blobs in flight when there is no blob cache."),
    NUMBER_RESTART("proxy.spool_keep", T_DURATION, proxy.spool_keep_ms, "3s", 0, HOUR,
                   "How long a complete file there waits for a further reader, so that a rollout's many nodes cost one transfer; 0 not at all."),
    TEXT("proxy.metrics_listen", T_LISTEN, proxy.metrics_listen, "",
         "Where /metrics, /healthz and /readyz are served apart; empty serves no metrics (healthz and readyz stay on proxy.listen)."),
    TEXT("proxy.port_file", T_PATH, proxy.port_file, "", "File that gets the bound addresses as lines, for scripts that listen on port 0."),
    TEXT("proxy.trusted_proxies", T_CIDRS, proxy.trusted_proxies, "",
         "Networks of the proxies in front whose word about the client's address counts; unix: whoever connects to a unix socket."),
    CHOICE("proxy.proxy_protocol", proxy.proxy_protocol, "off", "off|accepted|required", RESTART,
           "The PROXY protocol's header (version 1 or 2) of proxy.trusted_proxies; required: a connection of theirs without it is refused."),
    CHOICE("proxy.forwarded_field", proxy.forwarded_field, "x-forwarded-for", "x-forwarded-for|forwarded|off", RESTART,
           "The field of a request in which proxy.trusted_proxies name the client. The others are not looked at."),
    TEXT("admin.listen", T_LISTEN, admin.listen, "127.0.0.1:5090", "Where the admin and portal APIs are served."),
    TEXT_RELOAD("admin.tls.cert", T_PATH, admin.tls.cert, "", "PEM file with the certificate chain; empty serves plain HTTP."),
    TEXT_RELOAD("admin.tls.key", T_PATH, admin.tls.key, "", "PEM file with the private key of admin.tls.cert."),
    CHOICE("admin.tls.min_version", admin.tls.min_version, "1.2", "1.2|1.3", RELOAD, "Oldest TLS version clients may speak."),
    TEXT("admin.public_url", T_URL, admin.public_url, "", "Address of the admin daemon as people reach it, for links."),
    TEXT("admin.bootstrap_token_file", T_PATH, admin.bootstrap_token_file, "",
         "File with a token of at least 32 characters that is the operator's; empty: none."),
    TEXT("admin.vendor_slug", T_SLUG, admin.vendor_slug, "default", "Slug of the first vendor, made at the first start."),
    TEXT("admin.vendor_name", T_STRING, admin.vendor_name, "Vendor", "Name of the first vendor."),
    TEXT("admin.time_zone", T_ZONE, admin.time_zone, "UTC",
         "IANA time zone of the first vendor: an expiry given as a date is the end of that day there."),
    TEXT("admin.renew_url", T_LINK, admin.renew_url, "", "Where a denial of the first vendor tells customers to renew."),
    TEXT("admin.metrics_listen", T_LISTEN, admin.metrics_listen, "", "Where /metrics is served apart; empty serves none."),
    TEXT("admin.port_file", T_PATH, admin.port_file, "", "File that gets the bound addresses as lines, for scripts that listen on port 0."),
    NUMBER_RESTART("admin.sync_interval", T_DURATION, admin.sync_interval_ms, "30s", 0, 24 * HOUR,
                   "How often versions are discovered from upstream tags; 0 only when asked."),
    TEXT("admin.trusted_proxies", T_CIDRS, admin.trusted_proxies, "",
         "Networks of the proxies in front whose word about the client's address counts; unix: whoever connects to a unix socket."),
    CHOICE("admin.proxy_protocol", admin.proxy_protocol, "off", "off|accepted|required", RESTART,
           "The PROXY protocol's header (version 1 or 2) of admin.trusted_proxies; required: a connection of theirs without it is refused."),
    CHOICE("admin.forwarded_field", admin.forwarded_field, "x-forwarded-for", "x-forwarded-for|forwarded|off", RESTART,
           "The field of a request in which admin.trusted_proxies name the client. The others are not looked at."),
    NUMBER("admin.job_interval", T_DURATION, admin.job_interval_ms, "1s", 50 * MS, HOUR,
           "How often is looked for what the clock does: renewals, reminders, expiries, suspensions."),
    TEXT_RELOAD("admin.expiring_days", T_DAYS, admin.expiring_days, "60,30,14,7,1,0",
                "How many days before a license expires it is told of, each once: event license.expiring."),
    TEXT_RELOAD("admin.webhook_allow_private", T_STRING, admin.webhook_allow_private, "",
                "Hosts, with commas between them, that webhooks may reach at private addresses and over http; all: every host. Empty: https and public addresses only."),
    NUMBER("admin.webhook_retry", T_DURATION, admin.webhook_retry_ms, "10s", 10 * MS, HOUR,
           "How long a webhook rests after the first failure; doubles with each further one up to 6h."),
    NUMBER("admin.webhook_give_up", T_DURATION, admin.webhook_give_up_ms, "3d", SEC, 30 * 24 * HOUR,
           "How long one delivery, or one mail, is tried before it counts as failed."),
    NUMBER("admin.webhook_disable_after", T_DURATION, admin.webhook_disable_after_ms, "7d", SEC, 365 * 24 * HOUR,
           "A webhook that failed for so long without one success is disabled."),
    NUMBER("retention.events", T_DURATION, retention.events_ms, "400d", 0, 36500 * 24 * HOUR,
           "How long the event log is kept; events of which a delivery or mail is kept stay with it. 0 keeps it for ever."),
    NUMBER("retention.pulls", T_DURATION, retention.pulls_ms, "400d", 0, 36500 * 24 * HOUR,
           "How long the log of pulls and denials is kept; 0 keeps it for ever."),
    NUMBER("retention.deliveries", T_DURATION, retention.deliveries_ms, "30d", 0, 36500 * 24 * HOUR,
           "How long deliveries to webhooks and mails are kept once they are over; what is still tried stays. 0 keeps them for ever."),
    NUMBER("retention.usage", T_DURATION, retention.usage_ms, "1100d", 0, 36500 * 24 * HOUR,
           "How long the counts of a license's windows are kept once they are over, and installations that are gone; 0 keeps them for ever."),
    NUMBER("retention.sessions", T_DURATION, retention.sessions_ms, "30d", 0, 36500 * 24 * HOUR,
           "How long sessions, and invitations that nobody accepted, are remembered once they are over; 0 keeps them for ever."),
    NUMBER("retention.idempotency_keys", T_DURATION, retention.idempotency_keys_ms, "24h", 60 * SEC, 365 * 24 * HOUR,
           "How long the answer to a request with an Idempotency-Key is kept for a repetition."),
    TEXT_RELOAD("mail.url", T_SMTP, mail.url, "", "Mail server: smtp://host:port or smtps://host:port; empty sends no mail."),
    TEXT_RELOAD("mail.username", T_STRING, mail.username, "", "User name at the mail server; empty signs in nobody."),
    {"mail.password", T_STRING, AT(mail.password), "", NULL, 0, 0, RELOAD, SECRET, "Password at the mail server."},
    CHOICE("mail.tls", mail.tls, "required", "required|tried|off", RELOAD, "Whether STARTTLS is asked of an smtp:// server before anything is said."),
    TEXT_RELOAD("mail.ca", T_PATH, mail.ca, "", "PEM file with the authorities the mail server is checked against; empty: the system's."),
    TEXT_RELOAD("mail.from", T_MAILBOX, mail.from, "", "Sender: licenses@vendor.example, or Vendor <licenses@vendor.example>. Without one no mail is sent."),
    HIDDEN("store.url", T_STORE, store.url, "sqlite:///var/lib/pullgate/pullgate.db", SECRET_URL,
           "The system of record: sqlite:///path or postgresql://…"),
    NUMBER("store.min_free", T_SIZE, store.min_free, "64MiB", 0, 1024 * TIB,
           "Room that is kept on the store's file system: with less the admin API answers changes with 503 until there is more; 0 no bound."),
    HIDDEN("redis.url", T_REDIS, redis.url, "redis://127.0.0.1:6379/0", SECRET_URL,
           "Redis: redis://host:port/db, rediss:// with TLS, or unix:///path?db=0."),
    TEXT("redis.username", T_STRING, redis.username, "", "Redis ACL user; empty is the default user."),
    HIDDEN("redis.password", T_STRING, redis.password, "", SECRET, "Redis password."),
    TEXT("keys.path", T_PATH, keys.path, "/var/lib/pullgate/keys",
         "Directory of the signing, MAC and sealing keys; the admin makes them at its first start."),
    NUMBER("cache.max_staleness", T_DURATION, cache.max_staleness_ms, "5s", 100 * MS, 300 * SEC,
           "Oldest a confirmed entitlement may be; bounds how late a license edit is seen when a message is lost."),
    NUMBER("cache.grace_when_cache_is_down", T_DURATION, cache.grace_when_cache_is_down_ms, "60s", 0, HOUR,
           "How long what was granted at the last confirmation goes on while Redis is away; 0 not at all."),
    NUMBER("cache.hold_on_unknown", T_DURATION, cache.hold_on_unknown_ms, "3s", 0, 60 * SEC,
           "How long a request waits for a dependency to come back before it is answered 503."),
    NUMBER("cache.tag_freshness", T_DURATION, cache.tag_freshness_ms, "15s", 0, 24 * HOUR,
           "How long a tag's digest is trusted before the upstream is asked again."),
    NUMBER("cache.negative", T_DURATION, cache.negative_ms, "2s", 0, 60 * SEC, "How long an unknown digest is remembered as unknown."),
    NUMBER_RESTART("cache.manifest_size", T_SIZE, cache.manifest_bytes, "64MiB", MIB, TIB, "Memory for manifests, per worker."),
    NUMBER("cache.control_plane_silence", T_DURATION, cache.control_plane_silence_ms, "24h", 60 * SEC, 30 * 24 * HOUR,
           "Oldest root of the projection that a proxy that has just started accepts."),
    NUMBER_RESTART("limits.connections", T_COUNT, limits.connections, "10000", 1, 1000000,
                   "Client connections in the process; above, the longest idle one makes room, else the new one is closed; from four fifths on one idle for half of limits.keepalive_idle does."),
    NUMBER_RESTART("limits.connections_per_ip", T_COUNT, limits.connections_per_ip, "256", 1, 1000000,
                   "Client connections from one address."),
    NUMBER_RESTART("limits.target_size", T_SIZE, limits.target_bytes, "4KiB", 256, 64 * KIB, "Longest request target; longer is 414."),
    NUMBER_RESTART("limits.head_size", T_SIZE, limits.head_bytes, "16KiB", KIB, 256 * KIB, "Largest request head; larger is 431."),
    NUMBER_RESTART("limits.head_fields", T_COUNT, limits.head_fields, "64", 8, 100, "Most header fields in a request; more is 431."),
    NUMBER("limits.admin_body_size", T_SIZE, limits.admin_body_bytes, "64KiB", KIB, 16 * MIB,
           "Largest body of an admin API request; larger is 413."),
    NUMBER("limits.import_body_size", T_SIZE, limits.import_body_bytes, "8MiB", 64 * KIB, 64 * MIB,
           "Largest body of POST /licenses/import; what is above limits.admin_body_size is read once its sender is known, one at a time for a vendor, four in all."),
    NUMBER("limits.token_body_size", T_SIZE, limits.token_body_bytes, "8KiB", KIB, MIB, "Largest body of a token request; larger is 413."),
    NUMBER_RESTART("limits.head_deadline", T_DURATION, limits.head_deadline_ms, "10s", 100 * MS, 300 * SEC,
                   "From the first byte, or the accept, to the end of the request head; then 408."),
    NUMBER_RESTART("limits.body_deadline", T_DURATION, limits.body_deadline_ms, "30s", 100 * MS, 3600 * SEC,
                   "From the end of the head to the end of the request body; then 408."),
    NUMBER_RESTART("limits.tls_handshake", T_DURATION, limits.tls_handshake_ms, "10s", 100 * MS, 300 * SEC,
                   "For a TLS handshake, which is part of limits.head_deadline too."),
    NUMBER_RESTART("limits.keepalive_idle", T_DURATION, limits.keepalive_idle_ms, "60s", 100 * MS, HOUR,
                   "How long a connection may idle between requests."),
    NUMBER_RESTART("limits.keepalive_requests", T_COUNT, limits.keepalive_requests, "1000", 0, 1000000000,
                   "Requests on one connection; 0 no bound."),
    NUMBER_RESTART("limits.client_min_rate", T_SIZE, limits.client_min_rate, "10KiB", 0, GIB,
                   "Bytes a second that a client must take while bytes wait for it; 0 no bound."),
    NUMBER_RESTART("limits.client_min_rate_window", T_DURATION, limits.client_min_rate_window_ms, "30s", 100 * MS, HOUR,
                   "Time over which limits.client_min_rate is measured."),
    NUMBER("limits.blob_max_duration", T_DURATION, limits.blob_max_duration_ms, "2h", SEC, 7 * 24 * HOUR,
           "Longest a blob transfer to a client may take."),
    NUMBER("limits.manifest_size", T_SIZE, limits.manifest_bytes, "4MiB", 64 * KIB, 64 * MIB,
           "Largest manifest accepted from an upstream."),
    NUMBER_RESTART("limits.closure_nodes", T_COUNT, limits.closure_nodes, "10000", 10, 1000000,
           "Most manifests and blobs in the closure of one manifest."),
    NUMBER_RESTART("limits.closure_depth", T_COUNT, limits.closure_depth, "4", 1, 16, "Deepest nesting of indexes in a closure."),
    NUMBER("limits.inflight_per_customer", T_COUNT, limits.inflight_per_customer, "64", 1, 1000000,
           "Requests of one customer in progress; more is 429."),
    NUMBER_RESTART("limits.upstream_connections", T_COUNT, limits.upstream_connections, "128", 1, 65536,
                   "Connections of a proxy to one upstream, divided among its workers, of which each has at least 4."),
    NUMBER_RESTART("limits.upstream_queue", T_COUNT, limits.upstream_queue, "256", 1, 65536,
                   "Operations that wait for one of limits.upstream_connections, per worker; more is 503."),
    NUMBER("limits.auth_failures_per_minute", T_COUNT, limits.auth_failures_per_minute, "30", 1, 1000000,
           "Failed sign-ins from one address in a minute; more is 429, right credentials always pass."),
    NUMBER("limits.sign_in_failures_per_minute", T_COUNT, limits.sign_in_failures_per_minute, "5", 1, 1000000,
           "Failed sign-ins of people, at the admin and the portal API, from one address in a minute; then it waits a minute, two, four, up to an hour, also with the right password."),
    NUMBER("limits.auth_failures_per_credential", T_COUNT, limits.auth_failures_per_credential, "30", 1, 1000000,
           "Failed sign-ins with one name in a minute; more is 429, right credentials always pass."),
    NUMBER("limits.auth_failures_per_second", T_COUNT, limits.auth_failures_per_second, "200", 1, 1000000,
           "Failed sign-ins of everybody together in a second; more is 429, right credentials always pass."),
    NUMBER("limits.requests_per_customer", T_COUNT, limits.requests_per_customer, "0", 0, 1000000,
           "Requests a second of one customer; more is 429; 0 no bound."),
    NUMBER("limits.tags_page", T_COUNT, limits.tags_page, "1000", 1, 100000,
           "Most tags on one page of tags/list, and repositories on one of _catalog."),
    NUMBER("limits.resolve_tags", T_COUNT, limits.resolve_tags, "1000", 1, 100000,
           "Most tags resolved upstream to place one unknown digest."),
    NUMBER_RESTART("limits.buffer_high", T_SIZE, limits.buffer_high, "256KiB", 16 * KIB, 64 * MIB,
                   "Bytes waiting for one client above which its upstream is paused."),
    NUMBER_RESTART("limits.buffer_low", T_SIZE, limits.buffer_low, "64KiB", KIB, 64 * MIB,
                   "Bytes waiting for one client below which its upstream goes on."),
    NUMBER_RESTART("limits.redis_deadline", T_DURATION, limits.redis_deadline_ms, "200ms", 10 * MS, 60 * SEC, "For one Redis command."),
    NUMBER_RESTART("limits.upstream_connect", T_DURATION, limits.upstream_connect_ms, "5s", 100 * MS, 300 * SEC,
                   "For a connection to an upstream, TLS included."),
    NUMBER_RESTART("limits.upstream_first_byte", T_DURATION, limits.upstream_first_byte_ms, "15s", 100 * MS, 600 * SEC,
                   "From a request to an upstream to the first byte of its answer."),
    NUMBER_RESTART("limits.upstream_stall", T_DURATION, limits.upstream_stall_ms, "30s", 100 * MS, 3600 * SEC,
                   "Longest an upstream may send nothing in the middle of an answer."),
    NUMBER("limits.upstream_retries", T_COUNT, limits.upstream_retries, "2", 0, 10,
           "Further tries of an upstream request of which no byte was answered."),
    NUMBER("limits.lease", T_DURATION, limits.lease_ms, "24h", 5 * 60 * SEC, 90 * 24 * HOUR,
           "How long the lease that a validated license key gets holds, where the license's limits.custom names no \"lease\"; never beyond the license's end."),
    NUMBER("limits.revocation_list", T_DURATION, limits.revocation_list_ms, "24h", 10 * 60 * SEC, 90 * 24 * HOUR,
           "When a further revocation list is due after one was signed; who checks offline may refuse one that is older."),
    NUMBER("limits.drain", T_DURATION, limits.drain_ms, "60s", 0, 24 * HOUR, "How long SIGTERM waits for answers in progress."),
    NUMBER_RESTART("limits.events_queued", T_COUNT, limits.events_queued, "100000", 100, 100000000,
                   "Pull events held per worker while Redis is away; more are counted as lost."),
    NUMBER_RESTART("limits.streams_per_worker", T_COUNT, limits.streams_per_worker, "1000", 1, 1000000,
                   "Blob transfers of one worker; more is 503."),
    NUMBER("limits.memory", T_SIZE, limits.memory_bytes, "0", 0, 1024 * TIB,
           "Resident memory: from four fifths of it on further blobs, near all of it every request is answered 503; 0: what the cgroup leaves, if it has a limit."),
    TEXT("process.user", T_STRING, process.user, "",
         "Whom a daemon started as root becomes once its sockets are bound and its keys and certificates are read; empty: it stays root, with a warning."),
    TEXT("process.group", T_STRING, process.group, "", "Group with process.user; empty: the user's own."),
    CHOICE("process.sandbox", process.sandbox, "errno", "errno|kill|off", RESTART,
           "What a system call that the daemons have no use for comes to: errno refuses and logs it, kill ends the process, off allows it."),
    CHOICE("log.level", log.level, "info", "debug|info|warn|error", RELOAD, "Least serious messages logged."),
    TEXT("log.access_path", T_STRING, log.access_path, "",
         "Where the access lines go: empty is standard output, off is nowhere, else a file."),
};
/* clang-format on */
#define N_KEYS (sizeof keys / sizeof *keys)

/* ---- one value ----------------------------------------------------------------------------------------------------------- */

static bool type_is_list(enum type t)
{
    return t == T_LISTEN || t == T_CIDRS;
}

static bool type_is_number(enum type t)
{
    return t == T_DURATION || t == T_SIZE || t == T_COUNT || t == T_WORKERS;
}

static void *member(const struct config *c, const struct key *k)
{
    return (void *)((uintptr_t)c + k->offset);
}

static char **member_text(const struct config *c, const struct key *k)
{
    return member(c, k);
}

static struct config_listen *member_list(const struct config *c, const struct key *k)
{
    return member(c, k);
}

static uint64_t *member_number(const struct config *c, const struct key *k)
{
    return member(c, k);
}

/* Where a value comes from, for errors: "file:line", "environment PULLGATE_X", "default". */
struct origin {
    const char *what;
    size_t line; /* 0: none */
};

static enum err bad(const struct key *k, struct origin from, struct error *reterr, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
static enum err bad(const struct key *k, struct origin from, struct error *reterr, const char *fmt, ...)
{
    char text[256];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (from.line)
        return error_set_field(reterr, ERR_INVALID, k->name, "%s:%zu: %s: %s", from.what, from.line, k->name, text);
    return error_set_field(reterr, ERR_INVALID, k->name, "%s: %s: %s", from.what, k->name, text);
}

static bool host_is_address(struct str host, int family)
{
    char buf[INET6_ADDRSTRLEN];
    unsigned char out[16];

    if (host.n == 0 || host.n >= sizeof buf)
        return false;
    memcpy(buf, host.p, host.n);
    buf[host.n] = '\0';
    return inet_pton(family, buf, out) == 1;
}

static const char *listen_problem(struct str s)
{
    static const char form[] = "expected host:port with an address, [ipv6]:port, *:port, :port or unix:/path";
    uint64_t port;

    if (str_starts(s, S("unix:")))
        return s.n > 6 && s.p[5] == '/' && s.n - 5 < 108 ? NULL : "expected unix:/path, of at most 107 bytes";
    ptrdiff_t colon = str_rindex(s, ':');
    if (colon < 0 || !str_to_u64(str_skip(s, (size_t)colon + 1), &port) || port > 65535)
        return form;
    struct str host = str_sub(s, 0, (size_t)colon);
    if (host.n == 0 || str_eq_c(host, "*"))
        return NULL;
    if (host.p[0] == '[')
        return host.n > 2 && host.p[host.n - 1] == ']' && host_is_address(str_sub(host, 1, host.n - 2), AF_INET6) ? NULL : form;
    return host_is_address(host, AF_INET) ? NULL : form;
}

static const char *cidr_problem(struct str s)
{
    struct str address = s, bits = {0};
    uint64_t n = 0;
    bool has_bits = str_cut(s, '/', &address, &bits);
    if (str_eq_c(s, "unix"))
        return NULL;
    bool v4 = host_is_address(address, AF_INET), v6 = !v4 && host_is_address(address, AF_INET6);

    if (!v4 && !v6)
        return "expected a network such as 10.0.0.0/8 or 2001:db8::/32";
    if (has_bits && (!str_to_u64(bits, &n) || n > (v4 ? 32 : 128)))
        return "the prefix length is out of range";
    return NULL;
}

static bool has_control_or_blank(struct str s)
{
    for (size_t i = 0; i < s.n; i++)
        if ((unsigned char)s.p[i] <= ' ' || s.p[i] == 0x7f)
            return true;
    return false;
}

static const char *http_url_problem(struct str s, bool bare)
{
    struct str rest;

    if (str_starts(s, S("https://")))
        rest = str_skip(s, 8);
    else if (str_starts(s, S("http://")))
        rest = str_skip(s, 7);
    else
        return "expected a URL with http:// or https://";
    if (rest.n == 0 || rest.p[0] == '/' || has_control_or_blank(s))
        return "the URL has no host";
    if (bare && (str_index(rest, '/') >= 0 || str_index(rest, '?') >= 0 || str_index(rest, '@') >= 0 || str_index(rest, '#') >= 0))
        return "expected scheme, host and port only";
    return NULL;
}

static const char *smtp_url_problem(struct str s)
{
    struct str rest = str_starts(s, S("smtps://")) ? str_skip(s, 8) : str_starts(s, S("smtp://")) ? str_skip(s, 7) : (struct str){NULL, 0};
    if (!rest.p)
        return "expected smtp://host:port or smtps://host:port";
    if (rest.n == 0 || rest.p[0] == ':' || has_control_or_blank(s))
        return "the URL has no host";
    return str_index(rest, '/') >= 0 || str_index(rest, '?') >= 0 || str_index(rest, '@') >= 0 || str_index(rest, '#') >= 0
               ? "expected scheme, host and port only"
               : NULL;
}

static const char *mailbox_problem(struct str s)
{
    ptrdiff_t open = str_index(s, '<');
    struct str address = s;
    for (size_t i = 0; i < s.n; i++)
        if ((unsigned char)s.p[i] < ' ' || s.p[i] == 0x7f)
            return "control characters are not allowed";
    if (open >= 0) {
        if (s.p[s.n - 1] != '>')
            return "expected Name <address>";
        address = str_sub(s, (size_t)open + 1, s.n - (size_t)open - 2);
    }
    ptrdiff_t at = str_index(address, '@');
    return at > 0 && (size_t)at + 1 < address.n && !has_control_or_blank(address) && str_index(str_skip(address, (size_t)at + 1), '@') < 0 &&
                   str_index(address, '<') < 0 && str_index(address, '>') < 0
               ? NULL
               : "expected an address such as licenses@vendor.example";
}

static const char *days_problem(struct str s)
{
    struct str one;
    size_t n = 0;
    uint64_t v;
    while (s.n && str_next(&s, ',', &one))
        if (!str_to_u64(str_trim(one), &v) || v > 3650 || ++n > 16)
            return "expected up to 16 numbers of days with commas between them, such as 60,30,14,7,1,0";
    return NULL;
}

static const char *text_problem(const struct key *k, struct str s)
{
    switch (k->type) {
    case T_PATH:
        return s.n == 0 || s.p[0] == '/' ? NULL : "expected an absolute path";
    case T_URL:
        return s.n == 0 ? NULL : http_url_problem(s, true);
    case T_LINK:
        return s.n == 0 || (str_starts(s, S("mailto:")) && !has_control_or_blank(s)) ? NULL : http_url_problem(s, false);
    case T_REDIS:
        if (has_control_or_blank(s))
            return "a URL has no blanks";
        return str_starts(s, S("redis://")) || str_starts(s, S("rediss://")) || str_starts(s, S("unix:///"))
                   ? NULL
                   : "expected redis://, rediss:// or unix:///path";
    case T_STORE:
        if (str_starts(s, S("sqlite://")))
            return s.n > 10 && s.p[9] == '/' ? NULL : "expected sqlite:///absolute/path";
        return str_starts(s, S("postgresql://")) || str_starts(s, S("postgres://")) ? NULL : "expected sqlite:///path or postgresql://…";
    case T_SMTP:
        return s.n == 0 ? NULL : smtp_url_problem(s);
    case T_MAILBOX:
        return s.n == 0 ? NULL : mailbox_problem(s);
    case T_DAYS:
        return days_problem(s);
    case T_SLUG:
        if (s.n == 0 || s.n > 63 || s.p[0] == '-' || s.p[s.n - 1] == '-')
            return "expected 1 to 63 of a-z, 0-9 and inner '-'";
        for (size_t i = 0; i < s.n; i++)
            if (!(s.p[i] >= 'a' && s.p[i] <= 'z') && !(s.p[i] >= '0' && s.p[i] <= '9') && s.p[i] != '-')
                return "expected 1 to 63 of a-z, 0-9 and inner '-'";
        return NULL;
    default:
        return NULL;
    }
}

static enum err set_number(struct config *c, const struct key *k, struct str s, struct origin from, struct error *reterr)
{
    struct error detail = {.text = ""};
    uint64_t v = 0;
    enum err e = ERR_OK;

    if (k->type == T_WORKERS && str_eq_c(s, "auto")) {
        *member_number(c, k) = 0;
        return ERR_OK;
    }
    if (k->type == T_DURATION)
        e = clock_parse_duration(s, &v, &detail);
    else if (k->type == T_SIZE)
        e = clock_parse_size(s, &v, &detail);
    else if (!str_to_u64(s, &v))
        return bad(k, from, reterr, k->type == T_WORKERS ? "\"%.*s\" is neither auto nor a number" : "\"%.*s\" is no number",
                   (int)(s.n < 60 ? s.n : 60), s.p);
    if (e)
        return bad(k, from, reterr, "%s", detail.text);
    if (v < k->min || v > k->max) {
        const char *unit = k->type == T_DURATION ? "ms" : k->type == T_SIZE ? " bytes" : "";
        return bad(k, from, reterr, "%.*s is not between %llu%s and %llu%s", STR(s), (unsigned long long)k->min, unit,
                   (unsigned long long)k->max, unit);
    }
    *member_number(c, k) = v;
    return ERR_OK;
}

static void set_text(struct config *c, const struct key *k, struct str s)
{
    char **p = member_text(c, k);

    if (*p)
        mem_free_secret(*p, strlen(*p));
    *p = mem_strndup(s.n ? s.p : "", s.n);
}

static enum err set_scalar(struct config *c, const struct key *k, struct str s, struct origin from, struct error *reterr)
{
    if (type_is_number(k->type))
        return set_number(c, k, s, from, reterr);
    if (s.n && memchr(s.p, '\0', s.n))
        return bad(k, from, reterr, "holds a NUL byte");
    if (k->type == T_CHOICE) {
        struct str rest = str_c(k->choices), choice;
        while (str_next(&rest, '|', &choice))
            if (str_eq(choice, s)) {
                set_text(c, k, s);
                return ERR_OK;
            }
        return bad(k, from, reterr, "\"%.*s\" is none of %s", (int)(s.n < 60 ? s.n : 60), s.p, k->choices);
    }
    if (k->type == T_ZONE) {
        char *zone = mem_strndup(s.n ? s.p : "", s.n);
        bool exists = clock_zone_exists(zone);
        mem_free(zone);
        if (!exists)
            return bad(k, from, reterr, "\"%.*s\" is no IANA time zone known here", (int)(s.n < 60 ? s.n : 60), s.p);
    }
    if (k->type == T_URL && s.n && s.p[s.n - 1] == '/')
        s.n--;
    const char *problem = text_problem(k, s);
    if (problem)
        return bad(k, from, reterr, "%s", problem); /* the value itself is not echoed: it may carry a password */
    set_text(c, k, s);
    return ERR_OK;
}

static void list_clear(struct config_listen *l)
{
    while (l->n) {
        l->n--;
        MEM_FREE(l->list[l->n]);
    }
}

static enum err list_add(struct config *c, const struct key *k, struct str s, struct origin from, struct error *reterr)
{
    struct config_listen *l = member_list(c, k);
    const char *problem = memchr(s.n ? s.p : "", '\0', s.n) ? "holds a NUL byte"
                          : k->type == T_LISTEN ? listen_problem(s)
                                                : cidr_problem(s);

    if (problem)
        return bad(k, from, reterr, "\"%.*s\": %s", (int)(s.n < 120 ? s.n : 120), s.p, problem);
    if (l->n == CONFIG_MAX_LISTEN)
        return bad(k, from, reterr, "more than %d entries", CONFIG_MAX_LISTEN);
    l->list[l->n++] = mem_strndup(s.p, s.n);
    return ERR_OK;
}

/* One text for a whole key; lists with commas. Defaults and the environment. */
static enum err set_flat(struct config *c, const struct key *k, struct str s, struct origin from, struct error *reterr)
{
    if (!type_is_list(k->type))
        return set_scalar(c, k, s, from, reterr);
    list_clear(member_list(c, k));
    struct str token;
    while (s.n && str_next(&s, ',', &token)) {
        token = str_trim(token);
        if (token.n == 0)
            continue;
        enum err e = list_add(c, k, token, from, reterr);
        if (e)
            return e;
    }
    return ERR_OK;
}

/* ---- files ---------------------------------------------------------------------------------------------------------------- */

static enum err read_file(const char *path, size_t max, struct strbuf *ret, struct error *reterr)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return error_set(reterr, errno == ENOENT ? ERR_NOT_FOUND : ERR_INVALID, "%s: %s", path, strerror(errno));
    struct stat st;
    if (fstat(fd, &st) == 0 && S_ISDIR(st.st_mode)) {
        close(fd);
        return error_set(reterr, ERR_INVALID, "%s: is a directory", path);
    }
    bool good = file_read_rest(fd, max, ret);
    int code = errno;
    close(fd);
    if (!good && code == EFBIG)
        return error_set(reterr, ERR_INVALID, "%s: larger than %zu bytes", path, max);
    return good ? ERR_OK : error_set(reterr, ERR_INVALID, "%s: %s", path, strerror(code));
}

static enum err set_from_file(struct config *c, const struct key *k, const char *path, struct origin from, struct error *reterr)
{
    struct strbuf b = {0};
    struct error detail;
    enum err e = read_file(path, SECRET_BYTES_MAX, &b, &detail);

    if (e) {
        e = bad(k, from, reterr, "%s", detail.text);
    } else {
        struct str s = sb_str(&b);
        while (s.n && (s.p[s.n - 1] == '\n' || s.p[s.n - 1] == '\r'))
            s.n--;
        struct origin file = {path, 0};
        e = set_scalar(c, k, s, file, reterr);
    }
    mem_cleanse(b.p, b.cap);
    sb_free(&b);
    return e;
}

/* ---- the YAML walk -------------------------------------------------------------------------------------------------------- */

struct walk {
    yaml_parser_t parser;
    const char *path;
    struct config *config;
    bool seen[N_KEYS];
    char *secret_path[N_KEYS]; /* of KEY_file, read last */
    size_t secret_line[N_KEYS];
    struct error *reterr;
};

static size_t line_of(const yaml_event_t *ev)
{
    return ev->start_mark.line + 1;
}

static enum err walk_bad(struct walk *w, size_t line, const char *key, const char *fmt, ...) __attribute__((format(printf, 4, 5)));
static enum err walk_bad(struct walk *w, size_t line, const char *key, const char *fmt, ...)
{
    char text[256];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    return error_set_field(w->reterr, ERR_INVALID, key, "%s:%zu: %s%s%s", w->path, line, key, key[0] ? ": " : "", text);
}

static enum err walk_next(struct walk *w, yaml_event_t *ev)
{
    if (!yaml_parser_parse(&w->parser, ev))
        return walk_bad(w, w->parser.problem_mark.line + 1, "", "%s", w->parser.problem ? w->parser.problem : "malformed YAML");
    bool anchored = ev->type == YAML_ALIAS_EVENT || (ev->type == YAML_SCALAR_EVENT && ev->data.scalar.anchor) ||
                    (ev->type == YAML_SEQUENCE_START_EVENT && ev->data.sequence_start.anchor) ||
                    (ev->type == YAML_MAPPING_START_EVENT && ev->data.mapping_start.anchor);
    if (!anchored)
        return ERR_OK;
    size_t line = line_of(ev);
    yaml_event_delete(ev);
    return walk_bad(w, line, "", "anchors and aliases are not used here");
}

static struct str scalar_of(const yaml_event_t *ev)
{
    return (struct str){(const char *)ev->data.scalar.value, ev->data.scalar.length};
}

/* `key:`, `key: ~` and `key: null` leave the default. */
static bool is_null(const yaml_event_t *ev)
{
    struct str s = scalar_of(ev);
    return ev->type == YAML_SCALAR_EVENT && ev->data.scalar.style == YAML_PLAIN_SCALAR_STYLE &&
           (s.n == 0 || str_eq_c(s, "~") || str_eq_c(s, "null"));
}

static const struct key *key_find(const char *name)
{
    for (size_t i = 0; i < N_KEYS; i++)
        if (!strcmp(keys[i].name, name))
            return &keys[i];
    return NULL;
}

static bool key_is_section(const char *name)
{
    size_t n = strlen(name);
    for (size_t i = 0; i < N_KEYS; i++)
        if (!strncmp(keys[i].name, name, n) && keys[i].name[n] == '.')
            return true;
    return false;
}

/* KEY of a secret's KEY_file. */
static const struct key *key_of_secret_file(const char *name)
{
    size_t n = strlen(name);
    if (n < 5 || strcmp(name + n - 5, "_file"))
        return NULL;
    for (size_t i = 0; i < N_KEYS; i++)
        if (keys[i].secrecy != OPEN && strlen(keys[i].name) == n - 5 && !strncmp(keys[i].name, name, n - 5))
            return &keys[i];
    return NULL;
}

/* Edit distance, for "did you mean"; both are short. */
static unsigned distance(const char *a, const char *b)
{
    unsigned row[KEY_BYTES_MAX + 1];
    size_t na = strlen(a), nb = strlen(b);

    if (na > KEY_BYTES_MAX || nb > KEY_BYTES_MAX)
        return KEY_BYTES_MAX;
    for (size_t j = 0; j <= nb; j++)
        row[j] = (unsigned)j;
    for (size_t i = 1; i <= na; i++) {
        unsigned diagonal = row[0];
        row[0] = (unsigned)i;
        for (size_t j = 1; j <= nb; j++) {
            unsigned best = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            if (row[j] + 1 < best)
                best = row[j] + 1;
            if (row[j - 1] + 1 < best)
                best = row[j - 1] + 1;
            row[j] = best;
        }
    }
    return row[nb];
}

static enum err unknown_key(struct walk *w, size_t line, const char *name)
{
    const char *near = NULL;
    unsigned least = 4; /* further away is no slip of the finger */

    for (size_t i = 0; i < N_KEYS; i++) {
        unsigned d = distance(name, keys[i].name);
        if (d < least) {
            least = d;
            near = keys[i].name;
        }
    }
    if (near)
        return walk_bad(w, line, name, "unknown key; did you mean %s?", near);
    return walk_bad(w, line, name, "unknown key");
}

static enum err walk_list(struct walk *w, const struct key *k)
{
    for (;;) {
        yaml_event_t ev;
        enum err e = walk_next(w, &ev);
        if (e)
            return e;
        if (ev.type == YAML_SEQUENCE_END_EVENT) {
            yaml_event_delete(&ev);
            return ERR_OK;
        }
        struct origin from = {w->path, line_of(&ev)};
        if (ev.type != YAML_SCALAR_EVENT)
            e = bad(k, from, w->reterr, "entries are single values");
        else
            e = list_add(w->config, k, scalar_of(&ev), from, w->reterr);
        yaml_event_delete(&ev);
        if (e)
            return e;
    }
}

/* The value of key k, whose first event is ev (freed by the caller). */
static enum err walk_value(struct walk *w, const struct key *k, const yaml_event_t *ev)
{
    struct origin from = {w->path, line_of(ev)};

    if (is_null(ev))
        return ERR_OK;
    if (type_is_list(k->type)) {
        list_clear(member_list(w->config, k));
        if (ev->type == YAML_SEQUENCE_START_EVENT)
            return walk_list(w, k);
        if (ev->type == YAML_SCALAR_EVENT)
            return scalar_of(ev).n == 0 ? ERR_OK : list_add(w->config, k, scalar_of(ev), from, w->reterr);
        return bad(k, from, w->reterr, "expected a list or one value");
    }
    if (ev->type != YAML_SCALAR_EVENT)
        return bad(k, from, w->reterr, "expected one value");
    return set_scalar(w->config, k, scalar_of(ev), from, w->reterr);
}

static enum err walk_mapping(struct walk *w, const char *prefix, int depth);

/* One key and its value; `name` is the full name. */
static enum err walk_entry(struct walk *w, const char *name, size_t line, int depth)
{
    const struct key *k = key_find(name), *secret = k ? NULL : key_of_secret_file(name);
    bool section = !k && !secret && key_is_section(name);
    yaml_event_t ev;

    if (!k && !secret && !section)
        return unknown_key(w, line, name);
    if (k) {
        if (w->seen[k - keys])
            return walk_bad(w, line, name, "given twice");
        w->seen[k - keys] = true;
    }
    enum err e = walk_next(w, &ev);
    if (e)
        return e;
    if (k) {
        e = walk_value(w, k, &ev);
    } else if (secret) {
        size_t i = (size_t)(secret - keys);
        struct str s = ev.type == YAML_SCALAR_EVENT ? scalar_of(&ev) : (struct str){0};
        if (ev.type != YAML_SCALAR_EVENT || (s.n && (s.p[0] != '/' || memchr(s.p, '\0', s.n))))
            e = walk_bad(w, line_of(&ev), name, "expected an absolute path");
        else if (w->secret_path[i])
            e = walk_bad(w, line, name, "given twice");
        else if (s.n && !is_null(&ev)) {
            w->secret_path[i] = mem_strndup(s.p, s.n);
            w->secret_line[i] = line;
        }
    } else if (ev.type == YAML_MAPPING_START_EVENT) {
        e = walk_mapping(w, name, depth + 1);
    } else if (!is_null(&ev)) {
        e = walk_bad(w, line_of(&ev), name, "expected keys below it");
    }
    yaml_event_delete(&ev);
    return e;
}

static enum err walk_mapping(struct walk *w, const char *prefix, int depth)
{
    if (depth > DEPTH_MAX)
        return walk_bad(w, w->parser.mark.line + 1, prefix, "nested too deep");
    for (;;) {
        yaml_event_t ev;
        char name[KEY_BYTES_MAX];
        enum err e = walk_next(w, &ev);
        if (e)
            return e;
        if (ev.type == YAML_MAPPING_END_EVENT) {
            yaml_event_delete(&ev);
            return ERR_OK;
        }
        size_t line = line_of(&ev);
        if (ev.type != YAML_SCALAR_EVENT) {
            yaml_event_delete(&ev);
            return walk_bad(w, line, prefix, "expected a key");
        }
        int n = snprintf(name, sizeof name, "%s%s%s", prefix, prefix[0] ? "." : "", (const char *)ev.data.scalar.value);
        yaml_event_delete(&ev);
        if (n < 0 || (size_t)n >= sizeof name)
            return walk_bad(w, line, prefix, "unknown key");
        e = walk_entry(w, name, line, depth);
        if (e)
            return e;
    }
}

static enum err walk_document(struct walk *w)
{
    bool had_document = false;
    for (;;) {
        yaml_event_t ev;
        enum err e = walk_next(w, &ev);
        if (e)
            return e;
        yaml_event_type_t type = ev.type;
        size_t line = line_of(&ev);
        bool null = is_null(&ev);
        yaml_event_delete(&ev);
        switch (type) {
        case YAML_STREAM_END_EVENT:
            return ERR_OK;
        case YAML_DOCUMENT_START_EVENT:
            if (had_document)
                return walk_bad(w, line, "", "more than one document");
            had_document = true;
            break;
        case YAML_MAPPING_START_EVENT:
            e = walk_mapping(w, "", 0);
            if (e)
                return e;
            break;
        case YAML_SCALAR_EVENT:
            if (null)
                break;
            return walk_bad(w, line, "", "expected sections such as proxy: or redis:");
        case YAML_SEQUENCE_START_EVENT:
            return walk_bad(w, line, "", "expected sections such as proxy: or redis:");
        default:
            break;
        }
    }
}

static enum err load_file(struct walk *w, bool must_exist)
{
    struct strbuf text = {0};
    enum err e = read_file(w->path, FILE_BYTES_MAX, &text, w->reterr);

    if (e == ERR_NOT_FOUND && !must_exist) {
        sb_free(&text);
        return ERR_OK;
    }
    if (e) {
        sb_free(&text);
        return ERR_INVALID;
    }
    NEED(yaml_parser_initialize(&w->parser), "memory to read its configuration");
    yaml_parser_set_input_string(&w->parser, (const unsigned char *)text.p, text.n);
    e = walk_document(w);
    yaml_parser_delete(&w->parser);
    mem_cleanse(text.p, text.cap);
    sb_free(&text);
    return e;
}

/* ---- the environment ------------------------------------------------------------------------------------------------------- */

static void env_name(const struct key *k, char ret[KEY_BYTES_MAX + 16])
{
    size_t n = (size_t)snprintf(ret, KEY_BYTES_MAX + 16, "PULLGATE_");
    for (const char *p = k->name; *p && n < KEY_BYTES_MAX + 10; p++)
        ret[n++] = *p == '.' ? '_' : (char)toupper((unsigned char)*p);
    ret[n] = '\0';
}

/* A variable with the name of a section and no key is likely a slip. Not an error: Kubernetes sets PULLGATE_PROXY_SERVICE_HOST and
 * PULLGATE_PROXY_PORT… for a service of that name, the command line has variables of its own. */
static void warn_unknown_variables(void)
{
    char name[KEY_BYTES_MAX + 16];

    for (char **v = environ; *v; v++) {
        const char *eq = strchr(*v, '=');
        if (!eq || strncmp(*v, "PULLGATE_", 9) || strstr(*v, "_SERVICE_") || strstr(*v, "_PORT"))
            continue;
        struct str var = {*v, (size_t)(eq - *v)};
        bool section = false, known = false;
        for (size_t i = 0; i < N_KEYS && !known; i++) {
            env_name(&keys[i], name);
            size_t n = strlen(name), first = strcspn(keys[i].name, ".") + 10;
            known = str_eq_c(var, name) ||
                    (keys[i].secrecy != OPEN && var.n == n + 5 && !memcmp(var.p, name, n) && !memcmp(var.p + n, "_FILE", 5));
            section = section || (var.n > first && !memcmp(var.p, name, first));
        }
        if (section && !known)
            log_warn("environment variable %.*s names no key of the configuration", STR(var));
    }
}

static bool empty_is_a_value(enum type t)
{
    return t == T_STRING || t == T_PATH || t == T_URL || t == T_LINK || t == T_SMTP || t == T_MAILBOX || t == T_DAYS || type_is_list(t);
}

static enum err load_environment(struct walk *w)
{
    char name[KEY_BYTES_MAX + 16], what[KEY_BYTES_MAX + 48];

    for (size_t i = 0; i < N_KEYS; i++) {
        env_name(&keys[i], name);
        snprintf(what, sizeof what, "environment %s", name);
        const char *value = getenv(name);
        /* Compose files make an empty variable of an unset one: where empty is no value, what stood before stays. */
        if (value && (value[0] || empty_is_a_value(keys[i].type))) {
            enum err e = set_flat(w->config, &keys[i], str_c(value), (struct origin){what, 0}, w->reterr);
            if (e)
                return e;
            MEM_FREE(w->secret_path[i]); /* what the environment says overrides the file's KEY_file too */
        }
        if (keys[i].secrecy == OPEN)
            continue;
        size_t n = strlen(name);
        snprintf(name + n, sizeof name - n, "_FILE");
        value = getenv(name);
        if (value && value[0]) {
            mem_free(w->secret_path[i]);
            w->secret_path[i] = mem_strdup(value);
            w->secret_line[i] = 0;
        }
    }
    return ERR_OK;
}

static enum err load_secrets(struct walk *w)
{
    for (size_t i = 0; i < N_KEYS; i++) {
        if (!w->secret_path[i])
            continue;
        struct origin from = {w->secret_line[i] ? w->path : "environment", w->secret_line[i]};
        enum err e = set_from_file(w->config, &keys[i], w->secret_path[i], from, w->reterr);
        if (e)
            return e;
    }
    return ERR_OK;
}

/* ---- the whole ------------------------------------------------------------------------------------------------------------- */

static enum err check_pair(const char *path, const struct config_tls *t, const char *section, struct error *reterr)
{
    char key[32];

    if ((t->cert[0] != '\0') == (t->key[0] != '\0'))
        return ERR_OK;
    snprintf(key, sizeof key, "%s.tls.%s", section, t->cert[0] ? "key" : "cert");
    return error_set_field(reterr, ERR_INVALID, key, "%s: %s: cert and key go together, this one is missing", path, key);
}

static enum err check_front(const char *path, const char *header, const struct config_listen *trusted, const char *section,
                            struct error *reterr)
{
    char key[32];

    if (!strcmp(header, "off") || trusted->n)
        return ERR_OK;
    snprintf(key, sizeof key, "%s.proxy_protocol", section);
    return error_set_field(reterr, ERR_INVALID, key, "%s: %s: of whom? %s.trusted_proxies is empty", path, key, section);
}

static enum err check_whole(const struct config *c, struct error *reterr)
{
    enum err e = check_pair(c->path, &c->proxy.tls, "proxy", reterr);
    if (!e)
        e = check_pair(c->path, &c->admin.tls, "admin", reterr);
    if (!e)
        e = check_front(c->path, c->proxy.proxy_protocol, &c->proxy.trusted_proxies, "proxy", reterr);
    if (!e)
        e = check_front(c->path, c->admin.proxy_protocol, &c->admin.trusted_proxies, "admin", reterr);
    if (e)
        return e;
    if (c->limits.buffer_low >= c->limits.buffer_high)
        return error_set_field(reterr, ERR_INVALID, "limits.buffer_low", "%s: limits.buffer_low: must be below limits.buffer_high",
                               c->path);
    if (c->limits.target_bytes >= c->limits.head_bytes)
        return error_set_field(reterr, ERR_INVALID, "limits.target_size", "%s: limits.target_size: must be below limits.head_size",
                               c->path);
    return ERR_OK;
}

enum err config_load(const char *path, struct config **ret, struct error *reterr)
{
    struct walk *w = NEW(struct walk);
    struct config *c = NEW(struct config);
    enum err e = ERR_OK;

    c->refs = 1;
    c->path = mem_strdup(path ? path : CONFIG_DEFAULT_PATH);
    w->path = c->path;
    w->config = c;
    w->reterr = reterr;
    for (size_t i = 0; i < N_KEYS && !e; i++)
        e = set_flat(c, &keys[i], str_c(keys[i].fallback), (struct origin){"default", 0}, reterr);
    if (!e)
        e = load_file(w, path != NULL);
    if (!e)
        e = load_environment(w);
    if (!e)
        e = load_secrets(w);
    if (!e)
        e = check_whole(c, reterr);
    if (!e)
        warn_unknown_variables();
    for (size_t i = 0; i < N_KEYS; i++)
        mem_free(w->secret_path[i]);
    mem_free(w);
    if (e) {
        config_unref(&c);
        return e;
    }
    *ret = c;
    return ERR_OK;
}

struct config *config_ref(struct config *c)
{
    __atomic_add_fetch(&c->refs, 1, __ATOMIC_RELAXED);
    return c;
}

void config_unref(struct config **c)
{
    struct config *config = *c;

    *c = NULL;
    if (!config || __atomic_sub_fetch(&config->refs, 1, __ATOMIC_ACQ_REL))
        return;
    for (size_t i = 0; i < N_KEYS; i++) {
        if (type_is_list(keys[i].type)) {
            list_clear(member_list(config, &keys[i]));
        } else if (!type_is_number(keys[i].type)) {
            char *text = *member_text(config, &keys[i]);
            if (text)
                mem_free_secret(text, strlen(text));
        }
    }
    mem_free(config->path);
    mem_free(config);
}

static bool value_same(const struct config *a, const struct config *b, const struct key *k)
{
    if (type_is_number(k->type))
        return *member_number(a, k) == *member_number(b, k);
    if (!type_is_list(k->type))
        return !strcmp(*member_text(a, k), *member_text(b, k));
    const struct config_listen *x = member_list(a, k), *y = member_list(b, k);
    bool same = x->n == y->n;
    for (size_t i = 0; same && i < x->n; i++)
        same = !strcmp(x->list[i], y->list[i]);
    return same;
}

/* Differs, and a running process cannot follow. A listener changes its certificate, but not between TLS and none. */
static bool change_waits(const struct config *a, const struct config *b, const struct key *k)
{
    if (value_same(a, b, k))
        return false;
    if (k->reload != RELOAD)
        return true;
    return k->type == T_PATH && (*member_text(a, k)[0] == '\0') != (*member_text(b, k)[0] == '\0');
}

bool config_same(const struct config *a, const struct config *b)
{
    for (size_t i = 0; i < N_KEYS; i++)
        if (!value_same(a, b, &keys[i]))
            return false;
    return true;
}

void config_needs_restart(const struct config *a, const struct config *b, struct strbuf *ret)
{
    for (size_t i = 0; i < N_KEYS; i++) {
        if (!change_waits(a, b, &keys[i]))
            continue;
        if (ret->n)
            sb_addc(ret, ", ");
        sb_addc(ret, keys[i].name);
    }
}

void config_keep_restart(struct config *c, const struct config *running)
{
    for (size_t i = 0; i < N_KEYS; i++) {
        const struct key *k = &keys[i];
        if (!change_waits(running, c, k))
            continue;
        if (type_is_number(k->type)) {
            *member_number(c, k) = *member_number(running, k);
        } else if (type_is_list(k->type)) {
            const struct config_listen *from = member_list(running, k);
            struct config_listen *to = member_list(c, k);
            list_clear(to);
            for (size_t j = 0; j < from->n; j++)
                to->list[to->n++] = mem_strdup(from->list[j]);
        } else {
            set_text(c, k, str_c(*member_text(running, k)));
        }
    }
}

/* ---- writing it down -------------------------------------------------------------------------------------------------------- */

static void add_number(struct strbuf *b, const struct key *k, uint64_t v)
{
    static const struct {
        const char *unit;
        uint64_t n;
    } durations[] = {{"d", 24 * HOUR}, {"h", HOUR}, {"m", 60 * SEC}, {"s", SEC}, {"ms", 1}},
      sizes[] = {{"TiB", TIB}, {"GiB", GIB}, {"MiB", MIB}, {"KiB", KIB}, {"", 1}};

    if (k->type == T_WORKERS && v == 0) {
        sb_addc(b, "auto");
    } else if (v == 0 || k->type == T_COUNT || k->type == T_WORKERS) {
        sb_add_u64(b, v);
    } else {
        for (size_t i = 0; i < 5; i++) {
            uint64_t n = k->type == T_DURATION ? durations[i].n : sizes[i].n;
            if (v % n)
                continue;
            sb_add_u64(b, v / n);
            sb_addc(b, k->type == T_DURATION ? durations[i].unit : sizes[i].unit);
            return;
        }
    }
}

/* The password of scheme://user:password@host as ***. */
static void add_masked_url(struct strbuf *b, struct str url)
{
    struct str rest;
    size_t scheme = 0;

    for (size_t i = 0; i + 2 < url.n; i++)
        if (!memcmp(url.p + i, "://", 3)) {
            scheme = i + 3;
            break;
        }
    rest = str_skip(url, scheme);
    ptrdiff_t slash = str_index(rest, '/'), at = str_rindex(slash >= 0 ? str_sub(rest, 0, (size_t)slash) : rest, '@');
    struct strbuf shown = {0};
    if (at >= 0) {
        ptrdiff_t colon = str_index(str_sub(rest, 0, (size_t)at), ':');
        sb_add(&shown, str_sub(url, 0, scheme));
        if (colon >= 0) {
            sb_add(&shown, str_sub(rest, 0, (size_t)colon));
            sb_addc(&shown, ":***");
        } else {
            sb_add(&shown, str_sub(rest, 0, (size_t)at));
        }
        sb_add(&shown, str_skip(rest, (size_t)at));
    } else {
        sb_add(&shown, url);
    }
    /* …?password=… of PostgreSQL */
    char *password = shown.n ? memmem(shown.p, shown.n, "password=", 9) : NULL;
    if (password) {
        shown.n = (size_t)(password - shown.p) + 9;
        sb_addc(&shown, "***");
    }
    sb_add_json(b, sb_str(&shown));
    sb_free(&shown);
}

static void add_list(struct strbuf *b, const struct config_listen *l)
{
    sb_add_char(b, '[');
    for (size_t i = 0; i < l->n; i++) {
        if (i)
            sb_addc(b, ", ");
        sb_add_json(b, str_c(l->list[i]));
    }
    sb_add_char(b, ']');
}

/* What stands behind "key: ". A JSON string is a YAML string. */
static void add_value(struct strbuf *b, const struct key *k, const struct config *c)
{
    if (type_is_number(k->type)) {
        add_number(b, k, *member_number(c, k));
    } else if (type_is_list(k->type)) {
        add_list(b, member_list(c, k));
    } else {
        struct str s = str_c(*member_text(c, k));
        if (k->secrecy == SECRET && s.n)
            sb_addc(b, "\"***\"");
        else if (k->secrecy == SECRET_URL)
            add_masked_url(b, s);
        else
            sb_add_json(b, s);
    }
}

static size_t depth_of(const char *name)
{
    size_t n = 0;
    for (; *name; name++)
        n += *name == '.';
    return n;
}

static void add_indent(struct strbuf *b, size_t depth)
{
    for (size_t i = 0; i < depth; i++)
        sb_addc(b, "  ");
}

/* Section lines between the key before and this one. */
static void add_sections(struct strbuf *b, const char *before, const char *name)
{
    size_t shared = 0, depth = 0;

    for (size_t i = 0; name[i] && before[i] == name[i]; i++)
        if (name[i] == '.')
            shared = i + 1;
    for (size_t i = 0, start = 0; name[i]; i++) {
        if (name[i] != '.')
            continue;
        if (i >= shared) {
            if (depth == 0 && b->n)
                sb_add_char(b, '\n');
            add_indent(b, depth);
            sb_add(b, (struct str){name + start, i - start});
            sb_addc(b, ":\n");
        }
        start = i + 1;
        depth++;
    }
}

static const char *last_part(const char *name)
{
    const char *dot = strrchr(name, '.');
    return dot ? dot + 1 : name;
}

void config_show(const struct config *c, struct strbuf *ret)
{
    const char *before = "";
    for (size_t i = 0; i < N_KEYS; i++) {
        add_sections(ret, before, keys[i].name);
        add_indent(ret, depth_of(keys[i].name));
        sb_addf(ret, "%s: ", last_part(keys[i].name));
        add_value(ret, &keys[i], c);
        sb_add_char(ret, '\n');
        before = keys[i].name;
    }
}

/* The default as YAML. */
static void add_fallback(struct strbuf *b, const struct key *k)
{
    if (type_is_number(k->type)) {
        sb_addc(b, k->fallback);
    } else if (type_is_list(k->type)) {
        sb_add_char(b, '[');
        if (k->fallback[0])
            sb_add_json(b, str_c(k->fallback));
        sb_add_char(b, ']');
    } else {
        sb_add_json(b, str_c(k->fallback));
    }
}

/* Keys are commented out, so that an installed sample changes no default; uncommenting a line sets it. Nested section lines
 * (proxy.tls) stay live, for the same reason as the outer ones: uncommenting one line below them is enough. */
void config_sample(struct strbuf *ret)
{
    const char *before = "";

    sb_addc(ret, "# Pullgate: the configuration of pullgate-proxy and pullgate-admin. Every key stands here with its default.\n"
                 "# Each can also be set as PULLGATE_SECTION_KEY in the environment (lists with commas), which wins over this file;\n"
                 "# secrets also as KEY_file and PULLGATE_SECTION_KEY_FILE. Durations take ms, s, m, h, d; sizes KiB, MiB, GiB, TiB.\n"
                 "# `--check` validates this file and exits; `--show-config` prints what is in force.\n");
    for (size_t i = 0; i < N_KEYS; i++) {
        const struct key *k = &keys[i];
        size_t depth = depth_of(k->name);
        add_sections(ret, before, k->name);
        add_indent(ret, depth);
        sb_addf(ret, "# %s", k->sentence);
        if (k->choices)
            sb_addf(ret, " One of %s.", k->choices);
        if (k->reload == RELOAD)
            sb_addc(ret, " Changed by SIGHUP.");
        sb_add_char(ret, '\n');
        add_indent(ret, depth);
        sb_addf(ret, "#%s: ", last_part(k->name));
        add_fallback(ret, k);
        sb_add_char(ret, '\n');
        if (k->secrecy != OPEN) {
            add_indent(ret, depth);
            sb_addf(ret, "#%s_file: \"\"\n", last_part(k->name));
        }
        before = k->name;
    }
}

void config_reference(struct strbuf *ret)
{
    char name[KEY_BYTES_MAX + 16];

    sb_addc(ret, "| key | environment | default | bounds | SIGHUP | meaning |\n|---|---|---|---|---|---|\n");
    for (size_t i = 0; i < N_KEYS; i++) {
        const struct key *k = &keys[i];
        env_name(k, name);
        sb_addf(ret, "| `%s`%s | `%s`%s | ", k->name, k->secrecy != OPEN ? ", `…_file`" : "", name, k->secrecy != OPEN ? ", `…_FILE`" : "");
        if (k->fallback[0])
            sb_addf(ret, "`%s`", k->fallback);
        sb_addc(ret, " | ");
        if (type_is_number(k->type)) {
            add_number(ret, &(struct key){.type = k->type == T_WORKERS ? T_COUNT : k->type}, k->min);
            sb_addc(ret, " to ");
            add_number(ret, &(struct key){.type = k->type == T_WORKERS ? T_COUNT : k->type}, k->max);
            if (k->type == T_WORKERS)
                sb_addc(ret, ", auto");
        } else if (k->choices) {
            struct str rest = str_c(k->choices), choice;
            bool first = true;
            while (str_next(&rest, '|', &choice)) {
                sb_addf(ret, "%s`%.*s`", first ? "" : ", ", STR(choice));
                first = false;
            }
        }
        sb_addf(ret, " | %s | %s |\n", k->reload == RELOAD ? "yes" : "", k->sentence);
    }
}

/* ---- YAML as a value ----------------------------------------------------------------------------------------------- */

#define VALUE_DEPTH_MAX 16
#define VALUE_NODES_MAX 200000 /* made, aliases counted as often as they stand */

struct valuer {
    yaml_document_t *doc;
    size_t made;
    struct error *reterr;
};

/* What an unquoted scalar is: null, a truth value, a whole number, else text (YAML 1.2's core schema, without floats: nothing here has any). */
static struct jv *scalar_value(const yaml_node_t *node)
{
    struct str s = {(const char *)node->data.scalar.value, node->data.scalar.length};
    bool is_plain = node->data.scalar.style == YAML_PLAIN_SCALAR_STYLE;
    struct str digits = s.n > 1 && s.p[0] == '-' ? str_skip(s, 1) : s;
    uint64_t number;
    if (!is_plain)
        return jv_string(s);
    if (s.n == 0 || str_eq(s, S("~")) || str_eq(s, S("null")))
        return jv_null();
    if (str_eq(s, S("true")) || str_eq(s, S("false")))
        return jv_boolean(s.p[0] == 't');
    bool is_number = str_to_u64(digits, &number) && number <= INT64_MAX && (digits.p[0] != '0' || digits.n == 1);
    return is_number ? jv_integer(digits.n < s.n ? -(int64_t)number : (int64_t)number) : jv_string(s);
}

static struct jv *node_value(struct valuer *v, int index, unsigned depth)
{
    const yaml_node_t *node = yaml_document_get_node(v->doc, index);
    if (!node || depth > VALUE_DEPTH_MAX || ++v->made > VALUE_NODES_MAX) {
        (void)error_set(v->reterr, ERR_TOO_LARGE, "too deep, or too much of it");
        return NULL;
    }
    struct jv *made = NULL, *child;
    switch (node->type) {
    case YAML_SCALAR_NODE:
        return scalar_value(node);
    case YAML_SEQUENCE_NODE:
        made = jv_array();
        for (const yaml_node_item_t *i = node->data.sequence.items.start; i < node->data.sequence.items.top; i++) {
            child = node_value(v, *i, depth + 1);
            if (!child)
                goto fail;
            jv_push(made, child);
        }
        return made;
    case YAML_MAPPING_NODE:
        made = jv_object();
        for (const yaml_node_pair_t *p = node->data.mapping.pairs.start; p < node->data.mapping.pairs.top; p++) {
            const yaml_node_t *key = yaml_document_get_node(v->doc, p->key);
            if (!key || key->type != YAML_SCALAR_NODE || jv_get(made, (const char *)key->data.scalar.value)) {
                (void)error_set(v->reterr, ERR_INVALID, "line %zu: a key that is no text, or stands twice", key ? key->start_mark.line + 1 : 0);
                goto fail;
            }
            child = node_value(v, p->value, depth + 1);
            if (!child)
                goto fail;
            jv_set(made, (const char *)key->data.scalar.value, child);
        }
        return made;
    case YAML_NO_NODE:
    default:
        return jv_null();
    }
fail:
    jv_free(made);
    return NULL;
}

enum err config_document(struct str text, struct jv **ret, struct error *reterr)
{
    yaml_parser_t parser;
    yaml_document_t doc;
    enum err err = ERR_OK;

    NEED(yaml_parser_initialize(&parser), "memory to read a document");
    yaml_parser_set_input_string(&parser, (const unsigned char *)text.p, text.n);
    if (!yaml_parser_load(&parser, &doc)) {
        err = error_set(reterr, ERR_INVALID, "line %zu: %s", parser.problem_mark.line + 1, parser.problem ? parser.problem : "not YAML");
        yaml_parser_delete(&parser);
        return err;
    }
    struct valuer v = {.doc = &doc, .reterr = reterr};
    struct jv *value = yaml_document_get_root_node(&doc) ? node_value(&v, 1, 0) : jv_null();
    yaml_document_delete(&doc);
    yaml_parser_delete(&parser);
    if (!value)
        return ERR_INVALID;
    *ret = value;
    return ERR_OK;
}
