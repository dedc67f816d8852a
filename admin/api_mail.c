/* Templates of the mails to customers, and the log of what was sent. A vendor's own template stands before the one that is built in. */
#include <stdio.h>
#include <string.h>

#include "api_routes.h"
#include "eventlog.h"
#include "mail.h"
#include "pullgate/clock.h"
#include "pullgate/mem.h"
#include "roles.h"

#define SUBJECT_MAX 300
#define BODY_MAX    20000

static const struct field TEMPLATE_FIELDS[] = {
    {.name = "event", .type = FIELD_STRING},
    {.name = "subject", .type = FIELD_STRING},
    {.name = "body", .type = FIELD_TEXT},
    {.name = "enabled", .type = FIELD_BOOL},
    {.name = "is_default", .type = FIELD_BOOL, .about = "the one that is built in"},
    {.name = "updated_at", .type = FIELD_TIME},
    {.name = "etag", .type = FIELD_STRING},
    {.name = NULL},
};
static const struct schema TEMPLATE = {"MailTemplate", TEMPLATE_FIELDS};
static const struct field TEMPLATE_PUT_FIELDS[] = {
    {.name = "subject", .type = FIELD_STRING, .flags = FIELD_REQUIRED, .max = SUBJECT_MAX, .about = "with {{placeholders}}"},
    {.name = "body", .type = FIELD_TEXT, .flags = FIELD_REQUIRED, .max = BODY_MAX, .about = "plain text with {{placeholders}}"},
    {.name = "enabled", .type = FIELD_BOOL},
    {.name = NULL},
};
static const struct schema TEMPLATE_PUT = {"MailTemplatePut", TEMPLATE_PUT_FIELDS};
static const struct field PREVIEW_IN_FIELDS[] = {
    {.name = "subject", .type = FIELD_STRING, .max = SUBJECT_MAX, .about = "instead of the template's"},
    {.name = "body", .type = FIELD_TEXT, .max = BODY_MAX},
    {.name = "license_id", .type = FIELD_STRING, .max = 64, .about = "filled in with this license and its customer; sample values when absent"},
    {.name = NULL},
};
static const struct schema PREVIEW_IN = {"MailPreviewRequest", PREVIEW_IN_FIELDS};
static const struct field PREVIEW_FIELDS[] = {
    {.name = "subject", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "body", .type = FIELD_TEXT, .flags = FIELD_EMPTY},
    {.name = NULL},
};
static const struct schema PREVIEW = {"MailPreview", PREVIEW_FIELDS};
static const struct field MAIL_FIELDS[] = {
    {.name = "id", .type = FIELD_STRING},
    {.name = "event_id", .type = FIELD_INT},
    {.name = "event", .type = FIELD_STRING},
    {.name = "customer_id", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "license_id", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "recipient", .type = FIELD_STRING},
    {.name = "subject", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "status", .type = FIELD_STRING, .one_of = "pending|sent|failed"},
    {.name = "attempts", .type = FIELD_INT},
    {.name = "next_attempt_at", .type = FIELD_TIME, .about = "null: no more"},
    {.name = "error", .type = FIELD_STRING, .flags = FIELD_EMPTY, .about = "of the last attempt"},
    {.name = "created_at", .type = FIELD_TIME},
    {.name = "finished_at", .type = FIELD_TIME},
    {.name = NULL},
};
static const struct schema MAIL = {"Mail", MAIL_FIELDS};

/* ---- templates ----------------------------------------------------------------------------------------------------------- */

static struct jv *template_print(struct str event, struct str subject, struct str body, bool enabled, bool is_default, int64_t updated_at, int64_t rev)
{
    struct jv *v = jv_object();
    jv_set_str(v, "event", event);
    jv_set_str(v, "subject", subject);
    jv_set_str(v, "body", body);
    jv_set_bool(v, "enabled", enabled);
    jv_set_bool(v, "is_default", is_default);
    jv_set_time(v, "updated_at", updated_at);
    api_print_etag(v, rev);
    return v;
}

