/* The answer to one question about content, taken in steps: each step looks at what is held, and either answers or names the one
 * thing that is missing; when that has come the steps begin anew. So every answer is decided on what is known at its end. */
#include "content.h"

#include <stdio.h>
#include <string.h>

#include "pullgate/clock.h"
#include "pullgate/mem.h"

#include "contentflight.h"
#include "contentrepo.h"
#include "rights.h"
#include "sweep.h"
#include "worker.h"

#define OP_MAGIC 0xc0473e47u

static const char EMPTY_INDEX[] = "{\"schemaVersion\":2,\"mediaType\":\"application/vnd.oci.image.index.v1+json\",\"manifests\":[]}";
static const unsigned RETRY_AFTER_S = 2; /* told with UNAVAILABLE where the upstream named nothing */

struct content {
    struct worker *w;
    struct repos *repos;
    struct sweeps *sweeps;
    struct timer *kick; /* begins what must not answer inside the call that asked */
    struct content_op *kicked_first, *kicked_last;
    struct str *tags; /* scratch of tags/list */
    size_t cap_tags;
};

enum op_kind { OP_ASK, OP_TAGS, OP_REFERRERS };

enum step { /* what a question waits for */
            DONE,
            WAIT_FACTS,
            WAIT_TAG,
            WAIT_MANIFEST,
            WAIT_SWEEP,
            WAIT_LIST,
            WAIT_REFERRERS,
};

struct content_op {
    unsigned magic;
    enum op_kind kind;
    struct content *c;
    struct content_ask ask;
    content_cb *cb;
    content_tags_cb *tags_cb;
    content_referrers_cb *referrers_cb;
    void *ctx;
    struct content_op *next_kicked;
    bool kicked, canceled;

    struct repo *repo; /* referenced while waiting */
    bool repo_held;
    struct waiter w;
    struct flight *on;
    struct sweep_waiter sw;
    struct sweep *sweep;
    struct facts_op *facts;

    /* what came of the waits so far */
    bool degraded;
    bool facts_asked;
    enum err facts_err;
    bool tag_asked, tag_again;
    enum err tag_err;
    bool resolved; /* by this question, just now */
    bool chosen;   /* `digest` is what it answers for, whatever the tag does meanwhile */
    struct digest digest;
    bool manifest_asked;
    enum err manifest_err;
    struct digest manifest_digest;
    struct blob_bytes *manifest; /* referenced */
    bool proof_asked;
    bool swept;
    enum err sweep_err;
    bool list_asked;
    enum err list_err;
    bool referrers_asked;
    enum err referrers_err;
    struct digest want; /* WAIT_MANIFEST, WAIT_SWEEP */
    enum node_kind want_kind;
    bool want_bytes;
    unsigned retry_after_s;
    char detail[240];
};

struct content *content_new(struct worker *w)
{
    struct content *c = NEW(struct content);
    c->w = w;
    c->repos = repos_new(w);
    c->sweeps = sweeps_new(c->repos);
    return c;
}

static struct asker asker_of(const struct content_op *op)
{
    return (struct asker){.customer = op->ask.customer,
                          .license_id = str_c(op->ask.credential ? op->ask.credential->license_id : NULL),
                          .addr = op->ask.client_addr,
                          .instance = asker_instance(op->ask.customer, op->ask.credential ? op->ask.credential->id : NULL, op->ask.client_addr),
                          .repository = op->ask.request->repository,
                          .now_s = clock_now_s()};
}

/* ---- answers ---------------------------------------------------------------------------------- */

static enum step answer_err(const struct content_op *op, struct content_answer *a, enum err err, const char *detail)
{
    a->err = err == ERR_INVALID ? ERR_UPSTREAM : err; /* what the upstream sent is nothing that we serve */
    a->detail = detail;
    a->retry_after_s = op->retry_after_s;
    if (err == ERR_UNAVAILABLE && !a->retry_after_s)
        a->retry_after_s = RETRY_AFTER_S;
    return DONE;
}

