/* `pullgate verify`: is this license file, or lease, to be believed, and what does it allow? Offline: nothing but files, and the clock.
 * The forms are those of docs/LICENSE_FILE.md. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "pullgate/clock.h"
#include "pullgate/file.h"
#include "pullgate/jv.h"
#include "pullgate/jws.h"
#include "pullgate/license.h"
#include "pullgate/mem.h"

#include "cli.h"

#define FORM 1           /* claim "version" that this program knows */
#define CLOCK_SKEW_S 300 /* what a clock may be behind the signer's */
#define KEY_FILE_MAX (256u * 1024)

enum verify_exit { /* for scripts */
    VERIFY_VALID = 0,
    VERIFY_FORGED = 1, /* altered, malformed, signed by somebody else */
    VERIFY_USAGE = 2,
    VERIFY_NOT_NOW = 3, /* expired, not yet, suspended, inactive */
    VERIFY_REVOKED = 4,
};

struct options {
    const char *file, *crl, *jwks, *public_key;
    int64_t at_s;
};

struct verdict {
    enum verify_exit code;
    const char *reason; /* ok, not_trusted, expired, … */
    char text[400];
    const char *kind; /* license, lease */
    char kid[JWS_KID_MAX];
    struct jv *claims;
    bool has_crl, is_crl_late;
    int64_t crl_number;
};

static void options_parse(int argc, char **argv, struct options *o)
{
    static const char usage[] = "verify FILE [--crl FILE] (--jwks FILE | --public-key FILE) [--at TIME]";
    struct error error = {0};

    o->at_s = clock_now_s();
    for (int i = 0; i < argc; i++) {
        bool has_value = i + 1 < argc;
        if (strcmp(argv[i], "--crl") == 0 && has_value)
            o->crl = argv[++i];
        else if (strcmp(argv[i], "--jwks") == 0 && has_value)
            o->jwks = argv[++i];
        else if (strcmp(argv[i], "--public-key") == 0 && has_value)
            o->public_key = argv[++i];
        else if (strcmp(argv[i], "--json") == 0)
            cli.json = true;
        else if (strcmp(argv[i], "--at") == 0 && has_value && clock_parse_start(str_c(argv[i + 1]), "UTC", &o->at_s, &error) == ERR_OK)
            i++;
        else if ((argv[i][0] != '-' || argv[i][1] == '\0') && o->file == NULL)
            o->file = argv[i];
        else
            die(EXIT_USAGE, "%s, not \"%s\"%s%s", usage, argv[i], error.text[0] != '\0' ? ": " : "", error.text);
    }
    if (o->file == NULL)
        die(EXIT_USAGE, "%s", usage);
    if ((o->jwks == NULL) == (o->public_key == NULL))
        die(EXIT_USAGE, "verify needs the keys that are to be believed: --jwks FILE (the vendor's /.well-known/jwks.json) or --public-key FILE");
}

/* At most max bytes and one of what is beyond them, so that a text that is too long is known as such. */
static struct str text_of(const char *path, size_t max, struct strbuf *b)
{
    int fd = strcmp(path, "-") == 0 ? STDIN_FILENO : open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        die(EXIT_USAGE, "%s: %s", path, strerror(errno));
    if (!file_read_rest(fd, max + 3, b) && errno != EFBIG)
        die(EXIT_USAGE, "%s: %s", path, strerror(errno));
    if (fd != STDIN_FILENO)
        close(fd);
    struct str s = sb_str(b);
    if (s.n && s.p[s.n - 1] == '\n') /* one line end, as editors leave it */
        s.n -= s.n > 1 && s.p[s.n - 2] == '\r' ? 2 : 1;
    return s;
}

static void keys_read(const struct options *o, struct jws_keys *ret)
{
    struct strbuf b = {0};
    struct error error = {0};
    const char *path = o->jwks != NULL ? o->jwks : o->public_key;
    struct str text = text_of(path, KEY_FILE_MAX, &b);
    enum err err = o->jwks != NULL ? jws_keys_parse(text, ret, &error) : jws_key_parse(text, ret, &error);

    if (err != ERR_OK)
        die(EXIT_USAGE, "%s: %s", path, error.text);
    sb_free(&b);
}

