/* Any bytes as the configuration file: a clear error that names the file, or a configuration that shows itself the same twice. What
 * is in force does not change by a file that is refused, and a reload takes over nothing that needs a restart. */
#include "fuzz.h"

#include "pullgate/config.h"

static void write_file(const char *path, const void *data, size_t size)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    FUZZ_CHECK(fd >= 0 && (size == 0 || write(fd, data, size) == (ssize_t)size) && close(fd) == 0, "temporary file");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct config *running;
    static struct strbuf running_text;
    struct config *c = NULL;
    struct error err = {.text = ""};
    struct strbuf first = {0}, again = {0}, now = {0}, names = {0};
    char path[64];

    if (memmem(data, size, "_file", 5) != NULL)
        return 0; /* reads what the bytes name */
    snprintf(path, sizeof path, "/dev/shm/fuzz_config.%d.yaml", (int)getpid());
    if (!running) {
        fuzz_quiet();
        write_file(path, "proxy:\n  workers: 2\n", strlen("proxy:\n  workers: 2\n"));
        FUZZ_CHECK(config_load(path, &running, &err) == ERR_OK, err.text);
        config_show(running, &running_text);
    }
    write_file(path, data, size);
    enum err e = config_load(path, &c, &err);
    config_show(running, &now);
    FUZZ_CHECK(str_eq(sb_str(&now), sb_str(&running_text)), "loading a file has changed what is in force");
    if (e) {
        FUZZ_CHECK(c == NULL && strncmp(err.text, path, strlen(path)) == 0, "an error that does not name the file");
    } else {
        config_show(c, &first);
        FUZZ_CHECK(c->limits.connections > 0 && c->limits.head_fields > 0 && c->limits.head_bytes > 0 && c->limits.manifest_bytes > 0, "a limit of nothing");
        config_needs_restart(c, running, &names);
        config_keep_restart(c, running);
        sb_reset(&again);
        config_needs_restart(c, running, &again);
        FUZZ_CHECK(again.n == 0, "a reload would change what needs a restart");
        if (names.n == 0)
            FUZZ_CHECK(config_same(c, c), "not the same as itself");
        config_unref(&c);
        if (strstr(first.p, "***") == NULL) { /* a masked secret does not come back */
            write_file(path, first.p, first.n);
            FUZZ_CHECK(config_load(path, &c, &err) == ERR_OK, "what it shows is no configuration");
            sb_reset(&again);
            config_show(c, &again);
            FUZZ_CHECK(str_eq(sb_str(&first), sb_str(&again)), "shows itself differently");
            config_unref(&c);
        }
    }
    unlink(path);
    sb_free(&first);
    sb_free(&again);
    sb_free(&now);
    sb_free(&names);
    return 0;
}
