/* The whole proxy in one process: clients on a unix socket, the edge, routing, sign-in, facts, the decision, content, blobs and the relay
 * as they are; under them a model of Redis (facts wrapped with our keys) and an upstream that does what the input's script says.
 *
 * The input is a sequence of operations of OP_BYTES bytes and a patch: requests on four connections, raw bytes, closes, changes of
 * licenses, faults of Redis and of the upstream. Any bytes are a sequence; the mutator of its own keeps operations whole.
 *
 * What must hold, whatever the sequence:
 *   - a client never receives a canary: every manifest and blob carries its own mark, and what a client may have follows from a table here;
 *   - what is answered is HTTP with a status that this proxy has; a complete 200 for a digest is that digest's bytes;
 *   - where nothing was broken on purpose: what is granted is served, what is not is 401, 403 or 404, and nothing is a 5xx or no answer;
 *   - a change of a license holds from the next request on. */
#include "../../proxy/worker.c"

#include "fuzz.h"

#include <event2/event.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "pullgate/clock.h"
#include "pullgate/credential.h"
#include "pullgate/fetch.h"
#include "pullgate/projection.h"

#include "guard.h"

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed);
size_t LLVMFuzzerCustomCrossOver(const uint8_t *a, size_t na, const uint8_t *b, size_t nb, uint8_t *out, size_t max_out, unsigned seed);

#define JUMP_S 240 /* CH_TIME; less than what makes a clock absurd */
#define PUBLIC_URL "http://registry.example"
#define UPSTREAM "http://up.example"

/* ---- the vendor's content --------------------------------------------------------------------------------------------------- */

enum { API10 = 1, API11 = 2, API20 = 4, WEB10 = 8, API_ALL = 7 };
static const struct repo_of {
    const char *public_name, *upstream, *id;
    unsigned versions;
} REPOS[] = {{"shop/api", "acme/api", "rep_api", API_ALL}, {"shop/web", "acme/web", "rep_web", WEB10}};

struct item {
    struct digest digest;
    char text[DIGEST_TEXT_MAX];
    struct strbuf bytes;
    const char *type; /* of a manifest; NULL: a blob */
    unsigned versions;
};
#define ITEMS_MAX 40
static struct item items[ITEMS_MAX];
static size_t n_items;

struct tag {
    const char *name;
    size_t repo, item;
    bool is_version;
};
static struct tag tags[8];
static size_t n_tags;
static char sig_tags[2][96];

#define INDEX "application/vnd.oci.image.index.v1+json"
#define MANIFEST "application/vnd.oci.image.manifest.v1+json"

static size_t item_end(struct item *it, const char *type, unsigned versions)
{
    it->type = type;
    it->versions = versions;
    it->digest.alg = DIGEST_SHA256;
    seal_sha256(sb_str(&it->bytes), it->digest.bytes);
    digest_text(&it->digest, it->text);
    return n_items++;
}

static size_t blob_make(unsigned versions, size_t size)
{
    struct item *it = &items[n_items];
    sb_addf(&it->bytes, "CANARY-%02zu-", n_items);
    while (it->bytes.n < size)
        sb_addf(&it->bytes, "%zu.%zu,", n_items, it->bytes.n);
    return item_end(it, NULL, versions);
}

static void descriptor(struct strbuf *b, const char *type, size_t i)
{
    sb_addf(b, "{\"mediaType\":\"%s\",\"digest\":\"%s\",\"size\":%zu}", items[i].type ? items[i].type : type, items[i].text, items[i].bytes.n);
}

static size_t manifest_make(unsigned versions, const size_t *blobs, size_t n, const struct item *subject)
{
    struct item *it = &items[n_items];
    sb_addf(&it->bytes, "{\"schemaVersion\":2,\"mediaType\":\"" MANIFEST "\",\"config\":");
    descriptor(&it->bytes, "application/vnd.oci.image.config.v1+json", blobs[0]);
    sb_addc(&it->bytes, ",\"layers\":[");
    for (size_t i = 1; i < n; i++) {
        if (i > 1)
            sb_addc(&it->bytes, ",");
        descriptor(&it->bytes, "application/vnd.oci.image.layer.v1.tar", blobs[i]);
    }
    sb_addc(&it->bytes, "]");
    if (subject)
        sb_addf(&it->bytes, ",\"artifactType\":\"application/x-sig\",\"subject\":{\"mediaType\":\"%s\",\"digest\":\"%s\",\"size\":%zu}", subject->type,
                subject->text, subject->bytes.n);
    sb_addf(&it->bytes, ",\"annotations\":{\"c\":\"CANARY-%02zu-\"}}", n_items);
    return item_end(it, MANIFEST, versions);
}

static size_t index_make(unsigned versions, const size_t *children, size_t n)
{
    struct item *it = &items[n_items];
    sb_addf(&it->bytes, "{\"schemaVersion\":2,\"mediaType\":\"" INDEX "\",\"manifests\":[");
    for (size_t i = 0; i < n; i++) {
        if (i)
            sb_addc(&it->bytes, ",");
        descriptor(&it->bytes, "", children[i]);
    }
    sb_addf(&it->bytes, "],\"annotations\":{\"c\":\"CANARY-%02zu-\"}}", n_items);
    return item_end(it, INDEX, versions);
}

static void tag_make(const char *name, size_t repo, size_t item, bool is_version)
{
    tags[n_tags++] = (struct tag){name, repo, item, is_version};
}

static void content_make(void)
{
    size_t shared = blob_make(API_ALL | WEB10, 700);
    size_t a = manifest_make(API10, (size_t[]){blob_make(API10, 60), shared, blob_make(API10, 900)}, 3, NULL);
    size_t b = manifest_make(API10, (size_t[]){blob_make(API10, 61), shared, blob_make(API10, 20)}, 3, NULL);
    size_t v10 = index_make(API10, (size_t[]){a, b}, 2);
    size_t v11 = manifest_make(API11, (size_t[]){blob_make(API11, 62), shared, blob_make(API11, 5000), blob_make(API11, 150000)}, 4, NULL);
    size_t c = manifest_make(API20, (size_t[]){blob_make(API20, 63), shared, blob_make(API20, 3000)}, 3, NULL);
    size_t v20 = index_make(API20, (size_t[]){c}, 1);
    size_t web = manifest_make(WEB10, (size_t[]){blob_make(WEB10, 64), shared, blob_make(WEB10, 100)}, 3, NULL);
    size_t s10 = manifest_make(API10, (size_t[]){blob_make(API10, 30), blob_make(API10, 31)}, 2, &items[v10]);
    size_t s20 = manifest_make(API20, (size_t[]){blob_make(API20, 32), blob_make(API20, 33)}, 2, &items[v20]);

    snprintf(sig_tags[0], sizeof sig_tags[0], "sha256-%s.sig", items[v10].text + 7);
    snprintf(sig_tags[1], sizeof sig_tags[1], "sha256-%s.sig", items[v20].text + 7);
    tag_make("1.0.0", 0, v10, true);
    tag_make("1.1.0", 0, v11, true);
    tag_make("2.0.0", 0, v20, true);
    tag_make("1.0.0", 1, web, true);
    tag_make(sig_tags[0], 0, s10, false);
    tag_make(sig_tags[1], 0, s20, false);
}

/* ---- customers, and what may change ------------------------------------------------------------------------------------------ */

enum { CH_ACME_REVOKED, CH_BETA_NARROW, CH_WEB_DISABLED, CH_REINSTATED, CH_UNEXPIRED, CH_WEB_GONE, CH_KEY_GONE, CH_TIME, CHANGES };
#define HAS(bit) ((changed >> (bit) & 1) != 0)
static unsigned changed;
static int64_t begun_s;          /* when this run began */
static uint64_t epoch;           /* newest */
static uint64_t change_epoch[CHANGES];

enum { NOBODY, ACME, BETA, WEB, REVOKED, EXPIRED, BOTH, BOUND, FARAWAY, OLDCRED, SOON, PEOPLE };
static char secrets[PEOPLE][CREDENTIAL_TEXT_MAX], hashes[PEOPLE][CREDENTIAL_HASH_MAX], basics[PEOPLE][128];

