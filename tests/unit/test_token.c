/* Registry tokens: each rule of SECURITY 4.7 is a row. Bad tokens are made with the true key wherever the rule could be met with a
 * right signature, so that a row fails for its own reason and no other. */
#include "pullgate/token.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "pullgate/mem.h"

#include "directory.h"

#define NOW 1800000000
#define CRED "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"

static char dir[64];
static struct keyring *keys, *foreign;

static int setup(void **state)
{
    (void)state;
    struct error e;
    char sub[80];
    snprintf(dir, sizeof dir, "/tmp/pullgate-token-XXXXXX");
    if (!mkdtemp(dir))
        return -1;
    snprintf(sub, sizeof sub, "%s/foreign", dir);
    return keyring_open(dir, true, &keys, &e) == ERR_OK && keyring_open(sub, true, &foreign, &e) == ERR_OK ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    keyring_free(keys);
    keyring_free(foreign);
    return directory_remove(dir);
}

static enum err verify(struct str token, struct token_claims *c, struct strbuf *scratch)
{
    return token_verify(keys, token, S("https://registry.test"), S("registry.test"), NOW, c, scratch);
}

static bool accepted(struct str token)
{
    struct token_claims c;
    struct strbuf scratch = {0};
    enum err err = verify(token, &c, &scratch);
    sb_free(&scratch);
    assert_true(err == ERR_OK || err == ERR_UNAUTHN);
    return err == ERR_OK;
}

/* A token of exactly these texts, signed with the right key. $KID in the header stands for its id. */
static void mint(const struct keyring *k, const char *header, const char *payload, struct strbuf *ret)
{
    struct strbuf h = {0};
    uint8_t sig[64];
    const char *kid = strstr(header, "$KID");
    if (kid) {
        sb_add(&h, (struct str){header, (size_t)(kid - header)});
        sb_addc(&h, keyring_token_kid(k));
        sb_addc(&h, kid + 4);
    } else {
        sb_addc(&h, header);
    }
    sb_reset(ret);
    base64url_encode(sb_str(&h), ret);
    sb_add_char(ret, '.');
    base64url_encode(str_c(payload), ret);
    keyring_token_sign(k, sb_str(ret), sig);
    sb_add_char(ret, '.');
    base64url_encode((struct str){(const char *)sig, 64}, ret);
    sb_free(&h);
}

#define HEADER "{\"alg\":\"EdDSA\",\"typ\":\"ent-pull+jwt\",\"kid\":\"$KID\"}"
#define ISS "\"iss\":\"https://registry.test\""
#define AUD "\"aud\":\"registry.test\""
#define SUB "\"sub\":\"acme\""
#define CRD "\"cred\":\"" CRED "\""
#define IAT "\"iat\":1799999990"
#define NBF "\"nbf\":1799999990"
#define EXP "\"exp\":1800000290"
#define JTI "\"jti\":\"x\""
#define ACC "\"access\":[{\"type\":\"repository\",\"name\":\"shop/api\",\"actions\":[\"pull\"]}]"
#define CLAIMS(access) "{" ISS "," AUD "," SUB "," CRD "," IAT "," NBF "," EXP "," JTI access "}"
#define ONE "{\"type\":\"repository\",\"name\":\"a\",\"actions\":[\"pull\"]}"
#define ONE4 ONE "," ONE "," ONE "," ONE
#define X16 "xxxxxxxxxxxxxxxx"
#define X64 X16 X16 X16 X16
#define X256 X64 X64 X64 X64
#define GOOD "{" ISS "," AUD "," SUB "," CRD "," IAT "," NBF "," EXP "," JTI "," ACC "}"

static void issue(struct strbuf *ret, int64_t iat, int64_t exp)
{
    struct token_claims c = {.issuer = S("https://registry.test"), .audience = S("registry.test"), .credential_hash = S(CRED), .subject = S("ac\"me"),
                             .issued_at_s = iat, .expires_at_s = exp, .repositories = {S("shop/api"), S("shop/chart")}, .n_repositories = 2};
    sb_reset(ret);
    token_issue(keys, &c, ret);
}

