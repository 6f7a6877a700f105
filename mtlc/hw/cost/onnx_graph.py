"""Reads an ONNX graph's operators by shape inference. Large weights in external files stay unread."""

from __future__ import annotations

from collections.abc import Container, Hashable, Mapping, Sequence
from math import prod
from pathlib import Path

import onnx
import onnx.inliner
from onnx import TensorProto

from mtlc.errors import UserError, one_line
from mtlc.export.graph.onnx_names import module_path
from mtlc.files import check_plain
from mtlc.hw.cost.liveness import Step, needed, peak_bytes
from mtlc.hw.cost.onnx_costs import ALIASES, CONSTANT_SLOTS, DATA_DEPENDENT, IN_PLACE_KINDS, KINDS, STATIC, macs
from mtlc.hw.cost.onnx_experts import DOMAIN, LAYER, expert_layers, inner_shapes, routed, without
from mtlc.hw.cost.workload import Operator, Shape, Weight, Workload

SMALL = 1024  # elements: a larger initializer is a weight, never a shape or a scale that inference needs to see


def read(
    model: str | Path | onnx.ModelProto, batch: int = 1, tokens_per_expert: Mapping[str, Sequence[int]] | None = None
) -> Workload:
    """See `mtlc.hw.cost.count.onnx_workload`."""
    where = "the ONNX model" if isinstance(model, onnx.ModelProto) else str(model)
    if not isinstance(model, onnx.ModelProto):
        model = _load(Path(model))
    # Shape inference stops at an expert layer, whose sizes are in the data. So a copy stands in for each layer first,
    # and what lies inside the layers is inferred afterwards, with the lengths that the queues are given:
    #
    #     x --> [ Equal, NonZero, Split, Gemm, … ] --> y          what runs: sizes inside are in the data
    #     x --> [             Identity           ] --> y          what inference sees: y has the shape of x
    bare = _bare(model, batch, where)
    layers = expert_layers(bare.graph, [_layer(node) for node in bare.graph.node])
    reader = _Reader(_inferred(bare, without(bare.graph, layers), _declared(model, batch), where), where)
    reader.rows = routed(layers, reader.shapes, tokens_per_expert, where)
    for layer in layers:
        if layer.stop - layer.start > 1 and layer.path in reader.rows:
            reader.learn(inner_shapes(bare, layer, reader.rows[layer.path], reader.shapes, reader.types))
    return reader.workload(bare.graph.node)


def _load(path: Path) -> onnx.ModelProto:
    check_plain(path)
    try:
        model = onnx.load(path, load_external_data=False)
        for tensor in model.graph.initializer:
            if tensor.data_location == TensorProto.EXTERNAL and prod(tensor.dims) <= SMALL:
                onnx.external_data_helper.load_external_data_for_tensor(tensor, str(path.parent))
    except FileNotFoundError as error:
        raise UserError(f"{path}: {error.filename or 'a file that it needs'} is missing") from None
    except Exception as error:
        raise UserError(f"{path}: not a readable ONNX model: {one_line(error)}") from error
    return model


def _layer(node: onnx.NodeProto) -> str:
    """The node's module path; where only its name is left, what that says of it: ``<module path>/<operator>``."""
    path = module_path(node)
    return node.name.rpartition("/")[0] if path is None else path


def _bare(model: onnx.ModelProto, batch: int, where: str) -> onnx.ModelProto:
    """A copy without large weights and with the batch fixed."""
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    bare = onnx.ModelProto(ir_version=model.ir_version)
    bare.opset_import.extend(model.opset_import)
    bare.graph.name = model.graph.name or "graph"
    bare.graph.node.extend(model.graph.node)
    initializers = {tensor.name for tensor in model.graph.initializer}
    for tensor in model.graph.initializer:
        keep = prod(tensor.dims) <= SMALL and tensor.data_location != TensorProto.EXTERNAL
        header = TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
        bare.graph.initializer.append(tensor if keep else header)
    for value in model.graph.input:
        if value.name not in initializers:
            bare.graph.input.append(_fixed(value, batch, where))
    for value in model.graph.output:
        # Declared shapes may still name the batch symbolically; inference finds them again.
        output = bare.graph.output.add(name=value.name)
        output.type.tensor_type.elem_type = value.type.tensor_type.elem_type
    return bare