static void text_copy(char *to, size_t cap, struct str s)
{
    size_t n = s.n < cap ? s.n : cap - 1;
    if (n)
        memcpy(to, s.p, n);
    to[n] = 0;
}

static enum step answer_deny(const struct content_op *op, const struct asker *who, struct content_answer *a, const struct decision *d)
{
    if (d->verdict != VERDICT_DENY)
        return answer_err(op, a, ERR_UNAVAILABLE, "the entitlement cannot be decided");
    if (op->degraded)
        return answer_err(op, a, ERR_UNAVAILABLE, "facts too old to deny by");
    struct decision_query q = {.repository = who->repository,
                               .is_digest = op->ask.request->is_digest,
                               .now_s = who->now_s,
                               .client_addr = who->addr,
                               .instance = who->instance,
                               .license_id = who->license_id};
    a->decision = *d;
    decision_message(who->customer->entitlement, d, &q, op->ask.request->reference, &a->message);
    return DONE;
}

static void answer_manifest(struct content_op *op, struct content_answer *a, const struct decision *d, struct str tag, struct str version,
                            bool is_top, struct blob_bytes *b)
{
    (void)op;
    a->decision = *d;
    a->digest = b->digest;
    a->media_type = b->media_type;
    a->size = b->n;
    a->manifest = b;
    a->is_top = is_top;
    text_copy(a->tag, sizeof a->tag, tag);
    text_copy(a->reason_version, sizeof a->reason_version, version);
}

/* ---- the steps of a question ------------------------------------------------------------------ */

/* The repository and what the t: fact says of its tags. */
static enum step step_facts(struct content_op *op, struct content_answer *a, bool *ret_ok)
{
    struct facts *facts = op->c->w->facts;
    uint64_t generation = facts_generation(facts);
    bool degraded = false;

    *ret_ok = false;
    if (!op->repo)
        op->repo = repo_get(op->c->repos, op->ask.repository);
    if (op->repo->tags_known && op->repo->facts_generation == generation) {
        *ret_ok = true;
        return DONE;
    }
    if (op->facts_asked && op->facts_err) { /* with what is held one may still allow, if the customer's own facts stand by grace */
        if (!op->degraded || !op->repo->tags_known)
            return answer_err(op, a, ERR_UNAVAILABLE, "what is known of the tags is not to be had");
        *ret_ok = true;
        return DONE;
    }
    if (op->facts_asked) { /* brought in by on_facts() */
        *ret_ok = true;
        return DONE;
    }
    if (repo_facts_peek(op->repo, &degraded))
        return WAIT_FACTS;
    op->degraded |= degraded;
    if (!degraded)
        op->repo->facts_generation = generation;
    *ret_ok = true;
    return DONE;
}

/* The bytes of a manifest that may be had; DONE with *ret NULL: answered. */
static enum step step_manifest(struct content_op *op, struct content_answer *a, const struct digest *d, struct blob_bytes **ret)
{
    enum err e;
    struct blob_bytes *b = repo_manifest_held(op->repo, d, &e);

    *ret = NULL;
    if (!b && op->manifest && digest_eq(&op->manifest->digest, d))
        b = op->manifest; /* fetched for this question, larger than the cache holds */
    if (b) {
        if (b != op->manifest) {
            struct blob_bytes *keep = op->repo_held ? blob_bytes_ref(b) : NULL;
            if (op->repo_held) {
                blob_bytes_unref(&op->manifest);
                op->manifest = keep;
            }
        }
        *ret = b;
        return DONE;
    }
    if (e)
        return answer_err(op, a, e, "the manifest is refused");
    if (!op->manifest_asked || !digest_eq(&op->manifest_digest, d)) {
        op->want = *d;
        return WAIT_MANIFEST;
    }
    return answer_err(op, a, op->manifest_err ? op->manifest_err : ERR_UPSTREAM, op->detail);
}

static struct digest choose(struct content_op *op, const struct digest *d)
{
    op->chosen = true;
    op->digest = *d;
    return *d;
}

