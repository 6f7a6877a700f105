"""The OpenVINO backend: CPU, in the precision of the file. One inference request per thread."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtlc.errors import missing_extra
from mtlc.runtime.bundle import read_beside

try:
    import openvino
except ImportError as _error:
    raise missing_extra("openvino", "openvino") from _error


class OpenVINO:
    """Loads the IR of a program where the bundle has it, else its ONNX file.

    With `cache`, a folder of the user's, OpenVINO keeps what it compiled there, for this machine and version.
    """

    name = "openvino"

    def __init__(self) -> None:
        self.cache: Path | None = None
        self._core = openvino.Core()
        self._ir: dict[Path, tuple[Path, Path]] | None = None

    def load(self, file: Path, threads: int | None, profile: str | None) -> _Executable:
        if self._ir is None:
            self._ir = _ir_files(file)
        if file not in self._ir:
            return self.compile(str(file), threads, profile)
        xml, weights = self._ir[file]
        return self.compile(self._core.read_model(xml, weights), threads, profile)

    def compile(self, model: Any, threads: int | None, profile: str | None = None) -> _Executable:
        """`model` is the name of a file, an ONNX model as bytes, or what OpenVINO read before."""
        # OpenVINO may compute float32 graphs in bfloat16 on its own where the processor has it.
        options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        if threads is not None:
            options["INFERENCE_NUM_THREADS"] = threads
        if profile is not None:
            options["PERF_COUNT"] = True
        if self.cache is not None:
            options["CACHE_DIR"] = str(self.cache)
        if isinstance(model, bytes):
            model = self._core.read_model(model)
        return _Executable(self._core.compile_model(model, "CPU", options), profile)


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
        # Tensors that share the arrays' memory: OpenVINO's Python layer takes longer to copy an input than a small program
        # takes to run. The request holds them until the next call, so they are kept that long.
        arrays = [array if array.flags.carray else np.array(array, order="C") for array in feeds.values()]
        self._requests.arrays = arrays
        for name, array in zip(feeds, arrays, strict=True):
            request.set_tensor(name, openvino.Tensor(array, shared_memory=True))
        request.infer(share_outputs=True)
        if self._profile is not None:
            self._calls.append(_kernels(request))
        return [np.array(request.get_tensor(name).data) for name in outputs]

    def end_profile(self) -> Path | None:
        """JSON: ``calls``, for each its kernels as [name, kind, kernel, µs], and ``layers``, the nodes in each kernel."""
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


def _kernels(request: Any) -> list[tuple[str, str, str, float]]:
    """The kernels of the request's last call; those that were fused into others did not run."""
    return [
        (info.node_name, info.node_type, info.exec_type, info.real_time.total_seconds() * 1e6)
        for info in request.profiling_info
        if info.status == openvino.ProfilingInfo.Status.EXECUTED
    ]
