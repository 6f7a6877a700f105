"""The TensorRT backend on a fake driver and TensorRT: buffers, graphs, refusals. On a GPU: test_tensorrt_build.py."""

from __future__ import annotations

import enum
import json
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from testkit import fake_tensorrt
from testkit.hand_bundle import CHANNELS, SIZE, expected

from mtlc.commands.doctor import text as doctor_text
from mtlc.errors import BundleError, Unavailable, UserError, VerificationError
from mtlc.export.tensorrt.engines import build_engines
from mtlc.runtime import Session, open_bundle
from mtlc.runtime.backends import cuda_driver, tensorrt_backend
from mtlc.runtime.backends.tensorrt_backend import check_fit
from mtlc.runtime.backends.tensorrt_module import find_tensorrt
from mtlc.runtime.bundle.manifest import EngineInfo, Sizes
from mtlc.workflows import doctor


@pytest.fixture
def session(engines: Path) -> Iterator[Session]:
    with Session(engines, backend="tensorrt") as session:
        yield session


def pictures(batch: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, CHANNELS, SIZE, SIZE), np.float32)


def check(session: Session, batch: int, seed: int = 0, tasks: tuple[str, ...] | None = None) -> None:
    x = pictures(batch, seed)
    for task, array in session.run(x, tasks).items():
        np.testing.assert_allclose(array, expected(x)[task], rtol=1e-6)


def test_every_batch_and_subset(session: Session) -> None:
    for seed, batch in enumerate((1, 3, 8, 3, 1, 1)):
        check(session, batch, seed)
        check(session, batch, seed, ("less",))


def test_buffers_are_allocated_once(session: Session, driver: fake_tensorrt.Driver) -> None:
    check(session, 2, tasks=("square",))
    before = dict(driver.calls)
    for seed in range(5):
        check(session, 2, seed, ("square",))
    for call in ("cuMemAlloc_v2", "cuMemAllocHost_v2", "cuStreamCreate"):
        assert driver.calls[call] == before[call] > 0


def test_the_second_run_is_recorded_and_later_ones_replay(
    session: Session, driver: fake_tensorrt.Driver, module: Any
) -> None:
    """square takes three programs: run call by call once, recorded once, launched from then on."""
    for seed in range(6):
        check(session, 2, seed, ("square",))
    assert driver.calls["cuStreamBeginCapture_v2"] == 3
    assert module.enqueued == 6
    assert driver.calls["cuGraphLaunch"] == 15
    assert len(driver.graphs) == 3  # the executable ones; the graphs that they were made of are freed


def test_shapes_have_contexts_of_their_own_and_the_oldest_goes(
    session: Session, driver: fake_tensorrt.Driver, module: Any
) -> None:
    for batch in (1, 2, 3, 4):
        check(session, batch, tasks=("square",))
    assert (module.contexts, len(driver.streams)) == (12, 12)
    check(session, 5, tasks=("square",))
    assert (module.contexts, len(driver.streams)) == (15, 12)
    check(session, 2, tasks=("square",))  # kept
    assert module.contexts == 15
    check(session, 1, tasks=("square",))  # gone
    assert module.contexts == 18


def test_what_cannot_be_recorded_runs_call_by_call(session: Session, driver: fake_tensorrt.Driver, module: Any) -> None:
    module.capturable = False
    for seed in range(4):
        check(session, 2, seed)
    assert "cuStreamBeginCapture_v2" not in driver.calls


def test_a_recording_that_fails_leaves_a_session_that_runs(session: Session, driver: fake_tensorrt.Driver) -> None:
    driver.status["cuGraphInstantiateWithFlags"] = 900
    for seed in range(4):
        check(session, 2, seed)
    assert "cuGraphLaunch" not in driver.calls


def test_an_input_in_main_memory_is_not_copied_nor_recorded(
    bundle: Path,
    tmp_path: Path,
    driver: fake_tensorrt.Driver,
    monkeypatch: pytest.MonkeyPatch,
    dimensions: dict[str, Sizes],
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt.make_module(driver, hosted=("x",)))
    build_engines(bundle, tmp_path / "engines", "fp32", dimensions=dimensions)
    driver.calls.clear()  # the engines were run when they were built
    with Session(tmp_path / "engines", backend="tensorrt") as session:
        for seed in range(3):
            check(session, 2, seed, ("square",))
    assert driver.calls["cuMemcpyHtoDAsync_v2"] == 4  # shared and head: run once, recorded once
    assert driver.calls["cuStreamBeginCapture_v2"] == 2


