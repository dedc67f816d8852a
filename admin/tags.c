/* Tag sightings into the store, and the binding of pinning grants. What a grant matches is asked of the decision itself, with
 * everything but its selector set aside, so that a pin can never cover another set of tags than the gate does. */
#include "tags.h"

#include <string.h>

#include "compile.h"
#include "outbox.h"
#include "pullgate/credential.h"
#include "pullgate/decision.h"
#include "pullgate/jv.h"
#include "pullgate/license.h"
#include "pullgate/mem.h"
#include "pullgate/oci.h"
#include "pullgate/store.h"

struct repository {
    char *id, *name, *application_id, *tag_template;
};

static void repository_free(struct repository *r)
{
    mem_free(r->id);
    mem_free(r->name);
    mem_free(r->application_id);
    mem_free(r->tag_template);
    *r = (struct repository){0};
}

/* *ret_found false: no such repository, or its application is archived. */
static enum err repository_load(struct store *s, struct str id, struct repository *ret, bool *ret_found, struct error *reterr)
{
    struct store_stmt *st;
    enum err e =
        store_query(s, &st, reterr,
                    "SELECT r.name, r.application_id, r.tag_template FROM repositories r JOIN applications a ON a.id=r.application_id"
                    " WHERE r.id=? AND a.archived_at=0",
                    "s", id);
    if (e)
        return e;
    e = store_step(st, ret_found, reterr);
    if (!e && *ret_found)
        *ret = (struct repository){.id = str_dup(id),
                                   .name = str_dup(store_col_str(st, 0)),
                                   .application_id = str_dup(store_col_str(st, 1)),
                                   .tag_template = str_dup(store_col_str(st, 2))};
    store_done(&st);
    return e;
}

/* ---- pins -------------------------------------------------------------------------------------- */

/* Does the grant's selector (and its list of repositories) name this tag? Windows, addresses and status do not matter here. */
static bool grant_selects(const struct entitlement *ent, const struct license *l, const struct grant *g, struct str repository,
                          const struct candidate *c, int64_t now_s)
{
    struct grant bare = *g;
    bare.not_before_s = bare.not_after_s = 0;
    bare.on_move = GRANT_FOLLOW;
    bare.pins = NULL;
    bare.n_pins = 0;
    struct license one = *l;
    one.terms = (struct license_terms){.status = LICENSE_ACTIVE};
    one.updates_until_s = 0;
    one.allowed_cidrs = NULL;
    one.n_allowed_cidrs = 0;
    one.quota_exceeded = false;
    one.grants = &bare;
    one.n_grants = 1;
    struct candidate now = *c;
    now.until_s = 0;
    struct decision_query q = {.repository = repository, .candidates = &now, .n_candidates = 1, .now_s = now_s, .any_instance = true};
    struct decision d = {0};
    decision_of_license(ent, &one, &q, &d);
    return d.verdict == VERDICT_ALLOW;
}

static bool grant_has_pin(const struct grant *g, struct str repository, struct str tag)
{
    for (size_t i = 0; i < g->n_pins; i++)
        if (str_eq(g->pins[i].repository, repository) && str_eq(g->pins[i].tag, tag))
            return true;
    return false;
}

/* Version and channel of a tag into c, borrowing from scratch. */
static enum err candidate_fill(struct store *s, const struct repository *r, struct str tag, struct candidate *c, struct strbuf *version,
                               struct strbuf *channel, struct error *reterr)
{
    struct store_stmt *st;
    bool row;
    sb_reset(version);
    sb_reset(channel);
    enum err e = store_query(s, &st, reterr,
                             "SELECT v.version, v.channel FROM version_tags t JOIN versions v ON v.id=t.version_id"
                             " WHERE t.repository_id=? AND t.tag=?",
                             "zs", r->id, tag);
    if (e)
        return e;
    e = store_step(st, &row, reterr);
    if (!e && row) {
        sb_add(version, store_col_str(st, 0));
        sb_add(channel, store_col_str(st, 1));
    }
    store_done(&st);
    if (e)
        return e;
    if (!row && oci_version_of_tag(str_c(r->tag_template), tag, version)) {
        e = store_query(s, &st, reterr, "SELECT channel FROM versions WHERE application_id=? AND version=?", "zs", r->application_id,
                        sb_str(version));
        if (e)
            return e;
        e = store_step(st, &row, reterr);
        if (!e && row)
            sb_add(channel, store_col_str(st, 0));
        store_done(&st);
    }
    *c = (struct candidate){.tag = tag, .version = sb_str(version), .channel = sb_str(channel)};
    return e;
}

