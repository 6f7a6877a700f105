"""Exports a network's experts for the engine: calibrates, quantises, records a frame, compares with float, writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mtlc.errors import UserError, VerificationError, nearest
from mtlc.hw.rtl.engine import engine_for
from mtlc.hw.rtl.expert_calls import Calls, expert_calls, expert_layers
from mtlc.hw.rtl.layout import ExportedLayer, Frame, write_layout
from mtlc.hw.rtl.quantise import QuantisedExperts, gelu, quantised_experts, queues_of, weighted_sum

if TYPE_CHECKING:
    from torch import Tensor

    from mtlc.moe.layers import MoeLayer
    from mtlc.program.program import Program

FLOOR_DB = 20.0
"""The least ratio of signal to quantisation noise at which a layer is exported."""


def quantised_layers(
    program: Program,
    task: str,
    calibration: Mapping[str, Tensor],
    frame: Mapping[str, Tensor],
    layers: Sequence[str] = (),
) -> list[ExportedLayer]:
    """The experts of `layers` (all, if none is named) in INT8, with the routing that `task` has.

    Scales follow from the tokens of the batch `calibration`; `frame`, a batch of one, is what is recorded, and its
    float outputs are what ``snr_db`` compares with. Raises `UserError` for a network without experts of mtlc's, an
    unknown layer, and a layer that cannot be quantised.
    """
    known = {layer.path: layer for layer in expert_layers(program)}
    for name in layers:
        if name not in known:
            raise UserError(f"--layer: the network has no layer of experts {name!r}{nearest(name, known)}")
    seen, recorded = expert_calls(program, calibration, task), expert_calls(program, frame, task)
    found = []
    for path, layer in known.items():
        if layers and path not in layers:
            continue
        try:
            found.append(_quantised(layer, seen[path], recorded[path]))
        except UserError as error:
            raise UserError(f"layer {path!r}: {error}") from None
    return found


def export_experts(
    folder: Path, task: str, layers: Sequence[ExportedLayer], array: tuple[int, int], floor_db: float,
    provenance: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Write `layers` for an engine of `array` (rows, columns) whose memories hold any frame of them.

    Returns the layout. Raises `VerificationError` naming the layer whose INT8 outputs are less than `floor_db` above
    their quantisation noise: nothing is written then.
    """
    for layer in layers:
        if layer.snr_db is not None and not layer.snr_db >= floor_db:
            raise VerificationError(
                f"layer {layer.path!r}: INT8 experts are {layer.snr_db:.1f} dB above their quantisation noise, less "
                f"than the {floor_db:g} dB asked for: calibrate on more samples (--samples) or lower --floor-db"
            )
    shapes = [
        (len(layer.frame.tokens), layer.top_k, one.inputs, one.outputs)
        for layer in layers
        for one in layer.experts.first[:1]
    ]
    return write_layout(folder, task, engine_for(*array, shapes), layers, provenance)


def _quantised(layer: MoeLayer, seen: Calls, recorded: Calls) -> ExportedLayer:
    inner: Any = layer.inner
    w1, b1, w2, b2 = (
        part.detach().float().numpy() for fc in (inner.fc1, inner.fc2) for part in (fc.weight, fc.bias)
    )  # fmt: skip
    weights = (w1, b1, w2, b2)
    experts = quantised_experts(weights, seen.x, queues_of(seen.rows, layer.rows))
    queues = queues_of(recorded.rows, layer.rows)
    tokens = experts.tokens(recorded.x)
    hidden, outputs = experts.run(tokens, queues)
    exact = [
        gelu(recorded.x[queue] @ w1[e].T + b1[e]) @ w2[e].T + b2[e] for e, queue in enumerate(queues)
    ]  # fmt: skip
    return ExportedLayer(
        layer.path, experts, tuple(layer.position.tolist()), layer.top_k,
        Frame(tokens, tuple(queues), tuple(hidden), tuple(outputs)),
        _snr_db(experts, recorded, queues, outputs, exact),
    )  # fmt: skip


def _snr_db(
    experts: QuantisedExperts, calls: Calls, queues: Sequence[NDArray[np.intp]], outputs: Sequence[NDArray[Any]],
    exact: Sequence[NDArray[Any]],
) -> float | None:  # fmt: skip
    """Power of the layer's output, weighted by the router's scores, over INT8's error, in dB; None without tokens."""
    width = calls.x.shape[1]
    real = [one * experts.scales.outputs for one in outputs]
    right, made = (weighted_sum(side, queues, calls.rows, calls.score, width) for side in (exact, real))
    power, noise = float((right**2).sum()), float(((made - right) ** 2).sum())
    if not power or not noise:
        return None
    return float(10 * np.log10(power / noise))
