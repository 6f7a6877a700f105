"""Experts outside the graphs: one file with a slab per expert, and a small program that runs one of them."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np
from onnx import TensorProto, helper

from mtlc.export.graph.expert_operators import expert_nodes
from mtlc.export.graph.partition import Part
from mtlc.runtime.bundle.manifest import ExpertLayer

NAME = "experts.bin"
ALIGNMENT = 16384
"""Bytes: the page of the devices with large pages (arm64), a multiple of the others'.

A page holds one expert's weights only.
"""


class ExpertFile:
    """Writes the experts of a bundle's layers to ``experts.bin`` in a folder, which exists only if there are any."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file: IO[bytes] | None = None

    def add(self, part: Part) -> tuple[str, ExpertLayer]:
        """Write the layer that `part` is; the file of the program that runs one expert, and where the experts lie."""
        (layer,) = expert_nodes(part.model.graph)
        w1, b1, w2, b2 = layer.weights
        count, hidden, width = w1.shape
        if self._file is None:
            self._file = (self.folder / NAME).open("wb")
        offset = self._file.tell()
        for expert in range(count):
            for tensor in (w1, b1, w2, b2):
                self._file.write(np.ascontiguousarray(tensor[expert], np.float32).tobytes())
            self._file.write(b"\0" * (-self._file.tell() % ALIGNMENT))
        stride = (self._file.tell() - offset) // count
        name = f"expert-{width}x{hidden}.onnx"
        (self.folder / name).write_bytes(_one_expert(width, hidden))
        return name, ExpertLayer(NAME, offset, stride, count, width, hidden)

    def __enter__(self) -> ExpertFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()


def _one_expert(width: int, hidden: int) -> bytes:
    """One expert whose weights are inputs: x (n, width), w1, b1, w2, b2 → y (n, width)."""
    shapes: dict[str, list[int | str]] = {
        "x": ["n", width], "w1": [hidden, width], "b1": [hidden], "w2": [width, hidden], "b2": [width],
    }  # fmt: skip
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], name="fc1", transB=1),
            helper.make_node("Gelu", ["h"], ["a"], name="gelu"),
            helper.make_node("Gemm", ["a", "w2", "b2"], ["y"], name="fc2", transB=1),
        ],
        "expert",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", width])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    result: bytes = model.SerializeToString(deterministic=True)
    return result
