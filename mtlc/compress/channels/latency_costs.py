"""Predicts the milliseconds of a network with channels removed, from the latency table, without rebuilding it.

The kernels of the whole network are listed once. A kernel's sizes follow from the channels that remain: those of a
layer's outputs by what its unit loses, those of what it reads by following tensors from kernel to kernel, and inside an
attention or a layer of experts by the share of heads or hidden channels. So a question costs a look-up for every kernel
whose sizes changed. Predicted times are scaled so that the whole network costs what was measured of it: a machine that
is slower today than when the table was made is slower for all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from mtlc.compress.channels.unit import Unit
from mtlc.hw.latency_table.families import Family, placed
from mtlc.hw.latency_table.kernels import Kernel, Traced, trace_program
from mtlc.hw.latency_table.table import LatencyTable, open_table
from mtlc.log import Log, silent
from mtlc.program.program import Program
from mtlc.program.surgery import tensor_dimensions

LATENCY_TOLERANCE = 0.1
"""How far a measured latency may lie from the predicted one before it is said: the aim of the table's accuracy."""


@dataclass(frozen=True)
class Size:
    """A size that falls with the channels that units lose: `base` less `per` a removed channel of each unit."""

    base: float
    per: tuple[tuple[str, float], ...] = ()

    def at(self, removed: Mapping[str, int]) -> int:
        # Sizes are channels and elements, hence whole; the shares that fall with a channel may be fractions.
        return round(self.base - sum(each * removed.get(unit, 0) for unit, each in self.per))

    def times(self, factor: float) -> Size:
        return Size(self.base * factor, tuple((unit, each * factor) for unit, each in self.per))


@dataclass(frozen=True)
class _Sized:
    """A kernel with its sizes as functions of what units lose. `known` keeps the ms by what its units lost."""

    kernel: Kernel
    family: Family
    sizes: tuple[Size, ...]
    units: tuple[str, ...]
    runs: int
    known: dict[tuple[int, ...], float]


class LatencyCosts:
    """The ms of one program under removed channels; `measured_ms` is that of the program as it is, if it is known."""

    kind: Literal["latency"] = "latency"

    def __init__(
        self,
        program: Program,
        units: Mapping[str, Unit],
        traced: Traced,
        table: LatencyTable,
        measured_ms: float | None,
    ) -> None:
        self._table = table
        kernels = _Followed(program.module, units, table.block).sized(traced)
        # ms = scale · (launch · kernels + call · calls + inside · Σ ms of kernels measured alone). What no unit changes
        # is summed once, here; a question pays for the kernels whose sizes follow a unit.
        self._inside, launch, call = table.inside()
        self._fixed = launch * traced.kernel_runs + call * traced.calls
        self._fixed += self._inside * sum(k.runs * self._ms(k, {}) for k in kernels if not k.units)
        self._kernels = [kernel for kernel in kernels if kernel.units]
        self.scale = 1.0
        if measured_ms is not None:
            self.scale = measured_ms / self.cost({})

    def cost(self, removed: Mapping[str, Sequence[int]]) -> float:
        """The ms of one sample through all tasks, modelled from measured operators."""
        counts = {name: len(set(channels)) for name, channels in removed.items() if channels}
        changing = sum(kernel.runs * self._ms(kernel, counts) for kernel in self._kernels)
        return self.scale * (self._fixed + self._inside * changing)

    def keep(self) -> None:
        """Write what was measured for the questions so far into the machine's table."""
        self._table.save()

    def _ms(self, kernel: _Sized, removed: Mapping[str, int]) -> float:
        # How many channels go decides, not which: that is all a kernel's time depends on.
        lost = tuple(removed.get(unit, 0) for unit in kernel.units)
        if lost not in kernel.known:
            sizes = [size.at(removed) for size in kernel.sizes]
            kernel.known[lost] = self._table.at(kernel.kernel, kernel.family, sizes)
        return kernel.known[lost]


def latency_costs(
    program: Program,
    units: Mapping[str, Unit],
    measured_ms: float | None,
    log: Log = silent,
    threads: int = 1,
) -> LatencyCosts:
    """The costs of `program`, which takes `measured_ms` if that is known, on this machine: by its table, which keeps
    what it lacked.

    The times of all operators that a question may ask for are measured when it is asked, tens of milliseconds each.
    Raises what exporting the program raises.
    """
    return LatencyCosts(program, units, trace_program(program, threads), open_table(threads, log=log), measured_ms)


