/* What a change would do for its customer: the tags that can be pulled before and after it, compared, in a dry run. The decision is the
 * gate's over facts compiled in the same transaction. Where it is asked from does not count: addresses are set aside. */
#include <string.h>

#include "compile.h"
#include "licensemodel.h"
#include "pullgate/clock.h"
#include "pullgate/decision.h"
#include "pullgate/mem.h"

#define EFFECT_TAGS_MAX   20000  /* looked at for one answer: some 0.2 s of the writing connection */
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

/* The tags of the application, read once, and which of them could be pulled before and can be after. */
struct effect {
    struct tags {
        char *name;     /* of the repository */
        struct jv *doc; /* its fact */
        uint8_t *before, *after;
    } * repositories;
    size_t n;
    bool is_truncated;
};

void effect_free(struct effect **pe)
{
    struct effect *e = *pe;
    *pe = NULL;
    for (size_t i = 0; e && i < e->n; i++) {
        mem_free(e->repositories[i].name);
        jv_free(e->repositories[i].doc);
        mem_free(e->repositories[i].before);
        mem_free(e->repositories[i].after);
    }
    if (e)
        mem_free(e->repositories);
    mem_free(e);
}

/* *ret NULL: there is no such customer. */
static enum err entitlement_load(struct api *rq, struct str customer_id, struct entitlement **ret)
{
    struct jv *doc = NULL;
    *ret = NULL;
    enum err err = fact_load(rq, "c:", customer_id, &doc);
    if (!err && doc && entitlement_parse(doc, ret, &rq->error))
        err = ERR_INTERNAL;
    jv_free(doc);
    for (size_t i = 0; *ret && i < (*ret)->n_licenses; i++)
        (*ret)->licenses[i].n_allowed_cidrs = 0;
    return err;
}

static bool record_allowed(const struct entitlement *ent, const struct tags *t, const char *tag, const struct jv *record, int64_t now_s)
{
    const struct jv *digests = jv_get(record, "digests");
    const struct jv *newest = jv_at(digests, jv_len(digests) ? jv_len(digests) - 1 : 0);
    struct candidate c = {.tag = str_c(tag),
                          .version = jv_get_str(record, "version"),
                          .channel = jv_get_str(record, "channel"),
                          .released_at_s = jv_get_int(record, "released_at", 0)};
    bool is_there = newest && jv_int(jv_at(newest, 2), -1) == 0 && digest_parse(jv_str(jv_at(newest, 0)), &c.digest, NULL) == ERR_OK;
    return tag_allowed(ent, str_c(t->name), &c, is_there, now_s);
}

/* What the customer may pull at this moment of the transaction, into the marks of before or after. */
static enum err effect_mark(struct api *rq, struct effect *e, struct str customer_id, bool is_after)
{
    struct entitlement *ent;
    size_t left = EFFECT_TAGS_MAX;
    enum err err = entitlement_load(rq, customer_id, &ent);
    for (size_t i = 0; i < e->n && ent && !err; i++) {
        struct tags *t = &e->repositories[i];
        const struct jv *tags = jv_get(t->doc, "tags");
        size_t k = 0;
        for (void *it = jv_iter(tags); it && left; it = jv_iter_next(tags, it), k++, left--)
            (is_after ? t->after : t->before)[k] = record_allowed(ent, t, jv_iter_key(it), jv_iter_value(it), rq->now_s);
        e->is_truncated = e->is_truncated || k < jv_len(tags);
    }
    entitlement_unref(&ent);
    return err;
}

static enum err effect_load(struct api *rq, struct str application_id, struct effect *e)
{
    struct store_stmt *st = NULL;
    struct strbuf list = {0};
    bool row;
    enum err err = store_query(rq->store, &st, &rq->error, "SELECT id, name FROM repositories WHERE application_id=? ORDER BY name", "s",
                               application_id);
    while (!err) {
        err = store_step(st, &row, &rq->error);
        if (err || !row)
            break;
        sb_add(&list, store_col_str(st, 0));
        sb_add_char(&list, ' ');
        sb_add(&list, store_col_str(st, 1));
        sb_add_char(&list, '\n');
        e->n++;
    }
    store_done(&st);
    e->repositories = mem_calloc(e->n ? e->n : 1, sizeof *e->repositories);
    struct str rest = sb_str(&list), line, id, name;
    for (size_t i = 0; i < e->n && !err && str_next(&rest, '\n', &line) && str_cut(line, ' ', &id, &name); i++) {
        struct tags *t = &e->repositories[i];
        t->name = str_dup(name);
        err = fact_load(rq, "t:", id, &t->doc);
        size_t n = jv_len(jv_get(t->doc, "tags"));
        t->before = mem_calloc(n + 1, 1);
        t->after = mem_calloc(n + 1, 1);
    }
    sb_free(&list);
    return err;
}

/* ---- before and after ---------------------------------------------------------------------------------------------------- */

enum err effect_begin(struct api *rq, struct str customer_id, struct str application_id)
{
    if (!rq->is_dry_run)
        return ERR_OK;
    effect_free(&rq->effect);
    rq->effect = NEW(struct effect);
    enum err err = effect_load(rq, application_id, rq->effect);
    return err ? err : effect_mark(rq, rq->effect, customer_id, false);
}

/* Tags that could be pulled and can no longer (is_lost), or the other way round. */
static struct jv *effect_list(struct effect *e, bool is_lost)
{
    struct jv *list = jv_array();
    for (size_t i = 0; i < e->n; i++) {
        const struct tags *t = &e->repositories[i];
        const struct jv *tags = jv_get(t->doc, "tags");
        size_t k = 0;
        for (void *it = jv_iter(tags); it; it = jv_iter_next(tags, it), k++) {
            if (t->before[k] == t->after[k] || (t->before[k] != 0) != is_lost)
                continue;
            if (jv_len(list) == EFFECT_LISTED_MAX) {
                e->is_truncated = true;
                return list;
            }
            struct jv *one = jv_object();
            jv_set_c(one, "repository", t->name);
            jv_set_c(one, "tag", jv_iter_key(it));
            jv_push(list, one);
        }
    }
    return list;
}

static bool is_listed(const struct jv *list, struct str repository, struct str tag)
{
    for (size_t i = 0; i < jv_len(list); i++)
        if (str_eq(jv_get_str(jv_at(list, i), "tag"), tag) && str_eq(jv_get_str(jv_at(list, i), "repository"), repository))
            return true;
    return false;
}

/* Who pulled last, and when, what would be lost. */
static enum err last_pulls(struct api *rq, struct str license_id, const struct jv *lost, struct jv *out)
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
    while (!err && jv_len(lost) && jv_len(list) < LAST_PULLS_MAX) {
        err = store_step(st, &row, &rq->error);
        if (err || !row)
            break;
        if (!is_listed(lost, store_col_str(st, 0), store_col_str(st, 1)))
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

enum err effect_end(struct api *rq, struct str customer_id, struct str license_id, struct jv *out)
{
    struct effect *e = rq->effect;
    if (!rq->is_dry_run || !e)
        return ERR_OK;
    enum err err = effect_mark(rq, e, customer_id, true);
    if (err)
        return err;
    struct jv *effect = jv_object(), *lost = effect_list(e, true);
    jv_set(effect, "gained", effect_list(e, false));
    err = last_pulls(rq, license_id, lost, out);
    jv_set(effect, "lost", lost);
    jv_set_bool(effect, "truncated", e->is_truncated);
    jv_set(out, "effect", effect);
    return err;
}
