/* One repository as this worker knows it: its tags with their digests over time, merged of the t: fact and what this worker saw
 * itself, and the closure index. contentflight.h fills it. Content only: nothing here knows a customer. */
#ifndef PROXY_CONTENTREPO_H
#define PROXY_CONTENTREPO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pullgate/err.h"
#include "pullgate/oci.h"
#include "pullgate/str.h"

#include "closureindex.h"
#include "content.h"
#include "facts.h"
#include "manifestcache.h"

struct repos;
struct flights;
struct rights;

struct tag_digest {
    struct digest digest;
    uint32_t root;
    int64_t until_s;     /* 0: the tag resolves to it */
    int64_t fact_last_s; /* what the t: fact says: -1 nothing, 0 current, else last seen */
    bool own;            /* seen by this worker */
};
#define TAG_NO_DIGEST UINT32_MAX
struct tag { /* lives as long as its repository */
    struct repo *repo;
    uint32_t id;
    struct str name;
    struct str version; /* of the version record, else by the template; "" none */
    struct str channel;
    int64_t released_at_s;
    char *version_mem, *channel_mem;
    bool in_fact;
    bool is_subject; /* "sha256-<hex>…": hangs on another manifest, is no version */
    struct oci_subject_tag subject;
    struct tag_digest *digests;
    uint32_t n_digests, cap_digests;
    uint32_t current;     /* what it resolves to as far as known, TAG_NO_DIGEST */
    uint64_t resolved_ms; /* when the upstream last said so (or that it is gone), 0 never */
    bool gone;
    uint64_t failed_ms; /* the upstream could not be asked then; 0: it could */
};

struct referrers { /* of one subject, as last asked */
    struct referrers *next;
    uint32_t node;
    uint64_t looked_ms;
    uint64_t failed_ms;
    char *json; /* the merged index */
    size_t n;
};

#define REPO_ABSENT_TAGS 256
struct repo {
    unsigned magic;
    unsigned refs; /* operations and flights; 0: may be evicted */
    struct repos *repos;
    struct repo *chain, *newer, *older;
    uint64_t hash;
    char *repository_id, *upstream_id, *upstream_repository;
    char *name, *tag_template; /* of the newest fact seen */
    uint64_t repository_epoch;

    bool tags_known; /* the t: fact was looked up: tags_fact, or there is none */
    struct fact *tags_fact;
    uint64_t tags_epoch;       /* of tags_fact, 0 none */
    uint64_t facts_generation; /* at that look-up */

    struct tag **tags;
    uint32_t n_tags, cap_tags;
    uint32_t *tag_table; /* 1 + id */
    size_t tag_table_n;
    uint64_t generation; /* changes when an edge between a tag and a digest, or what a tag's version is, does */
    struct {
        uint64_t hash;
        uint64_t until_ms;
    } absent[REPO_ABSENT_TAGS]; /* tags that the upstream just said it does not have */

    struct closureindex *index;
    struct referrers *referrers[64];
    size_t referrers_bytes;
    uint64_t no_referrers_until_ms; /* the upstream has no such API */

    struct { /* the upstream's tags/list */
        bool have;
        struct str *names; /* sorted */
        char *mem;
        size_t n;
        uint64_t generation;
        uint64_t at_ms, failed_ms;
    } list;

    struct rights **rights; /* rights.h: all of this repository, by bucket */
    struct strbuf scratch;
};

struct repos *repos_new(struct worker *w);
void repos_free(struct repos **rs);
struct manifestcache *repos_manifests(struct repos *rs);
struct worker *repos_worker(struct repos *rs);
struct flights *repos_flights(struct repos *rs);
uint64_t repos_now_ms(struct repos *rs);
void repos_shrink(struct repos *rs); /* to its bounds: what is used least goes, if nobody waits for it */

/* The repository of this fact, made when it is not known; marks it used. Borrowed until the next repo_get(): repo_ref() to keep. */
struct repo *repo_get(struct repos *rs, const struct fact *repository);
struct repo *repo_ref(struct repo *r);
void repo_unref(struct repo **r);

/* Bring in the t: fact, if it moved. ERR_UNAVAILABLE: not known now; use repo_facts(). */
enum err repo_facts_peek(struct repo *r, bool *ret_degraded);
void repo_facts_put(struct repo *r, struct fact *f);

struct tag *repo_tag(struct repo *r, struct str name); /* NULL: not known */
/* The version that a tag stands for by the template alone; valid until the next call. */
struct str repo_version_of(struct repo *r, struct str tag);
const struct tag_digest *tag_current(const struct tag *t); /* NULL: none known */
bool tag_fresh(const struct tag *t);                       /* its current digest (or that it is gone) needs no asking */
bool tag_failed(const struct tag *t);                      /* the upstream could not be asked just before */
bool repo_tag_absent(struct repo *r, struct str name);     /* the upstream just said that it has no such tag */
/* A digest that the tag is known to have resolved to at least until then; used for pins. */
void repo_tag_edge(struct repo *r, struct str name, const struct digest *d, int64_t until_s);
/* What the upstream said of a tag: it is this digest; there is none. */
void repo_tag_resolved(struct repo *r, struct str name, const struct digest *d, enum media_type mt, uint64_t size);
void repo_tag_vanished(struct repo *r, struct str name);
/* The upstream says: that manifest hangs on this one. */
void repo_hang(struct repo *r, const struct digest *subject, const struct digest *d, enum media_type mt, uint64_t size);
void repo_referrers_drop(struct repo *r);

#endif
