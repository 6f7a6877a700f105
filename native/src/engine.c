/* Loads onnxruntime and runs programs in it. */
#include "engine.h"

#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static engine the_engine;
static void *loaded;

static const int ORT_TYPES[] = {
    [MTLC_FLOAT16] = ORT_FLOAT16, [MTLC_FLOAT32] = ORT_FLOAT, [MTLC_FLOAT64] = ORT_DOUBLE, [MTLC_INT8] = ORT_INT8,
    [MTLC_INT16] = ORT_INT16,     [MTLC_INT32] = ORT_INT32,   [MTLC_INT64] = ORT_INT64,    [MTLC_UINT8] = ORT_UINT8,
    [MTLC_UINT16] = ORT_UINT16,   [MTLC_UINT32] = ORT_UINT32, [MTLC_UINT64] = ORT_UINT64,  [MTLC_BOOL] = ORT_BOOL,
};

int engine_dtype(mtlc_dtype dtype)
{
    return ORT_TYPES[dtype];
}

mtlc_code engine_outcome(const engine *in, ort_status *status, mtlc_code code, const char *what, mtlc_error *error)
{
    if (status == NULL) {
        return MTLC_OK;
    }
    fail(error, code, "%s: %s", what, in->api.GetErrorMessage(status));
    in->api.ReleaseStatus(status);
    return code;
}

/* The library beside this one, as it is installed or as `mtlc package` lays it. */
static void *open_beside(void)
{
    Dl_info mine;
    char path[4096];
    if (dladdr((void *)&the_engine, &mine) == 0 || mine.dli_fname == NULL) {
        return NULL;
    }
    const char *slash = strrchr(mine.dli_fname, '/');
    const int folder = slash == NULL ? 0 : (int)(slash - mine.dli_fname) + 1;
    const int length = snprintf(path, sizeof path, "%.*slibonnxruntime.so", folder, mine.dli_fname);
    return slash == NULL || length >= (int)sizeof path ? NULL : dlopen(path, RTLD_NOW | RTLD_LOCAL);
}

static void *open_library(const char *path)
{
    void *found = NULL;
    if (path == NULL || *path == '\0') {
        path = getenv("MTLC_ONNXRUNTIME");
    }
    if (path != NULL && *path != '\0') {
        return dlopen(path, RTLD_NOW | RTLD_LOCAL);
    }
    found = open_beside();
    found = found != NULL ? found : dlopen("libonnxruntime.so.1", RTLD_NOW | RTLD_LOCAL);
    return found != NULL ? found : dlopen("libonnxruntime.so", RTLD_NOW | RTLD_LOCAL);
}

/* Takes the functions that are used out of the table. */
static ort_api read_table(const void *table)
{
    ort_api api;
    typedef void (*any)(void);
    const any *slots = table;
#define TAKE(place, name, result, arguments) api.name = (result(*) arguments)slots[place];
    ORT_SLOTS(TAKE)
#undef TAKE
    return api;
}

/* Telemetry is off before the library is there, and again by its own function. */
static mtlc_code start(void *library, mtlc_error *error)
{
    engine made = {0};
    ort_memory *arena_memory = NULL;
    const ort_base *(*get_base)(void);
    *(void **)&get_base = dlsym(library, "OrtGetApiBase");
    if (get_base == NULL) {
        return fail(error, MTLC_ENGINE, "the engine's library is not onnxruntime: it has no OrtGetApiBase");
    }
    const ort_base *base = get_base();
    const void *table = base->get_api(ORT_VERSION_NEEDED);
    made.version = base->get_version();
    if (table == NULL) {
        return fail(error, MTLC_ENGINE, "onnxruntime %s is too old: 1.%d or later is needed", made.version,
                    ORT_VERSION_NEEDED);
    }
    made.api = read_table(table);
    const ort_api *api = &made.api;
    mtlc_code code =
        engine_outcome(&made, api->CreateEnv(ORT_LOG_FATAL, "mtlc", &made.env), MTLC_ENGINE, "onnxruntime", error);
    if (code == MTLC_OK) {
        code = engine_outcome(&made, api->DisableTelemetryEvents(made.env), MTLC_ENGINE, "onnxruntime", error);
    }
    if (code == MTLC_OK) {
        code = engine_outcome(&made, api->CreateCpuMemoryInfo(ORT_ARENA, ORT_MEMORY_DEFAULT, &arena_memory),
                              MTLC_ENGINE, "onnxruntime", error);
    }
    if (code == MTLC_OK) {
        /* All programs share one arena: the memory of one's activations serves the next's. */
        code = engine_outcome(&made, api->CreateAndRegisterAllocator(made.env, arena_memory, NULL), MTLC_ENGINE,
                              "onnxruntime", error);
        api->ReleaseMemoryInfo(arena_memory);
    }
    if (code == MTLC_OK) {
        code = engine_outcome(&made, api->CreateCpuMemoryInfo(ORT_DEVICE_ALLOCATOR, ORT_MEMORY_DEFAULT, &made.memory),
                              MTLC_ENGINE, "onnxruntime", error);
    }
    if (code == MTLC_OK) {
        code = engine_outcome(&made, api->GetAllocatorWithDefaultOptions(&made.allocator), MTLC_ENGINE, "onnxruntime",
                              error);
    }
    if (code == MTLC_OK) {
        the_engine = made;
    } else {
        if (made.memory != NULL) {
            api->ReleaseMemoryInfo(made.memory);
        }
        if (made.env != NULL) {
            api->ReleaseEnv(made.env);
        }
    }
    return code;
}

