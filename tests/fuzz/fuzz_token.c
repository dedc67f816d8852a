/* Tokens: with a fixed key, whatever is accepted must be a token that this harness signed. The input is a token, or edits one: its
 * bytes are written over a good one from an offset on. */
#include "pullgate/token.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pullgate/mem.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct keyring *keys;
static struct strbuf good;

static void setup(void)
{
    char dir[] = "/tmp/pullgate-fuzz-XXXXXX", cmd[64];
    struct error e;
    AN(mkdtemp(dir));
    if (keyring_open(dir, true, &keys, &e) != ERR_OK)
        WRONG("keyring");
    struct token_claims c = {.issuer = S("i"), .audience = S("a"), .subject = S("s"), .issued_at_s = 1000, .expires_at_s = 1300, .n_repositories = 1,
                             .credential_hash = S("00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"), .repositories = {S("shop/api")}};
    token_issue(keys, &c, &good);
    static const char *const files[] = {"mac.key", "pepper.key", "seal.key", "audit.key"};
    for (size_t i = 0; i < 4; i++) {
        snprintf(cmd, sizeof cmd, "%s/%s", dir, files[i]);
        remove(cmd);
    }
    snprintf(cmd, sizeof cmd, "%s/token-%s.key", dir, keyring_token_kid(keys));
    remove(cmd);
    remove(dir);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct token_claims c;
    struct strbuf scratch = {0}, t = {0};
    if (!keys)
        setup();
    if (size >= 2 && data[0] & 1) {
        size_t at = (size_t)data[1] * 4 % good.n;
        sb_add(&t, sb_str(&good));
        for (size_t i = 2; i < size && at + i - 2 < t.n; i++)
            t.p[at + i - 2] = (char)data[i];
    } else {
        sb_add(&t, (struct str){(const char *)data, size});
    }
    if (token_verify(keys, sb_str(&t), S("i"), S("a"), 1100, &c, &scratch) == ERR_OK)
        AN(str_eq(sb_str(&t), sb_str(&good)));
    struct token_scope s[TOKEN_MAX_SCOPES];
    size_t n = token_scopes_parse((struct str){(const char *)data, size}, s, TOKEN_MAX_SCOPES);
    for (size_t i = 0; i < n; i++)
        AN(oci_name_valid(s[i].repository));
    sb_free(&scratch);
    sb_free(&t);
    return 0;
}
