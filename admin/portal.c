/* The portal API. What is listed as pullable comes from the same compiled facts and the same decision as the gate's answer, over the
 * tags that the sync has just seen; nothing here knows a rule of its own. Every query is bound to the caller's customer id, which
 * comes from the sign-in alone and never from the request. */
#include "portal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "compile.h"
#include "people.h"
#include "pullgate/clock.h"
#include "pullgate/credential.h"
#include "pullgate/decision.h"
#include "pullgate/fetch.h"
#include "pullgate/license.h"
#include "pullgate/mem.h"
#include "pullgate/oci.h"
#include "pullgate/seal.h"
#include "pullgate/semver.h"
#include "sync.h"
#include "usage.h"

static const unsigned SYNC_WAIT_MS = 3000; /* how long a listing waits for upstreams that were not looked at lately */

/* ---- sign-in ----------------------------------------------------------------------------------- */

/* The fact as a document; *ret NULL when it does not exist. */
static enum err fact_load(struct store *s, char kind, struct str rest, struct jv **ret, struct error *reterr)
{
    struct strbuf fact = {0}, payload = {0};
    bool exists = false;
    *ret = NULL;
    sb_add_char(&fact, kind);
    sb_add_char(&fact, ':');
    sb_add(&fact, rest);
    enum err e = compile_fact(s, sb_str(&fact), &payload, &exists, reterr);
    if (!e && exists && jv_parse(sb_str(&payload), &JV_LIMITS_TRUSTED, ret, reterr))
        e = ERR_UNAVAILABLE; /* rows that make no fact: cannot know */
    sb_free(&payload);
    sb_free(&fact);
    return e;
}

/* The password of "Basic …"; borrows from scratch. */
static bool basic_password(const char *authorization, struct strbuf *scratch, struct str *ret)
{
    struct str scheme, rest, user;
    return authorization && str_cut(str_c(authorization), ' ', &scheme, &rest) && str_eq_nocase(scheme, S("Basic")) &&
           base64_decode(str_trim(rest), scratch) && !(scratch->n && memchr(scratch->p, 0, scratch->n)) &&
           str_cut(sb_str(scratch), ':', &user, ret);
}

static bool addr_in(const struct jv *cidrs, const uint8_t addr[16])
{
    if (jv_len(cidrs) == 0)
        return true;
    for (size_t i = 0; i < jv_len(cidrs); i++) {
        struct cidr c;
        if (cidr_parse(jv_str(jv_at(cidrs, i)), &c, NULL) == ERR_OK && cidr_contains(&c, addr))
            return true;
    }
    return false;
}

enum err portal_authenticate(struct api *rq)
{
    struct str auth = str_c(rq->authorization);
    if (auth.n > 7 && str_eq_nocase(str_sub(auth, 0, 7), S("Bearer ")))
        return session_authenticate(rq, str_trim(str_skip(auth, 7)), true);
    struct strbuf scratch = {0};
    struct str password;
    char hash[CREDENTIAL_HASH_MAX];
    struct jv *k = NULL;
    bool good = basic_password(rq->authorization, &scratch, &password) && credential_hash_presented(rq->admin->keys, password, hash);
    if (scratch.p)
        mem_cleanse(scratch.p, scratch.cap);
    sb_free(&scratch);
    if (!good)
        return api_fail(rq, ERR_UNAUTHN, "unauthorized", NULL, "sign in with a pull credential or license key as the password");
    enum err e = fact_load(rq->store, 'k', str_c(hash), &k, &rq->error);
    if (e)
        return e;
    if (!k)
        return api_fail(rq, ERR_UNAUTHN, "unauthorized", NULL, "sign in with a pull credential or license key as the password");
    struct jv *c = NULL;
    e = fact_load(rq->store, 'c', jv_get_str(k, "customer_id"), &c, &rq->error);
    bool enabled = c && !jv_get_bool(c, "disabled", true);
    jv_free(c);
    int64_t expires = jv_get_int(k, "expires_at", 0);
    if (e) {
        ; /* cannot know */
    } else if (!enabled) {
        e = api_fail(rq, ERR_DENIED, "customer_disabled", NULL, "the customer is disabled");
    } else if (expires && rq->now_s >= expires) {
        char date[CLOCK_RFC3339_MAX];
        e = api_fail(rq, ERR_DENIED, "credential_expired", NULL, "the credential expired on %s", clock_date(expires, date));
    } else if (!addr_in(jv_get(k, "allowed_cidrs"), rq->peer_addr)) {
        e = api_fail(rq, ERR_DENIED, "ip_not_allowed", NULL, "the credential may not be used from this address");
    } else {
        struct strbuf actor = {0};
        rq->vendor_id = str_dup(jv_get_str(k, "vendor_id"));
        rq->customer_id = str_dup(jv_get_str(k, "customer_id"));
        rq->credential_id = str_dup(jv_get_str(k, "id"));
        rq->license_id = str_dup(jv_get_str(k, "license_id"));
        sb_addf(&actor, "customer:%s", rq->customer_id);
        rq->actor_name = str_dup(jv_get_str(k, "customer_slug"));
        rq->actor = sb_take(&actor);
    }
    jv_free(k);
    return e;
}

