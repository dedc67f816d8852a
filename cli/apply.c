/* pullgate apply -f FILE: what a file says there should be, against what there is. Shows the difference, then makes it so; what is as the
 * file says is not touched, so that a second run does nothing. What the file leaves out stays as it is, also whole objects. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "pullgate/config.h"
#include "pullgate/jv.h"
#include "pullgate/mem.h"
#include "pullgate/str.h"

#include "cli.h"

/* In the order in which they need each other. */
static const struct kind {
    const char *name, *path;
    const char *keys;       /* members that say which one it is, between blanks */
    const char *references; /* members of the file that name other objects: "customer" is sent as customer_id */
} KINDS[] = {
    {"upstreams", "/upstreams", "name", ""},
    {"applications", "/applications", "slug", ""},
    {"customers", "/customers", "slug", ""},
    {"plans", "/plans", "slug", "application"},
    {"coupons", "/coupons", "code", "plan"},
    {"licenses", "/licenses", "customer_id name", "customer application plan"},
    {"webhooks", "/webhooks", "url", ""},
};
#define KINDS_N (sizeof KINDS / sizeof *KINDS)

struct apply {
    const struct jv *doc; /* the file */
    bool is_dry;        /* shows what would be done, and does nothing */
    bool takes_grants;  /* found on the way */
    char *reason;
    unsigned created, changed, same;
};

/* ---- what the file says --------------------------------------------------------------------------- */

/* The file makes it, so that it need not be there yet. */
static bool is_in_file(const struct apply *a, const char *resource, const char *given)
{
    const struct jv *list = jv_get(a->doc, resource);
    for (size_t i = 0; i < jv_len(list); i++)
        if (str_eq_c(jv_get_str(jv_at(list, i), "slug"), given) || str_eq_c(jv_get_str(jv_at(list, i), "name"), given))
            return true;
    return false;
}

/* *ret_waits: it is to be made by the same run that is only looked at. */
static char *id_of(const struct apply *a, const char *resource, const char *given, bool *ret_waits)
{
    if (!a->is_dry || !is_in_file(a, resource, given))
        return document_resolve(resource, given);
    char *id = document_find(resource, given);
    *ret_waits = *ret_waits || id == NULL;
    return id;
}

/* "customer: globex" -> "customer_id": its id; upstreams of repositories too. */
static struct jv *with_ids(const struct apply *a, const struct kind *k, const struct jv *want, bool *ret_waits)
{
    *ret_waits = false;
    struct jv *body = jv_copy(want);
    struct str rest = str_c(k->references), word;
    while (str_next(&rest, ' ', &word)) {
        if (word.n == 0)
            continue;
        char *key = str_dup(word);
        struct strbuf id_key = {0}, resource = {0};
        sb_addf(&id_key, "%s_id", key);
        sb_addf(&resource, "%ss", key);
        const char *given = jv_get_c(body, key, NULL);
        if (given != NULL) {
            char *id = id_of(a, resource.p, given, ret_waits);
            jv_set_c(body, id_key.p, id);
            mem_free(id);
        }
        jv_del(body, key);
        sb_free(&id_key);
        sb_free(&resource);
        mem_free(key);
    }
    struct jv *repositories = jv_get(body, "repositories");
    for (size_t i = 0; strcmp(k->name, "applications") == 0 && i < jv_len(repositories); i++) {
        const char *upstream = jv_get_c(jv_at(repositories, i), "upstream", NULL);
        if (upstream != NULL) {
            char *id = id_of(a, "upstreams", upstream, ret_waits);
            jv_set_c(jv_at(repositories, i), "upstream_id", id);
            mem_free(id);
            jv_del(jv_at(repositories, i), "upstream");
        }
    }
    const char *file = jv_get_c(body, "password_file", NULL);
    if (file != NULL) {
        char *text = read_file(file);
        jv_set_c(body, "password", text);
        mem_free_secret(text, strlen(text));
        jv_del(body, "password_file");
    }
    return body;
}

/* "globex", "globex/Prod": what a person calls it. */
static void title(const struct kind *k, const struct jv *want, struct strbuf *ret)
{
    const char *name = jv_get_c(want, "slug", jv_get_c(want, "name", jv_get_c(want, "code", jv_get_c(want, "url", "?"))));
    const char *customer = jv_get_c(want, "customer", NULL);
    sb_addf(ret, "%s ", k->name);
    if (customer != NULL)
        sb_addf(ret, "%s/", customer);
    sb_addc(ret, name);
}

/* ---- what there is ---------------------------------------------------------------------------------- */

static bool is_same_one(const struct kind *k, const struct jv *have, const struct jv *body)
{
    struct str rest = str_c(k->keys), word;
    bool is = true;
    while (is && str_next(&rest, ' ', &word)) {
        char *key = str_dup(word);
        is = jv_get_str(body, key).p != NULL && str_eq(jv_get_str(have, key), jv_get_str(body, key));
        mem_free(key);
    }
    return is;
}

