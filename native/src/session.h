/* A bundle that is open, with the programs that are loaded so far. */
#ifndef MTLC_SESSION_H
#define MTLC_SESSION_H

#include "bundle.h"
#include "engine.h"

#include <pthread.h>

struct mtlc_session {
    bundle bundle;
    const engine *engine;
    int threads;
    pthread_mutex_t lock;
    ort_session **loaded;   /* by program file; NULL where it is not loaded */
    size_t *file_of;        /* by program, the number of its file among the different ones */
    text *files;
    size_t file_count;
    mtlc_task_info *tasks;
    mtlc_tensor_info *inputs;
    const configuration **named; /* the configurations that have a name and run */
    size_t named_count;
    unsigned born; /* which process it was opened in, counted in forks */
};

/* A configuration that is ready to run: programs in their order. */
struct mtlc_configuration {
    arena memory;
    mtlc_session *session;
    const char *name; /* NULL where a budget chose it */
    const encoder *encoder;
    const decoder **decoders; /* by task; NULL without an encoder */
    size_t *programs;
    size_t program_count;
    int64_t macs;
};

/* Loads the file of a program, unless it is loaded; `program` is its number. */
mtlc_code load_program(mtlc_session *session, size_t program, ort_session **loaded, mtlc_error *error);

/* Refuses a session that was opened in the process that this one was forked from. */
mtlc_code check_process(const mtlc_session *session, mtlc_error *error);

/* The tasks that are asked for, as bits; all for none. Refuses a name that is not there. */
mtlc_code read_tasks(const mtlc_session *session, const char *const *tasks, size_t count, uint64_t *bits,
                     mtlc_error *error);

/* A configuration of an encoder with a decoder for every task, or of `programs` alone. `asked` says what its MACs are
 * of. The decoders are copied. */
mtlc_code make_configuration(mtlc_session *session, const char *name, const encoder *of, const decoder *const *decoders,
                             const size_t *programs, size_t program_count, const uint64_t *asked,
                             mtlc_configuration **made, mtlc_error *error);

bool shares_task(const uint64_t *one, const uint64_t *other, size_t words);

#endif
