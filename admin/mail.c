#include "mail.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "admin.h"
#include "db.h"
#include "delivery.h"
#include "eventlog.h"
#include "pullgate/clock.h"
#include "pullgate/config.h"
#include "pullgate/credential.h"
#include "pullgate/fetch.h"
#include "pullgate/jv.h"
#include "pullgate/license.h"
#include "pullgate/log.h"
#include "pullgate/mem.h"
#include "pullgate/seal.h"

#define TICK_MS    1000
#define SEND_MS    60000     /* for one mail, from the connection to the server's word */
#define REST_MS    10000     /* after a server that cannot be reached */
#define ENCODED_MAX 39      /* bytes of UTF-8 in one encoded word: with "Subject: " before it the line stays below 76 (RFC 2047) */
#define LINE_CHARS 76        /* of base64 in a body */
#define ERROR_MAX  400
#define DAY_S      INT64_C(86400)

/* ---- templates ----------------------------------------------------------------------------------------------------------------- */

enum {
    V_CUSTOMER_NAME, V_CUSTOMER_SLUG, V_CUSTOMER_EMAIL, V_LICENSE_ID, V_LICENSE_NAME, V_LICENSE_STATUS, V_LICENSE_TYPE, V_LICENSE_EXPIRES,
    V_LICENSE_GRACE, V_LICENSE_UPDATES, V_LICENSE_PERIOD, V_LICENSE_KEY, V_APP_NAME, V_APP_SLUG, V_VENDOR_NAME, V_VENDOR_SLUG, V_VENDOR_SUPPORT,
    V_RENEW, V_REGISTRY, V_EVENT, V_REASON, V_DAYS, V_ORDER, V_USER_NAME, V_USER_EMAIL, V_USER_ROLE, V_INVITE_SECRET, V_INVITE_EXPIRES, V_ADMIN_URL,
};
const char *const MAIL_PLACEHOLDER_NAMES[MAIL_PLACEHOLDERS] = {
    [V_CUSTOMER_NAME] = "customer.name",
    [V_CUSTOMER_SLUG] = "customer.slug",
    [V_CUSTOMER_EMAIL] = "customer.email",
    [V_LICENSE_ID] = "license.id",
    [V_LICENSE_NAME] = "license.name",
    [V_LICENSE_STATUS] = "license.status",
    [V_LICENSE_TYPE] = "license.type",
    [V_LICENSE_EXPIRES] = "license.expires_at",
    [V_LICENSE_GRACE] = "license.grace_ends_at",
    [V_LICENSE_UPDATES] = "license.updates_until",
    [V_LICENSE_PERIOD] = "license.period",
    [V_LICENSE_KEY] = "license.key_prefix",
    [V_APP_NAME] = "application.name",
    [V_APP_SLUG] = "application.slug",
    [V_VENDOR_NAME] = "vendor.name",
    [V_VENDOR_SLUG] = "vendor.slug",
    [V_VENDOR_SUPPORT] = "vendor.support_contact",
    [V_RENEW] = "renew_url",
    [V_REGISTRY] = "registry",
    [V_EVENT] = "event.type",
    [V_REASON] = "event.reason",
    [V_DAYS] = "event.days",
    [V_ORDER] = "order.number",
    [V_USER_NAME] = "user.name",
    [V_USER_EMAIL] = "user.email",
    [V_USER_ROLE] = "user.role",
    [V_INVITE_SECRET] = "invitation.secret",
    [V_INVITE_EXPIRES] = "invitation.expires_at",
    [V_ADMIN_URL] = "admin_url",
};