static void test_round_trip(void **state)
{
    (void)state;
    struct strbuf t = {0}, scratch = {0};
    struct token_claims c;
    issue(&t, NOW, NOW + TOKEN_TTL_S);
    assert_int_equal(verify(sb_str(&t), &c, &scratch), ERR_OK);
    assert_true(str_eq_c(c.issuer, "https://registry.test"));
    assert_true(str_eq_c(c.subject, "ac\"me"));
    assert_true(str_eq_c(c.credential_hash, CRED));
    assert_int_equal(c.issued_at_s, NOW);
    assert_int_equal(c.expires_at_s, NOW + 300);
    assert_int_equal(c.n_repositories, 2);
    assert_true(str_eq_c(c.repositories[0], "shop/api"));
    assert_true(str_eq_c(c.repositories[1], "shop/chart"));
    sb_free(&scratch);

    assert_false(token_verify(keys, sb_str(&t), S("https://other.test"), S("registry.test"), NOW, &c, &scratch) == ERR_OK);
    assert_false(token_verify(keys, sb_str(&t), S("https://registry.test"), S("registry.tes"), NOW, &c, &scratch) == ERR_OK);
    assert_false(token_verify(foreign, sb_str(&t), S("https://registry.test"), S("registry.test"), NOW, &c, &scratch) == ERR_OK);
    sb_free(&scratch);

    /* What two issues have in common must not be all of them. */
    struct strbuf u = {0};
    issue(&u, NOW, NOW + TOKEN_TTL_S);
    assert_string_not_equal(t.p, u.p);
    sb_free(&u);
    sb_free(&t);
}

static void test_time(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        int64_t iat, exp;
        bool ok;
    } rows[] = {{"just issued", NOW, NOW + 300, true},        {"last second", NOW - 299, NOW + 1, true},    {"expired this second", NOW - 300, NOW, false},
                {"expired", NOW - 400, NOW - 100, false},     {"ttl over 300", NOW, NOW + 301, false},      {"from 30 s ahead", NOW + 30, NOW + 330, true},
                {"from 31 s ahead", NOW + 31, NOW + 331, false}, {"no life", NOW + 5, NOW + 5, false},      {"short", NOW, NOW + 1, true},
                {"a year", NOW, NOW + 31536000, false},       {"exp before iat", NOW + 20, NOW + 10, false}};
    struct strbuf t = {0};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        issue(&t, rows[i].iat, rows[i].exp);
        if (accepted(sb_str(&t)) != rows[i].ok)
            fail_msg("%s", rows[i].name);
    }
    sb_free(&t);
}

