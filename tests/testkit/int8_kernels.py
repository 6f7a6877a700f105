"""Tells what backends make of a quantised graph."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from mtlc.runtime.backends.onnxruntime_backend import onnxruntime


def optimised(model: onnx.ModelProto, path: Path) -> list[str]:
    """The kinds of nodes that onnxruntime makes of a graph."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(path).graph.node]


def precisions(file: Path) -> list[str]:
    """What OpenVINO runs each convolution and product in."""
    openvino = pytest.importorskip("openvino")
    compiled = openvino.Core().compile_model(str(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    infos = [operation.get_rt_info() for operation in compiled.get_runtime_model().get_ops()]
    kinds = ("Convolution", "FullyConnected", "MatMul")
    return [i["runtimePrecision"].astype(str) for i in infos if i["layerType"].astype(str) in kinds]
