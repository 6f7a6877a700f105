"""INT8 bundles: the interface stays, limits hold, what is reported is what the graphs hold; bad samples are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from testkit import tiny_networks
from testkit.tiny_networks import Samples, taught
from torch import Tensor, nn

from mtlc.errors import Unavailable, UserError, VerificationError
from mtlc.evaluation.criteria import Criteria
from mtlc.export import export_bundle
from mtlc.export.quantization import quantize, quantize_bundle
from mtlc.export.quantization.bounds import SHARE
from mtlc.export.quantization.execution import Execution, multiplications, session
from mtlc.export.quantization.operators import MULTIPLIERS, QuantizedGraph, compute_operators, deciders
from mtlc.export.quantization.targets import TARGETS, resolve_target
from mtlc.program.program import ModelSource, Program
from mtlc.runtime import Session, open_bundle
from mtlc.runtime.backends import processor
from mtlc.runtime.backends.onnxruntime_backend import onnxruntime
from mtlc.tasks.task import Limit, TaskSpec

DEPTH = TaskSpec("depth", "mse", "mse", max_drop=Limit(0.01, relative=True))
SEMSEG = TaskSpec("semseg", "mse", "mse", max_drop=Limit(0.5, relative=True))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The zoo's network, narrow, 32 px: exported, quantised with a tight limit for depth and a wide one for semseg."""
    folder = tmp_path_factory.mktemp("quantized")
    program = tiny_networks.program("resnet", 32, (DEPTH, SEMSEG))
    calibration, validation = taught(program, 24, 20), taught(program, 12, 30)
    plain, int8 = folder / "plain", folder / "int8"
    export_bundle(program, plain, samples={"image": calibration.tensors["image"][:4]})
    report = quantize_bundle(
        plain, int8, criteria=Criteria(program.tasks), calibration=calibration, validation=validation,
        target="x86", samples=16,
    )  # fmt: skip
    return SimpleNamespace(
        program=program, plain=plain, int8=int8, report=report, calibration=calibration, validation=validation
    )


def graphs(bundle: Path) -> dict[str, onnx.ModelProto]:
    with open_bundle(bundle) as opened:
        return {p.name: onnx.load(opened.folder / p.file) for p in opened.manifest.programs}


def run(bundle: Path, images: Tensor) -> dict[str, np.ndarray]:
    with Session(bundle, threads=1) as opened:
        return opened.run(images.numpy())


def test_the_interface_stays_and_the_manifest_says_the_precision(made):
    with open_bundle(made.plain) as one, open_bundle(made.int8) as other:
        before, after = one.manifest, other.manifest
    assert (after.inputs, after.tasks, after.programs) == (before.inputs, before.tasks, before.programs)
    assert after.quantization is not None
    assert (after.quantization.precision, after.quantization.target, after.quantization.weights) == (
        "int8", "x86", "reduced",
    )  # fmt: skip
    assert before.quantization is None
    assert made.report["bytes"] < 0.7 * made.report["bytes_before"]


def test_outputs_agree_with_floating_point_at_any_batch(made):
    images = made.validation.tensors["image"]
    whole, reference = run(made.int8, images), run(made.plain, images)
    for task, expected in reference.items():
        assert whole[task].dtype == expected.dtype
        assert whole[task].shape == expected.shape
        assert np.abs(whole[task] - expected).max() < 0.1 * np.abs(expected).max()
        assert np.abs(whole[task] - expected).max() > 0
        np.testing.assert_allclose(
            run(made.int8, images[:1])[task], whole[task][:1], atol=0.02 * np.abs(expected).max()
        )


