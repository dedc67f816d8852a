/* Signing in by address and password, with a one-time password where the person asked for one; sessions; and what everybody may of
 * himself: see who he is, change his password, his second factor, end his sessions. The same handlers serve the vendor's people under
 * /api/v1 and the customers' under /portal/v1. */
#include <stdio.h>
#include <string.h>

#include "api_routes.h"
#include "db.h"
#include "eventlog.h"
#include "failures.h"
#include "people.h"
#include "pullgate/clock.h"
#include "pullgate/credential.h"
#include "pullgate/log.h"
#include "pullgate/mem.h"
#include "pullgate/password.h"
#include "pullgate/totp.h"
#include "roles.h"

#define SESSIONS_MAX      50 /* live ones of a person; the oldest ends */
#define SESSION_KEEP_S    (30 * 86400) /* ended ones are forgotten after that */
#define USED_EVERY_S      60 /* a session's last use is written at most this often */
#define RECOVERY_CODES    10
#define RECOVERY_CHARS    16 /* of base32: 80 bits */
#define ACCOUNT_LIMIT     20 /* failed attempts a minute at an account, from everywhere */
#define ACCOUNT_LIMIT_ONE 5  /* from one address */

/* ---- schemas ----------------------------------------------------------------------------------------------------------- */

static const struct field SIGN_IN_FIELDS[] = {
    {.name = "email", .type = FIELD_STRING, .flags = FIELD_REQUIRED, .max = 254},
    {.name = "password", .type = FIELD_SECRET, .flags = FIELD_REQUIRED, .max = PASSWORD_MAX},
    {.name = "totp", .type = FIELD_SECRET, .max = 10, .about = "six digits, where he has a second factor"},
    {.name = "recovery_code", .type = FIELD_SECRET, .max = 40, .about = "instead of totp; each works once"},
    {.name = "vendor", .type = FIELD_STRING, .max = 64, .about = "its slug, for an address that several vendors know; the oldest account, when absent"},
    {.name = NULL},
};
static const struct schema SIGN_IN = {"SignIn", SIGN_IN_FIELDS};

static const struct field SESSION_FIELDS[] = {
    {.name = "id", .type = FIELD_STRING},
    {.name = "user_id", .type = FIELD_STRING},
    {.name = "email", .type = FIELD_STRING},
    {.name = "role", .type = FIELD_STRING, .one_of = ROLES_VENDOR "|" ROLES_CUSTOMER},
    {.name = "is_current", .type = FIELD_BOOL},
    {.name = "address", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "created_at", .type = FIELD_TIME},
    {.name = "last_used_at", .type = FIELD_TIME, .about = "it ends 12 hours after"},
    {.name = "expires_at", .type = FIELD_TIME, .about = "at the latest"},
    {.name = "token", .type = FIELD_SECRET, .flags = FIELD_OPTIONAL, .about = "for Authorization: Bearer; shown once"},
    {.name = NULL},
};
static const struct schema SESSION = {"Session", SESSION_FIELDS};

static const struct field ME_FIELDS[] = {
    {.name = "actor", .type = FIELD_STRING, .about = "as the audit names him"},
    {.name = "name", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "role", .type = FIELD_STRING, .one_of = ROLES_VENDOR "|" ROLES_CUSTOMER},
    {.name = "scopes", .type = FIELD_STRINGS, .about = "empty: all that the role may"},
    {.name = "vendor_id", .type = FIELD_STRING},
    {.name = "customer_id", .type = FIELD_STRING, .flags = FIELD_NULL},
    {.name = "email", .type = FIELD_STRING, .flags = FIELD_NULL, .about = "null: a token or a credential, no person"},
    {.name = "totp", .type = FIELD_BOOL},
    {.name = "recovery_codes_left", .type = FIELD_INT},
    {.name = NULL},
};
static const struct schema ME = {"Me", ME_FIELDS};

static const struct field ME_UPDATE_FIELDS[] = {
    {.name = "name", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "password", .type = FIELD_SECRET, .max = PASSWORD_MAX, .about = "a further one; it ends his other sessions"},
    {.name = "old_password", .type = FIELD_SECRET, .max = PASSWORD_MAX, .about = "required with password"},
    {.name = NULL},
};
static const struct schema ME_UPDATE = {"MeUpdate", ME_UPDATE_FIELDS};

static const struct field PASSWORD_FIELDS[] = {
    {.name = "password", .type = FIELD_SECRET, .flags = FIELD_REQUIRED, .max = PASSWORD_MAX},
    {.name = NULL},
};
static const struct schema PASSWORD = {"PasswordProof", PASSWORD_FIELDS};

static const struct field TOTP_ENROL_FIELDS[] = {
    {.name = "secret", .type = FIELD_SECRET, .about = "base32; shown once"},
    {.name = "uri", .type = FIELD_SECRET, .about = "otpauth://, for a QR code"},
    {.name = NULL},
};
static const struct schema TOTP_ENROL = {"TotpEnrolment", TOTP_ENROL_FIELDS};

