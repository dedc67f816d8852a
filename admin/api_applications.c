/* Applications, their repositories and versions. Public repository names are unique in the deployment: the first vendor may use any that
 * no other vendor's slug begins, every further vendor the ones under its slug and a slash (DESIGN 2). */
#include <stdio.h>
#include <string.h>

#include "api_routes.h"
#include "outbox.h"
#include "pullgate/credential.h"
#include "pullgate/mem.h"
#include "pullgate/oci.h"
#include "sync.h"

#define SYNC_WAIT_MS     20000 /* how long POST …/sync waits before it says that the sync still runs */
#define REPOSITORIES_MAX 100
#define VERSION_MAX      128

/* ---- schemas ----------------------------------------------------------------------------------------------------------- */

static const struct field REPOSITORY_FIELDS[] = {
    {.name = "id", .type = FIELD_STRING},
    {.name = "name", .type = FIELD_STRING},
    {.name = "upstream_id", .type = FIELD_STRING},
    {.name = "upstream_repository", .type = FIELD_STRING},
    {.name = "kind", .type = FIELD_STRING, .one_of = "image|chart|artifact"},
    {.name = "tag_template", .type = FIELD_STRING},
    {.name = "created_at", .type = FIELD_TIME},
    {.name = "updated_at", .type = FIELD_TIME},
    {.name = "synced_at", .type = FIELD_TIME, .about = "last look at the upstream"},
    {.name = "sync_error", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = NULL},
};
static const struct schema REPOSITORY = {"Repository", REPOSITORY_FIELDS};

static const struct field REPOSITORY_IN_FIELDS[] = {
    {.name = "name", .type = FIELD_STRING, .flags = FIELD_REQUIRED, .max = 255, .about = "what clients pull; unique in the deployment"},
    {.name = "upstream_id", .type = FIELD_STRING, .flags = FIELD_REQUIRED, .max = 64},
    {.name = "upstream_repository", .type = FIELD_STRING, .flags = FIELD_REQUIRED, .max = 255},
    {.name = "kind", .type = FIELD_STRING, .one_of = "image|chart|artifact"},
    {.name = "tag_template", .type = FIELD_STRING, .max = 128, .about = "the tag of a version: {version} and what stands around it"},
    {.name = NULL},
};
static const struct schema REPOSITORY_CREATE = {"RepositoryCreate", REPOSITORY_IN_FIELDS};
static const struct schema REPOSITORY_UPDATE = {"RepositoryUpdate", REPOSITORY_IN_FIELDS + 1 /* the name stays */};

static const struct field APPLICATION_FIELDS[] = {
    {.name = "id", .type = FIELD_STRING},       {.name = "slug", .type = FIELD_STRING},
    {.name = "name", .type = FIELD_STRING},     {.name = "description", .type = FIELD_TEXT, .flags = FIELD_EMPTY},
    {.name = "metadata", .type = FIELD_MAP},    {.name = "repositories", .type = FIELD_LIST, .sub = REPOSITORY_FIELDS},
    {.name = "created_at", .type = FIELD_TIME}, {.name = "updated_at", .type = FIELD_TIME},
    {.name = "etag", .type = FIELD_STRING},     {.name = NULL},
};
static const struct schema APPLICATION = {"Application", APPLICATION_FIELDS};

static const struct field APPLICATION_CREATE_FIELDS[] = {
    {.name = "slug", .type = FIELD_STRING, .flags = FIELD_REQUIRED, .max = 64},
    {.name = "repositories", .type = FIELD_LIST, .max = REPOSITORIES_MAX, .sub = REPOSITORY_IN_FIELDS},
    {.name = "name", .type = FIELD_STRING, .about = "the slug, when absent"},
    {.name = "description", .type = FIELD_TEXT, .flags = FIELD_EMPTY, .max = 4000},
    {.name = "metadata", .type = FIELD_MAP},
    {.name = NULL},
};
static const struct schema APPLICATION_CREATE = {"ApplicationCreate", APPLICATION_CREATE_FIELDS};
static const struct schema APPLICATION_UPDATE = {"ApplicationUpdate", APPLICATION_CREATE_FIELDS + 2 /* name, description, metadata */};

static const struct field ARTIFACT_FIELDS[] = {
    {.name = "repository", .type = FIELD_STRING},
    {.name = "kind", .type = FIELD_STRING},
    {.name = "tag", .type = FIELD_STRING},
    {.name = "digest", .type = FIELD_STRING, .flags = FIELD_EMPTY, .about = "what the tag resolved to when last looked at"},
    {.name = "media_type", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "platforms", .type = FIELD_STRINGS},
    {.name = "size_bytes", .type = FIELD_INT},
    {.name = NULL},
};
static const struct field VERSION_FIELDS[] = {
    {.name = "version", .type = FIELD_STRING},
    {.name = "released_at", .type = FIELD_TIME, .about = "as recorded, else when it was first seen"},
    {.name = "channel", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "notes", .type = FIELD_TEXT, .flags = FIELD_EMPTY},
    {.name = "source", .type = FIELD_STRING, .one_of = "discovered|record"},
    {.name = "first_seen_at", .type = FIELD_TIME},
    {.name = "artifacts", .type = FIELD_LIST, .sub = ARTIFACT_FIELDS},
    {.name = "created_at", .type = FIELD_TIME},
    {.name = "updated_at", .type = FIELD_TIME},
    {.name = "etag", .type = FIELD_STRING},
    {.name = NULL},
};
static const struct schema VERSION = {"Version", VERSION_FIELDS};