static unsigned allowed_of(unsigned who)
{
    unsigned web = HAS(CH_WEB_GONE) ? 0 : WEB10;
    switch (who) {
    case ACME:
        return HAS(CH_ACME_REVOKED) || HAS(CH_KEY_GONE) ? 0 : API10 | API11;
    case BETA:
        return HAS(CH_BETA_NARROW) ? API10 : API20;
    case WEB:
        return HAS(CH_WEB_DISABLED) ? 0 : web;
    case REVOKED:
        return HAS(CH_REINSTATED) ? API_ALL : 0;
    case EXPIRED:
        return HAS(CH_UNEXPIRED) ? API_ALL : 0;
    case BOTH:
        return API10 | API11 | web;
    case BOUND:
        return web;
    case SOON:
        return HAS(CH_TIME) ? 0 : API_ALL;
    default:
        return 0;
    }
}

static void license_json(struct strbuf *b, const char *id, const char *repo, const char *status, int64_t expires, const char *cidrs, const char *grant)
{
    sb_addf(b,
            "{\"id\":\"%s\",\"name\":\"n\",\"application_id\":\"app_%s\",\"application_slug\":\"a\",\"status\":\"%s\",\"status_reason\":\"\",\"starts_at\":0,"
            "\"expires_at\":%lld,\"grace_days\":0,\"updates_until\":0,\"on_expiry\":\"block\",\"allowed_cidrs\":[%s],\"repositories\":[\"%s\"],"
            "\"upstream_credential_id\":\"\",\"quota_exceeded\":false,\"grants\":[{\"id\":\"grt_1\",%s,\"include_prerelease\":false,\"not_before\":0,"
            "\"not_after\":0,\"granted_at\":0,\"on_move\":\"follow\",\"repositories\":[],\"pins\":[]}]}",
            id, repo + 5, status, (long long)expires, cidrs, repo, grant);
}

#define ALL_GRANT "\"selector\":\"all\",\"value\":\"\""
static bool customer_json(unsigned who, struct strbuf *b)
{
    if (who == NOBODY || who == BOUND || who >= PEOPLE)
        return false;
    sb_addf(b, "{\"customer_id\":\"cus_%u\",\"customer_slug\":\"c%u\",\"vendor_id\":\"ven_1\",\"disabled\":%s,\"renew_url\":\"\",\"support_contact\":\"\",\"licenses\":[",
            who, who, who == WEB && HAS(CH_WEB_DISABLED) ? "true" : "false");
    switch (who) {
    case ACME:
        license_json(b, "lic_1", "shop/api", HAS(CH_ACME_REVOKED) ? "revoked" : "active", 0, "", "\"selector\":\"range\",\"value\":\"^1\"");
        break;
    case BETA:
        license_json(b, "lic_2", "shop/api", "active", 0, "",
                     HAS(CH_BETA_NARROW) ? "\"selector\":\"range\",\"value\":\">=1.0.0 <1.1.0\"" : "\"selector\":\"exact\",\"value\":\"2.0.0\"");
        break;
    case WEB:
        license_json(b, "lic_3", "shop/web", "active", 0, "", ALL_GRANT);
        break;
    case REVOKED:
        license_json(b, "lic_4", "shop/api", HAS(CH_REINSTATED) ? "active" : "revoked", 0, "", ALL_GRANT);
        break;
    case EXPIRED:
        license_json(b, "lic_5", "shop/api", "active", HAS(CH_UNEXPIRED) ? 0 : 1000000, "", ALL_GRANT);
        break;
    case BOTH:
        license_json(b, "lic_6", "shop/api", "active", 0, "", "\"selector\":\"glob\",\"value\":\"1.*\"");
        sb_addc(b, ",");
        license_json(b, "lic_7", "shop/web", "active", 0, "", ALL_GRANT);
        break;
    case SOON: /* over before the jump of CH_TIME lands */
        license_json(b, "lic_9", "shop/api", "active", begun_s + JUMP_S / 2, "", ALL_GRANT);
        break;
    default:
        license_json(b, "lic_8", "shop/api", "active", 0, who == FARAWAY ? "\"10.0.0.0/8\"" : "", ALL_GRANT);
        break;
    }
    sb_addc(b, "]}");
    return true;
}

/* Time goes forward by a jump, once in a run; the clock's own reading goes on under it (linked with --wrap). */
int64_t __wrap_clock_now_s(void);
int64_t __wrap_clock_now_ms(void);
int64_t __real_clock_now_s(void);
int64_t __real_clock_now_ms(void);

int64_t __wrap_clock_now_s(void)
{
    return __real_clock_now_s() + (HAS(CH_TIME) ? JUMP_S : 0);
}

int64_t __wrap_clock_now_ms(void)
{
    return __real_clock_now_ms() + (HAS(CH_TIME) ? JUMP_S * 1000 : 0);
}

/* ---- what stands in Redis ------------------------------------------------------------------------------------------------------- */

struct fact_row {
    char name[80];
    unsigned who, repo; /* by the first letter of the name */
};
static struct fact_row rows[2 * PEOPLE + 8];
static size_t n_rows;
static struct keyring *keys;

/* *ret_epoch 0: it does not exist. */
static void fact_now(const struct fact_row *f, struct strbuf *b, uint64_t *ret_epoch)
{
    static const int depends_c[PEOPLE] = {-1, CH_ACME_REVOKED, CH_BETA_NARROW, CH_WEB_DISABLED, CH_REINSTATED, CH_UNEXPIRED, -1, -1, -1, -1, -1};
    int on = -1;
    bool exists = true;

    sb_reset(b);
    switch (f->name[0]) {
    case 'k':
        on = f->who == ACME ? CH_KEY_GONE : -1;
        exists = !(f->who == ACME && HAS(CH_KEY_GONE));
        sb_addf(b,
                "{\"id\":\"crd_%u\",\"kind\":\"%s\",\"customer_id\":\"cus_%u\",\"customer_slug\":\"c\",\"vendor_id\":\"ven_1\",\"license_id\":\"%s\",\"name\":\"ci\","
                "\"expires_at\":%d,\"allowed_cidrs\":[]}",
                f->who, f->who == BOUND ? "license_key" : "credential", f->who == BOUND ? BOTH : f->who, f->who == BOUND ? "lic_7" : "",
                f->who == OLDCRED ? 1000 : 0);
        break;
    case 'c':
        on = depends_c[f->who];
        exists = customer_json(f->who, b);
        break;
    case 'r':
        on = f->repo == 1 ? CH_WEB_GONE : -1;
        exists = !(f->repo == 1 && HAS(CH_WEB_GONE));
        sb_addf(b,
                "{\"id\":\"%s\",\"name\":\"%s\",\"application_id\":\"app_%s\",\"application_slug\":\"a\",\"vendor_id\":\"ven_1\",\"upstream_id\":\"ups_1\","
                "\"upstream_repository\":\"%s\",\"kind\":\"image\",\"tag_template\":\"{version}\"}",
                REPOS[f->repo].id, REPOS[f->repo].public_name, REPOS[f->repo].public_name + 5, REPOS[f->repo].upstream);
        break;
    case 't':
        sb_addf(b, "{\"repository_id\":\"%s\",\"tags\":{}}", REPOS[f->repo].id);
        break;
    default:
        sb_addf(b, "{\"id\":\"ups_1\",\"url\":\"" UPSTREAM "\",\"username\":\"u\",\"password_sealed\":\"\",\"ca\":\"\",\"redirects\":\"follow\","
                   "\"redirect_hosts\":[\"cdn.example\"],\"realm\":\"\"}");
        break;
    }
    *ret_epoch = exists ? (on >= 0 && change_epoch[on] ? change_epoch[on] : 10) : 0;
}

static uint64_t bucket_epoch(unsigned bucket)
{
    uint64_t e = 10;
    for (size_t i = 0; i < n_rows; i++)
        if (projection_bucket_of(str_c(rows[i].name)) == bucket) {
            static const int depends_c[PEOPLE] = {-1, CH_ACME_REVOKED, CH_BETA_NARROW, CH_WEB_DISABLED, CH_REINSTATED, CH_UNEXPIRED, -1, -1, -1, -1, -1};
            int on = rows[i].name[0] == 'k' && rows[i].who == ACME ? CH_KEY_GONE
                     : rows[i].name[0] == 'c'                      ? depends_c[rows[i].who]
                     : rows[i].name[0] == 'r' && rows[i].repo == 1 ? CH_WEB_GONE
                                                                   : -1;
            if (on >= 0 && change_epoch[on] > e)
                e = change_epoch[on];
        }
    return e;
}