static const struct field TOTP_CONFIRM_FIELDS[] = {
    {.name = "totp", .type = FIELD_SECRET, .flags = FIELD_REQUIRED, .max = 10},
    {.name = NULL},
};
static const struct schema TOTP_CONFIRM = {"TotpConfirm", TOTP_CONFIRM_FIELDS};

static const struct field RECOVERY_FIELDS[] = {
    {.name = "recovery_codes", .type = FIELD_STRINGS, .about = "shown once; each signs in once"},
    {.name = NULL},
};
static const struct schema RECOVERY = {"RecoveryCodes", RECOVERY_FIELDS};

/* ---- attempts at an account ------------------------------------------------------------------------------------------------ */

enum { KEY_ACCOUNT, KEY_ACCOUNT_ADDRESS, KEY_ADDRESS, KEYS };

/* account: what the attempt is at, whether there is such a one or not: nobody learns from being refused. */
static void account_keys(const struct api *rq, struct str account, uint8_t ret[KEYS][FAILURES_KEY])
{
    struct strbuf text = {0}, address = {0};
    bool is_v4 = memcmp(rq->peer_addr, "\0\0\0\0\0\0\0\0\0\0\xff\xff", 12) == 0;
    sb_add_hex(&address, rq->peer_addr, is_v4 ? 16 : 8);
    sb_addf(&text, "%.*s\n", STR(account));
    failures_key(sb_str(&text), ret[KEY_ACCOUNT]);
    sb_add(&text, sb_str(&address));
    failures_key(sb_str(&text), ret[KEY_ACCOUNT_ADDRESS]);
    sb_reset(&text);
    sb_addf(&text, "address\n%s", address.p);
    failures_key(sb_str(&text), ret[KEY_ADDRESS]);
    sb_free(&text);
    sb_free(&address);
}

enum err account_check(struct api *rq, struct str account)
{
    uint8_t keys[KEYS][FAILURES_KEY];
    account_keys(rq, account, keys);
    unsigned wait = failures_wait(rq->admin->addresses, rq->peer_addr, rq->now_s);
    for (int i = 0; i < KEYS; i++) {
        unsigned w = failures_wait(rq->admin->accounts, keys[i], rq->now_s);
        wait = w > wait ? w : wait;
    }
    if (!wait)
        return ERR_OK;
    rq->retry_after_s = wait;
    return api_fail(rq, ERR_TOO_MANY, "too_many_failures", NULL, "too many failed sign-ins; wait %u seconds", wait);
}

struct failing { /* an event */
    char *vendor_id, *customer_id, *user_id, *address;
};

static enum err failing_write(struct store *s, void *arg, struct error *reterr)
{
    const struct failing *f = arg;
    struct jv *data = jv_object();
    jv_set_int(data, "failures", FAILURES_ALERT);
    jv_set_c(data, "last_address", f->address);
    const struct event_record event = {.vendor_id = f->vendor_id, .type = "user.sign_in_failing", .actor = "system:sign_in", .customer_id = f->customer_id,
                                       .object_id = f->user_id, .data = data};
    enum err err = eventlog_put(s, &event, reterr);
    jv_free(data);
    return err;
}

static void failing_written(void *arg, enum err err)
{
    (void)err; /* it stands in the log and in the metric */
    struct failing *f = arg;
    mem_free(f->vendor_id);
    mem_free(f->customer_id);
    mem_free(f->user_id);
    mem_free(f->address);
    mem_free(f);
}

/* Outside of the request's transaction, which the refusal takes back. */
static void failing_tell(struct api *rq, const struct user *u)
{
    struct failing *f = NEW(struct failing);
    *f = (struct failing){.vendor_id = mem_strdup(u->vendor_id), .customer_id = mem_strdup(u->customer_id), .user_id = mem_strdup(u->id), .address = mem_strdup(rq->peer)};
    if (db_post(rq->admin->writer, DB_TRANSACTION, failing_write, f, failing_written))
        failing_written(f, ERR_OK);
}

void account_failed(struct api *rq, struct str account, const struct user *u)
{
    uint8_t keys[KEYS][FAILURES_KEY];
    unsigned wait;
    bool is_alert = false;
    struct strbuf who = {0};
    uint64_t per_address = admin_config(rq->admin)->limits.sign_in_failures_per_minute;
    account_keys(rq, account, keys);
    sb_addf(&who, "%s at one account", rq->peer);
    (void)failures_count(rq->admin->accounts, keys[KEY_ACCOUNT], "everywhere at one account", rq->now_s, ACCOUNT_LIMIT, &wait, &is_alert);
    (void)failures_count(rq->admin->accounts, keys[KEY_ACCOUNT_ADDRESS], who.p, rq->now_s, ACCOUNT_LIMIT_ONE, &wait, NULL);
    (void)failures_count(rq->admin->accounts, keys[KEY_ADDRESS], rq->peer, rq->now_s, per_address, &wait, NULL);
    if (is_alert && u->id)
        failing_tell(rq, u);
    sb_free(&who);
}

/* ---- sessions ------------------------------------------------------------------------------------------------------------------ */

struct session_use {
    char *id;
    int64_t at_s;
};

