from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from testkit import fake_tensorrt
from testkit.hand_bundle import CHANNELS, SIZE

from mtlc.export.tensorrt.engines import build_engines
from mtlc.runtime.backends import cuda_driver
from mtlc.runtime.bundle.manifest import Sizes


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
def engines(module: Any, driver: Any, bundle: Path, tmp_path: Path, dimensions: dict[str, Sizes]) -> Path:
    """The bundle of `hand_bundle` with engines of the fake in float32; nothing is counted that building them ran."""
    build_engines(bundle, tmp_path / "engines", "fp32", dimensions=dimensions)
    driver.calls.clear()
    module.contexts = module.enqueued = 0
    return tmp_path / "engines"
