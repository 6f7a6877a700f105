import itertools
import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch

from mtlc.errors import UserError, VerificationError
from mtlc.export import export_bundle, verify_bundle
from mtlc.export.bundle import write_bundle as bundle_module
from mtlc.export.graph.lower import Lowered
from mtlc.runtime import Session, open_bundle


@pytest.fixture(scope="module")
def lowered(exported) -> Lowered:
    return bundle_module.lower(exported.program)


@pytest.fixture(autouse=True)
def lowered_once(lowered, monkeypatch):
    """Lowering takes seconds, so the tests that export the tiny network again share one lowering of it."""

    def lower(program, together=False):
        model = onnx.ModelProto()
        model.CopyFrom(lowered.model)
        return replace(lowered, model=model)

    monkeypatch.setattr(bundle_module, "lower", lower)


@pytest.mark.parametrize("batch", [1, 3, 5])
def test_outputs_equal_torch(exported, batch):
    x = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(batch))
    exported.program.module.eval()
    with torch.inference_mode():
        expected = exported.program.outputs({"image": x})
    exported.program.module.train()
    with Session(exported.path) as session:
        together = session.run(x.numpy())
        for task, tensor in expected.items():
            alone = session.run(x.numpy(), task)[task]
            scale = float(tensor.abs().max())
            np.testing.assert_allclose(alone / scale, tensor.numpy() / scale, atol=1e-5)
            np.testing.assert_array_equal(alone, together[task])


def test_a_task_runs_the_trunk_and_its_head(exported):
    with Session(exported.path) as session:
        assert session.programs() == ("trunk", "head-semseg", "head-depth", "head-edge")
        assert session.programs("depth") == ("trunk", "head-depth")
        session.run(exported.samples["image"].numpy(), "depth")
        assert session.loaded == ("trunk", "head-depth")


def test_weights_are_stored_once(exported):
    """The file holds the weights that the graphs refer to, and nothing twice; what is inline is small."""
    places = set()
    for path in sorted(exported.path.glob("*.onnx")):
        model = onnx.load(path, load_external_data=False)
        for tensor in model.graph.initializer:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                entry = {e.key: e.value for e in tensor.external_data}
                offset, length = int(entry["offset"]), int(entry["length"])
                assert entry["location"] == "weights.bin"
                assert offset % (4096 if length >= 4096 else 64) == 0
                places.add((offset, length))
            else:
                assert len(tensor.raw_data) < 1024
    spans = sorted(places)
    assert all(a + n <= b for (a, n), (b, _) in itertools.pairwise(spans))
    size = (exported.path / "weights.bin").stat().st_size
    assert sum(n for _, n in spans) <= size < sum(n for _, n in spans) + 4096 * len(spans)
    assert exported.report["weights_bytes"] == size


def test_fusing_gives_one_program_and_the_same_weights(exported, tmp_path):
    report = export_bundle(exported.program, tmp_path / "fused", samples=exported.samples, fuse=True)
    assert [p["name"] for p in report["programs"]] == ["network"]
    assert report["programs"][0]["nodes"] == sum(p["nodes"] for p in exported.report["programs"])
    x = exported.samples["image"].numpy()
    with Session(tmp_path / "fused") as fused, Session(exported.path) as split:
        assert fused.programs("edge") == ("network",)
        one, two = fused.run(x), split.run(x)
        for task, array in one.items():
            np.testing.assert_allclose(array, two[task], rtol=1e-5, atol=1e-6)
            np.testing.assert_array_equal(fused.run(x, task)[task], array)


def test_an_archive_is_the_folder_in_one_file(exported, tmp_path):
    first, second = tmp_path / "a.mtlc", tmp_path / "b.mtlc"
    for path in (first, second):
        export_bundle(exported.program, path, samples=exported.samples, archive=True, provenance={"job": "tiny.toml"})
    assert first.read_bytes() == second.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mtlc", "b.mtlc"]
    with open_bundle(first) as packed, open_bundle(exported.path) as folder:
        assert packed.manifest == folder.manifest
    with Session(first) as packed, Session(exported.path) as folder:
        x = exported.samples["image"].numpy()
        np.testing.assert_array_equal(packed.run(x, "depth")["depth"], folder.run(x, "depth")["depth"])


def test_the_manifest(exported):
    manifest = json.loads((exported.path / "manifest.json").read_text())
    assert manifest["tasks"]["semseg"] == {
        "output": "semseg", "shape": ["batch", 4, 32, 32], "dtype": "float32", "kind": "unknown",
        "metric": "rmse", "unit": "",
    }  # fmt: skip
    assert manifest["inputs"] == [{"name": "image", "shape": ["batch", 3, 32, 32], "dtype": "float32"}]
    assert manifest["preprocessing"]["scale"] == 1 / 255
    assert manifest["provenance"]["factory"] == "mtlc.zoo.resnet:mtl_resnet"
    assert manifest["provenance"]["job"] == "tiny.toml"
    assert set(manifest["files"]) == {p.name for p in exported.path.iterdir()} - {"manifest.json"}


