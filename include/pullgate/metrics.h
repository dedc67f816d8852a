/* Counters, gauges and histograms in Prometheus' text format. One table of the program names every family with its fixed labels;
 * each worker thread counts in memory of its own (a shard), without a lock; whoever scrapes sums the shards. Labels hold closed
 * lists only, never what a client, Redis or an upstream says. */
#ifndef PULLGATE_METRICS_H
#define PULLGATE_METRICS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pullgate/err.h"
#include "pullgate/str.h"

enum metrics_type { METRICS_COUNTER, METRICS_GAUGE, METRICS_HISTOGRAM };
/* How the shards of a family become one value. Those of the workers count for MAX and MIN; SUM takes the process's own as well. */
enum metrics_merge { METRICS_SUM, METRICS_MAX, METRICS_MIN };

#define METRICS_LABELS 2
#define METRICS_BOUNDS 24 /* upper bounds of a histogram, the infinite one not counted */

struct metrics_label {
    const char *name; /* NULL: none */
    const char *const *values;
    unsigned n;
};
struct metrics_family { /* all strings are literals, values without quotes and backslashes */
    const char *name, *help;
    enum metrics_type type;
    enum metrics_merge merge;
    struct metrics_label labels[METRICS_LABELS];
    const uint64_t *bounds; /* ascending */
    unsigned n_bounds;
    uint64_t scale;  /* what is added is so many times what is shown (1000000: microseconds to seconds); 0 is 1 */
    bool only_seen;  /* a series that is 0 is left out: for products of labels most of which cannot happen */
};

struct metrics;
struct metrics_shard {
    struct metrics *metrics;
    uint64_t *slots;
    const uint32_t *first;                /* slot of each family */
    const struct metrics_family *families;
};

/* The table must live as long. n_workers shards, and one for the process (index n_workers). */
struct metrics *metrics_new(const struct metrics_family *families, unsigned n, unsigned n_workers);
void metrics_free(struct metrics **m);
struct metrics_shard *metrics_shard(struct metrics *m, unsigned i);

/* series: with two labels, first * families[family].labels[1].n + second. One writer a shard; readers see each slot whole. */
static inline void metrics_add(struct metrics_shard *s, unsigned family, unsigned series, uint64_t n)
{
    uint64_t *slot = &s->slots[s->first[family] + series];
    __atomic_store_n(slot, __atomic_load_n(slot, __ATOMIC_RELAXED) + n, __ATOMIC_RELAXED);
}
/* A gauge; or a counter that is counted elsewhere. */
static inline void metrics_set(struct metrics_shard *s, unsigned family, unsigned series, uint64_t value)
{
    __atomic_store_n(&s->slots[s->first[family] + series], value, __ATOMIC_RELAXED);
}
void metrics_observe(struct metrics_shard *s, unsigned family, unsigned series, uint64_t value);

/* All families, appended. Any thread. */
void metrics_write(const struct metrics *m, struct strbuf *ret);

/* For values whose labels are known only at run time. label: escaped. */
void metrics_write_head(struct strbuf *ret, const char *name, const char *help, enum metrics_type type);
void metrics_write_line(struct strbuf *ret, const char *name, const char *label, struct str label_value, const char *label2,
                        struct str label2_value, uint64_t value);
/* process_*: descriptors, memory, CPU time, start, as every Prometheus client library names them. */
void metrics_write_process(struct strbuf *ret);
/* Of this process, in bytes: address space, and what of it is resident. false: /proc does not say. */
bool metrics_memory(uint64_t *ret_space, uint64_t *ret_resident) MUST_USE;

#endif
