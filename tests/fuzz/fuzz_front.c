/* What a proxy in front says of its client. 'p': the first bytes of a connection as a PROXY header, against a second reading with scanf,
 * inet_pton and fixed offsets; a header is whole only at its end, and what follows it changes nothing. 'x', 'f': X-Forwarded-For and
 * Forwarded; what is found is never one of the trusted networks, and nothing that a client writes on the left changes it. */
#include "fuzz.h"

#include <arpa/inet.h>

#include "pullgate/front.h"

static const uint8_t V4[12] = {[10] = 0xff, [11] = 0xff};

static bool second_v1(struct str s, size_t *ret_n, bool *ret_has, uint8_t ret[16])
{
    char line[128], family[8], from[64], to[64], end;
    unsigned a, b;
    int used = 0;

    snprintf(line, sizeof line, "%.*s", STR(s));
    char *eol = strstr(line, "\r\n");
    const char *nl = memmem(s.p, s.n < 107 ? s.n : 107, "\r\n", 2);
    if (nl && nl - s.p >= 13 && !memcmp(s.p, "PROXY UNKNOWN", 13) && (nl == s.p + 13 || s.p[13] == ' ')) { /* and anything after it */
        *ret_n = (size_t)(nl - s.p) + 2;
        return true;
    }
    if (!eol || !nl || eol - line != nl - s.p) /* a NUL on the way */
        return false;
    *ret_n = (size_t)(eol - line) + 2;
    *eol = '\0';
    *ret_has = false;
    if (sscanf(line, "PROXY %7s %63s %63s %5u %5u%n%c", family, from, to, &a, &b, &used, &end) != 5 || line[used] || a > 65535 || b > 65535)
        return false;
    bool v6 = !strcmp(family, "TCP6");
    uint8_t other[16];
    memcpy(ret, V4, 12);
    if ((!v6 && strcmp(family, "TCP4")) || inet_pton(v6 ? AF_INET6 : AF_INET, from, v6 ? ret : ret + 12) != 1 ||
        inet_pton(v6 ? AF_INET6 : AF_INET, to, v6 ? other : other + 12) != 1)
        return false;
    *ret_has = true;
    return true;
}

static bool nobody(const uint8_t a[16])
{
    static const uint8_t zero[16];
    return !memcmp(a, zero, 16) || (!memcmp(a, V4, 12) && !memcmp(a + 12, zero, 4));
}

static void check_header(struct str s)
{
    size_t n = 0, again_n = 0, want_n = 0;
    bool has = false, again_has = false, want_has = false;
    uint8_t client[16] = {0}, again[16] = {0}, want[16] = {0};
    enum front_header r = front_header_parse(s, &n, &has, client);

    for (size_t k = 0; k < (s.n < 600 ? s.n : 600); k++) {
        enum front_header part = front_header_parse((struct str){s.p, k}, &again_n, &again_has, again);
        if (r == FRONT_WHOLE && k < n)
            FUZZ_CHECK(part == FRONT_MORE, "whole before its end, or refused on the way");
        if (r == FRONT_WHOLE && k >= n)
            FUZZ_CHECK(part == FRONT_WHOLE && again_n == n && again_has == has && (!has || !memcmp(again, client, 16)), "what follows a header changes it");
        if (part == FRONT_MALFORMED || part == FRONT_NONE)
            FUZZ_CHECK(r == part, "refused, and with more bytes it is not");
    }
    if (r == FRONT_MORE)
        FUZZ_CHECK(s.n < FRONT_HEADER_MAX, "more than there may be");
    if (r != FRONT_WHOLE)
        return;
    FUZZ_CHECK(n <= s.n && n <= FRONT_HEADER_MAX, "a header beyond its bytes");
    const uint8_t *p = (const uint8_t *)s.p;
    if (p[0] == 'P') {
        FUZZ_CHECK(second_v1(s, &want_n, &want_has, want), "version 1: the second reading refuses");
    } else {
        FUZZ_CHECK(memcmp(p, "\r\n\r\n\0\r\nQUIT\n", 12) == 0 && p[12] >> 4 == 2 && (p[12] & 15) <= 1, "version 2: not its beginning");
        want_n = 16 + (size_t)(p[14] * 256 + p[15]);
        want_has = (p[12] & 15) == 1 && (p[13] == 0x11 || p[13] == 0x21);
        if (p[13] == 0x11) {
            memcpy(want, V4, 12);
            memcpy(want + 12, p + 16, 4);
        } else if (p[13] == 0x21) {
            memcpy(want, p + 16, 16);
        }
    }
    want_has = want_has && !nobody(want);
    FUZZ_CHECK(n == want_n && has == want_has && (!has || !memcmp(client, want, 16)), "the two readings differ");
}

typedef bool forwarded(const struct head *h, const struct front_trust *t, uint8_t ret_client[16]);

static bool ask(forwarded *fn, const char *name, struct str value, const struct front_trust *t, uint8_t ret[16])
{
    static struct head h;
    h.n_fields = 1;
    h.fields[0] = (struct head_field){str_c(name), value};
    return fn(&h, t, ret);
}

static void check_fields(forwarded *fn, const char *name, const char *evil, struct str value)
{
    struct front_trust t = {0};
    uint8_t client[16], again[16];
    struct strbuf longer = {0};

    FUZZ_CHECK(front_trust_add(&t, S("10.0.0.0/8")) && front_trust_add(&t, S("2001:db8::/32")), "trust");
    bool found = ask(fn, name, value, &t, client);
    if (found) {
        FUZZ_CHECK(!front_trusts(&t, client) && !nobody(client), "a trusted proxy is taken for the client");
        sb_addf(&longer, "%s, ", evil);
        sb_add(&longer, value);
        FUZZ_CHECK(ask(fn, name, sb_str(&longer), &t, again) && !memcmp(client, again, 16), "what a client writes on the left counts");
        struct front_trust more = t;
        char text[INET6_ADDRSTRLEN];
        inet_ntop(AF_INET6, client, text, sizeof text);
        FUZZ_CHECK(front_trust_add(&more, str_c(text)), "trust");
        if (ask(fn, name, value, &more, again)) /* one more that is trusted: the next one on the left, never this one */
            FUZZ_CHECK(memcmp(client, again, 16) != 0, "a trusted proxy is taken for the client");
    }
    sb_free(&longer);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_in in = {data, size};
    uint8_t kind = fuzz_byte(&in);
    struct str s = fuzz_rest(&in);
    char *copy = fuzz_exact(s);

    s.p = copy;
    if (kind == 'p')
        check_header(s);
    else if (kind == 'x')
        check_fields(front_forwarded_for, "X-Forwarded-For", "203.0.113.66", s);
    else if (kind == 'f')
        check_fields(front_forwarded, "Forwarded", "for=203.0.113.66", s);
    mem_free(copy);
    return 0;
}
