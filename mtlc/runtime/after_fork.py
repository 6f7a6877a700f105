"""Tells objects of a process that forked that they are now in its child, and keeps what must not be freed there.

After `os.fork` the child has a copy of every object and only the thread that called. The threads of a backend are gone:
a program that has more than one never ends a call there, and not even its destructor, which waits for them. So a child
must neither run nor free what its parent loaded.
"""

from __future__ import annotations

import os
from typing import Protocol
from weakref import WeakSet


class Forked(Protocol):
    """What is told."""

    def forked(self) -> None:
        """Called in the child, before anything else runs there."""


_known: WeakSet[Forked] = WeakSet()


def tell_after_fork(one: Forked) -> None:
    """Call ``one.forked()`` in every child that this process forks from now on, for as long as it is in use."""
    _known.add(one)


def keep_for_ever(one: object) -> None:
    """Give an object a reference that never goes: it is not even freed when Python ends."""
    import ctypes  # slow to import, and needed in a child only

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(one))


def _in_child() -> None:
    for one in list(_known):
        one.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
