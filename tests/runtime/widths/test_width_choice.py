"""The rule that turns a preference and a budget into widths, against a plain search and by hand."""

import math
import time
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtlc.errors import UserError
from mtlc.runtime.widths.width_choice import (
    MOST_SETS,
    Choice,
    Chooser,
    Decoder,
    Encoder,
    WidthBudget,
    decoder_widths,
    normalised_preference,
    obedient_sets,
    pareto,
    relative_gain,
    scales,
    spaced,
)

WIDTHS = (0.25, 0.5, 0.75, 1.0)
TASKS = ("a", "b", "c")
preferences = st.lists(
    st.one_of(st.sampled_from([0.0, 1.0, 2.0]), st.floats(0.001, 100)), min_size=3, max_size=3
).filter(any)
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
    """r = 1, 1/2, 0. At scale 1 they ask for 1, 1/2 and the least; at 1/2 for 1/2 and 1/4; beyond 2 for all."""
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


def obeying(preference, available):
    """By the rule's words, set after set."""
    found = []
    for places in product(*(range(len(available[task])) for task in preference)):
        width = {task: available[task][place] for task, place in zip(preference, places, strict=True)}
        widest = {task: width[task] == available[task][-1] for task in preference}
        narrowest = {task: width[task] == available[task][0] for task in preference}
        if all(narrowest[t] for t, p in preference.items() if p == 0) and all(
            width[t] >= width[u] or widest[t] or narrowest[u]
            for t, p in preference.items()
            for u, q in preference.items()
            if p > q > 0
        ):
            found.append(places)
    return found


def test_obedient_sets_by_hand():
    """a before b, and c without a preference: where b has 0.5, a has no less."""
    available = {"a": WIDTHS, "b": (0.25, 0.5), "c": WIDTHS}
    sets = obedient_sets(preference_of([2, 1, 0]), available)
    assert sorted(map(tuple, sets)) == [(0, 0, 0), (1, 0, 0), (1, 1, 0), (2, 0, 0), (2, 1, 0), (3, 0, 0), (3, 1, 0)]
    # b is preferred but cannot be wider than 0.5: there it holds a back no longer.
    sets = obedient_sets(preference_of([1, 2, 0]), available)
    assert sorted(map(tuple, sets)) == [(0, 0, 0), (0, 1, 0), (1, 1, 0), (2, 1, 0), (3, 1, 0)]
    assert len(obedient_sets(preference_of([1, 1, 1]), available)) == 4 * 2 * 4
    # b cannot be narrower than 0.5: there it asks for nothing of a, which is preferred.
    sets = obedient_sets(preference_of([2, 1, 0]), {"a": (0.25, 0.75), "b": (0.5, 0.75, 1.0), "c": (1.0,)})
    assert sorted(map(tuple, sets)) == [(0, 0, 0), (1, 0, 0), (1, 1, 0), (1, 2, 0)]


@given(preferences, st.lists(width_sets, min_size=3, max_size=3))
def test_the_obedient_sets_are_all_that_obey(values, rows):
    preference, available = preference_of(values), dict(zip(TASKS, rows, strict=True))
    sets = [tuple(int(place) for place in places) for places in obedient_sets(preference, available)]
    assert len(set(sets)) == len(sets)
    assert set(sets) == set(obeying(preference, available))
    assert (0, 0, 0) in sets


@given(preferences, width_sets)
def test_what_is_in_proportion_obeys(values, row):
    preference, available = preference_of(values), dict.fromkeys(TASKS, row)
    sets = {tuple(places) for places in obedient_sets(preference, available)}
    for scale in scales(preference, available):
        widths = decoder_widths(preference, scale, available)
        assert tuple(row.index(widths[task]) for task in TASKS) in sets


def test_of_too_many_sets_those_in_proportion():
    """12 tasks, 4 widths. In 12 ranks the widths only fall: C(15, 3) = 455 sets. In one rank 4^12 are too many."""
    tasks = [f"t{i}" for i in range(12)]
    available = dict.fromkeys(tasks, WIDTHS)
    ranked = obedient_sets(normalised_preference({t: 1.0 + i for i, t in enumerate(tasks)}, tasks), available)
    assert len(ranked) == math.comb(15, 3)
    assert obedient_sets(normalised_preference(None, tasks), available).tolist() == [[i] * 12 for i in range(4)]
    # Two ranks, r = 1 and 1/2, as many sets as there are scales: 1/4, 1/2, 3/4, 1, 3/2, 2.
    two = normalised_preference({t: 1.0 + i % 2 for i, t in enumerate(tasks)}, tasks)
    narrow_first = [(0, 0), (0, 1), (1, 2), (1, 3), (2, 3), (3, 3)]
    assert obedient_sets(two, available).tolist() == [[*pair] * 6 for pair in narrow_first]


@pytest.mark.parametrize(("count", "alike"), [(7, True), (8, False)])
def test_the_most_sets(count, alike):
    """4^7 = 16,384 sets are looked at, 4^8 are not."""
    tasks = [f"t{i}" for i in range(count)]
    sets = obedient_sets(normalised_preference(None, tasks), dict.fromkeys(tasks, WIDTHS))
    assert len(sets) == (4**count if alike else 4)
    assert len(sets) <= MOST_SETS


