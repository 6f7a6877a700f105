"""What benchmarks and scripts import of mtlc and of each other exists: they are run by hand, and must not rot
unseen.
"""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest
from testkit.places import ROOT

SCRIPTS = [*sorted(ROOT.glob("benchmarks/*/*.py")), *sorted(ROOT.glob("scripts/*.py"))]


def imported(path: Path) -> list[tuple[str, str | None]]:
    """(module, name in it) of all imports, those inside functions too. A whole module has no name."""
    found: list[tuple[str, str | None]] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            found += [(node.module or "", alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [(alias.name, None) for alias in node.names]
    return [(module, name) for module, name in found if module.split(".")[0] in {"mtlc", "benchmarks"}]


def exists(module: str, name: str | None) -> bool:
    """Whether a module has the name, or a module of that name below it. Benchmarks are read and not imported: some need
    packages that nothing else does."""
    if module.startswith("benchmarks"):
        path = ROOT / module.replace(".", "/")
        if path.is_dir():
            return (path / f"{name}.py").exists()
        return path.with_suffix(".py").exists() and (name is None or name in defined(path.with_suffix(".py")))
    try:
        found = importlib.import_module(module)
        if name is not None and not hasattr(found, name):
            importlib.import_module(f"{module}.{name}")
    except ImportError:
        return False
    return True


def defined(path: Path) -> set[str]:
    """The names that a module's own statements bind."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}
    return names


@pytest.mark.parametrize("path", [pytest.param(path, id=str(path.relative_to(ROOT))) for path in SCRIPTS])
def test_what_a_script_imports_exists(path):
    assert [one for one in imported(path) if not exists(*one)] == []


def test_a_missing_name_is_told():
    assert exists("benchmarks.experts.extraction", "TRAININGS")
    assert exists("mtlc.hw.cost", "count")
    assert not exists("benchmarks.experts.extraction", "opend")
    assert not exists("mtlc.hw.cost.count", "mac")
