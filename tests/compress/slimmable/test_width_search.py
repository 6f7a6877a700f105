"""The search for a configuration, on a network that is only a table: costs and metrics are known for every width."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import cache
from itertools import pairwise, product

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from testkit.tabled_network import HIGHER, TASKS, WIDTHS, Known, metrics_of

from mtlc.compress.slimmable.candidates import Candidates
from mtlc.compress.slimmable.configuration import Configuration
from mtlc.compress.slimmable.evaluations import Evaluations, Here
from mtlc.compress.slimmable.metric_predictor import MetricPredictor
from mtlc.compress.slimmable.width_search import STRATEGIES, Found, Question, Search
from mtlc.errors import UserError
from mtlc.runtime.widths.width_choice import Chooser, Decoder, Encoder, normalised_preference


@cache
def known() -> Known:
    return Known()


def search_of(
    supernet: Known | None = None, seed: int = 0, cost=None, unit: str = "MACs", measure=metrics_of
) -> Search:
    evaluations = Evaluations(Here(measure), TASKS)
    return Search(supernet or known(), evaluations, HIGHER, cost, unit, seed)


def question(share: float, **prefer: float) -> Question:
    return Question(normalised_preference(prefer or None, TASKS), share * known().macs(known().largest))


LEAST = known().macs(known().smallest) / known().macs(known().largest)
preferences = st.fixed_dictionaries({task: st.sampled_from([0.0, 0.1, 0.5, 1.0, 3.0]) for task in TASKS}).filter(
    lambda p: sum(p.values()) > 0
)
shares = st.floats(LEAST, 1.2)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.differing_executors])
@pytest.mark.parametrize("strategy", STRATEGIES)
@given(preferences, shares)
def test_never_over_the_budget(strategy, prefer, share):
    asked = question(share, **prefer)
    search = search_of()
    found = search.find(asked, strategy)
    assert found.cost == known().macs(found.configuration) <= asked.budget
    assert found.metrics == metrics_of(found.configuration)
    assert found.gain == pytest.approx(search.gain(asked.preference, found.metrics))
    assert found.runs == search.evaluations.runs
    assert all(low <= high + 1e-12 for (_, low), (_, high) in pairwise(found.trace))
    assert found.trace[-1][1] == found.gain
    known().table.width_of(found.configuration)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_least_budget_and_one_that_fits_all(strategy):
    least = Question(normalised_preference(None, TASKS), known().macs(known().smallest))
    assert search_of().find(least, strategy).configuration == known().smallest
    assert search_of().find(question(1.0), strategy).configuration == known().largest
    assert search_of().find(question(1.0), strategy).gain == 0.0


def test_an_impossible_budget_says_by_how_much_it_misses():
    least, most = known().macs(known().smallest), known().macs(known().largest)
    for strategy in STRATEGIES:
        search = search_of()
        with pytest.raises(UserError) as caught:
            search.find(Question(normalised_preference(None, TASKS), least - 1.5e6), strategy)
        assert str(caught.value) == (
            f"budget {(least - 1.5e6) / 1e6:.4g} MMACs is under the least that this network can run: "
            f"{least / 1e6:.4g} MMACs, "
            f"{least / most:.1%} of the widest; it misses by 1.5 MMACs"
        )
        assert search.evaluations.runs == 0
    in_ms = search_of(cost=lambda c: 2.0 + sum(c.encoder) + sum(c.decoders), unit="ms")
    with pytest.raises(UserError) as caught:
        in_ms.find(Question(normalised_preference(None, TASKS), 3.0))
    assert str(caught.value) == (
        "budget 3 ms is under the least that this network can run: 3.75 ms, 41.7% of the widest; it misses by 0.75 ms"
    )


def obedient(prefer: Mapping[str, float]) -> list[tuple[float, ...]]:
    """The decoder widths in which a task is no wider than one preferred to it, and the narrowest without any."""
    sets = product(*(WIDTHS if prefer[task] else WIDTHS[:1] for task in TASKS))
    pairs = [(i, j) for i, more in enumerate(TASKS) for j, less in enumerate(TASKS) if prefer[more] > prefer[less]]
    return [widths for widths in sets if all(widths[i] >= widths[j] for i, j in pairs)]


def exhaustive(search: Search, asked: Question) -> dict[Configuration, float]:
    """The gains of all that the joint strategy chooses from."""
    every = (Configuration(e, d) for e in known().encoders() for d in obedient(asked.preference))
    return {c: search.gain(asked.preference, metrics_of(c)) for c in every if known().macs(c) <= asked.budget}


ASKED = [
    (share, prefer)
    for share in (0.15, 0.3, 0.5, 0.75)
    for prefer in ({}, {"depth": 1.0}, {"semseg": 3.0, "edge": 1.0}, {"depth": 1.0, "edge": 2.0, "semseg": 4.0})
]


def test_joint_finds_almost_the_best_with_few_measurements():
    regrets, runs, candidates = [], [], []
    for share, prefer in ASKED:
        asked, search = question(share, **prefer), search_of()
        gains = exhaustive(search_of(), asked)
        found = search.find(asked, "joint")
        assert found.configuration in gains
        regrets.append(max(gains.values()) - found.gain)
        runs.append(found.runs)
        assert found.trace[-1][1] == found.gain
        candidates.append(len(gains))
    assert min(regrets) >= -1e-12
    assert max(regrets) <= 0.005, regrets  # of a gain: half a per cent of the widest network's metrics
    assert sum(regrets) / len(regrets) <= 0.001, regrets
    assert max(runs) <= 18, runs
    assert sum(candidates) >= 20 * sum(runs), candidates


def test_joint_looks_at_what_was_trained_for_the_budget():
    """Here one configuration is as good as the widest, which no predictor can know."""
    supernet = Known()
    trained = Configuration((0.75, 0.5, 0.5, 0.5), (0.75, 0.25, 0.5))  # depth, edge, semseg
    cheap, dear = Configuration((0.25,) * 4, (0.5,) * 3), Configuration((1.0,) * 4, (0.5,) * 3)
    share = 1.05 * supernet.macs(trained) / supernet.macs(supernet.largest)
    assert search_of().find(question(share)).configuration != trained
    supernet.trained = (supernet.smallest, cheap, dear, trained)
    seen = []

    def measure(configuration):
        seen.append(configuration)
        return metrics_of(supernet.largest if configuration == trained else configuration)

    assert search_of(supernet, measure=measure).find(question(share)).configuration == trained
    assert cheap not in seen
    assert dear not in seen
    seen.clear()
    search_of(supernet, measure=measure).find(question(share, depth=1.0, semseg=2.0, edge=3.0))
    assert trained not in seen  # it does not obey


def test_joint_is_seldom_beaten_by_the_other_strategies():
    better = dict.fromkeys(STRATEGIES, 0)
    for share, prefer in ASKED:
        asked = question(share, **prefer)
        ours = search_of().find(asked, "joint").gain
        for strategy in ("ecmt", "uniform"):
            better[strategy] += search_of().find(asked, strategy).gain > ours + 0.005
    assert better["ecmt"] == 0, better
    assert better["uniform"] == 0, better


@settings(max_examples=15, deadline=None)
@given(preferences, shares)
def test_a_bundle_of_all_encoders_would_choose_the_same(prefer, share):
    """The candidates here and the runtime's chooser, on one table: the same gain at the same cost."""
    asked, search = question(share, **prefer), search_of()
    search.evaluations.of([Configuration(e, (w,) * 3) for e in known().encoders() for w in WIDTHS])
    gains = search._measured(asked)
    encoders = []
    for encoder in known().encoders():
        base, parts = search._parts(encoder)
        metrics = {w: metrics_of(Configuration(encoder, (w,) * 3)) for w in WIDTHS}
        decoders = {
            t: [Decoder(w, c, search.gain({t: 1.0}, metrics[w])) for w, c in zip(WIDTHS, parts[t], strict=True)]
            for t in TASKS
        }
        encoders.append(Encoder(str(encoder), base, decoders))
    choice = Chooser(encoders).choose(asked.preference, asked.budget)
    best = Candidates(known(), asked.preference, search._parts).best(asked.budget, gains, 1)[0]
    assert search._summed(best, gains) == pytest.approx(choice.gain, abs=1e-12)
    assert known().macs(best) == pytest.approx(choice.cost, abs=2)  # each configuration's MACs are rounded