/* The vendor's own, else the one built in, whose rev is 0. */
static enum err template_load(struct api *rq, struct str event, struct jv **ret, int64_t *ret_rev)
{
    struct store_stmt *st = NULL;
    const struct mail_template *dflt = mail_default(event);
    int64_t rev = 0;
    bool row = false;
    enum err err = store_query(rq->store, &st, &rq->error, "SELECT subject, body, enabled, updated_at, rev FROM mail_templates WHERE vendor_id=? AND event=?", "zs",
                               rq->vendor_id, event);
    if (!err)
        err = store_step(st, &row, &rq->error);
    if (!err && row) {
        *ret = template_print(event, store_col_str(st, 0), store_col_str(st, 1), store_col_int(st, 2) != 0, false, store_col_int(st, 3), store_col_int(st, 4));
        rev = store_col_int(st, 4);
    } else if (!err && dflt) {
        *ret = template_print(event, str_c(dflt->subject), str_c(dflt->body), true, true, 0, 0);
    } else if (!err) {
        err = api_not_found(rq, "template");
    }
    store_done(&st);
    if (!err) {
        *ret_rev = rev;
        api_set_etag(rq, rev);
    }
    return err;
}

static enum err template_get(struct api *rq)
{
    int64_t rev;
    return template_load(rq, rq->params[0], &rq->out, &rev);
}

/* Those built in and the vendor's further ones, by name. */
static enum err template_list(struct api *rq)
{
    struct page page;
    struct store_stmt *st = NULL;
    struct jv *names = jv_array();
    bool row = true;
    int64_t rev;
    enum err err = api_page(rq, &page);
    if (!err)
        err = store_query(rq->store, &st, &rq->error, "SELECT event FROM mail_templates WHERE vendor_id=? ORDER BY event", "z", rq->vendor_id);
    while (!err) {
        err = store_step(st, &row, &rq->error);
        if (err || !row)
            break;
        if (!mail_default(store_col_str(st, 0)))
            jv_push(names, jv_string(store_col_str(st, 0)));
    }
    store_done(&st);
    for (const struct mail_template *t = MAIL_DEFAULTS; !err && t->event; t++)
        jv_push(names, jv_string(str_c(t->event)));
    struct jv *items = api_list(rq);
    for (;;) { /* few: the next by name each time */
        struct str best = {NULL, 0};
        for (size_t i = 0; i < jv_len(names); i++) {
            struct str name = jv_str(jv_at(names, i));
            if (str_cmp(name, str_c(page.after_id)) > 0 && (!best.p || str_cmp(name, best) < 0))
                best = name;
        }
        if (err || !best.p)
            break;
        struct jv *v = NULL;
        err = template_load(rq, best, &v, &rev);
        if (err || !api_page_take(&page, rq->out, 0, best.p)) {
            jv_free(v);
            break;
        }
        jv_push(items, v);
    }
    MEM_FREE(rq->etag);
    jv_free(names);
    return err;
}

static enum err template_check(struct api *rq, const char *field)
{
    struct error error = {0};
    bool is_shown = strcmp(field, "subject") == 0;
    if (is_shown && mail_template_invites(jv_get_str(rq->in, field)))
        return api_fail(rq, ERR_INVALID, "unknown_placeholder", field, "subject: a secret has no place in it");
    if (mail_template_check(jv_get_str(rq->in, field), &error))
        return api_fail(rq, ERR_INVALID, "unknown_placeholder", field, "%s: %s", field, error.text);
    return ERR_OK;
}

static enum err template_event_check(struct api *rq)
{
    struct str event = rq->params[0];
    if (!eventlog_pattern_valid(event) || str_index(event, '*') >= 0 || str_index(event, '.') < 0)
        return api_fail(rq, ERR_INVALID, "invalid_parameter", "event", "event: expected a type such as license.expiring");
    return ERR_OK;
}

/* Whoever writes what an owner is invited with can lead him, and the secret of the invitation, elsewhere. */
static enum err template_right(struct api *rq)
{
    if (str_eq_c(rq->params[0], MAIL_USER_INVITED) && !role_allows(rq->role, ROLE_OWNER))
        return api_fail(rq, ERR_DENIED, "rights_exceeded", NULL, "the invitation of the vendor's people is an owner's to write");
    return ERR_OK;
}