def test_closing_frees_everything(engines: Path, driver: fake_tensorrt.Driver) -> None:
    session = Session(engines, backend="tensorrt")
    for batch in (1, 2, 2, 2):
        check(session, batch)
    assert driver.memory
    assert driver.streams
    assert driver.graphs
    session.close()
    assert not driver.memory
    assert not driver.streams
    assert not driver.graphs
    with pytest.raises(UserError, match="the session is closed"):
        session.run(pictures(1))


def test_threads_get_their_own_answers(session: Session) -> None:
    errors = []

    def work(seed: int) -> None:
        try:
            for turn in range(8):
                check(session, 1 + (seed + turn) % 3, seed)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_an_engine_that_fails_is_one_line_and_frees_what_it_had(
    session: Session, module: Any, driver: fake_tensorrt.Driver
) -> None:
    module.failing = True
    with pytest.raises(UserError, match="program 'trunk' failed: TensorRT gives no reason"):
        session.run(pictures(1))
    assert not driver.memory
    module.failing = False
    check(session, 1)


def test_a_batch_outside_the_profile(session: Session) -> None:
    line = r"input 'x' has shape \(9, 3, 20, 20\), the engine takes \(1, 3, 20, 20\) to \(8, 3, 20, 20\)"
    with pytest.raises(UserError, match=line):
        session.run(pictures(9))
    check(session, 8)


def test_an_archive_runs_too(bundle: Path, engines: Path, tmp_path: Path, dimensions: dict[str, Sizes]) -> None:
    shutil.make_archive(str(tmp_path / "packed"), "zip", bundle)
    build_engines(tmp_path / "packed.zip", tmp_path / "engines.mtlc", "fp32", dimensions=dimensions)
    assert (tmp_path / "engines.mtlc").is_file()
    with Session(tmp_path / "engines.mtlc", backend="tensorrt") as session:
        check(session, 2)


def test_other_backends_run_the_same_bundle(engines: Path) -> None:
    with Session(engines, backend="onnxruntime") as session:
        check(session, 2)


def test_a_bundle_without_engines(module: Any, bundle: Path) -> None:
    with (
        Session(bundle, backend="tensorrt") as session,
        pytest.raises(UserError, match=r"trunk.onnx: the bundle has no engine of it: .*`mtlc build"),
    ):
        session.run(pictures(1))


def test_a_file_outside_a_bundle(module: Any, bundle: Path, tmp_path: Path) -> None:
    shutil.copy(bundle / "trunk.onnx", tmp_path)
    with pytest.raises(UserError, match="runs the engines of a bundle"):
        tensorrt_backend.TensorRT().load(tmp_path / "trunk.onnx", None, None)


def test_an_engine_that_tensorrt_does_not_load(engines: Path, module: Any) -> None:
    module.Runtime.deserialize_cuda_engine = lambda self, data: None
    with (
        Session(engines, backend="tensorrt") as session,
        pytest.raises(Unavailable, match=r"trunk.fp32.engine: cannot be loaded: TensorRT gives no reason"),
    ):
        session.run(pictures(1))


def test_an_engine_that_tensorrt_calls_invalid_is_not_loaded(engines: Path, module: Any) -> None:
    module.EngineValidity = enum.Enum("EngineValidity", ["VALID", "INVALID"])
    said = [module.EngineValidity.INVALID]
    module.Runtime.get_engine_validity = lambda self, data: (said[0], 4)
    with Session(engines, backend="tensorrt") as session:
        with pytest.raises(
            Unavailable, match=r"trunk.fp32.engine: TensorRT says that it cannot run here: TensorRT gives"
        ):
            session.run(pictures(1))
        said[0] = module.EngineValidity.VALID
        check(session, 1)


def test_no_profile_is_written(engines: Path) -> None:
    with (
        Session(engines, backend="tensorrt", profile="p") as session,
        pytest.raises(UserError, match="writes no profile"),
    ):
        session.run(pictures(1))


INFO = EngineInfo("a.engine", "fp16", "tensorrt", "11.0.1", "Orin", ("8.7",))


def test_an_engine_that_fits() -> None:
    check_fit(INFO, "11.0.1", "Orin", "8.7")
    check_fit(EngineInfo("a.engine", "fp16", "tensorrt_rtx", "1.7", None, ("8.6", "8.9")), "1.7", "any", "8.9")


@pytest.mark.parametrize(
    ("version", "gpu", "capability", "message"),
    [
        (
            "11.1.0",
            "Orin",
            "8.7",
            r"^a.engine was built by tensorrt 11.0.1, here is 11.1.0: build the engines again here",
        ),
        ("11.0.1", "Orin", "8.9", r"^a.engine is for compute capability 8.7, Orin has 8.9: "),
        ("11.0.1", "Orin Nano", "8.7", r"^a.engine was built for Orin, here is Orin Nano: "),
    ],
)
def test_an_engine_of_another_place(version: str, gpu: str, capability: str, message: str) -> None:
    with pytest.raises(Unavailable, match=message) as error:
        check_fit(INFO, version, gpu, capability)
    assert error.value.exit_code == 5
    assert "\n" not in str(error.value)


