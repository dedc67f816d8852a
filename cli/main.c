/* pullgate: the command line of the admin API. Arguments become one request (or a few, where names stand for ids); the answer becomes a
 * table for people or JSON for programs. It knows resources and fields from the tables below, and nothing the API does not. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "pullgate/clock.h"
#include "pullgate/fetch.h"
#include "pullgate/file.h"
#include "pullgate/jv.h"
#include "pullgate/log.h"
#include "pullgate/mem.h"
#include "pullgate/str.h"

#include "cli.h"

static const struct fetch_limits cli_limits = {.connections = 2, .connect_ms = 5000, .first_byte_ms = 60000, .stall_ms = 60000,
                                               .head_bytes = 64 * 1024, .head_fields = 128};

#define READ_FILE_MAX (64u << 20) /* bytes: tokens, certificates, bodies; more is a mistake */

struct cli cli;

void die(enum exit_code code, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    fputs("pullgate: ", stderr);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
    va_end(ap);
    exit(code);
}

/* ---- the API ---------------------------------------------------------------------------------- */

static int api_status;

/* One request. Ends the program with one line on a refusal; returns the parsed answer, NULL for an empty one. */
static struct jv *api(const char *method, const char *path, const struct jv *body)
{
    struct strbuf url = {0}, text = {0}, bearer = {0};
    struct fetch_reply reply = {0};
    struct error error = {0};
    struct jv *answer = NULL;

    if (cli.token == NULL)
        die(EXIT_USAGE, "no token: give --token-file FILE, set PULLGATE_TOKEN or PULLGATE_TOKEN_FILE, or write a profile (pullgate help)");
    sb_addf(&url, "%s/api/v1%s", cli.url, path);
    sb_addf(&bearer, "Authorization: Bearer %s", cli.token);
    if (body != NULL)
        jv_dump(body, &text);
    const char *fields[] = {bearer.p, "Accept: application/json", body != NULL ? "Content-Type: application/json" : NULL, NULL};
    struct fetch_request request = {
        .method = method,
        .url = url.p,
        .fields = fields,
        .body = body != NULL ? sb_str(&text) : (struct str){NULL, 0},
        .ca_pem = cli.ca,
        .policy = {.allow_private = true},
        .max_body = 64 * 1024 * 1024,
    };
    if (fetch_blocking(&request, &cli_limits, &reply, &error) != ERR_OK)
        die(EXIT_UNREACHABLE, "%s: %s", cli.url, error.text);
    if (reply.body.n > 0 && jv_parse(sb_str(&reply.body), &JV_LIMITS_TRUSTED, &answer, NULL) != ERR_OK && reply.status < 300)
        die(EXIT_UNREACHABLE, "%s answered something that is not JSON: is it the admin API?", cli.url);
    api_status = reply.status;
    if (reply.status >= 300) {
        const char *detail = jv_get_c(answer, "detail", jv_get_c(answer, "title", "no reason given"));
        const char *code = jv_get_c(answer, "code", ""), *field = jv_get_c(answer, "field", "");
        die(reply.status == 401 || reply.status == 403 ? EXIT_DENIED : reply.status >= 500 ? EXIT_UNREACHABLE : EXIT_FAILED, "%s%s%s%s%s (%d%s%s)",
            field, field[0] != '\0' ? ": " : "", detail, "", "", reply.status, code[0] != '\0' ? " " : "", code);
    }
    mem_cleanse(bearer.p, bearer.n);
    sb_free(&bearer);
    sb_free(&url);
    sb_free(&text);
    fetch_reply_free(&reply);
    return answer;
}

/* ---- resources --------------------------------------------------------------------------------- */

enum field_kind { FIELD_STRING, FIELD_INT, FIELD_BOOL, FIELD_LIST, FIELD_GRANT, FIELD_REPOSITORY, FIELD_REF, FIELD_SECRET_FILE };

struct field {
    const char *option; /* "--expires-at" */
    const char *key;    /* "expires_at" */
    enum field_kind kind;
    const char *ref; /* FIELD_REF: resource whose slug or name may stand for its id */
};

