"""The pruning algorithm: its formulas for all inputs, its rules on a ledger of known harms, and on a real network."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from testkit import tiny_networks
from torch import nn

from mtlc.compress.channels.channel_costs import ChannelCosts
from mtlc.compress.channels.channel_groups import ChannelGroups
from mtlc.compress.channels.unit import Member, Unit
from mtlc.compress.pagcp.expected_growth import ExpectedGrowth
from mtlc.compress.pagcp.oracle import Oracle
from mtlc.compress.pagcp.sweep import (
    Rules,
    _bisect,
    _scan,
    by_contribution,
    filter_norms,
    give_back,
    kept_counts,
    least_important,
    ratios,
    reach,
    solve_decay,
    sweep,
)
from mtlc.errors import UserError
from mtlc.evaluation.criteria import Criteria

# -- formulas ------------------------------------------------------------------------------------------------------


@given(st.floats(0.001, 0.5), st.floats(1.01, 50), st.integers(2, 80))
def test_the_tolerances_multiply_to_the_total(rate, total, units):
    if total <= 1 + rate:
        with pytest.raises(UserError, match="initial_thres"):
            solve_decay(rate, total, units)
        return
    decay = solve_decay(rate, total, units)
    assert math.prod(1 + rate * decay**i for i in range(units)) == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize("units", [2, 7, 30])
def test_a_total_that_equal_tolerances_reach_needs_no_decay(units):
    assert solve_decay(0.05, 1.05**units, units) == pytest.approx(1.0, abs=1e-9)
    assert solve_decay(0.05, 1.04**units, units) < 1 < solve_decay(0.05, 1.06**units, units)


def test_two_units_by_hand():
    """(1 + 0.5)(1 + 0.5 λ) = 3 gives λ = 2."""
    assert solve_decay(0.5, 3.0, 2) == pytest.approx(2.0)


def test_one_unit_or_none_needs_no_solution():
    assert solve_decay(0.05, 5.0, 1) == solve_decay(0.05, 5.0, 0) == 1.0


def test_a_total_within_the_first_tolerance_has_no_solution():
    with pytest.raises(UserError, match=r"initial_thres = 1\.05 must be above 1 \+ initial_rate = 1\.05"):
        solve_decay(0.05, 1.05, 10)


def test_the_grid():
    assert ratios(Rules()) == [round(0.05 * i, 2) for i in range(1, 20)]
    assert ratios(Rules(grid=0.3)) == [0.3, 0.6, 0.9]


@pytest.mark.parametrize(
    ("channels", "round_to", "multiple", "counts"),
    [
        (12, 8, 1, [8]),
        (64, 8, 1, [56, 48, 40, 32, 24, 16, 8]),
        (8, 8, 1, []),
        (5, 8, 1, []),
        (9, 8, 1, [8]),
        (20, 1, 1, list(range(19, 0, -1))),
        (64, 8, 32, [32]),  # a group norm of 32 groups
        (24, 4, 6, [12]),
        (32, 8, 32, []),
    ],
)
def test_kept_counts(channels, round_to, multiple, counts):
    assert kept_counts(channels, Rules(round_to=round_to), multiple) == counts


@given(st.integers(1, 2048), st.sampled_from([1, 2, 4, 8, 16, 32]), st.sampled_from([1, 3, 8]))
def test_kept_counts_are_aligned_and_descend(channels, round_to, multiple):
    counts = kept_counts(channels, Rules(round_to=round_to), multiple)
    assert all(0 < kept < channels and kept % round_to == kept % multiple == 0 for kept in counts)
    assert counts == sorted(set(counts), reverse=True)
    step = math.lcm(round_to, multiple)
    assert bool(counts) == (channels > step)
    if counts:
        assert counts[-1] == math.ceil(round(0.05 * channels, 6) / step) * step


@given(st.integers(0, 60), st.data())
def test_bisection_finds_what_a_scan_finds_where_harm_grows(count, data):
    first = data.draw(st.integers(0, count))
    asked = set()

    def passes(index: int) -> bool:
        asked.add(index)
        return index < first

    assert _bisect(count, passes) == _scan(count, lambda i: i < first) == first - 1
    assert len(asked) <= 2 * math.ceil(math.log2(count + 1)) + 2  # doubling, then halving


@given(st.lists(st.booleans(), max_size=40))
def test_bisection_stops_between_a_pass_and_a_failure(pattern):
    asked = {}

    def passes(index: int) -> bool:
        return asked.setdefault(index, pattern[index])

    best = _bisect(len(pattern), passes)
    assert best == -1 or pattern[best]
    assert best + 1 == len(pattern) or asked[best + 1] is False
    assert best < 1 or asked[best - 1]  # the milder neighbour was looked at too


# -- a ledger of known harms -----------------------------------------------------------------------------------------


class Ledger:
    """Stands in for an oracle. The loss of a task is its original times ∏ (1 + harm[unit][task] · share removed)."""

    def __init__(self, harm: dict[str, dict[str, float]], original: dict[str, float], channels: int = 64) -> None:
        self.network = nn.ModuleDict({name: nn.Linear(2, channels, bias=False) for name in harm})
        with torch.no_grad():
            for layer in self.network.values():
                layer.weight.copy_(torch.arange(1.0, channels + 1)[:, None].expand(channels, 2))
        every = tuple((i,) for i in range(channels))
        self.units = {name: Unit(name, channels, (Member(name, "out", every),), True) for name in harm}
        self.harm, self.original, self.losses = harm, original, dict(original)
        self.removed: dict[str, list[int]] = {}
        self.trials: list[str] = []
        self.expected = ExpectedGrowth()

    def _under(self, removed: dict[str, list[int]]) -> dict[str, float]:
        shares = {u: len(c) / self.units[u].channels for u, c in removed.items()}
        return {
            t: loss * math.prod(1 + self.harm[u].get(t, 0.0) * share for u, share in shares.items())
            for t, loss in self.original.items()
        }

    def gone_inputs(self, layer: str) -> set[int]:
        return set()

    def trial(self, unit: str, channels: list[int], limits: Any = None) -> dict[str, float]:
        self.trials.append(unit)
        return self._under({**self.removed, unit: channels})

    def commit(self, unit: str, channels: list[int], losses: dict[str, float]) -> None:
        assert losses == self._under({**self.removed, unit: channels})
        self.removed[unit], self.losses = channels, losses

    def reset(self, removed: dict[str, list[int]]) -> dict[str, float]:
        self.removed = {u: c for u, c in removed.items() if c}
        self.losses = self._under(self.removed)
        return self.losses

    def kept(self) -> dict[str, int]:
        return {name: 64 - len(self.removed.get(name, ())) for name in self.units}


class Price:
    """Every channel of a unit costs its price."""

    kind = "macs"

    def __init__(self, ledger: Ledger, prices: dict[str, float]) -> None:
        self.ledger, self.prices = ledger, prices

    def cost(self, removed: dict[str, list[int]]) -> float:
        return sum(p * (64 - len(removed.get(u, ()))) for u, p in self.prices.items())


ALL = Rules(top_p=1.0)


def test_a_unit_that_passes_the_whole_grid_is_pruned():
    """The official code forgot such units, and judged all later ones on the wrong network."""
    ledger = Ledger({"free": {}, "dear": {"a": 1.0}}, {"a": 1.0})
    costs = Price(ledger, {"free": 2.0, "dear": 1.0})
    done = sweep(ledger, costs, ALL, 0.05, 5.0)
    assert ledger.kept()["free"] == 8
    assert ledger.removed["free"] == list(range(56))  # the smallest filters
    assert done.changes[0].unit == "free"
    assert done.blocked[0].unit == "dear"


def test_the_most_severe_ratio_inside_the_tolerance():
    """One unit, λ = 1: 10 % growth allowed, and removing 8 of 64 costs 6.25 % at harm 0.5: 8 pass and 16 do not."""
    ledger = Ledger({"u": {"a": 0.5, "b": 0.1}}, {"a": 2.0, "b": 3.0})
    done = sweep(ledger, Price(ledger, {"u": 1.0}), ALL, 0.1, 5.0)
    (change,) = done.changes
    assert (change.kept_before, change.kept, change.saved) == (64, 56, 8.0)
    assert change.task_growth == pytest.approx({"a": 0.0625, "b": 0.0125})
    assert change.loss_growth == pytest.approx(0.075)
    assert change.harm == pytest.approx(0.075 / 8)
    (blocked,) = done.blocked
    assert (blocked.unit, blocked.task, blocked.ratio) == ("u", "a", 0.25)
    assert (blocked.growth, blocked.allowed) == (pytest.approx(0.125), pytest.approx(0.1))


def test_the_tolerance_shrinks_only_after_a_commit():
    """d0 = 0.1, T = 1.1 · 1.05, two units: λ = 0.5. The first, blocked, leaves its tolerance to the second."""
    harms = {"first": {"a": 100.0}, "second": {"a": 0.8}}  # 8 of 64 cost the second 0.1
    blocked = Ledger(harms, {"a": 1.0})
    done = sweep(blocked, Price(blocked, {"first": 2.0, "second": 1.0}), ALL, 0.1001, 1.1001 * 1.05005)
    assert done.decay == pytest.approx(0.5, abs=1e-3)
    assert blocked.kept() == {"first": 64, "second": 56}
    used = Ledger({**harms, "first": {"a": 0.1}}, {"a": 1.0})
    sweep(used, Price(used, {"first": 2.0, "second": 1.0}), ALL, 0.1001, 1.1001 * 1.05005)
    assert used.kept() == {"first": 8, "second": 64}


def test_a_task_at_zero_allows_nothing_and_says_so():
    ledger = Ledger({"u": {"a": 0.1}}, {"a": 1.0, "b": 0.0})
    ledger._under = lambda removed: {"a": 1.0, "b": 0.001 * sum(map(len, removed.values()))}
    done = sweep(ledger, Price(ledger, {"u": 1.0}), ALL, 0.05, 5.0)
    assert done.changes == []
    (blocked,) = done.blocked
    assert (blocked.task, blocked.growth, blocked.allowed) == ("b", None, 0.0)
    json.dumps(done.report(), allow_nan=False)


def test_top_p_gives_the_worst_bargains_back():
    harms = {f"u{i}": {"a": 0.001 * i} for i in range(1, 6)}
    ledger = Ledger(harms, {"a": 1.0})
    done = sweep(ledger, Price(ledger, dict.fromkeys(harms, 1.0)), Rules(top_p=0.6), 0.05, 5.0)
    assert done.given_back == ["u5", "u4"]
    assert ledger.kept() == {"u1": 8, "u2": 8, "u3": 8, "u4": 64, "u5": 64}
    assert [c.unit for c in done.changes] == ["u1", "u2", "u3"]
    assert done.losses == ledger.losses == pytest.approx({"a": math.prod(1 + 0.001 * i * 0.875 for i in (1, 2, 3))})
    assert done.cost == 3 * 8 + 2 * 64


@pytest.mark.parametrize(("decay", "order"), [(0.5, ["c", "b", "a"]), (1.0, ["c", "b", "a"]), (1.5, ["a", "b", "c"])])
def test_the_order_follows_the_cost_that_a_third_of_a_unit_saves(decay, order):
    ledger = Ledger({"a": {}, "b": {}, "c": {}}, {"x": 1.0})
    costs = Price(ledger, {"a": 1.0, "b": 2.0, "c": 3.0})
    assert [u.name for u in by_contribution(ledger.units.values(), costs, {}, ALL, decay)] == order
    narrow = {"c": list(range(40))}  # 24 channels are left: 8 of them save 24, 20 of b save 40
    costs_now = [u.name for u in by_contribution(ledger.units.values(), costs, narrow, ALL, 0.5)]
    assert costs_now == ["b", "c", "a"]


harm = st.floats(0, 3)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(harm, harm, st.floats(0.1, 10)), min_size=1, max_size=8),
    st.floats(1.2, 6),
    st.floats(0.02, 0.15),
    st.floats(0.05, 1),
    st.sampled_from([0.5, 0.8, 1.0]),
)
def test_reach_keeps_every_task_within_the_total(harms, total, rate, share, top_p):
    """After any number of sweeps each task's loss is at most T × its original, and give-back stays at the target."""
    ledger = Ledger({f"u{i}": {"a": a, "b": b} for i, (a, b, _) in enumerate(harms)}, {"a": 0.01, "b": 40.0})
    costs = Price(ledger, {f"u{i}": price for i, (_, _, price) in enumerate(harms)})
    target = share * costs.cost({})
    done = reach(ledger, costs, Rules(initial_rate=rate, initial_thres=total, top_p=top_p), target)
    for task, loss in ledger.losses.items():
        assert loss <= total * ledger.original[task] * (1 + 1e-9)
    assert done[-1].cost == costs.cost(ledger.removed)
    assert done[-1].losses == ledger.losses
    assert ledger.losses == ledger._under(ledger.removed)
    if done[-1].cost > target:  # out of reach: then no rate of the total was left to try
        grown = max(1.0, max(ledger.losses[t] / ledger.original[t] for t in ledger.losses))
        assert total / grown <= 1 + rate * 2 ** len(done)
    assert all(kept % 8 == 0 for kept in ledger.kept().values())


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 0.3), st.floats(0.1, 10)), min_size=1, max_size=8), st.floats(0.15, 0.99))
def test_give_back_lands_at_or_under_the_target(harms, share):
    ledger = Ledger({f"u{i}": {"a": a} for i, (a, _) in enumerate(harms)}, {"a": 1.0})
    costs = Price(ledger, {f"u{i}": price for i, (_, price) in enumerate(harms)})
    done = sweep(ledger, costs, ALL, 0.3, 20.0)
    before, target = done.cost, share * costs.cost({})
    give_back(ledger, costs, ALL, target, done)
    if before > target:
        assert done.cost == before
        return
    assert before <= done.cost == costs.cost(ledger.removed) <= target
    assert {c.unit: c.kept for c in done.changes} == {c.unit: ledger.kept()[c.unit] for c in done.changes}
    for change in done.changes:  # nothing more fits under the target
        if change.kept < 64:
            wider = {**ledger.removed, change.unit: ledger.removed[change.unit][8:]}
            assert costs.cost(wider) > target


