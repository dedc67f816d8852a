/* What a license gives out besides pulls: the answer to an application that validates its key, with a lease; the signed license file; the
 * list of what is revoked. Forms: docs/LICENSE_FILE.md. What changes a license stands in api_licenses.c; what ends a
 * file, or a license, is noted by the triggers of migration 5. */
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "api_routes.h"
#include "db.h"
#include "eventlog.h"
#include "pullgate/clock.h"
#include "pullgate/credential.h"
#include "pullgate/jws.h"
#include "pullgate/license.h"
#include "pullgate/log.h"
#include "pullgate/mem.h"
#include "signer.h"

#define FORM                 1           /* claim "version" of all three kinds */
#define DAY_S                86400
#define HEARTBEAT_EVERY_S    60          /* of one license and instance */
#define HEARTBEAT_SLOTS      4096        /* pairs of them that are remembered; more cost a write each */
#define INSTANCE_WINDOW_S    (30 * DAY_S) /* an instance that was silent for so long does not count against max_instances */
#define INSTANCES_MAX        10000       /* rows of one license; further installations validate without being recorded */
#define FINGERPRINT_MAX      63          /* bytes; a longer one, or one that cannot stand in a path, is stood for by its hash */
#define LEASE_MIN_S          300
#define LEASE_MAX_S          (90 * DAY_S)
#define CRL_ENTRIES_MAX      250000      /* of a list; beyond it, licenses that no file was ever made for are left out */
#define CRL_CACHE_S          600         /* a list without news is signed anew this often */
#define CRL_CACHE_VENDORS    16
#define CRL_CLIENTS_CACHE_S  60          /* a revocation is seen by who asks through caches after at most this */

/* ---- a license as it is told to the outside ---------------------------------------------------------------------------- */

struct subject {
    bool is_known;
    char *id, *vendor_id, *vendor_slug, *customer_id, *key_prefix, *key_hash;
    char *name, *application, *reason, *renew_url, *support_contact;
    struct license_terms terms;
    int64_t updates_until;
    bool is_disabled, requires_activation; /* is_disabled: the customer, or the vendor */
    bool denies_instances;                 /* limit_action is deny */
    struct jv *limits, *features, *cidrs;
    struct jv *claims; /* what every kind of document says of it: vendor, customer, application, terms */
};

static void subject_free(struct subject *s)
{
    char *texts[] = {s->id,   s->vendor_id,   s->vendor_slug, s->customer_id, s->key_prefix, s->key_hash,
                     s->name, s->application, s->reason,      s->renew_url,   s->support_contact};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        mem_free(texts[i]);
    jv_free(s->limits);
    jv_free(s->features);
    jv_free(s->cidrs);
    jv_free(s->claims);
    *s = (struct subject){0};
}

#define SUBJECT_SELECT                                                                                                                      \
    "SELECT l.id, l.name, l.type, l.status, l.status_reason, l.environment, l.starts_at, l.expires_at, l.grace_days, l.updates_until,"      \
    " l.on_expiry, l.limits, l.limit_action, l.features, l.allowed_cidrs, l.key_prefix, l.key_hash, l.requires_activation, l.issuer,"       \
    " v.id, v.slug, v.name, v.renew_url, v.support_contact, u.id, u.slug, u.name, u.disabled OR v.suspended_at<>0, a.id, a.slug, a.name, l.order_number, l.payment_failed_at" \
    " FROM licenses l JOIN vendors v ON v.id=l.vendor_id JOIN customers u ON u.id=l.customer_id JOIN applications a ON a.id=l.application_id" \
    " WHERE l.archived_at=0 AND u.archived_at=0 AND "
enum {
    S_ID,
    S_NAME,
    S_TYPE,
    S_STATUS,
    S_REASON,
    S_ENVIRONMENT,
    S_STARTS,
    S_EXPIRES,
    S_GRACE,
    S_UPDATES,
    S_ON_EXPIRY,
    S_LIMITS,
    S_LIMIT_ACTION,
    S_FEATURES,
    S_CIDRS,
    S_KEY_PREFIX,
    S_KEY_HASH,
    S_REQUIRES_ACTIVATION,
    S_ISSUER,
    S_VENDOR,
    S_VENDOR_SLUG,
    S_VENDOR_NAME,
    S_RENEW_URL,
    S_SUPPORT,
    S_CUSTOMER,
    S_CUSTOMER_SLUG,
    S_CUSTOMER_NAME,
    S_CUSTOMER_DISABLED,
    S_APPLICATION,
    S_APPLICATION_SLUG,
    S_APPLICATION_NAME,
    S_ORDER,
    S_PAYMENT_FAILED,
};

static struct jv *json_of(struct str text, bool is_array)
{
    struct jv *v = NULL;
    if (text.n && jv_parse(text, &JV_LIMITS_TRUSTED, &v, NULL) == ERR_OK && jv_type(v) == (is_array ? JV_ARRAY : JV_OBJECT))
        return v;
    jv_free(v);
    return is_array ? jv_array() : jv_object();
}

static void set_party(struct jv *claims, const char *key, struct str id, struct str slug, struct str name)
{
    struct jv *v = jv_object();
    jv_set_str(v, "id", id);
    jv_set_str(v, "slug", slug);
    jv_set_str(v, "name", name);
    jv_set(claims, key, v);
}

