/* A license's state by the clock, addresses and networks, and the compiled entitlement as it is read from its JSON.
 * Reading is strict: a member that is missing, unknown or of another type makes the whole document invalid, for a field that
 * an older reader overlooks might be the one that restricts. Decides nothing: decision.c does. */
#include "pullgate/license.h"

#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>

#include "pullgate/jv.h"
#include "pullgate/mem.h"
#include "pullgate/seal.h"

/* ---- state ---------------------------------------------------------------------------------- */

#define DAY_S INT64_C(86400)

static int64_t add_clamped(int64_t a, int64_t b)
{
    int64_t sum;

    if (!__builtin_add_overflow(a, b, &sum))
        return sum;
    return b > 0 ? INT64_MAX : INT64_MIN;
}

/* Of a license that expires at all. INT64_MAX: never. A negative grace is none. */
static int64_t grace_end(const struct license_terms *t)
{
    int64_t grace;

    if (t->grace_days <= 0)
        return t->expires_at_s;
    if (__builtin_mul_overflow(t->grace_days, DAY_S, &grace))
        return INT64_MAX;
    return add_clamped(t->expires_at_s, grace);
}

static int64_t expiring_from(const struct license_terms *t)
{
    return add_clamped(t->expires_at_s, -LICENSE_EXPIRING_DAYS * DAY_S);
}

enum license_effective license_effective(const struct license_terms *t, int64_t now_s)
{
    switch (t->status) {
    case LICENSE_REVOKED:
        return LICENSE_EFF_REVOKED;
    case LICENSE_SUSPENDED:
        return LICENSE_EFF_SUSPENDED;
    case LICENSE_INACTIVE:
        return LICENSE_EFF_INACTIVE;
    case LICENSE_ACTIVE:
        break;
    case LICENSE_STATUS_NONE:
    default:
        return LICENSE_EFF_NONE;
    }
    if (t->starts_at_s != 0 && now_s < t->starts_at_s)
        return LICENSE_EFF_SCHEDULED;
    if (t->expires_at_s != 0 && now_s >= grace_end(t))
        return LICENSE_EFF_EXPIRED;
    if (t->payment_failed_at_s != 0 || (t->expires_at_s != 0 && now_s >= t->expires_at_s))
        return LICENSE_EFF_GRACE;
    if (t->expires_at_s == 0)
        return LICENSE_EFF_ACTIVE;
    return now_s >= expiring_from(t) ? LICENSE_EFF_EXPIRING : LICENSE_EFF_ACTIVE;
}

bool license_in_force(enum license_effective e)
{
    return e == LICENSE_EFF_ACTIVE || e == LICENSE_EFF_EXPIRING || e == LICENSE_EFF_GRACE;
}

bool license_usable(const struct license *l, int64_t now_s)
{
    enum license_effective e = license_effective(&l->terms, now_s);
    return license_in_force(e) || (e == LICENSE_EFF_EXPIRED && l->on_expiry == LICENSE_ON_EXPIRY_KEEP_RELEASED);
}

static void sooner(int64_t *at, int64_t t, int64_t now_s)
{
    if (t > now_s && t < *at)
        *at = t;
}

int64_t license_next_change(const struct license_terms *t, int64_t now_s)
{
    int64_t at = INT64_MAX;

    if (t->status != LICENSE_ACTIVE)
        return at;
    if (t->starts_at_s != 0)
        sooner(&at, t->starts_at_s, now_s);
    if (t->expires_at_s != 0) {
        sooner(&at, expiring_from(t), now_s);
        sooner(&at, t->expires_at_s, now_s);
        sooner(&at, grace_end(t), now_s);
    }
    return at;
}

