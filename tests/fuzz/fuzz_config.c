/* Any bytes as the configuration file: a clear error that names the file, or a configuration that shows itself the same twice. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "pullgate/config.h"
#include "pullgate/mem.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void write_file(const char *path, const void *data, size_t size)
{
    FILE *f = fopen(path, "w");
    AN(f != NULL);
    AN(fwrite(data, 1, size, f) == size);
    AN(fclose(f) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct config *c = NULL;
    struct error err = {.text = ""};
    struct strbuf first = {0}, again = {0};
    char path[64];

    if (memmem(data, size, "_file", 5) != NULL)
        return 0; /* reads what the bytes name */
    snprintf(path, sizeof path, "/dev/shm/fuzz_config.%d.yaml", (int)getpid());
    write_file(path, data, size);
    if (config_load(path, &c, &err)) {
        AN(c == NULL && strncmp(err.text, path, strlen(path)) == 0);
    } else {
        config_show(c, &first);
        config_unref(&c);
        if (strstr(first.p, "***") == NULL) { /* a masked secret does not come back */
            write_file(path, first.p, first.n);
            AN(config_load(path, &c, &err) == ERR_OK);
            config_show(c, &again);
            AN(first.n == again.n && memcmp(first.p, again.p, first.n) == 0);
            config_unref(&c);
        }
    }
    unlink(path);
    sb_free(&first);
    sb_free(&again);
    return 0;
}
