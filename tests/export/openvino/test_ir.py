"""OpenVINO IR in bundles: what is stored, what it computes, and what is refused."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import openvino
import pytest

from mtlc.errors import BundleError, UserError, VerificationError
from mtlc.export.openvino import ir
from mtlc.export.openvino.ir import write_ir
from mtlc.runtime import Session, open_bundle


@pytest.fixture(scope="module")
def made(exported, tmp_path_factory):
    path = tmp_path_factory.mktemp("ir") / "b"
    return path, write_ir(exported.path, path)


def spans(path: Path) -> list[tuple[int, int]]:
    """(offset, size) of an IR's constants."""
    found = re.findall(r'<data element_type="\w+" shape="[^"]*" offset="(\d+)" size="(\d+)"', path.read_text())
    return [(int(offset), int(size)) for offset, size in found]


def rewritten(bundle: Path, name: str, text: bytes) -> None:
    """Put `text` into the file `name` of a bundle, with its checksum."""
    (bundle / name).write_bytes(text)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"][name] = {"sha256": hashlib.sha256(text).hexdigest(), "bytes": len(text)}
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def test_constants_lie_in_the_bundles_weights_and_large_ones_once(exported, made):
    path, report = made
    before = (exported.path / "weights.bin").read_bytes()
    weights = (path / "weights.bin").read_bytes()
    assert weights.startswith(before)
    assert report["shared_bytes"] == len(before)
    assert report["own_bytes"] == len(weights) - len(before) < 0.2 * len(before)
    with open_bundle(path) as opened:
        info = opened.manifest.openvino
    assert (info.weights, info.shared_bytes, info.half) == ("weights.bin", len(before), False)
    large = [span for file in info.files.values() for span in spans(path / file) if span[1] >= 1024]
    assert large
    assert all(offset + size <= len(before) for offset, size in large)


def test_it_is_the_ir_that_runs(made, monkeypatch):
    """With the ONNX files unreadable to OpenVINO, the numbers are still there."""
    read = []
    true = openvino.Core.read_model
    monkeypatch.setattr(openvino.Core, "read_model", lambda self, *a: read.append(Path(a[0]).suffix) or true(self, *a))
    with Session(made[0], backend="openvino") as session:
        session.run(np.zeros((1, 3, 32, 32), np.float32), "depth")
    assert read == [".xml", ".xml"]


def test_half_stores_less_and_computes_nearly_the_same(exported, made, tmp_path):
    report = write_ir(exported.path, tmp_path / "half", half=True)
    assert max(made[1]["differences"].values()) <= 1e-6
    assert 1e-6 < max(report["differences"].values()) < 1e-2
    types = re.findall(r'element_type="(\w+)"', (tmp_path / "half" / "00-trunk.xml").read_text())
    assert types.count("f16") > 5


def test_an_ir_is_replaced_and_leaves_nothing_behind(exported, made, tmp_path):
    """Half and back again: the files and the weights of the bundle that was converted once."""
    write_ir(exported.path, tmp_path / "b", half=True)
    write_ir(tmp_path / "b", tmp_path / "b")
    for one in (tmp_path / "b", made[0]):
        with open_bundle(one) as opened:
            assert opened.manifest.files.keys() == {p.name for p in made[0].iterdir()} - {"manifest.json"}
            assert opened.manifest.openvino.half is False
    assert (tmp_path / "b" / "weights.bin").stat().st_size == (made[0] / "weights.bin").stat().st_size
    assert b'"f16"' not in (tmp_path / "b" / "00-trunk.xml").read_bytes()


def test_a_wrong_ir_is_not_written(exported, tmp_path, monkeypatch):
    true = ir._Weights.place
    monkeypatch.setattr(ir._Weights, "place", lambda self, data: true(self, data[::-1] if len(data) > 4000 else data))
    with pytest.raises(VerificationError, match="task 'semseg': the IR differs from the ONNX by"):
        write_ir(exported.path, tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[: len(text) // 2], "not a whole IR file"),
        (lambda text: b'<!DOCTYPE net [<!ENTITY a "b">]>' + text, "it declares entities"),
        (lambda text: b"<a></a>", "not an IR file"),
        (lambda text: text.replace(b'version="opset1"', b'version="mine"', 1),
         "is of 'mine', which is not OpenVINO's own"),
        (lambda text: text.replace(b'offset="0"', b'offset="99999999"', 1), "lies beyond the end of the weights"),
        (lambda text: text.replace(b'offset="0"', b'offset="x"', 1), "does not say where it lies"),
        (lambda text: text.replace(b'offset="0"', b'offset="0_0"', 1), "does not say where it lies"),
        (lambda text: text.replace(b'offset="0"', b'offset=" 0"', 1), "does not say where it lies"),
        # OpenVINO's parser would see these layers, one that knows namespaces does not.
        (lambda text: text.replace(b"<layers>", b'<layers xmlns="x">', 1), "it declares namespaces"),
        (lambda text: text.replace(b"<layers>", b'<layers xmlns:x="y" x:z="0">', 1), "it declares namespaces"),
        (lambda text: text.decode().encode("utf-16"), "not a whole IR file"),
        (lambda text: text.replace(b"<edges>", b"<a>" * 200 + b"</a>" * 200 + b"<edges>", 1),
         "its elements are nested more than 128 deep"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_trusted(made, tmp_path, change, message):
    shutil.copytree(made[0], tmp_path / "b")
    text = (tmp_path / "b" / "00-trunk.xml").read_bytes()
    assert change(text) != text
    rewritten(tmp_path / "b", "00-trunk.xml", change(text))
    with pytest.raises(BundleError, match=f"00-trunk.xml: .*{message}"):
        open_bundle(tmp_path / "b")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ir: ir["files"].pop("00-trunk.onnx"), "openvino.files.00-trunk.onnx: is missing"),
        (lambda ir: ir["files"].update(x="00-trunk.xml"), "openvino.files.x: no program has this file"),
        (lambda ir: ir["files"].update({"00-trunk.onnx": "no.xml"}), "'no.xml' is not in files"),
        (lambda ir: ir["files"].update({"00-trunk.onnx": "weights.bin"}), "'weights.bin' is another payload's file"),
        (lambda ir: ir.update(weights="no.bin"), "openvino.weights: 'no.bin' is not in files"),
        (lambda ir: ir.update(shared_bytes=10**9), "is more than 'weights.bin' has"),
        (lambda ir: ir.update(half="yes"), "openvino.half must be true or false"),
    ],
)
def test_a_manifest_that_does_not_fit(made, tmp_path, change, message):
    shutil.copytree(made[0], tmp_path / "b")
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    change(manifest["openvino"])
    (tmp_path / "b" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=re.escape(message)):
        open_bundle(tmp_path / "b")


def test_compiled_programs_are_kept_in_a_folder(exported, tmp_path):
    x = exported.samples["image"].numpy()[:1]
    results = []
    for _ in range(2):
        with Session(exported.path, backend="openvino", cache=tmp_path / "kept") as session:
            results.append(session.run(x))
            assert len(list((tmp_path / "kept").glob("*.blob"))) == 4
    for task, array in results[0].items():
        np.testing.assert_array_equal(array, results[1][task])


def test_a_cache_that_cannot_be(exported, tmp_path):
    with pytest.raises(UserError, match="the onnxruntime backend compiles nothing to keep"):
        Session(exported.path, cache=tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be made"):
        Session(exported.path, backend="openvino", cache=tmp_path / "file")