/* Bind one grant to the first digest that the tag resolved to since the grant. */
static enum err pin_tag(struct store *s, const struct entitlement *ent, const struct license *l, const struct grant *g,
                        const struct repository *r, struct str tag, int64_t now_s, bool *pinned, struct error *reterr)
{
    struct store_stmt *st;
    struct strbuf version = {0}, channel = {0};
    struct candidate c;
    char *digest = NULL;
    bool row;

    if (grant_has_pin(g, str_c(r->name), tag))
        return ERR_OK;
    enum err e = candidate_fill(s, r, tag, &c, &version, &channel, reterr);
    if (e)
        goto out;
    e = store_query(
        s, &st, reterr,
        "SELECT digest FROM tag_history WHERE repository_id=? AND tag=? AND (last_seen_at=0 OR last_seen_at>=?) ORDER BY id LIMIT 1", "zsi",
        r->id, tag, g->granted_at_s);
    if (e)
        goto out;
    e = store_step(st, &row, reterr);
    if (!e && row)
        digest = str_dup(store_col_str(st, 0));
    store_done(&st);
    if (e || !digest || digest_parse(str_c(digest), &c.digest, NULL))
        goto out;
    if (!grant_selects(ent, l, g, str_c(r->name), &c, now_s))
        goto out;
    int64_t changes = 0;
    e = store_exec(s, &changes, reterr,
                   "INSERT OR IGNORE INTO grant_pins (grant_id, repository_id, tag, digest, pinned_at) VALUES (?,?,?,?,?)", "szszi", g->id,
                   r->id, tag, digest, now_s);
    if (!e && changes)
        *pinned = true;
out:
    mem_free(digest);
    sb_free(&version);
    sb_free(&channel);
    return e;
}

static bool license_may_pin(const struct license *l)
{
    for (size_t i = 0; i < l->n_grants; i++)
        if (l->grants[i].on_move == GRANT_PIN)
            return true;
    return false;
}

/* The entitlement of a customer as the store has it in this transaction; *ret NULL when there is none to be made. */
static enum err entitlement_load(struct store *s, struct str customer_id, struct entitlement **ret, struct error *reterr)
{
    struct strbuf fact = {0}, payload = {0};
    struct jv *doc = NULL;
    bool exists = false;
    *ret = NULL;
    sb_addc(&fact, "c:");
    sb_add(&fact, customer_id);
    enum err e = compile_fact(s, sb_str(&fact), &payload, &exists, reterr);
    /* An entitlement that cannot be parsed is the projector's to report; nothing is bound by it. */
    if (!e && exists && jv_parse(sb_str(&payload), &JV_LIMITS_TRUSTED, &doc, NULL) == ERR_OK && entitlement_parse(doc, ret, NULL) != ERR_OK)
        *ret = NULL;
    jv_free(doc);
    sb_free(&payload);
    sb_free(&fact);
    return e;
}

/* Customers of an application that hold a pinning grant; ids in a heap array. */
static enum err pinning_customers(struct store *s, const char *application_id, char ***ret, size_t *ret_n, struct error *reterr)
{
    struct store_stmt *st;
    char **v = NULL;
    size_t n = 0, cap = 0;
    bool row;
    enum err e = store_query(s, &st, reterr,
                             "SELECT DISTINCT l.customer_id FROM grants g INDEXED BY grants_pin CROSS JOIN licenses l ON l.id=g.license_id"
                             " WHERE g.on_move='pin' AND l.application_id=? AND l.archived_at=0",
                             "z", application_id);
    if (e)
        return e;
    while (!(e = store_step(st, &row, reterr)) && row) {
        if (n == cap) {
            cap = cap ? cap * 2 : 8;
            v = mem_realloc(v, cap * sizeof(*v));
        }
        v[n++] = str_dup(store_col_str(st, 0));
    }
    store_done(&st);
    *ret = v;
    *ret_n = n;
    return e;
}

