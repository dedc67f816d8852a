/* Rights by root, found when asked for and kept as three bitmaps: looked at, near, yes. */
#include "rights.h"

#include <string.h>

#include "pullgate/clock.h"
#include "pullgate/mem.h"

enum { BUCKETS = 256, BUCKET_MAX = 8 }; /* customers held a repository: 2,048; the least recently asked goes first */

static void rights_free(struct rights *v)
{
    fact_unref(&v->customer);
    mem_free(v->license_id);
    mem_free(v->known);
    mem_free(v->near);
    mem_free(v->yes);
    mem_free(v->list.at);
    mem_free(v);
}

void rights_drop(struct repo *r)
{
    struct rights **b = r->rights;
    for (size_t i = 0; b && i < BUCKETS; i++) {
        while (b[i]) {
            struct rights *v = b[i];
            b[i] = v->next;
            rights_free(v);
        }
    }
    mem_free(b);
    r->rights = NULL;
}

/* ---- the licenses that count ------------------------------------------------------------------ */

static bool counts(const struct license *l, const struct asker *a)
{
    if (a->license_id.n && !str_eq(l->id, a->license_id))
        return false;
    for (size_t i = 0; i < l->n_repositories; i++)
        if (str_eq(l->repositories[i], a->repository))
            return true;
    return false;
}

static bool grant_counts(const struct grant *g, const struct asker *a)
{
    for (size_t i = 0; i < g->n_repositories; i++)
        if (str_eq(g->repositories[i], a->repository))
            return true;
    return g->n_repositories == 0;
}

bool rights_possible(const struct asker *a)
{
    const struct entitlement *ent = a->customer->entitlement;
    if (!ent || ent->customer_disabled)
        return false;
    for (size_t i = 0; i < ent->n_licenses; i++)
        if (counts(&ent->licenses[i], a) && license_usable(&ent->licenses[i], a->now_s))
            return true;
    return false;
}

static bool any_grant(const struct asker *a, bool (*is)(const struct grant *g))
{
    const struct entitlement *ent = a->customer->entitlement;
    for (size_t i = 0; ent && i < ent->n_licenses; i++) {
        const struct license *l = &ent->licenses[i];
        if (!counts(l, a) || !license_usable(l, a->now_s))
            continue;
        for (size_t g = 0; g < l->n_grants; g++)
            if (is(&l->grants[g]) && grant_counts(&l->grants[g], a))
                return true;
    }
    return false;
}

static bool is_by_digest(const struct grant *g)
{
    return g->selector == SELECTOR_DIGEST;
}

static bool is_by_pin(const struct grant *g)
{
    return g->on_move == GRANT_PIN;
}

bool rights_by_digest(const struct asker *a)
{
    return any_grant(a, is_by_digest);
}

bool rights_by_pin(const struct asker *a)
{
    return any_grant(a, is_by_pin);
}

static bool addr_counts(const struct asker *a)
{
    const struct entitlement *ent = a->customer->entitlement;
    for (size_t i = 0; ent && i < ent->n_licenses; i++)
        if (ent->licenses[i].n_allowed_cidrs && counts(&ent->licenses[i], a))
            return true;
    return false;
}

uint64_t asker_instance(const struct fact *customer, const char *credential_id, const uint8_t *addr)
{
    const struct entitlement *ent = customer->entitlement;
    return ent && ent->counts_instances && addr && credential_id ? license_instance(str_c(credential_id), addr) : 0;
}

/* Digests that the grants themselves name lead somewhere too, also when no tag does (any more). */
static void edges_of_grants(struct repo *r, const struct asker *a)
{
    const struct entitlement *ent = a->customer->entitlement;
    for (size_t i = 0; ent && i < ent->n_licenses; i++) {
        const struct license *l = &ent->licenses[i];
        if (!counts(l, a))
            continue;
        for (size_t g = 0; g < l->n_grants; g++) {
            const struct grant *grant = &l->grants[g];
            if (!grant_counts(grant, a))
                continue;
            if (grant->selector == SELECTOR_DIGEST && digest_is_set(&grant->digest))
                repo_tag_edge(r, S(""), &grant->digest, 0); /* no version: only a grant by digest selects it */
            for (size_t p = 0; p < grant->n_pins; p++)      /* it was that at some moment since the grant: the earliest is certain */
                if (str_eq(grant->pins[p].repository, a->repository) && grant->pins[p].tag.n && digest_is_set(&grant->pins[p].digest))
                    repo_tag_edge(r, grant->pins[p].tag, &grant->pins[p].digest, grant->granted_at_s > 0 ? grant->granted_at_s : 1);
        }
    }
}

