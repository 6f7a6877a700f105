"""Gradient checkpointing: the same numbers bit for bit, and parts that run twice."""

from __future__ import annotations

import torch
from testkit import tiny_networks
from testkit.tiny_networks import REGRESSION, same_state
from testkit.wide_networks import TASKS, fresh
from torch import nn

from mtlc.compress.slimmable.sandwich_training import SlimTrainConfig, train_supernet
from mtlc.compress.training.gradient_checkpointing import checkpointed_parts, gradient_checkpointing
from mtlc.compress.training.train_config import TrainConfig
from mtlc.compress.training.trainer import train
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.splits import Splits
from mtlc.program.program import ModelSource, Program


def network() -> nn.Module:
    module = tiny_networks.chain()
    module.body[2] = nn.Dropout(0.2)
    return module


def test_the_parts_are_disjoint_and_of_two_layers_at_least():
    blocks = nn.ModuleList(nn.Sequential(*(nn.Conv2d(4, 4, 1) for _ in range(3))) for _ in range(3))
    module = nn.Sequential(nn.Conv2d(3, 4, 1), blocks, nn.Linear(4, 4))  # eleven layers: parts of four at most
    assert checkpointed_parts(module) == ["1.0", "1.1", "1.2"]


def test_training_gives_the_same_network_bit_for_bit():
    """With batch norms, whose statistics must move once, and dropout, which must drop the same again."""
    found, calls = {}, {}
    for again in (False, True):
        torch.manual_seed(3)
        module, calls[again] = network(), 0
        program = Program(
            module, REGRESSION, {"image": torch.zeros(2, 3, 8, 8)}, ModelSource("testkit.tiny_networks:chain")
        )

        def count(*_, key=again) -> None:
            calls[key] += 1

        hook = module.body[0].register_forward_hook(count)
        data = tiny_networks.taught(tiny_networks.chain_program(REGRESSION), 8, 0)
        config = TrainConfig(epochs=3, batch_size=4, precision="float32", gradient_checkpointing=again)
        train(program, Splits(data, data, data, identity="x"), Criteria(REGRESSION), config)
        hook.remove()
        found[again] = module
    assert same_state(found[False], found[True])
    assert calls[True] == calls[False] + 6  # once more in each of the six steps
    assert not any("forward" in vars(layer) for layer in found[True].modules())


def test_less_is_kept_for_the_backward_pass():
    def kept(module: nn.Module) -> int:
        sizes: dict[int, int] = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: sizes.update({tensor.data_ptr(): tensor.numel()}) or tensor, lambda tensor: tensor
        ):
            module(torch.rand(2, 3, 8, 8))
        return sum(sizes.values())

    module = tiny_networks.chain().train()
    plain = kept(module)
    with gradient_checkpointing(module) as parts:
        assert parts == ["stem", "body"]
        assert kept(module) < 0.5 * plain


def test_networks_that_route_and_whose_features_are_compared():
    """What a forward keeps, as routers do, and what is read inside of a part, come out as without."""
    found = []
    for again in (False, True):
        program = tiny_networks.moe_program(REGRESSION)
        data = tiny_networks.taught(program, 4, 0)
        config = TrainConfig(
            epochs=2, batch_size=4, precision="float32", gradient_checkpointing=again, routing="balance",
            distill=1.0, distill_features=1.0,
        )  # fmt: skip
        splits, teacher = Splits(data, data, data, identity="x"), tiny_networks.moe_program(REGRESSION)
        train(program, splits, Criteria(REGRESSION), config, teacher=teacher)
        found.append(program.module)
    assert "backbone.blocks.1" in checkpointed_parts(found[0])
    assert same_state(*found)


def test_all_widths_of_a_step():
    """Each is run again at its own width, with statistics of its own."""
    found = []
    for again in (False, True):
        supernet = fresh("grouped")
        data = tiny_networks.taught(supernet.program, 4, 0)
        config = SlimTrainConfig(epochs=2, batch_size=4, precision="float32", gradient_checkpointing=again)
        train_supernet(supernet, Splits(data, data, data, identity="x"), Criteria(TASKS), config)
        found.append(supernet.program.module)
    assert checkpointed_parts(found[0]) == ["stem", "grouped", "heads.depth", "heads.semseg"]
    assert same_state(*found)
