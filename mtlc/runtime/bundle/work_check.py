"""Checks how much an ONNX file may compute: no loops, and no tensor made of a few bytes that fills the memory.

A graph without loops runs each operator once, so what it computes is bounded by its tensors. Most of these are as large
as what they are made of. The operators below make large ones of small ones by numbers that the graph holds; these are
followed through the constants, and the sizes that they lead to are bounded. What depends on an input is not known here.

The file has been found whole by `mtlc.runtime.bundle.graph_check`, so this reads the fields that it needs and no more
(field numbers of onnx.proto, IR version 10).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mtlc.errors import BundleError
from mtlc.runtime.bundle.refusals import Refusal

MAX_BYTES = 1 << 30
"""What one tensor may occupy that a graph makes by its own numbers, and all of one file together."""
MAX_STEP = 1 << 16
"""The largest padding, stride or scale of an operator along one axis."""
_LOOPS = frozenset({"Loop", "Scan", "SequenceMap"})
_FOLLOWED = 64
"""Constants of up to so many whole numbers are followed: shapes, repeats and pads have a few for each axis."""
_ITEM = 4
_STEPS = frozenset({"pads", "strides", "output_shape", "output_padding", "kernel_shape", "dilations"})
_WINDOWS = frozenset({"AveragePool", "Conv", "ConvTranspose", "LpPool", "MaxPool", "MaxUnpool", "Col2Im", "Pad"})
_INT64, _INT32, _FLOAT = 7, 6, 1

Numbers = tuple[float, ...]
Buffer = memoryview


@dataclass
class _Attributes:
    """The numbers of a node's attributes by name, its tensor, and the graphs in it."""

    numbers: dict[str, Numbers] = field(default_factory=dict)
    tensors: dict[str, Buffer] = field(default_factory=dict)
    graphs: list[Buffer] = field(default_factory=list)
    sparse: list[Buffer] = field(default_factory=list)


@dataclass
class _Node:
    """An operator, the tensors that it reads and makes, and its attributes."""

    operator: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    attributes: _Attributes = field(default_factory=_Attributes)


@dataclass
class _Work:
    """What is known of one file while it is read: its name and folder, and the bytes of tensors that it makes."""

    name: str
    folder: Path
    made: int = 0

    def refuse(self, operator: str, why: str) -> BundleError:
        return BundleError(
            f"{self.name}: an operator {operator} {why}, which the runtime does not take", code=Refusal.GRAPH_WORK
        )

    def add(self, operator: str, elements: float) -> None:
        """Count a tensor of so many numbers. Raises `BundleError` where it, or all together, are too large."""
        if not 0 <= elements * _ITEM <= MAX_BYTES:
            raise self.refuse(operator, f"makes a tensor of {elements:.3g} numbers")
        self.made += int(elements) * _ITEM
        if self.made > MAX_BYTES:
            raise self.refuse(operator, f"makes tensors of more than {MAX_BYTES >> 20} MiB with those before it")


def check_work(path: Path) -> None:
    """Refuse an ONNX file with loops, or whose own numbers make a tensor of more than `MAX_BYTES`.

    `path` lies in the bundle's folder, where its weights are. Raises `BundleError` naming the operator.
    """
    work = _Work(path.name, path.parent)
    try:
        for number, value in _fields(memoryview(path.read_bytes())):
            if number == 7 and isinstance(value, memoryview):  # ModelProto.graph
                _graph(value, work, {})
    except (IndexError, UnicodeDecodeError, struct.error):
        raise BundleError(f"{path.name}: not a whole ONNX file", code=Refusal.GRAPH_DAMAGED) from None
    except OverflowError:
        raise BundleError(f"{path.name}: it computes sizes that no tensor can have", code=Refusal.GRAPH_WORK) from None


