/* Discovery: tags/list, _catalog and referrers, each cut to what the caller may pull, and paged.
 * Source: distribution-spec 1.1 "Content Discovery". */
#include "exchange.h"

#include <stdlib.h>
#include <string.h>

#include "pullgate/clock.h"
#include "pullgate/jv.h"
#include "pullgate/mem.h"

#define CATALOG_MAX_REPOSITORIES 10000 /* looked at for one catalog */

struct discovery { /* owned by the exchange */
    struct exchange *ex;
    struct facts_op *facts_op;
    struct content_op *content_op;
    struct content_ask ask;
    struct str *names; /* catalog: candidates, sorted, borrowed from the entitlement */
    size_t n_names, at;
    struct fact *repository; /* catalog: ref while its tags are asked */
    struct strbuf found;     /* catalog: names with a tag to pull, one a line */
    uint64_t page;
    struct strbuf last;
};

void discovery_cancel(struct discovery **d)
{
    if (*d == NULL)
        return;
    facts_cancel(&(*d)->facts_op);
    content_cancel(&(*d)->content_op);
    fact_unref(&(*d)->repository);
    mem_free((*d)->names);
    sb_free(&(*d)->found);
    sb_free(&(*d)->last);
    MEM_FREE(*d);
}

/* `n` and `last`. n absent: the page limit. False: n is no number. */
static bool page_parse(struct exchange *ex, struct discovery *d)
{
    uint64_t limit = ex->w->cfg->limits.tags_page;
    struct strbuf n = {0};
    bool ok = true;

    d->page = limit;
    if (query_get(ex->oci.query, "n", &n)) {
        ok = str_to_u64(sb_str(&n), &d->page);
        if (d->page > limit)
            d->page = limit;
    }
    sb_free(&n);
    query_get(ex->oci.query, "last", &d->last);
    return ok;
}

static void add_escaped(struct strbuf *b, struct str s)
{
    static const char hex[] = "0123456789ABCDEF";

    for (size_t i = 0; i < s.n; i++) {
        unsigned char c = (unsigned char)s.p[i];
        if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '.' || c == '_' || c == '~') {
            sb_add_char(b, (char)c);
        } else {
            sb_add_char(b, '%');
            sb_add_char(b, hex[c >> 4]);
            sb_add_char(b, hex[c & 15]);
        }
    }
}