static const struct field VERSION_PUT_FIELDS[] = {
    {.name = "released_at", .type = FIELD_TIME},
    {.name = "channel", .type = FIELD_STRING, .flags = FIELD_EMPTY | FIELD_NULL, .max = 64},
    {.name = "notes", .type = FIELD_TEXT, .flags = FIELD_EMPTY | FIELD_NULL, .max = 20000},
    {.name = "tags", .type = FIELD_MAP, .about = "public repository name -> tag, where the template does not make it; replaces all"},
    {.name = NULL},
};
static const struct schema VERSION_PUT = {"VersionPut", VERSION_PUT_FIELDS};

static const struct field SYNC_FIELDS[] = {
    {.name = "status", .type = FIELD_STRING, .one_of = "done|running"},
    {.name = "repositories", .type = FIELD_LIST, .sub = REPOSITORY_FIELDS},
    {.name = NULL},
};
static const struct schema SYNC_RESULT = {"SyncResult", SYNC_FIELDS};

/* ---- reading ----------------------------------------------------------------------------------------------------------- */

#define REPOSITORY_COLUMNS "id, name, upstream_id, upstream_repository, kind, tag_template, created_at, updated_at, synced_at, sync_error"

static struct jv *repository_print(const struct store_stmt *st)
{
    struct jv *v = jv_object();
    jv_set_str(v, "id", store_col_str(st, 0));
    jv_set_str(v, "name", store_col_str(st, 1));
    jv_set_str(v, "upstream_id", store_col_str(st, 2));
    jv_set_str(v, "upstream_repository", store_col_str(st, 3));
    jv_set_str(v, "kind", store_col_str(st, 4));
    jv_set_str(v, "tag_template", store_col_str(st, 5));
    jv_set_time(v, "created_at", store_col_int(st, 6));
    jv_set_time(v, "updated_at", store_col_int(st, 7));
    jv_set_time(v, "synced_at", store_col_int(st, 8));
    jv_set_str(v, "sync_error", store_col_str(st, 9));
    return v;
}

static enum err repositories_load(struct api *rq, struct str application_id, struct jv **ret)
{
    struct store_stmt *st = NULL;
    struct jv *list = jv_array();
    bool row;
    enum err err =
        store_query(rq->store, &st, &rq->error,
                    "SELECT " REPOSITORY_COLUMNS " FROM repositories WHERE application_id=? ORDER BY created_at, id", "s", application_id);
    while (!err) {
        err = store_step(st, &row, &rq->error);
        if (err || !row)
            break;
        jv_push(list, repository_print(st));
    }
    store_done(&st);
    if (err)
        jv_free(list);
    else
        *ret = list;
    return err;
}

static enum err repository_load(struct api *rq, struct str application_id, struct str id, struct jv **ret)
{
    struct store_stmt *st = NULL;
    bool row = false;
    enum err err = store_query(rq->store, &st, &rq->error,
                               "SELECT " REPOSITORY_COLUMNS " FROM repositories WHERE id=? AND application_id=?", "ss", id, application_id);
    if (!err)
        err = store_step(st, &row, &rq->error);
    if (!err && !row)
        err = api_not_found(rq, "repository");
    if (!err)
        *ret = repository_print(st);
    store_done(&st);
    return err;
}

#define APPLICATION_COLUMNS "id, slug, name, description, metadata, created_at, updated_at, rev"

static struct jv *application_print(const struct store_stmt *st)
{
    struct jv *v = jv_object();
    jv_set_str(v, "id", store_col_str(st, 0));
    jv_set_str(v, "slug", store_col_str(st, 1));
    jv_set_str(v, "name", store_col_str(st, 2));
    jv_set_str(v, "description", store_col_str(st, 3));
    api_set_json(v, "metadata", store_col_str(st, 4));
    jv_set_time(v, "created_at", store_col_int(st, 5));
    jv_set_time(v, "updated_at", store_col_int(st, 6));
    api_print_etag(v, store_col_int(st, 7));
    return v;
}

static enum err application_load(struct api *rq, struct str id, struct jv **ret, int64_t *ret_rev)
{
    struct store_stmt *st = NULL;
    struct jv *v = NULL, *repositories;
    bool row = false;
    enum err err = store_query(rq->store, &st, &rq->error,
                               "SELECT " APPLICATION_COLUMNS " FROM applications WHERE id=? AND vendor_id=? AND archived_at=0", "sz", id,
                               rq->vendor_id);
    if (!err)
        err = store_step(st, &row, &rq->error);
    if (!err && !row)
        err = api_not_found(rq, "application");
    if (!err) {
        v = application_print(st);
        *ret_rev = store_col_int(st, 7);
    }
    store_done(&st);
    if (!err)
        err = repositories_load(rq, id, &repositories);
    if (err) {
        jv_free(v);
        return err;
    }
    jv_set(v, "repositories", repositories);
    *ret = v;
    return ERR_OK;
}