static void test_rules(void **state)
{
    (void)state;
    static const struct {
        const char *name, *header, *payload;
        bool ok;
    } rows[] = {
        {"as issued", HEADER, GOOD, true},
        {"members in another order", "{\"kid\":\"$KID\",\"typ\":\"ent-pull+jwt\",\"alg\":\"EdDSA\"}", GOOD, true},
        {"no access at all", HEADER, "{" ISS "," AUD "," SUB "," CRD "," IAT "," NBF "," EXP "," JTI ",\"access\":[]}", true},
        {"alg none", "{\"alg\":\"none\",\"typ\":\"ent-pull+jwt\",\"kid\":\"$KID\"}", GOOD, false},
        {"alg None", "{\"alg\":\"None\",\"typ\":\"ent-pull+jwt\",\"kid\":\"$KID\"}", GOOD, false},
        {"alg NONE", "{\"alg\":\"NONE\",\"typ\":\"ent-pull+jwt\",\"kid\":\"$KID\"}", GOOD, false},
        {"alg HS256", "{\"alg\":\"HS256\",\"typ\":\"ent-pull+jwt\",\"kid\":\"$KID\"}", GOOD, false},
        {"alg ES256", "{\"alg\":\"ES256\",\"typ\":\"ent-pull+jwt\",\"kid\":\"$KID\"}", GOOD, false},
        {"alg eddsa", "{\"alg\":\"eddsa\",\"typ\":\"ent-pull+jwt\",\"kid\":\"$KID\"}", GOOD, false},
        {"alg Ed25519", "{\"alg\":\"Ed25519\",\"typ\":\"ent-pull+jwt\",\"kid\":\"$KID\"}", GOOD, false},
        {"alg missing", "{\"typ\":\"ent-pull+jwt\",\"kid\":\"$KID\"}", GOOD, false},
        {"alg a number", "{\"alg\":1,\"typ\":\"ent-pull+jwt\",\"kid\":\"$KID\"}", GOOD, false},
        {"alg twice", "{\"alg\":\"EdDSA\",\"alg\":\"EdDSA\",\"typ\":\"ent-pull+jwt\",\"kid\":\"$KID\"}", GOOD, false},
        {"typ JWT", "{\"alg\":\"EdDSA\",\"typ\":\"JWT\",\"kid\":\"$KID\"}", GOOD, false},
        {"typ missing", "{\"alg\":\"EdDSA\",\"kid\":\"$KID\"}", GOOD, false},
        {"kid missing", "{\"alg\":\"EdDSA\",\"typ\":\"ent-pull+jwt\"}", GOOD, false},
        {"kid empty", "{\"alg\":\"EdDSA\",\"typ\":\"ent-pull+jwt\",\"kid\":\"\"}", GOOD, false},
        {"kid unknown", "{\"alg\":\"EdDSA\",\"typ\":\"ent-pull+jwt\",\"kid\":\"0000000000000000\"}", GOOD, false},
        {"kid a path", "{\"alg\":\"EdDSA\",\"typ\":\"ent-pull+jwt\",\"kid\":\"../../../dev/null\"}", GOOD, false},
        {"kid SQL", "{\"alg\":\"EdDSA\",\"typ\":\"ent-pull+jwt\",\"kid\":\"x' UNION SELECT 'a\"}", GOOD, false},
        {"kid Redis", "{\"alg\":\"EdDSA\",\"typ\":\"ent-pull+jwt\",\"kid\":\"x\\r\\nGET y\"}", GOOD, false},
        {"kid with a NUL", "{\"alg\":\"EdDSA\",\"typ\":\"ent-pull+jwt\",\"kid\":\"$KID\\u0000\"}", GOOD, false},
        {"kid longer", "{\"alg\":\"EdDSA\",\"typ\":\"ent-pull+jwt\",\"kid\":\"$KID0\"}", GOOD, false},
        {"kid in an array", "{\"alg\":\"EdDSA\",\"typ\":\"ent-pull+jwt\",\"kid\":[\"$KID\"]}", GOOD, false},
        {"jwk", "{\"alg\":\"EdDSA\",\"typ\":\"ent-pull+jwt\",\"kid\":\"$KID\",\"jwk\":{\"kty\":\"OKP\"}}", GOOD, false},
        {"jku", "{\"alg\":\"EdDSA\",\"typ\":\"ent-pull+jwt\",\"kid\":\"$KID\",\"jku\":\"https://evil\"}", GOOD, false},
        {"x5c", "{\"alg\":\"EdDSA\",\"typ\":\"ent-pull+jwt\",\"kid\":\"$KID\",\"x5c\":[\"MII\"]}", GOOD, false},
        {"x5u", "{\"alg\":\"EdDSA\",\"typ\":\"ent-pull+jwt\",\"kid\":\"$KID\",\"x5u\":\"https://evil\"}", GOOD, false},
        {"crit", "{\"alg\":\"EdDSA\",\"typ\":\"ent-pull+jwt\",\"kid\":\"$KID\",\"crit\":[\"b64\"]}", GOOD, false},
        {"b64", "{\"alg\":\"EdDSA\",\"typ\":\"ent-pull+jwt\",\"kid\":\"$KID\",\"b64\":false}", GOOD, false},
        {"zip", "{\"alg\":\"EdDSA\",\"typ\":\"ent-pull+jwt\",\"kid\":\"$KID\",\"zip\":\"DEF\"}", GOOD, false},
        {"enc (a JWE's header)", "{\"alg\":\"dir\",\"enc\":\"A256GCM\",\"kid\":\"$KID\"}", GOOD, false},
        {"header an array", "[\"EdDSA\",\"ent-pull+jwt\",\"$KID\"]", GOOD, false},
        {"header empty", "", GOOD, false},
        {"header with bytes behind it", HEADER "x", GOOD, false},
        {"payload no object", HEADER, "[]", false},
        {"payload empty", HEADER, "", false},
        {"iss other", HEADER, "{\"iss\":\"https://evil\"," AUD "," SUB "," CRD "," IAT "," NBF "," EXP "," JTI "," ACC "}", false},
        {"iss missing", HEADER, "{" AUD "," SUB "," CRD "," IAT "," NBF "," EXP "," JTI "," ACC "}", false},
        {"aud other", HEADER, "{" ISS ",\"aud\":\"other\"," SUB "," CRD "," IAT "," NBF "," EXP "," JTI "," ACC "}", false},
        {"aud missing", HEADER, "{" ISS "," SUB "," CRD "," IAT "," NBF "," EXP "," JTI "," ACC "}", false},
        {"aud an array with ours", HEADER, "{" ISS ",\"aud\":[\"registry.test\",\"x\"]," SUB "," CRD "," IAT "," NBF "," EXP "," JTI "," ACC "}", false},
        {"aud case", HEADER, "{" ISS ",\"aud\":\"REGISTRY.TEST\"," SUB "," CRD "," IAT "," NBF "," EXP "," JTI "," ACC "}", false},
        {"sub missing", HEADER, "{" ISS "," AUD "," CRD "," IAT "," NBF "," EXP "," JTI "," ACC "}", false},
        {"sub twice", HEADER, "{" ISS "," AUD "," SUB ",\"sub\":\"other\"," CRD "," IAT "," NBF "," EXP "," JTI "," ACC "}", false},
        {"sub twice by escape", HEADER, "{" ISS "," AUD "," SUB ",\"s\\u0075b\":\"other\"," CRD "," IAT "," NBF "," EXP "," JTI "," ACC "}", false},
        {"sub empty", HEADER, "{" ISS "," AUD ",\"sub\":\"\"," CRD "," IAT "," NBF "," EXP "," JTI "," ACC "}", false},
        {"cred missing", HEADER, "{" ISS "," AUD "," SUB "," IAT "," NBF "," EXP "," JTI "," ACC "}", false},
        {"cred short", HEADER, "{" ISS "," AUD "," SUB ",\"cred\":\"0011\"," IAT "," NBF "," EXP "," JTI "," ACC "}", false},
        {"jti missing", HEADER, "{" ISS "," AUD "," SUB "," CRD "," IAT "," NBF "," EXP "," ACC "}", false},
        {"exp missing", HEADER, "{" ISS "," AUD "," SUB "," CRD "," IAT "," NBF "," JTI "," ACC "}", false},
        {"exp a string", HEADER, "{" ISS "," AUD "," SUB "," CRD "," IAT "," NBF ",\"exp\":\"1800000290\"," JTI "," ACC "}", false},
        {"exp a float", HEADER, "{" ISS "," AUD "," SUB "," CRD "," IAT "," NBF ",\"exp\":1800000290.0," JTI "," ACC "}", false},
        {"exp 1.8e9", HEADER, "{" ISS "," AUD "," SUB "," CRD "," IAT "," NBF ",\"exp\":1.8000001e9," JTI "," ACC "}", false},
        {"exp 1e400", HEADER, "{" ISS "," AUD "," SUB "," CRD "," IAT "," NBF ",\"exp\":1e400," JTI "," ACC "}", false},
        {"exp null", HEADER, "{" ISS "," AUD "," SUB "," CRD "," IAT "," NBF ",\"exp\":null," JTI "," ACC "}", false},
        {"exp true", HEADER, "{" ISS "," AUD "," SUB "," CRD "," IAT "," NBF ",\"exp\":true," JTI "," ACC "}", false},
        {"exp 2^63-1", HEADER, "{" ISS "," AUD "," SUB "," CRD "," IAT "," NBF ",\"exp\":9223372036854775807," JTI "," ACC "}", false},
        {"exp 2^64", HEADER, "{" ISS "," AUD "," SUB "," CRD "," IAT "," NBF ",\"exp\":18446744073709551616," JTI "," ACC "}", false},
        {"exp negative", HEADER, "{" ISS "," AUD "," SUB "," CRD "," IAT "," NBF ",\"exp\":-1," JTI "," ACC "}", false},
        {"iat negative, so that exp - iat wraps", HEADER, "{" ISS "," AUD "," SUB "," CRD ",\"iat\":-9223372036854775808," NBF "," EXP "," JTI "," ACC "}", false},
        {"iat missing", HEADER, "{" ISS "," AUD "," SUB "," CRD "," NBF "," EXP "," JTI "," ACC "}", false},
        {"iat early, so ttl over 300", HEADER, "{" ISS "," AUD "," SUB "," CRD ",\"iat\":1799999900," NBF "," EXP "," JTI "," ACC "}", false},
        {"nbf ahead", HEADER, "{" ISS "," AUD "," SUB "," CRD "," IAT ",\"nbf\":1800000031," EXP "," JTI "," ACC "}", false},
        {"nbf within the leeway", HEADER, "{" ISS "," AUD "," SUB "," CRD "," IAT ",\"nbf\":1800000030," EXP "," JTI "," ACC "}", true},
        {"nbf missing", HEADER, "{" ISS "," AUD "," SUB "," CRD "," IAT "," EXP "," JTI "," ACC "}", false},
        {"nbf a string", HEADER, "{" ISS "," AUD "," SUB "," CRD "," IAT ",\"nbf\":\"0\"," EXP "," JTI "," ACC "}", false},
        {"access missing", HEADER, "{" ISS "," AUD "," SUB "," CRD "," IAT "," NBF "," EXP "," JTI "}", false},
        {"access push", HEADER, "{" ISS "," AUD "," SUB "," CRD "," IAT "," NBF "," EXP "," JTI ",\"access\":[{\"type\":\"repository\",\"name\":\"a\",\"actions\":[\"push\"]}]}", false},
        {"access *", HEADER, "{" ISS "," AUD "," SUB "," CRD "," IAT "," NBF "," EXP "," JTI ",\"access\":[{\"type\":\"repository\",\"name\":\"a\",\"actions\":[\"*\"]}]}", false},
        {"access catalog", HEADER, "{" ISS "," AUD "," SUB "," CRD "," IAT "," NBF "," EXP "," JTI ",\"access\":[{\"type\":\"registry\",\"name\":\"catalog\",\"actions\":[\"pull\"]}]}", false},
        {"access with a bad name", HEADER, "{" ISS "," AUD "," SUB "," CRD "," IAT "," NBF "," EXP "," JTI ",\"access\":[{\"type\":\"repository\",\"name\":\"a/../b\",\"actions\":[\"pull\"]}]}", false},
        {"kid of 64", "{\"alg\":\"EdDSA\",\"typ\":\"ent-pull+jwt\",\"kid\":\"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\"}", GOOD, false},
        {"sub of 256", HEADER, "{" ISS "," AUD ",\"sub\":\"" X256 "\"," CRD "," IAT "," NBF "," EXP "," JTI "," ACC "}", true},
        {"sub of 257", HEADER, "{" ISS "," AUD ",\"sub\":\"x" X256 "\"," CRD "," IAT "," NBF "," EXP "," JTI "," ACC "}", false},
        {"cred of other letters", HEADER, "{" ISS "," AUD "," SUB ",\"cred\":\"g0112233445566778899aabbccddeeff00112233445566778899aabbccddeeff\"," IAT "," NBF "," EXP "," JTI "," ACC "}", false},
        {"cred of 66", HEADER, "{" ISS "," AUD "," SUB ",\"cred\":\"00" CRED "\"," IAT "," NBF "," EXP "," JTI "," ACC "}", false},
        {"iat ahead, nbf not", HEADER, "{" ISS "," AUD "," SUB "," CRD ",\"iat\":1800000031," NBF "," EXP "," JTI "," ACC "}", false},
        {"iat within the leeway", HEADER, "{" ISS "," AUD "," SUB "," CRD ",\"iat\":1800000030," NBF "," EXP "," JTI "," ACC "}", true},
        {"access of no object", HEADER, CLAIMS(",\"access\":[\"pull\"]"), false},
        {"access with a fourth member", HEADER, CLAIMS(",\"access\":[{\"type\":\"repository\",\"name\":\"a\",\"actions\":[\"pull\"],\"class\":\"\"}]"), false},
        {"access with actions of a string", HEADER, CLAIMS(",\"access\":[{\"type\":\"repository\",\"name\":\"a\",\"actions\":\"pull\"}]"), false},
        {"access pull and push", HEADER, CLAIMS(",\"access\":[{\"type\":\"repository\",\"name\":\"a\",\"actions\":[\"pull\",\"push\"]}]"), false},
        {"access without a name", HEADER, CLAIMS(",\"access\":[{\"type\":\"repository\",\"nam\":\"a\",\"actions\":[\"pull\"]}]"), false},
        {"access of 16", HEADER, CLAIMS(",\"access\":[" ONE4 "," ONE4 "," ONE4 "," ONE4 "]"), true},
        {"access of 17", HEADER, CLAIMS(",\"access\":[" ONE4 "," ONE4 "," ONE4 "," ONE4 "," ONE "]"), false},
        {"access an object", HEADER, "{" ISS "," AUD "," SUB "," CRD "," IAT "," NBF "," EXP "," JTI ",\"access\":{}}", false},
    };
    struct strbuf t = {0};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        mint(keys, rows[i].header, rows[i].payload, &t);
        if (accepted(sb_str(&t)) != rows[i].ok)
            fail_msg("%s: %s", rows[i].name, rows[i].ok ? "refused" : "accepted");
    }
    /* rightly signed, padded with blanks up to the limit, and past it */
    struct strbuf padded = {0};
    sb_addc(&padded, GOOD);
    for (mint(keys, HEADER, padded.p, &t); t.n <= TOKEN_MAX; mint(keys, HEADER, padded.p, &t)) {
        if (t.n > TOKEN_MAX - 4)
            assert_true(accepted(sb_str(&t)));
        sb_add_char(&padded, ' ');
    }
    assert_in_range(t.n, TOKEN_MAX + 1, TOKEN_MAX + 4);
    assert_false(accepted(sb_str(&t)));
    sb_free(&padded);

    mint(foreign, HEADER, GOOD, &t); /* a stranger's key under its own kid */
    assert_false(accepted(sb_str(&t)));
    sb_free(&t);
}