static enum err session_use_write(struct store *s, void *arg, struct error *reterr)
{
    struct session_use *u = arg;
    return store_exec(s, NULL, reterr, "UPDATE sessions SET used_at=? WHERE id=? AND used_at<?", "izi", u->at_s, u->id, u->at_s);
}

static void session_use_done(void *arg, enum err err)
{
    (void)err; /* then it ends a minute too early */
    struct session_use *u = arg;
    mem_free(u->id);
    mem_free(u);
}

static void session_use_note(struct api *rq)
{
    struct session_use *u = NEW(struct session_use);
    *u = (struct session_use){.id = mem_strdup(rq->session_id), .at_s = rq->now_s};
    if (db_post(rq->admin->writer, DB_TRANSACTION, session_use_write, u, session_use_done))
        session_use_done(u, ERR_OK);
}

enum err session_authenticate(struct api *rq, struct str token, bool is_portal)
{
    static const char why[] = "the session is over, or there never was one: sign in";
    char hash[CREDENTIAL_HASH_MAX];
    struct store_stmt *st = NULL;
    struct strbuf actor = {0};
    bool row = false, disabled = false;
    int64_t used = 0;
    if (!credential_well_formed(SESSION_PREFIX, token))
        return api_fail(rq, ERR_UNAUTHN, "unauthorized", NULL, why);
    credential_hash(rq->admin->keys, token, hash);
    enum err err = store_query(rq->store, &st, &rq->error,
                               "SELECT s.id, s.user_id, s.hash, s.used_at, s.expires_at, u.vendor_id, u.customer_id, u.role, u.email, v.time_zone,"
                               " coalesce(c.disabled,0) OR (u.customer_id<>'' AND v.suspended_at<>0), c.archived_at, v.suspended_at FROM sessions s JOIN users u ON u.id=s.user_id JOIN vendors v ON"
                               " v.id=u.vendor_id LEFT JOIN customers c ON c.id=u.customer_id AND u.customer_id<>''"
                               " WHERE s.hash=? AND s.revoked_at=0 AND u.disabled=0 AND u.removed_at=0",
                               "z", hash);
    if (!err)
        err = store_step(st, &row, &rq->error);
    struct str stored = row ? store_col_str(st, 2) : (struct str){NULL, 0};
    bool good = row && stored.n == strlen(hash) && str_eq_secret(stored.p, hash, stored.n) && rq->now_s < store_col_int(st, 4) &&
                rq->now_s - store_col_int(st, 3) < SESSION_IDLE_S && (store_col_str(st, 6).n > 0) == is_portal && store_col_int(st, 11) == 0;
    if (good) {
        used = store_col_int(st, 3);
        disabled = store_col_int(st, 10) != 0;
        rq->session_id = str_dup(store_col_str(st, 0));
        rq->token_id = str_dup(store_col_str(st, 0));
        rq->user_id = str_dup(store_col_str(st, 1));
        rq->owner_id = str_dup(store_col_str(st, 1));
        rq->vendor_id = str_dup(store_col_str(st, 5));
        rq->role = role_parse(store_col_str(st, 7));
        rq->actor_name = str_dup(store_col_str(st, 8));
        rq->zone = str_dup(store_col_str(st, 9));
        rq->is_vendor_suspended = store_col_int(st, 12) != 0;
        if (is_portal) {
            rq->customer_id = str_dup(store_col_str(st, 6));
            rq->credential_id = mem_strdup("");
            rq->license_id = mem_strdup("");
        }
        sb_addf(&actor, "user:%s", rq->user_id);
        rq->actor = sb_take(&actor);
    }
    store_done(&st);
    if (err)
        return err;
    if (!good || rq->role == ROLE_NONE)
        return api_fail(rq, ERR_UNAUTHN, "unauthorized", NULL, why);
    if (disabled)
        return api_fail(rq, ERR_DENIED, "customer_disabled", NULL, "the customer is disabled");
    if (rq->now_s - used >= USED_EVERY_S)
        session_use_note(rq);
    return ERR_OK;
}

enum err session_end_all(struct api *rq, const char *user_id, const char *except)
{
    return store_exec(rq->store, NULL, &rq->error, "UPDATE sessions SET revoked_at=? WHERE user_id=? AND revoked_at=0 AND id<>?", "izz", rq->now_s,
                      user_id, except ? except : "");
}

#define SESSION_COLUMNS "s.id, s.user_id, u.email, u.role, s.address, s.created_at, s.used_at, s.expires_at"

static struct jv *session_print(const struct store_stmt *st, const char *current)
{
    struct jv *v = jv_object();
    jv_set_str(v, "id", store_col_str(st, 0));
    jv_set_str(v, "user_id", store_col_str(st, 1));
    jv_set_str(v, "email", store_col_str(st, 2));
    jv_set_str(v, "role", store_col_str(st, 3));
    jv_set_bool(v, "is_current", current && str_eq_c(store_col_str(st, 0), current));
    jv_set_str(v, "address", store_col_str(st, 4));
    jv_set_time(v, "created_at", store_col_int(st, 5));
    jv_set_time(v, "last_used_at", store_col_int(st, 6));
    jv_set_time(v, "expires_at", store_col_int(st, 7));
    return v;
}

