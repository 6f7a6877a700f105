"""Lists the trackers: ours, and those of installed packages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from mtlc.entry_points import added_names, find_addition
from mtlc.errors import MtlcError, UserError, nearest, one_line
from mtlc.tracking.tracker import Tracker

GROUP = "mtlc.trackers"
_OURS = {
    "mlflow": "mtlc.tracking.mlflow_tracker:MlflowTracker",
    "tensorboard": "mtlc.tracking.tensorboard_tracker:TensorBoardTracker",
}
_METHODS = ("start", "metrics", "artifact", "end")


def make_tracker(name: str, options: Mapping[str, Any]) -> Tracker:
    """The tracker called `name`, with the options of the job.

    Raises `UserError` for a name that nobody has, an option that it does not know, or a package's that is no tracker;
    `Unavailable` where what it needs is not installed.
    """
    added = find_addition(GROUP, name, _OURS)
    if added is None and name not in _OURS:
        raise UserError(f"[track] trackers: no tracker {name!r}{nearest(name, [*_OURS, *added_names(GROUP)])}")
    make: Callable[..., Any]
    if added is None:
        module, _, attribute = _OURS[name].partition(":")
        make = getattr(import_module(module), attribute)
    else:
        make = added.load()
        if not callable(make):
            raise added.refused(f"it is a {type(make).__name__}, not a class of trackers")
    try:
        made = make(**options)
    except MtlcError as error:
        raise type(error)(f"[track.options.{name}] {error}") from error
    except Exception as error:
        if added is None and not isinstance(error, TypeError):
            raise
        if added is None or (isinstance(error, TypeError) and options):
            raise UserError(f"[track.options.{name}] {_unknown(error)}") from error
        raise added.refused(f"making it raised {one_line(error)}") from error
    missing = [method for method in _METHODS if not callable(getattr(made, method, None))]
    if missing and added is not None:
        raise added.refused(f"a {type(made).__name__} is no tracker: it has no {missing[0]}()")
    if added is not None and getattr(made, "name", None) != name:
        raise added.refused(f"its name is {getattr(made, 'name', None)!r}; give both one name")
    found: Tracker = made
    return found


def _unknown(error: Exception) -> str:
    """``MlflowTracker.__init__() got an unexpected keyword argument 'urk'``, as a person says it."""
    _, _, said = str(error).partition("() ")
    return said.replace("got an unexpected keyword argument", "unknown key") or str(error)