static void subject_take(const struct store_stmt *st, struct subject *s)
{
    s->is_known = true;
    s->id = str_dup(store_col_str(st, S_ID));
    s->name = str_dup(store_col_str(st, S_NAME));
    s->reason = str_dup(store_col_str(st, S_REASON));
    s->key_prefix = str_dup(store_col_str(st, S_KEY_PREFIX));
    s->key_hash = str_dup(store_col_str(st, S_KEY_HASH));
    s->vendor_id = str_dup(store_col_str(st, S_VENDOR));
    s->vendor_slug = str_dup(store_col_str(st, S_VENDOR_SLUG));
    s->customer_id = str_dup(store_col_str(st, S_CUSTOMER));
    s->application = str_dup(store_col_str(st, S_APPLICATION_SLUG));
    s->renew_url = str_dup(store_col_str(st, S_RENEW_URL));
    s->support_contact = str_dup(store_col_str(st, S_SUPPORT));
    if (!license_status_parse(store_col_str(st, S_STATUS), &s->terms.status))
        s->terms.status = LICENSE_STATUS_NONE;
    s->terms.starts_at_s = store_col_int(st, S_STARTS);
    s->terms.expires_at_s = store_col_int(st, S_EXPIRES);
    s->terms.grace_days = store_col_int(st, S_GRACE);
    s->terms.payment_failed_at_s = store_col_int(st, S_PAYMENT_FAILED);
    s->updates_until = store_col_int(st, S_UPDATES);
    s->is_disabled = store_col_int(st, S_CUSTOMER_DISABLED) != 0;
    s->requires_activation = store_col_int(st, S_REQUIRES_ACTIVATION) != 0;
    s->limits = json_of(store_col_str(st, S_LIMITS), false);
    s->denies_instances = str_eq(store_col_str(st, S_LIMIT_ACTION), S("deny"));
    s->features = json_of(store_col_str(st, S_FEATURES), false);
    s->cidrs = json_of(store_col_str(st, S_CIDRS), true);

    struct jv *c = s->claims = jv_object();
    struct str issuer = store_col_str(st, S_ISSUER);
    jv_set_int(c, "version", FORM);
    jv_set_str(c, "license_id", store_col_str(st, S_ID));
    jv_set_str(c, "name", store_col_str(st, S_NAME));
    jv_set_str(c, "type", store_col_str(st, S_TYPE));
    jv_set_str(c, "environment", store_col_str(st, S_ENVIRONMENT));
    jv_set_str(c, "order_number", store_col_str(st, S_ORDER));
    jv_set_str(c, "issuer", issuer.n ? issuer : store_col_str(st, S_VENDOR_NAME));
    jv_set_str(c, "key_prefix", store_col_str(st, S_KEY_PREFIX));
    jv_set_time(c, "starts_at", s->terms.starts_at_s);
    jv_set_time(c, "expires_at", s->terms.expires_at_s);
    jv_set_int(c, "grace_days", s->terms.grace_days);
    jv_set_time(c, "updates_until", s->updates_until);
    jv_set_str(c, "on_expiry", store_col_str(st, S_ON_EXPIRY));
    jv_set_str(c, "limit_action", store_col_str(st, S_LIMIT_ACTION));
    jv_set(c, "limits", jv_copy(s->limits));
    jv_set(c, "features", jv_copy(s->features));
    set_party(c, "vendor", store_col_str(st, S_VENDOR), store_col_str(st, S_VENDOR_SLUG), store_col_str(st, S_VENDOR_NAME));
    set_party(c, "customer", store_col_str(st, S_CUSTOMER), store_col_str(st, S_CUSTOMER_SLUG), store_col_str(st, S_CUSTOMER_NAME));
    set_party(c, "application", store_col_str(st, S_APPLICATION), store_col_str(st, S_APPLICATION_SLUG), store_col_str(st, S_APPLICATION_NAME));
}

static enum err subject_by_key(struct api *rq, const char *hash, struct subject *s)
{
    struct store_stmt *st = NULL;
    bool row = false;
    enum err err = store_query(rq->store, &st, &rq->error, SUBJECT_SELECT "l.key_hash=?", "z", hash);
    if (!err)
        err = store_step(st, &row, &rq->error);
    if (!err && row)
        subject_take(st, s);
    store_done(&st);
    return err;
}

/* Of the caller: his vendor's, and with a customer's sign-in that customer's and no other than his credential is bound to. */
static enum err subject_by_id(struct api *rq, struct str id, struct subject *s)
{
    struct store_stmt *st = NULL;
    bool row = false;
    if (rq->license_id && *rq->license_id && !str_eq_c(id, rq->license_id))
        return api_not_found(rq, "license");
    enum err err = store_query(rq->store, &st, &rq->error, SUBJECT_SELECT "l.id=?1 AND l.vendor_id=?2 AND (?3='' OR l.customer_id=?3)", "szz", id,
                               rq->vendor_id, rq->customer_id ? rq->customer_id : "");
    if (!err)
        err = store_step(st, &row, &rq->error);
    if (!err && !row)
        err = api_not_found(rq, "license");
    if (!err)
        subject_take(st, s);
    store_done(&st);
    return err;
}

