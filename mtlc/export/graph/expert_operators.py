"""Lowers mixture-of-experts layers to one ONNX operator of ours, and expands that to standard operators.

The exporter sees ``mtlc::experts`` as an opaque call. It becomes a node of the domain ``mtlc`` first, so that graph
passes can find it, and then, in a form chosen by measuring, standard operators:

- ``queue``: the pairs of token and expert are ordered by expert, the tokens gathered and split into one queue per
  expert, each queue run as two products, and the results gathered back. Work grows with the tokens routed, not with E.
- ``masked``: all experts as one wide perceptron whose hidden units are weighted by the token's score or 0. E/K times
  the products, but few and static ones: the better form where few experts are left.

`mtlc.export.bundle.experts_file` keeps the experts out of the graph instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from mtlc.moe import experts as _experts  # noqa: F401 - registers torch.ops.mtlc.experts
from mtlc.moe import routing as _routing  # noqa: F401 - registers torch.ops.mtlc.top_k

DOMAIN = "mtlc"
_LAYER = "mtlc.expert_layer"
EXPERTS = "Experts"
Form = Literal["queue", "masked"]
FORMS: tuple[Form, ...] = ("queue", "masked")
Floats = NDArray[np.float32]
_QUEUE_ROLES = {"lengths": "ReduceSum", "places": "NonZero", "rows": "Range"}


@dataclass(frozen=True)
class ExpertNode:
    """An `Experts` node: the tensors that it reads and writes, and its weights (E, H, D), (E, H), (E, D, H), (E, D)."""

    index: int
    node: NodeProto
    weights: tuple[Floats, Floats, Floats, Floats]

    @property
    def inputs(self) -> tuple[str, str, str]:
        """The tokens (N, D), the chosen experts (N, K) and their scores (N, K)."""
        x, index, score = self.node.input[:3]
        return x, index, score


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """What the exporter makes of our operators: its ``custom_translation_table``."""
    from onnxscript import opset20, values

    _register_schema()
    ours = values.Opset(DOMAIN, 1)

    def experts(x: Any, index: Any, score: Any, w1: Any, b1: Any, w2: Any, b2: Any) -> Any:
        return ours.Experts(x, index, score, w1, b1, w2, b2)

    def top_k(scores: Any, k: int) -> Any:
        # ONNX puts the lower index first among equal values, as mtlc.moe.routing.top_k does.
        _, index = opset20.TopK(scores, opset20.Constant(value_ints=[k]), axis=-1, largest=1, sorted=1)
        return index

    return {torch.ops.mtlc.experts.default: experts, torch.ops.mtlc.top_k.default: top_k}


def expert_nodes(graph: GraphProto) -> list[ExpertNode]:
    """The graph's `Experts` nodes in order."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    found = []
    for index, node in enumerate(graph.node):
        if node.domain == DOMAIN and node.op_type == EXPERTS:
            w1, b1, w2, b2 = (numpy_helper.to_array(tensors[name]) for name in node.input[3:])
            found.append(ExpertNode(index, node, (w1, b1, w2, b2)))
    return found


def expand(model: ModelProto, forms: Mapping[str, Form]) -> None:
    """Replace the model's `Experts` nodes, in place, by standard operators; `forms` has each node's form by name."""
    graph = model.graph
    layers = {layer.index: layer for layer in expert_nodes(graph)}
    if not layers:
        return
    nodes: list[NodeProto] = []
    for index, node in enumerate(graph.node):
        layer = layers.get(index)
        if layer is None:
            nodes.append(node)
            continue
        built = Builder(node.name, list(node.metadata_props), node.output[0])
        {"queue": _queue, "masked": _masked}[forms[node.name]](built, layer)
        nodes += built.nodes
        graph.initializer.extend(built.initializers)
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)
    imports = [item for item in model.opset_import if item.domain != DOMAIN]
    del model.opset_import[:]
    model.opset_import.extend(imports)


def expert_layer(node: NodeProto) -> str:
    """The name of the `Experts` node that an expanded node came from, or ""."""
    return next((entry.value for entry in node.metadata_props if entry.key == _LAYER), "")


