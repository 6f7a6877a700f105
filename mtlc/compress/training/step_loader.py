"""Reads the samples of each training step, in the main process or ahead of it in worker processes.

Whichever process reads a step, its generators are seeded for the step first, and the state in which reading leaves
torch's goes along with the samples. So the numbers of a training do not depend on how many workers it has.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from mtlc.compress.pipeline.identity import seed_everything
from mtlc.compress.training.seeds import seeded, step_seed
from mtlc.errors import MtlcError, UserError, one_line
from mtlc.evaluation.child_signals import child_handler_kept
from mtlc.evaluation.splits import Batch, fetch

_AHEAD = 2  # steps that each worker has read before they are asked for
_NOTHING = -1
_START = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
"""Forked, so that a data set need not pickle."""

Share = Callable[[int], list[int] | None]
"""The places in the batch of a step that this process trains on; None for all of them."""


class StepReader:
    """What a training reads at each step: `batch` samples of `data`, in an order that follows from `seed`."""

    def __init__(self, data: Any, seed: int, batch: int, augment: bool, share: Share = lambda step: None) -> None:
        self.data, self.seed, self.batch = data, seed, batch
        self.augments = augment and hasattr(data, "augment")
        self.steps_per_epoch = len(data) // batch  # the odd rest is drawn in another epoch
        self._share = share
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def indices(self, step: int) -> list[int]:
        """The samples of a step, those of all processes."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            # It follows from the seed and the epoch's number alone, so a resumed run draws the same.
            order = torch.randperm(len(self.data), generator=seeded(self.seed, "order", epoch))
            self._epoch, self._order = epoch, order
        return [int(index) for index in self._order[position * self.batch : (position + 1) * self.batch]]

    def own_indices(self, step: int) -> list[int]:
        """The samples of a step that this process trains on."""
        indices, places = self.indices(step), self._share(step)
        return indices if places is None else [indices[place] for place in places]

    def read(self, step: int, begun: Callable[[int], None] | None = None) -> Batch:
        """The samples of `own_indices`, augmented; torch's generator is left as reading all of the step's leaves it.

        `random` and numpy's generator are seeded for the step too, and are afterwards what they were. `begun` is told
        of each sample before it is read. Raises `UserError` naming the sample that raises.
        """
        places = self._share(step)
        with _generators_kept():
            seed_everything(step_seed(self.seed, "step", step))
            if places is None:
                return self._whole(step, begun)
            if not self.augments:
                before = _states()
                batch = self._fetched(self.own_indices(step), begun)
                if before == _states():
                    return batch
                # The data set draws: what a sample gets depends on those before it, which other processes read.
                seed_everything(step_seed(self.seed, "step", step))
            rows = torch.as_tensor(places)
            return {key: value[rows] for key, value in self._whole(step, begun).items()}

    def _whole(self, step: int, begun: Callable[[int], None] | None) -> Batch:
        batch = self._fetched(self.indices(step), begun)
        if not self.augments:
            return batch
        try:
            augmented: Batch = self.data.augment(batch, seeded(self.seed, "augment", step))
        except MtlcError:
            raise
        except Exception as error:  # the data set is the user's
            raise UserError(f"[data] {type(self.data).__name__}.augment: {one_line(error)}") from error
        return augmented

    def _fetched(self, indices: list[int], begun: Callable[[int], None] | None) -> Batch:
        try:
            return fetch(self.data, indices, begun)
        except UserError:
            _name_the_sample(self.data, indices)
            raise


