/* Requests of the admin API in sequences: the route table, the check of bodies, the handlers and the store as they are, in one
 * transaction that is rolled back in the end. The input is lines "METHOD path", each followed by a JSON body up to a NUL; {lic}, {cus},
 * {app}, {rep}, {ups}, {grt}, {last} in either stand for ids.
 *
 * What must hold after each:
 *   - a body with one more member that the schema does not know is refused;
 *   - what is answered is what a GET prints, the body's plain members stand in it, and a PATCH with what was printed changes nothing;
 *   - the facts compiled from the rows are understood by the proxies' own reader: no accepted request leaves a customer undecidable;
 *   - rights grow only by the requests that are there to make them grow, and never by an empty body, an empty list or a refused request. */
#include "fuzz.h"

#include "admin.h"
#include "api.h"
#include "compile.h"
#include "http.h"
#include "pullgate/clock.h"
#include "pullgate/credential.h"
#include "pullgate/decision.h"
#include "pullgate/jv.h"
#include "pullgate/license.h"
#include "schema.h"

static struct admin admin;
static struct store *store;
static struct config cfg;
static char *ids[8], *last_id;
enum { ID_LIC, ID_CUS, ID_APP, ID_REP, ID_UPS, ID_GRT, ID_CUS2, ID_PLN, IDS };
static const char *const ID_NAMES[] = {"{lic}", "{cus}", "{app}", "{rep}", "{ups}", "{grt}", "{cus2}", "{pln}"};

/* ---- one request ---------------------------------------------------------------------------------------------------------------- */

struct call {
    struct api rq;
    char *values[API_MAX_PARAMS];
    enum err err;
};

static void call_free(struct call *c)
{
    api_release(&c->rq);
    for (size_t i = 0; i < API_MAX_PARAMS; i++)
        mem_free(c->values[i]);
    *c = (struct call){0};
}

static void sql(const char *text)
{
    struct error e = {0};
    FUZZ_CHECK(store_exec(store, NULL, &e, text, "") == ERR_OK, e.text);
}

/* Routes that wait for a network, sign in as a customer, or walk the whole audit are not called. */
static bool callable(const struct route *r)
{
    return r && !(r->flags & (ROUTE_SLOW | ROUTE_HASHES)) && r->role < ROLE_CUSTOMER && r->role != ROLE_NONE && !strstr(r->path, "/audit");
}

static void call(struct call *c, enum head_method method, struct str target, const struct jv *body)
{
    struct api *rq = &c->rq;
    struct str path = target, query = {0};
    unsigned allowed;

    *c = (struct call){.err = ERR_NOT_FOUND};
    (void)str_cut(target, '?', &path, &query);
    rq->admin = &admin;
    rq->store = store;
    rq->now_s = clock_now_s();
    rq->method = method;
    rq->path = str_dup(path);
    rq->query = str_dup(query);
    rq->vendor_id = mem_strdup("ven_1");
    rq->token_id = mem_strdup("tok_1");
    rq->actor = mem_strdup("token:tok_1");
    rq->role = ROLE_OWNER;
    request_id_new(rq->request_id);
    rq->route = route_find(method, path, c->values, &allowed);
    for (size_t i = 0; i < API_MAX_PARAMS; i++)
        rq->params[i] = str_c(c->values[i]);
    if (!callable(rq->route))
        return;
    sql("SAVEPOINT one");
    if (method != HEAD_GET) {
        rq->in = body ? jv_copy(body) : jv_object();
        c->err = api_check_body(rq, rq->in, rq->route->request);
    } else {
        c->err = ERR_OK;
    }
    if (!c->err)
        c->err = rq->route->run(rq);
    if (c->err)
        sql("ROLLBACK TO one");
    sql("RELEASE one");
    if (c->err)
        FUZZ_CHECK(c->err != ERR_OK && c->err != ERR_UNAVAILABLE && c->err != ERR_INTERNAL, rq->error.text);
}

/* ---- rights --------------------------------------------------------------------------------------------------------------------- */

static const char *const PROBES[] = {"1.0.0", "1.1.0", "2.0.0", "2.0.0-rc.1", "latest", "nightly", "3.1.4"};
#define PROBES_N (sizeof PROBES / sizeof *PROBES)

