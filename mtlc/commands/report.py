"""Reads the options of ``mtlc report``, calls it, and prints what it found for people."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mtlc.commands.options import DEBUG, JSON, PATH
from mtlc.commands.output import emit
from mtlc.commands.tables import count, table
from mtlc.errors import UserError

if TYPE_CHECKING:
    from mtlc.results.runs_comparison import RunsComparison

DEFAULT = Path("comparison.html")


def text(result: RunsComparison, page: Path) -> str:
    """A row for each run, what does not compare, and where the page is."""
    rows = [
        (run.label, run.title, "-" if run.macs is None else count(run.macs),
         "-" if run.latency_ms is None else f"{run.latency_ms:.3g}",
         "-" if run.delta_m is None else f"{run.delta_m:+.2f} %",
         "-" if run.delta_m_interval is None else f"{run.delta_m_interval.between()} %",
         str(len(run.missed)) if run.missed else "-")
        for run in result.runs
    ]  # fmt: skip
    lines = [table(("run", "title", "MACs", "ms", "delta m", "95 %", "missed"), rows)]
    return "\n".join([*lines, *(f"note: {note}" for note in result.notes), str(page)])


@click.command()
@click.argument("folders", metavar="FOLDER...", type=PATH, nargs=-1, required=True)
@click.option("--compare", is_flag=True, help="Put several runs on one page instead.")
@click.option("--out", type=PATH, help=f"The page, a file. Default: report.html in FOLDER; with --compare {DEFAULT}.")
@JSON
@DEBUG
def report(folders: tuple[Path, ...], compare: bool, out: Path | None, as_json: bool) -> None:
    """Render report.html again from the results.json in FOLDER, the one that a run wrote.

    With --compare, put two or more folders of `mtlc run` and `mtlc slim` side by side; what `mtlc search --json`
    printed to a file may be one of them.
    """
    if compare:
        from mtlc.workflows.compare_runs import compare_runs

        page = DEFAULT if out is None else out
        emit(as_json, compare_runs(folders, page), lambda result: text(result, page))
        return
    if len(folders) > 1:
        raise UserError(f"give one folder, or --compare to put these {len(folders)} side by side")
    from mtlc.workflows.report import report as render

    emit(as_json, {"report": str(render(folders[0], out))}, lambda result: result["report"])
