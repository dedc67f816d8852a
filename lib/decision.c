/* The decision: who may have what now, why not, and the sentence for a person. A pure function without allocation (but for the
 * sentence); the table in tests/unit/test_decision.c is the policy.
 *
 * A license in force is asked for a grant that selects the version; one that allows is enough. Where none allows, the reason
 * told is of the license that came closest, in this order from the closest: quota_exceeded, ip_not_allowed, grant_window,
 * maintenance_ended, version_not_granted (these five only of a license in force, or of one that keeps released versions),
 * expired, scheduled, suspended, inactive, revoked.
 *
 * No answer depends on whether content that is not granted exists. A tag's text says by itself which exact, range, glob and
 * all grants select it, so those may tell of closed windows and ended maintenance; channel and digest grants are matched
 * by what was found under the tag, so unless they allow they tell nothing. By digest every near miss is not_in_closure. */
#include "pullgate/decision.h"

#include <string.h>

#include "pullgate/clock.h"
#include "pullgate/semver.h"

const char *reason_text(enum reason r)
{
    static const char *const texts[] = {
#define X(name, text) [REASON_##name] = text,
        REASON_LIST(X)
#undef X
    };
    return (size_t)r < sizeof texts / sizeof *texts ? texts[r] : "unknown";
}

/* How close to allowing; zero for what is no denial of a license. */
static unsigned closeness(enum reason r)
{
    static const uint8_t order[] = {
        [REASON_QUOTA_EXCEEDED] = 11,
        [REASON_IP_NOT_ALLOWED] = 10,
        [REASON_GRANT_WINDOW] = 9,
        [REASON_MAINTENANCE_ENDED] = 8,
        [REASON_VERSION_NOT_GRANTED] = 7,
        [REASON_NOT_IN_CLOSURE] = 7,
        [REASON_EXPIRED] = 6,
        [REASON_SCHEDULED] = 5,
        [REASON_SUSPENDED] = 4,
        [REASON_INACTIVE] = 3,
        [REASON_REVOKED] = 2,
        [REASON_UNKNOWN] = 1, /* a status that is none */
        [REASON_RATE_LIMITED] = 0,
    };
    return order[r];
}

static bool names_contain(const struct str *names, size_t n, struct str name)
{
    for (size_t i = 0; i < n; i++)
        if (str_eq(names[i], name))
            return true;
    return false;
}

static void bound(int64_t *until, int64_t t, int64_t now_s)
{
    if (t != 0 && t > now_s && t < *until)
        *until = t;
}

/* ---- one candidate under one grant ---------------------------------------------------------- */

/* A candidate while its license is looked at: its version is read once, and only for ranges. */
struct view {
    const struct candidate *c;
    bool is_read, is_semver;
    struct semver semver;
};

/* "sha256-<digits>…": what cosign and the referrers fallback hang on another manifest. Broader than oci_subject_tag_parse():
 * whatever looks like one is no version, so that `all` never hands out what belongs to an ungranted subject. */
