"""Builds mixture-of-experts layers, and says how other code's layers are recognised as such.

A layer is a module with a *router* and an *experts* submodule. The experts are called ``experts(x, index, weight)``
with tokens (N, D), the experts that each token goes to (N, K) and their weights (N, K), and give (N, D); the first
dimension of each of their parameters is the expert. Several layers may share a module of experts. `MoeMlp` of the zoo
is such a layer, and so are the sparse blocks of transformers 5 (``MixtralSparseMoeBlock``, ``Qwen3MoeSparseMoeBlock``:
``gate`` and ``experts``). Layers of that build are found by themselves; `declare` names the parts of another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from mtlc.errors import UserError
from mtlc.moe.experts import NONE, Experts
from mtlc.moe.foreign_experts import Empty, fill, find_empty, zeroed
from mtlc.moe.routing import Router

ATTRIBUTE = "moe"
_ROUTERS = ("router", "gate")
_EXPERTS = "experts"


@dataclass(frozen=True)
class MoeDeclaration:
    """The names of a layer's parts; `top_k` is an attribute of the layer or of its router."""

    router: str = "router"
    experts: str = "experts"
    top_k: str = "top_k"


def declare(
    layer: type[nn.Module] | nn.Module, router: str = "gate", experts: str = "experts", top_k: str = "top_k"
) -> None:
    """Say that a class, or one module, is a mixture-of-experts layer with parts of these names."""
    setattr(layer, ATTRIBUTE, MoeDeclaration(router, experts, top_k))


