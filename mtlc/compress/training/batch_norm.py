"""Measures the statistics of batch norms anew, on calibration data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from mtlc.errors import MtlcError, UserError, one_line
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.evaluate import evaluate
from mtlc.evaluation.splits import Splits, batches
from mtlc.log import Log, silent
from mtlc.program.placement import device_of, moved, placed
from mtlc.program.program import Program


def recalibrate_batchnorm(
    program: Program, splits: Splits, samples: int = 512, batch_size: int = 64, log: Log = silent
) -> int:
    """Set running statistics to their mean over training samples, in place; returns how many layers were set.

    A layer's mean and variance are the means of those of the batches, each batch weighted with the values per channel
    that the layer saw of it, so a last batch of fewer samples counts for less (Ioffe and Szegedy, ICML 2015,
    algorithm 2, has batches of one size). Batch norms of every kind count, synchronised ones too, and instance norms
    that keep statistics. Only they run in training mode, so dropout and the like stay off. A layer that the network
    does not run keeps what it had. `log` is told where no layer was set. Raises `UserError` naming the layer that has
    too few values for a variance.
    """
    norms = {
        name: module
        for name, module in program.module.named_modules()
        if isinstance(module, _NormBase) and module.track_running_stats and module.running_mean is not None
    }
    count = min(samples, len(splits.train))
    if not norms:
        log("no batch norm of the network keeps statistics: there are none to measure")
        return 0
    if count < 2:  # one sample may have no variance: keep the statistics
        log(f"batch-norm statistics stay as they were: {count} training samples have no variance, give 2 or more")
        return 0
    program.module.eval()
    with placed(program.module):
        measured = [_Statistics(name, norm) for name, norm in norms.items()]
        try:
            for statistics in measured:
                statistics.begin()
            _run(program, splits, samples, batch_size, measured)
        finally:
            for statistics in measured:
                statistics.end()
            program.module.eval()
    done = sum(statistics.values > 0 for statistics in measured)
    if done == 0:
        log("batch-norm statistics stay as they were: the network's forward runs none of its batch norms")
    return done


def recalibrate_where_better(
    program: Program, splits: Splits, criteria: Criteria, samples: int, batch_size: int = 64
) -> bool | None:
    """`recalibrate_batchnorm`, undone where the old statistics serve the calibration split better.

    Better is a loss that fell, in the mean over tasks, as a share of what it was; one that is no number is worse.
    Returns whether the new ones stay, None where none were measured.
    """
    old = {name: value.clone() for name, value in program.module.state_dict().items()}
    before = evaluate(program, criteria, splits.calibration, batch_size).losses
    if not recalibrate_batchnorm(program, splits, samples):
        return None
    after = evaluate(program, criteria, splits.calibration, batch_size).losses
    # From the old losses up, so that losses below zero are ordered too.
    if not sum((after[t] - before[t]) / max(abs(before[t]), 1e-12) for t in before) <= 0:
        program.module.load_state_dict(old)
        return False
    return True


def freeze_norms(module: nn.Module) -> None:
    """Let norms that keep statistics normalise with them, and change them no more, while the rest of `module` trains.

    The next ``module.train()`` undoes it.
    """
    for layer in module.modules():
        if isinstance(layer, _NormBase) and layer.track_running_stats:
            layer.eval()


def _run(program: Program, splits: Splits, samples: int, batch_size: int, measured: Sequence[_Statistics]) -> None:
    """Feed the samples, batch by batch; a batch of one is left out."""
    with torch.no_grad():
        for batch in batches(splits.train, batch_size, samples):
            if len(next(iter(batch.values()))) < 2:
                continue
            try:
                program.module(
                    *moved({name: batch[name] for name in program.inputs}, device_of(program.module)).values()
                )
            except MtlcError:
                raise
            except Exception as error:  # the forward is the user's
                where = next((f"layer {one.name!r}: " for one in measured if one.running), "")
                raise UserError(f"{where}batch-norm statistics cannot be measured: {one_line(error)}") from error


class _Statistics:
    """The mean of one layer's statistics over the batches that it sees.

    Torch moves running statistics by ``momentum`` towards those of each batch. With a momentum of n / (all n so far),
    set anew before each call, that is their mean weighted with n, also where a layer is called twice in one forward.
    """

    def __init__(self, name: str, norm: _NormBase) -> None:
        self.name, self.values, self.running = name, 0, False
        self._norm, self._momentum = norm, norm.momentum
        self._before = {key: value.clone() for key, value in norm.named_buffers(recurse=False)}
        self._hooks: list[Any] = []

    def begin(self) -> None:
        self._norm.reset_running_stats()
        self._norm.train()
        self._hooks = [
            self._norm.register_forward_pre_hook(self._weigh),
            self._norm.register_forward_hook(self._called),
        ]

    def end(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._norm.momentum = self._momentum
        if not self.values:
            for key, value in self._before.items():
                self._norm.get_buffer(key).copy_(value)

    def _weigh(self, norm: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.running = True
        new = inputs[0].numel() // self._norm.num_features
        self.values += new
        self._norm.momentum = new / max(self.values, 1)

    def _called(self, norm: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        self.running = False
