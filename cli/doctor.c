/* `pullgate doctor`: looks at everything that a deployment stands on, names what is wrong and how to mend it. It reads, connects and asks;
 * what it writes are keys of its own in Redis, which it removes. Each check has a name that tests and monitoring can rely on. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/un.h>
#include <unistd.h>

#include "compile.h"
#include "pullgate/cache.h"
#include "pullgate/clock.h"
#include "pullgate/config.h"
#include "pullgate/edge.h"
#include "pullgate/fetch.h"
#include "pullgate/jv.h"
#include "pullgate/loop.h"
#include "pullgate/mem.h"
#include "pullgate/projection.h"
#include "pullgate/seal.h"
#include "pullgate/store.h"
#include "pullgate/upstream.h"
#include "schema.h"

#include "cli.h"

#define REDIS_MS            2000
#define UPSTREAM_MS         20000
#define HTTP_MS             3000
#define CLOCK_WARN_S        2   /* apart from Redis, an upstream: seconds are what expiries count in ... */
#define CLOCK_FAIL_S        60
#define DATE_WARN_S         10  /* ... but a Date field has whole seconds and the network's time in it */
#define CLOCK_BEHIND_S      300 /* behind the newest time of the store: the daemons answer 503 from there on */
#define CERTIFICATE_WARN_S  (30 * 86400)
#define SPACE_FAIL_BYTES    (64ull << 20)
#define SPACE_WARN_PERCENT  10
#define SPACE_FAIL_PERCENT  3
#define REDIS_VERSION_MIN   6
#define DESCRIPTORS_RESERVE 64

enum status { CHECK_OK, CHECK_WARN, CHECK_FAIL };

static struct {
    struct config *cfg;
    struct keyring *keys;
    struct store *store;
    struct cache_sync *redis;
    bool is_admin, is_proxy; /* which of the two is looked after */
    unsigned count[3];
    struct jv *list;
} d;

/* ---- what is found --------------------------------------------------------------------------------------------------------- */

static void found_v(enum status status, const char *name, const char *mend, const char *fmt, va_list ap) __attribute__((format(printf, 4, 0)));
static void found_v(enum status status, const char *name, const char *mend, const char *fmt, va_list ap)
{
    static const char *const words[] = {"ok", "warn", "fail"};
    struct strbuf text = {0};

    sb_vaddf(&text, fmt, ap);
    d.count[status]++;
    if (cli.json) {
        struct jv *v = jv_object();
        jv_set_c(v, "check", name);
        jv_set_c(v, "status", words[status]);
        jv_set_str(v, "text", sb_str(&text));
        jv_set_c(v, "mend", status == CHECK_OK ? NULL : mend);
        jv_push(d.list, v);
    } else {
        printf("%-4s  %-26s %s\n", words[status], name, text.p);
        if (status != CHECK_OK)
            printf("      %-26s mend: %s\n", "", mend);
    }
    sb_free(&text);
}

