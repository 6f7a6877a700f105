"""Makes the README's one table: six figures, each linked to where docs/results.md shows it whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.tables.markdown_tables import read, table
from benchmarks.tables.quantization_tables import int8_losses


def pruning() -> tuple[str, str, str]:
    """Pruning to 40 % of the MACs beside the best simple way; the first subject of the comparison."""
    one = next(iter(read("pruners")["subjects"].values()))
    methods, name, method = one["table"], "pagcp", one["best"]["-60%"]["simple"]
    beside = f"the best simple way, {method}"
    ours, other = (methods[m]["-60%"]["delta_m_mean"] for m in (name, method))
    return "Δm with 60 % of the MACs gone, MultiFashion", f"{ours:+.2f} %", f"{beside}: {other:+.2f} %"


def oracle() -> tuple[str, str, str]:
    """The search's forwards, fast against plain."""
    _, search = read("prune_oracle")["searches"]
    fast = search["variants"]["distinct counts, suffix, early stop, bisection"]
    plain = search["variants"]["plain scan"]
    assert fast["same_network_as_plain_scan"]
    counts = (
        f"{fast['forward_equivalents']:.0f} forwards",
        f"plain scan, same network: {plain['forward_equivalents']:.0f}",
    )
    return "Asking every task before every cut, to 60 % of the MACs", *counts


def experts() -> tuple[str, str, str]:
    """What one task keeps of a mixture of experts that was trained for it: means over tasks and seeds."""
    runs = [run for name, run in read("extraction")["runs"].items() if name.startswith("dependence")]
    entries: list[dict[str, Any]] = [entry for run in runs for entry in run["tasks"].values()]
    gone = sum(entry["expert_parameters_gone"] for entry in entries) / len(entries)
    worst = max(entry["drop_percent"] for entry in entries)
    figure = f"{gone:.0%} of the expert parameters gone"
    return "One task of M³ViT micro", figure, f"its metric worse by {worst:.3f} % at most"


def widths() -> tuple[str, str, str]:
    """One bundle of many widths beside the widest network and beside networks trained alone."""
    ratio = read("width_switching")["bytes"]["ratio"]
    points = read("slimmable")["summary"]["searched against alone 40%"]["mean"]
    figure = f"{ratio:.2f}× the bytes of the widest"
    return (
        "A bundle of many widths",
        figure,
        f"at 40 % of the MACs {points:+.2f} points of Δm against a network trained alone",
    )


def int8() -> tuple[str, str, str]:
    """What INT8 costs the worst task of the pruned network, and how fast pruned and INT8 are together."""
    found = read("quantization")
    networks = ("dense", "pruned", "pruned16")
    worst = max(max(lost.values()) for name in networks for lost in int8_losses(found, name).values())
    settings = found["latency_ms"]["fused"]["openvino, batch 8"]
    speed = settings["pruned16 int8"]["cpu_speedup"]
    return (
        "INT8 with a limit of 1 % for each task",
        f"no task worse by more than {worst:.1f} %",
        f"pruned and INT8 {speed:.1f}× as fast in OpenVINO; 4× were expected",
    )


def prediction() -> tuple[str, str, str]:
    """How well latency is predicted for networks that were not measured."""
    quality = read("latency_table")["quality"]
    ours, other = (quality[name]["median_error"] for name in ("table", "line in MACs"))
    return "Latency of 30 unseen networks, predicted", f"{ours:.1%} off in the median", f"by MACs: {other:.1%}"


FIGURES = {
    "pruning-methods": pruning,
    "the-oracle": oracle,
    "one-task-of-a-mixture-of-experts": experts,
    "a-bundle-of-many-widths": widths,
    "int8": int8,
    "latency-that-is-predicted": prediction,
}
"""A figure by the heading of docs/results.md under which it stands."""


def figures() -> str:
    """All six: what, ours, and what stands beside it."""
    rows = []
    for anchor, make in FIGURES.items():
        what, ours, beside = make()
        rows.append([what, f"[{ours}](docs/results.md#{anchor})", beside])
    return table(["what", "figure", "beside it"], rows)


TABLES: dict[str, Callable[[], str]] = {"figures": figures}
