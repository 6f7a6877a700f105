"""Gives operators their floating point back until every task keeps its own limit of accuracy.

Starting from everything quantised, the task that used up most of what it may lose is the worst off. The operators on
its way are ranked by the squared error that giving one of them back leaves on this task's output. The first 1, 2, 4, …
of them get floating point back until the task uses up no more than `SHARE`; then the interval is halved down to a
number that is enough where one less is not. So a task costs O(log n) measurements of its metric for n operators.
Where a limit asks for confidence, as many draws of the samples must keep it too; they are worked out from what each
sample adds to the metric, and run nothing.
(NNCF's accuracy control has one number for all tasks: a task that is lost may hide behind one that gains.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mtlc.evaluation.criteria import Criteria
from mtlc.export.quantization.bounds import Bound, Reached, metrics_of
from mtlc.export.quantization.execution import Values
from mtlc.export.quantization.operators import QuantizedGraph
from mtlc.export.quantization.samples import Samples, affected, squared_errors
from mtlc.log import Log, tracked

Operator = tuple[str, str]
"""A file, and the name of one of its nodes."""
Floats = dict[str, set[str]]
"""The operators of each file that are in floating point."""


@dataclass(frozen=True)
class ReturnedOperator:
    """An operator that got floating point back for the sake of `task`.

    `before` and `after` are the task's metric, without and with all operators that came back together with this one.
    """

    file: str
    operator: str
    task: str
    before: float
    after: float


@dataclass
class Outcome:
    """What the control found. `reached` is what each task has at its end; the counts are what it cost."""

    reached: dict[str, Reached]
    floats: Floats
    steps: list[ReturnedOperator] = field(default_factory=list)
    measurements: int = 0
    rankings: int = 0
    shares: dict[Operator, dict[str, float]] = field(default_factory=dict)
    """By operator and task, the share of the squared error that its return alone takes away."""

    @property
    def metrics(self) -> dict[str, float]:
        """Each task's metric at the end."""
        return metrics_of(self.reached)


class Control:
    """Gives back precision in the execution of `samples`, whose files hold everything quantised but `floats`.

    `samples` are measured with the tasks' own metrics. `ranked` has an execution of its own, in the same state, which
    stays in it: there each operator alone is given back, and the outputs are compared with `references`, those of the
    float bundle.
    """

    def __init__(
        self, graphs: Mapping[str, QuantizedGraph], criteria: Criteria, samples: Samples, ranked: Samples,
        references: Sequence[Values], floats: Mapping[str, set[str]], log: Log,
    ) -> None:  # fmt: skip
        self._graphs, self._criteria, self._log = graphs, criteria, log
        self._samples, self._ranked, self._references = samples, ranked, references
        self._start = {file: frozenset(names) for file, names in floats.items()}
        self._held: Floats = {file: set(names) for file, names in floats.items()}
        self._errors: dict[Operator, dict[str, float]] = {}
        self._unchanged: dict[str, float] = {}

    def run(self, bounds: Mapping[str, Bound], reached: Mapping[str, Reached]) -> Outcome:
        """Give back until each of `bounds` is `kept` on the samples, or nothing is left to give back for it.

        `reached` is what tasks have before anything is given back.
        """
        outcome = Outcome(dict(reached), {file: set(names) for file, names in self._start.items()})
        spent: set[str] = set()
        while missed := [
            task for task, bound in bounds.items() if task not in spent and not bound.kept(outcome.reached[task])
        ]:
            task = max(missed, key=lambda name: bounds[name].used(outcome.reached[name].metric))
            left = [(file, name) for file, name in self._ranking(task) if name not in outcome.floats[file]]
            if left:
                self._give_back(task, bounds[task], left, outcome)
            if not left or not bounds[task].kept(outcome.reached[task]):
                spent.add(task)
                self._log(f"{task}: nothing is left to give back, {bounds[task].shortfall(outcome.reached[task])}")
        outcome.rankings = len(self._errors)
        outcome.shares = {
            key: {
                task: 1 - error / whole
                for task, error in errors.items()
                if (whole := self._unchanged.get(task, 0.0)) > 0
            }
            for key, errors in self._errors.items()
        }
        return outcome

    def _give_back(self, task: str, bound: Bound, order: Sequence[Operator], outcome: Outcome) -> None:
        """Give back the first of `order`: so many that the bound is kept and with one less is not; all if none do."""
        before, known = outcome.reached[task].metric, {0: outcome.reached[task]}

        def kept(count: int) -> bool:
            if count not in known:
                changed = self._hold(_with(outcome.floats, order[:count]))
                known[count] = reached = self._samples.reached(self._criteria, [task], changed)[task]
                outcome.measurements += 1
                self._log(f"{task}, {count} operators back to floating point: {before:.5g} to {reached.metric:.5g}")
            return bound.kept(known[count])

        few, enough = 0, 1
        while not kept(enough) and enough < len(order):
            few, enough = enough, min(2 * enough, len(order))
        while kept(enough) and enough - few > 1:
            middle = (few + enough) // 2
            few, enough = (few, middle) if kept(middle) else (middle, enough)
        chosen = order[:enough]
        outcome.floats = _with(outcome.floats, chosen)
        touched = {name for file, _ in chosen for name in affected(self._samples.execution, file)}
        outcome.reached |= self._samples.reached(self._criteria, touched, self._hold(outcome.floats))
        outcome.measurements += 1
        after = outcome.reached[task].metric
        outcome.steps += [ReturnedOperator(file, name, task, before, after) for file, name in chosen]

    def _hold(self, floats: Floats) -> list[str]:
        """Execute the samples with the operators `floats` in floating point; returns the files that this changes."""
        changed = [file for file in floats if floats[file] != self._held[file]]
        for file in changed:
            self._samples.execution.replace(file, self._graphs[file].restored(floats[file]))
        self._held = floats
        return changed

    def _ranking(self, task: str) -> list[Operator]:
        """The operators on the way to `task`, the one whose return alone leaves the least error first.

        Those whose return alone changes nothing come last: they share every rounding with others.
        """
        execution = self._ranked.execution
        if not self._errors:
            for _ in self._ranked.outputs(execution.manifest.tasks, ()):
                pass  # stores what a change in one file does not touch
            self._unchanged = squared_errors(self._ranked, execution.manifest.tasks, (), self._references)
        for file, graph in self._graphs.items():
            reached = affected(execution, file)
            if task not in reached or any(key[0] == file for key in self._errors):
                continue
            start = execution.graph(file)
            for name in tracked(graph.operators, "ranking operators"):
                if name in self._start[file]:
                    continue
                execution.replace(file, graph.restored(self._start[file] | {name}))
                self._errors[file, name] = squared_errors(self._ranked, reached, [file], self._references)
            execution.replace(file, start)
        known = {key: errors[task] for key, errors in self._errors.items() if task in errors}
        return sorted(known, key=lambda key: (known[key] == self._unchanged[task], known[key]))


def _with(floats: Floats, operators: Sequence[Operator]) -> Floats:
    return {file: names | {name for at, name in operators if at == file} for file, names in floats.items()}
