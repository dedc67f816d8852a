/* Repositories of a worker, bounded; their tags, and the digests of these over time. */
#include "contentrepo.h"

#include <string.h>

#include "pullgate/clock.h"
#include "pullgate/log.h"
#include "pullgate/mem.h"

#include "contentflight.h"
#include "pullevent.h"
#include "rights.h"
#include "worker.h"

#define REPO_MAGIC 0x7e9051edu

static const size_t REPOS_MAX = 2048;       /* repositories held a worker; the least recently used goes first */
static const size_t NODES_MAX = 1000000;    /* index nodes a worker, about 100 bytes each */
static const uint32_t TAG_DIGESTS_MAX = 64; /* digests of one tag that only this worker has seen */

struct repos {
    struct worker *w;
    struct manifestcache *manifests;
    struct repo **buckets;
    size_t n_buckets;
    size_t count;
    struct repo *newest, *oldest;
    struct flights *flights;
};

/* ---- repositories ----------------------------------------------------------------------------- */

struct repos *repos_new(struct worker *w)
{
    struct repos *rs = NEW(struct repos);
    rs->w = w;
    rs->manifests = manifestcache_new((size_t)w->cfg->cache.manifest_bytes, (size_t)w->cfg->cache.manifest_bytes);
    rs->flights = flights_new(rs);
    rs->n_buckets = 4096;
    rs->buckets = mem_calloc(rs->n_buckets, sizeof(*rs->buckets));
    return rs;
}

struct manifestcache *repos_manifests(struct repos *rs)
{
    return rs->manifests;
}

struct worker *repos_worker(struct repos *rs)
{
    return rs->w;
}

struct flights *repos_flights(struct repos *rs)
{
    return rs->flights;
}

uint64_t repos_now_ms(struct repos *rs)
{
    return loop_now_ms(rs->w->loop);
}

static void lru_unlink(struct repos *rs, struct repo *r)
{
    if (r->newer)
        r->newer->older = r->older;
    else
        rs->newest = r->older;
    if (r->older)
        r->older->newer = r->newer;
    else
        rs->oldest = r->newer;
    r->newer = r->older = NULL;
}

static void lru_push(struct repos *rs, struct repo *r)
{
    r->older = rs->newest;
    if (rs->newest)
        rs->newest->newer = r;
    else
        rs->oldest = r;
    rs->newest = r;
}

void repo_referrers_drop(struct repo *r)
{
    for (size_t i = 0; i < sizeof r->referrers / sizeof *r->referrers; i++) {
        while (r->referrers[i]) {
            struct referrers *x = r->referrers[i];
            r->referrers[i] = x->next;
            mem_free(x->json);
            mem_free(x);
        }
    }
    r->referrers_bytes = 0;
}

static void tag_free(struct tag *t)
{
    mem_free(t->version_mem);
    mem_free(t->channel_mem);
    mem_free(t->digests);
    mem_free(t);
}

static void repo_destroy(struct repos *rs, struct repo *r)
{
    AN(r->refs == 0);
    struct repo **at = &rs->buckets[r->hash & (rs->n_buckets - 1)];
    while (*at != r)
        at = &(*at)->chain;
    *at = r->chain;
    lru_unlink(rs, r);
    rs->count--;
    rights_drop(r);
    for (uint32_t i = 0; i < r->n_tags; i++)
        tag_free(r->tags[i]);
    mem_free(r->tags);
    mem_free(r->tag_table);
    fact_unref(&r->tags_fact);
    closureindex_free(&r->index);
    repo_referrers_drop(r);
    mem_free(r->list.names);
    mem_free(r->list.mem);
    sb_free(&r->scratch);
    mem_free(r->repository_id);
    mem_free(r->upstream_id);
    mem_free(r->upstream_repository);
    mem_free(r->name);
    mem_free(r->tag_template);
    r->magic = 0;
    mem_free(r);
}

static size_t nodes_held(const struct repos *rs)
{
    size_t n = 0;
    for (const struct repo *r = rs->newest; r; r = r->older)
        n += closureindex_nodes(r->index);
    return n;
}