static enum err application_answer(struct api *rq, struct str id)
{
    int64_t rev;
    enum err err = application_load(rq, id, &rq->out, &rev);
    if (!err)
        api_set_etag(rq, rev);
    return err;
}

static enum err application_get(struct api *rq)
{
    return application_answer(rq, rq->params[0]);
}

static enum err application_list(struct api *rq)
{
    struct page page;
    struct store_stmt *st = NULL;
    enum err err = api_page(rq, &page);
    if (err)
        return err;
    struct jv *items = api_list(rq);
    err = store_query(rq->store, &st, &rq->error,
                      "SELECT " APPLICATION_COLUMNS " FROM applications WHERE vendor_id=? AND archived_at=0 AND (created_at, id) > (?,?)"
                      " ORDER BY created_at, id LIMIT ?",
                      "zizi", rq->vendor_id, page.after_key, page.after_id, (int64_t)page.limit + 1);
    if (!err)
        err = api_page_rows(rq, &page, st, 5, application_print);
    store_done(&st);
    for (size_t i = 0; !err && i < jv_len(items); i++) {
        struct jv *a = jv_at(items, i), *repositories;
        err = repositories_load(rq, jv_get_str(a, "id"), &repositories);
        if (!err)
            jv_set(a, "repositories", repositories);
    }
    return err;
}

/* ---- repositories ------------------------------------------------------------------------------------------------------ */

/* The rule of DESIGN 2 about names. */
static enum err repository_check_namespace(struct api *rq, struct str name, const char *field)
{
    struct store_stmt *st = NULL;
    bool row = false, allowed = false, is_first = false;
    enum err err = store_query(rq->store, &st, &rq->error, "SELECT is_first, slug FROM vendors WHERE id=?", "z", rq->vendor_id);
    if (!err)
        err = store_step(st, &row, &rq->error);
    if (!err && row) {
        struct str slug = store_col_str(st, 1);
        is_first = store_col_int(st, 0) != 0;
        allowed = is_first || (name.n > slug.n + 1 && str_starts(name, slug) && name.p[slug.n] == '/');
    }
    store_done(&st);
    if (err)
        return err;
    if (is_first) {
        bool found = false;
        err = api_lookup(rq, "SELECT 1 FROM vendors WHERE is_first=0 AND (slug = ?1 OR substr(?1, 1, length(slug)+1) = slug || '/')", name,
                         NULL, &found);
        if (err)
            return err;
        allowed = !found;
    }
    if (!allowed)
        return api_fail(rq, ERR_DENIED, "name_not_allowed", field,
                        "%s: this name belongs to another vendor, or does not begin with this one's slug", field);
    return ERR_OK;
}

/* in: a repository of the body, whose members are named with prefix in refusals. */
static enum err repository_check(struct api *rq, const struct jv *in, const char *prefix)
{
    char field[API_FIELD_MAX];
    struct str name = jv_get_str(in, "name"), upstream = jv_get_str(in, "upstream_id"), from = jv_get_str(in, "upstream_repository"),
               template = jv_get_str(in, "tag_template");
    enum err err = ERR_OK;
    api_field(field, "%s%s", prefix, "name");
    if (name.p && !oci_name_valid(name))
        return api_fail(rq, ERR_INVALID, "invalid_field", field,
                        "%s: not a repository name: lower-case path segments with single . _ - inside", field);
    if (name.p)
        err = repository_check_namespace(rq, name, field);
    if (err)
        return err;
    api_field(field, "%s%s", prefix, "upstream_repository");
    if (from.p && !oci_name_valid(from))
        return api_fail(rq, ERR_INVALID, "invalid_field", field, "%s: not a repository name", field);
    api_field(field, "%s%s", prefix, "tag_template");
    if (template.p && !oci_tag_template_valid(template))
        return api_fail(rq, ERR_INVALID, "invalid_field", field, "%s: expected tag characters with {version} once", field);
    if (upstream.p) {
        struct strbuf owner = {0};
        bool found = false;
        api_field(field, "%s%s", prefix, "upstream_id");
        err = api_lookup(rq, "SELECT vendor_id FROM upstreams WHERE id=?", upstream, &owner, &found);
        if (!err && (!found || !str_eq_c(sb_str(&owner), rq->vendor_id)))
            err = api_fail(rq, ERR_INVALID, "unknown_reference", field, "%s: no such upstream", field);
        sb_free(&owner);
    }
    return err;
}

static enum err repository_insert(struct api *rq, struct str application_id, const struct jv *in, const char *prefix, char id[ID_MAX])
{
    struct str name = jv_get_str(in, "name"), kind = jv_get_str(in, "kind"), template = jv_get_str(in, "tag_template");
    char field[API_FIELD_MAX];
    enum err err = repository_check(rq, in, prefix);
    if (err)
        return err;
    id_new("rep_", id);
    err = store_exec(
        rq->store, NULL, &rq->error,
        "INSERT INTO repositories (id, application_id, name, upstream_id, upstream_repository, kind, tag_template, created_at, updated_at)"
        " VALUES (?,?,?,?,?,?,?,?,?)",
        "zssssssii", id, application_id, name, jv_get_str(in, "upstream_id"), jv_get_str(in, "upstream_repository"),
        kind.p ? kind : S("image"), template.p ? template : S("{version}"), rq->now_s, rq->now_s);
    if (err == ERR_CONFLICT) {
        api_field(field, "%s%s", prefix, "name");
        return api_fail(rq, ERR_CONFLICT, "conflict", field, "%s: a repository has this name already", field);
    }
    if (!err)
        err = outbox_put_kind(rq->store, 'r', name, true, &rq->error);
    if (!err)
        err = outbox_put_kind(rq->store, 't', str_c(id), true, &rq->error);
    rq->poke_sync = true;
    return err;
}

