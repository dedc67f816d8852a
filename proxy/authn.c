/* Who asks: Basic credential, license key or Bearer token -> the credential's fact. One challenge, always the same.
 * Decides nothing about what he may have. */
#include "exchange.h"

#include <string.h>

#include "pullgate/clock.h"
#include "pullgate/log.h"
#include "pullgate/mem.h"
#include "pullgate/seal.h"
#include "pullgate/token.h"

#include "guard.h"

#define AUTH_VALUE_MAX 5120     /* bytes of an Authorization value; a token has at most TOKEN_MAX */
#define AUTHCACHE_SLOTS 16384   /* a worker; one slot an Authorization value seen lately */
#define NAMES_CHAINS    1024    /* of lists of repositories; there are at most as many as slots, and mostly a few */

/* What an Authorization value was found to mean. It spares the base64, HMAC and signature work of a value seen before; whether the
 * credential still stands is asked from the facts on every request. The value itself is not kept, only its mark. */
struct auth_entry {
    struct str_mark mark;
    bool is_bearer;
    int64_t expires_at_s; /* of a token */
    char credential_hash[CREDENTIAL_HASH_MAX];
    struct names *names; /* of a token; NULL: no token, or one of no repository */
};

/* The repositories of tokens. Every pull brings a token of its own and names what others name: tokens of one list share it. */
struct names {
    struct names *chain;
    uint64_t hash;
    uint32_t refs; /* slots */
    char text[];   /* "name\nname\n" */
};

struct authcache {
    struct auth_entry slots[AUTHCACHE_SLOTS];
    struct names *names[NAMES_CHAINS];
};

static struct names *names_hold(struct authcache *c, struct str text)
{
    uint64_t hash = str_hash(text);
    struct names **at = &c->names[hash % NAMES_CHAINS], *n = *at;

    if (text.n == 0)
        return NULL;
    while (n != NULL && (n->hash != hash || !str_eq_c(text, n->text)))
        n = n->chain;
    if (n == NULL) {
        n = mem_zalloc(sizeof *n + text.n + 1);
        memcpy(n->text, text.p, text.n);
        n->hash = hash;
        n->chain = *at;
        *at = n;
    }
    n->refs++;
    return n;
}

static void names_drop(struct authcache *c, struct names *n)
{
    if (n == NULL || --n->refs > 0)
        return;
    struct names **at = &c->names[n->hash % NAMES_CHAINS];
    while (*at != n)
        at = &(*at)->chain;
    *at = n->chain;
    mem_free(n);
}

struct authcache *authcache_new(void)
{
    return NEW(struct authcache);
}

void authcache_free(struct authcache **c)
{
    if (*c == NULL)
        return;
    for (size_t i = 0; i < AUTHCACHE_SLOTS; i++)
        names_drop(*c, (*c)->slots[i].names);
    MEM_FREE(*c);
}

static bool token_names(const struct names *names, struct str name)
{
    struct str rest = names != NULL ? str_c(names->text) : S(""), line;

    while (str_next(&rest, '\n', &line))
        if (line.n > 0 && str_eq(line, name))
            return true;
    return false;
}

bool authn_basic_hash(struct worker *w, struct str authorization, char ret_hash[CREDENTIAL_HASH_MAX])
{
    struct str scheme, rest, user, password;
    struct strbuf plain = {0};
    bool ok = false;

    if (!str_cut(authorization, ' ', &scheme, &rest) || !str_eq_nocase(scheme, S("Basic")) || rest.n > AUTH_VALUE_MAX)
        return false;
    if (base64_decode(rest, &plain) && str_cut(sb_str(&plain), ':', &user, &password))
        ok = credential_hash_presented(w->proxy->keys, password, ret_hash);
    mem_cleanse(plain.p, plain.n);
    sb_free(&plain);
    return ok;
}

/* Fills *ret from the value; false: it names nobody. */
static bool auth_understand(struct worker *w, struct str value, struct auth_entry *ret)
{
    struct str scheme, token;
    struct token_claims claims;
    struct strbuf scratch = {0};
    struct strbuf names = {0};

    if (authn_basic_hash(w, value, ret->credential_hash))
        return true;
    if (!str_cut(value, ' ', &scheme, &token) || !str_eq_nocase(scheme, S("Bearer")))
        return false;
    if (token_verify(w->proxy->keys, token, str_c(w->proxy->service), str_c(w->proxy->service), clock_now_s(), &claims, &scratch) != ERR_OK ||
        claims.credential_hash.n != CREDENTIAL_HASH_MAX - 1) {
        sb_free(&scratch);
        return false;
    }
    ret->is_bearer = true;
    ret->expires_at_s = claims.expires_at_s;
    memcpy(ret->credential_hash, claims.credential_hash.p, claims.credential_hash.n);
    ret->credential_hash[claims.credential_hash.n] = '\0';
    for (size_t i = 0; i < claims.n_repositories; i++) {
        sb_add(&names, claims.repositories[i]);
        sb_add_char(&names, '\n');
    }
    ret->names = names_hold(w->auth, sb_str(&names));
    sb_free(&names);
    sb_free(&scratch);
    return true;
}

static bool auth_is(const struct auth_entry *e, struct str_mark mark)
{
    return e->mark.a == mark.a && e->mark.b == mark.b && e->credential_hash[0] != '\0';
}

/* A value has two slots to be in; a further one drives out the older of them. */
static const struct auth_entry *auth_look_up(struct worker *w, struct str value)
{
    struct str_mark mark = str_mark(value);
    struct auth_entry *pair = &w->auth->slots[mark.a % (AUTHCACHE_SLOTS / 2) * 2];

    if (auth_is(&pair[0], mark))
        return &pair[0];
    if (auth_is(&pair[1], mark))
        return &pair[1];
    struct auth_entry found = {.mark = mark};
    if (!auth_understand(w, value, &found))
        return NULL;
    names_drop(w->auth, pair[1].names);
    pair[1] = pair[0];
    pair[0] = found;
    return &pair[0];
}

