#include "eventlog.h"

#include "pullgate/clock.h"
#include "pullgate/jv.h"

enum err eventlog_put(struct store *s, const struct event_record *e, struct error *reterr)
{
    struct strbuf data = {0};
    if (e->data)
        jv_dump(e->data, &data);
    enum err err = store_exec(s, NULL, reterr,
                              "INSERT INTO events (vendor_id, at_ms, type, customer_id, license_id, object_id, actor, data)"
                              " VALUES (?,?,?,?,?,?,?,?)",
                              "zizzzzzs", e->vendor_id, clock_now_ms(), e->type, e->customer_id ? e->customer_id : "",
                              e->license_id ? e->license_id : "", e->object_id ? e->object_id : "", e->actor,
                              data.n ? sb_str(&data) : S("{}"));
    sb_free(&data);
    return err;
}

enum err history_put(struct store *s, const struct history_record *h, struct error *reterr)
{
    struct strbuf data = {0};
    if (h->data)
        jv_dump(h->data, &data);
    enum err err = store_exec(
        s, NULL, reterr,
        "INSERT INTO license_history (vendor_id, customer_id, license_id, at_ms, event, actor, from_status, to_status, reason, data, request_id)"
        " VALUES (?,?,?,?,?,?,?,?,?,?,?)",
        "zszizzzzssz", h->vendor_id, h->customer_id, h->license_id, clock_now_ms(), h->event, h->actor, h->from_status ? h->from_status : "",
        h->to_status ? h->to_status : "", h->reason.p ? h->reason : S(""), data.n ? sb_str(&data) : S("{}"), h->request_id ? h->request_id : "");
    sb_free(&data);
    return err;
}

/* What a change of a license says of it stands beside its data. */
struct jv *eventlog_print(const struct store_stmt *st)
{
    struct jv *v = jv_object(), *data = NULL;
    char at[CLOCK_RFC3339_MAX];
    static const char *const change[] = {"from_status", "to_status", "reason"};
    struct str text = store_col_str(st, 7);
    if (jv_parse(text, &JV_LIMITS_TRUSTED, &data, NULL) || jv_type(data) != JV_OBJECT) {
        jv_free(data);
        data = jv_object();
    }
    jv_set_int(v, "id", store_col_int(st, 0));
    jv_set_c(v, "at", clock_rfc3339_ms(store_col_int(st, 1), at));
    jv_set_str(v, "type", store_col_str(st, 2));
    jv_set_str(v, "event", store_col_str(st, 2));
    jv_set_str(v, "customer_id", store_col_str(st, 3));
    jv_set_str(v, "license_id", store_col_str(st, 4));
    jv_set_str(v, "object_id", store_col_str(st, 5));
    jv_set_str(v, "actor", store_col_str(st, 6));
    bool is_change = jv_type(jv_get(data, "change")) == JV_OBJECT && jv_type(jv_get(data, "to_status")) == JV_STRING;
    for (size_t i = 0; i < sizeof change / sizeof *change; i++) {
        struct str s = is_change ? jv_get_str(data, change[i]) : (struct str){NULL, 0};
        jv_set_str(v, change[i], s.p ? s : S(""));
    }
    jv_set(v, "license", jv_type(jv_get(data, "license")) == JV_OBJECT ? jv_copy(jv_get(data, "license")) : jv_null());
    jv_set(v, "data", is_change ? jv_copy(jv_get(data, "change")) : jv_copy(data));
    jv_free(data);
    return v;
}

bool eventlog_matches(struct str pattern, struct str type)
{
    if (str_eq_c(pattern, "*"))
        return true;
    if (str_ends(pattern, S(".*")))
        return str_starts(type, str_sub(pattern, 0, pattern.n - 1));
    return str_eq(pattern, type);
}

bool eventlog_pattern_valid(struct str pattern)
{
    if (str_eq_c(pattern, "*"))
        return true;
    if (str_ends(pattern, S(".*")))
        pattern.n -= 2;
    if (!pattern.n || pattern.n > 64)
        return false;
    for (size_t i = 0; i < pattern.n; i++) {
        char c = pattern.p[i];
        bool is_dot = c == '.';
        if (!(c >= 'a' && c <= 'z') && c != '_' && !is_dot)
            return false;
        if (is_dot && (i == 0 || i + 1 == pattern.n || pattern.p[i + 1] == '.'))
            return false;
    }
    return true;
}
