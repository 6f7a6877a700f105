"""Lists where a run's numbers come from: versions, and the machine that measured."""

from __future__ import annotations

import mtlc
from mtlc.results.latency import Load, Machine
from mtlc.results.run import RunResults

_MACHINE = ("cpu", "cores", "system", "machine", "load_1min")


def provenance(results: RunResults) -> list[tuple[str, str]]:
    """Each version and each fact of the machine, by name."""
    rows = list({"mtlc": mtlc.__version__, **results.versions}.items())
    if results.latency is not None:
        rows += machine_facts(results.latency.device)
        rows += load_facts(results.latency.load)
    return rows


def machine_facts(machine: Machine) -> list[tuple[str, str]]:
    """What is known of the machine that measured, by name."""
    facts = ((key, getattr(machine, key)) for key in _MACHINE)
    return [(key, str(value)) for key, value in facts if value is not None]


def load_facts(load: Load | None) -> list[tuple[str, str]]:
    """What other processes did while it was measured, as far as that is known."""
    if load is None or load.others_cores is None:
        return []
    waited = "" if load.waited_s is None else f", after {load.waited_s:.0f} s of waiting for a quiet machine"
    return [("other processes", f"{load.others_cores:.2f} of {load.cores} cores{waited}")]