def test_the_rule_gives_the_preferred_task_the_wider_decoder():
    asked = question(0.5, semseg=4.0, edge=2.0, depth=1.0)
    found = search_of().find(asked, "ecmt")
    assert found.configuration.decoder_of(TASKS) == {"semseg": 1.0, "edge": 0.5, "depth": 0.25}
    alone = search_of().find(question(0.5, edge=1.0), "ecmt")
    assert alone.configuration.decoder_of(TASKS) == {"semseg": 0.25, "edge": 1.0, "depth": 0.25}


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(preferences, shares)
def test_the_rules_decoders_follow_the_preference(prefer, share):
    asked = question(share, **prefer)
    widths = search_of().find(asked, "ecmt").configuration.decoder_of(TASKS)
    ranked = sorted(TASKS, key=lambda t: asked.preference[t])
    for less, more in pairwise(ranked):
        if asked.preference[less] < asked.preference[more]:
            assert widths[less] <= widths[more]


def test_the_rule_narrows_the_least_preferred_first():
    """One stage at its narrowest: a step of 0.25 saves 0.56 M MACs of semseg, 0.19 M of edge, 0.38 M of depth."""
    supernet = Known(stages=1)
    preference = normalised_preference({"semseg": 2.8, "edge": 2.9, "depth": 3.0}, TASKS)
    full = supernet.macs(Configuration((0.25,), (1.0, 1.0, 1.0)))
    for less, decoders in (
        (1, (1.0, 1.0, 0.75)), (1.2e6, (1.0, 1.0, 0.25)), (1.9e6, (1.0, 0.5, 0.25)), (2.3e6, (0.75, 0.25, 0.25)),
    ):  # fmt: skip
        found = search_of(supernet).find(Question(preference, full - less), "ecmt")
        assert found.configuration == Configuration((0.25,), decoders)


