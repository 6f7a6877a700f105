"""Keeps the state of a training on the disk, and reads it back: tensors in safetensors, the rest in JSON, no pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mtlc.checksums import is_whole, say_damaged, seal_folder
from mtlc.compress.pipeline.identity import evaluation_hash, network_modules
from mtlc.compress.pipeline.users_code import code_hash
from mtlc.errors import UserError, one_line
from mtlc.evaluation.splits import Splits
from mtlc.files import atomic_folder
from mtlc.log import Log
from mtlc.program.program import Program


@dataclass
class TrainingState:
    """What a checkpoint holds besides tensors. `curve` is JSON values of `mtlc.compress.training.learning_curve`."""

    step: int = 0
    seconds: float = 0.0
    losses: dict[str, float] = field(default_factory=dict)
    """A running mean of each."""
    curve: dict[str, Any] = field(default_factory=lambda: {"losses": [], "metrics": []})


def save_state(
    folder: Path,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    state: TrainingState,
    fingerprint: str,
) -> None:
    """Write a checkpoint, whole or not at all; `fingerprint` is what a run must agree with to go on from it."""
    tensors = {f"{prefix}.{k}": v for prefix, module in modules.items() for k, v in module.state_dict().items()}
    # AdamW's moments, flat by name: safetensors holds tensors only, and no pickle.
    for index, entry in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in entry.items()}
    with atomic_folder(folder) as temporary:
        save_file(
            {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, temporary / "state.safetensors"
        )
        (temporary / "state.json").write_text(json.dumps({"fingerprint": fingerprint, **asdict(state)}))
        seal_folder(temporary)


def restore_state(
    folder: Path,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    fingerprint: str,
    device: torch.device,
    log: Log,
) -> TrainingState | None:
    """Load a checkpoint into the modules and the optimizer.

    None where there is none, where it is damaged (`log` is told), or where it is of another network, data set or
    configuration. Raises `UserError` for one that is whole and does not read.
    """
    if not folder.exists():
        return None
    if not is_whole(folder):
        say_damaged(folder, log)
        return None
    try:
        described = json.loads((folder / "state.json").read_text())
        if described.pop("fingerprint") != fingerprint:
            return None  # start anew rather than mix them
        tensors = load_file(folder / "state.safetensors", device=str(device))
        for prefix, module in modules.items():
            module.load_state_dict(_under(f"{prefix}.", tensors))
        entries: dict[int, dict[str, Tensor]] = {}
        for key, value in _under("optimizer.", tensors).items():
            index, _, name = key.partition(".")
            entries.setdefault(int(index), {})[name] = value
        # Settings of the groups are today's own; the fingerprint has made sure that they are what they were.
        optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
        return TrainingState(**described)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{folder}: the state of a training, damaged: {one_line(error)}; delete it to train anew"
        ) from error


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def fingerprint(
    program: Program, splits: Splits, begun: str, config: BaseModel, seed: int, shares: Mapping[str, float]
) -> str:
    """What a checkpoint must agree with to be continued; `begun` are the weights that the training began with.

    The code of the network and of its losses counts too: a checkpoint of other code holds other weights.
    """
    follows = (
        evaluation_hash((*program.tasks, *program.auxiliary), splits),
        code_hash(network_modules(program)),
    )
    weights = {name: share for name, share in shares.items() if share != 1}
    text = json.dumps([begun, config.model_dump(), seed, *follows, *([weights] if weights else [])])
    return hashlib.sha256(text.encode()).hexdigest()
