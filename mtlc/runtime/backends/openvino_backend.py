"""Runs programs in OpenVINO, on the CPU, in the precision of the file. One inference request per thread."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

import mtlc
from mtlc.extras import missing_extra
from mtlc.runtime.backends.compiled_programs import CompiledPrograms
from mtlc.runtime.backends.find_backend import Executable
from mtlc.runtime.bundle.open_bundle import read_beside
from mtlc.runtime.bundle.payload_checks import MANIFEST
from mtlc.telemetry import switch_off_openvino

switch_off_openvino()
try:
    import openvino

    from mtlc.runtime.backends import openvino_graph
    from mtlc.runtime.backends.openvino_graph import refuse_antialias, resizes_to_products
except ImportError as _error:
    raise missing_extra("openvino") from _error

Shapes = dict[str, tuple[int, ...]]


class OpenVINO:
    """Loads the IR of a program where the bundle has it, else its ONNX file.

    With `cache`, a folder of the user's, what OpenVINO compiled is kept there, for this bundle, machine and version.
    With `batch`, the size of every batch, programs are compiled for shapes that are known: what OpenVINO works out
    about shapes in every call otherwise takes it some microseconds for every operator.
    """

    name = "openvino"

    def __init__(self) -> None:
        self.cache: Path | None = None
        self.batch: int | None = None
        self._core = openvino.Core()
        self._ir: dict[Path, tuple[Path, Path]] | None = None

    def load(self, file: Path, threads: int | None, profile: str | None) -> Executable:
        if self._ir is None:
            self._ir = _ir_files(file)
        model = self._core.read_model(*self._ir.get(file, (file,)))
        return self.compile(model, threads, profile, None if self.cache is None else _content(file))

    def compile(
        self, model: Any, threads: int | None, profile: str | None = None, content: str | None = None
    ) -> Executable:
        """`model` is an ONNX model as bytes, or what OpenVINO read before, which is changed.

        Where it has a name for its `content`, what is compiled is kept in the cache, if there is one.
        """
        # OpenVINO may compute float32 graphs in bfloat16 on its own where the processor has it.
        options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        if threads is not None:
            options["INFERENCE_NUM_THREADS"] = threads
        if profile is not None:
            options["PERF_COUNT"] = True
        if isinstance(model, bytes):
            model = self._core.read_model(model)
        refuse_antialias(model)
        resizes_to_products(model)
        compile_model = partial(self._compiled, options=options, content=None if profile is not None else content)
        if self.batch is None:
            return _Executable(compile_model(model), profile)
        return _FixedExecutable(model, lambda fixed: _Executable(compile_model(fixed), profile), self.batch)

    def _compiled(self, model: Any, options: dict[str, Any], content: str | None) -> Any:
        """The model compiled for the CPU, or what was compiled of it before and is as it was written."""
        if self.cache is None or content is None:
            return self._core.compile_model(model, "CPU", options)
        kept, key = CompiledPrograms(self.cache), self._key(model, options, content)
        blob = kept.read(key)
        if blob is not None:
            with contextlib.suppress(RuntimeError):  # it is whole, but this OpenVINO does not take it: compile
                return self._core.import_model(blob, "CPU", options)
        compiled = self._core.compile_model(model, "CPU", options)
        kept.write(key, compiled.export_model().getvalue())
        return compiled

    def _key(self, model: Any, options: dict[str, Any], content: str) -> str:
        processor = [self._core.get_property("CPU", name) for name in ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")]
        shapes = {port.any_name: str(port.partial_shape) for port in model.inputs}
        return CompiledPrograms.key(
            content=content, shapes=shapes, options=options, processor=processor, cores=os.cpu_count(),
            openvino=openvino.get_version(), mtlc=mtlc.__version__, rewritten=_rewriting(),
        )  # fmt: skip


@cache
def _rewriting() -> str:
    """The code that changes graphs before they are compiled, which a program follows from."""
    return hashlib.sha256(Path(openvino_graph.__file__).read_bytes()).hexdigest()


def _content(file: Path) -> str | None:
    """A name for all that a program of a bundle holds, its weights too; None for a file that is in no bundle.

    The bundle's manifest, which has the checksums of all its files, and which of them the program is.
    """
    manifest = file.parent / MANIFEST
    return f"{hashlib.sha256(manifest.read_bytes()).hexdigest()}/{file.name}" if manifest.is_file() else None


def _ir_files(file: Path) -> dict[Path, tuple[Path, Path]]:
    """The IR of each program of the bundle that `file` is in, and the weights that it reads, by the program's file."""
    manifest = read_beside(file)
    if manifest is None or manifest.openvino is None:
        return {}
    folder, ir = file.parent, manifest.openvino
    return {folder / program: (folder / xml, folder / ir.weights) for program, xml in ir.files.items()}