static void judge(struct verdict *v, enum verify_exit code, const char *reason, const char *fmt, ...) __attribute__((format(printf, 4, 5)));
static void judge(struct verdict *v, enum verify_exit code, const char *reason, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    v->code = code;
    v->reason = reason;
    vsnprintf(v->text, sizeof v->text, fmt, ap);
    va_end(ap);
}

/* 0 for null; false when it is neither null nor a time. */
static bool time_claim(const struct jv *claims, const char *name, int64_t *ret)
{
    const struct jv *t = jv_get(claims, name);

    *ret = 0;
    return jv_type(t) == JV_NULL || (jv_type(t) == JV_STRING && clock_parse_instant(jv_str(t), ret, NULL) == ERR_OK);
}

/* The claims that anything is concluded from. */
static bool claims_well_formed(const struct verdict *v, struct license_terms *terms)
{
    const struct jv *c = v->claims;
    bool is_lease = strcmp(v->kind, "lease") == 0;
    struct str status = jv_get_str(c, "status");

    *terms = (struct license_terms){.grace_days = jv_get_int(c, "grace_days", -1)};
    if (jv_get_int(c, "version", 0) != FORM || !jv_get_str(c, "license_id").n || !str_eq(jv_get_str(c, "license_id"), jv_get_str(c, "sub")) ||
        !jv_get_str(jv_get(c, "vendor"), "id").n || jv_get_int(c, "iat", 0) <= 0 || terms->grace_days < 0 || terms->grace_days > 36500 ||
        !time_claim(c, "starts_at", &terms->starts_at_s) || !time_claim(c, "expires_at", &terms->expires_at_s))
        return false;
    return is_lease ? jv_get_int(c, "exp", 0) > 0 : jv_get_int(c, "serial", 0) > 0 && license_status_parse(status, &terms->status);
}

static void check_time(struct verdict *v, const struct license_terms *terms, int64_t at_s)
{
    char date[CLOCK_RFC3339_MAX];
    int64_t exp = jv_get_int(v->claims, "exp", 0);

    if (jv_get_int(v->claims, "iat", 0) > at_s + CLOCK_SKEW_S) {
        judge(v, VERIFY_NOT_NOW, "not_yet", "signed at %s, which is yet to come: is the clock right?", clock_rfc3339(jv_get_int(v->claims, "iat", 0), date));
        return;
    }
    if (strcmp(v->kind, "lease") == 0) {
        if (exp <= at_s)
            judge(v, VERIFY_NOT_NOW, "expired", "the lease ended at %s: validate the license key again", clock_rfc3339(exp, date));
        return;
    }
    enum license_effective e = license_effective(terms, at_s);
    if (license_in_force(e))
        return;
    if (e == LICENSE_EFF_REVOKED)
        judge(v, VERIFY_REVOKED, "revoked", "the license is revoked");
    else if (e == LICENSE_EFF_EXPIRED)
        judge(v, VERIFY_NOT_NOW, "expired", "the license expired on %s", clock_date(terms->expires_at_s, date));
    else if (e == LICENSE_EFF_SCHEDULED)
        judge(v, VERIFY_NOT_NOW, "not_yet", "the license begins on %s", clock_date(terms->starts_at_s, date));
    else
        judge(v, VERIFY_NOT_NOW, license_effective_text(e), "the license was %s when the file was signed", license_effective_text(e));
}

static bool entry_hits(const struct verdict *v, const struct jv *entry)
{
    const struct jv *serial = jv_get(entry, "serial");

    if (!str_eq(jv_get_str(entry, "license_id"), jv_get_str(v->claims, "license_id")))
        return false;
    if (jv_type(serial) != JV_INT) /* null: all of the license; anything else is not understood, and then taken for that */
        return true;
    if (strcmp(v->kind, "lease") == 0) /* leases have no serial: those of a key that was replaced are meant */
        return str_eq(jv_get_str(entry, "key_prefix"), jv_get_str(v->claims, "key_prefix"));
    return jv_get_int(v->claims, "serial", 0) <= jv_int(serial, 0);
}

