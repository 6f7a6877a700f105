"""The C library gives what the Python runtime gives, bit for bit, of the same programs for the same tasks."""

from __future__ import annotations

import ctypes
import itertools
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from testkit.hand_bundle import CHANNELS, DECODERS, ENCODERS, SIZE, payloads, slim_manifest, slim_payloads, write
from testkit.native_library import ENGINE, Native, NativeError, assert_equal

from mtlc.errors import UserError
from mtlc.runtime import Session


def noise(batch: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, CHANNELS, SIZE, SIZE), np.float32)


def test_every_width_of_a_bundle_and_its_choice(native: Native, slim_bundle: Path):
    x, tasks = noise(), ("near", "far")
    macs = sorted({p["macs"] for p in slim_manifest()["programs"]})
    budgets = ["1%", "20%", "33.3%", "50%", "100%", "11MMACs", "12M", "30 MMACs ", "5e7", "47000000", f"{macs[-1]}"]
    preferences: list[dict[str, float] | None] = [
        None,
        {"near": 1},
        {"far": 2.5},
        {"near": 3, "far": 1},
        {"near": 0, "far": 1},
    ]
    asked: list[tuple[str, ...]] = [(), ("near",), ("far",)]
    compared = 0
    with Session(slim_bundle, threads=1) as session, native.session(slim_bundle) as c:
        for budget, prefer, some in itertools.product(budgets, preferences, asked):
            try:
                active = session.configure(budget=budget, prefer=prefer, tasks=some or None)
            except UserError:
                with pytest.raises(NativeError) as caught:
                    c.within(budget, prefer, some)
                assert caught.value.code in ("budget", "preference")
                continue
            chosen = c.within(budget, prefer, some)
            encoder, widths, cost = c.describe(chosen, tasks)
            assert (ENCODERS[encoder], widths, cost) == (tuple(active.encoder.values()), active.decoders, active.macs)
            assert_equal(c.run(x, tasks, chosen), session.run(x, tasks))
            compared += 1
    assert compared > 80


@pytest.mark.parametrize(
    "budget", ["", "40", "-3M", "1.2.3M", "12Mms", "0%", "101%", "5K", "ten", "1", "25 apples", "%", "3 M M"]
)
def test_budgets_that_are_none(native: Native, slim_bundle: Path, budget: str):
    with native.session(slim_bundle) as c, pytest.raises(NativeError) as caught:
        c.within(budget)
    assert caught.value.code == "budget"


def test_random_widths_are_chosen_alike(native: Native, tmp_path: Path):
    """Sixty bundles whose metrics, costs and widths are drawn, so that ties and many ranks come up."""
    draw = np.random.default_rng(3)
    for number in range(60):
        described = slim_manifest()
        for program in described["programs"]:
            program["macs"] = int(draw.choice([1, 5, 5, 40, 1000])) * int(10 ** draw.integers(0, 7))
        for encoder, (task, _) in itertools.product(described["widths"]["encoders"], DECODERS.items()):
            for point in encoder["decoders"][task]:
                point["metric"] = float(draw.choice([0.9, 1.0, 1.1, draw.normal(1, 0.2)]))
        path = write(tmp_path / str(number), slim_payloads(), described)
        with Session(path) as session, native.session(path) as c:
            for _ in range(10):
                budget = f"{draw.uniform(1, 100):.3f}%"
                prefer = {"near": float(draw.choice([0, 1, 1, draw.uniform()])), "far": 1.0}
                try:
                    active = session.configure(budget=budget, prefer=prefer)
                except UserError:
                    with pytest.raises(NativeError):
                        c.within(budget, prefer)
                    continue
                encoder, widths, cost = c.describe(c.within(budget, prefer), ("near", "far"))
                assert (ENCODERS[encoder], widths, cost) == (
                    tuple(active.encoder.values()),
                    active.decoders,
                    active.macs,
                )
        shutil.rmtree(path)


