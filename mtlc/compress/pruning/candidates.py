"""Proposes allocations: how much of every unit could go for a network to meet its cost.

What a cut costs before recovery does not say what it costs afterwards (`mtlc.compress.pruning.race` finds that out), so
the proposals differ in what they trust:

=================  ==================================================================================================
uniform            every unit loses the same share of its channels
pagcp              the sweep's: each unit as far as no task's loss grows by more than the tolerance
between            the geometric mean of both: a prior towards uniform widths, so no unit is cut to the bone
…, tilted          the same, with units narrower whose channels cost many MACs for their parameters
=================  ==================================================================================================

The tilt towards parameters has this reason: of two networks of the same MACs the one with more parameters can learn
more, and layers on large maps spend many MACs on few parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from mtlc.compress.channels.channel_costs import ChannelCosts
from mtlc.compress.pagcp.oracle import Oracle
from mtlc.compress.pagcp.sweep import Costs, Rules, Sweep, least_important, reach
from mtlc.compress.pruning.shaped_widths import shaped_widths
from mtlc.program.program import Program

_TILT = 0.25
"""Exponent of the MACs per parameter in a tilted shape: 16 times as many make a unit half as wide."""


@dataclass(frozen=True)
class Candidate:
    """An allocation by name: the channels that each unit keeps, and those that it loses."""

    name: str
    kept: dict[str, int]
    removed: dict[str, list[int]]


def propose(
    program: Program, oracle: Oracle, costs: Costs, rules: Rules, target: float
) -> tuple[list[Candidate], list[Sweep]]:
    """Different allocations that cost at most `target`, in a fixed order, and the sweeps that one of them is from.

    The oracle is left without removed channels. Allocations that turn out alike are proposed once. Where none costs so
    little, the sweeps' is proposed as far as it got.
    """
    sweeps = reach(oracle, costs, rules, target)
    from_sweep = swept(oracle)
    oracle.reset({})
    units = list(oracle.units.values())
    flat = dict.fromkeys(from_sweep.kept, 1.0)
    shapes: dict[str, Mapping[str, float]] = {"uniform": flat}
    tilt = _tilt(program, oracle, costs)
    found = []
    if costs.cost(from_sweep.removed) <= target:
        found.append(from_sweep)
        shapes["between"] = {u.name: math.sqrt(from_sweep.kept[u.name] / u.channels) for u in units}
    if tilt is not None:
        shapes |= {
            f"{name}, tilted": {u: share * tilt[u] for u, share in shape.items()} for name, shape in shapes.items()
        }
    for name, shape in shapes.items():
        candidate = shaped(name, oracle, costs, shape, rules, target)
        if candidate is not None and all(candidate.kept != other.kept for other in found):
            found.append(candidate)
    return found or [from_sweep], sweeps


def swept(oracle: Oracle) -> Candidate:
    """The allocation that sweeps have left in the oracle."""
    removed = {name: list(channels) for name, channels in oracle.removed.items() if channels}
    return Candidate(
        "pagcp", {u.name: u.channels - len(removed.get(u.name, ())) for u in oracle.units.values()}, removed
    )


def uniform(oracle: Oracle, costs: Costs, rules: Rules, target: float) -> list[Candidate]:
    """The allocation that cuts every unit by the same share, if it can meet the target."""
    candidate = shaped("uniform", oracle, costs, dict.fromkeys(oracle.units, 1.0), rules, target)
    return [] if candidate is None else [candidate]


def tilted(program: Program, oracle: Oracle, costs: Costs, rules: Rules, target: float) -> list[Candidate]:
    """The uniform allocation with the tilt towards parameters, if it can meet the target.

    Where nothing can be tilted, because the budget is in parameters or all layers are alike, it is the uniform one.
    """
    tilt = _tilt(program, oracle, costs)
    if tilt is None:
        return uniform(oracle, costs, rules, target)
    candidate = shaped("uniform, tilted", oracle, costs, tilt, rules, target)
    return [] if candidate is None else [candidate]


def shaped(
    name: str, oracle: Oracle, costs: Costs, shape: Mapping[str, float], rules: Rules, target: float
) -> Candidate | None:
    """The allocation of a shape (`shaped_widths`); what each unit loses follows the rules' order."""
    units = oracle.units.values()
    kept = shaped_widths(units, costs, shape, rules, target)
    if kept is None:
        return None
    removed = {u.name: least_important(oracle, u, kept[u.name], rules) for u in units}
    return Candidate(name, kept, {unit: channels for unit, channels in removed.items() if channels})


def _tilt(program: Program, oracle: Oracle, costs: Costs) -> dict[str, float] | None:
    """For every unit (MACs per parameter of a channel, against the mean)^-`_TILT`.

    None where all are alike, and where parameters are what there is too much of.
    """
    if costs.kind == "params":
        return None
    macs, parameters = (ChannelCosts(program, oracle.units, kind) for kind in ("macs", "params"))
    density = {}
    for name, unit in oracle.units.items():
        one = {name: list(range(unit.multiple))}
        saved = [costs.cost({}) - costs.cost(one) for costs in (macs, parameters)]
        density[name] = saved[0] / saved[1] if min(saved) > 0 else None
    known = [math.log(value) for value in density.values() if value is not None]
    if not known or max(known) - min(known) < 1e-6:
        return None
    mean = sum(known) / len(known)
    return {n: 1.0 if d is None else math.exp(-_TILT * (math.log(d) - mean)) for n, d in density.items()}
