/* `pullgate bundle`: what a license grants now as an OCI image layout, for where no network is, with the signed license file beside it.
 * Everything comes through the proxy with a credential that is bound to the license, so that the gate decides what is in it; digests are
 * kept and checked. A run that was cut short goes on where it was; index.json, without which a layout is none, is put there last. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "pullgate/clock.h"
#include "pullgate/fetch.h"
#include "pullgate/file.h"
#include "pullgate/jv.h"
#include "pullgate/jws.h"
#include "pullgate/loop.h"
#include "pullgate/mem.h"
#include "pullgate/oci.h"
#include "pullgate/seal.h"

#include "cli.h"

#define MARK              ".pullgate-bundle" /* holds the license id: the directory is ours to write and to clean */
#define CREDENTIAL_LIFE_S (24 * 3600)        /* of the one that is made, should it not come to be revoked */
#define CREDENTIAL_WAIT_MAX_US 6400000       /* the last of the waits that double from a tenth of a second: 13 s in all */
#define DEPTH_MAX         8                  /* of indexes, and of referrers of referrers */
#define TRIES             3                  /* of one request, where it broke or the server had no time */
#define REDIRECTS_MAX     5
#define MANIFEST_MAX      (4u * 1024 * 1024)
#define TAG_PAGES_MAX     1000
#define MEDIA_INDEX       "application/vnd.oci.image.index.v1+json"
#define MEDIA_MANIFEST    "application/vnd.oci.image.manifest.v1+json"
#define MEDIA_DOCKER_LIST "application/vnd.docker.distribution.manifest.list.v2+json"
#define MEDIA_DOCKER      "application/vnd.docker.distribution.manifest.v2+json"
#define ARTIFACT_LICENSE  "application/vnd.pullgate.license.v1+jws"
#define REF_NAME          "org.opencontainers.image.ref.name"
#define ACCEPT            "Accept: " MEDIA_INDEX ", " MEDIA_MANIFEST ", " MEDIA_DOCKER_LIST ", " MEDIA_DOCKER

static const struct fetch_limits LIMITS = {.connections = 2, .connect_ms = 10000, .first_byte_ms = 60000, .stall_ms = 60000};

static struct bundle {
    const char *directory, *platform; /* platform NULL: all */
    char *registry, *username, *password, *ca, *license_id, *customer_id, *credential_id;
    struct loop *loop;
    struct fetch_pool *pool;
    struct jv *blobs;   /* digest -> true: in the layout, verified */
    struct jv *expanded; /* "repository digest" -> true: a manifest whose parts and referrers are there too */
    struct jv *entries; /* "manifests" of index.json */
    struct jv *tags;    /* repository -> its signature tags by the digest that they are of */
    uint64_t n_fetched, n_kept, bytes_fetched;
} B;

static volatile sig_atomic_t interrupted;

static void on_signal(int signo)
{
    (void)signo;
    interrupted = 1;
}

static void check_interrupted(void)
{
    if (interrupted)
        die(EXIT_FAILED, "interrupted; the same command goes on from here");
}

/* ---- the admin API -------------------------------------------------------------------------------------------------------- */

/* A document that stands outside /api/v1 and may be read by anybody. */
static bool public_get(const char *path, struct strbuf *ret)
{
    struct strbuf url = {0};
    struct fetch_reply reply = {0};
    struct error error = {0};

    sb_addf(&url, "%s%s", cli.url, path);
    const struct fetch_request r = {.method = "GET", .url = url.p, .ca_pem = cli.ca, .policy = {.allow_private = true}, .max_body = JWS_CRL_MAX};
    if (fetch_blocking(&r, &LIMITS, &reply, &error) != ERR_OK)
        die(EXIT_UNREACHABLE, "%s: %s", cli.url, error.text);
    bool good = reply.status == 200;
    if (good)
        sb_add(ret, sb_str(&reply.body));
    sb_free(&url);
    fetch_reply_free(&reply);
    return good;
}

/* At the end of the program, however it comes: without die(), which would call this again. */
static void credential_revoke(void)
{
    struct strbuf url = {0}, bearer = {0};
    struct fetch_reply reply = {0};
    struct error error = {0};

    if (B.credential_id == NULL)
        return;
    sb_addf(&url, "%s/api/v1/customers/%s/credentials/%s", cli.url, B.customer_id, B.credential_id);
    sb_addf(&bearer, "Authorization: Bearer %s", cli.token);
    const char *fields[] = {bearer.p, NULL};
    const struct fetch_request r = {.method = "DELETE", .url = url.p, .fields = fields, .ca_pem = cli.ca, .policy = {.allow_private = true}, .max_body = MANIFEST_MAX};
    if (fetch_blocking(&r, &LIMITS, &reply, &error) != ERR_OK || reply.status != 204)
        fprintf(stderr, "pullgate: the credential %s could not be revoked (%d): it ends by itself within a day\n", B.credential_id, reply.status);
    MEM_FREE(B.credential_id);
    mem_cleanse(bearer.p, bearer.n);
    sb_free(&bearer);
    sb_free(&url);
    fetch_reply_free(&reply);
}

