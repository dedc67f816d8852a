/* store.c: statements, transactions, errors, migrations, one writer, readers beside it, backup. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "pullgate/file.h"
#include "pullgate/mem.h"
#include "pullgate/store.h"

struct place {
    char dir[64];
    char url[256];
    char path[100];
};

static int setup(void **state)
{
    struct place *p = NEW(struct place);
    snprintf(p->dir, sizeof p->dir, "/tmp/pullgate-store-XXXXXX");
    assert_non_null(mkdtemp(p->dir));
    snprintf(p->path, sizeof p->path, "%s/x.db", p->dir);
    snprintf(p->url, sizeof p->url, "sqlite://%s", p->path);
    *state = p;
    return 0;
}

static int teardown(void **state)
{
    static const char *const ends[] = {"", "-wal", "-shm", ".lock", ".bak", ".bak-journal"};
    struct place *p = *state;
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        char name[256];
        snprintf(name, sizeof name, "%s%s", p->path, ends[i]);
        unlink(name);
    }
    assert_int_equal(rmdir(p->dir), 0);
    mem_free(p);
    return 0;
}

static const struct store_migration MIGRATIONS[] = {
    {1, "CREATE TABLE a (id TEXT PRIMARY KEY, slug TEXT UNIQUE, n INTEGER CHECK (n < 1000)) WITHOUT ROWID"},
    {2, "CREATE TABLE b (id INTEGER PRIMARY KEY AUTOINCREMENT, a TEXT REFERENCES a(id)); CREATE INDEX b_a ON b(a)"},
};

static struct store *opened(const struct place *p, size_t migrations)
{
    struct store *s;
    struct error error;
    assert_int_equal(store_open(p->url, false, &s, &error), ERR_OK);
    assert_int_equal(store_migrate(s, MIGRATIONS, migrations, &error), ERR_OK);
    return s;
}

static int64_t count(struct store *s, const char *sql)
{
    struct store_stmt *st;
    bool row;
    assert_int_equal(store_query(s, &st, NULL, sql, ""), ERR_OK);
    assert_int_equal(store_step(st, &row, NULL), ERR_OK);
    assert_true(row);
    int64_t n = store_col_int(st, 0);
    store_done(&st);
    assert_null(st);
    return n;
}

struct reader {
    const struct place *place;
    _Atomic bool *stop;
    pthread_t thread;
    unsigned rounds;
};

/* Reads, and stays in what it read for a while, as an export or the projector does. */
static void *reader_run(void *arg)
{
    struct reader *r = arg;
    struct store *s;
    struct error error;
    if (store_open(r->place->url, true, &s, &error))
        return NULL;
    while (!*r->stop) {
        struct store_stmt *st;
        bool row;
        if (store_begin(s, &error) || store_query(s, &st, &error, "SELECT count(*) FROM a", ""))
            break;
        r->rounds += store_step(st, &row, &error) == ERR_OK;
        store_done(&st);
        usleep(15000);
        store_rollback(s);
    }
    store_close(&s);
    return NULL;
}

/* The log of a store that is always read does not grow without end. */
static void test_a_log_that_is_always_read(void **state)
{
    const struct place *p = *state;
    struct error error;
    struct store *s = opened(p, 2);
    _Atomic bool stop = false;
    struct reader readers[4];
    char name[128], *text = mem_alloc(250000);
    memset(text, 'x', 249999);
    text[249999] = '\0';
    snprintf(name, sizeof name, "%s-wal", p->path);
    for (size_t i = 0; i < 4; i++) {
        readers[i] = (struct reader){.place = p, .stop = &stop};
        assert_int_equal(pthread_create(&readers[i].thread, NULL, reader_run, &readers[i]), 0);
    }
    off_t most = 0;
    for (int i = 0; i < 900; i++) { /* 225 MB */
        assert_int_equal(store_begin(s, &error), ERR_OK);
        assert_int_equal(store_exec(s, NULL, &error, "INSERT INTO a (id, slug, n) VALUES ('x', ?, 1) ON CONFLICT (id) DO UPDATE SET slug=excluded.slug", "z", text),
                         ERR_OK);
        assert_int_equal(store_commit(s, &error), ERR_OK);
        text[i % 249999] = (char)('a' + i % 26);
        struct stat st;
        if (stat(name, &st) == 0 && st.st_size > most)
            most = st.st_size;
    }
    stop = true;
    unsigned rounds = 0;
    for (size_t i = 0; i < 4; i++) {
        pthread_join(readers[i].thread, NULL);
        rounds += readers[i].rounds;
    }
    store_close(&s);
    mem_free(text);
    assert_true(rounds > 20);
    if (most > 150 * 1024 * 1024) /* of 225 MB; a round of readers may be missed */
        fail_msg("the log grew to %lld MiB", (long long)most >> 20);
}

