#!/usr/bin/env python3
"""Is what decides held by its tests? Each mutant is one small mistake in the deciding modules; the unit tests must fail for it,
or, when they do not, the comparison of the library with the model (tests/integration/oracle.py).

    tests/mutants.py            every mutant; closes with "N of N killed", exits non-zero when one lives
    tests/mutants.py WORD...    those whose file or text has one of the words

Works on a copy of the tree; the tree itself is not touched. A mutant whose text is not found (the code has changed) is an error.
"""
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
TESTS = ["decision", "license", "closure", "token", "oci", "head", "semver", "credential"]

# file, what stands there, once; what the mistake makes of it
MUTANTS = [
    # who may have what
    ("decision", "d.verdict = d.reason == REASON_GRANTED ? VERDICT_ALLOW : VERDICT_DENY;", "d.verdict = d.reason != REASON_EXPIRED ? VERDICT_ALLOW : VERDICT_DENY;"),
    ("decision", "if (!selects(g, q->repository, v))", "if (0)"),
    ("decision", "return REASON_VERSION_NOT_GRANTED;\n    if (kept", "return REASON_GRANTED;\n    if (kept"),
    ("decision", "if (kept && !(released > 0 && released <= l->terms.expires_at_s))", "if (kept && !(released <= l->terms.expires_at_s))"),
    ("decision", "released <= l->terms.expires_at_s", "released < l->terms.expires_at_s"),
    ("decision", "released <= l->updates_until_s", "released < l->updates_until_s"),
    ("decision", "if (l->updates_until_s != 0 && !(released > 0 && ", "if (l->updates_until_s != 0 && !("),
    ("decision", "q->now_s < g->not_before_s", "q->now_s <= g->not_before_s"),
    ("decision", "q->now_s >= g->not_after_s", "q->now_s > g->not_after_s"),
    ("decision", "(g->not_before_s != 0 && q->now_s < g->not_before_s) || ", ""),
    ("decision", "return r != REASON_GRANTED && tells_nothing(g) ? REASON_VERSION_NOT_GRANTED : r;", "return r;"),
    ("decision", "g->selector == SELECTOR_CHANNEL || g->selector == SELECTOR_DIGEST;", "g->selector == SELECTOR_CHANNEL;"),
    ("decision", "if (l->n_allowed_cidrs == 0)\n        return true;", "if (l->n_allowed_cidrs <= 1)\n        return true;"),
    ("decision", "for (size_t i = 0; addr && i < l->n_allowed_cidrs; i++)", "if (!addr)\n        return true;\n    for (size_t i = 0; i < l->n_allowed_cidrs; i++)"),
    ("decision", "if (is_subject_tag(v.c->tag))\n            continue;", ""),
    ("decision", 'S("sha512-")', 'S("sha384-")'),
    ("decision", "if (tag.n < 7 + 64)", "if (tag.n <= 7 + 64)"),
    ("decision", "(c >= 'A' && c <= 'F')", "(c >= 'A' && c <= 'E')"),
    ("decision", "if (grant->n_repositories && !names_contain(grant->repositories, grant->n_repositories, q->repository))\n                continue;", ""),
    ("decision", "if (closeness(r) > closeness(best))", "if (closeness(r) < closeness(best))"),
    ("decision", "return kept ? REASON_EXPIRED : best;", "return best;"),
    ("decision", "case LICENSE_EFF_REVOKED:\n        return REASON_REVOKED;", "case LICENSE_EFF_REVOKED:\n        break;"),
    ("decision", "case LICENSE_EFF_SUSPENDED:\n        return REASON_SUSPENDED;", "case LICENSE_EFF_SUSPENDED:\n        break;"),
    ("decision", "case LICENSE_EFF_INACTIVE:\n        return REASON_INACTIVE;", "case LICENSE_EFF_INACTIVE:\n        break;"),
    ("decision", "case LICENSE_EFF_SCHEDULED:\n        return REASON_SCHEDULED;", "case LICENSE_EFF_SCHEDULED:\n        break;"),
    ("decision", "if (l->on_expiry != LICENSE_ON_EXPIRY_KEEP_RELEASED)\n            return REASON_EXPIRED;", ""),
    ("decision", "case LICENSE_EFF_NONE:\n    default:\n        return REASON_UNKNOWN;", "case LICENSE_EFF_NONE:\n    default:\n        break;"),
    ("decision", "if (!addr_allowed(l, q->client_addr))\n            return REASON_IP_NOT_ALLOWED;", ""),
    ("decision", "return l->quota_exceeded ? REASON_QUOTA_EXCEEDED : REASON_GRANTED;", "return REASON_GRANTED;"),
    ("decision", "if (q->is_digest && (r ==", "if (!q->is_digest && (r =="),
    ("decision", "r == REASON_VERSION_NOT_GRANTED || r == REASON_MAINTENANCE_ENDED || ", "r == REASON_VERSION_NOT_GRANTED || "),
    ("decision", "if (ent->customer_disabled) {", "if (0) {"),
    ("decision", "if (!ent || q->now_s <= 0)", "if (!ent || q->now_s < 0)"),
    ("decision", "if (!ent || ent->customer_disabled)\n        return false;", "if (!ent)\n        return false;"),
    ("decision", "(q->license_id.n == 0 || str_eq(l->id, q->license_id)) && names_contain", "names_contain"),
    ("decision", "&& names_contain(l->repositories, l->n_repositories, q->repository);", "&& l->n_repositories > 0;"),
    ("decision", "bound(&until, d.valid_until_s, q->now_s);", ""),
    ("decision", "if (t != 0 && t > now_s && t < *until)", "if (t != 0 && t >= now_s && t < *until)"),
    ("decision", "bound(&d->valid_until_s, l->grants[g].not_before_s, q->now_s);", ""),
    ("decision", "if (d.verdict == VERDICT_ALLOW || !ret->license || speaks_better(&d, ret))", "if (!ret->license || speaks_better(&d, ret))"),
    ("decision", "if (d.verdict == VERDICT_ALLOW)\n            break;", ""),
    ("decision", "than->license->terms.expires_at_s;", "than->license->terms.expires_at_s - 1;"),
    ("decision", "a->license->terms.starts_at_s < than->", "a->license->terms.starts_at_s > than->"),
    ("decision", "[REASON_GRANT_WINDOW] = 9", "[REASON_GRANT_WINDOW] = 8"),
    ("decision", "[REASON_QUOTA_EXCEEDED] = 11", "[REASON_QUOTA_EXCEEDED] = 9"),
    ("decision", "return !digest_is_set(&c->digest) || digest_eq(&c->digest, &g->pins[i].digest);", "return true;"),
    ("decision", "return c->until_s == 0; /* bound", "return true; /* bound"),
    ("decision", "return c->until_s == 0 || c->until_s >= g->granted_at_s;", "return true;"),
    ("decision", "c->until_s >= g->granted_at_s", "c->until_s > g->granted_at_s"),
    ("decision", "str_eq(g->pins[i].repository, repository) && ", ""),
    ("decision", "return digest_is_set(&c->digest) && digest_eq(&c->digest, &g->digest);", "return digest_eq(&c->digest, &g->digest);"),
    ("decision", "if (c->version.n == 0)\n        return false;", ""),
    ("decision", "if (c->channel.n == 0 || !str_eq(c->channel, g->value))", "if (!str_eq(c->channel, g->value))"),
    ("decision", "return v->is_semver && semver_range_matches(", "return semver_range_matches("),
    ("decision", "&v->semver, g->include_prerelease)", "&v->semver, true)"),
    ("decision", "if (!g->range)\n        return false;", "if (!g->range)\n        return true;"),
    ("decision", "    if (d.verdict != VERDICT_ALLOW) {\n        d.grant = NULL;", "    if (0) {\n        d.grant = NULL;"),
    # a license by the clock, and how it is read
    ("license", "if (t->starts_at_s != 0 && now_s < t->starts_at_s)", "if (t->starts_at_s != 0 && now_s <= t->starts_at_s)"),
    ("license", "if (now_s >= grace_end(t))", "if (now_s > grace_end(t))"),
    ("license", "if (now_s >= t->expires_at_s)\n        return LICENSE_EFF_GRACE;", "if (now_s > t->expires_at_s)\n        return LICENSE_EFF_GRACE;"),
    ("license", "if (t->grace_days <= 0)\n        return t->expires_at_s;", "if (t->grace_days < 0)\n        return INT64_MAX;"),
    ("license", "e == LICENSE_EFF_EXPIRING || e == LICENSE_EFF_GRACE;", "e == LICENSE_EFF_EXPIRING;"),
    ("license", "    case LICENSE_STATUS_NONE:\n    default:\n        return LICENSE_EFF_NONE;", "    case LICENSE_STATUS_NONE:\n    default:\n        break;"),
    ("license", "if (t > now_s && t < *at)", "if (t >= now_s && t < *at)"),
    ("license", "sooner(&at, grace_end(t), now_s);", ""),
    ("license", "if (c->bits > 128 || memcmp(c->addr, addr, whole) != 0)", "if (memcmp(c->addr, addr, whole) != 0)"),
    ("license", "(uint8_t)(0xff00u >> rest)) == 0", "(uint8_t)(0xff00u >> rest)) == 0 || 1"),
    ("license", "if (!f->bad && jv_len(f->object) != f->taken)", "if (0)"),
    ("license", "form_wrong(f, key, \"a value that is not known here\");", ""),
    ("license", "*ret = jv_int(form_take(f, key, JV_INT), -1);\n    if (*ret < 0)", "*ret = jv_int(form_take(f, key, JV_INT), -1);\n    if (*ret < -1)"),
    # what a manifest reaches
    ("closure", "if (size < 0 || size > SIZE_FIELD_MAX)", "if (size > SIZE_FIELD_MAX)"),
    ("closure", "if (n.media_type == MEDIA_SCHEMA1)\n            continue;", ""),
    ("closure", "n.kind = media_type_is_manifest(n.media_type) ? NODE_MANIFEST : NODE_BLOB;", "n.kind = NODE_MANIFEST;"),
    ("closure", "if (said != MEDIA_UNKNOWN && said != type)", "if (0)"),
    ("closure", "if (config || layers || blobs)", "if (config || layers)"),
    ("closure", "if (most > CLOSURE_MAX_NODES)", "if (most > 2 * CLOSURE_MAX_NODES)"),
    ("closure", "if (have->kind == n->kind && digest_eq(&have->digest, &n->digest))", "if (digest_eq(&have->digest, &n->digest))"),
    ("closure", "if (*slot || closure_full(c))", "if (*slot)"),
    ("closure", "(c.n == 0 && n.kind != NODE_MANIFEST)", "0"),
    ("closure", "if ((n.kind == NODE_MANIFEST) != media_type_is_manifest(n.media_type))", "if (0)"),
    ("closure", "jv_int(version, 0) != 2", "jv_int(version, 2) != 2"),
    ("closure", "if (said == MEDIA_SCHEMA1)", "if (0)"),
    # tokens
    ("token", "jv_len(v) == 3 && str_eq_c(jv_get_str(v, \"alg\"), TOKEN_ALG)", "str_eq_c(jv_get_str(v, \"alg\"), TOKEN_ALG)"),
    ("token", "str_eq_c(jv_get_str(v, \"alg\"), TOKEN_ALG) && ", ""),
    ("token", "&& str_eq_c(jv_get_str(v, \"typ\"), TOKEN_TYP);", ";"),
    ("token", "raw.n == TOKEN_SIG_LEN &&\n", "raw.n >= 1 &&\n"),
    ("token", "if (life <= 0 || life > TOKEN_TTL_S)", "if (life <= 0)"),
    ("token", "c->expires_at_s <= now_s ||", "c->expires_at_s < now_s ||"),
    ("token", "nbf > now_s + TOKEN_LEEWAY_S ||", ""),
    ("token", "|| c->issued_at_s > now_s + TOKEN_LEEWAY_S)", ")"),
    ("token", "!str_eq(c->issuer, issuer) ||", ""),
    ("token", "||\n        !str_eq(c->audience, audience))", ")"),
    ("token", "if (token.n > TOKEN_MAX || ", "if ("),
    ("token", '!str_eq_c(jv_str(jv_at(actions, 0)), "pull"))', "0)"),
    ("token", "!oci_name_valid(c->repositories[i]))", "0)"),
    ("token", "ret[i].pull |= s.pull;", "ret[i].pull &= s.pull;"),
    ("token", 'if (str_eq_c(a, "pull"))', 'if (str_eq_c(a, "pull") || str_eq_c(a, "*"))'),
    # names, tags, digests, routes, ranges
    ("oci", "if (name.n == 0 || name.n > OCI_NAME_MAX)", "if (name.n == 0)"),
    ("oci", "if (tag.n == 0 || tag.n > OCI_TAG_MAX || !is_word(tag.p[0]))", "if (tag.n == 0 || tag.n > OCI_TAG_MAX)"),
    ("oci", "if (i == run)\n            return false;", "if (i == run && i == name.n)\n            return false;"),
    ("oci", "ptrdiff_t slash = str_rindex(rest, '/');\n    if (slash < 0)\n        return false;\n    struct str head", "ptrdiff_t slash = str_index(rest, '/');\n    if (slash < 0)\n        return false;\n    struct str head"),
    ("oci", "if (str_index(path, '%') >= 0)", "if (0)"),
    ("oci", "head.p[head.n - w.n - 1] == '/'", "1"),
    ("oci", "if (a >= size)\n        return ERR_RANGE;", "if (a > size)\n        return ERR_RANGE;"),
    ("oci", "b >= size ? size - 1 : b}", "b > size ? size - 1 : b}"),
    ("oci", "|| b < a)", ")"),
    ("oci", "!str_starts(tag, before) || !str_ends(tag, after))", "!str_starts(tag, before))"),
    ("oci", "m == MEDIA_DOCKER_MANIFEST || m == MEDIA_OCI_ARTIFACT;", "m == MEDIA_DOCKER_MANIFEST || m == MEDIA_OCI_ARTIFACT || m == MEDIA_SCHEMA1;"),
    ("oci", "if (c == '\\0') {\n            sb_reset(ret);\n            return false;", "if (0) {\n            sb_reset(ret);\n            return false;"),
    # heads
    ("head", "if (has_host || !host_is_good(v))", "if (!host_is_good(v))"),
    ("head", "if (ret->has_length || !length_parse(v, &ret->length))", "if (!length_parse(v, &ret->length))"),
    ("head", 'if (NAME_IS(n, "transfer-encoding"))', "if (0)"),
    ("head", "v.n > 19 ||", "v.n > 20 ||"),
    ("head", "if (*p != ':' || p == name)", "if (*p != ':')"),
    ("head", "if (p + 2 != end)", "if (0)"),
    ("head", "if (!has_host && !ret->is_http10)", "if (0)"),
    ("head", "ret->keep_alive = !close && (!ret->is_http10 || keep);", "ret->keep_alive = !close;"),
    # versions and ranges
    ("semver", "inside = t->lo_open ? c > 0 : c >= 0;", "inside = c >= 0;"),
    ("semver", "inside = t->hi_open ? c < 0 : c <= 0;", "inside = c <= 0;"),
    ("semver", "return inside != t->negated;", "return inside;"),
    ("semver", "if (holds && named)", "if (holds)"),
    ("semver", "n->patch == v->patch)", "1)"),
    ("semver", "if (op != OP_NE)", "if (1)"),
    ("semver", "p->v.minor != 0 || p->parts == 2 ? 2 : 3;", "2;"),
    ("semver", "*ret_in = in != negated;", "*ret_in = in;"),
    ("semver", "return p == pattern.n;", "return true;"),
    # secrets
    ("credential", "return str_eq_secret(crc, secret.p + at + SECRET_CHARS, CRC_CHARS);", "return true;"),
    ("credential", "if (!str_eq_secret(sum, key + KEY_RANDOM, sizeof sum))\n        return false;", ""),
    ("credential", "if (!c || n == KEY_CHARS)", "if (!c)"),
    ("credential", 'if (credential_well_formed("pgc_", password)) {', 'if (credential_well_formed("pga_", password)) {'),
]


