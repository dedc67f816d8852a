#include "start.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "audit.h"
#include "db.h"
#include "pullgate/clock.h"
#include "pullgate/credential.h"
#include "pullgate/jv.h"
#include "pullgate/log.h"
#include "pullgate/mem.h"

#define BOOTSTRAP_MIN  32          /* characters */
#define BOOTSTRAP_MAX  512         /* as long a token as the API looks at */
#define OUTBOX_KEEP_S  (7 * 86400) /* outbox rows are kept this long, for people who look; fact_epochs holds what counts */
#define CLOCK_BEHIND_S 300         /* a clock this far behind the highest time seen is not trusted */

/* ---- the audit log's head ------------------------------------------------------------------------------------------------ */

static enum err audit_start(struct store *s, void *arg, struct error *reterr)
{
    struct admin *a = arg;
    struct strbuf path = {0}, why = {0}, vendor = {0};
    struct store_stmt *st = NULL;
    bool is_wrong = false, row = false;
    audit_head_path(a->cfg->keys.path, &path);
    enum err err = audit_head_open(s, a->keys, path.p, &a->audit_head, &is_wrong, &why, reterr);
    if (err || !is_wrong)
        goto out;
    log_error("audit: rows may have been taken away: %s", why.p);
    err = store_query(s, &st, reterr, "SELECT id FROM vendors WHERE is_first=1", "");
    if (!err)
        err = store_step(st, &row, reterr);
    if (!err && row)
        sb_add(&vendor, store_col_str(st, 0));
    store_done(&st);
    if (!err) {
        struct jv *after = jv_object();
        jv_set_str(after, "detail", sb_str(&why));
        const struct audit_record r = {.vendor_id = vendor.p ? vendor.p : "",
                                       .actor = "system",
                                       .address = "",
                                       .request_id = "",
                                       .action = "audit.head",
                                       .object = "audit.head",
                                       .outcome = "ok",
                                       .after = after};
        err = audit_put(s, a->keys, &r, reterr);
        jv_free(after);
    }
out:
    sb_free(&path);
    sb_free(&why);
    sb_free(&vendor);
    return err;
}

enum err start_audit(struct admin *a, struct error *reterr)
{
    return db_run(a->writer, DB_TRANSACTION, audit_start, a, reterr);
}

/* ---- the first vendor -------------------------------------------------------------------------------------------------- */

static enum err vendor_make(struct store *s, void *arg, struct error *reterr)
{
    struct admin *a = arg;
    struct store_stmt *st = NULL;
    bool row = false;
    enum err err = store_query(s, &st, reterr, "SELECT 1 FROM vendors WHERE is_first=1", "");
    if (!err)
        err = store_step(st, &row, reterr);
    store_done(&st);
    if (err || row)
        return err;

    const struct config *c = a->cfg;
    char id[ID_MAX];
    int64_t now = clock_now_s();
    id_new("ven_", id);
    const char *slug = c->admin.vendor_slug && *c->admin.vendor_slug ? c->admin.vendor_slug : "default";
    const char *name = c->admin.vendor_name && *c->admin.vendor_name ? c->admin.vendor_name : slug;
    const char *zone = c->admin.time_zone && *c->admin.time_zone ? c->admin.time_zone : "UTC";
    if (!clock_zone_exists(zone))
        return error_set_field(reterr, ERR_INVALID, "admin.time_zone", "admin.time_zone: no such zone: %s", zone);
    err =
        store_exec(s, NULL, reterr,
                   "INSERT INTO vendors (id, slug, name, is_first, time_zone, renew_url, created_at, updated_at) VALUES (?,?,?,1,?,?,?,?)",
                   "zzzzzii", id, slug, name, zone, c->admin.renew_url ? c->admin.renew_url : "", now, now);
    if (err)
        return err;
    struct jv *after = jv_object();
    jv_set_c(after, "id", id);
    jv_set_c(after, "slug", slug);
    const struct audit_record r = {.vendor_id = id,
                                   .actor = "system",
                                   .address = "",
                                   .request_id = "",
                                   .action = "vendor.create",
                                   .object = id,
                                   .outcome = "ok",
                                   .after = after};
    err = audit_put(s, a->keys, &r, reterr);
    jv_free(after);
    if (!err)
        log_info("first start: made the vendor \"%s\"", slug);
    return err;
}

enum err start_vendor(struct admin *a, struct error *reterr)
{
    return db_run(a->writer, DB_TRANSACTION, vendor_make, a, reterr);
}

/* ---- the bootstrap token ----------------------------------------------------------------------------------------------- */

static enum err bootstrap_write(struct store *s, const struct admin *a, const char *hash, struct error *reterr)
{
    struct store_stmt *st = NULL;
    struct strbuf vendor = {0};
    bool row = false, is_same = false;
    enum err err = store_query(
        s, &st, reterr,
        "SELECT v.id, t.hash FROM vendors v LEFT JOIN api_tokens t ON t.vendor_id=v.id AND t.is_bootstrap=1 WHERE v.is_first=1", "");
    if (!err)
        err = store_step(st, &row, reterr);
    if (!err && !row)
        err = error_set(reterr, ERR_INTERNAL, "there is no first vendor");
    if (!err) {
        struct str old = store_col_str(st, 1);
        sb_add(&vendor, store_col_str(st, 0));
        is_same = old.n == strlen(hash) && str_eq_secret(old.p, hash, old.n);
    }
    store_done(&st);
    if (err || is_same) {
        sb_free(&vendor);
        return err;
    }
    char id[ID_MAX];
    id_new("tok_", id);
    err = store_exec(s, NULL, reterr, "DELETE FROM api_tokens WHERE is_bootstrap=1", "");
    if (!err)
        err = store_exec(s, NULL, reterr,
                         "INSERT INTO api_tokens (id, vendor_id, name, role, hash, prefix, is_bootstrap, created_at) VALUES "
                         "(?,?,'bootstrap','operator',?,'',1,?)",
                         "zszi", id, sb_str(&vendor), hash, clock_now_s());
    if (err == ERR_CONFLICT)
        err = error_set_field(reterr, ERR_INVALID, "admin.bootstrap_token_file",
                              "admin.bootstrap_token_file: this is a token that was made by the API");
    if (!err) {
        const struct audit_record r = {.vendor_id = vendor.p,
                                       .actor = "system",
                                       .address = "",
                                       .request_id = "",
                                       .action = "token.bootstrap",
                                       .object = id,
                                       .outcome = "ok"};
        err = audit_put(s, a->keys, &r, reterr);
    }
    sb_free(&vendor);
    return err;
}

