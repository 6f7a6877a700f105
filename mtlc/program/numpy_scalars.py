"""Lets checkpoints be read whose metrics are NumPy scalars, as many trainings write them, the official M³ViT code too.

Such a number is stored as calls of three functions: ``scalar(dtype(…), encode(…))``. To read a checkpoint safely means
to call nothing that the file names. So each of these names stands for a class of ours that does nothing: a dtype that a
file describes wrongly could crash NumPy. The metrics are not needed.
"""

from __future__ import annotations

from typing import Any


class NumpyScalar:
    """Stands where a file has a NumPy scalar, its dtype or its bytes. Whatever describes it is taken, and forgotten."""

    def __init__(self, *_description: Any) -> None:
        pass

    def __setstate__(self, _state: Any) -> None:
        pass


NUMPY_SCALARS = tuple(
    (NumpyScalar, name)
    for name in ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype", "_codecs.encode")
)
"""What stands for the globals of a NumPy scalar, under the names that NumPy 1 and NumPy 2 give them."""
