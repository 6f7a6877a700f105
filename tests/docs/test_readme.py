"""The README shows the committed results."""

from __future__ import annotations

import importlib.util

from testkit.places import ROOT


def test_the_tables_are_those_of_the_results(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    text = (ROOT / "README.md").read_text()
    assert tables.render(text) == text
    assert tables.render(text.replace("-7.36", "-1.36")) == text  # a changed figure does not stay
