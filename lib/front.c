/* PROXY protocol headers and forwarding fields, byte by byte. Nothing here allocates or keeps anything. Formats: the PROXY protocol
 * specification 2.1 and 2.2; RFC 7239 4 and 6. */
#include "pullgate/front.h"

#include <string.h>

#include "pullgate/config.h"

_Static_assert(FRONT_TRUST_MAX == CONFIG_MAX_LISTEN, "every network of the configuration has a place");
#define V1_BYTES_MAX 107 /* specification 2.1: the longest line with its CRLF */
#define V2_FIXED     16  /* signature, version and command, family and transport, length */
#define V2_SIG       "\r\n\r\n\0\r\nQUIT\n"
#define V2_SIG_BYTES 12
#define PORT_DIGITS  5

static const uint8_t v4_prefix[12] = {[10] = 0xff, [11] = 0xff};

static bool is_nobody(const uint8_t addr[16]) /* :: or 0.0.0.0 */
{
    static const uint8_t zero[16];

    return !memcmp(addr, zero, 16) || (!memcmp(addr, v4_prefix, 12) && !memcmp(addr + 12, zero, 4));
}

/* ---- trust ------------------------------------------------------------------------------------------------------------------ */

bool front_trust_add(struct front_trust *t, struct str network)
{
    if (str_eq_c(network, "unix")) {
        t->unix_sockets = true;
        return true;
    }
    if (t->n == FRONT_TRUST_MAX || cidr_parse(network, &t->networks[t->n], NULL) != ERR_OK)
        return false;
    t->n++;
    return true;
}

bool front_trusts(const struct front_trust *t, const uint8_t addr[16])
{
    static const uint8_t zero[16];

    if (!memcmp(addr, zero, 16))
        return t->unix_sockets;
    for (size_t i = 0; i < t->n; i++)
        if (cidr_contains(&t->networks[i], addr))
            return true;
    return false;
}

/* ---- PROXY protocol --------------------------------------------------------------------------------------------------------- */

static bool port_is_good(struct str s)
{
    uint64_t n;

    return s.n > 0 && s.n <= PORT_DIGITS && (s.n == 1 || s.p[0] != '0') && str_to_u64(s, &n) && n <= 65535;
}

static bool v1_address(struct str s, bool v6, uint8_t ret[16])
{
    return (str_index(s, ':') >= 0) == v6 && addr_parse(s, ret);
}

/* line: between "PROXY " and its CRLF. */
static enum front_header v1_parse(struct str line, bool *ret_has_client, uint8_t ret_client[16])
{
    uint8_t client[16], own[16];
    struct str family, from, to, from_port, to_port, left;
    bool v6;

    if (str_eq_c(line, "UNKNOWN") || str_starts(line, S("UNKNOWN "))) { /* what follows is to be ignored */
        *ret_has_client = false;
        return FRONT_WHOLE;
    }
    if (!str_cut(line, ' ', &family, &left) || !str_cut(left, ' ', &from, &left) || !str_cut(left, ' ', &to, &left) ||
        !str_cut(left, ' ', &from_port, &to_port))
        return FRONT_MALFORMED;
    v6 = str_eq_c(family, "TCP6");
    if ((!v6 && !str_eq_c(family, "TCP4")) || !v1_address(from, v6, client) || !v1_address(to, v6, own) || !port_is_good(from_port) ||
        !port_is_good(to_port))
        return FRONT_MALFORMED;
    *ret_has_client = !is_nobody(client);
    memcpy(ret_client, client, 16);
    return FRONT_WHOLE;
}

static enum front_header v1_header(struct str b, size_t *ret_n, bool *ret_has_client, uint8_t ret_client[16])
{
    struct str seen = str_sub(b, 0, V1_BYTES_MAX);
    ptrdiff_t cr = str_index(seen, '\r'), nl = str_index(seen, '\n');

    if (nl < 0)
        return seen.n == V1_BYTES_MAX || (cr >= 0 && (size_t)cr + 1 < seen.n) ? FRONT_MALFORMED : FRONT_MORE;
    if (cr < 0 || cr + 1 != nl)
        return FRONT_MALFORMED;
    enum front_header r = v1_parse(str_sub(b, 6, (size_t)cr - 6), ret_has_client, ret_client);
    if (r == FRONT_WHOLE)
        *ret_n = (size_t)nl + 1;
    return r;
}

