"""Counts expert layers in an ONNX graph: the one part with data-dependent shapes whose cost is known.

`mtlc.export.graph.expert_operators` writes a layer of E experts as E queues, as long as the router makes them. However
the tokens are routed, the queues together have a row for each place that an expert fills: N tokens with K places each
make N·K rows at most. So the products are exact for any routing that fills all places, and for a given one where the
tokens of each expert are given.

A layer is known by its nodes: each has to be what the exporter writes, in its order. Names and metadata are not
trusted. Any other graph with such operators has no cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from mtlc.errors import UserError, nearest
from mtlc.hw.cost.workload import Shape

DOMAIN = "mtlc"
LAYER = "Experts"
"""The operator that stands for a layer before it is expanded.

Its inputs are x (N, D), index (N, K), score (N, K), w1, b1, w2, b2.
"""
_LENGTHS = "NonZero"


@dataclass(frozen=True)
class ExpertLayer:
    """A layer at the nodes ``start:stop`` of a graph; `names` gives the graph's name for each tensor of the pattern."""

    path: str
    start: int
    stop: int
    experts: int
    names: Mapping[str, str]


def expert_layers(graph: GraphProto, paths: Sequence[str]) -> list[ExpertLayer]:
    """The layers whose work depends on the routing, in order; `paths` are those of the nodes' modules."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    found = []
    # A layer is met in one of two states: before it is expanded, as the one operator, or after, by the one node with a
    # size that is in the data. Whatever else has such a node is not known, and refused later with its name.
    for index, node in enumerate(graph.node):
        if node.domain == DOMAIN and node.op_type == LAYER and len(node.input) == 7 and node.input[3] in tensors:
            names = {"x": node.input[0], "index": node.input[1], "y": node.output[0]}
            experts = tensors[node.input[3]].dims[0]
            found.append(ExpertLayer(paths[index], index, index + 1, experts, names))
        elif node.op_type == _LENGTHS and node.domain in ("", "ai.onnx"):
            layer = _queues(graph, index, tensors, paths[index])
            if layer is not None:
                found.append(layer)
    return found


def routed(
    layers: Sequence[ExpertLayer], shapes: Mapping[str, Shape], given: Mapping[str, Sequence[int]] | None, where: str
) -> dict[str, list[int]]:
    """The rows of each expert's queue, by layer: those `given`, else all N·K places, shared out evenly.

    Raises `UserError` for a layer that is not there, and for counts that do not fit one that is.
    """
    by_path = {layer.path: layer for layer in layers}
    for path in given or {}:
        if path not in by_path:
            raise UserError(
                f"{where}: no expert layer {path!r} whose work depends on the routing{nearest(path, by_path)}"
            )
    found = {}
    for layer in layers:
        if layer.names["index"] not in shapes:
            continue  # the reader names the node whose shape is not known
        tokens, top_k = shapes[layer.names["index"]]
        rows = list((given or {}).get(layer.path, _evenly(tokens * top_k, layer.experts)))
        if len(rows) != layer.experts or min(rows) < 0 or sum(rows) > tokens * top_k:
            raise UserError(
                f"{where}: expert layer {layer.path!r}: {len(rows)} experts with {sum(rows)} tokens: "
                f"it has {layer.experts} experts and {tokens} × {top_k} places to fill"
            )
        found[layer.path] = rows
    return found


def without(graph: GraphProto, layers: Sequence[ExpertLayer]) -> list[NodeProto]:
    """The graph's nodes with a copy in the place of each layer: its output has the shape of its tokens."""
    nodes, last = [], 0
    for layer in layers:
        nodes += graph.node[last : layer.start]
        nodes.append(helper.make_node("Identity", [layer.names["x"]], [layer.names["y"]]))
        last = layer.stop
    return [*nodes, *graph.node[last:]]


