"""Both runtimes refuse damaged bundles alike: the vectors of tests/vectors, and manifests changed at random."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from testkit.native_library import SOURCES
from testkit.refusal_vectors import bases, damage, read_vectors, vectors

from mtlc.errors import MtlcError
from mtlc.runtime import open_bundle
from mtlc.runtime.bundle.refusals import Refusal

BASES, VECTORS = read_vectors()


def python_code(path: Path) -> str:
    try:
        open_bundle(path).close()
    except MtlcError as error:
        return error.code
    return "ok"


def test_the_file_is_what_its_script_writes():
    assert json.loads(json.dumps(vectors())) == VECTORS
    assert {name: described for name, (_, described) in bases().items()} == {
        name: base["manifest"] for name, base in BASES.items()
    }


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v["name"][:60])
def test_python_refuses_with_the_code(vector, tmp_path):
    assert python_code(damage(tmp_path / "b", BASES[vector["base"]], vector["steps"])) == vector["code"]


def test_c_refuses_with_the_code(native, tmp_path):
    wrong = {}
    for number, vector in enumerate(VECTORS):
        code = native.check(damage(tmp_path / str(number), BASES[vector["base"]], vector["steps"]))
        if code != vector["code"]:
            wrong[vector["name"]] = code
    assert wrong == {}


def test_vectors_cover_the_codes_of_folders():
    # Changes after opening, engines and zips have tests of their own.
    elsewhere = {"file-changed", "not-found", "unreadable", "ir", "zip-damaged", "zip-entry", "load", "run"}
    assert {one["code"] for one in VECTORS} == {code.value for code in Refusal} - elsewhere | {"ok"}


def test_codes_have_one_name_in_both(native):
    not_in_c = {"ir"}
    names = native.code_names()
    assert len(set(names)) == len(names)
    assert {code.value for code in Refusal} - set(names) == not_in_c
    header = (SOURCES / "include" / "mtlc.h").read_text()
    for name in names[1:]:
        assert f"MTLC_{name.upper().replace('-', '_')}," in header
        assert f"/* {name}: " in header or f"/* {name} */" in header


def test_what_is_not_there(native, tmp_path):
    assert native.check(tmp_path / "nothing") == python_code(tmp_path / "nothing") == "not-found"


VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 1.5, 1 << 62, 1 << 70, 1e308, "", "x", "t", "s", "trunk", "plus", "near",
    "wide", "trunk.onnx", "weights.bin", "a/b", "batch", "float32", "RGB", "ü", [], {}, [1], ["t"], ["plus"],
    {"x": 1}, 0.5, 1.0,
]  # fmt: skip
"""What values of a manifest are replaced by."""


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to all values inside."""
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += places(inner, (*path, key))
    return found


def mutate(described: dict[str, Any], draw: random.Random) -> None:
    """Change one value, remove it, or put another's in its place."""
    every = places(described)
    *path, last = draw.choice(every)
    inside: Any = described
    for part in path:
        inside = inside[part]
    kind = draw.random()
    if kind < 0.2:
        del inside[last]
    elif kind < 0.6:
        inside[last] = draw.choice(VALUES)
    else:
        *other, other_last = draw.choice(every)
        source: Any = described
        for part in other:
            source = source[part]
        inside[last] = json.loads(json.dumps(source[other_last]))


def disagreements(native: Any, folder: Path, base: str, count: int, seed: int) -> dict[str, int]:
    """The codes of both where they differ, and under "ok" how many manifests both took."""
    made = damage(folder, BASES[base], [])
    whole = (made / "manifest.json").read_text()
    draw = random.Random(seed)
    found: dict[str, int] = {"ok": 0}
    for _ in range(count):
        described = json.loads(whole)
        for _ in range(draw.choice((1, 1, 1, 2))):
            mutate(described, draw)
        (made / "manifest.json").write_text(json.dumps(described))
        python, c = python_code(made), native.check(made)
        found["ok"] += python == c == "ok"
        if python != c:
            (made.parent / "manifest.json").write_text(json.dumps(described))
            found[f"{python} and {c}"] = found.get(f"{python} and {c}", 0) + 1
    return found


@pytest.mark.parametrize("base", BASES)
def test_manifests_that_are_changed_at_random(native, tmp_path, base):
    found = disagreements(native, tmp_path / "b", base, 250, 0)
    assert found.pop("ok") > 4
    assert found == {}


@pytest.mark.slow
@pytest.mark.parametrize("base", BASES)
def test_many_manifests_that_are_changed_at_random(native, tmp_path, base):
    found = disagreements(native, tmp_path / "b", base, 4000, 1)
    assert found.pop("ok") > 40
    assert found == {}
