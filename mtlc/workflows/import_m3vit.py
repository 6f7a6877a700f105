"""Turns an official checkpoint into weights of `mtlc.zoo:m3vit` and a part of a job: ``mtlc import m3vit``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mtlc.errors import UserError
from mtlc.results.import_m3vit import ImportResult
from mtlc.toml_files import toml_text

# How mtlc trains and scores each task of the official networks.
_SCORED = {
    "semseg": ("cross_entropy", "miou"),
    "human_parts": ("cross_entropy", "miou"),
    "sal": ("balanced_bce", "max_jaccard"),
    "normals": ("normals_l1", "mean_angle"),
    "edge": ("edge_bce", "odsf"),
    "depth": ("l1", "rmse"),
}


def import_m3vit(
    checkpoint: Path,
    out: Path,
    size: str | None = None,
    image_size: str | None = None,
    top_k: int = 4,
    *,
    gate_input_ahead: bool = False,
    expert_prune: bool = False,
    experts_per_task: int | None = None,
) -> ImportResult:
    """Write the weights of `checkpoint` to `out`, whole or not at all.

    `image_size` is text such as ``"480x640"``, height first. `top_k` and what follows say how the network was trained
    where no checkpoint shows it, see `mtlc.zoo.m3vit_checkpoint.Untraced`. The result holds the factory's arguments,
    what was taken for granted, the number of parameters, and as ``"job"`` the TOML of `[model]` and `[tasks]`. Raises
    `UserError`.
    """
    from mtlc.compress.pipeline.step_folder import disk_errors
    from mtlc.files import atomic_file
    from mtlc.program.tensors_file import save_tensors
    from mtlc.zoo.m3vit_checkpoint import Untraced, import_checkpoint

    if out.suffix != ".safetensors":
        raise UserError(f"{out}: weights are written as .safetensors")
    if out.is_dir():
        raise UserError(f"{out}: is a folder; name a file for the weights")
    if out.exists() and checkpoint.exists() and out.samefile(checkpoint):
        raise UserError(f"{out}: is the checkpoint itself; name another file for the weights")
    untraced = asdict(Untraced(top_k, gate_input_ahead, expert_prune, experts_per_task))
    imported = import_checkpoint(checkpoint, size, _sides(image_size), **untraced)
    with disk_errors(out), atomic_file(out) as temporary:
        save_tensors(imported.network, temporary)
    return ImportResult(
        weights=str(out),
        factory="mtlc.zoo:m3vit",
        args=imported.args,
        untraced=untraced,
        parameters=sum(parameter.numel() for parameter in imported.network.parameters()),
        job=job_text(out, imported.args, untraced),
    )


def job_text(weights: Path, args: Mapping[str, Any], untraced: Mapping[str, Any]) -> str:
    """`[model]` and `[tasks]` of a job, below a comment on what no checkpoint shows.

    The path is absolute: a relative one would be taken from the job's folder.
    """
    taken = ", ".join(f"{key} = {'none' if value is None else toml_text(value)}" for key, value in untraced.items())
    lines = [
        "# No checkpoint shows how these were. Import again with other options if the network was trained otherwise:",
        f"# {taken}",
        "[model]",
        'factory = "mtlc.zoo:m3vit"',
        f"weights = {toml_text(str(weights.absolute()))}",
        f"args = {toml_text(args)}",
    ]
    for task in args["tasks"]:
        loss, metric = _SCORED[task]
        lines += ["", f"[tasks.{task}]", f"loss = {toml_text(loss)}", f"metric = {toml_text(metric)}"]
    return "\n".join(lines)


def _sides(text: str | None) -> tuple[int, int] | None:
    match = re.fullmatch(r"(\d{1,6})[xX×](\d{1,6})", text) if text is not None else None
    if text is not None and match is None:
        raise UserError(f"--image-size {text}: write height x width in pixels, such as 480x640")
    return None if match is None else (int(match[1]), int(match[2]))