def test_what_tasks_mean_comes_from_the_criteria(exported, tmp_path):
    class Criteria:
        kinds = {"semseg": "labels", "depth": "scalar", "edge": "something new"}
        units = {"semseg": "%", "depth": "m", "edge": ""}

    export_bundle(
        exported.program,
        tmp_path / "b",
        samples=exported.samples,
        criteria=Criteria(),
        classes={"semseg": ["wall", "floor", "chair", "lamp"]},
    )
    with open_bundle(tmp_path / "b") as opened:
        tasks = opened.manifest.tasks
    assert [(t.kind, t.unit) for t in tasks.values()] == [("labels", "%"), ("scalar", "m"), ("unknown", "")]
    assert tasks["semseg"].classes == ("wall", "floor", "chair", "lamp")
    assert tasks["depth"].classes is None


def test_nodes_are_named_after_modules_and_nothing_names_this_machine(exported):
    names = []
    for path in exported.path.glob("*.onnx"):
        names += [node.name for node in onnx.load(path, load_external_data=False).graph.node]
        assert str(exported.path.parent).encode() not in path.read_bytes()
        assert b".py" not in path.read_bytes()
    assert len(set(names)) == len(names)
    modules = dict(exported.program.module.named_modules())
    assert {name.rsplit("/", 1)[0] for name in names} <= set(modules)
    convolutions = {name.rsplit("/", 1)[0] for name in names if "/Conv_" in name}
    assert convolutions == {name for name, m in modules.items() if isinstance(m, torch.nn.Conv2d)}


def test_the_program_is_left_as_it_was(exported):
    assert all(module.training for module in exported.program.module.modules())


def test_the_report(exported):
    keys = {"path", "bytes", "weights_bytes", "programs", "experts", "tolerance", "verification"}
    assert set(exported.report) == keys
    assert exported.report["experts"] == {"forms": {}, "measured_ms": {}}
    for task in ("semseg", "depth", "edge"):
        entry = exported.report["verification"][task]
        assert set(entry) == {"1", "3", "near_ties", "vacuous"}
        assert entry["near_ties"] == 0
        assert entry["vacuous"] is None
        assert 0 < entry["3"]["max_rel"] < 1e-5
    assert json.loads(json.dumps(exported.report)) == exported.report


def swapped(lowered: Lowered) -> Lowered:
    """The exporter's silent mistake: two outputs of one shape under each other's names."""
    names = {"depth": "edge", "edge": "depth"}
    for node in lowered.model.graph.node:
        node.output[:] = [names.get(name, name) for name in node.output]
    return lowered


def test_swapped_outputs_are_refused_and_nothing_is_written(exported, tmp_path, monkeypatch):
    lower = bundle_module.lower
    monkeypatch.setattr(bundle_module, "lower", lambda program, together=False: swapped(lower(program)))
    for archive in (False, True):
        with pytest.raises(VerificationError) as caught:
            export_bundle(exported.program, tmp_path / "b", samples=exported.samples, archive=archive)
        assert "task 'depth', batch 1: the bundle differs" in str(caught.value)
        assert "it is the output of task 'edge'" in str(caught.value)
        assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_the_old_bundle(exported, tmp_path, monkeypatch):
    path = tmp_path / "b"
    export_bundle(exported.program, path, samples=exported.samples)
    before = {p.name: p.read_bytes() for p in path.iterdir()}
    lower = bundle_module.lower
    monkeypatch.setattr(bundle_module, "lower", lambda program, together=False: swapped(lower(program)))
    with pytest.raises(VerificationError):
        export_bundle(exported.program, path, samples=exported.samples)
    assert {p.name: p.read_bytes() for p in path.iterdir()} == before


def test_a_tolerance_that_is_not_met(exported, tmp_path):
    with pytest.raises(VerificationError, match=r"allowed 1\.0e-12"):
        export_bundle(exported.program, tmp_path / "b", samples=exported.samples, tolerance=1e-12)


def test_a_weight_that_changed_is_found(exported):
    """verify_bundle against a program whose one weight differs."""
    other = exported.program.clone()
    with torch.no_grad():
        other.module.decoders["depth"].predict.bias += 0.01
    with pytest.raises(VerificationError, match="task 'depth'"):
        verify_bundle(exported.path, other, exported.samples)


def test_targets_that_are_not_replaced(exported, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="is a folder with other files in it"):
        export_bundle(exported.program, tmp_path / "home", samples=exported.samples)
    with pytest.raises(UserError, match="is a folder; name a file"):
        export_bundle(exported.program, tmp_path / "home", samples=exported.samples, archive=True)
    with pytest.raises(UserError, match="is a file; name a folder"):
        export_bundle(exported.program, tmp_path / "home" / "thesis.tex", samples=exported.samples)
    assert (tmp_path / "home" / "thesis.tex").read_text() == "years of work"


def test_samples_that_do_not_do(exported, tmp_path):
    with pytest.raises(UserError, match="give 3 samples or more"):
        export_bundle(exported.program, tmp_path / "b", samples={"image": exported.samples["image"][:2]})
    with pytest.raises(UserError, match="the samples have no input 'image'"):
        export_bundle(exported.program, tmp_path / "b", samples={})


def test_preprocessing_that_a_bundle_cannot_hold(exported, tmp_path):
    program = replace(exported.program, preprocessing={"scale": 1, "gamma": 2.2})
    with pytest.raises(UserError, match=r"\[data\] preprocessing.gamma is unknown"):
        export_bundle(program, tmp_path / "b", samples=exported.samples)