/* What a tag resolves to. DONE with *ret_known: *ret_d or, with *ret_gone, nothing; DONE without: answered. */
static enum step step_resolve(struct content_op *op, struct content_answer *a, struct str name, const struct tag *t, struct digest *ret_d,
                              bool *ret_known, bool *ret_gone)
{
    const struct tag_digest *cur = t ? tag_current(t) : NULL;
    enum err e;

    *ret_known = true;
    *ret_gone = false;
    if (op->chosen) {
        *ret_d = op->digest;
        return DONE;
    }
    if (op->tag_asked && op->tag_err == ERR_NOT_FOUND) {
        *ret_gone = true;
        return DONE;
    }
    if (op->tag_asked || (t && cur && !tag_fresh(t) && tag_failed(t))) { /* the upstream cannot say: verified content does not rot */
        if (cur && op->tag_err != ERR_INVALID && repo_manifest_held(op->repo, &cur->digest, &e)) {
            *ret_d = choose(op, &cur->digest);
            return DONE;
        }
        if (op->tag_asked) {
            *ret_known = false;
            return answer_err(op, a, op->tag_err ? op->tag_err : ERR_UNAVAILABLE, op->detail);
        }
    }
    if (!op->tag_again && t && tag_fresh(t)) {
        *ret_gone = !cur;
        if (cur)
            *ret_d = choose(op, &cur->digest);
        return DONE;
    }
    if (!t && repo_tag_absent(op->repo, name)) {
        *ret_gone = true;
        return DONE;
    }
    *ret_known = false;
    op->want_bytes = !cur || !repo_manifest_held(op->repo, &cur->digest, &e);
    return WAIT_TAG;
}

/* A manifest that the tag stood for a moment ago is not there: the tag may have moved. True: ask for the tag anew. */
static bool tag_anew(struct content_op *op, enum step s, struct content_answer *a)
{
    if (s != DONE || a->err != ERR_NOT_FOUND)
        return false;
    if (op->resolved) { /* it was asked for just now */
        a->err = ERR_UPSTREAM;
        a->detail = "the upstream names a manifest for the tag that it does not have";
        return false;
    }
    if (op->tag_again)
        return false;
    op->tag_again = true;
    a->err = ERR_OK;
    return true;
}

static enum step step_tag(struct content_op *op, const struct asker *who, struct content_answer *a)
{
    struct repo *r = op->repo;
    struct str name = op->ask.request->reference;
    const struct tag *t = repo_tag(r, name);
    struct decision d;
    struct digest digest = {0}, serve = {0};
    struct blob_bytes *b = NULL;
    bool known, gone;
    enum tag_right right;
    enum step s;

    if (!op->chosen && !(t && tag_fresh(t) && tag_current(t)) && rights_tag(r, who, name, t, NULL, &d, &serve) == TAG_DENIED)
        return answer_deny(op, who, a, &d); /* whether it exists or not */
    s = step_resolve(op, a, name, t, &digest, &known, &gone);
    if (!known)
        return s;
    right = rights_tag(r, who, name, t, gone ? NULL : &digest, &d, &serve);
    if (right != TAG_ALLOWED)
        return answer_deny(op, who, a, &d);
    if (gone)
        return answer_err(op, a, ERR_NOT_FOUND, "the upstream has no such tag");
    s = step_manifest(op, a, &serve, &b);
    if (tag_anew(op, s, a)) {
        op->want_bytes = true;
        return WAIT_TAG;
    }
    if (!b)
        return s;
    answer_manifest(op, a, &d, name, t ? t->version : repo_version_of(r, name), true, b);
    return DONE;
}

/* The index says no: look further, once, unless that was done a moment ago. */
static enum step step_unknown(struct content_op *op, const struct asker *who, struct content_answer *a, struct rights *v,
                              enum node_kind kind, const struct digest *d, const struct decision *denial)
{
    if (op->swept && op->sweep_err)
        return answer_err(op, a, ERR_UNAVAILABLE, op->detail);
    if (op->swept || sweep_remembered(op->repo, v))
        return answer_deny(op, who, a, denial);
    op->want_kind = kind;
    op->want = *d;
    return WAIT_SWEEP;
}

