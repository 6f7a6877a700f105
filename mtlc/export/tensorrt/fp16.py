"""Converts a float32 ONNX graph to float16, for strongly typed TensorRT networks, which take all types from the graph.

Operators compute in float16, from weights in float16. Where that would cost more than rounding, an operator stays in
float32, between two casts:

==================================  ===================================================================================
what stays in float32               why
==================================  ===================================================================================
Softmax, Exp, Log, Pow, …           exponentials and powers leave float16's range (6e-8 … 65504) for ordinary inputs
normalisations                      mean and variance are sums of many squares
ReduceSum, ReduceMean, CumSum, …    a sum of more than 2048 ones no longer grows in float16
Div, Sqrt, Reciprocal               what they divide by is often small: 1e-6 + x loses its digits
TopK, ArgMax, comparisons           they choose; what leads to them, back to the product that makes the scores, stays
                                    too, so that a token goes to the expert that it went to
Range, Cast                         whole numbers above 2048 are not all there in float16
operators with a constant that      a weight above 65504 would be infinite, an epsilon of 1e-12 zero, and tensors of
float16 cannot hold                 tiny values lose digits: refused where rounding changes it by over 0.1 % (L2)
moves between two of these          a Reshape between them would round what both have in full
==================================  ===================================================================================

Integers, booleans and what ONNX types as float32 only (the scales of a Resize) are not touched. The graph's inputs and
outputs stay float32. Activations beyond 65504 cannot be seen in a graph: compare outputs on data.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from mtlc.errors import UserError

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
LARGEST = float(np.finfo(np.float16).max)
CHANGE = 2.0**-10
"""How much rounding may change a weight tensor, in L2 and relative; normal numbers change by at most half of it."""

_REASONS = {
    "exponentials and powers": {
        "Exp", "Log", "LogSoftmax", "Pow", "ReduceLogSum", "ReduceLogSumExp", "Softmax", "Softplus",
    },
    "mean and variance": {
        "BatchNormalization", "GroupNormalization", "InstanceNormalization", "LayerNormalization", "LpNormalization",
        "MeanVarianceNormalization", "RMSNormalization",
    },
    "a sum": {
        "CumSum", "Einsum", "ReduceL1", "ReduceL2", "ReduceMean", "ReduceProd", "ReduceSum", "ReduceSumSquare",
    },
    "a quotient or a root": {"Div", "Mod", "Reciprocal", "Sqrt"},
    "a choice": {"ArgMax", "ArgMin", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "TopK"},
    "whole numbers": {"Cast", "Range"},
}  # fmt: skip
_REASON = {operator: reason for reason, operators in _REASONS.items() for operator in operators}
_CHOOSING = {"ArgMax", "ArgMin", "TopK"}
_PRODUCTS = {"Conv", "Gemm", "MatMul"}
_MOVES = {
    "Concat", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Reshape", "Slice", "Split",
    "Squeeze", "Tile", "Transpose", "Unsqueeze",
}  # fmt: skip


@dataclass(frozen=True)
class Kept:
    """A node that stays in float32, and why."""

    node: str
    operator: str
    reason: str


@dataclass(frozen=True)
class HalfModel:
    """A graph in float16 with the interface of the float32 one, and the nodes that stayed, in their order."""

    model: ModelProto
    kept: tuple[Kept, ...]


def to_half(model: ModelProto) -> HalfModel:
    """`model`, whose weights are loaded, in float16; it is not changed.

    Raises `UserError` for a graph that is quantised or that has graphs inside it (If, Loop).
    """
    source = ModelProto()
    source.CopyFrom(model)
    _constants_to_initializers(source.graph)
    for node in source.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            raise UserError(f"{node.name}: the graph is quantised already: build it as int8, or export it in float32")
        if any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute):
            raise UserError(f"{node.name}: {node.op_type} has graphs inside it, which are not converted to float16")
    types = _types(source)
    # Decided on the whole graph before a node is written: a choice far behind may keep a node in float32.
    kept = _kept(source, types)
    return HalfModel(_Converter(source, types, kept).model(), tuple(kept.values()))


def _constants_to_initializers(graph: GraphProto) -> None:
    nodes = []
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensor = graph.initializer.add()
            tensor.CopyFrom(node.attribute[0].t)
            tensor.name = node.output[0]
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _types(model: ModelProto) -> dict[str, int]:
    """The element type of every tensor."""
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    values = (*inferred.input, *inferred.value_info, *inferred.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in model.graph.initializer}


def _floats(names: Iterable[str], types: dict[str, int]) -> list[str]:
    return [name for name in names if types.get(name) == FLOAT]


def _kept(model: ModelProto, types: dict[str, int]) -> dict[int, Kept]:
    """The nodes that stay in float32, by their place.

    First those that float16 would harm by themselves, then the moves that lie between two of them.
    """
    nodes = list(model.graph.node)
    makers = {name: place for place, node in enumerate(nodes) for name in node.output}
    weights = {tensor.name: tensor for tensor in model.graph.initializer if tensor.data_type == FLOAT}
    reasons = _harmed(model, types, makers, weights)
    _keep_moves_between(nodes, types, makers, set(weights), reasons)
    return {
        place: Kept(nodes[place].name or nodes[place].output[0], nodes[place].op_type, reasons[place])
        for place in sorted(reasons)
    }


def _harmed(
    model: ModelProto, types: dict[str, int], makers: dict[str, int], weights: dict[str, TensorProto]
) -> dict[int, str]:
    """Why a node stays, by its place: its operator, a constant that it reads, or a choice that its scores lead to."""
    nodes = list(model.graph.node)
    unfit = {name: reason for name, tensor in weights.items() if (reason := _unfit(tensor))}
    reasons: dict[int, str] = {}
    for place, node in enumerate(nodes):
        if not _floats((*node.input, *node.output), types):
            continue
        if node.op_type in _REASON:
            reasons[place] = _REASON[node.op_type]
        constants = [name for slot, name in enumerate(node.input) if name in unfit and _takes_half(model, node, slot)]
        if constants:
            reasons[place] = f"its constant {constants[0]!r} {unfit[constants[0]]}"
        # Rounded scores may be in another order, and a token would go to another expert: no small error.
        if node.op_type in _CHOOSING:
            for earlier in _scores(nodes, makers, place, types):
                reasons.setdefault(earlier, f"it makes the scores that {node.name!r} chooses by")
    return reasons


def _keep_moves_between(
    nodes: list[NodeProto],
    types: dict[str, int],
    makers: dict[str, int],
    weights: set[str],
    reasons: dict[int, str],
) -> None:
    """Add to `reasons` the nodes that only move numbers from one kept node to another.

    A move in float16 there would round what its maker has in full and its reader wants in full::

        Softmax (float32) --> Reshape --> Transpose --> ReduceSum (float32)     both moves stay
        Softmax (float32) --> Reshape --> MatMul (float16)                      the move may be float16

    Forwards it is found which moves follow kept nodes only; backwards, which of these a kept node reads.
    """
    after = set(reasons)
    for place, node in enumerate(nodes):
        sources = [name for name in _floats(node.input, types) if name not in weights]
        if node.op_type in _MOVES and sources and all(makers.get(name) in after for name in sources):
            after.add(place)
    read_by_kept = {name for place in reasons for name in nodes[place].input}
    for place in reversed(range(len(nodes))):
        if place in after and place not in reasons and read_by_kept.intersection(nodes[place].output):
            reasons[place] = "it moves what two nodes in float32 hand over"
            read_by_kept.update(nodes[place].input)


def _scores(nodes: list[NodeProto], makers: dict[str, int], place: int, types: dict[str, int]) -> Iterator[int]:
    """The nodes that compute what the node at `place` chooses by, back to the products that begin it."""
    waiting, seen = [place], {place}
    while waiting:
        for name in _floats(nodes[waiting.pop()].input, types):
            maker = makers.get(name)
            if maker is None or maker in seen:
                continue
            seen.add(maker)
            yield maker
            # Up to and with the product that makes the scores; what the product reads may be float16.
            if nodes[maker].op_type not in _PRODUCTS:
                waiting.append(maker)


def _unfit(tensor: TensorProto) -> str:
    """Why float16 cannot hold the tensor, or ""."""
    exact = numpy_helper.to_array(tensor).astype(np.float64)
    if not exact.size:
        return ""
    if np.abs(exact).max() > LARGEST:
        return f"has values up to {np.abs(exact).max():.3g}, above {LARGEST:g}"
    # In L2, so that a few tiny weights that become 0 among ordinary ones do not count.
    change = np.linalg.norm(exact - exact.astype(np.float16)) / max(np.linalg.norm(exact), np.finfo(np.float64).tiny)
    return f"changes by {100 * change:.2g} % in float16" if change > CHANGE else ""


def _takes_half(model: ModelProto, node: NodeProto, slot: int) -> bool:
    """Whether ONNX lets the node's input be float16."""
    parameters = _schema(model, node).inputs
    return "tensor(float16)" in parameters[min(slot, len(parameters) - 1)].types


