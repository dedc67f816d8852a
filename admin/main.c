/* pullgate-admin: the control plane. Arguments, configuration, start and stop of the parts; what they do stands in their files. */
#include <stdio.h>
#include <string.h>

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "--version") == 0) {
        puts("pullgate-admin " PULLGATE_VERSION);
        return 0;
    }
    fputs("usage: pullgate-admin --version\n", stderr);
    return 2;
}
