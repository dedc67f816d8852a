/* What may be done with a license, and when the clock has to look at it: the one state machine, asked by the API, the jobs and the pages.
 * Pure. The stored status changes only by an action of this table; what the clock makes of it is license_effective(). */
#ifndef PULLGATE_LIFECYCLE_H
#define PULLGATE_LIFECYCLE_H

#include <stdbool.h>
#include <stdint.h>

#include "pullgate/license.h"
#include "pullgate/str.h"

enum lifecycle_action {
    LIFECYCLE_NONE,
    LIFECYCLE_ACTIVATE,
    LIFECYCLE_SUSPEND,
    LIFECYCLE_REINSTATE,
    LIFECYCLE_REVOKE,
    LIFECYCLE_RENEW,
    LIFECYCLE_EXTEND,
    LIFECYCLE_CHANGE_PLAN,
    LIFECYCLE_CANCEL, /* cancel-at-period-end */
    LIFECYCLE_ROTATE_KEY,
    LIFECYCLE_RESET,
    LIFECYCLE_TRANSFER,
    LIFECYCLE_GRANTS,
    LIFECYCLE_UPDATE,
    LIFECYCLE_DELETE,
    LIFECYCLE_ACTIONS_N,
};
const char *lifecycle_action_text(enum lifecycle_action a); /* as in the path and in allowed_actions: "change-plan" */
bool lifecycle_action_parse(struct str s, enum lifecycle_action *ret);
const char *lifecycle_event(enum lifecycle_action a); /* of the history and the event log: "license.activated" */

struct lifecycle {
    enum license_status status;
    bool is_archived;
    bool is_perpetual;     /* of that type: it has no end by its nature */
    bool is_trial_waiting; /* its trial has not begun: it has no end yet */
    bool has_expiry;
    bool has_updates_end; /* its right to updates ends at a time */
    bool auto_renew, cancel_at_period_end;
};
struct lifecycle_verdict {
    bool is_allowed;
    enum license_status to; /* stored status afterwards; for a refusal the present one */
    const char *code;       /* of a refusal: "action_not_allowed", or "no_expiry" where only the end is missing */
    const char *why;        /* of a refusal: "the license is revoked, which is final" */
};
void lifecycle_judge(const struct lifecycle *l, enum lifecycle_action a, struct lifecycle_verdict *ret);

/* ---- the clock --------------------------------------------------------------------------------------------------------- */

/* Notices of the coming end go out this many days before expires_at, 60 first; 0 is the end itself. */
#define LIFECYCLE_NOTICES 6
extern const int LIFECYCLE_NOTICE_DAYS[LIFECYCLE_NOTICES];

struct lifecycle_clock {
    enum license_status status;
    bool is_archived;
    int64_t starts_at_s, expires_at_s, grace_days;
    int64_t payment_failed_at_s; /* the grace of a failed payment ends grace_days after it */
    int64_t change_at_s;         /* the next scheduled change */
};
/* The first moment after after_s at which something is due; 0: never. Of an active license: starts_at, each notice, expires_at, the end of
 * its grace, the end of a failed payment's grace. A scheduled change also of an inactive or a suspended one. */
int64_t lifecycle_wake(const struct lifecycle_clock *c, int64_t after_s);
/* End of the grace: expires_at + grace_days; 0 without an end. */
int64_t lifecycle_grace_end(int64_t from_s, int64_t grace_days);

#endif
