/* SQL over SQLite. The only file that includes sqlite3.h. It knows connections, statements and migrations, and no table.
 *
 * Journal mode: WAL. Debian 12 has SQLite 3.40.1, whose WAL can be corrupted when two connections checkpoint at once (FACTS S1,
 * fixed in 3.51.3). That needs a second checkpointing connection, and here is none: an exclusive lock file keeps every other
 * writing process away, one connection of this process writes and checkpoints (after a commit), every other one is opened
 * read-only with wal_autocheckpoint=0 and NO_CKPT_ON_CLOSE, and a read-only connection cannot checkpoint at all. The other choice, a
 * rollback journal, was left: there each commit waits for running readers and each reader for the commit, and the projector reads
 * while the API writes. synchronous=FULL syncs the WAL at every commit, so that an acknowledged write survives power loss. */
#include "pullgate/store.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <sqlite3.h>

#include "pullgate/clock.h"
#include "pullgate/file.h"
#include "pullgate/log.h"
#include "pullgate/mem.h"
#include "pullgate/seal.h"

#define STORE_BUSY_CLOSE_MS    500  /* for readers that are about to end too */
#define STORE_BUSY_MS          5000 /* how long a statement waits for a lock: readers against a checkpoint's restart */
#define STORE_STATEMENTS_MAX   256  /* prepared statements kept; lists with filters make many texts */
#define STORE_CHECKPOINT_PAGES 1000
#define STORE_CACHE_KIB        "32768" /* pages a connection keeps at most; a store of a million licenses has gigabytes */
#define STORE_WAL_BYTES_MAX    (64 * 1024 * 1024) /* the WAL file is cut to this after a checkpoint */
/* A checkpoint beside readers copies, but the log begins anew only when none of them is in it: with somebody always reading it would grow for
 * ever, and every reader looks through all of it. From so many pages on the writer waits for those who are in it, so long at most; where one
 * stays longer, it tries again when the log has grown by a part of that. */
#define STORE_WAL_PAGES        16384
#define STORE_WAL_AGAIN_PAGES  4096
#define STORE_WAL_WAIT_MS      500
#define STORE_WAL_LOOK_US      500

struct store_stmt {
    struct store *store;
    sqlite3_stmt *st;
    uint64_t hash;
    uint64_t used; /* of store->clock, for eviction */
    bool busy, cached;
};

struct store {
    sqlite3 *db;
    int lock_fd;
    bool is_good; /* the writing one, after its checks */
    bool read_only, in_tx;
    bool has_failed; /* since store_has_failed() */
    int wal_wait_at; /* pages in the log from which on the writer waits for its readers */
    uint64_t clock;
    struct store_stmt *cache[STORE_STATEMENTS_MAX];
    size_t n_cache;
};

/* ---- errors ---------------------------------------------------------------------------------------------------------- */

static enum err store_error(struct store *s, int rc, struct error *reterr)
{
    const char *why = s && s->db ? sqlite3_errmsg(s->db) : sqlite3_errstr(rc);
    switch (rc & 0xff) {
    case SQLITE_CONSTRAINT: {
        /* "UNIQUE constraint failed: customers.vendor_id, customers.slug": the last column is the one a person chose. */
        const char *dot = strrchr(why, '.');
        bool by_column = rc == SQLITE_CONSTRAINT_UNIQUE || rc == SQLITE_CONSTRAINT_PRIMARYKEY;
        return error_set_field(reterr, ERR_CONFLICT, by_column && dot ? dot + 1 : "", "%s", why);
    }
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB: {
        static unsigned long long last;
        log_limited(&last, 10000, LOG_LEVEL_ERROR, "store: the file has lost its integrity: %s", why);
        if (s)
            s->has_failed = true;
        return error_set(reterr, ERR_UNAVAILABLE, "store: the file has lost its integrity: %s", why);
    }
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
    case SQLITE_FULL:
    case SQLITE_IOERR:
    case SQLITE_CANTOPEN:
    case SQLITE_READONLY:
    case SQLITE_PROTOCOL:
    case SQLITE_NOMEM:
    case SQLITE_NOLFS:
    case SQLITE_PERM:
    case SQLITE_AUTH:
    case SQLITE_SCHEMA:
    case SQLITE_INTERRUPT: {
        static unsigned long long last;
        log_limited(&last, 1000, LOG_LEVEL_ERROR, "store: %s (%s)", why, sqlite3_errstr(rc));
        if (s)
            s->has_failed = true;
        return error_set(reterr, ERR_UNAVAILABLE, "store: %s", why);
    }
    default:
        log_error("store: %s (%d)", why, rc);
        return error_set(reterr, ERR_INTERNAL, "store: %s", why);
    }
}

