"""Quantises bundles for tests with onnxruntime: a program is calibrated on what the bundle feeds it."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from mtlc.runtime import Session
from mtlc.runtime.backends.onnxruntime_backend import OnnxRuntime

Feeds = list[dict[str, np.ndarray]]


class _Reader(CalibrationDataReader):
    def __init__(self, feeds: Feeds) -> None:
        self._left = iter(feeds)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._left, None)


def quantise(file: Path, target: Path, feeds: Feeds, symmetric: bool = True) -> onnx.ModelProto:
    """Q/DQ around Conv, Gemm, MatMul: int8, int32 biases; not `symmetric`: uint8 activations, any zero point."""
    plain = target.with_suffix(".plain.onnx")
    onnx.save(onnx.load(file), plain)
    logging.disable(logging.WARNING)  # it advises preprocessing that exported graphs do not need
    try:
        quantize_static(
            plain, target, _Reader(feeds), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8, weight_type=QuantType.QInt8,
            op_types_to_quantize=["Conv", "Gemm", "MatMul"],
            extra_options={"ActivationSymmetric": symmetric, "WeightSymmetric": True},
        )  # fmt: skip
    finally:
        logging.disable(logging.NOTSET)
        plain.unlink()
    return onnx.load(target)


def quantise_bundle(bundle: Path, target: Path, inputs: Sequence[dict[str, np.ndarray]]) -> Path:
    """The bundle with every program quantised that one of its configurations runs on `inputs`."""
    seen = _feeds(bundle, inputs)
    shutil.copytree(bundle, target)
    manifest = json.loads((target / "manifest.json").read_text())
    for name, feeds in seen.items():
        quantise(bundle / name, target / name, feeds)
        data = (target / name).read_bytes()
        manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (target / "manifest.json").write_text(json.dumps(manifest))
    return target


def _feeds(bundle: Path, inputs: Sequence[dict[str, np.ndarray]]) -> dict[str, Feeds]:
    """What each program's file is fed when the bundle runs on `inputs`, in all of its configurations."""
    seen: dict[str, Feeds] = {}

    class Listening(OnnxRuntime):
        def load(self, file: Path, threads: int | None, profile: str | None) -> Any:
            loaded = super().load(file, threads, profile)
            run = loaded.run

            def listen(outputs: Sequence[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
                seen.setdefault(file.name, []).append(dict(feeds))
                return run(outputs, feeds)

            loaded.run = listen
            return loaded

    with Session(bundle) as session:
        session._backend = Listening()
        for name in session.configurations:
            session.configure(name)
            for one in inputs:
                session.run(one)
    return seen
