"""Networks run where they are told to, with the CPU's numbers, and come back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from testkit import pretended_device, tiny_networks
from testkit.tiny_networks import same_state, taught, taught_splits
from torch import nn

from mtlc.compress.channels.channel_groups import ChannelGroups
from mtlc.compress.pagcp.oracle import Oracle
from mtlc.compress.slimmable.importance import importances
from mtlc.compress.training.batch_norm import recalibrate_batchnorm
from mtlc.compress.training.train_config import TrainConfig
from mtlc.compress.training.trainer import train
from mtlc.errors import UserError
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.evaluate import evaluate
from mtlc.program.placement import compute_device, computing_on, device_of, find_device, placed

CPU = torch.device("cpu")


@pytest.fixture
def device() -> Iterator[torch.device]:
    with pretended_device.pretended() as device:
        yield device


def on_both(run, device):
    """What `run` gives on the CPU and on the device, and that the device computed something."""
    with computing_on(CPU):
        wanted = run()
    pretended_device.operators.clear()
    with computing_on(device):
        found = run()
    assert {"aten.convolution", "aten.convolution_backward"} & set(pretended_device.operators)
    return wanted, found


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cuda:7", "'cuda:7' is not there: this machine has no cuda device that torch can use; leave it out, or say"),
        ("gpu", "'gpu': give auto, cpu, cuda, cuda:1 or mps"),
        ("cuda:x", "give auto, cpu, cuda, cuda:1 or mps"),
        ("meta", "computes nothing"),
        ("pretended:3", "'pretended:3' is not there: this machine has pretended:0"),
    ],
)
def test_a_device_that_is_not_there(device, name, message):
    if name.startswith("cuda") and torch.cuda.is_available():
        pytest.skip("it may be there")
    with pytest.raises(UserError, match=message):
        find_device(name)


def test_blocks_nest(device):
    with computing_on("cpu"):
        assert compute_device() == CPU
        with computing_on(device):
            assert compute_device() == device
        assert compute_device() == CPU
    assert find_device("pretended") == device == find_device("pretended:0")
    assert find_device("cpu") == CPU


def test_a_network_comes_back_even_from_an_error(device):
    network = nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match="mat1"), computing_on(device), placed(network):
        network(torch.ones(3, device=device_of(network)))
    assert device_of(network) == CPU


def test_what_a_gpu_refuses_is_refused(device):
    with pytest.raises(RuntimeError, match="same device"):
        torch.ones(2, device=device) + torch.ones(2)
    assert (torch.ones(2, device=device) + torch.ones(())).tolist() == [2, 2]


def test_evaluation(device):
    program = tiny_networks.chain_program()
    data = taught(program, 9, 0, noise=0.1)
    wanted, found = on_both(lambda: evaluate(program, Criteria(program.tasks), data, 4), device)
    assert found == wanted
    assert device_of(program.module) == CPU


def test_training(device):
    """Bit for bit: what trains on the device is what trains on the CPU."""
    start = tiny_networks.chain_program()
    splits = taught_splits(start)

    def run():
        program = start.clone()
        report = train(program, splits, Criteria(program.tasks), TrainConfig(epochs=2, batch_size=4, ema=0.5), seed=3)
        return program, report["losses"]

    (wanted, losses), (found, also) = on_both(run, device)
    assert losses == also
    assert same_state(wanted.module, found.module)
    assert not same_state(start.module, found.module)


def test_batch_norm_statistics(device):
    start = tiny_networks.chain_program()
    splits = taught_splits(start)

    def run():
        program = start.clone()
        recalibrate_batchnorm(program, splits, 8, 4)
        return program

    wanted, found = on_both(run, device)
    assert same_state(wanted.module, found.module)
    assert not same_state(start.module, found.module)


def test_importance(device):
    program = tiny_networks.chain_program()
    units = ChannelGroups(program.module, program.example_inputs()).units
    data = taught(program, 8, 0, noise=0.1)
    wanted, found = on_both(lambda: importances(program, units, Criteria(program.tasks), data, "taylor", 8), device)
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)


@pytest.mark.parametrize("settings", [{}, {"cached": False}, {"cache_bytes": 0}, {"reconstruct": True}])
def test_the_oracle(device, settings):
    """Trials, commits and resets; zeros, whole forwards and what the kept channels make up for."""
    program = tiny_networks.chain_program()
    data = taught(program, 8, 0, noise=0.1)

    def run():
        groups = ChannelGroups(program.module, program.example_inputs())
        oracle = Oracle(program, groups, Criteria(program.tasks), data, batch_size=4, **settings)
        found = [oracle.original]
        for name, unit in oracle.units.items():
            gone = list(range(0, unit.channels, 2))
            found.append(oracle.trial(name, gone))
            oracle.commit(name, gone, found[-1])
        weights = oracle.reconstructed()
        found.append(oracle.reset({}))
        return found, {name: weight.cpu() for name, weight in weights.items()}

    (wanted, weights), (found, also) = on_both(run, device)
    assert found == wanted
    assert weights.keys() == also.keys()
    assert all(torch.equal(weights[name], also[name]) for name in weights)
    assert device_of(program.module) == CPU