static int row_cmp(const void *a, const void *b)
{
    return strcmp(((const struct fact_row *)a)->name, ((const struct fact_row *)b)->name);
}

static void people_make(void)
{
    for (unsigned i = 1; i < PEOPLE; i++) {
        struct strbuf plain = {0}, b = {0};
        if (i == BOUND)
            license_key_new(secrets[i]);
        else
            credential_new("pgc_", secrets[i]);
        FUZZ_CHECK(credential_hash_presented(keys, str_c(secrets[i]), hashes[i]), "hash");
        sb_addf(&plain, "u%u:%s", i, secrets[i]);
        base64_encode(sb_str(&plain), &b);
        snprintf(basics[i], sizeof basics[i], "Basic %s", b.p);
        sb_free(&plain);
        sb_free(&b);
        rows[n_rows].who = i;
        snprintf(rows[n_rows++].name, sizeof rows[0].name, "k:%s", hashes[i]);
        if (i != BOUND) {
            rows[n_rows].who = i;
            snprintf(rows[n_rows++].name, sizeof rows[0].name, "c:cus_%u", i);
        }
    }
    for (unsigned r = 0; r < 2; r++) {
        rows[n_rows].repo = r;
        snprintf(rows[n_rows++].name, sizeof rows[0].name, "r:%s", REPOS[r].public_name);
        rows[n_rows].repo = r;
        snprintf(rows[n_rows++].name, sizeof rows[0].name, "t:%s", REPOS[r].id);
    }
    snprintf(rows[n_rows++].name, sizeof rows[0].name, "u:ups_1");
    qsort(rows, n_rows, sizeof rows[0], row_cmp);
}

enum { REDIS_GOOD, REDIS_AWAY, REDIS_FLIPPED, REDIS_NIL, REDIS_TYPE, REDIS_OLD, REDIS_SWAPPED, REDIS_UNSIGNED, REDIS_FAULTS };
static unsigned redis_fault;
static uint64_t root_epoch_served;
static unsigned activity; /* callbacks of the two models: something moves */

/* Closures that the proxy put there. */
static struct kept {
    struct strbuf key, value;
} kept[64];
static size_t n_kept;

static void redis_value(struct str key, struct strbuf *ret, bool *ret_exists)
{
    struct strbuf payload = {0}, name = {0};
    struct str rest;
    uint64_t e, n;

    *ret_exists = false;
    sb_reset(ret);
    if (str_eq_c(key, PROJECTION_ROOT_KEY)) {
        static struct projection_root root;
        root.epoch = epoch;
        root.time_ms = clock_now_ms();
        for (unsigned i = 0; i < PROJECTION_BUCKETS; i++)
            root.buckets[i] = 0;
        for (size_t i = 0; i < n_rows; i++) {
            unsigned b = projection_bucket_of(str_c(rows[i].name));
            root.buckets[b] = bucket_epoch(b);
        }
        projection_root_print(&root, &payload);
        projection_wrap(keys, key, epoch, sb_str(&payload), ret);
        root_epoch_served = epoch;
        *ret_exists = true;
    } else if (str_starts(key, S("pg:b:")) && str_to_u64(str_skip(key, 5), &n) && n < PROJECTION_BUCKETS) {
        bool any = false;
        for (size_t i = 0; i < n_rows; i++)
            if (projection_bucket_of(str_c(rows[i].name)) == n) {
                any = true;
                fact_now(&rows[i], &payload, &e);
                if (redis_fault == REDIS_OLD && e > 10)
                    e = 10;
                if (e)
                    sb_addf(&name, "%llu %s\n", (unsigned long long)e, rows[i].name);
            }
        if (any)
            projection_wrap(keys, key, redis_fault == REDIS_OLD ? 10 : bucket_epoch((unsigned)n), sb_str(&name), ret);
        *ret_exists = any;
    } else if (str_starts(key, S("pg:v:"))) {
        rest = str_skip(key, 5);
        for (size_t i = 0; i < n_rows; i++)
            if (str_eq_c(rest, rows[i].name)) {
                const struct fact_row *from = &rows[redis_fault == REDIS_SWAPPED ? (i + 1) % n_rows : i];
                unsigned was = changed;
                if (redis_fault == REDIS_OLD) /* what stood there before, rightly signed for its time */
                    changed &= 1u << CH_TIME;
                fact_now(from, &payload, &e);
                changed = was;
                if (redis_fault == REDIS_OLD)
                    e = 10;
                if (e == 0)
                    break;
                struct strbuf other = {0};
                projection_fact_key(str_c(from->name), &other);
                projection_wrap(keys, sb_str(&other), e, sb_str(&payload), ret);
                sb_free(&other);
                if (redis_fault == REDIS_UNSIGNED && ret->n > 20)
                    ret->p[10] = ret->p[10] == '0' ? '1' : '0';
                *ret_exists = true;
            }
    } else {
        for (size_t i = 0; i < n_kept; i++)
            if (str_eq(sb_str(&kept[redis_fault == REDIS_SWAPPED ? (i + 1) % n_kept : i].key), key)) {
                sb_add(ret, sb_str(&kept[i].value));
                *ret_exists = true;
            }
    }
    if (*ret_exists && redis_fault == REDIS_FLIPPED && ret->n && !str_eq_c(key, PROJECTION_ROOT_KEY))
        ret->p[ret->n / 2] ^= 1;
    sb_free(&payload);
    sb_free(&name);
}

/* The cache module's place (include/pullgate/cache.h). */
struct cache_op {
    struct cache *c;
    struct cache_op *next;
    struct strbuf argv[4];
    size_t argc;
    cache_cb *cb;
    void *ctx;
    bool dead;
};
struct cache {
    struct timer *t;
    struct cache_op *first, **last;
    void (*on_message)(void *ctx, struct str message);
    void *ctx;
};
static struct cache *the_cache;

static void op_free(struct cache_op *op)
{
    for (size_t i = 0; i < 4; i++)
        sb_free(&op->argv[i]);
    mem_free(op);
}

static void op_answer(struct cache_op *op)
{
    struct cache_reply r = {0}, list[3] = {{0}};
    struct strbuf values[3] = {{0}};
    struct str cmd = sb_str(&op->argv[0]);
    bool exists;

    if (redis_fault == REDIS_AWAY) {
        op->cb(op->ctx, ERR_UNAVAILABLE, NULL);
        return;
    }
    if (str_eq_c(cmd, "GET")) {
        redis_value(sb_str(&op->argv[1]), &values[0], &exists);
        if (exists && redis_fault == REDIS_NIL && !str_eq_c(sb_str(&op->argv[1]), PROJECTION_ROOT_KEY))
            exists = false;
        if (exists)
            r = (struct cache_reply){.type = redis_fault == REDIS_TYPE && !str_eq_c(sb_str(&op->argv[1]), PROJECTION_ROOT_KEY) ? CACHE_INTEGER : CACHE_STRING,
                                     .str = sb_str(&values[0])};
    } else if (str_eq_c(cmd, "MGET")) {
        r = (struct cache_reply){.type = CACHE_ARRAY, .items = list, .n = op->argc - 1};
        for (size_t i = 1; i < op->argc; i++) {
            redis_value(sb_str(&op->argv[i]), &values[i - 1], &exists);
            if (exists && redis_fault != REDIS_NIL)
                list[i - 1] = (struct cache_reply){.type = redis_fault == REDIS_TYPE ? CACHE_STATUS : CACHE_STRING, .str = sb_str(&values[i - 1])};
        }
    } else {
        if (str_eq_c(cmd, "SET") && n_kept < 64) {
            sb_add(&kept[n_kept].key, sb_str(&op->argv[1]));
            sb_add(&kept[n_kept].value, sb_str(&op->argv[2]));
            n_kept++;
        }
        r = (struct cache_reply){.type = CACHE_STATUS, .str = S("OK")};
    }
    op->cb(op->ctx, ERR_OK, &r);
    for (size_t i = 0; i < 3; i++)
        sb_free(&values[i]);
}

