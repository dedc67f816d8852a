/* GET /explain: the decision for a customer, a repository and a reference, with every license that was looked at. It compiles the very
 * facts that the projector carries to the proxies and asks the very functions that the gate asks, so that they cannot disagree. What
 * only the upstream knows (a tag or digest that nobody has looked at yet) is "unknown" here; the gate would look. */
#include <string.h>

#include "api_routes.h"
#include "compile.h"
#include "pullgate/clock.h"
#include "pullgate/decision.h"
#include "pullgate/license.h"
#include "pullgate/mem.h"
#include "pullgate/oci.h"

#define CANDIDATES_MAX 1000 /* tags that may lead to one digest */
#define ROOTS_MAX      1000 /* top manifests that may reach one digest */

static const struct field CONSIDERED_FIELDS[] = {
    {.name = "license_id", .type = FIELD_STRING},
    {.name = "name", .type = FIELD_STRING},
    {.name = "application_id", .type = FIELD_STRING},
    {.name = "effective_status", .type = FIELD_STRING},
    {.name = "decision", .type = FIELD_STRING, .one_of = "allow|deny|unknown"},
    {.name = "reason", .type = FIELD_STRING},
    {.name = "grant_id", .type = FIELD_STRING, .flags = FIELD_NULL},
    {.name = NULL},
};
static const struct field EXPLAIN_FIELDS[] = {
    {.name = "decision", .type = FIELD_STRING, .one_of = "allow|deny|unknown"},
    {.name = "reason", .type = FIELD_STRING},
    {.name = "license_id", .type = FIELD_STRING, .flags = FIELD_NULL},
    {.name = "grant_id", .type = FIELD_STRING, .flags = FIELD_NULL},
    {.name = "message", .type = FIELD_STRING, .flags = FIELD_EMPTY, .about = "what the client is shown, but for the request id"},
    {.name = "at", .type = FIELD_TIME},
    {.name = "customer_id", .type = FIELD_STRING},
    {.name = "repository", .type = FIELD_STRING},
    {.name = "reference", .type = FIELD_STRING},
    {.name = "version", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "digest", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "considered", .type = FIELD_LIST, .sub = CONSIDERED_FIELDS, .about = "every license of the customer"},
    {.name = NULL},
};
static const struct schema EXPLANATION = {"Explanation", EXPLAIN_FIELDS};

struct explain {
    struct api *rq;
    struct strbuf repository, reference, customer_id;
    int64_t at_s;
    bool is_digest, has_addr, is_known; /* is_known: the admin knows what the reference is */
    struct digest digest;
    uint8_t addr[16];
    struct jv *entitlement_doc, *repository_doc, *tags_doc;
    struct entitlement *ent;
    struct candidate *candidates;
    size_t n;
    struct strbuf version; /* of a tag by the template; candidates borrow it */
};

static void explain_free(struct explain *x)
{
    sb_free(&x->repository);
    sb_free(&x->reference);
    sb_free(&x->customer_id);
    sb_free(&x->version);
    entitlement_unref(&x->ent);
    jv_free(x->entitlement_doc);
    jv_free(x->repository_doc);
    jv_free(x->tags_doc);
    mem_free(x->candidates);
}

/* ---- what is asked --------------------------------------------------------------------------------------------------- */

static enum err explain_customer(struct explain *x)
{
    struct api *rq = x->rq;
    struct strbuf name = {0};
    struct store_stmt *st = NULL;
    bool row = false;
    if (!api_query(rq, "customer", &name)) {
        sb_free(&name);
        return api_fail(rq, ERR_INVALID, "missing_parameter", "customer", "customer: missing");
    }
    enum err err =
        store_query(rq->store, &st, &rq->error, "SELECT id FROM customers WHERE vendor_id=?1 AND (id=?2 OR slug=?2) AND archived_at=0",
                    "zs", rq->vendor_id, sb_str(&name));
    if (!err)
        err = store_step(st, &row, &rq->error);
    if (!err && row)
        sb_add(&x->customer_id, store_col_str(st, 0));
    store_done(&st);
    sb_free(&name);
    if (!err && !row)
        err = api_not_found(rq, "customer");
    return err;
}

