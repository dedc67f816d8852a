/* The form of what the admin projects into Redis and the proxies believe: facts, buckets, the root (docs/REDIS.md).
 * Pure: bytes in, bytes out, MAC by the keyring. Both daemons link it, so that writer and reader cannot disagree. */
#ifndef PULLGATE_PROJECTION_H
#define PULLGATE_PROJECTION_H

#include <stdbool.h>
#include <stdint.h>

#include "pullgate/closure.h"
#include "pullgate/err.h"
#include "pullgate/seal.h"
#include "pullgate/str.h"

#define PROJECTION_BUCKETS 1024
#define PROJECTION_ROOT_KEY "pg:root"
#define PROJECTION_CHANNEL "pg:announce"
#define PROJECTION_EVENTS "pg:events"         /* stream: pull events and resolved tags, proxies to admin */
#define PROJECTION_FACT_KEY_MAX 512

/* A fact's name: "k:<hash>" credential, "c:<customer id>" entitlement, "r:<public repository name>", "t:<repository id>" tag
 * records, "u:<upstream id>". Its Redis key: "pg:v:" + name. Its bucket: first 10 bits of SHA-256(name); Redis key "pg:b:<0..1023>". */
unsigned projection_bucket_of(struct str fact);
void projection_fact_key(struct str fact, struct strbuf *ret);
void projection_bucket_key(unsigned bucket, struct strbuf *ret);

/* "1 <epoch> <64 hex MAC> <payload>"; the MAC is over "<redis key>\n<epoch>\n<payload>". Used for facts, buckets and the root. */
void projection_wrap(const struct keyring *k, struct str redis_key, uint64_t epoch, struct str payload, struct strbuf *ret);
/* ERR_OK, or ERR_UNAVAILABLE for anything else than exactly that form with a right MAC. payload borrows from value. */
enum err projection_unwrap(const struct keyring *k, struct str redis_key, struct str value, uint64_t *ret_epoch, struct str *ret_payload) MUST_USE;

/* The root's payload: {"time":<unix ms>,"buckets":[1024 epochs]}; its own epoch is the store's last outbox id. */
struct projection_root {
    uint64_t epoch;
    int64_t time_ms;
    uint64_t buckets[PROJECTION_BUCKETS];
};
void projection_root_print(const struct projection_root *r, struct strbuf *ret_payload);
enum err projection_root_scan(const struct keyring *k, struct str value, struct projection_root *ret) MUST_USE;

/* A bucket's payload: lines "<epoch> <fact>\n", sorted by fact. Every fact that exists is named in its bucket: a fact that a
 * current bucket does not name does not exist, and only that is proof of absence. */
struct projection_bucket;
enum err projection_bucket_scan(const struct keyring *k, unsigned bucket, struct str value, struct projection_bucket **ret) MUST_USE;
uint64_t projection_bucket_epoch(const struct projection_bucket *b);
/* 0: not named. */
uint64_t projection_bucket_find(const struct projection_bucket *b, struct str fact);
void projection_bucket_free(struct projection_bucket **b);

/* A closure as proxies and the sync share it: key "pg:m:<repository id>:<root digest>", wrapped with epoch 0; payload is
 * "<built at, unix s>\n" + closure_print(). Content-addressed, so it needs no epoch; its MAC says that one of us verified it. */
void projection_closure_key(struct str repository_id, const struct digest *root, struct strbuf *ret);
void projection_closure_print(const struct closure *c, int64_t built_at_s, struct strbuf *ret_payload);
enum err projection_closure_scan(struct str payload, struct closure *ret, int64_t *ret_built_at_s) MUST_USE;

#endif
