"""Reads and writes what is found with the engine's Verilog: exported experts, their run, and what synthesis counts."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mtlc.results.base import Result
from mtlc.results.fpga import BoardShare


class EngineShape(Result):
    """The shape of the engine that experts were written for."""

    rows: int
    """Rows of the array: places of a row tile, features of a token word."""
    columns: int
    """Columns of the array: outputs of a column tile, bytes of a beat."""
    k_max: int
    """The longest sum, in products."""
    token_bytes: int
    """Size of the token memory, in bytes."""
    places: int
    """Places of all queues of one run."""


class ExportedFile(Result):
    """A file of the folder."""

    bytes: int
    """Its size, in bytes."""
    sha256: str
    """SHA-256 of its content, in hexadecimal."""


class ExportedLayerSummary(Result):
    """A layer of experts that was exported."""

    layer: str
    """Path of the layer in the network."""
    experts: int
    """Experts with weights of their own."""
    routed: int
    """Experts that the router scores; merged and dropped ones have no weights of their own."""
    weights_bytes: int
    """Bytes of all its experts in the engine's stream, parameters included."""
    places: int
    """Places in the queues of the recorded frame."""
    signal_to_quantisation_noise_db: float | None
    """The layer's output on the recorded frame against the float layer's, in dB; None without tokens."""


class Int8Metric(Result):
    """A task's metric on the validation split, with float experts and with INT8 ones."""

    kind: Literal["measured"]
    """Both were measured."""
    name: str
    """Name of the metric."""
    unit: str
    """Its unit; empty where it has none."""
    higher_is_better: bool
    """Whether a larger value is a better one."""
    float_experts: float | None = Field(alias="float")
    """The metric with float experts, in `unit`."""
    int8_experts: float | None
    """The metric with the experts as the engine computes them, in `unit`."""
    samples: int
    """Validation samples."""


class FpgaExport(Result):
    """What `mtlc export --format fpga` prints with ``--json``."""

    format: Literal["fpga"]
    """The format that was written."""
    path: str
    """The folder."""
    task: str
    """The task whose experts they are."""
    array: list[int]
    """Rows and columns of the array."""
    engine: EngineShape
    """The engine that holds any frame of these layers."""
    bytes: int
    """All files together, in bytes."""
    files: dict[str, ExportedFile]
    """The files but ``layout.json``, by name."""
    calibration_samples: int
    """Samples that scales follow from."""
    floor_db: float
    """The least signal to quantisation noise that was asked of a layer, in dB."""
    layers: list[ExportedLayerSummary]
    """The layers, in the network's order."""
    metric: Int8Metric | None
    """What INT8 experts do to the task; None where it was not measured."""


class VerilogLayer(Result):
    """One layer's recorded frame on the Verilog and in numpy."""

    layer: str
    """Path of the layer in the network."""
    experts: int
    """Experts."""
    queues: list[int]
    """Tokens in each expert's queue."""
    verilog: bool
    """Whether every output of the Verilog is the expected one."""
    numpy: bool
    """Whether every output of the numpy reference is the expected one."""
    outputs_compared: int
    """INT8 values that were compared."""
    cycles: int
    """Cycles of both matrices, counted by the simulation of the Verilog."""
    closed_form: int
    """The same, worked out by `mtlc.hw.rtl.cycles`."""
    cycles_by_matrix: list[int]
    """Counted cycles of each matrix."""
    waited_for_weights: int
    """Of these cycles, those in which nothing could start because a tile was not there."""
    utilisation: float | None
    """MACs over what the array could do in these cycles; None without any."""
    signal_to_quantisation_noise_db: float | None
    """What the export measured against the float layer, in dB."""


class VerilogRun(Result):
    """What `mtlc fpga rtl` prints with ``--json``."""

    kind: Literal["simulated"]
    """The Verilog itself was simulated."""
    folder: str
    """The exported folder."""
    task: str
    """The task whose experts they are."""
    array: list[int]
    """Rows and columns of the array."""
    bytes_per_cycle: int | float | None
    """Limit of the weight port, in bytes a cycle; None for a beat in every cycle."""
    identical: bool
    """Whether every output is the expected one, on the Verilog and in numpy."""
    cycles: int
    """Cycles of all layers, counted."""
    closed_form: int
    """The same, worked out."""
    layers: list[VerilogLayer]
    """The layers that ran."""


class EngineResources(Result):
    """What synthesis counts, beside what the board has."""

    lut: BoardShare
    """Look-up tables, with those that are memory or shift registers."""
    ff: BoardShare
    """Flip-flops."""
    dsp: BoardShare
    """DSP slices."""
    bram36: BoardShare
    """Blocks of 36 Kib; a half counts 0.5."""
    uram: BoardShare
    """Blocks of 288 Kib."""

    def by_name(self) -> dict[str, BoardShare]:
        """The resources by their names in JSON."""
        return {"lut": self.lut, "ff": self.ff, "dsp": self.dsp, "bram36": self.bram36, "uram": self.uram}


class SynthesisResult(Result):
    """What `mtlc fpga synthesise` prints with ``--json``."""

    array: list[int]
    """Rows and columns of the array."""
    board: str
    """Title of the board."""
    version: str
    """The version of yosys."""
    seconds: float
    """How long it took, in seconds."""
    kind: Literal["synthesised"]
    """Mapped, not placed: no timing was closed."""
    dsp_instantiated: bool
    """Whether the Verilog names its DSP slices; otherwise yosys chose them."""
    resources: EngineResources
    """What is used of the board."""
    cells: dict[str, int]
    """yosys' own count, by type of cell."""
