/* The way to the API: settings, and one request at a time. A refusal ends the program with one line; what a request means is not known
 * here. */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "pullgate/fetch.h"
#include "pullgate/file.h"
#include "pullgate/jv.h"
#include "pullgate/mem.h"
#include "pullgate/str.h"

#include "cli.h"

static const struct fetch_limits cli_limits = {.connections = 2, .connect_ms = 5000, .first_byte_ms = 60000, .stall_ms = 60000,
                                               .head_bytes = 64 * 1024, .head_fields = 128};

#define READ_FILE_MAX (64u << 20) /* bytes: tokens, certificates, bodies; more is a mistake */
#define ANSWER_MAX    (256u << 20)

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
    return b.p != NULL ? sb_take(&b) : mem_strdup("");
}

/* ---- requests ------------------------------------------------------------------------------------ */

static void refused(int status, const struct strbuf *body)
{
    struct jv *answer = NULL;

    if (body->n > 0 && jv_parse(sb_str(body), &JV_LIMITS_TRUSTED, &answer, NULL) != ERR_OK)
        answer = NULL;
    const char *detail = jv_get_c(answer, "detail", jv_get_c(answer, "title", "no reason given"));
    const char *code = jv_get_c(answer, "code", ""), *field = jv_get_c(answer, "field", "");
    size_t n = strlen(field);
    bool says_field = n > 0 && strncmp(detail, field, n) == 0; /* most details begin with it */
    die(status == 401 || status == 403 ? EXIT_DENIED : status >= 500 ? EXIT_UNREACHABLE : EXIT_FAILED, "%s%s%s (%d%s%s)",
        says_field ? "" : field, says_field || n == 0 ? "" : ": ", detail, status, code[0] != '\0' ? " " : "", code);
}

bool api_raw(const char *method, const char *path, struct str body, const char *type, int soft_status, struct strbuf *ret)
{
    struct strbuf url = {0}, bearer = {0}, content_type = {0};
    struct fetch_reply reply = {0};
    struct error error = {0};
    bool is_change = strcmp(method, "GET") != 0;

    if (cli.token == NULL)
        die(EXIT_USAGE, "no token: give --token-file FILE, set PULLGATE_TOKEN or PULLGATE_TOKEN_FILE, or write a profile (pullgate help)");
    sb_addf(&url, "%s/api/v1%s", cli.url, path);
    if (cli.dry_run && is_change && strstr(path, "dry_run=") == NULL)
        sb_addf(&url, "%sdry_run=1", strchr(path, '?') != NULL ? "&" : "?");
    sb_addf(&bearer, "Authorization: Bearer %s", cli.token);
    sb_addf(&content_type, "Content-Type: %s", type != NULL ? type : "application/json");
    const char *fields[] = {bearer.p, "Accept: */*", body.p != NULL ? content_type.p : NULL, NULL};
    struct fetch_request request = {
        .method = method,
        .url = url.p,
        .fields = fields,
        .body = body,
        .ca_pem = cli.ca,
        .policy = {.allow_private = true},
        .max_body = ANSWER_MAX,
    };
    if (fetch_blocking(&request, &cli_limits, &reply, &error) != ERR_OK)
        die(EXIT_UNREACHABLE, "%s: %s", cli.url, error.text);
    mem_cleanse(bearer.p, bearer.n);
    sb_free(&bearer);
    sb_free(&url);
    sb_free(&content_type);
    if (reply.status >= 300 && reply.status != soft_status)
        refused(reply.status, &reply.body);
    bool is_good = reply.status < 300;
    *ret = reply.body;
    reply.body = (struct strbuf){0};
    fetch_reply_free(&reply);
    return is_good;
}

struct jv *api(const char *method, const char *path, const struct jv *body)
{
    struct strbuf text = {0}, answer_text = {0};
    struct jv *answer = NULL;

    if (body != NULL)
        jv_dump(body, &text);
    api_raw(method, path, body != NULL ? sb_str(&text) : (struct str){NULL, 0}, NULL, 0, &answer_text);
    if (answer_text.n > 0 && jv_parse(sb_str(&answer_text), &JV_LIMITS_TRUSTED, &answer, NULL) != ERR_OK)
        die(EXIT_UNREACHABLE, "%s answered something that is not JSON: is it the admin API?", cli.url);
    if (text.p != NULL)
        mem_cleanse(text.p, text.n);
    sb_free(&text);
    sb_free(&answer_text);
    return answer;
}

void add_query_value(struct strbuf *b, struct str s)
{
    for (size_t i = 0; i < s.n; i++) {
        char c = s.p[i];
        bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || (c != '\0' && strchr("-._~", c) != NULL);
        if (plain)
            sb_add_char(b, c);
        else
            sb_addf(b, "%%%02X", (unsigned)(unsigned char)c);
    }
}

/* ---- settings ------------------------------------------------------------------------------------ */

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

void settings_read(void)
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
