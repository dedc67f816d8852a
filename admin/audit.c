#include "audit.h"

#include <string.h>

#include "pullgate/clock.h"
#include "pullgate/jv.h"
#include "pullgate/mem.h"

#define AUDIT_COLUMNS 11 /* of the record, before hash */

static const char AUDIT_SELECT[] =
    "SELECT seq, vendor_id, at_ms, actor, address, request_id, action, object, outcome, before, after, prev_hash, hash"
    " FROM audit";

static struct str audit_text(const char *c)
{
    return c ? str_c(c) : S("");
}

/* Every field with its length before it: no two records have the same text. */
static void audit_add_field(struct strbuf *b, struct str v)
{
    sb_add_u64(b, v.n);
    sb_add_char(b, ':');
    sb_add(b, v);
}

static void audit_mac(const struct keyring *k, struct strbuf *text, struct strbuf *ret)
{
    uint8_t mac[SEAL_MAC_LEN];
    keyring_hmac(k, KEYRING_AUDIT, sb_str(text), mac);
    sb_reset(ret);
    sb_add_hex(ret, mac, sizeof mac);
}

/* The hash and number of the newest record; "" and 0 before the first. */
static enum err audit_head(struct store *s, struct strbuf *ret_hash, int64_t *ret_seq, struct error *reterr)
{
    struct store_stmt *st = NULL;
    bool row = false;
    enum err err = store_query(s, &st, reterr, "SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1", "");
    if (!err)
        err = store_step(st, &row, reterr);
    if (!err) {
        *ret_seq = row ? store_col_int(st, 0) : 0;
        if (row)
            sb_add(ret_hash, store_col_str(st, 1));
    }
    store_done(&st);
    return err;
}

enum err audit_put(struct store *s, const struct keyring *k, const struct audit_record *r, struct error *reterr)
{
    struct strbuf prev = {0}, before = {0}, after = {0}, text = {0}, hash = {0};
    int64_t last = 0;
    enum err err = audit_head(s, &prev, &last, reterr);
    if (err)
        goto out;
    if (r->before)
        jv_dump_sorted(r->before, &before);
    if (r->after)
        jv_dump_sorted(r->after, &after);
    int64_t seq = last + 1, at_ms = clock_now_ms();

    const struct str fields[] = {
        audit_text(r->vendor_id), audit_text(r->actor),  audit_text(r->address), audit_text(r->request_id),
        audit_text(r->action),    audit_text(r->object), audit_text(r->outcome), sb_str(&before),
        sb_str(&after),           sb_str(&prev),
    };
    sb_addf(&text, "%lld,%lld,", (long long)seq, (long long)at_ms);
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        audit_add_field(&text, fields[i]);
    audit_mac(k, &text, &hash);
    err = store_exec(
        s, NULL, reterr,
        "INSERT INTO audit (seq, vendor_id, at_ms, actor, address, request_id, action, object, outcome, before, after, prev_hash, hash)"
        " VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)",
        "isissssssssss", seq, fields[0], at_ms, fields[1], fields[2], fields[3], fields[4], fields[5], fields[6], fields[7], fields[8],
        fields[9], sb_str(&hash));
out:
    sb_free(&prev);
    sb_free(&before);
    sb_free(&after);
    sb_free(&text);
    sb_free(&hash);
    return err;
}

enum err audit_verify(struct store *s, const struct keyring *k, int64_t *ret_records, struct error *reterr)
{
    struct strbuf sql = {0}, prev = {0}, text = {0}, hash = {0};
    struct store_stmt *st = NULL;
    int64_t n = 0;
    bool row;
    sb_addf(&sql, "%s ORDER BY seq", AUDIT_SELECT);
    enum err err = store_query(s, &st, reterr, sql.p, "");
    while (!err) {
        err = store_step(st, &row, reterr);
        if (err || !row)
            break;
        int64_t seq = store_col_int(st, 0);
        sb_reset(&text);
        sb_addf(&text, "%lld,%lld,", (long long)seq, (long long)store_col_int(st, 2));
        audit_add_field(&text, store_col_str(st, 1));
        for (int i = 3; i <= AUDIT_COLUMNS; i++)
            audit_add_field(&text, store_col_str(st, i));
        audit_mac(k, &text, &hash);
        bool good = seq == n + 1 && str_eq(store_col_str(st, 11), sb_str(&prev)) && str_eq(store_col_str(st, 12), sb_str(&hash));
        if (!good) {
            err = error_set(reterr, ERR_INVALID, "audit: record %lld is not what was written, or one before it is missing",
                            (long long)(n + 1));
            break;
        }
        n++;
        sb_reset(&prev);
        sb_add(&prev, sb_str(&hash));
    }
    store_done(&st);
    sb_free(&sql);
    sb_free(&prev);
    sb_free(&text);
    sb_free(&hash);
    if (!err)
        *ret_records = n;
    return err;
}
