"""Makes the tables of docs/networks.md: what each verb does with each network of the conformance suite."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.tables.markdown_tables import read, table

_LONGEST = 240
"""Characters of a reason in the table."""


def _networks() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read("conformance")["networks"]
    return found


def _state(row: Mapping[str, Any], verb: str) -> str:
    """``works``, ``refused``, ``not run``, or ``–`` where the verb has nothing to do."""
    entry = row.get(verb)
    if entry is None:
        return "not run" if verb in row["not_run"] else "–"
    if entry["exit"] == 0:
        return "works"
    return {1: "FAULT", 2: "refused", 3: "missed", 4: "DIFFERS", 5: "not here"}[entry["exit"]]


def _prune(row: Mapping[str, Any]) -> str:
    if "prune" in row:
        state, entry = _state(row, "prune"), row["prune"]
        return f"works, to {entry['macs'] / row['plan']['macs']:.0%}" if state == "works" else state
    if "prune" in row["not_run"]:
        return "not run"
    return "left alone" if "least" in row["plan"] else _state(row, "plan")


def _slim(row: Mapping[str, Any]) -> str:
    state, entry = _state(row, "slim"), row.get("slim")
    return f"works, to {entry['macs'][1] / entry['macs'][0]:.0%}" if entry and state == "works" else state


def _export(row: Mapping[str, Any]) -> str:
    """The bundle of the pruned network where there is one, else of the network as it is."""
    return _state(row, _bundled(row))


def _bundled(row: Mapping[str, Any]) -> str:
    """The verb that made the bundle: pruning, or exporting where nothing could be pruned."""
    return "export" if "export" in row else "prune"


def _difference(row: Mapping[str, Any], verb: str) -> str:
    entry = row.get(verb, {})
    return f"{entry['differs']:.0e}" if "differs" in entry else _state(row, verb)


def _onnxruntime(row: Mapping[str, Any]) -> str:
    return _difference(row, _bundled(row))


def _units(row: Mapping[str, Any]) -> str:
    other = row["torch_pruning"]
    theirs = "?" if other is None else ("none" if "groups" not in other else f"{other['runs']} of {other['groups']}")
    return f"{row['plan'].get('units', '–')} / {theirs}"


def _least(row: Mapping[str, Any]) -> str:
    plan = row["plan"]
    return f"{plan['least'] / plan['macs']:.0%}" if "least" in plan else "–"


_HEADER = [
    "network", "units / torch-pruning's", "least MACs", "prune", "slim", "export", "onnxruntime", "OpenVINO", "INT8",
    "plan, s",
]  # fmt: skip


def _row(row: Mapping[str, Any]) -> list[str]:
    seconds = row["plan"].get("cpu_seconds")
    return [
        f"{row['name']}: {row['about']}", _units(row), _least(row), _prune(row), _slim(row), _export(row),
        _onnxruntime(row), _difference(row, "openvino"), _state(row, "quantize"),
        "–" if seconds is None else f"{seconds:.1f}",
    ]  # fmt: skip


def _of(kind: str) -> Callable[[], str]:
    def made() -> str:
        return table(_HEADER, [_row(row) for row in _networks() if row["kind"] == kind])

    return made


def _experts() -> str:
    rows = []
    for row in _networks():
        if "extract" in row:
            entry = row["extract"]
            left = f"{entry['parameters']:,}" if "parameters" in entry else "–"
            rows.append([row["name"], _state(row, "extract"), left, _difference(row, "extract")])
    return table(["network", "extract", "parameters left", "onnxruntime"], rows)


def _reasons() -> str:
    """Why channels are left alone, by reason: how many networks, and where one is met."""
    met: dict[str, list[tuple[str, str]]] = {}
    for row in _networks():
        for why, names in row["plan"].get("left_alone", {}).items():
            met.setdefault(_shorter(why), []).append((row["name"], names[0]))
    rows = [
        [why, str(len(places)), f"{places[0][0]}, `{places[0][1]}`"]
        for why, places in sorted(met.items(), key=lambda item: (-len(item[1]), item[0]))
    ]
    return table(["why channels are left alone", "networks", "such as"], rows)


def _refused() -> str:
    rows = []
    for row in _networks():
        for verb in ("plan", "prune", "export", "openvino", "quantize", "slim", "extract"):
            if row.get(verb, {}).get("exit"):
                rows.append([row["name"], verb, _shorter(row[verb].get("error", ""))])
    return table(["network", "verb", "what it says"], rows) if rows else "Nothing is refused."


def _broken() -> str:
    """What breaks a rule of the suite; a line for each."""
    faults = read("conformance")["broken"]
    return "\n".join(f"- {_shorter(line)}" for line in faults) or "Nothing."


def _missed() -> str:
    """Groups of torch-pruning that the network runs without and that are no unit here."""
    rows = []
    for row in _networks():
        missed: Mapping[str, str | None] = (row["torch_pruning"] or {}).get("missed", {})
        if missed and "units" in row["plan"]:
            names, told = list(missed), sorted({_shorter(why) for why in missed.values() if why})
            shown = ", ".join(f"`{name}`" for name in names[:3]) + (" and others" if len(names) > 3 else "")
            rows.append([row["name"], str(len(names)), shown, "; ".join(told) or "–"])
    return table(["network", "groups", "called", "why they are left alone here"], rows) if rows else "None."


def _summary() -> str:
    rows = _networks()
    planned = [row for row in rows if "units" in row["plan"]]
    traced = [row for row in planned if "groups" in (row["torch_pruning"] or {})]
    seconds = sorted(row["plan"]["cpu_seconds"] for row in rows if row["plan"].get("cpu_seconds") is not None)
    pruned = [row for row in rows if row.get("prune", {}).get("exit") == 0]
    lines = [
        ["networks that were tried, in the suite", f"{len(rows)}, {len(rows) + len(read('conformance')['not_run'])}"],
        ["of them with all verbs", str(sum(not row["not_run"] for row in rows))],
        ["of them detectors, multi-task", f"{_count(rows, 'detector')}, {_count(rows, 'multi-task')}"],
        ["planned", str(len(planned))],
        ["pruned, exported and verified", str(len(pruned))],
        ["not 3 % to prune, and why is said", str(sum(_prune(row) == "left alone" for row in planned))],
        ["refused by plan", str(sum(row["plan"]["exit"] == 2 for row in rows))],
        ["that torch-pruning has a graph for", str(len(traced))],
        ["units there, ours and theirs that the network runs without", _sums(traced)],
        [
            "seconds of processor time of plan, median and longest",
            f"{seconds[len(seconds) // 2]:.1f}, {seconds[-1]:.1f}",
        ],
    ]
    return table(["", ""], lines)


def _count(rows: Sequence[Mapping[str, Any]], kind: str) -> int:
    return sum(row["kind"] == kind for row in rows)


def _sums(rows: Sequence[Mapping[str, Any]]) -> str:
    return f"{sum(row['plan']['units'] for row in rows)}, {sum(row['torch_pruning']['runs'] for row in rows)}"


def _shorter(text: str) -> str:
    text = " ".join(text.split()).replace("|", "\\|")
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _versions() -> str:
    return ", ".join(f"{name} {version}" for name, version in read("conformance")["versions"].items())


TABLES = {
    "networks-summary": _summary,
    "networks-versions": _versions,
    "networks-detectors": _of("detector"),
    "networks-multi-task": _of("multi-task"),
    "networks-backbones": _of("backbone"),
    "networks-blocks": _of("block"),
    "networks-experts": _experts,
    "networks-reasons": _reasons,
    "networks-refused": _refused,
    "networks-missed": _missed,
    "networks-broken": _broken,
}