/* What a key that nobody has is worked on as, so that its answer takes what another's does. */
static void subject_decoy(struct subject *s)
{
    static const struct str id = S("lic_00000000000000000000000000"), name = S("Production");
    char **texts[] = {&s->id,   &s->vendor_id,   &s->vendor_slug, &s->customer_id, &s->key_prefix, &s->key_hash,
                      &s->name, &s->application, &s->reason,      &s->renew_url,   &s->support_contact};
    static const char *const members[] = {"license_id", "name", "type", "environment", "order_number", "issuer", "key_prefix", "on_expiry", "limit_action"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        *texts[i] = str_dup(id);
    s->terms.status = LICENSE_ACTIVE;
    s->limits = jv_object();
    s->features = jv_object();
    s->cidrs = jv_array();
    s->claims = jv_object();
    for (size_t i = 0; i < sizeof members / sizeof *members; i++)
        jv_set_str(s->claims, members[i], name);
    set_party(s->claims, "vendor", id, name, name);
    set_party(s->claims, "customer", id, name, name);
    set_party(s->claims, "application", id, name, name);
}

/* The end that is waited for: of the grace time; 0: never. */
static int64_t terms_end(const struct license_terms *t)
{
    return t->expires_at_s ? t->expires_at_s + t->grace_days * DAY_S : 0;
}

static void claims_stamp(struct jv *claims, const struct admin *a, const char *id, int64_t iat, int64_t nbf, int64_t exp)
{
    jv_set_c(claims, "iss", signer_issuer(a));
    jv_set_c(claims, "sub", id);
    jv_set_int(claims, "iat", iat);
    if (nbf)
        jv_set_int(claims, "nbf", nbf);
    if (exp)
        jv_set_int(claims, "exp", exp);
}

static enum err claims_sign(struct api *rq, const char *typ, const char *kid, const struct jv *claims, struct strbuf *ret)
{
    if (!jws_build(rq->admin->keys, typ, str_c(kid), claims, ret))
        return error_set(&rq->error, ERR_UNAVAILABLE, "the key %s is gone", kid);
    return ERR_OK;
}

/* ---- heartbeats -------------------------------------------------------------------------------------------------------- */

struct heartbeat {
    char *license_id, *vendor_id, *customer_id, *fingerprint, *address, *agent;
    int64_t at_s;
};

/* The last one of a license and instance, so that who asks every second costs the writer a write a minute. A pair whose slot another
 * took is only written more often. */
static struct {
    pthread_mutex_t mutex;
    struct heartbeat_slot {
        uint64_t pair;
        int64_t at_s;
    } slots[HEARTBEAT_SLOTS];
} heartbeats = {.mutex = PTHREAD_MUTEX_INITIALIZER};

static bool heartbeat_due(const char *license_id, const char *fingerprint, int64_t now_s)
{
    struct strbuf text = {0};
    sb_addf(&text, "%s|%s", license_id, fingerprint);
    uint64_t pair = str_hash(sb_str(&text));
    sb_free(&text);
    struct heartbeat_slot *slot = &heartbeats.slots[pair % HEARTBEAT_SLOTS];
    pthread_mutex_lock(&heartbeats.mutex);
    bool due = slot->pair != pair || now_s - slot->at_s >= HEARTBEAT_EVERY_S || now_s < slot->at_s;
    if (due)
        *slot = (struct heartbeat_slot){pair, now_s};
    pthread_mutex_unlock(&heartbeats.mutex);
    return due;
}

/* In the writer. */
static enum err heartbeat_write(struct store *s, void *arg, struct error *reterr)
{
    struct heartbeat *h = arg;
    int64_t made = 0;
    enum err err = store_exec(s, &made, reterr,
                              "INSERT INTO license_instances (license_id, fingerprint, kind, address, agent, first_seen_at, last_seen_at)"
                              " SELECT ?1,?2,'validate',?3,?4,?5,?5 WHERE EXISTS (SELECT 1 FROM licenses WHERE id=?1)"
                              " AND NOT EXISTS (SELECT 1 FROM license_instances WHERE license_id=?1 AND fingerprint=?2)"
                              " AND (SELECT count(*) FROM (SELECT 1 FROM license_instances WHERE license_id=?1 LIMIT ?6)) < ?6",
                              "zzzzii", h->license_id, h->fingerprint, h->address, h->agent, h->at_s, (int64_t)INSTANCES_MAX);
    if (!err && !made) /* one that was reset registers again */
        err = store_exec(s, NULL, reterr,
                         "UPDATE license_instances SET address=?3, agent=?4, last_seen_at=?5, revoked_at=0,"
                         " first_seen_at=CASE revoked_at WHEN 0 THEN first_seen_at ELSE ?5 END WHERE license_id=?1 AND fingerprint=?2",
                         "zzzzi", h->license_id, h->fingerprint, h->address, h->agent, h->at_s);
    if (!err)
        err = store_exec(s, NULL, reterr,
                         "UPDATE licenses SET last_validated_at=?1, first_used_at=CASE first_used_at WHEN 0 THEN ?1 ELSE first_used_at END WHERE id=?2",
                         "iz", h->at_s, h->license_id);
    if (err || !made)
        return err;
    struct jv *data = jv_object();
    jv_set_c(data, "fingerprint", h->fingerprint);
    jv_set_c(data, "address", h->address);
    jv_set_c(data, "agent", h->agent);
    const struct event_record e = {.vendor_id = h->vendor_id,
                                   .type = "license.instance_registered",
                                   .actor = "validate",
                                   .customer_id = h->customer_id,
                                   .license_id = h->license_id,
                                   .data = data};
    err = eventlog_put(s, &e, reterr);
    jv_free(data);
    return err;
}

static void heartbeat_done(void *arg, enum err err)
{
    static unsigned long long told;
    struct heartbeat *h = arg;
    if (err)
        log_limited(&told, 10000, LOG_LEVEL_WARN, "a validation could not be recorded: %s", err_text(err));
    mem_free(h->license_id);
    mem_free(h->vendor_id);
    mem_free(h->customer_id);
    mem_free(h->fingerprint);
    mem_free(h->address);
    mem_free(h->agent);
    mem_free(h);
}

static void heartbeat_note(struct api *rq, const struct subject *s, const char *fingerprint)
{
    struct str hostname = jv_get_str(rq->in, "hostname"), version = jv_get_str(rq->in, "version");
    struct strbuf agent = {0};
    if (!heartbeat_due(s->id, fingerprint, rq->now_s))
        return;
    sb_add(&agent, hostname);
    if (version.n)
        sb_addf(&agent, "%s%.*s", hostname.n ? " " : "", STR(version));
    struct heartbeat *h = NEW(struct heartbeat);
    *h = (struct heartbeat){.license_id = mem_strdup(s->id),
                            .vendor_id = mem_strdup(s->vendor_id),
                            .customer_id = mem_strdup(s->customer_id),
                            .fingerprint = mem_strdup(fingerprint),
                            .address = mem_strdup(rq->peer),
                            .agent = str_dup(sb_str(&agent)),
                            .at_s = rq->now_s};
    sb_free(&agent);
    if (db_post(rq->admin->writer, DB_TRANSACTION, heartbeat_write, h, heartbeat_done))
        heartbeat_done(h, ERR_OK); /* the writer has more to do than it can: the next one counts */
}

/* ---- validate ---------------------------------------------------------------------------------------------------------- */

static const struct field VALIDATE_FIELDS[] = {
    {.name = "key", .type = FIELD_SECRET, .flags = FIELD_REQUIRED, .max = 200, .about = "the license key, in any spelling"},
    {.name = "instance_id",
     .type = FIELD_STRING,
     .max = 200,
     .about = "what this installation calls itself, the same each time; without it, its hostname, else its address, stands for it"},
    {.name = "version", .type = FIELD_STRING, .max = 64, .about = "of the application"},
    {.name = "hostname", .type = FIELD_STRING, .max = 255},
    {.name = NULL},
};
static const struct schema VALIDATE = {"Validate", VALIDATE_FIELDS};
static const struct field VALIDATION_FIELDS[] = {
    {.name = "valid", .type = FIELD_BOOL},
    {.name = "reason",
     .type = FIELD_STRING,
     .one_of = "ok|unknown_key|inactive|suspended|revoked|scheduled|expired|customer_disabled|ip_not_allowed|instance_limit"},
    {.name = "message", .type = FIELD_STRING, .about = "for a person"},
    {.name = "effective_status", .type = FIELD_STRING, .flags = FIELD_NULL},
    {.name = "license_id", .type = FIELD_STRING, .flags = FIELD_NULL},
    {.name = "expires_at", .type = FIELD_TIME, .about = "null: never"},
    {.name = "updates_until", .type = FIELD_TIME},
    {.name = "limits", .type = FIELD_MAP},
    {.name = "features", .type = FIELD_MAP},
    {.name = "lease", .type = FIELD_STRING, .flags = FIELD_NULL, .about = "signed, to be believed until lease_expires_at without asking again"},
    {.name = "lease_expires_at", .type = FIELD_TIME},
    {.name = NULL},
};
static const struct schema VALIDATION = {"Validation", VALIDATION_FIELDS};

static bool address_allowed(const struct jv *cidrs, const uint8_t addr[16])
{
    for (size_t i = 0; i < jv_len(cidrs); i++) {
        struct cidr c;
        if (cidr_parse(jv_str(jv_at(cidrs, i)), &c, NULL) == ERR_OK && cidr_contains(&c, addr))
            return true;
    }
    return jv_len(cidrs) == 0;
}

/* True when a further instance would be beyond a max_instances that denies. */
static enum err instances_full(struct api *rq, const struct subject *s, const char *fingerprint, bool *ret)
{
    struct store_stmt *st = NULL;
    bool row = false;
    int64_t max = jv_get_int(s->limits, "max_instances", 0);
    *ret = false;
    if (max <= 0 || !s->denies_instances)
        return ERR_OK;
    enum err err = store_query(rq->store, &st, &rq->error,
                               "SELECT count(*), COALESCE(sum(fingerprint=?2),0) FROM license_instances"
                               " WHERE license_id=?1 AND kind='validate' AND revoked_at=0 AND last_seen_at>?3",
                               "zzi", s->id, fingerprint, rq->now_s - INSTANCE_WINDOW_S);
    if (!err)
        err = store_step(st, &row, &rq->error);
    if (!err && row)
        *ret = store_col_int(st, 1) == 0 && store_col_int(st, 0) >= max;
    store_done(&st);
    return err;
}

static const char *reason_of(const struct subject *s, enum license_effective e, const uint8_t addr[16])
{
    switch (e) {
    case LICENSE_EFF_REVOKED:
        return "revoked";
    case LICENSE_EFF_SUSPENDED:
        return "suspended";
    case LICENSE_EFF_INACTIVE:
        return "inactive";
    case LICENSE_EFF_SCHEDULED:
        return "scheduled";
    case LICENSE_EFF_EXPIRED:
        return "expired";
    case LICENSE_EFF_GRACE:
    case LICENSE_EFF_EXPIRING:
    case LICENSE_EFF_ACTIVE:
        break;
    case LICENSE_EFF_NONE:
        return "revoked"; /* a status of a later version: no */
    }
    if (s->is_disabled)
        return "customer_disabled";
    return address_allowed(s->cidrs, addr) ? "ok" : "ip_not_allowed";
}

static void message_print(const struct subject *s, const char *reason, const char *peer, enum license_effective e, struct strbuf *ret)
{
    char date[CLOCK_RFC3339_MAX];
    const char *what_to_do = "";
    sb_addf(ret, "license \"%s\" for %s ", s->name, s->application);
    if (strcmp(reason, "ok") == 0) {
        if (e == LICENSE_EFF_GRACE)
            sb_addf(ret, "expired on %s and is in its grace time", clock_date(s->terms.expires_at_s, date));
        else
            sb_addc(ret, "is valid");
        if (s->terms.expires_at_s && e != LICENSE_EFF_GRACE)
            sb_addf(ret, " until %s", clock_date(s->terms.expires_at_s, date));
        if (e == LICENSE_EFF_ACTIVE)
            return;
        what_to_do = "Renew";
    } else if (strcmp(reason, "expired") == 0) {
        sb_addf(ret, "expired on %s", clock_date(s->terms.expires_at_s, date));
        what_to_do = "Renew";
    } else if (strcmp(reason, "scheduled") == 0) {
        sb_addf(ret, "begins on %s", clock_date(s->terms.starts_at_s, date));
    } else if (strcmp(reason, "inactive") == 0) {
        sb_addc(ret, "awaits activation by the vendor");
    } else if (strcmp(reason, "ip_not_allowed") == 0) {
        sb_addf(ret, "may not be used from %s", peer);
    } else if (strcmp(reason, "instance_limit") == 0) {
        sb_addf(ret, "is used by %lld instances already, which is all that it allows", (long long)jv_get_int(s->limits, "max_instances", 0));
    } else if (strcmp(reason, "customer_disabled") == 0) {
        sb_addc(ret, "cannot be used: the customer is disabled");
    } else {
        sb_addf(ret, "is %s%s%s", reason, *s->reason ? ": " : "", s->reason);
    }
    if (*what_to_do && *s->renew_url)
        sb_addf(ret, ". %s: %s", what_to_do, s->renew_url);
    else if (*s->support_contact)
        sb_addf(ret, ". Contact: %s", s->support_contact);
}

/* What may stand in a path: DELETE /licenses/{id}/instances/{fingerprint}. */
static bool is_path_text(struct str s)
{
    for (size_t i = 0; i < s.n; i++) {
        char c = s.p[i];
        if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || (c != '\0' && strchr("._:@+~-", c))))
            return false;
    }
    return true;
}

