"""The rule that turns a preference and a budget into widths, against a plain search and by hand."""

import math
import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtlc.errors import UserError
from mtlc.runtime.choose import (
    Budget,
    Decoder,
    Encoder,
    candidates,
    choose,
    decoder_widths,
    normalised_preference,
    pareto,
    relative_gain,
    scales,
    widest_cost,
)

WIDTHS = (0.25, 0.5, 0.75, 1.0)
TASKS = ("a", "b", "c")
preferences = st.lists(st.one_of(st.just(0.0), st.floats(0.001, 100)), min_size=3, max_size=3).filter(any)
width_sets = st.lists(st.sampled_from([0.1, 0.25, 0.3, 0.5, 0.75, 1.0]), min_size=1, unique=True).map(sorted)


def preference_of(values):
    return normalised_preference(dict(zip(TASKS, values, strict=True)), TASKS)


@pytest.mark.parametrize(
    ("prefer", "expected"),
    [
        (None, {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}),
        ({"a": 3, "c": 1}, {"a": 0.75, "b": 0, "c": 0.25}),
        ({"b": 1e308, "c": 1e308}, {"a": 0, "b": 0.5, "c": 0.5}),
    ],
)
def test_preferences_sum_to_one(prefer, expected):
    assert normalised_preference(prefer, TASKS) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prefer", "message"),
    [
        ({"depht": 1}, "prefer: 'depht' is not one of the tasks that run; did you mean 'depth'?"),
        ("depth", "prefer = 'depth': give each task a number, such as {'depth': 1}"),
        ({"depth": -1}, "prefer: depth = -1: must be a number, zero or more"),
        ({"depth": math.nan}, "prefer: depth = nan: must be a number, zero or more"),
        ({"depth": math.inf}, "prefer: depth = inf: must be a number, zero or more"),
        ({"depth": "1"}, "prefer: depth = '1': must be a number, zero or more"),
        ({"depth": None}, "prefer: depth = None: must be a number, zero or more"),
        ({"depth": 0}, "prefer: every task has 0: give one or more of depth, edge a number above 0"),
        ({}, "prefer: every task has 0: give one or more of depth, edge a number above 0"),
    ],
)
def test_preferences_that_are_none(prefer, message):
    with pytest.raises(UserError) as caught:
        normalised_preference(prefer, ["depth", "edge"])
    assert str(caught.value) == message


def test_decoder_widths_by_hand():
    """r = 1, 1/2, 0. At scale 1 they ask for 1, 1/2 and the least; at 1/2 for 1/2 and 1/4; beyond 2 all is asked for."""
    preference = preference_of([2, 1, 0])
    available = dict.fromkeys(TASKS, WIDTHS)
    assert decoder_widths(preference, 1.0, available) == {"a": 1.0, "b": 0.5, "c": 0.25}
    assert decoder_widths(preference, 0.5, available) == {"a": 0.5, "b": 0.25, "c": 0.25}
    assert decoder_widths(preference, 0.51, available) == {"a": 0.75, "b": 0.5, "c": 0.25}
    assert decoder_widths(preference, 9.0, available) == {"a": 1.0, "b": 1.0, "c": 0.25}
    assert scales(preference, available) == pytest.approx((0.25, 0.5, 0.75, 1.0, 1.5, 2.0))


@given(preferences, st.floats(1e-3, 1e6))
def test_the_task_preferred_more_is_never_the_narrower(values, scale):
    preference = preference_of(values)
    chosen = decoder_widths(preference, scale, dict.fromkeys(TASKS, WIDTHS))
    for t in TASKS:
        for u in TASKS:
            assert preference[t] < preference[u] or chosen[t] >= chosen[u]


@given(preferences, st.lists(width_sets, min_size=3, max_size=3), st.lists(st.floats(1e-3, 1e6), max_size=30))
def test_the_scales_cover_all_scales(values, sets, others):
    """Any scale gives what one of the finitely many gives, each of those gives something else, and widths only rise."""
    preference, available = preference_of(values), dict(zip(TASKS, sets, strict=True))
    tried = scales(preference, available)
    results = [tuple(decoder_widths(preference, scale, available).values()) for scale in tried]
    assert len(set(results)) == len(results)
    assert all(low <= high for a, b in pairwise(results) for low, high in zip(a, b, strict=True))
    assert results[0] == tuple(row[0] for row in sets)
    for other in others:
        assert tuple(decoder_widths(preference, other, available).values()) in results


