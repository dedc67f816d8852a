/* The configuration: what is accepted, what is refused and how it is named, and that the sample says what the table says. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "pullgate/config.h"
#include "pullgate/mem.h"

static char dir[] = "/tmp/pullgate-config-XXXXXX";
static char path[128], secret[128];

static void write_file(const char *name, const char *text, size_t n)
{
    FILE *f = fopen(name, "w");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

static enum err load(const char *yaml, struct config **ret, struct error *reterr)
{
    write_file(path, yaml, strlen(yaml));
    return config_load(path, ret, reterr);
}

static struct config *load_good(const char *yaml)
{
    struct config *c = NULL;
    struct error err = {.text = ""};
    if (load(yaml, &c, &err))
        fail_msg("%s", err.text);
    return c;
}

static void defaults(void **state)
{
    (void)state;
    struct config *c = load_good("");
    assert_int_equal(c->proxy.listen.n, 1);
    assert_string_equal(c->proxy.listen.list[0], "127.0.0.1:5080");
    assert_string_equal(c->admin.listen.list[0], "127.0.0.1:5090");
    assert_string_equal(c->proxy.challenge, "basic");
    assert_int_equal(c->proxy.workers, 0);
    assert_int_equal(c->proxy.blob_cache.max_bytes, 50ull << 30);
    assert_int_equal(c->cache.max_staleness_ms, 5000);
    assert_int_equal(c->cache.grace_when_cache_is_down_ms, 60000);
    assert_int_equal(c->limits.head_bytes, 16384);
    assert_int_equal(c->limits.blob_max_duration_ms, 7200000);
    assert_int_equal(c->limits.auth_failures_per_minute, 30);
    assert_int_equal(c->limits.memory_bytes, 0);
    assert_string_equal(c->store.url, "sqlite:///var/lib/pullgate/pullgate.db");
    assert_string_equal(c->redis.password, "");
    assert_string_equal(c->proxy.tls.cert, "");
    config_unref(&c);
    assert_null(c);
}

/* The shape of DESIGN section 5, flow and block style, one address as a scalar. */
static void shape(void **state)
{
    (void)state;
    struct config *c = load_good(
        "proxy:  {listen: [\"127.0.0.1:0\", '[::1]:5080', unix:/run/p.sock], tls: {cert: , key: }, public_url: https://r.example/, "
        "workers: 3, blob_cache: {path: /var/cache, max_bytes: 1GiB}, metrics_listen: }\n"
        "admin:\n  listen: \"*:5090\"\n  tls:\n  bootstrap_token_file: /etc/token\n"
        "store:  {url: \"postgresql://u:p@db/x\"}\n"
        "redis:  {url: \"unix:///run/redis.sock?db=1\"}\n"
        "keys: {path: /keys}\n"
        "cache:  {max_staleness: 250ms, grace_when_cache_is_down: 0s, hold_on_unknown: 1s, tag_freshness: 2m}\n"
        "limits: {connections: 5, head_deadline: 300ms, manifest_size: 1MiB, blob_max_duration: 1d}\n"
        "log:\n");
    assert_int_equal(c->proxy.listen.n, 3);
    assert_string_equal(c->proxy.listen.list[1], "[::1]:5080");
    assert_string_equal(c->proxy.public_url, "https://r.example");
    assert_int_equal(c->proxy.workers, 3);
    assert_string_equal(c->proxy.blob_cache.path, "/var/cache");
    assert_int_equal(c->proxy.blob_cache.max_bytes, 1ull << 30);
    assert_int_equal(c->proxy.metrics_listen.n, 0);
    assert_int_equal(c->admin.listen.n, 1);
    assert_string_equal(c->admin.listen.list[0], "*:5090");
    assert_int_equal(c->cache.max_staleness_ms, 250);
    assert_int_equal(c->cache.grace_when_cache_is_down_ms, 0);
    assert_int_equal(c->cache.tag_freshness_ms, 120000);
    assert_int_equal(c->limits.connections, 5);
    assert_int_equal(c->limits.head_deadline_ms, 300);
    assert_int_equal(c->limits.manifest_bytes, 1048576);
    assert_int_equal(c->limits.blob_max_duration_ms, 86400000);
    config_unref(&c);
}

