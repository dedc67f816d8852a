#include "licensequery.h"

#include <stdio.h>
#include <string.h>

#include "licenses.h"
#include "pullgate/license.h"
#include "pullgate/mem.h"

#define NAMED_CUSTOMERS_MAX 100 /* of one name */
#define KEY_SHOWN_CHARS     6

static const struct finder_sort SORTS[] = {
    {"created_at", "created_at", "licenses_by_created", false},
    {"updated_at", "updated_at", "licenses_by_updated", false},
    {"expires_at", "expires_key", "licenses_by_expiry", false},
    {"name", "name_key", "licenses_by_name", true},
    {NULL, NULL, NULL, false},
};
static const struct finder_table LICENSES = {
    .name = "licenses",
    .live = "archived_at=0",
    .sorts = SORTS,
    .text = "license_text",
    .docs = "license_docs",
    .doc_id = "license_id",
    .covered = "id|vendor_id|archived_at|status|starts_at|grace_days|payment_failed_at|expires_at|application_id|type|auto_renew|environment",
    .text_columns = "name customer environment",
};

/* ---- filters that are one column ---------------------------------------------------------------------------------------- */

static const struct simple {
    const char *name, *index, *condition;
} SIMPLE[] = {
    {"id", "", "l.id=?"},
    {"customer_id", "licenses_customer", "l.customer_id=?"},
    {"application_id", "licenses_application", "l.application_id=?"},
    {"plan_id", "licenses_by_plan", "l.plan_id=? AND l.plan_id<>''"},
    {"order_number", "licenses_by_order", "l.order_number=? AND l.order_number<>''"},
    {"transaction_id", "licenses_by_transaction", "l.transaction_id=? AND l.transaction_id<>''"},
    {"external_id", "licenses_by_external", "l.external_id=? AND l.external_id<>''"},
    {"environment", "licenses_by_environment", "l.environment=? AND l.environment<>''"},
    {"issuer", "licenses_by_issuer", "l.issuer=? AND l.issuer<>''"},
    {"period", NULL, "l.period=?"},
};

static bool filter_simple(struct finder *f, const struct filter_pair *p)
{
    for (size_t i = 0; i < sizeof SIMPLE / sizeof *SIMPLE; i++)
        if (strcmp(SIMPLE[i].name, p->name) == 0) {
            finder_text(f, str_c(p->value));
            finder_where(f, SIMPLE[i].index, SIMPLE[i].condition);
            return true;
        }
    return false;
}

/* ---- states: as license_effective() says, by the columns ----------------------------------------------------------------- */

#define BEGUN   "l.status='active' AND (l.starts_at=0 OR l.starts_at<=?)"
#define GRACE_S "(CASE WHEN l.grace_days>0 THEN l.grace_days ELSE 0 END)*86400"

/* One state as a condition; its values. The columns are those of licenses_by_status. */
static bool effective_condition(struct finder *f, struct str state, struct strbuf *sql)
{
    int64_t now = finder_now(f), soon = now + LICENSE_EXPIRING_DAYS * (int64_t)86400;
    if (str_eq(state, S("revoked")) || str_eq(state, S("suspended")) || str_eq(state, S("inactive"))) {
        sb_addf(sql, "(l.status='%.*s')", STR(state));
    } else if (str_eq(state, S("scheduled"))) {
        sb_addc(sql, "(l.status='active' AND l.starts_at<>0 AND l.starts_at>?)");
        finder_int(f, now);
    } else if (str_eq(state, S("expired"))) {
        sb_addc(sql, "(" BEGUN " AND l.expires_at>0 AND l.expires_at<=? AND l.expires_at+" GRACE_S "<=?)");
        finder_int(f, now);
        finder_int(f, now);
        finder_int(f, now);
    } else if (str_eq(state, S("grace"))) {
        /* Over, or a payment is overdue; and not beyond the grace. */
        sb_addc(sql, "(" BEGUN " AND (l.expires_at=0 OR l.expires_at+" GRACE_S ">?) AND (l.payment_failed_at<>0 OR (l.expires_at<>0 AND l.expires_at<=?)))");
        finder_int(f, now);
        finder_int(f, now);
        finder_int(f, now);
    } else if (str_eq(state, S("expiring"))) {
        sb_addc(sql, "(" BEGUN " AND l.payment_failed_at=0 AND l.expires_at>? AND l.expires_at<=?)");
        finder_int(f, now);
        finder_int(f, now);
        finder_int(f, soon);
    } else if (str_eq(state, S("active"))) {
        sb_addc(sql, "(" BEGUN " AND l.payment_failed_at=0 AND (l.expires_at=0 OR l.expires_at>?))");
        finder_int(f, now);
        finder_int(f, soon);
    } else {
        return false;
    }
    return true;
}

