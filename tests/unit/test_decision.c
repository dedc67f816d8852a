/* The policy, case by case (DESIGN section 4): who may have what, why not, until when that holds, and what is said. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "pullgate/decision.h"
#include "pullgate/license.h"

/* A row says what matters to it; what it leaves out is zero, which is the plainest. */
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"

#define COUNT(a) (sizeof(a) / sizeof *(a))
#define DAY 86400
#define NOW 1000000000 /* 2001-09-09T01:46:40Z */
#define R "shop/api"
#define HEX64 "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

/* What a row says of a license or a grant; the zero of each member is the plainest. */
struct g {
    enum selector_kind selector;
    const char *value;
    bool pre;
    int64_t not_before, not_after, granted_at;
    enum grant_on_move on_move;
    const char *repository; /* names only this one */
    int digest;             /* SELECTOR_DIGEST: the first byte */
    const char *pin_tag;    /* pins this tag of R */
    const char *pin_repository; /* instead of R */
    int pin_digest;
    const char *excluded; /* takes this version out */
};
struct l {
    enum license_status status;
    int64_t starts, expires, grace, updates_until;
    enum license_on_expiry on_expiry;
    const char *cidr;
    const char *repository; /* R unless told */
    bool quota;
    int64_t quota_until;
    uint64_t instances[3]; /* their places are taken, when the first is not 0 */
    struct g grants[3];
};
struct c {
    const char *tag, *version, *channel; /* version NULL: the tag is one */
    int64_t released, until;
    int digest;
};
struct row {
    const char *name;
    struct l licenses[3];
    struct c candidates[3];
    enum reason want;
    bool is_digest;
    const char *addr; /* 10.1.2.3 unless told; "" unknown */
    const char *license_id;
    uint64_t instance;
    bool any_instance;
    int winner; /* index + 1 of the license that must be named, 0: not asked */
};

#define ALL {.selector = SELECTOR_ALL}
#define RANGE(v) {.selector = SELECTOR_RANGE, .value = v}
#define ACT .status = LICENSE_ACTIVE
#define V(t) {.tag = t}