static enum err explain_read(struct explain *x)
{
    struct api *rq = x->rq;
    struct strbuf client = {0};
    enum err err = explain_customer(x);
    if (err)
        return err;
    if (!api_query(rq, "repository", &x->repository) || !oci_name_valid(sb_str(&x->repository)))
        return api_fail(rq, ERR_INVALID, "invalid_parameter", "repository", "repository: expected a repository's public name");
    if (!api_query(rq, "reference", &x->reference))
        return api_fail(rq, ERR_INVALID, "missing_parameter", "reference", "reference: missing");
    x->is_digest = digest_parse(sb_str(&x->reference), &x->digest, NULL) == ERR_OK;
    if (!x->is_digest && !oci_tag_valid(sb_str(&x->reference)))
        return api_fail(rq, ERR_INVALID, "invalid_parameter", "reference", "reference: expected a tag or a digest");
    x->at_s = rq->now_s;
    err = api_query_time(rq, "at", &x->at_s);
    if (!err && api_query(rq, "client", &client)) {
        x->has_addr = addr_parse(sb_str(&client), x->addr);
        if (!x->has_addr)
            err = api_fail(rq, ERR_INVALID, "invalid_parameter", "client", "client: expected an IP address");
    }
    sb_free(&client);
    return err;
}

/* ---- the facts --------------------------------------------------------------------------------------------------------- */

static enum err explain_fact(struct explain *x, const char *prefix, struct str name, struct jv **ret)
{
    struct strbuf fact = {0}, text = {0};
    bool exists = false;
    sb_addc(&fact, prefix);
    sb_add(&fact, name);
    enum err err = compile_fact(x->rq->store, sb_str(&fact), &text, &exists, &x->rq->error);
    if (!err && exists)
        err = jv_parse(sb_str(&text), &JV_LIMITS_TRUSTED, ret, &x->rq->error);
    sb_free(&fact);
    sb_free(&text);
    return err == ERR_INVALID ? ERR_INTERNAL : err; /* our own rows, not the caller's fault */
}

static enum err explain_facts(struct explain *x)
{
    enum err err = explain_fact(x, "c:", sb_str(&x->customer_id), &x->entitlement_doc);
    if (!err && x->entitlement_doc && entitlement_parse(x->entitlement_doc, &x->ent, &x->rq->error))
        err = ERR_INTERNAL;
    if (!err)
        err = explain_fact(x, "r:", sb_str(&x->repository), &x->repository_doc);
    /* Another vendor's repository is none. */
    if (!err && x->repository_doc && !str_eq_c(jv_get_str(x->repository_doc, "vendor_id"), x->rq->vendor_id)) {
        jv_free(x->repository_doc);
        x->repository_doc = NULL;
    }
    if (!err && x->repository_doc)
        err = explain_fact(x, "t:", jv_get_str(x->repository_doc, "id"), &x->tags_doc);
    return err;
}

/* ---- candidates -------------------------------------------------------------------------------------------------------- */

static void candidate_add(struct explain *x, struct str tag, const struct jv *record, const struct digest *d, int64_t until_s)
{
    if (x->n == CANDIDATES_MAX)
        return;
    x->candidates[x->n++] = (struct candidate){.tag = tag,
                                               .version = jv_get_str(record, "version"),
                                               .channel = jv_get_str(record, "channel"),
                                               .released_at_s = jv_get_int(record, "released_at", 0),
                                               .digest = *d,
                                               .until_s = until_s};
}

/* A tag is its newest digest, if it still resolved to it when last looked at. */
static void candidates_of_tag(struct explain *x)
{
    static const struct digest none = {0};
    struct digest d = none;
    const struct jv *record = jv_get(jv_get(x->tags_doc, "tags"), x->reference.p);
    const struct jv *digests = jv_get(record, "digests");
    const struct jv *newest = jv_at(digests, jv_len(digests) ? jv_len(digests) - 1 : 0);
    if (newest && jv_int(jv_at(newest, 2), -1) == 0 && digest_parse(jv_str(jv_at(newest, 0)), &d, NULL) == ERR_OK)
        x->is_known = true;
    candidate_add(x, sb_str(&x->reference), record, &d, 0);
    if (!record && x->repository_doc &&
        oci_version_of_tag(jv_get_str(x->repository_doc, "tag_template"), sb_str(&x->reference), &x->version))
        x->candidates[0].version = sb_str(&x->version);
}

static bool digest_among(const struct digest *d, const struct digest *set, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (digest_eq(d, &set[i]))
            return true;
    return false;
}

