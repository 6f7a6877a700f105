"""Builds libmtlc once for all processes of a test run, and calls it by ctypes."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from testkit.places import ROOT

SOURCES = ROOT / "native"
ENGINE = next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"), None)
"""onnxruntime's shared library in its wheel; there is none outside Linux."""

_DTYPES = (
    "float16",
    "float32",
    "float64",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "bool",
)
_MAX_RANK = 32


class NativeError(Exception):
    """What the library says, and its code."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class _Error(ctypes.Structure):
    _fields_ = (("code", ctypes.c_int), ("message", ctypes.c_char * 512))


class _Options(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("engine", ctypes.c_char_p),
        ("threads", ctypes.c_int),
        ("eager", ctypes.c_int),
    )


class _View(ctypes.Structure):
    _fields_ = (
        ("dtype", ctypes.c_int),
        ("rank", ctypes.c_int),
        ("shape", ctypes.c_int64 * _MAX_RANK),
        ("data", ctypes.c_void_p),
        ("bytes", ctypes.c_size_t),
    )


class _Preference(ctypes.Structure):
    _fields_ = (("task", ctypes.c_char_p), ("value", ctypes.c_double))


def need_tools() -> None:
    """Skip without what builds the library; fail where CI is set."""
    missing = [tool for tool in ("cmake", "cc") if shutil.which(tool) is None]
    if ENGINE is None:
        missing.append("libonnxruntime.so in onnxruntime's wheel")
    if missing and os.environ.get("CI"):
        pytest.fail(f"no {missing[0]} found: the C library must be tested (apt-get install cmake gcc)")
    if missing:
        pytest.skip(f"no {missing[0]} found: install cmake and a C compiler to test the C library")


def build(folder: Path, *options: str) -> Path:
    """Build the library in `folder`, which processes share: one builds, the others wait."""
    need_tools()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for command in (
            ["cmake", "-S", str(SOURCES), "-B", str(folder), "-DCMAKE_BUILD_TYPE=Release", *options],
            ["cmake", "--build", str(folder), "--parallel", "2"],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
    return folder


class Native:
    """The library that lies in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.program = folder, folder / "mtlc-run"
        self._library = ctypes.CDLL(str(folder / "libmtlc.so"))
        self._library.mtlc_code_name.restype = ctypes.c_char_p
        for name, kind in (
            ("mtlc_session_engine", ctypes.c_char_p),
            ("mtlc_plan_program", ctypes.c_char_p),
            ("mtlc_plan_program_count", ctypes.c_size_t),
            ("mtlc_session_task_count", ctypes.c_size_t),
            ("mtlc_session_configuration", ctypes.c_char_p),
            ("mtlc_session_configuration_count", ctypes.c_size_t),
            ("mtlc_configuration_encoder", ctypes.c_char_p),
            ("mtlc_configuration_macs", ctypes.c_int64),
            ("mtlc_configuration_decoder", ctypes.c_double),
        ):
            getattr(self._library, name).restype = kind

    def code_names(self) -> list[str]:
        """The names of all codes, by number."""
        names: list[str] = []
        while (name := self._library.mtlc_code_name(len(names))) is not None:
            names.append(name.decode())
        return names

    def call(self, function: str, *arguments: Any) -> None:
        """Call a function that gives a code and writes an error last. Raises `NativeError`."""
        error = _Error()
        code = getattr(self._library, function)(*arguments, ctypes.byref(error))
        if code != 0:
            name = self._library.mtlc_code_name(code).decode()
            assert error.code == code
            message = error.message.decode("utf-8", "replace")
            assert message
            assert message.isprintable(), message
            raise NativeError(name, message)

    def plain(self, function: str, *arguments: Any) -> Any:
        """Call a function that cannot fail."""
        return getattr(self._library, function)(*arguments)

    def check(self, path: Path) -> str:
        """The code with which the bundle is refused, or "ok"."""
        try:
            self.call("mtlc_check", os.fsencode(path))
        except NativeError as error:
            return error.code
        return "ok"

    @contextmanager
    def session(
        self, path: Path, threads: int = 1, engine: Path | None = ENGINE, eager: bool = False
    ) -> Iterator[NativeSession]:
        options = _Options(
            ctypes.sizeof(_Options), None if engine is None else os.fsencode(engine), threads, int(eager)
        )
        handle = ctypes.c_void_p()
        self.call("mtlc_session_open", os.fsencode(path), ctypes.byref(options), ctypes.byref(handle))
        made = NativeSession(self, handle)
        try:
            yield made
        finally:
            made.close()


