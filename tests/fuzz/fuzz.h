/* What the fuzz targets share: keys that are the same in every run (a corpus may hold what they signed), a quiet log, and a reader of
 * the fuzzer's bytes. A target ends the process where its oracle fails: FUZZ_CHECK says which. */
#ifndef TESTS_FUZZ_H
#define TESTS_FUZZ_H

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "pullgate/log.h"
#include "pullgate/mem.h"
#include "pullgate/seal.h"
#include "pullgate/str.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define FUZZ_CHECK(cond, what) ((cond) ? (void)0 : fuzz_fail(what, __LINE__))
static inline void fuzz_fail(const char *what, int line)
{
    fprintf(stderr, "ORACLE line %d: %s\n", line, what);
    abort();
}

/* Where sockets may stand: run.sh names a directory that goes with the run, also where a target was killed. */
static inline const char *fuzz_tmp(void)
{
    const char *dir = getenv("FUZZ_TMP");
    return dir && strlen(dir) < 60 ? dir : "/tmp";
}

static inline void fuzz_quiet(void)
{
    log_set_level((enum log_level)(LOG_LEVEL_ERROR + 1));
}

static inline void fuzz_key_file(const char *dir, const char *name, const char *hex)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    FUZZ_CHECK(fd >= 0 && write(fd, hex, 64) == 64 && close(fd) == 0, "key file");
}

/* Of no deployment: the bytes count up. */
static inline struct keyring *fuzz_keys(void)
{
    static const char *const files[] = {"mac.key", "pepper.key", "seal.key", "audit.key", "token-65b60673d6ed884b.key"};
    char dir[] = "/tmp/pullgate-fuzz-XXXXXX", path[128];
    struct keyring *keys = NULL;
    struct error e = {0};

    FUZZ_CHECK(mkdtemp(dir) != NULL, "temporary directory");
    for (size_t i = 0; i < 5; i++)
        fuzz_key_file(dir, files[i], "0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20");
    FUZZ_CHECK(keyring_open(dir, false, &keys, &e) == ERR_OK, e.text);
    for (size_t i = 0; i < 5; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, files[i]);
        remove(path);
    }
    remove(dir);
    return keys;
}

/* The input, piece by piece; zeros once it is over. */
struct fuzz_in {
    const uint8_t *p;
    size_t n;
};

static inline uint8_t fuzz_byte(struct fuzz_in *in)
{
    if (in->n == 0)
        return 0;
    in->n--;
    return *in->p++;
}

static inline struct str fuzz_rest(struct fuzz_in *in)
{
    return (struct str){(const char *)in->p, in->n};
}

/* Up to the next `stop`, which is consumed; the whole rest without one. */
static inline struct str fuzz_until(struct fuzz_in *in, char stop)
{
    const uint8_t *end = in->n ? memchr(in->p, stop, in->n) : NULL;
    size_t n = end ? (size_t)(end - in->p) : in->n;
    struct str s = {(const char *)in->p, n};
    in->p += n + (end != NULL);
    in->n -= n + (end != NULL);
    return s;
}

/* A copy of just these bytes, so that a read beyond their end is seen. mem_free() it. */
static inline char *fuzz_exact(struct str s)
{
    char *copy = mem_alloc(s.n ? s.n : 1);
    if (s.n)
        memcpy(copy, s.p, s.n);
    return copy;
}

#endif
