/* Plans: what licenses are made of, and how one license passes from a plan to another. A license keeps its own copy of what the plan said,
 * so that a change of the plan changes no license. */
#ifndef ADMIN_PLANS_H
#define ADMIN_PLANS_H

#include "api.h"

/* The plan as the API prints it, if it is the caller's vendor's; archived ones only where told. The caller frees *ret. */
enum err plans_get(struct api *rq, struct str id, bool with_archived, struct jv **ret) MUST_USE;

/* Merges the plan that in's plan_id names into a license-create body: what the body has wins, limits and features member by member.
 * Nothing to do without a plan_id. A trial beyond the plan's cap is ERR_CONFLICT with rq->code "trial_cap_reached". */
enum err plan_apply(struct api *rq, struct jv *in) MUST_USE;
/* The same of a plan that may be archived: for what was sold before. */
enum err plan_apply_any(struct api *rq, struct jv *in) MUST_USE;

/* The plan's terms from `start` on, as plan_apply() gives them. For what begins later than it was ordered. */
struct plan_terms {
    int64_t expires_at, updates_until; /* 0: none */
    int anchor_day;                    /* of the one that there is; as in licenses.anchor_day */
};
enum err plans_terms_from(struct api *rq, const struct jv *plan, struct str period, int64_t start, struct plan_terms *ret) MUST_USE;
/* How long a perpetual license of the plan is updated, where its order or the request names no other period. */
struct str plans_updates_period(const struct jv *plan, struct str period);

/* What the clock calls at the end of a period, before it renews: applies the license's scheduled change if its time has come. One that
 * cannot be applied is marked as failed, with the reason, and is no error. That of a suspended license waits until it is reinstated. */
enum err plans_apply_scheduled(struct api *rq, struct str license_id) MUST_USE;
/* The same for whoever is sooner than the clock, with its audit row: what is done to the license next is done to what it is by then. rq->out,
 * before and after are empty afterwards. */
enum err plans_catch_up(struct api *rq, struct str license_id) MUST_USE;
/* The license's change to come, if there is one: comes to nothing; moves with the end of the period that it waits for. */
enum err plans_drop_scheduled(struct api *rq, struct str license_id, const char *why) MUST_USE;
enum err plans_move_scheduled(struct api *rq, struct str license_id, int64_t from, int64_t to) MUST_USE;
/* The license's scheduled changes that are still to come, as the member "scheduled_changes". */
enum err plans_add_scheduled(struct api *rq, struct jv *license) MUST_USE;
extern const struct field SCHEDULED_CHANGE_FIELDS[];
/* change-plan as its route does it, now or at the end of the period. rq->out: the license. */
struct plan_change {
    bool is_next_period;
    bool drops_grants; /* also those that are not the plan's; those that were there when it was asked for */
    int64_t asked_at;  /* 0: now */
    bool drops_limits; /* limits and features that were changed by hand become the plan's */
    struct str reason; /* {NULL,0}: none */
};
enum err plans_change(struct api *rq, struct str license_id, struct str plan_id, const struct plan_change *c) MUST_USE;

/* The license has its limits and features of this plan: what it has otherwise stays when it becomes one of another plan. */
enum err plans_keep_own(struct api *rq, struct str license_id, const struct jv *plan) MUST_USE;

/* A line of the license's history and its event, of something that does not change the status. license: as licenses_get() gives it. */
enum err plans_note(struct api *rq, const struct jv *license, const char *event, struct str reason, const struct jv *data) MUST_USE;

/* One grant as a license takes it, against its schema and selectors; application_id NULL: its repositories are not looked at. field names
 * it in a refusal: "grants[0]". */
enum err plans_check_grant(struct api *rq, const struct jv *grant, const char *application_id, const char *field) MUST_USE;
extern const struct field PLAN_GRANT_FIELDS[];

#endif
