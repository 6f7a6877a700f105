"""The governor on a simulated clock: rungs whose time is known, under a load that is known."""

import random
import threading
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from testkit.hand_bundle import slim_expected

from mtlc.runtime import Session
from mtlc.runtime.widths.configurations import ActiveConfiguration
from mtlc.runtime.widths.governor import Governor, Rung

COSTS = (10, 20, 40, 60, 80)


@dataclass
class Device:
    """A clock, and rungs that take `ms` of their own times the load and the noise."""

    ms: tuple[float, ...] = COSTS
    load: float = 1.0
    noise: float = 0.0
    now: float = 0.0
    chance: random.Random = field(default_factory=lambda: random.Random(0))

    def governor(self, target_ms, costs=None, **options):
        rungs = [
            Rung(ActiveConfiguration(None, {"s": place}, {}, ("a",), None, {}), cost, self.takes(ms))
            for place, (cost, ms) in enumerate(zip(costs or self.ms, self.ms, strict=True))
        ]
        return Governor(rungs, target_ms, clock=lambda: self.now, **options)

    def takes(self, ms):
        def run(_):
            self.now += ms * self.load * self.chance.gauss(1, self.noise) / 1000
            return {"a": np.zeros(1)}

        return run


def run(governor, times):
    for _ in range(times):
        governor.run(np.zeros(1))


def at(governor):
    return governor.ladder.index(governor.configuration)


def test_it_goes_down_under_load_and_comes_back():
    """Load 3: the widest takes 240 of 100 ms. Rung 20 is the widest whose 60 is under 90: three steps at once."""
    device = Device()
    governor = device.governor(100.0, window=7, patience=30)
    run(governor, 50)
    assert (at(governor), governor.switches) == (4, 0)
    device.load = 3.0
    run(governor, 4)  # the fourth slow run of seven moves the median
    assert (at(governor), governor.switches) == (1, 1)
    run(governor, 200)
    assert (at(governor), governor.switches) == (1, 1)
    device.load = 1.0
    run(governor, 4 + 30)
    assert (at(governor), governor.switches) == (4, 2)
    run(governor, 200)
    assert (at(governor), governor.switches) == (4, 2)


def test_it_climbs_as_far_as_the_load_allows():
    """After load 5 (16 ms per unit: too slow above the second rung), load 1.4: 80 would take 112, 60 takes 84 of 90."""
    device = Device(load=5.0)
    governor = device.governor(100.0)
    run(governor, 50)
    assert at(governor) == 0
    device.load = 1.4
    run(governor, 40)
    assert at(governor) == 3


def test_it_does_not_climb_for_a_moment():
    device = Device(load=3.0)
    governor = device.governor(100.0, patience=30)
    run(governor, 50)
    for _ in range(20):
        device.load = 1.0
        run(governor, 25)
        device.load = 3.0
        run(governor, 10)
    assert (at(governor), governor.switches) == (1, 1)


def test_single_slow_runs_do_not_count():
    device = Device()
    governor = device.governor(100.0)
    for turn in range(200):
        device.load = 20.0 if turn % 5 == 4 else 1.0
        run(governor, 1)
    assert governor.switches == 0


@pytest.mark.parametrize("load", [0.9, 1.1, 1.2, 1.3, 1.6, 2.2, 2.4, 4.0, 4.7])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_it_does_not_oscillate_with_noise(load, seed):
    """Times vary by 10 % (standard deviation). It settles, and 3000 runs are few switches, wherever the load lies."""
    device = Device(load=load, noise=0.1, chance=random.Random(seed))
    governor = device.governor(100.0)
    run(governor, 300)
    settled = governor.switches
    assert settled <= 4
    run(governor, 3000)
    assert governor.switches - settled <= 6


def test_a_rung_that_does_not_hold_is_tried_ever_more_rarely():
    """The rung of 80 takes 130, whatever its cost says: it is left, learnt, and tried again now and then."""
    device = Device(ms=(10, 20, 40, 60, 130))
    governor = device.governor(100.0, costs=COSTS)
    run(governor, 4000)
    earlier = governor.switches
    run(governor, 4000)
    assert at(governor) == 3
    assert earlier <= 10
    assert governor.switches - earlier <= 6
    assert sum(entry.rung == 4 for entry in governor.history) <= 7  # of 1000 runs: a window


def test_a_climb_that_held_makes_up_for_one_that_did_not():
    """A rung left at once waits for twice the patience; one that held since then for the patience again."""
    device = Device()
    governor = device.governor(100.0, window=1, patience=5)

    def runs_to_the_top():
        device.load, count = 1.0, 0
        while at(governor) < 4:
            run(governor, 1)
            count += 1
        device.load = 3.0
        return count

    device.load = 3.0
    run(governor, 2)
    assert runs_to_the_top() == 5
    run(governor, 10)
    assert (at(governor), runs_to_the_top()) == (1, 15)  # to the rung below after 5, from there after 10
    device.load = 1.0
    run(governor, 5)
    device.load = 3.0
    run(governor, 10)
    assert (at(governor), runs_to_the_top()) == (1, 5)


def test_it_climbs_to_what_would_do_all_through():
    """Load 1.4 allows the rung of 60 for four runs, load 1 that of 80 for the fifth: it takes the former."""
    device = Device(load=20.0)
    governor = device.governor(100.0, window=1, patience=5)
    run(governor, 2)
    device.load = 1.4
    run(governor, 4)
    device.load = 1.0
    run(governor, 1)
    assert (at(governor), governor.switches) == (3, 2)