struct resource {
    const char *name, *path, *prefix; /* "licenses" "/licenses" "lic_" */
    const char *columns;              /* of the table, keys separated by blanks; a dot goes into objects */
    const struct field *fields;
    const char *actions; /* POST /{id}/action, separated by blanks */
};

static const struct field upstream_fields[] = {
    {"--name", "name", FIELD_STRING, NULL},           {"--url", "url", FIELD_STRING, NULL},
    {"--username", "username", FIELD_STRING, NULL},   {"--password-file", "password", FIELD_SECRET_FILE, NULL},
    {"--ca-file", "ca", FIELD_SECRET_FILE, NULL},     {"--redirects", "redirects", FIELD_STRING, NULL},
    {"--redirect-host", "redirect_hosts", FIELD_LIST, NULL}, {"--realm", "realm", FIELD_STRING, NULL},
    {NULL, NULL, FIELD_STRING, NULL}};
static const struct field application_fields[] = {{"--slug", "slug", FIELD_STRING, NULL},
                                                  {"--name", "name", FIELD_STRING, NULL},
                                                  {"--repository", "repositories", FIELD_REPOSITORY, NULL},
                                                  {NULL, NULL, FIELD_STRING, NULL}};
static const struct field customer_fields[] = {{"--slug", "slug", FIELD_STRING, NULL},
                                               {"--name", "name", FIELD_STRING, NULL},
                                               {"--email", "email", FIELD_STRING, NULL},
                                               {NULL, NULL, FIELD_STRING, NULL}};
static const struct field license_fields[] = {
    {"--name", "name", FIELD_STRING, NULL},           {"--customer", "customer_id", FIELD_REF, "customers"},
    {"--application", "application_id", FIELD_REF, "applications"}, {"--grant", "grants", FIELD_GRANT, NULL},
    {"--starts-at", "starts_at", FIELD_STRING, NULL}, {"--expires-at", "expires_at", FIELD_STRING, NULL},
    {"--grace-days", "grace_days", FIELD_INT, NULL},  {"--updates-until", "updates_until", FIELD_STRING, NULL},
    {"--on-expiry", "on_expiry", FIELD_STRING, NULL}, {"--status", "status", FIELD_STRING, NULL},
    {"--allowed-cidr", "allowed_cidrs", FIELD_LIST, NULL}, {"--reason", "reason", FIELD_STRING, NULL},
    {"--period", "period", FIELD_STRING, NULL},       {NULL, NULL, FIELD_STRING, NULL}};
static const struct field token_fields[] = {{"--name", "name", FIELD_STRING, NULL},
                                            {"--role", "role", FIELD_STRING, NULL},
                                            {"--expires-at", "expires_at", FIELD_STRING, NULL},
                                            {NULL, NULL, FIELD_STRING, NULL}};
static const struct field credential_fields[] = {{"--customer", "customer_id", FIELD_REF, "customers"},
                                                 {"--name", "name", FIELD_STRING, NULL},
                                                 {"--expires-at", "expires_at", FIELD_STRING, NULL},
                                                 {"--license", "license_id", FIELD_STRING, NULL},
                                                 {"--allowed-cidr", "allowed_cidrs", FIELD_LIST, NULL},
                                                 {"--overlap", "overlap", FIELD_STRING, NULL},
                                                 {NULL, NULL, FIELD_STRING, NULL}};

static const struct resource resources[] = {
    {"upstreams", "/upstreams", "ups_", "id name url username password_set redirects", upstream_fields, "test"},
    {"applications", "/applications", "app_", "id slug name repositories", application_fields, "sync"},
    {"customers", "/customers", "cus_", "id slug name email", customer_fields, ""},
    {"licenses", "/licenses", "lic_", "id name customer_id application_id effective_status expires_at grants", license_fields,
     "activate suspend reinstate revoke renew extend rotate-key"},
    {"tokens", "/tokens", "tok_", "id name role expires_at", token_fields, ""},
    {"pulls", "/pulls", "", "at customer_id repository reference decision reason client", NULL, ""},
    {"audit", "/audit", "", "at actor action object_id", NULL, ""},
};
static const struct resource credentials = {"credentials", "/credentials", "crd_", "id name prefix expires_at last_used_at", credential_fields, "rotate"};

