/* One API request as its handler sees it, and the table of routes. A handler is a plain synchronous function in a database
 * thread: it reads a checked request, works on the store, fills the answer. http.c has authenticated, checked role and body,
 * opened the transaction, and afterwards writes the audit row and commits. Used by api_*.c and portal.c. */
#ifndef ADMIN_API_H
#define ADMIN_API_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "admin.h"
#include "pullgate/err.h"
#include "pullgate/head.h"
#include "pullgate/jv.h"
#include "pullgate/store.h"
#include "pullgate/str.h"

enum role {
    ROLE_NONE,     /* no sign-in: OpenAPI document */
    ROLE_VIEWER,   /* admin API, read */
    ROLE_SUPPORT,  /* also explain, pulls and the audit log */
    ROLE_LICENSES, /* license manager: customers, credentials, licenses, orders */
    ROLE_ADMIN,    /* also applications, upstreams, plans, webhooks */
    ROLE_OWNER,    /* also people, tokens, the vendor */
    ROLE_OPERATOR, /* above vendors: makes and lists them */
    ROLE_CUSTOMER, /* portal API: portal_authenticate() of portal.c */
    ROLE_CUSTOMER_ADMIN, /* portal API: also the customer's own credentials; a signed-in person */
};

/* ---- schemas: check requests, and describe requests and answers in the OpenAPI document --------------------------------- */

enum field_type {
    FIELD_STRING, /* 1..max characters of valid UTF-8 without control bytes; 0, and nothing but blanks, allowed with FIELD_EMPTY */
    FIELD_TEXT,   /* as string, line feeds and tabs allowed */
    FIELD_SECRET, /* as string; never in an answer, the log or the audit */
    FIELD_INT,    /* min..max */
    FIELD_BOOL,
    FIELD_TIME,    /* RFC 3339 instant or date, or null */
    FIELD_MAP,     /* JSON object, free content */
    FIELD_STRINGS, /* array of strings, at most `max` */
    FIELD_OBJECT,  /* one object of `sub` */
    FIELD_LIST,    /* array of objects of `sub`, at most `max` */
    FIELD_VALUE,   /* a string as FIELD_STRING has it, a whole number or an object; the handler knows which */
};
#define FIELD_REQUIRED 1u
#define FIELD_NULL     2u /* null allowed (FIELD_TIME always allows it) */
#define FIELD_EMPTY    4u /* "" allowed */
#define FIELD_OPTIONAL 8u /* answers: may be absent */
struct field {
    const char *name; /* NULL ends the list */
    enum field_type type;
    unsigned flags;
    int64_t min, max;   /* 0, 0: 1..200 characters, 0..2^53 for numbers, 100 items */
    const char *one_of; /* "a|b|c" or NULL */
    const struct field *sub;
    const char *about;
};
struct schema {
    const char *name; /* in the OpenAPI document */
    const struct field *fields;
};

/* ---- the request ------------------------------------------------------------------------------------------------------- */

#define API_MAX_PARAMS 3
struct route;
struct effect;
struct api {
    unsigned magic;
    struct admin *admin;
    struct store *store; /* of the thread that runs the handler; inside a transaction */
    const struct route *route;
    int64_t now_s;
    char request_id[32];

    /* the caller; strings live as long as the request */
    char *vendor_id, *token_id, *actor; /* actor: "token:<id>", "customer:<id>" */
    char *zone;                         /* of the vendor; api_zone() */
    char *actor_name;                   /* as people know him: the token's name, the user's address */
    char *user_id, *session_id;         /* of a signed-in person; NULL */
    char *owner_id;                     /* the person whose token it is, or who is signed in; NULL */
    char *scopes;                       /* of the token, separated by blanks; NULL or "": all that the role may */
    int64_t token_expires_s;            /* 0: never */
    bool is_vendor_suspended;           /* then it may read, and nothing else */
    char *for_vendor;                   /* X-Pullgate-Vendor: the slug of the vendor that an operator acts for; NULL */
    enum role role;
    char *customer_id, *credential_id, *license_id; /* portal; license_id "" unless the credential is bound to one */
    char peer[64];
    uint8_t peer_addr[16];

    /* the request */
    enum head_method method;
    char *path, *query;                /* query: raw, without '?' */
    struct str params[API_MAX_PARAMS]; /* values of {…} in the path, in order; grammar [A-Za-z0-9._:@+-]{1,300} */
    struct jv *in;                     /* checked body; NULL without one */
    char *authorization, *if_match, *idempotency_key, *content_type;
    char *signature; /* X-Pullgate-Signature; NULL */
    struct str body;

