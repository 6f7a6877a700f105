"""Lays out the report's section on samples: predictions before and after beside the ground truth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mtlc.errors import UserError

PICTURE_BYTES = 1_300_000
"""Most that all pictures take together, in bytes: the page stays under 2 MB."""

Pictures = Mapping[str, np.ndarray]
"""``image`` and ``truth_<task>``, ``before_<task>``, ``after_<task>``, each (K, H, W, 3) uint8."""


def check_pictures(pictures: Pictures) -> None:
    """Raise `UserError` for a picture of another shape or type."""
    for name, stack in pictures.items():
        if not isinstance(stack, np.ndarray) or stack.dtype != np.uint8 or stack.ndim != 4 or stack.shape[-1] != 3:
            kind = f"{stack.dtype} {stack.shape}" if isinstance(stack, np.ndarray) else type(stack).__name__
            raise UserError(f"report: picture {name!r} is {kind}: give uint8 (K, H, W, 3)")


def samples_section(pictures: Pictures) -> list[dict[str, Any]]:
    """For each sample its input and, by task, the pictures as data URIs, scaled down to fit `PICTURE_BYTES`."""
    if not pictures:
        return []
    from mtlc.report.figures.svg import picture_uris

    uris = picture_uris(pictures, PICTURE_BYTES)
    roles = ("truth", "before", "after")
    tasks = dict.fromkeys(name.partition("_")[2] for name in uris if name.partition("_")[0] in roles)
    count = max((len(stack) for stack in uris.values()), default=0)

    def at(name: str, index: int) -> str | None:
        stack = uris.get(name, [])
        return stack[index] if index < len(stack) else None

    return [
        {
            "input": at("image", index),
            "tasks": [{"name": task, **{role: at(f"{role}_{task}", index) for role in roles}} for task in tasks],
        }
        for index in range(count)
    ]
