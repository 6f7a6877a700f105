"""Runs a grid of jobs with several seeds, each cell a run in its own folder: ``mtlc sweep``."""

from __future__ import annotations

import csv
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

import mtlc
from mtlc.compress.ray_cluster import connected
from mtlc.errors import UserError
from mtlc.files import atomic_file
from mtlc.job.grid import Grid, read_grid
from mtlc.job.overrides import Override
from mtlc.log import WARNING, Log, silent
from mtlc.report.sweep_report import write_sweep_report
from mtlc.results.run import RunResults
from mtlc.results.sweep import SCHEMA, Spread, SweepCell, SweepGroup, SweepResult, SweepTask
from mtlc.toml_files import toml_text
from mtlc.workflows.order_runners import InProcesses, OnRay, Runner
from mtlc.workflows.output_folder import output_folder
from mtlc.workflows.sweep_cells import Cell, checked_cells
from mtlc.workflows.work_order import Failure, WorkOrder, result_of


def sweep_job(
    path: Path,
    grid: Grid,
    out: Path,
    *,
    seeds: int = 1,
    jobs: int | None = None,
    threads: int = 1,
    ray: str | None = None,
    device: str | None = None,
    log: Log = silent,
) -> SweepResult:
    """Run every combination of a grid with every seed, and write the table of all to `out`.

    Args:
        path: the job file.
        grid: the values by key, ``{"passes.0.round_to": [8, 16]}``, or texts ``["passes.0.round_to=8,16"]``.
        out: the folder of everything: ``sweep.json``, ``sweep.csv``, ``sweep.html``, and ``cells/``, where each cell
            has the output folder of a run.
        seeds: how many each combination runs with, from the job's own on.
        jobs: cells that run at a time: on this machine one by default, on a cluster as many as find room.
        threads: of torch in each cell. Numbers hang on it, and on nothing else of how the cells are run.
        ray: the address of a Ray cluster, ``"local"`` for one on this machine. All its machines have the paths of the
            job, its data and `out`.
        device: what torch computes on, by default the job's.

    All cells are checked before any runs. One that was computed by an earlier call is read; one that fails says so in
    the table and stops no other. The tables are written after every cell. Raises `UserError` for bad input,
    `Unavailable` for a cluster that cannot be reached.
    """
    if seeds < 1 or threads < 1 or (jobs is not None and jobs < 1):
        raise UserError(f"seeds = {seeds}, threads = {threads}, jobs = {jobs}: must be one or more")
    started = time.monotonic()
    choices = read_grid(grid)
    with connected(ray, log) if ray is not None else nullcontext() as cluster, output_folder(out):
        cells = checked_cells(path, choices, seeds, threads, device, log)
        orders = [_order(cell, path, out, threads, device) for cell in cells]
        table = _Table(path, choices, cells, orders, threads, out, started)
        waiting = [place for place, order in enumerate(orders) if not order.is_done()]
        for place in set(range(len(orders))) - set(waiting):
            table.done(place, earlier=True)
        if len(waiting) < len(cells):
            log(f"{len(cells) - len(waiting)} of {len(cells)} cells were computed before")
        runner: Runner = InProcesses(jobs or 1) if cluster is None else OnRay(cluster, jobs)

        def say(place: int, line: str) -> None:
            name = f"[{cells[waiting[place]].name}]"
            # What is a warning stays one.
            log(f"{WARNING}{name} {line.removeprefix(WARNING)}" if line.startswith(WARNING) else f"{name} {line}")

        table.write()
        for place, failure in runner.run([orders[place] for place in waiting], say):
            table.ended(waiting[place], failure)
            table.write()
            done = len(cells) - table.left
            log(
                f"[{cells[waiting[place]].name}] {'done' if failure is None else failure.line} ({done} of {len(cells)})"
            )
        return table.result()


def _order(cell: Cell, path: Path, out: Path, threads: int, device: str | None) -> WorkOrder:
    folder = out.resolve() / cell.folder
    return WorkOrder("run", str(path.resolve()), str(folder), cell.texts, device, threads, cell.key)


@dataclass
class _Table:
    """What is known of the cells so far."""

    path: Path
    choices: tuple[tuple[Override, ...], ...]
    cells: Sequence[Cell]
    orders: Sequence[WorkOrder]
    threads: int
    out: Path
    started: float
    rows: dict[int, SweepCell] = field(default_factory=dict)
    tasks: dict[str, SweepTask] = field(default_factory=dict)
    unlearned: dict[str, None] = field(default_factory=dict)

    @property
    def left(self) -> int:
        """Cells that have not ended."""
        return len(self.cells) - len(self.rows)

    def ended(self, place: int, failure: Failure | None) -> None:
        if failure is None:
            try:
                self.done(place)
                return
            except UserError as error:
                failure = Failure.of(error)
        self.rows[place] = SweepCell(
            **self._known(place), state="failed", error=failure.line, exit_code=failure.exit_code
        )

    def done(self, place: int, earlier: bool = False) -> None:
        """Read what the cell's run found."""
        found: RunResults = result_of(self.orders[place])
        self.tasks |= {
            name: SweepTask(metric=task.metric, unit=task.unit, higher_is_better=task.higher_is_better)
            for name, task in found.tasks.items()
            if name not in self.tasks
        }
        self.unlearned |= {name: None for name, task in found.tasks.items() if not task.learned()}
        self.rows[place] = SweepCell(**self._known(place), state="done", earlier=earlier, **_numbers(found))

    def _known(self, place: int) -> dict[str, Any]:
        cell = self.cells[place]
        return {"settings": cell.settings, "seed": cell.seed, "folder": cell.folder}

    def result(self) -> SweepResult:
        cells = [
            self.rows.get(place) or SweepCell(**self._known(place), state="waiting") for place in range(len(self.cells))
        ]
        return SweepResult(
            schema_version=SCHEMA,
            title=f"{self.path.stem}: a sweep of {len(cells)} runs",
            job=self.path.name,
            grid={one[0].key: [each.value for each in one] for one in self.choices},
            seeds=sorted({cell.seed for cell in cells}),
            threads=self.threads,
            tasks=self.tasks,
            unlearned=list(self.unlearned),
            cells=cells,
            groups=grouped(cells),
            best=best(cells),
            versions={"mtlc": mtlc.__version__, "torch": torch.__version__},
            seconds=time.monotonic() - self.started,
        )

    def write(self) -> None:
        found = self.result()
        found.write(self.out / "sweep.json")
        _write_csv(found, self.out / "sweep.csv")
        write_sweep_report(found, self.out / "sweep.html")