def inner_shapes(
    model: ModelProto, layer: ExpertLayer, rows: Sequence[int], shapes: Mapping[str, Shape], types: Mapping[str, int]
) -> GraphProto:
    """The layer alone with its shapes inferred, for queues of `rows` rows."""
    # The layer as a model of its own, cut where its sizes become data. NonZero and the lengths, which follow from the
    # routing, are handed in instead of computed:
    #
    #     x, index, score ----------------+
    #     places (2, rows)  (given) ------+--> Gather, Split, Gemm, … --> y
    #     lengths (experts,) (constant) --+
    nodes = [node for node in model.graph.node[layer.start : layer.stop] if node.op_type != _LENGTHS]
    value, int64 = helper.make_tensor_value_info, onnx.TensorProto.INT64
    made = {name for node in nodes for name in node.output}
    lengths = numpy_helper.from_array(np.array(rows, np.int64), layer.names["lengths"])
    read = dict.fromkeys(name for node in nodes for name in node.input if name not in made)
    tensors = [tensor for tensor in model.graph.initializer if tensor.name in read]
    nodes = [node for node in nodes if lengths.name not in node.output]
    known = {tensor.name for tensor in tensors} | {layer.names["places"]}
    graph = helper.make_graph(
        nodes,
        layer.path or "experts",
        [value(layer.names["places"], int64, (2, sum(rows)))]
        + [value(name, types[name], shapes[name]) for name in read if name not in known],
        [helper.make_empty_tensor_value_info(layer.names["y"])],
        [*tensors, lengths],
        value_info=[value(layer.names["rows"], int64, (sum(rows),))],
    )
    alone = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    inferred = onnx.shape_inference.infer_shapes(alone, strict_mode=True, data_prop=True).graph
    # The graph around it counts this tensor, too, and as a constant it would have no entry.
    inferred.value_info.append(value(lengths.name, int64, (len(rows),)))
    return inferred


def _evenly(places: int, experts: int) -> list[int]:
    # The total is what MACs depend on; how it is shared out does not matter to them.
    return [places // experts + (expert < places % experts) for expert in range(experts)]


def _queues(graph: GraphProto, at: int, tensors: Mapping[str, onnx.TensorProto], path: str) -> ExpertLayer | None:
    """The layer whose queues come from the node `at`; None where any node or constant is not the exporter's."""
    from mtlc.export.graph.expert_operators import queue_pattern

    source = next((node for node in graph.node[:at] if graph.node[at].input[0] in node.output), None)
    numbers = tensors.get(source.input[0]) if source is not None and source.op_type == "Equal" else None
    if numbers is None or len(numbers.dims) != 2 or not numbers.dims[0]:
        return None
    experts = numbers.dims[0]
    pattern = queue_pattern(experts)
    # The node that was met has a known place in what the exporter writes: the layer begins so many nodes before it.
    start = at - next(index for index, node in enumerate(pattern.nodes) if node.op_type == _LENGTHS)
    actual = graph.node[max(start, 0) : start + len(pattern.nodes)]
    names: dict[str, str] = {}
    if len(actual) != len(pattern.nodes) or not all(map(_fits(names), pattern.nodes, actual)):
        return None
    # Weights may have any values; the whole numbers decide what the nodes do, so they must be the exporter's.
    for constant in pattern.initializers:
        wanted = numpy_helper.to_array(constant)
        tensor = tensors.get(names[constant.name])
        if wanted.dtype == np.int64 and (
            tensor is None
            or not tensor.HasField("raw_data")
            or not np.array_equal(numpy_helper.to_array(tensor), wanted)
        ):
            return None
    roles = {role: names[name] for role, name in pattern.roles.items()}
    return ExpertLayer(path, start, start + len(pattern.nodes), experts, roles)


def _fits(names: dict[str, str]) -> Any:
    """Whether a node is the pattern's, with one name in the graph for each in the pattern; `names` collects them."""

    def same(wanted: NodeProto, node: NodeProto) -> bool:
        tensors = [*zip(wanted.input, node.input, strict=False), *zip(wanted.output, node.output, strict=False)]
        return (
            (wanted.op_type, len(wanted.input), len(wanted.output)) == (node.op_type, len(node.input), len(node.output))
            and node.domain in ("", "ai.onnx")
            and _settings(wanted) == _settings(node)
            and all(names.setdefault(ours, theirs) == theirs for ours, theirs in tensors)
        )

    return same


def _settings(node: NodeProto) -> dict[str, Any]:
    """The node's attributes, those that it leaves at their defaults included."""
    schema = onnx.defs.get_schema(node.op_type)
    defaults = {name: one.default_value for name, one in schema.attributes.items() if one.default_value.type}
    given = {attribute.name: attribute for attribute in node.attribute}
    return {name: helper.get_attribute_value(attribute) for name, attribute in (defaults | given).items()}
