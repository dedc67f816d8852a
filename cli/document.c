/* Commands out of the API's own document: RESOURCE VERB is the operation "resource.verb", its options are the members of its body and its
 * parameters, its operands what its path names. So every operation of the server is a command, also of a newer one. What people write
 * shorter than the API has it (grants, repositories, names instead of ids) is turned here. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pullgate/file.h"
#include "pullgate/jv.h"
#include "pullgate/mem.h"
#include "pullgate/str.h"

#include "cli.h"

#define PAGE "500" /* rows asked for at once */
#define COLUMNS_SHOWN 7

static struct jv *document;

/* Tables that people look at most; others show the first plain members of the answer. */
static const struct {
    const char *operation, *columns;
} COLUMNS[] = {
    {"upstream.list", "id name url username password_set redirects"},
    {"application.list", "id slug name repositories"},
    {"customer.list", "id slug name email"},
    {"credential.list", "id name prefix status expires_at last_used_at"},
    {"license.list", "id name customer_id application_id effective_status expires_at grants"},
    {"license.history", "at event actor from_status to_status reason"},
    {"token.list", "id name role scopes expires_at"},
    {"plan.list", "id slug name type period price.amount price.currency visible"},
    {"order.list", "id number customer_id status total currency license_id"},
    {"coupon.list", "id code kind value valid_until max_uses uses"},
    {"pull.list", "at customer_id repository reference decision reason client"},
    {"audit.list", "at actor action object outcome"},
    {"event.list", "id at type license_id customer_id actor"},
    {"version.list", "version channel released_at"},
    {"webhook.list", "id url events enabled"},
    {"transfer.list", "id status license_id expires_at"},
    {"user.list", "id email name role disabled"},
};

struct operation {
    const char *method, *path, *id; /* borrowed from the document */
    const struct jv *op, *request;  /* request: the schema of the body, or NULL */
    const char *request_type;       /* "application/json", or what else it takes */
    const struct jv *item;          /* schema of what it answers, of one row of a list */
    const char *answer_type;
    bool is_list;
};

/* ---- the document ------------------------------------------------------------------------------------ */

static const struct jv *doc(void)
{
    if (document == NULL)
        document = api("GET", "/openapi.json", NULL);
    return document;
}

/* {"$ref":"#/components/schemas/X"} -> X's schema. */
static const struct jv *schema_of(const struct jv *s)
{
    struct str ref = jv_get_str(s, "$ref");
    if (ref.n == 0)
        return s;
    char *name = str_dup(str_skip(ref, (size_t)(str_rindex(ref, '/') + 1)));
    s = jv_get(jv_get(jv_get(doc(), "components"), "schemas"), name);
    mem_free(name);
    return s;
}

static void operation_read(const char *path, const char *method, const struct jv *op, struct operation *ret)
{
    const struct jv *body = jv_get(jv_get(op, "requestBody"), "content"), *replies = jv_get(op, "responses");
    *ret = (struct operation){.method = method, .path = path, .op = op, .id = jv_get_c(op, "operationId", "")};
    for (void *it = jv_iter(body); it != NULL; it = jv_iter_next(body, it))
        if (ret->request_type == NULL || strcmp(jv_iter_key(it), "application/json") == 0) {
            ret->request_type = jv_iter_key(it);
            ret->request = schema_of(jv_get(jv_iter_value(it), "schema"));
        }
    for (void *it = jv_iter(replies); it != NULL; it = jv_iter_next(replies, it)) {
        const struct jv *content = jv_get(jv_iter_value(it), "content");
        if (jv_iter_key(it)[0] != '2')
            continue;
        for (void *c = jv_iter(content); c != NULL; c = jv_iter_next(content, c)) {
            ret->answer_type = jv_iter_key(c);
            ret->item = schema_of(jv_get(jv_iter_value(c), "schema"));
        }
    }
    const struct jv *properties = jv_get(ret->item, "properties"), *items = jv_get(properties, "items");
    if (items != NULL && jv_get(properties, "next_cursor") != NULL) {
        ret->is_list = true;
        ret->item = schema_of(jv_get(items, "items"));
    }
}

