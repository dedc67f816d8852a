/* States by the clock, selectors, networks, and the strict reading of an entitlement. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "pullgate/jv.h"
#include "pullgate/license.h"

#define COUNT(a) (sizeof(a) / sizeof *(a))
#define DAY 86400
#define START 1000000000
#define END 1100000000
#define D256 "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

static void effective_status(void **state)
{
    static const struct {
        enum license_status status;
        int64_t starts, expires, grace, now;
        enum license_effective want;
    } rows[] = {
        {LICENSE_ACTIVE, 0, 0, 0, START, LICENSE_EFF_ACTIVE},
        {LICENSE_ACTIVE, START, END, 7, START - 1, LICENSE_EFF_SCHEDULED},
        {LICENSE_ACTIVE, START, END, 7, START, LICENSE_EFF_ACTIVE},
        {LICENSE_ACTIVE, START, END, 7, END - 30 * DAY - 1, LICENSE_EFF_ACTIVE},
        {LICENSE_ACTIVE, START, END, 7, END - 30 * DAY, LICENSE_EFF_EXPIRING},
        {LICENSE_ACTIVE, START, END, 7, END - 1, LICENSE_EFF_EXPIRING},
        {LICENSE_ACTIVE, START, END, 7, END, LICENSE_EFF_GRACE},
        {LICENSE_ACTIVE, START, END, 7, END + 7 * DAY - 1, LICENSE_EFF_GRACE},
        {LICENSE_ACTIVE, START, END, 7, END + 7 * DAY, LICENSE_EFF_EXPIRED},
        {LICENSE_ACTIVE, START, END, 0, END - 1, LICENSE_EFF_EXPIRING},
        {LICENSE_ACTIVE, START, END, 0, END, LICENSE_EFF_EXPIRED},
        {LICENSE_ACTIVE, START, END, -5, END, LICENSE_EFF_EXPIRED},
        {LICENSE_ACTIVE, START, END, INT64_MAX, END, LICENSE_EFF_GRACE},
        {LICENSE_ACTIVE, START, END, INT64_MAX / DAY, END, LICENSE_EFF_GRACE},
        {LICENSE_ACTIVE, START, 0, 7, INT64_MAX, LICENSE_EFF_ACTIVE},
        /* a license shorter than the expiring time is expiring from its start */
        {LICENSE_ACTIVE, START, START + DAY, 0, START, LICENSE_EFF_EXPIRING},
        {LICENSE_ACTIVE, START, START - 10, 0, START - 5, LICENSE_EFF_SCHEDULED},
        {LICENSE_INACTIVE, START, END, 7, START - 1, LICENSE_EFF_INACTIVE},
        {LICENSE_INACTIVE, START, END, 7, END + 8 * DAY, LICENSE_EFF_INACTIVE},
        {LICENSE_SUSPENDED, START, END, 7, END + 8 * DAY, LICENSE_EFF_SUSPENDED},
        {LICENSE_REVOKED, START, END, 7, START, LICENSE_EFF_REVOKED},
        {LICENSE_STATUS_NONE, 0, 0, 0, START, LICENSE_EFF_NONE},
        {(enum license_status)77, 0, 0, 0, START, LICENSE_EFF_NONE},
    };
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct license_terms t = {
            .status = rows[i].status, .starts_at_s = rows[i].starts, .expires_at_s = rows[i].expires, .grace_days = rows[i].grace};
        enum license_effective e = license_effective(&t, rows[i].now);
        if (e != rows[i].want)
            fail_msg("row %zu: %s, not %s", i, license_effective_text(e), license_effective_text(rows[i].want));
        assert_int_equal(license_in_force(e), e == LICENSE_EFF_ACTIVE || e == LICENSE_EFF_EXPIRING || e == LICENSE_EFF_GRACE);
        /* nothing changes before the announced moment, and something does at it (or the moment is a mere bound) */
        int64_t next = license_next_change(&t, rows[i].now);
        assert_true(next > rows[i].now || next == INT64_MAX);
        if (next != INT64_MAX)
            assert_int_equal(license_effective(&t, next - 1), e);
    }
}