/* An application's repositories changed: its revision, and the entitlements that name them. */
static enum err application_touch(struct api *rq, struct str id)
{
    enum err err =
        store_exec(rq->store, NULL, &rq->error, "UPDATE applications SET updated_at=?, rev=rev+1 WHERE id=?", "is", rq->now_s, id);
    return err ? err : outbox_put_customers_of_application(rq->store, id, &rq->error);
}

static enum err repository_list(struct api *rq)
{
    struct jv *app;
    int64_t rev;
    struct page page;
    struct store_stmt *st = NULL;
    enum err err = api_page(rq, &page);
    if (!err)
        err = application_load(rq, rq->params[0], &app, &rev);
    if (err)
        return err;
    jv_free(app);
    (void)api_list(rq);
    err = store_query(rq->store, &st, &rq->error,
                      "SELECT " REPOSITORY_COLUMNS
                      " FROM repositories WHERE application_id=? AND (created_at, id) > (?,?) ORDER BY created_at, id LIMIT ?",
                      "sizi", rq->params[0], page.after_key, page.after_id, (int64_t)page.limit + 1);
    if (!err)
        err = api_page_rows(rq, &page, st, 6, repository_print);
    store_done(&st);
    return err;
}

/* The application of the path belongs to the caller; its If-Match holds for its repositories too. */
static enum err repository_parent(struct api *rq)
{
    struct jv *app = NULL;
    int64_t rev;
    enum err err = application_load(rq, rq->params[0], &app, &rev);
    if (!err && rq->method != HEAD_GET)
        err = api_check_etag(rq, rev);
    jv_free(app);
    return err;
}

static enum err repository_create(struct api *rq)
{
    char id[ID_MAX];
    bool full = false;
    struct strbuf path = {0};
    enum err err = repository_parent(rq);
    if (!err)
        err = api_lookup(rq, "SELECT 1 FROM repositories WHERE application_id=? LIMIT 1 OFFSET 999", rq->params[0], NULL, &full);
    if (!err && full)
        err = api_fail(rq, ERR_CONFLICT, "too_many_repositories", NULL, "an application has at most 1000 repositories");
    if (!err)
        err = repository_insert(rq, rq->params[0], rq->in, "", id);
    if (!err)
        err = application_touch(rq, rq->params[0]);
    if (!err)
        err = repository_load(rq, rq->params[0], str_c(id), &rq->out);
    if (!err) {
        rq->after = jv_copy(rq->out);
        sb_addf(&path, "/api/v1/applications/%.*s/repositories/", STR(rq->params[0]));
        api_created(rq, path.p, id);
        sb_free(&path);
    }
    return err;
}

static enum err repository_get(struct api *rq)
{
    enum err err = repository_parent(rq);
    return err ? err : repository_load(rq, rq->params[0], rq->params[1], &rq->out);
}

static enum err repository_update(struct api *rq)
{
    enum err err = repository_parent(rq);
    if (!err)
        err = repository_load(rq, rq->params[0], rq->params[1], &rq->before);
    if (!err)
        err = repository_check(rq, rq->in, "");
    if (!err)
        err = store_exec(rq->store, NULL, &rq->error,
                         "UPDATE repositories SET upstream_id=COALESCE(?,upstream_id), upstream_repository=COALESCE(?,upstream_repository),"
                         " kind=COALESCE(?,kind), tag_template=COALESCE(?,tag_template), updated_at=? WHERE id=?",
                         "ssssis", jv_get_str(rq->in, "upstream_id"), jv_get_str(rq->in, "upstream_repository"), jv_get_str(rq->in, "kind"),
                         jv_get_str(rq->in, "tag_template"), rq->now_s, rq->params[1]);
    /* Another place upstream: what its tags were is another history. */
    bool moved = api_has(rq, "upstream_id") || api_has(rq, "upstream_repository");
    if (!err && moved)
        err = store_exec(rq->store, NULL, &rq->error, "DELETE FROM tag_history WHERE repository_id=?", "s", rq->params[1]);
    if (!err && moved)
        err = store_exec(rq->store, NULL, &rq->error, "DELETE FROM manifests WHERE repository_id=?", "s", rq->params[1]);
    if (!err)
        err = outbox_put_kind(rq->store, 'r', jv_get_str(rq->before, "name"), true, &rq->error);
    if (!err)
        err = outbox_put_kind(rq->store, 't', rq->params[1], true, &rq->error);
    if (!err)
        err = application_touch(rq, rq->params[0]);
    if (!err)
        err = repository_load(rq, rq->params[0], rq->params[1], &rq->out);
    if (!err)
        rq->after = jv_copy(rq->out);
    api_audit_object(rq, rq->params[1].p);
    rq->poke_sync = true;
    return err;
}

