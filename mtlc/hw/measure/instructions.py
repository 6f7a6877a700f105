"""Instructions retired by this process, counted by the processor: what a regression shows in when the clock is noisy.

The counter is Linux's, opened by ``perf_event_open(2)``. It counts user space only, which an unprivileged process may
see where ``kernel.perf_event_paranoid`` is 2 or less, in every thread of the process. Many virtual machines and
containers have none; then there is a reason instead of a number, and nothing is estimated.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from mtlc.errors import Unavailable

_SYSTEM_CALLS = {"x86_64": 298, "aarch64": 241}
_HARDWARE, _SOFTWARE = 0, 1
_READ_FORMAT = 0b11  # PERF_FORMAT_TOTAL_TIME_ENABLED, PERF_FORMAT_TOTAL_TIME_RUNNING
_INHERIT, _EXCLUDE_KERNEL, _EXCLUDE_HYPERVISOR = 1 << 1, 1 << 5, 1 << 6
_CLOSE_ON_EXEC = 1 << 3
_ATTRIBUTE = struct.Struct("=IIQQQQQ")  # type, size, config, period, sample type, read format, flags; the rest is zero
_ATTRIBUTE_BYTES = 112  # PERF_ATTR_SIZE_VER5
_READING = struct.Struct("=QQQ")  # count, ns enabled, ns running
_ATTEMPTS = 10
_PARANOID = Path("/proc/sys/kernel/perf_event_paranoid")
_SELF_TEST = 1000  # iterations; each takes more than one instruction


@dataclass(frozen=True)
class Event:
    """What to count: a type and a config of ``perf_event_attr``, and its name in messages."""

    kind: int
    config: int
    name: str


INSTRUCTIONS = Event(_HARDWARE, 1, "instructions retired")
TASK_CLOCK = Event(_SOFTWARE, 1, "ns of CPU time")
"""Counted by the kernel alone, so it is there without the hardware: the same calls, another event."""


@dataclass(frozen=True)
class Reading:
    """A counter's state: the count so far, and for how many ns, over all threads, it was enabled and was running."""

    count: int
    enabled_ns: int
    running_ns: int

    def since(self, earlier: Reading) -> int | None:
        """What was counted since `earlier`; None if the kernel lent the counter to somebody else meanwhile.

        A counter that ran a part of the time gives an estimate, which is no count.
        """
        if self.enabled_ns - earlier.enabled_ns != self.running_ns - earlier.running_ns:
            return None
        return self.count - earlier.count


class Counter:
    """Counts an event in all threads of this process, those that start later included, until it is closed.

    Raises `Unavailable` with the reason where the kernel has no such counter or does not give it to this process.
    """

    def __init__(self, event: Event = INSTRUCTIONS) -> None:
        self._event = event
        self._descriptors = _open_all(event)
        try:
            self._test()
        except BaseException:
            self.close()
            raise

    def read(self) -> Reading:
        """The sums over all threads."""
        readings = [_READING.unpack(os.read(descriptor, _READING.size)) for descriptor in self._descriptors]
        return Reading(*(sum(column) for column in zip(*readings, strict=True)))

    def close(self) -> None:
        """Give the counters back. May be called twice."""
        while self._descriptors:
            os.close(self._descriptors.pop())

    def __enter__(self) -> Counter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _test(self) -> None:
        """Some hypervisors accept a counter that stands still."""
        before = self.read()
        for _ in range(_SELF_TEST):
            pass
        after = self.read()
        if after.count - before.count < _SELF_TEST:
            raise Unavailable(f"{self._event.name} cannot be counted: the counter was opened but does not count")


def why_unavailable() -> str | None:
    """Why instructions cannot be counted here, in a line; None if they can."""
    try:
        Counter().close()
    except Unavailable as error:
        return str(error)
    return None


def _open_all(event: Event) -> list[int]:
    """A descriptor for each thread there is; a thread inherits the counter of the one that starts it."""
    number = _SYSTEM_CALLS.get(platform.machine())
    if sys.platform != "linux" or number is None:
        raise Unavailable(f"{event.name} cannot be counted on {platform.system()} {platform.machine()}")
    for _ in range(_ATTEMPTS):
        threads = _threads()
        opened: list[int] = []
        try:
            for thread in threads:
                opened.append(_open(number, event, thread))
        except ProcessLookupError:
            pass  # a thread ended between the list and the call
        except OSError as error:
            _close(opened)
            raise Unavailable(f"{event.name} cannot be counted: {_reason(error)}") from None
        # A thread that was started meanwhile, by one without a counter yet, would have none; one that inherited must
        # not get a second: only a list that stayed the same is taken.
        if len(opened) == len(threads) and _threads() == threads:
            return opened
        _close(opened)
    raise Unavailable(f"{event.name} cannot be counted: this process keeps starting threads")


def _open(number: int, event: Event, thread: int) -> int:
    attribute = ctypes.create_string_buffer(_ATTRIBUTE_BYTES)
    flags = _INHERIT | _EXCLUDE_KERNEL | _EXCLUDE_HYPERVISOR
    _ATTRIBUTE.pack_into(attribute, 0, event.kind, _ATTRIBUTE_BYTES, event.config, 0, 0, _READ_FORMAT, flags)
    arguments = (ctypes.c_long(value) for value in (thread, -1, -1, _CLOSE_ON_EXEC))
    call = ctypes.CDLL(None, use_errno=True).syscall
    call.restype = ctypes.c_long
    descriptor = int(call(ctypes.c_long(number), attribute, *arguments))
    if descriptor < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return descriptor


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _threads() -> list[int]:
    return sorted(int(name) for name in os.listdir("/proc/self/task"))


def _reason(error: OSError) -> str:
    if error.errno in (errno.EACCES, errno.EPERM):
        try:
            level = _PARANOID.read_text().strip()
        except OSError:
            level = "unknown"
        return (
            f"the kernel does not allow it (kernel.perf_event_paranoid is {level}, 2 or less is needed, and a "
            "container's seccomp profile may forbid it)"
        )
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP):
        return "the processor, or the virtual machine around it, has no such counter"
    return f"perf_event_open says {error.strerror}"