/* ---- versions: what can be pulled now ------------------------------------------------------------ */

struct artifact {
    char *repository_id, *repository, *kind, *tag;
    char digest[DIGEST_TEXT_MAX];
};

struct row { /* one version of one application under one license */
    const struct license *license;
    char *version;
    int64_t released_at;
    struct artifact *artifacts;
    size_t n;
    char id[33]; /* for the cursor */
};

struct rows {
    struct row *v;
    size_t n, cap;
};

static void rows_free(struct rows *rows)
{
    for (size_t i = 0; i < rows->n; i++) {
        struct row *r = &rows->v[i];
        for (size_t j = 0; j < r->n; j++) {
            mem_free(r->artifacts[j].repository_id);
            mem_free(r->artifacts[j].repository);
            mem_free(r->artifacts[j].kind);
            mem_free(r->artifacts[j].tag);
        }
        mem_free(r->artifacts);
        mem_free(r->version);
    }
    mem_free(rows->v);
    *rows = (struct rows){0};
}

static struct row *rows_add(struct rows *rows)
{
    if (rows->n == rows->cap) {
        rows->cap = rows->cap ? rows->cap * 2 : 64;
        rows->v = mem_realloc(rows->v, rows->cap * sizeof(*rows->v));
    }
    rows->v[rows->n] = (struct row){0};
    return &rows->v[rows->n++];
}

/* By application, newest version first; versions that are none by semver after those that are, newest release first. */
static int compare_versions(const struct row *a, const struct row *b)
{
    struct semver va, vb;
    bool sa = semver_parse(str_c(a->version), &va), sb = semver_parse(str_c(b->version), &vb);
    int c;
    if (sa != sb)
        return sa ? -1 : 1;
    if (sa && (c = semver_cmp(&vb, &va)) != 0)
        return c;
    if (!sa && a->released_at != b->released_at)
        return a->released_at > b->released_at ? -1 : 1;
    return strcmp(b->version, a->version);
}

static int compare_rows(const void *pa, const void *pb)
{
    const struct row *a = pa, *b = pb;
    int c = str_cmp(a->license->application_slug, b->license->application_slug);
    if (!c)
        c = str_cmp(a->license->application_id, b->license->application_id);
    if (!c)
        c = compare_versions(a, b);
    if (!c)
        c = str_cmp(a->license->id, b->license->id);
    return c;
}

static int compare_artifacts(const void *pa, const void *pb)
{
    const struct artifact *a = pa, *b = pb;
    int c = strcmp(a->repository, b->repository);
    return c ? c : strcmp(a->tag, b->tag);
}

/* One tag of a repository: asked as the gate is asked, over every digest that it stands or stood for. */
static void tag_decide(const struct api *rq, const struct entitlement *ent, const struct jv *repository, struct str tag, const struct jv *t,
                       struct rows *rows)
{
    const struct jv *digests = jv_get(t, "digests");
    size_t n = jv_len(digests);
    const struct jv *newest = jv_at(digests, n ? n - 1 : 0);
    if (n == 0 || jv_int(jv_at(newest, 2), -1) != 0)
        return; /* not there now: nothing to be pulled */
    struct candidate *c = mem_calloc(n, sizeof(*c));
    size_t m = 0;
    for (size_t i = n; i-- > 0;) { /* the present one first */
        const struct jv *d = jv_at(digests, i);
        c[m] = (struct candidate){.tag = tag,
                                  .version = jv_get_str(t, "version"),
                                  .channel = jv_get_str(t, "channel"),
                                  .released_at_s = jv_get_int(t, "released_at", 0),
                                  .until_s = jv_int(jv_at(d, 2), 0)};
        if (digest_parse(jv_str(jv_at(d, 0)), &c[m].digest, NULL) == ERR_OK)
            m++;
    }
    struct decision_query q = {.repository = jv_get_str(repository, "name"),
                               .candidates = c,
                               .n_candidates = m ? 1 : 0,
                               .now_s = rq->now_s,
                               .client_addr = rq->peer_addr,
                               .any_instance = true, /* a person looks, not an installation */
                               .license_id = str_c(rq->license_id)};
    struct decision d = {0};
    decision_make(ent, &q, &d);
    if (d.verdict != VERDICT_ALLOW && m > 1) { /* a pinning grant keeps what the tag stood for; the gate serves that under the tag */
        q.n_candidates = m;
        q.is_digest = true;
        decision_make(ent, &q, &d);
        if (d.verdict == VERDICT_ALLOW && d.grant->on_move != GRANT_PIN)
            d.verdict = VERDICT_DENY;
    }
    if (d.verdict == VERDICT_ALLOW && d.license) {
        struct row *r = rows_add(rows);
        r->license = d.license;
        r->version = str_dup(d.candidate->version.n ? d.candidate->version : tag);
        r->released_at = d.candidate->released_at_s;
        r->n = 1;
        r->artifacts = mem_calloc(1, sizeof(*r->artifacts));
        r->artifacts[0] = (struct artifact){.repository_id = str_dup(jv_get_str(repository, "id")),
                                            .repository = str_dup(jv_get_str(repository, "name")),
                                            .kind = str_dup(jv_get_str(repository, "kind")),
                                            .tag = str_dup(tag)};
        digest_text(&d.candidate->digest, r->artifacts[0].digest);
    }
    mem_free(c);
}

