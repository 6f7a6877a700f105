"""Lays out a device, a line for each figure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtlc.commands.tables import config_text, table

if TYPE_CHECKING:
    from mtlc.results.known_devices import DeviceFigure, KnownDevice


def figure_text(figure: DeviceFigure | None) -> str:
    if figure is None:
        return "-"
    unit = "" if figure.unit == "count" else f" {figure.unit}"
    return f"{figure.value:.10g}{unit}" + (" (unconfirmed)" if figure.confidence == "unconfirmed" else "")


def device_text(result: KnownDevice) -> str:
    """One device, a line for each figure."""
    lines = [f"{result.name}: {result.title}"]
    lines += [f"kind      {result.kind}"] if result.kind else []
    lines += [f"local     measured through {result.backend}"] if result.local else []
    lines += [f"modelled  as class {result.roofline}"] if result.roofline else []
    lines += [f"from      {result.origin}"] if result.origin else []
    if result.measured_on:
        lines.append(f"measured  {config_text(result.measured_on)}")
    lines += [f"notes     {result.notes}"] if result.notes else []
    columns = ["figure", "value", "unit", "spread", "confidence", "source", "note"]
    rows = []
    for key, figure in result.figures.items():
        spread = "" if figure.spread is None else f"{figure.spread:.0%}"
        told = (spread, figure.confidence, figure.source, figure.note or "")
        rows.append([key, f"{figure.value:.10g}", figure.unit, *told])
    for column in ("spread", "note"):  # which most devices have none of
        at = columns.index(column)
        if not any(row[at] for row in rows):
            for row in (columns, *rows):
                del row[at]
    return "\n".join([*lines, "", table(columns, rows) if rows else "no figures"])