static enum err session_list(struct api *rq)
{
    struct page page;
    struct store_stmt *st = NULL;
    bool row;
    enum err err = api_page(rq, &page);
    if (err)
        return err;
    struct jv *items = api_list(rq);
    err = store_query(rq->store, &st, &rq->error,
                      "SELECT " SESSION_COLUMNS " FROM sessions s JOIN users u ON u.id=s.user_id WHERE s.user_id=?1 AND s.revoked_at=0 AND"
                      " s.expires_at>?2 AND s.used_at>?3 AND (s.created_at, s.id) > (?4,?5) ORDER BY s.created_at, s.id LIMIT ?6",
                      "ziiizi", rq->user_id ? rq->user_id : "", rq->now_s, rq->now_s - SESSION_IDLE_S, page.after_key, page.after_id,
                      (int64_t)page.limit + 1);
    while (!err) {
        err = store_step(st, &row, &rq->error);
        if (err || !row || !api_page_take(&page, rq->out, store_col_int(st, 5), store_col_str(st, 0).p))
            break;
        jv_push(items, session_print(st, rq->session_id));
    }
    store_done(&st);
    return err;
}

static enum err session_delete(struct api *rq)
{
    struct str id = str_eq(rq->params[0], S("current")) ? str_c(rq->session_id) : rq->params[0];
    int64_t n = 0;
    enum err err = store_exec(rq->store, &n, &rq->error, "UPDATE sessions SET revoked_at=? WHERE id=? AND user_id=? AND revoked_at=0", "isz",
                              rq->now_s, id, rq->user_id ? rq->user_id : "");
    if (!err && n == 0)
        err = api_not_found(rq, "session");
    return err;
}

static enum err session_delete_all(struct api *rq)
{
    if (!rq->user_id)
        return api_fail(rq, ERR_CONFLICT, "not_a_person", NULL, "a token has no sessions");
    return session_end_all(rq, rq->user_id, NULL);
}

static enum err session_insert(struct api *rq, const struct user *u, char secret[CREDENTIAL_TEXT_MAX])
{
    char id[ID_MAX], hash[CREDENTIAL_HASH_MAX];
    struct store_stmt *st = NULL;
    bool row = false;
    id_new("ses_", id);
    credential_new(SESSION_PREFIX, secret);
    credential_hash(rq->admin->keys, str_c(secret), hash);
    enum err err = store_exec(rq->store, NULL, &rq->error, "DELETE FROM sessions WHERE user_id=? AND (expires_at<?2 OR (revoked_at<>0 AND revoked_at<?2))",
                              "zi", u->id, rq->now_s - SESSION_KEEP_S);
    if (!err)
        err = store_exec(rq->store, NULL, &rq->error,
                         "INSERT INTO sessions (id, user_id, hash, address, created_at, used_at, expires_at) VALUES (?,?,?,?,?,?,?)", "zzzziii", id,
                         u->id, hash, rq->peer, rq->now_s, rq->now_s, rq->now_s + SESSION_ABSOLUTE_S);
    if (!err)
        err = store_exec(rq->store, NULL, &rq->error,
                         "UPDATE sessions SET revoked_at=?1 WHERE user_id=?2 AND revoked_at=0 AND id NOT IN (SELECT id FROM sessions WHERE"
                         " user_id=?2 AND revoked_at=0 ORDER BY created_at DESC, id DESC LIMIT ?3)",
                         "izi", rq->now_s, u->id, (int64_t)SESSIONS_MAX);
    if (!err)
        err = store_exec(rq->store, NULL, &rq->error, "UPDATE users SET last_at=?, last_from=? WHERE id=?", "izz", rq->now_s, rq->peer, u->id);
    if (!err)
        err = store_query(rq->store, &st, &rq->error, "SELECT " SESSION_COLUMNS " FROM sessions s JOIN users u ON u.id=s.user_id WHERE s.id=?", "z",
                          id);
    if (!err)
        err = store_step(st, &row, &rq->error);
    if (!err && !row)
        err = error_set(&rq->error, ERR_INTERNAL, "a session that was made is not there");
    if (!err)
        rq->out = session_print(st, id);
    store_done(&st);
    return err;
}

/* ---- the second factor ------------------------------------------------------------------------------------------------------------ */

static void totp_aad(const struct user *u, struct strbuf *ret)
{
    sb_addf(ret, "%s|totp", u->id);
}

static enum err totp_step(struct api *rq, const struct user *u, struct str code, bool *ret_good)
{
    struct strbuf aad = {0};
    char *key = NULL;
    size_t n = 0;
    int64_t step = 0;
    *ret_good = false;
    if (!*u->totp_sealed)
        return ERR_OK;
    totp_aad(u, &aad);
    enum err err = keyring_unseal(rq->admin->keys, sb_str(&aad), str_c(u->totp_sealed), &key, &n);
    sb_free(&aad);
    if (err)
        return error_set(&rq->error, ERR_UNAVAILABLE, "a second factor cannot be unsealed");
    *ret_good = totp_check((struct str){key, n}, code, rq->now_s, u->totp_step, &step);
    mem_free_secret(key, n);
    if (*ret_good)
        err = store_exec(rq->store, NULL, &rq->error, "UPDATE users SET totp_step=? WHERE id=?", "iz", step, u->id);
    return err;
}