class StepLoader:
    """The samples of `steps`, in turn: read when they are asked for, or ahead of that by `workers` processes.

    With `pinned` workers' samples lie in page-locked memory, from where a GPU copies them while it computes. Errors of
    the workers are those of `StepReader.read`; a worker that ends is a `UserError` that names the sample it was
    reading, whatever else the block within this context does then.
    """

    def __init__(self, reader: StepReader, steps: range, workers: int, pinned: bool = False) -> None:
        self._reader, self._steps, self._workers = reader, steps, workers
        self._progress = torch.full((workers, 2), _NOTHING).share_memory_() if workers else None
        self._pinned = pinned
        self._read: Any = None
        self._kept = ExitStack()

    def __enter__(self) -> StepLoader:
        if self._progress is not None and len(self._steps):
            self._kept.enter_context(child_handler_kept())
            self._read = iter(
                DataLoader(
                    _Steps(self._reader, self._progress),
                    batch_size=None,  # an item is the batch of a step already
                    sampler=self._steps,
                    num_workers=self._workers,
                    prefetch_factor=_AHEAD,
                    pin_memory=self._pinned,
                    generator=torch.Generator(),  # or it draws from the process's own
                    multiprocessing_context=_START,
                )
            )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._read is not None:
            # Not left to the iterator's end: an error's frames may hold it, and its dead workers would be told of
            # whenever another process of the caller's ends.
            self._read._shutdown_workers()
            self._read = None
        self._kept.close()
        if error is not None and (died := self._died(error)) is not None:
            raise died from error

    def read(self, step: int) -> Batch:
        """The samples of a step, which must be the next one; torch's generator is left as `StepReader.read` leaves
        it.
        """
        if self._read is None:
            return self._reader.read(step)
        found = next(self._read)
        if isinstance(found, MtlcError):
            raise found
        batch, state = found
        torch.manual_seed(step_seed(self._reader.seed, "step", step))  # a GPU's generators too
        torch.set_rng_state(state)
        return dict(batch)

    def _died(self, error: BaseException) -> UserError | None:
        """What to say if a worker's end is the reason for `error`: torch raises that wherever the program is."""
        reason: BaseException | None = error
        while reason is not None and not (isinstance(reason, RuntimeError) and "DataLoader worker" in str(reason)):
            reason = reason.__cause__ or reason.__context__
        if reason is None or self._progress is None:
            return None
        numbers = {int(number) for number in re.findall(r"\d+", str(reason))}
        samples = [int(sample) for process, sample in self._progress.tolist() if process in numbers]
        at = f"while it read sample {samples[0]} of {type(self._reader.data).__name__}" if samples else "unexpectedly"
        return UserError(
            f"[data] a worker that reads samples ended {at}: {one_line(reason)}; if memory ran out, lower workers "
            "(0 reads in the main process)"
        )


class _Steps(Dataset[Any]):
    """Reads a step in a worker: an error is a value here, as torch would make a traceback of several lines of it."""

    def __init__(self, reader: StepReader, progress: Tensor) -> None:
        self._reader, self._progress = reader, progress

    def __getitem__(self, step: int) -> tuple[Batch, Tensor] | MtlcError:
        info = get_worker_info()
        assert info is not None
        row = self._progress[info.id]
        row[0] = os.getpid()

        def begun(sample: int) -> None:
            row[1] = sample

        try:
            return self._reader.read(step, begun), torch.get_rng_state()
        except MtlcError as error:
            return error


def _name_the_sample(data: Any, indices: Sequence[int]) -> None:
    """Raise `UserError` for the first sample that a data set's ``batch`` cannot read alone either, if there is one."""
    if not hasattr(data, "batch"):
        return  # samples are read one by one, and the error names the one
    for index in indices:
        try:
            data.batch([index])
        except Exception as error:  # the data set is the user's
            raise UserError(f"[data] sample {index} of {type(data).__name__}: {one_line(error)}") from error


@contextmanager
def _generators_kept() -> Iterator[None]:
    """`random` and numpy's generator are after the block what they were before."""
    before = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


def _states() -> tuple[Any, ...]:
    kind, keys, position, *rest = np.random.get_state()
    return random.getstate(), (kind, np.asarray(keys).tobytes(), position, *rest), bytes(torch.get_rng_state().numpy())
