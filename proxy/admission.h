/* What memory is left for: everything, everything but further blobs, or nothing that is new. Looked at twenty times a second against
 * limits.memory, else the memory the process may have by its cgroup or RLIMIT_AS; what is under way is never ended for it. */
#ifndef PROXY_ADMISSION_H
#define PROXY_ADMISSION_H

#include <stdbool.h>
#include <stdint.h>

#include "pullgate/loop.h"

struct config;
struct proxy;
struct admission;

enum admission_level {
    ADMIT_ALL,
    ADMIT_SMALL, /* manifests, tags, tokens: blobs are answered 503 */
    ADMIT_NONE,  /* health alone */
};

/* Main thread. l is its loop; p lists the workers by the time the loop runs. */
struct admission *admission_new(struct loop *l, struct proxy *p);
void admission_free(struct admission **a);
void admission_configure(struct admission *a, const struct config *cfg);

/* From here on a may be NULL: everything is admitted and nothing counted. */
enum admission_level admission_level(const struct admission *a); /* any thread; one load */
/* Something is about to begin that will take so much memory: is it there? What was promised lately counts as taken, because a look
 * does not see it yet. Any thread. */
bool admission_reserve(struct admission *a, uint64_t bytes);

enum admission_refused { REFUSED_MEMORY, REFUSED_MEMORY_BLOB, REFUSED_CUSTOMER, REFUSED_UPSTREAM, ADMISSION_REFUSED };
void admission_count(struct admission *a, enum admission_refused what); /* any thread */

struct admission_stats {
    uint64_t limit_bytes; /* 0: none */
    enum admission_level level;
    uint64_t refused[ADMISSION_REFUSED];
};
void admission_stats(const struct admission *a, struct admission_stats *ret);

#endif
