/* The listening sockets of a daemon: those that the service manager handed over (socket activation), else the configured addresses,
 * bound here. Made while there still are privileges; edge_accept() takes them afterwards. */
#ifndef PULLGATE_LISTENERS_H
#define PULLGATE_LISTENERS_H

#include <stdbool.h>
#include <stddef.h>

#include "pullgate/config.h"
#include "pullgate/err.h"

struct listeners {
    size_t n;
    int fd[CONFIG_MAX_LISTEN];            /* -1: taken */
    char bound[CONFIG_MAX_LISTEN][128];   /* with the real port */
    bool is_given;                        /* by the manager: the configured addresses were not looked at */
};

/* `name` is the FileDescriptorName of the sockets that are meant, "proxy", "admin" or "metrics"; is_main: those without a name too. */
enum err listeners_open(const struct config_listen *addresses, const char *name, bool is_main, struct listeners *ret, struct error *reterr) MUST_USE;
/* The same once more, for a further worker: sockets of its own on the same addresses, or copies of what was given. */
enum err listeners_again(const struct listeners *first, struct listeners *ret, struct error *reterr) MUST_USE;
/* A socket with a name that is none of these is an error: somebody would believe that it is served. */
enum err listeners_check_names(const char *const *names, struct error *reterr) MUST_USE;
/* The i-th socket, taken. */
int listeners_take(struct listeners *l, size_t i);
void listeners_close(struct listeners *l); /* what was not taken */

#endif