/* Same texts, damaged signatures: RFC 8032 verification, and lengths checked before it. */
static void test_signature(void **state)
{
    (void)state;
    struct strbuf t = {0}, bad = {0}, big = {0};
    mint(keys, HEADER, GOOD, &t);
    assert_true(accepted(sb_str(&t)));
    size_t dot = (size_t)str_rindex(sb_str(&t), '.');
    struct str body = {t.p, dot}, sig = str_skip(sb_str(&t), dot + 1);
    assert_int_equal(sig.n, 86);

    for (size_t i = 0; i <= sig.n; i++) { /* every truncation, the empty one too */
        if (i == sig.n)
            break;
        sb_reset(&bad);
        sb_add(&bad, body);
        sb_add_char(&bad, '.');
        sb_add(&bad, str_sub(sig, 0, i));
        assert_false(accepted(sb_str(&bad)));
    }
    assert_false(accepted(body));
    uint8_t raw[96] = {0};
    static const size_t lengths[] = {0, 1, 32, 63, 64, 65, 70, 72, 96}; /* all zero; 70 to 72 as a DER ES256 signature */
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        sb_reset(&bad);
        sb_add(&bad, body);
        sb_add_char(&bad, '.');
        base64url_encode((struct str){(const char *)raw, lengths[i]}, &bad);
        assert_false(accepted(sb_str(&bad)));
    }
    /* 21 KB of signature, and a token of just over the limit */
    char *many = mem_alloc(21000);
    memset(many, 'A', 21000);
    sb_add(&big, body);
    sb_add_char(&big, '.');
    sb_add(&big, (struct str){many, 21000});
    assert_false(accepted(sb_str(&big)));
    mem_free(many);

    /* a payload that is no base64, rightly signed */
    uint8_t own[64];
    sb_reset(&bad);
    sb_add(&bad, str_sub(sb_str(&t), 0, (size_t)str_index(sb_str(&t), '.')));
    sb_addc(&bad, ".!");
    keyring_token_sign(keys, sb_str(&bad), own);
    sb_add_char(&bad, '.');
    base64url_encode((struct str){(const char *)own, sizeof own}, &bad);
    assert_false(accepted(sb_str(&bad)));

    static const char *const tails[] = {".", "=", "==", " ", "\n", ".x", "%00", "A"};
    for (size_t i = 0; i < sizeof tails / sizeof *tails; i++) {
        sb_reset(&bad);
        sb_add(&bad, sb_str(&t));
        sb_addc(&bad, tails[i]);
        assert_false(accepted(sb_str(&bad)));
    }
    /* Every single character replaced: header, payload or signature. */
    for (size_t i = 0; i < t.n; i++) {
        sb_reset(&bad);
        sb_add(&bad, sb_str(&t));
        bad.p[i] = bad.p[i] == 'A' ? 'Q' : 'A';
        assert_false(accepted(sb_str(&bad)));
        bad.p[i] = '\0';
        assert_false(accepted(sb_str(&bad)));
    }
    static const char *const odd[] = {"", ".", "..", "...", "a.b.c", "a.b.c.d.e", "Bearer", "eyJhbGciOiJub25lIn0.e30.", "pgs_session"};
    for (size_t i = 0; i < sizeof odd / sizeof *odd; i++)
        assert_false(accepted(str_c(odd[i])));
    assert_false(accepted((struct str){NULL, 0}));
    sb_free(&t);
    sb_free(&bad);
    sb_free(&big);
}