static const struct row rows[] = {
    /* 4.1: status by the clock */
    {"active", {{ACT, .grants = {ALL}}}, {V("1.0.0")}, REASON_GRANTED, .winner = 1},
    {"inside its window", {{ACT, .starts = NOW, .expires = NOW + 1, .grants = {ALL}}}, {V("1.0.0")}, REASON_GRANTED},
    {"expiring", {{ACT, .expires = NOW + DAY, .grants = {ALL}}}, {V("1.0.0")}, REASON_GRANTED},
    {"scheduled", {{ACT, .starts = NOW + 1, .grants = {ALL}}}, {V("1.0.0")}, REASON_SCHEDULED},
    {"expired this second", {{ACT, .expires = NOW, .grants = {ALL}}}, {V("1.0.0")}, REASON_EXPIRED},
    {"in grace", {{ACT, .expires = NOW, .grace = 1, .grants = {ALL}}}, {V("1.0.0")}, REASON_GRANTED},
    {"last second of grace", {{ACT, .expires = NOW - DAY + 1, .grace = 1, .grants = {ALL}}}, {V("1.0.0")}, REASON_GRANTED},
    {"grace over", {{ACT, .expires = NOW - DAY, .grace = 1, .grants = {ALL}}}, {V("1.0.0")}, REASON_EXPIRED},
    {"suspended", {{LICENSE_SUSPENDED, .grants = {ALL}}}, {V("1.0.0")}, REASON_SUSPENDED},
    {"suspended and expired", {{LICENSE_SUSPENDED, .expires = 5, .grants = {ALL}}}, {V("1.0.0")}, REASON_SUSPENDED},
    {"revoked", {{LICENSE_REVOKED, .grants = {ALL}}}, {V("1.0.0")}, REASON_REVOKED},
    {"inactive", {{LICENSE_INACTIVE, .grants = {ALL}}}, {V("1.0.0")}, REASON_INACTIVE},
    {"no status at all grants nothing", {{LICENSE_STATUS_NONE, .cidr = "x", .grants = {ALL}}}, {V("1.0.0")}, REASON_UNKNOWN},
    {"an unknown status grants nothing", {{(enum license_status)99, .grants = {ALL}}}, {V("1.0.0")}, REASON_UNKNOWN},
    {"its status stands for everything in the repository", {{LICENSE_SUSPENDED, .grants = {RANGE("^1")}}}, {V("9.0.0")}, REASON_SUSPENDED},
    {"also by digest", {{ACT, .expires = NOW, .grants = {ALL}}}, {{0}}, REASON_EXPIRED, .is_digest = true},

    /* 4.2: selectors */
    {"nothing granted", {{ACT}}, {V("1.0.0")}, REASON_VERSION_NOT_GRANTED},
    {"a selector of no kind", {{ACT, .grants = {{.selector = SELECTOR_NONE, .value = "1.0.0", .granted_at = 1}}}}, {V("1.0.0")}, REASON_VERSION_NOT_GRANTED},
    {"an unknown selector", {{ACT, .grants = {{.selector = (enum selector_kind)99, .value = "1.0.0"}}}}, {V("1.0.0")}, REASON_VERSION_NOT_GRANTED},
    {"exact", {{ACT, .grants = {{.selector = SELECTOR_EXACT, .value = "1.4.2"}}}}, {V("1.4.2")}, REASON_GRANTED},
    {"exact other", {{ACT, .grants = {{.selector = SELECTOR_EXACT, .value = "1.4.2"}}}}, {V("1.4.20")}, REASON_VERSION_NOT_GRANTED},
    {"exact minds the v", {{ACT, .grants = {{.selector = SELECTOR_EXACT, .value = "1.4.2"}}}}, {V("v1.4.2")}, REASON_VERSION_NOT_GRANTED},
    {"exact is of the version, not of the tag",
     {{ACT, .grants = {{.selector = SELECTOR_EXACT, .value = "1.4.2"}}}}, {{.tag = "v1.4.2-x", .version = "1.4.2"}}, REASON_GRANTED},
    {"exact of a tag that is no version",
     {{ACT, .grants = {{.selector = SELECTOR_EXACT, .value = "latest"}}}}, {{.tag = "latest", .version = ""}}, REASON_VERSION_NOT_GRANTED},
    {"range", {{ACT, .grants = {RANGE("^1.4")}}}, {V("1.9.0")}, REASON_GRANTED},
    {"range with v", {{ACT, .grants = {RANGE("^1.4")}}}, {V("v1.9.0")}, REASON_GRANTED},
    {"out of range", {{ACT, .grants = {RANGE("^1.4")}}}, {V("2.0.0")}, REASON_VERSION_NOT_GRANTED},
    {"no complete version matches no range", {{ACT, .grants = {RANGE("*")}}}, {V("1.4")}, REASON_VERSION_NOT_GRANTED},
    {"latest matches no range", {{ACT, .grants = {RANGE("*")}}}, {V("latest")}, REASON_VERSION_NOT_GRANTED},
    {"pre-release not named", {{ACT, .grants = {RANGE("^1.4")}}}, {V("1.9.0-rc.1")}, REASON_VERSION_NOT_GRANTED},
    {"pre-release named", {{ACT, .grants = {RANGE(">=1.9.0-rc.1")}}}, {V("1.9.0-rc.1")}, REASON_GRANTED},
    {"pre-release by the grant", {{ACT, .grants = {{.selector = SELECTOR_RANGE, .value = "^1.4", .pre = true}}}}, {V("1.9.0-rc.1")}, REASON_GRANTED},
    {"helm's build", {{ACT, .grants = {RANGE("^1.4")}}}, {{.tag = "1.4.0_b1", .version = "1.4.0+b1"}}, REASON_GRANTED},
    {"a range that was not compiled", {{ACT, .grants = {{.selector = SELECTOR_RANGE, .value = NULL}}}}, {V("1.0.0")}, REASON_VERSION_NOT_GRANTED},
    {"glob", {{ACT, .grants = {{.selector = SELECTOR_GLOB, .value = "2024.*-lts"}}}}, {V("2024.1-lts")}, REASON_GRANTED},
    {"glob other", {{ACT, .grants = {{.selector = SELECTOR_GLOB, .value = "2024.*-lts"}}}}, {V("2024.1")}, REASON_VERSION_NOT_GRANTED},
    {"channel", {{ACT, .grants = {{.selector = SELECTOR_CHANNEL, .value = "stable"}}}}, {{.tag = "1", .channel = "stable"}}, REASON_GRANTED},
    {"range without one version", {{ACT, .grants = {{.selector = SELECTOR_RANGE, .value = "^1.4", .excluded = "1.9.0"}}}}, {V("1.9.0")}, REASON_VERSION_NOT_GRANTED},
    {"and the others of it", {{ACT, .grants = {{.selector = SELECTOR_RANGE, .value = "^1.4", .excluded = "1.9.0"}}}}, {V("1.9.1")}, REASON_GRANTED},
    {"all without one version", {{ACT, .grants = {{.selector = SELECTOR_ALL, .excluded = "1.9.0"}}}}, {V("1.9.0")}, REASON_VERSION_NOT_GRANTED},
    {"taken out by version, not by tag", {{ACT, .grants = {{.selector = SELECTOR_ALL, .excluded = "1.9.0"}}}}, {{.tag = "v1.9.0-x", .version = "1.9.0"}},
     REASON_VERSION_NOT_GRANTED},
    {"of one grant, granted by another", {{ACT, .grants = {{.selector = SELECTOR_ALL, .excluded = "1.9.0"}, RANGE("^1.9")}}}, {V("1.9.0")}, REASON_GRANTED},
    {"a digest is granted as content", {{ACT, .grants = {{.selector = SELECTOR_DIGEST, .digest = 1, .excluded = "1"}}}}, {{.tag = "1", .digest = 1}}, REASON_GRANTED},
    {"channel other", {{ACT, .grants = {{.selector = SELECTOR_CHANNEL, .value = "stable"}}}}, {{.tag = "1", .channel = "beta"}}, REASON_VERSION_NOT_GRANTED},
    {"no channel", {{ACT, .grants = {{.selector = SELECTOR_CHANNEL, .value = "stable"}}}}, {{.tag = "stable"}}, REASON_VERSION_NOT_GRANTED},
    {"no channel, and none asked", {{ACT, .grants = {{.selector = SELECTOR_CHANNEL, .value = ""}}}}, {V("1")}, REASON_VERSION_NOT_GRANTED},
    {"all, also what is no semver", {{ACT, .grants = {ALL}}}, {V("nightly")}, REASON_GRANTED},
    {"all, but the tag fits no template", {{ACT, .grants = {ALL}}}, {{.tag = "x", .version = ""}}, REASON_VERSION_NOT_GRANTED},
    {"no candidate", {{ACT, .grants = {ALL}}}, {{0}}, REASON_VERSION_NOT_GRANTED},
    {"signature tags are no versions", {{ACT, .grants = {ALL}}}, {V("sha256-" HEX64 ".sig")}, REASON_VERSION_NOT_GRANTED},
    {"nor fallback tags", {{ACT, .grants = {ALL}}}, {V("sha256-" HEX64)}, REASON_VERSION_NOT_GRANTED},
    {"nor those of sha512", {{ACT, .grants = {ALL}}}, {V("sha512-" HEX64)}, REASON_VERSION_NOT_GRANTED},
    {"nor unknown ones like them", {{ACT, .grants = {ALL}}}, {V("sha256-" HEX64 ".foo")}, REASON_VERSION_NOT_GRANTED},
    {"nor in upper case", {{ACT, .grants = {ALL}}}, {V("sha256-ABCDEF" HEX64)}, REASON_VERSION_NOT_GRANTED},
    {"nor by exact", {{ACT, .grants = {{.selector = SELECTOR_EXACT, .value = "sha256-" HEX64}}}}, {V("sha256-" HEX64)}, REASON_VERSION_NOT_GRANTED},
    {"nor by digest", {{ACT, .grants = {{.selector = SELECTOR_DIGEST, .digest = 1}}}}, {{.tag = "sha256-" HEX64, .digest = 1}}, REASON_VERSION_NOT_GRANTED},
    {"short of that it is a version", {{ACT, .grants = {ALL}}}, {V("sha256-0123")}, REASON_GRANTED},
    {"and with other letters", {{ACT, .grants = {ALL}}}, {V("sha256-g" HEX64)}, REASON_GRANTED},
    {"and with an upper-case one", {{ACT, .grants = {ALL}}}, {V("sha256-G" HEX64)}, REASON_GRANTED},
    {"and with a mark", {{ACT, .grants = {ALL}}}, {V("sha256-." HEX64)}, REASON_GRANTED},
    {"its last digit counts, too", {{ACT, .grants = {ALL}}}, {V("sha256-0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcde_")}, REASON_GRANTED},
    {"the second grant may do", {{ACT, .grants = {RANGE("^1"), RANGE("^2")}}}, {V("2.0.0")}, REASON_GRANTED},
    {"the second candidate may do", {{ACT, .grants = {RANGE("^2")}}}, {V("1.0.0"), V("2.0.0")}, REASON_GRANTED, .is_digest = true},

    /* repositories */
    {"not of this application", {{ACT, .repository = "shop/other", .grants = {ALL}}}, {V("1")}, REASON_NO_LICENSE},
    {"a longer name is another", {{ACT, .repository = R "x", .grants = {ALL}}}, {V("1")}, REASON_NO_LICENSE},
    {"no license at all", {{0}}, {V("1")}, REASON_NO_LICENSE},
    {"no license, by digest", {{0}}, {V("1")}, REASON_NO_LICENSE, .is_digest = true},
    {"granted here", {{ACT, .grants = {{.selector = SELECTOR_ALL, .repository = R}}}}, {V("1")}, REASON_GRANTED},
    {"granted elsewhere", {{ACT, .grants = {{.selector = SELECTOR_ALL, .repository = "shop/web"}}}}, {V("1")}, REASON_VERSION_NOT_GRANTED},
    {"elsewhere, its window is not told",
     {{ACT, .grants = {{.selector = SELECTOR_ALL, .repository = "shop/web", .not_before = NOW + 1}}}}, {V("1")}, REASON_VERSION_NOT_GRANTED},

    /* windows of grants */
    {"from this second", {{ACT, .grants = {{.selector = SELECTOR_ALL, .not_before = NOW}}}}, {V("1")}, REASON_GRANTED},
    {"from the next", {{ACT, .grants = {{.selector = SELECTOR_ALL, .not_before = NOW + 1}}}}, {V("1")}, REASON_GRANT_WINDOW},
    {"until the next", {{ACT, .grants = {{.selector = SELECTOR_ALL, .not_after = NOW + 1}}}}, {V("1")}, REASON_GRANTED},
    {"until this second", {{ACT, .grants = {{.selector = SELECTOR_ALL, .not_after = NOW}}}}, {V("1")}, REASON_GRANT_WINDOW},
    {"closed, by digest", {{ACT, .grants = {{.selector = SELECTOR_ALL, .not_after = NOW}}}}, {V("1")}, REASON_NOT_IN_CLOSURE, .is_digest = true},
    {"closed, of another version", {{ACT, .grants = {{.selector = SELECTOR_RANGE, .value = "^1", .not_after = NOW}}}}, {V("2.0.0")}, REASON_VERSION_NOT_GRANTED},
    {"a closed channel tells nothing",
     {{ACT, .grants = {{.selector = SELECTOR_CHANNEL, .value = "stable", .not_after = NOW}}}}, {{.tag = "1", .channel = "stable"}}, REASON_VERSION_NOT_GRANTED},
    {"an open channel does", {{ACT, .grants = {{.selector = SELECTOR_CHANNEL, .value = "stable", .not_after = NOW + 1}}}},
     {{.tag = "1", .channel = "stable"}}, REASON_GRANTED},
    {"a closed digest tells nothing",
     {{ACT, .grants = {{.selector = SELECTOR_DIGEST, .digest = 1, .not_before = NOW + 1}}}}, {{.tag = "1", .digest = 1}}, REASON_VERSION_NOT_GRANTED},

    /* updates_until */
    {"released before", {{ACT, .updates_until = 500, .grants = {ALL}}}, {{.tag = "1", .released = 499}}, REASON_GRANTED},
    {"released then", {{ACT, .updates_until = 500, .grants = {ALL}}}, {{.tag = "1", .released = 500}}, REASON_GRANTED},
    {"released after", {{ACT, .updates_until = 500, .grants = {ALL}}}, {{.tag = "1", .released = 501}}, REASON_MAINTENANCE_ENDED},
    {"released who knows when", {{ACT, .updates_until = 500, .grants = {ALL}}}, {{.tag = "1"}}, REASON_MAINTENANCE_ENDED},
    {"a time before 1970 is none", {{ACT, .updates_until = 500, .grants = {ALL}}}, {{.tag = "1", .released = -1}}, REASON_MAINTENANCE_ENDED},
    {"released after, by digest", {{ACT, .updates_until = 500, .grants = {ALL}}}, {{.tag = "1", .released = 501}}, REASON_NOT_IN_CLOSURE, .is_digest = true},
    {"released after, of another version", {{ACT, .updates_until = 500, .grants = {RANGE("^1")}}}, {{.tag = "2.0.0", .released = 501}}, REASON_VERSION_NOT_GRANTED},
    {"released after, and the window closed, too",
     {{ACT, .updates_until = 500, .grants = {{.selector = SELECTOR_ALL, .not_after = NOW}}}}, {{.tag = "1", .released = 501}}, REASON_MAINTENANCE_ENDED},
    {"released after, and another grant's window closed",
     {{ACT, .updates_until = 500, .grants = {ALL, {.selector = SELECTOR_ALL, .not_after = NOW}}}}, {{.tag = "1", .released = 500}}, REASON_GRANTED},
    {"a channel does not tell of maintenance",
     {{ACT, .updates_until = 500, .grants = {{.selector = SELECTOR_CHANNEL, .value = "stable"}}}}, {{.tag = "1", .channel = "stable", .released = 501}},
     REASON_VERSION_NOT_GRANTED},

    /* digests and moved tags */
    {"digest", {{ACT, .grants = {{.selector = SELECTOR_DIGEST, .digest = 1}}}}, {{.tag = "x", .version = "", .digest = 1}}, REASON_GRANTED},
    {"digest of a tag long moved", {{ACT, .grants = {{.selector = SELECTOR_DIGEST, .digest = 1, .granted_at = 900}}}},
     {{.tag = "x", .digest = 1, .until = 5}}, REASON_GRANTED},
    {"digest other", {{ACT, .grants = {{.selector = SELECTOR_DIGEST, .digest = 1}}}}, {{.tag = "x", .digest = 2}}, REASON_VERSION_NOT_GRANTED},
    {"digest not known yet", {{ACT, .grants = {{.selector = SELECTOR_DIGEST, .digest = 1}}}}, {V("x")}, REASON_VERSION_NOT_GRANTED},
    {"no digest in the grant", {{ACT, .grants = {{.selector = SELECTOR_DIGEST}}}}, {V("x")}, REASON_VERSION_NOT_GRANTED},
    {"outside the closure", {{ACT, .grants = {ALL}}}, {{0}}, REASON_NOT_IN_CLOSURE, .is_digest = true},
    {"in the closure of what is not granted", {{ACT, .grants = {RANGE("^1")}}}, {V("2.0.0")}, REASON_NOT_IN_CLOSURE, .is_digest = true},
    {"follow: moved since the grant", {{ACT, .grants = {{.selector = SELECTOR_ALL, .granted_at = 100}}}}, {{.tag = "1", .until = 101}}, REASON_GRANTED,
     .is_digest = true},
    {"follow: moved in the grant's second", {{ACT, .grants = {{.selector = SELECTOR_ALL, .granted_at = 100}}}}, {{.tag = "1", .until = 100}},
     REASON_GRANTED, .is_digest = true},
    {"follow: moved before the grant", {{ACT, .grants = {{.selector = SELECTOR_ALL, .granted_at = 100}}}}, {{.tag = "1", .until = 99}},
     REASON_NOT_IN_CLOSURE, .is_digest = true},
    {"pin: the digest it is pinned to",
     {{ACT, .grants = {{.selector = SELECTOR_ALL, .on_move = GRANT_PIN, .pin_tag = "1", .pin_digest = 7}}}}, {{.tag = "1", .digest = 7}}, REASON_GRANTED},
    {"pin: though the tag has moved on",
     {{ACT, .grants = {{.selector = SELECTOR_ALL, .on_move = GRANT_PIN, .pin_tag = "1", .pin_digest = 7, .granted_at = 900}}}},
     {{.tag = "1", .digest = 7, .until = 5}}, REASON_GRANTED, .is_digest = true},
    {"pin: not what the tag became",
     {{ACT, .grants = {{.selector = SELECTOR_ALL, .on_move = GRANT_PIN, .pin_tag = "1", .pin_digest = 7}}}}, {{.tag = "1", .digest = 8}},
     REASON_VERSION_NOT_GRANTED},
    {"pin: not resolved yet",
     {{ACT, .grants = {{.selector = SELECTOR_ALL, .on_move = GRANT_PIN, .pin_tag = "1", .pin_digest = 7}}}}, {V("1")}, REASON_GRANTED},
    {"pin: of another tag", {{ACT, .grants = {{.selector = SELECTOR_ALL, .on_move = GRANT_PIN, .pin_tag = "2", .pin_digest = 7}}}},
     {{.tag = "1", .digest = 8}}, REASON_GRANTED},
    {"pin: of another repository",
     {{ACT, .grants = {{.selector = SELECTOR_ALL, .on_move = GRANT_PIN, .pin_tag = "1", .pin_repository = "shop/web", .pin_digest = 7}}}},
     {{.tag = "1", .digest = 8}}, REASON_GRANTED},
    {"pin: none recorded, what it was", {{ACT, .grants = {{.selector = SELECTOR_ALL, .on_move = GRANT_PIN}}}}, {{.tag = "1", .digest = 8, .until = 900}},
     REASON_NOT_IN_CLOSURE, .is_digest = true},
    {"an unknown way to move", {{ACT, .grants = {{.selector = SELECTOR_ALL, .on_move = (enum grant_on_move)9}}}}, {V("1")}, REASON_VERSION_NOT_GRANTED},

    /* 4.7: addresses and quotas */
    {"from an allowed network", {{ACT, .cidr = "10.0.0.0/8", .grants = {ALL}}}, {V("1")}, REASON_GRANTED},
    {"from another", {{ACT, .cidr = "192.168.0.0/16", .grants = {ALL}}}, {V("1")}, REASON_IP_NOT_ALLOWED},
    {"from who knows where", {{ACT, .cidr = "10.0.0.0/8", .grants = {ALL}}}, {V("1")}, REASON_IP_NOT_ALLOWED, .addr = ""},
    {"from anywhere", {{ACT, .grants = {ALL}}}, {V("1")}, REASON_GRANTED, .addr = ""},
    {"from another, and not granted", {{ACT, .cidr = "192.168.0.0/16", .grants = {RANGE("^2")}}}, {V("1.0.0")}, REASON_VERSION_NOT_GRANTED},
    {"quota spent", {{ACT, .quota = true, .grants = {ALL}}}, {V("1")}, REASON_QUOTA_EXCEEDED},
    {"quota spent until later", {{ACT, .quota = true, .quota_until = NOW + 1, .grants = {ALL}}}, {V("1")}, REASON_QUOTA_EXCEEDED},
    {"quota of a window that is over", {{ACT, .quota = true, .quota_until = NOW, .grants = {ALL}}}, {V("1")}, REASON_GRANTED},
    {"holds a place", {{ACT, .instances = {3, 5, 9}, .grants = {ALL}}}, {V("1")}, REASON_GRANTED, .instance = 9},
    {"holds the first place", {{ACT, .instances = {3, 5, 9}, .grants = {ALL}}}, {V("1")}, REASON_GRANTED, .instance = 3},
    {"no place is left", {{ACT, .instances = {3, 5, 9}, .grants = {ALL}}}, {V("1")}, REASON_QUOTA_EXCEEDED, .instance = 4},
    {"no place for nobody known", {{ACT, .instances = {3, 5, 9}, .grants = {ALL}}}, {V("1")}, REASON_QUOTA_EXCEEDED},
    {"asked in general", {{ACT, .instances = {3, 5, 9}, .grants = {ALL}}}, {V("1")}, REASON_GRANTED, .any_instance = true},
    {"asked in general, quota spent", {{ACT, .quota = true, .instances = {3}, .grants = {ALL}}}, {V("1")}, REASON_QUOTA_EXCEEDED, .any_instance = true},
    {"places of a window that is over", {{ACT, .quota_until = NOW, .instances = {3}, .grants = {ALL}}}, {V("1")}, REASON_GRANTED, .instance = 4},
    {"a place gives no version", {{ACT, .instances = {3}, .grants = {RANGE("^2")}}}, {V("1.0.0")}, REASON_VERSION_NOT_GRANTED, .instance = 3},
    {"another license has room", {{ACT, .instances = {3}, .grants = {ALL}}, {ACT, .grants = {ALL}}}, {V("1")}, REASON_GRANTED, .instance = 4, .winner = 2},
    {"quota spent, by digest", {{ACT, .quota = true, .grants = {ALL}}}, {V("1")}, REASON_QUOTA_EXCEEDED, .is_digest = true},
    {"quota spent, and not granted", {{ACT, .quota = true, .grants = {RANGE("^2")}}}, {V("1.0.0")}, REASON_VERSION_NOT_GRANTED},
    {"quota spent, and the address", {{ACT, .quota = true, .cidr = "192.168.0.0/16", .grants = {ALL}}}, {V("1")}, REASON_IP_NOT_ALLOWED},

    /* 4.8: keep_released */
    {"kept", {{ACT, .expires = 500, .on_expiry = LICENSE_ON_EXPIRY_KEEP_RELEASED, .grants = {ALL}}}, {{.tag = "1", .released = 500}}, REASON_GRANTED},
    {"released after the expiry", {{ACT, .expires = 500, .on_expiry = LICENSE_ON_EXPIRY_KEEP_RELEASED, .grants = {ALL}}}, {{.tag = "1", .released = 501}},
     REASON_EXPIRED},
    {"released in the grace", {{ACT, .expires = 500, .grace = 1, .on_expiry = LICENSE_ON_EXPIRY_KEEP_RELEASED, .grants = {ALL}}},
     {{.tag = "1", .released = 600}}, REASON_EXPIRED},
    {"released who knows when, kept", {{ACT, .expires = 500, .on_expiry = LICENSE_ON_EXPIRY_KEEP_RELEASED, .grants = {ALL}}}, {V("1")}, REASON_EXPIRED},
    {"kept, but never granted", {{ACT, .expires = 500, .on_expiry = LICENSE_ON_EXPIRY_KEEP_RELEASED, .grants = {RANGE("^2")}}},
     {{.tag = "1.0.0", .released = 400}}, REASON_EXPIRED},
    {"kept, its window closed", {{ACT, .expires = 500, .on_expiry = LICENSE_ON_EXPIRY_KEEP_RELEASED, .grants = {{.selector = SELECTOR_ALL, .not_after = 600}}}},
     {{.tag = "1", .released = 400}}, REASON_EXPIRED},
    {"kept, released after updates_until",
     {{ACT, .expires = 500, .updates_until = 300, .on_expiry = LICENSE_ON_EXPIRY_KEEP_RELEASED, .grants = {ALL}}}, {{.tag = "1", .released = 400}}, REASON_EXPIRED},
    {"kept, outside the closure", {{ACT, .expires = 500, .on_expiry = LICENSE_ON_EXPIRY_KEEP_RELEASED, .grants = {ALL}}}, {{0}}, REASON_EXPIRED, .is_digest = true},
    {"kept, from another network",
     {{ACT, .expires = 500, .cidr = "192.168.0.0/16", .on_expiry = LICENSE_ON_EXPIRY_KEEP_RELEASED, .grants = {ALL}}}, {{.tag = "1", .released = 400}},
     REASON_IP_NOT_ALLOWED},
    {"in grace nothing needs keeping", {{ACT, .expires = NOW, .grace = 1, .on_expiry = LICENSE_ON_EXPIRY_KEEP_RELEASED, .grants = {ALL}}}, {V("1")}, REASON_GRANTED},
    {"suspended keeps nothing",
     {{LICENSE_SUSPENDED, .expires = 500, .on_expiry = LICENSE_ON_EXPIRY_KEEP_RELEASED, .grants = {ALL}}}, {{.tag = "1", .released = 400}}, REASON_SUSPENDED},
    {"revoked keeps nothing",
     {{LICENSE_REVOKED, .expires = 500, .on_expiry = LICENSE_ON_EXPIRY_KEEP_RELEASED, .grants = {ALL}}}, {{.tag = "1", .released = 400}}, REASON_REVOKED},
    {"scheduled keeps nothing",
     {{ACT, .starts = NOW + 1, .expires = 500, .on_expiry = LICENSE_ON_EXPIRY_KEEP_RELEASED, .grants = {ALL}}}, {{.tag = "1", .released = 400}}, REASON_SCHEDULED},
    {"an unknown way to expire blocks", {{ACT, .expires = 500, .on_expiry = (enum license_on_expiry)9, .grants = {ALL}}}, {{.tag = "1", .released = 400}},
     REASON_EXPIRED},

    /* the union, and who is named */
    {"one of two", {{LICENSE_REVOKED, .grants = {ALL}}, {ACT, .grants = {ALL}}}, {V("1")}, REASON_GRANTED, .winner = 2},
    {"the first that allows", {{ACT, .grants = {ALL}}, {ACT, .grants = {ALL}}}, {V("1")}, REASON_GRANTED, .winner = 1},
    {"versions of both", {{ACT, .grants = {RANGE("^1")}}, {ACT, .grants = {RANGE("^2")}}}, {V("2.0.0")}, REASON_GRANTED, .winner = 2},
    {"a grant of one and the life of the other do not add up",
     {{ACT, .grants = {RANGE("^1")}}, {LICENSE_SUSPENDED, .grants = {ALL}}}, {V("2.0.0")}, REASON_VERSION_NOT_GRANTED, .winner = 1},
    {"one in force wins over one expired", {{ACT, .expires = 5, .grants = {ALL}}, {ACT, .grants = {RANGE("^1")}}}, {V("2.0.0")},
     REASON_VERSION_NOT_GRANTED, .winner = 2},
    {"by digest, too", {{ACT, .expires = 5, .grants = {ALL}}, {ACT, .grants = {RANGE("^1")}}}, {V("2.0.0")}, REASON_NOT_IN_CLOSURE, .is_digest = true, .winner = 2},
    {"by digest the first in force is named, whatever was found",
     {{ACT, .grants = {RANGE("^1")}}, {ACT, .updates_until = 5, .grants = {ALL}}}, {V("2.0.0")}, REASON_NOT_IN_CLOSURE, .is_digest = true, .winner = 1},
    {"quota over address", {{ACT, .cidr = "192.168.0.0/16", .grants = {ALL}}, {ACT, .quota = true, .grants = {ALL}}}, {V("1")}, REASON_QUOTA_EXCEEDED, .winner = 2},
    {"address over window", {{ACT, .grants = {{.selector = SELECTOR_ALL, .not_after = 5}}}, {ACT, .cidr = "192.168.0.0/16", .grants = {ALL}}}, {V("1")},
     REASON_IP_NOT_ALLOWED, .winner = 2},
    {"window over maintenance", {{ACT, .updates_until = 5, .grants = {ALL}}, {ACT, .grants = {{.selector = SELECTOR_ALL, .not_after = 5}}}}, {V("1")},
     REASON_GRANT_WINDOW, .winner = 2},
    {"maintenance over version", {{ACT, .grants = {RANGE("^9")}}, {ACT, .updates_until = 5, .grants = {ALL}}}, {V("1.0.0")}, REASON_MAINTENANCE_ENDED, .winner = 2},
    {"expired over scheduled", {{ACT, .starts = NOW + 5, .grants = {ALL}}, {ACT, .expires = 5, .grants = {ALL}}}, {V("1")}, REASON_EXPIRED, .winner = 2},
    {"scheduled over suspended", {{LICENSE_SUSPENDED, .grants = {ALL}}, {ACT, .starts = NOW + 5, .grants = {ALL}}}, {V("1")}, REASON_SCHEDULED, .winner = 2},
    {"suspended over inactive", {{LICENSE_INACTIVE, .grants = {ALL}}, {LICENSE_SUSPENDED, .grants = {ALL}}}, {V("1")}, REASON_SUSPENDED, .winner = 2},
    {"inactive over revoked", {{LICENSE_REVOKED, .grants = {ALL}}, {LICENSE_INACTIVE, .grants = {ALL}}}, {V("1")}, REASON_INACTIVE, .winner = 2},
    {"revoked over what is no status", {{(enum license_status)9, .grants = {ALL}}, {LICENSE_REVOKED, .grants = {ALL}}}, {V("1")}, REASON_REVOKED, .winner = 2},
    {"the one that expired last", {{ACT, .expires = 5}, {ACT, .expires = 7}, {ACT, .expires = 6}}, {V("1")}, REASON_EXPIRED, .winner = 2},
    {"of two that expired together the first", {{ACT, .expires = 5}, {ACT, .expires = 5}}, {V("1")}, REASON_EXPIRED, .winner = 1},
    {"of two that start together the first", {{ACT, .starts = NOW + 5}, {ACT, .starts = NOW + 5}}, {V("1")}, REASON_SCHEDULED, .winner = 1},
    {"the one that starts first", {{ACT, .starts = NOW + 7}, {ACT, .starts = NOW + 5}, {ACT, .starts = NOW + 6}}, {V("1")}, REASON_SCHEDULED, .winner = 2},
    {"of equals the first", {{LICENSE_REVOKED}, {LICENSE_REVOKED}}, {V("1")}, REASON_REVOKED, .winner = 1},
    {"one of another repository does not count", {{ACT, .repository = "shop/web", .grants = {ALL}}, {LICENSE_REVOKED}}, {V("1")}, REASON_REVOKED, .winner = 2},

    /* a credential of one license */
    {"bound to the one that allows", {{ACT, .grants = {ALL}}, {ACT, .grants = {ALL}}}, {V("1")}, REASON_GRANTED, .license_id = "lic_2", .winner = 2},
    {"bound to the other", {{ACT, .grants = {ALL}}, {LICENSE_REVOKED}}, {V("1")}, REASON_REVOKED, .license_id = "lic_2", .winner = 2},
    {"bound to one for another repository", {{ACT, .grants = {ALL}}, {ACT, .repository = "shop/web", .grants = {ALL}}}, {V("1")}, REASON_NO_LICENSE,
     .license_id = "lic_2"},
    {"bound to none of these", {{ACT, .grants = {ALL}}}, {V("1")}, REASON_NO_LICENSE, .license_id = "lic_9"},
};

