"""A network that is no better than a constant predictor is warned of first, and gets no Δm."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from testkit import sample_widths
from testkit.sample_results import results

from mtlc.commands.run import text
from mtlc.commands.slim import text as slim_text
from mtlc.report.run_report import write_report
from mtlc.report.sections.checks import checks
from mtlc.report.sections.paid import paid
from mtlc.report.sections.summary import summary
from mtlc.report.sections.tasks import tasks_section
from mtlc.report.widths_report import write_widths_report
from mtlc.results.run import RunResults
from mtlc.results.slim import SlimResult
from mtlc.results.tasks import beats_constant, unlearned_warnings


def run(**depth: float) -> RunResults:
    made = results()
    made["tasks"]["depth"].update(depth)
    made["delta_m"]["vs_original"] = 3540.0
    return RunResults.read(made, "made")


@pytest.mark.parametrize(
    ("value", "constant", "higher", "beats"),
    [
        (0.5, 0.4, True, True), (0.4, 0.4, True, False), (0.3, 0.4, True, False),
        (0.4003, 0.4, True, False), (0.4005, 0.4, True, True),  # a thousandth of 0.4
        (0.5, 0.4, False, False), (0.39, 0.4, False, True), (0.3997, 0.4, False, False),
        (None, 0.4, True, True), (0.3, None, True, True), (float("nan"), 0.4, True, True),
        (0.0, 0.0, True, False), (-1.0, -2.0, True, True),
    ],
)  # fmt: skip
def test_what_beats_a_constant(value: float | None, constant: float | None, higher: bool, beats: bool) -> None:
    assert beats_constant(value, constant, higher) is beats


def test_the_report_warns_first_and_shows_no_delta(tmp_path: Path) -> None:
    found = run(before=1.21, after=0.58)
    view = summary(found)
    assert view["warnings"] == [
        "The original network is no better than a constant predictor at depth (rmse 1.21 against 1.204 m); "
        "changes against it and Δm say nothing."
    ]
    top = paid(found)
    assert top is not None
    assert top["delta"] is None
    assert {row["name"]: row["change"] for row in top["rows"]}["depth"] == "–"
    assert [one["words"] for one in checks(found) if one["title"] == "No better than a constant answer"] == ["depth"]
    section = tasks_section(found)
    assert section is not None
    assert {row["name"]: row["change"] for row in section["rows"]}["depth"] == "–"
    write_report(found, {}, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "3540" not in page
    assert page.index("no better than a constant predictor at depth") < page.index('class="lead"')


def test_the_text_of_a_run_warns_first() -> None:
    lines = text(run(before=1.21, after=0.58)).splitlines()
    assert lines[0].startswith("warning: the original network is no better than a constant predictor at depth")
    assert not any("3540" in line for line in lines)
    (row,) = (line for line in lines if line.startswith("depth "))
    assert "%" not in row.split("0.58")[1].split("m")[0]


def test_what_a_compression_lost_is_another_warning() -> None:
    (line,) = unlearned_warnings(run(after=1.3).tasks)
    assert line == (
        "the compressed network is no better than a constant predictor at depth (rmse 1.3 against 1.204 m); "
        "it has lost what the original had learned"
    )
    assert "+3540.00 %" in text(run(after=1.3))


def test_a_network_that_has_learned_is_not_warned_of() -> None:
    assert unlearned_warnings(run().tasks) == summary(run())["warnings"] == []
    assert text(run()).startswith("task ")


def test_a_slimmable_network_that_has_learned_nothing_is_warned_of_too(tmp_path: Path) -> None:
    made = sample_widths.results()
    widest = made["points"][0]["validation"]
    made["tasks"]["semseg"]["constant"] = widest["semseg"] / 2
    made["tasks"]["depth"]["constant"] = widest["depth"]
    found = SlimResult.read(made, "made")
    shown = f"{widest['depth']:.4g}"
    said = f"the widest network is no better than a constant predictor at depth (rmse {shown} against {shown} m); "
    assert found.unlearned_warning() == f"{said}changes against it and Δm say nothing"
    lines = slim_text(found).splitlines()
    assert lines[0] == f"warning: {said}changes against it and Δm say nothing"
    assert not re.search(r"[+-]\d+\.\d\d %", "\n".join(lines))
    write_widths_report(found, tmp_path / "widths.html")
    page = (tmp_path / "widths.html").read_text()
    assert page.index("The widest network is no better") < page.index('class="lead"')
    assert "on average" not in page[: page.index('<section id="points"')]
    made["tasks"]["depth"]["constant"] = 2 * widest["depth"]
    assert SlimResult.read(made, "made").unlearned_warning() is None
    assert re.search(r"[+-]\d+\.\d\d %", slim_text(SlimResult.read(made, "made")))
