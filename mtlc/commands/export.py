"""Reads the options of ``mtlc export``, calls it, and prints what was written for people."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mtlc.commands.fpga import ARRAY, DATA_JOB, TASK
from mtlc.commands.options import DEBUG, JSON, LOG_LEVEL, PATH, SET
from mtlc.commands.output import emit, listener
from mtlc.commands.overridden_job import target_with_overrides
from mtlc.commands.tables import count, decibels, table

if TYPE_CHECKING:
    from mtlc.results.rtl import FpgaExport


def text(result: FpgaExport | Mapping[str, Any]) -> str:
    """What was written, and how well it was verified."""
    return bundle_text(result) if isinstance(result, Mapping) else experts_text(result)


def bundle_text(result: Mapping[str, Any]) -> str:
    """A bundle: its size, its programs, and how many figures of its outputs were compared."""
    checked, programs = len(result["verification"]), len(result["programs"])
    return f"{result['path']}  {count(result['bytes'], 'B')}, {programs} programs, verified ({checked} figures)"


def experts_text(result: FpgaExport) -> str:
    """Experts for an FPGA: a row for each layer, and what INT8 does to the task."""
    rows, columns = result.array
    lines = [
        f"{result.path}  {count(result.bytes, 'B')}: the experts of {result.task} in INT8 for an array of "
        f"{rows}x{columns}",
        "",
        table(
            ("layer", "experts", "of", "weights", "places", "signal to noise, dB"),
            [
                (
                    one.layer, one.experts, one.routed, count(one.weights_bytes, "B"), one.places,
                    decibels(one.signal_to_quantisation_noise_db),
                )
                for one in result.layers
            ],
        ),
    ]  # fmt: skip
    metric = result.metric
    if metric is not None:
        lines += [
            "",
            f"{metric.name} on {metric.samples} validation samples: {metric.float_experts:.5g} with float experts, "
            f"{metric.int8_experts:.5g} with INT8 experts (measured{', ' + metric.unit if metric.unit else ''})",
        ]
    return "\n".join(lines)


@click.command()
@click.argument("target", type=PATH)
@click.option("--format", "form", type=click.Choice(("onnx", "fpga")), default="onnx", show_default=True)
@click.option("--out", type=PATH, required=True, help="The folder to write.")
@DATA_JOB
@SET
@TASK
@click.option(
    "--layer", "layers", multiple=True, metavar="PATH", help="A layer of experts; may be given again. Default: all."
)
@ARRAY
@click.option("--samples", type=click.IntRange(1), help="Samples to calibrate on. Default: 32.")
@click.option("--floor-db", type=float, help="The least signal to quantisation noise of a layer. Default: 20.")
@click.option("--no-metric", is_flag=True, help="Do not measure the task with INT8 experts.")
@JSON
@DEBUG
@LOG_LEVEL
def export(
    target: Path, form: str, out: Path, job: Path | None, overrides: tuple[str, ...], as_json: bool, log_level: str,
    **options: Any,
) -> None:  # fmt: skip
    """Write the network of TARGET, a job or a checkpoint (with --job), for what runs it: a bundle, or an FPGA's
    experts.

    Options from --task on are those of --format fpga: the experts of one task in INT8, with a recorded frame to test
    with.
    """
    from mtlc.workflows.export import FpgaOptions
    from mtlc.workflows.export import export as write

    network, job_of = target_with_overrides(target, job, overrides)
    result = write(network, out, form, job=job_of, fpga=FpgaOptions(**options), log=listener(log_level)["log"])
    emit(as_json, result, text)
