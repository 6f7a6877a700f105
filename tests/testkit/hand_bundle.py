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


# A slimmable network by hand. Encoders wide, middle and narrow scale by 4, 2 and 1; the task far has a neck of its own:
#
# x ──► trunk@wide: t = 4x ──┬───────────────────────────► head-near@wide-W: near = t + W
#                            └─► neck@wide: u = t + 1000 ──► head-far@wide-W:  far = u + W
#
# near's decoders have the widths 0.25, 0.5 and 1, far's 0.5 and 1.

ENCODERS = {"wide": (1.0, 1.0), "middle": (1.0, 0.5), "narrow": (0.5, 0.25)}
SCALES = {"wide": 4.0, "middle": 2.0, "narrow": 1.0}
DECODERS = {"near": (0.25, 0.5, 1.0), "far": (0.5, 1.0)}
TRUNK_MACS = {"wide": 40_000_000, "middle": 20_000_000, "narrow": 5_000_000}
NECK_MACS = 2_000_000
HEAD_MACS = {"wide": 16_000_000, "middle": 8_000_000, "narrow": 4_000_000}
"""Of a decoder at width 1; those of others are in proportion."""


def slim_metric(task: str, encoder: str, width: float) -> float:
    """near is an error (1 with the widest network), far a score (50); both lose with less width."""
    lost = {"wide": 0.0, "middle": 0.05, "narrow": 0.2}[encoder] + 0.1 * (1 - width)
    return 1.0 + lost if task == "near" else 50.0 * (1 - lost)


def slim_expected(x: np.ndarray, encoder: str, near: float, far: float) -> dict[str, np.ndarray]:
    return {"near": SCALES[encoder] * x + near, "far": SCALES[encoder] * x + 1000 + far}


def _shift(source: str, target: str, by: float, operator: str = "Add") -> bytes:
    constant = helper.make_tensor("c", TensorProto.FLOAT, [1], [by])
    return graph(target, [helper.make_node(operator, [source, "c"], [target])], [source], [target], [constant])


def slim_payloads() -> dict[str, bytes]:
    files = {f"trunk@{name}.onnx": _shift("x", "t", scale, "Mul") for name, scale in SCALES.items()}
    files |= {f"neck@{name}.onnx": _shift("t", "u", 1000) for name in ENCODERS}
    for task, source in (("near", "t"), ("far", "u")):
        for name in ENCODERS:
            files |= {f"head-{task}@{name}-{w}.onnx": _shift(source, task, w) for w in DECODERS[task]}
    return files


def slim_manifest(files: dict[str, bytes] | None = None) -> dict:
    files = slim_payloads() if files is None else files

    def program(name: str, reads: str, makes: str, tasks: list[str], macs: int) -> dict:
        return {
            "name": name,
            "file": f"{name}.onnx",
            "inputs": [reads],
            "outputs": [makes],
            "tasks": tasks,
            "macs": macs,
        }

    programs, encoders = [], []
    for name, widths in ENCODERS.items():
        programs += [
            program(f"trunk@{name}", "x", "t", ["near", "far"], TRUNK_MACS[name]),
            program(f"neck@{name}", "t", "u", ["far"], NECK_MACS),
        ]
        decoders: dict[str, list[dict]] = {}
        for task, source in (("near", "t"), ("far", "u")):
            for w in DECODERS[task]:
                head = f"head-{task}@{name}-{w}"
                programs.append(program(head, source, task, [task], int(HEAD_MACS[name] * w)))
                point = {"width": w, "programs": [head], "metric": slim_metric(task, name, w)}
                decoders.setdefault(task, []).append(point)
        encoders.append(
            {
                "name": name,
                "widths": list(widths),
                "programs": [f"trunk@{name}", f"neck@{name}"],
                "decoders": decoders,
            }
        )

    def named(name: str, encoder: str, near: float, far: float) -> dict:
        heads = [f"head-near@{encoder}-{near}", f"head-far@{encoder}-{far}"]
        listed = [f"trunk@{encoder}", f"neck@{encoder}", *heads]
        return {"name": name, "programs": listed, "encoder": encoder, "decoders": {"near": near, "far": far}}

    task = {"shape": SHAPE, "dtype": "float32", "kind": "scalar", "metric": "rmse", "unit": "m"}
    return {
        **manifest(files),
        "tasks": {name: {"output": name, **task} for name in ("near", "far")},
        "programs": programs,
        "configurations": [named("default", "wide", 1.0, 1.0), named("small", "narrow", 0.25, 0.5)],
        "widths": {
            "widths": [0.25, 0.5, 1.0],
            "stages": ["stage1", "stage2"],
            "reference": {"near": 1.0, "far": 50.0},
            "higher_is_better": {"near": False, "far": True},
            "encoders": encoders,
        },
    }
