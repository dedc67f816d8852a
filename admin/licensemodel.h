/* A license in the store: how it is read and printed, what is written with every change of one. Used by api_licenses.c and api_grants.c;
 * others have licenses.h. */
#ifndef ADMIN_LICENSEMODEL_H
#define ADMIN_LICENSEMODEL_H

#include "api.h"
#include "pullgate/credential.h"
#include "pullgate/lifecycle.h"

#define GRANTS_MAX         200 /* of one license */
#define GRANT_EXCLUDED_MAX 100 /* versions taken out of one grant */

/* What handlers compute with; the rest of a license is read and written by column. */
struct license_row {
    char id[ID_MAX + 32];
    enum license_status status;
    bool is_archived;
    int64_t starts_at, expires_at, anchor_day, grace_days, updates_until, activated_at, rev;
    int64_t trial_days, trial_started_at;
    bool auto_renew, cancel_at_period_end, requires_activation, grants_locked; /* grants_locked: its own or the vendor's */
    bool is_ordered;
    char period[24], type[16], starts_on[16];
    char *name, *customer_id, *application_id, *key_hash, *limits;
};
void license_row_free(struct license_row *r);

/* The license with its grants, if it is the caller's vendor's; archived ones only where they are wanted. ret_row may be NULL. */
#define LICENSE_WITH_ARCHIVED 1u
enum err license_load(struct api *rq, struct str id, unsigned flags, struct jv **ret, struct license_row *ret_row) MUST_USE;
/* The license of the path for an action: it is the caller's, If-Match holds, its state and terms allow the action. Sets rq->before. */
enum err license_for_action(struct api *rq, enum lifecycle_action a, struct license_row *r) MUST_USE;

/* What every change ends with, its rows written: wake_at, history, event, outbox, rq->out with "changes", rq->after; of a dry run the
 * effect as well. event NULL: no history. to: stored status afterwards. data NULL: the changes. */
struct license_change {
    const char *event;
    enum license_status to;
    struct str reason; /* {NULL,0}: none */
    const struct jv *data;
};
enum err license_finish(struct api *rq, const struct license_row *r, const struct license_change *c) MUST_USE;
enum err license_touch(struct api *rq, const struct license_row *r) MUST_USE; /* its rev, for what stands in other tables */

/* ---- grants (api_grants.c) ---------------------------------------------------------------------------------------------- */

extern const struct field GRANT_FIELDS[], GRANT_IN_FIELDS[];
extern const struct field LIMIT_IN_FIELDS[];
extern const struct schema LICENSE_ANSWER; /* of api_licenses.c */
/* One grant into the license. prefix names it in a refusal: "grants[0]." or "". origin: whose it is, where `in` has no member of that name:
 * "plan", "hand", "coupon", "import". A member "excluded" was checked. */
enum err grant_insert(struct api *rq, const struct license_row *r, const struct jv *in, const char *origin, const char *prefix,
                      char id[ID_MAX]) MUST_USE;
/* Do two grants, as the API prints or takes them, select the same? */
bool grants_same(struct api *rq, const struct jv *a, const struct jv *b);
/* Of the grants it has (as printed), the plan's become those of `list`; those that select the same stay, with their age and pins. Others stay
 * that were made after `since` (0: all of them); all of a license whose grants are locked. */
enum err grants_exchange(struct api *rq, const struct license_row *r, const struct jv *has, const struct jv *list, int64_t since) MUST_USE;

/* ---- dry runs (effect.c) ------------------------------------------------------------------------------------------------- */

extern const struct field EFFECT_FIELDS[], LAST_PULL_FIELDS[];
/* Before the first write of a dry run: what the customer may pull of the application. Nothing otherwise. */
enum err effect_begin(struct api *rq, struct str customer_id, struct str application_id) MUST_USE;
void effect_free(struct effect **e); /* NULL is fine */
/* After the last: "effect" into out, and "last_pulls" of what is lost under the license. */
enum err effect_end(struct api *rq, struct str customer_id, struct str license_id, struct jv *out) MUST_USE;

#endif
