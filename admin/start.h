/* What the store must hold before the daemon serves: the first vendor, the bootstrap token, a clock that has not gone backwards. */
#ifndef ADMIN_START_H
#define ADMIN_START_H

#include <stdbool.h>

#include "admin.h"
#include "pullgate/err.h"

/* Makes the first vendor when there is none. Any start. */
/* The head of the audit log: what it says must fit the store. Where it does not, the log says so from then on. */
enum err start_audit(struct admin *a, struct error *reterr) MUST_USE;

enum err start_vendor(struct admin *a, struct error *reterr) MUST_USE;
/* Takes over the content of admin.bootstrap_token_file as an owner's token of the first vendor; the one it held before dies. */
enum err start_bootstrap_token(struct admin *a, struct error *reterr) MUST_USE;
/* The wall clock against the highest time the store has seen, which is moved on. *ret_bad: it is more than five minutes behind. */
enum err start_check_clock(struct admin *a, bool *ret_bad, struct error *reterr) MUST_USE;

/* The same two without waiting, for a loop. What comes of the token is logged; done runs in the writer's thread. */
void start_reload_token(struct admin *a);
void start_watch_clock(struct admin *a, void (*done)(void *ctx, enum err err, bool is_bad), void *ctx);

#endif