void repos_shrink(struct repos *rs)
{
    size_t nodes = nodes_held(rs);
    struct repo *r = rs->oldest;
    while (r && (rs->count >= REPOS_MAX || nodes > NODES_MAX)) {
        struct repo *newer = r->newer;
        if (r->refs == 0) {
            nodes -= closureindex_nodes(r->index);
            repo_destroy(rs, r);
        }
        r = newer;
    }
}

static void version_set(struct repo *r, struct tag *t, struct str recorded)
{
    struct str v = recorded.n || t->is_subject || t->name.n == 0 ? recorded : repo_version_of(r, t->name);
    if (t->version_mem && str_eq(v, t->version))
        return;
    char *mem = str_dup(v);
    mem_free(t->version_mem);
    t->version_mem = mem;
    t->version = str_c(mem);
}

static void fact_of_repository(struct repo *r, const struct fact *f)
{
    const struct fact_repository *fr = f->repository;
    bool template_moved = !r->tag_template || strcmp(r->tag_template, fr->tag_template) != 0;
    mem_free(r->name);
    mem_free(r->tag_template);
    r->name = mem_strdup(fr->name);
    r->tag_template = mem_strdup(fr->tag_template);
    r->repository_epoch = f->epoch;
    r->generation++;
    if (!template_moved)
        return;
    r->tags_epoch = 0; /* records are read again, tags without one by the template */
    for (uint32_t i = 0; i < r->n_tags; i++)
        if (!r->tags[i]->in_fact)
            version_set(r, r->tags[i], S(""));
    if (r->tags_fact)
        repo_facts_put(r, r->tags_fact);
}

static void repo_trim(struct repo *r);

static struct repo *repo_find(struct repos *rs, const char *repository_id, const char *upstream_id, const char *upstream_repository)
{
    uint64_t hash = str_hash(str_c(repository_id));
    struct repo *r = rs->buckets[hash & (rs->n_buckets - 1)];
    while (r && (r->hash != hash || strcmp(r->repository_id, repository_id) != 0 || strcmp(r->upstream_id, upstream_id) != 0 ||
                 strcmp(r->upstream_repository, upstream_repository) != 0))
        r = r->chain;
    return r;
}

struct repo *repo_get(struct repos *rs, const struct fact *f)
{
    const struct fact_repository *fr = f->repository;
    uint64_t hash = str_hash(str_c(fr->id));
    struct repo *r = repo_find(rs, fr->id, fr->upstream_id, fr->upstream_repository);
    if (!r) {
        repos_shrink(rs);
        r = NEW(struct repo);
        r->magic = REPO_MAGIC;
        r->repos = rs;
        r->hash = hash;
        r->repository_id = mem_strdup(fr->id);
        r->upstream_id = mem_strdup(fr->upstream_id);
        r->upstream_repository = mem_strdup(fr->upstream_repository);
        r->generation = 1;
        const struct config *cfg = rs->w->cfg;
        uint64_t nodes = cfg->limits.closure_nodes, depth = cfg->limits.closure_depth;
        r->index = closureindex_new(nodes && nodes < CLOSURE_MAX_NODES ? (uint32_t)nodes : CLOSURE_MAX_NODES,
                                    depth && depth < CLOSURE_MAX_DEPTH ? (unsigned)depth : CLOSURE_MAX_DEPTH);
        r->chain = rs->buckets[hash & (rs->n_buckets - 1)];
        rs->buckets[hash & (rs->n_buckets - 1)] = r;
        rs->count++;
        lru_push(rs, r);
    } else if (r != rs->newest) {
        lru_unlink(rs, r);
        lru_push(rs, r);
    }
    if (r->repository_epoch != f->epoch || !r->name)
        fact_of_repository(r, f);
    repo_trim(r);
    return r;
}

struct repo *repo_ref(struct repo *r)
{
    r->refs++;
    return r;
}

void repo_unref(struct repo **pr)
{
    struct repo *r = *pr;
    *pr = NULL;
    if (!r)
        return;
    AN(r->magic == REPO_MAGIC && r->refs > 0);
    r->refs--;
}

/* ---- tags ------------------------------------------------------------------------------------- */

