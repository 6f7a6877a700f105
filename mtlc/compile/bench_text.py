"""What ``mtlc bench`` prints for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtlc.compile.text import count, table

MIB = 2**20


def bench(result: Mapping[str, Any]) -> str:
    """The setting, and a line for each row: latency, throughput, memory, start, and how it compares with the first."""
    device, names = result["device"], ", ".join(result["tasks"])
    configured = any(row["configuration"] is not None for row in result["rows"])
    rows = []
    for row in result["rows"]:
        memory, faster = row["memory"], row["faster"]
        added = "-" if memory["added_bytes"] is None else f"{memory['added_bytes'] / MIB:.1f}"
        rows.append(
            (
                row["bundle"], *([row["configuration"]] if configured else []), row["precision"], row["backend"], row["threads"],
                *(f"{row[key]:.3f}" for key in ("median_ms", "p90_ms", "p99_ms")), f"{row['throughput']:.4g}", added,
                f"{memory['cold_ms']:.0f}", count(row["bytes"], "B"),
                "" if faster is None else f"{faster['median']:.2f}x ({faster['p10']:.2f} to {faster['p90']:.2f})",
            )
        )  # fmt: skip
    header = (
        "bundle", *(["configuration"] if configured else []), "precision", "backend", "threads", "median ms", "p90 ms", "p99 ms", "samples/s", "adds MiB",
        "cold start ms", "size", "faster",
    )  # fmt: skip
    versions = {row["backend"]: row["version"] for row in result["rows"]}
    used = ", ".join(f"{name} {version or ''}".rstrip() for name, version in versions.items())
    return "\n".join(
        [
            f"measured on {device['cpu']}, {used}, batch {result['batch']}, {result['rounds']} rounds in turns",
            f"tasks: {names}",
            table(header, rows),
        ]
    )
