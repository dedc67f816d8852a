#include "audit.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "pullgate/clock.h"
#include "pullgate/jv.h"
#include "pullgate/log.h"
#include "pullgate/mem.h"

#define FORM 2 /* of the text that is hashed; 1 had neither actor_name nor vendor_prev */

/* The columns of a row, in this order everywhere. */
enum { COL_SEQ, COL_AT, COL_FORM, COL_VENDOR, COL_ACTOR, COL_ADDRESS, COL_REQUEST, COL_ACTION, COL_OBJECT, COL_OUTCOME, COL_BEFORE, COL_AFTER,
       COL_NAME, COL_VENDOR_PREV, COL_PREV, COL_HASH };
#define FIELDS (COL_HASH - COL_VENDOR) /* texts that are hashed */

static const char AUDIT_SELECT[] = "SELECT seq, at_ms, form, vendor_id, actor, address, request_id, action, object, outcome, before, after,"
                                   " actor_name, vendor_prev, prev_hash, hash FROM audit";

/* A row as it is hashed. */
struct row {
    int64_t seq, at_ms, form;
    struct str f[FIELDS + 1]; /* COL_VENDOR … COL_HASH */
};

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

static void row_hash(const struct keyring *k, const struct row *r, struct strbuf *ret)
{
    struct strbuf text = {0};
    uint8_t mac[SEAL_MAC_LEN];
    if (r->form != 1)
        sb_addf(&text, "form %lld,", (long long)r->form);
    sb_addf(&text, "%lld,%lld,", (long long)r->seq, (long long)r->at_ms);
    for (int i = 0; i < FIELDS; i++)
        if (r->form != 1 || (i != COL_NAME - COL_VENDOR && i != COL_VENDOR_PREV - COL_VENDOR))
            audit_add_field(&text, r->f[i]);
    keyring_hmac(k, KEYRING_AUDIT, sb_str(&text), mac);
    sb_reset(ret);
    sb_add_hex(ret, mac, sizeof mac);
    sb_free(&text);
}

static void row_of(const struct store_stmt *st, struct row *ret)
{
    ret->seq = store_col_int(st, COL_SEQ);
    ret->at_ms = store_col_int(st, COL_AT);
    ret->form = store_col_int(st, COL_FORM);
    for (int i = 0; i <= FIELDS; i++)
        ret->f[i] = store_col_str(st, COL_VENDOR + i);
}

/* The hash and number of the newest record, of all or of one vendor; "" and 0 before the first. */
static enum err newest(struct store *s, const char *vendor_id, struct strbuf *ret_hash, int64_t *ret_seq, struct error *reterr)
{
    struct store_stmt *st = NULL;
    bool row = false;
    enum err err = vendor_id ? store_query(s, &st, reterr, "SELECT seq, hash FROM audit WHERE vendor_id=? ORDER BY seq DESC LIMIT 1", "z", vendor_id)
                             : store_query(s, &st, reterr, "SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1", "");
    if (!err)
        err = store_step(st, &row, reterr);
    if (!err) {
        *ret_seq = row ? store_col_int(st, 0) : 0;
        sb_reset(ret_hash);
        if (row)
            sb_add(ret_hash, store_col_str(st, 1));
    }
    store_done(&st);
    return err;
}

enum err audit_put(struct store *s, const struct keyring *k, const struct audit_record *r, struct error *reterr)
{
    struct strbuf prev = {0}, vendor_prev = {0}, before = {0}, after = {0}, hash = {0};
    const char *vendor = r->vendor_id ? r->vendor_id : "";
    int64_t last = 0, ignored = 0;
    enum err err = newest(s, NULL, &prev, &last, reterr);
    if (!err)
        err = newest(s, vendor, &vendor_prev, &ignored, reterr);
    if (err)
        goto out;
    if (r->before)
        jv_dump_sorted(r->before, &before);
    if (r->after)
        jv_dump_sorted(r->after, &after);
    const struct row row = {.seq = last + 1,
                            .at_ms = clock_now_ms(),
                            .form = FORM,
                            .f = {str_c(vendor), audit_text(r->actor), audit_text(r->address), audit_text(r->request_id), audit_text(r->action),
                                  audit_text(r->object), audit_text(r->outcome), before.n ? sb_str(&before) : S(""), after.n ? sb_str(&after) : S(""),
                                  audit_text(r->actor_name), vendor_prev.n ? sb_str(&vendor_prev) : S(""), prev.n ? sb_str(&prev) : S("")}};
    row_hash(k, &row, &hash);
    err = store_exec(
        s, NULL, reterr,
        "INSERT INTO audit (seq, at_ms, form, vendor_id, actor, address, request_id, action, object, outcome, before, after, actor_name,"
        " vendor_prev, prev_hash, hash) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
        "iiisssssssssssss", row.seq, row.at_ms, row.form, row.f[0], row.f[1], row.f[2], row.f[3], row.f[4], row.f[5], row.f[6], row.f[7], row.f[8],
        row.f[9], row.f[10], row.f[11], sb_str(&hash));
out:
    sb_free(&prev);
    sb_free(&vendor_prev);
    sb_free(&before);
    sb_free(&after);
    sb_free(&hash);
    return err;
}