/* ---- rows made into entitlements ------------------------------------------------------------- */

struct world {
    struct entitlement ent;
    struct license licenses[3];
    struct grant grants[3][3];
    struct str grant_repositories[3][3];
    struct grant_pin pins[3][3];
    struct cidr cidrs[3];
    struct str repositories[3];
    struct candidate candidates[3];
    struct decision_query query;
    uint8_t addr[16];
    uint64_t instances[3][3];
};

static void grant_make(const struct g *from, struct grant *g, struct str *repository, struct grant_pin *pin)
{
    g->id = S("gra");
    g->selector = from->selector;
    g->value = str_c(from->value);
    g->include_prerelease = from->pre;
    g->not_before_s = from->not_before;
    g->not_after_s = from->not_after;
    g->granted_at_s = from->granted_at;
    g->on_move = from->on_move;
    if (from->selector == SELECTOR_RANGE && from->value)
        assert_int_equal(semver_range_parse(g->value, &g->range, NULL), ERR_OK);
    if (from->digest)
        g->digest = (struct digest){DIGEST_SHA256, {(uint8_t)from->digest}};
    if (from->repository) {
        *repository = str_c(from->repository);
        g->repositories = repository;
        g->n_repositories = 1;
    }
    if (from->pin_tag) {
        pin->repository = str_c(from->pin_repository ? from->pin_repository : R);
        pin->tag = str_c(from->pin_tag);
        pin->digest = (struct digest){DIGEST_SHA256, {(uint8_t)from->pin_digest}};
        g->pins = pin;
        g->n_pins = 1;
    }
    if (from->excluded) { /* no row has both: the pin's tag is its place */
        assert_null(from->pin_tag);
        pin->tag = str_c(from->excluded);
        g->excluded = &pin->tag;
        g->n_excluded = 1;
    }
}

