/* Finds names fast: gives each different text a number, from 0 on. */
#ifndef MTLC_NAMES_H
#define MTLC_NAMES_H

#include "refusal.h"

typedef struct names {
    text *listed; /* by number */
    size_t count;
    size_t room; /* of `listed` */
    size_t *slots; /* numbers plus 1, 0 where free */
    size_t slot_count;
} names;

enum { NO_NAME = -1 };

/* The number of `name`, a new one where it is new; `added` (may be NULL) says which. */
size_t names_add(check *of, names *in, text name, bool *added);

/* The number of `name`, NO_NAME where it has none. */
long names_find(const names *in, text name);

#endif
