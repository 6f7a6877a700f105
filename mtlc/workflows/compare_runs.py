"""Puts several finished runs side by side: ``mtlc report --compare``. Nothing is run or measured anew."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from mtlc.errors import UserError, reason
from mtlc.report.parts.changes_in_percent import gain_percent, interval_percent
from mtlc.results.run import RunResults
from mtlc.results.runs_comparison import ComparedRun, JobDifference, LayerWidths, RunsComparison, RunTask
from mtlc.results.search import WidthSearchResult
from mtlc.results.slim import SlimPoint, SlimResult, TaskMetric
from mtlc.results.tasks import IntervalResult, TaskResult

MOST = len(ascii_uppercase)
_FILES = {"results.json": RunResults, "slim.json": SlimResult}


def compare_runs(paths: Sequence[Path], html: Path | None = None) -> RunsComparison:
    """The runs at `paths` side by side; `html` is a page of the same to write.

    A path is the folder of ``mtlc run`` or ``mtlc slim``, or the file that ``mtlc search --json`` printed. Of several
    widths each named configuration is one entry. Raises `UserError` for anything else, and for fewer than two paths.
    """
    if not 2 <= len(paths) <= MOST:
        raise UserError(f"--compare: give 2 to {MOST} folders of runs, not {len(paths)}")
    found = [_read(path) for path in paths]
    entries: list[tuple[ComparedRun, Mapping[str, Any] | None, RunResults | None]] = []
    for letter, path, results in zip(ascii_uppercase, paths, found, strict=False):
        if isinstance(results, RunResults):
            entries.append((_of_run(letter, path, results), results.job, results))
        elif isinstance(results, SlimResult):
            entries += [(run, _job(results), None) for run in _of_slim(letter, path, results)]
        else:
            entries.append((_of_search(letter, path, results), None, None))
    runs = [run for run, _, _ in entries]
    jobs = [job for _, job, _ in entries]
    result = RunsComparison(
        runs=runs,
        differs=_differences([_job(one) for one in found]),
        widths=_widths([full for _, _, full in entries]),
        notes=_notes(runs, jobs),
    )
    if html is not None:
        from mtlc.report.runs_page import write_runs_page

        write_runs_page(result, html)
    return result


def _read(path: Path) -> RunResults | SlimResult | WidthSearchResult:
    if path.is_dir():
        name = next((name for name in _FILES if (path / name).is_file()), None)
        if name is None:
            raise UserError(
                f"{path}: has neither results.json nor slim.json: give a folder of `mtlc run` or `mtlc slim`"
            )
        return _FILES[name].read(_json(path / name), str(path / name))  # type: ignore[no-any-return,attr-defined]
    data = _json(path)
    if isinstance(data, dict) and data.get("of") in ("bundle", "checkpoint"):
        return WidthSearchResult.read(data, str(path))
    if isinstance(data, dict) and "layers" in data and isinstance(data.get("tasks"), dict):
        return RunResults.read(data, str(path))
    raise UserError(f"{path}: not what `mtlc search --json` printed; of `mtlc run` and `mtlc slim` give the folder")


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({reason(error)})") from None


def _job(results: RunResults | SlimResult | WidthSearchResult) -> Mapping[str, Any] | None:
    """The job of a run, as far as it is known: a search has none, and that of a slim.json may be anything."""
    job = None if isinstance(results, WidthSearchResult) else results.job
    return job if isinstance(job, Mapping) else None


def _of_run(letter: str, path: Path, results: RunResults) -> ComparedRun:
    cost, latency = results.cost, results.latency
    learned = all(task.learned() for task in results.tasks.values())
    return ComparedRun(
        label=letter,
        path=str(path),
        kind="run",
        title=results.title or path.name,
        passes=[step.name for step in results.passes],
        macs_before=cost.before.macs if cost.before.active_macs is None else cost.before.active_macs,
        macs=cost.after.macs if cost.after.active_macs is None else cost.after.active_macs,
        parameters=cost.after.parameters,
        bytes=cost.after.bundle_bytes,
        latency_ms=None if latency is None or latency.after is None else latency.after.median_ms,
        speedup=None if latency is None else latency.speedup,
        machine=None if latency is None else latency.device.cpu or latency.device.name,
        in_doubt=latency is not None and bool(latency.why_in_doubt()),
        delta_m=results.delta_m.vs_original if learned else None,
        delta_m_interval=results.delta_m.vs_original_interval if learned else None,
        tasks={name: _run_task(task) for name, task in results.tasks.items()},
        missed=results.missed,
    )  # fmt: skip


def _of_slim(letter: str, path: Path, results: SlimResult) -> list[ComparedRun]:
    points = results.points or []
    if not points:
        raise UserError(f"{path / 'slim.json'}: has no named configuration to compare")
    validated = all(point.validation for point in points)
    widest = max(points, key=lambda point: point.macs)
    return [_of_point(letter, path, results, point, widest, validated) for point in points]


def _of_point(
    letter: str, path: Path, results: SlimResult, point: SlimPoint, widest: SlimPoint, validated: bool
) -> ComparedRun:
    before, after = ((one.validation if validated else one.metrics) or {} for one in (widest, point))
    intervals = (point.change_intervals or {}) if validated else {}
    learned = results.unlearned_warning() is None
    percent = point.delta_m if validated else None if point.gain is None else 100 * point.gain
    return ComparedRun(
        label=f"{letter} {point.name}",
        path=str(path),
        kind="slim",
        title=results.title or path.name,
        passes=["slim"],
        macs_before=widest.macs,
        macs=point.macs,
        parameters=None,
        bytes=None if results.bundle is None else results.bundle.bytes,
        latency_ms=None,
        speedup=None,
        machine=None,
        delta_m=percent if learned else None,
        split="validation" if validated else "held-out data",
        delta_m_interval=point.delta_m_interval if learned and validated else None,
        tasks={
            name: _width_task(task, before.get(name), after.get(name), intervals.get(name))
            for name, task in (results.tasks or {}).items()
        },
        missed=[],
    )


def _width_task(
    task: TaskMetric, before: float | None, after: float | None, interval: IntervalResult | None
) -> RunTask:
    found = TaskResult(
        metric=task.metric, unit=task.unit, higher_is_better=task.higher_is_better, before=before, after=after,
        constant=task.constant, change_interval=interval,
    )  # fmt: skip
    return _run_task(found)


def _run_task(task: TaskResult) -> RunTask:
    return RunTask(
        metric=task.metric, unit=task.unit, higher_is_better=task.higher_is_better, before=task.before,
        after=task.after, change=gain_percent(task), interval=interval_percent(task), limit=task.limit,
        within=task.within,
    )  # fmt: skip


def _of_search(letter: str, path: Path, results: WidthSearchResult) -> ComparedRun:
    return ComparedRun(
        label=letter,
        path=str(path),
        kind="search",
        title=f"search of {results.path}",
        passes=["slim"],
        macs_before=results.macs / results.share if results.macs is not None and results.share else None,
        macs=results.macs,
        parameters=None,
        bytes=None,
        latency_ms=results.latency_ms,
        speedup=None,
        machine=None,
        delta_m=None if results.gain is None else 100 * results.gain,
        delta_m_interval=_percent(results.gain_interval),
        split="held-out data",
        tasks={},
        missed=[],
    )


def _percent(share: IntervalResult | None) -> IntervalResult | None:
    return None if share is None else share.model_copy(update={"low": 100 * share.low, "high": 100 * share.high})


def _differences(jobs: Sequence[Mapping[str, Any] | None]) -> list[JobDifference]:
    """The keys that are not alike in all jobs that are known, those that all of them have first."""
    flat = [None if job is None else _flat(job) for job in jobs]
    known = [one for one in flat if one is not None]
    keys = sorted(
        dict.fromkeys(key for one in known for key in one), key=lambda key: not all(key in one for one in known)
    )  # stable: else in the order of the jobs
    return [
        JobDifference(key=key, values=[None if one is None else one.get(key) for one in flat])
        for key in keys
        if len({one.get(key) for one in known}) > 1
    ]


def _flat(value: Any, path: str = "") -> dict[str, str]:
    """The leaves of a job by their path: ``passes.0.round_to``."""
    inner = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else None
    if inner is None:
        return {path: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}
    found: dict[str, str] = {}
    for key, one in inner:
        found |= _flat(one, f"{path}.{key}" if path else str(key))
    return found


def _widths(runs: Sequence[RunResults | None]) -> list[LayerWidths]:
    """The layers that are not equally wide in all runs that have layers, and those that are narrower than they were."""
    sides = [None if run is None else {layer.name: layer for layer in run.layers} for run in runs]
    names = dict.fromkeys(name for side in sides if side is not None for name in side)
    rows = []
    for name in names:
        layers = [None if side is None else side.get(name) for side in sides]
        before = next((one.channels_before for one in layers if one is not None), None)
        after = [None if one is None else one.channels_after for one in layers]
        known = {width for width, side in zip(after, sides, strict=True) if side is not None}
        if known - {before}:
            rows.append(LayerWidths(name=name, before=before, after=after))
    return rows


def _notes(runs: Sequence[ComparedRun], jobs: Sequence[Mapping[str, Any] | None]) -> list[str]:
    notes = []
    data = [(run.label, job.get("data")) for run, job in zip(runs, jobs, strict=True) if job is not None]
    others = [label for label, one in data if one != data[0][1]]
    if others:
        notes.append(
            f"{', '.join(others)} used other data or another split than {data[0][0]}: metrics do not compare exactly"
        )
    tasks = dict.fromkeys(task for run in runs for task in run.tasks)
    starts = {task: {run.tasks[task].before for run in runs if task in run.tasks} for task in tasks}
    apart = [task for task, values in starts.items() if len(values) > 1]
    if apart and not others:
        notes.append(f"they did not start from the same network: its {', '.join(apart)} differ")
    metrics = {
        task: {run.tasks[task].metric for run in runs if task in run.tasks} for run in runs for task in run.tasks
    }
    notes += [f"{task} is measured by {' and '.join(sorted(names))}: not comparable" for task, names in metrics.items()
              if len(names) > 1]  # fmt: skip
    if len({run.machine for run in runs if run.latency_ms is not None and run.machine}) > 1:
        notes.append("times were measured on different machines: they do not compare")
    elif sum(run.latency_ms is not None for run in runs) > 1:
        notes.append("times were not measured in turns: compare bundles with `mtlc compare` where they matter")
    if any(run.in_doubt for run in runs):
        notes.append("≈ marks times that are in doubt: the machine was busy, or the rounds differed")
    if any(run.kind == "slim" for run in runs):
        notes.append("of several widths, changes are against the widest; the bundle holds all of them")
    return notes
