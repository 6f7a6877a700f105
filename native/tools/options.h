/* Reads the command line of mtlc-run. */
#ifndef MTLC_OPTIONS_H
#define MTLC_OPTIONS_H

#include "mtlc.h"

#include <stdbool.h>

enum { MOST_LISTED = 1024 };

typedef struct listed {
    const char *at[MOST_LISTED];
    size_t count;
} listed;

typedef struct options {
    const char *verb, *bundle, *engine, *configuration, *budget, *out;
    listed tasks, inputs;
    mtlc_preference preferences[MOST_LISTED];
    size_t preference_count;
    int threads, runs;
    long batch;
    bool json;
} options;

/* False with one line in `why`. Texts of the command line are cut in place. */
bool read_options(int count, char **arguments, options *made, char *why, size_t room);

extern const char USAGE[];

#endif
