import json
import os
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
from onnx import TensorProto, helper
from testkit.hand_bundle import CHANNELS, SHAPE, SIZE, W, expected, manifest, payloads, write

from mtlc.errors import BundleError, Unavailable, UserError
from mtlc.runtime import Session


def test_all_tasks_by_hand(bundle, x):
    with Session(bundle) as session:
        outputs = session.run(x)
    assert list(outputs) == ["plus", "square", "less"]
    for task, array in expected(x).items():
        np.testing.assert_allclose(outputs[task], array, rtol=1e-6)


@pytest.mark.parametrize(
    ("tasks", "programs"),
    [
        (["plus"], ("trunk", "head-plus")),
        (["less"], ("trunk", "shared", "head-less")),
        (["less", "plus"], ("trunk", "shared", "head-plus", "head-less")),
        ("square", ("trunk", "shared", "head-square")),
        ({"square"}, ("trunk", "shared", "head-square")),
        (None, ("trunk", "shared", "head-plus", "head-square", "head-less")),
    ],
)
def test_a_subset_runs_exactly_its_programs(bundle, x, tasks, programs):
    with Session(bundle, eager=True) as session:
        ran = []
        for file in session._files.values():
            file.executable = _Counted(file.executable, lambda name=file.name: ran.append(name))
        outputs = session.run(x, tasks)
        assert tuple(ran) == programs == session.programs(tasks)
        for task, array in outputs.items():
            np.testing.assert_allclose(array, expected(x)[task], rtol=1e-6)


class _Counted:
    def __init__(self, executable, count):
        self.executable, self.count = executable, count

    def run(self, outputs, feeds):
        self.count()
        return self.executable.run(outputs, feeds)

    def close(self):
        self.executable.close()


def test_programs_are_loaded_when_first_needed(bundle, x):
    with Session(bundle) as session:
        assert session.loaded == ()
        session.run(x, "plus")
        assert session.loaded == ("trunk", "head-plus")
    with Session(bundle, eager=True) as session:
        assert len(session.loaded) == 5


def test_the_order_is_the_one_asked_and_doubles_count_once(bundle, x):
    with Session(bundle) as session:
        assert list(session.run(x, ["less", "plus", "less"])) == ["less", "plus"]


def test_outputs_are_the_callers(bundle, x):
    """A result stays as it was after later runs, and writing to it does not reach the session."""
    with Session(bundle) as session:
        first = session.run(x, "square")["square"]
        kept = first.copy()
        session.run(x + 1, "square")
        np.testing.assert_array_equal(first, kept)
        first[:] = 0
        np.testing.assert_array_equal(session.run(x, "square")["square"], kept)
    first += 1


def test_arrays_need_not_be_contiguous(bundle, x):
    strided = np.repeat(x, 2, axis=-1)[..., ::2]
    assert not strided.flags.c_contiguous
    with Session(bundle) as session:
        np.testing.assert_allclose(session.run(strided, "plus")["plus"], expected(x)["plus"], rtol=1e-6)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (["pluss"], "no task 'pluss'; did you mean 'plus'"),
        (["plus", "zzz"], "no task 'zzz'; known: less, plus, square"),
        ([], "no task to run: name one or more of plus, square, less"),
        ("", "no task ''"),
    ],
)
def test_wrong_tasks(bundle, x, tasks, message):
    with Session(bundle) as session, pytest.raises(UserError) as caught:
        session.run(x, tasks)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[0], "input 'x' has shape (3, 20, 20), the bundle takes (batch, 3, 20, 20)"),
        (lambda x: x[:, :2], "input 'x' has shape (2, 2, 20, 20), the bundle takes (batch, 3, 20, 20)"),
        (lambda x: x[:0], "input 'x' has shape (0, 3, 20, 20), the bundle takes (batch, 3, 20, 20)"),
        (lambda x: x.astype(np.float64), "input 'x' is float64, the bundle takes float32: use .astype(np.float32)"),
        (lambda x: x.tolist(), "input 'x' must be a numpy array, not list"),
        (lambda x: {"y": x}, "input 'x' is missing"),
        (lambda x: {"x": x, "xx": x}, "the bundle has no input 'xx'; did you mean 'x'?"),
    ],
)
def test_wrong_inputs(bundle, x, change, message):
    with Session(bundle) as session, pytest.raises(UserError) as caught:
        session.run(change(x))
    assert str(caught.value) == message


