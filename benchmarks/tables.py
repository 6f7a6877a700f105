"""Write the README's tables from the committed results, between ``<!-- NAME -->`` and ``<!-- /NAME -->``.

python benchmarks/tables.py            # rewrite README.md
python benchmarks/tables.py --check    # fail if README.md and the results differ
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def pruners() -> str:
    """Δm by method and stage, mean ± standard deviation over the seeds."""
    found = read("pruners")["table"]
    stages = list(next(iter(found.values())))
    rows = []
    for method, by_stage in found.items():
        cells = []
        for stage in stages:
            entry = by_stage[stage]
            spread = "" if entry["delta_m_std"] is None else f" ± {entry['delta_m_std']:.2f}"
            cells.append(f"{entry['delta_m_mean']:+.2f}{spread}")
        rows.append([method, str(len(by_stage[stages[0]]["seeds"])), *cells])
    return table(["method", "seeds", *(f"Δm % at {stage} MACs" for stage in stages)], rows)


def tasks() -> str:
    """What the shipped networks learnt: multi-task, single-task, constant predictor."""
    found = read("zoo")
    rows = [
        [task, f"{e['metric']} ({e['unit']}, {'↑' if e['higher_is_better'] else '↓'})"]
        + [f"{e[key]:.2f}" for key in ("constant", "single_task", "multi_task")]
        for task, e in found["tasks"].items()
    ]
    header = ["task", "metric", "constant predictor", "single-task network", "multi-task network"]
    return (
        table(header, rows)
        + f"\n\nΔm of the multi-task network against the single-task ones: {found['delta_m']:+.2f} %."
    )


TABLES: dict[str, Callable[[], str]] = {"pruners": pruners, "tasks": tasks}


def render(text: str) -> str:
    """`text` with every marked table rewritten."""
    for name, make in TABLES.items():
        pattern = re.compile(rf"<!-- {name} -->\n.*?<!-- /{name} -->", re.DOTALL)
        if not pattern.search(text):
            raise SystemExit(f"README.md has no place for the table {name!r}")
        before, after = pattern.split(text)[0], pattern.split(text)[-1]
        text = f"{before}<!-- {name} -->\n{make()}\n<!-- /{name} -->{after}"
    return text


def main() -> None:
    path = ROOT / "README.md"
    text = path.read_text()
    if "--check" in sys.argv:
        if render(text) != text:
            raise SystemExit("README.md does not show the committed results: run python benchmarks/tables.py")
        return
    path.write_text(render(text))


if __name__ == "__main__":
    main()