static void fingerprint_of(const struct api *rq, char ret[FINGERPRINT_MAX + 1])
{
    struct str given = jv_get_str(rq->in, "instance_id"), hostname = jv_get_str(rq->in, "hostname");
    struct strbuf b = {0};
    if (given.n)
        sb_add(&b, given);
    else if (hostname.n)
        sb_addf(&b, "host:%.*s", STR(hostname));
    else
        sb_addf(&b, "addr:%s", rq->peer);
    if (b.n > FINGERPRINT_MAX || !is_path_text(sb_str(&b))) {
        uint8_t sum[32];
        seal_sha256(sb_str(&b), sum);
        sb_reset(&b);
        sb_addc(&b, "sha256:");
        sb_add_hex(&b, sum, 28);
    }
    memcpy(ret, b.p, b.n + 1);
    sb_free(&b);
}

static int64_t lease_end(const struct api *rq, const struct subject *s)
{
    uint64_t ms = admin_config(rq->admin)->limits.lease_ms, own;
    struct str text = jv_get_str(jv_get(s->limits, "custom"), "lease");
    if (text.n && clock_parse_duration(text, &own, NULL) == ERR_OK)
        ms = own;
    int64_t length = ms / 1000 > LEASE_MAX_S ? LEASE_MAX_S : ms / 1000 < LEASE_MIN_S ? LEASE_MIN_S : (int64_t)(ms / 1000);
    int64_t end = rq->now_s + length, last = terms_end(&s->terms);
    return last && last < end ? last : end;
}

