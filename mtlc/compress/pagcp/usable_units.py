"""Tries the units of a network that has no exported graph: which it runs without, and whether zeros stand for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mtlc.compress.channels.slicing import inputs_of, sliced, untouched
from mtlc.compress.channels.unit import LeftAlone, Unit
from mtlc.errors import one_line
from mtlc.program.task_modules import TaskOutputs


def usable_units(
    module: TaskOutputs,
    units: Sequence[Unit],
    probe: tuple[Tensor, ...],
    zeroed: Callable[[str, Sequence[int]], Mapping[str, Tensor]],
) -> tuple[list[Unit], list[LeftAlone]]:
    """The units that the network still runs without some channels of, to outputs of the same shapes; and the others.

    Those for which zeroing does not give the numbers of the network without the channels are marked. `zeroed` gives
    the weights, by name in `module`, with channels of a unit zero.
    """
    network, by_name = module.network, {unit.name: unit for unit in units}
    with inputs_of(network, (m.layer for u in units if u.kind == "heads" for m in u.consumers)) as whole:
        reference = module(*probe)
    usable, left_alone = [], []
    for unit in units:
        # Every other channel, in steps that group norms allow: neither what goes nor what stays lies in one block, so
        # that indices which belong to other channels show in the numbers.
        gone = [c for c in range(unit.channels) if c // unit.multiple % 2 == 0]

        def leave(why: str, unit: Unit = unit) -> None:
            left_alone.append(LeftAlone(unit.name, unit.channels, why))

        try:
            with sliced(network, by_name, {unit.name: list(range(unit.multiple))}):
                module(*probe)  # a network that reshapes to fixed sizes may run at half the channels only
            projections = [m for m in unit.consumers if unit.kind == "heads"]
            watched = inputs_of(network, (m.layer for m in projections))
            with sliced(network, by_name, {unit.name: gone}), watched as left:
                outputs = module(*probe)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            leave(f"the network does not run without its channels ({one_line(error)})")
            continue
        if [o.shape for o in outputs] != [o.shape for o in reference]:
            leave("its channels reach an output")
            continue
        if not all(m.layer in left and untouched(m, gone, whole[m.layer], left[m.layer]) for m in projections):
            leave(
                "its other heads change with it: not laid out as (query, key, value; head; channel), "
                "or a random forward"
            )
            continue
        # What the graph of layers suggests is put to the test with the network's own numbers.
        agrees = unit.maskable and _same(
            torch.func.functional_call(module, dict(zeroed(unit.name, gone)), probe), outputs
        )
        usable.append(replace(unit, maskable=agrees))
    return usable, left_alone


def _same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> bool:
    return all(float((a - b).abs().max()) <= 1e-4 * float(b.abs().max()) for a, b in zip(found, expected, strict=True))
