"""Holds what must be true of every network of the suite: no fault, nothing left undone without a word, no difference.

A *record* is what `one_network` keeps of a network: an entry for each verb, with its exit code and its error line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from conformance.case import Case

MASKED = 1e-4
"""How far what pruning built may be from the network whose channels are masked, as `mtlc.compress` compares them."""
VERBS = ("plan", "prune", "export", "openvino", "quantize", "slim", "extract")
FAULT, MISSED, DIFFERENT = 1, 3, 4
"""Exit codes of the command line: a fault in mtlc, a budget that was missed, programs that differ."""


def broken(record: Mapping[str, Any], case: Case) -> list[str]:
    """A line for each rule that the network breaks; none where all is well."""
    return list(_broken(record, case))


def _broken(record: Mapping[str, Any], case: Case) -> Iterator[str]:
    if "exit" in record.get("facts", {}):
        yield f"cannot be built: {record['facts']['error']}"
        return
    for verb in VERBS:
        entry = record.get(verb)
        if entry is None:
            continue
        told = entry.get("error") or ""
        if entry["exit"] == FAULT:
            yield f"{verb}: a fault: {told}"
        elif entry["exit"] == DIFFERENT:
            yield f"{verb}: differs: {told}"
        elif entry["exit"] and not told:
            yield f"{verb}: ended with {entry['exit']} without a word"
        elif entry["exit"] and not case.may_refuse(verb, told):
            yield f"{verb}: refused, which the suite does not expect: {told}"
        if entry.get("differs") is not None and not entry["differs"] <= entry["tolerance"]:
            yield f"{verb}: outputs differ by {entry['differs']:.1e}, tolerance {entry['tolerance']:.0e}"
    yield from _plan(record, case)
    yield from _pruned(record)


def _plan(record: Mapping[str, Any], case: Case) -> Iterator[str]:
    plan = record.get("plan")
    if plan is None:
        yield "plan: not run"
    elif "units" in plan:
        if not plan["units"] and not plan["left_alone"]:
            yield "plan: no units, and nothing is said to be left alone"
        yield from (f"plan: {name} is left alone without a reason" for name, _, why in plan["left_alone"] if not why)
        if case.refused is not None:
            yield "plan: was to be refused"


def _pruned(record: Mapping[str, Any]) -> Iterator[str]:
    prune = record.get("prune")
    if prune is None or prune["exit"]:
        return
    allowed = prune["budget"] * record["plan"]["macs"]
    # The job says the share with two digits after the point.
    if prune["macs"] > allowed * (1 + 1e-3):
        yield f"prune: {prune['macs']:,} MACs are left, {allowed:,.0f} were asked for: {prune['missed']}"
    if prune["compared"] is None:
        yield "prune: what was built was not compared with the masked network"
    elif prune["compared"] > MASKED:
        yield f"prune: {prune['compared']:.1e} from the masked network"