/* A bit a probe and customer. What the proxies would decide from the facts as they are. */
static uint64_t rights(void)
{
    uint64_t mask = 0;
    struct strbuf fact = {0}, payload = {0};
    for (unsigned who = 0; who < 2; who++) {
        struct error e = {0};
        struct entitlement *ent = NULL;
        struct jv *doc = NULL;
        bool exists = false;
        sb_reset(&fact);
        sb_addf(&fact, "c:%s", ids[who ? ID_CUS2 : ID_CUS]);
        FUZZ_CHECK(compile_fact(store, sb_str(&fact), &payload, &exists, &e) == ERR_OK, e.text);
        if (!exists)
            continue;
        FUZZ_CHECK(jv_parse(sb_str(&payload), &JV_LIMITS_TRUSTED, &doc, &e) == ERR_OK, e.text);
        if (entitlement_parse(doc, &ent, &e)) {
            fprintf(stderr, "%.*s\n%s\n", STR(sb_str(&payload)), e.text);
            fuzz_fail("an accepted request leaves a customer undecidable", __LINE__);
        }
        for (size_t i = 0; i < PROBES_N; i++) {
            struct candidate c = {.tag = str_c(PROBES[i]), .version = str_c(PROBES[i])};
            static const uint8_t addr[16] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 1, 2, 3};
            struct decision_query q = {.repository = S("shop/api"), .candidates = &c, .n_candidates = 1, .now_s = clock_now_s(), .client_addr = addr};
            struct decision d = {0};
            decision_make(ent, &q, &d);
            if (d.verdict == VERDICT_ALLOW)
                mask |= 1ull << (who * 16 + i);
        }
        entitlement_unref(&ent);
        jv_free(doc);
    }
    sb_free(&fact);
    sb_free(&payload);
    return mask;
}

/* Is there a grant that says so, plainly? */
static bool named_by(const struct jv *grants, const char *tag)
{
    for (size_t i = 0; i < jv_len(grants); i++) {
        const struct jv *g = jv_at(grants, i);
        struct str selector = jv_get_str(g, "selector"), value = jv_get_str(g, "value");
        if (str_eq_c(selector, "all") || (str_eq_c(selector, "exact") && str_eq_c(value, tag)) || (str_eq_c(selector, "range") && value.n) ||
            (str_eq_c(selector, "glob") && glob_matches(value, str_c(tag))))
            return true;
    }
    return false;
}

static bool is_empty(const struct jv *body)
{
    if (jv_type(body) == JV_ARRAY || jv_type(body) == JV_OBJECT) {
        for (void *it = jv_type(body) == JV_OBJECT ? jv_iter(body) : NULL; it; it = jv_iter_next(body, it))
            if (!is_empty(jv_iter_value(it)))
                return false;
        return jv_type(body) == JV_OBJECT || jv_len(body) == 0;
    }
    return jv_type(body) == JV_NULL || jv_type(body) == JV_NONE || (jv_type(body) == JV_STRING && jv_str(body).n == 0);
}

static void check_growth(const struct call *c, uint64_t before, uint64_t after)
{
    uint64_t grown = after & ~before;
    const char *path = c->rq.route->path;
    const struct jv *in = c->rq.in;
    enum head_method m = c->rq.method;

    if (!grown)
        return;
    FUZZ_CHECK(!c->err, "a refused request gives rights");
    FUZZ_CHECK(m == HEAD_POST || m == HEAD_PATCH || m == HEAD_PUT || m == HEAD_DELETE, "reading gives rights");
    bool is_action = m == HEAD_POST && (strstr(path, "/activate") || strstr(path, "/reinstate") || strstr(path, "/renew") || strstr(path, "/extend") ||
                                           strstr(path, "/issue") || strstr(path, "/approve") || strstr(path, "/change-plan"));
    if (is_action)
        return; /* that is what they are for */
    if (m != HEAD_DELETE) /* a grant's window, a version record: what is taken away may have been in the way */
        FUZZ_CHECK(!is_empty(in), "an empty body gives rights");
    if (jv_get_str(in, "plan_id").n) /* what the plan grants */
        return;
    if (m == HEAD_POST && strcmp(path, "/api/v1/licenses") == 0) {
        const struct jv *grants = jv_get(in, "grants");
        if (jv_get_str(in, "plan_id").n)
            return; /* the plan's */
        FUZZ_CHECK(jv_len(grants) > 0, "a license without grants gives rights");
        FUZZ_CHECK(str_eq_c(jv_get_str(in, "status"), "active"), "a license that was not made active gives rights");
        for (size_t i = 0; i < PROBES_N; i++)
            if ((grown | grown >> 16) >> i & 1)
                FUZZ_CHECK(named_by(grants, PROBES[i]), "a version is granted that no grant names");
        return;
    }
    if (m == HEAD_POST && strstr(path, "/grants")) {
        struct jv *one = jv_array();
        jv_push(one, jv_copy(in));
        for (size_t i = 0; i < PROBES_N; i++)
            if ((grown | grown >> 16) >> i & 1)
                FUZZ_CHECK(named_by(one, PROBES[i]), "a version is granted that the grant does not name");
        jv_free(one);
        return;
    }
    static const char *const givers[] = {"/orders", "/change-plan", "/transfer", "/import", "/bulk", "/marketplace", "/requests", "/trials"};
    for (size_t i = 0; i < sizeof givers / sizeof *givers; i++)
        if (m == HEAD_POST && strstr(path, givers[i]))
            return;
    bool may = (m == HEAD_PATCH && (strstr(path, "/licenses/") || strstr(path, "/customers/"))) || strstr(path, "/versions") || strstr(path, "/repositories") ||
               strstr(path, "/vendors");
    FUZZ_CHECK(may, "rights by a request that is not about rights");
}

