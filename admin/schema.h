/* The tables of the system of record, as numbered migrations. Statements live beside the code that uses them. */
#ifndef PULLGATE_ADMIN_SCHEMA_H
#define PULLGATE_ADMIN_SCHEMA_H

#include <stddef.h>

#include "pullgate/store.h"

extern const struct store_migration SCHEMA_MIGRATIONS[];
extern const size_t SCHEMA_MIGRATIONS_N;

#endif
