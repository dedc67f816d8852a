/* What other resources and the jobs do with licenses: the one way to read, make and change one. Every change writes license, history,
 * event and outbox together (licensemodel.c); the caller's transaction holds them. What is allowed is lib/lifecycle.c's to say. */
#ifndef ADMIN_LICENSES_H
#define ADMIN_LICENSES_H

#include "api.h"

/* The license as the API prints it, with its grants, if it is the caller's vendor's and not archived. The caller frees *ret. */
enum err licenses_get(struct api *rq, struct str id, struct jv **ret) MUST_USE;
/* The same without a look at the ETag, archived ones too: a row of a list. */
enum err licenses_shown(struct api *rq, struct str id, struct jv **ret) MUST_USE;
/* GET /licenses (api_license_list.c) and the parameters it takes. */
enum err licenses_list(struct api *rq) MUST_USE;
extern const struct query_param LICENSE_LIST_PARAMS[];

/* POST /licenses with `in` as its body: its members, all but plan_id as they shall be (what a plan says is merged into `in` before),
 * and plan_id is written as it is. rq->out: the license, with "key". source: created order request trial import transfer. */
enum err licenses_make(struct api *rq, const struct jv *in, const char *source) MUST_USE;

/* One action as its route does it: "activate", "suspend", "reinstate", "revoke", "renew", "extend", "cancel-at-period-end",
 * "rotate-key", "reset". `in` is its body, or NULL. rq->out: the license with "changes". An action that the state forbids is ERR_CONFLICT
 * with rq->code "action_not_allowed" (or "no_expiry").
 *   activate begins what waits for it: a trial of starts_on "activation", the first period of a subscription without an end.
 *   reinstate and renew forget a failed payment (payment_failed_at, payment_retries); renew applies a change of plan that is due before it.
 *   renew, extend keep the day of the month that is meant (anchor_day), and move an updates_until that is the end as well. */
enum err licenses_act(struct api *rq, struct str id, const char *action, const struct jv *in) MUST_USE;

/* PATCH /licenses/{id} with `in`, which may also name "plan_id" and "grants" here: what its plan grants from then on, instead of what the plan
 * granted so far (those that select the same stay as they are, with their age and pins). Grants that are not the plan's stay, unless
 * "keep_grants" is false and they are not younger than "keep_grants_after" (a time; all, when absent); where grants are locked, all do. `action` is judged ("change-plan", "update"); event: of history and event
 * log, NULL: the action's. reason may be {NULL,0}. */
enum err licenses_change(struct api *rq, struct str id, const char *action, const struct jv *in, const char *event, struct str reason)
    MUST_USE;

/* The caller wrote columns of its own (payment_failed_at, change_at, …) and tells it: ETag, wake_at, history, event, outbox, rq->out.
 * data: what the event carries, or NULL. event NULL: nothing that anybody is told. */
enum err licenses_changed(struct api *rq, struct str id, const char *event, struct str reason, const struct jv *data) MUST_USE;

/* ---- the clock ---------------------------------------------------------------------------------------------------------
 * licenses.wake_at is the moment at which somebody has to look at a license; 0: never. It is the first of lifecycle_wake()'s moments after
 * the last change or look. Who looks: takes rows with 0 < wake_at <= now, does everything that is due and was not done yet (what was done
 * is its own to remember, by license and expires_at: a row may be woken again for what is long done), and calls licenses_woken().
 *   A change calls licenses_wake(): a wake_at that is already due stays, so that no change swallows what nobody has looked at yet; and a
 *   license whose grace or end is over, or whose payment grace is, is due at once.
 *   Scheduled changes: who schedules one sets licenses.change_at (the next of them, 0 none) and calls licenses_wake() or licenses_changed(). */
enum err licenses_wake(struct api *rq, struct str id) MUST_USE;
/* All that was due by rq->now_s is done: wake_at is the next moment after it. */
enum err licenses_woken(struct api *rq, struct str id) MUST_USE;

/* An allowed pull under this license at at_s: begins a trial of starts_on "first_pull", once. Writes expires_at, history, the event
 * license.trial_started and the outbox. For events.c, in the writer's transaction; cheap where there is nothing to begin. */
enum err licenses_pulled(struct admin *a, struct store *s, struct str id, int64_t at_s, struct error *reterr) MUST_USE;

#endif
