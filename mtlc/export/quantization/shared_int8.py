"""Stores one 8-bit copy of each weight for several widths, from which the narrower programs select theirs.

A weight of the widest network is rounded once, with a scale for each output channel, and a narrower program selects
from the rounded numbers what it selected from the float ones (`mtlc.export.widths.shared_slices`). The factors of its
own that a norm puts on output channels (`mtlc.export.graph.batch_norms`) go into the scales, so that a program stores
scales and biases only.

The price: where a narrow layer leaves out the inputs with the largest weights, its rounding is coarser than it would be
alone.

An operator that gets floating point back computes on the same 8-bit numbers, turned into floats when the program is
loaded: a float copy takes four times their bytes, and with many programs some one wants almost any weight in float.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from mtlc.export.graph.lower import tensor_names
from mtlc.export.graph.small_graphs import shrink_graph
from mtlc.export.graph.weights_file import INLINE_BYTES
from mtlc.export.quantization.operators import DEQUANTIZE, QuantizedGraph, name_pairs
from mtlc.export.quantization.targets import LARGEST, Target
from mtlc.export.widths.shared_slices import LEAST_BYTES, ContentKey, content_key

_LEAST_SCALE = 1e-7
"""Of a tensor's largest scale: a channel that a norm switches off has one too, as backends divide by scales."""

Scales = NDArray[np.float32]


@dataclass(frozen=True)
class Part:
    """A weight of a program: what `nodes` (Slice, Gather) with their `constants` select of `whole`, times `factors`.

    `product` is the node that multiplies. An INT8 whole becomes float before that.
    """

    whole: np.ndarray
    nodes: tuple[NodeProto, ...] = ()
    constants: Mapping[str, np.ndarray] = field(default_factory=dict)
    product: NodeProto | None = None
    factors: np.ndarray | None = None

    def of(self, whole: np.ndarray) -> np.ndarray:
        """The same part of another tensor of the whole's shape, without the factors."""
        for node in self.nodes:
            read = [self.constants[name] for name in node.input[1:]]
            if node.op_type == "Slice":
                ranges = {int(axis): slice(int(start), int(end)) for start, end, axis in zip(*read, strict=True)}
                whole = whole[tuple(ranges.get(axis, slice(None)) for axis in range(whole.ndim))]
            else:
                whole = np.take(whole, read[0], axis=_axis(node))
        return whole

    def taken(self) -> np.ndarray:
        """The weight itself."""
        part = self.of(self.whole)
        return np.ascontiguousarray(part if self.factors is None else part * self.factors)


class SharedGraph(QuantizedGraph):
    """A quantised graph of shared weights: operators in floating point read the 8-bit numbers as floats, as in
    `rounded`.

    With all operators given back, the graph is `original` again, float weights included.
    """

    def __init__(self, original: ModelProto, rounded: ModelProto, quantized: ModelProto) -> None:
        super().__init__(rounded, quantized)
        self._exact = QuantizedGraph(original, quantized)

    def restored(self, floats: Collection[str]) -> ModelProto:
        if set(self.operators) <= set(floats):
            return self._exact.restored(floats)
        return super().restored(floats)