/* The page of a sorted list after `last`: JSON strings into *body, the Link field into *fields where more follows. */
static void page_print(const struct discovery *d, const struct str *items, size_t n, struct str path, struct strbuf *body, struct strbuf *fields)
{
    struct str last = sb_str(&d->last);
    size_t lo = 0, hi = n;

    while (last.n > 0 && lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (str_cmp(items[mid], last) <= 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    size_t end = n - lo > d->page ? lo + (size_t)d->page : n;
    for (size_t i = lo; i < end; i++) {
        if (i > lo)
            sb_add_char(body, ',');
        sb_add_json(body, items[i]);
    }
    if (end < n && end > lo) {
        sb_addf(fields, "Link: <%.*s?n=%llu&last=", STR(path), (unsigned long long)d->page);
        add_escaped(fields, items[end - 1]);
        sb_add(fields, S(">; rel=\"next\"\r\n"));
    }
}

/* A repository without any license that may allow something: the license's reason, or no_license. True: answered. */
static bool denied_whole(struct exchange *ex)
{
    struct decision_query q = {
        .repository = ex->oci.repository,
        .now_s = clock_now_s(),
        .client_addr = edge_req_peer_addr(ex->req),
        .any_instance = true,
        .license_id = str_c(ex->credential->credential->license_id),
    };
    const struct entitlement *ent = ex->customer->entitlement;

    if (ex->repository != NULL && decision_any_usable(ent, ex->oci.repository, q.now_s))
        return false;
    memset(&ex->answer.decision, 0, sizeof ex->answer.decision);
    decision_make(ent, &q, &ex->answer.decision);
    if (ex->answer.decision.verdict == VERDICT_UNKNOWN || ex->degraded) {
        respond_unavailable(ex, ERR_UNAVAILABLE, 0);
        return true;
    }
    ex->reason = ex->answer.decision.reason;
    if (ex->answer.decision.license != NULL)
        ex->license_id = ex->answer.decision.license->id;
    decision_message(ent, &ex->answer.decision, &q, ex->oci.reference, &ex->answer.message);
    respond_decision(ex);
    return true;
}

/* ---- tags/list ------------------------------------------------------------------------------- */

static void on_tags(void *ctx, enum err err, const struct str *tags, size_t n, const char *detail)
{
    struct discovery *d = ctx;
    struct exchange *ex = EXCHANGE(d->ex);
    struct strbuf body = {0}, fields = {0};

    d->content_op = NULL;
    if (err != ERR_OK) {
        discovery_cancel(&ex->discovery);
        exchange_hold_or_fail(ex, err, 0, detail);
        return;
    }
    sb_add(&body, S("{\"name\":"));
    sb_add_json(&body, ex->oci.repository);
    sb_add(&body, S(",\"tags\":["));
    page_print(d, tags, n, ex->head->path, &body, &fields);
    sb_add(&body, S("]}\n"));
    respond_json(ex, 200, "application/json", sb_str(&body), fields.p, END_OK);
    sb_free(&body);
    sb_free(&fields);
}

/* ---- referrers ------------------------------------------------------------------------------- */

static void on_referrers(void *ctx, enum err err, struct str index_json, const char *detail)
{
    struct discovery *d = ctx;
    struct exchange *ex = EXCHANGE(d->ex);
    struct strbuf want = {0}, body = {0};
    struct jv *index = NULL;

    d->content_op = NULL;
    if (err == ERR_OK)
        err = jv_parse(index_json, &JV_LIMITS_MANIFEST, &index, NULL) != ERR_OK ? ERR_UPSTREAM : ERR_OK;
    if (err != ERR_OK) {
        discovery_cancel(&ex->discovery);
        exchange_hold_or_fail(ex, err, 0, detail);
        return;
    }
    bool filter = query_get(ex->oci.query, "artifactType", &want) && want.n > 0;
    if (filter) {
        struct jv *kept = jv_array();
        struct jv *all = jv_get(index, "manifests");
        for (size_t i = 0; i < jv_len(all); i++)
            if (str_eq(jv_get_str(jv_at(all, i), "artifactType"), sb_str(&want)))
                jv_push(kept, jv_copy(jv_at(all, i)));
        jv_set(index, "manifests", kept);
    }
    jv_dump(index, &body);
    respond_json(ex, 200, media_type_text(MEDIA_OCI_INDEX), sb_str(&body), filter ? "OCI-Filters-Applied: artifactType\r\n" : NULL, END_OK);
    jv_free(index);
    sb_free(&want);
    sb_free(&body);
}

/* ---- _catalog -------------------------------------------------------------------------------- */

static int by_name(const void *a, const void *b)
{
    return str_cmp(*(const struct str *)a, *(const struct str *)b);
}

static void catalog_names(struct exchange *ex, struct discovery *d)
{
    const struct entitlement *ent = ex->customer->entitlement;
    struct str only = str_c(ex->credential->credential->license_id);
    int64_t now = clock_now_s();
    size_t cap = 0;

    for (size_t i = 0; i < ent->n_licenses; i++) {
        const struct license *l = &ent->licenses[i];
        if ((only.n > 0 && !str_eq(only, l->id)) || !decision_any_usable(ent, l->n_repositories > 0 ? l->repositories[0] : S(""), now))
            continue;
        for (size_t k = 0; k < l->n_repositories && d->n_names < CATALOG_MAX_REPOSITORIES; k++) {
            if (d->n_names == cap)
                d->names = mem_realloc(d->names, (cap = cap * 2 + 16) * sizeof *d->names);
            d->names[d->n_names++] = l->repositories[k];
        }
    }
    if (d->n_names == 0)
        return;
    qsort(d->names, d->n_names, sizeof *d->names, by_name);
    size_t kept = 0;
    for (size_t i = 0; i < d->n_names; i++)
        if (kept == 0 || !str_eq(d->names[kept - 1], d->names[i]))
            d->names[kept++] = d->names[i];
    d->n_names = kept;
}

static void catalog_next(struct discovery *d);

static void catalog_failed(struct discovery *d, enum err err, const char *detail)
{
    struct exchange *ex = d->ex;

    discovery_cancel(&ex->discovery);
    exchange_hold_or_fail(ex, err, 0, detail);
}

static void on_catalog_tags(void *ctx, enum err err, const struct str *tags, size_t n, const char *detail)
{
    struct discovery *d = ctx;

    (void)tags;
    d->content_op = NULL;
    fact_unref(&d->repository);
    if (err != ERR_OK && err != ERR_NOT_FOUND) {
        catalog_failed(d, err, detail);
        return;
    }
    if (err == ERR_OK && n > 0) {
        sb_add(&d->found, d->names[d->at]);
        sb_add_char(&d->found, '\n');
    }
    d->at++;
    catalog_next(d);
}

static void on_catalog_repository(void *ctx, enum err err, struct fact *fact, bool degraded)
{
    struct discovery *d = ctx;
    struct exchange *ex = EXCHANGE(d->ex);

    d->facts_op = NULL;
    if (err != ERR_OK) {
        catalog_failed(d, err, "repository");
        return;
    }
    if (fact == NULL) {
        d->at++;
        catalog_next(d);
        return;
    }
    d->repository = fact_ref(fact);
    ex->oci.repository = d->names[d->at];
    d->ask = (struct content_ask){
        .customer = ex->customer,
        .repository = d->repository,
        .credential = ex->credential->credential,
        .request = &ex->oci,
        .client_addr = edge_req_peer_addr(ex->req),
        .degraded = ex->degraded || degraded,
    };
    d->content_op = content_tags(ex->w->content, &d->ask, on_catalog_tags, d);
}

static void catalog_next(struct discovery *d)
{
    struct exchange *ex = EXCHANGE(d->ex);

    ex->oci.repository = (struct str){NULL, 0};
    if (d->at < d->n_names) {
        d->facts_op = facts_get(ex->w->facts, FACT_REPOSITORY, d->names[d->at], on_catalog_repository, d);
        return;
    }
    struct str rest = d->found.n > 0 ? sb_str(&d->found) : (struct str){NULL, 0}, line;
    size_t n = 0;
    while (str_next(&rest, '\n', &line))
        if (line.n > 0)
            d->names[n++] = line;
    struct strbuf body = {0}, fields = {0};
    sb_add(&body, S("{\"repositories\":["));
    page_print(d, d->names, n, ex->head->path, &body, &fields);
    sb_add(&body, S("]}\n"));
    respond_json(ex, 200, "application/json", sb_str(&body), fields.p, END_OK);
    sb_free(&body);
    sb_free(&fields);
}

/* ---------------------------------------------------------------------------------------------- */

enum next discovery_start(struct exchange *ex)
{
    struct discovery *d = NEW(struct discovery);

    d->ex = ex;
    ex->discovery = d;
    if (!page_parse(ex, d))
        return respond_oci_error(ex, 400, "PAGINATION_NUMBER_INVALID", S("n is not a number"), END_REFUSED, NULL);
    if (ex->oci.kind == OCI_CATALOG) {
        if (ex->is_bearer) /* nobody is given catalog scope: what a token names is all it is good for */
            return respond_oci_error(ex, 403, "DENIED", S("the catalog is not open to tokens, use the credential"), END_DENIED, NULL);
        catalog_names(ex, d);
        catalog_next(d);
        return NEXT_WAIT;
    }
    if (denied_whole(ex))
        return NEXT_DONE;
    if (ex->is_bearer && !ex->token_covers)
        return authn_refuse(ex, S("the token does not cover this repository"), REASON_UNKNOWN, false);
    d->ask = exchange_asks(ex);
    d->content_op = ex->oci.kind == OCI_TAGS ? content_tags(ex->w->content, &d->ask, on_tags, d)
                                             : content_referrers(ex->w->content, &d->ask, on_referrers, d);
    return NEXT_WAIT;
}
