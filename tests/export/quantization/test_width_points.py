"""INT8 of several widths: each weight is there once, limits hold at every point, backends still run INT8 kernels."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from testkit.int8_kernels import optimised, precisions
from testkit.slimmable_networks import SAMPLES, TASKS, VIT_SAMPLES, networks, slimmable, slimmable_vit
from testkit.tiny_networks import Samples, taught

from mtlc.commands.quantize import text as quantize_text
from mtlc.errors import UserError
from mtlc.evaluation.criteria import Criteria
from mtlc.export.graph.weights_file import INLINE_BYTES
from mtlc.export.quantization import quantize_bundle
from mtlc.export.quantization.execution import session
from mtlc.export.quantization.width_points import points, unrolled
from mtlc.export.widths.write_widths import export_widths
from mtlc.hw.cost.count import onnx_workload
from mtlc.results.quantize import QuantizeResult
from mtlc.runtime import Session, open_bundle
from mtlc.runtime.bundle.graph_check import check_graph
from mtlc.tasks.task import Limit, TaskSpec

BACKENDS = ("onnxruntime", "openvino")


def criteria(**limits: float) -> Criteria:
    drops = {task: Limit(limits[task], relative=True) if task in limits else None for task in TASKS}
    return Criteria(TaskSpec(task, "mse", "rmse", max_drop=drop) for task, drop in drops.items())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two encoders with decoders of two widths, labelled by the widest with noise; a tight limit for depth."""
    folder = tmp_path_factory.mktemp("int8-widths")
    network = slimmable()
    export_widths(network, folder / "plain", samples=SAMPLES, count_macs=lambda model: onnx_workload(model).macs)
    calibration, validation = taught(network.widest, 24, 20), taught(network.widest, 12, 30)
    asked = criteria(depth=0.006, semseg=0.5)

    def quantise(out: Path, target: str = "x86", bundle: Path = folder / "plain", **options):
        given = {"criteria": asked, "calibration": calibration, "validation": validation, "samples": 16, **options}
        return quantize_bundle(bundle, out, target=target, **given)

    report = quantise(folder / "int8")
    return SimpleNamespace(
        plain=folder / "plain", int8=folder / "int8", report=report, calibration=calibration, validation=validation,
        quantise=quantise,
    )  # fmt: skip


def graphs(bundle: Path, weights: bool = True) -> dict[str, onnx.ModelProto]:
    return {file.name: onnx.load(file, load_external_data=weights) for file in sorted(bundle.glob("*.onnx"))}


def test_each_weight_is_stored_once_in_eight_bits(made):
    places: dict[tuple[str, str], int] = {}
    for model in graphs(made.plain, weights=False).values():
        for tensor in model.graph.initializer:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            if entries:
                places[entries["offset"], entries["length"]] = int(entries["length"])
    whole = sum(places.values())
    shapes = {tuple(parameter.shape) for parameter in slimmable().widest.module.parameters()}
    eighths: dict[tuple[str, str], int] = {}
    for model in graphs(made.int8, weights=False).values():
        for tensor in model.graph.initializer:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            if not entries:
                continue
            assert tuple(tensor.dims) in shapes  # of the widest network: no part of one is stored
            if tensor.data_type == TensorProto.FLOAT:  # of an operator that came back, too small to be shared in 8 bits
                assert np.prod(tensor.dims) < INLINE_BYTES
                continue
            assert tensor.data_type == TensorProto.INT8  # also for what depth got back
            eighths[entries["offset"], entries["length"]] = int(entries["length"])
    assert sum(eighths.values()) <= whole / 4
    assert (made.int8 / "weights.bin").stat().st_size < 0.3 * (made.plain / "weights.bin").stat().st_size


def test_narrow_programs_select_from_what_the_wide_ones_read(made):
    """Every 8-bit weight of a narrow encoder is the leading part of the wide one's, number by number."""
    wide, narrow = (
        next(m for name, m in graphs(made.int8).items() if f"{kind}.trunk" in name) for kind in ("full", "half")
    )
    compared = 0
    for name, numbers in weights_of(narrow).items():
        whole = weights_of(wide)[name]
        if whole.dtype == numbers.dtype == np.int8:
            np.testing.assert_array_equal(numbers, whole[tuple(map(slice, numbers.shape))])
            assert np.abs(whole.astype(int)).max() == 64
            compared += 1
    assert compared > 3
    assert any(node.op_type == "Slice" for node in narrow.graph.node)