static void credential_make(void)
{
    struct strbuf path = {0};
    struct jv *body = jv_object();
    int64_t now = clock_now_s();
    char name[64], time[CLOCK_RFC3339_MAX];

    clock_rfc3339(now, time);
    snprintf(name, sizeof name, "bundle %s %d", time, (int)getpid());
    jv_set_c(body, "name", name);
    jv_set_c(body, "license_id", B.license_id);
    jv_set_time(body, "expires_at", now + CREDENTIAL_LIFE_S);
    sb_addf(&path, "/customers/%s/credentials", B.customer_id);
    struct jv *made = api("POST", path.p, body);
    B.username = mem_strdup("bundle");
    B.password = str_dup(jv_get_str(made, "secret"));
    B.credential_id = str_dup(jv_get_str(made, "id"));
    atexit(credential_revoke);
    jv_free(made);
    jv_free(body);
    sb_free(&path);
}

/* ---- the directory -------------------------------------------------------------------------------------------------------- */

static void path_of(const char *name, struct strbuf *ret)
{
    sb_reset(ret);
    sb_addf(ret, "%s/%s", B.directory, name);
}

static void blob_path(const struct digest *d, bool is_part, struct strbuf *ret)
{
    char text[DIGEST_TEXT_MAX];
    struct str alg, hex;

    digest_text(d, text);
    AN(str_cut(str_c(text), ':', &alg, &hex));
    sb_reset(ret);
    sb_addf(ret, "%s/blobs/%.*s/%s%.*s%s", B.directory, STR(alg), is_part ? "." : "", STR(hex), is_part ? ".part" : "");
}

/* Whole, on the disk, or not at all. */
static void write_file(const char *path, struct str text)
{
    struct strbuf temp = {0};

    sb_addf(&temp, "%s.tmp", path);
    int fd = open(temp.p, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    bool good = fd >= 0 && file_write_all(fd, text) && fsync(fd) == 0;
    if (fd >= 0)
        good = close(fd) == 0 && good;
    if (!good || rename(temp.p, path) != 0)
        die(EXIT_FAILED, "%s: %s", path, strerror(errno));
    sb_free(&temp);
}

static void directory_make(const char *path)
{
    if (mkdir(path, 0755) != 0 && errno != EEXIST)
        die(EXIT_FAILED, "%s: %s", path, strerror(errno));
}

static bool directory_is_empty(const char *path)
{
    DIR *d = opendir(path);
    bool is_empty = true;

    if (d == NULL)
        die(EXIT_FAILED, "%s: %s", path, strerror(errno));
    for (struct dirent *e; (e = readdir(d)) != NULL;)
        is_empty = is_empty && (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0);
    closedir(d);
    return is_empty;
}

/* What is there already is only written to when it is an earlier bundle of the same license. */
static void directory_take(void)
{
    static const char *const parts[] = {"blobs", "blobs/sha256", "blobs/sha512"};
    struct strbuf path = {0};
    char mark[128] = "";

    directory_make(B.directory);
    path_of(MARK, &path);
    if (!file_read_small(path.p, mark, sizeof mark) && !directory_is_empty(B.directory))
        die(EXIT_USAGE, "%s is not empty and no bundle: give another directory", B.directory);
    if (mark[0] != '\0' && strcmp(mark, B.license_id) != 0)
        die(EXIT_USAGE, "%s is the bundle of the license %.40s: give another directory", B.directory, mark);
    write_file(path.p, str_c(B.license_id));
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        path_of(parts[i], &path);
        directory_make(path.p);
    }
    sb_free(&path);
}

/* What the index does not reach any more: of versions that were granted once, of runs that were cut short. */
static unsigned directory_clean(const char *alg)
{
    struct strbuf path = {0}, digest = {0};
    unsigned n = 0;

    sb_addf(&path, "%s/blobs/%s", B.directory, alg);
    DIR *d = opendir(path.p);
    for (struct dirent *e; d != NULL && (e = readdir(d)) != NULL;) {
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
            continue;
        sb_reset(&digest);
        sb_addf(&digest, "%s:%s", alg, e->d_name);
        if (jv_get(B.blobs, digest.p) == NULL && unlinkat(dirfd(d), e->d_name, 0) == 0)
            n++;
    }
    if (d != NULL)
        closedir(d);
    sb_free(&path);
    sb_free(&digest);
    return n;
}

static bool blob_is_here(const struct digest *d, int64_t size)
{
    struct strbuf path = {0};
    struct stat st;
    char chunk[65536];
    struct digest got;
    ssize_t n = -1;

    blob_path(d, false, &path);
    int fd = open(path.p, O_RDONLY | O_CLOEXEC);
    sb_free(&path);
    if (fd < 0)
        return false;
    bool good = fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && (size < 0 || st.st_size == size);
    struct hasher *h = hasher_new((enum digest_alg)d->alg);
    while (good && (n = read(fd, chunk, sizeof chunk)) > 0)
        hasher_update(h, chunk, (size_t)n);
    hasher_final(h, &got);
    hasher_free(&h);
    close(fd);
    return good && n == 0 && digest_eq(&got, d);
}