/* Calls fn for each operation of the admin API until it says stop. */
static bool each_operation(bool (*fn)(void *ctx, const struct operation *o), void *ctx)
{
    const struct jv *paths = jv_get(doc(), "paths");
    for (void *p = jv_iter(paths); p != NULL; p = jv_iter_next(paths, p)) {
        if (strncmp(jv_iter_key(p), "/api/v1", 7) != 0)
            continue;
        const struct jv *methods = jv_iter_value(p);
        for (void *m = jv_iter(methods); m != NULL; m = jv_iter_next(methods, m)) {
            struct operation o;
            operation_read(jv_iter_key(p) + 7, jv_iter_key(m), jv_iter_value(m), &o);
            if (fn(ctx, &o))
                return true;
        }
    }
    return false;
}

/* "licenses", "license", "mail-templates" -> does it mean the part of an operation's id before the dot? */
static bool resource_is(const char *given, struct str name)
{
    struct strbuf b = {0};
    for (const char *c = given; *c != '\0'; c++)
        sb_add_char(&b, *c == '-' ? '_' : *c);
    struct str g = sb_str(&b);
    bool is = str_eq(g, name) || (g.n == name.n + 1 && str_starts(g, name) && g.p[g.n - 1] == 's') ||
              (g.n == name.n + 2 && str_starts(g, name) && strcmp(g.p + name.n, "es") == 0) ||
              (g.n == name.n + 2 && g.n > 3 && str_starts(g, str_sub(name, 0, name.n - 1)) && strcmp(g.p + name.n - 1, "ies") == 0 &&
               name.p[name.n - 1] == 'y');
    sb_free(&b);
    return is;
}

static bool verb_is(const char *given, struct str name)
{
    size_t n = strlen(given);
    bool is = n == name.n;
    for (size_t i = 0; is && i < n; i++)
        is = name.p[i] == (given[i] == '-' ? '_' : given[i]);
    return is;
}

struct wanted {
    const char *resource, *verb;
    struct operation found;
    bool has_resource;
};

static bool is_wanted(void *ctx, const struct operation *o)
{
    struct wanted *w = ctx;
    struct str resource, verb;
    if (!str_cut(str_c(o->id), '.', &resource, &verb) || !resource_is(w->resource, resource))
        return false;
    w->has_resource = true;
    if (!verb_is(w->verb, verb))
        return false;
    w->found = *o;
    return true;
}

static bool operation_find(const char *resource, const char *verb, struct operation *ret, bool *ret_has_resource)
{
    struct wanted w = {.resource = resource, .verb = verb};
    bool found = each_operation(is_wanted, &w);
    if (ret_has_resource != NULL)
        *ret_has_resource = w.has_resource;
    *ret = w.found;
    return found;
}

static const struct jv *parameter_find(const struct operation *o, const char *in, const char *name)
{
    const struct jv *list = jv_get(o->op, "parameters");
    for (size_t i = 0; i < jv_len(list); i++) {
        const struct jv *p = jv_at(list, i);
        struct str have = jv_get_str(p, "name");
        bool is_family = have.n > 2 && str_index(have, '.') > 0 && /* metadata.KEY */
                         strncmp(have.p, name, (size_t)str_index(have, '.') + 1) == 0;
        if (str_eq_c(jv_get_str(p, "in"), in) && (str_eq_c(have, name) || is_family))
            return p;
    }
    return NULL;
}

/* ---- names for ids --------------------------------------------------------------------------------------- */

/* "lic_" and 26 characters. */
static bool is_id(const char *given)
{
    const char *mark = strchr(given, '_');
    return mark != NULL && mark - given >= 2 && mark - given <= 4 && strlen(mark + 1) == 26 &&
           strspn(mark + 1, "0123456789abcdefghijklmnopqrstuvwxyz") == 26;
}

