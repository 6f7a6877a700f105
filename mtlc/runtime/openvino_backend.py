"""The OpenVINO backend: CPU, in the precision of the file. One inference request per thread."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtlc.errors import UserError, missing_extra

try:
    import openvino
except ImportError as _error:
    raise missing_extra("openvino", "openvino") from _error


class OpenVINO:
    """Loads ONNX files."""

    name = "openvino"

    def load(self, file: Path, threads: int | None, profile: str | None) -> _Executable:
        if profile is not None:
            raise UserError("the openvino backend writes no profile: use backend='onnxruntime'")
        # OpenVINO may compute float32 graphs in bfloat16 on its own where the processor has it.
        options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        if threads is not None:
            options["INFERENCE_NUM_THREADS"] = threads
        return _Executable(openvino.Core().compile_model(str(file), "CPU", options))


class _Executable:
    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self._requests = threading.local()

    def run(self, outputs: Sequence[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        request = getattr(self._requests, "value", None)
        if request is None:
            request = self._requests.value = self._compiled.create_infer_request()
        request.infer(feeds, share_inputs=False)
        return [np.array(request.get_tensor(name).data) for name in outputs]

    def end_profile(self) -> Path | None:
        return None

    def close(self) -> None:
        self._compiled = None
        self._requests = threading.local()