def test_more_sets_than_can_be_looked_at_are_chosen_alike(native: Native, tmp_path: Path):
    """Nine tasks of four widths, all preferred alike: 4⁹ sets, so that only those in proportion count."""
    tasks = [f"task{i}" for i in range(9)]
    ladder, draw = (0.25, 0.5, 0.75, 1.0), np.random.default_rng(5)
    described, files = slim_manifest(), slim_payloads()
    trunk = described["programs"][0]
    point = described["programs"][2]
    programs, decoders = [{**trunk, "tasks": tasks}], {}
    for task in tasks:
        decoders[task] = []
        for width in ladder:
            name = f"{task}-{width}"
            programs.append(
                {
                    **point,
                    "name": name,
                    "outputs": [task],
                    "tasks": [task],
                    "macs": int(1e6 * width),
                    "names": {task: "near"},
                }
            )
            decoders[task].append(
                {"width": width, "programs": [name], "metric": float(1.5 - width / 2 + draw.normal(0, 0.05))}
            )
    described["tasks"] = {task: {**described["tasks"]["near"], "output": task} for task in tasks}
    described["programs"] = programs
    widest = [trunk["name"], *(f"{task}-1.0" for task in tasks)]
    described["configurations"] = [
        {"name": "default", "programs": widest, "encoder": "wide", "decoders": dict.fromkeys(tasks, 1.0)}
    ]
    described["widths"] |= {
        "widths": list(ladder), "reference": dict.fromkeys(tasks, 1.0), "higher_is_better": dict.fromkeys(tasks, False),
        "encoders": [{"name": "wide", "widths": [1.0, 1.0], "programs": [trunk["name"]], "decoders": decoders}],
    }  # fmt: skip
    path = write(tmp_path / "many", files, described)
    with Session(path) as session, native.session(path) as c:
        for budget, prefer in itertools.product(
            ("90%", "95%", "99%"), (None, dict(zip(tasks, range(1, 10), strict=True)))
        ):
            active = session.configure(budget=budget, prefer=prefer)
            assert c.describe(c.within(budget, prefer), tasks)[1:] == (active.decoders, active.macs)