/* ---- the head: "SEQ HASH MAC\n", always of one length ---------------------------------------------------------------------------- */

#define HEAD_HASH 64
#define HEAD_LEN  (20 + 1 + HEAD_HASH + 1 + 2 * SEAL_MAC_LEN + 1)

struct audit_head {
    int fd;
    int64_t seq;   /* that stands there; -1: not known */
    bool is_fresh; /* made by this process, and not synced yet */
};

struct head {
    int64_t seq;
    char hash[HEAD_HASH + 1];
};

void audit_head_path(const char *keys_path, struct strbuf *ret)
{
    sb_addf(ret, "%s/audit.head", keys_path);
}

/* The MAC's key is audit.key; no record's text begins so. */
static void head_print(const struct keyring *k, int64_t seq, struct str hash, struct strbuf *ret)
{
    struct strbuf text = {0};
    uint8_t mac[SEAL_MAC_LEN];
    sb_addf(ret, "%020lld %.*s%.*s ", (long long)seq, STR(hash), hash.n ? 0 : HEAD_HASH,
            "----------------------------------------------------------------");
    sb_addf(&text, "head,%s", ret->p);
    keyring_hmac(k, KEYRING_AUDIT, sb_str(&text), mac);
    sb_add_hex(ret, mac, sizeof mac);
    sb_add_char(ret, '\n');
    sb_free(&text);
}

static bool head_scan(const struct keyring *k, struct str text, struct head *ret)
{
    struct strbuf again = {0};
    uint64_t seq = 0;
    bool good = text.n == HEAD_LEN && str_to_u64(str_sub(text, 0, 20), &seq) && seq <= INT64_MAX;
    if (good) {
        struct str hash = str_sub(text, 21, HEAD_HASH);
        ret->seq = (int64_t)seq;
        memcpy(ret->hash, hash.p, HEAD_HASH);
        ret->hash[HEAD_HASH] = '\0';
        if (hash.p[0] == '-')
            ret->hash[0] = '\0';
        head_print(k, ret->seq, str_c(ret->hash), &again);
        good = again.n == text.n && str_eq_secret(again.p, text.p, text.n);
    }
    sb_free(&again);
    return good;
}

/* ERR_NOT_FOUND: there is none; ERR_INVALID: it is not one that was written. */
static enum err head_read(int fd, const struct keyring *k, struct head *ret)
{
    char text[HEAD_LEN + 1];
    ssize_t n = pread(fd, text, sizeof text, 0);
    if (n < 0)
        return ERR_UNAVAILABLE;
    if (n == 0)
        return ERR_NOT_FOUND;
    return head_scan(k, (struct str){text, (size_t)n}, ret) ? ERR_OK : ERR_INVALID;
}

/* What the row of the head's number is. */
static enum err head_fits(struct store *s, const struct head *h, bool *ret_fits, struct error *reterr)
{
    struct store_stmt *st = NULL;
    bool row = false;
    *ret_fits = h->seq == 0;
    if (h->seq == 0)
        return ERR_OK;
    enum err err = store_query(s, &st, reterr, "SELECT hash FROM audit WHERE seq=?", "i", h->seq);
    if (!err)
        err = store_step(st, &row, reterr);
    if (!err)
        *ret_fits = row && str_eq_c(store_col_str(st, 0), h->hash);
    store_done(&st);
    return err;
}

