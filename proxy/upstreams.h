/* The upstreams of this worker: one struct upstream per (upstream id, credential, epoch of its fact). A changed fact makes a new one;
 * the old lives until its operations end. */
#ifndef PROXY_UPSTREAMS_H
#define PROXY_UPSTREAMS_H

#include "pullgate/err.h"
#include "pullgate/upstream.h"

struct worker;
struct upstreams;

struct upstreams *upstreams_new(struct worker *w);
void upstreams_free(struct upstreams **u);
/* cb once, never inside: the upstream of that id, or UNAVAILABLE (fact not to be had), INTERNAL (secret cannot be unsealed). Borrowed; ref to keep. */
typedef void upstreams_cb(void *ctx, enum err err, struct upstream *u);
struct upstreams_op;
struct upstreams_op *upstreams_get(struct upstreams *u, struct str upstream_id, upstreams_cb *cb, void *ctx);
void upstreams_cancel(struct upstreams_op **op);

#endif