static void check_crl(struct verdict *v, const struct options *o, const struct jws_keys *keys)
{
    struct strbuf b = {0};
    struct jv *crl = NULL;
    struct error error = {0};
    char kid[JWS_KID_MAX];
    int64_t next = 0;

    if (jws_open(text_of(o->crl, JWS_CRL_MAX, &b), JWS_TYP_CRL, JWS_CRL_MAX, keys, &crl, kid, &error) != ERR_OK) {
        judge(v, VERIFY_FORGED, "crl_not_trusted", "%s: %s", o->crl, error.text);
    } else if (jv_get_int(crl, "version", 0) != FORM || jv_type(jv_get(crl, "revoked")) != JV_ARRAY || !time_claim(crl, "next_update", &next) ||
               !str_eq(jv_get_str(jv_get(crl, "vendor"), "id"), jv_get_str(jv_get(v->claims, "vendor"), "id"))) {
        judge(v, VERIFY_FORGED, "crl_not_trusted", "%s: not the revocation list of the vendor of this license", o->crl);
    } else {
        v->has_crl = true;
        v->crl_number = jv_get_int(crl, "number", 0);
        v->is_crl_late = next < o->at_s;
        const struct jv *list = jv_get(crl, "revoked");
        for (size_t i = 0; i < jv_len(list); i++)
            if (entry_hits(v, jv_at(list, i))) {
                judge(v, VERIFY_REVOKED, "revoked", "revoked on %s: %s", jv_get_c(jv_at(list, i), "revoked_at", "an unknown day"), jv_get_c(jv_at(list, i), "reason", ""));
                break;
            }
    }
    jv_free(crl);
    sb_free(&b);
}

static void verify(const struct options *o, struct verdict *v)
{
    struct strbuf b = {0};
    struct jws_keys keys = {0};
    struct error error = {0}, lease_error = {0};
    struct license_terms terms;

    keys_read(o, &keys);
    struct str text = text_of(o->file, JWS_LICENSE_MAX, &b);
    v->kind = "license";
    judge(v, VERIFY_VALID, "ok", "valid");
    if (jws_open(text, JWS_TYP_LICENSE, JWS_LICENSE_MAX, &keys, &v->claims, v->kid, &error) != ERR_OK) {
        if (jws_open(text, JWS_TYP_LEASE, JWS_LEASE_MAX, &keys, &v->claims, v->kid, &lease_error) == ERR_OK)
            v->kind = "lease";
        else
            judge(v, VERIFY_FORGED, "not_trusted", "%s", error.text);
    }
    if (v->code == VERIFY_VALID && !claims_well_formed(v, &terms))
        judge(v, VERIFY_FORGED, "malformed", "signed, but of a form that this program does not know");
    if (v->code == VERIFY_VALID)
        check_time(v, &terms, o->at_s);
    if (v->code != VERIFY_FORGED && o->crl != NULL)
        check_crl(v, o, &keys);
    sb_free(&b);
}

/* ---- output -------------------------------------------------------------------------------------------------------------- */

static void verdict_json(const struct verdict *v)
{
    struct jv *doc = jv_object();

    jv_set_bool(doc, "valid", v->code == VERIFY_VALID);
    jv_set_c(doc, "reason", v->reason);
    jv_set_c(doc, "message", v->text);
    jv_set_c(doc, "kind", v->claims != NULL ? v->kind : NULL);
    jv_set_c(doc, "kid", v->claims != NULL ? v->kid : NULL);
    if (v->has_crl) {
        jv_set_int(doc, "crl_number", v->crl_number);
        jv_set_bool(doc, "crl_is_late", v->is_crl_late);
    }
    /* Nothing of a text that is not to be believed is shown as if it were. */
    jv_set(doc, "claims", v->claims != NULL && v->code != VERIFY_FORGED ? jv_copy(v->claims) : jv_null());
    print_json(doc);
    jv_free(doc);
}