def weights_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """By module, what convolutions read: 8-bit numbers, or the float weight."""
    made = {node.output[0]: node for node in model.graph.node}
    names = {}
    for node in model.graph.node:
        if node.op_type == "Conv":
            pair = made.get(node.input[1])
            eighths = pair is not None and pair.op_type == "DequantizeLinear"
            names[node.name.rpartition("/")[0]] = pair.input[0] if eighths else node.input[1]
    alone = onnx.ModelProto()
    alone.CopyFrom(model)
    del alone.graph.output[:]
    alone.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in dict.fromkeys(names.values()))
    feeds = {}
    for value in model.graph.input:
        kind = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        feeds[value.name] = np.zeros([1, *(d.dim_value for d in value.type.tensor_type.shape.dim[1:])], kind)
    found = dict(zip(dict.fromkeys(names.values()), session(alone, "weights", False).run(None, feeds), strict=True))
    return {module: found[name] for module, name in names.items()}


def test_backends_run_int8_kernels_in_every_program(made, tmp_path):
    """All convolutions of programs that got nothing back; the slices are gone when the program is loaded.

    The last one of a head makes the result, which is not rounded: onnxruntime computes that one in floating point.
    """
    floats = {row["program"] for row in made.report["operators"]["float"]}
    files = {p.name: p.file for p in manifest_of(made.int8).programs if p.name not in floats}
    assert any(name.startswith("half") for name in files)
    for name, file in files.items():
        model = onnx.load(made.int8 / file)
        convolutions = sum(node.op_type == "Conv" for node in model.graph.node)
        kinds = optimised(model, tmp_path / "optimised.onnx")
        results = int("head" in name)
        assert not {"Slice", "Gather", "Mul", "FusedConv"} & set(kinds), name
        assert (kinds.count("QLinearConv"), kinds.count("Conv")) == (convolutions - results, results)
        assert precisions(made.int8 / file) == ["u8"] * convolutions


def manifest_of(bundle: Path):
    with open_bundle(bundle) as opened:
        return opened.manifest


def test_graphs_are_valid_and_nodes_keep_the_path_of_their_module(made):
    modules = {*dict(slimmable().widest.module.named_modules()), "output"}
    for file, model in graphs(made.int8).items():
        onnx.checker.check_model(model, full_check=True)
        check_graph(made.int8 / file, {"weights.bin": (made.int8 / "weights.bin").stat().st_size})
        names = [node.name for node in model.graph.node if node.name]
        assert len(set(names)) == len(names)
        assert {name.rpartition("/")[0] for name in names} <= modules


def test_operators_back_in_floating_point_read_the_shared_numbers(made, tmp_path):
    """As floats, which backends compute when they load the program."""
    files = graphs(made.int8)
    programs = {program.name: program.file for program in manifest_of(made.int8).programs}
    sizes = {name: parameter.numel() for name, parameter in slimmable().widest.module.named_parameters()}
    rows = [
        row
        for row in made.report["operators"]["float"]
        if row["kind"] == "Conv" and sizes[f"{row['operator'].rpartition('/')[0]}.weight"] >= INLINE_BYTES
    ]
    assert rows  # smaller weights are not shared in 8 bits
    for row in rows:
        model = files[programs[row["program"]]]
        assert quantised(model)
        module = row["operator"].rpartition("/")[0]
        assert any(node.op_type == "Cast" and node.name.startswith(f"{module}/") for node in model.graph.node)
        assert weights_of(model)[module].dtype == np.float32
        assert not {"Cast", "Mul", "Slice"} & set(optimised(model, tmp_path / "optimised.onnx"))
        assert "f32" in precisions(made.int8 / programs[row["program"]])


def test_every_point_keeps_its_limit_against_itself(made):
    tasks = made.report["tasks"]
    names = {point.name: point for point in points(manifest_of(made.int8).widths)}
    assert set(tasks) == set(names)
    assert len(names) == 2 * 2 * 2
    for name, point in names.items():
        control = tasks[name]["control"]
        assert control["within"]
        assert control["bound"] == pytest.approx((1.006 if point.task == "depth" else 1.5) * control["float"])
    operators = made.report["operators"]["float"]
    assert {names[row["task"]].task for row in operators} == {"depth"}
    assert any(tasks[row["task"]]["control"]["int8_all"] > tasks[row["task"]]["control"]["bound"] for row in operators)


