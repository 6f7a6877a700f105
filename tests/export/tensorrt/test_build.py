"""Every reference network is parsed and built by tensorrt_rtx in all precisions, without a GPU; none is run here.

On a GPU, `tests/backends/test_backend_tensorrt.py` runs them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper
from testkit import fake_tensorrt, slimmable_networks, tiny_networks
from testkit.places import EXAMPLES
from testkit.quantised_graphs import quantise_bundle

from mtlc.cli import main
from mtlc.compress.pass_interface import Budget, Context
from mtlc.compress.passes.prune import Prune, PruneConfig
from mtlc.errors import Unavailable, UserError
from mtlc.evaluation.criteria import Criteria
from mtlc.export import export_bundle
from mtlc.export.bundle.publish import write_manifest
from mtlc.export.tensorrt.build import EngineBuilder
from mtlc.export.tensorrt.engines import build_engines
from mtlc.export.widths.write_widths import export_widths
from mtlc.hw.cost.count import onnx_workload, workload
from mtlc.job.job import load_job
from mtlc.program.program import Program
from mtlc.program.tensors_file import load_tensors
from mtlc.runtime import Session, open_bundle
from mtlc.runtime.backends import cuda_driver
from mtlc.runtime.bundle.manifest import Quantization, Sizes

BATCH = {"batch": Sizes(1, 1, 8)}


@pytest.fixture(scope="session")
def rtx() -> Any:
    """The real module. Without it skipped on a developer's machine; fails where CI is set."""
    try:
        import tensorrt_rtx
    except ImportError as error:
        if os.environ.get("CI"):
            pytest.fail(f"the networks must be built by tensorrt_rtx: pip install tensorrt-rtx ({error})")
        pytest.skip("tensorrt_rtx is not installed: pip install tensorrt-rtx to build the networks")
    return tensorrt_rtx


def shipped(job: str) -> Program:
    """The network of an example with its shipped weights."""
    loaded = load_job(EXAMPLES / job)
    example = {"image": torch.zeros(2, 3, 64, 64)}
    program = Program(loaded.source.build().eval(), loaded.tasks, example, loaded.source)
    assert loaded.weights is not None
    load_tensors(program.module, loaded.weights)
    return program


def pruned(folder: Path) -> Program:
    """The CNN's pruned form, with channels as they come."""
    program = tiny_networks.resnet_program()
    config = PruneConfig(rounds=1, round_to=1, initial_thres=50.0, finetune=None, recalibrate=0, sensitivity=())
    splits = tiny_networks.taught_splits(program, train=16, calibration=8)
    budget = Budget("macs", 0.4 * workload(program).macs)
    context = Context(splits, Criteria(program.tasks), program, folder, budget)
    return Prune(config).run(program, context).program


def _export(program: Program, path: Path, **options: Any) -> Path:
    size = program.example["image"].shape[-1]
    export_bundle(program, path, samples={"image": tiny_networks.images(3, size, 0)}, batch=[1, 1, 8], **options)
    return path