bool store_has_failed(struct store *s)
{
    bool has_failed = s->has_failed;
    s->has_failed = false;
    return has_failed;
}

/* ---- open and close -------------------------------------------------------------------------------------------------- */

static enum err store_lock(struct store *s, const char *path, struct error *reterr)
{
    struct strbuf name = {0};
    sb_addf(&name, "%s.lock", path);
    int fd = open(name.p, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) {
        int e = errno;
        enum err err = error_set_field(reterr, ERR_UNAVAILABLE, "store.url", "store: %s: %s", name.p, strerror(e));
        sb_free(&name);
        return err;
    }
    if (flock(fd, LOCK_EX | LOCK_NB)) {
        int e = errno;
        close(fd);
        sb_free(&name);
        if (e == EWOULDBLOCK)
            return error_set_field(reterr, ERR_CONFLICT, "store.url", "store: %s is in use by another process", path);
        return error_set(reterr, ERR_UNAVAILABLE, "store: cannot lock %s: %s", path, strerror(e));
    }
    sb_free(&name);
    s->lock_fd = fd;
    return ERR_OK;
}

/* The lock file outlives the process, and remembers whether there was a store beside it. */
static const char MADE[] = "there is a store beside this file\n";

static bool store_was_made(const struct store *s)
{
    struct stat st;
    return fstat(s->lock_fd, &st) == 0 && st.st_size > 0;
}

static void store_mark_made(struct store *s)
{
    if (s->lock_fd >= 0 && !store_was_made(s) && pwrite(s->lock_fd, MADE, sizeof MADE - 1, 0) < 0)
        log_warn("store: the lock file cannot be written: %s", strerror(errno));
}

static enum err store_pragma(struct store *s, const char *sql, struct error *reterr)
{
    int rc = sqlite3_exec(s->db, sql, NULL, NULL, NULL);
    return rc == SQLITE_OK ? ERR_OK : store_error(s, rc, reterr);
}

/* SQLite's own waiting looks ever more seldom, and readers that take turns leave short gaps. */
static int on_wal_busy(void *ctx, int looks)
{
    (void)ctx;
    usleep(STORE_WAL_LOOK_US);
    return looks < STORE_WAL_WAIT_MS * 1000 / STORE_WAL_LOOK_US;
}

/* After each commit of the writer, with the pages that are in the log. What fails is tried again after a later one. */
static int on_wal(void *ctx, sqlite3 *db, const char *schema, int pages)
{
    struct store *s = ctx;
    if (pages < STORE_CHECKPOINT_PAGES)
        return SQLITE_OK;
    if (pages < s->wal_wait_at) {
        (void)sqlite3_wal_checkpoint_v2(db, schema, SQLITE_CHECKPOINT_PASSIVE, NULL, NULL);
        return SQLITE_OK;
    }
    (void)sqlite3_busy_handler(db, on_wal_busy, NULL);
    int rc = sqlite3_wal_checkpoint_v2(db, schema, SQLITE_CHECKPOINT_RESTART, NULL, NULL);
    (void)sqlite3_busy_timeout(db, STORE_BUSY_MS);
    s->wal_wait_at = rc == SQLITE_OK || pages > INT_MAX - STORE_WAL_AGAIN_PAGES ? STORE_WAL_PAGES : pages + STORE_WAL_AGAIN_PAGES;
    return SQLITE_OK;
}

