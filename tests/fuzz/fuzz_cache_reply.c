/* Bytes of a Redis that may be anybody's, through the reply parser with our bounds and our conversion: no crash, no leak, and an error
 * reply anywhere in it is never taken for an answer. */
#include "../../lib/cache.c"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static bool has_error(const redisReply *r)
{
    if (r->type == REDIS_REPLY_ERROR)
        return true;
    for (size_t i = 0; r->type == REDIS_REPLY_ARRAY && i < r->elements; i++)
        if (has_error(r->element[i]))
            return true;
    return false;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    void *reply = NULL;

    log_set_level((enum log_level)(LOG_LEVEL_ERROR + 1));
    pthread_once(&parser_once, parser_init);
    redisReader *reader = redisReaderCreateWithFunctions(&parser_functions);
    for (size_t at = 0; at < size;) { /* in pieces, as a socket gives them */
        size_t n = size - at < 7 ? size - at : 7;
        if (redisReaderFeed(reader, (const char *)data + at, n) != REDIS_OK)
            break;
        at += n;
        int rc;
        while ((rc = redisReaderGetReply(reader, &reply)) == REDIS_OK && reply) {
            struct cache_reply out;
            enum err e = reply_convert(reply, &out, 0);
            AN(e || !has_error(reply));
            if (!e)
                reply_clear(&out);
            freeReplyObject(reply);
        }
        if (rc != REDIS_OK)
            break;
    }
    redisReaderFree(reader);
    return 0;
}