def _widths(path: Path) -> Path:
    export_widths(
        slimmable_networks.slimmable(), path, samples=slimmable_networks.SAMPLES, batch=[1, 1, 8],
        count_macs=lambda model: onnx_workload(model).macs,
    )  # fmt: skip
    return path


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The reference networks by name, each exported when it is first asked for."""
    folder = tmp_path_factory.mktemp("bundles")
    makers: dict[str, Callable[[Path], Path]] = {
        "cnn": lambda path: _export(shipped("prune.toml"), path),
        "cnn-pruned": lambda path: _export(pruned(folder), path),
        "m3vit-micro": lambda path: _export(shipped("moe_balance.toml"), path, backend="tensorrt"),
        "m3vit-queue": lambda path: _export(tiny_networks.moe_program(), path, experts="queue"),
        "slimmable": _widths,
    }

    def find(name: str) -> Path:
        return folder / name if (folder / name).exists() else makers[name](folder / name)

    return find


def inputs(bundle: Path) -> list[dict[str, np.ndarray]]:
    with open_bundle(bundle) as opened:
        height = opened.manifest.inputs[0].shape[-1]
    assert isinstance(height, int)
    return [{"image": tiny_networks.images(1, height, seed).numpy()} for seed in range(2)]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize(
    "name", [*(pytest.param(one, marks=pytest.mark.slow) for one in ("cnn", "m3vit-micro")), "cnn-pruned", "slimmable"]
)
def test_reference_networks_are_built(
    rtx: Any, bundles: Callable[[str], Path], name: str, precision: str, tmp_path: Path
) -> None:
    source = bundles(name)
    if precision == "int8":
        source = quantise_bundle(source, tmp_path / "quantised", inputs(source))
    report = build_engines(source, tmp_path / "engines", precision)
    assert report["kind"] == "built, not run"
    assert (report["module"], report["version"], report["gpu"]) == ("tensorrt_rtx", rtx.__version__, None)
    assert {"8.6", "8.9", "12.0"} <= set(report["compute_capabilities"])
    with open_bundle(tmp_path / "engines") as opened:
        manifest = opened.manifest
    assert set(manifest.engines) == {program.file for program in manifest.programs}
    for file, engine in manifest.engines.items():
        assert engine.file == f"{Path(file).stem}.{precision}.engine"
        assert (engine.precision, engine.dimensions) == (precision, BATCH)
        assert manifest.files[engine.file].bytes > 10_000
    kept = [one["operator"] for engine in report["engines"] for one in engine["in_float32"]]
    if precision != "fp16":
        assert kept == []
    elif name == "m3vit-micro":
        assert kept.count("TopK") == 3
    with Session(tmp_path / "engines") as session:  # and what runs ONNX files runs the bundle as before
        assert all(np.isfinite(array).all() for array in session.run(inputs(source)[0]).values())


def test_tensorrt_makes_the_form_of_experts_that_it_takes(bundles: Callable[[str], Path]) -> None:
    graphs = [onnx.load(file, load_external_data=False).graph for file in bundles("m3vit-micro").glob("*.onnx")]
    operators = {node.op_type for graph in graphs for node in graph.node}
    assert "NonZero" not in operators


def test_experts_in_queues_are_refused_with_their_place(
    rtx: Any, bundles: Callable[[str], Path], tmp_path: Path
) -> None:
    line = (
        r"m3vit-queue: \d\d-trunk.onnx: TensorRT does not take the operator NonZero in module "
        r"backbone.blocks.1.mlp.experts \(node .*NonZero.*\): .*experts = \"masked\"$"
    )
    with pytest.raises(UserError, match=line) as error:
        build_engines(bundles("m3vit-queue"), tmp_path / "out", "fp32")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
    assert list(tmp_path.iterdir()) == []


def test_a_dynamic_batch_without_sizes(rtx: Any, bundles: Callable[[str], Path], tmp_path: Path) -> None:
    line = r"input 'image' has a dynamic dimension 'batch', which has no profile: --batch MIN,OPT,MAX"
    with pytest.raises(UserError, match=line):
        build_engines(bundles("cnn-pruned"), tmp_path / "out", "fp32", dimensions={})


def test_a_dimension_that_is_not_the_batch(rtx: Any, tmp_path: Path) -> None:
    shape = ["batch", "height"]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "a.onnx")
    with pytest.raises(
        UserError, match=r"a: input 'x' has a dynamic dimension 'height', which has no profile: only the"
    ):
        EngineBuilder().build(tmp_path / "a.onnx", BATCH, "a")
    sizes = {**BATCH, "height": Sizes(4, 4, 4)}
    assert EngineBuilder().build(tmp_path / "a.onnx", sizes, "a").layers == 1


def test_a_file_that_is_no_graph(rtx: Any, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"^a: TensorRT cannot read it: ") as error:
        EngineBuilder().build(tmp_path / "a.onnx", BATCH, "a")
    assert "\n" not in str(error.value)


def test_precisions_that_do_not_fit_the_bundle(bundles: Callable[[str], Path], rtx: Any, tmp_path: Path) -> None:
    plain = bundles("cnn-pruned")
    with pytest.raises(UserError, match="no program has a QuantizeLinear: quantise the bundle before"):
        build_engines(plain, tmp_path / "out", "int8")
    quantised = quantise_bundle(plain, tmp_path / "quantised", inputs(plain))
    for precision in ("fp32", "fp16"):
        with pytest.raises(UserError, match="is quantised: build it with --precision int8"):
            build_engines(quantised, tmp_path / "out", precision)
    with pytest.raises(UserError, match="--precision bf16: must be one of fp32, fp16, int8"):
        build_engines(plain, tmp_path / "out", "bf16")


def test_int8_for_another_target(rtx: Any, bundles: Callable[[str], Path], tmp_path: Path) -> None:
    bundle = tmp_path / "quantised"
    shutil.copytree(bundles("cnn"), bundle)
    with open_bundle(bundle) as opened:
        manifest = replace(opened.manifest, quantization=Quantization("int8", "x86", "reduced"))
    write_manifest(bundle, manifest)
    with pytest.raises(UserError, match="is in INT8 for x86, which TensorRT does not take: mtlc quantize --target"):
        build_engines(bundle, tmp_path / "out", "int8", dimensions=BATCH)


def test_engines_are_not_put_inside_the_bundle(rtx: Any, bundles: Callable[[str], Path]) -> None:
    with pytest.raises(UserError, match=r"lies in the bundle .*: name another place"):
        build_engines(bundles("cnn"), bundles("cnn") / "engines", "fp32", dimensions=BATCH)
    assert not (bundles("cnn") / "engines").exists()


def test_a_timing_cache_means_nothing_to_tensorrt_rtx(rtx: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--timing-cache: tensorrt_rtx measures nothing when it builds: leave it out"):
        EngineBuilder(timing_cache=tmp_path / "cache")


def test_the_fake_has_no_name_that_tensorrt_lacks(rtx: Any) -> None:
    """What mtlc calls is a part of what the fake has, or its tests would fail; so the real classes have it too."""
    fake = fake_tensorrt.make_module(fake_tensorrt.Driver())
    names = fake_tensorrt.public_names(fake)
    assert len(names) > 40
    assert [(owner, name) for owner, name in names if not hasattr(getattr(rtx, owner), name)] == []
    assert hasattr(rtx, "nptype")
    for owner, name in (
        ("Runtime", "get_engine_validity"),
        ("EngineValidity", "INVALID"),
        ("ParserError", "node_operator"),
    ):
        assert hasattr(getattr(rtx, owner), name)


def test_the_real_runtime_refuses_without_a_driver(rtx: Any, bundles: Callable[[str], Path], tmp_path: Path) -> None:
    build_engines(bundles("cnn-pruned"), tmp_path / "engines", "fp32")
    engine = next((tmp_path / "engines").glob("*.engine")).read_bytes()
    try:
        cuda_driver.Cuda()
    except Unavailable:
        runtime = rtx.Runtime(rtx.Logger(rtx.Logger.INTERNAL_ERROR))
        assert runtime.get_engine_validity(engine)[0] == rtx.EngineValidity.INVALID
    else:
        pytest.skip("there is a GPU here")


def _invoke(arguments: Sequence[str]) -> Any:
    return CliRunner().invoke(main, list(arguments))


def test_the_verb(rtx: Any, bundles: Callable[[str], Path], tmp_path: Path) -> None:
    out = str(tmp_path / "engines")
    found = _invoke(["build", str(bundles("cnn-pruned")), "--out", out, "--batch", "1,2,4", "--json", "--quiet"])
    assert found.exit_code == 0, found.output
    report = json.loads(found.stdout)
    assert (report["precision"], report["dimensions"]) == ("fp16", {"batch": [1, 2, 4]})
    assert all(
        engine["bytes"] == (tmp_path / "engines" / engine["file"]).stat().st_size for engine in report["engines"]
    )
    shown = _invoke(["build", out, "--out", out, "--quiet"])  # sizes of the bundle, engines replaced
    assert "(built, not run)" in shown.stdout
    assert "00-trunk.fp16.engine" in shown.stdout
    for batch in ("1,2", "4,2,1", "0,1,2", "a,b,c", ""):
        refused = _invoke(["build", out, "--out", out, "--batch", batch])
        assert refused.exit_code == 2
        assert "must be three rising sizes, such as 1,1,8" in refused.stderr


def test_a_machine_without_tensorrt(
    bundles: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    found = _invoke(["build", str(bundles("cnn-pruned")), "--out", str(tmp_path / "out"), "--batch", "1,1,8"])
    assert found.exit_code == 5
    assert found.stderr == "error: TensorRT is not installed: pip install 'mtlc[tensorrt]'\n"
    assert not (tmp_path / "out").exists()


def test_classic_tensorrt_needs_a_gpu_to_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt.make_module(fake_tensorrt.Driver()))
    monkeypatch.setattr(cuda_driver, "LIBRARY", "libcuda-that-is-not-there.so")
    with pytest.raises(Unavailable, match=r"^no NVIDIA driver is here \(libcuda-that-is-not-there.so is missing\)"):
        EngineBuilder()


def test_building_imports_no_torch() -> None:
    code = (
        "import sys; import mtlc.export.tensorrt.engines, mtlc.export.tensorrt.fp16, mtlc.export.tensorrt.int8;"
        "print(sorted({'torch', 'pydantic'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_job_says_what_batches_are_meant(tmp_path: Path) -> None:
    text = (EXAMPLES / "prune.toml").read_text().replace("[report]", "[export]\nbatch = {batch}\n\n[report]")
    text = text.replace('"weights/', f'"{EXAMPLES}/weights/').replace('"../../data', f'"{EXAMPLES}/../../data')
    (tmp_path / "job.toml").write_text(text.replace("{batch}", "[1, 2, 8]"))
    assert load_job(tmp_path / "job.toml").file.export.batch == [1, 2, 8]
    for wrong in ("[1, 2]", "[3, 2, 8]", "[0, 1, 1]"):
        (tmp_path / "job.toml").write_text(text.replace("{batch}", wrong))
        with pytest.raises(UserError, match=r"export.*batch: must be three rising sizes"):
            load_job(tmp_path / "job.toml")