def test_a_run_that_a_switch_overtook_counts_for_its_own_rung():
    """While a slow run is under way, another one switches: the slow one says nothing of the new rung."""
    device = Device(load=3.0)
    governor = device.governor(100.0, window=1)
    widest = governor._rungs[4]
    nested = iter([True, False])

    def slow(x):
        if next(nested):
            governor.run(x)
        return widest.run(x)

    governor._rungs = (*governor._rungs[:4], replace(widest, run=slow))
    run(governor, 1)
    assert (at(governor), governor.switches) == (1, 1)
    assert [(round(entry.ms), entry.rung) for entry in governor.history] == [(240, 4), (480, 4)]


def test_what_was_learnt_of_a_rung_counts():
    """Costs in MACs, with 20 ms that every rung takes besides: by cost 80 would take 160 from 40, it takes 100."""
    device = Device(ms=(30, 40, 60, 80, 100), load=3.0)
    governor = device.governor(115.0, costs=COSTS)
    run(governor, 60)
    assert at(governor) == 0
    device.load = 1.0
    run(governor, 60)
    assert at(governor) == 4


def test_the_narrowest_is_too_slow():
    device = Device(load=11.0)
    governor = device.governor(100.0)
    run(governor, 100)
    assert (at(governor), governor.saturated) == (0, True)
    assert governor.switches == 1
    device.load = 9.0
    run(governor, 10)
    assert (at(governor), governor.saturated) == (0, False)
    device.load = 1.0
    run(governor, 60)
    assert (at(governor), governor.saturated) == (4, False)


@pytest.mark.parametrize(("target", "start"), [(100.0, 4), (79.0, 3), (60.0, 3), (5.0, 0)])
def test_it_starts_where_the_measured_ms_fit(target, start):
    device = Device()
    assert at(device.governor(target, in_ms=True)) == start
    assert at(device.governor(target)) == 4


def test_history_is_bounded():
    device = Device()
    governor = device.governor(30.0, window=3)
    run(governor, 5)
    assert [(round(entry.ms), entry.rung) for entry in governor.history] == [(80, 4)] * 3 + [(20, 1)] * 2
    run(governor, 2000)
    assert len(governor.history) == 1000


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(1, 200), min_size=1, max_size=8).map(sorted),
    st.floats(5, 300),
    st.floats(0.2, 8),
    st.integers(1, 9),
    st.integers(1, 20),
)
def test_a_steady_load_ends_within_the_target_or_saturated(ms, target, load, window, patience):
    """With steady times that are as the costs say: at most one descent, then no rung that is over the target."""
    assume(all(abs(own * load / target - 1) > 1e-6 for own in ms))
    device = Device(ms=tuple(ms), load=load)
    governor = device.governor(target, window=window, patience=patience)
    run(governor, 3 * window + 1)
    assert governor.switches <= 1
    run(governor, 3 * patience + 30)
    assert governor.switches <= 1
    assert governor.saturated == (ms[0] * load > target and at(governor) == 0)
    assert governor.saturated or ms[at(governor)] * load <= target


def test_on_a_session(slim_bundle, x):
    """The session's own configuration and the governor's are apart, and nothing is loaded by a switch."""
    with Session(slim_bundle) as session:
        governor = session.governor(1e6, prefer={"near": 2, "far": 1})
        loaded = session.loaded
        session.configure("small")
        outputs = governor.run(x)
        for task, array in slim_expected(x, "wide", 1.0, 1.0).items():
            np.testing.assert_allclose(outputs[task], array, rtol=1e-5, atol=1e-4)
        assert governor.configuration.macs == 74_000_000
        assert session.configuration.name == "small"
        hurried = session.governor(1e-6, prefer={"near": 2, "far": 1})
        run_on(hurried, x, 14)
        assert (hurried.saturated, hurried.switches) == (True, 1)
        assert hurried.configuration.macs == 10_000_000
        for task, array in slim_expected(x, "narrow", 0.25, 0.5).items():
            np.testing.assert_allclose(hurried.run(x)[task], array, rtol=1e-5, atol=1e-4)
        assert session.configuration.name == "small"
        assert session.loaded == loaded


def test_the_ladder_rises(slim_bundle, x):
    """From the cheapest to the widest; and near alone pays for no neck."""
    with Session(slim_bundle) as session:
        macs = [configuration.macs for configuration in session.governor(5.0).ladder]
        assert macs == sorted(macs)
        assert (macs[0], macs[-1]) == (10_000_000, 74_000_000)
        alone = session.governor(5.0, tasks="near")
        assert alone.ladder[0].macs == 6_000_000
        assert list(alone.run(x)) == ["near"]
        session.calibrate(x, rounds=1)
        assert session.governor(1e9).configuration.macs == 74_000_000


def run_on(governor, x, times):
    for _ in range(times):
        governor.run(x)


def test_threads_share_a_governor(slim_bundle, x):
    with Session(slim_bundle, threads=1) as session:
        governor = session.governor(1e-6)
        threads = [threading.Thread(target=run_on, args=(governor, x, 25)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(governor.history) == 100
        assert (governor.saturated, governor.switches) == (True, 1)