static void recovery_hash(struct api *rq, const struct user *u, struct str code, char ret[CREDENTIAL_HASH_MAX])
{
    struct strbuf text = {0};
    sb_addf(&text, "%s|", u->id);
    for (size_t i = 0; i < code.n; i++) { /* as people type it */
        char c = code.p[i];
        if (c != '-' && c != ' ')
            sb_add_char(&text, c >= 'a' && c <= 'z' ? (char)(c - 'a' + 'A') : c);
    }
    credential_hash(rq->admin->keys, sb_str(&text), ret);
    mem_cleanse(text.p, text.n);
    sb_free(&text);
}

static enum err recovery_use(struct api *rq, const struct user *u, struct str code, bool *ret_good)
{
    char hash[CREDENTIAL_HASH_MAX];
    int64_t n = 0;
    recovery_hash(rq, u, code, hash);
    enum err err = store_exec(rq->store, &n, &rq->error, "DELETE FROM user_recovery WHERE user_id=? AND hash=?", "zz", u->id, hash);
    *ret_good = !err && n == 1;
    return err;
}

static bool hash_is(const char *a, const char *b)
{
    return strlen(a) == strlen(b) && str_eq_secret(a, b, strlen(a));
}

/* ---- signing in ---------------------------------------------------------------------------------------------------------------------- */

static bool is_portal(const struct api *rq)
{
    return str_starts(str_c(rq->route->path), S("/portal/"));
}

/* What the attempt is at, in one text: kind and address. Not the vendor that is named: one account would have two names. */
static void account_text(struct api *rq, struct str email, struct strbuf *ret)
{
    sb_addf(ret, "%s\n%.*s", is_portal(rq) ? "portal" : "api", STR(email));
}

static enum err sign_in_find(struct api *rq, struct str email, struct user *u, bool *ret_found)
{
    struct str vendor = jv_get_str(rq->in, "vendor");
    struct strbuf where = {0};
    sb_addf(&where, "u.email=?1 AND u.is_customers=%d%s ORDER BY u.created_at, u.id LIMIT 1", is_portal(rq), vendor.p ? " AND v.slug=?2" : "");
    enum err err = user_find(rq, where.p, email, vendor, u, ret_found);
    sb_free(&where);
    return err;
}

/* In the hashing thread. A wrong password is no refusal yet: the writer refuses it, so that the audit has it. */
static enum err sign_in_check(struct api *rq, struct str email, struct str account)
{
    struct user u = {0};
    bool found = false, fits = false;
    enum err err = account_check(rq, account);
    if (!err)
        err = sign_in_find(rq, email, &u, &found);
    if (!err)
        err = password_check(found ? u.password_hash : NULL, jv_get_str(rq->in, "password"), &fits, &rq->error);
    if (!err && fits)
        rq->password_seen = mem_strdup(u.password_hash);
    user_release(&u);
    return err;
}

/* Whom the audit is told of: the account, or that there was none, to the first vendor. */
static enum err sign_in_actor(struct api *rq, const struct user *u, struct str email)
{
    struct strbuf text = {0};
    bool found = false;
    if (u->id) {
        sb_addf(&text, "user:%s", u->id);
        rq->actor = sb_take(&text);
        rq->actor_name = str_dup(email);
        rq->vendor_id = mem_strdup(u->vendor_id);
        api_audit_object(rq, u->id);
        return ERR_OK;
    }
    enum err err = api_lookup(rq, "SELECT id FROM vendors WHERE is_first=1 AND ''=?", S(""), &text, &found);
    if (!err && found) {
        rq->vendor_id = sb_take(&text);
        rq->actor = mem_strdup("user:unknown");
        api_audit_object(rq, "unknown");
    }
    sb_free(&text);
    return err;
}

static enum err second_factor(struct api *rq, const struct user *u, bool *ret_good)
{
    struct str code = jv_get_str(rq->in, "totp"), recovery = jv_get_str(rq->in, "recovery_code");
    *ret_good = true;
    if (!u->totp_enabled_at)
        return ERR_OK;
    if (code.p)
        return totp_step(rq, u, code, ret_good);
    if (recovery.p)
        return recovery_use(rq, u, recovery, ret_good);
    enum err err = api_fail(rq, ERR_DENIED, "totp_required", "totp", "a one-time password is needed as well");
    rq->status = 401;
    return err;
}

