/* Rows as programs exchange them: CSV (RFC 4180) and NDJSON, read and written. Pure.
 * CSV cells that a spreadsheet would take for a formula (that begin with = + - @ ' or a control byte) are written with ' before them, and
 * read without it; so what is written is read back the same. */
#ifndef ADMIN_ROWS_H
#define ADMIN_ROWS_H

#include "pullgate/err.h"
#include "pullgate/jv.h"
#include "pullgate/str.h"

struct row_in {
    size_t line;       /* where it begins, from 1 */
    struct jv *values; /* object; of CSV: texts, empty cells left out. NULL: it cannot be read, see error */
    struct error error;
};
struct rows_in {
    struct row_in *rows;
    size_t n;
};
/* At most `max` rows: ERR_TOO_LARGE. CSV: the first line names the columns, ',' or ';' or a tab is between them. ERR_INVALID: not to be
 * read as a whole (no or a double column, invalid UTF-8). */
enum err rows_read(struct str text, bool is_csv, size_t max, struct rows_in *ret, struct error *reterr) MUST_USE;
void rows_free(struct rows_in *r);

void csv_cell(struct strbuf *b, struct str cell, bool is_first);
/* A value as a cell: texts as they are, null as nothing, lists and objects as JSON. */
void csv_value(struct strbuf *b, const struct jv *v, bool is_first);

#endif