#define HELLO "Hello {{customer.name}},\n\n"
#define BYE   "\n\nQuestions: {{vendor.support_contact}}\n\n{{vendor.name}}\n"
const struct mail_template MAIL_DEFAULTS[] = {
    {"license.created", "Your license {{license.name}} for {{application.name}}",
     HELLO "the license \"{{license.name}}\" for {{application.name}} was made for you. Its status is {{license.status}}"
           ", it is valid until {{license.expires_at}}.\n\nIts key begins with {{license.key_prefix}}; the key itself is handed over apart from this mail." BYE},
    {"license.activated", "Your license {{license.name}} is active",
     HELLO "the license \"{{license.name}}\" for {{application.name}} is active and valid until {{license.expires_at}}.\n\n"
           "Sign in and pull:\n\n    docker login {{registry}} --username {{customer.slug}}\n\n"
           "The password is your license key, which begins with {{license.key_prefix}}, or one of your credentials." BYE},
    {"license.expiring", "Your license {{license.name}} expires on {{license.expires_at}}",
     HELLO "the license \"{{license.name}}\" for {{application.name}} expires on {{license.expires_at}}.\n\nRenew: {{renew_url}}" BYE},
    {"license.expired", "Your license {{license.name}} has expired",
     HELLO "the license \"{{license.name}}\" for {{application.name}} expired on {{license.expires_at}}.\n\nRenew: {{renew_url}}" BYE},
    {"license.suspended", "Your license {{license.name}} is suspended",
     HELLO "the license \"{{license.name}}\" for {{application.name}} is suspended. Reason: {{event.reason}}" BYE},
    {"license.renewed", "Your license {{license.name}} is renewed",
     HELLO "the license \"{{license.name}}\" for {{application.name}} is renewed and valid until {{license.expires_at}}." BYE},
    {"license.payment_failed", "A payment for {{license.name}} failed",
     HELLO "a payment for the license \"{{license.name}}\" for {{application.name}} failed. Without a payment the license will be suspended.\n\n"
           "Pay: {{renew_url}}" BYE},
    {"order.created", "Your order {{order.number}}",
     HELLO "thank you for your order {{order.number}}: \"{{license.name}}\" for {{application.name}}. You will be told when the license is active." BYE},
    {MAIL_USER_INVITED, "Your invitation to {{vendor.name}}",
     "Hello {{user.name}},\n\nyou are invited to {{vendor.name}} as {{user.role}}. Choose a password before {{invitation.expires_at}}.\n\n"
     "The secret of your invitation, which works once:\n\n    {{invitation.secret}}\n\n"
     "Send it with the password to\n\n    {{admin_url}}/api/v1/invitations/accept\n\n"
     "as POST with the body {\"secret\": \"...\", \"password\": \"...\"}. Whoever has the secret can choose the password: pass it on to nobody." BYE},
    {MAIL_CUSTOMER_USER_INVITED, "Your invitation to the portal of {{vendor.name}}",
     "Hello {{user.name}},\n\nyou are invited to the portal of {{vendor.name}} for {{customer.name}}. Choose a password before {{invitation.expires_at}}.\n\n"
     "The secret of your invitation, which works once:\n\n    {{invitation.secret}}\n\n"
     "Send it with the password to\n\n    {{admin_url}}/portal/v1/invitations/accept\n\n"
     "as POST with the body {\"secret\": \"...\", \"password\": \"...\"}. Whoever has the secret can choose the password: pass it on to nobody." BYE},
    {NULL, NULL, NULL},
};

const struct mail_template *mail_default(struct str event)
{
    for (const struct mail_template *t = MAIL_DEFAULTS; t->event; t++)
        if (str_eq_c(event, t->event))
            return t;
    return NULL;
}

/* Splits at the first "{{name}}". False: none is left. bad: braces that close nothing. */
static bool placeholder_next(struct str text, struct str *ret_before, struct str *ret_name, struct str *ret_after, bool *ret_bad)
{
    *ret_bad = false;
    for (size_t i = 0; i + 1 < text.n; i++) {
        if (text.p[i] != '{' || text.p[i + 1] != '{')
            continue;
        for (size_t k = i + 2; k + 1 < text.n; k++)
            if (text.p[k] == '}' && text.p[k + 1] == '}') {
                *ret_before = str_sub(text, 0, i);
                *ret_name = str_trim(str_sub(text, i + 2, k - i - 2));
                *ret_after = str_skip(text, k + 2);
                return true;
            }
        *ret_bad = true;
        return false;
    }
    return false;
}

static int placeholder_of(struct str name)
{
    for (int i = 0; i < MAIL_PLACEHOLDERS; i++)
        if (str_eq_c(name, MAIL_PLACEHOLDER_NAMES[i]))
            return i;
    return -1;
}

enum err mail_template_check(struct str text, struct error *reterr)
{
    struct str before, name;
    bool is_bad;
    while (placeholder_next(text, &before, &name, &text, &is_bad))
        if (placeholder_of(name) < 0)
            return error_set(reterr, ERR_INVALID, "no such placeholder: {{%.*s}}", (int)(name.n < 60 ? name.n : 60), name.p);
    return is_bad ? error_set(reterr, ERR_INVALID, "{{ without }}") : ERR_OK;
}

bool mail_template_invites(struct str text)
{
    struct str before, name;
    bool is_bad;
    while (placeholder_next(text, &before, &name, &text, &is_bad))
        if (placeholder_of(name) == V_INVITE_SECRET)
            return true;
    return false;
}

static void add_value(struct strbuf *ret, struct str v, bool is_body)
{
    for (size_t i = 0; i < v.n; i++) {
        unsigned char c = (unsigned char)v.p[i];
        bool is_control = c < 0x20 || c == 0x7f;
        sb_add_char(ret, is_control && !(is_body && c == '\n') ? ' ' : (char)c);
    }
}

void mail_render(struct str text, const struct mail_values *v, bool is_body, struct strbuf *ret)
{
    struct str before, name;
    bool is_bad;
    while (placeholder_next(text, &before, &name, &text, &is_bad)) {
        int i = placeholder_of(name);
        add_value(ret, before, is_body);
        if (i >= 0)
            add_value(ret, str_c(v->value[i]), false);
    }
    add_value(ret, text, is_body);
}

void mail_values_free(struct mail_values *v)
{
    for (size_t i = 0; i < MAIL_PLACEHOLDERS; i++)
        MEM_FREE(v->value[i]);
}

