/* System calls on files, to their end. What is in the files is the callers' own. */
#include "pullgate/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#define READ_BYTES 4096

/* What is left after a call that took n bytes of s. */
static bool taken(struct str *s, ssize_t n)
{
    if (n < 0)
        return errno == EINTR;
    if (n == 0) {
        errno = EIO;
        return false;
    }
    *s = str_skip(*s, (size_t)n);
    return true;
}

bool file_write_all(int fd, struct str s)
{
    while (s.n > 0)
        if (!taken(&s, write(fd, s.p, s.n)))
            return false;
    return true;
}

bool file_write_at(int fd, struct str s, uint64_t offset)
{
    const uint64_t end = offset + s.n;

    while (s.n > 0)
        if (!taken(&s, pwrite(fd, s.p, s.n, (off_t)(end - s.n))))
            return false;
    return true;
}

ssize_t file_read_full(int fd, char *ret, size_t n)
{
    size_t at = 0;

    while (at < n) {
        ssize_t got = read(fd, ret + at, n - at);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return -1;
        if (got == 0)
            break;
        at += (size_t)got;
    }
    return (ssize_t)at;
}

bool file_read_rest(int fd, size_t max, struct strbuf *ret)
{
    ssize_t n;

    do {
        sb_reserve(ret, READ_BYTES);
        n = file_read_full(fd, ret->p + ret->n, READ_BYTES);
        if (n > 0)
            ret->n += (size_t)n;
        ret->p[ret->n] = '\0';
        if (ret->n > max) {
            errno = EFBIG;
            return false;
        }
    } while (n == READ_BYTES);
    return n >= 0;
}

bool file_read_small(const char *path, char *ret, size_t size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return false;
    ssize_t n = file_read_full(fd, ret, size - 1);
    int e = errno;
    close(fd);
    errno = e;
    if (n < 0)
        return false;
    ret[n] = '\0';
    return true;
}

bool file_sync_directory(const char *path)
{
    struct strbuf directory = {0};
    ptrdiff_t slash = str_rindex(str_c(path), '/');

    sb_add(&directory, slash < 0 ? S(".") : slash == 0 ? S("/") : str_sub(str_c(path), 0, (size_t)slash));
    int fd = open(directory.p, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    sb_free(&directory);
    if (fd < 0)
        return false;
    bool good = fsync(fd) == 0;
    int e = errno;
    close(fd);
    errno = e;
    return good;
}

bool file_write_whole(const char *path, struct str text)
{
    struct strbuf temporary = {0};

    sb_addf(&temporary, "%s.tmp", path);
    int fd = open(temporary.p, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    bool good = fd >= 0 && file_write_all(fd, text);
    if (fd >= 0)
        good = close(fd) == 0 && good;
    good = good && rename(temporary.p, path) == 0;
    if (!good && fd >= 0) {
        int e = errno;
        unlink(temporary.p);
        errno = e;
    }
    sb_free(&temporary);
    return good;
}