static enum err sign_in_make(struct api *rq, struct str email, struct str account)
{
    struct user u = {0};
    char secret[CREDENTIAL_TEXT_MAX] = "";
    bool found = false, good = false;
    enum err err = sign_in_find(rq, email, &u, &found);
    if (!err)
        err = sign_in_actor(rq, &u, email);
    if (err)
        goto out;
    /* Between the two runs the password may have been changed, and the person disabled. */
    good = found && !u.disabled && rq->password_seen && *u.password_hash && hash_is(rq->password_seen, u.password_hash);
    if (good)
        err = second_factor(rq, &u, &good);
    if (!err && !good) {
        account_failed(rq, account, &u);
        err = api_fail(rq, ERR_UNAUTHN, "unauthorized", NULL, "the address, the password or the one-time password is wrong");
    }
    if (!err)
        err = session_insert(rq, &u, secret);
    if (!err) {
        rq->after = jv_copy(rq->out);
        jv_set_c(rq->out, "token", secret);
        rq->location = mem_strdup(is_portal(rq) ? "/portal/v1/sessions" : "/api/v1/sessions");
    }
out:
    mem_cleanse(secret, sizeof secret);
    user_release(&u);
    return err;
}

static enum err session_create(struct api *rq)
{
    struct strbuf email = {0}, account = {0};
    if (!email_normalise(jv_get_str(rq->in, "email"), &email)) {
        sb_free(&email);
        return api_fail(rq, ERR_INVALID, "invalid_field", "email", "email: expected one address");
    }
    account_text(rq, sb_str(&email), &account);
    enum err err = rq->is_hashing ? sign_in_check(rq, sb_str(&email), sb_str(&account)) : sign_in_make(rq, sb_str(&email), sb_str(&account));
    sb_free(&email);
    sb_free(&account);
    return err;
}

/* ---- oneself --------------------------------------------------------------------------------------------------------------------------- */

static enum err me_load(struct api *rq, struct user *u)
{
    bool found = false;
    if (!rq->user_id)
        return api_fail(rq, ERR_CONFLICT, "not_a_person", NULL, "this is for people who are signed in, not for tokens and credentials");
    enum err err = user_find(rq, "u.id=?1", str_c(rq->user_id), (struct str){NULL, 0}, u, &found);
    if (!err && !found)
        err = api_not_found(rq, "user");
    if (!err)
        api_audit_object(rq, u->id);
    return err;
}

static enum err me_answer(struct api *rq)
{
    struct user u = {0};
    struct strbuf left = {0};
    bool found = false;
    uint64_t n = 0;
    enum err err = rq->user_id ? me_load(rq, &u) : ERR_OK;
    if (!err)
        err = api_lookup(rq, "SELECT count(*) FROM user_recovery WHERE user_id=?", str_c(rq->user_id ? rq->user_id : ""), &left, &found);
    if (err)
        goto out;
    (void)str_to_u64(sb_str(&left), &n);
    struct jv *v = jv_object(), *scopes = jv_array();
    struct str rest = str_c(rq->scopes), one;
    while (rest.n && str_next(&rest, ' ', &one))
        jv_push(scopes, jv_string(one));
    jv_set_c(v, "actor", rq->actor);
    jv_set_c(v, "name", u.id ? u.name : rq->actor_name ? rq->actor_name : "");
    jv_set_c(v, "role", role_text(rq->role));
    jv_set(v, "scopes", scopes);
    jv_set_c(v, "vendor_id", rq->vendor_id);
    jv_set_c(v, "customer_id", rq->customer_id);
    jv_set_c(v, "email", u.email);
    jv_set_bool(v, "totp", u.totp_enabled_at != 0);
    jv_set_int(v, "recovery_codes_left", (int64_t)n);
    rq->out = v;
out:
    sb_free(&left);
    user_release(&u);
    return err;
}

/* The given password against the one that is stored: in the hashing run it is looked at, in the writer's it must still be that one. */
static enum err me_prove(struct api *rq, const struct user *u, const char *member)
{
    struct strbuf account = {0};
    bool fits = false;
    enum err err = ERR_OK;
    sb_addf(&account, "self\n%s", u->id);
    if (rq->is_hashing) {
        err = account_check(rq, sb_str(&account));
        if (!err)
            err = password_check(u->password_hash, jv_get_str(rq->in, member), &fits, &rq->error);
        if (!err && fits)
            rq->password_seen = mem_strdup(u->password_hash);
    } else if (!rq->password_seen || !hash_is(rq->password_seen, u->password_hash)) {
        account_failed(rq, sb_str(&account), u);
        err = api_fail(rq, ERR_DENIED, "wrong_password", member, "%s: it is another one", member);
    }
    sb_free(&account);
    return err;
}

static enum err me_update(struct api *rq)
{
    struct user u = {0};
    struct str password = jv_get_str(rq->in, "password"), name = jv_get_str(rq->in, "name");
    enum err err = me_load(rq, &u);
    if (!err && password.p && !jv_get_str(rq->in, "old_password").p)
        err = api_fail(rq, ERR_INVALID, "missing_field", "old_password", "old_password: missing");
    if (!err && password.p)
        err = me_prove(rq, &u, "old_password");
    if (!err && rq->is_hashing && password.p && rq->password_seen)
        err = password_take(rq, "password", str_c(u.email));
    if (err || rq->is_hashing)
        goto out;
    err = store_exec(rq->store, NULL, &rq->error,
                     "UPDATE users SET name=COALESCE(?,name), password_hash=COALESCE(?,password_hash), password_at=CASE WHEN ? THEN ? ELSE"
                     " password_at END, updated_at=?, rev=rev+1 WHERE id=?",
                     "szbiiz", name, rq->password_hash, rq->password_hash != NULL, rq->now_s, rq->now_s, u.id);
    if (!err && rq->password_hash)
        err = session_end_all(rq, u.id, rq->session_id);
    if (!err)
        err = me_answer(rq);
    if (!err) {
        rq->after = jv_object();
        jv_set_bool(rq->after, "password_changed", rq->password_hash != NULL);
        jv_set_str(rq->after, "name", name.p ? name : str_c(u.name));
    }
out:
    user_release(&u);
    return err;
}