static const char *const status_texts[] = {
    [LICENSE_STATUS_NONE] = "none",
    [LICENSE_INACTIVE] = "inactive",
    [LICENSE_ACTIVE] = "active",
    [LICENSE_SUSPENDED] = "suspended",
    [LICENSE_REVOKED] = "revoked",
};
static const char *const effective_texts[] = {
    [LICENSE_EFF_NONE] = "none",           [LICENSE_EFF_REVOKED] = "revoked", [LICENSE_EFF_SUSPENDED] = "suspended",
    [LICENSE_EFF_INACTIVE] = "inactive",   [LICENSE_EFF_SCHEDULED] = "scheduled", [LICENSE_EFF_EXPIRED] = "expired",
    [LICENSE_EFF_GRACE] = "grace",         [LICENSE_EFF_EXPIRING] = "expiring", [LICENSE_EFF_ACTIVE] = "active",
};
static const char *const selector_texts[] = {
    [SELECTOR_NONE] = "none",       [SELECTOR_EXACT] = "exact",   [SELECTOR_RANGE] = "range", [SELECTOR_GLOB] = "glob",
    [SELECTOR_CHANNEL] = "channel", [SELECTOR_DIGEST] = "digest", [SELECTOR_ALL] = "all",
};
static const char *const on_expiry_texts[] = {
    [LICENSE_ON_EXPIRY_BLOCK] = "block",
    [LICENSE_ON_EXPIRY_KEEP_RELEASED] = "keep_released",
};
static const char *const on_move_texts[] = {
    [GRANT_FOLLOW] = "follow",
    [GRANT_PIN] = "pin",
};
#define COUNT(a) (sizeof(a) / sizeof *(a))

/* The index of s from `first` on, or -1. */
static int text_index(struct str s, const char *const *texts, size_t n, size_t first)
{
    for (size_t i = first; i < n; i++)
        if (str_eq_c(s, texts[i]))
            return (int)i;
    return -1;
}

const char *license_status_text(enum license_status s)
{
    return (size_t)s < COUNT(status_texts) ? status_texts[s] : "none";
}

bool license_status_parse(struct str s, enum license_status *ret)
{
    int i = text_index(s, status_texts, COUNT(status_texts), LICENSE_INACTIVE);

    if (i < 0)
        return false;
    *ret = (enum license_status)i;
    return true;
}

const char *license_effective_text(enum license_effective e)
{
    return (size_t)e < COUNT(effective_texts) ? effective_texts[e] : "none";
}

/* ---- selectors ------------------------------------------------------------------------------ */

#define VERSION_MAX 128 /* a tag's length */
#define CHANNEL_MAX 64

bool selector_kind_parse(struct str s, enum selector_kind *ret)
{
    int i = text_index(s, selector_texts, COUNT(selector_texts), SELECTOR_EXACT);

    if (i < 0)
        return false;
    *ret = (enum selector_kind)i;
    return true;
}

const char *selector_kind_text(enum selector_kind k)
{
    return (size_t)k < COUNT(selector_texts) ? selector_texts[k] : "none";
}

static bool is_version_text(struct str s, size_t max)
{
    if (s.n == 0 || s.n > max)
        return false;
    for (size_t i = 0; i < s.n; i++) {
        char c = s.p[i];
        if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '_' || c == '-' || c == '+'))
            return false;
    }
    return true;
}

enum err selector_check(enum selector_kind k, struct str value, struct error *reterr)
{
    struct semver_range *range;
    struct digest digest;
    enum err e;

    switch (k) {
    case SELECTOR_EXACT:
        if (!is_version_text(value, VERSION_MAX))
            return error_set_field(reterr, ERR_INVALID, "value", "an exact version has 1 to %d of the characters A-Z a-z 0-9 . _ - +",
                                   VERSION_MAX);
        return ERR_OK;
    case SELECTOR_RANGE:
        e = semver_range_parse(value, &range, reterr);
        if (e)
            return e;
        semver_range_free(range);
        return ERR_OK;
    case SELECTOR_GLOB:
        return glob_check(value, reterr);
    case SELECTOR_CHANNEL:
        if (!is_version_text(value, CHANNEL_MAX))
            return error_set_field(reterr, ERR_INVALID, "value", "a channel has 1 to %d of the characters A-Z a-z 0-9 . _ - +", CHANNEL_MAX);
        return ERR_OK;
    case SELECTOR_DIGEST:
        e = digest_parse(value, &digest, reterr);
        return e ? error_set_field(reterr, e, "value", "a digest is sha256: or sha512: and lower-case hex digits") : ERR_OK;
    case SELECTOR_ALL:
        if (value.n && !str_eq_c(value, "*"))
            return error_set_field(reterr, ERR_INVALID, "value", "the selector all takes no value");
        return ERR_OK;
    case SELECTOR_NONE:
        break;
    }
    return error_set_field(reterr, ERR_INVALID, "selector", "unknown selector");
}

/* ---- addresses ------------------------------------------------------------------------------ */

#define V4_PREFIX_BITS 96

