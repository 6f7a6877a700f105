"""A bundle written by hand: three tasks on one trunk, whose answers can be worked out on paper.

x ──► trunk: t = 2x ──┬──► head-plus:   plus = t + w        (w = 0, 1, 2, … in weights.bin)
                      └──► shared: s = t · t ──┬──► head-square: square = s
                                               └──► head-less:   less = s − 1
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

CHANNELS, SIZE = 3, 20
W = np.arange(CHANNELS * SIZE * SIZE, dtype=np.float32).reshape(1, CHANNELS, SIZE, SIZE)
SHAPE = ["batch", CHANNELS, SIZE, SIZE]


def info(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPE)


def graph(
    name: str, nodes: list[onnx.NodeProto], inputs: list[str], outputs: list[str], weights: list[onnx.TensorProto]
) -> bytes:
    made = helper.make_graph(nodes, name, [info(i) for i in inputs], [info(o) for o in outputs], weights)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(made, opset_imports=opsets, ir_version=10).SerializeToString()


def external(name: str, location: str, offset: int = 0, length: int = W.nbytes) -> onnx.TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=W.shape, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def plus_head(weight: onnx.TensorProto, operator: str = "Add", domain: str = "") -> bytes:
    return graph("plus", [helper.make_node(operator, ["t", "w"], ["plus"], domain=domain)], ["t"], ["plus"], [weight])


def manifest(files: dict[str, bytes]) -> dict:
    def program(name: str, inputs: list[str], outputs: list[str], tasks: list[str]) -> dict:
        return {"name": name, "file": f"{name}.onnx", "inputs": inputs, "outputs": outputs, "tasks": tasks}

    programs = [
        program("trunk", ["x"], ["t"], ["plus", "square", "less"]),
        program("shared", ["t"], ["s"], ["square", "less"]),
        program("head-plus", ["t"], ["plus"], ["plus"]),
        program("head-square", ["s"], ["square"], ["square"]),
        program("head-less", ["s"], ["less"], ["less"]),
    ]
    task = {"shape": SHAPE, "dtype": "float32", "kind": "scalar", "metric": "rmse", "unit": "m"}
    return {
        "schema": 1,
        "tasks": {name: {"output": name, **task} for name in ("plus", "square", "less")},
        "inputs": [{"name": "x", "shape": SHAPE, "dtype": "float32"}],
        "preprocessing": {
            "scale": 0.5,
            "mean": [1.0, 2.0, 3.0],
            "std": [1.0, 2.0, 4.0],
            "color": "RGB",
            "layout": "NCHW",
        },
        "programs": programs,
        "configurations": [{"name": "default", "programs": [p["name"] for p in programs]}],
        "device": None,
        "provenance": {},
        "files": {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in files.items()
        },
    }


def payloads() -> dict[str, bytes]:
    two = helper.make_tensor("two", TensorProto.FLOAT, [1], [2.0])
    one = helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])
    return {
        "trunk.onnx": graph(
            "trunk", [helper.make_node("Mul", ["x", "two"], ["t"], name="trunk/Mul")], ["x"], ["t"], [two]
        ),
        "shared.onnx": graph("shared", [helper.make_node("Mul", ["t", "t"], ["s"])], ["t"], ["s"], []),
        "head-plus.onnx": plus_head(external("w", "weights.bin")),
        "head-square.onnx": graph("square", [helper.make_node("Identity", ["s"], ["square"])], ["s"], ["square"], []),
        "head-less.onnx": graph("less", [helper.make_node("Sub", ["s", "one"], ["less"])], ["s"], ["less"], [one]),
        "weights.bin": W.tobytes(),
    }


def write(folder: Path, files: dict[str, bytes], described: dict | None = None) -> Path:
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / "manifest.json").write_text(json.dumps(manifest(files) if described is None else described))
    return folder


def expected(x: np.ndarray) -> dict[str, np.ndarray]:
    return {"plus": 2 * x + W, "square": 4 * x * x, "less": 4 * x * x - 1}
