"""Prepares a program so that its multiply-accumulates can be counted: one sample, and every shape fixed.

A counter reads shapes. Two things stand in its way: a free batch size, and expert layers, whose work depends on how
many tokens go to each expert. Every token goes to k experts of one size, so that the layer costs what k dense layers
do::

                    +--> expert 3 --+                    tokens x k --> one expert --> sum over k
    token --router--+               +-- weighted sum
                    +--> expert 7 --+                    (counted in place of it)
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from mtlc.export.graph.expert_operators import Builder, ExpertNode, expert_layer

_SMALL = 1024  # elements: shapes and scales, whose values shape inference may need


def with_fixed_shapes(model: ModelProto, layers: Sequence[ExpertNode]) -> ModelProto:
    """A copy of a program whose multiply-accumulates can be counted from its shapes; it is not meant to be run.

    The batch is 1, and large weights keep their shape only. Each expert layer among `layers`, which standard operators
    stand for in `model`, becomes one dense expert run k times.
    """
    copy = ModelProto(ir_version=model.ir_version)
    copy.opset_import.extend(model.opset_import)
    graph = copy.graph
    graph.name = model.graph.name
    graph.output.extend(model.graph.output)
    graph.input.extend(model.graph.input)
    for value in graph.input:
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param:  # a free dimension is a multiple of the batch, such as 65*batch
                factors = dimension.dim_param.split("*")
                dimension.dim_value = prod(int(factor) for factor in factors if factor.strip().isdecimal())
    for tensor in model.graph.initializer:
        header = TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
        graph.initializer.append(tensor if prod(tensor.dims) <= _SMALL else header)
    expanded = {layer.node.name: layer for layer in layers}
    done = set()
    for node in model.graph.node:
        name = expert_layer(node)
        if not name:
            graph.node.append(node)
        elif name not in done:
            done.add(name)
            graph.node.extend(_fixed(expanded[name], _top_k(model.graph, expanded[name]), graph))
    return copy


def _top_k(graph: GraphProto, layer: ExpertNode) -> int:
    """How many experts a token goes to: places beyond the number of experts stay empty."""
    index = next(value for value in (*graph.value_info, *graph.input) if value.name == layer.inputs[1])
    result: int = min(index.type.tensor_type.shape.dim[1].dim_value, len(layer.weights[0]))
    return result


def _fixed(layer: ExpertNode, top_k: int, graph: GraphProto) -> list[NodeProto]:
    """Each token through as many experts as it may choose; which ones makes no difference to the count."""
    x, _, score = layer.inputs
    w1, b1, w2, b2 = layer.weights
    g = Builder(f"{layer.node.name}.counted", list(layer.node.metadata_props), layer.node.output[0])
    copies = g.add("Concat", [x] * top_k, axis=0)
    hidden = g.add("Gelu", [g.add("Gemm", [copies, g.constant("w1", w1[0]), g.constant("b1", b1[0])], transB=1)])
    made = g.add("Gemm", [hidden, g.constant("w2", w2[0]), g.constant("b2", b2[0])], transB=1)
    apart = g.add("Reshape", [made, g.constant("apart", [top_k, -1, w1.shape[2]])])
    together = g.add("ReduceSum", [apart, g.constant("first", [0])], keepdims=0)
    # The router's products count too: they are needed for the scores.
    scores = g.add("ReduceSum", [score, g.constant("last", [-1])], keepdims=1)
    g.add("Add", [together, scores], [g.output])
    graph.initializer.extend(g.initializers)
    return g.nodes
