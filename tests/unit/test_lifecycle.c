/* The state machine: every stored status x action, what terms refine, and when the clock has to look. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "pullgate/lifecycle.h"

/* Written down again, as people read it: what each action makes of each stored status; NULL: refused. */
static const struct {
    const char *action, *inactive, *active, *suspended, *revoked;
} POLICY[] = {
    {"activate", "active", NULL, NULL, NULL},
    {"suspend", NULL, "suspended", NULL, NULL},
    {"reinstate", NULL, NULL, "active", NULL},
    {"revoke", "revoked", "revoked", "revoked", NULL},
    {"renew", "inactive", "active", "suspended", NULL},
    {"extend", "inactive", "active", "suspended", NULL},
    {"change-plan", "inactive", "active", NULL, NULL},
    {"cancel-at-period-end", "inactive", "active", "suspended", NULL},
    {"rotate-key", "inactive", "active", "suspended", NULL},
    {"reset", "inactive", "active", "suspended", NULL},
    {"transfer", "inactive", "active", NULL, NULL},
    {"grants", "inactive", "active", "suspended", NULL},
    {"update", "inactive", "active", "suspended", NULL},
    {"delete", "inactive", "active", "suspended", "revoked"},
};
#define N_POLICY (sizeof POLICY / sizeof *POLICY)

static const enum license_status STATUSES[] = {LICENSE_INACTIVE, LICENSE_ACTIVE, LICENSE_SUSPENDED, LICENSE_REVOKED};

static void test_every_state_and_action(void **state)
{
    (void)state;
    assert_int_equal(N_POLICY, LIFECYCLE_ACTIONS_N - 1);
    for (size_t i = 0; i < N_POLICY; i++) {
        const char *want[] = {POLICY[i].inactive, POLICY[i].active, POLICY[i].suspended, POLICY[i].revoked};
        enum lifecycle_action a;
        assert_true(lifecycle_action_parse(str_c(POLICY[i].action), &a));
        assert_string_equal(lifecycle_action_text(a), POLICY[i].action);
        assert_true(strncmp(lifecycle_event(a), "license.", 8) == 0);
        for (size_t s = 0; s < 4; s++) {
            struct lifecycle l = {.status = STATUSES[s], .has_expiry = true, .auto_renew = true};
            struct lifecycle_verdict v;
            lifecycle_judge(&l, a, &v);
            if (v.is_allowed != (want[s] != NULL) || strcmp(license_status_text(v.to), want[s] ? want[s] : license_status_text(STATUSES[s])) != 0)
                fail_msg("%s of %s: %s, %s", POLICY[i].action, license_status_text(STATUSES[s]), v.is_allowed ? "allowed" : "refused",
                         license_status_text(v.to));
            if (!v.is_allowed) {
                assert_string_equal(v.code, "action_not_allowed");
                assert_non_null(v.why);
                assert_true(strlen(v.why) > 10);
            }
            /* What was deleted is past everything, and a status that is none allows nothing. */
            l.is_archived = true;
            lifecycle_judge(&l, a, &v);
            assert_false(v.is_allowed);
            assert_string_equal(v.why, "the license was deleted");
            l = (struct lifecycle){.status = LICENSE_STATUS_NONE, .has_expiry = true, .auto_renew = true};
            lifecycle_judge(&l, a, &v);
            assert_false(v.is_allowed);
            l.status = (enum license_status)77;
            lifecycle_judge(&l, a, &v);
            assert_false(v.is_allowed);
        }
    }
    struct lifecycle l = {.status = LICENSE_ACTIVE};
    struct lifecycle_verdict v;
    lifecycle_judge(&l, LIFECYCLE_NONE, &v);
    assert_false(v.is_allowed);
    lifecycle_judge(&l, LIFECYCLE_ACTIONS_N, &v);
    assert_false(v.is_allowed);
    enum lifecycle_action a;
    assert_false(lifecycle_action_parse(S("none"), &a));
}