static void overdue_payment_is_grace(void **state)
{
    struct license_terms t = {.status = LICENSE_ACTIVE, .payment_failed_at_s = START};
    (void)state;
    assert_int_equal(license_effective(&t, START), LICENSE_EFF_GRACE); /* it never ends by itself */
    t = (struct license_terms){
        .status = LICENSE_ACTIVE, .starts_at_s = START, .expires_at_s = END, .grace_days = 7, .payment_failed_at_s = START};
    assert_int_equal(license_effective(&t, START - 1), LICENSE_EFF_SCHEDULED);
    assert_int_equal(license_effective(&t, START), LICENSE_EFF_GRACE);
    assert_int_equal(license_effective(&t, END - DAY), LICENSE_EFF_GRACE);
    assert_int_equal(license_effective(&t, END + 7 * DAY), LICENSE_EFF_EXPIRED);
    t.status = LICENSE_SUSPENDED;
    assert_int_equal(license_effective(&t, START), LICENSE_EFF_SUSPENDED);
}

static void next_change(void **state)
{
    struct license_terms t = {.status = LICENSE_ACTIVE, .starts_at_s = START, .expires_at_s = END, .grace_days = 7};
    (void)state;
    assert_int_equal(license_next_change(&t, START - 100), START);
    assert_int_equal(license_next_change(&t, START), END - 30 * DAY);
    assert_int_equal(license_next_change(&t, END - 30 * DAY), END);
    assert_int_equal(license_next_change(&t, END), END + 7 * DAY);
    assert_true(license_next_change(&t, END + 7 * DAY) == INT64_MAX);
    t.status = LICENSE_SUSPENDED;
    assert_true(license_next_change(&t, START) == INT64_MAX);
    t = (struct license_terms){.status = LICENSE_ACTIVE};
    assert_true(license_next_change(&t, START) == INT64_MAX);
    t = (struct license_terms){.status = LICENSE_ACTIVE, .expires_at_s = INT64_MIN + 5}; /* no such time: nothing wraps */
    assert_true(license_next_change(&t, START) == INT64_MAX);
    assert_int_equal(license_effective(&t, INT64_MIN), LICENSE_EFF_EXPIRING);
}

static void texts(void **state)
{
    (void)state;
    for (int s = LICENSE_INACTIVE; s <= LICENSE_REVOKED; s++) {
        enum license_status back = LICENSE_STATUS_NONE;
        assert_true(license_status_parse(str_c(license_status_text((enum license_status)s)), &back));
        assert_int_equal(back, s);
    }
    for (int k = SELECTOR_EXACT; k <= SELECTOR_ALL; k++) {
        enum selector_kind back = SELECTOR_NONE;
        assert_true(selector_kind_parse(str_c(selector_kind_text((enum selector_kind)k)), &back));
        assert_int_equal(back, k);
    }
    enum license_status s;
    enum selector_kind k;
    assert_false(license_status_parse(S("none"), &s));
    assert_false(license_status_parse(S("Active"), &s));
    assert_false(license_status_parse(S("expired"), &s)); /* derived, never stored */
    assert_false(selector_kind_parse(S("none"), &k));
    assert_false(selector_kind_parse(S(""), &k));
    assert_string_equal(license_status_text((enum license_status)99), "none");
    assert_string_equal(license_effective_text((enum license_effective)99), "none");
    assert_string_equal(license_effective_text(LICENSE_EFF_GRACE), "grace");
    assert_string_equal(selector_kind_text((enum selector_kind)99), "none");
}

