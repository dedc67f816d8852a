/* Locations, realms and field values that an upstream sends: what is allowed must lie, read again by a parser that shares nothing with
 * curl's, on a host of the allow-list, and never below https for an https upstream. */
#include "../../lib/upstream.c"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The authority of "scheme://authority/…", as plainly as can be. */
static bool plain_authority(const char *url, const char *scheme, const char *authority)
{
    struct str s = str_c(url);
    size_t n = strlen(scheme);
    if (!str_eq_nocase(str_sub(s, 0, n), str_c(scheme)) || !str_starts(str_skip(s, n), S("://")))
        return false;
    s = str_skip(s, n + 3);
    size_t end = 0;
    while (end < s.n && !strchr("/?#", s.p[end]))
        end++;
    return str_eq_nocase(str_sub(s, 0, end), str_c(authority));
}

/* The same, with any port. */
static bool plain_host(const char *url, const char *scheme, const char *host)
{
    char with_port[300];
    for (const char *colon = strchr(url, ':'); colon; colon = strchr(colon + 1, ':')) {
        int n = (int)strspn(colon + 1, "0123456789");
        snprintf(with_port, sizeof with_port, "%s:%.*s", host, n < 20 ? n : 20, colon + 1);
        if (n && plain_authority(url, scheme, with_port))
            return true;
    }
    return plain_authority(url, scheme, host);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static char host_storage[] = "storage.example", host_other[] = "other.example:8443", realm[] = "https://auth.example/token", url[] = "https://reg.example";
    static char *hosts[] = {host_storage, host_other, NULL};
    static struct upstream_spec spec = {.url = url, .redirect_hosts = hosts, .realm = realm};
    static struct upstream u = {.spec = &spec, .scheme = "https", .host = "reg.example", .port = 443};
    static char none[] = "";
    u.prefix = none;

    char *text = mem_strndup((const char *)data, size), *target = NULL;
    struct fetch_url parsed;
    bool own, named;
    if (fetch_url_join("https://reg.example:443/v2/a/blobs/x", text, &target) == ERR_OK && fetch_url_parse(target, &parsed, NULL) == ERR_OK) {
        if (redirect_allowed(&u, &parsed, &own, &named)) {
            static const char *const allowed[] = {"reg.example", "reg.example:443", "other.example:8443"};
            bool ok = plain_host(target, "https", "storage.example");
            for (size_t i = 0; i < sizeof allowed / sizeof *allowed; i++)
                ok = ok || plain_authority(target, "https", allowed[i]);
            AN(ok);
            AN(own == (strcmp(parsed.host, "reg.example") == 0));
        }
        fetch_url_free(&parsed);
    }
    mem_free(target);
    if (fetch_url_parse(text, &parsed, NULL) == ERR_OK) {
        if (realm_allowed(&u, &parsed, &named))
            AN(strcmp(parsed.scheme, "https") == 0 && parsed.port == 443 &&
               (strcmp(parsed.host, "reg.example") == 0 || (strcmp(parsed.host, "auth.example") == 0 && strncmp(parsed.path_query, "/token", 6) == 0)));
        fetch_url_free(&parsed);
    }
    mem_free(text);

    struct str s = {(const char *)data, size}, next;
    struct challenge c[FIELD_CHALLENGES_MAX];
    size_t n = 0;
    if (field_challenges_parse(s, c, &n) == ERR_OK)
        AN(n && n <= FIELD_CHALLENGES_MAX);
    if (field_link_next(s, &next) == ERR_OK)
        AN(next.p >= s.p && next.p + next.n <= s.p + s.n);
    struct byte_range r;
    uint64_t total;
    if (field_content_range_parse(s, &r, &total) == ERR_OK)
        AN(r.first <= r.last && (!total || r.last < total));
    return 0;
}