static void challenge(struct exchange *ex, struct strbuf *fields, bool insufficient_scope)
{
    struct worker *w = ex->w;

    /* The token endpoint itself takes Basic, whatever the registry's challenge is. */
    if (ex->route != ROUTE_TOKEN && str_eq_c(str_c(w->cfg->proxy.challenge), "bearer")) {
        sb_addf(fields, "WWW-Authenticate: Bearer realm=\"%s/token\",service=\"%s\"", w->proxy->base_url, w->proxy->service);
        if (ex->oci.kind > OCI_PING && ex->oci.repository.n > 0)
            sb_addf(fields, ",scope=\"repository:%.*s:pull\"", STR(ex->oci.repository));
        if (insufficient_scope)
            sb_add(fields, S(",error=\"insufficient_scope\""));
        sb_add(fields, S("\r\n"));
    } else {
        sb_add(fields, S("WWW-Authenticate: Basic realm=\"Pullgate\"\r\n"));
    }
}

enum next authn_refuse(struct exchange *ex, struct str message, enum reason reason, bool count_failure)
{
    struct strbuf fields = {0};
    enum next n;

    ex->reason = reason;
    if (count_failure) {
        unsigned retry_after_s = 0;
        if (guard_auth_failed(ex->w->proxy->guard, edge_req_peer_addr(ex->req), ex->head->authorization, &retry_after_s)) {
            sb_addf(&fields, "Retry-After: %u\r\n", retry_after_s);
            n = respond_oci_error(ex, 429, "TOOMANYREQUESTS", S("too many failed sign-ins from this address, try again later"),
                                  END_RATE_LIMITED, fields.p);
            sb_free(&fields);
            return n;
        }
    }
    challenge(ex, &fields, ex->is_bearer && ex->credential != NULL);
    n = respond_oci_error(ex, 401, "UNAUTHORIZED", message, END_UNAUTHN, fields.p);
    sb_free(&fields);
    return n;
}

static enum next credential_known(struct exchange *ex, struct fact *fact, bool degraded)
{
    int64_t now = clock_now_s();

    if (fact == NULL)
        return authn_refuse(ex, S("the user name, credential or license key is not valid"), REASON_UNKNOWN, true);
    ex->credential = fact_ref(fact);
    ex->degraded = degraded;
    const struct fact_credential *c = fact->credential;
    if (c->expires_at_s != 0 && now >= c->expires_at_s) {
        struct strbuf message = {0};
        char date[CLOCK_RFC3339_MAX];
        sb_addf(&message, "credential \"%s\" expired on %s", c->name, clock_date(c->expires_at_s, date));
        enum next n = authn_refuse(ex, sb_str(&message), REASON_CREDENTIAL_EXPIRED, false);
        sb_free(&message);
        return n;
    }
    if (c->n_allowed_cidrs > 0) {
        bool inside = false;
        for (size_t i = 0; i < c->n_allowed_cidrs && !inside; i++)
            inside = cidr_contains(&c->allowed_cidrs[i], edge_req_peer_addr(ex->req));
        if (!inside) {
            ex->reason = REASON_IP_NOT_ALLOWED;
            struct strbuf message = {0};
            sb_addf(&message, "credential \"%s\" may not be used from %s", c->name, ex->peer);
            enum next n = respond_oci_error(ex, 403, "DENIED", sb_str(&message), END_DENIED, NULL);
            sb_free(&message);
            return n;
        }
    }
    ex->step = EX_ENTITLE;
    return NEXT_STEP;
}

static void on_credential(void *ctx, enum err err, struct fact *fact, bool degraded)
{
    struct exchange *ex = EXCHANGE(ctx);

    ex->facts_op = NULL;
    if (err != ERR_OK) {
        ex->hold_until_ms = 1; /* facts have held it already */
        exchange_hold_or_fail(ex, err, 0, "credential");
        return;
    }
    if (credential_known(ex, fact, degraded) == NEXT_STEP)
        exchange_run(ex);
}

enum next authn_step(struct exchange *ex)
{
    struct worker *w = ex->w;
    struct str value = ex->head->authorization;
    const struct auth_entry *auth = NULL;
    struct fact *fact = NULL;
    bool degraded = false;

    if (value.n == 0)
        return authn_refuse(ex, S("authentication required"), REASON_UNKNOWN, false);
    if (value.n <= AUTH_VALUE_MAX)
        auth = auth_look_up(w, value);
    if (auth == NULL || (auth->is_bearer && clock_now_s() >= auth->expires_at_s))
        return authn_refuse(ex, auth == NULL ? S("the user name, credential or license key is not valid") : S("the token has expired"), REASON_UNKNOWN,
                            auth == NULL);
    ex->is_bearer = auth->is_bearer;
    ex->token_covers = auth->is_bearer && token_names(auth->names, ex->oci.repository);
    memcpy(ex->credential_hash, auth->credential_hash, sizeof ex->credential_hash);
    struct str hash = {ex->credential_hash, CREDENTIAL_HASH_MAX - 1};
    if (facts_peek(w->facts, FACT_CREDENTIAL, hash, &fact, &degraded) == ERR_OK)
        return credential_known(ex, fact, degraded);
    ex->waited = true;
    ex->facts_op = facts_get(w->facts, FACT_CREDENTIAL, hash, on_credential, ex);
    return NEXT_WAIT;
}
