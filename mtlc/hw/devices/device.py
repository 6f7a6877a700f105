"""Describes a device by figures, each with its unit, its source and how far it is to be trusted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from mtlc.hw.boards.reach import Reach
from mtlc.hw.devices.physical_units import base_unit, to_base

Kind = Literal["cpu", "gpu", "npu", "fpga"]
Precision = Literal["int8", "fp16", "bf16", "fp32"]
Structure = Literal["dense", "sparse", "unstated"]
"""What a peak rate counts: all products, or also those that structured sparsity skips; or the source does not say."""

KINDS: tuple[str, ...] = get_args(Kind)
PRECISIONS: tuple[str, ...] = get_args(Precision)
STRUCTURES: tuple[str, ...] = get_args(Structure)
CONFIDENCE = {
    "datasheet": "the vendor's data sheet, guide or manual",
    "vendor": "the vendor's web page or announcement",
    "measured": "measured on such a device",
    "derived": "worked out from other figures, as the source says",
    "secondary": "somebody else's word: press, shops, papers, forums",
    "unconfirmed": "seen somewhere, found in no document",
}
"""How far a figure is to be trusted: the words that a device file may use, and what each means."""


@dataclass(frozen=True)
class Figure:
    """One number of a device. `spread` is (p90 − p10) / median of a measured one."""

    value: float
    unit: str
    source: str
    confidence: str
    note: str | None = None
    spread: float | None = None

    @property
    def base(self) -> float:
        """The number in MAC/s, B/s, B, W, Hz, s or as a count."""
        return to_base(self.value, self.unit)

    def as_json(self) -> dict[str, Any]:
        """For ``--json``: as it is written, and in base units."""
        shown = {"value": self.value, "unit": self.unit, "base": self.base, "base_unit": base_unit(self.unit)}
        told = {"source": self.source, "confidence": self.confidence, "note": self.note, "spread": self.spread}
        return {**shown, **{key: value for key, value in told.items() if value is not None}}


@dataclass(frozen=True)
class Device:
    """A device by name. A `local` one is this machine: its costs are measured through `backend`, not modelled.

    `figures` are keyed as the tables of a device file are: ``"memory.bandwidth"``, ``"peak.int8.dense"``,
    ``"fpga.dsp"``, ``"threads.1.peak.fp32.dense"``. What no source is known for is not there. `origin` is the file that
    it was read from; `measured_on` says where and when its figures were measured. `roofline` is the class of devices
    whose fitted efficiencies hold for it (`mtlc.hw.devices.efficiencies`).
    """

    name: str
    title: str
    local: bool = False
    backend: str | None = None
    kind: str | None = None
    notes: str = ""
    figures: Mapping[str, Figure] = field(default_factory=dict, hash=False)
    measured_on: Mapping[str, Any] = field(default_factory=dict, hash=False)
    origin: str | None = field(default=None, compare=False)
    roofline: str | None = None
    reach: Reach | None = None
    """Where a board of this kind can be reached."""

    def value(self, key: str) -> float | None:
        """The figure `key` in base units (MAC/s, B/s, B, W, Hz, s, count), or None if it is not known."""
        figure = self.figures.get(key)
        return None if figure is None else figure.base

    def peak(self, precision: str, structure: str | None = None, threads: int | None = None) -> float | None:
        """The peak rate in MAC/s, or None if it is not known.

        Without `structure`: the dense rate, else one whose source does not say; never a sparse one, which holds for
        weights with structured zeros only. With `threads`, the rate that was measured with so many.
        """
        stem = f"peak.{precision}" if threads is None else f"threads.{threads}.peak.{precision}"
        rates = (self.value(f"{stem}.{name}") for name in ([structure] if structure else ("dense", "unstated")))
        return next((rate for rate in rates if rate is not None), None)

    def bandwidth(self, threads: int | None = None) -> float | None:
        """The memory bandwidth in B/s, or None; with `threads`, what was measured with so many."""
        return self.value("memory.bandwidth" if threads is None else f"threads.{threads}.bandwidth")

    @property
    def resources(self) -> dict[str, int]:
        """What an FPGA has: ``lut``, ``ff``, ``dsp``, ``bram36`` and ``uram``, as far as known."""
        return {
            key.removeprefix("fpga."): int(figure.value)
            for key, figure in self.figures.items()
            if key.startswith("fpga.")
        }

    def as_json(self) -> dict[str, Any]:
        """For ``--json``: everything."""
        return {
            "name": self.name,
            "title": self.title,
            "kind": self.kind,
            "local": self.local,
            "backend": self.backend,
            "roofline": self.roofline,
            "notes": self.notes,
            "origin": self.origin,
            "measured_on": dict(self.measured_on),
            **({} if self.reach is None else {"reach": asdict(self.reach)}),
            "figures": {key: figure.as_json() for key, figure in self.figures.items()},
        }