/* Sort, and join the artifacts of one (application, version, license). */
static void rows_join(struct rows *rows)
{
    size_t n = 0;
    if (rows->n)
        qsort(rows->v, rows->n, sizeof(*rows->v), compare_rows);
    for (size_t i = 0; i < rows->n; i++) {
        struct row *r = &rows->v[i], *last = n ? &rows->v[n - 1] : NULL;
        if (!last || last->license != r->license || strcmp(last->version, r->version) != 0) {
            if (n != i)
                rows->v[n] = *r;
            n++;
            continue;
        }
        last->artifacts = mem_realloc(last->artifacts, (last->n + r->n) * sizeof(*last->artifacts));
        memcpy(last->artifacts + last->n, r->artifacts, r->n * sizeof(*r->artifacts));
        last->n += r->n;
        if (r->released_at && (!last->released_at || r->released_at < last->released_at))
            last->released_at = r->released_at;
        mem_free(r->artifacts);
        mem_free(r->version);
    }
    rows->n = n;
    for (size_t i = 0; i < n; i++) {
        struct row *r = &rows->v[i];
        struct strbuf text = {0}, hex = {0};
        uint8_t sum[32];
        qsort(r->artifacts, r->n, sizeof(*r->artifacts), compare_artifacts);
        sb_add(&text, r->license->id);
        sb_add_char(&text, '\n');
        sb_addc(&text, r->version);
        seal_sha256(sb_str(&text), sum);
        sb_add_hex(&hex, sum, 16);
        memcpy(r->id, hex.p, sizeof(r->id));
        sb_free(&text);
        sb_free(&hex);
    }
}

static bool names_contain(const struct str *names, size_t n, struct str name)
{
    for (size_t i = 0; i < n; i++)
        if (str_eq(names[i], name))
            return true;
    return false;
}

/* Public names of the repositories of every license that counts for this caller. */
static void repositories_of(const struct api *rq, const struct entitlement *ent, struct str application, struct str **ret, size_t *ret_n)
{
    struct str *v = NULL;
    size_t n = 0, cap = 0;
    for (size_t i = 0; i < ent->n_licenses; i++) {
        const struct license *l = &ent->licenses[i];
        if (*rq->license_id && !str_eq_c(l->id, rq->license_id))
            continue;
        if (application.n && !str_eq(l->application_slug, application))
            continue;
        for (size_t j = 0; j < l->n_repositories; j++) {
            if (names_contain(v, n, l->repositories[j]))
                continue;
            if (n == cap) {
                cap = cap ? cap * 2 : 16;
                v = mem_realloc(v, cap * sizeof(*v));
            }
            v[n++] = l->repositories[j];
        }
    }
    *ret = v;
    *ret_n = n;
}

/* Have the upstreams of these repositories looked at, unless that was done lately. */
static enum err repositories_refresh(struct api *rq, const struct str *names, size_t n)
{
    struct str *ids = mem_calloc(n ? n : 1, sizeof(*ids));
    size_t m = 0;
    enum err e = ERR_OK;
    for (size_t i = 0; !e && i < n; i++) {
        struct jv *doc;
        e = fact_load(rq->store, 'r', names[i], &doc, &rq->error);
        if (!e && doc)
            ids[m++] = (struct str){str_dup(jv_get_str(doc, "id")), jv_get_str(doc, "id").n};
        jv_free(doc);
    }
    /* A timeout is no failure: what is known by now is listed. */
    if (!e && m && rq->admin->sync &&
        sync_repositories(rq->admin->sync, ids, m, admin_config(rq->admin)->cache.tag_freshness_ms, SYNC_WAIT_MS) != ERR_OK)
        e = ERR_OK;
    for (size_t i = 0; i < m; i++) {
        union {
            const char *c;
            char *p;
        } id = {.c = ids[i].p};
        mem_free(id.p);
    }
    mem_free(ids);
    return e;
}

static enum err entitlement_load(struct api *rq, struct entitlement **ret)
{
    struct jv *doc = NULL;
    *ret = NULL;
    enum err e = fact_load(rq->store, 'c', str_c(rq->customer_id), &doc, &rq->error);
    if (!e && doc && entitlement_parse(doc, ret, &rq->error))
        e = ERR_UNAVAILABLE;
    jv_free(doc);
    return e;
}

