/* Semantic versions (semver.org 2.0.0), ranges as npm and Helm (Masterminds) write them, and glob patterns. Pure. */
#ifndef PULLGATE_SEMVER_H
#define PULLGATE_SEMVER_H

#include <stdbool.h>
#include <stdint.h>

#include "pullgate/err.h"
#include "pullgate/str.h"

struct semver {
    uint64_t major, minor, patch;
    struct str pre;   /* without '-'; borrowed */
    struct str build; /* without '+'; borrowed; no part in ordering */
};

/* A complete version; one leading 'v' is allowed. False otherwise: such a tag matches no range. */
bool semver_parse(struct str in, struct semver *ret);
int semver_cmp(const struct semver *a, const struct semver *b); /* precedence, semver 11 */

struct semver_range; /* owned; || of && of comparators */
/* `^1.4` `~1.4.2` `>=1.2 <2` `>=1.2, <2` `1.x` `1.2 - 2.3` `1 || 3` `*` `=1.2.3` `!=1.2.3`. ERR_INVALID names the offending part. */
enum err semver_range_parse(struct str in, struct semver_range **ret, struct error *reterr) MUST_USE;
void semver_range_free(struct semver_range *r);
/* A pre-release matches only where a comparator with the same major.minor.patch names a pre-release, or when
 * include_prerelease (then by plain precedence). */
bool semver_range_matches(const struct semver_range *r, const struct semver *v, bool include_prerelease);

/* `*` any run, `?` one character, `[a-z]` sets; whole string; linear time. */
bool glob_matches(struct str pattern, struct str s);
enum err glob_check(struct str pattern, struct error *reterr) MUST_USE; /* balanced sets, at most 256 bytes */

#endif
