/* What one customer may have of one repository: the decision over the closure index, kept so that a digest costs a look-up and a
 * test of bits however many versions share it. Pure over facts and index: asks nobody. Everything kept here falls when the
 * customer's fact, the tags, or the clock say so. */
#ifndef PROXY_RIGHTS_H
#define PROXY_RIGHTS_H

#include <stdbool.h>
#include <stdint.h>

#include "pullgate/decision.h"

#include "contentrepo.h"

struct asker { /* borrowed */
    struct fact *customer;
    struct str license_id; /* of a credential bound to one license, "" */
    const uint8_t *addr;   /* 16 bytes or NULL */
    uint64_t instance;     /* where installations count, else 0: asker_instance() */
    struct str repository; /* public name */
    int64_t now_s;
};

enum right {
    RIGHT_NO,
    RIGHT_NEAR, /* granted, but for the client's address or a spent quota */
    RIGHT_YES,
};

struct rights { /* of (customer's fact, license binding, address and installation where they count) in one repository */
    struct rights *next;
    uint64_t hash;
    struct repo *repo;
    struct fact *customer; /* referenced */
    char *license_id;
    bool has_addr;
    uint8_t addr[16];
    uint64_t instance;
    uint64_t tags_generation, index_generation;
    int64_t computed_s, valid_until_s;
    uint64_t *known, *near, *yes; /* by root */
    size_t words;
    uint64_t swept_ms;    /* a complete sweep found nothing more, 0 never */
    uint64_t swept_generation; /* of the repository then: an edge that came since may lead to it */
    struct { /* the filtered tags/list */
        bool have;
        uint64_t list_generation, repository_epoch, records_epoch, tags_generation, index_generation;
        uint32_t index_nodes;
        bool whole;   /* looks at digests or subjects, and so falls with them too */
        uint32_t *at; /* of repo->list.names */
        size_t n;
    } list;
};

/* What asker.instance is for these: 0 where no license of the customer has all its installations taken. */
uint64_t asker_instance(const struct fact *customer, const char *credential_id, const uint8_t *addr);

/* Borrowed until the next rights_get(). */
struct rights *rights_get(struct repo *r, const struct asker *a);
void rights_drop(struct repo *r); /* all of a repository */

/* Can anything at all be had here? A license that counts, names the repository, and is in force or keeps what was released. */
bool rights_possible(const struct asker *a);
/* Are there grants by digest here, so that a tag's digest must be known? */
bool rights_by_digest(const struct asker *a);
bool rights_by_pin(const struct asker *a);

enum right rights_root(struct repo *r, struct rights *v, const struct asker *a, uint32_t root);

/* The root hangs, unproven, on something that may be had: its document must be read to know. */
bool rights_pending(struct repo *r, struct rights *v, const struct asker *a, uint32_t root);

struct right_ground {      /* why */
    struct decision d;     /* its license and grant live as long as the asker's fact; candidate is NULL */
    const struct tag *tag; /* the tag it hangs on; NULL: none */
    bool direct;           /* the tag itself stands for the manifest asked */
};
/* RIGHT_NO: ground->d is the denial that says nothing about what exists. */
enum right rights_digest(struct repo *r, struct rights *v, const struct asker *a, enum node_kind kind, const struct digest *d,
                         struct right_ground *ground);
/* Nothing of this repository, for the reason of the licenses alone. */
void rights_deny(const struct asker *a, bool is_digest, struct decision *ret);

enum tag_right { TAG_DENIED, TAG_ALLOWED, TAG_RESOLVE /* only its digest can tell */ };
/* t may be NULL (not known yet), d NULL (not resolved). serve: the digest to serve for TAG_ALLOWED with d: d, or what a grant pinned. */
enum tag_right rights_tag(struct repo *r, const struct asker *a, struct str name, const struct tag *t, const struct digest *d,
                          struct decision *ret, struct digest *serve);

#endif
