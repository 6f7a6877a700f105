"""Checks of an ONNX file before a backend sees it: its operators and where its weights lie.

The runtime does not depend on the onnx package, so this reads the few fields it needs from the protobuf wire format
(field numbers of onnx.proto, IR version 10). Numbers and weights are skipped over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from mtlc.errors import BundleError

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
MAX_BYTES = (2 << 30) - 1  # what protobuf can hold; large weights lie in a file of their own

Buffer = memoryview


def check_graph(path: Path, files: Mapping[str, int]) -> None:
    """Refuse an ONNX file that uses an operator not on the list or weights outside the bundle.

    `files` gives the size in bytes of each payload of the bundle by name. Raises `BundleError`.
    """
    size = path.stat().st_size
    if size == 0 or size > MAX_BYTES:
        raise BundleError(f"{path.name}: the file is {'empty' if size == 0 else 'larger than an ONNX file can be'}")
    try:
        _model(memoryview(path.read_bytes()), path.name, files)
    except (IndexError, UnicodeDecodeError):
        raise BundleError(f"{path.name}: not a whole ONNX file") from None


def _model(buffer: Buffer, name: str, files: Mapping[str, int]) -> None:
    graphs = 0
    for number, value in _fields(buffer):
        if number == 7:  # ModelProto.graph
            graphs += 1
            _graph(value, name, files, 0)
        elif number == 25:  # ModelProto.functions
            raise BundleError(f"{name}: it defines functions of its own, which the runtime does not take")
    if graphs != 1:
        raise IndexError


def _graph(buffer: Buffer, name: str, files: Mapping[str, int], depth: int) -> None:
    if depth > MAX_DEPTH:
        raise BundleError(f"{name}: its graphs are nested more than {MAX_DEPTH} deep")
    for number, value in _fields(buffer):
        if number == 1:  # GraphProto.node
            _node(value, name, files, depth)
        elif number == 5:  # GraphProto.initializer
            _tensor(value, name, files)
        elif number == 15:  # GraphProto.sparse_initializer
            _sparse(value, name, files)


def _node(buffer: Buffer, name: str, files: Mapping[str, int], depth: int) -> None:
    operator = domain = ""
    for number, value in _fields(buffer):
        if number == 4:  # NodeProto.op_type
            operator = str(value, "utf-8")
        elif number == 7:  # NodeProto.domain
            domain = str(value, "utf-8")
        elif number == 5:  # NodeProto.attribute
            for key, part in _fields(value):
                if key in (5, 10):  # AttributeProto.t, .tensors
                    _tensor(part, name, files)
                elif key in (6, 11):  # AttributeProto.g, .graphs
                    _graph(part, name, files, depth + 1)
                elif key in (22, 23):  # AttributeProto.sparse_tensor, .sparse_tensors
                    _sparse(part, name, files)
    if domain not in STANDARD_DOMAINS and not (domain == "com.microsoft" and operator in CONTRIB_OPERATORS):
        raise BundleError(
            f"{name}: the operator {domain}.{operator} is not on the list of those that the runtime takes"
        )


def _sparse(buffer: Buffer, name: str, files: Mapping[str, int]) -> None:
    for number, value in _fields(buffer):
        if number in (1, 2):  # SparseTensorProto.values, .indices
            _tensor(value, name, files)


def _tensor(buffer: Buffer, name: str, files: Mapping[str, int]) -> None:
    entries: dict[str, str] = {}
    for number, value in _fields(buffer):
        if number == 13:  # TensorProto.external_data
            entry = {key: str(part, "utf-8") for key, part in _fields(value)}
            if entry.get(1, "") in entries:
                raise BundleError(f"{name}: a weight says twice where it lies")
            entries[entry.get(1, "")] = entry.get(2, "")
    if not entries:
        return
    location = entries.get("location", "")
    if location not in files:
        raise BundleError(f"{name}: a weight lies in {location!r}, which is not a file of the bundle")
    try:
        offset, length = int(entries.get("offset", "0")), int(entries.get("length", "0"))
    except ValueError:
        raise BundleError(f"{name}: a weight's offset or length is not a number") from None
    if offset < 0 or length < 0 or offset + length > files[location]:
        raise BundleError(f"{name}: a weight lies beyond the end of {location!r}")


def _fields(buffer: Buffer) -> Iterator[tuple[int, Buffer]]:
    """The length-delimited fields of a message: (field number, content). Numbers are skipped. IndexError if cut off."""
    position, end = 0, len(buffer)
    while position < end:
        tag, position = _varint(buffer, position)
        kind = tag & 7
        if kind == 2:
            length, position = _varint(buffer, position)
            if position + length > end:
                raise IndexError
            yield tag >> 3, buffer[position : position + length]
            position += length
        elif kind == 0:
            _, position = _varint(buffer, position)
        elif kind in (1, 5):
            position += 8 if kind == 1 else 4
            if position > end:
                raise IndexError
        else:
            raise IndexError


def _varint(buffer: Buffer, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = buffer[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise IndexError
