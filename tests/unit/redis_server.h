/* A real redis-server for a unit test, on a free port and a socket in a directory of its own. */
#ifndef TESTS_REDIS_SERVER_H
#define TESTS_REDIS_SERVER_H

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "directory.h"

struct redis_server {
    pid_t pid;
    int port;
    char dir[64];
    char url[96];
    char unix_url[128];
    char password[32]; /* "" none */
};

static inline void redis_pause_ms(long ms)
{
    nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000}, NULL);
}

/* From 10000 to 30000, which the kernel gives to no connection unless it was told to: still free when the server binds it, and when
 * it is started again on it. */
static inline int redis_free_port(void)
{
    for (int tries = 0; tries < 1000; tries++) {
        struct sockaddr_in sa = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        unsigned r;
        int fd = socket(AF_INET, SOCK_STREAM, 0), rc;
        if (fd < 0 || getrandom(&r, sizeof r, 0) != (ssize_t)sizeof r)
            abort();
        sa.sin_port = htons((uint16_t)(10000 + r % 20000));
        rc = bind(fd, (struct sockaddr *)&sa, sizeof sa);
        close(fd);
        if (rc == 0)
            return ntohs(sa.sin_port);
    }
    abort();
}

/* Waits until it accepts connections. Call again after redis_stop() for a restart on the same port. */
static inline void redis_start(struct redis_server *r)
{
    struct sockaddr_in sa = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    char port[16], sock[96];

    if (!r->dir[0]) {
        snprintf(r->dir, sizeof r->dir, "/tmp/pullgate-redis-XXXXXX");
        if (!mkdtemp(r->dir))
            abort();
        r->port = redis_free_port();
        snprintf(r->url, sizeof r->url, "redis://127.0.0.1:%d/0", r->port);
        snprintf(r->unix_url, sizeof r->unix_url, "unix://%s/s?db=3", r->dir);
    }
    snprintf(port, sizeof port, "%d", r->port);
    snprintf(sock, sizeof sock, "%s/s", r->dir);
    r->pid = fork();
    if (r->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* a test that aborts takes it along */
        int null = open("/dev/null", O_RDWR);
        dup2(null, 1);
        dup2(null, 2);
        execlp("redis-server", "redis-server", "--port", port, "--bind", "127.0.0.1", "--unixsocket", sock, "--save", "", "--appendonly", "no",
               "--dir", r->dir, r->password[0] ? "--requirepass" : NULL, r->password, NULL);
        _exit(127);
    }
    sa.sin_port = htons((uint16_t)r->port);
    for (int i = 0; i < 500; i++) {
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        int rc = connect(fd, (struct sockaddr *)&sa, sizeof sa);
        close(fd);
        if (rc == 0)
            return;
        redis_pause_ms(10);
    }
    abort();
}

static inline void redis_stop(struct redis_server *r)
{
    if (r->pid > 0) {
        kill(r->pid, SIGKILL);
        waitpid(r->pid, NULL, 0);
    }
    r->pid = 0;
}

static inline void redis_end(struct redis_server *r)
{
    redis_stop(r);
    (void)directory_remove(r->dir);
    memset(r, 0, sizeof *r);
}

#endif