static enum err rows_collect(struct api *rq, const struct entitlement *ent, struct str application, struct rows *rows)
{
    struct str *names = NULL;
    size_t n = 0;
    enum err e = ERR_OK;
    repositories_of(rq, ent, application, &names, &n);
    for (size_t i = 0; !e && i < n; i++) {
        struct jv *repository = NULL, *tags = NULL;
        e = fact_load(rq->store, 'r', names[i], &repository, &rq->error);
        if (!e && repository)
            e = fact_load(rq->store, 't', jv_get_str(repository, "id"), &tags, &rq->error);
        struct jv *map = jv_get(tags, "tags");
        for (void *it = jv_iter(map); it; it = jv_iter_next(map, it))
            tag_decide(rq, ent, repository, str_c(jv_iter_key(it)), jv_iter_value(it), rows);
        jv_free(tags);
        jv_free(repository);
    }
    mem_free(names);
    if (!e)
        rows_join(rows);
    return e;
}

/* Where customers pull from: host[:port] of proxy.public_url, else of the first listener. *ret_plain: without TLS. */
static void registry_host(const struct config *cfg, struct strbuf *ret, bool *ret_plain)
{
    struct fetch_url u;
    struct str host, port;
    if (*cfg->proxy.public_url && fetch_url_parse(cfg->proxy.public_url, &u, NULL) == ERR_OK) {
        *ret_plain = strcmp(u.scheme, "http") == 0;
        bool is_v6 = strchr(u.host, ':') != NULL && u.host[0] != '[';
        sb_addf(ret, is_v6 ? "[%s]" : "%s", u.host);
        if (u.port != (*ret_plain ? 80u : 443u))
            sb_addf(ret, ":%u", u.port);
        fetch_url_free(&u);
        return;
    }
    *ret_plain = cfg->proxy.tls.cert == NULL || *cfg->proxy.tls.cert == '\0';
    struct str listen = cfg->proxy.listen.n ? str_c(cfg->proxy.listen.list[0]) : S("127.0.0.1:5080");
    ptrdiff_t colon = str_rindex(listen, ':');
    if (colon < 0 || str_starts(listen, S("unix:"))) {
        sb_addc(ret, "localhost");
        return;
    }
    host = str_sub(listen, 0, (size_t)colon);
    port = str_skip(listen, (size_t)colon + 1);
    if (host.n == 0 || str_eq_c(host, "*") || str_eq_c(host, "0.0.0.0") || str_eq_c(host, "[::]"))
        host = S("localhost");
    sb_add(ret, host);
    sb_add_char(ret, ':');
    sb_add(ret, port);
}

static void command_push(struct jv *commands, struct strbuf *b)
{
    jv_push(commands, jv_string(sb_str(b)));
    sb_reset(b);
}

static struct jv *commands_make(const struct artifact *a, struct str host, bool plain)
{
    struct jv *list = jv_array();
    struct strbuf b = {0};
    if (strcmp(a->kind, "chart") == 0) {
        /* Helm writes '+' of a version as '_' in its tag; the release is named after the chart, the repository's last part. */
        struct strbuf version = {0};
        struct str name = str_c(a->repository);
        name = str_skip(name, (size_t)(str_rindex(name, '/') + 1));
        for (const char *p = a->tag; *p; p++)
            sb_add_char(&version, *p == '_' ? '+' : *p);
        sb_addf(&b, "helm pull oci://%.*s/%s --version %s%s", STR(host), a->repository, version.p, plain ? " --plain-http" : "");
        command_push(list, &b);
        sb_addf(&b, "helm install %.*s oci://%.*s/%s --version %s%s", STR(name), STR(host), a->repository, version.p,
                plain ? " --plain-http" : "");
        command_push(list, &b);
        sb_addf(&b, "helm pull oci://%.*s/%s@%s%s", STR(host), a->repository, a->digest, plain ? " --plain-http" : "");
        command_push(list, &b);
        sb_free(&version);
    } else {
        const char *program = strcmp(a->kind, "image") == 0 ? "docker" : "oras";
        const char *option = plain && *program == 'o' ? " --plain-http" : "";
        sb_addf(&b, "%s pull%s %.*s/%s:%s", program, option, STR(host), a->repository, a->tag);
        command_push(list, &b);
        sb_addf(&b, "%s pull%s %.*s/%s@%s", program, option, STR(host), a->repository, a->digest);
        command_push(list, &b);
    }
    sb_free(&b);
    return list;
}

static enum err artifact_print(struct api *rq, const struct artifact *a, struct str host, bool plain, struct jv **ret)
{
    struct store_stmt *st;
    bool row;
    struct jv *o = jv_object(), *platforms = jv_array();
    jv_set_c(o, "repository", a->repository);
    jv_set_c(o, "kind", a->kind);
    jv_set_c(o, "tag", a->tag);
    jv_set_c(o, "digest", a->digest);
    jv_set(o, "platforms", platforms);
    jv_set(o, "size_bytes", jv_null());
    enum err e = store_query(rq->store, &st, &rq->error, "SELECT platforms, total_bytes FROM manifests WHERE repository_id=? AND digest=?",
                             "zz", a->repository_id, a->digest);
    if (!e)
        e = store_step(st, &row, &rq->error);
    if (!e && row) {
        struct str rest = store_col_str(st, 0), one;
        while (rest.n && str_next(&rest, ',', &one))
            jv_push(platforms, jv_string(one));
        jv_set_int(o, "size_bytes", store_col_int(st, 1));
    }
    store_done(&st);
    jv_set(o, "commands", commands_make(a, host, plain));
    if (e)
        jv_free(o);
    else
        *ret = o;
    return e;
}