class _Executable:
    def __init__(self, compiled: Any, profile: str | None) -> None:
        self._compiled = compiled
        self._requests = threading.local()
        self._profile = profile
        self._calls: list[list[tuple[str, str, str, float]]] = []

    def run(self, outputs: Sequence[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        request = getattr(self._requests, "value", None)
        if request is None:
            request = self._requests.value = self._compiled.create_infer_request()
        # Tensors that share the arrays' memory: OpenVINO's Python layer takes longer to copy an input than a small
        # program takes to run. The request holds them until the next call, so they are kept that long.
        arrays = [array if array.flags.carray else np.array(array, order="C") for array in feeds.values()]
        self._requests.arrays = arrays
        for name, array in zip(feeds, arrays, strict=True):
            request.set_tensor(name, openvino.Tensor(array, shared_memory=True))
        request.infer(share_outputs=True)
        if self._profile is not None:
            self._calls.append(_kernels(request))
        return [np.array(request.get_tensor(name).data) for name in outputs]

    def end_profile(self) -> Path | None:
        """JSON: ``calls``, each a list of [name, kind, kernel, µs], and ``layers``, the nodes in each kernel."""
        profile, self._profile = self._profile, None
        if profile is None:
            return None
        layers = {
            node.friendly_name: node.rt_info["originalLayersNames"].astype(str)
            for node in self._compiled.get_runtime_model().get_ordered_ops()
            if "originalLayersNames" in node.rt_info
        }
        path = Path(f"{profile}.openvino.json")
        path.write_text(json.dumps({"calls": self._calls, "layers": layers}))
        return path

    def close(self) -> None:
        self.end_profile()
        self._compiled = None
        self._requests = threading.local()


class _FixedExecutable:
    """A program compiled for one batch, and for any batch once inputs differ, such as an expert's tokens."""

    def __init__(self, model: Any, compiled: Callable[[Any], _Executable], batch: int) -> None:
        self._model, self._compiled, self._lock = model, compiled, threading.Lock()
        self._fixed: tuple[Shapes, _Executable] | None = None
        self._any: _Executable | None = None
        # Which dimension is the batch, a graph does not say. Mostly it is the first; where not, the first call tells.
        with contextlib.suppress(RuntimeError):
            self._fix({port.any_name: _with_batch(port.partial_shape, batch) for port in model.inputs})

    def run(self, outputs: Sequence[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        return self._for({name: array.shape for name, array in feeds.items()}).run(outputs, feeds)

    def end_profile(self) -> Path | None:
        """The profile of the program that ran last to be compiled."""
        with self._lock:
            made = self._any or (None if self._fixed is None else self._fixed[1])
            return None if made is None else made.end_profile()

    def close(self) -> None:
        with self._lock:
            for made in (self._any, None if self._fixed is None else self._fixed[1]):
                if made is not None:
                    made.close()

    def _for(self, shapes: Shapes) -> _Executable:
        fixed = self._fixed
        if fixed is None:
            with self._lock:
                fixed = self._fixed or self._fix(shapes)
        if fixed[0] == shapes:
            return fixed[1]
        with self._lock:
            if self._any is None:
                self._any = self._compiled(self._model)
            return self._any

    def _fix(self, shapes: Shapes) -> tuple[Shapes, _Executable]:
        model = self._model.clone()
        model.reshape({name: openvino.PartialShape(list(shape)) for name, shape in shapes.items()})
        self._fixed = shapes, self._compiled(model)
        return self._fixed


def _with_batch(shape: Any, batch: int) -> tuple[int, ...]:
    sizes = [-1 if size.is_dynamic else size.get_length() for size in shape]
    return (batch, *sizes[1:]) if sizes and sizes[0] == -1 else tuple(sizes)


def _kernels(request: Any) -> list[tuple[str, str, str, float]]:
    """The kernels of the request's last call; those that were fused into others did not run."""
    return [
        (info.node_name, info.node_type, info.exec_type, info.real_time.total_seconds() * 1e6)
        for info in request.profiling_info
        if info.status == openvino.ProfilingInfo.Status.EXECUTED
    ]
