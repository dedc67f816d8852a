/* What the clock does with licenses and credentials, over a store in a scratch directory and a clock that the test owns. All of the admin
 * daemon but its main() is linked in (CMakeLists.txt). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "admin.h"
#include "audit.h"
#include "jobs.h"
#include "pullgate/clock.h"
#include "pullgate/mem.h"
#include "schema.h"

#include "directory.h"

#define DAY INT64_C(86400)

static char dir[64];
static struct admin admin;
static struct store *s;

static void sqlf(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static void sqlf(const char *fmt, ...)
{
    struct strbuf b = {0};
    struct error e = {0};
    va_list ap;
    va_start(ap, fmt);
    sb_vaddf(&b, fmt, ap);
    va_end(ap);
    if (store_exec(s, NULL, &e, b.p, ""))
        fail_msg("%s: %s", b.p, e.text);
    sb_free(&b);
}

/* The first column of all rows, with blanks between them. Freed by the next call but three. */
static const char *rows(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static const char *rows(const char *fmt, ...)
{
    static struct strbuf kept[4];
    static unsigned turn;
    struct strbuf b = {0}, *out = &kept[turn++ % 4];
    struct store_stmt *st = NULL;
    struct error e = {0};
    bool row = true;
    va_list ap;
    va_start(ap, fmt);
    sb_vaddf(&b, fmt, ap);
    va_end(ap);
    sb_reset(out);
    sb_addc(out, "");
    if (store_query(s, &st, &e, b.p, ""))
        fail_msg("%s: %s", b.p, e.text);
    for (;;) {
        assert_int_equal(store_step(st, &row, &e), ERR_OK);
        if (!row)
            break;
        sb_addf(out, "%s%.*s", out->n ? " " : "", STR(store_col_str(st, 0)));
    }
    store_done(&st);
    sb_free(&b);
    return out->p ? out->p : "";
}

static int64_t at(const char *text)
{
    int64_t t = 0;
    assert_int_equal(clock_parse_instant(str_c(text), &t, NULL), ERR_OK);
    return t;
}

static int setup(void **state)
{
    struct error e = {0};
    (void)state;
    snprintf(dir, sizeof dir, "/tmp/pullgate-jobs-XXXXXX");
    assert_non_null(mkdtemp(dir));
    struct strbuf b = {0};
    sb_addf(&b, "%s/c.yaml", dir);
    FILE *f = fopen(b.p, "w");
    assert_non_null(f);
    fclose(f);
    if (config_load(b.p, &admin.cfg, &e))
        fail_msg("%s", e.text);
    sb_reset(&b);
    sb_addf(&b, "%s/keys", dir);
    assert_int_equal(keyring_open(b.p, true, &admin.keys, &e), ERR_OK);
    sb_reset(&b);
    sb_addf(&b, "sqlite://%s/db", dir);
    assert_int_equal(store_open(b.p, false, &s, &e), ERR_OK);
    if (store_migrate(s, SCHEMA_MIGRATIONS, SCHEMA_MIGRATIONS_N, &e))
        fail_msg("%s", e.text);
    sb_free(&b);
    sqlf("INSERT INTO vendors (id, slug, name, is_first, time_zone, created_at, updated_at) VALUES ('ven_1','v','V',1,'Europe/Berlin',1,1)");
    sqlf("INSERT INTO applications (id, vendor_id, slug, name, created_at, updated_at) VALUES ('app_1','ven_1','shop','Shop',1,1)");
    sqlf("INSERT INTO customers (id, vendor_id, slug, name, created_at, updated_at) VALUES ('cus_1','ven_1','acme','Acme',1,1)");
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    store_close(&s);
    keyring_free(admin.keys);
    config_unref(&admin.cfg);
    admin = (struct admin){0};
    return directory_remove(dir);
}

static void license(const char *id, int64_t created_at, int64_t expires_at, const char *more)
{
    sqlf("INSERT INTO licenses (id, vendor_id, customer_id, application_id, name, status, created_at, updated_at, expires_at)"
         " VALUES ('%s','ven_1','cus_1','app_1','%s','active',%lld,1,%lld)",
         id, id, (long long)created_at, (long long)expires_at);
    if (more)
        sqlf("UPDATE licenses SET %s WHERE id='%s'", more, id);
}

/* All that is due; how many were looked at. A transaction in between is begun and lost each time, as by a crash before its commit. */
static size_t run(int64_t now)
{
    size_t n = 0, rounds = 0;
    struct error e = {0};
    for (;; rounds++) {
        struct jobs_batch lost, b;
        assert_int_equal(store_begin(s, &e), ERR_OK);
        if (jobs_run(&admin, s, now, &lost, &e))
            fail_msg("%s", e.text);
        store_rollback(s);
        assert_int_equal(store_begin(s, &e), ERR_OK);
        if (jobs_run(&admin, s, now, &b, &e))
            fail_msg("%s", e.text);
        assert_int_equal(store_commit(s, &e), ERR_OK);
        assert_int_equal(lost.n, b.n);
        if (!b.n)
            return n;
        n += b.n;
        assert_true(rounds < 100);
    }
}

static const char *events(const char *id)
{
    return rows("SELECT type || CASE WHEN type LIKE '%%.expiring' THEN ':' || COALESCE(json_extract(data,'$.change.days'), json_extract(data,'$.days')) ELSE '' END"
                " FROM events WHERE license_id='%s' OR object_id='%s' ORDER BY id", id, id);
}

static const char *end_of(const char *id)
{
    return rows("SELECT strftime('%%Y-%%m-%%dT%%H:%%M:%%SZ', expires_at, 'unixepoch') FROM licenses WHERE id='%s'", id);
}

static void test_each_reminder_once(void **state)
{
    int64_t end = at("2027-06-30T21:59:59Z");
    (void)state;
    license("lic_1", end - 400 * DAY, end, "grace_days=5");
    for (int64_t t = end - 70 * DAY; t < end + 10 * DAY; t += 3600) {
        run(t);
        if (t == end - 61 * DAY)
            assert_string_equal(events("lic_1"), "");
    }
    assert_string_equal(events("lic_1"), "license.expiring:60 license.expiring:30 license.expiring:14 license.expiring:7 license.expiring:1"
                                         " license.expiring:0 license.grace_started license.expired");
    assert_string_equal(rows("SELECT event FROM license_history WHERE event NOT LIKE '%%expiring' ORDER BY id"), "license.grace_started license.expired");
    assert_string_equal(rows("SELECT wake_at FROM licenses"), "0");
    /* a further end has reminders of its own, also one that is near */
    sqlf("UPDATE licenses SET expires_at=%lld, grace_days=0", (long long)(end + 20 * DAY));
    run(end + 10 * DAY);
    assert_true(str_ends(str_c(events("lic_1")), S("license.expired license.expiring:14")));
}

static void test_after_a_month_down_one_reminder_and_one_end(void **state)
{
    int64_t end = at("2027-06-30T21:59:59Z");
    (void)state;
    license("lic_1", end - 400 * DAY, end, "grace_days=5");
    license("lic_2", end - 400 * DAY, end, NULL);
    run(end - 70 * DAY);
    run(end - 5 * DAY);
    assert_string_equal(events("lic_1"), "license.expiring:7");
    assert_string_equal(rows("SELECT days || ':' || is_skipped FROM notices WHERE subject_id='lic_1' ORDER BY days"), "7:0 14:1 30:1 60:1");
    run(end + 35 * DAY);
    run(end + 35 * DAY + 1);
    assert_string_equal(events("lic_1"), "license.expiring:7 license.expired");
    assert_string_equal(events("lic_2"), "license.expiring:7 license.expired");
}

static void test_0_39_auto_renewal_keeps_its_day(void **state)
{
    (void)state;
    license("lic_1", at("2026-12-31T00:00:00Z"), at("2027-01-31T22:59:59Z"), "auto_renew=1, period='P1M'"); /* the end of the 31st in Berlin */
    run(at("2027-01-31T22:59:58Z"));
    assert_string_equal(end_of("lic_1"), "2027-01-31T22:59:59Z");
    run(at("2027-01-31T22:59:59Z"));
    assert_string_equal(end_of("lic_1"), "2027-02-28T22:59:59Z");
    run(at("2027-03-01T00:00:00Z"));
    assert_string_equal(end_of("lic_1"), "2027-03-31T21:59:59Z"); /* summer time */
    assert_string_equal(rows("SELECT COUNT(*) FROM audit WHERE action='license.renew' AND actor='system:clock'"), "2");
    assert_string_equal(rows("SELECT COUNT(*) FROM outbox WHERE fact='c:cus_1'"), "2");
    /* a leap year, by years */
    license("lic_2", at("2027-01-01T00:00:00Z"), at("2028-02-29T22:59:59Z"), "auto_renew=1, period='P1Y'");
    run(at("2032-03-01T00:00:00Z"));
    assert_string_equal(end_of("lic_2"), "2033-02-28T22:59:59Z");
    assert_string_equal(rows("SELECT json_extract(data,'$.expires_at') FROM license_history WHERE license_id='lic_2' AND event='license.renewed' ORDER BY id"),
                        "2029-02-28T22:59:59Z 2030-02-28T22:59:59Z 2031-02-28T22:59:59Z 2032-02-29T22:59:59Z 2033-02-28T22:59:59Z");
}

static void test_renewals_missed_while_down(void **state)
{
    int64_t records = 0;
    struct error e = {0};
    (void)state;
    license("lic_1", at("2026-12-31T00:00:00Z"), at("2027-01-31T22:59:59Z"), "auto_renew=1, period='P1M'");
    license("lic_2", at("2026-12-31T00:00:00Z"), at("2027-01-31T22:59:59Z"), "auto_renew=1, period='1d'");
    run(at("2027-05-15T00:00:00Z"));
    assert_string_equal(end_of("lic_1"), "2027-05-31T21:59:59Z");
    assert_string_equal(rows("SELECT json_extract(data,'$.expires_at') FROM license_history WHERE license_id='lic_1' AND event='license.renewed' ORDER BY id"),
                        "2027-02-28T22:59:59Z 2027-03-31T21:59:59Z 2027-04-30T21:59:59Z 2027-05-31T21:59:59Z");
    assert_string_equal(end_of("lic_2"), "2027-05-15T22:59:59Z"); /* 104 periods: more than one transaction takes */
    assert_string_equal(rows("SELECT COUNT(*) FROM license_history WHERE license_id='lic_2' AND event='license.renewed'"), "104");
    assert_string_equal(rows("SELECT COUNT(*) FROM events WHERE type IN ('license.expired','license.grace_started')"), "0");
    assert_int_equal(audit_verify(s, admin.keys, NULL, &records, &e), ERR_OK);
    assert_int_equal(records, 108);
}

static void test_2_7_cancelled_at_the_end_of_the_period(void **state)
{
    int64_t end = at("2027-01-31T22:59:59Z");
    (void)state;
    license("lic_1", end - 31 * DAY, end, "auto_renew=1, period='P1M', cancel_at_period_end=1");
    run(end - 1);
    assert_string_equal(rows("SELECT auto_renew FROM licenses"), "1");
    run(end);
    run(end + 40 * DAY);
    assert_string_equal(end_of("lic_1"), "2027-01-31T22:59:59Z");
    assert_string_equal(rows("SELECT auto_renew FROM licenses"), "0");
    assert_string_equal(rows("SELECT type FROM events WHERE type NOT LIKE '%%expiring' ORDER BY id"), "license.cancelled license.expired");
}

static void test_0_40_a_renewal_that_waits_for_its_payment(void **state)
{
    int64_t end = at("2027-01-31T22:59:59Z");
    (void)state;
    license("lic_1", end - 31 * DAY, end, "auto_renew=1, period='P1M', renew_needs_payment=1, grace_days=7");
    run(end);
    run(end + DAY);
    assert_string_equal(end_of("lic_1"), "2027-01-31T22:59:59Z");
    run(end + 30 * DAY);
    assert_string_equal(rows("SELECT type FROM events WHERE type NOT LIKE '%%expiring' ORDER BY id"), "license.renewal_due license.grace_started license.expired");
}

static void test_0_50_suspended_after_the_grace_of_a_payment(void **state)
{
    int64_t failed = at("2027-01-10T10:00:00Z");
    char more[128];
    (void)state;
    snprintf(more, sizeof more, "grace_days=7, payment_failed_at=%lld", (long long)failed);
    license("lic_1", failed - 31 * DAY, failed + 300 * DAY, more);
    run(failed + 7 * DAY - 1);
    assert_string_equal(rows("SELECT status FROM licenses"), "active");
    run(failed + 7 * DAY);
    assert_string_equal(rows("SELECT status || ' ' || status_reason FROM licenses"), "suspended payment");
    run(failed + 40 * DAY);
    assert_string_equal(rows("SELECT type || ' ' || actor FROM events"), "license.suspended system:clock");
    assert_string_equal(rows("SELECT action || ' ' || object || ' ' || json_extract(after,'$.status') FROM audit"), "license.suspend lic_1 suspended");
    assert_string_equal(rows("SELECT COUNT(*) FROM outbox WHERE fact='c:cus_1'"), "1");
}

static void test_a_start_that_was_waited_for(void **state)
{
    int64_t start = at("2027-01-10T10:00:00Z");
    char more[128];
    (void)state;
    snprintf(more, sizeof more, "starts_at=%lld", (long long)start);
    license("lic_1", start - 5 * DAY, 0, more);
    snprintf(more, sizeof more, "starts_at=%lld", (long long)(start - 20 * DAY)); /* it had begun when it was made */
    license("lic_2", start - 5 * DAY, 0, more);
    run(start - 1);
    assert_string_equal(rows("SELECT type FROM events"), "");
    run(start + 3 * DAY);
    run(start + 4 * DAY);
    assert_string_equal(rows("SELECT license_id || ' ' || type FROM events ORDER BY id"), "lic_1 license.scheduled_started");
}

static void test_what_is_not_active_is_left_alone(void **state)
{
    int64_t end = at("2027-01-10T10:00:00Z");
    (void)state;
    license("lic_1", end - 400 * DAY, end, "status='suspended', auto_renew=1, period='P1M'");
    license("lic_2", end - 400 * DAY, end, "status='inactive'");
    license("lic_3", end - 400 * DAY, end, "status='revoked'");
    license("lic_4", end - 400 * DAY, end, "archived_at=5");
    run(end + DAY);
    assert_string_equal(rows("SELECT type FROM events"), "");
    sqlf("UPDATE licenses SET status='active' WHERE id='lic_1'"); /* reinstated: it catches up */
    run(end + 2 * DAY);
    assert_string_equal(end_of("lic_1"), "2027-02-10T10:00:00Z");
}

static void test_credentials(void **state)
{
    int64_t end = at("2027-06-30T21:59:59Z");
    (void)state;
    sqlf("INSERT INTO credentials (id, customer_id, name, hash, prefix, created_at, expires_at) VALUES ('crd_1','cus_1','ci','h1','pgc_1',%lld,%lld),"
         " ('crd_2','cus_1','ci2','h2','pgc_2',%lld,%lld), ('crd_3','cus_1','ci3','h3','pgc_3',1,0), ('crd_4','cus_1','ci4','h4','pgc_4',1,%lld)",
         (long long)(end - 300 * DAY), (long long)end, (long long)(end - 300 * DAY), (long long)end, (long long)end);
    sqlf("UPDATE credentials SET revoked_at=7 WHERE id='crd_4'");
    for (int64_t t = end - 20 * DAY; t < end + 3 * DAY; t += 7200)
        run(t);
    assert_string_equal(events("crd_1"), "credential.expiring:14 credential.expiring:7 credential.expiring:1 credential.expired");
    assert_string_equal(events("crd_2"), events("crd_1"));
    assert_string_equal(rows("SELECT COUNT(*) FROM events"), "8");
    assert_string_equal(rows("SELECT COUNT(*) FROM credentials WHERE wake_at<>0"), "0");
}

static void test_one_that_cannot_be_done_holds_up_no_other(void **state)
{
    int64_t end = at("2027-01-31T22:59:59Z");
    (void)state;
    license("lic_1", end - 31 * DAY, end, "auto_renew=1, period='nonsense'");
    for (int i = 0; i < 230; i++) {
        char id[32];
        snprintf(id, sizeof id, "lic_x%d", i);
        license(id, end - 31 * DAY, end, "auto_renew=1, period='P1M'");
    }
    run(end);
    assert_string_equal(rows("SELECT COUNT(*) FROM licenses WHERE expires_at=%lld", (long long)at("2027-02-28T22:59:59Z")), "230");
    assert_string_equal(rows("SELECT subject_id || ' ' || attempts || ' ' || vendor_id FROM job_errors"), "lic_1 1 ven_1");
    assert_true(strstr(rows("SELECT error FROM job_errors"), "period") != NULL);
    assert_int_equal(run(end + 5), 0);
    assert_int_equal(run(end + 10), 1);
    assert_string_equal(rows("SELECT attempts FROM job_errors"), "2");
    sqlf("UPDATE licenses SET period='P1M' WHERE id='lic_1'");
    run(end + 11);
    assert_string_equal(end_of("lic_1"), "2027-02-28T22:59:59Z");
    assert_string_equal(rows("SELECT COUNT(*) FROM job_errors"), "0");
}

/* As the thread of jobs.c: batch by batch, each in its own transaction, until nothing of any kind is left to go. */
static void prune_all(int64_t now)
{
    struct error e = {0};
    for (size_t kind = 0, again = 0; again < 2; kind = (kind + 1) % RETENTION_KINDS, again += kind == 0)
        for (;;) {
            struct retention_batch b;
            if (retention_find(admin.cfg, s, kind, now, &b, &e))
                fail_msg("%s: %s", RETENTION_NAMES[kind], e.text);
            assert_true(b.n <= RETENTION_BATCH);
            assert_int_equal(store_begin(s, &e), ERR_OK);
            if (retention_remove(s, &b, &e))
                fail_msg("%s: %s", RETENTION_NAMES[kind], e.text);
            assert_int_equal(store_commit(s, &e), ERR_OK);
            assert_int_equal(b.removed, b.n);
            size_t n = b.n;
            retention_batch_free(&b);
            if (!n)
                break;
        }
}

static void test_prune(void **state)
{
    int64_t now = at("2027-01-31T22:59:59Z");
    (void)state;
    sqlf("INSERT INTO pull_denials VALUES ('cus_1','expired',%lld,3), ('cus_1','expired',%lld,4)", (long long)(now / 3600), (long long)(now / 3600 - 100));
    sqlf("INSERT INTO mails (id, vendor_id, event_id, event_type, recipient, subject, body, status, next_attempt_ms, created_at, finished_at) VALUES"
         " ('m1','ven_1',1,'x','a@b','s','b','sent',0,1,%lld), ('m2','ven_1',2,'x','a@b','s','b','sent',0,1,%lld), ('m3','ven_1',3,'x','a@b','s','b','pending',0,1,0)",
         (long long)(now - 40 * DAY), (long long)(now - DAY));
    prune_all(now);
    assert_string_equal(rows("SELECT id FROM mails ORDER BY id"), "m2 m3");
    assert_string_equal(rows("SELECT count FROM pull_denials"), "3");
}

/* What is over goes, batch by batch; what somebody still waits for, or what keeps something from happening again, stays. */
static void test_prune_kinds(void **state)
{
    int64_t now = at("2027-01-31T22:59:59Z"), old = now - 401 * DAY;
    (void)state;
    sqlf("INSERT INTO vendors (id, slug, name, created_at, updated_at) VALUES ('ven_2','w','W',1,1)");
    for (int i = 1; i <= 450; i++)
        sqlf("INSERT INTO events (id, vendor_id, at_ms, type, actor) VALUES (%d,'ven_%d',%lld,'x','a')", i, i % 2 + 1, (long long)(i <= 440 ? old * 1000 + i : now * 1000));
    sqlf("INSERT INTO meta (key, value) VALUES ('events_handed_out', 430)");
    sqlf("INSERT INTO webhooks (id, vendor_id, url, events, secret_sealed, after_event, created_at, updated_at) VALUES ('whk_1','ven_1','u','[]','s',0,1,1)");
    sqlf("INSERT INTO webhook_deliveries (id, webhook_id, event_id, event_type, status, next_attempt_ms, created_at, finished_at) VALUES"
         " ('dlv_1','whk_1',7,'x','pending',0,1,0), ('dlv_2','whk_1',9,'x','delivered',0,1,%lld), ('dlv_3','whk_1',11,'x','failed',0,1,%lld)",
         (long long)(now - DAY), (long long)(now - 31 * DAY));
    sqlf("INSERT INTO mails (id, vendor_id, event_id, event_type, recipient, subject, body, status, next_attempt_ms, created_at) VALUES"
         " ('m1','ven_1',13,'x','a@b','s','b','pending',0,1)");
    for (int i = 0; i < 230; i++)
        sqlf("INSERT INTO pulls (event_id, at_ms, vendor_id, decision, reason) VALUES ('p%d',%lld,'%s','allow','')", i, (long long)(i < 210 ? old : now) * 1000,
             i % 3 ? "ven_1" : "");
    /* the first license's end came long ago, and is its end still; the second one's was moved; the third is deleted */
    license("lic_1", 1, old - DAY, NULL);
    license("lic_2", 1, now, NULL);
    license("lic_3", 1, old - DAY, "archived_at=1");
    for (int i = 1; i <= 3; i++)
        sqlf("INSERT INTO notices (subject_id, kind, at, days, noted_at) VALUES ('lic_%d','expired',%lld,0,%lld)", i, (long long)(old - DAY), (long long)old);
    sqlf("INSERT INTO license_usage (license_id, from_at, until_at) VALUES ('lic_1',1,%lld), ('lic_1',2,%lld), ('lic_1',3,0)", (long long)(now - 1101 * DAY), (long long)now);
    sqlf("INSERT INTO license_instances (license_id, fingerprint, kind, first_seen_at, last_seen_at, revoked_at) VALUES"
         " ('lic_1','a','pull',1,1,5), ('lic_1','b','pull',1,1,0), ('lic_1','c','validate',1,1,0), ('lic_1','d','validate',1,%lld,0)", (long long)now);
    sqlf("INSERT INTO users (id, vendor_id, is_customers, email, role, invite_hash, invite_expires_at, created_at, updated_at) VALUES"
         " ('usr_1','ven_1',0,'a','owner','h1',%lld,1,1), ('usr_2','ven_1',0,'b','owner','h2',%lld,1,1)", (long long)(now - 31 * DAY), (long long)(now - DAY));
    sqlf("INSERT INTO sessions (id, user_id, hash, address, created_at, used_at, expires_at, revoked_at) VALUES"
         " ('ses_1','usr_1','1','',1,1,2,0), ('ses_2','usr_1','2','',1,1,%lld,0), ('ses_3','usr_1','3','',1,1,%lld,3)", (long long)now, (long long)now);
    sqlf("INSERT INTO idempotency_keys VALUES ('t','old','h',201,'','','',%lld), ('t','new','h',201,'','','',%lld)", (long long)(now - DAY - 1), (long long)(now - DAY + 1));
    sqlf("INSERT INTO usage_reports VALUES ('r1',%lld), ('r2',%lld)", (long long)(now - 8 * DAY), (long long)now);

    prune_all(now);
    assert_string_equal(rows("SELECT group_concat(id) FROM events WHERE id<=435"), "7,9,13,431,432,433,434,435"); /* 11 with its delivery */
    assert_string_equal(rows("SELECT COUNT(*) FROM events WHERE id>430"), "20");
    assert_string_equal(rows("SELECT events_pruned FROM vendors ORDER BY id"), "430 429");
    assert_string_equal(rows("SELECT id FROM webhook_deliveries ORDER BY id"), "dlv_1 dlv_2");
    assert_string_equal(rows("SELECT id FROM mails"), "m1");
    assert_string_equal(rows("SELECT COUNT(*) FROM pulls"), "20");
    assert_string_equal(rows("SELECT subject_id FROM notices"), "lic_1");
    assert_string_equal(rows("SELECT from_at FROM license_usage ORDER BY from_at"), "2 3");
    assert_string_equal(rows("SELECT fingerprint FROM license_instances ORDER BY fingerprint"), "b d");
    assert_string_equal(rows("SELECT id FROM sessions ORDER BY id"), "ses_2");
    assert_string_equal(rows("SELECT id FROM users WHERE invite_hash<>''"), "usr_2");
    assert_string_equal(rows("SELECT key FROM idempotency_keys"), "new");
    assert_string_equal(rows("SELECT id FROM usage_reports"), "r2");

    /* 0 is for ever */
    admin.cfg->retention.events_ms = admin.cfg->retention.pulls_ms = 0;
    prune_all(now + 10000 * DAY);
    assert_string_equal(rows("SELECT COUNT(*) FROM pulls"), "20");
    assert_string_equal(rows("SELECT COUNT(*) FROM events"), "23");
}

static void test_days(void **state)
{
    int64_t days[JOBS_DAYS_MAX];
    (void)state;
    assert_int_equal(jobs_days("1, 60,7", days), 3);
    assert_true(days[0] == 60 && days[1] == 7 && days[2] == 1);
    assert_int_equal(jobs_days("", days), 0);
    /* days that the state machine does not know of */
    struct jobs_terms t = {.clock = {.status = LICENSE_ACTIVE, .expires_at_s = 100 * DAY}};
    const int64_t own[] = {90};
    assert_true(jobs_wake(&t, own, 1, 5 * DAY) == 10 * DAY);
    assert_true(jobs_wake(&t, NULL, 0, 5 * DAY) == 40 * DAY);
}

/* A license of one plan and, at its end, of another one. */
static void change_at_end(const char *id, int64_t end, const char *application_id)
{
    sqlf("INSERT INTO plans (id, vendor_id, slug, name, application_id, type, period, grants, limits, grace_days, trial_days, trial_cap, trial_cap_per_domain,"
         " requires_activation, visible, self_service, auto_renew, manual_validation, created_at, updated_at) VALUES ('pln_%s','ven_1','p-%s','P','%s',"
         "'subscription','P1Y','[{\"selector\":\"exact\",\"value\":\"1.0.0\"}]','{\"pulls\":5}',3,0,1,0,0,0,0,0,0,1,1)",
         id, id, application_id);
    sqlf("INSERT INTO scheduled_changes (id, vendor_id, license_id, plan_id, at, status, actor, created_at)"
         " VALUES ('chg_%s','ven_1','%s','pln_%s',%lld,'pending','token:t',1)",
         id, id, id, (long long)end);
    sqlf("UPDATE licenses SET change_at=%lld WHERE id='%s'", (long long)end, id);
}

static void test_2_20_a_scheduled_change_once_also_after_a_month_down(void **state)
{
    int64_t end = at("2027-01-31T22:59:59Z"), records = 0;
    struct error e = {0};
    (void)state;
    license("lic_1", end - 60 * DAY, end, "auto_renew=1, period='P1M', type='subscription', grace_days=9");
    sqlf("INSERT INTO grants (id, license_id, selector, value, created_at, origin) VALUES ('grt_1','lic_1','all','',1,'plan')");
    change_at_end("lic_1", end, "app_1");
    run(end - 1);
    assert_string_equal(rows("SELECT plan_id || period || change_at FROM licenses"), rows("SELECT 'P1M' || %lld", (long long)end));
    run(end + 40 * DAY);
    run(end + 41 * DAY);
    assert_string_equal(rows("SELECT plan_id || ' ' || period || ' ' || grace_days || ' ' || change_at FROM licenses"), "pln_lic_1 P1Y 3 0");
    assert_string_equal(end_of("lic_1"), "2028-01-31T22:59:59Z"); /* renewed by the other plan's period, from its end */
    assert_string_equal(rows("SELECT selector || value FROM grants"), "exact1.0.0");
    assert_string_equal(rows("SELECT status FROM scheduled_changes"), "applied");
    assert_string_equal(rows("SELECT event FROM license_history WHERE event IN ('license.plan_changed','license.renewed') ORDER BY id"),
                        "license.plan_changed license.renewed");
    assert_string_equal(rows("SELECT actor FROM audit WHERE action='license.change_plan'"), "system:clock");
    assert_int_equal(audit_verify(s, admin.keys, NULL, &records, &e), ERR_OK);
}

static void test_2_20_a_scheduled_change_that_cannot_be_is_said_so(void **state)
{
    int64_t end = at("2027-01-31T22:59:59Z");
    (void)state;
    sqlf("INSERT INTO applications (id, vendor_id, slug, name, created_at, updated_at) VALUES ('app_2','ven_1','other','Other',1,1)");
    license("lic_1", end - 60 * DAY, end, "auto_renew=1, period='P1M', type='subscription'");
    change_at_end("lic_1", end, "app_2");
    run(end);
    assert_string_equal(rows("SELECT status FROM scheduled_changes"), "failed");
    assert_true(strstr(rows("SELECT detail FROM scheduled_changes"), "another application") != NULL);
    assert_string_equal(rows("SELECT event FROM license_history WHERE event LIKE '%%change%%'"), "license.change_failed");
    assert_string_equal(rows("SELECT COUNT(*) FROM audit WHERE action='license.change_plan'"), "0");
    assert_string_equal(rows("SELECT plan_id || period || change_at FROM licenses"), "P1M0"); /* it stays what it is, and goes on */
    assert_string_equal(end_of("lic_1"), "2027-02-28T22:59:59Z");
}

static void test_2_20_the_change_of_a_suspended_license_waits(void **state)
{
    int64_t end = at("2027-01-31T22:59:59Z");
    (void)state;
    license("lic_1", end - 60 * DAY, end, "status='suspended', auto_renew=1, period='P1M', type='subscription'");
    change_at_end("lic_1", end, "app_1");
    run(end + DAY);
    assert_string_equal(rows("SELECT status FROM scheduled_changes"), "pending");
    sqlf("UPDATE licenses SET status='active', wake_at=%lld", (long long)(end + 2 * DAY)); /* as reinstate does */
    run(end + 2 * DAY);
    assert_string_equal(rows("SELECT status FROM scheduled_changes"), "applied");
    assert_string_equal(end_of("lic_1"), "2028-01-31T22:59:59Z");
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_each_reminder_once),
        TEST(test_after_a_month_down_one_reminder_and_one_end),
        TEST(test_0_39_auto_renewal_keeps_its_day),
        TEST(test_renewals_missed_while_down),
        TEST(test_2_7_cancelled_at_the_end_of_the_period),
        TEST(test_0_40_a_renewal_that_waits_for_its_payment),
        TEST(test_0_50_suspended_after_the_grace_of_a_payment),
        TEST(test_a_start_that_was_waited_for),
        TEST(test_what_is_not_active_is_left_alone),
        TEST(test_credentials),
        TEST(test_one_that_cannot_be_done_holds_up_no_other),
        TEST(test_prune),
        TEST(test_prune_kinds),
        TEST(test_2_20_a_scheduled_change_once_also_after_a_month_down),
        TEST(test_2_20_a_scheduled_change_that_cannot_be_is_said_so),
        TEST(test_2_20_the_change_of_a_suspended_license_waits),
        TEST(test_days),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