static enum err repository_delete(struct api *rq)
{
    struct store_stmt *st = NULL;
    bool named = false;
    enum err err = repository_parent(rq);
    if (!err)
        err = repository_load(rq, rq->params[0], rq->params[1], &rq->before);
    if (err)
        return err;
    struct str name = jv_get_str(rq->before, "name");
    /* A grant for some repositories only must not lose its last one: an empty list means all. */
    err = store_query(rq->store, &st, &rq->error,
                      "SELECT 1 FROM grants g JOIN licenses l ON l.id=g.license_id, json_each(g.repositories) j"
                      " WHERE l.application_id=? AND l.archived_at=0 AND j.value=? LIMIT 1",
                      "ss", rq->params[0], name);
    if (!err)
        err = store_step(st, &named, &rq->error);
    store_done(&st);
    if (!err && named)
        err = api_fail(rq, ERR_CONFLICT, "repository_in_use", NULL, "grants name this repository");
    if (!err)
        err = store_exec(rq->store, NULL, &rq->error, "DELETE FROM repositories WHERE id=?", "s", rq->params[1]);
    if (!err)
        err = outbox_put_kind(rq->store, 'r', name, false, &rq->error);
    if (!err)
        err = outbox_put_kind(rq->store, 't', rq->params[1], false, &rq->error);
    if (!err)
        err = application_touch(rq, rq->params[0]);
    api_audit_object(rq, rq->params[1].p);
    return err;
}

/* ---- applications ------------------------------------------------------------------------------------------------------ */

static enum err application_create(struct api *rq)
{
    char id[ID_MAX], repository_id[ID_MAX], prefix[API_FIELD_MAX];
    struct strbuf metadata = {0};
    struct str slug = jv_get_str(rq->in, "slug"), name = jv_get_str(rq->in, "name"), description = jv_get_str(rq->in, "description");
    if (!api_slug_valid(slug))
        return api_fail(rq, ERR_INVALID, "invalid_field", "slug", "slug: lower-case letters and digits, single . _ - between them");
    if (api_has(rq, "metadata"))
        jv_dump(jv_get(rq->in, "metadata"), &metadata);
    id_new("app_", id);
    enum err err = store_exec(
        rq->store, NULL, &rq->error,
        "INSERT INTO applications (id, vendor_id, slug, name, description, metadata, created_at, updated_at) VALUES (?,?,?,?,?,?,?,?)",
        "zzssssii", id, rq->vendor_id, slug, name.p ? name : slug, description.p ? description : S(""),
        metadata.n ? sb_str(&metadata) : S("{}"), rq->now_s, rq->now_s);
    const struct jv *repositories = jv_get(rq->in, "repositories");
    for (size_t i = 0; !err && i < jv_len(repositories); i++) {
        api_field(prefix, "repositories[%zu].", i);
        err = repository_insert(rq, str_c(id), jv_at(repositories, i), prefix, repository_id);
    }
    if (!err)
        err = application_answer(rq, str_c(id));
    if (!err) {
        rq->after = jv_copy(rq->out);
        api_created(rq, "/api/v1/applications/", id);
    }
    sb_free(&metadata);
    return err;
}

static enum err application_update(struct api *rq)
{
    int64_t rev;
    struct strbuf metadata = {0};
    enum err err = application_load(rq, rq->params[0], &rq->before, &rev);
    if (!err)
        err = api_check_etag(rq, rev);
    if (err)
        return err;
    if (api_has(rq, "metadata"))
        jv_dump(jv_get(rq->in, "metadata"), &metadata);
    err = store_exec(rq->store, NULL, &rq->error,
                     "UPDATE applications SET name=COALESCE(?,name), description=COALESCE(?,description), metadata=COALESCE(?,metadata),"
                     " updated_at=?, rev=rev+1 WHERE id=?",
                     "sssis", jv_get_str(rq->in, "name"), jv_get_str(rq->in, "description"),
                     metadata.n ? sb_str(&metadata) : (struct str){NULL, 0}, rq->now_s, rq->params[0]);
    if (!err)
        err = application_answer(rq, rq->params[0]);
    if (!err)
        rq->after = jv_copy(rq->out);
    sb_free(&metadata);
    return err;
}

static enum err application_delete(struct api *rq)
{
    int64_t rev;
    bool used = false;
    enum err err = application_load(rq, rq->params[0], &rq->before, &rev);
    if (!err)
        err = api_check_etag(rq, rev);
    if (!err)
        err = api_lookup(rq, "SELECT 1 FROM licenses WHERE application_id=? AND archived_at=0 LIMIT 1", rq->params[0], NULL, &used);
    if (!err && used)
        err = api_fail(rq, ERR_CONFLICT, "application_in_use", NULL, "licenses name this application; delete them first");
    const struct jv *repositories = err ? NULL : jv_get(rq->before, "repositories");
    for (size_t i = 0; !err && i < jv_len(repositories); i++) {
        const struct jv *r = jv_at(repositories, i);
        err = outbox_put_kind(rq->store, 'r', jv_get_str(r, "name"), false, &rq->error);
        if (!err)
            err = outbox_put_kind(rq->store, 't', jv_get_str(r, "id"), false, &rq->error);
    }
    if (!err)
        err = store_exec(rq->store, NULL, &rq->error, "DELETE FROM repositories WHERE application_id=?", "s", rq->params[0]);
    if (!err)
        err = store_exec(rq->store, NULL, &rq->error, "UPDATE applications SET archived_at=?, rev=rev+1 WHERE id=?", "is", rq->now_s,
                         rq->params[0]);
    return err;
}

