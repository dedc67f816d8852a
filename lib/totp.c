#include "pullgate/totp.h"

#include <stdio.h>

#include "pullgate/mem.h"
#include "pullgate/seal.h"

#define WINDOW 1 /* steps that a clock may be off, either way */

void totp_code(struct str key, int64_t step, char ret[TOTP_DIGITS + 1])
{
    uint8_t counter[8], mac[SEAL_SHA1_LEN];
    for (int i = 0; i < 8; i++)
        counter[i] = (uint8_t)((uint64_t)step >> (56 - 8 * i));
    seal_hmac_sha1(key, (struct str){(const char *)counter, sizeof counter}, mac);
    unsigned at = mac[sizeof mac - 1] & 15u;
    uint32_t v = (uint32_t)(mac[at] & 0x7f) << 24 | (uint32_t)mac[at + 1] << 16 | (uint32_t)mac[at + 2] << 8 | mac[at + 3];
    snprintf(ret, TOTP_DIGITS + 1, "%06u", v % 1000000u);
    mem_cleanse(mac, sizeof mac);
}

bool totp_check(struct str key, struct str code, int64_t now_s, int64_t last_step, int64_t *ret_step)
{
    char want[TOTP_DIGITS + 1];
    bool found = false;
    if (code.n != TOTP_DIGITS || now_s < 0)
        return false;
    for (int64_t step = now_s / TOTP_PERIOD_S - WINDOW; step <= now_s / TOTP_PERIOD_S + WINDOW; step++) {
        totp_code(key, step, want);
        if (str_eq_secret(want, code.p, TOTP_DIGITS) && step > last_step && !found) {
            *ret_step = step;
            found = true;
        }
    }
    mem_cleanse(want, sizeof want);
    return found;
}

void base32_encode(struct str in, struct strbuf *ret)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    uint32_t bits = 0;
    int n = 0;
    for (size_t i = 0; i < in.n; i++) {
        bits = bits << 8 | (uint8_t)in.p[i];
        for (n += 8; n >= 5; n -= 5)
            sb_add_char(ret, digits[bits >> (n - 5) & 31]);
    }
    if (n)
        sb_add_char(ret, digits[bits << (5 - n) & 31]);
}

/* RFC 3986 2.1: everything but the unreserved. */
static void add_escaped(struct strbuf *b, struct str s)
{
    for (size_t i = 0; i < s.n; i++) {
        unsigned char c = (unsigned char)s.p[i];
        bool is_plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '.' || c == '_' || c == '~';
        if (is_plain)
            sb_add_char(b, (char)c);
        else
            sb_addf(b, "%%%02X", c);
    }
}

void totp_uri(struct str key, struct str issuer, struct str account, struct strbuf *ret)
{
    sb_addc(ret, "otpauth://totp/");
    add_escaped(ret, issuer);
    sb_add_char(ret, ':');
    add_escaped(ret, account);
    sb_addc(ret, "?secret=");
    base32_encode(key, ret);
    sb_addc(ret, "&issuer=");
    add_escaped(ret, issuer);
    sb_addf(ret, "&algorithm=SHA1&digits=%d&period=%d", TOTP_DIGITS, TOTP_PERIOD_S);
}