static bool grant_said(const struct g *g)
{
    return g->selector != SELECTOR_NONE || g->value != NULL;
}

static bool license_said(const struct l *l)
{
    return l->status != LICENSE_STATUS_NONE || l->cidr != NULL;
}

static void world_make(const struct row *row, struct world *w)
{
    static const char *const ids[] = {"lic_1", "lic_2", "lic_3"};

    memset(w, 0, sizeof *w);
    for (size_t i = 0; i < 3 && license_said(&row->licenses[i]); i++) {
        const struct l *from = &row->licenses[i];
        struct license *l = &w->licenses[i];
        l->id = str_c(ids[i]);
        l->name = S("Acme Prod");
        l->application_slug = S("shop");
        l->terms = (struct license_terms){
            .status = from->status, .starts_at_s = from->starts, .expires_at_s = from->expires, .grace_days = from->grace};
        l->updates_until_s = from->updates_until;
        l->on_expiry = from->on_expiry;
        l->quota_exceeded = from->quota;
        l->quota_until_s = from->quota_until;
        while (l->n_instances < 3 && from->instances[l->n_instances])
            w->instances[i][l->n_instances] = from->instances[l->n_instances], l->n_instances++;
        l->instances = w->instances[i];
        l->instances_full = l->n_instances > 0;
        w->repositories[i] = str_c(from->repository ? from->repository : R);
        l->repositories = &w->repositories[i];
        l->n_repositories = 1;
        if (from->cidr && from->cidr[0] != 'x') {
            assert_int_equal(cidr_parse(str_c(from->cidr), &w->cidrs[i], NULL), ERR_OK);
            l->allowed_cidrs = &w->cidrs[i];
            l->n_allowed_cidrs = 1;
        }
        l->grants = w->grants[i];
        for (size_t g = 0; g < 3 && grant_said(&from->grants[g]); g++) {
            grant_make(&from->grants[g], &w->grants[i][g], &w->grant_repositories[i][g], &w->pins[i][g]);
            l->n_grants++;
        }
        w->ent.n_licenses++;
    }
    w->ent.licenses = w->licenses;
    w->ent.refs = 1;
    for (size_t i = 0; i < 3 && row->candidates[i].tag; i++) {
        const struct c *from = &row->candidates[i];
        struct candidate *c = &w->candidates[i];
        c->tag = str_c(from->tag);
        c->version = str_c(from->version ? from->version : from->tag);
        c->channel = str_c(from->channel);
        c->released_at_s = from->released;
        c->until_s = from->until;
        if (from->digest)
            c->digest = (struct digest){DIGEST_SHA256, {(uint8_t)from->digest}};
        w->query.n_candidates++;
    }
    w->query.candidates = w->candidates;
    w->query.repository = S(R);
    w->query.is_digest = row->is_digest;
    w->query.now_s = NOW;
    w->query.license_id = str_c(row->license_id);
    w->query.instance = row->instance;
    w->query.any_instance = row->any_instance;
    if (!row->addr || row->addr[0]) {
        assert_true(addr_parse(str_c(row->addr ? row->addr : "10.1.2.3"), w->addr));
        w->query.client_addr = w->addr;
    }
}