/* A signature, an SBOM, a referrers list: for whoever may have what it hangs on. */
static enum step step_subject_tag(struct content_op *op, const struct asker *who, struct content_answer *a,
                                  const struct oci_subject_tag *st)
{
    struct repo *r = op->repo;
    struct str name = op->ask.request->reference;
    struct rights *v = rights_get(r, who);
    struct right_ground g;
    struct digest digest = {0};
    struct blob_bytes *b = NULL;
    bool known, gone;
    enum step s;

    switch (rights_digest(r, v, who, NODE_MANIFEST, &st->subject, &g)) {
    case RIGHT_NO:
        return step_unknown(op, who, a, v, NODE_MANIFEST, &st->subject, &g.d);
    case RIGHT_NEAR:
        return answer_deny(op, who, a, &g.d);
    case RIGHT_YES:
        break;
    }
    s = step_resolve(op, a, name, repo_tag(r, name), &digest, &known, &gone);
    if (!known)
        return s;
    if (gone)
        return answer_err(op, a, ERR_NOT_FOUND, "the upstream has no such tag");
    s = step_manifest(op, a, &digest, &b);
    if (tag_anew(op, s, a)) {
        op->want_bytes = true;
        return WAIT_TAG;
    }
    if (!b)
        return s;
    answer_manifest(op, a, &g.d, g.tag ? g.tag->name : S(""), g.tag ? g.tag->version : S(""), false, b);
    return DONE;
}

static bool pending(struct repo *r, struct rights *v, const struct asker *who, const struct digest *d)
{
    uint32_t node = closureindex_find(r->index, NODE_MANIFEST, d);
    uint32_t root = node == CI_NONE ? CI_NONE : closureindex_root_at(r->index, node);
    return root != CI_NONE && rights_pending(r, v, who, root);
}

static enum step step_digest(struct content_op *op, const struct asker *who, struct content_answer *a)
{
    struct repo *r = op->repo;
    enum node_kind kind = op->ask.request->kind == OCI_BLOB ? NODE_BLOB : NODE_MANIFEST;
    const struct digest *d = &op->ask.request->digest;
    struct rights *v = rights_get(r, who);
    struct blob_bytes *b = NULL;
    struct right_ground g;
    enum step s;

    switch (rights_digest(r, v, who, kind, d, &g)) {
    case RIGHT_NO:
        if (kind == NODE_MANIFEST && !op->proof_asked && pending(r, v, who, d)) { /* its own document says what it hangs on */
            op->proof_asked = true;
            op->want = *d;
            enum err e;
            if (!repo_manifest_held(r, d, &e))
                return e ? answer_deny(op, who, a, &g.d) : WAIT_MANIFEST;
            return step_digest(op, who, a);
        }
        return step_unknown(op, who, a, v, kind, d, &g.d);
    case RIGHT_NEAR:
        return answer_deny(op, who, a, &g.d);
    case RIGHT_YES:
        break;
    }
    if (kind == NODE_BLOB) {
        struct node n;
        closureindex_node(r->index, closureindex_find(r->index, NODE_BLOB, d), &n);
        a->decision = g.d;
        a->digest = *d;
        a->size = n.size;
        text_copy(a->tag, sizeof a->tag, g.tag ? g.tag->name : S(""));
        text_copy(a->reason_version, sizeof a->reason_version, g.tag ? g.tag->version : S(""));
        return DONE;
    }
    s = step_manifest(op, a, d, &b);
    if (!b)
        return s;
    answer_manifest(op, a, &g.d, g.tag ? g.tag->name : S(""), g.tag ? g.tag->version : S(""), g.direct, b);
    return DONE;
}

static enum step step_ask(struct content_op *op, struct content_answer *a)
{
    struct asker who = asker_of(op);
    const struct oci_request *q = op->ask.request;
    struct oci_subject_tag st;
    struct decision d;
    bool ok;
    enum step s;

