/* Who the client is when a proxy stands in front of us: the PROXY protocol's header at the beginning of a connection, and the fields
 * X-Forwarded-For and Forwarded of a request. Pure: bytes in, result out. Whose word counts is the caller's: see front_trusts(). */
#ifndef PULLGATE_FRONT_H
#define PULLGATE_FRONT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pullgate/head.h"
#include "pullgate/license.h"
#include "pullgate/str.h"

/* Addresses here are 16 bytes, IPv4 mapped into IPv6; all zero is a peer without one (a unix socket). */

#define FRONT_TRUST_MAX   16   /* networks in a struct front_trust: as many as a list of the configuration holds */
#define FRONT_HEADER_MAX  4096 /* bytes of a PROXY header; the addresses take at most 232, the rest is for TLVs */
#define FRONT_ENTRIES_MAX 32   /* entries of X-Forwarded-For or Forwarded that are looked at, from the right */

struct front_trust {
    struct cidr networks[FRONT_TRUST_MAX];
    size_t n;
    bool unix_sockets;
};
/* network: "10.0.0.0/8", "2001:db8::1", or "unix": whoever may open our unix sockets. False, and t as it was, when it is none of
 * these or t is full. */
bool front_trust_add(struct front_trust *t, struct str network);
bool front_trusts(const struct front_trust *t, const uint8_t addr[16]);

/* ---- the PROXY protocol, version 1 and 2 ---- */

enum front_header {
    FRONT_MALFORMED, /* it begins like one and is none */
    FRONT_NONE,      /* the first bytes are no PROXY header */
    FRONT_MORE,      /* all of these bytes belong to a header, and more do */
    FRONT_WHOLE,
};
/* bytes: from the beginning of a connection. FRONT_WHOLE: *ret_n bytes are the header, what follows is the client's;
 * *ret_has_client is false where the header names no address (LOCAL, UNKNOWN, UNSPEC, unix sockets, 0.0.0.0): then the peer's own
 * stands. Refused among others: versions and commands but 1, 2, LOCAL and PROXY, datagrams (this is a stream), a length that does
 * not hold its addresses or is above FRONT_HEADER_MAX, TLVs that do not fill it exactly. What TLVs say is not looked at. */
enum front_header front_header_parse(struct str bytes, size_t *ret_n, bool *ret_has_client, uint8_t ret_client[16]);

/* ---- fields of a request ---- */

/* The client as the trusted proxy that sent this request names it: from the right, over all fields of that name, the first address
 * that t does not trust. What stands left of it the client may have written. False when there is none, or anything that is no
 * address comes before it, or FRONT_ENTRIES_MAX: then the peer's own address stands. */
bool front_forwarded_for(const struct head *h, const struct front_trust *t, uint8_t ret_client[16]); /* X-Forwarded-For */
bool front_forwarded(const struct head *h, const struct front_trust *t, uint8_t ret_client[16]);     /* Forwarded, RFC 7239 */

#endif
