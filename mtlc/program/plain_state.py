"""Keeps what a network's code stores in plain attributes from coming between its calls.

Torch moves, casts, copies and saves parameters and buffers. Code of others also keeps tensors in plain attributes:
constants that ought to go along, and caches that the next call would take for its own though weights, sizes or the
device have changed. `settle` makes both safe::

    self.stride = torch.tensor([8., 16.])      goes along with .to(), .double() and copies
    self.cache = None                          what a call in evaluation puts there is gone when the next begins
    self.steps += 1                            undone in evaluation, too, and kept in training, where schedules count

What is changed between calls, as by surgery, stays.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_OF_TORCH = frozenset(vars(nn.Module()))
"""The attributes that every module has: they are torch's own to keep."""

_DEEPEST = 4  # containers within containers that are looked through
_ABSENT = "no such attribute of the layer"


def settle(module: nn.Module) -> None:
    """Let plain tensors of `module` go along with it, and let no call in evaluation leave a trace for the next."""
    for layer in _own_code(module):
        layer.__dict__["_apply"] = MethodType(_apply, layer)
    keeper = _Keeper()
    module.register_forward_pre_hook(keeper.begins)
    module.register_forward_hook(keeper.ends, always_call=True)


def copied(module: nn.Module, share_parameters: bool = False) -> nn.Module:
    """A deep copy. Tensors that hang on a graph, such as features that a forward kept, are copied without it.

    With `share_parameters` those on the CPU are the original's own, for copies that only compute: a forward changes
    buffers, never parameters, and half of the memory of a large network is spared.
    """
    shared = [one for one in module.parameters() if one.device.type == "cpu"] if share_parameters else []
    with _WithoutGraph():
        return copy.deepcopy(module, {id(one): one for one in shared})


class _WithoutGraph(TorchFunctionMode):
    """Torch copies no tensor that has a graph."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is not Tensor.__deepcopy__ or args[0].is_leaf:
            return func(*args, **(kwargs or {}))
        tensor, memo = args
        if id(tensor) not in memo:
            memo[id(tensor)] = tensor.detach().clone()
        return memo[id(tensor)]


def _apply(self: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """`nn.Module._apply`, through which a network is moved and cast, for its plain tensors too."""
    type(self)._apply(self, fn, recurse)
    with torch.no_grad():
        for key, value in list(_plain(self)):
            if _holds_tensor(value):
                self.__dict__[key] = _mapped(value, fn)
    return self


def _mapped(value: Any, fn: Callable[[Tensor], Tensor], depth: int = 0) -> Any:
    """`value` with `fn` of every tensor in it; lists and dicts stay the same objects."""
    if isinstance(value, Tensor):
        return fn(value.detach())
    if depth == _DEEPEST:
        return value
    if isinstance(value, list):
        value[:] = [_mapped(one, fn, depth + 1) for one in value]
    elif isinstance(value, dict):
        for key in value:
            value[key] = _mapped(value[key], fn, depth + 1)
    elif type(value) is tuple:
        return tuple(_mapped(one, fn, depth + 1) for one in value)
    return value


def _holds_tensor(value: Any, depth: int = 0) -> bool:
    if isinstance(value, Tensor):
        return True
    if depth == _DEEPEST:
        return False
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple | set) else ()
    return any(_holds_tensor(one, depth + 1) for one in inner)


def _own_code(module: nn.Module) -> Iterator[nn.Module]:
    """The layers whose class is not torch's own: those that may keep anything."""
    return (layer for layer in module.modules() if not type(layer).__module__.startswith("torch.nn."))


def _plain(layer: nn.Module) -> Iterator[tuple[str, Any]]:
    return ((key, value) for key, value in vars(layer).items() if key not in _OF_TORCH and key != "_apply")


def _shallow(value: Any) -> Any:
    """A copy of a container, to tell later what was put into it; anything else itself."""
    return copy.copy(value) if type(value) in (dict, list, set) else value


