"""Gives a package's public names on first use, so that importing the package imports nothing else."""

from __future__ import annotations

import sys
from importlib import import_module

TYPE_CHECKING = False  # `typing` takes longer to import than this file
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any


def lazy_names(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """The ``__getattr__`` of `package`, whose public names live in other modules.

    `homes` maps each name to the module that defines it, in full or after the package's own name with a leading dot.
    The modules are named in text and not imported, so that a package may offer what is built on it. An unknown name
    raises `AttributeError` with the nearest one that is known.
    """

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}{_hint(name, homes)}")
        value = getattr(import_module(homes[name], package), name)
        setattr(sys.modules[package], name, value)  # the next use does not come here
        return value

    return find


def _hint(name: str, homes: Mapping[str, str]) -> str:
    # Python itself asks for dunder names and, in `from package import submodule`, for every submodule: both go on
    # elsewhere and must stay cheap.
    if name.startswith("__"):
        return ""
    from mtlc.errors import nearest

    return nearest(name, homes)