/* The top manifests that reach the digest, itself first. */
static enum err explain_roots(struct explain *x, struct digest roots[ROOTS_MAX], size_t *ret_n)
{
    struct store_stmt *st = NULL;
    bool row;
    size_t n = 0;
    roots[n++] = x->digest;
    enum err err = store_query(x->rq->store, &st, &x->rq->error,
                               "SELECT DISTINCT root_digest FROM closure_nodes WHERE repository_id=? AND digest=? LIMIT ?", "ssi",
                               jv_get_str(x->repository_doc, "id"), sb_str(&x->reference), (int64_t)(ROOTS_MAX - 1));
    while (!err) {
        err = store_step(st, &row, &x->rq->error);
        if (err || !row)
            break;
        if (n < ROOTS_MAX && digest_parse(store_col_str(st, 0), &roots[n], NULL) == ERR_OK)
            n++;
    }
    store_done(&st);
    *ret_n = n;
    return err;
}

/* A digest is reachable by every tag that resolves or resolved to a top manifest which reaches it. */
static enum err candidates_of_digest(struct explain *x)
{
    struct digest *roots = mem_calloc(ROOTS_MAX, sizeof *roots);
    size_t n_roots = 0;
    enum err err = explain_roots(x, roots, &n_roots);
    const struct jv *tags = jv_get(x->tags_doc, "tags");
    for (void *it = jv_iter(tags); it && !err; it = jv_iter_next(tags, it)) {
        const struct jv *record = jv_iter_value(it), *digests = jv_get(record, "digests");
        for (size_t i = 0; i < jv_len(digests); i++) {
            const struct jv *seen = jv_at(digests, i);
            struct digest d;
            if (digest_parse(jv_str(jv_at(seen, 0)), &d, NULL) == ERR_OK && digest_among(&d, roots, n_roots))
                candidate_add(x, str_c(jv_iter_key(it)), record, &d, jv_int(jv_at(seen, 2), 0));
        }
    }
    x->is_known = x->n > 0;
    mem_free(roots);
    return err;
}

/* ---- the decision -------------------------------------------------------------------------------------------------------- */

/* What a pinning grant bound a tag to, when the tag has moved on: the gate serves that. */
static bool decide_pinned(struct explain *x, struct decision_query *q, struct candidate *c, struct decision *ret)
{
    for (size_t i = 0; i < x->ent->n_licenses; i++) {
        const struct license *l = &x->ent->licenses[i];
        for (size_t g = 0; g < l->n_grants; g++) {
            const struct grant *grant = &l->grants[g];
            for (size_t p = 0; grant->on_move == GRANT_PIN && p < grant->n_pins; p++) {
                if (!str_eq(grant->pins[p].repository, q->repository) || !str_eq(grant->pins[p].tag, c->tag))
                    continue;
                struct candidate pinned = *c;
                struct decision d;
                pinned.digest = grant->pins[p].digest;
                q->candidates = &pinned;
                decision_make(x->ent, q, &d);
                q->candidates = c;
                if (d.verdict == VERDICT_ALLOW) {
                    *c = pinned;
                    d.candidate = c;
                    *ret = d;
                    return true;
                }
            }
        }
    }
    return false;
}

/* A refusal that rests on content which the admin has not seen may be an allow once the gate looked. */
static bool may_be_allowed_by_digest(const struct explain *x)
{
    if (x->is_known || !x->repository_doc || !decision_any_usable(x->ent, sb_str(&x->repository), x->at_s))
        return false;
    if (x->is_digest)
        return true;
    for (size_t i = 0; i < x->ent->n_licenses; i++)
        for (size_t g = 0; g < x->ent->licenses[i].n_grants; g++)
            if (x->ent->licenses[i].grants[g].selector == SELECTOR_DIGEST)
                return true;
    return false;
}

static const char *verdict_text(enum verdict v)
{
    return v == VERDICT_ALLOW ? "allow" : v == VERDICT_DENY ? "deny" : "unknown";
}

static void set_id(struct jv *v, const char *key, struct str id)
{
    if (id.n)
        jv_set_str(v, key, id);
    else
        jv_set_c(v, key, NULL);
}