/* ---- the same again ------------------------------------------------------------------------------------------------------------- */

static bool is_secret(const char *name)
{
    return !strcmp(name, "key") || !strcmp(name, "secret") || !strcmp(name, "token") || !strcmp(name, "password");
}

/* What only the answer of a change says. */
static bool is_of_a_change(const char *name)
{
    return !strcmp(name, "changes") || !strcmp(name, "effect") || !strcmp(name, "last_pulls");
}

/* Members that move by themselves. */
static bool moves(const char *name)
{
    return !strcmp(name, "updated_at") || !strcmp(name, "etag") || !strcmp(name, "rev");
}

static void check_same(const struct jv *a, const struct jv *b, bool after_patch, const char *what)
{
    for (void *it = jv_iter(b); it; it = jv_iter_next(b, it)) {
        const char *name = jv_iter_key(it);
        if (is_secret(name) || is_of_a_change(name) || (after_patch && moves(name)))
            continue;
        if (after_patch && !strcmp(name, "changes")) { /* what the change was */
            if (jv_len(jv_iter_value(it)))
                fuzz_fail(what, __LINE__);
            continue;
        }
        const struct jv *x = jv_get(a, name);
        if (!jv_equal(x, jv_iter_value(it))) {
            struct strbuf t = {0};
            jv_dump(x, &t);
            sb_addc(&t, " / ");
            jv_dump(jv_iter_value(it), &t);
            fprintf(stderr, "%s: %s\n", name, t.p);
            fuzz_fail(what, __LINE__);
        }
    }
}

static void check_read_back(const struct call *c, struct str target)
{
    struct call get, patch;
    struct str path = target, query;

    (void)str_cut(target, '?', &path, &query);
    if (c->rq.location)
        path = str_c(c->rq.location);
    else if (c->rq.method != HEAD_PATCH)
        return;
    if (!c->rq.out || jv_type(c->rq.out) != JV_OBJECT)
        return;
    char *own = str_dup(path);
    path = str_c(own);
    call(&get, HEAD_GET, path, NULL);
    if (!get.err && get.rq.out) {
        check_same(c->rq.out, get.rq.out, false, "what was answered is not what is read");
        /* Plain members of the body stand in the answer as they were sent. */
        const struct schema *in = c->rq.route->request;
        for (const struct field *f = in ? in->fields : NULL; f && f->name; f++) {
            const struct jv *sent = jv_get(c->rq.in, f->name), *has = jv_get(get.rq.out, f->name);
            if ((f->type == FIELD_STRING || f->type == FIELD_TEXT) && jv_type(sent) == JV_STRING && jv_type(has) == JV_STRING && strcmp(f->name, "url") &&
                strcmp(f->name, "reason"))
                FUZZ_CHECK(jv_equal(sent, has), "stored differently than it was sent");
            if ((f->type == FIELD_INT || f->type == FIELD_BOOL || f->type == FIELD_MAP) && jv_type(sent) != JV_NONE && jv_type(sent) != JV_NULL && jv_type(has) != JV_NONE)
                FUZZ_CHECK(jv_equal(sent, has), "stored differently than it was sent");
        }
        unsigned allowed;
        char *values[API_MAX_PARAMS] = {0};
        const struct route *r = route_find(HEAD_PATCH, path, values, &allowed);
        for (size_t i = 0; i < API_MAX_PARAMS; i++)
            mem_free(values[i]);
        if (callable(r) && r->request) {
            struct jv *body = jv_object();
            for (const struct field *f = r->request->fields; f->name; f++) {
                const struct jv *v = jv_get(get.rq.out, f->name);
                bool is_null = jv_type(v) == JV_NULL, is_blank = jv_type(v) == JV_STRING && jv_str(v).n == 0;
                if (jv_type(v) == JV_NONE || f->type == FIELD_SECRET || (is_null && f->type != FIELD_TIME && !(f->flags & FIELD_NULL)) ||
                    (is_blank && !(f->flags & FIELD_EMPTY)))
                    continue;
                jv_set(body, f->name, jv_copy(v));
            }
            uint64_t before = rights();
            call(&patch, HEAD_PATCH, path, body);
            if (patch.err != ERR_CONFLICT) { /* of a revoked license nothing can be changed */
                FUZZ_CHECK(patch.err == ERR_OK, patch.rq.error.text);
                if (patch.rq.out)
                    check_same(get.rq.out, patch.rq.out, true, "a PATCH with what was printed changes something");
                FUZZ_CHECK(rights() == before, "a PATCH with what was printed changes rights");
            }
            call_free(&patch);
            jv_free(body);
        }
    }
    call_free(&get);
    mem_free(own);
}

