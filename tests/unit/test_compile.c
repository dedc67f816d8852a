/* Facts out of rows, and tags into rows: a store in a scratch directory, filled by plain SQL. The admin's files are compiled in, for they
 * belong to no library. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "compile.c"
#include "outbox.c"
#include "schema.c"
#include "tags.c"

#include "pullgate/projection.h"

#include "directory.h"

#define D1 "sha256:1111111111111111111111111111111111111111111111111111111111111111"
#define D2 "sha256:2222222222222222222222222222222222222222222222222222222222222222"
#define D3 "sha256:3333333333333333333333333333333333333333333333333333333333333333"

static char dir[64];
static struct store *s;

static void sql(const char *text)
{
    struct error err = {0};
    if (store_exec(s, NULL, &err, text, ""))
        fail_msg("%s: %s", text, err.text);
}

static void fill(void)
{
    sql("INSERT INTO vendors (id, slug, name, is_first, renew_url, created_at, updated_at) VALUES ('ven_1','v','V',1,'https://renew',1,1)");
    sql("INSERT INTO upstreams (id, vendor_id, name, url, username, password_sealed, redirect_hosts, created_at, updated_at)"
        " VALUES ('up_1','ven_1','main','http://127.0.0.1:5','bob','SEALED','[\"s3.example\"]',1,1)");
    sql("INSERT INTO applications (id, vendor_id, slug, name, created_at, updated_at) VALUES ('app_1','ven_1','shop','Shop',1,1),"
        "('app_2','ven_1','old','Old',1,1)");
    sql("UPDATE applications SET archived_at=5 WHERE id='app_2'");
    sql("INSERT INTO repositories (id, application_id, name, upstream_id, upstream_repository, kind, tag_template, created_at, updated_at) "
        "VALUES"
        " ('rep_1','app_1','shop/api','up_1','acme/api','image','v{version}',1,1),"
        " ('rep_2','app_1','shop/chart','up_1','acme/chart','chart','{version}',1,1),"
        " ('rep_3','app_2','old/x','up_1','acme/x','image','{version}',1,1)");
    sql("INSERT INTO customers (id, vendor_id, slug, name, created_at, updated_at) VALUES ('cus_1','ven_1','acme \"q\"','Acme',1,1),"
        " ('cus_2','ven_1','two','Two',1,1), ('cus_3','ven_1','three','Three',1,1)");
    sql("UPDATE customers SET disabled=1 WHERE id='cus_2'");
    sql("UPDATE customers SET archived_at=9 WHERE id='cus_3'");
    sql("INSERT INTO licenses (id, vendor_id, customer_id, application_id, name, status, key_prefix, key_hash, allowed_cidrs, expires_at, "
        "created_at, updated_at)"
        " VALUES ('lic_1','ven_1','cus_1','app_1','Prod','active','PREFIX','hash_l1','[\"10.0.0.0/8\"]',4000000000,10,10),"
        " ('lic_2','ven_1','cus_1','app_1','Gone','active','','hash_l2','[]',0,11,11)");
    sql("UPDATE licenses SET archived_at=12 WHERE id='lic_2'");
    sql("INSERT INTO grants (id, license_id, selector, value, repositories, on_move, created_at) VALUES"
        " ('gr_1','lic_1','range','^1','[]','follow',20), ('gr_2','lic_1','exact','2.0.0','[\"shop/api\"]','pin',30)");
    sql("INSERT INTO credentials (id, customer_id, license_id, name, hash, prefix, allowed_cidrs, created_at, expires_at, revoked_at) "
        "VALUES"
        " ('crd_1','cus_1',NULL,'ci','h1','pgc_1','[]',1,0,0), ('crd_2','cus_1','lic_1','bound','h2','pgc_2','[\"1.2.3.4\"]',1,77,0),"
        " ('crd_3','cus_1',NULL,'revoked','h3','pgc_3','[]',1,0,50), ('crd_4','cus_2',NULL,'disabled','h4','pgc_4','[]',1,0,0),"
        " ('crd_5','cus_3',NULL,'archived','h5','pgc_5','[]',1,0,0)");
}

static int setup(void **state)
{
    (void)state;
    strcpy(dir, "/tmp/pullgate-compile-XXXXXX");
    if (!mkdtemp(dir))
        return -1;
    struct strbuf url = {0};
    struct error err = {0};
    sb_addf(&url, "sqlite://%s/db", dir);
    enum err e = store_open(url.p, false, &s, &err);
    if (!e)
        e = store_migrate(s, SCHEMA_MIGRATIONS, SCHEMA_MIGRATIONS_N, &err);
    sb_free(&url);
    if (e)
        fail_msg("%s", err.text);
    fill();
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    store_close(&s);
    return directory_remove(dir);
}

/* The compiled text; "" when the fact does not exist. Freed by the next call. */
static const char *compiled(const char *fact)
{
    static struct strbuf b;
    struct error err = {0};
    bool exists = false;
    if (compile_fact(s, str_c(fact), &b, &exists, &err))
        fail_msg("%s: %s", fact, err.text);
    assert_int_equal(exists, b.n > 0);
    return exists ? b.p : "";
}