def encoders_of(costs, gains, sets):
    """One encoder per cost, whose decoders cost 10 · width and gain what the list says."""
    gains = iter(gains)
    return [
        Encoder(
            f"e{i}",
            cost,
            {t: [Decoder(w, 10 * w, next(gains)) for w in row] for t, row in zip(TASKS, sets, strict=True)},
        )
        for i, cost in enumerate(costs)
    ]


@given(
    preferences,
    st.lists(st.integers(1, 100), min_size=1, max_size=4),
    st.lists(width_sets, min_size=3, max_size=3),
    st.floats(1, 140),
    st.data(),
)
def test_choose_is_the_best_of_all_encoders_and_scales(values, costs, sets, budget, data):
    """Against a search that asks `decoder_widths` for scale after scale on a fine grid of the distinct ones."""
    gains = data.draw(st.lists(st.floats(-1, 0.5), min_size=4 * 18, max_size=4 * 18))
    encoders, preference = encoders_of(costs, gains, sets), preference_of(values)
    best, least = -math.inf, math.inf
    for encoder in encoders:
        available = {task: [d.width for d in row] for task, row in encoder.decoders.items()}
        for scale in scales(preference, available):
            widths = decoder_widths(preference, scale, available)
            points = {task: next(d for d in encoder.decoders[task] if d.width == widths[task]) for task in TASKS}
            cost = encoder.cost + sum(point.cost for point in points.values())
            least = min(least, cost)
            if cost <= budget:
                best = max(best, sum(preference[task] * point.gain for task, point in points.items()))
    if best == -math.inf:
        with pytest.raises(UserError, match="is under the least that can run"):
            choose(encoders, preference, budget)
    else:
        choice = choose(encoders, preference, budget)
        assert choice.cost <= budget
        assert choice.gain == pytest.approx(best, abs=1e-9)
        assert choice in candidates(encoders, preference)


@given(preferences, st.lists(st.integers(1, 100), min_size=1, max_size=4), st.floats(50, 140), st.floats(0, 100))
def test_more_budget_never_gains_less(values, costs, budget, more):
    encoders = encoders_of([min(cost, 40) for cost in costs], [0.01 * (i * 7 % 13) for i in range(99)], [WIDTHS] * 3)
    preference = preference_of(values)
    assert choose(encoders, preference, budget + more).gain >= choose(encoders, preference, budget).gain - 1e-12


def test_of_equal_gains_the_cheaper():
    encoders = [
        Encoder("dear", 9, {"a": [Decoder(1.0, 1, 0.1)]}),
        Encoder("cheap", 3, {"a": [Decoder(1.0, 1, 0.1 - 1e-14)]}),
        Encoder("worse", 1, {"a": [Decoder(1.0, 1, 0.09)]}),
    ]
    assert choose(encoders, {"a": 1.0}, 100).encoder == "cheap"
    assert choose(encoders, {"a": 1.0}, 3).encoder == "worse"


def test_a_budget_that_nothing_meets():
    encoders = [
        Encoder("wide", 80e6, {"a": [Decoder(0.5, 3e6, 0), Decoder(1.0, 6.1e6, 0)]}),
        Encoder("narrow", 6.3e6, {"a": [Decoder(0.5, 3e6, 0), Decoder(1.0, 6e6, 0)]}),
    ]
    with pytest.raises(UserError) as caught:
        choose(encoders, {"a": 1.0}, 5e6)
    assert str(caught.value) == (
        "budget 5 MMACs is under the least that can run: 9.3 MMACs (11 % of the widest, 86.1 MMACs); "
        "raise the budget or run fewer tasks"
    )
    in_ms = [Encoder("only", 2.5, {"a": [Decoder(1.0, 1.0, 0)]})]
    with pytest.raises(
        UserError, match=r"budget 3 ms is under the least that can run: 3\.5 ms \(100 % of the widest, 3\.5 ms\)"
    ):
        choose(in_ms, {"a": 1.0}, 3.0, "ms")


