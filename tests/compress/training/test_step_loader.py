"""Reading samples ahead: the same network with workers as without, and errors that name the sample."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from testkit import tiny_networks
from testkit.tiny_networks import REGRESSION, Samples, same_state
from torch import Tensor, nn

from mtlc.compress.training.seeds import step_seed
from mtlc.compress.training.step_loader import StepLoader, StepReader
from mtlc.compress.training.train_config import TrainConfig
from mtlc.compress.training.trainer import train
from mtlc.errors import UserError
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.splits import Splits
from mtlc.program.program import ModelSource, Program
from mtlc.tasks.task import TaskSpec

TASK = TaskSpec("out", "mse", "mse", output="")


class Drawing:
    """A sample is noise of all three generators, and its number: (4,) numbers and what is to be learnt of them."""

    def __init__(self, count: int = 12) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        noise = [random.random(), float(np.random.rand()), float(torch.rand(())), index / self.count]
        return {"image": torch.tensor(noise), "out": torch.tensor([noise[0] - noise[3]])}

    def augment(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        return {**batch, "image": batch["image"] + 0.1 * torch.rand(batch["image"].shape, generator=generator)}


class Raising(Drawing):
    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if index == 5:
            raise ValueError("no such picture")
        return super().__getitem__(index)


class Batched(Samples):
    """Reads samples together, all but number 3."""

    def batch(self, indices) -> dict[str, Tensor]:
        if 3 in indices:
            raise OSError("cannot be decoded")
        return super().batch(indices)


class Deadly(Drawing):
    """Reading sample 7 ends a worker, by a signal or not; the process of the test goes on."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.home = how, os.getpid()

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if index == 7 and os.getpid() != self.home:
            if self.how == "signal":
                os.kill(os.getpid(), signal.SIGKILL)
            os._exit(3)
        return super().__getitem__(index)


def dropping() -> Program:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 1))
    return Program(module, (TASK,), {"image": torch.zeros(2, 4)}, ModelSource("testkit.tiny_networks:chain"))


def run(data, workers: int, **settings) -> Program:
    program = dropping()
    config = TrainConfig(epochs=3, batch_size=4, precision="float32", workers=workers, **settings)
    train(program, Splits(data, data, data, identity="test"), Criteria(program.tasks), config, seed=2)
    return program


@pytest.mark.parametrize("augment", [True, False])
def test_workers_change_no_number(augment):
    """Every generator that the data set may draw from, its augmentation and dropout are those of the main process."""
    alone, one, two = (run(Drawing(), workers, augment=augment) for workers in (0, 1, 2))
    assert same_state(alone.module, one.module)
    assert same_state(alone.module, two.module)
    assert not same_state(alone.module, dropping().module)


def test_what_follows_a_training_draws_the_same_with_workers():
    found = []
    for workers in (0, 2):
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        run(Drawing(), workers)
        found.append((random.random(), float(np.random.rand()), float(torch.rand(()))))
    assert found[0] == found[1]


def test_a_killed_run_may_go_on_with_other_workers(tmp_path):
    whole = run(Drawing(), 0)

    def trained(data, workers: int) -> Program:
        program, splits = dropping(), Splits(data, data, data, identity="test")
        config = TrainConfig(epochs=3, batch_size=4, precision="float32", workers=workers, checkpoint_seconds=1e-9)
        train(program, splits, Criteria(program.tasks), config, seed=2, checkpoint=tmp_path / "c", log=lines.append)
        return program

    lines: list[str] = []

    class Stopping(Drawing):
        reads = 0

        def __getitem__(self, index: int) -> dict[str, Tensor]:
            self.reads += 1
            if self.reads > 16:
                raise KeyboardInterrupt
            return super().__getitem__(index)

    with pytest.raises(KeyboardInterrupt):
        trained(Stopping(), 0)
    assert same_state(whole.module, trained(Drawing(), 2).module)
    assert lines == ["training goes on from step 4 of 9"]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sample_that_raises_is_named(workers):
    with pytest.raises(UserError) as caught:
        run(Raising(), workers)
    assert str(caught.value) == "[data] sample 5 of Raising: ValueError: no such picture"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_sample_of_a_batch_that_raises_is_named(workers):
    data = Batched(tiny_networks.taught(tiny_networks.chain_program(REGRESSION), 8, 0).tensors)
    program = tiny_networks.chain_program(REGRESSION)
    config = TrainConfig(epochs=1, batch_size=4, workers=workers)
    with pytest.raises(UserError) as caught:
        train(program, Splits(data, data, data, identity="x"), Criteria(program.tasks), config)
    assert str(caught.value) == "[data] sample 3 of Batched: OSError: cannot be decoded"


