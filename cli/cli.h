/* What the commands of the command line share. */
#ifndef CLI_CLI_H
#define CLI_CLI_H

#include <stdbool.h>
#include <stddef.h>

#include "pullgate/str.h"

struct jv;

/* Exit codes, for scripts. */
enum exit_code {
    EXIT_OK = 0,
    EXIT_FAILED = 1,      /* the API refused: not found, conflict, invalid; a backup is no good; `doctor`: a check failed */
    EXIT_USAGE = 2,       /* the command line is wrong */
    EXIT_DENIED = 3,      /* not signed in, not allowed; `explain`: the answer is deny */
    EXIT_UNREACHABLE = 4, /* no answer, or 5xx */
};

struct cli {
    char *url, *token, *ca;
    bool json, dry_run, yes;
};
extern struct cli cli;

/* client.c: one line on standard error, and the end */
void die(enum exit_code code, const char *fmt, ...) __attribute__((noreturn, format(printf, 2, 3)));
char *read_file(const char *path); /* "-": standard input; without the line ends at its end */
/* Options, environment and profile, in this order; ends the program where one is unusable. */
void settings_read(void);
/* One request to /api/v1 + path. Ends the program with one line on a refusal. The parsed answer (jv_free), NULL for an empty one. */
struct jv *api(const char *method, const char *path, const struct jv *body);
/* The same with a body of another type, and the answer as it is: *ret (sb_free). False: it was refused with `soft_status`, which is
 * no end; 0: none. */
bool api_raw(const char *method, const char *path, struct str body, const char *type, int soft_status, struct strbuf *ret);
/* s as a query parameter's value. */
void add_query_value(struct strbuf *b, struct str s);

/* print.c */
void print_json(const struct jv *v);
void print_object(const struct jv *v); /* a line a member, or JSON */
void print_table(const char *columns, const struct jv *items); /* keys between blanks; a dot goes into objects */
void print_cell(const struct jv *v, struct strbuf *b);

/* document.c: what the API says that it can do */
/* RESOURCE VERB …; the exit code. */
int document_command(int argc, char **argv);
/* The id that an id, slug, name, number, code or e-mail address stands for in a resource ("licenses"). mem_free() it. */
char *document_resolve(const char *resource, const char *given);
/* The same, NULL when there is none. */
char *document_find(const char *resource, const char *given);
/* Words that can come next, one a line: for completions. */
void document_words(int argc, char **argv);
void document_help(const char *resource);

/* Each: what stands behind the command's name; the exit code. */
int apply_command(int argc, char **argv);
int completion_command(int argc, char **argv);
int backup_command(int argc, char **argv);
int restore_command(int argc, char **argv);
int doctor_command(int argc, char **argv);
int audit_command(int argc, char **argv); /* after "verify" */
int verify_command(int argc, char **argv); /* its exit codes are its own: docs/LICENSE_FILE.md */
int bundle_command(int argc, char **argv);

#endif