/* "a,b": any of them. */
static enum err filter_states(struct api *rq, struct finder *f, const struct filter_pair *p, const char *all)
{
    struct strbuf sql = {0};
    struct str rest = str_c(p->value), one;
    bool is_effective = strcmp(p->name, "effective_status") == 0, good = true;
    size_t n = 0;
    while (good && str_next(&rest, ',', &one)) {
        struct str known = str_c(all), state;
        good = false;
        while (!good && str_next(&known, '|', &state))
            good = str_eq(state, one);
        good = good && n++ < 8;
        if (good && n > 1)
            sb_addc(&sql, " OR ");
        if (good && is_effective)
            good = effective_condition(f, one, &sql);
        else if (good)
            sb_addf(&sql, "l.%s='%.*s'", p->name, STR(one));
    }
    enum err err = ERR_OK;
    if (good) {
        struct strbuf whole = {0};
        sb_addf(&whole, n > 1 ? "(%s)" : "%s", sql.p);
        /* expired, grace, scheduled and active are no range of the index: to count a few of them may take all of the others */
        bool has_index = n == 1 && (strcmp(p->name, "status") == 0 || (is_effective && !strstr("expired|grace|scheduled|active", p->value)));
        finder_where(f, has_index ? "licenses_by_status" : NULL, whole.p);
        sb_free(&whole);
    } else {
        err = api_fail(rq, ERR_INVALID, "invalid_parameter", p->name, "%s: expected some of %s, with commas between", p->name, all);
    }
    sb_free(&sql);
    return err;
}

/* ---- filters that ask another table --------------------------------------------------------------------------------------- */

/* A customer by id, slug or name: the ids of all that are meant. */
static enum err filter_customer(struct api *rq, struct finder *f, struct str value)
{
    struct store_stmt *st = NULL;
    struct jv *ids = jv_array();
    struct strbuf text = {0};
    bool row;
    enum err err = store_query(rq->store, &st, &rq->error,
                               "SELECT id FROM customers WHERE vendor_id=?1 AND archived_at=0 AND id=?2"
                               " UNION SELECT id FROM customers WHERE vendor_id=?1 AND archived_at=0 AND slug=?2"
                               " UNION SELECT id FROM customers WHERE vendor_id=?1 AND archived_at=0 AND name_key=lower(?2) LIMIT ?3",
                               "zsi", rq->vendor_id, value, (int64_t)NAMED_CUSTOMERS_MAX);
    while (!err) {
        err = store_step(st, &row, &rq->error);
        if (err || !row)
            break;
        jv_push(ids, jv_string(store_col_str(st, 0)));
    }
    store_done(&st);
    if (!err && jv_len(ids)) {
        jv_dump(ids, &text);
        finder_text(f, sb_str(&text));
        finder_where(f, "licenses_customer", "l.customer_id IN (SELECT value FROM json_each(?))");
    } else if (!err) {
        finder_nothing(f);
    }
    jv_free(ids);
    sb_free(&text);
    return err;
}

