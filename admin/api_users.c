/* People of the vendor and of its customers: who there is, what they may, and the invitation by which somebody chooses his password.
 * Signing in is api_sessions.c's. */
#include <string.h>

#include "api_routes.h"
#include "mail.h"
#include "outbox.h"
#include "people.h"
#include "pullgate/clock.h"
#include "pullgate/credential.h"
#include "pullgate/mem.h"
#include "pullgate/password.h"
#include "roles.h"

#define INVITE_PREFIX  "pgi_"
#define INVITE_S       (7 * 86400)  /* how long an invitation can be accepted, where the request does not say */
#define INVITE_MAX_S   (30 * 86400)
#define USERS_MAX      10000 /* people of a vendor, and of one customer */

/* ---- schemas ----------------------------------------------------------------------------------------------------------- */

static const struct field USER_FIELDS[] = {
    {.name = "id", .type = FIELD_STRING},
    {.name = "email", .type = FIELD_STRING},
    {.name = "name", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "role", .type = FIELD_STRING, .one_of = ROLES_VENDOR "|" ROLES_CUSTOMER},
    {.name = "customer_id", .type = FIELD_STRING, .flags = FIELD_NULL, .about = "whose he is, when a customer's"},
    {.name = "status", .type = FIELD_STRING, .one_of = "invited|active|disabled"},
    {.name = "disabled", .type = FIELD_BOOL, .about = "he cannot sign in, and his tokens are refused, while it is"},
    {.name = "totp", .type = FIELD_BOOL, .about = "signing in takes a one-time password"},
    {.name = "last_sign_in_at", .type = FIELD_TIME},
    {.name = "last_sign_in_from", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "created_at", .type = FIELD_TIME},
    {.name = "updated_at", .type = FIELD_TIME},
    {.name = "etag", .type = FIELD_STRING},
    {.name = "secret", .type = FIELD_SECRET, .flags = FIELD_OPTIONAL, .about = "of the invitation; shown once, for POST /invitations/accept, also where it is mailed"},
    {.name = "invitation_mailed", .type = FIELD_BOOL, .flags = FIELD_OPTIONAL, .about = "with secret: it is in a mail to him, too; GET /mails says what becomes of that"},
    {.name = "invitation_expires_at", .type = FIELD_TIME},
    {.name = NULL},
};
const struct schema USER_SCHEMA = {"User", USER_FIELDS};

static const struct field USER_CREATE_FIELDS[] = {
    {.name = "email", .type = FIELD_STRING, .flags = FIELD_REQUIRED, .max = 254},
    {.name = "name", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "role", .type = FIELD_STRING, .flags = FIELD_REQUIRED, .one_of = ROLES_VENDOR, .about = "at most that of who makes him"},
    {.name = "password", .type = FIELD_SECRET, .max = PASSWORD_MAX, .about = "when absent he is invited"},
    {.name = "invitation_expires_at", .type = FIELD_TIME, .about = "in 7 days, when absent; at most in 30"},
    {.name = NULL},
};
static const struct schema USER_CREATE = {"UserCreate", USER_CREATE_FIELDS};

static const struct field CUSTOMER_USER_CREATE_FIELDS[] = {
    {.name = "email", .type = FIELD_STRING, .flags = FIELD_REQUIRED, .max = 254},
    {.name = "name", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "role", .type = FIELD_STRING, .flags = FIELD_REQUIRED, .one_of = ROLES_CUSTOMER, .about = "customer_admin also manages the customer's credentials"},
    {.name = "password", .type = FIELD_SECRET, .max = PASSWORD_MAX, .about = "when absent he is invited"},
    {.name = "invitation_expires_at", .type = FIELD_TIME, .about = "in 7 days, when absent; at most in 30"},
    {.name = NULL},
};
static const struct schema CUSTOMER_USER_CREATE = {"CustomerUserCreate", CUSTOMER_USER_CREATE_FIELDS};