/* ---- what is kept ----------------------------------------------------------------------------- */

static void forget(struct rights *v)
{
    if (v->words) {
        memset(v->known, 0, v->words * sizeof(uint64_t));
        memset(v->near, 0, v->words * sizeof(uint64_t));
        memset(v->yes, 0, v->words * sizeof(uint64_t));
    }
    v->tags_generation = v->repo->generation;
    v->index_generation = closureindex_generation(v->repo->index);
}

static void start_over(struct rights *v, const struct asker *a)
{
    if (v->customer != a->customer) {
        struct fact *keep = fact_ref(a->customer);
        fact_unref(&v->customer);
        v->customer = keep;
    }
    v->computed_s = a->now_s;
    v->valid_until_s = INT64_MAX;
    v->swept_ms = 0;
    v->list.have = false;
    edges_of_grants(v->repo, a);
    forget(v);
}

static void roots_reserve(struct rights *v)
{
    size_t need = (closureindex_roots(v->repo->index) + 63) / 64;
    if (need <= v->words)
        return;
    if (need < v->words * 2)
        need = v->words * 2;
    uint64_t **maps[] = {&v->known, &v->near, &v->yes};
    for (size_t i = 0; i < 3; i++) {
        *maps[i] = mem_realloc(*maps[i], need * sizeof(uint64_t));
        memset(*maps[i] + v->words, 0, (need - v->words) * sizeof(uint64_t));
    }
    v->words = need;
}

static bool same_fact(const struct fact *x, const struct fact *y)
{
    return x == y || (x->epoch == y->epoch && strcmp(x->name, y->name) == 0);
}

static bool is_of(const struct rights *v, const struct asker *a, const uint8_t *addr)
{
    return strcmp(v->customer->name, a->customer->name) == 0 && str_eq_c(a->license_id, v->license_id) && v->has_addr == (addr != NULL) &&
           (!addr || memcmp(v->addr, addr, sizeof v->addr) == 0) && v->instance == a->instance;
}

static void bucket_bound(struct rights *v)
{
    for (unsigned n = 1; n < BUCKET_MAX && v; n++)
        v = v->next;
    if (!v || !v->next)
        return;
    rights_free(v->next); /* one was added, so one is over */
    v->next = NULL;
}

struct rights *rights_get(struct repo *r, const struct asker *a)
{
    const uint8_t *addr = a->addr && addr_counts(a) ? a->addr : NULL;
    uint64_t h = str_hash(str_c(a->customer->name));
    if (a->license_id.n)
        h = h * UINT64_C(0x9e3779b97f4a7c15) + str_hash(a->license_id);
    if (addr)
        h = h * UINT64_C(0x9e3779b97f4a7c15) + str_hash((struct str){(const char *)addr, 16});
    h += a->instance;
    if (!r->rights)
        r->rights = mem_calloc(BUCKETS, sizeof(struct rights *));
    struct rights **bucket = &r->rights[(h ^ h >> 32) % BUCKETS], **at = bucket, *v;
    while ((v = *at) && !(v->hash == h && is_of(v, a, addr)))
        at = &v->next;
    if (!v) {
        v = NEW(struct rights);
        v->hash = h;
        v->repo = r;
        v->license_id = str_dup(a->license_id);
        v->has_addr = addr != NULL;
        if (addr)
            memcpy(v->addr, addr, sizeof v->addr);
        v->instance = a->instance;
        roots_reserve(v);
        start_over(v, a);
    } else {
        *at = v->next;
        if (!same_fact(v->customer, a->customer) || a->now_s >= v->valid_until_s || a->now_s < v->computed_s)
            start_over(v, a);
    }
    v->next = *bucket;
    *bucket = v;
    bucket_bound(v);
    roots_reserve(v);
    if (v->tags_generation != r->generation || v->index_generation != closureindex_generation(r->index))
        forget(v);
    return v;
}

/* ---- decisions -------------------------------------------------------------------------------- */

static void decide(const struct asker *a, bool is_digest, const struct candidate *c, size_t n, struct decision *ret)
{
    const struct decision_query q = {.repository = a->repository,
                                     .is_digest = is_digest,
                                     .candidates = c,
                                     .n_candidates = n,
                                     .now_s = a->now_s,
                                     .client_addr = a->addr,
                                     .instance = a->instance,
                                     .license_id = a->license_id};
    *ret = (struct decision){0};
    decision_make(a->customer->entitlement, &q, ret);
    ret->candidate = NULL; /* lives on our stack */
}

