"""Reads the options of ``mtlc build``, calls it, and prints what it found for people."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mtlc.commands.options import BUNDLE, DEBUG, JSON, LOG_LEVEL, PATH
from mtlc.commands.output import emit, listener
from mtlc.commands.tables import table

if TYPE_CHECKING:
    from mtlc.results.build import EnginesResult, IrResult


def text(result: EnginesResult | IrResult) -> str:
    """What was built, a line for each program."""
    from mtlc.results.build import IrResult

    if isinstance(result, IrResult):
        return _ir_text(result)
    rows = [
        (
            engine.file, f"{engine.bytes / 1e6:.2f}", f"{engine.build_seconds:.1f}",
            len(engine.in_float32) if result.precision == "fp16" else "-",
        )
        for engine in result.engines
    ]  # fmt: skip
    target = result.gpu or f"GPUs of compute capability {', '.join(result.compute_capabilities)}"
    return "\n".join(
        [
            f"{result.out}: engines for {target}, by {result.module} {result.version} ({result.kind})",
            "",
            table(("engine", "MB", "seconds", "nodes kept in float32"), rows),
        ]
    )


def _ir_text(result: IrResult) -> str:
    shared, own = (f"{size / 1e6:.2f} MB" for size in (result.shared_bytes, result.own_bytes))
    rows = [(program.file, f"{program.bytes / 1e6:.2f}") for program in result.programs]
    head = f"{result.out}: IR by OpenVINO {result.version}"
    return f"{head}; weights: {shared} that the ONNX files read too, {own} of its own\n\n{table(('IR', 'MB'), rows)}"


@click.command()
@BUNDLE
@click.option("--out", type=PATH, required=True, help="Where the bundle with the engines or the IR goes.")
@click.option("--target", type=click.Choice(["tensorrt", "openvino"]), default="tensorrt", show_default=True)
@click.option(
    "--precision", type=click.Choice(["fp32", "fp16", "int8"]), help="Default: fp16 for engines, fp32 for IR."
)
@click.option("--batch", metavar="MIN,OPT,MAX", help="Batch sizes to build for. Default: those of the job's [export].")
@click.option("--timing-cache", type=PATH, help="Keep what TensorRT measures in this file, for the next build.")
@click.option("--workspace", type=click.IntRange(1), metavar="MIB", help="Memory that an engine may work in.")
@JSON
@DEBUG
@LOG_LEVEL
def build(
    bundle: Path,
    out: Path,
    target: str,
    precision: str | None,
    batch: str | None,
    timing_cache: Path | None,
    workspace: int | None,
    as_json: bool,
    log_level: str,
) -> None:
    """Build TensorRT engines of BUNDLE's programs, here and for this GPU, or convert them to OpenVINO IR. Needs no
    torch.
    """
    from mtlc.workflows.build import build as make

    result = make(
        bundle,
        out,
        target,
        precision,
        batch=batch,
        timing_cache=timing_cache,
        workspace_mib=workspace,
        log=listener(log_level)["log"],
    )
    emit(as_json, result, text)