static const struct field USER_UPDATE_FIELDS[] = {
    {.name = "name", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "role", .type = FIELD_STRING, .one_of = ROLES_VENDOR},
    {.name = "disabled", .type = FIELD_BOOL},
    {.name = NULL},
};
static const struct schema USER_UPDATE = {"UserUpdate", USER_UPDATE_FIELDS};

static const struct field CUSTOMER_USER_UPDATE_FIELDS[] = {
    {.name = "name", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "role", .type = FIELD_STRING, .one_of = ROLES_CUSTOMER},
    {.name = "disabled", .type = FIELD_BOOL},
    {.name = NULL},
};
static const struct schema CUSTOMER_USER_UPDATE = {"CustomerUserUpdate", CUSTOMER_USER_UPDATE_FIELDS};

static const struct field INVITE_FIELDS[] = {
    {.name = "invitation_expires_at", .type = FIELD_TIME, .about = "in 7 days, when absent; at most in 30"},
    {.name = NULL},
};
static const struct schema INVITE = {"Invite", INVITE_FIELDS};

static const struct field ACCEPT_FIELDS[] = {
    {.name = "secret", .type = FIELD_SECRET, .flags = FIELD_REQUIRED, .max = 100},
    {.name = "password", .type = FIELD_SECRET, .flags = FIELD_REQUIRED, .max = PASSWORD_MAX},
    {.name = "name", .type = FIELD_STRING},
    {.name = NULL},
};
static const struct schema ACCEPT = {"InvitationAccept", ACCEPT_FIELDS};

/* ---- rows ---------------------------------------------------------------------------------------------------------------- */

#define USER_COLUMNS                                                                                                                       \
    "u.id, u.vendor_id, u.customer_id, u.email, u.name, u.role, u.password_hash, u.totp_sealed, u.disabled, u.totp_enabled_at,"            \
    " u.totp_step, u.invite_expires_at, u.last_at, u.last_from, u.created_at, u.updated_at, u.rev"

void user_release(struct user *u)
{
    mem_free(u->id);
    mem_free(u->vendor_id);
    mem_free(u->customer_id);
    mem_free(u->email);
    mem_free(u->name);
    mem_free(u->password_hash);
    mem_free(u->totp_sealed);
    mem_free(u->last_from);
    *u = (struct user){0};
}

static void user_take(const struct store_stmt *st, struct user *u)
{
    user_release(u);
    u->id = str_dup(store_col_str(st, 0));
    u->vendor_id = str_dup(store_col_str(st, 1));
    u->customer_id = str_dup(store_col_str(st, 2));
    u->email = str_dup(store_col_str(st, 3));
    u->name = str_dup(store_col_str(st, 4));
    u->role = role_parse(store_col_str(st, 5));
    u->password_hash = str_dup(store_col_str(st, 6));
    u->totp_sealed = str_dup(store_col_str(st, 7));
    u->disabled = store_col_int(st, 8) != 0;
    u->totp_enabled_at = store_col_int(st, 9);
    u->totp_step = store_col_int(st, 10);
    u->invite_expires_at = store_col_int(st, 11);
    u->last_at = store_col_int(st, 12);
    u->last_from = str_dup(store_col_str(st, 13));
    u->created_at = store_col_int(st, 14);
    u->updated_at = store_col_int(st, 15);
    u->rev = store_col_int(st, 16);
}

enum err user_find(struct api *rq, const char *where, struct str a, struct str b, struct user *ret, bool *ret_found)
{
    struct store_stmt *st = NULL;
    struct strbuf sql = {0};
    bool row = false;
    sb_addf(&sql, "SELECT " USER_COLUMNS " FROM users u JOIN vendors v ON v.id=u.vendor_id WHERE u.removed_at=0 AND %s", where);
    enum err err = store_query(rq->store, &st, &rq->error, sql.p, b.p ? "ss" : "s", a, b);
    if (!err)
        err = store_step(st, &row, &rq->error);
    if (!err) {
        *ret_found = row;
        if (row)
            user_take(st, ret);
    }
    store_done(&st);
    sb_free(&sql);
    return err;
}