void rights_deny(const struct asker *a, bool is_digest, struct decision *ret)
{
    decide(a, is_digest, NULL, 0, ret);
}

static enum right right_of(const struct decision *d)
{
    if (d->verdict == VERDICT_ALLOW)
        return RIGHT_YES;
    if (d->verdict == VERDICT_DENY && (d->reason == REASON_IP_NOT_ALLOWED || d->reason == REASON_QUOTA_EXCEEDED))
        return RIGHT_NEAR;
    return RIGHT_NO;
}

static void mark(struct rights *v, uint32_t root, enum right x)
{
    uint64_t bit = UINT64_C(1) << (root % 64);
    if (root / 64 >= v->words)
        return;
    v->known[root / 64] |= bit;
    if (x == RIGHT_YES)
        v->yes[root / 64] |= bit;
    if (x == RIGHT_NEAR)
        v->near[root / 64] |= bit;
}

static bool bit_of(const uint64_t *bits, const struct rights *v, uint32_t root)
{
    return root / 64 < v->words && (bits[root / 64] >> (root % 64) & 1);
}

/* By the tags that lead or led to it. */
static enum right root_by_tags(struct repo *r, struct rights *v, const struct asker *a, const struct ci_root *cr, uint32_t root,
                               struct right_ground *g)
{
    enum right best = RIGHT_NO;
    for (uint32_t i = 0; i < cr->n_tags; i++) {
        const struct tag *t = r->tags[cr->tags[i]];
        for (uint32_t k = 0; k < t->n_digests; k++) {
            const struct tag_digest *e = &t->digests[k];
            if (e->root != root)
                continue;
            const struct candidate c = {.tag = t->name,
                                        .version = t->version,
                                        .channel = t->channel,
                                        .released_at_s = t->released_at_s,
                                        .digest = e->digest,
                                        .until_s = e->until_s};
            struct decision d;
            decide(a, true, &c, 1, &d);
            if (d.valid_until_s < v->valid_until_s)
                v->valid_until_s = d.valid_until_s;
            enum right x = right_of(&d);
            if (x <= best)
                continue;
            best = x;
            if (g)
                *g = (struct right_ground){d, t, true};
            if (x == RIGHT_YES)
                return x;
        }
    }
    return best;
}

/* whole: cleared when the answer was cut short by the depth, and so is not to be kept. */
static enum right root_look(struct repo *r, struct rights *v, const struct asker *a, uint32_t root, unsigned depth, bool *whole,
                            struct right_ground *g)
{
    const struct ci_root *cr = closureindex_root(r->index, root);
    enum right best = root_by_tags(r, v, a, cr, root, g);
    bool mine = true;

    for (uint32_t i = 0; best != RIGHT_YES && i < cr->n_subjects; i++) {
        if (!cr->subjects[i].proven)
            continue;
        if (depth == CLOSURE_MAX_DEPTH) {
            mine = false;
            break;
        }
        for (uint32_t up = closureindex_first(r->index, cr->subjects[i].node, 0, NULL, 0, true); best != RIGHT_YES && up != CI_NONE;
             up = closureindex_first(r->index, cr->subjects[i].node, up + 1, NULL, 0, true)) {
            struct right_ground ug = {0};
            if (up == root || (bit_of(v->known, v, up) && !bit_of(v->yes, v, up) && !bit_of(v->near, v, up)))
                continue;
            enum right x = root_look(r, v, a, up, depth + 1, &mine, g ? &ug : NULL);
            if (x <= best)
                continue;
            best = x;
            if (g) {
                *g = ug;
                g->direct = false;
            }
        }
    }
    if (mine || best == RIGHT_YES)
        mark(v, root, best);
    else
        *whole = false;
    return best;
}

enum right rights_root(struct repo *r, struct rights *v, const struct asker *a, uint32_t root)
{
    bool whole = true;
    roots_reserve(v);
    if (bit_of(v->known, v, root))
        return bit_of(v->yes, v, root) ? RIGHT_YES : bit_of(v->near, v, root) ? RIGHT_NEAR : RIGHT_NO;
    return root_look(r, v, a, root, 0, &whole, NULL);
}