mtlc_code find_engine(const char *path, const engine **found, mtlc_error *error)
{
    mtlc_code code = MTLC_OK;
    pthread_mutex_lock(&lock);
    if (loaded == NULL || (path != NULL && *path != '\0')) {
        setenv("ORT_DISABLE_TELEMETRY", "1", 0);
        void *library = open_library(path);
        if (library == NULL) {
            const char *why = dlerror();
            code = fail(error, MTLC_ENGINE,
                        "onnxruntime's shared library is not found: give its path by the option engine or "
                        "$MTLC_ONNXRUNTIME (%s)",
                        why == NULL ? "no reason is given" : why);
        } else if (loaded == NULL) {
            code = start(library, error);
            if (code == MTLC_OK) {
                loaded = library;
            } else {
                dlclose(library);
            }
        } else {
            const bool same = library == loaded;
            dlclose(library); /* it was counted once more */
            if (!same) {
                code = fail(error, MTLC_ENGINE, "another onnxruntime is loaded already: one serves the process");
            }
        }
    }
    if (code == MTLC_OK) {
        *found = &the_engine;
    }
    pthread_mutex_unlock(&lock);
    return code;
}

/* 0, the engine's choice, unless the process may use only some of the cores. */
static int usable_cores(void)
{
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) {
        return 0;
    }
    const int count = CPU_COUNT(&allowed);
    return count == (int)sysconf(_SC_NPROCESSORS_ONLN) ? 0 : count;
}

mtlc_code engine_load(const engine *in, const char *file, int threads, ort_session **program, mtlc_error *error)
{
    const ort_api *api = &in->api;
    ort_options *options = NULL;
    ort_status *status = api->CreateSessionOptions(&options);
    status = status != NULL ? status : api->SetSessionLogSeverityLevel(options, ORT_LOG_FATAL);
    status = status != NULL ? status : api->SetInterOpNumThreads(options, 1);
    status = status != NULL ? status : api->SetIntraOpNumThreads(options, threads > 0 ? threads : usable_cores());
    /* Threads that spin while they wait would take the cores from the next program. */
    status = status != NULL ? status : api->AddSessionConfigEntry(options, "session.intra_op.allow_spinning", "0");
    status = status != NULL ? status : api->AddSessionConfigEntry(options, "session.use_env_allocators", "1");
    status = status != NULL ? status : api->CreateSession(in->env, file, options, program);
    if (options != NULL) {
        api->ReleaseSessionOptions(options);
    }
    return engine_outcome(in, status, MTLC_LOAD, "onnxruntime cannot load it", error);
}

mtlc_code engine_wrap(const engine *in, mtlc_dtype dtype, const int64_t *shape, int rank, void *data, size_t bytes,
                      ort_value **value, mtlc_error *error)
{
    return engine_outcome(in,
                          in->api.CreateTensorWithDataAsOrtValue(in->memory, data, bytes, shape, (size_t)rank,
                                                                 ORT_TYPES[dtype], value),
                          MTLC_RUN, "a tensor cannot be made", error);
}

static mtlc_code read_shape(const engine *in, const ort_shape *from, mtlc_view *view, mtlc_error *error)
{
    const ort_api *api = &in->api;
    int type = 0;
    size_t rank = 0;
    ort_status *status = api->GetTensorElementType(from, &type);
    status = status != NULL ? status : api->GetDimensionsCount(from, &rank);
    if (status == NULL && rank <= MTLC_MAX_RANK) {
        status = api->GetDimensions(from, view->shape, rank);
    }
    if (status != NULL) {
        return engine_outcome(in, status, MTLC_RUN, "a tensor cannot be read", error);
    }
    if (rank > MTLC_MAX_RANK) {
        return fail(error, MTLC_RUN, "a tensor has %zu dimensions", rank);
    }
    view->rank = (int)rank;
    view->dtype = 0;
    for (int i = MTLC_FLOAT16; i <= MTLC_BOOL; i++) {
        if (ORT_TYPES[i] == type) {
            view->dtype = (mtlc_dtype)i;
        }
    }
    if (view->dtype == 0) {
        return fail(error, MTLC_RUN, "a tensor is of a type that bundles do not have (%d)", type);
    }
    view->bytes = mtlc_dtype_bytes(view->dtype);
    for (int i = 0; i < view->rank; i++) {
        view->bytes *= (size_t)view->shape[i];
    }
    return MTLC_OK;
}

mtlc_code engine_view(const engine *in, const ort_value *value, mtlc_view *view, mtlc_error *error)
{
    const ort_api *api = &in->api;
    ort_shape *shape = NULL;
    int is_tensor = 0;
    ort_status *status = api->IsTensor(value, &is_tensor);
    if (status == NULL && !is_tensor) {
        return fail(error, MTLC_RUN, "a program makes something that is no tensor");
    }
    status = status != NULL ? status : api->GetTensorTypeAndShape(value, &shape);
    status = status != NULL ? status : api->GetTensorMutableData((ort_value *)value, &view->data);
    mtlc_code code = engine_outcome(in, status, MTLC_RUN, "a tensor cannot be read", error);
    if (code == MTLC_OK) {
        code = read_shape(in, shape, view, error);
    }
    if (shape != NULL) {
        api->ReleaseTensorTypeAndShapeInfo(shape);
    }
    return code;
}
