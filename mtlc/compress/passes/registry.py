"""Lists the passes by name: ours, and those of installed packages."""

from __future__ import annotations

from importlib.metadata import entry_points

from mtlc.compress.pass_interface import Pass
from mtlc.errors import UserError, nearest


def pass_types() -> dict[str, type[Pass]]:
    """All passes by name: the built-in ones and those of installed packages."""
    from mtlc.compress.passes.calibrate import Calibrate
    from mtlc.compress.passes.extract import Extract
    from mtlc.compress.passes.finetune import Finetune
    from mtlc.compress.passes.narrow import Narrow
    from mtlc.compress.passes.prune import Prune
    from mtlc.compress.passes.qat import Qat
    from mtlc.compress.passes.slim import Slim

    types: dict[str, type[Pass]] = {cls.name: cls for cls in (Prune, Slim, Narrow, Extract, Finetune, Qat, Calibrate)}
    for point in entry_points(group="mtlc.passes"):
        if point.name not in types:
            types[point.name] = point.load()
    return types


def pass_type(name: str) -> type[Pass]:
    """The pass called `name`, or a `UserError` with the nearest name."""
    types = pass_types()
    if name not in types:
        raise UserError(f"[[passes]] name = {name!r}: no such pass{nearest(name, types)}")
    return types[name]