/* What a signed text says is the signer's, yet a terminal is not to be written to by it. */
static void line(const char *name, struct str value)
{
    struct strbuf b = {0};

    for (size_t i = 0; i < value.n; i++)
        sb_add_char(&b, (unsigned char)value.p[i] < 0x20 || value.p[i] == 0x7f ? ' ' : value.p[i]);
    printf("%-14s %s\n", name, b.n ? b.p : "-");
    sb_free(&b);
}

static void print_party(const char *name, const struct jv *party)
{
    struct strbuf b = {0};

    sb_addf(&b, "%s (%s)", jv_get_c(party, "name", ""), jv_get_c(party, "slug", ""));
    line(name, sb_str(&b));
    sb_free(&b);
}

static void print_map(const char *name, const struct jv *map)
{
    struct strbuf b = {0};

    for (void *it = jv_iter(map); it != NULL; it = jv_iter_next(map, it)) {
        sb_addf(&b, "%s%s ", b.n ? ", " : "", jv_iter_key(it));
        if (jv_type(jv_iter_value(it)) == JV_STRING)
            sb_add(&b, jv_str(jv_iter_value(it)));
        else
            jv_dump(jv_iter_value(it), &b);
    }
    if (b.n)
        line(name, sb_str(&b));
    sb_free(&b);
}

static void verdict_text(const struct verdict *v)
{
    const struct jv *c = v->claims, *grants = jv_get(c, "grants");
    struct strbuf b = {0};
    char time[CLOCK_RFC3339_MAX];

    if (v->code == VERIFY_FORGED)
        return;
    sb_addf(&b, "%s  %s", jv_get_c(c, "name", ""), jv_get_c(c, "license_id", ""));
    line(v->kind, sb_str(&b));
    print_party("customer", jv_get(c, "customer"));
    print_party("application", jv_get(c, "application"));
    print_party("vendor", jv_get(c, "vendor"));
    sb_reset(&b);
    if (strcmp(v->kind, "lease") == 0)
        sb_addf(&b, "for %s, until %s", jv_get_c(c, "instance", ""), clock_rfc3339(jv_get_int(c, "exp", 0), time));
    else
        sb_addf(&b, "%lld, issued %s", (long long)jv_get_int(c, "serial", 0), jv_get_c(c, "issued_at", ""));
    line(strcmp(v->kind, "lease") == 0 ? "leased" : "serial", sb_str(&b));
    line("status", jv_get_str(c, "status"));
    sb_reset(&b);
    sb_addf(&b, "%s to %s", jv_get_c(c, "starts_at", "any time"), jv_get_c(c, "expires_at", "no end"));
    if (jv_get_int(c, "grace_days", 0) > 0)
        sb_addf(&b, ", and %lld days of grace", (long long)jv_get_int(c, "grace_days", 0));
    line("valid", sb_str(&b));
    if (jv_get_str(c, "updates_until").n)
        line("updates until", jv_get_str(c, "updates_until"));
    sb_reset(&b);
    for (size_t i = 0; i < jv_len(grants); i++)
        sb_addf(&b, "%s%s:%s", i ? ", " : "", jv_get_c(jv_at(grants, i), "selector", ""), jv_get_c(jv_at(grants, i), "value", ""));
    if (b.n)
        line("grants", sb_str(&b));
    print_map("limits", jv_get(c, "limits"));
    print_map("features", jv_get(c, "features"));
    line("signed by", str_c(v->kid));
    sb_free(&b);
}

int verify_command(int argc, char **argv)
{
    struct options o = {0};
    struct verdict v = {0};

    options_parse(argc, argv, &o);
    verify(&o, &v);
    if (cli.json) {
        verdict_json(&v);
    } else {
        verdict_text(&v);
        if (v.code == VERIFY_VALID)
            line("verdict", S("valid"));
        fflush(stdout);
        if (v.code != VERIFY_VALID)
            fprintf(stderr, "pullgate: %s: %s\n", o.file, v.text);
    }
    if (v.is_crl_late)
        fputs("pullgate: a newer revocation list is due: this one may not name what was revoked since\n", stderr);
    jv_free(v.claims);
    return (int)v.code;
}
