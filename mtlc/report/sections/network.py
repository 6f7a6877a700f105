"""Lays out the report's graph of the network: modules within modules, with costs, widths, sensitivity and INT8."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from mtlc.report.figures.layered_layout import layered_layout
from mtlc.report.parts.numbers import as_bytes, as_count, as_number, as_percent
from mtlc.results.cost import LayerPair
from mtlc.results.graph import GraphNode
from mtlc.results.run import RunResults

MOST_CHILDREN = 24
"""A module with more parts shows them in groups of neighbours."""
GROUP = 12
SHOWN_FIRST = 24
"""Modules are open from the start as long as so many boxes are seen at most."""

_SUMS = ("macs", "params", "bytes", "ms")


@dataclass
class _Layer:
    """What is known of a layer, or of all in a module together. Sums are (before, after); None is not known."""

    macs: tuple[float | None, float | None] = (None, None)
    params: tuple[float | None, float | None] = (None, None)
    bytes: tuple[float | None, float | None] = (None, None)
    ms: tuple[float | None, float | None] = (None, None)
    channels: tuple[int | None, int | None] = (None, None)
    sensitivity: dict[str, float] = field(default_factory=dict)
    int8: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass
class _Box:
    """A node of the graph, or a module with the boxes in it; `first` is when it runs first."""

    path: str
    label: str
    node: GraphNode | None = None
    inside: list[_Box] = field(default_factory=list)
    first: int = 0

    def leaves(self) -> Iterator[_Box]:
        if self.node is not None:
            yield self
        for box in self.inside:
            yield from box.leaves()


class _Flow:
    """What each node reads, and what reads it, by id."""

    def __init__(self, nodes: Sequence[GraphNode]) -> None:
        there = {node.id for node in nodes}
        self.reads = {node.id: [one for one in node.inputs if one in there] for node in nodes}
        self.readers: dict[str, list[str]] = {node.id: [] for node in nodes}
        for node, sources in self.reads.items():
            for source in sources:
                self.readers[source].append(node)


def network_section(results: RunResults) -> dict[str, Any] | None:
    """The graph as JSON for the page's script, with words that say it too; None where it is not known."""
    if results.graph is None or not results.graph.nodes:
        return None
    nodes = results.graph.nodes
    root = _tree(nodes)
    known = _known(results)
    tasks = list(dict.fromkeys(task for layer in known.values() for task in layer.sensitivity))
    total = _together(known.values())
    top = {
        "sensitivity": max((v for layer in known.values() for v in layer.sensitivity.values()), default=0.0),
        "int8": max((v for layer in known.values() for v in layer.int8.values()), default=0.0),
        "ms": total.ms,
        "macs": total.macs,
        "bytes": total.bytes,
    }
    measures = _measures(known, tasks, results)
    flow = _Flow(nodes)
    drawing = _drawn(root, flow, known, top, [key for key, _ in measures])
    _open(drawing)
    layers = sum(not node.join and node.kind not in ("input", "output") for node in nodes)
    gone = sum(node.network == "before" and not node.join for node in nodes)
    words = f"{layers} layers that multiply, module within module; a click opens or closes one."
    words += f" {gone} of them are gone." if gone else ""
    ratio = f"{100 * results.sensitivity.ratios[-1]:g} %" if tasks and results.sensitivity else None
    return {
        "words": words,
        "measures": measures,
        "ratio": ratio,
        "data": json.dumps(drawing, ensure_ascii=False, separators=(",", ":")),
    }


# ---- what is known of each layer ------------------------------------------------------------------------------------


def _known(results: RunResults) -> dict[str, _Layer]:
    """By module path, from all parts of the results."""
    times = (
        {} if results.latency is None else {one.name: (one.before_ms, one.after_ms) for one in results.latency.layers}
    )
    found = {layer.name: _layer(layer, times) for layer in results.layers}
    for name, growth in _sensitivity(results).items():
        if name in found:
            found[name].sensitivity = growth
    quantised = results.quantization
    if quantised is not None:
        for one in quantised.operators.errors:
            layer = found.get(_path(one.operator))
            for task, share in one.shares.items() if layer is not None else ():
                assert layer is not None
                layer.int8[task] = max(layer.int8.get(task, 0.0), share)
        for back in quantised.operators.float_:
            if (layer := found.get(_path(back.operator))) is not None:
                layer.notes.append(f"back in floating point for {back.task}")
        for excluded in quantised.operators.excluded:
            if (layer := found.get(_path(excluded.operator))) is not None:
                layer.notes.append(f"never in INT8: {excluded.why}")
    return found


def _layer(layer: LayerPair, times: dict[str, tuple[float | None, float | None]]) -> _Layer:
    return _Layer(
        (layer.macs_before, layer.macs_after),
        (layer.params_before, layer.params_after),
        (layer.bytes_before, layer.bytes_after),
        times.get(layer.name, (None, None)),
        (layer.channels_before, layer.channels_after),
    )