    *a = (struct content_answer){.detail = ""};
    if (!op->ask.repository) { /* as a repository that exists and is not licensed */
        struct asker nobody = who;
        nobody.repository = S("");
        rights_deny(&nobody, q->is_digest, &d);
        return answer_deny(op, &who, a, &d);
    }
    if (!rights_possible(&who)) {
        rights_deny(&who, q->is_digest, &d);
        return answer_deny(op, &who, a, &d);
    }
    s = step_facts(op, a, &ok);
    if (!ok)
        return s;
    if (q->is_digest)
        return step_digest(op, &who, a);
    if (oci_subject_tag_parse(q->reference, &st))
        return step_subject_tag(op, &who, a, &st);
    return step_tag(op, &who, a);
}

/* ---- tags/list -------------------------------------------------------------------------------- */

static bool lists_subject(struct repo *r, struct rights *v, const struct asker *who, struct str tag, bool *ret_is)
{
    struct oci_subject_tag st;
    struct right_ground g;
    *ret_is = oci_subject_tag_parse(tag, &st);
    return *ret_is && rights_digest(r, v, who, NODE_MANIFEST, &st.subject, &g) == RIGHT_YES;
}

static void tags_filter(struct repo *r, struct rights *v, const struct asker *who)
{
    bool whole = rights_by_digest(who) || rights_by_pin(who), is_subject;
    v->list.at = mem_realloc(v->list.at, (r->list.n + 1) * sizeof(*v->list.at));
    v->list.n = 0;
    for (size_t i = 0; i < r->list.n; i++) {
        struct decision d;
        struct digest serve;
        bool in = lists_subject(r, v, who, r->list.names[i], &is_subject);
        whole |= is_subject;
        if (!is_subject) {
            const struct tag *t = repo_tag(r, r->list.names[i]);
            const struct tag_digest *cur = t ? tag_current(t) : NULL;
            in = rights_tag(r, who, r->list.names[i], t, cur ? &cur->digest : NULL, &d, &serve) == TAG_ALLOWED;
            if (d.valid_until_s < v->valid_until_s)
                v->valid_until_s = d.valid_until_s;
        }
        if (in)
            v->list.at[v->list.n++] = (uint32_t)i;
    }
    v->list.have = true;
    v->list.whole = whole;
    v->list.list_generation = r->list.generation;
    v->list.repository_epoch = r->repository_epoch;
    v->list.records_epoch = r->tags_epoch;
    v->list.tags_generation = r->generation;
    v->list.index_generation = closureindex_generation(r->index);
    v->list.index_nodes = closureindex_nodes(r->index);
}

static bool tags_filtered(const struct repo *r, const struct rights *v)
{
    if (!v->list.have || v->list.list_generation != r->list.generation || v->list.repository_epoch != r->repository_epoch ||
        v->list.records_epoch != r->tags_epoch)
        return false;
    return !v->list.whole || (v->list.tags_generation == r->generation && v->list.index_generation == closureindex_generation(r->index) &&
                              v->list.index_nodes == closureindex_nodes(r->index));
}

/* DONE: a->err, and op->c->tags holds the first *ret_n. */
static enum step step_tags(struct content_op *op, struct content_answer *a, size_t *ret_n)
{
    struct content *c = op->c;
    struct asker who = asker_of(op);
    bool ok;
    enum step s;

    *a = (struct content_answer){.detail = ""};
    *ret_n = 0;
    if (!op->ask.repository || !rights_possible(&who))
        return op->degraded ? answer_err(op, a, ERR_UNAVAILABLE, "facts too old to deny by") : DONE;
    s = step_facts(op, a, &ok);
    if (!ok)
        return s;
    struct repo *r = op->repo;
    if (!op->list_asked && !repo_list_fresh(r))
        return WAIT_LIST;
    if (op->list_asked && op->list_err == ERR_NOT_FOUND)
        return answer_err(op, a, ERR_NOT_FOUND, "the upstream has no such repository");
    if (op->list_asked && op->list_err && !r->list.have)
        return answer_err(op, a, op->list_err, op->detail);
    struct rights *v = rights_get(r, &who);
    if (rights_by_digest(&who) && !op->swept && !sweep_remembered(r, v)) { /* which tags stand for the granted digests */
        op->want_kind = NODE_NONE;
        return WAIT_SWEEP;
    }
    if (op->swept && op->sweep_err)
        return answer_err(op, a, ERR_UNAVAILABLE, op->detail);
    if (!tags_filtered(r, v))
        tags_filter(r, v, &who);
    if (v->list.n > c->cap_tags) {
        c->cap_tags = v->list.n;
        c->tags = mem_realloc(c->tags, c->cap_tags * sizeof(*c->tags));
    }
    for (size_t i = 0; i < v->list.n; i++)
        c->tags[i] = r->list.names[v->list.at[i]];
    *ret_n = v->list.n;
    if (*ret_n == 0 && op->degraded)
        return answer_err(op, a, ERR_UNAVAILABLE, "facts too old to deny by");
    return DONE;
}

