"""Reads the options of ``mtlc report``, calls it, and prints what it found for people."""

from __future__ import annotations

from pathlib import Path

import click

from mtlc.commands.options import DEBUG, JSON, PATH
from mtlc.commands.output import emit


@click.command()
@click.argument("out", type=PATH)
@JSON
@DEBUG
def report(out: Path, as_json: bool) -> None:
    """Render report.html again from the results.json in OUT, the folder that a run wrote."""
    from mtlc.workflows.report import report as render

    emit(as_json, {"report": str(render(out))}, lambda result: result["report"])
