"""One thread for every test, and what tests need from outside: a real browser for the report, Verilator for the RTL.

Numbers that are compared bit for bit must not depend on how work was split.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from pathlib import Path

import pytest

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"  # before torch is imported anywhere

pytest_plugins = ["testkit.hand_bundle_fixtures", "testkit.native_fixtures"]

# What is built once for all runs, such as simulations of Verilog, is kept; what a run measures is not the next one's.
CACHE = Path(__file__).parent.parent / ".mtlc-cache"
os.environ["XDG_CACHE_HOME"] = str(CACHE)
shutil.rmtree(CACHE / "mtlc" / "latency", ignore_errors=True)


LONG = (Path(__file__).parent / "long_tests.txt").read_text(encoding="utf-8").splitlines()
"""Modules, classes, functions and cases that take long: `scripts/list_long_tests.py` wrote it."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what takes long: `make test` leaves it to `make test-long`."""
    listed = set(LONG)
    for item in items:
        function = item.nodeid.partition("[")[0]
        parts = function.split("::")
        if listed & {item.nodeid, *("::".join(parts[:end]) for end in range(1, len(parts) + 1))}:
            item.add_marker(pytest.mark.long)


_LIBC = ctypes.CDLL(None)  # now: tests put other libraries in the place of ctypes.CDLL


class _SignalStack(ctypes.Structure):
    _fields_ = [("pointer", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]


@pytest.fixture(autouse=True)
def no_signal_stack() -> None:
    """Handlers of signals run on the usual stack.

    What a test imports may leave a signal stack behind that is no longer there: then the end of a loader's worker,
    which torch has a handler for, ends this process.
    """
    if sys.platform == "linux":
        _LIBC.sigaltstack(ctypes.byref(_SignalStack(None, 2, 0)), None)  # 2: SS_DISABLE


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of a Chromium. Without one the test is skipped on a developer's machine and fails where CI is set."""
    for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"):
        if path := shutil.which(name):
            return path
    if os.environ.get("CI"):
        pytest.fail("no Chromium found: the report must be looked at in a browser (apt-get install chromium)")
    pytest.skip("no Chromium found: install one to test the report in a browser")


@pytest.fixture(scope="session")
def verilated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for built simulations. Without Verilator skipped on a developer's machine; fails where CI is set."""
    missing = [tool for tool in ("verilator", "g++", "make") if shutil.which(tool) is None]
    if missing and os.environ.get("CI"):
        pytest.fail(f"no {missing[0]} found: the RTL must be simulated (apt-get install verilator g++ make)")
    if missing:
        pytest.skip(f"no {missing[0]} found: install verilator, g++ and make to simulate the RTL")
    return tmp_path_factory.getbasetemp().parent / "mtlc-rtl"  # one for all processes of a parallel run
