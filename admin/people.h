/* People: the vendor's own and its customers', how they are kept, and their sessions. Shared by api_users.c (who there is),
 * api_sessions.c (who is signed in), portal.c and http.c. A person has one row; customer_id tells a customer's from a vendor's. */
#ifndef ADMIN_PEOPLE_H
#define ADMIN_PEOPLE_H

#include "api.h"

#define SESSION_PREFIX     "pgs_"
#define SESSION_IDLE_S     (12 * 3600)
#define SESSION_ABSOLUTE_S (7 * 86400)

struct user {
    char *id, *vendor_id, *customer_id, *email, *name; /* customer_id "": one of the vendor's own */
    char *password_hash, *totp_sealed;                 /* "": none */
    char *last_from;
    enum role role;
    bool disabled;
    int64_t totp_enabled_at, totp_step, invite_expires_at, last_at, created_at, updated_at, rev;
};
void user_release(struct user *u);
/* Not removed ones. where: "u.id=?1", "u.invite_hash=?1". *ret_found false: nobody. */
enum err user_find(struct api *rq, const char *where, struct str a, struct str b, struct user *ret, bool *ret_found) MUST_USE;
struct jv *user_print(const struct user *u, int64_t now_s);
extern const struct schema USER_SCHEMA;

/* Lower case, one '@', something on both sides; false: no address. */
bool email_normalise(struct str in, struct strbuf *ret);

/* The sign-in of "Bearer pgs_…": fills the caller's members of rq. ERR_UNAUTHN when there is no such live session of that kind. */
enum err session_authenticate(struct api *rq, struct str token, bool is_portal) MUST_USE;
/* Ends all sessions of the person but `except` (NULL: none is spared). */
enum err session_end_all(struct api *rq, const char *user_id, const char *except) MUST_USE;

/* In the hashing run: the password of the body's member against policy, hashed into rq->password_hash. */
enum err password_take(struct api *rq, const char *member, struct str email) MUST_USE;

/* Attempts at an account: refused beyond a limit, whoever makes them and from wherever. */
enum err account_check(struct api *rq, struct str account) MUST_USE;
/* u: whose it is; without an id: nobody's. */
void account_failed(struct api *rq, struct str account, const struct user *u);

#endif
