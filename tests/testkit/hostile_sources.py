"""Writes the small whole bundles that hostile ones are made of: one of each form that a backend runs."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from testkit.hand_bundle import manifest, payloads, slim_manifest, slim_payloads, write

WIDTH, HIDDEN, EXPERTS = 4, 6, 2


def write_sources(folder: Path, backend: str) -> list[Path]:
    """Bundles for `backend` in `folder`: plain, of several widths, and with experts outside the graphs; for OpenVINO
    also with IR, for TensorRT with engines (of the fake, which must be in its place).
    """
    plain = write(folder / "plain", payloads())
    slim = write(folder / "slim", slim_payloads(), slim_manifest())
    if backend == "tensorrt":
        from mtlc.export.tensorrt.engines import build_engines
        from mtlc.runtime.bundle.manifest import Sizes

        build_engines(plain, folder / "engines", "fp32", dimensions={"batch": Sizes(1, 2, 8)})
        return [folder / "engines"]
    sources = [plain, slim, write(folder / "experts", expert_payloads(), expert_manifest())]
    if backend == "openvino":
        write_ir = importlib.import_module("mtlc.export.openvino.ir").write_ir
        for path in (plain, slim):
            write_ir(path, folder / f"{path.name}-ir")
            sources.append(folder / f"{path.name}-ir")
    return sources


def _info(name: str, shape: list[int | str], kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _model(nodes: list[onnx.NodeProto], inputs: list, outputs: list, weights: list) -> bytes:
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


def expert_payloads() -> dict[str, bytes]:
    """Tokens x (n, 4) → a choice of two experts by the sign of the first number, weighted by its sigmoid."""
    ends = [helper.make_tensor(n, TensorProto.INT64, [1], [v]) for n, v in (("a", 0), ("b", 1), ("axis", 1))]
    zero = helper.make_tensor("zero", TensorProto.FLOAT, [1], [0.0])
    router = _model(
        [
            helper.make_node("Identity", ["x"], ["tokens"]),
            helper.make_node("Slice", ["x", "a", "b", "axis"], ["first"]),
            helper.make_node("Greater", ["first", "zero"], ["sign"]),
            helper.make_node("Cast", ["sign"], ["choice"], to=TensorProto.INT64),
            helper.make_node("Sigmoid", ["first"], ["score"]),
        ],
        [_info("x", ["batch", WIDTH])],
        [
            _info("tokens", ["batch", WIDTH]),
            _info("choice", ["batch", 1], TensorProto.INT64),
            _info("score", ["batch", 1]),
        ],
        [*ends, zero],
    )
    expert = _model(
        [
            helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], transB=1),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("Gemm", ["r", "w2", "b2"], ["y"], transB=1),
        ],
        [
            _info("x", ["n", WIDTH]),
            _info("w1", [HIDDEN, WIDTH]),
            _info("b1", [HIDDEN]),
            _info("w2", [WIDTH, HIDDEN]),
            _info("b2", [WIDTH]),
        ],
        [_info("y", ["n", WIDTH])],
        [],
    )
    count = EXPERTS * (2 * WIDTH * HIDDEN + WIDTH + HIDDEN)
    weights = np.random.default_rng(0).standard_normal(count, np.float32)
    return {"router.onnx": router, "expert.onnx": expert, "experts.bin": weights.tobytes()}


def expert_manifest() -> dict:
    """The router's program, and the expert layer's, whose output is the task."""
    size = 4 * (2 * WIDTH * HIDDEN + WIDTH + HIDDEN)
    layer = {"file": "experts.bin", "offset": 0, "stride": size, "count": EXPERTS, "width": WIDTH, "hidden": HIDDEN}
    routed = ["tokens", "choice", "score"]
    programs = [
        {"name": "router", "file": "router.onnx", "inputs": ["x"], "outputs": routed, "tasks": ["mix"]},
        {"name": "layer", "file": "expert.onnx", "inputs": routed, "outputs": ["mix"], "tasks": ["mix"]},
    ]
    programs[1]["experts"] = layer
    task = {"output": "mix", "shape": ["batch", WIDTH], "dtype": "float32", "kind": "unknown", "metric": "", "unit": ""}
    return manifest(expert_payloads()) | {
        "tasks": {"mix": task},
        "inputs": [{"name": "x", "shape": ["batch", WIDTH], "dtype": "float32"}],
        "preprocessing": None,
        "programs": programs,
        "configurations": [{"name": "default", "programs": ["router", "layer"]}],
    }