static void world_free(struct world *w)
{
    for (size_t i = 0; i < 3; i++)
        for (size_t g = 0; g < 3; g++)
            semver_range_free(w->grants[i][g].range);
}

static void the_policy(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        const struct row *row = &rows[i];
        struct world w;
        struct decision d;
        world_make(row, &w);
        memset(&d, 0x5a, sizeof d);
        decision_make(&w.ent, &w.query, &d);
        if (d.reason != row->want)
            fail_msg("%s: %s, not %s", row->name, reason_text(d.reason), reason_text(row->want));
        if (d.verdict != (row->want == REASON_GRANTED ? VERDICT_ALLOW : VERDICT_DENY))
            fail_msg("%s: verdict %d", row->name, d.verdict);
        if (row->winner && d.license != &w.licenses[row->winner - 1])
            fail_msg("%s: names license %td", row->name, d.license ? d.license - w.licenses + 1 : 0);
        if ((d.license == NULL) != (row->want == REASON_NO_LICENSE))
            fail_msg("%s: a license or none", row->name);
        if ((d.grant != NULL) != (row->want == REASON_GRANTED) || (d.candidate != NULL) != (row->want == REASON_GRANTED))
            fail_msg("%s: a grant and a candidate if and only if granted", row->name);
        if (d.valid_until_s <= NOW)
            fail_msg("%s: holds until the past", row->name);

        /* alone, the license named says the same */
        if (d.license) {
            struct decision alone;
            decision_of_license(&w.ent, d.license, &w.query, &alone);
            if (alone.verdict != d.verdict || alone.reason != d.reason || alone.license != d.license)
                fail_msg("%s: alone %s", row->name, reason_text(alone.reason));
        }
        /* whatever is allowed is no more when the customer is disabled */
        w.ent.customer_disabled = true;
        decision_make(&w.ent, &w.query, &d);
        assert_int_equal(d.verdict, VERDICT_DENY);
        assert_int_equal(d.reason, REASON_CUSTOMER_DISABLED);
        assert_null(d.license);
        w.ent.customer_disabled = false;
        /* and nothing is known when the clock is absurd, or the entitlement is not there */
        w.query.now_s = 0;
        decision_make(&w.ent, &w.query, &d);
        assert_int_equal(d.verdict, VERDICT_UNKNOWN);
        decision_make(NULL, &w.query, &d);
        assert_int_equal(d.verdict, VERDICT_UNKNOWN);
        assert_int_equal(d.reason, REASON_UNKNOWN);
        world_free(&w);
    }
}

