/* Names the types of elements and says how large they are. */
#include "mtlc.h"

static const struct {
    const char *name;
    size_t bytes;
} DTYPES[] = {
    {"float16", 2}, {"float32", 4}, {"float64", 8}, {"int8", 1},   {"int16", 2},  {"int32", 4},
    {"int64", 8},   {"uint8", 1},   {"uint16", 2},  {"uint32", 4}, {"uint64", 8}, {"bool", 1},
};

const char *mtlc_dtype_name(mtlc_dtype dtype)
{
    return dtype >= MTLC_FLOAT16 && dtype <= MTLC_BOOL ? DTYPES[dtype - 1].name : NULL;
}

size_t mtlc_dtype_bytes(mtlc_dtype dtype)
{
    return dtype >= MTLC_FLOAT16 && dtype <= MTLC_BOOL ? DTYPES[dtype - 1].bytes : 0;
}
