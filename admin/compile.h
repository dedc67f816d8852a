/* Facts compiled from the store: what the proxies, explain and the portal believe (docs/REDIS.md). A pure function of what the
 * store holds at the moment of the call, so that gate, explain and portal cannot disagree. */
#ifndef ADMIN_COMPILE_H
#define ADMIN_COMPILE_H

#include <stdbool.h>

#include "pullgate/err.h"
#include "pullgate/str.h"

struct store;

/* fact: "k:<hash>", "c:<customer id>", "r:<public name>", "t:<repository id>", "u:<upstream id>".
 * *ret_exists false: the store knows no such thing, which is an authoritative "no"; ret_payload_json is then empty.
 * ERR_UNAVAILABLE: the store cannot be read. ERR_INVALID: no fact's name, or rows that no fact can be made of: cannot know.
 * Several statements: the caller holds a read transaction where it matters that nothing changes between them. */
enum err compile_fact(struct store *s, struct str fact, struct strbuf *ret_payload_json, bool *ret_exists, struct error *reterr) MUST_USE;

#endif