static void cache_tick(void *ctx)
{
    struct cache *c = ctx;
    struct cache_op *op = c->first;

    c->first = NULL; /* what is asked from now on is answered in a later round */
    c->last = &c->first;
    while (op) {
        struct cache_op *next = op->next;
        activity++;
        if (!op->dead && op->cb)
            op_answer(op);
        else if (!op->dead && redis_fault != REDIS_AWAY) {
            op->cb = (cache_cb *)0;
            if (str_eq_c(sb_str(&op->argv[0]), "SET") && n_kept < 64) {
                sb_add(&kept[n_kept].key, sb_str(&op->argv[1]));
                sb_add(&kept[n_kept].value, sb_str(&op->argv[2]));
                n_kept++;
            }
        }
        op_free(op);
        op = next;
    }
}

enum err cache_new(struct loop *l, const struct config *cfg, struct cache **ret, struct error *reterr)
{
    (void)cfg, (void)reterr;
    struct cache *c = NEW(struct cache);
    c->t = timer_new(l, cache_tick, c);
    c->last = &c->first;
    *ret = the_cache = c;
    return ERR_OK;
}

void cache_free(struct cache **c)
{
    for (struct cache_op *op = (*c)->first, *next; op; op = next) {
        next = op->next;
        op_free(op);
    }
    timer_free(&(*c)->t);
    MEM_FREE(*c);
    the_cache = NULL;
}

bool cache_is_up(const struct cache *c)
{
    (void)c;
    return redis_fault != REDIS_AWAY;
}

struct cache_op *cache_command(struct cache *c, const struct str *argv, size_t argc, cache_cb *cb, void *ctx)
{
    struct cache_op *op = NEW(struct cache_op);
    op->c = c;
    op->cb = cb;
    op->ctx = ctx;
    op->argc = argc < 4 ? argc : 4;
    for (size_t i = 0; i < op->argc; i++)
        sb_add(&op->argv[i], argv[i]);
    *c->last = op;
    c->last = &op->next;
    timer_set(c->t, 0);
    return cb ? op : NULL;
}

void cache_cancel(struct cache_op **op)
{
    if (*op)
        (*op)->dead = true;
    *op = NULL;
}

void cache_subscribe(struct cache *c, const char *channel, void (*on_message)(void *ctx, struct str message), void (*on_up)(void *ctx, bool up), void *ctx)
{
    (void)channel, (void)on_up;
    c->on_message = on_message;
    c->ctx = ctx;
}

void cache_unsubscribe(struct cache *c, const void *ctx)
{
    (void)ctx;
    c->on_message = NULL;
}

/* ---- the upstream: in the place of fetch.c's transfers (linked with --wrap) ---------------------------------------------------------- */

enum {
    UP_GOOD, UP_500, UP_404, UP_401, UP_429, UP_REFUSED, UP_TIMEOUT, UP_OTHER_BYTES, UP_SHORT, UP_LONG, UP_REDIRECT, UP_REDIRECT_AWAY, UP_TYPE,
    UP_PIECES, UP_DIGEST_FIELD, UP_HOSTILE_TAGS, UP_NO_LENGTH, UP_SILENT, UP_SCHEMA1, UP_FAULTS
};
static unsigned up_fault;

struct fetch {
    struct fetch_pool *pool;
    struct fetch *next;
    struct fetch_handlers h;
    void *ctx;
    struct strbuf body;
    char fields[8][2][400];
    struct fetch_field view[8];
    size_t n_fields, at, piece;
    int status;
    int64_t length;
    enum err end;
    bool is_head, head_done, paused, dead, silent, busy;
};
struct fetch_pool {
    struct timer *t;
    struct fetch *first;
    bool in_tick, closing;
};

struct fetch_pool *__wrap_fetch_pool_new(struct loop *l, const struct fetch_limits *lim);
void __wrap_fetch_pool_free(struct fetch_pool **p);
struct fetch *__wrap_fetch_start(struct fetch_pool *p, const struct fetch_request *r, const struct fetch_handlers *h, void *ctx);
void __wrap_fetch_resume(struct fetch *f);
void __wrap_fetch_cancel(struct fetch **f);

static void field(struct fetch *f, const char *name, const char *value)
{
    if (f->n_fields == 8)
        return;
    snprintf(f->fields[f->n_fields][0], 400, "%s", name);
    snprintf(f->fields[f->n_fields][1], 400, "%s", value);
    f->n_fields++;
}

static void serve_item(struct fetch *f, const struct item *it)
{
    f->status = 200;
    field(f, "Content-Type", up_fault == UP_TYPE ? "text/html" : up_fault == UP_SCHEMA1 ? "application/vnd.docker.distribution.manifest.v1+prettyjws"
                             : it->type ? it->type : "application/octet-stream");
    const struct item *from = it;
    if (up_fault == UP_OTHER_BYTES && it->bytes.n < 60000) /* of a version that not everybody has */
        for (size_t i = 0; i < n_items; i++)
            if (&items[i] != it && !(items[i].versions & it->versions) && !items[i].type == !it->type)
                from = &items[i];
    field(f, "Docker-Content-Digest", up_fault == UP_DIGEST_FIELD ? items[0].text : it->text);
    if (!f->is_head)
        sb_add(&f->body, sb_str(&from->bytes));
    f->length = (int64_t)from->bytes.n;
    if (up_fault == UP_LONG && !f->is_head)
        sb_addc(&f->body, "and more");
    if (up_fault == UP_SHORT && f->body.n)
        f->body.n /= 2;
    if (up_fault == UP_SHORT)
        f->end = ERR_UPSTREAM;
    if (up_fault == UP_NO_LENGTH)
        f->length = -1;
}

static void serve(struct fetch *f, struct str path)
{
    struct oci_request q;
    const struct item *it = NULL;
    size_t repo = 2;

    f->status = 404;
    if (up_fault == UP_404 || oci_route_parse(path, &q, NULL) != ERR_OK)
        return;
    for (size_t i = 0; i < 2; i++)
        if (str_eq_c(q.repository, REPOS[i].upstream))
            repo = i;
    if (q.kind == OCI_PING)
        f->status = 200;
    if (repo == 2)
        return;
    if (q.kind == OCI_TAGS) {
        f->status = 200;
        field(f, "Content-Type", "application/json");
        sb_addf(&f->body, "{\"name\":\"%.*s\",\"tags\":[", STR(q.repository));
        const char *comma = "";
        for (size_t i = 0; i < n_tags; i++)
            if (tags[i].repo == repo) {
                sb_addf(&f->body, "%s\"%s\"", comma, tags[i].name);
                comma = ",";
            }
        if (up_fault == UP_HOSTILE_TAGS)
            sb_addf(&f->body, "%s\"../x\",\"a\\nb\",\"1.9.9\",\"1.0.0\",7,null,\"%0300d\"", comma, 1);
        sb_addc(&f->body, "]}");
    } else if (q.kind == OCI_REFERRERS) {
        f->status = 200;
        field(f, "Content-Type", INDEX);
        sb_addc(&f->body, "{\"schemaVersion\":2,\"mediaType\":\"" INDEX "\",\"manifests\":[");
        const char *comma = "";
        for (size_t i = 0; i < n_items; i++)
            if (items[i].type && memmem(items[i].bytes.p, items[i].bytes.n, "\"subject\"", 9) &&
                memmem(items[i].bytes.p, items[i].bytes.n, q.reference.p, q.reference.n)) {
                sb_addc(&f->body, comma);
                descriptor(&f->body, "", i);
                comma = ",";
            }
        if (up_fault == UP_HOSTILE_TAGS) { /* everything there is hangs on everything */
            for (size_t i = 0; i < n_items; i++)
                if (items[i].type) {
                    sb_addc(&f->body, comma);
                    descriptor(&f->body, "", i);
                    comma = ",";
                }
        }
        sb_addc(&f->body, "]}");
    } else if (q.kind == OCI_MANIFEST || q.kind == OCI_BLOB) {
        for (size_t i = 0; i < n_tags && !q.is_digest; i++)
            if (tags[i].repo == repo && str_eq_c(q.reference, tags[i].name))
                it = &items[tags[i].item];
        for (size_t i = 0; i < n_items && q.is_digest; i++)
            if (digest_eq(&items[i].digest, &q.digest) && items[i].versions & REPOS[repo].versions && !items[i].type == (q.kind == OCI_BLOB))
                it = &items[i];
        if (it)
            serve_item(f, it);
        return;
    }
    if (f->status == 200)
        f->length = (int64_t)f->body.n;
}

