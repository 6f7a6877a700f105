"""Limits, task specifications and Δm."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtlc.errors import UserError
from mtlc.tasks.task import Limit, TaskSpec, check_names, delta_m


@pytest.mark.parametrize(
    ("text", "value", "relative"),
    [
        ("1.0%", 0.01, True),
        (" 5 % ", 0.05, True),
        ("0%", 0.0, True),
        (0.02, 0.02, False),
        ("0.5", 0.5, False),
        (3, 3.0, False),
    ],
)
def test_limits_are_read(text, value, relative):
    assert Limit.parse(text) == Limit(pytest.approx(value), relative)


@pytest.mark.parametrize("text", ["-1%", "nan", "inf%", "one", "1%%", "", -0.1, math.nan])
def test_limits_that_are_none(text):
    with pytest.raises(UserError, match="max_drop = "):
        Limit.parse(text)


@pytest.mark.parametrize(
    ("limit", "before", "higher", "bound"),
    [
        (Limit(0.01, True), 50.0, True, 49.5),
        (Limit(0.01, True), 0.5, False, 0.505),
        (Limit(2.0, False), 50.0, True, 48.0),
        (Limit(0.02, False), 0.5, False, 0.52),
        (Limit(0.1, True), -10.0, True, -11.0),
    ],
)
def test_the_bound(limit, before, higher, bound):
    assert limit.bound(before, higher) == pytest.approx(bound)
    worse = -1e-3 if higher else 1e-3
    assert limit.allows(before, bound, higher)
    assert limit.allows(before, bound - worse, higher)
    assert not limit.allows(before, bound + worse, higher)
    assert not limit.allows(before, math.nan, higher)


@given(st.floats(0, 100), st.booleans())
def test_a_limit_is_written_as_it_is_read(value, relative):
    written = Limit.parse(f"{value:g}%" if relative else float(f"{value:g}"))
    assert Limit.parse(str(written)).value == pytest.approx(written.value, rel=1e-5, abs=1e-12)
    assert Limit.parse(str(written)).relative == written.relative


def test_a_task_survives_json():
    for limit in (None, Limit(0.01, True)):
        task = TaskSpec("seg", "cross_entropy", "miou", "1", "labels", 2.0, limit, {"ignore_index": 3}, {"classes": 4})
        assert TaskSpec.from_dict(json.loads(json.dumps(task.to_dict()))) == task


def test_keys_default_to_the_name():
    plain = TaskSpec("depth", "l1", "rmse")
    assert (plain.output_key, plain.target_key) == ("depth", "depth")
    named = TaskSpec("depth", "l1", "rmse", output="", target="d")
    assert (named.output_key, named.target_key) == ("", "d")


def test_delta_m_by_hand():
    """(+10 % − 20 %) / 2 with the second lower-is-better: 0.5 → 0.6 is 20 % worse."""
    higher = {"seg": True, "depth": False}
    assert delta_m({"seg": 44.0, "depth": 0.6}, {"seg": 40.0, "depth": 0.5}, higher) == pytest.approx(-5.0)
    assert delta_m({"seg": 40.0, "depth": 0.5, "more": 1}, {"seg": 40.0, "depth": 0.5}, higher) == 0.0
    assert delta_m({"x": -1.0}, {"x": -2.0}, {"x": True}) == pytest.approx(50.0)


def test_delta_m_of_nothing():
    with pytest.raises(UserError, match="at least one task"):
        delta_m({}, {}, {})
    with pytest.raises(UserError, match="'depth' of the baseline has no metric"):
        delta_m({}, {"depth": 1.0}, {"depth": False})
    with pytest.raises(UserError, match="baseline of task 'depth' is 0"):
        delta_m({"depth": 1.0}, {"depth": 0.0}, {"depth": False})


def test_names():
    check_names(["a", "b_2"])
    for names in (["a", "a"], ["a b"], ["1a"], ["a/b"], [""]):
        with pytest.raises(UserError, match=r"task '.*'"):
            check_names(names)


def test_a_limit_with_confidence():
    limit = Limit.parse({"drop": "2%", "confidence": 0.9})
    assert limit == Limit(0.02, True, 0.9)
    assert str(limit) == "2% at 90% confidence"
    assert limit.bound(50.0, True) == pytest.approx(49)
    task = TaskSpec("a", "mse", "mse", max_drop=limit)
    assert TaskSpec.from_dict(task.to_dict()) == task
    assert "confidence" not in TaskSpec("a", "mse", "mse", max_drop=Limit(0.02, True)).to_dict()["max_drop"]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"dorp": "1%", "confidence": 0.9}, r"max_drop has no key 'dorp'; did you mean 'drop'"),
        ({"drop": "1%"}, "max_drop.confidence = None: must lie between 0 and 1"),
        ({"drop": "1%", "confidence": 95}, "max_drop.confidence = 95: must lie between 0 and 1"),
        ({"confidence": 0.9}, "max_drop.drop = None; write"),
        ({"drop": "x", "confidence": 0.9}, "max_drop = 'x': write a share"),
    ],
)
def test_a_limit_that_cannot_be_read(table, words):
    with pytest.raises(UserError, match=words):
        Limit.parse(table)