static bool is_subject_tag(struct str tag)
{
    if (!str_starts(tag, S("sha256-")) && !str_starts(tag, S("sha512-")))
        return false;
    if (tag.n < 7 + 64)
        return false;
    for (size_t i = 7; i < 7 + 64; i++) {
        char c = tag.p[i];
        if (!((c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F')))
            return false;
    }
    return true;
}

static bool range_selects(const struct grant *g, struct view *v)
{
    if (!g->range)
        return false;
    if (!v->is_read) {
        v->is_semver = semver_parse(v->c->version, &v->semver);
        v->is_read = true;
    }
    return v->is_semver && semver_range_matches(g->range, &v->semver, g->include_prerelease);
}

/* Was it this content that the tag stood for since the grant? */
static bool binding_holds(const struct grant *g, struct str repository, const struct candidate *c)
{
    switch (g->on_move) {
    case GRANT_PIN:
        for (size_t i = 0; i < g->n_pins; i++)
            if (str_eq(g->pins[i].repository, repository) && str_eq(g->pins[i].tag, c->tag))
                return !digest_is_set(&c->digest) || digest_eq(&c->digest, &g->pins[i].digest);
        return c->until_s == 0; /* bound to nothing yet: what it is now will be the pin */
    case GRANT_FOLLOW:
        return c->until_s == 0 || c->until_s >= g->granted_at_s;
    }
    return false;
}

static bool selects(const struct grant *g, struct str repository, struct view *v)
{
    const struct candidate *c = v->c;

    if (g->selector == SELECTOR_DIGEST) /* the content itself, whatever tag it stands or stood under */
        return digest_is_set(&c->digest) && digest_eq(&c->digest, &g->digest);
    if (c->version.n == 0 || names_contain(g->excluded, g->n_excluded, c->version))
        return false;
    switch (g->selector) {
    case SELECTOR_EXACT:
        if (!str_eq(c->version, g->value))
            return false;
        break;
    case SELECTOR_RANGE:
        if (!range_selects(g, v))
            return false;
        break;
    case SELECTOR_GLOB:
        if (!glob_matches(g->value, c->version))
            return false;
        break;
    case SELECTOR_CHANNEL:
        if (c->channel.n == 0 || !str_eq(c->channel, g->value))
            return false;
        break;
    case SELECTOR_ALL:
        break;
    case SELECTOR_NONE:
    case SELECTOR_DIGEST:
    default:
        return false;
    }
    return binding_holds(g, repository, c);
}

static bool tells_nothing(const struct grant *g)
{
    return g->selector == SELECTOR_CHANNEL || g->selector == SELECTOR_DIGEST;
}

/* GRANTED, or what stands against it. */
static enum reason grant_reason(const struct license *l, bool kept, const struct grant *g, const struct decision_query *q, struct view *v)
{
    enum reason r = REASON_GRANTED;
    int64_t released = v->c->released_at_s;

    if (!selects(g, q->repository, v))
        return REASON_VERSION_NOT_GRANTED;
    if (kept && !(released > 0 && released <= l->terms.expires_at_s))
        return REASON_EXPIRED;
    if (l->updates_until_s != 0 && !(released > 0 && released <= l->updates_until_s))
        r = REASON_MAINTENANCE_ENDED;
    else if ((g->not_before_s != 0 && q->now_s < g->not_before_s) || (g->not_after_s != 0 && q->now_s >= g->not_after_s))
        r = REASON_GRANT_WINDOW;
    return r != REASON_GRANTED && tells_nothing(g) ? REASON_VERSION_NOT_GRANTED : r;
}

/* ---- one license ---------------------------------------------------------------------------- */

static bool addr_allowed(const struct license *l, const uint8_t *addr)
{
    if (l->n_allowed_cidrs == 0)
        return true;
    for (size_t i = 0; addr && i < l->n_allowed_cidrs; i++)
        if (cidr_contains(&l->allowed_cidrs[i], addr))
            return true;
    return false;
}

static bool quota_allows(const struct license *l, const struct decision_query *q)
{
    if (l->quota_until_s != 0 && q->now_s >= l->quota_until_s)
        return true; /* a further window has begun */
    if (l->quota_exceeded)
        return false;
    if (!l->instances_full || q->any_instance)
        return true;
    size_t lo = 0, hi = l->n_instances;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (l->instances[mid] == q->instance)
            return q->instance != 0;
        if (l->instances[mid] < q->instance)
            lo = mid + 1;
        else
            hi = mid;
    }
    return false;
}

/* The best that its grants give; sets grant and candidate when GRANTED. */
static enum reason license_grants_reason(const struct license *l, bool kept, const struct decision_query *q, struct decision *d)
{
    enum reason best = REASON_VERSION_NOT_GRANTED;

    for (size_t g = 0; g < l->n_grants; g++) {
        bound(&d->valid_until_s, l->grants[g].not_before_s, q->now_s);
        bound(&d->valid_until_s, l->grants[g].not_after_s, q->now_s);
    }
    for (size_t i = 0; i < q->n_candidates; i++) {
        struct view v = {.c = &q->candidates[i]};
        if (is_subject_tag(v.c->tag))
            continue;
        for (size_t g = 0; g < l->n_grants; g++) {
            const struct grant *grant = &l->grants[g];
            if (grant->n_repositories && !names_contain(grant->repositories, grant->n_repositories, q->repository))
                continue;
            enum reason r = grant_reason(l, kept, grant, q, &v);
            if (r == REASON_GRANTED) {
                d->grant = grant;
                d->candidate = v.c;
                return r;
            }
            if (closeness(r) > closeness(best))
                best = r;
        }
    }
    return kept ? REASON_EXPIRED : best;
}

/* The license names the repository: that was asked before. */
static enum reason license_reason(const struct license *l, const struct decision_query *q, struct decision *d)
{
    bool kept = false;
    enum reason r;

    switch (license_effective(&l->terms, q->now_s)) {
    case LICENSE_EFF_REVOKED:
        return REASON_REVOKED;
    case LICENSE_EFF_SUSPENDED:
        return REASON_SUSPENDED;
    case LICENSE_EFF_INACTIVE:
        return REASON_INACTIVE;
    case LICENSE_EFF_SCHEDULED:
        return REASON_SCHEDULED;
    case LICENSE_EFF_EXPIRED:
        if (l->on_expiry != LICENSE_ON_EXPIRY_KEEP_RELEASED)
            return REASON_EXPIRED;
        kept = true;
        break;
    case LICENSE_EFF_GRACE:
    case LICENSE_EFF_EXPIRING:
    case LICENSE_EFF_ACTIVE:
        break;
    case LICENSE_EFF_NONE:
    default:
        return REASON_UNKNOWN;
    }
    r = license_grants_reason(l, kept, q, d);
    if (r == REASON_GRANTED) {
        if (!addr_allowed(l, q->client_addr))
            return REASON_IP_NOT_ALLOWED;
        return quota_allows(l, q) ? REASON_GRANTED : REASON_QUOTA_EXCEEDED;
    }
    if (q->is_digest && (r == REASON_VERSION_NOT_GRANTED || r == REASON_MAINTENANCE_ENDED || r == REASON_GRANT_WINDOW))
        return REASON_NOT_IN_CLOSURE;
    return r;
}

static void license_decide(const struct license *l, const struct decision_query *q, struct decision *ret)
{
    struct decision d = {.license = l, .valid_until_s = license_next_change(&l->terms, q->now_s)};

    bound(&d.valid_until_s, l->quota_until_s, q->now_s);
    d.reason = license_reason(l, q, &d);
    d.verdict = d.reason == REASON_GRANTED ? VERDICT_ALLOW : VERDICT_DENY;
    if (d.verdict != VERDICT_ALLOW) {
        d.grant = NULL;
        d.candidate = NULL;
    }
    *ret = d;
}

/* Of two licenses with one reason, the one a person means: of two that expired the later, of two to come the sooner. */
static bool speaks_better(const struct decision *a, const struct decision *than)
{
    unsigned ca = closeness(a->reason), cb = closeness(than->reason);

    if (ca != cb)
        return ca > cb;
    if (a->reason == REASON_EXPIRED)
        return a->license->terms.expires_at_s > than->license->terms.expires_at_s;
    if (a->reason == REASON_SCHEDULED)
        return a->license->terms.starts_at_s < than->license->terms.starts_at_s;
    return false;
}

/* ---- all of them ---------------------------------------------------------------------------- */

static bool decide_without_licenses(const struct entitlement *ent, const struct decision_query *q, struct decision *ret)
{
    *ret = (struct decision){.valid_until_s = INT64_MAX};
    if (!ent || q->now_s <= 0)
        return true; /* unknown: no entitlement at hand, or a clock that stands before 1970 */
    if (ent->customer_disabled) {
        ret->verdict = VERDICT_DENY;
        ret->reason = REASON_CUSTOMER_DISABLED;
        return true;
    }
    ret->verdict = VERDICT_DENY;
    ret->reason = REASON_NO_LICENSE;
    return false;
}

static bool counts(const struct license *l, const struct decision_query *q)
{
    return (q->license_id.n == 0 || str_eq(l->id, q->license_id)) && names_contain(l->repositories, l->n_repositories, q->repository);
}

void decision_make(const struct entitlement *ent, const struct decision_query *q, struct decision *ret)
{
    int64_t until = INT64_MAX;

    if (decide_without_licenses(ent, q, ret))
        return;
    for (size_t i = 0; i < ent->n_licenses; i++) {
        struct decision d;
        if (!counts(&ent->licenses[i], q))
            continue;
        license_decide(&ent->licenses[i], q, &d);
        bound(&until, d.valid_until_s, q->now_s);
        if (d.verdict == VERDICT_ALLOW || !ret->license || speaks_better(&d, ret))
            *ret = d;
        if (d.verdict == VERDICT_ALLOW)
            break;
    }
    ret->valid_until_s = until;
}

void decision_of_license(const struct entitlement *ent, const struct license *l, const struct decision_query *q, struct decision *ret)
{
    if (decide_without_licenses(ent, q, ret) || !counts(l, q))
        return;
    license_decide(l, q, ret);
}

bool decision_any_usable(const struct entitlement *ent, struct str repository, int64_t now_s)
{
    if (!ent || ent->customer_disabled)
        return false;
    for (size_t i = 0; i < ent->n_licenses; i++) {
        const struct license *l = &ent->licenses[i];
        if (names_contain(l->repositories, l->n_repositories, repository) && license_usable(l, now_s))
            return true;
    }
    return false;
}

/* ---- the sentence --------------------------------------------------------------------------- */

#define MESSAGE_MAX 600 /* bytes; clients and proxies in front were seen to pass 750 in a reason phrase (FACTS 6.1) */
#define NAME_MAX_BYTES 80
#define REASON_MAX_BYTES 120
#define REFERENCE_MAX_BYTES 160
#define CONTACT_MAX_BYTES 160
#define GRANTED_MAX_BYTES 120
#define GRANTED_MAX_GRANTS 8

/* At most max bytes, control bytes as spaces, cut between UTF-8 characters. It may stand in a status line. */
static void add_text(struct strbuf *b, struct str s, size_t max)
{
    size_t n = s.n;

    if (n > max) {
        n = max;
        while (n > 0 && ((unsigned char)s.p[n] & 0xc0) == 0x80)
            n--;
    }
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)s.p[i];
        sb_add_char(b, c < 0x20 || c == 0x7f ? ' ' : (char)c);
    }
    if (n < s.n)
        sb_addc(b, "...");
}

