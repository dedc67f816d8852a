/* The admin's database threads, its outbox and its audit chain. Their sources are no part of the library. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmocka.h>

#include "../../admin/audit.c"
#include "../../admin/db.c"
#include "../../admin/outbox.c"
#include "../../admin/schema.c"

#include "directory.h"

struct place {
    char dir[64];
    char url[128], keys[128];
    struct db *writer, *reader;
    struct keyring *ring;
    unsigned commits;
};

static void on_commit(void *ctx, struct store *s)
{
    (void)s;
    struct place *p = ctx;
    p->commits++;
}

static int setup(void **state)
{
    struct place *p = NEW(struct place);
    snprintf(p->dir, sizeof p->dir, "/tmp/pullgate-db-XXXXXX");
    assert_non_null(mkdtemp(p->dir));
    snprintf(p->url, sizeof p->url, "sqlite://%s/x.db", p->dir);
    snprintf(p->keys, sizeof p->keys, "%s/keys", p->dir);
    struct error error;
    struct db_options o = {.url = p->url, .name = "w", .queue_max = 4, .on_commit = on_commit, .ctx = p};
    assert_int_equal(db_start(&o, &p->writer, &error), ERR_OK);
    o = (struct db_options){.url = p->url, .name = "r", .read_only = true, .queue_max = 4};
    assert_int_equal(db_start(&o, &p->reader, &error), ERR_OK);
    assert_int_equal(keyring_open(p->keys, true, &p->ring, &error), ERR_OK);
    *state = p;
    return 0;
}

static int teardown(void **state)
{
    struct place *p = *state;
    db_stop(&p->reader);
    db_stop(&p->writer);
    keyring_free(p->ring);
    assert_int_equal(directory_remove(p->dir), 0);
    mem_free(p);
    return 0;
}

static enum err put_meta(struct store *s, void *arg, struct error *reterr)
{
    return store_exec(s, NULL, reterr, "INSERT INTO meta VALUES (?,'x')", "z", (const char *)arg);
}

static enum err put_meta_then_fail(struct store *s, void *arg, struct error *reterr)
{
    enum err err = put_meta(s, arg, reterr);
    return err ? err : error_set_field(reterr, ERR_INVALID, "here", "no");
}

static enum err begin_and_leave(struct store *s, void *arg, struct error *reterr)
{
    enum err err = store_begin(s, reterr);
    return err ? err : put_meta(s, arg, reterr);
}

struct number {
    const char *sql;
    int64_t value;
};

static enum err get_number(struct store *s, void *arg, struct error *reterr)
{
    struct number *n = arg;
    struct store_stmt *st = NULL;
    bool row = false;
    enum err err = store_query(s, &st, reterr, n->sql, "");
    if (!err)
        err = store_step(st, &row, reterr);
    n->value = !err && row ? store_col_int(st, 0) : -1;
    store_done(&st);
    return err;
}

static int64_t number(struct db *db, const char *sql)
{
    struct number n = {sql, -1};
    assert_int_equal(db_run(db, DB_TRANSACTION, get_number, &n, NULL), ERR_OK);
    return n.value;
}

static void test_transactions(void **state)
{
    struct place *p = *state;
    struct error error = {0};
    char a[] = "a", b[] = "b", c[] = "c";
    assert_int_equal(db_run(p->writer, DB_TRANSACTION, put_meta, a, &error), ERR_OK);
    assert_int_equal(p->commits, 1);
    assert_int_equal(db_run(p->writer, DB_TRANSACTION, put_meta, a, &error), ERR_CONFLICT);
    assert_int_equal(db_run(p->writer, DB_TRANSACTION, put_meta_then_fail, b, &error), ERR_INVALID);
    assert_string_equal(error.field, "here");
    /* a job that leaves its transaction open loses it, and nobody else does */
    assert_int_equal(db_run(p->writer, DB_PLAIN, begin_and_leave, c, &error), ERR_OK);
    assert_int_equal(p->commits, 1);
    assert_int_equal(number(p->reader, "SELECT COUNT(*) FROM meta"), 1);
    assert_int_equal(db_run(p->reader, DB_TRANSACTION, put_meta, c, &error), ERR_UNAVAILABLE);
}

struct gate {
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    bool is_open, is_entered;
    unsigned done, order[8];
};

