/* The secrets Pullgate hands out, license keys, and ids. Their text forms carry a checksum, so that garbage is refused before
 * anything is looked up and secret scanners can recognise a leaked one. Knows nothing of where they are stored. */
#include "pullgate/credential.h"

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "pullgate/clock.h"
#include "pullgate/mem.h"

#define SECRET_CHARS 43 /* log2(62) * 43 = 256.03 bits */
#define CRC_CHARS 6     /* 62^6 > 2^32 */
#define KEY_CHARS 24    /* of a license key, without dashes */
#define KEY_RANDOM 20   /* 100 bits */
#define KEY_TEXT_MAX 64 /* longest spelling that is looked at */
#define EXTERNAL_MIN 8   /* characters of a license key that was imported */
#define EXTERNAL_MAX 128

static const char BASE62[] = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
static const char CROCKFORD[] = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";
static const char CROCKFORD_LOWER[] = "0123456789abcdefghjkmnpqrstvwxyz";

/* CRC-32 (IEEE 802.3, reflected), bit by bit: 50 bytes a sign-in need no table. */
static uint32_t crc32_of(const char *p, size_t n)
{
    uint32_t c = 0xffffffffu;
    for (size_t i = 0; i < n; i++) {
        c ^= (uint8_t)p[i];
        for (int bit = 0; bit < 8; bit++)
            c = c >> 1 ^ (0xedb88320u & (0u - (c & 1)));
    }
    return ~c;
}

static void crc_text(uint32_t crc, char out[CRC_CHARS])
{
    for (int i = CRC_CHARS - 1; i >= 0; i--) {
        out[i] = BASE62[crc % 62];
        crc /= 62;
    }
}

void credential_new(const char *prefix, char ret[CREDENTIAL_TEXT_MAX])
{
    size_t at = strlen(prefix);
    AN(at + SECRET_CHARS + CRC_CHARS < CREDENTIAL_TEXT_MAX); /* GCOVR_EXCL_BR_LINE: the other way aborts */
    memcpy(ret, prefix, at);
    uint8_t r[32];
    for (size_t got = 0, i = 0; got < SECRET_CHARS; i++) {
        if (i % sizeof r == 0)
            seal_random(r, sizeof r);
        if (r[i % sizeof r] < 248) /* 4 * 62: every character equally likely */
            ret[at + got++] = BASE62[r[i % sizeof r] % 62];
    }
    mem_cleanse(r, sizeof r);
    crc_text(crc32_of(ret, at + SECRET_CHARS), ret + at + SECRET_CHARS);
    ret[at + SECRET_CHARS + CRC_CHARS] = 0;
}

