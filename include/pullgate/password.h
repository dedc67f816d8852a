/* People's passwords: Argon2id over libargon2, which only password.c includes, and which passwords are let through. Hashing takes about
 * 20 ms of a core and PASSWORD_MEMORY_KIB of memory a call: never in a loop or in the writer's thread. */
#ifndef PULLGATE_PASSWORD_H
#define PULLGATE_PASSWORD_H

#include <stdbool.h>

#include "pullgate/err.h"
#include "pullgate/str.h"

#define PASSWORD_HASH_MAX   128
#define PASSWORD_MEMORY_KIB 19456 /* with two passes OWASP's floor; one thread hashes, so this is all that sign-ins hold at a time */
#define PASSWORD_MIN        12    /* characters */
#define PASSWORD_MAX        256

/* "$argon2id$v=19$m=…": with its salt. ERR_UNAVAILABLE: there was no memory. */
enum err password_hash(struct str password, char ret[PASSWORD_HASH_MAX], struct error *reterr) MUST_USE;
/* hash NULL or "": nobody's; the same work is done and the answer is no. */
enum err password_check(const char *hash, struct str password, bool *ret_fits, struct error *reterr) MUST_USE;
/* Length, not among the most common, not the person's address. No rules of composition. ERR_INVALID says which. */
enum err password_policy(struct str password, struct str email, struct error *reterr) MUST_USE;

#endif
