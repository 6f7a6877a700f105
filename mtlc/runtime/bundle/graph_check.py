"""Checks of an ONNX file before a backend sees it: its operators and where its weights lie.

The runtime does not depend on the onnx package, so this reads the few fields it needs from the protobuf wire format
(field numbers of onnx.proto, IR version 14). Numbers and weights are skipped over. A field that onnx.proto does not
have is refused: a backend may know what it means.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mtlc.errors import BundleError
from mtlc.runtime.bundle.refusals import Refusal
from mtlc.runtime.bundle.wire_format import BITS32, BITS64, BYTES, REPEATED, VARINT, Buffer, UnknownField, fields

# Of onnxruntime's own operators only those that compute: others (EPContext, for one) load files that they name.
CONTRIB_OPERATORS = frozenset(
    [
        "Attention",
        "BiasGelu",
        "DequantizeLinear",
        "DynamicQuantizeLSTM",
        "DynamicQuantizeMatMul",
        "FastGelu",
        "FusedConv",
        "FusedGemm",
        "FusedMatMul",
        "Gelu",
        "GroupNorm",
        "MatMulIntegerToFloat",
        "MatMulNBits",
        "MoE",
        "MultiHeadAttention",
        "NhwcMaxPool",
        "QAttention",
        "QGemm",
        "QLinearAdd",
        "QLinearAveragePool",
        "QLinearConcat",
        "QLinearConv",
        "QLinearGlobalAveragePool",
        "QLinearLeakyRelu",
        "QLinearMul",
        "QLinearReduceMean",
        "QLinearSigmoid",
        "QLinearSoftmax",
        "QMoE",
        "QuantizeLinear",
        "QuickGelu",
        "SkipLayerNormalization",
    ]
)
STANDARD_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml"})
MAX_DEPTH = 32
MAX_VERSION = 1000
"""Of ONNX's format and of a set of operators, far above today's. OpenVINO counts down from what a file says."""
MAX_BYTES = (2 << 30) - 1  # what protobuf can hold; large weights lie in a file of their own

_MANY = BYTES | REPEATED
_NUMBERS, _FLOATS, _DOUBLES = VARINT | _MANY, BITS32 | _MANY, BITS64 | _MANY
MESSAGES: Mapping[str, Mapping[int, int]] = {
    "ModelProto": {
        1: VARINT, 8: _MANY, 2: BYTES, 3: BYTES, 4: BYTES, 5: VARINT, 6: BYTES, 7: BYTES, 14: _MANY, 20: _MANY,
        25: _MANY, 26: _MANY,
    },
    "GraphProto": {
        1: _MANY, 2: BYTES, 5: _MANY, 15: _MANY, 10: BYTES, 11: _MANY, 12: _MANY, 13: _MANY, 14: _MANY, 16: _MANY,
    },
    "NodeProto": {
        1: _MANY, 2: _MANY, 3: BYTES, 4: BYTES, 7: BYTES, 8: BYTES, 5: _MANY, 6: BYTES, 9: _MANY, 10: _MANY,
    },
    "AttributeProto": {
        1: BYTES, 21: BYTES, 13: BYTES, 20: VARINT, 2: BITS32, 3: VARINT, 4: BYTES, 5: BYTES, 6: BYTES, 22: BYTES,
        14: BYTES, 7: _FLOATS, 8: _NUMBERS, 9: _MANY, 10: _MANY, 11: _MANY, 23: _MANY, 15: _MANY,
    },
    "TensorProto": {
        1: _NUMBERS, 2: VARINT, 3: BYTES, 4: _FLOATS, 5: _NUMBERS, 6: _MANY, 7: _NUMBERS, 8: BYTES, 12: BYTES,
        9: BYTES, 13: _MANY, 14: VARINT, 10: _DOUBLES, 11: _NUMBERS, 16: _MANY,
    },
    "SparseTensorProto": {1: BYTES, 2: BYTES, 3: _NUMBERS},
    "StringStringEntryProto": {1: BYTES, 2: BYTES},
    "OperatorSetIdProto": {1: BYTES, 2: VARINT},
}  # fmt: skip
"""The fields of the messages that are looked into, by number, with the bits of `wire_format`."""
_MODEL, _GRAPH, _NODE, _ATTRIBUTE, _TENSOR, _SPARSE, _ENTRY, _OPSET = MESSAGES.values()

_EXTERNAL_KEYS = frozenset({"location", "offset", "length", "checksum"})


def check_graph(path: Path, files: Mapping[str, int]) -> None:
    """Refuse an ONNX file that uses an operator not on the list or weights outside the bundle.

    `files` gives the size in bytes of each payload of the bundle by name. Raises `BundleError`.
    """
    size = path.stat().st_size
    if size == 0 or size > MAX_BYTES:
        raise BundleError(
            f"{path.name}: the file is {'empty' if size == 0 else 'larger than an ONNX file can be'}",
            code=Refusal.GRAPH_DAMAGED,
        )
    try:
        _model(memoryview(path.read_bytes()), path.name, files)
    except UnknownField as field:
        raise BundleError(
            f"{path.name}: not a whole ONNX file: it has {field}, which ONNX does not know", code=Refusal.GRAPH_DAMAGED
        ) from None
    except (IndexError, UnicodeDecodeError):
        raise BundleError(f"{path.name}: not a whole ONNX file", code=Refusal.GRAPH_DAMAGED) from None


def _model(buffer: Buffer, name: str, files: Mapping[str, int]) -> None:
    graphs, numbers = 0, dict[int, int]()
    for number, value in fields(buffer, _MODEL, numbers):
        if number == 7:  # ModelProto.graph
            graphs += 1
            _graph(value, name, files, 0)
        elif number == 25:  # ModelProto.functions
            raise BundleError(
                f"{name}: it defines functions of its own, which the runtime does not take", code=Refusal.GRAPH_CONTENT
            )
        elif number == 20:  # ModelProto.training_info
            raise BundleError(
                f"{name}: it holds graphs for training, which the runtime does not take", code=Refusal.GRAPH_CONTENT
            )
        elif number == 14:  # ModelProto.metadata_props
            _metadata(value, name)
        elif number == 8:  # ModelProto.opset_import
            _check_version(value, name)
    if graphs != 1:
        raise IndexError
    if numbers.get(1, 0) > MAX_VERSION:  # ModelProto.ir_version
        raise BundleError(f"{name}: its version of ONNX's format, {numbers[1]}, is not one", code=Refusal.GRAPH_CONTENT)


def _check_version(buffer: Buffer, name: str) -> None:
    numbers = dict[int, int]()
    for _ in fields(buffer, _OPSET, numbers):
        pass
    if numbers.get(2, 0) > MAX_VERSION:  # OperatorSetIdProto.version
        raise BundleError(
            f"{name}: its version of a set of operators, {numbers[2]}, is not one", code=Refusal.GRAPH_CONTENT
        )


def _metadata(buffer: Buffer, name: str) -> None:
    for number, value in fields(buffer, _ENTRY):
        if number == 1 and str(value, "utf-8") == "ort_config":  # StringStringEntryProto.key
            raise BundleError(
                f"{name}: it sets options of onnxruntime (ort_config), which is not a bundle's to do",
                code=Refusal.GRAPH_CONTENT,
            )


def _graph(buffer: Buffer, name: str, files: Mapping[str, int], depth: int) -> None:
    if depth > MAX_DEPTH:
        raise BundleError(f"{name}: its graphs are nested more than {MAX_DEPTH} deep", code=Refusal.GRAPH_CONTENT)
    for number, value in fields(buffer, _GRAPH):
        if number == 1:  # GraphProto.node
            _node(value, name, files, depth)
        elif number == 5:  # GraphProto.initializer
            _tensor(value, name, files)
        elif number == 15:  # GraphProto.sparse_initializer
            _sparse(value, name, files)


def _node(buffer: Buffer, name: str, files: Mapping[str, int], depth: int) -> None:
    operator = domain = ""
    for number, value in fields(buffer, _NODE):
        if number == 4:  # NodeProto.op_type
            operator = str(value, "utf-8")
        elif number == 7:  # NodeProto.domain
            domain = str(value, "utf-8")
        elif number == 5:  # NodeProto.attribute
            for key, part in fields(value, _ATTRIBUTE):
                if key in (5, 10):  # AttributeProto.t, .tensors
                    _tensor(part, name, files)
                elif key in (6, 11):  # AttributeProto.g, .graphs
                    _graph(part, name, files, depth + 1)
                elif key in (22, 23):  # AttributeProto.sparse_tensor, .sparse_tensors
                    _sparse(part, name, files)
    if domain not in STANDARD_DOMAINS and not (domain == "com.microsoft" and operator in CONTRIB_OPERATORS):
        raise BundleError(
            f"{name}: the operator {domain}.{operator} is not on the list of those that the runtime takes",
            code=Refusal.GRAPH_OPERATOR,
        )


def _sparse(buffer: Buffer, name: str, files: Mapping[str, int]) -> None:
    for number, value in fields(buffer, _SPARSE):
        if number in (1, 2):  # SparseTensorProto.values, .indices
            _tensor(value, name, files)


def _tensor(buffer: Buffer, name: str, files: Mapping[str, int]) -> None:
    entries: dict[str, str] = {}
    for number, value in fields(buffer, _TENSOR):
        if number == 13:  # TensorProto.external_data
            entry = {key: str(part, "utf-8") for key, part in fields(value, _ENTRY)}
            key = entry.get(1, "")
            if key in entries:
                raise BundleError(f"{name}: a weight says twice where it lies", code=Refusal.GRAPH_WEIGHTS)
            if key not in _EXTERNAL_KEYS:
                raise BundleError(
                    f"{name}: a weight says {key!r} of where it lies, which the runtime does not know",
                    code=Refusal.GRAPH_WEIGHTS,
                )
            entries[key] = entry.get(2, "")
    if not entries:
        return
    location = entries.get("location", "")
    if location not in files:
        raise BundleError(
            f"{name}: a weight lies in {location!r}, which is not a file of the bundle", code=Refusal.GRAPH_WEIGHTS
        )
    offset, length = (_whole(entries.get(key, "0"), name) for key in ("offset", "length"))
    if offset < 0 or length < 0 or offset + length > files[location]:
        raise BundleError(f"{name}: a weight lies beyond the end of {location!r}", code=Refusal.GRAPH_WEIGHTS)


def _whole(text: str, name: str) -> int:
    """A size as it is written there. Python's `int` reads more than a backend does: ``1_0``, spaces, Arabic digits."""
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) < 20):
        raise BundleError(f"{name}: a weight's offset or length is not a number", code=Refusal.GRAPH_WEIGHTS)
    return int(text)
