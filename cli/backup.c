/* `pullgate backup` and `pullgate restore`: the store into a sealed file and back. What is restored is made newer than anything that
 * was ever projected, so that no proxy believes what Redis, or its own memory, knows of a future that did not happen. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "audit.h"
#include "outbox.h"
#include "pullgate/backup.h"
#include "pullgate/cache.h"
#include "pullgate/clock.h"
#include "pullgate/config.h"
#include "pullgate/file.h"
#include "pullgate/jv.h"
#include "pullgate/mem.h"
#include "pullgate/projection.h"
#include "pullgate/store.h"
#include "schema.h"

#include "cli.h"

#define NAME_PREFIX "pullgate-"
#define NAME_SUFFIX ".backup"
#define NAME_TIME   "20260101T000000Z" /* its form */
#define EPOCHS_A_SECOND 100000                 /* more changes than a store can have committed in a second */
#define EPOCH_MAX (UINT64_C(1) << 60)          /* beyond it is damage, not history */
#define REDIS_DEADLINE_MS 1000

struct options {
    const char *target, *config, *passphrase_file;
    uint64_t keep; /* 0: all */
    bool with_keys, check;
};

static struct options options_parse(int argc, char **argv, bool is_backup)
{
    struct options o = {0};

    for (int i = 0; i < argc; i++) {
        bool has_value = i + 1 < argc;
        if (strcmp(argv[i], "--config") == 0 && has_value)
            o.config = argv[++i];
        else if (strcmp(argv[i], "--passphrase-file") == 0 && has_value)
            o.passphrase_file = argv[++i];
        else if (strcmp(argv[i], "--with-keys") == 0)
            o.with_keys = true;
        else if (is_backup && strcmp(argv[i], "--keep") == 0 && has_value && str_to_u64(str_c(argv[i + 1]), &o.keep) && o.keep > 0)
            i++;
        else if (!is_backup && strcmp(argv[i], "--check") == 0)
            o.check = true;
        else if (argv[i][0] != '-' && o.target == NULL)
            o.target = argv[i];
        else
            die(EXIT_USAGE, is_backup ? "backup FILE|DIRECTORY [--config FILE] [--keep N] [--passphrase-file FILE [--with-keys]], not \"%s\""
                                      : "restore FILE [--config FILE] [--check] [--passphrase-file FILE [--with-keys]], not \"%s\"",
                argv[i]);
    }
    if (o.target == NULL)
        die(EXIT_USAGE, "%s needs a file%s", is_backup ? "backup" : "restore", is_backup ? " or a directory" : "");
    if (o.with_keys && o.passphrase_file == NULL)
        die(EXIT_USAGE, "--with-keys puts the keys into the backup: it needs --passphrase-file");
    return o;
}

static struct config *config_of(const struct options *o)
{
    struct config *cfg = NULL;
    struct error error = {0};

    if (config_load(o->config, &cfg, &error) != ERR_OK)
        die(EXIT_USAGE, "%s", error.text);
    if (store_file(cfg->store.url) == NULL)
        die(EXIT_USAGE, "store.url is no SQLite file: it is backed up by its own means");
    return cfg;
}

static struct str passphrase_of(const struct options *o)
{
    struct stat st;

    if (o->passphrase_file == NULL)
        return (struct str){0};
    if (strcmp(o->passphrase_file, "-") != 0 && stat(o->passphrase_file, &st) == 0 && (st.st_mode & 077) != 0)
        die(EXIT_USAGE, "%s may be read by others: chmod 600 it", o->passphrase_file);
    char *text = read_file(o->passphrase_file);
    if (strlen(text) < 12)
        die(EXIT_USAGE, "%s: a passphrase has at least 12 characters", o->passphrase_file);
    return str_c(text);
}

/* ---- backup ---------------------------------------------------------------------------------------------------------------- */

static struct error problem;

static void must(enum err e)
{
    if (e != ERR_OK)
        die(e == ERR_DENIED ? EXIT_DENIED : EXIT_FAILED, "%s", problem.text[0] != '\0' ? problem.text : err_text(e));
}