static void ok(const char *name, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void ok(const char *name, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    found_v(CHECK_OK, name, NULL, fmt, ap);
    va_end(ap);
}

static void warn(const char *name, const char *mend, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
static void warn(const char *name, const char *mend, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    found_v(CHECK_WARN, name, mend, fmt, ap);
    va_end(ap);
}

static void fail(const char *name, const char *mend, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
static void fail(const char *name, const char *mend, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    found_v(CHECK_FAIL, name, mend, fmt, ap);
    va_end(ap);
}

/* ---- configuration, user --------------------------------------------------------------------------------------------------- */

static void check_configuration(const char *path)
{
    struct error error = {0};
    struct stat st;

    if (config_load(path, &d.cfg, &error) != ERR_OK) {
        fail("configuration", "the line names file, line and key; conf/pullgate.yaml has every key with its default", "%s", error.text);
        return;
    }
    bool has_secret = d.cfg->redis.password[0] != '\0' || strchr(d.cfg->redis.url, '@') != NULL;
    if (stat(d.cfg->path, &st) != 0)
        ok("configuration", "%s is not there: everything has its default, or comes from the environment", d.cfg->path);
    else if (has_secret && (st.st_mode & 077) != 0)
        warn("configuration", "chmod 600 it, or use redis.password_file", "%s is good, but it may be read by others and a password of Redis is in use",
             d.cfg->path);
    else
        ok("configuration", "%s is good", d.cfg->path);
}

static void check_user(void)
{
    const char *user = d.cfg->process.user;

    if (user[0] != '\0' && getpwnam(user) == NULL)
        fail("process.user", "create the user (systemd-sysusers, adduser --system), or name another", "there is no user \"%s\": the daemons will not start as root", user);
    else
        ok("process.user", "%s", user[0] != '\0' ? user : "none: the daemons stay who starts them");
    if (strcmp(d.cfg->process.sandbox, "off") == 0)
        warn("process.sandbox", "process.sandbox: errno", "system calls are not filtered");
    else
        ok("process.sandbox", "%s", d.cfg->process.sandbox);
}

/* ---- keys ------------------------------------------------------------------------------------------------------------------- */

static void check_keys(void)
{
    struct error error = {0};
    const char *path = d.cfg->keys.path;

    if (keyring_open(path, false, &d.keys, &error) == ERR_OK) {
        ok("keys", "%s: complete, nobody else may read them; tokens are signed by %s", path, keyring_token_kid(d.keys));
        return;
    }
    if (access(path, F_OK) != 0 && errno == ENOENT && (!d.is_admin || access(store_file(d.cfg->store.url) ? store_file(d.cfg->store.url) : "/", F_OK) == 0))
        fail("keys", "restore the keys directory from its backup (or pullgate restore --with-keys); on a proxy's machine copy it from the admin's", "%s", error.text);
    else if (access(path, F_OK) != 0 && errno == ENOENT)
        warn("keys", "start pullgate-admin: it makes them at its first start", "%s", error.text);
    else
        fail("keys", "chmod 700 the directory and 600 the files, owned by the daemons' user; a key that is gone comes from the backup", "%s", error.text);
}

/* ---- store ------------------------------------------------------------------------------------------------------------------ */

static int64_t number_of(const char *sql, bool *ret_good)
{
    struct store_stmt *st = NULL;
    bool row = false;
    int64_t n = 0;

    *ret_good = store_query(d.store, &st, NULL, sql, "") == ERR_OK && store_step(st, &row, NULL) == ERR_OK;
    if (*ret_good && row)
        n = store_col_int(st, 0);
    store_done(&st);
    return n;
}

/* needed: with less its daemon refuses to write there; 0: none. */
static void check_space(const char *name, const char *path, const char *what, uint64_t needed)
{
    struct statvfs v;

    if (statvfs(path, &v) != 0) {
        fail(name, "make the directory, owned by the daemons' user", "%s: %s", path, strerror(errno));
        return;
    }
    uint64_t avail = (uint64_t)v.f_bavail * v.f_frsize, total = (uint64_t)v.f_blocks * v.f_frsize;
    unsigned percent = total > 0 ? (unsigned)(avail / (total / 100 + 1)) : 0;
    if (avail < needed)
        fail(name, "make room, or move it to a larger file system", "%llu MiB free for %s in %s, less than store.min_free: the admin API answers changes with 503",
             (unsigned long long)(avail >> 20), what, path);
    else if (avail < SPACE_FAIL_BYTES || percent < SPACE_FAIL_PERCENT)
        fail(name, "make room, or move it to a larger file system", "%llu MiB free (%u %%) for %s in %s", (unsigned long long)(avail >> 20), percent, what, path);
    else if (percent < SPACE_WARN_PERCENT)
        warn(name, "make room, or move it to a larger file system", "%llu MiB free (%u %%) for %s in %s", (unsigned long long)(avail >> 20), percent, what, path);
    else
        ok(name, "%llu MiB free (%u %%) for %s in %s", (unsigned long long)(avail >> 20), percent, what, path);
}

static void check_store_file(const char *path)
{
    struct stat st;
    const char *user = d.cfg->process.user;
    const struct passwd *pw = user[0] != '\0' ? getpwnam(user) : NULL;

    if (stat(path, &st) != 0)
        return;
    if ((st.st_mode & 077) != 0)
        fail("store.mode", "chmod 600 it and its -wal and -shm", "%s has mode %04o: others may reach it", path, (unsigned)(st.st_mode & 07777));
    else if (pw != NULL && st.st_uid != pw->pw_uid)
        fail("store.mode", "chown it, its -wal, -shm and .lock, and the directory, to process.user", "%s belongs to uid %u, the admin will run as %s", path,
             (unsigned)st.st_uid, user);
    else
        ok("store.mode", "%04o, uid %u", (unsigned)(st.st_mode & 07777), (unsigned)st.st_uid);
}

static void check_schema(void)
{
    bool good;
    int64_t has = number_of("SELECT MAX(version) FROM schema_migrations", &good), knows = SCHEMA_MIGRATIONS[SCHEMA_MIGRATIONS_N - 1].version;

    if (!good)
        fail("store.schema", "pullgate restore a backup", "the file has no table of migrations: it is no store of Pullgate");
    else if (has > knows)
        fail("store.schema", "install the newer program again, or restore a backup of before", "the store has schema %lld, this program knows %lld", (long long)has,
             (long long)knows);
    else
        ok("store.schema", "%lld%s", (long long)has, has < knows ? "; pullgate-admin brings it up to date when it starts" : "");
}

static void check_store(void)
{
    struct error error = {0};
    struct stat st;
    struct strbuf lock = {0};
    const char *path = store_file(d.cfg->store.url);

    if (path == NULL) {
        ok("store", "%.20s…: not a file of this machine", d.cfg->store.url);
        return;
    }
    sb_addf(&lock, "%s.lock", path);
    bool was_made = stat(lock.p, &st) == 0 && st.st_size > 0;
    sb_free(&lock);
    if (stat(path, &st) != 0) {
        if (errno == ENOENT && !was_made)
            warn("store", "start pullgate-admin: it makes the store at its first start", "%s is not there yet", path);
        else
            fail("store", "pullgate restore a backup", "%s: %s; pullgate-admin will not start", path, strerror(errno));
        return;
    }
    enum err e = store_open(d.cfg->store.url, true, &d.store, &error);
    if (!e)
        e = store_check(d.store, &error);
    if (e) {
        fail("store", "stop pullgate-admin, pullgate restore a backup, start it", "%s", error.text);
        store_close(&d.store);
    } else {
        ok("store", "%s: intact, %lld KiB", path, (long long)(st.st_size / 1024));
        check_schema();
    }
    check_store_file(path);
    char *directory = mem_strdup(path);
    *strrchr(directory, '/') = '\0';
    check_space("store.space", directory[0] != '\0' ? directory : "/", "the store", d.cfg->store.min_free);
    mem_free(directory);
}

/* ---- Redis ------------------------------------------------------------------------------------------------------------------ */

static enum err redis(const struct cache_reply **ret, struct error *reterr, const char *words)
{
    struct str argv[16], rest = str_c(words);
    size_t n = 0;

    while (n < 16 && str_next(&rest, ' ', &argv[n]))
        n++;
    return cache_sync_command(d.redis, argv, n, ret, reterr);
}

/* "name:value" of an INFO reply; empty: not there. */
static struct str info_get(struct str info, const char *name)
{
    struct str rest = info, line;
    size_t n = strlen(name);

    while (rest.p != NULL && str_next(&rest, '\n', &line)) {
        if (line.n > n && memcmp(line.p, name, n) == 0 && line.p[n] == ':') {
            struct str v = str_skip(line, n + 1);
            return v.n > 0 && v.p[v.n - 1] == '\r' ? str_sub(v, 0, v.n - 1) : v;
        }
    }
    return (struct str){0};
}

static uint64_t info_number(struct str info, const char *name)
{
    uint64_t n = 0;
    return str_to_u64(info_get(info, name), &n) ? n : 0;
}

static void check_redis_info(struct str info)
{
    struct str version = info_get(info, "redis_version"), major = version, policy = info_get(info, "maxmemory_policy"), dot;
    uint64_t number = 0, max = info_number(info, "maxmemory"), used = info_number(info, "used_memory"), evicted = info_number(info, "evicted_keys");

    (void)str_cut(version, '.', &major, &dot);
    if (!str_to_u64(major, &number) || number < REDIS_VERSION_MIN)
        fail("redis.version", "install Redis 6 or later", "%.*s", STR(version));
    else
        ok("redis.version", "%.*s", STR(version));
    if (str_eq_c(policy, "noeviction"))
        ok("redis.policy", "noeviction");
    else if (max > 0)
        fail("redis.policy", "CONFIG SET maxmemory-policy noeviction, and in redis.conf", "%.*s with a maxmemory of %llu MiB: entitlements may be evicted, and pulls are answered 503",
             STR(policy), (unsigned long long)(max >> 20));
    else
        warn("redis.policy", "CONFIG SET maxmemory-policy noeviction, and in redis.conf", "%.*s; without a maxmemory nothing is evicted yet", STR(policy));
    if (evicted > 0)
        warn("redis.evictions", "raise maxmemory, and maxmemory-policy noeviction", "%llu keys were evicted since Redis started", (unsigned long long)evicted);
    else
        ok("redis.evictions", "none");
    if (max > 0 && used > max / 10 * 9)
        fail("redis.memory", "raise maxmemory", "%llu of %llu MiB are used: writes will be refused", (unsigned long long)(used >> 20), (unsigned long long)(max >> 20));
    else
        ok("redis.memory", "%llu MiB used, %s%llu MiB", (unsigned long long)(used >> 20), max > 0 ? "maxmemory " : "no maxmemory, ", (unsigned long long)(max >> 20));
    if (str_eq_c(info_get(info, "role"), "master"))
        ok("redis.role", "master");
    else
        fail("redis.role", "let redis.url name the master", "this Redis is a replica: it takes no writes, and may be behind");
    if (str_eq_c(info_get(info, "rdb_last_bgsave_status"), "err"))
        fail("redis.persistence", "Pullgate needs none: CONFIG SET save \"\"; else mend the disk that Redis saves to",
             "its last save failed: with stop-writes-on-bgsave-error it refuses writes");
    else
        ok("redis.persistence", "%s", str_eq_c(info_get(info, "aof_enabled"), "1") ? "append-only file; not needed" : "its saves succeed, or it makes none");
}

/* Everything that the daemons ask of Redis, on keys that are nobody's. */
static void check_redis_rights(void)
{
    static const char *const commands[] = {
        "SET pg:doctor 1 EX 60", "GET pg:doctor", "MSET pg:doctor 1", "MGET pg:doctor", "EXISTS pg:doctor", "SCAN 0 MATCH pg:doctor* COUNT 10", "DEL pg:doctor",
        "XADD pg:doctor:s MAXLEN ~ 10 * b x", "XGROUP CREATE pg:doctor:s admin 0", "XREADGROUP GROUP admin doctor COUNT 1 STREAMS pg:doctor:s >",
        "XACK pg:doctor:s admin 0-1", "XDEL pg:doctor:s 0-1", "DEL pg:doctor:s", "MULTI", "EXEC", ("PUBLISH " PROJECTION_CHANNEL " 0"), ("SUBSCRIBE " PROJECTION_CHANNEL),
    };
    struct strbuf refused = {0};
    char why[200] = "";
    size_t n = sizeof commands / sizeof *commands;

    (void)!redis(&(const struct cache_reply *){NULL}, NULL, "DEL pg:doctor:s");
    for (size_t i = 0; i < n; i++) {
        const struct cache_reply *r;
        struct error error = {0};
        if (redis(&r, &error, commands[i]) != ERR_OK) {
            size_t word = strcspn(commands[i], " ");
            sb_addf(&refused, "%s%.*s", refused.n > 0 ? ", " : "", (int)word, commands[i]);
            snprintf(why, sizeof why, "%.190s", error.text);
        }
    }
    if (refused.n > 0)
        fail("redis.rights", "give the user ~pg:* &pg:* and the commands; docs/REDIS.md names them", "refused: %s (%s)", refused.p, why);
    else
        ok("redis.rights", "all commands that the daemons use, on ~pg:* and &pg:*");
    sb_free(&refused);
    cache_sync_free(&d.redis); /* a connection that has subscribed takes no other command */
    d.redis = cache_sync_new(d.cfg, REDIS_MS);
}

static void check_projection(void)
{
    const struct cache_reply *r;

    if (redis(&r, NULL, "GET " PROJECTION_ROOT_KEY) != ERR_OK || d.keys == NULL)
        return;
    if (r->type != CACHE_STRING) {
        warn("redis.projection", "start pullgate-admin: it fills Redis", "Redis holds no entitlements: proxies answer 503");
        return;
    }
    struct projection_root root;
    if (projection_root_scan(d.keys, r->str, &root) != ERR_OK) {
        fail("redis.projection", "use the same keys directory everywhere, and one Redis for one deployment",
             "what stands in Redis was not signed with mac.key of %s, or has another form: the proxies do not believe it", d.cfg->keys.path);
        return;
    }
    int64_t age = (clock_now_ms() - root.time_ms) / 1000;
    if (age > 60)
        warn("redis.projection", "start pullgate-admin, or see why it does not reach Redis", "signed by our keys, change %llu, but renewed %lld s ago",
             (unsigned long long)root.epoch, (long long)age);
    else
        ok("redis.projection", "signed by our keys, change %llu, renewed %lld s ago", (unsigned long long)root.epoch, (long long)age);
}

static void check_apart(const char *name, const char *whom, int64_t seconds, int64_t warn_s)
{
    int64_t apart = seconds < 0 ? -seconds : seconds;
    static const char mend[] = "synchronise the clocks of all machines (chrony, systemd-timesyncd)";

    if (apart >= CLOCK_FAIL_S)
        fail(name, mend, "%s is %lld s %s this machine: licenses would expire at different times", whom, (long long)apart, seconds > 0 ? "ahead of" : "behind");
    else if (apart >= warn_s)
        warn(name, mend, "%s is %lld s %s this machine", whom, (long long)apart, seconds > 0 ? "ahead of" : "behind");
    else
        ok(name, "%s agrees with this machine within %lld s", whom, (long long)warn_s);
}

static void check_redis(void)
{
    struct error error = {0};
    const struct cache_reply *r;
    uint64_t t;

    d.redis = cache_sync_new(d.cfg, REDIS_MS);
    if (redis(&r, &error, "PING") != ERR_OK) {
        fail("redis", "start Redis, or correct redis.url, redis.username and redis.password", "%s", error.text);
        return;
    }
    ok("redis", "answers");
    if (redis(&r, &error, "INFO") == ERR_OK && r->type == CACHE_STRING)
        check_redis_info(r->str);
    else
        warn("redis.info", "allow +info to its user for this check (the daemons need it not)", "version, policy and state cannot be asked: %s", error.text);
    if (redis(&r, &error, "TIME") == ERR_OK && r->type == CACHE_ARRAY && r->n == 2 && str_to_u64(r->items[0].str, &t))
        check_apart("clock.redis", "Redis", (int64_t)t - clock_now_s(), CLOCK_WARN_S);
    check_redis_rights();
    check_projection();
}

static void check_store_clock(void)
{
    bool good;

    if (d.store == NULL)
        return;
    int64_t high = number_of("SELECT CAST(value AS INTEGER) FROM meta WHERE key='clock_high_water'", &good), behind = high - clock_now_s();
    if (good && behind > CLOCK_BEHIND_S)
        fail("clock.store", "set the clock; was the noted time the wrong one, docs/OPERATIONS.md says how to forget it",
             "the clock is %lld s behind the newest time that the store has seen: pulls are answered 503", (long long)behind);
    else
        ok("clock.store", "not behind the newest time that the store has seen");
}

/* ---- upstreams -------------------------------------------------------------------------------------------------------------- */

struct asked {
    struct loop *loop;
    enum err err;
    char detail[300];
    size_t tags;
    bool is_done;
};

static void on_ping(void *ctx, enum err err, const char *detail)
{
    struct asked *a = ctx;
    a->err = err;
    a->is_done = true;
    snprintf(a->detail, sizeof a->detail, "%s", detail != NULL ? detail : "");
    loop_stop(a->loop);
}

static void on_tags(void *ctx, enum err err, const struct str *tags, size_t n, const char *detail)
{
    (void)tags;
    ((struct asked *)ctx)->tags = n;
    on_ping(ctx, err, detail);
}

static void on_late(void *ctx)
{
    struct asked *a = ctx;
    if (!a->is_done)
        loop_stop(a->loop);
}

/* One operation on a loop of its own: GET /v2/ with the credentials, or the tags of a repository. */
static struct asked upstream_ask(const struct upstream_spec *spec, const char *repository)
{
    const struct upstream_limits lim = {.fetch = {.connections = 2,
                                                  .connect_ms = d.cfg->limits.upstream_connect_ms,
                                                  .first_byte_ms = d.cfg->limits.upstream_first_byte_ms,
                                                  .stall_ms = d.cfg->limits.upstream_stall_ms,
                                                  .total_ms = UPSTREAM_MS}};
    struct asked a = {.loop = loop_new(), .err = ERR_TIMEOUT};
    struct upstream *u = upstream_new(a.loop, upstream_spec_copy(spec), &lim);
    struct timer *late = timer_new(a.loop, on_late, &a);

    timer_set(late, UPSTREAM_MS);
    struct upstream_op *op = repository != NULL ? upstream_tags(u, str_c(repository), on_tags, &a) : upstream_ping(u, on_ping, &a);
    loop_run(a.loop);
    if (!a.is_done) {
        upstream_cancel(&op);
        snprintf(a.detail, sizeof a.detail, "no answer within %d s", UPSTREAM_MS / 1000);
    }
    timer_free(&late);
    upstream_unref(&u);
    loop_free(a.loop);
    return a;
}

static const char *const months[] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};

/* "Date: Sun, 06 Nov 1994 08:49:37 GMT" */
static bool date_of(struct str fields, int64_t *ret)
{
    struct str rest = fields, line;

    while (rest.p != NULL && str_next(&rest, '\n', &line)) {
        char text[64], month[4], instant[40];
        unsigned day, year, h, m, s;
        if (!str_eq_nocase(str_sub(line, 0, 5), S("date:")) || line.n >= sizeof text)
            continue;
        memcpy(text, line.p, line.n);
        text[line.n] = '\0';
        if (sscanf(text + 5, " %*3[A-Za-z], %2u %3[A-Za-z] %4u %2u:%2u:%2u GMT", &day, month, &year, &h, &m, &s) != 6)
            return false;
        for (unsigned i = 0; i < 12; i++)
            if (strcmp(month, months[i]) == 0) {
                snprintf(instant, sizeof instant, "%04u-%02u-%02uT%02u:%02u:%02uZ", year, i + 1, day, h, m, s);
                return clock_parse_instant(str_c(instant), ret, NULL) == ERR_OK;
            }
    }
    return false;
}

static void check_upstream_date(const char *name, const struct upstream_spec *spec)
{
    struct strbuf url = {0}, check = {0};
    struct fetch_reply reply = {0};
    const struct fetch_limits lim = {.connections = 1, .connect_ms = HTTP_MS, .first_byte_ms = HTTP_MS, .total_ms = HTTP_MS};
    int64_t date;

    sb_addf(&url, "%s/v2/", spec->url);
    sb_addf(&check, "clock.upstream.%s", name);
    struct fetch_request request = {
        .method = "GET", .url = url.p, .ca_pem = spec->ca_pem, .policy = {.allow_private = true}, .max_body = 65536};
    if (fetch_blocking(&request, &lim, &reply, NULL) == ERR_OK) {
        if (date_of(sb_str(&reply.fields), &date))
            check_apart(check.p, "its Date", date - clock_now_s(), DATE_WARN_S);
        fetch_reply_free(&reply);
    }
    sb_free(&url);
    sb_free(&check);
}

static bool resolves(const char *host, char ret_why[120])
{
    struct addrinfo *found = NULL, hints = {.ai_socktype = SOCK_STREAM};
    int rc = getaddrinfo(host, NULL, &hints, &found);

    if (rc == 0)
        freeaddrinfo(found);
    snprintf(ret_why, 120, "%s", rc == 0 ? "" : gai_strerror(rc));
    return rc == 0;
}

static void check_one_upstream(const char *name, const struct upstream_spec *spec, const char *repository)
{
    struct strbuf check = {0};
    struct fetch_url url = {0};
    char why[120];

    sb_addf(&check, "upstream.%s", name);
    if (fetch_url_parse(spec->url, &url, NULL) == ERR_OK && !resolves(url.host, why)) {
        fail(check.p, "correct the upstream's url, or the resolver of this machine (/etc/resolv.conf)", "%s cannot be resolved: %s", url.host, why);
    } else {
        struct asked a = upstream_ask(spec, NULL);
        if (a.err)
            fail(check.p, "pullgate upstreams update: url, ca, username, password; the registry's log tells more", "%s: %s", spec->url,
                 a.detail[0] != '\0' ? a.detail : err_text(a.err));
        else
            ok(check.p, "%s answers%s", spec->url, spec->username != NULL && spec->username[0] != '\0' ? " and takes the credentials" : "");
        if (!a.err)
            check_upstream_date(name, spec);
        if (!a.err && repository != NULL) {
            struct strbuf tags = {0};
            sb_addf(&tags, "upstream.%s.tags", name);
            a = upstream_ask(spec, repository);
            if (a.err)
                fail(tags.p, "let the credentials read and list this repository, or correct its upstream_repository", "the tags of %s: %s", repository,
                     a.err == ERR_NOT_FOUND ? "there is no such repository" : a.detail[0] != '\0' ? a.detail : err_text(a.err));
            else
                ok(tags.p, "%s has %zu tags", repository, a.tags);
            sb_free(&tags);
        }
    }
    fetch_url_free(&url);
    sb_free(&check);
}

struct upstream_row {
    char *id, *name, *repository;
};

static void check_upstreams(void)
{
    struct upstream_row *rows = NULL;
    size_t n = 0;
    struct store_stmt *st = NULL;
    bool row = false;

    if (d.store == NULL)
        return;
    if (store_query(d.store, &st, NULL,
                    "SELECT u.id, u.name, (SELECT r.upstream_repository FROM repositories r WHERE r.upstream_id=u.id ORDER BY r.created_at, r.id LIMIT 1)"
                    " FROM upstreams u ORDER BY u.name",
                    "") == ERR_OK)
        while (store_step(st, &row, NULL) == ERR_OK && row) {
            rows = mem_realloc(rows, (n + 1) * sizeof *rows);
            struct str repository = store_col_str(st, 2);
            rows[n++] = (struct upstream_row){str_dup(store_col_str(st, 0)), str_dup(store_col_str(st, 1)), repository.p != NULL ? str_dup(repository) : NULL};
        }
    store_done(&st);
    if (n == 0)
        ok("upstreams", "none are configured");
    bool told = false;
    for (size_t i = 0; i < n; i++) {
        struct strbuf fact = {0}, text = {0};
        struct jv *doc = NULL;
        struct upstream_spec *spec = NULL;
        bool exists = false;
        sb_addf(&fact, "u:%s", rows[i].id);
        enum err e = compile_fact(d.store, sb_str(&fact), &text, &exists, NULL);
        if (!e && exists && d.keys != NULL && jv_parse(sb_str(&text), &JV_LIMITS_TRUSTED, &doc, NULL) == ERR_OK) {
            if (upstream_spec_parse(doc, d.keys, &spec, NULL) == ERR_OK) {
                if (!told && spec->password != NULL && spec->password[0] != '\0')
                    ok("keys.store", "seal.key opens the passwords in the store");
                told = told || (spec->password != NULL && spec->password[0] != '\0');
                check_one_upstream(rows[i].name, spec, rows[i].repository);
            } else if (!told) {
                told = true;
                fail("keys.store", "put the keys directory of this store back, or set the passwords of the upstreams anew",
                     "seal.key does not open the password of the upstream %s: keys and store are not of the same deployment", rows[i].name);
            }
        }
        upstream_spec_free(&spec);
        jv_free(doc);
        sb_free(&fact);
        sb_free(&text);
    }
    for (size_t i = 0; i < n; i++) {
        mem_free(rows[i].id);
        mem_free(rows[i].name);
        mem_free(rows[i].repository);
    }
    mem_free(rows);
}

/* ---- certificates ----------------------------------------------------------------------------------------------------------- */

static void check_certificate(const char *name, const struct config_tls *tls, const char *public_url)
{
    struct edge_tls *t = NULL;
    struct error error = {0};
    struct fetch_url url = {0};
    char date[CLOCK_RFC3339_MAX];
    int64_t now = clock_now_s();

    if (tls->cert[0] == '\0') {
        if (strncmp(public_url, "https:", 6) == 0)
            ok(name, "none: a front proxy has it");
        else
            ok(name, "none: plain HTTP");
        return;
    }
    if (edge_tls_load(tls, &t, &error) != ERR_OK) {
        fail(name, "give the daemons' user the certificate's chain and the key that belongs to it", "%s", error.text);
        return;
    }
    int64_t to = edge_tls_not_after(t), from = edge_tls_not_before(t);
    bool has_name = public_url[0] != '\0' && fetch_url_parse(public_url, &url, NULL) == ERR_OK;
    if (to <= now)
        fail(name, "renew it; the daemons see the renewed file by themselves", "%s expired on %s", tls->cert, clock_rfc3339(to, date));
    else if (from > now)
        fail(name, "set the clock, or take the certificate that is valid today", "%s is not valid before %s", tls->cert, clock_rfc3339(from, date));
    else if (has_name && !edge_tls_covers(t, url.host))
        fail(name, "take a certificate that names the host of public_url", "%s is not for %s: clients refuse it", tls->cert, url.host);
    else if (to - now < CERTIFICATE_WARN_S)
        warn(name, "renew it; the daemons see the renewed file by themselves", "%s expires on %s", tls->cert, clock_rfc3339(to, date));
    else
        ok(name, "%s is valid until %s%s%s", tls->cert, clock_rfc3339(to, date), has_name ? " for " : "", has_name ? url.host : "");
    fetch_url_free(&url);
    edge_tls_unref(&t);
}

/* ---- the daemons, where they run -------------------------------------------------------------------------------------------- */

/* GET over the address itself: the certificate is another check's matter. False: nobody answers HTTP there. */
static bool http_get(const char *address, const char *path, int *ret_status, struct strbuf *ret_body)
{
    struct strbuf url = {0};
    struct fetch_reply reply = {0};
    const struct fetch_limits lim = {.connections = 1, .connect_ms = HTTP_MS, .first_byte_ms = HTTP_MS, .total_ms = HTTP_MS};
    const char *host = address[0] == '*' ? address + 1 : address;

    sb_addf(&url, "http://%s%s%s", host[0] == ':' ? "127.0.0.1" : "", host, path);
    struct fetch_request request = {.method = "GET", .url = url.p, .policy = {.allow_private = true}, .max_body = 4 << 20};
    bool good = fetch_blocking(&request, &lim, &reply, NULL) == ERR_OK;
    if (good) {
        *ret_status = reply.status;
        sb_add(ret_body, sb_str(&reply.body));
        fetch_reply_free(&reply);
    }
    sb_free(&url);
    return good;
}

enum bound { BOUND_FREE, BOUND_USED, BOUND_NO };

/* Could a daemon bind it? */
static enum bound try_bind(const char *address, int *ret_errno)
{
    struct str a = str_c(address);
    ptrdiff_t colon = str_rindex(a, ':');
    uint64_t port = 0;
    struct sockaddr_in v4 = {.sin_family = AF_INET};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6};
    char host[64];

    *ret_errno = 0;
    if (colon < 0 || !str_to_u64(str_skip(a, (size_t)colon + 1), &port))
        return BOUND_FREE;
    bool is_v6 = a.n > 0 && a.p[0] == '[';
    snprintf(host, sizeof host, "%.*s", is_v6 ? (int)colon - 2 : (int)colon, is_v6 ? a.p + 1 : a.p);
    if (host[0] == '\0' || strcmp(host, "*") == 0)
        snprintf(host, sizeof host, "0.0.0.0");
    v4.sin_port = v6.sin6_port = htons((uint16_t)port);
    if (is_v6 ? inet_pton(AF_INET6, host, &v6.sin6_addr) != 1 : inet_pton(AF_INET, host, &v4.sin_addr) != 1)
        return BOUND_FREE;
    int fd = socket(is_v6 ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
    if (fd < 0)
        return BOUND_FREE;
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    int rc = is_v6 ? bind(fd, (const struct sockaddr *)(const void *)&v6, sizeof v6) : bind(fd, (const struct sockaddr *)(const void *)&v4, sizeof v4);
    if (rc == 0)
        rc = listen(fd, 1);
    *ret_errno = rc == 0 ? 0 : errno;
    close(fd);
    return rc == 0 ? BOUND_FREE : *ret_errno == EADDRINUSE ? BOUND_USED : BOUND_NO;
}

static bool port_is_zero(const char *address)
{
    size_t n = strlen(address);
    return n > 2 && strcmp(address + n - 2, ":0") == 0;
}

static void check_ready(const char *which, const char *address, bool is_tls)
{
    struct strbuf check = {0}, body = {0};
    int status = 0;

    sb_addf(&check, "%s.ready", which);
    if (!is_tls && http_get(address, "/readyz", &status, &body)) {
        if (status == 200)
            ok(check.p, "%s says that it is ready", address);
        else
            fail(check.p, "the reason names what to look after; the daemon's log tells more", "%s says that it is not: %.*s", address,
                 STR(str_trim(str_sub(sb_str(&body), 0, body.n > 0 && body.p[body.n - 1] == '\n' ? body.n - 1 : body.n))));
    }
    sb_free(&check);
    sb_free(&body);
}

static void check_listener(const char *which, const char *address, bool is_tls)
{
    struct strbuf check = {0}, body = {0};
    int code = 0, status = 0;
    struct stat st;

    sb_addf(&check, "listen.%s", which);
    if (strncmp(address, "unix:", 5) == 0) {
        char *directory = mem_strdup(address + 5);
        *strrchr(directory, '/') = '\0';
        if (stat(directory[0] != '\0' ? directory : "/", &st) != 0)
            fail(check.p, "make the directory, owned by the daemon's user", "%s: %s", directory, strerror(errno));
        else
            ok(check.p, "%s", address);
        mem_free(directory);
    } else if (port_is_zero(address)) {
        ok(check.p, "%s: the kernel chooses a port", address);
    } else {
        switch (try_bind(address, &code)) {
        case BOUND_FREE:
            warn(check.p, "start it", "%s is free: pullgate-%s does not run", address, which);
            break;
        case BOUND_NO:
            if (code == EACCES)
                warn(check.p, "systemctl enable pullgate-….socket, a capability, or run doctor as root to be sure", "%s: only root may listen there", address);
            else
                fail(check.p, "let the configuration name an address of this machine", "%s: %s", address, strerror(code));
            break;
        case BOUND_USED:
            /* TLS: its answer to plain HTTP is known */
            if (!http_get(address, "/healthz", &status, &body))
                fail(check.p, "see who it is (ss -ltnp), and end it or choose another address", "%s is taken by a program that does not answer HTTP", address);
            else if (is_tls ? !str_starts(sb_str(&body), S("Client sent an HTTP request to an HTTPS server")) : !str_starts(sb_str(&body), S("{\"status\":\"ok\"}")))
                fail(check.p, "see who it is (ss -ltnp), and end it or choose another address", "%s is taken by a program that is not pullgate-%s", address, which);
            else
                ok(check.p, "%s serves", address);
            if (status != 0)
                check_ready(which, address, is_tls);
        }
    }
    sb_free(&check);
    sb_free(&body);
}

static double metric(struct str text, const char *name, bool *ret_is)
{
    struct str rest = text, line;
    size_t n = strlen(name);

    *ret_is = false;
    while (rest.p != NULL && str_next(&rest, '\n', &line))
        if (line.n > n + 1 && memcmp(line.p, name, n) == 0 && line.p[n] == ' ') {
            char number[40];
            snprintf(number, sizeof number, "%.*s", STR(str_skip(line, n + 1)));
            *ret_is = true;
            return strtod(number, NULL);
        }
    return 0;
}

static void check_metrics(const char *which, const struct config_listen *l)
{
    static const struct {
        const char *name;
        bool wants_one; /* else 0 */
        const char *text, *mend;
    } gauges[] = {
        {"pullgate_config_last_reload_successful", true, "its last reload failed: what runs is not what the file says", "the log names file, line and key; mend it and send SIGHUP"},
        {"pullgate_redis_up", true, "not every worker reaches Redis", "see the check redis, and the network between"},
        {"pullgate_admin_redis_up", true, "it does not reach Redis", "see the check redis"},
        {"pullgate_admin_projection_in_sync", true, "Redis does not hold what the store says", "see redis.rights and redis.memory, and its log"},
        {"pullgate_admin_clock_bad", false, "its clock is behind what it was", "see clock.store"},
        {"pullgate_sandbox_refused_total", false, "the sandbox has refused system calls", "its log has their numbers: report them; process.sandbox: off goes without"},
        {"pullgate_blob_mismatches_total", false, "an upstream sent blobs that are not what their digest says", "see its log, and the upstream's storage"},
    };
    struct strbuf check = {0}, body = {0};
    int status = 0;

    sb_addf(&check, "%s.metrics", which);
    for (size_t i = 0; i < l->n; i++) {
        if (strncmp(l->list[i], "unix:", 5) == 0 || port_is_zero(l->list[i]))
            continue;
        sb_reset(&body);
        if (!http_get(l->list[i], "/metrics", &status, &body) || status != 200)
            continue; /* whether it runs is said elsewhere */
        unsigned bad = 0;
        for (size_t k = 0; k < sizeof gauges / sizeof *gauges; k++) {
            bool is;
            double v = metric(sb_str(&body), gauges[k].name, &is);
            if (is && (gauges[k].wants_one ? v < 1 : v > 0)) {
                fail(check.p, gauges[k].mend, "%s (%s %g)", gauges[k].text, gauges[k].name, v);
                bad++;
            }
        }
        if (bad == 0)
            ok(check.p, "%s: nothing stands out", l->list[i]);
    }
    sb_free(&check);
    sb_free(&body);
}

static void check_daemon(const char *which, const struct config_listen *l, const struct config_listen *metrics, const struct config_tls *tls,
                         const char *public_url)
{
    struct strbuf check = {0};

    sb_addf(&check, "certificate.%s", which);
    check_certificate(check.p, tls, public_url);
    sb_free(&check);
    for (size_t i = 0; i < l->n; i++)
        check_listener(which, l->list[i], tls->cert[0] != '\0');
    /* Behind TLS it is asked where monitoring asks it. */
    if (tls->cert[0] != '\0' && metrics->n > 0 && strncmp(metrics->list[0], "unix:", 5) != 0 && !port_is_zero(metrics->list[0]))
        check_ready(which, metrics->list[0], false);
    check_metrics(which, metrics);
}

/* ---- descriptors, directories ----------------------------------------------------------------------------------------------- */

static void check_descriptors(void)
{
    struct rlimit files = {0};
    uint64_t wanted = d.cfg->limits.connections + DESCRIPTORS_RESERVE;

    if (getrlimit(RLIMIT_NOFILE, &files) != 0)
        return;
    if (files.rlim_max < wanted)
        warn("descriptors", "raise LimitNOFILE (ulimit -n), or lower limits.connections", "a process like this one may open %llu files, limits.connections alone is %llu: it will be cut",
             (unsigned long long)files.rlim_max, (unsigned long long)d.cfg->limits.connections);
    else
        ok("descriptors", "%llu", (unsigned long long)files.rlim_max);
}

static void check_directory(const char *name, const char *path, const char *what)
{
    struct stat st;

    if (path[0] == '\0')
        return;
    if (stat(path, &st) != 0)
        fail(name, "make the directory, owned by the daemons' user", "%s: %s", path, strerror(errno));
    else if (!S_ISDIR(st.st_mode))
        fail(name, "name a directory", "%s is no directory", path);
    else if (access(path, W_OK) != 0)
        fail(name, "give it to the daemons' user", "%s: %s", path, strerror(errno));
    else
        check_space(name, path, what, 0);
}

static void check_log(void)
{
    const char *path = d.cfg->log.access_path;

    if (path[0] != '/')
        return;
    char *directory = mem_strdup(path);
    *strrchr(directory, '/') = '\0';
    check_directory("disk.log", directory[0] != '\0' ? directory : "/", "the access log");
    mem_free(directory);
}

/* ---- the whole -------------------------------------------------------------------------------------------------------------- */

static void check_all(const char *path)
{
    check_configuration(path);
    if (d.cfg == NULL)
        return;
    check_user();
    check_keys();
    if (d.is_admin)
        check_store();
    check_redis();
    if (d.is_admin) {
        check_store_clock();
        check_upstreams();
        check_daemon("admin", &d.cfg->admin.listen, &d.cfg->admin.metrics_listen, &d.cfg->admin.tls, d.cfg->admin.public_url);
    }
    if (d.is_proxy) {
        check_daemon("proxy", &d.cfg->proxy.listen, &d.cfg->proxy.metrics_listen, &d.cfg->proxy.tls, d.cfg->proxy.public_url);
        check_directory(d.cfg->proxy.blob_cache.path[0] != '\0' ? "disk.blob_cache" : "disk.spool",
                        d.cfg->proxy.blob_cache.path[0] != '\0' ? d.cfg->proxy.blob_cache.path : d.cfg->proxy.spool_path, "blobs");
    }
    check_descriptors();
    check_log();
}

int doctor_command(int argc, char **argv)
{
    const char *path = NULL;

    d.is_admin = d.is_proxy = true;
    for (int i = 0; i < argc; i++) {
        if (strcmp(argv[i], "--config") == 0 && i + 1 < argc)
            path = argv[++i];
        else if (strcmp(argv[i], "--json") == 0)
            cli.json = true;
        else if (strcmp(argv[i], "--only") == 0 && i + 1 < argc && (strcmp(argv[i + 1], "admin") == 0 || strcmp(argv[i + 1], "proxy") == 0)) {
            d.is_admin = strcmp(argv[++i], "admin") == 0;
            d.is_proxy = !d.is_admin;
        } else {
            die(EXIT_USAGE, "doctor [--config FILE] [--only admin|proxy] [--json], not \"%s\"", argv[i]);
        }
    }
    d.list = jv_array();
    check_all(path);
    if (cli.json) {
        struct jv *v = jv_object();
        struct strbuf b = {0};
        jv_set(v, "checks", d.list);
        jv_set_int(v, "ok", d.count[CHECK_OK]);
        jv_set_int(v, "warn", d.count[CHECK_WARN]);
        jv_set_int(v, "fail", d.count[CHECK_FAIL]);
        jv_dump(v, &b);
        puts(b.p);
        sb_free(&b);
        jv_free(v);
    } else {
        printf("%u ok, %u warn, %u fail\n", d.count[CHECK_OK], d.count[CHECK_WARN], d.count[CHECK_FAIL]);
        jv_free(d.list);
    }
    store_close(&d.store);
    cache_sync_free(&d.redis);
    if (d.keys != NULL)
        keyring_free(d.keys);
    config_unref(&d.cfg);
    return d.count[CHECK_FAIL] > 0 ? EXIT_FAILED : EXIT_OK;
}
