"""Gives tests the C library, built once for all processes of a run."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from testkit.native_library import ENGINE, Native, build
from testkit.places import ROOT


def _folder(made: pytest.TempPathFactory, name: str) -> Path:
    """Where this checkout is built, once for all processes of a run."""
    checkout = hashlib.sha256(str(ROOT).encode()).hexdigest()[:8]
    return made.getbasetemp().parent / f"mtlc-{name}-{checkout}"


@pytest.fixture(scope="session")
def native(tmp_path_factory: pytest.TempPathFactory) -> Native:
    """The library with its program."""
    os.environ["MTLC_ONNXRUNTIME"] = str(ENGINE)
    return Native(build(_folder(tmp_path_factory, "native")))


@pytest.fixture(scope="session")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with programs that AddressSanitizer and UndefinedBehaviorSanitizer watch."""
    os.environ["MTLC_ONNXRUNTIME"] = str(ENGINE)
    folder = _folder(tmp_path_factory, "sanitized")
    return build(folder, "-DMTLC_SANITIZE=ON", "-DMTLC_FUZZ=ON")


@pytest.fixture(scope="session")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a program of several threads that ThreadSanitizer watches."""
    os.environ["MTLC_ONNXRUNTIME"] = str(ENGINE)
    return build(_folder(tmp_path_factory, "watched"), "-DMTLC_SANITIZE_THREADS=ON")