def test_inputs_by_name(bundle, x):
    with Session(bundle) as session:
        np.testing.assert_array_equal(session.run({"x": x}, "plus")["plus"], session.run(x, "plus")["plus"])


def test_many_threads_on_one_session(bundle):
    rng = np.random.default_rng(1)
    wrong: list[str] = []
    barrier = threading.Barrier(6)
    with Session(bundle, threads=1) as session:

        def work(index: int, x: np.ndarray) -> None:
            barrier.wait()
            for turn in range(20):
                tasks = [("plus",), ("less", "square"), ("square",), None][(index + turn) % 4]
                for task, array in session.run(x, tasks).items():
                    if not np.allclose(array, expected(x)[task], rtol=1e-5, atol=1e-5):
                        wrong.append(task)

        inputs = [rng.standard_normal((1 + i % 3, *W.shape[1:]), np.float32) for i in range(6)]
        workers = [threading.Thread(target=work, args=pair) for pair in enumerate(inputs)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert wrong == []


def test_closed(bundle, x):
    session = Session(bundle)
    session.run(x)
    session.close()
    session.close()
    with pytest.raises(UserError, match="the session is closed"):
        session.run(x)
    with pytest.raises(UserError, match="the session is closed"):
        session.run(x, "plus")


def test_profile(bundle, x, tmp_path):
    with Session(bundle, profile=tmp_path / "p") as session:
        session.run(x, "plus")
        profiles = session.end_profile()
        assert session.end_profile() == {}
    assert set(profiles) == {"trunk", "head-plus"}
    assert "trunk/Mul" in profiles["trunk"].read_text()
    with Session(bundle) as session:
        session.run(x)
        assert session.end_profile() == {}


def test_preprocess_by_hand(bundle):
    """(pixel · 0.5 − mean) / std with mean 1, 2, 3 and std 1, 2, 4."""
    image = np.zeros((20, 20, 3), np.uint8)
    image[4, 7] = (10, 20, 30)
    with Session(bundle) as session:
        x = session.preprocess(image)
        assert x.shape == (1, 3, 20, 20)
        assert x.dtype == np.float32
        np.testing.assert_allclose(x[0, :, 4, 7], [4.0, 4.0, 3.0], rtol=1e-6)
        np.testing.assert_allclose(x[0, :, 0, 0], [-1.0, -1.0, -0.75], rtol=1e-6)
        session.run(x)


def test_preprocess_bgr_and_none(make_bundle):
    image = np.zeros((20, 20, 3), np.uint8)
    image[0, 0] = (10, 20, 30)
    bundle = make_bundle(edit=lambda m: m["preprocessing"].update(color="BGR", mean=0.0, std=1.0, scale=1.0))
    with Session(bundle) as session:
        np.testing.assert_array_equal(session.preprocess(image)[0, :, 0, 0], [30, 20, 10])


def test_preprocess_of_a_bundle_without_it(make_bundle):
    with (
        Session(make_bundle(edit=lambda m: m.update(preprocessing=None))) as session,
        pytest.raises(UserError, match="the bundle has no preprocessing"),
    ):
        session.preprocess(np.zeros((20, 20, 3), np.uint8))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((20, 20, 3), np.float32), "preprocess takes a uint8 array (H, W, C), not float32"),
        (np.zeros((20, 20), np.uint8), "preprocess takes a picture (H, W, 3), not (20, 20)"),
        (np.zeros((20, 20, 4), np.uint8), "preprocess takes a picture (H, W, 3), not (20, 20, 4)"),
        (np.zeros((0, 21, 3), np.uint8), "preprocess takes a picture (H, W, 3), not (0, 21, 3)"),
        ("image.png", "preprocess takes a uint8 array (H, W, C), not str"),
    ],
)
def test_wrong_pictures(bundle, image, message):
    with Session(bundle) as session, pytest.raises(UserError) as caught:
        session.preprocess(image)
    assert str(caught.value) == message


