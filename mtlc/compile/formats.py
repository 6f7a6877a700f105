"""What a bundle holds beside its ONNX files, as ``[export] formats`` of a job says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mtlc.job_file import ExportSection


def add_formats(section: ExportSection, report: dict[str, Any]) -> dict[str, Any]:
    """Add them to the bundle that an export has written, in its place; the report of the export with what they add."""
    if "openvino" not in section.formats:
        return report
    from mtlc.export.openvino.ir import write_ir

    path = Path(report["path"])
    added = write_ir(path, path, half=section.half)
    return {**report, "bytes": added["bytes"], "openvino": added}