/* By the second before valid_until nothing has changed, for every row. */
static void decisions_hold_until_told(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct world w;
        struct decision d, later;
        world_make(&rows[i], &w);
        decision_make(&w.ent, &w.query, &d);
        w.query.now_s = d.valid_until_s - 1;
        decision_make(&w.ent, &w.query, &later);
        if (later.verdict != d.verdict || later.reason != d.reason)
            fail_msg("%s: %s becomes %s before its time", rows[i].name, reason_text(d.reason), reason_text(later.reason));
        world_free(&w);
    }
}

static void valid_until(void **state)
{
    static const struct {
        struct row row;
        int64_t want;
    } cases[] = {
        {{"for ever", {{ACT, .grants = {ALL}}}, {V("1")}, 0}, INT64_MAX},
        {{"suspended", {{LICENSE_SUSPENDED, .expires = NOW + 5, .grants = {ALL}}}, {V("1")}, 0}, INT64_MAX},
        {{"expiry", {{ACT, .expires = NOW + 5, .grants = {ALL}}}, {V("1")}, 0}, NOW + 5},
        {{"expiring", {{ACT, .expires = NOW + 30 * DAY + 5, .grants = {ALL}}}, {V("1")}, 0}, NOW + 5},
        {{"grace", {{ACT, .expires = NOW - 5, .grace = 1, .grants = {ALL}}}, {V("1")}, 0}, NOW + DAY - 5},
        {{"start", {{ACT, .starts = NOW + 5, .grants = {ALL}}}, {V("1")}, 0}, NOW + 5},
        {{"window closes", {{ACT, .grants = {{.selector = SELECTOR_ALL, .not_after = NOW + 5}}}}, {V("1")}, 0}, NOW + 5},
        {{"window opens", {{ACT, .grants = {{.selector = SELECTOR_ALL, .not_before = NOW + 5}}}}, {V("1")}, 0}, NOW + 5},
        {{"the nearest of all", {{ACT, .starts = NOW + 7, .grants = {ALL}}, {ACT, .expires = NOW + 5, .grants = {RANGE("^9")}}}, {V("1")}, 0}, NOW + 5},
        {{"another repository's", {{ACT, .repository = "shop/web", .expires = NOW + 5, .grants = {ALL}}}, {V("1")}, 0}, INT64_MAX},
    };
    (void)state;
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct world w;
        struct decision d;
        world_make(&cases[i].row, &w);
        decision_make(&w.ent, &w.query, &d);
        if (d.valid_until_s != cases[i].want)
            fail_msg("%s: %lld", cases[i].row.name, (long long)d.valid_until_s);
        world_free(&w);
    }
}

static void any_usable(void **state)
{
    static const struct row one[] = {
        {"active", {{ACT}}, {{0}}, .winner = 1},
        {"second", {{LICENSE_REVOKED}, {ACT, .expires = NOW, .grace = 1}}, {{0}}, .winner = 1},
        {"expired", {{ACT, .expires = NOW}}, {{0}}, .winner = 0},
        {"kept", {{ACT, .expires = NOW, .on_expiry = LICENSE_ON_EXPIRY_KEEP_RELEASED}}, {{0}}, .winner = 1},
        {"kept and suspended", {{LICENSE_SUSPENDED, .expires = NOW, .on_expiry = LICENSE_ON_EXPIRY_KEEP_RELEASED}}, {{0}}, .winner = 0},
        {"elsewhere", {{ACT, .repository = "shop/web"}}, {{0}}, .winner = 0},
        {"none", {{0}}, {{0}}, .winner = 0},
    };
    struct world w;
    (void)state;
    for (size_t i = 0; i < COUNT(one); i++) {
        world_make(&one[i], &w);
        if (decision_any_usable(&w.ent, S(R), NOW) != (one[i].winner == 1))
            fail_msg("%s", one[i].name);
        w.ent.customer_disabled = true;
        assert_false(decision_any_usable(&w.ent, S(R), NOW));
        world_free(&w);
    }
    assert_false(decision_any_usable(NULL, S(R), NOW));
}

static void of_one_license(void **state)
{
    static const struct row row = {"", {{ACT, .repository = "shop/web", .grants = {ALL}}, {ACT, .grants = {ALL}}}, {V("1")}, REASON_GRANTED};
    struct world w;
    struct decision d;
    (void)state;
    world_make(&row, &w);
    decision_of_license(&w.ent, &w.licenses[0], &w.query, &d);
    assert_int_equal(d.verdict, VERDICT_DENY);
    assert_int_equal(d.reason, REASON_NO_LICENSE);
    decision_of_license(&w.ent, &w.licenses[1], &w.query, &d);
    assert_int_equal(d.verdict, VERDICT_ALLOW);
    decision_of_license(NULL, &w.licenses[1], &w.query, &d);
    assert_int_equal(d.verdict, VERDICT_UNKNOWN);
    w.ent.customer_disabled = true;
    decision_of_license(&w.ent, &w.licenses[1], &w.query, &d);
    assert_int_equal(d.reason, REASON_CUSTOMER_DISABLED);
    world_free(&w);
}

