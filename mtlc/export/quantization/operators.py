"""Lists the operators of a quantised graph, and gives some of them their floating point back.

A quantised graph is the float graph with pairs of QuantizeLinear and DequantizeLinear on the inputs of operators
(weights are stored behind a DequantizeLinear alone). An operator computes in INT8 if such a pair feeds it, directly or
through operators that only move numbers. With all operators given back, the graph is the float graph again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from onnx import ModelProto, NodeProto, TensorProto

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
MULTIPLIERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators that do multiply-accumulates."""
_MOVERS = frozenset(
    {
        "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "MaxPool",
        "Pad", "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Transpose", "Unsqueeze",
    }
)  # fmt: skip
_CHOICES = frozenset({"ArgMax", "ArgMin", "NonZero", "TopK"})
_MEASURES = frozenset({"Shape", "Size"})
"""Operators that read how large a tensor is, not its numbers: rounding changes nothing for them."""
_ARITHMETIC = frozenset({"Add", "Div", "Mul", "ReduceMean", "ReduceSum", "Sub"})


def deciders(model: ModelProto) -> set[str]:
    """The names of nodes that decide a discrete choice: from the choice back to the multiplications before it.

    A router is one: a rounded score sends a token to another expert, and the error of that is not one of rounding.
    """
    producers = _producers(model.graph.node)
    found: set[str] = set()
    front = [name for node in model.graph.node if node.op_type in _CHOICES for name in node.input]
    while front:
        node = producers.get(front.pop())
        if node is not None and node.name not in found:
            found.add(node.name)
            if node.op_type not in MULTIPLIERS:
                front += node.input
    return found


def unrounded(model: ModelProto, results: Collection[str]) -> set[str]:
    """The names of nodes that lose by rounding and gain no speed; `results` are the outputs that are a task's.

    One kind is what comes after a result's last multiplication, such as the upsampling of a depth map: rounding there
    is rounding of the result. The other is arithmetic without multiply-accumulates where a LayerNormalization is: a
    transformer adds every block's small change to one tensor, whose large channels leave the others few of 256 steps.
    """
    nodes = model.graph.node
    followed = {value.name for value in model.graph.output} - set(results)
    found: set[str] = set()
    for node in reversed(nodes):  # a valid graph is sorted: readers come after makers
        if node.op_type in MULTIPLIERS or not followed.isdisjoint(node.output):
            followed |= set(reads(node))
        else:
            found.add(node.name)
    if any(node.op_type == "LayerNormalization" for node in nodes):
        found |= {node.name for node in nodes if node.op_type in _ARITHMETIC}
    return found


@dataclass(frozen=True)
class _Pair:
    """A DequantizeLinear and what it stands for: the float tensor quantised (None: a weight), and claimants."""

    source: str | None
    claimants: frozenset[str]


class QuantizedGraph:
    """A float graph and the same with everything quantised; nodes are known by name, weights are in the models."""

    def __init__(self, original: ModelProto, quantized: ModelProto) -> None:
        self.original, self.quantized = original, quantized
        self._originals = {node.name: node for node in original.graph.node}
        self._pairs = _pairs(quantized)
        claimed = {name for pair in self._pairs.values() for name in pair.claimants}
        self.operators = tuple(node.name for node in quantized.graph.node if node.name in claimed)
        """The names of operators that compute in INT8, in the order of the graph."""

    def kind(self, operator: str) -> str:
        """The operator's type, such as ``"Conv"``."""
        result: str = self._originals[operator].op_type
        return result

    def restored(self, floats: Collection[str]) -> ModelProto:
        """The quantised graph with the operators `floats` in floating point, with their original weights and biases.

        A pair that other operators still need stays, and a float operator that reads it through moving operators gets
        rounded numbers; one that reads it directly gets the float tensor.
        """
        model = ModelProto()
        model.CopyFrom(self.quantized)
        stored = {tensor.name: tensor for tensor in model.graph.initializer}
        originals = {tensor.name: tensor for tensor in self.original.graph.initializer}
        for node in model.graph.node:
            for index, name in enumerate(node.input):
                pair = self._pairs.get(name)
                if node.name in floats:
                    before = self._originals[node.name].input[index]
                    if before in originals:
                        node.input[index] = _add(model, stored, originals[before])
                        continue
                if pair is None or pair.source is None:
                    continue
                if node.name in floats or pair.claimants.issubset(floats):
                    node.input[index] = pair.source
        remove_dead(model)
        return model


