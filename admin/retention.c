#include "retention.h"

#include "pullgate/jv.h"

#define DAY_S UINT64_C(86400)
/* A proxy repeats a report for minutes; a stream that was left for days is read late. */
#define REPORTS_KEEP_S (7 * DAY_S)
/* Whoever was quiet for an hour begins anew (failures.c). */
#define RESTS_KEEP_S (2 * UINT64_C(3600))
/* The event pull.denied asks how it was the last time. */
#define DENIALS_KEEP_S (2 * DAY_S)

#define KEYS_MAX 4

/* find: ?1 is the time before which it was over, ?2 the number. remove: its keys, then the time; it asks again for all that may have
 * changed since. */
struct kind {
    size_t keep; /* where in struct config the milliseconds stand, of which 0 is for ever; 0: fixed_s */
    uint64_t fixed_s;
    int keys;
    const char *find, *remove;
};

#define KEEP(member) offsetof(struct config, retention.member)
/* Told to everybody whom it concerns, and no delivery or mail of it is left, not even in their logs. */
#define EVENT_IS_FREE                                                                                                                      \
    " AND NOT EXISTS (SELECT 1 FROM webhook_deliveries d WHERE d.event_id=e.id) AND NOT EXISTS (SELECT 1 FROM mails m WHERE m.event_id=e.id)"
/* What the clock told of a moment that still is the license's or credential's is what keeps it from telling it again. */
#define NOTICE_IS_FREE                                                                                                                     \
    " AND NOT EXISTS (SELECT 1 FROM licenses l WHERE l.id=n.subject_id AND l.archived_at=0"                                                \
    " AND (n.at=l.starts_at OR (l.expires_at<>0 AND n.at>=l.expires_at)))"                                                                 \
    " AND NOT EXISTS (SELECT 1 FROM credentials c WHERE c.id=n.subject_id AND c.revoked_at=0 AND c.expires_at<>0 AND n.at>=c.expires_at)"

const char *const RETENTION_NAMES[RETENTION_KINDS] = {
    "events", "pulls", "deliveries", "mails", "notices", "usage", "instances", "sessions", "invitations", "idempotency_keys", "reports", "denials",
    "sign_in_rests",
};

static const struct kind KINDS[RETENTION_KINDS] = {
    {KEEP(events_ms), 0, 1,
     "SELECT id FROM events e WHERE at_ms<?1*1000 AND id<=COALESCE((SELECT CAST(value AS INTEGER) FROM meta WHERE key='events_handed_out'),0)" EVENT_IS_FREE
     " ORDER BY at_ms, id LIMIT ?2",
     "DELETE FROM events AS e WHERE id=?1 AND at_ms<?2*1000" EVENT_IS_FREE},
    {KEEP(pulls_ms), 0, 1,
     "SELECT p.id FROM (SELECT id FROM vendors UNION ALL SELECT '') v CROSS JOIN pulls p ON p.vendor_id=v.id AND p.at_ms<?1*1000 LIMIT ?2",
     "DELETE FROM pulls WHERE id=?1 AND at_ms<?2*1000"},
    {KEEP(deliveries_ms), 0, 1, "SELECT id FROM webhook_deliveries WHERE finished_at<>0 AND finished_at<?1 LIMIT ?2",
     "DELETE FROM webhook_deliveries WHERE id=?1 AND finished_at<>0 AND finished_at<?2"},
    {KEEP(deliveries_ms), 0, 1, "SELECT id FROM mails WHERE finished_at<>0 AND finished_at<?1 LIMIT ?2",
     "DELETE FROM mails WHERE id=?1 AND finished_at<>0 AND finished_at<?2"},
    {KEEP(events_ms), 0, 4, "SELECT subject_id, kind, at, days FROM notices n WHERE noted_at<?1" NOTICE_IS_FREE " LIMIT ?2",
     "DELETE FROM notices AS n WHERE subject_id=?1 AND kind=?2 AND at=?3 AND days=?4 AND noted_at<?5" NOTICE_IS_FREE},
    {KEEP(usage_ms), 0, 2, "SELECT license_id, from_at FROM license_usage WHERE until_at<>0 AND until_at<?1 LIMIT ?2",
     "DELETE FROM license_usage WHERE license_id=?1 AND from_at=?2 AND until_at<>0 AND until_at<?3"},
    /* One that pulls and is silent gives its place up first (usage_tick()); one that validates counts for a month at most. */
    {KEEP(usage_ms), 0, 2, "SELECT license_id, fingerprint FROM license_instances WHERE (revoked_at<>0 OR kind='validate') AND last_seen_at<?1 LIMIT ?2",
     "DELETE FROM license_instances WHERE license_id=?1 AND fingerprint=?2 AND (revoked_at<>0 OR kind='validate') AND last_seen_at<?3"},
    {KEEP(sessions_ms), 0, 1,
     "SELECT id FROM sessions WHERE created_at<?1 AND (CASE revoked_at WHEN 0 THEN expires_at ELSE revoked_at END)<?1 LIMIT ?2",
     "DELETE FROM sessions WHERE id=?1 AND (CASE revoked_at WHEN 0 THEN expires_at ELSE revoked_at END)<?2"},
    {KEEP(sessions_ms), 0, 1, "SELECT id FROM users WHERE invite_hash<>'' AND invite_expires_at<?1 LIMIT ?2",
     "UPDATE users SET invite_hash='', invite_expires_at=0 WHERE id=?1 AND invite_hash<>'' AND invite_expires_at<?2"},
    {KEEP(idempotency_keys_ms), 0, 2, "SELECT token_id, key FROM idempotency_keys WHERE created_at<?1 LIMIT ?2",
     "DELETE FROM idempotency_keys WHERE token_id=?1 AND key=?2 AND created_at<?3"},
    {0, REPORTS_KEEP_S, 1, "SELECT id FROM usage_reports WHERE at<?1 LIMIT ?2", "DELETE FROM usage_reports WHERE id=?1 AND at<?2"},
    {0, DENIALS_KEEP_S, 3, "SELECT customer_id, reason, hour FROM pull_denials WHERE hour<?1/3600 LIMIT ?2",
     "DELETE FROM pull_denials WHERE customer_id=?1 AND reason=?2 AND hour=?3 AND hour<?4/3600"},
    {0, RESTS_KEEP_S, 2, "SELECT kind, key FROM sign_in_rests WHERE until_at<?1 LIMIT ?2", "DELETE FROM sign_in_rests WHERE kind=?1 AND key=?2 AND until_at<?3"},
};

