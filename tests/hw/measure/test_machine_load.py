"""What other processes do meanwhile, from the kernel's counters, and the wait until they do little."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mtlc.hw.measure.machine_load import Reading, busy_why, load_since, processor_time, read_load, wait_quiet

STAT = """cpu  100 20 30 4000 500 6 7 8 90 9
cpu0 50 10 15 2000 250 3 4 4 45 5
cpu1 50 10 15 2000 250 3 3 4 45 4
intr 12345
ctxt 99
"""
START = Reading(clock=10.0, busy=100.0, own=40.0, cores=2, load=0.3)


def test_ticks_at_work_are_all_but_idle_and_guests() -> None:
    assert processor_time(STAT) == (100 + 20 + 30 + 6 + 7 + 8, 2)
    assert processor_time("") == (0, 0)


@pytest.mark.parametrize(
    ("busy", "own", "others"),
    [(104.0, 42.0, 1.0), (103.0, 43.0, 0.0), (102.9, 43.0, 0.0), (109.0, 40.0, 2.0), (None, 41.0, None)],
)
def test_others_are_what_this_process_did_not_use(busy: float | None, own: float, others: float | None) -> None:
    later = replace(START, clock=12.0, busy=busy, own=own)
    assert START.others(later) == others


def test_a_short_measurement_is_looked_at_for_a_quarter_of_a_second() -> None:
    readings = iter([replace(START, clock=10.1), replace(START, clock=10.25, busy=100.2)])
    slept: list[float] = []
    found = load_since(START, lambda: next(readings), slept.append)
    assert slept == [pytest.approx(0.15)]
    assert found == {"load_1min": 0.3, "cores": 2, "others_cores": 0.8}


@pytest.mark.parametrize(
    ("others", "mean", "why"),
    [
        (0.5, 9.0, None),
        (0.6, 0.0, "the machine was busy: other processes used 0.6 of 2 cores"),
        (None, 0.9, None),
        (None, 1.1, "the machine was busy: a load of 1.1 on 2 cores before the start"),
        (None, None, None),
    ],
)
def test_what_is_busy(others: float | None, mean: float | None, why: str | None) -> None:
    assert busy_why({"others_cores": others, "cores": 2, "load_1min": mean}) == why


class Machine:
    """A clock that only sleeping moves, and how many cores others use in each second."""

    def __init__(self, used: list[float], counted: bool = True, load: float | None = None) -> None:
        self.used, self.now, self.counted, self.load = used, 0.0, counted, load
        self.lines: list[str] = []

    def read(self) -> Reading:
        second = int(self.now)
        busy = sum(self.used[:second]) + max(0, second - len(self.used)) * self.used[-1]
        return Reading(self.now, busy if self.counted else None, 0.0, 2, self.load)

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def wait(self, limit: float = 300.0) -> float:
        return wait_quiet(self.lines.append, limit, self.read, self.sleep)


def test_two_quiet_seconds_one_after_the_other_are_waited_for() -> None:
    machine = Machine([1.9, 0.1, 1.0, 0.15, 0.1])
    assert machine.wait() == 5.0
    assert machine.lines == ["waiting for a quiet machine: other processes use 1.9 of 2 cores"]
    quiet = Machine([0.0])
    assert (quiet.wait(), quiet.lines) == (2.0, [])


def test_the_wait_has_an_end() -> None:
    machine = Machine([2.0])
    assert machine.wait(limit=10.0) == 10.0
    assert machine.lines[-1] == "still busy after 10 s: measuring all the same"


def test_a_system_that_does_not_tell_is_not_waited_for() -> None:
    machine = Machine([2.0], counted=False)
    assert machine.wait() == 0.0
    assert machine.lines == ["not waiting for a quiet machine: this system does not tell its load"]
    by_load = Machine([0.0], counted=False, load=0.1)
    assert by_load.wait() == 2.0


def test_this_machine_tells() -> None:
    first, second = read_load(), read_load()
    assert second.clock >= first.clock
    assert second.own >= first.own
    assert first.cores >= 1
    others = first.others(replace(second, clock=first.clock + 1))
    assert others is None or 0 <= others <= first.cores