static void blob_note(const struct digest *d)
{
    char text[DIGEST_TEXT_MAX];

    digest_text(d, text);
    jv_set(B.blobs, text, jv_boolean(true));
}

/* Our own bytes, or such as were verified. */
static void blob_put(struct str text, struct digest *ret)
{
    struct strbuf path = {0};
    struct hasher *h = hasher_new(DIGEST_SHA256);

    hasher_update(h, text.p, text.n);
    hasher_final(h, ret);
    hasher_free(&h);
    blob_path(ret, false, &path);
    write_file(path.p, text);
    blob_note(ret);
    sb_free(&path);
}

/* ---- the registry --------------------------------------------------------------------------------------------------------- */

static bool status_passes(int status)
{
    return status == 429 || status >= 500;
}

/* GET /v2/<rest>, small. 404 is an answer where `must` is not set. */
static bool registry_get(const char *rest, bool must, struct strbuf *ret, char media_type[128])
{
    struct strbuf url = {0};
    static const char *const fields[] = {ACCEPT, NULL};
    bool good = false;

    sb_addf(&url, "%s/v2/%s", B.registry, rest);
    for (int i = 0;; i++) {
        struct fetch_reply reply = {0};
        struct error error = {0};
        const struct fetch_request r = {.method = "GET",
                                        .url = url.p,
                                        .fields = fields,
                                        .username = B.username,
                                        .password = B.password,
                                        .ca_pem = B.ca,
                                        .policy = {.allow_private = true},
                                        .max_body = MANIFEST_MAX};
        check_interrupted();
        enum err err = fetch_blocking(&r, &LIMITS, &reply, &error);
        bool is_last = i + 1 == TRIES;
        if (err == ERR_OK && reply.status == 200) {
            sb_reset(ret);
            sb_add(ret, sb_str(&reply.body));
            if (media_type != NULL) {
                struct str lines = sb_str(&reply.fields), one, name, value;
                media_type[0] = '\0';
                while (str_next(&lines, '\n', &one))
                    if (str_cut(one, ':', &name, &value) && str_eq_nocase(name, S("content-type")) && str_trim(value).n < 128)
                        snprintf(media_type, 128, "%.*s", STR(str_trim(value)));
            }
            good = true;
        } else if (err == ERR_OK && (reply.status == 404 || reply.status == 405) && !must) {
            is_last = true;
        } else if (err == ERR_OK && (!status_passes(reply.status) || is_last)) {
            struct jv *doc = NULL;
            if (jv_parse(sb_str(&reply.body), &JV_LIMITS_API, &doc, NULL) != ERR_OK)
                doc = NULL;
            die(reply.status == 401 || reply.status == 403 ? EXIT_DENIED : reply.status >= 500 ? EXIT_UNREACHABLE : EXIT_FAILED, "%s: %s (%d)", rest,
                jv_get_c(jv_at(jv_get(doc, "errors"), 0), "message", "refused"), reply.status);
        } else if (err != ERR_OK && is_last) {
            die(EXIT_UNREACHABLE, "%s: %s", B.registry, error.text);
        }
        fetch_reply_free(&reply);
        if (good || is_last)
            break;
        sleep(1u << i);
    }
    sb_free(&url);
    return good;
}

/* A credential that was just made is known to the proxies some milliseconds later: asked for gently, since a refusal is a failed sign-in. */
static void credential_await(void)
{
    struct strbuf url = {0};
    int status = 401;

    sb_addf(&url, "%s/v2/", B.registry);
    for (useconds_t us = 100000; status == 401 && us <= CREDENTIAL_WAIT_MAX_US; us *= 2) {
        struct fetch_reply reply = {0};
        struct error error = {0};
        const struct fetch_request r = {.method = "GET",
                                        .url = url.p,
                                        .username = B.username,
                                        .password = B.password,
                                        .ca_pem = B.ca,
                                        .policy = {.allow_private = true},
                                        .max_body = MANIFEST_MAX};
        usleep(us);
        check_interrupted();
        if (fetch_blocking(&r, &LIMITS, &reply, &error) != ERR_OK)
            die(EXIT_UNREACHABLE, "%s: %s", B.registry, error.text);
        status = reply.status;
        fetch_reply_free(&reply);
    }
    sb_free(&url);
}

/* One blob on its way into a file. */
struct download {
    struct hasher *hash;
    int fd, status;
    int64_t left; /* of its size */
    char *location;
    bool is_done, write_failed;
    enum err err;
    char text[200];
};

static enum fetch_next download_head(void *ctx, const struct fetch_head *h)
{
    struct download *d = ctx;

    d->status = h->status;
    if (h->status >= 300 && h->status < 400) {
        struct str where = fetch_head_get(h, "location");
        d->location = where.p != NULL ? str_dup(where) : NULL;
    }
    return h->status == 200 ? FETCH_MORE : FETCH_STOP;
}

static enum fetch_next download_body(void *ctx, const void *data, size_t n)
{
    struct download *d = ctx;

