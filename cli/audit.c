/* `pullgate audit verify`: the chain of the audit log, on the daemon's machine: of its store, or of an export. It needs audit.key. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "audit.h"
#include "pullgate/config.h"
#include "pullgate/jv.h"
#include "pullgate/mem.h"
#include "pullgate/store.h"

#include "cli.h"

static void say(bool is_good, int64_t records, const char *detail)
{
    if (cli.json) {
        struct strbuf b = {0};
        struct jv *v = jv_object();
        jv_set_bool(v, "ok", is_good);
        jv_set_int(v, "records", records);
        jv_set_c(v, "detail", detail);
        jv_dump(v, &b);
        puts(b.p);
        jv_free(v);
        sb_free(&b);
    } else if (is_good) {
        printf("%lld records, each as it was written\n", (long long)records);
    } else {
        fprintf(stderr, "pullgate: %s\n", detail);
    }
}

static enum err verify_file(const char *path, const struct keyring *keys, int64_t *ret_records, struct error *reterr)
{
    struct audit_reader reader = {.keys = keys};
    FILE *f = strcmp(path, "-") == 0 ? stdin : fopen(path, "re");
    char *line = NULL;
    size_t cap = 0;
    enum err err = f ? ERR_OK : error_set(reterr, ERR_UNAVAILABLE, "%s: %s", path, strerror(errno));
    for (ssize_t n; !err && (n = getline(&line, &cap, f)) > 0;) {
        struct str text = {line, (size_t)n};
        while (text.n && (text.p[text.n - 1] == '\n' || text.p[text.n - 1] == '\r'))
            text.n--;
        if (text.n)
            err = audit_read(&reader, text, reterr);
    }
    if (!err && ferror(f))
        err = error_set(reterr, ERR_UNAVAILABLE, "%s: %s", path, strerror(errno));
    mem_free(line); /* getline's */
    if (f && f != stdin)
        fclose(f);
    *ret_records = reader.records;
    return err;
}

static enum err verify_store(const struct config *cfg, const struct keyring *keys, int64_t *ret_records, struct error *reterr)
{
    struct store *s = NULL;
    struct strbuf path = {0};
    audit_head_path(cfg->keys.path, &path);
    enum err err = store_open(cfg->store.url, true, &s, reterr);
    if (!err)
        err = audit_verify(s, keys, path.p, ret_records, reterr);
    store_close(&s);
    sb_free(&path);
    return err;
}

int audit_command(int argc, char **argv)
{
    const char *config = NULL, *file = NULL;
    struct config *cfg = NULL;
    struct keyring *keys = NULL;
    struct error error = {0};
    int64_t records = 0;

    for (int i = 0; i < argc; i++) {
        bool has_value = i + 1 < argc;
        if (strcmp(argv[i], "--config") == 0 && has_value)
            config = argv[++i];
        else if (strcmp(argv[i], "--file") == 0 && has_value)
            file = argv[++i];
        else
            die(EXIT_USAGE, "audit verify [--file EXPORT] [--config FILE], not \"%s\"", argv[i]);
    }
    if (config_load(config, &cfg, &error))
        die(EXIT_USAGE, "%s", error.text);
    if (keyring_open(cfg->keys.path, false, &keys, &error))
        die(EXIT_FAILED, "%s", error.text);
    enum err err = file ? verify_file(file, keys, &records, &error) : verify_store(cfg, keys, &records, &error);
    if (err && err != ERR_INVALID)
        die(EXIT_UNREACHABLE, "%s", error.text[0] ? error.text : err_text(err));
    say(err == ERR_OK, records, error.text);
    keyring_free(keys);
    config_unref(&cfg);
    return err ? EXIT_FAILED : EXIT_OK;
}
