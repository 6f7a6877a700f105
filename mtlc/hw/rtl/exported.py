"""Reads exported experts again and runs them: on the Verilog with the bytes that a board would get, and in numpy."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mtlc.errors import UserError
from mtlc.hw.rtl.cycles import cycles
from mtlc.hw.rtl.engine import PARAMETER_BEATS, Engine, Work, layer_of, token_words
from mtlc.hw.rtl.layout import DESCRIPTOR, FORMAT, LAYOUT, SCHEMA, ExportedLayer, Frame
from mtlc.hw.rtl.quantise import QuantisedExperts, Scales
from mtlc.hw.rtl.reference import Int8, QuantisedLinear
from mtlc.hw.rtl.verilator import Run, play
from mtlc.results.rtl import VerilogLayer


@dataclass(frozen=True)
class Exported:
    """A folder that `write_layout` wrote. `data` holds its binary files."""

    folder: Path
    layout: Mapping[str, Any]
    data: Mapping[str, bytes]
    engine: Engine

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(entry["path"] for entry in self.layout["layers"])

    def layer(self, index: int) -> ExportedLayer:
        """Layer number `index`, decoded from its beats."""
        entry = self.layout["layers"][index]
        matrices = [self._matrices(entry, name) for name in ("fc1", "fc2")]
        frame, lengths = entry["frame"], entry["frame"]["queues"]
        at = entry["matrices"]["fc1"]["queue"]
        places = np.frombuffer(self.data["queues.bin"], "<u2", at["places"], at["offset"]).astype(np.intp)
        ends = np.cumsum(lengths)[:-1]
        tokens, hidden, outputs = (self._vector(frame, name) for name in ("tokens", "hidden", "outputs"))
        return ExportedLayer(
            entry["path"],
            QuantisedExperts(matrices[0], matrices[1], np.array(entry["gelu"], np.int8), Scales(**entry["scales"])),
            tuple(entry["row"]), entry["top_k"],
            Frame(tokens, tuple(np.split(places, ends)), tuple(np.split(hidden, ends)), tuple(np.split(outputs, ends))),
            entry["signal_to_quantisation_noise_db"],
        )  # fmt: skip

    def work(self, index: int, name: str, tokens: Int8) -> Work:
        """What the engine is given for matrix `name` of the recorded frame: the files' bytes, and `tokens` (T, K)."""
        entry = self.layout["layers"][index]["matrices"][name]
        at = entry["descriptors"]
        stored = np.frombuffer(self.data["descriptors.bin"], DESCRIPTOR, at["count"], at["offset"])
        columns = [
            stored[field].astype(np.int64) for field in ("expert", "base", "k", "words", "tiles", "queue", "count")
        ]
        queue = np.frombuffer(self.data["queues.bin"], "<u2", entry["queue"]["places"], entry["queue"]["offset"])
        # The file has the beats of all experts, for any routing; this frame's stream skips those without tokens.
        beats = self._beats(entry, len(stored))[stored["count"] > 0]
        return Work(
            np.stack(columns, 1), token_words(self.engine, tokens), queue.astype(np.uint16),
            beats.reshape(-1, self.engine.columns),
        )  # fmt: skip

    def _beats(self, entry: Mapping[str, Any], experts: int) -> Any:
        """(experts, beats, columns) bytes."""
        size = experts * entry["expert_bytes"]
        whole = np.frombuffer(self.data["weights.bin"], np.uint8, size, entry["offset"])
        return whole.reshape(experts, entry["tiles"] * (entry["inputs"] + PARAMETER_BEATS), self.engine.columns)

    def _matrices(self, layer: Mapping[str, Any], name: str) -> tuple[QuantisedLinear, ...]:
        entry = layer["matrices"][name]
        return tuple(layer_of(self.engine, one, entry["outputs"]) for one in self._beats(entry, layer["experts"]))

    def _vector(self, frame: Mapping[str, Any], name: str) -> Int8:
        shape = frame[name]["shape"]
        return np.frombuffer(
            self.data[f"{name}.bin"], np.int8, int(np.prod(shape)), frame[name]["offset"]
        ).reshape(shape)  # fmt: skip


def read_exported(folder: Path) -> Exported:
    """Read an exported folder. Raises `UserError` for one that is none, of another schema, incomplete or altered."""
    try:
        layout = json.loads((folder / LAYOUT).read_text(encoding="utf-8"))
        if layout["format"] != FORMAT or layout["schema"] != SCHEMA:
            raise UserError(
                f"{folder}: {layout['format']} of schema {layout['schema']}; this mtlc reads {FORMAT}, {SCHEMA}"
            )
        data = {}
        for name, known in layout["files"].items():
            if Path(name).name != name:
                raise UserError(f"{folder / LAYOUT}: damaged: files names {name!r}")
            content = (folder / name).read_bytes()
            if hashlib.sha256(content).hexdigest() != known["sha256"]:
                raise UserError(f"{folder / name}: altered or damaged (another SHA-256): export again")
            data[name] = content
        found = Exported(folder, layout, data, Engine(**layout["engine"]))
        for index in range(len(layout["layers"])):
            found.layer(index)
        return found
    except FileNotFoundError as error:
        raise UserError(
            f"{error.filename}: no such file; give a folder that `mtlc export --format fpga` wrote"
        ) from None
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{folder / LAYOUT}: damaged ({type(error).__name__}: {error})") from None


def run_layer(
    exported: Exported, index: int, bytes_per_cycle: float | None = None, cache: Path | None = None
) -> VerilogLayer:
    """Run one layer's recorded frame on the Verilog and in numpy, and compare all outputs with what the export expects.

    `bytes_per_cycle` limits the weight port; `cache` holds the built simulation. Raises `Unavailable` without
    Verilator.
    """
    layer, engine = exported.layer(index), exported.engine
    frame, experts = layer.frame, layer.experts
    counts = [len(queue) for queue in frame.queues]
    runs: list[Run] = []
    tokens, expected = frame.tokens, (frame.hidden, frame.outputs)
    for name, matrices in zip(("fc1", "fc2"), layer.matrices(), strict=True):
        work = exported.work(index, name, tokens)
        runs.append(play(engine, work, [m.outputs for m in matrices], bytes_per_cycle=bytes_per_cycle, cache=cache))
        # The second run gets what the Verilog made, not what was expected: an error of the first shows in both.
        tokens = experts.activation[np.concatenate(runs[-1].outputs).astype(np.int64) + 128]
    forms = [
        cycles(engine, matrices[0].inputs, [m.outputs for m in matrices], counts, bytes_per_cycle)
        for matrices in layer.matrices()
    ]
    macs = sum(counts) * sum(matrices[0].weight.size for matrices in layer.matrices())
    counted = sum(run.cycles for run in runs)
    in_numpy = experts.run(frame.tokens, frame.queues)
    return VerilogLayer(
        layer=layer.path,
        experts=len(counts),
        queues=counts,
        verilog=all(_same(run.outputs, right) for run, right in zip(runs, expected, strict=True)),
        numpy=all(_same(ours, right) for ours, right in zip(in_numpy, expected, strict=True)),
        outputs_compared=sum(part.size for side in expected for part in side),
        cycles=counted,
        closed_form=sum(forms),
        cycles_by_matrix=[run.cycles for run in runs],
        waited_for_weights=sum(run.waited_for_weights for run in runs),
        utilisation=macs / (engine.rows * engine.columns * counted) if counted else None,
        signal_to_quantisation_noise_db=layer.snr_db,
    )


def _same(ours: Sequence[Int8], right: Sequence[Int8]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(ours, right, strict=True))