static enum err lease_make(struct api *rq, const struct subject *s, enum license_effective e, const char *fingerprint, int64_t expires_at, struct strbuf *ret)
{
    char kid[SEAL_KID_MAX];
    struct jv *c = jv_copy(s->claims);
    struct str version = jv_get_str(rq->in, "version");
    claims_stamp(c, rq->admin, s->id, rq->now_s, 0, expires_at);
    jv_set_c(c, "status", license_effective_text(e));
    jv_set_c(c, "instance", fingerprint);
    jv_set_str(c, "application_version", version.p ? version : S(""));
    enum err err = signer_kid(rq->store, rq->admin->keys, kid, &rq->error);
    if (!err)
        err = claims_sign(rq, JWS_TYP_LEASE, kid, c, ret);
    jv_free(c);
    return err;
}

static void validation_print(struct api *rq, const struct subject *s, const char *reason, enum license_effective e, struct str lease, int64_t lease_expires_at)
{
    struct jv *v = rq->out = jv_object();
    struct strbuf message = {0};
    bool valid = strcmp(reason, "ok") == 0;
    if (s->is_known)
        message_print(s, reason, rq->peer, e, &message);
    else
        sb_addc(&message, "no license has this key");
    jv_set_bool(v, "valid", valid);
    jv_set_c(v, "reason", reason);
    jv_set_str(v, "message", sb_str(&message));
    jv_set_c(v, "effective_status", s->is_known ? license_effective_text(e) : NULL);
    jv_set_c(v, "license_id", s->is_known ? s->id : NULL);
    jv_set_time(v, "expires_at", s->is_known ? s->terms.expires_at_s : 0);
    jv_set_time(v, "updates_until", s->is_known ? s->updates_until : 0);
    jv_set(v, "limits", jv_copy(s->limits));
    jv_set(v, "features", jv_copy(s->features));
    if (valid)
        jv_set_str(v, "lease", lease);
    else
        jv_set_c(v, "lease", NULL);
    jv_set_time(v, "lease_expires_at", valid ? lease_expires_at : 0);
    sb_free(&message);
}

static enum err validate(struct api *rq)
{
    struct subject s = {0};
    struct strbuf lease = {0};
    char hash[CREDENTIAL_HASH_MAX], fingerprint[FINGERPRINT_MAX + 1];
    bool full = false;
    /* The same steps for every key: one that is malformed is looked up as one that nobody has, and a lease is signed for all of them. */
    if (!credential_hash_presented(rq->admin->keys, jv_get_str(rq->in, "key"), hash))
        credential_hash(rq->admin->keys, S("no key"), hash);
    fingerprint_of(rq, fingerprint);
    enum err err = subject_by_key(rq, hash, &s);
    if (err)
        return err;
    if (!s.is_known)
        subject_decoy(&s);
    enum license_effective e = license_effective(&s.terms, rq->now_s);
    const char *reason = reason_of(&s, e, rq->peer_addr);
    err = instances_full(rq, &s, fingerprint, &full);
    if (full && strcmp(reason, "ok") == 0)
        reason = "instance_limit";
    int64_t expires_at = lease_end(rq, &s);
    if (!err)
        err = lease_make(rq, &s, e, fingerprint, expires_at, &lease);
    if (!err) {
        rq->is_failed_sign_in = !s.is_known;
        validation_print(rq, &s, s.is_known ? reason : "unknown_key", e, sb_str(&lease), expires_at);
        if (s.is_known && strcmp(reason, "ok") == 0)
            heartbeat_note(rq, &s, fingerprint);
    }
    sb_free(&lease);
    subject_free(&s);
    return err;
}

/* ---- license files ----------------------------------------------------------------------------------------------------- */

static enum err grants_add(struct api *rq, struct jv *claims, const char *license_id)
{
    struct store_stmt *st = NULL;
    struct jv *list = jv_array();
    bool row;
    enum err err = store_query(rq->store, &st, &rq->error,
                               "SELECT selector, value, include_prerelease, not_before, not_after, repositories, excluded FROM grants WHERE license_id=?"
                               " ORDER BY created_at, id",
                               "z", license_id);
    while (!err) {
        err = store_step(st, &row, &rq->error);
        if (err || !row)
            break;
        struct jv *g = jv_object();
        jv_set_str(g, "selector", store_col_str(st, 0));
        jv_set_str(g, "value", store_col_str(st, 1));
        jv_set_bool(g, "include_prerelease", store_col_int(st, 2) != 0);
        jv_set_time(g, "not_before", store_col_int(st, 3));
        jv_set_time(g, "not_after", store_col_int(st, 4));
        jv_set(g, "repositories", json_of(store_col_str(st, 5), true));
        jv_set(g, "excluded", json_of(store_col_str(st, 6), true));
        jv_push(list, g);
    }
    store_done(&st);
    jv_set(claims, "grants", list);
    return err;
}

/* Everything the file says but its number and when it was made. */
static enum err file_claims(struct api *rq, const struct subject *s, struct jv **ret)
{
    struct jv *c = jv_copy(s->claims);
    struct strbuf path = {0}, url = {0};
    jv_set_c(c, "status", s->terms.status == LICENSE_STATUS_NONE ? "" : license_status_text(s->terms.status));
    sb_addf(&path, "/api/v1/vendors/%s/crl", s->vendor_slug);
    signer_url(rq->admin, path.p, &url);
    jv_set_str(c, "crl", sb_str(&url));
    sb_reset(&url);
    signer_url(rq->admin, "/.well-known/jwks.json", &url);
    jv_set_str(c, "jwks", sb_str(&url));
    sb_free(&path);
    sb_free(&url);
    enum err err = grants_add(rq, c, s->id);
    if (err)
        jv_free(c);
    else
        *ret = c;
    return err;
}

static void content_hash(const struct jv *claims, const char *kid, struct strbuf *ret)
{
    struct strbuf text = {0};
    uint8_t sum[32];
    sb_addf(&text, "%s\n", kid);
    jv_dump_sorted(claims, &text);
    seal_sha256(sb_str(&text), sum);
    sb_add_hex(ret, sum, sizeof sum);
    sb_free(&text);
}

