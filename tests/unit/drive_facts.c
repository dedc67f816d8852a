/* Plays the admin daemon for a projection of many customers, for measuring what their number costs a proxy.
 *
 *   drive_facts config.yaml N UPSTREAM_URL REPOSITORY [SECRETS]
 *
 * Writes N customers with one license and one credential each, and one repository (public name shop/api), into the Redis of
 * the configuration; prints "ready" and then SECRETS of the credentials' secrets (default 1000), spread over all, one a line; then renews
 * the root every second until standard input closes. Keys are made in keys.path when they are not there. */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "pullgate/cache.h"
#include "pullgate/clock.h"
#include "pullgate/config.h"
#include "pullgate/credential.h"
#include "pullgate/log.h"
#include "pullgate/mem.h"
#include "pullgate/projection.h"

#define PAIRS 500 /* of one MSET */
#define EPOCH 1u

static struct keyring *keys;
static struct cache_sync *redis;
static struct strbuf buckets[PROJECTION_BUCKETS];
static struct strbuf set_keys[PAIRS], set_values[PAIRS];
static size_t n_set;

static void redis_do(const struct str *argv, size_t argc)
{
    const struct cache_reply *r;
    struct error error = {0};

    if (cache_sync_command(redis, argv, argc, &r, &error)) {
        fprintf(stderr, "redis: %s\n", error.text);
        exit(1);
    }
}

static void set_flush(void)
{
    static struct str argv[1 + 2 * PAIRS];

    argv[0] = S("MSET");
    for (size_t i = 0; i < n_set; i++) {
        argv[1 + 2 * i] = sb_str(&set_keys[i]);
        argv[2 + 2 * i] = sb_str(&set_values[i]);
    }
    if (n_set)
        redis_do(argv, 1 + 2 * n_set);
    n_set = 0;
}

static void set_wrapped(struct strbuf *key, struct str payload)
{
    sb_reset(&set_keys[n_set]);
    sb_reset(&set_values[n_set]);
    sb_add(&set_keys[n_set], sb_str(key));
    projection_wrap(keys, sb_str(key), EPOCH, payload, &set_values[n_set]);
    if (++n_set == PAIRS)
        set_flush();
}

static void fact_put(const char *name, struct str payload)
{
    static struct strbuf key;

    sb_reset(&key);
    projection_fact_key(str_c(name), &key);
    set_wrapped(&key, payload);
    sb_addf(&buckets[projection_bucket_of(str_c(name))], "%u %s\n", EPOCH, name);
}

struct line {
    const char *p;
    size_t n;
};

static int line_cmp(const void *x, const void *y)
{
    const struct line *a = x, *b = y;
    size_t n = a->n < b->n ? a->n : b->n;
    int c = memcmp(a->p + 2, b->p + 2, n - 2); /* behind the epoch, which is the same in all */
    return c ? c : (a->n > b->n) - (a->n < b->n);
}

/* Sorted by fact, as readers expect. */
static void bucket_put(unsigned number)
{
    static struct line *lines;
    static size_t cap;
    static struct strbuf key, sorted;
    struct strbuf *b = &buckets[number];
    size_t n = 0;

    for (const char *p = b->p, *end = b->p + b->n; b->n && p < end; n++) {
        const char *eol = memchr(p, '\n', (size_t)(end - p));
        if (n == cap) {
            cap = cap ? cap * 2 : 1024;
            lines = mem_realloc(lines, cap * sizeof *lines);
        }
        lines[n] = (struct line){p, (size_t)(eol - p) + 1};
        p = eol + 1;
    }
    if (n)
        qsort(lines, n, sizeof *lines, line_cmp);
    sb_reset(&sorted);
    sb_reset(&key);
    for (size_t i = 0; i < n; i++)
        sb_add(&sorted, (struct str){lines[i].p, lines[i].n});
    projection_bucket_key(number, &key);
    set_wrapped(&key, n ? sb_str(&sorted) : S(""));
    sb_free(b);
}

static void root_put(void)
{
    static struct projection_root root = {.epoch = EPOCH};
    struct strbuf payload = {0}, value = {0};

    root.time_ms = clock_now_ms();
    for (unsigned i = 0; i < PROJECTION_BUCKETS; i++)
        root.buckets[i] = EPOCH;
    projection_root_print(&root, &payload);
    projection_wrap(keys, S(PROJECTION_ROOT_KEY), root.epoch, sb_str(&payload), &value);
    redis_do((struct str[]){S("SET"), S(PROJECTION_ROOT_KEY), sb_str(&value)}, 3);
    sb_free(&payload);
    sb_free(&value);
}

