"""Holds what `mtlc.compress` and `mtlc.slim` give back: the network, its bundle, its numbers, and how they look."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch import nn

from mtlc.job.job import Job
from mtlc.program.program import Program
from mtlc.results.run import RunResults
from mtlc.results.slim import SlimResult
from mtlc.runtime import Session
from mtlc.workflows.report import report
from mtlc.workflows.sample_pictures import load

ResultsT = TypeVar("ResultsT", RunResults, SlimResult)


@dataclass(frozen=True)
class _Made(Generic[ResultsT]):
    """What both have: the folder of everything, the network, all numbers, and the job that made them."""

    out: Path
    program: Program
    results: ResultsT = field(repr=False)
    job: Job = field(repr=False)

    @property
    def model(self) -> nn.Module:
        """The network, of several widths the widest, in evaluation mode; train it on, save its state dict, as any."""
        return self.program.module

    @property
    def bundle(self) -> Path:
        """The verified bundle, for `mtlc.Session`."""
        made = self._bundle()
        assert made is not None
        return Path(made.path)

    def session(self, **options: Any) -> Session:
        """A session of the bundle; `options` are those of `mtlc.Session`."""
        return Session(self.bundle, **options)

    def _bundle(self) -> Any:
        raise NotImplementedError(f"{type(self).__name__} does not say where its bundle is")


class Compressed(_Made[RunResults]):
    """A finished compression. `results` is all that ``results.json`` holds; `out` is the folder of everything."""

    @property
    def metrics(self) -> dict[str, float | None]:
        """Each task's metric on the validation split after compression, in the metric's unit."""
        return {name: task.after for name, task in self.results.tasks.items()}

    @property
    def original_metrics(self) -> dict[str, float | None]:
        """The same before."""
        return {name: task.before for name, task in self.results.tasks.items()}

    @property
    def delta_m(self) -> float | None:
        """Δm against the original network, in percent (negative is worse); None where a metric was 0."""
        return self.results.delta_m.vs_original

    @property
    def missed(self) -> list[str]:
        """A line for the budget and for each limit that was not kept. Empty: all were."""
        return list(self.results.missed)

    def _bundle(self) -> Any:
        return self.results.bundles.after

    @property
    def original_bundle(self) -> Path:
        """The bundle of the original network, exported alike."""
        made = self.results.bundles.before
        assert made is not None
        return Path(made.path)

    def report(self) -> Path:
        """The path of the report, a page that needs no network, rendered anew."""
        return report(self.out)

    def __str__(self) -> str:
        lines = [f"{_share(self.results, 'macs')} of the MACs, {_share(self.results, 'parameters')} of the parameters"]
        for name, task in self.results.tasks.items():
            kept = {None: "", True: ", limit kept", False: ", limit MISSED"}[task.within]
            after = f"{task.after:.4g} {task.unit}".rstrip()
            lines.append(f"{name}: {task.metric} {task.before:.4g} → {after}{kept}")
        lines += [] if self.delta_m is None else [f"delta m {self.delta_m:+.2f} %"]
        return "\n".join([*lines, *(f"missed: {line}" for line in self.missed), f"bundle: {self.bundle}"])

    def _repr_html_(self) -> str:
        from mtlc.report.notebook import run_html

        return run_html(self.results, load(self.out / "pictures.npz"), self.out / "report.html", self.bundle)


class Slimmed(_Made[SlimResult]):
    """A network that runs at many widths; so does its bundle, by ``session.configure``. `results` is all that
    ``slim.json`` holds.
    """

    def _bundle(self) -> Any:
        return self.results.bundle

    def report(self) -> Path:
        """The path of the page that shows what each width costs and is worth."""
        return self.out / "widths.html"

    def _repr_html_(self) -> str:
        from mtlc.report.notebook import widths_html

        return widths_html(self.results, self.report(), self.bundle)


def _share(results: RunResults, cost: str) -> str:
    before, after = (getattr(side, cost) for side in (results.cost.before, results.cost.after))
    return "-" if not before or after is None else f"{after / before:.1%}"
