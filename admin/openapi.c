/* The OpenAPI 3.1 document, made of the tables that dispatch and check: what it says is what is done. */
#include <stdio.h>
#include <string.h>

#include "api_routes.h"
#include "http.h"
#include "portal.h"
#include "problems.h"
#include "pullgate/mem.h"
#include "roles.h"

static struct jv *type_of(const char *name, bool is_null)
{
    if (!is_null)
        return jv_string(str_c(name));
    struct jv *list = jv_array();
    jv_push(list, jv_string(str_c(name)));
    jv_push(list, jv_string(S("null")));
    return list;
}

static struct jv *object_schema(const struct field *fields, bool is_answer, bool is_patch);

static struct jv *field_schema(const struct field *f, bool is_answer)
{
    struct jv *s = jv_object();
    bool is_null = f->flags & FIELD_NULL || f->type == FIELD_TIME;
    switch (f->type) {
    case FIELD_STRING:
    case FIELD_TEXT:
    case FIELD_SECRET:
        jv_set(s, "type", type_of("string", is_null));
        if (!is_answer) {
            jv_set_int(s, "minLength", f->flags & FIELD_EMPTY ? 0 : f->min ? f->min : 1);
            jv_set_int(s, "maxLength", f->max ? f->max : 200);
            if (f->type == FIELD_SECRET)
                jv_set_bool(s, "writeOnly", true);
        }
        break;
    case FIELD_INT:
        jv_set(s, "type", type_of("integer", is_null));
        jv_set_int(s, "minimum", f->min);
        if (f->max)
            jv_set_int(s, "maximum", f->max);
        break;
    case FIELD_BOOL:
        jv_set(s, "type", type_of("boolean", is_null));
        break;
    case FIELD_TIME:
        jv_set(s, "type", type_of("string", is_null));
        if (is_answer)
            jv_set_c(s, "format", "date-time");
        break;
    case FIELD_MAP:
        jv_set(s, "type", type_of("object", is_null));
        break;
    case FIELD_OBJECT:
        jv_free(s);
        s = object_schema(f->sub, is_answer, false);
        break;
    case FIELD_STRINGS: {
        struct jv *items = jv_object();
        jv_set_c(items, "type", "string");
        jv_set(s, "type", type_of("array", is_null));
        jv_set(s, "items", items);
        if (!is_answer)
            jv_set_int(s, "maxItems", f->max ? f->max : 100);
        break;
    }
    case FIELD_LIST:
        jv_set(s, "type", type_of("array", is_null));
        jv_set(s, "items", object_schema(f->sub, is_answer, false));
        if (!is_answer)
            jv_set_int(s, "maxItems", f->max ? f->max : 100);
        break;
    case FIELD_VALUE: {
        struct jv *types = jv_array();
        jv_push(types, jv_string(S("string")));
        jv_push(types, jv_string(S("integer")));
        jv_push(types, jv_string(S("object")));
        jv_set(s, "type", types);
        break;
    }
    }
    if (f->one_of) {
        struct jv *list = jv_array();
        struct str rest = str_c(f->one_of), one;
        while (str_next(&rest, '|', &one))
            jv_push(list, jv_string(one));
        jv_set(s, "enum", list);
    }
    if (f->about)
        jv_set_c(s, "description", f->about);
    return s;
}

static struct jv *object_schema(const struct field *fields, bool is_answer, bool is_patch)
{
    struct jv *s = jv_object(), *properties = jv_object(), *required = jv_array();
    for (const struct field *f = fields; f && f->name; f++) {
        jv_set(properties, f->name, field_schema(f, is_answer));
        if (is_answer ? !(f->flags & FIELD_OPTIONAL) : f->flags & FIELD_REQUIRED && !is_patch)
            jv_push(required, jv_string(str_c(f->name)));
    }
    jv_set_c(s, "type", "object");
    jv_set(s, "properties", properties);
    if (jv_len(required))
        jv_set(s, "required", required);
    else
        jv_free(required);
    jv_set_bool(s, "additionalProperties", false);
    return s;
}

static struct jv *ref(const char *kind, const char *name)
{
    struct strbuf b = {0};
    struct jv *v = jv_object();
    sb_addf(&b, "#/components/%s/%s", kind, name);
    jv_set_str(v, "$ref", sb_str(&b));
    sb_free(&b);
    return v;
}

static struct jv *json_content(const char *type, struct jv *take_schema)
{
    struct jv *content = jv_object(), *media = jv_object();
    jv_set(media, "schema", take_schema);
    jv_set(content, type, media);
    return content;
}

static struct jv *parameter(const char *in, struct str name, const char *about, bool is_required, const char *type)
{
    struct jv *p = jv_object(), *schema = jv_object();
    jv_set_str(p, "name", name);
    jv_set_c(p, "in", in);
    if (is_required)
        jv_set_bool(p, "required", true);
    if (about)
        jv_set_c(p, "description", about);
    jv_set_c(schema, "type", type);
    jv_set(p, "schema", schema);
    return p;
}