enum err audit_head_open(struct store *s, const struct keyring *k, const char *path, struct audit_head **ret, bool *ret_wrong,
                         struct strbuf *ret_why, struct error *reterr)
{
    struct strbuf hash = {0};
    struct head head = {0};
    int64_t seq = 0;
    bool fits = true, is_made = false;
    *ret = NULL;
    *ret_wrong = false;
    int fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0 && errno == ENOENT) {
        fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
        is_made = fd >= 0;
    }
    if (fd < 0) {
        log_warn("%s: %s: the end of the audit log is kept in the store alone", path, strerror(errno));
        return ERR_OK;
    }
    enum err err = newest(s, NULL, &hash, &seq, reterr);
    sb_free(&hash);
    enum err found = head_read(fd, k, &head);
    if (!err && found == ERR_OK)
        err = head_fits(s, &head, &fits, reterr);
    if (err) {
        close(fd);
        return err;
    }
    if (found == ERR_OK && !fits)
        sb_addf(ret_why, head.seq > seq ? "record %lld was written, the newest one is %lld" : "record %lld is not what was written (the newest one is %lld)",
                (long long)head.seq, (long long)seq);
    else if (found == ERR_NOT_FOUND && seq > 0)
        sb_addf(ret_why, "%s was not there", path);
    else if (found != ERR_OK && found != ERR_NOT_FOUND)
        sb_addf(ret_why, "%s is not what was written", path);
    *ret_wrong = ret_why->n > 0;
    struct audit_head *h = NEW(struct audit_head);
    *h = (struct audit_head){.fd = fd, .seq = -1, .is_fresh = is_made};
    *ret = h;
    return ERR_OK;
}

void audit_head_write(struct audit_head *h, struct store *s, const struct keyring *k)
{
    static unsigned long long told;
    struct strbuf hash = {0}, text = {0};
    struct error error = {0};
    int64_t seq = 0;
    if (!h)
        return;
    enum err err = newest(s, NULL, &hash, &seq, &error);
    if (!err && seq != h->seq) {
        head_print(k, seq, hash.n ? sb_str(&hash) : S(""), &text);
        /* One call, over a text of the same length: a process that is killed leaves the old one or this one. */
        if (pwrite(h->fd, text.p, text.n, 0) == (ssize_t)text.n)
            h->seq = seq;
        else
            log_limited(&told, 60000, LOG_LEVEL_ERROR, "audit.head cannot be written: %s", strerror(errno));
        if (h->is_fresh) /* from then on a crash leaves an earlier content, never none */
            h->is_fresh = fsync(h->fd) != 0;
    }
    sb_free(&hash);
    sb_free(&text);
}

void audit_head_free(struct audit_head **h)
{
    if (!*h)
        return;
    (void)fsync((*h)->fd); /* what is not there yet only makes it older */
    close((*h)->fd);
    MEM_FREE(*h);
}

/* ---- the check -------------------------------------------------------------------------------------------------------------------- */

