"""What a network costs: workloads, devices, measurement and the report.

Every number that leaves this package carries its kind: ``"measured"`` (ran here), ``"simulated"`` (a cycle model) or
``"modelled"`` (worked out from counts and peak rates). None is ever shown as another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mtlc.program import Program


def latency_ms(program: Program, device: str = "local-cpu", threads: int = 1) -> float:
    """The latency of one sample on `device` in ms, all tasks: measured, on the one device there is to measure on.

    Raises `UserError` for a device that is unknown or not this machine.
    """
    from mtlc.errors import UserError
    from mtlc.hw.devices import device as find
    from mtlc.hw.measure import measure_program

    chosen = find(device)
    if not chosen.local:
        raise UserError(f"device = {device!r}: latency is measured, and only on this machine: use 'local-cpu'")
    return measure_program(program, threads)
