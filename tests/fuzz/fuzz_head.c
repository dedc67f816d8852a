/* Any bytes as a request head. What is accepted is unambiguous: no NUL, no bare CR or LF, one framing; and none of its prefixes is
 * taken for a whole head or refused early. */
#include <stdlib.h>
#include <string.h>

#include "pullgate/head.h"
#include "pullgate/mem.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_accepted(const char *p, size_t n, const struct head_limits *limits, const struct head *h)
{
    const char *why = NULL;
    unsigned count;

    for (size_t i = 0; i < n; i++)
        AN(p[i] != '\0' && (p[i] != '\n' || (i > 0 && p[i - 1] == '\r')) && (p[i] != '\r' || (i + 1 < n && p[i + 1] == '\n')));
    for (size_t k = 1; k < n; k++)
        AN(head_find_end(p, k, 0) == 0 && head_check_partial((struct str){p, k}, 0, limits, &why) == 0);
    (void)head_get(h, "transfer-encoding", &count);
    AN(count == 0);
    (void)head_get(h, "content-length", &count);
    AN(count == h->has_length);
    (void)head_get(h, "host", &count);
    AN(count <= 1 && (count == 1 || h->is_http10));
    AN(h->target.n > 0 && h->target.p[0] == '/' && h->n_fields <= limits->fields);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct head_limits limits = {.target_bytes = 4096, .head_bytes = 16384, .fields = 64};
    static struct head h;
    const char *why = NULL;
    size_t end = head_find_end((const char *)data, size, 0), n = end ? end : size;
    char *copy = mem_alloc(n); /* exact, so that a read past the end is seen */

    memcpy(copy, data, n);
    if (end == 0)
        (void)head_check_partial((struct str){copy, n}, 0, &limits, &why);
    else if (head_parse((struct str){copy, n}, &limits, &h, &why) == 0)
        check_accepted(copy, n, &limits, &h);
    else
        AN(why != NULL);
    mem_free(copy);
    return 0;
}
