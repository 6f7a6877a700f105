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
    from mtlc.hw.devices import local_device
    from mtlc.hw.measure import measure_program

    local_device(device)
    return measure_program(program, threads)
