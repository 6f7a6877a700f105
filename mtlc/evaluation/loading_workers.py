"""Reads samples of a data set in other processes: as many as its owner's `DataLoader` has."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch
from torch import Tensor

from mtlc.errors import UserError

_LOOKS = 2.0
"""Seconds between a worker's looks whether its parent is there."""
_MOMENT = 5.0
"""Seconds to wait for the ends of all workers where one has ended."""
_data: Any = None
"""The data set, in a worker."""
_progress: Any = None
_row = 0
"""Where a worker puts down its process and the sample that it reads: at `_row` of `_progress` (workers, 2)."""


class Workers:
    """A pool that is made when it is first asked, and goes with this object. A copy makes one of its own, and so does
    a process that was forked since. What `multiprocessing` has started, such as a worker of a training, reads the
    samples itself: it may have no children, or would wait for them when it ends.
    """

    def __init__(self, data: Any, count: int, init: Callable[[int], None] | None) -> None:
        self._data, self._count, self._init = data, count, init
        self._pool: ProcessPoolExecutor | None = None
        self._owner = 0
        self._progress: Any = None

    def samples(self, indices: Sequence[int]) -> list[Any]:
        """The samples at `indices`, in this order. Raises what the data set raises, and `UserError` naming the sample
        for a worker that ends.
        """
        if len(indices) < 2 * self._count or multiprocessing.parent_process() is not None:  # not worth the way, or none
            return [self._data[index] for index in indices]
        size = -(-len(indices) // self._count)
        parts = [list(indices[start : start + size]) for start in range(0, len(indices), size)]
        pool = self._running()
        processes = dict(pool._processes or {})
        try:
            return [_unpacked(sample) for part in pool.map(_load, parts) for sample in part]
        except BrokenProcessPool:
            processes.update(pool._processes or {})
            self._pool = None
            raise self._died(_exit_codes(processes)) from None

    def _died(self, codes: dict[int, int | None]) -> UserError:
        # The pool ends the others by SIGTERM when one has ended.
        dead = {pid for pid, code in codes.items() if code not in (None, 0, -signal.SIGTERM)}
        rows = [self._progress[2 * row : 2 * row + 2] for row in range(self._count)]
        samples = sorted(sample for pid, sample in rows if pid in dead)
        at = f"while it read sample {samples[0]}" if samples else "unexpectedly"
        return UserError(
            f"[data] a worker that reads samples ended {at}; if memory ran out, lower workers (0 reads in the main "
            "process)"
        )

    def _running(self) -> ProcessPoolExecutor:
        if self._pool is None or self._owner != os.getpid():
            # Forked, as data sets hold what cannot be pickled; where there is no fork, they have to be.
            method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
            context = multiprocessing.get_context(method)
            counter, self._progress = context.Value("i", 0), context.RawArray("q", 2 * self._count)
            begun = (self._data, self._init, counter, self._progress)
            self._pool, self._owner = ProcessPoolExecutor(self._count, context, _begin, begun), os.getpid()
            weakref.finalize(self, self._pool.shutdown, wait=False, cancel_futures=True)
        return self._pool

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pool": None, "_progress": None}


def _exit_codes(processes: Mapping[int, Any]) -> dict[int, int | None]:
    """How each process ended, once all have; None after a few seconds.

    The pool's own thread waits for them too: what it has been told of a process's end stands on the process a moment
    later, and until then it seems to run.
    """
    end = time.monotonic() + _MOMENT
    while (codes := {pid: process.exitcode for pid, process in processes.items()}) and time.monotonic() < end:
        if None not in codes.values():
            break
        time.sleep(0.01)
    return codes


def _begin(data: Any, init: Callable[[int], None] | None, counter: Any, progress: Any) -> None:
    global _data, _progress, _row
    _data, _progress = data, progress
    torch.set_num_threads(1)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    with counter.get_lock():
        _row, counter.value = counter.value, counter.value + 1
    _progress[2 * _row] = os.getpid()
    if init is not None:
        init(_row)


def _end_with(parent: int) -> None:
    """End this worker when its parent has: one that was killed tells nobody, and a worker would wait without end."""
    while os.getppid() == parent:
        time.sleep(_LOOKS)
    os._exit(1)


def _load(indices: Sequence[int]) -> list[Any]:
    samples = []
    for index in indices:
        _progress[2 * _row + 1] = index
        samples.append(_packed(_data[index]))
    return samples


class _Array:
    """A tensor on its way: torch would send each as an open file, of which a process may have so many only."""

    def __init__(self, tensor: Tensor) -> None:
        self.array = tensor.detach().numpy()


def _packed(value: Any) -> Any:
    if isinstance(value, Tensor) and value.device.type == "cpu" and value.dtype != torch.bfloat16:
        return _Array(value)
    return _mapped(value, _packed)


def _unpacked(value: Any) -> Any:
    return torch.from_numpy(value.array.copy()) if isinstance(value, _Array) else _mapped(value, _unpacked)


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    if type(value) is dict:
        return {key: change(one) for key, one in value.items()}
    return type(value)(change(one) for one in value) if type(value) in (tuple, list) else value
