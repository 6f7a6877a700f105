"""Makes plain weights of those that a graph computes from others in every run: NNCF quantises stored weights only.

Weight norm, spectral norm and weight standardisation are such computations. Before and after, with W = g · v / ‖v‖::

    v ──► Mul ──┐                                  W ──┐
    g ──►  /    ├──► Conv ──►            x ────────────┴──► Conv ──►
    x ──────────┘
"""

from __future__ import annotations

from collections.abc import Sequence

from onnx import ModelProto, NodeProto, helper, numpy_helper

from mtlc.export.quantization.execution import session
from mtlc.export.quantization.operators import MULTIPLIERS, reads, remove_dead

_RANDOM = ("Random", "Bernoulli", "Multinomial")


def fold_computed_weights(model: ModelProto, what: str) -> list[str]:
    """Store, in place, every tensor that a multiplication of the main graph reads and that constants alone decide.

    onnxruntime computes them, as it does when it loads the graph. Returns their names. Raises `UserError` naming
    `what` it cannot compute.
    """
    graph = model.graph
    makers = _constant_nodes(model)
    wanted = dict.fromkeys(
        name for node in graph.node if node.op_type in MULTIPLIERS for name in node.input if name in makers
    )
    if not wanted:
        return []
    arrays = session(_part(model, makers, list(wanted)), what, kernels=False).run(list(wanted), {})
    outputs = {value.name for value in graph.output}
    for name, array in zip(wanted, arrays, strict=True):
        stored = name
        if name in outputs:
            stored = f"{name}.folded"
        else:
            makers[name].output[list(makers[name].output).index(name)] = f"{name}.computed"
        graph.initializer.append(numpy_helper.from_array(array, stored))
        for node in graph.node if stored != name else ():
            if node.op_type in MULTIPLIERS:
                node.input[:] = [stored if part == name else part for part in node.input]
    remove_dead(model)
    return list(wanted)


def _constant_nodes(model: ModelProto) -> dict[str, NodeProto]:
    """By tensor, the nodes of the main graph that read constants only and give the same in every run."""
    known = {tensor.name for tensor in model.graph.initializer} - {value.name for value in model.graph.input}
    makers: dict[str, NodeProto] = {}
    for node in model.graph.node:
        if not node.op_type.startswith(_RANDOM) and all(not name or name in known for name in reads(node)):
            makers |= dict.fromkeys((name for name in node.output if name), node)
            known.update(node.output)
    return makers


def _part(model: ModelProto, makers: dict[str, NodeProto], wanted: Sequence[str]) -> ModelProto:
    """The graph that computes the tensors `wanted` of no inputs."""
    part = ModelProto(ir_version=model.ir_version)
    part.opset_import.extend(model.opset_import)
    part.graph.name = "weights"
    chosen = {id(node) for node in makers.values()}
    part.graph.node.extend(node for node in model.graph.node if id(node) in chosen)
    part.graph.initializer.extend(model.graph.initializer)
    part.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in wanted)
    remove_dead(part)
    return part
