/* libmtlc runs bundles of mtlc on a device: open a bundle, bind tensors once, run any set of its tasks.
 *
 * The bundle is what docs/bundle.md describes, a folder or one zip file, and is checked as the Python runtime checks
 * it: what one refuses the other refuses, with the same code. The engine is onnxruntime's shared library, which is
 * loaded when the first session opens; nothing links to it.
 *
 * Errors. Functions that can fail return a code, MTLC_OK (0) or the reason, and write one line into `error` unless that
 * is NULL. A function that fails leaves what it was given as it was, and its result NULL.
 *
 * Ownership. What a function named *_open, *_new or *_named gives is the caller's to close or to free. Texts and views
 * belong to the session or the plan that gave them, and end with it. Memory that is bound to a plan stays the caller's;
 * it must stay where it is until it is replaced or the plan is freed.
 *
 * Threads. Any number of threads may use one session at once, each with plans of its own. One plan belongs to one
 * thread at a time. Sessions are not for the child of a fork(): open one there.
 *
 * Memory. mtlc_plan_run allocates nothing of its own once it has run with these shapes; what the engine does inside is
 * its own affair.
 *
 * Text is UTF-8. Sizes are in bytes, times in milliseconds, costs in multiply-accumulates (MACs) of one sample.
 */
#ifndef MTLC_H
#define MTLC_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(MTLC_BUILDING) && defined(__GNUC__)
#define MTLC_API __attribute__((visibility("default")))
#else
#define MTLC_API
#endif

#define MTLC_VERSION "0.1.0"

/* Why something was refused. Names are mtlc_code_name's; those of bundles are the Python runtime's BundleError.code. */
typedef enum mtlc_code {
    MTLC_OK = 0,

    /* The bundle. */
    MTLC_NOT_FOUND,        /* not-found: there is nothing at the path */
    MTLC_UNREADABLE,       /* unreadable: the system gives an error where it is read */
    MTLC_NOT_A_BUNDLE,     /* not-a-bundle: no manifest.json, or neither a folder nor a plain file */
    MTLC_MANIFEST_SIZE,    /* manifest-size: manifest.json has more than 8 MiB */
    MTLC_MANIFEST_DAMAGED, /* manifest-damaged: manifest.json is no JSON, or has a key twice */
    MTLC_MANIFEST_SCHEMA,  /* manifest-schema: another schema than 1 */
    MTLC_KEY_MISSING,      /* key-missing: a key is not there */
    MTLC_KEY_UNKNOWN,      /* key-unknown: a key that may not be there */
    MTLC_KEY_TYPE,         /* key-type: a value of another type */
    MTLC_KEY_VALUE,        /* key-value: a value that the key cannot have */
    MTLC_LIMIT,            /* limit: more, longer or larger than a bundle may be */
    MTLC_FILE_NAME,        /* file-name: no plain file name inside the bundle */
    MTLC_TWICE,            /* twice: something is listed twice */
    MTLC_REFERENCE,        /* reference: it names something that is not there */
    MTLC_FLOW,             /* flow: programs do not make the tensors that are needed, in this order */
    MTLC_WIDTHS,           /* widths: widths, configurations and decoders do not fit together */
    MTLC_EXPERTS,          /* experts: an expert layer does not fit its program or its file */
    MTLC_POSTPROCESS,      /* postprocess: it does not fit the task's output */
    MTLC_FILE_MISSING,     /* file-missing */
    MTLC_FILE_KIND,        /* file-kind: a link, a folder, a pipe */
    MTLC_FILE_SIZE,        /* file-size: not as large as the manifest says */
    MTLC_FILE_DIGEST,      /* file-digest: not the SHA-256 that the manifest says */
    MTLC_FILE_CHANGED,     /* file-changed: written to or replaced since the bundle was opened */
    MTLC_GRAPH_DAMAGED,    /* graph-damaged: not a whole ONNX file, or with fields that ONNX does not have */
    MTLC_GRAPH_CONTENT,    /* graph-content: functions, training, engine options, a version that is none */
    MTLC_GRAPH_OPERATOR,   /* graph-operator: an operator that is not on the list */
    MTLC_GRAPH_WEIGHTS,    /* graph-weights: weights outside the bundle's files */
    MTLC_GRAPH_WORK,       /* graph-work: it repeats a graph, or makes tensors out of all proportion */
    MTLC_ZIP_DAMAGED,      /* zip-damaged: not a whole zip file */
    MTLC_ZIP_ENTRY,        /* zip-entry: an entry that leads outside, is there twice, or is compressed too much */

    /* What is asked of it. */
    MTLC_ARGUMENT,      /* argument: an argument is NULL, or a value that it cannot have */
    MTLC_TASK,          /* task: there is no such task, or none was named */
    MTLC_CONFIGURATION, /* configuration: there is no such configuration, or the bundle has one width only */
    MTLC_BUDGET,        /* budget: no amount, or under the least that can run */
    MTLC_PREFERENCE,    /* preference: no number, no such task, or zeros only */
    MTLC_INPUT,         /* input: no such input, or another shape or dtype */

    /* This machine. */
    MTLC_MEMORY,      /* memory: there is none left */
    MTLC_ENGINE,      /* engine: onnxruntime is not there, or too old */
    MTLC_PROCESSOR,   /* processor: it would compute this bundle's INT8 wrongly */
    MTLC_UNSUPPORTED, /* unsupported: the Python runtime can, this library cannot */
    MTLC_LOAD,        /* load: the engine does not load a program */
    MTLC_RUN,         /* run: the engine does not run a program */
    MTLC_CODES        /* how many codes there are */
} mtlc_code;

