"""Results that an earlier version wrote are read whole, and their report says what it said then."""

from __future__ import annotations

import json
import re
from pathlib import Path

from click.testing import CliRunner

from mtlc.cli import main
from mtlc.results.run import RunResults

DATA = Path(__file__).parent / "data"
RESULTS = DATA / "results-0.1.0.json"
PAGE = DATA / "report-0.1.0.html"
"""The body of the page that the version which wrote the results made of them, its figures cut out."""


def test_they_are_read_and_written_as_they_were() -> None:
    """Key for key, value for value, in the same order."""
    text = RESULTS.read_text()
    found = RunResults.read(json.loads(text), RESULTS.name)
    assert json.dumps(found.to_dict()) == json.dumps(json.loads(text))


def test_mtlc_report_renders_the_page_of_then(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(RESULTS.read_text())
    done = CliRunner().invoke(main, ["report", str(tmp_path)])
    assert done.exit_code == 0, done.output
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 7
    body = re.sub(r"<svg.*?</svg>", "<svg/>", page[page.index("<body>") :], flags=re.DOTALL)
    assert body == PAGE.read_text().removesuffix("\n")


def test_a_later_versions_keys_are_left_out() -> None:
    found = RunResults.read({"tasks": {}, "colour": "blue", "cost": {"before": {"macs": 3, "joules": 1}}}, "made")
    assert found.to_dict() == {"tasks": {}, "cost": {"before": {"macs": 3}}}