static enum err row_print(struct api *rq, const struct row *r, struct str host, bool plain, struct jv *items)
{
    struct strbuf name = {0};
    bool found = false;
    enum err e = api_lookup(rq, "SELECT name FROM applications WHERE id=?", r->license->application_id, &name, &found);
    struct jv *item = jv_object(), *application = jv_object(), *license = jv_object(), *artifacts = jv_array();
    jv_set_str(application, "slug", r->license->application_slug);
    jv_set_str(application, "name", sb_str(&name));
    jv_set(item, "application", application);
    jv_set_c(item, "version", r->version);
    jv_set_time(item, "released_at", r->released_at);
    jv_set_str(license, "id", r->license->id);
    jv_set_str(license, "name", r->license->name);
    jv_set_time(license, "valid_until", r->license->terms.expires_at_s);
    jv_set(item, "license", license);
    jv_set(item, "artifacts", artifacts);
    for (size_t i = 0; !e && i < r->n; i++) {
        struct jv *a = NULL;
        e = artifact_print(rq, &r->artifacts[i], host, plain, &a);
        if (!e)
            jv_push(artifacts, a);
    }
    jv_push(items, item);
    sb_free(&name);
    return e;
}

static enum err versions_list(struct api *rq, struct page *page, struct str application)
{
    struct entitlement *ent = NULL;
    struct rows rows = {0};
    struct strbuf host = {0};
    bool plain = false;
    enum err e = entitlement_load(rq, &ent);
    if (!e && ent)
        e = rows_collect(rq, ent, application, &rows);
    if (e)
        goto out;
    registry_host(admin_config(rq->admin), &host, &plain);
    struct jv *items = api_list(rq);
    size_t i = 0;
    if (page->has_cursor) { /* after the row it names; where that is gone, at its place */
        for (i = 0; i < rows.n && strcmp(rows.v[i].id, page->after_id) != 0; i++)
            ;
        if (i < rows.n)
            i++;
        else
            i = page->after_key >= 0 && (uint64_t)page->after_key < rows.n ? (size_t)page->after_key : rows.n;
    }
    for (; !e && i < rows.n; i++) {
        if (!api_page_take(page, rq->out, (int64_t)i, rows.v[i].id))
            break;
        e = row_print(rq, &rows.v[i], sb_str(&host), plain, items);
    }
out:
    rows_free(&rows);
    entitlement_unref(&ent);
    sb_free(&host);
    return e;
}

static enum err portal_versions(struct api *rq)
{
    struct entitlement *ent = NULL;
    struct strbuf application = {0};
    struct page page;
    enum err e = api_page(rq, &page);
    if (e)
        return e;
    api_query(rq, "application", &application);
    e = entitlement_load(rq, &ent);
    if (!e && ent && !page.has_cursor) {
        struct str *names = NULL;
        size_t n = 0;
        repositories_of(rq, ent, sb_str(&application), &names, &n);
        e = repositories_refresh(rq, names, n);
        mem_free(names);
    }
    entitlement_unref(&ent);
    if (!e) /* one state of the store for all that is compared */
        e = store_begin(rq->store, &rq->error);
    if (!e) {
        rq->now_s = clock_now_s(); /* waiting took its time */
        e = versions_list(rq, &page, sb_str(&application));
        store_rollback(rq->store);
    }
    sb_free(&application);
    return e;
}

/* GET /api/v1/licenses/{id}/versions: the same list for one license of the caller's vendor, to whoever runs it. */
static enum err license_versions(struct api *rq)
{
    struct store_stmt *st = NULL;
    bool row = false;
    enum err e = store_query(rq->store, &st, &rq->error, "SELECT id, customer_id FROM licenses WHERE id=? AND vendor_id=? AND archived_at=0", "sz",
                             rq->params[0], rq->vendor_id);
    if (!e)
        e = store_step(st, &row, &rq->error);
    if (!e && !row)
        e = api_not_found(rq, "license");
    if (!e) {
        rq->license_id = str_dup(store_col_str(st, 0));
        rq->customer_id = str_dup(store_col_str(st, 1));
    }
    store_done(&st);
    return e ? e : portal_versions(rq);
}

/* ---- licenses ---------------------------------------------------------------------------------- */

static enum err grants_print(struct api *rq, struct str license_id, struct jv *list)
{
    struct store_stmt *st;
    bool row;
    enum err e = store_query(rq->store, &st, &rq->error,
                             "SELECT id, selector, value, include_prerelease, not_before, not_after, repositories"
                             " FROM grants WHERE license_id=? ORDER BY created_at, id",
                             "s", license_id);
    if (e)
        return e;
    while (!(e = store_step(st, &row, &rq->error)) && row) {
        struct jv *g = jv_object();
        jv_set_str(g, "id", store_col_str(st, 0));
        jv_set_str(g, "selector", store_col_str(st, 1));
        jv_set_str(g, "value", store_col_str(st, 2));
        jv_set_bool(g, "include_prerelease", store_col_int(st, 3) != 0);
        jv_set_time(g, "not_before", store_col_int(st, 4));
        jv_set_time(g, "not_after", store_col_int(st, 5));
        api_set_json(g, "repositories", store_col_str(st, 6));
        jv_push(list, g);
    }
    store_done(&st);
    return e;
}