def _same(one: Any, other: Any) -> bool:
    """Whether an attribute still is what it was: the same object, or a container of the same objects."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(value is other[key] for key, value in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))
    if isinstance(one, set):
        return bool(one == other)
    return one is other or (
        isinstance(one, int | float | str | bool | tuple) and not _holds_tensor(one) and one == other
    )


class _Keeper:
    """The hooks of one network. What a call in evaluation changed is noted when it ends, and undone as another begins.

    It is not undone at once: what is asked of a forward, such as the losses of routers, is read in between. Where a
    call changed the structure in a layer, as one that builds itself when it sees its first input or puts hooks on its
    parts, the layer's flags stay, and only tensors go.
    """

    def __init__(self) -> None:
        self._before: list[tuple[nn.Module, _State]] = []
        self._structure: dict[nn.Module, list[Any]] = {}
        self._changed: list[tuple[nn.Module, str, str, Any, Any]] = []
        self._running = 0

    def begins(self, module: nn.Module, _inputs: Any) -> None:
        self._running += 1
        if self._running > 1:  # a network that calls itself
            return
        self._undo()
        if not torch.is_inference_mode_enabled():
            _leave_inference(module)
        if not module.training:
            self._before = [(layer, _State(layer)) for layer in _own_code(module)]
            self._structure = {layer: _structure(layer) for layer in module.modules()}

    def ends(self, module: nn.Module, _inputs: Any, _outputs: Any) -> None:
        self._running -= 1
        if self._running:
            return
        if self._before:
            built = {layer for layer in module.modules() if self._structure.get(layer) != _structure(layer)}
            for layer, before in self._before:
                flags = not built or built.isdisjoint(layer.modules())
                self._note(layer, "__dict__", before.plain, dict(_plain(layer)), flags)
                if flags:
                    self._note(layer, "_buffers", before.buffers, dict(layer._buffers))
        self._before, self._structure = [], {}
        if torch.compiler.is_compiling():  # an exporter refuses a network that has changed when it ends
            self._undo()

    def _note(
        self, layer: nn.Module, store: str, before: Mapping[str, Any], now: Mapping[str, Any], flags: bool = True
    ) -> None:
        for key in before.keys() | now.keys():
            old, new = before.get(key, _ABSENT), now.get(key, _ABSENT)
            if not _same(old, new) and (flags or _holds_tensor(new)):
                # By layer, not by its dict: a copy of the network has to find its own.
                self._changed.append((layer, store, key, old, _shallow(new)))

    def _undo(self) -> None:
        for layer, name, key, old, left in reversed(self._changed):
            store = getattr(layer, name)
            now = store.get(key, _ABSENT)
            if not _same(left, now):
                continue  # changed by somebody else since
            if old is _ABSENT:
                del store[key]
            elif isinstance(now, dict | list | set) and type(now) is type(old):
                _refill(now, old)  # the same object, which other attributes may be, too
            else:
                store[key] = old
        self._changed = []


class _State:
    """What a layer holds before a call."""

    def __init__(self, layer: nn.Module) -> None:
        self.plain = {key: _shallow(value) for key, value in _plain(layer)}
        self.buffers = dict(layer._buffers)


def _structure(layer: nn.Module) -> list[Any]:
    """The names of what a layer has, its parts, and its hooks."""
    parts = [(name, id(part)) for name, part in layer._modules.items()]
    hooks = [len(layer._forward_hooks), len(layer._forward_pre_hooks)]
    return [list(layer._parameters), list(layer._buffers), parts, hooks]


def _refill(now: Any, old: Any) -> None:
    now.clear()
    if isinstance(now, list):
        now.extend(old)
    else:
        now.update(old)


def _leave_inference(module: nn.Module) -> None:
    """Make ordinary tensors of buffers that a forward in inference mode has put in the place of others."""
    for layer in _own_code(module):
        for name, buffer in layer._buffers.items():
            if buffer is not None and buffer.is_inference():
                layer._buffers[name] = buffer.clone()
