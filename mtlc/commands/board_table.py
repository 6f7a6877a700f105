"""Prints what was measured on a board."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from mtlc.commands.tables import table

if TYPE_CHECKING:
    from mtlc.results.board_bench import BoardBenchResult, BoardState


def board_text(result: BoardBenchResult) -> str:
    """The board, and a line for each row."""
    configured = any(row.configuration is not None for row in result.rows)
    rows = []
    for row in result.rows:
        faster = "-"
        if row.faster:
            faster = f"{statistics.median(row.faster):.2f} ({min(row.faster):.2f} to {max(row.faster):.2f})"
        rows.append(
            (
                row.bundle, *([row.configuration] if configured else []), row.threads, f"{row.median_ms:.3f}",
                f"{min(row.turns_ms):.3f} to {max(row.turns_ms):.3f}", f"{row.p95_ms:.3f}", f"{row.cpu_ms:.3f}",
                f"{row.open_ms:.0f}", f"{row.first_ms:.2f}", f"{row.peak_bytes / 2**20:.0f}", faster,
            )
        )  # fmt: skip
    header = (
        "bundle", *(["configuration"] if configured else []), "threads", "median ms", "of its turns", "p95 ms",
        "cpu ms", "open ms", "first ms", "peak MiB", "faster",
    )  # fmt: skip
    names = ", ".join(result.tasks) if result.tasks else "all"
    return "\n".join(
        [
            f"measured on {result.board} ({result.place}, {result.before.machine}) by the C library, "
            f"batch {result.batch}, {len(result.rows[0].turns_ms)} turns of {result.runs} runs; "
            f"{result.sent_bytes / 1e6:.1f} MB were sent",
            *_states(result.before, result.after),
            f"tasks: {names}",
            table(header, rows),
        ]
    )


def _states(before: BoardState, after: BoardState) -> list[str]:
    """What the board said of its heat and its clocks, if it said anything."""
    told = []
    for title, unit, first, last in (
        ("temperature", "°C", before.celsius, after.celsius), ("clock", "MHz", before.clock_mhz, after.clock_mhz)
    ):  # fmt: skip
        if first and last:
            told.append(f"{title} {max(first):.0f} to {max(last):.0f} {unit}")
    if after.governor is not None:
        told.append(f"governor {after.governor}")
    return [", ".join(told)] if told else []