static enum err pin_tag_everywhere(struct store *s, const struct repository *r, struct str tag, int64_t now_s, struct error *reterr)
{
    char **customers = NULL;
    size_t n = 0;
    enum err e = pinning_customers(s, r->application_id, &customers, &n, reterr);
    for (size_t i = 0; !e && i < n; i++) {
        struct entitlement *ent = NULL;
        bool pinned = false;
        e = entitlement_load(s, str_c(customers[i]), &ent, reterr);
        for (size_t j = 0; !e && ent && j < ent->n_licenses; j++) {
            const struct license *l = &ent->licenses[j];
            if (!str_eq_c(l->application_id, r->application_id))
                continue;
            for (size_t k = 0; !e && k < l->n_grants; k++)
                if (l->grants[k].on_move == GRANT_PIN)
                    e = pin_tag(s, ent, l, &l->grants[k], r, tag, now_s, &pinned, reterr);
        }
        if (!e && pinned)
            e = outbox_put_kind(s, 'c', str_c(customers[i]), true, reterr);
        entitlement_unref(&ent);
    }
    for (size_t i = 0; i < n; i++)
        mem_free(customers[i]);
    mem_free(customers);
    return e;
}

enum err tags_pin_license(struct store *s, struct str license_id, int64_t now_s, struct error *reterr)
{
    struct store_stmt *st;
    struct entitlement *ent = NULL;
    char *customer = NULL;
    bool row, pinned = false;
    enum err e = store_query(s, &st, reterr,
                             "SELECT l.customer_id FROM licenses l WHERE l.id=? AND l.archived_at=0 AND EXISTS"
                             " (SELECT 1 FROM grants g WHERE g.license_id=l.id AND g.on_move='pin')",
                             "s", license_id);
    if (e)
        return e;
    e = store_step(st, &row, reterr);
    if (!e && row)
        customer = str_dup(store_col_str(st, 0));
    store_done(&st);
    if (!e && customer)
        e = entitlement_load(s, str_c(customer), &ent, reterr);
    for (size_t i = 0; !e && ent && i < ent->n_licenses; i++) {
        const struct license *l = &ent->licenses[i];
        if (!str_eq(l->id, license_id) || !license_may_pin(l))
            continue;
        /* Every tag of the application's repositories: read first, for pin_tag() uses the same table. */
        struct {
            char *repository_id, *tag;
        } *tags = NULL;
        size_t n = 0, cap = 0;
        e = store_query(s, &st, reterr,
                        "SELECT DISTINCT h.repository_id, h.tag FROM tag_history h JOIN repositories r ON r.id=h.repository_id"
                        " WHERE r.application_id=? ORDER BY h.repository_id, h.tag",
                        "s", l->application_id);
        while (!e && !(e = store_step(st, &row, reterr)) && row) {
            if (n == cap) {
                cap = cap ? cap * 2 : 64;
                tags = mem_realloc(tags, cap * sizeof(*tags));
            }
            tags[n].repository_id = str_dup(store_col_str(st, 0));
            tags[n++].tag = str_dup(store_col_str(st, 1));
        }
        store_done(&st);
        struct repository r = {0};
        bool found = false;
        for (size_t j = 0; !e && j < n; j++) {
            if (!r.id || strcmp(r.id, tags[j].repository_id) != 0) {
                repository_free(&r);
                e = repository_load(s, str_c(tags[j].repository_id), &r, &found, reterr);
            }
            for (size_t k = 0; !e && found && k < l->n_grants; k++)
                if (l->grants[k].on_move == GRANT_PIN)
                    e = pin_tag(s, ent, l, &l->grants[k], &r, str_c(tags[j].tag), now_s, &pinned, reterr);
        }
        repository_free(&r);
        for (size_t j = 0; j < n; j++) {
            mem_free(tags[j].repository_id);
            mem_free(tags[j].tag);
        }
        mem_free(tags);
    }
    if (!e && pinned)
        e = outbox_put_kind(s, 'c', str_c(customer), true, reterr);
    entitlement_unref(&ent);
    mem_free(customer);
    return e;
}

/* ---- versions ---------------------------------------------------------------------------------- */

/* The version of a tag was seen upstream: make its row, or set its first sighting. *ret_shared: other repositories of the
 * application may show another release date. */