static void set(struct mail_values *v, int i, struct str s)
{
    mem_free(v->value[i]);
    v->value[i] = str_dup(s);
}

/* The day of t where the vendor is; "" for none. */
static void set_day(struct mail_values *v, int i, int64_t t, const char *zone, const char *none)
{
    for (int shift = 1; t > 0 && shift >= -1; shift--) {
        char text[CLOCK_RFC3339_MAX];
        int64_t start;
        clock_date(t + shift * DAY_S, text);
        if (clock_parse_start(str_c(text), zone, &start, NULL) == ERR_OK && start <= t) {
            set(v, i, str_c(text));
            return;
        }
    }
    set(v, i, str_c(none));
}

void mail_values_sample(struct mail_values *ret, struct str event)
{
    static const char *const samples[MAIL_PLACEHOLDERS] = {
        "Globex", "globex", "ops@globex.example", "lic_01hzy0000000000000000000000", "Production", "active", "paid", "2030-12-31", "2031-01-07", "2030-12-31",
        "P1Y", "AB12CD", "Shop", "shop", "Acme", "acme", "support@acme.example", "https://acme.example/renew", "registry.acme.example", "", "overdue", "14", "2030-0001",
        "Anna", "anna@acme.example", "admin", "pgi_...", "2030-12-31T22:59:59Z", "https://admin.acme.example",
    };
    for (int i = 0; i < MAIL_PLACEHOLDERS; i++)
        set(ret, i, str_c(samples[i]));
    set(ret, V_EVENT, event);
}

enum err mail_values_load(struct admin *a, struct store *s, const char *vendor_id, struct str customer_id, struct str license_id, struct str event,
                          struct str data, struct mail_values *ret, struct error *reterr)
{
    struct store_stmt *st = NULL;
    struct mail_values v = {{0}};
    struct strbuf zone = {0};
    bool row = false;
    enum err err = store_query(s, &st, reterr, "SELECT name, slug, support_contact, renew_url, time_zone FROM vendors WHERE id=?", "z", vendor_id);
    if (!err)
        err = store_step(st, &row, reterr);
    if (!err && row) {
        set(&v, V_VENDOR_NAME, store_col_str(st, 0));
        set(&v, V_VENDOR_SLUG, store_col_str(st, 1));
        set(&v, V_VENDOR_SUPPORT, store_col_str(st, 2));
        set(&v, V_RENEW, store_col_str(st, 3));
        sb_add(&zone, store_col_str(st, 4));
    }
    store_done(&st);
    if (!err)
        err = store_query(s, &st, reterr, "SELECT name, slug, email FROM customers WHERE id=? AND vendor_id=?", "sz", customer_id, vendor_id);
    row = false;
    if (!err)
        err = store_step(st, &row, reterr);
    for (int i = 0; !err && row && i < 3; i++)
        set(&v, V_CUSTOMER_NAME + i, store_col_str(st, i));
    store_done(&st);
    if (!err)
        err = store_query(s, &st, reterr,
                          "SELECT l.id, l.name, l.status, l.type, l.expires_at, l.grace_days, l.updates_until, l.period, l.key_prefix, p.name, p.slug, l.order_number"
                          " FROM licenses l JOIN applications p ON p.id=l.application_id WHERE l.id=? AND l.vendor_id=?",
                          "sz", license_id, vendor_id);
    row = false;
    if (!err)
        err = store_step(st, &row, reterr);
    if (!err && row) {
        const char *where = zone.n ? zone.p : "UTC";
        int64_t end = store_col_int(st, 4);
        for (int i = 0; i < 4; i++)
            set(&v, V_LICENSE_ID + i, store_col_str(st, i));
        set_day(&v, V_LICENSE_EXPIRES, end, where, "further notice");
        set_day(&v, V_LICENSE_GRACE, end && store_col_int(st, 5) < 36500 ? end + store_col_int(st, 5) * DAY_S : 0, where, "");
        set_day(&v, V_LICENSE_UPDATES, store_col_int(st, 6), where, "");
        set(&v, V_LICENSE_PERIOD, store_col_str(st, 7));
        set(&v, V_LICENSE_KEY, store_col_str(st, 8));
        set(&v, V_APP_NAME, store_col_str(st, 9));
        set(&v, V_APP_SLUG, store_col_str(st, 10));
        set(&v, V_ORDER, store_col_str(st, 11));
    }
    store_done(&st);
    struct fetch_url url = {0};
    const char *public_url = admin_config(a)->proxy.public_url;
    if (public_url && *public_url && fetch_url_parse(public_url, &url, NULL) == ERR_OK) {
        struct strbuf host = {0};
        sb_addc(&host, url.host);
        if (url.port != (strcmp(url.scheme, "https") == 0 ? 443 : 80))
            sb_addf(&host, ":%u", url.port);
        set(&v, V_REGISTRY, sb_str(&host));
        sb_free(&host);
        fetch_url_free(&url);
    } else {
        set(&v, V_REGISTRY, S("the registry"));
    }
    const char *admin_url = admin_config(a)->admin.public_url;
    set(&v, V_ADMIN_URL, admin_url && *admin_url ? str_c(admin_url) : S("(the admin daemon's address)"));
    set(&v, V_EVENT, event);
    struct jv *doc = NULL;
    if (data.n && jv_parse(data, &JV_LIMITS_TRUSTED, &doc, NULL) == ERR_OK) {
        const struct jv *change = jv_get(doc, "change");
        int64_t days = jv_get_int(change, "days", jv_get_int(doc, "days", -1));
        char text[24];
        if (jv_get_str(doc, "reason").p)
            set(&v, V_REASON, jv_get_str(doc, "reason"));
        snprintf(text, sizeof text, "%lld", (long long)days);
        if (days >= 0)
            set(&v, V_DAYS, str_c(text));
    }
    jv_free(doc);
    sb_free(&zone);
    if (err) {
        mail_values_free(&v);
        return err;
    }
    *ret = v;
    return ERR_OK;
}