static enum err wait_at_gate(struct store *s, void *arg, struct error *reterr)
{
    struct gate *g = arg;
    (void)s, (void)reterr;
    pthread_mutex_lock(&g->mutex);
    g->is_entered = true;
    pthread_cond_broadcast(&g->cond);
    while (!g->is_open)
        pthread_cond_wait(&g->cond, &g->mutex);
    pthread_mutex_unlock(&g->mutex);
    return ERR_OK;
}

struct numbered {
    struct gate *g;
    unsigned n;
};

static enum err note_order(struct store *s, void *arg, struct error *reterr)
{
    struct numbered *x = arg;
    (void)s, (void)reterr;
    x->g->order[x->g->done++] = x->n;
    return ERR_OK;
}

static void test_queue_is_bounded_and_in_order(void **state)
{
    struct place *p = *state;
    struct gate g = {.mutex = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER};
    struct numbered x[5] = {{&g, 0}, {&g, 1}, {&g, 2}, {&g, 3}, {&g, 4}};
    assert_int_equal(db_post(p->writer, DB_PLAIN, wait_at_gate, &g, NULL), ERR_OK);
    pthread_mutex_lock(&g.mutex);
    while (!g.is_entered)
        pthread_cond_wait(&g.cond, &g.mutex);
    pthread_mutex_unlock(&g.mutex);
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(db_post(p->writer, DB_PLAIN, note_order, &x[i], NULL), ERR_OK);
    assert_int_equal(db_post(p->writer, DB_PLAIN, note_order, &x[4], NULL), ERR_UNAVAILABLE);
    struct db_state st;
    db_state(p->writer, &st);
    assert_int_equal(st.queued, 4);
    assert_int_equal(st.refused, 1);
    pthread_mutex_lock(&g.mutex);
    g.is_open = true;
    pthread_cond_broadcast(&g.cond);
    pthread_mutex_unlock(&g.mutex);
    assert_int_equal(number(p->writer, "SELECT 1"), 1); /* behind them all */
    assert_int_equal(g.done, 4);
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(g.order[i], i);
}

static enum err touch_facts(struct store *s, void *arg, struct error *reterr)
{
    (void)arg;
    enum err err = outbox_put(s, S("c:cus_1"), true, reterr);
    if (!err)
        err = outbox_put(s, S("k:abc"), true, reterr);
    if (!err)
        err = outbox_put(s, S("c:cus_1"), true, reterr);
    if (!err)
        err = outbox_put_kind(s, 'k', S("abc"), false, reterr);
    if (!err)
        err = outbox_put_kind(s, 'k', S(""), true, reterr);
    return err;
}

static enum err get_epoch(struct store *s, void *arg, struct error *reterr)
{
    return outbox_epoch(s, arg, reterr);
}

static enum err forget_outbox(struct store *s, void *arg, struct error *reterr)
{
    (void)arg;
    return store_exec(s, NULL, reterr, "DELETE FROM outbox", "");
}

static void test_outbox(void **state)
{
    struct place *p = *state;
    uint64_t epoch = 7;
    assert_int_equal(db_run(p->reader, DB_TRANSACTION, get_epoch, &epoch, NULL), ERR_OK);
    assert_int_equal(epoch, 0);
    assert_int_equal(db_run(p->writer, DB_TRANSACTION, touch_facts, NULL, NULL), ERR_OK);
    assert_int_equal(number(p->reader, "SELECT COUNT(*) FROM outbox"), 4);
    assert_int_equal(number(p->reader, "SELECT epoch FROM fact_epochs WHERE fact='c:cus_1' AND is_gone=0"), 3);
    assert_int_equal(number(p->reader, "SELECT epoch FROM fact_epochs WHERE fact='k:abc' AND is_gone=1"), 4);
    assert_int_equal(number(p->reader, "SELECT COUNT(*) FROM fact_epochs"), 2);
    assert_int_equal(number(p->reader, "SELECT bucket FROM fact_epochs WHERE fact='k:abc'"), projection_bucket_of(S("k:abc")));
    /* an epoch is never given twice, also when old rows went */
    assert_int_equal(db_run(p->writer, DB_TRANSACTION, forget_outbox, NULL, NULL), ERR_OK);
    assert_int_equal(db_run(p->reader, DB_TRANSACTION, get_epoch, &epoch, NULL), ERR_OK);
    assert_int_equal(epoch, 4);
    assert_int_equal(db_run(p->writer, DB_TRANSACTION, touch_facts, NULL, NULL), ERR_OK);
    assert_int_equal(number(p->reader, "SELECT epoch FROM fact_epochs WHERE fact='k:abc'"), 8);
}

