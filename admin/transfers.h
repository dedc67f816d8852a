/* Offers of a license to another customer or vendor: what the jobs do with them. */
#ifndef ADMIN_TRANSFERS_H
#define ADMIN_TRANSFERS_H

#include "pullgate/err.h"
#include "pullgate/store.h"

/* Ends offers whose time is over, some at once: status, event. In the writer's transaction. */
enum err transfers_expire(struct store *s, int64_t now_s, struct error *reterr) MUST_USE;

#endif