    if (interrupted || (int64_t)n > d->left || !file_write_all(d->fd, (struct str){data, n})) {
        d->write_failed = (int64_t)n <= d->left && !interrupted;
        return FETCH_STOP;
    }
    d->left -= (int64_t)n;
    hasher_update(d->hash, data, n);
    B.bytes_fetched += n;
    return FETCH_MORE;
}

static void download_done(void *ctx, enum err err, const char *text, bool got_bytes)
{
    struct download *d = ctx;

    (void)got_bytes;
    d->err = err;
    d->is_done = true;
    snprintf(d->text, sizeof d->text, "%s", text != NULL ? text : "");
    loop_stop(B.loop);
}

/* One request, with a redirect's target as the next one: it goes there without the credential. */
static void download_run(struct download *d, char **url, bool with_credential)
{
    static const struct fetch_handlers handlers = {download_head, download_body, download_done};
    const struct fetch_request r = {.method = "GET",
                                    .url = *url,
                                    .username = with_credential ? B.username : NULL,
                                    .password = with_credential ? B.password : NULL,
                                    .ca_pem = B.ca,
                                    .policy = {.allow_private = true}};

    d->is_done = false;
    fetch_start(B.pool, &r, &handlers, d);
    while (!d->is_done)
        loop_run(B.loop);
    check_interrupted();
    if (d->location != NULL) {
        char *next = NULL;
        if (fetch_url_join(*url, d->location, &next) != ERR_OK)
            die(EXIT_FAILED, "%s: redirects to nowhere", *url);
        mem_free(*url);
        *url = next;
    }
}

/* ERR_OK: it is in the layout. Else worth another try, with the reason in text. */
static enum err blob_try(const char *repository, const struct digest *digest, int64_t size, struct strbuf *text)
{
    struct strbuf part = {0}, whole = {0}, at = {0};
    char digest_name[DIGEST_TEXT_MAX];
    struct digest got;
    struct download d = {.left = size};