/* The newest file of the license: its text, when it says the same and was not revoked; else the serial that the next one has. */
static enum err file_find(struct api *rq, const char *license_id, struct str content, struct strbuf *ret_body, int64_t *ret_serial)
{
    struct store_stmt *st = NULL;
    bool row = false;
    enum err err = store_query(rq->store, &st, &rq->error,
                               "SELECT serial, content, revoked_at, body FROM license_files WHERE license_id=? ORDER BY serial DESC LIMIT 1", "z", license_id);
    if (!err)
        err = store_step(st, &row, &rq->error);
    if (!err) {
        bool is_same = row && store_col_int(st, 2) == 0 && str_eq(store_col_str(st, 1), content);
        *ret_serial = row ? store_col_int(st, 0) + !is_same : 1;
        if (is_same)
            sb_add(ret_body, store_col_str(st, 3));
    }
    store_done(&st);
    return err;
}

static enum err file_insert(struct api *rq, const struct subject *s, struct jv *claims, struct str content, const char *kid, int64_t serial, struct strbuf *ret_body)
{
    char id[96];
    snprintf(id, sizeof id, "%s/%lld", s->id, (long long)serial);
    claims_stamp(claims, rq->admin, s->id, rq->now_s, s->terms.starts_at_s, terms_end(&s->terms));
    jv_set_c(claims, "jti", id);
    jv_set_int(claims, "serial", serial);
    jv_set_time(claims, "issued_at", rq->now_s);
    enum err err = claims_sign(rq, JWS_TYP_LICENSE, kid, claims, ret_body);
    if (!err && ret_body->n > JWS_LICENSE_MAX)
        err = api_fail(rq, ERR_CONFLICT, "file_too_large", NULL, "the license file would be larger than %u KiB", JWS_LICENSE_MAX / 1024);
    if (!err)
        err = store_exec(rq->store, NULL, &rq->error,
                         "INSERT INTO license_files (license_id, serial, content, kid, key_prefix, body, issued_at) VALUES (?,?,?,?,?,?,?)", "ziszzsi",
                         s->id, serial, content, kid, s->key_prefix, sb_str(ret_body), rq->now_s);
    if (err)
        return err;
    struct jv *data = jv_object();
    jv_set_int(data, "serial", serial);
    jv_set_c(data, "kid", kid);
    const char *status = s->terms.status == LICENSE_STATUS_NONE ? "" : license_status_text(s->terms.status);
    const struct history_record h = {.vendor_id = s->vendor_id,
                                     .customer_id = str_c(s->customer_id),
                                     .license_id = s->id,
                                     .event = "license.file_issued",
                                     .actor = rq->actor,
                                     .from_status = status,
                                     .to_status = status,
                                     .request_id = rq->request_id,
                                     .data = data};
    err = history_put(rq->store, &h, &rq->error);
    const struct event_record e = {.vendor_id = s->vendor_id,
                                   .type = "license.file_issued",
                                   .actor = rq->actor,
                                   .customer_id = s->customer_id,
                                   .license_id = s->id,
                                   .data = data};
    if (!err)
        err = eventlog_put(rq->store, &e, &rq->error);
    jv_free(data);
    return err;
}

/* With ?ready=1: only where what is licensed can be pulled from its upstreams, so that nobody is handed a file for nothing. */
static enum err file_check_ready(struct api *rq, const struct subject *s)
{
    struct store_stmt *st = NULL;
    struct strbuf ready = {0};
    bool row = false, wanted = api_query(rq, "ready", &ready) && str_eq(sb_str(&ready), S("1"));
    sb_free(&ready);
    if (!wanted)
        return ERR_OK;
    enum err err = store_query(rq->store, &st, &rq->error,
                               "SELECT r.name, r.sync_error FROM repositories r JOIN licenses l ON l.application_id=r.application_id"
                               " WHERE l.id=? AND (r.synced_at=0 OR r.sync_error<>'') ORDER BY r.name LIMIT 1",
                               "z", s->id);
    if (!err)
        err = store_step(st, &row, &rq->error);
    if (!err && row) {
        struct str why = store_col_str(st, 1);
        err = api_fail(rq, ERR_CONFLICT, "not_ready", NULL, "%.*s cannot be pulled yet: %.*s", STR(store_col_str(st, 0)),
                       STR(why.n ? str_sub(why, 0, 200) : S("its upstream was not looked at yet")));
    }
    store_done(&st);
    return err;
}

static enum err file_check_state(struct api *rq, const struct subject *s)
{
    if (s->terms.status == LICENSE_REVOKED || s->terms.status == LICENSE_STATUS_NONE)
        return api_fail(rq, ERR_CONFLICT, "license_revoked", NULL, "the license is revoked: there is no file of it any more");
    if (s->requires_activation && s->terms.status != LICENSE_ACTIVE)
        return api_fail(rq, ERR_CONFLICT, "activation_required", NULL, "the license is %s: its file can be had when it is active",
                        license_status_text(s->terms.status));
    return file_check_ready(rq, s);
}

static enum err file_get(struct api *rq)
{
    struct subject s = {0};
    struct jv *claims = NULL;
    struct strbuf content = {0}, body = {0};
    char kid[SEAL_KID_MAX];
    int64_t serial = 0;
    enum err err = subject_by_id(rq, rq->params[0], &s);
    if (!err)
        err = file_check_state(rq, &s);
    if (!err)
        err = signer_kid(rq->store, rq->admin->keys, kid, &rq->error);
    if (!err)
        err = file_claims(rq, &s, &claims);
    if (err)
        goto out;
    content_hash(claims, kid, &content);
    err = file_find(rq, s.id, sb_str(&content), &body, &serial);
    if (!err && !body.n)
        err = file_insert(rq, &s, claims, sb_str(&content), kid, serial, &body);
    if (!err)
        err = store_exec(rq->store, NULL, &rq->error,
                         "UPDATE license_files SET downloads=downloads+1, downloaded_at=?, downloaded_by=? WHERE license_id=? AND serial=?", "izzi",
                         rq->now_s, rq->actor, s.id, serial);
    if (!err)
        err = store_exec(rq->store, NULL, &rq->error, "UPDATE licenses SET file_downloaded_at=? WHERE id=?", "iz", rq->now_s, s.id);
    if (!err) {
        sb_add(&rq->raw, sb_str(&body));
        rq->raw_type = "application/jose";
        api_set_etag(rq, serial);
        rq->after = jv_object();
        jv_set_int(rq->after, "serial", serial);
    }
out:
    jv_free(claims);
    sb_free(&content);
    sb_free(&body);
    subject_free(&s);
    return err;
}

