/* Mails and webhooks, as far as they need no network: templates, the form of a message, signatures, rests, and that an event is handed out
 * once. All of the admin daemon but its main() is linked in (CMakeLists.txt). */
#include <ftw.h>
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
#include "delivery.h"
#include "eventlog.h"
#include "mail.h"
#include "pullgate/mem.h"
#include "schema.h"

/* ---- templates ------------------------------------------------------------------------------------------------------------ */

static void test_templates(void **state)
{
    struct mail_values v = {{0}};
    struct strbuf b = {0};
    struct error e = {0};
    (void)state;
    for (const struct mail_template *t = MAIL_DEFAULTS; t->event; t++) {
        assert_int_equal(mail_template_check(str_c(t->subject), &e), ERR_OK);
        assert_int_equal(mail_template_check(str_c(t->body), &e), ERR_OK);
        assert_ptr_equal(mail_default(str_c(t->event)), t);
    }
    assert_null(mail_default(S("license.nothing")));
    assert_int_equal(mail_template_check(S("{{license.key}}"), &e), ERR_INVALID);
    assert_non_null(strstr(e.text, "license.key"));
    assert_int_equal(mail_template_check(S("a {{ b"), &e), ERR_INVALID);
    assert_int_equal(mail_template_check(S("a }} {b} {{ license.name }}"), &e), ERR_OK);

    mail_values_sample(&v, S("license.expired"));
    for (int i = 0; i < MAIL_PLACEHOLDERS; i++)
        assert_true(MAIL_PLACEHOLDER_NAMES[i] && v.value[i] && v.value[i][0]);
    mail_render(S("{{event.type}}: {{ license.name }}{{customer.slug}}"), &v, false, &b);
    assert_string_equal(b.p, "license.expired: Productionglobex");
    /* what a value holds is text: no placeholder, no line of a header */
    mem_free(v.value[0]);
    v.value[0] = mem_strdup("x\r\nBcc: {{license.id}}\x7f");
    sb_reset(&b);
    mail_render(S("Hi {{customer.name}}\nyou"), &v, false, &b);
    assert_string_equal(b.p, "Hi x  Bcc: {{license.id}}  you");
    sb_reset(&b);
    mail_render(S("Hi {{customer.name}}\nyou"), &v, true, &b);
    assert_string_equal(b.p, "Hi x  Bcc: {{license.id}} \nyou");
    mail_values_free(&v);
    sb_free(&b);
}

/* ---- messages ------------------------------------------------------------------------------------------------------------- */

static void test_addresses(void **state)
{
    static const char *const good[] = {"a@b", "ops+x@mail.globex.example"}, *const bad[] = {
        "", "a", "@b", "a@", "a@b@c", "a b@c", "a@b\r\nRCPT TO:<x@y>", "<a@b>", "a,b@c", "\"a\"@b", "-a@b", "\xc3\xa4@b", "a@b;c", "a:b@c",
    };
    struct str name, address;
    (void)state;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        assert_true(mail_address_valid(str_c(good[i])));
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_false(mail_address_valid(str_c(bad[i])));
    assert_true(mail_mailbox(S("Acme \"x\" <a@b>"), &name, &address));
    assert_true(str_eq_c(name, "Acme \"x\"") && str_eq_c(address, "a@b"));
    assert_false(mail_mailbox(S("Acme <a@b"), &name, &address));
}

