"""Writes experts as files that a board is fed with: weights in the order of the engine's stream, descriptors, queues.

``layout.json`` says what is where; docs/export.md describes every file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtlc.errors import UserError
from mtlc.files import atomic_folder
from mtlc.hw.rtl.engine import PARAMETER_BEATS, Engine, Work, pack, tile_beats
from mtlc.hw.rtl.quantise import QuantisedExperts
from mtlc.hw.rtl.reference import Int8, QuantisedLinear

FORMAT, SCHEMA = "mtlc-fpga", 1
LAYOUT, HEADER = "layout.json", "mtlc_experts.h"
FILES = ("weights.bin", "descriptors.bin", "queues.bin", "tokens.bin", "hidden.bin", "outputs.bin")
DESCRIPTOR = np.dtype(
    [
        ("base", "<u4"), ("queue", "<u4"), ("count", "<u4"), ("expert", "<u2"), ("k", "<u2"), ("words", "<u2"),
        ("tiles", "<u2"),
    ]
)  # fmt: skip
"""A descriptor in memory, little-endian, 20 bytes: the engine's ports ``d_*``."""
_ORDER = ("expert", "base", "k", "words", "tiles", "queue", "count")
_LARGEST = 2**32 - 1


@dataclass(frozen=True)
class Frame:
    """One frame's work in a layer: `tokens` (T, D) INT8; for each expert its queue, fc1's outputs, fc2's outputs."""

    tokens: Int8
    queues: tuple[NDArray[np.intp], ...]
    hidden: tuple[Int8, ...]
    outputs: tuple[Int8, ...]

    @property
    def places(self) -> tuple[NDArray[np.intp], ...]:
        """The queues of the second matrix: the first one's outputs in their order."""
        ends = np.cumsum([0, *map(len, self.queues)])
        return tuple(np.arange(a, b) for a, b in pairwise(ends.tolist()))


@dataclass(frozen=True)
class ExportedLayer:
    """A layer of experts: `row` gives for each expert of the router the one here, −1 for none; `snr_db` is INT8 against
    float.
    """

    path: str
    experts: QuantisedExperts
    row: tuple[int, ...]
    top_k: int
    frame: Frame
    snr_db: float | None

    def matrices(self) -> tuple[tuple[QuantisedLinear, ...], tuple[QuantisedLinear, ...]]:
        return self.experts.first, self.experts.second

    def work(self, engine: Engine) -> tuple[Work, Work]:
        """What the engine is given for both matrices of the frame."""
        activated = self.experts.activation[_joined(self.frame.hidden).astype(np.int64) + 128]
        return (
            pack(engine, self.frame.tokens, self.frame.queues, self.experts.first),
            pack(engine, activated, self.frame.places, self.experts.second),
        )


def check_folder(folder: Path) -> None:
    """Refuse to replace what is not an exported folder. Raises `UserError`."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / LAYOUT).is_file():
        raise UserError(f"{folder}: is a folder with other files in it; choose a new or empty one")


def write_layout(
    folder: Path, task: str, engine: Engine, layers: Sequence[ExportedLayer], provenance: Mapping[str, Any]
) -> dict[str, Any]:
    """Write the folder, atomically. Returns what ``layout.json`` holds.

    Raises `UserError` for a layer that the engine cannot hold, and for a folder that cannot be written or holds other
    files.
    """
    from mtlc.hw.rtl.c_header import c_header

    check_folder(folder)
    # All is put together in memory first: a layer that the engine cannot hold leaves no file behind.
    data: dict[str, bytearray] = {name: bytearray() for name in FILES}
    entries = []
    for layer in layers:
        try:
            works = layer.work(engine)
        except UserError as error:
            raise UserError(f"layer {layer.path!r}: {error}") from None
        entries.append(_layer(engine, layer, works, data))
    if max(map(len, data.values())) > _LARGEST:
        raise UserError(
            "the experts are more than 4 GiB, which the header's offsets cannot say: name fewer with --layer"
        )
    layout: dict[str, Any] = {
        "format": FORMAT, "schema": SCHEMA, "task": task, "engine": asdict(engine),
        "descriptor": {
            "bytes": DESCRIPTOR.itemsize,
            "fields": {
                name: {"offset": offset, "type": dtype.str}
                for name, (dtype, offset, *_) in (DESCRIPTOR.fields or {}).items()
            },
        },
        "tile": {"columns": engine.columns, "parameter_beats": PARAMETER_BEATS,
                 "parameters": ["bias (4, little-endian)", "multiplier (2, little-endian)", "shift - 1"]},
        "layers": entries, "provenance": dict(provenance),
    }  # fmt: skip
    with atomic_folder(folder) as temporary:
        for name, content in data.items():
            (temporary / name).write_bytes(content)
        (temporary / HEADER).write_text(c_header(layout), encoding="utf-8")
        # Last, when all other files are there: it holds their digests, and is not among them.
        layout["files"] = {
            path.name: {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
            for path in sorted(temporary.iterdir())
        }
        (temporary / LAYOUT).write_text(json.dumps(layout, indent=1) + "\n", encoding="utf-8")
    return layout


def _layer(
    engine: Engine, layer: ExportedLayer, works: tuple[Work, Work], data: dict[str, bytearray]
) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "path": layer.path, "experts": len(layer.experts.first), "row": list(layer.row), "top_k": layer.top_k,
        "scales": asdict(layer.experts.scales), "gelu": layer.experts.activation.tolist(), "matrices": {},
        "signal_to_quantisation_noise_db": layer.snr_db,
    }  # fmt: skip
    frame = layer.frame
    vectors = {"tokens": frame.tokens, "hidden": _joined(frame.hidden), "outputs": _joined(frame.outputs)}
    entry["frame"] = {
        name: {"offset": _append(data[f"{name}.bin"], array), "shape": list(array.shape)}
        for name, array in vectors.items()
    }
    entry["frame"]["queues"] = [len(queue) for queue in frame.queues]
    for name, matrices, work in zip(("fc1", "fc2"), layer.matrices(), works, strict=True):
        one = matrices[0]
        beats = [tile_beats(engine, m, tile) for m in matrices for tile in range(-(-m.outputs // engine.columns))]
        descriptors = np.zeros(len(work.descriptors), DESCRIPTOR)
        for column, field in enumerate(_ORDER):
            descriptors[field] = work.descriptors[:, column]
        # All experts, whatever the recorded frame's routing: each takes `expert_bytes`, so the host finds any by its
        # number.
        whole = np.concatenate(beats)
        entry["matrices"][name] = {
            "outputs": one.outputs, "inputs": one.inputs, "words": engine.words(one.inputs),
            "tiles": -(-one.outputs // engine.columns), "offset": _append(data["weights.bin"], whole),
            "expert_bytes": whole.size // len(matrices),
            "descriptors": {"offset": _append(data["descriptors.bin"], descriptors), "count": len(descriptors)},
            "queue": {"offset": _append(data["queues.bin"], work.queue.astype("<u2")), "places": len(work.queue)},
        }  # fmt: skip
    return entry


def _append(file: bytearray, array: NDArray[Any]) -> int:
    offset = len(file)
    file += np.ascontiguousarray(array).tobytes()
    return offset


def _joined(parts: Sequence[Int8]) -> Int8:
    return np.concatenate(parts)
