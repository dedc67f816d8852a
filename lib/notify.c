/* The only file that knows libsystemd. */
#include "pullgate/notify.h"

#include <stdlib.h>
#include <string.h>

#include <systemd/sd-daemon.h>

#include "pullgate/clock.h"
#include "pullgate/mem.h"

void notify_ready(void)
{
    sd_notify(0, "READY=1");
}

void notify_reloading(void)
{
    sd_notifyf(0, "RELOADING=1\nMONOTONIC_USEC=%llu", (unsigned long long)clock_mono_us());
}

void notify_stopping(void)
{
    sd_notify(0, "STOPPING=1");
}

void notify_watchdog(void)
{
    sd_notify(0, "WATCHDOG=1");
}

uint64_t notify_watchdog_ms(void)
{
    uint64_t us;

    return sd_watchdog_enabled(0, &us) > 0 ? us / 1000 : 0;
}

/* ---- sockets ---------------------------------------------------------------------------------------------------------------- */

enum err notify_sockets(struct notify_sockets *ret, struct error *reterr)
{
    char **names = NULL;
    int n = sd_listen_fds_with_names(0, &names);

    memset(ret, 0, sizeof *ret);
    if (n < 0)
        return error_set(reterr, ERR_INVALID, "LISTEN_FDS, LISTEN_FDNAMES: %s", strerror(-n));
    if (n > NOTIFY_SOCKETS_MAX)
        return error_set(reterr, ERR_INVALID, "the service manager hands over %d sockets, more than %d", n, NOTIFY_SOCKETS_MAX);
    for (int i = 0; i < n; i++) {
        ret->fd[i] = SD_LISTEN_FDS_START + i;
        /* Without names everything is "unknown" to sd-daemon; without a name of its own a socket has its unit's. */
        size_t len = strlen(names[i]);
        bool is_unit = len > 7 && strcmp(names[i] + len - 7, ".socket") == 0;
        ret->name[i] = mem_strdup(strcmp(names[i], "unknown") == 0 || is_unit ? "" : names[i]);
    }
    ret->n = (size_t)n;
    for (int i = 0; names && names[i]; i++)
        mem_free(names[i]);
    mem_free(names);
    return ERR_OK;
}

void notify_sockets_free(struct notify_sockets *s)
{
    for (size_t i = 0; i < s->n; i++)
        mem_free(s->name[i]);
    s->n = 0;
}
