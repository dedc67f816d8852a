/* The one configuration file of both daemons. One table in config.c names every key once: its type, default, bounds, whether
 * SIGHUP may change it, and a sentence; parsing, --check, --show-config, the sample file and docs/OPERATIONS.md come from it. */
#ifndef PULLGATE_CONFIG_H
#define PULLGATE_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pullgate/err.h"
#include "pullgate/str.h"

#define CONFIG_MAX_LISTEN 16
#define CONFIG_DEFAULT_PATH "/etc/pullgate/pullgate.yaml"

struct config_listen {
    char *list[CONFIG_MAX_LISTEN]; /* "127.0.0.1:5080" "[::1]:5080" "*:5080" ":5080" "unix:/path"; port 0: kernel's choice */
    size_t n;
};

struct config_tls { /* both empty: plain HTTP */
    char *cert; /* PEM chain */
    char *key;
    char *min_version; /* "1.2" | "1.3" */
};

/* A member's key in the file is its path here, `limits.head_deadline` for limits.head_deadline_ms and `limits.manifest_size` for
 * limits.manifest_bytes: units are part of the value there ("10s", "4MiB"), not of the name. */
struct config {
    unsigned refs; /* atomic: workers share it */
    char *path; /* file it came from */
    struct {
        struct config_listen listen; /* default 127.0.0.1:5080 */
        struct config_tls tls;
        char *public_url;    /* "https://registry.vendor.example"; empty: http(s)://<Host of the listener> */
        uint64_t workers;    /* 0 = auto: one a core */
        char *challenge;     /* "basic" | "bearer" */
        char *realm_service; /* `service` of the challenge and audience of tokens; empty: host of public_url, else "pullgate" */
        struct {
            char *path;         /* empty: no disk cache, in-flight blobs are spooled to spool_path only */
            uint64_t max_bytes; /* 50GiB */
        } blob_cache;
        char *spool_path; /* /var/tmp; unlinked files of blobs in flight */
        uint64_t spool_keep_ms; /* 3s: how long a complete one waits for a further reader */
        struct config_listen metrics_listen; /* /healthz /readyz /metrics; empty: none (healthz, readyz are on listen too) */
        char *port_file; /* where the bound listen and metrics addresses are written as lines, for tests and scripts; empty: nowhere */
        struct config_listen trusted_proxies; /* CIDRs whose word about the client's address counts, and "unix" */
        char *proxy_protocol;                 /* "off" | "accepted" | "required" */
        char *forwarded_field;                /* "x-forwarded-for" | "forwarded" | "off" */
    } proxy;
    struct {
        struct config_listen listen; /* default 127.0.0.1:5090 */
        struct config_tls tls;
        char *public_url;
        char *bootstrap_token_file;
        char *vendor_slug; /* of the first vendor, made at first start: "default" */
        char *vendor_name;
        char *time_zone; /* of the first vendor, "UTC" */
        char *renew_url; /* of the first vendor, "" */
        struct config_listen metrics_listen;
        char *port_file;
        uint64_t sync_interval_ms; /* 30s; 0 = only when asked */
        struct config_listen trusted_proxies;
        char *proxy_protocol, *forwarded_field;
        uint64_t job_interval_ms;          /* 1s */
        char *expiring_days;               /* "60,30,14,7,1,0" */
        char *webhook_allow_private;       /* hosts, ", " between them; "all" */
        uint64_t webhook_retry_ms;         /* 10s: after the first failure; doubles */
        uint64_t webhook_give_up_ms;       /* 3d: of one delivery */
        uint64_t webhook_disable_after_ms; /* 7d of failures */
    } admin;
    struct { /* 0: for ever */
        uint64_t events_ms;           /* 400d */
        uint64_t pulls_ms;            /* 400d */
        uint64_t deliveries_ms;       /* 30d: deliveries and mails that are over */
        uint64_t usage_ms;            /* 1100d: windows that are over, installations that are gone */
        uint64_t sessions_ms;         /* 30d: over, and invitations that are */
        uint64_t idempotency_keys_ms; /* 24h */
    } retention;
    struct {
        char *url; /* smtp://host:port, smtps://host:port; empty: no mail */
        char *username, *password;
        char *tls;  /* "required" | "tried" | "off": of smtp:// */
        char *ca;   /* PEM file; empty: the system's */
        char *from; /* "Vendor <licenses@vendor.example>" or the address alone */
    } mail;
    struct {
        char *url; /* sqlite:///var/lib/pullgate/pullgate.db */
        uint64_t min_free; /* 64MiB on its file system: with less nothing further is written; 0: no bound */
    } store;
    struct {
        char *url;      /* redis://127.0.0.1:6379/0, redis://:password@…, unix:///run/redis.sock?db=0 */
        char *username; /* ACL user, empty: default */
        char *password; /* also redis.password_file */
    } redis;
    struct {
        char *path;
    } keys;
    struct {
        uint64_t max_staleness_ms;            /* 5s */
        uint64_t grace_when_cache_is_down_ms; /* 60s, 0 allowed */
        uint64_t hold_on_unknown_ms;          /* 3s */
        uint64_t tag_freshness_ms;            /* 15s */
        uint64_t negative_ms;                 /* 2s: how long "unknown digest" is remembered */
        uint64_t manifest_bytes;              /* 64MiB a worker */
        uint64_t control_plane_silence_ms;    /* 24h: oldest root a cold proxy accepts */
    } cache;
    struct { /* SECURITY 4.10 */
        uint64_t connections;              /* 10000 */
        uint64_t connections_per_ip;       /* 256 */
        uint64_t target_bytes;             /* 4KiB */
        uint64_t head_bytes;               /* 16KiB */
        uint64_t head_fields;              /* 64 */
        uint64_t admin_body_bytes;         /* 64KiB */
        uint64_t import_body_bytes;        /* 8MiB */
        uint64_t token_body_bytes;         /* 8KiB */
        uint64_t head_deadline_ms;         /* 10s */
        uint64_t body_deadline_ms;         /* 30s */
        uint64_t tls_handshake_ms;         /* 10s */
        uint64_t keepalive_idle_ms;        /* 60s */
        uint64_t keepalive_requests;       /* 1000; 0 = no bound. */
        uint64_t client_min_rate;          /* 10KiB a second ... */
        uint64_t client_min_rate_window_ms;/* ... over 30s */
        uint64_t blob_max_duration_ms;     /* 2h */
        uint64_t manifest_bytes;           /* 4MiB */
        uint64_t closure_nodes;            /* 10000 */
        uint64_t closure_depth;            /* 4 */
        uint64_t inflight_per_customer;    /* 64 */
        uint64_t upstream_connections;     /* 128 per upstream: divided among the workers */
        uint64_t upstream_queue;           /* 256 per upstream and worker */
        uint64_t auth_failures_per_minute; /* 30 per address */
        uint64_t sign_in_failures_per_minute; /* 5 per address, of people */
        uint64_t auth_failures_per_credential; /* 30 per minute */
        uint64_t auth_failures_per_second; /* 200: of everybody */
        uint64_t requests_per_customer;    /* per second; 0 = no bound */
        uint64_t tags_page;                /* 1000 */
        uint64_t resolve_tags;             /* 1000: tags resolved for one unknown digest */
        uint64_t buffer_high;              /* 256KiB per connection */
        uint64_t buffer_low;               /* 64KiB */
        uint64_t redis_deadline_ms;        /* 200ms */
        uint64_t upstream_connect_ms;      /* 5s */
        uint64_t upstream_first_byte_ms;   /* 15s */
        uint64_t upstream_stall_ms;        /* 30s */
        uint64_t upstream_retries;         /* 2: more tries where no byte was sent */
        uint64_t lease_ms;                 /* 24h */
        uint64_t revocation_list_ms;       /* 24h */
        uint64_t drain_ms;                 /* 60s */
        uint64_t events_queued;            /* 100000: pull events held per worker */
        uint64_t streams_per_worker;       /* 1000: blob transfers */
        uint64_t memory_bytes;             /* 0: no bound; else admission stops above it */
    } limits;
    struct {
        char *user, *group; /* whom to become after the start as root; empty: nobody, the user's own */
        char *sandbox;      /* "errno" | "kill" | "off" */
    } process;
    struct {
        char *level;       /* info */
        char *access_path; /* "" = standard output; "off"; or a file */
    } log;
};