def test_limits_are_kept_for_each_task(made):
    tasks = made.report["tasks"]
    assert all(task["control"]["within"] for task in tasks.values())
    depth = tasks["depth"]["control"]
    room = SHARE * (depth["bound"] - depth["float"])
    assert depth["int8_all"] - depth["float"] > room >= depth["int8"] - depth["float"]
    assert made.report["missed"] == [task["missed"] for task in tasks.values() if task["missed"]]
    images = made.validation.tensors
    for name, output in run(made.int8, images["image"]).items():
        again = float(np.square(output - images[name].numpy()).mean())
        assert again == pytest.approx(tasks[name]["validation"]["int8"], rel=1e-4)


def test_operators_in_floating_point_are_in_the_graph_as_reported(made):
    operators, files = made.report["operators"], graphs(made.int8)
    given_back = {(row["program"], row["operator"]) for row in operators["float"]}
    assert given_back
    assert {row["task"] for row in operators["float"]} == {"depth"}
    assert sum(len(compute_operators(model)) for model in files.values()) == operators["int8"]
    for program, operator in given_back:
        model = files[program]
        assert operator not in compute_operators(model)
        node = next(node for node in model.graph.node if node.name == operator)
        stored = {tensor.name: tensor for tensor in model.graph.initializer}
        assert all(stored[name].data_type == onnx.TensorProto.FLOAT for name in node.input[1:2] if name in stored)
    heads = {row["program"] for row in operators["float"]}
    assert "head-semseg" not in heads  # nothing is given back where it cannot help depth
    steps = len(operators["float"])
    assert 2 + 2 <= made.report["cost"]["measurements"] <= 2 + 2 * (1 + steps.bit_length())


def test_every_node_has_a_name_of_its_own_that_begins_with_its_module(made):
    modules = {*dict(made.program.module.named_modules()), "output"}
    for model in graphs(made.int8).values():
        names = [node.name for node in model.graph.node]
        assert len(set(names)) == len(names)
        assert {name.rpartition("/")[0] for name in names} <= modules
        onnx.checker.check_model(model, full_check=True)


def test_the_share_of_macs_is_counted_in_the_graph(made):
    models = graphs(made.plain)
    with open_bundle(made.plain) as opened:
        execution = Execution(opened.manifest, {p.file: models[p.name] for p in opened.manifest.programs})
        values = {"image": np.zeros((1, 3, 32, 32), np.float32)}
        counts = {}
        for program in opened.manifest.programs:
            inputs = {name: values[name] for name in program.inputs}
            counts[program.name] = multiplications(execution, program.file, inputs)
            values |= execution.run(program, values)
    stem = next(value for name, value in counts["trunk"].items() if "stem" in name)
    weight = made.program.module.encoder.stem.conv.weight
    size = 32 // made.program.module.encoder.stem.conv.stride[0]
    assert stem == weight.numel() * size * size
    total = sum(sum(of.values()) for of in counts.values())
    floats = sum(counts[row["program"]].get(row["operator"], 0) for row in made.report["operators"]["float"])
    assert made.report["macs_int8"] == pytest.approx(1 - floats / total)


def test_onnxruntime_runs_int8_kernels(made, tmp_path):
    kinds = []
    for program, model in graphs(made.int8).items():
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / f"{program}.onnx")
        options.log_severity_level = 3
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        kinds += [node.op_type for node in onnx.load(tmp_path / f"{program}.onnx").graph.node]
    floats = made.report["operators"]["float"]
    convolutions = sum(isinstance(m, nn.Conv2d) for m in made.program.module.modules())
    assert kinds.count("Conv") + kinds.count("FusedConv") + kinds.count("QLinearConv") == convolutions
    # A convolution whose output nothing rounds has no INT8 kernel in onnxruntime: each task's last one, and one before
    # an operator that is given back, may be such.
    assert kinds.count("QLinearConv") >= convolutions - len(floats) - len(made.program.tasks)


