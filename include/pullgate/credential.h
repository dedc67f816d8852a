/* The secrets Pullgate hands out, and ids. Pure but for randomness. Secrets: prefix, 43 base62 characters (256 bits), 6 of CRC.
 * License keys: 4 x 6 characters of Crockford base32 (no I L O U), the last four of them a checksum. */
#ifndef PULLGATE_CREDENTIAL_H
#define PULLGATE_CREDENTIAL_H

#include <stdbool.h>

#include "pullgate/seal.h"
#include "pullgate/str.h"

#define CREDENTIAL_TEXT_MAX 64
#define CREDENTIAL_HASH_MAX 65 /* 64 hex digits + NUL */
#define CREDENTIAL_SHOWN_PREFIX 10 /* characters of a secret or key that may be shown later */

void credential_new(const char *prefix /* "pgc_" "pga_" */, char ret[CREDENTIAL_TEXT_MAX]);
bool credential_well_formed(const char *prefix, struct str secret); /* length, alphabet, CRC; before any look-up */
void license_key_new(char ret[CREDENTIAL_TEXT_MAX]);
/* Upper case, no blanks, dashes in place; false when it is no license key or the checksum is wrong. */
bool license_key_normalise(struct str in, char ret[CREDENTIAL_TEXT_MAX]);
/* HMAC-SHA-256 under pepper.key as hex: what is stored and looked up. */
void credential_hash(const struct keyring *k, struct str secret, char ret[CREDENTIAL_HASH_MAX]);
/* Hash of whatever a client presented as a password: a pgc_ secret, a license key in any spelling, or an imported license key of 8 to
 * 128 printable characters as it is. False: it can be none of them, refuse at once. True says nothing about whether anybody has it. */
bool credential_hash_presented(const struct keyring *k, struct str password, char ret[CREDENTIAL_HASH_MAX]);

#define ID_MAX 32
/* "cus_" + 26 lower-case Crockford characters of a ULID: time-ordered, opaque. */
void id_new(const char *prefix, char ret[ID_MAX]);
/* The request id of an exchange: 26 characters. */
void request_id_new(char ret[ID_MAX]);

#endif
