"""What results look like in a notebook: the tasks, a sample's pictures, and the whole page folded."""

from __future__ import annotations

import json
import re
from pathlib import Path

from testkit.browser import words
from testkit.sample_results import TASKS, pictures, results

from mtlc.report.notebook import run_html, widths_html
from mtlc.results.run import RunResults
from mtlc.results.slim import SlimResult

DATA = Path(__file__).parent / "data"


def test_a_run_shows_its_tasks_and_one_sample(tmp_path: Path) -> None:
    data = results()
    data["missed"] = ["task 'depth': <b>too much</b>"]
    data["tasks"]["semseg"]["change_interval"] = {
        "low": -0.6142, "high": 0.0, "confidence": 0.95, "samples": 9, "draws": 1000,
    }  # fmt: skip
    (tmp_path / "report.html").write_text("<!doctype html><title>x</title>")
    text = run_html(RunResults.read(data, "made"), pictures(), tmp_path / "report.html", Path("out/bundle"))
    before = text.partition("<details>")[0]
    assert before.count("data:image/png") == 3 * len(TASKS)
    assert before.count("data:image/jpeg") == 1
    shown = words(before)
    assert "semseg miou (%) 61.42 60.98 −0.72 % −1.00 to +0.00 % 1.0% kept" in shown
    assert "missed: task 'depth': <b>too much</b>" in shown
    assert "<b>too much" not in text
    assert '<iframe srcdoc="&lt;!doctype html&gt;' in text
    assert "bundle: out/bundle" in words(text)
    # Nothing of it reaches what else the notebook shows.
    style = re.search(r"<style>(.*?)</style>", text, flags=re.DOTALL)
    assert style is not None
    assert all(line.startswith(".mtlc-result") for line in style[1].strip().splitlines())


def test_without_a_page_and_pictures_there_is_still_a_table(tmp_path: Path) -> None:
    text = run_html(RunResults.read(results(), "made"), {}, tmp_path / "none.html", Path("b"))
    assert "<iframe" not in text
    assert "<img" not in text
    assert text.count("<tr>") == 1 + len(TASKS)


def test_widths_show_their_names(tmp_path: Path) -> None:
    data = json.loads((DATA / "slim.json").read_text())
    text = widths_html(SlimResult.read(data, "slim.json"), tmp_path / "none.html", Path("b"))
    assert text.count("<tr>") == 1 + len(data["points"])
    assert all(f"<th>{point['name']}</th>" in text for point in data["points"])
