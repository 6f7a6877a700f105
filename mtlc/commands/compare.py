"""``mtlc compare``: its options, its one call, and what it prints for people."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from mtlc.commands.options import BACKEND, DEBUG, JSON, PATH
from mtlc.commands.output import emit
from mtlc.commands.profile import costs
from mtlc.commands.tables import NETWORK, count, table

_SLOWEST = 20


def text(result: Mapping[str, Any]) -> str:
    """Tasks, costs, latency, the slowest layers, how far outputs agree, and what else differs."""
    lines = [f"{label}  {result[label]['bundle']}" for label in "AB"]
    lines += ["", table(("task", "metric", "A", "B", "change"), [_task(*entry) for entry in result["tasks"].items()])]
    cost = result["cost"]
    rows = [(name, *(count(cost[label][key]) for label in "AB"), _left(cost["A"][key], cost["B"][key])) for key, name in
            (("macs", "MACs (modelled)"), ("parameters", "parameters (modelled)"), ("bytes", "bytes"))]  # fmt: skip
    lines += ["", table(("cost", "A", "B", "B of A"), rows)]
    latency = result["latency"]
    how = "in turns" if latency["in_turns"] else "one after the other"
    backend = latency["backend"]
    setting = f"{latency['threads']} thread(s), batch {latency['batch']}, {latency['rounds']} rounds, {how}"
    lines += ["", f"measured on {latency['device']['cpu']}, {backend['name']} {backend['version'] or ''}, {setting}"]
    bundles = {label: {**latency["bundles"][label], "memory": result["memory"][label]} for label in "AB"}
    lines += costs({**latency, "bundles": bundles})
    slowest = sorted(result["layers"], key=lambda row: -max(_ms(row, label) for label in "AB"))[:_SLOWEST]
    layers = [
        (row["name"] or NETWORK, *(_macs(row, label) for label in "AB"), *(_shown_ms(row, label) for label in "AB"))
        for row in slowest
    ]
    lines += ["", table(("layer", "MACs A", "MACs B", "ms A", "ms B"), layers)]
    if len(result["layers"]) > len(slowest):
        lines.append(f"the {len(slowest)} slowest of {len(result['layers'])} layers; --json has all")
    if result["agreement"] is not None:
        lines += ["", *(_agreement(task, found) for task, found in result["agreement"].items())]
        lines.append(f"(inputs: {result['agreement_inputs']})")
    if result["differs"]:
        rows = [(row["what"], row["a"] or "-", row["b"] or "-") for row in result["differs"]]
        lines += ["", table(("differs", "A", "B"), rows)]
    return "\n".join([*lines, *(["", *(f"note: {note}" for note in result["notes"])] if result["notes"] else [])])


def _task(name: str, found: Mapping[str, Any]) -> tuple[str, ...]:
    sides = [found[label] for label in "AB"]
    metric = next((f"{side['metric']} {side['unit']}".strip() for side in sides if side), "")
    shown = ("absent" if side is None else "-" if side["after"] is None else f"{side['after']:.4g}" for side in sides)
    return name, metric or "-", *shown, "-" if found["change"] is None else f"{100 * found['change']:+.2f} %"


def _agreement(task: str, found: Mapping[str, Any]) -> str:
    if found["max_rel"] is None:
        return f"{task}: outputs do not compare: {found['why']}"
    return f"{task}: outputs differ by at most {found['max_rel']:.1e} of A's largest value"


def _left(old: float | None, new: float | None) -> str:
    return "-" if not old or new is None else f"{100 * new / old:.1f} %"


def _ms(row: Mapping[str, Any], label: str) -> float:
    side = row[label]
    return 0.0 if side is None or side["ms"] is None else float(side["ms"])


def _shown_ms(row: Mapping[str, Any], label: str) -> str:
    return "-" if row[label] is None or row[label]["ms"] is None else f"{row[label]['ms']:.3f}"


def _macs(row: Mapping[str, Any], label: str) -> str:
    return "-" if row[label] is None or row[label]["macs"] is None else count(row[label]["macs"])


@click.command()
@click.argument("a", type=PATH)
@click.argument("b", type=PATH)
@click.option("--job", type=PATH, help="The job whose calibration samples outputs are compared on. Default: random.")
@click.option("--batch", type=click.IntRange(1, 4096), default=1, show_default=True)
@click.option("--rounds", type=click.IntRange(2, 1_000_000), default=50, show_default=True, help="Timed calls.")
@click.option("--threads", type=click.IntRange(1, 1024), default=1, show_default=True, help="Threads per program.")
@click.option("--html", type=PATH, help="Also write the comparison as a page to this file.")
@BACKEND
@JSON
@DEBUG
def compare(
    a: Path,
    b: Path,
    job: Path | None,
    batch: int,
    rounds: int,
    threads: int,
    html: Path | None,
    backend: str,
    as_json: bool,
) -> None:
    """Put A and B side by side: bundles, or the folders of runs (needs onnx)."""
    from mtlc.workflows.compare import compare as put

    result = put(a, b, job=job, batch=batch, rounds=rounds, threads=threads, backend=backend, html=html)
    emit(as_json, result, text)