struct jv *user_print(const struct user *u, int64_t now_s)
{
    struct jv *v = jv_object();
    jv_set_c(v, "id", u->id);
    jv_set_c(v, "email", u->email);
    jv_set_c(v, "name", u->name);
    jv_set_c(v, "role", role_text(u->role));
    jv_set_c(v, "customer_id", *u->customer_id ? u->customer_id : NULL);
    jv_set_c(v, "status", u->disabled ? "disabled" : *u->password_hash ? "active" : "invited");
    jv_set_bool(v, "disabled", u->disabled);
    jv_set_bool(v, "totp", u->totp_enabled_at != 0);
    jv_set_time(v, "last_sign_in_at", u->last_at);
    jv_set_c(v, "last_sign_in_from", u->last_from);
    jv_set_time(v, "created_at", u->created_at);
    jv_set_time(v, "updated_at", u->updated_at);
    api_print_etag(v, u->rev);
    jv_set_time(v, "invitation_expires_at", u->invite_expires_at > now_s ? u->invite_expires_at : 0);
    return v;
}

bool email_normalise(struct str in, struct strbuf *ret)
{
    in = str_trim(in);
    ptrdiff_t at = str_index(in, '@');
    if (at <= 0 || at != str_rindex(in, '@') || at >= (ptrdiff_t)in.n - 1 || in.n > 254)
        return false;
    sb_reset(ret);
    for (size_t i = 0; i < in.n; i++) {
        char c = in.p[i];
        if ((unsigned char)c <= 0x20 || c == 0x7f || strchr("<>,;\"\\()[]:", c))
            return false;
        sb_add_char(ret, c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c);
    }
    return true;
}

/* ---- one of the path ------------------------------------------------------------------------------------------------------- */

static bool is_customers(const struct api *rq)
{
    return str_starts(str_c(rq->route->path), S("/api/v1/customers/"));
}

/* The customer of the path is the caller's. "" for a route of the vendor's own people. */
static enum err parent_check(struct api *rq, struct str *ret_customer)
{
    bool found = false;
    struct strbuf vendor = {0};
    *ret_customer = S("");
    if (!is_customers(rq))
        return ERR_OK;
    enum err err = api_lookup(rq, "SELECT vendor_id FROM customers WHERE id=? AND archived_at=0", rq->params[0], &vendor, &found);
    if (!err && (!found || !str_eq_c(sb_str(&vendor), rq->vendor_id)))
        err = api_not_found(rq, "customer");
    sb_free(&vendor);
    if (!err)
        *ret_customer = rq->params[0];
    return err;
}

static enum err user_load(struct api *rq, struct user *ret)
{
    struct str customer, id = rq->params[is_customers(rq) ? 1 : 0];
    bool found = false;
    enum err err = parent_check(rq, &customer);
    if (!err)
        err = user_find(rq, "u.id=?1 AND u.customer_id=?2", id, customer, ret, &found);
    if (!err && (!found || strcmp(ret->vendor_id, rq->vendor_id) != 0))
        err = api_not_found(rq, "user");
    if (!err)
        api_audit_object(rq, ret->id);
    return err;
}

static enum err user_answer(struct api *rq, const char *id)
{
    struct user u = {0};
    bool found = false;
    enum err err = user_find(rq, "u.id=?1", str_c(id), (struct str){NULL, 0}, &u, &found);
    if (!err && !found)
        err = api_not_found(rq, "user");
    if (!err) {
        rq->out = user_print(&u, rq->now_s);
        api_set_etag(rq, u.rev);
        if (rq->method != HEAD_GET)
            rq->after = jv_copy(rq->out);
    }
    user_release(&u);
    return err;
}

/* ---- rights over people ------------------------------------------------------------------------------------------------------ */

/* Whether the caller may have a say over somebody of the role. A token that is narrowed has none: a person is not. */
static enum err say_check(struct api *rq, enum role role)
{
    if (role >= ROLE_CUSTOMER)
        return ERR_OK;
    if (rq->scopes && *rq->scopes)
        return api_fail(rq, ERR_DENIED, "rights_exceeded", NULL, "a token with scopes has no say over people, who have none");
    return rights_check(rq, role);
}