class SharedInt8:
    """The weights that the programs of one bundle share, in floating point and in INT8 for `target`."""

    def __init__(self, target: Target) -> None:
        self._largest = LARGEST[target.weights]
        self._wholes: dict[ContentKey, np.ndarray] = {}
        self._rounded: dict[tuple[ContentKey, int | None], tuple[np.ndarray, Scales]] = {}
        self._stored: dict[ContentKey, Part] = {}
        self._parts: dict[str, dict[str, Part]] = {}

    def fold(self, file: str, model: ModelProto) -> None:
        """Make plain weights of the parts of weights that the graph of `file` computes, in place."""
        graph = model.graph
        stored = {tensor.name: tensor for tensor in graph.initializer}
        found: dict[str, Part] = {}
        nodes = []
        for index, node in enumerate(graph.node):
            part = self._part(node, stored, found)
            if part is None:
                node.name = node.name or f"{node.op_type}_{index}"  # quantised graphs know their nodes by name
                nodes.append(node)
            else:
                found[node.output[0]] = part
        del graph.node[:]
        graph.node.extend(nodes)
        used = tensor_names(GraphProto(node=nodes)) | {value.name for value in graph.output}
        parts = {name: part for name, part in found.items() if name in used}
        tensors = [tensor for tensor in graph.initializer if tensor.name in used]
        tensors += [numpy_helper.from_array(self._store(part), name) for name, part in parts.items()]
        del graph.initializer[:]
        graph.initializer.extend(tensors)
        self._parts[file] = parts

    def round(self, file: str, original: ModelProto, quantized: ModelProto) -> SharedGraph:
        """The quantised graph with the numbers that all programs share as its weights in INT8; `quantized` is changed.

        `original` is the graph of `file` that it was made of, folded. A weight whose scales do not follow from the
        whole's alone keeps the rounding that it has.
        """
        rounded = ModelProto()
        rounded.CopyFrom(original)
        graph, parts = quantized.graph, self._parts[file]
        floats = {tensor.name: tensor for tensor in original.graph.initializer}
        tensors = {tensor.name: tensor for tensor in rounded.graph.initializer}
        before = {node.name: node for node in original.graph.node}
        stored = {tensor.name for tensor in graph.initializer}
        pairs = {node.output[0]: node for node in graph.node if node.op_type == DEQUANTIZE and node.input[0] in stored}
        done: set[str] = set()
        for node in graph.node:
            for index, name in enumerate(node.input):
                if name not in pairs or name in done or node.name not in before:
                    continue
                source = before[node.name].input[index]
                if source not in floats:
                    continue
                part = parts.get(source) or Part(self._whole(floats[source]))
                numbers = self._round(graph, pairs[name], part, node.name.rpartition("/")[0])
                if numbers is not None:
                    tensors[source].CopyFrom(numpy_helper.from_array(numbers, source))
                done.add(name)
        used = tensor_names(GraphProto(node=graph.node))
        kept = [tensor for tensor in graph.initializer if tensor.name in used]
        del graph.initializer[:]
        graph.initializer.extend(kept)
        return SharedGraph(original, rounded, quantized)

    def unfold(self, model: ModelProto) -> None:
        """Replace weights that are parts by nodes that select them from the whole, in place, and name all nodes."""
        name_pairs(model)
        nodes: list[NodeProto] = []
        tensors: list[TensorProto] = []
        for tensor in model.graph.initializer:
            array = numpy_helper.to_array(tensor)
            part = self._stored.get(content_key(array))
            if part is None or array.nbytes < LEAST_BYTES or part.whole.nbytes < INLINE_BYTES:
                tensors.append(tensor)
                continue
            selecting, constants = _computed(tensor.name, part)
            nodes += selecting
            tensors += constants
        nodes += model.graph.node
        del model.graph.node[:], model.graph.initializer[:]
        model.graph.node.extend(nodes)
        model.graph.initializer.extend(tensors)
        shrink_graph(model, {})

    def _part(self, node: NodeProto, stored: Mapping[str, TensorProto], found: Mapping[str, Part]) -> Part | None:
        """What the node makes of a weight; None where it does anything else."""
        if node.op_type not in ("Slice", "Gather", "Mul") or not all(name in stored for name in node.input[1:]):
            return None
        if len(node.input) != (4 if node.op_type == "Slice" else 2):
            return None
        part = found.get(node.input[0])
        if part is None and node.input[0] in stored and stored[node.input[0]].data_type == TensorProto.FLOAT:
            part = Part(self._whole(stored[node.input[0]]))
        if part is None or part.factors is not None:
            return None
        read = {name: numpy_helper.to_array(stored[name]) for name in node.input[1:]}
        if node.op_type == "Mul":
            return replace(part, product=node, factors=read[node.input[1]])
        return replace(part, nodes=(*part.nodes, node), constants={**part.constants, **read})

    def _whole(self, tensor: TensorProto) -> np.ndarray:
        """The tensor's content, in memory once for all programs."""
        array = numpy_helper.to_array(tensor)
        return self._wholes.setdefault(content_key(array), array)

    def _round(self, graph: GraphProto, pair: NodeProto, part: Part, module: str) -> np.ndarray | None:
        """Let a DequantizeLinear read the part's shared numbers; what it makes of them. None if there are none."""
        scale = next(tensor for tensor in graph.initializer if tensor.name == pair.input[1])
        axis = _axis(pair, 1) if scale.dims else None
        whole, scales = self._whole_rounded(part.whole, axis)
        spread = part.of(np.broadcast_to(scales, part.whole.shape))
        own = _along(spread if part.factors is None else spread * part.factors, axis)
        if own is None:
            return None
        least = np.float32(_LEAST_SCALE * np.abs(own).max())
        own = np.where(np.abs(own) < least, least, own).astype(np.float32)
        numbers = replace(part, whole=whole, product=None, factors=None)
        self._store(numbers)
        for index, what, array in ((0, "numbers", numbers.taken()), (1, "scales", own)):
            name = f"{pair.output[0]}.{what}"
            graph.initializer.append(numpy_helper.from_array(array, name))
            pair.input[index] = name
        product = helper.make_node("Mul", ["numbers", "scales"], ["weight"], name=f"{module}/Mul")
        line = [-1 if dimension == (axis or 0) % whole.ndim else 1 for dimension in range(whole.ndim)]
        return self._store(replace(numbers, product=product, factors=own.reshape(line)))

    def _store(self, part: Part) -> np.ndarray:
        """Remember what the part's content is a part of; the content."""
        content = part.taken()
        self._stored[content_key(content)] = part
        return content

    def _whole_rounded(self, whole: np.ndarray, axis: int | None) -> tuple[np.ndarray, Scales]:
        """A whole weight in INT8, and its scales along `axis` (None: one), in a shape that goes with the weight's."""
        key = (content_key(whole), axis)
        if key not in self._rounded:
            others = tuple(other for other in range(whole.ndim) if axis is None or other != axis % whole.ndim)
            largest = np.abs(whole).max(axis=others, keepdims=True)
            scales = (np.where(largest > 0, largest, 1) / self._largest).astype(np.float32)
            rounded = np.rint(whole / scales).astype(np.int8)  # 63.5 becomes 64
            self._rounded[key] = rounded, scales
        return self._rounded[key]


