"""Chooses which channels to remove, bounded by every task's loss: performance-aware global channel pruning (PAGCP).

Ye, Zhang, Chen, Fan, Wang: "Performance-Aware Global Channel Pruning for Multi-Task CNNs", TPAMI 45(8), 2023. A sweep
visits the units by their share of the network's cost; each is pruned as far as no task's calibration loss grows by more
than the sweep's tolerance, measured on the network as pruned so far. The units that bought the least for their harm are
then given back (the paper's top-P). `reach` repeats sweeps with a growing rate, inside the same total, until a cost is
met. One sweep over three units::

    unit (most saving first)     A          B            C
    tolerance of every task      rate       rate·λ       rate·λ²       λ from ∏ (1 + tolerance) = `total`
    ratios tried                 .05 .10 …  until a task's loss grows by more than the tolerance; the last passing stays
    the loss compared with       start      worst so far worst so far  of each task

    top-P = 2/3: of A, B, C the one with the most harm is given back
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

import torch

from mtlc.compress.channels.unit import Unit
from mtlc.compress.pagcp.oracle import Losses, Oracle
from mtlc.errors import UserError
from mtlc.log import tracked
from mtlc.program.surgery import tensor_dimensions


class Costs(Protocol):
    """What a network costs without the `removed` channels of its units, in the unit that `kind` says."""

    kind: Any

    def cost(self, removed: Mapping[str, Sequence[int]]) -> float: ...


@dataclass(frozen=True)
class Rules:
    """How a sweep prunes.

    `initial_rate` (d0) is the loss growth that the first unit may cause, `initial_thres` (T) bounds the growth over all
    units; `grid` is the step between tried ratios; `round_to` aligns kept channels; `norm` is 1 or 2; `rank`
    "reconstruction" orders channels by what the others can make up for instead. With `expect` a search begins where
    earlier trials say (`mtlc.compress.pagcp.expected_growth`); without, and without `bisect`, it is the paper's scan.
    """

    initial_rate: float = 0.05
    initial_thres: float = 5.0
    top_p: float = 0.8
    grid: float = 0.05
    round_to: int = 8
    norm: int = 1
    rank: Literal["norm", "reconstruction"] = "norm"
    bisect: bool = True
    expect: bool = True


_STAIR = 1e-4  # of the network's latency: what a step must save to be one


@dataclass(frozen=True)
class Blocked:
    """A trial that a task stopped: its loss grew by `growth` where `allowed` was the most (both relative).

    `growth` is None where it has no number: from a loss of zero, or to an infinite one, or where earlier trials left no
    doubt and none was made.
    """

    unit: str
    task: str
    ratio: float
    growth: float | None
    allowed: float


@dataclass
class Change:
    """What a sweep did to one unit: channels kept before and after, what it cost and what it bought."""

    unit: str
    kept_before: int
    kept: int
    loss_growth: float
    task_growth: dict[str, float]
    saved: float
    before: list[int] = field(repr=False)
    after: list[int] = field(repr=False)

    @property
    def harm(self) -> float:
        """Loss growth per unit of cost saved."""
        return self.loss_growth / self.saved if self.saved > 0 else math.inf


@dataclass
class Sweep:
    """One pass over all units."""

    rate: float
    total: float
    decay: float
    changes: list[Change]
    given_back: list[str]
    blocked: list[Blocked]
    losses: Losses
    cost: float

    def report(self) -> dict[str, Any]:
        plain = {"rate": self.rate, "total": self.total, "decay": self.decay, "cost": self.cost, "losses": self.losses}
        changes = [
            {"unit": c.unit, "kept_before": c.kept_before, "kept": c.kept, "growth": c.task_growth, "saved": c.saved}
            for c in self.changes
        ]
        return {
            **plain,
            "changes": changes,
            "given_back": self.given_back,
            "blocked": [asdict(b) for b in self.blocked],
        }


def solve_decay(initial_rate: float, total: float, units: int) -> float:
    """λ with ∏_{i<N} (1 + d0·λ^i) = T, by bisection.

    The product rises with λ from 1 + d0 (λ = 0), so T must exceed 1 + d0: `UserError` otherwise. With one unit any λ
    serves and 1 is returned.
    """
    if total <= 1 + initial_rate:
        raise UserError(
            f"initial_thres = {total:g} must be above 1 + initial_rate = {1 + initial_rate:g}; "
            "raise initial_thres or lower initial_rate"
        )
    if units <= 1:
        return 1.0
    # In logarithms: the product of many factors overflows long before their sum does.
    goal = math.log(total)

    def growth(decay: float) -> float:
        # The cap keeps a λ that is far too large at a finite number, which bisection can compare.
        return math.fsum(math.log1p(min(initial_rate * decay**i, 1e300)) for i in range(units))

    low, high = 0.0, 1.0
    while growth(high) < goal:
        high *= 2
    # More halvings than a double has digits: the interval ends at neighbouring numbers.
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if growth(middle) < goal else (low, middle)
    return (low + high) / 2


def kept_counts(channels: int, rules: Rules, multiple: int = 1, width: int = 1) -> list[int]:
    """The channel counts that a unit may be pruned to, mild to severe.

    One for each ratio of the grid 0.05, 0.10, …, 0.95, rounded up to a multiple of `round_to`: 12 channels give 8, 64
    give 56, 48, …, 8. A unit no wider than `round_to` has none. `multiple` is what the unit itself asks for
    (`Unit.multiple`). `round_to` means channels of layers, of which each of the unit's stands for `width`: heads of 16
    go one by one.
    """
    counts: list[int] = []
    step = _step(rules, multiple, width)
    # Six digits hide what binary fractions leave: 80 · (1 − 0.7) is 24.000000000000004, which would round up to 32.
    for ratio in ratios(rules):
        kept = math.ceil(round(channels * (1 - ratio), 6) / step) * step
        if 0 < kept < channels and kept not in counts:
            counts.append(kept)
    return counts


def channel_step(unit: Unit, rules: Rules) -> int:
    """How many channels a unit's kept counts are multiples of."""
    return _step(rules, unit.multiple, unit.width)