static void check_unknown_member(const struct call *c)
{
    struct api rq = c->rq;
    if (c->err || !c->rq.in || jv_type(c->rq.in) != JV_OBJECT)
        return;
    struct jv *more = jv_copy(c->rq.in);
    jv_set_int(more, "zz_no_such_member", 1);
    rq.problem = NULL;
    rq.in = more;
    FUZZ_CHECK(api_check_body(&rq, more, c->rq.route->request) != ERR_OK, "an unknown member is taken");
    jv_free(rq.problem == c->rq.problem ? NULL : rq.problem);
    jv_free(more);
}

/* ---- the world -------------------------------------------------------------------------------------------------------------------- */

static void make(enum head_method m, const char *path, const char *body, int id)
{
    struct call c;
    struct jv *doc = NULL;
    struct error e = {0};
    FUZZ_CHECK(jv_parse(str_c(body), &JV_LIMITS_API, &doc, &e) == ERR_OK, e.text);
    call(&c, m, str_c(path), doc);
    FUZZ_CHECK(c.err == ERR_OK, c.rq.error.text);
    if (id >= 0)
        ids[id] = str_dup(jv_get_str(c.rq.out, "id"));
    if (id == ID_LIC)
        ids[ID_GRT] = str_dup(jv_get_str(jv_at(jv_get(c.rq.out, "grants"), 0), "id"));
    call_free(&c);
    jv_free(doc);
}

static void expand(struct str s, struct strbuf *ret)
{
    sb_reset(ret);
    for (size_t i = 0; i < s.n; i++) {
        if (s.p[i] == '{') {
            size_t k = 0;
            while (k < IDS && !str_starts(str_skip(s, i), str_c(ID_NAMES[k])))
                k++;
            if (k < IDS || (last_id && str_starts(str_skip(s, i), S("{last}")))) {
                sb_addc(ret, k < IDS ? ids[k] : last_id);
                i += strlen(k < IDS ? ID_NAMES[k] : "{last}") - 1;
                continue;
            }
        }
        sb_add_char(ret, s.p[i]);
    }
}

