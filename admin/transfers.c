#include "transfers.h"

#include "eventlog.h"
#include "pullgate/credential.h"
#include "pullgate/mem.h"

#define EXPIRE_AT_ONCE 100

enum err transfers_expire(struct store *s, int64_t now_s, struct error *reterr)
{
    struct store_stmt *st = NULL;
    bool row = false;
    struct due {
        char *id, *vendor, *customer, *license;
    } due[EXPIRE_AT_ONCE];
    size_t n = 0;
    enum err err = store_query(s, &st, reterr,
                               "SELECT id, vendor_id, customer_id, license_id FROM transfers WHERE status='pending' AND expires_at<=?"
                               " ORDER BY expires_at LIMIT ?",
                               "ii", now_s, (int64_t)EXPIRE_AT_ONCE);
    while (!err && n < EXPIRE_AT_ONCE) {
        err = store_step(st, &row, reterr);
        if (err || !row)
            break;
        due[n++] = (struct due){str_dup(store_col_str(st, 0)), str_dup(store_col_str(st, 1)), str_dup(store_col_str(st, 2)),
                                str_dup(store_col_str(st, 3))};
    }
    store_done(&st);
    for (size_t i = 0; i < n; i++) {
        struct event_record e = {.vendor_id = due[i].vendor,
                                 .type = "transfer.expired",
                                 .actor = "system:clock",
                                 .customer_id = due[i].customer,
                                 .license_id = due[i].license,
                                 .object_id = due[i].id};
        if (!err)
            err = store_exec(s, NULL, reterr,
                             "UPDATE transfers SET status='expired', ended_at=?, ended_by='system:clock' WHERE id=? AND status='pending'", "iz",
                             now_s, due[i].id);
        if (!err)
            err = eventlog_put(s, &e, reterr);
        mem_free(due[i].id);
        mem_free(due[i].vendor);
        mem_free(due[i].customer);
        mem_free(due[i].license);
    }
    return err;
}
