/* Cryptography over OpenSSL's EVP: hashes, MACs, AES-256-GCM sealing, Ed25519, randomness, base64, and the key files.
 * Algorithms are fetched once a process; a digest context a thread is kept, because hashes and MACs run on every request.
 * It decides nothing about what is signed or sealed, and never logs key material. */
#include "pullgate/seal.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/kdf.h>
#include <openssl/params.h>

#include "pullgate/file.h"
#include "pullgate/log.h"
#include "pullgate/mem.h"

#define KEY_LEN 32
#define BLOCK_LEN 64 /* of SHA-256, for HMAC */
#define NONCE_LEN 12
#define TAG_LEN 16
#define SEAL_FORM 1 /* first byte of a sealed text: AES-256-GCM, 96-bit nonce, 128-bit tag */
#define KID_LEN (SEAL_KID_MAX - 1)
#define TOKEN_KEYS_MAX 4
#define KEY_FILE_MAX 256 /* a key file is 65 bytes; anything much longer is something else */

/* ---- algorithms and the context of a thread ---------------------------------------------------------------------- */

static pthread_once_t algorithms_once = PTHREAD_ONCE_INIT;
static EVP_MD *md_sha256, *md_sha512;
static EVP_CIPHER *cipher_gcm;
static pthread_key_t thread_ctx_key;
static _Thread_local EVP_MD_CTX *thread_ctx;

static void *openssl_alloc(size_t n, const char *file, int line)
{
    (void)file, (void)line;
    return mem_alloc(n);
}

static void *openssl_realloc(void *p, size_t n, const char *file, int line)
{
    (void)file, (void)line;
    if (n > 0)
        return mem_realloc(p, n);
    mem_free(p);
    return NULL;
}

static void openssl_free(void *p, const char *file, int line)
{
    (void)file, (void)line;
    mem_free(p);
}

/* Before main: OpenSSL takes no other allocator once it has used one. */
__attribute__((constructor)) static void openssl_start(void)
{
    AN(CRYPTO_set_mem_functions(openssl_alloc, openssl_realloc, openssl_free) == 1);
}

static void thread_ctx_free(void *p)
{
    EVP_MD_CTX_free(p);
}

static void algorithms_fetch(void)
{
    md_sha256 = EVP_MD_fetch(NULL, "SHA256", NULL);
    md_sha512 = EVP_MD_fetch(NULL, "SHA512", NULL);
    cipher_gcm = EVP_CIPHER_fetch(NULL, "AES-256-GCM", NULL);
    AN(md_sha256 && md_sha512 && cipher_gcm);
    AN(pthread_key_create(&thread_ctx_key, thread_ctx_free) == 0);
}

static void algorithms(void)
{
    AN(pthread_once(&algorithms_once, algorithms_fetch) == 0);
}

/* One digest context a thread, never held across a call that could use it again. */
static EVP_MD_CTX *ctx_of_thread(void)
{
    if (__builtin_expect(thread_ctx == NULL, 0)) {
        algorithms();
        thread_ctx = EVP_MD_CTX_new();
        AN(thread_ctx);
        AN(pthread_setspecific(thread_ctx_key, thread_ctx) == 0);
    }
    return thread_ctx;
}

static void sha256_parts(struct str a, struct str b, uint8_t ret[32])
{
    EVP_MD_CTX *ctx = ctx_of_thread();
    unsigned n = 0;
    AN(EVP_DigestInit_ex2(ctx, md_sha256, NULL) == 1);
    if (a.n)
        AN(EVP_DigestUpdate(ctx, a.p, a.n) == 1);
    if (b.n)
        AN(EVP_DigestUpdate(ctx, b.p, b.n) == 1);
    AN(EVP_DigestFinal_ex(ctx, ret, &n) == 1);
    AN(n == 32);
}

void seal_sha256(struct str data, uint8_t ret[32])
{
    sha256_parts(data, (struct str){NULL, 0}, ret);
}

/* HMAC's two padded key blocks (RFC 2104), made once a key: a MAC is then two short hashes and no allocation. */
struct hmac_key {
    uint8_t inner[BLOCK_LEN], outer[BLOCK_LEN];
};

static void hmac_key_make(struct str key, struct hmac_key *ret)
{
    uint8_t k[BLOCK_LEN] = {0};
    if (key.n > BLOCK_LEN)
        seal_sha256(key, k);
    else if (key.n)
        memcpy(k, key.p, key.n);
    for (size_t i = 0; i < BLOCK_LEN; i++) {
        ret->inner[i] = k[i] ^ 0x36;
        ret->outer[i] = k[i] ^ 0x5c;
    }
    mem_cleanse(k, sizeof k);
}