static const struct resource *resource_find(const char *name)
{
    for (size_t i = 0; i < sizeof resources / sizeof *resources; i++) {
        const struct resource *r = &resources[i];
        size_t n = strlen(r->name);
        if (strcmp(name, r->name) == 0 || (n > 0 && r->name[n - 1] == 's' && strlen(name) == n - 1 && strncmp(name, r->name, n - 1) == 0))
            return r;
    }
    return NULL;
}

/* An id, or the slug or name that stands for it. */
static char *resolve(const struct resource *r, const char *given)
{
    if (r->prefix[0] != '\0' && strncmp(given, r->prefix, strlen(r->prefix)) == 0)
        return mem_strdup(given);
    struct strbuf path = {0};
    char *cursor = NULL, *id = NULL;
    do {
        sb_reset(&path);
        sb_addf(&path, "%s?limit=1000%s%s", r->path, cursor != NULL ? "&cursor=" : "", cursor != NULL ? cursor : "");
        MEM_FREE(cursor);
        struct jv *page = api("GET", path.p, NULL);
        struct jv *items = jv_get(page, "items");
        for (size_t i = 0; i < jv_len(items); i++)
            if (str_eq_c(jv_get_str(jv_at(items, i), "slug"), given) || str_eq_c(jv_get_str(jv_at(items, i), "name"), given)) {
                if (id != NULL)
                    die(EXIT_FAILED, "%s \"%s\" is not unique, give its id", r->name, given);
                id = str_dup(jv_get_str(jv_at(items, i), "id"));
            }
        if (jv_get_str(page, "next_cursor").n > 0)
            cursor = str_dup(jv_get_str(page, "next_cursor"));
        jv_free(page);
    } while (cursor != NULL);
    sb_free(&path);
    if (id == NULL)
        die(EXIT_FAILED, "no %s has the id, slug or name \"%s\"", r->name, given);
    return id;
}

char *read_file(const char *path)
{
    struct strbuf b = {0};
    int fd = strcmp(path, "-") == 0 ? STDIN_FILENO : open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0 || !file_read_rest(fd, READ_FILE_MAX, &b))
        die(EXIT_USAGE, "%s: %s", path, strerror(errno));
    if (fd != STDIN_FILENO)
        close(fd);
    while (b.n > 0 && (b.p[b.n - 1] == '\n' || b.p[b.n - 1] == '\r'))
        b.p[--b.n] = '\0';
    return sb_take(&b);
}

/* "range:^1.4" "exact:1.4.2" "all" -> {"selector","value"} */
static struct jv *grant_parse(const char *text)
{
    struct str selector, value;
    struct jv *g = jv_object();

    if (!str_cut(str_c(text), ':', &selector, &value)) {
        selector = str_c(text);
        value = S("*");
    }
    jv_set_str(g, "selector", selector);
    jv_set_str(g, "value", value);
    return g;
}

/* "shop/api=private:acme/api" with an optional kind before: "chart,shop/chart=private:acme/chart" */
static struct jv *repository_parse(const char *text)
{
    struct str kind = S("image"), rest = str_c(text), name, where, upstream, repository, cut_kind, cut_rest;

    if (str_cut(rest, ',', &cut_kind, &cut_rest)) {
        kind = cut_kind;
        rest = cut_rest;
    }
    if (!str_cut(rest, '=', &name, &where) || !str_cut(where, ':', &upstream, &repository))
        die(EXIT_USAGE, "--repository takes [KIND,]PUBLIC/NAME=UPSTREAM:UPSTREAM/REPOSITORY, not \"%s\"", text);
    char *up = str_dup(upstream);
    char *id = resolve(resource_find("upstreams"), up);
    struct jv *r = jv_object();
    jv_set_str(r, "name", name);
    jv_set_c(r, "upstream_id", id);
    jv_set_str(r, "upstream_repository", repository);
    jv_set_str(r, "kind", kind);
    mem_free(up);
    mem_free(id);
    return r;
}

/* Options -> body. metadata.KEY and anything else a resource does not name is refused: the API would refuse it as well. */
static struct jv *body_parse(const struct resource *r, int argc, char **argv)
{
    struct jv *body = jv_object();