def _graph(buffer: Buffer, work: _Work, outer: Mapping[str, Numbers | None]) -> None:
    known = dict(outer)
    nodes: list[Buffer] = []
    for number, value in _fields(buffer):
        if not isinstance(value, memoryview):
            continue
        if number == 1:  # GraphProto.node
            nodes.append(value)
        elif number == 5:  # GraphProto.initializer
            name, numbers = _tensor(value, work)
            known[name] = numbers
        elif number == 15:  # GraphProto.sparse_initializer
            _sparse(value, work)
    parsed = [_parse(node) for node in nodes]
    later = {name for node in parsed for name in node.outputs}
    for node in parsed:
        if any(name in later for name in node.inputs if name):
            raise work.refuse(node.operator, "reads what is computed after it")
        later.difference_update(node.outputs)
        _node(node, work, known)


def _parse(buffer: Buffer) -> _Node:
    node = _Node()
    for number, value in _fields(buffer):
        if isinstance(value, memoryview):
            if number == 4:  # NodeProto.op_type
                node.operator = str(value, "utf-8")
            elif number in (1, 2):  # NodeProto.input, .output
                (node.inputs if number == 1 else node.outputs).append(str(value, "utf-8"))
            elif number == 5:  # NodeProto.attribute
                _attribute(value, node.attributes)
    return node


def _node(node: _Node, work: _Work, known: dict[str, Numbers | None]) -> None:
    operator, attributes = node.operator, node.attributes
    if operator in _LOOPS:
        raise work.refuse(operator, "repeats a graph")
    for sparse in attributes.sparse:
        _sparse(sparse, work)
    for graph in attributes.graphs:
        _graph(graph, work, known)
    read = [known.get(name) for name in node.inputs]
    if operator in _WINDOWS:
        steps = [number for name in _STEPS for number in attributes.numbers.get(name, ())]
        if any(abs(number) > MAX_STEP for number in steps):
            raise work.refuse(operator, f"has a size of more than {MAX_STEP} along an axis")
    if operator in _MAKERS:
        elements = _MAKERS[operator](read, attributes)
        if elements is not None:
            work.add(operator, elements)
        elif any(known.get(name, ()) is None for name in node.inputs[_SIZES_FROM.get(operator, 0) :]):
            raise work.refuse(operator, "makes a tensor whose size the graph computes of constants")
    if all(not name or name in known for name in node.inputs):  # decided by the graph alone
        known.update(dict.fromkeys(node.outputs))
        value_of = _VALUES.get(operator)
        if value_of is not None and node.outputs:
            numbers = value_of(read, attributes, work)
            known[node.outputs[0]] = numbers if numbers is None or len(numbers) <= _FOLLOWED else None


# -- sizes ---------------------------------------------------------------------------------------------------------

Read = Sequence["Numbers | None"]


def _at(read: Read, index: int) -> Numbers | None:
    return read[index] if index < len(read) else None


def _product(index: int) -> Callable[[Read, _Attributes], float | None]:
    """The numbers of a tensor whose shape, or whose growth, is the input at `index`."""

    def elements(read: Read, _attributes: _Attributes) -> float | None:
        shape = _at(read, index)
        return None if shape is None else math.prod(max(number, 1) for number in shape)

    return elements


def _range(read: Read, _attributes: _Attributes) -> float | None:
    start, limit, delta = (_at(read, index) for index in range(3))
    if not (start and limit and delta):
        return None
    return max(0.0, (limit[0] - start[0]) / delta[0]) if delta[0] else math.inf


def _mel(read: Read, _attributes: _Attributes) -> float | None:
    bands, length = _at(read, 0), _at(read, 1)
    return max(bands[0], 1) * max(length[0], 1) if bands and length else None


def _random(_read: Read, attributes: _Attributes) -> float | None:
    return math.prod(attributes.numbers.get("shape", (1,)))


def _pad(read: Read, _attributes: _Attributes) -> float | None:
    pads = _at(read, 1)
    return None if pads is None else max((number if number <= MAX_STEP else math.inf for number in pads), default=0)