/* ---- versions ---------------------------------------------------------------------------------------------------------- */

#define VERSION_COLUMNS "id, version, released_at, channel, notes, source, first_seen_at, created_at, updated_at, rev"

static struct jv *version_print(const struct store_stmt *st)
{
    struct jv *v = jv_object();
    jv_set_str(v, "id", store_col_str(st, 0));
    jv_set_str(v, "version", store_col_str(st, 1));
    jv_set_time(v, "released_at", store_col_int(st, 2) ? store_col_int(st, 2) : store_col_int(st, 6));
    jv_set_str(v, "channel", store_col_str(st, 3));
    jv_set_str(v, "notes", store_col_str(st, 4));
    jv_set_str(v, "source", store_col_str(st, 5));
    jv_set_time(v, "first_seen_at", store_col_int(st, 6));
    jv_set_time(v, "created_at", store_col_int(st, 7));
    jv_set_time(v, "updated_at", store_col_int(st, 8));
    api_print_etag(v, store_col_int(st, 9));
    return v;
}

/* What stands under one tag now, if the admin has seen it. */
static enum err artifact_load(struct api *rq, struct str repository_id, struct str tag, struct jv *a, bool *ret_seen)
{
    struct store_stmt *st = NULL;
    bool row = false;
    enum err err = store_query(rq->store, &st, &rq->error,
                               "SELECT t.digest, t.media_type, COALESCE(m.platforms,''), COALESCE(m.total_bytes, t.size) FROM tag_history t"
                               " LEFT JOIN manifests m ON m.repository_id=t.repository_id AND m.digest=t.digest"
                               " WHERE t.repository_id=? AND t.tag=? AND t.last_seen_at=0",
                               "ss", repository_id, tag);
    if (!err)
        err = store_step(st, &row, &rq->error);
    if (!err) {
        struct jv *platforms = jv_array();
        struct str rest = row ? store_col_str(st, 2) : (struct str){NULL, 0}, one;
        while (rest.n && str_next(&rest, ',', &one))
            jv_push(platforms, jv_string(one));
        jv_set_str(a, "digest", row ? store_col_str(st, 0) : S(""));
        jv_set_str(a, "media_type", row ? store_col_str(st, 1) : S(""));
        jv_set(a, "platforms", platforms);
        jv_set_int(a, "size_bytes", row ? store_col_int(st, 3) : 0);
        *ret_seen = row;
    }
    store_done(&st);
    return err;
}

/* Adds "artifacts" to v, and takes its "id" away. In each repository the version is the tag that its record names, else the template's. */
static enum err version_add_artifacts(struct api *rq, struct jv *v, const struct jv *repositories)
{
    struct jv *artifacts = jv_array();
    struct strbuf id = {0}, tag = {0};
    enum err err = ERR_OK;
    sb_add(&id, jv_get_str(v, "id"));
    for (size_t i = 0; !err && i < jv_len(repositories); i++) {
        const struct jv *r = jv_at(repositories, i);
        struct store_stmt *st = NULL;
        bool named = false, seen = false;
        sb_reset(&tag);
        err = store_query(rq->store, &st, &rq->error, "SELECT tag FROM version_tags WHERE version_id=? AND repository_id=?", "ss",
                          sb_str(&id), jv_get_str(r, "id"));
        if (!err)
            err = store_step(st, &named, &rq->error);
        if (!err && named)
            sb_add(&tag, store_col_str(st, 0));
        store_done(&st);
        if (err || (!named && !oci_tag_of_version(jv_get_str(r, "tag_template"), jv_get_str(v, "version"), &tag)))
            continue;
        struct jv *a = jv_object();
        jv_set_str(a, "repository", jv_get_str(r, "name"));
        jv_set_str(a, "kind", jv_get_str(r, "kind"));
        jv_set_str(a, "tag", sb_str(&tag));
        err = artifact_load(rq, jv_get_str(r, "id"), sb_str(&tag), a, &seen);
        if (!err && (seen || named))
            jv_push(artifacts, a);
        else
            jv_free(a);
    }
    jv_set(v, "artifacts", artifacts);
    jv_del(v, "id");
    sb_free(&id);
    sb_free(&tag);
    return err;
}

static enum err version_load(struct api *rq, struct str application_id, struct str version, struct jv **ret, int64_t *ret_rev,
                             bool *ret_found)
{
    struct store_stmt *st = NULL;
    struct jv *v = NULL, *repositories = NULL;
    bool row = false;
    enum err err = store_query(rq->store, &st, &rq->error, "SELECT " VERSION_COLUMNS " FROM versions WHERE application_id=? AND version=?",
                               "ss", application_id, version);
    if (!err)
        err = store_step(st, &row, &rq->error);
    if (!err && row) {
        v = version_print(st);
        *ret_rev = store_col_int(st, 9);
    }
    store_done(&st);
    if (!err && row)
        err = repositories_load(rq, application_id, &repositories);
    if (!err && row)
        err = version_add_artifacts(rq, v, repositories);
    jv_free(repositories);
    if (err) {
        jv_free(v);
        return err;
    }
    *ret = v;
    *ret_found = row;
    return ERR_OK;
}

