/* Root is given up here, and nowhere taken. Everything is verified by trying the way back, since a set*id call that half succeeds is
 * the classic mistake. */
#include "pullgate/privileges.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <pwd.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "pullgate/log.h"
#include "pullgate/mem.h"

#define GROUPS_MAX 256 /* of one user; more are not handed on */

void privileges_harden(void)
{
    setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0}); /* secrets stay out of core files */
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
}

struct target {
    uid_t uid;
    gid_t gid;
    gid_t groups[GROUPS_MAX];
    int n_groups;
};

static enum err target_find(const struct config *cfg, struct target *ret, struct error *reterr)
{
    const char *user = cfg->process.user, *group = cfg->process.group;

    errno = 0;
    const struct passwd *pw = getpwnam(user);
    if (pw == NULL)
        return error_set_field(reterr, ERR_INVALID, "process.user", "process.user: there is no user \"%s\"%s%s", user, errno ? ": " : "",
                               errno ? strerror(errno) : "");
    if (pw->pw_uid == 0)
        return error_set_field(reterr, ERR_INVALID, "process.user", "process.user: \"%s\" is root", user);
    ret->uid = pw->pw_uid;
    ret->gid = pw->pw_gid;
    if (group[0] != '\0') {
        const struct group *gr = getgrnam(group);
        if (gr == NULL)
            return error_set_field(reterr, ERR_INVALID, "process.group", "process.group: there is no group \"%s\"", group);
        ret->gid = gr->gr_gid;
    }
    if (ret->gid == 0)
        return error_set_field(reterr, ERR_INVALID, "process.group", "process.group: the group of \"%s\" is root's: name another", user);
    ret->n_groups = GROUPS_MAX;
    if (getgrouplist(user, ret->gid, ret->groups, &ret->n_groups) < 0)
        ret->n_groups = GROUPS_MAX;
    for (int i = 0; i < ret->n_groups; i++)
        if (ret->groups[i] == 0)
            return error_set_field(reterr, ERR_INVALID, "process.user", "process.user: \"%s\" is in the group root", user);
    return ERR_OK;
}

/* Those that a service manager gave (CAP_NET_BIND_SERVICE) have served their purpose. must: it cannot be that the call is forbidden. */
static enum err capabilities_drop(bool must, struct error *reterr)
{
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
    struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = {0};

    (void)prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    if (syscall(SYS_capget, &head, data) != 0)
        return error_set(reterr, ERR_INTERNAL, "cannot read the capabilities: %s", strerror(errno));
    bool any = false;
    for (size_t i = 0; i < _LINUX_CAPABILITY_U32S_3; i++)
        any = any || data[i].permitted || data[i].effective || data[i].inheritable;
    if (!any)
        return ERR_OK;
    memset(data, 0, sizeof data);
    head.version = _LINUX_CAPABILITY_VERSION_3;
    if (syscall(SYS_capset, &head, data) == 0)
        return ERR_OK;
    if (must || errno != EPERM)
        return error_set(reterr, ERR_INTERNAL, "cannot drop the capabilities: %s", strerror(errno));
    /* The units forbid capset(2); a drop-in that gives a capability would have to allow it. */
    log_warn("the capabilities that this was started with stay: the service manager forbids to drop them (SystemCallFilter=capset allows it)");
    return ERR_OK;
}

static enum err verify(const struct target *t, struct error *reterr)
{
    uid_t r, e, s;
    gid_t rg, eg, sg;

    if (getresuid(&r, &e, &s) != 0 || r != t->uid || e != t->uid || s != t->uid || getresgid(&rg, &eg, &sg) != 0 || rg != t->gid || eg != t->gid ||
        sg != t->gid)
        return error_set(reterr, ERR_INTERNAL, "root was not given up: the ids are not those of the user");
    if (setresuid(0, 0, 0) == 0 || seteuid(0) == 0 || setresgid(0, 0, 0) == 0 || setegid(0) == 0)
        return error_set(reterr, ERR_INTERNAL, "root was not given up: it could be had again");
    return ERR_OK;
}

static enum err become(const struct config *cfg, struct error *reterr)
{
    struct target *t = NEW(struct target);
    enum err err = target_find(cfg, t, reterr);

    if (!err && (setgroups((size_t)t->n_groups, t->groups) != 0 || setresgid(t->gid, t->gid, t->gid) != 0 || setresuid(t->uid, t->uid, t->uid) != 0))
        err = error_set(reterr, ERR_INTERNAL, "cannot become \"%s\": %s", cfg->process.user, strerror(errno));
    if (!err)
        err = capabilities_drop(true, reterr);
    if (!err)
        err = verify(t, reterr);
    if (!err)
        log_info("goes on as %s (uid %u, gid %u)", cfg->process.user, (unsigned)t->uid, (unsigned)t->gid);
    mem_free(t);
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0); /* a change of ids may reset it */
    return err;
}

enum err privileges_drop(const struct config *cfg, struct error *reterr)
{
    bool is_root = geteuid() == 0 || getuid() == 0;

    umask(077);

    if (cfg->process.user[0] == '\0') {
        if (is_root) {
            log_warn("runs as root and stays so: process.user names whom to become");
            return ERR_OK;
        }
        return capabilities_drop(false, reterr);
    }
    if (is_root)
        return become(cfg, reterr);
    const struct passwd *pw = getpwnam(cfg->process.user);
    if (pw == NULL || pw->pw_uid != geteuid())
        return error_set_field(reterr, ERR_INVALID, "process.user", "process.user is \"%s\", but this process was started as uid %u, and only root can become another",
                               cfg->process.user, (unsigned)geteuid());
    return capabilities_drop(false, reterr);
}

void privileges_warn_unreadable(const char *const *paths, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (paths[i] != NULL && paths[i][0] != '\0' && faccessat(AT_FDCWD, paths[i], R_OK, AT_EACCESS) != 0 && errno != ENOENT)
            log_warn("%s cannot be read by uid %u: %s. What it says is in force, a change of it will need a restart", paths[i], (unsigned)geteuid(),
                     strerror(errno));
}