def _inferred(
    bare: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], declared: Mapping[str, onnx.ValueInfoProto], where: str
) -> onnx.ModelProto:
    """The model with `nodes` for its own and every shape that they let infer; what they leave open is as `declared`."""
    model = onnx.ModelProto()
    model.CopyFrom(bare)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    try:
        found = onnx.shape_inference.infer_shapes(model, check_type=False, strict_mode=True, data_prop=True)
        # What a file declares is believed only where inference has no answer: declared shapes may be those of an older
        # graph, or of another batch.
        known = {value.name for value in (*found.graph.value_info, *found.graph.output) if _sized(value)}
        open_ = {name for node in nodes if node.op_type not in DATA_DEPENDENT for name in node.output} - known
        if open_.isdisjoint(declared):
            return found
        results = {value.name for value in model.graph.output}
        model.graph.value_info.extend(declared[name] for name in sorted(open_ & declared.keys() - results))
        return onnx.shape_inference.infer_shapes(model, check_type=False, strict_mode=True, data_prop=True)
    except Exception as error:
        raise UserError(f"{where}: shape inference failed: {one_line(error)}") from error


def _declared(model: onnx.ModelProto, batch: int) -> dict[str, onnx.ValueInfoProto]:
    """The tensors inside the model whose shapes its exporter wrote down, with the batch for its symbol."""
    # The batch goes by the name that the inputs' first dimensions have; any other symbol stays open.
    symbols = {
        value.type.tensor_type.shape.dim[0].dim_param
        for value in model.graph.input
        if value.type.tensor_type.shape.dim and value.type.tensor_type.shape.dim[0].dim_param.isidentifier()
    }
    found = {}
    for value in model.graph.value_info:
        fixed = onnx.ValueInfoProto()
        fixed.CopyFrom(value)
        for dim in fixed.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value") and (size := _multiple(dim.dim_param, batch, symbols)) is not None:
                dim.dim_value = size
        if _sized(fixed):
            found[value.name] = fixed
    return found


def _sized(value: onnx.ValueInfoProto) -> bool:
    kind = value.type.tensor_type
    return kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim)


def _multiple(text: str, batch: int, symbols: Container[str] | None = None) -> int | None:
    """The size that a free dimension such as ``batch`` or ``65*batch`` says; None for any other expression.

    `symbols` are those that stand for the batch; without it any one does.
    """
    factors = [factor.strip() for factor in text.split("*")]
    free = [factor for factor in factors if not factor.isdecimal()]
    if len(free) != 1 or not (free[0].isidentifier() if symbols is None else free[0] in symbols):
        return None
    return batch * prod(int(factor) for factor in factors if factor.isdecimal())


def _fixed(value: onnx.ValueInfoProto, batch: int, where: str) -> onnx.ValueInfoProto:
    fixed = onnx.ValueInfoProto()
    fixed.CopyFrom(value)
    for axis, dim in enumerate(fixed.type.tensor_type.shape.dim):
        if not dim.HasField("dim_value"):
            size = _multiple(dim.dim_param or "batch", batch)
            if axis or size is None:
                raise UserError(
                    f"{where}: input {value.name!r} has a free dimension {dim.dim_param or '?'!r} (axis {axis}): "
                    "only the batch, axis 0, may be free; export with fixed sizes"
                )
            dim.dim_value = size
    return fixed


def _itemsize(data_type: int) -> float:
    if data_type in (TensorProto.INT4, TensorProto.UINT4):
        return 0.5
    return onnx.helper.tensor_dtype_to_np_dtype(data_type).itemsize


def _known(node: onnx.NodeProto) -> bool:
    """Whether there is a rule for the operator, that of the standard and not of another with its name."""
    return node.domain in ("", "ai.onnx") and node.op_type in KINDS.keys() | STATIC | ALIASES


def _class_of(shapes: Sequence[Shape], output: Shape) -> str:
    """What a standard operator without a rule is taken for: it reads as much as it writes, more, or less."""
    most = max((prod(shape) for shape in shapes), default=0)
    return "copy" if prod(output) > most else "elementwise" if prod(output) == most else "reduction"