def encoders_of(costs, gains, sets):
    """One encoder per cost, whose decoders cost 10 · width and gain what the list says. Every other encoder has only
    the narrowest width of a."""
    gains = iter(gains)
    return [
        Encoder(
            f"e{i}",
            cost,
            {
                t: [Decoder(w, 10 * w, next(gains)) for w in (row[:1] if t == "a" and i % 2 else row)]
                for t, row in zip(TASKS, sets, strict=True)
            },
        )
        for i, cost in enumerate(costs)
    ]


def combinations(encoders, preference):
    """All that may be chosen, one after the other."""
    for encoder in encoders:
        available = {task: [d.width for d in encoder.decoders[task]] for task in preference}
        for places in obeying(preference, available):
            points = {t: encoder.decoders[t][place] for t, place in zip(preference, places, strict=True)}
            cost = encoder.cost + sum(point.cost for point in points.values())
            gain = sum(preference[task] * point.gain for task, point in points.items())
            yield Choice(encoder.name, {task: point.width for task, point in points.items()}, cost, gain)


tables = st.builds(
    encoders_of,
    st.lists(st.integers(1, 100), min_size=1, max_size=4),
    st.lists(st.floats(-1, 0.5), min_size=4 * 18, max_size=4 * 18),
    st.lists(width_sets, min_size=3, max_size=3),
)


@given(tables, preferences, st.floats(1, 140))
def test_choose_is_the_best_of_all_that_obey(encoders, values, budget):
    preference, chooser = preference_of(values), Chooser(encoders)
    every = list(combinations(encoders, preference))
    fitting = [c for c in every if c.cost <= budget]
    if not fitting:
        with pytest.raises(UserError, match="is under the least that can run"):
            chooser.choose(preference, budget)
        return
    choice = chooser.choose(preference, budget)
    assert choice.cost <= budget
    assert choice.gain == pytest.approx(max(c.gain for c in fitting), abs=1e-9)
    same = [c for c in every if (c.encoder, c.decoders) == (choice.encoder, choice.decoders)]
    assert (choice.cost, choice.gain) == pytest.approx((same[0].cost, same[0].gain), abs=1e-9)


@given(tables, preferences)
def test_the_front_is_what_none_beats(encoders, values):
    preference = preference_of(values)
    front = Chooser(encoders).front(preference)
    assert all(low.cost < high.cost and low.gain < high.gain for low, high in pairwise(front))
    for one in combinations(encoders, preference):
        assert any(c.cost <= one.cost + 1e-9 and c.gain >= one.gain - 1e-9 for c in front)


@given(tables, preferences, st.floats(0, 140), st.floats(0, 100))
def test_more_budget_never_gains_less(encoders, values, budget, more):
    preference, chooser = preference_of(values), Chooser(encoders)
    budget += chooser.front(preference)[0].cost
    assert chooser.choose(preference, budget + more).gain >= chooser.choose(preference, budget).gain - 1e-12


def test_decoders_are_weighed_against_each_other():
    """Alike, but semseg gains by width and edge does not: the budget for one wider decoder goes to semseg."""
    decoders = {
        "semseg": [Decoder(0.5, 1, -0.2), Decoder(1.0, 2, 0.0)],
        "edge": [Decoder(0.5, 1, -0.01), Decoder(1.0, 2, 0.0)],
    }
    chooser, alike = Chooser([Encoder("e", 5, decoders)]), {"semseg": 0.5, "edge": 0.5}
    assert chooser.choose(alike, 8) == Choice("e", {"semseg": 1.0, "edge": 0.5}, 8, pytest.approx(-0.005))
    # Preferred by however little, edge may not be the narrower one.
    choice = chooser.choose({"semseg": 0.49, "edge": 0.51}, 8)
    assert (choice.decoders, choice.cost) == ({"semseg": 0.5, "edge": 1.0}, 8)
    assert chooser.widest == 9


def test_of_equal_gains_the_cheaper():
    chooser = Chooser(
        [
            Encoder("dear", 9, {"a": [Decoder(1.0, 1, 0.1)]}),
            Encoder("cheap", 3, {"a": [Decoder(1.0, 1, 0.1 - 1e-14)]}),
            Encoder("worse", 1, {"a": [Decoder(1.0, 1, 0.09)]}),
        ]
    )
    assert chooser.choose({"a": 1.0}, 100).encoder == "cheap"
    assert chooser.choose({"a": 1.0}, 3).encoder == "worse"