static void print_considered(struct explain *x, const struct decision_query *q)
{
    struct jv *list = jv_array();
    for (size_t i = 0; x->ent && i < x->ent->n_licenses; i++) {
        const struct license *l = &x->ent->licenses[i];
        struct decision d = {0};
        struct jv *v = jv_object();
        decision_of_license(x->ent, l, q, &d);
        jv_set_str(v, "license_id", l->id);
        jv_set_str(v, "name", l->name);
        jv_set_str(v, "application_id", l->application_id);
        jv_set_c(v, "effective_status", license_effective_text(license_effective(&l->terms, x->at_s)));
        jv_set_c(v, "decision", verdict_text(d.verdict));
        jv_set_c(v, "reason", reason_text(d.reason));
        set_id(v, "grant_id", d.grant ? d.grant->id : (struct str){NULL, 0});
        jv_push(list, v);
    }
    jv_set(x->rq->out, "considered", list);
}

static void explain_print(struct explain *x)
{
    struct decision_query q = {.repository = sb_str(&x->repository),
                               .is_digest = x->is_digest,
                               .candidates = x->candidates,
                               .n_candidates = x->n,
                               .now_s = x->at_s,
                               .client_addr = x->has_addr ? x->addr : NULL,
                               .any_instance = true};
    struct decision d = {0};
    struct strbuf message = {0};
    decision_make(x->ent, &q, &d);
    if (x->ent && d.verdict == VERDICT_DENY && !x->is_digest && x->n == 1)
        decide_pinned(x, &q, &x->candidates[0], &d);
    if (x->ent && d.verdict == VERDICT_DENY && (d.reason == REASON_VERSION_NOT_GRANTED || d.reason == REASON_NOT_IN_CLOSURE) &&
        may_be_allowed_by_digest(x))
        d = (struct decision){.verdict = VERDICT_UNKNOWN, .reason = REASON_UNKNOWN};
    if (x->ent && d.verdict == VERDICT_DENY)
        decision_message(x->ent, &d, &q, sb_str(&x->reference), &message);

    struct jv *out = x->rq->out = jv_object();
    jv_set_c(out, "decision", verdict_text(d.verdict));
    jv_set_c(out, "reason", reason_text(d.reason));
    set_id(out, "license_id", d.license ? d.license->id : (struct str){NULL, 0});
    set_id(out, "grant_id", d.grant ? d.grant->id : (struct str){NULL, 0});
    if (d.verdict == VERDICT_UNKNOWN)
        sb_addc(&message, "nobody has looked at this reference upstream yet");
    jv_set_str(out, "message", sb_str(&message));
    jv_set_time(out, "at", x->at_s);
    jv_set_str(out, "customer_id", sb_str(&x->customer_id));
    jv_set_str(out, "repository", sb_str(&x->repository));
    jv_set_str(out, "reference", sb_str(&x->reference));
    const struct candidate *c = d.candidate ? d.candidate : x->n ? &x->candidates[0] : NULL;
    jv_set_str(out, "version", c && c->version.p ? c->version : S(""));
    char text[DIGEST_TEXT_MAX];
    jv_set_c(out, "digest", x->is_digest ? x->reference.p : c && digest_is_set(&c->digest) ? digest_text(&c->digest, text) : "");
    print_considered(x, &q);
    sb_free(&message);
}

static enum err explain_get(struct api *rq)
{
    struct explain x = {.rq = rq};
    enum err err = explain_read(&x);
    if (!err)
        err = explain_facts(&x);
    if (!err) {
        x.candidates = mem_calloc(CANDIDATES_MAX, sizeof *x.candidates);
        if (x.is_digest && x.repository_doc)
            err = candidates_of_digest(&x);
        else if (!x.is_digest)
            candidates_of_tag(&x);
    }
    if (!err)
        explain_print(&x);
    explain_free(&x);
    return err;
}

static const struct query_param EXPLAIN_PARAMS[] = {
    {"customer", "id or slug"},
    {"repository", "public name"},
    {"reference", "tag or digest"},
    {"at", "instant to decide for; now when absent"},
    {"client", "address of the client; without it licenses with allowed_cidrs deny"},
    {NULL, NULL},
};

const struct route EXPLAIN_ROUTES[] = {
    {HEAD_GET, "/api/v1/explain", explain_get, ROLE_SUPPORT, 0, NULL, &EXPLANATION, EXPLAIN_PARAMS, "explain",
     "What the gate decides for a customer, a repository and a reference, and why"},
    {.path = NULL},
};
