"""Which operators the control gives back, on made-up operators whose harm to each task is known and adds up."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtlc.evaluation.sample_statistics import SampleStatistics
from mtlc.export.quantization.bounds import SHARE, Bound, Reached, missed_line
from mtlc.export.quantization.control import Control, Outcome
from mtlc.runtime.bundle.manifest import Manifest, ProgramInfo, TaskInfo
from mtlc.tasks.task import Limit, TaskSpec

TRUNK, ONE, TWO = "t.onnx", "1.onnx", "2.onnx"
PROGRAMS = (
    ProgramInfo("trunk", TRUNK, ("x",), ("f",), ("one", "two")),
    ProgramInfo("head-one", ONE, ("f",), ("y1",), ("one",)),
    ProgramInfo("head-two", TWO, ("f",), ("y2",), ("two",)),
)
TASKS = {name: TaskInfo(name, f"y{i}", ("batch", 1), "float32") for i, name in enumerate(("one", "two"), 1)}
WAYS = {"one": (TRUNK, ONE), "two": (TRUNK, TWO)}


class Graph:
    """Stands for a graph; its "model" is the set of operators in floating point."""

    def __init__(self, operators: Sequence[str]) -> None:
        self.operators = tuple(operators)

    def restored(self, floats: Collection[str]) -> frozenset[str]:
        return frozenset(floats)


class Execution:
    def __init__(self, files: Collection[str]) -> None:
        self.manifest = Manifest(TASKS, (), PROGRAMS, {})
        self.floats: dict[str, frozenset[str]] = dict.fromkeys(files, frozenset())

    def replace(self, file: str, model: frozenset[str]) -> None:
        self.floats[file] = model

    def graph(self, file: str) -> frozenset[str]:
        return self.floats[file]


class Samples:
    """A task's metric is 1 and the harm of every operator on its way that is in INT8; its output is that too."""

    def __init__(self, harm: Mapping[str, Mapping[str, float]]) -> None:
        self.harm, self.execution = harm, Execution(harm)
        self.asked: list[tuple[str, ...]] = []

    def value(self, task: str) -> float:
        return 1 + sum(
            harm
            for file in WAYS[task]
            for name, harm in self.harm[file].items()
            if name not in self.execution.floats[file]
        )

    def reached(self, criteria: Any, tasks: Collection[str], changed: Collection[str] = ()) -> dict[str, Reached]:
        self.asked.append(tuple(sorted(tasks)))
        return {task: Reached(self.value(task)) for task in tasks}

    def outputs(
        self, tasks: Collection[str], changed: Collection[str], store: bool = True
    ) -> Iterator[tuple[Any, dict[str, np.ndarray]]]:
        yield {}, {task: np.array([self.value(task)]) for task in tasks}


def search(harm: Mapping[str, Mapping[str, float]], allowed: Mapping[str, float]) -> tuple[Outcome, Samples, list[str]]:
    """The control's outcome where each task of `allowed` may lose so much of its metric of 1."""
    samples, lines = Samples(harm), []
    graphs: Any = {file: Graph(tuple(names)) for file, names in harm.items()}
    bounds = {
        task: Bound(Limit(loss, relative=False), 1.0, 1.0, higher_is_better=False) for task, loss in allowed.items()
    }
    made: Any = [samples, Samples(harm)]
    references = [{task: np.ones(1) for task in TASKS}]
    control = Control(graphs, None, *made, references, {file: set() for file in harm}, lines.append)  # type: ignore[arg-type]
    return control.run(bounds, {task: Reached(samples.value(task)) for task in TASKS}), samples, lines


@pytest.mark.parametrize("wanted", [1, 2, 3, 13, 32, 33, 60, 63])
def test_as_few_as_keep_the_limit_in_a_logarithm_of_measurements(wanted):
    harms = np.random.default_rng(0).permutation(np.geomspace(1e-3, 1.0, 64))
    harm = {TRUNK: {f"t{i}": float(h) for i, h in enumerate(harms)}, ONE: {}, TWO: {}}
    order = sorted(harm[TRUNK], key=lambda name: -harm[TRUNK][name])
    left = sum(harm[TRUNK][name] for name in order[wanted:])
    found, samples, _ = search(harm, {"one": (left + 1e-9) / SHARE})
    assert found.floats[TRUNK] == set(order[:wanted])
    assert [step.operator for step in found.steps] == order[:wanted]
    assert found.measurements <= 2 * math.ceil(math.log2(64)) + 1
    assert found.metrics["one"] == pytest.approx(1 + left)
    assert found.metrics["two"] == pytest.approx(1 + left)  # the other task's is measured where the search ends
    assert samples.asked[:-1] == [("one",)] * (found.measurements - 1)
    for step in found.steps:
        assert step.before == pytest.approx(1 + harms.sum())
        assert step.after == found.metrics["one"]


