"""A profile against an earlier one: by instructions, by time where there are none, and not at all where it would
mislead.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from mtlc.errors import UserError
from mtlc.results.profile import Baseline, ProfileResult, Regression
from mtlc.workflows.profile_baseline import compare_with_baseline, parse_growth, read_baseline

HERE = Path("earlier.json")


def profile(ms: float, instructions: float | None) -> dict[str, Any]:
    counted = None if instructions is None else {"median": instructions, "p10": 1.0, "p90": 1.0, "spread": 0.0004}
    device = {"cpu": "A CPU", "cores": 2, "machine": "x86_64", "system": "Linux", "python": "3.11.7"}
    return {
        "device": device,
        "backend": {"name": "onnxruntime", "version": "1.32.0"},
        "threads": 1, "batch": 1, "tasks": None, "configuration": None, "bundle": "b",
        "instructions_why": None if instructions is not None else "no counter",
        "bundles": {"b": {"median_ms": ms, "spread": 0.3, "instructions": counted}},
    }  # fmt: skip


def compared(now: dict[str, Any], then: dict[str, Any], max_growth: float | None = None) -> Regression:
    return compare_with_baseline(ProfileResult.model_validate(now), Baseline.model_validate(then), HERE, max_growth)


@pytest.mark.parametrize(("now", "grew"), [(1.009e9, False), (1.011e9, True), (0.5e9, False)])
def test_by_instructions_whatever_the_clock_says(now: float, grew: bool) -> None:
    found = compared(profile(99.0, now), profile(1.0, 1e9))
    assert (found.by, found.why, found.max_growth, found.grew) == ("instructions", None, 0.01, grew)
    assert found.growth == pytest.approx(now / 1e9 - 1)
    assert found.spread == 0.0004


@pytest.mark.parametrize(
    ("now", "then", "why"), [(None, 1e9, "no counter"), (1e9, None, "the baseline has no instructions: no counter")]
)
def test_by_time_where_one_was_not_counted(now: float | None, then: float | None, why: str) -> None:
    found = compared(profile(1.09, now), profile(1.0, then))
    assert (found.by, found.why, found.max_growth, found.grew) == ("median_ms", why, 0.1, False)
    assert compared(profile(1.11, now), profile(1.0, then)).grew
    assert compared(profile(1.09, now), profile(1.0, then), 0.05).grew


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("device", "cpu"), "Another CPU", "measured with cpu = Another CPU, this one with A CPU"),
        (("device", "python"), "3.12.1", "python = 3.12.1, this one with 3.11.7"),
        (("backend", "name"), "openvino", "backend = openvino 1.32.0, this one with onnxruntime 1.32.0"),
        (("backend", "version"), "1.31.0", "backend = onnxruntime 1.31.0"),
        (("threads",), 2, "threads = 2, this one with 1"),
        (("batch",), 8, "batch = 8"),
        (("tasks",), ["depth"], "tasks = "),
        (("configuration",), "small", "configuration = small"),
    ],
)
def test_other_settings_do_not_compare(keys: tuple[str, ...], value: object, message: str) -> None:
    earlier = copy.deepcopy(profile(1.0, 1e9))
    inner = earlier
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    with pytest.raises(UserError, match=message):
        compared(profile(1.0, 1e9), earlier)


@pytest.mark.parametrize(("text", "value"), [("1%", 0.01), ("0.01", 0.01), (" 2.5 % ", 0.025), ("0", 0.0)])
def test_allowances(text: str, value: float) -> None:
    assert parse_growth(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "%", "-1%", "much", "nan", "inf"])
def test_what_is_no_allowance(text: str) -> None:
    with pytest.raises(UserError, match="--max-growth"):
        parse_growth(text)


def test_files_that_are_no_baseline(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be read \(No such file"):
        read_baseline(tmp_path / "none.json")
    (path := tmp_path / "x.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        read_baseline(path)
    for other in ({}, [], {"bundles": {}}, {**profile(1.0, None), "bundle": "c"}):
        path.write_text(json.dumps(other))
        with pytest.raises(UserError, match="not what mtlc profile --json printed"):
            read_baseline(path)
    path.write_text(json.dumps(profile(1.0, None)))
    assert read_baseline(path).bundle == "b"


def test_a_file_of_another_version_is_read_as_far_as_it_is_needed(tmp_path: Path) -> None:
    (path := tmp_path / "x.json").write_text(json.dumps({**profile(1.0, 1e9), "later": {"key": 1}}))
    assert (
        compare_with_baseline(ProfileResult.model_validate(profile(1.0, 1e9)), read_baseline(path), path).grew is False
    )


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"threads": "many"}, "threads: input should be a valid integer"),
        ({"device": {"cpu": "A CPU"}}, "device.cores: field required"),
        ({"bundle": "c"}, "bundles: 'c' is missing"),
        ({"bundles": {"b": {"median_ms": 0, "spread": 0.1}}}, "bundles.b.median_ms: input should be greater than 0"),
    ],
)
def test_what_is_wrong_in_a_baseline_is_named(tmp_path: Path, wrong: dict[str, Any], words: str) -> None:
    (path := tmp_path / "x.json").write_text(json.dumps({**profile(1.0, 1e9), **wrong}))
    with pytest.raises(UserError) as error:
        read_baseline(path)
    assert words in str(error.value)
    assert len(str(error.value).splitlines()) == 1