def _numbers(found: RunResults) -> dict[str, Any]:
    before, after = found.cost.before, found.cost.after
    old = next((one for one in (before.macs_of_all_tasks, before.active_macs, before.macs) if one is not None), None)
    new = after.macs if after.active_macs is None else after.active_macs
    measured = None if found.latency is None else found.latency.after
    return {
        "exit_code": 3 if found.missed else 0,
        "seconds": sum(one.seconds or 0.0 for one in found.passes),
        "metrics": {name: task.after for name, task in found.tasks.items()},
        "before": {name: task.before for name, task in found.tasks.items()},
        "delta_m": found.delta_m.vs_original,
        "delta_m_interval": found.delta_m.vs_original_interval,
        "macs": new,
        "macs_share": _share(new, old),
        "parameters": after.parameters,
        "parameters_share": _share(after.parameters, before.parameters),
        "latency_ms": None if measured is None else measured.median_ms,
        "missed": found.missed,
    }


def _share(new: float | None, old: float | None) -> float | None:
    return None if new is None or not old else new / old


def grouped(cells: Iterable[SweepCell]) -> list[SweepGroup]:
    """The cells by what was set over the job, over their seeds, in the order of the cells."""
    groups: dict[str, list[SweepCell]] = {}
    for cell in cells:
        groups.setdefault(toml_text(cell.settings), []).append(cell)
    return [_group(members) for members in groups.values()]


def _group(members: Sequence[SweepCell]) -> SweepGroup:
    done = [cell for cell in members if cell.state == "done"]
    tasks = dict.fromkeys(task for cell in done for task in cell.metrics)
    spreads = {
        name: spread(getattr(cell, name) for cell in done)
        for name in ("delta_m", "macs_share", "parameters_share", "latency_ms")
    }
    metrics = {task: spread(cell.metrics.get(task) for cell in done) for task in tasks}
    return SweepGroup(
        settings=members[0].settings,
        seeds=len(done),
        failed=sum(cell.state == "failed" for cell in members),
        kept=sum(not cell.missed for cell in done),
        metrics={task: found for task, found in metrics.items() if found is not None},
        **spreads,
    )


def spread(values: Iterable[float | None]) -> Spread | None:
    """Mean and standard deviation of what is known; None of nothing."""
    known = [float(value) for value in values if value is not None]
    if not known:
        return None
    return Spread(mean=fmean(known), std=stdev(known) if len(known) > 1 else None, count=len(known))


def best(cells: Sequence[SweepCell]) -> int | None:
    """The place of the cell with the largest Δm of those that kept the budget and every limit; of equals, of the one
    with the least MACs, then of the first. None where there is none.
    """
    kept = [
        (-cell.delta_m, cell.macs_share or 0.0, place)
        for place, cell in enumerate(cells)
        if cell.state == "done" and not cell.missed and cell.delta_m is not None
    ]
    return min(kept)[2] if kept else None


def _write_csv(found: SweepResult, path: Path) -> None:
    """A line for each cell, for spreadsheets and data frames; numbers whole, nothing for what is not known."""
    keys = dict.fromkeys(key for cell in found.cells for key in cell.settings)
    ends = ("delta_m_low", "delta_m_high")
    numbers = ("delta_m", *ends, "macs", "macs_share", "parameters", "parameters_share", "latency_ms", "seconds")
    with atomic_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow([*keys, "seed", "state", *found.tasks, *numbers, "missed", "error", "folder"])
        for cell in found.cells:
            values: Mapping[str, Any] = cell.settings
            known = cell.delta_m_interval
            interval = {} if known is None else dict(zip(ends, (known.low, known.high), strict=True))
            lines.writerow([
                *(_plain(values[key]) if key in values else "" for key in keys), cell.seed, cell.state,
                *(_plain(cell.metrics.get(task)) for task in found.tasks),
                *(_plain(interval.get(name) if name in ends else getattr(cell, name)) for name in numbers),
                *map(_plain, ("; ".join(cell.missed), cell.error, cell.folder)),
            ])  # fmt: skip


def _plain(value: Any) -> str:
    """A value in a table: text as it is, but never as a formula that a spreadsheet would compute."""
    if value is None:
        return ""
    if not isinstance(value, str):
        return toml_text(value)
    return f"'{value}" if value[:1] in "=+-@\t\r" and value[:1] else value
