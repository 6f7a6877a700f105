"""Takes experts out of modules that other code wrote, after finding out by trial how each of them loses some.

A module of experts has more than parameters: buffers with a row for each expert, numbers that count the experts, and
numbers that only happen to be as large. Names tell them apart badly, so `find_cut` tries. All trials run a copy with
disturbed values (a bias that is 0 today may not stay so) on random tokens, in float64 where the module can:

1. *Which tensors have a row for each expert.* The rows are put in another order, and the experts named by their new
   places. The result must not change. It does if a tensor was moved that has no such rows, or one was forgotten.
2. *What stands in the place of an expert that is gone.* The result must be a sum over a token's places: any expert's
   part vanishes and leaves the others what they are. Either its place gets weight 0 ("weight"), or, where the weight
   acts on the input or is normalised inside, a further expert whose parameters are all 0 ("zeros").
3. *Which numbers count experts.* The module without its experts must give what the whole one gives without their parts.

What no trial settles is refused.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from mtlc.errors import UserError, one_line

Empty = Literal["weight", "zeros"]
"""What stands in the place of an expert that is gone: any other with weight 0, or one whose parameters are all 0."""

_EMPTY: tuple[Empty, ...] = get_args(Empty)
_TOLERANCE = 1e-5  # of the largest value: sums in another order differ by 1e-7 in float32, wrong rows by 1e-2 and more
_COARSE = 2e-2  # the same for experts that run in half precision only
_LARGEST_COPY = 1 << 28  # parameters; more are tried in their own precision, to save memory
_ROUNDS = 4  # how many places of the random tokens each expert fills
_MOST_CHANGES = 3  # how many choices that the names suggest may be wrong at once
_COUNTS = re.compile(r"experts$|experts?_(count|num)$|num_?expert$|expert_num", re.IGNORECASE)


@dataclass(frozen=True)
class Cut:
    """How a module of experts loses some: `tensors` have a row for each expert besides the parameters, `counts` are
    whole numbers that say how many experts there are; both by dotted name. `empty` is what stands for one that is gone.
    """

    empty: Empty = "weight"
    tensors: tuple[str, ...] = ()
    counts: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As a recorded plan holds it."""
        return {"empty": self.empty, "tensors": list(self.tensors), "counts": list(self.counts)}

    @classmethod
    def from_dict(cls, plan: Any) -> Cut:
        """Read `to_dict`. Raises `ValueError` for what it cannot have written."""
        lists = plan["tensors"], plan["counts"]
        if plan["empty"] not in _EMPTY or not all(
            isinstance(names, list) and all(isinstance(name, str) for name in names) for names in lists
        ):
            raise ValueError("empty, tensors or counts are none that mtlc wrote")
        return cls(plan["empty"], tuple(lists[0]), tuple(lists[1]))


def select(experts: nn.Module, rows: Tensor, cut: Cut | None = None) -> None:
    """Keep these rows of every parameter and of what `cut` names, in place; with "zeros" a row of zeros follows.

    Without `cut` the module holds nothing but parameters by expert. Raises `ValueError` for a `cut` of another module.
    """
    before, made = len(next(experts.parameters())), dict[int, nn.Parameter]()
    spare = cut is not None and cut.empty == "zeros"
    for module in experts.modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if id(parameter) not in made:  # two names may share one
                kept = parameter.detach()[rows.to(parameter.device)].clone()
                kept = torch.cat([kept, torch.zeros_like(kept[:1])]) if spare else kept
                made[id(parameter)] = nn.Parameter(kept, parameter.requires_grad)
            module._parameters[name] = made[id(parameter)]
    if cut is None:
        return
    taken = [*rows.tolist(), *([int(rows[0])] if spare else [])]
    for path in cut.tensors:
        owner, name = _owner(experts, path)
        value = getattr(owner, name, None)
        if not _has_rows(value, before):
            raise ValueError(f"{path!r} has no row for each of the {before} experts")
        setattr(owner, name, _rows_of(value, taken))
    for path in cut.counts:
        owner, name = _owner(experts, path)
        if not _is_count(vars(owner).get(name), before):
            raise ValueError(f"{path!r} is not the number of the {before} experts")
        setattr(owner, name, len(taken))