def test_an_operator_whose_return_changes_nothing_stays():
    harm = {TRUNK: {f"/Shape_{i}": 0.0 for i in range(20)}, ONE: {"a": 0.5, "worse": -0.01, "b": 0.3}, TWO: {"c": 0.4}}
    found, _, _ = search(harm, {"one": 0.01})
    # Without "a" and "b" alone, -0.01 is left: the limit is kept, and nothing else is asked for.
    assert found.floats == {TRUNK: set(), ONE: {"a", "b"}, TWO: set()}


def test_the_worst_off_task_goes_first_and_its_way_only():
    harm = {TRUNK: {"shared": 0.1}, ONE: {"a": 0.5}, TWO: {"b": 0.9}}
    found, _, _ = search(harm, {"one": 0.2, "two": 0.2})
    assert [(step.task, step.operator) for step in found.steps] == [("two", "b"), ("one", "a")]
    assert found.floats[TRUNK] == set()


def test_a_task_that_nothing_helps_is_left_and_the_others_go_on():
    harm = {TRUNK: {}, ONE: {"a": math.nan}, TWO: {"b": 0.9}}
    samples = Samples(harm)
    samples.value = lambda task: 2.0 if task == "one" else Samples.value(samples, task)  # type: ignore[method-assign]
    graphs: Any = {file: Graph(tuple(names)) for file, names in harm.items()}
    bounds = {task: Bound(Limit(0.1, relative=False), 1.0, 1.0, higher_is_better=False) for task in TASKS}
    lines: list[str] = []
    made: Any = [samples, Samples({**harm, ONE: {"a": 0.1}})]
    references = [{task: np.ones(1) for task in TASKS}]
    control = Control(graphs, None, *made, references, {file: set() for file in harm}, lines.append)  # type: ignore[arg-type]
    found = control.run(bounds, {"one": Reached(2.0), "two": Reached(1.9)})
    assert found.floats == {TRUNK: set(), ONE: {"a"}, TWO: {"b"}}
    assert found.metrics == {"one": 2.0, "two": 1.0}
    assert [line for line in lines if "nothing is left" in line] == [
        "one: nothing is left to give back, 2 misses its limit"
    ]


class Judged(Samples):
    """The same, with a harm for each of some samples; the metric is the mean over them. `rest` is harm that stays with
    all operators in floating point.
    """

    def __init__(self, harm: Mapping[str, Mapping[str, Any]], rest: np.ndarray) -> None:
        super().__init__(
            {file: {name: float(np.mean(of)) for name, of in names.items()} for file, names in harm.items()}
        )
        self.each, self.rest = harm, rest

    def reached(self, criteria: Any, tasks: Collection[str], changed: Collection[str] = ()) -> dict[str, Reached]:
        self.asked.append(tuple(sorted(tasks)))
        found = {}
        for task in tasks:
            values = 1 + self.rest
            for file in WAYS[task]:
                for name in self.each[file].keys() - self.execution.floats[file]:
                    values = values + self.each[file][name]
            found[task] = Reached(float(values.mean()), known(values))
        return found


def known(values: np.ndarray) -> SampleStatistics:
    return SampleStatistics(np.arange(len(values)), lambda weights: weights @ values / weights.sum(1))


def surely(
    harm: Mapping[str, Mapping[str, Any]], drop: float, confidence: float | None, rest: np.ndarray
) -> tuple[Outcome, Bound, list[str]]:
    """The control's outcome for the first task, which may lose `drop` of its 1, with the bound and the log."""
    samples, lines = Judged(harm, rest), []
    graphs: Any = {file: Graph(tuple(names)) for file, names in harm.items()}
    bound = Bound(Limit(drop, False, confidence), 1.0, 1.0, higher_is_better=False, base=known(np.ones(len(rest))))
    made: Any = [samples, Judged(harm, rest)]
    references = [{task: np.ones(1) for task in TASKS}]
    control = Control(graphs, None, *made, references, {file: set() for file in harm}, lines.append)  # type: ignore[arg-type]
    return control.run({"one": bound}, samples.reached(None, TASKS)), bound, lines


MIXED = np.array([0.9, -0.8] * 20)
"""Half the samples lose much and half gain much: 0.05 in all, by chance more than 0.1 in a third of the draws."""