static void add_license(struct strbuf *b, const struct license *l)
{
    sb_addc(b, "license \"");
    add_text(b, l->name.n ? l->name : l->id, NAME_MAX_BYTES);
    sb_add_char(b, '"');
    if (l->application_slug.n) {
        sb_addc(b, " for ");
        add_text(b, l->application_slug, NAME_MAX_BYTES);
    }
}

static void add_date(struct strbuf *b, int64_t t_s)
{
    char buf[CLOCK_RFC3339_MAX];

    sb_addc(b, clock_date(t_s, buf));
}

/* With the hour when the day alone would not tell whether it is past. */
static void add_moment(struct strbuf *b, int64_t t_s, int64_t now_s)
{
    char day[CLOCK_RFC3339_MAX], today[CLOCK_RFC3339_MAX], full[CLOCK_RFC3339_MAX];

    if (strcmp(clock_date(t_s, day), clock_date(now_s, today)) == 0)
        sb_addc(b, clock_rfc3339(t_s, full));
    else
        sb_addc(b, day);
}

static void add_contact(struct strbuf *b, const struct entitlement *ent)
{
    if (ent->support_contact.n) {
        sb_addc(b, " Contact ");
        add_text(b, ent->support_contact, CONTACT_MAX_BYTES);
    } else if (ent->renew_url.n) {
        sb_addc(b, " See ");
        add_text(b, ent->renew_url, CONTACT_MAX_BYTES);
    } else {
        sb_addc(b, " Contact your vendor.");
    }
}

