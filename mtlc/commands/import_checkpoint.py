"""Reads the options of ``mtlc import``, calls it, and prints what it found for people."""

from __future__ import annotations

from pathlib import Path

import click

from mtlc.commands.group import Front
from mtlc.commands.options import DEBUG, JSON, PATH
from mtlc.commands.output import emit
from mtlc.errors import escaped


@click.group("import", cls=Front)
def import_() -> None:
    """Turn the checkpoint of another code into weights of a network of mtlc.zoo."""


@import_.command()
@click.argument("checkpoint", type=PATH)
@click.option("--out", type=PATH, required=True, help="Where the weights go, a .safetensors file.")
@click.option("--size", help="tiny, small, base or micro. Default: what the checkpoint is.")
@click.option("--image-size", metavar="HxW", help="What it was trained with, such as 480x640. Default: the size's.")
@click.option("--top-k", type=click.IntRange(min=1), default=4, show_default=True, help="Experts per token.")
@click.option("--gate-input-ahead", is_flag=True, help="It was trained with gate_input_ahead.")
@click.option("--expert-prune", is_flag=True, help="It was trained with expert_prune.")
@click.option(
    "--experts-per-task", metavar="N", type=click.IntRange(min=1),
    help="It was trained with regu_experts_fromtask, and num_experts_pertask was N.",
)  # fmt: skip
@JSON
@DEBUG
def m3vit(
    checkpoint: Path, out: Path, size: str | None, image_size: str | None, top_k: int, gate_input_ahead: bool,
    expert_prune: bool, experts_per_task: int | None, as_json: bool,
) -> None:  # fmt: skip
    """Import an official M³ViT CHECKPOINT: a file, or the folder of a distributed one.

    Writes the weights, and prints the [model] and [tasks] of a job that uses them. No checkpoint shows --top-k and the
    three options below it: say how the network was trained, or it computes something else.
    """
    from mtlc.workflows.import_m3vit import import_m3vit

    result = import_m3vit(
        checkpoint, out, size, image_size, top_k, gate_input_ahead=gate_input_ahead, expert_prune=expert_prune,
        experts_per_task=experts_per_task,
    )  # fmt: skip
    # The job has lines, which `emit` would take for one text; what else is in it was made by mtlc or is escaped here.
    emit(as_json, result, lambda _: "\n".join(escaped(line) for line in result.job.split("\n")))
