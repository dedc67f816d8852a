#include "room.h"

#include <sys/statvfs.h>

#include "admin.h"
#include "pullgate/log.h"
#include "pullgate/store.h"

#define LOG_EVERY_MS 60000u

static struct {
    uint64_t refused;
    bool was_low;
} room; /* atomic */

void room_state(const struct admin *a, struct room_state *ret)
{
    static unsigned long long logged_low, logged_good;
    const struct config *cfg = admin_config(a);
    const char *path = store_file(cfg->store.url);
    struct statvfs v;
    *ret = (struct room_state){.refused = __atomic_load_n(&room.refused, __ATOMIC_RELAXED)};
    if (!path || statvfs(path, &v) != 0)
        return; /* what is wrong with it is for SQLite to say */
    ret->free_bytes = (uint64_t)v.f_bavail * v.f_frsize;
    ret->is_low = ret->free_bytes < cfg->store.min_free;
    if (__atomic_exchange_n(&room.was_low, ret->is_low, __ATOMIC_RELAXED) != ret->is_low)
        log_limited(ret->is_low ? &logged_low : &logged_good, ret->is_low ? LOG_EVERY_MS : 0, ret->is_low ? LOG_LEVEL_ERROR : LOG_LEVEL_INFO,
                    ret->is_low ? "store: %llu MiB are free on its file system, store.min_free is %llu: changes are answered 503"
                                : "store: %llu MiB are free on its file system, store.min_free is %llu: changes are taken again",
                    (unsigned long long)(ret->free_bytes >> 20), (unsigned long long)(cfg->store.min_free >> 20));
}

enum err room_check(const struct admin *a, struct error *reterr)
{
    struct room_state now;
    room_state(a, &now);
    if (!now.is_low)
        return ERR_OK;
    __atomic_add_fetch(&room.refused, 1, __ATOMIC_RELAXED);
    return error_set_field(reterr, ERR_UNAVAILABLE, ROOM_FIELD, "the file system of the store has less room left than store.min_free");
}