static enum err store_configure(struct store *s, struct error *reterr)
{
    sqlite3_extended_result_codes(s->db, 1);
    sqlite3_busy_timeout(s->db, STORE_BUSY_MS);
    int rc = sqlite3_db_config(s->db, SQLITE_DBCONFIG_DEFENSIVE, 1, NULL);
    if (rc == SQLITE_OK && s->read_only)
        rc = sqlite3_db_config(s->db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);
    if (rc != SQLITE_OK)
        return store_error(s, rc, reterr);

    enum err err =
        store_pragma(s, "PRAGMA foreign_keys=ON; PRAGMA trusted_schema=OFF; PRAGMA cell_size_check=ON; PRAGMA temp_store=MEMORY;"
                        " PRAGMA cache_size=-" STORE_CACHE_KIB, reterr);
    if (err)
        return err;
    if (s->read_only)
        return store_pragma(s, "PRAGMA query_only=ON; PRAGMA wal_autocheckpoint=0", reterr);

    struct strbuf sql = {0};
    sb_addf(&sql, "PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint=0; PRAGMA journal_size_limit=%d", STORE_WAL_BYTES_MAX);
    err = store_pragma(s, sql.p, reterr);
    sb_free(&sql);
    if (err)
        return err;
    s->wal_wait_at = STORE_WAL_PAGES;
    (void)sqlite3_wal_hook(s->db, on_wal, s);

    struct store_stmt *st;
    bool row;
    err = store_query(s, &st, reterr, "PRAGMA journal_mode=WAL", "");
    if (err)
        return err;
    err = store_step(st, &row, reterr);
    if (!err && (!row || !str_eq(store_col_str(st, 0), S("wal"))))
        err = error_set(reterr, ERR_UNAVAILABLE, "store: the file system cannot hold a write-ahead log (journal_mode=WAL was refused)");
    store_done(&st);
    return err;
}

/* The path of sqlite:///abs/path; NULL for anything else. */
static const char *store_path(const char *url)
{
    static const char prefix[] = "sqlite://";
    if (!url || strncmp(url, prefix, sizeof prefix - 1) != 0)
        return NULL;
    const char *path = url + sizeof prefix - 1;
    return path[0] == '/' && path[1] ? path : NULL;
}

enum err store_open(const char *url, bool read_only, struct store **ret, struct error *reterr)
{
    const char *path = store_path(url);
    if (!path)
        return error_set_field(reterr, ERR_INVALID, "store.url", "store.url: expected sqlite:///absolute/path, got \"%s\"", url ? url : "");

    struct store *s = NEW(struct store);
    s->lock_fd = -1;
    s->read_only = read_only;
    enum err err = ERR_OK;
    if (!read_only) {
        err = store_lock(s, path, reterr);
        if (err)
            goto fail;
        /* SQLite would make the file readable for everybody; its -wal and -shm get the mode of the file. */
        bool was_made = store_was_made(s);
        int fd = open(path, O_RDWR | (was_made ? 0 : O_CREAT) | O_CLOEXEC, 0600);
        struct stat st = {.st_size = 1};
        if (was_made && ((fd < 0 && errno == ENOENT) || (fd >= 0 && fstat(fd, &st) == 0 && st.st_size == 0))) {
            /* An empty one in its place would take every customer's rights away. */
            err = error_set_field(reterr, ERR_UNAVAILABLE, "store.url",
                                  "store: %s is %s: restore a backup, or, to begin anew with an empty store, remove it and %s.lock as well", path,
                                  fd < 0 ? "gone" : "empty", path);
            if (fd >= 0)
                close(fd);
            goto fail;
        }
        if (fd < 0) {
            err = error_set_field(reterr, ERR_UNAVAILABLE, "store.url", "store: %s: %s", path, strerror(errno));
            goto fail;
        }
        close(fd);
    }