static void fetch_destroy(struct fetch *f)
{
    struct fetch **at = &f->pool->first;
    while (*at != f)
        at = &(*at)->next;
    *at = f->next;
    sb_free(&f->body);
    mem_free(f);
}

/* One step of one transfer. */
static void fetch_step(struct fetch *f)
{
    enum fetch_next n = FETCH_MORE;

    f->busy = true;
    activity++;
    if (!f->head_done && f->status) {
        struct fetch_head h = {.status = f->status, .content_length = f->length, .fields = f->view, .n_fields = f->n_fields};
        for (size_t i = 0; i < f->n_fields; i++)
            f->view[i] = (struct fetch_field){str_c(f->fields[i][0]), str_c(f->fields[i][1])};
        f->head_done = true;
        if (f->h.on_head)
            n = f->h.on_head(f->ctx, &h);
    } else if (f->at < f->body.n && !f->is_head) {
        size_t k = f->body.n - f->at < f->piece ? f->body.n - f->at : f->piece;
        if (f->h.on_body)
            n = f->h.on_body(f->ctx, f->body.p + f->at, k);
        if (n == FETCH_MORE)
            f->at += k;
    } else {
        f->dead = true;
        f->h.on_done(f->ctx, f->end, "scripted", f->head_done);
        f->busy = false;
        return;
    }
    f->busy = false;
    if (f->dead)
        return;
    if (n == FETCH_PAUSE)
        f->paused = true;
    if (n == FETCH_STOP) {
        f->dead = true;
        f->h.on_done(f->ctx, ERR_CANCELED, "stopped", true);
    }
}

static void pool_sweep(struct fetch_pool *p)
{
    for (struct fetch *f = p->first, *next; f; f = next) {
        next = f->next;
        if (f->dead)
            fetch_destroy(f);
    }
}

static void pool_tick(void *ctx)
{
    struct fetch_pool *p = ctx;
    bool more = false;

    p->in_tick = true;
    for (struct fetch *f = p->first; f; f = f->next)
        if (!f->dead && !f->paused && !f->silent)
            fetch_step(f);
    p->in_tick = false;
    pool_sweep(p);
    if (p->closing) {
        timer_free(&p->t);
        mem_free(p);
        return;
    }
    for (struct fetch *f = p->first; f; f = f->next)
        more = more || (!f->paused && !f->silent);
    if (more)
        timer_set(p->t, 0);
}

struct fetch_pool *__wrap_fetch_pool_new(struct loop *l, const struct fetch_limits *lim)
{
    (void)lim;
    struct fetch_pool *p = NEW(struct fetch_pool);
    p->t = timer_new(l, pool_tick, p);
    return p;
}

void __wrap_fetch_pool_free(struct fetch_pool **pp)
{
    struct fetch_pool *p = *pp;
    *pp = NULL;
    if (!p)
        return;
    for (struct fetch *f = p->first; f; f = f->next)
        f->dead = true;
    if (p->in_tick) {
        p->closing = true;
        return;
    }
    pool_sweep(p);
    timer_free(&p->t);
    mem_free(p);
}

struct fetch *__wrap_fetch_start(struct fetch_pool *p, const struct fetch_request *r, const struct fetch_handlers *h, void *ctx)
{
    struct fetch *f = NEW(struct fetch);
    struct str url = str_c(r->url);
    bool away = false;

    f->pool = p;
    f->h = *h;
    f->ctx = ctx;
    f->is_head = strcmp(r->method, "HEAD") == 0;
    f->piece = up_fault == UP_PIECES ? 7 : 16384;
    f->length = 0;
    for (size_t i = 1; i < PEOPLE; i++) /* what a client sends us never goes there */
        for (const char *const *s = r->fields; s && *s; s++)
            FUZZ_CHECK(!strstr(*s, secrets[i]) && !strstr(*s, basics[i] + 6), "a client's secret goes to the upstream");
    if (str_starts(url, S("http://cdn.example/")))
        url = str_skip(url, strlen("http://cdn.example"));
    else if (str_starts(url, S(UPSTREAM "/")))
        url = str_skip(url, strlen(UPSTREAM));
    else if (str_starts(url, S(UPSTREAM ":80/")))
        url = str_skip(url, strlen(UPSTREAM ":80"));
    else
        away = true;
    FUZZ_CHECK(!away, "a request to a host that nobody named");
    bool redirected = str_starts(str_c(r->url), S("http://cdn"));
    switch (up_fault) {
    case UP_500:
        f->status = 500;
        break;
    case UP_401:
        f->status = 401;
        field(f, "WWW-Authenticate", "Bearer realm=\"" UPSTREAM "/token\",service=\"s\"");
        break;
    case UP_429:
        f->status = 429;
        field(f, "Retry-After", "1");
        break;
    case UP_REFUSED:
        f->end = ERR_UNAVAILABLE;
        break;
    case UP_TIMEOUT:
        f->end = ERR_TIMEOUT;
        break;
    case UP_SILENT:
        f->silent = true;
        break;
    case UP_REDIRECT:
    case UP_REDIRECT_AWAY:
        if (!redirected) {
            char to[300];
            snprintf(to, sizeof to, "%s%.*s", up_fault == UP_REDIRECT ? "http://cdn.example" : "http://169.254.169.254", (int)(url.n < 200 ? url.n : 200), url.p);
            f->status = 307;
            field(f, "Location", to);
            break;
        }
        /* fall through */
    default:
        serve(f, url);
        break;
    }
    f->next = NULL;
    struct fetch **at = &p->first;
    while (*at)
        at = &(*at)->next;
    *at = f;
    timer_set(p->t, 0);
    return f;
}

void __wrap_fetch_resume(struct fetch *f)
{
    f->paused = false;
    timer_set(f->pool->t, 0);
}

void __wrap_fetch_cancel(struct fetch **pf)
{
    struct fetch *f = *pf;
    *pf = NULL;
    if (!f || f->dead)
        return;
    f->dead = true;
    if (!f->pool->in_tick)
        fetch_destroy(f);
}

/* ---- the process -------------------------------------------------------------------------------------------------------------------- */

static bool trace; /* FUZZ_TRACE=1: what happens, for people who look at a find */
static struct proxy the_proxy;
static struct worker *w, *workers[1];
static char listen_at[112];
static struct timer *wake;

static void nothing(void *ctx)
{
    (void)ctx;
}

static void leave_nothing(void)
{
    unlink(listen_at + 5);
}

static void setup(void)
{
    struct error e = {0};
    char path[64];

    fuzz_quiet();
    trace = getenv("FUZZ_TRACE") != NULL;
    keys = fuzz_keys();
    content_make();
    people_make();
    snprintf(listen_at, sizeof listen_at, "unix:%s/pullgate-fuzz-%d.sock", fuzz_tmp(), (int)getpid());
    snprintf(path, sizeof path, "/dev/shm/fuzz_proxy.%d.yaml", (int)getpid());
    FILE *f = fopen(path, "we");
    FUZZ_CHECK(f != NULL, "configuration");
    fprintf(f,
            "proxy:\n  listen: \"%s\"\n  spool_path: /dev/shm\n  spool_keep: 0\n  public_url: " PUBLIC_URL "\n  workers: 1\n"
            "cache:\n  hold_on_unknown: 0\n  max_staleness: 300s\n"
            "limits:\n  upstream_retries: 0\n  redis_deadline: 10ms\n  auth_failures_per_minute: 1000000\n  auth_failures_per_credential: 1000000\n"
            "log:\n  access_path: \"off\"\n",
            listen_at);
    FUZZ_CHECK(fclose(f) == 0 && config_load(path, &the_proxy.cfg, &e) == ERR_OK, e.text);
    unlink(path);
    the_proxy.keys = keys;
    the_proxy.n_workers = 1;
    the_proxy.workers = workers;
    the_proxy.edge_shared = edge_shared_new(1000, 1000);
    the_proxy.guard = guard_new(the_proxy.cfg);
    the_proxy.metrics = proxy_metrics_new(&the_proxy);
    FUZZ_CHECK(accesslog_new(the_proxy.cfg, &the_proxy.accesslog, &e) == ERR_OK, e.text);
    snprintf(the_proxy.instance, sizeof the_proxy.instance, "fuzz:1");
    snprintf(the_proxy.service, sizeof the_proxy.service, "registry.example");
    snprintf(the_proxy.base_url, sizeof the_proxy.base_url, PUBLIC_URL);
    atexit(leave_nothing);
}