static enum err portal_licenses(struct api *rq)
{
    struct store_stmt *st;
    struct page page;
    bool row;
    enum err e = api_page(rq, &page);
    if (e)
        return e;
    struct jv *items = api_list(rq);
    e = store_query(
        rq->store, &st, &rq->error,
        "SELECT l.id, l.name, a.slug, a.name, l.type, l.status, l.status_reason, l.starts_at, l.expires_at, l.grace_days, l.updates_until,"
        " l.key_prefix, l.created_at, v.renew_url, v.support_contact, l.limits, l.features, l.payment_failed_at"
        " FROM licenses l JOIN applications a ON a.id=l.application_id JOIN vendors v ON v.id=l.vendor_id"
        " WHERE l.customer_id=? AND l.archived_at=0 AND (?='' OR l.id=?) AND (NOT ? OR (l.created_at, l.id) > (?, ?))"
        " ORDER BY l.created_at, l.id LIMIT ?",
        "zzzbizi", rq->customer_id, rq->license_id, rq->license_id, page.has_cursor, page.after_key, page.after_id,
        (int64_t)page.limit + 1);
    if (e)
        return e;
    while (!(e = store_step(st, &row, &rq->error)) && row) {
        struct str id = store_col_str(st, 0);
        char text[64];
        snprintf(text, sizeof(text), "%.*s", STR(id));
        if (!api_page_take(&page, rq->out, store_col_int(st, 12), text))
            break;
        struct jv *l = jv_object(), *a = jv_object(), *grants = jv_array();
        struct license_terms terms = {
            .starts_at_s = store_col_int(st, 7), .expires_at_s = store_col_int(st, 8), .grace_days = store_col_int(st, 9),
            .payment_failed_at_s = store_col_int(st, 17)};
        if (!license_status_parse(store_col_str(st, 5), &terms.status))
            terms.status = LICENSE_STATUS_NONE;
        jv_set_str(l, "id", id);
        jv_set_str(l, "name", store_col_str(st, 1));
        jv_set_str(a, "slug", store_col_str(st, 2));
        jv_set_str(a, "name", store_col_str(st, 3));
        jv_set(l, "application", a);
        jv_set_str(l, "type", store_col_str(st, 4));
        jv_set_str(l, "status", store_col_str(st, 5));
        jv_set_c(l, "effective_status", license_effective_text(license_effective(&terms, rq->now_s)));
        jv_set_str(l, "status_reason", store_col_str(st, 6));
        jv_set_time(l, "starts_at", terms.starts_at_s);
        jv_set_time(l, "valid_until", terms.expires_at_s);
        jv_set_int(l, "grace_days", terms.grace_days);
        jv_set_time(l, "updates_until", store_col_int(st, 10));
        jv_set_str(l, "key_prefix", store_col_str(st, 11));
        jv_set_str(l, "renew_url", store_col_str(st, 13));
        jv_set_str(l, "support_contact", store_col_str(st, 14));
        api_set_json(l, "limits", store_col_str(st, 15));
        api_set_json(l, "features", store_col_str(st, 16));
        jv_set(l, "grants", grants);
        jv_push(items, l);
        e = grants_print(rq, str_c(text), grants);
        struct jv *usage = NULL;
        if (!e)
            e = usage_print(rq, str_c(text), &usage);
        if (e)
            break;
        jv_set(l, "usage", usage);
    }
    store_done(&st);
    return e;
}

/* ---- credentials ------------------------------------------------------------------------------- */

static enum err portal_credentials(struct api *rq)
{
    struct store_stmt *st;
    struct page page;
    bool row;
    enum err e = api_page(rq, &page);
    if (e)
        return e;
    struct jv *items = api_list(rq);
    /* A credential of one license sees those of that license, and itself. */
    e = store_query(
        rq->store, &st, &rq->error,
        "SELECT id, name, prefix, coalesce(license_id,''), allowed_cidrs, created_at, expires_at, revoked_at, last_used_at, last_used_from"
        " FROM credentials WHERE customer_id=? AND (?='' OR license_id=? OR id=?) AND (NOT ? OR (created_at, id) > (?, ?))"
        " ORDER BY created_at, id LIMIT ?",
        "zzzzbizi", rq->customer_id, rq->license_id, rq->license_id, rq->credential_id, page.has_cursor, page.after_key, page.after_id,
        (int64_t)page.limit + 1);
    if (e)
        return e;
    while (!(e = store_step(st, &row, &rq->error)) && row) {
        char text[64];
        snprintf(text, sizeof(text), "%.*s", STR(store_col_str(st, 0)));
        if (!api_page_take(&page, rq->out, store_col_int(st, 5), text))
            break;
        struct jv *c = jv_object();
        int64_t expires = store_col_int(st, 6), revoked = store_col_int(st, 7);
        jv_set_c(c, "id", text);
        jv_set_str(c, "name", store_col_str(st, 1));
        jv_set_str(c, "prefix", store_col_str(st, 2));
        jv_set_c(c, "status", revoked ? "revoked" : expires && rq->now_s >= expires ? "expired" : "active");
        jv_set_str(c, "license_id", store_col_str(st, 3));
        api_set_json(c, "allowed_cidrs", store_col_str(st, 4));
        jv_set_time(c, "created_at", store_col_int(st, 5));
        jv_set_time(c, "expires_at", expires);
        jv_set_time(c, "revoked_at", revoked);
        jv_set_time(c, "last_used_at", store_col_int(st, 8));
        jv_set_str(c, "last_used_from", store_col_str(st, 9));
        jv_push(items, c);
    }
    store_done(&st);
    return e;
}

