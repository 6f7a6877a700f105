"""Compares every program of a bundle in the backend that will run it with the same program in onnxruntime.

A backend that is compared with itself agrees, however wrong it is. onnxruntime is what the export compared with torch::

    inputs ──► program (onnxruntime) ──┬──► next program (onnxruntime) ──► …
                                       │
                                       └──► next program (backend)          compared, one by one
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mtlc.errors import VerificationError
from mtlc.runtime.bundle.open_bundle import open_bundle
from mtlc.runtime.random_inputs import random_inputs
from mtlc.runtime.session import ProgramRun, Session

Arrays = Mapping[str, np.ndarray]
FLOAT = "fp32"
TOLERANCE = 1e-4
"""What float32 may differ by: rounding, as a share of a tensor's largest value."""
ROUNDED = {"fp16": 0.02, "int8": 0.1}
"""In these precisions, what the root mean square of a difference may be as a share of the tensor's.

Kernels round in different places, so single values differ by much; a wrong operator differs everywhere. In INT8 the
networks of the tests differ by 0.006 to 0.022 between onnxruntime and OpenVINO.
"""
BATCHES = (1, 3)


def compare_programs(
    bundle: Path,
    backend: str,
    *,
    reference: Path | None = None,
    precision: str | None = None,
    samples: Sequence[Arrays] = (),
    tolerance: float = TOLERANCE,
) -> dict[str, float]:
    """Compare the programs of the bundle at `bundle` in `backend` with those of `reference` (None: the same bundle) in
    onnxruntime, in every configuration.

    `samples` are batches of inputs by name; without any they are random. `precision` is what the backend computes in;
    None asks the manifest. Returns by task the largest difference of any program on its way: in float32 of a value, as
    a share of the tensor's largest one, else of the root mean square.

    Samples of a float32 bundle in which rounding may have changed the routing
    (`mtlc.export.quantization.near_ties_in_bundle`) do not count, as long as fewer than half of all are such.

    Raises `VerificationError` naming the program and the tensor where they differ by more than `tolerance` or, in
    another precision, than `ROUNDED` says; `Unavailable` for a backend that is not here.
    """
    with ExitStack() as opened:
        trusted = opened.enter_context(Session(reference or bundle, threads=1))
        session = opened.enter_context(Session(bundle, backend, threads=1))
        manifest = session.manifest
        check = _Check(reference or bundle, session.backend, precision or manifest.precision(backend), tolerance)
        tasks = {program.name: program.tasks for program in manifest.programs}
        worst = dict.fromkeys(manifest.tasks, 0.0)
        for inputs in samples or [random_inputs(manifest, batch) for batch in BATCHES]:
            expected = trusted.run_each(dict(inputs))
            for one, two in zip(session.run_each(dict(inputs), expected), expected, strict=True):
                for name in two.outputs:
                    difference = check.difference(one, two, name, len(next(iter(inputs.values()))))
                    for task in tasks[two.program]:
                        worst[task] = max(worst[task], difference)
    return worst


@dataclass(frozen=True)
class _Check:
    """Compares tensors of programs of the bundle at `path` that `backend` made in `precision`."""

    path: Path
    backend: str
    precision: str
    tolerance: float

    def difference(self, one: ProgramRun, two: ProgramRun, name: str, samples: int) -> float:
        """How far the tensor `name` of the run `one` is from that of `two`, the reference.

        Raises `VerificationError` where it is too far.
        """
        found, expected = one.outputs[name], two.outputs[name]
        where = f"program {two.program!r}, tensor {name!r}"
        if found.shape != expected.shape or found.dtype != expected.dtype:
            raise VerificationError(
                f"{where}: {self.backend} gives {found.dtype} {found.shape}, "
                f"onnxruntime {expected.dtype} {expected.shape}"
            )
        allowed = self.tolerance if self.precision == FLOAT else ROUNDED[self.precision]
        value = self._measure(found, expected)
        if value > allowed and self.precision == FLOAT:
            found, expected = self._settled(two, found, expected, samples, allowed)
            value = self._measure(found, expected)
        if value > allowed:
            what = "the largest value" if self.precision == FLOAT else "the root mean square"
            raise VerificationError(
                f"{where}: {self.backend} differs from onnxruntime by {value:.1e} of {what} (allowed {allowed:.1e}): "
                f"{self.backend} computes an operator of this program otherwise; leave {self.backend} out, or write "
                "the layer with other operators"
            )
        return value

    def _measure(self, found: np.ndarray, expected: np.ndarray) -> float:
        """The difference where the reference is a number: random inputs may lie outside what the network is for."""
        numbers = np.isfinite(expected)
        one, two = found[numbers].astype(np.float64), expected[numbers].astype(np.float64)
        if not np.isfinite(one).all():
            return float("inf")
        if one.size == 0:
            return 0.0
        difference, scale = np.abs(one - two), np.abs(two)
        if self.precision != FLOAT:
            amount, size = float(np.sqrt(np.square(difference).mean())), float(np.sqrt(np.square(scale).mean()))
        else:
            amount, size = float(difference.max()), float(scale.max())
        return 0.0 if amount == 0 else amount / size if size > 0 else float("inf")

    def _settled(
        self, run: ProgramRun, found: np.ndarray, expected: np.ndarray, samples: int, allowed: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """The tensors without the samples that differ and whose routing rounding may have changed."""
        from mtlc.export.bundle.near_ties import NEAR_TIE
        from mtlc.export.quantization.near_ties_in_bundle import program_margins

        if not samples or expected.size % samples:
            return found, expected
        one, two = found.reshape(samples, -1), expected.reshape(samples, -1)
        with open_bundle(self.path) as opened:
            margins = program_margins(opened, run.program, run.inputs, samples)
        limit = allowed * np.abs(two, dtype=np.float64).max(initial=0)
        tied = (np.abs(one.astype(np.float64) - two).max(1) > limit) & (margins < NEAR_TIE)
        if samples > 1 and 2 * tied.sum() >= samples:  # a lone sample is among those of the next batch again
            return found, expected
        return one[~tied], two[~tied]
