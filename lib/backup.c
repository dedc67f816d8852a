/* Backup files. Written to a temporary name and renamed; read strictly, since a restore believes what comes out. Memory is a chunk, however
 * large the store. */
#include "pullgate/backup.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "pullgate/clock.h"
#include "pullgate/file.h"
#include "pullgate/mem.h"

#define CHUNK_BYTES 65536
#define HEAD_BYTES_MAX 1024
#define SALT_BYTES 32

void backup_key_files_free(struct backup_key_files *f)
{
    for (size_t i = 0; i < f->n; i++)
        mem_free_secret(f->list[i].bytes, f->list[i].n);
    f->n = 0;
}

void backup_key_id(const struct keyring *keys, char ret[17])
{
    uint8_t mac[SEAL_MAC_LEN];
    struct strbuf hex = {0};

    keyring_hmac(keys, KEYRING_SEAL, S("pullgate backup: which keys"), mac);
    sb_add_hex(&hex, mac, 8);
    memcpy(ret, hex.p, 17);
    sb_free(&hex);
}

static void key_derive(const struct backup_secret *secret, bool by_passphrase, const uint8_t salt[SALT_BYTES], uint8_t ret[32])
{
    struct strbuf text = {0};

    if (by_passphrase) {
        seal_passphrase(secret->passphrase, (struct str){(const char *)salt, SALT_BYTES}, ret);
        return;
    }
    sb_addc(&text, "pullgate backup: key ");
    sb_add_hex(&text, salt, SALT_BYTES);
    keyring_hmac(secret->keys, KEYRING_SEAL, sb_str(&text), ret);
    sb_free(&text);
}

/* ---- the head ------------------------------------------------------------------------------------------------------------- */

static void head_print(const struct backup_head *h, const uint8_t salt[SALT_BYTES], struct strbuf *ret)
{
    char made[CLOCK_RFC3339_MAX];

    sb_addf(ret, "pullgate-backup 1\nmade %s\nschema %lld\nepoch %llu\nstore %llu ", clock_rfc3339(h->made_s, made), (long long)h->schema,
            (unsigned long long)h->epoch, (unsigned long long)h->store_bytes);
    sb_add_hex(ret, h->store_sha256, 32);
    if (h->by_passphrase)
        sb_addc(ret, "\nkey passphrase\nsalt ");
    else
        sb_addf(ret, "\nkey keys %s\nsalt ", h->key_id);
    sb_add_hex(ret, salt, SALT_BYTES);
    sb_addc(ret, "\n\n");
}

/* The value of the line `name`, which must be the next. */
static bool line_take(struct str *rest, struct str name, struct str *ret)
{
    struct str line;

    if (!str_next(rest, '\n', &line) || !str_starts(line, name) || line.n < name.n + 1 || line.p[name.n] != ' ')
        return false;
    *ret = str_skip(line, name.n + 1);
    return true;
}

static bool head_scan(struct str text, struct backup_head *h, uint8_t salt[SALT_BYTES])
{
    struct str rest = text, v, size, hash;
    uint64_t schema;

    *h = (struct backup_head){0};
    if (!line_take(&rest, S("pullgate-backup"), &v) || !str_eq_c(v, "1") || !line_take(&rest, S("made"), &v) ||
        clock_parse_instant(v, &h->made_s, NULL) != ERR_OK || !line_take(&rest, S("schema"), &v) || !str_to_u64(v, &schema) || schema > INT32_MAX ||
        !line_take(&rest, S("epoch"), &v) || !str_to_u64(v, &h->epoch) || !line_take(&rest, S("store"), &v) || !str_cut(v, ' ', &size, &hash) ||
        !str_to_u64(size, &h->store_bytes) || !hex_decode(hash, h->store_sha256, 32) || !line_take(&rest, S("key"), &v))
        return false;
    h->schema = (int64_t)schema;
    h->by_passphrase = str_eq_c(v, "passphrase");
    if (!h->by_passphrase) {
        if (!str_starts(v, S("keys ")) || v.n != 5 + 16)
            return false;
        memcpy(h->key_id, v.p + 5, 16);
    }
    return line_take(&rest, S("salt"), &v) && hex_decode(v, salt, SALT_BYTES) && str_eq_c(rest, "\n");
}

/* ---- writing -------------------------------------------------------------------------------------------------------------- */

struct writer {
    int fd;
    uint8_t key[32], bound[32]; /* bound: the head's hash */
    uint64_t number;
    struct strbuf plain, sealed;
    bool failed;
};

