/* Loads onnxruntime and runs programs in it. One engine serves the process; its library stays loaded. */
#ifndef MTLC_ENGINE_H
#define MTLC_ENGINE_H

#include "ort_slots.h"
#include "refusal.h"

typedef struct engine {
    ort_api api;
    const char *version;
    ort_env *env;
    ort_memory *memory; /* of tensors in memory of ours */
    ort_allocator *allocator;
} engine;

/* The engine in the library at `path` (NULL: where mtlc_options says). Loaded once: with another path that is another
 * file the call fails. */
mtlc_code find_engine(const char *path, const engine **found, mtlc_error *error);

/* Loads a program. `threads` 0: the engine's choice, within the cores that the process may use. */
mtlc_code engine_load(const engine *in, const char *file, int threads, ort_session **program, mtlc_error *error);

/* Gives `status` back as an error of ours, and frees it: MTLC_OK where it is NULL. `what` begins the line. */
mtlc_code engine_outcome(const engine *in, ort_status *status, mtlc_code code, const char *what, mtlc_error *error);

/* A tensor over memory of the caller's. */
mtlc_code engine_wrap(const engine *in, mtlc_dtype dtype, const int64_t *shape, int rank, void *data, size_t bytes,
                      ort_value **value, mtlc_error *error);

/* What a tensor is and where its memory is. Fails for what is no tensor, or of a dtype that bundles do not have. */
mtlc_code engine_view(const engine *in, const ort_value *value, mtlc_view *view, mtlc_error *error);

int engine_dtype(mtlc_dtype dtype);

#endif