struct tag *repo_tag(struct repo *r, struct str name)
{
    if (!r->tag_table_n)
        return NULL;
    for (size_t i = (size_t)str_hash(name) & (r->tag_table_n - 1);; i = (i + 1) & (r->tag_table_n - 1)) {
        if (!r->tag_table[i])
            return NULL;
        struct tag *t = r->tags[r->tag_table[i] - 1];
        if (str_eq(t->name, name))
            return t;
    }
}

static void tag_table_put(struct repo *r, const struct tag *t)
{
    size_t i = (size_t)str_hash(t->name) & (r->tag_table_n - 1);
    while (r->tag_table[i])
        i = (i + 1) & (r->tag_table_n - 1);
    r->tag_table[i] = t->id + 1;
}

struct str repo_version_of(struct repo *r, struct str tag)
{
    sb_reset(&r->scratch);
    if (!oci_version_of_tag(str_c(r->tag_template), tag, &r->scratch))
        return S("");
    return sb_str(&r->scratch);
}

static struct tag *tag_make(struct repo *r, struct str name)
{
    struct tag *t = repo_tag(r, name);
    if (t)
        return t;
    if (r->n_tags == r->cap_tags) {
        r->cap_tags = r->cap_tags ? r->cap_tags * 2 : 16;
        r->tags = mem_realloc(r->tags, r->cap_tags * sizeof(*r->tags));
    }
    t = mem_zalloc(sizeof(*t) + name.n + 1);
    t->repo = r;
    char *text = (char *)(t + 1);
    if (name.n)
        memcpy(text, name.p, name.n);
    t->name = (struct str){text, name.n};
    t->id = r->n_tags;
    t->current = TAG_NO_DIGEST;
    t->is_subject = oci_subject_tag_parse(t->name, &t->subject);
    r->tags[r->n_tags++] = t;
    version_set(r, t, S(""));
    if ((size_t)r->n_tags * 2 > r->tag_table_n) {
        mem_free(r->tag_table);
        r->tag_table_n = r->tag_table_n ? r->tag_table_n * 2 : 64;
        r->tag_table = mem_calloc(r->tag_table_n, sizeof(*r->tag_table));
        for (uint32_t i = 0; i < r->n_tags; i++)
            tag_table_put(r, r->tags[i]);
    } else {
        tag_table_put(r, t);
    }
    return t;
}

static uint32_t digest_at(const struct tag *t, const struct digest *d)
{
    for (uint32_t i = 0; i < t->n_digests; i++)
        if (digest_eq(&t->digests[i].digest, d))
            return i;
    return TAG_NO_DIGEST;
}

/* The index's side of an edge: the digest is a root, of this tag or of what the tag hangs on. */
static uint32_t edge_index(struct tag *t, const struct digest *d)
{
    struct closureindex *ci = t->repo->index;
    uint32_t root = closureindex_add_root(ci, d, MEDIA_UNKNOWN, 0);
    if (t->is_subject)
        closureindex_attach(ci, closureindex_add_manifest(ci, &t->subject.subject), root, true);
    else
        closureindex_add_tag(ci, root, t->id);
    return root;
}

static uint32_t edge_add(struct tag *t, const struct digest *d)
{
    if (t->n_digests == t->cap_digests) {
        t->cap_digests = t->cap_digests ? t->cap_digests * 2 : 1;
        t->digests = mem_realloc(t->digests, t->cap_digests * sizeof(*t->digests));
    }
    uint32_t i = t->n_digests++;
    t->digests[i] = (struct tag_digest){.digest = *d, .root = edge_index(t, d), .fact_last_s = -1};
    t->repo->generation++;
    return i;
}

static void edge_remove(struct tag *t, uint32_t i)
{
    memmove(t->digests + i, t->digests + i + 1, (t->n_digests - i - 1) * sizeof(*t->digests));
    t->n_digests--;
    if (t->current == i)
        t->current = TAG_NO_DIGEST;
    else if (t->current != TAG_NO_DIGEST && t->current > i)
        t->current--;
    t->repo->generation++;
}

/* Of digests that only this worker knows, the one that was left longest ago goes. */
static void edges_bound(struct tag *t)
{
    while (t->n_digests > TAG_DIGESTS_MAX) {
        uint32_t oldest = TAG_NO_DIGEST;
        for (uint32_t i = 0; i < t->n_digests; i++) {
            const struct tag_digest *e = &t->digests[i];
            if (e->fact_last_s == -1 && e->until_s != 0 && (oldest == TAG_NO_DIGEST || e->until_s < t->digests[oldest].until_s))
                oldest = i;
        }
        if (oldest == TAG_NO_DIGEST)
            return;
        edge_remove(t, oldest);
    }
}