/* ---- the sentence --------------------------------------------------------------------------- */

#define MARCH 1772409599 /* 2026-03-01T23:59:59Z */

static void say(const struct row *row, int64_t now, const char *reference, const char *renew, const char *contact, struct strbuf *b)
{
    struct world w;
    struct decision d;

    world_make(row, &w);
    w.query.now_s = now;
    w.ent.renew_url = str_c(renew);
    w.ent.support_contact = str_c(contact);
    for (size_t i = 0; i < w.ent.n_licenses; i++)
        w.licenses[i].status_reason = S("payment overdue");
    decision_make(&w.ent, &w.query, &d);
    decision_message(&w.ent, &d, &w.query, str_c(reference), b);
    world_free(&w);
}

static void messages(void **state)
{
    static const struct {
        struct row row;
        int64_t now;
        const char *reference, *renew, *contact, *want;
    } cases[] = {
        {{"expired", {{ACT, .expires = MARCH, .grace = 7, .grants = {ALL}}}, {V("1")}, 0}, MARCH + 8 * DAY, "1", "https://vendor.example/renew", "",
         "license \"Acme Prod\" for shop expired on 2026-03-01 (grace ended 2026-03-08). Renew: https://vendor.example/renew"},
        {{"expired", {{ACT, .expires = MARCH, .grants = {ALL}}}, {V("1")}, 0}, MARCH, "1", "", "help@vendor.example",
         "license \"Acme Prod\" for shop expired on 2026-03-01. Contact help@vendor.example"},
        {{"expired", {{ACT, .expires = MARCH, .grants = {ALL}}}, {V("1")}, 0}, MARCH, "1", "", "",
         "license \"Acme Prod\" for shop expired on 2026-03-01. Contact your vendor."},
        {{"kept", {{ACT, .expires = MARCH, .on_expiry = LICENSE_ON_EXPIRY_KEEP_RELEASED, .grants = {ALL}}}, {V("1")}, 0}, MARCH, "1", "u", "",
         "license \"Acme Prod\" for shop expired on 2026-03-01; granted versions released until then can still be pulled. Renew: u"},
        {{"not granted", {{ACT, .grants = {RANGE("^1.2")}}}, {V("2.0.0")}, 0}, NOW, "2.0.0", "https://r", "",
         "license \"Acme Prod\" for shop does not include version 2.0.0 (granted: ^1.2). See https://r"},
        {{"not granted",
          {{ACT, .updates_until = MARCH,
            .grants = {RANGE("^1.2"), {.selector = SELECTOR_CHANNEL, .value = "stable"}, {.selector = SELECTOR_ALL, .repository = "shop/web"}}}},
          {V("2.0.0")}, 0},
         NOW, "2.0.0", "", "", "license \"Acme Prod\" for shop does not include version 2.0.0 (granted: ^1.2, channel stable; updates until 2026-03-01). Contact your vendor."},
        {{"granted here only",
          {{ACT, .grants = {{.selector = SELECTOR_RANGE, .value = "^1.2", .repository = R}, {.selector = SELECTOR_ALL, .repository = "shop/web"}}}},
          {V("2.0.0")}, 0},
         NOW, "2.0.0", "", "c", "license \"Acme Prod\" for shop does not include version 2.0.0 (granted: ^1.2). Contact c"},
        {{"nothing granted", {{ACT}}, {V("1")}, 0}, NOW, "1", "", "c",
         "license \"Acme Prod\" for shop does not include version 1 (nothing granted). Contact c"},
        {{"digest", {{ACT, .grants = {ALL}}}, {{0}}, 0, .is_digest = true}, NOW, "sha256:" HEX64, "", "c",
         "license \"Acme Prod\" for shop does not include digest sha256:" HEX64 " (granted: all versions). Contact c"},
        {{"maintenance", {{ACT, .updates_until = MARCH, .grants = {ALL}}}, {{.tag = "1", .released = MARCH + 1}}, 0}, NOW, "1", "https://r", "",
         "license \"Acme Prod\" for shop includes updates released until 2026-03-01, not version 1. Renew: https://r"},
        {{"window", {{ACT, .grants = {{.selector = SELECTOR_ALL, .not_after = 5}}}}, {V("1")}, 0}, NOW, "1", "", "c",
         "license \"Acme Prod\" for shop grants version 1, but not at this time. Contact c"},
        {{"suspended", {{LICENSE_SUSPENDED}}, {V("1")}, 0}, NOW, "1", "", "c", "license \"Acme Prod\" for shop is suspended (payment overdue). Contact c"},
        {{"revoked", {{LICENSE_REVOKED}}, {V("1")}, 0}, NOW, "1", "", "c", "license \"Acme Prod\" for shop was revoked (payment overdue). Contact c"},
        {{"inactive", {{LICENSE_INACTIVE}}, {V("1")}, 0}, NOW, "1", "", "c", "license \"Acme Prod\" for shop is not active (payment overdue). Contact c"},
        {{"scheduled", {{ACT, .starts = MARCH, .grants = {ALL}}}, {V("1")}, 0}, NOW, "1", "", "c",
         "license \"Acme Prod\" for shop starts on 2026-03-01; nothing can be pulled before."},
        {{"scheduled for today", {{ACT, .starts = MARCH, .grants = {ALL}}}, {V("1")}, 0}, MARCH - 60, "1", "", "c",
         "license \"Acme Prod\" for shop starts on 2026-03-01T23:59:59Z; nothing can be pulled before."},
        {{"address", {{ACT, .cidr = "192.168.0.0/16", .grants = {ALL}}}, {V("1")}, 0}, NOW, "1", "", "c",
         "license \"Acme Prod\" for shop may not be used from this network address (10.1.2.3). Contact c"},
        {{"quota", {{ACT, .quota = true, .grants = {ALL}}}, {V("1")}, 0}, NOW, "1", "", "c", "license \"Acme Prod\" for shop has used up its quota. Contact c"},
        {{"address unknown", {{ACT, .cidr = "192.168.0.0/16", .grants = {ALL}}}, {V("1")}, 0, .addr = ""}, NOW, "1", "", "c",
         "license \"Acme Prod\" for shop may not be used from this network address. Contact c"},
        {{"quota until later", {{ACT, .quota = true, .quota_until = MARCH, .grants = {ALL}}}, {V("1")}, 0}, MARCH - 5 * DAY, "1", "", "c",
         "license \"Acme Prod\" for shop has used up its quota until 2026-03-01. Contact c"},
        {{"places taken", {{ACT, .instances = {3, 4}, .grants = {ALL}}}, {V("1")}, 0, .instance = 5}, NOW, "1", "", "c",
         "license \"Acme Prod\" for shop is in use by all 2 installations it allows. Contact c"},
        {{"none", {{0}}, {V("1")}, 0}, NOW, "1", "", "c", "no license for repository shop/api. Contact c"},
        {{"no status", {{(enum license_status)9}}, {V("1")}, 0}, NOW, "1", "", "c", "license \"Acme Prod\" for shop is in no known state. Contact c"},
        {{"digest granted", {{ACT, .grants = {{.selector = SELECTOR_DIGEST, .digest = 1, .value = "sha256:" HEX64}}}}, {V("1")}, 0}, NOW, "1", "", "c",
         "license \"Acme Prod\" for shop does not include version 1 (granted: sha256:0123456789ab...). Contact c"},
        {{"granted", {{ACT, .grants = {ALL}}}, {V("1")}, 0}, NOW, "1", "", "c", "license \"Acme Prod\" for shop grants version 1."},
        {{"unknown", {{ACT, .grants = {ALL}}}, {V("1")}, 0}, 0, "1", "", "c", "the entitlement cannot be checked at the moment, try again later."},
    };
    struct strbuf b = {0};
    (void)state;
    for (size_t i = 0; i < COUNT(cases); i++) {
        say(&cases[i].row, cases[i].now, cases[i].reference, cases[i].renew, cases[i].contact, &b);
        if (!str_eq_c(sb_str(&b), cases[i].want))
            fail_msg("%s: %.*s", cases[i].row.name, STR(sb_str(&b)));
    }
    static const struct {
        enum reason reason;
        const char *want;
    } plain[] = {
        {REASON_CUSTOMER_DISABLED, "this customer account is disabled. Contact your vendor."},
        {REASON_CREDENTIAL_EXPIRED, "this credential has expired. Contact your vendor."},
        {REASON_RATE_LIMITED, "too many requests, try again later."},
    };
    for (size_t i = 0; i < COUNT(plain); i++) {
        struct decision d = {.verdict = VERDICT_DENY, .reason = plain[i].reason};
        struct decision_query q = {.repository = S(R)};
        decision_message(NULL, &d, &q, S("1"), &b);
        assert_string_equal(b.p, plain[i].want);
    }
    sb_free(&b);
}

