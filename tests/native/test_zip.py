"""Bundles in one zip: the C library opens what Python opens, refuses what it refuses, and leaves nothing behind."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from testkit.hand_bundle import CHANNELS, SIZE
from testkit.native_library import Native, NativeError

from mtlc.errors import MtlcError
from mtlc.runtime import Session, open_bundle

METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def pack(folder: Path, target: Path, method: int = zipfile.ZIP_DEFLATED, level: int = 6) -> Path:
    with zipfile.ZipFile(target, "w", method, compresslevel=level) as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, path.name)
    return target


def python_code(path: Path) -> str:
    try:
        open_bundle(path).close()
    except MtlcError as error:
        return error.code
    return "ok"


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where zips are unpacked, by both."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_a_zip_runs_and_leaves_nothing_behind(native: Native, bundle: Path, tmp_path: Path, scratch: Path, method: int):
    path = pack(bundle, tmp_path / "b.mtlc", method)
    x = np.random.default_rng(0).standard_normal((2, CHANNELS, SIZE, SIZE), np.float32)
    with Session(path) as session, native.session(path) as c:
        assert len(list(scratch.iterdir())) == 2
        for task, array in session.run(x).items():
            np.testing.assert_array_equal(c.run(x, (task,))[task], array)
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("level", [0, 1, 6, 9])
def test_every_kind_of_block_is_unpacked(native: Native, make_bundle, tmp_path: Path, level: int):
    """Noise, zeros, text and short repeats: stored, fixed and dynamic blocks."""
    draw = np.random.default_rng(level)
    words = draw.choice([b"trunk ", b"head ", b"weights ", b"x"], 40_000)
    data = (
        draw.bytes(70_000)
        + bytes(3000)
        + b"".join(words)
        + b"abc" * 9
        + draw.integers(0, 4, 50_000).astype(np.uint8).tobytes()
    )
    path = pack(make_bundle({"weights.bin": data[:4800] + data}), tmp_path / "b.mtlc", level=level)
    assert native.check(path) == python_code(path) == "ok"


def test_short_entries_use_the_fixed_code(native: Native, make_bundle, tmp_path: Path):
    files = {f"note{i}.txt": bytes([97 + i]) * i for i in range(20)}
    path = pack(make_bundle(files), tmp_path / "b.mtlc")
    assert native.check(path) == python_code(path) == "ok"


@pytest.mark.parametrize("method", METHODS)
def test_damaged_bytes_are_refused_alike(native: Native, bundle: Path, tmp_path: Path, scratch: Path, method: int):
    """In the entries with the same code. In the directory C refuses what Python refuses, perhaps by another reason, and
    damage that Python's zipfile overlooks.
    """
    path = pack(bundle, tmp_path / "b.mtlc", method)
    whole, draw = path.read_bytes(), np.random.default_rng(method)
    directory = int.from_bytes(whole[-6:-2], "little")
    damaged = 0
    for place in [*draw.choice(directory, 60, replace=False), *draw.integers(directory, len(whole), 40)]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ int(draw.integers(1, 256))]) + whole[place + 1 :])
        python, c = python_code(path), native.check(path)
        assert c == python or (place >= directory and c != "ok"), (place, python, c)
        damaged += c == "zip-damaged"
    assert damaged > 40
    for size in (0, 1, 21, 22, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert native.check(path) == python_code(path) == "zip-damaged"
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "code"),
    [("../evil", "zip-entry"), ("/evil", "zip-entry"), ("a/../../evil", "zip-entry"), ("..\\evil", "zip-entry"),
     ("c:\\evil", "zip-entry"), ("notes/mine.txt", "ok"), ("weights.bin", "zip-entry"), ("größe.txt", "ok")],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_entries_that_lead_elsewhere(native: Native, bundle: Path, tmp_path: Path, name: str, code: str):
    path = pack(bundle, tmp_path / "b.mtlc")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"evil")
    assert native.check(path) == python_code(path) == code


def test_other_refusals(native: Native, bundle: Path, tmp_path: Path):
    made = {
        "bzip2": (pack(bundle, tmp_path / "1", zipfile.ZIP_BZIP2), "zip-entry"),
        "no manifest": (tmp_path / "2", "not-a-bundle"),
        "a bomb": (tmp_path / "3", "zip-entry"),
        "a file that is missing": (tmp_path / "4", "file-missing"),
        "a link": (tmp_path / "5", "zip-entry"),
    }
    with zipfile.ZipFile(tmp_path / "2", "w") as archive:
        archive.writestr("notes.txt", "mine")
    with zipfile.ZipFile(tmp_path / "3", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(bundle / "manifest.json", "manifest.json")
        archive.writestr("weights.bin", bytes(1 << 20))
    with zipfile.ZipFile(tmp_path / "4", "w") as archive:
        archive.write(bundle / "manifest.json", "manifest.json")
    with zipfile.ZipFile(tmp_path / "5", "w") as archive:
        link = zipfile.ZipInfo("link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    for name, (path, code) in made.items():
        assert (name, native.check(path), python_code(path)) == (name, code, code)


def test_a_folder_for_temporary_files_that_is_not_there(
    native: Native, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = pack(bundle, tmp_path / "b.mtlc")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))
    with pytest.raises(NativeError, match="nowhere cannot hold what is unpacked") as caught:
        native.call("mtlc_check", str(path).encode())
    assert caught.value.code == "unreadable"