static enum err filter_application(struct api *rq, struct finder *f, struct str value)
{
    struct store_stmt *st = NULL;
    bool row = false;
    enum err err = store_query(rq->store, &st, &rq->error,
                               "SELECT id FROM applications WHERE vendor_id=?1 AND archived_at=0 AND (slug=?2 OR id=?2)", "zs", rq->vendor_id,
                               value);
    if (!err)
        err = store_step(st, &row, &rq->error);
    if (!err && row) {
        finder_text(f, store_col_str(st, 0));
        finder_where(f, "licenses_application", "l.application_id=?");
    } else {
        finder_nothing(f);
    }
    store_done(&st);
    return err;
}

static void net_print(struct strbuf *b, const uint8_t addr[16], unsigned bits)
{
    sb_add_hex(b, addr, 16);
    sb_addf(b, "/%03u", bits);
}

static void mask_after(uint8_t addr[16], unsigned bits)
{
    for (unsigned i = bits; i < 128; i++)
        addr[i / 8] &= (uint8_t)~(0x80u >> (i % 8));
}

/* Two networks overlap when one holds the other: those that hold this one are its prefixes, at most 129; those in it are a range. */
static enum err filter_cidr(struct api *rq, struct finder *f, const struct filter_pair *p)
{
    struct cidr c;
    struct error error = {0};
    if (cidr_parse(str_c(p->value), &c, &error))
        return api_fail(rq, ERR_INVALID, "invalid_parameter", p->name, "%s: %s", p->name, error.text);
    uint8_t last[16], prefix[16];
    struct strbuf holders = {0}, from = {0}, to = {0};
    mask_after(c.addr, c.bits);
    memcpy(last, c.addr, sizeof last);
    for (unsigned i = c.bits; i < 128; i++)
        last[i / 8] |= (uint8_t)(0x80u >> (i % 8));
    sb_add_char(&holders, '[');
    for (unsigned bits = 0; bits < c.bits; bits++) {
        memcpy(prefix, c.addr, sizeof prefix);
        mask_after(prefix, bits);
        sb_addc(&holders, bits ? ",\"" : "\"");
        net_print(&holders, prefix, bits);
        sb_add_char(&holders, '"');
    }
    sb_add_char(&holders, ']');
    net_print(&from, c.addr, c.bits);
    net_print(&to, last, 128);
    finder_text(f, str_c(rq->vendor_id));
    finder_text(f, sb_str(&holders));
    finder_text(f, str_c(rq->vendor_id));
    finder_text(f, sb_str(&from));
    finder_text(f, sb_str(&to));
    /* Of a wide network no more are gathered than finder.c would read. */
    finder_set(f,
               "SELECT n.license_id AS id FROM (SELECT ? AS vendor) v CROSS JOIN json_each(?) h CROSS JOIN license_cidrs n"
               " ON n.vendor_id=v.vendor AND n.net=h.value"
               " UNION SELECT license_id FROM (SELECT license_id FROM license_cidrs WHERE vendor_id=? AND net>=? AND net<=? LIMIT 5000)",
               "EXISTS (SELECT 1 FROM license_cidrs n WHERE n.license_id=l.id AND n.vendor_id=? AND (n.net IN (SELECT value FROM json_each(?))"
               " OR (n.vendor_id=? AND n.net>=? AND n.net<=?)))");
    sb_free(&holders);
    sb_free(&from);
    sb_free(&to);
    return ERR_OK;
}

