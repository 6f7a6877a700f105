"""Finds what installed packages add to mtlc, and says in one line what is wrong with it.

A package adds a pass, a backend, a device, a metric, a loss, a tracker or a report section under an entry-point group
of its ``pyproject.toml``: ``docs/extending.md`` shows each. Only what is asked for is imported, so that a package that
is broken stops nobody who does not use it.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from mtlc.errors import MtlcError, UserError, one_line

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


@dataclass(frozen=True)
class Addition:
    """One entry point of an installed package."""

    point: EntryPoint

    @property
    def name(self) -> str:
        """What a job or the command line calls it."""
        return self.point.name

    def load(self) -> Any:
        """Import it. Raises `UserError` naming the package and the entry point if that fails."""
        try:
            return self.point.load()
        except MtlcError:  # the package says itself, in one line, what is missing
            raise
        except Exception as error:
            raise self.refused(f"importing it raised {one_line(error)}") from error

    def refused(self, why: str) -> UserError:
        """The error that says in one line which entry point of which package is wrong, and `why`."""
        return UserError(f"{self}: {why}")

    def __str__(self) -> str:
        package = self.point.dist.name if self.point.dist is not None else "?"
        return f"package {package!r}, entry point {self.name!r} of {self.point.group} ({self.point.value})"


@cache
def additions(group: str) -> tuple[Addition, ...]:
    """What installed packages add to the group, in the order of its names. Reading them takes tens of milliseconds."""
    from importlib.metadata import entry_points

    # A package that is found twice on the path, such as an editable install beside its own folder, is one package.
    distinct = {(point.name, point.value): point for point in entry_points(group=group)}
    return tuple(Addition(distinct[key]) for key in sorted(distinct))


def added_names(group: str) -> list[str]:
    """The names that installed packages add to the group."""
    return [addition.name for addition in additions(group)]


def find_addition(group: str, name: str, ours: Container[str] = ()) -> Addition | None:
    """The entry point called `name`, or None where no package has one.

    Raises `UserError` for a name that is one of `ours`, and for one that two packages have: nobody could tell which of
    the two a job means.
    """
    found = [addition for addition in additions(group) if addition.name == name]
    if found and name in ours:
        raise found[0].refused(f"mtlc has a {name!r} of its own; the package has to give it another name")
    if len(found) > 1:
        raise found[0].refused(f"{found[1]} has the same name; uninstall one of them")
    return found[0] if found else None