static enum err put_audit(struct store *s, void *arg, struct error *reterr)
{
    struct place *p = arg;
    const struct audit_record r = {.vendor_id = "ven_1", .actor = "token:x", .action = "a.b", .object = "o", .outcome = "ok"};
    return audit_put(s, p->ring, &r, reterr);
}

static enum err check_audit(struct store *s, void *arg, struct error *reterr)
{
    struct place *p = arg;
    int64_t n = 0;
    enum err err = audit_verify(s, p->ring, NULL, &n, reterr);
    return err ? err : n == 5 ? ERR_OK : ERR_INTERNAL;
}

static enum err run_sql(struct store *s, void *arg, struct error *reterr)
{
    return store_exec(s, NULL, reterr, arg, "");
}

static void test_audit_chain(void **state)
{
    struct place *p = *state;
    struct error error = {0};
    for (int i = 0; i < 5; i++)
        assert_int_equal(db_run(p->writer, DB_TRANSACTION, put_audit, p, &error), ERR_OK);
    assert_int_equal(db_run(p->reader, DB_TRANSACTION, check_audit, p, &error), ERR_OK);
    char change[] = "UPDATE audit SET object='p' WHERE seq=2", drop1[] = "DROP TRIGGER audit_no_update",
         drop2[] = "DROP TRIGGER audit_no_delete";
    char leave[] = "DELETE FROM audit WHERE seq=4", back[] = "UPDATE audit SET object='o' WHERE seq=2";
    char hash[] = "UPDATE audit SET prev_hash=hash WHERE seq=5";
    assert_int_not_equal(db_run(p->writer, DB_TRANSACTION, run_sql, change, &error), ERR_OK); /* append-only */
    assert_int_not_equal(db_run(p->writer, DB_TRANSACTION, run_sql, leave, &error), ERR_OK);
    assert_int_equal(db_run(p->writer, DB_TRANSACTION, run_sql, drop1, &error), ERR_OK);
    assert_int_equal(db_run(p->writer, DB_TRANSACTION, run_sql, drop2, &error), ERR_OK);
    assert_int_equal(db_run(p->writer, DB_TRANSACTION, run_sql, change, &error), ERR_OK);
    assert_int_equal(db_run(p->reader, DB_TRANSACTION, check_audit, p, &error), ERR_INVALID);
    assert_non_null(strstr(error.text, "record 2"));
    assert_int_equal(db_run(p->writer, DB_TRANSACTION, run_sql, back, &error), ERR_OK);
    assert_int_equal(db_run(p->reader, DB_TRANSACTION, check_audit, p, &error), ERR_OK);
    assert_int_equal(db_run(p->writer, DB_TRANSACTION, run_sql, leave, &error), ERR_OK);
    assert_int_equal(db_run(p->reader, DB_TRANSACTION, check_audit, p, &error), ERR_INVALID);
    assert_non_null(strstr(error.text, "record 4"));
    assert_int_equal(db_run(p->writer, DB_TRANSACTION, run_sql, hash, &error), ERR_OK);
    assert_int_equal(db_run(p->reader, DB_TRANSACTION, check_audit, p, &error), ERR_INVALID);
}

/* ---- the head and the export ---------------------------------------------------------------------------------------------- */

struct head_call {
    struct place *p;
    char path[128];
    struct audit_head *head;
    struct strbuf why;
    bool is_wrong;
    int64_t records;
    struct strbuf out;
};

static enum err open_head(struct store *s, void *arg, struct error *reterr)
{
    struct head_call *c = arg;
    audit_head_free(&c->head);
    sb_reset(&c->why);
    enum err err = audit_head_open(s, c->p->ring, c->path, &c->head, &c->is_wrong, &c->why, reterr);
    audit_head_write(c->head, s, c->p->ring);
    return err;
}

static enum err write_head(struct store *s, void *arg, struct error *reterr)
{
    struct head_call *c = arg;
    (void)reterr;
    audit_head_write(c->head, s, c->p->ring);
    return ERR_OK;
}

static enum err verify_head(struct store *s, void *arg, struct error *reterr)
{
    struct head_call *c = arg;
    return audit_verify(s, c->p->ring, c->path, &c->records, reterr);
}

