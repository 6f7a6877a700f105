"""Builds what a bundle holds for one backend, TensorRT engines or OpenVINO IR: ``mtlc build``."""

from __future__ import annotations

from pathlib import Path

from mtlc.errors import UserError
from mtlc.log import Log, silent
from mtlc.results.build import EnginesResult, IrResult
from mtlc.runtime.bundle.manifest import Sizes

BATCH = "batch"
TARGETS = ("tensorrt", "openvino")


def build(
    bundle: Path,
    out: Path,
    target: str,
    precision: str | None,
    *,
    batch: str | None = None,
    timing_cache: Path | None = None,
    workspace_mib: int | None = None,
    log: Log = silent,
) -> EnginesResult | IrResult:
    """Build TensorRT engines or OpenVINO IR of all programs of a bundle, into the bundle.

    The work is done by `mtlc.export.tensorrt.engines.build_engines` and `mtlc.export.openvino.ir.write_ir`.

    `target` is one of `TARGETS`. `precision` None is float16 for engines and float32 for IR. `batch` is
    ``"MIN,OPT,MAX"``, None for what the job that made the bundle says. Raises `UserError` or `Unavailable`.
    """
    if target == "openvino":
        given = {"--batch": batch, "--timing-cache": timing_cache, "--workspace": workspace_mib}
        for option, value in given.items():
            if value is not None:
                raise UserError(f"{option}: is for --target tensorrt")
        if precision == "int8":
            raise UserError("--precision int8: an IR is as its bundle: quantise that with mtlc quantize")
        from mtlc.export.openvino.ir import write_ir

        return IrResult.model_validate(write_ir(bundle, out, half=precision == "fp16", log=log))
    from mtlc.export.tensorrt.engines import build_engines

    made = build_engines(
        bundle, out, precision or "fp16",
        dimensions=None if batch is None else {BATCH: _sizes(batch)}, timing_cache=timing_cache,
        workspace_bytes=None if workspace_mib is None else workspace_mib << 20, log=log,
    )  # fmt: skip
    return EnginesResult.model_validate(made)


def _sizes(text: str) -> Sizes:
    parts = text.split(",")
    if len(parts) == 3 and all(part.strip().isdecimal() for part in parts):
        smallest, usual, largest = (int(part) for part in parts)
        if 1 <= smallest <= usual <= largest:
            return Sizes(smallest, usual, largest)
    raise UserError(f"--batch {text}: must be three rising sizes, such as 1,1,8: smallest, usual and largest")