static void writer_flush(struct writer *w, bool is_last)
{
    sb_reset(&w->sealed);
    seal_chunk(w->key, w->number++, is_last, (struct str){(const char *)w->bound, 32}, sb_str(&w->plain), &w->sealed);
    w->failed = w->failed || !file_write_all(w->fd, sb_str(&w->sealed));
    mem_cleanse(w->plain.p, w->plain.n);
    sb_reset(&w->plain);
}

static void writer_add(struct writer *w, struct str s)
{
    while (s.n > 0) {
        if (w->plain.n == CHUNK_BYTES)
            writer_flush(w, false);
        struct str part = str_sub(s, 0, CHUNK_BYTES - w->plain.n);
        sb_add(&w->plain, part);
        s = str_skip(s, part.n);
    }
}

static enum err write_body(struct writer *w, const struct backup_head *h, int store_fd, const struct backup_key_files *files, struct error *reterr)
{
    char *buf = mem_alloc(CHUNK_BYTES);
    uint64_t at = 0;
    ssize_t n = 1;

    while (n > 0 && at < h->store_bytes) {
        n = pread(store_fd, buf, CHUNK_BYTES, (off_t)at);
        if (n > 0)
            writer_add(w, (struct str){buf, (size_t)n});
        at += n > 0 ? (uint64_t)n : 0;
    }
    mem_free(buf);
    if (at != h->store_bytes)
        return error_set(reterr, ERR_UNAVAILABLE, "backup: the copy of the store cannot be read: %s", n < 0 ? strerror(errno) : "it is shorter");
    for (size_t i = 0; files != NULL && i < files->n; i++) {
        struct strbuf line = {0};
        sb_addf(&line, "%s %zu\n", files->list[i].name, files->list[i].n);
        writer_add(w, sb_str(&line));
        writer_add(w, (struct str){files->list[i].bytes, files->list[i].n});
        sb_free(&line);
    }
    writer_flush(w, true);
    return ERR_OK;
}

/* As a restore would read it: what was good there is replaced by nothing worse. */
static enum err written_check(const char *temporary, const struct backup_head *h, const struct backup_secret *secret, struct error *reterr)
{
    struct backup_head seen;
    struct error why = {0};
    enum err e = backup_read(temporary, secret, -1, &seen, NULL, &why);

    if (!e && (seen.store_bytes != h->store_bytes || memcmp(seen.store_sha256, h->store_sha256, sizeof seen.store_sha256) != 0))
        e = error_set(&why, ERR_INVALID, "it is another one");
    return e ? error_set(reterr, ERR_UNAVAILABLE, "what was written cannot be read again: %s", why.text) : ERR_OK;
}

enum err backup_write(const char *path, struct backup_head *h, const struct backup_secret *secret, int store_fd, const struct backup_key_files *key_files,
                      struct error *reterr)
{
    struct writer w = {0};
    struct strbuf temporary = {0}, head = {0};
    uint8_t salt[SALT_BYTES], r[8];
    enum err e = ERR_OK;