static enum err schema_of(struct store *s, int64_t *ret, struct error *reterr)
{
    struct store_stmt *st = NULL;
    bool row = false;
    enum err e = store_query(s, &st, reterr, "SELECT COALESCE(MAX(version),0) FROM schema_migrations", "");

    if (!e)
        e = store_step(st, &row, reterr);
    if (!e)
        *ret = row ? store_col_int(st, 0) : 0;
    store_done(&st);
    return e;
}

/* Structure, foreign keys. ERR_INVALID: damaged. */
static enum err intact(struct store *s, const char *what, struct error *reterr)
{
    struct store_stmt *st = NULL;
    bool row = false;
    enum err e = store_query(s, &st, reterr, "PRAGMA integrity_check(1)", "");

    if (!e)
        e = store_step(st, &row, reterr);
    if (!e && (!row || !str_eq_c(store_col_str(st, 0), "ok")))
        e = error_set(reterr, ERR_INVALID, "%s is damaged: %.*s", what, STR(str_sub(store_col_str(st, 0), 0, 200)));
    store_done(&st);
    if (!e)
        e = store_query(s, &st, reterr, "PRAGMA foreign_key_check", "");
    if (!e)
        e = store_step(st, &row, reterr);
    if (!e && row)
        e = error_set(reterr, ERR_INVALID, "%s is damaged: rows refer to others that are not there", what);
    store_done(&st);
    return e;
}

/* A store that was only a step on the way. */
static void beside_remove(const char *path)
{
    static const char *const tails[] = {"", "-wal", "-shm", ".lock"};

    for (size_t i = 0; i < sizeof tails / sizeof *tails; i++) {
        struct strbuf name = {0};
        sb_addf(&name, "%s%s", path, tails[i]);
        unlink(name.p);
        sb_free(&name);
    }
}

static void hash_file(int fd, struct backup_head *h)
{
    char *buf = mem_alloc(65536);
    struct hasher *hash = hasher_new(DIGEST_SHA256);
    struct digest sum;
    ssize_t n;

    h->store_bytes = 0;
    while ((n = pread(fd, buf, 65536, (off_t)h->store_bytes)) > 0) {
        hasher_update(hash, buf, (size_t)n);
        h->store_bytes += (uint64_t)n;
    }
    if (n < 0)
        die(EXIT_FAILED, "the copy of the store cannot be read: %s", strerror(errno));
    hasher_final(hash, &sum);
    hasher_free(&hash);
    mem_free(buf);
    memcpy(h->store_sha256, sum.bytes, 32);
}

/* A copy of the running store beside the target, opened and gone from the directory. */
static int copy_store(const struct config *cfg, const char *target, struct backup_head *h)
{
    struct store *s = NULL;
    struct strbuf path = {0}, url = {0};
    uint8_t r[8];
    uint64_t epoch = 0;

    seal_random(r, sizeof r);
    sb_addf(&path, "%s.", target);
    sb_add_hex(&path, r, sizeof r);
    sb_addc(&path, ".store");
    must(store_open(cfg->store.url, true, &s, &problem));
    enum err e = store_backup(s, path.p, &problem);
    store_close(&s);
    must(e);
    int fd = open(path.p, O_RDONLY | O_CLOEXEC), code = errno;
    char *absolute = realpath(path.p, NULL);
    sb_addf(&url, "sqlite://%s", absolute != NULL ? absolute : path.p);
    /* Judged by itself: what cannot be restored is no backup. */
    e = store_open(url.p, true, &s, &problem);
    if (!e)
        e = intact(s, "the store", &problem);
    if (!e)
        e = schema_of(s, &h->schema, &problem);
    if (!e)
        e = outbox_epoch(s, &epoch, &problem);
    h->epoch = epoch;
    store_close(&s);
    beside_remove(path.p);
    must(e);
    if (fd < 0)
        die(EXIT_FAILED, "%s: %s", path.p, strerror(code));
    hash_file(fd, h);
    mem_free(absolute);
    sb_free(&path);
    sb_free(&url);
    return fd;
}