def _schema(model: ModelProto, node: NodeProto) -> onnx.defs.OpSchema:
    version = next((item.version for item in model.opset_import if item.domain == node.domain), 0)
    try:
        return onnx.defs.get_schema(node.op_type, version, node.domain)
    except onnx.defs.SchemaError:
        raise UserError(f"{node.name}: {node.domain}.{node.op_type} is no standard operator") from None


class _Converter:
    """Writes the nodes again. A tensor in float32 keeps its name, in float16 it is called ``NAME.fp16``."""

    def __init__(self, source: ModelProto, types: dict[str, int], kept: dict[int, Kept]) -> None:
        self.source, self.types, self.kept = source, types, kept
        self.weights = {tensor.name: tensor for tensor in source.graph.initializer}
        # A tensor may be there in both types: each has its name, and neither may be another tensor's.
        self.suffix = ".fp16"
        while any(name.endswith(self.suffix) for name in types):
            self.suffix += "_"
        self.nodes: list[NodeProto] = []
        self.used: dict[str, TensorProto] = {}
        self.there = {value.name for value in source.graph.input}

    def model(self) -> ModelProto:
        for place, node in enumerate(self.source.graph.node):
            self._write(node, place)
        # The interface stays float32: outputs that were made in float16 are cast at the very end.
        for value in self.source.graph.output:
            self._read(value.name, False, self.source.graph.node[-1])
        made = ModelProto()
        made.CopyFrom(self.source)
        del made.graph.node[:], made.graph.initializer[:], made.graph.value_info[:]
        made.graph.node.extend(self.nodes)
        made.graph.initializer.extend(self.used.values())
        # A check and no result: it raises where types do not fit together.
        onnx.shape_inference.infer_shapes(made, check_type=True, strict_mode=True)
        return made

    def _write(self, node: NodeProto, place: int) -> None:
        written = NodeProto()
        written.CopyFrom(node)
        halves = set()
        parameters = _schema(self.source, node).inputs
        for slot, name in enumerate(node.input):
            if not name:
                continue
            half = place not in self.kept and self.types[name] == FLOAT and _takes_half(self.source, node, slot)
            if half:
                # ONNX names the types of a schema: outputs of a type whose inputs became float16 become it too.
                halves.add(parameters[min(slot, len(parameters) - 1)].type_str)
            written.input[slot] = self._read(name, half, node)
        results = _schema(self.source, node).outputs
        for slot, name in enumerate(node.output):
            if name and results[min(slot, len(results) - 1)].type_str in halves and self.types.get(name) == FLOAT:
                written.output[slot] = name + self.suffix
        self.there.update(written.output)
        self.nodes.append(written)

    def _read(self, name: str, half: bool, reader: NodeProto) -> str:
        """The tensor's name in that type; a cast is added where it is there in the other one only."""
        other, wanted = (name, name + self.suffix) if half else (name + self.suffix, name)
        if name in self.weights:
            if wanted not in self.used:
                self.used[wanted] = _halved(self.weights[name], wanted) if half else self.weights[name]
            return wanted
        # One cast for all readers of a tensor: it is kept in `there` under its own name.
        if wanted not in self.there:
            cast = helper.make_node("Cast", [other], [wanted], name=f"{wanted}/Cast", to=HALF if half else FLOAT)
            cast.metadata_props.extend(reader.metadata_props)
            self.nodes.append(cast)
            self.there.add(wanted)
        return wanted


def _halved(tensor: TensorProto, name: str) -> TensorProto:
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), name)
