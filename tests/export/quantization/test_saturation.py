"""INT8 on x86 without VNNI: full-range weights are wrong there without a word, the range of target x86 is not.

The truth is onnxruntime without optimisation, which computes between the roundings in floating point.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mtlc.export.quantization.nncf_ranges import quantize_graph
from mtlc.export.quantization.targets import TARGETS
from mtlc.runtime.backends.processor import cpu_flags, saturates

EMULATOR = shutil.which("qemu-x86_64-static") or shutil.which("qemu-x86_64")
SCRIPT = """
import json, sys
import numpy as np, onnxruntime as ort
ort.set_default_logger_severity(3)
x, found = np.load(sys.argv[1]), {}
for path in sys.argv[2:]:
    runs = []
    for level in (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL):
        options = ort.SessionOptions()
        options.graph_optimization_level, options.intra_op_num_threads = level, 1
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        runs.append(session.run(None, {"x": x})[0])
    found[path.rpartition("/")[2]] = float(np.abs(runs[1] - runs[0]).max() / np.abs(runs[0]).max())
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two convolutions whose inputs and weights are near their largest: every sum of two products leaves 16 bits."""
    folder = tmp_path_factory.mktemp("saturation")
    generator = np.random.default_rng(0)
    weights = [(0.5 + 0.5 * generator.random((16, 16, 3, 3))).astype(np.float32) for _ in range(2)]
    shape = ["batch", 16, 12, 12]
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["c0"], name="first/Conv", pads=[1] * 4),
        helper.make_node("Relu", ["c0"], ["r0"], name="first/Relu"),
        helper.make_node("Conv", ["r0", "w1"], ["c1"], name="second/Conv", pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["y"], name="second/Relu"),
    ]
    graph = helper.make_graph(
        nodes, "two", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(array, f"w{index}") for index, array in enumerate(weights)],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    images = (0.8 + 0.2 * generator.random((8, 16, 12, 12))).astype(np.float32)
    np.save(folder / "x.npy", images)
    for target in ("x86", "x86-vnni"):
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        samples = [{"x": images[index : index + 1]} for index in range(8)]
        onnx.save(quantize_graph(copy, target, samples, TARGETS[target], ()), folder / f"{target}.onnx")
    return folder


def differences(folder: Path, *command: str, **environment: str) -> dict[str, float]:
    """The largest difference between optimised and unoptimised onnxruntime, as a share of the largest output."""
    arguments = [
        *command,
        "-c",
        SCRIPT,
        str(folder / "x.npy"),
        *(str(folder / f"{t}.onnx") for t in ("x86", "x86-vnni")),
    ]
    done = subprocess.run(
        arguments, check=True, capture_output=True, text=True, timeout=250,
        env={"ORT_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", **environment},
    )  # fmt: skip
    return json.loads(done.stdout)


def check(found: dict[str, float], wrong: bool) -> None:
    assert found["x86.onnx"] < 0.01
    if wrong:
        assert found["x86-vnni.onnx"] > 0.1
    else:
        assert found["x86-vnni.onnx"] < 0.01


def test_this_processor_is_judged_rightly(files):
    """Where `saturates` says so the full range must be wrong, elsewhere right; the range of x86 is right anywhere."""
    check(differences(files, sys.executable), saturates(cpu_flags()))


@pytest.mark.slow
@pytest.mark.skipif(EMULATOR is None, reason="qemu-x86_64 is not installed: a processor without VNNI is not emulated")
def test_on_an_emulated_processor_without_vnni(files):
    packages = str(Path(np.__file__).parents[1])
    python = str(Path(sys.executable).resolve())
    check(differences(files, str(EMULATOR), "-cpu", "Haswell", python, PYTHONPATH=packages), wrong=True)


@pytest.mark.parametrize(
    ("machine", "flags", "expected"),
    [
        ("x86_64", {"avx2"}, True),
        ("x86_64", {"avx2", "avx_vnni"}, False),
        ("x86_64", {"avx512f", "avx512_vnni"}, False),
        ("x86_64", set(), False),
        ("aarch64", {"asimd"}, False),
    ],
)
def test_which_processors_saturate(machine, flags, expected):
    assert saturates(frozenset(flags), machine) is expected