static void hmac_run(const struct hmac_key *k, struct str data, uint8_t ret[SEAL_MAC_LEN])
{
    uint8_t inner[32];
    sha256_parts((struct str){(const char *)k->inner, BLOCK_LEN}, data, inner);
    sha256_parts((struct str){(const char *)k->outer, BLOCK_LEN}, (struct str){(const char *)inner, sizeof inner}, ret);
}

void seal_hmac(struct str key, struct str data, uint8_t ret[SEAL_MAC_LEN])
{
    struct hmac_key k;
    hmac_key_make(key, &k);
    hmac_run(&k, data, ret);
    mem_cleanse(&k, sizeof k);
}

void seal_hmac_sha1(struct str key, struct str data, uint8_t ret[SEAL_SHA1_LEN])
{
    static const char sha1[] = "SHA1";
    OSSL_PARAM params[] = {OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, (char *)(uintptr_t)sha1, 0), OSSL_PARAM_construct_end()};
    EVP_MAC *mac = EVP_MAC_fetch(NULL, "HMAC", NULL);
    EVP_MAC_CTX *ctx = mac ? EVP_MAC_CTX_new(mac) : NULL;
    size_t n = 0;
    AN(ctx && EVP_MAC_init(ctx, (const unsigned char *)key.p, key.n, params) == 1);
    AN(EVP_MAC_update(ctx, (const unsigned char *)data.p, data.n) == 1);
    AN(EVP_MAC_final(ctx, ret, &n, SEAL_SHA1_LEN) == 1 && n == SEAL_SHA1_LEN);
    EVP_MAC_CTX_free(ctx);
    EVP_MAC_free(mac);
}

bool seal_digest_matches(struct str data, const struct digest *d)
{
    if (d->alg != DIGEST_SHA256 && d->alg != DIGEST_SHA512)
        return false;
    struct digest got;
    struct hasher *h = hasher_new((enum digest_alg)d->alg);
    hasher_update(h, data.p, data.n);
    hasher_final(h, &got);
    hasher_free(&h);
    return got.alg == d->alg && memcmp(got.bytes, d->bytes, d->alg == DIGEST_SHA256 ? 32 : 64) == 0;
}

void seal_random(void *buf, size_t n)
{
    uint8_t *p = buf;
    while (n) {
        ssize_t got = getrandom(p, n, 0);
        if (got < 0 && errno == EINTR)
            continue;
        AN(got > 0);
        p += got;
        n -= (size_t)got;
    }
}

/* ---- streaming digest -------------------------------------------------------------------------------------------- */

struct hasher {
    EVP_MD_CTX *ctx;
    enum digest_alg alg;
};

struct hasher *hasher_new(enum digest_alg alg)
{
    algorithms();
    AN(alg == DIGEST_SHA256 || alg == DIGEST_SHA512);
    struct hasher *h = NEW(struct hasher);
    h->alg = alg;
    h->ctx = EVP_MD_CTX_new();
    AN(h->ctx);
    AN(EVP_DigestInit_ex2(h->ctx, alg == DIGEST_SHA256 ? md_sha256 : md_sha512, NULL) == 1);
    return h;
}

void hasher_update(struct hasher *h, const void *data, size_t n)
{
    if (n)
        AN(EVP_DigestUpdate(h->ctx, data, n) == 1);
}

void hasher_final(struct hasher *h, struct digest *ret)
{
    unsigned n = 0;
    memset(ret, 0, sizeof *ret);
    ret->alg = (uint8_t)h->alg;
    AN(EVP_DigestFinal_ex(h->ctx, ret->bytes, &n) == 1);
    AN(n == (h->alg == DIGEST_SHA256 ? 32u : 64u));
}

void hasher_free(struct hasher **h)
{
    if (!*h)
        return;
    EVP_MD_CTX_free((*h)->ctx);
    MEM_FREE(*h);
}

/* ---- the keys of a deployment ------------------------------------------------------------------------------------ */

struct token_key {
    char kid[KID_LEN + 1];
    struct timespec made; /* the file's mtime: the newest signs */
    EVP_PKEY *pkey;
};

struct keyring {
    struct hmac_key hmac[4]; /* by enum keyring_key */
    uint8_t seal[KEY_LEN];
    struct token_key token[TOKEN_KEYS_MAX]; /* newest first */
    size_t n_token;
    struct token_key license[KEYRING_LICENSE_KEYS_MAX]; /* only appended to, while others read: n_license is stored last */
    size_t n_license;
};

static const char *const KEY_FILES[] = {
    [KEYRING_MAC] = "mac.key", [KEYRING_PEPPER] = "pepper.key", [KEYRING_SEAL] = "seal.key", [KEYRING_AUDIT] = "audit.key"};
#define N_KEY_FILES (sizeof KEY_FILES / sizeof *KEY_FILES)