static bool tlvs_are_good(const uint8_t *p, size_t n)
{
    while (n) {
        if (n < 3)
            return false;
        size_t value = (size_t)p[1] << 8 | p[2];
        if (value > n - 3)
            return false;
        p += 3 + value;
        n -= 3 + value;
    }
    return true;
}

static enum front_header v2_header(struct str b, size_t *ret_n, bool *ret_has_client, uint8_t ret_client[16])
{
    const uint8_t *p = (const uint8_t *)b.p;
    size_t length, addresses;
    uint8_t client[16] = {0};

    if (b.n > 12 && p[12] != 0x20 && p[12] != 0x21) /* version 2; LOCAL, PROXY */
        return FRONT_MALFORMED;
    if (b.n > 13 && p[13] != 0x00 && p[13] != 0x11 && p[13] != 0x21 && p[13] != 0x31) /* unspecified, or a stream of IPv4, IPv6, unix */
        return FRONT_MALFORMED;
    if (b.n > 14 && p[14] > FRONT_HEADER_MAX >> 8)
        return FRONT_MALFORMED;
    if (b.n < V2_FIXED)
        return FRONT_MORE;
    length = (size_t)p[14] << 8 | p[15];
    addresses = p[13] == 0x11 ? 12 : p[13] == 0x21 ? 36 : p[13] == 0x31 ? 216 : 0;
    if (length < addresses || length > FRONT_HEADER_MAX - V2_FIXED)
        return FRONT_MALFORMED;
    if (b.n < V2_FIXED + length)
        return FRONT_MORE;
    /* Where nothing is specified, the rest of the header is to be skipped, not read. */
    if (p[13] != 0x00 && !tlvs_are_good(p + V2_FIXED + addresses, length - addresses))
        return FRONT_MALFORMED;
    if (p[12] == 0x21 && p[13] == 0x11) {
        memcpy(client, v4_prefix, 12);
        memcpy(client + 12, p + V2_FIXED, 4);
    } else if (p[12] == 0x21 && p[13] == 0x21) {
        memcpy(client, p + V2_FIXED, 16);
    }
    *ret_has_client = !is_nobody(client);
    memcpy(ret_client, client, 16);
    *ret_n = V2_FIXED + length;
    return FRONT_WHOLE;
}

static bool begins_like(struct str b, struct str signature) /* as far as it has come */
{
    return !memcmp(b.p, signature.p, b.n < signature.n ? b.n : signature.n);
}

enum front_header front_header_parse(struct str b, size_t *ret_n, bool *ret_has_client, uint8_t ret_client[16])
{
    const struct str v1 = S("PROXY "), v2 = {V2_SIG, V2_SIG_BYTES};

    if (b.n == 0)
        return FRONT_MORE;
    if (begins_like(b, v2))
        return b.n < v2.n ? FRONT_MORE : v2_header(b, ret_n, ret_has_client, ret_client);
    if (begins_like(b, v1))
        return b.n < v1.n ? FRONT_MORE : v1_header(b, ret_n, ret_has_client, ret_client);
    return FRONT_NONE;
}

/* ---- fields ----------------------------------------------------------------------------------------------------------------- */

/* address, address:port, [ipv6], [ipv6]:port. bare_v6: also without the brackets. */
static bool node_address(struct str s, bool bare_v6, uint8_t ret[16])
{
    ptrdiff_t colon = str_index(s, ':');
    bool v6 = false;

    if (s.n && s.p[0] == '[') {
        ptrdiff_t close = str_index(s, ']');
        if (close < 0)
            return false;
        struct str after = str_skip(s, (size_t)close + 1);
        if (after.n && (after.p[0] != ':' || !port_is_good(str_skip(after, 1))))
            return false;
        s = str_sub(s, 1, (size_t)close - 1);
        v6 = true;
    } else if (colon >= 0 && colon == str_rindex(s, ':')) {
        if (!port_is_good(str_skip(s, (size_t)colon + 1)))
            return false;
        s = str_sub(s, 0, (size_t)colon);
    } else if (colon >= 0) {
        if (!bare_v6)
            return false;
        v6 = true;
    }
    return (str_index(s, ':') >= 0) == v6 && addr_parse(s, ret) && !is_nobody(ret);
}

/* One entry more, from the right. */
enum walk { WALK_ON, WALK_FOUND, WALK_STOP };