def test_an_engine_of_another_gpu_is_refused_by_the_session(engines: Path, driver: fake_tensorrt.Driver) -> None:
    driver.capability = (8, 9)
    with (
        Session(engines, backend="tensorrt") as session,
        pytest.raises(Unavailable, match=r"trunk.fp32.engine is for compute capability 8.7, Fake GPU has 8.9"),
    ):
        session.run(pictures(1))


def test_classic_engines_name_the_gpu_that_they_were_built_on(engines: Path) -> None:
    with open_bundle(engines) as opened:
        manifest = opened.manifest
    assert set(manifest.engines) == {p.file for p in manifest.programs}
    trunk = manifest.engines["trunk.onnx"]
    assert trunk == EngineInfo(
        "trunk.fp32.engine", "fp32", "tensorrt", "11.0.1", "Fake GPU", ("8.7",), {"batch": Sizes(1, 2, 8)}
    )


def test_a_timing_cache_is_kept_between_builds(
    module: Any, bundle: Path, tmp_path: Path, dimensions: dict[str, Sizes]
) -> None:
    cache = tmp_path / "timings"
    for _ in range(2):
        build_engines(
            bundle, tmp_path / "out", "fp32", dimensions=dimensions, timing_cache=cache, workspace_bytes=1 << 20
        )
    assert cache.read_bytes() == b"+" * 10  # five programs, twice
    assert module.workspace == 1 << 20
    cache.write_bytes(b"of another GPU")
    with pytest.raises(UserError, match="timings: is no timing cache of this TensorRT and GPU"):
        build_engines(bundle, tmp_path / "out", "fp32", dimensions=dimensions, timing_cache=cache)


def test_building_again_replaces_the_engines(engines: Path, tmp_path: Path) -> None:
    report = build_engines(engines, engines, "fp16")  # sizes: those that the bundle has by now
    assert report["dimensions"] == {"batch": [1, 2, 8]}
    assert sorted(file.name for file in engines.glob("*.engine")) == sorted(e["file"] for e in report["engines"])
    with Session(engines, backend="tensorrt") as session:
        x = pictures(2)
        np.testing.assert_allclose(session.run(x, "less")["less"], expected(x)["less"], atol=0.05)


