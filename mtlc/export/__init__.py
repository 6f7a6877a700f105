"""Export: lowering a `Program` to ONNX, splitting it into programs by task, and writing a verified bundle."""

from __future__ import annotations

from mtlc.export.bundle import export_bundle
from mtlc.export.verify import verify_bundle

__all__ = ["export_bundle", "verify_bundle"]
