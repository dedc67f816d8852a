/* The tables of routes and the match of a path. Dispatch and the OpenAPI document read the same tables. */
#include <string.h>

#include "api_routes.h"
#include "http.h"
#include "portal.h"
#include "pullgate/mem.h"

const struct route *const ROUTE_TABLES[] = {
    VENDOR_ROUTES, UPSTREAM_ROUTES, APPLICATION_ROUTES, CUSTOMER_ROUTES, LICENSE_ROUTES, GRANT_ROUTES, SIGNER_ROUTES, KEY_ROUTES,
    USAGE_ROUTES, LOG_ROUTES, EXPLAIN_ROUTES, META_ROUTES, PORTAL_ROUTES, PLAN_ROUTES, COUPON_ROUTES, PLAN_CHANGE_ROUTES, ORDER_ROUTES, HOOK_ROUTES, PORTAL_REQUEST_ROUTES, MARKETPLACE_ROUTES,
    JOB_ROUTES,
    IMPORT_ROUTES, BULK_ROUTES, TRANSFER_ROUTES,
    USER_ROUTES, SESSION_ROUTES,
    WEBHOOK_ROUTES, MAIL_ROUTES,
    NULL,
};

bool route_can_run_dry(const struct route *r)
{
    return r->method != HEAD_GET && !(r->flags & (ROUTE_SLOW | ROUTE_HASHES | ROUTE_READS)) && r->role != ROLE_NONE;
}

static int hex_value(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* Grammar of a parameter's value, after decoding: ids, versions, tags. Everything else is a path that does not exist. */
static bool param_char(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || (c != '\0' && strchr("._:@+~-", c));
}

static char *param_decode(struct str s)
{
    struct strbuf b = {0};
    if (s.n < 1 || s.n > 300)
        return NULL;
    for (size_t i = 0; i < s.n; i++) {
        char c = s.p[i];
        if (c == '%') {
            bool is_whole = i + 2 < s.n;
            int hi = is_whole ? hex_value(s.p[i + 1]) : -1, lo = is_whole ? hex_value(s.p[i + 2]) : -1;
            if (hi < 0 || lo < 0) {
                sb_free(&b);
                return NULL;
            }
            c = (char)(hi << 4 | lo);
            i += 2;
        }
        if (!param_char(c)) {
            sb_free(&b);
            return NULL;
        }
        sb_add_char(&b, c);
    }
    return sb_take(&b);
}

static bool route_matches(const char *template, struct str path, struct str raw[API_MAX_PARAMS])
{
    struct str want = str_c(template), have = path, w, h;
    size_t n = 0;
    while (str_next(&want, '/', &w)) {
        if (!str_next(&have, '/', &h))
            return false;
        if (w.n && w.p[0] == '{') {
            AN(n < API_MAX_PARAMS);
            raw[n++] = h;
        } else if (!str_eq(w, h)) {
            return false;
        }
    }
    return !str_next(&have, '/', &h);
}

const struct route *route_find(enum head_method method, struct str path, char *values[API_MAX_PARAMS], unsigned *ret_allowed)
{
    const struct route *found = NULL;
    struct str raw[API_MAX_PARAMS] = {{0}};
    unsigned allowed = 0;
    size_t fewest = API_MAX_PARAMS + 1;
    if (method == HEAD_HEAD)
        method = HEAD_GET;
    for (const struct route *const *table = ROUTE_TABLES; *table; table++) {
        for (const struct route *r = *table; r->path; r++) {
            struct str here[API_MAX_PARAMS] = {{0}};
            if (!route_matches(r->path, path, here))
                continue;
            size_t n = 0; /* "/licenses/export" is itself, whatever "/licenses/{id}" could mean by it */
            while (n < API_MAX_PARAMS && here[n].p)
                n++;
            if (n > fewest)
                continue;
            if (n < fewest) {
                fewest = n;
                found = NULL;
                allowed = 0;
                memset(raw, 0, sizeof raw);
            }
            allowed |= 1u << r->method;
            if (r->method == method && !found) {
                found = r;
                memcpy(raw, here, sizeof raw);
            }
        }
    }
    for (size_t i = 0; found && i < API_MAX_PARAMS && raw[i].p; i++) {
        values[i] = param_decode(raw[i]);
        if (!values[i]) { /* no such object can be: as if the path did not exist */
            found = NULL;
            allowed = 0;
        }
    }
    *ret_allowed = allowed;
    return found;
}

const char *route_method_text(enum head_method m)
{
    switch (m) {
    case HEAD_GET:
        return "GET";
    case HEAD_HEAD:
        return "HEAD";
    case HEAD_POST:
        return "POST";
    case HEAD_PUT:
        return "PUT";
    case HEAD_PATCH:
        return "PATCH";
    case HEAD_DELETE:
        return "DELETE";
    case HEAD_OPTIONS:
        return "OPTIONS";
    case HEAD_METHOD_NONE:
    case HEAD_OTHER:
        break;
    }
    return "OTHER";
}