    int flags = SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_PRIVATECACHE | (read_only ? SQLITE_OPEN_READONLY : SQLITE_OPEN_READWRITE);
    int rc = sqlite3_open_v2(path, &s->db, flags, NULL);
    if (rc != SQLITE_OK) {
        err = store_error(s, rc, reterr);
        goto fail;
    }
    err = store_configure(s, reterr);
    if (err)
        goto fail;
    *ret = s;
    return ERR_OK;

fail:
    store_close(&s);
    return err;
}

void store_close(struct store **ps)
{
    struct store *s = *ps;
    if (!s)
        return;
    *ps = NULL;
    if (s->in_tx)
        store_rollback(s);
    for (size_t i = 0; i < s->n_cache; i++) {
        sqlite3_finalize(s->cache[i]->st);
        mem_free(s->cache[i]);
    }
    if (s->is_good && sqlite3_busy_timeout(s->db, STORE_BUSY_CLOSE_MS) == SQLITE_OK) /* all of it in one file, for who copies that */
        (void)sqlite3_wal_checkpoint_v2(s->db, NULL, SQLITE_CHECKPOINT_TRUNCATE, NULL, NULL);
    if (s->db && sqlite3_close(s->db) != SQLITE_OK)
        log_error("store: closed with statements in use: %s", sqlite3_errmsg(s->db));
    if (s->lock_fd >= 0)
        close(s->lock_fd);
    mem_free(s);
}

/* ---- statements ------------------------------------------------------------------------------------------------------ */

static struct store_stmt *store_cached(struct store *s, uint64_t hash, const char *sql)
{
    for (size_t i = 0; i < s->n_cache; i++) {
        struct store_stmt *c = s->cache[i];
        if (c->hash == hash && !c->busy && strcmp(sqlite3_sql(c->st), sql) == 0)
            return c;
    }
    return NULL;
}

/* Room for one more kept statement: the least recently used idle one goes. False when all are busy. */
static bool store_make_room(struct store *s)
{
    if (s->n_cache < STORE_STATEMENTS_MAX)
        return true;
    size_t oldest = STORE_STATEMENTS_MAX;
    for (size_t i = 0; i < s->n_cache; i++)
        if (!s->cache[i]->busy && (oldest == STORE_STATEMENTS_MAX || s->cache[i]->used < s->cache[oldest]->used))
            oldest = i;
    if (oldest == STORE_STATEMENTS_MAX)
        return false;
    sqlite3_finalize(s->cache[oldest]->st);
    mem_free(s->cache[oldest]);
    s->cache[oldest] = s->cache[--s->n_cache];
    return true;
}

static enum err store_prepare(struct store *s, const char *sql, struct store_stmt **ret, struct error *reterr)
{
    uint64_t hash = str_hash(str_c(sql));
    struct store_stmt *c = store_cached(s, hash, sql);
    if (!c) {
        sqlite3_stmt *st;
        int rc = sqlite3_prepare_v3(s->db, sql, -1, SQLITE_PREPARE_PERSISTENT, &st, NULL);
        if (rc != SQLITE_OK)
            return store_error(s, rc, reterr);
        c = NEW(struct store_stmt);
        *c = (struct store_stmt){.store = s, .st = st, .hash = hash, .cached = store_make_room(s)};
        if (c->cached)
            s->cache[s->n_cache++] = c;
    }
    c->busy = true;
    c->used = ++s->clock;
    *ret = c;
    return ERR_OK;
}