typedef struct mtlc_error {
    mtlc_code code;
    char message[512]; /* one line, without control characters */
} mtlc_error;

/* Types of elements. The numbers are the library's own. */
typedef enum mtlc_dtype {
    MTLC_FLOAT16 = 1,
    MTLC_FLOAT32,
    MTLC_FLOAT64,
    MTLC_INT8,
    MTLC_INT16,
    MTLC_INT32,
    MTLC_INT64,
    MTLC_UINT8,
    MTLC_UINT16,
    MTLC_UINT32,
    MTLC_UINT64,
    MTLC_BOOL
} mtlc_dtype;

/* The most dimensions of an input or an output. */
#define MTLC_MAX_RANK 32

/* A tensor at the edge of the bundle. */
typedef struct mtlc_tensor_info {
    const char *name; /* of the input, or of the task */
    mtlc_dtype dtype;
    int rank;
    int64_t shape[MTLC_MAX_RANK];         /* -1 where any size fits, as in the batch */
    const char *dimensions[MTLC_MAX_RANK]; /* that dimension's name, such as "batch"; else NULL */
} mtlc_tensor_info;

/* A task and what its numbers mean, as in the manifest. */
typedef struct mtlc_task_info {
    mtlc_tensor_info output;
    const char *kind; /* labels, scalar, normals, probability, boxes, unknown */
    const char *metric;
    const char *unit;
    size_t class_count;
    const char *const *classes; /* names, where the manifest has them */
} mtlc_task_info;

/* A tensor in memory, dense and row by row. */
typedef struct mtlc_view {
    mtlc_dtype dtype;
    int rank;
    int64_t shape[MTLC_MAX_RANK];
    void *data;
    size_t bytes;
} mtlc_view;

typedef struct mtlc_session mtlc_session;
typedef struct mtlc_configuration mtlc_configuration;
typedef struct mtlc_plan mtlc_plan;

/* How a session is opened. Set all by mtlc_options_init, then what you want otherwise. */
typedef struct mtlc_options {
    size_t size;        /* sizeof(mtlc_options) of the header that you compiled with */
    const char *engine; /* onnxruntime's shared library. NULL: $MTLC_ONNXRUNTIME, else libonnxruntime.so beside this
                           library, else where the system looks for libraries */
    int threads;        /* of each program; 0 leaves it to the engine, within the cores that the process may use */
    int eager;          /* not 0: load all programs now, else each when a plan first needs it */
} mtlc_options;

/* A task and how much it matters, for mtlc_configuration_within. */
typedef struct mtlc_preference {
    const char *task;
    double value; /* 0 or more; only the ratios count */
} mtlc_preference;

/* -- codes -------------------------------------------------------------------------------------------------------- */

/* The library's version, such as "0.1.0". */
MTLC_API const char *mtlc_version(void);

/* A code's name, such as "file-digest"; "ok" for MTLC_OK, NULL for a number that is none. */
MTLC_API const char *mtlc_code_name(mtlc_code code);

/* A dtype's name as NumPy has it, such as "float32", and the bytes of an element; NULL and 0 for a number of none. */
MTLC_API const char *mtlc_dtype_name(mtlc_dtype dtype);
MTLC_API size_t mtlc_dtype_bytes(mtlc_dtype dtype);

/* -- sessions ----------------------------------------------------------------------------------------------------- */

MTLC_API void mtlc_options_init(mtlc_options *options);

/* Checks the bundle at `path` without an engine, as mtlc_session_open does first. */
MTLC_API mtlc_code mtlc_check(const char *path, mtlc_error *error);

/* Opens the bundle at `path`. `options` may be NULL. */
MTLC_API mtlc_code mtlc_session_open(const char *path, const mtlc_options *options, mtlc_session **session,
                                     mtlc_error *error);

/* Frees the session and its programs. Free its plans and configurations first. NULL is allowed. */
MTLC_API void mtlc_session_close(mtlc_session *session);

MTLC_API size_t mtlc_session_task_count(const mtlc_session *session);
MTLC_API size_t mtlc_session_input_count(const mtlc_session *session);
/* By place, in the manifest's order; NULL beyond the last. */
MTLC_API const mtlc_task_info *mtlc_session_task(const mtlc_session *session, size_t place);
MTLC_API const mtlc_tensor_info *mtlc_session_input(const mtlc_session *session, size_t place);