enum right rights_digest(struct repo *r, struct rights *v, const struct asker *a, enum node_kind kind, const struct digest *d,
                         struct right_ground *g)
{
    uint32_t node = closureindex_find(r->index, kind, d), root, near = CI_NONE;
    bool whole = true;

    *g = (struct right_ground){0};
    roots_reserve(v);
    if (node != CI_NONE && kind == NODE_MANIFEST && (root = closureindex_root_at(r->index, node)) != CI_NONE &&
        rights_root(r, v, a, root) == RIGHT_YES && root_look(r, v, a, root, 0, &whole, g) == RIGHT_YES)
        return RIGHT_YES; /* a manifest that is a root itself is told by its own tag */
    for (root = 0; node != CI_NONE && (root = closureindex_first(r->index, node, root, v->yes, v->words, true)) != CI_NONE; root++) {
        if (root_look(r, v, a, root, 0, &whole, g) != RIGHT_YES)
            continue;
        g->direct = false;
        return RIGHT_YES;
    }
    for (root = 0; node != CI_NONE && (root = closureindex_first(r->index, node, root, v->known, v->words, false)) != CI_NONE; root++) {
        if (root_look(r, v, a, root, 0, &whole, g) != RIGHT_YES)
            continue;
        g->direct = false;
        return RIGHT_YES;
    }
    if (node != CI_NONE)
        near = closureindex_first(r->index, node, 0, v->near, v->words, true);
    if (near != CI_NONE && root_look(r, v, a, near, 0, &whole, g) == RIGHT_NEAR) {
        g->direct = false;
        return RIGHT_NEAR;
    }
    *g = (struct right_ground){0};
    rights_deny(a, true, &g->d);
    return RIGHT_NO;
}

bool rights_pending(struct repo *r, struct rights *v, const struct asker *a, uint32_t root)
{
    const struct ci_root *cr = closureindex_root(r->index, root);
    for (uint32_t i = 0; i < cr->n_subjects; i++) {
        if (cr->subjects[i].proven)
            continue;
        for (uint32_t up = closureindex_first(r->index, cr->subjects[i].node, 0, NULL, 0, true); up != CI_NONE;
             up = closureindex_first(r->index, cr->subjects[i].node, up + 1, NULL, 0, true))
            if (up != root && rights_root(r, v, a, up) != RIGHT_NO)
                return true;
    }
    return false;
}

/* ---- tags ------------------------------------------------------------------------------------- */

/* What a grant bound the tag to, when the tag has moved on. */
static bool decide_pinned(const struct asker *a, struct candidate *c, struct decision *ret, struct digest *serve)
{
    const struct entitlement *ent = a->customer->entitlement;
    for (size_t i = 0; ent && i < ent->n_licenses; i++) {
        const struct license *l = &ent->licenses[i];
        if (!counts(l, a))
            continue;
        for (size_t g = 0; g < l->n_grants; g++) {
            const struct grant *grant = &l->grants[g];
            for (size_t p = 0; grant->on_move == GRANT_PIN && p < grant->n_pins; p++) {
                if (!str_eq(grant->pins[p].repository, a->repository) || !str_eq(grant->pins[p].tag, c->tag))
                    continue;
                struct decision d;
                c->digest = grant->pins[p].digest;
                decide(a, false, c, 1, &d);
                if (right_of(&d) == RIGHT_NO)
                    continue;
                *ret = d;
                *serve = c->digest;
                return true;
            }
        }
    }
    return false;
}

enum tag_right rights_tag(struct repo *r, const struct asker *a, struct str name, const struct tag *t, const struct digest *d,
                          struct decision *ret, struct digest *serve)
{
    struct candidate c = {.tag = name, .version = t ? t->version : repo_version_of(r, name)};
    struct digest pinned;
    if (t) {
        c.channel = t->channel;
        c.released_at_s = t->released_at_s;
    }
    if (d)
        c.digest = *d;
    decide(a, false, &c, 1, ret);
    if (ret->verdict == VERDICT_ALLOW) {
        if (d)
            *serve = *d;
        return TAG_ALLOWED;
    }
    if (ret->verdict != VERDICT_DENY || right_of(ret) == RIGHT_NEAR)
        return TAG_DENIED;
    if (!d)
        return rights_by_digest(a) ? TAG_RESOLVE : TAG_DENIED;
    if (!decide_pinned(a, &c, ret, &pinned) || ret->verdict != VERDICT_ALLOW)
        return TAG_DENIED;
    *serve = pinned;
    return TAG_ALLOWED;
}
