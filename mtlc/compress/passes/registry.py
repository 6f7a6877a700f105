"""Lists the passes by name: ours, and those of installed packages."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from mtlc.compress.pass_interface import Pass, PassConfig
from mtlc.entry_points import Addition, added_names, find_addition
from mtlc.errors import UserError, nearest

GROUP = "mtlc.passes"
"""The entry points under which packages add passes."""

# A line for each of ours: its module in this folder, and its class there.
_OURS = (
    "calibrate:Calibrate",
    "extract:Extract",
    "finetune:Finetune",
    "narrow:Narrow",
    "prune:Prune",
    "qat:Qat",
    "slim:Slim",
)

TO_MEET_A_BUDGET = "prune"
"""The pass whose reach is shown for a job with a budget and no pass that could meet it."""


def pass_types() -> dict[str, type[Pass[Any]]]:
    """Our passes by name."""
    types: dict[str, type[Pass[Any]]] = {}
    for line in _OURS:
        module, _, attribute = line.partition(":")
        one: type[Pass[Any]] = getattr(import_module(f"mtlc.compress.passes.{module}"), attribute)
        types[one.name] = one
    return types


def pass_type(name: str) -> type[Pass[Any]]:
    """The pass called `name`, ours or an installed package's, or a `UserError` with the nearest name."""
    types = pass_types()
    added = find_addition(GROUP, name, types)
    if added is not None:
        return _added(added)
    if name not in types:
        raise UserError(f"[[passes]] name = {name!r}: no such pass{nearest(name, [*types, *added_names(GROUP)])}")
    return types[name]


def _added(added: Addition) -> type[Pass[Any]]:
    """The pass of a package, if it is one."""
    one = added.load()
    if not (isinstance(one, type) and issubclass(one, Pass)):
        raise added.refused("it is not a class derived from mtlc.compress.pass_interface.Pass")
    config = getattr(one, "Config", None)
    if not (isinstance(config, type) and issubclass(config, PassConfig)):
        raise added.refused(f"its settings have no type; write: class {one.__name__}(Pass[SettingsOfThePass])")
    if getattr(one, "name", None) != added.name:
        raise added.refused(f"its name is {getattr(one, 'name', None)!r}; give both one name")
    return one
