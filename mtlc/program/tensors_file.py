"""Writes and reads tensors as safetensors, with one clear line for a file that is damaged."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from mtlc.errors import UserError, nearest, one_line
from mtlc.files import check_plain


def save_tensors(module: nn.Module, path: Path, half: bool = False) -> None:
    """The module's state as safetensors, with `half` in float16.

    Tensors that share memory are written under every name.
    """
    state = {key: value.detach().cpu().contiguous().clone() for key, value in module.state_dict().items()}
    if half:
        state = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    save_file(state, path)


def load_tensors(module: nn.Module, path: Path) -> None:
    """Load safetensors into the module: every key and shape must fit; half precision is widened to its type."""
    check_plain(path)
    try:
        state = load_file(path)
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
    module.load_state_dict(state)
