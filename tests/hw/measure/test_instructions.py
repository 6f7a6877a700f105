"""Counting what the processor did: on hardware with a counter, and the same calls on a clock elsewhere."""

from __future__ import annotations

import errno
import os
import platform
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from testkit.costed_networks import program, randomized
from torch import nn

from mtlc.errors import Unavailable
from mtlc.export.bundle.write_bundle import export_bundle
from mtlc.hw.measure import in_turns, instructions
from mtlc.hw.measure.instructions import INSTRUCTIONS, TASK_CLOCK, Counter, Reading, why_unavailable

WHY = why_unavailable()
needs_counter = pytest.mark.skipif(WHY is not None, reason=str(WHY))


def clock_refused() -> str | None:
    try:
        Counter(TASK_CLOCK).close()
    except Unavailable as error:
        return str(error)
    return None


needs_perf = pytest.mark.skipif(clock_refused() is not None, reason="this kernel gives no counter at all")


def spin(times: int) -> None:
    for _ in range(times):
        pass


def counted(counter: Counter, times: int) -> int:
    before = counter.read()
    spin(times)
    found = counter.read().since(before)
    assert found is not None
    return found


# ---- the kernel's interface, on an event that needs no hardware ------------------------------------------------------


@needs_perf
def test_it_counts_this_thread() -> None:
    with Counter(TASK_CLOCK) as counter:
        before, start = counter.read(), time.thread_time_ns()
        spin(1_000_000)
        found, expected = counter.read().since(before), time.thread_time_ns() - start
    assert found == pytest.approx(expected, rel=0.1)


@needs_perf
def test_it_counts_threads_that_ran_before_and_that_start_later() -> None:
    """Four threads of the same work, two of them there before the counter: all of it counts, and little else."""
    go, done = threading.Event(), []

    def work() -> None:
        go.wait()
        start = time.thread_time_ns()
        spin(1_000_000)
        done.append(time.thread_time_ns() - start)

    early = [threading.Thread(target=work) for _ in range(2)]
    for thread in early:
        thread.start()
    with Counter(TASK_CLOCK) as counter:
        before = counter.read()
        late = [threading.Thread(target=work) for _ in range(2)]
        for thread in late:
            thread.start()
        go.set()
        for thread in [*early, *late]:
            thread.join()
        found = counter.read().since(before)
    assert len(done) == 4
    assert sum(done) <= found < 1.3 * sum(done)


@needs_perf
def test_a_closed_counter_keeps_no_file() -> None:
    before = len(os.listdir("/proc/self/fd"))
    counter = Counter(TASK_CLOCK)
    assert len(os.listdir("/proc/self/fd")) > before
    counter.close()
    counter.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_counter_that_was_lent_out_gives_no_number() -> None:
    start = Reading(count=100, enabled_ns=1000, running_ns=1000)
    assert Reading(150, 1500, 1500).since(start) == 50
    assert Reading(150, 1500, 1400).since(start) is None


# ---- instructions ----------------------------------------------------------------------------------------------------


@needs_counter
def test_twice_the_loop_takes_twice_the_instructions() -> None:
    with Counter() as counter:
        counted(counter, 1000)
        one, two = counted(counter, 200_000), counted(counter, 400_000)
    assert one > 200_000
    assert two == pytest.approx(2 * one, rel=0.02)


@needs_counter
def test_runs_of_a_bundle_differ_by_less_than_a_half_percent(bundle: Path) -> None:
    found = in_turns.measure({"one": bundle}, X, rounds=20)["bundles"]["one"]
    assert found["instructions"]["median"] > 100_000
    assert found["instructions"]["spread"] < 0.005


# ---- what refuses ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.EACCES, "perf_event_paranoid is"),
        (errno.EPERM, "perf_event_paranoid is"),
        (errno.ENOENT, "the processor, or the virtual machine around it, has no such counter"),
        (errno.EMFILE, "perf_event_open says Too many open files"),
    ],
)
def test_the_reason_is_said(monkeypatch: pytest.MonkeyPatch, code: int, words: str) -> None:
    def refuse(*arguments: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(instructions, "_open", refuse)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert words in (why_unavailable() or "")


def test_another_processor_is_refused_without_a_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(Unavailable, match="riscv64"):
        Counter()


def test_a_counter_that_stands_still_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instructions, "_open", lambda *arguments: os.open("/dev/zero", os.O_RDONLY))
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    with pytest.raises(Unavailable, match="does not count"):
        Counter(INSTRUCTIONS)


# ---- in a measurement ------------------------------------------------------------------------------------------------

X = np.ones((1, 6), np.float32)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("counted") / "bundle"
    export_bundle(program(randomized(nn.Linear(6, 4)), torch.ones(2, 6)), path, samples={"input0": torch.rand(4, 6)})
    return path


class Scripted:
    """Counts 1000 more in each round than in the last; with `lent`, the kernel takes the counter in the second."""

    def __init__(self, lent: bool) -> None:
        self.lent, self.reads, self.count, self.enabled = lent, 0, 0, 0

    def read(self) -> Reading:
        self.reads += 1
        if self.reads % 2 == 0:
            self.count += 1000 * self.reads // 2
        self.enabled += 10
        return Reading(self.count, self.enabled, self.enabled - (5 if self.lent and self.reads >= 4 else 0))

    def __enter__(self) -> Scripted:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def test_counts_of_rounds_by_hand(monkeypatch: pytest.MonkeyPatch, bundle: Path) -> None:
    monkeypatch.setattr(in_turns, "Counter", lambda: Scripted(lent=False))
    found = in_turns.measure({"one": bundle}, X, rounds=5)
    # 1000, 2000, …, 5000
    expected = {"median": 3000.0, "p10": 1400.0, "p90": 4600.0, "spread": 3200 / 3000}
    assert found["bundles"]["one"]["instructions"] == pytest.approx(expected)
    assert found["instructions_why"] is None


def test_an_interrupted_count_is_none_and_says_so(monkeypatch: pytest.MonkeyPatch, bundle: Path) -> None:
    monkeypatch.setattr(in_turns, "Counter", lambda: Scripted(lent=True))
    found = in_turns.measure({"one": bundle}, X, rounds=5)
    assert found["bundles"]["one"]["instructions"] is None
    assert "multiplexed" in found["instructions_why"]


def test_without_a_counter_there_is_a_reason(monkeypatch: pytest.MonkeyPatch, bundle: Path) -> None:
    def none() -> Counter:
        raise Unavailable("no counter here")

    monkeypatch.setattr(in_turns, "Counter", none)
    found = in_turns.measure({"one": bundle}, X, rounds=2)
    assert found["bundles"]["one"]["instructions"] is None
    assert found["instructions_why"] == "no counter here"
    assert found["bundles"]["one"]["median_ms"] > 0