static bool is_self(const struct api *rq, const struct user *u)
{
    return rq->owner_id && strcmp(rq->owner_id, u->id) == 0;
}

/* A person does not end: whoever acts with a token that does would outlive it in him. Customers' people have no rights here. */
static enum err lasting_check(struct api *rq, enum role role)
{
    if (role < ROLE_CUSTOMER && rq->token_expires_s)
        return api_fail(rq, ERR_DENIED, "rights_exceeded", NULL, "a token that ends gives nobody a password or a role, which do not");
    return ERR_OK;
}

/* What he must show his password for, where it is his own, is no matter of who he is alone. */
static enum err other_check(struct api *rq, const struct user *u)
{
    if (is_self(rq, u))
        return api_fail(rq, ERR_DENIED, "rights_exceeded", NULL, "one's own password and second factor are changed under /me");
    return ERR_OK;
}

/* Whoever can still sign in as an owner of the vendor, besides u. */
static enum err owner_check(struct api *rq, const struct user *u)
{
    struct store_stmt *st = NULL;
    bool row = false;
    if (u->role != ROLE_OWNER && u->role != ROLE_OPERATOR)
        return ERR_OK;
    if (u->disabled || !*u->password_hash)
        return ERR_OK; /* he is none now */
    enum err err = store_query(rq->store, &st, &rq->error,
                               "SELECT 1 FROM users WHERE vendor_id=? AND customer_id='' AND role IN ('owner','operator') AND disabled=0 AND"
                               " password_hash<>'' AND removed_at=0 AND id<>? LIMIT 1",
                               "zz", u->vendor_id, u->id);
    if (!err)
        err = store_step(st, &row, &rq->error);
    store_done(&st);
    if (!err && !row)
        err = api_fail(rq, ERR_CONFLICT, "last_owner", NULL, "nobody else is an owner");
    return err;
}

/* ---- invitations ---------------------------------------------------------------------------------------------------------------- */

static enum err invite_until(struct api *rq, int64_t *ret)
{
    int64_t until = 0;
    enum err err = api_time_end(rq, rq->in, "invitation_expires_at", "invitation_expires_at", &until);
    if (err)
        return err;
    if (!until)
        until = rq->now_s + INVITE_S;
    if (until <= rq->now_s || until > rq->now_s + INVITE_MAX_S)
        return api_fail(rq, ERR_INVALID, "invalid_window", "invitation_expires_at", "invitation_expires_at: within the next 30 days");
    *ret = until;
    return ERR_OK;
}

/* A fresh secret takes the place of an earlier one. The person is told by mail, where that is set up. */
static enum err invite_write(struct api *rq, const char *id, char secret[CREDENTIAL_TEXT_MAX], bool *ret_mailed)
{
    struct user u = {0};
    bool found = false;
    char hash[CREDENTIAL_HASH_MAX];
    int64_t until = 0;
    enum err err = invite_until(rq, &until);
    if (err)
        return err;
    credential_new(INVITE_PREFIX, secret);
    credential_hash(rq->admin->keys, str_c(secret), hash);
    err = store_exec(rq->store, NULL, &rq->error, "UPDATE users SET invite_hash=?, invite_expires_at=?, updated_at=?, rev=rev+1 WHERE id=?", "ziiz",
                     hash, until, rq->now_s, id);
    if (!err)
        err = user_find(rq, "u.id=?1", str_c(id), (struct str){NULL, 0}, &u, &found);
    if (!err && found) {
        const struct mail_invitation invitation = {.vendor_id = u.vendor_id, .customer_id = u.customer_id, .actor = rq->actor, .user_id = u.id, .name = u.name,
                                                   .email = u.email, .role = role_text(u.role), .secret = secret, .expires_at = until, .now_s = rq->now_s};
        err = mail_invite(rq->admin, rq->store, &invitation, ret_mailed, &rq->error);
    }
    user_release(&u);
    return err;
}

