"""Makes the table of exports of large networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from benchmarks.tables.markdown_tables import read, table


def large_export() -> str:
    """Memory of an export and of a session, against the bytes of the weights."""
    header = ["parameters", "weights", "the network in memory", "export, peak", "export, s", "a session, peak"]
    rows = []
    for row in read("large_export")["rows"]:
        session = row["session_peak_mb"] / row["weights_mb"]
        rows.append(
            [
                f"{row['parameters'] / 1e6:.0f} M", f"{row['weights_mb'] / 1024:.2f} GiB",
                f"{row['network_ratio']:.2f}×", f"{row['ratio']:.2f}×", f"{row['seconds']:.0f}", f"{session:.2f}×",
            ]
        )  # fmt: skip
    return table(header, rows)


TABLES: Mapping[str, Callable[[], str]] = {"large_export": large_export}
