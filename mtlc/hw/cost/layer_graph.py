"""Works out from a network's operators how its layers hang together: the graph that the report draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mtlc.hw.cost.workload import Operator, Workload
from mtlc.results.graph import GraphNode, NetworkGraph


def layer_graph(before: Workload, after: Workload, inputs: Sequence[str]) -> NetworkGraph | None:
    """The layers of two networks as one graph; `inputs` are the names of what goes in.

    A layer has one node however often it runs, so that there may be circles. What is in both networks is told by its
    name. None where the flow is not known.
    """
    if not (before.sources and after.sources):
        return None
    old, new = _nodes(before, inputs), _nodes(after, inputs)
    found = []
    for key in _merged(list(old), list(new)):
        sides = [side[key] for side in (old, new) if key in side]
        network = "both" if len(sides) == 2 else "before" if key in old else "after"
        reads = dict.fromkeys(one for side in sides for one in side["inputs"])
        found.append(GraphNode.model_validate({**sides[-1], "id": key, "inputs": list(reads), "network": network}))
    return NetworkGraph(nodes=found)


def _nodes(work: Workload, inputs: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The nodes of one network by id."""
    #     conv ──▶ norm ──▶ relu ──┬──▶ conv ──▶ add ──▶        a node: what multiplies, and what reads from two nodes;
    #                              └─────────────▲             norm and relu are passed through
    nodes: dict[str, dict[str, Any]] = {}
    for name in inputs:
        nodes[f"input {name}"] = {"name": name, "kind": "input", "join": False, "inputs": {}}
    given = list(nodes)
    stands_for: list[str | None] = []  # for each operator the node whose result it passes on
    joins: dict[str, int] = {}
    for operator, sources in zip(work.operators, work.sources, strict=True):
        reads = dict.fromkeys(one for place in sources if (one := _named(place, given, stands_for)) is not None)
        if operator.macs:
            node = nodes.setdefault(operator.name or "(network)", _node(operator, join=False))
            node["inputs"].update({one: None for one in reads if one != (operator.name or "(network)")})
            stands_for.append(operator.name or "(network)")
        elif len(reads) > 1:
            joins[operator.name] = joins.get(operator.name, 0) + 1
            key = f"{operator.name or '(network)'} join {joins[operator.name]}"
            nodes[key] = {**_node(operator, join=True), "inputs": reads}
            stands_for.append(key)
        else:
            stands_for.append(next(iter(reads), None))
    for task, places in work.results:
        reads = dict.fromkeys(one for place in places if (one := _named(place, given, stands_for)) is not None)
        nodes[f"output {task}"] = {"name": task, "kind": "output", "join": False, "inputs": reads}
    read = {one for node in nodes.values() for one in node["inputs"]}
    return {key: node for key, node in nodes.items() if node["kind"] != "input" or key in read}


def _node(operator: Operator, join: bool) -> dict[str, Any]:
    return {"name": operator.name, "kind": operator.kind, "join": join, "inputs": {}}


def _named(place: int, inputs: Sequence[str], stands_for: Sequence[str | None]) -> str | None:
    """The node of an operator's place, or of an input's negative one; None where it comes of no input."""
    if place >= 0:
        return stands_for[place]
    return inputs[-1 - place] if -place <= len(inputs) else None


def _merged(old: list[str], new: list[str]) -> list[str]:
    """The keys of both in an order that is that of each; what only `new` has stands behind what precedes it there."""
    result = list(old)
    known, at = set(old), 0
    for key in new:
        if key in known:
            at = result.index(key) + 1
        else:
            result.insert(at, key)
            at += 1
    return result
