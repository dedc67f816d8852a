/* The only place that allocates. Small allocations never fail (the process aborts, its supervisor restarts it);
 * sizes that foreign data chooses go through mem_try_alloc, which may return NULL. The libraries whose own handling of a failed
 * allocation is not complete (libevent, libcurl, jansson, OpenSSL) are given mem_alloc and its like by the file that includes them. */
#ifndef PULLGATE_MEM_H
#define PULLGATE_MEM_H

#include <stdbool.h>
#include <stddef.h>

void *mem_alloc(size_t n) __attribute__((malloc, alloc_size(1), returns_nonnull));
void *mem_zalloc(size_t n) __attribute__((malloc, alloc_size(1), returns_nonnull));
void *mem_calloc(size_t count, size_t size) __attribute__((malloc, alloc_size(1, 2), returns_nonnull));
void *mem_realloc(void *p, size_t n) __attribute__((alloc_size(2), returns_nonnull));
void *mem_try_alloc(size_t n) __attribute__((malloc, alloc_size(1), warn_unused_result));
char *mem_strdup(const char *s) __attribute__((malloc, returns_nonnull)); /* NULL is taken as "" */
char *mem_strndup(const char *s, size_t n) __attribute__((malloc, returns_nonnull));
void mem_free(void *p);
/* Overwrites n bytes so that the compiler cannot leave it out, then frees. */
void mem_free_secret(void *p, size_t n);
void mem_cleanse(void *p, size_t n);
void mem_trim(void); /* what is free goes back to the kernel; takes a while */

#define NEW(type) ((type *)mem_zalloc(sizeof(type)))
#define MEM_FREE(pp) (mem_free(pp), (pp) = NULL)

/* "cannot happen", kept in production. Never for input from a client, Redis or an upstream. */
#define AN(cond) ((cond) ? (void)0 : mem_wrong(#cond, __FILE__, __LINE__))
#define WRONG(why) mem_wrong(why, __FILE__, __LINE__)
void mem_wrong(const char *why, const char *file, int line) __attribute__((noreturn));

/* What the machine refused and the process cannot go on without (a thread, an event loop at the start): says so with errno's text and
 * ends the process with status 1. For what one request needs there is ERR_UNAVAILABLE. */
#define NEED(cond, what) ((cond) ? (void)0 : mem_refused(what))
void mem_refused(const char *what) __attribute__((noreturn));

#endif
