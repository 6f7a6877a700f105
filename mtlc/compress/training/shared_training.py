"""Sends the first process's trainings to the others, which take part in each until it is done.

    process 0    prune ── fine-tune ── evaluate ── prune ── fine-tune ── … ── write
    process 1    (waits)  fine-tune    (waits)              fine-tune         (waits)

What is sent is the training before its first step: network, settings, losses, and the teacher if there is one. The data
each process opens itself.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MethodType, SimpleNamespace
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.utils import parametrize

from mtlc.compress.training.process_group import ProcessFailed, ProcessGroup
from mtlc.compress.training.training_state import TrainingState
from mtlc.errors import UserError, one_line
from mtlc.evaluation.splits import Splits


class Diverged(UserError):
    """A training in which a loss became no finite number: every process sees it at the same step."""


class Helping(Protocol):
    """A training as the other processes see it."""

    def help(self, steps: int | None) -> None:
        """Take part in it, in all of it or in its first steps."""


Maker = Callable[[Splits], Helping]
"""Makes the training that was sent, on a process's own data."""


def send_training(group: ProcessGroup, make: Maker, samples: int, steps: int | None) -> None:
    """Begin a training in the other processes too. Raises `UserError` where its network cannot be sent."""
    try:
        sent = packed((make, samples, steps))
    except Exception as error:  # whatever a class of the user's raises
        raise UserError(
            f"the training cannot be sent to the other processes: {one_line(error)}; define the network's classes and "
            "functions at the top of a module, or train in one process"
        ) from error
    group.said(sent)


def help_until_done(group: ProcessGroup, splits: Splits) -> None:
    """Take part in the trainings of the first process until it has no more."""
    while (sent := group.said()) is not None:
        make, samples, steps = unpacked(sent)
        if samples != len(splits.train):
            raise UserError(
                f"[data] the train split has {len(splits.train)} samples here, and {samples} in process 0: every "
                "process must get the same data"
            )
        try:
            make(splits).help(steps)
        except Diverged:
            continue  # the first process raises it too, and decides what follows


@contextmanager
def sharing(
    group: ProcessGroup | None, module: nn.Module, make: Callable[[], Maker], samples: int, steps: int | None
) -> Iterator[None]:
    """Within the block all processes of a `group` train, each on its share; without a group it is this one alone.

    The first one sends what `make` gives. Layers train or not (norms may be frozen) as they do in its `module`.
    Whatever is raised in the block but `Diverged` is a `ProcessFailed`, which nobody takes for a failed try: the others
    are in the middle of a step then.
    """
    if group is None:
        yield
        return
    if group.leads:
        send_training(group, make(), samples, steps)
    modes = {name: layer.training for name, layer in module.named_modules()}
    for name, training in group.said(modes if group.leads else None).items():
        module.get_submodule(name).training = training
    try:
        yield
    except Diverged:
        raise
    except UserError as error:
        raise ProcessFailed(str(error)) from error


def agreed(
    group: ProcessGroup, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, state: TrainingState
) -> TrainingState:
    """Give every process the first one's tensors of `modules` and `optimizer`, in place; its `state` is returned."""
    if group.leads:
        held = {prefix: module.state_dict() for prefix, module in modules.items()}
        group.said(packed((held, optimizer.state_dict()["state"], state)))
        return state
    tensors, moments, found = unpacked(group.said())
    for prefix, module in modules.items():
        module.load_state_dict(tensors[prefix])
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    return found  # type: ignore[no-any-return]


def all_done(group: ProcessGroup) -> None:
    """Let the other processes go."""
    group.said(None)


def packed(value: Any) -> bytes:
    """What `unpacked` makes `value` of in another process of the same command, its tensors on the CPU."""
    buffer = io.BytesIO()
    torch.save(value, buffer, pickle_module=_PICKLE)
    return buffer.getvalue()


def unpacked(sent: bytes) -> Any:
    """What another process of the same command has `packed`."""
    return torch.load(io.BytesIO(sent), map_location="cpu", weights_only=False)


class _Pickler(pickle.Pickler):
    """Pickles networks, with what torch leaves out or cannot: methods put on a layer, and parametrised weights."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, MethodType):
            # By its function: under its name the layer's class may have another one.
            return _bound, (value.__func__, value.__self__)
        if isinstance(value, nn.Module) and parametrize.is_parametrized(value):
            return _parametrised(value)
        return NotImplemented


_PICKLE: Any = SimpleNamespace(Pickler=_Pickler, __name__="pickle")


def _bound(function: Callable[..., Any], owner: Any) -> MethodType:
    return MethodType(function, owner)


def _parametrised(layer: nn.Module) -> tuple[Any, ...]:
    """How a layer with parametrised tensors is made again: the plain layer, and then its parametrisations."""
    found = {name: list(one) for name, one in layer.parametrizations.items()}  # type: ignore[union-attr,operator]
    state = dict(layer.__dict__)
    # Torch's weight_norm puts one there that does not pickle; they are for files of its older form.
    state["_load_state_dict_pre_hooks"] = type(layer._load_state_dict_pre_hooks)()
    state["_modules"] = {name: one for name, one in layer._modules.items() if name != "parametrizations"}
    state["_parameters"] = dict(layer._parameters) | {
        name: nn.Parameter(getattr(layer, name).detach().clone()) for name in found
    }
    tensors = layer.parametrizations.state_dict()  # type: ignore[union-attr]
    return _parametrised_again, (type(layer).__bases__[0], state, found, tensors)


def _parametrised_again(
    kind: type[nn.Module], state: dict[str, Any], found: dict[str, list[nn.Module]], tensors: dict[str, torch.Tensor]
) -> nn.Module:
    layer = kind.__new__(kind)
    layer.__dict__.update(state)
    for name, parametrisations in found.items():
        for one in parametrisations:
            parametrize.register_parametrization(layer, name, one, unsafe=True)
    # Those that the weight was made of: from the weight alone they come out as others that make the same.
    layer.parametrizations.load_state_dict(tensors)  # type: ignore[union-attr]
    return layer