static void test_the_newest_rows_are_missed(void **state)
{
    struct place *p = *state;
    struct head_call c = {.p = p};
    struct error error = {0};
    char drop[] = "DROP TRIGGER audit_no_delete", cut[] = "DELETE FROM audit WHERE seq>3";
    snprintf(c.path, sizeof c.path, "%s/audit.head", p->dir);
    assert_int_equal(db_run(p->writer, DB_TRANSACTION, open_head, &c, &error), ERR_OK);
    assert_false(c.is_wrong);
    for (int i = 0; i < 5; i++) {
        assert_int_equal(db_run(p->writer, DB_TRANSACTION, put_audit, p, &error), ERR_OK);
        if (i == 3) /* it may lag, as after a crash between commit and write */
            assert_int_equal(db_run(p->writer, DB_PLAIN, write_head, &c, &error), ERR_OK);
        assert_int_equal(db_run(p->reader, DB_PLAIN, verify_head, &c, &error), ERR_OK);
        assert_int_equal(c.records, i + 1);
    }
    assert_int_equal(db_run(p->writer, DB_TRANSACTION, run_sql, drop, &error), ERR_OK);
    assert_int_equal(db_run(p->writer, DB_TRANSACTION, run_sql, cut, &error), ERR_OK);
    assert_int_equal(db_run(p->reader, DB_PLAIN, verify_head, &c, &error), ERR_INVALID);
    assert_non_null(strstr(error.text, "3 of 4"));
    assert_int_equal(db_run(p->reader, DB_TRANSACTION, check_audit, p, &error), ERR_INTERNAL); /* the chain alone sees nothing */
    /* Other rows in their place: as many, but not those. */
    assert_int_equal(db_run(p->writer, DB_TRANSACTION, put_audit, p, &error), ERR_OK);
    assert_int_equal(db_run(p->reader, DB_PLAIN, verify_head, &c, &error), ERR_INVALID);
    assert_int_equal(db_run(p->writer, DB_TRANSACTION, open_head, &c, &error), ERR_OK); /* a start finds it too */
    assert_true(c.is_wrong);
    assert_int_equal(db_run(p->reader, DB_PLAIN, verify_head, &c, &error), ERR_OK);

    assert_int_equal(truncate(c.path, 70), 0);
    assert_int_equal(db_run(p->reader, DB_PLAIN, verify_head, &c, &error), ERR_INVALID);
    assert_int_equal(db_run(p->writer, DB_TRANSACTION, open_head, &c, &error), ERR_OK);
    assert_true(c.is_wrong);
    assert_int_equal(unlink(c.path), 0);
    assert_int_equal(db_run(p->reader, DB_PLAIN, verify_head, &c, &error), ERR_INVALID);
    assert_int_equal(db_run(p->writer, DB_TRANSACTION, open_head, &c, &error), ERR_OK);
    assert_true(c.is_wrong);
    assert_int_equal(db_run(p->writer, DB_TRANSACTION, open_head, &c, &error), ERR_OK);
    assert_false(c.is_wrong);
    audit_head_free(&c.head);
    sb_free(&c.why);
}

static enum err put_mixed(struct store *s, void *arg, struct error *reterr)
{
    struct place *p = arg;
    enum err err = ERR_OK;
    for (int i = 0; !err && i < 12; i++) {
        char object[16];
        snprintf(object, sizeof object, "o\"%d", i);
        const struct audit_record r = {.vendor_id = i % 3 ? "ven_1" : "ven_2", .actor = "user:x", .actor_name = "a@b.example", .action = "a.b",
                                       .object = object, .outcome = "ok"};
        err = audit_put(s, p->ring, &r, reterr);
    }
    return err;
}

static enum err export_vendor(struct store *s, void *arg, struct error *reterr)
{
    struct head_call *c = arg;
    int64_t last = 0;
    struct audit_range range = {.vendor_id = c->records ? "ven_1" : NULL, .to_ms = INT64_MAX, .limit = 3};
    enum err err;
    do { /* pages */
        err = audit_export(s, &range, &c->out, &last, reterr);
        range.after_seq = last;
    } while (!err && last);
    return err;
}

/* skip: the line that is left out; change: the line whose object is another. */
static enum err read_export(struct place *p, struct str text, int skip, int change, int64_t *ret_records)
{
    struct audit_reader r = {.keys = p->ring};
    struct error error = {0};
    struct str line;
    enum err err = ERR_OK;
    for (int i = 0; !err && text.n && str_next(&text, '\n', &line); i++) {
        char *copy = str_dup(line);
        char *at = strstr(copy, "o\\\"");
        if (i == change && at)
            *at = 'p';
        if (i != skip && line.n)
            err = audit_read(&r, str_c(copy), &error);
        mem_free(copy);
    }
    *ret_records = r.records;
    return err;
}

