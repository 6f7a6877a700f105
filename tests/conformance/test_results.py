"""The committed results of the suite: large enough, and no network of it breaks a rule."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from testkit.places import ROOT

from conformance.catalogue import OWN, collection

RESULTS = ROOT / "benchmarks" / "results" / "conformance.json"


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RESULTS.read_text())
    return found


OPEN: dict[str, set[str]] = {}
"""Networks that break a rule still, with the verbs: docs/networks.md says how. It may only become shorter."""


def test_the_suite_is_as_large_as_it_says(results):
    rows, waiting = results["networks"], results["not_run"]
    names = [*(row["name"] for row in rows), *waiting]
    kinds = Counter(row["kind"] for row in rows)
    assert len(set(names)) == len(names)
    assert sum(name.startswith(("transformers_", "torchvision_", "timm_")) for name in names) >= 60
    assert kinds["detector"] >= 10
    assert kinds["multi-task"] >= 10


def test_every_network_of_its_own_code_is_known_to_the_results(results):
    known = {row["name"] for row in results["networks"]} | set(results["not_run"])
    assert {name for module in OWN for name in collection(module)} <= known


def test_no_verb_ends_in_a_fault_or_gives_another_result(results):
    entries = [
        (row["name"], verb, entry)
        for row in results["networks"]
        for verb, entry in row.items()
        if isinstance(entry, dict) and "exit" in entry
    ]
    assert {entry["exit"] for _, _, entry in entries} <= {0, 2}
    assert [found for found in entries if found[2].get("differs", 0) > found[2].get("tolerance", 0)] == []


def test_no_network_breaks_a_rule_but_those_that_are_open(results):
    found: dict[str, set[str]] = {}
    for line in results["broken"]:
        name, verb = line.split(": ")[:2]
        found.setdefault(name, set()).add(verb)
    assert found == OPEN