def test_engines_are_compared_with_onnxruntime_where_they_can_run(
    module: Any, bundle: Path, tmp_path: Path, dimensions: dict[str, Sizes], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = build_engines(bundle, tmp_path / "good", "fp32", dimensions=dimensions)
    assert report["kind"] == "built and compared"
    assert report["from_onnxruntime"] == {"plus": 0.0, "square": 0.0, "less": 0.0}
    assert module.enqueued > 0
    true = tensorrt_backend._Executable.run

    def run(self: Any, outputs: Any, feeds: Any) -> Any:
        return [array * np.float32(1.01) for array in true(self, outputs, feeds)]

    monkeypatch.setattr(tensorrt_backend._Executable, "run", run)
    with pytest.raises(VerificationError, match=r"program 'trunk', tensor 't': tensorrt differs .* by 1\.0e-02"):
        build_engines(bundle, tmp_path / "wrong", "fp32", dimensions=dimensions)
    assert not (tmp_path / "wrong").exists()


def test_no_tensorrt(monkeypatch: pytest.MonkeyPatch, bundle: Path) -> None:
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(Unavailable, match=r"^TensorRT is not installed: pip install 'mtlc\[tensorrt\]'$") as error:
        Session(bundle, backend="tensorrt")
    assert error.value.exit_code == 5
    with pytest.raises(Unavailable, match="tensorrt is not installed: NVIDIA brings it to Jetsons"):
        find_tensorrt("tensorrt")


def test_a_tensorrt_whose_libraries_are_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tensorrt.py").write_text("raise OSError('libnvinfer.so.11: cannot open\\nmore')")
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(Unavailable, match=r"^tensorrt cannot be imported \(libnvinfer.so.11: cannot open\)$"):
        find_tensorrt()


def test_no_driver(module: Any, monkeypatch: pytest.MonkeyPatch, bundle: Path) -> None:
    def missing(name: str, **_: Any) -> None:
        raise OSError(name)

    monkeypatch.setattr(cuda_driver.ctypes, "CDLL", missing)
    with pytest.raises(Unavailable, match=r"^no NVIDIA driver is here \(libcuda.so.1 is missing\)"):
        Session(bundle, backend="tensorrt")


def test_a_driver_without_a_gpu(module: Any, driver: fake_tensorrt.Driver, bundle: Path) -> None:
    driver.status["cuInit"] = 100
    with pytest.raises(Unavailable, match=r"^no GPU can be used here: cuInit: fake error 100 \(CUDA error 100\)$"):
        Session(bundle, backend="tensorrt")


def test_a_driver_that_is_too_old(module: Any, driver: fake_tensorrt.Driver, bundle: Path) -> None:
    del driver.cuGraphInstantiateWithFlags
    with pytest.raises(Unavailable, match=r"the NVIDIA driver has no cuGraphInstantiateWithFlags: it is older than"):
        Session(bundle, backend="tensorrt")


def test_what_the_driver_says_of_itself(driver: fake_tensorrt.Driver) -> None:
    cuda = cuda_driver.Cuda()
    assert (cuda.gpu, cuda.capability, cuda.driver) == ("Fake GPU", "8.7", "12.4")


def test_the_doctor_says_what_is_here_and_what_is_missing(
    module: Any, driver: fake_tensorrt.Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "why_unavailable", lambda: None)  # the counter asks the real C library
    found = doctor.doctor()
    assert found.backends["tensorrt"] is True
    assert found.tensorrt.to_dict() == {
        "module": "tensorrt", "version": "11.0.1", "gpu": "Fake GPU", "compute_capability": "8.7",
        "driver_cuda": "12.4", "missing": [],
    }  # fmt: skip
    line = "TensorRT: tensorrt 11.0.1; Fake GPU (compute capability 8.7, driver for CUDA 12.4)\n"
    assert line in doctor_text(found)
    driver.status["cuInit"] = 100
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    found = doctor.doctor()
    assert found.backends["tensorrt"] is False
    line = "TensorRT: TensorRT is not installed: pip install 'mtlc[tensorrt]'; no GPU can be used here: cuInit: "
    assert line in doctor_text(found)


GOOD = {
    "file": "trunk.fp32.engine", "precision": "fp32", "module": "tensorrt", "version": "11.0.1", "gpu": None,
    "compute_capabilities": ["8.7"], "dimensions": {"batch": [1, 1, 8]},
}  # fmt: skip


@pytest.mark.parametrize(
    ("engines", "message"),
    [
        ({"nothing.onnx": GOOD}, "engines.nothing.onnx: no program has this file"),
        (
            {"trunk.onnx": GOOD | {"file": "other.engine"}},
            "engines.trunk.onnx: its file 'other.engine' is not in files",
        ),
        ({"trunk.onnx": GOOD | {"file": "shared.onnx"}}, "its file 'shared.onnx' is a program's, or another engine's"),
        ({"trunk.onnx": GOOD, "shared.onnx": GOOD}, "engines.shared.onnx: its file 'trunk.fp32.engine' is a program's"),
        ({"trunk.onnx": GOOD | {"file": "../x"}}, "is not a plain file name inside the bundle"),
        ({"trunk.onnx": GOOD | {"precision": "bf16"}}, "precision = 'bf16': must be one of fp32, fp16, int8"),
        ({"trunk.onnx": GOOD | {"module": "os"}}, "module = 'os': must be one of tensorrt, tensorrt_rtx"),
        ({"trunk.onnx": GOOD | {"compute_capabilities": []}}, "must be one or more such as '8.6'"),
        ({"trunk.onnx": GOOD | {"compute_capabilities": ["sm86"]}}, "must be one or more such as '8.6'"),
        ({"trunk.onnx": GOOD | {"dimensions": {"batch": [2, 1, 8]}}}, "dimensions.batch must be three rising sizes"),
        ({"trunk.onnx": GOOD | {"dimensions": {"batch": [0, 1, 8]}}}, "dimensions.batch must be three rising sizes"),
        ({"trunk.onnx": {k: v for k, v in GOOD.items() if k != "version"}}, "engines.trunk.onnx.version is missing"),
        ([], "engines must be a table"),
    ],
)
def test_manifests_whose_engines_do_not_fit(make_bundle: Any, engines: Any, message: str) -> None:
    path = make_bundle({"trunk.fp32.engine": b"engine"}, lambda manifest: manifest.update(engines=engines))
    with pytest.raises(BundleError, match=message):
        open_bundle(path)


def test_a_manifest_with_engines_and_sizes_reads_back(make_bundle: Any) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        manifest.update(engines={"trunk.onnx": GOOD}, dimensions={"batch": [1, 2, 4]})

    with open_bundle(make_bundle({"trunk.fp32.engine": b"engine"}, edit)) as opened:
        described = json.loads(json.dumps(opened.manifest.to_dict()))
    assert described["engines"] == {"trunk.onnx": GOOD}
    assert described["dimensions"] == {"batch": [1, 2, 4]}
