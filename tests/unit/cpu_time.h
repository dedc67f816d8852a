/* Processor time of this process, for the costs that tests print: what else runs on the machine does not count. */
#ifndef TESTS_CPU_TIME_H
#define TESTS_CPU_TIME_H

#include <time.h>

static inline double cpu_time_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

#endif
