"""Lists the kinds of machine that a bundle can be packaged for."""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass

from mtlc.errors import UserError, nearest


@dataclass(frozen=True)
class Target:
    """A kind of machine.

    `machine` is its name in ``uname -m``, wheels and triples, `elf_machine` that in ELF files (`elftools`), `oldest`
    the oldest glibc that a library is made for where the compiler can choose: that of manylinux_2_28, as the engine's.
    """

    name: str
    machine: str
    elf_machine: str
    oldest: str = "2.28"

    @property
    def triple(self) -> str:
        """The name of its compilers, such as ``aarch64-linux-gnu``."""
        return f"{self.machine}-linux-gnu"

    def is_this_machine(self) -> bool:
        """Whether what is made for it runs here."""
        return sys.platform == "linux" and platform.machine() == self.machine


TARGETS = {
    target.name: target
    for target in (
        Target("linux-x86_64", "x86_64", "EM_X86_64"),
        Target("linux-aarch64", "aarch64", "EM_AARCH64"),
    )
}


def find_target(name: str | None) -> Target:
    """The target of that name; None for that of this machine. Raises `UserError` with the nearest name."""
    if name is None:
        for target in TARGETS.values():
            if target.is_this_machine():
                return target
        raise UserError(f"--target: name one of {', '.join(TARGETS)}: this machine is neither")
    if name not in TARGETS:
        raise UserError(f"--target {name}: no such target{nearest(name, TARGETS)}")
    return TARGETS[name]