static void test_urls(void **state)
{
    static const char *const bad[] = {"",     "sqlite://",      "sqlite:///",  "sqlite://relative",
                                      "/abs", "postgresql://x", "SQLITE:///x", "file:///x"};
    struct store *s = NULL;
    struct error error;
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(store_open(bad[i], false, &s, &error), ERR_INVALID);
        assert_string_equal(error.field, "store.url");
        assert_null(s);
    }
    assert_int_equal(store_open("sqlite:///nonexistent/dir/x", false, &s, &error), ERR_UNAVAILABLE);
    assert_int_equal(store_open("sqlite:///nonexistent/dir/x", true, &s, &error), ERR_UNAVAILABLE);
}

static void test_parameters_and_columns(void **state)
{
    struct store *s = opened(*state, 2);
    struct store_stmt *st;
    bool row;
    int64_t changes = 0;
    const char with_nul[] = "a\0b";
    assert_int_equal(store_exec(s, &changes, NULL, "INSERT INTO a VALUES (?,?,?)", "zsi", "1", S("it's"), INT64_C(-5)), ERR_OK);
    assert_int_equal(changes, 1);
    assert_int_equal(store_exec(s, NULL, NULL, "INSERT INTO a VALUES (?,?,?)", "zst", "2", ((struct str){NULL, 0}), INT64_C(0)), ERR_OK);
    assert_int_equal(store_exec(s, NULL, NULL, "INSERT INTO a VALUES (?,?,?)", "szb", ((struct str){with_nul, 3}), NULL, 7), ERR_OK);
    assert_int_equal(store_query(s, &st, NULL, "SELECT id, slug, n FROM a ORDER BY id", ""), ERR_OK);
    assert_int_equal(store_step(st, &row, NULL), ERR_OK);
    assert_true(str_eq(store_col_str(st, 1), S("it's")));
    assert_int_equal(store_col_int(st, 2), -5);
    assert_int_equal(store_step(st, &row, NULL), ERR_OK);
    assert_true(store_col_null(st, 1) && store_col_null(st, 2) && store_col_str(st, 1).p == NULL && store_col_int(st, 2) == 0);
    assert_int_equal(store_step(st, &row, NULL), ERR_OK);
    assert_int_equal(store_col_str(st, 0).n, 3);
    assert_int_equal(store_col_int(st, 2), 1);
    assert_int_equal(store_step(st, &row, NULL), ERR_OK);
    assert_false(row);
    store_done(&st);
    assert_int_equal(store_exec(s, &changes, NULL, "UPDATE a SET n=n+1 WHERE n IS NOT NULL", ""), ERR_OK);
    assert_int_equal(changes, 2);
    store_close(&s);
    assert_null(s);
}

/* The same text in use twice at once, and more texts than are kept. */
static void test_statements_are_kept_and_dropped(void **state)
{
    struct store *s = opened(*state, 2);
    struct store_stmt *outer, *inner;
    bool row;
    for (int i = 0; i < 5; i++)
        assert_int_equal(store_exec(s, NULL, NULL, "INSERT INTO b (a) VALUES (NULL)", ""), ERR_OK);
    assert_int_equal(store_last_rowid(s), 5);
    assert_int_equal(store_query(s, &outer, NULL, "SELECT id FROM b ORDER BY id", ""), ERR_OK);
    for (int64_t i = 1; i <= 5; i++) {
        assert_int_equal(store_step(outer, &row, NULL), ERR_OK);
        assert_int_equal(store_col_int(outer, 0), i);
        assert_int_equal(store_query(s, &inner, NULL, "SELECT id FROM b ORDER BY id", ""), ERR_OK);
        assert_int_equal(store_step(inner, &row, NULL), ERR_OK);
        assert_int_equal(store_col_int(inner, 0), 1);
        store_done(&inner);
    }
    for (int i = 0; i < 600; i++) {
        char sql[64];
        snprintf(sql, sizeof sql, "SELECT %d FROM b LIMIT 1", i);
        assert_int_equal(count(s, sql), i);
    }
    assert_int_equal(store_step(outer, &row, NULL), ERR_OK);
    assert_false(row);
    store_done(&outer);
    store_done(&outer); /* NULL is fine */
    store_close(&s);
}