/* ---- pulls ------------------------------------------------------------------------------------- */

static enum err portal_pulls(struct api *rq)
{
    struct store_stmt *st;
    struct page page;
    bool row;
    enum err e = api_page(rq, &page);
    if (e)
        return e;
    struct jv *items = api_list(rq);
    uint64_t after = 0;
    if (page.has_cursor && !str_to_u64(str_c(page.after_id), &after))
        return api_fail(rq, ERR_INVALID, "invalid_cursor", "cursor", "cursor: not one that this list gave out");
    e = store_query(
        rq->store, &st, &rq->error,
        "SELECT id, event_id, at_ms, repository, reference, tag, digest, decision, reason, client, agent, credential_id, license_id"
        " FROM pulls WHERE customer_id=? AND (?='' OR license_id=? OR credential_id=?) AND (NOT ? OR (at_ms, id) < (?, ?))"
        " ORDER BY at_ms DESC, id DESC LIMIT ?",
        "zzzzbiii", rq->customer_id, rq->license_id, rq->license_id, rq->credential_id, page.has_cursor, page.after_key, (int64_t)after,
        (int64_t)page.limit + 1);
    if (e)
        return e;
    while (!(e = store_step(st, &row, &rq->error)) && row) {
        char text[32], at[CLOCK_RFC3339_MAX];
        snprintf(text, sizeof(text), "%lld", (long long)store_col_int(st, 0));
        if (!api_page_take(&page, rq->out, store_col_int(st, 2), text))
            break;
        static const char *const KEYS[] = {"repository", "reference", "tag",   "digest",        "decision",
                                           "reason",     "client",    "agent", "credential_id", "license_id"};
        struct jv *p = jv_object();
        jv_set_str(p, "id", store_col_str(st, 1));
        jv_set_c(p, "at", clock_rfc3339_ms(store_col_int(st, 2), at));
        for (int i = 0; i < (int)(sizeof(KEYS) / sizeof(KEYS[0])); i++)
            jv_set_str(p, KEYS[i], store_col_str(st, 3 + i));
        jv_push(items, p);
    }
    store_done(&st);
    return e;
}

/* ---- the table --------------------------------------------------------------------------------- */