static void invite_answer(struct api *rq, const char *secret, bool is_mailed)
{
    jv_set_c(rq->out, "secret", secret);
    jv_set_bool(rq->out, "invitation_mailed", is_mailed);
}

/* ---- handlers ---------------------------------------------------------------------------------------------------------------------- */

static enum err user_list(struct api *rq)
{
    struct page page;
    struct str customer;
    struct store_stmt *st = NULL;
    struct strbuf email = {0};
    struct user u = {0};
    bool row;
    enum err err = api_page(rq, &page);
    if (!err)
        err = parent_check(rq, &customer);
    if (err)
        return err;
    api_query(rq, "email", &email);
    struct jv *items = api_list(rq);
    err = store_query(rq->store, &st, &rq->error,
                      "SELECT " USER_COLUMNS " FROM users u WHERE u.vendor_id=?1 AND u.customer_id=?2 AND u.removed_at=0"
                      " AND (?3='' OR u.email=lower(?3)) AND (u.created_at, u.id) > (?4,?5) ORDER BY u.created_at, u.id LIMIT ?6",
                      "zssizi", rq->vendor_id, customer, email.n ? sb_str(&email) : S(""), page.after_key, page.after_id,
                      (int64_t)page.limit + 1);
    while (!err) {
        err = store_step(st, &row, &rq->error);
        if (err || !row)
            break;
        user_take(st, &u);
        if (!api_page_take(&page, rq->out, u.created_at, u.id))
            break;
        jv_push(items, user_print(&u, rq->now_s));
    }
    store_done(&st);
    user_release(&u);
    sb_free(&email);
    return err;
}

static enum err user_get(struct api *rq)
{
    struct user u = {0};
    enum err err = user_load(rq, &u);
    if (!err)
        err = user_answer(rq, u.id);
    user_release(&u);
    return err;
}

enum err password_take(struct api *rq, const char *member, struct str email)
{
    struct error error = {0};
    char hash[PASSWORD_HASH_MAX];
    struct str password = jv_get_str(rq->in, member);
    if (password_policy(password, email, &error))
        return api_fail(rq, ERR_INVALID, "weak_password", member, "%s: %s", member, error.text);
    enum err err = password_hash(password, hash, &rq->error);
    if (!err)
        rq->password_hash = mem_strdup(hash);
    return err;
}

static enum err user_create(struct api *rq)
{
    char id[ID_MAX], secret[CREDENTIAL_TEXT_MAX] = "";
    struct strbuf email = {0}, path = {0};
    struct str role = jv_get_str(rq->in, "role"), customer, name = jv_get_str(rq->in, "name");
    bool is_full = false, is_mailed = false;
    enum err err = email_normalise(jv_get_str(rq->in, "email"), &email)
                       ? ERR_OK
                       : api_fail(rq, ERR_INVALID, "invalid_field", "email", "email: expected one address");
    if (!err && rq->is_hashing) {
        err = jv_get_str(rq->in, "password").p ? password_take(rq, "password", sb_str(&email)) : ERR_OK;
        sb_free(&email);
        return err;
    }
    if (!err)
        err = parent_check(rq, &customer);
    if (!err)
        err = say_check(rq, role_parse(role));
    if (!err)
        err = lasting_check(rq, role_parse(role));
    if (!err)
        err = api_lookup(rq, customer.n ? "SELECT 1 FROM users WHERE customer_id=? AND removed_at=0 LIMIT 1 OFFSET 9999"
                                        : "SELECT 1 FROM users WHERE vendor_id=? AND customer_id='' AND removed_at=0 LIMIT 1 OFFSET 9999",
                         customer.n ? customer : str_c(rq->vendor_id), NULL, &is_full);
    if (!err && is_full)
        err = api_fail(rq, ERR_CONFLICT, "too_many_users", NULL, "at most %d people", USERS_MAX);
    if (err)
        goto out;
    id_new("usr_", id);
    err = store_exec(rq->store, NULL, &rq->error,
                     "INSERT INTO users (id, vendor_id, customer_id, is_customers, email, name, role, password_hash, password_at, created_at,"
                     " updated_at) VALUES (?,?,?,?,?,?,?,?,?,?,?)",
                     "zzsbsssziii", id, rq->vendor_id, customer, customer.n > 0, sb_str(&email), name.p ? name : S(""), role,
                     rq->password_hash ? rq->password_hash : "", rq->password_hash ? rq->now_s : 0, rq->now_s, rq->now_s);
    if (!err && !rq->password_hash)
        err = invite_write(rq, id, secret, &is_mailed);
    if (!err)
        err = user_answer(rq, id);
    if (!err) {
        if (*secret)
            invite_answer(rq, secret, is_mailed);
        if (customer.n)
            sb_addf(&path, "/api/v1/customers/%.*s/users/", STR(customer));
        else
            sb_addc(&path, "/api/v1/users/");
        api_created(rq, path.p, id);
    }
out:
    mem_cleanse(secret, sizeof secret);
    sb_free(&email);
    sb_free(&path);
    return err;
}