void repo_tag_edge(struct repo *r, struct str name, const struct digest *d, int64_t until_s)
{
    struct tag *t = tag_make(r, name);
    if (digest_at(t, d) != TAG_NO_DIGEST)
        return;
    uint32_t i = edge_add(t, d);
    t->digests[i].own = true;
    t->digests[i].until_s = until_s;
}

const struct tag_digest *tag_current(const struct tag *t)
{
    return t->current == TAG_NO_DIGEST ? NULL : &t->digests[t->current];
}

bool tag_fresh(const struct tag *t)
{
    const struct config *cfg = t->repo->repos->w->cfg;
    if (!t->resolved_ms)
        return false;
    return repos_now_ms(t->repo->repos) - t->resolved_ms < (t->gone ? cfg->cache.negative_ms : cfg->cache.tag_freshness_ms);
}

bool tag_failed(const struct tag *t)
{
    return t->failed_ms && repos_now_ms(t->repo->repos) - t->failed_ms < t->repo->repos->w->cfg->cache.negative_ms;
}

bool repo_tag_absent(struct repo *r, struct str name)
{
    uint64_t h = str_hash(name);
    return r->absent[h % REPO_ABSENT_TAGS].hash == h && repos_now_ms(r->repos) < r->absent[h % REPO_ABSENT_TAGS].until_ms;
}

/* ---- what the workers of one proxy tell each other ------------------------------------------------ */

/* A client resolves a tag over one connection and asks for the digest over the next, which may be another worker's: that one
 * hears of the tag in the same moment, so that its memory of what there is not makes no wrong no of it. */
struct note {
    struct worker *to;
    char *repository_id, *upstream_id, *upstream_repository;
    char *tag; /* NULL: the digest hangs on the subject */
    struct digest digest, subject;
    enum media_type media_type;
    uint64_t size;
};

static void tag_points_at(struct tag *t, uint32_t at);
static bool hang(struct repo *r, const struct digest *subject, const struct digest *d, enum media_type mt, uint64_t size);

static void note_free(struct note *n)
{
    mem_free(n->repository_id);
    mem_free(n->upstream_id);
    mem_free(n->upstream_repository);
    mem_free(n->tag);
    mem_free(n);
}

static void on_note(void *arg)
{
    struct note *n = arg;
    struct repos *rs = n->to->content != NULL ? content_repos(n->to->content) : NULL; /* NULL: this worker has ended */
    struct repo *r = rs != NULL ? repo_find(rs, n->repository_id, n->upstream_id, n->upstream_repository) : NULL;

    if (r != NULL && n->tag != NULL) { /* a repository that nobody asked for here has no memory to mend */
        struct tag *t = tag_make(r, str_c(n->tag));
        uint32_t at = digest_at(t, &n->digest);
        tag_points_at(t, at != TAG_NO_DIGEST ? at : edge_add(t, &n->digest));
        edges_bound(t);
    } else if (r != NULL) {
        hang(r, &n->subject, &n->digest, n->media_type, n->size);
    }
    note_free(n);
}

/* tag or subject: what is told of the digest. */
static void tell_siblings(struct repo *r, const struct tag *t, const struct digest *subject, const struct digest *d, enum media_type mt,
                          uint64_t size)
{
    struct worker *w = r->repos->w;

    for (unsigned i = 0; i < w->proxy->n_workers; i++) {
        struct worker *to = w->proxy->workers[i];
        if (to == NULL || to == w)
            continue;
        struct note *n = NEW(struct note);
        n->to = to;
        n->repository_id = mem_strdup(r->repository_id);
        n->upstream_id = mem_strdup(r->upstream_id);
        n->upstream_repository = mem_strdup(r->upstream_repository);
        n->digest = *d;
        n->media_type = mt;
        n->size = size;
        if (t)
            n->tag = str_dup(t->name);
        else
            n->subject = *subject;
        loop_post(to->loop, on_note, n);
    }
}