static struct jv *find(const struct kind *k, const struct jv *body)
{
    struct strbuf at = {0};
    struct jv *found = NULL;
    char *cursor = NULL;
    do {
        sb_reset(&at);
        sb_addf(&at, "%s?limit=500", k->path);
        if (strcmp(k->name, "licenses") == 0) {
            sb_addc(&at, "&customer_id=");
            add_query_value(&at, jv_get_str(body, "customer_id"));
        }
        if (cursor != NULL) {
            sb_addc(&at, "&cursor=");
            add_query_value(&at, str_c(cursor));
        }
        MEM_FREE(cursor);
        struct jv *page = api("GET", at.p, NULL);
        const struct jv *items = jv_get(page, "items");
        for (size_t i = 0; found == NULL && i < jv_len(items); i++)
            if (is_same_one(k, jv_at(items, i), body))
                found = jv_copy(jv_at(items, i));
        if (found == NULL && jv_get_str(page, "next_cursor").n > 0)
            cursor = str_dup(jv_get_str(page, "next_cursor"));
        jv_free(page);
    } while (cursor != NULL);
    sb_free(&at);
    return found;
}

/* ---- the difference ----------------------------------------------------------------------------------- */

/* Everything that `want` says stands in `have`; what it leaves out does not matter. A date says what its instant says in some zone: the
 * day is compared, and the one before (the end of a day in a zone east of ours). */
static bool holds(const struct jv *have, const struct jv *want)
{
    if (jv_type(want) == JV_OBJECT) {
        for (void *it = jv_iter(want); it != NULL; it = jv_iter_next(want, it))
            if (!holds(jv_get(have, jv_iter_key(it)), jv_iter_value(it)))
                return false;
        return true;
    }
    if (jv_type(want) == JV_ARRAY) {
        if (jv_len(have) != jv_len(want))
            return false;
        for (size_t i = 0; i < jv_len(want); i++)
            if (!holds(jv_at(have, i), jv_at(want, i)))
                return false;
        return true;
    }
    if (jv_type(want) == JV_NULL)
        return jv_type(have) == JV_NULL || jv_type(have) == JV_NONE || jv_get_str(have, "").n == 0;
    return jv_equal(have, want);
}

static bool is_date(struct str s)
{
    return s.n == 10 && s.p[4] == '-' && s.p[7] == '-';
}

static bool is_time_key(const char *key)
{
    size_t n = strlen(key);
    return (n > 3 && strcmp(key + n - 3, "_at") == 0) || strcmp(key, "updates_until") == 0 || strcmp(key, "valid_until") == 0;
}

static void line(const struct apply *a, char mark, const struct strbuf *name, const char *member, const struct jv *from, const struct jv *to)
{
    struct strbuf text = {0};
    if (!a->is_dry) /* it was shown before anything is changed */
        return;
    sb_addf(&text, "%c %s", mark, name->p);
    if (member != NULL) {
        sb_addf(&text, "  %s: ", member);
        print_cell(from, &text);
        sb_addc(&text, " -> ");
        print_cell(to, &text);
    }
    puts(text.p);
    sb_free(&text);
}

/* Members that cannot be changed by PATCH: they say which one it is, or are made of other requests. */
static bool is_fixed(const struct kind *k, const char *key)
{
    struct str rest = str_c(k->keys), word;
    while (str_next(&rest, ' ', &word))
        if (str_eq_c(word, key))
            return true;
    return strcmp(key, "application_id") == 0 || strcmp(key, "grants") == 0 || strcmp(key, "status") == 0 || strcmp(key, "repositories") == 0 ||
           strcmp(key, "plan_id") == 0;
}

static const struct jv *grant_among(const struct jv *grants, const struct jv *want)
{
    for (size_t i = 0; i < jv_len(grants); i++)
        if (str_eq(jv_get_str(jv_at(grants, i), "selector"), jv_get_str(want, "selector")) &&
            (str_eq(jv_get_str(jv_at(grants, i), "value"), jv_get_str(want, "value")) || jv_get_str(want, "value").n == 0))
            return jv_at(grants, i);
    return NULL;
}