def _sensitivity(results: RunResults) -> dict[str, dict[str, float]]:
    """By unit, how much each task's loss grows at the largest ratio that was measured."""
    found = results.sensitivity
    if found is None or not found.ratios:
        return {}
    return {
        unit.name: {
            task: value
            for task, value in zip(found.tasks, rows[-1], strict=False)
            if value is not None and math.isfinite(value)
        }
        for unit, rows in zip(found.units, found.growth, strict=False)
        if rows
    }


def _path(operator: str) -> str:
    """The module path in an operator's name: ``<module path>/<operator>``."""
    return operator.rpartition("/")[0] or operator


def _together(layers: Iterable[_Layer]) -> _Layer:
    """Sums of costs, the largest of what is a share."""
    found = list(layers)
    sums = {key: tuple(_sum(getattr(one, key)[side] for one in found) for side in (0, 1)) for key in _SUMS}
    made = _Layer(**sums)  # type: ignore[arg-type]
    for one in found:
        for mine, theirs in ((made.sensitivity, one.sensitivity), (made.int8, one.int8)):
            for task, value in theirs.items():
                mine[task] = max(mine.get(task, value), value)
    back = sum(bool(one.notes) for one in found)
    if back and len(found) > 1:
        made.notes = [f"{back} layer{'s' if back > 1 else ''} not in INT8"]
    return made