def test_with_everything_given_back_the_graph_is_the_float_graph(made):
    target = TARGETS["x86"]
    for name, model in graphs(made.plain).items():
        inputs = {
            value.name: [1, *(d.dim_value for d in value.type.tensor_type.shape.dim[1:])] for value in model.graph.input
        }
        generator = np.random.default_rng(0)
        samples = [{k: generator.standard_normal(s).astype(np.float32) for k, s in inputs.items()} for _ in range(4)]
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        graph = QuantizedGraph(model, quantize.quantize_graph(copy, name, samples, target, ()))
        assert {n.name for n in model.graph.node if n.op_type in MULTIPLIERS} <= set(graph.operators)
        back = graph.restored(graph.operators)
        assert [n.op_type for n in back.graph.node] == [n.op_type for n in model.graph.node]
        expected = session(model, "float").run(None, samples[0])
        for one, other in zip(session(back, "back").run(None, samples[0]), expected, strict=True):
            np.testing.assert_array_equal(one, other)


def test_tensors_between_programs_go_over_in_eight_bits(made):
    files = graphs(made.int8)
    types = {value.name: value.type.tensor_type.elem_type for value in files["trunk"].graph.output}
    handed = set(made.report["handed_over"])
    assert handed
    assert {name for name, kind in types.items() if kind == onnx.TensorProto.UINT8} == handed
    for name, model in files.items():
        for value in model.graph.input:
            if name != "trunk":
                assert value.type.tensor_type.elem_type == types[value.name]


@pytest.mark.parametrize("target", ["x86", "arm", "tensorrt"])
def test_targets_have_the_numbers_that_they_need(made, tmp_path, target):
    loose = [replace(task, max_drop=None) for task in made.program.tasks]
    report = quantize_bundle(
        made.plain, tmp_path / target, criteria=Criteria(loose), calibration=made.calibration.first(4),
        validation=made.validation, target=target,
    )  # fmt: skip
    assert report["operators"]["float"] == []
    assert all(task["control"]["within"] is None for task in report["tasks"].values())
    weights, zeros = [], set()
    for model in graphs(tmp_path / target).values():
        stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type == "DequantizeLinear" and node.input[0] in stored:
                weights.append(stored[node.input[0]])
            if node.op_type == "QuantizeLinear":
                zeros.add((str(stored[node.input[2]].dtype), int(stored[node.input[2]]) == 0))
        if target == "tensorrt":
            kinds = {next(n.op_type for n in model.graph.node if n.name == name) for name in compute_operators(model)}
            assert kinds <= MULTIPLIERS
    largest = max(int(np.abs(array.astype(int)).max()) for array in weights)
    assert all(array.dtype == np.int8 for array in weights)
    assert largest <= 64 if target == "x86" else 126 <= largest <= 128
    if target == "tensorrt":
        assert zeros == {("int8", True)}
    else:
        assert {kind for kind, _ in zeros} == {"uint8"}


def test_confidence_gives_operators_back_that_the_metric_alone_does_not(made, tmp_path):
    """All in INT8 takes 0.74 of the limit, which the metric alone is content with; few samples make that unsure."""

    loose = replace(SEMSEG, max_drop=None)

    def quantized(name: str, limit: Limit | None) -> dict:
        return quantize_bundle(
            made.plain, tmp_path / name, criteria=Criteria([replace(DEPTH, max_drop=limit), loose]), target="x86",
            calibration=made.calibration, validation=made.validation, samples=16, control=4,
        )["tasks"]["depth"]["control"]  # fmt: skip

    free = quantized("free", None)
    assert "kept_in" not in free
    lost = free["int8_all"] - free["float"]
    alone, sure = (quantized(f"{c}", Limit(lost / 0.74, False, c)) for c in (None, 0.999))
    assert (alone["int8"], alone["within"]) == (free["int8_all"], True)
    assert sure["int8"] != sure["int8_all"] == free["int8_all"]
    assert sure["within"]
    assert sure["kept_in"] >= 0.999


