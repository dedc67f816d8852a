/* Mail to customers: templates of a vendor, filled in when an event is handed out, kept in the store until the mail server took them. A
 * thread of its own sends, one after another. */
#ifndef ADMIN_MAIL_H
#define ADMIN_MAIL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pullgate/err.h"
#include "pullgate/store.h"
#include "pullgate/str.h"

struct admin;
struct mail;

struct mail *mail_start(struct admin *a);
/* Cuts what runs and ends the thread; before the writer ends. */
void mail_end(struct mail *m);
void mail_stop(struct mail **m);
void mail_poke(struct mail *m); /* there may be mail. Any thread */

/* The mail of an event, if it has a template that is in use, a recipient, and mail is configured. In a transaction of the writer. */
enum err mail_hand_out(struct admin *a, struct store *s, int64_t event_id, int64_t now_ms, struct error *reterr) MUST_USE;

/* An invitation, in its transaction: the event (user.invited, customer_user.invited) and, where mail is configured and the template in use,
 * the mail with the secret. What waits in the store is sealed, and gone once it is sent; an earlier one that still waits is not sent any
 * more. *ret_mailed: there is a mail. */
struct mail_invitation {
    const char *vendor_id, *customer_id, *actor; /* customer_id "": one of the vendor's own */
    const char *user_id, *name, *email, *role, *secret;
    int64_t expires_at, now_s;
};
enum err mail_invite(struct admin *a, struct store *s, const struct mail_invitation *i, bool *ret_mailed, struct error *reterr) MUST_USE;

/* ---- templates ----------------------------------------------------------------------------------------------------------------- */

#define MAIL_USER_INVITED          "user.invited"
#define MAIL_CUSTOMER_USER_INVITED "customer_user.invited"
struct mail_template {
    const char *event, *subject, *body;
};
extern const struct mail_template MAIL_DEFAULTS[]; /* ended by one without event */
const struct mail_template *mail_default(struct str event); /* NULL: none */

#define MAIL_PLACEHOLDERS 29
extern const char *const MAIL_PLACEHOLDER_NAMES[MAIL_PLACEHOLDERS];
struct mail_values {
    char *value[MAIL_PLACEHOLDERS]; /* NULL: nothing */
};
void mail_values_free(struct mail_values *v);
/* What the placeholders stand for, of an event's customer and license; either may be "". data: the event's, may be NULL. */
enum err mail_values_load(struct admin *a, struct store *s, const char *vendor_id, struct str customer_id, struct str license_id, struct str event,
                          struct str data, struct mail_values *ret, struct error *reterr) MUST_USE;
void mail_values_sample(struct mail_values *ret, struct str event);
/* ERR_INVALID names the placeholder that there is not. */
enum err mail_template_check(struct str text, struct error *reterr) MUST_USE;
/* It names the secret of an invitation: not for a subject, which the log shows. */
bool mail_template_invites(struct str text);
/* A value's control characters become blanks, but for line feeds where is_body: none can end a header. */
void mail_render(struct str text, const struct mail_values *v, bool is_body, struct strbuf *ret);

/* ---- the message ----------------------------------------------------------------------------------------------------------------- */

bool mail_address_valid(struct str s);
/* "Name <address>" or an address, into its parts; name may be empty. False: neither. */
bool mail_mailbox(struct str s, struct str *ret_name, struct str *ret_address);
/* The whole message with CRLF: header fields of 7 bits (RFC 2047 where that is needed), the body as base64 of UTF-8. */
void mail_compose(struct str from, struct str to, struct str subject, struct str body, const char *id, int64_t at_s, struct strbuf *ret);

#endif
