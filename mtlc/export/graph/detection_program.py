"""Writes the ONNX program that turns a detector's raw output into detections, of standard operators alone.

It computes what `mtlc.box_decoding.detect` does, for devices that run ONNX without mtlc::

    raw (N, A, D) ─┬─ boxes (N, A, 4) ───────────┬─ NonMaxSuppression ─ which (n, 3) ─┐
                   │                             │                                    │
                   └─ scores (N, classes, A) ────┴── those of `which`, others 0 ◄─────┘
                                                              │
             detections (N, K, 6) ◄─ box, class, score ◄─ TopK over classes and points

NonMaxSuppression gives its results in an order that backends do not agree on. Put back in their places, and sorted by
`TopK`, they are the same everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mtlc.detection import EXPONENT, Detection
from mtlc.runtime.bundle.manifest import TaskInfo

DETECTIONS = "detections"
"""The name of the program's output."""
_OPSET = 18
_IR_VERSION = 8


def decoder_file(task: str) -> str:
    """The name of the file of a task's decoder in a bundle."""
    return f"decode-{task}.onnx"


def write_decoders(folder: Path, tasks: Mapping[str, TaskInfo]) -> None:
    """Write the decoder of each task that has one into a bundle's folder."""
    for task in tasks.values():
        if task.decoder is not None and task.postprocess is not None:
            model = detection_program(task.postprocess, task.output, task.shape, task.dtype)
            (folder / task.decoder).write_bytes(model.SerializeToString(deterministic=True))


def detection_program(how: Detection, source: str, shape: tuple[int | str, ...], dtype: str) -> onnx.ModelProto:
    """The program for a raw output called `source`, of `shape` (batch, A, D) and `dtype` float32 or float16."""
    classes, anchors = how.classes(shape), how.anchors
    graph = _Graph()
    raw = source if dtype == "float32" else graph.add("Cast", source, to=TensorProto.FLOAT)
    parts = [2, 2, *([1] if how.objectness else []), classes]
    first, second, *rest = graph.split(raw, parts, axis=2)
    boxes = _boxes(graph, how, first, second)
    scores = graph.add("Sigmoid", rest[-1])
    if how.objectness:
        scores = graph.add("Mul", scores, graph.add("Sigmoid", rest[0]))
    scores = graph.add("Transpose", scores, perm=[0, 2, 1])

    most = min(how.most, anchors)
    limits = (graph.array(np.array([value], np.float32)) for value in (how.iou, how.score))
    found = graph.add("NonMaxSuppression", boxes, scores, graph.whole(most), *limits)
    nothing = graph.add(
        "ConstantOfShape", graph.add("Shape", scores), value=helper.make_tensor("", TensorProto.FLOAT, [1], [0.0])
    )
    kept = graph.add("ScatterND", nothing, found, graph.add("GatherND", scores, found))
    flat = graph.add("Reshape", kept, graph.whole(0, classes * anchors))
    best, place = graph.several("TopK", 2, flat, graph.whole(how.kept(classes)), axis=1, largest=1, sorted=1)
    label = graph.add("Div", place, graph.whole(anchors))
    point = graph.add("Mod", place, graph.whole(anchors))

    last = graph.whole(2)
    box = graph.add("GatherND", boxes, graph.add("Unsqueeze", point, last), batch_dims=1)
    # Rows of nothing, whose score is 0, have no box and the class -1.
    real = graph.add("Greater", best, graph.number(0.0))
    named = graph.add("Where", real, graph.add("Cast", label, to=TensorProto.FLOAT), graph.number(-1.0))
    shown = graph.add("Mul", box, graph.add("Unsqueeze", graph.add("Cast", real, to=TensorProto.FLOAT), last))
    columns = (graph.add("Unsqueeze", column, last) for column in (named, best))
    graph.nodes.append(helper.make_node("Concat", [shown, *columns], [DETECTIONS], axis=2))
    return _model(graph, source, shape, dtype, how.kept(classes))


def _boxes(graph: _Graph, how: Detection, first: str, second: str) -> str:
    """(N, A, 4): the corners of boxes, cut at the picture's border. `first` and `second` are two columns each."""
    at, stride = graph.array(how.points[:, :2]), graph.array(how.points[:, 2:])
    limits = graph.number(-EXPONENT), graph.number(EXPONENT)
    if how.encoding == "distances":
        before, behind = (
            graph.add("Mul", graph.add("Exp", graph.add("Clip", part, *limits)), stride) for part in (first, second)
        )
        corners = graph.add("Sub", at, before), graph.add("Add", at, behind)
    else:
        middle = graph.add("Add", at, graph.add("Mul", first, stride))
        halves = graph.array(how.points[:, 2:] * np.float32(0.5))
        half = graph.add("Mul", graph.add("Exp", graph.add("Clip", second, *limits)), halves)
        corners = graph.add("Sub", middle, half), graph.add("Add", middle, half)
    border = graph.array(np.array([how.size[1], how.size[0]], np.float32))
    cut = (graph.add("Min", graph.add("Max", corner, graph.number(0.0)), border) for corner in corners)
    return graph.add("Concat", *cut, axis=2)


def _model(graph: _Graph, source: str, shape: tuple[int | str, ...], dtype: str, rows: int) -> onnx.ModelProto:
    kind = TensorProto.FLOAT if dtype == "float32" else TensorProto.FLOAT16
    made = helper.make_graph(
        graph.nodes,
        "detections",
        [helper.make_tensor_value_info(source, kind, list(shape))],
        [helper.make_tensor_value_info(DETECTIONS, TensorProto.FLOAT, [shape[0], rows, 6])],
        graph.constants,
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", _OPSET)], producer_name="mtlc")
    model.ir_version = _IR_VERSION
    onnx.checker.check_model(model, full_check=True)
    return model


class _Graph:
    """Nodes and constants of a graph under construction; each method returns the name of the tensor that it adds."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def several(self, operator: str, count: int, *inputs: str, **attributes: Any) -> list[str]:
        names = [f"decode_{len(self.nodes)}_{place}" for place in range(count)]
        self.nodes.append(helper.make_node(operator, list(inputs), names, **attributes))
        return names

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        return self.several(operator, 1, *inputs, **attributes)[0]

    def split(self, source: str, sizes: list[int], axis: int) -> list[str]:
        return self.several("Split", len(sizes), source, self.whole(*sizes), axis=axis)

    def array(self, values: np.ndarray) -> str:
        name = f"decode_constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(values, order="C"), name))
        return name

    def whole(self, *values: int) -> str:
        return self.array(np.array(values, np.int64))

    def number(self, value: float) -> str:
        return self.array(np.array(value, np.float32))