static enum err version_list(struct api *rq)
{
    struct page page;
    struct jv *app = NULL;
    struct store_stmt *st = NULL;
    int64_t rev;
    enum err err = api_page(rq, &page);
    if (!err)
        err = application_load(rq, rq->params[0], &app, &rev);
    if (err)
        return err;
    struct jv *items = api_list(rq);
    err = store_query(rq->store, &st, &rq->error,
                      "SELECT " VERSION_COLUMNS
                      " FROM versions WHERE application_id=? AND (created_at, id) > (?,?) ORDER BY created_at, id LIMIT ?",
                      "sizi", rq->params[0], page.after_key, page.after_id, (int64_t)page.limit + 1);
    if (!err)
        err = api_page_rows(rq, &page, st, 7, version_print);
    store_done(&st);
    for (size_t i = 0; !err && i < jv_len(items); i++)
        err = version_add_artifacts(rq, jv_at(items, i), jv_get(app, "repositories"));
    jv_free(app);
    return err;
}

static enum err version_get(struct api *rq)
{
    int64_t rev = 0;
    bool found = false;
    enum err err = repository_parent(rq);
    if (!err)
        err = version_load(rq, rq->params[0], rq->params[1], &rq->out, &rev, &found);
    if (!err && !found)
        err = api_not_found(rq, "version");
    if (!err)
        api_set_etag(rq, rev);
    return err;
}

/* A version is what a tag can be made of: tag characters and the '+' of build metadata. */
static bool version_valid(struct str v)
{
    if (v.n < 1 || v.n > VERSION_MAX)
        return false;
    for (size_t i = 0; i < v.n; i++) {
        char c = v.p[i];
        bool is_word = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
        if (!is_word && (i == 0 || (c != '.' && c != '-' && c != '+')))
            return false;
    }
    return true;
}

static enum err version_put_tags(struct api *rq, const char *version_id, const struct jv *repositories)
{
    const struct jv *tags = jv_get(rq->in, "tags");
    enum err err = store_exec(rq->store, NULL, &rq->error, "DELETE FROM version_tags WHERE version_id=?", "z", version_id);
    for (void *it = jv_iter(tags); it && !err; it = jv_iter_next(tags, it)) {
        struct str name = str_c(jv_iter_key(it)), tag = jv_str(jv_iter_value(it)), repository_id = {NULL, 0};
        for (size_t i = 0; i < jv_len(repositories); i++)
            if (str_eq(jv_get_str(jv_at(repositories, i), "name"), name))
                repository_id = jv_get_str(jv_at(repositories, i), "id");
        if (!repository_id.p)
            return api_fail(rq, ERR_INVALID, "unknown_reference", "tags", "tags: the application has no repository of such a name");
        if (!oci_tag_valid(tag))
            return api_fail(rq, ERR_INVALID, "invalid_field", "tags", "tags: expected a tag for each repository");
        err = store_exec(rq->store, NULL, &rq->error, "INSERT INTO version_tags (version_id, repository_id, tag) VALUES (?,?,?)", "zss",
                         version_id, repository_id, tag);
        if (err == ERR_CONFLICT)
            return api_fail(rq, ERR_CONFLICT, "conflict", "tags", "tags: another version names this tag");
    }
    return err;
}

static enum err version_put(struct api *rq)
{
    struct jv *app = NULL;
    struct strbuf id = {0};
    struct store_stmt *st = NULL;
    char made[ID_MAX];
    int64_t rev = 0, released_at = 0;
    bool found = false;
    enum err err = application_load(rq, rq->params[0], &app, &rev);
    if (!err && !version_valid(rq->params[1]))
        err = api_fail(rq, ERR_INVALID, "invalid_field", "version", "version: letters, digits, and . _ - + after the first");
    if (!err)
        err = version_load(rq, rq->params[0], rq->params[1], &rq->before, &rev, &found);
    if (!err)
        err = found ? api_check_etag(rq, rev) : rq->if_match ? api_check_etag(rq, 0) : ERR_OK;
    if (!err)
        err = api_time_start(rq, rq->in, "released_at", "released_at", &released_at);
    if (err)
        goto out;