/* ---- the message ----------------------------------------------------------------------------------------------------------------- */

bool mail_address_valid(struct str s)
{
    ptrdiff_t at = str_index(s, '@');
    if (at < 1 || s.n > 254 || (size_t)at + 1 >= s.n || str_rindex(s, '@') != at || s.p[0] == '-')
        return false;
    for (size_t i = 0; i < s.n; i++) {
        char c = s.p[i];
        if (c <= 0x20 || c >= 0x7f || strchr("<>()[],;:\\\"", c)) /* 7 bits: c is not 0 here */
            return false;
    }
    return true;
}

bool mail_mailbox(struct str s, struct str *ret_name, struct str *ret_address)
{
    ptrdiff_t open = str_index(s, '<');
    *ret_name = S("");
    *ret_address = s;
    if (open >= 0) {
        if (!s.n || s.p[s.n - 1] != '>')
            return false;
        *ret_name = str_trim(str_sub(s, 0, (size_t)open));
        *ret_address = str_sub(s, (size_t)open + 1, s.n - (size_t)open - 2);
    }
    return mail_address_valid(*ret_address);
}

static bool is_plain(struct str s)
{
    for (size_t i = 0; i < s.n; i++)
        if (s.p[i] < 0x20 || s.p[i] >= 0x7f)
            return false;
    return !(s.n >= 2 && memmem(s.p, s.n, "=?", 2)) && s.n <= 60;
}

/* A text of a header field: as it is, or as encoded words, cut between characters. */
static void add_words(struct strbuf *ret, struct str s)
{
    if (is_plain(s)) {
        sb_add(ret, s);
        return;
    }
    for (bool first = true; s.n; first = false) {
        size_t n = s.n < ENCODED_MAX ? s.n : ENCODED_MAX;
        while (n < s.n && n > 1 && ((unsigned char)s.p[n] & 0xc0) == 0x80)
            n--;
        sb_addc(ret, first ? "=?UTF-8?B?" : "\r\n =?UTF-8?B?");
        base64_encode(str_sub(s, 0, n), ret);
        sb_addc(ret, "?=");
        s = str_skip(s, n);
    }
}

static void add_mailbox(struct strbuf *ret, const char *field, struct str mailbox)
{
    struct str name, address;
    if (!mail_mailbox(mailbox, &name, &address))
        return;
    sb_addf(ret, "%s: ", field);
    if (name.n && is_plain(name)) {
        sb_add_char(ret, '"');
        for (size_t i = 0; i < name.n; i++) {
            if (name.p[i] == '"' || name.p[i] == '\\')
                sb_add_char(ret, '\\');
            sb_add_char(ret, name.p[i]);
        }
        sb_addc(ret, "\" ");
    } else if (name.n) {
        add_words(ret, name);
        sb_add_char(ret, ' ');
    }
    sb_addf(ret, "<%.*s>\r\n", STR(address));
}

void mail_compose(struct str from, struct str to, struct str subject, struct str body, const char *id, int64_t at_s, struct strbuf *ret)
{
    struct str name, address = S("");
    struct strbuf clean = {0}, text = {0}, coded = {0};
    char date[CLOCK_RFC3339_MAX];
    (void)mail_mailbox(from, &name, &address);
    ptrdiff_t at = str_index(address, '@');
    add_value(&clean, subject, false);
    clock_http_date(at_s, date); /* "Sun, 06 Nov 1994 08:49:37 GMT" */
    add_mailbox(ret, "From", from);
    add_mailbox(ret, "To", to);
    sb_addc(ret, "Subject: ");
    add_words(ret, sb_str(&clean));
    sb_addf(ret, "\r\nDate: %.25s +0000\r\nMessage-ID: <%s@%.*s>\r\n", date, id, STR(str_skip(address, (size_t)(at + 1))));
    sb_addc(ret, "Auto-Submitted: auto-generated\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n"
                 "Content-Transfer-Encoding: base64\r\n\r\n");
    for (size_t i = 0; i < body.n; i++) {
        if (body.p[i] == '\n')
            sb_add_char(&text, '\r');
        if (body.p[i] != '\r')
            sb_add_char(&text, body.p[i]);
    }
    base64_encode(sb_str(&text), &coded);
    for (struct str rest = sb_str(&coded); rest.n; rest = str_skip(rest, LINE_CHARS))
        sb_addf(ret, "%.*s\r\n", STR(str_sub(rest, 0, LINE_CHARS)));
    sb_free(&clean);
    sb_free(&text);
    sb_free(&coded);
}