static const struct field FILE_FIELDS[] = {
    {.name = "serial", .type = FIELD_INT},
    {.name = "status", .type = FIELD_STRING, .one_of = "current|replaced|revoked", .about = "replaced: a later one says more; it still verifies"},
    {.name = "kid", .type = FIELD_STRING, .about = "the key that signed it"},
    {.name = "key_prefix", .type = FIELD_STRING, .about = "of the license key at that time"},
    {.name = "issued_at", .type = FIELD_TIME},
    {.name = "revoked_at", .type = FIELD_TIME},
    {.name = "revoked_reason", .type = FIELD_STRING, .flags = FIELD_EMPTY, .one_of = "|revoked|deleted|superseded"},
    {.name = "downloads", .type = FIELD_INT},
    {.name = "downloaded_at", .type = FIELD_TIME, .about = "last"},
    {.name = "downloaded_by", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = NULL},
};
static const struct schema FILE_ROW = {"LicenseFile", FILE_FIELDS};

static enum err license_exists(struct api *rq)
{
    struct store_stmt *st = NULL;
    bool row = false;
    enum err err = store_query(rq->store, &st, &rq->error, "SELECT 1 FROM licenses WHERE id=? AND vendor_id=?", "sz", rq->params[0], rq->vendor_id);
    if (!err)
        err = store_step(st, &row, &rq->error);
    store_done(&st);
    return err ? err : row ? ERR_OK : api_not_found(rq, "license");
}

static enum err file_list(struct api *rq)
{
    struct page page;
    struct store_stmt *st = NULL;
    bool row;
    enum err err = api_page(rq, &page);
    if (!err)
        err = license_exists(rq);
    if (err)
        return err;
    struct jv *items = api_list(rq);
    err = store_query(rq->store, &st, &rq->error,
                      "SELECT serial, kid, key_prefix, issued_at, revoked_at, revoked_reason, downloads, downloaded_at, downloaded_by,"
                      " serial=(SELECT max(serial) FROM license_files WHERE license_id=?1)"
                      " FROM license_files WHERE license_id=?1 AND serial>?2 ORDER BY serial LIMIT ?3",
                      "sii", rq->params[0], page.after_key, (int64_t)page.limit + 1);
    while (!err) {
        err = store_step(st, &row, &rq->error);
        if (err || !row || !api_page_take(&page, rq->out, store_col_int(st, 0), "f"))
            break;
        struct jv *f = jv_object();
        int64_t revoked_at = store_col_int(st, 4);
        jv_set_int(f, "serial", store_col_int(st, 0));
        jv_set_c(f, "status", revoked_at ? "revoked" : store_col_int(st, 9) ? "current" : "replaced");
        jv_set_str(f, "kid", store_col_str(st, 1));
        jv_set_str(f, "key_prefix", store_col_str(st, 2));
        jv_set_time(f, "issued_at", store_col_int(st, 3));
        jv_set_time(f, "revoked_at", revoked_at);
        jv_set_str(f, "revoked_reason", store_col_str(st, 5));
        jv_set_int(f, "downloads", store_col_int(st, 6));
        jv_set_time(f, "downloaded_at", store_col_int(st, 7));
        jv_set_str(f, "downloaded_by", store_col_str(st, 8));
        jv_push(items, f);
    }
    store_done(&st);
    return err;
}

/* ---- revocation lists -------------------------------------------------------------------------------------------------- */

/* Whoever likes asks for lists: one that has no news is not made anew. */
static struct {
    pthread_mutex_t mutex;
    unsigned next;
    struct crl_kept {
        char vendor_id[64], kid[SEAL_KID_MAX];
        int64_t number, made_s;
        char *text;
    } kept[CRL_CACHE_VENDORS];
} crls = {.mutex = PTHREAD_MUTEX_INITIALIZER};

static bool crl_kept_find(const char *vendor_id, const char *kid, int64_t number, int64_t now_s, struct strbuf *ret)
{
    bool found = false;
    pthread_mutex_lock(&crls.mutex);
    for (size_t i = 0; i < CRL_CACHE_VENDORS && !found; i++) {
        const struct crl_kept *k = &crls.kept[i];
        found = k->text && strcmp(k->vendor_id, vendor_id) == 0 && strcmp(k->kid, kid) == 0 && k->number == number && now_s >= k->made_s &&
                now_s - k->made_s < CRL_CACHE_S;
        if (found)
            sb_addc(ret, k->text);
    }
    pthread_mutex_unlock(&crls.mutex);
    return found;
}

static void crl_keep(const char *vendor_id, const char *kid, int64_t number, int64_t now_s, struct str text)
{
    pthread_mutex_lock(&crls.mutex);
    struct crl_kept *k = NULL;
    for (size_t i = 0; i < CRL_CACHE_VENDORS && !k; i++)
        if (crls.kept[i].text && strcmp(crls.kept[i].vendor_id, vendor_id) == 0)
            k = &crls.kept[i];
    if (!k)
        k = &crls.kept[crls.next++ % CRL_CACHE_VENDORS];
    mem_free(k->text);
    snprintf(k->vendor_id, sizeof k->vendor_id, "%s", vendor_id);
    snprintf(k->kid, sizeof k->kid, "%s", kid);
    k->number = number;
    k->made_s = now_s;
    k->text = str_dup(text);
    pthread_mutex_unlock(&crls.mutex);
}

/* At the end of the process. */
__attribute__((destructor)) static void crl_forget(void)
{
    for (size_t i = 0; i < CRL_CACHE_VENDORS; i++)
        MEM_FREE(crls.kept[i].text);
}

