"""Several runs side by side: what is read of each, where jobs and widths differ, what does not compare."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from testkit.browser import check_alone, laid_out, words
from testkit.sample_results import results

from mtlc.cli import main
from mtlc.errors import UserError
from mtlc.workflows.compare_runs import compare_runs

SLIM = Path(__file__).parents[1] / "report" / "data" / "slim.json"
SEARCH = {
    "of": "checkpoint", "path": "runs/slim", "encoder": {"stem": 0.5}, "decoders": {"depth": 1.0}, "macs": 400,
    "share": 0.4, "latency_ms": None, "metrics": {"depth": 0.6}, "gain": -0.02,
}  # fmt: skip


def run(folder: Path, change: Any = None) -> Path:
    data = results()
    data["job"]["passes"] = [{"name": "prune", "round_to": 8}]
    if change is not None:
        change(data)
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(data))
    return folder


def narrower(data: dict[str, Any]) -> None:
    data["job"]["passes"][0].update(round_to=16, rounds=2)
    data["cost"]["after"]["macs"] = 50_280_000
    data["delta_m"].update(vs_original=-2.0)
    data["delta_m"]["vs_original_interval"] = {
        "low": -3.0, "high": -1.0, "confidence": 0.95, "samples": 9, "draws": 1000,
    }  # fmt: skip
    data["layers"][0]["channels_after"] = 8
    data["tasks"]["depth"].update(after=0.6, within=False)
    data["missed"] = ["task 'depth': too much"]


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    return [run(tmp_path / "a"), run(tmp_path / "b", narrower)]


def test_each_has_what_it_gained_and_paid(two: list[Path]) -> None:
    first, second = compare_runs(two).runs
    assert (first.label, second.label) == ("A", "B")
    assert (first.macs, second.macs, second.macs_before) == (99_800_000, 50_280_000, 251_400_000)
    assert (first.latency_ms, first.speedup, first.machine) == (4.69, 2.1, "AMD EPYC 7B13")
    assert first.passes == ["prune", "finetune", "calibrate"]
    depth = second.tasks["depth"]
    assert depth.change == pytest.approx(100 * (0.5713 - 0.6) / 0.5713)
    assert (depth.within, second.missed) == (False, ["task 'depth': too much"])
    assert second.delta_m_interval is not None
    assert (second.delta_m_interval.low, second.delta_m_interval.high) == (-3.0, -1.0)


def test_keys_that_differ_and_layers_that_are_not_equally_wide(two: list[Path]) -> None:
    found = compare_runs(two)
    assert [(row.key, row.values) for row in found.differs] == [
        ("passes.0.round_to", ["8", "16"]),
        ("passes.0.rounds", [None, "2"]),
    ]
    widths = {row.name: (row.before, row.after) for row in found.widths}
    assert widths["encoder.stem.conv"] == (32, [results()["layers"][0]["channels_after"], 8])
    same = [one["name"] for one in results()["layers"][1:] if one["channels_before"] == one["channels_after"]]
    assert same
    assert widths.keys().isdisjoint(same)


def test_what_does_not_compare_is_said(two: list[Path], tmp_path: Path) -> None:
    assert compare_runs(two).notes == [
        "times were not measured in turns: compare bundles with `mtlc compare` where they matter"
    ]

    def elsewhere(data: dict[str, Any]) -> None:
        data["job"]["data"] = {"root": "other"}
        data["latency"]["device"]["cpu"] = "another"
        data["tasks"]["semseg"].update(metric="accuracy", before=1.0)

    notes = compare_runs([two[0], run(tmp_path / "c", elsewhere)]).notes
    assert "B used other data or another split than A: metrics do not compare exactly" in notes
    assert "times were measured on different machines: they do not compare" in notes
    assert "semseg is measured by accuracy and miou: not comparable" in notes

    def other_start(data: dict[str, Any]) -> None:
        data["tasks"]["depth"]["before"] = 0.7

    notes = compare_runs([two[0], run(tmp_path / "d", other_start)]).notes
    assert notes[0] == "they did not start from the same network: its depth differ"


def test_widths_and_searches_stand_beside_runs(two: list[Path], tmp_path: Path) -> None:
    (tmp_path / "slim").mkdir()
    slim = json.loads(SLIM.read_text())
    (tmp_path / "slim" / "slim.json").write_text(json.dumps(slim))
    (tmp_path / "found.json").write_text(json.dumps(SEARCH))
    found = compare_runs([two[0], tmp_path / "slim", tmp_path / "found.json"])
    assert [one.label for one in found.runs] == ["A", *(f"B {point['name']}" for point in slim["points"]), "C"]
    default, last = found.runs[1], found.runs[-1]
    assert (default.kind, default.macs, default.macs_before) == ("slim", slim["points"][0]["macs"], default.macs)
    assert (last.kind, last.macs, last.macs_before, last.delta_m) == ("search", 400, 1000, -2.0)
    assert last.delta_m_interval is None
    interval = {"low": -0.03, "high": 0.01, "confidence": 0.95, "samples": 8, "draws": 1000}
    (tmp_path / "found.json").write_text(json.dumps(SEARCH | {"gain_interval": interval}))
    known = compare_runs([two[0], tmp_path / "found.json"]).runs[-1].delta_m_interval
    assert (known.low, known.high, known.samples) == (-3.0, 1.0, 8)
    assert all(len(row.values) == 3 for row in found.differs)


def test_the_page_has_all_of_it(two: list[Path], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    compare_runs(two, page)
    text = page.read_text()
    check_alone(text)
    shown = words(text)
    for said in ("2 runs side by side", "40 %", "20 %", "−0.63 %", "−2.00 % −3.00 to −1.00 %", "4 of 4", "3 of 4",
                 "task 'depth': too much", "passes.0.round_to 8 16", "encoder.stem.conv 32"):  # fmt: skip
        assert said in shown
    assert text.count('class="whisker"') == 2 * 5
    assert len(re.findall(r"<figure>", text)) == 1
    compare_runs(two, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == page.read_bytes()


def test_a_browser_lays_it_out(chromium: str, two: list[Path], tmp_path: Path) -> None:
    compare_runs(two, tmp_path / "page.html")
    _, found = laid_out(chromium, tmp_path / "page.html", tmp_path)
    assert len(found["svg"]) == 1


def test_the_command(two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["report", "--compare", *map(str, two)])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "comparison.html").is_file()
    assert "-2.00 %" in done.stdout
    assert "-3 to -1 %" in done.stdout
    done = CliRunner().invoke(main, ["report", "--compare", *map(str, two), "--out", "p.html", "--json"])
    assert [one["label"] for one in json.loads(done.stdout)["runs"]] == ["A", "B"]
    assert (tmp_path / "p.html").is_file()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["report", "a", "b"], "give one folder, or --compare to put these 2 side by side"),
        (["report", "--compare", "a"], "--compare: give 2 to 26 folders of runs, not 1"),
        (["report", "--compare", "a", "empty"], "empty: has neither results.json nor slim.json"),
        (["report", "--compare", "a", "nothing"], "nothing: cannot be read"),
        (["report", "--compare", "a", "odd.json"], "odd.json: not what `mtlc search --json` printed"),
        (["report", "--compare", "a", "torn.json"], "torn.json: damaged"),
    ],
)
def test_bad_input_is_one_line(
    given: list[str], said: str, two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd.json").write_text("[1]")
    (tmp_path / "torn.json").write_text('{"of":')
    done = CliRunner().invoke(main, given)
    assert done.exit_code == 2
    assert said in done.output
    assert "Traceback" not in done.output
    assert not list(tmp_path.glob("*.html"))


def test_a_slimmable_network_without_names_is_refused(two: list[Path], tmp_path: Path) -> None:
    (tmp_path / "slim").mkdir()
    (tmp_path / "slim" / "slim.json").write_text("{}")
    with pytest.raises(UserError, match=r"slim.json: has no named configuration to compare"):
        compare_runs([two[0], tmp_path / "slim"])
