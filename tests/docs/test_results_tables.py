"""The README and docs/results.md show the committed results, and the README fits on two screens."""

from __future__ import annotations

import pytest
from testkit.places import DOCS, ROOT


@pytest.fixture
def write_tables(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.tables import write_tables

    return write_tables


def test_the_tables_are_those_of_the_results(write_tables):
    for page, tables in write_tables.PAGES.items():
        text = (ROOT / page).read_text()
        assert write_tables.render(text, tables) == text


@pytest.mark.parametrize(
    ("page", "figure", "wrong"), [("README.md", "+0.12 %", "+0.92 %"), ("docs/results.md", "-7.36", "-1.36")]
)
def test_a_changed_figure_does_not_stay(write_tables, page, figure, wrong):
    text = (ROOT / page).read_text()
    assert figure in text
    assert write_tables.render(text.replace(figure, wrong), write_tables.PAGES[page]) == text


def test_a_page_without_a_place_for_a_table_is_refused(write_tables):
    text = (DOCS / "results.md").read_text().replace("<!-- oracle -->", "")
    with pytest.raises(SystemExit, match="0 places for the table 'oracle'"):
        write_tables.render(text, write_tables.PAGES["docs/results.md"])


def test_every_figure_of_the_readme_is_linked_to_a_section_with_a_table(write_tables):
    from benchmarks.tables.headline_figures import FIGURES

    assert len(FIGURES) == 6
    readme = (ROOT / "README.md").read_text()
    assert all(f"(docs/results.md#{anchor})" in readme for anchor in FIGURES)


def test_the_readme_has_at_most_150_lines():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