    for (int i = 0; i < argc; i++) {
        const struct field *f = r->fields;
        if (strcmp(argv[i], "--set") == 0 && i + 1 < argc) { /* KEY=JSON, for fields without an option */
            struct str key, text;
            struct jv *v = NULL;
            if (!str_cut(str_c(argv[++i]), '=', &key, &text))
                die(EXIT_USAGE, "--set takes KEY=JSON");
            if (jv_parse(text, &JV_LIMITS_API, &v, NULL) != ERR_OK)
                v = jv_string(text);
            char *k = str_dup(key);
            jv_set(body, k, v);
            mem_free(k);
            continue;
        }
        while (f != NULL && f->option != NULL && strcmp(f->option, argv[i]) != 0)
            f++;
        if (f == NULL || f->option == NULL)
            die(EXIT_USAGE, "%s does not take %s", r->name, argv[i]);
        if (++i == argc)
            die(EXIT_USAGE, "%s needs a value", f->option);
        uint64_t number;
        char *text;
        switch (f->kind) {
        case FIELD_STRING:
            if (strcmp(argv[i], "null") == 0)
                jv_set(body, f->key, jv_null());
            else
                jv_set_c(body, f->key, argv[i]);
            break;
        case FIELD_INT:
            if (!str_to_u64(str_c(argv[i]), &number) || number > INT32_MAX)
                die(EXIT_USAGE, "%s takes a whole number, not \"%s\"", f->option, argv[i]);
            jv_set_int(body, f->key, (int64_t)number);
            break;
        case FIELD_BOOL:
            jv_set_bool(body, f->key, strcmp(argv[i], "true") == 0);
            break;
        case FIELD_LIST:
        case FIELD_GRANT:
        case FIELD_REPOSITORY:
            if (jv_get(body, f->key) == NULL)
                jv_set(body, f->key, jv_array());
            jv_push(jv_get(body, f->key), f->kind == FIELD_LIST    ? jv_string(str_c(argv[i]))
                                          : f->kind == FIELD_GRANT ? grant_parse(argv[i])
                                                                   : repository_parse(argv[i]));
            break;
        case FIELD_REF:
            text = resolve(resource_find(f->ref), argv[i]);
            jv_set_c(body, f->key, text);
            mem_free(text);
            break;
        case FIELD_SECRET_FILE:
            text = read_file(argv[i]);
            jv_set_c(body, f->key, text);
            mem_free_secret(text, strlen(text));
            break;
        }
    }
    return body;
}

/* ---- output ------------------------------------------------------------------------------------- */

static void print_json(const struct jv *v)
{
    struct strbuf b = {0};
    jv_dump(v, &b);
    puts(b.p);
    sb_free(&b);
}

/* What a table cell shows: short texts for objects that people know. */
static void cell(const struct jv *v, struct strbuf *b)
{
    switch (jv_type(v)) {
    case JV_STRING:
        sb_add(b, jv_str(v));
        break;
    case JV_ARRAY:
        for (size_t i = 0; i < jv_len(v); i++) {
            const struct jv *x = jv_at(v, i);
            if (i > 0)
                sb_add_char(b, ',');
            if (jv_type(x) == JV_OBJECT && jv_get(x, "selector") != NULL)
                sb_addf(b, "%s:%s", jv_get_c(x, "selector", ""), jv_get_c(x, "value", ""));
            else if (jv_type(x) == JV_OBJECT)
                sb_addc(b, jv_get_c(x, "name", "…"));
            else
                cell(x, b);
        }
        break;
    case JV_NONE:
    case JV_NULL:
        sb_add_char(b, '-');
        break;
    case JV_BOOL:
    case JV_INT:
    case JV_REAL:
    case JV_OBJECT:
        jv_dump(v, b);
        break;
    }
}

#define MAX_COLUMNS 16

