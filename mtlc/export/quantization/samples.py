"""Carries held-out samples through a bundle's programs, and measures the metrics of its tasks on them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np
import torch

from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.evaluate import MetricTotals
from mtlc.evaluation.splits import Batch
from mtlc.export.quantization.bounds import Reached
from mtlc.export.quantization.execution import Execution, Values, needed
from mtlc.runtime.bundle.manifest import ProgramInfo

KEPT_BYTES = 1 << 30
"""What the tensors between programs may occupy; with more, they are computed anew each time."""


class Samples:
    """Batches with labels, and what the programs made of them: after a change only what depends on it is computed.

    So a change in a head costs a run of this head, not of the trunk.
    """

    def __init__(self, execution: Execution, batches: Sequence[tuple[Batch, Values]]) -> None:
        self.execution = execution
        self._programs = execution.manifest.programs
        self._batches = batches
        self._made: list[Values] = [{} for _ in self._batches]
        self._kept = 0

    def outputs(
        self, tasks: Collection[str], changed: Collection[str], store: bool = True
    ) -> Iterator[tuple[Batch, Values]]:
        """Each batch with the outputs of `tasks` by task, where the files `changed` have other graphs than before.

        With `store` the results are what later calls start from; without, the files must be put back.
        """
        stale = stale_tensors(self._programs, changed)
        wanted = {self.execution.manifest.tasks[task].output: task for task in tasks}
        for (batch, inputs), made in zip(self._batches, self._made, strict=True):
            known = inputs | {name: array for name, array in made.items() if name not in stale}
            added = self.execution.run_all(needed(self._programs, wanted, known), known)
            if store:
                self._store(made, stale, added)
            known |= added
            yield batch, {task: known[name] for name, task in wanted.items()}

    def reached(self, criteria: Criteria, tasks: Collection[str], changed: Collection[str] = ()) -> dict[str, Reached]:
        """Each task's metric on all batches; with what each sample adds to it where its limit asks for confidence."""
        return Reached.of(self.totals(criteria, tasks, changed))

    def totals(
        self, criteria: Criteria, tasks: Collection[str], changed: Collection[str] = (), keep: bool = False
    ) -> MetricTotals:
        """The same, as they were counted; with `keep` what each sample adds is kept."""
        totals = MetricTotals(criteria, tasks, keep)
        known = [task.name for task in criteria.tasks if task.name in tasks]
        with torch.inference_mode():
            for batch, outputs in self.outputs(known, changed):
                totals.update({name: torch.from_numpy(array) for name, array in outputs.items()}, batch)
        return totals

    def _store(self, made: Values, stale: set[str], added: Values) -> None:
        for name in stale & made.keys():
            self._kept -= made.pop(name).nbytes
        size = sum(array.nbytes for array in added.values())
        if self._kept + size <= KEPT_BYTES:
            made.update(added)
            self._kept += size


def stale_tensors(programs: Sequence[ProgramInfo], changed: Collection[str]) -> set[str]:
    """The tensors that depend on what the files `changed` compute."""
    stale: set[str] = set()
    for program in programs:
        if program.file in changed or not stale.isdisjoint(program.inputs):
            stale |= set(program.outputs)
    return stale


def affected(execution: Execution, file: str) -> list[str]:
    """The tasks whose outputs depend on what `file` computes."""
    stale = stale_tensors(execution.manifest.programs, [file])
    return [task.name for task in execution.manifest.tasks.values() if task.output in stale]


def squared_errors(
    samples: Samples, tasks: Collection[str], changed: Collection[str], references: Sequence[Values]
) -> dict[str, float]:
    """Σ (output − reference)² of each task over all batches; nothing is stored."""
    totals = dict.fromkeys(tasks, 0.0)
    for (_, outputs), reference in zip(samples.outputs(tasks, changed, store=False), references, strict=True):
        for task in tasks:
            totals[task] += float(np.square(outputs[task].astype(np.float64) - reference[task]).sum())
    return totals