static bool addr_read(struct str s, uint8_t ret[16], bool *ret_v4)
{
    char text[INET6_ADDRSTRLEN];
    uint8_t addr[16] = {[10] = 0xff, [11] = 0xff};

    if (s.n == 0 || s.n >= sizeof text || memchr(s.p, '\0', s.n))
        return false;
    memcpy(text, s.p, s.n);
    text[s.n] = '\0';
    *ret_v4 = str_index(s, ':') < 0;
    if (*ret_v4 ? inet_pton(AF_INET, text, addr + 12) != 1 : inet_pton(AF_INET6, text, addr) != 1)
        return false;
    memcpy(ret, addr, 16);
    return true;
}

void addr_print(const uint8_t addr[16], struct strbuf *ret)
{
    static const uint8_t v4_mapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
    char text[INET6_ADDRSTRLEN];
    bool is_v4 = memcmp(addr, v4_mapped, sizeof v4_mapped) == 0;

    const void *from = is_v4 ? addr + sizeof v4_mapped : addr;

    if (inet_ntop(is_v4 ? AF_INET : AF_INET6, from, text, sizeof text)) /* GCOVR_EXCL_BR_LINE: there is room for every address */
        sb_addc(ret, text);
}

bool addr_parse(struct str s, uint8_t ret[16])
{
    bool v4;

    return addr_read(s, ret, &v4);
}

/* Bits beyond the prefix may be set, as people write 10.1.2.3/8; they are cleared. */
enum err cidr_parse(struct str s, struct cidr *ret, struct error *reterr)
{
    struct cidr c;
    struct str addr = s, prefix = {NULL, 0};
    bool v4, has_prefix = str_cut(s, '/', &addr, &prefix);
    uint64_t bits, most;

    if (!addr_read(addr, c.addr, &v4))
        return error_set_field(reterr, ERR_INVALID, "cidr", "not an IP address or network");
    most = v4 ? 32 : 128;
    bits = most;
    if (has_prefix && (!str_to_u64(prefix, &bits) || prefix.n > 3 || (prefix.n > 1 && prefix.p[0] == '0') || bits > most))
        return error_set_field(reterr, ERR_INVALID, "cidr", "the prefix length is 0 to %u", (unsigned)most);
    c.bits = (uint8_t)(v4 ? bits + V4_PREFIX_BITS : bits);
    for (unsigned i = 0; i < 16; i++) {
        unsigned keep = c.bits <= 8 * i ? 0 : c.bits - 8 * i;
        if (keep < 8)
            c.addr[i] &= (uint8_t)(0xff00u >> keep);
    }
    *ret = c;
    return ERR_OK;
}

bool cidr_contains(const struct cidr *c, const uint8_t addr[16])
{
    unsigned whole = c->bits / 8, rest = c->bits % 8;

    if (c->bits > 128 || memcmp(c->addr, addr, whole) != 0)
        return false;
    return rest == 0 || ((c->addr[whole] ^ addr[whole]) & (uint8_t)(0xff00u >> rest)) == 0;
}

/* ---- installations -------------------------------------------------------------------------- */

uint64_t license_instance(struct str credential_id, const uint8_t addr[16])
{
    static const uint8_t v4_mapped[V4_PREFIX_BITS / 8] = {[10] = 0xff, [11] = 0xff};
    uint8_t where[16], sum[32];
    struct strbuf text = {0};
    uint64_t instance = 0;

    memcpy(where, addr, sizeof where);
    if (memcmp(where, v4_mapped, sizeof v4_mapped) != 0)
        memset(where + 8, 0, 8); /* an IPv6 host changes its lower half at will */
    sb_add(&text, credential_id);
    sb_add_char(&text, '|');
    sb_add(&text, (struct str){(const char *)where, sizeof where});
    seal_sha256(sb_str(&text), sum);
    sb_free(&text);
    for (size_t i = 0; i < sizeof instance; i++)
        instance = instance << 8 | sum[i];
    return instance ? instance : 1; /* GCOVR_EXCL_BR_LINE: nobody knows what hashes to zero */
}

const char *license_instance_text(uint64_t instance, char ret[LICENSE_INSTANCE_TEXT_MAX])
{
    static const char digits[] = "0123456789abcdef";

    for (size_t i = 0; i < LICENSE_INSTANCE_TEXT_MAX - 1; i++)
        ret[i] = digits[instance >> (60 - 4 * i) & 15];
    ret[LICENSE_INSTANCE_TEXT_MAX - 1] = '\0';
    return ret;
}

