/* The state machine of licenses as a table: stored status x action -> status afterwards, zero where it is not allowed. What depends on
 * the terms and not on the status alone is refined below it. */
#include "pullgate/lifecycle.h"

#include <stddef.h>

#define DAY_S INT64_C(86400)

#define NO  LICENSE_STATUS_NONE
#define INA LICENSE_INACTIVE
#define ACT LICENSE_ACTIVE
#define SUS LICENSE_SUSPENDED
#define REV LICENSE_REVOKED

static const struct {
    const char *text, *event;
    uint8_t to[LICENSE_REVOKED + 1];
} TABLE[LIFECYCLE_ACTIONS_N] = {
    /*                                                                            none inactive active suspended revoked */
    [LIFECYCLE_ACTIVATE] =    {"activate",             "license.activated",      {NO,  ACT,     NO,    NO,       NO}},
    [LIFECYCLE_SUSPEND] =     {"suspend",              "license.suspended",      {NO,  NO,      SUS,   NO,       NO}},
    [LIFECYCLE_REINSTATE] =   {"reinstate",            "license.reinstated",     {NO,  NO,      NO,    ACT,      NO}},
    [LIFECYCLE_REVOKE] =      {"revoke",               "license.revoked",        {NO,  REV,     REV,   REV,      NO}},
    [LIFECYCLE_RENEW] =       {"renew",                "license.renewed",        {NO,  INA,     ACT,   SUS,      NO}},
    [LIFECYCLE_EXTEND] =      {"extend",               "license.extended",       {NO,  INA,     ACT,   SUS,      NO}},
    [LIFECYCLE_CHANGE_PLAN] = {"change-plan",          "license.plan_changed",   {NO,  INA,     ACT,   NO,       NO}},
    [LIFECYCLE_CANCEL] =      {"cancel-at-period-end", "license.cancelled",      {NO,  INA,     ACT,   SUS,      NO}},
    [LIFECYCLE_ROTATE_KEY] =  {"rotate-key",           "license.key_rotated",    {NO,  INA,     ACT,   SUS,      NO}},
    [LIFECYCLE_RESET] =       {"reset",                "license.reset",          {NO,  INA,     ACT,   SUS,      NO}},
    [LIFECYCLE_TRANSFER] =    {"transfer",             "license.transferred",    {NO,  INA,     ACT,   NO,       NO}},
    [LIFECYCLE_GRANTS] =      {"grants",               "license.grants_changed", {NO,  INA,     ACT,   SUS,      NO}},
    [LIFECYCLE_UPDATE] =      {"update",               "license.updated",        {NO,  INA,     ACT,   SUS,      NO}},
    [LIFECYCLE_DELETE] =      {"delete",               "license.deleted",        {NO,  INA,     ACT,   SUS,      REV}},
};

static bool is_action(enum lifecycle_action a)
{
    return a > LIFECYCLE_NONE && a < LIFECYCLE_ACTIONS_N;
}

const char *lifecycle_action_text(enum lifecycle_action a)
{
    return is_action(a) ? TABLE[a].text : "none";
}

const char *lifecycle_event(enum lifecycle_action a)
{
    return is_action(a) ? TABLE[a].event : "none";
}

bool lifecycle_action_parse(struct str s, enum lifecycle_action *ret)
{
    for (int a = LIFECYCLE_NONE + 1; a < LIFECYCLE_ACTIONS_N; a++)
        if (str_eq_c(s, TABLE[a].text)) {
            *ret = (enum lifecycle_action)a;
            return true;
        }
    return false;
}

/* Why the status alone forbids it. */
static const char *status_forbids(enum license_status status, enum lifecycle_action a)
{
    switch (status) {
    case LICENSE_REVOKED:
        return "the license is revoked, which is final";
    case LICENSE_INACTIVE:
        return a == LIFECYCLE_REINSTATE ? "the license is inactive: it was not suspended, activate it"
                                        : "the license is inactive: it is to be activated first";
    case LICENSE_ACTIVE:
        return "the license is active already";
    case LICENSE_SUSPENDED:
        return a == LIFECYCLE_SUSPEND ? "the license is suspended already" : "the license is suspended: it is to be reinstated first";
    case LICENSE_STATUS_NONE:
    default:
        return "the license has no status that this is known for";
    }
}