class Builder:
    """Nodes in the place of one: their tensors are named after the one they replace, and keep its module path."""

    def __init__(self, prefix: str, metadata: list[Any], output: str) -> None:
        self.prefix, self.output = prefix, output
        self._metadata = metadata
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []

    def add(self, operator: str, inputs: list[str], outputs: list[str] | None = None, **attributes: Any) -> str:
        """One node; returns its (first) output, named after the node unless `outputs` says how."""
        name = f"{self.prefix}.{operator}_{len(self.nodes)}"
        node = helper.make_node(operator, inputs, outputs or [f"{name}.out"], name=name, **attributes)
        node.metadata_props.extend(self._metadata)
        node.metadata_props.add(key=_LAYER, value=self.prefix)
        self.nodes.append(node)
        result: str = node.output[0]
        return result

    def constant(self, name: str, value: Any) -> str:
        tensor = numpy_helper.from_array(np.array(value, order="C"), f"{self.prefix}.{name}")
        self.initializers.append(tensor)
        return tensor.name


def _queue(g: Builder, layer: ExpertNode) -> None:
    x, index, score = layer.inputs
    w1, b1, w2, b2 = layer.weights
    experts = len(w1)
    one, last = g.constant("one", np.array([1])), g.constant("last", np.array([-1]))
    flat = g.add("Reshape", [index, last])  # (N·K,): place p belongs to token p // K
    hits = g.add("Equal", [g.constant("numbers", np.arange(experts)[:, None]), flat])  # (E, N·K)
    counts = g.add("ReduceSum", [g.add("Cast", [hits], to=TensorProto.INT64), one], keepdims=0)
    # Row-major order of NonZero: by expert, then by place.
    place = g.add("Gather", [g.add("NonZero", [hits]), g.constant("row", np.int64(1))], axis=0)
    top_k = g.add("Gather", [g.add("Shape", [index]), g.constant("column", np.int64(1))], axis=0)
    token = g.add("Div", [place, top_k])
    queues = [f"{g.prefix}.queue_{e}" for e in range(experts)]
    gathered = g.add("Gather", [x, token], axis=0)
    if experts > 1:
        # N = 3 tokens, K = 2 places each, E = 3 experts:
        #
        #     index         [2 0] [0 1] [2 0]
        #     flat          2 0 0 1 2 0              place p belongs to token p // 2
        #     counts        3 1 2                    of expert 0, 1, 2
        #     place         1 2 5 | 3 | 0 4          by expert, then by place
        #     token         0 1 2 | 1 | 0 2          whose rows are the queues
        #
        # With one expert there is nothing to split: its queue is all that was gathered.
        g.add("Split", [gathered, counts], queues, axis=0)
    else:
        queues = [gathered]
    made = []
    for e, queue in enumerate(queues):
        hidden = g.add("Gemm", [queue, g.constant(f"w1_{e}", w1[e]), g.constant(f"b1_{e}", b1[e])], transB=1)
        active = g.add("Gelu", [hidden])
        made.append(g.add("Gemm", [active, g.constant(f"w2_{e}", w2[e]), g.constant(f"b2_{e}", b2[e])], transB=1))
    nothing = g.constant("nothing", np.zeros((1, w2.shape[1]), np.float32))
    results = g.add("Concat", [*made, nothing], axis=0)
    apart = _back_at_places(g, results, place, flat)
    shape = g.add("Concat", [g.add("Shape", [index]), last], axis=0)
    weighted = g.add("Mul", [g.add("Reshape", [apart, shape]), g.add("Unsqueeze", [score, last])])  # (N, K, D)
    g.add("ReduceSum", [weighted, one], [g.output], keepdims=0)


def _back_at_places(g: Builder, results: str, place: str, flat: str) -> str:
    """The queues' results (rows + 1, D), the last of them zeros, at the places that they are for: (N·K, D).

    `place` (rows,) says where each row belongs, `flat` (N·K,) how many places there are.
    """
    # By gathering. Adding the results up with ScatterND would be shorter, but onnxruntime's threads do that in any
    # order: the sums change from run to run, and with them, at times, where the next layer routes to.
    rows = g.add("Shape", [place])
    first, step = g.constant("first", np.int64(0)), g.constant("step", np.int64(1))
    row = g.add("Range", [first, g.add("Squeeze", [rows]), step])
    # A map from each place to its row of `results`: first all of them to the last row, then those that an expert fills
    # to their own.
    empty = g.add("Expand", [rows, g.add("Shape", [flat])])  # the row of zeros, for places that no expert fills
    return g.add("Gather", [results, g.add("ScatterElements", [empty, place, row])], axis=0)