static enum err bootstrap_refuse(const char *path, const char *why, struct error *reterr)
{
    return error_set_field(reterr, ERR_INVALID, "admin.bootstrap_token_file", "admin.bootstrap_token_file: %s: %s", path, why);
}

/* A job of the writer, which also may wait for the file. */
static enum err bootstrap_take(struct store *s, void *arg, struct error *reterr)
{
    const struct admin *a = arg;
    const char *path = admin_config(a)->admin.bootstrap_token_file;
    if (!path || !*path)
        return ERR_OK;
    char text[BOOTSTRAP_MAX + 64];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text);
    int e = errno;
    if (fd >= 0)
        close(fd);
    if (n < 0)
        return bootstrap_refuse(path, strerror(e), reterr);

    struct str token = {text, (size_t)n};
    while (token.n && token.p[token.n - 1] != '\0' && strchr(" \t\r\n", token.p[token.n - 1]))
        token.n--;
    token = str_trim(token);
    enum err err = ERR_OK;
    if (token.n < BOOTSTRAP_MIN)
        err = bootstrap_refuse(path, "the token must have at least 32 characters", reterr);
    if (!err && token.n > BOOTSTRAP_MAX)
        err = bootstrap_refuse(path, "the token has more than 512 characters", reterr);
    for (size_t i = 0; !err && i < token.n; i++)
        if (token.p[i] <= 0x20 || token.p[i] >= 0x7f)
            err = bootstrap_refuse(path, "the token may hold printable ASCII only, and no blanks", reterr);
    if (!err) {
        char hash[CREDENTIAL_HASH_MAX];
        credential_hash(a->keys, token, hash);
        err = bootstrap_write(s, a, hash, reterr);
    }
    mem_cleanse(text, sizeof text);
    return err;
}

enum err start_bootstrap_token(struct admin *a, struct error *reterr)
{
    return db_run(a->writer, DB_TRANSACTION, bootstrap_take, a, reterr);
}

static enum err bootstrap_reload(struct store *s, void *arg, struct error *reterr)
{
    enum err err = bootstrap_take(s, arg, reterr);
    if (err)
        log_error("reload: %s; the token stays", reterr->text);
    return err;
}

void start_reload_token(struct admin *a)
{
    if (db_post(a->writer, DB_TRANSACTION, bootstrap_reload, a, NULL))
        log_error("reload: the store is busy; the token stays");
}

/* ---- the clock --------------------------------------------------------------------------------------------------------- */

struct clock_check {
    int64_t now_s;
    bool is_bad;
    void (*done)(void *ctx, enum err err, bool is_bad);
    void *ctx;
};

static enum err clock_write(struct store *s, void *arg, struct error *reterr)
{
    struct clock_check *c = arg;
    struct store_stmt *st = NULL;
    bool row = false;
    int64_t high = 0;
    enum err err = store_query(s, &st, reterr, "SELECT CAST(value AS INTEGER) FROM meta WHERE key='clock_high_water'", "");
    if (!err)
        err = store_step(st, &row, reterr);
    if (!err && row)
        high = store_col_int(st, 0);
    store_done(&st);
    c->is_bad = !err && c->now_s < high - CLOCK_BEHIND_S;
    if (!err && c->now_s > high)
        err = store_exec(s, NULL, reterr,
                         "INSERT INTO meta (key, value) VALUES ('clock_high_water', ?1) ON CONFLICT (key) DO UPDATE SET value=?1", "i",
                         c->now_s);
    return err;
}

enum err start_check_clock(struct admin *a, bool *ret_bad, struct error *reterr)
{
    struct clock_check c = {.now_s = clock_now_s()};
    enum err err = db_run(a->writer, DB_TRANSACTION, clock_write, &c, reterr);
    if (!err)
        *ret_bad = c.is_bad;
    return err;
}

static enum err minute_write(struct store *s, void *arg, struct error *reterr)
{
    const struct clock_check *c = arg;
    enum err err = clock_write(s, arg, reterr);
    return err ? err
               : store_exec(s, NULL, reterr,
                            "DELETE FROM outbox WHERE id IN (SELECT id FROM outbox ORDER BY id LIMIT 10000) AND created_ms<?", "i",
                            (c->now_s - OUTBOX_KEEP_S) * 1000);
}

static void clock_done(void *arg, enum err err)
{
    struct clock_check *c = arg;
    c->done(c->ctx, err, c->is_bad);
    mem_free(c);
}

void start_watch_clock(struct admin *a, void (*done)(void *ctx, enum err err, bool is_bad), void *ctx)
{
    struct clock_check *c = NEW(struct clock_check);
    *c = (struct clock_check){.now_s = clock_now_s(), .done = done, .ctx = ctx};
    if (db_post(a->writer, DB_TRANSACTION, minute_write, c, clock_done))
        clock_done(c, ERR_UNAVAILABLE);
}