def _resize(read: Read, _attributes: _Attributes) -> float | None:
    """By sizes their product; by scales as much as one number of the input grows to."""
    sizes, scales = _at(read, 3), _at(read, 2) or _at(read, 1)
    if sizes:
        return math.prod(max(number, 1) for number in sizes)
    if scales and not all(abs(number) <= MAX_STEP for number in scales):
        return math.inf
    return math.prod(max(number, 1) for number in scales) if scales else None


_MAKERS: Mapping[str, Callable[[Read, _Attributes], float | None]] = {
    "ConstantOfShape": _product(0),
    "Expand": _product(1),
    "Tile": _product(1),
    "Range": _range,
    "OneHot": _product(1),
    "CenterCropPad": _product(1),
    "DFT": _product(1),
    "MelWeightMatrix": _mel,
    "BlackmanWindow": _product(0),
    "HammingWindow": _product(0),
    "HannWindow": _product(0),
    "RandomNormal": _random,
    "RandomUniform": _random,
    "Pad": _pad,
    "Resize": _resize,
    "Upsample": _resize,
}
"""The operators that make large tensors of small ones: how many numbers, None where the graph alone does not tell."""
_SIZES_FROM = {"Expand": 1, "Tile": 1, "OneHot": 1, "CenterCropPad": 1, "Pad": 1, "Resize": 2, "Upsample": 1, "DFT": 1}
"""The first input that says how large the tensor is; those before it are what it is made of."""


# -- constants -----------------------------------------------------------------------------------------------------


def _attribute(buffer: Buffer, found: _Attributes) -> None:
    name, numbers = "", []
    for number, value in _fields(buffer):
        if number == 1 and isinstance(value, memoryview):  # AttributeProto.name
            name = str(value, "utf-8")
        elif number == 3 and isinstance(value, int):  # .i
            numbers.append(_signed(value))
        elif number == 8:  # .ints, packed or not
            numbers += [_signed(value)] if isinstance(value, int) else [_signed(v) for v in _varints(value)]
        elif number == 5 and isinstance(value, memoryview):  # .t
            found.tensors["value"] = value
        elif number in (22, 23) and isinstance(value, memoryview):  # .sparse_tensor, .sparse_tensors
            found.sparse.append(value)
        elif number in (6, 11) and isinstance(value, memoryview):  # .g, .graphs
            found.graphs.append(value)
    found.numbers[name] = tuple(numbers)


def _sparse(buffer: Buffer, work: _Work) -> None:
    """Count a tensor that is stored sparse: backends make it whole."""
    dimensions: list[int] = []
    for number, value in _fields(buffer):
        if number == 3:  # SparseTensorProto.dims
            dimensions += [value] if isinstance(value, int) else _varints(value)
    work.add("Constant", math.prod(dimensions))


def _tensor(buffer: Buffer, work: _Work) -> tuple[str, Numbers | None]:
    """A tensor's name, and its numbers if they are few and of a type that sizes have.

    Raises `BundleError` for one that says to be larger than what is stored; the smallest numbers are two a byte.
    """
    name, kind, raw, place = "", 0, b"", {}
    dimensions: list[int] = []
    listed: list[float] = []
    for number, value in _fields(buffer):
        if isinstance(value, int):
            if number == 1:  # TensorProto.dims
                dimensions.append(value)
            elif number == 2:  # .data_type
                kind = value
            elif number in (5, 7):  # .int32_data, .int64_data
                listed.append(_signed(value))
        elif number == 1:
            dimensions += _varints(value)
        elif number in (5, 7):
            listed += [_signed(v) for v in _varints(value, _FOLLOWED + 1)]
        elif number == 4:  # .float_data
            listed += [v for (v,) in struct.iter_unpack("<f", value[: 4 * _FOLLOWED])]
        elif number == 8:  # .name
            name = str(value, "utf-8")
        elif number == 9:  # .raw_data
            raw = bytes(value[: 8 * _FOLLOWED])
        elif number == 13:  # .external_data
            entry = {key: str(part, "utf-8") for key, part in _fields(value) if isinstance(part, memoryview)}
            place[entry.get(1, "")] = entry.get(2, "")
    count = math.prod(dimensions)
    stored = len(buffer) + int(place.get("length", "0") or 0)
    if count > 2 * stored and not (place and "length" not in place):
        raise work.refuse("Constant", f"says to have {count:.3g} numbers, which are not stored")
    form = {_INT64: "q", _INT32: "i", _FLOAT: "f"}.get(kind)
    if form is None or count > _FOLLOWED:
        return name, None
    if place:
        raw = _external(place, work.folder, count * struct.calcsize(f"<{form}"))
    numbers: Numbers = struct.unpack(f"<{count}{form}", raw) if raw else tuple(listed)
    return name, numbers if len(numbers) == count else None