class _Reader:
    """Walks the nodes in order and keeps shapes, weights and the buffers that tensors live in."""

    def __init__(self, model: onnx.ModelProto, where: str) -> None:
        self.graph, self.where = model.graph, where
        self.shapes: dict[str, Shape] = {}
        self.types: dict[str, int] = {}
        self.item: dict[str, float] = {}
        self.rows: dict[str, list[int]] = {}
        # Tensors that are known before the run, each with the parameters that it is made of.
        self.static: dict[str, tuple[Weight, ...]] = {"": ()}
        self.alias: dict[str, str] = {}
        for tensor in self.graph.initializer:
            self._initializer(tensor)
        self.learn(self.graph)

    def learn(self, graph: onnx.GraphProto) -> None:
        """Take over the shapes and types that the graph knows."""
        for value in [*graph.input, *graph.value_info, *graph.output]:
            kind = value.type.tensor_type
            if _sized(value):
                self.shapes.setdefault(value.name, tuple(dim.dim_value for dim in kind.shape.dim))
            if kind.elem_type:
                self.types.setdefault(value.name, kind.elem_type)
                self.item.setdefault(value.name, _itemsize(kind.elem_type))

    def _initializer(self, tensor: TensorProto) -> None:
        self.shapes[tensor.name] = tuple(tensor.dims)
        self.types[tensor.name] = tensor.data_type
        self.item[tensor.name] = _itemsize(tensor.data_type)
        elements = prod(tensor.dims)
        weight = Weight(tensor.name, elements, int(elements * self.item[tensor.name]))
        # One element may be a constant of a formula (the scale of attention); a learned one keeps its module's path.
        learned = tensor.dims and (elements > 1 or "." in tensor.name)
        integer = tensor.data_type in (TensorProto.INT64, TensorProto.BOOL)
        self.static[tensor.name] = (weight,) if learned and not integer else ()

    def workload(self, nodes: Sequence[onnx.NodeProto]) -> Workload:
        operators: list[Operator] = []
        steps: list[Step] = []
        for node in nodes:
            if self._skip(node):
                continue
            operators.append(self._operator(node))
            reads = tuple(self._buffer(name) for name in node.input if name and name not in self.static)
            writes = tuple(self._buffer(name) for name in node.output if name)
            steps.append(Step(reads, writes, operators[-1].kind in IN_PLACE_KINDS))
        inputs = [value.name for value in self.graph.input]
        results = {self._buffer(value.name) for value in self.graph.output}
        sizes: dict[Hashable, int] = {name: self._bytes(name) for name in (*self.shapes, *self.item)}
        # A runtime drops what no output depends on, so it is neither counted nor held in memory.
        keep = needed(steps, results)
        kept = [step for step, wanted in zip(steps, keep, strict=True) if wanted]
        return Workload(
            tuple(operator for operator, wanted in zip(operators, keep, strict=True) if wanted),
            peak_bytes(kept, sizes, inputs, results),
        )

    def _skip(self, node: onnx.NodeProto) -> bool:
        """Whether the node does no work at run time: it is folded before, or only renames its input."""
        if not _known(node):
            return False  # what runs is not known, whatever it reads
        # What depends on constants alone is one itself, and carries the weights that it was made of to the node that
        # reads it: a transposed weight is still that layer's parameter.
        if node.op_type in STATIC or all(name in self.static for name in node.input):
            weights = [weight for slot, name in enumerate(node.input) for weight in self._weights(node, slot, name)]
            for name in node.output:
                self.static[name] = () if node.op_type in STATIC else tuple(weights)
            return True
        if node.op_type in ALIASES:
            self.alias[node.output[0]] = self._buffer(node.input[0])
            return True
        return False

    def _weights(self, node: onnx.NodeProto, slot: int, name: str) -> tuple[Weight, ...]:
        if slot in CONSTANT_SLOTS.get(node.op_type, ()):
            return ()
        return self.static.get(name, ())

    def _operator(self, node: onnx.NodeProto) -> Operator:
        main = next(name for name in node.output if name)
        label = f"{self.where}: node {node.name or main!r} ({node.op_type})"
        layer = (node.domain, node.op_type) == (DOMAIN, LAYER)
        if any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute):
            raise UserError(f"{label}: what its inner graph costs depends on the data, so it cannot be counted")
        assumed = not (layer or _known(node))
        if assumed and node.domain not in ("", "ai.onnx"):
            raise UserError(
                f"{label}: no cost rule for this operator of domain {node.domain!r}, and it is not counted as free"
            )
        shapes = [self._shape(name, label) if name else () for name in node.input]
        output = self._shape(main, label)
        weights = {w.name: w for slot, name in enumerate(node.input) for w in self._weights(node, slot, name)}
        kind = "custom" if layer else _class_of(shapes, output) if assumed else KINDS[node.op_type]
        if kind == "matmul" and weights:
            kind = "linear"
        activations = [i for i, name in enumerate(node.input) if name and name not in self.static]
        path = module_path(node)
        return Operator(
            node.name or main if path is None else path,
            kind,
            # Each row of a queue meets both matrices of its expert, (E, H, D) and (E, D, H), once.
            sum(self.rows[_layer(node)]) * (prod(shapes[3][1:]) + prod(shapes[5][1:]))
            if layer
            else macs(node, shapes, output, label),
            tuple(weights.values()),
            tuple(shapes[i] for i in activations),
            output,
            sum(self._bytes(node.input[i]) for i in activations) + self._bytes(main),
            node.op_type if assumed else None,
        )

    def _shape(self, name: str, label: str) -> Shape:
        if name not in self.shapes:
            raise UserError(
                f"{label}: the shape of {name!r} is not known: it depends on the data or cannot be "
                "inferred, so its cost cannot be counted"
            )
        return self.shapes[name]

    def _buffer(self, name: str) -> str:
        return self.alias.get(name, name)

    def _bytes(self, name: str) -> int:
        if name not in self.shapes:
            return 0  # an optional second output that no schema describes; the first one was checked
        return int(prod(self.shapes[name]) * self.item.get(name, 4))