/* The largest token that is issued passes its own limit. */
static void test_largest(void **state)
{
    (void)state;
    struct strbuf t = {0}, names = {0};
    struct token_claims c = {.issuer = S("https://registry.test"), .audience = S("registry.test"), .credential_hash = S(CRED), .subject = S("acme"),
                             .issued_at_s = NOW, .expires_at_s = NOW + 300, .n_repositories = TOKEN_MAX_SCOPES};
    for (size_t i = 0; i < 100; i++)
        sb_add_char(&names, 'a');
    for (size_t i = 0; i < TOKEN_MAX_SCOPES; i++)
        c.repositories[i] = str_sub(sb_str(&names), 0, 60 + i);
    token_issue(keys, &c, &t);
    struct token_claims got;
    struct strbuf scratch = {0};
    assert_int_equal(verify(sb_str(&t), &got, &scratch), ERR_OK);
    assert_int_equal(got.n_repositories, TOKEN_MAX_SCOPES);
    for (size_t i = 0; i < TOKEN_MAX_SCOPES; i++)
        assert_true(str_eq(got.repositories[i], c.repositories[i]));
    sb_free(&scratch);

    /* Sixteen names of 255 do not fit: fewer scopes, but a good token. */
    struct strbuf longest = {0};
    for (size_t i = 0; i < 255; i++)
        sb_add_char(&longest, 'b');
    for (size_t i = 0; i < TOKEN_MAX_SCOPES; i++)
        c.repositories[i] = sb_str(&longest);
    sb_reset(&t);
    token_issue(keys, &c, &t);
    assert_in_range(t.n, 3000, TOKEN_MAX);
    assert_int_equal(verify(sb_str(&t), &got, &scratch), ERR_OK);
    assert_in_range(got.n_repositories, 7, 15);
    sb_free(&scratch);
    sb_free(&longest);
    sb_free(&t);
    sb_free(&names);
}