enum err licensequery_index(struct api *rq, struct str license_id)
{
    struct strbuf text = {0}, net = {0}, vendor = {0};
    struct store_stmt *st = NULL;
    struct jv *list = NULL;
    bool row = false;
    enum err err = store_query(rq->store, &st, &rq->error, "SELECT allowed_cidrs, vendor_id FROM licenses WHERE id=?", "s", license_id);
    if (!err)
        err = store_step(st, &row, &rq->error);
    if (!err && row) {
        sb_add(&text, store_col_str(st, 0));
        sb_add(&vendor, store_col_str(st, 1));
    }
    store_done(&st);
    if (!err)
        err = store_exec(rq->store, NULL, &rq->error, "DELETE FROM license_cidrs WHERE license_id=?", "s", license_id);
    if (!err && text.n > 2 && !jv_parse(sb_str(&text), &JV_LIMITS_TRUSTED, &list, NULL))
        for (size_t i = 0; !err && i < jv_len(list); i++) {
            struct cidr c;
            if (cidr_parse(jv_str(jv_at(list, i)), &c, NULL))
                continue;
            mask_after(c.addr, c.bits);
            sb_reset(&net);
            net_print(&net, c.addr, c.bits);
            err = store_exec(rq->store, NULL, &rq->error, "INSERT OR IGNORE INTO license_cidrs (vendor_id, net, license_id) VALUES (?,?,?)",
                             "sss", sb_str(&vendor), sb_str(&net), license_id);
        }
    jv_free(list);
    sb_free(&text);
    sb_free(&net);
    sb_free(&vendor);
    return err;
}

/* ---- the filter ------------------------------------------------------------------------------------------------------------ */

/* The characters that are shown of a key. Own keys are in capitals, an external one is as it is. */
static void filter_key(struct api *rq, struct finder *f, struct str value)
{
#define KEYS                                                                                                                               \
    "SELECT id FROM licenses WHERE vendor_id=? AND archived_at=0 AND key_prefix BETWEEN ? AND ?"                                           \
    " UNION SELECT id FROM licenses WHERE vendor_id=? AND archived_at=0 AND key_prefix BETWEEN ? AND ?"
    struct strbuf up = {0};
    value = str_sub(value, 0, KEY_SHOWN_CHARS);
    for (size_t i = 0; i < value.n; i++)
        sb_add_char(&up, value.p[i] >= 'a' && value.p[i] <= 'z' ? (char)(value.p[i] - 'a' + 'A') : value.p[i]);
    const struct str spelt[2] = {sb_str(&up), value};
    for (size_t i = 0; i < 2; i++) {
        struct strbuf end = {0};
        sb_add(&end, spelt[i]);
        sb_addc(&end, "\xf4\x8f\xbf\xbf"); /* the last character there is */
        finder_text(f, str_c(rq->vendor_id));
        finder_text(f, spelt[i]);
        finder_text(f, sb_str(&end));
        sb_free(&end);
    }
    finder_set(f, KEYS, "l.id IN (" KEYS ")");
#undef KEYS
    sb_free(&up);
}