/* The key waits until a code of it was shown to work. */
static enum err totp_enrol(struct api *rq)
{
    struct user u = {0};
    struct strbuf aad = {0}, sealed = {0}, text = {0}, uri = {0}, issuer = {0};
    char key[TOTP_KEY_LEN];
    bool found = false;
    enum err err = me_load(rq, &u);
    if (!err && u.totp_enabled_at)
        err = api_fail(rq, ERR_CONFLICT, "action_not_allowed", NULL, "there is a second factor already; disable it first");
    if (!err)
        err = me_prove(rq, &u, "password");
    if (err || rq->is_hashing)
        goto out;
    seal_random(key, sizeof key);
    totp_aad(&u, &aad);
    err = keyring_seal(rq->admin->keys, sb_str(&aad), (struct str){key, sizeof key}, &sealed, &rq->error);
    if (!err)
        err = api_lookup(rq, "SELECT name FROM vendors WHERE id=?", str_c(u.vendor_id), &issuer, &found);
    if (!err)
        err = store_exec(rq->store, NULL, &rq->error, "UPDATE users SET totp_sealed=?, totp_step=0, rev=rev+1 WHERE id=?", "sz", sb_str(&sealed), u.id);
    if (!err) {
        struct str k = {key, sizeof key};
        base32_encode(k, &text);
        totp_uri(k, sb_str(&issuer), str_c(u.email), &uri);
        rq->out = jv_object();
        jv_set_str(rq->out, "secret", sb_str(&text));
        jv_set_str(rq->out, "uri", sb_str(&uri));
    }
    mem_cleanse(key, sizeof key);
    for (size_t i = 0; i < 2; i++) {
        struct strbuf *b = i ? &text : &uri;
        if (b->p)
            mem_cleanse(b->p, b->n);
    }
out:
    sb_free(&aad);
    sb_free(&sealed);
    sb_free(&text);
    sb_free(&uri);
    sb_free(&issuer);
    user_release(&u);
    return err;
}

static enum err recovery_make(struct api *rq, const struct user *u)
{
    struct jv *codes = jv_array();
    enum err err = store_exec(rq->store, NULL, &rq->error, "DELETE FROM user_recovery WHERE user_id=?", "z", u->id);
    for (int i = 0; !err && i < RECOVERY_CODES; i++) {
        char random[RECOVERY_CHARS * 5 / 8], hash[CREDENTIAL_HASH_MAX];
        struct strbuf text = {0}, shown = {0};
        seal_random(random, sizeof random);
        base32_encode((struct str){random, sizeof random}, &text);
        for (size_t at = 0; at < text.n; at += 4)
            sb_addf(&shown, "%s%.*s", at ? "-" : "", STR(str_sub(sb_str(&text), at, 4)));
        recovery_hash(rq, u, sb_str(&text), hash);
        err = store_exec(rq->store, NULL, &rq->error, "INSERT INTO user_recovery (user_id, hash) VALUES (?,?)", "zz", u->id, hash);
        jv_push(codes, jv_string(sb_str(&shown)));
        mem_cleanse(random, sizeof random);
        mem_cleanse(text.p, text.n);
        mem_cleanse(shown.p, shown.n);
        sb_free(&text);
        sb_free(&shown);
    }
    rq->out = jv_object();
    jv_set(rq->out, "recovery_codes", codes);
    return err;
}

static enum err totp_confirm(struct api *rq)
{
    struct user u = {0};
    struct strbuf account = {0};
    bool good = false;
    enum err err = me_load(rq, &u);
    if (!err && (u.totp_enabled_at || !*u.totp_sealed))
        err = api_fail(rq, ERR_CONFLICT, "action_not_allowed", NULL, "there is no second factor to confirm");
    if (err)
        goto out;
    sb_addf(&account, "self\n%s", u.id);
    err = account_check(rq, sb_str(&account));
    if (!err)
        err = totp_step(rq, &u, jv_get_str(rq->in, "totp"), &good);
    if (!err && !good) {
        account_failed(rq, sb_str(&account), &u);
        err = api_fail(rq, ERR_DENIED, "wrong_totp", "totp", "totp: not the one of now");
    }
    if (!err)
        err = store_exec(rq->store, NULL, &rq->error, "UPDATE users SET totp_enabled_at=?, updated_at=?, rev=rev+1 WHERE id=?", "iiz", rq->now_s,
                         rq->now_s, u.id);
    if (!err)
        err = recovery_make(rq, &u);
    if (!err)
        err = session_end_all(rq, u.id, rq->session_id);
out:
    sb_free(&account);
    user_release(&u);
    return err;
}

