"""``mtlc infer``: pictures, folders, arrays and videos, on a bundle whose answers can be worked out on paper."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from testkit import tiny_detector

from mtlc.cli import main
from mtlc.errors import Unavailable, UserError
from mtlc.runtime import Session
from mtlc.workflows.drawn_outputs import beside_each_other
from mtlc.workflows.infer import InferOptions, infer

PLAIN = {"scale": 1.0, "mean": [0.0], "std": [1.0], "color": "RGB", "layout": "NCHW"}


def mtlc(*args: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def doubling(make_bundle) -> Path:
    """A bundle that takes pixels as they are: `square` is (2x)², `less` is one less."""
    return make_bundle(edit=lambda m: m.update(preprocessing=PLAIN))


def picture(path: Path, value: int = 3, size: tuple[int, int] = (30, 40)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(path)
    return path


def test_pictures_come_back_in_their_own_size(doubling, tmp_path):
    given, out = picture(tmp_path / "in.png"), tmp_path / "out"
    result = json.loads(mtlc("infer", doubling, given, "--out", out, "--raw", "--beside", "--json").stdout)
    assert {path.name for path in out.iterdir()} == {
        "plus.png", "square.png", "less.png", "plus.npy", "square.npy", "less.npy", "beside.png",
    }  # fmt: skip
    assert Image.open(out / "square.png").size == (40, 30)
    assert Image.open(out / "beside.png").size == (4 * 40 + 3 * 4, 30)
    np.testing.assert_array_equal(np.load(out / "square.npy"), np.full((3, 20, 20), 36, np.float32))
    assert result["beside"] == str(out / "beside.png")
    assert result["tasks"]["square"]["shape"] == [3, 20, 20]


def test_several_pictures_and_a_folder_have_folders_of_their_names(doubling, tmp_path):
    picture(tmp_path / "in" / "a.png"), picture(tmp_path / "in" / "a.jpg"), picture(tmp_path / "in" / "b.bmp")
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    one = picture(tmp_path / "b.png")
    out = tmp_path / "out"
    result = json.loads(mtlc("infer", doubling, tmp_path / "in", one, "--task", "less", "--out", out, "--json").stdout)
    assert {path.relative_to(out).as_posix() for path in out.rglob("*.png")} == {
        "a-png/less.png", "a-jpg/less.png", "b-bmp/less.png", "b-png/less.png",
    }  # fmt: skip
    assert [source["kind"] for source in result["sources"]] == ["picture"] * 4
    assert result["programs"] == ["trunk", "shared", "head-less"]


def test_arrays_in_and_numbers_out(doubling, tmp_path):
    x = np.random.default_rng(0).random((19, 3, 20, 20))  # float64, and more than are run at a time
    np.save(tmp_path / "x.npy", x)
    out = tmp_path / "out"
    mtlc("infer", doubling, tmp_path / "x.npy", "--task", "square", "--out", out)
    assert [path.name for path in out.iterdir()] == ["square.npy"]
    np.testing.assert_allclose(np.load(out / "square.npy"), 4 * x.astype(np.float32) ** 2, rtol=1e-5)
    np.save(tmp_path / "one.npy", x[0].astype(np.float32))
    mtlc("infer", doubling, tmp_path / "one.npy", "--task", "square", "--out", tmp_path / "single")
    assert np.load(tmp_path / "single" / "square.npy").shape == (3, 20, 20)
    np.savez(tmp_path / "named.npz", x=x[:2].astype(np.float32))
    mtlc("infer", doubling, tmp_path / "named.npz", "--task", "square", "--task", "less", "--out", tmp_path / "npz")
    with np.load(tmp_path / "npz" / "outputs.npz") as outputs:
        np.testing.assert_allclose(outputs["less"], 4 * x[:2].astype(np.float32) ** 2 - 1, rtol=1e-4, atol=1e-6)
        assert set(outputs.files) == {"square", "less"}


def test_arrays_of_bytes_are_pictures(doubling, tmp_path):
    np.save(tmp_path / "frames.npy", np.full((2, 30, 40, 3), 3, np.uint8))
    np.save(tmp_path / "frame.npy", np.full((30, 40, 3), 3, np.uint8))
    mtlc("infer", doubling, tmp_path / "frames.npy", tmp_path / "frame.npy", "--task", "less", "--out", tmp_path / "o")
    np.testing.assert_allclose(np.load(tmp_path / "o" / "frames" / "less.npy"), np.full((2, 3, 30, 40), 35), rtol=1e-6)
    np.testing.assert_allclose(np.load(tmp_path / "o" / "frame" / "less.npy"), np.full((3, 30, 40), 35), rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("none.png",), "error: none.png: no such picture"),
        (("none.npy",), "error: none.npy: no such array"),
        (("none.mp4",), "error: none.mp4: no such video"),
        (("empty",), "error: empty: no picture, array or video in this folder; known are .png"),
        (("bad.npy",), "error: bad.npy: not arrays that can be read"),
        (("objects.npy",), "error: objects.npy: not arrays that can be read (Object arrays cannot be loaded"),
        (("small.npy",), "error: small.npy: input 'x' has shape (1, 3, 4, 4), the bundle takes (batch, 3, 20, 20)"),
        (("other.npz",), "error: other.npz: the bundle has no input 'y'; known: x"),
        (("bad.png",), "error: bad.png: not a picture that can be read"),
        (("in.png", "--frames", "3"), "error: --frames, --seconds and --format are for a video or a camera"),
        (("in.png", "--task", "les"), ": no task 'les'; did you mean 'less'?"),
        (("in.png", "--task", "less", "--out", "in.png"), "in.png"),
        (
            ("less.png", "--task", "less"),
            "error: less.png: is a source, and would be written over: choose another --out",
        ),
        (("plus.npy", "--task", "plus"), "error: plus.npy: is a source, and would be written over"),
    ],
)
def test_what_cannot_be_is_one_line_and_nothing_is_written(doubling, tmp_path, monkeypatch, arguments, line):
    place = tmp_path / "place"
    (place / "empty").mkdir(parents=True)
    monkeypatch.chdir(place)
    picture(place / "in.png"), picture(place / "less.png")
    (place / "bad.png").write_bytes(b"\x89PNG no")
    (place / "bad.npy").write_bytes(b"nothing")
    np.save(place / "objects.npy", np.array([{}], object), allow_pickle=True)
    np.save(place / "small.npy", np.zeros((3, 4, 4), np.float32))
    np.save(place / "plus.npy", np.zeros((3, 20, 20), np.float32))
    np.savez(place / "other.npz", y=np.zeros((1, 3, 20, 20), np.float32), z=np.zeros(1))
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    shown = mtlc("infer", doubling, *arguments, code=2).stderr
    assert line in shown
    assert len(shown.splitlines()) == 1
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before


def test_a_bundle_that_says_not_how_takes_arrays_only(make_bundle, tmp_path):
    bundle = make_bundle(edit=lambda m: m.update(preprocessing=None))
    np.save(tmp_path / "x.npy", np.zeros((1, 3, 20, 20), np.float32))
    given = (tmp_path / "x.npy", picture(tmp_path / "in.png"))
    assert "give arrays as the network takes them" in mtlc("infer", bundle, *given, "--out", "o", code=2).stderr
    assert not Path("o").exists()


def test_boxes_are_in_pixels_of_the_picture(tmp_path):
    bundle = tiny_detector.bundle(tmp_path / "bundle")
    image = np.random.default_rng(1).integers(0, 256, (64, 96, 3), dtype=np.uint8)  # twice the input
    Image.fromarray(image).save(tmp_path / "in.png")
    found = infer(bundle, tmp_path / "in.png", ["detection"], tmp_path / "out").tasks["detection"]
    with Session(bundle) as session:
        outputs = session.run(session.preprocess(image), ["detection"])
        rows, whole = session.decode(outputs)["detection"][0], session.restore(outputs, (64, 96))["detection"][0]
    rows = rows[rows[:, 4] >= 0]
    assert len(rows) > 2
    np.testing.assert_allclose(
        [one.box for one in found.detections], np.clip(2 * rows[:, :4], 0, [96, 64] * 2), atol=0.01
    )
    np.testing.assert_allclose(whole[: len(rows), :4], np.clip(2 * rows[:, :4], 0, [96, 64] * 2), atol=1e-4)
    assert json.loads((tmp_path / "out" / "detection.json").read_text())["size"] == [64, 96]
    assert Image.open(tmp_path / "out" / "detection.png").size == (96, 64)


def test_pictures_beside_each_other_are_as_high_as_the_first():
    row = beside_each_other([np.zeros((10, 20, 3), np.uint8), np.full((5, 5, 3), 200, np.uint8)])
    assert row.shape == (10, 20 + 4 + 10, 3)
    assert (row[:, 24:] == 200).all()
    assert (row[:, 20:24] == 255).all()


class Capture:
    """What OpenCV gives of a video of five frames, each of one value."""

    def __init__(self, source: object) -> None:
        self.left = [] if source == 9 or "broken" in str(source) else [10 * number for number in range(1, 6)]

    def isOpened(self) -> bool:  # noqa: N802
        return bool(self.left)

    def get(self, what: int) -> float:
        return {5: 10.0, 7: 5.0}[what]

    def read(self) -> tuple[bool, np.ndarray | None]:
        if not self.left:
            return False, None
        frame = np.zeros((31, 40, 3), np.uint8)
        frame[..., 2] = self.left.pop(0)  # BGR: this is red
        return True, frame

    def release(self) -> None:
        pass


class Writer:
    """Keeps what is written, and leaves a file."""

    made: list[Writer]

    def __init__(self, path: str, code: int, rate: float, size: tuple[int, int]) -> None:
        self.rate, self.size, self.frames = rate, size, []
        Path(path).write_bytes(b"video")
        Writer.made.append(self)

    def isOpened(self) -> bool:  # noqa: N802
        return True

    def write(self, frame: np.ndarray) -> None:
        assert frame.shape[1::-1] == self.size
        self.frames.append(frame)

    def release(self) -> None:
        pass


@pytest.fixture
def opencv(monkeypatch):
    """A stand-in for OpenCV, of which this uses six names; the real one runs where it is installed."""
    Writer.made = []
    fake = types.SimpleNamespace(
        VideoCapture=Capture, VideoWriter=type("W", (Writer,), {}), CAP_PROP_FPS=5, CAP_PROP_FRAME_COUNT=7,
        VideoWriter_fourcc=lambda *letters: 0,
    )  # fmt: skip
    fake.VideoWriter.fourcc = fake.VideoWriter_fourcc
    monkeypatch.setitem(sys.modules, "cv2", fake)


@pytest.mark.parametrize(("options", "count"), [((), 5), (("--frames", 2), 2), (("--seconds", "0.3"), 3)])
def test_a_video_is_the_input_and_all_tasks_beside_each_other(doubling, tmp_path, opencv, options, count):
    (tmp_path / "clip.mp4").write_bytes(b"")
    out = tmp_path / "out"
    arguments = ("infer", doubling, tmp_path / "clip.mp4", "--task", "less", "--task", "square", "--out", out)
    result = json.loads(mtlc(*arguments, "--json", *options).stdout)
    (source,) = result["sources"]
    assert (source["kind"], source["frames"]) == ("video", count)
    assert source["beside"] == str(out / "clip-tasks.mp4")
    assert (out / "clip-tasks.mp4").read_bytes() == b"video"
    (writer,) = Writer.made
    assert (writer.rate, writer.size, len(writer.frames)) == (10.0, (3 * 40 + 2 * 4, 30), count)
    assert [int(frame[0, 0, 2]) for frame in writer.frames] == [10 * number for number in range(1, count + 1)]


def test_a_video_as_pictures(doubling, tmp_path, opencv):
    (tmp_path / "clip.mp4").write_bytes(b"")
    out = tmp_path / "out"
    mtlc("infer", doubling, tmp_path / "clip.mp4", "--task", "less", "--out", out, "--format", "png", "--frames", 2)
    assert sorted(path.name for path in (out / "clip-tasks").iterdir()) == ["000001.png", "000002.png"]
    assert Image.open(out / "clip-tasks" / "000002.png").getpixel((0, 0)) == (20, 0, 0)


def test_a_camera_and_what_cannot_be_opened(doubling, tmp_path, opencv, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = mtlc("infer", doubling, "0", "--task", "less", "--frames", 3).stdout
    assert shown.startswith("camera0-tasks.mp4  3 frames, ")
    with pytest.raises(Unavailable, match="camera 9: there is none of this number"):
        infer(doubling, Path("9"))
    Path("broken.mp4").write_bytes(b"")
    with pytest.raises(UserError, match=r"broken\.mp4: not a video that OpenCV can read"):
        infer(doubling, Path("broken.mp4"))
    with pytest.raises(UserError, match="--raw is for pictures"):
        infer(doubling, Path("0"), options=InferOptions(raw=True))


def test_a_video_that_is_stopped_is_whole(doubling, tmp_path, opencv, monkeypatch):
    (tmp_path / "clip.mp4").write_bytes(b"")
    read = Capture.read

    def interrupted(self):
        if len(self.left) == 2:
            raise KeyboardInterrupt
        return read(self)

    monkeypatch.setattr(Capture, "read", interrupted)
    lines: list[str] = []
    found = infer(doubling, tmp_path / "clip.mp4", ["less"], tmp_path / "out", log=lines.append)
    assert (found.sources[0].frames, lines) == (3, ["stopped after 3 frames"])
    assert (tmp_path / "out" / "clip-tasks.mp4").exists()


def test_without_opencv_a_video_says_how_to_install_it(doubling, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    (tmp_path / "clip.mp4").write_bytes(b"")
    shown = mtlc("infer", doubling, tmp_path / "clip.mp4", "--out", tmp_path / "out", code=5).stderr
    assert shown == "error: OpenCV is not installed: pip install 'mtlc[video]'\n"
    assert not (tmp_path / "out").exists()


def test_with_opencv_itself(doubling, tmp_path):
    cv2 = pytest.importorskip("cv2")
    path = str(tmp_path / "clip.mp4")
    writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"mp4v"), 10.0, (64, 48))
    for number in range(6):
        writer.write(np.full((48, 64, 3), 40 * number, np.uint8))
    writer.release()
    infer(doubling, Path(path), ["square"], tmp_path / "out")
    made = cv2.VideoCapture(str(tmp_path / "out" / "clip-tasks.mp4"))
    assert made.get(cv2.CAP_PROP_FRAME_COUNT) == 6
    assert (made.get(cv2.CAP_PROP_FRAME_WIDTH), made.get(cv2.CAP_PROP_FRAME_HEIGHT)) == (64 * 2 + 4, 48)
    read, frame = made.read()
    assert read
    assert abs(int(frame[20, 20, 0])) < 20
    (tmp_path / "no.mp4").write_bytes(b"no video at all")
    with pytest.raises(UserError, match="not a video that OpenCV can read"):
        infer(doubling, tmp_path / "no.mp4", ["square"], tmp_path / "out")
