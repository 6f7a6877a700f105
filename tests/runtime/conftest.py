from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from testkit import fake_tensorrt
from testkit.hand_bundle import CHANNELS, SIZE, manifest, payloads, slim_manifest, slim_payloads, write

from mtlc.export.tensorrt.engines import build_engines
from mtlc.runtime.backends import cuda_driver
from mtlc.runtime.bundle.manifest import Sizes


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write(tmp_path / "bundle", payloads())


@pytest.fixture
def slim_bundle(tmp_path: Path) -> Path:
    """The slimmable network of `hand_bundle`."""
    return write(tmp_path / "slim", slim_payloads(), slim_manifest())


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[..., Path]:
    """Write a bundle with some payloads replaced (checksums are right), or with a manifest of one's own."""

    def make(changed: dict[str, bytes] | None = None, edit: Callable[[dict], object] | None = None) -> Path:
        files = payloads() | (changed or {})
        described = manifest(files)
        if edit is not None:
            edit(described)
        return write(tmp_path / "made", files, described)

    return make


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2, CHANNELS, SIZE, SIZE), np.float32)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> fake_tensorrt.Driver:
    made = fake_tensorrt.Driver()
    monkeypatch.setattr(cuda_driver.ctypes, "CDLL", lambda name, **_: made)
    return made


@pytest.fixture
def module(driver: fake_tensorrt.Driver, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The fake ``tensorrt`` on the fake driver."""
    made = fake_tensorrt.make_module(driver)
    monkeypatch.setitem(sys.modules, "tensorrt", made)
    return made


@pytest.fixture
def dimensions() -> dict[str, Sizes]:
    return {"batch": Sizes(1, 2, 8)}


@pytest.fixture
def engines(module: Any, bundle: Path, tmp_path: Path, dimensions: dict[str, Sizes]) -> Path:
    """The bundle of `hand_bundle` with engines of the fake in float32."""
    build_engines(bundle, tmp_path / "engines", "fp32", dimensions=dimensions)
    return tmp_path / "engines"