def test_a_limit_that_asks_for_confidence_gets_operators_back_that_its_metric_alone_does_not():
    harm = {TRUNK: {"even": np.full(40, 0.01)}, ONE: {"mixed": MIXED, "small": 0.01 * MIXED}, TWO: {}}
    alone, bound, _ = surely(harm, 0.1, None, np.zeros(40))
    assert alone.floats == {TRUNK: set(), ONE: set(), TWO: set()}
    assert alone.measurements == 0
    assert 0.5 < bound.kept_in(alone.reached["one"]) < 0.7
    for confidence, given_back in ((0.5, set()), (0.95, {"mixed"})):
        found, bound, lines = surely(harm, 0.1, confidence, np.zeros(40))
        assert found.floats == {TRUNK: set(), ONE: given_back, TWO: set()}
        assert bound.kept_in(found.reached["one"]) >= confidence
        assert not any("nothing is left" in line for line in lines)
    assert [step.operator for step in found.steps] == ["mixed"]
    assert found.metrics["one"] == pytest.approx(1.0105)
    assert bound.judged(found.reached["one"]) == {"bound": pytest.approx(1.1), "within": True, "kept_in": 1.0}


def test_what_no_operator_can_make_sure_is_said():
    harm = {TRUNK: {"even": np.full(40, 0.01)}, ONE: {"a": np.full(40, 0.02)}, TWO: {}}
    found, bound, lines = surely(harm, 0.1, 0.95, MIXED)
    assert found.floats == {TRUNK: {"even"}, ONE: {"a"}, TWO: set()}
    share = bound.kept_in(found.reached["one"])
    assert lines[-1] == (
        "one: nothing is left to give back, 1.05 keeps its limit of 0.1 at 95% confidence in "
        f"{100 * share:.1f} % of draws"
    )
    judged = bound.judged(found.reached["one"])
    assert (judged["within"], judged["kept_in"]) == (False, share)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000), count=st.integers(0, 9), confidence=st.sampled_from([0.5, 0.8, 0.95, 0.99]),
    drop=st.floats(0.02, 0.5), rest=st.floats(0, 0.5),
)  # fmt: skip
def test_confidence_is_reached_or_everything_is_given_back(seed, count, confidence, drop, rest):
    generator = np.random.default_rng(seed)
    each = {f"o{i}": generator.normal(0.02, generator.uniform(0, 0.5), 25) for i in range(count)}
    harm = {TRUNK: dict(list(each.items())[::2]), ONE: dict(list(each.items())[1::2]), TWO: {}}
    found, bound, lines = surely(harm, drop, confidence, generator.normal(0, rest, 25))
    share = bound.kept_in(found.reached["one"])
    if share < confidence:
        assert found.floats == {file: set(names) for file, names in harm.items()}
        assert "nothing is left to give back" in lines[-1]
    elif bound.kept(found.reached["one"]):
        assert not any("nothing is left" in line for line in lines)


def test_a_float_bundle_that_lacks_confidence_is_what_limits_are_held_against():
    """It keeps the limit of the original network, by chance: no precision can do better, so nothing is asked back."""
    asked = Bound(Limit(0.1, False, 0.95), 1.0, 1.05, higher_is_better=False, base=known(np.ones(40)))
    plain = Reached(1.05, known(1 + MIXED))
    assert asked.allows(plain.metric)
    assert not asked.within(plain)
    bound = asked.attainable(plain)
    assert (bound.reference, bound.kept_in(plain)) == (1.05, 1.0)
    assert bound.within(Reached(1.1, known(1.05 + MIXED)))
    sure = Reached(1.05, known(np.full(40, 1.05)))
    assert asked.attainable(sure) is asked
    task = TaskSpec("one", "l1", "rmse", max_drop=asked.limit)
    share = f"which keeps its limit only in {100 * asked.kept_in(plain):.1f} % of draws from its samples"
    assert missed_line(task, asked, plain, Reached(1.1, known(1.05 + MIXED))) == (
        f"task 'one': rmse is 1.05 in floating point on validation, {share} (max_drop 0.1 at 95% confidence): no "
        "precision can meet it"
    )
    assert missed_line(task, asked, sure, sure) is None
    assert missed_line(task, asked, sure, plain) == (
        f"task 'one': rmse is 1.05 in INT8 on validation, {share} (max_drop 0.1 at 95% confidence)"
    )
    missed = Reached(1.2, sure.statistics)
    assert "is 1.2 in INT8 on validation, its limit is 1.1" in missed_line(task, asked, sure, missed)
    assert missed_line(task, None, plain, plain) is None