static void customer_put(size_t i, struct strbuf *secrets, bool wanted)
{
    char secret[CREDENTIAL_TEXT_MAX], hash[CREDENTIAL_HASH_MAX], name[128];
    static struct strbuf doc;

    credential_new("pgc_", secret);
    credential_hash(keys, str_c(secret), hash);
    if (wanted)
        sb_addf(secrets, "%s\n", secret);
    sb_reset(&doc);
    sb_addf(&doc,
            "{\"id\":\"crd_%zu\",\"kind\":\"credential\",\"customer_id\":\"cus_%zu\",\"customer_slug\":\"c%zu\",\"vendor_id\":\"ven_1\",\"license_id\":\"\","
            "\"name\":\"ci\",\"expires_at\":0,\"allowed_cidrs\":[]}",
            i, i, i);
    snprintf(name, sizeof name, "k:%s", hash);
    fact_put(name, sb_str(&doc));
    sb_reset(&doc);
    sb_addf(&doc,
            "{\"customer_id\":\"cus_%zu\",\"customer_slug\":\"c%zu\",\"vendor_id\":\"ven_1\",\"disabled\":false,\"renew_url\":\"\",\"support_contact\":\"\","
            "\"licenses\":[{\"id\":\"lic_%zu\",\"name\":\"Prod\",\"application_id\":\"app_1\",\"application_slug\":\"shop\",\"status\":\"active\","
            "\"status_reason\":\"\",\"starts_at\":0,\"expires_at\":0,\"grace_days\":0,\"updates_until\":0,\"on_expiry\":\"block\",\"allowed_cidrs\":[],"
            "\"repositories\":[\"shop/api\"],\"upstream_credential_id\":\"\",\"quota_exceeded\":false,\"grants\":[{\"id\":\"grt_%zu\",\"selector\":\"range\","
            "\"value\":\"^1.0\",\"include_prerelease\":false,\"not_before\":0,\"not_after\":0,\"granted_at\":0,\"on_move\":\"follow\",\"repositories\":[],"
            "\"pins\":[]}]}]}",
            i, i, i, i);
    snprintf(name, sizeof name, "c:cus_%zu", i);
    fact_put(name, sb_str(&doc));
}

int main(int argc, char **argv)
{
    struct config *cfg;
    struct error error = {0};
    struct strbuf doc = {0}, secrets = {0};
    uint64_t n = 0, n_secrets = 1000;

    log_init("drive_facts", LOG_LEVEL_WARN);
    if (argc < 5 || !str_to_u64(str_c(argv[2]), &n) || n == 0 || (argc > 5 && !str_to_u64(str_c(argv[5]), &n_secrets))) {
        fprintf(stderr, "usage: drive_facts config.yaml N UPSTREAM_URL REPOSITORY [SECRETS]\n");
        return 2;
    }
    if (config_load(argv[1], &cfg, &error) || keyring_open(cfg->keys.path, true, &keys, &error)) {
        fprintf(stderr, "%s\n", error.text);
        return 1;
    }
    redis = cache_sync_new(cfg, 30000);
    redis_do((struct str[]){S("FLUSHALL")}, 1);
    uint64_t step = n_secrets && n > n_secrets ? n / n_secrets : 1;
    for (size_t i = 0; i < n; i++)
        customer_put(i, &secrets, i % step == 0);
    sb_addf(&doc,
            "{\"id\":\"rep_1\",\"name\":\"shop/api\",\"application_id\":\"app_1\",\"application_slug\":\"shop\",\"vendor_id\":\"ven_1\",\"upstream_id\":\"ups_1\","
            "\"upstream_repository\":\"%s\",\"kind\":\"image\",\"tag_template\":\"{version}\"}",
            argv[4]);
    fact_put("r:shop/api", sb_str(&doc));
    fact_put("t:rep_1", S("{\"repository_id\":\"rep_1\",\"tags\":{}}"));
    sb_reset(&doc);
    sb_addf(&doc,
            "{\"id\":\"ups_1\",\"url\":\"%s\",\"username\":\"\",\"password_sealed\":\"\",\"ca\":\"\",\"redirects\":\"follow\",\"redirect_hosts\":[],\"realm\":\"\"}",
            argv[3]);
    fact_put("u:ups_1", sb_str(&doc));
    for (unsigned i = 0; i < PROJECTION_BUCKETS; i++)
        bucket_put(i);
    set_flush();
    root_put();
    printf("ready\n%s", secrets.n ? secrets.p : "");
    printf("end\n");
    fflush(stdout);
    for (struct pollfd in = {.fd = STDIN_FILENO, .events = POLLIN}; poll(&in, 1, 1000) == 0;)
        root_put();
    for (size_t i = 0; i < PAIRS; i++) {
        sb_free(&set_keys[i]);
        sb_free(&set_values[i]);
    }
    sb_free(&doc);
    sb_free(&secrets);
    cache_sync_free(&redis);
    keyring_free(keys);
    config_unref(&cfg);
    return 0;
}
