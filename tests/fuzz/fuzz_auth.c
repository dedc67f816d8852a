/* Scopes that clients ask for, Authorization values that they send, challenges that upstreams send. Whatever is read out of them
 * lies in the grammar and prints back to the same; a Basic value means a credential only where a decoder of our own reads one. */
#include "fuzz.h"

#include "pullgate/credential.h"
#include "pullgate/field.h"
#include "pullgate/token.h"
#include "worker.h"

#include "exchange.h"

static struct keyring *keys;

static void check_scopes(struct str s)
{
    struct token_scope a[TOKEN_MAX_SCOPES], b[TOKEN_MAX_SCOPES];
    struct strbuf text = {0};
    size_t n = token_scopes_parse(s, a, TOKEN_MAX_SCOPES);

    FUZZ_CHECK(n <= TOKEN_MAX_SCOPES, "too many scopes");
    for (size_t i = 0; i < n; i++) {
        FUZZ_CHECK(oci_name_valid(a[i].repository), "a scope with a name outside the grammar");
        FUZZ_CHECK(a[i].repository.p >= s.p && a[i].repository.p + a[i].repository.n <= s.p + s.n, "a scope outside its text");
        for (size_t k = 0; k < i; k++)
            FUZZ_CHECK(!str_eq(a[k].repository, a[i].repository), "a repository twice");
        sb_addf(&text, "%srepository:%.*s:%s", i ? " " : "", STR(a[i].repository), a[i].pull ? "pull" : "push");
        if (a[i].pull)
            FUZZ_CHECK(memmem(s.p, s.n, "pull", 4) != NULL, "pull where none was asked");
    }
    FUZZ_CHECK(token_scopes_parse(sb_str(&text), b, TOKEN_MAX_SCOPES) == n, "scopes print differently");
    for (size_t i = 0; i < n; i++)
        FUZZ_CHECK(str_eq(a[i].repository, b[i].repository) && a[i].pull == b[i].pull, "scopes print differently");
    sb_free(&text);
}

/* Base64 with its padding, nothing else: four characters at a time through a look-up. */
static bool plain_base64(struct str s, struct strbuf *ret)
{
    static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

    if (s.n % 4)
        return false;
    for (size_t i = 0; i < s.n; i += 4) {
        unsigned v = 0, pad = 0;
        for (size_t k = 0; k < 4; k++) {
            char c = s.p[i + k];
            const char *at = c ? strchr(alphabet, c) : NULL;
            if (c == '=' && i + 4 == s.n && k >= 2)
                pad++;
            else if (!at || pad)
                return false;
            v = v << 6 | (at ? (unsigned)(at - alphabet) : 0);
        }
        if ((pad == 1 && v & 0xff) || (pad == 2 && v & 0xffff))
            return false;
        sb_add_char(ret, (char)(v >> 16));
        if (pad < 2)
            sb_add_char(ret, (char)(v >> 8));
        if (pad < 1)
            sb_add_char(ret, (char)v);
    }
    return true;
}

static void check_basic(struct str value)
{
    static struct proxy proxy;
    static struct worker w = {.proxy = &proxy};
    char got[CREDENTIAL_HASH_MAX] = "", want[CREDENTIAL_HASH_MAX];
    struct strbuf plain = {0}, again = {0};
    struct str password = {0};

    proxy.keys = keys;
    if (authn_basic_hash(&w, value, got)) {
        FUZZ_CHECK(value.n > 6 && !strncasecmp(value.p, "basic ", 6), "Basic without its scheme");
        struct str text = str_skip(value, 6);
        FUZZ_CHECK(plain_base64(text, &plain), "Basic that is no base64");
        const char *colon = memchr(plain.p, ':', plain.n);
        FUZZ_CHECK(colon != NULL, "Basic without a colon");
        password = str_skip(sb_str(&plain), (size_t)(colon - plain.p) + 1);
        FUZZ_CHECK(credential_hash_presented(keys, password, want) && !strcmp(got, want), "Basic names another credential");
        base64_encode(sb_str(&plain), &again);
        FUZZ_CHECK(str_eq(sb_str(&again), text), "one credential in two spellings");
    }
    sb_reset(&plain);
    sb_reset(&again);
    bool mine = base64_decode(value, &again), plainly = plain_base64(value, &plain);
    FUZZ_CHECK(mine == plainly && (!mine || str_eq(sb_str(&plain), sb_str(&again))), "base64 decodes differently");
    sb_free(&plain);
    sb_free(&again);
}

static void quote(struct strbuf *b, const char *name, const char *value)
{
    if (!*value)
        return;
    sb_addf(b, "%s%s=\"", b->n && b->p[b->n - 1] != ' ' ? "," : "", name);
    for (; *value; value++) {
        if (*value == '"' || *value == '\\')
            sb_add_char(b, '\\');
        sb_add_char(b, *value);
    }
    sb_add_char(b, '"');
}

static void check_challenges(struct str s)
{
    static struct challenge a[FIELD_CHALLENGES_MAX], b[FIELD_CHALLENGES_MAX];
    static const char *const schemes[] = {[CHALLENGE_OTHER] = "Negotiate", [CHALLENGE_BASIC] = "Basic", [CHALLENGE_BEARER] = "Bearer"};
    struct strbuf text = {0};
    size_t n = 0, m;
    struct str next;
    struct byte_range r;
    uint64_t total;

    memset(a, 0, sizeof a);
    if (field_challenges_parse(s, a, &n) == ERR_OK) {
        FUZZ_CHECK(n && n <= FIELD_CHALLENGES_MAX, "no challenge, or too many");
        for (size_t i = 0; i < n; i++) {
            sb_reset(&text);
            sb_addf(&text, "%s ", schemes[a[i].scheme]);
            quote(&text, "realm", a[i].realm);
            quote(&text, "service", a[i].service);
            quote(&text, "scope", a[i].scope);
            m = 0;
            memset(b, 0, sizeof b);
            FUZZ_CHECK(field_challenges_parse(sb_str(&text), b, &m) == ERR_OK && m == 1, "a challenge prints unreadably");
            FUZZ_CHECK(b[0].scheme == a[i].scheme && !strcmp(b[0].realm, a[i].realm) && !strcmp(b[0].service, a[i].service) &&
                           !strcmp(b[0].scope, a[i].scope),
                       "a challenge prints differently");
        }
    }
    if (field_link_next(s, &next) == ERR_OK)
        FUZZ_CHECK(next.p >= s.p && next.p + next.n <= s.p + s.n, "a link outside its text");
    if (field_content_range_parse(s, &r, &total) == ERR_OK)
        FUZZ_CHECK(r.first <= r.last && (!total || r.last < total), "a range beyond the whole");
    FUZZ_CHECK(field_retry_after_s(s) <= 3600, "a long wait");
    sb_free(&text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_in in = {data, size};

    if (!keys) {
        keys = fuzz_keys();
        fuzz_quiet();
    }
    uint8_t kind = fuzz_byte(&in);
    struct str s = fuzz_rest(&in);
    char *copy = fuzz_exact(s);
    s.p = copy;
    if (kind == 's') {
        check_scopes(s);
    } else if (kind == 'b') {
        check_basic(s);
    } else if (kind == 'p') { /* a user and a password, rightly encoded */
        struct strbuf b = {0}, v = {0};
        base64_encode(s, &b);
        sb_addf(&v, "Basic %s", b.p ? b.p : "");
        check_basic(sb_str(&v));
        sb_free(&b);
        sb_free(&v);
    } else {
        check_challenges(s);
    }
    mem_free(copy);
    return 0;
}