static void world_begin(void)
{
    struct error e = {0};
    int fd;
    char bound[128];

    changed = 0;
    begun_s = clock_now_s();
    epoch = 10;
    memset(change_epoch, 0, sizeof change_epoch);
    redis_fault = up_fault = 0;
    root_epoch_served = 0;
    FUZZ_CHECK(edge_listen(listen_at, &fd, bound, &e) == ERR_OK && (listen(fd, 64) == 0 || true), e.text);
    the_proxy.blobs = blobs_new(the_proxy.cfg, &e); /* it knows its workers by their ids, for good */
    FUZZ_CHECK(worker_new(&the_proxy, 0, &fd, 1, &w, &e) == ERR_OK, e.text);
    workers[0] = w;
    wake = timer_new(w->loop, nothing, NULL);
}

static void world_end(void)
{
    timer_free(&wake);
    worker_free_parts(w);
    blobs_free(&the_proxy.blobs);
    worker_free(&w);
    for (size_t i = 0; i < n_kept; i++) {
        sb_free(&kept[i].key);
        sb_free(&kept[i].value);
    }
    n_kept = 0;
}

/* ---- clients ------------------------------------------------------------------------------------------------------------------------- */

struct client {
    int fd; /* 0: none */
    unsigned who, allowed;
    bool dirty; /* what was sent is no longer one clean request after another */
    bool closed;
    struct strbuf in;
    size_t scanned, parsed;
    char token[2048];
};
static struct client clients[4];
static bool broken; /* something was broken on purpose in this run */

static void client_close(struct client *c)
{
    if (c->fd > 0)
        close(c->fd);
    sb_free(&c->in);
    *c = (struct client){0};
}

static void scan(struct client *c)
{
    size_t from = c->scanned > 12 ? c->scanned - 12 : 0;
    for (const char *p = c->in.p + from; (p = memmem(p, (size_t)(c->in.p + c->in.n - p), "CANARY-", 7)); p += 7) {
        if (p + 10 > c->in.p + c->in.n)
            break;
        unsigned i = (unsigned)(p[7] - '0') * 10 + (unsigned)(p[8] - '0');
        if (i >= n_items || p[9] != '-')
            continue;
        if (!(items[i].versions & c->allowed)) {
            fprintf(stderr, "client %u, who may have %x, got item %u of %x (%s %s)\n", c->who, c->allowed, i, items[i].versions,
                    items[i].type ? "manifest" : "blob", items[i].text);
            fuzz_fail("a canary reached a client that may not have it", __LINE__);
        }
    }
    c->scanned = c->in.n;
    if (c->in.n >= 13) {
        static const int known[] = {200, 206, 304, 307, 400, 401, 403, 404, 405, 408, 413, 414, 416, 417, 429, 431, 502, 503, 504, 100};
        int status = atoi(c->in.p + 9);
        bool ok = false;
        for (size_t i = 0; i < sizeof known / sizeof *known; i++)
            ok = ok || status == known[i];
        bool tls = memcmp(c->in.p, "HTTP/1.0 400 ", 13) == 0; /* what looks like TLS on this plain port is told so */
        FUZZ_CHECK((memcmp(c->in.p, "HTTP/1.1 ", 9) == 0 && ok) || (tls && c->dirty), "an answer that is none");
    }
    for (size_t i = 1; i < PEOPLE; i++)
        FUZZ_CHECK(c->who == i || c->in.n == 0 || !memmem(c->in.p, c->in.n, secrets[i], strlen(secrets[i])), "somebody's secret in an answer");
}

static bool client_read(struct client *c)
{
    char buf[65536];
    if (c->fd <= 0 || c->closed)
        return false;
    ssize_t n = recv(c->fd, buf, sizeof buf, MSG_DONTWAIT);
    if (n > 0) {
        sb_add(&c->in, (struct str){buf, (size_t)n});
        scan(c);
        return true;
    }
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) {
        c->closed = true;
        return true;
    }
    return false;
}

struct response {
    int status;
    struct str fields, body;
    bool closes;
};

/* The answer at c->parsed, when it is whole. */
static bool response_at(const struct client *c, bool is_head, struct response *ret)
{
    struct str s = str_skip(sb_str(&c->in), c->parsed);
    const char *end = s.n ? memmem(s.p, s.n, "\r\n\r\n", 4) : NULL;
    if (!end || s.n < 13)
        return false;
    ret->fields = str_sub(s, 0, (size_t)(end + 4 - s.p));
    ret->status = atoi(s.p + 9);
    const char *len = memmem(ret->fields.p, ret->fields.n, "\r\nContent-Length: ", 18);
    size_t n = len ? strtoul(len + 18, NULL, 10) : 0;
    if (is_head || ret->status == 304 || ret->status == 204)
        n = 0;
    struct str rest = str_skip(s, ret->fields.n);
    if (rest.n < n)
        return false;
    ret->body = str_sub(rest, 0, n);
    ret->closes = memmem(ret->fields.p, ret->fields.n, "\r\nConnection: close", 19) != NULL;
    return true;
}

static void pump_once(bool may_wait)
{
    struct event_base *base = loop_base(w->loop);
    if (may_wait) {
        timer_set(wake, 1);
        event_base_loop(base, EVLOOP_ONCE);
    }
    event_base_loop(base, EVLOOP_NONBLOCK);
}

static bool read_all(void)
{
    bool got = false;
    for (size_t i = 0; i < 4; i++)
        while (client_read(&clients[i]))
            got = true;
    return got;
}

/* Until nothing moves any more. */
static void pump_idle(void)
{
    for (unsigned still = 0, i = 0; still < 3 && i < 2000; i++) {
        unsigned was = activity;
        pump_once(false);
        still = read_all() || was != activity ? 0 : still + 1;
    }
}

static bool pump_until(struct client *c, bool is_head, struct response *ret)
{
    uint64_t end = clock_mono_ms() + 20000; /* a busy machine */
    unsigned still = 0;
    while (!response_at(c, is_head, ret)) {
        if (c->closed || clock_mono_ms() > end)
            return false;
        unsigned was = activity;
        pump_once(still > 2);
        still = read_all() || was != activity ? 0 : still + 1;
        if (up_fault == UP_SILENT && still > 20)
            return false;
    }
    return true;
}

static void client_send(struct client *c, struct str s)
{
    while (s.n && c->fd > 0) {
        ssize_t n = send(c->fd, s.p, s.n, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n <= 0)
            return;
        s = str_skip(s, (size_t)n);
    }
}

static void client_open(struct client *c, unsigned who)
{
    struct sockaddr_un sun = {.sun_family = AF_UNIX};
    snprintf(sun.sun_path, sizeof sun.sun_path, "%s", listen_at + 5);
    c->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    FUZZ_CHECK(c->fd > 0 && connect(c->fd, (const struct sockaddr *)(const void *)&sun, sizeof sun) == 0, "connect");
    c->who = who;
    c->allowed = allowed_of(who);
}

/* ---- operations ------------------------------------------------------------------------------------------------------------------------ */

#define OP_BYTES 10
enum { B_KIND, B_CLIENT, B_WHO, B_ROUTE, B_REPO, B_REF, B_FLAGS, B_ARG, B_PATCH_AT, B_PATCH };
enum { F_HEAD = 1, F_RANGE = 2, F_MATCH = 4, F_BEARER = 8, F_SPLIT = 16, F_NOWAIT = 32, F_ANON = 64, F_CLOSE = 128 };
enum { R_TAG, R_MANIFEST, R_BLOB, R_TAGS, R_REFERRERS, R_CATALOG, R_PING, R_TOKEN, R_HEALTH, R_UPLOAD, ROUTES };
#define PATCH_MAX 63