@pytest.mark.parametrize("how", ["signal", "exit"])
def test_a_worker_that_ends_names_the_sample_it_was_reading(how):
    with pytest.raises(
        UserError, match=r"^\[data\] a worker that reads samples ended while it read sample 7 of Deadly: "
    ):
        run(Deadly(how), 2)


@pytest.mark.parametrize("how", [None, "signal"])
def test_the_process_does_at_the_end_of_a_child_what_it_did_before(how):
    """Whether a worker died or not; and the next training finds out about its own."""
    before = signal.getsignal(signal.SIGCHLD)
    for _ in range(2):
        if how is None:
            run(Drawing(), 1)
        else:
            with pytest.raises(UserError, match="while it read sample 7 of Deadly"):
                run(Deadly(how), 1)
        assert signal.getsignal(signal.SIGCHLD) is before
        assert subprocess.run([sys.executable, "-c", ""], check=False).returncode == 0


def test_an_augmentation_that_raises_names_the_data_set():
    class Broken(Drawing):
        def augment(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
            raise IndexError("flip")

    with pytest.raises(UserError, match=r"^\[data\] Broken\.augment: IndexError: flip$"):
        run(Broken(), 1)


def test_an_order_for_each_epoch():
    reader = StepReader(Drawing(10), 3, 4, False)
    assert reader.steps_per_epoch == 2
    epochs = [[*reader.indices(2 * epoch), *reader.indices(2 * epoch + 1)] for epoch in range(3)]
    assert all(len(set(epoch)) == 8 for epoch in epochs)  # the odd rest is left out
    assert epochs[0] != epochs[1]
    assert reader.indices(0) == epochs[0][:4]


def test_a_share_of_samples_without_draws_is_all_that_is_read():
    data = tiny_networks.taught(tiny_networks.chain_program(REGRESSION), 8, 0)
    read: list[int] = []
    data.batch = lambda indices: (read.extend(indices), Samples.batch(data, indices))[1]  # type: ignore[method-assign]
    reader = StepReader(data, 0, 4, True, lambda step: [1, 3])
    batch = reader.read(0)
    assert read == [reader.indices(0)[1], reader.indices(0)[3]] == reader.own_indices(0)
    assert torch.equal(batch["image"], data.tensors["image"][read])


@pytest.mark.parametrize("augment", [True, False])
def test_a_share_of_drawn_samples_is_what_the_whole_batch_has(augment):
    whole = StepReader(Drawing(), 1, 6, augment).read(1)
    state = torch.get_rng_state()
    part = StepReader(Drawing(), 1, 6, augment, lambda step: [1, 4, 5]).read(1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(part["image"], whole["image"][[1, 4, 5]])


def test_the_loader_leaves_the_generator_as_reading_does():
    reader = StepReader(Drawing(), 1, 6, False)
    reader.read(1)
    wanted = torch.rand(3)
    with StepLoader(reader, range(1, 2), 1) as loader:
        loader.read(1)
        assert torch.equal(torch.rand(3), wanted)
    torch.manual_seed(step_seed(1, "step", 1))
    assert not torch.equal(torch.rand(3), wanted)