def test_what_is_given_back_is_what_was_most_important():
    ledger = Ledger({"u": {"a": 0.001}}, {"a": 1.0})
    costs = Price(ledger, {"u": 1.0})
    done = sweep(ledger, costs, ALL, 0.05, 5.0)
    assert len(ledger.removed["u"]) == 56
    give_back(ledger, costs, ALL, 40.0, done)
    assert ledger.removed["u"] == list(range(24))
    assert (done.cost, done.changes[0].kept) == (40.0, 40)


def test_the_harm_of_one_task_blocks_whatever_its_loss_is_worth():
    """Per-task limits: task b's loss is a thousandth of a's, and still stops the unit that only b needs."""
    harms = {"shared": {"a": 0.001}, "b_only": {"b": 5.0}}
    for size in (1e-3, 1.0, 1e3):
        ledger = Ledger(harms, {"a": 1.0, "b": size})
        done = sweep(ledger, Price(ledger, {"shared": 2.0, "b_only": 1.0}), ALL, 0.05, 5.0)
        assert ledger.kept() == {"shared": 8, "b_only": 64}
        assert [b.task for b in done.blocked] == ["b"]


# -- ranks ---------------------------------------------------------------------------------------------------------


class Ranked(nn.Module):
    """Two producers of the same four channels, one of them transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 1, bias=False)
        self.up = nn.ConvTranspose2d(3, 4, 1, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([[1.0, -3], [0, 2], [4, 4], [-1, 0]])[:, :, None, None])
            self.up.weight.copy_(torch.tensor([[3.0, 0, 0, 0], [-3, 0, 0, 6], [0, 0, 0, 0]])[:, :, None, None])


class StubOracle:
    def __init__(self, gone: dict[str, set[int]]) -> None:
        self.network, self.removed, self._gone = Ranked(), {}, gone

    def gone_inputs(self, layer: str) -> set[int]:
        return self._gone.get(layer, set())


COUPLED = Unit("conv", 4, tuple(Member(m, "out", ((0,), (1,), (2,), (3,))) for m in ("conv", "up")), True)


def test_filters_are_ranked_by_the_sum_of_their_mean_sizes():
    assert filter_norms(StubOracle({}), COUPLED, 1).tolist() == pytest.approx([2 + 2, 1, 4, 0.5 + 2])
    squares = [5 + 6, 2, 16, 0.5 + 12]
    roots = [5**0.5 + 6**0.5, 2**0.5, 4, 0.5**0.5 + 12**0.5]
    assert filter_norms(StubOracle({}), COUPLED, 2).tolist() == pytest.approx(roots), squares
    assert filter_norms(StubOracle({"conv": {1}}), COUPLED, 1).tolist() == pytest.approx([1 + 2, 0, 4, 1 + 2])
    assert least_important(StubOracle({}), COUPLED, 2, Rules()) == [1, 3]
    gone = StubOracle({})
    gone.removed = {"conv": [2]}
    assert least_important(gone, COUPLED, 2, Rules()) == [1, 2]  # what is gone stays gone


# -- a real network ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def program():
    return tiny_networks.resnet_program()


@pytest.fixture(scope="module")
def data(program):
    return tiny_networks.taught(program, 8, 0, noise=1.0)


def asked(program, data) -> tuple[Oracle, ChannelCosts]:
    example = program.example_inputs()
    groups = ChannelGroups(program.module, example)
    oracle = Oracle(program, groups, Criteria(program.tasks), data)
    return oracle, ChannelCosts(program, oracle.units)


def test_bisection_prunes_the_same_network_with_fewer_trials(program):
    data = tiny_networks.taught(program, 8, 0, noise=0.1)  # nearly the network's own outputs: harm grows with each cut
    found = {}
    for bisect in (True, False):
        oracle, costs = asked(program, data)
        sweep(oracle, costs, Rules(round_to=2, bisect=bisect), 1.0, 100.0)
        found[bisect] = (dict(oracle.removed), oracle.losses, oracle.effort.trials)
    assert found[True][0] == found[False][0]
    assert len(found[True][0]) >= 5
    assert found[True][1] == pytest.approx(found[False][1], rel=1e-5)
    assert found[True][2] < found[False][2]


def test_a_tasks_unit_of_measure_changes_nothing(program, data):
    """Depth in millimetres instead of metres: its loss is 1000 times as large, and the same channels go."""
    millimetres = replace(program.tasks[0], loss="testkit.tiny_networks:thousand_l1")
    found = []
    for tasks in (program.tasks, (millimetres, program.tasks[1])):
        oracle, costs = asked(replace(program, tasks=tasks), data)
        reach(oracle, costs, Rules(), 0.6 * costs.cost({}))
        found.append((oracle.removed, oracle.losses))
    assert found[0][0] == found[1][0] != {}
    assert found[1][1]["depth"] == pytest.approx(1000 * found[0][1]["depth"], rel=1e-4)


def test_a_real_network_reaches_its_target_within_the_total(program, data):
    oracle, costs = asked(program, data)
    target = 0.5 * costs.cost({})
    done = reach(oracle, costs, Rules(), target)
    assert costs.cost(oracle.removed) <= target < costs.cost({})
    for task, loss in oracle.losses.items():
        assert loss <= 5.0 * oracle.original[task]
    for name, gone in oracle.removed.items():
        assert (oracle.units[name].channels - len(gone)) % 8 == 0
    report = done[-1].report()
    assert report["cost"] == costs.cost(oracle.removed)
    assert set(report["losses"]) == {"depth", "semseg"}
