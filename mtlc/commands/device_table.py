"""Lays out a device, a line for each figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtlc.commands.tables import config_text, table


def figure_text(figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return "-"
    unit = "" if figure["unit"] == "count" else f" {figure['unit']}"
    return f"{figure['value']:.10g}{unit}" + (" (unconfirmed)" if figure["confidence"] == "unconfirmed" else "")


def device_text(result: Mapping[str, Any]) -> str:
    """One device, a line for each figure."""
    lines = [f"{result['name']}: {result['title']}"]
    lines += [f"kind      {result['kind']}"] if result["kind"] else []
    lines += [f"local     measured through {result['backend']}"] if result["local"] else []
    lines += [f"modelled  as class {result['roofline']}"] if result["roofline"] else []
    lines += [f"from      {result['origin']}"] if result["origin"] else []
    if result["measured_on"]:
        lines.append(f"measured  {config_text(result['measured_on'])}")
    lines += [f"notes     {result['notes']}"] if result["notes"] else []
    columns = ["figure", "value", "unit", "spread", "confidence", "source", "note"]
    rows = []
    for key, figure in result["figures"].items():
        spread = f"{figure['spread']:.0%}" if "spread" in figure else ""
        unit, confidence, source = (figure[name] for name in ("unit", "confidence", "source"))
        rows.append([key, f"{figure['value']:.10g}", unit, spread, confidence, source, figure.get("note", "")])
    for column in ("spread", "note"):  # which most devices have none of
        at = columns.index(column)
        if not any(row[at] for row in rows):
            for row in (columns, *rows):
                del row[at]
    return "\n".join([*lines, "", table(columns, rows) if rows else "no figures"])