/* Each refusal names line and key, and leaves nothing behind. */
static void refusals(void **state)
{
    static const struct {
        const char *yaml, *field, *text;
    } cases[] = {
        {"proxy:\n  lisen: x\n", "proxy.lisen", ":2: proxy.lisen: unknown key; did you mean proxy.listen?"},
        {"nonsense: {a: b}\n", "nonsense", ":1: nonsense: unknown key"},
        {"proxy:\n  tls:\n    cret: /x\n", "proxy.tls.cret", ":3: proxy.tls.cret: unknown key"},
        {"limits:\n\n  head_deadline: soon\n", "limits.head_deadline", ":3: limits.head_deadline: "},
        {"limits: {head_deadline: 10}\n", "limits.head_deadline", ":1: limits.head_deadline: "},
        {"limits:\n  head_deadline: 1d\n", "limits.head_deadline", "is not between 100ms and 300000ms"},
        {"limits:\n  connections: -1\n", "limits.connections", ":2: limits.connections: \"-1\" is no number"},
        {"limits:\n  connections: [1]\n", "limits.connections", "expected one value"},
        {"limits:\n  connections: 1\n  connections: 2\n", "limits.connections", ":3: limits.connections: given twice"},
        {"limits:\n  manifest_size: 4MB\n", "limits.manifest_size", ":2: limits.manifest_size: "},
        {"limits: {buffer_low: 256KiB, buffer_high: 256KiB}\n", "limits.buffer_low", "must be below"},
        {"proxy:\n  workers: many\n", "proxy.workers", "is neither auto nor a number"},
        {"proxy:\n  challenge: digest\n", "proxy.challenge", "is none of basic|bearer"},
        {"proxy:\n  listen: [127.0.0.1:5080, 5081]\n", "proxy.listen", "\"5081\": expected host:port"},
        {"proxy:\n  listen:\n    - localhost:1\n", "proxy.listen", ":3: proxy.listen: "},
        {"proxy:\n  listen: 127.0.0.1:70000\n", "proxy.listen", "expected host:port"},
        {"proxy:\n  listen: '[127.0.0.1]:1'\n", "proxy.listen", "expected host:port"},
        {"proxy:\n  listen: unix:rel\n", "proxy.listen", "unix:/path"},
        {"proxy:\n  listen: {a: b}\n", "proxy.listen", "expected a list"},
        {"proxy:\n  trusted_proxies: 10.0.0.0/33\n", "proxy.trusted_proxies", "prefix length"},
        {"proxy:\n  trusted_proxies: elsewhere\n", "proxy.trusted_proxies", "expected a network"},
        {"proxy:\n  proxy_protocol: maybe\n", "proxy.proxy_protocol", "none of off|accepted|required"},
        {"proxy:\n  proxy_protocol: accepted\n", "proxy.proxy_protocol", "trusted_proxies is empty"},
        {"admin:\n  proxy_protocol: required\n", "admin.proxy_protocol", "trusted_proxies is empty"},
        {"admin:\n  forwarded_field: x-real-ip\n", "admin.forwarded_field", "none of x-forwarded-for|forwarded|off"},
        {"proxy:\n  public_url: registry.example\n", "proxy.public_url", "expected a URL"},
        {"proxy:\n  public_url: https://r.example/x\n", "proxy.public_url", "scheme, host and port only"},
        {"proxy:\n  tls: {cert: /c.pem}\n", "proxy.tls.key", "cert and key go together"},
        {"proxy:\n  tls: {cert: c.pem, key: /k}\n", "proxy.tls.cert", "absolute path"},
        {"proxy:\n  tls: {min_version: 1.1}\n", "proxy.tls.min_version", "none of 1.2|1.3"},
        {"proxy: 5\n", "proxy", ":1: proxy: expected keys below it"},
        {"redis:\n  url: http://secret@x\n", "redis.url", ":2: redis.url: expected redis://"},
        {"store:\n  url: mysql://x\n", "store.url", "expected sqlite:///path"},
        {"store:\n  url: sqlite://relative.db\n", "store.url", "absolute"},
        {"admin:\n  time_zone: Mars/Base\n", "admin.time_zone", "no IANA time zone"},
        {"admin:\n  vendor_slug: A\n", "admin.vendor_slug", "expected 1 to 63"},
        {"redis:\n  password_file: /nonexistent/secret\n", "redis.password", ":2: redis.password: /nonexistent/secret: No such file"},
        {"redis:\n  password_file: rel\n", "redis.password_file", "absolute path"},
        {"redis:\n  username_file: /x\n", "redis.username_file", "unknown key"},
        {"- a\n- b\n", "", ":1: expected sections"},
        {"proxy: &a {workers: 1}\nadmin: *a\n", "", "anchors and aliases"},
        {"proxy: {workers: 1\n", "", ":2: "},
        {"---\nproxy:\n---\nadmin:\n", "", "more than one document"},
        {"proxy:\n\tworkers: 1\n", "", ":2: "},
        {"log: {level: loud}\n", "log.level", "none of debug|info|warn|error"},
        {"log:\n  access_path: \"a\\0b\"\n", "log.access_path", "NUL"},
        {"? {a: b}\n: c\n", "", "expected a key"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct config *c = NULL;
        struct error err = {.text = ""};
        enum err e = load(cases[i].yaml, &c, &err);
        if (e != ERR_INVALID || c)
            fail_msg("accepted: %s", cases[i].yaml);
        if (strncmp(err.text, path, strlen(path)) || !strstr(err.text, cases[i].text) || strcmp(err.field, cases[i].field))
            fail_msg("%s\n   -> [%s] %s", cases[i].yaml, err.field, err.text);
        assert_null(strstr(err.text, "secret@"));
    }
}

static void missing_file(void **state)
{
    struct config *c = NULL;
    struct error err;
    (void)state;
    assert_int_equal(config_load("/nonexistent/pullgate.yaml", &c, &err), ERR_INVALID);
    assert_non_null(strstr(err.text, "/nonexistent/pullgate.yaml: No such file"));
    assert_int_equal(config_load("/tmp", &c, &err), ERR_INVALID);
    assert_non_null(strstr(err.text, "is a directory"));
}

static void environment(void **state)
{
    struct config *c = NULL;
    struct error err;
    (void)state;
    setenv("PULLGATE_PROXY_LISTEN", "127.0.0.1:1, 127.0.0.1:2", 1);
    setenv("PULLGATE_PROXY_BLOB_CACHE_PATH", "/from/env", 1);
    setenv("PULLGATE_CACHE_MAX_STALENESS", "7s", 1);
    setenv("PULLGATE_LIMITS_DRAIN", "", 1);
    c = load_good("proxy: {listen: '127.0.0.1:9', blob_cache: {path: /from/file}}\ncache: {max_staleness: 9s}\nlimits: {drain: 4s}\n");
    assert_int_equal(c->proxy.listen.n, 2);
    assert_string_equal(c->proxy.listen.list[1], "127.0.0.1:2");
    assert_string_equal(c->proxy.blob_cache.path, "/from/env");
    assert_int_equal(c->cache.max_staleness_ms, 7000);
    assert_int_equal(c->limits.drain_ms, 4000);
    config_unref(&c);
    setenv("PULLGATE_CACHE_MAX_STALENESS", "never", 1);
    assert_int_equal(load("", &c, &err), ERR_INVALID);
    assert_non_null(strstr(err.text, "environment PULLGATE_CACHE_MAX_STALENESS: cache.max_staleness: "));
    unsetenv("PULLGATE_CACHE_MAX_STALENESS");
    unsetenv("PULLGATE_PROXY_LISTEN");
    unsetenv("PULLGATE_PROXY_BLOB_CACHE_PATH");
    unsetenv("PULLGATE_LIMITS_DRAIN");
}

static void secrets(void **state)
{
    char yaml[300];
    struct strbuf b = {0};
    (void)state;
    write_file(secret, "s3cret\n", 7);
    snprintf(yaml, sizeof yaml,
             "redis:\n  password: other\n  password_file: %s\n  url: redis://:hidden1@h:1/0\nstore:\n  url: "
             "postgresql://u:hidden2@db/x?password=hidden3\n",
             secret);
    struct config *c = load_good(yaml);
    assert_string_equal(c->redis.password, "s3cret");
    config_show(c, &b);
    assert_null(strstr(b.p, "s3cret"));
    assert_null(strstr(b.p, "hidden"));
    assert_non_null(strstr(b.p, "url: \"redis://:***@h:1/0\""));
    assert_non_null(strstr(b.p, "url: \"postgresql://u:***@db/x?password=***\""));
    config_unref(&c);
    sb_free(&b);
    setenv("PULLGATE_REDIS_PASSWORD_FILE", secret, 1);
    c = load_good("redis: {password: other}\n");
    assert_string_equal(c->redis.password, "s3cret");
    config_unref(&c);
    unsetenv("PULLGATE_REDIS_PASSWORD_FILE");
    setenv("PULLGATE_REDIS_PASSWORD", "direct", 1); /* the environment wins over the file's password_file */
    c = load_good(yaml);
    assert_string_equal(c->redis.password, "direct");
    config_unref(&c);
    unsetenv("PULLGATE_REDIS_PASSWORD");
}

/* What is shown, loaded again, is shown the same; so is the sample, and the sample with every key uncommented is the defaults. */
static void round_trip(void **state)
{
    struct strbuf first = {0}, again = {0}, sample = {0};
    (void)state;
    struct config *c = load_good("proxy: {listen: [':0', 'unix:/a \"b\"'], workers: 2}\nlimits: {drain: 1500ms, memory: 3GiB}\n");
    config_show(c, &first);
    config_unref(&c);
    c = load_good(first.p);
    config_show(c, &again);
    config_unref(&c);
    assert_string_equal(first.p, again.p);

    sb_reset(&first);
    c = load_good("");
    config_show(c, &first);
    config_unref(&c);
    config_sample(&sample);
    for (int uncommented = 0; uncommented < 2; uncommented++) {
        c = load_good(sample.p);
        sb_reset(&again);
        config_show(c, &again);
        config_unref(&c);
        assert_string_equal(first.p, again.p);
        size_t n = 0;
        for (size_t i = 0; i < sample.n; i++) /* "#key" is a key, "# text" is a comment; an empty KEY_file is none */
            if (sample.p[i] != '#' || sample.p[i + 1] == ' ')
                sample.p[n++] = sample.p[i];
        sample.p[sample.n = n] = '\0';
    }
    sb_free(&first);
    sb_free(&again);
    sb_free(&sample);
}

static void needs_restart(void **state)
{
    struct strbuf b = {0};
    (void)state;
    struct config *x = load_good(""), *y = load_good("log: {level: debug}\ncache: {max_staleness: 4s}\n");
    config_needs_restart(x, y, &b);
    assert_int_equal(b.n, 0);
    config_unref(&y);
    y = load_good("proxy: {listen: ':1', workers: 2}\nkeys: {path: /k}\n");
    config_needs_restart(x, y, &b);
    assert_string_equal(b.p, "proxy.listen, proxy.workers, keys.path");
    config_unref(&x);
    config_unref(&y);
    sb_free(&b);
}

/* conf/pullgate.yaml is the sample. PULLGATE_WRITE_SAMPLE=path writes it. */
static void sample_file(void **state)
{
    struct strbuf b = {0};
    (void)state;
    config_sample(&b);
    const char *target = getenv("PULLGATE_WRITE_SAMPLE");
    if (target)
        write_file(target, b.p, b.n);
    char name[] = __FILE__; /* …/tests/unit/test_config.c */
    char *tail = strstr(name, "tests/unit/");
    assert_non_null(tail);
    *tail = '\0';
    char file[512];
    snprintf(file, sizeof file, "%sconf/pullgate.yaml", name);
    FILE *f = fopen(file, "r");
    if (!f)
        fail_msg("%s is missing", file);
    char *have = mem_zalloc(b.n + 2);
    size_t n = fread(have, 1, b.n + 1, f);
    fclose(f);
    if (n != b.n || memcmp(have, b.p, n))
        fail_msg("%s is not what config_sample() says; write it with PULLGATE_WRITE_SAMPLE=%s", file, file);
    mem_free(have);
    sb_reset(&b);
    config_reference(&b);
    assert_non_null(strstr(b.p, "| `redis.password`, `…_file` | `PULLGATE_REDIS_PASSWORD`, `…_FILE` |"));
    sb_free(&b);
}

static int setup(void **state)
{
    (void)state;
    if (!mkdtemp(dir))
        return -1;
    snprintf(path, sizeof path, "%s/pullgate.yaml", dir);
    snprintf(secret, sizeof secret, "%s/secret", dir);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    unlink(path);
    unlink(secret);
    return rmdir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults),     cmocka_unit_test(shape),         cmocka_unit_test(refusals),
        cmocka_unit_test(missing_file), cmocka_unit_test(environment),   cmocka_unit_test(secrets),
        cmocka_unit_test(round_trip),   cmocka_unit_test(needs_restart), cmocka_unit_test(sample_file),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