@pytest.mark.parametrize("strategy", ["greedy", "evolution"])
def test_baselines_come_near_the_budget(strategy):
    for share in (0.2, 0.4, 0.7):
        asked = question(share)
        found = search_of().find(asked, strategy)
        assert 0.8 * asked.budget <= found.cost <= asked.budget
        assert found.gain >= search_of().find(asked, "uniform").gain - 0.005


def test_greedy_takes_the_step_that_loses_least():
    """Of seven groups one can be a step narrower; the first step is the one with the largest gain."""
    search = search_of()
    steps = search._steps_down(known().largest)
    assert len(steps) == 7
    best = max(steps, key=lambda c: search.gain(question(1).preference, metrics_of(c)))
    just_under = Question(question(1).preference, known().macs(known().largest) - 1)
    assert search_of().find(just_under, "greedy").configuration == best
    assert search._steps_down(known().smallest) == []


def test_the_same_seed_finds_the_same():
    for strategy in ("joint", "evolution"):
        one, other = (search_of(seed=3).find(question(0.4), strategy) for _ in range(2))
        assert (one.configuration, one.runs, one.trace) == (other.configuration, other.runs, other.trace)


def test_uniform_takes_the_widest_that_fits():
    search = search_of()
    costs = {w: known().macs(Configuration((w,) * 4, (w,) * 3)) for w in WIDTHS}
    for width, cost in costs.items():
        found = search.find(Question(question(1).preference, cost), "uniform")
        assert found.configuration == Configuration((width,) * 4, (width,) * 3)
    assert search.evaluations.runs == len(WIDTHS)


