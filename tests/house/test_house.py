"""Holds the rules of the house: no circles, no import up the floors, tests that mirror the rooms, modules that say what
they do.

import-linter holds the floors as well, as part of `make check`. This test reads the same floors, and asks for more: a
floor for every room, and no circle between two modules of one room.
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import grimp
import pytest
from testkit.places import ROOT, TESTS

PACKAGE = ROOT / "mtlc"
LONGEST = 450
"""Lines of a module. A longer one holds more than one idea."""
NOT_ROOMS = {
    "benchmarks",
    "docs",
    "hostile",
    "house",
    "native",
    "on_device",
    "vectors",
    "scripts",
    "extension",
    "testkit",
    "report/data",
    "conformance",
}
"""Folders of tests that are not about a room: benchmarks, pages, kills and damage, rules, scripts, a stranger's
package, helpers, files that are read, networks of others, the C library, and whole jobs on a made-up device."""


def test_long_tests_are_tests() -> None:
    """A test that is renamed would be in `make test` again without anybody noticing."""
    names = cache(_names)
    for name in (TESTS / "long_tests.txt").read_text(encoding="utf-8").splitlines():
        path, *inner = name.partition("[")[0].split("::")
        # What a class takes over from its specification is defined elsewhere.
        assert not inner or inner[0] in names(path), name


def _names(path: str) -> set[str]:
    nodes = ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8")))
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}


@cache
def imports() -> dict[str, set[str]]:
    """Every module of mtlc, and what it imports of mtlc: at the top, in functions, and for type checkers."""
    graph = grimp.build_graph("mtlc", exclude_type_checking_imports=False, cache_dir=None)
    return {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}


@cache
def floors() -> dict[str, int]:
    """The floor of each room, 0 at the top, as the layers of import-linter's contract in pyproject.toml have them."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    return {
        name.strip().removeprefix("mtlc."): floor for floor, names in enumerate(layers) for name in names.split("|")
    }


def circles(edges: Mapping[str, set[str]]) -> list[set[str]]:
    """Modules that reach each other, directly or around: the strongly connected components of more than one."""
    reached = {start: set(_reached(edges, start)) for start in edges}
    found = {frozenset({start, *(end for end in ends if start in reached[end])}) for start, ends in reached.items()}
    return sorted((set(circle) for circle in found if len(circle) > 1), key=sorted)


def _reached(edges: Mapping[str, set[str]], start: str) -> Iterator[str]:
    """All that can be reached from there along the edges."""
    seen, waiting = {start}, [start]
    while waiting:
        for end in edges.get(waiting.pop(), set()) - seen:
            seen.add(end)
            waiting.append(end)
            yield end


def room(module: str) -> str:
    """``compress`` of ``mtlc.compress.passes.prune``."""
    return module.split(".")[1]


def modules() -> list[pytest.param]:
    return [pytest.param(path, id=str(path.relative_to(ROOT))) for path in sorted(PACKAGE.rglob("*.py"))]


def tested() -> list[Path]:
    return sorted(TESTS.rglob("*.py"))


def test_circles_are_found_also_around():
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert circles({"a": {"b"}, "b": {"a"}, "c": {"a"}}) == [{"a", "b"}]
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"e"}, "e": {"d"}}) == [{"a", "b", "c"}, {"d", "e"}]


def test_no_two_modules_import_each_other():
    assert circles(imports()) == []


def test_every_room_has_a_floor_and_every_floor_its_rooms():
    there = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert set(floors()) == there - {"__init__"}


def test_no_import_goes_up_or_across():
    wrong = [
        f"{source} -> {target}"
        for source, targets in sorted(imports().items())
        for target in sorted(targets)
        if source != "mtlc" and target != "mtlc" and room(source) != room(target)
        if floors()[room(source)] >= floors()[room(target)]
    ]
    assert wrong == []


def test_tests_mirror_the_rooms():
    folders = [path.parent.relative_to(TESTS).as_posix() for path in tested()]
    strange = {folder for folder in folders if folder not in NOT_ROOMS and not (PACKAGE / folder).is_dir()}
    assert strange == set()
    assert [folder for folder in sorted(NOT_ROOMS) if not (TESTS / folder).is_dir()] == []


def test_helpers_of_tests_have_names_of_their_own():
    """``from testkit.toy_job import …``, never ``from toy_job import …``: a bare name may be anybody's."""
    helpers = {path.stem for path in tested() if not path.stem.startswith("__")}
    bare = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in tested()
        for name in imported(ast.parse(path.read_text()))
        if name.split(".")[0] in helpers
    ]
    assert bare == []


def imported(tree: ast.Module) -> Iterator[str]:
    """Names of the modules that are imported anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("path", modules())
def test_a_module_opens_with_what_it_does(path):
    """A sentence, verb first or after the name in code. "What …" leaves open what is done about it."""
    opening = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n\n")[0]
    assert opening, "no docstring"
    assert not opening.startswith("What"), opening
    assert opening[0].isupper() or opening.startswith("`"), opening
    assert opening.endswith((".", ":")), opening


@pytest.mark.parametrize("path", modules())
def test_a_module_is_short_enough_to_read(path):
    assert len(path.read_text().splitlines()) <= LONGEST
