/* What passes between the daemons and the service manager, by libsystemd: sd_notify (ready, reloading, stopping, alive) and the
 * sockets that it hands over. Without one (no NOTIFY_SOCKET, no LISTEN_FDS) everything here does nothing. */
#ifndef PULLGATE_NOTIFY_H
#define PULLGATE_NOTIFY_H

#include <stddef.h>
#include <stdint.h>

#include "pullgate/err.h"

void notify_ready(void);     /* after the start, and after each reload */
void notify_reloading(void); /* a reload begins */
void notify_stopping(void);
void notify_watchdog(void); /* alive; from the loop */
/* How often the manager wants to hear notify_watchdog(), ms; 0: not at all. */
uint64_t notify_watchdog_ms(void);

#define NOTIFY_SOCKETS_MAX 64 /* more than both lists of addresses can name */
struct notify_sockets {
    size_t n;
    int fd[NOTIFY_SOCKETS_MAX];
    char *name[NOTIFY_SOCKETS_MAX]; /* FileDescriptorName= of the .socket unit; "": it has none */
};
/* The descriptors stay the manager's: who listens on one listens on a copy. */
enum err notify_sockets(struct notify_sockets *ret, struct error *reterr) MUST_USE;
void notify_sockets_free(struct notify_sockets *s);

#endif
