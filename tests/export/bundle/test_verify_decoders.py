"""A bundle whose decoder finds other boxes than the runtime is not written."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from testkit import tiny_detector
from testkit.tiny_detector import POSTPROCESS, images, program

from mtlc.errors import UserError, VerificationError
from mtlc.evaluation.criteria import Criteria
from mtlc.export import export_bundle
from mtlc.export.bundle import verify_decoders as module
from mtlc.export.bundle.publish import file_info, write_manifest
from mtlc.export.bundle.verify_decoders import verify_decoders
from mtlc.export.graph import detection_program
from mtlc.runtime.bundle.open_bundle import open_bundle
from mtlc.tasks.task import TaskSpec


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_detector.bundle(tmp_path_factory.mktemp("detector") / "bundle")


def test_the_bundle_declares_what_the_task_does(bundle: Path):
    with open_bundle(bundle) as opened:
        task = opened.manifest.tasks["detection"]
        assert task.kind == "boxes"
        assert task.shape == ("batch", 120, 8)
        assert task.classes == ("cup", "pen", "key")
        assert task.postprocess is not None
        assert task.postprocess.to_dict() | tiny_detector.POSTPROCESS == task.postprocess.to_dict()
        assert task.decoder == "decode-detection.onnx"
        assert opened.manifest.tasks["depth"].postprocess is None
        model = onnx.load(opened.file(task.decoder))
    assert [value.name for value in model.graph.input] == [task.output]
    assert [value.name for value in model.graph.output] == ["detections"]


@pytest.mark.parametrize("backend", ["auto", "openvino"])
def test_both_decoders_agree_on_boxes(bundle: Path, backend: str):
    found = verify_decoders(bundle, {"image": tiny_detector.images(4)}, backend)
    assert found.keys() == {"detection"}
    assert found["detection"] > 200


def rewritten(bundle: Path, tmp_path: Path, change: object) -> Path:
    """The bundle with another decoder, whose checksum fits."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in bundle.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    model = onnx.load(copy / "decode-detection.onnx")
    change(model)  # type: ignore[operator]
    (copy / "decode-detection.onnx").write_bytes(model.SerializeToString())
    with open_bundle(bundle) as opened:
        files = opened.manifest.files | {"decode-detection.onnx": file_info(copy / "decode-detection.onnx")}
        write_manifest(copy, replace(opened.manifest, files=files))
    return copy


def other_overlap(model: onnx.ModelProto) -> None:
    for constant in model.graph.initializer:
        if onnx.numpy_helper.to_array(constant).tolist() == [0.5]:
            constant.CopyFrom(onnx.numpy_helper.from_array(np.array([0.45], np.float32), constant.name))


def other_cells(model: onnx.ModelProto) -> None:
    for constant in model.graph.initializer:
        values = onnx.numpy_helper.to_array(constant)
        if values.shape == (120, 2):
            constant.CopyFrom(onnx.numpy_helper.from_array(values[:, ::-1].copy(), constant.name))


@pytest.mark.parametrize("change", [other_overlap, other_cells])
def test_a_decoder_that_finds_other_boxes_is_refused(bundle: Path, tmp_path: Path, change: object):
    with pytest.raises(VerificationError, match=r"task 'detection': its decoder finds \d+ boxes of class \d where"):
        verify_decoders(rewritten(bundle, tmp_path, change), {"image": tiny_detector.images(4)})


def test_nothing_is_written_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real = detection_program._boxes

    def wrong(graph: object, how: object, first: str, second: str) -> str:
        return real(graph, how, second, first)  # type: ignore[arg-type]

    monkeypatch.setattr(detection_program, "_boxes", wrong)
    with pytest.raises(VerificationError, match="task 'detection': its decoder finds"):
        tiny_detector.bundle(tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_near_tie_is_no_fault():
    how = module.Detection((8, 8), (8,), objectness=False, score=0.5)
    raw = np.zeros((1, 5), np.float32)  # a score of .5, which is the threshold
    nothing = np.array([[0, 0, 0, 0, -1, 0]], np.float32)
    one = np.array([[0, 0, 8, 8, 0, 0.5000001]], np.float32)
    assert module._compare(one, nothing, raw, how, "it") == 0
    raw[0, 4] = 1
    with pytest.raises(VerificationError, match="it finds 0 boxes of class 0 where the runtime finds 1"):
        module._compare(np.repeat(nothing, 2, 0), np.concatenate([one, nothing]), raw, how, "it")


def test_what_a_task_declares_must_fit_its_output(tmp_path: Path):
    for change, words in (
        ({"strides": [4]}, r"\[tasks.detection\] postprocess: expected an output \(N, 96, 5 \+ classes\)"),
        ({"names": ["a"]}, r"\[tasks.detection\] postprocess: postprocess.names has 1 names, but the output"),
    ):
        task = TaskSpec("detection", "simota", "map", postprocess=POSTPROCESS | change)
        with pytest.raises(UserError, match=words):
            export_bundle(program((task,)), tmp_path / "b", samples={"image": images(3)}, criteria=Criteria((task,)))
    task = TaskSpec("detection", "mse", "mse", postprocess=POSTPROCESS)
    with pytest.raises(UserError, match="the task's metric is of kind 'scalar', and not one of boxes"):
        export_bundle(program((task,)), tmp_path / "b", samples={"image": images(3)}, criteria=Criteria((task,)))
    assert not (tmp_path / "b").exists()