def _external(place: Mapping[str, str], folder: Path, size: int) -> bytes:
    """The bytes of a small tensor in a file of the bundle, which `graph_check` has found to hold them."""
    with (folder / place.get("location", "")).open("rb") as file:
        file.seek(int(place.get("offset", "0")))
        return file.read(size)


def _constant(_read: Read, attributes: _Attributes, work: _Work) -> Numbers | None:
    if "value" in attributes.tensors:
        return _tensor(attributes.tensors["value"], work)[1]
    return attributes.numbers.get("value_ints") or attributes.numbers.get("value_int")


def _same(read: Read, _attributes: _Attributes, _work: _Work) -> Numbers | None:
    return _at(read, 0)


def _joined(read: Read, _attributes: _Attributes, _work: _Work) -> Numbers | None:
    return None if any(part is None for part in read) else tuple(n for part in read for n in part or ())


def _pairwise(operation: Callable[[float, float], float]) -> Callable[[Read, _Attributes, _Work], Numbers | None]:
    def numbers(read: Read, _attributes: _Attributes, _work: _Work) -> Numbers | None:
        one, two = _at(read, 0), _at(read, 1)
        if not one or not two or (len(one) != len(two) and 1 not in (len(one), len(two))):
            return None
        count = max(len(one), len(two))
        pairs = zip(one * (count // len(one)), two * (count // len(two)), strict=True)
        return tuple(operation(a, b) for a, b in pairs)

    return numbers


_VALUES: Mapping[str, Callable[[Read, _Attributes, _Work], Numbers | None]] = {
    "Constant": _constant,
    "Concat": _joined,
    **dict.fromkeys(("Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"), _same),
    "Add": _pairwise(lambda a, b: a + b),
    "Sub": _pairwise(lambda a, b: a - b),
    "Mul": _pairwise(lambda a, b: a * b),
    "Div": _pairwise(lambda a, b: a / b if b else math.inf),
    "Max": _pairwise(max),
    "Min": _pairwise(min),
    "Pow": _pairwise(lambda a, b: a**b if abs(b) <= _FOLLOWED else math.inf),
}
"""Operators through which sizes are followed."""


# -- the wire format -----------------------------------------------------------------------------------------------


def _fields(buffer: Buffer) -> Iterator[tuple[int, int | Buffer]]:
    """The fields of a message: (field number, number or content). Those of 4 and 8 bytes are passed over."""
    position, end = 0, len(buffer)
    while position < end:
        tag, position = _varint(buffer, position)
        kind = tag & 7
        value, position = _varint(buffer, position) if kind in (0, 2) else (0, position)
        if kind == 0:
            yield tag >> 3, value
        elif kind == 2:
            yield tag >> 3, buffer[position : position + value]
            position += value
        else:
            position += 8 if kind == 1 else 4


def _varints(buffer: Buffer, most: int | None = None) -> list[int]:
    """The numbers of a packed field, the first `most` of them."""
    found: list[int] = []
    position = 0
    while position < len(buffer) and (most is None or len(found) < most):
        value, position = _varint(buffer, position)
        found.append(value)
    return found


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


def _signed(value: int) -> int:
    """A 64-bit number as protobuf writes it: negative ones are those from 2^63 on."""
    return value - (1 << 64) if value >= 1 << 63 else value
