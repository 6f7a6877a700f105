"""Reads the options of ``mtlc quantize``, calls it, and prints what it found for people."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mtlc.commands.options import BUNDLE, DEBUG, JSON, LOG_LEVEL, PATH, SET
from mtlc.commands.output import emit, listener
from mtlc.commands.tables import count, table
from mtlc.errors import BudgetMissed

if TYPE_CHECKING:
    from mtlc.results.quantize import Int8Metrics, Int8Task, QuantizeResult


def text(result: QuantizeResult) -> str:
    """What each task pays for INT8, and which operators stayed in floating point for whose sake."""
    tasks = result.tasks
    heads = ("task", "metric", "float", "int8", "change", "int8 - float, 95 %", "unit", "limit", "")
    if result.configurations:
        rows = [
            (configuration, *_row(task, tasks[point]))
            for configuration, points in result.configurations.items()
            for task, point in points.items()
        ]
        lines = [table(("configuration", *heads), rows)]
        verdicts = [task.validation.within for task in tasks.values()]
        kept, limited = verdicts.count(True), len(verdicts) - verdicts.count(None)
        lines += ["", f"{kept} of {limited} limits kept: of each task, with each encoder and each width of its decoder"]
    else:
        lines = [table(heads, [_row(name, task) for name, task in tasks.items()])]
    operators = result.operators
    if operators.float_:
        given = [
            (row.program, row.operator, row.task, _number(row.before), _number(row.after)) for row in operators.float_
        ]
        lines += ["", table(("program", "back in floating point", "for", "before", "after"), given)]
    lines += [f"not quantised: {row.operator} ({row.why})" for row in operators.excluded]
    lines += [
        "",
        f"{operators.int8} operators in INT8 for {result.target}, {result.macs_int8:.1%} of the MACs; "
        f"{count(result.bytes_before, 'B')} to {count(result.bytes, 'B')}; metrics measured in {result.backend}",
    ]
    lines += [f"missed: {line}" for line in result.missed]
    return "\n".join([*lines, f"bundle: {result.path}"])


def _row(name: str, task: Int8Task) -> tuple[str, ...]:
    found = task.validation
    verdict = {None: "", True: "kept", False: "MISSED"}[found.within]
    numbers = (f"{found.float_:.4g}", f"{found.int8:.4g}", f"{_change(found):+.2f}%")
    interval = "-" if found.change_interval is None else found.change_interval.between()
    return (name, task.metric, *numbers, interval, task.unit, task.limit or "-", verdict)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.5g}"


def _change(found: Int8Metrics) -> float:
    return 100 * (found.int8 / found.float_ - 1) if found.float_ and found.int8 is not None else 0.0


@click.command()
@BUNDLE
@click.option("--job", type=PATH, required=True, help="The job: its data, metrics and limits, and its [quantize].")
@SET
@click.option("--out", type=PATH, required=True, help="The INT8 bundle: a folder, or one file that ends in .mtlc.")
@click.option("--target", help="cpu (this machine), x86, x86-vnni, arm or tensorrt. Default: the job's, or cpu.")
@click.option("--against", type=PATH, help="The bundle that limits are measured against. Default: BUNDLE.")
@click.option("--html", type=PATH, help="Also write what was found as a page to this file.")
@click.option(
    "--backend", help="onnxruntime or openvino: what limits are measured in. Default: the job's, or onnxruntime."
)
@JSON
@DEBUG
@LOG_LEVEL
def quantize(
    bundle: Path,
    job: Path,
    overrides: tuple[str, ...],
    out: Path,
    target: str | None,
    against: Path | None,
    html: Path | None,
    backend: str | None,
    as_json: bool,
    log_level: str,
) -> None:
    """Write BUNDLE in INT8, with floating point left where a task's limit needs it."""
    from mtlc.job.job import load_job
    from mtlc.workflows.quantize import quantize as convert

    result = convert(
        bundle, load_job(job, overrides), out, target, against, backend, html=html, log=listener(log_level)["log"]
    )
    emit(as_json, result, text)
    if result.missed:
        raise BudgetMissed("; ".join(result.missed))
