"""Stores the weights of a narrower network as slices of those of the widest, so that a file holds every weight once.

A narrow network's graph has tensors of its own; each that equals a selection of the widest network's is replaced by
nodes that select it from the whole, which backends compute when they load the program. Nothing is assumed of where a
tensor came from: its content is compared, element by element::

    file      whole weight (64 out, 32 in)  ---- stored once
                  |
    width 1.0     +--> Conv
    width 0.5     +--> Gather / Slice rows, columns (32, 16) --> Conv

An exporter may have transposed a tensor, split it by expert or joined all experts. So what is compared is every such
form of the selection, by a digest first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper
from torch import nn

from mtlc.export.graph.weights_file import INLINE_BYTES
from mtlc.moe.experts import ExpertLinear
from mtlc.program.surgery import tensor_dimensions

Kept = Mapping[str, tuple[Sequence[int] | None, Sequence[int] | None]]
"""By layer path: the output and the input indices of the widest layer that the narrow one has; None: all of them."""

Indices = NDArray[np.int64]
ContentKey = tuple[str, tuple[int, ...], bytes]
"""What tells tensors apart: their type, shape and a digest of their content."""
_DTYPES = (torch.float32, torch.float64, torch.float16)
LEAST_BYTES = 256
"""What the selecting nodes take in a file: a smaller tensor is stored as it is."""


@dataclass(frozen=True)
class Selection:
    """A tensor as a part of a `whole` one: the indices that it has of every dimension."""

    whole: np.ndarray
    indices: tuple[Indices, ...]

    def taken(self) -> np.ndarray:
        return np.ascontiguousarray(self.whole[np.ix_(*self.indices)])

    @property
    def complete(self) -> bool:
        return all(_all(indices, size) for indices, size in zip(self.indices, self.whole.shape, strict=True))


class SharedWeights:
    """The tensors of a narrow network that are selections of the widest network's, in every form found in a graph."""

    def __init__(self, widest: nn.Module, narrow: nn.Module, kept: Kept) -> None:
        # Arranged wholes would be the network in memory once more: how to arrange one is kept instead.
        self._found: dict[ContentKey, tuple[Selection, bool, int]] = {}
        layers = dict(narrow.named_modules())
        wholes = widest.state_dict()
        for name, tensor in narrow.state_dict().items():
            owner, _, _ = name.rpartition(".")
            if name not in wholes or wholes[name].ndim != tensor.ndim or tensor.dtype not in _DTYPES:
                continue
            whole = wholes[name].detach().cpu().numpy()
            selection = Selection(whole, _indices(layers[owner], whole, *kept.get(owner, (None, None))))
            own = tensor.detach().cpu().numpy()
            if own.nbytes >= LEAST_BYTES and _equal(selection, own):
                experts = isinstance(layers[owner], ExpertLinear)
                # The first that has this content keeps it: equal contents are equal weights, whosever they are.
                for number, form in enumerate(_forms(selection, experts)):
                    self._found.setdefault(content_key(form.taken()), (selection, experts, number))

    def replace(self, graph: GraphProto) -> int:
        """Replace the graph's tensors by selections of whole ones, in place; the bytes that stay the graph's own."""
        own = 0
        nodes: list[NodeProto] = []
        tensors: list[TensorProto] = []
        for tensor in graph.initializer:
            array = numpy_helper.to_array(tensor)
            selection = self._find(array) if array.nbytes >= LEAST_BYTES else None
            if selection is None or selection.whole.nbytes < INLINE_BYTES:  # the whole would be in the graph as well
                own += array.nbytes
                tensors.append(tensor)
            # The whole itself: stored under its content, it meets the widest network's by itself.
            elif selection.complete:
                tensors.append(tensor)
            else:
                selecting, constants = _select(tensor.name, selection)
                nodes += selecting
                tensors += constants
        # The selecting nodes first: ONNX wants makers before readers.
        nodes += graph.node
        del graph.node[:], graph.initializer[:]
        graph.node.extend(nodes)
        graph.initializer.extend(tensors)
        return own

    def _find(self, array: np.ndarray) -> Selection | None:
        found = self._found.get(content_key(array))
        if found is None:
            return None
        selection, experts, number = found
        return next(islice(_forms(selection, experts), number, None))