static bool apply_grants(struct apply *a, const struct strbuf *name, const struct jv *have, const struct jv *want)
{
    const struct jv *present = jv_get(have, "grants"), *wanted = jv_get(want, "grants");
    struct strbuf path = {0};
    bool is_changed = false;
    for (size_t i = 0; i < jv_len(wanted); i++)
        if (grant_among(present, jv_at(wanted, i)) == NULL) {
            struct jv *one = jv_array();
            jv_push(one, jv_copy(jv_at(wanted, i)));
            line(a, '~', name, "grants", NULL, one);
            jv_free(one);
            is_changed = true;
            sb_reset(&path);
            sb_addf(&path, "/licenses/%s/grants", jv_get_c(have, "id", ""));
            if (!a->is_dry)
                jv_free(api("POST", path.p, jv_at(wanted, i)));
        }
    for (size_t i = 0; i < jv_len(present); i++)
        if (grant_among(wanted, jv_at(present, i)) == NULL) {
            struct jv *one = jv_array();
            jv_push(one, jv_copy(jv_at(present, i)));
            line(a, '~', name, "grants", one, NULL);
            jv_free(one);
            is_changed = true;
            if (a->is_dry) {
                a->takes_grants = true;
                continue;
            }
            sb_reset(&path);
            sb_addf(&path, "/licenses/%s/grants/%s?reason=", jv_get_c(have, "id", ""), jv_get_c(jv_at(present, i), "id", ""));
            add_query_value(&path, str_c(a->reason != NULL ? a->reason : "apply"));
            jv_free(api("DELETE", path.p, NULL));
        }
    sb_free(&path);
    return is_changed;
}

/* Repositories have requests of their own. */
static bool apply_repositories(struct apply *a, const struct strbuf *name, const struct jv *have, const struct jv *want)
{
    const struct jv *wanted = jv_get(want, "repositories"), *present = jv_get(have, "repositories");
    struct strbuf path = {0};
    bool is_changed = false;
    for (size_t i = 0; i < jv_len(wanted); i++) {
        const struct jv *w = jv_at(wanted, i), *p = NULL;
        for (size_t j = 0; p == NULL && j < jv_len(present); j++)
            if (str_eq(jv_get_str(jv_at(present, j), "name"), jv_get_str(w, "name")))
                p = jv_at(present, j);
        if (p != NULL && holds(p, w))
            continue;
        is_changed = true;
        struct jv *before = p != NULL ? jv_copy(p) : jv_null(), *after = jv_copy(w);
        line(a, '~', name, "repositories", jv_get(before, "name"), jv_get(after, "name"));
        sb_reset(&path);
        sb_addf(&path, "/applications/%s/repositories%s%s", jv_get_c(have, "id", ""), p != NULL ? "/" : "", p != NULL ? jv_get_c(p, "id", "") : "");
        if (p != NULL)
            jv_del(after, "name");
        if (!a->is_dry)
            jv_free(api(p != NULL ? "PATCH" : "POST", path.p, after));
        jv_free(before);
        jv_free(after);
    }
    sb_free(&path);
    return is_changed;
}

static bool is_equal_member(const char *key, const struct jv *have, const struct jv *want, const struct kind *k, const char *id)
{
    struct str w = jv_str(want), h = jv_str(have);
    if (holds(have, want))
        return true;
    if (!is_time_key(key) || !is_date(w) || h.n < 10)
        return false;
    if (str_eq(str_sub(h, 0, 10), w))
        return true;
    /* The end of that day in the vendor's zone may be another day in UTC: the server knows. */
    struct strbuf path = {0}, text = {0}, answer = {0};
    struct jv *body = jv_object(), *parsed = NULL;
    sb_addf(&path, "%s/%s?dry_run=1", k->path, id);
    jv_set_str(body, key, w);
    jv_dump(body, &text);
    bool is = api_raw("PATCH", path.p, sb_str(&text), NULL, 409, &answer) && jv_parse(sb_str(&answer), &JV_LIMITS_TRUSTED, &parsed, NULL) == ERR_OK &&
              str_eq(jv_get_str(parsed, key), h);
    jv_free(parsed);
    jv_free(body);
    sb_free(&path);
    sb_free(&text);
    sb_free(&answer);
    return is;
}