def run(argv, cwd, timeout, **env):
    try:
        return subprocess.run(argv, cwd=cwd, timeout=timeout, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
                              env={**os.environ, **env}).returncode
    except subprocess.TimeoutExpired:
        return -1


def mutate(text, what, by, name):
    if text.count(what) != 1:
        sys.exit(f"mutants: {name}: stands {text.count(what)} times in the code: {what!r}")
    return text.replace(what, by)


def killer(copy, module):
    """What noticed, or None."""
    for t in sorted(TESTS, key=lambda t: t != module):  # its own test first: mostly no other has to be linked
        if run(["ninja", "-C", "build", f"test_{t}"], copy, 600):
            return "compiler"
        if run([f"build/tests/test_{t}"], copy, 120):
            return f"test_{t}"
    if run(["ninja", "-C", "build", "drive_decision"], copy, 600):
        return "compiler"
    if run(["/usr/bin/python3", "-m", "pytest", "-p", "no:cacheprovider", "-q", "tests/integration/test_model_decisions.py", "-k", "library_and_oracle"],
           copy, 600, PULLGATE_MODEL_CASES="40000", PULLGATE_BIN=str(copy / "build/bin"), PULLGATE_TESTS_BIN=str(copy / "build/tests")):
        return "model"
    return None


def main(words):
    chosen = [m for m in MUTANTS if not words or any(w in m[0] or w in m[1] for w in words)]
    sources = {m[0]: (ROOT / "lib" / f"{m[0]}.c").read_text() for m in MUTANTS}
    for module, what, by in MUTANTS:
        mutate(sources[module], what, by, module)
    alive, began = [], time.monotonic()
    with tempfile.TemporaryDirectory() as tmp:
        copy = pathlib.Path(tmp) / "tree"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", "build", "build-*", "corpus"), symlinks=True)
        if run(["cmake", "-S", ".", "-B", "build", "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_C_FLAGS=-w"], copy, 120):
            sys.exit("mutants: the copy does not configure")
        (copy / "build/bin").mkdir(exist_ok=True)
        (copy / "build/bin/pullgate-proxy").touch()  # the model test compares the library alone, but looks for a build
        if by := killer(copy, TESTS[0]):
            sys.exit(f"mutants: without a mistake, {by} fails already")
        for module, what, by in chosen:
            source = copy / "lib" / f"{module}.c"
            source.write_text(mutate(sources[module], what, by, module))
            noticed = killer(copy, module)
            source.write_text(sources[module])
            print(f"{noticed or 'LIVES':16} {module:10} {what[:60]!r} -> {by[:60]!r}", flush=True)
            if not noticed:
                alive.append((module, what, by))
    print(f"{len(chosen) - len(alive)} of {len(chosen)} killed in {time.monotonic() - began:.0f} s")
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