static enum err version_seen(struct store *s, const struct repository *r, struct str tag, int64_t at_s, bool *ret_shared,
                             struct error *reterr)
{
    struct store_stmt *st;
    struct strbuf version = {0}, channel = {0};
    struct candidate c;
    char *id = NULL;
    bool row, is_record = false, unseen = false;
    enum err e = candidate_fill(s, r, tag, &c, &version, &channel, reterr);
    if (e || version.n == 0)
        goto out;
    e = store_query(s, &st, reterr, "SELECT id, source='record', first_seen_at=0 FROM versions WHERE application_id=? AND version=?", "zs",
                    r->application_id, sb_str(&version));
    if (e)
        goto out;
    e = store_step(st, &row, reterr);
    if (!e && row) {
        id = str_dup(store_col_str(st, 0));
        is_record = store_col_int(st, 1) != 0;
        unseen = store_col_int(st, 2) != 0;
    }
    store_done(&st);
    if (e)
        goto out;
    if (!id) {
        char made[ID_MAX];
        id_new("ver_", made);
        e = store_exec(s, NULL, reterr,
                       "INSERT INTO versions (id, application_id, version, first_seen_at, source, created_at, updated_at)"
                       " VALUES (?,?,?,?,'discovered',?,?)",
                       "zzsiii", made, r->application_id, sb_str(&version), at_s, at_s, at_s);
    } else if (unseen) {
        e = store_exec(s, NULL, reterr, "UPDATE versions SET first_seen_at=?, updated_at=?, rev=rev+1 WHERE id=?", "iiz", at_s, at_s, id);
        *ret_shared = is_record;
    }
out:
    mem_free(id);
    sb_free(&version);
    sb_free(&channel);
    return e;
}

/* ---- sightings --------------------------------------------------------------------------------- */

enum err tags_seen(struct store *s, const struct tag_sighting *t, bool *ret_changed, struct error *reterr)
{
    struct store_stmt *st;
    struct repository r = {0};
    struct oci_subject_tag subject;
    struct digest digest;
    bool row, found = false, shared = false;
    int64_t current = 0, newest = 0;

    *ret_changed = false;
    if (!oci_tag_valid(t->tag) || oci_subject_tag_parse(t->tag, &subject) || digest_parse(t->digest, &digest, NULL) || t->at_s <= 0)
        return ERR_OK; /* signatures belong to closures; they are no releases */
    enum err e = repository_load(s, t->repository_id, &r, &found, reterr);
    if (e || !found)
        goto out;

    bool same = false;
    e = store_query(
        s, &st, reterr,
        "SELECT id, digest, first_seen_at, last_seen_at FROM tag_history WHERE repository_id=? AND tag=? ORDER BY id DESC LIMIT 1", "zs",
        r.id, t->tag);
    if (e)
        goto out;
    e = store_step(st, &row, reterr);
    if (!e && row) {
        newest = store_col_int(st, 2) > store_col_int(st, 3) ? store_col_int(st, 2) : store_col_int(st, 3);
        if (store_col_int(st, 3) == 0) {
            current = store_col_int(st, 0);
            same = str_eq(store_col_str(st, 1), t->digest);
        }
    }
    store_done(&st);
    if (e || same || t->at_s < newest) /* older: reported late, or replayed */
        goto out;

    if (current)
        e = store_exec(s, NULL, reterr, "UPDATE tag_history SET last_seen_at=? WHERE id=?", "ii", t->at_s, current);
    if (!e)
        e = store_exec(s, NULL, reterr,
                       "INSERT INTO tag_history (repository_id, tag, digest, media_type, size, first_seen_at) VALUES (?,?,?,?,?,?)",
                       "zsssii", r.id, t->tag, t->digest, t->media_type, (int64_t)t->size, t->at_s);
    if (!e)
        e = version_seen(s, &r, t->tag, t->at_s, &shared, reterr);
    if (!e)
        e = pin_tag_everywhere(s, &r, t->tag, t->at_s, reterr);
    if (!e)
        e = shared ? outbox_put_tags_of_application(s, str_c(r.application_id), reterr)
                   : outbox_put_kind(s, 't', str_c(r.id), true, reterr);
    if (!e)
        *ret_changed = true;
out:
    repository_free(&r);
    return e;
}

enum err tags_gone(struct store *s, struct str repository_id, struct str tag, int64_t at_s, bool *ret_changed, struct error *reterr)
{
    int64_t changes = 0;
    *ret_changed = false;
    enum err e = store_exec(s, &changes, reterr,
                            "UPDATE tag_history SET last_seen_at=? WHERE repository_id=? AND tag=? AND last_seen_at=0 AND first_seen_at<=?",
                            "issi", at_s, repository_id, tag, at_s);
    if (!e && changes) {
        e = outbox_put_kind(s, 't', repository_id, true, reterr);
        if (!e)
            *ret_changed = true;
    }
    return e;
}
