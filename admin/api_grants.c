/* Grants of a license: adding one counts at once; taking one away is an act with a reason, shown first by a dry run, and refused where
 * the license's or the vendor's grants are locked. */
#include <stdio.h>
#include <string.h>

#include "api_routes.h"
#include "licensemodel.h"
#include "pullgate/mem.h"
#include "tags.h"

/* ---- schemas ----------------------------------------------------------------------------------------------------------- */

const struct field GRANT_FIELDS[] = {
    {.name = "id", .type = FIELD_STRING},
    {.name = "selector", .type = FIELD_STRING, .one_of = "exact|range|glob|channel|digest|all"},
    {.name = "value", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "include_prerelease", .type = FIELD_BOOL},
    {.name = "not_before", .type = FIELD_TIME},
    {.name = "not_after", .type = FIELD_TIME},
    {.name = "on_move", .type = FIELD_STRING, .one_of = "follow|pin"},
    {.name = "repositories", .type = FIELD_STRINGS, .about = "none: all of the application's"},
    {.name = "note", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "created_at", .type = FIELD_TIME},
    {.name = "excluded", .type = FIELD_STRINGS, .about = "versions taken out of what it selects"},
    {.name = "origin", .type = FIELD_STRING, .one_of = "plan|hand|coupon|import", .about = "change-plan exchanges the plan's only"},
    {.name = NULL},
};
const struct field GRANT_IN_FIELDS[] = {
    {.name = "selector", .type = FIELD_STRING, .flags = FIELD_REQUIRED, .one_of = "exact|range|glob|channel|digest|all"},
    {.name = "value",
     .type = FIELD_STRING,
     .flags = FIELD_EMPTY,
     .max = 256,
     .about = "1.4.2, ^1.4, 2024.*-lts, stable, sha256:…; none for all"},
    {.name = "on_move", .type = FIELD_STRING, .one_of = "follow|pin", .about = "pin binds each tag to the digest it first resolves to"},
    {.name = "include_prerelease", .type = FIELD_BOOL, .about = "a range also matches pre-releases"},
    {.name = "not_before", .type = FIELD_TIME},
    {.name = "not_after", .type = FIELD_TIME},
    {.name = "repositories", .type = FIELD_STRINGS, .about = "public names; left out: all of the application's"},
    {.name = "note", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = NULL},
};
static const struct schema GRANT_ADD = {"GrantAdd", GRANT_IN_FIELDS};
static const struct schema GRANT_UPDATE = {"GrantUpdate", GRANT_IN_FIELDS + 3 /* what it selects stays: add another and remove this one */};
static const struct field GRANT_REMOVE_FIELDS[] = {
    {.name = "reason", .type = FIELD_STRING, .flags = FIELD_EMPTY, .max = 500},
    {.name = NULL},
};
static const struct schema GRANT_REMOVE = {"GrantRemove", GRANT_REMOVE_FIELDS};
static const struct field VERSION_REMOVE_FIELDS[] = {
    {.name = "version", .type = FIELD_STRING, .flags = FIELD_REQUIRED, .max = 128},
    {.name = "reason", .type = FIELD_STRING, .flags = FIELD_REQUIRED, .max = 500},
    {.name = NULL},
};
static const struct schema VERSION_REMOVE = {"GrantVersionRemove", VERSION_REMOVE_FIELDS};

/* ---- into the store ------------------------------------------------------------------------------------------------------ */

static enum err grant_check_repositories(struct api *rq, const struct jv *list, const char *application_id, const char *prefix)
{
    char field[API_FIELD_MAX];
    api_field(field, "%s%s", prefix, "repositories");
    if (jv_type(list) == JV_NONE)
        return ERR_OK;
    if (!jv_len(list)) /* "none" would read as "all" */
        return api_fail(rq, ERR_INVALID, "invalid_field", field, "%s: name one, or leave it out to grant all of the application's", field);
    for (size_t i = 0; i < jv_len(list); i++) {
        struct store_stmt *st = NULL;
        bool row = false;
        enum err err = store_query(rq->store, &st, &rq->error, "SELECT 1 FROM repositories WHERE application_id=? AND name=?", "zs",
                                   application_id, jv_str(jv_at(list, i)));
        if (!err)
            err = store_step(st, &row, &rq->error);
        store_done(&st);
        if (err)
            return err;
        if (!row) {
            api_field(field, "%srepositories[%zu]", prefix, i);
            return api_fail(rq, ERR_INVALID, "unknown_reference", field, "%s: the application has no such repository", field);
        }
    }
    return ERR_OK;
}

