/* What the service manager is told, by libsystemd's sd_notify: ready, reloading, stopping, alive. Without one (no NOTIFY_SOCKET)
 * everything here does nothing. */
#ifndef PULLGATE_NOTIFY_H
#define PULLGATE_NOTIFY_H

#include <stdint.h>

void notify_ready(void);     /* after the start, and after each reload */
void notify_reloading(void); /* a reload begins */
void notify_stopping(void);
void notify_watchdog(void); /* alive; from the loop */
/* How often the manager wants to hear notify_watchdog(), ms; 0: not at all. */
uint64_t notify_watchdog_ms(void);

#endif