/* Why its terms forbid what its status allows; NULL: they do not. */
static const char *terms_forbid(const struct lifecycle *l, enum lifecycle_action a, const char **ret_code)
{
    bool moves_end = a == LIFECYCLE_RENEW || a == LIFECYCLE_EXTEND;
    if (a == LIFECYCLE_RENEW && !l->has_expiry && l->has_updates_end && !l->is_trial_waiting)
        return NULL; /* what is renewed is the right to updates */
    if (moves_end && l->is_perpetual)
        return "the license is perpetual: it never ends";
    if (moves_end && l->is_trial_waiting)
        return "the trial has not begun: it has no end yet";
    if (moves_end && !l->has_expiry) {
        *ret_code = "no_expiry";
        return "the license never expires; give it an expires_at with PATCH first";
    }
    if (a == LIFECYCLE_CANCEL && !l->auto_renew)
        return "the license does not renew by itself";
    if (a == LIFECYCLE_CANCEL && l->cancel_at_period_end)
        return "the license is cancelled for the end of its period already";
    return NULL;
}

void lifecycle_judge(const struct lifecycle *l, enum lifecycle_action a, struct lifecycle_verdict *ret)
{
    *ret = (struct lifecycle_verdict){.to = l->status, .code = "action_not_allowed"};
    if (!is_action(a)) {
        ret->why = "there is no such action";
        return;
    }
    enum license_status to =
        l->status > LICENSE_STATUS_NONE && l->status <= LICENSE_REVOKED ? (enum license_status)TABLE[a].to[l->status] : LICENSE_STATUS_NONE;
    if (l->is_archived)
        ret->why = "the license was deleted";
    else if (to == LICENSE_STATUS_NONE)
        ret->why = status_forbids(l->status, a);
    else
        ret->why = terms_forbid(l, a, &ret->code);
    if (!ret->why)
        *ret = (struct lifecycle_verdict){.is_allowed = true, .to = to};
}

/* ---- the clock --------------------------------------------------------------------------------------------------------- */

const int LIFECYCLE_NOTICE_DAYS[LIFECYCLE_NOTICES] = {60, 30, 14, 7, 1, 0};

int64_t lifecycle_grace_end(int64_t from_s, int64_t grace_days)
{
    int64_t grace, end;
    if (!from_s)
        return 0;
    if (grace_days <= 0)
        return from_s;
    if (__builtin_mul_overflow(grace_days, DAY_S, &grace) || __builtin_add_overflow(from_s, grace, &end))
        return INT64_MAX;
    return end;
}

static void sooner(int64_t *at, int64_t t, int64_t after_s)
{
    if (t > after_s && t != INT64_MAX && (*at == 0 || t < *at))
        *at = t;
}

int64_t lifecycle_wake(const struct lifecycle_clock *c, int64_t after_s)
{
    int64_t at = 0;
    if (c->is_archived || c->status == LICENSE_REVOKED || c->status == LICENSE_STATUS_NONE)
        return 0;
    if (c->change_at_s)
        sooner(&at, c->change_at_s, after_s);
    if (c->status != LICENSE_ACTIVE)
        return at;
    if (c->starts_at_s)
        sooner(&at, c->starts_at_s, after_s);
    if (c->payment_failed_at_s)
        sooner(&at, lifecycle_grace_end(c->payment_failed_at_s, c->grace_days), after_s);
    if (c->expires_at_s) {
        for (int i = 0; i < LIFECYCLE_NOTICES; i++)
            sooner(&at, c->expires_at_s - LIFECYCLE_NOTICE_DAYS[i] * DAY_S, after_s);
        sooner(&at, lifecycle_grace_end(c->expires_at_s, c->grace_days), after_s);
    }
    return at;
}