static void print_table(const char *columns, const struct jv *items)
{
    struct str names[MAX_COLUMNS], rest = str_c(columns), token;
    size_t n_columns = 0, width[MAX_COLUMNS] = {0}, n = jv_len(items);

    while (n_columns < MAX_COLUMNS && str_next(&rest, ' ', &token))
        names[n_columns++] = token;
    char **cells = mem_calloc((n + 1) * n_columns, sizeof *cells);
    for (size_t row = 0; row <= n; row++)
        for (size_t c = 0; c < n_columns; c++) {
            struct strbuf b = {0};
            char *key = str_dup(names[c]);
            if (row == 0) {
                for (char *k = key; *k != '\0'; k++)
                    sb_add_char(&b, *k == '_' ? ' ' : *k >= 'a' && *k <= 'z' ? (char)(*k - 32) : *k);
            } else {
                cell(jv_get(jv_at(items, row - 1), key), &b);
            }
            mem_free(key);
            size_t len = b.n;
            if (len > width[c])
                width[c] = len;
            cells[row * n_columns + c] = sb_take(&b);
        }
    for (size_t row = 0; row <= n; row++) {
        for (size_t c = 0; c < n_columns; c++)
            printf(c + 1 < n_columns ? "%-*s  " : "%.0d%s", c + 1 < n_columns ? (int)width[c] : 0, cells[row * n_columns + c]);
        putchar('\n');
    }
    for (size_t i = 0; i < (n + 1) * n_columns; i++)
        mem_free(cells[i]);
    mem_free(cells);
}

static void print_object(const struct jv *v)
{
    if (cli.json) {
        print_json(v);
        return;
    }
    for (void *it = jv_iter(v); it != NULL; it = jv_iter_next(v, it)) {
        struct strbuf b = {0};
        cell(jv_iter_value(it), &b);
        printf("%-18s %s\n", jv_iter_key(it), b.p);
        sb_free(&b);
    }
}

