/* Roles and the scopes of tokens: who may call which route. Pure. A role says how far somebody reaches, a scope narrows a token within
 * its role. The scope of a route follows from its action: "license.create" needs licenses:write, "license.list" licenses:read; one word
 * ("explain") is its own scope. Used by http.c, the resources that hand out rights, and the OpenAPI document. */
#ifndef ADMIN_ROLES_H
#define ADMIN_ROLES_H

#include "api.h"

#define ROLES_VENDOR   "operator|owner|admin|license_manager|support|viewer"
#define ROLES_CUSTOMER "customer_admin|customer_viewer"

const char *role_text(enum role r); /* "" for ROLE_NONE */
enum role role_parse(struct str text); /* ROLE_NONE: no such role */
/* Roles of the admin API are ordered; those of the portal are ordered among themselves, and none of one kind is any of the other. */
bool role_allows(enum role have, enum role want);

#define SCOPE_MAX 64
/* The scope that a token with scopes needs for the route; false: none has it (no sign-in, or the portal's). */
bool scope_of_route(const struct route *r, char ret[SCOPE_MAX]);
/* scopes: separated by blanks; empty: everything that the role may. x:write includes x:read. */
bool scopes_allow(struct str scopes, const struct route *r);
/* One scope that some route of the tables (NULL-terminated) needs. */
bool scope_exists(struct str scope, const struct route *const *tables);
/* Whether whoever has `outer` may hand out `inner`: empty is everything. */
bool scopes_within(struct str inner, struct str outer);

#endif
