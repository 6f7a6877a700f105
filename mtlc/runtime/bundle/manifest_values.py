"""Reads the values of a manifest: each by its key, and of one type; what does not fit is a `BundleError`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from mtlc.errors import BundleError
from mtlc.runtime.bundle.limits import MAX_ELEMENTS, MAX_RANK
from mtlc.runtime.bundle.manifest import Dimension
from mtlc.runtime.bundle.refusals import Refusal
from mtlc.runtime.bundle.strict_json import check_text

T = TypeVar("T")


def get(values: Mapping[str, Any], name: str, read: Callable[[Any, str], T], inside: str = "") -> T:
    """The value of a key that has to be there."""
    key = f"{inside}.{name}" if inside else name
    if name not in values:
        raise BundleError(f"manifest.json: {key} is missing", code=Refusal.KEY_MISSING)
    return read(values[name], key)


def table(values: Mapping[str, Any], name: str, inside: str = "") -> dict[str, Any]:
    """The table of a key; empty where it is not there."""
    return {} if values.get(name) is None else mapping(values[name], f"{inside}.{name}" if inside else name)


def whole(raw: Any, key: str) -> int:
    """A whole number, zero or more."""
    if type(raw) is not int or not 0 <= raw < 2**62:
        raise BundleError(
            f"manifest.json: {key} must be a whole number, zero or more, it is {raw!r}",
            code=Refusal.KEY_VALUE if type(raw) is int else Refusal.KEY_TYPE,
        )
    return raw


def optional(values: Mapping[str, Any], name: str, read: Callable[[Any, str], T]) -> T | None:
    """The value of a key; None where it is not there."""
    return None if values.get(name) is None else read(values[name], name)


def mapping(raw: Any, key: str) -> dict[str, Any]:
    """A table with names as keys."""
    values = anything(raw, key)
    for name in values:
        check_text(name, key)
    return values


def anything(raw: Any, key: str) -> dict[str, Any]:
    """A table that is not looked into."""
    if not isinstance(raw, Mapping):
        raise BundleError(f"manifest.json: {key} must be a table, it is {type_name(raw)}", code=Refusal.KEY_TYPE)
    return dict(raw)


def entries(raw: Any, key: str, read: Callable[[Any, str], T], most: int | None = None) -> tuple[T, ...]:
    """A list of at most `most` entries."""
    if not isinstance(raw, list | tuple):
        raise BundleError(f"manifest.json: {key} must be a list, it is {type_name(raw)}", code=Refusal.KEY_TYPE)
    if most is not None and len(raw) > most:
        raise BundleError(f"manifest.json: {key} has {len(raw)} entries, more than {most}", code=Refusal.LIMIT)
    return tuple(read(item, f"{key}[{index}]") for index, item in enumerate(raw))


def by_name(read: Callable[[Any, str], T], raw: Any, key: str) -> dict[str, T]:
    """A table of values of one kind."""
    return {name: read(value, f"{key}.{name}") for name, value in mapping(raw, key).items()}


def texts(raw: Any, key: str) -> tuple[str, ...]:
    """A list of texts."""
    return entries(raw, key, text)


def truth(raw: Any, key: str) -> bool:
    """True or false."""
    if not isinstance(raw, bool):
        raise BundleError(f"manifest.json: {key} must be true or false, it is {raw!r}", code=Refusal.KEY_TYPE)
    return raw


def text(raw: Any, key: str) -> str:
    """A text, no longer than a name may be."""
    if not isinstance(raw, str):
        raise BundleError(f"manifest.json: {key} must be text, it is {type_name(raw)}", code=Refusal.KEY_TYPE)
    check_text(raw, key)
    return raw


def identifier(raw: str, key: str) -> str:
    """A name that Python takes as one."""
    if not raw.isidentifier():
        raise BundleError(f"manifest.json: {key}: {raw!r} cannot be a task's name", code=Refusal.KEY_VALUE)
    return raw


def choice(raw: Any, key: str, known: tuple[str, ...]) -> str:
    """One of the `known` texts."""
    if raw not in known:
        raise BundleError(f"manifest.json: {key} = {raw!r}: must be one of {', '.join(known)}", code=Refusal.KEY_VALUE)
    return str(raw)


def number(raw: Any, key: str) -> float:
    """A finite number."""
    wrong = f"manifest.json: {key} must be a finite number, it is {raw!r}"
    if not isinstance(raw, int | float) or isinstance(raw, bool):
        raise BundleError(wrong, code=Refusal.KEY_TYPE)
    try:
        value = float(raw)
    except OverflowError:  # a whole number beyond what a float holds
        value = math.inf
    if not math.isfinite(value):
        raise BundleError(wrong, code=Refusal.KEY_VALUE)
    return value


def numbers(raw: Any, key: str, channels: int) -> tuple[float, ...]:
    """One number, or one for each channel."""
    values = entries(raw if isinstance(raw, list | tuple) else [raw], key, number)
    if len(values) not in (1, channels):
        raise BundleError(
            f"manifest.json: {key} has {len(values)} values: give one, or one for each of {channels} channels",
            code=Refusal.KEY_VALUE,
        )
    return values


def shape(raw: Any, key: str) -> tuple[Dimension, ...]:
    """The sizes of a tensor; one that is free has a name."""

    def dimension(value: Any, where: str) -> Dimension:
        if isinstance(value, str) and value:
            return text(value, where)
        if type(value) is not int or value < 0:
            raise BundleError(
                f"manifest.json: {where} must be a size or a name, it is {value!r}", code=Refusal.KEY_VALUE
            )
        return value

    sizes = entries(raw, key, dimension)
    if len(sizes) > MAX_RANK:
        raise BundleError(f"manifest.json: {key} has {len(sizes)} dimensions, more than {MAX_RANK}", code=Refusal.LIMIT)
    if math.prod(size for size in sizes if isinstance(size, int)) > MAX_ELEMENTS:
        raise BundleError(
            f"manifest.json: {key} = {list(sizes)}: more than {MAX_ELEMENTS} elements", code=Refusal.LIMIT
        )
    return sizes


def type_name(raw: Any) -> str:
    """What a value is, in words."""
    return "nothing" if raw is None else f"a {type(raw).__name__}"
