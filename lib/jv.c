/* JSON over jansson. A struct jv is a json_t under another name; only this file knows. */
#include "pullgate/jv.h"

#include <jansson.h>
#include <string.h>

#include "pullgate/clock.h"
#include "pullgate/mem.h"

const struct jv_limits JV_LIMITS_API = {64 * 1024, 10000, 16};
const struct jv_limits JV_LIMITS_MANIFEST = {4 * 1024 * 1024, 50000, 32};
const struct jv_limits JV_LIMITS_TRUSTED = {64 * 1024 * 1024, 4000000, 16};

__attribute__((constructor)) static void jansson_start(void)
{
    json_set_alloc_funcs(mem_alloc, mem_free);
}

static json_t *J(const struct jv *v)
{
    /* The getters promise not to write; jansson's take non-const pointers for their reference counts only. */
    union {
        const struct jv *in;
        json_t *out;
    } u = {.in = v};
    return u.out;
}

static struct jv *V(json_t *j)
{
    return (struct jv *)j;
}

/* Counts values, keys and depth without allocating, so that jansson never sees a document that would cost hundreds of
 * megabytes (FACTS J1). Not a validator: what it lets through jansson still judges. */
static enum err jv_prescan(struct str in, const struct jv_limits *lim, struct error *reterr)
{
    size_t tokens = 0, depth = 0;
    bool in_string = false, in_scalar = false;

    for (size_t i = 0; i < in.n; i++) {
        char c = in.p[i];
        if (in_string) {
            if (c == '\\')
                i++;
            else if (c == '"')
                in_string = false;
            continue;
        }
        switch (c) {
        case '"':
            in_string = true;
            in_scalar = false;
            tokens++;
            break;
        case '{':
        case '[':
            if (++depth > lim->depth)
                return error_set(reterr, ERR_INVALID, "JSON nested deeper than %zu", lim->depth);
            in_scalar = false;
            tokens++;
            break;
        case '}':
        case ']':
            if (depth > 0)
                depth--;
            in_scalar = false;
            break;
        case ',':
        case ':':
        case ' ':
        case '\t':
        case '\r':
        case '\n':
            in_scalar = false;
            break;
        default:
            if (!in_scalar)
                tokens++;
            in_scalar = true;
        }
        if (tokens > lim->tokens)
            return error_set(reterr, ERR_TOO_LARGE, "JSON of more than %zu values", lim->tokens);
    }
    return ERR_OK;
}

enum err jv_parse(struct str in, const struct jv_limits *limits, struct jv **ret, struct error *reterr)
{
    json_error_t je;

    if (in.n > limits->bytes)
        return error_set(reterr, ERR_TOO_LARGE, "JSON of more than %zu bytes", limits->bytes);
    enum err e = jv_prescan(in, limits, reterr);
    if (e)
        return e;
    json_t *j = json_loadb(in.p != NULL ? in.p : "", in.n, JSON_REJECT_DUPLICATES, &je);
    if (j == NULL)
        return error_set(reterr, ERR_INVALID, "not valid JSON: line %d column %d", je.line, je.column);
    *ret = V(j);
    return ERR_OK;
}

void jv_free(struct jv *v)
{
    json_decref(J(v));
}

enum jv_type jv_type(const struct jv *v)
{
    if (v == NULL)
        return JV_NONE;
    switch (json_typeof(J(v))) {
    case JSON_OBJECT:
        return JV_OBJECT;
    case JSON_ARRAY:
        return JV_ARRAY;
    case JSON_STRING:
        return JV_STRING;
    case JSON_INTEGER:
        return JV_INT;
    case JSON_REAL:
        return JV_REAL;
    case JSON_TRUE:
    case JSON_FALSE:
        return JV_BOOL;
    case JSON_NULL:
        return JV_NULL;
    }
    return JV_NONE;
}

struct jv *jv_get(const struct jv *obj, const char *key)
{
    return V(json_object_get(J(obj), key));
}

struct str jv_str(const struct jv *v)
{
    if (!json_is_string(J(v)))
        return (struct str){NULL, 0};
    return (struct str){json_string_value(J(v)), json_string_length(J(v))};
}

struct str jv_get_str(const struct jv *obj, const char *key)
{
    return jv_str(jv_get(obj, key));
}

const char *jv_get_c(const struct jv *obj, const char *key, const char *dflt)
{
    const char *c = json_string_value(J(jv_get(obj, key)));
    return c != NULL ? c : dflt;
}

