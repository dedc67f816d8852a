/* What the customer has and which repository it is: two facts. Holds the customer's rate and its share of requests in flight.
 * The decision itself is lib/decision.c, asked by content.c where the digests are known. */
#include "exchange.h"

#include "guard.h"

static enum next customer_known(struct exchange *ex, struct fact *fact, bool degraded);
static enum next repository_known(struct exchange *ex, struct fact *fact, bool degraded);

static void on_fact(struct exchange *ex, enum err err, struct fact *fact, bool degraded,
                    enum next (*known)(struct exchange *, struct fact *, bool))
{
    ex->facts_op = NULL;
    if (err != ERR_OK) {
        ex->hold_until_ms = 1; /* facts have held it already */
        exchange_hold_or_fail(ex, err, 0, "entitlement");
        return;
    }
    if (known(ex, fact, degraded) == NEXT_STEP)
        exchange_run(ex);
}

static void on_customer(void *ctx, enum err err, struct fact *fact, bool degraded)
{
    on_fact(EXCHANGE(ctx), err, fact, degraded, customer_known);
}

static void on_repository(void *ctx, enum err err, struct fact *fact, bool degraded)
{
    on_fact(EXCHANGE(ctx), err, fact, degraded, repository_known);
}

static enum next repository_known(struct exchange *ex, struct fact *fact, bool degraded)
{
    /* A repository of another vendor is no repository to this customer. */
    if (fact != NULL && str_eq_c(ex->customer->entitlement->vendor_id, fact->repository->vendor_id))
        ex->repository = fact_ref(fact);
    ex->degraded = ex->degraded || degraded;
    ex->step = EX_ANSWER;
    return NEXT_STEP;
}

/* The customer's rate is spent: 429 at once. As many exchanges of it as may be are being decided: a storm of a cold cluster, which
 * is over in a moment; those wait their turn as long as anything waits. Transfers do not count, limits.streams_per_worker bounds them. */
static enum next too_many(struct exchange *ex, unsigned retry_after_s)
{
    struct strbuf fields = {0};

    if (retry_after_s == 0 && exchange_wait_turn(ex))
        return NEXT_WAIT;
    sb_addf(&fields, "Retry-After: %u\r\n", retry_after_s > 0 ? retry_after_s : 1);
    ex->reason = REASON_RATE_LIMITED;
    enum next n = respond_oci_error(ex, 429, "TOOMANYREQUESTS", S("too many requests of this customer at once, try again"), END_RATE_LIMITED, fields.p);
    sb_free(&fields);
    return n;
}

static enum next customer_known(struct exchange *ex, struct fact *fact, bool degraded)
{
    struct worker *w = ex->w;
    struct fact *repository = NULL;
    struct str id = str_c(ex->credential->credential->customer_id);
    unsigned retry_after_s = 1;
    bool repository_degraded = false;

    if (fact == NULL) /* deleted between the two look-ups, or never projected whole */
        return authn_refuse(ex, S("the user name, credential or license key is not valid"), REASON_UNKNOWN, false);
    ex->customer = fact_ref(fact);
    ex->degraded = ex->degraded || degraded;
    if (fact->entitlement->customer_disabled) {
        ex->reason = REASON_CUSTOMER_DISABLED;
        return respond_oci_error(ex, 403, "DENIED", S("this customer account is disabled, contact the vendor"), END_DENIED, NULL);
    }
    if (!ex->in_flight) {
        if (!guard_customer_begin(w->proxy->guard, id, (uint64_t)fact->entitlement->requests_per_second, &retry_after_s))
            return too_many(ex, retry_after_s);
        ex->in_flight = true;
    }
    if (ex->oci.kind == OCI_PING || ex->oci.kind == OCI_CATALOG) {
        ex->step = EX_ANSWER;
        return NEXT_STEP;
    }
    if (facts_peek(w->facts, FACT_REPOSITORY, ex->oci.repository, &repository, &repository_degraded) == ERR_OK)
        return repository_known(ex, repository, repository_degraded);
    ex->waited = true;
    ex->facts_op = facts_get(w->facts, FACT_REPOSITORY, ex->oci.repository, on_repository, ex);
    return NEXT_WAIT;
}

enum next entitle_step(struct exchange *ex)
{
    struct fact *customer = NULL;
    struct str id = str_c(ex->credential->credential->customer_id);
    bool degraded = false;

    if (facts_peek(ex->w->facts, FACT_CUSTOMER, id, &customer, &degraded) == ERR_OK)
        return customer_known(ex, customer, degraded);
    ex->waited = true;
    ex->facts_op = facts_get(ex->w->facts, FACT_CUSTOMER, id, on_customer, ex);
    return NEXT_WAIT;
}