/* Read one key file: 64 hex digits and perhaps a newline. ERR_NOT_FOUND when there is none. */
static enum err key_read(int dir, const char *path, const char *name, uint8_t ret[KEY_LEN], struct timespec *ret_mtime,
                         struct error *reterr)
{
    int fd = openat(dir, name, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 && errno == ENOENT)
        return error_set(reterr, ERR_NOT_FOUND, "key file %s/%s does not exist", path, name);
    if (fd < 0)
        return error_set(reterr, ERR_UNAVAILABLE, "key file %s/%s: %s", path, name, strerror(errno));

    char text[KEY_FILE_MAX];
    enum err err = ERR_OK;
    struct stat st;
    ssize_t n = 0;
    if (fstat(fd, &st) != 0)
        err = error_set(reterr, ERR_UNAVAILABLE, "key file %s/%s: %s", path, name, strerror(errno));
    else if (!S_ISREG(st.st_mode))
        err = error_set(reterr, ERR_UNAVAILABLE, "key file %s/%s is no regular file", path, name);
    else if (st.st_mode & 077)
        err = error_set(reterr, ERR_UNAVAILABLE, "key file %s/%s has mode %04o, others may reach it: chmod 600 it", path, name,
                        (unsigned)(st.st_mode & 07777));
    else if (st.st_uid != geteuid() && st.st_uid != 0 && geteuid() != 0)
        err = error_set(reterr, ERR_UNAVAILABLE, "key file %s/%s belongs to uid %u, neither to uid %u nor to root", path, name,
                        (unsigned)st.st_uid, (unsigned)geteuid());
    else if ((n = file_read_full(fd, text, sizeof text)) < 0)
        err = error_set(reterr, ERR_UNAVAILABLE, "key file %s/%s: %s", path, name, strerror(errno));
    close(fd);
    if (!err) {
        struct str hex = {text, (size_t)n};
        if (hex.n == 2 * KEY_LEN + 1 && hex.p[hex.n - 1] == '\n')
            hex.n--;
        if (hex.n != 2 * KEY_LEN || !hex_decode(hex, ret, KEY_LEN))
            err = error_set(reterr, ERR_UNAVAILABLE, "key file %s/%s is not %d hex digits", path, name, 2 * KEY_LEN);
        else if (ret_mtime)
            *ret_mtime = st.st_mtim;
    }
    mem_cleanse(text, sizeof text);
    return err;
}