@pytest.mark.slow
def test_limits_are_measured_in_the_backend_that_is_asked_for(made, tmp_path):
    pytest.importorskip("openvino")
    report = quantize_bundle(
        made.plain, tmp_path / "int8", criteria=Criteria(made.program.tasks), calibration=made.calibration,
        validation=made.validation, target="x86", samples=16, backend="openvino",
    )  # fmt: skip
    assert (made.report["backend"], report["backend"]) == ("onnxruntime", "openvino")
    images = made.validation.tensors
    with Session(tmp_path / "int8", backend="openvino", threads=1) as opened:
        found = opened.run(images["image"].numpy())
    for name, output in found.items():
        again = float(np.square(output - images[name].numpy()).mean())
        assert again == pytest.approx(report["tasks"][name]["validation"]["int8"], rel=1e-5)
        assert report["tasks"][name]["control"]["within"]
    metrics = [[task["control"]["float"] for task in one["tasks"].values()] for one in (report, made.report)]
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-4)
    assert metrics[0] != metrics[1]  # the sums of two libraries differ in the last digits


def test_a_backend_that_computes_the_float_programs_otherwise_decides_nothing(made, tmp_path, monkeypatch):
    """Measured against itself it would keep every limit."""
    pytest.importorskip("openvino")
    from mtlc.runtime.backends.openvino_backend import _Executable

    true = _Executable.run
    monkeypatch.setattr(_Executable, "run", lambda self, *args: [a * np.float32(1.001) for a in true(self, *args)])
    with pytest.raises(
        VerificationError, match=r"program 'trunk', tensor .*: openvino differs from onnxruntime by 1\.0e-03"
    ):
        quantize_bundle(
            made.plain, tmp_path / "int8", criteria=Criteria(made.program.tasks), calibration=made.calibration,
            validation=made.validation, target="x86", samples=4, backend="openvino",
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_backends_that_cannot_decide_are_refused(made, tmp_path, monkeypatch):
    def call(backend: str, target: str = "x86") -> None:
        quantize_bundle(
            made.plain, tmp_path / "out", criteria=Criteria(made.program.tasks), calibration=made.calibration,
            validation=made.validation, target=target, backend=backend,
        )  # fmt: skip

    with pytest.raises(UserError, match=r"backend = 'openvin'.*did you mean 'openvino'"):
        call("openvin")
    monkeypatch.setattr("mtlc.export.quantization.request.saturates", lambda flags: True)
    with pytest.raises(UserError, match="kernels on this processor saturate for target 'x86-vnni'"):
        call("openvino", "x86-vnni")
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    monkeypatch.delitem(__import__("sys").modules, "mtlc.runtime.backends.openvino_backend", raising=False)
    with pytest.raises(Unavailable, match=r"pip install 'mtlc\[openvino\]'"):
        call("openvino")
    assert list(tmp_path.iterdir()) == []


def test_cpu_is_this_machine(monkeypatch):
    from mtlc.export.quantization import targets

    monkeypatch.setattr(targets.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(targets, "cpu_flags", lambda: frozenset({"avx2"}))
    assert resolve_target("cpu").name == "x86"
    monkeypatch.setattr(targets, "cpu_flags", lambda: frozenset({"avx2", "avx_vnni"}))
    assert resolve_target("cpu").name == "x86-vnni"
    monkeypatch.setattr(targets.platform, "machine", lambda: "aarch64")
    assert resolve_target("cpu").name == "arm"
    with pytest.raises(UserError, match="did you mean 'tensorrt'"):
        resolve_target("tensort")


def broken(samples: Samples, change) -> Samples:
    tensors = dict(samples.tensors)
    tensors["image"] = change(tensors["image"].clone())
    return Samples(tensors)


def with_nan(images: Tensor) -> Tensor:
    images[3, 0, 0, 0] = float("nan")
    return images


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_nan, "'image' holds NaN or infinity"),
        (lambda x: x.permute(0, 2, 3, 1), "the channels are last"),
        (lambda x: x[:, :, :16], r"shape \(3, 16, 32\), the bundle takes \(3, 32, 32\)"),
        (lambda x: x.double(), "is float64, the bundle takes float32"),
    ],
)
def test_samples_that_do_not_fit_are_refused(made, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        quantize_bundle(
            made.plain, tmp_path / "out", criteria=Criteria(made.program.tasks),
            calibration=broken(made.calibration, change), validation=made.validation,
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_an_int8_bundle_is_not_quantised_again(made, tmp_path):
    with pytest.raises(UserError, match="is in int8 already"):
        quantize_bundle(
            made.int8, tmp_path / "out", criteria=Criteria(made.program.tasks), calibration=made.calibration,
            validation=made.validation,
        )  # fmt: skip


def test_without_nncf_the_extra_is_named(made, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "nncf", None)
    with pytest.raises(Unavailable, match=r"pip install 'mtlc\[compress\]'"):
        quantize_bundle(
            made.plain, tmp_path / "out", criteria=Criteria(made.program.tasks), calibration=made.calibration,
            validation=made.validation,
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_a_limit_that_floating_point_misses_is_reported_and_the_bundle_written(made, tmp_path):
    """The reference is the same network without its noise: against it, the bundle's own labels are far away."""
    better = tiny_networks.program("resnet", 32, (DEPTH, SEMSEG))
    with torch.no_grad():
        better.module.decoders["depth"].predict.bias += 0.5 * torch.std(made.calibration.tensors["depth"])
    worse = tmp_path / "worse"
    export_bundle(better, worse, samples={"image": made.calibration.tensors["image"][:4]})
    report = quantize_bundle(
        worse, tmp_path / "out", criteria=Criteria((DEPTH, SEMSEG)), calibration=made.calibration,
        validation=made.validation, target="x86", reference=made.plain,
    )  # fmt: skip
    (line,) = report["missed"]
    assert line.startswith("task 'depth': mse is ")
    assert line.endswith("no precision can meet it")
    depth = report["tasks"]["depth"]["control"]
    assert depth["within"]  # it lost no more than max_drop of what floating point had
    assert depth["bound"] == pytest.approx(1.01 * depth["float"])
    assert (tmp_path / "out" / "manifest.json").is_file()


class TwoInputs(nn.Module):
    """left, right (N, 2, 8, 8) ── a shared stem each ── their sum and difference, each with a head."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(2, 8, 3, padding=1)
        self.total, self.change = nn.Conv2d(8, 1, 1), nn.Conv2d(8, 1, 1)

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        a, b = self.left(left).relu(), self.right(right).relu()
        return {"total": self.total(a + b), "change": self.change(a - b)}


def two_inputs() -> nn.Module:
    torch.manual_seed(0)
    return TwoInputs()


class Pairs(Samples):
    def __len__(self) -> int:
        return len(self.tensors["left"])


def test_several_inputs_and_outputs(tmp_path):
    tasks = tuple(TaskSpec(name, "mse", "mse", max_drop=Limit(0.05, relative=True)) for name in ("total", "change"))
    example = {name: torch.zeros(2, 2, 8, 8) for name in ("left", "right")}
    program = Program(two_inputs().eval(), tasks, example, ModelSource(f"{__name__}:two_inputs", {}))
    generator = torch.Generator().manual_seed(1)
    tensors = {
        "left": torch.randn(20, 2, 8, 8, generator=generator),
        "right": 9 * torch.rand(20, 2, 8, 8, generator=generator),
    }
    with torch.no_grad():
        outputs = program.outputs(tensors)
    noisy = {n: o + 0.3 * o.std() * torch.randn(o.shape, generator=generator) for n, o in outputs.items()}
    pairs = Pairs({**tensors, **noisy})
    export_bundle(program, tmp_path / "plain", samples={name: tensor[:3] for name, tensor in tensors.items()})
    report = quantize_bundle(
        tmp_path / "plain", tmp_path / "pairs.mtlc", criteria=Criteria(tasks), calibration=pairs, validation=pairs,
        target="x86", archive=True,
    )  # fmt: skip
    assert report["missed"] == []
    assert report["operators"]["int8"] >= 4
    with Session(tmp_path / "pairs.mtlc") as opened:
        found = opened.run({name: tensor.numpy() for name, tensor in tensors.items()})
    for name, expected in outputs.items():
        assert np.square(found[name] - expected.numpy()).mean() < 0.02 * expected.numpy().var()


def test_routers_stay_in_floating_point(tmp_path):
    """Quantised over all tasks of the one trunk: the ranges of one task would not fit the others'."""
    tasks = tuple(replace(task, max_drop=None) for task in (DEPTH, SEMSEG))
    program = tiny_networks.moe_program(tasks)
    calibration = taught(program, 6, 20)
    images = calibration.tensors["image"]
    export_bundle(program, tmp_path / "plain", samples={"image": images[:3]}, experts="masked", tolerance=1e-3)
    report = quantize_bundle(
        tmp_path / "plain", tmp_path / "int8", criteria=Criteria(tasks), calibration=calibration,
        validation=calibration, target="x86",
    )  # fmt: skip
    excluded = [row["operator"] for row in report["operators"]["excluded"]]
    assert len(excluded) == 2
    assert all(".router/MatMul" in name for name in excluded)
    for model in graphs(tmp_path / "int8").values():
        assert not deciders(model) & set(compute_operators(model))
    assert 0.5 < report["macs_int8"] < 1
    found, expected = run(tmp_path / "int8", images), run(tmp_path / "plain", images)
    for name, output in expected.items():
        assert 1 > np.square(found[name] - output).mean() / np.square(output - output.mean()).mean() > 0


@pytest.mark.slow
def test_a_transformers_int8_is_the_same_in_both_backends(tmp_path):
    """OpenVINO loses a convolution's bias where its rounded result meets a class token: no sum there is rounded."""
    pytest.importorskip("openvino")
    tasks = tuple(replace(task, max_drop=None) for task in (DEPTH, SEMSEG))
    program = tiny_networks.moe_program(tasks)
    with torch.no_grad():
        program.module.backbone.patch_embed.bias.uniform_(-1, 1)
    calibration = taught(program, 6, 20)
    images = calibration.tensors["image"]
    export_bundle(program, tmp_path / "plain", samples={"image": images[:3]}, experts="masked", tolerance=1e-3)
    quantize_bundle(
        tmp_path / "plain", tmp_path / "int8", criteria=Criteria(tasks), calibration=calibration,
        validation=calibration, target="x86",
    )  # fmt: skip
    with Session(tmp_path / "int8", backend="openvino", threads=1) as opened:
        other = opened.run(images.numpy())
    found, expected = run(tmp_path / "int8", images), run(tmp_path / "plain", images)
    for name, output in expected.items():
        rounding = np.square(found[name] - output).mean()
        assert np.square(other[name] - output).mean() < 1.5 * rounding


def test_a_processor_that_saturates_refuses_the_full_range(made, tmp_path, monkeypatch):
    folder = tmp_path / "full"
    folder.mkdir()
    for file in made.int8.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["quantization"] = {"precision": "int8", "target": "x86-vnni", "weights": "full"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.setattr(processor.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(processor, "cpu_flags", lambda: frozenset({"avx2"}))
    Session(made.int8).close()
    with pytest.raises(Unavailable, match="quantise it with --target x86"):
        Session(folder)
    monkeypatch.setattr(processor, "cpu_flags", lambda: frozenset({"avx2", "avx_vnni"}))
    Session(folder).close()
    manifest["quantization"]["weights"] = "half"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"quantization.weights = 'half': must be one of full, reduced"):
        Session(folder)