/* What the projector never writes, said all the same. */
static void messages_of_odd_licenses(void **state)
{
    static const struct row row = {"", {{LICENSE_REVOKED}}, {V("1")}, 0};
    static const struct {
        const char *name, *slug, *status_reason;
        enum reason reason;
        int64_t expires, grace_days;
        const char *want;
    } cases[] = {
        {"", "shop", "", REASON_REVOKED, 0, 0, "license \"lic_1\" for shop was revoked. Contact c"},
        {"", "shop", "", REASON_INACTIVE, 0, 0, "license \"lic_1\" for shop is not active: it awaits activation by the vendor. Contact c"},
        {"Acme", "", "", REASON_SUSPENDED, 0, 0, "license \"Acme\" is suspended. Contact c"},
        {"Acme", "", "", REASON_EXPIRED, MARCH, INT64_MAX, "license \"Acme\" expired on 2026-03-01. Contact c"},
        {"Acme", "", "", REASON_EXPIRED, MARCH, INT64_MAX / DAY, "license \"Acme\" expired on 2026-03-01. Contact c"},
        {"Acme", "", "", REASON_EXPIRED, MARCH, -1, "license \"Acme\" expired on 2026-03-01. Contact c"},
    };
    struct strbuf b = {0};
    (void)state;
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct world w;
        world_make(&row, &w);
        w.licenses[0].name = str_c(cases[i].name);
        w.licenses[0].application_slug = str_c(cases[i].slug);
        w.licenses[0].status_reason = str_c(cases[i].status_reason);
        w.licenses[0].terms.expires_at_s = cases[i].expires;
        w.licenses[0].terms.grace_days = cases[i].grace_days;
        w.ent.support_contact = S("c");
        struct decision d = {.verdict = VERDICT_DENY, .reason = cases[i].reason, .license = &w.licenses[0]};
        decision_message(&w.ent, &d, &w.query, S("1"), &b);
        assert_string_equal(b.p, cases[i].want);
        world_free(&w);
    }
    sb_free(&b);
}

/* It goes into a status line: one line, bounded, whatever names were given. */
static void messages_are_bounded(void **state)
{
    static const struct row row = {"", {{ACT, .grants = {RANGE("^1")}}}, {V("2.0.0")}, 0};
    static char wild[3000];
    struct strbuf b = {0};
    (void)state;
    for (unsigned fill = 1; fill < 256; fill++) {
        struct world w;
        struct decision d;
        memset(wild, (int)fill, sizeof wild - 1);
        for (enum reason r = REASON_UNKNOWN; r <= REASON_RATE_LIMITED; r++) {
            struct str s = str_c(wild);
            world_make(&row, &w);
            w.licenses[0].name = s;
            w.licenses[0].application_slug = s;
            w.licenses[0].status_reason = s;
            w.licenses[0].terms.expires_at_s = MARCH;
            w.licenses[0].terms.grace_days = 7;
            w.licenses[0].updates_until_s = MARCH;
            w.grants[0][0].value = s;
            struct grant many[20];
            for (size_t i = 0; i < COUNT(many); i++)
                many[i] = w.grants[0][0];
            w.licenses[0].grants = many;
            w.licenses[0].n_grants = COUNT(many);
            w.ent.renew_url = s;
            w.ent.support_contact = fill % 2 ? s : S("");
            w.query.repository = s;
            d = (struct decision){.verdict = VERDICT_DENY, .reason = r, .license = r == REASON_NO_LICENSE ? NULL : &w.licenses[0]};
            decision_message(&w.ent, &d, &w.query, s, &b);
            if (b.n > 600 || b.n == 0 || b.n != strlen(b.p))
                fail_msg("%s: %zu bytes", reason_text(r), b.n);
            for (size_t i = 0; i < b.n; i++)
                if ((unsigned char)b.p[i] < 0x20 || b.p[i] == 0x7f)
                    fail_msg("%s: byte %zu is %d", reason_text(r), i, b.p[i]);
            world_free(&w);
        }
    }
    sb_free(&b);
}

/* A cut never leaves half a character. */
static void messages_stay_utf8(void **state)
{
    static const struct row row = {"", {{LICENSE_REVOKED}}, {V("2.0.0")}, 0};
    static const struct row all_long = {"", {{ACT, .grants = {RANGE("^1"), RANGE("^1"), RANGE("^1")}}}, {V("2.0.0")}, 0};
    struct strbuf b = {0}, name = {0};
    (void)state;
    for (int pad = 0; pad < 8; pad++) { /* from 4 on everything is long, and the whole sentence is cut */
        struct world w;
        struct decision d;
        sb_reset(&name);
        for (int i = 0; i < pad; i++)
            sb_add_char(&name, 'x');
        for (int i = 0; i < 100; i++)
            sb_addc(&name, "\xe2\x82\xac");
        world_make(pad < 4 ? &row : &all_long, &w);
        w.licenses[0].name = sb_str(&name);
        if (pad >= 4) {
            w.licenses[0].application_slug = w.ent.support_contact = sb_str(&name);
            w.grants[0][0].value = w.grants[0][1].value = w.grants[0][2].value = sb_str(&name);
        }
        decision_make(&w.ent, &w.query, &d);
        decision_message(&w.ent, &d, &w.query, pad < 4 ? S("2.0.0") : sb_str(&name), &b);
        if (pad >= 4)
            assert_in_range(b.n, 590, 600);
        for (size_t i = 0; i < b.n; i++)
            if ((unsigned char)b.p[i] == 0xe2) {
                assert_int_equal((unsigned char)b.p[i + 1], 0x82);
                assert_int_equal((unsigned char)b.p[i + 2], 0xac);
                i += 2;
            } else {
                assert_true((unsigned char)b.p[i] < 0x80);
            }
        world_free(&w);
    }
    sb_free(&b);
    sb_free(&name);
}

static void reasons_have_texts(void **state)
{
    (void)state;
    assert_string_equal(reason_text(REASON_VERSION_NOT_GRANTED), "version_not_granted");
    assert_string_equal(reason_text(REASON_UNKNOWN), "unknown");
    assert_string_equal(reason_text(REASON_RATE_LIMITED), "rate_limited");
    assert_string_equal(reason_text((enum reason)999), "unknown");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_policy),           cmocka_unit_test(decisions_hold_until_told), cmocka_unit_test(valid_until),
        cmocka_unit_test(any_usable),         cmocka_unit_test(of_one_license),            cmocka_unit_test(messages),
        cmocka_unit_test(messages_are_bounded), cmocka_unit_test(messages_stay_utf8),        cmocka_unit_test(messages_of_odd_licenses),
        cmocka_unit_test(reasons_have_texts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