class _Followed:
    """Finds the sizes of kernels: `tensors` has the channels of every tensor that was written so far."""

    def __init__(self, module: nn.Module, units: Mapping[str, Unit], block: int) -> None:
        self._units, self._block = units, block
        self._outputs = _outputs(module, units)
        self._tensors: dict[str, Size] = {}

    def sized(self, traced: Traced) -> list[_Sized]:
        found = []
        for kernel, runs in zip(traced.kernels, traced.runs, strict=True):
            family, own = placed(kernel, self._block)
            sizes = self._sizes(kernel, family, own)
            units = tuple(sorted({unit for size in sizes for unit, _ in size.per}))
            found.append(_Sized(kernel, family, sizes, units, runs, {}))
        return found

    def _sizes(self, kernel: Kernel, family: Family, own: tuple[int, ...]) -> tuple[Size, ...]:
        """The kernel's sizes, `own` with nothing removed; and a note of the channels of what it writes.

        Every kernel takes the channels of what it reads from the note of the one before::

            conv1 --(a: 64 - u1)--> Relu --(b: 64 - u1)--> conv2 --(c: 128 - u2)-->
        """
        read = [self._tensors[name] for name in kernel.reads if name in self._tensors]
        shown = kernel.outputs[0].shape if kernel.outputs else ()
        # The tensor read whose channels show in the shape of what is written: beside a mask or a scale, the one that
        # matters. Kernels that only move data (transpose, reshape) carry it on.
        moved = next((size for size in read if size.per and any(self._fits(size, dim) for dim in shown)), None)
        given = moved or (read[0] if read else None)
        if family.form == "convolution":
            sizes, written = self._convolution(kernel, own, given)
        elif family.form == "grouped":
            sizes, written = _grouped(kernel, own, given)
        elif family.form == "product":
            sizes, written = self._product(kernel, own, given)
        elif family.form == "elements":
            sizes, written = self._elements(kernel, own, given, read)
        else:
            sizes, written = self._along_channels(kernel, own, given, read)
        if not written.per and moved is not None and family.form in ("channels", "elements"):
            written = moved  # the channels went to another axis
        for name in kernel.writes:
            self._tensors[name] = written
        return tuple(sizes)

    def _convolution(self, kernel: Kernel, own: tuple[int, ...], given: Size | None) -> tuple[list[Size], Size]:
        sizes = [self._fit(given, own[0]), self._fit(self._outputs.get(kernel.layer), own[1])]
        return sizes, sizes[1]

    def _product(self, kernel: Kernel, own: tuple[int, ...], given: Size | None) -> tuple[list[Size], Size]:
        """A matrix product. What experts make falls with their hidden channels, unless that is what they read."""
        # The last two sizes are the inner dimension and the columns: (…, K) × (K, N).
        into, out = self._fit(given, own[-2]), self._fit(self._outputs.get(kernel.layer), own[-1])
        inside = self._inside(kernel.layer)
        # fc1 makes the hidden channels, fc2 reads them. Experts have no layer of their own in `_outputs`, so which of
        # the two this is shows in whether it already reads the unit's channels.
        if inside is not None and inside.kind == "experts" and inside.name not in dict(into.per):
            out = _share(inside, own[-1]) if own[-1] % inside.channels == 0 else out
        return [*(Size(size) for size in own[:-2]), into, out], out

    def _elements(
        self, kernel: Kernel, own: tuple[int, ...], given: Size | None, read: Sequence[Size]
    ) -> tuple[list[Size], Size]:
        """A kernel whose first size is its number of elements, which falls as the channels among them do."""
        inside = self._inside(kernel.layer)
        last = Size(own[0])
        if inside is not None:
            last = _share(inside, own[0])
        elif given is not None and given.per:
            last = given.times(own[0] / given.base)
        channels = _channels(kernel)
        joined = kernel.name == "Concat" and channels == sum(size.base for size in read)
        written = _sum(read) if joined else self._fit(given, channels)
        return [*(Size(size) for size in own[:-1]), last], written

    def _along_channels(
        self, kernel: Kernel, own: tuple[int, ...], given: Size | None, read: Sequence[Size]
    ) -> tuple[list[Size], Size]:
        """A kernel whose last size is its channels. A Concat has those of all that it reads."""
        inside = self._inside(kernel.layer)
        last = self._fit(given, own[-1])
        if kernel.name == "Concat" and sum(size.base for size in read) == own[-1]:
            last = _sum(read)
        elif not last.per and inside is not None and own[-1] % inside.channels == 0:
            last = _share(inside, own[-1])
        return [*(Size(size) for size in own[:-1]), last], last

    def _fit(self, size: Size | None, own: int) -> Size:
        """`size` if it is what the kernel has, padding to whole blocks allowed; else what the kernel has, fixed."""
        return size if size is not None and self._fits(size, own) else Size(own)

    def _fits(self, size: Size, own: int) -> bool:
        # Layouts in blocks pad channels to whole blocks, so a kernel may show more channels than the layer has.
        return own in (size.base, -(-size.base // self._block) * self._block)

    def _inside(self, layer: str) -> Unit | None:
        """The attention or layer of experts that a kernel belongs to."""
        for name, unit in self._units.items():
            if unit.kind in ("heads", "experts") and (layer == name or layer.startswith(f"{name}.")):
                return unit
        return None


def _grouped(kernel: Kernel, own: tuple[int, ...], given: Size | None) -> tuple[list[Size], Size]:
    """A grouped convolution loses whole groups, so that what it reads and what it makes fall in one proportion."""
    if given is None:
        sizes = [Size(size) for size in own]
        return sizes, sizes[0]
    return [given.times(own[0] / given.base)], given.times(kernel.outputs[0].shape[1] / given.base)


def _outputs(module: nn.Module, units: Mapping[str, Unit]) -> dict[str, Size]:
    """By layer, its output channels."""
    found: dict[str, Size] = {}
    for unit in units.values():
        for member in unit.members:
            if member.side == "in" or member.side.startswith("dim"):
                continue
            layer = module.get_submodule(member.layer)
            weight = getattr(layer, "weight", None)
            if weight is None:
                continue
            each = sum(len(indices) for indices in member.indices) / unit.channels
            rows, _ = tensor_dimensions(layer, weight)
            # A layer may make channels of several units: it loses those of each.
            known = found.get(member.layer, Size(weight.shape[rows]))
            found[member.layer] = Size(known.base, (*known.per, (unit.name, each)))
    return found


def _share(unit: Unit, size: int) -> Size:
    return Size(size, ((unit.name, size / unit.channels),))


def _sum(sizes: Sequence[Size]) -> Size:
    per: dict[str, float] = {}
    for size in sizes:
        for unit, each in size.per:
            per[unit] = per.get(unit, 0.0) + each
    return Size(sum(size.base for size in sizes), tuple(per.items()))


def _channels(kernel: Kernel) -> int:
    shape = kernel.outputs[0].shape if kernel.outputs else ()
    if not shape:
        return 1
    return shape[1] if len(shape) == 4 else shape[-1]
