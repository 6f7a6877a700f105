"""Makes layers that run in training mode only fit a network that lost channels.

Channels are coupled as the network runs in evaluation mode, so a head that exists in training only is not seen: it goes
on reading all the channels that were there::

    before   stem 32 --+-- body ...            after   stem 24 --+-- body ...
                       +-- early (reads 32)                      +-- early (reads 32: does not run)

Which of its inputs are left is told by what it reads: the channels that stayed have the values that they had in the
whole network, in the same order. The cut is recorded as a step of surgery like any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mtlc.compress.compare_with_masked import Masking
from mtlc.errors import VerificationError, one_line
from mtlc.program.program import Program
from mtlc.program.surgery import Step, shrink

_CLOSE = 1e-4
"""How far a channel may be from what it was, of the largest value, to be the same: rounding is less."""

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def fit_training_branches(whole: Program, masking: Masking, built: Program, batch: Mapping[str, Tensor]) -> list[Step]:
    """Cut the layers of `built`, in place, that do not run in training mode with the channels that are left.

    `whole` under `masking` computes what `built` does, with all channels there. Returns the steps of surgery; a network
    that does not run in training mode as it was is left alone. Raises `VerificationError` naming the layer where it
    cannot be told which channels it reads.
    """
    steps: list[Step] = []
    if _running(built, batch) is None or _running(whole, batch) is not None:
        return steps  # it runs, or it never did, as a network that is given its labels in training
    for _ in built.module.modules():  # every layer once at most
        failed = _running(built, batch)
        if failed is None:
            return steps
        path, read, error = failed
        layer = built.module.get_submodule(path) if path else None
        if layer is None or read is None or not isinstance(getattr(layer, "weight", None), nn.Parameter):
            raise VerificationError(f"{_where(path)} does not run in training mode without what was cut: {error}")
        with masking(whole):
            wanted = _reads(whole, batch, path)
        gone = None if wanted is None else _lost(layer, wanted, read)
        if not gone:
            raise VerificationError(
                f"{_where(path)} runs in training mode only, and which of its channels are left is not known "
                f"({error}); leave what it reads out: ignore"
            )
        # A layer that makes each channel of one that it reads loses outputs, any other inputs.
        through = isinstance(layer, nn.modules.batchnorm._NormBase | nn.GroupNorm | nn.LayerNorm | nn.PReLU)
        through = through or getattr(layer, "groups", 1) > 1
        sides = (gone, []) if through else ([], gone)
        try:
            shrink(layer, *sides)
        except ValueError as reason:
            raise VerificationError(f"{_where(path)} runs in training mode only, and cannot be cut: {reason}") from None
        steps.append({"kind": "slice", "layers": [[path, *sides]], "tensors": [], "attributes": []})
    raise VerificationError("the network does not run in training mode without what was cut")


def _where(path: str) -> str:
    return f"layer {path!r}" if path else "the network's forward"


def _running(program: Program, batch: Mapping[str, Tensor]) -> tuple[str, Tensor | None, str] | None:
    """The innermost layer that fails in training mode, what it was given and what it says; None where all run."""
    entered: list[tuple[str, Tensor | None]] = []

    def begin(path: str) -> Any:
        return lambda _layer, inputs: entered.append((path, next((x for x in inputs if isinstance(x, Tensor)), None)))

    def end(_layer: nn.Module, _inputs: Any, _output: Any) -> None:
        entered.pop()

    with _hooked(program.module, begin, end), _training_structure(program.module):
        try:
            _run(program, batch)
        except Exception as error:  # whatever a layer says of sizes that do not fit
            path, read = entered[-1] if entered else ("", None)
            return path, read, one_line(error)
    return None


def _reads(program: Program, batch: Mapping[str, Tensor], path: str) -> Tensor | None:
    """What the layer reads in training mode; None where it does not run."""
    read: list[Tensor] = []
    layer = program.module.get_submodule(path)
    hook = layer.register_forward_pre_hook(lambda _layer, inputs: read.append(inputs[0]))
    try:
        with _training_structure(program.module):
            _run(program, batch)
    except Exception:  # the masked network may stop later on: what the layer reads is known by then
        pass
    finally:
        hook.remove()
    return read[0] if read else None


def _run(program: Program, batch: Mapping[str, Tensor]) -> None:
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        program.module(*(batch[name] for name in program.inputs))


def _lost(layer: nn.Module, wanted: Tensor, read: Tensor) -> list[int] | None:
    """The channels of `wanted` that `read` lacks; None where it has others. Both keep their order."""
    dimension = -1 if isinstance(layer, nn.Linear | nn.LayerNorm) else 1
    before, left = (tensor.detach().double().movedim(dimension, 0).flatten(1) for tensor in (wanted, read))
    if before.shape[1] != left.shape[1]:
        return None
    allowed, gone, place = _CLOSE * float(before.abs().max()), [], 0
    for channel in range(len(before)):
        if place < len(left) and float((before[channel] - left[place]).abs().max()) <= allowed:
            place += 1
        else:
            gone.append(channel)
    return gone if place == len(left) else None


@contextmanager
def _hooked(module: nn.Module, begin: Any, end: Any) -> Iterator[None]:
    hooks: list[Any] = []
    for path, layer in module.named_modules():
        hooks += [layer.register_forward_pre_hook(begin(path)), layer.register_forward_hook(end)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _training_structure(module: nn.Module) -> Iterator[None]:
    """Within the block the network takes the ways of training mode, and its norms and dropouts those of evaluation."""
    modes = {layer: layer.training for layer in module.modules()}
    for layer in modes:
        layer.training = isinstance(layer, _CONTAINERS) or not type(layer).__module__.startswith("torch.nn.")
    try:
        yield
    finally:
        for layer, mode in modes.items():
            layer.training = mode
