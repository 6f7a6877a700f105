"""Builds a network from an object that a Python caller gave, where a job names a factory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mtlc.errors import UserError, one_line
from mtlc.live_objects import LIVE, content_hash
from mtlc.program.plain_state import copied
from mtlc.program.program import ModelSource
from mtlc.program.structure import structure
from mtlc.program.usable_network import usable_network

NETWORK = f"{LIVE}:network"
"""What stands in a checkpoint where the factory's name would."""


@dataclass(frozen=True)
class LiveSource(ModelSource):
    """A source whose networks are copies of one object, as it was when it was given.

    `state` is a hash of what its layers hold besides tensors and other layers: settings in plain attributes, hooks.
    """

    module: nn.Module = field(default_factory=nn.Module, repr=False, compare=False)
    state: str = ""

    @classmethod
    def of(cls, model: Any) -> LiveSource:
        """The source of copies of `model`, an `nn.Module`, which stays as it is. Raises `UserError` naming `model`."""
        if not isinstance(model, nn.Module):
            usable_network(model, None)
        try:
            kept = copied(model)
        except Exception as error:
            raise UserError(f"model: cannot be copied: {one_line(error)}; leave out what its layers hold open") from (
                error
            )
        tried = usable_network(copied(kept), None)
        # Copies of half the size on a GPU are of no use here: what trains on a GPU moves them there.
        if any(tensor.device.type != "cpu" for tensor in tried.state_dict().values()):
            kept = kept.cpu()
        return cls(NETWORK, structure(tried), kept, _state(kept))

    def build(self) -> nn.Module:
        """A copy of the object as it was given."""
        return usable_network(copied(self.module), None)

    def identity(self) -> list[Any]:
        """The structure and what plain attributes hold; where the object was defined its code says."""
        return [self.factory, self.kwargs, self.state]

    def of_checkpoint(self, folder: Path, factory: str, kwargs: Mapping[str, Any]) -> ModelSource:
        """This source: whatever made the checkpoint's network, this object stands for it."""
        return self


def _state(module: nn.Module) -> str:
    ours = set(vars(nn.Module())) - {"_forward_hooks", "_forward_pre_hooks"}
    held = [
        (name, {key: value for key, value in vars(layer).items() if key not in ours})
        for name, layer in module.named_modules()
    ]
    outside = [
        (name, tensor) for name, tensor in module.named_buffers() if name not in module.state_dict(keep_vars=True)
    ]
    with torch.no_grad():
        return content_hash([held, outside])
