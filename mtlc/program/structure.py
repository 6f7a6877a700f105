"""Describes of which layers and sizes a network is, to tell whether a checkpoint's tensors belong to it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from mtlc.errors import UserError


def structure(module: nn.Module) -> dict[str, Any]:
    """JSON values: the class of a network, its number of parameters, and a hash of the types and sizes of its layers.

    Names of modules are left out: a class may have moved since.
    """
    digest = hashlib.sha256()
    for name, layer in module.named_modules():
        digest.update(f"{name}:{type(layer).__qualname__};".encode())
    for name, tensor in module.state_dict().items():
        digest.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype};".encode())
    count = sum(parameter.numel() for parameter in module.parameters())
    return {"class": type(module).__qualname__, "parameters": count, "structure": digest.hexdigest()}


def check_structure(folder: Path, recorded: Mapping[str, Any], module: nn.Module) -> None:
    """Raise `UserError` where `module` is not of the structure that the checkpoint in `folder` `recorded`."""
    now = structure(module)
    if recorded.get("structure") == now["structure"]:
        return
    was, told = (_words(one) for one in (recorded, now))
    raise UserError(
        f"{folder}: made of a {was}, but model is a {told} of other layers or sizes: "
        "give a network made as that one was, before anything was cut"
    )


def _words(described: Mapping[str, Any]) -> str:
    count = described.get("parameters")
    return f"{described.get('class')} with {count:,} parameters" if isinstance(count, int) else "network"