/* ---- referrers -------------------------------------------------------------------------------- */

/* DONE: a->err, and *ret_json. */
static enum step step_referrers(struct content_op *op, struct content_answer *a, struct str *ret_json)
{
    struct asker who = asker_of(op);
    const struct digest *d = &op->ask.request->digest;
    struct right_ground g;
    bool ok;
    enum step s;

    *a = (struct content_answer){.detail = ""};
    *ret_json = str_c(EMPTY_INDEX);
    if (!op->ask.repository || !rights_possible(&who))
        return op->degraded ? answer_err(op, a, ERR_UNAVAILABLE, "facts too old to deny by") : DONE;
    s = step_facts(op, a, &ok);
    if (!ok)
        return s;
    struct repo *r = op->repo;
    struct rights *v = rights_get(r, &who);
    enum right right = rights_digest(r, v, &who, NODE_MANIFEST, d, &g);
    if (right == RIGHT_NO && !op->proof_asked && pending(r, v, &who, d)) {
        enum err e;
        op->proof_asked = true;
        op->want = *d;
        if (!repo_manifest_held(r, d, &e) && !e)
            return WAIT_MANIFEST;
        right = rights_digest(r, rights_get(r, &who), &who, NODE_MANIFEST, d, &g);
    }
    if (right != RIGHT_YES) {
        s = right == RIGHT_NO ? step_unknown(op, &who, a, rights_get(r, &who), NODE_MANIFEST, d, &g.d) : DONE;
        sb_free(&a->message); /* nobody is told: the list is empty */
        return s;
    }
    uint32_t node = closureindex_find(r->index, NODE_MANIFEST, d);
    const struct referrers *x = repo_referrers_held(r, node);
    bool failed_just_now = x && x->json && x->failed_ms && repos_now_ms(op->c->repos) - x->failed_ms < op->c->w->cfg->cache.negative_ms;
    if (!op->referrers_asked && !repo_referrers_fresh(r, node) && !failed_just_now)
        return WAIT_REFERRERS;
    if (!x || !x->json)
        return answer_err(op, a, op->referrers_err ? op->referrers_err : ERR_UNAVAILABLE, op->detail);
    *ret_json = (struct str){x->json, x->n};
    return DONE;
}

/* ---- waiting ---------------------------------------------------------------------------------- */

static struct content_op *op_of(void *ctx)
{
    struct content_op *op = ctx;
    AN(op->magic == OP_MAGIC);
    return op;
}

static void op_free(struct content_op *op)
{
    if (op->repo_held)
        repo_unref(&op->repo);
    blob_bytes_unref(&op->manifest);
    op->magic = 0;
    mem_free(op);
}

static void op_wait(struct content_op *op, enum step s);

/* Go on from the beginning; ends with the callback, after which op is gone. */
static void op_run(struct content_op *op)
{
    struct content_answer a;
    struct str json;
    size_t n;
    enum step s;

    repos_worker(op->c->repos)->on_behalf = customer_mark(op->ask.customer);
    switch (op->kind) {
    case OP_ASK:
        s = step_ask(op, &a);
        if (s == DONE) {
            op->cb(op->ctx, &a);
            sb_free(&a.message);
        }
        break;
    case OP_TAGS:
        s = step_tags(op, &a, &n);
        if (s == DONE)
            op->tags_cb(op->ctx, a.err, op->c->tags, n, a.detail);
        break;
    case OP_REFERRERS:
    default:
        s = step_referrers(op, &a, &json);
        if (s == DONE)
            op->referrers_cb(op->ctx, a.err, json, a.detail);
        break;
    }
    if (s == DONE)
        op_free(op);
    else
        op_wait(op, s);
}

