"""Reads the options of ``mtlc init``, calls it, and prints what it found for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mtlc.commands.options import DEBUG, LOG_LEVEL, PATH
from mtlc.commands.output import listener
from mtlc.errors import UserError, escaped


@click.command()
@click.argument("folder", type=PATH, required=False)
@click.option(
    "--from", "network", metavar="REF", help="Write the job of this network: module:factory, or FILE.py:factory."
)
@click.option("--data", metavar="REF", help="The factory of its data, module:function or FILE.py:function.")
@click.option(
    "--input", "inputs", multiple=True, metavar="NAME=SIZES",
    help="An input of the network, without --data, such as image=3x256x256. Default: it is tried.",
)  # fmt: skip
@click.option(
    "--arg",
    "args",
    multiple=True,
    metavar="KEY=VALUE",
    help="An argument of the network's factory; may be given again.",
)
@click.option(
    "--data-arg",
    "data_args",
    multiple=True,
    metavar="KEY=VALUE",
    help="An argument of the data's factory; may be given again.",
)
@click.option("--force", is_flag=True, help="Overwrite a job that is there.")
@DEBUG
@LOG_LEVEL
def init(folder: Path | None, network: str | None, force: bool, log_level: str, **options: Any) -> None:
    """Write a commented job.toml into FOLDER: one that works as it is, or with --from that of a network of yours."""
    log = listener(log_level)["log"]
    if network is None:
        from mtlc.workflows.init import init as write

        for name in ("data", "inputs", "args", "data_args"):
            if options[name]:
                shown = {"inputs": "--input", "args": "--arg", "data_args": "--data-arg"}.get(name, f"--{name}")
                raise UserError(f"{shown} goes with --from, which names the network")
        target = write(folder or Path(), force)
        verbs: tuple[str, ...] = ("train", "run")
    else:
        from mtlc.job.overrides import read_arguments
        from mtlc.workflows.guessed_job import init_from
        from mtlc.workflows.init_from import InitOptions, default_folder

        asked = InitOptions(
            network, options["data"], options["inputs"], read_arguments(options["args"], "--arg"),
            read_arguments(options["data_args"], "--data-arg"),
        )  # fmt: skip
        target = init_from(asked, folder or default_folder(network), force, log)
        verbs = ("plan", "run") if (target.parent / "weights.safetensors").exists() else ("plan", "train", "run")
    click.echo(escaped(str(target)))
    log("next: " + ", then ".join(f"mtlc {verb} {target}" for verb in verbs))
