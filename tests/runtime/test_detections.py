"""Sessions decode detections, and `mtlc infer` writes them."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from testkit import tiny_detector

from mtlc.box_decoding import detect
from mtlc.cli import main
from mtlc.errors import UserError
from mtlc.runtime import Session
from mtlc.runtime.pictures import draw_boxes


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_detector.bundle(tmp_path_factory.mktemp("detector") / "bundle")


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_session_decodes_what_it_ran(bundle: Path, backend: str):
    x = tiny_detector.images(2).numpy()
    with Session(bundle, backend) as session:
        outputs = session.run(x)
        decoded = session.decode(outputs)
        how = session.tasks["detection"].postprocess
        assert how is not None
        assert outputs["detection"].shape == (2, 120, 8)  # the raw maps are what a run gives
        assert decoded["depth"] is outputs["depth"]
        np.testing.assert_array_equal(decoded["detection"], detect(outputs["detection"], how))
        assert decoded["detection"].shape == (2, 100, 6)
        assert (decoded["detection"][..., 4] >= 0).any()
        assert list(session.decode({"detection": outputs["detection"]})) == ["detection"]
        with pytest.raises(UserError, match="the bundle has no task 'detektion'; did you mean 'detection'"):
            session.decode({"detektion": outputs["detection"]})
        with pytest.raises(UserError, match=r"task 'detection': expected an output \(N, 120, 5 \+ classes\)"):
            session.decode({"detection": outputs["detection"][:, :50]})


def test_infer_writes_boxes(bundle: Path, tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (*tiny_detector.SIZE, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "in.png")
    out = tmp_path / "out"
    arguments = ["infer", str(bundle), str(tmp_path / "in.png"), "--out", str(out)]
    result = CliRunner().invoke(main, [*arguments, "--json", "--raw"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["tasks"]["detection"]
    assert sorted(path.name for path in out.iterdir()) == [
        "depth.npy", "depth.png", "detection.json", "detection.npy", "detection.png",
    ]  # fmt: skip
    written = json.loads((out / "detection.json").read_text())
    assert written == {"size": [32, 48], "detections": found["detections"]}
    with Session(bundle) as session:
        rows = session.decode(session.run(session.preprocess(pixels)))["detection"][0]
    rows = rows[rows[:, 4] >= 0]
    assert len(rows) == len(found["detections"]) > 0
    first = found["detections"][0]
    np.testing.assert_allclose(first["box"], rows[0, :4], atol=0.01)
    assert (first["label"], first["name"]) == (int(rows[0, 4]), ("cup", "pen", "key")[int(rows[0, 4])])
    assert first["score"] == pytest.approx(rows[0, 5], abs=1e-4)
    np.testing.assert_array_equal(np.asarray(Image.open(out / "detection.png")), draw_boxes(pixels, rows))
    assert np.load(out / "detection.npy").shape == (120, 8)
    result = CliRunner().invoke(main, [*arguments, "--task", "detection"])
    assert result.output.split() == [str(out / "detection.png"), str(out / "detection.json")]


def test_boxes_are_drawn_on_a_copy():
    image = np.zeros((8, 10, 3), np.uint8)
    rows = np.array([[1, 2, 5, 6, 0, 0.9], [-3, 0, 99, 8, 1, 0.8], [0, 0, 0, 0, -1, 0]], np.float32)
    shown = draw_boxes(image, rows)
    assert not image.any()
    inner = np.zeros((8, 10), bool)
    inner[2:6, 1:5] = True
    inner[3:5, 2:4] = False
    outer = np.ones((8, 10), bool)
    outer[1:7, 1:9] = False
    assert (shown.any(-1) == inner | outer).all()
    assert len(np.unique(shown[inner], axis=0)) == 1
    assert (shown[inner][0] != shown[0, 9]).any()