    /* the answer: out, or (with a content type) raw */
    int status; /* 0: by method: 201 for a POST that set location, else 200, 204 without out */
    struct jv *out;
    struct strbuf raw;
    const char *raw_type;
    char *location; /* of a created object */
    char *next_link; /* path and query of the page that follows, for the field Link */
    char *etag;     /* bare, without quotes */
    unsigned retry_after_s;
    unsigned cache_s;        /* anyone may keep the answer this long; 0: nobody may */
    bool is_failed_sign_in;  /* the body held a wrong secret: counted as a failed sign-in of the address */

    /* a refusal: set by api_fail() */
    struct error error;
    const char *code;
    struct jv *problem; /* further members of the problem document, or NULL */

    /* With a refusal: what the handler wrote is kept, a report of it and nothing else. */
    bool keeps_refusal;

    /* ?dry_run=1: what is written is taken back after the answer (http.c); effect.c keeps here what could be pulled before */
    bool is_dry_run;
    struct effect *effect;

    /* ROUTE_HASHES */
    bool is_hashing;
    char *password_hash; /* what the hashing run leaves for the writing one: of a password that is set */
    char *password_seen; /* the stored hash that the given password was found to fit */

    /* audit, set by a handler that changes something */
    char *audit_object;
    struct jv *before, *after; /* without secrets; owned by rq */
    bool is_begun;             /* a part of what works in several transactions is kept */
    bool poke_sync;            /* after the commit: the sync should look soon */

    uint64_t again_ms; /* a GET that found nothing: for so long it may be asked again before it is answered */
};

/* What a request owns: all but the params and the body, which point into its transport's memory. rq is empty then. */
void api_release(struct api *rq);

typedef enum err api_fn(struct api *rq);

#define ROUTE_SLOW     1u /* waits for a network: runs in the slow thread on a read-only store, outside a transaction */
#define ROUTE_LIST     2u /* takes limit and cursor; answers {"items","next_cursor"} of the answer schema */
#define ROUTE_ACTION   4u /* POST that answers 200 */
#define ROUTE_NO_AUDIT 8u
#define ROUTE_PLAIN    16u /* answer is no JSON object of a schema */
#define ROUTE_COUNT    32u /* a list that takes count=1 */
#define ROUTE_HASHES   64u /* a password is hashed: run is called twice, first with rq->is_hashing in the thread for that, then in the writer */
#define ROUTE_READS    256u /* a POST that changes nothing: runs on the reading connection, as a GET does */
#define ROUTE_WRITES   512u /* a GET that leaves a trace: runs on the writing connection, in a transaction, with an audit row */
#define ROUTE_ROWS     128u /* takes text/csv or application/x-ndjson, as it is in rq->body */
struct query_param {
    const char *name; /* NULL ends the list; "metadata.*": every name that begins with "metadata." */
    const char *about;
};
struct route {
    enum head_method method;
    const char *path; /* "/api/v1/customers/{id}" */
    api_fn *run;
    enum role role;
    unsigned flags;
    const struct schema *request;     /* NULL: no body */
    const struct schema *answer;      /* NULL: 204 */
    const struct query_param *params; /* beyond limit and cursor; unknown ones are refused */
    const char *action;               /* of the audit row and operationId: "customer.create" */
    const char *about;
};
/* Each api_*.c and portal.c has one table, ended by a row without path; routes.c lists the tables. */

/* ---- for handlers ------------------------------------------------------------------------------------------------------ */

/* Refuse: fills rq->error and rq->code, returns e. field may be NULL. */
enum err api_fail(struct api *rq, enum err e, const char *code, const char *field, const char *fmt, ...)
    __attribute__((format(printf, 5, 6)));
/* A failure of the store needs no api_fail(): a handler passes &rq->error to the store and returns what came. ERR_CONFLICT then
 * becomes a 409 that names the column of the unique constraint, ERR_UNAVAILABLE and ERR_INTERNAL answers without detail. */
enum err api_not_found(struct api *rq, const char *what);
#ifdef PULLGATE_ANALYSE /* as error_set() */
#define api_fail(rq, e, ...) (api_fail((rq), (e), __VA_ARGS__), err_same(e))
#define api_not_found(rq, what) (api_not_found((rq), (what)), err_same(ERR_NOT_FOUND))
#endif
/* Compare If-Match with the object's etag (rev): ERR_PRECONDITION when sent and different. Sets rq->etag. */
enum err api_check_etag(struct api *rq, int64_t rev) MUST_USE;