/* True: that was not known. Whether it does hang there, its own document has to say (closureindex_load()). */
static bool hang(struct repo *r, const struct digest *subject, const struct digest *d, enum media_type mt, uint64_t size)
{
    uint32_t root = closureindex_add_root(r->index, d, mt, size);
    if (!closureindex_attach(r->index, closureindex_add_manifest(r->index, subject), root, false))
        return false;
    r->generation++;
    return true;
}

void repo_hang(struct repo *r, const struct digest *subject, const struct digest *d, enum media_type mt, uint64_t size)
{
    if (hang(r, subject, d, mt, size))
        tell_siblings(r, NULL, subject, d, mt, size);
}

/* The tag resolves to its digest `at`, as of this moment. */
static void tag_points_at(struct tag *t, uint32_t at)
{
    struct repo *r = t->repo;
    int64_t now_s = clock_now_s();

    for (uint32_t i = 0; i < t->n_digests; i++) {
        if (i != at && t->digests[i].until_s == 0) {
            t->digests[i].until_s = now_s; /* it was that until now, as far as anybody can tell */
            r->generation++;
        }
    }
    if (t->digests[at].until_s != 0 || t->current != at)
        r->generation++;
    t->digests[at].until_s = 0;
    t->digests[at].own = true;
    t->current = at;
    t->gone = false;
    t->resolved_ms = repos_now_ms(r->repos);
    t->failed_ms = 0;
}

/* The upstream says: the tag is this digest. */
void repo_tag_resolved(struct repo *r, struct str name, const struct digest *d, enum media_type mt, uint64_t size)
{
    struct tag *t = tag_make(r, name);
    uint32_t at = digest_at(t, d);
    bool moved = at == TAG_NO_DIGEST || t->current != at;
    bool tell = at == TAG_NO_DIGEST || (t->digests[at].fact_last_s != 0 && t->digests[at].until_s != 0);

    tag_points_at(t, at != TAG_NO_DIGEST ? at : edge_add(t, d));
    edges_bound(t);
    if (moved)
        tell_siblings(r, t, NULL, d, mt, size);
    if (tell && r->repos->w->events)
        pullevent_tag(r->repos->w->events, str_c(r->repository_id), t->name, d, mt, size);
}

/* The upstream says: there is no such tag. What it was stays pullable by digest where the grants say so. */
void repo_tag_vanished(struct repo *r, struct str name)
{
    struct tag *t = repo_tag(r, name);
    uint64_t h = str_hash(name);
    r->absent[h % REPO_ABSENT_TAGS].hash = h;
    r->absent[h % REPO_ABSENT_TAGS].until_ms = repos_now_ms(r->repos) + r->repos->w->cfg->cache.negative_ms;
    if (!t)
        return;
    for (uint32_t i = 0; i < t->n_digests; i++) {
        if (t->digests[i].until_s == 0) {
            t->digests[i].until_s = clock_now_s();
            r->generation++;
        }
    }
    t->current = TAG_NO_DIGEST;
    t->gone = true;
    t->resolved_ms = repos_now_ms(r->repos);
    t->failed_ms = 0;
}

/* ---- the t: fact ------------------------------------------------------------------------------ */

static int64_t record_last(const struct fact_tag *rec, const struct digest *d)
{
    for (size_t i = rec ? rec->n_digests : 0; i-- > 0;)
        if (digest_eq(&rec->digests[i].digest, d))
            return rec->digests[i].last_seen_s;
    return -1;
}

static void edge_update(struct tag *t, uint32_t i, int64_t last_s)
{
    struct tag_digest *e = &t->digests[i];
    if (last_s == e->fact_last_s)
        return; /* nothing that was not weighed before against what this worker saw itself */
    e->fact_last_s = last_s;
    bool own_current = e->own && t->current == i && !t->gone && tag_fresh(t);
    if (last_s == 0) {
        e->until_s = 0;
        if (!tag_fresh(t)) { /* later word than ours */
            t->current = i;
            t->gone = false;
        }
    } else if (!own_current && (e->until_s == 0 || last_s > e->until_s))
        e->until_s = last_s > 0 ? last_s : clock_now_s();
}

