"""Reads the options of ``mtlc verify``, calls it, and prints what it found for people."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mtlc.commands.options import BUNDLE, DEBUG, JSON, LOG_LEVEL, PATH, SET
from mtlc.commands.output import emit
from mtlc.commands.overridden_job import with_overrides
from mtlc.commands.tables import count, table
from mtlc.errors import BudgetMissed, UserError, VerificationError

if TYPE_CHECKING:
    from mtlc.results.verify import ComparedSide, PairResult, VerifyResult


def two_text(result: PairResult) -> str:
    """Who was compared on what, and a line for each task: differences, and both metrics if there was a job, with how
    far theirs is a matter of chance.
    """
    names = [_side(result.first), _side(result.reference)]
    tolerance = "none" if result.tolerance is None else f"{result.tolerance:.1e}"
    lines = [
        f"measured: {names[0]} against {names[1]}",
        f"{result.samples} samples, {result.inputs}; tolerance {tolerance}",
        "",
    ]
    measured = any(row.metric is not None for row in result.tasks.values())
    header = ["task", "max abs", "max rel", "mean rel"]
    columns = ["metric", "reference", "value", "difference", "value - reference, 95 %", "unit", "limit", ""]
    header += columns if measured else []
    rows = []
    for task, row in result.tasks.items():
        cells = [task, *(_number(value, ".1e") for value in (row.max_abs, row.max_rel, row.mean_rel))]
        if measured:
            verdict = {None: "", True: "kept by chance" if row.by_chance else "kept", False: "MISSED"}[row.within]
            interval = "-" if row.change_interval is None else row.change_interval.between()
            values = (
                _number(row.reference, ".5g"),
                _number(row.value, ".5g"),
                _number(row.difference, "+.2g"),
            )
            cells += [row.metric or "", *values, interval, row.unit, row.limit or "-", verdict]
        rows.append(cells)
    lines.append(table(header, rows))
    lines += [
        f"{task}: left out {row.near_ties} samples with tokens whose experts are nearly tied"
        for task, row in result.tasks.items()
        if row.near_ties
    ]
    lines += [f"{task}: no interval: {row.no_interval}" for task, row in result.tasks.items() if row.no_interval]
    lines += [f"by chance: {line}" for line in result.by_chance]
    lines += [f"failed: {line}" for line in result.failed]
    lines += [f"missed: {line}" for line in result.missed]
    return "\n".join([*lines, *(f"note: {note}" for note in result.notes)])


def _side(side: ComparedSide) -> str:
    named = "" if side.configuration is None else f"{side.configuration}, "
    return f"{side.bundle} ({named}{side.precision}, {side.backend} {side.version or ''}".rstrip() + ")"


def _number(value: float | None, how: str) -> str:
    return "-" if value is None else format(value, how)


def text(result: VerifyResult) -> str:
    """What was checked of a bundle."""
    lines = [f"{result.bundle}: {result.files} files, {count(result.bytes, 'B')}, whole and safe to open"]
    for task, found in (result.compared or {}).items():
        worst = max(error["max_rel"] for error in found.values() if isinstance(error, Mapping))
        lines.append(f"{task}: differs from the checkpoint by at most {worst:.1e} of the output's largest value")
        if found.get("vacuous"):
            lines.append(f"  but the check says little: {found['vacuous']}")
    return "\n".join(lines)


@click.command()
@BUNDLE
@click.argument("other", type=PATH, required=False)
@click.option("--against", type=PATH, help="A checkpoint folder whose outputs the bundle must give.")
@click.option("--backend", help="What BUNDLE runs in. Default: onnxruntime.")
@click.option("--against-backend", help="What OTHER runs in, or BUNDLE a second time. Default: as BUNDLE; onnxruntime.")
@click.option("--configuration", metavar="NAME", help="What BUNDLE runs in, and OTHER if it has several widths too.")
@click.option("--job", type=PATH, help="The job: its data, metrics and limits. Default: random inputs.")
@SET
@click.option("--split", type=click.Choice(["calibration", "validation"]), help="Default: calibration.")
@click.option("--samples", type=click.IntRange(1), help="Samples to compare OTHER or a backend on. Default: all.")
@click.option("--tolerance", type=click.FloatRange(0, 1, min_open=True), help="Largest relative difference.")
@JSON
@DEBUG
@LOG_LEVEL
def verify(
    bundle: Path,
    other: Path | None,
    against: Path | None,
    backend: str | None,
    against_backend: str | None,
    configuration: str | None,
    job: Path | None,
    overrides: tuple[str, ...],
    split: str | None,
    samples: int | None,
    tolerance: float | None,
    as_json: bool,
    log_level: str,
) -> None:
    """Check BUNDLE: its files; against a checkpoint; or against OTHER, or itself in another backend, task by task."""
    from mtlc.workflows.verify import verify as check
    from mtlc.workflows.verify_two import verify_pair

    data = with_overrides(job, overrides)
    if (other, backend, against_backend, configuration, split, samples) == (None,) * 6:
        emit(as_json, check(bundle, against, data, tolerance), text)
        return
    if against is not None:
        raise UserError(
            "--against compares with a checkpoint: leave out OTHER, backends, --configuration, --split and --samples"
        )
    pair = verify_pair(
        bundle, other, backend=backend, against_backend=against_backend, configuration=configuration, job=data,
        split=split, samples=samples, tolerance=tolerance,
    )  # fmt: skip
    emit(as_json, pair, two_text)
    if pair.failed:
        raise VerificationError("; ".join(pair.failed))
    if pair.missed:
        raise BudgetMissed("; ".join(pair.missed))