static enum err user_update(struct api *rq)
{
    struct user u = {0};
    struct str role = jv_get_str(rq->in, "role"), name = jv_get_str(rq->in, "name");
    bool disabled = false;
    enum err err = user_load(rq, &u);
    if (!err)
        err = api_check_etag(rq, u.rev);
    if (!err)
        err = say_check(rq, u.role);
    if (err)
        goto out;
    rq->before = user_print(&u, rq->now_s);
    disabled = jv_get_bool(rq->in, "disabled", u.disabled);
    enum role wanted = role.p ? role_parse(role) : u.role;
    if (wanted != u.role && is_self(rq, &u))
        err = api_fail(rq, ERR_DENIED, "rights_exceeded", "role", "role: your own is for others to change");
    if (!err && wanted != u.role)
        err = say_check(rq, wanted);
    if (!err && wanted > u.role)
        err = lasting_check(rq, wanted);
    if (!err && u.disabled && !disabled)
        err = lasting_check(rq, u.role);
    bool is_less = wanted != u.role && wanted != ROLE_OWNER && wanted != ROLE_OPERATOR;
    if (!err && (is_less || (disabled && !u.disabled)))
        err = owner_check(rq, &u);
    if (!err)
        err = store_exec(rq->store, NULL, &rq->error,
                         "UPDATE users SET name=COALESCE(?,name), role=?, disabled=?, updated_at=?, rev=rev+1 WHERE id=?", "szbiz", name,
                         role_text(wanted), disabled, rq->now_s, u.id);
    if (!err && disabled)
        err = session_end_all(rq, u.id, NULL);
    if (!err)
        err = user_answer(rq, u.id);
out:
    user_release(&u);
    return err;
}

/* The row stays without its secrets; what he did is told by his name in the audit. His tokens and sessions die with him. */
static enum err user_delete(struct api *rq)
{
    struct user u = {0};
    enum err err = user_load(rq, &u);
    if (!err)
        err = api_check_etag(rq, u.rev);
    if (!err)
        err = say_check(rq, u.role);
    if (!err)
        err = owner_check(rq, &u);
    if (err)
        goto out;
    rq->before = user_print(&u, rq->now_s);
    err = store_exec(rq->store, NULL, &rq->error,
                     "UPDATE users SET removed_at=?, password_hash='', totp_sealed='', totp_enabled_at=0, invite_hash='', invite_expires_at=0,"
                     " rev=rev+1 WHERE id=?",
                     "iz", rq->now_s, u.id);
    if (!err)
        err = store_exec(rq->store, NULL, &rq->error, "DELETE FROM user_recovery WHERE user_id=?", "z", u.id);
    if (!err)
        err = session_end_all(rq, u.id, NULL);
    if (!err)
        err = store_exec(rq->store, NULL, &rq->error, "UPDATE api_tokens SET revoked_at=? WHERE user_id=? AND revoked_at=0", "iz", rq->now_s,
                         u.id);
out:
    user_release(&u);
    return err;
}