static size_t op_size(const uint8_t *p, size_t n)
{
    if (n < OP_BYTES)
        return n;
    size_t patch = p[B_PATCH] & PATCH_MAX;
    return OP_BYTES + (patch < n - OP_BYTES ? patch : n - OP_BYTES);
}

static void expect(struct client *c, const uint8_t *op, const struct response *r, unsigned allowed)
{
    unsigned route = op[B_ROUTE] % ROUTES, repo = op[B_REPO] % 4, flags = op[B_FLAGS];
    bool granted, is_known = repo < 2, bearer = flags & F_BEARER && c->token[0];
    const struct item *it = NULL;
    const struct tag *t = NULL;

    if (route == R_TAG) {
        t = &tags[op[B_REF] % n_tags];
        for (size_t i = 0; i < n_tags; i++) /* a name may stand in both repositories */
            if (tags[i].repo == repo && !strcmp(tags[i].name, t->name))
                t = &tags[i];
        it = &items[t->item];
        granted = is_known && t->repo == repo && (it->versions & allowed & REPOS[repo].versions);
    } else if (route == R_MANIFEST || route == R_BLOB) {
        it = &items[op[B_REF] % n_items];
        granted = is_known && !it->type == (route == R_BLOB) && (it->versions & allowed & REPOS[repo].versions);
    } else if (route == R_TAGS && r->status == 200) {
        for (size_t i = 0; i < n_tags && !broken; i++)
            if (is_known && tags[i].is_version && tags[i].repo == repo) {
                char quoted[64];
                snprintf(quoted, sizeof quoted, "\"%s\"", tags[i].name);
                bool listed = memmem(r->body.p, r->body.n, quoted, strlen(quoted)) != NULL;
                if (!(flags & F_HEAD) && !op[B_ARG])
                    FUZZ_CHECK(listed == ((items[tags[i].item].versions & allowed) != 0), "tags/list is not what is granted");
            }
        return;
    } else {
        FUZZ_CHECK(broken || r->status < 500, "a 5xx, and nothing was broken");
        return;
    }
    if (r->status == 200 && !(flags & F_HEAD))
        FUZZ_CHECK(str_eq(r->body, sb_str(&it->bytes)), "a 200 whose bytes are others");
    if (r->status == 206)
        FUZZ_CHECK(memmem(it->bytes.p, it->bytes.n, r->body.p, r->body.n) != NULL || r->body.n == 0, "a 206 whose bytes are others");
    if (r->status < 400)
        FUZZ_CHECK(granted, "served, and not granted");
    if (broken)
        return;
    if (granted && !(flags & F_ANON) && c->who != NOBODY)
        FUZZ_CHECK(r->status == 200 || r->status == 206 || (r->status == 304 && flags & F_MATCH) || (r->status == 416 && flags & F_RANGE) ||
                       (bearer && r->status == 401) || (t && !t->is_version),
                   "granted, and not served");
    else
        FUZZ_CHECK(r->status == 401 || r->status == 403 || r->status == 404 || r->status == 416, "neither served nor denied");
}

static void request_text(struct client *c, const uint8_t *op, struct strbuf *b)
{
    static const char *const names[] = {"shop/api", "shop/web", "shop/none", "acme/api"};
    static const char *const ranges[] = {"bytes=0-", "bytes=0-0", "bytes=5-20", "bytes=-7", "bytes=999999-", "bytes=0-1,3-4", "bytes=1-0"};
    unsigned route = op[B_ROUTE] % ROUTES, flags = op[B_FLAGS];
    const char *name = names[op[B_REPO] % 4];
    const struct item *it = &items[op[B_REF] % n_items];

    sb_addf(b, "%s ", flags & F_HEAD ? "HEAD" : "GET");
    switch (route) {
    case R_TAG:
        sb_addf(b, "/v2/%s/manifests/%s", name, tags[op[B_REF] % n_tags].name);
        break;
    case R_MANIFEST:
        sb_addf(b, "/v2/%s/manifests/%s", name, it->text);
        break;
    case R_BLOB:
        sb_addf(b, "/v2/%s/blobs/%s", name, it->text);
        break;
    case R_TAGS:
        sb_addf(b, op[B_ARG] ? "/v2/%s/tags/list?n=%u&last=1.0" : "/v2/%s/tags/list", name, op[B_ARG]);
        break;
    case R_REFERRERS:
        sb_addf(b, "/v2/%s/referrers/%s", name, it->text);
        break;
    case R_CATALOG:
        sb_addc(b, "/v2/_catalog");
        break;
    case R_PING:
        sb_addc(b, "/v2/");
        break;
    case R_TOKEN:
        sb_addf(b, "/token?service=registry.example&scope=repository:%s:pull", name);
        break;
    case R_HEALTH:
        sb_addc(b, op[B_ARG] & 1 ? "/healthz" : "/readyz");
        break;
    default:
        sb_addf(b, "/v2/%s/blobs/uploads/?mount=%s&from=%s", name, it->text, names[op[B_ARG] % 4]);
        break;
    }
    sb_addf(b, " HTTP/1.%c\r\nHost: registry.example\r\nAccept: */*\r\n", flags & F_CLOSE && op[B_ARG] & 1 ? '0' : '1');
    if (!(flags & F_ANON) && c->who != NOBODY) {
        if (flags & F_BEARER && c->token[0] && route != R_TOKEN)
            sb_addf(b, "Authorization: Bearer %s\r\n", c->token);
        else
            sb_addf(b, "Authorization: %s\r\n", basics[c->who]);
    }
    if (flags & F_RANGE)
        sb_addf(b, "Range: %s\r\n", ranges[op[B_ARG] % 7]);
    if (flags & F_MATCH)
        sb_addf(b, "If-None-Match: \"%s\"\r\n", op[B_ARG] & 1 ? it->text : items[tags[op[B_REF] % n_tags].item].text);
    if (flags & F_CLOSE && !(op[B_ARG] & 1))
        sb_addc(b, "Connection: close\r\n");
    sb_addc(b, "\r\n");
}

static bool patch_text(const uint8_t *op, size_t n_op, struct strbuf *b)
{
    struct str patch = {(const char *)op + OP_BYTES, n_op - OP_BYTES};
    size_t at = (size_t)op[B_PATCH_AT] * b->n / 256;
    struct strbuf out = {0};

    if (!patch.n)
        return false;
    size_t skip = op[B_PATCH] & 64 ? patch.n : 0; /* over it, or into it */
    sb_add(&out, str_sub(sb_str(b), 0, at));
    sb_add(&out, patch);
    sb_add(&out, str_skip(sb_str(b), at + skip));
    sb_free(b);
    *b = out;
    return true;
}

static void op_request(const uint8_t *op, size_t n_op)
{
    struct client *c = &clients[op[B_CLIENT] % 4];
    struct strbuf b = {0};
    struct response r;

    if (c->closed)
        client_close(c);
    if (c->fd == 0)
        client_open(c, op[B_WHO] % PEOPLE);
    unsigned allowed = allowed_of(c->who);
    c->allowed = c->dirty ? c->allowed | allowed : allowed;
    request_text(c, op, &b);
    bool is_head = op[B_FLAGS] & F_HEAD;
    if (patch_text(op, n_op, &b) || op[B_FLAGS] & F_NOWAIT)
        c->dirty = true;
    if (op[B_FLAGS] & F_SPLIT) {
        size_t at = (size_t)op[B_ARG] * b.n / 256;
        client_send(c, str_sub(sb_str(&b), 0, at));
        pump_idle();
        client_send(c, str_skip(sb_str(&b), at));
    } else {
        client_send(c, sb_str(&b));
    }
    sb_free(&b);
    if (c->dirty) {
        if (!(op[B_FLAGS] & F_NOWAIT))
            pump_idle();
        return;
    }
    if (!pump_until(c, is_head, &r)) {
        FUZZ_CHECK(broken, c->closed ? "cut, and nothing was broken" : "no answer, and nothing was broken");
        if (!c->closed)
            c->dirty = true;
        return;
    }
    if (trace)
        fprintf(stderr, "client %u: route %u repo %u ref %u flags %x -> %d, %zu bytes\n", c->who, op[B_ROUTE] % ROUTES, op[B_REPO] % 4, op[B_REF], op[B_FLAGS],
                r.status, r.body.n);
    expect(c, op, &r, allowed);
    const char *t = op[B_ROUTE] % ROUTES == R_TOKEN && r.status == 200 && r.body.n ? memmem(r.body.p, r.body.n, "\"token\":\"", 9) : NULL;
    if (t)
        snprintf(c->token, sizeof c->token, "%.*s", (int)strcspn(t + 9, "\""), t + 9);
    c->parsed = (size_t)(r.fields.p - c->in.p) + r.fields.n + r.body.n;
    FUZZ_CHECK(broken || c->parsed == c->in.n || is_head, "bytes after an answer");
    if (r.closes)
        client_close(c);
}

