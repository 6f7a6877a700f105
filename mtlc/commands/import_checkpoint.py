"""Reads the options of ``mtlc import``, calls it, and prints what it found for people."""

from __future__ import annotations

from pathlib import Path

import click

from mtlc.commands.group import Front
from mtlc.commands.options import DEBUG, JSON, PATH
from mtlc.commands.output import emit


@click.group("import", cls=Front)
def import_() -> None:
    """Turn the checkpoint of another code into weights of a network of mtlc.zoo."""


@import_.command()
@click.argument("checkpoint", type=PATH)
@click.option("--out", type=PATH, required=True, help="Where the weights go, a .safetensors file.")
@click.option("--size", help="tiny, small, base or micro. Default: what the checkpoint is.")
@click.option("--image-size", metavar="HxW", help="What it was trained with, such as 480x640. Default: the size's.")
@click.option("--top-k", type=click.IntRange(min=1), default=4, show_default=True, help="Experts per token.")
@JSON
@DEBUG
def m3vit(checkpoint: Path, out: Path, size: str | None, image_size: str | None, top_k: int, as_json: bool) -> None:
    """Import an official M³ViT CHECKPOINT: a file, or the folder of a distributed one.

    Writes the weights, and prints the [model] and [tasks] of a job that uses them.
    """
    from mtlc.workflows.import_m3vit import import_m3vit

    emit(as_json, import_m3vit(checkpoint, out, size, image_size, top_k), lambda result: result.job)