/* For somebody who has a password too: by the secret he chooses another. */
static enum err user_invite(struct api *rq)
{
    struct user u = {0};
    char secret[CREDENTIAL_TEXT_MAX] = "";
    bool is_mailed = false;
    enum err err = user_load(rq, &u);
    if (!err)
        err = say_check(rq, u.role);
    if (!err)
        err = other_check(rq, &u);
    if (!err)
        err = lasting_check(rq, u.role);
    if (!err && u.disabled)
        err = api_fail(rq, ERR_CONFLICT, "action_not_allowed", NULL, "he is disabled");
    if (!err)
        err = invite_write(rq, u.id, secret, &is_mailed);
    if (!err)
        err = user_answer(rq, u.id);
    if (!err)
        invite_answer(rq, secret, is_mailed);
    mem_cleanse(secret, sizeof secret);
    user_release(&u);
    return err;
}

/* For who lost his second factor. */
static enum err user_reset_totp(struct api *rq)
{
    struct user u = {0};
    enum err err = user_load(rq, &u);
    if (!err)
        err = say_check(rq, u.role);
    if (!err)
        err = other_check(rq, &u);
    if (!err)
        err = lasting_check(rq, u.role);
    if (!err)
        err = store_exec(rq->store, NULL, &rq->error,
                         "UPDATE users SET totp_sealed='', totp_enabled_at=0, totp_step=0, updated_at=?, rev=rev+1 WHERE id=?", "iz", rq->now_s, u.id);
    if (!err)
        err = store_exec(rq->store, NULL, &rq->error, "DELETE FROM user_recovery WHERE user_id=?", "z", u.id);
    if (!err)
        err = user_answer(rq, u.id);
    user_release(&u);
    return err;
}

static enum err user_sign_out(struct api *rq)
{
    struct user u = {0};
    enum err err = user_load(rq, &u);
    if (!err)
        err = say_check(rq, u.role);
    if (!err)
        err = session_end_all(rq, u.id, NULL);
    user_release(&u);
    return err;
}

/* ---- an invitation is accepted -------------------------------------------------------------------------------------------------- */

static enum err invitation_find(struct api *rq, struct user *u)
{
    char hash[CREDENTIAL_HASH_MAX];
    struct str secret = jv_get_str(rq->in, "secret");
    bool found = false;
    enum err err = ERR_OK;
    if (credential_well_formed(INVITE_PREFIX, secret)) {
        credential_hash(rq->admin->keys, secret, hash);
        err = user_find(rq, "u.invite_hash=?1", str_c(hash), (struct str){NULL, 0}, u, &found);
    }
    if (err)
        return err;
    if (!found || u->disabled || u->invite_expires_at <= rq->now_s)
        return api_fail(rq, ERR_UNAUTHN, "invitation_invalid", "secret", "secret: no invitation, one that was used, or one that is over");
    return ERR_OK;
}

static enum err invitation_accept(struct api *rq)
{
    struct user u = {0};
    struct strbuf actor = {0};
    struct str name = jv_get_str(rq->in, "name");
    enum err err = invitation_find(rq, &u);
    if (err || rq->is_hashing) {
        if (!err)
            err = password_take(rq, "password", str_c(u.email));
        goto out;
    }
    sb_addf(&actor, "user:%s", u.id);
    rq->actor = sb_take(&actor);
    rq->actor_name = mem_strdup(u.email);
    rq->vendor_id = mem_strdup(u.vendor_id);
    api_audit_object(rq, u.id);
    err = store_exec(rq->store, NULL, &rq->error,
                     "UPDATE users SET password_hash=?, password_at=?, name=COALESCE(?,name), invite_hash='', invite_expires_at=0, updated_at=?,"
                     " rev=rev+1 WHERE id=?",
                     "zisiz", rq->password_hash, rq->now_s, name, rq->now_s, u.id);
    if (!err)
        err = session_end_all(rq, u.id, NULL);
    if (!err)
        err = user_answer(rq, u.id);
out:
    user_release(&u);
    return err;
}

static const struct query_param USER_PARAMS[] = {{"email", "only this one"}, {NULL, NULL}};

