"""Reads text and TOML with one clear line for whatever is wrong, and writes TOML."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from datetime import date, datetime, time
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from mtlc.errors import UserError, nearest


def read_text(path: Path, missing: str = "no such file") -> str:
    """The text of a file in UTF-8. Raises `UserError`, with `missing` where there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: {missing}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file in UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """The values in `text`; messages call its file `where`. Raises `UserError`."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # Python's own come through, for numbers of thousands of digits
        raise UserError(f"{where}: not valid TOML: {error}") from None


def toml_text(value: Any) -> str:
    """A value as TOML writes it on one line: text, number, true or false, date, list, inline table.

    What JSON escapes in strings TOML reads alike; DEL is the one that only TOML wants escaped.
    """
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{toml_key(key)} = {toml_text(one)}" for key, one in value.items()) + " }"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml_text, value))}]"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, date | datetime | time):
        return value.isoformat()
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def toml_key(key: str) -> str:
    """A key as TOML writes it: in quotes where it needs them."""
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else toml_text(key)


def toml_file(values: Mapping[str, Any]) -> str:
    """The text of a file with these values: a header for every table, and for every table in a list."""
    return "\n".join(_toml_lines(values, ())).lstrip("\n") + "\n"


def _toml_lines(values: Mapping[str, Any], above: tuple[str, ...]) -> Iterator[str]:
    below = {key for key, value in values.items() if isinstance(value, Mapping) or _is_list_of_tables(value)}
    yield from (f"{toml_key(key)} = {toml_text(value)}" for key, value in values.items() if key not in below)
    for key in (key for key in values if key in below):
        value, path = values[key], (*above, toml_key(key))
        tables = [value] if isinstance(value, Mapping) else value
        brackets = "[{}]" if isinstance(value, Mapping) else "[[{}]]"
        for table in tables:
            inner = list(_toml_lines(table, path))
            if inner[:1] == [""] and isinstance(value, Mapping):
                yield from inner  # the tables in it say that it is there
                continue
            yield ""
            yield brackets.format(".".join(path))
            yield from inner


def _is_list_of_tables(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, Mapping) for one in value)


def validated(make: Callable[[], Any], model: type[BaseModel], where: str) -> Any:
    """What `make` makes; pydantic's first complaint becomes one line that starts with `where` and names the key."""
    try:
        return make()
    except ValidationError as error:
        # An unknown key first: a misspelt required key is reported twice, and the misspelling is the cause.
        first = min(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
        raise UserError(_describe(first, model, where)) from None
    except UserError as error:  # from a validator that raises ours, which pydantic lets through without its place
        raise UserError(f"{where}: {error}") from None


def _describe(error: Mapping[str, Any], model: type[BaseModel], where: str) -> str:
    """One line for pydantic's `error`: the file or pass, [the section] and the key, and what is wrong with it."""
    path: list[str] = []
    known: list[str] = []
    annotation: Any = model
    for key in error["loc"]:
        annotation = without_none(annotation)
        known = []
        if is_model(annotation):
            fields = {field.alias or name: field.annotation for name, field in annotation.model_fields.items()}
            known, annotation = list(fields), fields.get(str(key))
        elif get_origin(annotation) in (dict, list):
            annotation = get_args(annotation)[-1]
        elif isinstance(key, str):
            continue  # the branch of a union that pydantic tried, which is no key of the file
        path.append(str(key))
    top = where.endswith(".toml")
    table = is_model(without_none(annotation)) or get_origin(annotation) is dict
    table = table or (error["type"] == "extra_forbidden" and isinstance(error["input"], dict | list))
    section, key = (path, "") if table or not path else (path[:-1], path[-1])
    place = " ".join(part for part in (f"[{'.'.join(section)}]" if section else "", key) if part)
    place = f"{where}: {place}" if top else f"{where} {place}".rstrip()
    if error["type"] == "extra_forbidden":
        return f"{place}: unknown {'key' if key else 'section'}{nearest(path[-1], known)}"
    if error["type"] == "missing":
        return f"{place}: this {'key' if key else 'section'} is required"
    message = str(error["msg"]).removeprefix("Value error, ").splitlines()[0]
    if error["type"] in ("value_error", "assertion_error"):
        return f"{place}: {message}"
    if error["type"] == "too_short":
        return f"{place}: must not be empty"
    shown = repr(error["input"])
    return f"{place}: {message[:1].lower() + message[1:]}" + (f", not {shown}" if len(shown) <= 60 else "")


def is_model(annotation: Any) -> bool:
    """Whether it is a class of pydantic's models."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def without_none(annotation: Any) -> Any:
    """`Section` for ``Section | None`` and for ``Annotated[Section, …]``; any other annotation as it is."""
    if get_origin(annotation) is Annotated:
        return without_none(get_args(annotation)[0])
    inner = [kind for kind in get_args(annotation) if kind is not type(None)]
    # With `Annotated` in it, a union is one of typing's, not of Python's own.
    return without_none(inner[0]) if get_origin(annotation) in (UnionType, Union) and len(inner) == 1 else annotation