static void add_renewal(struct strbuf *b, const struct entitlement *ent)
{
    if (ent->renew_url.n) {
        sb_addc(b, " Renew: ");
        add_text(b, ent->renew_url, CONTACT_MAX_BYTES);
    } else {
        add_contact(b, ent);
    }
}

static void add_reference(struct strbuf *b, const struct decision_query *q, struct str reference)
{
    sb_addc(b, q->is_digest || str_index(reference, ':') >= 0 ? "digest " : "version ");
    add_text(b, reference, REFERENCE_MAX_BYTES);
}

/* "granted: ^1.2, channel stable": what the customer bought, in short. */
static void add_granted(struct strbuf *b, const struct license *l, struct str repository)
{
    size_t begin = b->n, shown = 0;

    for (size_t i = 0; i < l->n_grants; i++) {
        const struct grant *g = &l->grants[i];
        if (g->n_repositories && !names_contain(g->repositories, g->n_repositories, repository))
            continue;
        sb_addc(b, shown ? ", " : "granted: ");
        if (shown == GRANTED_MAX_GRANTS || b->n - begin > GRANTED_MAX_BYTES) {
            sb_addc(b, "...");
            return;
        }
        shown++;
        if (g->selector == SELECTOR_ALL) {
            sb_addc(b, "all versions");
            continue;
        }
        if (g->selector == SELECTOR_CHANNEL)
            sb_addc(b, "channel ");
        add_text(b, g->value, g->selector == SELECTOR_DIGEST ? 19 : 40); /* "sha256:" and 12 digits */
    }
    if (!shown)
        sb_addc(b, "nothing granted");
}

