"""Milliseconds as the cost: predicted from a few timings, and checked before anything is returned."""

from __future__ import annotations

import pytest
from testkit.tabled_network import HIGHER, TASKS, Known, metrics_of

from mtlc.compress.slimmable.configuration import Configuration
from mtlc.compress.slimmable.evaluations import Evaluations, Here
from mtlc.compress.slimmable.width_latency import LatencyModel, find_within_ms
from mtlc.compress.slimmable.width_search import Question, Search
from mtlc.runtime.widths.width_choice import normalised_preference

ALIKE = normalised_preference(None, TASKS)


class Timed(Known):
    """Cutting a configuration out gives the configuration itself: it is what the timer is handed."""

    def encoder_macs(self, encoder):
        return self.macs(Configuration(encoder, (0.0,) * len(TASKS)))

    def narrow(self, configuration):
        return configuration


def milliseconds(supernet: Timed, configuration: Configuration) -> float:
    """1 ms, and 0.1 ms a MMAC in the encoder, 0.2 in the decoders."""
    encoder = supernet.encoder_macs(configuration.encoder)
    return 1 + 0.1e-6 * encoder + 0.2e-6 * (supernet.macs(configuration) - encoder)


def setting(timer):
    supernet, timed = Timed(), []

    def time(configuration):
        timed.append(configuration)
        return timer(supernet, configuration)

    model = LatencyModel(supernet, time)
    search = Search(supernet, Evaluations(Here(metrics_of), TASKS), HIGHER, model, "ms")
    return supernet, model, search, timed


def test_four_timings_tell_all_where_time_is_a_sum_of_macs():
    supernet, model, _, timed = setting(milliseconds)
    assert len(timed) == 4
    for configuration in (Configuration((0.5, 1.0, 0.25, 0.75), (0.25, 1.0, 0.5)), supernet.largest):
        assert model(configuration) == pytest.approx(milliseconds(supernet, configuration), rel=1e-6)
    assert len(timed) == 4


def test_what_is_found_was_timed_within_the_budget():
    supernet, model, search, timed = setting(milliseconds)
    budget = 0.5 * milliseconds(supernet, supernet.largest)
    found = find_within_ms(search, model, Question(ALIKE, budget))
    assert timed[-1] == found.configuration
    assert 0.8 * budget <= milliseconds(supernet, found.configuration) <= budget
    assert model.measured[found.configuration] == found.cost


def test_what_is_slower_than_predicted_is_not_returned():
    """Anything but the four that are timed first takes a tenth longer than the straight line says."""
    extremes: list[Configuration] = []

    def slow(supernet, configuration):
        ms = milliseconds(supernet, configuration)
        if len(extremes) < 4:
            extremes.append(configuration)
            return ms
        return 1.1 * ms

    supernet, model, search, timed = setting(slow)
    budget = 0.5 * milliseconds(supernet, supernet.largest)
    found = find_within_ms(search, model, Question(ALIKE, budget))
    assert model.measured[found.configuration] <= budget
    assert len(timed) > 5


def test_where_all_else_is_slow_the_best_that_was_fast_is_returned():
    def jumps(supernet, configuration):
        corner = {*configuration.encoder} in ({1.0}, {0.25}) and {*configuration.decoders} in ({1.0}, {0.25})
        return milliseconds(supernet, configuration) * (1 if corner else 50)

    supernet, model, search, _ = setting(jumps)
    budget = 0.6 * milliseconds(supernet, supernet.largest)
    found = find_within_ms(search, model, Question(ALIKE, budget))
    fast = [c for c, ms in model.measured.items() if ms <= budget]
    assert found.configuration in fast
    assert found.gain == max(search.gain(ALIKE, metrics_of(c)) for c in fast)
