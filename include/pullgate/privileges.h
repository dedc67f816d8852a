/* What the process may do to the machine: taken away once the listening sockets are bound and the keys and certificates are read.
 * Process-wide: before other threads are started. */
#ifndef PULLGATE_PRIVILEGES_H
#define PULLGATE_PRIVILEGES_H

#include "pullgate/config.h"
#include "pullgate/err.h"

/* First thing: no core file from here on, no look into the process by others, no rights by exec. */
void privileges_harden(void);
/* Started as root with process.user: become that user and its groups for good, without a capability, and verify that there is no way
 * back. Started as somebody else: capabilities are dropped; a process.user that is another one is an error. As root without
 * process.user: says so in the log and goes on. Files that are made after it are the user's alone (umask 077; a unix socket is bound
 * before, and has the mode that the caller's umask gives). */
enum err privileges_drop(const struct config *cfg, struct error *reterr) MUST_USE;
/* After the drop: warns of files that a reload will need and that cannot be read any more. Empty paths are skipped. */
void privileges_warn_unreadable(const char *const *paths, size_t n);

#endif