static enum err filter_one(struct api *rq, struct finder *f, const struct filter_pair *p)
{
    struct str name = str_c(p->name), value = str_c(p->value);
    int64_t t = 0;
    bool yes = false;
    enum err err = ERR_OK;
    if (filter_simple(f, p)) {
        return ERR_OK;
    } else if (str_eq(name, S("customer"))) {
        return filter_customer(rq, f, value);
    } else if (str_eq(name, S("application"))) {
        return filter_application(rq, f, value);
    } else if (str_eq(name, S("status"))) {
        return filter_states(rq, f, p, "inactive|active|suspended|revoked");
    } else if (str_eq(name, S("effective_status"))) {
        return filter_states(rq, f, p, "revoked|suspended|inactive|scheduled|expired|grace|expiring|active");
    } else if (str_eq(name, S("type"))) {
        finder_text(f, value);
        finder_where(f, str_eq(value, S("paid")) ? NULL : "licenses_by_type", str_eq(value, S("paid")) ? "l.type=?" : "l.type=? AND l.type<>'paid'");
    } else if (str_eq(name, S("source"))) {
        bool common = str_eq(value, S("created"));
        finder_text(f, value);
        finder_where(f, common ? NULL : "licenses_by_source", common ? "l.source=?" : "l.source=? AND l.source<>'created'");
    } else if (str_eq(name, S("expires_before")) || str_eq(name, S("expires_after")) || str_eq(name, S("created_before")) ||
               str_eq(name, S("created_after"))) {
        err = filter_time(rq, p, &t);
        bool is_before = str_ends(name, S("before")), is_expiry = name.p[0] == 'e';
        if (!err) /* "never" is after every date, and found by expires_after */
            finder_range(f, is_expiry ? "licenses_by_expiry" : "licenses_by_created", is_expiry ? "expires_key" : "created_at",
                         is_before ? INT64_MIN : t, is_before ? t : INT64_MAX);
    } else if (str_eq(name, S("cidr"))) {
        return filter_cidr(rq, f, p);
    } else if (str_eq(name, S("key_prefix"))) {
        filter_key(rq, f, value);
    } else if (str_eq(name, S("name"))) {
        filter_name(f, "licenses_by_name", "name_key", value);
    } else if (str_eq(name, S("q"))) {
        return finder_words(f, value);
    } else if (str_eq(name, S("auto_renew"))) {
        err = filter_bool(rq, p, &yes);
        if (!err)
            finder_where(f, NULL, yes ? "l.auto_renew=1" : "l.auto_renew=0");
    } else if (str_eq(name, S("archived"))) {
        err = filter_bool(rq, p, &yes);
        if (!err && yes)
            finder_live(f, "archived_at<>0", "licenses_archived");
    } else if (str_starts(name, S("metadata."))) {
        finder_metadata(f, "license_metadata", "license_id", str_skip(name, 9), value);
    } else if (str_eq(name, S("sort"))) {
        return finder_sort(f, value);
    } else {
        err = api_fail(rq, ERR_INVALID, "unknown_parameter", p->name, "%s: no such parameter", p->name);
    }
    return err;
}

enum err licensequery_new(struct api *rq, const struct filter *filter, struct finder **ret)
{
    struct finder *f = finder_new(rq, &LICENSES);
    struct strbuf text = {0};
    enum err err = ERR_OK;
    for (size_t i = 0; !err && i < filter->n; i++) {
        err = filter_one(rq, f, &filter->pairs[i]);
        sb_addf(&text, "%s=%s\n", filter->pairs[i].name, filter->pairs[i].value);
    }
    finder_bind(f, sb_str(&text));
    sb_free(&text);
    if (err)
        finder_free(&f);
    else
        *ret = f;
    return err;
}

const struct query_param LICENSE_LIST_PARAMS[] = {
    {"sort", "created_at (default), updated_at, expires_at, name; -created_at goes backwards"},
    /* LICENSE_FILTER_PARAMS begins here */
    {"id", "only this one"},
    {"name", "only with this name, whatever its case; \"Prod*\": names that begin so"},
    {"customer_id", "only of this customer"},
    {"customer", "the same by id, slug or name"},
    {"application_id", "only for this application"},
    {"application", "the same by id or slug"},
    {"status", "only with this stored status; several with commas"},
    {"effective_status", "only in this state at this moment; several with commas"},
    {"plan_id", "only made from this plan"},
    {"type", "paid, trial, development, community"},
    {"period", "P1Y"},
    {"expires_before", "an instant, or a date of the vendor's zone"},
    {"expires_after", "also those that never expire"},
    {"created_before", "an instant or a date"},
    {"created_after", "an instant or a date"},
    {"cidr", "an address or network: licenses with an allowed_cidrs that holds it or lies in it"},
    {"order_number", "only of this order"},
    {"transaction_id", "only of this payment"},
    {"external_id", "only these"},
    {"environment", "only for this environment"},
    {"key_prefix", "first characters of the license key"},
    {"source", "created, order, request, trial, import, transfer"},
    {"issuer", "who issued an imported one"},
    {"auto_renew", "true or false"},
    {"q", "words, or their beginnings: of the license's name, its customer's name or slug, its environment"},
    {"metadata.*", "metadata.region=eu: only with this value under this key"},
    {"archived", "true: deleted licenses instead"},
    {NULL, NULL},
};
const struct query_param *const LICENSE_FILTER_PARAMS = LICENSE_LIST_PARAMS + 1;
