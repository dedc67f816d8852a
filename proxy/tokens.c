/* The token endpoint: GET with Basic, and the OAuth2 POST form with grant_type=password. A token says who asks and for which
 * repositories he holds a license, in whatever state: what may be pulled is decided on each request, where the refusal can be read.
 * Sources: distribution docs "Token Authentication Specification" and "OAuth2 Token Authentication". */
#include "exchange.h"

#include <string.h>

#include "pullgate/clock.h"
#include "pullgate/mem.h"
#include "pullgate/token.h"

struct scopes { /* collected from `scope` parameters */
    struct token_scope list[TOKEN_MAX_SCOPES];
    size_t n;
    struct strbuf text; /* what list borrows from */
    bool too_many;
};

static void on_pair(void *ctx, struct str key, struct str value)
{
    struct scopes *s = ctx;

    if (!str_eq(key, S("scope")))
        return;
    if (s->text.n + value.n > 8192) {
        s->too_many = true;
        return;
    }
    sb_add(&s->text, value);
    sb_add_char(&s->text, ' ');
}

static bool licensed_for(const struct entitlement *ent, struct str only_license, struct str repository)
{
    for (size_t i = 0; i < ent->n_licenses; i++) {
        const struct license *l = &ent->licenses[i];
        if (only_license.n > 0 && !str_eq(only_license, l->id))
            continue;
        for (size_t k = 0; k < l->n_repositories; k++)
            if (str_eq(l->repositories[k], repository))
                return true;
    }
    return false;
}

/* The token dies no later than the next license of its scope does. */
static int64_t expiry_bound(const struct entitlement *ent, struct str repository, int64_t now, int64_t bound)
{
    for (size_t i = 0; i < ent->n_licenses; i++) {
        const struct license *l = &ent->licenses[i];
        int64_t end = l->terms.expires_at_s + l->terms.grace_days * 86400;
        if (l->terms.expires_at_s == 0 || end <= now || end >= bound)
            continue;
        for (size_t k = 0; k < l->n_repositories; k++)
            if (str_eq(l->repositories[k], repository)) {
                bound = end;
                break;
            }
    }
    return bound;
}

static enum next token_issue_for(struct exchange *ex)
{
    struct worker *w = ex->w;
    const struct fact_credential *c = ex->credential->credential;
    const struct entitlement *ent = ex->customer->entitlement;
    struct scopes scopes = {0};
    struct strbuf token = {0}, body = {0}, service = {0};
    char when[CLOCK_RFC3339_MAX];
    int64_t now = clock_now_s();
    struct str params = ex->head->method == HEAD_POST ? edge_req_body(ex->req) : ex->head->query;

    if (query_get(params, "service", &service) && service.n > 0 && !str_eq_c(sb_str(&service), w->proxy->service)) {
        sb_free(&service);
        return respond_oci_error(ex, 400, "UNAUTHORIZED", S("the service asked for is not this registry"), END_REFUSED, NULL);
    }
    sb_free(&service);
    query_each(params, on_pair, &scopes);
    if (scopes.text.n > 0)
        scopes.n = token_scopes_parse(sb_str(&scopes.text), scopes.list, TOKEN_MAX_SCOPES);
    struct token_claims claims = {
        .issuer = str_c(w->proxy->service),
        .audience = str_c(w->proxy->service),
        .credential_hash = {ex->credential_hash, CREDENTIAL_HASH_MAX - 1},
        .subject = str_c(c->customer_slug),
        .issued_at_s = now,
        .expires_at_s = now + TOKEN_TTL_S,
    };
    if (c->expires_at_s != 0 && c->expires_at_s < claims.expires_at_s)
        claims.expires_at_s = c->expires_at_s;
    for (size_t i = 0; i < scopes.n; i++) {
        bool again = false;
        for (size_t k = 0; k < claims.n_repositories && !again; k++)
            again = str_eq(claims.repositories[k], scopes.list[i].repository);
        if (again || !scopes.list[i].pull || !licensed_for(ent, str_c(c->license_id), scopes.list[i].repository))
            continue;
        claims.repositories[claims.n_repositories++] = scopes.list[i].repository;
        claims.expires_at_s = expiry_bound(ent, scopes.list[i].repository, now, claims.expires_at_s);
    }
    token_issue(w->proxy->keys, &claims, &token);
    sb_addf(&body, "{\"token\":\"%s\",\"access_token\":\"%s\",\"token_type\":\"Bearer\",\"expires_in\":%lld,\"issued_at\":\"%s\"}\n", token.p, token.p,
            (long long)(claims.expires_at_s - now), clock_rfc3339(now, when));
    enum next n = respond_json(ex, 200, "application/json", sb_str(&body), "Pragma: no-cache\r\n", END_OK);
    mem_cleanse(body.p, body.n);
    mem_cleanse(token.p, token.n);
    sb_free(&body);
    sb_free(&token);
    sb_free(&scopes.text);
    return n;
}

