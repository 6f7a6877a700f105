"""Writes the weights of all programs into one file: every tensor once, aligned so that a backend can map it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import TracebackType

from onnx import GraphProto, ModelProto, TensorProto, numpy_helper

from mtlc.export.graph.partition import node_reads

PAGE = 4096
LINE = 64
INLINE_BYTES = 1024


class WeightsFile:
    """Writes tensors to `path` as ONNX external data. Equal bytes are written once, whatever their names.

    Tensors of a page or more start on a page (backends map them), smaller ones on a cache line. Tensors under
    `INLINE_BYTES` stay in the graphs: they are shapes, scales and biases, which shape inference wants to see.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("wb")
        self._places: dict[tuple[str, int], int] = {}

    def externalize(self, model: ModelProto) -> None:
        """Move the weights of the model's main graph that a node reads here, in place."""
        read = set().union(*(node_reads(node) for node in model.graph.node))
        for tensor in model.graph.initializer:
            data = _bytes(tensor) if tensor.name in read else None
            if data is None or len(data) < INLINE_BYTES:
                continue
            offset = self._place(data)
            shape, kind, name = list(tensor.dims), tensor.data_type, tensor.name
            tensor.Clear()
            tensor.name, tensor.data_type, tensor.data_location = name, kind, TensorProto.EXTERNAL
            tensor.dims.extend(shape)
            for key, value in (("location", self.path.name), ("offset", offset), ("length", len(data))):
                tensor.external_data.add(key=key, value=str(value))

    def _place(self, data: bytes) -> int:
        key = (hashlib.sha256(data).hexdigest(), len(data))
        if key not in self._places:
            step = PAGE if len(data) >= PAGE else LINE
            self._file.write(b"\0" * (-self._file.tell() % step))
            self._places[key] = self._file.tell()
            self._file.write(data)
        return self._places[key]

    def __enter__(self) -> WeightsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def weights_bytes(graph: GraphProto) -> int:
    """The bytes of a graph's weights, wherever they lie."""
    total = 0
    for tensor in graph.initializer:
        length = next((int(entry.value) for entry in tensor.external_data if entry.key == "length"), None)
        total += length if length is not None else len(_bytes(tensor) or b"")
    return total


def _bytes(tensor: TensorProto) -> bytes | None:
    """The tensor's content as ONNX stores it; None for one that has no raw form (text)."""
    if tensor.data_type == TensorProto.STRING or tensor.data_location == TensorProto.EXTERNAL:
        return None
    if tensor.HasField("raw_data"):
        return tensor.raw_data
    array = numpy_helper.to_array(tensor)
    return numpy_helper.from_array(array).raw_data
