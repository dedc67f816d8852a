/* Orders: a plan that a customer wants, what it costs, and the license that comes of it. No money moves here. */
#ifndef ADMIN_ORDERS_H
#define ADMIN_ORDERS_H

#include "api.h"

/* What handlers compute with. order_free() */
struct order {
    char id[64], number[32], customer_id[64], license_id[64], plan_id[64];
    char status[16], period[24], free_period[24];
    char coupon_code[80], currency[8]; /* "": it has no price */
    int64_t subtotal, total, paid_at, rev;
    bool manual_validation;
    struct jv *plan; /* as it was ordered */
};
void order_free(struct order *o);
/* The order's license, archived or not; *ret NULL where another vendor has it by now. The caller frees *ret. */
enum err order_license(struct api *rq, const struct order *o, struct jv **ret) MUST_USE;
/* Of the caller's vendor. shown may be NULL; the caller frees *shown. */
enum err order_load(struct api *rq, struct str id, struct order *ret, struct jv **shown) MUST_USE;

/* Makes the order of the body `in` (members as POST /orders has them) and its license; rq->out: the order, with "key". source: "vendor" or
 * "portal". only_visible: plans that customers do not see are not there. */
enum err order_make(struct api *rq, const struct jv *in, struct str customer_id, const char *source, bool only_visible) MUST_USE;

/* What was ordered begins: terms that run from now, the license becomes active, a coupon's free period is added. Of a license that is active
 * already only the last, once, while the order is pending; ERR_CONFLICT where it can become active no more. */
enum err order_begin(struct api *rq, const struct order *o, struct str reason) MUST_USE;

extern const struct schema ORDER;
enum err order_answer(struct api *rq, struct str id) MUST_USE; /* rq->out, with its ETag */

#endif
