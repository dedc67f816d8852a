/* Reads "<kind> <hex>" lines as the fuzz corpus has them (tests/fuzz/fuzz_values.c) and prints what the product makes of each, for a
 * second reading in Python. "-": refused. */
#include <stdio.h>
#include <string.h>

#include "pullgate/clock.h"
#include "pullgate/license.h"
#include "pullgate/mem.h"
#include "pullgate/semver.h"

static void range_print(struct str s)
{
    static const char *const versions[] = {"0.0.1", "0.2.3", "1.0.0-rc.1", "1.0.0", "1.2.3", "1.2.4-beta", "1.10.0", "2.0.0-0", "2.0.0", "10.0.0"};
    struct semver_range *r = NULL;
    struct semver v;
    if (semver_range_parse(s, &r, NULL)) {
        puts("-");
        return;
    }
    for (size_t i = 0; i < sizeof versions / sizeof *versions; i++)
        putchar(semver_parse(str_c(versions[i]), &v) && semver_range_matches(r, &v, false) ? '1' : '0');
    putchar('\n');
    semver_range_free(r);
}

int main(void)
{
    static char line[65536], text[32768];
    static const char *const zones[] = {"", "UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Pacific/Apia", "Australia/Lord_Howe"};
    while (fgets(line, sizeof line, stdin)) {
        size_t n = strcspn(line + 2, "\n") / 2;
        if (!hex_decode((struct str){line + 2, 2 * n}, text, n))
            return 1;
        struct str s = {text, n};
        int64_t from, to;
        uint64_t v;
        struct semver sv;
        struct cidr c;
        switch (line[0]) {
        case 'i':
            if (clock_parse_instant(s, &from, NULL))
                puts("-");
            else
                printf("%lld\n", (long long)from);
            break;
        case 'e': {
            const char *zone = zones[n ? (unsigned char)text[0] % 7 : 0];
            if (clock_parse_start(str_skip(s, 1), zone, &from, NULL) || clock_parse_expiry(str_skip(s, 1), zone, &to, NULL))
                puts("-");
            else
                printf("%lld %lld\n", (long long)from, (long long)to);
            break;
        }
        case 'd':
            if (clock_parse_duration(s, &v, NULL))
                printf("- ");
            else
                printf("%llu ", (unsigned long long)v);
            if (clock_parse_size(s, &v, NULL))
                puts("-");
            else
                printf("%llu\n", (unsigned long long)v);
            break;
        case 'v':
            if (semver_parse(s, &sv))
                printf("%llu.%llu.%llu\n", (unsigned long long)sv.major, (unsigned long long)sv.minor, (unsigned long long)sv.patch);
            else
                puts("-");
            break;
        case 'r':
            range_print(s);
            break;
        case 'n':
            if (cidr_parse(s, &c, NULL)) {
                puts("-");
            } else {
                for (size_t i = 0; i < 16; i++)
                    printf("%02x", c.addr[i]);
                printf("/%u\n", c.bits);
            }
            break;
        default:
            puts("?");
            break;
        }
    }
    return 0;
}