def test_backends(bundle, x):
    with pytest.raises(Unavailable, match="no backend 'onxruntime' is installed; did you mean 'onnxruntime'"):
        Session(bundle, backend="onxruntime")
    with pytest.raises(UserError, match="threads = 0: must be 1 or more"):
        Session(bundle, threads=0)
    with pytest.raises(UserError, match="batch = 0: must be a whole number, 1 or more"):
        Session(bundle, batch=0)


def test_a_batch_for_inputs_of_fixed_sizes(bundle, tmp_path):
    shutil.copytree(bundle, tmp_path / "fixed")
    manifest = json.loads((tmp_path / "fixed" / "manifest.json").read_text())
    manifest["inputs"][0]["shape"][0] = 1
    (tmp_path / "fixed" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"batch = 2: the inputs of .*fixed have fixed sizes; leave it out"):
        Session(tmp_path / "fixed", batch=2)


@pytest.mark.parametrize("backend", ["auto", "openvino"])
def test_a_batch_beside_an_input_without_dimensions(tmp_path, backend):
    if backend == "openvino":
        pytest.importorskip("openvino")
    files = payloads()
    ports = [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE), helper.make_tensor_value_info("by", 1, [])]
    product = helper.make_graph(
        [helper.make_node("Mul", ["x", "by"], ["t"])], "trunk", ports,
        [helper.make_tensor_value_info("t", TensorProto.FLOAT, SHAPE)],
    )  # fmt: skip
    model = helper.make_model(product, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    files["trunk.onnx"] = model.SerializeToString()
    described = manifest(files)
    described["inputs"].insert(0, {"name": "by", "shape": [], "dtype": "float32"})
    described["programs"][0]["inputs"] = ["x", "by"]
    path = write(tmp_path / "b", files, described)
    ones = np.ones((2, CHANNELS, SIZE, SIZE), np.float32)
    with Session(path, backend, batch=2) as session:
        assert (session.run({"x": ones, "by": np.float32(3)[...]}, "square")["square"] == 9).all()
        with pytest.raises(UserError, match="input 'x' has 1 samples, the session was opened with batch = 2"):
            session.run({"x": ones[:1], "by": np.array(3, np.float32)})
        with pytest.raises(UserError, match=r"input 'by' has shape \(1,\), the bundle takes \(\)"):
            session.run({"x": ones, "by": np.ones(1, np.float32)})


def test_openvino_gives_the_same_numbers(bundle, x):
    pytest.importorskip("openvino")
    with Session(bundle, backend="openvino", threads=1) as session:
        outputs = session.run(x)
    for task, array in expected(x).items():
        np.testing.assert_allclose(outputs[task], array, rtol=1e-5, atol=1e-6)


def test_a_read_only_bundle_is_left_alone(bundle, x):
    before = {path: path.stat().st_mtime_ns for path in bundle.iterdir()}
    for path in bundle.iterdir():
        path.chmod(0o444)
    bundle.chmod(0o555)
    try:
        with Session(bundle) as session:
            session.run(x)
        assert {path: path.stat().st_mtime_ns for path in bundle.iterdir()} == before
    finally:
        bundle.chmod(0o755)


def test_a_program_that_the_backend_refuses(make_bundle, x):
    from onnx import helper
    from testkit.hand_bundle import graph

    broken = graph("less", [helper.make_node("NoSuchOperator", ["s"], ["less"])], ["s"], ["less"], [])
    with Session(make_bundle({"head-less.onnx": broken})) as session:
        session.run(x, "plus")
        with pytest.raises(BundleError, match="onnxruntime cannot load program 'head-less'") as caught:
            session.run(x, "less")
    assert "\n" not in str(caught.value)


def test_telemetry_is_off():
    import mtlc.runtime  # noqa: F401

    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"


def test_an_arena_of_the_applications_is_used(bundle):
    """In a process of its own: the first arena counts for the whole process."""
    code = f"""
import numpy as np, onnxruntime as ort
cpu = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
ort.create_and_register_allocator(cpu, ort.OrtArenaCfg(0, -1, -1, -1))
from mtlc.runtime import Session
with Session({str(bundle)!r}) as session:
    x = np.ones({[1, CHANNELS, SIZE, SIZE]}, np.float32)
    print(float(session.run(x, "square")["square"].max()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == ("4.0", 0), done.stderr