def compute_operators(model: ModelProto) -> tuple[str, ...]:
    """The names of the operators in a QDQ graph that compute on quantised numbers, from the graph alone."""
    claimed = {name for pair in _pairs(model).values() for name in pair.claimants}
    return tuple(node.name for node in model.graph.node if node.name in claimed)


def name_pairs(model: ModelProto) -> None:
    """Name every QuantizeLinear and DequantizeLinear after the module of what it feeds, in place.

    ``encoder.stem.conv/QuantizeLinear_0``: the names are unique, as numbers count up through the graph.
    """
    readers: dict[str, NodeProto] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, node)
    for index, node in enumerate(model.graph.node):
        if node.op_type not in (QUANTIZE, DEQUANTIZE):
            continue
        reader: NodeProto | None = node
        while reader is not None and reader.op_type in (QUANTIZE, DEQUANTIZE):
            reader = readers.get(reader.output[0])
        module = "output" if reader is None else reader.name.rpartition("/")[0]
        node.name = f"{module}/{node.op_type}_{index}"


def _pairs(model: ModelProto) -> dict[str, _Pair]:
    """By the output of each DequantizeLinear, what it stands for."""
    nodes, producers = model.graph.node, _producers(model.graph.node)
    weights = {tensor.name for tensor in model.graph.initializer}
    readers: dict[str, list[NodeProto]] = {}
    for node in nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found = {}
    for node in nodes:
        if node.op_type != DEQUANTIZE:
            continue
        before = producers.get(node.input[0])
        source = None if node.input[0] in weights or before is None else before.input[0]
        found[node.output[0]] = _Pair(source, frozenset(_claimants(node.output[0], readers)))
    return found


def _claimants(name: str, readers: Mapping[str, list[NodeProto]]) -> set[str]:
    """Operators that compute on the tensor `name`; if it only moves to the next quantiser or an output, the movers."""
    found, movers, front = set(), set(), [(name, True)]
    while front:
        tensor, direct = front.pop()
        for node in readers.get(tensor, ()):
            if node.op_type in _MOVERS:
                front += [(output, False) for output in node.output]
                if direct:
                    movers.add(node.name)
            elif node.op_type != QUANTIZE and node.op_type not in _MEASURES:
                found.add(node.name)
    return found or movers


def _producers(nodes: Iterable[NodeProto]) -> dict[str, NodeProto]:
    return {name: node for node in nodes for name in node.output}


def _add(model: ModelProto, stored: dict[str, TensorProto], tensor: TensorProto) -> str:
    """Put a tensor of the float graph into `model`, beside a changed one of its name; the name that it has there."""
    name = tensor.name
    while name in stored and _content(stored[name]) != _content(tensor):
        name += ".float"
    if name not in stored:
        added = model.graph.initializer.add()
        added.CopyFrom(tensor)
        added.name = name
        stored[name] = added
    return name


def _content(tensor: TensorProto) -> bytes:
    copy = TensorProto()
    copy.CopyFrom(tensor)
    copy.ClearField("name")
    copy.ClearField("doc_string")
    result: bytes = copy.SerializeToString(deterministic=True)
    return result


def remove_dead(model: ModelProto) -> None:
    """Remove nodes, weights and types that no output of the graph depends on, in place."""
    graph, producers = model.graph, _producers(model.graph.node)
    needed: set[str] = set()
    front = [value.name for value in graph.output]
    while front:
        name = front.pop()
        if name in needed:
            continue
        needed.add(name)
        if name in producers:
            front += reads(producers[name])
    parts: tuple[tuple[Any, Callable[[Any], bool]], ...] = (
        (graph.node, lambda node: any(name in needed for name in node.output)),
        (graph.initializer, lambda tensor: tensor.name in needed),
        (graph.value_info, lambda value: value.name in needed),
    )
    for part, used in parts:
        kept = [entry for entry in part if used(entry)]
        if len(kept) < len(part):
            copies = [type(entry).FromString(entry.SerializeToString()) for entry in kept]
            del part[:]
            part.extend(copies)


def reads(node: NodeProto) -> Iterator[str]:
    """The tensors that a node reads, those that its subgraphs capture included."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from reads(inner)
