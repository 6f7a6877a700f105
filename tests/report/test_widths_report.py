"""The report of widths: complete, self-contained, and drawn by a real browser."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import pytest
from testkit.browser import check_alone, laid_out, words
from testkit.sample_widths import STAGES, TASKS, results

from mtlc.errors import UserError
from mtlc.report.widths_report import write_widths_report
from mtlc.results.slim import SlimResult

DATA = Path(__file__).parent / "data"
SECTIONS = ("use", "front", "points", "control", "groups", "provenance")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("widths") / "widths.html"
    write_widths_report(results(), path)
    return path


def shown(made: dict, folder: Path) -> str:
    write_widths_report(made, folder / "widths.html")
    return words((folder / "widths.html").read_text())


# ---- in a browser ---------------------------------------------------------------------------------------------------


def test_a_browser_draws_every_figure_and_fetches_nothing(chromium: str, page: Path, tmp_path: Path) -> None:
    dom, found = laid_out(chromium, page, tmp_path)
    assert [name for name in SECTIONS if f'<section id="{name}"' not in dom] == []
    assert len(found["svg"]) == 3
    assert all(width > 500 and height > 200 for width, height in found["svg"])


# ---- without one ----------------------------------------------------------------------------------------------------


def test_it_is_one_small_file_that_asks_for_nothing(page: Path, tmp_path: Path) -> None:
    text = page.read_text()
    assert page.stat().st_size < 500_000
    check_alone(text)
    write_widths_report(results(), tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text() == text


def test_the_head_says_what_there_is(page: Path) -> None:
    text = words(page.read_text())
    head = text[: text.index("How to use it")]
    for said in (
        "5 tasks: semseg, depth, normals, edge, sal · 4 encoder stages · widths 0.25, 0.5, 0.75, 1",
        "from 119.7 down to 11.2 MMACs (9 %)",
        "With 58 % of the MACs its tasks are on average 1.31 % worse than at full width (validation split).",
        "Cost modelled 119.7 → 11.2 MMACs",
        f"In the bundle {24 * 4**5:,} configurations, of 24 encoders".replace(",", "\N{NO-BREAK SPACE}", 1),
        "Bundle measured 10.7 MiB ×1.19 the widest alone",
        "Control measured 2.80 points",
    ):
        assert " ".join(said.split()) in head


def test_the_code_to_run_it_can_be_copied(page: Path) -> None:
    code = html.unescape(re.search(r"<pre>(.*?)</pre>", page.read_text(), re.DOTALL)[1])  # type: ignore[index]
    compile(code, "widths.html", "exec")
    assert 'session.configure(budget="40%", prefer={"semseg": 0.7, "depth": 0.3})' in code
    assert 'session.configure("narrowest")' in code
    assert "the largest difference is 3e-06" in words(page.read_text())


def test_the_example_asks_for_a_budget_that_the_network_can_run_at(tmp_path: Path) -> None:
    made = results()
    made["cost"]["narrowest"] = 0.52 * made["cost"]["widest"]
    assert 'session.configure(budget="60%", ' in shown(made, tmp_path)


def test_points_have_their_validation_metrics_and_costs_their_kind(page: Path) -> None:
    text = page.read_text()
    section = text[text.index('<section id="points"') : text.index('<section id="control"')]
    table = words(section)
    found = results()
    assert "on the validation split" in table
    assert "MMACs modelled of widest Δm held-out measured Δm validation measured" in table
    assert "semseg miou (%) ↑ depth rmse (m) ↓" in table
    for point in found["points"]:
        cells = " ".join(f"{point['validation'][task]:.4g}" for task in TASKS)
        delta = f"{point['delta_m']:+.2f} %".replace("-", "−")
        assert f"{delta} {cells}" in table
    assert f"single-task {found['single_task']['semseg']:.4g}" in table
    assert section.count("all 0.25") == 3
    assert "<code>0.5 0.75 0.75 1</code>" in section


def test_without_a_validation_split_the_metrics_are_those_of_held_out_data(tmp_path: Path) -> None:
    made = results()
    for point in made["points"]:
        point.update(validation=None, delta_m=None)
    text = shown(made, tmp_path)
    assert "on the held-out data that the configurations were chosen on" in text
    assert "validation" not in text
    assert f"{made['points'][0]['metrics']['semseg']:.4g}" in text
    assert "worse than at full width (held-out data)" in text


def test_what_a_preference_moves_is_in_numbers_too(page: Path) -> None:
    text = words(page.read_text())
    assert "at a budget of 47.9 MMACs, 40 % of the widest" in text
    assert "sal miou (%) ↑ 73.05 76.6 77.3 4.60 0.94" in text


def test_groups_and_what_was_left_alone_are_told(page: Path) -> None:
    text = words(page.read_text())
    assert f"{len(STAGES) + len(TASKS)} groups" in text
    assert "stage2 0.25 · 0.5 · 0.75 · 1 encoder.stages.1.0.conv1 16 · 32 · 48 · 64" in text
    assert "encoder.stem.conv 16 ignored by the job" in text
    assert "training 12 k steps, 768 k samples, 90 min" in text
    assert "networks measured 412 time in all 152 min" in text


def test_long_lists_are_folded(tmp_path: Path) -> None:
    made = results()
    made["left_alone"] = [{"name": f"layer{i}", "channels": 8, "why": "ignored by the job"} for i in range(40)]
    write_widths_report(made, tmp_path / "widths.html")
    assert "<summary>40 channel groups</summary>" in (tmp_path / "widths.html").read_text()


@pytest.mark.parametrize("absent", sorted(results()))
def test_every_section_may_be_absent(absent: str, tmp_path: Path) -> None:
    text = shown({key: value for key, value in results().items() if key != absent}, tmp_path)
    gone = {
        "bundle": "How to use it",
        "points": "The named configurations",
        "controllability": "What a preference moves",
    }
    assert gone.get(absent, "Where it is not") not in text
    assert "None" not in text
    assert "nan" not in text
    assert text == shown({**results(), absent: None}, tmp_path)


def test_nothing_at_all_is_still_a_page(tmp_path: Path) -> None:
    assert "Slimmable network" in shown({}, tmp_path)


def test_a_metric_that_is_not_a_number_is_a_dash(tmp_path: Path) -> None:
    made = results()
    for point in made["points"]:
        point["validation"]["depth"] = point["delta_m"] = float("nan")
    made["controllability"]["monotonicity"]["edge"] = float("nan")
    text = shown(made, tmp_path)
    assert "nan" not in text
    assert "– 61.05 – " in text


def test_names_are_escaped(tmp_path: Path) -> None:
    made = results()
    made["title"], made["points"][-1]["name"] = "<b>x</b>", '<script>x"'
    made["left_alone"][0]["why"] = "<img src=x>"
    write_widths_report(made, tmp_path / "widths.html")
    text = (tmp_path / "widths.html").read_text()
    assert [bad for bad in ("<b>x</b>", '<script>x"', "<img src") if bad in text] == []
    assert text.count("<script") == 1  # the page's own
    code = html.unescape(re.search(r"<pre>(.*?)</pre>", text, re.DOTALL)[1])  # type: ignore[index]
    compile(code, "widths.html", "exec")


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(UserError):
        write_widths_report(results(), tmp_path / "file" / "widths.html")
    assert (tmp_path / "file").read_text() == "old"


# ---- files of earlier versions -------------------------------------------------------------------------------------


def test_a_file_of_an_earlier_version_gives_the_page_that_it_gave(tmp_path: Path) -> None:
    """`slim.json` is of version 0.1, before its results had types; `widths.txt` are the words of its page then.

    They are all there, in their order; headings may have more beside them.
    """
    written = json.loads((DATA / "slim.json").read_text())
    now = iter(shown(written, tmp_path).lower().split())
    assert [word for word in (DATA / "widths.txt").read_text().lower().split() if word not in now] == []
    assert SlimResult.read(written, "slim.json").to_dict() == written
    assert json.dumps(SlimResult.read(written, "slim.json").to_dict()) == json.dumps(written)  # the order, too


def test_a_file_of_something_else_is_refused_by_its_key(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^slim\.json: points\.0\.macs: "):
        write_widths_report({"points": [{"name": "x", "encoder": {}, "decoders": {}}]}, tmp_path / "widths.html")
