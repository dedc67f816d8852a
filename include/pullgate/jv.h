/* JSON values over jansson, whose types appear nowhere else.
 * Reading: jv_parse() refuses documents over the limits before jansson allocates (FACTS J1), duplicate keys and trailing bytes.
 * A value is owned by its container; only a root is freed, with jv_free(). Getters tolerate NULL and wrong types: they
 * return the default, so that chains need one check at their end. Building: setters take plain values and copy them. */
#ifndef PULLGATE_JV_H
#define PULLGATE_JV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pullgate/err.h"
#include "pullgate/str.h"

struct jv;

enum jv_type { JV_NONE, JV_NULL, JV_BOOL, JV_INT, JV_REAL, JV_STRING, JV_ARRAY, JV_OBJECT };

struct jv_limits {
    size_t bytes;
    size_t tokens; /* values plus keys */
    size_t depth;
};
extern const struct jv_limits JV_LIMITS_API;      /* 64 KiB, 10,000 tokens, depth 16 */
extern const struct jv_limits JV_LIMITS_MANIFEST; /* 4 MiB, 50,000 tokens, depth 32 */
extern const struct jv_limits JV_LIMITS_TRUSTED;  /* our own MAC-ed values: 64 MiB, 4,000,000 tokens, depth 16 */

enum err jv_parse(struct str in, const struct jv_limits *limits, struct jv **ret, struct error *reterr) MUST_USE;
void jv_free(struct jv *v); /* a root only; NULL is fine */

enum jv_type jv_type(const struct jv *v); /* JV_NONE for NULL */
struct jv *jv_get(const struct jv *obj, const char *key);
struct str jv_str(const struct jv *v);                  /* {NULL,0} when not a string */
struct str jv_get_str(const struct jv *obj, const char *key);
const char *jv_get_c(const struct jv *obj, const char *key, const char *dflt); /* C string, borrowed */
int64_t jv_int(const struct jv *v, int64_t dflt);
int64_t jv_get_int(const struct jv *obj, const char *key, int64_t dflt);
bool jv_bool(const struct jv *v, bool dflt);
bool jv_get_bool(const struct jv *obj, const char *key, bool dflt);
size_t jv_len(const struct jv *arr_or_obj);
struct jv *jv_at(const struct jv *arr, size_t i);
/* Iterate an object: for (void *it = jv_iter(o); it; it = jv_iter_next(o, it)) */
void *jv_iter(const struct jv *obj);
void *jv_iter_next(const struct jv *obj, void *it);
const char *jv_iter_key(void *it);
struct jv *jv_iter_value(void *it);

struct jv *jv_object(void);
struct jv *jv_array(void);
struct jv *jv_string(struct str s); /* invalid UTF-8 becomes U+FFFD */
struct jv *jv_integer(int64_t i);
struct jv *jv_boolean(bool b);
struct jv *jv_null(void);
struct jv *jv_copy(const struct jv *v); /* deep */
void jv_set(struct jv *obj, const char *key, struct jv *take_value);
void jv_set_str(struct jv *obj, const char *key, struct str s);
void jv_set_c(struct jv *obj, const char *key, const char *c); /* NULL sets null */
void jv_set_int(struct jv *obj, const char *key, int64_t i);
void jv_set_bool(struct jv *obj, const char *key, bool b);
void jv_set_time(struct jv *obj, const char *key, int64_t t_s); /* RFC 3339; 0 sets null */
void jv_del(struct jv *obj, const char *key);
void jv_push(struct jv *arr, struct jv *take_value);
bool jv_equal(const struct jv *a, const struct jv *b);
/* Compact text appended to b; keys in insertion order. */
void jv_dump(const struct jv *v, struct strbuf *b);
/* The same with sorted keys: the canonical form that is hashed. */
void jv_dump_sorted(const struct jv *v, struct strbuf *b);

#endif
