"""Writes the tables of docs/results.md and docs/networks.md, and the README's figures, from the
committed results.

    python -m benchmarks.tables.write_tables            # rewrite the pages
    python -m benchmarks.tables.write_tables --check    # fail if a file and the results differ

A table stands between ``<!-- NAME -->`` and ``<!-- /NAME -->``, and is what the function of that name makes.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping

from benchmarks.tables import (
    detection_tables,
    experts_tables,
    hardware_tables,
    headline_figures,
    networks_tables,
    pruning_tables,
    quantization_tables,
    runtime_tables,
    scale_tables,
    slimmable_tables,
)
from benchmarks.tables.markdown_tables import ROOT

Tables = Mapping[str, Callable[[], str]]
PAGES: dict[str, Tables] = {
    "README.md": headline_figures.TABLES,
    "docs/results.md": pruning_tables.TABLES
    | experts_tables.TABLES
    | slimmable_tables.TABLES
    | hardware_tables.TABLES
    | quantization_tables.TABLES
    | runtime_tables.TABLES
    | detection_tables.TABLES,
    "docs/networks.md": networks_tables.TABLES,
    "docs/scale.md": scale_tables.TABLES,
}


def render(text: str, tables: Tables) -> str:
    """`text` with every table of `tables` rewritten. One that has no place there, or two, ends the program."""
    for name, make in tables.items():
        pattern = re.compile(rf"(?<=<!-- {name} -->\n).*?(?=\n<!-- /{name} -->)", re.DOTALL)
        parts = pattern.split(text)
        if len(parts) != 2:
            raise SystemExit(f"the page has {len(parts) - 1} places for the table {name!r}, not one")
        text = make().join(parts)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page differs from the results")
    options = parser.parse_args()
    for page, tables in PAGES.items():
        text = (ROOT / page).read_text()
        rendered = render(text, tables)
        if options.check and rendered != text:
            raise SystemExit(f"{page} does not show the results: run python -m benchmarks.tables.write_tables")
        (ROOT / page).write_text(rendered)


if __name__ == "__main__":
    main()