/* ---- an event's mail --------------------------------------------------------------------------------------------------------------- */

static bool is_configured(const struct config *cfg)
{
    return cfg->mail.url && *cfg->mail.url && cfg->mail.from && *cfg->mail.from;
}

struct told { /* an event, and whom it concerns */
    char *vendor_id, *type, *customer_id, *license_id, *data, *email, *subject, *body;
    bool is_wanted;
};

static void told_free(struct told *t)
{
    mem_free(t->vendor_id);
    mem_free(t->type);
    mem_free(t->customer_id);
    mem_free(t->license_id);
    mem_free(t->data);
    mem_free(t->email);
    mem_free(t->subject);
    mem_free(t->body);
}

/* The event, its customer's address and the template in use. What was imported is nothing to welcome anybody for; a reminder of an end
 * that the license no longer has says nothing. */
static enum err told_load(struct store *s, int64_t event_id, struct told *t, struct error *reterr)
{
    struct store_stmt *st = NULL;
    bool row = false;
    enum err err = store_query(s, &st, reterr,
                               "SELECT e.vendor_id, e.type, e.customer_id, e.license_id, e.data, c.email, COALESCE(l.source,''), COALESCE(l.expires_at,0),"
                               " m.subject, m.body, COALESCE(m.enabled,1), COALESCE(l.status,''), COALESCE(l.archived_at,0)"
                               " FROM events e JOIN customers c ON c.id=e.customer_id AND c.vendor_id=e.vendor_id AND c.archived_at=0"
                               " LEFT JOIN licenses l ON l.id=e.license_id LEFT JOIN mail_templates m ON m.vendor_id=e.vendor_id AND m.event=e.type WHERE e.id=?",
                               "i", event_id);
    if (!err)
        err = store_step(st, &row, reterr);
    if (!err && row && store_col_str(st, 5).n && store_col_int(st, 10)) {
        const struct mail_template *dflt = mail_default(store_col_str(st, 1));
        bool has_own = !store_col_null(st, 8);
        *t = (struct told){.vendor_id = str_dup(store_col_str(st, 0)), .type = str_dup(store_col_str(st, 1)), .customer_id = str_dup(store_col_str(st, 2)),
                           .license_id = str_dup(store_col_str(st, 3)), .data = str_dup(store_col_str(st, 4)), .email = str_dup(store_col_str(st, 5))};
        if (has_own || dflt) {
            t->subject = has_own ? str_dup(store_col_str(st, 8)) : mem_strdup(dflt->subject);
            t->body = has_own ? str_dup(store_col_str(st, 9)) : mem_strdup(dflt->body);
            t->is_wanted = true;
        }
        if (strcmp(t->type, MAIL_CUSTOMER_USER_INVITED) == 0) /* has its mail, and not to this address */
            t->is_wanted = false;
        bool is_imported = str_eq(store_col_str(st, 6), S("import"));
        if (is_imported && (strcmp(t->type, "license.created") == 0 || strcmp(t->type, "license.activated") == 0))
            t->is_wanted = false;
        struct jv *doc = NULL;
        int64_t end = 0;
        bool is_reminder = strcmp(t->type, "license.expiring") == 0;
        if (jv_parse(str_c(t->data), &JV_LIMITS_TRUSTED, &doc, NULL) || clock_parse_instant(jv_get_str(jv_get(doc, "change"), "expires_at"), &end, NULL))
            end = 0;
        bool is_automatic = jv_get_bool(jv_get(doc, "change"), "automatic", false);
        jv_free(doc);
        if (is_reminder && (end <= clock_now_s() || store_col_int(st, 12) || !str_eq(store_col_str(st, 11), S("active"))))
            t->is_wanted = false;
        if ((is_reminder || is_automatic) && end != store_col_int(st, 7)) /* of several missed periods the last is told of */
            t->is_wanted = false;
    }
    store_done(&st);
    return err;
}