static void note(struct content_op *op, const struct flight_end *e)
{
    if (!e->err)
        return;
    snprintf(op->detail, sizeof op->detail, "%s", e->detail);
    op->retry_after_s = e->retry_after_s;
}

static void on_facts(void *ctx, enum err err, struct fact *f, bool degraded)
{
    struct content_op *op = op_of(ctx);
    op->facts = NULL;
    op->facts_asked = true;
    op->facts_err = err;
    if (!err) {
        repo_facts_put(op->repo, f);
        op->degraded |= degraded;
    }
    op_run(op);
}

static void on_tag(void *ctx, const struct flight_end *e)
{
    struct content_op *op = op_of(ctx);
    const struct tag *t = repo_tag(op->repo, op->ask.request->reference);
    const struct tag_digest *cur = t ? tag_current(t) : NULL;
    op->on = NULL;
    op->tag_asked = true;
    op->tag_err = e->err;
    note(op, e);
    if (!e->err && cur) { /* from here on this question is about that digest, whatever the tag does */
        op->resolved = true;
        choose(op, &cur->digest);
        if (e->manifest) {
            blob_bytes_unref(&op->manifest);
            op->manifest = blob_bytes_ref(e->manifest);
        }
    } else if (!e->err) {
        op->tag_err = ERR_UNAVAILABLE;
    }
    op_run(op);
}

static void on_manifest(void *ctx, const struct flight_end *e)
{
    struct content_op *op = op_of(ctx);
    op->on = NULL;
    op->manifest_asked = true;
    op->manifest_err = e->err;
    op->manifest_digest = op->want;
    note(op, e);
    if (!e->err && e->manifest) {
        blob_bytes_unref(&op->manifest);
        op->manifest = blob_bytes_ref(e->manifest);
    }
    op_run(op);
}

static void on_sweep(void *ctx, const struct flight_end *e)
{
    struct content_op *op = op_of(ctx);
    op->sweep = NULL;
    op->swept = true;
    op->sweep_err = e->err;
    note(op, e);
    op_run(op);
}

static void on_list(void *ctx, const struct flight_end *e)
{
    struct content_op *op = op_of(ctx);
    op->on = NULL;
    op->list_asked = true;
    op->list_err = e->err;
    note(op, e);
    op_run(op);
}

static void on_referrers(void *ctx, const struct flight_end *e)
{
    struct content_op *op = op_of(ctx);
    op->on = NULL;
    op->referrers_asked = true;
    op->referrers_err = e->err;
    note(op, e);
    op_run(op);
}

static void op_wait(struct content_op *op, enum step s)
{
    if (!op->repo_held) {
        repo_ref(op->repo);
        op->repo_held = true;
    }
    switch (s) {
    case WAIT_FACTS:
        op->facts = facts_get(op->c->w->facts, FACT_TAGS, str_c(op->repo->repository_id), on_facts, op);
        return;
    case WAIT_TAG:
        op->tag_asked = op->resolved = op->chosen = false;
        op->on = repo_resolve(op->repo, op->ask.request->reference, op->want_bytes, &op->w, on_tag, op);
        return;
    case WAIT_MANIFEST:
        op->on = repo_manifest(op->repo, &op->want, &op->w, on_manifest, op);
        return;
    case WAIT_SWEEP: {
        const struct asker who = asker_of(op);
        op->sw.kind = op->want_kind;
        op->sw.digest = op->want;
        op->sweep = sweep_join(op->c->sweeps, op->repo, &who, &op->sw, on_sweep, op);
        return;
    }
    case WAIT_LIST:
        op->on = repo_list(op->repo, &op->w, on_list, op);
        return;
    case WAIT_REFERRERS:
        op->on =
            repo_referrers(op->repo, closureindex_find(op->repo->index, NODE_MANIFEST, &op->ask.request->digest), &op->w, on_referrers, op);
        return;
    case DONE:
        break;
    }
    WRONG("nothing to wait for");
}