/* Whole or not at all, and never over a key that is there: a temporary file, fsync, link to the name, fsync of the directory. */
static enum err key_write(int dir, const char *path, const char *name, const uint8_t key[KEY_LEN], struct error *reterr)
{
    char tmp[64];
    uint64_t r;
    seal_random(&r, sizeof r);
    snprintf(tmp, sizeof tmp, ".%016llx.tmp", (unsigned long long)r);
    int fd = openat(dir, tmp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return error_set(reterr, ERR_UNAVAILABLE, "cannot make %s/%s: %s", path, name, strerror(errno));
    struct strbuf hex = {0};
    sb_reserve(&hex, 2 * KEY_LEN + 2);
    sb_add_hex(&hex, key, KEY_LEN);
    sb_add_char(&hex, '\n');
    bool ok = fchmod(fd, 0600) == 0 && file_write_all(fd, sb_str(&hex)) && fsync(fd) == 0;
    ok = close(fd) == 0 && ok;
    ok = ok && linkat(dir, tmp, dir, name, 0) == 0;
    int e = errno;
    unlinkat(dir, tmp, 0);
    mem_cleanse(hex.p, hex.n);
    sb_free(&hex);
    if (!ok)
        return error_set(reterr, ERR_UNAVAILABLE, "cannot write %s/%s: %s", path, name, strerror(e));
    if (fsync(dir) != 0)
        return error_set(reterr, ERR_UNAVAILABLE, "cannot sync %s: %s", path, strerror(errno));
    return ERR_OK;
}

static void kid_of(const uint8_t public_key[KEY_LEN], char ret[KID_LEN + 1])
{
    static const char digits[] = "0123456789abcdef";
    uint8_t hash[32];
    seal_sha256((struct str){(const char *)public_key, KEY_LEN}, hash);
    for (size_t i = 0; i < KID_LEN; i++)
        ret[i] = digits[i % 2 ? hash[i / 2] & 15 : hash[i / 2] >> 4];
    ret[KID_LEN] = 0;
}

static EVP_PKEY *ed25519_of_seed(const uint8_t seed[KEY_LEN], char ret_kid[KID_LEN + 1])
{
    EVP_PKEY *pkey = EVP_PKEY_new_raw_private_key_ex(NULL, "ED25519", NULL, seed, KEY_LEN);
    uint8_t pub[KEY_LEN];
    size_t n = sizeof pub;
    AN(pkey && EVP_PKEY_get_raw_public_key(pkey, pub, &n) == 1 && n == KEY_LEN);
    kid_of(pub, ret_kid);
    return pkey;
}

static bool token_key_newer(const struct token_key *a, const struct token_key *b)
{
    if (a->made.tv_sec != b->made.tv_sec)
        return a->made.tv_sec > b->made.tv_sec;
    if (a->made.tv_nsec != b->made.tv_nsec)
        return a->made.tv_nsec > b->made.tv_nsec;
    return strcmp(a->kid, b->kid) > 0;
}

/* Keeps the newest TOKEN_KEYS_MAX, in order. */
static void token_key_insert(struct keyring *k, struct token_key *take)
{
    size_t at = 0;
    while (at < k->n_token && token_key_newer(&k->token[at], take))
        at++;
    if (at == TOKEN_KEYS_MAX) {
        EVP_PKEY_free(take->pkey);
        return;
    }
    if (k->n_token == TOKEN_KEYS_MAX)
        EVP_PKEY_free(k->token[--k->n_token].pkey);
    memmove(&k->token[at + 1], &k->token[at], (k->n_token - at) * sizeof *k->token);
    k->token[at] = *take;
    k->n_token++;
}

typedef void signing_key_taker(struct keyring *k, struct token_key *take);

/* Every <prefix><kid>.key of the directory is handed to `take`. */
static enum err signing_keys_read(int dir, const char *path, const char *prefix, signing_key_taker *take, struct keyring *k, struct error *reterr)
{
    size_t skip = strlen(prefix);
    int fd = openat(dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *d = fd < 0 ? NULL : fdopendir(fd);
    if (!d) {
        if (fd >= 0)
            close(fd);
        return error_set(reterr, ERR_UNAVAILABLE, "cannot list %s: %s", path, strerror(errno));
    }
    enum err err = ERR_OK;
    for (struct dirent *e; !err && (e = readdir(d));) {
        struct str name = str_c(e->d_name);
        if (!str_starts(name, str_c(prefix)) || !str_ends(name, S(".key")))
            continue;
        uint8_t seed[KEY_LEN];
        struct token_key t = {0};
        err = key_read(dir, path, e->d_name, seed, &t.made, reterr);
        if (err)
            break;
        t.pkey = ed25519_of_seed(seed, t.kid);
        mem_cleanse(seed, sizeof seed);
        if (!str_eq_c(str_sub(name, skip, name.n - skip - 4), t.kid)) {
            EVP_PKEY_free(t.pkey);
            err = error_set(reterr, ERR_UNAVAILABLE, "key file %s/%s holds the key %s: it was renamed or damaged", path, e->d_name, t.kid);
            break;
        }
        take(k, &t);
    }
    closedir(d);
    return err;
}

static enum err signing_key_create(int dir, const char *path, const char *prefix, char ret_kid[KID_LEN + 1], struct error *reterr)
{
    uint8_t seed[KEY_LEN];
    char name[64];
    seal_random(seed, sizeof seed);
    EVP_PKEY_free(ed25519_of_seed(seed, ret_kid));
    snprintf(name, sizeof name, "%s%s.key", prefix, ret_kid);
    enum err err = key_write(dir, path, name, seed, reterr);
    mem_cleanse(seed, sizeof seed);
    return err;
}

static enum err token_keys_read(int dir, const char *path, struct keyring *k, struct error *reterr)
{
    return signing_keys_read(dir, path, "token-", token_key_insert, k, reterr);
}

static enum err token_key_create(int dir, const char *path, struct keyring *k, struct error *reterr)
{
    char kid[KID_LEN + 1];
    enum err err = signing_key_create(dir, path, "token-", kid, reterr);
    return err ? err : token_keys_read(dir, path, k, reterr);
}

static enum err keyring_fill(int dir, const char *path, bool create, struct keyring *k, struct error *reterr)
{
    for (size_t i = 0; i < N_KEY_FILES; i++) {
        uint8_t key[KEY_LEN];
        enum err err = key_read(dir, path, KEY_FILES[i], key, NULL, reterr);
        if (err == ERR_NOT_FOUND && create) {
            seal_random(key, sizeof key);
            err = key_write(dir, path, KEY_FILES[i], key, reterr);
        }
        if (err)
            return err == ERR_NOT_FOUND ? ERR_UNAVAILABLE : err;
        hmac_key_make((struct str){(const char *)key, KEY_LEN}, &k->hmac[i]);
        if (i == KEYRING_SEAL)
            memcpy(k->seal, key, KEY_LEN);
        mem_cleanse(key, sizeof key);
    }
    enum err err = token_keys_read(dir, path, k, reterr);
    if (!err && !k->n_token)
        err = create ? token_key_create(dir, path, k, reterr)
                     : error_set(reterr, ERR_UNAVAILABLE, "no token-<kid>.key in %s: the admin daemon makes the keys at its first start", path);
    return err;
}

enum err keyring_open(const char *path, bool create, struct keyring **ret, struct error *reterr)
{
    algorithms();
    if (!path || !*path)
        return error_set_field(reterr, ERR_INVALID, "keys.path", "keys.path is empty");
    if (create && mkdir(path, 0700) != 0 && errno != EEXIST)
        return error_set_field(reterr, ERR_UNAVAILABLE, "keys.path", "cannot make the key directory %s: %s", path, strerror(errno));
    int dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir < 0)
        return error_set_field(reterr, ERR_UNAVAILABLE, "keys.path", "cannot open the key directory %s: %s", path, strerror(errno));

