"""Tells errors that say that memory ran out from others: what ran may be tried again in smaller parts."""

from __future__ import annotations

import torch


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or what it was made of, says that memory ran out, on a GPU or not."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            return True
        if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):  # torch's, of the main memory
            return True
        error = error.__cause__
    return False
