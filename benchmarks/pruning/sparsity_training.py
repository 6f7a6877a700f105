"""Trains a network with torch-pruning's group-norm regulariser, which drives whole channels towards zero.

The sparsity training of DepGraph (Fang et al., CVPR 2023): to each step's gradients comes that of a norm over all
weights of a channel, the stronger the less the channel matters. The method has it before it cuts.
"""

from __future__ import annotations

from typing import Any

import torch_pruning as tp
from torch import Tensor

from mtlc.compress.channels.channel_groups import ChannelGroups
from mtlc.compress.training.trainer import Trainer
from mtlc.evaluation.splits import Batch
from mtlc.program.modes import evaluating
from mtlc.program.program import Program

STRENGTH = 5e-4
"""The factor of the regulariser, as in the authors' own runs."""


class SparsityTrainer(Trainer):
    """A training whose gradients pull the channels that matter least towards zero."""

    def __init__(self, program: Program, *rest: Any) -> None:
        super().__init__(program, *rest)
        self._pruner = _regulariser(self.module, program)

    def learn(self, batch: Batch, inputs: list[Tensor]) -> dict[str, float]:
        values = super().learn(batch, inputs)
        self._pruner.regularize(self.module)
        return values


def _regulariser(module: Any, program: Program) -> Any:
    """torch-pruning's pruner of the network; it leaves alone what no method may cut."""
    example = tuple(tensor.to(next(module.parameters()).device) for tensor in program.example_inputs())
    groups = ChannelGroups(module, example)
    makers = {member.layer for unit in groups.units for member in unit.producers}
    ignored = [
        layer
        for name, layer in module.named_modules()
        if isinstance(layer, (tp.ops.TORCH_CONV, tp.ops.TORCH_LINEAR)) and name not in makers
    ]
    with evaluating(module):
        return tp.pruner.GroupNormPruner(
            module, example, tp.importance.GroupMagnitudeImportance(p=2), reg=STRENGTH, ignored_layers=ignored,
            in_channel_groups={}, out_channel_groups={}, num_heads={},
        )  # fmt: skip