static void selectors(void **state)
{
    static const struct {
        enum selector_kind kind;
        const char *value;
        bool ok;
    } rows[] = {
        {SELECTOR_EXACT, "1.4.2", true},
        {SELECTOR_EXACT, "1.4.2+b", true},
        {SELECTOR_EXACT, "latest", true},
        {SELECTOR_EXACT, "", false},
        {SELECTOR_EXACT, "a b", false},
        {SELECTOR_EXACT, "a/b", false},
        {SELECTOR_EXACT, "azAZ09._-+", true},
        {SELECTOR_EXACT, "1:", false},
        {SELECTOR_EXACT, "1@", false},
        {SELECTOR_EXACT, "1[", false},
        {SELECTOR_EXACT, "1`", false},
        {SELECTOR_EXACT, "1{", false},
        {SELECTOR_EXACT, "1,", false},
        {SELECTOR_RANGE, "^1.4", true},
        {SELECTOR_RANGE, "", false},
        {SELECTOR_RANGE, "^^1", false},
        {SELECTOR_GLOB, "2024.*-lts", true},
        {SELECTOR_GLOB, "[", false},
        {SELECTOR_CHANNEL, "stable", true},
        {SELECTOR_CHANNEL, "", false},
        {SELECTOR_CHANNEL, "a b", false},
        {SELECTOR_CHANNEL, "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", false},
        {SELECTOR_DIGEST, D256, true},
        {SELECTOR_DIGEST, "sha256:1", false},
        {SELECTOR_ALL, "", true},
        {SELECTOR_ALL, "*", true},
        {SELECTOR_ALL, "x", false},
        {SELECTOR_NONE, "", false},
        {(enum selector_kind)99, "", false},
    };
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct error error = {0};
        enum err e = selector_check(rows[i].kind, str_c(rows[i].value), &error);
        if ((e == ERR_OK) != rows[i].ok)
            fail_msg("%s \"%s\"", selector_kind_text(rows[i].kind), rows[i].value);
        if (e) {
            assert_int_equal(e, ERR_INVALID);
            assert_true(strcmp(error.field, "value") == 0 || strcmp(error.field, "selector") == 0);
        }
    }
}

static void networks(void **state)
{
    static const struct {
        const char *cidr, *addr;
        bool in;
    } rows[] = {
        {"10.0.0.0/8", "10.1.2.3", true},
        {"10.0.0.0/8", "11.0.0.0", false},
        {"10.1.2.3/8", "10.9.9.9", true},
        {"10.1.2.3", "10.1.2.3", true},
        {"10.1.2.3", "10.1.2.4", false},
        {"10.1.2.0/25", "10.1.2.127", true},
        {"10.1.2.0/25", "10.1.2.128", false},
        {"0.0.0.0/0", "1.2.3.4", true},
        {"0.0.0.0/0", "2001:db8::1", false},
        {"::/0", "2001:db8::1", true},
        {"::/0", "1.2.3.4", true},
        {"2001:db8::/32", "2001:db8:ffff::1", true},
        {"2001:db8::/33", "2001:db8:ffff::1", false},
        {"2001:db8::1/128", "2001:db8::1", true},
        {"::ffff:10.0.0.0/104", "10.1.2.3", true},
        {"10.0.0.0/31", "10.0.0.1", true},
    };
    static const char *const bad[] = {"",          "10.0.0.0/33", "10.0.0.0/",     "10.0.0.0/-1", "10.0.0.0/08", "10.0.0/8", "::/129", "x/8", "10.0.0.0/8/8",
                                      "010.0.0.1", "fe80::1%eth0", "10.0.0.0/8 ", " 10.0.0.0/8", "/8",          "10.0.0.0/+8", "10.0.0.0/0000",
                                      "1111:2222:3333:4444:5555:6666:7777:8888:9999:aaaa:bbbb"};
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct cidr c;
        uint8_t a[16];
        assert_int_equal(cidr_parse(str_c(rows[i].cidr), &c, NULL), ERR_OK);
        assert_true(addr_parse(str_c(rows[i].addr), a));
        if (cidr_contains(&c, a) != rows[i].in)
            fail_msg("%s in %s", rows[i].addr, rows[i].cidr);
    }
    for (size_t i = 0; i < COUNT(bad); i++) {
        struct cidr c;
        if (cidr_parse(str_c(bad[i]), &c, NULL) != ERR_INVALID)
            fail_msg("%s", bad[i]);
    }
    uint8_t a[16];
    assert_false(addr_parse((struct str){"1.2.3.4\0", 8}, a));
    assert_false(addr_parse(S("1.2.3"), a));
    struct cidr wild = {.bits = 200};
    assert_false(cidr_contains(&wild, wild.addr));
}

/* ---- the entitlement ------------------------------------------------------------------------ */