def test_gains_have_a_sign():
    assert relative_gain(0.55, 0.5, higher_is_better=True) == pytest.approx(0.1)
    assert relative_gain(0.55, 0.5, higher_is_better=False) == pytest.approx(-0.1)
    assert relative_gain(-1.0, -2.0, higher_is_better=True) == pytest.approx(0.5)


def test_pareto_by_hand():
    assert pareto([(3, 1.0), (1, 0.5), (2, 0.4), (3, 2.0), (1, 0.5), (0.5, 0.1)]) == [5, 1, 3]
    assert pareto([]) == []


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=20))
def test_pareto_keeps_what_no_other_beats(points):
    kept = [points[place] for place in pareto(points)]
    expected = {p for p in points if not any(q != p and q[0] <= p[0] and q[1] >= p[1] for q in points)}
    assert set(kept) == expected
    assert kept == sorted(expected)


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("40%", 0.4, "share"),
        ("100 %", 1.0, "share"),
        ("25MMACs", 25e6, "MACs"),
        (" 25 Mmacs ", 25e6, "MACs"),
        ("25M", 25e6, "MACs"),
        ("1.5GMACs", 1.5e9, "MACs"),
        ("2e3kMACs", 2e6, "MACs"),
        ("300", 300, "MACs"),
        (25e6, 25e6, "MACs"),
        (25_000_000, 25e6, "MACs"),
        ("12ms", 12, "ms"),
        ("0.5 s", 500, "ms"),
    ],
)
def test_budgets(text, value, unit):
    parsed = Budget.parse(text)
    assert (parsed.value, parsed.unit) == (pytest.approx(value), unit)


FORMS = 'write "40%", "25MMACs", 25000000 or "12ms"'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fast", f"budget = 'fast': {FORMS}"),
        ("12Mms", f"budget = '12Mms': {FORMS}"),
        ("12MB", f"budget = '12MB': {FORMS}"),
        ("12KMACs", f"budget = '12KMACs': {FORMS}"),
        ("1.2.3M", f"budget = '1.2.3M': {FORMS}"),
        ("-3M", f"budget = '-3M': {FORMS}"),
        (True, f"budget = True: {FORMS}"),
        ([1], f"budget = [1]: {FORMS}"),
        ("0%", "budget = '0%': a share is above 0% and at most 100%"),
        ("120%", "budget = '120%': a share is above 0% and at most 100%"),
        (0, "budget = 0: must be more than zero"),
        ("0ms", "budget = '0ms': must be more than zero"),
        (math.nan, "budget = nan: must be more than zero"),
        ("1e999", "budget = '1e999': must be more than zero"),
    ],
)
def test_budgets_that_are_none(text, message):
    with pytest.raises(UserError) as caught:
        Budget.parse(text)
    assert str(caught.value) == message


@given(st.one_of(st.text(max_size=12), st.from_regex(r"[0-9.e]{1,5}[kKMG]?[A-Za-z%]{0,5}"), st.integers(), st.floats()))
def test_any_text_is_a_budget_or_one_line(text):
    try:
        value = Budget.parse(text).value
    except UserError as error:
        value = 1 if len(str(error).splitlines()) == 1 else math.nan
    assert 0 < value < math.inf


def test_choosing_takes_no_time():
    """10 encoders, 5 tasks, 4 widths, tasks all preferred differently: every choice anew, under 1 ms."""
    tasks = [f"t{i}" for i in range(5)]
    row = [Decoder(w, int(1e6 * w), 0.1 * w) for w in WIDTHS]
    encoders = [Encoder(f"e{i}", 1e7 * (i + 1), dict.fromkeys(tasks, row)) for i in range(10)]
    preference = normalised_preference({task: 1 + 0.37 * i for i, task in enumerate(tasks)}, tasks)
    assert len(candidates(encoders, preference)) == 10 * (5 * 3 + 1)
    assert widest_cost(encoders, tasks) == 1e8 + 5e6
    times = []
    for _ in range(101):
        begun = time.process_time()
        choose(encoders, preference, 6e7)
        times.append(time.process_time() - begun)
    assert sorted(times)[50] < 0.001
