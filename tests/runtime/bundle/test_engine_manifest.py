"""What a bundle says of its engines: it reads back as written, and what differs here is refused in one line."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from testkit import fake_tensorrt

from mtlc.cli import main
from mtlc.export.tensorrt.engines import build_engines
from mtlc.runtime import Session, open_bundle
from mtlc.runtime.bundle.manifest import EngineInfo, Manifest, Quantization, Sizes

AGAIN = "build the engines again here: mtlc build BUNDLE --out …"


def mtlc(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def line(result: Result, code: int) -> str:
    """The one line of an error."""
    assert result.exit_code == code, result.output
    lines = result.stderr.splitlines()
    assert len(lines) == 1
    assert result.stdout == ""
    return lines[0].removeprefix("error: ")


def read(path: Path) -> Manifest:
    with open_bundle(path) as opened:
        return opened.manifest


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("archive", [False, True])
def test_what_was_built_reads_back(
    module: Any, bundle: Path, tmp_path: Path, dimensions: dict[str, Sizes], precision: str, archive: bool
) -> None:
    if archive:
        bundle = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", bundle))
    out = tmp_path / ("built.mtlc" if archive else "built")
    report = build_engines(bundle, out, precision, dimensions=dimensions)
    made = read(out)
    assert made.engines == {
        file: EngineInfo(
            f"{Path(file).stem}.{precision}.engine", precision, "tensorrt", "11.0.1", "Fake GPU", ("8.7",), dimensions
        )
        for file in ("trunk.onnx", "shared.onnx", "head-plus.onnx", "head-square.onnx", "head-less.onnx")
    }
    assert made.dimensions == dimensions
    assert (report["gpu"], report["compute_capabilities"], report["version"]) == ("Fake GPU", ["8.7"], "11.0.1")
    assert made.precision("tensorrt") == precision
    assert made.precision("onnxruntime") == made.precision("openvino") == "fp32"


def test_every_field_of_an_engine_is_written_and_read(make_bundle: Callable[..., Path]) -> None:
    """Fields that differ from each other and from every default: none can stand for another."""
    one = EngineInfo("a.engine", "fp16", "tensorrt", "11.0.1", "Orin", ("8.7",), {"batch": Sizes(1, 2, 8)})
    two = EngineInfo("b.engine", "int8", "tensorrt_rtx", "1.7.0.2", None, ("8.6", "8.9", "12.0"), {})
    engines = {"trunk.onnx": one, "shared.onnx": two}
    written = json.loads(json.dumps({file: engine.to_dict() for file, engine in engines.items()}))
    path = make_bundle({"a.engine": b"a", "b.engine": b"b"}, lambda manifest: manifest.update(engines=written))
    made = read(path)
    assert made.engines == engines
    assert made.to_dict()["engines"] == written
    assert made.precision("tensorrt") == "fp16 and int8"


def test_a_precision_is_that_of_what_runs(bundle: Path) -> None:
    plain = read(bundle)
    quantised = replace(plain, quantization=Quantization("int8", "tensorrt", "full"))
    half = EngineInfo("a.engine", "fp16", "tensorrt", "11.0.1", "Orin", ("8.7",), {})
    assert plain.precision("tensorrt") == "fp32"  # without engines there is nothing else to say
    assert (quantised.precision("onnxruntime"), quantised.precision("openvino")) == ("int8", "int8")
    assert replace(plain, engines={"trunk.onnx": half}).precision("tensorrt") == "fp16"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": "11.1.0"}, "was built by tensorrt 11.0.1, here is 11.1.0"),
        ({"capability": (8, 9)}, "is for compute capability 8.7, Fake GPU has 8.9"),
        ({"gpu": "Fake GPU Nano"}, "was built for Fake GPU, here is Fake GPU Nano"),
    ],
)
@pytest.mark.parametrize("verb", ["bench", "verify"])
def test_each_difference_is_refused_in_one_line(
    engines: Path, driver: fake_tensorrt.Driver, module: Any, changes: dict[str, Any], message: str, verb: str
) -> None:
    driver.gpu = changes.get("gpu", driver.gpu)
    driver.capability = changes.get("capability", driver.capability)
    module.__version__ = changes.get("version", module.__version__)
    said = line(mtlc(verb, engines, "--backend", "tensorrt"), 5)
    assert said.endswith(f"trunk.fp32.engine {message}: {AGAIN}")
    # The other backends run the bundle all the same.
    with Session(engines) as session:
        assert session.backend == "onnxruntime"


def test_engines_that_fit_any_gpu_of_their_capability(engines: Path, driver: fake_tensorrt.Driver, module: Any) -> None:
    """As tensorrt_rtx builds them: no GPU is named, so its name is not compared."""
    described = json.loads((engines / "manifest.json").read_text())
    for engine in described["engines"].values():
        engine.update(gpu=None, compute_capabilities=["8.6", "8.7"])
    (engines / "manifest.json").write_text(json.dumps(described))
    driver.gpu, driver.capability = "Another", (8, 6)
    result = mtlc("verify", engines, "--backend", "tensorrt", "--samples", "4", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["first"]["backend"], found["first"]["precision"], found["tolerance"]) == ("tensorrt", "fp32", 1e-4)
    driver.capability = (8, 9)
    said = line(mtlc("verify", engines, "--backend", "tensorrt"), 5)
    assert said.endswith(f"is for compute capability 8.6, 8.7, Another has 8.9: {AGAIN}")


def test_an_engine_of_the_other_module_names_that_module(engines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    described = json.loads((engines / "manifest.json").read_text())
    for engine in described["engines"].values():
        engine["module"] = "tensorrt_rtx"
    (engines / "manifest.json").write_text(json.dumps(described))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    said = line(mtlc("verify", engines, "--backend", "tensorrt"), 5)
    assert said.endswith("TensorRT is not installed: pip install 'mtlc[tensorrt]'")


TENSORRT = "TensorRT is not installed: pip install 'mtlc[tensorrt]'"
OPENVINO = "openvino is not installed: pip install 'mtlc[openvino]'"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("verify", "BUNDLE", "--backend", "tensorrt"), TENSORRT),
        (("bench", "BUNDLE", "--backend", "onnxruntime", "--backend", "tensorrt"), TENSORRT),
        (("profile", "BUNDLE", "--backend", "tensorrt"), TENSORRT),
        (("build", "BUNDLE", "--out", "OUT", "--quiet"), TENSORRT),
        (("verify", "BUNDLE", "--backend", "openvino"), OPENVINO),
        (("verify", "BUNDLE", "--against-backend", "openvino"), OPENVINO),
        (("bench", "BUNDLE", "--backend", "openvino"), OPENVINO),
        (("profile", "BUNDLE", "--backend", "openvino"), OPENVINO),
        (("build", "BUNDLE", "--out", "OUT", "--target", "openvino", "--quiet"), OPENVINO),
    ],
)
def test_a_missing_extra_says_what_to_install(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    for name in ("tensorrt", "tensorrt_rtx", "openvino"):
        monkeypatch.setitem(sys.modules, name, None)
    # Where the backend was imported before, it would not look again.
    monkeypatch.delitem(sys.modules, "mtlc.runtime.backends.openvino_backend", raising=False)
    places = {"BUNDLE": bundle, "OUT": tmp_path / "out"}
    assert line(mtlc(*(places.get(word, word) for word in arguments)), 5) == message
    assert {path.name for path in tmp_path.iterdir()} == {"bundle"}
