"""Runs the TensorRT engines that ``mtlc build`` put into a bundle, on the first GPU.

An execution context, its buffers on the GPU and in pinned memory, and a CUDA graph belong together, and to one set of
input shapes: TensorRT does not define what a recorded graph does once its context has changed. As many are made as
calls run at once; the next call with these shapes takes them again, and nothing is allocated.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtlc.errors import Unavailable, UserError
from mtlc.runtime.backends.cuda_driver import Cuda, CudaError
from mtlc.runtime.backends.tensorrt_module import Messages, find_tensorrt, logger
from mtlc.runtime.bundle.manifest import EngineInfo, Manifest
from mtlc.runtime.bundle.open_bundle import read_beside

SHAPES = 4
"""For how many sets of input shapes contexts and buffers are kept; the one not used for longest goes first."""

Shapes = tuple[tuple[int, ...], ...]


class TensorRT:
    """Loads the engine of a program's file. `threads` means nothing to a GPU.

    Raises `Unavailable` without TensorRT, without a driver or a GPU, and for an engine that was built for another GPU
    or by another version.
    """

    name = "tensorrt"
    on_processor = False
    """The GPU computes: how this processor rounds 8-bit products does not matter."""

    def __init__(self) -> None:
        find_tensorrt()
        self._cuda = Cuda()
        self._manifests: dict[Path, Manifest] = {}

    def load(self, file: Path, threads: int | None, profile: str | None) -> _Executable:
        if profile is not None:
            raise UserError("the tensorrt backend writes no profile: use backend='onnxruntime'")
        info = self._engine(file)
        module = find_tensorrt(info.module)
        check_fit(info, module.__version__, self._cuda.gpu, self._cuda.capability)
        listener, messages = logger(module)
        messages.clear()
        self._cuda.use()
        runtime = module.Runtime(listener)
        data = (file.parent / info.file).read_bytes()
        if hasattr(runtime, "get_engine_validity"):  # tensorrt_rtx alone tells before it loads
            validity, _ = runtime.get_engine_validity(data)
            if validity == module.EngineValidity.INVALID:
                raise Unavailable(f"{info.file}: TensorRT says that it cannot run here: {messages.first()}")
        engine = runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise Unavailable(f"{info.file}: cannot be loaded: {messages.first()}")
        return _Executable(module, runtime, engine, self._cuda, messages)

    def _engine(self, file: Path) -> EngineInfo:
        folder = file.parent
        if folder not in self._manifests:
            manifest = read_beside(file)
            if manifest is None:
                raise UserError(
                    f"{file.name}: the tensorrt backend runs the engines of a bundle, which `mtlc build` makes"
                )
            self._manifests[folder] = manifest
        info = self._manifests[folder].engines.get(file.name)
        if info is None:
            raise UserError(f"{file.name}: the bundle has no engine of it: make them with `mtlc build BUNDLE --out …`")
        return info


def check_fit(info: EngineInfo, version: str, gpu: str, capability: str) -> None:
    """Raise `Unavailable` unless an engine can run with this version of its module, on this GPU."""
    again = "build the engines again here: mtlc build BUNDLE --out …"
    if info.version != version:
        raise Unavailable(f"{info.file} was built by {info.module} {info.version}, here is {version}: {again}")
    if capability not in info.compute_capabilities:
        built = ", ".join(info.compute_capabilities)
        raise Unavailable(f"{info.file} is for compute capability {built}, {gpu} has {capability}: {again}")
    if info.gpu is not None and info.gpu != gpu:
        raise Unavailable(f"{info.file} was built for {info.gpu}, here is {gpu}: {again}")


class _Executable:
    def __init__(self, module: Any, runtime: Any, engine: Any, cuda: Cuda, messages: Messages) -> None:
        self._runtime = runtime  # must outlive its engine
        self._engine: Any | None = engine
        self._module, self._cuda, self._messages = module, cuda, messages
        names = [engine.get_tensor_name(place) for place in range(engine.num_io_tensors)]
        reads = module.TensorIOMode.INPUT
        self._inputs = [name for name in names if engine.get_tensor_mode(name) == reads]
        self._outputs = [name for name in names if engine.get_tensor_mode(name) != reads]
        self._profiles: dict[str, Shapes] = {}
        for name in self._inputs:
            shape = tuple(engine.get_tensor_shape(name))
            free = min(shape, default=0) < 0
            profile = engine.get_tensor_profile_shape(name, 0) if free else (shape,) * 3
            self._profiles[name] = tuple(tuple(sizes) for sizes in profile)
        self._lock = threading.Lock()
        self._idle: dict[Shapes, list[_Prepared]] = {}

    def run(self, outputs: Sequence[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        self._cuda.use()
        shapes = tuple(feeds[name].shape for name in self._inputs)
        with self._lock:
            if self._engine is None:
                raise UserError("the engine is closed")
            # Taken out and put back last: the order is that of the last use.
            idle = self._idle.pop(shapes, [])
            prepared = idle.pop() if idle else self._prepare(self._engine, shapes)
            self._idle[shapes] = idle
        try:
            results = prepared.run(outputs, feeds)
        except BaseException:
            prepared.free()
            raise
        with self._lock:
            closed = self._engine is None
            if not closed:
                self._idle.setdefault(shapes, []).append(prepared)
            while len(self._idle) > SHAPES:
                for old in self._idle.pop(next(iter(self._idle))):
                    old.free()
        if closed:
            prepared.free()
        return results

    def _prepare(self, engine: Any, shapes: Shapes) -> _Prepared:
        for name, shape in zip(self._inputs, shapes, strict=True):
            smallest, _, largest = self._profiles[name]
            fits = len(shape) == len(smallest)
            if not fits or any(not a <= n <= b for a, n, b in zip(smallest, shape, largest, strict=True)):
                raise UserError(
                    f"input {name!r} has shape {shape}, the engine takes {smallest} to {largest}: "
                    "build it again with another --batch"
                )
        return _Prepared(self._module, engine, self._cuda, self._messages, self._inputs, self._outputs, shapes)

    def end_profile(self) -> Path | None:
        return None

    def close(self) -> None:
        self._cuda.use()
        with self._lock:
            self._engine = None
            for idle in self._idle.values():
                for prepared in idle:
                    prepared.free()
            self._idle.clear()


class _Buffer:
    """A tensor on the GPU and its copy in pinned memory, which `array` shows."""

    def __init__(self, cuda: Cuda, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.cuda, self.bytes = cuda, math.prod(shape) * dtype.itemsize
        self.host = cuda.allocate_host(max(self.bytes, 1))
        try:
            self.device = cuda.allocate(max(self.bytes, 1))
        except BaseException:
            cuda.free_host(self.host)
            raise
        memory = (ctypes.c_byte * self.bytes).from_address(self.host)
        self.array = np.frombuffer(memoryview(memory), dtype).reshape(shape)

    def free(self) -> None:
        self.cuda.free(self.device)
        self.cuda.free_host(self.host)


class _Prepared:
    """An execution context at fixed input shapes, with its buffers, stream and, from the second run, CUDA graph."""

    def __init__(
        self, module: Any, engine: Any, cuda: Cuda, messages: Messages, inputs: list[str], outputs: list[str],
        shapes: Shapes,
    ) -> None:  # fmt: skip
        self.cuda, self.messages = cuda, messages
        self.inputs, self.runs = inputs, 0
        self.recording: int | None = None
        self.buffers: dict[str, _Buffer] = {}
        self.stream = cuda.stream()
        try:
            self.context = engine.create_execution_context()
            if self.context is None:
                raise CudaError(messages.first())
            for name, shape in zip(inputs, shapes, strict=True):
                if not self.context.set_input_shape(name, shape):
                    raise CudaError(messages.first())
            # Values of a host input take part in shapes: a recording would keep those of its first run.
            hosted = {n for n in inputs if engine.get_tensor_location(n) == module.TensorLocation.HOST}
            for name in (*inputs, *outputs):
                shape = tuple(self.context.get_tensor_shape(name))
                if min(shape, default=0) < 0:
                    raise UserError(f"the engine's {name!r} has a size that depends on the data, which is not run")
                dtype = np.dtype(module.nptype(engine.get_tensor_dtype(name)))
                buffer = self.buffers[name] = _Buffer(cuda, shape, dtype)
                if not self.context.set_tensor_address(name, buffer.host if name in hosted else buffer.device):
                    raise CudaError(messages.first())
            self.copied = [self.buffers[name] for name in inputs if name not in hosted]
            self.recordable = not hosted
        except BaseException:
            self.free()
            raise

    def run(self, outputs: Sequence[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Copy in, compute, copy the asked outputs out. The arrays are the caller's."""
        for name in self.inputs:
            np.copyto(self.buffers[name].array, feeds[name], casting="equiv")
        # The first run allocates and compiles what cannot be recorded.
        if self.runs == 1 and self.recordable:
            self._record()
        if self.recording is not None:
            self.cuda.launch(self.recording, self.stream)
        else:
            self._enqueue()
        asked = [self.buffers[name] for name in outputs]
        for buffer in asked:
            self.cuda.copy_out(buffer.host, buffer.device, buffer.bytes, self.stream)
        self.cuda.wait(self.stream)
        self.runs += 1
        return [buffer.array.copy() for buffer in asked]

    def _enqueue(self) -> None:
        for buffer in self.copied:
            self.cuda.copy_in(buffer.device, buffer.host, buffer.bytes, self.stream)
        if not self.context.execute_async_v3(self.stream):
            raise CudaError(self.messages.first())

    def _record(self) -> None:
        """Record the copies in and the computation; an engine that cannot be recorded is run call by call."""
        capturable = getattr(self.context, "is_stream_capturable", None)
        if capturable is not None and not capturable(self.stream):
            return
        self.cuda.begin_capture(self.stream)
        try:
            try:
                self._enqueue()
            finally:
                recording = self.cuda.end_capture(self.stream)
        except CudaError:
            return
        self.recording = recording

    def free(self) -> None:
        """Free everything, after what a failed run may have left queued. The thread works on the GPU."""
        with contextlib.suppress(CudaError):
            self.cuda.wait(self.stream)
        if self.recording is not None:
            self.cuda.free_recording(self.recording)
        self.context = None
        for buffer in self.buffers.values():
            buffer.free()
        self.cuda.free_stream(self.stream)