static int store_bind(sqlite3_stmt *st, const char *fmt, va_list ap)
{
    int rc = SQLITE_OK;
    int i = 1;
    for (const char *f = fmt; *f && rc == SQLITE_OK; f++, i++) {
        switch (*f) {
        case 'i':
            rc = sqlite3_bind_int64(st, i, va_arg(ap, int64_t));
            break;
        case 't': {
            int64_t t = va_arg(ap, int64_t);
            rc = t ? sqlite3_bind_int64(st, i, t) : sqlite3_bind_null(st, i);
            break;
        }
        case 'b':
            rc = sqlite3_bind_int(st, i, va_arg(ap, int) ? 1 : 0);
            break;
        case 's': {
            struct str v = va_arg(ap, struct str);
            rc = v.p ? sqlite3_bind_text64(st, i, v.p, v.n, SQLITE_TRANSIENT, SQLITE_UTF8) : sqlite3_bind_null(st, i);
            break;
        }
        case 'z': {
            const char *z = va_arg(ap, const char *);
            rc = z ? sqlite3_bind_text(st, i, z, -1, SQLITE_TRANSIENT) : sqlite3_bind_null(st, i);
            break;
        }
        default:
            WRONG("store: unknown format character");
        }
    }
    AN(rc != SQLITE_OK || i - 1 == sqlite3_bind_parameter_count(st));
    return rc;
}

static enum err store_vquery(struct store *s, struct store_stmt **ret, struct error *reterr, const char *sql, const char *fmt, va_list ap)
{
    struct store_stmt *c;
    enum err err = store_prepare(s, sql, &c, reterr);
    if (err)
        return err;
    int rc = store_bind(c->st, fmt, ap);
    if (rc != SQLITE_OK) {
        err = store_error(s, rc, reterr);
        store_done(&c);
        return err;
    }
    *ret = c;
    return ERR_OK;
}

enum err store_query(struct store *s, struct store_stmt **ret, struct error *reterr, const char *sql, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    *ret = NULL; /* so that store_done() after a failure is harmless */
    enum err err = store_vquery(s, ret, reterr, sql, fmt, ap);
    va_end(ap);
    return err;
}

enum err store_query_values(struct store *s, struct store_stmt **ret, struct error *reterr, const char *sql, const struct store_value *v,
                            size_t n)
{
    struct store_stmt *c;
    *ret = NULL;
    enum err err = store_prepare(s, sql, &c, reterr);
    if (err)
        return err;
    AN(n == (size_t)sqlite3_bind_parameter_count(c->st));
    int rc = SQLITE_OK;
    for (size_t i = 0; i < n && rc == SQLITE_OK; i++)
        rc = v[i].s.p ? sqlite3_bind_text64(c->st, (int)i + 1, v[i].s.p, v[i].s.n, SQLITE_TRANSIENT, SQLITE_UTF8)
                      : sqlite3_bind_int64(c->st, (int)i + 1, v[i].i);
    if (rc != SQLITE_OK) {
        err = store_error(s, rc, reterr);
        store_done(&c);
        return err;
    }
    *ret = c;
    return ERR_OK;
}

enum err store_step(struct store_stmt *c, bool *has_row, struct error *reterr)
{
    int rc = sqlite3_step(c->st);
    if (rc == SQLITE_ROW || rc == SQLITE_DONE) {
        *has_row = rc == SQLITE_ROW;
        return ERR_OK;
    }
    return store_error(c->store, rc, reterr);
}

void store_done(struct store_stmt **pc)
{
    struct store_stmt *c = *pc;
    if (!c)
        return;
    *pc = NULL;
    if (!c->cached) {
        sqlite3_finalize(c->st);
        mem_free(c);
        return;
    }
    sqlite3_reset(c->st);          /* repeats the step's error, which was reported then */
    sqlite3_clear_bindings(c->st); /* no secret's hash, no pointer stays behind */
    c->busy = false;
}

int64_t store_col_int(const struct store_stmt *c, int col)
{
    return sqlite3_column_int64(c->st, col);
}

