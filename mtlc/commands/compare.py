"""Reads the options of ``mtlc compare``, calls it, and prints what it found for people."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mtlc.commands.options import BACKEND, DEBUG, JSON, LOG_LEVEL, PATH, ROUNDS, SET, WAIT_QUIET
from mtlc.commands.output import emit, listener
from mtlc.commands.overridden_job import with_overrides
from mtlc.commands.profile import costs
from mtlc.commands.tables import NETWORK, count, table

if TYPE_CHECKING:
    from mtlc.results.compare import Comparison, LayerCost, TaskPair
    from mtlc.results.verify import OutputDifference

_SLOWEST = 20


def text(result: Comparison) -> str:
    """Tasks, costs, latency, the slowest layers, how far outputs agree, and what else differs."""
    lines = [f"A  {result.A.bundle}", f"B  {result.B.bundle}"]
    lines += ["", table(("task", "metric", "A", "B", "change"), [_task(*entry) for entry in result.tasks.items()])]
    old, new = result.cost.A, result.cost.B
    rows = [
        (name, count(before), count(after), _left(before, after))
        for name, before, after in (
            ("MACs (modelled)", old.macs, new.macs),
            ("parameters (modelled)", old.parameters, new.parameters),
            ("bytes", old.bytes, new.bytes),
        )
    ]
    lines += ["", table(("cost", "A", "B", "B of A"), rows)]
    latency = result.latency
    how = "in turns" if latency.in_turns else "one after the other"
    backend = latency.backend
    setting = f"{latency.threads} thread(s), batch {latency.batch}, {latency.rounds} rounds, {how}"
    lines += ["", f"measured on {latency.device.cpu}, {backend.name} {backend.version or ''}, {setting}"]
    lines += costs(latency, {"A": result.memory.A, "B": result.memory.B})
    slowest = sorted(result.layers, key=lambda row: -max(_ms(row.A), _ms(row.B)))[:_SLOWEST]
    layers = [(row.name or NETWORK, _macs(row.A), _macs(row.B), _shown_ms(row.A), _shown_ms(row.B)) for row in slowest]
    lines += ["", table(("layer", "MACs A", "MACs B", "ms A", "ms B"), layers)]
    if len(result.layers) > len(slowest):
        lines.append(f"the {len(slowest)} slowest of {len(result.layers)} layers; --json has all")
    if result.agreement is not None:
        lines += ["", *(_agreement(task, found) for task, found in result.agreement.items())]
        lines.append(f"(inputs: {result.agreement_inputs})")
    if result.differs:
        said = [(row.what, row.a or "-", row.b or "-") for row in result.differs]
        lines += ["", table(("differs", "A", "B"), said)]
    return "\n".join([*lines, *(["", *(f"note: {note}" for note in result.notes)] if result.notes else [])])


def _task(name: str, found: TaskPair) -> tuple[str, ...]:
    sides = (found.A, found.B)
    metric = next((f"{side.metric} {side.unit}".strip() for side in sides if side), "")
    shown = ("absent" if side is None else "-" if side.after is None else f"{side.after:.4g}" for side in sides)
    return name, metric or "-", *shown, "-" if found.change is None else f"{100 * found.change:+.2f} %"


def _agreement(task: str, found: OutputDifference) -> str:
    if found.max_rel is None:
        return f"{task}: outputs do not compare: {found.why}"
    return f"{task}: outputs differ by at most {found.max_rel:.1e} of A's largest value"


def _left(old: float | None, new: float | None) -> str:
    return "-" if not old or new is None else f"{100 * new / old:.1f} %"


def _ms(side: LayerCost | None) -> float:
    return 0.0 if side is None or side.ms is None else side.ms


def _shown_ms(side: LayerCost | None) -> str:
    return "-" if side is None or side.ms is None else f"{side.ms:.3f}"


def _macs(side: LayerCost | None) -> str:
    return "-" if side is None or side.macs is None else count(side.macs)


@click.command()
@click.argument("a", type=PATH)
@click.argument("b", type=PATH)
@click.option("--job", type=PATH, help="The job whose calibration samples outputs are compared on. Default: random.")
@SET
@click.option("--batch", type=click.IntRange(1, 4096), default=1, show_default=True)
@ROUNDS
@click.option("--threads", type=click.IntRange(1, 1024), default=1, show_default=True, help="Threads per program.")
@click.option("--html", type=PATH, help="Also write the comparison as a page to this file.")
@BACKEND
@WAIT_QUIET
@JSON
@DEBUG
@LOG_LEVEL
def compare(
    a: Path,
    b: Path,
    job: Path | None,
    overrides: tuple[str, ...],
    batch: int,
    rounds: int | None,
    threads: int,
    html: Path | None,
    backend: str,
    wait_quiet: bool,
    as_json: bool,
    log_level: str,
) -> None:
    """Put A and B side by side: bundles, or the folders of runs (needs onnx)."""
    from mtlc.workflows.compare import compare as put

    data = with_overrides(job, overrides)
    result = put(
        a, b, job=data, batch=batch, rounds=rounds, threads=threads, backend=backend, html=html, wait_quiet=wait_quiet,
        log=listener(log_level)["log"],
    )  # fmt: skip
    emit(as_json, result, text)