static enum err grant_times(struct api *rq, const struct jv *in, const char *prefix, int64_t *not_before, int64_t *not_after)
{
    char field[API_FIELD_MAX];
    api_field(field, "%s%s", prefix, "not_before");
    enum err err = api_time_start(rq, in, "not_before", field, not_before);
    api_field(field, "%s%s", prefix, "not_after");
    if (!err)
        err = api_time_end(rq, in, "not_after", field, not_after);
    if (!err && *not_before && *not_after && *not_after <= *not_before)
        err = api_fail(rq, ERR_INVALID, "invalid_window", field, "%s: not after not_before", field);
    return err;
}

enum err grant_insert(struct api *rq, const struct license_row *r, const struct jv *in, const char *origin, const char *prefix,
                      char id[ID_MAX])
{
    char field[API_FIELD_MAX];
    enum selector_kind kind;
    struct error error = {0};
    int64_t not_before = 0, not_after = 0;
    struct str value = jv_get_str(in, "value"), on_move = jv_get_str(in, "on_move"), note = jv_get_str(in, "note");
    struct strbuf repositories = {0}, excluded = {0};
    if (!selector_kind_parse(jv_get_str(in, "selector"), &kind)) {
        api_field(field, "%s%s", prefix, "selector");
        return api_fail(rq, ERR_INVALID, "invalid_field", field, "%s: no such selector", field);
    }
    value = value.p ? value : S("");
    if (selector_check(kind, value, &error)) {
        api_field(field, "%s%s", prefix, error.field[0] ? error.field : "value");
        return api_fail(rq, ERR_INVALID, "invalid_field", field, "%s: %s", field, error.text);
    }
    enum err err = grant_times(rq, in, prefix, &not_before, &not_after);
    if (!err)
        err = grant_check_repositories(rq, jv_get(in, "repositories"), r->application_id, prefix);
    if (err)
        return err;
    if (jv_len(jv_get(in, "repositories")))
        jv_dump(jv_get(in, "repositories"), &repositories);
    if (jv_len(jv_get(in, "excluded")))
        jv_dump(jv_get(in, "excluded"), &excluded);
    id_new("grt_", id);
    err = store_exec(rq->store, NULL, &rq->error,
                     "INSERT INTO grants (id, license_id, selector, value, include_prerelease, not_before, not_after, on_move, "
                     "repositories, created_at, note, origin, excluded)"
                     " VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)",
                     "zzzsbiissiszs", id, r->id, selector_kind_text(kind), value, jv_get_bool(in, "include_prerelease", false), not_before,
                     not_after, on_move.p ? on_move : S("follow"), repositories.n ? sb_str(&repositories) : S("[]"), rq->now_s,
                     note.p ? note : S(""), jv_get_c(in, "origin", origin),
                     excluded.n ? sb_str(&excluded) : S("[]"));
    sb_free(&excluded);
    sb_free(&repositories);
    return err;
}

/* ---- what a lock forbids ------------------------------------------------------------------------------------------------- */

static enum err refuse_locked(struct api *rq, const struct license_row *r, const char *what)
{
    if (!r->grants_locked)
        return ERR_OK;
    return api_fail(rq, ERR_CONFLICT, "grants_locked", NULL,
                    "%s: this license's grants are locked; they may be added to, never taken from. An owner can unlock them", what);
}

static bool names_within(const struct jv *inner, const struct jv *outer)
{
    for (size_t i = 0; i < jv_len(inner); i++) {
        bool found = false;
        for (size_t j = 0; j < jv_len(outer) && !found; j++)
            found = str_eq(jv_str(jv_at(inner, i)), jv_str(jv_at(outer, j)));
        if (!found)
            return false;
    }
    return true;
}

/* ---- handlers ------------------------------------------------------------------------------------------------------------ */

static enum err grant_add(struct api *rq)
{
    struct license_row r = {0};
    char id[ID_MAX];
    enum err err = license_for_action(rq, LIFECYCLE_GRANTS, &r);
    if (!err && jv_len(jv_get(rq->before, "grants")) >= GRANTS_MAX)
        err = api_fail(rq, ERR_CONFLICT, "too_many_grants", NULL, "a license has at most %d grants", GRANTS_MAX);
    if (!err)
        err = grant_insert(rq, &r, rq->in, "hand", "", id);
    if (!err)
        err = tags_pin_license(rq->store, str_c(r.id), rq->now_s, &rq->error);
    if (!err)
        err = license_touch(rq, &r);
    if (!err)
        err = license_finish(rq, &r, &(struct license_change){.event = "license.grant_added", .to = r.status, .data = rq->in});
    license_row_free(&r);
    return err;
}