struct str store_col_str(const struct store_stmt *c, int col)
{
    const char *p = (const char *)sqlite3_column_text(c->st, col);
    if (!p)
        return (struct str){NULL, 0};
    return (struct str){p, (size_t)sqlite3_column_bytes(c->st, col)};
}

bool store_col_null(const struct store_stmt *c, int col)
{
    return sqlite3_column_type(c->st, col) == SQLITE_NULL;
}

enum err store_exec(struct store *s, int64_t *ret_changes, struct error *reterr, const char *sql, const char *fmt, ...)
{
    struct store_stmt *c = NULL;
    va_list ap;
    va_start(ap, fmt);
    enum err err = store_vquery(s, &c, reterr, sql, fmt, ap);
    va_end(ap);
    if (err)
        return err;
    bool row = true;
    while (!err && row)
        err = store_step(c, &row, reterr);
    store_done(&c);
    if (!err && ret_changes)
        *ret_changes = sqlite3_changes64(s->db);
    return err;
}

int64_t store_last_rowid(const struct store *s)
{
    return sqlite3_last_insert_rowid(s->db);
}

/* ---- transactions ---------------------------------------------------------------------------------------------------- */

enum err store_begin(struct store *s, struct error *reterr)
{
    AN(!s->in_tx);
    enum err err = store_exec(s, NULL, reterr, s->read_only ? "BEGIN" : "BEGIN IMMEDIATE", "");
    if (!err)
        s->in_tx = true;
    return err;
}

enum err store_commit(struct store *s, struct error *reterr)
{
    AN(s->in_tx);
    enum err err = store_exec(s, NULL, reterr, "COMMIT", "");
    if (!err)
        s->in_tx = false;
    return err;
}

void store_rollback(struct store *s)
{
    if (!s->in_tx)
        return;
    s->in_tx = false;
    /* Some failures (disk full, I/O) have rolled back already. */
    if (sqlite3_get_autocommit(s->db))
        return;
    struct error error;
    if (store_exec(s, NULL, &error, "ROLLBACK", ""))
        log_error("store: rollback failed: %s", error.text);
}

/* ---- migrations ------------------------------------------------------------------------------------------------------ */

static void store_checksum(const char *sql, struct strbuf *ret)
{
    uint8_t sum[32];
    seal_sha256(str_c(sql), sum);
    sb_reset(ret);
    sb_add_hex(ret, sum, sizeof sum);
}

static enum err store_migrate_one(struct store *s, const struct store_migration *m, struct str sum, struct error *reterr)
{
    enum err err = store_begin(s, reterr);
    if (err)
        return err;
    int rc = sqlite3_exec(s->db, m->sql, NULL, NULL, NULL);
    if (rc != SQLITE_OK) {
        err = store_error(s, rc, reterr);
        goto fail;
    }
    err = store_exec(s, NULL, reterr, "INSERT INTO schema_migrations (version, checksum, applied_at) VALUES (?,?,?)", "isi",
                     (int64_t)m->version, sum, clock_now_s());
    if (err)
        goto fail;
    err = store_commit(s, reterr);
    if (err)
        goto fail;
    log_info("store: migration %d applied", m->version);
    return ERR_OK;

fail:
    store_rollback(s);
    return err;
}

/* A file without tables where a store was: its -wal, in which everything may stand, was not put beside it. */
static enum err store_check_tables(struct store *s, struct error *reterr)
{
    struct store_stmt *st = NULL;
    bool row = false;
    enum err err = store_query(s, &st, reterr, "SELECT count(*) FROM sqlite_master", "");
    if (!err)
        err = store_step(st, &row, reterr);
    if (!err && (!row || store_col_int(st, 0) == 0))
        err = error_set_field(reterr, ERR_UNAVAILABLE, "store.url",
                              "store: the file holds nothing: restore a backup; of a copied store its -wal file is a part");
    store_done(&st);
    return err;
}