static void setup(void)
{
    struct error e = {0};
    char path[64], url[96], body[512];
    struct strbuf b = {0};

    fuzz_quiet();
    admin.keys = fuzz_keys();
    admin.cfg = &cfg;
    snprintf(path, sizeof path, "/dev/shm/fuzz_admin.%d.db", (int)getpid());
    snprintf(url, sizeof url, "sqlite://%s", path);
    FUZZ_CHECK(store_open(url, false, &store, &e) == ERR_OK && store_migrate(store, SCHEMA_MIGRATIONS, SCHEMA_MIGRATIONS_N, &e) == ERR_OK, e.text);
    FUZZ_CHECK(store_begin(store, &e) == ERR_OK, e.text);
    sql("INSERT INTO vendors (id, slug, name, is_first, time_zone, renew_url, created_at, updated_at) VALUES ('ven_1','v','V',1,'Europe/Berlin','',1,1)");
    sql("INSERT INTO api_tokens (id, vendor_id, name, role, hash, prefix, created_at) VALUES ('tok_1','ven_1','t','owner','h','',1)");
    make(HEAD_POST, "/api/v1/upstreams", "{\"name\":\"u\",\"url\":\"https://up.example\",\"password\":\"s3cr3t\",\"username\":\"u\"}", ID_UPS);
    make(HEAD_POST, "/api/v1/applications", "{\"slug\":\"shop\",\"name\":\"Shop\"}", ID_APP);
    expand(S("/api/v1/applications/{app}/repositories"), &b);
    snprintf(body, sizeof body, "{\"name\":\"shop/api\",\"upstream_id\":\"%s\",\"upstream_repository\":\"acme/api\"}", ids[ID_UPS]);
    make(HEAD_POST, b.p, body, ID_REP);
    make(HEAD_POST, "/api/v1/customers", "{\"slug\":\"acme\"}", ID_CUS);
    make(HEAD_POST, "/api/v1/customers", "{\"slug\":\"beta\"}", ID_CUS2);
    snprintf(body, sizeof body,
             "{\"customer_id\":\"%s\",\"application_id\":\"%s\",\"name\":\"l\",\"status\":\"active\",\"expires_at\":\"2099-12-31\",\"grants\":[{\"selector\":\"range\",\"value\":\"^1\"}]}",
             ids[ID_CUS], ids[ID_APP]);
    make(HEAD_POST, "/api/v1/licenses", body, ID_LIC);
    snprintf(body, sizeof body,
             "{\"slug\":\"pro\",\"name\":\"Pro\",\"application_id\":\"%s\",\"type\":\"subscription\",\"period\":\"P1M\",\"price\":{\"amount\":\"9.99\",\"currency\":\"EUR\"},"
             "\"grants\":[{\"selector\":\"exact\",\"value\":\"2.0.0\"}]}",
             ids[ID_APP]);
    make(HEAD_POST, "/api/v1/plans", body, ID_PLN);
    make(HEAD_POST, "/api/v1/coupons", "{\"code\":\"CODE\",\"kind\":\"percent\",\"value\":\"10\"}", -1);
    FUZZ_CHECK(store_commit(store, &e) == ERR_OK, e.text);
    FUZZ_CHECK(rights() == 3, "the first license grants 1.0.0 and 1.1.0");
    unlink(path); /* the process keeps it open, and what stands beside it */
    for (size_t i = 0; i < 3; i++) {
        static const char *const beside[] = {"-wal", "-shm", ".lock"};
        snprintf(url, sizeof url, "%s%s", path, beside[i]);
        unlink(url);
    }
    sb_free(&b);
}

static const struct {
    const char *text;
    enum head_method method;
} METHODS[] = {{"GET", HEAD_GET}, {"POST", HEAD_POST}, {"PATCH", HEAD_PATCH}, {"PUT", HEAD_PUT}, {"DELETE", HEAD_DELETE}};

static void one(struct str line, struct str body)
{
    struct str word, target = {0};
    enum head_method m = HEAD_OTHER;
    struct strbuf path = {0}, text = {0};
    struct jv *doc = NULL;
    struct call c;

    if (!str_cut(line, ' ', &word, &target))
        return;
    for (size_t i = 0; i < 5; i++)
        if (str_eq_c(word, METHODS[i].text))
            m = METHODS[i].method;
    expand(target, &path);
    expand(body, &text);
    if (m == HEAD_OTHER || memchr(path.p ? path.p : "", 0, path.n) || (text.n && jv_parse(sb_str(&text), &JV_LIMITS_API, &doc, NULL)))
        goto out;
    uint64_t before = rights();
    call(&c, m, sb_str(&path), doc);
    if (c.rq.route && callable(c.rq.route)) {
        check_growth(&c, before, rights());
        check_unknown_member(&c);
        if (!c.err) {
            check_read_back(&c, sb_str(&path));
            struct str id = jv_get_str(c.rq.out, "id");
            if (id.n && c.rq.location) {
                mem_free(last_id);
                last_id = str_dup(id);
            }
        }
    }
    call_free(&c);
out:
    jv_free(doc);
    sb_free(&path);
    sb_free(&text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_in in = {data, size};
    struct error e = {0};

    if (!store)
        setup();
    FUZZ_CHECK(store_begin(store, &e) == ERR_OK, e.text);
    for (unsigned i = 0; in.n && i < 12; i++) {
        struct str request = fuzz_until(&in, 0), line = request, body = {0};
        (void)str_cut(request, '\n', &line, &body);
        one(line, body);
    }
    store_rollback(store);
    MEM_FREE(last_id);
    return 0;
}