enum err retention_find(const struct config *cfg, struct store *s, size_t kind, int64_t now_s, struct retention_batch *ret, struct error *reterr)
{
    const struct kind *k = &KINDS[kind];
    struct retention_batch b = {.kind = kind};
    uint64_t keep_s = k->keep ? *(const uint64_t *)(const void *)((const char *)cfg + k->keep) / 1000 : k->fixed_s;
    *ret = b;
    if (!keep_s || now_s < 0 || keep_s >= (uint64_t)now_s)
        return ERR_OK;
    struct store_stmt *st = NULL;
    bool row = true;
    b.before_s = now_s - (int64_t)keep_s;
    b.keys = jv_array();
    enum err err = store_query(s, &st, reterr, k->find, "ii", b.before_s, (int64_t)RETENTION_BATCH);
    while (!err) {
        err = store_step(st, &row, reterr);
        if (err || !row)
            break;
        for (int i = 0; i < k->keys; i++)
            jv_push(b.keys, jv_string(store_col_str(st, i)));
        b.n++;
    }
    store_done(&st);
    if (err)
        retention_batch_free(&b);
    *ret = b;
    return err;
}

enum err retention_remove(struct store *s, struct retention_batch *b, struct error *reterr)
{
    const struct kind *k = &KINDS[b->kind];
    enum err err = ERR_OK;
    b->removed = 0;
    for (size_t row = 0; !err && row < b->n; row++) {
        struct str key[KEYS_MAX] = {{NULL, 0}};
        int64_t n = 0;
        for (int i = 0; i < k->keys; i++)
            key[i] = jv_str(jv_at(b->keys, row * (size_t)k->keys + (size_t)i));
        switch (k->keys) {
        case 1:
            err = store_exec(s, &n, reterr, k->remove, "si", key[0], b->before_s);
            break;
        case 2:
            err = store_exec(s, &n, reterr, k->remove, "ssi", key[0], key[1], b->before_s);
            break;
        case 3:
            err = store_exec(s, &n, reterr, k->remove, "sssi", key[0], key[1], key[2], b->before_s);
            break;
        default:
            err = store_exec(s, &n, reterr, k->remove, "ssssi", key[0], key[1], key[2], key[3], b->before_s);
            break;
        }
        b->removed += n > 0;
    }
    return err;
}

void retention_batch_free(struct retention_batch *b)
{
    jv_free(b->keys);
    *b = (struct retention_batch){.kind = b->kind};
}
