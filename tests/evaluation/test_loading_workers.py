"""Reading a data set in other processes, also from within those of a training."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from mtlc.compress.training.step_loader import StepLoader, StepReader
from mtlc.errors import UserError
from mtlc.evaluation import loading_workers
from mtlc.evaluation.loading_workers import Workers
from mtlc.evaluation.sample_forms import Names
from mtlc.evaluation.splits import as_splits, fetch

NEEDS_FORK = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")


class Numbers(Dataset):
    """Samples that say which process read them."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.full((2,), float(index)), torch.tensor([float(os.getpid())])


@NEEDS_FORK
def test_the_workers_of_a_training_read_themselves():
    """They were forked with a pool that is their parent's, and waited for it without end."""
    data = as_splits((DataLoader(Numbers(), num_workers=2), Numbers()), Names(("image",), ("pid",)), "given").train
    here = fetch(data, range(8))
    assert float(os.getpid()) not in here["pid"]
    with StepLoader(StepReader(data, 0, 8, False), range(1), workers=1) as loader:
        batch = loader.read(0)
    assert len(set(batch["pid"].flatten().tolist())) == 1
    assert batch["pid"][0, 0] not in here["pid"]
    assert torch.equal(batch["image"], StepReader(data, 0, 8, False).read(0)["image"])


def forked(workers: Workers) -> tuple[int, set[int]]:
    """A child that is killed after it has read, and the processes that read for it."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(theirs, " ".join(str(int(pid)) for _, pid in workers.samples(range(8))).encode())
        os.kill(os.getpid(), signal.SIGKILL)
    told = os.read(ours, 4096)
    os.waitpid(child, 0)
    os.close(ours)
    os.close(theirs)
    return child, {int(pid) for pid in told.split()}


@NEEDS_FORK
def test_a_process_that_was_forked_makes_a_pool_of_its_own_that_ends_with_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loading_workers, "_LOOKS", 0.02)
    workers = Workers(Numbers(), 2, None)
    first = {int(pid) for _, pid in workers.samples(range(8))}
    child, others = forked(workers)
    assert not others & {*first, child}
    again = {int(pid) for _, pid in workers.samples(range(8))}
    assert not again & {*others, os.getpid()}
    deadline = time.monotonic() + 60
    while others and time.monotonic() < deadline:
        others = {pid for pid in others if Path(f"/proc/{pid}").exists()}
        time.sleep(0.02)
    assert not others


class Dies(Numbers):
    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        if index == 11 and multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        if index > 11:
            time.sleep(0.01)
        return super().__getitem__(index)


@NEEDS_FORK
def test_a_worker_that_ends_is_one_line_with_its_sample():
    workers = Workers(Dies(), 4, None)
    with pytest.raises(UserError, match="ended while it read sample 11; if memory ran out, lower workers") as error:
        workers.samples(range(16))
    assert "\n" not in str(error.value)
