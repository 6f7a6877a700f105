"""Joins the processes that train together: sums over them, what the first one says, and how one's failure ends all.

`torchrun` and `accelerate launch` start the same command several times, and say in the environment how many processes
there are. The first one leads: it runs the command, and alone it reads caches, decides, logs and writes. The others
wait for its trainings and take part in them (`mtlc.compress.training.shared_training`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from mtlc.errors import MtlcError, UserError, one_line

_FAILURE = "mtlc/failure"
_PATIENCE = timedelta(days=30)  # others wait while the first one prunes; a process that ends is noticed at once
_BUCKET = 8 << 20  # numbers that are sent together


class Disconnected(MtlcError):
    """Another process is gone."""

    exit_code = 1


class ProcessFailed(MtlcError):
    """What went wrong in one process of several in the middle of a training: nothing goes on after it."""


class ProcessGroup:
    """The processes of a command; this is number `rank` of `count`."""

    def __init__(self, rank: int, count: int) -> None:
        self.rank, self.count = rank, count
        try:
            self._local = int(os.environ.get("LOCAL_RANK", rank))
            if torch.cuda.is_available() and self._local < torch.cuda.device_count():
                torch.cuda.set_device(self._local)
            # Gloo for what is said, and between CPUs; NCCL between GPUs.
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend, rank=rank, world_size=count, timeout=_PATIENCE)
            self._store: Any = dist.distributed_c10d._get_default_store()
        except Exception as error:  # what torch raises depends on its version
            raise UserError(f"process {rank} of {count}: the others cannot be reached: {one_line(error)}") from error

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def own_device(self, name: str) -> str:
        """The name of the device that this process computes on, where a job's is `name`: of GPUs each has one.

        Raises `UserError` where there are more processes than GPUs.
        """
        if name not in ("auto", "cuda") or not torch.cuda.is_available():
            return name
        if self._local >= torch.cuda.device_count():
            raise UserError(
                f"device = {name!r}: this machine has {torch.cuda.device_count()} GPUs, and process {self.rank} is its "
                f"number {self._local + 1}: start no more processes than there are GPUs, or say device = 'cpu'"
            )
        return f"cuda:{self._local}"

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the processes, in place. Raises `Disconnected`."""
        try:
            dist.all_reduce(tensor)
        except RuntimeError as error:
            raise Disconnected(f"process {self.rank}: another process has ended: {one_line(error)}") from error
        return tensor

    def said(self, value: Any = None) -> Any:
        """What the first process says, in all of them; an object that pickles. Raises `Disconnected`."""
        box = [value]
        try:
            dist.broadcast_object_list(box, 0, device=torch.device("cpu"))
        except RuntimeError as error:
            raise Disconnected(f"process {self.rank}: another process has ended: {one_line(error)}") from error
        return box[0]

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter], values: Sequence[float]) -> list[float]:
        """Add up the gradients of all processes, in place, and `values`, whose sums are returned.

        A parameter has a gradient afterwards if it had one in any process.
        """
        had = [float(parameter.grad is not None) for parameter in parameters]
        summed = self.sum(torch.tensor([*values, *had], dtype=torch.float64)).tolist()
        learnt = [parameter for parameter, any_had in zip(parameters, summed[len(values) :], strict=True) if any_had]
        for parameter in learnt:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for bucket in _buckets([parameter.grad for parameter in learnt if parameter.grad is not None]):
            together = self.sum(torch.cat([gradient.reshape(-1) for gradient in bucket]))
            for gradient, total in zip(bucket, together.split([one.numel() for one in bucket]), strict=True):
                gradient.copy_(total.view_as(gradient))
        return [float(value) for value in summed[: len(values)]]

    def sum_step(
        self,
        parameters: Sequence[torch.nn.Parameter],
        names: Sequence[str],
        sums: Mapping[str, float],
        shares: Mapping[str, float],
    ) -> tuple[dict[str, float], dict[str, float]]:
        """`sum_gradients`, with the losses by name and the shares of the step that they are of.

        `names` are all that there may be: not every process has seen a label of every task.
        """
        mine = [part.get(name, 0.0) for part in (sums, shares) for name in names]
        summed = self.sum_gradients(parameters, mine)
        losses, of = (dict(zip(names, part, strict=True)) for part in (summed[: len(names)], summed[len(names) :]))
        return {name: losses[name] for name in names if of[name]}, {name: of[name] for name in names if of[name]}

    def fails_first(self, code: int) -> bool:
        """Put down that this process ends the others with that exit code; False if another one did before."""
        try:
            mine = f"{self.rank}:{code}"
            return bool(self._store.compare_set(_FAILURE, "", mine).decode() == mine)
        except RuntimeError:  # the store is gone with the process that kept it
            return False

    def failure(self) -> int | None:
        """The exit code that another process has put down."""
        try:
            return int(self._store.get(_FAILURE).decode().partition(":")[2]) if self._store.check([_FAILURE]) else None
        except (RuntimeError, ValueError):
            return None

    def ended(self, error: BaseException) -> NoReturn:
        """End this process after `error`: the first one to fail says why, the others end with its exit code."""
        if isinstance(error, Disconnected):
            code = self.failure()
            if code is None and self.leads:
                raise UserError(
                    "a process that trains along has ended; the same command goes on from the last checkpoint"
                ) from error
            raise SystemExit(1 if code is None else code) from error
        code = error.exit_code if isinstance(error, MtlcError) else 130 if isinstance(error, KeyboardInterrupt) else 1
        if not self.fails_first(code):
            raise SystemExit(self.failure() or code) from error
        if isinstance(error, MtlcError) and not self.leads:
            raise type(error)(f"process {self.rank}: {error}") from error
        raise error


def launched() -> tuple[int, int] | None:
    """This process's number and how many there are, where a launcher has started several.

    Raises `UserError` for an environment that does not say it in numbers.
    """
    try:
        rank, count = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    except ValueError:
        raise UserError("RANK and WORLD_SIZE in the environment must be whole numbers, as torchrun sets them") from None
    return (rank, count) if count > 1 else None


_group: ProcessGroup | None = None


def join() -> ProcessGroup | None:
    """Join the other processes, where a launcher has started several; None where it has not."""
    global _group
    found = launched()
    if found is not None and _group is None:
        _group = ProcessGroup(*found)
    return _group


def current_group() -> ProcessGroup | None:
    """The processes that were joined, if any."""
    return _group


def leave() -> None:
    """Part from the other processes."""
    global _group
    if _group is not None:
        dist.destroy_process_group()
        _group = None


def _buckets(gradients: Sequence[Tensor]) -> list[list[Tensor]]:
    """Gradients of one type and device together, about `_BUCKET` numbers of them."""
    found: list[list[Tensor]] = []
    size = 0
    for gradient in gradients:
        last = found[-1][-1] if found else None
        if last is None or size + gradient.numel() > _BUCKET or (last.dtype, last.device) != (
            gradient.dtype, gradient.device,
        ):  # fmt: skip
            found.append([])
            size = 0
        found[-1].append(gradient)
        size += gradient.numel()
    return found
