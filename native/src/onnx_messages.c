/* Lists the fields that ONNX's messages have: numbers of onnx.proto, IR version 14. */
#include "graph_check.h"

#define MANY (WIRE_BYTES | WIRE_REPEATED)
#define NUMBERS (WIRE_VARINT | MANY)
#define FLOATS (WIRE_32 | MANY)
#define DOUBLES (WIRE_64 | MANY)

const message MODEL = {{[1] = WIRE_VARINT, [8] = MANY, [2] = WIRE_BYTES, [3] = WIRE_BYTES, [4] = WIRE_BYTES,
                        [5] = WIRE_VARINT, [6] = WIRE_BYTES, [7] = WIRE_BYTES, [14] = MANY, [20] = MANY, [25] = MANY,
                        [26] = MANY}};
const message GRAPH = {{[1] = MANY, [2] = WIRE_BYTES, [5] = MANY, [15] = MANY, [10] = WIRE_BYTES, [11] = MANY,
                        [12] = MANY, [13] = MANY, [14] = MANY, [16] = MANY}};
const message NODE = {{[1] = MANY, [2] = MANY, [3] = WIRE_BYTES, [4] = WIRE_BYTES, [7] = WIRE_BYTES, [8] = WIRE_BYTES,
                       [5] = MANY, [6] = WIRE_BYTES, [9] = MANY, [10] = MANY}};
const message ATTRIBUTE = {{[1] = WIRE_BYTES, [21] = WIRE_BYTES, [13] = WIRE_BYTES, [20] = WIRE_VARINT, [2] = WIRE_32,
                            [3] = WIRE_VARINT, [4] = WIRE_BYTES, [5] = WIRE_BYTES, [6] = WIRE_BYTES, [22] = WIRE_BYTES,
                            [14] = WIRE_BYTES, [7] = FLOATS, [8] = NUMBERS, [9] = MANY, [10] = MANY, [11] = MANY,
                            [23] = MANY, [15] = MANY}};
const message TENSOR = {{[1] = NUMBERS, [2] = WIRE_VARINT, [3] = WIRE_BYTES, [4] = FLOATS, [5] = NUMBERS, [6] = MANY,
                         [7] = NUMBERS, [8] = WIRE_BYTES, [12] = WIRE_BYTES, [9] = WIRE_BYTES, [13] = MANY,
                         [14] = WIRE_VARINT, [10] = DOUBLES, [11] = NUMBERS, [16] = MANY}};
const message SPARSE = {{[1] = WIRE_BYTES, [2] = WIRE_BYTES, [3] = NUMBERS}};
const message ENTRY = {{[1] = WIRE_BYTES, [2] = WIRE_BYTES}};
const message OPSET = {{[1] = WIRE_BYTES, [2] = WIRE_VARINT}};