def test_the_manifest_has_the_metrics_of_what_it_runs(made, tmp_path):
    """Measured again through the runtime, for every encoder with every width, on the control samples."""
    widths = manifest_of(made.int8).widths
    before = points(manifest_of(made.plain).widths)
    assert {point.decoder.metric for point in before} == {1.5, 2.0}
    assert widths.reference == {task: widths.encoders[0].decoders[task][-1].metric for task in TASKS}
    images = made.calibration.tensors["image"].numpy()
    every = shutil.copytree(made.int8, tmp_path / "every")
    text = json.loads((every / "manifest.json").read_text())
    for encoder in widths.encoders:
        for place, width in enumerate((0.5, 1.0)):
            programs = [*encoder.programs, *(n for row in encoder.decoders.values() for n in row[place].programs)]
            text["configurations"].append(
                {"name": f"{encoder.name}-{width}", "programs": programs, "encoder": encoder.name,
                 "decoders": dict.fromkeys(TASKS, width)}
            )  # fmt: skip
    (every / "manifest.json").write_text(json.dumps(text))
    with Session(every, threads=1) as opened:
        for name in opened.configurations:
            configuration = opened.configure(name)
            for task, output in opened.run(images).items():
                again = float(np.sqrt(np.square(output - made.calibration.tensors[task].numpy()).mean()))
                assert again == pytest.approx(configuration.metrics[task], rel=1e-4), (name, task)


def test_widths_are_chosen_by_budget_as_before(made):
    with Session(made.plain) as plain, Session(made.int8) as int8:
        for budget in ("100%", "60%", "45%"):
            chosen = int8.configure(budget=budget)
            assert chosen.macs <= float(budget.rstrip("%")) / 100 * plain.configure("default").macs
            assert chosen.metrics == {
                task: next(
                    point.metric
                    for encoder in int8.manifest.widths.encoders
                    if encoder.widths == tuple(chosen.encoder.values())
                    for point in encoder.decoders[task]
                    if point.width == chosen.decoders[task]
                )
                for task in TASKS
            }
        governor = int8.governor(target_ms=1000)
        assert governor.run(SAMPLES["image"][:1].numpy())["depth"].shape == (1, 1, 32, 32)


@pytest.mark.parametrize("backend", BACKENDS)
def test_outputs_stay_near_in_every_configuration(made, backend):
    pytest.importorskip(backend)
    images = made.validation.tensors["image"].numpy()
    with Session(made.plain, backend=backend) as plain, Session(made.int8, backend=backend) as int8:
        for name in plain.configurations:
            plain.configure(name), int8.configure(name)
            whole, found = plain.run(images), int8.run(images)
            for task, expected in whole.items():
                error = np.sqrt(np.square(found[task] - expected).mean() / np.square(expected).mean())
                assert 1e-4 < error < 0.15, (name, task)


def test_everything_given_back_is_the_float_bundle(made, tmp_path):
    report = made.quantise(tmp_path / "back", criteria=criteria(depth=0.0, semseg=0.0))
    steps = report["operators"]["float"]
    assert len(steps) > len(made.report["operators"]["float"])
    floats = {file: model for file, model in graphs(tmp_path / "back").items() if not quantised(model)}
    assert floats
    for file, model in floats.items():
        plain = onnx.load(made.plain / file)
        feeds = {
            value.name: np.ones([1, *(d.dim_value for d in value.type.tensor_type.shape.dim[1:])], np.float32)
            for value in plain.graph.input
        }
        expected = session(plain, file).run(None, feeds)
        for one, other in zip(session(model, file).run(None, feeds), expected, strict=True):
            np.testing.assert_array_equal(one, other)


def quantised(model: onnx.ModelProto) -> bool:
    return any("Quantize" in node.op_type for node in model.graph.node)


