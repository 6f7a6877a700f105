"""Reads what ``--set KEY=VALUE`` and ``--set ~KEY`` say, and changes a job's values by it before they are checked."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from datetime import date, datetime, time
from typing import Any, get_args, get_origin

from mtlc.errors import UserError, nearest
from mtlc.job.schema import BUDGETS, JobFile
from mtlc.toml_files import is_model, toml_text, without_none

_OPENS_A_VALUE = ("[", "{", '"', "'")
_SHOWN = 60


@dataclass(frozen=True)
class Override:
    """A key of a job, in dots, and the value that it gets; None removes it. `door` is what messages call it by."""

    key: str
    value: Any
    door: str

    @property
    def text(self) -> str:
        """What ``--set`` takes for it."""
        return f"~{self.key}" if self.value is None else f"{self.key}={toml_text(self.value)}"

    def __str__(self) -> str:
        if self.value is None:
            return self.text
        text = toml_text(self.value)
        return f"{self.key}={text if len(text) <= _SHOWN else text[:_SHOWN] + '…'}"


Overrides = Mapping[str, Any] | Iterable[str | Override]
"""What a caller may give: values by key, or texts KEY=VALUE; None, and a text ~KEY, remove a key."""


def read_overrides(given: Overrides) -> tuple[Override, ...]:
    """The overrides in their order. Raises `UserError` for a text that is none, and a value that TOML cannot hold."""
    if isinstance(given, str):
        raise UserError(f"overrides = {given!r}: give a dict of values by key, or a list of texts: [{given!r}]")
    if isinstance(given, Mapping):
        found = []
        for key, value in given.items():
            door = f"overrides[{key!r}]"
            if not isinstance(key, str):
                raise UserError(f"{door}: a key is a text, such as 'passes.0.round_to'")
            found.append(Override(key, None if value is None else _plain(value, door), door))
        return tuple(found)
    return tuple(one if isinstance(one, Override) else _of_text(one) for one in given)


def overridden(values: Mapping[str, Any], overrides: Iterable[Override]) -> dict[str, Any]:
    """A copy of a job's values with every override, the later over the earlier.

    Raises `UserError` naming the key and the nearest one for a key that no job has, and how many entries a list has for
    one that it lacks; so too where a key that is to be removed is not there.
    """
    found: dict[str, Any] = deepcopy(dict(values))
    budgets: set[str] = set()
    for one in overrides:
        parts = _parts(one)
        _change(found, parts, one)
        if len(parts) == 2 and parts[0] == "budget" and one.value is not None:
            budgets.add(parts[1])
            _keep_one_budget(found["budget"], budgets)
    return found


def read_arguments(texts: Iterable[str], option: str) -> dict[str, Any]:
    """Keyword arguments of a factory out of texts KEY=VALUE of an `option`. Raises `UserError`."""
    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip().isidentifier():
            raise UserError(f"{option} {text}: write KEY=VALUE, such as {option} classes=21")
        found[key.strip()] = _value(value.strip(), f"{option} {key}")
    return found


def _of_text(text: Any) -> Override:
    if not isinstance(text, str):
        raise UserError(f"overrides: {text!r} is no text: give KEY=VALUE, such as 'passes.0.round_to=16'")
    key, equals, value = text.partition("=")
    key = key.strip()
    if key.startswith("~"):
        key = key[1:].strip()
        if equals or not key:
            raise UserError(
                f"--set {text}: ~KEY removes a key and takes no value, such as --set '~tasks.depth.max_drop'"
            )
        return Override(key, None, f"--set ~{key}")
    if not equals or not key:
        raise UserError(f"--set {text}: write KEY=VALUE, such as --set passes.0.round_to=16")
    return Override(key, _value(value.strip(), f"--set {key}"), f"--set {key}")


def _value(text: str, door: str) -> Any:
    """The TOML value in `text`; the text itself where it is none, so that ``40%`` needs no quotes."""
    try:
        found = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError) as error:
        if text.startswith(_OPENS_A_VALUE):
            raise UserError(f"{door}={text}: not a value of TOML: {error}") from None
        return text
    # A line break would begin a second key.
    return found["value"] if set(found) == {"value"} else text


def _parts(override: Override) -> list[str]:
    """The parts of a dotted key, which may be in quotes as in TOML."""
    try:
        found: Any = tomllib.loads(f"{override.key} = 0")
    except (ValueError, RecursionError):
        found = None
    parts: list[str] = []
    while isinstance(found, dict) and len(found) == 1:
        ((part, found),) = found.items()
        parts.append(part)
    if found != 0 or not parts:
        raise UserError(
            f"{override.door}: not a key: write tables, places in lists and the name with dots between them, such as "
            "tasks.depth.max_drop or passes.0.round_to"
        )
    return parts


def _change(values: dict[str, Any], parts: list[str], override: Override) -> None:
    place: Any = values
    kind: Any = JobFile
    for number, part in enumerate(parts):
        where, last = ".".join(parts[:number]), number == len(parts) - 1
        if isinstance(place, list):
            index = _index(part, place, where, override)
            if last and override.value is None:
                del place[index]
            elif last:
                place[index] = override.value
            else:
                place, kind = place[index], _entry(kind)
            continue
        if not isinstance(place, dict):
            raise UserError(f"{override.door}: {where} is {_shown(place)}, which has no keys in it")
        known = _keys(kind)
        if known is not None and part not in known:
            raise UserError(f"{override.door}: no key {part!r} in {_table(where)}{nearest(part, known)}")
        inner = known[part] if known is not None else _entry(kind)
        if override.value is None and part not in place:
            there = nearest(part, map(str, place)) if place else ""
            raise UserError(
                f"{override.door}: {part!r} is not set in {_table(where)}, so there is nothing to remove{there}"
            )
        if last and override.value is None:
            del place[part]
            return
        if last:
            place[part] = override.value
            return
        if part not in place:
            if known is None and is_model(without_none(inner)):
                raise UserError(f"{override.door}: no {part!r} in {_table(where)}{nearest(part, map(str, place))}")
            place[part] = [] if get_origin(without_none(inner)) is list else {}
        place, kind = place[part], inner


def _index(part: str, entries: list[Any], where: str, override: Override) -> int:
    count = len(entries)
    if part.isdecimal() and int(part) < count:
        return int(part)
    names = [one.get("name") if isinstance(one, Mapping) else None for one in entries]
    listed = "; ".join(f"{place} is {name!r}" for place, name in enumerate(names) if isinstance(name, str))
    have = f"{where} has {count or 'no'} entr{'y' if count == 1 else 'ies'}"
    numbers = "" if not count else ", 0" if count == 1 else f", 0 to {count - 1}"
    why = f"no entry {part}" if part.lstrip("-").isdecimal() else f"{part!r} is no place in a list"
    raise UserError(f"{override.door}: {why}: {have}{numbers}{f' ({listed})' if listed else ''}")


def _keep_one_budget(section: Any, given: set[str]) -> None:
    """A budget that is set stands for the one in the file: a job has one. Two that are set are an error, told later."""
    if not isinstance(section, dict) or not given & set(BUDGETS):
        return
    for kind in BUDGETS:
        if kind not in given:
            section.pop(kind, None)
    if "latency" not in given and "device" not in given:
        section.pop("device", None)


def _keys(kind: Any) -> dict[str, Any] | None:
    """The keys of a table with what each holds; None where any key may stand."""
    kind = without_none(kind)
    if not is_model(kind):
        return None
    return {field.alias or name: field.annotation for name, field in kind.model_fields.items()}


def _entry(kind: Any) -> Any:
    """What the entries of a list or a free table are."""
    inner = get_args(without_none(kind))
    return inner[-1] if inner else Any


def _table(where: str) -> str:
    return f"[{where}]" if where else "a job"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"a {type(value).__name__}"


def _plain(value: Any, door: str) -> Any:
    """A Python value as TOML has it: texts, numbers, true and false, dates, lists and tables."""
    if isinstance(value, bool | int | float | str | date | datetime | time):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(one, door) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one, door) for one in value]
    raise UserError(
        f"{door}: a job has no value of type {type(value).__name__!r}: give a text, a number, a list or a dict"
    )
