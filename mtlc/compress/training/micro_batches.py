"""Splits the batch of a training step over processes, and what each has of it into micro-batches, one after the other.

A batch of 8 samples, 2 processes, ``accumulate = 2``:

    process            0            1
    micro-batch      0    1       0    1
    samples         0 1  2 3     4 5  6 7

The gradients of all micro-batches are added up, each weighted with its share of the samples. So for losses that are
means over samples they are those of the whole batch, to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mtlc.compress.training.seeds import seeded
from mtlc.errors import UserError
from mtlc.evaluation.splits import Batch
from mtlc.tasks.task import TaskSpec


@dataclass(frozen=True)
class MicroBatch:
    """Some of the samples that this process trains on in a step.

    `places` are theirs among these, None for all of them. `rows` are the places in the micro-batch of the samples that
    train each task, by the task's output, None where all train all. `share` is how much of the step's batch it is, and
    `shares` how much of the samples that train a task, by the task's name.
    """

    places: list[int] | None = None
    rows: Mapping[str, Tensor] | None = None
    share: float = 1.0
    shares: Mapping[str, float] = field(default_factory=dict)

    def of(self, batch: Batch) -> Batch:
        """Its samples among those of this process."""
        if self.places is None:
            return batch
        rows = torch.as_tensor(self.places)
        return {key: value[rows] for key, value in batch.items()}

    def labels(self, batch: Batch, task: TaskSpec) -> Batch:
        """Those of its samples, `batch`, that train a task."""
        if self.rows is None:
            return batch
        rows = self.rows[task.output_key].to(next(iter(batch.values())).device)
        return {key: value[rows] for key, value in batch.items()}

    def share_of(self, task: TaskSpec) -> float:
        """The factor of a task's loss in the step's."""
        return self.shares.get(task.name, self.share)


WHOLE = MicroBatch()
"""A step that is not split."""


class BatchSplit:
    """How the batches of a training, of `count` samples, are split among `processes`, of which this is number `rank`.

    With `per_sample` each sample trains so many of the `tasks`, drawn anew each step from `seed`; every task gets about
    as many samples of the batch, and of each micro-batch.
    """

    def __init__(
        self, count: int, tasks: Sequence[TaskSpec], per_sample: int | None, seed: int, rank: int, processes: int
    ) -> None:
        self.count, self._tasks, self._seed = count, tuple(tasks), seed
        self._per_sample = None if per_sample is None or per_sample >= len(tasks) else per_sample
        self.rank, self.processes = rank, processes
        self._step, self._cards, self._trains = -1, torch.arange(count), torch.empty(0)

    def deals_tasks(self) -> bool:
        """Whether not all samples train all tasks."""
        return self._per_sample is not None

    def check(self, accumulate: int) -> None:
        """Refuse micro-batches of which some task would get no sample: the mean over none is no number."""
        per_sample = self._per_sample
        least = 1 if per_sample is None else len(self._tasks) - per_sample + 1
        if self.count < least:
            raise UserError(
                f"tasks_per_sample = {per_sample}: a batch of {self.count} cannot train all {len(self._tasks)} tasks; "
                f"it takes batches of {least} samples or more"
            )
        if self.count // self.processes // accumulate < least:
            over = f" in each of {self.processes} processes" if self.processes > 1 else ""
            few = "" if least == 1 else f", and tasks_per_sample = {per_sample} takes {least} samples in each"
            raise UserError(
                f"accumulate = {accumulate}{over}: a batch of {self.count} samples is too small for so many "
                f"micro-batches{few}; raise batch_size or lower accumulate"
            )

    def share(self, step: int) -> list[int] | None:
        """The places in the step's batch that this process trains on, None for all."""
        return None if self.processes == 1 else self._share(step)

    def micro_batches(self, step: int, accumulate: int) -> list[MicroBatch]:
        """The micro-batches of this process's samples."""
        own = self._share(step)
        if accumulate == 1 and self.processes == 1 and not self.deals_tasks():
            return [WHOLE]
        at = {place: position for position, place in enumerate(own)}
        found = []
        for part in _parts(self._by_card(own), accumulate):
            places, rows, shares = sorted(part), None, dict[str, float]()
            if self.deals_tasks():
                trains = self._trains[places]
                rows = {task.output_key: trains[:, i].nonzero()[:, 0] for i, task in enumerate(self._tasks)}
                shares = {
                    task.name: len(rows[task.output_key]) / int(self._trains[:, i].sum())
                    for i, task in enumerate(self._tasks)
                }
            within = None if accumulate == 1 else [at[place] for place in places]
            found.append(MicroBatch(within, rows, len(places) / self.count, shares))
        return found

    def smaller(self, accumulate: int, error: BaseException) -> tuple[int, str]:
        """What to accumulate where the micro-batches do not fit in memory, as `error` says; and the line that says so.

        Raises `UserError` in several processes, as the others go on as they are, and for micro-batches that cannot be
        smaller.
        """
        size = math.ceil(self.count / self.processes / accumulate)
        some = f"{size} sample{'' if size == 1 else 's'}"
        if self.processes > 1:
            raise UserError(
                f"micro-batches of {some} do not fit in memory; set accumulate = {2 * accumulate} for half as many at "
                "once, or start more processes"
            ) from error
        try:
            self.check(2 * accumulate)
        except UserError as least:
            raise UserError(
                f"batch_size: not even micro-batches of {some} fit in memory (out of memory; accumulate = "
                f"{accumulate}), and smaller ones are not possible: {least}"
            ) from error
        return 2 * accumulate, (
            f"micro-batches of {some} do not fit in memory: batches of {self.count} are trained in {2 * accumulate} "
            f"from here on, as accumulate = {2 * accumulate} would; batch norms see one micro-batch at a time"
        )

    def _share(self, step: int) -> list[int]:
        self._deal(step)
        return sorted(_parts(self._by_card(range(self.count)), self.processes)[self.rank])

    def _by_card(self, places: Sequence[int]) -> list[int]:
        """Places in the order in which tasks are dealt to them, so that every part of them gets every task."""
        return sorted(places, key=lambda place: int(self._cards[place]))

    def _deal(self, step: int) -> None:
        """Draw which samples of the step train which tasks."""
        per_sample, tasks = self._per_sample, self._tasks
        if per_sample is None or step == self._step:
            return
        # Samples are dealt to tasks like cards, each task getting `per_sample` neighbours in a ring. 5 samples, 3
        # tasks, 2 of them each:
        #
        #     place (shuffled)    0      1      2      0      1
        #     trained tasks      0 1    1 2    2 0    0 1    1 2
        #
        # Every task comes first for as many samples as the others, or one more; the random shift says which ones.
        generator = seeded(self._seed, "tasks", step)
        self._cards = torch.randperm(self.count, generator=generator)
        first = (self._cards + int(torch.randint(len(tasks), (), generator=generator))) % len(tasks)
        chosen = (first[:, None] + torch.arange(per_sample)) % len(tasks)
        self._trains = torch.stack([(chosen == i).any(1) for i in range(len(tasks))], 1)
        self._step = step


def _parts(places: Sequence[int], number: int) -> list[list[int]]:
    """`places` in `number` runs, of as many or one more."""
    count = len(places)
    return [list(places[count * part // number : count * (part + 1) // number]) for part in range(number)]