static const struct jv *grant_find(const struct jv *license, struct str id)
{
    const struct jv *grants = jv_get(license, "grants");
    for (size_t i = 0; i < jv_len(grants); i++)
        if (str_eq(jv_get_str(jv_at(grants, i), "id"), id))
            return jv_at(grants, i);
    return NULL;
}

struct window {
    int64_t not_before, not_after;
};

static enum err window_load(struct api *rq, const struct license_row *r, struct window *ret)
{
    struct store_stmt *st = NULL;
    bool row = false;
    enum err err = store_query(rq->store, &st, &rq->error, "SELECT not_before, not_after FROM grants WHERE id=? AND license_id=?", "sz",
                               rq->params[1], r->id);
    if (!err)
        err = store_step(st, &row, &rq->error);
    if (!err && !row)
        err = api_not_found(rq, "grant");
    if (!err)
        *ret = (struct window){store_col_int(st, 0), store_col_int(st, 1)};
    store_done(&st);
    return err;
}

/* Would something that the grant selects no longer be selected? */
static bool grant_narrows(const struct api *rq, const struct jv *old, const struct window *had, const struct window *w)
{
    const struct jv *had_names = jv_get(old, "repositories"), *names = jv_get(rq->in, "repositories");
    if (w->not_before > had->not_before || (w->not_after && (!had->not_after || w->not_after < had->not_after)))
        return true;
    if (jv_get_bool(old, "include_prerelease", false) && !jv_get_bool(rq->in, "include_prerelease", true))
        return true;
    return jv_len(names) && (!jv_len(had_names) || !names_within(had_names, names));
}

/* Does it select otherwise than before? Then it is no longer what the plan said. */
static bool grant_differs(const struct api *rq, const struct jv *old, const struct window *had, const struct window *w)
{
    const struct jv *had_names = jv_get(old, "repositories"), *names = jv_get(rq->in, "repositories");
    bool had_pre = jv_get_bool(old, "include_prerelease", false);
    return w->not_before != had->not_before || w->not_after != had->not_after || jv_get_bool(rq->in, "include_prerelease", had_pre) != had_pre ||
           (jv_len(names) && (jv_len(names) != jv_len(had_names) || !names_within(names, had_names)));
}

static enum err grant_update(struct api *rq)
{
    struct license_row r = {0};
    struct strbuf repositories = {0};
    struct window had = {0}, w = {0};
    enum err err = license_for_action(rq, LIFECYCLE_GRANTS, &r);
    if (!err)
        err = window_load(rq, &r, &had);
    w = had;
    if (!err)
        err = grant_times(rq, rq->in, "", &w.not_before, &w.not_after);
    if (!err)
        err = grant_check_repositories(rq, jv_get(rq->in, "repositories"), r.application_id, "");
    const struct jv *old = err ? NULL : grant_find(rq->before, rq->params[1]);
    if (!err && grant_narrows(rq, old, &had, &w))
        err = refuse_locked(rq, &r, "the grant would become narrower");
    if (!err && jv_len(jv_get(rq->in, "repositories")))
        jv_dump(jv_get(rq->in, "repositories"), &repositories);
    if (!err)
        err = store_exec(rq->store, NULL, &rq->error,
                         "UPDATE grants SET not_before=?, not_after=?, include_prerelease=?, repositories=COALESCE(?,repositories), "
                         "note=COALESCE(?,note), origin=CASE WHEN ? THEN 'hand' ELSE origin END"
                         " WHERE id=?",
                         "iibssbs", w.not_before, w.not_after,
                         jv_get_bool(rq->in, "include_prerelease", jv_get_bool(old, "include_prerelease", false)),
                         repositories.n ? sb_str(&repositories) : (struct str){NULL, 0}, jv_get_str(rq->in, "note"),
                         grant_differs(rq, old, &had, &w), rq->params[1]);
    if (!err)
        err = tags_pin_license(rq->store, str_c(r.id), rq->now_s, &rq->error);
    if (!err)
        err = license_touch(rq, &r);
    if (!err)
        err = license_finish(rq, &r, &(struct license_change){.event = "license.grant_changed", .to = r.status, .data = rq->in});
    sb_free(&repositories);
    license_row_free(&r);
    return err;
}

