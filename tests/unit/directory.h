/* The end of a directory that a test made. */
#ifndef TESTS_DIRECTORY_H
#define TESTS_DIRECTORY_H

#include <ftw.h>
#include <stdio.h>

static inline int directory_remove_one(const char *path, const struct stat *st, int type, struct FTW *at)
{
    (void)st, (void)type, (void)at;
    return remove(path);
}

/* With all that is in it. 0: gone. */
static inline int directory_remove(const char *dir)
{
    return nftw(dir, directory_remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

#endif
