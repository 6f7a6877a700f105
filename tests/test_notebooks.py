"""The notebooks of the examples: well-formed and without outputs; each runs from its first cell to its last."""

from __future__ import annotations

import ast
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "examples" / "notebooks"
NOTEBOOKS = ("prune_your_own_model", "one_bundle_many_widths", "experts_per_task")


def cells(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((FOLDER / f"{name}.ipynb").read_text())["cells"]
    return found


def test_there_are_no_others() -> None:
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(NOTEBOOKS)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_cells_are_python_and_hold_no_outputs(name: str) -> None:
    code = [cell for cell in cells(name) if cell["cell_type"] == "code"]
    assert len(code) >= 4
    for cell in code:
        ast.parse("".join(cell["source"]))
        assert cell["outputs"] == []
        assert cell["execution_count"] is None


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_runs_and_shows_its_result_with_pictures(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    shutil.copytree(FOLDER, tmp_path / "notebooks", ignore=shutil.ignore_patterns("runs", "__pycache__"))
    root = str(Path(__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep))
    book = nbformat.read(tmp_path / "notebooks" / f"{name}.ipynb", as_version=4)
    # Raises where a cell does.
    nbclient.NotebookClient(
        book, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(tmp_path / "notebooks")}}
    ).execute()
    data = [one.get("data", {}) for cell in book.cells if cell.cell_type == "code" for one in cell.outputs]
    (shown,) = [one["text/html"] for one in data if "mtlc-result" in one.get("text/html", "")]
    assert "<iframe srcdoc=" in shown
    assert "<th>depth</th>" in shown or "depth (rmse)" in shown
    assert "<script" not in shown
    last = "".join(data[-1].get("text/plain", ""))
    assert "depth" in last
    assert "(1, 1, 32, 32)" in last or name == "one_bundle_many_widths"
    if name != "one_bundle_many_widths":
        assert "data:image/png;base64," in shown.partition("<details>")[0]
