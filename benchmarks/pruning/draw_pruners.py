"""Draws Δm against the MACs that are left, with the spread over the seeds, for every method and subject.

python -m benchmarks.pruning.draw_pruners [--results benchmarks/results/pruners.json] [--out docs/pruning.png]
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from benchmarks.pruning.pruning_cells import OURS, read_result
from mtlc.errors import UserError
from mtlc.files import atomic_file

_COLOURS = ("#2f6fdb", "#10265c", "#1a8754", "#c8452d", "#c98a1b", "#8b5fbf", "#3aa0a0", "#8a94a6", "#5a4632")
_SHOWN = 4
"""How many of the methods the picture shows whole whatever they do."""
_FAR = 4.0
"""How many times as far down as these a method may go and be shown; further down nothing else could be told apart."""


def draw(result: Mapping[str, Any], out: Path) -> None:
    """Write the picture of a result of `collect_pruners` as PNG. Raises `UserError` for one of the earlier form."""
    if not result.get("subjects"):
        raise UserError("the result has no subjects: it is of an earlier form; run the comparison and collect it")
    import matplotlib

    matplotlib.use("agg")
    from matplotlib.figure import Figure

    subjects = result["subjects"]
    figure = Figure(figsize=(5.6 * len(subjects), 4.4), layout="constrained")
    methods = list(dict.fromkeys(m for one in subjects.values() for m in one["table"]))
    for axes, (name, one) in zip(figure.subplots(1, len(subjects), squeeze=False)[0], subjects.items(), strict=True):
        for method, by_cut in one["table"].items():
            points = sorted(by_cut.values(), key=lambda entry: float(entry["macs_share"]))
            axes.errorbar(
                [100 * p["macs_share"] for p in points],
                [p["delta_m_mean"] for p in points],
                yerr=[p["delta_m_std"] or 0.0 for p in points],
                label=method, color=_COLOURS[methods.index(method) % len(_COLOURS)], marker="o", markersize=3,
                linewidth=2.0 if method in OURS else 1.1, capsize=2, zorder=3 if method in OURS else 2,
            )  # fmt: skip
        axes.axhline(0, color="#8a94a6", linewidth=0.8)
        axes.set(title=name, xlabel="MACs left, %", ylabel="Δm, %", ylim=(lower_edge(one["table"]), None))
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=7, frameon=False, loc="lower right")
    with atomic_file(out) as temporary:
        figure.savefig(temporary, format="png", dpi=100, metadata={"Software": None})


def lower_edge(table: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> float:
    """A little under the worst point of all methods but those that fall out of the picture."""
    worst = sorted(min(e["delta_m_mean"] - (e["delta_m_std"] or 0.0) for e in c.values()) for c in table.values())
    furthest = _FAR * min(worst[max(0, len(worst) - _SHOWN)], -0.5)
    return float(1.15 * min(-0.5, *(point for point in worst if point >= furthest)))


@click.command()
@click.option("--results", default=Path("benchmarks/results/pruners.json"), type=click.Path(path_type=Path))
@click.option("--out", default=Path("docs/pruning.png"), type=click.Path(path_type=Path))
def main(results: Path, out: Path) -> None:
    try:
        draw(read_result(results), out)
    except UserError as error:
        raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    main()