static void keys_read(const char *directory, struct backup_key_files *ret)
{
    DIR *d = opendir(directory);
    struct dirent *entry;

    if (d == NULL)
        die(EXIT_FAILED, "%s: %s", directory, strerror(errno));
    while (errno = 0, (entry = readdir(d)) != NULL) {
        size_t n = strlen(entry->d_name);
        if (entry->d_name[0] == '.' || n < 5 || strcmp(entry->d_name + n - 4, ".key") != 0)
            continue;
        struct backup_key_file *f = &ret->list[ret->n];
        if (ret->n == BACKUP_KEY_FILES_MAX || n >= sizeof f->name)
            die(EXIT_FAILED, "%s holds more than %d keys, or one with a long name", directory, BACKUP_KEY_FILES_MAX);
        f->bytes = mem_alloc(BACKUP_KEY_FILE_BYTES);
        int fd = openat(dirfd(d), entry->d_name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
        ssize_t got = fd < 0 ? -1 : file_read_full(fd, f->bytes, BACKUP_KEY_FILE_BYTES);
        if (got < 0)
            die(EXIT_FAILED, "%s/%s: %s", directory, entry->d_name, strerror(errno));
        if (got == BACKUP_KEY_FILE_BYTES)
            die(EXIT_FAILED, "%s/%s is too long to be a key", directory, entry->d_name);
        close(fd);
        f->n = (size_t)got;
        memcpy(f->name, entry->d_name, n + 1);
        ret->n++;
    }
    if (errno != 0)
        die(EXIT_FAILED, "%s: %s", directory, strerror(errno));
    closedir(d);
    if (ret->n == 0)
        die(EXIT_FAILED, "%s holds no keys", directory);
}

struct made_before {
    char *name;
    uint64_t number; /* of those of one second */
};

/* One that target_name() makes: prefix, time, perhaps -number, suffix. */
static bool name_scan(const char *text, uint64_t *ret_number)
{
    static const char form[] = NAME_TIME;
    struct str name = str_c(text);

    if (!str_starts(name, S(NAME_PREFIX)) || !str_ends(name, S(NAME_SUFFIX)) || name.n < strlen(NAME_PREFIX NAME_TIME NAME_SUFFIX))
        return false;
    struct str time = str_sub(name, strlen(NAME_PREFIX), strlen(form));
    struct str rest = str_sub(name, strlen(NAME_PREFIX NAME_TIME), name.n - strlen(NAME_PREFIX NAME_TIME NAME_SUFFIX));
    for (size_t i = 0; i < time.n; i++)
        if (form[i] >= '0' && form[i] <= '9' ? time.p[i] < '0' || time.p[i] > '9' : time.p[i] != form[i])
            return false;
    *ret_number = 1;
    return rest.n == 0 || (rest.p[0] == '-' && str_to_u64(str_skip(rest, 1), ret_number));
}

static int by_age(const void *a, const void *b)
{
    const struct made_before *x = a, *y = b;
    int order = memcmp(x->name + strlen(NAME_PREFIX), y->name + strlen(NAME_PREFIX), strlen(NAME_TIME));
    return order != 0 ? order : (x->number > y->number) - (x->number < y->number);
}

/* All but the newest; how many those were. */
static unsigned prune(const char *directory, uint64_t keep)
{
    struct made_before *list = NULL;
    size_t n = 0;
    unsigned removed = 0;
    DIR *d = opendir(directory);
    struct dirent *entry;

    if (d == NULL)
        die(EXIT_FAILED, "%s: %s", directory, strerror(errno));
    while ((entry = readdir(d)) != NULL) {
        uint64_t number;
        if (!name_scan(entry->d_name, &number))
            continue;
        list = mem_realloc(list, (n + 1) * sizeof *list);
        list[n++] = (struct made_before){mem_strdup(entry->d_name), number};
    }
    if (n > 0)
        qsort(list, n, sizeof *list, by_age);
    for (size_t i = 0; i < n; i++) {
        if (keep < n - i && unlinkat(dirfd(d), list[i].name, 0) == 0)
            removed++;
        mem_free(list[i].name);
    }
    mem_free(list);
    closedir(d);
    return removed;
}

static void target_name(const struct options *o, bool *ret_directory, struct strbuf *ret)
{
    struct stat st;
    char now[CLOCK_RFC3339_MAX];

    *ret_directory = stat(o->target, &st) == 0 && S_ISDIR(st.st_mode);
    if (!*ret_directory) {
        if (o->keep > 0)
            die(EXIT_USAGE, "--keep goes with a directory");
        sb_addc(ret, o->target);
        return;
    }
    clock_rfc3339(clock_now_s(), now);
    sb_addf(ret, "%s/" NAME_PREFIX, o->target);
    for (const char *c = now; *c != '\0'; c++)
        if (*c != '-' && *c != ':')
            sb_add_char(ret, *c);
    size_t stem = ret->n;
    sb_addc(ret, NAME_SUFFIX);
    for (unsigned i = 2; lstat(ret->p, &st) == 0 && i < 1000; i++) { /* two in one second */
        ret->n = stem;
        sb_addf(ret, "-%u" NAME_SUFFIX, i);
    }
}

static void head_show(const struct backup_head *h, const char *path, const char *word, unsigned removed)
{
    char made[CLOCK_RFC3339_MAX];

    clock_rfc3339(h->made_s, made);
    if (cli.json) {
        struct jv *v = jv_object();
        struct strbuf b = {0};
        jv_set_c(v, "file", path);
        jv_set_c(v, "made_at", made);
        jv_set_int(v, "schema", h->schema);
        jv_set_int(v, "epoch", (int64_t)h->epoch);
        jv_set_int(v, "store_bytes", (int64_t)h->store_bytes);
        jv_set_c(v, "sealed_under", h->by_passphrase ? "passphrase" : "keys");
        jv_set_int(v, "removed", removed);
        jv_dump(v, &b);
        puts(b.p);
        sb_free(&b);
        jv_free(v);
        return;
    }
    printf("%s %s: made %s, schema %lld, change %llu, %llu bytes, sealed under %s%s%s\n", path, word, made, (long long)h->schema,
           (unsigned long long)h->epoch, (unsigned long long)h->store_bytes, h->by_passphrase ? "the passphrase" : "the keys directory ",
           h->by_passphrase ? "" : h->key_id, removed > 0 ? "; older ones removed" : "");
}

int backup_command(int argc, char **argv)
{
    struct options o = options_parse(argc, argv, true);
    struct config *cfg = config_of(&o);
    struct backup_secret secret = {.passphrase = passphrase_of(&o)};
    struct backup_key_files files = {0};
    struct strbuf target = {0};
    struct keyring *keys = NULL;
    bool is_directory;

    umask(077);
    if (secret.passphrase.n == 0) {
        must(keyring_open(cfg->keys.path, false, &keys, &problem));
        secret.keys = keys;
    }
    if (o.with_keys)
        keys_read(cfg->keys.path, &files);
    target_name(&o, &is_directory, &target);
    struct backup_head h = {.made_s = clock_now_s()};
    int fd = copy_store(cfg, target.p, &h);
    must(backup_write(target.p, &h, &secret, fd, &files, &problem));
    close(fd);
    head_show(&h, target.p, "is good", is_directory && o.keep > 0 ? prune(o.target, o.keep) : 0);
    backup_key_files_free(&files);
    if (keys != NULL)
        keyring_free(keys);
    config_unref(&cfg);
    return EXIT_OK;
}

/* ---- restore --------------------------------------------------------------------------------------------------------------- */

/* The newest change that anybody may have seen: of the store that is replaced and of Redis, where they can be asked, and in any case
 * more than the time since the backup can have brought. */
static uint64_t newest_epoch(const struct config *cfg, const struct keyring *keys, const struct backup_head *h)
{
    uint64_t newest = h->epoch, seen = 0;
    int64_t since = clock_now_s() - h->made_s;
    struct store *old = NULL;

    newest += (since > 0 ? (uint64_t)since + 60 : 60) * EPOCHS_A_SECOND;
    if (access(store_file(cfg->store.url), R_OK) == 0 && store_open(cfg->store.url, true, &old, NULL) == ERR_OK) {
        if (outbox_epoch(old, &seen, NULL) == ERR_OK && seen < EPOCH_MAX && seen > newest)
            newest = seen;
        store_close(&old);
    }
    struct cache_sync *redis = cache_sync_new(cfg, REDIS_DEADLINE_MS);
    const struct cache_reply *r;
    struct str get[] = {S("GET"), S(PROJECTION_ROOT_KEY)}, payload;
    if (cache_sync_command(redis, get, 2, &r, NULL) == ERR_OK && r->type == CACHE_STRING &&
        projection_unwrap(keys, S(PROJECTION_ROOT_KEY), r->str, &seen, &payload) == ERR_OK && seen < EPOCH_MAX && seen > newest)
        newest = seen;
    cache_sync_free(&redis);
    return newest;
}

/* Every fact changed, and in every bucket something: no value, bucket or root of the time after the backup is new enough to be believed. */
static enum err epochs_raise(struct store *s, uint64_t newest, struct error *reterr)
{
    bool covered[PROJECTION_BUCKETS] = {false};
    unsigned left = PROJECTION_BUCKETS;
    struct store_stmt *st = NULL;
    bool row = true;
    enum err e = store_exec(s, NULL, reterr, "INSERT INTO outbox (id, created_ms, fact) VALUES (?,?,'u:restored')", "ii", (int64_t)newest, clock_now_ms());

    if (!e)
        e = store_exec(s, NULL, reterr,
                       "UPDATE fact_epochs SET epoch=? + r.n FROM (SELECT fact AS f, row_number() OVER (ORDER BY epoch, fact) AS n FROM fact_epochs) AS r"
                       " WHERE r.f=fact_epochs.fact",
                       "i", (int64_t)newest);
    if (!e)
        e = store_query(s, &st, reterr, "SELECT DISTINCT bucket FROM fact_epochs", "");
    while (!e && !(e = store_step(st, &row, reterr)) && row) {
        int64_t b = store_col_int(st, 0);
        if (b >= 0 && b < PROJECTION_BUCKETS && !covered[b]) {
            covered[b] = true;
            left--;
        }
    }
    store_done(&st);
    if (!e)
        e = store_exec(s, NULL, reterr, "INSERT INTO outbox (id, created_ms, fact) SELECT MAX(epoch), ?, 'u:restored' FROM fact_epochs WHERE epoch > ?", "ii",
                       clock_now_ms(), (int64_t)newest);
    for (unsigned i = 0; !e && left > 0; i++) { /* names of facts that never exist, one of each bucket that has none */
        struct strbuf fact = {0};
        sb_addf(&fact, "u:restored.%u", i);
        unsigned b = projection_bucket_of(sb_str(&fact));
        if (!covered[b]) {
            covered[b] = true;
            left--;
            e = outbox_put(s, sb_str(&fact), false, reterr);
        }
        sb_free(&fact);
    }
    return e;
}

static enum err audit_restore(struct store *s, const struct keyring *keys, const struct backup_head *h, struct error *reterr)
{
    struct store_stmt *st = NULL;
    struct strbuf vendor = {0}, actor = {0};
    char made[CLOCK_RFC3339_MAX];
    bool row = false;
    enum err e = store_query(s, &st, reterr, "SELECT id FROM vendors WHERE is_first=1", "");

    if (!e)
        e = store_step(st, &row, reterr);
    if (!e && row)
        sb_add(&vendor, store_col_str(st, 0));
    store_done(&st);
    if (e || !row)
        return e;
    struct jv *after = jv_object();
    jv_set_c(after, "made_at", clock_rfc3339(h->made_s, made));
    jv_set_int(after, "epoch", (int64_t)h->epoch);
    sb_addf(&actor, "system");
    const struct audit_record r = {.vendor_id = vendor.p,
                                   .actor = actor.p,
                                   .address = "",
                                   .request_id = "",
                                   .action = "store.restore",
                                   .object = vendor.p,
                                   .outcome = "ok",
                                   .after = after};
    e = audit_put(s, keys, &r, reterr);
    jv_free(after);
    sb_free(&vendor);
    sb_free(&actor);
    return e;
}

/* The copy becomes the next store: known schema, intact, newer than everything. */
static enum err prepare(const struct config *cfg, const struct keyring *keys, const char *url, const struct backup_head *h, struct error *reterr)
{
    struct store *s = NULL;
    enum err e = store_open(url, false, &s, reterr);

    if (!e)
        e = intact(s, "the store in the backup", reterr);
    if (!e)
        e = store_migrate(s, SCHEMA_MIGRATIONS, SCHEMA_MIGRATIONS_N, reterr);
    if (!e)
        e = store_begin(s, reterr);
    if (!e)
        e = epochs_raise(s, newest_epoch(cfg, keys, h), reterr);
    if (!e)
        e = audit_restore(s, keys, h, reterr);
    if (!e)
        e = store_commit(s, reterr);
    store_close(&s);
    return e;
}

/* Whose the file is to be: of who owned the store, else the directory's. Root alone can say so, and only root must. */
static bool owner_set(int fd, const char *path)
{
    struct stat st;
    char *directory = mem_strdup(path);
    char *slash = strrchr(directory, '/');

    slash[slash == directory] = '\0';
    bool known = stat(path, &st) == 0 || stat(directory, &st) == 0;
    mem_free(directory);
    return geteuid() != 0 || (known && fchown(fd, st.st_uid, st.st_gid) == 0);
}

static enum err key_write(int d, const char *directory, const struct stat *owner, const struct backup_key_file *f, struct error *reterr)
{
    char there[BACKUP_KEY_FILE_BYTES];
    int fd = openat(d, f->name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);

    if (fd >= 0) {
        ssize_t n = file_read_full(fd, there, sizeof there);
        close(fd);
        bool same = n == (ssize_t)f->n && str_eq_secret(there, f->bytes, f->n);
        mem_cleanse(there, sizeof there);
        return same ? ERR_OK
                    : error_set(reterr, ERR_CONFLICT, "%s/%s is there and is another key: move the directory away to restore the keys of the backup", directory,
                                f->name);
    }
    fd = openat(d, f->name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return error_set(reterr, ERR_UNAVAILABLE, "%s/%s: %s", directory, f->name, strerror(errno));
    bool good = file_write_all(fd, (struct str){f->bytes, f->n}) && (geteuid() != 0 || fchown(fd, owner->st_uid, owner->st_gid) == 0) && fsync(fd) == 0;
    int code = errno;
    close(fd);
    if (good)
        return ERR_OK;
    unlinkat(d, f->name, 0); /* or the next try would take a part of it for another key */
    return error_set(reterr, ERR_UNAVAILABLE, "%s/%s: %s", directory, f->name, strerror(code));
}

/* Into a keys directory that has none of them; one that is there already must be the same. */
static enum err keys_write(const char *directory, const struct backup_key_files *files, struct error *reterr)
{
    struct stat st;

    if (mkdir(directory, 0700) != 0 && errno != EEXIST)
        return error_set(reterr, ERR_UNAVAILABLE, "%s: %s", directory, strerror(errno));
    int d = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (d < 0)
        return error_set(reterr, ERR_UNAVAILABLE, "%s: %s", directory, strerror(errno));
    enum err e = fstat(d, &st) == 0 ? ERR_OK : error_set(reterr, ERR_UNAVAILABLE, "%s: %s", directory, strerror(errno));
    for (size_t i = 0; !e && i < files->n; i++)
        e = key_write(d, directory, &st, &files->list[i], reterr);
    if (!e && fsync(d) != 0)
        e = error_set(reterr, ERR_UNAVAILABLE, "%s: %s", directory, strerror(errno));
    close(d);
    return e;
}

static enum err schema_check(const char *file, const struct backup_head *h, struct error *reterr)
{
    const int knows = SCHEMA_MIGRATIONS[SCHEMA_MIGRATIONS_N - 1].version;

    if (h->schema <= knows)
        return ERR_OK;
    return error_set(reterr, ERR_INVALID, "%s: holds schema %lld, this program knows %d: it was made by a newer one", file, (long long)h->schema, knows);
}

static int restore_check(const struct options *o, const struct backup_secret *secret)
{
    struct backup_head h;

    must(backup_read(o->target, secret, -1, &h, NULL, &problem));
    must(schema_check(o->target, &h, &problem));
    head_show(&h, o->target, "is good", 0);
    return EXIT_OK;
}

/* What was put back is the log from here on: its head, where this machine keeps one, follows. A daemon makes the first one itself. */
static void head_follow(const struct config *cfg, const struct keyring *keys)
{
    struct store *s = NULL;
    struct strbuf path = {0}, why = {0};
    struct audit_head *head = NULL;
    struct error error = {0};
    bool is_wrong = false;

    audit_head_path(cfg->keys.path, &path);
    if (access(path.p, F_OK) == 0 && !store_open(cfg->store.url, true, &s, &error) && !audit_head_open(s, keys, path.p, &head, &is_wrong, &why, &error))
        audit_head_write(head, s, keys);
    audit_head_free(&head);
    store_close(&s);
    sb_free(&path);
    sb_free(&why);
}

int restore_command(int argc, char **argv)
{
    struct options o = options_parse(argc, argv, false);
    struct config *cfg = config_of(&o);
    struct backup_secret secret = {.passphrase = passphrase_of(&o)};
    struct backup_head h = {0};
    struct backup_key_files files = {0};
    struct keyring *keys = NULL;
    struct store_claim *claim = NULL;
    struct strbuf fresh = {0}, url = {0}, aside = {0};

    umask(077);
    must(backup_read_head(o.target, &h, &problem));
    enum err e = keyring_open(cfg->keys.path, false, &keys, &problem);
    if (e && !h.by_passphrase)
        die(EXIT_DENIED, "%s is sealed under the keys directory %s, and that of keys.path cannot be used: %s", o.target, h.key_id, problem.text);
    secret.keys = keys;
    if (o.check)
        return restore_check(&o, &secret);
    must(store_claim(cfg->store.url, &claim, &problem));
    sb_addf(&fresh, "%s.restored", store_file(cfg->store.url));
    sb_addf(&url, "sqlite://%s", fresh.p);
    beside_remove(fresh.p); /* of a restore that was cut */
    int fd = open(fresh.p, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        die(EXIT_FAILED, "%s: %s", fresh.p, strerror(errno));
    e = backup_read(o.target, &secret, fd, &h, &files, &problem);
    if (!e)
        e = schema_check(o.target, &h, &problem);
    if (!e && o.with_keys && files.n == 0)
        e = error_set(&problem, ERR_INVALID, "%s: holds no keys: it was made without --with-keys", o.target);
    if (!e && o.with_keys)
        e = keys_write(cfg->keys.path, &files, &problem);
    if (!e && o.with_keys) {
        if (keys != NULL)
            keyring_free(keys);
        keys = NULL;
    }
    if (!e && keys == NULL)
        e = keyring_open(cfg->keys.path, false, &keys, &problem);
    if (!e)
        e = prepare(cfg, keys, url.p, &h, &problem);
    if (!e && (!owner_set(fd, store_file(cfg->store.url)) || fsync(fd) != 0))
        e = error_set(&problem, ERR_UNAVAILABLE, "%s: %s", fresh.p, strerror(errno));
    if (!e)
        e = store_claim_replace(claim, fresh.p, &aside, &problem);
    close(fd);
    beside_remove(fresh.p);
    must(e);
    head_follow(cfg, keys);
    store_claim_release(&claim);
    head_show(&h, o.target, "is restored", 0);
    if (!cli.json)
        printf("%s%s%sstart pullgate-admin: it fills Redis, and the proxies follow\n", aside.n > 0 ? "what was there is kept as " : "", aside.n > 0 ? aside.p : "",
               aside.n > 0 ? "; " : "");
    backup_key_files_free(&files);
    keyring_free(keys);
    config_unref(&cfg);
    return EXIT_OK;
}