def fill(index: Tensor, weight: Tensor, empty: Empty, spare: int) -> tuple[Tensor, Tensor]:
    """Index and weight (N, K) to call experts with that know no empty place; −1 marks those of `index`.

    `spare` is the expert that fills them: any with "weight", the one of zeros with "zeros".
    """
    gone = index < 0
    if empty == "weight":
        weight = torch.where(gone, torch.zeros_like(weight), weight)
    return torch.where(gone, spare, index), weight


def find_empty(experts: nn.Module, top_k: int, where: str) -> Empty:
    """What can stand for an expert of the module that is gone. Raises `UserError` if nothing can."""
    return _Trial(experts, top_k, where).empty()


def find_cut(experts: nn.Module, rows: Sequence[int], top_k: int, where: str) -> Cut:
    """How the module keeps `rows` of its experts. `where` names the layer in errors, `top_k` are a token's places.

    The module is not changed, nor are torch's random numbers. Raises `UserError` for a module that cannot be tried, and
    for one that no cut fits.
    """
    trial = _Trial(experts, top_k, where)
    return trial.cut(list(rows), trial.empty())


class _Trial:
    """Runs disturbed copies of one module of experts on random tokens."""

    def __init__(self, experts: nn.Module, top_k: int, where: str) -> None:
        self.where, self.kind = where, type(experts).__name__
        self.count = len(next(experts.parameters()))
        self.random = torch.Generator().manual_seed(0)
        places = min(top_k, self.count)
        index = self._routes(places)
        weight = (torch.rand(index.shape, generator=self.random) + 0.5) / (2 * places)  # what a softmax may give
        why = "they do not run on tokens of any width among the sizes of their parameters"
        for dtype in _precisions(experts):
            self.experts = copy.deepcopy(experts).eval()
            if dtype is not None:
                self.experts.to(dtype)
            self._disturb()
            found = next((p for p in self.experts.parameters() if p.is_floating_point()), None)
            self.dtype = torch.float32 if found is None else found.dtype
            device = torch.device("cpu") if found is None else found.device
            self.index, self.weight = index.to(device), weight.to(device, self.dtype)
            for shape in self._shapes(len(index)):
                self.x = torch.randn(shape, generator=self.random).to(device, self.dtype)
                self.leading = shape[:-1]
                whole = self._run(self.experts, self.index, self.weight)
                if isinstance(whole, Tensor) and float(whole.abs().max()) > 0:
                    self.whole = whole
                    return
                why = whole if isinstance(whole, str) else "their result is 0 whatever the tokens are"
        raise self._refused(why)

    # -- asking --------------------------------------------------------------------------------------------------------

    def empty(self) -> Empty:
        """The first way of leaving experts out that takes nothing else away and adds nothing."""
        half = torch.rand(self.count, generator=self.random).argsort() < (self.count + 1) // 2
        zero = torch.zeros_like(self.whole)
        for empty in _EMPTY:
            one, other, nothing = (self._without(stays, empty) for stays in (half, ~half, half & ~half))
            adds_up = isinstance(one, Tensor) and isinstance(other, Tensor) and self._same(one + other, self.whole)
            if adds_up and self._same(nothing, zero) and (empty == "zeros" or self._repeatable()):
                return empty
        raise self._refused(
            "their result is no sum over a token's places, or an expert still adds to it with weight 0 and with "
            "parameters of 0"
        )

    def cut(self, rows: list[int], empty: Empty) -> Cut:
        sure, unsure = self._tensors()
        stays = torch.zeros(self.count, dtype=torch.bool)
        stays[rows] = True
        wanted = self._without(stays, empty)
        counts = [path for path, value in _attributes(self.experts) if _is_count(value, self.count)]
        choices = [*counts, *unsure]
        likely = {path for path in counts if _COUNTS.search(path.rpartition(".")[2])}
        for changes in _few_of(choices):
            chosen = likely ^ set(changes)
            tensors = (*sure, *(path for path in unsure if path in chosen))
            cut = Cut(empty, tensors, tuple(path for path in counts if path in chosen))
            if isinstance(wanted, Tensor) and self._same(self._rebuilt(rows, cut), wanted):
                return cut
        raise self._refused(f"with {len(rows)} of {self.count} they give another result, whatever else is cut")

    def _tensors(self) -> tuple[list[str], list[str]]:
        """What besides the parameters has a row for each expert, and what no trial tells."""
        names = [path for path, value in _attributes(self.experts) if _has_rows(value, self.count)]
        left = ([name for name in names if name not in spared] for spared in _few_of(names))
        found = next((set(some) for some in left if self._reordered(some)), None)
        if found is None:
            raise self._refused(f"{self._culprit()} not have one row for each of the {self.count} experts")
        sure = {path for path in found if not self._reordered([other for other in found if other != path])}
        return [path for path in names if path in sure], [path for path in names if path not in sure]

    def _culprit(self) -> str:
        """The parameter that the experts' order must leave alone; if it is no single one, all of them."""
        for name, _ in self.experts.named_parameters():
            if self._reordered([p for p, v in _attributes(self.experts) if _has_rows(v, self.count)], spared=name):
                return f"their parameter {name!r} does"
        return "their parameters do"

    # -- running -------------------------------------------------------------------------------------------------------

    def _reordered(self, tensors: Sequence[str], spared: str = "") -> bool:
        """Whether the result stays with the experts in another order, `tensors` in the same, one parameter spared."""
        rows = torch.arange(self.count).roll(1)
        moved = copy.deepcopy(self.experts)
        kept = dict(moved.named_parameters())[spared].detach().clone() if spared else None
        select(moved, rows, Cut("weight", tuple(tensors)))
        if kept is not None:
            with torch.no_grad():
                moved.get_parameter(spared).copy_(kept)
        return self._same(self._run(moved, (self.index + 1) % self.count, self.weight), self.whole)

    def _without(self, stays: Tensor, empty: Empty) -> Tensor | str:
        """What all rows give without the parts of those that do not stay (E,)."""
        if empty == "weight":
            index = torch.where(stays.to(self.index.device)[self.index], self.index, -1)
            return self._run(self.experts, *fill(index, self.weight, "weight", int(stays.int().argmax())))
        with zeroed(self.experts, stays):
            return self._run(self.experts, self.index, self.weight)

    def _repeatable(self) -> bool:
        """Whether a token may name an expert twice, once with weight 0: it does where that expert fills a place."""
        tokens, places = self.index.shape
        place = (torch.arange(tokens) % places).to(self.index.device)[:, None]
        weight = torch.zeros_like(self.weight).scatter(1, place, self.weight.gather(1, place))
        repeated = self.index.gather(1, place).expand(tokens, places)
        return self._same(self._run(self.experts, repeated, weight), self._run(self.experts, self.index, weight))

    def _rebuilt(self, rows: list[int], cut: Cut) -> Tensor | str:
        made = copy.deepcopy(self.experts)
        select(made, torch.tensor(rows), cut)
        position = torch.full((self.count,), -1)
        position[rows] = torch.arange(len(rows))
        index = position.to(self.index.device)[self.index]
        spare = len(rows) if cut.empty == "zeros" else 0
        return self._run(made, *fill(index, self.weight, cut.empty, spare))

    def _run(self, experts: nn.Module, index: Tensor, weight: Tensor) -> Tensor | str:
        """What the experts give for the tokens, or why they give nothing."""
        arguments = self.x.clone(), index.view(*self.leading, -1).clone(), weight.view(*self.leading, -1).clone()
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)  # a random forward draws alike in every trial
                result = experts(*arguments)
        except Exception as error:  # the module is another's: it may raise anything
            return f"they do not run on random tokens ({one_line(error)})"
        if not isinstance(result, Tensor) or result.shape != self.x.shape:
            return "they do not give a tensor of the shape of their tokens"
        return result if bool(result.isfinite().all()) else "they give NaN or infinite values"

    def _same(self, one: Tensor | str, other: Tensor | str) -> bool:
        if not isinstance(one, Tensor) or not isinstance(other, Tensor):
            return False
        allowed = _TOLERANCE if torch.finfo(self.dtype).eps < 1e-4 else _COARSE
        return float((one - other).abs().max()) <= allowed * float(self.whole.abs().max())

    # -- preparation ---------------------------------------------------------------------------------------------------

    def _routes(self, places: int) -> Tensor:
        """(N, K): every expert in some places, no token's twice in one."""
        rows = []
        for _ in range(_ROUNDS):
            order = torch.randperm(self.count, generator=self.random)
            needed = -(-self.count // places) * places
            rows.append(torch.cat([order, order[: needed - self.count]]).view(-1, places))
        return torch.cat(rows)

    def _shapes(self, tokens: int) -> Iterator[tuple[int, ...]]:
        """Tokens (N, D), or (1, N, D), for every D that a parameter may read."""
        sizes = sorted({size for p in self.experts.parameters() for size in p.shape[1:]})
        yield from ((tokens, size) for size in sizes)
        yield from ((1, tokens, size) for size in sizes)

    def _disturb(self) -> None:
        """Let no two rows be alike; a positive value stays so, for it may be under a root or a divisor."""
        values = itertools.chain(
            self.experts.parameters(), (v for _, v in _attributes(self.experts) if isinstance(v, Tensor))
        )
        with torch.no_grad():
            for value in values:
                if value.is_floating_point():
                    much, more = (torch.rand(value.shape, generator=self.random).to(value) for _ in range(2))
                    value.mul_(1 + 0.3 * much).add_(0.05 * more)

    def _refused(self, why: str) -> UserError:
        return UserError(
            f"layer {self.where!r}: experts cannot be taken out of its {self.kind}: {why}; "
            "docs/extract.md says what experts of another's code must keep to"
        )


@contextmanager
def zeroed(experts: nn.Module, stays: Tensor) -> Iterator[None]:
    """Within the block the experts that do not stay (E,) have parameters of 0."""
    parameters, before = list(experts.parameters()), list[Tensor]()
    gone = [~stays.to(parameter.device) for parameter in parameters]
    with torch.no_grad():
        for parameter, rows in zip(parameters, gone, strict=True):
            before.append(parameter[rows].clone())
            parameter[rows] = 0
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, rows, values in zip(parameters, gone, before, strict=True):
                parameter[rows] = values


def _few_of(choices: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Sets of few of the choices, the smallest first."""
    for size in range(min(_MOST_CHANGES, len(choices)) + 1):
        yield from itertools.combinations(choices, size)


def _precisions(experts: nn.Module) -> list[torch.dtype | None]:
    """The precisions to try, the best first; None is the module's own."""
    whole = sum(parameter.numel() for parameter in experts.parameters())
    return [torch.float64, None] if whole <= _LARGEST_COPY else [None]


def _attributes(experts: nn.Module) -> Iterator[tuple[str, Any]]:
    """Buffers and plain attributes of the module and all inside it, by dotted name."""
    for path, module in experts.named_modules():
        for name, value in (*module._buffers.items(), *vars(module).items()):
            yield (f"{path}.{name}" if path else name), value


def _owner(experts: nn.Module, path: str) -> tuple[nn.Module, str]:
    module, _, name = path.rpartition(".")
    return experts.get_submodule(module), name


def _has_rows(value: Any, count: int) -> bool:
    if isinstance(value, Tensor):
        return value.ndim > 0 and len(value) == count
    return type(value) in (list, tuple) and len(value) == count


def _rows_of(value: Any, rows: Sequence[int]) -> Any:
    if isinstance(value, Tensor):
        return value[torch.tensor(rows, device=value.device)].clone()
    return type(value)(value[row] for row in rows)


def _is_count(value: Any, count: int) -> bool:
    return type(value) is int and value == count
