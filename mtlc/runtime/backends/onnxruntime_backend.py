"""Runs ONNX files in onnxruntime, on the CPU: weights are mapped from the bundle, telemetry is off."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mtlc.errors import Unavailable

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read when onnxruntime is imported

try:
    import onnxruntime as onnxruntime  # others take it from here, so that telemetry is off before they use it
except ImportError as _error:
    raise Unavailable(f"onnxruntime cannot be imported ({_error}): pip install onnxruntime") from _error

if hasattr(onnxruntime, "disable_telemetry_events"):  # for a process that had imported onnxruntime before us
    onnxruntime.disable_telemetry_events()


_arena = threading.Lock()
_arena_is_there = False


class OnnxRuntime:
    """Loads ONNX files."""

    name = "onnxruntime"

    def load(self, file: Path, threads: int | None, profile: str | None) -> _Executable:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is raised, and said once
        options.inter_op_num_threads = 1
        options.intra_op_num_threads = _usable_cores() if threads is None else threads
        # Every program has threads of its own. Spinning, they would take the cores from the next program and from
        # whatever else the device does: on a busy machine that multiplied the median latency, on an idle one it
        # saved some tenths of a millisecond.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Programs run one after the other: with one arena for all, the memory of one's activations serves the next's.
        _share_arena()
        options.add_session_config_entry("session.use_env_allocators", "1")
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = profile
        return _Executable(
            onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"]), profile is not None
        )


class _Executable:
    def __init__(self, session: onnxruntime.InferenceSession, profiled: bool) -> None:
        self._session: onnxruntime.InferenceSession | None = session
        self._profiled = profiled
        # Arrays that leave and enter a session share its memory, so programs hand tensors over without a copy.
        self.run: Callable[[Sequence[str], dict[str, np.ndarray]], list[np.ndarray]] = session.run

    def end_profile(self) -> Path | None:
        if not self._profiled or self._session is None:
            return None
        self._profiled = False
        return Path(self._session.end_profiling())

    def close(self) -> None:
        if self._profiled:
            self.end_profile()
        self._session = None
        del self.run


def _share_arena() -> None:
    """Make the arena that all programs of this process allocate from."""
    global _arena_is_there
    with _arena:
        if _arena_is_there:
            return
        cpu = onnxruntime.OrtMemoryInfo(
            "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
        )
        # onnxruntime ignores a second one, so an arena of the application's stays.
        onnxruntime.create_and_register_allocator(cpu, onnxruntime.OrtArenaCfg(0, -1, -1, -1))
        _arena_is_there = True


def _usable_cores() -> int:
    """0, onnxruntime's choice (one thread a physical core), unless the process may use only some of the cores."""
    if not hasattr(os, "sched_getaffinity"):
        return 0
    allowed = len(os.sched_getaffinity(0))
    return 0 if allowed == os.cpu_count() else allowed
