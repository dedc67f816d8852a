/* The system of record behind plain SQL: SQLite. The only file that includes sqlite3.h; the statements live in admin/.
 * One writing connection owns the file (FACTS S1); a reading connection of the same process may be opened beside it.
 * A store belongs to one thread at a time. journal_mode=WAL (measured choice, see store.c), synchronous=FULL, foreign_keys=ON. */
#ifndef PULLGATE_STORE_H
#define PULLGATE_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pullgate/err.h"
#include "pullgate/str.h"

struct store;
struct store_stmt;

/* url: sqlite:///abs/path. Takes an exclusive lock file beside it when writing: a second writing process is ERR_CONFLICT. A file that
 * was migrated once is not made anew when it is missing: ERR_UNAVAILABLE. */
enum err store_open(const char *url, bool read_only, struct store **ret, struct error *reterr) MUST_USE;
void store_close(struct store **s);

/* Migrations: numbered SQL texts, applied in order in one transaction each, recorded with their checksum; a file that is newer
 * than the program, or whose applied text differs, is refused. */
struct store_migration {
    int version;
    const char *sql;
};
enum err store_migrate(struct store *s, const struct store_migration *m, size_t n, struct error *reterr) MUST_USE;

/* Reads the whole file and looks whether its structure is intact; ERR_UNAVAILABLE when it is not. */
enum err store_check(struct store *s, struct error *reterr) MUST_USE;

enum err store_begin(struct store *s, struct error *reterr) MUST_USE; /* BEGIN IMMEDIATE */
enum err store_commit(struct store *s, struct error *reterr) MUST_USE;
/* Whether an answer was ERR_UNAVAILABLE since this was asked last: the store's own failure, not one of who uses it. */
bool store_has_failed(struct store *s);
void store_rollback(struct store *s); /* also after a failed commit; harmless outside a transaction */

/* Prepared once per text and cached. Parameters by format: i int64_t, s struct str (NULL p binds NULL), z const char * (NULL binds
 * NULL), t int64_t where 0 binds NULL, b int as 0/1. E.g. store_query(s, &st, &error, "SELECT … WHERE a=? AND b=?", "iz", id, name) */
enum err store_query(struct store *s, struct store_stmt **ret, struct error *reterr, const char *sql, const char *fmt, ...) MUST_USE;
/* The same where the parameters are as many as the request asks for. Texts are copied. */
struct store_value {
    struct str s; /* p NULL: the number */
    int64_t i;
};
enum err store_query_values(struct store *s, struct store_stmt **ret, struct error *reterr, const char *sql, const struct store_value *v,
                            size_t n) MUST_USE;
/* Steps: ERR_OK with *has_row. A disk, lock or corruption failure is ERR_UNAVAILABLE. */
enum err store_step(struct store_stmt *st, bool *has_row, struct error *reterr) MUST_USE;
void store_done(struct store_stmt **st); /* resets and returns it to the cache; NULL is fine */
int64_t store_col_int(const struct store_stmt *st, int col);
struct str store_col_str(const struct store_stmt *st, int col); /* until the next step; {NULL,0} for NULL */
bool store_col_null(const struct store_stmt *st, int col);
/* Query without rows; ret_changes may be NULL. UNIQUE and foreign key violations are ERR_CONFLICT. */
enum err store_exec(struct store *s, int64_t *ret_changes, struct error *reterr, const char *sql, const char *fmt, ...) MUST_USE;
int64_t store_last_rowid(const struct store *s);
/* A consistent copy into path (online backup). */
enum err store_backup(struct store *s, const char *path, struct error *reterr) MUST_USE;

/* The file of a URL of store_open(); NULL for another kind. */
const char *store_file(const char *url);
/* For a restore: the right to the store's place, which no daemon has then. ERR_CONFLICT while one has it. */
struct store_claim;
enum err store_claim(const char *url, struct store_claim **ret, struct error *reterr) MUST_USE;
/* Puts the file `fresh` of the same directory there, synced. What was there is kept beside it with its log, under the name in ret_aside
 * (empty: nothing was). A failure puts it back; a crash in between leaves no store, never a mixture of two. */
enum err store_claim_replace(struct store_claim *c, const char *fresh, struct strbuf *ret_aside, struct error *reterr) MUST_USE;
void store_claim_release(struct store_claim **c);

#endif
