/* Cryptography over OpenSSL: hashes, MACs, sealing, signatures, randomness, and the keys under keys.path.
 * The only file that knows OpenSSL, besides edge.c for TLS. */
#ifndef PULLGATE_SEAL_H
#define PULLGATE_SEAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pullgate/err.h"
#include "pullgate/oci.h"
#include "pullgate/str.h"

#define SEAL_MAC_LEN 32

/* The keys of a deployment: files in keys.path, 0600, made by the admin at its first start, read by every program:
 * mac.key (Redis values), pepper.key (credential hashes), seal.key (upstream secrets), audit.key, token-<kid>.key (Ed25519); license-<kid>.key below. */
struct keyring;
/* create: make what is missing (directory 0700, files 0600, fsync). Without create a missing key is ERR_UNAVAILABLE.
 * A key file that others may read is refused. */
enum err keyring_open(const char *path, bool create, struct keyring **ret, struct error *reterr) MUST_USE;
void keyring_free(struct keyring *k); /* cleansed */

enum keyring_key { KEYRING_MAC, KEYRING_PEPPER, KEYRING_SEAL, KEYRING_AUDIT };
/* HMAC-SHA-256 under one of the keys. Thread-safe. */
void keyring_hmac(const struct keyring *k, enum keyring_key which, struct str data, uint8_t ret[SEAL_MAC_LEN]);

/* AES-256-GCM under seal.key, a fresh 96-bit nonce; aad binds place: "upstream_id|field". Text: base64url. Empty plaintext is refused. */
enum err keyring_seal(const struct keyring *k, struct str aad, struct str plain, struct strbuf *ret, struct error *reterr) MUST_USE;
/* *ret: cleanse and free with mem_free_secret(p, n). */
enum err keyring_unseal(const struct keyring *k, struct str aad, struct str sealed, char **ret, size_t *ret_n) MUST_USE;

/* A long text in chunks, AES-256-GCM under a key that is used for this text alone: the chunk's number and whether it is the last are bound,
 * so that none can be left out, moved or added. seal_chunk() appends SEAL_CHUNK_MORE bytes more than plain has. */
#define SEAL_CHUNK_MORE 16
void seal_chunk(const uint8_t key[32], uint64_t number, bool is_last, struct str aad, struct str plain, struct strbuf *ret);
/* False: it was altered, or the key is another; ret is as before. */
bool unseal_chunk(const uint8_t key[32], uint64_t number, bool is_last, struct str aad, struct str sealed, struct strbuf *ret) MUST_USE;
/* A key of a passphrase: scrypt, N 2^15, r 8, p 1 (32 MiB, a tenth of a second). */
void seal_passphrase(struct str passphrase, struct str salt, uint8_t ret[32]);

/* Ed25519 of the tokens. kid is 16 hex digits of the public key's SHA-256. Up to 4 verifying keys; the newest signs. */
const char *keyring_token_kid(const struct keyring *k);
void keyring_token_sign(const struct keyring *k, struct str data, uint8_t ret_sig[64]);
bool keyring_token_verify(const struct keyring *k, struct str kid, struct str data, const uint8_t sig[64]);

/* Ed25519 of what customers keep: license files, leases, revocation lists. license-<kid>.key, read by the admin daemon alone; which of them
 * signs is the store's matter (signing_keys). make: one more, whose kid is in ret_kid (else empty; may be NULL); then every one of the
 * directory is in the keyring. One thread at a time may open; signing goes on meanwhile in others. */
#define KEYRING_LICENSE_KEYS_MAX 32
#define SEAL_KID_MAX 17
enum err keyring_license_open(struct keyring *k, const char *path, bool make, char ret_kid[SEAL_KID_MAX], struct error *reterr) MUST_USE;
struct keyring_license_key {
    char kid[SEAL_KID_MAX];
    uint8_t public_key[32];
    int64_t made_s;
};
size_t keyring_license_keys(const struct keyring *k, struct keyring_license_key ret[KEYRING_LICENSE_KEYS_MAX]);
bool keyring_license_has(const struct keyring *k, struct str kid);
bool keyring_license_sign(const struct keyring *k, struct str kid, struct str data, uint8_t ret_sig[64]) MUST_USE; /* false: no such key */

/* With a public key from elsewhere. kid: 16 hex digits of its SHA-256. */
bool seal_ed25519_verify(const uint8_t public_key[32], struct str data, const uint8_t sig[64]) MUST_USE;
void seal_ed25519_kid(const uint8_t public_key[32], char ret[SEAL_KID_MAX]);

void seal_sha256(struct str data, uint8_t ret[32]);
void seal_hmac(struct str key, struct str data, uint8_t ret[SEAL_MAC_LEN]);
/* For one-time passwords alone, whose programs know nothing else. */
#define SEAL_SHA1_LEN 20
void seal_hmac_sha1(struct str key, struct str data, uint8_t ret[SEAL_SHA1_LEN]);
bool seal_digest_matches(struct str data, const struct digest *d);
void seal_random(void *buf, size_t n); /* aborts when the kernel gives none */

/* Streaming digest of a blob. */
struct hasher;
struct hasher *hasher_new(enum digest_alg alg);
void hasher_update(struct hasher *h, const void *data, size_t n);
void hasher_final(struct hasher *h, struct digest *ret); /* once */
void hasher_free(struct hasher **h);

/* base64: standard (RFC 4648 4, padding required, canonical) and URL-safe without padding (5, canonical). Strict decoding. */
void base64_encode(struct str in, struct strbuf *ret);
bool base64_decode(struct str in, struct strbuf *ret);
void base64url_encode(struct str in, struct strbuf *ret);
bool base64url_decode(struct str in, struct strbuf *ret);

#endif