static void list(const char *path, const char *columns, int argc, char **argv)
{
    struct jv *all = jv_array();
    struct strbuf at = {0}, filter = {0};
    char *cursor = NULL;

    for (int i = 0; i < argc; i++) { /* --status active -> ?status=active */
        if (strncmp(argv[i], "--", 2) != 0 || i + 1 == argc)
            die(EXIT_USAGE, "a filter is --FIELD VALUE, not \"%s\"", argv[i]);
        sb_add_char(&filter, '&');
        for (const char *c = argv[i] + 2; *c != '\0'; c++)
            sb_add_char(&filter, *c == '-' ? '_' : *c);
        sb_add_char(&filter, '=');
        for (const char *c = argv[++i]; *c != '\0'; c++) {
            if ((*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z') || (*c >= '0' && *c <= '9') || (*c != '\0' && strchr("-._~", *c) != NULL))
                sb_add_char(&filter, *c);
            else
                sb_addf(&filter, "%%%02X", (unsigned)(unsigned char)*c);
        }
    }
    do {
        sb_reset(&at);
        sb_addf(&at, "%s?limit=500%s%s%s", path, filter.p != NULL ? filter.p : "", cursor != NULL ? "&cursor=" : "", cursor != NULL ? cursor : "");
        MEM_FREE(cursor);
        struct jv *page = api("GET", at.p, NULL);
        struct jv *items = jv_get(page, "items");
        for (size_t i = 0; i < jv_len(items); i++)
            jv_push(all, jv_copy(jv_at(items, i)));
        if (jv_get_str(page, "next_cursor").n > 0)
            cursor = str_dup(jv_get_str(page, "next_cursor"));
        jv_free(page);
    } while (cursor != NULL);
    if (cli.json)
        print_json(all);
    else
        print_table(columns, all);
    jv_free(all);
    sb_free(&at);
    sb_free(&filter);
}

/* ---- commands ------------------------------------------------------------------------------------ */

static const char help_text[] =
    "usage: pullgate [--url URL] [--token-file FILE] [--ca-file FILE] [--json] COMMAND …\n"
    "\n"
    "  pullgate RESOURCE list [--FIELD VALUE …]        upstreams applications customers licenses tokens pulls audit\n"
    "  pullgate RESOURCE get ID|SLUG|NAME\n"
    "  pullgate RESOURCE create --FIELD VALUE …        --set KEY=JSON for fields without an option\n"
    "  pullgate RESOURCE update ID|SLUG|NAME --FIELD VALUE …\n"
    "  pullgate RESOURCE delete ID|SLUG|NAME\n"
    "  pullgate licenses activate|suspend|reinstate|revoke|renew|extend|rotate-key ID|NAME [--reason TEXT] [--period P1Y]\n"
    "  pullgate upstreams test ID|NAME                 pullgate applications sync ID|SLUG\n"
    "  pullgate credentials list|create|delete|rotate --customer CUSTOMER [ID] [--name NAME] [--overlap 7d]\n"
    "  pullgate versions list APPLICATION\n"
    "  pullgate explain --customer C --repository R --reference TAG|DIGEST [--at TIME]     exit 0 allow, 3 deny\n"
    "  pullgate api METHOD PATH [JSON|-]               any request, as it is\n"
    "\n"
    "  on the machine of the daemons, with their configuration (--config FILE):\n"
    "  pullgate doctor [--only admin|proxy] [--json]   what is wrong, and how to mend it; exit 1: a check failed\n"
    "  pullgate backup FILE|DIRECTORY [--keep N] [--passphrase-file FILE [--with-keys]]\n"
    "  pullgate restore FILE [--check] [--passphrase-file FILE [--with-keys]]         pullgate-admin must be stopped\n"
    "\n"
    "  create licenses:   --customer globex --application shop --name 'Globex Prod' --grant range:^1.4 --expires-at 2027-03-01 --status active\n"
    "  create applications: --slug shop --name Shop --repository shop/api=private:acme/api --repository chart,shop/chart=private:acme/chart\n"
    "\n"
    "Settings: PULLGATE_URL, PULLGATE_TOKEN or PULLGATE_TOKEN_FILE, PULLGATE_CA_FILE, or the profile ~/.config/pullgate/profile (0600) with lines\n"
    "url=…, token=… or token_file=…, ca_file=….  Exit: 0 done, 1 refused, 2 usage, 3 denied or not signed in, 4 no answer.\n";

static void profile_line(struct str line)
{
    struct str key, value;

    if (line.n == 0 || line.p[0] == '#' || !str_cut(line, '=', &key, &value))
        return;
    key = str_trim(key);
    char *v = str_dup(str_trim(value));
    if (str_eq(key, S("url")) && cli.url == NULL)
        cli.url = mem_strdup(v);
    else if (str_eq(key, S("token")) && cli.token == NULL)
        cli.token = mem_strdup(v);
    else if (str_eq(key, S("token_file")) && cli.token == NULL)
        cli.token = read_file(v);
    else if (str_eq(key, S("ca_file")) && cli.ca == NULL)
        cli.ca = read_file(v);
    mem_free_secret(v, strlen(v));
}

static void profile_read(void)
{
    const char *home = getenv("HOME");
    struct strbuf path = {0};
    struct stat st;

    sb_addf(&path, "%s/.config/pullgate/profile", home != NULL ? home : "");
    if (stat(path.p, &st) == 0) {
        if ((st.st_mode & 077) != 0)
            die(EXIT_USAGE, "%s may be read by others: chmod 600 it", path.p);
        char *text = read_file(path.p);
        struct str rest = str_c(text), line;
        while (str_next(&rest, '\n', &line))
            profile_line(line);
        mem_free_secret(text, strlen(text));
    }
    sb_free(&path);
}

static void settings_from_environment(void)
{
    const char *v;

    if (cli.url == NULL && (v = getenv("PULLGATE_URL")) != NULL)
        cli.url = mem_strdup(v);
    if (cli.token == NULL && (v = getenv("PULLGATE_TOKEN")) != NULL)
        cli.token = mem_strdup(v);
    if (cli.token == NULL && (v = getenv("PULLGATE_TOKEN_FILE")) != NULL)
        cli.token = read_file(v);
    if (cli.ca == NULL && (v = getenv("PULLGATE_CA_FILE")) != NULL)
        cli.ca = read_file(v);
    profile_read();
    if (cli.url == NULL)
        cli.url = mem_strdup("http://127.0.0.1:5090");
    size_t n = strlen(cli.url);
    while (n > 0 && cli.url[n - 1] == '/')
        cli.url[--n] = '\0';
}

static int explain(int argc, char **argv)
{
    static const struct field fields[] = {{"--customer", "customer", FIELD_STRING, NULL},
                                          {"--repository", "repository", FIELD_STRING, NULL},
                                          {"--reference", "reference", FIELD_STRING, NULL},
                                          {"--at", "at", FIELD_STRING, NULL},
                                          {NULL, NULL, FIELD_STRING, NULL}};
    static const struct resource r = {"explain", "/explain", "", "", fields, ""};
    struct jv *q = body_parse(&r, argc, argv);
    struct strbuf path = {0};

    sb_add(&path, S("/explain?"));
    for (void *it = jv_iter(q); it != NULL; it = jv_iter_next(q, it)) {
        struct str v = jv_str(jv_iter_value(it));
        sb_addf(&path, "%s=", jv_iter_key(it));
        for (size_t i = 0; i < v.n; i++)
            sb_addf(&path, v.p[i] == '\0' || strchr("&=%+# ", v.p[i]) != NULL ? "%%%02X" : "%c", (unsigned)(unsigned char)v.p[i]);
        sb_add_char(&path, '&');
    }
    struct jv *a = api("GET", path.p, NULL);
    const char *decision = jv_get_c(a, "decision", "unknown");
    int rc = strcmp(decision, "allow") == 0 ? EXIT_OK : strcmp(decision, "deny") == 0 ? EXIT_DENIED : EXIT_UNREACHABLE;
    if (cli.json) {
        print_json(a);
    } else {
        printf("%s (%s)%s%s\n", decision, jv_get_c(a, "reason", ""), jv_get_c(a, "message", "")[0] != '\0' ? ": " : "", jv_get_c(a, "message", ""));
        print_table("license_id name effective_status decision reason", jv_get(a, "considered"));
    }
    return rc;
}

static int credential_command(int argc, char **argv)
{
    char *customer = NULL, *id = NULL;
    struct strbuf path = {0};
    char *rest[64];
    int n = 0;

    if (argc < 1)
        die(EXIT_USAGE, "credentials list|create|delete|rotate --customer CUSTOMER …");
    for (int i = 1; i < argc && n < 62; i++) {
        if (strcmp(argv[i], "--customer") == 0 && i + 1 < argc)
            customer = resolve(resource_find("customers"), argv[++i]);
        else if (strncmp(argv[i], "crd_", 4) == 0)
            id = argv[i];
        else
            rest[n++] = argv[i];
    }
    if (customer == NULL)
        die(EXIT_USAGE, "credentials need --customer CUSTOMER");
    sb_addf(&path, "/customers/%s/credentials", customer);
    if (strcmp(argv[0], "list") == 0) {
        list(path.p, credentials.columns, n, rest);
    } else if (strcmp(argv[0], "create") == 0) {
        print_object(api("POST", path.p, body_parse(&credentials, n, rest)));
    } else if (id != NULL && strcmp(argv[0], "delete") == 0) {
        sb_addf(&path, "/%s", id);
        api("DELETE", path.p, NULL);
    } else if (id != NULL && strcmp(argv[0], "rotate") == 0) {
        sb_addf(&path, "/%s/rotate", id);
        print_object(api("POST", path.p, body_parse(&credentials, n, rest)));
    } else {
        die(EXIT_USAGE, "credentials list|create|delete ID|rotate ID --customer CUSTOMER");
    }
    return EXIT_OK;
}

/* Those that look at this machine and not at the API. */
static bool local_command(int argc, char **argv, int *ret)
{
    if (strcmp(argv[0], "backup") == 0)
        *ret = backup_command(argc - 1, argv + 1);
    else if (strcmp(argv[0], "restore") == 0)
        *ret = restore_command(argc - 1, argv + 1);
    else if (strcmp(argv[0], "doctor") == 0)
        *ret = doctor_command(argc - 1, argv + 1);
    else
        return false;
    return true;
}

static bool word_in(const char *word, const char *words)
{
    struct str rest = str_c(words), token;
    while (str_next(&rest, ' ', &token))
        if (token.n > 0 && str_eq_c(token, word))
            return true;
    return false;
}

static int resource_command(const struct resource *r, int argc, char **argv)
{
    const char *verb = argc > 0 ? argv[0] : "list";
    struct strbuf path = {0};

    if (strcmp(verb, "list") == 0) {
        list(r->path, r->columns, argc > 0 ? argc - 1 : 0, argv + 1);
        return EXIT_OK;
    }
    if (strcmp(verb, "create") == 0 && r->fields != NULL) {
        print_object(api("POST", r->path, body_parse(r, argc - 1, argv + 1)));
        return EXIT_OK;
    }
    if (argc < 2)
        die(EXIT_USAGE, "%s %s needs an id, slug or name", r->name, verb);
    char *id = resolve(r, argv[1]);
    sb_addf(&path, "%s/%s", r->path, id);
    if (strcmp(verb, "get") == 0) {
        print_object(api("GET", path.p, NULL));
    } else if (strcmp(verb, "update") == 0 && r->fields != NULL) {
        print_object(api("PATCH", path.p, body_parse(r, argc - 2, argv + 2)));
    } else if (strcmp(verb, "delete") == 0) {
        api("DELETE", path.p, NULL);
    } else if (word_in(verb, r->actions)) {
        sb_addf(&path, "/%s", verb);
        struct jv *answer = api("POST", path.p, r->fields != NULL ? body_parse(r, argc - 2, argv + 2) : jv_object());
        if (answer != NULL)
            print_object(answer);
    } else {
        die(EXIT_USAGE, "%s has no \"%s\": list get create update delete %s", r->name, verb, r->actions);
    }
    return EXIT_OK;
}

static int command(int argc, char **argv)
{
    const struct resource *r;

    if (strcmp(argv[0], "credentials") == 0 || strcmp(argv[0], "credential") == 0)
        return credential_command(argc - 1, argv + 1);
    if (strcmp(argv[0], "explain") == 0)
        return explain(argc - 1, argv + 1);
    if (strcmp(argv[0], "versions") == 0 && argc >= 3 && strcmp(argv[1], "list") == 0) {
        struct strbuf path = {0};
        sb_addf(&path, "/applications/%s/versions", resolve(resource_find("applications"), argv[2]));
        list(path.p, "version channel released_at", argc - 3, argv + 3);
        return EXIT_OK;
    }
    if (strcmp(argv[0], "api") == 0 && argc >= 3) {
        struct jv *body = NULL;
        struct error error = {0};
        if (argc > 3) {
            char *text = strcmp(argv[3], "-") == 0 ? read_file("-") : mem_strdup(argv[3]);
            if (jv_parse(str_c(text), &JV_LIMITS_API, &body, &error) != ERR_OK)
                die(EXIT_USAGE, "the body is %s", error.text);
        }
        struct jv *answer = api(argv[1], argv[2], body);
        if (answer != NULL)
            print_json(answer);
        return EXIT_OK;
    }
    r = resource_find(argv[0]);
    if (r == NULL)
        die(EXIT_USAGE, "no command \"%s\"; pullgate help lists them", argv[0]);
    return resource_command(r, argc - 1, argv + 1);
}

int main(int argc, char **argv)
{
    int i = 1;

    log_init("pullgate", LOG_LEVEL_ERROR);
    for (; i < argc && argv[i][0] == '-'; i++) {
        if (strcmp(argv[i], "--json") == 0)
            cli.json = true;
        else if (strcmp(argv[i], "--url") == 0 && i + 1 < argc)
            cli.url = mem_strdup(argv[++i]);
        else if (strcmp(argv[i], "--token-file") == 0 && i + 1 < argc)
            cli.token = read_file(argv[++i]);
        else if (strcmp(argv[i], "--ca-file") == 0 && i + 1 < argc)
            cli.ca = read_file(argv[++i]);
        else if (strcmp(argv[i], "--version") == 0)
            return puts("pullgate " PULLGATE_VERSION), EXIT_OK;
        else if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0)
            return fputs(help_text, stdout), EXIT_OK;
        else
            die(EXIT_USAGE, "unknown option %s; pullgate help tells", argv[i]);
    }
    if (i == argc || strcmp(argv[i], "help") == 0)
        return fputs(help_text, i == argc ? stderr : stdout), i == argc ? EXIT_USAGE : EXIT_OK;
    int rc;
    if (local_command(argc - i, argv + i, &rc))
        return rc;
    settings_from_environment();
    return command(argc - i, argv + i);
}
