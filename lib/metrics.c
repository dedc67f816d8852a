/* The registry behind /metrics: slots in shards, and their text (Prometheus exposition format 0.0.4). What is counted is the
 * programs' own; serving it is monitor.c's. */
#include "pullgate/metrics.h"

#include <dirent.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "pullgate/clock.h"
#include "pullgate/file.h"
#include "pullgate/mem.h"
#include "pullgate/sandbox.h"

#define CACHE_LINE 64

static int64_t started_s; /* the registry is made when the process starts */

struct metrics {
    const struct metrics_family *families;
    unsigned n, n_workers;
    uint32_t *first;
    uint32_t n_slots;
    struct metrics_shard *shards; /* n_workers + 1 */
    uint64_t **memory;            /* what the slots lie in */
};

static unsigned label_values(const struct metrics_label *l)
{
    return l->name != NULL ? l->n : 1;
}

static unsigned family_series(const struct metrics_family *f)
{
    return label_values(&f->labels[0]) * label_values(&f->labels[1]);
}

/* A histogram's series: a count for each bound, one for what lies above, the sum. */
static unsigned series_slots(const struct metrics_family *f)
{
    return f->type == METRICS_HISTOGRAM ? f->n_bounds + 2 : 1;
}

struct metrics *metrics_new(const struct metrics_family *families, unsigned n, unsigned n_workers)
{
    struct metrics *m = NEW(struct metrics);

    started_s = clock_now_s();
    m->families = families;
    m->n = n;
    m->n_workers = n_workers;
    m->first = mem_calloc(n, sizeof *m->first);
    for (unsigned i = 0; i < n; i++) {
        AN(families[i].n_bounds <= METRICS_BOUNDS);
        m->first[i] = m->n_slots;
        m->n_slots += family_series(&families[i]) * series_slots(&families[i]);
    }
    m->shards = mem_calloc(n_workers + 1, sizeof *m->shards);
    m->memory = mem_calloc(n_workers + 1, sizeof *m->memory);
    for (unsigned i = 0; i <= n_workers; i++) {
        /* A line of its own before and behind: no two threads write to one. */
        m->memory[i] = mem_zalloc(m->n_slots * sizeof(uint64_t) + 2 * CACHE_LINE);
        m->shards[i] = (struct metrics_shard){m, m->memory[i] + CACHE_LINE / sizeof(uint64_t), m->first, families};
    }
    return m;
}

void metrics_free(struct metrics **pm)
{
    struct metrics *m = *pm;

    if (m == NULL)
        return;
    *pm = NULL;
    for (unsigned i = 0; i <= m->n_workers; i++)
        mem_free(m->memory[i]);
    mem_free(m->memory);
    mem_free(m->shards);
    mem_free(m->first);
    mem_free(m);
}

struct metrics_shard *metrics_shard(struct metrics *m, unsigned i)
{
    AN(i <= m->n_workers);
    return &m->shards[i];
}

void metrics_observe(struct metrics_shard *s, unsigned family, unsigned series, uint64_t value)
{
    const struct metrics_family *f = &s->families[family];
    unsigned base = series * (f->n_bounds + 2), i = 0;

    while (i < f->n_bounds && value > f->bounds[i])
        i++;
    metrics_add(s, family, base + i, 1);
    metrics_add(s, family, base + f->n_bounds + 1, value);
}

/* ---- the text ------------------------------------------------------------------------------------------------------------- */

static uint64_t slot_of(const struct metrics *m, unsigned shard, uint32_t slot)
{
    return __atomic_load_n(&m->shards[shard].slots[slot], __ATOMIC_RELAXED);
}

static uint64_t merged(const struct metrics *m, enum metrics_merge merge, uint32_t slot)
{
    uint64_t total = 0;

    for (unsigned i = 0; i < m->n_workers + (merge == METRICS_SUM ? 1 : 0); i++) {
        uint64_t v = slot_of(m, i, slot);
        if (merge == METRICS_SUM)
            total += v;
        else if (i == 0 || (merge == METRICS_MAX ? v > total : v < total))
            total = v;
    }
    return total;
}