enum err mail_hand_out(struct admin *a, struct store *s, int64_t event_id, int64_t now_ms, struct error *reterr)
{
    struct told t = {0};
    struct mail_values v = {{0}};
    struct strbuf subject = {0}, body = {0};
    char id[ID_MAX];
    if (!is_configured(admin_config(a)))
        return ERR_OK;
    enum err err = told_load(s, event_id, &t, reterr);
    if (!err && t.is_wanted)
        err = mail_values_load(a, s, t.vendor_id, str_c(t.customer_id), str_c(t.license_id), str_c(t.type), str_c(t.data), &v, reterr);
    if (!err && t.is_wanted) {
        bool good = mail_address_valid(str_c(t.email));
        mail_render(str_c(t.subject), &v, false, &subject);
        mail_render(str_c(t.body), &v, true, &body);
        id_new("mai_", id);
        err = store_exec(s, NULL, reterr,
                         "INSERT OR IGNORE INTO mails (id, vendor_id, event_id, event_type, customer_id, license_id, recipient, subject, body, status, error,"
                         " next_attempt_ms, created_at, finished_at) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
                         "zzizzzzsszziii", id, t.vendor_id, event_id, t.type, t.customer_id, t.license_id, t.email, sb_str(&subject), sb_str(&body),
                         good ? "pending" : "failed", good ? "" : "the customer's address cannot be written to", now_ms, now_ms / 1000,
                         good ? (int64_t)0 : now_ms / 1000);
    }
    mail_values_free(&v);
    sb_free(&subject);
    sb_free(&body);
    told_free(&t);
    return err;
}

/* ---- an invitation's ---------------------------------------------------------------------------------------------------------------- */

static void sealed_aad(struct strbuf *ret, const char *mail_id)
{
    sb_addf(ret, "%s|body", mail_id);
}

static enum err template_in_use(struct store *s, const char *vendor_id, const char *event, struct strbuf *subject, struct strbuf *body, bool *ret_found,
                                struct error *reterr)
{
    struct store_stmt *st = NULL;
    const struct mail_template *dflt = mail_default(str_c(event));
    bool row = false;
    enum err err = store_query(s, &st, reterr, "SELECT subject, body, enabled FROM mail_templates WHERE vendor_id=? AND event=?", "zz", vendor_id, event);
    if (!err)
        err = store_step(st, &row, reterr);
    if (!err && row) {
        sb_add(subject, store_col_str(st, 0));
        sb_add(body, store_col_str(st, 1));
        *ret_found = store_col_int(st, 2) != 0;
    } else if (!err && dflt) {
        sb_addc(subject, dflt->subject);
        sb_addc(body, dflt->body);
        *ret_found = true;
    }
    store_done(&st);
    return err;
}

static enum err invitation_write(struct admin *a, struct store *s, const struct mail_invitation *i, const char *type, int64_t event_id,
                                 const struct strbuf *templates, struct error *reterr)
{
    struct mail_values v = {{0}};
    struct strbuf subject = {0}, body = {0}, aad = {0}, sealed = {0};
    char id[ID_MAX], until[CLOCK_RFC3339_MAX];
    enum err err = mail_values_load(a, s, i->vendor_id, str_c(i->customer_id), S(""), str_c(type), S(""), &v, reterr);
    if (err)
        return err;
    set(&v, V_USER_NAME, str_c(*i->name ? i->name : i->email));
    set(&v, V_USER_EMAIL, str_c(i->email));
    set(&v, V_USER_ROLE, str_c(i->role));
    set(&v, V_INVITE_SECRET, str_c(i->secret));
    set(&v, V_INVITE_EXPIRES, str_c(clock_rfc3339(i->expires_at, until)));
    mail_render(sb_str(&templates[1]), &v, true, &body);
    mem_cleanse(v.value[V_INVITE_SECRET], strlen(v.value[V_INVITE_SECRET]));
    set(&v, V_INVITE_SECRET, S(""));
    mail_render(sb_str(&templates[0]), &v, false, &subject);
    id_new("mai_", id);
    sealed_aad(&aad, id);
    err = keyring_seal(a->keys, sb_str(&aad), sb_str(&body), &sealed, reterr);
    bool good = mail_address_valid(str_c(i->email));
    if (!err)
        err = store_exec(s, NULL, reterr,
                         "INSERT INTO mails (id, vendor_id, event_id, event_type, customer_id, recipient, subject, body, is_sealed, status, error,"
                         " next_attempt_ms, created_at, finished_at) VALUES (?,?,?,?,?,?,?,?,1,?,?,?,?,?)",
                         "zzizzzsszziii", id, i->vendor_id, event_id, type, i->customer_id, i->email, sb_str(&subject), good ? sb_str(&sealed) : S(""),
                         good ? "pending" : "failed", good ? "" : "the address cannot be written to", i->now_s * 1000, i->now_s, good ? (int64_t)0 : i->now_s);
    if (body.p)
        mem_cleanse(body.p, body.n);
    mail_values_free(&v);
    sb_free(&subject);
    sb_free(&body);
    sb_free(&aad);
    sb_free(&sealed);
    return err;
}