def tensor(name: str, kind: int, shape: list[Any]) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def typed_bundle(folder: Path) -> Path:
    """Inputs in uint8, int64 and float32, of which n gives how many rows of the picture's mean are kept."""
    kinds = {
        "image": (TensorProto.UINT8, ["batch", 4]),
        "n": (TensorProto.INT64, [1]),
        "x": (TensorProto.FLOAT, ["batch", 4]),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["f", "x"], ["sum"]),
        helper.make_node("NonZero", ["x"], ["where"]),
        helper.make_node("Add", ["n", "n"], ["twice"]),
        helper.make_node("Greater", ["x", "f"], ["above"]),
        helper.make_node("Identity", ["x"], ["same"]),
    ]
    outputs = {
        "sum": ("float32", TensorProto.FLOAT, ["batch", 4]), "where": ("int64", TensorProto.INT64, [2, "found"]),
        "twice": ("int64", TensorProto.INT64, [1]), "above": ("bool", TensorProto.BOOL, ["batch", 4]),
        "same": ("float32", TensorProto.FLOAT, ["batch", 4]),
    }  # fmt: skip
    made = helper.make_graph(
        nodes, "g", [tensor(k, *v) for k, v in kinds.items()], [tensor(k, t, s) for k, (_, t, s) in outputs.items()]
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()
    files = {"network.onnx": model}
    described = slim_manifest(files)
    del described["widths"]
    program = {
        "name": "network",
        "file": "network.onnx",
        "inputs": list(kinds),
        "outputs": list(outputs),
        "tasks": list(outputs),
    }
    task = {"kind": "unknown", "metric": "", "unit": ""}
    described |= {
        "inputs": [
            {"name": "image", "shape": ["batch", 4], "dtype": "uint8"},
            {"name": "n", "shape": [1], "dtype": "int64"},
            {"name": "x", "shape": ["batch", 4], "dtype": "float32"},
        ],
        "tasks": {k: {**task, "output": k, "shape": s, "dtype": d} for k, (d, _, s) in outputs.items()},
        "programs": [program],
        "configurations": [{"name": "default", "programs": ["network"]}],
        "preprocessing": None,
    }
    return write(folder, files, described)


def typed_inputs(batch: int, seed: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    x = draw.integers(-1, 2, (batch, 4)).astype(np.float32)
    return {"image": draw.integers(0, 256, (batch, 4)).astype(np.uint8), "n": np.array([seed]), "x": x}


def test_types_of_numbers_and_sizes_that_follow_from_the_data(native: Native, tmp_path: Path):
    path = typed_bundle(tmp_path / "typed")
    tasks = ("sum", "where", "twice", "above", "same")
    with Session(path) as session, native.session(path) as c:
        plan = c.plan(tasks)
        for seed, batch in ((1, 2), (2, 2), (3, 5), (4, 1)):
            inputs = typed_inputs(batch, seed)
            for name, array in inputs.items():
                plan.set_input(name, array)
            for _ in range(2):
                plan.run()
                assert_equal({task: plan.output(task) for task in tasks}, session.run(inputs, tasks))


def test_inputs_stay_where_they_are_and_outputs_go_where_they_are_asked(native: Native, bundle: Path):
    with Session(bundle) as session, native.session(bundle) as c:
        plan, x = c.plan(("less", "square")), noise()
        plan.set_input(None, x)
        plan.run()
        mine = np.full_like(x, np.nan)
        plan.set_output("less", mine)
        np.testing.assert_array_equal(mine, session.run(x)["less"])  # what it was
        for seed in (1, 2):
            x[:] = noise(seed=seed)
            plan.run()
            np.testing.assert_array_equal(mine, session.run(x)["less"])
            np.testing.assert_array_equal(plan.output("square"), session.run(x)["square"])
        with pytest.raises(NativeError, match="has 9600 bytes, not 4"):
            plan.set_output("less", np.zeros(1, np.float32))


def test_an_output_that_is_an_input_does_not_share_its_memory(native: Native, tmp_path: Path):
    path = typed_bundle(tmp_path / "typed")
    with native.session(path) as c:
        plan, one, other = c.plan(("same",)), typed_inputs(2, 1), typed_inputs(2, 2)
        for name, array in one.items():
            plan.set_input(name, array)
        plan.run()
        kept = one["x"].copy()
        plan.set_input("x", other["x"])
        plan.run()
        np.testing.assert_array_equal(one["x"], kept)
        np.testing.assert_array_equal(plan.output("same"), other["x"])


@pytest.mark.parametrize(
    ("change", "code", "part"),
    [
        ({"x": None}, "input", "is not set"),
        ({"x": np.zeros((3, 4), np.float32)}, "input", "'batch' has two sizes"),
        ({"x": np.zeros((2, 4), np.float64)}, "input", "is float64, the bundle takes float32"),
        ({"x": np.zeros((2, 5), np.float32)}, "input", "has a shape that the bundle does not take"),
        ({"x": np.zeros((2, 4, 1), np.float32)}, "input", "has a shape that the bundle does not take"),
        ({"x": np.zeros((0, 4), np.float32)}, "input", "has a shape that the bundle does not take"),
        ({"y": np.zeros(1, np.float32)}, "input", "has no input 'y'"),
    ],
)
def test_inputs_that_do_not_fit(native: Native, tmp_path: Path, change: dict[str, Any], code: str, part: str):
    path = typed_bundle(tmp_path / "typed")
    with native.session(path) as c:
        with pytest.raises(NativeError) as caught:
            c.run({k: v for k, v in (typed_inputs(2, 1) | change).items() if v is not None}, ("sum",))
        assert caught.value.code == code
        assert part in str(caught.value)


def test_what_is_asked_for_and_not_there(native: Native, bundle: Path):
    with native.session(bundle) as c:
        for function, code in ((lambda: c.plan(("depth",)), "task"), (lambda: c.named("small"), "configuration"),
                               (lambda: c.within("40%"), "configuration")):  # fmt: skip
            with pytest.raises(NativeError) as caught:
                function()
            assert caught.value.code == code
        plan = c.plan(("less",))
        with pytest.raises(NativeError, match="the plan has no task 'plus'"):
            plan.output("plus")
        with pytest.raises(NativeError, match="has not run"):
            plan.output("less")


def test_threads_share_a_session(native: Native, bundle: Path):
    with Session(bundle) as session, native.session(bundle) as c:
        wrong: list[str] = []

        def work(seed: int) -> None:
            for batch in range(1, 40):
                x = noise(1 + batch % 3, seed)
                found = c.run(x, ("plus", "less"))
                wrong.extend(
                    task for task, array in found.items() if not np.array_equal(array, want[seed, x.shape[0]][task])
                )

        want = {
            (seed, batch): session.run(noise(batch, seed), ("plus", "less")) for seed in range(4) for batch in (1, 2, 3)
        }
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []


def test_a_bundle_that_changes(native: Native, bundle: Path):
    x = noise()
    with native.session(bundle) as c:
        c.run(x, ("plus",))
        shutil.copy(bundle / "head-less.onnx", bundle / "copy")
        os.replace(bundle / "copy", bundle / "head-less.onnx")  # another file of the same content
        c.run(x, ("less",))
        changed = payloads()["head-less.onnx"]
        (bundle / "head-square.onnx").write_bytes(changed)
        with pytest.raises(NativeError) as caught:
            c.run(x, ("square",))
        assert caught.value.code == "file-changed"
        c.run(x, ("plus", "less"))  # what is loaded runs on


def test_a_forked_child_is_refused_and_leaves_the_parent_alone(bundle: Path, native: Native):
    """In a process of its own: a child of this one would hold pytest's threads."""
    script = f"""
import os, sys
from pathlib import Path
import numpy as np
sys.path.insert(0, {str(Path(__file__).parent.parent)!r})
from testkit.native_library import Native, NativeError
x = np.zeros((1, {CHANNELS}, {SIZE}, {SIZE}), np.float32)
with Native(Path({str(native.folder)!r})).session(Path({str(bundle)!r})) as c:
    plan = c.plan(("plus",))
    plan.set_input(None, x)
    plan.run()
    child = os.fork()
    if child == 0:
        try:
            plan.run()
        except NativeError as error:
            os._exit(7 if "forked" in str(error) else 1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    plan.run()
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_engines_that_are_none(native: Native, bundle: Path, tmp_path: Path):
    script = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent.parent)!r})
from testkit.native_library import Native, NativeError
native = Native(Path({str(native.folder)!r}))
for engine in (Path("/nowhere/libonnxruntime.so"), Path({str(native.folder / "libmtlc.so")!r})):
    try:
        with native.session(Path({str(bundle)!r}), engine=engine):
            raise SystemExit("opened")
    except NativeError as error:
        assert error.code == "engine", error
with native.session(Path({str(bundle)!r}), engine=Path({str(ENGINE)!r})) as c:
    c.plan()
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def preprocessed(native: Native, session: Any, pixels: np.ndarray, channels: int) -> np.ndarray:
    """A picture as the input of `hand_bundle` by the C library."""
    made = np.empty((1, channels, SIZE, SIZE), np.float32)
    sizes = (ctypes.c_int64(size) for size in pixels.shape)
    native.call(
        "mtlc_preprocess", session.handle, ctypes.c_void_p(pixels.ctypes.data), *sizes,
        ctypes.c_void_p(made.ctypes.data), ctypes.c_size_t(made.nbytes),
    )  # fmt: skip
    return made


@pytest.mark.parametrize(("color", "channels"), [("RGB", 3), ("BGR", 3), ("L", 1)])
@pytest.mark.parametrize("resize", ["stretch", "pad", "pad_end"])
def test_pictures_become_the_same_inputs(native: Native, make_bundle: Any, color: str, channels: int, resize: str):
    def edit(m: dict[str, Any]) -> None:
        m["preprocessing"] |= {"color": color, "resize": resize, "fill": 114}
        if color == "L":
            m["preprocessing"] |= {"mean": [7.0], "std": [3.0]}
            m["inputs"][0]["shape"] = ["batch", 1, SIZE, SIZE]

    path, draw = make_bundle(edit=edit), np.random.default_rng(1)
    with Session(path) as session, native.session(path) as c:
        for height, width in ((SIZE, SIZE), (31, 47), (7, 90), (200, 123), (1, 1), (SIZE, 41), (333, 20)):
            pixels = draw.integers(0, 256, (height, width, 3)).astype(np.uint8)
            made, want = preprocessed(native, c, pixels, channels), session.preprocess(pixels)
            if color == "L":
                # Grey is a sum of three products, which NumPy's product of matrices may round otherwise.
                np.testing.assert_allclose(made, want, rtol=1e-6, atol=1 / 3 if made.shape != pixels.shape else 1e-6)
                assert np.mean(made != want) < 0.5
            else:
                np.testing.assert_array_equal(made, want)
