"""Keeps batch norms apart from their convolutions, whose weights several networks share.

The exporter folds a batch norm into the convolution before it, which gives every network weights of its own. Here the
norm passes the exporter as an operator that it does not know, and becomes a scale on the weights in the graph: a
backend folds that when it loads the program, as it folds everything that depends on weights alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import torch
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

DOMAIN = "mtlc.norms"
NORM = "BatchNormalization"


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """What the exporter makes of a batch norm that it is not to fold; `restore` makes the standard operator of it."""
    from onnxscript import opset20, values

    _register_schema()
    ours = values.Opset(DOMAIN, 1)

    def norm(
        x: Any, weight: Any, bias: Any, mean: Any, variance: Any, momentum: float = 0.1, eps: float = 1e-5
    ) -> tuple[Any, Any, Any]:
        def full(value: float) -> Any:
            constant = opset20.CastLike(opset20.Constant(value_floats=[value]), mean)
            return opset20.Expand(constant, opset20.Shape(mean))

        scale, shift = full(1.0) if weight is None else weight, full(0.0) if bias is None else bias
        y = ours.BatchNormalization(x, scale, shift, mean, variance, epsilon=eps)
        return y, opset20.Identity(mean), opset20.Identity(variance)  # nothing reads them in evaluation mode

    return {torch.ops.aten._native_batch_norm_legit_no_training.default: norm}


def restore(model: ModelProto) -> None:
    """Make the norms of `translations` standard operators again, in place."""
    for node in model.graph.node:
        if node.domain == DOMAIN:
            node.domain = ""
    imports = [item for item in model.opset_import if item.domain != DOMAIN]
    del model.opset_import[:]
    model.opset_import.extend(imports)


def scale_weights(graph: GraphProto) -> None:
    """Write a batch norm behind a convolution as a scale on the convolution's weight and as its bias, in place.

    Exact but for rounding: norm(W * x + b) = (s W) * x + (s (b - mean) + shift) with s = scale / sqrt(variance +
    epsilon). The weight stays as it is and the product is in the graph. Norms elsewhere stay: behind a tensor that
    others read, behind anything but a convolution.
    """
    weights = {tensor.name: tensor for tensor in graph.initializer}
    made = {name: node for node in graph.node for name in node.output}
    readers = Counter(name for node in graph.node for name in node.input)
    readers.update(output.name for output in graph.output)
    nodes: list[NodeProto] = []
    gone: set[int] = set()
    for node in graph.node:
        before = made.get(node.input[0]) if node.op_type == NORM and not node.domain else None
        constants = [*node.input[1:]] if before is None else [*node.input[1:], *before.input[1:]]
        if (
            before is None
            or before.op_type != "Conv"
            or readers[before.output[0]] > 1
            or not {*constants} <= {*weights}
        ):
            continue
        scale, shift, mean, variance = (_doubles(weights[name]) for name in node.input[1:])
        epsilon = next((attribute.f for attribute in node.attribute if attribute.name == "epsilon"), 1e-5)
        scale = scale / np.sqrt(variance + epsilon)
        bias = _doubles(weights[before.input[2]]) if len(before.input) > 2 else 0.0
        weight = weights[before.input[1]]
        kind = helper.tensor_dtype_to_np_dtype(weight.data_type)
        prefix = before.output[0]
        factors = scale.astype(kind).reshape(-1, *(1,) * (len(weight.dims) - 1))
        graph.initializer.append(numpy_helper.from_array(factors, f"{prefix}.scale"))
        graph.initializer.append(
            numpy_helper.from_array((scale * (bias - mean) + shift).astype(kind), f"{prefix}.bias")
        )
        scaled = [weight.name, f"{prefix}.scale"], [f"{prefix}.weight"]
        nodes.append(helper.make_node("Mul", *scaled, name=f"{before.name}.scale"))
        del before.input[1:]
        before.input.extend([f"{prefix}.weight", f"{prefix}.bias"])
        before.output[0] = node.output[0]
        gone.add(id(node))
    nodes += [node for node in graph.node if id(node) not in gone]
    used = {name for node in nodes for name in node.input} | {output.name for output in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)


def _doubles(tensor: onnx.TensorProto) -> np.ndarray:
    return numpy_helper.to_array(tensor).astype(np.float64)


def _register_schema() -> None:
    """Tell onnx of the operator: the exporter refuses nodes without a schema."""
    if onnx.defs.has(NORM, DOMAIN):
        return
    schema = onnx.defs.OpSchema
    inputs = ("x", "scale", "shift", "mean", "variance")
    floats = ["tensor(float)", "tensor(double)", "tensor(float16)", "tensor(bfloat16)"]
    onnx.defs.register_schema(
        schema(
            NORM, DOMAIN, 1,
            inputs=[schema.FormalParameter(name, "T") for name in inputs],
            outputs=[schema.FormalParameter("y", "T")],
            attributes=[schema.Attribute("epsilon", schema.AttrType.FLOAT, "added to the variance", required=False)],
            type_constraints=[("T", floats, "tensors")],
        )
    )  # fmt: skip