static struct jv *parameters(const struct route *r)
{
    struct jv *list = jv_array();
    struct str rest = str_c(r->path), part;
    while (str_next(&rest, '/', &part))
        if (part.n > 2 && part.p[0] == '{')
            jv_push(list, parameter("path", str_sub(part, 1, part.n - 2), NULL, true, "string"));
    if (r->flags & ROUTE_LIST) {
        jv_push(list, parameter("query", S("limit"), "1 to 1000; 100 when absent", false, "integer"));
        jv_push(list, parameter("query", S("cursor"), "next_cursor of the page before", false, "string"));
    }
    if (r->flags & ROUTE_COUNT)
        jv_push(list, parameter("query", S("count"), "1: how many the filter finds, in count or, beyond what is counted, count_at_least", false,
                                "string"));
    for (const struct query_param *p = r->params; p && p->name; p++)
        jv_push(list, parameter("query", str_c(p->name), p->about, false, "string"));
    if (route_can_run_dry(r))
        jv_push(list, parameter("query", S("dry_run"), "1: the answer that the change would have (200), with Dry-Run: true; nothing is changed",
                                false, "string"));
    if (r->method == HEAD_POST && !(r->flags & ROUTE_READS))
        jv_push(list, parameter("header", S("Idempotency-Key"), "the same key and request get the same answer for a day", false, "string"));
    if (r->method == HEAD_PATCH || r->method == HEAD_DELETE || r->method == HEAD_PUT)
        jv_push(list, parameter("header", S("If-Match"), "ETag that the object must still have", false, "string"));
    return list;
}

static struct jv *answer_schema(const struct route *r)
{
    if (!(r->flags & ROUTE_LIST))
        return ref("schemas", r->answer->name);
    struct jv *s = jv_object(), *properties = jv_object(), *items = jv_object(), *cursor = jv_object(), *required = jv_array();
    jv_set_c(items, "type", "array");
    jv_set(items, "items", ref("schemas", r->answer->name));
    jv_set(cursor, "type", type_of("string", true));
    jv_set(properties, "items", items);
    jv_set(properties, "next_cursor", cursor);
    if (r->flags & ROUTE_COUNT) {
        static const struct field COUNT_FIELDS[] = {{.name = "count", .type = FIELD_INT}, {.name = "count_at_least", .type = FIELD_INT}};
        for (size_t i = 0; i < 2; i++)
            jv_set(properties, COUNT_FIELDS[i].name, field_schema(&COUNT_FIELDS[i], true));
    }
    jv_push(required, jv_string(S("items")));
    jv_push(required, jv_string(S("next_cursor")));
    jv_set_c(s, "type", "object");
    jv_set(s, "properties", properties);
    jv_set(s, "required", required);
    jv_set_bool(s, "additionalProperties", false);
    return s;
}

static struct jv *responses(const struct route *r)
{
    struct jv *all = jv_object(), *good = jv_object();
    bool is_plain = r->flags & ROUTE_PLAIN;
    /* As http.c answers: 204 without a body, 201 with the place of what a POST made, else 200. */
    const char *status = !r->answer && !is_plain ? "204" : r->method == HEAD_POST && !(r->flags & ROUTE_ACTION) ? "201" : "200";
    jv_set_c(good, "description", r->about);
    if (r->answer)
        jv_set(good, "content", json_content("application/json", answer_schema(r)));
    jv_set(all, status, good);
    jv_set(all, "default", ref("responses", "Problem"));
    return all;
}

static struct jv *security(const struct route *r)
{
    struct jv *list = jv_array();
    if (r->role != ROLE_NONE) {
        for (int i = 0; i < 2; i++) {
            struct jv *s = jv_object();
            bool is_credential = i == 0 && r->role == ROLE_CUSTOMER; /* a customer's administrator is a person */
            if (i == 0 && !is_credential && r->role >= ROLE_CUSTOMER) {
                jv_free(s);
                continue;
            }
            jv_set(s, i == 1 ? "session" : is_credential ? "credential" : "token", jv_array());
            jv_push(list, s);
        }
    }
    return list;
}

static struct jv *operation(const struct route *r)
{
    struct jv *op = jv_object(), *params = parameters(r);
    jv_set_c(op, "operationId", r->action);
    jv_set_c(op, "summary", r->about);
    if (jv_len(params))
        jv_set(op, "parameters", params);
    else
        jv_free(params);
    if (r->request) {
        struct jv *body = jv_object();
        jv_set(body, "content", json_content("application/json", ref("schemas", r->request->name)));
        jv_set(op, "requestBody", body);
    }
    if (r->flags & ROUTE_ROWS) {
        struct jv *body = jv_object(), *csv = jv_object(), *content;
        jv_set_c(csv, "type", "string");
        content = json_content("text/csv", csv);
        struct jv *media = jv_object(), *text = jv_object();
        jv_set_c(text, "type", "string");
        jv_set(media, "schema", text);
        jv_set(content, "application/x-ndjson", media);
        jv_set(body, "content", content);
        jv_set(op, "requestBody", body);
    }
    jv_set(op, "responses", responses(r));
    jv_set(op, "security", security(r));
    char scope[SCOPE_MAX];
    if (r->role != ROLE_NONE)
        jv_set_c(op, "x-role", role_text(r->role));
    if (scope_of_route(r, scope))
        jv_set_c(op, "x-scope", scope);
    return op;
}