static void test_message(void **state)
{
    struct strbuf b = {0};
    (void)state;
    mail_compose(S("Acme \"x\" <licenses@acme.example>"), S("ops@globex.example"), S("Your license"), S("Hello\nyou\n"), "mai_1", 784111777, &b);
    assert_string_equal(b.p, "From: \"Acme \\\"x\\\"\" <licenses@acme.example>\r\nTo: <ops@globex.example>\r\nSubject: Your license\r\n"
                             "Date: Sun, 06 Nov 1994 08:49:37 +0000\r\nMessage-ID: <mai_1@acme.example>\r\nAuto-Submitted: auto-generated\r\n"
                             "MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: base64\r\n\r\n"
                             "SGVsbG8NCnlvdQ0K\r\n");
    sb_reset(&b);
    /* a header ends where we end it; more than ASCII is encoded, cut between characters, no line longer than 78 */
    struct strbuf subject = {0};
    for (int i = 0; i < 60; i++)
        sb_addc(&subject, "\xe2\x82\xac");
    sb_addc(&subject, "\r\nBcc: x@y");
    mail_compose(S("licenses@acme.example"), S("ops@globex.example"), sb_str(&subject), S("."), "mai_1", 784111777, &b);
    assert_null(strstr(b.p, "\r\nBcc"));
    assert_non_null(strstr(b.p, "Subject: =?UTF-8?B?4oKs"));
    struct str rest = sb_str(&b), line;
    while (str_next(&rest, '\n', &line)) {
        assert_true(line.n <= 79);
        for (size_t i = 0; i < line.n; i++)
            assert_true((unsigned char)line.p[i] < 0x80);
    }
    assert_true(str_ends(sb_str(&b), S("\r\n\r\nLg==\r\n"))); /* a dot alone in a line is none any more */
    sb_free(&subject);
    sb_free(&b);
}

/* ---- webhooks ------------------------------------------------------------------------------------------------------------- */

static void test_signature(void **state)
{
    char ret[DELIVERY_SIGNATURE_MAX];
    (void)state;
    /* printf '1700000000.{"id":1}' | openssl dgst -sha256 -hmac secret */
    delivery_sign(S("secret"), 1700000000, S("{\"id\":1}"), ret);
    assert_string_equal(ret, "sha256=3dd1b9aef568d75f6790a84bd2e5dfa1f44409eef3cbdbd3f10b837376100c11");
}

static void test_rests(void **state)
{
    (void)state;
    for (int i = 0; i < 200; i++) {
        int64_t first = delivery_backoff_ms(10000, 1), third = delivery_backoff_ms(10000, 3), last = delivery_backoff_ms(10000, 1000);
        assert_true(first >= 8000 && first <= 12000 && third >= 32000 && third <= 48000);
        assert_true(last >= 6 * 3600000 * 4 / 5 && last <= INT64_C(6) * 3600000 * 6 / 5);
    }
    assert_true(delivery_backoff_ms(0, 1) == 1);
}

static void test_patterns(void **state)
{
    (void)state;
    assert_true(eventlog_matches(S("*"), S("pull.denied")) && eventlog_matches(S("license.*"), S("license.created")));
    assert_true(eventlog_matches(S("license.created"), S("license.created")));
    assert_false(eventlog_matches(S("license.*"), S("licensed")) || eventlog_matches(S("license"), S("license.created")) || eventlog_matches(S(""), S("a")));
    assert_true(eventlog_pattern_valid(S("*")) && eventlog_pattern_valid(S("license.*")) && eventlog_pattern_valid(S("a.b_c")));
    static const char *const bad[] = {"", ".*", "a..b", ".a", "a.", "A", "a b", "a*", "*.a", "a.*.b"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_false(eventlog_pattern_valid(str_c(bad[i])));
}

static void test_private_hosts(void **state)
{
    char list[] = "hooks.internal, 10.0.0.7", all[] = "all", none[] = "";
    struct config cfg = {.admin.webhook_allow_private = list};
    (void)state;
    assert_true(delivery_host_private(&cfg, S("HOOKS.internal")) && delivery_host_private(&cfg, S("10.0.0.7")));
    assert_false(delivery_host_private(&cfg, S("internal")) || delivery_host_private(&cfg, S("")));
    cfg.admin.webhook_allow_private = none;
    assert_false(delivery_host_private(&cfg, S("hooks.internal")) || delivery_host_private(&cfg, S("")));
    cfg.admin.webhook_allow_private = all;
    assert_true(delivery_host_private(&cfg, S("anything")));
}

/* ---- handing out ------------------------------------------------------------------------------------------------------------ */

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *ftw)
{
    (void)st, (void)kind, (void)ftw;
    return remove(path);
}

static int64_t count(struct store *s, const char *sql)
{
    struct store_stmt *st = NULL;
    bool row = false;
    assert_int_equal(store_query(s, &st, NULL, sql, ""), ERR_OK);
    assert_int_equal(store_step(st, &row, NULL), ERR_OK);
    int64_t n = store_col_int(st, 0);
    store_done(&st);
    return n;
}