class KeptExperts(nn.Module):
    """Some of a layer's experts, still called by the indices of all of them.

    `position` (E,) gives the row of `inner` that stands for each expert, −1 for one that is gone; merged experts share
    a row. A place of a token that no expert fills costs nothing with mtlc's own experts. Others know no empty place:
    `empty` says whether it becomes row 0 with weight 0, or the last row, whose parameters are 0.
    """

    position: Tensor

    def __init__(self, inner: nn.Module, position: Sequence[int] | Tensor, empty: Empty = "weight") -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("position", torch.as_tensor(position, dtype=torch.int64))
        self.empty_places = isinstance(inner, Experts)
        self.empty: Empty = empty
        self.spare = len(next(inner.parameters())) - 1 if empty == "zeros" else 0

    def forward(self, x: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        """Tokens (N, D), index and weight (N, K) → (N, D)."""
        row = torch.where(index < 0, NONE, self.position[index.clamp_min(0)])
        if not self.empty_places:
            row, weight = fill(row, weight, self.empty, self.spare)
        result: Tensor = self.inner(x, row, weight)
        return result


@dataclass(frozen=True)
class MoeLayer:
    """A layer found in a network: its `path`, and the parts that its declaration names."""

    path: str
    module: nn.Module
    declaration: MoeDeclaration

    @property
    def router(self) -> nn.Module:
        result: nn.Module = getattr(self.module, self.declaration.router)
        return result

    @property
    def experts(self) -> nn.Module:
        result: nn.Module = getattr(self.module, self.declaration.experts)
        return result

    @property
    def inner(self) -> nn.Module:
        """The module that holds the experts' parameters."""
        return self.experts.inner if isinstance(self.experts, KeptExperts) else self.experts

    @property
    def position(self) -> Tensor:
        """(E,): the row of each expert among the parameters of `inner`, −1 for one that is gone."""
        return self.experts.position if isinstance(self.experts, KeptExperts) else torch.arange(self.rows)

    @property
    def rows(self) -> int:
        """Sets of parameters: of experts, and of zeros where one stands for those that are gone."""
        return len(next(self.inner.parameters()))

    @cached_property
    def empty(self) -> Empty:
        """What stands, or would stand, for an expert of another's code that is gone.

        Raises `UserError` where trials find nothing that could.
        """
        if isinstance(self.experts, KeptExperts) or isinstance(self.inner, Experts):
            return self.experts.empty if isinstance(self.experts, KeptExperts) else "weight"
        return find_empty(self.inner, self.top_k, self.path)

    @property
    def count(self) -> int:
        """E: the experts that the router scores, whether they are still there or not."""
        return len(self.position)

    @property
    def present(self) -> list[int]:
        """The experts that are still there."""
        return [expert for expert, row in enumerate(self.position.tolist()) if row >= 0]

    @property
    def top_k(self) -> int:
        return _top_k(self.module, self.router, self.declaration)  # type: ignore[return-value]

    @property
    def ours(self) -> bool:
        """Whether the experts leave an empty place out of the work, and the router can re-route."""
        return isinstance(self.inner, Experts) and isinstance(self.router, Router)

    def parameters_per_expert(self) -> int:
        return sum(parameter[0].numel() for parameter in self.inner.parameters())

    def macs_per_place(self) -> int:
        """Multiply–accumulates of one expert on one token: every matrix element once (biases count none)."""
        return sum(parameter[0].numel() for parameter in self.inner.parameters() if parameter.ndim > 2)


def sharing(layers: Iterable[MoeLayer]) -> list[tuple[MoeLayer, ...]]:
    """The layers, those that share their experts together."""
    found: dict[int, list[MoeLayer]] = {}
    for layer in layers:
        found.setdefault(id(layer.inner), []).append(layer)
    return [tuple(together) for together in found.values()]


def rows_left(together: Sequence[MoeLayer], kept: Mapping[str, Sequence[int]]) -> int:
    """How many sets of parameters layers that share experts have with the experts `kept` of each, by its path.

    Merged experts share theirs. One of zeros may be needed for those that are gone.
    """
    rows = {row for layer in together for row in layer.position[list(kept[layer.path])].tolist()}
    before = {row for layer in together for row in layer.position.tolist() if row >= 0}
    spare = len(before) < together[0].rows or (len(rows) < len(before) and together[0].empty == "zeros")
    return len(rows) + spare


def moe_layers(module: nn.Module) -> list[MoeLayer]:
    """The mixture-of-experts layers of a network, in its own order.

    Raises `UserError` for a declaration that does not fit.
    """
    found = []
    for path, submodule in module.named_modules():
        declaration = getattr(submodule, ATTRIBUTE, None)
        if isinstance(declaration, MoeDeclaration):
            _check(path, submodule, declaration)
        else:
            declaration = _detect(submodule)
        if declaration is not None:
            found.append(MoeLayer(path, submodule, declaration))
    return found


def _check(path: str, layer: nn.Module, declaration: MoeDeclaration) -> None:
    for name in (declaration.router, declaration.experts):
        if not isinstance(getattr(layer, name, None), nn.Module):
            raise UserError(f"layer {path!r}: declared as a mixture of experts, but it has no submodule {name!r}")
    if not _stacked(getattr(layer, declaration.experts)):
        raise UserError(
            f"layer {path!r}: the parameters of {declaration.experts!r} must all have the experts as first dimension"
        )
    if _top_k(layer, getattr(layer, declaration.router), declaration) is None:
        raise UserError(f"layer {path!r}: neither it nor its {declaration.router!r} has a number {declaration.top_k!r}")


def _detect(layer: nn.Module) -> MoeDeclaration | None:
    """The parts of a layer that has the usual names and shapes; None where anything is in doubt."""
    children = dict(layer.named_children())
    routers = [name for name in _ROUTERS if name in children]
    if len(routers) != 1 or _EXPERTS not in children or not _stacked(children[_EXPERTS]):
        return None
    declaration = MoeDeclaration(routers[0], _EXPERTS)
    return declaration if _top_k(layer, children[routers[0]], declaration) is not None else None


def _stacked(experts: nn.Module) -> bool:
    """Whether the parameters are those of several experts: one first dimension, and matrices among them."""
    if isinstance(experts, nn.ModuleList | nn.ModuleDict):
        return False
    parameters = list(experts.parameters())
    shared = {len(parameter) if parameter.ndim else 0 for parameter in parameters}
    return len(shared) == 1 and 0 not in shared and any(parameter.ndim > 2 for parameter in parameters)


def _top_k(layer: nn.Module, router: nn.Module, declaration: MoeDeclaration) -> int | None:
    for owner in (layer, router):
        value = getattr(owner, declaration.top_k, None)
        if isinstance(value, int) and value > 0:
            return value
    return None


class Routed:
    """Where tokens were sent: for every layer the index and the score of each place of each token, (M, K).

    The index is that of the router, −1 for a place left empty. Two bytes for an index and four for a score.
    """

    def __init__(self, layers: Sequence[MoeLayer]) -> None:
        self.counts = {layer.path: layer.count for layer in layers}
        self._index: dict[str, list[Tensor]] = {layer.path: [] for layer in layers}
        self._score: dict[str, list[Tensor]] = {layer.path: [] for layer in layers}

    def add(self, path: str, index: Tensor, score: Tensor) -> None:
        self._index[path].append(index.detach().cpu().to(torch.int16))
        self._score[path].append(score.detach().cpu().float())

    def index(self, path: str) -> Tensor:
        return torch.cat(self._index[path]).long() if self._index[path] else torch.zeros(0, 1, dtype=torch.int64)

    def score(self, path: str) -> Tensor:
        return torch.cat(self._score[path]) if self._score[path] else torch.zeros(0, 1)

    def usage(self, path: str) -> Tensor:
        """(E,): the share of the tokens that go to each expert."""
        index = self.index(path)
        return self.places(path) / max(1, len(index))

    def places(self, path: str) -> Tensor:
        """(E,): the places that each expert fills; a token has it at most once."""
        index = self.index(path)
        return torch.bincount(index[index >= 0], minlength=self.counts[path]).double()

    def empty(self, path: str) -> int:
        """Places that no expert fills."""
        return int((self.index(path) < 0).sum())

    def coverage(self, path: str, kept: Sequence[int]) -> float:
        """The share of the routed score mass that goes to the experts `kept`."""
        score, hit = self.score(path).double(), self._dropped(path, kept)
        total = float(score.sum())
        return float(score[~hit].sum()) / total if total > 0 else 1.0

    def hit(self, path: str, kept: Sequence[int]) -> float:
        """The share of the tokens that have a place with an expert that is not among `kept`."""
        dropped = self._dropped(path, kept)
        return float(dropped.any(1).double().mean()) if len(dropped) else 0.0

    def _dropped(self, path: str, kept: Sequence[int]) -> Tensor:
        stays = torch.zeros(self.counts[path] + 1, dtype=torch.bool)  # the last stands for −1
        stays[list(kept)] = True
        return ~stays[self.index(path)]


Hook = Callable[[Sequence[MoeLayer], tuple[Any, ...], Mapping[str, Any]], tuple[Any, ...] | None]


@contextmanager
def hooking(layers: Sequence[MoeLayer], hook: Hook) -> Iterator[None]:
    """Within the block call `hook` before any of the layers' experts run: with the layer, and their arguments.

    It gets a layer alone, or all that share the experts if they are called while none of these runs. What it returns,
    if anything, replaces the positional arguments.
    """
    together: dict[int, list[MoeLayer]] = {}
    running: list[str] = []
    for layer in layers:
        together.setdefault(id(layer.experts), []).append(layer)

    def begins(path: str) -> Callable[..., None]:
        return lambda *_: running.append(path)

    def ends(*_: object) -> None:
        running.pop()

    def calls(group: Sequence[MoeLayer]) -> Callable[..., Any]:
        def called(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if module is not group[0].experts:  # a copy, which took the hook along
                return None
            inside = [layer for path in reversed(running) for layer in group if layer.path == path][:1]
            replaced = hook(inside or group, args, kwargs)
            return None if replaced is None else (replaced, kwargs)

        return called

    with ExitStack() as stack:
        for group in together.values():
            for layer in group if len(group) > 1 else ():
                stack.callback(layer.module.register_forward_pre_hook(begins(layer.path)).remove)
                stack.callback(layer.module.register_forward_hook(ends, always_call=True).remove)
            handle = group[0].experts.register_forward_pre_hook(calls(group), with_kwargs=True)
            stack.callback(handle.remove)
        yield


@contextmanager
def observing(layers: Sequence[MoeLayer]) -> Iterator[Routed]:
    """Within the block, note where every layer sends its tokens.

    Raises `UserError` naming the layer whose router gives NaN, or whose experts are not called as the protocol says.
    """
    routed = Routed(layers)

    def note(called: Sequence[MoeLayer], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        index, score = routing_of(called[0].path, args, kwargs)
        if not bool(score.isfinite().all()):
            raise UserError(
                f"layer {called[0].path!r}: its router gives scores that are NaN or infinite; "
                "look for NaN in its weights or input"
            )
        for layer in called:
            routed.add(layer.path, index, score)

    with hooking(layers, note):
        yield routed


def routing_of(path: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Index and weight (N, K) of a call of a layer's experts."""
    fits = len(args) == 3 and not kwargs and all(isinstance(arg, Tensor) for arg in args)
    if not fits or args[1].shape != args[2].shape or args[1].is_floating_point():
        raise UserError(f"layer {path!r}: its experts must be called with (x (N, D), index (N, K), weight (N, K))")
    return args[1].flatten(0, -2), args[2].flatten(0, -2)


@contextmanager
def dropping(layers: Sequence[MoeLayer], kept: Mapping[str, Sequence[int]], reroute: bool = False) -> Iterator[None]:
    """Within the block the network computes what it would with the experts `kept` of each layer: nothing is rebuilt.

    Raises `UserError` for experts of another's code of which none can be left out.
    """
    masks: dict[str, Tensor] = {}
    for layer in layers:
        if layer.path in kept and len(kept[layer.path]) < len(layer.present):
            masks[layer.path] = torch.zeros(layer.count, dtype=torch.bool)
            masks[layer.path][list(kept[layer.path])] = True
    with ExitStack() as stack:
        for layer in layers:
            if layer.path in masks and layer.ours:
                stack.enter_context(_router_keeps(layer.router, masks[layer.path], reroute))  # type: ignore[arg-type]
        foreign = [layer for layer in layers if not layer.ours]
        off = {
            layer.path: masks[layer.path]
            for layer in foreign
            if layer.path in masks and (isinstance(layer.inner, Experts) or layer.empty == "weight")
        }
        stack.enter_context(hooking(foreign, _weights_off(off)))
        for together in sharing(foreign):
            if any(layer.path in masks and layer.path not in off for layer in together):
                stays = torch.zeros(together[0].rows, dtype=torch.bool)
                for layer in together:
                    stays[layer.position[list(kept.get(layer.path, layer.present))]] = True
                stack.enter_context(zeroed(together[0].inner, stays))
        yield


@contextmanager
def _router_keeps(router: Router, mask: Tensor, reroute: bool) -> Iterator[None]:
    before = router.kept, router.reroute
    router.kept, router.reroute = mask.to(router.weight.device), reroute
    try:
        yield
    finally:
        router.kept, router.reroute = before


def _weights_off(masks: Mapping[str, Tensor]) -> Hook:
    def hook(called: Sequence[MoeLayer], args: tuple[Any, ...], _kwargs: Mapping[str, Any]) -> tuple[Any, ...] | None:
        if not all(layer.path in masks for layer in called):
            return None
        x, index, weight = args
        stays = torch.stack([masks[layer.path] for layer in called]).any(0).to(index.device)
        return x, index, torch.where(stays[index], weight, torch.zeros_like(weight))

    return hook