class NativeSession:
    """A session of the library; what is made of it ends with it."""

    def __init__(self, native: Native, handle: ctypes.c_void_p) -> None:
        self.native, self.handle = native, handle
        self._plans: list[NativePlan] = []
        self._configurations: list[ctypes.c_void_p] = []

    def close(self) -> None:
        for plan in self._plans:
            self.native.plain("mtlc_plan_free", plan.handle)
        for one in self._configurations:
            self.native.plain("mtlc_configuration_free", one)
        self.native.plain("mtlc_session_close", self.handle)

    @property
    def configurations(self) -> tuple[str, ...]:
        count = self.native.plain("mtlc_session_configuration_count", self.handle)
        names = (self.native.plain("mtlc_session_configuration", self.handle, ctypes.c_size_t(i)) for i in range(count))
        return tuple(name.decode() for name in names)

    def named(self, name: str) -> ctypes.c_void_p:
        made = ctypes.c_void_p()
        self.native.call("mtlc_configuration_named", self.handle, name.encode(), ctypes.byref(made))
        self._configurations.append(made)
        return made

    def within(
        self, budget: str, prefer: Mapping[str, float] | None = None, tasks: Sequence[str] = ()
    ) -> ctypes.c_void_p:
        made, given = ctypes.c_void_p(), prefer or {}
        preferences = (_Preference * len(given))(*(_Preference(k.encode(), v) for k, v in given.items()))
        self.native.call(
            "mtlc_configuration_within", self.handle, budget.encode(), preferences, ctypes.c_size_t(len(given)),
            _names(tasks), ctypes.c_size_t(len(tasks)), ctypes.byref(made),
        )  # fmt: skip
        self._configurations.append(made)
        return made

    def describe(self, configuration: ctypes.c_void_p, tasks: Sequence[str]) -> tuple[str, dict[str, float], int]:
        """The encoder's name, each task's width and the MACs."""
        encoder = self.native.plain("mtlc_configuration_encoder", configuration)
        widths = {t: self.native.plain("mtlc_configuration_decoder", configuration, t.encode()) for t in tasks}
        return encoder.decode(), widths, self.native.plain("mtlc_configuration_macs", configuration)

    def plan(self, tasks: Sequence[str] = (), configuration: ctypes.c_void_p | None = None) -> NativePlan:
        made = ctypes.c_void_p()
        self.native.call(
            "mtlc_plan_new", self.handle, configuration, _names(tasks), ctypes.c_size_t(len(tasks)), ctypes.byref(made)
        )
        plan = NativePlan(self.native, made)
        self._plans.append(plan)
        return plan

    def run(
        self,
        inputs: np.ndarray | Mapping[str, np.ndarray],
        tasks: Sequence[str],
        configuration: ctypes.c_void_p | None = None,
    ) -> dict[str, np.ndarray]:
        """What a plan of its own gives."""
        plan = self.plan(tasks, configuration)
        for name, array in inputs.items() if isinstance(inputs, Mapping) else ((None, inputs),):
            plan.set_input(name, array)
        plan.run()
        return {task: plan.output(task) for task in tasks}


class NativePlan:
    """A plan of the library. Keeps the arrays that are bound to it."""

    def __init__(self, native: Native, handle: ctypes.c_void_p) -> None:
        self.native, self.handle = native, handle
        self.bound: dict[str | None, np.ndarray] = {}

    @property
    def programs(self) -> tuple[str, ...]:
        count = self.native.plain("mtlc_plan_program_count", self.handle)
        names = (self.native.plain("mtlc_plan_program", self.handle, ctypes.c_size_t(i)) for i in range(count))
        return tuple(name.decode() for name in names)

    def set_input(self, name: str | None, array: np.ndarray) -> None:
        array = array if array.flags.c_contiguous else np.ascontiguousarray(array)  # which has no 0 dimensions
        self.native.call(
            "mtlc_plan_set_input", self.handle, None if name is None else name.encode(),
            _DTYPES.index(array.dtype.name) + 1, (ctypes.c_int64 * max(array.ndim, 1))(*array.shape), array.ndim,
            ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes),
        )  # fmt: skip
        self.bound[name] = array

    def set_output(self, task: str, array: np.ndarray) -> None:
        self.native.call(
            "mtlc_plan_set_output", self.handle, task.encode(), ctypes.c_void_p(array.ctypes.data),
            ctypes.c_size_t(array.nbytes),
        )  # fmt: skip
        self.bound[task] = array

    def run(self) -> None:
        self.native.call("mtlc_plan_run", self.handle)

    def output(self, task: str) -> np.ndarray:
        """A copy of the task's result."""
        view = _View()
        self.native.call("mtlc_plan_output", self.handle, task.encode(), ctypes.byref(view))
        shape = tuple(view.shape[: view.rank])
        data = ctypes.string_at(view.data, view.bytes) if view.bytes else b""
        return np.frombuffer(data, _DTYPES[view.dtype - 1]).reshape(shape).copy()


def assert_equal(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    """The same tasks in the same order, of the same types and bits."""
    assert list(found) == list(expected)
    for task, array in expected.items():
        assert (found[task].dtype, found[task].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(found[task], array)


def _names(tasks: Sequence[str]) -> Any:
    return (ctypes.c_char_p * max(len(tasks), 1))(*(task.encode() for task in tasks))