enum err store_migrate(struct store *s, const struct store_migration *m, size_t n, struct error *reterr)
{
    enum err err = s->lock_fd >= 0 && store_was_made(s) ? store_check_tables(s, reterr) : ERR_OK;
    if (err)
        return err;
    err = store_exec(
        s, NULL, reterr,
        "CREATE TABLE IF NOT EXISTS schema_migrations (version INTEGER PRIMARY KEY, checksum TEXT NOT NULL, applied_at INTEGER NOT NULL)",
        "");
    if (err)
        return err;

    struct store_stmt *st = NULL;
    struct strbuf sum = {0};
    size_t applied = 0; /* how many of m the file has */
    bool row;
    err = store_query(s, &st, reterr, "SELECT version, checksum FROM schema_migrations ORDER BY version", "");
    while (!err) {
        err = store_step(st, &row, reterr);
        if (err || !row)
            break;
        int64_t version = store_col_int(st, 0);
        if (applied == n || m[applied].version != version) {
            err = error_set(reterr, ERR_INVALID,
                            "store: the file has migration %lld, which this program does not know: it was written by a newer one",
                            (long long)version);
            break;
        }
        store_checksum(m[applied].sql, &sum);
        if (!str_eq(sb_str(&sum), store_col_str(st, 1)))
            err = error_set(reterr, ERR_INVALID, "store: migration %lld of the file is not the one of this program", (long long)version);
        applied++;
    }
    store_done(&st);

    for (size_t i = applied; !err && i < n; i++) {
        store_checksum(m[i].sql, &sum);
        err = store_migrate_one(s, &m[i], sb_str(&sum), reterr);
    }
    sb_free(&sum);
    if (!err) {
        store_mark_made(s);
        s->is_good = s->lock_fd >= 0;
    }
    return err;
}

enum err store_check(struct store *s, struct error *reterr)
{
    struct store_stmt *st = NULL;
    bool row = false;
    enum err err = store_query(s, &st, reterr, "PRAGMA quick_check(1)", "");
    if (!err)
        err = store_step(st, &row, reterr);
    if (!err && (!row || !str_eq(store_col_str(st, 0), S("ok"))))
        err = error_set(reterr, ERR_UNAVAILABLE, "store: the file has lost its integrity: %.*s; restore a backup",
                        STR(str_sub(store_col_str(st, 0), 0, 200)));
    store_done(&st);
    if (err) /* what may be saved is not written to when it is closed */
        (void)sqlite3_db_config(s->db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);
    return err;
}

/* ---- backup ---------------------------------------------------------------------------------------------------------- */

enum err store_backup(struct store *s, const char *path, struct error *reterr)
{
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return error_set(reterr, errno == EEXIST ? ERR_CONFLICT : ERR_UNAVAILABLE, "backup: %s: %s", path, strerror(errno));
    enum err err = ERR_OK;
    sqlite3 *to = NULL;
    int rc = sqlite3_open_v2(path, &to, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX, NULL);
    if (rc == SQLITE_OK) {
        sqlite3_backup *b = sqlite3_backup_init(to, "main", s->db, "main");
        if (b) {
            int step = sqlite3_backup_step(b, -1);
            rc = sqlite3_backup_finish(b); /* knows nothing of a step that found the file busy */
            if (rc == SQLITE_OK && step != SQLITE_DONE)
                rc = step;
        } else {
            rc = sqlite3_errcode(to);
        }
    }
    if (rc != SQLITE_OK)
        err = error_set(reterr, ERR_UNAVAILABLE, "backup: %s: %s", path, sqlite3_errstr(rc));
    sqlite3_close(to);
    if (!err && fsync(fd))
        err = error_set(reterr, ERR_UNAVAILABLE, "backup: %s: %s", path, strerror(errno));
    close(fd);
    if (err)
        unlink(path);
    return err;
}

/* ---- restore ---------------------------------------------------------------------------------------------------------- */

