"""INT8: a bundle in, the same bundle quantised out, with a limit on what each task may lose."""

from __future__ import annotations

from mtlc.export.quantization.quantize import CALIBRATED, quantize_bundle
from mtlc.export.quantization.targets import CPU, TARGETS

__all__ = ["CALIBRATED", "CPU", "TARGETS", "quantize_bundle"]
