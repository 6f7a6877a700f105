"""Writes the page of a sweep: one HTML file without anything to fetch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mtlc.report.parts.changes_in_percent import interval_words
from mtlc.report.parts.numbers import DASH, as_change, as_count, as_duration, as_number, as_percent
from mtlc.report.parts.page import tile, write_page
from mtlc.results.sweep import Spread, SweepCell, SweepGroup, SweepResult, unlearned_line

FOLD = 24
"""Rows of a table from which on it is folded away."""


def write_sweep_report(result: SweepResult, path: Path) -> None:
    """Write the page of a sweep to `path`, atomically. Raises `UserError` if the file cannot be written."""
    write_page("sweep.html.j2", _view(result), path)


def setting_text(settings: dict[str, Any]) -> str:
    """What is set, in a line."""
    return ", ".join(f"{key} = {value}" for key, value in settings.items()) or "the job as it is"


def _view(result: SweepResult) -> dict[str, Any]:
    """What the template shows: every number already words."""
    varied = {key: values for key, values in result.grid.items() if len(values) > 1}
    seeds = len(result.seeds)
    return {
        "title": result.title,
        "subtitle": f"{result.job} · {seeds} seed{'' if seeds == 1 else 's'} · "
        + (", ".join(f"{key}: {len(values)} values" for key, values in varied.items()) or "one setting"),
        "summary": {"words": _words(result), "tiles": _tiles(result)},
        "unlearned": unlearned_line(result.unlearned) if result.unlearned else None,
        "best": _best(result),
        "svg": _figure(result),
        "tasks": [
            {"name": name, "metric": task.metric, "unit": task.unit, "arrow": "↑" if task.higher_is_better else "↓"}
            for name, task in result.tasks.items()
        ],
        "intervals": any(cell.delta_m_interval is not None for cell in result.cells),
        "timed": any(cell.latency_ms is not None for cell in result.cells),
        "groups": [_group(group, result) for group in result.groups],
        "cells": [_cell(cell, place == result.best, result) for place, cell in enumerate(result.cells)],
        "failed": [
            {"name": f"{setting_text(cell.settings)}, seed {cell.seed}", "error": cell.error}
            for cell in result.cells
            if cell.state == "failed"
        ],
        "fold": FOLD,
        "provenance": _provenance(result),
        "job": None,
    }


def _states(result: SweepResult) -> dict[str, int]:
    found = dict.fromkeys(("done", "failed", "waiting"), 0)
    for cell in result.cells:
        found[cell.state] += 1
    return found


def _words(result: SweepResult) -> str:
    states = _states(result)
    told = [f"{states['done']} of {len(result.cells)} runs are done"]
    told += [
        f"{states[name]} {word}" for name, word in (("failed", "failed"), ("waiting", "did not run")) if states[name]
    ]
    kept = sum(group.kept for group in result.groups)
    return f"{', '.join(told)}. {kept} kept the budget and every limit."


def _tiles(result: SweepResult) -> list[dict[str, Any]]:
    states = _states(result)
    tiles = [tile("Runs", f"{states['done']} of {len(result.cells)}", "done", None)]
    if states["failed"]:
        tiles.append(tile("Failed", str(states["failed"]), "see below", None, "bad"))
    if result.best is not None:
        cell = result.cells[result.best]
        interval = interval_words(cell.delta_m_interval)
        where = f"95 % interval {interval}, on the validation split" if interval else "on the validation split"
        tiles.append(tile("Best Δm", as_change(cell.delta_m), where, "measured"))
        tiles.append(tile("Its MACs", as_percent(cell.macs_share), "of the original network's", "modelled"))
    return tiles


def _best(result: SweepResult) -> dict[str, Any] | None:
    if result.best is None:
        return None
    cell = result.cells[result.best]
    return {"settings": setting_text(cell.settings), "seed": cell.seed, "folder": cell.folder}


def _figure(result: SweepResult) -> str | None:
    points = [
        (place, cell)
        for place, cell in enumerate(result.cells)
        if cell.macs_share is not None and cell.delta_m is not None
    ]
    if not points:
        return None
    from mtlc.report.figures.sweep import SweepPoint, sweep_scatter

    names = [setting_text(group.settings) for group in result.groups]
    return sweep_scatter(
        [
            SweepPoint(
                names.index(setting_text(cell.settings)), cell.macs_share or 0.0, cell.delta_m or 0.0,
                not cell.missed, place == result.best,
            )
            for place, cell in points
        ],
        names,
    )  # fmt: skip


def _group(group: SweepGroup, result: SweepResult) -> dict[str, Any]:
    return {
        "name": setting_text(group.settings),
        "seeds": f"{group.seeds}" + (f" ({group.failed} failed)" if group.failed else ""),
        "kept": f"{group.kept} of {group.seeds}",
        "delta": _spread(group.delta_m, as_change, "+.2f"),
        "macs": _spread(group.macs_share, as_percent, ".1f"),
        "ms": _spread(group.latency_ms, as_number, ".3g"),
        "metrics": [_spread(group.metrics.get(task), as_number, ".3g") for task in result.tasks],
    }


def _spread(found: Spread | None, show: Any, form: str) -> str:
    """``−0.63 ± 0.12 %``: a mean in words, and the deviation with as many digits."""
    if found is None:
        return DASH
    if found.std is None:
        return str(show(found.mean))
    unit = " %" if show in (as_change, as_percent) else ""
    scale = 100 if show is as_percent else 1
    deviation = format(scale * found.std, form.removeprefix("+"))
    return f"{str(show(found.mean)).removesuffix(unit)} ± {deviation}{unit}"


def _cell(cell: SweepCell, best: bool, result: SweepResult) -> dict[str, Any]:
    verdict = {"waiting": "did not run", "failed": "FAILED"}.get(cell.state, "missed" if cell.missed else "kept")
    return {
        "name": setting_text(cell.settings),
        "seed": cell.seed,
        "best": best,
        "verdict": verdict,
        "bad": cell.state == "failed" or bool(cell.missed),
        "missed": "; ".join(cell.missed),
        "delta": as_change(cell.delta_m),
        "interval": interval_words(cell.delta_m_interval),
        "macs": as_percent(cell.macs_share),
        "count": as_count(cell.macs),
        "ms": as_number(cell.latency_ms),
        "metrics": [as_number(cell.metrics.get(task)) for task in result.tasks],
        "report": f"{cell.folder}/report.html" if cell.state == "done" else None,
    }


def _provenance(result: SweepResult) -> Sequence[tuple[str, str]]:
    grid = [(key, ", ".join(str(value) for value in values)) for key, values in result.grid.items()]
    return [
        ("job", result.job),
        *grid,
        ("seeds", ", ".join(map(str, result.seeds))),
        ("threads of a run", str(result.threads)),
        *result.versions.items(),
        ("time of the last call", as_duration(result.seconds)),
    ]
