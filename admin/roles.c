#include "roles.h"

#include <stdio.h>
#include <string.h>

static const struct {
    enum role role;
    const char *text;
} ROLES[] = {
    {ROLE_VIEWER, "viewer"},     {ROLE_SUPPORT, "support"},
    {ROLE_LICENSES, "license_manager"}, {ROLE_ADMIN, "admin"},
    {ROLE_OWNER, "owner"},       {ROLE_OPERATOR, "operator"},
    {ROLE_CUSTOMER, "customer_viewer"}, {ROLE_CUSTOMER_ADMIN, "customer_admin"},
};
#define ROLES_N (sizeof ROLES / sizeof *ROLES)

const char *role_text(enum role r)
{
    for (size_t i = 0; i < ROLES_N; i++)
        if (ROLES[i].role == r)
            return ROLES[i].text;
    return "";
}

enum role role_parse(struct str text)
{
    for (size_t i = 0; i < ROLES_N; i++)
        if (str_eq_c(text, ROLES[i].text))
            return ROLES[i].role;
    return ROLE_NONE;
}

bool role_allows(enum role have, enum role want)
{
    if (want == ROLE_NONE)
        return true;
    if (have == ROLE_NONE || (want >= ROLE_CUSTOMER) != (have >= ROLE_CUSTOMER))
        return false;
    return have >= want;
}

/* "license" -> "licenses", "repository" -> "repositories"; what has no plural stays. */
static size_t plural(struct str one, char ret[SCOPE_MAX])
{
    bool is_same = str_eq(one, S("audit")) || str_ends(one, S("s"));
    int n = is_same ? snprintf(ret, SCOPE_MAX, "%.*s", STR(one))
            : str_ends(one, S("y")) && !str_ends(one, S("ey")) ? snprintf(ret, SCOPE_MAX, "%.*sies", STR(str_sub(one, 0, one.n - 1)))
                                    : snprintf(ret, SCOPE_MAX, "%.*ss", STR(one));
    return n > 0 && n < SCOPE_MAX ? (size_t)n : 0;
}

/* What everybody may of himself, whatever his token is for: "self.get". */
static bool is_self(const struct route *r)
{
    return str_starts(str_c(r->action), S("self."));
}

bool scope_of_route(const struct route *r, char ret[SCOPE_MAX])
{
    struct str object, verb;
    if (r->role == ROLE_NONE || r->role >= ROLE_CUSTOMER || !r->action || is_self(r))
        return false;
    if (!str_cut(str_c(r->action), '.', &object, &verb)) {
        snprintf(ret, SCOPE_MAX, "%s", r->action);
        return true;
    }
    size_t n = plural(object, ret);
    if (n)
        snprintf(ret + n, SCOPE_MAX - n, ":%s", r->method == HEAD_GET ? "read" : "write");
    return n > 0;
}

/* Whether one of the list is the scope, or its :write where it is a :read. */
static bool scopes_have(struct str scopes, struct str scope)
{
    struct str one, base, base_one, kind, kind_one;
    bool is_read = str_cut(scope, ':', &base, &kind) && str_eq(kind, S("read"));
    while (str_next(&scopes, ' ', &one)) {
        if (str_eq(one, scope))
            return true;
        if (is_read && str_cut(one, ':', &base_one, &kind_one) && str_eq(base, base_one) && str_eq(kind_one, S("write")))
            return true;
    }
    return false;
}

bool scopes_allow(struct str scopes, const struct route *r)
{
    char scope[SCOPE_MAX];
    return !scopes.n || r->role == ROLE_NONE || is_self(r) || (scope_of_route(r, scope) && scopes_have(scopes, str_c(scope)));
}

bool scope_exists(struct str scope, const struct route *const *tables)
{
    char one[SCOPE_MAX];
    for (const struct route *const *table = tables; *table; table++)
        for (const struct route *r = *table; r->path; r++)
            if (scope_of_route(r, one) && scopes_have(scope, str_c(one)))
                return true;
    return false;
}

bool scopes_within(struct str inner, struct str outer)
{
    struct str one;
    if (!outer.n)
        return true;
    if (!inner.n)
        return false;
    while (str_next(&inner, ' ', &one))
        if (!scopes_have(outer, one))
            return false;
    return true;
}
