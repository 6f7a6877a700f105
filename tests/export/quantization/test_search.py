"""Which operators the control gives back, on made-up operators whose harm to each task is known and adds up."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from mtlc.export.quantization.control import SHARE, Bound, Control, Outcome
from mtlc.runtime.bundle.manifest import Manifest, ProgramInfo, TaskInfo
from mtlc.tasks.task import Limit

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

    def metrics(self, criteria: Any, tasks: Collection[str], changed: Collection[str] = ()) -> dict[str, float]:
        self.asked.append(tuple(sorted(tasks)))
        return {task: self.value(task) for task in tasks}

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
    return control.run(bounds, {task: samples.value(task) for task in TASKS}), samples, lines


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
    found = control.run(bounds, {"one": 2.0, "two": 1.9})
    assert found.floats == {TRUNK: set(), ONE: {"a"}, TWO: {"b"}}
    assert found.metrics == {"one": 2.0, "two": 1.0}
    assert [line for line in lines if "nothing is left" in line] == [
        "one: nothing is left to give back, 2 misses its limit"
    ]
