"""Writes and reads tensors as safetensors, reads torch's own files, with one clear line for a file that is damaged."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mtlc.errors import UserError, nearest, one_line
from mtlc.files import check_plain
from mtlc.program.numpy_scalars import NUMPY_SCALARS

TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".tar")
"""Of files that `torch.save` wrote."""

_INNER = ("state_dict", "model_state_dict", "model", "net", "network", "module")
"""Under which key checkpoints of other trainings have the weights, beside an optimiser's and more."""

_WRAPPERS = ("module", "_orig_mod")
"""What `DataParallel` and `torch.compile` put into the names of the layers that they wrap."""

_OWNERS = ("model", "net", "network")
"""What trainers call the network that is part of them: the first part of every name."""

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
    """Load a file of tensors into the module: every key and shape must fit; half precision is widened to its type.

    The file is safetensors or, by its suffix, one of `torch.save` (``.pth`` and others), of which only tensors are
    read. Prefixes of `DataParallel`, `torch.compile` and trainers are left out, and a tensor that the network has under
    two names may be stored once. Raises `UserError` that names the key, and for a file of `save_tensors` whose tensors
    are not those that were written.
    """
    own = module.state_dict()
    state = _renamed(path, read_tensors(path), own)
    _share_tied(path, state, own)
    for key in own:
        if key not in state:
            raise UserError(f"{path}: has no tensor {key!r}, which the network has; is it of another network?")
        if state[key].shape != own[key].shape:
            raise UserError(
                f"{path}: {key} is {tuple(state[key].shape)} in the file and {tuple(own[key].shape)} in the network"
            )
        if state[key].is_quantized or state[key].is_floating_point() != own[key].is_floating_point():
            raise UserError(
                f"{path}: {key} is {_kind(state[key])} in the file and {_kind(own[key])} in the network; "
                "take the weights in floating point"
            )
    for key in state:
        if key not in own:
            raise UserError(f"{path}: {key!r} is not a tensor of the network{nearest(key, own)}")
        if state[key].is_floating_point() and bool(state[key].isnan().any()):
            raise UserError(f"{path}: {key} holds NaN: the training that made it broke down; use an earlier checkpoint")
    module.load_state_dict(state)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by the names that they have there, on the CPU. Raises `UserError`."""
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name a .safetensors file")
    check_plain(path)
    if path.suffix in TORCH_SUFFIXES:
        return _state(path, read_torch_file(path))
    try:
        state = load_file(path)
        with safe_open(path, "pt") as file:
            checksum = (file.metadata() or {}).get(_CHECKSUM)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file: {one_line(error)}") from None
    if checksum is not None and checksum != _checksum(state):  # what something else wrote has none, and is taken as is
        raise UserError(f"{path}: altered or damaged: its tensors are not those that were written; make it again")
    return state


def read_torch_file(path: Path) -> Any:
    """What `torch.save` wrote, on the CPU, without running any code of the file's.

    NumPy's scalars, which trainings write as their metrics, are passed over. Raises `UserError` for a damaged file, and
    for one that holds more than tensors, numbers, text and containers of these.
    """
    try:
        with torch.serialization.safe_globals(list(NUMPY_SCALARS)), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old protocols, and of archives that are refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file or folder") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {one_line(error)}") from None
    except Exception as error:  # whatever a damaged pickle makes the unpickler raise
        if "TorchScript" in str(error):
            raise UserError(
                f"{path}: a TorchScript network, not weights; save its weights: "
                'torch.save(torch.jit.load(path).state_dict(), "weights.pth")'
            ) from None
        if "weights_only" in str(error) or "Weights only" in str(error):
            raise UserError(
                f"{path}: damaged, or holds objects besides tensors, which are not loaded because they can run code; "
                'save the tensors alone: torch.save(checkpoint["state_dict"], …)'
            ) from None
        raise UserError(f"{path}: damaged or not a checkpoint: {one_line(error)}") from None


def _state(path: Path, content: Any) -> dict[str, Tensor]:
    """The tensors of what `torch.save` wrote: a state dict, alone or beside other things of a training."""
    while isinstance(content, Mapping) and not any(isinstance(value, Tensor) for value in content.values()):
        inner = next((content[key] for key in _INNER if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            shown = ", ".join(repr(key) for key in list(content)[:8])
            raise UserError(
                f"{path}: holds no tensors by name, but {shown or 'nothing'}; "
                'save the tensors alone: torch.save(network.state_dict(), "weights.pth")'
            )
        content = inner
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: holds a {type(content).__name__}; weights are a state dict, tensors by name")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise UserError(f"{path}: {key!r} is a {type(value).__name__}; a state dict holds tensors by name")
    return dict(content)


def _renamed(path: Path, state: Mapping[str, Tensor], own: Iterable[str]) -> dict[str, Tensor]:
    """The tensors under the network's names, those that have none there under the file's."""
    bare: dict[str, str] = {}
    for key in own:
        bare[_bare(key)] = key
    known, found = set(bare.values()), dict[str, Tensor]()
    for key, value in state.items():
        owner, _, rest = _bare(key).partition(".")
        name = key if key in known else bare.get(_bare(key))
        if name is None and owner in _OWNERS:
            name = bare.get(rest)
        name = name or key
        if name in found:
            raise UserError(f"{path}: {name!r} is there twice, once with a prefix; which is right is not known")
        found[name] = value
    return found


def _bare(key: str) -> str:
    """A tensor's name without what wrappers put into it."""
    return ".".join(part for part in key.split(".") if part not in _WRAPPERS)


def _share_tied(path: Path, state: dict[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Give a tensor that the network has under several names to all of them, where the file has it under some.

    Raises `UserError` where it has different ones under them: only one could be loaded.
    """
    names: dict[tuple[Any, ...], list[str]] = {}
    for key, value in own.items():
        if value.numel():
            names.setdefault((value.data_ptr(), value.shape, value.stride(), value.dtype), []).append(key)
    for tied in names.values():
        stored = [key for key in tied if key in state]
        for key in stored[1:]:
            if not torch.equal(state[key], state[stored[0]]):
                raise UserError(
                    f"{path}: {stored[0]!r} and {key!r} differ, but are one tensor in the network; "
                    "is it of another network?"
                )
        for key in tied:
            if stored:
                state.setdefault(key, state[stored[0]])


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _checksum(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of the names, types, shapes and bytes of tensors."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name]
        digest.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype};".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