    struct keyring *k = NEW(struct keyring);
    struct stat st;
    enum err err = ERR_OK;
    if (fstat(dir, &st) != 0)
        err = error_set_field(reterr, ERR_UNAVAILABLE, "keys.path", "%s: %s", path, strerror(errno));
    else if (st.st_mode & 022)
        err = error_set_field(reterr, ERR_UNAVAILABLE, "keys.path", "the key directory %s has mode %04o, others may write it: chmod 700 it", path,
                              (unsigned)(st.st_mode & 07777));
    /* Two programs that start at once must not each make a key: the second waits and finds the first one's. */
    else if (create && flock(dir, LOCK_EX) != 0)
        err = error_set_field(reterr, ERR_UNAVAILABLE, "keys.path", "cannot lock %s: %s", path, strerror(errno));
    else
        err = keyring_fill(dir, path, create, k, reterr);
    close(dir); /* and the lock with it */
    if (err) {
        keyring_free(k);
        return err;
    }
    *ret = k;
    return ERR_OK;
}

void keyring_free(struct keyring *k)
{
    if (!k)
        return;
    for (size_t i = 0; i < k->n_token; i++)
        EVP_PKEY_free(k->token[i].pkey);
    for (size_t i = 0; i < k->n_license; i++)
        EVP_PKEY_free(k->license[i].pkey);
    mem_free_secret(k, sizeof *k);
}

void keyring_hmac(const struct keyring *k, enum keyring_key which, struct str data, uint8_t ret[SEAL_MAC_LEN])
{
    AN((size_t)which < N_KEY_FILES);
    hmac_run(&k->hmac[which], data, ret);
}

/* ---- sealing: form byte, nonce, ciphertext, tag; as base64url ------------------------------------------------------ */

enum err keyring_seal(const struct keyring *k, struct str aad, struct str plain, struct strbuf *ret, struct error *reterr)
{
    if (!plain.n)
        return error_set(reterr, ERR_INVALID, "an empty secret cannot be sealed");
    if (plain.n > (1u << 20) || aad.n > (1u << 20))
        return error_set(reterr, ERR_TOO_LARGE, "a secret of %zu bytes is too long", plain.n);
    algorithms();
    size_t n = 1 + NONCE_LEN + plain.n + TAG_LEN;
    uint8_t *out = mem_alloc(n);
    int len = 0, ciphered = 0;
    out[0] = SEAL_FORM;
    seal_random(out + 1, NONCE_LEN);
    EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
    AN(ctx);
    bool ok = EVP_EncryptInit_ex2(ctx, cipher_gcm, k->seal, out + 1, NULL) == 1 &&
              EVP_EncryptUpdate(ctx, NULL, &len, out, 1) == 1 && /* the form byte is bound too */
              (!aad.n || EVP_EncryptUpdate(ctx, NULL, &len, (const uint8_t *)aad.p, (int)aad.n) == 1) &&
              EVP_EncryptUpdate(ctx, out + 1 + NONCE_LEN, &ciphered, (const uint8_t *)plain.p, (int)plain.n) == 1 &&
              EVP_EncryptFinal_ex(ctx, out + 1 + NONCE_LEN + ciphered, &len) == 1 && (size_t)(ciphered + len) == plain.n &&
              EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_GET_TAG, TAG_LEN, out + n - TAG_LEN) == 1;
    EVP_CIPHER_CTX_free(ctx);
    AN(ok);
    base64url_encode((struct str){(const char *)out, n}, ret);
    mem_free(out);
    return ERR_OK;
}