def test_a_further_question_needs_few_new_measurements():
    search = search_of()
    first = search.find(question(0.4), "joint")
    assert first.runs >= 8
    assert search.find(question(0.4), "joint").runs <= 3
    further: list[Found] = [search.find(question(share, semseg=2.0, edge=1.0), "joint") for share in (0.4, 0.35, 0.6)]
    assert all(found.runs <= 12 for found in further)
    assert sum(found.runs for found in further) <= 25
    assert search.evaluations.runs <= first.runs + 3 + sum(found.runs for found in further)


def test_gains_by_hand():
    """Depth 0.2 → 0.25 is 25 % worse, edge 0.6 → 0.66 10 % better: 0.75 · −0.25 + 0.25 · 0.1."""
    search = search_of()
    metrics = {"depth": 0.25, "edge": 0.66, "semseg": 0.0}
    assert search.reference() == metrics_of(known().largest)
    assert search.gain({"depth": 0.75, "edge": 0.25}, metrics) == pytest.approx(-0.1625)
    assert search.gain({"depth": 1.0}, {"depth": 0.2}) == pytest.approx(0.0)


def test_a_metric_of_zero_is_no_reference():
    search = search_of(measure=lambda c: {**metrics_of(c), "edge": 0.0})
    with pytest.raises(UserError) as caught:
        search.find(question(0.5))
    assert str(caught.value) == "task 'edge': the widest network's metric is 0, a relative gain is undefined"


def test_a_network_with_one_width_of_encoder():
    """Only decoders can be narrowed: the predictor has no stage to look at."""
    supernet = Known(stages=0)
    assert supernet.encoders() == [()]
    assert supernet.smallest == Configuration((), (0.25,) * 3)
    budget = 0.5 * supernet.macs(supernet.largest)
    for strategy in STRATEGIES:
        found = search_of(supernet).find(Question(question(1).preference, budget), strategy)
        assert found.cost <= budget


# -- the predictor -------------------------------------------------------------------------------------------------

STAGES = [(0.25, 0.5, 1.0), (0.5, 1.0)]
DECODERS = {"t": (0.25, 1.0)}


def additive(encoder: Iterable[float], width: float) -> float:
    one, two = encoder
    return 0.5 + {0.25: 0.0, 0.5: 0.1, 1.0: 0.13}[one] + {0.5: 0.0, 1.0: -0.05}[two] + {0.25: 0.0, 1.0: 0.2}[width]


def entries_of(rows: Iterable[tuple[tuple[float, ...], float]]) -> dict:
    return {(encoder, "t", width): additive(encoder, width) for encoder, width in rows}


EVERY = [(encoder, width) for encoder in product(*STAGES) for width in DECODERS["t"]]


def test_sums_are_predicted_from_a_part_of_the_rows():
    seen = [EVERY[i] for i in (0, 3, 5, 6, 9, 10, 11)]
    predicted = MetricPredictor(STAGES, DECODERS, entries_of(seen))
    for encoder, width in EVERY:
        assert predicted(encoder, "t", width) == pytest.approx(additive(encoder, width), abs=0.01)


def test_a_width_that_was_never_seen_is_between_its_neighbours():
    seen = [(encoder, width) for encoder, width in EVERY if encoder[0] != 0.5]
    predicted = MetricPredictor(STAGES, DECODERS, entries_of(seen))
    low, middle, high = (predicted((w, 1.0), "t", 1.0) for w in STAGES[0])
    assert low < middle < high
    assert middle == pytest.approx((low + high) / 2, abs=1e-3)


def test_one_row_predicts_itself():
    predicted = MetricPredictor(STAGES, DECODERS, entries_of(EVERY[:1]))
    assert all(math.isclose(predicted(e, "t", w), 0.5) for e, w in EVERY)
