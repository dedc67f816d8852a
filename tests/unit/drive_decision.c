/* Decides what it is told to, for the model-based test: NDJSON {"entitlement":…,"query":…} in, one line of JSON a case out.
 * The entitlement has the form of docs/REDIS.md. The query: {"repository","is_digest","now","client" ("" unknown),"license_id",
 * "tag_template","candidates":[{"tag","channel","released_at","digest" ("" none),"until"}]}: a version is what the library
 * reads from the tag, as the proxy does. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pullgate/decision.h"
#include "pullgate/jv.h"
#include "pullgate/mem.h"

#define CANDIDATES_MAX 64

struct asked {
    struct decision_query query;
    struct candidate candidates[CANDIDATES_MAX];
    struct strbuf versions[CANDIDATES_MAX];
    uint8_t addr[16];
};

static bool candidate_read(const struct jv *v, struct str tag_template, struct candidate *c, struct strbuf *version)
{
    struct str digest = jv_get_str(v, "digest");

    memset(c, 0, sizeof *c);
    c->tag = jv_get_str(v, "tag");
    c->version = oci_version_of_tag(tag_template, c->tag, version) ? sb_str(version) : S("");
    c->channel = jv_get_str(v, "channel");
    c->released_at_s = jv_get_int(v, "released_at", 0);
    c->until_s = jv_get_int(v, "until", 0);
    return digest.n == 0 || digest_parse(digest, &c->digest, NULL) == ERR_OK;
}

static bool query_read(const struct jv *v, struct asked *a)
{
    const struct jv *list = jv_get(v, "candidates");
    struct str client = jv_get_str(v, "client");

    memset(&a->query, 0, sizeof a->query);
    a->query.repository = jv_get_str(v, "repository");
    a->query.is_digest = jv_get_bool(v, "is_digest", false);
    a->query.now_s = jv_get_int(v, "now", 0);
    a->query.license_id = jv_get_str(v, "license_id");
    a->query.candidates = a->candidates;
    a->query.n_candidates = jv_len(list);
    if (a->query.n_candidates > CANDIDATES_MAX)
        return false;
    for (size_t i = 0; i < a->query.n_candidates; i++)
        if (!candidate_read(jv_at(list, i), jv_get_str(v, "tag_template"), &a->candidates[i], &a->versions[i]))
            return false;
    if (client.n) {
        if (!addr_parse(client, a->addr))
            return false;
        a->query.client_addr = a->addr;
    }
    return true;
}

static int decide_line(struct str line, struct asked *a)
{
    static const char *const verdicts[] = {[VERDICT_UNKNOWN] = "unknown", [VERDICT_ALLOW] = "allow", [VERDICT_DENY] = "deny"};
    struct entitlement *ent = NULL;
    struct error error = {0};
    struct decision d;
    struct jv *doc;

    if (jv_parse(line, &JV_LIMITS_TRUSTED, &doc, &error)) {
        fprintf(stderr, "not JSON: %s\n", error.text);
        return 1;
    }
    if (entitlement_parse(jv_get(doc, "entitlement"), &ent, &error) || !query_read(jv_get(doc, "query"), a)) {
        fprintf(stderr, "not a case: %s %s\n", error.field, error.text);
        jv_free(doc);
        return 1;
    }
    decision_make(ent, &a->query, &d);
    printf("{\"verdict\":\"%s\",\"reason\":\"%s\",\"license\":\"%.*s\",\"until\":%lld}\n", verdicts[d.verdict], reason_text(d.reason),
           d.license ? (int)d.license->id.n : 0, d.license ? d.license->id.p : "", (long long)d.valid_until_s);
    entitlement_unref(&ent);
    jv_free(doc);
    return 0;
}

int main(void)
{
    static struct asked asked;
    char *line = NULL;
    size_t cap = 0;
    ssize_t n;
    int bad = 0;

    while (!bad && (n = getline(&line, &cap, stdin)) > 0)
        bad = decide_line((struct str){line, (size_t)n}, &asked);
    for (size_t i = 0; i < CANDIDATES_MAX; i++)
        sb_free(&asked.versions[i]);
    mem_free(line);
    return bad || fflush(stdout) ? 1 : 0;
}