static enum err totp_disable(struct api *rq)
{
    struct user u = {0};
    enum err err = me_load(rq, &u);
    if (!err)
        err = me_prove(rq, &u, "password");
    if (!err && !rq->is_hashing)
        err = store_exec(rq->store, NULL, &rq->error,
                         "UPDATE users SET totp_sealed='', totp_enabled_at=0, totp_step=0, updated_at=?, rev=rev+1 WHERE id=?", "iz", rq->now_s, u.id);
    if (!err && !rq->is_hashing)
        err = store_exec(rq->store, NULL, &rq->error, "DELETE FROM user_recovery WHERE user_id=?", "z", u.id);
    user_release(&u);
    return err;
}

#define API "/api/v1"
#define POR "/portal/v1"
const struct route SESSION_ROUTES[] = {
    {HEAD_POST, API "/sessions", session_create, ROLE_NONE, ROUTE_HASHES, &SIGN_IN, &SESSION, NULL, "session.create",
     "Sign in; the session's token is shown once"},
    {HEAD_GET, API "/sessions", session_list, ROLE_VIEWER, ROUTE_LIST, NULL, &SESSION, NULL, "self.sessions", "One's own sessions"},
    {HEAD_DELETE, API "/sessions", session_delete_all, ROLE_VIEWER, 0, NULL, NULL, NULL, "self.sign_out_everywhere", "End all of one's sessions"},
    {HEAD_DELETE, API "/sessions/{id}", session_delete, ROLE_VIEWER, 0, NULL, NULL, NULL, "self.sign_out", "End one of one's sessions, or \"current\""},
    {HEAD_GET, API "/me", me_answer, ROLE_VIEWER, 0, NULL, &ME, NULL, "self.get", "Who one is, and may"},
    {HEAD_PATCH, API "/me", me_update, ROLE_VIEWER, ROUTE_HASHES, &ME_UPDATE, &ME, NULL, "self.update", "Change one's name or password"},
    {HEAD_POST, API "/me/totp", totp_enrol, ROLE_VIEWER, ROUTE_HASHES | ROUTE_ACTION, &PASSWORD, &TOTP_ENROL, NULL, "self.enrol_totp",
     "Begin with a second factor; its key is shown once"},
    {HEAD_POST, API "/me/totp/confirm", totp_confirm, ROLE_VIEWER, ROUTE_ACTION, &TOTP_CONFIRM, &RECOVERY, NULL, "self.confirm_totp",
     "Show a code of it: it counts from then on, and recovery codes are given"},
    {HEAD_POST, API "/me/totp/disable", totp_disable, ROLE_VIEWER, ROUTE_HASHES | ROUTE_ACTION, &PASSWORD, NULL, NULL, "self.disable_totp",
     "Go on without it"},

    {HEAD_POST, POR "/sessions", session_create, ROLE_NONE, ROUTE_HASHES, &SIGN_IN, &SESSION, NULL, "portal.session.create",
     "Sign in as one of a customer's people"},
    {HEAD_GET, POR "/sessions", session_list, ROLE_CUSTOMER, ROUTE_LIST, NULL, &SESSION, NULL, "portal.self.sessions", "One's own sessions"},
    {HEAD_DELETE, POR "/sessions", session_delete_all, ROLE_CUSTOMER, 0, NULL, NULL, NULL, "portal.self.sign_out_everywhere",
     "End all of one's sessions"},
    {HEAD_DELETE, POR "/sessions/{id}", session_delete, ROLE_CUSTOMER, 0, NULL, NULL, NULL, "portal.self.sign_out",
     "End one of one's sessions, or \"current\""},
    {HEAD_GET, POR "/me", me_answer, ROLE_CUSTOMER, 0, NULL, &ME, NULL, "portal.self.get", "Who one is, and may"},
    {HEAD_PATCH, POR "/me", me_update, ROLE_CUSTOMER, ROUTE_HASHES, &ME_UPDATE, &ME, NULL, "portal.self.update", "Change one's name or password"},
    {HEAD_POST, POR "/me/totp", totp_enrol, ROLE_CUSTOMER, ROUTE_HASHES | ROUTE_ACTION, &PASSWORD, &TOTP_ENROL, NULL, "portal.self.enrol_totp",
     "Begin with a second factor; its key is shown once"},
    {HEAD_POST, POR "/me/totp/confirm", totp_confirm, ROLE_CUSTOMER, ROUTE_ACTION, &TOTP_CONFIRM, &RECOVERY, NULL, "portal.self.confirm_totp",
     "Show a code of it: it counts from then on, and recovery codes are given"},
    {HEAD_POST, POR "/me/totp/disable", totp_disable, ROLE_CUSTOMER, ROUTE_HASHES | ROUTE_ACTION, &PASSWORD, NULL, NULL, "portal.self.disable_totp",
     "Go on without it"},
    {.path = NULL},
};