/* v / scale, without what floating point makes of whole numbers. */
static void add_scaled(struct strbuf *ret, uint64_t v, uint64_t scale)
{
    if (scale <= 1) {
        sb_add_u64(ret, v);
        return;
    }
    sb_add_u64(ret, v / scale);
    uint64_t rest = v % scale;
    if (rest == 0)
        return;
    sb_add_char(ret, '.');
    while (rest != 0) {
        rest *= 10;
        sb_add_char(ret, (char)('0' + rest / scale));
        rest %= scale;
    }
}

static const char *type_text(enum metrics_type t)
{
    return t == METRICS_COUNTER ? "counter" : t == METRICS_GAUGE ? "gauge" : "histogram";
}

void metrics_write_head(struct strbuf *ret, const char *name, const char *help, enum metrics_type type)
{
    sb_addf(ret, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type_text(type));
}

static void add_label_value(struct strbuf *ret, struct str v)
{
    sb_add_char(ret, '"');
    for (size_t i = 0; i < v.n; i++) {
        if (v.p[i] == '\n') {
            sb_addc(ret, "\\n");
            continue;
        }
        if (v.p[i] == '"' || v.p[i] == '\\')
            sb_add_char(ret, '\\');
        sb_add_char(ret, v.p[i]);
    }
    sb_add_char(ret, '"');
}

void metrics_write_line(struct strbuf *ret, const char *name, const char *label, struct str label_value, const char *label2,
                        struct str label2_value, uint64_t value)
{
    sb_addc(ret, name);
    if (label != NULL) {
        sb_addf(ret, "{%s=", label);
        add_label_value(ret, label_value);
        if (label2 != NULL) {
            sb_addf(ret, ",%s=", label2);
            add_label_value(ret, label2_value);
        }
        sb_add_char(ret, '}');
    }
    sb_add_char(ret, ' ');
    sb_add_u64(ret, value);
    sb_add_char(ret, '\n');
}

/* name_suffix{labels} and a blank; le NULL: none, scaled bound else ("+Inf" for UINT64_MAX). */
static void add_series(struct strbuf *ret, const struct metrics_family *f, unsigned series, const char *suffix, const uint64_t *le)
{
    unsigned second = label_values(&f->labels[1]);
    const unsigned at[METRICS_LABELS] = {series / second, series % second};
    bool any = false;

    sb_addf(ret, "%s%s", f->name, suffix);
    for (unsigned i = 0; i < METRICS_LABELS; i++)
        if (f->labels[i].name != NULL) {
            sb_addf(ret, "%s%s=\"%s\"", any ? "," : "{", f->labels[i].name, f->labels[i].values[at[i]]);
            any = true;
        }
    if (le != NULL) {
        sb_addf(ret, "%sle=\"", any ? "," : "{");
        if (*le == UINT64_MAX)
            sb_addc(ret, "+Inf");
        else
            add_scaled(ret, *le, f->scale);
        sb_add_char(ret, '"');
        any = true;
    }
    sb_addc(ret, any ? "} " : " ");
}

static void write_histogram(const struct metrics *m, unsigned family, unsigned series, struct strbuf *ret)
{
    static const uint64_t infinite = UINT64_MAX;
    const struct metrics_family *f = &m->families[family];
    uint32_t base = m->first[family] + series * series_slots(f);
    uint64_t counts[METRICS_BOUNDS + 1], total = 0;

    for (unsigned i = 0; i <= f->n_bounds; i++)
        total += counts[i] = merged(m, METRICS_SUM, base + i);
    if (total == 0 && f->only_seen)
        return;
    for (uint64_t i = 0, below = 0; i <= f->n_bounds; i++) {
        below += counts[i];
        add_series(ret, f, series, "_bucket", i < f->n_bounds ? &f->bounds[i] : &infinite);
        sb_add_u64(ret, below);
        sb_add_char(ret, '\n');
    }
    add_series(ret, f, series, "_sum", NULL);
    add_scaled(ret, merged(m, METRICS_SUM, base + f->n_bounds + 1), f->scale);
    sb_add_char(ret, '\n');
    add_series(ret, f, series, "_count", NULL);
    sb_add_u64(ret, total);
    sb_add_char(ret, '\n');
}

