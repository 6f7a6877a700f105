"""Tells the trackers of a job how a verb gets on, and what it found in the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from mtlc.job.grid import short_names
from mtlc.job.job import Job
from mtlc.log import Log
from mtlc.results.run import RunResults
from mtlc.results.slim import SlimResult
from mtlc.results.train import TrainResults
from mtlc.toml_files import toml_text
from mtlc.tracking.registry import make_tracker
from mtlc.tracking.tracked import made, measured, tracked_run
from mtlc.tracking.tracker import TrackedRun, Tracker


def trackers_of(job: Job) -> list[Tracker]:
    """The trackers that the job asks for, before any work. Raises as `mtlc.tracking.registry.make_tracker` does."""
    section = job.file.track
    return [make_tracker(name, section.options.get(name, {})) for name in section.trackers]


def tracked(job: Job, verb: str, out: Path, trackers: list[Tracker], log: Log) -> AbstractContextManager[None]:
    """A block in which `trackers` are told of the run of a verb that writes to `out`."""
    values = job.file.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"track", "version"})
    return tracked_run(TrackedRun(_name(job, verb), verb, out, dict(_flat(values))), trackers, log)


def _name(job: Job, verb: str) -> str:
    """``job run round_to=16 seed=1``: with what was set over the job, so that runs of a sweep can be told apart."""
    changes = {key: value for key, value in job.changes.items() if key.split(".")[0] != "track"}
    names = short_names(list(changes))
    told = (f"{names[key]}={value if isinstance(value, str) else toml_text(value)}" for key, value in changes.items())
    return " ".join([job.path.stem, verb, *told])


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, str | int | float | bool]]:
    """The values of nested tables by dotted key; lists of plain values as text."""
    nested = isinstance(value, Mapping) or (isinstance(value, list) and any(isinstance(one, Mapping) for one in value))
    if not nested:
        yield key, value if isinstance(value, str | int | float | bool) else toml_text(value)
        return
    for name, one in value.items() if isinstance(value, Mapping) else enumerate(value):
        yield from _flat(one, f"{key}.{name}" if key else str(name))


def tell_run(found: RunResults, out: Path) -> None:
    """What a run found: metrics of both networks, Δm, costs, and the report and bundles as files."""
    for name, task in found.tasks.items():
        measured({f"before/{name}/{task.metric}": task.before, f"after/{name}/{task.metric}": task.after})
    before, after = found.cost.before, found.cost.after
    costs = {
        key: (getattr(before, key), getattr(after, key))
        for key in ("macs", "active_macs", "parameters", "peak_activation_bytes", "bundle_bytes")
    }
    timed = found.latency
    if timed is not None and timed.before is not None and timed.after is not None:
        costs["latency_ms"] = (timed.before.median_ms, timed.after.median_ms)
    measured({f"before/{key}": old for key, (old, _) in costs.items()})
    measured({f"after/{key}": new for key, (_, new) in costs.items()})
    measured({"delta_m": found.delta_m.vs_original, "missed": len(found.missed)})
    bundles = found.bundles.after, found.quantization
    for path in (out / "results.json", out / "report.html", *(Path(one.path) for one in bundles if one is not None)):
        made(path)


def tell_slim(found: SlimResult, out: Path) -> None:
    """What `slim` made: MACs and Δm of each named configuration, and the page and the bundle as files."""
    for point in found.points or ():
        measured({f"{point.name}/macs": point.macs, f"{point.name}/delta_m": point.delta_m})
        measured({f"{point.name}/{task}": value for task, value in (point.validation or {}).items()})
    bundle = [] if found.bundle is None else [Path(found.bundle.path)]
    for path in (out / "slim.json", out / "widths.html", *bundle):
        made(path)


def tell_train(found: TrainResults) -> None:
    """What a training reached on the validation split, and its weights as a file."""
    measured({f"validation/{name}": value for name, value in found.validation.metrics.items()})
    made(Path(found.weights))