static enum err chain_verify(struct store *s, const struct keyring *k, const struct head *head, int64_t *ret_records, struct error *reterr)
{
    struct strbuf sql = {0}, prev = {0}, hash = {0};
    struct store_stmt *st = NULL;
    int64_t n = 0;
    bool more;
    sb_addf(&sql, "%s ORDER BY seq", AUDIT_SELECT);
    enum err err = store_query(s, &st, reterr, sql.p, "");
    while (!err) {
        struct row row;
        err = store_step(st, &more, reterr);
        if (err || !more)
            break;
        row_of(st, &row);
        row_hash(k, &row, &hash);
        bool good = row.seq == n + 1 && str_eq(row.f[COL_PREV - COL_VENDOR], sb_str(&prev)) && str_eq(row.f[FIELDS], sb_str(&hash)) &&
                    (!head || head->seq != row.seq || str_eq_c(sb_str(&hash), head->hash));
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
    if (!err && head && head->seq > n)
        err = error_set(reterr, ERR_INVALID, "audit: the newest records are missing: %lld of %lld are there", (long long)n, (long long)head->seq);
    sb_free(&sql);
    sb_free(&prev);
    sb_free(&hash);
    if (!err)
        *ret_records = n;
    return err;
}

enum err audit_verify(struct store *s, const struct keyring *k, const char *head_path, int64_t *ret_records, struct error *reterr)
{
    struct head head = {0};
    enum err found = ERR_NOT_FOUND;
    int fd = head_path ? open(head_path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW) : -1;
    int e = errno;
    if (fd >= 0) {
        found = head_read(fd, k, &head);
        close(fd);
    }
    if (head_path && fd < 0 && e != ENOENT)
        return error_set(reterr, ERR_UNAVAILABLE, "%s: %s", head_path, strerror(e));
    enum err err = chain_verify(s, k, found == ERR_OK ? &head : NULL, ret_records, reterr);
    if (err || !head_path || found == ERR_OK)
        return err;
    return error_set(reterr, ERR_INVALID, found == ERR_NOT_FOUND ? "audit: %s is not there: whether the newest records are, cannot be known"
                                                                 : "audit: %s is not what was written",
                     head_path);
}

/* ---- export ----------------------------------------------------------------------------------------------------------------------- */

static const char *const EXPORT_NAMES[FIELDS + 1] = {"vendor_id", "actor",  "address", "request_id", "action",      "object",    "outcome",
                                                     "before",    "after", "actor_name", "vendor_prev", "prev_hash", "hash"};

enum err audit_export(struct store *s, const struct audit_range *r, struct strbuf *b, int64_t *ret_last, struct error *reterr)
{
    struct strbuf sql = {0};
    struct store_stmt *st = NULL;
    int64_t last = 0;
    int n = 0;
    bool more = false;
    sb_addf(&sql, "%s WHERE %s AND at_ms>=?2 AND at_ms<?3 AND seq>?4 ORDER BY seq LIMIT ?5", AUDIT_SELECT, r->vendor_id ? "vendor_id=?1" : "''=?1");
    enum err err = store_query(s, &st, reterr, sql.p, "ziiii", r->vendor_id ? r->vendor_id : "", r->from_ms, r->to_ms, r->after_seq,
                               (int64_t)r->limit + 1);
    while (!err) {
        struct row row;
        err = store_step(st, &more, reterr);
        if (err || !more || n == r->limit)
            break;
        row_of(st, &row);
        sb_addf(b, "{\"seq\":%lld,\"at_ms\":%lld,\"form\":%lld", (long long)row.seq, (long long)row.at_ms, (long long)row.form);
        for (int i = 0; i <= FIELDS; i++) {
            sb_addf(b, ",\"%s\":", EXPORT_NAMES[i]);
            sb_add_json(b, row.f[i]);
        }
        sb_addc(b, "}\n");
        last = row.seq;
        n++;
    }
    store_done(&st);
    sb_free(&sql);
    if (!err)
        *ret_last = more ? last : 0;
    return err;
}

enum err audit_read(struct audit_reader *r, struct str line, struct error *reterr)
{
    struct jv *v = NULL;
    struct strbuf hash = {0};
    enum err err = jv_parse(line, &JV_LIMITS_TRUSTED, &v, reterr);
    if (err)
        return error_set(reterr, ERR_INVALID, "after record %lld: no line of an export", (long long)r->seq);
    if (jv_type(jv_get(v, "seq")) != JV_INT) {
        jv_free(v);
        return ERR_OK;
    }
    struct row row = {.seq = jv_get_int(v, "seq", 0), .at_ms = jv_get_int(v, "at_ms", 0), .form = jv_get_int(v, "form", 0)};
    for (int i = 0; i <= FIELDS; i++)
        row.f[i] = jv_get_str(v, EXPORT_NAMES[i]);
    struct str vendor = row.f[0], vendor_prev = row.f[COL_VENDOR_PREV - COL_VENDOR], prev = row.f[COL_PREV - COL_VENDOR];
    row_hash(r->keys, &row, &hash);
    bool is_same_vendor = str_eq_c(vendor, r->vendor);
    r->has_gap = r->has_gap || (r->records && row.seq != r->seq + 1);
    r->is_mixed = r->is_mixed || (r->records && !is_same_vendor);
    if (!str_eq(row.f[FIELDS], sb_str(&hash)))
        err = error_set(reterr, ERR_INVALID, "record %lld is not what was written", (long long)row.seq);
    else if (row.seq <= r->seq)
        err = error_set(reterr, ERR_INVALID, "record %lld comes after record %lld", (long long)row.seq, (long long)r->seq);
    else if (row.seq == r->seq + 1 && r->seq && !str_eq_c(prev, r->hash))
        err = error_set(reterr, ERR_INVALID, "record %lld does not follow the one before it", (long long)row.seq);
    else if (row.seq == 1 && prev.n)
        err = error_set(reterr, ERR_INVALID, "record 1 follows another one");
    else if ((r->records && is_same_vendor && row.form != 1 && !str_eq_c(vendor_prev, r->vendor_hash)) || (r->is_mixed && r->has_gap))
        err = error_set(reterr, ERR_INVALID, "a record between %lld and %lld is missing", (long long)r->seq, (long long)row.seq);
    if (!err) {
        r->seq = row.seq;
        r->records++;
        snprintf(r->hash, sizeof r->hash, "%s", hash.p);
        snprintf(r->vendor, sizeof r->vendor, "%.*s", STR(vendor));
        snprintf(r->vendor_hash, sizeof r->vendor_hash, "%s", hash.p);
    }
    sb_free(&hash);
    jv_free(v);
    return err;
}
