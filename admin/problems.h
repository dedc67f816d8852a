/* The codes of problem documents: a closed list, for programs. The OpenAPI document and docs/API.md print it; a test holds it against
 * what the sources refuse with. */
#ifndef ADMIN_PROBLEMS_H
#define ADMIN_PROBLEMS_H

struct problem {
    int status;
    const char *code, *about;
};
/* By status, then code; ended by a row without code. */
extern const struct problem PROBLEMS[];

#endif
