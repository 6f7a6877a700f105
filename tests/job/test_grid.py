"""The grid of a sweep: how values are written, how they are combined, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from mtlc.errors import UserError
from mtlc.job.grid import combinations, read_grid, short_names


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a=8,16", [8, 16]),
        ("a=40%, 60%", ["40%", "60%"]),
        ("a=16", [16]),
        ("a=[1,2],[3]", [[1, 2], [3]]),
        ('a={x=1,y=2},"x,y"', [{"x": 1, "y": 2}, "x,y"]),
        ("a=1,1.0,true", [1, 1.0, True]),
        ("a=don't,do", ["don't", "do"]),
        (r'a="say \"a,b\"",2', ['say "a,b"', 2]),
        ("a=x=1,y=2", ["x=1", "y=2"]),
    ],
)
def test_values_are_cut_at_commas_outside_brackets_and_quotes(text: str, values: list[Any]) -> None:
    (found,) = read_grid([text])
    assert [one.value for one in found] == values
    assert [type(one.value) for one in found] == [type(value) for value in values]
    assert {one.key for one in found} == {"a"}


def test_a_grid_in_python_is_lists_by_key() -> None:
    found = read_grid({"passes.0.round_to": [8, 16], "budget.macs": ("40%",)})
    assert [[(one.key, one.value) for one in of] for of in found] == [
        [("passes.0.round_to", 8), ("passes.0.round_to", 16)],
        [("budget.macs", "40%")],
    ]


def test_the_last_key_varies_fastest() -> None:
    made = combinations(read_grid({"a": [1, 2], "b": [3, 4]}))
    assert [[one.value for one in combination] for combination in made] == [[1, 3], [1, 4], [2, 3], [2, 4]]
    assert combinations(read_grid({})) == [()]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["a"], "--set a: write KEY=V1,V2"),
        (["a=1,,2"], '--set a=1,,2: a value is missing; write "" for an empty text'),
        (["a="], "a value is missing"),
        (["=1"], "--set =1: write KEY=VALUE"),
        (["a=1,2,1"], "--set a: the value 1 is there twice"),
        (["a=1", "b=1", "a=2"], "--set a: is there twice; write all its values at once: a=V1,V2"),
        (["seed=1,2"], "--set seed: seeds are asked for by their number, from the job's own on: --seeds N"),
        ({"a": "8,16"}, "grid['a'] = '8,16': give a list of values"),
        ({"a": {"b": 1}}, "give a list of values"),
        ({"a": []}, "grid['a']: has no values"),
        ("a=1,2", "give a dict of lists by key, or a list of texts: ['a=1,2']"),
    ],
)
def test_what_is_no_grid_is_refused_in_one_line(given: Any, words: str) -> None:
    with pytest.raises(UserError) as caught:
        read_grid(given)
    assert words in str(caught.value)


def test_keys_are_short_where_that_tells_them_apart() -> None:
    assert short_names(["passes.0.round_to", "budget.macs"]) == {
        "passes.0.round_to": "round_to",
        "budget.macs": "macs",
    }
    assert short_names(["passes.0.lr", "passes.1.lr"]) == {"passes.0.lr": "passes.0.lr", "passes.1.lr": "passes.1.lr"}