static void test_errors(void **state)
{
    struct store *s = opened(*state, 2);
    struct error error = {0};
    struct store_stmt *st = NULL;
    assert_int_equal(store_exec(s, NULL, NULL, "INSERT INTO a VALUES ('1','x',1)", ""), ERR_OK);
    assert_int_equal(store_exec(s, NULL, &error, "INSERT INTO a VALUES ('2','x',1)", ""), ERR_CONFLICT);
    assert_string_equal(error.field, "slug");
    assert_int_equal(store_exec(s, NULL, &error, "INSERT INTO a VALUES ('1','y',1)", ""), ERR_CONFLICT);
    assert_string_equal(error.field, "id");
    assert_int_equal(store_exec(s, NULL, &error, "INSERT INTO b (a) VALUES ('nobody')", ""), ERR_CONFLICT);
    assert_string_equal(error.field, "");
    assert_int_equal(store_exec(s, NULL, &error, "INSERT INTO a VALUES ('3','z',5000)", ""), ERR_CONFLICT);
    assert_int_equal(store_query(s, &st, &error, "SELECT nothing FROM nowhere", ""), ERR_INTERNAL);
    assert_null(st);
    assert_int_equal(count(s, "SELECT COUNT(*) FROM a"), 1);
    store_close(&s);
}

static void test_transactions(void **state)
{
    struct store *s = opened(*state, 2), *r;
    struct place *p = *state;
    assert_int_equal(store_open(p->url, true, &r, NULL), ERR_OK);
    store_rollback(s); /* harmless outside */
    assert_int_equal(store_begin(s, NULL), ERR_OK);
    assert_int_equal(store_exec(s, NULL, NULL, "INSERT INTO b (a) VALUES (NULL)", ""), ERR_OK);
    assert_int_equal(count(s, "SELECT COUNT(*) FROM b"), 1);
    assert_int_equal(count(r, "SELECT COUNT(*) FROM b"), 0);
    store_rollback(s);
    assert_int_equal(count(s, "SELECT COUNT(*) FROM b"), 0);

    /* A reader's snapshot stays while the writer commits, and does not hold it up. */
    assert_int_equal(store_begin(r, NULL), ERR_OK);
    assert_int_equal(count(r, "SELECT COUNT(*) FROM b"), 0);
    assert_int_equal(store_begin(s, NULL), ERR_OK);
    assert_int_equal(store_exec(s, NULL, NULL, "INSERT INTO b (a) VALUES (NULL)", ""), ERR_OK);
    assert_int_equal(store_commit(s, NULL), ERR_OK);
    assert_int_equal(count(r, "SELECT COUNT(*) FROM b"), 0);
    store_rollback(r);
    assert_int_equal(count(r, "SELECT COUNT(*) FROM b"), 1);

    struct error error;
    assert_int_equal(store_exec(r, NULL, &error, "INSERT INTO b (a) VALUES (NULL)", ""), ERR_UNAVAILABLE);
    store_close(&r);
    store_close(&s);
}

static void test_modes(void **state)
{
    struct place *p = *state;
    struct store *s = opened(p, 2), *r, *second = NULL;
    struct error error;
    struct stat st;
    char name[256];
    struct store_stmt *mode;
    bool row;
    assert_int_equal(store_query(s, &mode, NULL, "PRAGMA journal_mode", ""), ERR_OK);
    assert_int_equal(store_step(mode, &row, NULL), ERR_OK);
    assert_true(str_eq(store_col_str(mode, 0), S("wal")));
    store_done(&mode);
    assert_int_equal(count(s, "PRAGMA synchronous"), 2); /* FULL */
    assert_int_equal(count(s, "PRAGMA foreign_keys"), 1);
    assert_int_equal(count(s, "PRAGMA wal_autocheckpoint"), 0); /* a hook of its own does it */
    assert_int_equal(store_open(p->url, true, &r, NULL), ERR_OK);
    assert_int_equal(count(r, "PRAGMA wal_autocheckpoint"), 0);
    assert_int_equal(store_exec(r, NULL, NULL, "PRAGMA wal_checkpoint(TRUNCATE)", ""), ERR_UNAVAILABLE); /* one connection alone may */
    snprintf(name, sizeof name, "%s-wal", p->path);
    assert_int_equal(stat(p->path, &st), 0);
    assert_int_equal(st.st_mode & 077, 0);
    assert_int_equal(stat(name, &st), 0);
    assert_int_equal(st.st_mode & 077, 0);
    assert_int_equal(store_open(p->url, false, &second, &error), ERR_CONFLICT);
    assert_null(second);
    assert_non_null(strstr(error.text, "in use"));
    store_close(&r);
    store_close(&s);
    s = opened(p, 2); /* the lock went with it */
    store_close(&s);
}

