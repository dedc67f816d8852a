/* Logs as JSON lines on a descriptor (standard error unless told): {"time","level","msg","program",…}.
 * Never hand it a credential, a token or an Authorization value. Thread-safe: one write(2) a line. */
#ifndef PULLGATE_LOG_H
#define PULLGATE_LOG_H

#include <stdbool.h>

enum log_level {
    LOG_LEVEL_DEBUG,
    LOG_LEVEL_INFO,  /* lifecycle */
    LOG_LEVEL_WARN,  /* degraded */
    LOG_LEVEL_ERROR, /* an operator must act */
};

void log_init(const char *program, enum log_level level);
void log_set_level(enum log_level level);
bool log_level_parse(const char *name, enum log_level *ret); /* debug info warn error */
void log_msg(enum log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
#define log_debug(...) log_msg(LOG_LEVEL_DEBUG, __VA_ARGS__)
#define log_info(...) log_msg(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_warn(...) log_msg(LOG_LEVEL_WARN, __VA_ARGS__)
#define log_error(...) log_msg(LOG_LEVEL_ERROR, __VA_ARGS__)
/* At most one line per `every_ms` from one call site: `static uint64_t last; log_limited(&last, 10000, …)`. */
void log_limited(unsigned long long *last_ms, unsigned every_ms, enum log_level level, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

#endif