    digest_text(digest, digest_name);
    sb_addf(&at, "%s/v2/%s/blobs/%s", B.registry, repository, digest_name);
    char *url = sb_take(&at);
    blob_path(digest, true, &part);
    blob_path(digest, false, &whole);
    d.fd = open(part.p, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (d.fd < 0)
        die(EXIT_FAILED, "%s: %s", part.p, strerror(errno));
    d.hash = hasher_new((enum digest_alg)digest->alg);
    for (int hop = 0; hop == 0 || (d.location != NULL && hop <= REDIRECTS_MAX); hop++) {
        MEM_FREE(d.location);
        download_run(&d, &url, hop == 0);
    }
    hasher_final(d.hash, &got);
    hasher_free(&d.hash);
    if (d.write_failed)
        die(EXIT_FAILED, "%s: %s", part.p, strerror(errno));
    if (d.status != 200 && d.err == ERR_CANCELED && !status_passes(d.status))
        die(d.status == 401 || d.status == 403 ? EXIT_DENIED : EXIT_FAILED, "%s@%s: refused (%d)", repository, digest_name, d.status);
    bool good = d.err == ERR_OK && d.status == 200 && d.left == 0;
    sb_reset(text);
    if (good && !digest_eq(&got, digest)) {
        good = false;
        sb_addc(text, "its bytes are not those of its digest");
    } else if (!good) {
        sb_addf(text, "%s (%d)", d.text, d.status);
    }
    good = good && fsync(d.fd) == 0;
    if (close(d.fd) != 0 || (good && rename(part.p, whole.p) != 0))
        die(EXIT_FAILED, "%s: %s", whole.p, strerror(errno));
    if (!good)
        unlink(part.p);
    mem_free(d.location);
    mem_free(url);
    sb_free(&part);
    sb_free(&whole);
    return good ? ERR_OK : ERR_UPSTREAM;
}

static bool descriptor_scan(const struct jv *v, struct digest *ret_digest, int64_t *ret_size)
{
    *ret_size = jv_get_int(v, "size", -1);
    return digest_parse(jv_get_str(v, "digest"), ret_digest, NULL) == ERR_OK && *ret_size >= 0;
}

static void blob_fetch(const char *repository, const struct jv *descriptor)
{
    struct digest digest;
    int64_t size;
    char name[DIGEST_TEXT_MAX];
    struct strbuf text = {0};

    if (!descriptor_scan(descriptor, &digest, &size))
        die(EXIT_FAILED, "%s: a manifest has a descriptor without digest or size", repository);
    digest_text(&digest, name);
    if (jv_get(B.blobs, name) != NULL)
        return;
    if (jv_len(jv_get(descriptor, "urls")) > 0) { /* of somebody else, who does not let it be passed on */
        fprintf(stderr, "pullgate: %s@%s is kept elsewhere and left out\n", repository, name);
        return;
    }
    if (blob_is_here(&digest, size)) {
        B.n_kept++;
    } else {
        for (int i = 0; blob_try(repository, &digest, size, &text) != ERR_OK; i++) {
            if (i + 1 == TRIES)
                die(EXIT_UNREACHABLE, "%s@%s: %s", repository, name, text.p);
            sleep(1u << i);
        }
        B.n_fetched++;
    }
    blob_note(&digest);
    sb_free(&text);
}

/* ---- manifests ------------------------------------------------------------------------------------------------------------ */

struct manifest {
    struct digest digest;
    char name[DIGEST_TEXT_MAX], media_type[128];
    size_t size;
    struct jv *doc;
};

/* Into the layout; the caller frees m->doc. reference: a digest, which the bytes must have, or a tag. */
static bool manifest_fetch(const char *repository, const char *reference, bool must, struct manifest *m)
{
    struct strbuf rest = {0}, body = {0}, path = {0};
    struct digest want;
    bool is_digest = digest_parse(str_c(reference), &want, NULL) == ERR_OK;

    *m = (struct manifest){0};
    sb_addf(&rest, "%s/manifests/%s", repository, reference);
    bool good = registry_get(rest.p, must, &body, m->media_type);
    if (good) {
        struct hasher *h = hasher_new(is_digest ? (enum digest_alg)want.alg : DIGEST_SHA256);
        hasher_update(h, body.p, body.n);
        hasher_final(h, &m->digest);
        hasher_free(&h);
        if (is_digest && !digest_eq(&m->digest, &want))
            die(EXIT_FAILED, "%s@%s: its bytes are not those of its digest", repository, reference);
        if (jv_parse(sb_str(&body), &JV_LIMITS_MANIFEST, &m->doc, NULL) != ERR_OK)
            die(EXIT_FAILED, "%s: %s is no manifest", repository, reference);
        digest_text(&m->digest, m->name);
        m->size = body.n;
        if (jv_get_str(m->doc, "mediaType").n > 0 && jv_get_str(m->doc, "mediaType").n < sizeof m->media_type)
            snprintf(m->media_type, sizeof m->media_type, "%.*s", STR(jv_get_str(m->doc, "mediaType")));
        if (jv_get(B.blobs, m->name) == NULL && blob_is_here(&m->digest, (int64_t)body.n)) {
            B.n_kept++;
        } else if (jv_get(B.blobs, m->name) == NULL) {
            blob_path(&m->digest, false, &path);
            write_file(path.p, sb_str(&body));
            B.n_fetched++;
            B.bytes_fetched += body.n;
        }
        blob_note(&m->digest);
    }
    sb_free(&rest);
    sb_free(&body);
    sb_free(&path);
    return good;
}

static void entry_add(const struct manifest *m, const char *ref_name, const char *version)
{
    struct jv *e = jv_object(), *a = jv_object();
    struct str artifact_type = jv_get_str(m->doc, "artifactType");

    jv_set_c(e, "mediaType", m->media_type);
    jv_set_c(e, "digest", m->name);
    jv_set_int(e, "size", (int64_t)m->size);
    if (artifact_type.n)
        jv_set_str(e, "artifactType", artifact_type);
    if (ref_name != NULL)
        jv_set_c(a, REF_NAME, ref_name);
    if (version != NULL)
        jv_set_c(a, "io.pullgate.version", version);
    if (jv_len(a) > 0)
        jv_set(e, "annotations", a);
    else
        jv_free(a);
    jv_push(B.entries, e);
}

static bool platform_wanted(const struct jv *descriptor)
{
    const struct jv *p = jv_get(descriptor, "platform");
    struct strbuf text = {0};

    if (B.platform == NULL || p == NULL)
        return true;
    sb_addf(&text, "%s/%s", jv_get_c(p, "os", ""), jv_get_c(p, "architecture", ""));
    bool good = strcmp(text.p, B.platform) == 0;
    if (jv_get_str(p, "variant").n) {
        sb_addf(&text, "/%s", jv_get_c(p, "variant", ""));
        good = good || strcmp(text.p, B.platform) == 0;
    }
    sb_free(&text);
    return good;
}

static void manifest_expand(const char *repository, const struct manifest *m, int depth);

static void manifest_add(const char *repository, const char *reference, int depth, bool is_listed)
{
    struct manifest m;
    struct strbuf key = {0};

    if (depth > DEPTH_MAX)
        die(EXIT_FAILED, "%s: manifests are nested deeper than %d", repository, DEPTH_MAX);
    sb_addf(&key, "%s %s", repository, reference);
    if (jv_get(B.expanded, key.p) == NULL) {
        jv_set(B.expanded, key.p, jv_boolean(true));
        manifest_fetch(repository, reference, true, &m);
        if (is_listed)
            entry_add(&m, NULL, NULL);
        manifest_expand(repository, &m, depth);
        jv_free(m.doc);
    }
    sb_free(&key);
}

/* Signatures, bills of materials and the like: those that name it as their subject, and those that stand under a tag made of its digest. */
static void referrers_add(const char *repository, const struct manifest *m, int depth)
{
    struct strbuf rest = {0}, body = {0}, prefix = {0};
    struct jv *doc = NULL;

    sb_addf(&rest, "%s/referrers/%s", repository, m->name);
    if (registry_get(rest.p, false, &body, NULL) && jv_parse(sb_str(&body), &JV_LIMITS_MANIFEST, &doc, NULL) == ERR_OK) {
        const struct jv *list = jv_get(doc, "manifests");
        for (size_t i = 0; i < jv_len(list); i++) {
            struct digest d;
            int64_t size;
            if (descriptor_scan(jv_at(list, i), &d, &size))
                manifest_add(repository, jv_get_c(jv_at(list, i), "digest", ""), depth + 1, true);
        }
        jv_free(doc);
    }
    sb_addf(&prefix, "sha256-%s", m->name + strlen("sha256:"));
    const struct jv *tags = jv_get(jv_get(B.tags, repository), prefix.p);
    for (size_t i = 0; i < jv_len(tags); i++) {
        struct manifest s;
        char *tag = str_dup(jv_str(jv_at(tags, i)));
        if (manifest_fetch(repository, tag, false, &s)) {
            entry_add(&s, tag, NULL);
            manifest_expand(repository, &s, depth + 1);
            jv_free(s.doc);
        }
        mem_free(tag);
    }
    sb_free(&rest);
    sb_free(&body);
    sb_free(&prefix);
}

static void manifest_expand(const char *repository, const struct manifest *m, int depth)
{
    static const char *const lists[] = {"layers", "blobs"};
    const struct jv *children = jv_get(m->doc, "manifests"), *config = jv_get(m->doc, "config");

    if (depth > DEPTH_MAX)
        die(EXIT_FAILED, "%s: manifests are nested deeper than %d", repository, DEPTH_MAX);
    for (size_t i = 0; i < jv_len(children); i++)
        if (platform_wanted(jv_at(children, i)))
            manifest_add(repository, jv_get_c(jv_at(children, i), "digest", ""), depth + 1, false);
    if (config != NULL)
        blob_fetch(repository, config);
    for (size_t k = 0; k < 2; k++) {
        const struct jv *list = jv_get(m->doc, lists[k]);
        for (size_t i = 0; i < jv_len(list); i++)
            blob_fetch(repository, jv_at(list, i));
    }
    referrers_add(repository, m, depth);
}

/* The tags sha256-<digest>[.sig|.att|.sbom] of a repository, once. The gate lists those of what is granted only. */
static void tags_read(const char *repository)
{
    struct strbuf rest = {0}, body = {0}, last = {0};

    if (jv_get(B.tags, repository) != NULL)
        return;
    struct jv *by_digest = jv_object();
    jv_set(B.tags, repository, by_digest);
    for (int page = 0; page < TAG_PAGES_MAX; page++) {
        struct jv *doc = NULL;
        sb_reset(&rest);
        sb_addf(&rest, "%s/tags/list?n=1000%s%s", repository, last.n ? "&last=" : "", last.n ? last.p : "");
        if (!registry_get(rest.p, false, &body, NULL) || jv_parse(sb_str(&body), &JV_LIMITS_MANIFEST, &doc, NULL) != ERR_OK)
            break;
        const struct jv *tags = jv_get(doc, "tags");
        size_t n = jv_len(tags);
        for (size_t i = 0; i < n; i++) {
            struct str tag = jv_str(jv_at(tags, i));
            char key[7 + 64 + 1];
            sb_reset(&last);
            sb_add(&last, tag);
            if (!str_starts(tag, S("sha256-")) || tag.n < sizeof key || tag.p[sizeof key - 1] != '.')
                continue; /* without a suffix it is the list of referrers, which the gate answers itself */
            memcpy(key, tag.p, sizeof key - 1);
            key[sizeof key - 1] = '\0';
            if (jv_get(by_digest, key) == NULL)
                jv_set(by_digest, key, jv_array());
            jv_push(jv_get(by_digest, key), jv_string(tag));
        }
        jv_free(doc);
        if (n == 0)
            break;
    }
    sb_free(&rest);
    sb_free(&body);
    sb_free(&last);
}

/* ---- the bundle ----------------------------------------------------------------------------------------------------------- */

/* Every artifact of every version that can be pulled now: [{"repository","tag","digest","version"}]. */
static struct jv *artifacts_list(void)
{
    struct jv *all = jv_array();
    struct strbuf path = {0};
    char *cursor = NULL;

