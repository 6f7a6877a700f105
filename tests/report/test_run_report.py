"""The report: complete, self-contained, and drawn by a real browser."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from testkit.browser import browse, check_alone, laid_out, probed, words
from testkit.costed_networks import program
from testkit.sample_results import TASKS, pictures, results
from torch import nn, zeros

from mtlc.errors import UserError
from mtlc.hw.cost.count import workload
from mtlc.report.parts.numbers import as_bytes, as_change, as_count, as_percent, as_times
from mtlc.report.result_parts import results_latency, results_layers
from mtlc.report.run_report import write_report
from mtlc.results.run import RunResults

SECTIONS = (
    "budget",
    "cost",
    "tasks",
    "latency",
    "layers",
    "experts",
    "routing",
    "quantization",
    "sensitivity",
    "blocked",
    "samples",
    "passes",
    "provenance",
)


def found(made: dict[str, Any] | None = None) -> RunResults:
    return RunResults.read(results() if made is None else made, "made")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(found(), pictures(), path)
    return path


# ---- in a browser ---------------------------------------------------------------------------------------------------


def test_a_browser_draws_it_without_a_complaint(chromium: str, page: Path, tmp_path: Path) -> None:
    dom, console = browse(chromium, page, tmp_path / "profile")
    assert console == ""
    assert [name for name in SECTIONS if f'<section id="{name}"' not in dom] == []
    text = words(dom)
    for shown in (
        "40 % of the multiply–accumulates",
        "runs 2.1 times as fast",
        "0.63 % worse",
        "All limits kept.",
        "INT8: task 'normals': mean_angle is 18.7",
        "60.98",
        "99.8 M",
    ):
        assert shown in text


def test_a_browser_gives_every_figure_a_size_and_fetches_nothing(chromium: str, page: Path, tmp_path: Path) -> None:
    _, found = laid_out(chromium, page, tmp_path)
    assert len(found["svg"]) == 7
    assert all(width > 500 and height > 100 for width, height in found["svg"])
    assert len(found["img"]) == 4 * (1 + 3 * len(TASKS))
    assert all(natural >= 64 and width > 50 and height > 50 for natural, width, height in found["img"])
    assert sum(width > 1 for width, _ in found["bars"]) == 2 * len(results()["layers"])


def test_on_a_phone_only_tables_and_figures_scroll(chromium: str, page: Path, tmp_path: Path) -> None:
    # A frame of a phone's width: the browser's own window does not get that narrow.
    inner = probed(page, tmp_path / "inner.html").read_text()
    outer = tmp_path / "outer.html"
    report = (
        '<script>addEventListener("load", () => { document.title = frames[0].document.body.dataset.found; });</script>'
    )
    outer.write_text(f'{report}<iframe style="width:390px;height:800px" srcdoc="{html.escape(inner)}"></iframe>')
    dom, _ = browse(chromium, outer, tmp_path / "profile")
    found = json.loads(html.unescape(re.search(r"<title>(.*?)</title>", dom)[1]))  # type: ignore[index]
    assert found["page"][0] == found["page"][1] <= 390


# ---- without one ----------------------------------------------------------------------------------------------------


def test_it_is_one_small_file_that_asks_for_nothing(page: Path) -> None:
    text = page.read_text()
    assert page.stat().st_size < 2_000_000
    check_alone(text)
    assert re.findall(r"url\((?!#)[^)]*\)", text) == []


@pytest.mark.slow
def test_large_pictures_are_scaled_to_keep_it_small(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = {name: rng.integers(0, 256, (6, 400, 400, 3), dtype=np.uint8) for name in pictures()}
    write_report(found(), noise, tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 2_000_000
    assert "data:image/png" in (tmp_path / "report.html").read_text()


def test_it_writes_the_same_bytes_again(page: Path, tmp_path: Path) -> None:
    write_report(found(), pictures(), tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == page.read_bytes()


@pytest.mark.parametrize("absent", sorted(results()))
def test_every_section_may_be_absent(absent: str, tmp_path: Path) -> None:
    partial = {key: value for key, value in results().items() if key != absent}
    write_report(found(partial), {}, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    gone = {"cost": "cost", "delta_m": None, "title": None, "job": None, "versions": None}.get(absent, absent)
    assert gone is None or f'<section id="{gone}"' not in text
    assert "None" not in words(text)
    assert "nan" not in words(text)


def test_nothing_at_all_is_still_a_page(tmp_path: Path) -> None:
    write_report(RunResults(), {}, tmp_path / "report.html")
    assert "Compression report" in (tmp_path / "report.html").read_text()


def test_what_was_missed_is_said_first(tmp_path: Path) -> None:
    made = results()
    made["tasks"]["depth"].update(within=False, after=0.75)
    made["budget"].update(met=False, missed="depth's limit stopped it at 55 % of the MACs")
    write_report(found(made), {}, tmp_path / "report.html")
    text = words((tmp_path / "report.html").read_text())
    head = text[: text.index("The budget, and what was reached")]
    assert "Not everything was reached." in head
    assert "depth's limit stopped it at 55 % of the MACs" in head
    assert "depth: rmse 0.5713 → 0.75 m, its limit was 2%." in head
    assert "3 of 4" in head
    assert "All limits kept" not in text


def test_every_latency_carries_its_kind(tmp_path: Path) -> None:
    made = results()
    made["latency"]["kind"] = "modelled"
    write_report(found(made), {}, tmp_path / "report.html")
    text = words((tmp_path / "report.html").read_text())
    assert "is modelled to run 2.1 times as fast" in text
    assert "Latency modelled" in text
    assert "Measured on" not in text


def test_the_experts_of_each_layer_and_task_are_shown(page: Path) -> None:
    text = page.read_text()
    section = text[text.index('<section id="experts"') : text.index('<section id="sensitivity"')]
    assert section.count('<span role="img"') == 2 * len(TASKS) * 16
    assert section.count('class="gone"') == 2 * len(TASKS) * 6
    shown = words(section)
    for said in (
        "20 of 32 experts were kept for semseg, depth, normals, edge, sal; parts went.",
        "10 of 16",
        "98.7 %",
        "3.4 %",
    ):
        assert said in shown
    assert "What is exact the tasks parts are gone" in shown
    assert "What is approximate backbone.blocks.1.mlp: 6 of 16" in shown


def test_names_are_escaped(tmp_path: Path) -> None:
    made = results()
    made["title"] = "<b>x</b>"
    made["layers"][0]["name"] = "<img src=x>"
    made["sensitivity"]["tasks"][0] = "<script>"
    write_report(found(made), {}, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "<b>x</b>" not in text
    assert "<img src=x>" not in text
    assert text.count("<script") == 1


def test_a_broken_metric_is_a_dash_not_a_crash(tmp_path: Path) -> None:
    made = results()
    made["tasks"]["depth"].update(after=float("nan"), within=False)
    made["tasks"]["edge"].update(before=0.0)
    write_report(found(made), {}, tmp_path / "report.html")
    assert "nan" not in words((tmp_path / "report.html").read_text())


def test_wrong_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'image' is float64 \(1, 4, 4, 3\)"):
        write_report(RunResults(), {"image": np.zeros((1, 4, 4, 3))}, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_layers_are_joined_by_path_with_their_channels() -> None:
    def cost(width: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 2, 1)
        )

    rows = results_layers(*(workload(program(cost(width), zeros(1, 3, 8, 8))) for width in (16, 8)))
    assert [row.to_dict() for row in rows] == [
        {
            "name": "0", "kind": "conv", "channels_before": 16, "channels_after": 8, "macs_before": 16 * 27 * 64,
            "macs_after": 8 * 27 * 64, "params_before": 16 * 28, "params_after": 8 * 28,
            "bytes_before": 4 * (3 * 64 + 16 * 64 + 16 * 28), "bytes_after": 4 * (3 * 64 + 8 * 64 + 8 * 28),
        },
        {
            "name": "3", "kind": "conv", "channels_before": 2, "channels_after": 2, "macs_before": 32 * 64,
            "macs_after": 16 * 64, "params_before": 34, "params_after": 18,
            "bytes_before": 4 * (16 * 64 + 2 * 64 + 34), "bytes_after": 4 * (8 * 64 + 2 * 64 + 18),
        },
    ]  # fmt: skip


def test_latency_joins_measurement_and_profiles() -> None:
    timing = {"median_ms": 4.0, "p10_ms": 3.9, "p90_ms": 4.4, "min_ms": 3.8, "spread": 0.1, "cpu_median_ms": 4.0}
    measured = {
        "kind": "measured", "device": {"cpu": "c"}, "threads": 1, "batch": 1, "rounds": 9,
        "bundles": {"original": timing, "compressed": {**timing, "median_ms": 2.0}},
        "speedup": {"compressed": {"median": 2.1, "p10": 1.9, "p90": 2.2}},
    }  # fmt: skip
    profiles = [
        {"layers": [{"name": "a", "ms": 3.0}, {"name": "b", "ms": 1.0}]},
        {"layers": [{"name": "a", "ms": 1.5}, {"name": "(runtime)", "ms": 0.5}]},
    ]
    made = results_latency(measured, "original", "compressed", *profiles, ideal=2.5)
    assert (made.kind, made.speedup, made.ideal) == ("measured", 2.1, 2.5)
    assert made.before is not None
    assert made.after is not None
    assert (made.before.median_ms, made.after.median_ms) == (4.0, 2.0)
    assert [layer.to_dict() for layer in made.layers] == [
        {"name": "a", "before_ms": 3.0, "after_ms": 1.5},
        {"name": "b", "before_ms": 1.0, "after_ms": None},
        {"name": "(runtime)", "before_ms": None, "after_ms": 0.5},
    ]


def test_quantities() -> None:
    assert [as_count(v) for v in (0, 999, 1000, 90_189_824, 1.2e9, None)] == ["0", "999", "1 k", "90.2 M", "1.2 G", "–"]
    assert [as_bytes(v) for v in (512, 1536, 1 << 20, float("nan"))] == ["512 B", "1.5 KiB", "1 MiB", "–"]
    assert (as_percent(0.403), as_change(-0.63), as_change(0.5), as_times(2.1)) == (
        "40.3 %",
        "−0.63 %",
        "+0.50 %",
        "×2.10",
    )