def _step(rules: Rules, multiple: int, width: int) -> int:
    return math.lcm(max(1, rules.round_to // width), multiple)


def ratios(rules: Rules) -> list[float]:
    """The grid of pruning ratios, grid, 2·grid, … below 1."""
    return [round(i * rules.grid, 6) for i in range(1, math.ceil(round(1 / rules.grid, 6)))]


def filter_norms(oracle: Oracle, unit: Unit, norm: int) -> torch.Tensor:
    """The rank of a unit's channels by their filters: the mean |w| (or root mean square), summed over its producers.

    Input channels that are gone already do not count.
    """
    total = torch.zeros(unit.channels)
    for member in unit.producers:
        layer = oracle.network.get_submodule(member.layer)
        weight = layer.weight.detach().cpu().float()  # type: ignore[operator]
        weight = weight.movedim(tensor_dimensions(layer, weight), (0, 1))  # type: ignore[arg-type]
        kept = [i for i in range(weight.shape[1]) if i not in oracle.gone_inputs(member.layer)]
        weight = weight[:, kept].flatten(1)
        scores = weight.abs().mean(1) if norm == 1 else weight.pow(2).mean(1).sqrt()
        for channel, indices in enumerate(member.indices):
            if indices:
                total[channel] += scores[list(indices)].mean()
    return total


def removal_order(oracle: Oracle, unit: Unit, rules: Rules) -> list[int]:
    """The unit's channels from the first to remove to the last: by what the others make up for, or by filter norm."""
    order = oracle.order(unit) if rules.rank == "reconstruction" else None
    return order or torch.argsort(filter_norms(oracle, unit, rules.norm), stable=True).tolist()


def least_important(oracle: Oracle, unit: Unit, kept: int, rules: Rules) -> list[int]:
    """The channels that are gone when `kept` remain: those gone already, then the first in `removal_order`."""
    gone = list(oracle.removed.get(unit.name, ()))
    order = removal_order(oracle, unit, rules)
    present = [c for c in order if c not in set(gone)]
    return sorted(gone + present[: unit.channels - kept - len(gone)])


def by_contribution(
    units: Iterable[Unit], costs: Costs, removed: Mapping[str, Sequence[int]], rules: Rules, decay: float
) -> list[Unit]:
    """Units ordered by what the whole network saves if 30 % of one is pruned alone; largest first if λ ≤ 1."""
    base = costs.cost(removed)

    def saving(unit: Unit) -> float:
        gone = list(removed.get(unit.name, ()))
        present = [c for c in range(unit.channels) if c not in set(gone)]
        return base - costs.cost({**removed, unit.name: gone + present[: math.ceil(0.3 * len(present))]})

    # The tolerance falls along the sweep if λ ≤ 1, and rises otherwise: either way the units that save most meet the
    # loosest one. The name settles ties, so that a sweep can be repeated.
    return sorted(units, key=lambda u: (-saving(u) if decay <= 1 else saving(u), u.name))


def sweep(oracle: Oracle, costs: Costs, rules: Rules, rate: float, total: float) -> Sweep:
    """One sweep over all units from the oracle's present state.

    The first unit may cost `rate`, all together may cost `total` − 1.
    """
    start = {name: list(channels) for name, channels in oracle.removed.items()}
    narrower = {name: _narrower(u, start, rules, costs) for name, u in oracle.units.items()}
    candidates = [u for name, u in oracle.units.items() if narrower[name]]
    decay = solve_decay(rate, total, len(candidates))
    # Invariant: after i pruned units no task's loss is above its start × ∏_{j<i} (1 + rate·λʲ), hence never above
    # `total` times its start: each limit is (1 + tolerance) times the worst so far, and λ was solved for the product.
    tolerance, base = rate, dict(oracle.losses)
    changes: list[Change] = []
    blocked: list[Blocked] = []
    for unit in tracked(by_contribution(candidates, costs, start, rules, decay), "sweep over channel groups"):
        limits = {task: (1 + tolerance) * loss for task, loss in base.items()}
        found = _most_severe(oracle, unit, narrower[unit.name], limits, base, rules, blocked)
        if found is None:
            continue
        channels, losses = found
        cost, before = costs.cost(oracle.removed), list(oracle.removed.get(unit.name, ()))
        # Against the round's first losses, so that units pruned early and late in a sweep can be compared.
        growth = {t: (losses[t] - oracle.losses[t]) / max(oracle.original[t], 1e-12) for t in losses}
        oracle.commit(unit.name, channels, losses)
        saved = cost - costs.cost(oracle.removed)
        kept = (unit.channels - len(before), unit.channels - len(channels))
        changes.append(Change(unit.name, *kept, sum(growth.values()), growth, saved, before, channels))
        # A task that got better must not turn its gain into room: the worst so far stays the base.
        base = {task: max(base[task], losses[task]) for task in base}
        # Only for a unit that was pruned; one that was refused has used up nothing.
        tolerance *= decay
    returned = sorted(changes, key=lambda c: -c.harm)[: len(changes) - math.ceil(rules.top_p * len(changes))]
    if returned:
        for change in returned:
            changes.remove(change)
        # Later commits were measured on top of those that are given back: the state is built anew without them.
        oracle.reset({**start, **{c.unit: c.after for c in changes}})
    names = [c.unit for c in returned]
    return Sweep(rate, total, decay, changes, names, blocked, dict(oracle.losses), costs.cost(oracle.removed))


def reach(oracle: Oracle, costs: Costs, rules: Rules, target: float) -> list[Sweep]:
    """Sweep until the cost is at most `target`, then give back what is not needed.

    The first sweep is the paper's. While the target is not met the rate doubles; T keeps its meaning, since a sweep
    gets what is left of it: T over the growth so far of the task that grew most. The caller sees from the last sweep's
    cost whether the target was met.
    """
    done: list[Sweep] = []
    rate = rules.initial_rate
    while True:
        # Growths multiply: what this sweep may use is T divided by what the task that grew most has used.
        grown = max(oracle.losses[t] / max(oracle.original[t], 1e-12) for t in oracle.losses)
        left = rules.initial_thres / max(1.0, grown)
        if left <= 1 + rate:
            return done
        done.append(sweep(oracle, costs, rules, rate, left))
        if done[-1].cost <= target:
            give_back(oracle, costs, rules, target, done[-1])
            return done
        rate *= 2


def give_back(oracle: Oracle, costs: Costs, rules: Rules, target: float, last: Sweep) -> None:
    """Undo the most harmful changes of a sweep, wholly or in part, as far as the cost stays at most `target`."""
    removed = {name: list(channels) for name, channels in oracle.removed.items()}
    touched = False
    for change in sorted(last.changes, key=lambda c: -c.harm):
        unit = oracle.units[change.unit]
        # From all of it to less and less: the first that still meets the target gives back the most.
        for kept in [change.kept_before, *kept_counts(unit.channels, rules, unit.multiple, unit.width)]:
            if not change.kept < kept <= change.kept_before:
                continue
            # The last channels to be removed are the first to return: a shorter piece of the same order goes.
            taken = set(change.after) - set(change.before)
            order = [c for c in removal_order(oracle, unit, rules) if c in taken]
            channels = sorted(change.before + order[: change.kept_before - kept])
            if costs.cost({**removed, unit.name: channels}) <= target:
                removed[unit.name] = channels
                change.kept, touched = kept, True
                break
    if touched:
        oracle.reset(removed)
        last.losses, last.cost = dict(oracle.losses), costs.cost(oracle.removed)


def _narrower(unit: Unit, removed: Mapping[str, Sequence[int]], rules: Rules, costs: Costs) -> list[int]:
    """The counts below the unit's present one that may be tried.

    Milliseconds fall in stairs: of them, only counts that cost less than all milder ones.
    """
    gone = list(removed.get(unit.name, ()))
    present = [c for c in range(unit.channels) if c not in set(gone)]
    counts = [k for k in kept_counts(unit.channels, rules, unit.multiple, unit.width) if k < len(present)]
    if costs.kind != "latency":
        return counts
    rewarded, least = [], costs.cost(removed)
    for kept in counts:
        cost = costs.cost({**removed, unit.name: gone + present[: len(present) - kept]})
        if cost < least * (1 - _STAIR):
            rewarded.append(kept)
            least = cost
    return rewarded


def _most_severe(
    oracle: Oracle,
    unit: Unit,
    counts: Sequence[int],
    limits: Mapping[str, float],
    base: Mapping[str, float],
    rules: Rules,
    blocked: list[Blocked],
) -> tuple[list[int], Losses] | None:
    """The last count of the mild-to-severe list before the first that breaks a limit, with its channels and losses.

    The search finds a passing count beside a failing one; its milder neighbour is checked too, since a scan would have
    stopped at the first failure. Where earlier trials say what to expect it begins there, and ends at the first count
    that keeps the limits beside one that does not: two trials if they were right.
    """
    present = unit.channels - len(oracle.removed.get(unit.name, ()))
    begin, hopeless = (None, None)
    if rules.bisect and rules.expect:
        begin, hopeless = oracle.expected.begin(unit.name, present, counts, oracle.losses, limits)
    if hopeless is not None:
        allowed = limits[hopeless] / base[hopeless] - 1 if base[hopeless] > 0 else 0.0
        blocked.append(Blocked(unit.name, hopeless, round(1 - counts[0] / unit.channels, 4), None, allowed))
        return None
    trials: dict[int, tuple[list[int], Losses, str | None]] = {}

    def passes(index: int) -> bool:
        if index not in trials:
            channels = least_important(oracle, unit, counts[index], rules)
            losses = oracle.trial(unit.name, channels, limits)
            over = {t: losses[t] / limits[t] if limits[t] > 0 else math.inf for t in losses if losses[t] > limits[t]}
            trials[index] = (channels, losses, max(over, key=over.__getitem__) if over else None)
        return trials[index][2] is None

    if begin is not None:
        best = _from(begin, len(counts), passes)
    else:
        best = _bisect(len(counts), passes) if rules.bisect else _scan(len(counts), passes)
    # Both searches end beside a count that was tried and failed, or at the last count: `best + 1` is known.
    if best + 1 < len(counts):
        _, losses, task = trials[best + 1]
        assert task is not None
        ratio = 1 - counts[best + 1] / unit.channels
        growth = losses[task] / base[task] - 1 if base[task] > 0 else math.inf
        allowed = limits[task] / base[task] - 1 if base[task] > 0 else 0.0
        blocked.append(Blocked(unit.name, task, round(ratio, 4), growth if math.isfinite(growth) else None, allowed))
    return None if best < 0 else trials[best][:2]


def _scan(count: int, passes: Any) -> int:
    """The paper's search: try every ratio until one fails; the index of the last that passed, or −1."""
    for index in range(count):
        if not passes(index):
            return index - 1
    return count - 1


def _from(begin: int, count: int, passes: Any) -> int:
    """The index of one that passed before a failure, or −1: from `begin` in doubling steps, then bisection."""
    low, high, step = -1, count, 1
    if passes(begin):
        low = begin
        while low + step < count and passes(low + step):
            low, step = low + step, 2 * step
        high = min(low + step, count)
    else:
        high = begin
        while high - step >= 0 and not passes(high - step):
            high, step = high - step, 2 * step
        low = max(high - step, -1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if passes(middle) else (low, middle)
    return low


def _bisect(count: int, passes: Any) -> int:
    """The index of the last that passed before a failure, or −1: doubling steps, then bisection, then neighbours.

    Most units stop at a mild count, so the search starts there and not in the middle. A failure beside the milder end
    of the last interval is looked for too: a scan would have stopped at it.
    """
    low, step = -1, 1
    while low + step < count and passes(low + step):
        low, step = low + step, 2 * step
    # Counts from mild to severe; * marks where the search ends, the digits the order of the trials:
    #
    #     index     0    1    2    3    4    5    6          doubling: 0, +2, +4, until one fails (at 6)
    #     passes    y    y    y*   n    n    ?    n          bisection between 2 and 6: 4, 3
    #     trial     1    6    2    5    4         3          the milder neighbour: 1
    #
    # Invariant: `low` passed (or is −1), `high` failed (or is `count`). Losses need not grow with what is removed, so
    # bisection alone could step over a failure.
    high = min(low + step, count)
    while True:
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if passes(middle) else (low, middle)
        if low <= 0 or passes(low - 1):
            return low
        low, high = -1, low - 1  # a milder count fails: what a scan finds lies below it