    struct str channel = api_has(rq, "channel") && !jv_get_str(rq->in, "channel").p ? S("") : jv_get_str(rq->in, "channel");
    struct str notes = api_has(rq, "notes") && !jv_get_str(rq->in, "notes").p ? S("") : jv_get_str(rq->in, "notes");
    id_new("ver_", made);
    err = store_exec(rq->store, NULL, &rq->error,
                     "INSERT INTO versions (id, application_id, version, released_at, channel, notes, source, created_at, updated_at)"
                     " VALUES (?1,?2,?3,?4,COALESCE(?5,''),COALESCE(?6,''),'record',?7,?7)"
                     " ON CONFLICT (application_id, version) DO UPDATE SET released_at=CASE WHEN ?8 THEN ?4 ELSE released_at END,"
                     " channel=COALESCE(?5,channel), notes=COALESCE(?6,notes), source='record', updated_at=?7, rev=rev+1",
                     "zssissib", made, rq->params[0], rq->params[1], released_at, channel, notes, rq->now_s, api_has(rq, "released_at"));
    if (!err) {
        bool row = false;
        err = store_query(rq->store, &st, &rq->error, "SELECT id FROM versions WHERE application_id=? AND version=?", "ss", rq->params[0],
                          rq->params[1]);
        if (!err)
            err = store_step(st, &row, &rq->error);
        if (!err)
            sb_add(&id, store_col_str(st, 0));
        store_done(&st);
    }
    if (!err && api_has(rq, "tags"))
        err = version_put_tags(rq, id.p, jv_get(app, "repositories"));
    if (!err)
        err = outbox_put_tags_of_application(rq->store, rq->params[0], &rq->error);
    if (!err)
        err = version_load(rq, rq->params[0], rq->params[1], &rq->out, &rev, &found);
    if (!err) {
        api_set_etag(rq, rev);
        rq->after = jv_copy(rq->out);
        api_audit_object(rq, id.p);
    }
out:
    jv_free(app);
    sb_free(&id);
    return err;
}

static enum err application_sync(struct api *rq)
{
    struct jv *app = NULL, *repositories;
    int64_t rev;
    enum err err = application_load(rq, rq->params[0], &app, &rev);
    jv_free(app);
    if (err)
        return err;
    if (!rq->admin->sync)
        return api_fail(rq, ERR_UNAVAILABLE, "unavailable", NULL, "the sync does not run");
    enum err ran = sync_application(rq->admin->sync, rq->params[0], 0, SYNC_WAIT_MS);
    if (ran && ran != ERR_TIMEOUT)
        return api_fail(rq, ran, "unavailable", NULL, "the sync cannot work right now");
    err = repositories_load(rq, rq->params[0], &repositories);
    if (err)
        return err;
    rq->out = jv_object();
    jv_set_c(rq->out, "status", ran ? "running" : "done");
    jv_set(rq->out, "repositories", repositories);
    return ERR_OK;
}

#define APP "/api/v1/applications"
const struct route APPLICATION_ROUTES[] = {
    {HEAD_GET, APP, application_list, ROLE_VIEWER, ROUTE_LIST, NULL, &APPLICATION, NULL, "application.list", "Applications"},
    {HEAD_POST, APP, application_create, ROLE_ADMIN, 0, &APPLICATION_CREATE, &APPLICATION, NULL, "application.create",
     "Make an application with its repositories"},
    {HEAD_GET, APP "/{id}", application_get, ROLE_VIEWER, 0, NULL, &APPLICATION, NULL, "application.get", "One application"},
    {HEAD_PATCH, APP "/{id}", application_update, ROLE_ADMIN, 0, &APPLICATION_UPDATE, &APPLICATION, NULL, "application.update",
     "Change an application's name, description or metadata"},
    {HEAD_DELETE, APP "/{id}", application_delete, ROLE_ADMIN, 0, NULL, NULL, NULL, "application.delete",
     "Remove an application that no license names, and its repositories"},
    {HEAD_GET, APP "/{id}/repositories", repository_list, ROLE_VIEWER, ROUTE_LIST, NULL, &REPOSITORY, NULL, "repository.list",
     "Repositories of an application"},
    {HEAD_POST, APP "/{id}/repositories", repository_create, ROLE_ADMIN, 0, &REPOSITORY_CREATE, &REPOSITORY, NULL, "repository.create",
     "Add a repository"},
    {HEAD_GET, APP "/{id}/repositories/{repository_id}", repository_get, ROLE_VIEWER, 0, NULL, &REPOSITORY, NULL, "repository.get",
     "One repository"},
    {HEAD_PATCH, APP "/{id}/repositories/{repository_id}", repository_update, ROLE_ADMIN, 0, &REPOSITORY_UPDATE, &REPOSITORY, NULL,
     "repository.update", "Change where a repository comes from; If-Match is the application's"},
    {HEAD_DELETE, APP "/{id}/repositories/{repository_id}", repository_delete, ROLE_ADMIN, 0, NULL, NULL, NULL, "repository.delete",
     "Remove a repository that no grant names"},
    {HEAD_GET, APP "/{id}/versions", version_list, ROLE_VIEWER, ROUTE_LIST, NULL, &VERSION, NULL, "version.list",
     "Versions, discovered from upstream tags or recorded"},
    {HEAD_GET, APP "/{id}/versions/{version}", version_get, ROLE_VIEWER, 0, NULL, &VERSION, NULL, "version.get", "One version"},
    {HEAD_PUT, APP "/{id}/versions/{version}", version_put, ROLE_ADMIN, 0, &VERSION_PUT, &VERSION, NULL, "version.put",
     "Record a version, or enrich a discovered one; members left out stay"},
    {HEAD_POST, APP "/{id}/sync", application_sync, ROLE_ADMIN, ROUTE_SLOW | ROUTE_ACTION, NULL, &SYNC_RESULT, NULL, "application.sync",
     "Look at the upstream for versions now"},
    {.path = NULL},
};
