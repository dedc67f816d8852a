/* Where a daemon's listening sockets come from. A socket that was handed over belongs to the manager: it goes on taking connections
 * while no process is there, so a copy is used and closed, and never shut down. */
#include "pullgate/listeners.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "pullgate/edge.h"
#include "pullgate/notify.h"

/* The address of a bound socket, in the words of the configuration. */
static bool address_print(int fd, char ret[128])
{
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
        struct sockaddr_un un;
    } a = {0};
    socklen_t n = sizeof a;
    char text[INET6_ADDRSTRLEN];

    if (getsockname(fd, &a.any, &n) != 0)
        return false;
    switch (a.any.sa_family) {
    case AF_INET:
        inet_ntop(AF_INET, &a.v4.sin_addr, text, sizeof text);
        snprintf(ret, 128, "%s:%u", text, ntohs(a.v4.sin_port));
        return true;
    case AF_INET6:
        inet_ntop(AF_INET6, &a.v6.sin6_addr, text, sizeof text);
        if (strcmp(text, "::") == 0)
            snprintf(ret, 128, "*:%u", ntohs(a.v6.sin6_port));
        else
            snprintf(ret, 128, "[%s]:%u", text, ntohs(a.v6.sin6_port));
        return true;
    case AF_UNIX:
        snprintf(ret, 128, "unix:%.*s", (int)sizeof a.un.sun_path, a.un.sun_path);
        return true;
    default:
        return false;
    }
}

/* A copy of a socket that was handed over, fit to be listened on. */
static enum err adopt(int given, int *ret_fd, char ret_bound[128], struct error *reterr)
{
    int type = 0, listening = 0, on = 1;
    socklen_t n = sizeof type;

    if (getsockopt(given, SOL_SOCKET, SO_TYPE, &type, &n) != 0 || type != SOCK_STREAM)
        return error_set(reterr, ERR_INVALID, "descriptor %d of the service manager is no stream socket", given);
    n = sizeof listening;
    if (getsockopt(given, SOL_SOCKET, SO_ACCEPTCONN, &listening, &n) != 0 || !listening)
        return error_set(reterr, ERR_INVALID, "descriptor %d of the service manager does not listen", given);
    if (!address_print(given, ret_bound))
        return error_set(reterr, ERR_INVALID, "descriptor %d of the service manager has an address of another kind", given);
    int fd = fcntl(given, F_DUPFD_CLOEXEC, 0);
    int flags = fd < 0 ? -1 : fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) != 0) {
        int code = errno;
        if (fd >= 0)
            close(fd);
        return error_set(reterr, ERR_INTERNAL, "%s: %s", ret_bound, strerror(code));
    }
    /* As on sockets of our own: accepted ones inherit it. Means nothing to unix sockets. */
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    *ret_fd = fd;
    return ERR_OK;
}

static enum err open_given(const char *name, bool is_main, struct listeners *ret, struct error *reterr)
{
    struct notify_sockets given;
    enum err e = notify_sockets(&given, reterr);

    if (e)
        return e;
    for (size_t i = 0; !e && i < given.n; i++) {
        if (strcmp(given.name[i], name) != 0 && !(is_main && given.name[i][0] == '\0'))
            continue;
        if (ret->n == CONFIG_MAX_LISTEN)
            e = error_set(reterr, ERR_INVALID, "the service manager hands over more than %d sockets for %s", CONFIG_MAX_LISTEN, name);
        else
            e = adopt(given.fd[i], &ret->fd[ret->n], ret->bound[ret->n], reterr);
        if (!e)
            ret->n++;
    }
    notify_sockets_free(&given);
    ret->is_given = ret->n > 0;
    return e;
}

enum err listeners_open(const struct config_listen *addresses, const char *name, bool is_main, struct listeners *ret, struct error *reterr)
{
    memset(ret, 0, sizeof *ret);
    enum err e = open_given(name, is_main, ret, reterr);
    for (size_t i = 0; !e && !ret->is_given && i < addresses->n; i++) {
        e = edge_listen(addresses->list[i], &ret->fd[i], ret->bound[i], reterr);
        if (!e)
            ret->n++;
    }
    if (e)
        listeners_close(ret);
    return e;
}

enum err listeners_again(const struct listeners *first, struct listeners *ret, struct error *reterr)
{
    enum err e = ERR_OK;

    memset(ret, 0, sizeof *ret);
    ret->is_given = first->is_given;
    for (size_t i = 0; !e && i < first->n; i++) {
        if (first->is_given)
            e = adopt(first->fd[i], &ret->fd[i], ret->bound[i], reterr);
        else
            e = edge_listen(first->bound[i], &ret->fd[i], ret->bound[i], reterr);
        if (!e)
            ret->n++;
    }
    if (e)
        listeners_close(ret);
    return e;
}

enum err listeners_check_names(const char *const *names, struct error *reterr)
{
    struct notify_sockets given;
    enum err e = notify_sockets(&given, reterr);

    if (e)
        return e;
    for (size_t i = 0; !e && i < given.n; i++) {
        bool known = given.name[i][0] == '\0';
        for (size_t k = 0; !known && names[k] != NULL; k++)
            known = strcmp(given.name[i], names[k]) == 0;
        if (!known)
            e = error_set(reterr, ERR_INVALID, "the service manager hands over a socket named \"%.60s\": here FileDescriptorName is %s or %s",
                          given.name[i], names[0], names[1]);
    }
    notify_sockets_free(&given);
    return e;
}

int listeners_take(struct listeners *l, size_t i)
{
    int fd = l->fd[i];

    l->fd[i] = -1;
    return fd;
}

void listeners_close(struct listeners *l)
{
    for (size_t i = 0; i < l->n; i++)
        if (l->fd[i] >= 0)
            close(l->fd[i]);
    l->n = 0;
}
