"""What `mtlc profile` prints of devices. Nothing is computed here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtlc.compile.profile_text import profile as measured
from mtlc.compile.text import NETWORK, count, table

SLOWEST = 12


def profile(result: Mapping[str, Any]) -> str:
    """What was measured, if anything was, and a block for each modelled device."""
    blocks = [measured(result)] if "bundles" in result else []
    return "\n\n".join([*blocks, *(_device(entry) for entry in result.get("devices", ()))])


def _device(entry: Mapping[str, Any]) -> str:
    error = entry["error"]
    off = "error not known"
    if error:
        off = f"±{100 * error['median']:.0f} % in the median, {100 * error['p90']:.0f} % at p90, on {error['held_out']} held out"
    share = " and ".join(f"{100 * part:.0f} % {bound}" for bound, part in entry["bounds"].items() if part >= 0.005)
    before = "" if entry["before_ms"] is None else f", {entry['before_ms']:.3g} ms for the other bundle"
    lines = [
        f"modelled on {entry['title']}, {entry['precision']}, one sample: {entry['after_ms']:.3g} ms{before} ({off})",
        f"it waits for: {share}",
        *entry["notes"],
    ]
    layers = sorted(entry["layers"], key=lambda layer: -layer["ms"])
    rows = [
        (layer["name"] or NETWORK, f"{layer['ms']:.4f}", layer["bound"], count(layer["rate"], "MAC/s"))
        for layer in layers[:SLOWEST]
    ]
    lines.append(table(("layer", "ms", "bound", "reaches"), rows))
    if len(layers) > SLOWEST:
        lines.append(f"and {len(layers) - SLOWEST} layers that take less; all with --json")
    return "\n".join(lines)
