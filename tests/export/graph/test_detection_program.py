"""The ONNX program that decodes detections finds what numpy finds, in every backend that is here."""

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from mtlc.box_decoding import detect
from mtlc.detection import Detection
from mtlc.errors import UserError
from mtlc.export.graph.detection_program import DETECTIONS, detection_program
from mtlc.runtime.backends.find_backend import find_backend
from mtlc.runtime.bundle.graph_check import check_graph
from mtlc.runtime.bundle.work_check import check_work

OPERATORS = {
    "Add", "Cast", "Clip", "Concat", "ConstantOfShape", "Div", "Exp", "GatherND", "Greater", "Max", "Min", "Mod", "Mul",
    "NonMaxSuppression", "Reshape", "ScatterND", "Shape", "Sigmoid", "Split", "Sub", "TopK", "Transpose", "Unsqueeze",
    "Where",
}  # fmt: skip


def declared(**changes: object) -> Detection:
    return Detection.parse({"kind": "detection", "size": [24, 40], "strides": [4, 8], **changes})


def raw(how: Detection, classes: int = 3, count: int = 3, seed: int = 0) -> np.ndarray:
    """Noise; the last picture has no box."""
    made = np.random.default_rng(seed).normal(0, 1.5, (count, how.anchors, how.box_columns + classes))
    made[-1, :, 4:] = -30
    return made.astype(np.float32)


def write(how: Detection, folder: Path, classes: int = 3, dtype: str = "float32") -> Path:
    model = detection_program(how, "raw", ("batch", how.anchors, how.box_columns + classes), dtype)
    (folder / "decode.onnx").write_bytes(model.SerializeToString())
    return folder / "decode.onnx"


def run(file: Path, output: np.ndarray, backend: str) -> np.ndarray:
    program = find_backend(backend).load(file, 1, None)
    try:
        return program.run([DETECTIONS], {"raw": output})[0]
    finally:
        program.close()


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("encoding", ["distances", "center_size"])
@pytest.mark.parametrize("objectness", [True, False])
def test_backends_find_what_numpy_finds(tmp_path: Path, backend: str, encoding: str, objectness: bool):
    how = declared(encoding=encoding, objectness=objectness, iou=0.4, most=30)
    output = raw(how)
    expected = detect(output, how)
    assert (expected[..., 4] >= 0).sum(1).tolist() == [30, 30, 0]
    found = run(write(how, tmp_path), output, backend)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    "changes",
    [
        {"score": 1e-4},
        {"score": 1.0},
        {"iou": 1e-4},
        {"iou": 1.0},
        {"most": 1},
        {"most": 4096},
        {"strides": [8, 16, 32]},
    ],
)
def test_borders_of_the_settings(tmp_path: Path, backend: str, changes: dict[str, object]):
    how = declared(**changes)
    output = raw(how, classes=1, seed=1)
    np.testing.assert_allclose(run(write(how, tmp_path, 1), output, backend), detect(output, how), atol=1e-4)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_extreme_outputs(tmp_path: Path, backend: str):
    """Sizes beyond all borders and boxes of no area, with scores from 0 on."""
    how = declared(most=20)
    output = np.zeros((1, how.anchors, 8), np.float32)
    output[0, ::2, :4], output[0, 1::2, :4] = 200, -200
    output[0, :, 4:] = np.linspace(-60, 4, how.anchors)[:, None] + np.array([0, 0.3, 0.1, 0.2])
    expected = detect(output, how)
    assert (expected[0, :, :4] == [0, 0, 40, 24]).all(1).any()
    np.testing.assert_allclose(run(write(how, tmp_path), output, backend), expected, atol=1e-4)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_equal_scores(tmp_path: Path, backend: str):
    """Their order is nobody's promise; which boxes there are is."""
    how = declared(most=400, iou=0.6)
    output = np.zeros((1, how.anchors, 8), np.float32)
    output[..., 4:] = 3
    found, expected = run(write(how, tmp_path), output, backend)[0], detect(output, how)[0]
    assert (expected[:, 4] >= 0).sum() > 100
    np.testing.assert_allclose(found[np.lexsort(found.T[:5])], expected[np.lexsort(expected.T[:5])], atol=1e-4)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10_000), st.floats(0.05, 0.9), st.floats(0.1, 0.9))
def test_any_thresholds(tmp_path_factory: pytest.TempPathFactory, seed: int, score: float, iou: float):
    how = declared(score=score, iou=iou, most=25)
    output = raw(how, seed=seed)
    found, expected = run(write(how, tmp_path_factory.mktemp("any")), output, "onnxruntime"), detect(output, how)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_float16(tmp_path: Path):
    how = declared()
    output = raw(how).astype(np.float16)
    found = run(write(how, tmp_path, dtype="float16"), output, "onnxruntime")
    np.testing.assert_allclose(found, detect(output, how), atol=1e-4)


def test_it_is_made_of_standard_operators_that_a_bundle_may_hold(tmp_path: Path):
    file = write(declared(), tmp_path)
    model = onnx.load(file)
    assert {node.op_type for node in model.graph.node} <= OPERATORS
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions
    check_graph(file, {})
    check_work(file)
    how = declared(most=10)
    # A third reading of the standard, that of the onnx package itself.
    (found,) = ReferenceEvaluator(onnx.load(write(how, tmp_path))).run(None, {"raw": raw(how)})
    np.testing.assert_allclose(found, detect(raw(how), how), atol=1e-4)


def test_the_parser_of_tensorrt_takes_it(tmp_path: Path):
    """Its builder does not: TensorRT-RTX has nothing that runs NonMaxSuppression, which classic TensorRT has."""
    try:
        import tensorrt_rtx as tensorrt
    except ImportError as error:
        if os.environ.get("CI"):
            pytest.fail(f"the decoder must be built by tensorrt_rtx: pip install tensorrt-rtx ({error})")
        pytest.skip("tensorrt_rtx is not installed: pip install tensorrt-rtx to build the decoder")
    listener = tensorrt.Logger(tensorrt.Logger.ERROR)
    network = tensorrt.Builder(listener).create_network(0)
    parser = tensorrt.OnnxParser(network, listener)
    assert parser.parse_from_file(str(write(declared(most=30), tmp_path))), parser.get_error(0).desc()
    assert network.num_outputs == 1
    assert network.get_output(0).name == DETECTIONS
    assert tuple(network.get_output(0).shape) == (-1, 30, 6)


def test_an_output_that_does_not_fit():
    with pytest.raises(UserError, match=r"expected an output \(N, 75, 5 \+ classes\)"):
        detection_program(declared(), "raw", ("batch", 70, 8), "float32")