/* ---- the entitlement ------------------------------------------------------------------------ */

/* Its strings and arrays live in blocks that are freed together; only the ranges are objects of their own. */
struct block {
    struct block *next;
    size_t used, size;
    char bytes[] __attribute__((aligned(16)));
};

struct owned { /* what an entitlement really is */
    struct entitlement e;
    struct block *blocks;
};

#define BLOCK_BYTES 16384 /* a customer with a dozen licenses fits one */

static void *owned_alloc(struct owned *o, size_t n)
{
    struct block *b = o->blocks;

    n = (n + 15) & ~(size_t)15;
    if (!b || b->size - b->used < n) {
        size_t size = n > BLOCK_BYTES ? n : BLOCK_BYTES;
        b = mem_zalloc(sizeof *b + size);
        b->size = size;
        b->next = o->blocks;
        o->blocks = b;
    }
    void *p = b->bytes + b->used;
    b->used += n;
    return p;
}

/* Zeroed; NULL for none. The count is that of a parsed array, so its product fits. */
static void *owned_array(struct owned *o, size_t count, size_t size)
{
    return count ? owned_alloc(o, count * size) : NULL;
}

static struct str owned_str(struct owned *o, struct str s)
{
    if (s.n == 0)
        return S("");
    char *p = owned_alloc(o, s.n + 1);
    memcpy(p, s.p, s.n);
    return (struct str){p, s.n};
}

/* One object being read: counts what was asked for, so that what is left over shows. */
struct form {
    struct owned *o;
    const struct jv *object;
    size_t taken;
    struct error *reterr;
    bool bad;
};

static bool form_open(struct form *f, struct owned *o, const struct jv *object, const char *what, struct error *reterr)
{
    *f = (struct form){.o = o, .object = object, .reterr = reterr};
    if (jv_type(object) == JV_OBJECT)
        return true;
    (void)error_set_field(reterr, ERR_INVALID, what, "not an object");
    return false;
}

static const struct jv *form_take(struct form *f, const char *key, enum jv_type type)
{
    const struct jv *v = jv_get(f->object, key);

    f->taken++;
    if (jv_type(v) == type)
        return v;
    if (!f->bad)
        (void)error_set_field(f->reterr, ERR_INVALID, key, v ? "of the wrong type" : "missing");
    f->bad = true;
    return NULL;
}

/* A member that older writers leave out: NULL, and no fault, when it is absent. */
static const struct jv *form_take_if(struct form *f, const char *key, enum jv_type type)
{
    return jv_get(f->object, key) ? form_take(f, key, type) : NULL;
}

static void form_wrong(struct form *f, const char *key, const char *why)
{
    if (!f->bad)
        (void)error_set_field(f->reterr, ERR_INVALID, key, "%s", why);
    f->bad = true;
}

/* True when every member was there, as it must be, and no other. */
static bool form_close(struct form *f)
{
    if (!f->bad && jv_len(f->object) != f->taken)
        form_wrong(f, "", "a member that is not known here");
    return !f->bad;
}

static void form_str(struct form *f, const char *key, struct str *ret)
{
    *ret = owned_str(f->o, jv_str(form_take(f, key, JV_STRING)));
}

static void form_id(struct form *f, const char *key, struct str *ret)
{
    form_str(f, key, ret);
    if (ret->n == 0)
        form_wrong(f, key, "empty");
}

static void form_bool(struct form *f, const char *key, bool *ret)
{
    *ret = jv_bool(form_take(f, key, JV_BOOL), false);
}

static void form_count(struct form *f, const char *key, int64_t *ret)
{
    *ret = jv_int(form_take(f, key, JV_INT), -1);
    if (*ret < 0)
        form_wrong(f, key, "negative");
}

static int form_enum(struct form *f, const char *key, const char *const *texts, size_t n, size_t first)
{
    int i = text_index(jv_str(form_take(f, key, JV_STRING)), texts, n, first);

    if (i < 0)
        form_wrong(f, key, "a value that is not known here");
    return i < 0 ? 0 : i;
}