bool credential_well_formed(const char *prefix, struct str secret)
{
    size_t at = strlen(prefix);
    if (secret.n != at + SECRET_CHARS + CRC_CHARS || !str_starts(secret, str_c(prefix)))
        return false;
    for (size_t i = at; i < secret.n; i++) {
        char c = secret.p[i];
        if (!((c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z')))
            return false;
    }
    char crc[CRC_CHARS];
    crc_text(crc32_of(secret.p, at + SECRET_CHARS), crc);
    return str_eq_secret(crc, secret.p + at + SECRET_CHARS, CRC_CHARS);
}

/* 24 characters into "XXXXXX-XXXXXX-XXXXXX-XXXXXX". */
static void key_spell(const char key[KEY_CHARS], char ret[CREDENTIAL_TEXT_MAX])
{
    char *p = ret;
    for (size_t i = 0; i < KEY_CHARS; i++) {
        if (i && i % 6 == 0)
            *p++ = '-';
        *p++ = key[i];
    }
    *p = 0;
}

static void key_checksum(const char key[KEY_CHARS], char ret[KEY_CHARS - KEY_RANDOM])
{
    uint32_t crc = crc32_of(key, KEY_RANDOM);
    for (int i = 0; i < KEY_CHARS - KEY_RANDOM; i++)
        ret[i] = CROCKFORD[crc >> (5 * i) & 31];
}

void license_key_new(char ret[CREDENTIAL_TEXT_MAX])
{
    char key[KEY_CHARS];
    uint8_t r[KEY_RANDOM];
    seal_random(r, sizeof r);
    for (size_t i = 0; i < KEY_RANDOM; i++)
        key[i] = CROCKFORD[r[i] & 31];
    key_checksum(key, key + KEY_RANDOM);
    key_spell(key, ret);
    mem_cleanse(r, sizeof r);
    mem_cleanse(key, sizeof key);
}

/* Crockford's reading: O is 0, I and L are 1; '\0' for what is no digit at all. */
static char crockford_of(char c)
{
    if (c >= 'a' && c <= 'z')
        c = (char)(c - 'a' + 'A');
    if (c == 'O')
        return '0';
    if (c == 'I' || c == 'L')
        return '1';
    return c != '\0' && c != 'U' && strchr(CROCKFORD, c) ? c : 0;
}

bool license_key_normalise(struct str in, char ret[CREDENTIAL_TEXT_MAX])
{
    char key[KEY_CHARS];
    size_t n = 0;
    if (in.n < KEY_CHARS || in.n > KEY_TEXT_MAX)
        return false;
    for (size_t i = 0; i < in.n; i++) {
        char c = in.p[i];
        if (c == ' ' || c == '\t' || c == '-')
            continue;
        c = crockford_of(c);
        if (!c || n == KEY_CHARS)
            return false;
        key[n++] = c;
    }
    if (n != KEY_CHARS)
        return false;
    char sum[KEY_CHARS - KEY_RANDOM];
    key_checksum(key, sum);
    if (!str_eq_secret(sum, key + KEY_RANDOM, sizeof sum))
        return false;
    key_spell(key, ret);
    return true;
}

void credential_hash(const struct keyring *k, struct str secret, char ret[CREDENTIAL_HASH_MAX])
{
    uint8_t mac[SEAL_MAC_LEN];
    static const char digits[] = "0123456789abcdef";
    keyring_hmac(k, KEYRING_PEPPER, secret, mac);
    for (size_t i = 0; i < SEAL_MAC_LEN; i++) {
        ret[2 * i] = digits[mac[i] >> 4];
        ret[2 * i + 1] = digits[mac[i] & 15];
    }
    ret[2 * SEAL_MAC_LEN] = 0;
}

/* A license key that another system made: 8 to 128 printable characters. What begins like a secret of ours is either well formed or
 * garbage, and the admin API's tokens are no password here. */
static bool key_is_external(struct str s)
{
    if (s.n < EXTERNAL_MIN || s.n > EXTERNAL_MAX || s.p[0] == ' ' || s.p[s.n - 1] == ' ')
        return false;
    if (s.p[0] == 'p' && s.p[1] == 'g' && s.p[3] == '_')
        return false;
    for (size_t i = 0; i < s.n; i++)
        if ((unsigned char)s.p[i] < 0x20 || (unsigned char)s.p[i] > 0x7e)
            return false;
    return true;
}

bool credential_hash_presented(const struct keyring *k, struct str password, char ret[CREDENTIAL_HASH_MAX])
{
    char key[CREDENTIAL_TEXT_MAX];
    if (license_key_normalise(password, key)) {
        credential_hash(k, str_c(key), ret);
        mem_cleanse(key, sizeof key);
        return true;
    }
    if (!credential_well_formed("pgc_", password) && !key_is_external(password))
        return false;
    credential_hash(k, password, ret);
    return true;
}

/* ---- ids: ULIDs --------------------------------------------------------------------------------------------------- */

/* 48 bits of milliseconds and 80 of randomness as 26 characters of 5 bits, most significant first. */
static void ulid_text(uint64_t ms, uint16_t high, uint64_t low, const char *alphabet, char ret[27])
{
    unsigned __int128 v = (unsigned __int128)(ms & 0xffffffffffffULL) << 80 | (unsigned __int128)high << 64 | low;
    for (int i = 25; i >= 0; i--) {
        ret[i] = alphabet[(unsigned)(v & 31)];
        v >>= 5;
    }
    ret[26] = 0;
}

/* Ids of one process ascend, also within a millisecond and when the clock steps back: lists are ordered by them. */
void id_new(const char *prefix, char ret[ID_MAX])
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static uint64_t last_ms, low;
    static uint16_t high;

    size_t n = strlen(prefix);
    AN(n > 1 && n + 26 < ID_MAX && prefix[n - 1] == '_'); /* GCOVR_EXCL_BR_LINE: the other way aborts */
    memcpy(ret, prefix, n);

    uint64_t ms = (uint64_t)clock_now_ms();
    AN(pthread_mutex_lock(&lock) == 0); /* GCOVR_EXCL_BR_LINE: the other way aborts */
    if (ms > last_ms) {
        last_ms = ms;
        seal_random(&low, sizeof low);
        seal_random(&high, sizeof high);
        high &= 0x7fff; /* room to count up within the millisecond */
    } else {
        uint32_t step;
        seal_random(&step, sizeof step);
        uint64_t was = low;
        low += (uint64_t)step + 1;
        high = (uint16_t)(high + (low < was));
    }
    ulid_text(last_ms, high, low, CROCKFORD_LOWER, ret + n);
    AN(pthread_mutex_unlock(&lock) == 0); /* GCOVR_EXCL_BR_LINE: the other way aborts */
}

void request_id_new(char ret[ID_MAX])
{
    /* One system call serves 51 requests: this runs on every one. */
    static _Thread_local uint8_t pool[510];
    static _Thread_local size_t used = sizeof pool;
    if (used + 10 > sizeof pool) {
        seal_random(pool, sizeof pool);
        used = 0;
    }
    uint16_t high;
    uint64_t low;
    memcpy(&high, pool + used, sizeof high);
    memcpy(&low, pool + used + 2, sizeof low);
    used += 10;
    ulid_text((uint64_t)clock_now_ms(), high, low, CROCKFORD, ret);
}