enum err keyring_unseal(const struct keyring *k, struct str aad, struct str sealed, char **ret, size_t *ret_n)
{
    algorithms();
    struct strbuf raw = {0};
    bool ok = sealed.n <= (2u << 20) && aad.n <= (1u << 20) && base64url_decode(sealed, &raw) && raw.n > 1 + NONCE_LEN + TAG_LEN &&
              raw.p[0] == SEAL_FORM;
    if (!ok) {
        sb_free(&raw);
        return ERR_INVALID;
    }
    const uint8_t *in = (const uint8_t *)raw.p;
    size_t n = raw.n - 1 - NONCE_LEN - TAG_LEN;
    uint8_t tag[TAG_LEN];
    memcpy(tag, in + raw.n - TAG_LEN, TAG_LEN);
    char *plain = mem_alloc(n + 1);
    int len = 0, deciphered = 0;
    EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
    AN(ctx);
    ok = EVP_DecryptInit_ex2(ctx, cipher_gcm, k->seal, in + 1, NULL) == 1 && EVP_DecryptUpdate(ctx, NULL, &len, in, 1) == 1 &&
         (!aad.n || EVP_DecryptUpdate(ctx, NULL, &len, (const uint8_t *)aad.p, (int)aad.n) == 1) &&
         EVP_DecryptUpdate(ctx, (uint8_t *)plain, &deciphered, in + 1 + NONCE_LEN, (int)n) == 1 &&
         EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_SET_TAG, TAG_LEN, tag) == 1 &&
         EVP_DecryptFinal_ex(ctx, (uint8_t *)plain + deciphered, &len) == 1 && (size_t)(deciphered + len) == n;
    EVP_CIPHER_CTX_free(ctx);
    sb_free(&raw);
    if (!ok) {
        mem_free_secret(plain, n + 1);
        return ERR_INVALID;
    }
    plain[n] = 0;
    *ret = plain;
    *ret_n = n;
    return ERR_OK;
}

/* ---- long texts in chunks --------------------------------------------------------------------------------------------- */

static void chunk_nonce(uint64_t number, bool is_last, uint8_t ret[NONCE_LEN])
{
    memset(ret, 0, NONCE_LEN);
    ret[0] = is_last;
    for (int i = 0; i < 8; i++)
        ret[NONCE_LEN - 1 - i] = (uint8_t)(number >> (8 * i));
}

void seal_chunk(const uint8_t key[32], uint64_t number, bool is_last, struct str aad, struct str plain, struct strbuf *ret)
{
    uint8_t nonce[NONCE_LEN];
    int len = 0, ciphered = 0;

    AN(plain.n <= (1u << 30) && aad.n <= (1u << 20) && SEAL_CHUNK_MORE == TAG_LEN);
    algorithms();
    chunk_nonce(number, is_last, nonce);
    sb_reserve(ret, plain.n + TAG_LEN + 1);
    uint8_t *out = (uint8_t *)ret->p + ret->n;
    EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
    AN(ctx);
    bool ok = EVP_EncryptInit_ex2(ctx, cipher_gcm, key, nonce, NULL) == 1 &&
              (!aad.n || EVP_EncryptUpdate(ctx, NULL, &len, (const uint8_t *)aad.p, (int)aad.n) == 1) &&
              (!plain.n || EVP_EncryptUpdate(ctx, out, &ciphered, (const uint8_t *)plain.p, (int)plain.n) == 1) &&
              EVP_EncryptFinal_ex(ctx, out + ciphered, &len) == 1 && (size_t)(ciphered + len) == plain.n &&
              EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_GET_TAG, TAG_LEN, out + plain.n) == 1;
    EVP_CIPHER_CTX_free(ctx);
    AN(ok);
    ret->n += plain.n + TAG_LEN;
    ret->p[ret->n] = 0;
}

bool unseal_chunk(const uint8_t key[32], uint64_t number, bool is_last, struct str aad, struct str sealed, struct strbuf *ret)
{
    uint8_t nonce[NONCE_LEN], tag[TAG_LEN];
    int len = 0, deciphered = 0;

    if (sealed.n < TAG_LEN || sealed.n > (1u << 30) || aad.n > (1u << 20))
        return false;
    size_t n = sealed.n - TAG_LEN;
    algorithms();
    chunk_nonce(number, is_last, nonce);
    memcpy(tag, sealed.p + n, TAG_LEN);
    sb_reserve(ret, n + 1);
    uint8_t *out = (uint8_t *)ret->p + ret->n;
    EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
    AN(ctx);
    bool ok = EVP_DecryptInit_ex2(ctx, cipher_gcm, key, nonce, NULL) == 1 &&
              (!aad.n || EVP_DecryptUpdate(ctx, NULL, &len, (const uint8_t *)aad.p, (int)aad.n) == 1) &&
              (!n || EVP_DecryptUpdate(ctx, out, &deciphered, (const uint8_t *)sealed.p, (int)n) == 1) &&
              EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_SET_TAG, TAG_LEN, tag) == 1 &&
              EVP_DecryptFinal_ex(ctx, out + deciphered, &len) == 1 && (size_t)(deciphered + len) == n;
    EVP_CIPHER_CTX_free(ctx);
    if (ok)
        ret->n += n;
    else
        mem_cleanse(out, n);
    ret->p[ret->n] = 0;
    return ok;
}