/* The answer is empty, but of a dry run, which is asked for its answer. */
static void answer_effect_only(struct api *rq)
{
    if (rq->is_dry_run && rq->out) {
        struct jv *out = jv_object();
        static const char *const members[] = {"effect", "last_pulls"};
        for (size_t i = 0; i < 2; i++)
            if (jv_get(rq->out, members[i]))
                jv_set(out, members[i], jv_copy(jv_get(rq->out, members[i])));
        jv_free(rq->out);
        rq->out = out;
    } else {
        jv_free(rq->out);
        rq->out = NULL; /* 204 */
    }
}

static enum err grant_remove(struct api *rq)
{
    struct license_row r = {0};
    struct strbuf reason = {0};
    enum err err = license_for_action(rq, LIFECYCLE_GRANTS, &r);
    const struct jv *grant = err ? NULL : grant_find(rq->before, rq->params[1]);
    if (!err && !grant)
        err = api_not_found(rq, "grant");
    if (!api_query(rq, "reason", &reason))
        sb_add(&reason, jv_get_str(rq->in, "reason"));
    if (!err)
        err = refuse_locked(rq, &r, "the grant cannot be removed");
    if (!err && !str_trim(sb_str(&reason)).n)
        err = api_fail(rq, ERR_INVALID, "missing_field", "reason", "reason: missing; what a customer loses is taken for a reason");
    if (!err)
        err = store_exec(rq->store, NULL, &rq->error, "DELETE FROM grants WHERE id=?", "s", rq->params[1]);
    if (!err)
        err = license_touch(rq, &r);
    if (!err)
        err = license_finish(
            rq, &r, &(struct license_change){.event = "license.grant_removed", .to = r.status, .reason = sb_str(&reason), .data = grant});
    if (!err)
        answer_effect_only(rq);
    sb_free(&reason);
    license_row_free(&r);
    return err;
}

/* One version out of a grant of many. Another grant that names it grants it still, or again. */
static enum err grant_remove_version(struct api *rq)
{
    struct license_row r = {0};
    struct error error = {0};
    struct strbuf text = {0};
    struct str version = jv_get_str(rq->in, "version");
    enum err err = license_for_action(rq, LIFECYCLE_GRANTS, &r);
    const struct jv *grant = err ? NULL : grant_find(rq->before, rq->params[1]);
    struct jv *excluded = grant ? jv_copy(jv_get(grant, "excluded")) : NULL;
    struct str selector = jv_get_str(grant, "selector");
    if (!err && !grant)
        err = api_not_found(rq, "grant");
    if (!err && selector_check(SELECTOR_EXACT, version, &error))
        err = api_fail(rq, ERR_INVALID, "invalid_field", "version", "version: %s", error.text);
    if (!err)
        err = refuse_locked(rq, &r, "the version cannot be removed");
    if (!err && (str_eq(selector, S("exact")) || str_eq(selector, S("digest"))))
        err = api_fail(rq, ERR_CONFLICT, "single_grant", NULL, "the grant selects nothing else: remove the grant itself");
    if (!err && jv_len(excluded) >= GRANT_EXCLUDED_MAX)
        err = api_fail(rq, ERR_CONFLICT, "too_many_versions", NULL, "at most %d versions are taken out of a grant: narrow it", GRANT_EXCLUDED_MAX);
    for (size_t i = 0; i < jv_len(excluded) && !err; i++)
        if (str_eq(jv_str(jv_at(excluded, i)), version))
            err = api_fail(rq, ERR_CONFLICT, "already_removed", "version", "version: was taken out of this grant before");
    if (!err) {
        jv_push(excluded, jv_string(version));
        jv_dump(excluded, &text);
        err = store_exec(rq->store, NULL, &rq->error, "UPDATE grants SET excluded=? WHERE id=?", "ss", sb_str(&text), rq->params[1]);
    }
    if (!err)
        err = license_touch(rq, &r);
    if (!err) {
        struct jv *data = jv_object();
        jv_set_str(data, "grant_id", rq->params[1]);
        jv_set_str(data, "version", version);
        err = license_finish(rq, &r,
                             &(struct license_change){
                                 .event = "license.version_removed", .to = r.status, .reason = jv_get_str(rq->in, "reason"), .data = data});
        jv_free(data);
    }
    jv_free(excluded);
    sb_free(&text);
    license_row_free(&r);
    return err;
}

