"""Exports a `Program`: lowers it to ONNX, splits it into programs by task, and writes a verified bundle.

Importing this package imports no torch: engines are built on devices that have none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtlc.lazy import callable_package, lazy_names

if TYPE_CHECKING:
    from mtlc.export.bundle.verify import verify_bundle
    from mtlc.export.bundle.write_bundle import export_bundle

_HOMES = {"export_bundle": ".bundle.write_bundle", "verify_bundle": ".bundle.verify"}

__all__ = ["export_bundle", "verify_bundle"]


__getattr__ = lazy_names(__name__, _HOMES)
callable_package(__name__, "mtlc.workflows.python_verbs:export")