#define CUS "/api/v1/customers/{id}/users"
const struct route USER_ROUTES[] = {
    {HEAD_GET, "/api/v1/users", user_list, ROLE_OWNER, ROUTE_LIST, NULL, &USER_SCHEMA, USER_PARAMS, "user.list", "People of the vendor"},
    {HEAD_POST, "/api/v1/users", user_create, ROLE_OWNER, ROUTE_HASHES, &USER_CREATE, &USER_SCHEMA, NULL, "user.create",
     "Add somebody, with a password or by an invitation whose secret is shown once"},
    {HEAD_GET, "/api/v1/users/{id}", user_get, ROLE_OWNER, 0, NULL, &USER_SCHEMA, NULL, "user.get", "One person"},
    {HEAD_PATCH, "/api/v1/users/{id}", user_update, ROLE_OWNER, 0, &USER_UPDATE, &USER_SCHEMA, NULL, "user.update",
     "Change name or role, disable or enable"},
    {HEAD_DELETE, "/api/v1/users/{id}", user_delete, ROLE_OWNER, 0, NULL, NULL, NULL, "user.delete", "Remove somebody; his sessions and tokens die"},
    {HEAD_POST, "/api/v1/users/{id}/invite", user_invite, ROLE_OWNER, ROUTE_ACTION, &INVITE, &USER_SCHEMA, NULL, "user.invite",
     "A fresh secret with which he chooses a password; it is shown once"},
    {HEAD_DELETE, "/api/v1/users/{id}/totp", user_reset_totp, ROLE_OWNER, 0, NULL, &USER_SCHEMA, NULL, "user.reset_totp",
     "Take away his second factor, when he lost it"},
    {HEAD_DELETE, "/api/v1/users/{id}/sessions", user_sign_out, ROLE_OWNER, 0, NULL, NULL, NULL, "user.sign_out", "End his sessions"},
    {HEAD_GET, CUS, user_list, ROLE_VIEWER, ROUTE_LIST, NULL, &USER_SCHEMA, USER_PARAMS, "customer_user.list", "People of a customer"},
    {HEAD_POST, CUS, user_create, ROLE_LICENSES, ROUTE_HASHES, &CUSTOMER_USER_CREATE, &USER_SCHEMA, NULL, "customer_user.create",
     "Add somebody to a customer, for the portal; invited unless a password is given"},
    {HEAD_GET, CUS "/{user_id}", user_get, ROLE_VIEWER, 0, NULL, &USER_SCHEMA, NULL, "customer_user.get", "One person of a customer"},
    {HEAD_PATCH, CUS "/{user_id}", user_update, ROLE_LICENSES, 0, &CUSTOMER_USER_UPDATE, &USER_SCHEMA, NULL, "customer_user.update",
     "Change name or role, disable or enable"},
    {HEAD_DELETE, CUS "/{user_id}", user_delete, ROLE_LICENSES, 0, NULL, NULL, NULL, "customer_user.delete", "Remove somebody; his sessions die"},
    {HEAD_POST, CUS "/{user_id}/invite", user_invite, ROLE_LICENSES, ROUTE_ACTION, &INVITE, &USER_SCHEMA, NULL, "customer_user.invite",
     "A fresh secret with which he chooses a password; it is shown once"},
    {HEAD_DELETE, CUS "/{user_id}/totp", user_reset_totp, ROLE_LICENSES, 0, NULL, &USER_SCHEMA, NULL, "customer_user.reset_totp",
     "Take away his second factor, when he lost it"},
    {HEAD_POST, "/api/v1/invitations/accept", invitation_accept, ROLE_NONE, ROUTE_HASHES | ROUTE_ACTION, &ACCEPT, &USER_SCHEMA, NULL,
     "invitation.accept", "Choose a password with an invitation's secret, which works once"},
    {HEAD_POST, "/portal/v1/invitations/accept", invitation_accept, ROLE_NONE, ROUTE_HASHES | ROUTE_ACTION, &ACCEPT, &USER_SCHEMA, NULL,
     "portal.invitation.accept", "The same, where only the portal can be reached"},
    {.path = NULL},
};
