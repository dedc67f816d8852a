/* JSON log lines. One write(2) a line, so that lines of threads and processes do not mix. */
#include "pullgate/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <unistd.h>

#include "pullgate/clock.h"
#include "pullgate/file.h"
#include "pullgate/str.h"

#define LOG_LINE_MAX 2048 /* bytes; longer messages are cut */

static const char *log_program = "pullgate";
static _Atomic int log_level = LOG_LEVEL_INFO;
static const char *const level_names[] = {"debug", "info", "warn", "error"};

void log_init(const char *program, enum log_level level)
{
    log_program = program;
    log_set_level(level);
}

void log_set_level(enum log_level level)
{
    atomic_store(&log_level, (int)level);
}

bool log_level_parse(const char *name, enum log_level *ret)
{
    for (int i = 0; i < 4; i++)
        if (str_eq_c(str_c(name), level_names[i])) {
            *ret = (enum log_level)i;
            return true;
        }
    return false;
}

__attribute__((format(printf, 2, 0)))
static void log_write(enum log_level level, const char *fmt, va_list ap)
{
    char text[LOG_LINE_MAX], time[CLOCK_RFC3339_MAX];
    struct strbuf line = {0};

    vsnprintf(text, sizeof text, fmt, ap);
    sb_addf(&line, "{\"time\":\"%s\",\"level\":\"%s\",\"program\":\"%s\",\"msg\":", clock_rfc3339_ms(clock_now_ms(), time),
            level_names[level], log_program);
    sb_add_json(&line, str_c(text));
    sb_add(&line, S("}\n"));
    (void)!file_write_all(STDERR_FILENO, sb_str(&line)); /* there is nowhere to say that it failed */
    sb_free(&line);
}

void log_msg(enum log_level level, const char *fmt, ...)
{
    if ((int)level < atomic_load(&log_level))
        return;
    va_list ap;
    va_start(ap, fmt);
    log_write(level, fmt, ap);
    va_end(ap);
}

void log_limited(unsigned long long *last_ms, unsigned every_ms, enum log_level level, const char *fmt, ...)
{
    unsigned long long now = clock_mono_ms() + 1, last = __atomic_load_n(last_ms, __ATOMIC_RELAXED);

    if ((int)level < atomic_load(&log_level) || (last != 0 && now - last < every_ms))
        return;
    if (!__atomic_compare_exchange_n(last_ms, &last, now, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        return;
    va_list ap;
    va_start(ap, fmt);
    log_write(level, fmt, ap);
    va_end(ap);
}