def test_a_budget_that_nothing_meets():
    encoders = [
        Encoder("wide", 80e6, {"a": [Decoder(0.5, 3e6, 0), Decoder(1.0, 6.1e6, 0)]}),
        Encoder("narrow", 6.3e6, {"a": [Decoder(0.5, 3e6, 0), Decoder(1.0, 6e6, 0)]}),
    ]
    with pytest.raises(UserError) as caught:
        Chooser(encoders).choose({"a": 1.0}, 5e6)
    assert str(caught.value) == (
        "budget 5 MMACs is under the least that can run: 9.3 MMACs (11 % of the widest, 86.1 MMACs); "
        "raise the budget or run fewer tasks"
    )
    in_ms = [Encoder("only", 2.5, {"a": [Decoder(1.0, 1.0, 0)]})]
    with pytest.raises(
        UserError, match=r"budget 3 ms is under the least that can run: 3\.5 ms \(100 % of the widest, 3\.5 ms\)"
    ):
        Chooser(in_ms).choose({"a": 1.0}, 3.0, "ms")


def test_gains_have_a_sign():
    assert relative_gain(0.55, 0.5, higher_is_better=True) == pytest.approx(0.1)
    assert relative_gain(0.55, 0.5, higher_is_better=False) == pytest.approx(-0.1)
    assert relative_gain(-1.0, -2.0, higher_is_better=True) == pytest.approx(0.5)


def front_of(points):
    costs, values = np.array(points, float).reshape(-1, 2).T
    return pareto(costs, values)


def test_pareto_by_hand():
    assert front_of([(3, 1.0), (1, 0.5), (2, 0.4), (3, 2.0), (1, 0.5), (0.5, 0.1)]) == [5, 1, 3]
    assert front_of([]) == []


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=20))
def test_pareto_keeps_what_no_other_beats(points):
    kept = [points[place] for place in front_of(points)]
    expected = {p for p in points if not any(q != p and q[0] <= p[0] and q[1] >= p[1] for q in points)}
    assert set(kept) == expected
    assert kept == sorted(expected)


def rungs_of(costs):
    return [Choice("e", {}, cost, 0.0) for cost in costs]


@pytest.mark.parametrize(
    ("costs", "kept"),
    [
        ([100], [100]),
        ([50, 60, 100], [50, 60, 100]),
        ([90, 94, 95, 96, 100], [90, 95, 100]),
        ([90, 92, 94, 96, 100], [90, 100]),  # 94 is kept from 100 on, but 90 is not 5 % under it
        ([96, 98, 100], [96, 100]),
        ([0, 1, 2], [0, 1, 2]),
    ],
)
def test_rungs_are_spaced(costs, kept):
    assert [choice.cost for choice in spaced(rungs_of(costs))] == kept


@given(st.lists(st.integers(1, 1000), min_size=1, unique=True).map(sorted))
def test_spaced_rungs_keep_both_ends(costs):
    kept = [choice.cost for choice in spaced(rungs_of(costs))]
    assert (kept[0], kept[-1]) == (costs[0], costs[-1])
    assert len(kept) <= 2 or all(low <= 0.95 * high for low, high in pairwise(kept))
    # What was left out is near a rung: nowhere two steps of 5 % are missing.
    assert all(any(abs(cost - other) <= 0.1 * max(cost, other) for other in kept) for cost in costs)


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
    parsed = WidthBudget.parse(text)
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
        (0.4, 'budget = 0.4: must be more than one MAC; for a share write "40%"'),
        ("0.5", "budget = '0.5': must be more than one MAC; for a share write \"50%\""),
        ("0ms", "budget = '0ms': must be more than zero"),
        (math.nan, "budget = nan: must be more than zero"),
        ("1e999", "budget = '1e999': must be more than zero"),
    ],
)
def test_budgets_that_are_none(text, message):
    with pytest.raises(UserError) as caught:
        WidthBudget.parse(text)
    assert str(caught.value) == message


@given(st.one_of(st.text(max_size=12), st.from_regex(r"[0-9.e]{1,5}[kKMG]?[A-Za-z%]{0,5}"), st.integers(), st.floats()))
def test_any_text_is_a_budget_or_one_line(text):
    try:
        value = WidthBudget.parse(text).value
    except UserError as error:
        value = 1 if len(str(error).splitlines()) == 1 else math.nan
    assert 0 < value < math.inf


def median_seconds(chooser, preferences, budget):
    times = []
    for preference in preferences:
        begun = time.process_time()
        chooser.choose(preference, budget)
        times.append(time.process_time() - begun)
    return sorted(times)[len(times) // 2]


def test_choosing_takes_no_time():
    """6 encoders, 5 tasks, 4 widths: under 1 ms, with all tasks alike (1024 sets) and a new preference every time."""
    tasks = [f"t{i}" for i in range(5)]
    row = [Decoder(w, int(1e6 * w), 0.1 * w) for w in WIDTHS]
    chooser = Chooser([Encoder(f"e{i}", 1e7 * (i + 1), dict.fromkeys(tasks, row)) for i in range(6)])
    assert chooser.widest == 6e7 + 5e6
    alike = normalised_preference(None, tasks)
    assert len(obedient_sets(alike, dict.fromkeys(tasks, WIDTHS))) == 1024
    assert median_seconds(chooser, [alike] * 101, 4e7) < 0.001
    turned = [{t: 1 + 0.37 * ((i + turn) % 5) + turn / 1000 for i, t in enumerate(tasks)} for turn in range(101)]
    assert median_seconds(chooser, [normalised_preference(p, tasks) for p in turned], 4e7) < 0.001
