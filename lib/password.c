#include "pullgate/password.h"

#include <string.h>

#include <argon2.h>

#include "pullgate/mem.h"
#include "pullgate/seal.h"

#define PASSES   2
#define LANES    1 /* no threads of its own */
#define SALT_LEN 16
#define HASH_LEN 32
#define DISTINCT_MIN 5 /* characters; "aaaaaaaaaaaa" and "121212121212" have fewer */

/* Lower case. What people reach for when they are asked for twelve characters; digits and signs at the end are looked through. */
static const char *const COMMON[] = {
    "password",         "passwordpassword", "passw0rd",        "p@ssword",        "p@ssw0rd",        "mypassword",      "yourpassword",
    "changeme",         "changemeplease",   "changemenow",     "pleasechangeme",  "letmein",         "letmeinplease",   "welcome",
    "welcomehome",      "administrator",    "adminadmin",      "adminadminadmin", "administration",  "superadmin",      "rootroot",
    "rootrootroot",     "qwerty",           "qwertyuiop",      "qwertyqwerty",    "qwertyuiopasdf",  "qwertzuiop",      "asdfghjkl",
    "asdfghjklqwer",    "1q2w3e4r5t6y",     "1q2w3e4r5t6y7u8i", "1qaz2wsx3edc",   "1qaz2wsx3edc4rfv", "q1w2e3r4t5y6",   "qazwsxedcrfv",
    "zaq12wsxcde3",     "abcdefghijkl",     "abcdefghijklmnop", "abcd1234abcd",   "abc123abc123",    "a1b2c3d4e5f6",    "0123456789",
    "012345678910",     "123456789012",     "1234567890",      "12345678910",     "123456123456",    "1234567890123456", "123123123123",
    "098765432109",     "987654321098",     "0987654321",      "iloveyou",        "iloveyouforever", "iloveyousomuch",  "trustno",
    "trustnoone",       "sunshine",         "princess",        "football",        "baseball",        "monkeymonkey",    "dragondragon",
    "mastermaster",     "michaeljordan",    "correcthorsebatterystaple", "correct horse battery staple", "whatever",     "startrek",
    "thisisapassword",  "thisismypassword", "mysecretpassword", "secretpassword", "supersecret",     "topsecret",       "opensesame",
    "internet",         "computer",         "pullgate",        "pullgatepullgate", "licensemanager", "testtesttest",    "testpassword",
    "demopassword",     "defaultpassword",  "temporarypassword", "temppassword",  "newpassword",     "guestguest",      "useruseruser",
    "spring",           "summer",           "autumn",          "winter",          "company",         "passwort",        "passwortpasswort",
    "motdepasse",       "contrasena",       "wachtwoord",      "hasloprojekt",
};

enum err password_hash(struct str password, char ret[PASSWORD_HASH_MAX], struct error *reterr)
{
    uint8_t salt[SALT_LEN];
    seal_random(salt, sizeof salt);
    int rc = argon2id_hash_encoded(PASSES, PASSWORD_MEMORY_KIB, LANES, password.p, password.n, salt, sizeof salt, HASH_LEN, ret,
                                   PASSWORD_HASH_MAX);
    if (rc != ARGON2_OK)
        return error_set(reterr, ERR_UNAVAILABLE, "password: %s", argon2_error_message(rc));
    return ERR_OK;
}

enum err password_check(const char *hash, struct str password, bool *ret_fits, struct error *reterr)
{
    static const char nobody[] = /* of bytes that were thrown away */
        "$argon2id$v=19$m=19456,t=2,p=1$c29tZXRoaW5nc2FsdGVkIQ$MDEyMzQ1Njc4OWFiY2RlZmdoaWprbG1ub3BxcnN0dXY";
    bool is_somebody = hash && *hash;
    int rc = argon2id_verify(is_somebody ? hash : nobody, password.p, password.n);
    if (rc != ARGON2_OK && rc != ARGON2_VERIFY_MISMATCH)
        return error_set(reterr, ERR_UNAVAILABLE, "password: %s", argon2_error_message(rc));
    *ret_fits = is_somebody && rc == ARGON2_OK;
    return ERR_OK;
}

static char lower(char c)
{
    return c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c;
}

static bool is_letter(char c)
{
    return (c >= 'a' && c <= 'z') || (unsigned char)c >= 0x80;
}

/* One of the list, as it is or with anything but letters after it. */
static bool is_common(const char *text, size_t n)
{
    for (size_t i = 0; i < sizeof COMMON / sizeof *COMMON; i++) {
        size_t have = strlen(COMMON[i]), at = have;
        if (n < have || memcmp(text, COMMON[i], have) != 0)
            continue;
        while (at < n && !is_letter(text[at]))
            at++;
        if (at == n)
            return true;
    }
    return false;
}

enum err password_policy(struct str password, struct str email, struct error *reterr)
{
    char text[PASSWORD_MAX * 4];
    bool seen[256] = {false};
    size_t chars = 0, distinct = 0;
    struct str name, domain;

    for (size_t i = 0; i < password.n; i++)
        chars += ((unsigned char)password.p[i] & 0xc0) != 0x80;
    if (chars < PASSWORD_MIN)
        return error_set(reterr, ERR_INVALID, "at least %d characters", PASSWORD_MIN);
    if (chars > PASSWORD_MAX || password.n > sizeof text)
        return error_set(reterr, ERR_INVALID, "at most %d characters", PASSWORD_MAX);
    for (size_t i = 0; i < password.n; i++) {
        text[i] = lower(password.p[i]);
        distinct += !seen[(unsigned char)text[i]];
        seen[(unsigned char)text[i]] = true;
    }
    struct str lowered = {text, password.n};
    bool is_weak = distinct < DISTINCT_MIN || is_common(text, password.n);
    bool is_own = str_eq_nocase(lowered, email);
    if (email.n && str_cut(email, '@', &name, &domain)) {
        is_own = is_own || str_eq_nocase(lowered, name);
        for (size_t i = 0; !is_own && i + email.n <= lowered.n; i++)
            is_own = str_eq_nocase(str_sub(lowered, i, email.n), email);
    }
    mem_cleanse(text, sizeof text);
    if (is_own)
        return error_set(reterr, ERR_INVALID, "not one's own address");
    if (is_weak)
        return error_set(reterr, ERR_INVALID, "among the first that are guessed");
    return ERR_OK;
}