static enum err crl_entries(struct api *rq, struct str vendor_id, bool only_with_files, struct jv *list)
{
    struct store_stmt *st = NULL;
    bool row;
    enum err err = store_query(rq->store, &st, &rq->error,
                               "SELECT license_id, serial, key_prefix, revoked_at, reason FROM revocations r WHERE vendor_id=?1"
                               " AND (?2=0 OR EXISTS (SELECT 1 FROM license_files f WHERE f.license_id=r.license_id)) ORDER BY id LIMIT ?3",
                               "sbi", vendor_id, only_with_files, (int64_t)CRL_ENTRIES_MAX);
    while (!err) {
        err = store_step(st, &row, &rq->error);
        if (err || !row)
            break;
        struct jv *e = jv_object();
        jv_set_str(e, "license_id", store_col_str(st, 0));
        if (store_col_int(st, 1))
            jv_set_int(e, "serial", store_col_int(st, 1));
        else
            jv_set_c(e, "serial", NULL);
        jv_set_str(e, "key_prefix", store_col_str(st, 2));
        jv_set_time(e, "revoked_at", store_col_int(st, 3));
        jv_set_str(e, "reason", store_col_str(st, 4));
        jv_push(list, e);
    }
    store_done(&st);
    return err;
}

static enum err crl_make(struct api *rq, struct str vendor_id, struct str slug, struct str name, const char *kid, int64_t number, struct strbuf *ret)
{
    struct jv *c = jv_object(), *list = jv_array();
    int64_t n = 0;
    int64_t next = rq->now_s + (int64_t)(admin_config(rq->admin)->limits.revocation_list_ms / 1000);
    char id[64];
    snprintf(id, sizeof id, "%.*s", STR(vendor_id));
    claims_stamp(c, rq->admin, id, rq->now_s, 0, 0);
    jv_set_int(c, "version", FORM);
    set_party(c, "vendor", vendor_id, slug, name);
    jv_set_int(c, "number", number);
    jv_set_time(c, "this_update", rq->now_s);
    jv_set_time(c, "next_update", next);
    jv_set(c, "revoked", list);
    enum err err = api_number(rq, "SELECT count(*) FROM revocations WHERE vendor_id=?", vendor_id, &n);
    if (!err)
        err = crl_entries(rq, vendor_id, n > CRL_ENTRIES_MAX, list);
    if (!err)
        err = claims_sign(rq, JWS_TYP_CRL, kid, c, ret);
    jv_free(c);
    return err;
}

/* slug empty: the first vendor's. */
static enum err crl_of(struct api *rq, struct str slug)
{
    struct store_stmt *st = NULL;
    struct strbuf id = {0}, name = {0}, text = {0}, own_slug = {0};
    char kid[SEAL_KID_MAX];
    int64_t number = 0;
    bool row = false;
    enum err err = store_query(rq->store, &st, &rq->error, "SELECT id, slug, name FROM vendors WHERE CASE ?1 WHEN '' THEN is_first=1 ELSE slug=?1 OR id=?1 END",
                               "s", slug.n ? slug : S(""));
    if (!err)
        err = store_step(st, &row, &rq->error);
    if (!err && !row)
        err = api_not_found(rq, "vendor");
    if (!err) {
        sb_add(&id, store_col_str(st, 0));
        sb_add(&own_slug, store_col_str(st, 1));
        sb_add(&name, store_col_str(st, 2));
    }
    store_done(&st);
    if (!err)
        err = signer_kid(rq->store, rq->admin->keys, kid, &rq->error);
    if (!err)
        err = api_number(rq, "SELECT COALESCE(max(id),0) FROM revocations WHERE vendor_id=?", sb_str(&id), &number);
    if (!err && !crl_kept_find(id.p, kid, number, rq->now_s, &text)) {
        err = crl_make(rq, sb_str(&id), sb_str(&own_slug), sb_str(&name), kid, number, &text);
        if (!err)
            crl_keep(id.p, kid, number, rq->now_s, sb_str(&text));
    }
    if (!err) {
        sb_add(&rq->raw, sb_str(&text));
        rq->raw_type = "application/jose";
        rq->cache_s = CRL_CLIENTS_CACHE_S;
        api_set_etag(rq, number);
    }
    sb_free(&id);
    sb_free(&own_slug);
    sb_free(&name);
    sb_free(&text);
    return err;
}

static enum err crl_get(struct api *rq)
{
    struct strbuf vendor = {0};
    api_query(rq, "vendor", &vendor);
    enum err err = crl_of(rq, sb_str(&vendor));
    sb_free(&vendor);
    return err;
}

static enum err crl_get_of(struct api *rq)
{
    return crl_of(rq, rq->params[0]);
}

/* ---- the table --------------------------------------------------------------------------------------------------------- */

static const struct query_param CRL_PARAMS[] = {{"vendor", "slug; the first vendor when absent"}, {NULL, NULL}};
static const struct query_param READY_PARAMS[] = {{"ready", "1: refused while a repository of the application cannot be pulled from its upstream"}, {NULL, NULL}};

#define LIC "/api/v1/licenses/{id}"
const struct route KEY_ROUTES[] = {
    {HEAD_POST, "/api/v1/validate", validate, ROLE_NONE, ROUTE_ACTION | ROUTE_READS, &VALIDATE, &VALIDATION, NULL, "license.validate",
     "What an application asks of its license key; answers a signed lease"},
    {HEAD_POST, "/api/v1/activations", validate, ROLE_NONE, ROUTE_ACTION | ROUTE_READS, &VALIDATE, &VALIDATION, NULL, "activation.create",
     "The same under another name: the first one registers the instance"},
    {HEAD_GET, LIC "/file", file_get, ROLE_SUPPORT, ROUTE_PLAIN | ROUTE_WRITES, NULL, NULL, READY_PARAMS, "license.file",
     "The signed license file; the same text and serial as long as nothing changes that it says"},
    {HEAD_GET, LIC "/files", file_list, ROLE_VIEWER, ROUTE_LIST, NULL, &FILE_ROW, NULL, "license.files", "License files that were given out"},
    {HEAD_GET, "/api/v1/crl", crl_get, ROLE_NONE, ROUTE_PLAIN, NULL, NULL, CRL_PARAMS, "crl.get", "The signed list of a vendor's revoked licenses and files"},
    {HEAD_GET, "/api/v1/vendors/{slug}/crl", crl_get_of, ROLE_NONE, ROUTE_PLAIN, NULL, NULL, NULL, "vendor.crl", "The same, of this vendor"},
    {HEAD_GET, "/portal/v1/licenses/{id}/file", file_get, ROLE_CUSTOMER, ROUTE_PLAIN | ROUTE_WRITES, NULL, NULL, READY_PARAMS, "portal.license.file",
     "The signed license file"},
    {.path = NULL},
};