def _sum(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


# ---- modules within modules -----------------------------------------------------------------------------------------


def _tree(nodes: Sequence[GraphNode]) -> _Box:
    """The boxes by module path; a module with one part is one box with it, one with too many has groups of them."""
    root = _Box("", "")
    modules = {"": root}
    for place, node in enumerate(nodes):
        outside = node.kind in ("input", "output")
        parts = [] if outside or not node.name else node.name.split(".")
        owner, path = root, ""
        for part in parts if node.join else parts[:-1]:
            path = f"{path}.{part}" if path else part
            if path not in modules:
                modules[path] = _Box(path, part, first=place)
                owner.inside.append(modules[path])
            owner = modules[path]
        label = node.name if outside else "+" if node.join else parts[-1] if parts else "(network)"
        owner.inside.append(_Box(node.name, label, node, first=place))
    # A layer may hold layers of its own: its node moves into its module.
    _settle(root)
    return root


def _settle(box: _Box) -> None:
    owners = {one.path: one for one in box.inside if one.node is None}
    for leaf in [one for one in box.inside if one.node is not None and not one.node.join and one.path in owners]:
        box.inside.remove(leaf)
        leaf.label = "(itself)"
        owners[leaf.path].inside.append(leaf)
        owners[leaf.path].first = min(owners[leaf.path].first, leaf.first)
    for one in box.inside:
        _settle(one)
    for index, one in enumerate(box.inside):
        if one.node is None and len(one.inside) == 1:
            only = one.inside[0]
            only.label = only.label if only.label == "+" else f"{one.label}.{only.label}"
            box.inside[index] = only
    box.inside.sort(key=lambda one: one.first)
    while len(box.inside) > MOST_CHILDREN:
        box.inside = [_group(box.inside[at : at + GROUP]) for at in range(0, len(box.inside), GROUP)]


def _group(boxes: list[_Box]) -> _Box:
    if len(boxes) == 1:
        return boxes[0]
    named = [one.label.partition(" … ")[0 if one is boxes[0] else 2] or one.label for one in (boxes[0], boxes[-1])]
    return _Box(boxes[0].path, f"{named[0]} … {named[1]}", inside=boxes, first=boxes[0].first)


# ---- what the script draws ------------------------------------------------------------------------------------------


def _drawn(
    box: _Box, flow: _Flow, known: dict[str, _Layer], top: dict[str, Any], measures: list[str]
) -> dict[str, Any]:
    """A box with all in it: `r` rows of items, `e` routes between them, `b` edges that go up; see page.js."""
    leaves = [leaf.node for leaf in box.leaves() if leaf.node is not None]
    made: dict[str, Any] = {"n": box.label, "p": box.path}
    layers = [known[node.name] for node in leaves if not node.join and node.name in known]
    node = box.node
    if node is not None and (node.join or node.kind in ("input", "output")):
        made["k"] = "join" if node.join else node.kind
        made["t"] = f"{node.kind} in {node.name or 'the network'}" if node.join else f"{node.kind}: {node.name}"
        return made
    found = _together(layers) if node is None else (layers[0] if layers else _Layer())
    made["k"] = node.kind if node is not None else "module"
    if all(one.network == "before" for one in leaves):
        made["g"] = 1
    count = sum(not one.join for one in leaves)
    made["s"] = _line(found, None if node is not None else count)
    made["t"] = _told(found, box, leaves)
    made["h"] = _shades(found, top, measures)
    macs = found.macs
    if macs[0]:
        made["l"] = round(min((macs[1] or 0.0) / macs[0], 1.0), 3)
    if node is not None:
        return made
    place = {leaf.node.id: index for index, one in enumerate(box.inside) for leaf in one.leaves() if leaf.node}
    edges = {
        (place[source], end)
        for key, end in place.items()
        for source in flow.reads[key]
        if source in place and place[source] != end
    }
    layout = layered_layout(len(box.inside), sorted(edges))
    made["c"] = [_drawn(one, flow, known, top, measures) for one in box.inside]
    made["r"], made["e"], made["b"] = layout.rows, layout.routes, layout.backward
    reading = {place[key] for key in place for source in flow.reads[key] if source not in place}
    read = {place[key] for key in place if any(reader not in place for reader in flow.readers[key])}
    made["i"], made["o"] = sorted(reading), sorted(read)
    return made


def _line(found: _Layer, count: int | None) -> str:
    """A short line for the box."""
    old, new = found.channels
    if count is not None:
        return f"{count} layer{'s' if count != 1 else ''} · {_both(found.macs, as_count)}"
    if old is None and new is None:
        return f"{_both(found.macs, as_count)} MACs"
    return f"{_both(found.channels, str)} ch · {_both(found.macs, as_count)}"


def _both(pair: Sequence[Any], show: Any) -> str:
    """Before → after, or the one that both are."""
    old, new = ("–" if one is None else show(one) for one in pair)
    return str(new) if old == new else f"{old} → {new}"


def _told(found: _Layer, box: _Box, leaves: Sequence[GraphNode]) -> str:
    """All that is known, a line each."""
    lines = [box.path or "(network)" if box.node is not None or "…" not in box.label else box.label]
    if box.node is not None:
        lines[0] += f" ({box.node.kind})"
    if any(found.channels):
        lines.append(f"output channels {_both(found.channels, str)}")
    for key, title, show in (
        ("macs", "MACs", as_count),
        ("params", "parameters", as_count),
        ("bytes", "bytes read and written", as_bytes),
        ("ms", "ms, measured", as_number),
    ):
        pair = getattr(found, key)
        if any(one is not None for one in pair):
            lines.append(f"{title} {_both(pair, show)}")
    lines += [f"sensitivity of {task}: loss {100 * value:+.2f} %" for task, value in found.sensitivity.items()]
    lines += [f"INT8: {as_percent(share)} of the error of {task}" for task, share in found.int8.items()]
    lines += found.notes
    gone = sum(one.network == "before" and not one.join for one in leaves)
    if gone:
        lines.append("gone" if box.node is not None else f"{gone} of its layers are gone")
    return "\n".join(lines)


def _measures(known: dict[str, _Layer], tasks: Sequence[str], results: RunResults) -> list[tuple[str, str]]:
    """What boxes may be coloured by, as far as it is known: a key and a title."""
    found = [("macs", "MACs after"), ("saved", "MACs that went")]
    if any(layer.bytes[1] is not None for layer in known.values()):
        found.append(("bytes", "bytes after"))
    if any(layer.ms[1] is not None for layer in known.values()):
        found.append(("ms", "time after (measured)"))
    found += [(f"s:{task}", f"sensitivity: {task}") for task in tasks]
    found += [(f"q:{task}", f"INT8 error: {task}") for task in _int8_tasks(known)]
    if results.quantization is not None:
        found.append(("float", "not in INT8"))
    return found


def _int8_tasks(known: dict[str, _Layer]) -> list[str]:
    return list(dict.fromkeys(task for layer in known.values() for task in layer.int8))


def _shades(found: _Layer, top: dict[str, Any], measures: Sequence[str]) -> list[float]:
    """How strongly a box is coloured by each of the measures, 0 to 1; -1 where it is not known.

    Shares of the whole network go by their root: a layer has few percent of it.
    """
    shades = []
    for key in measures:
        value: float | None
        if key == "saved":
            old, new = found.macs
            value = None if not old else max(1 - (new or 0.0) / old, 0.0)
        elif key == "float":
            value = 1.0 if found.notes else 0.0
        elif key.startswith(("s:", "q:")):
            kind, task = ("sensitivity", key[2:]) if key[0] == "s" else ("int8", key[2:])
            value = getattr(found, kind).get(task)
            value = None if value is None or not top[kind] else (max(value, 0.0) / top[kind]) ** 0.5
        else:
            whole, mine = top[key][1], getattr(found, key)[1]
            value = None if not whole or mine is None else (mine / whole) ** 0.5
        shades.append(-1 if value is None else round(min(value, 1.0), 2))
    return shades


def _open(drawing: dict[str, Any]) -> None:
    """Open modules from the outside in, those with fewest parts first, as long as few boxes are seen."""
    seen, waiting = len(drawing.get("c", ())), [one for one in drawing.get("c", ()) if "c" in one]
    while waiting:
        waiting.sort(key=lambda one: len(one["c"]))  # stable: of the same size the first that runs
        one = waiting.pop(0)
        if seen + len(one["c"]) > SHOWN_FIRST:
            return
        one["x"] = 1
        seen += len(one["c"])
        waiting += [inner for inner in one["c"] if "c" in inner]
