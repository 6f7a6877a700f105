"""Results that an earlier version wrote are read whole, and their report says what it said then."""

from __future__ import annotations

import json
import re
from pathlib import Path

from click.testing import CliRunner
from testkit.browser import words

from mtlc.cli import main
from mtlc.results.run import RunResults

DATA = Path(__file__).parent / "data"
RESULTS = DATA / "results-0.1.0.json"
PAGE = DATA / "report-0.1.0.html"
"""The body of the page that the version which wrote the results made of them, its figures cut out."""

NOT_FIGURES = {"1.", "2.", "3.", "4.", "5."}
"""The numbers that lists have."""


def test_they_are_read_and_written_as_they_were() -> None:
    """Key for key, value for value, in the same order."""
    text = RESULTS.read_text()
    found = RunResults.read(json.loads(text), RESULTS.name)
    assert json.dumps(found.to_dict()) == json.dumps(json.loads(text))


def test_mtlc_report_says_every_figure_of_the_page_of_then(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(RESULTS.read_text())
    done = CliRunner().invoke(main, ["report", str(tmp_path)])
    assert done.exit_code == 0, done.output
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 7
    then, now = (set(re.findall(r"\S*\d\S*", words(text))) for text in (PAGE.read_text(), page))
    assert len(then) > 300
    assert then - NOT_FIGURES <= now
    headings = re.findall(r"<h2>(.*?)</h2>", PAGE.read_text())
    assert len(headings) > 8
    missing = [one for one in headings if words(one) not in words(page)]
    assert missing == []


def test_a_later_versions_keys_are_left_out() -> None:
    found = RunResults.read({"tasks": {}, "colour": "blue", "cost": {"before": {"macs": 3, "joules": 1}}}, "made")
    assert found.to_dict() == {"tasks": {}, "cost": {"before": {"macs": 3}}}