void metrics_write(const struct metrics *m, struct strbuf *ret)
{
    for (unsigned k = 0; k < m->n; k++) {
        const struct metrics_family *f = &m->families[k];
        metrics_write_head(ret, f->name, f->help, f->type);
        for (unsigned i = 0; i < family_series(f); i++) {
            if (f->type == METRICS_HISTOGRAM) {
                write_histogram(m, k, i, ret);
                continue;
            }
            uint64_t v = merged(m, f->merge, m->first[k] + i);
            if (v == 0 && f->only_seen)
                continue;
            add_series(ret, f, i, "", NULL);
            add_scaled(ret, v, f->scale);
            sb_add_char(ret, '\n');
        }
    }
}

/* ---- the process ---------------------------------------------------------------------------------------------------------- */

bool metrics_memory(uint64_t *ret_space, uint64_t *ret_resident)
{
    char text[256];
    uint64_t space, resident, page = (uint64_t)sysconf(_SC_PAGESIZE);

    if (!file_read_small("/proc/self/statm", text, sizeof text) || sscanf(text, "%" SCNu64 " %" SCNu64, &space, &resident) != 2)
        return false;
    *ret_space = space * page;
    *ret_resident = resident * page;
    return true;
}

static uint64_t open_descriptors(void)
{
    DIR *d = opendir("/proc/self/fd");
    uint64_t n = 0;

    if (d == NULL)
        return 0;
    while (readdir(d) != NULL)
        n++;
    closedir(d);
    return n > 3 ? n - 3 : 0; /* ".", ".." and the directory's own */
}

void metrics_write_process(struct strbuf *ret)
{
    struct rusage usage = {0};
    struct rlimit files = {0};
    uint64_t space, resident = 0;

    (void)!metrics_memory(&space, &resident);
    getrusage(RUSAGE_SELF, &usage);
    getrlimit(RLIMIT_NOFILE, &files);
    uint64_t cpu_us = (uint64_t)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000000 + (uint64_t)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
    metrics_write_head(ret, "process_cpu_seconds_total", "CPU time spent, user and system.", METRICS_COUNTER);
    sb_addc(ret, "process_cpu_seconds_total ");
    add_scaled(ret, cpu_us, 1000000);
    sb_add_char(ret, '\n');
    const struct {
        const char *name, *help;
        uint64_t value;
    } gauges[] = {
        {"process_open_fds", "Open file descriptors.", open_descriptors()},
        {"process_max_fds", "File descriptors that may be open.", files.rlim_cur},
        {"process_resident_memory_bytes", "Resident memory.", resident},
        {"process_start_time_seconds", "Start of the process, Unix time.", (uint64_t)started_s},
    };
    for (size_t i = 0; i < sizeof gauges / sizeof *gauges; i++) {
        metrics_write_head(ret, gauges[i].name, gauges[i].help, METRICS_GAUGE);
        metrics_write_line(ret, gauges[i].name, NULL, (struct str){0}, NULL, (struct str){0}, gauges[i].value);
    }
    static const char refused[] = "pullgate_sandbox_refused_total";
    metrics_write_head(ret, refused, "System calls that the sandbox refused.", METRICS_COUNTER);
    metrics_write_line(ret, refused, NULL, (struct str){0}, NULL, (struct str){0}, sandbox_refused());
}
