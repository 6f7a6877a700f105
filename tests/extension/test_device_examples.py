"""The examples for a device: a loop over a camera's frames, and a ROS 2 node behind made-up ROS packages."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from testkit.places import ROOT

from mtlc.errors import UserError
from mtlc.runtime import Session

FOLDER = ROOT / "examples/device"


@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    monkeypatch.syspath_prepend(FOLDER)
    import camera_loop
    import ros2_node

    return SimpleNamespace(loop=camera_loop, node=ros2_node)


def loop(bundle: object, frames: bytes, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The loop over `frames`, without the packages that a base install lacks."""
    code = (
        "import sys; sys.modules |= dict.fromkeys(('torch', 'onnx', 'PIL', 'cv2')); "
        f"sys.path.insert(0, {str(FOLDER)!r}); import runpy; "
        "sys.argv = ['camera_loop.py', *sys.argv[1:]]; runpy.run_module('camera_loop', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code, str(bundle), *arguments], input=frames, capture_output=True)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def test_the_loop_answers_for_the_newest_frame(bundle) -> None:
    size = Session(bundle).manifest.inputs[0].shape[-2:]
    frames = np.random.default_rng(0).integers(0, 256, (3, *size, 3), np.uint8)
    done = loop(bundle, frames.tobytes() + b"half", "--size", f"{size[1]}x{size[0]}", "--task", "plus")
    assert done.returncode == 0, done.stderr
    with Session(bundle) as session:
        mean = session.run(session.preprocess(frames[-1]), "plus")["plus"].mean()
    assert done.stdout.splitlines()[-1].endswith(f"mean {mean:.4g}")
    assert " of 3 frames, " in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--size", "64"), "--size 64: expected WIDTHxHEIGHT"),
        (("--size", "0x4"), "--size 0x4: expected sizes of 1 or more"),
        (("--size", "8x8", "--task", "u9"), "no task 'u9'"),
        (("--size", "8x8", "--target-ms", "3"), "runs at one width only"),
    ],
)
def test_the_loop_refuses_in_one_line(bundle, arguments, words) -> None:
    size = "x".join(map(str, reversed(Session(bundle).manifest.inputs[0].shape[-2:])))
    done = loop(bundle, b"", *(size if one == "8x8" else one for one in arguments))
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_slow_reader_gets_the_newest_and_the_last(examples) -> None:
    frames = np.arange(5 * 2 * 3 * 3, dtype=np.uint8).reshape(5, 2, 3, 3)
    newest = examples.loop.NewestFrame(io.BytesIO(frames.tobytes()), 2, 3)
    deadline = time.monotonic() + 10
    while newest.read < 5 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert [frame.tolist() for frame in newest] == [frames[-1].tolist()]


def test_pictures_of_a_topic(examples) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 3), np.uint8)
    padded = np.concatenate([pixels.reshape(2, 9), np.zeros((2, 3), np.uint8)], 1).tobytes()
    assert np.array_equal(examples.node.frame(padded, 2, 3, 12, "rgb8"), pixels)
    assert np.array_equal(examples.node.frame(padded, 2, 3, 12, "bgr8"), pixels[:, :, ::-1])
    for data, step, encoding in ((padded[:-4], 12, "rgb8"), (padded, 8, "rgb8"), (padded, 12, "mono8")):
        with pytest.raises(UserError):
            examples.node.frame(data, 2, 3, step, encoding)


def test_answers_for_a_topic(examples) -> None:
    depth, classes = np.random.default_rng(0).normal(size=(2, 1, 7, 2, 3)).astype(np.float32)
    encoding, array = examples.node.answer(depth[:, :1])
    assert encoding == "32FC1"
    assert np.array_equal(array, depth[0, 0])
    encoding, array = examples.node.answer(classes)
    assert encoding == "8UC1"
    assert np.array_equal(array, classes[0].argmax(0))
    for shape in ((1, 7), (2, 7, 2, 3), (1, 300, 2, 3)):
        with pytest.raises(UserError):
            examples.node.answer(np.zeros(shape, np.float32))


def test_the_node_publishes_each_task_and_outlives_a_wrong_picture(bundle, examples, monkeypatch) -> None:
    """ROS is made up: what its documentation says that a node calls, and nothing else."""
    published: dict[str, list[Any]] = {}
    said: list[str] = []
    subscribed: dict[str, Any] = {}

    class Node:
        def __init__(self, name: str) -> None:
            assert name == "mtlc"

        def declare_parameter(self, name: str, value: Any) -> SimpleNamespace:
            return SimpleNamespace(value={"bundle": str(bundle)}.get(name, value))

        def create_publisher(self, kind: type, topic: str, quality: Any) -> SimpleNamespace:
            return SimpleNamespace(publish=published.setdefault(topic, []).append)

        def create_subscription(self, kind: type, topic: str, callback: Any, quality: Any) -> None:
            subscribed[topic] = callback

        def get_logger(self) -> SimpleNamespace:
            return SimpleNamespace(error=lambda text, **_: said.append(text))

    height, width = (2 * size for size in Session(bundle).manifest.inputs[0].shape[-2:])  # not the network's
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)

    def spin(node: Any) -> None:
        message = SimpleNamespace(
            data=pixels.tobytes(), height=height, width=width, step=3 * width, encoding="rgb8", header="at noon"
        )
        subscribed["image"](SimpleNamespace(**{**vars(message), "encoding": "mono8"}))
        subscribed["image"](message)

    def module(name: str, **content: Any) -> None:
        made = ModuleType(name)
        vars(made).update(content)
        monkeypatch.setitem(sys.modules, name, made)

    module("rclpy", init=lambda: None, spin=spin, try_shutdown=lambda: None)
    module("rclpy.node", Node=Node)
    profile = SimpleNamespace(KEEP_LAST=1, BEST_EFFORT=2)
    module("rclpy.qos", HistoryPolicy=profile, ReliabilityPolicy=profile, QoSProfile=lambda **given: given)
    module("sensor_msgs")
    module("sensor_msgs.msg", Image=lambda **fields: SimpleNamespace(**fields))
    examples.node.main()
    assert said == ["encoding 'mono8': expected rgb8 or bgr8"]
    with Session(bundle) as session:
        expected = session.restore(session.run(session.preprocess(pixels)), (height, width))
    assert published.keys() == expected.keys()
    for task, (message,) in published.items():
        encoding, array = examples.node.answer(expected[task])
        assert (message.encoding, message.header, message.step) == (encoding, "at noon", array.strides[0])
        assert message.data == array.tobytes()
        assert (message.height, message.width) == (height, width)
