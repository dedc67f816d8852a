/* Bearer tokens that upstreams gave, for all workers of a process: what one asked for, the others need not ask for again, and what a
 * registry refused to one, none of the others uses. Any thread; the lock is held for a look-up and a copy. Bounded: what was put there
 * longest ago goes first. Without an entry a token that somebody holds is as good as before. */
#ifndef PULLGATE_TOKENSHARE_H
#define PULLGATE_TOKENSHARE_H

#include <stddef.h>
#include <stdint.h>

#define TOKENSHARE_KEY 32u /* a digest of all that a token is good for, the credential it was got with included */

struct tokenshare;
struct tokenshare *tokenshare_new(void);
void tokenshare_free(struct tokenshare **s);

/* ret: the token's serial, which no other has. */
uint64_t tokenshare_put(struct tokenshare *s, const uint8_t key[TOKENSHARE_KEY], const char *value, uint64_t use_until_ms, uint64_t now_ms);

/* What is known to who holds the token `serial`, 0 none: NEWER, with a copy of it, which is the caller's and a secret (mem_free_secret());
 * REFUSED, by the registry, and there is no newer one; NOTHING else. */
struct tokenshare_token {
    char *value;
    uint64_t use_until_ms, serial;
};
enum tokenshare_has { TOKENSHARE_NOTHING, TOKENSHARE_NEWER, TOKENSHARE_REFUSED };
enum tokenshare_has tokenshare_look(struct tokenshare *s, const uint8_t key[TOKENSHARE_KEY], uint64_t serial, uint64_t now_ms,
                                    struct tokenshare_token *ret);

/* The registry refuses that token. One that was put there since stays. */
void tokenshare_refuse(struct tokenshare *s, const uint8_t key[TOKENSHARE_KEY], uint64_t serial);

/* For tests. */
size_t tokenshare_count(struct tokenshare *s);

#endif
