/* A store of an earlier version is brought up to this one with everything it holds. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "pullgate/store.h"
#include "directory.h"
#include "schema.c"

static char directory[] = "/tmp/pullgate-schema-XXXXXX";

static void must(struct store *s, const char *sql)
{
    struct error error = {0};
    if (store_exec(s, NULL, &error, sql, ""))
        fail_msg("%s: %s", sql, error.text);
}

static const char *one(struct store *s, const char *sql, char ret[200])
{
    struct error error = {0};
    struct store_stmt *st;
    bool row = false;
    if (store_query(s, &st, &error, sql, "") || store_step(st, &row, &error))
        fail_msg("%s: %s", sql, error.text);
    snprintf(ret, 200, "%.*s", row ? (int)store_col_str(st, 0).n : 6, row ? store_col_str(st, 0).p : "no row");
    store_done(&st);
    return ret;
}

/* One row of each kind that the first version had, then all migrations. */
static void first_version_is_brought_up(void **state)
{
    (void)state;
    struct error error = {0};
    struct store *s;
    char url[100], text[200];
    snprintf(url, sizeof url, "sqlite://%s/pullgate.db", directory);
    assert_int_equal(store_open(url, false, &s, &error), ERR_OK);
    assert_int_equal(store_migrate(s, SCHEMA_MIGRATIONS, 1, &error), ERR_OK);
    must(s, "INSERT INTO vendors (id, slug, name, is_first, created_at, updated_at) VALUES ('ven_1','acme','Acme',1,1,1)");
    must(s, "INSERT INTO api_tokens (id, vendor_id, name, role, hash, prefix, is_bootstrap, created_at) VALUES"
            " ('tok_1','ven_1','boot','owner','h1','',1,1), ('tok_2','ven_1','r','viewer','h2','pga_x',0,2)");
    must(s, "INSERT INTO customers (id, vendor_id, slug, name, created_at, updated_at) VALUES ('cus_1','ven_1','globex','Globex Ünited',1,1)");
    must(s, "INSERT INTO applications (id, vendor_id, slug, name, created_at, updated_at) VALUES ('app_1','ven_1','shop','Shop',1,1)");
    must(s, "INSERT INTO licenses (id, vendor_id, customer_id, application_id, name, status, expires_at, grace_days, created_at, updated_at, key_hash)"
            " VALUES ('lic_1','ven_1','cus_1','app_1','Prod','active',4000000000,7,1,1,'kh')");
    must(s, "INSERT INTO grants (id, license_id, selector, value, created_at) VALUES ('grt_1','lic_1','range','^1',1)");
    must(s, "INSERT INTO credentials (id, customer_id, name, hash, prefix, created_at) VALUES ('crd_1','cus_1','ci','ch','pgc_',1)");
    must(s, "INSERT INTO license_history (vendor_id, customer_id, license_id, at_ms, event, actor)"
            " VALUES ('ven_1','cus_1','lic_1',1,'license.created','token:tok_1')");
    store_close(&s);

    assert_int_equal(store_open(url, false, &s, &error), ERR_OK);
    if (store_migrate(s, SCHEMA_MIGRATIONS, SCHEMA_MIGRATIONS_N, &error))
        fail_msg("%s", error.text);
    assert_string_equal(one(s, "SELECT role || ' ' || is_bootstrap || ' ' || hash FROM api_tokens WHERE id='tok_1'", text), "operator 1 h1");
    assert_string_equal(one(s, "SELECT role FROM api_tokens WHERE id='tok_2'", text), "viewer");
    assert_string_equal(one(s, "SELECT status || expires_at || key_hash || source FROM licenses WHERE id='lic_1'", text), "active4000000000khcreated");
    assert_string_equal(one(s, "SELECT value FROM grants WHERE license_id='lic_1'", text), "^1");
    assert_string_equal(one(s, "SELECT name FROM credentials WHERE customer_id='cus_1'", text), "ci");
    assert_string_equal(one(s, "SELECT event FROM license_history WHERE license_id='lic_1'", text), "license.created");
    assert_string_equal(one(s, "SELECT count(*) FROM pragma_foreign_key_check", text), "0");
    assert_string_equal(one(s, "PRAGMA integrity_check", text), "ok");
    must(s, "INSERT INTO api_tokens (id, vendor_id, name, role, hash, prefix, created_at) VALUES ('tok_3','ven_1','lm','license_manager','h3','pga_y',3)");
    store_close(&s);

    /* A second start finds nothing to do. */
    assert_int_equal(store_open(url, false, &s, &error), ERR_OK);
    assert_int_equal(store_migrate(s, SCHEMA_MIGRATIONS, SCHEMA_MIGRATIONS_N, &error), ERR_OK);
    store_close(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(first_version_is_brought_up)};
    if (!mkdtemp(directory))
        return 1;
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    (void)directory_remove(directory);
    return rc;
}