#define PIN "{\"repository\":\"shop/api\",\"tag\":\"1.2.0\",\"digest\":\"" D256 "\"}"
#define GRANT                                                                                                                              \
    "{\"id\":\"gra_1\",\"selector\":\"range\",\"value\":\"^1.2\",\"include_prerelease\":false,\"not_before\":5,\"not_after\":9,"           \
    "\"granted_at\":3,\"on_move\":\"pin\",\"repositories\":[\"shop/api\"],\"pins\":[" PIN "]}"
#define LICENSE                                                                                                                            \
    "{\"id\":\"lic_1\",\"name\":\"Acme Prod\",\"application_id\":\"app_1\",\"application_slug\":\"shop\",\"status\":\"active\","           \
    "\"status_reason\":\"why\",\"starts_at\":1,\"expires_at\":2,\"grace_days\":7,\"updates_until\":4,\"on_expiry\":\"keep_released\","     \
    "\"allowed_cidrs\":[\"10.0.0.0/8\",\"::1\"],\"repositories\":[\"shop/api\",\"shop/web\"],\"upstream_credential_id\":\"ucr_1\","        \
    "\"quota_exceeded\":true,\"grants\":[" GRANT "]}"
#define DOC                                                                                                                                \
    "{\"customer_id\":\"cus_1\",\"customer_slug\":\"acme\",\"vendor_id\":\"ven_1\",\"disabled\":false,\"renew_url\":\"https://r\","        \
    "\"support_contact\":\"help@v\",\"licenses\":[" LICENSE "]}"

static enum err parse(struct str text, struct entitlement **ret, struct error *error)
{
    struct jv *doc;

    if (jv_parse(text, &JV_LIMITS_TRUSTED, &doc, error))
        return ERR_INTERNAL;
    enum err e = entitlement_parse(doc, ret, error);
    jv_free(doc);
    return e;
}

static void installations_are_read(void **state)
{
    struct entitlement *e = NULL;
    struct error error = {0};
    char text[LICENSE_INSTANCE_TEXT_MAX];
    uint8_t v4[16], v6[16], v6_beside[16], v6_other[16];
    (void)state;
    struct strbuf doc = {0};
    struct str all = S(DOC), quota = S("\"quota_exceeded\":true,"), before, after;
    char *at = strstr(DOC, "\"quota_exceeded\":true,");
    before = (struct str){all.p, (size_t)(at - all.p)};
    after = str_skip(all, before.n + quota.n);
    sb_add(&doc, before);
    sb_addc(&doc, "\"payment_failed_at\":5,\"quota_exceeded\":false,\"quota_until\":77,"
                  "\"instances\":[\"0000000000000010\",\"ffffffffffffffff\",\"0000000000000020\",\"0000000000000010\"],");
    sb_add(&doc, after);
    if (parse(sb_str(&doc), &e, &error))
        fail_msg("%s: %s", error.field, error.text);
    const struct license *l = &e->licenses[0];
    assert_true(l->instances_full);
    assert_int_equal(l->n_instances, 4);
    assert_true(l->instances[0] == 16 && l->instances[1] == 16 && l->instances[2] == 32 && l->instances[3] == UINT64_MAX); /* sorted */
    assert_int_equal(l->quota_until_s, 77);
    assert_int_equal(l->terms.payment_failed_at_s, 5);
    entitlement_unref(&e);
    sb_reset(&doc);
    sb_add(&doc, before);
    sb_addc(&doc, "\"quota_exceeded\":false,\"instances\":[],"); /* all places are taken by nobody: an allowance of none */
    sb_add(&doc, after);
    if (parse(sb_str(&doc), &e, &error))
        fail_msg("%s: %s", error.field, error.text);
    assert_true(e->licenses[0].instances_full && e->licenses[0].n_instances == 0);
    entitlement_unref(&e);
    sb_free(&doc);

    assert_true(addr_parse(S("10.1.2.3"), v4) && addr_parse(S("2001:db8::1"), v6) && addr_parse(S("2001:db8::2"), v6_beside) &&
                addr_parse(S("2001:db8:0:1::1"), v6_other));
    uint64_t one = license_instance(S("crd_1"), v4);
    assert_true(one != 0 && one == license_instance(S("crd_1"), v4));
    assert_true(one != license_instance(S("crd_2"), v4));
    assert_true(license_instance(S("crd_1"), v6) == license_instance(S("crd_1"), v6_beside)); /* one /64 */
    assert_true(license_instance(S("crd_1"), v6) != license_instance(S("crd_1"), v6_other));
    struct strbuf print = {0};
    addr_print(v4, &print);
    sb_add_char(&print, ' ');
    addr_print(v6, &print);
    assert_string_equal(print.p, "10.1.2.3 2001:db8::1");
    sb_free(&print);
    assert_string_equal(license_instance_text(UINT64_C(0x0123456789abcdef), text), "0123456789abcdef");
}

