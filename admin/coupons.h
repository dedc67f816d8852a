/* Coupons as orders use them. A coupon takes a share or an amount off, adds a free period, or adds a grant or features. */
#ifndef ADMIN_COUPONS_H
#define ADMIN_COUPONS_H

#include "api.h"

struct coupon_use {
    char id[64];
    struct jv *shown; /* the coupon as it was when it was used; coupon_use_free() */
    int64_t discount; /* minor units, at most the subtotal */
    char free_period[24];
    struct jv *grant, *features; /* to be added to the license, or NULL */
};

/* What the code does for this customer's order of the plan (as plans_get() gives it). Refuses with coupon_unknown, coupon_expired,
 * coupon_used_up, coupon_already_used, coupon_not_applicable (ERR_CONFLICT, field "coupon"). Nothing is written. */
enum err coupon_look(struct api *rq, struct str code, struct str customer_id, const struct jv *plan, int64_t subtotal,
                     struct coupon_use *ret) MUST_USE;
/* Counts the use; coupon_used_up when another took the last one. */
enum err coupon_take(struct api *rq, const struct coupon_use *u, const char *order_id, struct str customer_id) MUST_USE;
/* An order that came to nothing gives its use back. */
enum err coupon_give_back(struct api *rq, struct str order_id) MUST_USE;
void coupon_use_free(struct coupon_use *u);

#endif