void seal_passphrase(struct str passphrase, struct str salt, uint8_t ret[32])
{
    uint64_t n = 1u << 15, maxmem = 64u << 20;
    uint32_t r = 8, p = 1;
    OSSL_PARAM params[] = {
        OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_PASSWORD, (void *)(uintptr_t)passphrase.p, passphrase.n),
        OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_SALT, (void *)(uintptr_t)salt.p, salt.n),
        OSSL_PARAM_construct_uint64(OSSL_KDF_PARAM_SCRYPT_N, &n),
        OSSL_PARAM_construct_uint32(OSSL_KDF_PARAM_SCRYPT_R, &r),
        OSSL_PARAM_construct_uint32(OSSL_KDF_PARAM_SCRYPT_P, &p),
        OSSL_PARAM_construct_uint64(OSSL_KDF_PARAM_SCRYPT_MAXMEM, &maxmem),
        OSSL_PARAM_construct_end(),
    };
    EVP_KDF *kdf = EVP_KDF_fetch(NULL, "SCRYPT", NULL);
    EVP_KDF_CTX *ctx = kdf ? EVP_KDF_CTX_new(kdf) : NULL;
    AN(ctx && EVP_KDF_derive(ctx, ret, 32, params) == 1);
    EVP_KDF_CTX_free(ctx);
    EVP_KDF_free(kdf);
}

/* ---- token signatures -------------------------------------------------------------------------------------------- */

const char *keyring_token_kid(const struct keyring *k)
{
    return k->token[0].kid;
}

static void ed25519_sign(EVP_PKEY *pkey, struct str data, uint8_t ret_sig[64])
{
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    size_t n = 64;
    AN(ctx);
    AN(EVP_DigestSignInit_ex(ctx, NULL, NULL, NULL, NULL, pkey, NULL) == 1);
    AN(EVP_DigestSign(ctx, ret_sig, &n, (const uint8_t *)data.p, data.n) == 1);
    AN(n == 64);
    EVP_MD_CTX_free(ctx);
}

static bool ed25519_verify(EVP_PKEY *pkey, struct str data, const uint8_t sig[64])
{
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    AN(ctx);
    bool ok = EVP_DigestVerifyInit_ex(ctx, NULL, NULL, NULL, NULL, pkey, NULL) == 1 &&
              EVP_DigestVerify(ctx, sig, 64, (const uint8_t *)data.p, data.n) == 1;
    EVP_MD_CTX_free(ctx);
    return ok;
}

void keyring_token_sign(const struct keyring *k, struct str data, uint8_t ret_sig[64])
{
    ed25519_sign(k->token[0].pkey, data, ret_sig);
}

bool keyring_token_verify(const struct keyring *k, struct str kid, struct str data, const uint8_t sig[64])
{
    for (size_t i = 0; i < k->n_token; i++)
        if (str_eq_c(kid, k->token[i].kid))
            return ed25519_verify(k->token[i].pkey, data, sig);
    return false;
}

/* ---- license signatures ------------------------------------------------------------------------------------------ */

#define LICENSE_PREFIX "license-"

static void license_key_append(struct keyring *k, struct token_key *take)
{
    size_t n = __atomic_load_n(&k->n_license, __ATOMIC_RELAXED);
    bool is_known = n == KEYRING_LICENSE_KEYS_MAX;
    for (size_t i = 0; !is_known && i < n; i++)
        is_known = strcmp(k->license[i].kid, take->kid) == 0;
    if (is_known) {
        EVP_PKEY_free(take->pkey);
        return;
    }
    k->license[n] = *take;
    __atomic_store_n(&k->n_license, n + 1, __ATOMIC_RELEASE);
}

enum err keyring_license_open(struct keyring *k, const char *path, bool make, char ret_kid[SEAL_KID_MAX], struct error *reterr)
{
    int dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir < 0)
        return error_set_field(reterr, ERR_UNAVAILABLE, "keys.path", "cannot open the key directory %s: %s", path, strerror(errno));
    char kid[KID_LEN + 1] = "";
    enum err err = ERR_OK;
    if (make && __atomic_load_n(&k->n_license, __ATOMIC_ACQUIRE) == KEYRING_LICENSE_KEYS_MAX)
        err = error_set(reterr, ERR_CONFLICT, "%s holds %d license keys already", path, KEYRING_LICENSE_KEYS_MAX);
    if (!err && make)
        err = signing_key_create(dir, path, LICENSE_PREFIX, kid, reterr);
    if (!err)
        err = signing_keys_read(dir, path, LICENSE_PREFIX, license_key_append, k, reterr);
    close(dir);
    if (!err && ret_kid)
        snprintf(ret_kid, SEAL_KID_MAX, "%s", kid);
    return err;
}

