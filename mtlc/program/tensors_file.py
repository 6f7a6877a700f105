"""Writes and reads tensors as safetensors, with one clear line for a file that is damaged."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mtlc.errors import UserError, nearest, one_line

_CHECKSUM = "mtlc.sha256"


def save_tensors(module: nn.Module, path: Path, half: bool = False) -> None:
    """The module's state as safetensors, with `half` in float16.

    Tensors that share memory are written under every name. The file's metadata have a SHA-256 of all tensors.
    """
    state = {key: value.detach().cpu().contiguous().clone() for key, value in module.state_dict().items()}
    if half:
        state = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    save_file(state, path, {_CHECKSUM: _checksum(state)})


def load_tensors(module: nn.Module, path: Path) -> None:
    """Load safetensors into the module: every key and shape must fit; half precision is widened to its type.

    Tensors must be those that `save_tensors` wrote. A file that something else wrote has no checksum, and is taken as
    it is.
    """
    try:
        state = load_file(path)
        with safe_open(path, "pt") as file:
            checksum = (file.metadata() or {}).get(_CHECKSUM)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        if path.is_dir():
            raise UserError(f"{path}: is a folder; name a .safetensors file") from None
        raise UserError(f"{path}: not a readable safetensors file: {one_line(error)}") from None
    own = module.state_dict()
    for key in own:
        if key not in state:
            raise UserError(f"{path}: has no tensor {key!r}, which the network has; is it of another network?")
        if state[key].shape != own[key].shape:
            raise UserError(
                f"{path}: {key} is {tuple(state[key].shape)} in the file and {tuple(own[key].shape)} in the network"
            )
    for key in state:
        if key not in own:
            raise UserError(f"{path}: {key!r} is not a tensor of the network{nearest(key, own)}")
        if state[key].is_floating_point() and bool(state[key].isnan().any()):
            raise UserError(f"{path}: {key} holds NaN: the training that made it broke down; use an earlier checkpoint")
    if checksum is not None and checksum != _checksum(state):
        raise UserError(f"{path}: altered or damaged: its tensors are not those that were written; make it again")
    module.load_state_dict(state)


def _checksum(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of the names, types, shapes and bytes of tensors."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name]
        digest.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype};".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
