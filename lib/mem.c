/* Allocation. The only file that calls malloc. */
#include "pullgate/mem.h"

#include <errno.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void *mem_checked(void *p)
{
    if (p == NULL) {
        static const char text[] = "{\"level\":\"error\",\"msg\":\"out of memory\"}\n";
        (void)!fwrite(text, 1, sizeof text - 1, stderr);
        abort();
    }
    return p;
}

void *mem_alloc(size_t n)
{
    return mem_checked(malloc(n ? n : 1));
}

void *mem_zalloc(size_t n)
{
    return mem_checked(calloc(1, n ? n : 1));
}

void *mem_calloc(size_t count, size_t size)
{
    return mem_checked(calloc(count ? count : 1, size ? size : 1));
}

void *mem_realloc(void *p, size_t n)
{
    return mem_checked(realloc(p, n ? n : 1));
}

void *mem_try_alloc(size_t n)
{
    return malloc(n ? n : 1);
}

char *mem_strdup(const char *s)
{
    return mem_strndup(s != NULL ? s : "", s != NULL ? strlen(s) : 0);
}

char *mem_strndup(const char *s, size_t n)
{
    char *copy = mem_alloc(n + 1);

    if (n > 0)
        memcpy(copy, s, n);
    copy[n] = '\0';
    return copy;
}

void mem_free(void *p)
{
    free(p);
}

void mem_cleanse(void *p, size_t n)
{
    if (p != NULL && n > 0)
        explicit_bzero(p, n);
}

void mem_free_secret(void *p, size_t n)
{
    mem_cleanse(p, n);
    free(p);
}

void mem_trim(void)
{
    malloc_trim(0);
}

void mem_wrong(const char *why, const char *file, int line)
{
    fprintf(stderr, "{\"level\":\"error\",\"msg\":\"cannot happen: %s (%s:%d)\"}\n", why, file, line);
    abort();
}

void mem_refused(const char *what)
{
    fprintf(stderr, "{\"level\":\"error\",\"msg\":\"cannot go on without %s: %s\"}\n", what, strerror(errno));
    fflush(stderr);
    _exit(EXIT_FAILURE);
}
