/* The tables of routes of the admin API, and what its resources share. */
#ifndef ADMIN_API_ROUTES_H
#define ADMIN_API_ROUTES_H

#include "api.h"

extern const struct route VENDOR_ROUTES[];      /* api_vendors.c: vendors, tokens */
extern const struct route UPSTREAM_ROUTES[];    /* api_upstreams.c */
extern const struct route APPLICATION_ROUTES[]; /* api_applications.c: applications, repositories, versions, sync */
extern const struct route CUSTOMER_ROUTES[];    /* api_customers.c: customers, credentials */
extern const struct route LICENSE_ROUTES[];     /* api_licenses.c: licenses, their actions */
extern const struct route GRANT_ROUTES[];       /* api_grants.c */
extern const struct route USAGE_ROUTES[];       /* api_usage.c: usage and installations of a license */
extern const struct route IMPORT_ROUTES[];      /* api_import.c: import, export */
extern const struct route BULK_ROUTES[];        /* api_bulk.c */
extern const struct route TRANSFER_ROUTES[];    /* api_transfers.c */
extern const struct route LOG_ROUTES[];         /* api_logs.c: pulls, audit, events */
extern const struct route JOB_ROUTES[];         /* jobs.c: what the clock could not do */
extern const struct route WEBHOOK_ROUTES[];     /* api_webhooks.c: webhooks, their deliveries */
extern const struct route MAIL_ROUTES[];        /* api_mail.c: templates, the log of mails */
extern const struct route EXPLAIN_ROUTES[];     /* explain.c */
extern const struct route PLAN_ROUTES[];        /* api_plans.c */
extern const struct route COUPON_ROUTES[];      /* api_coupons.c */
extern const struct route PLAN_CHANGE_ROUTES[]; /* api_plan_changes.c: change-plan, scheduled changes */
extern const struct route ORDER_ROUTES[];       /* api_orders.c */
extern const struct route HOOK_ROUTES[];        /* api_hooks.c: payments */
extern const struct route MARKETPLACE_ROUTES[]; /* api_marketplace.c: licenses by a marketplace's subscription */
extern const struct route PORTAL_REQUEST_ROUTES[]; /* portal_requests.c: plans, orders, trials, requests of customers */
extern const struct route SIGNER_ROUTES[];      /* signer.c: the keys that sign */
extern const struct route KEY_ROUTES[];         /* api_keys.c: validation, license files, revocation lists */
extern const struct route USER_ROUTES[];        /* api_users.c: people of the vendor and of customers, invitations */
extern const struct route SESSION_ROUTES[];     /* api_sessions.c: signing in, oneself; also under /portal/v1 */
extern const struct route META_ROUTES[];        /* openapi.c */

/* Whether the caller may give somebody the role: at most his own, and an operator only in the first vendor (api_vendors.c). */
enum err rights_check(struct api *rq, enum role role) MUST_USE;

#endif
