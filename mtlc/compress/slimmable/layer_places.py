"""Finds for every layer of a network when it runs, at what resolution, and which tasks need it.

The network is run once on its example. Hooks note the order of the calls and the sizes of outputs; autograd tells
which tasks' outputs have a gradient for a layer's parameters, hence need it. So it holds for any network that can be
trained::

    image --> stem --> block --+--> head-a      stem, block: needed by a and b, part of the encoder
                               +--> head-b      head-a: needed by a alone, runs last: a's decoder
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from mtlc.errors import UserError
from mtlc.program.modes import all_trainable, evaluating
from mtlc.program.outputs import tensors_in
from mtlc.program.program import Program

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Place:
    """A layer's place: `order` of its first call, `positions` (pixels, tokens) of its output, `tasks` that need it."""

    order: int
    positions: int
    tasks: frozenset[str]


def survey(program: Program) -> dict[str, Place]:
    """The place of every module that has parameters of its own, by path, in the order in which they run.

    A layer that is not called itself (experts run as one operator) has the order of the module around it. A task whose
    output does not depend on any parameter is a `UserError`.
    """
    module, calls = program.module, dict[str, tuple[int, int]]()
    paths = {m: path for path, m in module.named_modules()}
    with evaluating(module), all_trainable(module), _recording(module, paths, calls), torch.enable_grad():
        outputs = program.outputs(program.example)
        parameters = dict(module.named_parameters())
        needed: dict[str, set[str]] = {}
        for task, output in outputs.items():
            if not output.requires_grad:
                raise UserError(
                    f"task {task!r}: its output depends on no parameter of the network; nothing to make slim"
                )
            # Any function of the output will do: what counts is not a gradient's value but that there is one.
            gradients = torch.autograd.grad(
                output.sum(), list(parameters.values()), retain_graph=True, allow_unused=True
            )
            for name, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    needed.setdefault(name.rpartition(".")[0], set()).add(task)
    places = {path: Place(*_called(path, calls), frozenset(tasks)) for path, tasks in needed.items()}
    return dict(sorted(places.items(), key=lambda item: item[1].order))


def decoder_layers(program: Program, places: Mapping[str, Place]) -> dict[str, list[str]]:
    """By task, the layers of its decoder in order. A task without layers of its own is left out.

    The decoder is the largest module that only the task needs and that runs last. A task's router inside the encoder is
    needed by it alone too, but is no decoder.
    """
    found: dict[str, list[str]] = {}
    for task in program.task_names:
        own = [path for path, place in places.items() if place.tasks == {task}]
        if not own:
            continue
        root = _largest_apart(own[-1], places, task)
        layers = [path for path in own if root in ("", path) or path.startswith(f"{root}.")]
        found[task] = [path for path in layers if _multiplies(program.module.get_submodule(path))]
    return found


def _largest_apart(path: str, places: Mapping[str, Place], task: str) -> str:
    """The outermost module around `path` in which all layers are needed by `task` alone."""
    # Outwards until a module holds something that another task needs, too.
    root = path
    while "." in root:
        around = root.rpartition(".")[0]
        inside = [place for name, place in places.items() if name == around or name.startswith(f"{around}.")]
        if any(place.tasks != {task} for place in inside):
            break
        root = around
    return root


def _multiplies(layer: nn.Module) -> bool:
    return isinstance(layer, (*_CONVS, nn.Linear))


def _called(path: str, calls: Mapping[str, tuple[int, int]]) -> tuple[int, int]:
    # A layer whose weights a module around it uses (experts) is never called: it runs when that module does.
    while path not in calls:
        if not path:
            return 0, 1
        path = path.rpartition(".")[0]
    return calls[path]


@contextmanager
def _recording(module: nn.Module, paths: Mapping[nn.Module, str], calls: dict[str, tuple[int, int]]) -> Iterator[None]:
    started: dict[str, int] = {}

    def enter(layer: nn.Module, _inputs: Any) -> None:
        started.setdefault(paths[layer], len(started))

    def leave(layer: nn.Module, _inputs: Any, output: Any) -> None:
        tensors = tensors_in(output)
        positions = _positions(layer, tensors[0]) if tensors else 1
        calls.setdefault(paths[layer], (started[paths[layer]], positions))

    # Order is that of entering, so a module stands before the layers inside it; only the first call counts.
    hooks = [m.register_forward_pre_hook(enter) for m in module.modules()]
    hooks += [m.register_forward_hook(leave) for m in module.modules()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _positions(layer: nn.Module, output: Tensor) -> int:
    """Pixels or tokens of a layer's output.

    Images keep their channels in dimension 1, tokens in the last, and so does what linear layers and layer norms give.
    """
    last = isinstance(layer, nn.Linear | nn.LayerNorm) or (output.ndim != 4 and not isinstance(layer, _CONVS))
    return prod(output.shape[1:-1]) if last else prod(output.shape[2:])
