"""Tries one training step before anything is trained, at the batch size of the training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from mtlc.compress.pipeline.identity import own_generators
from mtlc.compress.training.batch_norm import freeze_norms
from mtlc.compress.training.train_config import TrainConfig
from mtlc.compress.training.trainer import Trainer
from mtlc.errors import MtlcError, UserError, one_line
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.splits import Splits, Watch, fetch
from mtlc.program.program import Program

_HINTS = {
    "does not require grad": "; the forward leaves torch or runs under no_grad, so no gradient reaches the weights",
    "more than 1 value per channel": "; a batch norm cannot train on one value per channel: raise batch_size",
    "modified by an inplace operation": "; in training a forward must not write into what a layer gave, as "
    "y[..., 0] = … does: decode in evaluation mode only, or leave it to what comes after the network",
    "out of memory": "; lower batch_size",
}


def check_first_step(
    program: Program,
    splits: Splits,
    criteria: Criteria,
    config: TrainConfig,
    *,
    where: str,
    seed: int = 0,
    frozen_norms: bool = False,
    watch: Watch | None = None,
) -> list[str]:
    """Train a copy of the network for one step, on the samples that training begins with.

    So a task without an output in training mode, a batch norm with one value per channel, a loss without a gradient
    and a batch that does not fit into memory are found here. `frozen_norms` is for a training that leaves the
    statistics of batch norms alone. `watch` is given the samples first, so that their labels are not blamed on the
    training. Returns the outputs of training mode that no task names. Raises what training raises, and `UserError` that
    begins with `where` and names the layer, if one raised.
    """
    config = config.model_copy(
        update={"ema": 0.0, "distill": 0.0, "distill_features": 0.0}
    )  # their copies of the network say nothing new
    running: list[str] = []
    batch = min(config.batch_size, len(splits.train))
    with own_generators(), torch.random.fork_rng(devices=[]):  # another thread's pass may be drawing
        with _placed(where, batch, running):
            trainer = Trainer(program.clone(), splits, criteria, config, seed, None, None)
        if watch is not None:
            indices = trainer.first_indices()
            watch(splits.train, indices, fetch(splits.train, indices))
        if frozen_norms:
            freeze_norms(trainer.module)
        with _placed(where, batch, running), _watched(trainer.module, running):
            trainer.first_step()
    return trainer.unnamed


@contextmanager
def _placed(where: str, batch: int, running: Sequence[str]) -> Iterator[None]:
    """Put the place in the job in front of what is raised, and the innermost layer that was running."""
    try:
        yield
    except MtlcError as error:
        raise type(error)(f"{where}: {error}") from error
    except Exception as error:  # the network, the losses and the data are the user's
        layer = f", layer {running[-1]!r}" if running else ""
        text = one_line(error)
        hint = next((hint for words, hint in _HINTS.items() if words in text), "")
        raise UserError(f"{where}: a training step on {batch} samples{layer}: {text}{hint}") from error


@contextmanager
def _watched(module: nn.Module, running: list[str]) -> Iterator[None]:
    """Within the block `running` has the paths of the layers that run, the innermost last."""

    def begin(name: str) -> Any:
        return lambda layer, inputs: running.append(name)

    def end(layer: nn.Module, inputs: Any, output: Any) -> None:
        running.pop()

    hooks = []
    for name, layer in module.named_modules():
        if name:
            hooks += [layer.register_forward_pre_hook(begin(name)), layer.register_forward_hook(end)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