static struct jv *problem_response(void)
{
    static const struct field fields[] = {
        {.name = "type", .type = FIELD_STRING},
        {.name = "title", .type = FIELD_STRING},
        {.name = "status", .type = FIELD_INT},
        {.name = "detail", .type = FIELD_STRING},
        {.name = "code", .type = FIELD_STRING, .about = "stable, for programs"},
        {.name = "field", .type = FIELD_STRING, .flags = FIELD_OPTIONAL, .about = "the offending member, parameter or header"},
        {.name = "request_id", .type = FIELD_STRING, .flags = FIELD_OPTIONAL},
        {.name = "allowed_actions", .type = FIELD_STRINGS, .flags = FIELD_OPTIONAL, .about = "with action_not_allowed"},
        {.name = "report", .type = FIELD_MAP, .flags = FIELD_OPTIONAL, .about = "with import_failed: what is wrong with which line"},
        {.name = "count", .type = FIELD_INT, .flags = FIELD_OPTIONAL, .about = "with count_differs: how many the filter finds"},
        {.name = "oldest_after", .type = FIELD_INT, .flags = FIELD_OPTIONAL, .about = "with events_pruned: where to start anew"},
        {.name = NULL},
    };
    struct jv *r = jv_object();
    jv_set_c(r, "description", "Refused or failed; nothing was changed (RFC 9457)");
    jv_set(r, "content", json_content("application/problem+json", object_schema(fields, true, false)));
    return r;
}

/* What `code` can be. */
static struct jv *problems(void)
{
    struct jv *list = jv_array();
    for (const struct problem *p = PROBLEMS; p->code; p++) {
        struct jv *v = jv_object();
        jv_set_int(v, "status", p->status);
        jv_set_c(v, "code", p->code);
        jv_set_c(v, "about", p->about);
        jv_push(list, v);
    }
    return list;
}

static struct jv *security_scheme(const char *scheme, const char *about)
{
    struct jv *s = jv_object();
    jv_set_c(s, "type", "http");
    jv_set_c(s, "scheme", scheme);
    jv_set_c(s, "description", about);
    return s;
}

void openapi_print(struct strbuf *ret)
{
    struct jv *doc = jv_object(), *info = jv_object(), *paths = jv_object(), *schemas = jv_object();
    struct jv *components = jv_object(), *reply = jv_object(), *schemes = jv_object();
    for (const struct route *const *table = ROUTE_TABLES; *table; table++) {
        for (const struct route *r = *table; r->path; r++) {
            if (!jv_get(paths, r->path))
                jv_set(paths, r->path, jv_object());
            char method[8];
            snprintf(method, sizeof method, "%s", route_method_text(r->method));
            for (char *c = method; *c; c++)
                *c = (char)(*c - 'A' + 'a');
            jv_set(jv_get(paths, r->path), method, operation(r));
            if (r->request)
                jv_set(schemas, r->request->name, object_schema(r->request->fields, false, r->method == HEAD_PATCH));
            if (r->answer)
                jv_set(schemas, r->answer->name, object_schema(r->answer->fields, true, false));
        }
    }
    jv_set_c(info, "title", "Pullgate");
    jv_set_c(info, "version", PULLGATE_VERSION);
    jv_set(reply, "Problem", problem_response());
    jv_set(schemes, "token", security_scheme("bearer", "a token of the admin API, pga_…, or the bootstrap token"));
    jv_set(schemes, "session", security_scheme("bearer", "a person's session, pgs_…: POST /api/v1/sessions, or /portal/v1/sessions for a customer's"));
    jv_set(schemes, "credential", security_scheme("basic", "a customer's credential or license key"));
    jv_set(components, "schemas", schemas);
    jv_set(components, "responses", reply);
    jv_set(components, "securitySchemes", schemes);
    jv_set(components, "x-problems", problems());
    jv_set_c(doc, "openapi", "3.1.0");
    jv_set(doc, "info", info);
    jv_set(doc, "paths", paths);
    jv_set(doc, "components", components);
    jv_dump(doc, ret);
    jv_free(doc);
}

static enum err openapi_get(struct api *rq)
{
    openapi_print(&rq->raw);
    rq->raw_type = "application/json";
    return ERR_OK;
}

const struct route META_ROUTES[] = {
    {HEAD_GET, "/api/v1/openapi.json", openapi_get, ROLE_NONE, ROUTE_PLAIN, NULL, NULL, NULL, "openapi.get", "This document"},
    {.path = NULL},
};