/* Names of the configurations that mtlc_configuration_named takes. */
MTLC_API size_t mtlc_session_configuration_count(const mtlc_session *session);
MTLC_API const char *mtlc_session_configuration(const mtlc_session *session, size_t place);

/* The engine's version, such as "1.32.0". */
MTLC_API const char *mtlc_session_engine(const mtlc_session *session);

/* Loads all programs of all configurations. */
MTLC_API mtlc_code mtlc_session_load(mtlc_session *session, mtlc_error *error);

/* A picture of 8 bits, (height, width, channels), as the one input (1, C, H, W), by the bundle's preprocessing:
 * (pixel * scale - mean) / std, and before that resized to the input's H and W, where they are sizes, as the bundle
 * says: stretched, or padded. Channels are 3 in the order RGB, or 1 for a bundle of grey pictures, which takes RGB as
 * well. `target` has `bytes`, which must be those of the input. It takes memory only while it resizes. */
MTLC_API mtlc_code mtlc_preprocess(const mtlc_session *session, const uint8_t *pixels, int64_t height, int64_t width,
                                   int64_t channels, float *target, size_t bytes, mtlc_error *error);

/* -- configurations ----------------------------------------------------------------------------------------------- */

/* The configuration of that name; every bundle has "default". */
MTLC_API mtlc_code mtlc_configuration_named(mtlc_session *session, const char *name, mtlc_configuration **configuration,
                                            mtlc_error *error);

/* The best widths within a budget, by the rule of docs/runtime.md, the same as the Python runtime chooses.
 *
 * `budget` is "40%" of the widest configuration's MACs, "25MMACs", "25M" or "25000000" MACs. `preferences` weigh the
 * tasks (none: all alike; a task that is not named has 0). `tasks` are those that will run (none: all); the others have
 * their narrowest decoders, outside the budget. */
MTLC_API mtlc_code mtlc_configuration_within(mtlc_session *session, const char *budget,
                                             const mtlc_preference *preferences, size_t preference_count,
                                             const char *const *tasks, size_t task_count,
                                             mtlc_configuration **configuration, mtlc_error *error);

/* Its name, NULL where a budget chose it; its encoder's name in the manifest, NULL where it has none; the width of a
 * task's decoder, 0 where it has none; the MACs of its tasks for one sample, -1 where the bundle does not say. */
MTLC_API const char *mtlc_configuration_name(const mtlc_configuration *configuration);
MTLC_API const char *mtlc_configuration_encoder(const mtlc_configuration *configuration);
MTLC_API double mtlc_configuration_decoder(const mtlc_configuration *configuration, const char *task);
MTLC_API int64_t mtlc_configuration_macs(const mtlc_configuration *configuration);

/* Plans that were made of it go on. NULL is allowed. */
MTLC_API void mtlc_configuration_free(mtlc_configuration *configuration);

/* -- plans -------------------------------------------------------------------------------------------------------- */

/* What it takes to run `tasks` (none: all) in `configuration` (NULL: "default"): their programs, which are loaded now,
 * and the tensors between them. To change tasks or widths, run another plan: plans share what is loaded. */
MTLC_API mtlc_code mtlc_plan_new(mtlc_session *session, const mtlc_configuration *configuration,
                                 const char *const *tasks, size_t task_count, mtlc_plan **plan, mtlc_error *error);

/* NULL is allowed. */
MTLC_API void mtlc_plan_free(mtlc_plan *plan);

/* The programs that it runs, in their order. */
MTLC_API size_t mtlc_plan_program_count(const mtlc_plan *plan);
MTLC_API const char *mtlc_plan_program(const mtlc_plan *plan, size_t place);

/* Binds an input's memory: `data` has `bytes`, and is read by every run from now on; change the numbers in it between
 * runs. With NULL the plan takes memory of its own, which mtlc_plan_input gives. `name` may be NULL where there is one
 * input. A shape that differs from the last one makes the next run bind its tensors anew. */
MTLC_API mtlc_code mtlc_plan_set_input(mtlc_plan *plan, const char *name, mtlc_dtype dtype, const int64_t *shape,
                                       int rank, void *data, size_t bytes, mtlc_error *error);
MTLC_API mtlc_code mtlc_plan_input(const mtlc_plan *plan, const char *name, mtlc_view *view, mtlc_error *error);

/* Runs the programs. Every input must have been set. */
MTLC_API mtlc_code mtlc_plan_run(mtlc_plan *plan, mtlc_error *error);

/* A task's result of the last run. It stays until the next run, a change of shapes, or the plan's end. */
MTLC_API mtlc_code mtlc_plan_output(const mtlc_plan *plan, const char *task, mtlc_view *view, mtlc_error *error);

/* Binds memory of your own to a task's result, after a first run with these shapes: `bytes` must be its size. The next
 * runs write into it. A change of shapes ends that. */
MTLC_API mtlc_code mtlc_plan_set_output(mtlc_plan *plan, const char *task, void *data, size_t bytes, mtlc_error *error);

#ifdef __cplusplus
}
#endif

#endif