/* ---- the calls -------------------------------------------------------------------------------- */

static struct content_op op_begin(struct content *c, enum op_kind kind, const struct content_ask *ask, void *ctx)
{
    return (struct content_op){.magic = OP_MAGIC, .kind = kind, .c = c, .ask = *ask, .ctx = ctx, .degraded = ask->degraded};
}

static struct content_op *op_keep(const struct content_op *op)
{
    struct content_op *kept = mem_alloc(sizeof(*kept));
    *kept = *op;
    return kept;
}

struct content_op *content_ask(struct content *c, const struct content_ask *ask, struct content_answer *now, content_cb *cb, void *ctx)
{
    struct content_op here = op_begin(c, OP_ASK, ask, ctx), *op;
    enum step s = step_ask(&here, now);
    if (s == DONE)
        return NULL;
    op = op_keep(&here);
    op->cb = cb;
    op_wait(op, s);
    return op;
}

static void on_kick(void *ctx)
{
    struct content *c = ctx;
    struct content_op *op = c->kicked_first, *next;
    c->kicked_first = c->kicked_last = NULL;
    for (; op; op = next) { /* one that is canceled meanwhile stays here, marked */
        next = op->next_kicked;
        op->kicked = false;
        if (op->canceled)
            op_free(op);
        else
            op_run(op);
    }
}

static struct content_op *op_kick(struct content_op *op)
{
    struct content *c = op->c;
    if (!c->kick)
        c->kick = timer_new(c->w->loop, on_kick, c);
    if (c->kicked_last)
        c->kicked_last->next_kicked = op;
    else
        c->kicked_first = op;
    c->kicked_last = op;
    op->kicked = true;
    timer_set(c->kick, 0);
    return op;
}

struct content_op *content_tags(struct content *c, const struct content_ask *ask, content_tags_cb *cb, void *ctx)
{
    const struct content_op here = op_begin(c, OP_TAGS, ask, ctx);
    struct content_op *op = op_keep(&here);
    op->tags_cb = cb;
    return op_kick(op);
}

struct content_op *content_referrers(struct content *c, const struct content_ask *ask, content_referrers_cb *cb, void *ctx)
{
    const struct content_op here = op_begin(c, OP_REFERRERS, ask, ctx);
    struct content_op *op = op_keep(&here);
    op->referrers_cb = cb;
    return op_kick(op);
}

void content_cancel(struct content_op **pop)
{
    struct content_op *op = *pop;
    *pop = NULL;
    if (!op)
        return;
    op = op_of(op);
    if (op->kicked) {
        op->canceled = true;
        return;
    }
    if (op->on)
        repo_leave(op->on, &op->w);
    if (op->sweep)
        sweep_leave(op->sweep, &op->sw);
    if (op->facts)
        facts_cancel(&op->facts);
    op_free(op);
}

struct repos *content_repos(struct content *c)
{
    return c->repos;
}

void content_free(struct content **pc)
{
    struct content *c = *pc;
    *pc = NULL;
    if (!c)
        return;
    while (c->kicked_first) {
        struct content_op *op = c->kicked_first;
        c->kicked_first = op->next_kicked;
        op_free(op);
    }
    timer_free(&c->kick);
    sweeps_free(&c->sweeps);
    repos_free(&c->repos);
    mem_free(c->tags);
    mem_free(c);
}

bool content_asks_upstream(const struct content_op *op)
{
    return op->on != NULL || op->sweep != NULL;
}

void content_shed(struct content *c)
{
    manifestcache_shrink(repos_manifests(c->repos), manifestcache_bytes(repos_manifests(c->repos)) / 2);
}

void content_held(const struct content *c, size_t *ret_manifests, size_t *ret_bytes)
{
    *ret_manifests = manifestcache_count(repos_manifests(c->repos));
    *ret_bytes = manifestcache_bytes(repos_manifests(c->repos));
}