static enum err template_put(struct api *rq)
{
    int64_t rev = 0;
    enum err err = template_event_check(rq);
    if (!err)
        err = template_right(rq);
    if (!err)
        err = template_check(rq, "subject");
    if (!err)
        err = template_check(rq, "body");
    if (err)
        return err;
    err = template_load(rq, rq->params[0], &rq->before, &rev);
    if (err == ERR_NOT_FOUND) { /* of an event that none is built in for */
        rq->error = (struct error){0};
        rq->code = NULL;
        rev = 0;
        err = ERR_OK;
    }
    if (!err)
        err = api_check_etag(rq, rev);
    if (!err)
        err = store_exec(rq->store, NULL, &rq->error,
                         "INSERT INTO mail_templates (vendor_id, event, subject, body, enabled, updated_at) VALUES (?1,?2,?3,?4,?5,?6)"
                         " ON CONFLICT (vendor_id, event) DO UPDATE SET subject=?3, body=?4, enabled=?5, updated_at=?6, rev=rev+1",
                         "zsssbi", rq->vendor_id, rq->params[0], jv_get_str(rq->in, "subject"), jv_get_str(rq->in, "body"),
                         jv_get_bool(rq->in, "enabled", true), rq->now_s);
    if (!err)
        err = template_load(rq, rq->params[0], &rq->out, &rev);
    if (!err)
        rq->after = jv_copy(rq->out);
    return err;
}

static enum err template_delete(struct api *rq)
{
    int64_t rev = 0;
    enum err err = template_right(rq);
    if (!err)
        err = template_load(rq, rq->params[0], &rq->before, &rev);
    if (!err)
        err = api_check_etag(rq, rev);
    if (!err && jv_get_bool(rq->before, "is_default", false))
        err = api_not_found(rq, "template of your own");
    return err ? err : store_exec(rq->store, NULL, &rq->error, "DELETE FROM mail_templates WHERE vendor_id=? AND event=?", "zs", rq->vendor_id, rq->params[0]);
}

static enum err template_preview(struct api *rq)
{
    struct mail_values v = {{0}};
    struct strbuf subject = {0}, body = {0}, customer = {0};
    struct jv *t = NULL;
    struct str license = jv_get_str(rq->in, "license_id");
    int64_t rev;
    bool found = false;
    enum err err = template_event_check(rq);
    if (!err)
        err = template_check(rq, "subject");
    if (!err)
        err = template_check(rq, "body");
    if (!err && !(api_has(rq, "subject") && api_has(rq, "body")))
        err = template_load(rq, rq->params[0], &t, &rev);
    if (!err && license.p) {
        struct store_stmt *st = NULL;
        err = store_query(rq->store, &st, &rq->error, "SELECT customer_id FROM licenses WHERE id=? AND vendor_id=? AND archived_at=0", "sz", license, rq->vendor_id);
        if (!err)
            err = store_step(st, &found, &rq->error);
        if (!err && found)
            sb_add(&customer, store_col_str(st, 0));
        store_done(&st);
        if (!err && !found)
            err = api_fail(rq, ERR_INVALID, "unknown_reference", "license_id", "license_id: no such object");
        if (!err)
            err = mail_values_load(rq->admin, rq->store, rq->vendor_id, sb_str(&customer), license, rq->params[0], S(""), &v, &rq->error);
    } else if (!err) {
        mail_values_sample(&v, rq->params[0]);
    }
    MEM_FREE(rq->etag);
    if (!err) {
        mail_render(api_has(rq, "subject") ? jv_get_str(rq->in, "subject") : jv_get_str(t, "subject"), &v, false, &subject);
        mail_render(api_has(rq, "body") ? jv_get_str(rq->in, "body") : jv_get_str(t, "body"), &v, true, &body);
        rq->out = jv_object();
        jv_set_str(rq->out, "subject", subject.n ? sb_str(&subject) : S(""));
        jv_set_str(rq->out, "body", body.n ? sb_str(&body) : S(""));
    }
    mail_values_free(&v);
    jv_free(t);
    sb_free(&subject);
    sb_free(&body);
    sb_free(&customer);
    return err;
}

/* ---- the log -------------------------------------------------------------------------------------------------------------- */

