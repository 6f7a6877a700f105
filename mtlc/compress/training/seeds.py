"""Makes the generators of random numbers of a training: each follows from the seed, its purpose and the step."""

from __future__ import annotations

import hashlib

import torch


def step_seed(seed: int, purpose: str, index: int) -> int:
    """The seed of what is drawn for `purpose` at step or epoch `index`, of 56 bits."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{index}".encode()).digest()
    return int.from_bytes(digest[:7], "little")


def seeded(seed: int, purpose: str, index: int) -> torch.Generator:
    """A generator whose numbers follow from a training's seed, what they are for and the step."""
    return torch.Generator().manual_seed(step_seed(seed, purpose, index))