    do {
        sb_reset(&path);
        sb_addf(&path, "/licenses/%s/versions?limit=500%s%s", B.license_id, cursor != NULL ? "&cursor=" : "", cursor != NULL ? cursor : "");
        MEM_FREE(cursor);
        struct jv *page = api("GET", path.p, NULL);
        const struct jv *items = jv_get(page, "items");
        for (size_t i = 0; i < jv_len(items); i++) {
            const struct jv *artifacts = jv_get(jv_at(items, i), "artifacts");
            for (size_t k = 0; k < jv_len(artifacts); k++) {
                struct jv *a = jv_copy(jv_at(artifacts, k));
                jv_set_str(a, "version", jv_get_str(jv_at(items, i), "version"));
                jv_push(all, a);
            }
        }
        if (jv_get_str(page, "next_cursor").n)
            cursor = str_dup(jv_get_str(page, "next_cursor"));
        jv_free(page);
    } while (cursor != NULL);
    sb_free(&path);
    return all;
}

static bool tag_is_unique(const struct jv *artifacts, struct str tag)
{
    size_t n = 0;

    for (size_t i = 0; i < jv_len(artifacts); i++)
        n += str_eq(jv_get_str(jv_at(artifacts, i), "tag"), tag);
    return n == 1;
}

static void artifact_add(const struct jv *artifacts, const struct jv *a)
{
    const char *repository = jv_get_c(a, "repository", ""), *version = jv_get_c(a, "version", ""), *tag = jv_get_c(a, "tag", "");
    struct manifest m;
    struct strbuf name = {0}, key = {0};
    uint64_t fetched = B.n_fetched, kept = B.n_kept;

    tags_read(repository);
    manifest_fetch(repository, jv_get_c(a, "digest", ""), true, &m);
    sb_addf(&name, "%s:%s", repository, tag);
    entry_add(&m, name.p, version);
    if (tag_is_unique(artifacts, str_c(tag))) /* skopeo copy oci:DIRECTORY:TAG */
        entry_add(&m, tag, version);
    sb_addf(&key, "%s %s", repository, m.name);
    if (jv_get(B.expanded, key.p) == NULL) {
        jv_set(B.expanded, key.p, jv_boolean(true));
        manifest_expand(repository, &m, 0);
    }
    jv_free(m.doc);
    if (!cli.json)
        printf("%s  %s  %llu fetched, %llu here already\n", name.p, jv_get_c(a, "digest", ""), (unsigned long long)(B.n_fetched - fetched),
               (unsigned long long)(B.n_kept - kept));
    sb_free(&name);
    sb_free(&key);
}

/* The license file as an artifact of the layout, under the name "license". */
static void license_add(struct str text)
{
    struct digest d;
    struct manifest m = {.doc = jv_object()};
    struct strbuf b = {0};
    struct jv *config = jv_object(), *layer = jv_object(), *layers = jv_array(), *title = jv_object();
    char name[DIGEST_TEXT_MAX];

    blob_put(S("{}"), &d);
    digest_text(&d, name);
    jv_set_c(config, "mediaType", "application/vnd.oci.empty.v1+json");
    jv_set_c(config, "digest", name);
    jv_set_int(config, "size", 2);
    blob_put(text, &d);
    digest_text(&d, name);
    jv_set_c(layer, "mediaType", "application/jose");
    jv_set_c(layer, "digest", name);
    jv_set_int(layer, "size", (int64_t)text.n);
    jv_set_c(title, "org.opencontainers.image.title", "license.jws");
    jv_set(layer, "annotations", title);
    jv_push(layers, layer);
    jv_set_int(m.doc, "schemaVersion", 2);
    jv_set_c(m.doc, "mediaType", MEDIA_MANIFEST);
    jv_set_c(m.doc, "artifactType", ARTIFACT_LICENSE);
    jv_set(m.doc, "config", config);
    jv_set(m.doc, "layers", layers);
    jv_dump(m.doc, &b);
    blob_put(sb_str(&b), &m.digest);
    digest_text(&m.digest, m.name);
    snprintf(m.media_type, sizeof m.media_type, "%s", MEDIA_MANIFEST);
    m.size = b.n;
    entry_add(&m, "license", NULL);
    jv_free(m.doc);
    sb_free(&b);
}

static void index_write(void)
{
    struct jv *index = jv_object(), *annotations = jv_object();
    struct strbuf b = {0}, path = {0};

    path_of("oci-layout", &path);
    write_file(path.p, S("{\"imageLayoutVersion\":\"1.0.0\"}"));
    jv_set_int(index, "schemaVersion", 2);
    jv_set_c(index, "mediaType", MEDIA_INDEX);
    jv_set(index, "manifests", jv_copy(B.entries));
    jv_set_c(annotations, "io.pullgate.license", B.license_id);
    jv_set(index, "annotations", annotations);
    jv_dump(index, &b);
    path_of("index.json", &path);
    write_file(path.p, sb_str(&b));
    int fd = open(B.directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        (void)fsync(fd);
        close(fd);
    }
    jv_free(index);
    sb_free(&b);
    sb_free(&path);
}

/* What an offline check of the license file needs. */
static void documents_write(struct str license)
{
    struct strbuf path = {0}, jwks = {0}, crl = {0}, from = {0}, raw = {0};
    struct str head, rest, payload, sig;
    struct jv *claims = NULL;

    if (!str_cut(license, '.', &head, &rest) || !str_cut(rest, '.', &payload, &sig) || !base64url_decode(payload, &raw) ||
        jv_parse(sb_str(&raw), &JV_LIMITS_TRUSTED, &claims, NULL) != ERR_OK)
        die(EXIT_UNREACHABLE, "%s answered something that is no license file", cli.url);
    path_of("license.jws", &path);
    write_file(path.p, license);
    path_of("jwks.json", &path);
    if (public_get("/.well-known/jwks.json", &jwks))
        write_file(path.p, sb_str(&jwks));
    sb_addf(&from, "/api/v1/vendors/%s/crl", jv_get_c(jv_get(claims, "vendor"), "slug", ""));
    path_of("crl.jws", &path);
    if (public_get(from.p, &crl))
        write_file(path.p, sb_str(&crl));
    jv_free(claims);
    sb_free(&raw);
    sb_free(&path);
    sb_free(&jwks);
    sb_free(&crl);
    sb_free(&from);
}

static bool option_is(const char *given, const char *option, bool has_value)
{
    return has_value && strcmp(given, option) == 0;
}

static void options_parse(int argc, char **argv, const char **ret_license)
{
    static const char usage[] =
        "bundle LICENSE -o DIRECTORY --registry URL [--platform all|OS/ARCH[/VARIANT]] [--registry-ca-file FILE] [--username NAME --password-file FILE]";
    const char *registry = getenv("PULLGATE_REGISTRY"), *password_file = NULL;

    *ret_license = NULL;
    for (int i = 0; i < argc; i++) {
        bool has_value = i + 1 < argc;
        if (option_is(argv[i], "-o", has_value))
            B.directory = argv[++i];
        else if (option_is(argv[i], "--registry", has_value))
            registry = argv[++i];
        else if (option_is(argv[i], "--platform", has_value))
            B.platform = strcmp(argv[++i], "all") == 0 ? NULL : argv[i];
        else if (option_is(argv[i], "--registry-ca-file", has_value))
            B.ca = read_file(argv[++i]);
        else if (option_is(argv[i], "--username", has_value))
            B.username = mem_strdup(argv[++i]);
        else if (option_is(argv[i], "--password-file", has_value))
            password_file = argv[++i];
        else if (strcmp(argv[i], "--json") == 0)
            cli.json = true;
        else if (argv[i][0] != '-' && *ret_license == NULL)
            *ret_license = argv[i];
        else
            die(EXIT_USAGE, "%s, not \"%s\"", usage, argv[i]);
    }
    if (*ret_license == NULL || B.directory == NULL || registry == NULL || *registry == '\0')
        die(EXIT_USAGE, "%s", usage);
    struct strbuf url = {0};
    sb_addf(&url, "%s%s", strstr(registry, "://") != NULL ? "" : "https://", registry);
    while (url.n > 0 && url.p[url.n - 1] == '/')
        url.p[--url.n] = '\0';
    B.registry = sb_take(&url);
    if (password_file != NULL)
        B.password = read_file(password_file);
    if (B.password != NULL && B.username == NULL)
        B.username = mem_strdup("bundle");
}

int bundle_command(int argc, char **argv)
{
    const char *given;
    struct strbuf path = {0}, license = {0};

    options_parse(argc, argv, &given);
    B.license_id = document_resolve("licenses", given);
    sb_addf(&path, "/licenses/%s", B.license_id);
    struct jv *l = api("GET", path.p, NULL);
    B.customer_id = str_dup(jv_get_str(l, "customer_id"));
    jv_free(l);
    sb_reset(&path);
    sb_addf(&path, "/licenses/%s/file", B.license_id);
    api_raw("GET", path.p, (struct str){NULL, 0}, NULL, 0, &license);

    struct jv *artifacts = artifacts_list();
    if (cli.dry_run) {
        print_table("repository tag version digest size_bytes", artifacts);
        return EXIT_OK;
    }
    signal(SIGINT, on_signal);
    signal(SIGTERM, on_signal);
    directory_take();
    if (B.password == NULL) {
        credential_make();
        credential_await();
    }
    B.loop = loop_new();
    NEED(B.loop != NULL, "an event loop");
    B.pool = fetch_pool_new(B.loop, &LIMITS);
    B.blobs = jv_object();
    B.expanded = jv_object();
    B.entries = jv_array();
    B.tags = jv_object();
    for (size_t i = 0; i < jv_len(artifacts); i++)
        artifact_add(artifacts, jv_at(artifacts, i));
    license_add(sb_str(&license));
    documents_write(sb_str(&license));
    check_interrupted();
    index_write();
    unsigned removed = directory_clean("sha256") + directory_clean("sha512");

    if (cli.json) {
        struct jv *told = jv_object();
        jv_set_c(told, "directory", B.directory);
        jv_set_c(told, "license_id", B.license_id);
        jv_set_int(told, "artifacts", (int64_t)jv_len(artifacts));
        jv_set_int(told, "blobs_fetched", (int64_t)B.n_fetched);
        jv_set_int(told, "blobs_kept", (int64_t)B.n_kept);
        jv_set_int(told, "bytes_fetched", (int64_t)B.bytes_fetched);
        jv_set_int(told, "removed", removed);
        print_json(told);
        jv_free(told);
    } else {
        printf("%s: %zu artifacts, %llu blobs fetched (%llu bytes), %llu were here%s\n", B.directory, jv_len(artifacts), (unsigned long long)B.n_fetched,
               (unsigned long long)B.bytes_fetched, (unsigned long long)B.n_kept, removed > 0 ? "; what is granted no more was removed" : "");
    }
    credential_revoke();
    fetch_pool_free(&B.pool);
    loop_free(B.loop);
    jv_free(artifacts);
    jv_free(B.blobs);
    jv_free(B.expanded);
    jv_free(B.entries);
    jv_free(B.tags);
    sb_free(&path);
    sb_free(&license);
    return EXIT_OK;
}
