/* Declares what is used of onnxruntime's C API: places in its table of functions, which only grows.
 *
 * The wheels have the library and no header. OrtGetApiBase()->GetApi(version) gives the table; a function keeps its
 * place in all versions. native/tests/slots_test.c compares these with onnxruntime_c_api.h where that is at hand, and
 * the tests call each of them on several versions. */
#ifndef MTLC_ORT_SLOTS_H
#define MTLC_ORT_SLOTS_H

#include <stddef.h>
#include <stdint.h>

/* The oldest version of the API that has all of them with the behaviour that is used: onnxruntime 1.16. */
enum { ORT_VERSION_NEEDED = 16 };

typedef struct ort_status ort_status;
typedef struct ort_env ort_env;
typedef struct ort_session ort_session;
typedef struct ort_options ort_options;
typedef struct ort_value ort_value;
typedef struct ort_memory ort_memory;
typedef struct ort_shape ort_shape;
typedef struct ort_allocator ort_allocator;

typedef struct ort_base {
    const void *(*get_api)(uint32_t version);
    const char *(*get_version)(void);
} ort_base;

/* slot(place, name of the header, result, arguments) */
#define ORT_SLOTS(slot)                                                                                                \
    slot(2, GetErrorMessage, const char *, (const ort_status *))                                                       \
    slot(3, CreateEnv, ort_status *, (int, const char *, ort_env **))                                                  \
    slot(6, DisableTelemetryEvents, ort_status *, (const ort_env *))                                                   \
    slot(7, CreateSession, ort_status *, (const ort_env *, const char *, const ort_options *, ort_session **))         \
    slot(9, Run, ort_status *,                                                                                         \
         (ort_session *, const void *, const char *const *, const ort_value *const *, size_t, const char *const *,     \
          size_t, ort_value **))                                                                                       \
    slot(10, CreateSessionOptions, ort_status *, (ort_options **))                                                     \
    slot(22, SetSessionLogSeverityLevel, ort_status *, (ort_options *, int))                                           \
    slot(24, SetIntraOpNumThreads, ort_status *, (ort_options *, int))                                                 \
    slot(25, SetInterOpNumThreads, ort_status *, (ort_options *, int))                                                 \
    slot(48, CreateTensorAsOrtValue, ort_status *,                                                                     \
         (ort_allocator *, const int64_t *, size_t, int, ort_value **))                                                \
    slot(49, CreateTensorWithDataAsOrtValue, ort_status *,                                                             \
         (const ort_memory *, void *, size_t, const int64_t *, size_t, int, ort_value **))                             \
    slot(50, IsTensor, ort_status *, (const ort_value *, int *))                                                       \
    slot(51, GetTensorMutableData, ort_status *, (ort_value *, void **))                                               \
    slot(60, GetTensorElementType, ort_status *, (const ort_shape *, int *))                                           \
    slot(61, GetDimensionsCount, ort_status *, (const ort_shape *, size_t *))                                          \
    slot(62, GetDimensions, ort_status *, (const ort_shape *, int64_t *, size_t))                                      \
    slot(65, GetTensorTypeAndShape, ort_status *, (const ort_value *, ort_shape **))                                   \
    slot(69, CreateCpuMemoryInfo, ort_status *, (int, int, ort_memory **))                                             \
    slot(78, GetAllocatorWithDefaultOptions, ort_status *, (ort_allocator **))                                         \
    slot(92, ReleaseEnv, void, (ort_env *))                                                                            \
    slot(93, ReleaseStatus, void, (ort_status *))                                                                      \
    slot(94, ReleaseMemoryInfo, void, (ort_memory *))                                                                  \
    slot(95, ReleaseSession, void, (ort_session *))                                                                    \
    slot(96, ReleaseValue, void, (ort_value *))                                                                        \
    slot(99, ReleaseTensorTypeAndShapeInfo, void, (ort_shape *))                                                       \
    slot(100, ReleaseSessionOptions, void, (ort_options *))                                                            \
    slot(130, AddSessionConfigEntry, ort_status *, (ort_options *, const char *, const char *))                        \
    slot(144, CreateAndRegisterAllocator, ort_status *, (ort_env *, const ort_memory *, const void *))

#define ORT_MEMBER(place, name, result, arguments) result(*name) arguments;

/* The functions by name, taken out of the table. */
typedef struct ort_api {
    ORT_SLOTS(ORT_MEMBER)
} ort_api;

/* Numbers of enumerations. */
enum { ORT_LOG_FATAL = 4, ORT_ARENA = 1, ORT_DEVICE_ALLOCATOR = 0, ORT_MEMORY_DEFAULT = 0 };
enum {
    ORT_FLOAT = 1,
    ORT_UINT8 = 2,
    ORT_INT8 = 3,
    ORT_UINT16 = 4,
    ORT_INT16 = 5,
    ORT_INT32 = 6,
    ORT_INT64 = 7,
    ORT_BOOL = 9,
    ORT_FLOAT16 = 10,
    ORT_DOUBLE = 11,
    ORT_UINT32 = 12,
    ORT_UINT64 = 13
};

#endif