/* Defaults, then the file, then PULLGATE_SECTION_KEY from the environment (nested keys joined by _), then …_file secrets.
 * path NULL: CONFIG_DEFAULT_PATH, which need not exist; a path that is given must. Unknown keys and bad values name file, line and key in reterr->text. */
enum err config_load(const char *path, struct config **ret, struct error *reterr) MUST_USE;
/* Names of the keys that differ between a and b and that SIGHUP does not change, ", " between them; empty: none. */
void config_needs_restart(const struct config *a, const struct config *b, struct strbuf *ret);
/* Gives c, freshly loaded and nobody else's yet, the running values of exactly those keys. */
void config_keep_restart(struct config *c, const struct config *running);
/* Every key has the same value. */
bool config_same(const struct config *a, const struct config *b);
struct config *config_ref(struct config *c);
void config_unref(struct config **c);
/* The effective configuration as YAML, secrets as "***". */
void config_show(const struct config *c, struct strbuf *ret);
/* Every key, commented with its sentence and default: conf/pullgate.yaml is made of this and a test compares. */
void config_sample(struct strbuf *ret);
/* Markdown table of all keys, for docs/OPERATIONS.md. */
void config_reference(struct strbuf *ret);

/* Any YAML (or JSON) document as a value, for the command line's files: unquoted null, true, false and whole numbers are that, all else
 * text. Here, because this is the file that knows libyaml. The error names the line. */
struct jv;
enum err config_document(struct str text, struct jv **ret, struct error *reterr) MUST_USE;

#endif