static enum err mail_list(struct api *rq)
{
    static const char *const names[] = {"status", "customer_id", "license_id"};
    struct strbuf f[3] = {{0}};
    struct page page;
    struct store_stmt *st = NULL;
    uint64_t before = 0;
    bool row;
    enum err err = api_page(rq, &page);
    if (err)
        return err;
    for (size_t i = 0; i < 3; i++)
        api_query(rq, names[i], &f[i]);
    if (!page.has_cursor || !str_to_u64(str_c(page.after_id), &before) || before > INT64_MAX)
        before = INT64_MAX;
    struct jv *items = api_list(rq);
    err = store_query(rq->store, &st, &rq->error,
                      "SELECT id, event_id, event_type, customer_id, license_id, recipient, subject, status, attempts, next_attempt_ms, error, created_at,"
                      " finished_at FROM mails WHERE vendor_id=?1 AND event_id<?2 AND (?3='' OR status=?3) AND (?4='' OR customer_id=?4)"
                      " AND (?5='' OR license_id=?5) ORDER BY event_id DESC LIMIT ?6",
                      "zisssi", rq->vendor_id, (int64_t)before, sb_str(&f[0]), sb_str(&f[1]), sb_str(&f[2]), (int64_t)page.limit + 1);
    while (!err) {
        char text[24];
        err = store_step(st, &row, &rq->error);
        if (err || !row)
            break;
        snprintf(text, sizeof text, "%lld", (long long)store_col_int(st, 1));
        if (!api_page_take(&page, rq->out, 0, text))
            break;
        struct jv *v = jv_object();
        bool is_pending = str_eq(store_col_str(st, 7), S("pending"));
        jv_set_str(v, "id", store_col_str(st, 0));
        jv_set_int(v, "event_id", store_col_int(st, 1));
        jv_set_str(v, "event", store_col_str(st, 2));
        jv_set_str(v, "customer_id", store_col_str(st, 3));
        jv_set_str(v, "license_id", store_col_str(st, 4));
        jv_set_str(v, "recipient", store_col_str(st, 5));
        jv_set_str(v, "subject", store_col_str(st, 6));
        jv_set_str(v, "status", store_col_str(st, 7));
        jv_set_int(v, "attempts", store_col_int(st, 8));
        jv_set_time(v, "next_attempt_at", is_pending ? store_col_int(st, 9) / 1000 : 0);
        jv_set_str(v, "error", store_col_str(st, 10));
        jv_set_time(v, "created_at", store_col_int(st, 11));
        jv_set_time(v, "finished_at", store_col_int(st, 12));
        jv_push(items, v);
    }
    store_done(&st);
    for (size_t i = 0; i < 3; i++)
        sb_free(&f[i]);
    return err;
}

static const struct query_param MAIL_PARAMS[] = {{"status", "pending, sent or failed"}, {"customer_id", "only to this customer"}, {"license_id", "only of this license"}, {NULL, NULL}};

#define TPL "/api/v1/mail-templates"
const struct route MAIL_ROUTES[] = {
    {HEAD_GET, TPL, template_list, ROLE_VIEWER, ROUTE_LIST, NULL, &TEMPLATE, NULL, "mail_template.list", "Templates of the mails to customers"},
    {HEAD_GET, TPL "/{event}", template_get, ROLE_VIEWER, 0, NULL, &TEMPLATE, NULL, "mail_template.get", "The template of an event"},
    {HEAD_PUT, TPL "/{event}", template_put, ROLE_ADMIN, 0, &TEMPLATE_PUT, &TEMPLATE, NULL, "mail_template.put", "Write the template of an event"},
    {HEAD_DELETE, TPL "/{event}", template_delete, ROLE_ADMIN, 0, NULL, NULL, NULL, "mail_template.delete", "Back to the template that is built in"},
    {HEAD_POST, TPL "/{event}/preview", template_preview, ROLE_ADMIN, ROUTE_ACTION | ROUTE_READS, &PREVIEW_IN, &PREVIEW, NULL, "mail_template.preview",
     "A mail as it would be sent"},
    {HEAD_GET, "/api/v1/mails", mail_list, ROLE_SUPPORT, ROUTE_LIST, NULL, &MAIL, MAIL_PARAMS, "mail.list", "Mails to customers, newest first"},
    {.path = NULL},
};