static void form_strs(struct form *f, const char *key, struct str **ret, size_t *ret_n)
{
    const struct jv *a = form_take(f, key, JV_ARRAY);
    size_t n = jv_len(a);

    *ret = owned_array(f->o, n, sizeof **ret);
    for (size_t i = 0; i < n; i++) {
        struct str s = jv_str(jv_at(a, i));
        if (s.n == 0)
            form_wrong(f, key, "not a list of names");
        (*ret)[i] = owned_str(f->o, s);
    }
    *ret_n = n;
}

static void form_cidrs(struct form *f, const char *key, struct cidr **ret, size_t *ret_n)
{
    const struct jv *a = form_take(f, key, JV_ARRAY);
    size_t n = jv_len(a);

    *ret = owned_array(f->o, n, sizeof **ret);
    for (size_t i = 0; i < n; i++)
        if (cidr_parse(jv_str(jv_at(a, i)), &(*ret)[i], NULL))
            form_wrong(f, key, "not a list of networks");
    *ret_n = n;
}

static int compare_instances(const void *a, const void *b)
{
    const uint64_t *x = a, *y = b;
    return *x < *y ? -1 : *x > *y;
}

/* Absent: there is room for further ones. */
static void form_instances(struct form *f, const char *key, struct license *ret)
{
    const struct jv *a = form_take_if(f, key, JV_ARRAY);
    size_t n = jv_len(a);

    if (!a)
        return;
    ret->instances_full = true;
    ret->instances = owned_array(f->o, n, sizeof *ret->instances);
    for (size_t i = 0; i < n; i++) {
        uint8_t bytes[8];
        uint64_t instance = 0;
        if (!hex_decode(jv_str(jv_at(a, i)), bytes, sizeof bytes))
            form_wrong(f, key, "not a list of installations");
        else
            for (size_t k = 0; k < sizeof bytes; k++)
                instance = instance << 8 | bytes[k];
        ret->instances[i] = instance;
    }
    ret->n_instances = n;
    if (n)
        qsort(ret->instances, n, sizeof *ret->instances, compare_instances);
}

static bool pin_read(struct owned *o, const struct jv *v, struct grant_pin *ret, struct error *reterr)
{
    struct form f;

    if (!form_open(&f, o, v, "pins", reterr))
        return false;
    form_id(&f, "repository", &ret->repository);
    form_id(&f, "tag", &ret->tag);
    if (digest_parse(jv_str(form_take(&f, "digest", JV_STRING)), &ret->digest, NULL))
        form_wrong(&f, "digest", "not a digest");
    return form_close(&f);
}

static bool grant_read(struct owned *o, const struct jv *v, struct grant *ret, struct error *reterr)
{
    struct form f;

    if (!form_open(&f, o, v, "grants", reterr))
        return false;
    form_id(&f, "id", &ret->id);
    ret->selector = (enum selector_kind)form_enum(&f, "selector", selector_texts, COUNT(selector_texts), SELECTOR_EXACT);
    form_str(&f, "value", &ret->value);
    form_bool(&f, "include_prerelease", &ret->include_prerelease);
    form_count(&f, "not_before", &ret->not_before_s);
    form_count(&f, "not_after", &ret->not_after_s);
    form_count(&f, "granted_at", &ret->granted_at_s);
    ret->on_move = (enum grant_on_move)form_enum(&f, "on_move", on_move_texts, COUNT(on_move_texts), 0);
    form_strs(&f, "repositories", &ret->repositories, &ret->n_repositories);

    const struct jv *pins = form_take(&f, "pins", JV_ARRAY);
    ret->n_pins = jv_len(pins);
    ret->pins = owned_array(o, ret->n_pins, sizeof *ret->pins);
    for (size_t i = 0; i < ret->n_pins; i++)
        if (!pin_read(o, jv_at(pins, i), &ret->pins[i], reterr))
            return false;
    if (jv_get(v, "excluded")) /* left out where there is none */
        form_strs(&f, "excluded", &ret->excluded, &ret->n_excluded);
    if (f.bad)
        return false;

    if (ret->selector == SELECTOR_RANGE) {
        if (semver_range_parse(ret->value, &ret->range, reterr))
            return false;
    } else if (ret->selector == SELECTOR_DIGEST) {
        if (digest_parse(ret->value, &ret->digest, reterr))
            return false;
    } else if (selector_check(ret->selector, ret->value, reterr)) {
        return false;
    }
    return form_close(&f);
}

