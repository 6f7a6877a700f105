/* Compares the places in onnxruntime's table, and the numbers of its enumerations, with its own header. */
#include <onnxruntime_c_api.h>

#include "ort_slots.h"

#define COMPARE(place, name, result, arguments)                                                                        \
    typedef char at_##name[offsetof(OrtApi, name) == (place) * sizeof(void *) ? 1 : -1];
ORT_SLOTS(COMPARE)

#define SAME(name, ours, theirs) typedef char same_##name[(int)(ours) == (int)(theirs) ? 1 : -1];
SAME(float, ORT_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT)
SAME(uint8, ORT_UINT8, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8)
SAME(int8, ORT_INT8, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8)
SAME(uint16, ORT_UINT16, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16)
SAME(int16, ORT_INT16, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16)
SAME(int32, ORT_INT32, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32)
SAME(int64, ORT_INT64, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64)
SAME(bool, ORT_BOOL, ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL)
SAME(float16, ORT_FLOAT16, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16)
SAME(double, ORT_DOUBLE, ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE)
SAME(uint32, ORT_UINT32, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32)
SAME(uint64, ORT_UINT64, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT64)
SAME(fatal, ORT_LOG_FATAL, ORT_LOGGING_LEVEL_FATAL)
SAME(arena, ORT_ARENA, OrtArenaAllocator)
SAME(device, ORT_DEVICE_ALLOCATOR, OrtDeviceAllocator)
SAME(memory, ORT_MEMORY_DEFAULT, OrtMemTypeDefault)