static void op_change(const uint8_t *op)
{
    unsigned bit = op[B_CLIENT] % CHANGES;

    pump_idle();
    for (size_t i = 0; i < 4; i++) /* what is under way was decided before */
        if (clients[i].dirty)
            client_close(&clients[i]);
    redis_fault = REDIS_GOOD;
    if (bit == CH_TIME && HAS(CH_TIME))
        return;
    changed ^= 1u << bit;
    change_epoch[bit] = ++epoch;
    uint64_t end = clock_mono_ms() + 20000; /* a busy machine */
    do {
        the_cache->on_message(the_cache->ctx, S("x"));
        pump_once(true);
        FUZZ_CHECK(clock_mono_ms() < end, "a change is not looked at");
    } while (root_epoch_served < epoch);
    pump_idle();
}

static void op_run(const uint8_t *op, size_t n)
{
    struct client *c = &clients[op[B_CLIENT] % 4];

    switch (op[B_KIND] % 16) {
    default:
        op_request(op, n);
        break;
    case 10:
        if (c->fd == 0)
            client_open(c, op[B_WHO] % PEOPLE);
        c->allowed |= allowed_of(c->who);
        c->dirty = true;
        client_send(c, (struct str){(const char *)op + OP_BYTES, n - OP_BYTES});
        pump_idle();
        break;
    case 11:
        client_close(c);
        pump_once(false);
        break;
    case 12:
        op_change(op);
        break;
    case 13:
        up_fault = op[B_CLIENT] % UP_FAULTS;
        broken = broken || (up_fault != UP_GOOD && up_fault != UP_PIECES);
        break;
    case 14:
        redis_fault = op[B_CLIENT] % REDIS_FAULTS;
        broken = broken || redis_fault != REDIS_GOOD;
        break;
    case 15:
        if (c->fd > 0) {
            c->dirty = true;
            shutdown(c->fd, SHUT_WR);
        }
        pump_idle();
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!keys)
        setup();
    world_begin();
    broken = false;
    for (unsigned ops = 0; size >= OP_BYTES && ops < 40; ops++) {
        size_t n = op_size(data, size);
        op_run(data, n);
        data += n;
        size -= n;
    }
    pump_idle();
    for (size_t i = 0; i < 4; i++)
        client_close(&clients[i]);
    pump_once(false);
    world_end();
    return 0;
}

/* ---- the mutator: operations stay whole ------------------------------------------------------------------------------------------- */

static uint64_t rnd_state;
static unsigned rnd(unsigned n)
{
    rnd_state = rnd_state * 6364136223846793005u + 1442695040888963407u;
    return (unsigned)(rnd_state >> 33) % n;
}

static size_t op_random(uint8_t *op)
{
    static const char *const nasty[] = {"\n", "\r", "\r\n", "\r\n\r\n", "\0", "%2e%2e/", "%2f", "../", "//", "/", "\r\nContent-Length: 5\r\n", "\r\nTransfer-Encoding: chunked\r\n",
                                        "\r\nHost: x\r\n", "\r\nConnection: close\r\n", "\r\nExpect: 100-continue\r\n", "\r\nRange: bytes=0-1\r\n", "HTTP/1.0", "HTTP/2.0", "POST ",
                                        "OPTIONS ", "sha512:", "@sha256:", "?x=1", "#", "blobs", "manifests", "shop/web", "shop/api", "2.0.0", "latest", "\r\nX-Forwarded-For: 10.1.2.3\r\n",
                                        "\r\nAuthorization: Basic Og==\r\n", "Bearer ", "&scope=repository:shop/web:pull", "_catalog", "\t", " "};
    for (size_t i = 0; i < OP_BYTES; i++)
        op[i] = (uint8_t)rnd(256);
    if (rnd(4))
        op[B_KIND] = (uint8_t)rnd(10);
    op[B_FLAGS] = rnd(2) ? 0 : (uint8_t)(1u << rnd(8));
    op[B_ARG] = rnd(2) ? 0 : op[B_ARG];
    op[B_REPO] = (uint8_t)(rnd(4) ? rnd(2) : rnd(4));
    op[B_PATCH] = 0;
    if (rnd(4) == 0 || op[B_KIND] % 16 == 10) {
        const char *s = nasty[rnd(sizeof nasty / sizeof *nasty)];
        size_t n = *s ? strlen(s) : 1;
        op[B_PATCH] = (uint8_t)(n | (rnd(2) ? 64 : 0));
        memcpy(op + OP_BYTES, s, n);
        return OP_BYTES + n;
    }
    return OP_BYTES;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed)
{
    size_t at[64], n = 0, total = 0;
    uint8_t one[OP_BYTES + PATCH_MAX + 1], *p = data;

    rnd_state = seed * 2654435761u + 1;
    while (n < 63 && total < size) {
        at[n++] = total;
        total += op_size(data + total, size - total);
    }
    at[n] = total;
    size = total;
    size_t k = n ? rnd((unsigned)n) : 0, len = n ? at[k + 1] - at[k] : 0;
    switch (n ? rnd(10) : 0) {
    case 0:
    case 1: { /* a further one */
        size_t m = op_random(one);
        if (size + m > max_size)
            return size;
        p += n && rnd(2) ? at[k] : size;
        memmove(p + m, p, (size_t)(data + size - p));
        memcpy(p, one, m);
        return size + m;
    }
    case 2: /* one less */
        memmove(data + at[k], data + at[k + 1], size - at[k + 1]);
        return size - len;
    case 3: /* the same again */
        if (size + len > max_size)
            return size;
        memmove(data + at[k + 1], data + at[k], size - at[k]);
        return size + len;
    case 4: /* this one before that one */
        if (k > 0 && len <= sizeof one) {
            size_t before = at[k] - at[k - 1];
            memcpy(one, data + at[k], len);
            memmove(data + at[k - 1] + len, data + at[k - 1], before);
            memcpy(data + at[k - 1], one, len);
        }
        return size;
    case 5:
    case 6:
    case 7: /* another detail of one */
        if (len >= OP_BYTES) {
            size_t which = rnd(B_PATCH_AT + 1);
            data[at[k] + which] = (uint8_t)(rnd(2) ? rnd(256) : which == B_FLAGS ? data[at[k] + which] ^ 1u << rnd(8) : rnd(16));
        }
        return size;
    case 8: { /* another one in its place */
        size_t m = op_random(one);
        if (size - len + m > max_size)
            return size;
        memmove(data + at[k] + m, data + at[k + 1], size - at[k + 1]);
        memcpy(data + at[k], one, m);
        return size - len + m;
    }
    default: /* the bytes of its patch */
        if (len > OP_BYTES)
            LLVMFuzzerMutate(data + at[k] + OP_BYTES, len - OP_BYTES, len - OP_BYTES);
        return size;
    }
}

size_t LLVMFuzzerCustomCrossOver(const uint8_t *a, size_t na, const uint8_t *b, size_t nb, uint8_t *out, size_t max_out, unsigned seed)
{
    size_t i = 0, k = 0, n;

    rnd_state = seed * 2654435761u + 7;
    for (unsigned ops = rnd(10); i < na && ops; ops--)
        i += op_size(a + i, na - i);
    for (unsigned ops = rnd(10); k < nb && ops; ops--)
        k += op_size(b + k, nb - k);
    i = i < max_out ? i : max_out;
    memcpy(out, a, i);
    n = nb - k < max_out - i ? nb - k : max_out - i;
    memcpy(out + i, b + k, n);
    return i + n;
}