/* The name of a member in a refusal, cut where it is too long: api_field(field, "grants[%zu].value", i). */
#define API_FIELD_MAX 96
void api_field(char ret[API_FIELD_MAX], const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Query parameters, decoded; false when absent or empty. ret is reset first. */
bool api_query(struct api *rq, const char *name, struct strbuf *ret);
/* An instant or a date of the vendor's zone. *ret untouched when absent. */
enum err api_query_time(struct api *rq, const char *name, int64_t *ret) MUST_USE;

/* Paging. A list is ordered by (key, id) ascending, or descending for logs. */
struct page {
    int limit; /* 1..1000, default 100; fetch limit + 1 rows */
    bool has_cursor;
    int64_t after_key;
    char after_id[64];
};
enum err api_page(struct api *rq, struct page *ret) MUST_USE;
/* Call with each row's key and id before pushing it: false, and next_cursor set, when the page is full. */
bool api_page_take(struct page *p, struct jv *out, int64_t key, const char *id);
/* The rows of a list whose key is the number in column key and whose id is in column 0, each as print() has it, into rq->out. */
enum err api_page_rows(struct api *rq, struct page *p, struct store_stmt *st, int key, struct jv *(*print)(const struct store_stmt *st)) MUST_USE;
/* {"items":[],"next_cursor":null} as rq->out; returns the array. */
struct jv *api_list(struct api *rq);

/* Time zone of the caller's vendor; borrowed from rq. */
const char *api_zone(struct api *rq);
/* Add a raw JSON column's text to obj as key. */
void api_set_json(struct jv *obj, const char *key, struct str text);

/* A member of the body is there (also as null). */
bool api_has(const struct api *rq, const char *name);
/* For "x=COALESCE(?,x)": the member's text, "" for null, {NULL,0} when it is absent. */
struct str api_in_text(const struct api *rq, const char *name);
/* The same for a member that is stored as JSON, printed into b. */
struct str api_in_json(const struct api *rq, const char *name, struct strbuf *b);
/* Times of an object of the body; field names the member in a refusal. *ret is 0 for null, and untouched when the member is absent. */
enum err api_time_start(struct api *rq, const struct jv *obj, const char *name, const char *field, int64_t *ret) MUST_USE;
enum err api_time_end(struct api *rq, const struct jv *obj, const char *name, const char *field, int64_t *ret) MUST_USE;

/* An audit row of what happened without a route: a job's or a hook's, in its transaction. object, before and after are rq's. */
enum err api_audit(struct api *rq, const char *action, const char *outcome) MUST_USE;

/* A request that no client sent: a job's, in the writer's thread inside a transaction. actor such as "system:renewal" or "hook:payment".
 * Handlers called with it find rq->in and rq->params set by the caller. api_system_done() frees what it holds. */
void api_system(struct api *rq, struct admin *a, struct store *s, struct str vendor_id, const char *actor, int64_t now_s);
void api_system_done(struct api *rq);

/* Used by http.c: the body against the schema of the route; refuses with unknown_field, missing_field or invalid_field. */
enum err api_check_body(struct api *rq, const struct jv *doc, const struct schema *schema) MUST_USE;
/* Sets the audit's object and, for a created one, rq->location as well: path "/api/v1/customers/" and the id. */
void api_audit_object(struct api *rq, const char *id);
void api_created(struct api *rq, const char *path, const char *id);
void api_set_etag(struct api *rq, int64_t rev);
/* The member "etag" of an object in an answer. */
void api_print_etag(struct jv *obj, int64_t rev);
/* A slug: lower-case letters and digits, single '.', '_', '-' between them, at most 64. */
bool api_slug_valid(struct str s);
/* A slug out of a name, "customer" when nothing of it can be used. */
void api_slug_of(struct str name, const char *dflt, struct strbuf *ret);
/* The first column of the first row as text; *ret_found false when there is no row. One text parameter. */
enum err api_lookup(struct api *rq, const char *sql, struct str param, struct strbuf *ret, bool *ret_found) MUST_USE;
/* The same for a number; *ret is untouched when there is no row. */
enum err api_number(struct api *rq, const char *sql, struct str param, int64_t *ret) MUST_USE;

#endif
