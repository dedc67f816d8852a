/* A license's state, and the compiled entitlement of a customer: everything its licenses allow, as the proxies hold it.
 * Pure: the entitlement is parsed from the JSON that the projector writes (docs/REDIS.md) and never changed after. */
#ifndef PULLGATE_LICENSE_H
#define PULLGATE_LICENSE_H

#include <stdbool.h>
#include <stdint.h>

#include "pullgate/err.h"
#include "pullgate/oci.h"
#include "pullgate/semver.h"
#include "pullgate/str.h"

struct jv;

enum license_status { /* stored; zero is none, which grants nothing */
    LICENSE_STATUS_NONE,
    LICENSE_INACTIVE,
    LICENSE_ACTIVE,
    LICENSE_SUSPENDED,
    LICENSE_REVOKED,
};
enum license_effective { /* derived from the clock, never stored; DESIGN 4.1, in order of precedence */
    LICENSE_EFF_NONE,
    LICENSE_EFF_REVOKED,
    LICENSE_EFF_SUSPENDED,
    LICENSE_EFF_INACTIVE,
    LICENSE_EFF_SCHEDULED,
    LICENSE_EFF_EXPIRED,
    LICENSE_EFF_GRACE,
    LICENSE_EFF_EXPIRING,
    LICENSE_EFF_ACTIVE,
};
enum license_on_expiry { LICENSE_ON_EXPIRY_BLOCK, LICENSE_ON_EXPIRY_KEEP_RELEASED };
#define LICENSE_EXPIRING_DAYS 30 /* `expiring` begins this many days before expires_at */

struct license_terms {
    enum license_status status;
    int64_t starts_at_s;  /* 0: from ever */
    int64_t expires_at_s; /* 0: never. Exclusive: in force while now < expires_at */
    int64_t grace_days;   /* >= 0 */
    int64_t payment_failed_at_s; /* a payment is overdue since then: in its grace until it is paid or suspended; 0: none */
};
enum license_effective license_effective(const struct license_terms *t, int64_t now_s);
bool license_in_force(enum license_effective e); /* active, expiring or grace */
/* The next moment after now at which license_effective() may change; INT64_MAX when never. */
int64_t license_next_change(const struct license_terms *t, int64_t now_s);
const char *license_status_text(enum license_status s);
bool license_status_parse(struct str s, enum license_status *ret);
const char *license_effective_text(enum license_effective e);

enum selector_kind { /* zero matches nothing */
    SELECTOR_NONE,
    SELECTOR_EXACT,
    SELECTOR_RANGE,
    SELECTOR_GLOB,
    SELECTOR_CHANNEL,
    SELECTOR_DIGEST,
    SELECTOR_ALL,
};
bool selector_kind_parse(struct str s, enum selector_kind *ret);
const char *selector_kind_text(enum selector_kind k);
/* Is this value well formed for that selector? The admin API's check; names the field "value". */
enum err selector_check(enum selector_kind k, struct str value, struct error *reterr) MUST_USE;

enum grant_on_move { GRANT_FOLLOW, GRANT_PIN };

struct grant_pin { /* the digest a tag first resolved to since the grant */
    struct str repository;
    struct str tag;
    struct digest digest;
};

struct grant {
    struct str id;
    enum selector_kind selector;
    struct str value;
    struct semver_range *range; /* SELECTOR_RANGE */
    struct digest digest;       /* SELECTOR_DIGEST */
    bool include_prerelease;
    int64_t not_before_s, not_after_s; /* own window; 0 none; not_after exclusive */
    int64_t granted_at_s;
    enum grant_on_move on_move;
    struct str *repositories; /* subset by public name; none = all of the application's */
    size_t n_repositories;
    struct grant_pin *pins;
    size_t n_pins;
    struct str *excluded; /* versions taken out of what the selector matches; not of a grant by digest */
    size_t n_excluded;
};

struct cidr {
    uint8_t addr[16]; /* IPv4 as v4-mapped */
    uint8_t bits;     /* 0..128 */
};
enum err cidr_parse(struct str s, struct cidr *ret, struct error *reterr) MUST_USE; /* "10.0.0.0/8", "2001:db8::/32", a bare address */
bool cidr_contains(const struct cidr *c, const uint8_t addr[16]);
bool addr_parse(struct str s, uint8_t ret[16]);
void addr_print(const uint8_t addr[16], struct strbuf *ret); /* appends "10.0.0.1" or "2001:db8::1" */

struct license {
    struct str id, name;
    struct str application_id, application_slug;
    struct license_terms terms;
    int64_t updates_until_s; /* 0: none */
    enum license_on_expiry on_expiry;
    struct str status_reason; /* of a suspension or revocation, may be empty */
    struct cidr *allowed_cidrs;
    size_t n_allowed_cidrs;
    struct str *repositories; /* public names of the application's repositories */
    size_t n_repositories;
    struct str upstream_credential_id; /* replaces the upstream's own for this license's pulls; "" none */
    bool quota_exceeded;               /* set by the admin's accounting when a limit with action deny is spent */
    int64_t quota_until_s;             /* when what the accounting found is over: a further window begins; 0: only with a further fact */
    bool instances_full;               /* as many installations as it allows pull: these, and no other */
    uint64_t *instances;               /* license_instance() of each, sorted */
    size_t n_instances;
    struct grant *grants;
    size_t n_grants;
};
/* May anything be pulled under it by its status: in force, or expired with what was released before kept. */
bool license_usable(const struct license *l, int64_t now_s);

/* One installation that pulls: a credential at an address (IPv6: its /64). Never 0, which is none that is known. */
uint64_t license_instance(struct str credential_id, const uint8_t addr[16]);
#define LICENSE_INSTANCE_TEXT_MAX 17
const char *license_instance_text(uint64_t instance, char ret[LICENSE_INSTANCE_TEXT_MAX]); /* 16 hex digits */

struct entitlement {
    unsigned refs;
    struct str customer_id, customer_slug, vendor_id;
    struct str renew_url;       /* vendor's, may be empty */
    struct str support_contact; /* vendor's, may be empty */
    bool customer_disabled;
    int64_t requests_per_second; /* this customer's own bound; 0: limits.requests_per_customer */
    bool counts_instances; /* some license has all its installations' places taken */
    struct license *licenses;
    size_t n_licenses;
};

/* Parse the projected JSON. Anything missing, unknown or misspelt makes the whole entitlement invalid (ERR_INVALID):
 * the caller treats that as "cannot know". The result has one reference. */
enum err entitlement_parse(const struct jv *doc, struct entitlement **ret, struct error *reterr) MUST_USE;
struct entitlement *entitlement_ref(struct entitlement *e);
void entitlement_unref(struct entitlement **e);

#endif