enum err mail_invite(struct admin *a, struct store *s, const struct mail_invitation *i, bool *ret_mailed, struct error *reterr)
{
    const char *type = *i->customer_id ? MAIL_CUSTOMER_USER_INVITED : MAIL_USER_INVITED;
    struct strbuf templates[2] = {{0}, {0}};
    struct jv *data = jv_object();
    bool is_wanted = false;
    jv_set_c(data, "role", i->role);
    jv_set_time(data, "invitation_expires_at", i->expires_at);
    const struct event_record event = {.vendor_id = i->vendor_id, .type = type, .actor = i->actor, .customer_id = i->customer_id, .object_id = i->user_id, .data = data};
    enum err err = eventlog_put(s, &event, reterr);
    int64_t event_id = store_last_rowid(s);
    jv_free(data);
    if (!err)
        err = store_exec(s, NULL, reterr,
                         "UPDATE mails SET status='failed', body='', error='another invitation took its place', finished_at=? WHERE vendor_id=? AND event_type=?"
                         " AND recipient=? AND status='pending'",
                         "izzz", i->now_s, i->vendor_id, type, i->email);
    if (!err && is_configured(admin_config(a)))
        err = template_in_use(s, i->vendor_id, type, &templates[0], &templates[1], &is_wanted, reterr);
    if (!err && is_wanted)
        err = invitation_write(a, s, i, type, event_id, templates, reterr);
    if (!err)
        *ret_mailed = is_wanted;
    sb_free(&templates[0]);
    sb_free(&templates[1]);
    return err;
}

/* ---- the thread -------------------------------------------------------------------------------------------------------------------- */

struct mail {
    struct admin *admin;
    pthread_t thread;
    struct store *store; /* read-only, the thread's */
    bool is_ended;
    atomic_bool stopping;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    bool is_poked;
    unsigned long long logged;
};

struct letter {
    char *id, *recipient, *subject, *body;
    int64_t created_at, attempts;
    /* the outcome */
    struct admin *admin;
    enum err err;
    bool is_final, is_unreadable;
    int64_t now_ms;
    char text[ERROR_MAX];
};

static void letter_free(struct letter *l)
{
    mem_free(l->id);
    mem_free(l->recipient);
    mem_free(l->subject);
    mem_free_secret(l->body, strlen(l->body));
}

/* The text of a mail that is kept sealed. */
static void letter_open(struct letter *l)
{
    struct strbuf aad = {0};
    char *text = NULL;
    size_t n = 0;
    sealed_aad(&aad, l->id);
    if (keyring_unseal(l->admin->keys, sb_str(&aad), str_c(l->body), &text, &n) == ERR_OK) {
        mem_free(l->body);
        l->body = str_dup((struct str){text, n});
        mem_free_secret(text, n);
    } else {
        l->is_unreadable = true;
    }
    sb_free(&aad);
}

static enum err letter_next(struct mail *m, struct letter *ret, bool *ret_found, struct error *reterr)
{
    struct store_stmt *st = NULL;
    bool row = false;
    enum err err = store_query(m->store, &st, reterr,
                               "SELECT id, recipient, subject, body, created_at, attempts, is_sealed FROM mails WHERE status='pending' AND next_attempt_ms<=?"
                               " ORDER BY next_attempt_ms LIMIT 1",
                               "i", clock_now_ms());
    if (!err)
        err = store_step(st, &row, reterr);
    *ret_found = !err && row;
    bool is_sealed = *ret_found && store_col_int(st, 6) != 0;
    if (*ret_found)
        *ret = (struct letter){.id = str_dup(store_col_str(st, 0)), .recipient = str_dup(store_col_str(st, 1)), .subject = str_dup(store_col_str(st, 2)),
                               .body = str_dup(store_col_str(st, 3)), .created_at = store_col_int(st, 4), .attempts = store_col_int(st, 5), .admin = m->admin};
    store_done(&st);
    if (is_sealed)
        letter_open(ret);
    return err;
}

static enum err letter_write(struct store *s, void *arg, struct error *reterr)
{
    const struct letter *l = arg;
    const struct config *cfg = admin_config(l->admin);
    int64_t now_s = l->now_ms / 1000;
    if (!l->err)
        return store_exec(s, NULL, reterr, "UPDATE mails SET status='sent', attempts=attempts+1, error='', finished_at=?, body=CASE is_sealed WHEN 0 THEN body ELSE '' END WHERE id=?", "iz", now_s,
                          l->id);
    bool is_over = l->is_final || now_s - l->created_at >= (int64_t)(cfg->admin.webhook_give_up_ms / 1000);
    return store_exec(s, NULL, reterr, "UPDATE mails SET status=?1, attempts=attempts+1, next_attempt_ms=?2, error=?3, finished_at=?4,"
                      " body=CASE WHEN is_sealed<>0 AND ?4<>0 THEN '' ELSE body END WHERE id=?5 AND status='pending'", "zizis",
                      is_over ? "failed" : "pending", l->now_ms + delivery_backoff_ms(cfg->admin.webhook_retry_ms, l->attempts + 1), l->text,
                      is_over ? now_s : (int64_t)0, str_c(l->id));
}

