/* What the commands of the command line share. */
#ifndef CLI_CLI_H
#define CLI_CLI_H

#include <stdbool.h>

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
    bool json;
};
extern struct cli cli;

void die(enum exit_code code, const char *fmt, ...) __attribute__((noreturn, format(printf, 2, 3)));
char *read_file(const char *path); /* "-": standard input; without the line ends at its end */

/* Each: what stands behind the command's name; the exit code. */
int backup_command(int argc, char **argv);
int restore_command(int argc, char **argv);
int doctor_command(int argc, char **argv);

#endif