def test_the_text_for_people(made):
    report = made.report
    assert report["configurations"] == {
        "default": {"semseg": "full.semseg.1", "depth": "full.depth.1"},
        "mixed": {"semseg": "half.semseg.1", "depth": "half.depth.0.5"},
    }
    lines = quantize_text(QuantizeResult.model_validate(report)).splitlines()
    assert sum(line.startswith(("default", "mixed")) for line in lines) == 4
    kept = sum(task["validation"]["within"] for task in report["tasks"].values())
    assert f"{kept} of 8 limits kept: of each task, with each encoder and each width of its decoder" in lines


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "tensorrt"}, "target = 'tensorrt': a bundle of several widths runs in onnxruntime and OpenVINO"),
        ({"reference": True}, "keeps each limit against the same widths in floating point"),
        ({"criteria": Criteria(TaskSpec(t, "mse", "mse") for t in TASKS)}, "chosen by rmse, the job measures mse"),
        ({"bundle": True}, "is in int8 already"),
    ],
)
def test_what_cannot_be_done_is_refused_and_nothing_is_written(made, tmp_path, options, message):
    paths = {"reference": made.plain, "bundle": made.int8}
    options = {name: paths[name] if value is True else value for name, value in options.items()}
    with pytest.raises(UserError, match=message):
        made.quantise(tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_points_of_one_manifest_share_no_tensor(made):
    manifest = unrolled(manifest_of(made.plain))
    outputs = [name for program in manifest.programs for name in program.outputs]
    assert len(set(outputs)) == len(outputs) == 2 * 2 + 2 * 2 * 2
    assert {task.output for task in manifest.tasks.values()} <= set(outputs)
    known = {info.name for info in manifest.inputs}
    for program in manifest.programs:
        assert set(program.inputs) <= known
        known |= set(program.outputs)
    plain = manifest_of(made.plain)
    stray = replace(plain, programs=(*plain.programs, replace(plain.programs[0], name="stray")))
    with pytest.raises(UserError, match="the programs stray belong to no encoder"):
        unrolled(stray)


@pytest.mark.slow
def test_products_and_a_trunk_that_serves_every_task(tmp_path):
    """Heads are scattered rows of one weight, and one file computes the trunk of both tasks."""
    network = slimmable_vit()
    samples = Samples({**VIT_SAMPLES, **network.widest.outputs(VIT_SAMPLES)})
    options = {"samples": VIT_SAMPLES, "count_macs": lambda model: onnx_workload(model).macs, "experts": "masked"}
    export_widths(network, tmp_path / "plain", **options)
    report = quantize_bundle(
        tmp_path / "plain",
        tmp_path / "int8",
        criteria=criteria(),
        calibration=samples,
        validation=samples,
        target="arm",
    )
    assert set(report["tasks"]) == {"full.semseg.1", "full.depth.1", "half.semseg.1", "half.depth.1"}
    assert (
        report["tasks"]["half.depth.1"]["control"]["float"] > 10 * report["tasks"]["full.depth.1"]["control"]["float"]
    )
    ratio = (tmp_path / "int8" / "weights.bin").stat().st_size / (tmp_path / "plain" / "weights.bin").stat().st_size
    assert ratio < 0.4
    images = VIT_SAMPLES["image"]
    for file in ("full", "half"):
        (model,) = (m for name, m in graphs(tmp_path / "int8").items() if f"{file}.trunk" in name)
        assert "Gather" in {node.op_type for node in model.graph.node} or file == "full"
    text = json.loads((tmp_path / "int8" / "manifest.json").read_text())
    half = next(encoder for encoder in text["widths"]["encoders"] if encoder["name"] == "half")
    programs = [*half["programs"], *(name for row in half["decoders"].values() for name in row[0]["programs"])]
    text["configurations"].append(
        {"name": "half", "programs": programs, "encoder": "half", "decoders": dict.fromkeys(TASKS, 1.0)}
    )
    (tmp_path / "int8" / "manifest.json").write_text(json.dumps(text))
    with Session(tmp_path / "int8") as opened, torch.inference_mode():
        for name, encoder in (("default", "full"), ("half", "half")):
            opened.configure(name)
            expected = networks(network)[encoder, 1.0].outputs({"image": images})
            for task, array in opened.run(images.numpy()).items():
                error = np.square(array - expected[task].numpy()).mean() / expected[task].numpy().var()
                assert 0 < error < 0.1, (name, task)