static void letter_send(struct mail *m, struct letter *l)
{
    const struct config *cfg = admin_config(m->admin);
    struct strbuf message = {0}, from = {0};
    struct str name, address = S("");
    struct error error = {0};
    int code = 0;
    if (l->is_unreadable) {
        l->err = ERR_INVALID;
        l->is_final = true;
        l->now_ms = clock_now_ms();
        snprintf(l->text, sizeof l->text, "what was sealed cannot be read with the keys of now");
        return;
    }
    (void)mail_mailbox(str_c(cfg->mail.from), &name, &address);
    sb_add(&from, address);
    mail_compose(str_c(cfg->mail.from), str_c(l->recipient), str_c(l->subject), str_c(l->body), l->id, l->created_at, &message);
    const struct fetch_mail f = {
        .url = cfg->mail.url,
        .username = cfg->mail.username,
        .password = cfg->mail.password,
        .ca_file = cfg->mail.ca,
        .tls = strcmp(cfg->mail.tls, "off") == 0 ? FETCH_MAIL_TLS_OFF : strcmp(cfg->mail.tls, "tried") == 0 ? FETCH_MAIL_TLS_TRIED : FETCH_MAIL_TLS_REQUIRED,
        .from = from.n ? from.p : "",
        .to = l->recipient,
        .message = sb_str(&message),
    };
    l->err = fetch_mail(&f, SEND_MS, &m->stopping, &code, &error);
    l->now_ms = clock_now_ms();
    l->is_final = l->err && code >= 550 && code <= 554; /* of the recipient or the message: it will not get better */
    if (l->err)
        snprintf(l->text, sizeof l->text, "%s", error.text[0] ? error.text : err_text(l->err));
    if (message.p)
        mem_cleanse(message.p, message.n);
    sb_free(&message);
    sb_free(&from);
}

/* Sends what is due; *ret_rest_ms: how long to wait then. */
static enum err mail_round(struct mail *m, unsigned *ret_rest_ms, struct error *reterr)
{
    bool found = true;
    enum err err = m->store ? ERR_OK : store_open(m->admin->cfg->store.url, true, &m->store, reterr);
    while (!err && found && !atomic_load(&m->stopping) && is_configured(admin_config(m->admin))) {
        struct letter l = {0};
        err = letter_next(m, &l, &found, reterr);
        if (err || !found)
            break;
        letter_send(m, &l);
        if (!(l.err && atomic_load(&m->stopping))) /* cut by the end: pending as it was */
            err = db_run(m->admin->writer, DB_TRANSACTION, letter_write, &l, reterr);
        bool is_away = l.err == ERR_UNAVAILABLE || l.err == ERR_TIMEOUT;
        if (l.err)
            log_limited(&m->logged, 60000, LOG_LEVEL_WARN, "mail: %s; tried again later", l.text);
        letter_free(&l);
        if (is_away) { /* the others would meet the same */
            uint64_t retry = admin_config(m->admin)->admin.webhook_retry_ms;
            *ret_rest_ms = retry < REST_MS ? (unsigned)retry : REST_MS;
            break;
        }
    }
    return err;
}

static void *mail_main(void *arg)
{
    struct mail *m = arg;
    unsigned long long logged = 0;
    while (!atomic_load(&m->stopping)) {
        struct error error = {0};
        struct timespec ts;
        unsigned rest_ms = 0;
        enum err err = mail_round(m, &rest_ms, &error);
        if (err)
            log_limited(&logged, 10000, LOG_LEVEL_WARN, "mail: %s; trying again", error.text[0] ? error.text : err_text(err));
        unsigned ms = rest_ms ? rest_ms : TICK_MS;
        clock_gettime(CLOCK_MONOTONIC, &ts);
        ts.tv_sec += (time_t)(ms / 1000);
        ts.tv_nsec += (long)(ms % 1000) * 1000000;
        if (ts.tv_nsec >= 1000000000) {
            ts.tv_sec++;
            ts.tv_nsec -= 1000000000;
        }
        pthread_mutex_lock(&m->lock);
        while (!atomic_load(&m->stopping) && !(m->is_poked && !rest_ms))
            if (pthread_cond_timedwait(&m->wake, &m->lock, &ts) == ETIMEDOUT)
                break;
        m->is_poked = false;
        pthread_mutex_unlock(&m->lock);
    }
    store_close(&m->store);
    return NULL;
}

struct mail *mail_start(struct admin *a)
{
    struct mail *m = NEW(struct mail);
    pthread_condattr_t attr;
    m->admin = a;
    atomic_init(&m->stopping, false);
    AN(pthread_mutex_init(&m->lock, NULL) == 0);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    AN(pthread_cond_init(&m->wake, &attr) == 0);
    pthread_condattr_destroy(&attr);
    NEED((errno = pthread_create(&m->thread, NULL, mail_main, m)) == 0, "its mail thread");
    return m;
}

void mail_poke(struct mail *m)
{
    pthread_mutex_lock(&m->lock);
    m->is_poked = true;
    pthread_cond_signal(&m->wake);
    pthread_mutex_unlock(&m->lock);
}

void mail_end(struct mail *m)
{
    if (!m || m->is_ended)
        return;
    m->is_ended = true;
    atomic_store(&m->stopping, true);
    mail_poke(m);
    pthread_join(m->thread, NULL);
}

void mail_stop(struct mail **pm)
{
    struct mail *m = *pm;
    if (!m)
        return;
    *pm = NULL;
    mail_end(m);
    pthread_mutex_destroy(&m->lock);
    pthread_cond_destroy(&m->wake);
    mem_free(m);
}
