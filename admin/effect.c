/* What a change would do for its customer: the tags that can be pulled before and after it, compared, in a dry run. The decision is the
 * gate's over facts compiled in the same transaction. Where it is asked from does not count: addresses are set aside. */
#include <string.h>

#include "compile.h"
#include "licensemodel.h"
#include "pullgate/clock.h"
#include "pullgate/decision.h"
#include "pullgate/mem.h"

#define EFFECT_TAGS_MAX   20000  /* looked at for one answer: some ten milliseconds of the writer */
#define EFFECT_LISTED_MAX 500    /* named in each of gained and lost */
#define LAST_PULLS_MAX    200    /* lines of last_pulls */
#define PULLS_LOOKED_MAX  100000 /* newest pulls of the license that are searched for them */

static const struct field EFFECT_TAG_FIELDS[] = {
    {.name = "repository", .type = FIELD_STRING},
    {.name = "tag", .type = FIELD_STRING},
    {.name = NULL},
};
const struct field EFFECT_FIELDS[] = {
    {.name = "gained", .type = FIELD_LIST, .sub = EFFECT_TAG_FIELDS, .about = "tags that become pullable for the customer"},
    {.name = "lost", .type = FIELD_LIST, .sub = EFFECT_TAG_FIELDS, .about = "tags that stop being so"},
    {.name = "truncated", .type = FIELD_BOOL, .about = "there are more than the 500 that are named, or the 20,000 that are looked at"},
    {.name = NULL},
};
const struct field LAST_PULL_FIELDS[] = {
    {.name = "repository", .type = FIELD_STRING},
    {.name = "tag", .type = FIELD_STRING},
    {.name = "customer", .type = FIELD_STRING},
    {.name = "customer_id", .type = FIELD_STRING},
    {.name = "at", .type = FIELD_TIME},
    {.name = "client", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "agent", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = NULL},
};

/* ---- what may be pulled -------------------------------------------------------------------------------------------------- */

static enum err fact_load(struct api *rq, const char *prefix, struct str name, struct jv **ret)
{
    struct strbuf fact = {0}, text = {0};
    bool exists = false;
    sb_addc(&fact, prefix);
    sb_add(&fact, name);
    enum err err = compile_fact(rq->store, sb_str(&fact), &text, &exists, &rq->error);
    if (!err && exists)
        err = jv_parse(sb_str(&text), &JV_LIMITS_TRUSTED, ret, &rq->error);
    sb_free(&fact);
    sb_free(&text);
    return err == ERR_INVALID ? ERR_INTERNAL : err; /* our own rows, not the caller's fault */
}

static bool is_allowed(const struct entitlement *ent, struct str repository, const struct candidate *c, int64_t now_s)
{
    struct decision d = {0};
    struct decision_query q = {.repository = repository, .candidates = c, .n_candidates = 1, .now_s = now_s};
    decision_make(ent, &q, &d);
    return d.verdict == VERDICT_ALLOW;
}

/* By what the tag is, or by what a pinning grant bound it to. */
static bool tag_allowed(const struct entitlement *ent, struct str repository, const struct candidate *c, bool is_there, int64_t now_s)
{
    if (is_there && is_allowed(ent, repository, c, now_s))
        return true;
    for (size_t i = 0; i < ent->n_licenses; i++)
        for (size_t g = 0; g < ent->licenses[i].n_grants; g++) {
            const struct grant *grant = &ent->licenses[i].grants[g];
            for (size_t p = 0; grant->on_move == GRANT_PIN && p < grant->n_pins; p++) {
                struct candidate pinned = *c;
                if (!str_eq(grant->pins[p].repository, repository) || !str_eq(grant->pins[p].tag, c->tag))
                    continue;
                pinned.digest = grant->pins[p].digest;
                if (is_allowed(ent, repository, &pinned, now_s))
                    return true;
            }
        }
    return false;
}

/* The tags of one repository into set: {"<tag>":true}. *left: how many may still be looked at. */
static enum err repository_tags(struct api *rq, const struct entitlement *ent, struct str repository_id, struct str name, struct jv *set,
                                int64_t *left)
{
    struct jv *doc = NULL;
    enum err err = fact_load(rq, "t:", repository_id, &doc);
    const struct jv *tags = jv_get(doc, "tags");
    for (void *it = jv_iter(tags); it && !err && *left > 0; it = jv_iter_next(tags, it)) {
        const struct jv *record = jv_iter_value(it), *digests = jv_get(record, "digests");
        const struct jv *newest = jv_at(digests, jv_len(digests) ? jv_len(digests) - 1 : 0);
        struct candidate c = {.tag = str_c(jv_iter_key(it)),
                              .version = jv_get_str(record, "version"),
                              .channel = jv_get_str(record, "channel"),
                              .released_at_s = jv_get_int(record, "released_at", 0)};
        bool is_there = newest && jv_int(jv_at(newest, 2), -1) == 0 && digest_parse(jv_str(jv_at(newest, 0)), &c.digest, NULL) == ERR_OK;
        --*left;
        if (tag_allowed(ent, name, &c, is_there, rq->now_s))
            jv_set_bool(set, jv_iter_key(it), true);
    }
    jv_free(doc);
    return err;
}