static void must(struct store *s, const char *sql)
{
    struct error e = {0};
    if (store_exec(s, NULL, &e, sql, ""))
        fail_msg("%s: %s", sql, e.text);
}

static void test_an_event_is_handed_out_once(void **state)
{
    char dir[] = "/tmp/pullgate-mail-XXXXXX", url[64], mail_url[] = "smtp://127.0.0.1:1", from[] = "licenses@acme.example";
    struct config cfg = {.mail = {.url = mail_url, .from = from}};
    struct admin a = {.cfg = &cfg};
    struct store *s;
    struct error e = {0};
    unsigned n = 0;
    (void)state;
    assert_non_null(mkdtemp(dir));
    snprintf(url, sizeof url, "sqlite://%s/db", dir);
    assert_int_equal(store_open(url, false, &s, &e), ERR_OK);
    assert_int_equal(store_migrate(s, SCHEMA_MIGRATIONS, SCHEMA_MIGRATIONS_N, &e), ERR_OK);
    must(s, "INSERT INTO vendors (id, slug, name, created_at, updated_at) VALUES ('ven_1','v','V',1,1), ('ven_2','w','W',1,1)");
    must(s, "INSERT INTO customers (id, vendor_id, slug, name, email, created_at, updated_at) VALUES ('cus_1','ven_1','c','C','c@c.example',1,1),"
            " ('cus_2','ven_1','d','D','',1,1), ('cus_3','ven_1','e','E','no address',1,1)");
    must(s, "INSERT INTO webhooks (id, vendor_id, url, events, secret_sealed, after_event, created_at, updated_at) VALUES"
            " ('whk_1','ven_1','https://x/','[\"license.*\"]','',0,1,1), ('whk_2','ven_1','https://x/','[\"*\"]','',200,1,1),"
            " ('whk_3','ven_2','https://x/','[\"*\"]','',0,1,1), ('whk_4','ven_1','https://x/','[\"order.paid\"]','',0,1,1)");
    for (int i = 0; i < 250; i++) {
        const struct event_record event = {.vendor_id = "ven_1", .type = i % 2 ? "license.renewed" : "license.updated", .actor = "x",
                                           .customer_id = i < 10 ? "cus_1" : i < 20 ? "cus_2" : i < 30 ? "cus_3" : NULL};
        assert_int_equal(eventlog_put(s, &event, &e), ERR_OK);
    }
    for (;;) { /* each transaction is lost once, as by a crash, before it is kept */
        assert_int_equal(store_begin(s, &e), ERR_OK);
        assert_int_equal(delivery_hand_out(&a, s, 1000, &n, &e), ERR_OK);
        store_rollback(s);
        assert_int_equal(store_begin(s, &e), ERR_OK);
        assert_int_equal(delivery_hand_out(&a, s, 1000, &n, &e), ERR_OK);
        assert_int_equal(store_commit(s, &e), ERR_OK);
        if (!n)
            break;
    }
    assert_int_equal(count(s, "SELECT COUNT(*) FROM webhook_deliveries WHERE webhook_id='whk_1'"), 250);
    assert_int_equal(count(s, "SELECT COUNT(*) FROM webhook_deliveries WHERE webhook_id='whk_2'"), 50);
    assert_int_equal(count(s, "SELECT COUNT(*) FROM webhook_deliveries"), 300);
    assert_int_equal(count(s, "SELECT COUNT(*) FROM mails WHERE status='pending' AND recipient='c@c.example' AND event_type='license.renewed'"), 5);
    assert_int_equal(count(s, "SELECT COUNT(*) FROM mails WHERE status='failed' AND recipient='no address'"), 5);
    assert_int_equal(count(s, "SELECT COUNT(*) FROM mails"), 10);
    store_close(&s);
    assert_int_equal(nftw(dir, remove_one, 8, FTW_DEPTH | FTW_PHYS), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_templates), cmocka_unit_test(test_addresses),     cmocka_unit_test(test_message),
        cmocka_unit_test(test_signature), cmocka_unit_test(test_rests),         cmocka_unit_test(test_patterns),
        cmocka_unit_test(test_private_hosts), cmocka_unit_test(test_an_event_is_handed_out_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
