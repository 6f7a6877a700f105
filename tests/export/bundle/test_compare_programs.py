"""Every program is compared with onnxruntime in the backend that will run it; one that differs is not written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from testkit.hand_bundle import manifest, payloads, write
from torch import Tensor, nn
from torch.nn import functional as F

from mtlc.errors import UserError, VerificationError
from mtlc.export import export_bundle
from mtlc.export.bundle.compare_programs import ROUNDED, TOLERANCE, _Check, compare_programs
from mtlc.program.program import ModelSource, Program
from mtlc.runtime import Session
from mtlc.runtime.session import ProgramRun
from mtlc.tasks.task import TaskSpec

openvino_backend = pytest.importorskip("mtlc.runtime.backends.openvino_backend")
from mtlc.export.openvino.ir import write_ir  # noqa: E402

SHAPE = ["batch", 3, 20, 20]


def head(source: str, target: str, **options: object) -> bytes:
    """A program that makes a map of 20 x 20 smaller and large again, the first by a resize with `options`."""
    sizes = [numpy_helper.from_array(np.array([n, n], np.int64), f"n{n}") for n in (9, 20)]
    first = {"mode": "cubic", "coordinate_transformation_mode": "half_pixel", "axes": [2, 3], **options}
    nodes = [
        helper.make_node("Resize", [source, "", "", "n9"], ["small"], name="down/Resize", **first),
        helper.make_node("Resize", ["small", "", "", "n20"], [target], name="up", mode="nearest", axes=[2, 3]),
    ]
    ports = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPE)] for name in (source, target)]
    graph = helper.make_graph(nodes, target, *ports, sizes)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9).SerializeToString()


def bundle_with(folder: Path, **options: object) -> Path:
    files = payloads() | {"head-less.onnx": head("s", "less", **options)}
    return write(folder, files, manifest(files))


def test_programs_that_agree_say_by_how_much(tmp_path):
    found = compare_programs(bundle_with(tmp_path / "b"), "openvino")
    assert found["plus"] == found["square"] == 0.0
    assert 0 < found["less"] < 2e-6


def test_a_program_that_openvino_computes_otherwise_gets_no_ir(tmp_path):
    """OpenVINO's reader drops `exclude_outside`: the border of a cubic resize is 4 % off."""
    path = bundle_with(tmp_path / "b", exclude_outside=1)
    with pytest.raises(VerificationError) as caught:
        write_ir(path, tmp_path / "ir")
    assert "program 'head-less', tensor 'less': openvino differs from onnxruntime by" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ir").exists()


@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_antialias_that_openvino_ignores_is_refused_wherever_it_is_loaded(tmp_path, mode):
    path = bundle_with(tmp_path / "b", antialias=1, mode=mode)
    for run in (
        lambda: Session(path, "openvino", eager=True),
        lambda: write_ir(path, tmp_path / "ir"),
        lambda: compare_programs(path, "openvino"),
    ):
        with pytest.raises(UserError, match=r"layer 'down/Resize': OpenVINO ignores the antialias of a resize"):
            run()
    assert not (tmp_path / "ir").exists()
    with Session(path) as session:  # onnxruntime does not ignore it
        assert session.run(np.ones((1, 3, 20, 20), np.float32), "less")["less"].shape == (1, 3, 20, 20)


def test_antialias_that_changes_nothing_runs(tmp_path):
    """A linear resize to more pixels is the same with and without it."""
    files = payloads()
    sizes = numpy_helper.from_array(np.array([40, 40], np.int64), "n")
    back = numpy_helper.from_array(np.array([20, 20], np.int64), "m")
    nodes = [
        helper.make_node("Resize", ["s", "", "", "n"], ["large"], mode="linear", antialias=1, axes=[2, 3]),
        helper.make_node("Resize", ["large", "", "", "m"], ["less"], mode="nearest", axes=[2, 3]),
    ]
    ports = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPE)] for name in ("s", "less")]
    model = helper.make_model(
        helper.make_graph(nodes, "g", *ports, [sizes, back]), opset_imports=[helper.make_opsetid("", 19)], ir_version=9
    )
    files["head-less.onnx"] = model.SerializeToString()
    assert compare_programs(write(tmp_path / "b", files, manifest(files)), "openvino")["less"] < 2e-6


class Wrong:
    """A loaded program whose outputs are 1 % too large."""

    def __init__(self, loaded) -> None:
        self.loaded = loaded

    def run(self, outputs, feeds):
        return [array * np.float32(1.01) for array in self.loaded.run(outputs, feeds)]

    def close(self) -> None:
        self.loaded.close()


