"""Makes the table of the pruned detector."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.tables.markdown_tables import read, table


def pruned_detector() -> str:
    """The five-task detector before and after pruning: each task, Δm, what it costs."""
    found = read("pruned_detector")
    before, seeds, summary = found["before"], found["seeds"], found["summary"]
    names = list(before["tasks"])
    header = ["network", "MACs", *(_title(name, before["tasks"][name]) for name in names), "mAP at .5", "Δm %"]
    rows = [["original", _millions(before["macs"]), *(_task(before["tasks"][name]["value"]) for name in names)]]
    rows[0] += [_task(before["map_50"]), "–"]
    for one in seeds:
        rows.append([f"pruned, seed {one['seed']}", _millions(one["macs"]), *(_task(one["tasks"][n]) for n in names)])
        rows[-1] += [_task(one["map_50"]), f"{one['delta_m']:+.2f}"]
    if len(seeds) > 1:
        mean, std = summary["mean"], summary["std"]
        rows.append(["mean ± std", "", *(f"{mean[name]:.2f} ± {std[name]:.2f}" for name in (*names, "map_50"))])
        rows[-1].append(f"{mean['delta_m']:+.2f} ± {std['delta_m']:.2f}")
    verdict = "met" if summary["met"] else "**not met**"
    lines = [
        f"mAP changed by {summary['map_change_percent']:+.1f} %; expected was a loss of less than "
        f"{-summary['expected_map_change_percent']:g} %: {verdict}.",
        *(_latency(one) for one in seeds if one["latency"] is not None),
    ]
    return table(header, rows) + "\n\n" + "\n".join(f"- {line}" for line in lines)


def _title(name: str, task: Mapping[str, Any]) -> str:
    unit = f" {task['unit']}" if task["unit"] else ""
    return f"{name}: {task['metric']}{unit} {'↑' if task['higher_is_better'] else '↓'}"


def _task(value: float) -> str:
    return f"{value:.3f}" if value < 1 else f"{value:.2f}"


def _millions(macs: float) -> str:
    return f"{macs / 1e6:.1f} M"


def _latency(one: Mapping[str, Any]) -> str:
    """The times of a seed's bundle beside the original's; processor time, which other processes disturb less, too."""
    found = one["latency"]
    before, after, ratio = found["before"], found["after"], found["ratio"]
    doubts = [*found["doubts"], *([] if ratio["doubt"] is None else [ratio["doubt"]])]
    return (
        f"Seed {one['seed']}, one thread, median ms: {before['median_ms']:.2f} → {after['median_ms']:.2f}, "
        f"{ratio['median']:.2f}× as fast; of processor time {before['cpu_median_ms']:.2f} → "
        f"{after['cpu_median_ms']:.2f}, {ratio['cpu']:.2f}×"
        + (f" (in doubt: {'; '.join(doubts)})" if doubts else "")
        + "."
    )


TABLES: dict[str, Callable[[], str]] = {"pruned_detector": pruned_detector}