static void apply_one(struct apply *a, const struct kind *k, const struct jv *want)
{
    struct strbuf name = {0}, path = {0};
    title(k, want, &name);
    bool waits;
    struct jv *body = with_ids(a, k, want, &waits), *have = waits ? NULL : find(k, body);
    if (have == NULL) {
        line(a, '+', &name, NULL, NULL, NULL);
        a->created++;
        if (!a->is_dry)
            jv_free(api("POST", k->path, body));
    } else {
        struct jv *change = jv_object();
        const char *id = jv_get_c(have, "id", "");
        for (void *it = jv_iter(body); it != NULL; it = jv_iter_next(body, it)) {
            const char *key = jv_iter_key(it);
            if (is_fixed(k, key) || strcmp(key, "password") == 0 || is_equal_member(key, jv_get(have, key), jv_iter_value(it), k, id))
                continue;
            line(a, '~', &name, key, jv_get(have, key), jv_iter_value(it));
            jv_set(change, key, jv_copy(jv_iter_value(it)));
        }
        bool is_changed = jv_len(change) > 0;
        sb_addf(&path, "%s/%s", k->path, id);
        if (is_changed && !a->is_dry)
            jv_free(api("PATCH", path.p, change));
        if (strcmp(k->name, "licenses") == 0 && jv_get(body, "grants") != NULL)
            is_changed = apply_grants(a, &name, have, body) || is_changed;
        if (strcmp(k->name, "applications") == 0)
            is_changed = apply_repositories(a, &name, have, body) || is_changed;
        const char *status = jv_get_c(body, "status", NULL), *now = jv_get_c(have, "status", "");
        if (strcmp(k->name, "licenses") == 0 && status != NULL && strcmp(status, now) != 0) {
            line(a, '~', &name, "status", jv_get(have, "status"), jv_get(body, "status"));
            is_changed = true;
            const char *verb = strcmp(status, "suspended") == 0  ? "suspend"
                               : strcmp(status, "revoked") == 0  ? "revoke"
                               : strcmp(now, "suspended") == 0   ? "reinstate"
                                                                 : "activate";
            struct jv *why = jv_object();
            if (a->reason != NULL)
                jv_set_c(why, "reason", a->reason);
            sb_addf(&path, "/%s", verb);
            if (!a->is_dry)
                jv_free(api("POST", path.p, why));
            jv_free(why);
        }
        if (is_changed)
            a->changed++;
        else
            a->same++;
        jv_free(change);
    }
    jv_free(body);
    jv_free(have);
    sb_free(&name);
    sb_free(&path);
}

static const struct kind *kind_find(const char *name)
{
    for (size_t i = 0; i < KINDS_N; i++)
        if (strcmp(KINDS[i].name, name) == 0)
            return &KINDS[i];
    return NULL;
}

static void apply_all(struct apply *a, const struct jv *doc)
{
    for (size_t i = 0; i < KINDS_N; i++) {
        const struct jv *list = jv_get(doc, KINDS[i].name);
        for (size_t j = 0; j < jv_len(list); j++)
            apply_one(a, &KINDS[i], jv_at(list, j));
    }
}

int apply_command(int argc, char **argv)
{
    struct apply a = {.is_dry = cli.dry_run};
    struct error error = {0};
    struct jv *doc = NULL;
    const char *file = NULL;
    for (int i = 0; i < argc; i++) {
        if (strcmp(argv[i], "-f") == 0 && i + 1 < argc)
            file = argv[++i];
        else if (strcmp(argv[i], "--reason") == 0 && i + 1 < argc)
            a.reason = argv[++i];
        else if (strcmp(argv[i], "--dry-run") == 0)
            a.is_dry = true;
        else if (strcmp(argv[i], "--yes") == 0)
            cli.yes = true;
        else
            die(EXIT_USAGE, "apply -f FILE [--dry-run] [--yes] [--reason TEXT], not \"%s\"", argv[i]);
    }
    if (file == NULL)
        die(EXIT_USAGE, "apply needs -f FILE");
    char *text = read_file(file);
    if (config_document(str_c(text), &doc, &error) != ERR_OK || jv_type(doc) != JV_OBJECT)
        die(EXIT_USAGE, "%s: %s", file, error.text[0] != '\0' ? error.text : "not an object of lists: upstreams, applications, customers, plans, …");
    for (void *it = jv_iter(doc); it != NULL; it = jv_iter_next(doc, it))
        if (kind_find(jv_iter_key(it)) == NULL || jv_type(jv_iter_value(it)) != JV_ARRAY)
            die(EXIT_USAGE, "%s: %s: upstreams, applications, customers, plans, coupons, licenses, webhooks, each a list", file, jv_iter_key(it));
    cli.dry_run = false; /* of single requests; here it means that none is sent */
    bool is_look = a.is_dry;
    a.doc = doc;
    a.is_dry = true;
    apply_all(&a, doc);
    if (!is_look && a.takes_grants && a.reason == NULL)
        die(EXIT_FAILED, "taking a grant wants a reason: --reason TEXT; nothing was changed");
    if (!is_look && a.created + a.changed > 0) {
        if (!cli.yes && isatty(STDIN_FILENO) && isatty(STDOUT_FILENO)) {
            fputs("Apply? [y/N] ", stdout);
            fflush(stdout);
            int answer = getchar();
            if (answer != 'y' && answer != 'Y')
                die(EXIT_FAILED, "nothing was changed");
        }
        a = (struct apply){.doc = doc, .reason = a.reason};
        apply_all(&a, doc);
    }
    printf("%u %s, %u %s, %u as they were\n", a.created, is_look ? "would be made" : "made", a.changed, is_look ? "would change" : "changed", a.same);
    jv_free(doc);
    mem_free(text);
    return EXIT_OK;
}