static void test_migrations(void **state)
{
    struct place *p = *state;
    struct store *s = opened(p, 1);
    struct error error;
    assert_int_equal(count(s, "SELECT COUNT(*) FROM schema_migrations"), 1);
    assert_int_equal(store_migrate(s, MIGRATIONS, 2, &error), ERR_OK);
    assert_int_equal(store_migrate(s, MIGRATIONS, 2, &error), ERR_OK);
    assert_int_equal(count(s, "SELECT MAX(version) FROM schema_migrations"), 2);
    assert_int_equal(store_migrate(s, MIGRATIONS, 1, &error), ERR_INVALID); /* the file is newer */
    struct store_migration changed[] = {MIGRATIONS[0], {2, "CREATE TABLE c (x)"}};
    assert_int_equal(store_migrate(s, changed, 2, &error), ERR_INVALID); /* the text differs */
    struct store_migration broken[] = {MIGRATIONS[0], MIGRATIONS[1], {3, "CREATE TABLE d (x); CREATE TABLE a (x)"}};
    assert_int_not_equal(store_migrate(s, broken, 3, &error), ERR_OK); /* whole or not at all */
    assert_int_equal(count(s, "SELECT COUNT(*) FROM sqlite_master WHERE name='d'"), 0);
    assert_int_equal(count(s, "SELECT MAX(version) FROM schema_migrations"), 2);
    store_close(&s);
}

static void test_backup(void **state)
{
    struct place *p = *state, copy;
    struct store *s = opened(p, 2), *c;
    char path[128];
    struct error error;
    snprintf(path, sizeof path, "%s.bak", p->path);
    for (int i = 0; i < 100; i++)
        assert_int_equal(store_exec(s, NULL, NULL, "INSERT INTO b (a) VALUES (NULL)", ""), ERR_OK);
    assert_int_equal(store_backup(s, path, &error), ERR_OK);
    assert_int_equal(store_backup(s, path, &error), ERR_CONFLICT); /* never over a file */
    store_close(&s);
    copy = *p;
    snprintf(copy.url, sizeof copy.url, "sqlite://%s", path);
    assert_int_equal(store_open(copy.url, false, &c, &error), ERR_OK);
    assert_int_equal(count(c, "SELECT COUNT(*) FROM b"), 100);
    store_close(&c);
    static const char *const ends[] = {"-wal", "-shm", ".lock"};
    for (size_t i = 0; i < 3; i++) {
        char name[200];
        snprintf(name, sizeof name, "%s%s", path, ends[i]);
        unlink(name);
    }
}

/* A restore that fails in the middle puts back what was there. */
static void test_a_failed_replacement(void **state)
{
    struct place *p = *state;
    struct store *s = opened(p, 2);
    struct store_claim *c = NULL;
    struct strbuf aside = {0};
    struct error error;
    char log[128], word[8] = "";

    assert_int_equal(store_exec(s, NULL, &error, "INSERT INTO a VALUES ('1','s',1)", ""), ERR_OK);
    store_close(&s);
    snprintf(log, sizeof log, "%s-wal", p->path);
    assert_true(file_write_whole(log, S("log")));
    assert_int_equal(store_claim(p->url, &c, &error), ERR_OK);
    assert_int_equal(store_claim_replace(c, "/nonexistent/fresh", &aside, &error), ERR_UNAVAILABLE);
    store_claim_release(&c);
    assert_int_equal(aside.n, 0);
    assert_true(file_read_small(log, word, sizeof word));
    assert_string_equal(word, "log");
    unlink(log);
    s = opened(p, 2);
    assert_int_equal(store_exec(s, NULL, &error, "INSERT INTO a VALUES ('1','t',1)", ""), ERR_CONFLICT); /* it is the one that was there */
    store_close(&s);
}

static void test_a_file_that_is_no_database(void **state)
{
    struct place *p = *state;
    struct store *s = NULL;
    struct error error;
    FILE *f = fopen(p->path, "w");
    assert_non_null(f);
    for (int i = 0; i < 1000; i++)
        fputs("this is no database\n", f);
    fclose(f);
    assert_int_equal(store_open(p->url, false, &s, &error), ERR_UNAVAILABLE);
    assert_null(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_urls),
        cmocka_unit_test_setup_teardown(test_parameters_and_columns, setup, teardown),
        cmocka_unit_test_setup_teardown(test_statements_are_kept_and_dropped, setup, teardown),
        cmocka_unit_test_setup_teardown(test_errors, setup, teardown),
        cmocka_unit_test_setup_teardown(test_transactions, setup, teardown),
        cmocka_unit_test_setup_teardown(test_modes, setup, teardown),
        cmocka_unit_test_setup_teardown(test_migrations, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_log_that_is_always_read, setup, teardown),
        cmocka_unit_test_setup_teardown(test_backup, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_failed_replacement, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_file_that_is_no_database, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