/* Without a release date: since when it is known. */
static int64_t first_seen(const struct fact_tag *rec)
{
    int64_t first = 0;
    for (size_t i = 0; i < rec->n_digests; i++)
        if (rec->digests[i].first_seen_s > 0 && (first == 0 || rec->digests[i].first_seen_s < first))
            first = rec->digests[i].first_seen_s;
    return first;
}

/* What the admin knows of one tag; rec NULL: nothing (any more). */
static void record_take(struct repo *r, struct tag *t, const struct fact_tag *rec)
{
    int64_t released = rec ? rec->released_at_s : 0;
    version_set(r, t, rec ? str_c(rec->version) : S(""));
    struct str channel = rec ? str_c(rec->channel) : S("");
    if (!t->channel_mem || !str_eq(channel, t->channel)) {
        mem_free(t->channel_mem);
        t->channel_mem = str_dup(channel);
        t->channel = str_c(t->channel_mem);
    }
    t->released_at_s = rec && !released ? first_seen(rec) : released;
    for (uint32_t i = 0; i < t->n_digests;) {
        int64_t last = record_last(rec, &t->digests[i].digest);
        if (last == -1 && !t->digests[i].own) {
            edge_remove(t, i);
            continue;
        }
        edge_update(t, i++, last);
    }
    for (size_t i = 0; rec && i < rec->n_digests; i++) {
        const struct fact_tag_digest *fd = &rec->digests[i];
        if (digest_at(t, &fd->digest) == TAG_NO_DIGEST) {
            uint32_t at = edge_add(t, &fd->digest);
            t->digests[at].until_s = fd->last_seen_s;
            edge_update(t, at, fd->last_seen_s);
        }
    }
    t->in_fact = rec != NULL;
}

void repo_facts_put(struct repo *r, struct fact *f)
{
    uint64_t epoch = f ? f->epoch : 0;
    if (r->tags_known && r->tags_epoch == epoch && (f != NULL) == (r->tags_fact != NULL))
        return;
    struct fact *keep = f ? fact_ref(f) : NULL;
    fact_unref(&r->tags_fact);
    r->tags_fact = keep;
    r->tags_epoch = epoch;
    r->tags_known = true;
    r->generation++;
    const struct fact_tags *ft = keep ? keep->tags : NULL;
    bool *named = mem_calloc(r->n_tags + (ft ? ft->n : 0) + 1, sizeof(*named));
    for (size_t i = 0; ft && i < ft->n; i++) {
        if (!oci_tag_valid(str_c(ft->tags[i].tag)))
            continue;
        struct tag *t = tag_make(r, str_c(ft->tags[i].tag));
        named[t->id] = true;
        record_take(r, t, &ft->tags[i]);
    }
    for (uint32_t i = 0; i < r->n_tags; i++)
        if (!named[i] && r->tags[i]->in_fact)
            record_take(r, r->tags[i], NULL);
    mem_free(named);
}

enum err repo_facts_peek(struct repo *r, bool *ret_degraded)
{
    struct fact *f = NULL;
    bool degraded = false;
    enum err e = facts_peek(r->repos->w->facts, FACT_TAGS, str_c(r->repository_id), &f, &degraded);
    if (e)
        return e;
    repo_facts_put(r, f);
    if (ret_degraded)
        *ret_degraded = degraded;
    return ERR_OK;
}

/* The index has grown over its bound while nobody waits for it: start over. */
static void repo_trim(struct repo *r)
{
    if (r->refs || closureindex_nodes(r->index) <= NODES_MAX)
        return;
    log_warn("%s: the closure index is full and starts over", r->name);
    closureindex_clear(r->index);
    repo_referrers_drop(r);
    for (uint32_t i = 0; i < r->n_tags; i++)
        for (uint32_t k = 0; k < r->tags[i]->n_digests; k++)
            r->tags[i]->digests[k].root = edge_index(r->tags[i], &r->tags[i]->digests[k].digest);
    r->generation++;
}

void repos_free(struct repos **prs)
{
    struct repos *rs = *prs;
    *prs = NULL;
    if (!rs)
        return;
    flights_free(&rs->flights);
    while (rs->oldest)
        repo_destroy(rs, rs->oldest);
    manifestcache_free(&rs->manifests);
    mem_free(rs->buckets);
    mem_free(rs);
}
