"""Reads what other processes do on this machine while something is measured, and waits until they do little.

The load average counts this process as well, and minutes after it stopped. So the processor time of the whole machine
is read before and after, and what this process used is taken off. Where the system does not tell (no ``/proc/stat``)
the load average is all there is.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtlc.log import Log, silent

BUSY = 0.25
"""Share of the machine's cores that others use, from which on what is measured is in doubt."""
QUIET = 0.1
"""Share of the machine's cores that others use, up to which the machine is quiet."""
LIMIT_S = 300.0
"""How long `wait_quiet` waits at most, in s."""
_WINDOW_S = 1.0
_LEAST_S = 0.25  # the kernel counts in hundredths of a second
_IDLE = (3, 4)  # columns of /proc/stat: idle, and waiting for a disk
_COUNTED = 8  # after these come guests, whose time is in the first columns already


@dataclass(frozen=True)
class Reading:
    """At one moment: the clock, the processor time of the machine since it started (None where the system does not
    tell) and of this process, all in s; cores of the machine; the load average of the last minute.
    """

    clock: float
    busy: float | None
    own: float
    cores: int
    load: float | None

    def others(self, later: Reading) -> float | None:
        """Cores that other processes used until `later`, in the mean; None where the system does not tell."""
        passed = later.clock - self.clock
        if self.busy is None or later.busy is None or passed <= 0:
            return None
        used = (later.busy - self.busy) - (later.own - self.own)
        return min(max(used / passed, 0.0), float(self.cores))


def read_load() -> Reading:
    """What the machine does at this moment."""
    own = os.times()
    spent = own.user + own.system + own.children_user + own.children_system
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    try:
        text = Path("/proc/stat").read_text()
    except OSError:
        return Reading(time.monotonic(), None, spent, os.cpu_count() or 1, load)
    ticks = os.sysconf("SC_CLK_TCK")
    busy, cores = processor_time(text)
    return Reading(time.monotonic(), busy / ticks, spent, cores or os.cpu_count() or 1, load)


def processor_time(stat: str) -> tuple[int, int]:
    """The ticks that all cores were at work, stolen ones too, and the number of cores, from the text of
    ``/proc/stat``.
    """
    busy = cores = 0
    for line in stat.splitlines():
        name, *columns = line.split()
        if name == "cpu":
            busy = sum(int(value) for place, value in enumerate(columns[:_COUNTED]) if place not in _IDLE)
        elif name.startswith("cpu"):
            cores += 1
    return busy, cores


def load_since(
    before: Reading, read: Callable[[], Reading] = read_load, sleep: Callable[[float], None] = time.sleep
) -> dict[str, Any]:
    """``cores`` of the machine, ``others_cores`` that other processes used since `before`, and ``load_1min`` then.

    What took less than a quarter of a second is looked at for that long: the kernel counts in hundredths.
    """
    now = read()
    if now.busy is not None and now.clock - before.clock < _LEAST_S:
        sleep(_LEAST_S - (now.clock - before.clock))
        now = read()
    others = before.others(now)
    return {
        "load_1min": None if before.load is None else round(before.load, 2),
        "cores": before.cores,
        "others_cores": None if others is None else round(others, 2),
    }


def busy_why(load: dict[str, Any]) -> str | None:
    """Why what was measured under `load`, as `load_since` gives it, is in doubt, in a line; None if it is not."""
    cores, others, mean = load["cores"], load["others_cores"], load["load_1min"]
    if others is not None:
        return f"the machine was busy: other processes used {others:.1f} of {cores} cores" if _share(
            others, cores
        ) > BUSY else None  # fmt: skip
    if mean is not None and _share(mean, cores) > 2 * BUSY:
        return f"the machine was busy: a load of {mean:g} on {cores} cores before the start"
    return None


def wait_quiet(
    log: Log = silent,
    limit_s: float = LIMIT_S,
    read: Callable[[], Reading] = read_load,
    sleep: Callable[[float], None] = time.sleep,
) -> float:
    """Wait until other processes use at most a tenth of the cores for two seconds, and at most `limit_s`.

    Returns the seconds that were waited. What the system does not tell is not waited for.
    """
    start = before = read()
    if before.busy is None and before.load is None:
        log("not waiting for a quiet machine: this system does not tell its load")
        return 0.0
    quiet, told = 0, False
    while quiet < 2:
        if before.clock - start.clock >= limit_s:
            log(f"still busy after {limit_s:.0f} s: measuring all the same")
            break
        sleep(_WINDOW_S)
        now = read()
        others = before.others(now)
        used = (now.load or 0.0) if others is None else others
        quiet = quiet + 1 if _share(used, now.cores) <= QUIET else 0
        if not quiet and not told:
            log(f"waiting for a quiet machine: other processes use {used:.1f} of {now.cores} cores")
            told = True
        before = now
    return before.clock - start.clock


def _share(used: float, cores: int) -> float:
    return used / max(cores, 1)
