"""Gives a package's public names on first use, so that importing the package imports nothing else."""

from __future__ import annotations

import sys
from importlib import import_module

TYPE_CHECKING = False  # `typing` takes longer to import than this file
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any


def lazy_names(package: str, homes: Mapping[str, str], modules: Mapping[str, str] = {}) -> Callable[[str], Any]:
    """The ``__getattr__`` of `package`, whose public names live in other modules.

    `homes` maps each name to the module that defines it, in full or after the package's own name with a leading dot.
    `modules` maps names to modules that are offered themselves.
    The modules are named in text and not imported, so that a package may offer what is built on it. An unknown name
    raises `AttributeError` with the nearest one that is known.
    """

    def find(name: str) -> Any:
        if name in modules:
            return import_module(modules[name])
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}{_hint(name, [*homes, *modules])}")
        value = getattr(import_module(homes[name], package), name)
        setattr(sys.modules[package], name, value)  # the next use does not come here
        return value

    return find


def callable_package(package: str, function: str) -> None:
    """Let a package be called: as `function`, ``module:name``, which is imported when it is.

    A verb may have the name of the package that does its work: ``mtlc.compress(model, …)`` beside
    ``from mtlc.compress.passes.prune import Prune``.
    """
    where, _, name = function.partition(":")

    from types import ModuleType

    class CallablePackage(ModuleType):
        def __call__(self, *arguments: Any, **options: Any) -> Any:
            return getattr(import_module(where), name)(*arguments, **options)

        @property
        def __signature__(self) -> Any:  # for help() and notebooks
            import inspect

            return inspect.signature(getattr(import_module(where), name))

    sys.modules[package].__class__ = CallablePackage


def _hint(name: str, known: list[str]) -> str:
    # Python itself asks for dunder names and, in `from package import submodule`, for every submodule: both go on
    # elsewhere and must stay cheap.
    if name.startswith("__"):
        return ""
    from mtlc.errors import nearest

    return nearest(name, known)