def _axis(node: NodeProto, default: int = 0) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "axis"), default)


def _along(array: np.ndarray, axis: int | None) -> Scales | None:
    """The numbers of an array that depend on their place along `axis` only (None: on none); None where they do not."""
    lines = array.reshape(1, -1) if axis is None else np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
    if (lines != lines[:, :1]).any():
        return None
    return lines[0, 0] if axis is None else np.ascontiguousarray(lines[:, 0])


def _computed(name: str, part: Part) -> tuple[list[NodeProto], list[TensorProto]]:
    """The nodes that make the tensor `name` of the part's whole, and the tensors that they read."""
    steps = [(node, [part.constants[constant] for constant in node.input[1:]]) for node in part.nodes]
    if part.product is not None and part.factors is not None:
        if part.whole.dtype == np.int8:
            path = part.product.name.rpartition("/")[0]
            steps.append((helper.make_node("Cast", [""], [""], name=f"{path}/Cast", to=TensorProto.FLOAT), []))
        steps.append((part.product, [part.factors]))
    last = f"{name}.whole" if steps else name
    tensors = [numpy_helper.from_array(part.whole, last)]
    nodes: list[NodeProto] = []
    for number, (step, constants) in enumerate(steps):
        node = NodeProto()
        node.CopyFrom(step)
        read = [f"{name}.{number}.{index}" for index in range(len(constants))]
        tensors += [numpy_helper.from_array(array, made) for array, made in zip(constants, read, strict=True)]
        node.input[:] = [last, *read]
        last = node.output[0] = f"{name}.{number}" if number + 1 < len(steps) else name
        nodes.append(node)
    return nodes, tensors
