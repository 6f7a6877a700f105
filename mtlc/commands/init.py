"""Reads the options of ``mtlc init``, calls it, and prints what it found for people."""

from __future__ import annotations

from pathlib import Path

import click

from mtlc.commands.options import DEBUG, PATH
from mtlc.commands.output import log_line
from mtlc.errors import escaped


@click.command()
@click.argument("folder", type=PATH, default=".")
@click.option("--force", is_flag=True, help="Overwrite a job that is there.")
@DEBUG
def init(folder: Path, force: bool) -> None:
    """Write a commented job.toml into FOLDER that works as it is."""
    from mtlc.workflows.init import init as write

    target = write(folder, force)
    click.echo(escaped(str(target)))
    log_line(f"next: mtlc train {target}, then mtlc run {target}")
