"""Reads the options of ``mtlc sweep``, calls it, and prints what it found for people."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mtlc.commands.options import COMPUTE_DEVICE, DEBUG, JOB, JSON, LOG_LEVEL, PATH, RAY
from mtlc.commands.output import emit, listener
from mtlc.commands.tables import table
from mtlc.errors import BudgetMissed, MtlcError

if TYPE_CHECKING:
    from mtlc.results.sweep import Spread, SweepResult


def text(result: SweepResult) -> str:
    """Each setting over its seeds, what failed, and the best run."""
    from mtlc.job.grid import short_names
    from mtlc.results.sweep import unlearned_line

    names = short_names(list(result.grid))
    varied = [key for key in result.grid if key != "seed"]
    head = [*(names[key] for key in varied), "seeds", "kept", "Δm, %", "MACs, %", *result.tasks]
    rows = [
        (
            *(str(group.settings.get(key, "-")) for key in varied),
            f"{group.seeds} of {group.seeds + group.failed}" if group.failed else str(group.seeds),
            str(group.kept), _spread(group.delta_m, 1, "+.2f"), _spread(group.macs_share, 100, ".1f"),
            *(_spread(group.metrics.get(task), 1, ".4g") for task in result.tasks),
        )
        for group in result.groups
    ]  # fmt: skip
    lines = [f"warning: {unlearned_line(result.unlearned)}", ""] if result.unlearned else []
    lines.append(table(head, rows))
    failed = [cell for cell in result.cells if cell.state == "failed"]
    lines += [""] if failed else []
    lines += [
        f"FAILED: {' '.join(_told(cell.settings))} seed={cell.seed}: {cell.error}".replace("  ", " ") for cell in failed
    ]
    if result.best is None:
        lines += ["", "best: no run kept the budget and every limit"]
    else:
        cell = result.cells[result.best]
        told = " ".join([*_told(cell.settings), f"seed={cell.seed}"])
        known = cell.delta_m_interval
        interval = "" if known is None else f" ({known.words()} %)"
        lines += ["", f"best: {told}, delta m {cell.delta_m:+.2f} %{interval}, in {cell.folder}"]
    return "\n".join(lines)


def _told(settings: dict[str, object]) -> list[str]:
    return [f"{key}={value}" for key, value in settings.items()]


def _spread(found: Spread | None, scale: float, form: str) -> str:
    if found is None:
        return "-"
    mean = format(scale * found.mean, form)
    return mean if found.std is None else f"{mean} ± {format(scale * found.std, form.removeprefix('+'))}"


@click.command()
@JOB
@click.option(
    "--set", "grid", multiple=True, metavar="KEY=V1,V2",
    help="Values of a key of the job, such as passes.0.round_to=8,16; may be given again.",
)  # fmt: skip
@click.option("--seeds", type=click.IntRange(1, 10_000), default=1, show_default=True, help="Seeds of each setting.")
@click.option(
    "--jobs", type=click.IntRange(1, 1024), help="Runs at a time. Default: 1; on a cluster all that find room."
)
@click.option("--threads", type=click.IntRange(1, 1024), default=1, show_default=True, help="Threads of each run.")
@RAY
@click.option("--out", type=PATH, help="Output folder. Default: NAME-sweep beside the job.")
@JSON
@DEBUG
@LOG_LEVEL
@COMPUTE_DEVICE
def sweep(
    job: Path,
    grid: tuple[str, ...],
    seeds: int,
    jobs: int | None,
    threads: int,
    ray: str | None,
    out: Path | None,
    as_json: bool,
    log_level: str,
    device: str | None,
) -> None:
    """Run JOB with every combination of values and several seeds; write one table and one page of all runs."""
    from mtlc.workflows.sweep import sweep_job

    target = out or job.with_name(f"{job.stem}-sweep")
    result = sweep_job(
        job,
        grid,
        target,
        seeds=seeds,
        jobs=jobs,
        threads=threads,
        ray=ray,
        device=device,
        log=listener(log_level)["log"],
    )
    emit(as_json, result, text)
    failed = [cell for cell in result.cells if cell.state == "failed"]
    if failed:
        error = MtlcError(f"{len(failed)} of {len(result.cells)} runs failed; the same command tries them again")
        error.exit_code = failed[0].exit_code or 1
        raise error
    missed = sum(bool(cell.missed) for cell in result.cells)
    if missed:
        raise BudgetMissed(f"{missed} of {len(result.cells)} runs missed the budget or a limit")