const char *store_file(const char *url)
{
    return store_path(url);
}

struct store_claim {
    struct store lock; /* its lock alone */
    char *path;
};

enum err store_claim(const char *url, struct store_claim **ret, struct error *reterr)
{
    const char *path = store_path(url);
    if (!path)
        return error_set_field(reterr, ERR_INVALID, "store.url", "store.url: expected sqlite:///absolute/path, got \"%s\"", url ? url : "");
    struct store_claim *c = NEW(struct store_claim);
    c->lock.lock_fd = -1;
    enum err err = store_lock(&c->lock, path, reterr);
    if (err) {
        mem_free(c);
        return err;
    }
    c->path = mem_strdup(path);
    *ret = c;
    return ERR_OK;
}

static enum err directory_sync(const char *path, struct error *reterr)
{
    return file_sync_directory(path) ? ERR_OK : error_set(reterr, ERR_UNAVAILABLE, "restore: the directory of %s: %s", path, strerror(errno));
}

/* The store first: its log alone would be replayed into the next one, and without it nothing is there to be opened. */
static const char *const TAILS[] = {"", "-wal", "-shm"};
#define N_TAILS (sizeof TAILS / sizeof *TAILS)

static bool tail_rename(const char *from, const char *to, const char *tail)
{
    struct strbuf a = {0}, b = {0};
    sb_addf(&a, "%s%s", from, tail);
    sb_addf(&b, "%s%s", to, tail);
    bool good = rename(a.p, b.p) == 0;
    sb_free(&a);
    sb_free(&b);
    return good;
}

/* What of it is there. */
static enum err move_aside(const char *path, const char *aside, bool ret_moved[N_TAILS], struct error *reterr)
{
    for (size_t i = 0; i < N_TAILS; i++) {
        ret_moved[i] = tail_rename(path, aside, TAILS[i]);
        if (!ret_moved[i] && errno != ENOENT)
            return error_set(reterr, ERR_UNAVAILABLE, "restore: %s%s: %s", path, TAILS[i], strerror(errno));
    }
    return ERR_OK;
}

/* The other way round: a store without its log is older than it was. */
static void move_back(const char *path, const char *aside, const bool moved[N_TAILS])
{
    for (size_t i = N_TAILS; i-- > 0;)
        if (moved[i] && !tail_rename(aside, path, TAILS[i])) {
            log_error("restore: the store that was there is %s: it cannot be put back: %s", aside, strerror(errno));
            return;
        }
}

enum err store_claim_replace(struct store_claim *c, const char *fresh, struct strbuf *ret_aside, struct error *reterr)
{
    struct strbuf aside = {0};
    struct stat st;
    bool moved[N_TAILS] = {false};
    char now[CLOCK_RFC3339_MAX];

    sb_addf(&aside, "%s.replaced-%s", c->path, clock_rfc3339(clock_now_s(), now));
    for (unsigned n = 2; lstat(aside.p, &st) == 0 && n < 1000; n++) {
        sb_reset(&aside);
        sb_addf(&aside, "%s.replaced-%s-%u", c->path, now, n);
    }
    enum err err = move_aside(c->path, aside.p, moved, reterr);
    if (!err)
        err = directory_sync(c->path, reterr);
    if (!err && rename(fresh, c->path) != 0)
        err = error_set(reterr, ERR_UNAVAILABLE, "restore: %s: %s", c->path, strerror(errno));
    if (err)
        move_back(c->path, aside.p, moved);
    else
        err = directory_sync(c->path, reterr);
    if (!err && (moved[0] || moved[1] || moved[2]))
        sb_add(ret_aside, sb_str(&aside));
    sb_free(&aside);
    return err;
}

void store_claim_release(struct store_claim **pc)
{
    struct store_claim *c = *pc;
    if (!c)
        return;
    *pc = NULL;
    close(c->lock.lock_fd);
    mem_free(c->path);
    mem_free(c);
}