static enum next refuse(struct exchange *ex, struct str message, enum reason reason)
{
    return authn_refuse(ex, message, reason, false);
}

static enum next customer_known(struct exchange *ex, struct fact *fact)
{
    if (fact == NULL)
        return refuse(ex, S("the user name, credential or license key is not valid"), REASON_UNKNOWN);
    ex->customer = fact_ref(fact);
    return token_issue_for(ex);
}

static void on_customer(void *ctx, enum err err, struct fact *fact, bool degraded)
{
    struct exchange *ex = EXCHANGE(ctx);

    ex->facts_op = NULL;
    ex->degraded = ex->degraded || degraded;
    if (err != ERR_OK) {
        ex->hold_until_ms = 1;
        exchange_hold_or_fail(ex, err, 0, "entitlement");
        return;
    }
    customer_known(ex, fact);
}

static enum next credential_known(struct exchange *ex, struct fact *fact)
{
    struct fact *customer = NULL;

    if (fact == NULL)
        return authn_refuse(ex, S("the user name, credential or license key is not valid"), REASON_UNKNOWN, true);
    ex->credential = fact_ref(fact);
    const struct fact_credential *c = fact->credential;
    if (c->expires_at_s != 0 && clock_now_s() >= c->expires_at_s) {
        struct strbuf message = {0};
        char date[CLOCK_RFC3339_MAX];
        sb_addf(&message, "credential \"%s\" expired on %s", c->name, clock_date(c->expires_at_s, date));
        enum next n = refuse(ex, sb_str(&message), REASON_CREDENTIAL_EXPIRED);
        sb_free(&message);
        return n;
    }
    if (facts_peek(ex->w->facts, FACT_CUSTOMER, str_c(c->customer_id), &customer, &ex->degraded) == ERR_OK)
        return customer_known(ex, customer);
    ex->facts_op = facts_get(ex->w->facts, FACT_CUSTOMER, str_c(c->customer_id), on_customer, ex);
    return NEXT_WAIT;
}

static void on_credential(void *ctx, enum err err, struct fact *fact, bool degraded)
{
    struct exchange *ex = EXCHANGE(ctx);

    ex->facts_op = NULL;
    ex->degraded = degraded;
    if (err != ERR_OK) {
        ex->hold_until_ms = 1;
        exchange_hold_or_fail(ex, err, 0, "credential");
        return;
    }
    credential_known(ex, fact);
}

/* username and password of the form; false: none, or not a password grant. */
static bool form_hash(struct exchange *ex, bool *ret_other_grant)
{
    struct strbuf grant = {0}, password = {0};
    struct str form = edge_req_body(ex->req);
    bool ok = false;

    if (query_get(form, "grant_type", &grant) && !str_eq(sb_str(&grant), S("password")))
        *ret_other_grant = true;
    else if (query_get(form, "password", &password))
        ok = credential_hash_presented(ex->w->proxy->keys, sb_str(&password), ex->credential_hash);
    mem_cleanse(password.p, password.n);
    sb_free(&password);
    sb_free(&grant);
    return ok;
}

enum next tokens_answer(struct exchange *ex)
{
    struct fact *fact = NULL;
    bool other_grant = false, named = false;

    if (ex->head->method == HEAD_POST) {
        named = form_hash(ex, &other_grant);
        if (other_grant)
            return respond_json(ex, 400, "application/json",
                                S("{\"error\":\"unsupported_grant_type\",\"error_description\":\"grant_type must be password; refresh tokens are not issued\"}\n"),
                                NULL, END_REFUSED);
    }
    if (!named)
        named = authn_basic_hash(ex->w, ex->head->authorization, ex->credential_hash);
    if (!named) {
        bool tried = ex->head->authorization.n > 0 || ex->head->method == HEAD_POST;
        return tried ? authn_refuse(ex, S("the user name, credential or license key is not valid"), REASON_UNKNOWN, true)
                     : refuse(ex, S("authentication required"), REASON_UNKNOWN);
    }
    struct str hash = {ex->credential_hash, CREDENTIAL_HASH_MAX - 1};
    if (facts_peek(ex->w->facts, FACT_CREDENTIAL, hash, &fact, &ex->degraded) == ERR_OK)
        return credential_known(ex, fact);
    ex->facts_op = facts_get(ex->w->facts, FACT_CREDENTIAL, hash, on_credential, ex);
    return NEXT_WAIT;
}