static void entitlement_is_read(void **state)
{
    struct entitlement *e = NULL;
    struct error error = {0};
    (void)state;
    if (parse(S(DOC), &e, &error))
        fail_msg("%s: %s", error.field, error.text);
    assert_true(str_eq_c(e->customer_id, "cus_1"));
    assert_true(str_eq_c(e->customer_slug, "acme"));
    assert_true(str_eq_c(e->vendor_id, "ven_1"));
    assert_true(str_eq_c(e->renew_url, "https://r"));
    assert_true(str_eq_c(e->support_contact, "help@v"));
    assert_false(e->customer_disabled);
    assert_int_equal(e->n_licenses, 1);
    const struct license *l = &e->licenses[0];
    assert_true(str_eq_c(l->id, "lic_1"));
    assert_true(str_eq_c(l->name, "Acme Prod"));
    assert_true(str_eq_c(l->application_id, "app_1"));
    assert_true(str_eq_c(l->application_slug, "shop"));
    assert_int_equal(l->terms.status, LICENSE_ACTIVE);
    assert_int_equal(l->terms.starts_at_s, 1);
    assert_int_equal(l->terms.expires_at_s, 2);
    assert_int_equal(l->terms.grace_days, 7);
    assert_int_equal(l->updates_until_s, 4);
    assert_int_equal(l->on_expiry, LICENSE_ON_EXPIRY_KEEP_RELEASED);
    assert_true(str_eq_c(l->status_reason, "why"));
    assert_int_equal(l->n_allowed_cidrs, 2);
    assert_int_equal(l->allowed_cidrs[0].bits, 104);
    assert_int_equal(l->n_repositories, 2);
    assert_true(str_eq_c(l->repositories[1], "shop/web"));
    assert_true(str_eq_c(l->upstream_credential_id, "ucr_1"));
    assert_true(l->quota_exceeded);
    assert_int_equal(l->n_grants, 1);
    const struct grant *g = &l->grants[0];
    assert_true(str_eq_c(g->id, "gra_1"));
    assert_int_equal(g->selector, SELECTOR_RANGE);
    assert_true(str_eq_c(g->value, "^1.2"));
    assert_non_null(g->range);
    assert_int_equal(g->not_before_s, 5);
    assert_int_equal(g->not_after_s, 9);
    assert_int_equal(g->granted_at_s, 3);
    assert_int_equal(g->on_move, GRANT_PIN);
    assert_int_equal(g->n_repositories, 1);
    assert_int_equal(g->n_pins, 1);
    assert_true(str_eq_c(g->pins[0].tag, "1.2.0"));
    assert_true(digest_is_set(&g->pins[0].digest));
    struct entitlement *second = entitlement_ref(e);
    entitlement_unref(&e);
    assert_null(e);
    assert_true(str_eq_c(second->licenses[0].name, "Acme Prod"));
    entitlement_unref(&second);
    entitlement_unref(&second); /* NULL is fine */
}

