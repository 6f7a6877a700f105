"""Inputs for a bundle where no data are at hand."""

from __future__ import annotations

import numpy as np

from mtlc.runtime.bundle.manifest import Manifest


def random_inputs(manifest: Manifest, batch: int) -> dict[str, np.ndarray]:
    """Random arrays of the shapes that the bundle takes; its free dimension is the batch. The same every time."""
    generator, made = np.random.default_rng(0), {}
    for tensor in manifest.inputs:
        shape = tuple(size if isinstance(size, int) else batch for size in tensor.shape)
        if np.issubdtype(tensor.dtype, np.floating):
            made[tensor.name] = generator.standard_normal(shape).astype(tensor.dtype)
        else:  # an index or a mask: zero is valid for any
            made[tensor.name] = np.zeros(shape, tensor.dtype)
    return made