def wrong_in_openvino(monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    true = openvino_backend.OpenVINO.load

    def load(self, path, threads, profile):
        loaded = true(self, path, threads, profile)
        return Wrong(loaded) if Path(path).name == file else loaded

    monkeypatch.setattr(openvino_backend.OpenVINO, "load", load)


@pytest.mark.parametrize("name", ["trunk@narrow", "head-far@middle-0.5", "head-near@wide-0.25"])
def test_programs_of_every_width_are_compared(slim_bundle, tmp_path, monkeypatch, name):
    """None of these is in the configuration that a session begins with."""
    assert max(compare_programs(slim_bundle, "openvino").values()) < 1e-6
    wrong_in_openvino(monkeypatch, f"{name}.onnx")
    with pytest.raises(VerificationError, match=f"program '{name}', tensor '.*': openvino differs .* by 1.0e-02"):
        compare_programs(slim_bundle, "openvino")


def test_a_difference_is_that_of_its_program_alone(tmp_path, monkeypatch):
    """Later programs read onnxruntime's tensors: with the trunk's 1 % allowed, those behind it do not differ."""
    files = payloads()
    wrong_in_openvino(monkeypatch, "shared.onnx")
    found = compare_programs(write(tmp_path / "b", files, manifest(files)), "openvino", tolerance=0.05)
    assert found == {"plus": 0.0, "square": pytest.approx(0.01, rel=1e-3), "less": pytest.approx(0.01, rel=1e-3)}


def run_of(array: np.ndarray) -> ProgramRun:
    return ProgramRun("head-less", {}, {"less": array})


@pytest.mark.parametrize(("precision", "noise", "refused"), [
    ("int8", ROUNDED["int8"] / 2, False), ("int8", 2 * ROUNDED["int8"], True),
    ("fp16", ROUNDED["fp16"] / 2, False), ("fp16", 2 * ROUNDED["fp16"], True),
    ("fp32", TOLERANCE / 8, False), ("fp32", TOLERANCE * 2, True),
])  # fmt: skip
def test_each_precision_has_its_bound(bundle_path, precision, noise, refused):
    generator = np.random.default_rng(0)
    expected = generator.standard_normal((2, 400)).astype(np.float32)
    found = expected + noise * generator.standard_normal((2, 400)).astype(np.float32)
    check = _Check(bundle_path, "openvino", precision, TOLERANCE)
    if refused:
        with pytest.raises(VerificationError, match="differs from onnxruntime by"):
            check.difference(run_of(found), run_of(expected), "less", 2)
    else:
        assert check.difference(run_of(found), run_of(expected), "less", 2) == pytest.approx(noise, rel=0.5)


@pytest.fixture
def bundle_path(tmp_path):
    return bundle_with(tmp_path / "b")


def test_numbers_that_are_none_are_a_difference_and_shapes_too(bundle_path):
    check = _Check(bundle_path, "openvino", "fp32", TOLERANCE)
    ones = np.ones((1, 4), np.float32)
    with pytest.raises(VerificationError, match="by inf of the largest value"):
        check.difference(run_of(ones * np.nan), run_of(ones), "less", 1)
    assert check.difference(run_of(ones), run_of(ones * np.nan), "less", 1) == 0  # the reference is no number
    with pytest.raises(VerificationError, match=r"openvino gives float32 \(2, 2\), onnxruntime float32 \(1, 4\)"):
        check.difference(run_of(ones.reshape(2, 2)), run_of(ones), "less", 1)


def test_a_near_tie_of_the_routing_does_not_count(tmp_path):
    """Sample 0 is tied to one part in 100,000 and differs; sample 1 differs and is not tied."""
    k = numpy_helper.from_array(np.array([1], np.int64), "k")
    value, index = "less", "index"
    graph = helper.make_graph(
        [helper.make_node("TopK", ["s", "k"], [value, index])], "topk",
        [helper.make_tensor_value_info("s", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("less", TensorProto.FLOAT, ["batch", 1])], [k],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    files = payloads() | {"head-less.onnx": model.SerializeToString()}
    path = write(tmp_path / "b", files, manifest(files))
    scores = np.array([[0.5, 0.499995, 0.1, 0.0], [0.5, 0.4, 0.1, 0.0], [0.9, 0.4, 0.1, 0.0]], np.float32)
    run = ProgramRun("head-less", {"s": scores}, {"less": scores[:, :1]})
    check = _Check(path, "openvino", "fp32", TOLERANCE)
    flipped = scores[:, :1].copy()
    flipped[0] = -1
    assert check.difference(run_of(flipped), run, "less", 3) == 0
    flipped[1] = -1
    with pytest.raises(VerificationError, match=r"differs from onnxruntime by 1\.7e"):
        check.difference(run_of(flipped), run, "less", 3)


class Antialiased(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"depth": self.conv(F.interpolate(x, size=(5, 5), mode="bilinear", antialias=True))}


@pytest.mark.parametrize("backend", ["auto", "openvino"])
def test_an_export_is_verified_in_the_backend_that_will_run_it(tmp_path, backend):
    torch.manual_seed(0)
    program = Program(
        Antialiased().eval(), (TaskSpec("depth", "l1", "rmse"),), {"image": torch.zeros(2, 3, 12, 12)},
        ModelSource("test:Antialiased", {}),
    )  # fmt: skip
    samples = {"image": torch.randn(4, 3, 12, 12)}
    if backend == "auto":
        report = export_bundle(program, tmp_path / "b", samples=samples)
        assert report["verification"]["depth"]["3"]["max_rel"] < 1e-5
    else:
        with pytest.raises(
            VerificationError, match=r"in backend 'openvino', which \[export\] names: .* ignores the anti"
        ):
            export_bundle(program, tmp_path / "b", samples=samples, backend=backend)
        assert list(tmp_path.iterdir()) == []