/* {"<repository>":{"<tag>":true}} of the application for the customer. */
static enum err pullable(struct api *rq, struct str customer_id, struct str application_id, struct jv **ret, bool *ret_truncated)
{
    struct jv *doc = NULL, *all = jv_object();
    struct entitlement *ent = NULL;
    struct store_stmt *st = NULL;
    struct strbuf list = {0};
    int64_t left = EFFECT_TAGS_MAX;
    bool row;
    enum err err = fact_load(rq, "c:", customer_id, &doc);
    if (!err && doc && entitlement_parse(doc, &ent, &rq->error))
        err = ERR_INTERNAL;
    for (size_t i = 0; ent && i < ent->n_licenses; i++)
        ent->licenses[i].n_allowed_cidrs = 0;
    if (!err)
        err = store_query(rq->store, &st, &rq->error, "SELECT id, name FROM repositories WHERE application_id=? ORDER BY name", "s",
                          application_id);
    while (!err) {
        err = store_step(st, &row, &rq->error);
        if (err || !row)
            break;
        sb_add(&list, store_col_str(st, 0));
        sb_add_char(&list, ' ');
        sb_add(&list, store_col_str(st, 1));
        sb_add_char(&list, '\n');
    }
    store_done(&st);
    struct str rest = sb_str(&list), line, id, name;
    while (!err && ent && str_next(&rest, '\n', &line) && str_cut(line, ' ', &id, &name)) {
        struct jv *set = jv_object();
        char *key = str_dup(name);
        err = repository_tags(rq, ent, id, name, set, &left);
        jv_set(all, key, set);
        mem_free(key);
    }
    *ret_truncated = left <= 0;
    entitlement_unref(&ent);
    jv_free(doc);
    sb_free(&list);
    if (err)
        jv_free(all);
    else
        *ret = all;
    return err;
}

/* ---- before and after ---------------------------------------------------------------------------------------------------- */

enum err effect_begin(struct api *rq, struct str customer_id, struct str application_id)
{
    bool truncated = false;
    if (!rq->is_dry_run)
        return ERR_OK;
    jv_free(rq->effect_before);
    rq->effect_before = NULL;
    enum err err = pullable(rq, customer_id, application_id, &rq->effect_before, &truncated);
    rq->effect_truncated = truncated;
    return err;
}

/* What a has and b has not. */
static struct jv *without(const struct jv *a, const struct jv *b, bool *truncated)
{
    struct jv *list = jv_array();
    for (void *it = jv_iter(a); it; it = jv_iter_next(a, it)) {
        const struct jv *tags = jv_iter_value(it), *others = jv_get(b, jv_iter_key(it));
        for (void *t = jv_iter(tags); t; t = jv_iter_next(tags, t)) {
            if (jv_get(others, jv_iter_key(t)))
                continue;
            if (jv_len(list) == EFFECT_LISTED_MAX) {
                *truncated = true;
                return list;
            }
            struct jv *one = jv_object();
            jv_set_c(one, "repository", jv_iter_key(it));
            jv_set_c(one, "tag", jv_iter_key(t));
            jv_push(list, one);
        }
    }
    return list;
}

static bool lost_has(const struct jv *before, const struct jv *after, struct str repository, struct str tag)
{
    char *r = str_dup(repository), *t = str_dup(tag);
    bool has = jv_get(jv_get(before, r), t) && !jv_get(jv_get(after, r), t);
    mem_free(r);
    mem_free(t);
    return has;
}

/* Who pulled last, and when, what would be lost. */
static enum err last_pulls(struct api *rq, struct str license_id, const struct jv *before, const struct jv *after, struct jv *out)
{
    struct store_stmt *st = NULL;
    struct jv *list = jv_array();
    bool row;
    enum err err = store_query(rq->store, &st, &rq->error,
                               "SELECT p.repository, p.tag, p.customer_id, MAX(p.at_ms), p.client, p.agent, coalesce(c.name,'') FROM"
                               " (SELECT repository, tag, customer_id, at_ms, client, agent FROM pulls WHERE license_id=? AND decision='allow'"
                               "  AND tag<>'' ORDER BY at_ms DESC, id DESC LIMIT ?) p LEFT JOIN customers c ON c.id=p.customer_id"
                               " GROUP BY p.repository, p.tag, p.customer_id ORDER BY 4 DESC",
                               "si", license_id, (int64_t)PULLS_LOOKED_MAX);
    while (!err && jv_len(list) < LAST_PULLS_MAX) {
        err = store_step(st, &row, &rq->error);
        if (err || !row)
            break;
        if (!lost_has(before, after, store_col_str(st, 0), store_col_str(st, 1)))
            continue;
        struct jv *v = jv_object();
        char text[CLOCK_RFC3339_MAX];
        jv_set_str(v, "repository", store_col_str(st, 0));
        jv_set_str(v, "tag", store_col_str(st, 1));
        jv_set_str(v, "customer", store_col_str(st, 6));
        jv_set_str(v, "customer_id", store_col_str(st, 2));
        jv_set_c(v, "at", clock_rfc3339_ms(store_col_int(st, 3), text));
        jv_set_str(v, "client", store_col_str(st, 4));
        jv_set_str(v, "agent", store_col_str(st, 5));
        jv_push(list, v);
    }
    store_done(&st);
    jv_set(out, "last_pulls", list);
    return err;
}

enum err effect_end(struct api *rq, struct str customer_id, struct str application_id, struct str license_id, struct jv *out)
{
    struct jv *after = NULL;
    bool truncated = false;
    if (!rq->is_dry_run || !rq->effect_before)
        return ERR_OK;
    enum err err = pullable(rq, customer_id, application_id, &after, &truncated);
    if (err)
        return err;
    truncated = truncated || rq->effect_truncated;
    struct jv *effect = jv_object();
    jv_set(effect, "gained", without(after, rq->effect_before, &truncated));
    jv_set(effect, "lost", without(rq->effect_before, after, &truncated));
    jv_set_bool(effect, "truncated", truncated);
    jv_set(out, "effect", effect);
    err = last_pulls(rq, license_id, rq->effect_before, after, out);
    jv_free(after);
    return err;
}
