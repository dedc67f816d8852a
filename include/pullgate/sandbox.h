/* The system calls that a daemon may make once it has started; everything else is refused for good (seccomp). docs/OPERATIONS.md says
 * what is refused. The only user of libseccomp. */
#ifndef PULLGATE_SANDBOX_H
#define PULLGATE_SANDBOX_H

#include <signal.h>
#include <stdint.h>

#include "pullgate/err.h"

/* mode: "kill" ends the process at a refused call, "errno" fails the call with EPERM, logs its number and counts it, "off" does nothing.
 * All threads, also those that were started before. Off in instrumented builds, whose tools need calls of their own. */
enum err sandbox_enter(const char *mode, struct error *reterr) MUST_USE;
/* Refused calls, of the mode "errno". */
uint64_t sandbox_refused(void);
/* For threads that block signals: the one by which a refusal is seen must get through, or the kernel ends the process. */
void sandbox_unblock(sigset_t *set);
/* Calls NAME for the n-th allowed system call, in no order; NULL after the last. For the test that compares the units with it. */
const char *sandbox_allowed(unsigned n);

#endif