/* ---- all of them at once ------------------------------------------------------------------------------------------------- */

static int64_t time_of(struct api *rq, const struct jv *in, const char *name, bool is_end)
{
    int64_t t = 0;
    enum err err = is_end ? api_time_end(rq, in, name, name, &t) : api_time_start(rq, in, name, name, &t);
    return err ? -1 : t;
}

static struct str text_or(const struct jv *grant, const char *name, struct str dflt)
{
    struct str s = jv_get_str(grant, name);
    return s.p ? s : dflt;
}

bool grants_same(struct api *rq, const struct jv *a, const struct jv *b)
{
    const struct jv *names = jv_get(a, "repositories"), *others = jv_get(b, "repositories");
    return str_eq(jv_get_str(a, "selector"), jv_get_str(b, "selector")) && str_eq(text_or(a, "value", S("")), text_or(b, "value", S(""))) &&
           str_eq(text_or(a, "on_move", S("follow")), text_or(b, "on_move", S("follow"))) &&
           jv_get_bool(a, "include_prerelease", false) == jv_get_bool(b, "include_prerelease", false) && jv_len(names) == jv_len(others) &&
           names_within(names, others) && time_of(rq, a, "not_before", false) == time_of(rq, b, "not_before", false) &&
           time_of(rq, a, "not_after", true) == time_of(rq, b, "not_after", true);
}

static bool is_plans(const struct jv *grant)
{
    return str_eq(jv_get_str(grant, "origin"), S("plan"));
}

static bool is_among(struct api *rq, const struct jv *grant, const struct jv *list, bool only_plans)
{
    for (size_t i = 0; i < jv_len(list); i++)
        if ((!only_plans || is_plans(jv_at(list, i))) && grants_same(rq, jv_at(list, i), grant))
            return true;
    return false;
}

enum err grants_exchange(struct api *rq, const struct license_row *r, const struct jv *has, const struct jv *list, int64_t since)
{
    enum err err = ERR_OK;
    char prefix[API_FIELD_MAX], id[ID_MAX];
    size_t n = jv_len(has);
    for (size_t i = 0; i < jv_len(has) && !err; i++) {
        const struct jv *grant = jv_at(has, i);
        if (r->grants_locked || (is_plans(grant) ? is_among(rq, grant, list, false) : time_of(rq, grant, "created_at", false) > since))
            continue;
        n--;
        err = store_exec(rq->store, NULL, &rq->error, "DELETE FROM grants WHERE id=?", "s", jv_get_str(grant, "id"));
    }
    for (size_t j = 0; j < jv_len(list) && !err; j++) {
        if (is_among(rq, jv_at(list, j), has, true))
            continue;
        api_field(prefix, "grants[%zu].", j);
        err = ++n > GRANTS_MAX ? api_fail(rq, ERR_CONFLICT, "too_many_grants", NULL, "a license has at most %d grants", GRANTS_MAX)
                               : grant_insert(rq, r, jv_at(list, j), "plan", prefix, id);
    }
    return err;
}

#define LIC "/api/v1/licenses"
static const struct query_param REASON_PARAMS[] = {{"reason", "why; kept in the history. Here or in the body"}, {NULL, NULL}};
const struct route GRANT_ROUTES[] = {
    {HEAD_POST, LIC "/{id}/grants", grant_add, ROLE_LICENSES, ROUTE_ACTION, &GRANT_ADD, &LICENSE_ANSWER, NULL, "license.add_grant",
     "Add a grant"},
    {HEAD_PATCH, LIC "/{id}/grants/{grant_id}", grant_update, ROLE_LICENSES, 0, &GRANT_UPDATE, &LICENSE_ANSWER, NULL,
     "license.update_grant", "Change a grant's window, repositories or note"},
    {HEAD_DELETE, LIC "/{id}/grants/{grant_id}", grant_remove, ROLE_LICENSES, 0, &GRANT_REMOVE, NULL, REASON_PARAMS,
     "license.remove_grant", "Remove a grant"},
    {HEAD_POST, LIC "/{id}/grants/{grant_id}/remove-version", grant_remove_version, ROLE_LICENSES, ROUTE_ACTION, &VERSION_REMOVE,
     &LICENSE_ANSWER, NULL, "license.remove_version", "Take one version out of a grant of many"},
    {.path = NULL},
};