static void test_facts(void **state)
{
    (void)state;
    static const struct {
        const char *fact, *payload;
    } rows[] = {
        {"k:h1",
         "{\"id\":\"crd_1\",\"kind\":\"credential\",\"customer_id\":\"cus_1\",\"customer_slug\":\"acme \\\"q\\\"\",\"vendor_id\":\"ven_1\","
         "\"license_id\":\"\",\"name\":\"ci\",\"expires_at\":0,\"allowed_cidrs\":[]}"},
        /* an expired credential keeps its fact, so that the refusal can say so */
        {"k:h2",
         "{\"id\":\"crd_2\",\"kind\":\"credential\",\"customer_id\":\"cus_1\",\"customer_slug\":\"acme \\\"q\\\"\",\"vendor_id\":\"ven_1\","
         "\"license_id\":\"lic_1\",\"name\":\"bound\",\"expires_at\":77,\"allowed_cidrs\":[\"1.2.3.4\"]}"},
        {"k:h3", ""}, /* revoked */
        /* its customer is disabled: c: says so */
        {"k:h4", "{\"id\":\"crd_4\",\"kind\":\"credential\",\"customer_id\":\"cus_2\",\"customer_slug\":\"two\",\"vendor_id\":\"ven_1\","
                 "\"license_id\":\"\",\"name\":\"disabled\",\"expires_at\":0,\"allowed_cidrs\":[]}"},
        {"k:h5", ""}, /* its customer is archived */
        {"k:none", ""},
        {"k:hash_l1", "{\"id\":\"lic_1\",\"kind\":\"license_key\",\"customer_id\":\"cus_1\",\"customer_slug\":\"acme "
                      "\\\"q\\\"\",\"vendor_id\":\"ven_1\","
                      "\"license_id\":\"lic_1\",\"name\":\"PREFIX\",\"expires_at\":0,\"allowed_cidrs\":[]}"},
        {"k:hash_l2", ""}, /* the license is archived */
        {"c:cus_1",
         "{\"customer_id\":\"cus_1\",\"customer_slug\":\"acme "
         "\\\"q\\\"\",\"vendor_id\":\"ven_1\",\"disabled\":false,\"renew_url\":\"https://renew\","
         "\"support_contact\":\"\",\"licenses\":[{\"id\":\"lic_1\",\"name\":\"Prod\",\"application_id\":\"app_1\",\"application_slug\":"
         "\"shop\","
         "\"status\":\"active\",\"status_reason\":\"\",\"starts_at\":0,\"expires_at\":4000000000,\"grace_days\":0,\"updates_until\":0,"
         "\"on_expiry\":\"block\",\"allowed_cidrs\":[\"10.0.0.0/8\"],\"repositories\":[\"shop/api\",\"shop/"
         "chart\"],\"upstream_credential_id\":\"\","
         "\"quota_exceeded\":false,\"grants\":["
         "{\"id\":\"gr_1\",\"selector\":\"range\",\"value\":\"^1\",\"include_prerelease\":false,\"not_before\":0,\"not_after\":0,\"granted_"
         "at\":20,"
         "\"on_move\":\"follow\",\"repositories\":[],\"pins\":[]},"
         "{\"id\":\"gr_2\",\"selector\":\"exact\",\"value\":\"2.0.0\",\"include_prerelease\":false,\"not_before\":0,\"not_after\":0,"
         "\"granted_at\":30,\"on_move\":\"pin\",\"repositories\":[\"shop/api\"],\"pins\":[]}]}]}"},
        {"c:cus_2",
         "{\"customer_id\":\"cus_2\",\"customer_slug\":\"two\",\"vendor_id\":\"ven_1\",\"disabled\":true,\"renew_url\":\"https://renew\","
         "\"support_contact\":\"\",\"licenses\":[]}"},
        {"c:cus_3", ""}, /* archived */
        {"r:shop/api",
         "{\"id\":\"rep_1\",\"name\":\"shop/api\",\"application_id\":\"app_1\",\"application_slug\":\"shop\",\"vendor_id\":\"ven_1\","
         "\"upstream_id\":\"up_1\",\"upstream_repository\":\"acme/api\",\"kind\":\"image\",\"tag_template\":\"v{version}\"}"},
        {"r:old/x", ""}, /* its application is archived */
        {"t:rep_1", "{\"repository_id\":\"rep_1\",\"tags\":{}}"},
        {"t:rep_3", ""},
        {"u:up_1", "{\"id\":\"up_1\",\"url\":\"http://127.0.0.1:5\",\"username\":\"bob\",\"password_sealed\":\"SEALED\",\"ca\":\"\","
                   "\"redirects\":\"follow\",\"redirect_hosts\":[\"s3.example\"],\"realm\":\"\"}"},
        {"u:up_2", ""},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
        assert_string_equal(compiled(rows[i].fact), rows[i].payload);
}

static void test_entitlement_is_accepted(void **state)
{
    (void)state;
    struct entitlement *ent = NULL;
    struct error err = {0};
    assert_int_equal(entitlement_load(s, S("cus_1"), &ent, &err), ERR_OK);
    assert_non_null(ent);
    assert_int_equal(ent->n_licenses, 1);
    assert_int_equal(ent->licenses[0].n_grants, 2);
    entitlement_unref(&ent);
}

static void test_no_fact_name(void **state)
{
    (void)state;
    static const char *const rows[] = {"", "k", "k:", "x:abc", "kabc", "z:"};
    struct strbuf b = {0};
    bool exists;
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
        assert_int_equal(compile_fact(s, str_c(rows[i]), &b, &exists, NULL), ERR_INVALID);
    sb_free(&b);
}

/* ---- tags ---- */

static bool seen(const char *repository, const char *tag, const char *digest, int64_t at)
{
    struct tag_sighting t = {
        .repository_id = str_c(repository), .tag = str_c(tag), .digest = str_c(digest), .media_type = S("m"), .size = 5, .at_s = at};
    struct error err = {0};
    bool changed = false;
    if (tags_seen(s, &t, &changed, &err))
        fail_msg("%s", err.text);
    return changed;
}

static uint64_t epoch_of(const char *fact)
{
    struct store_stmt *st;
    bool row;
    assert_int_equal(store_query(s, &st, NULL, "SELECT epoch FROM fact_epochs WHERE fact=?", "z", fact), ERR_OK);
    assert_int_equal(store_step(st, &row, NULL), ERR_OK);
    uint64_t e = row ? (uint64_t)store_col_int(st, 0) : 0;
    store_done(&st);
    return e;
}

static void test_tags(void **state)
{
    (void)state;
    bool changed;
    assert_true(seen("rep_2", "1.2.0", D1, 100));
    uint64_t epoch = epoch_of("t:rep_2");
    assert_true(epoch > 0);
    assert_false(seen("rep_2", "1.2.0", D1, 150)); /* nothing new: nothing is written */
    assert_false(seen("rep_2", "1.2.0", D2, 50));  /* a late or replayed report */
    assert_int_equal(epoch_of("t:rep_2"), epoch);
    assert_true(seen("rep_2", "1.2.0", D2, 200));
    assert_true(epoch_of("t:rep_2") > epoch);
    assert_true(seen("rep_2", "1.2.0", D1, 300)); /* moved back */
    assert_string_equal(
        compiled("t:rep_2"),
        "{\"repository_id\":\"rep_2\",\"tags\":{\"1.2.0\":{\"version\":\"1.2.0\",\"channel\":\"\",\"released_at\":100,\"digests\":["
        "[\"" D1 "\",100,200],[\"" D2 "\",200,300],[\"" D1 "\",300,0]]}}}");
    assert_int_equal(tags_gone(s, S("rep_2"), S("1.2.0"), 400, &changed, NULL), ERR_OK);
    assert_true(changed);
    assert_int_equal(tags_gone(s, S("rep_2"), S("1.2.0"), 500, &changed, NULL), ERR_OK);
    assert_false(changed);
    assert_non_null(strstr(compiled("t:rep_2"), "[\"" D1 "\",300,400]"));
}

static void test_tags_that_are_no_versions(void **state)
{
    (void)state;
    assert_false(seen("rep_2", "sha256-1111111111111111111111111111111111111111111111111111111111111111.sig", D1, 100));
    assert_false(seen("rep_2", "no tag!", D1, 100));
    assert_false(seen("rep_2", "1.0.0", "sha256:abc", 100));
    assert_false(seen("rep_9", "1.0.0", D1, 100));
    assert_true(seen("rep_1", "latest", D1, 100)); /* no "v": known as a tag, of no version */
    assert_string_equal(compiled("t:rep_1"),
                        "{\"repository_id\":\"rep_1\",\"tags\":{\"latest\":{\"version\":\"\",\"channel\":\"\",\"released_at\":0,"
                        "\"digests\":[[\"" D1 "\",100,0]]}}}");
}

static void test_records(void **state)
{
    (void)state;
    sql("INSERT INTO versions (id, application_id, version, released_at, channel, source, created_at, updated_at) VALUES"
        " ('ver_1','app_1','1.3.0',1234,'stable','record',1,1), ('ver_2','app_1','nightly',0,'edge','record',1,1)");
    sql("INSERT INTO version_tags (version_id, repository_id, tag) VALUES ('ver_2','rep_1','build-77')");
    /* a record that was not seen yet is listed, for its channel and date; the tag it names stands for it */
    assert_string_equal(compiled("t:rep_1"),
                        "{\"repository_id\":\"rep_1\",\"tags\":{"
                        "\"build-77\":{\"version\":\"nightly\",\"channel\":\"edge\",\"released_at\":0,\"digests\":[]},"
                        "\"v1.3.0\":{\"version\":\"1.3.0\",\"channel\":\"stable\",\"released_at\":1234,\"digests\":[]}}}");
    assert_true(seen("rep_1", "build-77", D1, 100));
    uint64_t other = epoch_of("t:rep_2");
    assert_true(other > 0); /* the version's first sighting is a release date there too */
    assert_true(seen("rep_1", "v1.3.0", D2, 101));
    assert_string_equal(compiled("t:rep_1"),
                        "{\"repository_id\":\"rep_1\",\"tags\":{"
                        "\"build-77\":{\"version\":\"nightly\",\"channel\":\"edge\",\"released_at\":100,\"digests\":[[\"" D1 "\",100,0]]},"
                        "\"v1.3.0\":{\"version\":\"1.3.0\",\"channel\":\"stable\",\"released_at\":1234,\"digests\":[[\"" D2
                        "\",101,0]]}}}");
}

static void test_pins(void **state)
{
    (void)state;
    /* gr_2 pins 2.0.0 in shop/api (tag v2.0.0) since 30: the digest that it stood for then. */
    assert_true(seen("rep_1", "v2.0.0", D1, 20));
    assert_true(seen("rep_1", "v1.0.0", D1, 20)); /* not what the grant selects */
    assert_true(seen("rep_2", "2.0.0", D1, 20));  /* not its repository */
    const char *want = "\"pins\":[{\"repository\":\"shop/api\",\"tag\":\"v2.0.0\",\"digest\":\"" D1 "\"}]}]}]}";
    assert_non_null(strstr(compiled("c:cus_1"), want));
    uint64_t epoch = epoch_of("c:cus_1");
    assert_true(epoch > 0);
    assert_true(seen("rep_1", "v2.0.0", D2, 60));
    assert_non_null(strstr(compiled("c:cus_1"), want)); /* moved: the pin stays */
    assert_int_equal(epoch_of("c:cus_1"), epoch);
    /* a grant made later binds to what the tag stands for then */
    sql("INSERT INTO grants (id, license_id, selector, value, on_move, created_at) VALUES ('gr_3','lic_1','range','>=2','pin',70)");
    assert_int_equal(tags_pin_license(s, S("lic_1"), 70, NULL), ERR_OK);
    assert_true(epoch_of("c:cus_1") > epoch);
    assert_null(strstr(compiled("c:cus_1"), "v1.0.0"));
    assert_non_null(strstr(compiled("c:cus_1"), "\"pins\":[{\"repository\":\"shop/api\",\"tag\":\"v2.0.0\",\"digest\":\"" D2 "\"},"
                                                "{\"repository\":\"shop/chart\",\"tag\":\"2.0.0\",\"digest\":\"" D1 "\"}]"));
    epoch = epoch_of("c:cus_1");
    assert_int_equal(tags_pin_license(s, S("lic_1"), 80, NULL), ERR_OK);
    assert_int_equal(epoch_of("c:cus_1"), epoch); /* nothing to bind: nothing is written */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_facts, setup, teardown),
        cmocka_unit_test_setup_teardown(test_entitlement_is_accepted, setup, teardown),
        cmocka_unit_test_setup_teardown(test_no_fact_name, setup, teardown),
        cmocka_unit_test_setup_teardown(test_tags, setup, teardown),
        cmocka_unit_test_setup_teardown(test_tags_that_are_no_versions, setup, teardown),
        cmocka_unit_test_setup_teardown(test_records, setup, teardown),
        cmocka_unit_test_setup_teardown(test_pins, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