int64_t jv_int(const struct jv *v, int64_t dflt)
{
    return json_is_integer(J(v)) ? (int64_t)json_integer_value(J(v)) : dflt;
}

int64_t jv_get_int(const struct jv *obj, const char *key, int64_t dflt)
{
    return jv_int(jv_get(obj, key), dflt);
}

bool jv_bool(const struct jv *v, bool dflt)
{
    return json_is_boolean(J(v)) ? json_is_true(J(v)) : dflt;
}

bool jv_get_bool(const struct jv *obj, const char *key, bool dflt)
{
    return jv_bool(jv_get(obj, key), dflt);
}

size_t jv_len(const struct jv *v)
{
    return json_is_array(J(v)) ? json_array_size(J(v)) : json_object_size(J(v));
}

struct jv *jv_at(const struct jv *arr, size_t i)
{
    return V(json_array_get(J(arr), i));
}

void *jv_iter(const struct jv *obj)
{
    return json_object_iter(J(obj));
}

void *jv_iter_next(const struct jv *obj, void *it)
{
    return json_object_iter_next(J(obj), it);
}

const char *jv_iter_key(void *it)
{
    return json_object_iter_key(it);
}

struct jv *jv_iter_value(void *it)
{
    return V(json_object_iter_value(it));
}

static struct jv *made(json_t *j)
{
    AN(j != NULL);
    return V(j);
}

struct jv *jv_object(void)
{
    return made(json_object());
}

struct jv *jv_array(void)
{
    return made(json_array());
}

struct jv *jv_string(struct str s)
{
    json_t *j = json_stringn(s.p != NULL ? s.p : "", s.n);
    if (j == NULL) {
        struct strbuf clean = {0};
        for (size_t i = 0; i < s.n; i++) {
            unsigned char c = (unsigned char)s.p[i];
            if (c < 0x80)
                sb_add_char(&clean, (char)c);
            else
                sb_add(&clean, S("\xef\xbf\xbd"));
        }
        j = json_stringn(sb_str(&clean).p, clean.n);
        sb_free(&clean);
    }
    return made(j);
}

struct jv *jv_integer(int64_t i)
{
    return made(json_integer(i));
}

struct jv *jv_boolean(bool b)
{
    return made(json_boolean(b));
}

struct jv *jv_null(void)
{
    return made(json_null());
}

struct jv *jv_copy(const struct jv *v)
{
    return made(json_deep_copy(J(v)));
}

void jv_set(struct jv *obj, const char *key, struct jv *take_value)
{
    AN(json_object_set_new(J(obj), key, J(take_value)) == 0);
}

void jv_set_str(struct jv *obj, const char *key, struct str s)
{
    jv_set(obj, key, s.p != NULL ? jv_string(s) : jv_null());
}

void jv_set_c(struct jv *obj, const char *key, const char *c)
{
    jv_set_str(obj, key, str_c(c));
}

void jv_set_int(struct jv *obj, const char *key, int64_t i)
{
    jv_set(obj, key, jv_integer(i));
}

void jv_set_bool(struct jv *obj, const char *key, bool b)
{
    jv_set(obj, key, jv_boolean(b));
}

void jv_set_time(struct jv *obj, const char *key, int64_t t_s)
{
    char buf[CLOCK_RFC3339_MAX];
    jv_set_c(obj, key, t_s != 0 ? clock_rfc3339(t_s, buf) : NULL);
}

void jv_del(struct jv *obj, const char *key)
{
    json_object_del(J(obj), key);
}

void jv_push(struct jv *arr, struct jv *take_value)
{
    AN(json_array_append_new(J(arr), J(take_value)) == 0);
}

bool jv_equal(const struct jv *a, const struct jv *b)
{
    return json_equal(J(a), J(b)) == 1;
}

static int dump_add(const char *bytes, size_t n, void *ctx)
{
    sb_add(ctx, (struct str){bytes, n});
    return 0;
}

void jv_dump(const struct jv *v, struct strbuf *b)
{
    AN(json_dump_callback(J(v), dump_add, b, JSON_COMPACT | JSON_ENCODE_ANY) == 0);
}

void jv_dump_sorted(const struct jv *v, struct strbuf *b)
{
    AN(json_dump_callback(J(v), dump_add, b, JSON_COMPACT | JSON_ENCODE_ANY | JSON_SORT_KEYS) == 0);
}