static void test_an_export_is_checked_alone(void **state)
{
    struct place *p = *state;
    struct error error = {0};
    int64_t n = 0;
    assert_int_equal(db_run(p->writer, DB_TRANSACTION, put_mixed, p, &error), ERR_OK);
    for (int vendor = 0; vendor < 2; vendor++) {
        struct head_call c = {.p = p, .records = vendor};
        int lines = vendor ? 8 : 12;
        assert_int_equal(db_run(p->reader, DB_TRANSACTION, export_vendor, &c, &error), ERR_OK);
        assert_int_equal(read_export(p, sb_str(&c.out), -1, -1, &n), ERR_OK);
        assert_int_equal(n, lines);
        for (int i = 0; i < lines; i++)
            assert_int_equal(read_export(p, sb_str(&c.out), -1, i, &n), ERR_INVALID);
        for (int i = 1; i < lines - 1; i++) /* the first and the last are the range's own bounds */
            assert_int_equal(read_export(p, sb_str(&c.out), i, -1, &n), ERR_INVALID);
        sb_free(&c.out);
    }
}

static enum err job_unavailable(struct store *s, void *arg, struct error *reterr)
{
    (void)s, (void)arg;
    return error_set(reterr, ERR_UNAVAILABLE, "something else is not there");
}

static enum err job_writes(struct store *s, void *arg, struct error *reterr)
{
    (void)arg;
    return store_exec(s, NULL, reterr, "INSERT INTO meta (key, value) VALUES ('x', '1') ON CONFLICT (key) DO UPDATE SET value=value+1", "");
}

static enum err job_reads(struct store *s, void *arg, struct error *reterr)
{
    (void)s, (void)arg, (void)reterr;
    return ERR_OK;
}

static bool failing_after(struct db *db, unsigned ms, bool until)
{
    struct db_state st;
    uint64_t end = clock_mono_ms() + ms;
    do {
        db_state(db, &st);
        if (st.is_failing == until)
            break;
        usleep(10000);
    } while (clock_mono_ms() < end);
    return st.is_failing;
}

/* A full disk: jobs that write nothing go on, and are no sign that it has room again. */
static void test_a_failing_writer_is_well_when_it_can_write(void **state)
{
    struct place *p = *state;
    struct rlimit was, tight;
    struct error error;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &was), 0);
    tight = was;
    tight.rlim_cur = 4096; /* a frame of the write-ahead log is more */
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &tight), 0);
    enum err refused = db_run(p->writer, DB_TRANSACTION, job_writes, NULL, &error);
    enum err read = db_run(p->writer, DB_TRANSACTION, job_reads, NULL, &error);
    bool is_failing = failing_after(p->writer, 3 * PROBE_MS, false);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &was), 0);
    signal(SIGXFSZ, handler);
    assert_int_equal(refused, ERR_UNAVAILABLE);
    assert_int_equal(read, ERR_OK);
    assert_true(is_failing);
    assert_false(failing_after(p->writer, 60000, false)); /* by itself: who asks it nothing while it is not ready need not */

    assert_int_equal(db_run(p->reader, DB_TRANSACTION, job_writes, NULL, &error), ERR_UNAVAILABLE);
    assert_true(failing_after(p->reader, 0, true));
    assert_int_equal(db_run(p->reader, DB_TRANSACTION, job_reads, NULL, &error), ERR_OK);
    assert_false(failing_after(p->reader, 0, false));

    assert_int_equal(db_run(p->writer, DB_TRANSACTION, job_unavailable, NULL, &error), ERR_UNAVAILABLE);
    assert_false(failing_after(p->writer, 0, false)); /* not of the store */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_transactions, setup, teardown),
        cmocka_unit_test_setup_teardown(test_queue_is_bounded_and_in_order, setup, teardown),
        cmocka_unit_test_setup_teardown(test_outbox, setup, teardown),
        cmocka_unit_test_setup_teardown(test_audit_chain, setup, teardown),
        cmocka_unit_test_setup_teardown(test_the_newest_rows_are_missed, setup, teardown),
        cmocka_unit_test_setup_teardown(test_an_export_is_checked_alone, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_failing_writer_is_well_when_it_can_write, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