static void test_scopes(void **state)
{
    (void)state;
    static const struct {
        const char *in, *out; /* name or name! (without pull), joined by a blank */
    } rows[] = {{"repository:acme/app:pull", "acme/app"},
                {"repository:acme/app:push,pull", "acme/app"},
                {"repository:acme/app:push", "acme/app!"},
                {"repository:acme/app:*", "acme/app!"},
                {"repository:acme/app:pull,", "acme/app"},
                {"repository:acme/app:", "acme/app!"},
                {"repository:a:pull repository:b/c:pull", "a b/c"},
                {"  repository:a:pull   repository:b:push ", "a b!"},
                {"repository:a:push repository:a:pull", "a"},
                {"repository:a:pull repository:a:pull", "a"},
                {"registry:catalog:*", ""},
                {"repository(plugin):a:pull", ""},
                {"Repository:a:pull", ""},
                {"repository:acme/../b:pull", ""},
                {"repository:/a:pull", ""},
                {"repository:A:pull", ""},
                {"repository:host:5000/a:pull", ""},
                {"repository:a%2fb:pull", ""},
                {"repository:a", ""},
                {"repository::pull", ""},
                {"", ""},
                {":", ""},
                {"::", ""},
                {"repository:a:pull\trepository:b:pull", ""}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct token_scope s[TOKEN_MAX_SCOPES];
        size_t n = token_scopes_parse(str_c(rows[i].in), s, TOKEN_MAX_SCOPES);
        struct strbuf b = {0};
        for (size_t j = 0; j < n; j++)
            sb_addf(&b, "%s%.*s%s", j ? " " : "", STR(s[j].repository), s[j].pull ? "" : "!");
        if (!str_eq_c(sb_str(&b), rows[i].out))
            fail_msg("%s gives \"%.*s\"", rows[i].in, STR(sb_str(&b)));
        sb_free(&b);
    }
    struct strbuf many = {0};
    for (int i = 0; i < 100; i++)
        sb_addf(&many, "repository:r%d:pull ", i);
    struct token_scope s[TOKEN_MAX_SCOPES];
    assert_int_equal(token_scopes_parse(sb_str(&many), s, TOKEN_MAX_SCOPES), TOKEN_MAX_SCOPES);
    sb_free(&many);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip), cmocka_unit_test(test_time),    cmocka_unit_test(test_rules),
        cmocka_unit_test(test_signature),  cmocka_unit_test(test_largest), cmocka_unit_test(test_scopes),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