static bool is_called(const struct jv *item, const char *given)
{
    static const char *const keys[] = {"slug", "name", "number", "code", "email", "url", "event", "fingerprint"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (str_eq_c(jv_get_str(item, keys[i]), given))
            return true;
    return false;
}

static char *find_in_list(const struct operation *list, const char *path, const char *given)
{
    static const char *const filters[] = {"slug", "name", "number", "code", "email"};
    struct strbuf at = {0};
    char *id = NULL;

    /* A filter of the server first: a list may be long. Then all of it: a name may be any of its members. */
    for (size_t f = 0; f <= sizeof filters / sizeof *filters && id == NULL; f++) {
        char *cursor = NULL;
        bool is_whole = f == sizeof filters / sizeof *filters;
        if (!is_whole && parameter_find(list, "query", filters[f]) == NULL)
            continue;
        do {
            sb_reset(&at);
            sb_addf(&at, "%s?limit=1000", path);
            if (!is_whole) {
                sb_addf(&at, "&%s=", filters[f]);
                add_query_value(&at, str_c(given));
            }
            if (cursor != NULL) {
                sb_addc(&at, "&cursor=");
                add_query_value(&at, str_c(cursor));
            }
            MEM_FREE(cursor);
            struct jv *page = api("GET", at.p, NULL);
            struct jv *items = jv_get(page, "items");
            for (size_t i = 0; i < jv_len(items); i++) {
                if (!is_called(jv_at(items, i), given) || jv_get_str(jv_at(items, i), "id").n == 0)
                    continue;
                if (id != NULL)
                    die(EXIT_FAILED, "\"%s\" is not unique in %s, give its id", given, path + 1);
                id = str_dup(jv_get_str(jv_at(items, i), "id"));
            }
            if (jv_get_str(page, "next_cursor").n > 0)
                cursor = str_dup(jv_get_str(page, "next_cursor"));
            jv_free(page);
        } while (cursor != NULL);
    }
    sb_free(&at);
    return id;
}

char *document_find(const char *resource, const char *given)
{
    struct operation list;
    if (is_id(given))
        return mem_strdup(given);
    if (!operation_find(resource, "list", &list, NULL) || strchr(list.path, '{') != NULL)
        return mem_strdup(given);
    return find_in_list(&list, list.path, given);
}

char *document_resolve(const char *resource, const char *given)
{
    char *id = document_find(resource, given);
    if (id == NULL)
        die(EXIT_FAILED, "no %s has the id, slug or name \"%s\"", resource, given);
    return id;
}

/* ---- options ----------------------------------------------------------------------------------------------- */

/* "range:^1.4" "exact:1.4.2" "all" -> {"selector","value"} */
static struct jv *grant_parse(const char *text)
{
    struct str selector, value;
    struct jv *g = jv_object();

    if (!str_cut(str_c(text), ':', &selector, &value)) {
        selector = str_c(text);
        value = S("*");
    }
    jv_set_str(g, "selector", selector);
    jv_set_str(g, "value", value);
    return g;
}

/* "shop/api=private:acme/api" with an optional kind before: "chart,shop/chart=private:acme/chart" */
static struct jv *repository_parse(const char *text)
{
    struct str kind = S("image"), rest = str_c(text), name, where, upstream, repository, cut_kind, cut_rest;

    if (str_cut(rest, ',', &cut_kind, &cut_rest)) {
        kind = cut_kind;
        rest = cut_rest;
    }
    if (!str_cut(rest, '=', &name, &where) || !str_cut(where, ':', &upstream, &repository))
        die(EXIT_USAGE, "--repository takes [KIND,]PUBLIC/NAME=UPSTREAM:UPSTREAM/REPOSITORY, not \"%s\"", text);
    char *up = str_dup(upstream);
    char *id = document_resolve("upstreams", up);
    struct jv *r = jv_object();
    jv_set_str(r, "name", name);
    jv_set_c(r, "upstream_id", id);
    jv_set_str(r, "upstream_repository", repository);
    jv_set_str(r, "kind", kind);
    mem_free(up);
    mem_free(id);
    return r;
}

static struct jv *json_or_text(struct str text)
{
    struct strbuf wrapped = {0}; /* a document is an object or a list; this may be a number */
    struct jv *list = NULL, *v;
    sb_addf(&wrapped, "[%.*s]", STR(text));
    bool is_one = jv_parse(sb_str(&wrapped), &JV_LIMITS_API, &list, NULL) == ERR_OK && jv_len(list) == 1;
    v = is_one ? jv_copy(jv_at(list, 0)) : jv_string(text);
    jv_free(list);
    sb_free(&wrapped);
    return v;
}

static bool has_type(const struct jv *schema, const char *type)
{
    const struct jv *t = jv_get(schema, "type");
    if (jv_type(t) == JV_STRING)
        return str_eq_c(jv_str(t), type);
    for (size_t i = 0; i < jv_len(t); i++)
        if (str_eq_c(jv_str(jv_at(t, i)), type))
            return true;
    return false;
}

/* One value as the schema wants it. */
static struct jv *value_parse(const char *option, const char *key, const struct jv *schema, const char *text)
{
    uint64_t number;
    const struct jv *s = schema_of(schema);
    if (strcmp(text, "null") == 0)
        return jv_null();
    if (has_type(s, "integer")) {
        if (!str_to_u64(str_c(text), &number) || number > INT64_MAX)
            die(EXIT_USAGE, "%s takes a whole number, not \"%s\"", option, text);
        return jv_integer((int64_t)number);
    }
    if (has_type(s, "boolean")) {
        if (strcmp(text, "true") != 0 && strcmp(text, "false") != 0)
            die(EXIT_USAGE, "%s takes true or false, not \"%s\"", option, text);
        return jv_boolean(strcmp(text, "true") == 0);
    }
    if (has_type(s, "object") || has_type(s, "array")) {
        if (strcmp(key, "grants") == 0 && text[0] != '{' && text[0] != '[')
            return grant_parse(text);
        if (strcmp(key, "repositories") == 0 && strchr(text, '=') != NULL && text[0] != '{')
            return repository_parse(text);
        struct jv *v = NULL;
        if (jv_parse(str_c(text), &JV_LIMITS_API, &v, NULL) != ERR_OK)
            die(EXIT_USAGE, "%s takes JSON, not \"%s\"", option, text);
        return v;
    }
    return jv_string(str_c(text));
}

/* a.b.c=v into nested objects. */
static void set_path(struct jv *body, struct str path, struct jv *take_value)
{
    struct str head, rest;
    if (!str_cut(path, '.', &head, &rest)) {
        char *key = str_dup(path);
        jv_set(body, key, take_value);
        mem_free(key);
        return;
    }
    char *key = str_dup(head);
    if (jv_type(jv_get(body, key)) != JV_OBJECT)
        jv_set(body, key, jv_object());
    set_path(jv_get(body, key), rest, take_value);
    mem_free(key);
}

struct command {
    struct operation o;
    struct jv *body;
    struct strbuf query; /* "&a=b" */
    struct strbuf path;
    char *operands[8];
    size_t n_operands, taken;
    struct jv *named; /* options that name objects of the path: {"customers":"globex"} */
    uint64_t limit;   /* rows of a list; 0: all */
    const char *file; /* of a body that is no JSON; -o for an answer that is none */
    const char *output;
};

static void query_add(struct command *c, const char *key, const char *value)
{
    sb_addf(&c->query, "&%s=", key);
    add_query_value(&c->query, str_c(value));
}

/* One member of the body: by its name, by the name of one of its list ("--grant"), by a reference ("--customer"), from a file
 * ("--password-file"). */
static bool body_option(struct command *c, const char *option, const char *key, const char *value)
{
    const struct jv *properties = jv_get(c->o.request, "properties"), *s = jv_get(properties, key);
    struct strbuf other = {0};
    bool done = true;

    if (s != NULL && has_type(schema_of(s), "array") && value[0] != '[' && strcmp(value, "null") != 0) {
        if (jv_type(jv_get(c->body, key)) != JV_ARRAY)
            jv_set(c->body, key, jv_array());
        const struct jv *items = jv_get(schema_of(s), "items");
        jv_push(jv_get(c->body, key), value_parse(option, key, items, value));
    } else if (s != NULL && has_type(schema_of(s), "object") && value[0] != '{' && strchr(value, '=') != NULL) {
        struct str name, text;
        (void)str_cut(str_c(value), '=', &name, &text);
        sb_addf(&other, "%s.%.*s", key, STR(name));
        set_path(c->body, sb_str(&other), json_or_text(text));
    } else if (s != NULL) {
        if (jv_get_bool(s, "writeOnly", false))
            die(EXIT_USAGE, "%s is a secret: give it in a file, with %s-file FILE", option, option);
        struct str last = str_c(key);
        bool is_reference = last.n > 3 && strcmp(key + last.n - 3, "_id") == 0 && !is_id(value) && strcmp(value, "null") != 0;
        char *resource = is_reference ? str_dup(str_sub(last, 0, last.n - 3)) : NULL;
        char *id = is_reference ? document_resolve(resource, value) : NULL;
        jv_set(c->body, key, id != NULL ? jv_string(str_c(id)) : value_parse(option, key, s, value));
        mem_free(id);
        mem_free(resource);
    } else {
        sb_addf(&other, "%ss", key);
        const struct jv *many = jv_get(properties, other.p);
        if (many != NULL && (has_type(schema_of(many), "array") || has_type(schema_of(many), "object"))) {
            done = body_option(c, option, other.p, value);
        } else if (strlen(key) > 1 && key[strlen(key) - 1] == 'y') { /* --repository -> repositories */
            sb_reset(&other);
            sb_addf(&other, "%.*sies", (int)strlen(key) - 1, key);
            done = jv_get(properties, other.p) != NULL && body_option(c, option, other.p, value);
        } else {
            done = false;
        }
        sb_reset(&other);
        sb_addf(&other, "%s_id", key);
        if (!done && jv_get(properties, other.p) != NULL) {
            char *id = document_resolve(key, value);
            jv_set_c(c->body, other.p, id);
            mem_free(id);
            done = true;
        }
        size_t n = strlen(key);
        if (!done && n > 5 && strcmp(key + n - 5, "_file") == 0) {
            char *name = str_dup(str_sub(str_c(key), 0, n - 5));
            if (jv_get(properties, name) != NULL) {
                char *text = read_file(value);
                jv_set_c(c->body, name, text);
                mem_free_secret(text, strlen(text));
                done = true;
            }
            mem_free(name);
        }
    }
    sb_free(&other);
    return done;
}

static bool query_option(struct command *c, const char *key, const char *value)
{
    struct strbuf id_key = {0};
    bool done = false;
    if (parameter_find(&c->o, "query", key) != NULL) {
        query_add(c, key, value);
        done = true;
    } else {
        sb_addf(&id_key, "%s_id", key);
        if (parameter_find(&c->o, "query", id_key.p) != NULL) {
            char *id = document_resolve(key, value);
            query_add(c, id_key.p, id);
            mem_free(id);
            done = true;
        }
    }
    sb_free(&id_key);
    return done;
}

/* --customer globex where the path has /customers/{id}. */
static bool path_option(struct command *c, const char *key, const char *value)
{
    struct str rest = str_c(c->o.path), part, before = {NULL, 0};
    while (str_next(&rest, '/', &part)) {
        if (part.n > 0 && part.p[0] == '{' && before.n > 0) {
            char *collection = str_dup(before);
            bool is = resource_is(collection, str_c(key));
            if (is)
                jv_set_c(c->named, collection, value);
            mem_free(collection);
            if (is)
                return true;
        }
        before = part;
    }
    return false;
}

static void option_take(struct command *c, const char *option, const char *value)
{
    struct strbuf key = {0};
    for (const char *p = option + 2; *p != '\0'; p++)
        sb_add_char(&key, *p == '-' ? '_' : *p);
    if (strcmp(option, "--set") == 0) {
        struct str path, text;
        if (!str_cut(str_c(value), '=', &path, &text))
            die(EXIT_USAGE, "--set takes KEY=JSON");
        set_path(c->body, path, json_or_text(text));
    } else if (strcmp(option, "--limit") == 0 && c->o.is_list) {
        if (!str_to_u64(str_c(value), &c->limit) || c->limit == 0)
            die(EXIT_USAGE, "--limit takes a whole number, not \"%s\"", value);
    } else if (key.n == 0 || !(path_option(c, key.p, value) || (c->o.request != NULL && body_option(c, option, key.p, value)) ||
                               query_option(c, key.p, value))) {
        die(EXIT_USAGE, "%s does not take %s; pullgate help %.*s lists what it takes", c->o.id, option, (int)strcspn(c->o.id, "."), c->o.id);
    }
    sb_free(&key);
}

/* ---- the request --------------------------------------------------------------------------------------------- */

/* The path with its objects filled in: named by an option, or by the next operand. Names are turned into ids. */
static void path_fill(struct command *c)
{
    struct str rest = str_c(c->o.path), part, before = {NULL, 0};
    bool first = true;
    while (str_next(&rest, '/', &part)) {
        if (!first)
            sb_add_char(&c->path, '/');
        first = false;
        if (part.n == 0 || part.p[0] != '{') {
            sb_add(&c->path, part);
            before = part;
            continue;
        }
        char *collection = str_dup(before);
        const char *given = jv_get_c(c->named, collection, NULL);
        if (given == NULL && c->taken < c->n_operands)
            given = c->operands[c->taken++];
        if (given == NULL)
            die(EXIT_USAGE, "%s needs %.*s of %s (an id, slug or name)", c->o.id, STR(str_sub(part, 1, part.n - 2)), collection);
        struct operation list;
        char *id = NULL;
        struct strbuf at = {0};
        sb_add(&at, str_sub(sb_str(&c->path), 0, c->path.n - 1)); /* what stands so far is the list's path */
        if (!is_id(given) && operation_find(collection, "list", &list, NULL) && jv_get(jv_get(list.item, "properties"), "id") != NULL) {
            id = find_in_list(&list, at.p, given);
            if (id == NULL)
                die(EXIT_FAILED, "no %s has the id, slug or name \"%s\"", collection, given);
        }
        add_query_value(&c->path, str_c(id != NULL ? id : given));
        mem_free(id);
        mem_free(collection);
        sb_free(&at);
        before = part;
    }
}

/* The members of an answer that a table shows when nobody said which. */
static void columns_of(const struct operation *o, struct strbuf *ret)
{
    for (size_t i = 0; i < sizeof COLUMNS / sizeof *COLUMNS; i++)
        if (strcmp(COLUMNS[i].operation, o->id) == 0) {
            sb_addc(ret, COLUMNS[i].columns);
            return;
        }
    const struct jv *properties = jv_get(o->item, "properties");
    size_t n = 0;
    for (void *it = jv_iter(properties); it != NULL && n < COLUMNS_SHOWN; it = jv_iter_next(properties, it)) {
        const struct jv *s = schema_of(jv_iter_value(it));
        if (strcmp(jv_iter_key(it), "etag") == 0 || has_type(s, "object"))
            continue;
        sb_addf(ret, "%s%s", n++ > 0 ? " " : "", jv_iter_key(it));
    }
}

static void run_list(struct command *c)
{
    struct jv *all = jv_array();
    struct strbuf at = {0}, columns = {0};
    char *cursor = NULL;
    do {
        sb_reset(&at);
        sb_addf(&at, "%s?limit=%s%s", c->path.p, PAGE, c->query.p != NULL ? c->query.p : "");
        if (cursor != NULL) {
            sb_addc(&at, "&cursor=");
            add_query_value(&at, str_c(cursor));
        }
        MEM_FREE(cursor);
        struct jv *page = api("GET", at.p, NULL);
        struct jv *items = jv_get(page, "items");
        for (size_t i = 0; i < jv_len(items) && (c->limit == 0 || jv_len(all) < c->limit); i++)
            jv_push(all, jv_copy(jv_at(items, i)));
        if (jv_get_str(page, "next_cursor").n > 0 && (c->limit == 0 || jv_len(all) < c->limit))
            cursor = str_dup(jv_get_str(page, "next_cursor"));
        jv_free(page);
    } while (cursor != NULL);
    columns_of(&c->o, &columns);
    if (cli.json)
        print_json(all);
    else
        print_table(columns.p, all);
    jv_free(all);
    sb_free(&at);
    sb_free(&columns);
}

static const char *type_of_file(const char *path)
{
    const char *dot = strrchr(path, '.');
    return dot != NULL && strcmp(dot, ".csv") == 0                                       ? "text/csv"
           : dot != NULL && (strcmp(dot, ".ndjson") == 0 || strcmp(dot, ".jsonl") == 0) ? "application/x-ndjson"
                                                                                        : "application/json";
}

static void answer_write(const struct command *c, const struct strbuf *text)
{
    if (c->output != NULL && !file_write_whole(c->output, sb_str(text)))
        die(EXIT_FAILED, "%s: %s", c->output, strerror(errno));
    if (c->output == NULL && text->n > 0 && fwrite(text->p, 1, text->n, stdout) != text->n)
        die(EXIT_FAILED, "standard output: cannot be written");
    if (c->output == NULL && text->n > 0 && text->p[text->n - 1] != '\n')
        putchar('\n');
}

static void run_once(struct command *c)
{
    struct strbuf text = {0}, body = {0};
    struct jv *answer = NULL;
    char method[8] = {0};
    for (size_t i = 0; i < sizeof method - 1 && c->o.method[i] != '\0'; i++)
        method[i] = (char)(c->o.method[i] - 'a' + 'A');
    if (c->query.n > 0) {
        sb_add_char(&c->path, '?');
        sb_add(&c->path, str_skip(sb_str(&c->query), 1));
    }
    const char *type = NULL;
    if (c->file != NULL) {
        char *content = read_file(c->file);
        type = type_of_file(c->file);
        sb_addc(&body, content);
        sb_add_char(&body, '\n');
        mem_free(content);
    } else if (c->o.request != NULL || strcmp(method, "POST") == 0) {
        jv_dump(c->body, &body);
    }
    api_raw(method, c->path.p, body.n > 0 ? sb_str(&body) : (struct str){NULL, 0}, type, 0, &text);
    bool is_json = c->o.answer_type == NULL || strcmp(c->o.answer_type, "application/json") == 0;
    if (is_json && text.n > 0 && jv_parse(sb_str(&text), &JV_LIMITS_TRUSTED, &answer, NULL) == ERR_OK)
        print_object(answer);
    else if (text.n > 0)
        answer_write(c, &text);
    jv_free(answer);
    if (body.p != NULL)
        mem_cleanse(body.p, body.n);
    sb_free(&body);
    sb_free(&text);
}

int document_command(int argc, char **argv)
{
    const char *verb = argc > 1 && argv[1][0] != '-' ? argv[1] : "list";
    struct command c = {.body = jv_object(), .named = jv_object()};
    bool has_resource = false;
    int i = argc > 1 && argv[1][0] != '-' ? 2 : 1;

    if (!operation_find(argv[0], verb, &c.o, &has_resource)) {
        if (!has_resource)
            die(EXIT_USAGE, "no command \"%s\"; pullgate help lists them", argv[0]);
        die(EXIT_USAGE, "%s has no \"%s\"; pullgate help %s lists what it has", argv[0], verb, argv[0]);
    }
    for (; i < argc; i++) {
        if (strcmp(argv[i], "--dry-run") == 0) {
            cli.dry_run = true;
        } else if (strcmp(argv[i], "--json") == 0) {
            cli.json = true;
        } else if (strcmp(argv[i], "-o") == 0 && i + 1 < argc) {
            c.output = argv[++i];
        } else if (strcmp(argv[i], "-f") == 0 && i + 1 < argc) {
            c.file = argv[++i];
        } else if (strncmp(argv[i], "--", 2) == 0) {
            if (i + 1 == argc)
                die(EXIT_USAGE, "%s needs a value", argv[i]);
            option_take(&c, argv[i], argv[i + 1]);
            i++;
        } else if (c.n_operands < sizeof c.operands / sizeof *c.operands) {
            c.operands[c.n_operands++] = argv[i];
        } else {
            die(EXIT_USAGE, "%s does not take \"%s\"", c.o.id, argv[i]);
        }
    }
    path_fill(&c);
    if (c.taken < c.n_operands && c.file == NULL && c.o.request_type != NULL && strcmp(c.o.request_type, "application/json") != 0)
        c.file = c.operands[c.taken++];
    if (c.taken < c.n_operands)
        die(EXIT_USAGE, "%s does not take \"%s\"", c.o.id, c.operands[c.taken]);
    if (c.o.is_list && strcmp(c.o.method, "get") == 0)
        run_list(&c);
    else
        run_once(&c);
    jv_free(c.body);
    jv_free(c.named);
    sb_free(&c.query);
    sb_free(&c.path);
    return EXIT_OK;
}

/* ---- help and completions ------------------------------------------------------------------------------------ */

static void options_print(const struct operation *o, const char *before)
{
    const struct jv *list = jv_get(o->op, "parameters"), *properties = jv_get(o->request, "properties");
    for (int pass = 0; pass < 2; pass++) {
        const struct jv *from = pass == 0 ? properties : list;
        void *it = pass == 0 ? jv_iter(properties) : NULL;
        for (size_t i = 0; pass == 0 ? it != NULL : i < jv_len(from); i++) {
            const struct jv *s = pass == 0 ? jv_iter_value(it) : jv_at(list, i);
            const char *name = pass == 0 ? jv_iter_key(it) : jv_get_c(s, "name", "");
            bool is_shown = pass == 0 || (strcmp(jv_get_c(s, "in", ""), "query") == 0 && strcmp(name, "cursor") != 0 && strcmp(name, "dry_run") != 0);
            if (is_shown) {
                struct strbuf option = {0};
                sb_addc(&option, "--");
                for (const char *c = name; *c != '\0'; c++)
                    sb_add_char(&option, *c == '_' ? '-' : *c);
                if (jv_get_bool(s, "writeOnly", false))
                    sb_addc(&option, "-file");
                if (before == NULL)
                    puts(option.p);
                else
                    printf("%s%-28s %s\n", before, option.p, jv_get_c(s, "description", ""));
                sb_free(&option);
            }
            if (pass == 0)
                it = jv_iter_next(properties, it);
        }
    }
}

static bool print_help(void *ctx, const struct operation *o)
{
    struct wanted *w = ctx;
    struct str resource, verb;
    if (!str_cut(str_c(o->id), '.', &resource, &verb) || !resource_is(w->resource, resource))
        return false;
    w->has_resource = true;
    printf("\n  pullgate %s ", w->resource);
    for (size_t i = 0; i < verb.n; i++)
        putchar(verb.p[i] == '_' ? '-' : verb.p[i]);
    struct str rest = str_c(o->path), part;
    while (str_next(&rest, '/', &part))
        if (part.n > 2 && part.p[0] == '{')
            printf(" <%.*s>", STR(str_sub(part, 1, part.n - 2)));
    printf("\n      %s\n", jv_get_c(o->op, "summary", ""));
    options_print(o, "        ");
    return false;
}

void document_help(const char *resource)
{
    struct wanted w = {.resource = resource, .verb = ""};
    each_operation(print_help, &w);
    if (!w.has_resource)
        die(EXIT_USAGE, "no resource \"%s\"", resource);
}

static bool print_resource(void *ctx, const struct operation *o)
{
    struct jv *seen = ctx;
    struct str resource, verb;
    if (str_cut(str_c(o->id), '.', &resource, &verb)) {
        char *name = str_dup(resource);
        if (jv_get(seen, name) == NULL) {
            jv_set_bool(seen, name, true);
            bool is_y = resource.n > 1 && name[resource.n - 1] == 'y' && str_index(S("aeiou"), name[resource.n - 2]) < 0;
            for (char *c = name; *c != '\0'; c++)
                *c = *c == '_' ? '-' : *c;
            if (is_y)
                printf("%.*sies\n", (int)resource.n - 1, name);
            else
                printf("%s%s\n", name, strcmp(name, "audit") == 0 || strcmp(name, "explain") == 0 ? "" : "s");
        }
        mem_free(name);
    }
    return false;
}

static bool print_verb(void *ctx, const struct operation *o)
{
    const char *given = ctx;
    struct str resource, verb;
    if (str_cut(str_c(o->id), '.', &resource, &verb) && resource_is(given, resource)) {
        for (size_t i = 0; i < verb.n; i++)
            putchar(verb.p[i] == '_' ? '-' : verb.p[i]);
        putchar('\n');
    }
    return false;
}

void document_words(int argc, char **argv)
{
    static const char local[] = "apply\napi\nbackup\nbundle\ncompletion\ndoctor\nexplain\nhelp\nrestore\nverify\n";
    struct operation o;
    if (argc <= 1) {
        struct jv *seen = jv_object();
        fputs(local, stdout);
        each_operation(print_resource, seen);
        jv_free(seen);
    } else if (argc == 2) {
        each_operation(print_verb, argv[0]);
    } else if (operation_find(argv[0], argv[1], &o, NULL)) {
        options_print(&o, NULL);
        if (strcmp(o.method, "get") != 0)
            puts("--dry-run");
        if (argv[argc - 1][0] != '-' && o.path[0] != '\0' && strchr(o.path, '{') != NULL && operation_find(argv[0], "list", &o, NULL) &&
            strchr(o.path, '{') == NULL) { /* names of what there is */
            struct strbuf at = {0};
            sb_addf(&at, "%s?limit=100", o.path);
            struct jv *page = api("GET", at.p, NULL);
            const struct jv *items = jv_get(page, "items");
            for (size_t i = 0; i < jv_len(items); i++) {
                const char *name = jv_get_c(jv_at(items, i), "slug", jv_get_c(jv_at(items, i), "name", jv_get_c(jv_at(items, i), "id", "")));
                puts(name);
            }
            jv_free(page);
            sb_free(&at);
        }
    }
}
