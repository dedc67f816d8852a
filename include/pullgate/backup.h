/* The form of a backup file: a head in text, then everything else sealed in chunks. It knows bytes and keys; what is in the store, and
 * whether it may be put in place, is the command line's to judge.
 *
 *     pullgate-backup 1                              one line each, in this order
 *     made 2026-11-23T01:00:00Z
 *     schema 1                                       newest migration of the store
 *     epoch 4711                                     newest change in it
 *     store 1081344 <SHA-256 of the store, hex>
 *     key keys <id of seal.key> | key passphrase     what it is sealed under
 *     salt <64 hex>
 *                                                    an empty line, then chunks of 64 KiB and 16 bytes (seal_chunk()), the head's hash bound to each:
 *     the store; then, sealed under a passphrase only, for each key file "<name> <bytes>\n" and its bytes
 *
 * Under "keys" the key is derived from seal.key and the salt: such a file tells nothing to who has not the keys directory, and no key is
 * in it. */
#ifndef PULLGATE_BACKUP_H
#define PULLGATE_BACKUP_H

#include <stdbool.h>
#include <stdint.h>

#include "pullgate/err.h"
#include "pullgate/seal.h"
#include "pullgate/str.h"

#define BACKUP_KEY_FILES_MAX 64
#define BACKUP_KEY_FILE_BYTES 4096

struct backup_head {
    int64_t made_s;
    int64_t schema;
    uint64_t epoch;
    uint64_t store_bytes;
    uint8_t store_sha256[32];
    bool by_passphrase;
    char key_id[17];
};

struct backup_key_file {
    char name[80];
    char *bytes; /* mem_free_secret() */
    size_t n;
};
struct backup_key_files {
    struct backup_key_file list[BACKUP_KEY_FILES_MAX];
    size_t n;
};
void backup_key_files_free(struct backup_key_files *f);

struct backup_secret { /* one of them opens a file; sealing takes the passphrase where there is one */
    const struct keyring *keys; /* NULL: none */
    struct str passphrase;      /* empty: none */
};

/* Writes path whole or not at all: 0600, synced, read again from the first byte to the last; an existing file stays what it is until then. store_fd: the store's copy, of h->store_bytes
 * that hash to h->store_sha256; key_id and by_passphrase of h are filled here. key_files: NULL, or with a passphrase. */
enum err backup_write(const char *path, struct backup_head *h, const struct backup_secret *secret, int store_fd, const struct backup_key_files *key_files,
                      struct error *reterr) MUST_USE;
/* Reads the head alone. Nothing of it is proved yet. */
enum err backup_read_head(const char *path, struct backup_head *ret, struct error *reterr) MUST_USE;
/* Opens the whole file and verifies every byte. store_fd: where the store goes, -1 nowhere. ret_files: the key files, where not NULL.
 * ERR_INVALID: it is damaged, cut, or no backup; ERR_DENIED: it is sealed under something else. */
enum err backup_read(const char *path, const struct backup_secret *secret, int store_fd, struct backup_head *ret, struct backup_key_files *ret_files,
                     struct error *reterr) MUST_USE;
/* What "key keys <id>" says of a keyring. */
void backup_key_id(const struct keyring *keys, char ret[17]);

#endif