static void add_expiry(struct strbuf *b, const struct license_terms *t)
{
    int64_t grace, end;

    sb_addc(b, " expired on ");
    add_date(b, t->expires_at_s);
    if (t->grace_days > 0 && !__builtin_mul_overflow(t->grace_days, (int64_t)86400, &grace) &&
        !__builtin_add_overflow(t->expires_at_s, grace, &end)) {
        sb_addc(b, " (grace ended ");
        add_date(b, end);
        sb_add_char(b, ')');
    }
}

static void add_status_reason(struct strbuf *b, const struct license *l)
{
    if (l->status_reason.n) {
        sb_addc(b, " (");
        add_text(b, l->status_reason, REASON_MAX_BYTES);
        sb_add_char(b, ')');
    }
    sb_add_char(b, '.');
}

static void message_of_license(struct strbuf *b, const struct entitlement *ent, const struct decision *d, const struct decision_query *q,
                               struct str reference)
{
    const struct license *l = d->license;

    add_license(b, l);
    switch (d->reason) {
    case REASON_REVOKED:
        sb_addc(b, " was revoked");
        add_status_reason(b, l);
        add_contact(b, ent);
        break;
    case REASON_SUSPENDED:
        sb_addc(b, " is suspended");
        add_status_reason(b, l);
        add_contact(b, ent);
        break;
    case REASON_INACTIVE:
        sb_addc(b, " is not active");
        if (!l->status_reason.n)
            sb_addc(b, ": it awaits activation by the vendor");
        add_status_reason(b, l);
        add_contact(b, ent);
        break;
    case REASON_SCHEDULED:
        sb_addc(b, " starts on ");
        add_moment(b, l->terms.starts_at_s, q->now_s);
        sb_addc(b, "; nothing can be pulled before.");
        break;
    case REASON_EXPIRED:
        add_expiry(b, &l->terms);
        if (l->on_expiry == LICENSE_ON_EXPIRY_KEEP_RELEASED)
            sb_addc(b, "; granted versions released until then can still be pulled");
        sb_add_char(b, '.');
        add_renewal(b, ent);
        break;
    case REASON_IP_NOT_ALLOWED:
        sb_addc(b, " may not be used from this network address");
        if (q->client_addr) {
            sb_addc(b, " (");
            addr_print(q->client_addr, b);
            sb_add_char(b, ')');
        }
        sb_add_char(b, '.');
        add_contact(b, ent);
        break;
    case REASON_QUOTA_EXCEEDED:
        if (l->quota_exceeded)
            sb_addc(b, " has used up its quota");
        else
            sb_addf(b, " is in use by all %zu installations it allows", l->n_instances);
        if (l->quota_until_s > q->now_s) {
            sb_addc(b, " until ");
            add_moment(b, l->quota_until_s, q->now_s);
        }
        sb_add_char(b, '.');
        add_contact(b, ent);
        break;
    case REASON_MAINTENANCE_ENDED:
        sb_addc(b, " includes updates released until ");
        add_date(b, l->updates_until_s);
        sb_addc(b, ", not ");
        add_reference(b, q, reference);
        sb_add_char(b, '.');
        add_renewal(b, ent);
        break;
    case REASON_GRANT_WINDOW:
        sb_addc(b, " grants ");
        add_reference(b, q, reference);
        sb_addc(b, ", but not at this time.");
        add_contact(b, ent);
        break;
    case REASON_VERSION_NOT_GRANTED:
    case REASON_NOT_IN_CLOSURE:
        sb_addc(b, " does not include ");
        add_reference(b, q, reference);
        sb_addc(b, " (");
        add_granted(b, l, q->repository);
        if (l->updates_until_s) {
            sb_addc(b, "; updates until ");
            add_date(b, l->updates_until_s);
        }
        sb_addc(b, ").");
        add_contact(b, ent);
        break;
    case REASON_GRANTED:
        sb_addc(b, " grants ");
        add_reference(b, q, reference);
        sb_add_char(b, '.');
        break;
    case REASON_UNKNOWN:
    case REASON_NO_LICENSE:
    case REASON_CUSTOMER_DISABLED:
    case REASON_CREDENTIAL_EXPIRED:
    case REASON_RATE_LIMITED:
    default:
        sb_addc(b, " is in no known state.");
        add_contact(b, ent);
        break;
    }
}

