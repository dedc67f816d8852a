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
