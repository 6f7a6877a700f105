"""Sections that installed packages add to the report."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mtlc.entry_points import Addition
from mtlc.errors import UserError
from mtlc.report.run_report import write_report
from mtlc.report.sections import added_section
from mtlc.results.run import RunResults


class Versions:
    title = "Versions & more"

    def html(self, results: RunResults) -> str | None:
        return f"<p>{len(results.versions)} packages</p>" if results.versions else None


class Failing:
    title = "Failing"

    def html(self, results: RunResults) -> str | None:
        raise KeyError("power")


class Silent:
    title = "Silent"

    def html(self, results: RunResults) -> Any:
        return 3


class Unfit:
    title = "Without html"


@pytest.fixture
def add(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Adds the classes to the group, each under its name in lower case."""
    monkeypatch.setitem(sys.modules, "acme", module := ModuleType("acme"))

    def adding(*classes: type) -> None:
        for one in classes:
            setattr(module, one.__name__, one)
        points = [EntryPoint(one.__name__.lower(), f"acme:{one.__name__}", added_section.GROUP) for one in classes]
        monkeypatch.setattr("mtlc.entry_points.additions", lambda group: tuple(Addition(point) for point in points))

    return adding


def test_it_stands_after_ours_under_its_title(add: Any, tmp_path: Path) -> None:
    add(Versions)
    write_report(RunResults(versions={"torch": "2"}), {}, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert '<section id="versions"><h2>Versions &amp; more</h2>\n<p>1 packages</p>\n</section>' in page


def test_it_may_have_nothing_to_show(add: Any, tmp_path: Path) -> None:
    add(Versions)
    write_report(RunResults(), {}, tmp_path / "report.html")
    assert "Versions &amp;" not in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("section", "why"), [(Failing, r"html\(\) raised KeyError: 'power'"), (Silent, r"html\(\) gave int")]
)
def test_one_that_fails_is_a_line_and_the_page_has_the_others(
    section: type, why: str, add: Any, tmp_path: Path
) -> None:
    add(section, Versions)
    with pytest.raises(UserError, match=rf"entry point '{section.__name__.lower()}' of mtlc.report_sections .*{why}"):
        write_report(RunResults(versions={"torch": "2"}), {}, tmp_path / "report.html")
    assert "1 packages" in (tmp_path / "report.html").read_text()


def test_what_is_no_section_is_a_line(add: Any) -> None:
    add(Unfit)
    with pytest.raises(
        UserError, match=r"entry point 'unfit' of mtlc.report_sections .* must name a class with a `title`"
    ):
        added_section.added_sections(())