    h->by_passphrase = secret->passphrase.n > 0;
    AN(h->by_passphrase || secret->keys != NULL);
    AN(key_files == NULL || key_files->n == 0 || h->by_passphrase); /* the keys are never sealed under themselves */
    if (!h->by_passphrase)
        backup_key_id(secret->keys, h->key_id);
    seal_random(salt, sizeof salt);
    seal_random(r, sizeof r);
    head_print(h, salt, &head);
    seal_sha256(sb_str(&head), w.bound);
    key_derive(secret, h->by_passphrase, salt, w.key);
    sb_addf(&temporary, "%s.", path);
    sb_add_hex(&temporary, r, sizeof r);
    w.fd = open(temporary.p, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (w.fd < 0) {
        e = error_set(reterr, ERR_UNAVAILABLE, "backup: %s: %s", temporary.p, strerror(errno));
    } else {
        w.failed = fchmod(w.fd, 0600) != 0 || !file_write_all(w.fd, sb_str(&head));
        e = write_body(&w, h, store_fd, key_files, reterr);
        if (!e && (w.failed || fsync(w.fd) != 0))
            e = error_set(reterr, ERR_UNAVAILABLE, "backup: %s: %s", temporary.p, strerror(errno));
        if (close(w.fd) != 0 && !e)
            e = error_set(reterr, ERR_UNAVAILABLE, "backup: %s: %s", temporary.p, strerror(errno));
        if (!e)
            e = written_check(temporary.p, h, secret, reterr);
        if (!e && rename(temporary.p, path) != 0)
            e = error_set(reterr, ERR_UNAVAILABLE, "backup: %s: %s", path, strerror(errno));
        if (e)
            unlink(temporary.p);
        else if (!file_sync_directory(path)) /* older ones are removed on its word */
            e = error_set(reterr, ERR_UNAVAILABLE, "backup: %s: %s", path, strerror(errno));
    }
    mem_cleanse(w.key, sizeof w.key);
    sb_free(&w.plain);
    sb_free(&w.sealed);
    sb_free(&temporary);
    sb_free(&head);
    return e;
}

/* ---- reading -------------------------------------------------------------------------------------------------------------- */

static enum err damaged(const char *path, const char *why, struct error *reterr)
{
    return error_set(reterr, ERR_INVALID, "%s: %s", path, why);
}

/* The head's bytes; the descriptor stands behind it. */
static enum err head_read(const char *path, int fd, struct strbuf *ret, struct backup_head *h, uint8_t salt[SALT_BYTES], struct error *reterr)
{
    char buf[HEAD_BYTES_MAX];
    ssize_t n = file_read_full(fd, buf, sizeof buf);
    char *end = n > 0 ? memmem(buf, (size_t)n, "\n\n", 2) : NULL;

    if (n < 0)
        return error_set(reterr, ERR_UNAVAILABLE, "%s: %s", path, strerror(errno));
    if (end == NULL || !str_starts((struct str){buf, (size_t)n}, S("pullgate-backup ")))
        return damaged(path, "this is no backup of Pullgate", reterr);
    sb_add(ret, (struct str){buf, (size_t)(end - buf) + 2});
    if (!str_starts(sb_str(ret), S("pullgate-backup 1\n")))
        return damaged(path, "this backup was made by a newer program", reterr);
    if (!head_scan(sb_str(ret), h, salt))
        return damaged(path, "the backup is damaged: its head cannot be read", reterr);
    if (lseek(fd, (off_t)ret->n, SEEK_SET) < 0)
        return error_set(reterr, ERR_UNAVAILABLE, "%s: %s", path, strerror(errno));
    return ERR_OK;
}

enum err backup_read_head(const char *path, struct backup_head *ret, struct error *reterr)
{
    struct strbuf head = {0};
    uint8_t salt[SALT_BYTES];
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return error_set(reterr, ERR_NOT_FOUND, "%s: %s", path, strerror(errno));
    enum err e = head_read(path, fd, &head, ret, salt, reterr);
    close(fd);
    sb_free(&head);
    return e;
}

/* "<name> <bytes>\n" and bytes, until the end. */
static bool key_files_scan(struct str rest, struct backup_key_files *ret)
{
    while (rest.n > 0) {
        struct str line, name, size;
        uint64_t n;
        ptrdiff_t end = str_index(rest, '\n');
        if (end < 0 || ret->n == BACKUP_KEY_FILES_MAX)
            return false;
        line = str_sub(rest, 0, (size_t)end);
        rest = str_skip(rest, (size_t)end + 1);
        if (!str_cut(line, ' ', &name, &size) || !str_to_u64(size, &n) || n > rest.n || n > BACKUP_KEY_FILE_BYTES || name.n == 0 ||
            name.n >= sizeof ret->list[0].name || name.p[0] == '.' || str_index(name, '/') >= 0)
            return false;
        struct backup_key_file *f = &ret->list[ret->n++];
        snprintf(f->name, sizeof f->name, "%.*s", STR(name));
        f->bytes = mem_strndup(rest.p, n);
        f->n = n;
        rest = str_skip(rest, n);
    }
    return true;
}

struct reader {
    uint64_t left; /* of the store */
    int store_fd;
    struct hasher *hash;
    struct strbuf tail; /* what follows the store */
    bool by_passphrase;
    bool write_failed;
};

static bool reader_take(struct reader *r, struct str plain)
{
    struct str store = str_sub(plain, 0, r->left < plain.n ? (size_t)r->left : plain.n);

    hasher_update(r->hash, store.p, store.n);
    r->left -= store.n;
    if (r->store_fd >= 0 && !file_write_all(r->store_fd, store))
        r->write_failed = true;
    sb_add(&r->tail, str_skip(plain, store.n));
    return r->tail.n <= BACKUP_KEY_FILES_MAX * (BACKUP_KEY_FILE_BYTES + 128);
}

static enum err body_read(const char *path, int fd, const uint8_t key[32], const uint8_t bound[32], struct reader *r, struct error *reterr)
{
    size_t full = CHUNK_BYTES + SEAL_CHUNK_MORE;
    char *buf = mem_alloc(full + 1);
    struct strbuf plain = {0};
    bool is_last = false;
    enum err e = ERR_OK;

