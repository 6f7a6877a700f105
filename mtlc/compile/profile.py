"""``mtlc profile``: the latency of bundles on this machine. Needs the base install, and onnx for times by layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtlc.errors import UserError
from mtlc.hw.measure import measure
from mtlc.runtime import Manifest, open_bundle


def profile(
    bundle: Path,
    against: Path | None = None,
    *,
    tasks: Sequence[str] = (),
    batch: int = 1,
    rounds: int = 50,
    threads: int = 1,
    layers: bool = False,
    configuration: str | None = None,
) -> dict[str, Any]:
    """What `mtlc.hw.measure.measure` finds for the bundles by their paths, on random inputs, in ms.

    With `against`, both are measured in turns, and ``speedup`` says how much faster than `against` the bundle is. With
    `layers`, ``layers`` is the time by layer of `bundle`. `configuration` is what `bundle` runs in, if not its default.
    """
    bundles = [against, bundle] if against is not None else [bundle]
    if against is not None and Path(against).resolve() == Path(bundle).resolve():
        raise UserError(f"--against {against}: is the same bundle")
    inputs = None
    for path in bundles:
        with open_bundle(path) as opened:
            made = _inputs(opened.manifest, batch)
        if inputs is not None and {n: a.shape for n, a in made.items()} != {n: a.shape for n, a in inputs.items()}:
            raise UserError(f"{path}: takes other inputs than {bundles[0]}: their times do not compare")
        inputs = made
    assert inputs is not None
    if layers and configuration is not None:
        raise UserError("--layers: times by layer are those of the default configuration; leave out --configuration")
    wanted = tuple(tasks) or None
    configured = {} if configuration is None else {str(bundle): configuration}
    result = measure({str(path): path for path in bundles}, inputs, wanted, threads, rounds, configurations=configured)
    if layers:
        from mtlc.hw.layer_profile import profile_layers

        result["layers"] = profile_layers(bundle, inputs, threads, wanted)["layers"]
    return result


def _inputs(manifest: Manifest, batch: int) -> dict[str, np.ndarray]:
    """Random arrays of the shapes that the bundle takes; its free dimension is the batch."""
    generator, made = np.random.default_rng(0), {}
    for tensor in manifest.inputs:
        shape = tuple(size if isinstance(size, int) else batch for size in tensor.shape)
        if np.issubdtype(tensor.dtype, np.floating):
            made[tensor.name] = generator.standard_normal(shape).astype(tensor.dtype)
        else:  # an index or a mask: zero is valid for any
            made[tensor.name] = np.zeros(shape, tensor.dtype)
    return made