/* One change in the good document each: it must be refused as a whole. */
static void entitlement_is_strict(void **state)
{
    static const struct {
        const char *from, *to;
    } rows[] = {
        {"\"disabled\":false", "\"disabled\":0"},
        {"\"disabled\":false", "\"disabled\":null"},
        {"\"disabled\":false,", ""},
        {"\"disabled\":false", "\"disabledd\":false"},
        {"\"disabled\":false", "\"disabled\":false,\"more\":1"},
        {"\"customer_id\":\"cus_1\"", "\"customer_id\":\"\""},
        {"\"vendor_id\":\"ven_1\"", "\"vendor_id\":\"\""},
        {"\"renew_url\":\"https://r\",", ""},
        {"\"support_contact\":\"help@v\"", "\"support_contact\":null"},
        {"\"licenses\":[", "\"licenses\":[1,"},
        {"\"licenses\":[", "\"licenses\":[null,"},
        {"\"id\":\"lic_1\",", ""},
        {"\"id\":\"lic_1\"", "\"id\":\"\""},
        {"\"name\":\"Acme Prod\"", "\"name\":7"},
        {"\"status\":\"active\"", "\"status\":\"Active\""},
        {"\"status\":\"active\"", "\"status\":\"expired\""},
        {"\"status\":\"active\"", "\"status\":\"none\""},
        {"\"status\":\"active\"", "\"status\":\"\""},
        {"\"status\":\"active\",", ""},
        {"\"starts_at\":1,", ""},
        {"\"starts_at\":1", "\"starts_at\":-1"},
        {"\"starts_at\":1", "\"starts_at\":1.5"},
        {"\"expires_at\":2,", ""},
        {"\"expires_at\":2", "\"expires_at\":\"2\""},
        {"\"expires_at\":2", "\"expires_at\":null"},
        {"\"grace_days\":7", "\"grace_days\":-1"},
        {"\"updates_until\":4,", ""},
        {"\"on_expiry\":\"keep_released\"", "\"on_expiry\":\"keep\""},
        {"\"on_expiry\":\"keep_released\",", ""},
        {"\"allowed_cidrs\":[", "\"allowed_cidrs\":[\"nonsense\","},
        {"\"allowed_cidrs\":[", "\"allowed_cidrs\":[7,"},
        {"\"allowed_cidrs\":[\"10.0.0.0/8\",\"::1\"]", "\"allowed_cidrs\":null"},
        {"\"allowed_cidrs\":[\"10.0.0.0/8\",\"::1\"],", ""},
        {"\"repositories\":[\"shop/api\",\"shop/web\"]", "\"repositories\":[\"\"]"},
        {"\"repositories\":[\"shop/api\",\"shop/web\"],", ""},
        {"\"quota_exceeded\":true,", ""},
        {"\"quota_exceeded\":true,", "\"quota_exceeded\":true,\"quota_until\":-1,"},
        {"\"quota_exceeded\":true,", "\"quota_exceeded\":true,\"quota_until\":\"1\","},
        {"\"quota_exceeded\":true,", "\"quota_exceeded\":true,\"instances\":null,"},
        {"\"quota_exceeded\":true,", "\"quota_exceeded\":true,\"instances\":[\"0123\"],"},
        {"\"quota_exceeded\":true,", "\"quota_exceeded\":true,\"instances\":[7],"},
        {"\"disabled\":false,", "\"disabled\":false,\"requests_per_second\":-1,"},
        {"\"grants\":[", "\"grants\":[{},"},
        {"\"grants\":[", "\"grants\":[[],"},
        {"\"id\":\"gra_1\",", ""},
        {"\"selector\":\"range\"", "\"selector\":\"ranges\""},
        {"\"selector\":\"range\"", "\"selector\":\"none\""},
        {"\"selector\":\"range\"", "\"selector\":\"digest\""},
        {"\"selector\":\"range\"", "\"selector\":\"exact\""},
        {"\"selector\":\"range\"", "\"selector\":\"all\""},
        {"\"value\":\"^1.2\"", "\"value\":\"^^1\""},
        {"\"value\":\"^1.2\"", "\"value\":\"\""},
        {"\"include_prerelease\":false,", ""},
        {"\"include_prerelease\":false", "\"include_prerelease\":\"false\""},
        {"\"not_before\":5,", ""},
        {"\"not_after\":9,", ""},
        {"\"not_after\":9", "\"not_after\":-9"},
        {"\"granted_at\":3,", ""},
        {"\"on_move\":\"pin\"", "\"on_move\":\"\""},
        {"\"on_move\":\"pin\",", ""},
        {"\"repositories\":[\"shop/api\"],", ""},
        {"\"pins\":[", "\"excluded\":[7],\"pins\":["},
        {"\"pins\":[", "\"excluded\":[\"\"],\"pins\":["},
        {"\"pins\":[", "\"excluded\":\"1.2.0\",\"pins\":["},
        {"\"pins\":[", "\"pins\":[7,"},
        {"\"pins\":[", "\"pins\":[{},"},
        {"\"tag\":\"1.2.0\"", "\"tag\":\"\""},
        {"\"digest\":\"sha256:0", "\"digest\":\"sha256:"},
        {"\"digest\":\"sha256:", "\"more\":1,\"digest\":\"sha256:"},
    };
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct strbuf b = {0};
        struct entitlement *e = NULL;
        struct error error = {0};
        const char *at = strstr(DOC, rows[i].from);
        assert_non_null(at);
        sb_add(&b, (struct str){DOC, (size_t)(at - DOC)});
        sb_addc(&b, rows[i].to);
        sb_addc(&b, at + strlen(rows[i].from));
        enum err err = parse(sb_str(&b), &e, &error);
        if (err != ERR_INVALID)
            fail_msg("%s -> %s: %s %s", rows[i].from, rows[i].to, err_text(err), error.text);
        assert_null(e);
        assert_int_equal(error.code, ERR_INVALID);
        sb_free(&b);
    }
    struct entitlement *e = NULL;
    assert_int_equal(parse(S("[]"), &e, NULL), ERR_INVALID);
    assert_int_equal(entitlement_parse(NULL, &e, NULL), ERR_INVALID);
}