    for (uint64_t number = 0; !e && !is_last; number++) {
        ssize_t n = file_read_full(fd, buf, full);
        char next;
        if (n < 0) {
            e = error_set(reterr, ERR_UNAVAILABLE, "%s: %s", path, strerror(errno));
            break;
        }
        is_last = (size_t)n < full || pread(fd, &next, 1, lseek(fd, 0, SEEK_CUR)) <= 0;
        sb_reset(&plain);
        if (!unseal_chunk(key, number, is_last, (struct str){(const char *)bound, 32}, (struct str){buf, (size_t)n}, &plain)) {
            /* The very first tells a wrong passphrase too; a wrong keys directory was told by its id. */
            e = number == 0 && r->by_passphrase ? error_set(reterr, ERR_DENIED, "%s: cannot be opened: another passphrase, or the backup is damaged", path)
                            : damaged(path, "the backup is damaged or was cut", reterr);
        } else if (!reader_take(r, sb_str(&plain))) {
            e = damaged(path, "the backup is damaged: more follows the store than can", reterr);
        } else if (r->write_failed) {
            e = error_set(reterr, ERR_UNAVAILABLE, "the copy of the store cannot be written: %s", strerror(errno));
        }
        if (plain.n > 0)
            mem_cleanse(plain.p, plain.n);
    }
    mem_free(buf);
    sb_free(&plain);
    return e;
}

static enum err secret_check(const char *path, const struct backup_head *h, const struct backup_secret *secret, struct error *reterr)
{
    char id[17];

    if (h->by_passphrase)
        return secret->passphrase.n > 0 ? ERR_OK : error_set(reterr, ERR_DENIED, "%s: is sealed under a passphrase: give --passphrase-file", path);
    if (secret->keys == NULL)
        return error_set(reterr, ERR_DENIED, "%s: is sealed under the keys directory %s, which is not here", path, h->key_id);
    backup_key_id(secret->keys, id);
    return strcmp(id, h->key_id) == 0
               ? ERR_OK
               : error_set(reterr, ERR_DENIED, "%s: is sealed under the keys directory %s, keys.path holds %s: put the backed up keys there", path, h->key_id, id);
}

enum err backup_read(const char *path, const struct backup_secret *secret, int store_fd, struct backup_head *ret, struct backup_key_files *ret_files,
                     struct error *reterr)
{
    struct strbuf head = {0};
    struct backup_head h;
    struct backup_key_files files = {0};
    uint8_t salt[SALT_BYTES], key[32] = {0}, bound[32];
    struct digest sum;
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return error_set(reterr, ERR_NOT_FOUND, "%s: %s", path, strerror(errno));
    struct reader r = {.store_fd = store_fd, .hash = hasher_new(DIGEST_SHA256)};
    enum err e = head_read(path, fd, &head, &h, salt, reterr);
    if (!e)
        e = secret_check(path, &h, secret, reterr);
    if (!e) {
        r.left = h.store_bytes;
        r.by_passphrase = h.by_passphrase;
        seal_sha256(sb_str(&head), bound);
        key_derive(secret, h.by_passphrase, salt, key);
        e = body_read(path, fd, key, bound, &r, reterr);
    }
    hasher_final(r.hash, &sum);
    hasher_free(&r.hash);
    close(fd);
    if (!e && (r.left > 0 || memcmp(sum.bytes, h.store_sha256, 32) != 0))
        e = damaged(path, "the backup is damaged: the store in it has another checksum", reterr);
    if (!e && !key_files_scan(sb_str(&r.tail), &files))
        e = damaged(path, "the backup is damaged: its key files cannot be read", reterr);
    if (!e) {
        *ret = h;
        if (ret_files != NULL) {
            *ret_files = files;
            files.n = 0;
        }
    }
    backup_key_files_free(&files);
    if (r.tail.n > 0)
        mem_cleanse(r.tail.p, r.tail.n);
    mem_cleanse(key, sizeof key);
    sb_free(&r.tail);
    sb_free(&head);
    return e;
}