def _indices(
    layer: nn.Module, whole: np.ndarray, outputs: Sequence[int] | None, inputs: Sequence[int] | None
) -> tuple[Indices, ...]:
    """The kept indices of every dimension of a layer's tensor."""
    indices = [np.arange(size) for size in whole.shape]
    if whole.ndim:
        rows, columns = tensor_dimensions(layer, torch.empty(whole.shape, device="meta"))
        for dimension, chosen in ((rows, outputs), (columns, inputs)):
            if dimension is not None and chosen is not None:
                indices[dimension] = np.asarray(chosen, np.int64)
    return tuple(indices)


def _equal(selection: Selection, tensor: np.ndarray) -> bool:
    sizes = zip(selection.indices, selection.whole.shape, strict=True)
    if any(len(indices) and not 0 <= indices.min() <= indices.max() < size for indices, size in sizes):
        return False
    if tuple(map(len, selection.indices)) != tensor.shape or selection.whole.dtype != tensor.dtype:
        return False
    return selection.taken().tobytes() == np.ascontiguousarray(tensor).tobytes()


def _forms(selection: Selection, experts: bool) -> Iterator[Selection]:
    """The selection, and its elements as exporters arrange them: transposed, expert by expert, all experts as one."""
    whole, indices = selection.whole, selection.indices
    yield selection
    if whole.ndim == 2:
        yield Selection(whole.T, (indices[1], indices[0]))
    if experts and whole.ndim == 3:
        count, rows, columns = whole.shape
        for number in indices[0]:
            yield Selection(whole[number], indices[1:])
        # All experts in one matrix, one below the other: row r of expert e is row e · rows + r.
        tall = (indices[0][:, None] * rows + indices[1]).reshape(-1)
        yield Selection(whole.reshape(count * rows, columns), (tall, indices[2]))
        tall = (indices[0][:, None] * columns + indices[2]).reshape(-1)
        turned = whole.transpose(0, 2, 1).reshape(count * columns, rows)
        yield Selection(turned, (tall, indices[1]))


def _select(name: str, selection: Selection) -> tuple[list[NodeProto], list[TensorProto]]:
    """The nodes that make the tensor `name` of its whole, and the tensors that they read: one Slice for all dimensions
    of which a run is taken, and a Gather for each other one.
    """
    runs: list[tuple[int, int, int]] = []  # first, end, dimension
    scattered: list[int] = []
    for dimension, (indices, size) in enumerate(zip(selection.indices, selection.whole.shape, strict=True)):
        first, end = int(indices[0]), int(indices[0]) + len(indices)
        if not np.array_equal(indices, np.arange(first, end)):
            scattered.append(dimension)
        elif len(indices) < size:
            runs.append((first, end, dimension))
    last = f"{name}.whole"
    module, _, parameter = name.removeprefix("network.").rpartition(".")
    node_name = f"{module}/{parameter}"
    nodes: list[NodeProto] = []
    tensors = [numpy_helper.from_array(np.ascontiguousarray(selection.whole), last)]

    def constant(what: str, values: ArrayLike, kind: type) -> str:
        tensors.append(numpy_helper.from_array(np.asarray(values, kind), f"{name}.{what}"))
        return f"{name}.{what}"

    if runs:
        starts, ends, axes = zip(*runs, strict=True)
        inputs = [
            constant("starts", starts, np.int64),
            constant("ends", ends, np.int64),
            constant("axes", axes, np.int64),
        ]
        nodes.append(helper.make_node("Slice", [last, *inputs], [f"{name}.run"], name=f"{node_name}.Slice"))
        last = f"{name}.run"
    for dimension in scattered:
        chosen = constant(f"indices_{dimension}", selection.indices[dimension], np.int32)
        part = f"{name}.part_{dimension}"
        nodes.append(
            helper.make_node("Gather", [last, chosen], [part], name=f"{node_name}.Gather_{dimension}", axis=dimension)
        )
        last = part
    # The last one makes the tensor under its old name, so that its readers need no change.
    nodes[-1].output[0] = name
    return nodes, tensors


def _all(indices: Indices, size: int) -> bool:
    return len(indices) == size and np.array_equal(indices, np.arange(size))


def content_key(array: np.ndarray) -> ContentKey:
    """Equal for tensors of one type, shape and content."""
    return str(array.dtype), array.shape, hashlib.sha256(np.ascontiguousarray(array).tobytes()).digest()