static enum walk walk_entry(const struct front_trust *t, unsigned *n_seen, struct str node, bool bare_v6, uint8_t ret_client[16])
{
    uint8_t client[16];

    if ((*n_seen)++ == FRONT_ENTRIES_MAX || !node_address(node, bare_v6, client))
        return WALK_STOP;
    if (front_trusts(t, client))
        return WALK_ON;
    memcpy(ret_client, client, 16);
    return WALK_FOUND;
}

bool front_forwarded_for(const struct head *h, const struct front_trust *t, uint8_t ret_client[16])
{
    unsigned n_seen = 0;

    for (unsigned i = h->n_fields; i-- > 0;) {
        if (!str_eq_nocase(h->fields[i].name, S("X-Forwarded-For")))
            continue;
        struct str rest = h->fields[i].value;
        for (bool more = true; more;) {
            ptrdiff_t comma = str_rindex(rest, ',');
            more = comma >= 0;
            struct str entry = str_trim(more ? str_skip(rest, (size_t)comma + 1) : rest);
            rest = str_sub(rest, 0, more ? (size_t)comma : 0);
            enum walk w = walk_entry(t, &n_seen, entry, true, ret_client);
            if (w != WALK_ON)
                return w == WALK_FOUND;
        }
    }
    return false;
}

static bool is_token(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || (c != '\0' && strchr("!#$%&'*+-.^_`|~", c));
}

static void skip_blanks(struct str *s)
{
    while (s->n && (s->p[0] == ' ' || s->p[0] == '\t'))
        *s = str_skip(*s, 1);
}

/* A token, or a quoted string's inside. An escape in it makes the value no address; colons and brackets unquoted occur in the wild
 * but are no token: refused. */
static bool forwarded_value(struct str *s, struct str *ret)
{
    size_t n = 0;

    if (s->n && s->p[0] == '"') {
        for (n = 1; n < s->n && s->p[n] != '"'; n++)
            if (s->p[n] == '\\' && ++n == s->n)
                return false;
        if (n >= s->n)
            return false;
        *ret = str_sub(*s, 1, n - 1);
        *s = str_skip(*s, n + 1);
        return true;
    }
    while (n < s->n && is_token(s->p[n]))
        n++;
    *ret = str_sub(*s, 0, n);
    *s = str_skip(*s, n);
    return n > 0;
}

/* The nodes of one field's elements into the ring, the last FRONT_ENTRIES_MAX of them. Quotes are why this goes from the left. */
static bool forwarded_nodes(struct str s, struct str ring[FRONT_ENTRIES_MAX], size_t *ret_n)
{
    size_t n = 0;

    for (;;) { /* an element */
        struct str node = {0};
        bool has_node = false;
        for (;;) { /* name=value, ';' between them */
            struct str name, value;
            skip_blanks(&s);
            if (!s.n || s.p[0] == '"' || !forwarded_value(&s, &name) || !s.n || s.p[0] != '=')
                return false;
            s = str_skip(s, 1);
            if (!forwarded_value(&s, &value))
                return false;
            if (str_eq_nocase(name, S("for"))) {
                if (has_node)
                    return false;
                has_node = true;
                node = value;
            }
            skip_blanks(&s);
            if (!s.n || s.p[0] != ';')
                break;
            s = str_skip(s, 1);
        }
        ring[n++ % FRONT_ENTRIES_MAX] = node; /* empty when there is none: no address */
        if (!s.n)
            break;
        if (s.p[0] != ',')
            return false;
        s = str_skip(s, 1);
    }
    *ret_n = n;
    return true;
}

bool front_forwarded(const struct head *h, const struct front_trust *t, uint8_t ret_client[16])
{
    struct str ring[FRONT_ENTRIES_MAX];
    unsigned n_seen = 0;

    for (unsigned i = h->n_fields; i-- > 0;) {
        size_t n;
        if (!str_eq_nocase(h->fields[i].name, S("Forwarded")))
            continue;
        if (!forwarded_nodes(h->fields[i].value, ring, &n))
            return false;
        while (n-- > 0) { /* at FRONT_ENTRIES_MAX walk_entry() stops, before an overwritten place is read */
            enum walk w = walk_entry(t, &n_seen, ring[n % FRONT_ENTRIES_MAX], false, ret_client);
            if (w != WALK_ON)
                return w == WALK_FOUND;
        }
    }
    return false;
}