static void entitlement_of_every_selector(void **state)
{
    static const struct {
        const char *selector, *value;
    } rows[] = {{"exact", "1.2.3"}, {"range", "1.x"}, {"glob", "1.*"}, {"channel", "stable"}, {"digest", D256}, {"all", ""}};
    struct strbuf b = {0};
    struct entitlement *e;
    struct error error = {0};
    (void)state;
    sb_addc(&b, "{\"customer_id\":\"cus_1\",\"customer_slug\":\"\",\"vendor_id\":\"ven_1\",\"disabled\":true,\"renew_url\":\"\",\"support_contact\":\"\",\"licenses\":[");
    for (int l = 0; l < 40; l++) {
        sb_addf(&b, "%s{\"id\":\"lic_%d\",\"name\":\"\",\"application_id\":\"app\",\"application_slug\":\"\",\"status\":\"revoked\",\"status_reason\":\"\",\"starts_at\":0,"
                    "\"expires_at\":0,\"grace_days\":0,\"updates_until\":0,\"on_expiry\":\"block\",\"allowed_cidrs\":[],\"repositories\":[],"
                    "\"upstream_credential_id\":\"\",\"quota_exceeded\":false,\"grants\":[", l ? "," : "", l);
        for (int g = 0; g < 60; g++)
            sb_addf(&b, "%s{\"id\":\"g%d\",\"selector\":\"%s\",\"value\":\"%s\",\"include_prerelease\":true,\"not_before\":0,\"not_after\":0,\"granted_at\":0,"
                        "\"on_move\":\"follow\",\"repositories\":[],\"pins\":[]}", g ? "," : "", g, rows[g % 6].selector, rows[g % 6].value);
        sb_addc(&b, "]}");
    }
    sb_addc(&b, "]}");
    if (parse(sb_str(&b), &e, &error))
        fail_msg("%s: %s", error.field, error.text);
    assert_true(e->customer_disabled);
    assert_int_equal(e->n_licenses, 40);
    for (size_t l = 0; l < 40; l++)
        for (size_t g = 0; g < 60; g++) {
            const struct grant *grant = &e->licenses[l].grants[g];
            assert_string_equal(selector_kind_text(grant->selector), rows[g % 6].selector);
            assert_true(str_eq_c(grant->value, rows[g % 6].value));
            assert_int_equal(grant->range != NULL, grant->selector == SELECTOR_RANGE);
            assert_int_equal(digest_is_set(&grant->digest), grant->selector == SELECTOR_DIGEST);
        }
    entitlement_unref(&e);
    sb_free(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(effective_status),   cmocka_unit_test(overdue_payment_is_grace), cmocka_unit_test(next_change),         cmocka_unit_test(texts),
        cmocka_unit_test(selectors),          cmocka_unit_test(networks),            cmocka_unit_test(installations_are_read), cmocka_unit_test(entitlement_is_read),
        cmocka_unit_test(entitlement_is_strict), cmocka_unit_test(entitlement_of_every_selector),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
