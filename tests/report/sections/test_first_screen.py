"""The first screen: what was gained, what each task paid on one scale, and the checks of whether it is safe."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from testkit.browser import words
from testkit.sample_results import pictures, results

from mtlc.report.run_report import write_report
from mtlc.report.sections.checks import checks
from mtlc.report.sections.paid import paid
from mtlc.report.sections.summary import summary
from mtlc.results.run import RunResults

INTERVAL = {"confidence": 0.95, "samples": 50, "draws": 1000}


def read(data: dict[str, Any]) -> RunResults:
    return RunResults.read(data, "made")


def two_tasks() -> dict[str, Any]:
    """semseg loses 2 % of 50 (its limit is 4 %), with an interval of −3 to −1; depth gains 1 % and has no limit."""
    return {
        "tasks": {
            "semseg": {
                "metric": "miou", "unit": "%", "higher_is_better": True, "before": 50.0, "after": 49.0, "limit": "4%",
                "within": True, "change_interval": {"low": -1.5, "high": -0.5, **INTERVAL}, "by_chance": False,
            },
            "depth": {"metric": "rmse", "higher_is_better": False, "before": 2.0, "after": 1.98},
        },
        "delta_m": {"vs_original": -0.5, "vs_original_interval": {"low": -1.0, "high": 0.0, **INTERVAL}},
    }  # fmt: skip


def by_title(found: list[dict[str, str]]) -> dict[str, tuple[str, str]]:
    return {one["title"]: (one["tone"], one["words"]) for one in found}


def test_each_change_stands_with_interval_and_limit_on_one_scale() -> None:
    found = paid(read(two_tasks()))
    assert found is not None
    semseg, depth = found["rows"]
    assert (semseg["change"], semseg["interval"]) == ("−2.00 %", "−3.00 to −1.00 %")
    assert (depth["change"], depth["interval"]) == ("+1.00 %", "")
    # The scale goes from the limit, −4 %, to the gain, +1 %, with 6 % of room at both ends: 5.6 % in all.
    mark = semseg["whisker"]
    assert mark["zero"] == depth["whisker"]["zero"] == pytest.approx(100 * 4.3 / 5.6, abs=0.01)
    assert mark["at"] == pytest.approx(100 * 2.3 / 5.6, abs=0.01)
    assert mark["limit"] == pytest.approx(100 * 0.3 / 5.6, abs=0.01)
    assert mark["interval"] == pytest.approx((100 * 1.3 / 5.6, 100 * 2 / 5.6), abs=0.02)
    assert mark["words"] == "semseg: −2.00 %, 95 % interval −3.00 to −1.00 %, limit −4.00 %"
    assert depth["whisker"]["limit"] is None
    assert found["delta"]["interval"] == "−1.00 to +0.00 %"


def test_of_an_error_less_is_a_gain_and_its_interval_turns_round() -> None:
    data = two_tasks()
    data["tasks"]["depth"]["change_interval"] = {"low": -0.04, "high": 0.02, **INTERVAL}
    found = paid(read(data))
    assert found is not None
    assert found["rows"][1]["interval"] == "−1.00 to +2.00 %"


def test_against_an_original_that_learned_nothing_there_is_no_change() -> None:
    data = two_tasks()
    data["tasks"]["semseg"].update(constant=50.0)
    found = paid(read(data))
    assert found is not None
    assert (found["rows"][0]["change"], found["rows"][0]["whisker"], found["delta"]) == ("–", None, None)


def test_what_was_gained_is_less_and_faster() -> None:
    tiles = {tile["label"]: tile for tile in summary(read(results()))["tiles"]}
    assert list(tiles) == ["MACs", "Parameters", "Bundle", "Latency"]
    assert (tiles["MACs"]["value"], tiles["MACs"]["note"], tiles["MACs"]["share"]) == ("−60 %", "251 M → 99.8 M", 39.7)
    assert (tiles["Latency"]["value"], tiles["Latency"]["share"]) == ("×2.10", 47.6)
    data = results()
    data["cost"]["after"]["bundle_bytes"] = 2 * data["cost"]["before"]["bundle_bytes"]
    grown = next(tile for tile in summary(read(data))["tiles"] if tile["label"] == "Bundle")
    assert (grown["value"], grown["share"]) == ("+100 %", None)


def test_all_is_well() -> None:
    data = two_tasks()
    data["budget"] = {"kind": "macs", "original": 100e6, "target": 60e6, "reached": 59e6, "met": True}
    data["tasks"]["depth"]["constant"] = 5.0
    data["bundles"] = {
        "after": {
            "path": "b", "bytes": 1, "tolerance": 1e-4,
            "verification": {"semseg": {"1": {"max_rel": 5e-7}, "3": {"max_rel": 2e-7}, "vacuous": None}},
        }
    }  # fmt: skip
    assert by_title(checks(read(data))) == {
        "The budget is met": ("good", "59 M of at most 60 M MACs"),
        "1 of 1 limits kept": ("good", "1 task without one"),
        "None kept by chance": ("good", "the 95 % intervals lie within the limits"),
        "The bundle is verified": (
            "good",
            "differs from the network by at most 5e-07 of an output's range, in batches of 1 and 3 (allowed: 0.0001)",
        ),
        "Better than a constant answer": ("good", "at 1 of 2 tasks, before and after"),
    }  # fmt: skip


def test_what_is_not_safe_is_said() -> None:
    lucky = two_tasks()
    lucky["tasks"]["semseg"].update(by_chance=True, kept_in=0.62)
    assert by_title(checks(read(lucky)))["Kept by chance"] == (
        "doubt", "other samples may say otherwise: semseg (62 % of draws keep it)",
    )  # fmt: skip
    unknown = two_tasks()
    unknown["tasks"]["semseg"]["change_interval"] = None
    assert by_title(checks(read(unknown)))["Chance is not known"] == ("unknown", "no interval for semseg")
    missed = results()
    missed["tasks"]["depth"].update(within=False)
    missed["budget"].update(met=False)
    found = by_title(checks(read(missed)))
    assert found["3 of 4 limits kept"] == ("bad", "missed: depth")
    assert found["The budget is missed"][0] == "bad"
    assert found["INT8 misses limits"] == ("bad", "normals")
    empty = two_tasks()
    empty["bundles"] = {
        "after": {
            "path": "b",
            "bytes": 1,
            "verification": {"depth": {"1": {"max_rel": 0.0}, "vacuous": "it is constant"}},
        }
    }
    assert by_title(checks(read(empty)))["The check of the bundle says little"] == ("doubt", "it is constant: depth")
    poor = two_tasks()
    poor["tasks"]["semseg"]["constant"] = 49.5
    assert by_title(checks(read(poor)))["No better than a constant answer"] == ("bad", "semseg")
    assert checks(RunResults()) == []


def test_it_comes_first_then_pictures_then_the_rest_folded(tmp_path: Path) -> None:
    write_report(read(copy.deepcopy(results())), pictures(), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    places = [
        text.index(f'id="{name}"') for name in ("gained", "paid", "safe", "samples", "tasks", "latency", "layers")
    ]
    assert places == sorted(places)
    for name in ("layers", "sensitivity", "blocked", "passes", "provenance"):
        assert f'<section id="{name}"><details class="section"><summary>' in text
    for name in ("tasks", "latency", "budget"):
        assert f'<section id="{name}"><details class="section" open><summary>' in text
    assert "What each task paid" in words(text)