static const struct field APPLICATION_FIELDS[] = {{.name = "slug", .type = FIELD_STRING}, {.name = "name", .type = FIELD_STRING}, {0}};
static const struct field VERSION_LICENSE_FIELDS[] = {
    {.name = "id", .type = FIELD_STRING},
    {.name = "name", .type = FIELD_STRING},
    {.name = "valid_until", .type = FIELD_TIME, .about = "end of the license; null: it does not end"},
    {0},
};
static const struct field ARTIFACT_FIELDS[] = {
    {.name = "repository", .type = FIELD_STRING},
    {.name = "kind", .type = FIELD_STRING, .one_of = "image|chart|artifact"},
    {.name = "tag", .type = FIELD_STRING},
    {.name = "digest", .type = FIELD_STRING},
    {.name = "platforms", .type = FIELD_STRINGS},
    {.name = "size_bytes",
     .type = FIELD_INT,
     .flags = FIELD_NULL,
     .about = "everything that is pulled, all platforms; null: not looked at yet"},
    {.name = "commands", .type = FIELD_STRINGS, .about = "to copy: by tag and by digest"},
    {0},
};
static const struct field VERSION_FIELDS[] = {
    {.name = "application", .type = FIELD_OBJECT, .sub = APPLICATION_FIELDS},
    {.name = "version", .type = FIELD_STRING},
    {.name = "released_at", .type = FIELD_TIME},
    {.name = "license", .type = FIELD_OBJECT, .sub = VERSION_LICENSE_FIELDS},
    {.name = "artifacts", .type = FIELD_LIST, .sub = ARTIFACT_FIELDS},
    {0},
};
static const struct field GRANT_FIELDS[] = {
    {.name = "id", .type = FIELD_STRING},
    {.name = "selector", .type = FIELD_STRING, .one_of = "exact|range|glob|channel|digest|all"},
    {.name = "value", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "include_prerelease", .type = FIELD_BOOL},
    {.name = "not_before", .type = FIELD_TIME},
    {.name = "not_after", .type = FIELD_TIME},
    {.name = "repositories", .type = FIELD_STRINGS, .about = "empty: all of the application's"},
    {0},
};
static const struct field LICENSE_FIELDS[] = {
    {.name = "id", .type = FIELD_STRING},
    {.name = "name", .type = FIELD_STRING},
    {.name = "application", .type = FIELD_OBJECT, .sub = APPLICATION_FIELDS},
    {.name = "type", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "status", .type = FIELD_STRING, .one_of = "inactive|active|suspended|revoked"},
    {.name = "effective_status", .type = FIELD_STRING, .about = "what the clock makes of it"},
    {.name = "status_reason", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "starts_at", .type = FIELD_TIME},
    {.name = "valid_until", .type = FIELD_TIME},
    {.name = "grace_days", .type = FIELD_INT},
    {.name = "updates_until", .type = FIELD_TIME},
    {.name = "key_prefix", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "renew_url", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "support_contact", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "limits", .type = FIELD_MAP},
    {.name = "features", .type = FIELD_MAP},
    {.name = "grants", .type = FIELD_LIST, .sub = GRANT_FIELDS},
    {.name = "usage", .type = FIELD_OBJECT, .sub = USAGE_FIELDS},
    {0},
};
static const struct field CREDENTIAL_FIELDS[] = {
    {.name = "id", .type = FIELD_STRING},
    {.name = "name", .type = FIELD_STRING},
    {.name = "prefix", .type = FIELD_STRING},
    {.name = "status", .type = FIELD_STRING, .one_of = "active|expired|revoked"},
    {.name = "license_id", .type = FIELD_STRING, .flags = FIELD_EMPTY, .about = "empty: every license of the customer counts"},
    {.name = "allowed_cidrs", .type = FIELD_STRINGS},
    {.name = "created_at", .type = FIELD_TIME},
    {.name = "expires_at", .type = FIELD_TIME},
    {.name = "revoked_at", .type = FIELD_TIME},
    {.name = "last_used_at", .type = FIELD_TIME},
    {.name = "last_used_from", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {0},
};
static const struct field PULL_FIELDS[] = {
    {.name = "id", .type = FIELD_STRING},
    {.name = "at", .type = FIELD_TIME},
    {.name = "repository", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "reference", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "tag", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "digest", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "decision", .type = FIELD_STRING, .one_of = "allow|deny"},
    {.name = "reason", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "client", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "agent", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "credential_id", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {.name = "license_id", .type = FIELD_STRING, .flags = FIELD_EMPTY},
    {0},
};
static const struct schema VERSION_SCHEMA = {"PortalVersion", VERSION_FIELDS};
static const struct schema LICENSE_SCHEMA = {"PortalLicense", LICENSE_FIELDS};
static const struct schema CREDENTIAL_SCHEMA = {"PortalCredential", CREDENTIAL_FIELDS};
static const struct schema PULL_SCHEMA = {"PortalPull", PULL_FIELDS};

static const struct query_param VERSION_PARAMS[] = {{"application", "slug of one application"}, {NULL, NULL}};

const struct route PORTAL_ROUTES[] = {
    {.method = HEAD_GET,
     .path = "/portal/v1/versions",
     .run = portal_versions,
     .role = ROLE_CUSTOMER,
     .flags = ROUTE_LIST | ROUTE_SLOW,
     .answer = &VERSION_SCHEMA,
     .params = VERSION_PARAMS,
     .action = "portal.version.list",
     .about = "Versions that can be pulled now, and how."},
    {.method = HEAD_GET,
     .path = "/api/v1/licenses/{id}/versions",
     .run = license_versions,
     .role = ROLE_VIEWER,
     .flags = ROUTE_LIST | ROUTE_SLOW,
     .answer = &VERSION_SCHEMA,
     .action = "license.versions",
     .about = "Versions that can be pulled now under this license, from the caller's address, and how."},
    {.method = HEAD_GET,
     .path = "/portal/v1/licenses",
     .run = portal_licenses,
     .role = ROLE_CUSTOMER,
     .flags = ROUTE_LIST,
     .answer = &LICENSE_SCHEMA,
     .action = "portal.license.list",
     .about = "The customer's licenses."},
    {.method = HEAD_GET,
     .path = "/portal/v1/credentials",
     .run = portal_credentials,
     .role = ROLE_CUSTOMER,
     .flags = ROUTE_LIST,
     .answer = &CREDENTIAL_SCHEMA,
     .action = "portal.credential.list",
     .about = "The customer's pull credentials, without their secrets."},
    {.method = HEAD_GET,
     .path = "/portal/v1/pulls",
     .run = portal_pulls,
     .role = ROLE_CUSTOMER,
     .flags = ROUTE_LIST,
     .answer = &PULL_SCHEMA,
     .action = "portal.pull.list",
     .about = "What the customer pulled or was denied, newest first."},
    {0},
};