static bool license_read(struct owned *o, const struct jv *v, struct license *ret, struct error *reterr)
{
    struct form f;

    if (!form_open(&f, o, v, "licenses", reterr))
        return false;
    form_id(&f, "id", &ret->id);
    form_str(&f, "name", &ret->name);
    form_id(&f, "application_id", &ret->application_id);
    form_str(&f, "application_slug", &ret->application_slug);
    ret->terms.status = (enum license_status)form_enum(&f, "status", status_texts, COUNT(status_texts), LICENSE_INACTIVE);
    form_str(&f, "status_reason", &ret->status_reason);
    form_count(&f, "starts_at", &ret->terms.starts_at_s);
    form_count(&f, "expires_at", &ret->terms.expires_at_s);
    form_count(&f, "grace_days", &ret->terms.grace_days);
    form_count(&f, "updates_until", &ret->updates_until_s);
    ret->on_expiry = (enum license_on_expiry)form_enum(&f, "on_expiry", on_expiry_texts, COUNT(on_expiry_texts), 0);
    form_cidrs(&f, "allowed_cidrs", &ret->allowed_cidrs, &ret->n_allowed_cidrs);
    form_strs(&f, "repositories", &ret->repositories, &ret->n_repositories);
    form_str(&f, "upstream_credential_id", &ret->upstream_credential_id);
    if (jv_get(v, "payment_failed_at"))
        form_count(&f, "payment_failed_at", &ret->terms.payment_failed_at_s);
    form_bool(&f, "quota_exceeded", &ret->quota_exceeded);
    if (jv_get(v, "quota_until"))
        form_count(&f, "quota_until", &ret->quota_until_s);
    form_instances(&f, "instances", ret);

    const struct jv *grants = form_take(&f, "grants", JV_ARRAY);
    ret->grants = owned_array(o, jv_len(grants), sizeof *ret->grants);
    ret->n_grants = jv_len(grants); /* zeroed: a reader that stops in the middle leaves grants without a range */
    for (size_t i = 0; i < ret->n_grants; i++)
        if (!grant_read(o, jv_at(grants, i), &ret->grants[i], reterr))
            return false;
    return form_close(&f);
}

enum err entitlement_parse(const struct jv *doc, struct entitlement **ret, struct error *reterr)
{
    struct owned *o = NEW(struct owned);
    struct entitlement *e = &o->e;
    struct form f;

    e->refs = 1;
    if (!form_open(&f, o, doc, "entitlement", reterr))
        goto fail;
    form_id(&f, "customer_id", &e->customer_id);
    form_str(&f, "customer_slug", &e->customer_slug);
    form_id(&f, "vendor_id", &e->vendor_id);
    form_bool(&f, "disabled", &e->customer_disabled);
    form_str(&f, "renew_url", &e->renew_url);
    form_str(&f, "support_contact", &e->support_contact);
    if (jv_get(doc, "requests_per_second"))
        form_count(&f, "requests_per_second", &e->requests_per_second);

    const struct jv *licenses = form_take(&f, "licenses", JV_ARRAY);
    e->licenses = owned_array(o, jv_len(licenses), sizeof *e->licenses);
    e->n_licenses = jv_len(licenses);
    for (size_t i = 0; i < e->n_licenses; i++)
        if (!license_read(o, jv_at(licenses, i), &e->licenses[i], reterr))
            goto fail;
    for (size_t i = 0; i < e->n_licenses; i++)
        e->counts_instances |= e->licenses[i].instances_full;
    if (!form_close(&f))
        goto fail;
    *ret = e;
    return ERR_OK;

fail:
    entitlement_unref(&e);
    return ERR_INVALID;
}

/* Counted without atomics: an entitlement belongs to one worker. */
struct entitlement *entitlement_ref(struct entitlement *e)
{
    e->refs++;
    return e;
}

void entitlement_unref(struct entitlement **e)
{
    struct entitlement *gone = *e;

    *e = NULL;
    if (!gone || --gone->refs > 0)
        return;
    for (size_t i = 0; i < gone->n_licenses; i++)
        for (size_t g = 0; g < gone->licenses[i].n_grants; g++)
            semver_range_free(gone->licenses[i].grants[g].range);
    struct owned *o = (struct owned *)(void *)gone;
    while (o->blocks) {
        struct block *next = o->blocks->next;
        mem_free(o->blocks);
        o->blocks = next;
    }
    mem_free(o);
}