def _masked(g: Builder, layer: ExpertNode) -> None:
    x, index, score = layer.inputs
    w1, b1, w2, b2 = layer.weights
    experts, hidden, width = w1.shape
    last = g.constant("last", np.array([-1]))
    # A score for every pair of token and expert, 0 where the token does not go: −1 in `index` equals no number.
    hits = g.add("Equal", [g.add("Unsqueeze", [index, last]), g.constant("numbers", np.arange(experts))])  # (N, K, E)
    scored = g.add("Mul", [g.add("Cast", [hits], to=TensorProto.FLOAT), g.add("Unsqueeze", [score, last])])
    weight = g.add("ReduceSum", [scored, g.constant("one", np.array([1]))], keepdims=0)  # (N, E)
    # All experts side by side are one perceptron of E·H hidden units. Weighting its hidden units is the same as
    # weighting each expert's output, since the second matrix is linear; only the biases b2 have to be weighted by
    # themselves.
    wide = g.add("Gemm", [x, g.constant("w1", w1.reshape(-1, width)), g.constant("b1", b1.reshape(-1))], transB=1)
    apart = g.add("Reshape", [g.add("Gelu", [wide]), g.constant("apart", np.array([-1, experts, hidden]))])
    masked = g.add("Mul", [apart, g.add("Unsqueeze", [weight, last])])
    together = g.add("Reshape", [masked, g.constant("together", np.array([-1, experts * hidden]))])
    joined = g.add("MatMul", [together, g.constant("w2", w2.transpose(0, 2, 1).reshape(-1, width))])
    g.add("Add", [joined, g.add("MatMul", [weight, g.constant("b2", b2)])], [g.output])


@dataclass(frozen=True)
class QueuePattern:
    """What an expert layer becomes in the form ``queue``: nodes in order, constants, and its tensors' names by role.

    The roles are x, index and y, the number of rows of each queue ("lengths"), the expert and the place of each row
    ("places", (2, rows)), and the rows counted up ("rows").
    """

    nodes: list[NodeProto]
    initializers: list[TensorProto]
    roles: Mapping[str, str]


def queue_pattern(experts: int) -> QueuePattern:
    """The queues of a layer of so many experts, of no width: what a reader of graphs compares nodes with."""
    matrix, bias = np.zeros((experts, 0, 0), np.float32), np.zeros((experts, 0), np.float32)
    node = helper.make_node(EXPERTS, ["x", "index", "score"], ["y"], name="layer", domain=DOMAIN)
    built = Builder("layer", [], "y")
    _queue(built, ExpertNode(0, node, (matrix, bias, matrix, bias)))
    first = {kind: next(n.output[0] for n in built.nodes if n.op_type == kind) for kind in _QUEUE_ROLES.values()}
    roles = {"x": "x", "index": "index", "y": "y", **{role: first[kind] for role, kind in _QUEUE_ROLES.items()}}
    return QueuePattern(built.nodes, built.initializers, roles)


def layer_model(weights: tuple[Floats, Floats, Floats, Floats], form: Form, top_k: int) -> ModelProto:
    """One expert layer alone as a model: inputs x (n, D), index (n, K), score (n, K), output y (n, D)."""
    width = weights[0].shape[2]
    value = helper.make_tensor_value_info
    names = ("w1", "b1", "w2", "b2")
    graph = helper.make_graph(
        [helper.make_node(EXPERTS, ["x", "index", "score", *names], ["y"], name="layer", domain=DOMAIN)],
        "experts",
        [
            value("x", TensorProto.FLOAT, ["n", width]),
            value("index", TensorProto.INT64, ["n", top_k]),
            value("score", TensorProto.FLOAT, ["n", top_k]),
        ],
        [value("y", TensorProto.FLOAT, ["n", width])],
        [numpy_helper.from_array(np.ascontiguousarray(w), name) for w, name in zip(weights, names, strict=True)],
    )
    imports = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    expand(model, {"layer": form})
    return model


def _register_schema() -> None:
    """Tell onnx of our operator: the exporter refuses nodes without a schema."""
    if onnx.defs.has(EXPERTS, DOMAIN):
        return
    schema = onnx.defs.OpSchema
    floats = ("x", "score", "w1", "b1", "w2", "b2")
    onnx.defs.register_schema(
        schema(
            EXPERTS, DOMAIN, 1,
            inputs=[
                schema.FormalParameter(name, "T" if name in floats else "I")
                for name in ("x", "index", "score", "w1", "b1", "w2", "b2")
            ],
            outputs=[schema.FormalParameter("y", "T")],
            type_constraints=[("T", ["tensor(float)"], "tokens and weights"), ("I", ["tensor(int64)"], "experts")],
        )
    )  # fmt: skip
