"""Lists where a run's numbers come from: versions, and the machine that measured."""

from __future__ import annotations

import mtlc
from mtlc.results.run import RunResults

_MACHINE = ("cpu", "cores", "system", "machine", "load_1min")


def provenance(results: RunResults) -> list[tuple[str, str]]:
    """Each version and each fact of the machine, by name."""
    rows = list({"mtlc": mtlc.__version__, **results.versions}.items())
    if results.latency is not None:
        facts = ((key, getattr(results.latency.device, key)) for key in _MACHINE)
        rows += [(key, str(value)) for key, value in facts if value is not None]
    return rows
