/* Values of response fields that an upstream sends and that we act on. Pure; strict; what does not parse is refused, not guessed. */
#ifndef PULLGATE_FIELD_H
#define PULLGATE_FIELD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pullgate/err.h"
#include "pullgate/oci.h"
#include "pullgate/str.h"

#define FIELD_CHALLENGES_MAX 8

enum challenge_scheme { CHALLENGE_OTHER, CHALLENGE_BASIC, CHALLENGE_BEARER };
struct challenge { /* "" where the parameter is absent */
    enum challenge_scheme scheme;
    char realm[1024], service[512], scope[1024];
};
/* The challenges of one WWW-Authenticate value (RFC 9110 11.3), appended to ret[*n], at most FIELD_CHALLENGES_MAX in all.
 * ERR_INVALID: malformed, a parameter twice, or longer than the struct holds. */
enum err field_challenges_parse(struct str value, struct challenge ret[FIELD_CHALLENGES_MAX], size_t *n) MUST_USE;

/* Target of the link with rel="next" in a Link value (RFC 8288), borrowed. ERR_NOT_FOUND: there is none; ERR_INVALID: malformed. */
enum err field_link_next(struct str value, struct str *ret) MUST_USE;

/* "bytes 0-9/100" of a 206; *ret_total 0 when it says '*'. */
enum err field_content_range_parse(struct str value, struct byte_range *ret, uint64_t *ret_total) MUST_USE;

/* Seconds of a Retry-After, at most 3600; 0 when absent, a date, or malformed. */
unsigned field_retry_after_s(struct str value);

#endif