static void test_terms_refine(void **state)
{
    static const struct {
        struct lifecycle l;
        enum lifecycle_action a;
        const char *code; /* NULL: allowed */
    } rows[] = {
        {{.is_perpetual = true}, LIFECYCLE_RENEW, "action_not_allowed"},
        {{.is_perpetual = true}, LIFECYCLE_EXTEND, "action_not_allowed"},
        {{.is_perpetual = true, .has_updates_end = true}, LIFECYCLE_RENEW, NULL},
        {{.is_perpetual = true, .has_updates_end = true}, LIFECYCLE_EXTEND, "action_not_allowed"},
        {{.has_updates_end = true}, LIFECYCLE_RENEW, NULL},
        {{.has_updates_end = true}, LIFECYCLE_EXTEND, "no_expiry"},
        {{.has_updates_end = true, .is_trial_waiting = true}, LIFECYCLE_RENEW, "action_not_allowed"},
        {{.is_trial_waiting = true}, LIFECYCLE_RENEW, "action_not_allowed"},
        {{.is_trial_waiting = true}, LIFECYCLE_EXTEND, "action_not_allowed"},
        {{0}, LIFECYCLE_RENEW, "no_expiry"},
        {{0}, LIFECYCLE_EXTEND, "no_expiry"},
        {{.has_expiry = true}, LIFECYCLE_RENEW, NULL},
        {{.has_expiry = true}, LIFECYCLE_EXTEND, NULL},
        {{.has_expiry = true}, LIFECYCLE_CANCEL, "action_not_allowed"},
        {{.has_expiry = true, .auto_renew = true}, LIFECYCLE_CANCEL, NULL},
        {{.has_expiry = true, .auto_renew = true, .cancel_at_period_end = true}, LIFECYCLE_CANCEL, "action_not_allowed"},
        {{.is_perpetual = true}, LIFECYCLE_SUSPEND, NULL},
        {{.is_trial_waiting = true}, LIFECYCLE_REVOKE, NULL},
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct lifecycle l = rows[i].l;
        struct lifecycle_verdict v;
        l.status = LICENSE_ACTIVE;
        lifecycle_judge(&l, rows[i].a, &v);
        assert_int_equal(v.is_allowed, rows[i].code == NULL);
        if (rows[i].code)
            assert_string_equal(v.code, rows[i].code);
    }
}

/* From any status, by whatever actions: nothing leads out of revoked, and only activate leads out of inactive to active. */
static void test_revoked_is_final(void **state)
{
    (void)state;
    for (int a = LIFECYCLE_NONE + 1; a < LIFECYCLE_ACTIONS_N; a++)
        for (size_t s = 0; s < 4; s++) {
            struct lifecycle l = {.status = STATUSES[s], .has_expiry = true, .auto_renew = true};
            struct lifecycle_verdict v;
            lifecycle_judge(&l, (enum lifecycle_action)a, &v);
            if (STATUSES[s] == LICENSE_REVOKED)
                assert_int_equal(v.to, LICENSE_REVOKED);
            if (STATUSES[s] == LICENSE_INACTIVE && v.to == LICENSE_ACTIVE)
                assert_int_equal(a, LIFECYCLE_ACTIVATE);
        }
}

#define D INT64_C(86400)

static void test_wake_visits_every_moment_once(void **state)
{
    struct lifecycle_clock c = {.status = LICENSE_ACTIVE, .starts_at_s = 10 * D, .expires_at_s = 100 * D, .grace_days = 7, .payment_failed_at_s = 90 * D,
                                .change_at_s = 50 * D};
    static const int64_t want[] = {10, 40, 50, 70, 86, 93, 97, 99, 100, 107};
    int64_t t = 1;
    (void)state;
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        t = lifecycle_wake(&c, t);
        assert_int_equal(t, want[i] * D);
    }
    assert_int_equal(lifecycle_wake(&c, t), 0);
    c.status = LICENSE_SUSPENDED;
    assert_int_equal(lifecycle_wake(&c, 1), 50 * D);
    c.status = LICENSE_REVOKED;
    assert_int_equal(lifecycle_wake(&c, 1), 0);
    c = (struct lifecycle_clock){.status = LICENSE_ACTIVE, .expires_at_s = 5 * D};
    assert_int_equal(lifecycle_wake(&c, 4 * D), 5 * D); /* without grace its end is looked at once */
    assert_int_equal(lifecycle_wake(&c, 5 * D), 0);
    c.is_archived = true;
    assert_int_equal(lifecycle_wake(&c, 1), 0);
    c = (struct lifecycle_clock){.status = LICENSE_ACTIVE, .expires_at_s = INT64_MAX - 5, .grace_days = INT64_MAX};
    assert_true(lifecycle_wake(&c, 1) > 0);
    assert_int_equal(lifecycle_wake(&c, INT64_MAX - 5), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_state_and_action),
        cmocka_unit_test(test_terms_refine),
        cmocka_unit_test(test_revoked_is_final),
        cmocka_unit_test(test_wake_visits_every_moment_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