size_t keyring_license_keys(const struct keyring *k, struct keyring_license_key ret[KEYRING_LICENSE_KEYS_MAX])
{
    size_t n = __atomic_load_n(&k->n_license, __ATOMIC_ACQUIRE);
    for (size_t i = 0; i < n; i++) {
        size_t len = KEY_LEN;
        memcpy(ret[i].kid, k->license[i].kid, sizeof ret[i].kid);
        ret[i].made_s = (int64_t)k->license[i].made.tv_sec;
        AN(EVP_PKEY_get_raw_public_key(k->license[i].pkey, ret[i].public_key, &len) == 1 && len == KEY_LEN);
    }
    return n;
}

static const struct token_key *license_key_find(const struct keyring *k, struct str kid)
{
    size_t n = __atomic_load_n(&k->n_license, __ATOMIC_ACQUIRE);
    for (size_t i = 0; i < n; i++)
        if (str_eq_c(kid, k->license[i].kid))
            return &k->license[i];
    return NULL;
}

bool keyring_license_has(const struct keyring *k, struct str kid)
{
    return license_key_find(k, kid) != NULL;
}

bool keyring_license_sign(const struct keyring *k, struct str kid, struct str data, uint8_t ret_sig[64])
{
    const struct token_key *key = license_key_find(k, kid);
    if (key)
        ed25519_sign(key->pkey, data, ret_sig);
    return key != NULL;
}

void seal_ed25519_kid(const uint8_t public_key[32], char ret[SEAL_KID_MAX])
{
    kid_of(public_key, ret);
}

bool seal_ed25519_verify(const uint8_t public_key[32], struct str data, const uint8_t sig[64])
{
    EVP_PKEY *pkey = EVP_PKEY_new_raw_public_key_ex(NULL, "ED25519", NULL, public_key, KEY_LEN);
    if (!pkey)
        return false;
    bool ok = ed25519_verify(pkey, data, sig);
    EVP_PKEY_free(pkey);
    return ok;
}

/* ---- base64 ------------------------------------------------------------------------------------------------------ */

static const char B64_STD[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
static const char B64_URL[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

static void b64_encode(struct str in, const char *alphabet, bool pad, struct strbuf *ret)
{
    const uint8_t *p = (const uint8_t *)in.p;
    size_t n = in.n;
    sb_reserve(ret, n / 3 * 4 + 5);
    for (; n >= 3; p += 3, n -= 3) {
        uint32_t v = (uint32_t)p[0] << 16 | (uint32_t)p[1] << 8 | p[2];
        char out[4] = {alphabet[v >> 18], alphabet[v >> 12 & 63], alphabet[v >> 6 & 63], alphabet[v & 63]};
        sb_add(ret, (struct str){out, 4});
    }
    if (n) {
        uint32_t v = (uint32_t)p[0] << 16 | (n == 2 ? (uint32_t)p[1] << 8 : 0);
        char out[4] = {alphabet[v >> 18], alphabet[v >> 12 & 63], n == 2 ? alphabet[v >> 6 & 63] : '=', '='};
        sb_add(ret, (struct str){out, pad ? 4 : n + 1});
    }
}

static int b64_value(char c, const char *alphabet)
{
    if (c >= 'A' && c <= 'Z')
        return c - 'A';
    if (c >= 'a' && c <= 'z')
        return c - 'a' + 26;
    if (c >= '0' && c <= '9')
        return c - '0' + 52;
    return c == alphabet[62] ? 62 : c == alphabet[63] ? 63 : -1;
}

/* Canonical only: unused bits of the last character are zero, so that no two texts mean the same bytes. */
static bool b64_decode(struct str in, const char *alphabet, struct strbuf *ret)
{
    if (in.n % 4 == 1)
        return false;
    size_t start = ret->n;
    sb_reserve(ret, in.n / 4 * 3 + 4);
    uint32_t v = 0;
    unsigned bits = 0;
    for (size_t i = 0; i < in.n; i++) {
        int d = b64_value(in.p[i], alphabet);
        if (d < 0)
            goto fail;
        v = v << 6 | (uint32_t)d;
        bits += 6;
        if (bits >= 8) {
            bits -= 8;
            sb_add_char(ret, (char)(uint8_t)(v >> bits));
            v &= (1u << bits) - 1;
        }
    }
    if (v != 0)
        goto fail;
    return true;
fail:
    ret->n = start;
    if (ret->p)
        ret->p[start] = 0;
    return false;
}

/* The four append to ret; a failed decoding leaves it as it was. */
void base64_encode(struct str in, struct strbuf *ret)
{
    b64_encode(in, B64_STD, true, ret);
}

bool base64_decode(struct str in, struct strbuf *ret)
{
    if (in.n % 4)
        return false;
    for (int i = 0; i < 2 && in.n && in.p[in.n - 1] == '='; i++)
        in.n--;
    return b64_decode(in, B64_STD, ret);
}

void base64url_encode(struct str in, struct strbuf *ret)
{
    b64_encode(in, B64_URL, false, ret);
}

bool base64url_decode(struct str in, struct strbuf *ret)
{
    return b64_decode(in, B64_URL, ret);
}