void decision_message(const struct entitlement *ent, const struct decision *d, const struct decision_query *q, struct str reference,
                      struct strbuf *ret)
{
    static const struct entitlement nobody;

    if (!ent)
        ent = &nobody;
    sb_reset(ret);
    if (d->license) {
        message_of_license(ret, ent, d, q, reference);
    } else if (d->reason == REASON_NO_LICENSE) {
        sb_addc(ret, "no license for repository ");
        add_text(ret, q->repository, OCI_NAME_MAX);
        sb_add_char(ret, '.');
        add_contact(ret, ent);
    } else if (d->reason == REASON_CUSTOMER_DISABLED) {
        sb_addc(ret, "this customer account is disabled.");
        add_contact(ret, ent);
    } else if (d->reason == REASON_CREDENTIAL_EXPIRED) {
        sb_addc(ret, "this credential has expired.");
        add_contact(ret, ent);
    } else if (d->reason == REASON_RATE_LIMITED) {
        sb_addc(ret, "too many requests, try again later.");
    } else {
        sb_addc(ret, "the entitlement cannot be checked at the moment, try again later.");
    }
    if (ret->n > MESSAGE_MAX) { /* the parts are bounded; this keeps the promise when their bounds are raised */
        size_t n = MESSAGE_MAX;
        while (((unsigned char)ret->p[n] & 0xc0) == 0x80) /* ends: every sentence begins in ASCII */
            n--;
        ret->n = n;
        ret->p[n] = '\0';
    }
}
