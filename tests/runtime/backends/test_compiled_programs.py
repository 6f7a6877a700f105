"""What was compiled before: as it was written, or not used."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from testkit.hand_bundle import W, expected, payloads, write

from mtlc.runtime import Session
from mtlc.runtime.backends.compiled_programs import CompiledPrograms


def test_what_was_kept_comes_back_and_nothing_else(tmp_path):
    kept = CompiledPrograms(tmp_path / "cache")
    one, other = kept.key(threads=1, shapes={"x": "[1]"}), kept.key(threads=2, shapes={"x": "[1]"})
    assert one != other
    assert kept.read(one) is None
    kept.write(one, b"blob")
    assert kept.read(one) == b"blob"
    shutil.copy(tmp_path / "cache" / f"{one}.blob", tmp_path / "cache" / f"{other}.blob")
    assert kept.read(other) is None


def test_every_flipped_bit_and_every_cut_is_refused(tmp_path):
    kept = CompiledPrograms(tmp_path)
    key = kept.key(a=1)
    kept.write(key, b"some compiled program")
    (path,) = tmp_path.iterdir()
    data = path.read_bytes()
    for place in range(len(data)):
        for bit in range(8):
            path.write_bytes(data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :])
            assert kept.read(key) is None
        path.write_bytes(data[:place])
        assert kept.read(key) is None
    path.write_bytes(data + b"\0")
    assert kept.read(key) is None


def test_a_folder_that_cannot_be_written_keeps_nothing(tmp_path):
    (tmp_path / "file").touch()
    kept = CompiledPrograms(tmp_path / "file")
    kept.write(kept.key(a=1), b"x")
    assert kept.read(kept.key(a=1)) is None


class Core:
    """OpenVINO's, which says what it was asked."""

    def __init__(self, core) -> None:
        self._core, self.calls = core, []

    def __getattr__(self, name):
        if name in ("compile_model", "import_model"):
            self.calls.append(name.removesuffix("_model"))
        return getattr(self._core, name)


def run(bundle: Path, x: np.ndarray, cache: Path | None, **options) -> tuple[dict[str, np.ndarray], list[str]]:
    with Session(bundle, "openvino", cache=cache, **options) as session:
        session._backend._core = core = Core(session._backend._core)
        return session.run(x), core.calls


@pytest.fixture
def cache(tmp_path) -> Path:
    pytest.importorskip("openvino")
    return tmp_path / "cache"


@pytest.mark.parametrize("batch", [None, 2])
def test_openvino_compiles_once(bundle, x, cache, batch):
    first, calls = run(bundle, x, cache, batch=batch)
    assert calls == ["compile"] * 5
    again, calls = run(bundle, x, cache, batch=batch)
    assert calls == ["import"] * 5
    for task, array in expected(x).items():
        np.testing.assert_allclose(first[task], array, rtol=1e-6)
        np.testing.assert_array_equal(first[task], again[task])
    assert len(list(cache.iterdir())) == 5
    assert run(bundle, x, cache, batch=batch, threads=1)[1] == ["compile"] * 5  # compiled for other threads


def test_another_bundle_in_its_place_is_compiled_anew(bundle, x, cache):
    """The graphs are the same, and only a weight outside them differs."""
    run(bundle, x, cache)
    shutil.rmtree(bundle)
    write(bundle, payloads() | {"weights.bin": (W + 1).tobytes()})
    found, calls = run(bundle, x, cache)
    assert calls == ["compile"] * 5
    np.testing.assert_allclose(found["plus"], expected(x)["plus"] + 1, rtol=1e-6)


def test_damaged_files_are_compiled_anew_and_written_again(bundle, x, cache):
    whole, _ = run(bundle, x, cache)
    rng = np.random.default_rng(0)
    for path in cache.iterdir():
        data = bytearray(path.read_bytes())
        for place in rng.integers(0, len(data), 3):
            data[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
    again, calls = run(bundle, x, cache)
    assert calls == ["compile"] * 5
    assert all(np.array_equal(whole[task], again[task]) for task in whole)
    assert run(bundle, x, cache)[1] == ["import"] * 5


def test_what_openvino_does_not_take_is_compiled_anew(bundle, x, cache):
    """Whole by our checksum, and still not a program: such as of another build of the same version."""
    whole, _ = run(bundle, x, cache)
    kept = CompiledPrograms(cache)
    for path in cache.iterdir():
        kept.write(path.stem, os.urandom(100))
    again, calls = run(bundle, x, cache)
    assert calls == ["import", "compile"] * 5
    assert all(np.array_equal(whole[task], again[task]) for task in whole)
