"""Quantises a bundle to INT8, with a limit on what each task may lose."""

from __future__ import annotations

from mtlc.export.quantization.execution import ONNXRUNTIME
from mtlc.export.quantization.quantize import CALIBRATED, quantize_bundle
from mtlc.export.quantization.request import check_request
from mtlc.export.quantization.targets import CPU, TARGETS

__all__ = ["CALIBRATED", "CPU", "ONNXRUNTIME", "TARGETS", "check_request", "quantize_bundle"]
