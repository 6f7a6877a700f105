"""Resolves ``module:callable`` references of a job file."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from mtlc import live_objects
from mtlc.errors import MtlcError, UserError, nearest, one_line


def resolve(reference: str, what: str) -> Callable[..., Any]:
    """The callable that ``module:callable`` names; `what` names the job's key in an error."""
    module_name, _, attribute = reference.partition(":")
    if not module_name or not attribute:
        raise UserError(f"{what} = {reference!r}: write module:callable, such as 'mtlc.zoo:mtl_resnet'")
    if live_objects.is_live(reference):
        return _live(reference, what)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"{what} = {reference!r}: no module {error.name!r} (looked beside the job file and on sys.path)"
        ) from error
    except Exception as error:
        raise UserError(f"{what} = {reference!r}: importing {module_name} raised {one_line(error)}") from error
    if not hasattr(module, attribute):
        known = [name for name in dir(module) if not name.startswith("_")]
        raise UserError(f"{what} = {reference!r}: {module_name} has no {attribute!r}{nearest(attribute, known)}")
    target: Callable[..., Any] = getattr(module, attribute)
    if not callable(target):
        raise UserError(f"{what} = {reference!r}: {attribute} is not callable")
    result: Callable[..., Any] = target
    return result


def _live(reference: str, what: str) -> Callable[..., Any]:
    """An object that this process was given. Raises `UserError` where it was not: a checkpoint holds no code."""
    try:
        found: Callable[..., Any] = live_objects.find(reference)
    except KeyError:
        raise UserError(
            f"{what} = {reference!r}: an object of another process; give it again, or one that can be imported"
        ) from None
    return found


def call(reference: str, what: str, /, **kwargs: Any) -> Any:
    """Call a user's factory; whatever it raises becomes a one-line `UserError`."""
    target = resolve(reference, what)
    try:
        return target(**kwargs)
    except MtlcError:
        raise
    except Exception as error:
        raise UserError(f"{what} = {reference!r} raised {one_line(error)}") from error
