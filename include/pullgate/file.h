/* Reading and writing of files: interrupted calls are made again, short ones continued. Everything waits for the disk, so what runs in a
 * loop uses it only where that is meant. What fails leaves its reason in errno. */
#ifndef PULLGATE_FILE_H
#define PULLGATE_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "pullgate/err.h"
#include "pullgate/str.h"

bool file_write_all(int fd, struct str s) MUST_USE;
bool file_write_at(int fd, struct str s, uint64_t offset) MUST_USE;
/* Up to n bytes; fewer only at the end of the file. -1: failed. */
ssize_t file_read_full(int fd, char *ret, size_t n) MUST_USE;
/* Appends all that follows. false: failed, or (EFBIG) ret has become longer than max. */
bool file_read_rest(int fd, size_t max, struct strbuf *ret) MUST_USE;
/* The beginning of a small file, such as one of /proc, with a NUL. */
bool file_read_small(const char *path, char *ret, size_t size) MUST_USE;
/* What was made, renamed or removed beside path stays so. */
bool file_sync_directory(const char *path) MUST_USE;
/* A temporary name, then the rename: who waits for the file never reads half of it. Not synced. */
bool file_write_whole(const char *path, struct str text) MUST_USE;

#endif
